//! Anti-spoofing and endpoints: a guest's identity comes from the port it enters by, a host's from its address or SA.
//!
//! Reads the parsed packet and the endpoint tables; writes the descriptor's network, source and destination, or a drop
//! reason. Never guesses: what claims an address that is not its own ends here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use guestseal_rules::model::NetworkIndex;

use crate::wire::ethernet::MacAddress;
use crate::wire::packet::{L3, Packet};

use super::batch::{Batch, Descriptor, unknown};
use super::endpoints::Endpoint;
use super::outcome::DropReason;
use super::tables::Tables;

const UDP: u8 = 17;
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Checks what guests sent: source MAC, source IP and what ARP and neighbour discovery claim; finds the destination.
pub fn guard_guest(batch: &mut Batch, tables: &Tables) {
    for descriptor in unknown(batch) {
        let Some(port) = descriptor.ingress.and_then(|number| tables.port(number)) else {
            descriptor.drop_for(DropReason::PortGone);
            continue;
        };
        let sender = port.endpoint;
        descriptor.network = sender.network;
        descriptor.source = Some(sender);
        if sender.host != tables.host {
            descriptor.drop_for(DropReason::GuestMoved);
        } else if descriptor.packet.source_mac != sender.mac {
            descriptor.drop_for(DropReason::SpoofedMac);
        } else if let Err(reason) = claims(&descriptor.packet, &sender, tables) {
            descriptor.drop_for(reason);
        } else if let Err(reason) = find_destination(descriptor, sender.network, tables) {
            descriptor.drop_for(reason);
        }
    }
}

/// Checks what came from the uplink: who may have sent it, and for whom it is.
pub fn guard_uplink(batch: &mut Batch, tables: &Tables) {
    for descriptor in unknown(batch) {
        let admitted = if descriptor.overlay {
            admit_overlay(descriptor, tables)
        } else if descriptor.seal.is_some() {
            admit_opened(descriptor, tables)
        } else {
            admit_plaintext(descriptor, tables)
        };
        if let Err(reason) = admitted {
            descriptor.drop_for(reason);
        }
    }
}

/// A packet in plaintext: a declared sender lives on another host, and nobody else speaks with a declared address.
fn admit_plaintext(descriptor: &mut Descriptor, tables: &Tables) -> Result<(), DropReason> {
    let packet = descriptor.packet;
    let sender = tables.endpoints.by_flat_mac(packet.source_mac).copied();
    let network = match sender {
        Some(sender) => sender.network,
        None => network_of_destination(&packet, tables).ok_or(DropReason::NoEndpoint)?,
    };
    descriptor.network = network;
    descriptor.source = sender;
    match sender {
        // The guests of this host send by their ports, never by the wire.
        Some(sender) if sender.host == tables.host => return Err(DropReason::WrongHost),
        Some(sender) => claims(&packet, &sender, tables)?,
        // A machine that nobody declared may not speak with a declared endpoint's address.
        None => {
            if claimed(&packet).any(|address| tables.endpoints.by_address(network, address).is_some()) {
                return Err(DropReason::SpoofedSource);
            }
        }
    }
    find_destination(descriptor, network, tables)?;
    if packet.is_group()
        || descriptor
            .destination
            .is_some_and(|endpoint| endpoint.host == tables.host)
    {
        Ok(())
    } else {
        Err(DropReason::NotOurs)
    }
}

/// A packet that an SA has opened: the source must live on the SA's peer, the destination here.
fn admit_opened(descriptor: &mut Descriptor, tables: &Tables) -> Result<(), DropReason> {
    let packet = &descriptor.packet;
    // An address that is no endpoint's own can only be behind a router, which the frame's MAC then names.
    let lives_at = |address, mac| {
        let own = tables.endpoints.by_address(descriptor.network, address);
        let behind = || tables.endpoints.by_mac(descriptor.network, mac);
        own.or_else(|| behind().filter(|endpoint| endpoint.router))
            .copied()
    };
    let sender = lives_at(packet.source, packet.source_mac);
    let receiver = lives_at(packet.destination, packet.destination_mac);
    descriptor.source = sender;
    descriptor.destination = receiver;
    match (sender, receiver) {
        (None, _) | (_, None) => Err(DropReason::NoEndpoint),
        (Some(sender), _) if Some(sender.host) != descriptor.peer => Err(DropReason::WrongHost),
        (_, Some(receiver)) if receiver.host != tables.host => Err(DropReason::NotOurs),
        _ => Ok(()),
    }
}

/// A frame that an overlay brought, opened or bare: its sender must live on the host that sent it, its receiver here.
///
/// Endpoints are those of the frame's own network: equal MACs and addresses of others have no part in it.
fn admit_overlay(descriptor: &mut Descriptor, tables: &Tables) -> Result<(), DropReason> {
    let network = descriptor.network;
    let packet = &descriptor.packet;
    let known = by_both(packet, packet.source_mac, packet.source, network, tables);
    let sender = known.or_else(|| tables.endpoints.by_mac(network, packet.source_mac).copied());
    let sender = sender.ok_or(DropReason::NoEndpoint)?;
    if Some(sender.host) != descriptor.peer {
        return Err(DropReason::WrongHost);
    }
    descriptor.source = Some(sender);
    if known.is_none() || packet.nd_target.is_some() {
        claims(packet, &sender, tables)?;
    }
    find_destination(descriptor, network, tables)?;
    match descriptor.destination {
        Some(receiver) if receiver.host == tables.host => Ok(()),
        Some(_) => Err(DropReason::NotOurs),
        None if descriptor.packet.is_group() => Ok(()),
        None => Err(DropReason::NoEndpoint),
    }
}

/// Every address that the packet claims to speak for.
fn claimed(packet: &Packet) -> impl Iterator<Item = IpAddr> {
    let (first, second) = match packet.l3 {
        L3::Arp { sender_ip, .. } if !sender_ip.is_unspecified() => (Some(IpAddr::V4(sender_ip)), None),
        L3::Ip => (
            (!packet.source.is_unspecified()).then_some(packet.source),
            packet
                .nd_target
                .filter(|_| {
                    packet
                        .icmp
                        .is_some_and(|(kind, _)| kind == NEIGHBOUR_ADVERTISEMENT)
                })
                .map(IpAddr::V6),
        ),
        _ => (None, None),
    };
    first.into_iter().chain(second)
}

/// Whether everything that the packet claims is the sender's own.
fn claims(packet: &Packet, sender: &Endpoint, tables: &Tables) -> Result<(), DropReason> {
    match packet.l3 {
        L3::Arp {
            sender_mac,
            sender_ip,
            ..
        } => {
            // 0.0.0.0 asks before it has an address (RFC 5227).
            if sender_mac != sender.mac
                || !(sender_ip.is_unspecified() || tables.endpoints.belongs(sender, IpAddr::V4(sender_ip)))
            {
                return Err(DropReason::SpoofedNeighbour);
            }
        }
        L3::Ip => {
            if !tables.endpoints.belongs(sender, packet.source) && !asks_for_address(packet) {
                return Err(DropReason::SpoofedSource);
            }
            let advertises = packet
                .icmp
                .is_some_and(|(kind, _)| kind == NEIGHBOUR_ADVERTISEMENT);
            if let Some(target) = packet.nd_target.filter(|_| advertises)
                && !tables.endpoints.belongs(sender, IpAddr::V6(target))
            {
                return Err(DropReason::SpoofedNeighbour);
            }
            if packet.nd_link_layer.is_some_and(|mac| mac != sender.mac) {
                return Err(DropReason::SpoofedNeighbour);
            }
        }
        L3::Other => {}
    }
    Ok(())
}

/// DHCP discovery (RFC 2131) and duplicate address detection (RFC 4862) come from the unspecified address.
fn asks_for_address(packet: &Packet) -> bool {
    match packet.source {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => {
            packet.protocol == UDP && packet.ports == Some((DHCP_CLIENT, DHCP_SERVER))
        }
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => packet
            .icmp
            .is_some_and(|(kind, _)| kind == NEIGHBOUR_SOLICITATION),
        _ => false,
    }
}

/// Of an IP packet, the endpoint that has both the address and the MAC.
///
/// One look-up where going by the MAC would be two; routers, strangers and what is no IP packet go by the MAC.
#[inline]
fn by_both(
    packet: &Packet,
    mac: MacAddress,
    address: IpAddr,
    network: NetworkIndex,
    tables: &Tables,
) -> Option<Endpoint> {
    (packet.l3 == L3::Ip)
        .then(|| tables.endpoints.by_address(network, address))
        .flatten()
        .filter(|endpoint| endpoint.mac == mac)
        .copied()
}

fn find_destination(
    descriptor: &mut Descriptor,
    network: NetworkIndex,
    tables: &Tables,
) -> Result<(), DropReason> {
    let packet = &descriptor.packet;
    if packet.is_group() {
        return Ok(());
    }
    descriptor.destination = by_both(
        packet,
        packet.destination_mac,
        packet.destination,
        network,
        tables,
    );
    if descriptor.destination.is_some() {
        return Ok(());
    }
    descriptor.destination = tables.endpoints.by_mac(network, packet.destination_mac).copied();
    match (&descriptor.destination, packet.l3) {
        (Some(endpoint), L3::Ip) if !tables.endpoints.belongs(endpoint, packet.destination) => {
            Err(DropReason::DestinationMismatch)
        }
        // A MAC that belongs to another network's guest on the same wire is out of reach.
        (None, _)
            if tables.carrier(network).is_none()
                && tables.endpoints.by_flat_mac(packet.destination_mac).is_some() =>
        {
            Err(DropReason::NoEndpoint)
        }
        // An endpoint's address behind a MAC that is not its own would be classified as somebody else.
        (None, L3::Ip) if tables.endpoints.by_address(network, packet.destination).is_some() => {
            Err(DropReason::DestinationMismatch)
        }
        _ => Ok(()),
    }
}

/// The network of a frame whose sender nobody declared: that of its receiver.
fn network_of_destination(packet: &Packet, tables: &Tables) -> Option<NetworkIndex> {
    if !packet.is_group() {
        return tables
            .endpoints
            .by_flat_mac(packet.destination_mac)
            .map(|endpoint| endpoint.network);
    }
    let asked = match packet.l3 {
        L3::Arp { target_ip, .. } => Some(IpAddr::V4(target_ip)),
        L3::Ip => packet.nd_target.map(IpAddr::V6),
        L3::Other => None,
    };
    tables
        .endpoints
        .only_flat_network()
        .or_else(|| tables.endpoints.flat_network_of(asked?))
}
