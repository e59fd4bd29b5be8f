//! A key made ready: the AES key schedule and the powers of H. Wiped when it is dropped.
//!
//! FIPS 197 5.2; H after SP 800-38D 6.4, its powers as POLYVAL takes them (RFC 8452, Appendix A).

use std::arch::x86_64::*;

use guestseal_rules::model::Suite;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::ghash::{fold, multiply, reduce};

/// Powers of H that are kept: enough for eight rows and the block of lengths.
pub(super) const POWERS: usize = 36;

/// One key.
#[derive(Zeroize, ZeroizeOnDrop)]
#[repr(C, align(64))]
pub(in crate::aead) struct Key {
    /// Round keys: 11 of AES-128, 15 of AES-256.
    rounds: [[u8; 16]; 15],
    /// 10 or 14.
    last: usize,
    /// H^36 down to H^1, and zeros, so that a row that begins at any of them is four blocks long.
    powers: [[u8; 16]; POWERS + 3],
}

impl Key {
    /// Expands a key of AES-128 or AES-256.
    #[target_feature(enable = "aes,pclmulqdq,avx512f,avx512bw,avx512dq,avx512vl,vaes,vpclmulqdq")]
    pub(super) fn expand(key: Bytes<'_>) -> Box<Self> {
        let mut made = Box::new(Self {
            rounds: [[0; 16]; 15],
            last: 0,
            powers: [[0; 16]; POWERS + 3],
        });
        match key {
            Bytes::Aes128(key) => {
                made.last = 10;
                schedule_128(&mut made.rounds, key);
            }
            Bytes::Aes256(key) => {
                made.last = 14;
                schedule_256(&mut made.rounds, key);
            }
        }
        made.fill_powers();
        made
    }

    /// What it is a key of.
    #[inline]
    pub(super) fn suite(&self) -> Suite {
        if self.last == 10 {
            Suite::Aes128Gcm
        } else {
            Suite::Aes256Gcm
        }
    }

    /// A round key, four times.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn round(&self, number: usize) -> __m512i {
        _mm512_broadcast_i32x4(load(&self.rounds[number]))
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
        let mut block = load(&self.rounds[0]);
        for number in 1..self.last {
            block = _mm_aesenc_si128(block, load(&self.rounds[number]));
        }
        block = _mm_aesenclast_si128(block, load(&self.rounds[self.last]));
        let mut bytes = [0; 16];
        store(&mut bytes, block);
        // H times x in POLYVAL's field; what is carried out is a mask, not a branch.
        let h = u128::from_be_bytes(bytes);
        let shifted = (h << 1) ^ ((h >> 127).wrapping_neg() & POLYNOMIAL);
        bytes.zeroize();
        self.powers[POWERS - 1] = shifted.to_le_bytes();
        let first = _mm512_zextsi128_si512(load(&self.powers[POWERS - 1]));
        let mut power = first;
        for place in (0..POWERS - 1).rev() {
            power = _mm512_zextsi128_si512(fold(reduce(multiply(power, first))));
            store(&mut self.powers[place], _mm512_castsi512_si128(power));
        }
    }
}

/// x^128 + x^127 + x^126 + x^121 + 1, without its highest term.
const POLYNOMIAL: u128 = 0xc200_0000_0000_0000_0000_0000_0000_0001;

/// The bytes of a key.
#[derive(Copy, Clone)]
pub(super) enum Bytes<'a> {
    Aes128(&'a [u8; 16]),
    Aes256(&'a [u8; 32]),
}

#[inline]
pub(super) fn load(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 bytes that are borrowed here.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
pub(super) fn store(bytes: &mut [u8; 16], value: __m128i) {
    // SAFETY: 16 bytes that are borrowed here, for writing.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), value) }
}

/// Each word XORed with the ones before it: w0, w0^w1, w0^w1^w2, w0^w1^w2^w3.
#[inline]
#[target_feature(enable = "sse2")]
fn running_xor(words: __m128i) -> __m128i {
    let words = _mm_xor_si128(words, _mm_slli_si128::<4>(words));
    _mm_xor_si128(words, _mm_slli_si128::<8>(words))
}

#[target_feature(enable = "aes")]
fn schedule_128(rounds: &mut [[u8; 16]; 15], key: &[u8; 16]) {
    rounds[0] = *key;
    let mut last = load(key);
    macro_rules! step {
        ($($number:literal $constant:literal),*) => {$(
            let word = _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<$constant>(last));
            last = _mm_xor_si128(running_xor(last), word);
            store(&mut rounds[$number], last);
        )*};
    }
    step!(1 0x01, 2 0x02, 3 0x04, 4 0x08, 5 0x10, 6 0x20, 7 0x40, 8 0x80, 9 0x1b, 10 0x36);
}

#[target_feature(enable = "aes")]
fn schedule_256(rounds: &mut [[u8; 16]; 15], key: &[u8; 32]) {
    let (low, high) = key.split_at(16);
    rounds[0].copy_from_slice(low);
    rounds[1].copy_from_slice(high);
    let (mut even, mut odd) = (load(&rounds[0]), load(&rounds[1]));
    macro_rules! even {
        ($number:literal, $constant:literal) => {
            let word = _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<$constant>(odd));
            even = _mm_xor_si128(running_xor(even), word);
            store(&mut rounds[$number], even);
        };
    }
    macro_rules! two {
        ($($number:literal $constant:literal),*) => {$(
            even!($number, $constant);
            let word = _mm_shuffle_epi32::<0xaa>(_mm_aeskeygenassist_si128::<0>(even));
            odd = _mm_xor_si128(running_xor(odd), word);
            store(&mut rounds[$number + 1], odd);
        )*};
    }
    two!(2 0x01, 4 0x02, 6 0x04, 8 0x08, 10 0x10, 12 0x20);
    even!(14, 0x40);
}
