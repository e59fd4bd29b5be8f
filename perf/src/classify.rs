//! The classifier alone, in TSC cycles a packet: out of the flow cache, by the look-up, and by reading the rules one by one.
//!
//! Bursts of 64 packets are timed, whose facts a worker has just made; a figure is the median over bursts. `hit_cycles` is over 1,000 flows in a trace with
//! Pareto locality; 1 flow and 50,000 flows (of 65,536 slots) stand beside it. `miss_cycles` goes round the cache, over a
//! trace of 200,000 flows in which no two packets are alike.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::Instant;

use clap::Args;
use guestseal_rules::classify::Decision;
use guestseal_rules::compile::Ruleset;
use guestseal_rules::facts::Facts;
use guestseal_rules::flow_cache::FlowCache;
use guestseal_rules::flows::Flows;
use guestseal_rules::load::{Source, load_policy};
use guestseal_rules::meaning::World;
use guestseal_rules::membership::Membership;
use guestseal_rules::model::{ContainerIndex, GuestIndex, Policy};
use serde::Serialize;

use crate::classbench::{Dice, Filters, SEEDS, Seed};
use crate::process::{PerfError, json_text};

const BURST: usize = 64;
const SLOTS: usize = 1 << 16;

/// `guestseal-perf classify`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// One JSON array instead of a table
    #[arg(long)]
    json: bool,
    /// Rules in the policy
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1000, 10_000], value_name = "N", value_parser = clap::value_parser!(u32).range(2..=100_000))]
    rules: Vec<u32>,
    /// Guests in the policy
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(10..=80_000))]
    guests: u32,
    /// Where chance begins
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

/// One rule set.
#[derive(Clone, Debug, Serialize)]
struct Row {
    ruleset: &'static str,
    rules: u32,
    /// Over 1,000 flows.
    hit_cycles: f64,
    miss_cycles: f64,
    linear_cycles: f64,
    compile_ms: f64,
    update_ms: f64,
    bytes: usize,
    hit_cycles_1_flow: f64,
    hit_cycles_50000_flows: f64,
    guests: u32,
}

/// Measures every rule set and prints it.
///
/// # Errors
/// If a policy cannot be made, or the look-up and the plain list differ.
pub fn run(options: &Options) -> Result<(), PerfError> {
    let mut rows = Vec::new();
    if !options.json {
        println!(
            "{:<7} {:>6} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10} {:>9} {:>11}",
            "ruleset", "rules", "1 flow", "hit", "50k", "miss", "linear", "compile ms", "update ms", "bytes"
        );
    }
    for seed in &SEEDS {
        for &rules in &options.rules {
            let row = measure(seed, rules, options)?;
            if !options.json {
                println!(
                    "{:<7} {:>6} {:>8.1} {:>8.1} {:>8.1} {:>8.0} {:>10.0} {:>10.1} {:>9.3} {:>11}",
                    row.ruleset,
                    row.rules,
                    row.hit_cycles_1_flow,
                    row.hit_cycles,
                    row.hit_cycles_50000_flows,
                    row.miss_cycles,
                    row.linear_cycles,
                    row.compile_ms,
                    row.update_ms,
                    row.bytes
                );
            }
            rows.push(row);
        }
    }
    if options.json {
        println!("{}", json_text("rows", &rows)?);
    }
    Ok(())
}

fn measure(seed: &Seed, rules: u32, options: &Options) -> Result<Row, PerfError> {
    let filters = seed.filters(rules, options.guests, options.seed);
    let source = Source {
        name: format!("{}-{rules}.yaml", seed.name),
        text: filters.yaml.clone(),
    };
    let malformed = |what: &str, why: String| PerfError::Malformed {
        what: what.to_owned(),
        why,
    };
    let policy = load_policy(&[source]).map_err(|errors| malformed("policy", errors.to_string()))?;
    let guests: Vec<Membership> = (0..policy.guests.len() as u32)
        .map(|guest| Membership::at_start(&policy, GuestIndex(guest)))
        .collect();
    let flows = Flows::default();
    let compile = || Ruleset::compile(&policy, &guests, &flows, NonZeroU32::MIN);
    let mut compile_ms = Vec::new();
    let mut ruleset = None;
    for _ in 0..3 {
        let begin = Instant::now();
        let compiled = compile().map_err(|error| malformed("ruleset", error.to_string()))?;
        compile_ms.push(begin.elapsed().as_secs_f64() * 1000.0);
        ruleset = Some(compiled);
    }
    let Some(ruleset) = ruleset else {
        unreachable!("compiled three times")
    };
    let update_ms = updates(&policy, &ruleset, &guests);

    let clock = quanta::Clock::new();
    let hit = |flows: usize, count: usize| {
        let flows = filters.flows(flows, options.seed + 1);
        let trace = Filters::trace(&flows, count, options.seed + 2);
        let mut cache = FlowCache::new(SLOTS, [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344]);
        let mut all = Vec::new();
        for round in 0..3 {
            let cycles = bursts(&clock, &trace, |facts, decisions| {
                let _ = cache.classify_all(&ruleset, facts, decisions);
            });
            // The first round fills it.
            if round > 0 {
                all.extend(cycles);
            }
        }
        median(all) / BURST as f64
    };
    let hits = [hit(1, 1 << 14), hit(1000, 1 << 17), hit(50_000, 1 << 18)];
    let packets = filters.flows(200_000, options.seed + 3);
    let miss = bursts(&clock, &packets, |facts, decisions| {
        ruleset.classify_all(facts, decisions)
    });
    let world = World {
        policy: &policy,
        guests: &guests,
        flows: &flows,
    };
    let some = &packets[..256.min(packets.len())];
    for facts in some {
        let (fast, plain) = (ruleset.classify(facts).verdict, world.first_match(facts, false));
        if fast != plain {
            return Err(malformed(
                "look-up",
                format!("{fast:?} instead of {plain:?} for {facts:?}"),
            ));
        }
    }
    let linear = bursts(&clock, some, |facts, decisions| {
        for (facts, decision) in facts.iter().zip(decisions) {
            decision.verdict = world.first_match(facts, false);
        }
    });
    Ok(Row {
        ruleset: seed.name,
        rules,
        hit_cycles: hits[1],
        miss_cycles: median(miss) / BURST as f64,
        linear_cycles: median(linear) / BURST as f64,
        compile_ms: middle(compile_ms),
        update_ms,
        bytes: ruleset.bytes(),
        hit_cycles_1_flow: hits[0],
        hit_cycles_50000_flows: hits[2],
        guests: options.guests,
    })
}

/// One guest after the other is moved to quarantine, each from the ruleset before.
fn updates(policy: &Policy, ruleset: &Ruleset, guests: &[Membership]) -> f64 {
    let mut dice = Dice::new(7);
    let mut now = ruleset.clone();
    let mut times = Vec::new();
    for generation in 2..66 {
        let guest = dice.below(guests.len() as u32);
        let mut moved = guests[guest as usize].clone();
        moved.containers = policy.chain(ContainerIndex(1)).collect();
        moved.labels.insert("role".into(), format!("r{}", dice.below(40)));
        let generation = NonZeroU32::MIN.saturating_add(generation);
        let begin = Instant::now();
        now = now.update([(GuestIndex(guest), &moved)], generation);
        times.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    middle(times)
}

/// Cycles of each burst.
fn bursts(
    clock: &quanta::Clock,
    packets: &[Facts],
    mut classify: impl FnMut(&[Facts], &mut [Decision]),
) -> Vec<u64> {
    packets
        .chunks_exact(BURST)
        .map(|burst| {
            // A worker has just made them when it looks them up.
            let burst = black_box(burst.to_vec());
            let mut decisions = [Decision::UNMATCHED; BURST];
            let begin = clock.raw();
            classify(&burst, &mut decisions);
            let cycles = clock.raw() - begin;
            black_box(decisions);
            cycles
        })
        .collect()
}

fn median(mut values: Vec<u64>) -> f64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default() as f64
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
