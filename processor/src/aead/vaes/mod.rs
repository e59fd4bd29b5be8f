//! The engine of our own for CPUs with VAES and VPCLMULQDQ: AES-GCM and AES-GMAC over several packets at once. This is the form
//! for AVX-512; that for AVX2 is in narrow.
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
mod narrow;
mod row;
mod schedule;
mod short;

use std::arch::x86_64::__m128i;

use arrayvec::ArrayVec;
use guestseal_rules::model::Suite;

use super::engine::{Engine, Expanded, ExpandedKey, KeyLength, OpenJob, SealJob, TAG, equal};
pub(super) use key::Key;
pub(super) use narrow::Key as NarrowKey;
use row::Text;
use schedule::Bytes;

/// What says that the CPU has everything that the engine uses.
#[derive(Copy, Clone, Debug)]
pub struct Vaes(Form);

/// How wide the engine works.
#[derive(Copy, Clone, Debug)]
enum Form {
    /// 512 bits.
    Wide,
    /// 256 bits, see [`narrow`].
    Narrow,
}

/// The instruction sets of a list that this CPU or kernel does not have.
macro_rules! missing {
    ($($feature:tt),*) => {{
        let mut missing = Vec::new();
        $(if !std::arch::is_x86_feature_detected!($feature) { missing.push($feature); })*
        missing
    }};
}

impl Vaes {
    /// The widest form of the engine of which this CPU and kernel have every instruction set.
    ///
    /// # Errors
    /// Those that the narrow form misses.
    pub fn new() -> Result<Self, Vec<&'static str>> {
        Self::wide().or_else(|_| Self::narrow())
    }

    /// The form for AVX-512.
    ///
    /// # Errors
    /// Instruction sets that are missing.
    pub fn wide() -> Result<Self, Vec<&'static str>> {
        let missing = missing!(
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
            Ok(Self(Form::Wide))
        } else {
            Err(missing)
        }
    }

    /// The form for AVX2, which a CPU with AVX-512 has too.
    ///
    /// # Errors
    /// Instruction sets that are missing.
    pub fn narrow() -> Result<Self, Vec<&'static str>> {
        let missing = missing!("aes", "pclmulqdq", "avx2", "bmi2", "vaes", "vpclmulqdq");
        if missing.is_empty() {
            Ok(Self(Form::Narrow))
        } else {
            Err(missing)
        }
    }
}

/// A key as one of the forms has expanded it.
trait Prepared {
    /// # Panics
    /// If another engine or form did.
    fn of(key: &ExpandedKey) -> &Self;
}

impl Prepared for Key {
    #[inline]
    fn of(key: &ExpandedKey) -> &Self {
        key.of_vaes()
    }
}

impl Prepared for NarrowKey {
    #[inline]
    fn of(key: &ExpandedKey) -> &Self {
        key.of_narrow_vaes()
    }
}

/// What one job looks like to the kernels.
struct Packet<'a, K = Key> {
    key: &'a K,
    nonce: &'a [u8; 12],
    additional: &'a [u8],
    /// The job's buffers, which stay borrowed as long as this.
    text: Text,
}

impl<K> Copy for Packet<'_, K> {}

impl<K> Clone for Packet<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

/// A job of either kind.
trait Job {
    /// Whether it is opened.
    const OPEN: bool;

    fn packet<K: Prepared>(&mut self) -> Packet<'_, K>;

    /// Takes the tag that was computed: writes it, or says whether it is the one that came.
    fn finish(&mut self, tag: __m128i) -> bool;
}

impl Job for SealJob<'_> {
    const OPEN: bool = false;

    #[inline]
    fn packet<K: Prepared>(&mut self) -> Packet<'_, K> {
        Packet {
            key: K::of(self.key),
            nonce: self.nonce.as_bytes(),
            additional: self.additional,
            text: Text::of(&mut self.buffers),
        }
    }

    #[inline]
    fn finish(&mut self, tag: __m128i) -> bool {
        schedule::store(self.tag, tag);
        true
    }
}

impl Job for OpenJob<'_> {
    const OPEN: bool = true;

    #[inline]
    fn packet<K: Prepared>(&mut self) -> Packet<'_, K> {
        Packet {
            key: K::of(self.key),
            nonce: &self.nonce,
            additional: self.additional,
            text: Text::of(&mut self.buffers),
        }
    }

    #[inline]
    fn finish(&mut self, tag: __m128i) -> bool {
        let mut made = [0; TAG];
        schedule::store(&mut made, tag);
        self.authentic = equal(&made, self.tag);
        self.authentic
    }
}

impl Engine for Vaes {
    fn name(&self) -> &'static str {
        "vaes"
    }

    fn describe(&self) -> String {
        match self.0 {
            Form::Wide => "vaes (VAES, VPCLMULQDQ, AVX-512)".into(),
            Form::Narrow => "vaes (VAES, VPCLMULQDQ, AVX2)".into(),
        }
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
        // SAFETY: a `Vaes` of either form exists only where every instruction set of that form was found.
        Ok(ExpandedKey(unsafe {
            match self.0 {
                Form::Wide => Expanded::Vaes(Key::expand(bytes)),
                Form::Narrow => Expanded::NarrowVaes(NarrowKey::expand(bytes)),
            }
        }))
    }

    fn seal(&self, jobs: &mut [SealJob<'_>]) {
        // SAFETY: as in `expand`.
        unsafe {
            match self.0 {
                Form::Wide => run(jobs),
                Form::Narrow => narrow::run(jobs),
            }
        }
    }

    fn open(&self, jobs: &mut [OpenJob<'_>]) {
        // SAFETY: as in `expand`.
        unsafe {
            match self.0 {
                Form::Wide => run(jobs),
                Form::Narrow => narrow::run(jobs),
            }
        }
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
        let packet: Packet<'_> = job.packet();
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
