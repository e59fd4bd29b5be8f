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
    for descriptor in batch {
        if let Err(malformed) = descriptor.packet.read(umem.bytes(&descriptor.frame)) {
            descriptor.packet = Packet::EMPTY;
            descriptor.drop_for(malformed.into());
        }
    }
}
