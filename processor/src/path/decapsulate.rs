//! Takes a guest's frame out of the headers of its overlay network, and says which network that is.
//!
//! What an SA has opened is held to the SA's network; what came bare names its network itself, and its host by the outer
//! source address. ECN as RFC 6040 4.2 has it; DSCP and TTL of the frame inside stay as they are. Never allocates; panics
//! on nothing that a peer can send.

use crate::port::umem::Umem;
use crate::wire::packet::{Fragment, L3, Packet};
use crate::wire::{ecn, geneve, transport, udp, vxlan};
use guestseal_rules::model::Vni;
use zerocopy::FromBytes;

use super::batch::{Batch, Descriptor, live};
use super::encapsulate::{Carrier, HEADER};
use super::fit;
use super::outcome::{Direction, DropReason};
use super::tables::Tables;

/// The frame inside of a UDP datagram: where it begins and ends.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Inside {
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Reads an opened datagram, which must be of the SA's own network.
#[inline]
pub(super) fn opened(datagram: &[u8], carrier: &Carrier) -> Result<Inside, DropReason> {
    if let Some(end) = usual_end(datagram, carrier) {
        return Ok(Inside { start: HEADER, end });
    }
    let (port, vni, inside) = read(datagram)?;
    if (port, vni) == (carrier.port, carrier.vni) {
        Ok(inside)
    } else {
        Err(DropReason::WrongNetwork)
    }
}

/// Where the frame inside ends, if in front of it stand the very headers that this host would have put there, as nearly always.
#[inline(always)]
pub(super) fn usual_end(datagram: &[u8], carrier: &Carrier) -> Option<usize> {
    let (header, rest) = udp::Header::ref_from_prefix(datagram).ok()?;
    let end = usize::from(header.length.get());
    let is_usual = header.destination.get() == carrier.port && rest.first_chunk() == Some(&carrier.header);
    (is_usual && (HEADER..=datagram.len()).contains(&end)).then_some(end)
}

fn read(datagram: &[u8]) -> Result<(u16, Vni, Inside), DropReason> {
    let malformed = DropReason::BadEncapsulation;
    let (header, _) = udp::Header::ref_from_prefix(datagram).map_err(|_| malformed)?;
    let end = usize::from(header.length.get());
    let payload = datagram
        .get(udp::HEADER..)
        .and_then(|rest| rest.get(..end.checked_sub(udp::HEADER)?))
        .ok_or(malformed)?;
    let port = header.destination.get();
    let (vni, start) = match port {
        vxlan::PORT => vxlan::read(payload),
        geneve::PORT => geneve::read(payload),
        _ => None,
    }
    .ok_or(malformed)?;
    let start = udp::HEADER + start;
    Ok((port, vni, Inside { start, end }))
}

/// Reads the frame that was inside over the outer packet, and lets it know of congestion that that one met. Frames of `most`
/// bytes fit the way back.
#[inline(always)]
pub(super) fn enter(
    packet: &mut Packet,
    frame: &mut [u8],
    most: impl FnOnce() -> usize,
) -> Result<(), DropReason> {
    let outer_class = packet.traffic_class;
    packet.read(frame)?;
    // Nearly every packet has met no congestion, and opens no connection.
    let is_marked = (packet.traffic_class ^ outer_class) & ecn::MASK != 0;
    if packet.l3 == L3::Ip && (is_marked || packet.tcp_flags & transport::SYN != 0) {
        change(packet, frame, outer_class, most())?;
    }
    Ok(())
}

#[cold]
fn change(packet: &mut Packet, frame: &mut [u8], outer_class: u8, most: usize) -> Result<(), DropReason> {
    let before = packet.traffic_class & ecn::MASK;
    let after = ecn::combine(before, outer_class).ok_or(DropReason::CongestionUnheard)?;
    if after != before {
        packet.traffic_class = packet.traffic_class & !ecn::MASK | after;
        if let Some(header) = frame.get_mut(usize::from(packet.l3_offset)..) {
            ecn::write(header, packet.ethertype, after);
        }
    }
    if packet.tcp_flags & transport::SYN != 0 {
        let fits = most.saturating_sub(packet.l3_offset.into());
        fit::clamp(packet, frame, fits as u16);
    }
    Ok(())
}

/// Whether it is a bare overlay packet to this host, and no guest's own datagram to such a port.
fn is_bare(packet: &Packet, tables: &Tables) -> bool {
    packet.protocol == transport::UDP
        && packet
            .ports
            .is_some_and(|(_, port)| matches!(port, vxlan::PORT | geneve::PORT))
        && packet.l3 == L3::Ip
        && packet.vlan.is_none()
        && tables.is_host_address(tables.host, packet.destination)
}

/// Takes the frames out of bare packets from the uplink.
pub fn decapsulate(batch: &mut Batch, tables: &Tables, umem: &Umem) {
    for descriptor in live(batch) {
        debug_assert_eq!(descriptor.direction, Direction::Inbound);
        if is_bare(&descriptor.packet, tables)
            && let Err(reason) = take_out(descriptor, tables, umem)
        {
            descriptor.drop_for(reason);
        }
    }
}

fn take_out(descriptor: &mut Descriptor, tables: &Tables, umem: &Umem) -> Result<(), DropReason> {
    let packet = &descriptor.packet;
    if packet.fragment != Fragment::Whole {
        return Err(DropReason::BadEncapsulation);
    }
    let from = usize::from(packet.l4_offset);
    let outer = from - usize::from(packet.l3_offset) + HEADER;
    let datagram = umem
        .bytes(&descriptor.frame)
        .get(from..usize::from(packet.end))
        .ok_or(DropReason::BadEncapsulation)?;
    let (port, vni, inside) = read(datagram)?;
    let network = tables.network_of_vni(port, vni).ok_or(DropReason::WrongNetwork)?;
    let peer = tables.host_of(packet.source).ok_or(DropReason::WrongHost)?;
    let source = packet.source;
    let most = || tables.mtu_towards(Some(peer), source).saturating_sub(outer);
    let (start, end) = (from + inside.start, from + inside.end);
    let room = umem.room_mut(&mut descriptor.frame);
    room.copy_within(start..end, 0);
    umem.set_length(&mut descriptor.frame, end - start);
    descriptor.network = network;
    descriptor.peer = Some(peer);
    descriptor.overlay = true;
    let room = umem.room_mut(&mut descriptor.frame);
    let frame = room.get_mut(..end - start).ok_or(DropReason::Truncated)?;
    enter(&mut descriptor.packet, frame, most)
}
