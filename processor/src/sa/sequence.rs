//! The sequence space of an outbound SA: every number once, in order, up to a limit and never past it.
//!
//! The numbers are also the IVs, so that a number given twice would be a nonce used twice. Three things stop it:
//! the hard end of the space (2^32-1, with ESN 2^64-1: RFC 4303 3.3.3); for an SA whose key outlives the process, the
//! reservation, a mark that was made durable before the numbers below it may be used; and the type, which only counts up.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::nonce::{Nonce, Salt};

/// Why there is no next sequence number.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum SequenceError {
    /// The space is used up: the SA is at its end.
    Exhausted,
    /// The durable mark has not been raised yet.
    NotReserved,
}

/// How far the numbers are reserved: raised by control after the mark is on disk, read by the owner of the SA.
///
/// The owner publishes the next number it will use, so that control sees when to raise the mark.
#[derive(Debug)]
pub struct Reservation {
    /// Numbers below this one may be used.
    reserved: AtomicU64,
    /// The next number to be used.
    next: AtomicU64,
}

impl Reservation {
    /// Numbers from `next` up to, not including, `reserved`.
    #[must_use]
    pub fn new(next: u64, reserved: u64) -> Arc<Self> {
        Arc::new(Self {
            reserved: AtomicU64::new(reserved),
            next: AtomicU64::new(next),
        })
    }

    /// Raises the mark; never lowers it.
    pub fn raise(&self, reserved: u64) {
        self.reserved.fetch_max(reserved, Ordering::Release);
    }

    /// Numbers below this one may be used.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Acquire)
    }

    /// The next number to be used.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }
}

/// The numbers of one SA. Cells, since packets of a batch hold the SA's key while the next ones take their numbers; no other thread
/// can take one (a cell is not `Sync`).
#[derive(Debug)]
pub struct Sequence {
    next: Cell<u64>,
    /// Copy of the reservation's mark, so that the shared line is read once a block.
    reserved: Cell<u64>,
    last: u64,
    salt: Salt,
    reservation: Option<Arc<Reservation>>,
}

impl Sequence {
    /// The last number of an SA with or without extended sequence numbers.
    #[must_use]
    pub fn last(esn: bool) -> u64 {
        if esn { u64::MAX } else { u64::from(u32::MAX) }
    }

    /// A space that begins at 1, for a key that was made for this process (a session).
    #[must_use]
    pub fn fresh(esn: bool, salt: Salt) -> Self {
        Self {
            next: Cell::new(1),
            reserved: Cell::new(u64::MAX),
            last: Self::last(esn),
            salt,
            reservation: None,
        }
    }

    /// The same, and no more than so many numbers of it.
    #[must_use]
    pub fn at_most(self, numbers: u64) -> Self {
        Self {
            last: self.last.min(numbers.saturating_add(1)),
            ..self
        }
    }

    /// A space that goes on where `reservation` says, for a key that outlives the process.
    #[must_use]
    pub fn reserved(esn: bool, salt: Salt, reservation: Arc<Reservation>) -> Self {
        let next = reservation.next().max(1);
        Self {
            next: Cell::new(next),
            reserved: Cell::new(reservation.reserved()),
            last: Self::last(esn),
            salt,
            reservation: Some(reservation),
        }
    }

    /// The next number and its nonce.
    ///
    /// # Errors
    /// See [`SequenceError`]; no number is used up then.
    #[inline]
    pub fn take(&self) -> Result<(u64, Nonce), SequenceError> {
        let number = self.next.get();
        self.advance(1)?;
        Ok((number, Nonce::new(self.salt, number)))
    }

    /// The next numbers and their nonces: so many, or none. Those that are not asked for are never given again.
    ///
    /// # Errors
    /// See [`SequenceError`]; no number is used up then.
    #[inline]
    pub fn take_many(&self, count: usize) -> Result<Numbers, SequenceError> {
        let next = self.next.get();
        self.advance(count as u64)?;
        Ok(Numbers {
            next,
            end: self.next.get(),
            salt: self.salt,
        })
    }

    #[inline]
    fn advance(&self, count: u64) -> Result<(), SequenceError> {
        let number = self.next.get();
        // The very last number is kept back, so that `next` itself cannot wrap.
        let next = number.checked_add(count).filter(|next| *next <= self.last);
        let next = next.ok_or(SequenceError::Exhausted)?;
        if let Some(reservation) = &self.reservation {
            if next > self.reserved.get() {
                self.reserved.set(reservation.reserved());
                if next > self.reserved.get() {
                    return Err(SequenceError::NotReserved);
                }
            }
            reservation.next.store(next, Ordering::Relaxed);
        }
        self.next.set(next);
        Ok(())
    }

    /// How many numbers are left before the hard end.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.last - self.next.get()
    }
}

/// Numbers that a [`Sequence`] has given, each once.
#[derive(Debug)]
pub struct Numbers {
    next: u64,
    end: u64,
    salt: Salt,
}

impl Iterator for Numbers {
    type Item = (u64, Nonce);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let number = self.next;
        if number == self.end {
            return None;
        }
        self.next += 1;
        Some((number, Nonce::new(self.salt, number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: Salt = Salt([1, 2, 3, 4]);

    #[test]
    fn counts_from_one_and_makes_the_nonce_of_rfc_4106() {
        let sequence = Sequence::fresh(true, SALT);
        assert_eq!(
            sequence.take(),
            Ok((1, Nonce::of_vector([1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 1])))
        );
        assert_eq!(sequence.take().unwrap().0, 2);
    }

    #[test]
    fn many_are_those_that_one_by_one_would_be() {
        let (one, many) = (Sequence::fresh(true, SALT), Sequence::fresh(true, SALT));
        for count in [3, 0, 1, 64] {
            let expected: Vec<_> = (0..count).map(|_| one.take().unwrap()).collect();
            assert_eq!(many.take_many(count).unwrap().collect::<Vec<_>>(), expected);
        }
        // What nobody asked for is never given again.
        drop(many.take_many(5));
        assert_eq!(many.take().unwrap().0, one.next.get() + 5);
    }

    #[test]
    fn there_are_as_many_as_are_wanted_or_none() {
        for esn in [false, true] {
            let last = Sequence::last(esn);
            let sequence = Sequence::reserved(esn, SALT, Reservation::new(last - 3, u64::MAX));
            assert_eq!(sequence.take_many(4).unwrap_err(), SequenceError::Exhausted);
            assert_eq!(
                sequence.take_many(usize::MAX).unwrap_err(),
                SequenceError::Exhausted
            );
            let numbers: Vec<u64> = sequence.take_many(3).unwrap().map(|(number, _)| number).collect();
            assert_eq!(numbers, [last - 3, last - 2, last - 1]);
            assert_eq!(sequence.take(), Err(SequenceError::Exhausted));
        }
        let reservation = Reservation::new(10, 12);
        let sequence = Sequence::reserved(true, SALT, Arc::clone(&reservation));
        assert_eq!(sequence.take_many(3).unwrap_err(), SequenceError::NotReserved);
        assert_eq!(reservation.next(), 10);
        assert_eq!(sequence.take_many(2).unwrap().count(), 2);
        assert_eq!(reservation.next(), 12);
        reservation.raise(13);
        assert_eq!(sequence.take_many(1).unwrap().count(), 1);
    }

    #[test]
    fn ends_at_its_limit_and_stays_there() {
        for esn in [false, true] {
            let last = Sequence::last(esn);
            let sequence = Sequence::reserved(esn, SALT, Reservation::new(last - 1, u64::MAX));
            assert_eq!(sequence.take().unwrap().0, last - 1);
            assert_eq!(sequence.take(), Err(SequenceError::Exhausted));
            assert_eq!(sequence.take(), Err(SequenceError::Exhausted));
        }
    }

    #[test]
    fn ends_earlier_if_it_is_told_to() {
        let sequence = Sequence::fresh(true, SALT).at_most(2);
        assert_eq!(sequence.take().unwrap().0, 1);
        assert_eq!(sequence.take().unwrap().0, 2);
        assert_eq!(sequence.take(), Err(SequenceError::Exhausted));
        assert_eq!(sequence.take(), Err(SequenceError::Exhausted));
    }

    #[test]
    fn waits_at_the_durable_mark() {
        let reservation = Reservation::new(10, 12);
        let sequence = Sequence::reserved(true, SALT, Arc::clone(&reservation));
        assert_eq!(sequence.take().unwrap().0, 10);
        assert_eq!(sequence.take().unwrap().0, 11);
        assert_eq!(sequence.take(), Err(SequenceError::NotReserved));
        assert_eq!(reservation.next(), 12);
        reservation.raise(5);
        assert_eq!(
            sequence.take(),
            Err(SequenceError::NotReserved),
            "the mark is never lowered"
        );
        reservation.raise(13);
        assert_eq!(sequence.take().unwrap().0, 12);
        assert_eq!(sequence.take(), Err(SequenceError::NotReserved));
    }
}
