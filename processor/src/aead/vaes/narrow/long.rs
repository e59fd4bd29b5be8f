//! Packets of more than four rows, one at a time: chunks of five to nine rows, as few and as equal as can be, in which the
//! rounds of AES and GHASH run side by side.
//!
//! Opening hashes the rows that it decrypts, sealing the rows of the chunk before: those it has just written.

use std::arch::x86_64::*;

use super::super::{Job, Packet};
use super::ghash::{NOTHING, Product, absorb, fold, lengths, multiply_add, reduce};
use super::key::Key;
use super::row::{Rows, load_nonce, pin, reverse, reverse_one};

/// Rows of the longest chunk.
const CHUNK: usize = 9;

/// One packet, and how far it is.
struct Message<'a> {
    key: &'a Key,
    text: Rows,
    rows: usize,
    /// Whether the last row has one block.
    odd: bool,
    lengths: __m128i,
    /// The first row that is not done.
    next: usize,
    /// Rows of the chunk before.
    before: usize,
    /// The next row's counter blocks, but the counters of this byte order.
    counter: __m256i,
    /// What is added to the first block of the rows that are hashed next.
    carry: __m128i,
    /// What the tag is masked with.
    mask: __m128i,
}

/// Seals or opens one packet of at least five rows under a key of `ROUNDS` rounds.
#[inline(never)]
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
pub(super) fn long<J: Job, const ROUNDS: usize>(job: &mut J) {
    let packet: Packet<'_, Key> = job.packet();
    let text = Rows(packet.text);
    let rows = text.rows();
    let mut message = Message {
        key: packet.key,
        text,
        rows,
        odd: text.blocks() % 2 == 1,
        lengths: lengths(packet.additional.len(), text.len()),
        next: 0,
        before: 0,
        counter: _mm256_or_si256(
            load_nonce(packet.nonce),
            _mm256_set_epi32(2, 0, 0, 0, 1, 0, 0, 0),
        ),
        carry: reverse_one(absorb(packet.key, packet.additional)),
        mask: _mm_setzero_si128(),
    };
    text.ends_in(rows - 1, message.odd);
    let chunks = rows.div_ceil(CHUNK);
    let (each, longer) = (rows / chunks, rows % chunks);
    for chunk in 0..chunks {
        match each + usize::from(chunk < longer) {
            5 => message.chunk::<J, ROUNDS, 5>(),
            6 => message.chunk::<J, ROUNDS, 6>(),
            7 => message.chunk::<J, ROUNDS, 7>(),
            8 => message.chunk::<J, ROUNDS, 8>(),
            9 => message.chunk::<J, ROUNDS, 9>(),
            _ => unreachable!("five rows or more, of nine at most each"),
        }
    }
    let tag = _mm_xor_si128(reverse_one(message.carry), message.mask);
    if !job.finish(tag) {
        text.0.wipe();
    }
}

impl Message<'_> {
    /// The next `ROWS` rows. After the last of them, `carry` is the hash of everything.
    #[inline]
    #[target_feature(enable = "avx2,vaes,vpclmulqdq")]
    fn chunk<J: Job, const ROUNDS: usize, const ROWS: usize>(&mut self) {
        let (key, text, next) = (self.key, self.text, self.next);
        let last = next + ROWS == self.rows;
        let (hashed, first_hashed) = if J::OPEN {
            (ROWS, next)
        } else {
            (self.before, next - self.before)
        };
        // The power of H that the first block that is hashed beside the rounds belongs to.
        let after_this = text.blocks() + 1 - 2 * next;
        let power = if J::OPEN && last { after_this } else { 2 * hashed };
        let mut state = [_mm256_setzero_si256(); ROWS];
        let order = _mm256_broadcastsi128_si256(_mm_set_epi8(12, 13, 14, 15, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
        let two = _mm256_set_epi32(2, 0, 0, 0, 2, 0, 0, 0);
        let whitening = key.round(0);
        for state in &mut state {
            *state = pin(_mm256_xor_si256(
                _mm256_shuffle_epi8(self.counter, order),
                whitening,
            ));
            self.counter = _mm256_add_epi32(self.counter, two);
        }
        let mut sum = NOTHING;
        unrolled!(round in 1 2 3 4 5 6 7 8 9 10 11 12 13; if round < ROUNDS {
            let round_key = key.round(round);
            for state in &mut state {
                *state = pin(_mm256_aesenc_epi128(*state, round_key));
            }
            let row = round - 1;
            if row < CHUNK && row < hashed {
                let sealed = if J::OPEN {
                    if last && row + 1 == ROWS {
                        text.load_last(first_hashed + row, self.odd)
                    } else {
                        text.load(first_hashed + row)
                    }
                } else {
                    text.written().load(first_hashed + row)
                };
                let last = J::OPEN && last && row + 1 == ROWS;
                sum = self.add(sum, row == 0, last, sealed, power - 2 * row).pin();
            }
        });
        let round_key = key.round(ROUNDS);
        for state in &mut state {
            *state = pin(_mm256_aesenclast_epi128(*state, round_key));
        }
        if next == 0 {
            self.mask = _mm256_castsi256_si128(state[0]);
        }
        if hashed > 0 {
            self.carry = fold(reduce(sum));
        }
        unrolled!(row in 0 1 2 3 4 5 6 7 8; if row < ROWS {
            let source = if row + 1 == ROWS && last {
                text.load_last(next + row, self.odd)
            } else {
                text.load(next + row)
            };
            state[row] = _mm256_xor_si256(state[row], source);
        });
        unrolled!(row in 8 7 6 5 4 3 2 1 0; if row < ROWS {
            if row + 1 == ROWS && last {
                text.store_last(next + row, self.odd, state[row]);
            } else {
                text.store(next + row, state[row]);
            }
        });
        self.next += ROWS;
        self.before = ROWS;
        if last && !J::OPEN {
            let mut sum = NOTHING;
            unrolled!(row in 0 1 2 3 4 5 6 7 8; if row < ROWS {
                let mut sealed = state[row];
                if row == 0 && next == 0 {
                    sealed = _mm256_inserti128_si256::<0>(sealed, _mm_setzero_si128());
                }
                if row + 1 == ROWS {
                    sealed = text.cut(next + row, self.odd, sealed);
                }
                sum = self.add(sum, row == 0, row + 1 == ROWS, sealed, after_this - 2 * row);
            });
            self.carry = fold(reduce(sum));
        }
    }

    /// Adds the products of a row, the carry to the `first`, the lengths behind the `last`.
    #[inline]
    #[target_feature(enable = "avx2,vpclmulqdq")]
    fn add(&self, sum: Product, first: bool, last: bool, sealed: __m256i, power: usize) -> Product {
        let mut blocks = reverse(sealed);
        if first {
            blocks = _mm256_xor_si256(blocks, _mm256_zextsi128_si256(self.carry));
        }
        let mut sum = sum;
        if last {
            // They take the place that an odd number of blocks leaves.
            if self.odd {
                blocks = _mm256_inserti128_si256::<1>(blocks, self.lengths);
            } else {
                let lengths = _mm256_zextsi128_si256(self.lengths);
                sum = multiply_add(sum, lengths, self.key.powers_from(1));
            }
        }
        multiply_add(sum, blocks, self.key.powers_from(power))
    }
}
