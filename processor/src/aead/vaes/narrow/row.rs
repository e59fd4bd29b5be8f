//! The rows of a text: 32 bytes at a time, of which row 0 begins 16 bytes before the text, where the counter of the tag's
//! mask has its place. Only bytes of the text are read or written: what is left of a block is taken from the text's last
//! 16 bytes, and written as those, before the block in front of it is.

use std::arch::x86_64::*;

use super::super::row::Text;
use super::super::schedule::{load, store};

/// A text, seen in rows of two blocks.
#[derive(Copy, Clone)]
pub(super) struct Rows(pub(super) Text);

impl Rows {
    /// Bytes.
    #[inline]
    pub(super) fn len(self) -> usize {
        self.0.length
    }

    /// What was written, as a text to read.
    #[inline]
    pub(super) fn written(self) -> Self {
        Self(self.0.written())
    }

    /// Blocks, the tag's place counted: at least one.
    #[inline]
    pub(super) fn blocks(self) -> usize {
        self.0.blocks()
    }

    /// Rows, the tag's place counted: at least one.
    #[inline]
    pub(super) fn rows(self) -> usize {
        self.0.blocks().div_ceil(2)
    }

    /// A row of the source of which every byte is the text's, but the tag's place.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn load(self, row: usize) -> __m256i {
        if row == 0 {
            return _mm256_inserti128_si256::<1>(_mm256_setzero_si256(), self.load_block(0));
        }
        let at = 32 * row - 16;
        assert!(at + 32 <= self.0.length);
        // SAFETY: the 32 bytes are the text's, which its job borrows.
        unsafe { _mm256_loadu_si256(self.0.source.add(at).cast()) }
    }

    /// Writes such a row.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn store(self, row: usize, value: __m256i) {
        if row == 0 {
            return self.store_block(0, _mm256_extracti128_si256::<1>(value));
        }
        let at = 32 * row - 16;
        assert!(at + 32 <= self.0.length);
        // SAFETY: as in `load`; the job borrows the destination for writing.
        unsafe { _mm256_storeu_si256(self.0.destination.add(at).cast(), value) }
    }

    /// So many rows from one on, not row 0, of which every byte is the text's.
    #[inline]
    pub(super) fn run(self, row: usize, count: usize) -> Run {
        assert!(row > 0 && 32 * (row + count) - 16 <= self.0.length);
        Run {
            source: self.0.source.wrapping_add(32 * row - 16),
            destination: self.0.destination.wrapping_add(32 * row - 16),
            count,
        }
    }

    /// The last row, of one block if `odd`; bytes that are not the text's are zero.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn load_last(self, row: usize, odd: bool) -> __m256i {
        if odd {
            return _mm256_zextsi128_si256(self.load_end(row, odd));
        }
        let low = if row == 0 {
            _mm_setzero_si128()
        } else {
            self.load_block(32 * row - 16)
        };
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), self.load_end(row, odd))
    }

    /// Writes the last row, and may spoil bytes in front of it, which are to be written after it.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn store_last(self, row: usize, odd: bool, value: __m256i) {
        if odd {
            return self.store_end(row, odd, _mm256_castsi256_si128(value));
        }
        self.store_end(row, odd, _mm256_extracti128_si256::<1>(value));
        if row > 0 {
            self.store_block(32 * row - 16, _mm256_castsi256_si128(value));
        }
    }

    /// The last row with zeros where it is not the text.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn cut(self, row: usize, odd: bool, value: __m256i) -> __m256i {
        let bytes = self.end(row, odd) + if odd { 0 } else { 16 };
        // SAFETY: 32 bytes of a static of 64, from 0 to 32.
        let mask = unsafe { _mm256_loadu_si256(KEEP.0.as_ptr().add(32 - bytes.min(32)).cast()) };
        _mm256_and_si256(value, mask)
    }

    /// The bytes of the last block that are the text's: 1 to 16, or none of an empty text.
    #[inline]
    fn end(self, row: usize, odd: bool) -> usize {
        self.0.length + 16 - 32 * row - if odd { 0 } else { 16 }
    }

    /// Makes sure that the text ends in this row, with its first block if `odd`, or else with its second.
    #[inline]
    pub(super) fn ends_in(self, row: usize, odd: bool) {
        let blocks = 2 * row + if odd { 0 } else { 1 };
        assert!(
            self.0.length <= 16 * blocks && (blocks == 0 || self.0.length > 16 * (blocks - 1)),
            "a text of so many blocks"
        );
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_block(self, at: usize) -> __m128i {
        assert!(at + 16 <= self.0.length);
        // SAFETY: the 16 bytes are the text's, which its job borrows.
        unsafe { _mm_loadu_si128(self.0.source.add(at).cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store_block(self, at: usize, value: __m128i) {
        assert!(at + 16 <= self.0.length);
        // SAFETY: as in `load_block`; the job borrows the destination for writing.
        unsafe { _mm_storeu_si128(self.0.destination.add(at).cast(), value) }
    }

    /// The last block, with zeros behind.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_end(self, row: usize, odd: bool) -> __m128i {
        if self.0.length < 16 {
            return self.load_less();
        }
        _mm_shuffle_epi8(
            self.load_block(self.0.length - 16),
            order(32 - self.end(row, odd)),
        )
    }

    /// Writes the last block, and zeros in front, up to 16 bytes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn store_end(self, row: usize, odd: bool, value: __m128i) {
        if self.0.length < 16 {
            return self.store_less(value);
        }
        self.store_block(
            self.0.length - 16,
            _mm_shuffle_epi8(value, order(self.end(row, odd))),
        );
    }

    /// A text of less than a block.
    #[cold]
    #[target_feature(enable = "avx2")]
    fn load_less(self) -> __m128i {
        let mut block = [0; 16];
        let length = self.0.length.min(16);
        // SAFETY: the bytes of the text, which its job borrows, and no more than the block has.
        unsafe { std::ptr::copy_nonoverlapping(self.0.source, block.as_mut_ptr(), length) };
        load(&block)
    }

    #[cold]
    #[target_feature(enable = "avx2")]
    fn store_less(self, value: __m128i) {
        let mut block = [0; 16];
        store(&mut block, value);
        let length = self.0.length.min(16);
        // SAFETY: as in `load_less`; the job borrows the destination for writing.
        unsafe { std::ptr::copy_nonoverlapping(block.as_ptr(), self.0.destination, length) };
    }
}

/// Rows that are the text's as a whole: looked at once, not row by row.
#[derive(Copy, Clone)]
pub(super) struct Run {
    source: *const u8,
    destination: *mut u8,
    count: usize,
}

impl Run {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn load(self, row: usize) -> __m256i {
        assert!(row < self.count);
        // SAFETY: a row of those that `Rows::run` has found to be the text's, which its job borrows.
        unsafe { _mm256_loadu_si256(self.source.add(32 * row).cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn store(self, row: usize, value: __m256i) {
        assert!(row < self.count);
        // SAFETY: as in `load`; the job borrows the destination for writing.
        unsafe { _mm256_storeu_si256(self.destination.add(32 * row).cast(), value) }
    }
}

#[repr(align(64))]
struct Table<const BYTES: usize>([u8; BYTES]);

/// 32 bytes that keep, 32 that do not.
static KEEP: Table<64> = {
    let mut keep = Table([0; 64]);
    let mut place = 0;
    while place < 32 {
        keep.0[place] = 0xff;
        place += 1;
    }
    keep
};

/// Zeros, the bytes of a block in their order, zeros.
static ORDER: Table<48> = {
    let mut order = Table([0x80; 48]);
    let mut place = 0;
    while place < 16 {
        order.0[16 + place] = place as u8;
        place += 1;
    }
    order
};

/// The order from a place on: 16 leaves a block as it is, more moves its bytes to the front, less to the end.
#[inline]
fn order(from: usize) -> __m128i {
    // SAFETY: 16 bytes of a static of 48, from 0 to 32.
    unsafe { _mm_loadu_si128(ORDER.0.as_ptr().add(from.min(32)).cast()) }
}
