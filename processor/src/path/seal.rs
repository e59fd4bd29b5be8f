//! Seals packets by ESP: transport mode on the guest's own IP packet, tunnel mode between the hosts, or transport mode on
//! the datagrams of an overlay between the hosts.
//!
//! Reads each descriptor's SA slot and frame; writes the sealed packet into a fresh frame (the cipher's pass over the
//! bytes is the move), or into the frame that came, if that has a head of just as many bytes as go in front, or a drop
//! reason. A sequence number is taken only once nothing else can fail.
//! Never allocates. RFC 4303 3.3, RFC 4106, RFC 4543, RFC 3948.

use std::net::IpAddr;

use arrayvec::ArrayVec;
use guestseal_rules::classify::Protection;
use guestseal_rules::model::{HostIndex, NetworkIndex};
use zerocopy::IntoBytes;

use crate::aead::engine::{Buffers, Engine, SealJob};
use crate::port::BATCH;
use crate::port::frame::Frame;
use crate::port::pool::FramePool;
use crate::port::umem::Umem;
use crate::sa::nonce::Nonce;
use crate::sa::outbound::{Mode, OutboundSa};
use crate::sa::sequence::SequenceError;
use crate::sa::slots::{Place, Slots};
use crate::sa::table::{Candidates, OutboundKey};
use crate::wire::packet::{Fragment, Packet};
use crate::wire::{esp, ethernet, ip4, ip6, transport, udp};

use super::batch::{Batch, Descriptor, WorkerId, unknown};
use super::encapsulate::{self, Carrier};
use super::fit;
use super::outcome::DropReason;
use super::outer::Outer;
use super::tables::Tables;

/// Chooses the SA of each packet that is to be sealed. Says whether some have none yet and may wait for a session.
#[must_use]
pub fn select_sa(batch: &mut Batch, tables: &Tables, own: WorkerId) -> bool {
    // Packets of a burst mostly go the same way: it is looked up once for as many as follow one another.
    let mut last: Option<(OutboundKey, Candidates<'_>)> = None;
    let mut some_wait = false;
    for descriptor in unknown(batch) {
        let Some((key, protection)) = descriptor.seal else {
            continue;
        };
        let host = descriptor.far_host();
        let place = host.and_then(|peer| {
            let wanted = OutboundKey {
                key,
                protection,
                network: descriptor.network,
                peer,
            };
            let candidates = match last {
                Some((key, candidates)) if key == wanted => candidates,
                _ => tables.sas.outbound(&wanted),
            };
            last = Some((wanted, candidates));
            candidates.covering(&descriptor.packet, own)
        });
        match place {
            Some(place) => descriptor.sa = Some(place),
            None if host.is_some_and(|host| tables.sas.may_have_session(host)) => {
                some_wait = true;
            }
            None => descriptor.drop_for(DropReason::NoSecurityAssociation),
        }
    }
    some_wait
}

/// Bytes that sealing puts in front of what a guest sent: a frame with a head of just so many is sealed where it is.
#[must_use]
pub fn in_front(mode: Mode) -> usize {
    let ip = |local: IpAddr| if local.is_ipv6() { ip6::HEADER } else { ip4::HEADER };
    let headers = match mode {
        Mode::Transport => 0,
        // Instead of the guest's Ethernet header there is one between the hosts.
        Mode::Tunnel { local, .. } => ip(local),
        Mode::Overlay {
            local, udp_source, ..
        } => {
            let in_udp = udp_source.map_or(0, |_| udp::HEADER);
            ethernet::HEADER + ip(local) + in_udp + encapsulate::HEADER
        }
    };
    headers + esp::HEADER
}

/// The SA that seals a packet, and where the packet goes.
#[derive(Copy, Clone)]
pub(super) struct Under<'a> {
    pub(super) place: Place,
    pub(super) sa: &'a OutboundSa,
    pub(super) network: NetworkIndex,
    pub(super) host: Option<HostIndex>,
}

/// How a packet is laid out when it is sealed.
pub(super) struct Plan<'a> {
    /// Where the payload begins in the frame that came, counted from so many bytes in front of its data.
    from: usize,
    front: usize,
    /// Bytes of payload, and of padding and trailer.
    payload: usize,
    trailer: usize,
    next_header: u8,
    /// Bytes of ESP, and where it begins in the fresh frame.
    outer_length: usize,
    start: usize,
    /// Bytes of Ethernet, and how many may follow on the way.
    l3: usize,
    bound: usize,
    /// What stands in front of it.
    before: Before,
    /// What goes into the headroom.
    carrier: Option<&'a Carrier>,
    /// Whether the sealed packet begins where the kernel has the frame begin, so that no fresh one is needed.
    pub(super) in_place: bool,
}

impl Plan<'_> {
    /// Where the sealed packet ends in the fresh frame.
    pub(super) fn end(&self) -> usize {
        self.start + self.outer_length
    }

    /// Bytes of ESP.
    pub(super) fn outer_length(&self) -> usize {
        self.outer_length
    }

    /// Bytes that are sealed.
    fn length(&self) -> usize {
        self.payload + self.trailer
    }

    /// Bytes that the guest's IP packet may have.
    fn fits(&self, packet: &Packet) -> u16 {
        let most = esp::most_inside(self.bound.saturating_sub(self.start - self.l3));
        // What of the payload is no part of the guest's IP packet, or of that packet is no part of the payload.
        let outside = self.payload + usize::from(packet.l3_offset);
        (most + usize::from(packet.end)).saturating_sub(outside) as u16
    }
}

/// Why a packet cannot be sealed, and how many bytes would fit if it is too long.
pub(super) struct Unfit {
    reason: DropReason,
    fits: u16,
}

impl From<DropReason> for Unfit {
    fn from(reason: DropReason) -> Self {
        Self { reason, fits: 0 }
    }
}

/// The headers of the packet before, by its SA: packets of a burst mostly go the same way, so that they are made once for as
/// many as follow one another.
pub(super) type LastOuter = Option<(Place, Outer)>;

/// The headers in front of ESP.
#[derive(Copy, Clone)]
enum Before {
    /// The guest's own.
    Own,
    /// Those between the hosts.
    Hosts,
    /// Those between the hosts, and UDP from this port.
    HostsAndUdp(u16),
}

/// What was overwritten around the start of ESP to lay AES-GMAC out.
#[derive(Copy, Clone)]
pub(super) struct Overwritten {
    start: usize,
    bytes: [u8; 8],
}

impl Overwritten {
    /// Puts it back into the frame.
    pub(super) fn restore(self, frame: &mut [u8]) {
        frame[self.start - 4..self.start + 4].copy_from_slice(&self.bytes);
    }
}

/// Seals every live packet of the batch; all of them have SAs among `sas`. Says whether some were too long.
///
/// One pass makes the engine's jobs, so that nothing of a packet is put down and read again before the engine does.
#[must_use]
pub fn seal(
    batch: &mut Batch,
    sas: &Slots<OutboundSa>,
    tables: &Tables,
    pool: &mut FramePool,
    engine: &dyn Engine,
) -> bool {
    let mut too_long = false;
    let umem = std::sync::Arc::clone(pool.umem());
    let room = umem.room();
    let is_concerned = batch.iter().any(|descriptor| descriptor.sa.is_some());
    let mut fresh = pool.take_many(if is_concerned { batch.len() } else { 0 });
    let mut additional = [[0; 12]; BATCH];
    let mut sealed = ArrayVec::<u16, BATCH>::new();
    // By the number of the fresh frame.
    let mut overwritten = ArrayVec::<(usize, Overwritten), BATCH>::new();
    let mut jobs = ArrayVec::<SealJob<'_>, BATCH>::new();
    let (mut rooms, mut additional) = (fresh.iter_mut(), additional.iter_mut());
    let mut last = LastOuter::None;
    for (position, descriptor) in (0u16..).zip(batch.iter_mut()) {
        let Some(place) = descriptor.sa.filter(|_| descriptor.is_live()) else {
            // Whatever went wrong before: what is to be sealed never leaves as it is.
            if descriptor.seal.is_some() && descriptor.is_live() {
                descriptor.drop_for(DropReason::NoSecurityAssociation);
            }
            continue;
        };
        let Some(sa) = sas.get(place) else {
            descriptor.drop_for(DropReason::NoSecurityAssociation);
            continue;
        };
        let under = Under {
            place,
            sa,
            network: descriptor.network,
            host: descriptor.far_host(),
        };
        let planned = plan(
            &descriptor.packet,
            &descriptor.frame,
            under,
            &mut last,
            tables,
            &umem,
        );
        let planned = planned.and_then(|plan| {
            if !plan.in_place && (rooms.len() == 0 || plan.end() > room && pool.available_long() == 0) {
                return Err(DropReason::NoFrame.into());
            }
            let taken = sa.sequence.take().map_err(DropReason::from)?;
            Ok((plan, taken))
        });
        let (plan, taken) = match planned {
            Ok(planned) => planned,
            Err(Unfit { reason, fits }) => {
                descriptor.fits = fits;
                descriptor.drop_for(reason);
                too_long |= reason == DropReason::TooLong;
                continue;
            }
        };
        let Some(additional) = additional.next() else {
            unreachable!("one for each packet")
        };
        count(sa, plan.outer_length);
        let Descriptor { packet, frame, .. } = descriptor;
        lay_out(packet, frame, &plan, &umem);
        let outer = last.as_ref().map(|(_, outer)| outer);
        if plan.in_place {
            jobs.push(job_in_place(
                packet, frame, &plan, sa, taken, outer, additional, &umem,
            ));
            continue;
        }
        let Some(fresh) = rooms.next() else {
            unreachable!("there was one a moment ago")
        };
        if plan.end() > room {
            pool.widen(fresh);
        }
        let number = sealed.len();
        let note = |one| overwritten.push((number, one));
        jobs.push(job(
            (packet, frame),
            &plan,
            sa,
            taken,
            outer,
            (fresh, additional),
            &umem,
            note,
        ));
        sealed.push(position);
    }
    if !jobs.is_empty() {
        engine.seal(&mut jobs);
    }
    drop(jobs);
    for (number, one) in overwritten {
        one.restore(umem.room_mut(&mut fresh[number]));
    }
    for (position, frame) in sealed.into_iter().zip(&mut fresh) {
        std::mem::swap(&mut batch[usize::from(position)].frame, frame);
    }
    // Those that were sealed from, and those that nothing was sealed into.
    pool.put_many(fresh);
    too_long
}

impl From<SequenceError> for DropReason {
    fn from(error: SequenceError) -> Self {
        match error {
            SequenceError::Exhausted => DropReason::SequenceExhausted,
            SequenceError::NotReserved => DropReason::SequenceNotReserved,
        }
    }
}

#[inline]
pub(super) fn count(sa: &OutboundSa, bytes: usize) {
    let mut tally = sa.tally.get();
    tally.packets += 1;
    tally.bytes += bytes as u64;
    sa.tally.set(tally);
}

/// Finds out how a packet is to be laid out, and whether it fits. Changes nothing.
///
/// In line always, as what it calls: where much of the packet is known beforehand, most of it is nothing.
#[inline(always)]
pub(super) fn plan<'a>(
    packet: &Packet,
    frame: &Frame,
    under: Under<'_>,
    last: &mut LastOuter,
    tables: &'a Tables,
    umem: &Umem,
) -> Result<Plan<'a>, Unfit> {
    let Under {
        place,
        sa,
        network,
        host,
    } = under;
    let Inside {
        from,
        front,
        next_header,
    } = inside(packet, sa.mode)?;
    let end = usize::from(packet.end);
    let payload = front + end - from;
    let trailer = esp::padding(payload) + esp::TRAILER;
    let outer_length = esp::HEADER + payload + trailer + esp::TAG;
    let mut mtu = tables.uplink_mtu;
    let mut outer_for = |local, remote, protocol| -> Result<usize, DropReason> {
        let outer = match last {
            Some((known, outer)) if *known == place => outer,
            _ => {
                let outer = Outer::new(tables, host, local, remote, protocol)?;
                &mut last.insert((place, outer)).1
            }
        };
        mtu = outer.mtu();
        Ok(outer.length())
    };
    let (l3, start, before) = match sa.mode {
        Mode::Transport => (usize::from(packet.l3_offset), from, Before::Own),
        Mode::Tunnel { local, remote }
        | Mode::Overlay {
            local,
            remote,
            udp_source: None,
        } => (
            ethernet::HEADER,
            outer_for(local, remote, esp::ESP)?,
            Before::Hosts,
        ),
        Mode::Overlay {
            local,
            remote,
            udp_source: Some(source),
        } => (
            ethernet::HEADER,
            outer_for(local, remote, transport::UDP)? + udp::HEADER,
            Before::HostsAndUdp(source),
        ),
    };
    let carrier = if front > 0 { tables.carrier(network) } else { None };
    let behind = umem.room_of(frame).saturating_sub(end);
    let in_front = (esp::HEADER + start + front).checked_sub(from);
    let in_place = frame.head() > 0
        && in_front == Some(frame.head())
        && sa.protection == Protection::Encrypt
        && behind >= trailer + esp::TAG;
    let plan = Plan {
        from,
        front,
        payload,
        trailer,
        next_header,
        outer_length,
        start,
        l3,
        bound: mtu.min(umem.most_room() - l3),
        before,
        carrier,
        in_place,
    };
    if start - l3 + outer_length > plan.bound {
        return Err(Unfit {
            reason: DropReason::TooLong,
            fits: plan.fits(packet),
        });
    }
    // Where the headers go, and the trailer.
    if carrier.is_none() && front > 0 || front > umem.front_of(frame) || behind < trailer {
        return Err(DropReason::TooLong.into());
    }
    Ok(plan)
}

/// Makes a packet whole in the frame that it came in: headers in front of it, padding and trailer behind.
#[inline(always)]
pub(super) fn lay_out(packet: &Packet, frame: &mut Frame, plan: &Plan<'_>, umem: &Umem) {
    let end = usize::from(packet.end);
    if packet.tcp_flags & transport::SYN != 0 {
        fit::clamp(packet, umem.room_mut(frame), plan.fits(packet));
    }
    if let Some(carrier) = plan.carrier {
        let room = umem.room_with_front_mut(frame, plan.front);
        let Some(header) = room.and_then(|room| room.first_chunk_mut()) else {
            unreachable!("the plan has asked for the room")
        };
        carrier.write(header, packet, end);
    }
    let room = umem.room_mut(frame).get_mut(end..).unwrap_or_default();
    if esp::write_trailer(room, plan.payload, plan.next_header).is_none() {
        unreachable!("the plan has asked for the room")
    }
    umem.set_length(frame, end + plan.trailer);
}

/// Writes what stands in front of the payload into the fresh frame; gives what the engine is to do from one frame into the other.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "what is made of them is one thing, and each is borrowed from elsewhere"
)]
pub(super) fn job<'a>(
    (packet, came): (&Packet, &'a Frame),
    plan: &Plan<'_>,
    sa: &'a OutboundSa,
    (number, nonce): (u64, Nonce),
    outer: Option<&Outer>,
    (frame, additional): (&'a mut Frame, &'a mut [u8; 12]),
    umem: &'a Umem,
    overwritten: impl FnOnce(Overwritten),
) -> SealJob<'a> {
    let Plan {
        from,
        front,
        outer_length,
        start,
        ..
    } = *plan;
    let length = plan.length();
    let Some(source) = umem.with_front(came, front) else {
        unreachable!("the headers were written there")
    };
    umem.set_length(frame, start + outer_length);
    let (room, rest) = umem.room_mut(frame).split_at_mut(start + esp::HEADER + length);
    let Some(tag) = rest.first_chunk_mut() else {
        unreachable!("the length was checked")
    };
    let (before, behind) = room.split_at_mut(start);
    if let Before::Own = plan.before {
        copy_headers(before, &source[..start]);
    }
    write_before(before, plan, packet, outer);
    *additional = write_esp(behind, sa, number);
    let additional = authenticated(additional, sa.esn);
    let source = &source[from..from + length];
    let (additional, buffers) = match sa.protection {
        Protection::Encrypt => {
            let destination = &mut room[start + esp::HEADER..];
            (additional, Buffers::Copy { source, destination })
        }
        Protection::Authenticate => {
            room[start + esp::HEADER..].copy_from_slice(source);
            let (from, before) = lay_out_gmac(room, start, additional);
            overwritten(before);
            (&room[from..], Buffers::InPlace(&mut []))
        }
    };
    SealJob {
        key: &sa.key,
        nonce,
        additional,
        buffers,
        tag,
    }
}

/// Writes what stands in front of the payload into the head of the frame that came; gives what the engine is to do there.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "what is made of them is one thing, and each is borrowed from elsewhere"
)]
pub(super) fn job_in_place<'a>(
    packet: &Packet,
    frame: &'a mut Frame,
    plan: &Plan<'_>,
    sa: &'a OutboundSa,
    (number, nonce): (u64, Nonce),
    outer: Option<&Outer>,
    additional: &'a mut [u8; 12],
    umem: &'a Umem,
) -> SealJob<'a> {
    let start = plan.start;
    let head = frame.head();
    umem.take_head(frame);
    umem.set_length(frame, start + plan.outer_length);
    let room = umem.room_mut(frame);
    if let Before::Own = plan.before {
        room.copy_within(head..head + start, 0);
    }
    let (before, behind) = room.split_at_mut(start);
    write_before(before, plan, packet, outer);
    *additional = write_esp(behind, sa, number);
    let (text, rest) = behind[esp::HEADER..].split_at_mut(plan.length());
    let Some(tag) = rest.first_chunk_mut() else {
        unreachable!("the length was checked")
    };
    SealJob {
        key: &sa.key,
        nonce,
        additional: authenticated(additional, sa.esn),
        buffers: Buffers::InPlace(text),
        tag,
    }
}

/// Writes the headers in front of ESP; the guest's own are there already, and say what follows them (RFC 4303 3.1.1).
#[inline(always)]
fn write_before(before: &mut [u8], plan: &Plan<'_>, packet: &Packet, outer: Option<&Outer>) {
    let outer_length = plan.outer_length;
    match (plan.before, outer) {
        (Before::Own, _) => {
            let ip = &mut before[usize::from(packet.l3_offset)..];
            if packet.ethertype == ethernet::IPV4 {
                ip4::rewrite(ip, (ip.len() + outer_length) as u16, esp::ESP);
            } else {
                ip6::rewrite(ip, outer_length as u16, esp::ESP);
            }
        }
        (Before::Hosts, Some(outer)) => outer.write(before, packet.traffic_class, outer_length),
        (Before::HostsAndUdp(source), Some(outer)) => {
            let length = udp::HEADER + outer_length;
            outer.write(before, packet.traffic_class, length);
            before[outer.length()..].copy_from_slice(esp::in_udp(source, length as u16).as_bytes());
        }
        (Before::Hosts | Before::HostsAndUdp(_), None) => unreachable!("the plan has made them"),
    }
}

/// Writes the ESP header; gives what of it is authenticated.
#[inline]
fn write_esp(room: &mut [u8], sa: &OutboundSa, number: u64) -> [u8; 12] {
    let header = esp::Header {
        spi: sa.spi.get().into(),
        sequence: (number as u32).into(),
        iv: number.into(),
    };
    room[..esp::HEADER].copy_from_slice(header.as_bytes());
    additional(&header, number, sa.esn)
}

/// The part that ESP wraps.
struct Inside {
    /// Where it begins in the frame.
    from: usize,
    /// Bytes that stand in front of it, in the headroom.
    front: usize,
    next_header: u8,
}

#[inline(always)]
fn inside(packet: &Packet, mode: Mode) -> Result<Inside, DropReason> {
    let (from, front, next_header) = match mode {
        Mode::Transport if packet.fragment != Fragment::Whole => {
            return Err(DropReason::FragmentInTransportMode);
        }
        Mode::Transport if packet.has_extensions => return Err(DropReason::ExtensionInTransportMode),
        Mode::Transport => (usize::from(packet.l4_offset), 0, packet.protocol),
        Mode::Tunnel { .. } if packet.vlan.is_some() => return Err(DropReason::VlanInTunnelMode),
        Mode::Tunnel { .. } if packet.ethertype == ethernet::IPV4 => {
            (usize::from(packet.l3_offset), 0, esp::NEXT_IPV4)
        }
        Mode::Tunnel { .. } => (usize::from(packet.l3_offset), 0, esp::NEXT_IPV6),
        Mode::Overlay { .. } => (0, encapsulate::HEADER, transport::UDP),
    };
    Ok(Inside {
        from,
        front,
        next_header,
    })
}

/// Copies headers; those of IPv4 without tags and options, as they nearly always are, by a few moves in line.
#[inline]
pub(super) fn copy_headers(to: &mut [u8], from: &[u8]) {
    const USUAL: usize = ethernet::HEADER + ip4::HEADER;
    match (<&mut [u8; USUAL]>::try_from(&mut *to), from.first_chunk()) {
        (Ok(to), Some(from)) => *to = *from,
        _ => to.copy_from_slice(from),
    }
}

/// SPI and sequence number as they are authenticated (RFC 4106 5): with ESN all of the number, of which the packet has the low
/// half.
#[inline]
pub(super) fn additional(header: &esp::Header, sequence: u64, esn: bool) -> [u8; 12] {
    let [a, b, c, d] = header.spi.to_bytes();
    let [e, f, g, h, i, j, k, l] = sequence.to_be_bytes();
    if esn {
        [a, b, c, d, e, f, g, h, i, j, k, l]
    } else {
        [a, b, c, d, i, j, k, l, 0, 0, 0, 0]
    }
}

/// As much of [`additional`] as there is.
#[inline]
pub(super) fn authenticated(additional: &[u8; 12], esn: bool) -> &[u8] {
    if esn { additional } else { &additional[..8] }
}

/// Makes what AES-GMAC authenticates stand in one piece (RFC 4543 3.3: SPI, sequence, IV, payload); gives where it
/// begins.
///
/// With ESN the high half belongs between SPI and sequence: it takes the place of the SPI, which moves 4 bytes forward over
/// the end of the headers; the caller puts what was overwritten back afterwards.
pub(super) fn lay_out_gmac(frame: &mut [u8], start: usize, additional: &[u8]) -> (usize, Overwritten) {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&frame[start - 4..start + 4]);
    let from = start + 8 - additional.len();
    frame[from..start + 8].copy_from_slice(additional);
    (from, Overwritten { start, bytes })
}
