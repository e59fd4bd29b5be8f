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
use crate::sa::sequence::Numbers;
use crate::sa::slots::Place;
use crate::wire::packet::{Fragment, Packet, Usual};
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
#[derive(Copy, Clone)]
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

/// Which packets of a form are sealed in a run ([`Jobs::push_run`]): those that begin where the first does in its frame, with a
/// head as long, and are not too long for it.
pub(super) struct Bounds {
    front: usize,
    head: usize,
    longest: usize,
}

impl Bounds {
    /// Whether one is that ends there.
    #[inline(always)]
    pub(super) fn hold(&self, frame: &Frame, end: u16, umem: &Umem) -> bool {
        usize::from(end) <= self.longest
            && umem.front_of(frame) == self.front
            && frame.head() == self.head
            && !frame.is_long()
    }
}

/// The headers in front of ESP.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Before {
    /// The guest's own.
    Own,
    /// Those between the hosts.
    Hosts,
    /// Those between the hosts, and UDP from this port.
    HostsAndUdp(u16),
}

/// What of a packet the headers in front of ESP depend on.
#[derive(Copy, Clone)]
struct Ip {
    /// Where it begins.
    offset: usize,
    is_v4: bool,
    traffic_class: u8,
}

impl From<&Packet> for Ip {
    #[inline(always)]
    fn from(packet: &Packet) -> Self {
        Self {
            offset: packet.l3_offset.into(),
            is_v4: packet.ethertype == ethernet::IPV4,
            traffic_class: packet.traffic_class,
        }
    }
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

    /// Whether it lays packets out as another one does.
    #[inline]
    fn is_like(&self, other: &Self) -> bool {
        let shape = |form: &Self| {
            (
                form.from,
                form.front,
                form.start,
                form.before,
                form.carrier.is_some(),
            )
        };
        shape(self) == shape(other)
    }

    /// The lengths of a packet that ends there.
    #[inline(always)]
    fn plan(&self, end: usize) -> Plan {
        let payload = self.front + end - self.from;
        let trailer = esp::padding(payload) + esp::TRAILER;
        Plan {
            payload,
            trailer,
            esp: esp::HEADER + payload + trailer + esp::TAG,
        }
    }

    /// The bounds of packets of this form, of which one came in this frame; `None` if that has not the room.
    #[inline(always)]
    pub(super) fn bounds(&self, frame: &Frame, umem: &Umem) -> Option<Bounds> {
        /// The longest padding, trailer and tag.
        const BEHIND: usize = 3 + esp::TRAILER + esp::TAG;
        let room = (self.bound + self.l3).min(umem.room());
        let most = esp::most_inside(room.saturating_sub(self.start));
        let front = umem.front_of(frame);
        let bounds = Bounds {
            front,
            longest: (most + self.from)
                .saturating_sub(self.front)
                .min(umem.room_of(frame).saturating_sub(BEHIND)),
            head: frame.head(),
        };
        (front >= self.front && !frame.is_long()).then_some(bounds)
    }

    /// Bytes that the guest's IP packet may have.
    fn fits(&self, packet: &Packet, plan: Plan) -> u16 {
        let most = esp::most_inside(self.bound.saturating_sub(self.start - self.l3));
        // What of the payload is no part of the guest's IP packet, or of that packet is no part of the payload.
        let outside = plan.payload + usize::from(packet.l3_offset);
        (most + usize::from(packet.end)).saturating_sub(outside) as u16
    }

    /// Lowers what a packet that opens a TCP connection offers. `frame` begins where the packet's does.
    #[inline(always)]
    fn clamp(&self, packet: &Packet, frame: &mut [u8], plan: Plan) {
        if packet.tcp_flags & transport::SYN != 0 {
            fit::clamp(packet, frame, self.fits(packet, plan));
        }
    }

    /// Makes a packet whole where it came, which ends there: headers in front of it, padding and trailer behind. `room` begins so
    /// many bytes in front of it as the form says.
    #[inline(always)]
    fn complete(&self, packet: impl FnOnce(&[u8]) -> Packet, room: &mut [u8], end: usize, plan: Plan) {
        if let Some(carrier) = self.carrier
            && let Some((header, frame)) = room.split_first_chunk_mut()
        {
            carrier.write(header, &packet(frame), end);
        }
        let behind = &mut room[self.front + end..];
        if esp::write_trailer(behind, plan.payload, self.next_header).is_none() {
            unreachable!("the room was checked")
        }
    }

    /// Writes the headers in front of ESP; the guest's own are there already, and say what follows them (RFC 4303 3.1.1).
    #[inline(always)]
    fn write_before(&self, before: &mut [u8], plan: Plan, ip: Ip, outer: Option<&Outer>) {
        match (self.before, outer) {
            (Before::Own, _) => {
                let header = &mut before[ip.offset..];
                if ip.is_v4 {
                    ip4::rewrite(header, (header.len() + plan.esp) as u16, esp::ESP);
                } else {
                    ip6::rewrite(header, plan.esp as u16, esp::ESP);
                }
            }
            (Before::Hosts, Some(outer)) => outer.write(before, ip.traffic_class, plan.esp),
            (Before::HostsAndUdp(source), Some(outer)) => {
                let length = udp::HEADER + plan.esp;
                outer.write(before, ip.traffic_class, length);
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
    /// Nothing is changed or counted if there is a reason against it. `pool` has long frames for what does not fit into others.
    #[inline(always)]
    pub(super) fn push(
        &mut self,
        packet: &Packet,
        frame: &'a mut Frame,
        (sa, form, outer): (&'a OutboundSa, &Form<'_>, Option<&Outer>),
        pool: Option<&mut FramePool>,
    ) -> Result<bool, Unfit> {
        let umem = self.umem;
        let end = usize::from(packet.end);
        let plan = form.plan(end);
        if form.start - form.l3 + plan.esp > form.bound {
            return Err(Unfit {
                reason: DropReason::TooLong,
                fits: form.fits(packet, plan),
            });
        }
        let head = frame.head();
        if head > 0 && head == form.head && umem.room_of(frame) >= end + plan.trailer + esp::TAG {
            let taken = sa.sequence.take().map_err(DropReason::from)?;
            count(sa, 1, plan.esp);
            self.push_in_place(packet, frame, (sa, form, outer), plan, taken);
            return Ok(true);
        }
        let room = umem.room_with_front_mut(frame, form.front);
        let Some(room) = room.filter(|room| room.len() >= form.front + end + plan.trailer) else {
            return Err(DropReason::TooLong.into());
        };
        let is_long = form.start + plan.esp > umem.room();
        let pool = pool.filter(|pool| is_long && pool.available_long() > 0);
        if self.rooms.len() == 0 || is_long && pool.is_none() {
            return Err(DropReason::NoFrame.into());
        }
        let taken = sa.sequence.take().map_err(DropReason::from)?;
        let (Some(fresh), Some(additional)) = (self.rooms.next(), self.additional.next()) else {
            unreachable!("one for each packet")
        };
        if let Some(pool) = pool {
            pool.widen(fresh);
        }
        count(sa, 1, plan.esp);
        form.clamp(packet, &mut room[form.front..], plan);
        form.complete(|_| *packet, room, end, plan);
        let job = lay_out(
            room,
            (fresh, additional),
            (sa, form, outer),
            sa.protection,
            plan,
            packet.into(),
            taken,
            umem,
            |before| self.overwritten.note(self.sealed.fresh, before),
        );
        self.sealed.fresh += 1;
        self.jobs.push(job);
        Ok(false)
    }

    /// How many packets there are frames for.
    #[inline]
    pub(super) fn left(&self) -> usize {
        self.rooms.len()
    }

    /// One more packet for each of these frames. Their packets are of the usual form and within the form's bounds, open no TCP
    /// connection, and end at `ends`.
    ///
    /// Never in line: so the loop keeps in registers what is the same for all.
    #[inline(never)]
    pub(super) fn push_run(
        &mut self,
        frames: &'a mut [Frame],
        ends: &[u16],
        numbers: Numbers,
        (sa, form, outer): (&'a OutboundSa, &Form<'_>, Option<&Outer>),
        umem: &'a Umem,
    ) {
        let many = frames.len();
        let mut bytes = 0;
        if form.head > 0 && frames.first().is_some_and(|frame| frame.head() == form.head) {
            for ((frame, end), taken) in frames.iter_mut().zip(ends).zip(numbers) {
                let packet = known(umem.bytes(frame), *end);
                let plan = form.plan((*end).into());
                bytes += plan.esp;
                self.push_in_place(&packet, frame, (sa, form, outer), plan, taken);
            }
            count(sa, many, bytes);
            return;
        }
        // Compiled apart for the forms that most packets have, with what is known of these.
        let own = Form {
            from: Usual::HEADERS,
            front: 0,
            start: Usual::HEADERS,
            before: Before::Own,
            carrier: None,
            ..*form
        };
        let tunnel = Form {
            from: ethernet::HEADER,
            before: Before::Hosts,
            ..own
        };
        let overlay = Form {
            from: 0,
            front: encapsulate::HEADER,
            before: Before::Hosts,
            carrier: form.carrier,
            ..own
        };
        let encrypt = Protection::Encrypt;
        if sa.protection != encrypt {
            self.push_each(frames, ends, numbers, (sa, form, outer), sa.protection, umem);
        } else if form.is_like(&own) {
            self.push_each(frames, ends, numbers, (sa, &own, None), encrypt, umem);
        } else if form.is_like(&tunnel) {
            self.push_each(frames, ends, numbers, (sa, &tunnel, outer), encrypt, umem);
        } else if form.is_like(&overlay) {
            self.push_each(frames, ends, numbers, (sa, &overlay, outer), encrypt, umem);
        } else {
            self.push_each(frames, ends, numbers, (sa, form, outer), encrypt, umem);
        }
    }

    #[inline(always)]
    fn push_each(
        &mut self,
        frames: &'a mut [Frame],
        ends: &[u16],
        mut numbers: Numbers,
        (sa, form, outer): (&'a OutboundSa, &Form<'_>, Option<&Outer>),
        protection: Protection,
        umem: &'a Umem,
    ) {
        let many = frames.len();
        let mut bytes = 0;
        let fresh = split(&mut self.rooms, many);
        let additional = split(&mut self.additional, many);
        let first = self.sealed.fresh;
        self.sealed.fresh += many;
        let rooms = fresh.iter_mut().zip(additional);
        // Not by `extend`, which is one call for all forms.
        for (number, ((frame, end), fresh)) in frames.iter_mut().zip(ends).zip(rooms).enumerate() {
            let end = usize::from(*end);
            let plan = form.plan(end);
            bytes += plan.esp;
            let (Some(room), Some(taken)) = (umem.room_with_front_mut(frame, form.front), numbers.next())
            else {
                unreachable!("the room was checked, and there is a number for each")
            };
            form.complete(|frame| known(frame, end as u16), room, end, plan);
            let ip = Ip {
                offset: ethernet::HEADER,
                is_v4: true,
                traffic_class: room[form.front + Usual::TRAFFIC_CLASS],
            };
            let note = |before| self.overwritten.note(first + number, before);
            let job = lay_out(
                room,
                fresh,
                (sa, form, outer),
                protection,
                plan,
                ip,
                taken,
                umem,
                note,
            );
            self.jobs.push(job);
        }
        count(sa, many, bytes);
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
    ) {
        let umem = self.umem;
        let Some(additional) = self.additional.next() else {
            unreachable!("one for each packet")
        };
        self.sealed.in_place |= 1 << self.jobs.len();
        let (start, head) = (form.start, frame.head());
        umem.take_head(frame);
        umem.set_length(frame, start + plan.esp);
        let room = umem.room_mut(frame);
        form.clamp(packet, &mut room[head..], plan);
        form.complete(
            |_| *packet,
            &mut room[head - form.front..],
            packet.end.into(),
            plan,
        );
        if let Before::Own = form.before {
            room.copy_within(head..head + start, 0);
        }
        let (before, behind) = room.split_at_mut(start);
        form.write_before(before, plan, packet.into(), outer);
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

/// Lays a packet out that is whole where it came, in a fresh frame: what the engine is to do with it there. What is overwritten for
/// AES-GMAC is noted.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "what is made of them is one thing, and each is borrowed from elsewhere"
)]
fn lay_out<'a>(
    room: &'a [u8],
    (fresh, additional): (&'a mut Frame, &'a mut [u8; 12]),
    (sa, form, outer): (&'a OutboundSa, &Form<'_>, Option<&Outer>),
    protection: Protection,
    plan: Plan,
    ip: Ip,
    (number, nonce): (u64, Nonce),
    umem: &'a Umem,
    note: impl FnOnce(Overwritten),
) -> SealJob<'a> {
    let source = &room[form.from..][..plan.payload + plan.trailer];
    let fresh = umem.data_mut(fresh, form.start + plan.esp);
    let Some((sealed, tag)) = fresh.split_last_chunk_mut() else {
        unreachable!("a tag is among its bytes")
    };
    let (before, esp) = sealed.split_at_mut(form.start);
    if let Before::Own = form.before {
        copy_headers(before, &room[..form.start]);
    }
    form.write_before(before, plan, ip, outer);
    *additional = write_esp(esp, sa, number);
    let additional = authenticated(additional, sa.esn);
    let (additional, buffers) = match protection {
        Protection::Encrypt => {
            let destination = &mut sealed[form.start + esp::HEADER..];
            (additional, Buffers::Copy { source, destination })
        }
        Protection::Authenticate => {
            esp[esp::HEADER..].copy_from_slice(source);
            let (from, before) = lay_out_gmac(sealed, form.start, additional);
            note(before);
            (&sealed[from..], Buffers::InPlace(&mut []))
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

/// So many of the first.
#[inline(always)]
fn split<'a, T>(all: &mut std::slice::IterMut<'a, T>, many: usize) -> &'a mut [T] {
    let (first, rest) = std::mem::take(all).into_slice().split_at_mut(many);
    *all = rest.iter_mut();
    first
}

/// A packet of the usual form that ends there, and was read a moment ago.
#[inline(always)]
pub(super) fn known(frame: &[u8], end: u16) -> Packet {
    let mut packet = Packet::EMPTY;
    let Some(usual) = Usual::known(frame, end) else {
        unreachable!("it was one a moment ago")
    };
    usual.write(&mut packet);
    packet
}

/// Counts what is sealed under an SA.
#[inline(always)]
fn count(sa: &OutboundSa, packets: usize, bytes: usize) {
    let mut tally = sa.tally.get();
    tally.packets += packets as u64;
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
    match (
        <&mut [u8; Usual::HEADERS]>::try_from(&mut *to),
        from.first_chunk(),
    ) {
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
