//! Puts a guest's frame behind the headers of its overlay network: VXLAN (RFC 7348) or Geneve (RFC 8926).
//!
//! What is sealed gets UDP and overlay header into the headroom in front of it, and the cipher takes them along ([`super::seal`]
//! puts ESP between the VTEPs around them); what a rule sends in plaintext moves back in its own frame and leaves as the bare
//! packet. Never allocates.

use guestseal_rules::flow_cache::fold;
use guestseal_rules::model::{NetworkKind, Vni};
use zerocopy::IntoBytes;

use crate::port::umem::Umem;
use crate::wire::packet::{Fragment, L3, Packet};
use crate::wire::{ethernet, geneve, transport, udp, vxlan};

use super::batch::{Batch, Descriptor, Egress, live};
use super::fit;
use super::outcome::{DropReason, SentAs};
use super::outer::Outer;
use super::tables::Tables;

/// Bytes that stand in front of a guest's frame between VTEPs: UDP, and a VXLAN header or a Geneve header without options.
pub const HEADER: usize = udp::HEADER + vxlan::HEADER;
const _: () = assert!(vxlan::HEADER == geneve::HEADER, "one length for both");

/// The first of the source ports that flows are spread over (RFC 7348 5, RFC 8926 3.3: the dynamic ports).
const FIRST_PORT: u16 = 0xc000;

/// How the frames of an overlay network travel.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// The UDP port that they are sent to.
    pub port: u16,
    /// The network.
    pub vni: Vni,
    /// The header that stands in front of each.
    pub header: [u8; vxlan::HEADER],
}

impl Carrier {
    /// That of a kind of network; `None` for flat ones and those that are no more.
    #[must_use]
    pub fn of(kind: NetworkKind) -> Option<Self> {
        match kind {
            NetworkKind::Flat | NetworkKind::Retired => None,
            NetworkKind::Vxlan(vni) => Some(Self {
                port: vxlan::PORT,
                vni,
                header: vxlan::header(vni),
            }),
            NetworkKind::Geneve(vni) => Some(Self {
                port: geneve::PORT,
                vni,
                header: geneve::header(vni),
            }),
        }
    }

    /// Writes UDP and overlay header in front of a frame of so many bytes.
    ///
    /// Without a UDP checksum: inside of ESP the tag is worth more, and outside RFC 7348 5 and RFC 6935 want none.
    #[inline(always)]
    pub(super) fn write(&self, front: &mut [u8; HEADER], packet: &Packet, frame: usize) {
        let header = udp::Header {
            source: source_port(packet).into(),
            destination: self.port.into(),
            length: ((HEADER + frame) as u16).into(),
            checksum: 0.into(),
        };
        let (first, second) = front.split_at_mut(udp::HEADER);
        first.copy_from_slice(header.as_bytes());
        second.copy_from_slice(&self.header);
    }
}

/// A source port that tells flows apart, so that the network between the hosts can spread them, and is the same for all
/// fragments of a datagram.
#[inline(always)]
fn source_port(packet: &Packet) -> u16 {
    let (one, two) = match (packet.l3, packet.source, packet.destination) {
        (L3::Ip, std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)) => (
            u64::from(u32::from(source)) << 32 | u64::from(u32::from(destination)),
            0,
        ),
        (L3::Ip, std::net::IpAddr::V6(source), std::net::IpAddr::V6(destination)) => {
            let (source, destination) = (u128::from(source), u128::from(destination));
            let mixed = source ^ destination.rotate_left(64) ^ destination.rotate_left(7);
            (mixed as u64, (mixed >> 64) as u64)
        }
        _ => {
            let word = |mac: [u8; 6]| {
                let [a, b, c, d, e, f] = mac;
                u64::from_be_bytes([0, 0, a, b, c, d, e, f])
            };
            (word(packet.source_mac.0), word(packet.destination_mac.0))
        }
    };
    let ports = match packet.ports {
        Some((source, destination)) if packet.fragment == Fragment::Whole => {
            u64::from(source) << 16 | u64::from(destination)
        }
        _ => 0,
    };
    let rest = two ^ ports << 8 ^ u64::from(packet.protocol);
    let mixed = fold(one ^ 0x9e37_79b9_7f4a_7c15, rest ^ 0xd6e8_feb8_6659_fd93);
    FIRST_PORT | (mixed ^ mixed >> 32) as u16
}

/// Makes bare VXLAN or Geneve packets of what leaves for another host in plaintext; says whether some were too long.
#[must_use]
pub fn encapsulate(batch: &mut Batch, tables: &Tables, umem: &Umem) -> bool {
    let mut too_long = false;
    for descriptor in live(batch).filter(|one| {
        one.overlay && one.seal.is_none() && one.egress == Some(Egress::Uplink(SentAs::Plaintext))
    }) {
        if let Err(reason) = make_bare(descriptor, tables, umem) {
            descriptor.drop_for(reason);
            too_long |= reason == DropReason::TooLong;
        }
    }
    too_long
}

fn make_bare(descriptor: &mut Descriptor, tables: &Tables, umem: &Umem) -> Result<(), DropReason> {
    let carrier = tables.carrier(descriptor.network).ok_or(DropReason::NoNextHop)?;
    let (local, remote) = descriptor
        .peer
        .and_then(|host| tables.addresses_towards(host))
        .ok_or(DropReason::NoNextHop)?;
    let outer = Outer::new(tables, descriptor.peer, local, remote, transport::UDP)?;
    let packet = &descriptor.packet;
    let frame = usize::from(packet.end);
    let front = outer.length() + HEADER;
    let room = umem.room_mut(&mut descriptor.frame);
    let bound = (outer.mtu() + ethernet::HEADER).min(room.len());
    let fits = bound.saturating_sub(front + usize::from(packet.l3_offset)) as u16;
    if front + frame > bound {
        descriptor.fits = fits;
        return Err(DropReason::TooLong);
    }
    fit::clamp(packet, room, fits);
    room.copy_within(..frame, front);
    let (headers, _) = room.split_at_mut(front);
    outer.write(headers, packet.traffic_class, HEADER + frame);
    let Some(inner) = headers.last_chunk_mut() else {
        return Err(DropReason::TooLong);
    };
    carrier.write(inner, packet, frame);
    umem.set_length(&mut descriptor.frame, front + frame);
    Ok(())
}
