//! Packets of more than four rows, one at a time: chunks of four rows, where the rounds of AES and GHASH run side by side.

use std::arch::x86_64::*;

use super::Job;
use super::ghash::{
    Product, absorb, fold, lengths, multiply, multiply_add, multiply_last, reduce, reverse, reverse_one,
};
use super::key::Key;
use super::row::{Text, load_nonce, pin};

/// Rows of a chunk.
const CHUNK: usize = 4;

type Rows = [__m512i; CHUNK];

/// The key schedule and the counter of one packet.
struct Stream {
    rounds: [__m512i; 15],
    /// The next row's blocks, but the counters of this byte order.
    counter: __m512i,
}

impl Stream {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn new<const ROUNDS: usize>(key: &Key, nonce: &[u8; 12]) -> Self {
        let mut rounds = [_mm512_setzero_si512(); 15];
        for (number, round) in rounds.iter_mut().enumerate().take(ROUNDS + 1) {
            *round = key.round(number);
        }
        let first = _mm512_set_epi32(4, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0);
        Self {
            rounds,
            counter: _mm512_or_si512(load_nonce(nonce), first),
        }
    }

    /// The next `ROWS` rows of key stream; between the rounds, `hash` adds a row to a product in each of its four steps.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
    fn next<const ROUNDS: usize, const ROWS: usize>(
        &mut self,
        hashed: Option<(&Rows, &Key)>,
    ) -> ([__m512i; ROWS], Option<Product>) {
        let order =
            _mm512_broadcast_i32x4(_mm_set_epi8(12, 13, 14, 15, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
        let four = _mm512_set_epi32(4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0);
        let mut state = [_mm512_setzero_si512(); ROWS];
        for state in &mut state {
            *state = _mm512_xor_si512(_mm512_shuffle_epi8(self.counter, order), self.rounds[0]);
            self.counter = _mm512_add_epi32(self.counter, four);
        }
        let mut sum = None;
        for round in 1..ROUNDS {
            for state in &mut state {
                *state = pin(_mm512_aesenc_epi128(*state, self.rounds[round]));
            }
            if let Some((rows, key)) = hashed
                && round % 2 == 1
                && round / 2 < CHUNK
            {
                let row = round / 2;
                let powers = key.powers_from(4 * (CHUNK - row));
                sum = Some(match sum {
                    Some(sum) => multiply_add(sum, rows[row], powers),
                    None => multiply(rows[row], powers),
                });
            }
        }
        for state in &mut state {
            *state = _mm512_aesenclast_epi128(*state, self.rounds[ROUNDS]);
        }
        (state, sum)
    }
}

/// One packet of more than four rows.
struct Message<'a> {
    key: &'a Key,
    text: Text,
    rows: usize,
    /// What stands in the first block of row 0 for GHASH.
    first: __m128i,
    lengths: __m128i,
}

/// Seals or opens one packet of more than four rows under a key of `ROUNDS` rounds.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,pclmulqdq,vpclmulqdq,bmi2")]
pub(super) fn long<J: Job, const ROUNDS: usize>(job: &mut J) {
    let packet = job.packet();
    let text = packet.text;
    let message = Message {
        key: packet.key,
        text,
        rows: text.rows(),
        first: absorb(packet.key, packet.additional),
        lengths: lengths(packet.additional.len(), text.len()),
    };
    let mut stream = Stream::new::<ROUNDS>(packet.key, packet.nonce);
    let (mask, sum) = if J::OPEN {
        open::<ROUNDS>(&mut stream, &message)
    } else {
        seal::<ROUNDS>(&mut stream, &message)
    };
    let tag = _mm_xor_si128(reverse_one(fold(reduce(sum))), mask);
    if !job.finish(tag) {
        text.wipe();
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,pclmulqdq,vpclmulqdq")]
fn seal<const ROUNDS: usize>(stream: &mut Stream, message: &Message<'_>) -> (__m128i, Product) {
    let text = message.text;
    let (state, _) = stream.next::<ROUNDS, CHUNK>(None);
    let mask = _mm512_castsi512_si128(state[0]);
    let mut rows = [_mm512_setzero_si512(); CHUNK];
    for (row, (rows, state)) in rows.iter_mut().zip(state).enumerate() {
        if row == 0 {
            let sealed = _mm512_xor_si512(state, text.load(0));
            text.store(0, sealed);
            *rows = _mm512_inserti32x4::<0>(reverse(sealed), message.first);
        } else {
            *rows = seal_row(text, row, state);
        }
    }
    let mut next = CHUNK;
    while next + CHUNK < message.rows {
        let (state, sum) = stream.next::<ROUNDS, CHUNK>(Some((&rows, message.key)));
        for (row, (rows, state)) in rows.iter_mut().zip(state).enumerate() {
            *rows = seal_row(text, next + row, state);
        }
        rows[0] = carry(rows[0], sum);
        next += CHUNK;
    }
    let sum = match message.rows - next {
        1 => seal_last::<ROUNDS, 1>(stream, message, next, &rows),
        2 => seal_last::<ROUNDS, 2>(stream, message, next, &rows),
        3 => seal_last::<ROUNDS, 3>(stream, message, next, &rows),
        _ => seal_last::<ROUNDS, 4>(stream, message, next, &rows),
    };
    (mask, sum)
}

/// Seals a whole row; gives it as GHASH takes it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn seal_row(text: Text, row: usize, state: __m512i) -> __m512i {
    let sealed = _mm512_xor_si512(state, text.load_whole(row));
    text.store_whole(row, sealed);
    reverse(sealed)
}

/// Adds a chunk's hash to the first block of the next.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,vpclmulqdq")]
fn carry(row: __m512i, sum: Option<Product>) -> __m512i {
    match sum {
        Some(sum) => _mm512_xor_si512(row, _mm512_zextsi128_si512(fold(reduce(sum)))),
        None => row,
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,pclmulqdq,vpclmulqdq")]
fn seal_last<const ROUNDS: usize, const ROWS: usize>(
    stream: &mut Stream,
    message: &Message<'_>,
    next: usize,
    rows: &Rows,
) -> Product {
    let text = message.text;
    let (state, sum) = stream.next::<ROUNDS, ROWS>(Some((rows, message.key)));
    let mut last = [_mm512_setzero_si512(); ROWS];
    for (row, (last, state)) in last.iter_mut().zip(state).enumerate() {
        if row + 1 < ROWS {
            *last = seal_row(text, next + row, state);
        } else {
            let sealed = _mm512_xor_si512(state, text.load(next + row));
            text.store(next + row, sealed);
            *last = reverse(_mm512_maskz_mov_epi8(text.mask(next + row), sealed));
        }
    }
    last[0] = carry(last[0], sum);
    hash_last(message, next, &last)
}

/// The products of the last rows, each block with the power that leaves room for the lengths behind, and of these.
#[inline]
#[target_feature(enable = "avx512f,pclmulqdq,vpclmulqdq")]
fn hash_last<const ROWS: usize>(message: &Message<'_>, next: usize, rows: &[__m512i; ROWS]) -> Product {
    let power = message.text.blocks() + 1 - 4 * next;
    let mut sum = multiply_last(message.lengths, message.key.power_one());
    for (row, blocks) in rows.iter().enumerate() {
        sum = multiply_add(sum, *blocks, message.key.powers_from(power - 4 * row));
    }
    sum
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,pclmulqdq,vpclmulqdq")]
fn open<const ROUNDS: usize>(stream: &mut Stream, message: &Message<'_>) -> (__m128i, Product) {
    let text = message.text;
    let mut rows = [_mm512_setzero_si512(); CHUNK];
    for (row, rows) in rows.iter_mut().enumerate() {
        *rows = reverse(if row == 0 {
            text.load(0)
        } else {
            text.load_whole(row)
        });
    }
    rows[0] = _mm512_inserti32x4::<0>(rows[0], message.first);
    let (state, mut sum) = stream.next::<ROUNDS, CHUNK>(Some((&rows, message.key)));
    let mask = _mm512_castsi512_si128(state[0]);
    for (row, state) in state.into_iter().enumerate() {
        if row == 0 {
            text.store(0, _mm512_xor_si512(state, text.load(0)));
        } else {
            open_row(text, row, state);
        }
    }
    let mut next = CHUNK;
    while next + CHUNK < message.rows {
        for (row, rows) in rows.iter_mut().enumerate() {
            *rows = reverse(text.load_whole(next + row));
        }
        rows[0] = carry(rows[0], sum);
        let state;
        (state, sum) = stream.next::<ROUNDS, CHUNK>(Some((&rows, message.key)));
        for (row, state) in state.into_iter().enumerate() {
            open_row(text, next + row, state);
        }
        next += CHUNK;
    }
    let sum = match message.rows - next {
        1 => open_last::<ROUNDS, 1>(stream, message, next, sum),
        2 => open_last::<ROUNDS, 2>(stream, message, next, sum),
        3 => open_last::<ROUNDS, 3>(stream, message, next, sum),
        _ => open_last::<ROUNDS, 4>(stream, message, next, sum),
    };
    (mask, sum)
}

/// Opens a whole row.
#[inline]
#[target_feature(enable = "avx512f")]
fn open_row(text: Text, row: usize, state: __m512i) {
    text.store_whole(row, _mm512_xor_si512(state, text.load_whole(row)));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,vaes,pclmulqdq,vpclmulqdq")]
fn open_last<const ROUNDS: usize, const ROWS: usize>(
    stream: &mut Stream,
    message: &Message<'_>,
    next: usize,
    sum: Option<Product>,
) -> Product {
    let text = message.text;
    let mut rows = [_mm512_setzero_si512(); ROWS];
    for (row, rows) in rows.iter_mut().enumerate() {
        *rows = reverse(if row + 1 < ROWS {
            text.load_whole(next + row)
        } else {
            text.load(next + row)
        });
    }
    rows[0] = carry(rows[0], sum);
    let sum = hash_last(message, next, &rows);
    let (state, _) = stream.next::<ROUNDS, ROWS>(None);
    for (row, state) in state.into_iter().enumerate() {
        if row + 1 < ROWS {
            open_row(text, next + row, state);
        } else {
            text.store(next + row, _mm512_xor_si512(state, text.load(next + row)));
        }
    }
    sum
}
