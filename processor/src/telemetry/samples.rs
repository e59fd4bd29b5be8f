//! Packets of rules with `log: true`, on their way from a worker to the log: one when a flow is met, through a bounded ring.

use std::num::NonZeroU32;

use guestseal_rules::facts::Facts;
use guestseal_rules::model::RuleIndex;
use rtrb::{Consumer, Producer};

use crate::path::outcome::Direction;

/// Samples that wait at most.
const ROOM: usize = 256;

/// A packet as a rule saw it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The generation of the rules, whose policy says what the numbers here mean.
    pub generation: NonZeroU32,
    /// The rule.
    pub rule: RuleIndex,
    /// Whether the rule decided, or only would have.
    pub enforced: bool,
    /// The way of the packet.
    pub direction: Direction,
    /// The packet.
    pub facts: Facts,
}

/// A worker's end.
#[derive(Debug)]
pub struct Sampler {
    ring: Producer<Sample>,
    /// Samples that found no room.
    lost: u64,
}

/// Both ends.
#[must_use]
pub fn samples() -> (Sampler, Consumer<Sample>) {
    let (ring, consumer) = rtrb::RingBuffer::new(ROOM);
    (Sampler { ring, lost: 0 }, consumer)
}

impl Sampler {
    /// Hands a sample over, or counts it as lost.
    #[inline]
    pub fn push(&mut self, sample: Sample) {
        self.lost += u64::from(self.ring.push(sample).is_err());
    }

    /// Samples that found no room.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }
}
