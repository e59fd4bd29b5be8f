//! The form of the engine for CPUs with VAES and VPCLMULQDQ, but without AVX-512: 256 bits wide.
//!
//! Reads and writes the jobs' buffers and nothing beside them; never allocates after a key was expanded; keys are wiped when
//! they are dropped. Sources as of the wide form.
//!
//! # Shape
//! A ymm register holds two blocks: a row. As in the wide form the counter of the tag's mask is the first block of row 0.
//! MEASURED
//!
//! # Secrets
//! SECRETS
//!
//! # Opening
//! As in the wide form: a short packet is checked before its plaintext is written, a long one is wiped if its tag is wrong.

/// Writes a loop's body out, once a number: the compiler would leave the loop as it is, and the registers in memory.
macro_rules! unrolled {
    ($number:ident in $($all:literal)*; $body:expr) => {
        $({ let $number: usize = $all; $body })*
    };
}

mod ghash;
mod key;
mod long;
mod row;
mod short;

use guestseal_rules::model::Suite;

use super::{Job, Packet};
pub(in crate::aead) use key::Key;
use row::Rows;

/// Shapes of short packets: numbers of blocks, the tag's place counted.
const SHORT: usize = 8;
/// Jobs that are sorted by shape at a time.
const SORTED: usize = u64::BITS as usize;

/// Seals or opens every job: the long ones as they come, the short ones by shape.
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
pub(super) fn run<J: Job>(jobs: &mut [J]) {
    for jobs in jobs.chunks_mut(SORTED) {
        // The places of short packets, by suite and shape.
        let mut short_128 = [0; SHORT];
        let mut short_256 = [0; SHORT];
        for (place, job) in jobs.iter_mut().enumerate() {
            let packet: Packet<'_, Key> = job.packet();
            let suite = packet.key.suite();
            let short = match suite {
                Suite::Aes128Gcm => &mut short_128,
                Suite::Aes256Gcm => &mut short_256,
            };
            match (short.get_mut(Rows(packet.text).blocks() - 1), suite) {
                (Some(places), _) => *places |= 1 << place,
                (None, Suite::Aes128Gcm) => long::long::<J, 10>(job),
                (None, Suite::Aes256Gcm) => long::long::<J, 14>(job),
            }
        }
        finish::<J, 10>(jobs, &short_128);
        finish::<J, 14>(jobs, &short_256);
    }
}

#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
fn finish<J: Job, const ROUNDS: usize>(jobs: &mut [J], short: &[u64; SHORT]) {
    for (shape, &places) in short.iter().enumerate() {
        if places == 0 {
            continue;
        }
        match shape + 1 {
            1 => short::short::<J, ROUNDS, 4, 1, true>(jobs, places),
            2 => short::short::<J, ROUNDS, 4, 1, false>(jobs, places),
            3 => short::short::<J, ROUNDS, 3, 2, true>(jobs, places),
            4 => short::short::<J, ROUNDS, 3, 2, false>(jobs, places),
            5 => short::short::<J, ROUNDS, 2, 3, true>(jobs, places),
            6 => short::short::<J, ROUNDS, 2, 3, false>(jobs, places),
            7 => short::short::<J, ROUNDS, 2, 4, true>(jobs, places),
            _ => short::short::<J, ROUNDS, 2, 4, false>(jobs, places),
        }
    }
}
