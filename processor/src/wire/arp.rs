//! ARP for Ethernet and IPv4 (RFC 826).

use std::net::Ipv4Addr;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::ethernet::MacAddress;

/// Operation of a request.
pub const REQUEST: u16 = 1;
/// Operation of a reply.
pub const REPLY: u16 = 2;

/// The message as it stands on the wire.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Message {
    hardware: U16,
    protocol: U16,
    hardware_length: u8,
    protocol_length: u8,
    /// Request or reply.
    pub operation: U16,
    /// MAC of the sender.
    pub sender_mac: MacAddress,
    /// IPv4 address of the sender.
    pub sender_ip: [u8; 4],
    /// MAC of the target, if known.
    pub target_mac: MacAddress,
    /// IPv4 address of the target.
    pub target_ip: [u8; 4],
}

impl Message {
    /// The request by which a host tells its neighbours its address (RFC 5227 3).
    #[must_use]
    pub fn announcement(mac: MacAddress, address: Ipv4Addr) -> Self {
        Self {
            hardware: 1.into(),
            protocol: super::ethernet::IPV4.into(),
            hardware_length: 6,
            protocol_length: 4,
            operation: REQUEST.into(),
            sender_mac: mac,
            sender_ip: address.octets(),
            target_mac: MacAddress::default(),
            target_ip: address.octets(),
        }
    }

    /// The message at the start of `bytes`, if it is one for Ethernet and IPv4.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<&Message> {
        let (message, _) = Message::ref_from_prefix(bytes).ok()?;
        let is_ours = message.hardware.get() == 1
            && message.protocol.get() == super::ethernet::IPV4
            && message.hardware_length == 6
            && message.protocol_length == 4;
        is_ours.then_some(message)
    }
}
