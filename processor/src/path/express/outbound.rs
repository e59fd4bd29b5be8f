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
use super::super::finish::finish_packet;
use super::super::layout::{Bounds, Form, Jobs, LastOuter, Restore, Under, known};
use super::super::outcome::{Direction, Outcome, SentAs};
use super::super::recall::{Recall, Slot, of_port};
use super::super::tables::Tables;
use super::runs;

/// Packets that an SA seals alike.
struct Alike<'a> {
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
    /// Whether checksums may be left to a network card.
    may_leave: bool,
}

/// What is read of a packet of a known flow.
struct Read {
    /// Where it ends.
    end: u16,
    /// Whether its checksum is left to a network card.
    has_left: bool,
}

/// What is known of the first packets of a burst, by their numbers.
struct Seen<'a> {
    arrivals: [u64; BATCH],
    /// Where they end.
    ends: [u16; BATCH],
    /// Which have left their checksums to a network card, bit by bit from the lowest.
    left: u64,
    /// Their flows, with the first packet of each.
    flows: ArrayVec<(&'a Slot, usize), BATCH>,
}

impl<'a> Lookup<'a> {
    /// The flow of a frame, if that is known.
    ///
    /// Never in line: so the loop that nearly always goes past it keeps its own in registers.
    #[inline(never)]
    fn flow(&self, frame: &[u8]) -> Option<&'a Slot> {
        self.ways.slot_of(frame, self.from)
    }

    /// How packets of a flow are sealed, of which this is one.
    #[inline(always)]
    fn alike(&self, frame: &[u8], slot: &Slot, outer: &mut LastOuter) -> Option<Alike<'a>> {
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
        Some(Alike { sa, form })
    }

    /// Reads packets from number `begin` of a burst on, as long as they are of known flows that are sealed like the first one's: how
    /// many, and the flow of the packet behind them if it is known and only sealed otherwise. Changes and counts nothing.
    #[inline(never)]
    fn run(
        &self,
        frames: &[Frame],
        begin: usize,
        first: &'a Slot,
        bounds: &Bounds,
        seen: &mut Seen<'a>,
        umem: &Umem,
    ) -> (usize, Option<&'a Slot>) {
        // Compiled apart for the protocols that most packets have, with what is asked of these.
        match first.protocol() {
            transport::UDP => self.run_of(transport::UDP, frames, begin, first, bounds, seen, umem),
            transport::TCP => self.run_of(transport::TCP, frames, begin, first, bounds, seen, umem),
            protocol => self.run_of(protocol, frames, begin, first, bounds, seen, umem),
        }
    }

    #[inline(always)]
    #[expect(
        clippy::too_many_arguments,
        reason = "those of `run`, and one that is known where it is in line"
    )]
    fn run_of(
        &self,
        protocol: u8,
        frames: &[Frame],
        begin: usize,
        first: &'a Slot,
        bounds: &Bounds,
        seen: &mut Seen<'a>,
        umem: &Umem,
    ) -> (usize, Option<&'a Slot>) {
        let mut slot = first;
        seen.flows.push((slot, begin));
        let mut pseudo = None;
        let notes = seen.arrivals[begin..].iter_mut().zip(&mut seen.ends[begin..]);
        for (number, (frame, (arrival, end))) in frames.iter().zip(notes).enumerate() {
            let bytes = umem.bytes(frame);
            if !Recall::is_of(slot, bytes) {
                match self.flow(bytes) {
                    Some(other) if are_alike(slot, other) => slot = other,
                    other => return (number, other),
                }
                seen.flows.push((slot, begin + number));
                pseudo = None;
            }
            let Some(read) = self.read(protocol, bytes, &mut pseudo) else {
                return (number, None);
            };
            if !bounds.hold(frame, read.end, umem) {
                return (number, None);
            }
            (*arrival, *end) = (umem.stamp(frame), read.end);
            seen.left |= u64::from(read.has_left) << (begin + number);
        }
        (frames.len(), None)
    }

    /// Reads a packet of a known flow, if it may be sealed so. `pseudo` is the pseudo header of the flow once it is needed.
    #[inline(always)]
    fn read(&self, protocol: u8, bytes: &[u8], pseudo: &mut Option<PseudoHeader>) -> Option<Read> {
        let usual = Usual::again(bytes, protocol)?;
        let end = usual.end();
        if usual.tcp_flags() & transport::SYN != 0 {
            return None;
        }
        let mut has_left = false;
        if self.may_leave {
            let new = || {
                let packet = known(bytes, end);
                PseudoHeader::new(packet.source, packet.destination, protocol)
            };
            let pseudo = pseudo.get_or_insert_with(new);
            has_left = pseudo.has_left(bytes.get(Usual::HEADERS..end.into())?);
        }
        Some(Read { end, has_left })
    }

    /// Whether the packet behind one of this flow is sealed otherwise, and its flow, if that is known.
    #[inline(always)]
    fn is_alone(&self, slot: &'a Slot, behind: Option<&Frame>) -> (bool, Option<&'a Slot>) {
        let Some(bytes) = behind.map(|frame| self.umem.bytes(frame)) else {
            return (true, None);
        };
        if Recall::is_of(slot, bytes) {
            return (false, None);
        }
        let other = self.flow(bytes);
        (!other.is_some_and(|other| are_alike(slot, other)), other)
    }
}

/// Whether packets of two flows are sealed alike.
#[inline(always)]
fn are_alike(one: &Slot, other: &Slot) -> bool {
    let sealed_by = |slot: &Slot| (slot.way.sa, slot.way.egress, slot.protocol());
    sealed_by(one) == sealed_by(other)
}

impl Seen<'_> {
    /// Finishes the checksums that were left to a network card in packets from number `begin` on.
    #[inline(never)]
    fn finish_checksums(&self, frames: &mut [Frame], begin: usize, umem: &Umem) {
        let packets = frames.iter_mut().zip(&self.ends[begin..]).zip(begin..);
        for ((frame, end), _) in packets.filter(|(_, number)| self.left >> number & 1 == 1) {
            finish_packet(&known(umem.bytes(frame), *end), frame, umem);
        }
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
        may_leave: tables.leaves_checksums(port),
    };
    // Of a trunk only the tags say which port a packet came by.
    if tables.is_trunk(port) {
        return;
    }
    let first = burst.first().and_then(|frame| lookup.flow(umem.bytes(frame)));
    let mut next = first.filter(|slot| slot.way.sa.is_some());
    if next.is_none() {
        return;
    }
    let words = |number: usize| Recall::words(umem.bytes(burst.get(number)?));
    ways.fetch(0..burst.len(), words, from);
    let mut fresh = pool.take_many(burst.len());
    let mut additional = [[0; 12]; BATCH];
    let mut overwritten = Restore::default();
    let mut seen = Seen {
        arrivals: [0; BATCH],
        ends: [0; BATCH],
        left: 0,
        flows: ArrayVec::new(),
    };
    // As what packets leave, and the first of them that do.
    let mut forms = ArrayVec::<(SentAs, usize), BATCH>::new();
    let mut jobs = Jobs::new(&mut fresh, &mut additional, &mut overwritten, &umem);
    let mut last_outer = LastOuter::None;
    let mut rest = &mut burst[..];
    let mut count = 0;
    while let (Some(slot), Some(frame)) = (next, rest.first()) {
        let Egress::Uplink(sent_as) = slot.way.egress else {
            break;
        };
        let Some(alike) = lookup.alike(umem.bytes(frame), slot, &mut last_outer) else {
            break;
        };
        let Alike { sa, form } = &alike;
        let many;
        // Where every packet has another SA, there are no runs.
        let (is_alone, behind) = lookup.is_alone(slot, rest.get(1));
        if is_alone {
            let read = lookup.read(slot.protocol(), umem.bytes(frame), &mut None);
            let Some(read) = read.filter(|_| !frame.is_long()) else {
                break;
            };
            seen.flows.push((slot, count));
            (seen.arrivals[count], seen.ends[count]) = (umem.stamp(frame), read.end);
            seen.left |= u64::from(read.has_left) << count;
            (many, next) = (1, behind);
        } else {
            let most = jobs.left().min(rest.len());
            let Some(bounds) = form.bounds(frame, &umem) else {
                break;
            };
            (many, next) = lookup.run(&rest[..most], count, slot, &bounds, &mut seen, &umem);
        }
        let (run, behind) = rest.split_at_mut(many);
        rest = behind;
        if seen.left >> count != 0 {
            seen.finish_checksums(run, count, &umem);
        }
        let outer = last_outer.as_ref().map(|(_, outer)| outer);
        let seal = (*sa, form, outer);
        let ends = &seen.ends[count..][..many];
        match run {
            [] => break,
            [frame] => {
                let packet = known(umem.bytes(frame), ends[0]);
                if jobs.push(&packet, frame, seal, None).is_err() {
                    break;
                }
            }
            run => {
                let Ok(numbers) = sa.sequence.take_many(many) else {
                    break;
                };
                jobs.push_run(run, ends, numbers, seal, &umem);
            }
        }
        if forms.last().is_none_or(|(last, _)| *last != sent_as) {
            forms.push((sent_as, count));
        }
        count += many;
    }
    for (slot, run) in runs(&seen.flows, count) {
        counters.met_by(slot.way.rule, run.len());
    }
    let arrivals = seen.arrivals;
    drop(seen);
    let sealed = jobs.seal(*engine);
    drop(jobs);
    ways.hits += count as u64;
    overwritten.restore(&mut fresh, &umem);
    ledger.passed("express");
    let mut leaving = fresh;
    leaving.drain(sealed.fresh..).for_each(|frame| pool.put(frame));
    if sealed.in_place == 0 {
        pool.put_first(burst, count);
    } else {
        let mut rooms = std::mem::take(&mut leaving).into_iter();
        for (number, frame) in burst.drain(..count).enumerate() {
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
    let (sent, kept) = arrivals[..count].split_at(sent - leaving.len());
    for (sent_as, alike) in runs(&forms, sent.len()) {
        ledger.all_ended(Direction::Outbound, Outcome::Sent(sent_as), &sent[alike]);
    }
    if let Err(reason) = left {
        ledger.all_ended(Direction::Outbound, Outcome::Dropped(reason), kept);
        leaving.into_iter().for_each(|frame| pool.put(frame));
    }
    ledger.passed("deliver");
}
