//! The last stage: every packet leaves by its port or ends with its reason, and is counted.

use crate::port::Burst;
use crate::port::frame::Frame;
use crate::port::pool::FramePool;

use super::batch::{Batch, Descriptor, Egress, NextStep, WorkerId};
use super::classify;
use super::outcome::{Direction, DropReason, Outcome};
use super::tables::Tables;
use super::trunk;

/// Where packets can leave from one worker.
pub trait Exits {
    /// Submits a frame to this worker's queue of the uplink.
    ///
    /// # Errors
    /// Gives the frame back, and why.
    fn uplink(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), (Frame, DropReason)>;

    /// Submits packets to this worker's queue of the uplink, in order, none of them in a long frame, until one cannot be: that
    /// and what is behind it stays.
    ///
    /// # Errors
    /// Why something stays.
    fn uplink_all(&mut self, packets: &mut Burst) -> Result<(), DropReason>;

    /// Submits a frame to a guest port of which this worker has a queue.
    ///
    /// # Errors
    /// Gives the frame back, and why.
    fn guest(&mut self, port: u16, frame: Frame, pool: &mut FramePool) -> Result<(), (Frame, DropReason)>;

    /// Submits packets to a guest port of which this worker has a queue, as [`Exits::uplink_all`].
    ///
    /// # Errors
    /// Why something stays.
    fn guest_all(&mut self, port: u16, packets: &mut Burst) -> Result<(), DropReason>;

    /// Hands a packet to the worker that owns its next step.
    ///
    /// # Errors
    /// Gives the packet back if the ring is full.
    #[expect(
        clippy::result_large_err,
        reason = "a packet comes back whole, and nothing is allocated for it"
    )]
    fn hand_over(&mut self, to: WorkerId, step: NextStep, packet: Descriptor) -> Result<(), Descriptor>;
}

/// What is noted of every packet's end.
pub trait Ledger {
    /// One packet ended.
    fn ended(&mut self, direction: Direction, outcome: Outcome, arrival: u64);

    /// Packets ended alike.
    fn all_ended(&mut self, direction: Direction, outcome: Outcome, arrivals: &[u64]);

    /// A packet was made here: a copy for one more receiver, or a message to a guest. It ends like any packet.
    fn copied(&mut self);

    /// A message was made for a guest whose packet was too long.
    fn told_too_long(&mut self);

    /// The batch has gone through a stage.
    fn passed(&mut self, stage: &'static str);
}

/// Hands the packets of a batch that belong to another worker over to it; `owner` gives the owner of each live one.
pub fn hand_over(
    batch: &mut Batch,
    step: NextStep,
    own: WorkerId,
    exits: &mut impl Exits,
    mut owner: impl FnMut(&Descriptor) -> WorkerId,
) {
    if batch
        .iter()
        .all(|descriptor| !descriptor.is_live() || owner(descriptor) == own)
    {
        return;
    }
    for descriptor in std::mem::take(batch) {
        let to = if descriptor.is_live() {
            owner(&descriptor)
        } else {
            own
        };
        if to == own {
            batch.push(descriptor);
        } else if let Err(mut back) = exits.hand_over(to, step, descriptor) {
            back.drop_for(DropReason::HandoffFull);
            batch.push(back);
        }
    }
}

/// Copies group packets to the guest ports of their network on this host, as far as rules let each have what the sender sends:
/// a copy for one that they keep it from, as a guest in quarantine, ends like a packet to it alone.
///
/// What a guest sent goes on to the uplink itself; what came from the uplink goes to its last receiver itself.
pub fn replicate(
    batch: &mut Batch,
    own: WorkerId,
    tables: &Tables,
    pool: &mut FramePool,
    exits: &mut impl Exits,
    ledger: &mut impl Ledger,
) {
    for descriptor in batch
        .iter_mut()
        .filter(|descriptor| descriptor.is_live() && descriptor.packet.is_group())
    {
        let (mut last, mut kept) = (None, None);
        for (number, port) in tables.ports() {
            if port.endpoint.network != descriptor.network || descriptor.ingress == Some(number) {
                continue;
            }
            match classify::reaches(descriptor, &port.endpoint, own, tables) {
                Ok(()) => {
                    if let Some(receiver) = last.replace(number) {
                        copy(descriptor, receiver, own, tables, pool, exits, ledger);
                    }
                }
                Err(reason) => {
                    if let Some(reason) = kept.replace(reason) {
                        keep(descriptor, reason, ledger);
                    }
                }
            }
        }
        match (last, descriptor.egress) {
            (Some(receiver), Some(_)) => copy(descriptor, receiver, own, tables, pool, exits, ledger),
            (Some(receiver), None) => descriptor.egress = Some(Egress::Guest(receiver)),
            (None, Some(_)) => {}
            // The packet itself is what nobody gets.
            (None, None) => descriptor.drop_for(kept.take().unwrap_or(DropReason::NoEndpoint)),
        }
        if let Some(reason) = kept {
            keep(descriptor, reason, ledger);
        }
    }
}

/// A copy that is not made.
fn keep(original: &Descriptor, reason: DropReason, ledger: &mut impl Ledger) {
    ledger.copied();
    ledger.ended(
        direction_of_copy(original),
        Outcome::Dropped(reason),
        original.arrival,
    );
}

fn direction_of_copy(original: &Descriptor) -> Direction {
    if original.ingress.is_some() {
        Direction::Local
    } else {
        Direction::Inbound
    }
}

fn copy(
    original: &Descriptor,
    receiver: u16,
    own: WorkerId,
    tables: &Tables,
    pool: &mut FramePool,
    exits: &mut impl Exits,
    ledger: &mut impl Ledger,
) {
    let Some(mut copy) = duplicate(original, direction_of_copy(original), pool, ledger) else {
        return;
    };
    copy.egress = Some(Egress::Guest(receiver));
    let mut leaving = Batch::new();
    leaving.push(copy);
    transmit(&mut leaving, own, tables, pool, exits, ledger);
}

/// A copy of a packet in a frame of its own, of the same network; it begins here, and must end as any packet.
pub(super) fn duplicate(
    original: &Descriptor,
    direction: Direction,
    pool: &mut FramePool,
    ledger: &mut impl Ledger,
) -> Option<Descriptor> {
    ledger.copied();
    let Some(mut frame) = pool.take_for(original.frame.len()) else {
        ledger.ended(direction, Outcome::Dropped(DropReason::NoFrame), original.arrival);
        return None;
    };
    let umem = pool.umem();
    let bytes = umem.bytes(&original.frame);
    let room = umem.room_mut(&mut frame);
    // A received frame may begin earlier in its chunk than a fresh one.
    let Some(place) = room.get_mut(..bytes.len()) else {
        pool.put(frame);
        ledger.ended(direction, Outcome::Dropped(DropReason::TooLong), original.arrival);
        return None;
    };
    place.copy_from_slice(bytes);
    umem.set_length(&mut frame, bytes.len());
    let mut copy = Descriptor::new(
        frame,
        original.packet,
        original.arrival,
        direction,
        original.ingress,
    );
    copy.network = original.network;
    Some(copy)
}

/// Submits every live packet and ends every other: empties the batch.
pub fn transmit(
    batch: &mut Batch,
    own: WorkerId,
    tables: &Tables,
    pool: &mut FramePool,
    exits: &mut impl Exits,
    ledger: &mut impl Ledger,
) {
    hand_over(
        batch,
        NextStep::Transmit,
        own,
        exits,
        |descriptor| match descriptor.egress {
            Some(Egress::Guest(port)) => owner_of(port, own, tables).unwrap_or(own),
            _ => own,
        },
    );
    trunk::tag(batch, tables, pool.umem());
    // Taken apart at once: only what is used is read of each descriptor.
    for descriptor in batch.drain(..) {
        let Descriptor {
            frame,
            arrival,
            direction,
            egress,
            outcome,
            ..
        } = descriptor;
        let left = match (outcome, egress) {
            (Some(outcome), _) => Err((frame, outcome)),
            (None, None) => Err((frame, Outcome::Dropped(DropReason::NoEndpoint))),
            (None, Some(Egress::Uplink(sent_as))) => exits
                .uplink(frame, pool)
                .map(|()| Outcome::Sent(sent_as))
                .map_err(|(frame, reason)| (frame, Outcome::Dropped(reason))),
            (None, Some(Egress::Guest(port))) => exits
                .guest(port, frame, pool)
                .map(|()| Outcome::Delivered)
                .map_err(|(frame, reason)| (frame, Outcome::Dropped(reason))),
        };
        match left {
            Ok(outcome) => ledger.ended(direction, outcome, arrival),
            Err((frame, outcome)) => {
                pool.put(frame);
                ledger.ended(direction, outcome, arrival);
            }
        }
    }
}

/// The worker to transmit by a guest port: this one if it has a queue of it, else the first that does.
#[inline]
pub(super) fn owner_of(port: u16, own: WorkerId, tables: &Tables) -> Option<WorkerId> {
    let owners = tables.owners(port);
    owners
        .iter()
        .find(|owner| **owner == own)
        .or_else(|| owners.first())
        .copied()
}
