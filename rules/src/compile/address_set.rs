//! Sets of addresses, as ranges: what a selector's prefixes and their negations come to.

use crate::model::Cidr;

/// Addresses of both families, and whether a packet without an address is among them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AddressSet {
    pub(crate) ip4: Ranges,
    pub(crate) ip6: Ranges,
    pub(crate) none: bool,
}

/// Sorted ranges, both ends inside, that neither overlap nor touch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ranges(pub(crate) Vec<(u128, u128)>);

pub(crate) const MAX_IP4: u128 = u32::MAX as u128;
pub(crate) const MAX_IP6: u128 = u128::MAX;

impl AddressSet {
    pub(crate) fn all() -> Self {
        Self {
            ip4: Ranges(vec![(0, MAX_IP4)]),
            ip6: Ranges(vec![(0, MAX_IP6)]),
            none: true,
        }
    }

    pub(crate) fn of(cidr: &Cidr) -> Self {
        let (first, last) = cidr.ends();
        let (mut ip4, mut ip6) = (Ranges(Vec::new()), Ranges(Vec::new()));
        let family = if cidr.is_ipv4() { &mut ip4 } else { &mut ip6 };
        family.0.push((first, last));
        Self {
            ip4,
            ip6,
            none: false,
        }
    }

    pub(crate) fn is_all(&self) -> bool {
        *self == Self::all()
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.none && self.ip4.0.is_empty() && self.ip6.0.is_empty()
    }

    pub(crate) fn complement(&self) -> Self {
        Self {
            ip4: self.ip4.complement(MAX_IP4),
            ip6: self.ip6.complement(MAX_IP6),
            none: !self.none,
        }
    }

    /// What lies in at least one of them.
    pub(crate) fn union<'a>(sets: impl Iterator<Item = &'a Self> + Clone) -> Self {
        Self {
            ip4: Ranges::union(sets.clone().map(|set| &set.ip4)),
            ip6: Ranges::union(sets.clone().map(|set| &set.ip6)),
            none: sets.clone().any(|set| set.none),
        }
    }

    pub(crate) fn intersection(&self, other: &Self) -> Self {
        Self {
            ip4: self.ip4.intersection(&other.ip4),
            ip6: self.ip6.intersection(&other.ip6),
            none: self.none && other.none,
        }
    }

    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.intersection(other) == *other
    }
}

impl Ranges {
    fn complement(&self, max: u128) -> Self {
        let mut gaps = Vec::new();
        let mut next = Some(0);
        for &(first, last) in &self.0 {
            match next {
                Some(start) if start < first => gaps.push((start, first - 1)),
                _ => {}
            }
            next = if last < max { Some(last + 1) } else { None };
        }
        gaps.extend(next.map(|start| (start, max)));
        Self(gaps)
    }

    fn union<'a>(sets: impl Iterator<Item = &'a Self>) -> Self {
        let mut all: Vec<(u128, u128)> = sets.flat_map(|set| set.0.iter().copied()).collect();
        all.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    fn intersection(&self, other: &Self) -> Self {
        let (mut one, mut two) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut common = Vec::new();
        while let (Some(left), Some(right)) = (one.peek(), two.peek()) {
            let (first, last) = (left.0.max(right.0), left.1.min(right.1));
            if first <= last {
                common.push((first, last));
            }
            if left.1 < right.1 {
                one.next()
            } else {
                two.next()
            };
        }
        Self(common)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn any_set() -> impl Strategy<Value = AddressSet> {
        let prefix = (any::<bool>(), 0u32..16, 28u8..=32).prop_map(|(six, host, length)| {
            if six {
                format!(
                    "fd00::{:x}/{}",
                    host >> (32 - length) << (32 - length),
                    length + 96
                )
            } else {
                format!("10.0.0.{}/{length}", host >> (32 - length) << (32 - length))
            }
        });
        prop::collection::vec((prefix, any::<bool>()), 0..5).prop_map(|list| {
            list.iter().fold(AddressSet::all(), |set, (text, keep)| {
                let one = AddressSet::of(&text.parse().unwrap());
                if *keep {
                    set.intersection(&one.complement())
                } else {
                    AddressSet::union([set.complement(), one].iter())
                }
            })
        })
    }

    fn number(address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        }
    }

    fn has(set: &AddressSet, address: Option<IpAddr>) -> bool {
        let inside = |ranges: &Ranges, number| {
            ranges
                .0
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&number))
        };
        match address {
            None => set.none,
            Some(address) if address.is_ipv4() => inside(&set.ip4, number(address)),
            Some(address) => inside(&set.ip6, number(address)),
        }
    }

    proptest! {
        #[test]
        fn sets_are_sets(one in any_set(), two in any_set(), host in prop::option::of((any::<bool>(), 0u8..18))) {
            let address: Option<IpAddr> = host.map(|(six, host)| {
                if six { format!("fd00::{host:x}").parse().unwrap() } else { IpAddr::from([10, 0, 0, host]) }
            });
            let (left, right) = (has(&one, address), has(&two, address));
            let union = AddressSet::union([&one, &two].into_iter());
            prop_assert_eq!(has(&union, address), left || right);
            prop_assert_eq!(has(&one.intersection(&two), address), left && right);
            prop_assert_eq!(has(&one.complement(), address), !left);
            prop_assert_eq!(one.complement().complement(), one.clone());
            prop_assert!(union.covers(&one));
        }
    }
}
