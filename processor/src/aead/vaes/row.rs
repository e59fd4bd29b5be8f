//! The rows of a text: 64 bytes at a time, of which row 0 begins 16 bytes before the text, where the counter of the tag's
//! mask has its place. Only bytes of the text are read or written: masks leave the others out.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::aead::engine::Buffers;

/// Where the text of a job is read and written: the same place or two places that do not overlap.
#[derive(Copy, Clone)]
pub(super) struct Text {
    pub(super) source: *const u8,
    pub(super) destination: *mut u8,
    pub(super) length: usize,
}

impl Text {
    /// The buffers of a job, which the caller keeps borrowed as long as it uses the text.
    ///
    /// # Panics
    /// If source and destination differ in length, or are longer than AES-GCM's limit.
    #[inline]
    pub(super) fn of(buffers: &mut Buffers<'_>) -> Self {
        let text = match buffers {
            Buffers::InPlace(bytes) => Self {
                source: bytes.as_ptr(),
                destination: bytes.as_mut_ptr(),
                length: bytes.len(),
            },
            Buffers::Copy { source, destination } => {
                assert!(
                    source.len() == destination.len(),
                    "source and destination have the same length"
                );
                Self {
                    source: source.as_ptr(),
                    destination: destination.as_mut_ptr(),
                    length: source.len(),
                }
            }
        };
        assert!(
            text.length as u64 <= LONGEST,
            "a packet is shorter than AES-GCM's limit"
        );
        text
    }

    /// What was written, as a text to read.
    #[inline]
    pub(super) fn written(self) -> Self {
        Self {
            source: self.destination,
            ..self
        }
    }

    /// Bytes.
    #[inline]
    pub(super) fn len(self) -> usize {
        self.length
    }

    /// Rows, the tag's place counted: at least one.
    #[inline]
    pub(super) fn rows(self) -> usize {
        self.length / 64 + 1 + usize::from(self.length % 64 > 48)
    }

    /// Blocks, the tag's place counted: at least one.
    #[inline]
    pub(super) fn blocks(self) -> usize {
        self.length.div_ceil(16) + 1
    }

    /// The bytes of a row that are the text's.
    #[inline]
    pub(super) fn mask(self, row: usize) -> u64 {
        if row == 0 {
            low_bits(self.length.min(48)) << 16
        } else {
            low_bits((self.length + 16).saturating_sub(64 * row).min(64))
        }
    }

    /// A row of the source; bytes that are not the text's are zero.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn load(self, row: usize) -> __m512i {
        let from = self.source.wrapping_add(64 * row).wrapping_sub(16);
        // SAFETY: the mask leaves only bytes of the text, which its job borrows; others are not read.
        unsafe { _mm512_maskz_loadu_epi8(self.mask(row), from.cast()) }
    }

    /// Writes the bytes of a row that are the text's.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn store(self, row: usize, value: __m512i) {
        let to = self.destination.wrapping_add(64 * row).wrapping_sub(16);
        // SAFETY: as in `load`; the job borrows the destination for writing.
        unsafe { _mm512_mask_storeu_epi8(to.cast(), self.mask(row), value) }
    }

    /// A row of which every byte is the text's.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn load_whole(self, row: usize) -> __m512i {
        assert!(self.is_whole(row));
        // SAFETY: the 64 bytes are the text's, which its job borrows.
        unsafe { _mm512_loadu_si512(self.source.add(64 * row - 16).cast()) }
    }

    /// Writes a row of which every byte is the text's.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn store_whole(self, row: usize, value: __m512i) {
        assert!(self.is_whole(row));
        // SAFETY: as in `load_whole`; the job borrows the destination for writing.
        unsafe { _mm512_storeu_si512(self.destination.add(64 * row - 16).cast(), value) }
    }

    #[inline]
    fn is_whole(self, row: usize) -> bool {
        row > 0 && 64 * row + 48 <= self.length
    }

    /// Fills the destination with zeros.
    #[cold]
    pub(super) fn wipe(self) {
        // SAFETY: the destination is the job's, which borrows it for writing.
        unsafe { std::ptr::write_bytes(self.destination, 0, self.length) }
    }
}

/// Bytes that the 2^32 - 2 counters behind the tag's are good for (SP 800-38D 5.2.1.1).
const LONGEST: u64 = ((1 << 32) - 2) * 16;

/// The lowest `count` bits, at most 64.
#[inline]
pub(super) fn low_bits(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// The first 64 bytes, or as many as there are, with zeros behind.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load_row(bytes: &[u8]) -> __m512i {
    // SAFETY: the mask leaves only bytes of the slice.
    unsafe { _mm512_maskz_loadu_epi8(low_bits(bytes.len()), bytes.as_ptr().cast()) }
}

/// The nonce in every lane, with a counter of zero.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
pub(super) fn load_nonce(nonce: &[u8; 12]) -> __m512i {
    // SAFETY: the mask leaves the 12 bytes of the nonce.
    _mm512_broadcast_i32x4(unsafe { _mm_maskz_loadu_epi32(0b0111, nonce.as_ptr().cast()) })
}

/// Makes the compiler compute a value here: it would sink whole chains of rounds to where their end is used, one after the
/// other, and the CPU would wait for each.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn pin(mut value: __m512i) -> __m512i {
    // SAFETY: no instruction at all; the value stays in its register.
    unsafe { asm!("/* {0} */", inout(zmm_reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
