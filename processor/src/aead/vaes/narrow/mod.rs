//! The form of the engine for CPUs with VAES and VPCLMULQDQ, but without AVX-512: 256 bits wide.
//!
//! Reads and writes the jobs' buffers and nothing beside them; never allocates after a key was expanded; keys are wiped when
//! they are dropped. Sources as of the wide form.
//!
//! # Shape
//! A ymm register holds two blocks: a row. As in the wide form the counter of the tag's mask is the first block of row 0; the
//! block of lengths goes where an odd number of blocks leaves a place. Packets of up to four rows (short.rs) go together by
//! shape, up to eight rows at once; longer ones (long.rs) go in chunks of five to ten rows. Round keys are loaded once for all
//! rows of a packet, into both lanes.
//!
//! Ten rows, their sums, a round key and two more are the sixteen registers that there are. With chunks of at most twelve a text of
//! 1,432 bytes took 573 TSC cycles sealed instead of 543 on a Zen 3; with nine, one of 276 took 160 instead of 140, as two chunks.
//!
//! On a Zen 3 a multiplication of GHASH takes as long as four rounds of AES (1.5 and 0.38 TSC cycles of a row), so that a
//! product is made of three (ghash.rs) and reduced once a packet or chunk. More at once is no gain: of 52 bytes under AES-128,
//! two packets take 46 cycles each sealed and 46 opened, four take 47 and 52, and one alone 54 and 47. Loops are written out, arrays are
//! filled where they stand and every shape is a function of its own: else, in some builds, the compiler keeps rows in memory,
//! copies what was just written, or prepares for shapes that do not come. The bare cipher of `guestseal-perf pipeline` (one flow,
//! AES-256, least of five runs) takes 46 and 43 cycles a packet of 64 bytes out and in, 123 and 123 of 256, 568 and 558 of 1414;
//! ipsec-mb 1.3 takes 104 and 142 of 64 bytes, 224 and 281 of 256, and 964 and 969 of a text of 1404 bytes by itself.
//!
//! # Secrets
//! What the wide form says holds here: branches and addresses come from lengths, suites and places. The tables that cut a text's
//! end and move it are read at places that its length gives. In the disassembly of a release build a script
//! looked for moves from vector registers to flags or general registers: there are the comparison of a tag (VPTEST), the doubling
//! of H when a key is expanded, and the nonce. Of loads of general registers from the stack where vectors were put, only some were
//! read: pointers and lengths. Timing was not measured for it.
//!
//! # Opening
//! As in the wide form: a short packet is checked before its plaintext is written, a long one is wiped if its tag is wrong.

/// Writes a loop's body out, once a number: the compiler would leave the loop as it is, and the registers in memory.
macro_rules! unrolled {
    ($number:ident in $($all:literal)*; $body:expr) => {
        $({ let $number: usize = $all; $body })*
    };
}

mod block;
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
            3 => short::short::<J, ROUNDS, 2, 2, true>(jobs, places),
            4 => short::short::<J, ROUNDS, 2, 2, false>(jobs, places),
            5 => short::short::<J, ROUNDS, 2, 3, true>(jobs, places),
            6 => short::short::<J, ROUNDS, 2, 3, false>(jobs, places),
            7 => short::short::<J, ROUNDS, 2, 4, true>(jobs, places),
            _ => short::short::<J, ROUNDS, 2, 4, false>(jobs, places),
        }
    }
}
