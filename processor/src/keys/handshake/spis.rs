//! How SPIs are dealt: a block of 64 for a session, an SPI of it for each worker of the peer.
//!
//! The upper 26 bits are random, the lower 6 number the worker that seals (its lane); the worker that opens is the lane
//! modulo the number of this host's workers. So the SPI alone tells the owner, and each worker seals with an SA of its own.

use std::collections::HashSet;

use crate::path::batch::WorkerId;
use crate::sa::spi::Spi;

use super::random::Random;

/// The most workers that a host may have.
pub const MAX_WORKERS: u8 = 64;
const LANES: u32 = MAX_WORKERS as u32;

/// The SPIs of one direction of a session.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    base: u32,
    lanes: u8,
}

impl Block {
    /// A block that the peer said; nothing if no SPIs are like this.
    pub(super) fn new(base: u32, lanes: u8) -> Option<Self> {
        let valid = base >= Spi::FIRST && base.is_multiple_of(LANES) && (1..=MAX_WORKERS).contains(&lanes);
        valid.then_some(Self { base, lanes })
    }

    pub(super) fn base(self) -> u32 {
        self.base
    }

    pub(super) fn contains(self, spi: u32) -> bool {
        (self.base..=self.base + (u32::from(self.lanes) - 1)).contains(&spi)
    }

    pub(super) fn spis(self) -> impl Iterator<Item = (u8, Spi)> {
        (0..self.lanes).filter_map(move |lane| Some((lane, Spi::new(self.base + u32::from(lane)).ok()?)))
    }

    /// The worker that opens what lane `lane` sealed, of so many.
    pub(super) fn owner(self, lane: u8, workers: u8) -> WorkerId {
        WorkerId((lane % workers.max(1)).into())
    }
}

/// The blocks of this host that may not be dealt again: in use, or of manual SAs.
#[derive(Debug, Default)]
pub(super) struct Dealer {
    taken: HashSet<u32>,
    manual: HashSet<u32>,
}

impl Dealer {
    /// Never deals these.
    pub(super) fn new(manual: &[Spi]) -> Self {
        Self {
            taken: HashSet::new(),
            manual: manual.iter().map(|spi| spi.get() / LANES * LANES).collect(),
        }
    }

    /// The base of a block that nobody has.
    pub(super) fn deal(&mut self, random: &mut dyn Random) -> u32 {
        loop {
            let base = random.number() / LANES * LANES;
            if base >= Spi::FIRST && !self.manual.contains(&base) && self.taken.insert(base) {
                return base;
            }
        }
    }

    pub(super) fn free(&mut self, base: u32) {
        self.taken.remove(&base);
    }

    pub(super) fn count(&self) -> usize {
        self.taken.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbers(Vec<u32>);

    impl Random for Numbers {
        fn fill(&mut self, place: &mut [u8]) {
            place.copy_from_slice(&self.0.remove(0).to_be_bytes());
        }
    }

    #[test]
    fn reserved_manual_and_taken_blocks_are_never_dealt() {
        let mut dealer = Dealer::new(&[Spi::new(0x1001).unwrap()]);
        let mut numbers = Numbers(vec![0, 255, 0x103f, 0x2001, 0x203f, 0x3000, 0x2000]);
        assert_eq!(
            dealer.deal(&mut numbers),
            0x2000,
            "0 and 255 are reserved, 0x1001 is a manual SA's"
        );
        assert_eq!(dealer.deal(&mut numbers), 0x3000, "0x2000 is in use");
        dealer.free(0x2000);
        assert_eq!(dealer.deal(&mut numbers), 0x2000);
    }

    #[test]
    fn what_a_peer_says_is_a_block_or_nothing() {
        for (base, lanes) in [(0, 1), (192, 1), (0x1001, 1), (0x1000, 0), (0x1000, 65)] {
            assert_eq!(Block::new(base, lanes), None, "{base:#x} {lanes}");
        }
        let block = Block::new(0xffff_ffc0, 64).unwrap();
        assert_eq!(block.spis().last().unwrap().1.get(), u32::MAX);
        assert_eq!(block.spis().count(), 64);
    }

    #[test]
    fn the_owner_follows_from_the_spi() {
        let block = Block::new(0x1000, 5).unwrap();
        let owners: Vec<u16> = block
            .spis()
            .map(|(lane, spi)| {
                let owner = block.owner(lane, 2);
                assert_eq!(u32::from(owner.0), spi.get() % 64 % 2);
                owner.0
            })
            .collect();
        assert_eq!(owners, [0, 1, 0, 1, 0]);
    }
}
