//! The headers between hosts, in front of what a tunnel or an overlay carries.
//!
//! Made once for as many packets as go the same way one after the other; each packet then changes a few fields of them.

use std::net::IpAddr;

use guestseal_rules::model::HostIndex;
use zerocopy::IntoBytes;

use crate::wire::{checksum, ethernet, ip4, ip6};

use super::outcome::DropReason;
use super::tables::Tables;

const V4: usize = ethernet::HEADER + ip4::HEADER;
const V6: usize = ethernet::HEADER + ip6::HEADER;

/// Where the fields that differ from packet to packet stand.
mod at {
    use crate::wire::ethernet::HEADER as IP;

    pub(super) const CLASS: usize = IP + 1;
    pub(super) const TOTAL: usize = IP + 2;
    pub(super) const CHECKSUM: usize = IP + 10;
    pub(super) const CLASS_6: usize = IP;
    pub(super) const PAYLOAD_6: usize = IP + 4;
}

/// Ethernet and IP from this host to another.
pub(super) struct Outer {
    /// Of a packet without payload and traffic class.
    headers: [u8; V6],
    /// The checksum of that, if it is IPv4.
    checksum: u16,
    length: usize,
    mtu: usize,
}

impl Outer {
    /// From one of this host's addresses to one of the host's, with `protocol` behind it.
    pub(super) fn new(
        tables: &Tables,
        to: Option<HostIndex>,
        local: IpAddr,
        remote: IpAddr,
        protocol: u8,
    ) -> Result<Self, DropReason> {
        let host = to.and_then(|host| tables.hosts.get(usize::from(host.0)));
        let next_hop = host.and_then(|host| host.next_hops.towards(remote));
        let mut outer = Self {
            headers: [0; V6],
            checksum: 0,
            length: V4,
            mtu: tables.mtu_towards(to, remote),
        };
        let (front, ip) = outer.headers.split_at_mut(ethernet::HEADER);
        let ethertype = match (local, remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                let header = ip4::outer(local, remote, protocol, 0, 0);
                ip[..ip4::HEADER].copy_from_slice(&header);
                // In front of the addresses.
                let [.., high, low, _, _, _, _, _, _, _, _] = header;
                outer.checksum = u16::from_be_bytes([high, low]);
                ethernet::IPV4
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => {
                ip.copy_from_slice(&ip6::outer(local, remote, protocol, 0, 0));
                outer.length = V6;
                ethernet::IPV6
            }
            // Control refuses an SA between addresses of different families.
            _ => return Err(DropReason::NoNextHop),
        };
        let header = ethernet::Header {
            destination: next_hop.ok_or(DropReason::NoNextHop)?,
            source: tables.uplink_mac,
            ethertype: ethertype.into(),
        };
        front.copy_from_slice(header.as_bytes());
        Ok(outer)
    }

    /// Bytes of the headers.
    #[inline]
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Bytes that a packet may have on that way, without Ethernet.
    #[inline]
    pub(super) fn mtu(&self) -> usize {
        self.mtu
    }

    /// Writes them into the first bytes of `front`, which has room for them: so many bytes follow.
    ///
    /// DSCP and ECN are those of the packet inside (RFC 4301 5.1.2, RFC 6040 4.1).
    #[inline(always)]
    pub(super) fn write(&self, front: &mut [u8], traffic_class: u8, payload: usize) {
        if self.length == V4
            && let (Some(front), Some(headers)) = (front.first_chunk_mut::<V4>(), self.headers.first_chunk())
        {
            let total = (ip4::HEADER + payload) as u16;
            let sum = checksum::update(self.checksum, 0, u32::from(total) + u32::from(traffic_class));
            *front = *headers;
            front[at::CLASS] = traffic_class;
            front[at::TOTAL..][..2].copy_from_slice(&total.to_be_bytes());
            front[at::CHECKSUM..][..2].copy_from_slice(&sum.to_be_bytes());
        } else {
            self.write_6(front, traffic_class, payload);
        }
    }

    fn write_6(&self, front: &mut [u8], traffic_class: u8, payload: usize) {
        if let Some(front) = front.first_chunk_mut::<V6>() {
            let class = 6 << 28 | u32::from(traffic_class) << 20;
            front.copy_from_slice(&self.headers);
            front[at::CLASS_6..][..4].copy_from_slice(&class.to_be_bytes());
            front[at::PAYLOAD_6..][..2].copy_from_slice(&(payload as u16).to_be_bytes());
        }
    }
}
