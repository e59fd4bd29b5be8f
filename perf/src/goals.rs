//! What Guestseal is to reach, beside what was measured: by how much a goal is met or missed, and where the cycles go.
//!
//! The goals of the path are shares of the bare call of ipsec-mb over the same frames, measured in turns with the path, so that they mean
//! the same on every machine. Those with 1,000 SAs are shares of what VPP's whole path takes on a Zen 5, as nothing here can stand for it.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use serde::Deserialize;
use serde_json::Value;

/// Direction, bytes of the guest's frame, and the share of bare ipsec-mb that the path may take.
const OF_CIPHER: [(&str, u64, f64); 6] = [
    ("outbound", 64, 1.1),
    ("outbound", 256, 1.2),
    ("outbound", 1414, 1.0),
    ("inbound", 64, 1.25),
    ("inbound", 256, 1.3),
    ("inbound", 1414, 1.05),
];
/// Direction, and VPP's cycles a packet of 64 bytes with 1,000 SAs.
const OF_VPP: [(&str, f64); 2] = [("outbound", 254.0), ("inbound", 296.0)];
/// The share of them that the path may take.
const SHARE_OF_VPP: f64 = 0.9;

/// What a goal needs of a row of `guestseal-perf pipeline --json`.
#[derive(Clone, Debug, Deserialize)]
struct Row {
    direction: String,
    network: String,
    action: String,
    size: Value,
    rules: u32,
    flows: u32,
    sas: u32,
    frames: u32,
    engine: String,
    cycles_per_packet: f64,
    ipsec_mb_cycles_per_packet: Option<f64>,
    stages: BTreeMap<String, f64>,
}

/// One goal of the path, and how it stands.
#[derive(Clone, Debug)]
pub(crate) struct PathGoal {
    /// What was measured.
    pub(crate) what: String,
    /// TSC cycles a packet of the path.
    pub(crate) cycles: f64,
    /// What they are held against, in words and in cycles.
    pub(crate) beside: (&'static str, f64),
    /// The share of that which is allowed.
    pub(crate) allowed: f64,
    /// Stages, the dearest first.
    pub(crate) stages: Vec<(String, f64)>,
}

impl PathGoal {
    fn new(row: &Row, beside: (&'static str, f64), allowed: f64) -> Self {
        let count = |count, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
        let mut stages: Vec<(String, f64)> = row.stages.clone().into_iter().collect();
        stages.sort_by(|one, other| other.1.total_cmp(&one.1));
        Self {
            what: format!(
                "{} {} B, {}, {}, {}",
                row.direction,
                row.size,
                count(row.flows, "flow"),
                count(row.sas, "SA"),
                row.engine
            ),
            cycles: row.cycles_per_packet,
            beside,
            allowed,
            stages,
        }
    }

    /// The share of what it is held against.
    pub(crate) fn share(&self) -> f64 {
        self.cycles / self.beside.1
    }

    /// Whether it is reached.
    pub(crate) fn is_met(&self) -> bool {
        self.share() <= self.allowed
    }

    /// Cycles above what is allowed; less than none if it is met.
    pub(crate) fn above(&self) -> f64 {
        self.cycles - self.allowed * self.beside.1
    }

    /// The stages in words.
    pub(crate) fn where_cycles_go(&self) -> String {
        let stages = self.stages.iter().filter(|(_, cycles)| *cycles >= 0.5);
        let stages: Vec<String> = stages
            .map(|(stage, cycles)| format!("{stage} {cycles:.0}"))
            .collect();
        stages.join(", ")
    }

    /// How it stands, in words.
    pub(crate) fn verdict(&self) -> String {
        if self.is_met() {
            format!("met with {:.0} cycles to spare", -self.above())
        } else {
            format!("missed by {:.0} cycles", self.above())
        }
    }
}

impl Display for PathGoal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (beside, cycles) = self.beside;
        write!(
            f,
            "{}: {:.0} cycles, {:.2} of {beside} ({cycles:.0}); goal {}: {}; {}",
            self.what,
            self.cycles,
            self.share(),
            self.allowed,
            self.verdict(),
            self.where_cycles_go()
        )
    }
}

/// The goals of the path that these rows say something about: on a flat network, with 10,000 rules and hot frames, of the fastest
/// engine.
pub(crate) fn of_path(rows: &[Value]) -> Vec<PathGoal> {
    let rows = rows.iter().filter_map(|row| Row::deserialize(row).ok());
    let rows: Vec<Row> = rows
        .filter(|row| {
            (row.network.as_str(), row.action.as_str()) == ("flat", "encrypt")
                && row.rules == 10_000
                && row.frames == 1024
        })
        .collect();
    let of = |direction: &str, size: u64, flows: u32, sas: u32| -> Vec<&Row> {
        let alike = rows.iter().filter(|row| {
            (row.direction.as_str(), row.flows, row.sas) == (direction, flows, sas) && row.size == size
        });
        alike.collect()
    };
    let fastest = |rows: &[&Row]| {
        let rows = rows.iter().copied().cloned();
        rows.min_by(|one, other| one.cycles_per_packet.total_cmp(&other.cycles_per_packet))
    };
    let mut goals = Vec::new();
    for flows in [1, 1000] {
        for (direction, size, allowed) in OF_CIPHER {
            if let Some(path) = fastest(&of(direction, size, flows, 1))
                && let Some(bare) = path.ipsec_mb_cycles_per_packet
            {
                goals.push(PathGoal::new(&path, ("bare ipsec-mb", bare), allowed));
            }
        }
    }
    for (direction, cycles) in OF_VPP {
        if let Some(path) = fastest(&of(direction, 64, 1000, 1000)) {
            goals.push(PathGoal::new(&path, ("VPP on a Zen 5", cycles), SHARE_OF_VPP));
        }
    }
    goals
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(engine: &str, flows: u32, sas: u32, cycles: f64, bare: Option<f64>) -> Value {
        json!({"direction": "outbound", "network": "flat", "action": "encrypt", "size": 64, "rules": 10_000, "flows": flows, "sas": sas, "frames": 1024,
               "huge_pages": false, "in_place": false, "engine": engine, "cycles_per_packet": cycles, "quartiles": [1, 2],
               "cipher_cycles_per_packet": 40.0, "ipsec_mb_cycles_per_packet": bare, "stages": {"parse": 30.4, "seal": 70.0, "cipher": 50.0, "guard": 0.1}})
    }

    #[test]
    fn the_fastest_engine_is_held_against_bare_ipsec_mb_in_turns_with_it() {
        let rows = [
            row("vaes", 1, 1, 100.0, Some(80.0)),
            row("ipsec-mb", 1, 1, 150.0, Some(90.0)),
            row("vaes", 1000, 1, 80.0, Some(80.0)),
            row("ipsec-mb", 1000, 1, 150.0, Some(90.0)),
            row("vaes", 1000, 1000, 254.0, Some(80.0)),
        ];
        let goals = of_path(&rows);
        let said: Vec<String> = goals.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "outbound 64 B, 1 flow, 1 SA, vaes: 100 cycles, 1.25 of bare ipsec-mb (80); goal 1.1: missed by 12 cycles; seal 70, cipher 50, parse 30",
                "outbound 64 B, 1000 flows, 1 SA, vaes: 80 cycles, 1.00 of bare ipsec-mb (80); goal 1.1: met with 8 cycles to spare; seal 70, cipher 50, parse 30",
                "outbound 64 B, 1000 flows, 1000 SAs, vaes: 254 cycles, 1.00 of VPP on a Zen 5 (254); goal 0.9: missed by 25 cycles; seal 70, cipher 50, parse 30",
            ]
        );
        assert_eq!(
            goals.iter().map(PathGoal::is_met).collect::<Vec<_>>(),
            [false, true, false]
        );
        // Without ipsec-mb there is nothing to hold it against.
        assert!(of_path(&[row("vaes", 1, 1, 100.0, None)]).is_empty());
    }
}
