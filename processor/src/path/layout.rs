//! How ESP is laid out around a packet: headers, padding, trailer, and what the engine is to do with the bytes between them.
//!
//! What is the same for all packets of one form under one SA is found out once for as many of them as follow one another
//! ([`Form`]); what depends on a packet's length is little ([`Plan`]). A sequence number is taken only once nothing else can
//! fail. In line always: where much of a packet is known beforehand, most of it is nothing.
//! Never allocates. RFC 4303 2 and 3.3, RFC 4106, RFC 4543, RFC 3948.

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
use crate::sa::slots::Place;
use crate::wire::packet::{Fragment, Packet};
use crate::wire::transport::PseudoHeader;
use crate::wire::{esp, ethernet, ip4, ip6, transport, udp};

use super::encapsulate::{self, Carrier};
use super::fit;
use super::outcome::DropReason;
use super::outer::Outer;
use super::tables::Tables;

/// The SA that seals a packet, and where the packet goes.
#[derive(Copy, Clone)]
pub(super) struct Under<'a> {
    pub(super) place: Place,
    pub(super) sa: &'a OutboundSa,
    pub(super) network: NetworkIndex,
    pub(super) host: Option<HostIndex>,
}

/// The headers of the packet before, by its SA: packets of a burst mostly go the same way, so that they are made once for as
/// many as follow one another.
pub(super) type LastOuter = Option<(Place, Outer)>;

/// How an SA seals packets that differ in their lengths only.
pub(super) struct Form<'a> {
    /// Where the payload begins in the frame that came, counted from so many bytes in front of its data.
    from: usize,
    front: usize,
    next_header: u8,
    /// Where ESP begins in the sealed frame, and where Ethernet ends there.
    start: usize,
    l3: usize,
    /// Bytes that may follow Ethernet on the way.
    bound: usize,
    /// What stands in front of ESP.
    before: Before,
    /// What goes into the headroom.
    carrier: Option<&'a Carrier>,
    /// The head of a frame in which the sealed packet begins just where the kernel has the frame begin, so that no fresh one is
    /// needed; 0 if there is none.
    head: usize,
}

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

/// The lengths of a packet that is sealed.
#[derive(Copy, Clone)]
struct Plan {
    /// Bytes of payload, and of padding and trailer.
    payload: usize,
    trailer: usize,
    /// Bytes of ESP.
    esp: usize,
}

/// Why a packet cannot be sealed, and how many bytes would fit if it is too long.
pub(super) struct Unfit {
    pub(super) reason: DropReason,
    pub(super) fits: u16,
}

impl From<DropReason> for Unfit {
    fn from(reason: DropReason) -> Self {
        Self { reason, fits: 0 }
    }
}

impl<'a> Form<'a> {
    /// That of a packet and its like.
    #[inline(always)]
    pub(super) fn new(
        packet: &Packet,
        under: Under<'_>,
        last: &mut LastOuter,
        tables: &'a Tables,
        umem: &Umem,
    ) -> Result<Self, DropReason> {
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
        if carrier.is_none() && front > 0 {
            return Err(DropReason::TooLong);
        }
        let head = match sa.protection {
            Protection::Encrypt => (esp::HEADER + start + front).saturating_sub(from),
            Protection::Authenticate => 0,
        };
        Ok(Self {
            from,
            front,
            next_header,
            start,
            l3,
            bound: mtu.min(umem.most_room() - l3),
            before,
            carrier,
            head,
        })
    }

    /// The lengths of a packet, if it is not too long.
    #[inline(always)]
    fn plan(&self, packet: &Packet) -> Result<Plan, Unfit> {
        let payload = self.front + usize::from(packet.end) - self.from;
        let trailer = esp::padding(payload) + esp::TRAILER;
        let plan = Plan {
            payload,
            trailer,
            esp: esp::HEADER + payload + trailer + esp::TAG,
        };
        if self.start - self.l3 + plan.esp > self.bound {
            return Err(Unfit {
                reason: DropReason::TooLong,
                fits: self.fits(packet, plan),
            });
        }
        Ok(plan)
    }

    /// Bytes that the guest's IP packet may have.
    fn fits(&self, packet: &Packet, plan: Plan) -> u16 {
        let most = esp::most_inside(self.bound.saturating_sub(self.start - self.l3));
        // What of the payload is no part of the guest's IP packet, or of that packet is no part of the payload.
        let outside = plan.payload + usize::from(packet.l3_offset);
        (most + usize::from(packet.end)).saturating_sub(outside) as u16
    }

    /// Makes a packet whole where it came: headers in front of it, padding and trailer behind. `room` begins so many bytes in
    /// front of it as the form says.
    #[inline(always)]
    fn complete(&self, packet: &Packet, room: &mut [u8], plan: Plan) {
        let end = usize::from(packet.end);
        if packet.tcp_flags & transport::SYN != 0 {
            fit::clamp(packet, &mut room[self.front..], self.fits(packet, plan));
        }
        if let (Some(carrier), Some(header)) = (self.carrier, room.first_chunk_mut()) {
            carrier.write(header, packet, end);
        }
        let behind = &mut room[self.front + end..];
        if esp::write_trailer(behind, plan.payload, self.next_header).is_none() {
            unreachable!("the room was checked")
        }
    }

    /// Writes the headers in front of ESP; the guest's own are there already, and say what follows them (RFC 4303 3.1.1).
    #[inline(always)]
    fn write_before(&self, before: &mut [u8], plan: Plan, packet: &Packet, outer: Option<&Outer>) {
        match (self.before, outer) {
            (Before::Own, _) => {
                let ip = &mut before[usize::from(packet.l3_offset)..];
                if packet.ethertype == ethernet::IPV4 {
                    ip4::rewrite(ip, (ip.len() + plan.esp) as u16, esp::ESP);
                } else {
                    ip6::rewrite(ip, plan.esp as u16, esp::ESP);
                }
            }
            (Before::Hosts, Some(outer)) => outer.write(before, packet.traffic_class, plan.esp),
            (Before::HostsAndUdp(source), Some(outer)) => {
                let length = udp::HEADER + plan.esp;
                outer.write(before, packet.traffic_class, length);
                before[outer.length()..].copy_from_slice(esp::in_udp(source, length as u16).as_bytes());
            }
            (Before::Hosts | Before::HostsAndUdp(_), None) => unreachable!("the form has made them"),
        }
    }
}

/// What the engine is to do for a batch, and where.
pub(super) struct Jobs<'a> {
    jobs: ArrayVec<SealJob<'a>, BATCH>,
    /// Fresh frames that nothing goes into yet.
    rooms: std::slice::IterMut<'a, Frame>,
    additional: std::slice::IterMut<'a, [u8; 12]>,
    overwritten: &'a mut Restore,
    sealed: Sealed,
    umem: &'a Umem,
}

/// Where the packets of a batch are sealed.
#[derive(Copy, Clone, Default)]
pub(super) struct Sealed {
    /// Which of its packets were sealed in the frames that they came in, bit by bit from the lowest.
    pub(super) in_place: u64,
    /// Packets that were sealed into fresh frames.
    pub(super) fresh: usize,
}

const _: () = assert!(BATCH <= u64::BITS as usize, "a bit for each packet of a batch");

impl<'a> Jobs<'a> {
    /// None yet; frames to seal into, and room for what is authenticated beside the payload.
    #[inline(always)]
    pub(super) fn new(
        fresh: &'a mut [Frame],
        additional: &'a mut [[u8; 12]; BATCH],
        overwritten: &'a mut Restore,
        umem: &'a Umem,
    ) -> Self {
        Self {
            jobs: ArrayVec::new(),
            rooms: fresh.iter_mut(),
            additional: additional.iter_mut(),
            overwritten,
            sealed: Sealed::default(),
            umem,
        }
    }

    /// One more packet. Says whether it is sealed in the frame that it came in.
    ///
    /// Nothing is changed or counted if there is a reason against it. `finish` is there if the sender may leave checksums to its
    /// network card; `pool` has long frames for what does not fit into others.
    #[inline(always)]
    pub(super) fn push(
        &mut self,
        packet: &Packet,
        frame: &'a mut Frame,
        (sa, form, outer): (&'a OutboundSa, &Form<'_>, Option<&Outer>),
        finish: Option<PseudoHeader>,
        pool: Option<&mut FramePool>,
    ) -> Result<bool, Unfit> {
        let umem = self.umem;
        let plan = form.plan(packet)?;
        let end = usize::from(packet.end);
        let head = frame.head();
        if head > 0 && head == form.head && umem.room_of(frame) >= end + plan.trailer + esp::TAG {
            let taken = sa.sequence.take().map_err(DropReason::from)?;
            self.sealed.in_place |= 1 << self.jobs.len();
            self.push_in_place(packet, frame, (sa, form, outer), plan, taken, finish);
            return Ok(true);
        }
        let room = umem.room_with_front_mut(frame, form.front);
        let Some(room) = room.filter(|room| room.len() >= form.front + end + plan.trailer) else {
            return Err(DropReason::TooLong.into());
        };
        let length = form.start + plan.esp;
        let is_long = length > umem.room();
        let pool = pool.filter(|pool| is_long && pool.available_long() > 0);
        if self.rooms.len() == 0 || is_long && pool.is_none() {
            return Err(DropReason::NoFrame.into());
        }
        let (number, nonce) = sa.sequence.take().map_err(DropReason::from)?;
        let (Some(fresh), Some(additional)) = (self.rooms.next(), self.additional.next()) else {
            unreachable!("one for each packet")
        };
        if let Some(pool) = pool {
            pool.widen(fresh);
        }
        count(sa, plan.esp);
        if let Some(pseudo) = finish {
            finish_checksum(packet, pseudo, &mut room[form.front..]);
        }
        form.complete(packet, room, plan);
        let source = &room[form.from..][..plan.payload + plan.trailer];
        let Some((sealed, tag)) = umem.data_mut(fresh, length).split_last_chunk_mut() else {
            unreachable!("a tag is among its bytes")
        };
        let (before, esp) = sealed.split_at_mut(form.start);
        if let Before::Own = form.before {
            copy_headers(before, &room[..form.start]);
        }
        form.write_before(before, plan, packet, outer);
        *additional = write_esp(esp, sa, number);
        let additional = authenticated(additional, sa.esn);
        let (additional, buffers) = match sa.protection {
            Protection::Encrypt => {
                let destination = &mut sealed[form.start + esp::HEADER..];
                (additional, Buffers::Copy { source, destination })
            }
            Protection::Authenticate => {
                esp[esp::HEADER..].copy_from_slice(source);
                let (from, before) = lay_out_gmac(sealed, form.start, additional);
                self.overwritten.note(self.sealed.fresh, before);
                (&sealed[from..], Buffers::InPlace(&mut []))
            }
        };
        self.sealed.fresh += 1;
        self.jobs.push(SealJob {
            key: &sa.key,
            nonce,
            additional,
            buffers,
            tag,
        });
        Ok(false)
    }

    /// The same in the frame that came, whose head has just the room that is needed.
    #[inline(always)]
    fn push_in_place(
        &mut self,
        packet: &Packet,
        frame: &'a mut Frame,
        (sa, form, outer): (&'a OutboundSa, &Form<'_>, Option<&Outer>),
        plan: Plan,
        (number, nonce): (u64, Nonce),
        finish: Option<PseudoHeader>,
    ) {
        let umem = self.umem;
        let Some(additional) = self.additional.next() else {
            unreachable!("one for each packet")
        };
        count(sa, plan.esp);
        let (start, head) = (form.start, frame.head());
        umem.take_head(frame);
        umem.set_length(frame, start + plan.esp);
        let room = umem.room_mut(frame);
        if let Some(pseudo) = finish {
            finish_checksum(packet, pseudo, &mut room[head..]);
        }
        form.complete(packet, &mut room[head - form.front..], plan);
        if let Before::Own = form.before {
            room.copy_within(head..head + start, 0);
        }
        let (before, behind) = room.split_at_mut(start);
        form.write_before(before, plan, packet, outer);
        *additional = write_esp(behind, sa, number);
        let (text, rest) = behind[esp::HEADER..].split_at_mut(plan.payload + plan.trailer);
        let Some(tag) = rest.first_chunk_mut() else {
            unreachable!("the room was checked")
        };
        self.jobs.push(SealJob {
            key: &sa.key,
            nonce,
            additional: authenticated(additional, sa.esn),
            buffers: Buffers::InPlace(text),
            tag,
        });
    }

    /// Has the engine do it.
    #[inline]
    pub(super) fn seal(&mut self, engine: &dyn Engine) -> Sealed {
        if !self.jobs.is_empty() {
            engine.seal(&mut self.jobs);
        }
        self.sealed
    }
}

/// Finishes the checksum of what a guest sends that leaves it to its network card; `frame` begins where the packet's does.
#[inline(always)]
fn finish_checksum(packet: &Packet, pseudo: PseudoHeader, frame: &mut [u8]) {
    if let Some(segment) = frame.get_mut(packet.l4_offset.into()..packet.end.into()) {
        pseudo.finish_checksum(segment);
    }
}

#[inline(always)]
fn count(sa: &OutboundSa, bytes: usize) {
    let mut tally = sa.tally.get();
    tally.packets += 1;
    tally.bytes += bytes as u64;
    sa.tally.set(tally);
}

/// Writes the ESP header; gives what of it is authenticated.
#[inline(always)]
fn write_esp(room: &mut [u8], sa: &OutboundSa, number: u64) -> [u8; 12] {
    let header = esp::Header {
        spi: sa.spi.get().into(),
        sequence: (number as u32).into(),
        iv: number.into(),
    };
    let Some(room) = room.first_chunk_mut::<{ esp::HEADER }>() else {
        unreachable!("the room was checked")
    };
    *room = zerocopy::transmute!(header);
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
#[inline(always)]
pub(super) fn additional(header: &esp::Header, sequence: u64, esn: bool) -> [u8; 12] {
    let number = if esn { sequence } else { sequence << 32 };
    let behind = (number as u32).to_be_bytes();
    zerocopy::transmute!([
        header.spi.to_bytes(),
        ((number >> 32) as u32).to_be_bytes(),
        behind
    ])
}

/// As much of [`additional`] as there is.
#[inline]
pub(super) fn authenticated(additional: &[u8; 12], esn: bool) -> &[u8] {
    if esn { additional } else { &additional[..8] }
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

/// What is to be put back once the engine is done, by the number of the frame.
#[derive(Default)]
pub(super) struct Restore(ArrayVec<(usize, Overwritten), BATCH>);

impl Restore {
    /// Of one more frame.
    pub(super) fn note(&mut self, number: usize, overwritten: Overwritten) {
        self.0.push((number, overwritten));
    }

    /// Puts it back.
    #[inline(always)]
    pub(super) fn restore(self, frames: &mut [Frame], umem: &Umem) {
        for (number, one) in self.0 {
            one.restore(umem.room_mut(&mut frames[number]));
        }
    }
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
