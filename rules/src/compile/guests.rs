//! Guests to rows: which entries want this guest as `from` or `to`. The only part that changes when something happens to
//! a guest, a few rows a guest.
//!
//! A guest has its port's addresses, in the network of the port, so for each of them one row holds what entries ask of the guest,
//! of the address and of the network: a packet of a guest costs no search of addresses. Any other address (a router's) is
//! looked up beside the guest.

use std::collections::HashMap;
use std::net::IpAddr;

use foldhash::fast::FixedState;

use crate::facts::Party;
use crate::membership::Membership;
use crate::model::{GuestIndex, NetworkIndex, Policy};

use super::Fixed;
use super::addresses::{AddressTable, Roles};
use super::parties::GuestTerm;
use super::rows::{Bits, Known, RowId, RowStore};
use super::traffic::TrafficTable;

/// What entries ask of guests; the same as long as the policy is.
#[derive(Debug)]
pub(crate) struct GuestQuestions {
    /// Each with the entries that ask it of `from` and of `to`.
    asked: Vec<(Vec<GuestTerm>, [Vec<u32>; 2])>,
    /// Entries that ask nothing.
    unasked: [Bits; 2],
    /// The addresses of each guest: from where to where in `own`.
    first: Vec<u32>,
    /// Of one guest after the other: its ports', and none of each port.
    own: Vec<Own>,
}

/// An address that a guest has in a network.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Own {
    network: NetworkIndex,
    address: Option<IpAddr>,
}

/// The answers: for each guest, rows of its addresses, then of itself alone.
#[derive(Clone, Debug)]
pub(crate) struct GuestTable {
    store: RowStore,
}

/// Where a packet's party stands in the table.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// No known guest.
    Nobody,
    /// A guest with an address of its own, in the network where it has it: the rows are about these, too.
    Whole(Roles),
    /// A guest with another's address, or in another network: the rows are about the guest alone.
    Alone(Roles),
}

/// What the rows of guests are made of.
struct Asked<'a> {
    questions: &'a GuestQuestions,
    addresses: &'a AddressTable,
    traffic: &'a TrafficTable,
    fixed: &'a RowStore,
}

/// The number of a list of terms among those that are asked.
pub(crate) type Question = u32;

/// Numbers lists of terms.
#[derive(Default)]
pub(crate) struct Numbered {
    lists: Vec<Vec<GuestTerm>>,
    known: HashMap<Vec<GuestTerm>, Question, FixedState>,
}

impl Numbered {
    /// The number of this list; 0 is of the empty one.
    pub(crate) fn number(&mut self, terms: &[GuestTerm]) -> Question {
        if terms.is_empty() {
            return 0;
        }
        if let Some(known) = self.known.get(terms) {
            return *known;
        }
        self.lists.push(terms.to_vec());
        let number = self.lists.len() as Question;
        self.known.insert(terms.to_vec(), number);
        number
    }

    /// Whether a party that is no known guest passes.
    pub(crate) fn nobody_passes(&self, question: Question) -> bool {
        question == 0
            || self.lists[question as usize - 1]
                .iter()
                .all(|term| term.passes(None))
    }
}

/// Rows of all guests.
pub(crate) fn rows_of_guests(policy: &Policy) -> usize {
    let ports = policy
        .ports
        .iter()
        .map(|port| port.addresses.len())
        .sum::<usize>();
    2 * (ports + policy.ports.len() + policy.guests.len())
}

impl GuestQuestions {
    pub(crate) fn build(
        entries: &[[Question; 2]],
        numbered: Numbered,
        blocks: usize,
        policy: &Policy,
    ) -> Self {
        let mut asked: Vec<(Vec<GuestTerm>, [Vec<u32>; 2])> = numbered
            .lists
            .into_iter()
            .map(|terms| (terms, Default::default()))
            .collect();
        let mut unasked = [Bits::none(blocks), Bits::none(blocks)];
        for (position, roles) in entries.iter().enumerate() {
            for (role, question) in roles.iter().enumerate() {
                match question.checked_sub(1) {
                    None => unasked[role].set(position),
                    Some(question) => asked[question as usize].1[role].push(position as u32),
                }
            }
        }
        let (mut first, mut all) = (vec![0], Vec::new());
        for guest in &policy.guests {
            let ports = guest
                .ports
                .iter()
                .filter_map(|port| policy.ports.get(port.index()));
            let mut own: Vec<Own> = ports
                .flat_map(|port| {
                    let addresses = port.addresses.iter().copied().map(Some).chain([None]);
                    addresses.map(|address| Own {
                        network: port.network,
                        address,
                    })
                })
                .collect();
            own.sort_unstable();
            own.dedup();
            all.extend(own);
            first.push(all.len() as u32);
        }
        Self {
            asked,
            unasked,
            first,
            own: all,
        }
    }

    /// What a guest answers, in both roles.
    fn answer(&self, guest: GuestIndex, now: &Membership) -> [Bits; 2] {
        let mut bits = self.unasked.clone();
        for (terms, roles) in &self.asked {
            if terms.iter().all(|term| term.passes(Some((guest, now)))) {
                for (bits, positions) in bits.iter_mut().zip(roles) {
                    positions.iter().for_each(|position| bits.set(*position as usize));
                }
            }
        }
        bits
    }

    /// Where a guest's addresses stand. Its own row is behind them, and each guest before it has one too.
    #[inline]
    fn places(&self, guest: GuestIndex) -> Option<(usize, usize)> {
        match self.first.get(guest.index()..guest.index() + 2) {
            Some(&[first, end]) => Some((first as usize, end as usize)),
            _ => None,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        let positions: usize = self
            .asked
            .iter()
            .map(|(_, [from, to])| from.len() + to.len())
            .sum();
        positions * 4
            + self.unasked[0].0.len() * 128
            + self.first.len() * 4
            + self.own.len() * size_of::<Own>()
    }
}

impl GuestTable {
    /// The table of all guests; those of which nothing is said are as good as nobody.
    pub(crate) fn build(
        questions: &GuestQuestions,
        addresses: &AddressTable,
        traffic: &TrafficTable,
        fixed: &RowStore,
        guests: &[Membership],
    ) -> Self {
        let mut store = RowStore::new(fixed.blocks_per_row());
        let rows = 2 * (questions.own.len() + questions.first.len() - 1);
        (0..rows).for_each(|_| {
            store.reserve();
        });
        let mut table = Self { store };
        let mut known = Known::nothing();
        let asked = Asked {
            questions,
            addresses,
            traffic,
            fixed,
        };
        for (number, guest) in (0u32..).zip(guests) {
            table.answer(&asked, Some(&mut known), GuestIndex(number), guest);
        }
        table.store.finish();
        table
    }

    /// What has changed for one guest.
    pub(crate) fn update(&mut self, fixed: &Fixed, guest: GuestIndex, now: &Membership) {
        let asked = Asked {
            questions: &fixed.questions,
            addresses: &fixed.addresses,
            traffic: &fixed.traffic,
            fixed: &fixed.store,
        };
        self.answer(&asked, None, guest, now);
        self.store.tidy();
    }

    fn answer(
        &mut self,
        asked: &Asked<'_>,
        mut known: Option<&mut Known>,
        guest: GuestIndex,
        now: &Membership,
    ) {
        let Some((first, end)) = asked.questions.places(guest) else {
            return;
        };
        let answer = asked.questions.answer(guest, now);
        for (role, bits) in answer.iter().enumerate() {
            for (place, own) in (first..).zip(&asked.questions.own[first..end]) {
                let mut of_own = asked.fixed.bits(asked.addresses.alone(own.address)[role]);
                let of_network = asked.fixed.bits(asked.traffic.network(own.network));
                for ((one, guest), network) in of_own.0.iter_mut().zip(&bits.0).zip(&of_network.0) {
                    *one = one.and(guest).and(network);
                }
                let row = row(place + guest.index())[role];
                self.store.overwrite(known.as_deref_mut(), row, row, &of_own);
            }
            let row = row(end + guest.index())[role];
            self.store.overwrite(known.as_deref_mut(), row, row, bits);
        }
    }

    #[inline]
    pub(crate) fn find(&self, questions: &GuestQuestions, party: &Party, network: NetworkIndex) -> Found {
        let Some(guest) = party.guest else {
            return Found::Nobody;
        };
        let Some((first, end)) = questions.places(guest) else {
            return Found::Nobody;
        };
        for (place, own) in (first..).zip(&questions.own[first..end]) {
            if own.network == network && own.address == party.address {
                return Found::Whole(row(place + guest.index()));
            }
        }
        Found::Alone(row(end + guest.index()))
    }

    /// The rows of a guest, whatever its address; `None` if it is none of the policy's.
    pub(crate) fn alone(&self, questions: &GuestQuestions, guest: GuestIndex) -> Option<Roles> {
        let (_, end) = questions.places(guest)?;
        Some(row(end + guest.index()))
    }

    #[inline]
    pub(crate) fn store(&self) -> &RowStore {
        &self.store
    }

    pub(crate) fn bytes(&self) -> usize {
        self.store.bytes()
    }
}

/// The rows of a place, in both roles.
#[inline]
fn row(place: usize) -> Roles {
    let row = 2 * place as RowId;
    [row, row + 1]
}
