//! The messages between hosts, as bytes: of fixed sizes but for a probe's padding, parsed without trust.
//!
//! Integers in network byte order. An answer is never longer than what it answers. docs/sessions.md draws them.

use arrayvec::ArrayVec;
use zerocopy::byteorder::network_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the protocol, in the second byte of every message and in the prologue.
pub(super) const VERSION: u8 = 1;
/// Bytes of a message authentication code.
pub(super) const MAC: usize = 16;
/// Bytes that both handshake messages carry sealed: what the hosts tell each other.
pub(super) const PAYLOAD: usize = 32;
/// Noise message 1 of IKpsk2: ephemeral key, sealed static key, sealed payload.
pub(super) const NOISE_1: usize = 32 + (32 + 16) + (PAYLOAD + 16);
/// Noise message 2: ephemeral key, sealed payload.
pub(super) const NOISE_2: usize = 32 + (PAYLOAD + 16);
/// The longest message, without a probe's padding.
pub const LONGEST: usize = size_of::<Initiation>();

/// A datagram to send.
pub type Datagram = ArrayVec<u8, LONGEST>;

#[derive(Copy, Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Head {
    kind: u8,
    version: u8,
    zero: [u8; 2],
}

impl Head {
    pub(super) const INITIATION: Self = Self::of(1);
    pub(super) const RESPONSE: Self = Self::of(2);
    pub(super) const COOKIE: Self = Self::of(3);
    pub(super) const INSIDE: Self = Self::of(4);
    pub(super) const KEY_UNKNOWN: Self = Self::of(5);
    pub(super) const SPI_UNKNOWN: Self = Self::of(6);
    pub(super) const PROBE: Self = Self::of(7);

    const fn of(kind: u8) -> Self {
        Self {
            kind,
            version: VERSION,
            zero: [0; 2],
        }
    }
}

/// Begins a handshake.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Initiation {
    pub(super) head: Head,
    pub(super) sender: U32,
    /// Says for which channel and generation, to who knows them.
    pub(super) tag: [u8; 8],
    pub(super) noise: [u8; NOISE_1],
    pub(super) mac1: [u8; MAC],
    pub(super) mac2: [u8; MAC],
}

/// Answers an initiation.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Response {
    pub(super) head: Head,
    pub(super) sender: U32,
    pub(super) receiver: U32,
    pub(super) noise: [u8; NOISE_2],
    pub(super) mac1: [u8; MAC],
}

/// Under load: come again, with this cookie.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct CookieReply {
    pub(super) head: Head,
    pub(super) receiver: U32,
    pub(super) nonce: [u8; 24],
    pub(super) sealed: [u8; MAC + 16],
}

/// A message inside a session. A probe is one that zeros follow, up to the length that it says.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Inside {
    pub(super) head: Head,
    pub(super) receiver: U32,
    pub(super) counter: U64,
    pub(super) sealed: [u8; 16],
    pub(super) authenticator: [u8; 16],
}

/// The key or its generation is not known here: try another one.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct KeyUnknown {
    pub(super) head: Head,
    pub(super) receiver: U32,
    pub(super) tag: [u8; 8],
    pub(super) mac1: [u8; MAC],
}

/// A sealed packet came under an SPI that this host does not have.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SpiUnknown {
    pub(super) head: Head,
    pub(super) spi: U32,
    pub(super) mac1: [u8; MAC],
}

/// Any message.
#[derive(Copy, Clone, Debug)]
pub(super) enum Message<'a> {
    Initiation(&'a Initiation),
    Response(&'a Response),
    CookieReply(&'a CookieReply),
    Inside(&'a Inside),
    Probe(&'a Inside),
    KeyUnknown(&'a KeyUnknown),
    SpiUnknown(&'a SpiUnknown),
}

impl<'a> Message<'a> {
    /// The message in a datagram, if kind, version and size are those of one.
    pub(super) fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (head, _) = Head::ref_from_prefix(datagram).ok()?;
        match *head {
            Head::INITIATION => Initiation::ref_from_bytes(datagram).ok().map(Self::Initiation),
            Head::RESPONSE => Response::ref_from_bytes(datagram).ok().map(Self::Response),
            Head::COOKIE => CookieReply::ref_from_bytes(datagram).ok().map(Self::CookieReply),
            Head::INSIDE => Inside::ref_from_bytes(datagram).ok().map(Self::Inside),
            Head::PROBE => {
                let (probe, _) = Inside::ref_from_prefix(datagram).ok()?;
                Some(Self::Probe(probe))
            }
            Head::KEY_UNKNOWN => KeyUnknown::ref_from_bytes(datagram).ok().map(Self::KeyUnknown),
            Head::SPI_UNKNOWN => SpiUnknown::ref_from_bytes(datagram).ok().map(Self::SpiUnknown),
            _ => None,
        }
    }
}

/// A message as a datagram.
pub(super) fn datagram(message: &(impl IntoBytes + Immutable)) -> Datagram {
    message.as_bytes().iter().copied().collect()
}

/// All of a message in front of its mac1, where that is the last field.
pub(super) fn before_last_mac(message: &(impl IntoBytes + Immutable)) -> &[u8] {
    let bytes = message.as_bytes();
    bytes.get(..bytes.len().saturating_sub(MAC)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_as_drawn_and_no_answer_is_longer() {
        let answers = [
            size_of::<Response>(),
            size_of::<CookieReply>(),
            size_of::<KeyUnknown>(),
        ];
        assert_eq!((LONGEST, answers), (176, [108, 64, 32]));
        assert_eq!((size_of::<Inside>(), size_of::<SpiUnknown>()), (48, 24));
        // What an unknown SPI answers is at least an IP header with an ESP header, IV and tag: 52 bytes.
        assert!(size_of::<SpiUnknown>() + 28 <= 20 + 8 + 8 + 16);
    }

    #[test]
    fn other_kinds_versions_and_sizes_are_no_messages() {
        for (kind, size) in [(1, 176), (2, 108), (3, 64), (4, 48), (5, 32), (6, 24)] {
            let mut bytes = vec![0; size];
            bytes[0] = kind;
            bytes[1] = VERSION;
            assert!(Message::parse(&bytes).is_some(), "{kind}");
            for other in 0..=200 {
                assert_eq!(Message::parse(&vec_of(&bytes, other)).is_some(), other == size);
            }
            for place in 0..4 {
                let mut changed = bytes.clone();
                changed[place] ^= 0x80;
                assert!(Message::parse(&changed).is_none(), "{kind} {place}");
            }
        }
    }

    fn vec_of(bytes: &[u8], size: usize) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes.resize(size, 0);
        bytes
    }
}
