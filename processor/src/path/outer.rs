//! The headers between hosts, in front of what a tunnel or an overlay carries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use guestseal_rules::model::HostIndex;
use zerocopy::IntoBytes;

use crate::wire::ethernet::MacAddress;
use crate::wire::{ethernet, ip4, ip6};

use super::outcome::DropReason;
use super::tables::Tables;

/// Ethernet and IP from this host to another.
pub(super) struct Outer {
    addresses: Addresses,
    source: MacAddress,
    destination: MacAddress,
}

enum Addresses {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl Outer {
    /// From one of this host's addresses to one of the host's.
    #[inline]
    pub(super) fn new(
        tables: &Tables,
        to: Option<HostIndex>,
        local: IpAddr,
        remote: IpAddr,
    ) -> Result<Self, DropReason> {
        let host = to.and_then(|host| tables.hosts.get(usize::from(host.0)));
        Ok(Self {
            addresses: match (local, remote) {
                (IpAddr::V4(local), IpAddr::V4(remote)) => Addresses::V4(local, remote),
                (IpAddr::V6(local), IpAddr::V6(remote)) => Addresses::V6(local, remote),
                // Control refuses an SA between addresses of different families.
                _ => return Err(DropReason::NoNextHop),
            },
            source: tables.uplink_mac,
            destination: host
                .and_then(|host| host.next_hops.towards(remote))
                .ok_or(DropReason::NoNextHop)?,
        })
    }

    /// Bytes of the headers.
    #[inline]
    pub(super) fn length(&self) -> usize {
        ethernet::HEADER
            + match self.addresses {
                Addresses::V4(..) => ip4::HEADER,
                Addresses::V6(..) => ip6::HEADER,
            }
    }

    /// Writes them into the first bytes of `front`, which has room for them: so many bytes of `protocol` follow.
    ///
    /// DSCP and ECN are those of the packet inside (RFC 4301 5.1.2, RFC 6040 4.1).
    #[inline]
    pub(super) fn write(&self, front: &mut [u8], protocol: u8, traffic_class: u8, payload: usize) {
        let (ethernet, ip) = front.split_at_mut(ethernet::HEADER);
        let ethertype = match self.addresses {
            Addresses::V4(local, remote) => {
                let length = (ip4::HEADER + payload) as u16;
                let header = ip4::outer(local, remote, protocol, traffic_class, length);
                ip[..ip4::HEADER].copy_from_slice(&header);
                ethernet::IPV4
            }
            Addresses::V6(local, remote) => {
                let header = ip6::outer(local, remote, protocol, traffic_class, payload as u16);
                ip[..ip6::HEADER].copy_from_slice(&header);
                ethernet::IPV6
            }
        };
        let header = ethernet::Header {
            destination: self.destination,
            source: self.source,
            ethertype: ethertype.into(),
        };
        ethernet.copy_from_slice(header.as_bytes());
    }
}
