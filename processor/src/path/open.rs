//! Opens sealed frames: finds the SA, checks tag and replay window, and puts the guest's packet together again.
//!
//! Reads SPI, sequence number and frame; writes the plain packet into a fresh frame, or a drop reason.
//! Never allocates; panics on nothing that a peer can send.
//! RFC 4303 3.4, RFC 4106, RFC 4543: the window moves only after the tag is right.

use std::ops::Range;
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
use super::layout::{Overwritten, additional, authenticated, copy_headers, lay_out_gmac};
use super::notices::{Notice, Notices};
use super::outcome::DropReason;
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
                    // What is sealed goes to one host: somebody has made others get it, too (RFC 1122 3.3.6).
                    && !packet.is_group()
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

/// A packet whose window allows it, on its way through the engine.
#[derive(Copy, Clone)]
pub(super) struct Candidate {
    sequence: u64,
    /// Where ESP ends.
    end: usize,
}

/// How what an SA opens is laid out: the same for all packets under it whose ESP begins at the same place.
#[derive(Copy, Clone)]
pub(super) struct Layout {
    /// Where ESP begins.
    start: usize,
    /// Where the payload goes in the fresh frame, counted from so many bytes in front of its data.
    pub(super) to: usize,
    pub(super) front: usize,
}

impl Layout {
    #[inline(always)]
    pub(super) fn new(mode: Mode, start: usize) -> Self {
        let (to, front) = match mode {
            // An ESP packet of transport mode keeps its own headers.
            Mode::Transport => (start, 0),
            Mode::Tunnel { .. } => (ethernet::HEADER, 0),
            // The frame inside begins where the fresh frame does.
            Mode::Overlay { .. } => (0, encapsulate::HEADER),
        };
        Self { start, to, front }
    }

    /// Where what is opened ends in the fresh frame, at most.
    fn most(&self, candidate: &Candidate) -> usize {
        self.to + (candidate.end - self.start)
    }

    /// Where what is opened stands in the fresh frame, counted as `to` is.
    #[inline(always)]
    pub(super) fn opened(&self, candidate: &Candidate) -> Range<usize> {
        self.to..self.most(candidate) - esp::HEADER - esp::TAG
    }
}

/// Opens every live packet that has an SA; all of them are among `sas`.
///
/// One pass makes the engine's jobs, so that nothing of a packet is put down and read again before the engine does.
pub fn open(
    batch: &mut Batch,
    sas: &mut Slots<InboundSa>,
    tables: &Tables,
    pool: &mut FramePool,
    engine: &dyn Engine,
) {
    let umem = Arc::clone(pool.umem());
    let most = umem.room();
    let is_concerned = batch.iter().any(|descriptor| descriptor.sa.is_some());
    let mut fresh = pool.take_many(if is_concerned { batch.len() } else { 0 });
    let mut additional = [[0; 12]; BATCH];
    // With their places in the batch.
    let mut candidates = ArrayVec::<(u16, Candidate, Layout), BATCH>::new();
    // In the frames that came, by their places in the batch.
    let mut overwritten = ArrayVec::<(u16, Overwritten), BATCH>::new();
    let mut jobs = ArrayVec::<OpenJob<'_>, BATCH>::new();
    let mut rooms = fresh.iter_mut().zip(&mut additional);
    for (position, descriptor) in (0u16..).zip(batch.iter_mut()) {
        let Some(place) = descriptor.sa.filter(|_| descriptor.is_live()) else {
            continue;
        };
        let Some(sa) = sas.get(place) else {
            descriptor.drop_for(DropReason::UnknownSpi);
            continue;
        };
        let header = header(&descriptor.packet, umem.bytes(&descriptor.frame));
        let admitted = header.and_then(|header| {
            let packet = &descriptor.packet;
            let layout = Layout::new(sa.mode, packet.l4_offset.into());
            let candidate = admit(packet, &header, sa, layout, umem.most_room())?;
            Ok((candidate, layout, header))
        });
        let admitted = admitted.and_then(|admitted| {
            let is_long = admitted.1.most(&admitted.0) > most;
            if is_long && pool.available_long() == 0 {
                return Err(DropReason::NoFrame);
            }
            let room = rooms.next().ok_or(DropReason::NoFrame)?;
            if is_long {
                pool.widen(room.0);
            }
            Ok((admitted, room))
        });
        let ((candidate, layout, header), room) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => {
                if matches!(reason, DropReason::ReplaySeen | DropReason::ReplayTooOld) {
                    replayed(sa);
                }
                descriptor.drop_for(reason);
                continue;
            }
        };
        let note = |one| overwritten.push((position, one));
        let came = &mut descriptor.frame;
        jobs.push(job(came, (&candidate, layout), &header, sa, room, &umem, note));
        candidates.push((position, candidate, layout));
    }
    if !jobs.is_empty() {
        engine.open(&mut jobs);
    }
    let authentic: ArrayVec<bool, BATCH> = jobs.iter().map(|job| job.authentic).collect();
    drop(jobs);
    for (position, one) in overwritten {
        one.restore(umem.room_mut(&mut batch[usize::from(position)].frame));
    }
    for (((position, candidate, layout), authentic), fresh) in
        candidates.into_iter().zip(authentic).zip(&mut fresh)
    {
        let descriptor = &mut batch[usize::from(position)];
        let Some(sa) = descriptor.sa.and_then(|place| sas.get_mut(place)) else {
            unreachable!("admitted by this SA")
        };
        let opened = umem.room_with_front_mut(fresh, layout.front);
        let opened = opened.and_then(|room| room.get(layout.opened(&candidate)));
        let payload = accept(&candidate, layout, authentic, sa, opened.unwrap_or_default());
        match payload.and_then(|payload| unwrap(descriptor, layout, payload, sa, tables, &umem, fresh)) {
            Ok(()) => std::mem::swap(&mut descriptor.frame, fresh),
            Err(reason) => descriptor.drop_for(reason),
        }
    }
    // Those that were opened from, and those that hold nothing that is wanted.
    pool.put_many(fresh);
}

/// The ESP header of a packet.
fn header(packet: &Packet, frame: &[u8]) -> Result<esp::Header, DropReason> {
    let esp = frame.get(packet.l4_offset.into()..packet.end.into());
    let header = esp.and_then(|bytes| esp::Header::read_from_prefix(bytes).ok());
    header.map(|(header, _)| header).ok_or(DropReason::BadEsp)
}

/// Whether a packet may go to the engine: into frames of `most` bytes. Changes nothing.
fn admit(
    packet: &Packet,
    header: &esp::Header,
    sa: &InboundSa,
    layout: Layout,
    most: usize,
) -> Result<Candidate, DropReason> {
    let candidate = admit_alike(packet.end, header, sa, layout, most)?;
    comes_from_peer(packet, sa.mode)?;
    Ok(candidate)
}

/// The same of a packet whose outer headers have been asked, and whose ESP ends there.
#[inline(always)]
pub(super) fn admit_alike(
    end: u16,
    header: &esp::Header,
    sa: &InboundSa,
    layout: Layout,
    most: usize,
) -> Result<Candidate, DropReason> {
    let sequence = sa.window.infer(header.sequence.get());
    sa.window.check(sequence)?;
    let candidate = Candidate {
        sequence,
        end: end.into(),
    };
    if layout.most(&candidate) > most {
        return Err(DropReason::TooLong);
    }
    Ok(candidate)
}

/// Whether the outer headers of a packet are such as its SA opens.
#[inline(always)]
pub(super) fn comes_from_peer(packet: &Packet, mode: Mode) -> Result<(), DropReason> {
    match mode {
        // Extension headers in front of ESP are not ours.
        Mode::Transport if packet.has_extensions => Err(DropReason::BadExtensionHeader),
        Mode::Transport if packet.protocol != esp::ESP => Err(DropReason::BadEsp),
        Mode::Tunnel { local, remote } | Mode::Overlay { local, remote, .. }
            if packet.source != remote || packet.destination != local =>
        {
            Err(DropReason::WrongHost)
        }
        Mode::Transport | Mode::Tunnel { .. } | Mode::Overlay { .. } => Ok(()),
    }
}

#[inline]
fn replayed(sa: &InboundSa) {
    let mut tally = sa.tally.get();
    tally.replayed += 1;
    sa.tally.set(tally);
}

/// What stands behind the header of ESP.
#[inline(always)]
fn text_and_tag(esp: &[u8]) -> (&[u8], &[u8; esp::TAG]) {
    let behind = esp.get(esp::HEADER..);
    let Some((text, tag)) = behind.and_then(|behind| behind.split_last_chunk()) else {
        unreachable!("the length was checked")
    };
    (text, tag)
}

/// What the engine is to do from the frame that came into the fresh one.
#[inline(always)]
pub(super) fn job<'a>(
    came: &'a mut Frame,
    (candidate, layout): (&Candidate, Layout),
    header: &esp::Header,
    sa: &'a InboundSa,
    (fresh, additional): (&'a mut Frame, &'a mut [u8; 12]),
    umem: &'a Umem,
    overwritten: impl FnOnce(Overwritten),
) -> OpenJob<'a> {
    *additional = self::additional(header, candidate.sequence, sa.esn);
    let additional = authenticated(additional, sa.esn);
    let (start, end) = (layout.start, candidate.end);
    let room = umem.room_with_front_mut(fresh, layout.front);
    let Some(destination) = room.and_then(|room| room.get_mut(layout.opened(candidate))) else {
        unreachable!("the room was checked, and a fresh frame has its headroom")
    };
    let (tag, additional, buffers) = match sa.protection {
        Protection::Encrypt => {
            let (source, tag) = text_and_tag(&umem.bytes(came)[start..end]);
            (tag, additional, Buffers::Copy { source, destination })
        }
        Protection::Authenticate => {
            let frame = umem.room_mut(came);
            let (from, before) = lay_out_gmac(frame, start, additional);
            overwritten(before);
            let frame = &*frame;
            let (text, tag) = text_and_tag(&frame[start..end]);
            destination.copy_from_slice(text);
            (tag, &frame[from..end - esp::TAG], Buffers::InPlace(&mut []))
        }
    };
    OpenJob {
        key: &sa.key,
        nonce: nonce::assemble(sa.salt, header.iv.to_bytes()),
        additional,
        buffers,
        tag,
        authentic: false,
    }
}

/// What an accepted packet has inside.
#[derive(Copy, Clone)]
pub(super) struct Payload {
    pub(super) length: usize,
    pub(super) next_header: u8,
}

/// Moves the window, counts the packet, and reads the trailer of what was opened.
#[inline(always)]
pub(super) fn accept(
    candidate: &Candidate,
    layout: Layout,
    authentic: bool,
    sa: &mut InboundSa,
    opened: &[u8],
) -> Result<Payload, DropReason> {
    if !authentic {
        return Err(DropReason::BadTag);
    }
    if let Err(error) = sa.window.accept(candidate.sequence) {
        replayed(sa);
        return Err(error.into());
    }
    let tally = sa.tally.get_mut();
    tally.packets += 1;
    tally.bytes += (candidate.end - layout.start) as u64;
    let (length, next_header) = esp::read_trailer(opened).ok_or(DropReason::BadTrailer)?;
    if next_header == esp::NEXT_NONE {
        return Err(DropReason::DummyPacket);
    }
    Ok(Payload { length, next_header })
}

/// Makes the fresh frame the packet that the peer's guest sent.
pub(super) fn unwrap(
    descriptor: &mut Descriptor,
    Layout { start, to, front }: Layout,
    payload: Payload,
    sa: &InboundSa,
    tables: &Tables,
    umem: &Umem,
    fresh: &mut Frame,
) -> Result<(), DropReason> {
    let Payload {
        length: payload,
        next_header,
    } = payload;
    let room = umem
        .room_with_front_mut(fresh, front)
        .ok_or(DropReason::TooLong)?;
    let packet = &mut descriptor.packet;
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
            packet.unwrapped(next_header, &room[to..to + payload])?;
            umem.set_length(fresh, to + payload);
        }
        Mode::Tunnel { .. } => {
            let ethertype = match next_header {
                esp::NEXT_IPV4 => ethernet::IPV4,
                esp::NEXT_IPV6 => ethernet::IPV6,
                _ => return Err(DropReason::BadTrailer),
            };
            // The MACs are those of the endpoints, once these are known.
            let header = ethernet::Header {
                destination: packet.destination_mac,
                source: packet.source_mac,
                ethertype: ethertype.into(),
            };
            room[..ethernet::HEADER].copy_from_slice(header.as_bytes());
            packet.read(&room[..to + payload])?;
            umem.set_length(fresh, to + payload);
        }
        Mode::Overlay { .. } if next_header != transport::UDP => return Err(DropReason::BadTrailer),
        Mode::Overlay { .. } => {
            let carrier = tables.carrier(sa.network).ok_or(DropReason::WrongNetwork)?;
            let inside = decapsulate::opened(&room[..payload], carrier)?;
            let length = inside.end - inside.start;
            if inside.start != front {
                // Behind options of Geneve.
                room.copy_within(inside.start..inside.end, front);
            }
            umem.set_length(fresh, length);
            let frame = &mut umem.room_mut(fresh)[..length];
            let before = start - usize::from(packet.l3_offset);
            let (peer, source) = (Some(sa.peer), packet.source);
            let most = || {
                let mtu = tables.mtu_towards(peer, source);
                esp::most_inside(mtu.saturating_sub(before)).saturating_sub(front)
            };
            decapsulate::enter(packet, frame, most)?;
            descriptor.overlay = true;
        }
    }
    descriptor.network = sa.network;
    descriptor.seal = Some((sa.rule_key, sa.protection));
    descriptor.peer = Some(sa.peer);
    if !sa.selector.covers_inbound(&descriptor.packet) {
        return Err(DropReason::SelectorMismatch);
    }
    Ok(())
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
