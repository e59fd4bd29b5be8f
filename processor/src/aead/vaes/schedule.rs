//! What both forms of the engine make of a key: the AES key schedule, and H as POLYVAL takes it.
//!
//! FIPS 197 5.2; H after SP 800-38D 6.4 and RFC 8452, Appendix A.

use std::arch::x86_64::*;

use guestseal_rules::model::Suite;
use zeroize::Zeroize;

/// The round keys of a key: a part of the form's own key, which wipes it.
#[derive(Zeroize)]
#[repr(C)]
pub(super) struct Schedule {
    /// 11 of AES-128, 15 of AES-256.
    rounds: [[u8; 16]; 15],
    /// 10 or 14.
    last: usize,
}

impl Schedule {
    /// No key's, to be filled where it stands.
    pub(super) const EMPTY: Self = Self {
        rounds: [[0; 16]; 15],
        last: 0,
    };

    /// Fills in the round keys of a key.
    #[target_feature(enable = "aes")]
    pub(super) fn fill(&mut self, key: Bytes<'_>) {
        match key {
            Bytes::Aes128(key) => {
                schedule_128(&mut self.rounds, key);
                self.last = 10;
            }
            Bytes::Aes256(key) => {
                schedule_256(&mut self.rounds, key);
                self.last = 14;
            }
        }
    }

    /// What it is of.
    #[inline(always)]
    pub(super) fn suite(&self) -> Suite {
        if self.last == 10 {
            Suite::Aes128Gcm
        } else {
            Suite::Aes256Gcm
        }
    }

    /// A round key.
    #[inline(always)]
    pub(super) fn round(&self, number: usize) -> &[u8; 16] {
        &self.rounds[number]
    }

    /// H times x in POLYVAL's field.
    #[target_feature(enable = "aes")]
    pub(super) fn twice_the_hash_key(&self, made: &mut [u8; 16]) {
        let mut block = load(&self.rounds[0]);
        for number in 1..self.last {
            block = _mm_aesenc_si128(block, load(&self.rounds[number]));
        }
        block = _mm_aesenclast_si128(block, load(&self.rounds[self.last]));
        let mut bytes = [0; 16];
        store(&mut bytes, block);
        // What is carried out is a mask, not a branch.
        let h = u128::from_be_bytes(bytes);
        let shifted = (h << 1) ^ ((h >> 127).wrapping_neg() & POLYNOMIAL);
        bytes.zeroize();
        *made = shifted.to_le_bytes();
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
