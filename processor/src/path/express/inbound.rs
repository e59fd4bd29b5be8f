//! Inbound: ESP of a known SA, around a packet of a known flow for a guest port that is here.

use std::sync::Arc;

use arrayvec::ArrayVec;
use zerocopy::FromBytes;

use crate::aead::engine::OpenJob;
use crate::port::frame::Frame;
use crate::port::pool::FramePool;
use crate::port::umem::Umem;
use crate::port::{BATCH, Burst};
use crate::sa::inbound::InboundSa;
use crate::sa::outbound::Mode;
use crate::sa::slots::{Place, Slots};
use crate::wire::packet::{Packet, Usual};
use crate::wire::{ecn, esp, ethernet, ip4, transport};

use super::super::batch::{Batch, Descriptor, Egress, WorkerId};
use super::super::context::Context;
use super::super::decapsulate;
use super::super::deliver::{Exits, Ledger, owner_of};
use super::super::encapsulate::{self, Carrier};
use super::super::layout::{Restore, copy_headers};
use super::super::open::{self, Candidate, Layout, Payload, readdress};
use super::super::outcome::{Direction, Outcome};
use super::super::recall::{Recall, Slot, Words, of_sa};
use super::super::tables::Tables;
use super::runs;

/// Opens what the uplink received, as far as the first packets are ESP of SAs that are here, and delivers of it what is of
/// known flows. Takes all of these out of the burst; what is open but must find its way, or was dropped, is in `rest`.
pub fn open_known(
    context: &mut Context<'_>,
    burst: &mut Burst,
    rest: &mut Batch,
    exits: &mut impl Exits,
    ledger: &mut impl Ledger,
) {
    let Context {
        worker,
        tables,
        pool,
        sas,
        decisions,
        engine,
        ..
    } = context;
    let umem = Arc::clone(pool.umem());
    let is_sealed = |frame: &Frame| {
        let bytes = umem.bytes(frame);
        sealed(bytes).is_some_and(|usual| header(bytes, usual).is_some())
    };
    // What goes to trunks gets their tags.
    if tables.has_trunks() || !burst.first().is_some_and(is_sealed) {
        return;
    }
    let room = umem.room();
    let mut fresh = pool.take_many(burst.len());
    let mut additional = [[0; 12]; BATCH];
    let mut candidates = ArrayVec::<Candidate, BATCH>::new();
    // The SAs of the packets, and the first packet of each.
    let mut under = ArrayVec::<(Place, usize), BATCH>::new();
    let mut overwritten = Restore::default();
    let mut jobs = ArrayVec::<OpenJob<'_>, BATCH>::new();
    let mut rooms = fresh.iter_mut().zip(&mut additional);
    // Those with the headers of the one before, bit by bit from the lowest.
    let mut same = 0u64;
    let mut alike: Option<Alike<'_>> = None;
    for (number, frame) in burst.iter_mut().enumerate() {
        let bytes = umem.bytes(frame);
        if alike.as_ref().is_some_and(|one| Recall::has(&one.words, bytes)) {
            same |= 1 << number;
        } else {
            alike = Alike::of(bytes, alike.as_ref(), *worker, tables, &sas.inbound);
            let Some(one) = &alike else { break };
            if under.last().is_none_or(|(place, _)| *place != one.place) {
                under.push((one.place, number));
            }
        }
        let Some(Alike { sa, layout, .. }) = &alike else {
            break;
        };
        let Some(usual) = Usual::again(bytes, esp::ESP) else {
            break;
        };
        let Some(header) = header(bytes, usual) else { break };
        let Ok(candidate) = open::admit_alike(usual.end(), &header, sa, *layout, room) else {
            break;
        };
        let Some(room) = rooms.next() else { break };
        let note = |one| overwritten.note(number, one);
        jobs.push(open::job(
            frame,
            (&candidate, *layout),
            &header,
            sa,
            room,
            &umem,
            note,
        ));
        candidates.push(candidate);
    }
    if !jobs.is_empty() {
        engine.open(&mut jobs);
    }
    let authentic: ArrayVec<bool, BATCH> = jobs.iter().map(|job| job.authentic).collect();
    drop(jobs);
    overwritten.restore(burst, &umem);
    let (ways, counters) = decisions.ways();
    let opened = candidates.len();
    // Those that leave in their fresh frames, bit by bit from the lowest; their ports, with the first packet for each.
    let mut delivered = 0u64;
    let mut arrivals = ArrayVec::<u64, BATCH>::new();
    let mut ports = ArrayVec::<(u16, usize), BATCH>::new();
    // Those that must find their way.
    let mut unknown = ArrayVec::<(usize, Place, Payload), BATCH>::new();
    if under.len() > 1 {
        fetch_single(&under, &candidates, &sas.inbound, burst, &mut fresh, &umem, ways);
    }
    for (place, run) in runs(&under, opened) {
        let Some(sa) = sas.inbound.get_mut(place) else {
            unreachable!("admitted by this SA")
        };
        let layout = Layout::new(sa.mode, Usual::HEADERS);
        let carrier = tables.carrier(sa.network);
        // That of the packet before, if it was known.
        let mut last: Option<Known<'_>> = None;
        let words = |number: usize| {
            let (candidate, fresh) = (&candidates[number], &mut fresh[number]);
            let room = umem.room_with_front_mut(fresh, layout.front)?;
            words(umem.bytes(&burst[number]), room, (candidate, layout), sa)
        };
        ways.fetch(run.clone(), words, of_sa(place));
        let packets = candidates[run.clone()].iter().zip(&authentic[run.clone()]);
        let frames = burst[run.clone()].iter().zip(&mut fresh[run.clone()]);
        for (number, ((candidate, authentic), (came, fresh))) in run.zip(packets.zip(frames)) {
            let arrival = umem.stamp(came);
            let before = last.take();
            let Some(room) = umem.room_with_front_mut(fresh, layout.front) else {
                unreachable!("something was opened there")
            };
            let opened = room.get(layout.opened(candidate)).unwrap_or_default();
            let payload = match open::accept(candidate, layout, *authentic, sa, opened) {
                Ok(payload) => payload,
                Err(reason) => {
                    ledger.ended(Direction::Inbound, Outcome::Dropped(reason), arrival);
                    continue;
                }
            };
            // Behind one that must find its way everyone waits.
            let known = if unknown.is_empty() {
                let came = umem.bytes(came);
                let like = before.as_ref().filter(|_| same >> number & 1 == 1);
                unwrap_known(
                    ways,
                    like,
                    came,
                    room,
                    layout.to,
                    payload,
                    (place, sa.mode),
                    carrier,
                )
            } else {
                None
            };
            let Some((known, length)) = known else {
                unknown.push((number, place, payload));
                continue;
            };
            let slot = known.slot;
            if !before.is_some_and(|before| std::ptr::eq(before.slot, slot)) {
                let port = match slot.way.egress {
                    Egress::Guest(port) if owner_of(port, *worker, tables) == Some(*worker) => port,
                    _ => {
                        unknown.push((number, place, payload));
                        continue;
                    }
                };
                if ports.last().is_none_or(|(last, _)| *last != port) {
                    ports.push((port, arrivals.len()));
                }
            }
            last = Some(known);
            counters.met(slot.way.rule);
            if let Some([destination, source]) = slot.way.macs {
                readdress(room, destination, source);
            }
            umem.set_length(fresh, length);
            arrivals.push(arrival);
            delivered |= 1 << number;
        }
    }
    ways.hits += arrivals.len() as u64;
    let mut leaving = fresh;
    if arrivals.len() == opened {
        leaving.drain(opened..).for_each(|frame| pool.put(frame));
        pool.put_first(burst, opened);
    } else {
        let mut unknown = unknown.into_iter().peekable();
        let fresh = std::mem::take(&mut leaving);
        let mut came = burst.drain(..opened);
        for (number, mut fresh) in fresh.into_iter().enumerate() {
            let came = came.next();
            if delivered >> number & 1 == 1 {
                leaving.push(fresh);
                came.into_iter().for_each(|came| pool.put(came));
                continue;
            }
            match (came, unknown.next_if(|(next, ..)| *next == number)) {
                (Some(came), Some((_, place, payload))) => {
                    let Some(sa) = sas.inbound.get(place) else {
                        unreachable!("it has accepted the packet")
                    };
                    let mut descriptor = opened_descriptor(came, place, &umem);
                    let layout = Layout::new(sa.mode, Usual::HEADERS);
                    match open::unwrap(&mut descriptor, layout, payload, sa, tables, &umem, &mut fresh) {
                        Ok(()) => std::mem::swap(&mut descriptor.frame, &mut fresh),
                        Err(reason) => descriptor.drop_for(reason),
                    }
                    rest.push(descriptor);
                }
                (came, _) => came.into_iter().for_each(|came| pool.put(came)),
            }
            pool.put(fresh);
        }
    }
    ledger.passed("express");
    deliver_all(leaving, &ports, &arrivals, pool, exits, ledger);
    ledger.passed("deliver");
}

/// Reads the places of flows of packets that are alone under their SA, as [`Recall::fetch`] does for those that are not. Where every
/// packet has another SA, this saves 50 of 500 cycles (1,000 SAs, Zen 3).
///
/// Never in line: so the loops beside it keep their registers.
#[inline(never)]
fn fetch_single(
    under: &[(Place, usize)],
    candidates: &[Candidate],
    sas: &Slots<InboundSa>,
    burst: &Burst,
    fresh: &mut Burst,
    umem: &Umem,
    ways: &Recall,
) {
    let mut place_of = |place: Place, number: usize| {
        let sa = sas.get(place)?;
        let layout = Layout::new(sa.mode, Usual::HEADERS);
        let room = umem.room_with_front_mut(&mut fresh[number], layout.front)?;
        let words = words(
            umem.bytes(&burst[number]),
            room,
            (&candidates[number], layout),
            sa,
        )?;
        Some(ways.place(&words, of_sa(place)))
    };
    let single = runs(under, candidates.len()).filter(|(_, run)| run.len() == 1);
    let places = single.filter_map(|(place, run)| place_of(place, run.start));
    ways.read(&places.take(BATCH).collect());
}

/// What the stages expect of a packet that an SA has opened.
fn opened_descriptor(came: Frame, place: Place, umem: &Umem) -> Descriptor {
    let arrival = umem.stamp(&came);
    let mut descriptor = Descriptor::new(came, Packet::EMPTY, arrival, Direction::Inbound, None);
    Usual::again(umem.bytes(&descriptor.frame), esp::ESP)
        .unwrap_or_else(|| unreachable!("it was one a moment ago"))
        .write(&mut descriptor.packet);
    descriptor.sa = Some(place);
    descriptor
}

/// Submits packets to guest ports: to each those from its first on.
#[inline(always)]
fn deliver_all(
    mut leaving: Burst,
    ports: &[(u16, usize)],
    arrivals: &[u64],
    pool: &mut FramePool,
    exits: &mut impl Exits,
    ledger: &mut impl Ledger,
) {
    for (port, run) in runs(ports, arrivals.len()) {
        let mut packets = if run.len() == leaving.len() {
            std::mem::take(&mut leaving)
        } else {
            leaving.drain(..run.len()).collect()
        };
        let left = exits.guest_all(port, &mut packets);
        let (sent, kept) = arrivals[run.clone()].split_at(run.len() - packets.len());
        ledger.all_ended(Direction::Inbound, Outcome::Delivered, sent);
        if let Err(reason) = left {
            ledger.all_ended(Direction::Inbound, Outcome::Dropped(reason), kept);
            packets.into_iter().for_each(|frame| pool.put(frame));
        }
    }
}

/// Packets with the headers of the one before, SPI among them: they are opened alike.
struct Alike<'a> {
    words: Words,
    place: Place,
    sa: &'a InboundSa,
    layout: Layout,
}

impl<'a> Alike<'a> {
    /// What is to be known of a sealed packet whose headers are not those of the one before; `None` if its SA is not here, or does
    /// not open it.
    ///
    /// Never in line: so the loop that nearly always goes past it keeps its own in registers.
    #[inline(never)]
    fn of(
        frame: &[u8],
        last: Option<&Self>,
        worker: WorkerId,
        tables: &Tables,
        sas: &'a Slots<InboundSa>,
    ) -> Option<Self> {
        let usual = sealed(frame)?;
        let spi = header(frame, usual)?.spi.get();
        let (place, sa) = match last {
            Some(last) if last.sa.spi.get() == spi => (last.place, last.sa),
            _ => {
                let place = tables.sas.inbound(spi).filter(|place| place.owner == worker)?;
                (place, sas.get(place)?)
            }
        };
        let mut packet = Packet::EMPTY;
        usual.write(&mut packet);
        open::comes_from_peer(&packet, sa.mode).ok()?;
        Some(Self {
            words: Recall::words(frame)?,
            place,
            sa,
            layout: Layout::new(sa.mode, Usual::HEADERS),
        })
    }
}

/// A flow, and what of its packets stands behind the header of ESP if they came in transport mode: protocol and ports.
struct Known<'a> {
    slot: &'a Slot,
    inside: (u8, [u8; 4]),
}

/// A frame that is ESP for one host behind headers of the usual form.
#[inline(always)]
fn sealed(frame: &[u8]) -> Option<Usual<'_>> {
    let usual = Usual::of(frame)?;
    let mut packet = Packet::EMPTY;
    usual.write(&mut packet);
    (packet.protocol == esp::ESP && !packet.is_group()).then_some(usual)
}

/// The header of ESP, if what is behind it has the form of ESP.
#[inline(always)]
fn header(frame: &[u8], usual: Usual<'_>) -> Option<esp::Header> {
    let bytes = frame.get(Usual::HEADERS..usize::from(usual.end()))?;
    let (header, rest) = esp::Header::read_from_prefix(bytes).ok()?;
    (rest.len() >= esp::TRAILER + esp::TAG && rest.len() % 4 == 0).then_some(header)
}

/// The words of the flow of what was opened, if it has one at all.
#[inline(always)]
fn words(
    came: &[u8],
    room: &[u8],
    (candidate, layout): (&Candidate, Layout),
    sa: &InboundSa,
) -> Option<Words> {
    match sa.mode {
        Mode::Transport => {
            let opened = room.get(layout.opened(candidate))?;
            Recall::words_of_sealed(came, *opened.last()?, *opened.first_chunk()?)
        }
        Mode::Tunnel { .. } | Mode::Overlay { .. } => Recall::words(room.get(layout.front..)?),
    }
}

/// Makes of what was opened the packet that the peer's guest sent, if its flow is known: gives that and the packet's length.
/// Otherwise nothing of it is to be used. `room` begins so many bytes in front of the packet as the layout says, and what was opened
/// stands at `to`; `last` is the flow of the packet before, if that came with the same headers.
///
/// A flow is known for its SA only, so that what the SA may carry was asked of its first packet.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "what is made of them is one thing, and each is borrowed from elsewhere"
)]
fn unwrap_known<'a>(
    ways: &'a Recall,
    last: Option<&Known<'a>>,
    came: &[u8],
    room: &mut [u8],
    to: usize,
    payload: Payload,
    (place, mode): (Place, Mode),
    carrier: Option<&Carrier>,
) -> Option<(Known<'a>, usize)> {
    let from = of_sa(place);
    let Payload { length, next_header } = payload;
    match mode {
        Mode::Transport => {
            let (headers, inside) = room.get_mut(..to + length)?.split_at_mut(to);
            if inside.len() < transport::minimum_header(next_header)?
                || next_header == transport::TCP && transport::tcp_flags(inside)? & transport::SYN != 0
            {
                return None;
            }
            let inside = (next_header, *inside.first_chunk()?);
            let slot = match last {
                Some(last) if last.inside == inside => last.slot,
                _ => ways.slot_of_sealed(came, inside.0, inside.1, from)?,
            };
            copy_headers(headers, came.get(..to)?);
            ip4::rewrite(
                headers.get_mut(ethernet::HEADER..)?,
                (ip4::HEADER + length) as u16,
                next_header,
            );
            Some((Known { slot, inside }, to + length))
        }
        Mode::Tunnel { .. } if next_header == esp::NEXT_IPV4 => {
            // The MACs are those of the hosts, as those of the flow are remembered.
            let header: &[u8; ethernet::HEADER] = came.first_chunk()?;
            let frame = room.get_mut(..to + length)?;
            *frame.first_chunk_mut()? = *header;
            let (_, slot) = flow(ways, frame, from, last.map(|last| last.slot))?;
            let inside = (next_header, [0; 4]);
            Some((Known { slot, inside }, to + length))
        }
        Mode::Overlay { .. } if next_header == transport::UDP => {
            let datagram = room.get(..length)?;
            let end = decapsulate::usual_end(datagram, carrier?)?;
            let frame = datagram.get(encapsulate::HEADER..end)?;
            let (usual, slot) = flow(ways, frame, from, last.map(|last| last.slot))?;
            // Of congestion that the outer packet has met the inner one must hear.
            let class = came.get(Usual::TRAFFIC_CLASS)?;
            if (usual.traffic_class() ^ class) & ecn::MASK != 0 {
                return None;
            }
            let inside = (next_header, [0; 4]);
            Some((Known { slot, inside }, frame.len()))
        }
        Mode::Tunnel { .. } | Mode::Overlay { .. } => None,
    }
}

/// What a frame inside says, and its flow if that is known; `last` is that of the frame before, which came by the same SA. What opens a
/// TCP connection is of no known flow.
#[inline(always)]
fn flow<'f, 'a>(
    ways: &'a Recall,
    frame: &'f [u8],
    from: u64,
    last: Option<&'a Slot>,
) -> Option<(Usual<'f>, &'a Slot)> {
    let last = last.filter(|slot| Recall::is_of(slot, frame));
    let slot = match last {
        Some(slot) => slot,
        None => ways.slot_of(frame, from)?,
    };
    let usual = Usual::again(frame, slot.protocol())?;
    (usual.tcp_flags() & transport::SYN == 0).then_some((usual, slot))
}
