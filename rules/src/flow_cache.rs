//! The decisions on the flows seen last: in front of the look-up, one for each worker.
//!
//! As many slots as it was made with, 64 bytes each: a flow has one place, and the one that comes later takes it. A slot holds
//! everything of the packet that rules can test, so that no flow ever gets another's decision, and the generation of the
//! ruleset that made it, so that no decision outlives its rules. A ruleset whose generation lies before that of the one used
//! last (the counter began anew) finds the cache empty. Places are dealt with a secret, so that a guest cannot aim at
//! another's. Allocates nothing after it is made.

use std::net::IpAddr;
use std::num::NonZeroU32;

use arrayvec::ArrayVec;

use crate::classify::{Decision, GROUP, Verdict};
use crate::compile::Ruleset;
use crate::facts::{Facts, Ports};
use crate::model::{GuestIndex, MAX_GUESTS, RuleIndex};

/// The decisions on some flows.
#[derive(Debug)]
pub struct FlowCache {
    slots: Box<[Slot]>,
    /// By slot; looked at only where a section is watched.
    watched: Box<[Option<RuleIndex>]>,
    secret: [u64; 2],
    /// Of the ruleset used last.
    generation: u32,
    /// Look-ups that it answered.
    pub hits: u64,
    /// Look-ups that it did not.
    pub misses: u64,
}

/// Seven words of key, the generation among them, and the verdict.
#[derive(Copy, Clone, Debug)]
#[repr(C, align(64))]
struct Slot {
    key: [u64; 7],
    held: Held,
}

#[derive(Copy, Clone, Debug)]
enum Held {
    Decided(Verdict),
    /// Nothing yet: which question of this group it is. None is left when the group is done.
    Asked(u8),
}

/// The packets of a group that the cache does not know.
#[derive(Default)]
struct Asked {
    /// Which, and the place that its flow takes.
    packets: ArrayVec<(u8, Option<u32>), GROUP>,
    /// Those of the same flow as one before, and which of the questions that is.
    same: ArrayVec<(u8, u8), GROUP>,
}

const _: () = assert!(size_of::<Slot>() == 64, "a cache line");

/// No ruleset's generation is 0: no key is this one.
const EMPTY: Slot = Slot {
    key: [0; 7],
    held: Held::Decided(Verdict::NoRule),
};

impl FlowCache {
    /// With at least so many slots (rounded up to a power of two), and a secret that nobody else knows.
    #[must_use]
    pub fn new(slots: usize, secret: [u64; 2]) -> Self {
        let slots = slots.next_power_of_two();
        Self {
            slots: vec![EMPTY; slots].into_boxed_slice(),
            watched: vec![None; slots].into_boxed_slice(),
            secret,
            generation: 0,
            hits: 0,
            misses: 0,
        }
    }

    /// The decision on one packet: the one made before, or a new one.
    #[inline]
    pub fn classify(&mut self, rules: &Ruleset, facts: &Facts) -> Decision {
        let mut decision = [Decision::UNMATCHED];
        let _ = self.classify_all(rules, std::slice::from_ref(facts), &mut decision);
        decision[0]
    }

    /// The decisions on a batch of packets, each in its place: those made before, or new ones, which are looked up together,
    /// a flow once. Gives the packets for which rules were looked up, of the first 64 a bit each.
    #[inline]
    pub fn classify_all(&mut self, rules: &Ruleset, facts: &[Facts], decisions: &mut [Decision]) -> u64 {
        if rules.generation.get() != self.generation {
            self.meet(rules.generation);
        }
        let mut looked_up = 0;
        let groups = facts.chunks(GROUP).zip(decisions.chunks_mut(GROUP));
        for ((facts, decisions), first) in groups.zip((0u32..).step_by(GROUP)) {
            let asked = self.classify_group(rules, facts, decisions);
            looked_up |= asked.checked_shl(first).unwrap_or(0);
        }
        looked_up
    }

    #[inline]
    fn classify_group(&mut self, rules: &Ruleset, facts: &[Facts], decisions: &mut [Decision]) -> u64 {
        let mut asked = Asked::default();
        for ((number, facts), decision) in (0u8..).zip(facts).zip(decisions.iter_mut()) {
            let key = key(facts, self.generation);
            let place = self.place(&key);
            let slot = &mut self.slots[place];
            match slot.held {
                Held::Decided(verdict) if slot.key == key => {
                    self.hits += 1;
                    let watched = match rules.monitored {
                        Some(_) => self.watched[place],
                        None => None,
                    };
                    *decision = Decision { verdict, watched };
                }
                Held::Asked(question) if slot.key == key => {
                    self.hits += 1;
                    asked.same.push((number, question));
                }
                // The place belongs to another flow of this group.
                Held::Asked(_) => asked.packets.push((number, None)),
                Held::Decided(_) => {
                    slot.key = key;
                    slot.held = Held::Asked(asked.packets.len() as u8);
                    asked.packets.push((number, Some(place as u32)));
                }
            }
        }
        match asked.packets.is_empty() {
            true => 0,
            false => self.look_up(rules, facts, decisions, &asked),
        }
    }

    /// Asks the rules, and keeps what they say. A bit for each packet asked about.
    #[inline(never)]
    fn look_up(
        &mut self,
        rules: &Ruleset,
        facts: &[Facts],
        decisions: &mut [Decision],
        asked: &Asked,
    ) -> u64 {
        let mut looked_up = 0;
        let packets = asked.packets.iter();
        let questions: ArrayVec<Facts, GROUP> =
            packets.map(|(number, _)| facts[usize::from(*number)]).collect();
        let mut answers = [Decision::UNMATCHED; GROUP];
        rules.classify_all(&questions, &mut answers[..questions.len()]);
        self.misses += questions.len() as u64;
        for ((number, place), answer) in asked.packets.iter().zip(&answers) {
            decisions[usize::from(*number)] = *answer;
            looked_up |= 1 << number;
            if let Some(place) = place {
                self.slots[*place as usize].held = Held::Decided(answer.verdict);
                self.watched[*place as usize] = answer.watched;
            }
        }
        for (number, question) in &asked.same {
            decisions[usize::from(*number)] = answers[usize::from(*question)];
        }
        looked_up
    }

    #[cold]
    fn meet(&mut self, generation: NonZeroU32) {
        if generation.get() < self.generation {
            self.slots.fill(EMPTY);
        }
        self.generation = generation.get();
    }

    #[inline]
    fn place(&self, key: &[u64; 7]) -> usize {
        let [one, two] = self.secret;
        let addresses = fold(key[0] ^ one, key[1] ^ two) ^ fold(key[2] ^ two, key[3].rotate_left(32) ^ one);
        let others = fold(key[4] ^ one.rotate_left(17), key[5] ^ two.rotate_left(29));
        fold(addresses ^ others ^ (key[6] & REST), one | 1) as usize & (self.slots.len() - 1)
    }
}

/// The two halves of a product, one over the other: each bit of either factor moves many of it.
#[inline]
#[must_use]
pub fn fold(one: u64, two: u64) -> u64 {
    let product = u128::from(one) * u128::from(two);
    product as u64 ^ (product >> 64) as u64
}

/// The bits of the last word that are not the generation: a flow keeps its place.
const REST: u64 = (1 << 22) - 1;

/// Everything of a packet that rules can test, packed: no two packets that differ in it have one key.
#[inline]
fn key(facts: &Facts, generation: u32) -> [u64; 7] {
    let address = |address: Option<IpAddr>| match address {
        None => (0, 0, 0),
        Some(IpAddr::V4(address)) => (0, u64::from(address.to_bits()), 1),
        Some(IpAddr::V6(address)) => ((address.to_bits() >> 64) as u64, address.to_bits() as u64, 2),
    };
    let (source_high, source_low, source_kind) = address(facts.source.address);
    let (destination_high, destination_low, destination_kind) = address(facts.destination.address);
    // A policy has fewer guests than 24 bits can count.
    let guest = |guest: Option<GuestIndex>| guest.map_or(MAX_GUESTS as u64, |guest| u64::from(guest.0));
    let (ports, ports_kind): (u32, u64) = match (facts.ports, facts.icmp) {
        (Ports::Pair { source, destination }, _) => (u32::from(source) << 16 | u32::from(destination), 1),
        (Ports::Unreadable, _) => (0, 2),
        (Ports::None, None) => (0, 0),
        (Ports::None, Some((kind, code))) => (u32::from(kind) << 8 | u32::from(code), 3),
    };
    let vlan = facts.vlan.map_or(0xffff, u64::from);
    // 9 bits of protocol, 6 of DSCP, 2 of ports, 2 and 2 of addresses, 1 of opening.
    let rest = facts.protocol.map_or(256, u64::from)
        | u64::from(facts.dscp & 63) << 9
        | ports_kind << 15
        | source_kind << 17
        | destination_kind << 19
        | u64::from(facts.opening) << 21;
    [
        source_high,
        source_low,
        destination_high,
        destination_low,
        guest(facts.source.guest) << 40 | guest(facts.destination.guest) << 16 | u64::from(facts.network.0),
        u64::from(ports) << 32 | vlan << 16 | u64::from(facts.ethertype),
        u64::from(generation) << 32 | rest,
    ]
}
