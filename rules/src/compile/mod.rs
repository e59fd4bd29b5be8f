//! Policy and memberships to the form that [`crate::classify`] looks up.
//!
//! Every rule becomes entries, one for each pair of alternatives of its `from` and `to` and each kind of traffic, so that
//! an entry asks every field apart from the others. For each value of a field there is a row of bits, one an entry; a
//! packet meets the entries in the intersection of its fields' rows. Rows are made of blocks of 512 bits (`rows`); entries
//! that no packet meets together stand in different words of them (`arrange`).
//!
//! What something that happens to a guest changes are its own rows (`guests`); what an agent says changes its flow
//! (`flows`); all else is shared by the old and the new ruleset. Memory is bounded: what would need more is refused, by name
//! where one rule is to blame.
//!
//! Measured on one Zen 4 core, TSC cycles a look-up past the flow cache in bursts of 64, 1,000 guests, seeds acl, fw and ipc
//! of `guestseal-perf classify`: 312, 395, 385 at 10,000 rules and 225, 240, 240 at 1,000 (medians of fifteen runs while a
//! build shared the machine; the least 285, 353, 336). The lines of memory are what others on the machine make dearer: with
//! all of them hot it is 189, 234, 224 at 10,000 rules. The plain list takes 240,000 to 330,000 there. What it was before, in
//! turns with what came next: entries in the order of their rules instead of cut by addresses first and between words, 570,
//! 624, 546 beside 379, 433, 518; then groups of 32 packets, slots of addresses of one size and a part's rows found anew for
//! each word, 1.17, 1.11, 1.15 of what is there now. Before all that, a row for each field by itself (five or more rows to
//! intersect, in blocks first, one packet after the other) took 254, 252, 256 and 466, 508, 533 beside 238, 247, 264 and 422, 488, 466:
//! what costs is instructions for each row and word, then lines of memory, so the fields that a packet has only together (a
//! guest with its address and network; EtherType, protocol and ports) share a row, and packets wait together. Tuple-space
//! search (tuples in the order of their best rule, 70 to 79 of them, each asked in both directions) took 2.3 to 2.6 times as
//! long as that at 10,000 rules and 4.9 to 5.4 times at 1,000; it also pays for every label name and prefix length that rules
//! use, which a guest's operator chooses; rows do not.
//!
//! After Lakshman and Stiliadis (bit vectors, 1998), Baboescu and Varghese (summaries, 2001).

mod address_set;
mod addresses;
mod arrange;
mod between;
mod flows;
mod guests;
pub(crate) mod parties;
pub(crate) mod rows;
mod traffic;

use std::num::NonZeroU32;
use std::sync::Arc;

use crate::classify::Action;
use crate::flows::{FlowKey, Flows};
use crate::membership::Membership;
use crate::model::{GuestIndex, Place, Policy, Rule, RuleIndex};

use addresses::{AddressTable, Asked};
use arrange::arrange;
use between::Traits;
use guests::{GuestQuestions, Numbered, Question, rows_of_guests};
use parties::alternatives;
use rows::{Known, RowStore, row_bytes};
use traffic::{TrafficTable, Wanted};

pub(crate) use address_set::AddressSet;
pub use between::{Meeting, Seat, Side};
pub(crate) use flows::{Class, FlowRows, FlowTable};
pub(crate) use guests::{Found, GuestTable};

/// Rules that a policy may have.
pub const MOST_RULES: usize = 1 << 22;
/// Entries that its rules may come to.
pub const MOST_ENTRIES: usize = 1 << 18;
/// Bytes that the rows of a ruleset may need at worst.
pub const MOST_BYTES: usize = 1 << 29;

/// Why a policy has no ruleset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    /// One selector comes to too much.
    #[error(
        "{place}: rule \"{rule}\": {side} comes to more than {most} alternatives: expected a simpler selector, or several rules",
        most = parties::MOST
    )]
    Alternatives {
        /// The rule.
        rule: String,
        /// Where it is.
        place: Place,
        /// `from` or `to`.
        side: &'static str,
    },
    /// All rules up to this one come to too much.
    #[error(
        "{place}: with rule \"{rule}\", which comes to {its} combinations of from, to and traffic, the rules come to more than \
         {MOST_ENTRIES}: expected fewer alternatives in from and to (one prefix or label test instead of many)"
    )]
    Entries {
        /// The rule.
        rule: String,
        /// Where it is.
        place: Place,
        /// Its own combinations.
        its: usize,
    },
    /// Too many rules.
    #[error("the policy has {0} rules: expected at most {MOST_RULES}")]
    Rules(usize),
    /// Too much memory.
    #[error(
        "the rules may need {needed} MiB of memory to look up: expected at most {most} MiB; fewer rules, prefixes, port \
         ranges or guests need less",
        most = MOST_BYTES >> 20
    )]
    Bytes {
        /// MiB that they need at worst.
        needed: usize,
    },
}

/// The generation after this one; after the last one, the first.
///
/// A [`crate::flow_cache::FlowCache`] that meets a generation before the one it met last forgets everything, so that one
/// counter that every new ruleset of a process takes its number from, reloaded policies included, may begin anew after
/// four billion.
#[must_use]
pub fn next_generation(generation: NonZeroU32) -> NonZeroU32 {
    generation.checked_add(1).unwrap_or(NonZeroU32::MIN)
}

/// The rules, ready for look-up. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ruleset {
    pub(crate) generation: NonZeroU32,
    pub(crate) enforced: Index,
    /// The rules of sections that are only watched, if there are any.
    pub(crate) monitored: Option<Index>,
    /// If a rule asks what was said of a flow.
    pub(crate) flows: Option<Arc<FlowTable>>,
    pub(crate) actions: Arc<[Action]>,
}

/// The entries of some of the rules.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    pub(crate) fixed: Arc<Fixed>,
    pub(crate) guests: Arc<GuestTable>,
    pub(crate) flows: Option<Arc<FlowRows>>,
}

/// What stays the same as long as the policy does.
#[derive(Debug)]
pub(crate) struct Fixed {
    /// Of a row.
    pub(crate) parts: usize,
    pub(crate) store: RowStore,
    pub(crate) addresses: AddressTable,
    pub(crate) traffic: TrafficTable,
    pub(crate) questions: GuestQuestions,
    traits: Traits,
    /// By position.
    pub(crate) verdicts: Vec<EntryVerdict>,
}

/// Twice the rule's number, and one more if the entry needs ports: what is smaller comes first.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EntryVerdict(u32);

impl EntryVerdict {
    /// Behind every entry's.
    pub(crate) const NONE: Self = Self(u32::MAX);

    fn new(rule: u32, needs_ports: bool) -> Self {
        Self(2 * rule + u32::from(needs_ports))
    }

    /// This, or [`Self::NONE`]; without a branch.
    #[inline]
    pub(crate) fn or_none(self, none: bool) -> Self {
        Self(self.0 | u32::from(none).wrapping_neg())
    }

    #[inline]
    pub(crate) fn rule(self) -> RuleIndex {
        RuleIndex(self.0 >> 1)
    }

    /// Of [`Self::NONE`] nothing is needed.
    #[inline]
    pub(crate) fn needs_ports(self) -> bool {
        self.0 & 1 == 1 && self != Self::NONE
    }
}

struct Entry {
    verdict: EntryVerdict,
    from: Arc<AddressSet>,
    to: Arc<AddressSet>,
    questions: [Question; 2],
    wanted: Wanted,
}

impl Ruleset {
    /// Compiles a policy as its guests and flows are now. Any two rulesets that differ need different generations, those
    /// of different policies too.
    ///
    /// # Errors
    /// If the rules come to more than a look-up can hold.
    pub fn compile(
        policy: &Policy,
        guests: &[Membership],
        flows: &Flows,
        generation: NonZeroU32,
    ) -> Result<Self, TooLarge> {
        if policy.rules.len() > MOST_RULES {
            return Err(TooLarge::Rules(policy.rules.len()));
        }
        let is_monitored = |rule: &Rule| {
            let section = policy.sections.get(rule.section.index());
            section.is_some_and(|section| section.monitor)
        };
        let mut left = MOST_ENTRIES;
        let mut index = |monitored: bool| {
            let (mut entries, mut numbered) = (Vec::new(), Numbered::default());
            let rules = (0u32..).zip(&policy.rules);
            for (number, rule) in rules.filter(|(_, rule)| is_monitored(rule) == monitored) {
                add_entries(policy, number, rule, &mut left, &mut numbered, &mut entries)?;
            }
            Index::build(entries, numbered, policy, guests)
        };
        let mut enforced = index(false)?;
        let mut monitored = match policy.rules.iter().any(is_monitored) {
            true => Some(index(true)?),
            false => None,
        };
        let asks = |index: &Index| index.flows.is_some();
        let asked = asks(&enforced) || monitored.as_ref().is_some_and(asks);
        let flows = asked.then(|| {
            let mut table = FlowTable::build(&policy.flow_tests, flows);
            bring_up(&mut table, &mut enforced, &mut monitored);
            Arc::new(table)
        });
        Ok(Self {
            generation,
            enforced,
            monitored,
            flows,
            actions: policy.rules.iter().map(|rule| rule.action).collect(),
        })
    }

    /// The ruleset when some guests have become others; the rest is shared with this one.
    #[must_use]
    pub fn update<'a>(
        &self,
        changed: impl IntoIterator<Item = (GuestIndex, &'a Membership)> + Clone,
        generation: NonZeroU32,
    ) -> Self {
        let mut next = self.clone();
        next.generation = generation;
        for index in std::iter::once(&mut next.enforced).chain(&mut next.monitored) {
            let (table, fixed) = (Arc::make_mut(&mut index.guests), &index.fixed);
            for (guest, now) in changed.clone() {
                table.update(fixed, guest, now);
            }
        }
        next
    }

    /// The ruleset when something else is known of some flows; the rest is shared with this one.
    #[must_use]
    pub fn update_flows<'a>(
        &self,
        changed: impl IntoIterator<Item = &'a FlowKey>,
        flows: &Flows,
        generation: NonZeroU32,
    ) -> Self {
        let mut next = self.clone();
        next.generation = generation;
        if let Some(table) = &mut next.flows {
            let table = Arc::make_mut(table);
            changed.into_iter().for_each(|key| table.update(key, flows));
            bring_up(table, &mut next.enforced, &mut next.monitored);
        }
        next
    }

    /// Which ruleset it is.
    #[must_use]
    pub fn generation(&self) -> NonZeroU32 {
        self.generation
    }

    /// Bytes of memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let index = |index: &Index| {
            let fixed = &index.fixed;
            fixed.store.bytes()
                + fixed.addresses.bytes()
                + fixed.traffic.bytes()
                + fixed.questions.bytes()
                + fixed.traits.bytes()
                + fixed.verdicts.len() * size_of::<EntryVerdict>()
                + index.guests.bytes()
                + index.flows.as_ref().map_or(0, |flows| flows.bytes())
        };
        index(&self.enforced)
            + self.monitored.as_ref().map_or(0, index)
            + self.flows.as_ref().map_or(0, |flows| flows.bytes())
            + self.actions.len() * size_of::<Action>()
    }
}

/// Gives the indexes rows of the classes of flows that are new.
fn bring_up(table: &mut FlowTable, enforced: &mut Index, monitored: &mut Option<Index>) {
    if table.is_settled() {
        return;
    }
    for index in std::iter::once(enforced).chain(monitored) {
        if let Some(rows) = &mut index.flows {
            table.bring_up(Arc::make_mut(rows));
        }
    }
    table.settle();
}

fn add_entries(
    policy: &Policy,
    number: u32,
    rule: &Rule,
    left: &mut usize,
    numbered: &mut Numbered,
    entries: &mut Vec<Entry>,
) -> Result<(), TooLarge> {
    let side = |selector, side| {
        alternatives(selector, policy).ok_or_else(|| TooLarge::Alternatives {
            rule: rule.name.clone(),
            place: rule.place.clone(),
            side,
        })
    };
    let (from, to) = (side(&rule.from, "from")?, side(&rule.to, "to")?);
    let its = from.len() * to.len() * rule.traffic.len();
    *left = left.checked_sub(its).ok_or_else(|| TooLarge::Entries {
        rule: rule.name.clone(),
        place: rule.place.clone(),
        its,
    })?;
    let mut split = |parties: Vec<parties::Parties>| -> Vec<_> {
        parties
            .into_iter()
            .map(|one| (one.networks, numbered.number(&one.guest), Arc::new(one.addresses)))
            .collect()
    };
    let (from, to) = (split(from), split(to));
    for (from_networks, from_question, from) in &from {
        for (to_networks, to_question, to) in &to {
            let networks = from_networks.intersection(to_networks);
            for traffic in &rule.traffic {
                let needs_ports = !traffic.ports.is_empty() || traffic.icmp_type.is_some();
                entries.push(Entry {
                    // Of a rule's own alternatives, one that matches comes before one that only might.
                    verdict: EntryVerdict::new(number, needs_ports),
                    from: Arc::clone(from),
                    to: Arc::clone(to),
                    questions: [*from_question, *to_question],
                    wanted: Wanted {
                        networks: networks.clone(),
                        traffic: traffic.clone(),
                    },
                });
            }
        }
    }
    Ok(())
}

impl Index {
    fn build(
        mut entries: Vec<Entry>,
        numbered: Numbered,
        policy: &Policy,
        guests: &[Membership],
    ) -> Result<Self, TooLarge> {
        let blocks = entries.len().div_ceil(rows::BLOCK);
        refuse_too_many_bytes(&entries, policy, blocks)?;
        arrange(&mut entries);
        let mut store = RowStore::new(blocks);
        let mut known = Known::nothing();
        let asked: Vec<Asked<'_>> = entries
            .iter()
            .map(|entry| Asked {
                addresses: [&entry.from, &entry.to],
                nobody: entry.questions.map(|question| numbered.nobody_passes(question)),
            })
            .collect();
        let addresses = AddressTable::build(&asked, &mut store, &mut known);
        let wanted: Vec<&Wanted> = entries.iter().map(|entry| &entry.wanted).collect();
        let traffic = TrafficTable::build(&wanted, policy.networks.len(), &mut store, &mut known);
        store.finish();
        let asked: Vec<[Question; 2]> = entries.iter().map(|entry| entry.questions).collect();
        let questions = GuestQuestions::build(&asked, numbered, blocks, policy);
        let guests = GuestTable::build(&questions, &addresses, &traffic, &store, guests);
        let tests = wanted.iter().map(|wanted| wanted.traffic.flow);
        let flows = FlowRows::new(tests, policy.flow_tests.len(), blocks);
        let verdicts: Vec<EntryVerdict> = entries.iter().map(|entry| entry.verdict).collect();
        Ok(Self {
            fixed: Arc::new(Fixed {
                parts: entries.len().div_ceil(rows::PART * rows::WORD),
                store,
                addresses,
                traffic,
                questions,
                traits: Traits::of(&entries, blocks),
                verdicts,
            }),
            guests: Arc::new(guests),
            flows: flows.map(Arc::new),
        })
    }
}

/// Reckons what rows may need before any is made.
fn refuse_too_many_bytes(entries: &[Entry], policy: &Policy, blocks: usize) -> Result<(), TooLarge> {
    // Where a row differs from the one before it, by a block of its own.
    let ethertypes = entries.iter().filter_map(|entry| entry.wanted.traffic.ethertype);
    let kinds = ethertypes.collect::<std::collections::BTreeSet<_>>().len() + 1;
    let edges: usize = entries
        .iter()
        .map(|entry| {
            let ranges = |set: &AddressSet| 4 * (set.ip4.0.len() + set.ip6.0.len());
            ranges(&entry.from) + ranges(&entry.to) + 2 * kinds * entry.wanted.traffic.ports.len()
        })
        .sum();
    let whole = traffic::most_rows(
        entries.iter().map(|entry| &entry.wanted.traffic),
        policy.networks.len(),
    ) + rows_of_guests(policy);
    let of_edges = edges.saturating_mul(row_bytes(blocks) + size_of::<rows::Block>());
    let of_whole = whole.saturating_mul(row_bytes(blocks) + blocks * size_of::<rows::Block>());
    let needed = of_edges.saturating_add(of_whole);
    if needed > MOST_BYTES {
        return Err(TooLarge::Bytes {
            needed: needed.div_ceil(1 << 20),
        });
    }
    Ok(())
}
