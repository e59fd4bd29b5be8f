//! Outbound: a packet of a known flow, sealed by an SA that is here.

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::aead::engine::SealJob;
use crate::port::frame::Frame;
use crate::port::{BATCH, Burst};
use crate::wire::transport;

use super::super::batch::Egress;
use super::super::context::Context;
use super::super::deliver::{Exits, Ledger};
use super::super::outcome::{Direction, Outcome, SentAs};
use super::super::recall::{Slot, of_port};
use super::super::seal::{self, LastOuter, Overwritten, Under};
use super::usual;

/// Seals and sends what a guest port received, as far as the ways of the first packets are known. Takes these out of the burst.
pub fn seal_known(
    context: &mut Context<'_>,
    burst: &mut Burst,
    port: u16,
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
    let (ways, counters) = decisions.ways();
    let from = of_port(port);
    let sa_of = |frame: &Frame| {
        let frame = umem.bytes(frame);
        let packet = usual(frame)?;
        ways.slot((&packet, frame), from, None)?.way.sa
    };
    // Of a trunk only the tags say which port a packet came by.
    if tables.is_trunk(port) || burst.first().and_then(sa_of).is_none() {
        return;
    }
    let leaves_checksums = tables.leaves_checksums(port);
    let room = umem.room();
    let mut fresh = pool.take_many(burst.len());
    let mut additional = [[0; 12]; BATCH];
    // Of each packet that is sealed: when it came, as what it leaves, and whether in the frame that it came in.
    let mut arrivals = ArrayVec::<u64, BATCH>::new();
    let mut forms = ArrayVec::<SentAs, BATCH>::new();
    let mut in_place = ArrayVec::<bool, BATCH>::new();
    let mut overwritten = ArrayVec::<(usize, Overwritten), BATCH>::new();
    let mut jobs = ArrayVec::<SealJob<'_>, BATCH>::new();
    let (mut rooms, mut additional) = (fresh.iter_mut(), additional.iter_mut());
    let mut last: Option<&Slot> = None;
    let mut last_outer = LastOuter::None;
    let mut fresh_used = 0;
    for frame in burst.iter_mut() {
        let bytes = umem.bytes(frame);
        let Some(packet) = usual(bytes) else { break };
        let Some(slot) = ways.slot((&packet, bytes), from, last) else {
            break;
        };
        last = Some(slot);
        let way = &slot.way;
        let (Some(place), Egress::Uplink(sent_as)) = (way.sa, way.egress) else {
            break;
        };
        let Some(sa) = sas.outbound.get(place).filter(|_| place.owner == *worker) else {
            break;
        };
        let under = Under {
            place,
            sa,
            network: way.network,
            host: way.peer,
        };
        let Ok(plan) = seal::plan(&packet, frame, under, &mut last_outer, tables, &umem) else {
            break;
        };
        if frame.is_long() || !plan.in_place && (rooms.len() == 0 || plan.end() > room) {
            break;
        }
        let (Ok(taken), Some(additional)) = (sa.sequence.take(), additional.next()) else {
            break;
        };
        arrivals.push(umem.stamp(frame));
        forms.push(sent_as);
        in_place.push(plan.in_place);
        counters.met(way.rule);
        seal::count(sa, plan.outer_length());
        if leaves_checksums {
            let segment = usize::from(packet.l4_offset)..usize::from(packet.end);
            if let Some(segment) = umem.room_mut(frame).get_mut(segment) {
                transport::finish_checksum(packet.source, packet.destination, packet.protocol, segment);
            }
        }
        seal::lay_out(&packet, frame, &plan, &umem);
        let outer = last_outer.as_ref().map(|(_, outer)| outer);
        if plan.in_place {
            jobs.push(seal::job_in_place(
                &packet, frame, &plan, sa, taken, outer, additional, &umem,
            ));
            continue;
        }
        let Some(fresh) = rooms.next() else {
            unreachable!("there was one a moment ago")
        };
        let number = fresh_used;
        fresh_used += 1;
        let note = |one| overwritten.push((number, one));
        jobs.push(seal::job(
            (&packet, frame),
            &plan,
            sa,
            taken,
            outer,
            (fresh, additional),
            &umem,
            note,
        ));
    }
    if !jobs.is_empty() {
        engine.seal(&mut jobs);
    }
    drop(jobs);
    for (number, one) in overwritten {
        one.restore(umem.room_mut(&mut fresh[number]));
    }
    ways.hits += forms.len() as u64;
    ledger.passed("express");
    let mut leaving = Burst::new();
    {
        let mut rooms = fresh.drain(..fresh_used);
        for (came, in_place) in burst.drain(..forms.len()).zip(in_place) {
            if in_place {
                leaving.push(came);
            } else {
                leaving.extend(rooms.next());
                pool.put(came);
            }
        }
    }
    pool.put_many(fresh);
    let sent = leaving.len();
    let left = exits.uplink_all(&mut leaving);
    let (sent, kept) = arrivals.split_at(sent - leaving.len());
    let mut begin = 0;
    for alike in forms[..sent.len()].chunk_by(|one, other| one == other) {
        let end = begin + alike.len();
        ledger.all_ended(Direction::Outbound, Outcome::Sent(alike[0]), &sent[begin..end]);
        begin = end;
    }
    if let Err(reason) = left {
        ledger.all_ended(Direction::Outbound, Outcome::Dropped(reason), kept);
        leaving.into_iter().for_each(|frame| pool.put(frame));
    }
    ledger.passed("deliver");
}
