//! Addresses to rows: the ranges of all entries cut each family into intervals, in each of which the same entries hold.
//!
//! A look-up reads one slot of a table over the 16 bits in which the ranges differ first, then counts which of the intervals of
//! that slot begin before the address: of every sixteenth, then of the sixteen behind it. Both are comparisons of a few lines
//! of memory without branches, which the compiler makes wide.

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
    /// How many.
    count: usize,
    /// Where each interval begins; the first at 0. The last stands as often as there is room for in its sixteen.
    starts: Vec<A>,
    /// Every sixteenth of them; behind the last is room for sixteen.
    sixteenth: Vec<A>,
    rows: Vec<AddressRows>,
    /// The interval in which each slot begins; one more than there are slots.
    slots: Vec<u32>,
    /// The first address of the slots, and bits of an address within a slot.
    window: A,
    shift: u32,
}

const SLOT_BITS: u32 = 16;
const STEP: usize = 16;

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

    #[inline]
    pub(crate) fn rows(&self, address: Option<IpAddr>) -> &AddressRows {
        match address {
            Some(IpAddr::V4(address)) => self.ip4.rows(address.to_bits()),
            Some(IpAddr::V6(address)) => self.ip6.rows(address.to_bits()),
            None => &self.none,
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
    fn new(starts: Vec<A>, rows: Vec<AddressRows>) -> Self {
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
        let count = 1usize << (span - shift);
        let mut slots = Vec::with_capacity(count + 1);
        let mut interval = 0;
        for slot in 0..count as u128 {
            let first = window + (slot << shift);
            while starts
                .get(interval + 1)
                .is_some_and(|start| (*start).into() <= first)
            {
                interval += 1;
            }
            slots.push(interval as u32);
        }
        slots.push(starts.len() as u32 - 1);
        let count = starts.len();
        let mut sixteenth: Vec<A> = starts.iter().step_by(STEP).copied().collect();
        let behind = starts.last().copied().unwrap_or_default();
        sixteenth.extend([behind; STEP + 1]);
        let mut starts = starts;
        starts.resize(count.next_multiple_of(STEP), behind);
        Self {
            count,
            sixteenth,
            starts,
            rows,
            slots,
            window: A::try_from(window).unwrap_or_default(),
            shift,
        }
    }

    fn bytes(&self) -> usize {
        (self.starts.len() + self.sixteenth.len()) * size_of::<A>()
            + self.rows.len() * size_of::<AddressRows>()
            + self.slots.len() * 4
    }

    /// The interval of an address, of those from `low` to `high`, in the first of which or behind it the address lies.
    #[inline]
    fn search(&self, low: usize, high: usize, address: A) -> usize {
        // All begin at or before the address up to the one that is asked for, and none does behind it: a window of any sixteen
        // tells, wherever it begins.
        let before = |starts: &[A], from: usize| match starts[from..].first_chunk::<STEP>() {
            Some(window) => window.iter().map(|start| usize::from(*start <= address)).sum(),
            None => 0,
        };
        let (first, last) = (low / STEP, high / STEP);
        let group = match last - first {
            0..=STEP => (first + before(&self.sixteenth, first + 1)).min(last),
            _ => first + self.sixteenth[first + 1..=last].partition_point(|start| *start <= address),
        };
        (group * STEP + before(&self.starts, group * STEP)).min(high + 1) - 1
    }
}

impl Intervals<u32> {
    #[inline]
    fn rows(&self, address: u32) -> &AddressRows {
        let interval = match address.checked_sub(self.window) {
            None => 0,
            Some(offset) => {
                let slot = (offset >> self.shift) as usize;
                match self.slots.get(slot..slot + 2) {
                    Some(&[low, high]) => self.search(low as usize, high as usize, address),
                    _ => self.count - 1,
                }
            }
        };
        &self.rows[interval]
    }
}

impl Intervals<u128> {
    #[inline]
    fn rows(&self, address: u128) -> &AddressRows {
        let interval = match address.checked_sub(self.window) {
            None => 0,
            Some(offset) => {
                let slot = usize::try_from(offset >> self.shift).unwrap_or(usize::MAX);
                match slot.checked_add(2).and_then(|end| self.slots.get(slot..end)) {
                    Some(&[low, high]) if low == high => low as usize,
                    Some(&[low, high]) => self.search(low as usize, high as usize, address),
                    _ => self.count - 1,
                }
            }
        };
        &self.rows[interval]
    }
}
