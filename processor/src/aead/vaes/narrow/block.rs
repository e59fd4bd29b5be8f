//! Blocks and rows of two, in registers: how they are read, turned round, and kept there.

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::schedule::load;

/// 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_row(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes that are borrowed here.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// A block, and zeros.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn low(bytes: &[u8; 16]) -> __m256i {
    _mm256_zextsi128_si256(load(bytes))
}

/// Up to 16 bytes with zeros behind.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn with_zeros(bytes: &[u8]) -> __m128i {
    let mut block = [0; 16];
    for (place, byte) in block.iter_mut().zip(bytes) {
        *place = *byte;
    }
    load(&block)
}

/// A block, twice.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn twice(block: __m128i) -> __m256i {
    _mm256_broadcastsi128_si256(block)
}

/// The nonce in both lanes, with a counter of zero.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_nonce(nonce: &[u8; 12]) -> __m256i {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *nonce;
    twice(_mm_set_epi64x(
        i64::from(u32::from_le_bytes(rest)),
        i64::from_le_bytes([a, b, c, d, e, f, g, h]),
    ))
}

/// Reverses the bytes of each block.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn reverse(blocks: __m256i) -> __m256i {
    let order = twice(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    _mm256_shuffle_epi8(blocks, order)
}

/// Makes the compiler compute a value here: it would sink whole chains of rounds to where their end is used, one after the
/// other, and the CPU would wait for each.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn pin(mut value: __m256i) -> __m256i {
    // SAFETY: no instruction at all; the value stays in its register.
    unsafe { asm!("/* {0} */", inout(ymm_reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
