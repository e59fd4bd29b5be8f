//! The vector of packet descriptors that goes through the stages beside the frames.

use std::num::NonZeroU16;

use arrayvec::ArrayVec;
use guestseal_rules::classify::Protection;
use guestseal_rules::model::{HostIndex, KeyIndex, NetworkIndex, RuleIndex};

use crate::port::BATCH;
use crate::port::frame::Frame;
use crate::sa::slots::Place;
use crate::wire::packet::Packet;

use super::endpoints::Endpoint;
use super::outcome::{Direction, DropReason, Outcome, SentAs};

/// A worker of this process, by its number from 0.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u16);

impl WorkerId {
    /// The number as an index.
    #[must_use]
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl std::fmt::Display for WorkerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a packet waits for at the worker that gets it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Its outbound SA is there: seal and send.
    Seal,
    /// Its inbound SA is there: open and deliver.
    Open,
    /// Its guest port is there: transmit.
    Transmit,
}

/// Where a packet leaves.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Egress {
    /// By the uplink.
    Uplink(SentAs),
    /// By a guest port of this host, by its local number.
    Guest(u16),
}

/// A packet on its way: the frame and what the stages have found out about it.
///
/// In this order, since the packet is moved as a whole, and nothing in front of it shall make that move begin earlier: loads
/// that straddle the stores before them wait for those (25 cycles a packet).
#[derive(Debug)]
#[repr(C)]
pub struct Descriptor {
    /// What `parse` read.
    pub packet: Packet,
    /// The frame that holds it now.
    pub frame: Frame,
    /// Time of arrival, ns of `CLOCK_MONOTONIC`.
    pub arrival: u64,
    /// The way it goes.
    pub direction: Direction,
    /// The local port it came from; `None` for the uplink.
    pub ingress: Option<u16>,
    /// Its logical network, once known.
    pub network: NetworkIndex,
    /// The endpoint that sent it, once known.
    pub source: Option<Endpoint>,
    /// The endpoint it is for, once known; `None` for groups and for addresses that nobody declared.
    pub destination: Option<Endpoint>,
    /// The key and protection that seal it or have opened it.
    pub seal: Option<(KeyIndex, Protection)>,
    /// The other host: the one that it goes to by an overlay, or whose SA or bare overlay packet brought it.
    pub peer: Option<HostIndex>,
    /// Whether an overlay carries it between the hosts.
    pub overlay: bool,
    /// Which monitoring interface gets a copy, by its number in the tables.
    pub mirror: Option<NonZeroU16>,
    /// If it was too long: bytes of the guest's IP packet that would have fitted.
    pub fits: u16,
    /// The SA that seals or opens it, and its owner, once known.
    pub sa: Option<Place>,
    /// Where it leaves, once known.
    pub egress: Option<Egress>,
    /// The rule that let it go on, if the next packet of the flow may go the same way unasked.
    pub rule: Option<RuleIndex>,
    /// Whether its way is that of an earlier packet of its flow: then the stages that would find it pass it by.
    pub known: bool,
    /// How it ended, as soon as that is known; later stages skip it.
    pub outcome: Option<Outcome>,
}

impl Descriptor {
    /// A packet that just arrived.
    #[inline]
    pub fn new(
        frame: Frame,
        packet: Packet,
        arrival: u64,
        direction: Direction,
        ingress: Option<u16>,
    ) -> Self {
        Self {
            frame,
            packet,
            arrival,
            direction,
            ingress,
            network: NetworkIndex(0),
            source: None,
            destination: None,
            seal: None,
            peer: None,
            overlay: false,
            mirror: None,
            fits: 0,
            sa: None,
            egress: None,
            rule: None,
            known: false,
            outcome: None,
        }
    }

    /// Whether the packet still goes on.
    #[inline]
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.outcome.is_none()
    }

    /// Whether it still goes on and has yet to find its way.
    #[inline]
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.is_live() && !self.known
    }

    /// The host that it goes to.
    #[inline]
    #[must_use]
    pub fn far_host(&self) -> Option<HostIndex> {
        self.peer.or(self.destination.map(|to| to.host))
    }

    /// Ends the packet.
    #[inline]
    pub fn drop_for(&mut self, reason: DropReason) {
        self.outcome = Some(Outcome::Dropped(reason));
    }
}

/// The packets that go through the stages together.
pub type Batch = ArrayVec<Descriptor, BATCH>;

/// The packets of a batch that still go on and have yet to find their way.
#[inline]
pub fn unknown(batch: &mut Batch) -> impl Iterator<Item = &mut Descriptor> {
    batch.iter_mut().filter(|descriptor| descriptor.is_unknown())
}

/// The packets of a batch that still go on.
#[inline]
pub fn live(batch: &mut Batch) -> impl Iterator<Item = &mut Descriptor> {
    batch.iter_mut().filter(|descriptor| descriptor.is_live())
}
