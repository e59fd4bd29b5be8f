//! Finishes checksums that guests have left to their network card.
//!
//! A guest on a veth or a tap may leave the checksums of TCP and UDP to the device (`CHECKSUM_PARTIAL`), and nothing that AF_XDP
//! hands over says so: the field is what tells. Takes parsed packets of such ports and completes their bytes in place;
//! fragments and what is finished stay as they are. Never drops.

use crate::port::frame::Frame;
use crate::port::umem::Umem;
use crate::wire::packet::{Fragment, L3, Packet};
use crate::wire::transport::PseudoHeader;

use super::batch::{Batch, live};
use super::tables::Tables;

/// Finishes the checksums of a batch that came from a guest port, if its guest may leave them.
#[inline]
pub fn finish(batch: &mut Batch, tables: &Tables, port: u16, umem: &Umem) {
    if !tables.leaves_checksums(port) {
        return;
    }
    for descriptor in live(batch) {
        let packet = &descriptor.packet;
        if packet.l3 != L3::Ip || packet.fragment != Fragment::Whole || packet.ports.is_none() {
            continue;
        }
        finish_packet(packet, &mut descriptor.frame, umem);
    }
}

/// Finishes the checksum of a whole packet in a frame, if it was left.
#[inline]
pub(super) fn finish_packet(packet: &Packet, frame: &mut Frame, umem: &Umem) {
    let segment = usize::from(packet.l4_offset)..usize::from(packet.end);
    if let Some(segment) = umem.room_mut(frame).get_mut(segment) {
        PseudoHeader::new(packet.source, packet.destination, packet.protocol).finish_checksum(segment);
    }
}
