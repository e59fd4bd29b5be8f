//! IPv4 headers (RFC 791).

use std::net::Ipv4Addr;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum;

/// Bytes of a header without options.
pub const HEADER: usize = 20;
/// The flag "more fragments".
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The flag "don't fragment".
pub const DONT_FRAGMENT: u16 = 0x4000;
/// The fragment offset, in units of 8 bytes.
pub const OFFSET: u16 = 0x1fff;

/// The header without options, as it stands on the wire.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Version (4 bits) and header length in words (4 bits).
    pub version_length: u8,
    /// DSCP (6 bits) and ECN (2 bits).
    pub traffic_class: u8,
    /// Bytes of header and payload.
    pub total_length: U16,
    /// Identification of the datagram.
    pub identification: U16,
    /// Flags and fragment offset.
    pub fragment: U16,
    /// Hops left.
    pub ttl: u8,
    /// What follows.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: U16,
    /// From whom.
    pub source: [u8; 4],
    /// To whom.
    pub destination: [u8; 4],
}

/// Writes length, protocol and the checksum that follows from them into a header whose checksum is right.
///
/// Does nothing if `header` is too short to be one.
#[inline(always)]
pub fn rewrite(header: &mut [u8], total_length: u16, protocol: u8) {
    if let Ok((fields, _)) = Header::mut_from_prefix(header) {
        // TTL and protocol are one word, of which the TTL stays.
        let before = u32::from(fields.total_length.get()) + u32::from(fields.protocol);
        let after = u32::from(total_length) + u32::from(protocol);
        let sum = checksum::update(fields.checksum.get(), before, after);
        fields.total_length.set(total_length);
        fields.protocol = protocol;
        fields.checksum.set(sum);
    }
}

/// A header without options for a packet between two hosts.
#[must_use]
pub fn outer(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    traffic_class: u8,
    total_length: u16,
) -> [u8; HEADER] {
    let mut header = Header {
        version_length: 0x45,
        traffic_class,
        total_length: total_length.into(),
        // With "don't fragment" set the identification has no meaning (RFC 6864).
        identification: 0.into(),
        fragment: DONT_FRAGMENT.into(),
        ttl: 64,
        protocol,
        checksum: 0.into(),
        source: source.octets(),
        destination: destination.octets(),
    };
    header.checksum.set(checksum::checksum(header.as_bytes()));
    zerocopy::transmute!(header)
}
