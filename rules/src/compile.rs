//! Policy to classifier: selectors become sets, so that a look-up compares numbers only.

use crate::classify::Action;
use crate::facts::Party;
use crate::model::{Cidr, GuestIndex, NetworkIndex, Policy, Rule, Selector, Term};

use std::ops::RangeInclusive;

/// The rules in the form that [`crate::classify`] walks: a plain list, first match first.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    pub(crate) rules: Vec<Compiled>,
}

/// One rule.
#[derive(Clone, Debug)]
pub(crate) struct Compiled {
    pub(crate) from: Parties,
    pub(crate) to: Parties,
    pub(crate) ethertype: Option<u16>,
    pub(crate) protocol: Option<u8>,
    pub(crate) ports: Vec<RangeInclusive<u16>>,
    pub(crate) icmp_type: Option<u8>,
    pub(crate) action: Action,
}

/// Parties that a selector means: one of the groups, or anybody.
#[derive(Clone, Debug)]
pub(crate) enum Parties {
    Anybody,
    OneOf(Vec<Group>),
}

/// Parties for which every field that is there holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    network: Option<NetworkIndex>,
    guests: Option<GuestSet>,
    cidrs: Vec<Cidr>,
}

/// A set of guests, a bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GuestSet(Vec<u64>);

impl GuestSet {
    fn insert(&mut self, guest: GuestIndex) {
        let word = guest.index() / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (guest.index() % 64);
    }

    fn contains(&self, guest: GuestIndex) -> bool {
        self.0
            .get(guest.index() / 64)
            .is_some_and(|word| word & 1 << (guest.index() % 64) != 0)
    }

    fn intersect(&mut self, other: &GuestSet) {
        for (number, word) in self.0.iter_mut().enumerate() {
            *word &= other.0.get(number).copied().unwrap_or(0);
        }
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

impl Parties {
    #[inline]
    pub(crate) fn contains(&self, network: NetworkIndex, party: &Party) -> bool {
        match self {
            Parties::Anybody => true,
            Parties::OneOf(groups) => groups.iter().any(|group| group.contains(network, party)),
        }
    }

    /// Whether nobody can ever be in it: a label or guest that does not exist.
    pub(crate) fn is_nobody(&self) -> bool {
        match self {
            Parties::Anybody => false,
            Parties::OneOf(groups) => groups
                .iter()
                .all(|group| group.guests.as_ref().is_some_and(GuestSet::is_empty)),
        }
    }
}

impl Group {
    #[inline]
    fn contains(&self, network: NetworkIndex, party: &Party) -> bool {
        self.network.is_none_or(|wanted| wanted == network)
            && self
                .guests
                .as_ref()
                .is_none_or(|set| party.guest.is_some_and(|guest| set.contains(guest)))
            && self
                .cidrs
                .iter()
                .all(|cidr| party.address.is_some_and(|address| cidr.contains(address)))
    }

    fn restrict(&mut self, set: GuestSet) {
        match &mut self.guests {
            Some(guests) => guests.intersect(&set),
            None => self.guests = Some(set),
        }
    }
}

/// Compiles a policy.
#[must_use]
pub fn compile(policy: &Policy) -> Ruleset {
    Ruleset {
        rules: policy
            .rules
            .iter()
            .map(|rule| compile_rule(rule, policy))
            .collect(),
    }
}

fn compile_rule(rule: &Rule, policy: &Policy) -> Compiled {
    Compiled {
        from: parties(&rule.from, policy),
        to: parties(&rule.to, policy),
        ethertype: rule.ethertype,
        protocol: rule.protocol,
        ports: rule.ports.clone(),
        icmp_type: rule.icmp_type,
        action: rule.action,
    }
}

fn parties(selector: &Selector, policy: &Policy) -> Parties {
    match selector {
        Selector::Any => Parties::Anybody,
        Selector::All(terms) => Parties::OneOf(vec![group(terms, policy)]),
        Selector::OneOf(all) => {
            let mut groups = Vec::new();
            for one in all {
                match parties(one, policy) {
                    Parties::Anybody => return Parties::Anybody,
                    Parties::OneOf(more) => groups.extend(more),
                }
            }
            Parties::OneOf(groups)
        }
    }
}

fn group(terms: &[Term], policy: &Policy) -> Group {
    let mut group = Group::default();
    for term in terms {
        match term {
            Term::Network(network) => group.network = Some(*network),
            Term::Cidr(cidr) => group.cidrs.push(*cidr),
            Term::Guest(guest) => {
                let mut set = GuestSet::default();
                set.insert(*guest);
                group.restrict(set);
            }
            Term::Label { name, value } => {
                let mut set = GuestSet::default();
                for (number, guest) in policy.guests.iter().enumerate() {
                    if guest.labels.get(name) == Some(value) {
                        set.insert(GuestIndex(number as u32));
                    }
                }
                group.restrict(set);
            }
        }
    }
    group
}
