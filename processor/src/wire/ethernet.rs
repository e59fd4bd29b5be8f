//! Ethernet II frames and their VLAN tags (IEEE 802.3, 802.1Q, 802.1ad).

use std::fmt;
use std::str::FromStr;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the header without tags.
pub const HEADER: usize = 14;
/// Bytes of both MACs, behind which the first tag stands.
pub const MACS: usize = 12;
/// Bytes of one VLAN tag.
pub const TAG: usize = 4;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of a customer VLAN tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of a service VLAN tag.
pub const SERVICE_VLAN: u16 = 0x88a8;

/// A MAC address, in wire order.
#[derive(
    Copy,
    Clone,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// To everybody.
    pub const BROADCAST: MacAddress = MacAddress([0xff; 6]);

    /// Whether it names a group: broadcast or multicast.
    #[inline]
    #[must_use]
    pub fn is_group(self) -> bool {
        let [first, ..] = self.0;
        first & 1 != 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is not a MAC address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a MAC address of six hexadecimal bytes with colons, such as 02:00:00:01:00:0a")]
pub struct NotAMac;

impl FromStr for MacAddress {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(NotAMac)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| NotAMac)?;
        }
        if parts.next().is_some() {
            Err(NotAMac)
        } else {
            Ok(Self(bytes))
        }
    }
}

/// The header as it stands on the wire.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// To whom.
    pub destination: MacAddress,
    /// From whom.
    pub source: MacAddress,
    /// What follows: an EtherType, or that of a tag.
    pub ethertype: U16,
}

/// A VLAN tag behind its own EtherType.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct VlanTag {
    /// Priority (3 bits), drop eligible (1), VLAN identifier (12).
    pub control: U16,
    /// What follows.
    pub ethertype: U16,
}

/// A customer VLAN tag, as it stands behind the MACs: no priority.
#[inline]
#[must_use]
pub fn tag(vlan: u16) -> [u8; TAG] {
    let ([a, b], [c, d]) = (VLAN.to_be_bytes(), vlan.to_be_bytes());
    [a, b, c, d]
}

/// The EtherType and the VLAN identifier of a frame's outermost tag; none if it has no tag.
#[inline]
#[must_use]
pub fn outer_tag(frame: &[u8]) -> Option<(u16, u16)> {
    let (header, rest) = Header::ref_from_prefix(frame).ok()?;
    let ethertype = header.ethertype.get();
    if !matches!(ethertype, VLAN | SERVICE_VLAN) {
        return None;
    }
    let (tag, _) = VlanTag::ref_from_prefix(rest).ok()?;
    Some((ethertype, tag.control.get() & 0x0fff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_text_round_trip() {
        let mac: MacAddress = "02:00:00:01:00:fe".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:00:01:00:fe");
        for wrong in [
            "",
            "02:00:00:01:00",
            "02:00:00:01:00:fe:1",
            "02:00:00:01:00:g0",
            "2:0:0:1:0:fe",
        ] {
            assert_eq!(wrong.parse::<MacAddress>(), Err(NotAMac), "{wrong}");
        }
    }
}
