//! Which rules packets between two sides can still meet: whether anybody there may use a key.
//!
//! Told from the rows that packets are looked up in, so that it is always about the rules that are in force. An entry is met
//! unless entries of rules before it that ask nothing of traffic take every packet of its parties; what only some packets of
//! the parties meet first takes none of it. So of what a packet can meet nothing is left out, and where rules of a container
//! take all traffic of a guest, what comes after them is not met.
//!
//! Guests are put together of whom the same such entries are true: however many guests there are, they are as many kinds as
//! containers and the like make of them, and only kinds are held against each other.

use std::collections::HashMap;
use std::net::IpAddr;

use foldhash::fast::FixedState;

use crate::model::{GuestIndex, NetworkIndex, RuleIndex, Traffic};

use super::rows::Bits;
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
pub(crate) struct Kinds {
    /// Those that ask nothing of traffic.
    whole: Bits,
    /// Those that what opens a TCP connection may meet.
    opening: Bits,
    /// Those that ask nothing of the address of `from` and of `to`.
    anywhere: [Bits; 2],
}

/// Two sides of one network.
#[derive(Debug)]
pub struct Between<'a> {
    fixed: &'a Fixed,
    sides: [Vec<Kind>; 2],
}

/// Guests of one side that the same entries take whole.
#[derive(Debug)]
struct Kind {
    is_ip4: bool,
    /// The entries that take them whole, as `from` and as `to`.
    whole: [Bits; 2],
    /// Those that at least one of them may meet.
    any: [Bits; 2],
}

impl Kinds {
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
    /// What packets of one network can meet that a guest of one side sends to a guest of the other.
    pub fn between(
        &self,
        network: NetworkIndex,
        ours: impl IntoIterator<Item = Seat>,
        theirs: impl IntoIterator<Item = Seat>,
    ) -> Between<'_> {
        let index = &self.enforced;
        Between {
            fixed: &index.fixed,
            sides: [index.kinds(network, ours), index.kinds(network, theirs)],
        }
    }
}

impl Index {
    fn kinds(&self, network: NetworkIndex, seats: impl IntoIterator<Item = Seat>) -> Vec<Kind> {
        let mut kinds: HashMap<(bool, [Bits; 2]), [Bits; 2], FixedState> = HashMap::default();
        for seat in seats {
            let (any, whole) = self.rows_of(network, seat);
            for is_ip4 in [true, false] {
                if seat.address.is_some_and(|address| address.is_ipv4() != is_ip4) {
                    continue;
                }
                let blocks = self.fixed.store.blocks_per_row();
                let known = kinds
                    .entry((is_ip4, whole.clone()))
                    .or_insert_with(|| [Bits::none(blocks), Bits::none(blocks)]);
                known
                    .iter_mut()
                    .zip(&any)
                    .for_each(|(known, bits)| known.or(bits));
            }
        }
        let kind = |((is_ip4, whole), any)| Kind { is_ip4, whole, any };
        kinds.into_iter().map(kind).collect()
    }

    /// The entries that a guest may meet, and of these the ones that take all it has, as `from` and as `to`.
    fn rows_of(&self, network: NetworkIndex, seat: Seat) -> ([Bits; 2], [Bits; 2]) {
        let (fixed, guests) = (&*self.fixed, &*self.guests);
        let Some(rows) = guests.alone(&fixed.questions, seat.guest) else {
            let nothing = || [0; 2].map(|_| Bits::none(fixed.store.blocks_per_row()));
            return (nothing(), nothing());
        };
        let of_network = fixed.store.bits(fixed.traffic.network(network));
        let mut any = rows.map(|row| guests.store().bits(row));
        for (role, bits) in any.iter_mut().enumerate() {
            bits.keep(&of_network);
            if seat.address.is_some() {
                bits.keep(&fixed.store.bits(fixed.addresses.alone(seat.address)[role]));
            }
        }
        let mut whole = any.clone();
        for (bits, anywhere) in whole.iter_mut().zip(&fixed.kinds.anywhere) {
            bits.keep(&fixed.kinds.whole);
            if seat.address.is_none() {
                bits.keep(anywhere);
            }
        }
        (any, whole)
    }
}

impl Between<'_> {
    /// Whether a packet, sent either way, may meet a rule of those that are meant.
    pub fn may_meet(&self, is_meant: impl Fn(RuleIndex) -> bool) -> bool {
        let [ours, theirs] = &self.sides;
        let meant = self.positions(is_meant);
        let pairs = || {
            let all = ours
                .iter()
                .flat_map(|one| theirs.iter().map(move |other| (one, other)));
            all.filter(|(one, other)| one.is_ip4 == other.is_ip4)
        };
        meant.positions().next().is_some()
            && (ours.len() * theirs.len() > MOST_PAIRS
                || pairs().any(|(one, other)| self.meet(one, other, &meant)))
    }

    /// Whether guests of two kinds may meet one of these entries.
    fn meet(&self, one: &Kind, other: &Kind, meant: &Bits) -> bool {
        // Sent by `one`, and sent by `other`.
        let ends = [0, 1].map(|way| self.first(&both(&one.whole[way], &other.whole[1 - way])));
        (0..2).any(|way| {
            let mut met = both(&one.any[way], &other.any[1 - way]);
            met.keep(meant);
            met.positions().any(|position| {
                let rule = self.fixed.verdicts[position].rule();
                // What opens a connection is no reply: rules the other way take none of it.
                rule <= ends[way].rule()
                    && (rule <= ends[1 - way].rule() || self.fixed.kinds.opening.contains(position))
            })
        })
    }

    /// The first rule of these entries.
    fn first(&self, entries: &Bits) -> EntryVerdict {
        let verdicts = entries.positions().map(|position| self.fixed.verdicts[position]);
        verdicts.min().unwrap_or(EntryVerdict::NONE)
    }

    /// The entries of rules that are meant, as far as somebody of each side may meet them.
    fn positions(&self, is_meant: impl Fn(RuleIndex) -> bool) -> Bits {
        let blocks = self.fixed.store.blocks_per_row();
        let [ours, theirs] = self.sides.each_ref().map(|side| {
            let mut all = [Bits::none(blocks), Bits::none(blocks)];
            for kind in side {
                all.iter_mut().zip(&kind.any).for_each(|(all, any)| all.or(any));
            }
            all
        });
        let mut met = both(&ours[0], &theirs[1]);
        met.or(&both(&ours[1], &theirs[0]));
        let meant = met
            .positions()
            .filter(|position| is_meant(self.fixed.verdicts[*position].rule()));
        Bits::of(blocks, meant)
    }
}

/// What is in both.
fn both(one: &Bits, other: &Bits) -> Bits {
    let mut both = one.clone();
    both.keep(other);
    both
}
