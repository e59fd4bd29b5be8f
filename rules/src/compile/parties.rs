//! Selectors as alternatives, each of which asks network, guest and address apart from each other.

use std::collections::BTreeSet;

use crate::membership::Membership;
use crate::model::{
    ContainerIndex, CriteriaIndex, GuestIndex, LabelTest, NetworkIndex, Policy, Selector, TemplateIndex, Term,
};

use super::address_set::AddressSet;

/// More alternatives than a selector may come to.
pub(crate) const MOST: usize = 256;

/// Parties for which every field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parties {
    pub(crate) networks: Networks,
    /// Sorted, no term twice; all hold.
    pub(crate) guest: Vec<GuestTerm>,
    pub(crate) addresses: AddressSet,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Networks {
    Only(BTreeSet<NetworkIndex>),
    AllBut(BTreeSet<NetworkIndex>),
}

/// What is asked of the guest itself, or that it is not so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GuestTerm {
    pub(crate) what: GuestTest,
    pub(crate) negated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum GuestTest {
    Is(GuestIndex),
    Label(LabelTest),
    Container(ContainerIndex),
    Criteria(CriteriaIndex),
    Subject(TemplateIndex),
}

impl Networks {
    pub(crate) fn all() -> Self {
        Networks::AllBut(BTreeSet::new())
    }

    pub(crate) fn contains(&self, network: NetworkIndex) -> bool {
        match self {
            Networks::Only(list) => list.contains(&network),
            Networks::AllBut(list) => !list.contains(&network),
        }
    }

    pub(crate) fn intersection(&self, other: &Self) -> Self {
        match (self, other) {
            (Networks::Only(one), two) | (two, Networks::Only(one)) => Networks::Only(
                one.iter()
                    .filter(|network| two.contains(**network))
                    .copied()
                    .collect(),
            ),
            (Networks::AllBut(one), Networks::AllBut(two)) => Networks::AllBut(one | two),
        }
    }

    /// The first of a list of networks that are meant.
    pub(crate) fn first(&self) -> Option<NetworkIndex> {
        match self {
            Networks::Only(list) => list.first().copied(),
            Networks::AllBut(_) => None,
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Networks::Only(list) if list.is_empty())
    }
}

impl GuestTerm {
    /// Whether a guest passes; `None` is a party that is no known guest.
    pub(crate) fn passes(&self, guest: Option<(GuestIndex, &Membership)>) -> bool {
        let is_so = guest.is_some_and(|(index, guest)| match &self.what {
            GuestTest::Is(wanted) => *wanted == index,
            GuestTest::Label(test) => test.passes(guest.labels.get(&test.name).map(String::as_str)),
            GuestTest::Container(container) => guest.containers.contains(container),
            GuestTest::Criteria(criteria) => guest.holds(*criteria),
            GuestTest::Subject(template) => guest.subject_of.contains(template),
        });
        is_so != self.negated
    }
}

impl Parties {
    fn anybody() -> Self {
        Self {
            networks: Networks::all(),
            guest: Vec::new(),
            addresses: AddressSet::all(),
        }
    }

    fn intersection(&self, other: &Self) -> Self {
        let mut guest = self.guest.clone();
        for term in &other.guest {
            if !guest.contains(term) {
                guest.push(term.clone());
            }
        }
        Self {
            networks: self.networks.intersection(&other.networks),
            guest,
            addresses: self.addresses.intersection(&other.addresses),
        }
    }

    fn is_nobody(&self) -> bool {
        let contradicts = |term: &GuestTerm| {
            let opposite = GuestTerm {
                negated: !term.negated,
                ..term.clone()
            };
            self.guest.contains(&opposite)
        };
        self.networks.is_empty() || self.addresses.is_empty() || self.guest.iter().any(contradicts)
    }
}

/// The alternatives of a selector; `None` if they are more than [`MOST`].
pub(crate) fn alternatives(selector: &Selector, policy: &Policy) -> Option<Vec<Parties>> {
    of_selector(selector, policy, false)
}

fn of_selector(selector: &Selector, policy: &Policy, negated: bool) -> Option<Vec<Parties>> {
    match selector {
        Selector::Any if negated => Some(Vec::new()),
        Selector::Any => Some(vec![Parties::anybody()]),
        Selector::All(terms) => combine(terms.iter().map(|term| of_term(term, policy, negated)), negated),
        Selector::OneOf(list) => combine(list.iter().map(|one| of_selector(one, policy, negated)), !negated),
    }
}

/// Each of them, or at least one.
fn combine(parts: impl Iterator<Item = Option<Vec<Parties>>>, either: bool) -> Option<Vec<Parties>> {
    if either {
        let mut sum = Sum::default();
        for part in parts {
            part?.into_iter().try_for_each(|one| sum.add(one))?;
        }
        return Some(sum.finish());
    }
    let mut product = vec![Parties::anybody()];
    for part in parts {
        let part = part?;
        let mut sum = Sum::default();
        for left in &product {
            for right in &part {
                sum.add(left.intersection(right))?;
            }
        }
        product = sum.finish();
    }
    Some(product)
}

/// Alternatives; those that differ in their addresses only are one.
#[derive(Default)]
struct Sum(Vec<(Parties, Vec<AddressSet>)>);

impl Sum {
    /// `None` if they become too many.
    fn add(&mut self, one: Parties) -> Option<()> {
        if one.is_nobody() {
            return Some(());
        }
        let alike = |(other, _): &&mut (Parties, Vec<AddressSet>)| {
            other.networks == one.networks && other.guest == one.guest
        };
        let full = self.0.len() == MOST;
        match self.0.iter_mut().find(alike) {
            Some((_, more)) => more.push(one.addresses),
            None if full => return None,
            None => self.0.push((one, Vec::new())),
        }
        Some(())
    }

    fn finish(self) -> Vec<Parties> {
        let merged = |(mut one, more): (Parties, Vec<AddressSet>)| {
            if !more.is_empty() {
                one.addresses = AddressSet::union(std::iter::once(&one.addresses).chain(&more));
            }
            one
        };
        self.0.into_iter().map(merged).collect()
    }
}

fn of_term(term: &Term, policy: &Policy, negated: bool) -> Option<Vec<Parties>> {
    let mut parties = Parties::anybody();
    let what = match term {
        Term::Not(selector) => return of_selector(selector, policy, !negated),
        Term::Group(group) => return of_selector(&policy.groups[group.index()].members, policy, negated),
        Term::Network(network) => {
            let only = BTreeSet::from([*network]);
            parties.networks = if negated {
                Networks::AllBut(only)
            } else {
                Networks::Only(only)
            };
            return Some(vec![parties]);
        }
        Term::Cidr(cidr) => {
            let inside = AddressSet::of(cidr);
            parties.addresses = if negated { inside.complement() } else { inside };
            return Some(vec![parties]);
        }
        Term::Guest(guest) => GuestTest::Is(*guest),
        Term::Label(test) => GuestTest::Label(test.clone()),
        Term::Container(container) => GuestTest::Container(*container),
        Term::Criteria(criteria) => GuestTest::Criteria(*criteria),
        Term::Subject(template) => GuestTest::Subject(*template),
    };
    parties.guest.push(GuestTerm { what, negated });
    Some(vec![parties])
}
