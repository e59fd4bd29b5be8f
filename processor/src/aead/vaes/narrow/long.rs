//! Packets of more than four rows, one at a time: chunks of five to ten rows, as few and as equal as can be, in which the
//! rounds of AES and GHASH run side by side.
//!
//! Opening hashes the rows that it decrypts, sealing the rows of the chunk before: those it has just written.

use std::arch::x86_64::*;

use super::super::ghash::{lengths, reverse_one};
use super::super::{Job, Packet};
use super::block::{load_nonce, pin, reverse, twice};
use super::ghash::{NOTHING, Product, absorb, fold, multiply_add, reduce};
use super::key::Key;
use super::row::Rows;

/// Rows of the longest chunk.
const CHUNK: usize = 10;

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
    /// What is added to the first block of the rows that are hashed next, its bytes in the order of memory.
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
        counter: _mm256_or_si256(load_nonce(packet.nonce), _mm256_set_epi32(2, 0, 0, 0, 1, 0, 0, 0)),
        carry: absorb(packet.key, packet.additional),
        mask: _mm_setzero_si128(),
    };
    text.ends_in(rows - 1, message.odd);
    let chunks = rows.div_ceil(CHUNK);
    let (each, longer) = (rows / chunks, rows % chunks);
    for chunk in 0..chunks {
        match (each + usize::from(chunk < longer), chunk == 0) {
            (5, true) => message.chunk::<J, ROUNDS, 5, true>(),
            (6, true) => message.chunk::<J, ROUNDS, 6, true>(),
            (7, true) => message.chunk::<J, ROUNDS, 7, true>(),
            (8, true) => message.chunk::<J, ROUNDS, 8, true>(),
            (9, true) => message.chunk::<J, ROUNDS, 9, true>(),
            (10, true) => message.chunk::<J, ROUNDS, 10, true>(),
            (5, false) => message.chunk::<J, ROUNDS, 5, false>(),
            (6, false) => message.chunk::<J, ROUNDS, 6, false>(),
            (7, false) => message.chunk::<J, ROUNDS, 7, false>(),
            (8, false) => message.chunk::<J, ROUNDS, 8, false>(),
            (9, false) => message.chunk::<J, ROUNDS, 9, false>(),
            (10, false) => message.chunk::<J, ROUNDS, 10, false>(),
            _ => unreachable!("chunks of five rows or more, of ten at most"),
        }
    }
    let tag = _mm_xor_si128(message.carry, message.mask);
    if !job.finish(tag) {
        text.0.wipe();
    }
}

impl Message<'_> {
    /// The next `ROWS` rows. After the last of them, `carry` is the hash of everything.
    ///
    /// A function of its own for each shape: in one, the compiler prepares for all of them first.
    #[inline(never)]
    #[target_feature(enable = "avx2,vaes,vpclmulqdq")]
    fn chunk<J: Job, const ROUNDS: usize, const ROWS: usize, const FIRST: bool>(&mut self) {
        let (key, text, next) = (self.key, self.text, if FIRST { 0 } else { self.next });
        let last = next + ROWS == self.rows;
        // Rows between the first and the last of a chunk are the text's as a whole.
        let between = text.run(next + 1, ROWS - 2);
        // The power of H that the first block of this chunk belongs to, if it is the last.
        let final_power = text.blocks() + 1 - 2 * next;
        let mut state = self.counters::<ROWS>();
        let mut sum = NOTHING;
        // Sealing, the chunk before is as long as this one or one row longer.
        let (from, longer) = if J::OPEN {
            (next, false)
        } else {
            (next - self.before, self.before > ROWS)
        };
        let hashed = if J::OPEN {
            between
        } else if FIRST {
            text.run(1, 0)
        } else {
            text.written().run(from + 1, ROWS - 1)
        };
        let power = if J::OPEN && last {
            final_power
        } else {
            2 * (ROWS + usize::from(longer))
        };
        let powers = key.powers_of_rows(power, ROWS);
        // A row that is hashed: one a round, and a tenth where AES-128 has nine rounds beside which there is room.
        macro_rules! hash {
            ($row:expr) => {
                let row = $row;
                if row < ROWS && (J::OPEN || !FIRST) {
                    let sealed = if row == 0 {
                        let text = if J::OPEN { text } else { text.written() };
                        _mm256_xor_si256(text.load(from), self.carried())
                    } else if J::OPEN && row + 1 == ROWS {
                        self.load_last(next + row, last)
                    } else {
                        hashed.load(row - 1)
                    };
                    let mut blocks = reverse(sealed);
                    if J::OPEN && row + 1 == ROWS && last {
                        (sum, blocks) = self.with_lengths(sum, blocks);
                    }
                    sum = multiply_add(sum, blocks, powers.of(row)).pin();
                }
            };
        }
        const { assert!(ROWS <= ROUNDS) };
        unrolled!(round in 1 2 3 4 5 6 7 8 9 10 11 12 13; if round < ROUNDS {
            let round_key = key.round(round);
            unrolled!(row in 0 1 2 3 4 5 6 7 8 9; if row < ROWS {
                state[row] = pin(_mm256_aesenc_epi128(state[row], round_key));
            });
            hash!(round - 1);
        });
        hash!(ROUNDS - 1);
        if longer {
            let blocks = reverse(text.written().load(next - 1));
            sum = multiply_add(sum, blocks, key.powers_from(2));
        }
        let round_key = key.round(ROUNDS);
        unrolled!(row in 0 1 2 3 4 5 6 7 8 9; if row < ROWS {
            state[row] = pin(_mm256_aesenclast_epi128(state[row], round_key));
        });
        if FIRST {
            self.mask = _mm256_castsi256_si128(state[0]);
        }
        if J::OPEN || !FIRST {
            self.carry = reverse_one(fold(reduce(sum)));
        }
        state[0] = _mm256_xor_si256(state[0], text.load(next));
        unrolled!(row in 1 2 3 4 5 6 7 8; if row + 1 < ROWS {
            state[row] = _mm256_xor_si256(state[row], between.load(row - 1));
        });
        state[ROWS - 1] = _mm256_xor_si256(state[ROWS - 1], self.load_last(next + ROWS - 1, last));
        if last {
            text.store_last(next + ROWS - 1, self.odd, state[ROWS - 1]);
        } else {
            text.store(next + ROWS - 1, state[ROWS - 1]);
        }
        unrolled!(row in 8 7 6 5 4 3 2 1; if row + 1 < ROWS {
            between.store(row - 1, state[row]);
        });
        text.store(next, state[0]);
        self.next = next + ROWS;
        self.before = ROWS;
        if last && !J::OPEN {
            let powers = key.powers_of_rows(final_power, ROWS);
            let mut sum = NOTHING;
            unrolled!(row in 0 1 2 3 4 5 6 7 8 9; if row < ROWS {
                let mut sealed = state[row];
                if row == 0 {
                    if FIRST {
                        // The tag's mask is nothing that is sealed.
                        sealed = _mm256_inserti128_si256::<0>(sealed, _mm_setzero_si128());
                    }
                    sealed = _mm256_xor_si256(sealed, self.carried());
                }
                if row + 1 == ROWS {
                    sealed = text.cut(next + row, self.odd, sealed);
                }
                let mut blocks = reverse(sealed);
                if row + 1 == ROWS {
                    (sum, blocks) = self.with_lengths(sum, blocks);
                }
                sum = multiply_add(sum, blocks, powers.of(row));
            });
            self.carry = reverse_one(fold(reduce(sum)));
        }
    }

    /// The counter blocks of the next rows, with the first round key.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn counters<const ROWS: usize>(&mut self) -> [__m256i; ROWS] {
        let order = _mm_set_epi8(12, 13, 14, 15, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        let two = _mm256_set_epi32(2, 0, 0, 0, 2, 0, 0, 0);
        let mut state = [_mm256_setzero_si256(); ROWS];
        unrolled!(row in 0 1 2 3 4 5 6 7 8 9; if row < ROWS {
            let counter = _mm256_shuffle_epi8(self.counter, twice(order));
            state[row] = pin(_mm256_xor_si256(counter, self.key.round(0)));
            self.counter = _mm256_add_epi32(self.counter, two);
        });
        state
    }

    /// The last row of a chunk, and of the text if `last`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_last(&self, row: usize, last: bool) -> __m256i {
        if last {
            self.text.load_last(row, self.odd)
        } else {
            self.text.load(row)
        }
    }

    /// What is added to the first row that is hashed next.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn carried(&self) -> __m256i {
        _mm256_zextsi128_si256(self.carry)
    }

    /// The last row with the block of lengths in the place that an odd number of blocks leaves; or else its product in the sum.
    #[inline]
    #[target_feature(enable = "avx2,vpclmulqdq")]
    fn with_lengths(&self, sum: Product, blocks: __m256i) -> (Product, __m256i) {
        if self.odd {
            return (sum, _mm256_inserti128_si256::<1>(blocks, self.lengths));
        }
        let lengths = _mm256_zextsi128_si256(self.lengths);
        (multiply_add(sum, lengths, self.key.powers_from(1)), blocks)
    }
}
