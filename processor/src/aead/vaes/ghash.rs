//! GHASH over rows of four blocks, by carry-less multiplication.
//!
//! Blocks are reversed byte by byte, which turns GHASH into POLYVAL with H times x (RFC 8452, Appendix A), so that a
//! product needs no shift. Products are added up in three parts and reduced once (Montgomery, x^-128).

use std::arch::x86_64::*;

use super::key::Key;
use super::row::{load_row, low_bits, pin};

/// The sum of products, not reduced: the middle part belongs half onto the low and half onto the high one.
#[derive(Copy, Clone)]
pub(super) struct Product {
    low: __m512i,
    middle: __m512i,
    high: __m512i,
}

impl Product {
    /// The sum of both.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn plus(self, other: Option<Self>) -> Self {
        let Some(other) = other else { return self };
        Self {
            low: _mm512_xor_si512(self.low, other.low),
            middle: _mm512_xor_si512(self.middle, other.middle),
            high: _mm512_xor_si512(self.high, other.high),
        }
    }

    /// See [`pin`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn pin(self) -> Self {
        Self {
            low: pin(self.low),
            middle: pin(self.middle),
            high: pin(self.high),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}

/// The product of each block with the power in its place.
#[inline]
#[target_feature(enable = "avx512f,vpclmulqdq")]
pub(super) fn multiply(blocks: __m512i, powers: __m512i) -> Product {
    Product {
        low: _mm512_clmulepi64_epi128::<0x00>(blocks, powers),
        middle: _mm512_xor_si512(
            _mm512_clmulepi64_epi128::<0x01>(blocks, powers),
            _mm512_clmulepi64_epi128::<0x10>(blocks, powers),
        ),
        high: _mm512_clmulepi64_epi128::<0x11>(blocks, powers),
    }
}

/// Adds one more row's products.
#[inline]
#[target_feature(enable = "avx512f,vpclmulqdq")]
pub(super) fn multiply_add(sum: Product, blocks: __m512i, powers: __m512i) -> Product {
    Product {
        low: _mm512_xor_si512(sum.low, _mm512_clmulepi64_epi128::<0x00>(blocks, powers)),
        middle: xor3(
            sum.middle,
            _mm512_clmulepi64_epi128::<0x01>(blocks, powers),
            _mm512_clmulepi64_epi128::<0x10>(blocks, powers),
        ),
        high: _mm512_xor_si512(sum.high, _mm512_clmulepi64_epi128::<0x11>(blocks, powers)),
    }
}

/// The product of one block with H.
#[inline]
#[target_feature(enable = "avx512f,pclmulqdq")]
pub(super) fn multiply_last(block: __m128i, h: __m128i) -> Product {
    let middle = _mm_xor_si128(
        _mm_clmulepi64_si128::<0x01>(block, h),
        _mm_clmulepi64_si128::<0x10>(block, h),
    );
    Product {
        low: _mm512_zextsi128_si512(_mm_clmulepi64_si128::<0x00>(block, h)),
        middle: _mm512_zextsi128_si512(middle),
        high: _mm512_zextsi128_si512(_mm_clmulepi64_si128::<0x11>(block, h)),
    }
}

/// The four sums modulo the polynomial.
#[inline]
#[target_feature(enable = "avx512f,vpclmulqdq")]
pub(super) fn reduce(sum: Product) -> __m512i {
    // The terms x^127, x^126 and x^121.
    let polynomial = _mm512_set1_epi64(0xc2_u64.rotate_right(8) as i64);
    let middle = xor3(
        sum.middle,
        _mm512_shuffle_epi32::<0x4e>(sum.low),
        _mm512_clmulepi64_epi128::<0x00>(sum.low, polynomial),
    );
    xor3(
        sum.high,
        _mm512_shuffle_epi32::<0x4e>(middle),
        _mm512_clmulepi64_epi128::<0x00>(middle, polynomial),
    )
}

/// The sum of the four lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
pub(super) fn fold(lanes: __m512i) -> __m128i {
    let two = _mm256_xor_si256(
        _mm512_castsi512_si256(lanes),
        _mm512_extracti64x4_epi64::<1>(lanes),
    );
    _mm_xor_si128(_mm256_castsi256_si128(two), _mm256_extracti128_si256::<1>(two))
}

/// Reverses the bytes of each block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn reverse(blocks: __m512i) -> __m512i {
    let order = _mm512_broadcast_i32x4(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    _mm512_shuffle_epi8(blocks, order)
}

/// Reverses the bytes of one block.
#[inline]
#[target_feature(enable = "ssse3")]
pub(super) fn reverse_one(block: __m128i) -> __m128i {
    let order = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm_shuffle_epi8(block, order)
}

/// The block of the two lengths, reversed.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn lengths(additional: usize, text: usize) -> __m128i {
    _mm_set_epi64x((additional as u64 * 8) as i64, (text as u64 * 8) as i64)
}

/// What stands in the place before the text: GHASH of what is authenticated only, but for the last multiplication.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,pclmulqdq,vpclmulqdq,bmi2")]
pub(super) fn absorb(key: &Key, additional: &[u8]) -> __m128i {
    let (whole, last) = additional.split_at(additional.len().saturating_sub(1) / 16 * 16);
    // SAFETY: the mask leaves only bytes of the slice.
    let last = unsafe { _mm_maskz_loadu_epi8(low_bits(last.len()) as u16, last.as_ptr().cast()) };
    let last = reverse_one(last);
    if whole.is_empty() {
        return last;
    }
    _mm_xor_si128(last, hash(key, whole))
}

/// Rows that are hashed before they are reduced.
const ROWS: usize = 8;

/// GHASH of whole blocks.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,vpclmulqdq")]
fn hash(key: &Key, mut blocks: &[u8]) -> __m128i {
    let mut sum = _mm512_setzero_si512();
    while let Some((chunk, rest)) = blocks.split_first_chunk::<{ ROWS * 64 }>() {
        sum = _mm512_zextsi128_si512(fold(reduce(products(key, sum, chunk))));
        blocks = rest;
    }
    if !blocks.is_empty() {
        sum = _mm512_zextsi128_si512(fold(reduce(products(key, sum, blocks))));
    }
    _mm512_castsi512_si128(sum)
}

/// The products of up to [`ROWS`] rows of whole blocks, `carry` added to the first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn products(key: &Key, carry: __m512i, blocks: &[u8]) -> Product {
    let mut power = blocks.len() / 16;
    let first = _mm512_xor_si512(reverse(load_row(blocks)), carry);
    let mut sum = multiply(first, key.powers_from(power));
    for row in blocks.chunks(64).skip(1) {
        power -= 4;
        sum = multiply_add(sum, reverse(load_row(row)), key.powers_from(power));
    }
    sum
}
