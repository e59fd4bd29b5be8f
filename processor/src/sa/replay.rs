//! The anti-replay window (RFC 4303 3.4.3, blocks as in RFC 6479), with extended sequence numbers (RFC 4303 Appendix A).
//!
//! Two steps: [`ReplayWindow::check`] before the tag is looked at, [`ReplayWindow::accept`] after it is known to be
//! right, so that no forged packet moves the window. Never allocates after it was made.

/// Why a sequence number is refused.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// It was accepted before.
    Seen,
    /// It is left of the window, or 0, which no sender uses.
    TooOld,
}

const BLOCK: u64 = 64;

/// The window of one inbound SA.
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    /// The highest number accepted; 0 before the first.
    highest: u64,
    /// Numbers that the window covers, the highest included.
    size: u64,
    esn: bool,
    /// A ring of blocks, one more than the window has (RFC 6479 2), so that advancing clears whole blocks.
    blocks: Box<[u64]>,
}

impl ReplayWindow {
    /// The smallest window.
    pub const MIN: u32 = 32;
    /// The largest.
    pub const MAX: u32 = 1 << 16;

    /// A window of `size` numbers, taken into [`ReplayWindow::MIN`]..=[`ReplayWindow::MAX`].
    #[must_use]
    pub fn new(size: u32, esn: bool) -> Self {
        let size = u64::from(size.clamp(Self::MIN, Self::MAX));
        let blocks = (size.div_ceil(BLOCK) + 1).next_power_of_two();
        Self {
            highest: 0,
            size,
            esn,
            blocks: vec![0; blocks as usize].into_boxed_slice(),
        }
    }

    /// The 64-bit number that a packet with these low 32 bits has (RFC 4303 A2.2); without ESN the number itself.
    #[inline]
    #[must_use]
    pub fn infer(&self, low: u32) -> u64 {
        if !self.esn {
            return u64::from(low);
        }
        let (top_high, top_low) = (self.highest >> 32, self.highest as u32);
        let bottom = top_low.wrapping_sub(self.size as u32 - 1);
        let high = if u64::from(top_low) >= self.size - 1 {
            // The window lies within one subspace of 2^32 numbers.
            if low >= bottom {
                top_high
            } else {
                top_high.wrapping_add(1)
            }
        } else if low >= bottom {
            // The window reaches back into the subspace before; before the first there is none.
            match top_high.checked_sub(1) {
                Some(before) => before,
                None => return u64::from(low),
            }
        } else {
            top_high
        };
        high << 32 | u64::from(low)
    }

    /// Whether `sequence` could be accepted now.
    ///
    /// # Errors
    /// See [`ReplayError`].
    #[inline]
    pub fn check(&self, sequence: u64) -> Result<(), ReplayError> {
        if sequence > self.highest {
            return Ok(());
        }
        if sequence == 0 || self.highest - sequence >= self.size {
            return Err(ReplayError::TooOld);
        }
        let seen = self
            .blocks
            .get(self.block(sequence))
            .is_some_and(|block| block & bit(sequence) != 0);
        if seen { Err(ReplayError::Seen) } else { Ok(()) }
    }

    /// Notes a sequence number whose tag is right. Looks again: of two equal packets of one batch only one passes.
    ///
    /// # Errors
    /// See [`ReplayError`].
    #[inline]
    pub fn accept(&mut self, sequence: u64) -> Result<(), ReplayError> {
        self.check(sequence)?;
        if sequence > self.highest {
            if sequence / BLOCK > self.highest / BLOCK {
                self.advance(sequence);
            }
            self.highest = sequence;
        }
        let place = self.block(sequence);
        if let Some(block) = self.blocks.get_mut(place) {
            *block |= bit(sequence);
        }
        Ok(())
    }

    /// Clears the blocks behind that of the highest number, as far as that of `sequence`.
    fn advance(&mut self, sequence: u64) {
        let (from, to) = (self.highest / BLOCK, sequence / BLOCK);
        for number in 1..=(to - from).min(self.blocks.len() as u64) {
            let place = self.block((from + number) * BLOCK);
            if let Some(block) = self.blocks.get_mut(place) {
                *block = 0;
            }
        }
    }

    /// The highest number accepted; 0 before the first.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.highest
    }

    #[inline]
    fn block(&self, sequence: u64) -> usize {
        (sequence / BLOCK) as usize & (self.blocks.len() - 1)
    }
}

#[inline]
fn bit(sequence: u64) -> u64 {
    1 << (sequence % BLOCK)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// The same by a set of everything accepted.
    struct Model {
        accepted: HashSet<u64>,
        highest: u64,
        size: u64,
    }

    impl Model {
        fn accept(&mut self, sequence: u64) -> Result<(), ReplayError> {
            if sequence == 0 || (sequence <= self.highest && self.highest - sequence >= self.size) {
                return Err(ReplayError::TooOld);
            }
            if !self.accepted.insert(sequence) {
                return Err(ReplayError::Seen);
            }
            self.highest = self.highest.max(sequence);
            Ok(())
        }
    }

    proptest! {
        /// Shuffled, duplicated and late numbers, around 0 and around the 32-bit boundary.
        #[test]
        fn window_is_a_set(
            size in prop::sample::select(vec![32u32, 64, 100, 1024, 4096]),
            start in prop::sample::select(vec![1u64, 1000, (1 << 32) - 3000, 1 << 40]),
            steps in prop::collection::vec((0u64..6000, 0u64..5000), 1..400),
        ) {
            let mut window = ReplayWindow::new(size, true);
            let mut model = Model { accepted: HashSet::new(), highest: 0, size: u64::from(size) };
            // A sender whose numbers begin high reaches there through its own numbers, 2^31 apart at most.
            let mut reached = 0;
            while reached + (1 << 31) < start {
                reached += 1 << 31;
                prop_assert_eq!(window.infer(reached as u32), reached);
                prop_assert_eq!(window.accept(reached), model.accept(reached));
            }
            let mut base = start;
            for (late, ahead) in steps {
                let sequence = (base + ahead).saturating_sub(late);
                base += ahead / 16;
                // What is within reach of the window is inferred from 32 bits.
                if sequence + u64::from(size) > window.highest() {
                    prop_assert_eq!(window.infer(sequence as u32), sequence, "highest {}", window.highest());
                }
                prop_assert_eq!(window.check(sequence).is_ok(), model.clone_accept(sequence).is_ok());
                prop_assert_eq!(window.accept(sequence), model.accept(sequence));
            }
        }
    }

    impl Model {
        fn clone_accept(&self, sequence: u64) -> Result<(), ReplayError> {
            Model {
                accepted: self.accepted.clone(),
                ..*self
            }
            .accept(sequence)
        }
    }

    #[test]
    fn crosses_the_32_bit_boundary() {
        let mut window = ReplayWindow::new(1024, true);
        for sequence in [1, (1 << 31), (1 << 32) - 2] {
            assert_eq!(window.infer(sequence as u32), sequence);
            window.accept(sequence).unwrap();
        }
        assert_eq!(window.infer(5), (1 << 32) + 5, "past the boundary");
        window.accept((1 << 32) + 5).unwrap();
        assert_eq!(
            window.infer(u32::MAX),
            (1 << 32) - 1,
            "late, from before the boundary"
        );
        window.accept((1 << 32) - 1).unwrap();
        assert_eq!(window.accept((1 << 32) - 2), Err(ReplayError::Seen));
        assert_eq!(window.accept((1 << 32) + 5), Err(ReplayError::Seen));
    }

    #[test]
    fn without_esn_the_space_ends_at_32_bits() {
        let mut window = ReplayWindow::new(64, false);
        window.accept(u64::from(u32::MAX)).unwrap();
        assert_eq!(window.infer(3), 3);
        assert_eq!(window.check(3), Err(ReplayError::TooOld));
    }

    #[test]
    fn a_check_moves_nothing() {
        let mut window = ReplayWindow::new(64, true);
        window.accept(1).unwrap();
        assert_eq!(window.check(1_000_000), Ok(()));
        assert_eq!(window.accept(2), Ok(()));
        assert_eq!(window.highest(), 2);
    }

    #[test]
    fn zero_is_no_sequence_number() {
        assert_eq!(ReplayWindow::new(64, true).check(0), Err(ReplayError::TooOld));
    }
}
