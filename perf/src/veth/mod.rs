//! Real packets over veths between network namespaces: throughput without loss, latency at a fixed rate, CPU per packet, of
//! Guestseal and of its peers on the same wire in the same run.
//!
//! The load is open-loop: a packet is due at its time whatever became of those before, and its age counts from then. The
//! sink sees every packet that comes out. How fast both are by themselves is measured first.

pub(crate) mod forward;
pub mod scenario;
mod tcp;
mod trial;
pub(crate) mod tunnel;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use guestseal_xdp::{Attached, Generator, MAGIC, Pace, Sink};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize};

use self::scenario::{Scenario, Setup, attach_sink, cannot, ifindex, said};
use self::trial::{Ages, difference, percentile, search};
use crate::namespaces::{Namespace, remove_leftovers};
use crate::pipeline::seal::{Sealer, Size, plain};
use crate::process::{PerfError, check_interrupted, cpus, json_text, run_line};
use crate::{pipeline, report};

/// Packets of the list that a generator sends in turns: a multiple of what a mix and the flows come to.
const LIST: usize = 600;
/// Flows among them.
const FLOWS: u32 = 100;
/// Sealed packets that are made at most for one trial.
const SEALED: usize = 400_000;

/// `guestseal-perf veth`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  guestseal-perf veth --short\n  guestseal-perf veth --json veth.json --html veth.html\n  guestseal-perf veth --scenario plaintext,encrypt --size 1414"
)]
pub struct Options {
    /// Two sizes and short trials: a first look in about two minutes
    #[arg(long)]
    short: bool,
    /// Write what was measured as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report with plots as HTML
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Bytes of the guest's frame with its Ethernet header, or imix; 64, 256, 512, 1420 and imix if nothing is said
    #[arg(long, value_delimiter = ',', value_name = "BYTES")]
    size: Vec<Size>,
    /// What carries the packets, each in turn; everything if nothing is said
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME")]
    scenario: Vec<Scenario>,
    /// Seconds of a trial; 1, or 0.3 with --short
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The machine and the kernel.
    pub machine: String,
    /// CPUs.
    pub cpus: usize,
    /// Seconds of a trial.
    pub trial_seconds: f64,
    /// Generator and sink by themselves.
    pub generator: Vec<GeneratorRow>,
    /// Each scenario at each size.
    pub rows: Vec<Row>,
    /// One TCP flow from guest to guest.
    pub tcp: Vec<tcp::TcpRow>,
    /// Requests and their answers.
    pub answers: Vec<tcp::AnswerRow>,
    /// Cycles by stage, of the rows that `guestseal-perf pipeline --json` prints.
    pub pipeline: Vec<serde_json::Value>,
}

/// Generator and sink at the ends of one veth, nothing between.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GeneratorRow {
    /// Bytes of the frame, or "imix".
    pub size: String,
    /// Packets a second that left, as fast as it goes.
    pub sent_pps: f64,
    /// Packets a second that arrived.
    pub seen_pps: f64,
    /// Packets a second with each at its time.
    pub paced_pps: f64,
}

/// One scenario at one size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What carried the packets.
    pub scenario: String,
    /// Bytes of the guest's frame, or "imix".
    pub size: String,
    /// The highest rate without loss, packets a second.
    pub throughput_pps: f64,
    /// The same in bits of guests' frames a second.
    pub throughput_bps: f64,
    /// Packets a second that arrived while as many were sent as it goes.
    pub overload_pps: f64,
    /// CPU time for a packet at the highest rate, ns: of the processes that carry it, or what the generator's CPU took longer
    /// than by itself where the kernel carries it.
    pub cpu_ns_per_packet: f64,
    /// Ages at half the highest rate, if they can be read.
    pub latency: Option<Latency>,
}

/// How old packets were when they arrived, from when they were due.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// Packets a second.
    pub rate_pps: f64,
    /// Packets that arrived.
    pub packets: u64,
    /// Half were not older, us.
    pub p50_us: f64,
    /// 9 of 10.
    pub p90_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// 999 of 1,000.
    pub p999_us: f64,
    /// The oldest.
    pub max_us: f64,
    /// Nanoseconds, and how many were about as old as that.
    pub ages: Ages,
}

impl Latency {
    fn new(rate_pps: f64, ages: Ages) -> Self {
        let at = |part| percentile(&ages, part) as f64 / 1000.0;
        Self {
            rate_pps,
            packets: ages.iter().map(|(_, count)| count).sum(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: at(1.0),
            ages,
        }
    }
}

/// Measures, prints, and writes what was asked for.
///
/// # Errors
/// If the machine cannot do it, or a part fails.
pub fn run(options: &Options) -> Result<(), PerfError> {
    if let Some(reason) = cannot() {
        return Err(PerfError::Wrong(reason));
    }
    remove_leftovers()?;
    let bench = Bench::new(options)?;
    let mut report = Report {
        machine: machine(),
        cpus: bench.cpus.len(),
        trial_seconds: bench.seconds,
        generator: Vec::new(),
        rows: Vec::new(),
        tcp: Vec::new(),
        answers: Vec::new(),
        pipeline: Vec::new(),
    };
    let sizes = match (&*options.size, options.short) {
        ([], true) => vec![Size::Bytes(64), Size::Bytes(1414)],
        ([], false) => vec![
            Size::Bytes(64),
            Size::Bytes(256),
            Size::Bytes(512),
            Size::Bytes(1420),
            Size::Imix,
        ],
        (sizes, _) => sizes.to_vec(),
    };
    let scenarios = match &*options.scenario {
        [] => Scenario::ALL.to_vec(),
        some => some.to_vec(),
    };
    println!(
        "{}, {} CPUs, trials of {} s",
        report.machine, report.cpus, bench.seconds
    );
    println!("generator and sink alone: sent / seen / paced, packets a second");
    for &size in &sizes {
        let row = bench.alone(size)?;
        println!(
            "  {size:>5} {:>10.0} {:>10.0} {:>10.0}",
            row.sent_pps, row.seen_pps, row.paced_pps
        );
        report.generator.push(row);
    }
    println!(
        "{:<14} {:>5} {:>12} {:>8} {:>12} {:>8} {:>9} {:>9} {:>9}",
        "scenario", "size", "no loss pps", "Gbit/s", "overload pps", "CPU ns", "p50 us", "p99 us", "p99.9 us"
    );
    for scenario in scenarios {
        for row in bench.measure(scenario, &sizes, &report.generator)? {
            println!("{row}");
            report.rows.push(row);
        }
    }
    if options.scenario.is_empty() {
        let (tcp, answers) = tcp::measure(&bench.cpus, options.short)?;
        for row in &tcp {
            println!(
                "TCP, one flow, {:<14} {:>8.2} Gbit/s",
                row.scenario,
                row.bits_per_second / 1e9
            );
        }
        for row in &answers {
            println!("request and answer, {row}");
        }
        (report.tcp, report.answers) = (tcp, answers);
        report.pipeline = pipeline::rows_for_report()?;
    }
    if let Some(path) = &options.json {
        let text = json_text("report", &report)?;
        std::fs::write(path, text).map_err(PerfError::io(path.display().to_string()))?;
    }
    if let Some(path) = &options.html {
        let page = report::page(&report)?;
        std::fs::write(path, page).map_err(PerfError::io(path.display().to_string()))?;
    }
    Ok(())
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:<14} {:>5} {:>12.0} {:>8.2} {:>12.0} {:>8.0}",
            self.scenario,
            self.size,
            self.throughput_pps,
            self.throughput_bps / 1e9,
            self.overload_pps,
            self.cpu_ns_per_packet
        )?;
        match &self.latency {
            Some(one) => write!(f, " {:>9.1} {:>9.1} {:>9.1}", one.p50_us, one.p99_us, one.p999_us),
            None => Ok(()),
        }
    }
}

/// The CPU's name and the kernel's.
fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split(": ").nth(1))
            .unwrap_or("?")
            .to_owned()
    };
    let kernel = run_line("uname -r").unwrap_or_default();
    format!(
        "{} (family {}, model {}), Linux {kernel}",
        value("model name"),
        value("cpu family"),
        value("model\t")
    )
}

struct Bench {
    cpus: Vec<usize>,
    seconds: f64,
}

/// What one trial came to.
struct Trial {
    sent: u64,
    seen: u64,
    seconds: f64,
    ages: Ages,
    /// CPU time of the processes, ns.
    cpu: Option<u64>,
}

/// Seconds that the generator may end late, as something else had its CPU for a moment. Who could not keep the rate is later.
const LATE: f64 = 0.02;

impl Trial {
    fn rate(&self, packets: u64) -> f64 {
        packets as f64 / self.seconds.max(1e-9)
    }

    /// Whether that rate was offered, and nothing of it lost.
    fn passed(&self, rate: f64) -> bool {
        self.seen >= self.sent && self.seconds <= self.sent as f64 / rate + LATE
    }
}

impl Bench {
    fn new(options: &Options) -> Result<Self, PerfError> {
        let seconds = options.seconds.unwrap_or(if options.short { 0.3 } else { 1.0 });
        Ok(Self {
            cpus: cpus()?,
            seconds,
        })
    }

    /// Where packets are made.
    fn first_cpu(&self) -> usize {
        self.cpus.first().copied().unwrap_or(0)
    }

    /// Where they are carried.
    fn last_cpu(&self) -> usize {
        self.cpus.last().copied().unwrap_or(0)
    }

    /// Runs a generator on its CPU in the calling thread, which is in the generator's namespace.
    fn send(
        &self,
        interface: &str,
        list: &[Vec<u8>],
        count: u32,
        pace: Pace,
    ) -> Result<(u64, f64), PerfError> {
        let mut set = CpuSet::new();
        set.set(self.first_cpu());
        sched_setaffinity(None, &set)
            .map_err(|error| PerfError::io("pinning the generator")(error.into()))?;
        Generator::load(ifindex(interface)?, list)
            .and_then(|generator| generator.send(count, pace))
            .map_err(said)
    }

    fn alone(&self, size: Size) -> Result<GeneratorRow, PerfError> {
        let namespace = Namespace::new("alone")?;
        namespace.ip("link add near type veth peer name far")?;
        namespace.ip("link set near up")?;
        namespace.ip("link set far up")?;
        let sink = attach_sink(&namespace, "far")?;
        let list = marked(size);
        let once = |pace, count| -> Result<(f64, f64), PerfError> {
            let before = sink.seen().map_err(said)?.packets;
            let (sent, seconds) = namespace.inside(|| self.send("near", &list, count, pace))??;
            let seen = settled(&sink, before, sent)? - before;
            Ok((sent as f64 / seconds, seen as f64 / seconds))
        };
        let (sent_pps, seen_pps) = once(Pace::Full, (self.seconds * 2e6) as u32)?;
        // At times that lie closer than it can.
        let (paced_pps, _) = once(Pace::PerSecond(1e8), (self.seconds * 1e6) as u32)?;
        Ok(GeneratorRow {
            size: size.to_string(),
            sent_pps,
            seen_pps,
            paced_pps,
        })
    }

    fn measure(
        &self,
        scenario: Scenario,
        sizes: &[Size],
        alone: &[GeneratorRow],
    ) -> Result<Vec<Row>, PerfError> {
        let setup = Setup::new(scenario, &[self.last_cpu()], false)?;
        let sink = setup.sink()?;
        let mut sealer = match scenario {
            Scenario::Opening => Some(Sealer::new()?),
            _ => None,
        };
        let mut rows = Vec::new();
        for (size, alone) in sizes.iter().zip(alone) {
            check_interrupted()?;
            let marked = marked(*size);
            let mut trial = |count: f64, pace| -> Result<Trial, PerfError> {
                check_interrupted()?;
                let sealed;
                let (list, count): (&[Vec<u8>], u32) = match &mut sealer {
                    Some(sealer) => {
                        sealed = sealer.seal(*size, FLOWS, (count as usize).clamp(64, SEALED));
                        (&sealed, sealed.len() as u32)
                    }
                    None => (&marked, count as u32),
                };
                self.trial(&setup, &sink, list, count, pace)
            };
            // As much as goes, after a first try that warms up.
            trial(20_000.0, Pace::Full)?;
            let full = trial(self.seconds * 1e6, Pace::Full)?;
            let overload_pps = full.rate(full.seen);
            let mut at_best = None;
            let throughput_pps = search((overload_pps * 1.3).min(alone.paced_pps), 0.02, |rate| {
                let one = trial(rate * self.seconds, Pace::PerSecond(rate))?;
                let passed = one.passed(rate);
                if passed {
                    at_best = Some(one);
                }
                Ok(passed)
            })?;
            let by_generator = 1e9 / full.rate(full.sent) - 1e9 / alone.sent_pps;
            let by_processes = at_best.and_then(|one| Some(one.cpu? as f64 / one.seen.max(1) as f64));
            let latency = if scenario.is_readable() && throughput_pps > 0.0 {
                let rate = throughput_pps / 2.0;
                let one = trial(rate * self.seconds * 2.0, Pace::PerSecond(rate))?;
                Some(Latency::new(rate, one.ages))
            } else {
                None
            };
            let bits = 8.0 * marked.iter().map(Vec::len).sum::<usize>() as f64 / marked.len() as f64;
            rows.push(Row {
                scenario: scenario.name().into(),
                size: size.to_string(),
                throughput_pps,
                throughput_bps: throughput_pps * bits,
                overload_pps,
                cpu_ns_per_packet: by_processes.unwrap_or(by_generator.max(0.0)),
                latency,
            });
        }
        Ok(rows)
    }

    fn trial(
        &self,
        setup: &Setup,
        sink: &Attached<Sink>,
        list: &[Vec<u8>],
        count: u32,
        pace: Pace,
    ) -> Result<Trial, PerfError> {
        let (namespace, interface) = setup.entrance();
        let before = sink.seen().map_err(said)?.packets;
        let (ages, cpu) = (sink.ages().map_err(said)?, setup.cpu_time()?);
        let (sent, seconds) = namespace.inside(|| self.send(interface, list, count, pace))??;
        let seen = settled(sink, before, sent)? - before;
        let after = setup.cpu_time()?;
        Ok(Trial {
            sent,
            seen,
            seconds,
            ages: difference(&ages, &sink.ages().map_err(said)?),
            cpu: after.zip(cpu).map(|(after, before)| after.saturating_sub(before)),
        })
    }
}

/// What is sent in turns, with the mark that asks for a stamp.
fn marked(size: Size) -> Vec<Vec<u8>> {
    let mut list = plain(size, FLOWS, LIST);
    for packet in &mut list {
        if let Some(place) = packet.get_mut(42..46) {
            place.copy_from_slice(&MAGIC);
        }
    }
    list
}

/// What the sink has seen once everything has arrived, or nothing more comes.
fn settled(sink: &Sink, before: u64, sent: u64) -> Result<u64, PerfError> {
    const QUIET: Duration = Duration::from_millis(60);
    let mut last = (sink.seen().map_err(said)?.packets, Instant::now());
    while last.0 < before + sent && last.1.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(2));
        let now = sink.seen().map_err(said)?.packets;
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    Ok(last.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_or_not_offered_has_not_passed() {
        let trial = |sent, seen, seconds| Trial {
            sent,
            seen,
            seconds,
            ages: Ages::new(),
            cpu: None,
        };
        assert!(trial(1000, 1000, 1.0).passed(1000.0));
        assert!(trial(1000, 1000, 1.01).passed(1000.0));
        // Made slower than it was to be made: nothing is known of that rate.
        assert!(!trial(1000, 1000, 1.3).passed(1000.0));
        assert!(!trial(1000, 999, 1.0).passed(1000.0));
    }
}
