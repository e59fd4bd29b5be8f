//! Totals of all workers: what is printed at the end and written for machines.

use std::collections::BTreeMap;
use std::fmt;

use guestseal_rules::model::{Policy, RuleIndex};
use serde::Serialize;

use crate::path::outcome::{DropReason, Outcome};

use super::counters::Counters;
use super::latency::Latencies;

/// Where the frames of the UMEM are.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Frames {
    /// All.
    pub total: usize,
    /// In pools.
    pub free: usize,
    /// In fill and receive rings.
    pub receive: usize,
    /// In transmit and completion rings.
    pub transmit: usize,
    /// In rings between workers.
    pub handoff: usize,
}

impl Frames {
    /// Whether every frame is in exactly one place.
    #[must_use]
    pub fn are_conserved(&self) -> bool {
        self.total == self.free + self.receive + self.transmit + self.handoff
    }
}

/// Percentiles of one histogram, in ns.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    /// Packets.
    pub count: u64,
    /// Half are at most this.
    pub p50: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1,000.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

/// Packets by how they ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcomes {
    /// Sealed by AES-GCM.
    pub sent_encrypted: u64,
    /// Sealed by AES-GMAC.
    pub sent_authenticated: u64,
    /// Sent as they were.
    pub sent_plaintext: u64,
    /// To guests.
    pub delivered: u64,
    /// By reason, those that happened.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// The totals.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Packets received from all ports.
    pub received: u64,
    /// Copies made of group packets.
    pub copies: u64,
    /// Packets that ended.
    pub ended: u64,
    /// Packets that have not ended: `received + copies - ended`.
    pub in_flight: i64,
    /// Packets that went over to another worker.
    pub handed_over: u64,
    /// How they ended.
    pub outcomes: Outcomes,
    /// Packets whose flow's decision was known, and those whose rule was looked up.
    pub flows: FlowCacheTotals,
    /// Packets by rule, in the rules' order.
    pub rules: Vec<RulePackets>,
    /// Samples of logged rules that found no room on their way to the log.
    pub lost_samples: u64,
    /// Copies that went to monitoring interfaces. They are among no other packets here.
    pub mirrored: u64,
    /// Copies that were lost because the listener was too slow, or its interface not there.
    pub mirrors_lost: u64,
    /// Messages made for guests whose packets were too long (`TooLong`): ICMP fragmentation needed, ICMPv6 packet too big. They are among
    /// the copies.
    pub told_too_long: u64,
    /// Where the frames are; known at the end.
    pub frames: Option<Frames>,
    /// What the kernel dropped before it was received.
    pub kernel: Kernel,
    /// What the XDP programs decided, by interface.
    pub xdp: BTreeMap<String, Xdp>,
    /// Latency, by direction and class of outcome.
    pub latency_ns: BTreeMap<String, Percentiles>,
}

/// How often flow caches knew the decision.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlowCacheTotals {
    /// It was known.
    pub hits: u64,
    /// It was looked up.
    pub misses: u64,
}

/// Packets that met one rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RulePackets {
    /// Its name.
    pub rule: String,
    /// Its section's name.
    pub section: String,
    /// What it does.
    pub action: &'static str,
    /// Whether its section is only watched: packets would have met it.
    pub monitor: bool,
    /// Packets.
    pub packets: u64,
}

/// What the kernel dropped before it was received.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// The receive ring was full.
    pub ring_full: u64,
    /// The fill ring was empty.
    pub fill_empty: u64,
    /// Any other reason.
    pub other: u64,
}

/// What an XDP program decided.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Xdp {
    /// To a socket, whose ring may still have been full.
    pub redirected: u64,
    /// Dropped: no socket served the queue.
    pub no_socket: u64,
    /// Dropped: the driver gave no room for the time of arrival.
    pub no_stamp: u64,
    /// Left to the kernel.
    pub passed: u64,
    /// Dropped: more came to the port of handshakes than is taken there.
    pub handshakes: u64,
}

impl Totals {
    /// Adds one worker's counters.
    pub fn add(&mut self, counters: &Counters) {
        self.received += counters.received.get();
        self.copies += counters.copied.get();
        self.handed_over += counters.taken_over.get();
        self.flows.hits += counters.flow_hits.get();
        self.flows.misses += counters.flow_misses.get();
        self.lost_samples += counters.lost_samples.get();
        self.mirrored += counters.mirrored.get();
        self.mirrors_lost += counters.mirrors_refused.get() + counters.mirrors_lost.get();
        for outcome in (0..Outcome::COUNT).filter_map(Outcome::from_index) {
            let count = counters.outcome(outcome).get();
            self.ended += count;
            let outcomes = &mut self.outcomes;
            match outcome {
                Outcome::Dropped(reason) if count > 0 => {
                    *outcomes.dropped.entry(reason.name()).or_default() += count
                }
                Outcome::Dropped(_) => {}
                Outcome::Delivered => outcomes.delivered += count,
                Outcome::Sent(crate::path::outcome::SentAs::Encrypted) => outcomes.sent_encrypted += count,
                Outcome::Sent(crate::path::outcome::SentAs::Authenticated) => {
                    outcomes.sent_authenticated += count
                }
                Outcome::Sent(crate::path::outcome::SentAs::Plaintext) => outcomes.sent_plaintext += count,
            }
        }
        self.told_too_long += counters.told_too_long.get();
        let drops = counters.kernel_drops();
        self.kernel.ring_full += drops.ring_full;
        self.kernel.fill_empty += drops.fill_empty;
        self.kernel.other += drops.other;
        if drops.too_long > 0 {
            // Nobody but the kernel has seen them: they came, and ended there.
            self.received += drops.too_long;
            self.ended += drops.too_long;
            *self
                .outcomes
                .dropped
                .entry(DropReason::FrameTooLong.name())
                .or_default() += drops.too_long;
        }
        self.in_flight = (self.received + self.copies) as i64 - self.ended as i64;
    }

    /// Sets the packets by rule.
    pub fn set_rules(&mut self, policy: &Policy, packets: impl Fn(RuleIndex) -> u64) {
        self.rules = (0u32..)
            .zip(&policy.rules)
            .map(|(number, rule)| {
                let section = &policy.sections[rule.section.index()];
                RulePackets {
                    rule: rule.name.clone(),
                    section: section.name.clone(),
                    action: rule.action.verb(),
                    monitor: section.monitor,
                    packets: packets(RuleIndex(number)),
                }
            })
            .collect();
    }

    /// Adds what the program at an interface counted.
    pub fn add_xdp(&mut self, interface: String, counters: guestseal_xdp::Counters) {
        let xdp = self.xdp.entry(interface).or_default();
        xdp.redirected += counters.redirected;
        xdp.no_socket += counters.no_socket;
        xdp.no_stamp += counters.no_stamp;
        xdp.passed += counters.passed;
        xdp.handshakes += counters.handshakes;
    }

    /// Sets the latencies.
    pub fn set_latency(&mut self, latencies: &Latencies) {
        self.latency_ns = latencies
            .recorded()
            .map(|(direction, class, histogram)| {
                let at = |quantile| histogram.value_at_quantile(quantile);
                let percentiles = Percentiles {
                    count: histogram.len(),
                    p50: at(0.5),
                    p99: at(0.99),
                    p999: at(0.999),
                    max: histogram.max(),
                };
                (format!("{direction}/{class}"), percentiles)
            })
            .collect();
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line =
            |f: &mut fmt::Formatter<'_>, name: &str, count: u64| writeln!(f, "  {name:<28} {count:>14}");
        writeln!(f, "packets")?;
        line(f, "received", self.received)?;
        line(f, "copied to groups", self.copies)?;
        line(f, "sent encrypted", self.outcomes.sent_encrypted)?;
        line(f, "sent authenticated", self.outcomes.sent_authenticated)?;
        line(f, "sent plaintext", self.outcomes.sent_plaintext)?;
        line(f, "delivered", self.outcomes.delivered)?;
        for (reason, count) in &self.outcomes.dropped {
            line(f, &format!("dropped: {reason}"), *count)?;
        }
        line(f, "told that it was too long", self.told_too_long)?;
        if self.mirrored + self.mirrors_lost > 0 {
            line(f, "copied for monitoring", self.mirrored)?;
            line(f, "copies for monitoring lost", self.mirrors_lost)?;
        }
        writeln!(f, "  {:<28} {:>14}", "in flight", self.in_flight)?;
        line(f, "handed to another worker", self.handed_over)?;
        let missed = self.kernel.ring_full + self.kernel.fill_empty + self.kernel.other;
        line(f, "dropped before received", missed)?;
        let xdp = |of: fn(&Xdp) -> u64| self.xdp.values().map(of).sum();
        line(f, "dropped by XDP: no socket", xdp(|one| one.no_socket))?;
        line(f, "dropped by XDP: no stamp", xdp(|one| one.no_stamp))?;
        line(f, "dropped by XDP: handshakes", xdp(|one| one.handshakes))?;
        line(f, "passed to the kernel", xdp(|one| one.passed))?;
        line(f, "flows known, packets", self.flows.hits)?;
        line(f, "flows looked up, packets", self.flows.misses)?;
        if let Some(frames) = &self.frames {
            writeln!(
                f,
                "frames\n  {} = {} free + {} receiving + {} transmitting + {} between workers",
                frames.total, frames.free, frames.receive, frames.transmit, frames.handoff
            )?;
        }
        self.write_rules(f)?;
        if !self.latency_ns.is_empty() {
            writeln!(
                f,
                "latency, us {:>29} {:>9} {:>9} {:>9} {:>9}",
                "count", "p50", "p99", "p99.9", "max"
            )?;
        }
        for (name, one) in &self.latency_ns {
            let us = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
            writeln!(
                f,
                "  {name:<28} {:>10} {:>9.1} {:>9.1} {:>9.1} {:>9.1}",
                one.count,
                us(one.p50),
                us(one.p99),
                us(one.p999),
                us(one.max)
            )?;
        }
        Ok(())
    }
}

impl Totals {
    /// What leaves in plaintext, what is excluded, and what only is watched: always shown, with its packets.
    fn write_rules(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.rules.iter();
        let mut lines = lines
            .filter_map(|rule| rule_line(rule.action, &rule.rule, rule.monitor, rule.packets))
            .peekable();
        if lines.peek().is_some() {
            writeln!(f, "{RULES_SHOWN}")?;
        }
        lines.try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// What stands above the lines of [`rule_line`].
pub(crate) const RULES_SHOWN: &str = "rules that do not seal, or only watch";

/// The line of a rule, if it is one that is always shown.
pub(crate) fn rule_line(action: &str, rule: &str, monitor: bool, packets: u64) -> Option<String> {
    let mode = if monitor { "would be " } else { "" };
    let what = format!("{mode}{action}: {rule}");
    (monitor || matches!(action, "plaintext" | "drop")).then(|| format!("  {what:<28} {packets:>14}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::outcome::SentAs;
    use crate::port::KernelDrops;

    /// Every rule that lets traffic pass unsealed, excludes it or is only watched is shown with its packets, met or not.
    #[test]
    fn what_is_not_sealed_is_always_shown() {
        let text = "\
hosts: [{name: h1, address: 192.0.2.1}]
networks: [{name: blue}]
guests: [{id: web, host: h1, ports: [{interface: a, network: blue, mac: '02:00:00:00:00:01', addresses: [10.0.0.1]}]}]
keys: [{id: k}]
sections: [{name: try, mode: monitor}, {name: general}]
section: general
rules:
  - {name: names, from: any, to: any, protocol: udp, ports: [53], action: plaintext}
  - {name: telnet, from: any, to: any, protocol: tcp, ports: [23], action: drop}
  - {name: logs, from: any, to: any, protocol: udp, ports: [514], action: authenticate, key: k}
  - {name: rest, from: any, to: any, action: encrypt, key: k}
";
        let watched = "section: try\nrules:\n  - {name: soon, from: any, to: any, action: encrypt, key: k}\n";
        let source = |name: &str, text: &str| guestseal_rules::load::Source {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        let policy =
            guestseal_rules::load::load_policy(&[source("a.yaml", text), source("b.yaml", watched)]).unwrap();
        let mut totals = Totals::default();
        totals.set_rules(&policy, |rule| match &*policy.rules[rule.index()].name {
            "names" => 3,
            "soon" | "rest" => 2,
            _ => 0,
        });
        let said = totals.to_string();
        let shown = said.split(RULES_SHOWN).nth(1).unwrap();
        let lines: Vec<Vec<&str>> = shown
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let expected: [&[&str]; 4] = [
            &[],
            &["would", "be", "encrypt:", "soon", "2"],
            &["plaintext:", "names", "3"],
            &["drop:", "telnet", "0"],
        ];
        assert_eq!(lines, expected, "{said}");
        assert_eq!(
            serde_json::to_value(&totals).unwrap()["rules"]
                .as_array()
                .unwrap()
                .len(),
            5
        );
    }

    #[test]
    fn received_is_the_sum_of_outcomes_and_what_is_in_flight() {
        let counters = Counters::default();
        counters.received.add(5);
        counters.copied.add(1);
        counters.outcome(Outcome::Sent(SentAs::Encrypted)).add(3);
        counters.outcome(Outcome::Dropped(DropReason::NoRule)).add(2);
        counters.set_kernel_drops(KernelDrops {
            too_long: 4,
            other: 1,
            ..KernelDrops::default()
        });
        let mut totals = Totals::default();
        totals.add(&counters);
        assert_eq!(
            (totals.ended, totals.in_flight, totals.outcomes.dropped["NoRule"]),
            (9, 1, 2)
        );
        assert_eq!(
            (totals.outcomes.dropped["FrameTooLong"], totals.kernel.other),
            (4, 1)
        );
    }
}
