//! Opens sealed frames: finds the SA, checks tag and replay window, and puts the guest's packet together again.
//!
//! Reads SPI, sequence number and frame; writes the plain packet into a fresh frame, or a drop reason.
//! Never allocates; panics on nothing that a peer can send.
//! RFC 4303 3.4, RFC 4106, RFC 4543: the window moves only after the tag is right.

use std::sync::Arc;

use arrayvec::ArrayVec;
use guestseal_rules::classify::Protection;
use zerocopy::{FromBytes, IntoBytes};

use crate::aead::engine::{Buffers, Engine, OpenJob};
use crate::port::BATCH;
use crate::port::frame::Frame;
use crate::port::pool::FramePool;
use crate::port::umem::Umem;
use crate::sa::inbound::InboundSa;
use crate::sa::nonce;
use crate::sa::outbound::Mode;
use crate::sa::replay::ReplayError;
use crate::sa::slots::{Place, Slots};
use crate::wire::ethernet::MacAddress;
use crate::wire::packet::{Fragment, L3, Packet};
use crate::wire::{esp, ethernet, ip4, ip6, transport, udp};

use super::batch::{Batch, Descriptor, live, unknown};
use super::decapsulate;
use super::encapsulate;
use super::notices::{Notice, Notices};
use super::outcome::DropReason;
use super::seal::{additional, authenticated, copy_headers, lay_out_gmac, sa_of};
use super::tables::Tables;

impl From<ReplayError> for DropReason {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::Seen => DropReason::ReplaySeen,
            ReplayError::TooOld => DropReason::ReplayTooOld,
        }
    }
}

/// Finds the SA of every ESP packet from the uplink.
pub fn find_sa(batch: &mut Batch, tables: &Tables, umem: &Umem, notices: &mut Notices) {
    // Packets of a burst mostly come the same way: it is looked up once for as many as follow one another.
    let mut last: Option<(u32, Option<Place>)> = None;
    for descriptor in live(batch) {
        let packet = &mut descriptor.packet;
        if descriptor.overlay || packet.l3 != L3::Ip {
            continue;
        }
        if packet.protocol != esp::ESP {
            if !is_in_udp(packet, tables) {
                continue;
            }
            packet.l4_offset += udp::HEADER as u16;
        }
        let start = usize::from(packet.l4_offset);
        let header = umem.bytes(&descriptor.frame).get(start..usize::from(packet.end));
        let header = header.and_then(|bytes| esp::Header::ref_from_prefix(bytes).ok());
        match header {
            Some((header, rest))
                if packet.fragment == Fragment::Whole
                    && rest.len() >= esp::TRAILER + esp::TAG
                    && rest.len() % 4 == 0 =>
            {
                let spi = header.spi.get();
                let place = match last {
                    Some((known, place)) if known == spi => place,
                    _ => tables.sas.inbound(spi),
                };
                last = Some((spi, place));
                match place {
                    Some(place) => descriptor.sa = Some(place),
                    None => {
                        let from = packet.source;
                        notices.hint(Notice::UnknownSpi { from, spi });
                        descriptor.drop_for(DropReason::UnknownSpi);
                    }
                }
            }
            _ => descriptor.drop_for(DropReason::BadEsp),
        }
    }
}

/// Whether it is ESP in UDP (RFC 3948) for this host, and no guest's own datagram to that port.
fn is_in_udp(packet: &Packet, tables: &Tables) -> bool {
    packet.protocol == transport::UDP
        && packet.ports.is_some_and(|(_, port)| port == esp::UDP_PORT)
        && packet.vlan.is_none()
        && tables.is_host_address(tables.host, packet.destination)
}

/// A packet whose window allows it, waiting for the engine: no more than a cache line, since a whole batch of them waits.
struct Candidate {
    fresh: Frame,
    sequence: u64,
    iv: [u8; 8],
    /// What AES-GCM authenticates: 12 bytes with ESN, otherwise the first 8.
    additional: [u8; 12],
    /// Its place in the batch.
    position: u16,
    /// Where ESP begins and ends.
    start: u16,
    end: u16,
    /// Where the payload goes in the fresh frame, counted from so many bytes in front of its data.
    to: u16,
    front: u16,
}

const _: () = assert!(size_of::<Candidate>() <= 64, "a cache line");

/// Opens every live packet that has an SA; all of them are among `sas`.
pub fn open(
    batch: &mut Batch,
    sas: &mut Slots<InboundSa>,
    tables: &Tables,
    pool: &mut FramePool,
    engine: &dyn Engine,
) {
    let umem = Arc::clone(pool.umem());
    let mut candidates = ArrayVec::<Candidate, BATCH>::new();
    for (position, descriptor) in batch.iter_mut().enumerate() {
        let Some(place) = descriptor.sa.filter(|_| descriptor.is_live()) else {
            continue;
        };
        let candidate = match sas.get_mut(place) {
            Some(sa) => admit(descriptor, position, sa, pool, &umem),
            None => Err(DropReason::UnknownSpi),
        };
        match candidate {
            Ok(candidate) => candidates.push(candidate),
            Err(reason) => descriptor.drop_for(reason),
        }
    }
    if candidates.is_empty() {
        return;
    }
    let authentic = run_engine(batch, &mut candidates, sas, &umem, engine);
    for (candidate, authentic) in candidates.into_iter().zip(authentic) {
        let descriptor = &mut batch[usize::from(candidate.position)];
        let Some(sa) = descriptor.sa.and_then(|place| sas.get_mut(place)) else {
            unreachable!("admitted by this SA")
        };
        match finish(descriptor, candidate, authentic, sa, tables, &umem) {
            Ok(sealed) => pool.put(sealed),
            Err((fresh, reason)) => {
                pool.put(fresh);
                descriptor.drop_for(reason);
            }
        }
    }
}

fn admit(
    descriptor: &Descriptor,
    position: usize,
    sa: &mut InboundSa,
    pool: &mut FramePool,
    umem: &Umem,
) -> Result<Candidate, DropReason> {
    let packet = &descriptor.packet;
    let (start, end) = (usize::from(packet.l4_offset), usize::from(packet.end));
    let bytes = umem
        .bytes(&descriptor.frame)
        .get(start..end)
        .ok_or(DropReason::BadEsp)?;
    let (header, _) = esp::Header::read_from_prefix(bytes).map_err(|_| DropReason::BadEsp)?;
    let sequence = sa.window.infer(header.sequence.get());
    if let Err(error) = sa.window.check(sequence) {
        sa.tally.replayed += 1;
        return Err(error.into());
    }
    let (to, front) = match sa.mode {
        // An ESP packet of transport mode keeps its own headers; extension headers in front of ESP are not ours.
        Mode::Transport if packet.has_extensions => return Err(DropReason::BadExtensionHeader),
        Mode::Transport if packet.protocol != esp::ESP => return Err(DropReason::BadEsp),
        Mode::Transport => (start, 0),
        Mode::Tunnel { local, remote } | Mode::Overlay { local, remote, .. }
            if packet.source != remote || packet.destination != local =>
        {
            return Err(DropReason::WrongHost);
        }
        Mode::Tunnel { .. } => (ethernet::HEADER, 0),
        // The frame inside begins where the fresh frame does.
        Mode::Overlay { .. } => (0, encapsulate::HEADER),
    };
    if to + (end - start) > umem.room() {
        return Err(DropReason::TooLong);
    }
    let fresh = pool.take().ok_or(DropReason::NoFrame)?;
    Ok(Candidate {
        fresh,
        sequence,
        iv: header.iv.to_bytes(),
        additional: additional(&header, sequence, sa.esn),
        position: position as u16,
        start: start as u16,
        end: end as u16,
        to: to as u16,
        front: front as u16,
    })
}

/// Lets the engine open from the frames received into the fresh ones; says for each whether its tag is right.
fn run_engine(
    batch: &mut Batch,
    candidates: &mut ArrayVec<Candidate, BATCH>,
    sas: &Slots<InboundSa>,
    umem: &Umem,
    engine: &dyn Engine,
) -> ArrayVec<bool, BATCH> {
    // What AES-GMAC authenticates is laid out in the frame that came: where it begins, and what stood there before.
    let mut laid_out = [(0usize, [0; 8]); BATCH];
    for (candidate, (from, saved)) in candidates.iter().zip(&mut laid_out) {
        let descriptor = &mut batch[usize::from(candidate.position)];
        let sa = sa_of(descriptor, sas);
        if sa.protection == Protection::Authenticate {
            let start = usize::from(candidate.start);
            let frame = umem.room_mut(&mut descriptor.frame);
            saved.copy_from_slice(&frame[start - 4..start + 4]);
            *from = lay_out_gmac(frame, start, authenticated(&candidate.additional, sa.esn));
        }
    }
    let mut jobs = ArrayVec::<OpenJob<'_>, BATCH>::new();
    for (candidate, (from, _)) in candidates.iter_mut().zip(&laid_out) {
        let descriptor = &batch[usize::from(candidate.position)];
        let sa = sa_of(descriptor, sas);
        let (start, end) = (usize::from(candidate.start), usize::from(candidate.end));
        let frame = &umem.bytes(&descriptor.frame)[..end];
        let (front, tag) = frame
            .split_last_chunk()
            .unwrap_or_else(|| unreachable!("the length was checked"));
        let text = &front[start + esp::HEADER..];
        let to = usize::from(candidate.to);
        let room = umem.room_with_front_mut(&mut candidate.fresh, candidate.front.into());
        let Some(destination) = room.and_then(|room| room.get_mut(to..to + text.len())) else {
            unreachable!("the room was checked, and a fresh frame has its headroom")
        };
        let (additional, buffers) = match sa.protection {
            Protection::Encrypt => {
                let source = text;
                let additional = authenticated(&candidate.additional, sa.esn);
                (additional, Buffers::Copy { source, destination })
            }
            Protection::Authenticate => {
                destination.copy_from_slice(text);
                (&front[*from..], Buffers::InPlace(&mut []))
            }
        };
        jobs.push(OpenJob {
            key: &sa.key,
            nonce: nonce::assemble(sa.salt, candidate.iv),
            additional,
            buffers,
            tag,
            authentic: false,
        });
    }
    engine.open(&mut jobs);
    let authentic = jobs.iter().map(|job| job.authentic).collect();
    drop(jobs);
    for (candidate, (_, saved)) in candidates.iter().zip(&laid_out) {
        let descriptor = &mut batch[usize::from(candidate.position)];
        if sa_of(descriptor, sas).protection == Protection::Authenticate {
            let start = usize::from(candidate.start);
            umem.room_mut(&mut descriptor.frame)[start - 4..start + 4].copy_from_slice(saved);
        }
    }
    authentic
}

/// Moves the window, checks the trailer, and makes the fresh frame the packet that the peer's guest sent. Gives the frame
/// back that is not needed any more.
fn finish(
    descriptor: &mut Descriptor,
    candidate: Candidate,
    authentic: bool,
    sa: &mut InboundSa,
    tables: &Tables,
    umem: &Umem,
) -> Result<Frame, (Frame, DropReason)> {
    let (start, end) = (usize::from(candidate.start), usize::from(candidate.end));
    let (to, front) = (usize::from(candidate.to), usize::from(candidate.front));
    let (mut fresh, sequence) = (candidate.fresh, candidate.sequence);
    if !authentic {
        return Err((fresh, DropReason::BadTag));
    }
    if let Err(error) = sa.window.accept(sequence) {
        sa.tally.replayed += 1;
        return Err((fresh, error.into()));
    }
    sa.tally.packets += 1;
    sa.tally.bytes += (end - start) as u64;
    let opened = end - start - esp::HEADER - esp::TAG;
    let Some(room) = umem.room_with_front_mut(&mut fresh, front) else {
        return Err((fresh, DropReason::TooLong));
    };
    let Some((payload, next_header)) = esp::read_trailer(&room[to..to + opened]) else {
        return Err((fresh, DropReason::BadTrailer));
    };
    if next_header == esp::NEXT_NONE {
        return Err((fresh, DropReason::DummyPacket));
    }
    let packet = &descriptor.packet;
    match sa.mode {
        Mode::Transport => {
            copy_headers(&mut room[..to], &umem.bytes(&descriptor.frame)[..to]);
            let l3 = usize::from(packet.l3_offset);
            let ip = &mut room[l3..to];
            if packet.ethertype == ethernet::IPV4 {
                ip4::rewrite(ip, (to - l3 + payload) as u16, next_header);
            } else {
                ip6::rewrite(ip, payload as u16, next_header);
            }
        }
        Mode::Tunnel { .. } => {
            let ethertype = match next_header {
                esp::NEXT_IPV4 => ethernet::IPV4,
                esp::NEXT_IPV6 => ethernet::IPV6,
                _ => return Err((fresh, DropReason::BadTrailer)),
            };
            // The MACs are those of the endpoints, once these are known.
            let header = ethernet::Header {
                destination: packet.destination_mac,
                source: packet.source_mac,
                ethertype: ethertype.into(),
            };
            room[..ethernet::HEADER].copy_from_slice(header.as_bytes());
        }
        Mode::Overlay { .. } if next_header != transport::UDP => {
            return Err((fresh, DropReason::BadTrailer));
        }
        Mode::Overlay { .. } => {
            let inside = match tables.carrier(sa.network) {
                Some(carrier) => decapsulate::opened(&room[..payload], carrier),
                None => Err(DropReason::WrongNetwork),
            };
            let length = match inside {
                Ok(inside) if inside.start == front => inside.end - inside.start,
                // Behind options of Geneve.
                Ok(inside) => {
                    room.copy_within(inside.start..inside.end, front);
                    inside.end - inside.start
                }
                Err(reason) => return Err((fresh, reason)),
            };
            umem.set_length(&mut fresh, length);
            let frame = &mut umem.room_mut(&mut fresh)[..length];
            let before = start - usize::from(packet.l3_offset);
            let most = esp::most_inside(tables.uplink_mtu.saturating_sub(before)).saturating_sub(front);
            if let Err(reason) = decapsulate::enter(&mut descriptor.packet, frame, most) {
                return Err((fresh, reason));
            }
        }
    }
    if let Mode::Overlay { .. } = sa.mode {
        descriptor.overlay = true;
    } else {
        umem.set_length(&mut fresh, to + payload);
        if let Err(malformed) = descriptor.packet.read(umem.bytes(&fresh)) {
            return Err((fresh, malformed.into()));
        }
    }
    descriptor.network = sa.network;
    descriptor.seal = Some((sa.rule_key, sa.protection));
    descriptor.peer = Some(sa.peer);
    if !sa.selector.covers_inbound(&descriptor.packet) {
        return Err((fresh, DropReason::SelectorMismatch));
    }
    Ok(std::mem::replace(&mut descriptor.frame, fresh))
}

/// Gives opened packets of flat networks the MACs of their endpoints: those of tunnel mode came with the hosts'.
pub fn readdress_all(batch: &mut Batch, umem: &Umem) {
    for descriptor in unknown(batch).filter(|one| one.seal.is_some() && !one.overlay) {
        if let (Some(source), Some(destination)) = (descriptor.source, descriptor.destination) {
            readdress(umem.room_mut(&mut descriptor.frame), destination.mac, source.mac);
        }
    }
}

/// Writes the MACs of a frame.
#[inline]
pub(super) fn readdress(frame: &mut [u8], destination: MacAddress, source: MacAddress) {
    if let Ok((header, _)) = ethernet::Header::mut_from_prefix(frame) {
        header.destination = destination;
        header.source = source;
    }
}
