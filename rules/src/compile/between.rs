//! Which rules packets between two sides can still meet: whether anybody there may use a key.
//!
//! Told from the rows that packets are looked up in, so that it is always about the rules that are in force. An entry is met
//! unless entries of rules before it that ask nothing of traffic take every packet of its parties; what only some packets of
//! the parties meet first takes none of it. So of what a packet can meet nothing is left out, and where rules of a container
//! take all traffic of a guest, what comes after them is not met.
//!
//! Read are only the words of rows in which such an entry of the network stands, or one that is meant. Guests are put together
//! of whom the same entries that ask nothing of traffic are true: however many guests there are, they are as many kinds as
//! containers and the like make of them, and only kinds are held against each other.

use std::collections::HashMap;
use std::net::IpAddr;

use foldhash::fast::FixedState;

use crate::model::{GuestIndex, NetworkIndex, RuleIndex, Traffic};

use super::rows::{Bits, PART, RowId, RowStore, WORD};
use super::{Entry, EntryVerdict, Fixed, Index, Ruleset};

const TCP: u8 = 6;
/// More pairs of kinds are not held against each other: everything counts as met.
const MOST_PAIRS: usize = 1 << 16;

/// An address that a guest may send from and be sent.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The guest.
    pub guest: GuestIndex,
    /// The address; any, of a router.
    pub address: Option<IpAddr>,
}

/// What is known of entries besides their rows.
#[derive(Debug)]
pub(crate) struct Traits {
    /// Those that ask nothing of traffic.
    whole: Bits,
    /// Those that what opens a TCP connection may meet.
    opening: Bits,
    /// Those that ask nothing of the address of `from` and of `to`.
    anywhere: [Bits; 2],
}

/// What guests of one network may meet, of some rules.
#[derive(Debug)]
pub struct Meeting<'a> {
    index: &'a Index,
    /// Words of rows.
    words: Vec<usize>,
    /// What entries there are in the network, in these words.
    of_network: Few,
    whole: Few,
    anywhere: [Few; 2],
}

/// Guests of one side.
#[derive(Debug)]
pub struct Side(Vec<Kind>);

/// Guests that the same entries take whole.
#[derive(Debug)]
struct Kind {
    is_ip4: bool,
    /// The entries that take them whole, as `from` and as `to`.
    whole: [Few; 2],
    /// Those that at least one of them may meet.
    any: [Few; 2],
}

/// Entries, by a bit each, in a few words of their rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Few(Box<[u64]>);

impl Few {
    fn and(&self, other: &Self) -> Self {
        Self(
            self.0
                .iter()
                .zip(&other.0)
                .map(|(one, other)| one & other)
                .collect(),
        )
    }

    fn add(&mut self, other: &Self) {
        self.0
            .iter_mut()
            .zip(&other.0)
            .for_each(|(one, other)| *one |= other);
    }
}

impl Traits {
    pub(super) fn of(entries: &[Entry], blocks: usize) -> Self {
        let those = |test: &dyn Fn(&Entry) -> bool| {
            let positions = entries.iter().enumerate().filter(|(_, entry)| test(entry));
            Bits::of(blocks, positions.map(|(position, _)| position))
        };
        let opens = |traffic: &Traffic| traffic.protocol.unwrap_or(TCP) == TCP && traffic.icmp_type.is_none();
        Self {
            whole: those(&|entry| entry.wanted.traffic == Traffic::default()),
            opening: those(&|entry| opens(&entry.wanted.traffic)),
            anywhere: [
                those(&|entry| entry.from.is_all()),
                those(&|entry| entry.to.is_all()),
            ],
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let [from, to] = &self.anywhere;
        let all = [&self.whole, &self.opening, from, to];
        all.iter().map(|bits| size_of_val(&*bits.0)).sum()
    }
}

impl Ruleset {
    /// What guests of a network may meet of the rules that are enforced and meant.
    pub fn meeting(&self, network: NetworkIndex, is_meant: impl Fn(RuleIndex) -> bool) -> Meeting<'_> {
        let index = &self.enforced;
        let Fixed { store, traits, .. } = &*index.fixed;
        let of_network = store.bits(index.fixed.traffic.network(network));
        let matters = |word: &usize| {
            let whole = of_network.word(*word) & traits.whole.word(*word) != 0;
            let mut verdicts = index.fixed.verdicts.iter().skip(word * WORD).take(WORD);
            whole || verdicts.any(|verdict| is_meant(verdict.rule()))
        };
        let words: Vec<usize> = (0..index.fixed.verdicts.len().div_ceil(WORD))
            .filter(matters)
            .collect();
        let few = |bits: &Bits| Few(words.iter().map(|word| bits.word(*word)).collect());
        Meeting {
            index,
            of_network: few(&of_network),
            whole: few(&traits.whole),
            anywhere: traits.anywhere.each_ref().map(few),
            words,
        }
    }
}

impl Meeting<'_> {
    /// Guests, any number of them.
    #[must_use]
    pub fn side(&self, seats: impl IntoIterator<Item = Seat>) -> Side {
        let mut kinds: HashMap<(bool, [Few; 2]), [Few; 2], FixedState> = HashMap::default();
        for seat in seats {
            let Some(any) = self.rows_of(seat) else { continue };
            let whole = self.whole(&any, seat);
            for is_ip4 in [true, false] {
                if seat.address.is_none_or(|address| address.is_ipv4() == is_ip4) {
                    let known = kinds
                        .entry((is_ip4, whole.clone()))
                        .or_insert_with(|| any.clone());
                    known.iter_mut().zip(&any).for_each(|(known, any)| known.add(any));
                }
            }
        }
        let kind = |((is_ip4, whole), any)| Kind { is_ip4, whole, any };
        Side(kinds.into_iter().map(kind).collect())
    }

    /// Whether a packet that a guest of one side sends to a guest of the other may meet one of these rules, which must be among
    /// those that were meant.
    pub fn may_meet(&self, ours: &Side, theirs: &Side, is_wanted: impl Fn(RuleIndex) -> bool) -> bool {
        let (Side(ours), Side(theirs)) = (ours, theirs);
        let mut pairs = ours
            .iter()
            .flat_map(|one| theirs.iter().map(move |other| (one, other)));
        ours.len() * theirs.len() > MOST_PAIRS
            || pairs.any(|(one, other)| one.is_ip4 == other.is_ip4 && self.meet(one, other, &is_wanted))
    }

    /// Whether guests of two kinds may meet one of these rules.
    fn meet(&self, one: &Kind, other: &Kind, is_wanted: impl Fn(RuleIndex) -> bool) -> bool {
        let fixed = &self.index.fixed;
        // Sent by `one`, and sent by `other`.
        let ends = [0, 1].map(|way| {
            let whole = one.whole[way].and(&other.whole[1 - way]);
            let verdicts = self.positions(&whole).map(|position| fixed.verdicts[position]);
            verdicts.min().unwrap_or(EntryVerdict::NONE).rule()
        });
        (0..2).any(|way| {
            let met = one.any[way].and(&other.any[1 - way]);
            self.positions(&met).any(|position| {
                let rule = fixed.verdicts[position].rule();
                // What opens a connection is no reply: rules the other way take none of it.
                rule <= ends[way]
                    && (rule <= ends[1 - way] || fixed.traits.opening.contains(position))
                    && is_wanted(rule)
            })
        })
    }

    /// The positions of entries, in their order.
    fn positions(&self, entries: &Few) -> impl Iterator<Item = usize> {
        let words = self.words.iter().zip(&entries.0);
        words.flat_map(|(number, word)| {
            let rest = std::iter::successors(Some(*word), |rest| Some(rest & rest.wrapping_sub(1)));
            let bits = rest.take_while(|rest| *rest != 0);
            bits.map(move |rest| number * WORD + rest.trailing_zeros() as usize)
        })
    }

    /// The entries that a guest may meet, as `from` and as `to`; `None` if it is none of the policy's.
    fn rows_of(&self, seat: Seat) -> Option<[Few; 2]> {
        let (fixed, guests) = (&*self.index.fixed, &*self.index.guests);
        let rows = guests.alone(&fixed.questions, seat.guest)?;
        let alone = seat.address.map(|_| fixed.addresses.alone(seat.address));
        Some([0, 1].map(|role| {
            let few = self.row(guests.store(), rows[role]).and(&self.of_network);
            match alone {
                Some(alone) => few.and(&self.row(&fixed.store, alone[role])),
                None => few,
            }
        }))
    }

    fn row(&self, store: &RowStore, row: RowId) -> Few {
        let word = |word: &usize| *store.word(store.part(row, word / PART), word % PART);
        Few(self.words.iter().map(word).collect())
    }

    /// Of the entries that a guest may meet the ones that take all it has.
    fn whole(&self, any: &[Few; 2], seat: Seat) -> [Few; 2] {
        [0, 1].map(|role| {
            let whole = any[role].and(&self.whole);
            match seat.address {
                Some(_) => whole,
                None => whole.and(&self.anywhere[role]),
            }
        })
    }
}
