//! Anti-spoofing and endpoints: a guest's identity comes from the port it enters by, a host's from its address or SA.
//!
//! Reads the parsed packet and the endpoint tables; writes the descriptor's network, source and destination, or a drop
//! reason. Never guesses: what claims an address that is not its own ends here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use guestseal_rules::model::NetworkIndex;

use crate::wire::ethernet::MacAddress;
use crate::wire::packet::{L3, Packet};

use super::batch::{Batch, Descriptor, live};
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
    for descriptor in live(batch) {
        let Some(port) = descriptor
            .ingress
            .and_then(|number| tables.ports.get(usize::from(number)))
        else {
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

/// Checks one plaintext packet from the uplink: who may have sent it, and for whom it is.
pub fn guard_plaintext(batch: &mut Batch, tables: &Tables) {
    for descriptor in live(batch).filter(|one| one.seal.is_none() && !one.overlay) {
        if let Err(reason) = admit_plaintext(descriptor, tables) {
            descriptor.drop_for(reason);
        }
    }
}

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

/// Checks a packet that an SA has opened: the source must live on the SA's peer, the destination here.
pub fn guard_opened(batch: &mut Batch, tables: &Tables) {
    for descriptor in live(batch).filter(|one| one.seal.is_some() && !one.overlay) {
        let (source, destination) = (descriptor.packet.source, descriptor.packet.destination);
        let network = descriptor.network;
        // An address that is no endpoint's own can only be behind a router, which the frame's MAC then names.
        let behind = |mac| {
            tables
                .endpoints
                .by_mac(network, mac)
                .filter(|endpoint| endpoint.router)
        };
        let sender = tables
            .endpoints
            .by_address(network, source)
            .or_else(|| behind(descriptor.packet.source_mac))
            .copied();
        let receiver = tables
            .endpoints
            .by_address(network, destination)
            .or_else(|| behind(descriptor.packet.destination_mac))
            .copied();
        descriptor.source = sender;
        descriptor.destination = receiver;
        match (sender, receiver) {
            (None, _) | (_, None) => descriptor.drop_for(DropReason::NoEndpoint),
            (Some(sender), _) if Some(sender.host) != descriptor.peer => {
                descriptor.drop_for(DropReason::WrongHost)
            }
            (_, Some(receiver)) if receiver.host != tables.host => descriptor.drop_for(DropReason::NotOurs),
            _ => {}
        }
    }
}

/// Checks a frame that an overlay brought, opened or bare: its sender must live on the host that sent it, its receiver here.
///
/// Endpoints are those of the frame's own network: equal MACs and addresses of others have no part in it.
pub fn guard_overlay(batch: &mut Batch, tables: &Tables) {
    for descriptor in live(batch).filter(|descriptor| descriptor.overlay) {
        if let Err(reason) = admit_overlay(descriptor, tables) {
            descriptor.drop_for(reason);
        }
    }
}

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

/// The endpoint that has both the MAC and, if it is an IP packet, the address; of no IP packet, the one that has the MAC.
///
/// By the address first, which is one look-up where going by the MAC would be two; routers and strangers go by the MAC.
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
