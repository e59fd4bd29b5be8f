//! Addresses to rows: the ranges of all entries cut each family into intervals, in each of which the same entries hold.
//!
//! A look-up reads one slot of a table over the 10 bits in which the ranges differ first, then one of the parts that the slot is cut
//! into, which says between which intervals the address lies, then counts which of these begin before it: it compares a window of a
//! fixed size, without branches, which the compiler makes wide. A slot has as many parts as it takes for one window to do: where a
//! tenant's guests are, thousands of intervals begin in one slot, and slots of one size leave a search among those, which costs
//! more. So does a tree of such windows (20 cycles a packet with all memory hot).

use std::net::IpAddr;

use super::address_set::{AddressSet, MAX_IP4, MAX_IP6, Ranges};
use super::rows::{Bits, Known, RowId, RowStore, Sweep};

/// The rows of a party as `from` and as `to`.
pub(crate) type Roles = [RowId; 2];

/// The rows of an address.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AddressRows {
    /// Of a party that is no known guest: what entries ask of guests is in them.
    pub(crate) nobody: Roles,
    /// Of the address alone.
    pub(crate) alone: Roles,
}

/// One entry's addresses, and whether a party that is no known guest passes, of `from` and `to`.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) addresses: [&'a AddressSet; 2],
    pub(crate) nobody: [bool; 2],
}

#[derive(Debug)]
pub(crate) struct AddressTable {
    ip4: Intervals<u32>,
    ip6: Intervals<u128>,
    none: AddressRows,
}

#[derive(Debug)]
struct Intervals<A> {
    /// Where each interval begins; the first at 0. Behind the last is room for a window.
    starts: Vec<A>,
    nobody: Vec<Roles>,
    alone: Vec<Roles>,
    /// Of one size.
    slots: Vec<Slot>,
    /// The interval in which each part of a slot begins; one more than there are parts.
    parts: Vec<u32>,
    /// The first address of the slots, and bits of an address within a slot.
    window: A,
    shift: u32,
}

/// Where a slot's parts stand, and bits of an address within a part.
#[derive(Debug)]
struct Slot {
    first: u32,
    shift: u32,
}

const SLOT_BITS: u32 = 10;
/// Starts that are compared at once.
const WINDOW: usize = 16;
/// For each interval that begins in a slot, it may have up to twice as many parts.
const PARTS: usize = 2;

impl AddressTable {
    pub(crate) fn build(entries: &[Asked<'_>], store: &mut RowStore, known: &mut Known) -> Self {
        let mut none = AddressRows::default();
        for role in 0..2 {
            let mut row = |nobody: bool| {
                let holds = |entry: &Asked<'_>| entry.addresses[role].none && (entry.nobody[role] || !nobody);
                let positions = entries.iter().enumerate().filter(|(_, entry)| holds(entry));
                let bits = Bits::of(store.blocks_per_row(), positions.map(|(position, _)| position));
                store.intern(known, &bits)
            };
            (none.nobody[role], none.alone[role]) = (row(true), row(false));
        }
        let (starts, rows) = intervals(entries, |set| &set.ip4, MAX_IP4, store, known);
        let starts = starts.into_iter().map(|start| start as u32).collect();
        let ip4 = Intervals::new(starts, rows);
        let (starts, rows) = intervals(entries, |set| &set.ip6, MAX_IP6, store, known);
        let ip6 = Intervals::new(starts, rows);
        Self { ip4, ip6, none }
    }

    /// The rows of a party with this address that is no known guest: what entries ask of guests is in them.
    #[inline]
    pub(crate) fn nobody(&self, address: Option<IpAddr>) -> Roles {
        self.roles(address, [&self.ip4.nobody, &self.ip6.nobody], self.none.nobody)
    }

    /// The rows of the address alone.
    #[inline]
    pub(crate) fn alone(&self, address: Option<IpAddr>) -> Roles {
        self.roles(address, [&self.ip4.alone, &self.ip6.alone], self.none.alone)
    }

    /// Those of the interval of an address, or of what has none.
    #[inline]
    fn roles(&self, address: Option<IpAddr>, [ip4, ip6]: [&[Roles]; 2], none: Roles) -> Roles {
        match address {
            Some(IpAddr::V4(address)) => ip4[self.ip4.interval(address.to_bits())],
            Some(IpAddr::V6(address)) => ip6[self.ip6.interval(address.to_bits())],
            None => none,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.ip4.bytes() + self.ip6.bytes()
    }
}

/// Where intervals begin, and the rows of each.
fn intervals(
    entries: &[Asked<'_>],
    family: impl Fn(&AddressSet) -> &Ranges,
    max: u128,
    store: &mut RowStore,
    known: &mut Known,
) -> (Vec<u128>, Vec<AddressRows>) {
    // Where an entry's bit of a role changes.
    let mut edges: Vec<(u128, u8, u32)> = Vec::new();
    for (position, entry) in (0u32..).zip(entries) {
        for (role, set) in (0u8..).zip(entry.addresses) {
            for &(first, last) in &family(set).0 {
                edges.push((first, role, position));
                // Behind the last address of all nothing is ever looked up.
                edges.extend((last < max).then_some((last.wrapping_add(1), role, position)));
            }
        }
    }
    edges.sort_unstable_by_key(|edge| edge.0);
    let empty = || Sweep::new(Bits::none(store.blocks_per_row()));
    let mut sweeps = [[empty(), empty()], [empty(), empty()]];
    let (mut starts, mut rows) = (Vec::new(), Vec::new());
    let mut current = AddressRows::default();
    let mut next = edges.iter().peekable();
    let (mut start, mut changed) = (0, [true; 2]);
    loop {
        while let Some((_, role, position)) = next.next_if(|edge| edge.0 == start) {
            let (role, position) = (usize::from(*role), *position as usize);
            let [nobody, alone] = &mut sweeps[role];
            alone.flip(position);
            if entries[position].nobody[role] {
                nobody.flip(position);
            }
            changed[role] = true;
        }
        for role in 0..2 {
            if std::mem::take(&mut changed[role]) {
                let [nobody, alone] = &mut sweeps[role];
                current.nobody[role] = store.intern_sweep(known, nobody);
                current.alone[role] = store.intern_sweep(known, alone);
            }
        }
        if rows.last() != Some(&current) {
            starts.push(start);
            rows.push(current);
        }
        match next.peek() {
            Some(edge) => start = edge.0,
            None => return (starts, rows),
        }
    }
}

impl<A: Copy + PartialOrd + Into<u128> + TryFrom<u128> + Default> Intervals<A> {
    fn new(mut starts: Vec<A>, rows: Vec<AddressRows>) -> Self {
        let (lowest, highest): (u128, u128) = match starts.as_slice() {
            [_, lowest, .., highest] => ((*lowest).into(), (*highest).into()),
            [_, only] => ((*only).into(), (*only).into()),
            _ => (0, 0),
        };
        // The bits from the first in which two of the starts differ.
        let span = 128 - (lowest ^ highest).leading_zeros();
        let shift = span.saturating_sub(SLOT_BITS);
        let window = lowest
            .checked_shr(span)
            .unwrap_or(0)
            .checked_shl(span)
            .unwrap_or(0);
        let (mut slots, mut parts) = (Vec::new(), Vec::new());
        let mut begun = starts.as_slice();
        for slot in 0..1u128 << (span - shift) {
            let first = window + (slot << shift);
            let last = first + ((1u128 << shift) - 1);
            begun = &begun[begun.partition_point(|start| (*start).into() <= first)..];
            let within = begun.partition_point(|start| (*start).into() <= last);
            let before = starts.len() - begun.len() - 1;
            let (within, offset) = (&begun[..within], |start: &A| (*start).into() - first);
            // As few parts as leave each to one window, unless that takes too many for the intervals that there are.
            let most = shift.min(usize::BITS - (PARTS * within.len()).leading_zeros());
            let fits = |bits: &u32| {
                let part = |start: &A| offset(start) >> (shift - bits);
                within
                    .chunk_by(|one, other| part(one) == part(other))
                    .all(|part| part.len() <= WINDOW)
            };
            let bits = (0..most).find(fits).unwrap_or(most);
            slots.push(Slot {
                first: parts.len() as u32,
                shift: shift - bits,
            });
            for part in 0..1u128 << bits {
                let begins = part << (shift - bits);
                parts.push((before + within.partition_point(|start| offset(start) <= begins)) as u32);
            }
        }
        parts.push(starts.len() as u32 - 1);
        let behind = starts.last().copied().unwrap_or_default();
        starts.extend([behind; WINDOW]);
        Self {
            starts,
            nobody: rows.iter().map(|rows| rows.nobody).collect(),
            alone: rows.iter().map(|rows| rows.alone).collect(),
            slots,
            parts,
            window: A::try_from(window).unwrap_or_default(),
            shift,
        }
    }

    fn bytes(&self) -> usize {
        self.starts.len() * size_of::<A>()
            + self.nobody.len() * size_of::<AddressRows>()
            + self.slots.len() * size_of::<Slot>()
            + self.parts.len() * 4
    }

    /// The interval of an address, of those from `low` to `high`, in the first of which or behind it the address lies.
    #[inline]
    fn search(&self, low: usize, high: usize, address: A) -> usize {
        let begun = match self.starts[low + 1..].first_chunk::<WINDOW>() {
            // All begin at or before the address up to the one that is asked for, and none does behind it.
            Some(window) if high - low <= WINDOW => {
                let begun: u32 = window.iter().map(|start| u32::from(*start <= address)).sum();
                (begun as usize).min(high - low)
            }
            _ => self.starts[low + 1..=high].partition_point(|start| *start <= address),
        };
        low + begun
    }
}

impl Intervals<u32> {
    #[inline]
    fn interval(&self, address: u32) -> usize {
        let Some(offset) = address.checked_sub(self.window) else {
            return 0;
        };
        let Some(slot) = self.slots.get((offset >> self.shift) as usize) else {
            return self.nobody.len() - 1;
        };
        let within = offset & ((1 << self.shift) - 1);
        let part = (slot.first + (within >> slot.shift)) as usize;
        self.search(self.parts[part] as usize, self.parts[part + 1] as usize, address)
    }
}

impl Intervals<u128> {
    #[inline]
    fn interval(&self, address: u128) -> usize {
        let Some(offset) = address.checked_sub(self.window) else {
            return 0;
        };
        let slot = usize::try_from(offset >> self.shift)
            .ok()
            .and_then(|slot| self.slots.get(slot));
        let Some(slot) = slot else {
            return self.nobody.len() - 1;
        };
        let within = offset & ((1 << self.shift) - 1);
        let part = slot.first as usize + (within >> slot.shift) as usize;
        self.search(self.parts[part] as usize, self.parts[part + 1] as usize, address)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Where intervals begin: close together in places, with gaps between.
    fn any_starts() -> impl Strategy<Value = Vec<u32>> {
        let cluster = (any::<u32>(), 1u32..9, 0usize..600);
        prop::collection::vec(cluster, 0..6).prop_map(|clusters| {
            let starts = clusters.into_iter().flat_map(|(first, apart, many)| {
                (0..many as u32).map(move |n| first.wrapping_add(n * apart))
            });
            let mut starts: Vec<u32> = starts.chain([0]).collect();
            starts.sort_unstable();
            starts.dedup();
            starts
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Of every address around every place where an interval begins, and of any.
        #[test]
        fn an_address_is_in_the_last_interval_that_begins_before_it(starts in any_starts(), any_address: u32) {
            let rows = vec![AddressRows::default(); starts.len()];
            let ip4 = Intervals::new(starts.clone(), rows.clone());
            // The same places, far apart, near the end of the family.
            let wide = |start: u32| u128::from(start) << 96 | u128::from(start) << 32 | 0xffff_ffff;
            let mut six: Vec<u128> = starts.iter().copied().map(wide).collect();
            six[0] = 0;
            let ip6 = Intervals::new(six.clone(), rows);
            let around = starts.iter().flat_map(|start| [start.wrapping_sub(1), *start, start.wrapping_add(1)]);
            for address in around.chain([any_address, 0, u32::MAX]) {
                prop_assert_eq!(ip4.interval(address), starts.partition_point(|start| *start <= address) - 1);
                for address in [wide(address), wide(address).wrapping_add(1), wide(address) & !0xffff_ffff] {
                    prop_assert_eq!(ip6.interval(address), six.partition_point(|start| *start <= address) - 1);
                }
            }
        }
    }
}
