//! IPv6 headers (RFC 8200).

use std::net::Ipv6Addr;

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the fixed header.
pub const HEADER: usize = 40;

/// The fixed header as it stands on the wire.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Version (4 bits), traffic class (8), flow label (20).
    pub version_class_flow: U32,
    /// Bytes after this header.
    pub payload_length: U16,
    /// What follows.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// From whom.
    pub source: [u8; 16],
    /// To whom.
    pub destination: [u8; 16],
}

/// Writes payload length and next header into the fixed header at the start of `header`.
///
/// Does nothing if `header` is too short to be one.
#[inline]
pub fn rewrite(header: &mut [u8], payload_length: u16, next_header: u8) {
    if let Ok((fields, _)) = Header::mut_from_prefix(header) {
        fields.payload_length.set(payload_length);
        fields.next_header = next_header;
    }
}

/// A header for a packet between two hosts.
#[must_use]
pub fn outer(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    next_header: u8,
    traffic_class: u8,
    payload_length: u16,
) -> [u8; HEADER] {
    let header = Header {
        version_class_flow: (6 << 28 | u32::from(traffic_class) << 20).into(),
        payload_length: payload_length.into(),
        next_header,
        hop_limit: 64,
        source: source.octets(),
        destination: destination.octets(),
    };
    zerocopy::transmute!(header)
}
