//! How throughput grows with workers: one and two are measured, more follow from a model.
//!
//! Workers share nothing that changes but the rings between them. So `n` of them carry
//!
//! ```text
//! pps(n) = n * f / (c * s + p * (push + pop))
//! ```
//!
//! packets a second: `f` cycles a second, `c` cycles a packet of one worker alone, `s` what a packet costs more because others
//! use the same memory and last-level cache (measured with two), `p` the part of packets whose next step is another worker's,
//! `push` and `pop` what both sides of a hand-off cost. What one cache line costs that goes from core to core stands beside it:
//! a hand-off moves a descriptor of several, and cannot cost less than they do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Args;
use guestseal::path::batch::{Descriptor, NextStep, WorkerId};
use guestseal::path::outcome::Direction;
use guestseal::port::BATCH;
use guestseal::port::frame::Frame;
use guestseal::wire::packet::Packet;
use guestseal::worker::handoff::{Handoff, Item, Waker};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;

use crate::pipeline::seal::{Outbound, Size, umem};
use crate::process::{PerfError, cpus, json_text};
use crate::statistics::median;

/// `guestseal-perf workers`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Bytes of the guest's frame with its Ethernet header, or imix
    #[arg(long, default_value_t = Size::Imix, value_name = "BYTES")]
    size: Size,
    /// Bursts of 64 packets that each worker carries in a round
    #[arg(long, default_value_t = 4000, value_name = "N")]
    bursts: u32,
}

/// What was measured, and what follows.
#[derive(Clone, Debug, Serialize)]
struct Report {
    size: String,
    /// TSC cycles a second.
    hertz: f64,
    /// Cycles a packet, one worker alone.
    one_worker_cycles: f64,
    /// Cycles a packet while two work, each on a CPU of its own.
    two_workers_cycles: f64,
    /// Packets a second of two, as a multiple of one's.
    two_workers_speedup: f64,
    /// Cycles a packet to hand over.
    push_cycles: f64,
    /// Cycles a packet to take over, and to give a frame back.
    pop_cycles: f64,
    /// Cycles for a cache line to go from one core to another.
    cache_line_cycles: f64,
    model: Vec<Modelled>,
}

/// What so many workers would carry.
#[derive(Clone, Debug, Serialize)]
struct Modelled {
    workers: u32,
    /// The part of packets that go over to another worker.
    crossing: f64,
    packets_per_second: f64,
}

/// Measures and prints.
///
/// # Errors
/// If there are fewer than two CPUs, or a host cannot be made.
pub fn run(options: &Options) -> Result<(), PerfError> {
    let cpus = cpus()?;
    let &[first, second, ..] = cpus.as_slice() else {
        return Err(PerfError::Wrong("two workers want two CPUs".into()));
    };
    let clock = quanta::Clock::new();
    let hertz = hertz(&clock);
    let (mut alone, mut both) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        alone.push(carry(first, options, &clock, None)?);
        let other = AtomicBool::new(true);
        let cycles = std::thread::scope(|scope| {
            let beside = scope.spawn(|| carry(second, options, &clock, Some(&other)));
            let cycles = carry(first, options, &clock, None);
            other.store(false, Ordering::Relaxed);
            let beside = beside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok::<f64, PerfError>((cycles? + beside) / 2.0)
        });
        both.push(cycles?);
    }
    let (push_cycles, pop_cycles) = handoff([first, second], &clock)?;
    let (one, two) = (median(&alone), median(&both));
    let model = [1_u32, 2, 4, 8, 16].into_iter().flat_map(|workers| {
        let all = f64::from(workers - 1) / f64::from(workers);
        [0.0, all]
            .into_iter()
            .take(if workers == 1 { 1 } else { 2 })
            .map(move |crossing| {
                let cycles = if workers == 1 { one } else { two } + crossing * (push_cycles + pop_cycles);
                Modelled {
                    workers,
                    crossing,
                    packets_per_second: f64::from(workers) * hertz / cycles,
                }
            })
    });
    let report = Report {
        size: options.size.to_string(),
        hertz,
        one_worker_cycles: one,
        two_workers_cycles: two,
        two_workers_speedup: 2.0 * one / two,
        push_cycles,
        pop_cycles,
        cache_line_cycles: cache_line([first, second], &clock)?,
        model: model.collect(),
    };
    if options.json {
        println!("{}", json_text("report", &report)?);
        return Ok(());
    }
    println!(
        "outbound, sealed, frames of {} bytes, TSC at {:.2} GHz",
        report.size,
        hertz / 1e9
    );
    println!("  one worker   {one:>7.1} cycles a packet");
    println!(
        "  two workers  {two:>7.1} cycles a packet each: {:.2} times one",
        report.two_workers_speedup
    );
    println!("  hand-off     {push_cycles:>7.1} to push, {pop_cycles:.1} to pop");
    println!(
        "  cache line   {:>7.1} from core to core",
        report.cache_line_cycles
    );
    for one in &report.model {
        println!(
            "  {:>2} workers, {:>3.0} % cross: {:>6.2} million packets a second",
            one.workers,
            one.crossing * 100.0,
            one.packets_per_second / 1e6
        );
    }
    Ok(())
}

/// How often the counter counts.
fn hertz(clock: &quanta::Clock) -> f64 {
    let (begin, cycles) = (Instant::now(), clock.raw());
    while begin.elapsed().as_millis() < 50 {
        std::hint::spin_loop();
    }
    (clock.raw() - cycles) as f64 / begin.elapsed().as_secs_f64()
}

fn pin(cpu: usize) -> Result<(), PerfError> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|error| PerfError::io("pinning a thread")(error.into()))
}

/// Median cycles a packet of a worker that seals, on a CPU; as long as `beside` says, if it does.
fn carry(
    cpu: usize,
    options: &Options,
    clock: &quanta::Clock,
    beside: Option<&AtomicBool>,
) -> Result<f64, PerfError> {
    pin(cpu)?;
    let mut outbound = Outbound::new(options.size)?;
    let mut cycles = Vec::new();
    let mut number = 0;
    while beside.map_or(number < options.bursts, |go_on| go_on.load(Ordering::Relaxed)) {
        number += 1;
        cycles.push(outbound.burst(clock) as f64 / BATCH as f64);
    }
    Ok(median(&cycles))
}

/// Median cycles a packet of both sides of a ring between two CPUs.
fn handoff(cpus: [usize; 2], clock: &quanta::Clock) -> Result<(f64, f64), PerfError> {
    const BURSTS: usize = 20_000;
    let wakers = [Waker::new(), Waker::new()];
    let [Ok(one), Ok(two)] = wakers else {
        return Err(PerfError::Wrong("no descriptor is left for an eventfd".into()));
    };
    let mut ends = Handoff::mesh(&[one, two]);
    let (Some(mut to), Some(mut from)) = (ends.pop(), ends.pop()) else {
        unreachable!("one for each worker")
    };
    std::mem::swap(&mut to, &mut from);
    let (_umem, mut frames) = umem(1024)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let taker = scope.spawn(|| {
            pin(cpus[1])?;
            let (mut cycles, mut owned) = (Vec::new(), Vec::<Frame>::with_capacity(1024));
            while !done.load(Ordering::Relaxed) {
                let begin = clock.raw();
                let mut count = 0;
                while count < BATCH {
                    match from.pop() {
                        Some(Item::Packet(_, packet)) => owned.push(packet.frame),
                        Some(Item::Free(frame)) => owned.push(frame),
                        None => break,
                    }
                    count += 1;
                }
                if count == BATCH {
                    let mut spare = Vec::new();
                    from.settle(|_| owned.pop(), |frame| spare.push(frame));
                    cycles.push((clock.raw() - begin) as f64 / BATCH as f64);
                    owned.append(&mut spare);
                } else {
                    from.settle(|_| owned.pop(), drop);
                }
            }
            Ok::<f64, PerfError>(median(&cycles))
        });
        let mut giver = || {
            pin(cpus[0])?;
            let (mut cycles, mut back) = (Vec::new(), Vec::<Descriptor>::with_capacity(BATCH));
            while cycles.len() < BURSTS {
                while let Some(item) = to.pop() {
                    match item {
                        Item::Free(frame) => frames.push(frame),
                        Item::Packet(_, packet) => frames.push(packet.frame),
                    }
                }
                if frames.len() < BATCH {
                    continue;
                }
                let burst = frames.split_off(frames.len() - BATCH);
                let begin = clock.raw();
                for frame in burst {
                    let packet = Descriptor::new(frame, Packet::EMPTY, 0, Direction::Outbound, Some(0));
                    if let Err(packet) = to.push(WorkerId(1), NextStep::Seal, packet) {
                        back.push(packet);
                    }
                }
                to.settle(|_| None, |_| {});
                if back.is_empty() {
                    cycles.push((clock.raw() - begin) as f64 / BATCH as f64);
                }
                frames.extend(back.drain(..).map(|packet| packet.frame));
            }
            Ok::<f64, PerfError>(median(&cycles))
        };
        let pushed = giver();
        done.store(true, Ordering::Relaxed);
        let popped = taker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((pushed?, popped?))
    })
}

/// Cycles for one cache line to go from one CPU to another.
fn cache_line(cpus: [usize; 2], clock: &quanta::Clock) -> Result<f64, PerfError> {
    const TIMES: u64 = 200_000;
    const PIECE: u64 = 500;
    #[repr(align(128))]
    struct Line(AtomicU64);
    let line = Arc::new(Line(AtomicU64::new(0)));
    // Each writes what follows the other's number. The median of pieces: a CPU that is taken away spoils one.
    let play = |cpu, mut number: u64, line: &Line| {
        pin(cpu)?;
        let mut pieces = Vec::new();
        while number < TIMES {
            let (begin, end) = (clock.raw(), number + PIECE);
            while number < end {
                while line.0.load(Ordering::Acquire) != number {
                    std::hint::spin_loop();
                }
                line.0.store(number + 1, Ordering::Release);
                number += 2;
            }
            pieces.push((clock.raw() - begin) as f64 / PIECE as f64);
        }
        Ok::<f64, PerfError>(median(&pieces))
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| play(cpus[1], 1, &line));
        let cycles = play(cpus[0], 0, &line);
        let ended = other
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        ended.and(cycles)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_over_comes_and_costs_something() {
        let cpus = cpus().unwrap();
        let &[first, second, ..] = cpus.as_slice() else {
            eprintln!("one CPU: nothing is handed over");
            return;
        };
        let clock = quanta::Clock::new();
        let (push, pop) = handoff([first, second], &clock).unwrap();
        assert!(push > 0.0 && pop > 0.0, "{push} {pop}");
        assert!(cache_line([first, second], &clock).unwrap() > 0.0);
    }
}
