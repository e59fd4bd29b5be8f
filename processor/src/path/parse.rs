//! The first stage: reads each frame once, and finds out what came sealed.

use crate::port::Burst;
use crate::port::umem::Umem;
use crate::wire::packet::{Malformed, Packet};

use super::batch::{Batch, Descriptor};
use super::outcome::{Direction, DropReason};

impl From<Malformed> for DropReason {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Truncated => DropReason::Truncated,
            Malformed::Vlan => DropReason::BadVlan,
            Malformed::Ip => DropReason::BadIpHeader,
            Malformed::Extension => DropReason::BadExtensionHeader,
            Malformed::Fragment => DropReason::BadFragment,
            Malformed::Transport => DropReason::BadTransportHeader,
        }
    }
}

/// Turns received frames into descriptors: parsed, or with the reason why they are no packets.
pub fn parse(burst: &mut Burst, batch: &mut Batch, umem: &Umem, direction: Direction, ingress: Option<u16>) {
    for frame in burst.drain(..) {
        let arrival = umem.stamp(&frame);
        batch.push(Descriptor::new(frame, Packet::EMPTY, arrival, direction, ingress));
    }
    if direction == Direction::Inbound {
        read_each(batch, umem, Packet::read_sealed);
    } else {
        read_each(batch, umem, Packet::read);
    }
}

#[inline]
fn read_each(batch: &mut Batch, umem: &Umem, read: impl Fn(&mut Packet, &[u8]) -> Result<(), Malformed>) {
    for descriptor in batch {
        if let Err(malformed) = read(&mut descriptor.packet, umem.bytes(&descriptor.frame)) {
            descriptor.packet = Packet::EMPTY;
            descriptor.drop_for(malformed.into());
        }
    }
}
