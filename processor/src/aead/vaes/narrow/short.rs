//! Packets of up to four rows: several at once, each reduced once.
//!
//! Opening hashes what came while the rounds of AES run; sealing hashes when they are done, and the CPU begins the next
//! packets meanwhile.

use std::arch::x86_64::*;

use super::super::{Job, Packet};
use super::block::{load_nonce, pin, reverse, reverse_one};
use super::ghash::{Product, absorb, fold, lengths, multiply, multiply_add, reduce};
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

/// What is hashed of a packet.
#[derive(Copy, Clone)]
struct Hashed<'a> {
    key: &'a Key,
    rows: Rows,
    /// What stands before the text.
    first: __m128i,
    lengths: __m128i,
}

impl Hashed<'_> {
    /// Adds the products of a row of what is sealed; the last is cut where the text ends.
    #[inline]
    #[target_feature(enable = "avx2,vpclmulqdq")]
    fn row<const ROWS: usize, const ODD: bool>(
        self,
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
            None => multiply(blocks, self.key.powers_from(power)),
            Some(sum) => multiply_add(sum, blocks, self.key.powers_from(power)),
        };
        if last && !ODD {
            let lengths = _mm256_zextsi128_si256(self.lengths);
            sum = multiply_add(sum, lengths, self.key.powers_from(1));
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
        let places = std::array::from_fn(|_| lowest(&mut which));
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
    let packets: [Packet<'_, Key>; PACKETS] = jobs.each_mut().map(|job| job.packet());
    let mut hashed = packets.map(|packet| Hashed {
        key: packet.key,
        rows: Rows(packet.text),
        first: _mm_setzero_si128(),
        lengths: lengths(packet.additional.len(), packet.text.len()),
    });
    let mut state = [[_mm256_setzero_si256(); ROWS]; PACKETS];
    for ((state, hashed), packet) in state.iter_mut().zip(&mut hashed).zip(&packets) {
        hashed.rows.ends_in(ROWS - 1, ODD);
        hashed.first = absorb(packet.key, packet.additional);
        let start = _mm256_xor_si256(load_nonce(packet.nonce), packet.key.round(0));
        for (row, state) in state.iter_mut().enumerate() {
            *state = _mm256_xor_si256(start, counters(row));
        }
    }
    let mut hashes = [_mm256_setzero_si256(); PACKETS];
    let mut sums = [None; PACKETS];
    unrolled!(round in 1 2 3 4 5 6 7 8 9 10 11 12 13; if round < ROUNDS {
        for (state, packet) in state.iter_mut().zip(&packets) {
            let key = packet.key.round(round);
            for state in state {
                *state = pin(_mm256_aesenc_epi128(*state, key));
            }
        }
        if J::OPEN {
            unrolled!(place in 0 1 2 3 4 5 6 7; {
                let from = PACKETS * ROWS * (round - 1) / (ROUNDS - 1);
                let to = PACKETS * ROWS * round / (ROUNDS - 1);
                if from <= place && place < to {
                    let (packet, row) = (place / ROWS, place % ROWS);
                    let hashed = hashed[packet];
                    let sealed = if row + 1 == ROWS {
                        hashed.rows.load_last(row, ODD)
                    } else {
                        hashed.rows.load(row)
                    };
                    let next = hashed.row::<ROWS, ODD>(sums[packet], row, sealed).pin();
                    if row + 1 == ROWS {
                        hashes[packet] = reduce(next);
                    } else {
                        sums[packet] = Some(next);
                    }
                }
            });
        }
    });
    for (state, packet) in state.iter_mut().zip(&packets) {
        let key = packet.key.round(ROUNDS);
        for state in state {
            *state = pin(_mm256_aesenclast_epi128(*state, key));
        }
    }
    let masks = state.map(|state| _mm256_castsi256_si128(state[0]));
    if !J::OPEN {
        unrolled!(packet in 0 1 2 3; if packet < PACKETS {
            let (state, hashed) = (&mut state[packet], hashed[packet]);
            write::<ROWS, ODD>(hashed.rows, state);
            let mut sum = None;
            unrolled!(row in 0 1 2 3; if row < ROWS {
                let mut sealed = state[row];
                if row + 1 == ROWS {
                    sealed = hashed.rows.cut(row, ODD, sealed);
                }
                sum = Some(hashed.row::<ROWS, ODD>(sum, row, sealed));
            });
            if let Some(sum) = sum {
                hashes[packet] = reduce(sum);
            }
        });
    }
    let texts = hashed.map(|hashed| hashed.rows);
    for ((((job, hash), mask), rows), state) in
        jobs.iter_mut().zip(hashes).zip(masks).zip(texts).zip(&mut state)
    {
        let right = job.finish(_mm_xor_si128(reverse_one(fold(hash)), mask));
        if J::OPEN && right {
            write::<ROWS, ODD>(rows, state);
        }
    }
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
