//! Packets of up to four rows: several at once, each reduced once.

use std::arch::x86_64::*;

use super::ghash::{absorb, fold, lengths, multiply_add, multiply_last, reduce, reverse, reverse_one, xor3};
use super::row::{load_nonce, pin};
use super::{Job, Packet};

/// The longest text that this serves, in rows.
pub(super) const ROWS: usize = 4;

/// The counters of the first rows, as they stand in the blocks.
#[repr(align(64))]
struct Counters([[u32; 16]; ROWS]);

static COUNTERS: Counters = {
    let mut counters = Counters([[0; 16]; ROWS]);
    let mut count = 0;
    while count < 4 * ROWS {
        counters.0[count / 4][count % 4 * 4 + 3] = (count as u32 + 1).to_be();
        count += 1;
    }
    counters
};

#[inline]
#[target_feature(enable = "avx512f")]
fn counters(row: usize) -> __m512i {
    // SAFETY: 64 bytes of a static.
    unsafe { _mm512_load_si512(COUNTERS.0[row].as_ptr().cast()) }
}

/// Seals or opens `PACKETS` packets of exactly `ROWS` rows each under keys of `ROUNDS` rounds; `EMPTY` is of those without
/// any text, as AES-GMAC has them.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,pclmulqdq,vpclmulqdq,bmi2")]
pub(super) fn short<
    J: Job,
    const ROUNDS: usize,
    const PACKETS: usize,
    const ROWS: usize,
    const EMPTY: bool,
>(
    mut jobs: [&mut J; PACKETS],
) {
    let packets: [Packet<'_>; PACKETS] = jobs.each_mut().map(|job| job.packet());
    let mut first = [_mm_setzero_si128(); PACKETS];
    for (first, packet) in first.iter_mut().zip(&packets) {
        *first = absorb(packet.key, packet.additional);
    }
    let mut state = [[_mm512_setzero_si512(); ROWS]; PACKETS];
    for (state, packet) in state.iter_mut().zip(&packets) {
        let (nonce, key) = (load_nonce(packet.nonce), packet.key.round(0));
        for (row, state) in state.iter_mut().enumerate() {
            *state = xor3(nonce, counters(row), key);
        }
    }
    for round in 1..ROUNDS {
        for (state, packet) in state.iter_mut().zip(&packets) {
            let key = packet.key.round(round);
            for state in state {
                *state = pin(_mm512_aesenc_epi128(*state, key));
            }
        }
    }
    for (state, packet) in state.iter_mut().zip(&packets) {
        let key = packet.key.round(ROUNDS);
        for state in state {
            *state = pin(_mm512_aesenclast_epi128(*state, key));
        }
    }
    let mut tags = [_mm_setzero_si128(); PACKETS];
    for (((state, packet), first), tag) in state.iter_mut().zip(&packets).zip(first).zip(&mut tags) {
        let text = packet.text;
        let mask = _mm512_castsi512_si128(state[0]);
        let mut power = text.blocks() + 1;
        let lengths = lengths(packet.additional.len(), text.len());
        let mut sum = multiply_last(lengths, packet.key.power_one());
        if EMPTY {
            let first = _mm512_zextsi128_si512(first);
            let sum = multiply_add(sum, first, packet.key.powers_from(power));
            *tag = _mm_xor_si128(reverse_one(fold(reduce(sum))), mask);
            continue;
        }
        for (row, state) in state.iter_mut().enumerate() {
            // All bytes of a row in the middle are the text's.
            let whole = row > 0 && row + 1 < ROWS;
            let input = if whole {
                text.load_whole(row)
            } else {
                text.load(row)
            };
            let output = _mm512_xor_si512(input, *state);
            let mut sealed = if J::OPEN { input } else { output };
            if !J::OPEN && !whole {
                sealed = _mm512_maskz_mov_epi8(text.mask(row), sealed);
            }
            *state = output;
            if !J::OPEN {
                if whole {
                    text.store_whole(row, output);
                } else {
                    text.store(row, output);
                }
            }
            let mut blocks = reverse(sealed);
            if row == 0 {
                blocks = _mm512_inserti32x4::<0>(blocks, first);
            }
            sum = multiply_add(sum, blocks, packet.key.powers_from(power));
            power = power.saturating_sub(4);
        }
        *tag = _mm_xor_si128(reverse_one(fold(reduce(sum))), mask);
    }
    let texts = packets.map(|packet| packet.text);
    for (((job, tag), text), state) in jobs.iter_mut().zip(tags).zip(texts).zip(state) {
        let right = job.finish(tag);
        if J::OPEN && right && !EMPTY {
            for (row, plain) in state.into_iter().enumerate() {
                text.store(row, plain);
            }
        }
    }
}
