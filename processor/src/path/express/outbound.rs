//! Outbound: a packet of a known flow, sealed by an SA that is here.

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::port::frame::Frame;
use crate::port::umem::Umem;
use crate::port::{BATCH, Burst};
use crate::sa::outbound::OutboundSa;
use crate::sa::slots::Slots;
use crate::wire::packet::{Packet, Usual};
use crate::wire::transport::{self, PseudoHeader};

use super::super::batch::{Egress, WorkerId};
use super::super::context::Context;
use super::super::deliver::{Exits, Ledger};
use super::super::layout::{Form, Jobs, LastOuter, Restore, Under};
use super::super::outcome::{Direction, Outcome, SentAs};
use super::super::recall::{Recall, Slot, of_port};
use super::super::tables::Tables;
use super::runs;

/// Packets of one flow: what the SA does with one it does with the next, and with those of other flows of the same protocol.
struct Alike<'a> {
    slot: &'a Slot,
    sa: &'a OutboundSa,
    form: Form<'a>,
}

/// Where flows and their SAs are found.
struct Lookup<'a> {
    ways: &'a Recall,
    from: u64,
    worker: WorkerId,
    sas: &'a Slots<OutboundSa>,
    tables: &'a Tables,
    umem: &'a Umem,
}

impl<'a> Lookup<'a> {
    /// Finds the flow of a frame that is not of the one before, and how it is sealed; as what it leaves, if both are known.
    ///
    /// Never in line: so the loop that nearly always goes past it keeps its own in registers. What packets under one SA have in
    /// common stays where it is, since to move it costs 50 cycles.
    #[inline(never)]
    fn find(&self, frame: &[u8], alike: &mut Option<Alike<'a>>, outer: &mut LastOuter) -> Option<SentAs> {
        let slot = self.ways.slot_of(frame, self.from)?;
        let Egress::Uplink(sent_as) = slot.way.egress else {
            return None;
        };
        let sealed_by = |slot: &Slot| (slot.way.sa, slot.protocol());
        match alike {
            Some(one) if sealed_by(one.slot) == sealed_by(slot) => one.slot = slot,
            _ => *alike = Some(self.alike(frame, slot, outer)?),
        }
        Some(sent_as)
    }

    fn alike(&self, frame: &[u8], slot: &'a Slot, outer: &mut LastOuter) -> Option<Alike<'a>> {
        let place = slot.way.sa.filter(|place| place.owner == self.worker)?;
        let sa = self.sas.get(place)?;
        let mut packet = Packet::EMPTY;
        Usual::again(frame, slot.protocol())?.write(&mut packet);
        let under = Under {
            place,
            sa,
            network: slot.way.network,
            host: slot.way.peer,
        };
        let form = Form::new(&packet, under, outer, self.tables, self.umem).ok()?;
        Some(Alike { slot, sa, form })
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
    let lookup = Lookup {
        ways: &*ways,
        from,
        worker: *worker,
        sas: &sas.outbound,
        tables,
        umem: &umem,
    };
    let sa_of = |frame: &Frame| ways.slot_of(umem.bytes(frame), from)?.way.sa;
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
    let mut finish: Option<PseudoHeader> = None;
    let mut last_outer = LastOuter::None;
    let mut alike: Option<Alike<'_>> = None;
    for frame in burst.iter_mut() {
        let bytes = umem.bytes(frame);
        let is_same = alike.as_ref().is_some_and(|one| Recall::is_of(one.slot, bytes));
        if !is_same {
            let Some(sent_as) = lookup.find(bytes, &mut alike, &mut last_outer) else {
                break;
            };
            if forms.last().is_none_or(|(last, _)| *last != sent_as) {
                forms.push((sent_as, arrivals.len()));
            }
        }
        let Some(Alike { slot, sa, form }) = &alike else {
            break;
        };
        let Some(usual) = Usual::again(bytes, slot.protocol()) else {
            break;
        };
        let mut packet = Packet::EMPTY;
        usual.write(&mut packet);
        if packet.tcp_flags & transport::SYN != 0 {
            break;
        }
        if leaves_checksums && !is_same {
            let pseudo = PseudoHeader::new(packet.source, packet.destination, packet.protocol);
            finish = Some(pseudo);
        }
        let arrival = umem.stamp(frame);
        let outer = last_outer.as_ref().map(|(_, outer)| outer);
        let seal = (*sa, form, outer);
        let is_long = frame.is_long();
        if is_long || jobs.push(&packet, frame, seal, finish, None).is_err() {
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
