//! Local: guest port -> parse -> guard -> classify -> another guest port of the same logical network, never the wire.
//!
//! The stages are those of [`super::outbound`]; `classify` has found that the destination lives here.

use super::batch::{Batch, Egress, live};
use super::outcome::Direction;

/// Marks the packets that stay on this host.
pub fn turn(batch: &mut Batch) {
    for descriptor in live(batch).filter(|descriptor| matches!(descriptor.egress, Some(Egress::Guest(_)))) {
        descriptor.direction = Direction::Local;
    }
}
