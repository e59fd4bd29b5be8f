//! Outbound: a packet of a known flow, sealed by an SA that is here.

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::port::frame::Frame;
use crate::port::{BATCH, Burst};
use crate::sa::outbound::OutboundSa;
use crate::sa::slots::Place;
use crate::wire::packet::{Packet, Usual};
use crate::wire::transport;

use super::super::batch::Egress;
use super::super::context::Context;
use super::super::deliver::{Exits, Ledger};
use super::super::layout::{Form, Jobs, LastOuter, Restore, Under};
use super::super::outcome::{Direction, Outcome, SentAs};
use super::super::recall::{Recall, Slot, of_port};
use super::{runs, usual};

/// Packets that differ in nothing that matters but their flow: what the SA does with one it does with the next.
struct Alike<'a> {
    place: Place,
    protocol: u8,
    sa: &'a OutboundSa,
    form: Form<'a>,
}

impl Alike<'_> {
    fn is(&self, place: Place, protocol: u8) -> bool {
        self.place == place && self.protocol == protocol
    }
}

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
    let words = |number: usize| Recall::words(umem.bytes(burst.get(number)?));
    ways.fetch(0..burst.len(), words, from);
    let leaves_checksums = tables.leaves_checksums(port);
    let mut fresh = pool.take_many(burst.len());
    let mut additional = [[0; 12]; BATCH];
    let mut overwritten = Restore::default();
    let mut arrivals = ArrayVec::<u64, BATCH>::new();
    // As what packets leave, and the first of them that do.
    let mut forms = ArrayVec::<(SentAs, usize), BATCH>::new();
    let mut jobs = Jobs::new(&mut fresh, &mut additional, &mut overwritten, &umem);
    let mut last: Option<&Slot> = None;
    let mut last_outer = LastOuter::None;
    let mut alike: Option<Alike<'_>> = None;
    for frame in burst.iter_mut() {
        let bytes = umem.bytes(frame);
        let is_same = last.is_some_and(|slot| Recall::is_of(slot, bytes));
        let Some(usual) = (if is_same {
            Usual::again(bytes)
        } else {
            Usual::of(bytes)
        }) else {
            break;
        };
        let mut packet = Packet::EMPTY;
        usual.write(&mut packet);
        if packet.tcp_flags & transport::SYN != 0 {
            break;
        }
        if !is_same {
            let Some(slot) = ways.slot((&packet, bytes), from, None) else {
                break;
            };
            last = Some(slot);
            let way = &slot.way;
            let (Some(place), Egress::Uplink(sent_as)) = (way.sa, way.egress) else {
                break;
            };
            if !alike.as_ref().is_some_and(|one| one.is(place, packet.protocol)) {
                let Some(sa) = sas.outbound.get(place).filter(|_| place.owner == *worker) else {
                    break;
                };
                let under = Under {
                    place,
                    sa,
                    network: way.network,
                    host: way.peer,
                };
                let Ok(form) = Form::new(&packet, under, &mut last_outer, tables, &umem) else {
                    break;
                };
                alike = Some(Alike {
                    place,
                    protocol: packet.protocol,
                    sa,
                    form,
                });
            }
            if forms.last().is_none_or(|(last, _)| *last != sent_as) {
                forms.push((sent_as, arrivals.len()));
            }
        }
        let (Some(slot), Some(Alike { sa, form, .. })) = (last, &alike) else {
            break;
        };
        let arrival = umem.stamp(frame);
        let outer = last_outer.as_ref().map(|(_, outer)| outer);
        let seal = (*sa, form, outer);
        let is_long = frame.is_long();
        if is_long || jobs.push(&packet, frame, seal, leaves_checksums, None).is_err() {
            break;
        }
        arrivals.push(arrival);
        counters.met(slot.way.rule);
    }
    let sealed = jobs.seal(*engine);
    drop(jobs);
    overwritten.restore(&mut fresh, &umem);
    ways.hits += arrivals.len() as u64;
    ledger.passed("express");
    let mut leaving = fresh;
    leaving.drain(sealed.fresh..).for_each(|frame| pool.put(frame));
    if sealed.in_place == 0 {
        pool.put_first(burst, arrivals.len());
    } else {
        let mut rooms = std::mem::take(&mut leaving).into_iter();
        for (number, frame) in burst.drain(..arrivals.len()).enumerate() {
            if sealed.in_place >> number & 1 == 1 {
                leaving.push(frame);
            } else {
                leaving.extend(rooms.next());
                pool.put(frame);
            }
        }
    }
    let sent = leaving.len();
    let left = exits.uplink_all(&mut leaving);
    let (sent, kept) = arrivals.split_at(sent - leaving.len());
    for (sent_as, alike) in runs(&forms, sent.len()) {
        ledger.all_ended(Direction::Outbound, Outcome::Sent(sent_as), &sent[alike]);
    }
    if let Err(reason) = left {
        ledger.all_ended(Direction::Outbound, Outcome::Dropped(reason), kept);
        leaving.into_iter().for_each(|frame| pool.put(frame));
    }
    ledger.passed("deliver");
}
