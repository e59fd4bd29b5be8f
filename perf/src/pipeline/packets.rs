//! What is sent: frames of one size or of a mix, of many flows, under a policy of many rules and keys.

use clap::ValueEnum;
use guestseal::path::encapsulate;
use guestseal::wire::{ethernet, ip4, transport};
use guestseal_rules::classify::Protection;
use guestseal_rules::load::{Source, load_policy};
use guestseal_rules::model::Policy;
use serde::{Serialize, Serializer};

use crate::process::PerfError;

/// Destination port of the first SA's packets.
const PORT: u16 = 20_000;
/// Source ports that the flows of one destination port have.
const SOURCES: u32 = 40_000;
/// Where the ports are in a frame.
const PORTS: usize = ethernet::HEADER + ip4::HEADER;

/// Bytes of the frames.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// All the same.
    Bytes(u16),
    /// The simple IMIX: of twelve packets seven of 64 bytes, four of 590, one of 1414, in turns.
    Imix,
}

/// The turns of [`Size::Imix`].
const IMIX: [u16; 12] = [64, 590, 64, 64, 590, 64, 1414, 64, 590, 64, 590, 64];

impl Size {
    /// The size of the frame of a number.
    #[must_use]
    pub(super) fn of(self, number: usize) -> usize {
        match self {
            Size::Bytes(bytes) => bytes.into(),
            Size::Imix => IMIX[number % IMIX.len()].into(),
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Size::Bytes(bytes) => bytes.fmt(f),
            Size::Imix => f.pad("imix"),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Size::Bytes(bytes) => serializer.serialize_u16(*bytes),
            Size::Imix => serializer.serialize_str("imix"),
        }
    }
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text.eq_ignore_ascii_case("imix") => Ok(Size::Imix),
            Ok(bytes @ 46..=1460) => Ok(Size::Bytes(bytes)),
            _ => Err("expected 46 to 1460 bytes, or imix".into()),
        }
    }
}

/// What carries the logical network.
#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Network {
    /// The wire itself: transport mode on the guest's packet
    Flat,
    /// VXLAN under ESP
    Vxlan,
    /// Geneve under ESP
    Geneve,
}

impl Network {
    /// The name in the policy and in the figures.
    #[must_use]
    pub(super) fn name(self) -> &'static str {
        match self {
            Network::Flat => "flat",
            Network::Vxlan => "vxlan",
            Network::Geneve => "geneve",
        }
    }

    /// Bytes that ESP wraps of a guest's frame of so many.
    #[must_use]
    pub(super) fn sealed(self, frame: usize) -> usize {
        match self {
            Network::Flat => frame - PORTS,
            Network::Vxlan | Network::Geneve => encapsulate::HEADER + frame,
        }
    }
}

/// What the rules that match do.
#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Action {
    /// AES-GCM
    Encrypt,
    /// AES-GMAC: readable, not changeable
    Authenticate,
}

impl Action {
    /// The name in the policy and in the figures.
    #[must_use]
    pub(super) fn name(self) -> &'static str {
        match self {
            Action::Encrypt => "encrypt",
            Action::Authenticate => "authenticate",
        }
    }

    /// How an SA for it protects.
    #[must_use]
    pub(super) fn protection(self) -> Protection {
        match self {
            Action::Encrypt => Protection::Encrypt,
            Action::Authenticate => Protection::Authenticate,
        }
    }
}

/// Packets of flows that take turns, from the first guest to the second.
#[derive(Debug)]
pub(super) struct Packets {
    /// One frame of each size that there is.
    templates: Vec<Vec<u8>>,
    flows: u32,
    sas: u32,
    next: u32,
}

impl Packets {
    /// Frames of so many flows; flow `n` belongs to SA `n % sas`.
    #[must_use]
    pub(super) fn new(size: Size, flows: u32, sas: u32) -> Self {
        let turns = match size {
            Size::Bytes(_) => 1,
            Size::Imix => IMIX.len(),
        };
        Self {
            templates: (0..turns).map(|turn| frame(size.of(turn))).collect(),
            flows,
            sas,
            next: 0,
        }
    }

    /// The next frame.
    pub(super) fn next(&mut self) -> &[u8] {
        let number = self.next;
        self.next = number.wrapping_add(1);
        let flow = number % self.flows;
        let turns = self.templates.len();
        let frame = &mut self.templates[number as usize % turns];
        let (sa, rest) = (flow % self.sas, flow / self.sas);
        let source = 1024 + (rest % SOURCES) as u16;
        let destination = PORT + (sa + self.sas * (rest / SOURCES)) as u16;
        frame[PORTS..PORTS + 2].copy_from_slice(&source.to_be_bytes());
        frame[PORTS + 2..PORTS + 4].copy_from_slice(&destination.to_be_bytes());
        frame
    }
}

/// A UDP packet, `size` bytes with its Ethernet header; without a checksum, so that ports may change.
fn frame(size: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let total = (size - ethernet::HEADER) as u16;
    frame.extend(ip4::outer(
        [10, 0, 0, 1].into(),
        [10, 0, 0, 2].into(),
        transport::UDP,
        0,
        total,
    ));
    frame.extend([0; 4]);
    frame.extend((total - ip4::HEADER as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.resize(size, 0x42);
    frame
}

/// Two hosts, a guest on each; so many rules, of which the last `sas` match: each a destination port, under a key of its
/// own.
pub(super) fn policy(network: Network, action: Action, rules: u32, sas: u32) -> Result<Policy, PerfError> {
    let mut text = String::from(
        "hosts:\n  - {name: h1, addresses: [192.0.2.1]}\n  - {name: h2, addresses: [192.0.2.2]}\n\
         networks:\n",
    );
    let vni = if network == Network::Flat {
        ""
    } else {
        ", vni: 7001"
    };
    text += &format!("  - {{name: bench, type: {}{vni}}}\nkeys:\n", network.name());
    for number in 0..sas {
        text += &format!("  - {{id: bench-{number}}}\n");
    }
    text += "guests:\n";
    for number in [1, 2] {
        text += &format!(
            "  - {{id: g{number}, host: h{number}, ports: [{{interface: gp{number}, network: bench, \
             mac: \"02:00:00:00:00:0{number}\", addresses: [10.0.0.{number}]}}]}}\n"
        );
    }
    text += "rules:\n";
    for number in 1..=rules.saturating_sub(sas) {
        let (high, low) = (number / 250, number % 250);
        text += &format!(
            "  - {{name: r{number}, from: {{guest: g1}}, to: {{cidr: 10.{}.{}.{low}/32}}, protocol: udp, ports: [{}], \
             action: drop}}\n",
            1 + high / 250,
            high % 250,
            10_000 + number % 50_000
        );
    }
    let action = action.name();
    if sas == 1 {
        text += &format!("  - {{name: all, from: any, to: any, action: {action}, key: bench-0}}\n");
    } else {
        for number in 0..sas {
            text += &format!(
                "  - {{name: s{number}, from: any, to: any, protocol: udp, ports: [{}], action: {action}, key: bench-{number}}}\n",
                u32::from(PORT) + number
            );
        }
    }
    load_policy(&[Source {
        name: "bench.yaml".into(),
        text,
    }])
    .map_err(|errors| PerfError::Malformed {
        what: "policy".into(),
        why: errors.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_flow_comes_once_a_round_and_meets_its_sa() {
        for (flows, sas) in [(1, 1), (1000, 1), (100_000, 1), (5000, 1000)] {
            let mut packets = Packets::new(Size::Imix, flows, sas);
            let round: HashSet<[u8; 4]> = (0..flows)
                .map(|flow| {
                    let ports: [u8; 4] = packets.next()[PORTS..PORTS + 4].try_into().unwrap();
                    let destination = u16::from_be_bytes([ports[2], ports[3]]);
                    if sas > 1 {
                        assert_eq!(u32::from(destination - PORT), flow % sas);
                    }
                    ports
                })
                .collect();
            assert_eq!(round.len(), flows as usize);
        }
    }

    #[test]
    fn the_mix_is_seven_to_four_to_one() {
        let mut packets = Packets::new(Size::Imix, 1, 1);
        let sizes: Vec<usize> = (0..1200).map(|_| packets.next().len()).collect();
        let count = |size| sizes.iter().filter(|one| **one == size).count();
        assert_eq!((count(64), count(590), count(1414)), (700, 400, 100));
    }

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for text in ["64", "1414", "imix"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert!("45".parse::<Size>().is_err() && "1461".parse::<Size>().is_err());
    }

    #[test]
    fn a_policy_has_as_many_rules_as_were_asked_for() {
        for (rules, sas) in [(1, 1), (10, 1), (300, 20)] {
            let policy = policy(Network::Vxlan, Action::Encrypt, rules, sas).unwrap();
            assert_eq!(
                (policy.rules.len(), policy.keys.len()),
                (rules as usize, sas as usize)
            );
        }
    }
}
