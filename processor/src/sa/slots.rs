//! The SAs of one worker, each at a [`Place`] that no other SA ever has.
//!
//! A slot is used again, a serial number is not: a packet that was on its way to another worker while its SA was
//! retired finds nothing there, never another peer's SA. Never allocates after [`Slots::grow`].

use crate::path::batch::WorkerId;

use super::inbound::InboundSa;
use super::outbound::OutboundSa;

/// The owner of an SA, and where it keeps it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The worker.
    pub owner: WorkerId,
    /// The slot among the worker's SAs of this direction.
    pub slot: u32,
    /// Which of all SAs that the slot has held: given once in a process.
    pub serial: u32,
}

/// A slot: an SA and its serial number.
#[derive(Debug)]
pub struct Slot<T> {
    serial: u32,
    sa: Option<T>,
}

/// SAs of one direction.
#[derive(Debug)]
pub struct Slots<T>(Vec<Slot<T>>);

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Slots<T> {
    /// The SA at a place, unless it is another's by now.
    #[inline]
    #[must_use]
    pub fn get(&self, place: Place) -> Option<&T> {
        let slot = self.0.get(place.slot as usize)?;
        slot.sa.as_ref().filter(|_| slot.serial == place.serial)
    }

    /// The SA at a place, unless it is another's by now.
    #[inline]
    #[must_use]
    pub fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        let slot = self.0.get_mut(place.slot as usize)?;
        slot.sa.as_mut().filter(|_| slot.serial == place.serial)
    }

    /// Adds an SA in a slot of its own, before the worker runs.
    pub fn add(&mut self, owner: WorkerId, sa: T) -> Place {
        let place = Place {
            owner,
            slot: self.0.len() as u32,
            serial: 0,
        };
        self.0.push(Slot {
            serial: 0,
            sa: Some(sa),
        });
        place
    }

    /// Puts an SA at a place. Gives it back if there is no such slot or another SA is in it.
    #[must_use]
    pub fn install(&mut self, place: Place, sa: T) -> Option<T> {
        match self.0.get_mut(place.slot as usize) {
            Some(slot) if slot.sa.is_none() => {
                *slot = Slot {
                    serial: place.serial,
                    sa: Some(sa),
                };
                None
            }
            _ => Some(sa),
        }
    }

    /// Takes the SA of a place out.
    #[must_use]
    pub fn retire(&mut self, place: Place) -> Option<T> {
        let slot = self.0.get_mut(place.slot as usize)?;
        if slot.serial == place.serial {
            slot.sa.take()
        } else {
            None
        }
    }

    /// Moves into `room`, whose capacity becomes empty slots. Gives the old slots, empty, for who made them to free.
    #[must_use]
    pub fn grow(&mut self, mut room: Vec<Slot<T>>) -> Vec<Slot<T>> {
        if room.capacity() <= self.0.len() {
            return room;
        }
        room.append(&mut self.0);
        room.resize_with(room.capacity(), || Slot { serial: 0, sa: None });
        std::mem::replace(&mut self.0, room)
    }

    /// How many slots there are, empty ones too.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.len()
    }

    /// Every SA with its slot and serial number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, &T)> {
        let numbered = (0u32..).zip(&self.0);
        numbered.filter_map(|(number, slot)| Some((number, slot.serial, slot.sa.as_ref()?)))
    }

    /// Every SA.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().filter_map(|slot| slot.sa.as_mut())
    }
}

/// The SAs that one worker owns.
#[derive(Debug, Default)]
pub struct Owned {
    /// To seal with.
    pub outbound: Slots<OutboundSa>,
    /// To open with.
    pub inbound: Slots<InboundSa>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: WorkerId = WorkerId(0);

    fn place(slot: u32, serial: u32) -> Place {
        Place {
            owner: OWNER,
            slot,
            serial,
        }
    }

    #[test]
    fn a_slot_is_used_again_and_a_place_is_not() {
        let mut slots = Slots::default();
        let first = slots.add(OWNER, "manual");
        assert_eq!(slots.grow(Vec::with_capacity(2)).len(), 0);
        let (one, other) = (place(1, 1), place(1, 2));
        assert_eq!(slots.install(one, "one"), None);
        assert_eq!(slots.install(other, "other"), Some("other"), "the slot is taken");
        assert_eq!(slots.retire(other), None, "it is not there");
        assert_eq!(slots.retire(one), Some("one"));
        assert_eq!(slots.install(other, "other"), None);
        assert_eq!((slots.get(one), slots.get(other)), (None, Some(&"other")));
        assert_eq!(slots.get_mut(one), None);
        assert_eq!(slots.get(first), Some(&"manual"));
        assert_eq!(
            slots.install(place(2, 3), "far"),
            Some("far"),
            "there is no such slot"
        );
    }

    #[test]
    fn growing_keeps_what_is_there() {
        let mut slots = Slots::default();
        let first = slots.add(OWNER, 7);
        let old = slots.grow(Vec::with_capacity(16));
        assert_eq!((old.len(), slots.capacity()), (0, 16));
        assert_eq!(slots.get(first), Some(&7));
        assert_eq!(slots.grow(Vec::with_capacity(4)).capacity(), 4, "never smaller");
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(0, 0, &7)]);
    }
}
