//! Answers what a guest of an overlay network asks about its neighbours: ARP and neighbour discovery, from the endpoint table.
//!
//! The question becomes the answer in its own frame and goes back by the port it came from; no rule is needed for that. What is
//! asked about addresses of no endpoint goes on as any packet. Never allocates. RFC 826, RFC 4861 7.2.4, RFC 5227.

use std::net::{IpAddr, Ipv6Addr};

use zerocopy::{FromBytes, IntoBytes};

use crate::port::umem::Umem;
use crate::wire::ethernet::MacAddress;
use crate::wire::packet::L3;
use crate::wire::{arp, ethernet, icmp, ip6};

use super::batch::{Batch, Descriptor, Egress, live};
use super::endpoints::Endpoint;
use super::outcome::Direction;
use super::tables::Tables;

/// The hop limit that says that a message comes from the link itself (RFC 4861 7.1).
const FROM_THE_LINK: u8 = 255;

/// Turns questions into answers.
pub fn answer(batch: &mut Batch, tables: &Tables, umem: &Umem) {
    for descriptor in live(batch) {
        let target = match (descriptor.packet.l3, descriptor.packet.nd_target) {
            (L3::Arp { target_ip, .. }, _) => IpAddr::V4(target_ip),
            (_, Some(target)) => IpAddr::V6(target),
            _ => continue,
        };
        if tables.carrier(descriptor.network).is_none() {
            continue;
        }
        let found = tables.endpoints.by_address(descriptor.network, target);
        let (Some(asker), Some(found)) = (descriptor.source, found) else {
            continue;
        };
        // Who asks for its own address looks for a second holder of it, and must find none.
        if found.port == asker.port {
            continue;
        }
        let answered = match target {
            IpAddr::V4(_) => answer_arp(descriptor, found.mac, umem),
            IpAddr::V6(target) => answer_solicitation(descriptor, target, found, umem),
        };
        if answered.is_some() {
            descriptor.packet.destination_mac = asker.mac;
            descriptor.egress = descriptor.ingress.map(Egress::Guest);
            descriptor.direction = Direction::Local;
        }
    }
}

fn answer_arp(descriptor: &mut Descriptor, mac: MacAddress, umem: &Umem) -> Option<()> {
    let frame = umem.room_mut(&mut descriptor.frame);
    let (headers, rest) = frame.split_at_mut_checked(descriptor.packet.l3_offset.into())?;
    let (message, _) = arp::Message::mut_from_prefix(rest).ok()?;
    if message.operation.get() != arp::REQUEST {
        return None;
    }
    let asker = message.sender_mac;
    message.operation.set(arp::REPLY);
    (message.target_mac, message.sender_mac) = (asker, mac);
    (message.target_ip, message.sender_ip) = (message.sender_ip, message.target_ip);
    let (header, _) = ethernet::Header::mut_from_prefix(headers).ok()?;
    (header.destination, header.source) = (asker, mac);
    Some(())
}

fn answer_solicitation(
    descriptor: &mut Descriptor,
    target: Ipv6Addr,
    found: &Endpoint,
    umem: &Umem,
) -> Option<()> {
    let packet = descriptor.packet;
    let is_solicitation = packet.icmp == Some((icmp::NEIGHBOUR_SOLICITATION, 0));
    let (IpAddr::V6(asker), true, false) = (packet.source, is_solicitation, packet.has_extensions) else {
        return None;
    };
    let room = umem.room_mut(&mut descriptor.frame);
    let (headers, rest) = room.split_at_mut_checked(packet.l3_offset.into())?;
    let (header, behind) = ip6::Header::mut_from_prefix(rest).ok()?;
    if header.hop_limit != FROM_THE_LINK {
        return None;
    }
    // A host that has no address yet is told together with all others (RFC 4861 7.2.4).
    let (to, to_mac) = if asker.is_unspecified() {
        (icmp::ALL_NODES, icmp::ALL_NODES_MAC)
    } else {
        (asker, packet.source_mac)
    };
    let advertisement = icmp::Advertisement {
        target,
        mac: found.mac,
        is_router: found.router,
        is_solicited: !asker.is_unspecified(),
    };
    let message = advertisement.write(target, to);
    behind.get_mut(..message.len())?.copy_from_slice(&message);
    let outer = ip6::outer(target, to, icmp::ICMPV6, 0, message.len() as u16);
    *header = zerocopy::transmute!(outer);
    header.hop_limit = FROM_THE_LINK;
    let (ethernet, _) = ethernet::Header::mut_from_prefix(headers).ok()?;
    (ethernet.destination, ethernet.source) = (to_mac, found.mac);
    let length = usize::from(packet.l3_offset) + header.as_bytes().len() + message.len();
    umem.set_length(&mut descriptor.frame, length);
    Some(())
}
