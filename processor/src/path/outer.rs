//! The headers between hosts, in front of what a tunnel or an overlay carries.
//!
//! Made once for as many packets as go the same way one after the other; each packet then changes a few fields of them.

use std::net::IpAddr;

use guestseal_rules::model::HostIndex;
use zerocopy::{FromBytes, IntoBytes};

use crate::wire::{checksum, ethernet, ip4, ip6};

use super::outcome::DropReason;
use super::tables::Tables;

const V4: usize = ethernet::HEADER + ip4::HEADER;
const V6: usize = ethernet::HEADER + ip6::HEADER;

/// Ethernet and IP from this host to another.
pub(super) struct Outer {
    /// Of a packet without payload, protocol and traffic class.
    headers: [u8; V6],
    length: usize,
    mtu: usize,
}

impl Outer {
    /// From one of this host's addresses to one of the host's.
    pub(super) fn new(
        tables: &Tables,
        to: Option<HostIndex>,
        local: IpAddr,
        remote: IpAddr,
    ) -> Result<Self, DropReason> {
        let host = to.and_then(|host| tables.hosts.get(usize::from(host.0)));
        let next_hop = host.and_then(|host| host.next_hops.towards(remote));
        let mut outer = Self {
            headers: [0; V6],
            length: V4,
            mtu: tables.mtu_towards(to, remote),
        };
        let (front, ip) = outer.headers.split_at_mut(ethernet::HEADER);
        let ethertype = match (local, remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                let header = ip4::outer(local, remote, 0, 0, 0);
                ip[..ip4::HEADER].copy_from_slice(&header);
                ethernet::IPV4
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => {
                ip.copy_from_slice(&ip6::outer(local, remote, 0, 0, 0));
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

    /// Writes them into the first bytes of `front`, which has room for them: so many bytes of `protocol` follow.
    ///
    /// DSCP and ECN are those of the packet inside (RFC 4301 5.1.2, RFC 6040 4.1).
    #[inline]
    pub(super) fn write(&self, front: &mut [u8], protocol: u8, traffic_class: u8, payload: usize) {
        if self.length == V4 {
            let front = &mut front[..V4];
            front.copy_from_slice(&self.headers[..V4]);
            if let Ok((ip, _)) = ip4::Header::mut_from_prefix(&mut front[ethernet::HEADER..]) {
                let total = (ip4::HEADER + payload) as u16;
                let changes = [
                    (0, total),
                    (0, u16::from(traffic_class)),
                    (0, u16::from(protocol)),
                ];
                let sum = checksum::update(ip.checksum.get(), changes);
                ip.traffic_class = traffic_class;
                ip.total_length.set(total);
                ip.protocol = protocol;
                ip.checksum.set(sum);
            }
        } else {
            front[..V6].copy_from_slice(&self.headers);
            if let Ok((ip, _)) = ip6::Header::mut_from_prefix(&mut front[ethernet::HEADER..]) {
                ip.version_class_flow
                    .set(6 << 28 | u32::from(traffic_class) << 20);
                ip.payload_length.set(payload as u16);
                ip.next_header = protocol;
            }
        }
    }
}
