//! The nonce of AES-GCM in ESP: 4 bytes of salt and the 8-byte IV (RFC 4106 4, RFC 4543 3.2).
//!
//! Only a [`super::sequence::Sequence`] makes one, from a sequence number that it never gives again; it is neither
//! `Copy` nor `Clone`, so that sealing twice with one does not compile:
//!
//! ```compile_fail
//! fn twice(nonce: guestseal::sa::nonce::Nonce) {
//!     let seal = |_: guestseal::sa::nonce::Nonce| ();
//!     seal(nonce);
//!     seal(nonce);
//! }
//! ```

/// The nonce of one sealing.
#[derive(Debug, PartialEq, Eq)]
pub struct Nonce([u8; 12]);

impl Nonce {
    pub(in crate::sa) fn new(salt: Salt, sequence: u64) -> Self {
        Self(assemble(salt, sequence.to_be_bytes()))
    }

    /// The bytes, for the engine that uses it up.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }

    /// A nonce of given bytes, for published vectors.
    #[cfg(test)]
    pub(crate) fn of_vector(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }
}

/// The part of the nonce that comes with the key.
#[derive(Copy, Clone, PartialEq, Eq)]
pub struct Salt(pub [u8; 4]);

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salt(secret)")
    }
}

/// Salt and IV put together.
#[must_use]
#[inline]
pub fn assemble(Salt([a, b, c, d]): Salt, [e, f, g, h, i, j, k, l]: [u8; 8]) -> [u8; 12] {
    [a, b, c, d, e, f, g, h, i, j, k, l]
}
