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
        let parsed = Packet::parse(umem.bytes(&frame));
        let mut descriptor = Descriptor::new(
            frame,
            parsed.unwrap_or(Packet::EMPTY),
            arrival,
            direction,
            ingress,
        );
        if let Err(malformed) = parsed {
            descriptor.drop_for(malformed.into());
        }
        batch.push(descriptor);
    }
}
