//! How long a packet may be: tells guests of packets that do not fit, as a router would on the way, and lowers what TCP
//! offers beforehand.
//!
//! A guest that sends too long a packet hears of it by ICMP (RFC 1191) or ICMPv6 (RFC 8201) with the size that would fit, in the
//! name of the host that it sent to, since there is no router in its network. One message for each packet that was dropped,
//! never longer than that one; none for what must not be answered (RFC 1122 3.2.2, RFC 4443 2.4).

use std::net::IpAddr;

use zerocopy::FromBytes;

use crate::port::frame::Frame;
use crate::port::pool::FramePool;
use crate::wire::packet::{Fragment, L3, Packet};
use crate::wire::{ethernet, icmp, ip4, ip6, transport};

use super::batch::{Batch, Descriptor, Egress};
use super::context::Context;
use super::deliver::{Exits, Ledger, transmit};
use super::outcome::{Direction, DropReason, Outcome};

/// The longest message: that much every host takes (RFC 1812 4.3.2.3, RFC 4443 2.4 c).
const LONGEST_V4: usize = 576;
const LONGEST_V6: usize = 1280;

/// Lowers what a TCP SYN says that its sender takes, so that the answers fit: `most` bytes of an IP packet.
#[inline(always)]
pub(super) fn clamp(packet: &Packet, frame: &mut [u8], most: u16) {
    const TCP_HEADER: u16 = 20;
    if packet.tcp_flags & transport::SYN != 0
        && let Some(segment) = frame.get_mut(packet.l4_offset.into()..packet.end.into())
    {
        let headers = packet.l4_offset - packet.l3_offset + TCP_HEADER;
        transport::clamp_mss(segment, most.saturating_sub(headers));
    }
}

/// Tells the senders of the packets of a batch that were too long.
pub fn tell_senders(
    context: &mut Context<'_>,
    batch: &Batch,
    exits: &mut impl Exits,
    ledger: &mut impl Ledger,
) {
    let too_long = Some(Outcome::Dropped(DropReason::TooLong));
    for descriptor in batch.iter().filter(|one| one.outcome == too_long && one.fits > 0) {
        let Some(port) = descriptor.ingress.filter(|_| may_be_answered(&descriptor.packet)) else {
            continue;
        };
        let Some(mut frame) = context.pool.take() else {
            continue;
        };
        if write(context.pool, descriptor, &mut frame).is_none() {
            context.pool.put(frame);
            continue;
        }
        ledger.copied();
        ledger.told_too_long();
        let mut message = Descriptor::new(
            frame,
            Packet::EMPTY,
            descriptor.arrival,
            Direction::Local,
            Some(port),
        );
        message.network = descriptor.network;
        message.egress = Some(Egress::Guest(port));
        let mut leaving = Batch::new();
        leaving.push(message);
        transmit(
            &mut leaving,
            context.worker,
            context.tables,
            context.pool,
            exits,
            ledger,
        );
    }
}

fn may_be_answered(packet: &Packet) -> bool {
    let is_error = match (packet.protocol, packet.icmp) {
        (icmp::ICMP, Some((kind, _))) => icmp::is_error_v4(kind),
        (icmp::ICMPV6, Some((kind, _))) => icmp::is_error_v6(kind),
        _ => false,
    };
    packet.l3 == L3::Ip
        && packet.fragment != Fragment::NonFirst
        && !is_error
        && !packet.is_group()
        && !packet.source.is_unspecified()
        && !packet.destination.is_multicast()
}

/// Writes the message about a packet into a fresh frame.
fn write(pool: &FramePool, descriptor: &Descriptor, frame: &mut Frame) -> Option<()> {
    let umem = pool.umem();
    let packet = &descriptor.packet;
    let (l3, end) = (usize::from(packet.l3_offset), usize::from(packet.end));
    let sent = umem.bytes(&descriptor.frame).get(..end)?;
    let (headers, quoted) = sent.split_at_checked(l3)?;
    let room = umem.room_mut(frame);
    room.get_mut(..l3)?.copy_from_slice(headers);
    let (header, rest) = ethernet::Header::mut_from_prefix(room).ok()?;
    (header.destination, header.source) = (header.source, header.destination);
    let rest = rest.get_mut(l3 - ethernet::HEADER..)?;
    let length = match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let most = LONGEST_V4 - ip4::HEADER - icmp::ERROR_HEADER;
            let quoted = quoted.get(..quoted.len().min(most))?;
            let message = icmp::ERROR_HEADER + quoted.len();
            let (ip, body) = rest.split_at_mut_checked(ip4::HEADER)?;
            let total = (ip4::HEADER + message) as u16;
            ip.copy_from_slice(&ip4::outer(
                destination,
                source,
                icmp::ICMP,
                icmp::ERROR_CLASS,
                total,
            ));
            icmp::write_too_long_v4(body.get_mut(..message)?, descriptor.fits, quoted);
            usize::from(total)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let most = LONGEST_V6 - ip6::HEADER - icmp::ERROR_HEADER;
            let quoted = quoted.get(..quoted.len().min(most))?;
            let message = icmp::ERROR_HEADER + quoted.len();
            let (ip, body) = rest.split_at_mut_checked(ip6::HEADER)?;
            ip.copy_from_slice(&ip6::outer(destination, source, icmp::ICMPV6, 0, message as u16));
            let body = body.get_mut(..message)?;
            icmp::write_too_long_v6(body, descriptor.fits, quoted, destination, source);
            ip6::HEADER + message
        }
        _ => return None,
    };
    umem.set_length(frame, l3 + length);
    Some(())
}
