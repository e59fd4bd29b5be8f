//! GHASH over rows of two blocks, by carry-less multiplication: as the wide form's, but that each product is made of three
//! multiplications, not four (Karatsuba): multiplying is what takes the time here.

use std::arch::x86_64::*;

use super::super::ghash::reverse_one;
use super::block::{load_row, low, pin, reverse, with_zeros};
use super::key::{Key, Powers};

/// The sum of products, not reduced. The middle part is that of the sums of halves: low and high part still belong to it.
#[derive(Copy, Clone)]
pub(super) struct Product {
    low: __m256i,
    middle: __m256i,
    high: __m256i,
}

impl Product {
    /// See [`pin`].
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn pin(self) -> Self {
        Self {
            low: pin(self.low),
            middle: pin(self.middle),
            high: pin(self.high),
        }
    }
}

/// No products yet.
pub(super) const NOTHING: Product = {
    // SAFETY: any bits are a vector.
    let zero: __m256i = unsafe { std::mem::zeroed() };
    Product {
        low: zero,
        middle: zero,
        high: zero,
    }
};

/// Of each block, the sum of its halves, in both halves.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn halves(blocks: __m256i) -> __m256i {
    _mm256_xor_si256(blocks, _mm256_shuffle_epi32::<0x4e>(blocks))
}

/// The product of each block with the power in its place.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
pub(super) fn multiply(blocks: __m256i, powers: Powers) -> Product {
    Product {
        low: _mm256_clmulepi64_epi128::<0x00>(blocks, powers.whole),
        middle: _mm256_clmulepi64_epi128::<0x00>(halves(blocks), powers.halves),
        high: _mm256_clmulepi64_epi128::<0x11>(blocks, powers.whole),
    }
}

/// Adds one more row's products.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
pub(super) fn multiply_add(sum: Product, blocks: __m256i, powers: Powers) -> Product {
    let more = multiply(blocks, powers);
    Product {
        low: _mm256_xor_si256(sum.low, more.low),
        middle: _mm256_xor_si256(sum.middle, more.middle),
        high: _mm256_xor_si256(sum.high, more.high),
    }
}

/// The two sums modulo the polynomial.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
pub(super) fn reduce(sum: Product) -> __m256i {
    // The terms x^127, x^126 and x^121.
    let polynomial = _mm256_set1_epi64x(0xc2_u64.rotate_right(8) as i64);
    let middle = _mm256_xor_si256(sum.middle, _mm256_xor_si256(sum.low, sum.high));
    let middle = _mm256_xor_si256(
        _mm256_xor_si256(middle, _mm256_shuffle_epi32::<0x4e>(sum.low)),
        _mm256_clmulepi64_epi128::<0x00>(sum.low, polynomial),
    );
    _mm256_xor_si256(
        _mm256_xor_si256(sum.high, _mm256_shuffle_epi32::<0x4e>(middle)),
        _mm256_clmulepi64_epi128::<0x00>(middle, polynomial),
    )
}

/// The sum of the two lanes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn fold(lanes: __m256i) -> __m128i {
    _mm_xor_si128(
        _mm256_castsi256_si128(lanes),
        _mm256_extracti128_si256::<1>(lanes),
    )
}

/// What stands in the place before the text, its bytes in the order of memory: GHASH of what is authenticated only, but for
/// the last multiplication.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
pub(super) fn absorb(key: &Key, additional: &[u8]) -> __m128i {
    // ESP authenticates 8 bytes, or 12 with extended sequence numbers.
    match *additional {
        [a, b, c, d, e, f, g, h] => _mm_set_epi64x(0, i64::from_le_bytes([a, b, c, d, e, f, g, h])),
        [a, b, c, d, e, f, g, h, i, j, k, l] => _mm_set_epi64x(
            i64::from(u32::from_le_bytes([i, j, k, l])),
            i64::from_le_bytes([a, b, c, d, e, f, g, h]),
        ),
        _ => absorb_any(key, additional),
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn absorb_any(key: &Key, additional: &[u8]) -> __m128i {
    let (whole, last) = additional.split_at(additional.len().saturating_sub(1) / 16 * 16);
    let last = with_zeros(last);
    if whole.is_empty() {
        return last;
    }
    _mm_xor_si128(last, reverse_one(hash(key, whole)))
}

/// Rows that are hashed before they are reduced.
const ROWS: usize = 8;

/// GHASH of whole blocks.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn hash(key: &Key, blocks: &[u8]) -> __m128i {
    let mut carry = _mm_setzero_si128();
    for chunk in blocks.chunks(ROWS * 32) {
        let (rows, last) = chunk.as_chunks::<32>();
        let mut power = chunk.len() / 16;
        let mut first = _mm256_zextsi128_si256(carry);
        let mut sum = NOTHING;
        for row in rows {
            let blocks = _mm256_xor_si256(reverse(load_row(row)), first);
            sum = multiply_add(sum, blocks, key.powers_from(power));
            first = _mm256_setzero_si256();
            power = power.saturating_sub(2);
        }
        if let Some(last) = last.first_chunk::<16>() {
            let blocks = _mm256_xor_si256(reverse(low(last)), first);
            sum = multiply_add(sum, blocks, key.powers_from(1));
        }
        carry = fold(reduce(sum));
    }
    carry
}
