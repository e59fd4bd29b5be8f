//! Inbound: ESP of a known SA, around a packet of a known flow for a guest port that is here.

use std::sync::Arc;

use arrayvec::ArrayVec;
use zerocopy::FromBytes;

use crate::aead::engine::OpenJob;
use crate::port::frame::Frame;
use crate::port::umem::Umem;
use crate::port::{BATCH, Burst};
use crate::sa::inbound::InboundSa;
use crate::sa::outbound::Mode;
use crate::sa::slots::Place;
use crate::wire::packet::{Packet, Usual};
use crate::wire::{ecn, esp, ethernet, ip4, transport};

use super::super::batch::{Batch, Descriptor, Egress};
use super::super::context::Context;
use super::super::decapsulate;
use super::super::deliver::{Exits, Ledger, owner_of};
use super::super::open::{self, Candidate, Payload, readdress};
use super::super::outcome::{Direction, Outcome};
use super::super::recall::{Recall, Slot, of_sa};
use super::super::seal::{Overwritten, copy_headers};
use super::super::tables::Tables;
use super::usual;

/// Where the headers end that packets of the usual form have.
const HEADERS: usize = ethernet::HEADER + ip4::HEADER;

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
    let is_sealed = |frame: &Frame| sealed(umem.bytes(frame)).is_some();
    // What goes to trunks gets their tags.
    if tables.has_trunks() || !burst.first().is_some_and(is_sealed) {
        return;
    }
    let room = umem.room();
    let mut fresh = pool.take_many(burst.len());
    let mut additional = [[0; 12]; BATCH];
    let mut candidates = ArrayVec::<(Place, Candidate), BATCH>::new();
    let mut overwritten = ArrayVec::<(usize, Overwritten), BATCH>::new();
    let mut jobs = ArrayVec::<OpenJob<'_>, BATCH>::new();
    let mut rooms = fresh.iter_mut().zip(&mut additional);
    let mut last: Option<(u32, Place)> = None;
    for frame in burst.iter_mut() {
        let Some((packet, spi)) = sealed(umem.bytes(frame)) else {
            break;
        };
        let known = last.filter(|(known, _)| *known == spi);
        let found = known.or_else(|| Some((spi, tables.sas.inbound(spi)?)));
        let Some((_, place)) = found.filter(|(_, place)| place.owner == *worker) else {
            break;
        };
        last = found;
        let Some(sa) = sas.inbound.get(place) else { break };
        let Ok((candidate, header)) = open::admit(&packet, frame, sa, &umem) else {
            break;
        };
        if candidate.most() > room {
            break;
        }
        let Some(room) = rooms.next() else { break };
        let number = candidates.len();
        let note = |one| overwritten.push((number, one));
        jobs.push(open::job(frame, &candidate, &header, sa, room, &umem, note));
        candidates.push((place, candidate));
    }
    if !jobs.is_empty() {
        engine.open(&mut jobs);
    }
    let authentic: ArrayVec<bool, BATCH> = jobs.iter().map(|job| job.authentic).collect();
    drop(jobs);
    for (number, one) in overwritten {
        one.restore(umem.room_mut(&mut burst[number]));
    }
    let (ways, counters) = decisions.ways();
    let mut leaving = Leaving::default();
    let (mut last, mut hits) = (None, 0);
    let opened = candidates.len();
    let frames = burst.drain(..opened).zip(fresh.drain(..opened));
    for (((place, candidate), authentic), (came, mut fresh)) in candidates.iter().zip(authentic).zip(frames) {
        let arrival = umem.stamp(&came);
        let Some(sa) = sas.inbound.get_mut(*place) else {
            unreachable!("admitted by this SA")
        };
        let payload = match open::accept(candidate, authentic, sa, &umem, &mut fresh) {
            Ok(payload) => payload,
            Err(reason) => {
                ledger.ended(Direction::Inbound, Outcome::Dropped(reason), arrival);
                pool.put(fresh);
                pool.put(came);
                continue;
            }
        };
        // Behind one that must find its way everyone waits.
        let known = if rest.is_empty() {
            let frames = (&came, &mut fresh);
            unwrap_known(
                ways,
                last,
                frames,
                candidate,
                payload,
                (*place, sa),
                tables,
                &umem,
            )
        } else {
            None
        };
        let port = known.and_then(|slot| match slot.way.egress {
            Egress::Guest(port) => Some(port),
            Egress::Uplink(_) => None,
        });
        if let (Some(slot), Some(port)) = (known, port)
            && (leaving.ports.last() == Some(&port) || owner_of(port, *worker, tables) == Some(*worker))
        {
            last = known;
            hits += 1;
            counters.met(slot.way.rule);
            if let Some([destination, source]) = slot.way.macs {
                readdress(umem.room_mut(&mut fresh), destination, source);
            }
            leaving.push(fresh, port, arrival);
            pool.put(came);
            continue;
        }
        let mut descriptor = Descriptor::new(came, Packet::EMPTY, arrival, Direction::Inbound, None);
        Usual::of_esp_again(umem.bytes(&descriptor.frame))
            .unwrap_or_else(|| unreachable!("it was one a moment ago"))
            .write(&mut descriptor.packet);
        descriptor.sa = Some(*place);
        match open::unwrap(&mut descriptor, candidate, payload, sa, tables, &umem, &mut fresh) {
            Ok(()) => std::mem::swap(&mut descriptor.frame, &mut fresh),
            Err(reason) => descriptor.drop_for(reason),
        }
        pool.put(fresh);
        rest.push(descriptor);
    }
    ways.hits += hits;
    pool.put_many(fresh);
    ledger.passed("express");
    let Leaving {
        frames,
        ports,
        arrivals,
    } = &mut leaving;
    let mut begin = 0;
    for alike in ports.chunk_by(|one, other| one == other) {
        let mut packets: Burst = frames.drain(..alike.len()).collect();
        let left = exits.guest_all(alike[0], &mut packets);
        let end = begin + alike.len();
        let (sent, kept) = arrivals[begin..end].split_at(alike.len() - packets.len());
        ledger.all_ended(Direction::Inbound, Outcome::Delivered, sent);
        if let Err(reason) = left {
            ledger.all_ended(Direction::Inbound, Outcome::Dropped(reason), kept);
            packets.into_iter().for_each(|frame| pool.put(frame));
        }
        begin = end;
    }
    ledger.passed("deliver");
}

/// Packets on their way to guest ports.
#[derive(Default)]
struct Leaving {
    frames: Burst,
    ports: ArrayVec<u16, BATCH>,
    arrivals: ArrayVec<u64, BATCH>,
}

impl Leaving {
    fn push(&mut self, frame: Frame, port: u16, arrival: u64) {
        self.frames.push(frame);
        self.ports.push(port);
        self.arrivals.push(arrival);
    }
}

/// A frame that is ESP behind headers of the usual form, and its SPI.
#[inline(always)]
fn sealed(frame: &[u8]) -> Option<(Packet, u32)> {
    let packet = usual(frame).filter(|packet| packet.protocol == esp::ESP)?;
    let bytes = frame.get(HEADERS..usize::from(packet.end))?;
    let (header, rest) = esp::Header::ref_from_prefix(bytes).ok()?;
    if rest.len() < esp::TRAILER + esp::TAG || rest.len() % 4 != 0 || packet.is_group() {
        return None;
    }
    Some((packet, header.spi.get()))
}

/// Makes the fresh frame the packet that the peer's guest sent, if its flow is known; otherwise nothing of the frame is to be used.
///
/// A flow is known for its SA only, so that what the SA may carry was asked of its first packet.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "what is made of them is one thing, and each is borrowed from elsewhere"
)]
fn unwrap_known<'a>(
    ways: &'a Recall,
    last: Option<&'a Slot>,
    (came, fresh): (&Frame, &mut Frame),
    candidate: &Candidate,
    payload: Payload,
    (place, sa): (Place, &InboundSa),
    tables: &Tables,
    umem: &Umem,
) -> Option<&'a Slot> {
    let from = of_sa(place);
    let (to, front) = (usize::from(candidate.to), usize::from(candidate.front));
    let Payload { length, next_header } = payload;
    let came = umem.bytes(came);
    match sa.mode {
        Mode::Transport => {
            let (headers, inside) = umem.room_mut(fresh).get_mut(..to + length)?.split_at_mut(to);
            if inside.len() < transport::minimum_header(next_header)?
                || next_header == transport::TCP && transport::tcp_flags(inside)? & transport::SYN != 0
            {
                return None;
            }
            let ports = inside.first_chunk()?;
            let slot = ways.slot_of_sealed(came, next_header, *ports, from, last)?;
            copy_headers(headers, came.get(..to)?);
            ip4::rewrite(
                headers.get_mut(ethernet::HEADER..)?,
                (ip4::HEADER + length) as u16,
                next_header,
            );
            umem.set_length(fresh, to + length);
            Some(slot)
        }
        Mode::Tunnel { .. } if next_header == esp::NEXT_IPV4 => {
            // The MACs are those of the hosts, as those of the flow are remembered.
            let header: &[u8; ethernet::HEADER] = came.first_chunk()?;
            let frame = umem.room_mut(fresh).get_mut(..to + length)?;
            *frame.first_chunk_mut()? = *header;
            let packet = usual(frame)?;
            let slot = ways.slot((&packet, frame), from, last)?;
            umem.set_length(fresh, to + length);
            Some(slot)
        }
        Mode::Overlay { .. } if next_header == transport::UDP => {
            let room = umem.room_with_front_mut(fresh, front)?;
            let carrier = tables.carrier(sa.network)?;
            let inside = decapsulate::opened(room.get(..length)?, carrier).ok()?;
            if inside.start != front {
                return None;
            }
            umem.set_length(fresh, inside.end - inside.start);
            let frame = umem.bytes(fresh);
            let packet = usual(frame)?;
            // Of congestion that the outer packet has met the inner one must hear.
            let class = Usual::of_esp_again(came)?.traffic_class();
            if (packet.traffic_class ^ class) & ecn::MASK != 0 {
                return None;
            }
            ways.slot((&packet, frame), from, last)
        }
        Mode::Tunnel { .. } | Mode::Overlay { .. } => None,
    }
}
