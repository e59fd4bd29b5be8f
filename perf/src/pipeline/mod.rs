//! The data path without a kernel: a worker between memory ports, in TSC cycles a packet, beside the bare cipher.
//!
//! Bursts of 64 arrive, one turn of the worker's loop is timed (receive, parse, guard, classify, seal or open, transmit,
//! reclaim), and the device takes what leaves, outside the clock. Blocks of such bursts take turns with blocks of the
//! bare cipher (the call of the same engine, without the making of its jobs) over as many bytes at the same places of as
//! many frames, so that both see the same machine. Further blocks read the clock after each stage. A figure is the median
//! over bursts, the first tenth of which is not counted.

mod cipher;
mod host;
mod packets;
pub(crate) mod seal;
mod stages;

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Args;
use guestseal::aead::choice::{Choice, ENGINES, choose};
use guestseal::aead::engine::Engine;
use guestseal::control::supervise::chain;
use guestseal::path::outcome::{Outcome, SentAs};
use guestseal::path::seal::in_front;
use guestseal::port::BATCH;
use serde::Serialize;

use self::cipher::Cipher;
use self::host::{Host, Rotation, Rules};
use self::packets::{Action, Network, Packets, Size};
use self::stages::{Stages, TimedEngine};
use crate::goals;
use crate::process::{PerfError, check_interrupted, json_text};

/// Bursts of a block at least.
const BLOCK: usize = 32;

/// `guestseal-perf pipeline`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// One JSON array instead of a table
    #[arg(long)]
    json: bool,
    /// Bytes of the guest's frame with its Ethernet header, or imix (7 of 64, 4 of 590, 1 of 1414 bytes)
    #[arg(long, value_delimiter = ',', default_values_t = [Size::Bytes(64), Size::Bytes(256), Size::Imix, Size::Bytes(1414), Size::Bytes(1420)], value_name = "BYTES")]
    size: Vec<Size>,
    /// Rules in the policy; the last ones match
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1000, 10_000], value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rules: Vec<u32>,
    /// UDP flows that take turns, packet by packet
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1000, 100_000], value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    flows: Vec<u32>,
    /// Security associations, each with a key and a rule of its own. What follows the first is measured only with the most rules, and
    /// with the fewest flows that use every SA
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1000], value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    sas: Vec<u32>,
    /// Frames of the UMEM: up to 1024, the few in hand are hot; of more, every frame takes its turn. What follows the first is measured
    /// only with the most rules, and 1,000 flows or what comes next to it
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 16_384], value_name = "N", value_parser = clap::value_parser!(u32).range(1024..=262_144))]
    frames: Vec<u32>,
    /// What carries the logical network. What follows the first is measured only with the fewest rules and flows
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Network::Flat, Network::Vxlan, Network::Geneve], value_name = "TYPE")]
    network: Vec<Network>,
    /// What the rules do with packets; every case is measured with each
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Action::Encrypt], value_name = "ACTION")]
    action: Vec<Action>,
    /// AEAD engines, each in turn; all that can run here if none is named
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME")]
    engine: Vec<Choice>,
    /// Whether packets arrive with a head, so that they are sealed in the frame that they came in; both ways are measured one after
    /// the other if both are named
    #[arg(long, value_delimiter = ',', default_values_t = [false], value_name = "BOOL", action = clap::ArgAction::Set)]
    in_place: Vec<bool>,
    /// Bursts of 64 packets timed for each case
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    bursts: u32,
    /// Lets the path idle so many per cent of its time: shows that `compare` finds a slow-down
    #[arg(long, default_value_t = 0.0, value_name = "PERCENT", hide = true)]
    slow_down: f64,
}

/// What is measured.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Case {
    network: Network,
    action: Action,
    size: Size,
    rules: u32,
    flows: u32,
    sas: u32,
    frames: u32,
    in_place: bool,
}

/// One direction of one case.
#[derive(Clone, Debug, Serialize)]
struct Row {
    direction: &'static str,
    network: &'static str,
    action: &'static str,
    /// Bytes of the guest's frame, or "imix".
    size: Size,
    rules: u32,
    flows: u32,
    sas: u32,
    /// Frames of the UMEM.
    frames: u32,
    huge_pages: bool,
    /// Whether it was sealed in the frame that it came in.
    in_place: bool,
    engine: &'static str,
    cycles_per_packet: f64,
    /// A quarter of the bursts took less than the first, a quarter more than the second.
    quartiles: [f64; 2],
    cipher_cycles_per_packet: f64,
    /// Bare ipsec-mb's in turns with this row's, if it can run here: what goals are held against.
    ipsec_mb_cycles_per_packet: Option<f64>,
    /// Cycles a packet of each stage, the engine's own apart as "cipher".
    stages: BTreeMap<&'static str, f64>,
}

/// Measures every case and prints it.
///
/// # Errors
/// If memory or the policy cannot be had, or a packet does not go the way that is measured.
pub fn run(options: &Options) -> Result<(), PerfError> {
    let engines = engines(&options.engine)?;
    let yardstick = yardstick();
    let plan = plan(options);
    if !options.json {
        println!(
            "{:<9} {:<7} {:<12} {:>6} {:>6} {:>7} {:>5} {:>6} {:>8} {:>9} {:>14} {:>14}  by stage",
            "direction",
            "network",
            "action",
            "size",
            "rules",
            "flows",
            "sas",
            "frames",
            "in place",
            "engine",
            "cycles/packet",
            "cipher alone"
        );
    }
    let mut rows = Vec::new();
    let mut compiled: Option<(Case, Rules)> = None;
    for (number, case) in plan.iter().enumerate() {
        check_interrupted()?;
        let policy_of = |case: &Case| (case.network, case.action, case.rules, case.sas);
        let rules = match compiled.take() {
            Some((before, rules)) if policy_of(&before) == policy_of(case) => rules,
            _ => Rules::new(case.network, case.action, case.rules, case.sas)?,
        };
        if options.json {
            eprintln!("pipeline: case {} of {}", number + 1, plan.len());
        }
        for engine in &engines {
            for &in_place in &options.in_place {
                let case = Case { in_place, ..*case };
                for row in measure(
                    engine,
                    yardstick.as_ref(),
                    &case,
                    &rules,
                    options.bursts,
                    options.slow_down,
                )? {
                    if !options.json {
                        println!("{row}");
                    }
                    rows.push(row);
                }
            }
        }
        compiled = Some((*case, rules));
    }
    if options.json {
        println!("{}", json_text("rows", &rows)?);
        return Ok(());
    }
    let goals = goals::of_path(&values(&rows)?);
    if !goals.is_empty() {
        println!("\nGoals of the path: flat network, 10,000 rules, hot frames, the fastest engine");
        goals.iter().for_each(|goal| println!("{goal}"));
    }
    Ok(())
}

fn values(rows: &[Row]) -> Result<Vec<serde_json::Value>, PerfError> {
    let malformed = |error: serde_json::Error| PerfError::Malformed {
        what: "row".into(),
        why: error.to_string(),
    };
    let values = rows.iter().map(serde_json::to_value);
    values.map(|value| value.map_err(malformed)).collect()
}

/// The rows that goals are about, for a report beside other figures.
pub(crate) fn rows_for_report() -> Result<Vec<serde_json::Value>, PerfError> {
    let (network, action, rules) = (Network::Flat, Action::Encrypt, 10_000);
    let yardstick = yardstick();
    let mut rows = Vec::new();
    for (sas, cases) in [
        (
            1,
            &[
                (1000, 64),
                (1000, 256),
                (1000, 1414),
                (1, 64),
                (1, 256),
                (1, 1414),
            ][..],
        ),
        (1000, &[(1000, 64)]),
    ] {
        let compiled = Rules::new(network, action, rules, sas)?;
        for engine in engines(&[])? {
            for &(flows, bytes) in cases {
                let case = Case {
                    network,
                    action,
                    size: Size::Bytes(bytes),
                    rules,
                    flows,
                    sas,
                    frames: 1024,
                    in_place: false,
                };
                rows.extend(measure(&engine, yardstick.as_ref(), &case, &compiled, 500, 0.0)?);
            }
        }
    }
    values(&rows)
}

/// Every size with every number of rules and flows; the further networks and numbers of SAs and frames one at a time. All of it with
/// each action.
fn plan(options: &Options) -> Vec<Case> {
    let first = |list: &[u32]| list.first().copied().unwrap_or(1);
    let (sas, frames) = (first(&options.sas), first(&options.frames));
    let network = options.network.first().copied().unwrap_or(Network::Flat);
    let case_in = |network, rules, flows, sas, frames| {
        let case = move |&size: &Size| Case {
            network,
            action: Action::Encrypt,
            size,
            rules: u32::max(rules, sas),
            flows: u32::max(flows, sas),
            sas,
            frames,
            in_place: false,
        };
        options.size.iter().map(case)
    };
    let case = |rules, flows, sas, frames| case_in(network, rules, flows, sas, frames);
    let mut cases = Vec::new();
    for &rules in &options.rules {
        for &flows in &options.flows {
            cases.extend(case(rules, flows, sas, frames));
        }
    }
    let fewest = |list: &[u32]| list.iter().copied().min().unwrap_or(1);
    for &other in options.network.iter().skip(1) {
        cases.extend(case_in(
            other,
            fewest(&options.rules),
            fewest(&options.flows),
            sas,
            frames,
        ));
    }
    let most = options.rules.iter().copied().max().unwrap_or(1);
    let flows_for = |least: u32| {
        let enough = options.flows.iter().copied().filter(|flows| *flows >= least);
        enough.min().unwrap_or(least)
    };
    for &more in options.frames.iter().skip(1) {
        let flows = options
            .flows
            .iter()
            .copied()
            .min_by_key(|flows| flows.abs_diff(1000));
        cases.extend(case(most, flows.unwrap_or(1), sas, more));
    }
    for &more in options.sas.iter().skip(1) {
        cases.extend(case(most, flows_for(more), more, frames));
    }
    let with = |&action: &Action| cases.iter().map(move |case| Case { action, ..*case });
    options.action.iter().flat_map(with).collect()
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:<9} {:<7} {:<12} {:>6} {:>6} {:>7} {:>5} {:>6} {:>8} {:>9} {:>14.0} {:>14.0} ",
            self.direction,
            self.network,
            self.action,
            self.size,
            self.rules,
            self.flows,
            self.sas,
            self.frames,
            self.in_place,
            self.engine,
            self.cycles_per_packet,
            self.cipher_cycles_per_packet
        )?;
        for (stage, cycles) in &self.stages {
            write!(f, " {stage} {cycles:.0}")?;
        }
        Ok(())
    }
}

/// The engines asked for, or all that can run here.
fn engines(wanted: &[Choice]) -> Result<Vec<Arc<dyn Engine>>, PerfError> {
    if wanted.is_empty() {
        let all = ENGINES.into_iter().filter_map(|one| choose(one).ok());
        return Ok(all.map(|chosen| chosen.engine).collect());
    }
    let one = |choice: &Choice| match choose(*choice) {
        Ok(chosen) => Ok(chosen.engine),
        Err(error) => Err(PerfError::Malformed {
            what: "--engine".into(),
            why: chain(&error),
        }),
    };
    wanted.iter().map(one).collect()
}

/// What goals of the path are held against.
fn yardstick() -> Option<Arc<dyn Engine>> {
    choose(Choice::IpsecMb).ok().map(|chosen| chosen.engine)
}

/// Measures both directions of a case, in turns with the bare cipher and the bare yardstick.
fn measure(
    engine: &Arc<dyn Engine>,
    yardstick: Option<&Arc<dyn Engine>>,
    case: &Case,
    rules: &Rules,
    bursts: u32,
    slow_down: f64,
) -> Result<[Row; 2], PerfError> {
    let rotation = Rotation::new(case.frames);
    let clock = quanta::Clock::new();
    let (mut one, mut two) = (
        Host::new(rules, 0, rotation, engine)?,
        Host::new(rules, 1, rotation, engine)?,
    );
    if case.in_place {
        one.guest.set_head(in_front(rules.mode(0)) as u8);
    }
    let mut cipher = Cipher::new(engine, case, rotation, clock.clone())?;
    let yardstick = yardstick.filter(|other| other.name() != engine.name());
    let mut bare = yardstick
        .map(|other| Cipher::new(other, case, rotation, clock.clone()))
        .transpose()?;
    let timed_engine = Arc::new(TimedEngine::new(engine, clock.clone()));
    let mut packets = Packets::new(case.size, case.flows, case.sas);

    // Bursts that go round at once, and how often they do before another block has its turn.
    let at_once = rotation.depth / BATCH;
    let rounds = BLOCK.div_ceil(at_once);
    let blocks = (bursts as usize).div_ceil(at_once * rounds);
    let warm = blocks.div_ceil(10);
    let mut cycles: [Vec<u64>; 6] = Default::default();
    let mut stages = [Stages::default(), Stages::default()];
    let mut wire = Vec::with_capacity(rotation.depth);
    let mut carried = [0; 2];
    for block in 0..blocks + warm {
        if block == warm {
            cycles.iter_mut().for_each(Vec::clear);
            stages.iter_mut().for_each(Stages::clear);
        }
        let [outbound, seal, bare_seal, inbound, open, bare_open] = &mut cycles;
        for _ in 0..rounds {
            one.guest_sends(&mut packets);
            for _ in 0..at_once {
                outbound.push(slowed(&clock, slow_down, || one.worker.turn()));
                one.clear();
            }
        }
        seal.extend((0..rounds * at_once).map(|_| cipher.seal()));
        if let Some(bare) = &mut bare {
            bare_seal.extend((0..rounds * at_once).map(|_| bare.seal()));
        }
        for round in 0..2 * rounds {
            // The second half of them is told apart by stages, on both hosts.
            let by_stage = round >= rounds;
            one.guest_sends(&mut packets);
            for _ in 0..at_once {
                if by_stage {
                    stages[0].carry(&mut one, &timed_engine);
                } else {
                    one.worker.turn();
                }
                one.on_wire(&mut wire);
            }
            two.wire_brings(&wire);
            wire.clear();
            for _ in 0..at_once {
                if by_stage {
                    stages[1].carry(&mut two, &timed_engine);
                } else {
                    inbound.push(slowed(&clock, slow_down, || two.worker.turn()));
                }
                two.clear();
            }
        }
        open.extend((0..rounds * at_once).map(|_| cipher.open()));
        if let Some(bare) = &mut bare {
            bare_open.extend((0..rounds * at_once).map(|_| bare.open()));
        }
        carried[0] += (3 * rounds * rotation.depth) as u64;
        carried[1] += (2 * rounds * rotation.depth) as u64;
    }
    let sent = Outcome::Sent(SentAs::under(case.action.protection()));
    let went = [
        one.counters.outcome(sent).get(),
        two.counters.outcome(Outcome::Delivered).get(),
    ];
    if went != carried {
        return Err(PerfError::Malformed {
            what: "pipeline".into(),
            why: format!("of {carried:?} packets {went:?} were sealed and delivered"),
        });
    }
    let [outbound, seal, bare_seal, inbound, open, bare_open] = cycles;
    let [out_stages, in_stages] = stages;
    let row = |direction, packet: Vec<u64>, [cipher, bare_cipher]: [Vec<u64>; 2], stages: Stages| Row {
        direction,
        network: case.network.name(),
        action: case.action.name(),
        size: case.size,
        rules: case.rules,
        flows: case.flows,
        sas: case.sas,
        frames: case.frames,
        huge_pages: one.huge_pages(),
        in_place: case.in_place && direction == "outbound",
        engine: engine.name(),
        quartiles: [1, 3].map(|quarter| per_packet(quantile(packet.clone(), quarter))),
        cycles_per_packet: per_packet(median(packet)),
        ipsec_mb_cycles_per_packet: match engine.name() {
            "ipsec-mb" => Some(per_packet(median(cipher.clone()))),
            _ => bare.is_some().then(|| per_packet(median(bare_cipher))),
        },
        cipher_cycles_per_packet: per_packet(median(cipher)),
        stages: stages
            .medians()
            .into_iter()
            .map(|(stage, cycles)| (stage, per_packet(cycles)))
            .collect(),
    };
    Ok([
        row("outbound", outbound, [seal, bare_seal], out_stages),
        row("inbound", inbound, [open, bare_open], in_stages),
    ])
}

/// Of a burst's, to tenths.
fn per_packet(burst: f64) -> f64 {
    (burst / BATCH as f64 * 10.0).round() / 10.0
}

/// Cycles that something takes.
fn timed<T>(clock: &quanta::Clock, work: impl FnOnce() -> T) -> u64 {
    let begin = clock.raw();
    std::hint::black_box(work());
    clock.raw() - begin
}

/// Cycles that something takes, and so many per cent more, which it really waits.
fn slowed<T>(clock: &quanta::Clock, percent: f64, work: impl FnOnce() -> T) -> u64 {
    let begin = clock.raw();
    std::hint::black_box(work());
    let taken = clock.raw() - begin;
    if percent == 0.0 {
        return taken;
    }
    let wanted = (taken as f64 * (1.0 + percent / 100.0)) as u64;
    while clock.raw() - begin < wanted {
        std::hint::spin_loop();
    }
    clock.raw() - begin
}

fn median(values: Vec<u64>) -> f64 {
    quantile(values, 2)
}

/// The value below which so many quarters of the others are.
fn quantile(mut values: Vec<u64>, quarters: usize) -> f64 {
    values.sort_unstable();
    let position = values.len() * quarters / 4;
    values.get(position).copied().unwrap_or_default() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way through the harness, with the portable engine: the packets come out as they went in, or `measure` fails.
    #[test]
    fn every_kind_of_case_is_carried() {
        let engine = choose(Choice::AesGcm).unwrap().engine;
        for (network, action, rules, sas, flows, frames, in_place) in [
            (Network::Flat, Action::Encrypt, 10, 1, 1000, 1024, false),
            (Network::Flat, Action::Encrypt, 2, 1, 1, 1024, true),
            (Network::Flat, Action::Authenticate, 2, 1, 1, 1024, false),
            (Network::Vxlan, Action::Encrypt, 40, 20, 100, 1024, true),
            (Network::Geneve, Action::Encrypt, 2, 1, 1, 2048, false),
            (Network::Geneve, Action::Authenticate, 2, 1, 10, 1024, false),
        ] {
            let case = Case {
                network,
                action,
                size: Size::Imix,
                rules,
                flows,
                sas,
                frames,
                in_place,
            };
            let rows = measure(
                &engine,
                yardstick().as_ref(),
                &case,
                &Rules::new(network, action, rules, sas).unwrap(),
                20,
                0.0,
            )
            .unwrap();
            for row in &rows {
                assert!(row.cipher_cycles_per_packet > 0.0, "{row}");
                assert_eq!(row.ipsec_mb_cycles_per_packet.is_some(), yardstick().is_some());
                assert!(
                    row.cycles_per_packet > row.cipher_cycles_per_packet / 2.0,
                    "{row}"
                );
                // Every flow is known by then.
                for stage in ["receive", "express", "cipher", "deliver"] {
                    assert!(row.stages.contains_key(stage), "{stage}: {row}");
                }
            }
        }
    }
}
