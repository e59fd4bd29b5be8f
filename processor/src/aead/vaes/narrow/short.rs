//! Packets of up to four rows: several at once, each reduced once.
//!
//! Opening hashes what came while the rounds of AES run; sealing hashes when they are done, and the CPU begins the next
//! packets meanwhile.

use std::arch::x86_64::*;

use super::super::ghash::{lengths, reverse_one};
use super::super::{Job, Packet};
use super::block::{load_nonce, pin, reverse};
use super::ghash::{Product, absorb, fold, multiply, multiply_add, reduce};
use super::key::Key;
use super::row::Rows;

/// The longest text that this serves, in rows.
pub(super) const ROWS: usize = 4;

/// The counters of the first rows, as they stand in the blocks.
#[repr(align(32))]
struct Counters([[u32; 8]; ROWS]);

static COUNTERS: Counters = {
    let mut counters = Counters([[0; 8]; ROWS]);
    let mut count = 0;
    while count < 2 * ROWS {
        counters.0[count / 2][count % 2 * 4 + 3] = (count as u32 + 1).to_be();
        count += 1;
    }
    counters
};

#[inline]
#[target_feature(enable = "avx2")]
fn counters(row: usize) -> __m256i {
    // SAFETY: 32 bytes of a static.
    unsafe { _mm256_load_si256(COUNTERS.0[row].as_ptr().cast()) }
}

/// What is hashed of a packet beside its text: the block in front of it, and the block of the two lengths, reversed.
#[derive(Copy, Clone)]
struct Beside {
    first: __m128i,
    lengths: __m128i,
}

impl Beside {
    /// Adds the products of a row of what is sealed; the last is cut where the text ends.
    #[inline]
    #[target_feature(enable = "avx2,vpclmulqdq")]
    fn add_row<const ROWS: usize, const ODD: bool>(
        self,
        key: &Key,
        sum: Option<Product>,
        row: usize,
        mut sealed: __m256i,
    ) -> Product {
        if row == 0 {
            sealed = _mm256_inserti128_si256::<0>(sealed, self.first);
        }
        let mut blocks = reverse(sealed);
        let last = row + 1 == ROWS;
        // The block of lengths takes the place that an odd number of blocks leaves.
        if last && ODD {
            blocks = _mm256_inserti128_si256::<1>(blocks, self.lengths);
        }
        let power = 2 * ROWS + usize::from(!ODD) - 2 * row;
        let mut sum = match sum {
            None => multiply(blocks, key.powers_from(power)),
            Some(sum) => multiply_add(sum, blocks, key.powers_from(power)),
        };
        if last && !ODD {
            let lengths = _mm256_zextsi128_si256(self.lengths);
            sum = multiply_add(sum, lengths, key.powers_from(1));
        }
        sum
    }
}

/// Seals or opens the jobs `which` has bits for, all of exactly `ROWS` rows under keys of `ROUNDS` rounds, so many at once; the last
/// row of each has one block if `ODD`, or else two.
#[inline(never)]
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
pub(super) fn short<J: Job, const ROUNDS: usize, const PACKETS: usize, const ROWS: usize, const ODD: bool>(
    jobs: &mut [J],
    mut which: u64,
) {
    while which.count_ones() as usize >= PACKETS {
        let mut places = [0; PACKETS];
        for place in &mut places {
            *place = lowest(&mut which);
        }
        let Ok(mut group) = jobs.get_disjoint_mut::<_, PACKETS>(places) else {
            unreachable!("every bit is the place of another job")
        };
        together::<J, ROUNDS, PACKETS, ROWS, ODD>(&mut group);
    }
    while which != 0 {
        together::<J, ROUNDS, 1, ROWS, ODD>(&mut [&mut jobs[lowest(&mut which)]]);
    }
}

/// Takes the lowest bit's number.
#[inline]
fn lowest(bits: &mut u64) -> usize {
    let place = bits.trailing_zeros() as usize;
    *bits &= bits.wrapping_sub(1);
    place
}

/// Rows that are worked on at once, at most.
const AT_ONCE: usize = 8;

#[expect(
    unused_assignments,
    reason = "of a loop that is written out, nobody reads what is assigned last"
)]
#[inline]
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
fn together<J: Job, const ROUNDS: usize, const PACKETS: usize, const ROWS: usize, const ODD: bool>(
    jobs: &mut [&mut J; PACKETS],
) {
    const { assert!(PACKETS * ROWS <= AT_ONCE && PACKETS <= 4 && ROWS <= 4) };
    let mut each = jobs.iter_mut();
    let Some(job) = each.next() else { return };
    // Filled where they stand: what `map` makes is copied, as vectors of the words just written, and the CPU would wait for it.
    let mut packets: [Packet<'_, Key>; PACKETS] = [job.packet(); PACKETS];
    unrolled!(packet in 1 2 3; if packet < PACKETS && let Some(job) = each.next() {
        packets[packet] = job.packet();
    });
    let mut texts = [Rows(packets[0].text); PACKETS];
    let nothing = _mm_setzero_si128();
    let mut beside = [Beside {
        first: nothing,
        lengths: nothing,
    }; PACKETS];
    let mut state = [[_mm256_setzero_si256(); ROWS]; PACKETS];
    unrolled!(packet in 0 1 2 3; if packet < PACKETS {
        let Packet { key, nonce, additional, text } = packets[packet];
        texts[packet] = Rows(text);
        texts[packet].ends_in(ROWS - 1, ODD);
        beside[packet].first = absorb(key, additional);
        beside[packet].lengths = lengths(additional.len(), text.len());
        let start = _mm256_xor_si256(load_nonce(nonce), key.round(0));
        unrolled!(row in 0 1 2 3; if row < ROWS {
            state[packet][row] = _mm256_xor_si256(start, counters(row));
        });
    });
    let mut hashes = [_mm256_setzero_si256(); PACKETS];
    let mut sums = [None; PACKETS];
    unrolled!(round in 1 2 3 4 5 6 7 8 9 10 11 12 13; if round < ROUNDS {
        unrolled!(packet in 0 1 2 3; if packet < PACKETS {
            let key = packets[packet].key.round(round);
            unrolled!(row in 0 1 2 3; if row < ROWS {
                state[packet][row] = pin(_mm256_aesenc_epi128(state[packet][row], key));
            });
        });
        if J::OPEN {
            unrolled!(place in 0 1 2 3 4 5 6 7; {
                let from = PACKETS * ROWS * (round - 1) / (ROUNDS - 1);
                let to = PACKETS * ROWS * round / (ROUNDS - 1);
                if from <= place && place < to {
                    let (packet, row) = (place / ROWS, place % ROWS);
                    let text = texts[packet];
                    let sealed = if row + 1 == ROWS { text.load_last(row, ODD) } else { text.load(row) };
                    let (key, sum) = (packets[packet].key, sums[packet]);
                    let next = beside[packet].add_row::<ROWS, ODD>(key, sum, row, sealed).pin();
                    if row + 1 == ROWS {
                        hashes[packet] = reduce(next);
                    } else {
                        sums[packet] = Some(next);
                    }
                }
            });
        }
    });
    unrolled!(packet in 0 1 2 3; if packet < PACKETS {
        let key = packets[packet].key.round(ROUNDS);
        unrolled!(row in 0 1 2 3; if row < ROWS {
            state[packet][row] = pin(_mm256_aesenclast_epi128(state[packet][row], key));
        });
    });
    let mut masks = [nothing; PACKETS];
    unrolled!(packet in 0 1 2 3; if packet < PACKETS {
        masks[packet] = _mm256_castsi256_si128(state[packet][0]);
    });
    if !J::OPEN {
        unrolled!(packet in 0 1 2 3; if packet < PACKETS {
            let (state, text) = (&mut state[packet], texts[packet]);
            write::<ROWS, ODD>(text, state);
            let mut sum = None;
            unrolled!(row in 0 1 2 3; if row < ROWS {
                let mut sealed = state[row];
                if row + 1 == ROWS {
                    sealed = text.cut(row, ODD, sealed);
                }
                sum = Some(beside[packet].add_row::<ROWS, ODD>(packets[packet].key, sum, row, sealed));
            });
            if let Some(sum) = sum {
                hashes[packet] = reduce(sum);
            }
        });
    }
    unrolled!(packet in 0 1 2 3; if packet < PACKETS {
        let tag = _mm_xor_si128(reverse_one(fold(hashes[packet])), masks[packet]);
        let right = jobs[packet].finish(tag);
        if J::OPEN && right {
            write::<ROWS, ODD>(texts[packet], &mut state[packet]);
        }
    });
}

/// Adds the source to the key stream and writes it.
#[inline]
#[target_feature(enable = "avx2")]
fn write<const ROWS: usize, const ODD: bool>(rows: Rows, state: &mut [__m256i; ROWS]) {
    unrolled!(row in 0 1 2 3; if row < ROWS {
        let source = if row + 1 == ROWS { rows.load_last(row, ODD) } else { rows.load(row) };
        state[row] = _mm256_xor_si256(state[row], source);
    });
    rows.store_last(ROWS - 1, ODD, state[ROWS - 1]);
    unrolled!(row in 2 1 0; if row + 1 < ROWS {
        rows.store(row, state[row]);
    });
}
