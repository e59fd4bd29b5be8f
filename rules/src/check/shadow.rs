//! Rules that can never match, since rules before them take every packet of theirs.
//!
//! A rule is as many entries as its selectors have alternatives and its traffic has kinds. An entry is covered if one
//! entry of a rule before it, of the same mode, asks nothing that it does not ask; a rule, if all its entries are. Pairs
//! are compared by a few words first, which leaves few of the 50 million pairs of 10,000 rules.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, Hash};

use foldhash::fast::FixedState;

use crate::compile::AddressSet;
use crate::compile::parties::{GuestTerm, GuestTest, Networks, Parties, alternatives};
use crate::model::{LabelTest, NetworkIndex, Policy, Rule, Traffic};

/// A rule of more entries is not looked at.
const MOST_ENTRIES: usize = 1024;
/// More pairs are not compared: what is left is not warned of.
const MOST_PAIRS: usize = 400_000_000;

/// Whether a rule can match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cover {
    /// It may.
    Open,
    /// Whom it means cannot be.
    Nobody,
    /// These take all of it.
    By(BTreeSet<usize>),
}

/// One pair of alternatives and one kind of traffic of a rule.
pub(super) struct Entry<'a> {
    pub(super) networks: Networks,
    from: Parties,
    to: Parties,
    pub(super) traffic: &'a Traffic,
    ports: Vec<(u32, u32)>,
    sketch: Sketch,
}

/// What is compared first. An entry can cover another only if all of this says so.
#[derive(Clone, Debug)]
struct Sketch {
    /// Bits of what is asked of from and of to,
    asks: [u64; 2],
    /// and of what follows from it.
    implies: [u64; 2],
    /// The first and last address of each family, those of IPv6 by their upper halves.
    bounds: [[(u64, u64); 2]; 2],
}

impl Entry<'_> {
    pub(super) fn is_about_everybody(&self) -> bool {
        let everybody = |parties: &Parties| parties.guest.is_empty() && parties.addresses.is_all();
        everybody(&self.from) && everybody(&self.to)
    }
}

/// The entries of a rule; none of one that has too many.
pub(super) fn entries<'a>(policy: &Policy, rule: &'a Rule) -> Vec<Entry<'a>> {
    let (Some(from), Some(to)) = (alternatives(&rule.from, policy), alternatives(&rule.to, policy)) else {
        return Vec::new();
    };
    if from.len() * to.len() * rule.traffic.len() > MOST_ENTRIES {
        return Vec::new();
    }
    let mut entries = Vec::new();
    for from in &from {
        for to in &to {
            let networks = from.networks.intersection(&to.networks);
            let mut known = (0..policy.networks.len() as u16).map(NetworkIndex);
            // Rules may be looked at before there are networks.
            if policy.networks.is_empty() || known.any(|network| networks.contains(network)) {
                entries.extend(rule.traffic.iter().map(|traffic| Entry {
                    sketch: Sketch::new(policy, from, to),
                    networks: networks.clone(),
                    from: from.clone(),
                    to: to.clone(),
                    traffic,
                    ports: merged(traffic),
                }));
            }
        }
    }
    entries
}

/// Of each rule whether it can match.
pub(super) fn covered(policy: &Policy, entries: &[Vec<Entry<'_>>]) -> Vec<Cover> {
    let mut covers = vec![Cover::Open; policy.rules.len()];
    let mut pairs = 0;
    for monitor in [false, true] {
        // By what they ask: whoever asks more than an entry does cannot cover it.
        let mut before: Vec<(Shape, Vec<(usize, &Entry<'_>)>)> = Vec::new();
        let mut places: HashMap<Shape, usize, FixedState> = HashMap::default();
        let rules = policy.rules.iter().zip(entries).enumerate();
        let of_this_mode =
            rules.filter(|(_, (rule, _))| policy.sections[rule.section.index()].monitor == monitor);
        for (number, (rule, entries)) in of_this_mode {
            if entries.is_empty() {
                if is_nobody(policy, rule) {
                    covers[number] = Cover::Nobody;
                }
                continue;
            }
            let mut by = BTreeSet::new();
            for entry in entries {
                let wider = first_cover(policy, &before, entry, &mut pairs);
                by.extend(wider);
                if wider.is_none() {
                    by.clear();
                    break;
                }
            }
            if !by.is_empty() {
                covers[number] = Cover::By(by);
            }
            for entry in entries {
                let shape = Shape::of(entry);
                let place = *places.entry(shape).or_insert_with(|| {
                    before.push((shape, Vec::new()));
                    before.len() - 1
                });
                before[place].1.push((number, entry));
            }
        }
    }
    covers
}

fn is_nobody(policy: &Policy, rule: &Rule) -> bool {
    match (alternatives(&rule.from, policy), alternatives(&rule.to, policy)) {
        (Some(from), Some(to)) => from.len() * to.len() * rule.traffic.len() <= MOST_ENTRIES,
        _ => false,
    }
}

/// What entries have in common that can cover the same ones.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
struct Shape {
    asks: [u64; 2],
    protocol: Option<u8>,
}

impl Shape {
    fn of(entry: &Entry<'_>) -> Self {
        Self {
            asks: entry.sketch.asks,
            protocol: entry.traffic.protocol,
        }
    }

    fn may_cover(&self, entry: &Entry<'_>) -> bool {
        let implied = |side: usize| self.asks[side] & !entry.sketch.implies[side] == 0;
        implied(0) && implied(1) && (self.protocol.is_none() || self.protocol == entry.traffic.protocol)
    }
}

/// The first rule that covers an entry.
fn first_cover(
    policy: &Policy,
    before: &[(Shape, Vec<(usize, &Entry<'_>)>)],
    entry: &Entry<'_>,
    pairs: &mut usize,
) -> Option<usize> {
    let mut first: Option<usize> = None;
    for (shape, list) in before {
        *pairs += 1;
        if !shape.may_cover(entry) {
            continue;
        }
        for (number, wider) in list {
            if *pairs > MOST_PAIRS {
                return None;
            }
            if first.is_some_and(|first| first <= *number) {
                break;
            }
            *pairs += 1;
            if covers(policy, wider, entry) {
                first = Some(*number);
                break;
            }
        }
    }
    first
}

/// Whether every packet that meets `narrow` meets `wide`, in the same direction.
fn covers(policy: &Policy, wide: &Entry<'_>, narrow: &Entry<'_>) -> bool {
    let within = |wide: &[(u64, u64); 2], narrow: &[(u64, u64); 2]| {
        let inside = |wide: &(u64, u64), narrow: &(u64, u64)| narrow.0 >= wide.0 && narrow.1 <= wide.1;
        inside(&wide[0], &narrow[0]) && inside(&wide[1], &narrow[1])
    };
    let [from, to] = &wide.sketch.bounds;
    within(from, &narrow.sketch.bounds[0])
        && within(to, &narrow.sketch.bounds[1])
        && traffic_covers(wide, narrow)
        && networks_cover(policy, &wide.networks, &narrow.networks)
        && parties_cover(policy, &wide.from, &narrow.from)
        && parties_cover(policy, &wide.to, &narrow.to)
}

fn traffic_covers(wide: &Entry<'_>, narrow: &Entry<'_>) -> bool {
    fn asks_no_more<T: PartialEq>(wide: &Option<T>, narrow: &Option<T>) -> bool {
        wide.is_none() || wide == narrow
    }
    let (one, two) = (wide.traffic, narrow.traffic);
    let ports = wide.ports.is_empty()
        || (!narrow.ports.is_empty()
            && narrow.ports.iter().all(|(first, last)| {
                let inside = |range: &(u32, u32)| range.0 <= *first && *last <= range.1;
                wide.ports.iter().any(inside)
            }));
    ports
        && asks_no_more(&one.ethertype, &two.ethertype)
        && asks_no_more(&one.vlan, &two.vlan)
        && asks_no_more(&one.dscp, &two.dscp)
        && asks_no_more(&one.protocol, &two.protocol)
        && asks_no_more(&one.icmp_type, &two.icmp_type)
        && asks_no_more(&one.icmp_code, &two.icmp_code)
        && asks_no_more(&one.flow, &two.flow)
}

fn networks_cover(policy: &Policy, wide: &Networks, narrow: &Networks) -> bool {
    match (wide, narrow) {
        (Networks::AllBut(wide), _) if wide.is_empty() => true,
        (wide, Networks::Only(narrow)) => narrow.iter().all(|network| wide.contains(*network)),
        (wide, narrow) => {
            wide == narrow
                || (0..policy.networks.len() as u16)
                    .map(NetworkIndex)
                    .all(|network| !narrow.contains(network) || wide.contains(network))
        }
    }
}

fn parties_cover(policy: &Policy, wide: &Parties, narrow: &Parties) -> bool {
    wide.guest
        .iter()
        .all(|term| narrow.guest.iter().any(|known| follows(policy, known, term)))
        && (wide.addresses.is_all() || wide.addresses.covers(&narrow.addresses))
}

/// Whether a term holds wherever another does. What a guest is may change at any time, except which it is; and it is in
/// one container, and in those that this one is nested in.
fn follows(policy: &Policy, known: &GuestTerm, term: &GuestTerm) -> bool {
    let nested = |inner, outer| policy.chain(inner).any(|one| one == outer);
    match (&known.what, known.negated, &term.what, term.negated) {
        _ if known == term => true,
        (GuestTest::Is(one), false, GuestTest::Is(other), true) => one != other,
        (GuestTest::Container(one), false, GuestTest::Container(other), false) => nested(*one, *other),
        (GuestTest::Container(one), true, GuestTest::Container(other), true) => nested(*other, *one),
        (GuestTest::Container(one), false, GuestTest::Container(other), true) => {
            !nested(*one, *other) && !nested(*other, *one)
        }
        (GuestTest::Label(one), false, GuestTest::Label(other), false) => label_within(one, other),
        (GuestTest::Label(one), true, GuestTest::Label(other), true) => label_within(other, one),
        _ => false,
    }
}

/// Whether a label that passes one test passes another.
fn label_within(one: &LabelTest, other: &LabelTest) -> bool {
    one.name == other.name
        && (other.values.iter().any(|value| value.as_str() == "*")
            || one.values.iter().all(|value| other.values.contains(value)))
}

impl Sketch {
    fn new(policy: &Policy, from: &Parties, to: &Parties) -> Self {
        let sides = [from, to];
        Self {
            asks: sides.map(|parties| parties.guest.iter().map(asks).fold(0, |all, one| all | one)),
            implies: sides.map(|parties| {
                let bits = parties.guest.iter().map(|term| implies(policy, term));
                bits.fold(0, |all, one| all | one)
            }),
            bounds: sides.map(|parties| bounds(&parties.addresses)),
        }
    }
}

/// A bit that every entry has which this term follows from; none if it may follow from terms of many kinds.
fn asks(term: &GuestTerm) -> u64 {
    match &term.what {
        GuestTest::Is(_) | GuestTest::Container(_) if term.negated => 0,
        GuestTest::Label(test) => bit(&(&test.name, term.negated)),
        _ => bit(term),
    }
}

fn implies(policy: &Policy, term: &GuestTerm) -> u64 {
    match &term.what {
        GuestTest::Container(container) if !term.negated => policy
            .chain(*container)
            .map(|outer| {
                bit(&GuestTerm {
                    what: GuestTest::Container(outer),
                    negated: false,
                })
            })
            .fold(0, |all, one| all | one),
        _ => asks(term),
    }
}

fn bit(of: &impl Hash) -> u64 {
    1 << (FixedState::default().hash_one(of) % 64)
}

fn bounds(set: &AddressSet) -> [(u64, u64); 2] {
    let of = |ranges: &[(u128, u128)], shift: u32| match (ranges.first(), ranges.last()) {
        (Some(first), Some(last)) => ((first.0 >> shift) as u64, (last.1 >> shift) as u64),
        _ => (u64::MAX, 0),
    };
    [of(&set.ip4.0, 0), of(&set.ip6.0, 64)]
}

/// The ports as sorted ranges that neither overlap nor touch.
fn merged(traffic: &Traffic) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = traffic
        .ports
        .iter()
        .map(|range| (u32::from(*range.start()), u32::from(*range.end())))
        .collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= *end + 1 => *end = (*end).max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}
