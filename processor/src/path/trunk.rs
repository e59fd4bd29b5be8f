//! Trunk ports: the guest ports of one interface, told apart by the VLAN tag that frames have there and nowhere else.
//!
//! The outermost tag is taken off what comes from such an interface, and says which port it came by; it is put on what goes
//! there. What has the tag of no port, or none where no port is untagged, is dropped: a tag is never guessed. Never allocates.

use crate::port::umem::Umem;
use crate::wire::ethernet::{self, MACS, TAG};
use crate::wire::packet::Packet;

use super::batch::{Batch, Descriptor, Egress, live};
use super::outcome::DropReason;
use super::tables::Tables;

/// Finds the ports of what came from the interface of a port, and takes the tags off, if it is a trunk's.
#[inline]
pub fn untag(batch: &mut Batch, tables: &Tables, port: u16, umem: &Umem) {
    if tables.is_trunk(port) {
        for descriptor in live(batch) {
            if let Err(reason) = untag_one(descriptor, tables, port, umem) {
                descriptor.drop_for(reason);
            }
        }
    }
}

fn untag_one(descriptor: &mut Descriptor, tables: &Tables, port: u16, umem: &Umem) -> Result<(), DropReason> {
    let vlan = match ethernet::outer_tag(umem.bytes(&descriptor.frame)) {
        None => None,
        Some((ethernet::VLAN, vlan)) => Some(vlan),
        Some(_) => return Err(DropReason::UnknownVlan),
    };
    let member = tables.trunk_member(port, vlan).ok_or(DropReason::UnknownVlan)?;
    descriptor.ingress = Some(member);
    if vlan.is_some() {
        let length = umem.bytes(&descriptor.frame).len();
        umem.room_mut(&mut descriptor.frame)
            .copy_within(MACS + TAG..length, MACS);
        umem.set_length(&mut descriptor.frame, length - TAG);
        descriptor.packet = Packet::EMPTY;
        descriptor.packet.read(umem.bytes(&descriptor.frame))?;
    }
    Ok(())
}

/// Puts the tags on what goes to ports of trunks, and sends it by the interface that they are of.
#[inline]
pub fn tag(batch: &mut Batch, tables: &Tables, umem: &Umem) {
    if !tables.has_trunks() {
        return;
    }
    for descriptor in live(batch) {
        let Some(Egress::Guest(port)) = descriptor.egress else {
            continue;
        };
        let Some(port) = tables.port(port) else {
            continue;
        };
        descriptor.egress = Some(Egress::Guest(port.through));
        if let Some(vlan) = port.vlan
            && !tag_one(descriptor, vlan, umem)
        {
            descriptor.drop_for(DropReason::TooLong);
        }
    }
}

/// Whether there was room.
fn tag_one(descriptor: &mut Descriptor, vlan: u16, umem: &Umem) -> bool {
    let length = umem.bytes(&descriptor.frame).len();
    let Some(room) = umem.room_mut(&mut descriptor.frame).get_mut(..length + TAG) else {
        return false;
    };
    room.copy_within(MACS..length, MACS + TAG);
    if let Some(place) = room.get_mut(MACS..MACS + TAG) {
        place.copy_from_slice(&ethernet::tag(vlan));
    }
    umem.set_length(&mut descriptor.frame, length + TAG);
    true
}
