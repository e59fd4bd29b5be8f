//! Packets of more than four rows, one at a time: chunks of eight rows, where the rounds of AES and GHASH run side by side.
//!
//! Opening hashes the rows that it decrypts, sealing the rows of the chunk before: those it has just written.

use std::arch::x86_64::*;

use super::Job;
use super::ghash::{
    Product, absorb, fold, lengths, multiply, multiply_add, multiply_last, reduce, reverse, reverse_one,
};
use super::key::Key;
use super::row::{Text, load_nonce, pin};

/// Rows of a chunk.
const CHUNK: usize = 8;

/// One packet of more than four rows, and how far it is.
struct Message<'a> {
    key: &'a Key,
    text: Text,
    rows: usize,
    lengths: __m128i,
    /// The first row that is not done.
    next: usize,
    /// That row's counter blocks, but the counters of this byte order.
    counter: __m512i,
    /// What is added to the first block of the rows that are hashed next.
    carry: __m512i,
    /// What the tag is masked with.
    mask: __m128i,
}

/// Seals or opens one packet of more than four rows under a key of `ROUNDS` rounds.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,pclmulqdq,vpclmulqdq,bmi2")]
pub(super) fn long<J: Job, const ROUNDS: usize>(job: &mut J) {
    let packet = job.packet();
    let text = packet.text;
    let mut message = Message {
        key: packet.key,
        text,
        rows: text.rows(),
        lengths: lengths(packet.additional.len(), text.len()),
        next: 0,
        counter: _mm512_or_si512(
            load_nonce(packet.nonce),
            _mm512_set_epi32(4, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0),
        ),
        carry: _mm512_zextsi128_si512(absorb(packet.key, packet.additional)),
        mask: _mm_setzero_si128(),
    };
    match message.rows {
        5 => message.chunk::<J, ROUNDS, 5, true, true>(),
        6 => message.chunk::<J, ROUNDS, 6, true, true>(),
        7 => message.chunk::<J, ROUNDS, 7, true, true>(),
        8 => message.chunk::<J, ROUNDS, 8, true, true>(),
        _ => {
            message.chunk::<J, ROUNDS, CHUNK, true, false>();
            message.rest::<J, ROUNDS>();
        }
    }
    let tag = _mm_xor_si128(reverse_one(_mm512_castsi512_si128(message.carry)), message.mask);
    if !job.finish(tag) {
        text.wipe();
    }
}

impl Message<'_> {
    /// Every chunk but the first.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,pclmulqdq,vpclmulqdq,bmi2")]
    fn rest<J: Job, const ROUNDS: usize>(&mut self) {
        while self.rows - self.next > CHUNK {
            self.chunk::<J, ROUNDS, CHUNK, false, false>();
        }
        match self.rows - self.next {
            1 => self.chunk::<J, ROUNDS, 1, false, true>(),
            2 => self.chunk::<J, ROUNDS, 2, false, true>(),
            3 => self.chunk::<J, ROUNDS, 3, false, true>(),
            4 => self.chunk::<J, ROUNDS, 4, false, true>(),
            5 => self.chunk::<J, ROUNDS, 5, false, true>(),
            6 => self.chunk::<J, ROUNDS, 6, false, true>(),
            7 => self.chunk::<J, ROUNDS, 7, false, true>(),
            _ => self.chunk::<J, ROUNDS, 8, false, true>(),
        }
    }

    /// The next `ROWS` rows. After the last of them, `carry` is the hash of everything.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,pclmulqdq,vpclmulqdq,bmi2")]
    fn chunk<J: Job, const ROUNDS: usize, const ROWS: usize, const FIRST: bool, const LAST: bool>(&mut self) {
        let (key, text, next) = (self.key, self.text, self.next);
        // The power of H that the first block that is hashed beside the rounds belongs to.
        let after_this = text.blocks() + 1 - 4 * next;
        let (hashed, first_hashed, power) = if J::OPEN {
            (ROWS, next, if LAST { after_this } else { 4 * CHUNK })
        } else if FIRST {
            (0, 0, 0)
        } else {
            (CHUNK, next - CHUNK, 4 * CHUNK)
        };
        let mut state = [_mm512_setzero_si512(); ROWS];
        let order =
            _mm512_broadcast_i32x4(_mm_set_epi8(12, 13, 14, 15, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
        let four = _mm512_set_epi32(4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0);
        let whitening = key.round(0);
        for state in &mut state {
            *state = pin(_mm512_xor_si512(
                _mm512_shuffle_epi8(self.counter, order),
                whitening,
            ));
            self.counter = _mm512_add_epi32(self.counter, four);
        }
        let mut sum: Option<Product> = None;
        for round in 1..ROUNDS {
            let round_key = key.round(round);
            for state in &mut state {
                *state = pin(_mm512_aesenc_epi128(*state, round_key));
            }
            let row = round - 1;
            if row < hashed {
                let mut blocks = reverse(self.sealed_row::<J>(first_hashed + row, LAST && row + 1 == ROWS));
                if row == 0 {
                    blocks = _mm512_xor_si512(blocks, self.carry);
                }
                let powers = key.powers_from(power - 4 * row);
                sum = Some(match sum {
                    Some(sum) => multiply_add(sum, blocks, powers).pin(),
                    None => multiply(blocks, powers),
                });
            }
        }
        let round_key = key.round(ROUNDS);
        for state in &mut state {
            *state = pin(_mm512_aesenclast_epi128(*state, round_key));
        }
        if FIRST {
            self.mask = _mm512_castsi512_si128(state[0]);
        }
        for (row, state) in state.iter_mut().enumerate() {
            // All bytes of the rows between the first and the last are the text's.
            if row == 0 || (LAST && row + 1 == ROWS) {
                let output = _mm512_xor_si512(text.load(next + row), *state);
                text.store(next + row, output);
                *state = output;
            } else {
                let output = _mm512_xor_si512(text.load_whole(next + row), *state);
                text.store_whole(next + row, output);
                *state = output;
            }
        }
        self.next += ROWS;
        if LAST && J::OPEN {
            sum = Some(multiply_last(self.lengths, key.power_one()).plus(sum));
        }
        if let Some(sum) = sum {
            self.carry = _mm512_zextsi128_si512(fold(reduce(sum)));
        }
        if LAST && !J::OPEN {
            let mut sum = multiply_last(self.lengths, key.power_one());
            for (row, state) in state.into_iter().enumerate() {
                let mut sealed = state;
                if row == 0 || row + 1 == ROWS {
                    sealed = _mm512_maskz_mov_epi8(text.mask(next + row), sealed);
                }
                let mut blocks = reverse(sealed);
                if row == 0 {
                    blocks = _mm512_xor_si512(blocks, self.carry);
                }
                sum = multiply_add(sum, blocks, key.powers_from(after_this - 4 * row));
            }
            self.carry = _mm512_zextsi128_si512(fold(reduce(sum)));
        }
    }

    /// A row of what is sealed: of the source where it is opened, of what was written where it was sealed.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn sealed_row<J: Job>(&self, row: usize, last: bool) -> __m512i {
        let text = if J::OPEN { self.text } else { self.text.written() };
        if row == 0 || (J::OPEN && last) {
            text.load(row)
        } else {
            text.load_whole(row)
        }
    }
}
