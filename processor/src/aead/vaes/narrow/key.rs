//! A key made ready: the AES key schedule, the powers of H, and the sums of their halves. Wiped when it is dropped.

use std::arch::x86_64::*;

use guestseal_rules::model::Suite;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::super::schedule::{Bytes, Schedule, load, store};
use super::block::twice;
use super::ghash::{fold, halves, multiply, reduce};

/// Powers of H that are kept: enough for ten rows and the block of lengths.
pub(super) const POWERS: usize = 21;

/// One key.
#[derive(Zeroize, ZeroizeOnDrop)]
#[repr(C, align(64))]
pub(in crate::aead) struct Key {
    schedule: Schedule,
    /// H^21 down to H^1, and zeros, so that a row that begins at any of them is two blocks long.
    powers: [[u8; 16]; POWERS + 1],
    /// Of each power, the sum of its halves, in both halves.
    sums: [[u8; 16]; POWERS + 1],
}

/// Two powers of H, and the sums of the halves of each.
#[derive(Copy, Clone)]
pub(super) struct Powers {
    pub(super) whole: __m256i,
    pub(super) halves: __m256i,
}

/// Powers that are kept: looked at once, not row by row.
#[derive(Copy, Clone)]
pub(super) struct PowersOfRows<'a> {
    key: &'a Key,
    place: usize,
    rows: usize,
}

impl PowersOfRows<'_> {
    /// The two of a row.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn of(self, row: usize) -> Powers {
        assert!(row < self.rows);
        let place = self.place + 2 * row;
        // SAFETY: two powers, or the first and the zeros behind it, from that place, as `powers_of_rows` has found; the same of
        // the sums.
        unsafe {
            Powers {
                whole: _mm256_loadu_si256(self.key.powers.as_ptr().add(place).cast()),
                halves: _mm256_loadu_si256(self.key.sums.as_ptr().add(place).cast()),
            }
        }
    }
}

impl Key {
    /// Expands a key of AES-128 or AES-256.
    #[target_feature(enable = "aes,avx2,vpclmulqdq")]
    pub(in super::super) fn expand(key: Bytes<'_>) -> Box<Self> {
        let mut made = Box::new(Self {
            schedule: Schedule::EMPTY,
            powers: [[0; 16]; POWERS + 1],
            sums: [[0; 16]; POWERS + 1],
        });
        made.schedule.fill(key);
        made.schedule.twice_the_hash_key(&mut made.powers[POWERS - 1]);
        made.fill_powers();
        made
    }

    /// What it is a key of.
    #[inline]
    pub(super) fn suite(&self) -> Suite {
        self.schedule.suite()
    }

    /// A round key, twice.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn round(&self, number: usize) -> __m256i {
        twice(load(self.schedule.round(number)))
    }

    /// Two powers of H, from `power` downwards; zero below the first.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn powers_from(&self, power: usize) -> Powers {
        self.powers_of_rows(power, 1).of(0)
    }

    /// The powers of so many rows, from `power` downwards, at which the first begins.
    #[inline]
    pub(super) fn powers_of_rows(&self, power: usize, rows: usize) -> PowersOfRows<'_> {
        assert!(power <= POWERS && 2 * rows <= power + 1);
        PowersOfRows {
            key: self,
            place: POWERS - power,
            rows,
        }
    }

    #[target_feature(enable = "avx2,vpclmulqdq")]
    fn fill_powers(&mut self) {
        let first = _mm256_zextsi128_si256(load(&self.powers[POWERS - 1]));
        let powers = Powers {
            whole: first,
            halves: halves(first),
        };
        let mut power = first;
        for place in (0..POWERS).rev() {
            if place + 1 < POWERS {
                power = _mm256_zextsi128_si256(fold(reduce(multiply(power, powers))));
            }
            store(&mut self.powers[place], _mm256_castsi256_si128(power));
            store(&mut self.sums[place], _mm256_castsi256_si128(halves(power)));
        }
    }
}
