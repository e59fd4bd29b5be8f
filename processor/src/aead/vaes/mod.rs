//! The engine of our own for CPUs with VAES, VPCLMULQDQ and AVX-512: AES-GCM and AES-GMAC over several packets at once.
//!
//! Reads and writes the jobs' buffers and nothing beside them: bytes outside a text are masked off, never touched.
//! Never allocates after a key was expanded; key schedules and powers of H are wiped when they are dropped.
//! NIST SP 800-38D; counter mode and GHASH in one pass as in Gueron and Kounavis, "Intel Carry-Less Multiplication
//! Instruction and its Usage for Computing the GCM Mode", with GHASH over the bits of POLYVAL (RFC 8452, Appendix A).
//!
//! # Shape
//! A zmm register holds four blocks: a row. The counter of the tag's mask is the first block of row 0, the text follows it,
//! so that the last block of what is authenticated takes the same place before GHASH. Packets of up to four rows
//! (short.rs) go up to four rows at a time, whatever packets they are of, and are reduced once; longer ones (long.rs) go in
//! chunks of eight rows, in which the rounds of a chunk and GHASH run side by side.
//!
//! # Secrets
//! No branch and no address depends on key, text, H or a tag, but for the one bit that says whether a tag was right. It is
//! so by construction: these files branch on lengths and on the suite; secret values live in vector registers and meet
//! only instructions whose time does not depend on their operands (AESENC, PCLMULQDQ, shuffles by constant masks, logic);
//! masks come from lengths, and tags are compared as a whole. The disassembly of a release build was read for it: the only
//! ways from a vector register to flags, addresses or general registers are the comparison of a tag (VPTEST, or XOR and OR
//! of its halves) and the doubling of H when a key is expanded (shifts and a mask). Timing was not measured for it.
//!
//! # Opening
//! A short packet is checked before its plaintext is written. A long one is decrypted in the pass that authenticates it,
//! and wiped again if the tag is wrong: only a forger causes the wipe, while a pass of GHASH before would delay everybody
//! (on Zen 4, GHASH alone over 1400 bytes takes 214 TSC cycles with its job, opening 1388 bytes in one pass 368).

#![allow(unsafe_code)]

mod ghash;
mod key;
mod long;
mod row;
mod short;

use std::arch::x86_64::__m128i;

use arrayvec::ArrayVec;
use guestseal_rules::model::Suite;

use super::engine::{Engine, Expanded, ExpandedKey, KeyLength, OpenJob, SealJob, TAG, equal};
use key::Bytes;
pub(super) use key::Key;
use row::Text;

/// What says that the CPU has everything that the engine uses.
#[derive(Copy, Clone, Debug)]
pub struct Vaes(());

impl Vaes {
    /// The engine, if this CPU and kernel have every instruction set that it uses.
    ///
    /// # Errors
    /// Those that are missing.
    pub fn new() -> Result<Self, Vec<&'static str>> {
        let mut missing = Vec::new();
        macro_rules! need {
            ($($feature:tt),*) => {
                $(if !std::arch::is_x86_feature_detected!($feature) { missing.push($feature); })*
            };
        }
        need!(
            "aes",
            "pclmulqdq",
            "avx2",
            "bmi2",
            "avx512f",
            "avx512bw",
            "avx512dq",
            "avx512vl",
            "vaes",
            "vpclmulqdq"
        );
        if missing.is_empty() {
            Ok(Self(()))
        } else {
            Err(missing)
        }
    }
}

/// What one job looks like to the kernels.
#[derive(Copy, Clone)]
struct Packet<'a> {
    key: &'a Key,
    nonce: &'a [u8; 12],
    additional: &'a [u8],
    /// The job's buffers, which stay borrowed as long as this.
    text: Text,
}

/// A job of either kind.
trait Job {
    /// Whether it is opened.
    const OPEN: bool;

    fn packet(&mut self) -> Packet<'_>;

    /// Takes the tag that was computed: writes it, or says whether it is the one that came.
    fn finish(&mut self, tag: __m128i) -> bool;
}

impl Job for SealJob<'_> {
    const OPEN: bool = false;

    #[inline]
    fn packet(&mut self) -> Packet<'_> {
        Packet {
            key: self.key.of_vaes(),
            nonce: self.nonce.as_bytes(),
            additional: self.additional,
            text: Text::of(&mut self.buffers),
        }
    }

    #[inline]
    fn finish(&mut self, tag: __m128i) -> bool {
        key::store(self.tag, tag);
        true
    }
}

impl Job for OpenJob<'_> {
    const OPEN: bool = true;

    #[inline]
    fn packet(&mut self) -> Packet<'_> {
        Packet {
            key: self.key.of_vaes(),
            nonce: &self.nonce,
            additional: self.additional,
            text: Text::of(&mut self.buffers),
        }
    }

    #[inline]
    fn finish(&mut self, tag: __m128i) -> bool {
        let mut made = [0; TAG];
        key::store(&mut made, tag);
        self.authentic = equal(&made, self.tag);
        self.authentic
    }
}

impl Engine for Vaes {
    fn name(&self) -> &'static str {
        "vaes"
    }

    fn describe(&self) -> String {
        "vaes (VAES, VPCLMULQDQ, AVX-512)".into()
    }

    fn expand(&self, suite: Suite, key: &[u8]) -> Result<ExpandedKey, KeyLength> {
        let wrong = |_| KeyLength {
            suite,
            expected: suite.key_length(),
            found: key.len(),
        };
        let bytes = match suite {
            Suite::Aes128Gcm => Bytes::Aes128(key.try_into().map_err(wrong)?),
            Suite::Aes256Gcm => Bytes::Aes256(key.try_into().map_err(wrong)?),
        };
        // SAFETY: a `Vaes` exists only where `Vaes::new` has found every instruction set.
        Ok(ExpandedKey(Expanded::Vaes(unsafe { Key::expand(bytes) })))
    }

    fn seal(&self, jobs: &mut [SealJob<'_>]) {
        // SAFETY: as in `expand`.
        unsafe { run(jobs) }
    }

    fn open(&self, jobs: &mut [OpenJob<'_>]) {
        // SAFETY: as in `expand`.
        unsafe { run(jobs) }
    }
}

/// Jobs of one suite and shape that wait until they are enough to fill the registers.
struct Waiting<'a, J> {
    empty: ArrayVec<&'a mut J, 4>,
    one_row: ArrayVec<&'a mut J, 4>,
    two_rows: ArrayVec<&'a mut J, 2>,
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,pclmulqdq,vpclmulqdq,bmi2")]
fn run<J: Job>(jobs: &mut [J]) {
    let mut waiting_128 = Waiting::new();
    let mut waiting_256 = Waiting::new();
    for job in jobs {
        let packet = job.packet();
        // An access of which everything is masked off is slow where nothing is mapped, as an empty slice may be: no text, no row.
        let rows = if packet.text.len() == 0 {
            0
        } else {
            packet.text.rows()
        };
        match packet.key.suite() {
            Suite::Aes128Gcm => waiting_128.take::<10>(job, rows),
            Suite::Aes256Gcm => waiting_256.take::<14>(job, rows),
        }
    }
    waiting_128.finish::<10>();
    waiting_256.finish::<14>();
}

impl<'a, J: Job> Waiting<'a, J> {
    fn new() -> Self {
        Self {
            empty: ArrayVec::new(),
            one_row: ArrayVec::new(),
            two_rows: ArrayVec::new(),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,pclmulqdq,vpclmulqdq,bmi2")]
    fn take<const ROUNDS: usize>(&mut self, job: &'a mut J, rows: usize) {
        match rows {
            0 => {
                self.empty.push(job);
                if self.empty.is_full()
                    && let Ok(jobs) = std::mem::take(&mut self.empty).into_inner()
                {
                    short::short::<J, ROUNDS, 4, 1, true>(jobs);
                }
            }
            1 => {
                self.one_row.push(job);
                if self.one_row.is_full()
                    && let Ok(jobs) = std::mem::take(&mut self.one_row).into_inner()
                {
                    short::short::<J, ROUNDS, 4, 1, false>(jobs);
                }
            }
            2 => {
                self.two_rows.push(job);
                if self.two_rows.is_full()
                    && let Ok(jobs) = std::mem::take(&mut self.two_rows).into_inner()
                {
                    short::short::<J, ROUNDS, 2, 2, false>(jobs);
                }
            }
            3 => short::short::<J, ROUNDS, 1, 3, false>([job]),
            4 => short::short::<J, ROUNDS, 1, 4, false>([job]),
            _ => long::long::<J, ROUNDS>(job),
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,vaes,pclmulqdq,vpclmulqdq,bmi2")]
    fn finish<const ROUNDS: usize>(self) {
        for job in self.empty {
            short::short::<J, ROUNDS, 1, 1, true>([job]);
        }
        for job in self.one_row {
            short::short::<J, ROUNDS, 1, 1, false>([job]);
        }
        for job in self.two_rows {
            short::short::<J, ROUNDS, 1, 2, false>([job]);
        }
    }
}
