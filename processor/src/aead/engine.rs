//! The interface of an AEAD engine: a batch of jobs at a time, so that an engine may work on several packets at once.

use guestseal_rules::model::Suite;

use crate::sa::nonce::Nonce;

/// Bytes of a tag.
pub const TAG: usize = 16;

/// The bytes of one job.
#[derive(Debug)]
pub enum Buffers<'a> {
    /// Read and written at the same place.
    InPlace(&'a mut [u8]),
    /// Read here and written there: both of the same length.
    Copy {
        /// What is read.
        source: &'a [u8],
        /// What is written.
        destination: &'a mut [u8],
    },
}

/// One packet to seal. AES-GMAC is a job whose buffers are empty and whose bytes are all in `additional`.
#[derive(Debug)]
pub struct SealJob<'a> {
    /// The SA's key.
    pub key: &'a ExpandedKey,
    /// Used up by the job.
    pub nonce: Nonce,
    /// Authenticated, not encrypted.
    pub additional: &'a [u8],
    /// Plaintext in, ciphertext out.
    pub buffers: Buffers<'a>,
    /// The tag goes here.
    pub tag: &'a mut [u8; TAG],
}

/// One packet to open.
#[derive(Debug)]
pub struct OpenJob<'a> {
    /// The SA's key.
    pub key: &'a ExpandedKey,
    /// Salt and IV: opening may meet a nonce as often as the wire repeats it.
    pub nonce: [u8; 12],
    /// Authenticated, not encrypted.
    pub additional: &'a [u8],
    /// Ciphertext in, plaintext out. Where the tag is wrong, the destination holds no plaintext.
    pub buffers: Buffers<'a>,
    /// The tag that came.
    pub tag: &'a [u8; TAG],
    /// Whether the tag is right: set by the engine, false before.
    pub authentic: bool,
}

/// A key as an engine wants it: expanded once per SA, wiped when dropped.
pub struct ExpandedKey(pub(super) Expanded);

/// What the engines make of a key.
pub(super) enum Expanded {
    /// `aes-gcm`, 128 bits.
    Portable128(Box<::aes_gcm::Aes128Gcm>),
    /// `aes-gcm`, 256 bits.
    Portable256(Box<::aes_gcm::Aes256Gcm>),
    /// `vaes` for AVX-512, either suite.
    #[cfg(target_arch = "x86_64")]
    Vaes(Box<super::vaes::Key>),
    /// `vaes` for AVX2, either suite.
    #[cfg(target_arch = "x86_64")]
    NarrowVaes(Box<super::vaes::NarrowKey>),
    /// `ipsec-mb`, and the suite that its functions are chosen by.
    #[cfg(target_arch = "x86_64")]
    IpsecMb(Suite, Box<super::ipsec_mb::KeyData>),
}

impl ExpandedKey {
    /// The key as `vaes` for AVX-512 has expanded it.
    ///
    /// # Panics
    /// If another engine did.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(super) fn of_vaes(&self) -> &super::vaes::Key {
        match &self.0 {
            Expanded::Vaes(key) => key,
            _ => another_engine(),
        }
    }

    /// The key as `vaes` for AVX2 has expanded it.
    ///
    /// # Panics
    /// If another engine did.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(super) fn of_narrow_vaes(&self) -> &super::vaes::NarrowKey {
        match &self.0 {
            Expanded::NarrowVaes(key) => key,
            _ => another_engine(),
        }
    }
}

/// Whether two tags are the same, by one comparison of all their bits.
#[inline]
pub(super) fn equal(one: &[u8; TAG], other: &[u8; TAG]) -> bool {
    u128::from_ne_bytes(*one) ^ u128::from_ne_bytes(*other) == 0
}

/// A job's key comes from the engine that the job is given to: the process has one engine.
#[cold]
pub(super) fn another_engine() -> ! {
    unreachable!("a key that another engine has expanded")
}

impl std::fmt::Debug for ExpandedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExpandedKey(secret)")
    }
}

/// The bytes are not a key of the suite.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key of {found} bytes: {suite} takes {expected}")]
pub struct KeyLength {
    /// The suite.
    pub suite: Suite,
    /// Bytes it takes.
    pub expected: usize,
    /// Bytes there were.
    pub found: usize,
}

/// An AEAD engine.
pub trait Engine: Send + Sync {
    /// Its name in status and benchmarks.
    fn name(&self) -> &'static str;

    /// Its name, and what it works with here, for an operator.
    fn describe(&self) -> String;

    /// Expands a key.
    ///
    /// # Errors
    /// If its length is not the suite's.
    fn expand(&self, suite: Suite, key: &[u8]) -> Result<ExpandedKey, KeyLength>;

    /// Seals every job.
    fn seal(&self, jobs: &mut [SealJob<'_>]);

    /// Opens every job and says in each whether its tag is right.
    fn open(&self, jobs: &mut [OpenJob<'_>]);
}
