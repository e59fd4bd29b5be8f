//! Selectors of an SA (RFC 4301 4.4.1.1): which packets it may carry, seen from this host.

use std::ops::RangeInclusive;

use guestseal_rules::model::Cidr;

use crate::wire::packet::Packet;

/// What an SA may carry; a field that is absent allows anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Addresses on this host's side.
    pub local: Option<Cidr>,
    /// Addresses on the peer's side.
    pub remote: Option<Cidr>,
    /// Upper-layer protocol.
    pub protocol: Option<u8>,
    /// Ports on this host's side.
    pub local_ports: Option<RangeInclusive<u16>>,
    /// Ports on the peer's side.
    pub remote_ports: Option<RangeInclusive<u16>>,
}

impl Selector {
    /// Whether it covers a packet that leaves (its source is local).
    #[inline]
    #[must_use]
    pub fn covers_outbound(&self, packet: &Packet) -> bool {
        self.is_everything() || self.covers(packet, (packet.source, packet.destination), packet.ports)
    }

    /// Whether it covers a packet that was opened (its destination is local).
    #[inline]
    #[must_use]
    pub fn covers_inbound(&self, packet: &Packet) -> bool {
        self.is_everything() || {
            let ports = packet.ports.map(|(source, destination)| (destination, source));
            self.covers(packet, (packet.destination, packet.source), ports)
        }
    }

    /// The usual selector, known without a look at the packet.
    #[inline]
    fn is_everything(&self) -> bool {
        self.local.is_none()
            && self.remote.is_none()
            && self.protocol.is_none()
            && self.local_ports.is_none()
            && self.remote_ports.is_none()
    }

    fn covers(
        &self,
        packet: &Packet,
        (local, remote): (std::net::IpAddr, std::net::IpAddr),
        ports: Option<(u16, u16)>,
    ) -> bool {
        self.local.is_none_or(|cidr| cidr.contains(local))
            && self.remote.is_none_or(|cidr| cidr.contains(remote))
            && self.protocol.is_none_or(|protocol| protocol == packet.protocol)
            // A packet whose ports cannot be read (a later fragment) is not covered by a selector that has ports.
            && self.local_ports.as_ref().is_none_or(|range| ports.is_some_and(|(local, _)| range.contains(&local)))
            && self.remote_ports.as_ref().is_none_or(|range| ports.is_some_and(|(_, remote)| range.contains(&remote)))
    }
}
