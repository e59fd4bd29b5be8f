//! A key made ready: the AES key schedule and the powers of H. Wiped when it is dropped.
//!
//! The powers of H are as POLYVAL takes them (RFC 8452, Appendix A).

use std::arch::x86_64::*;

use guestseal_rules::model::Suite;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::ghash::{fold, multiply, reduce};
use super::schedule::{Bytes, Schedule, load, store};

/// Powers of H that are kept: enough for eight rows and the block of lengths.
pub(super) const POWERS: usize = 36;

/// One key.
#[derive(Zeroize, ZeroizeOnDrop)]
#[repr(C, align(64))]
pub(in crate::aead) struct Key {
    schedule: Schedule,
    /// H^36 down to H^1, and zeros, so that a row that begins at any of them is four blocks long.
    powers: [[u8; 16]; POWERS + 3],
}

impl Key {
    /// Expands a key of AES-128 or AES-256.
    #[target_feature(enable = "aes,pclmulqdq,avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
    pub(super) fn expand(key: Bytes<'_>) -> Box<Self> {
        let mut made = Box::new(Self {
            schedule: Schedule::EMPTY,
            powers: [[0; 16]; POWERS + 3],
        });
        made.schedule.fill(key);
        made.fill_powers();
        made
    }

    /// What it is a key of.
    #[inline]
    pub(super) fn suite(&self) -> Suite {
        self.schedule.suite()
    }

    /// A round key, four times.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn round(&self, number: usize) -> __m512i {
        _mm512_broadcast_i32x4(load(self.schedule.round(number)))
    }

    /// Four powers of H, from `power` downwards; zero for those below the first.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn powers_from(&self, power: usize) -> __m512i {
        assert!(0 < power && power <= POWERS);
        // SAFETY: four powers, or powers and the zeros behind them, from that place.
        unsafe { _mm512_loadu_si512(self.powers.as_ptr().add(POWERS - power).cast()) }
    }

    /// H itself.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn power_one(&self) -> __m128i {
        load(&self.powers[POWERS - 1])
    }

    #[target_feature(enable = "aes,pclmulqdq,avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
    fn fill_powers(&mut self) {
        self.schedule.twice_the_hash_key(&mut self.powers[POWERS - 1]);
        let first = _mm512_zextsi128_si512(load(&self.powers[POWERS - 1]));
        let mut power = first;
        for place in (0..POWERS - 1).rev() {
            power = _mm512_zextsi128_si512(fold(reduce(multiply(power, first))));
            store(&mut self.powers[place], _mm512_castsi512_si128(power));
        }
    }
}
