//! Where security associations are: immutable, shared by all workers, built whole by control.
//!
//! Inbound by SPI, outbound by what a rule has decided. A hash of the SPI finds an SA in one probe for ten SAs as for
//! ten thousand; a peer chooses the SPIs that it sends, not those that are in the table, so that it cannot make it slow.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use guestseal_rules::classify::Protection;
use guestseal_rules::model::{HostIndex, KeyIndex, NetworkIndex};

use crate::path::batch::WorkerId;
use crate::wire::packet::Packet;

use super::selector::Selector;
use super::spi::Spi;

/// The owner of an SA, and where it keeps it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The worker.
    pub owner: WorkerId,
    /// The slot among the worker's SAs of this direction.
    pub slot: u32,
}

/// What an outbound SA is chosen by.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct OutboundKey {
    /// The key that the rule names.
    pub key: KeyIndex,
    /// What the rule does with it.
    pub protection: Protection,
    /// The logical network of the packet.
    pub network: NetworkIndex,
    /// The host that the destination is on.
    pub peer: HostIndex,
}

/// Finds SAs.
#[derive(Clone, Debug, Default)]
pub struct SaTable {
    inbound: HashMap<u32, Place, FixedState>,
    outbound: HashMap<OutboundKey, Vec<(Selector, Place)>, FixedState>,
}

impl SaTable {
    /// Adds an inbound SA. Returns false if the SPI is taken.
    #[must_use]
    pub fn add_inbound(&mut self, spi: Spi, place: Place) -> bool {
        let free = !self.inbound.contains_key(&spi.get());
        if free {
            self.inbound.insert(spi.get(), place);
        }
        free
    }

    /// Adds an outbound SA: of several that cover a packet the first added is used.
    pub fn add_outbound(&mut self, key: OutboundKey, selector: Selector, place: Place) {
        self.outbound.entry(key).or_default().push((selector, place));
    }

    /// The inbound SA of an SPI.
    #[inline]
    #[must_use]
    pub fn inbound(&self, spi: u32) -> Option<Place> {
        self.inbound.get(&spi).copied()
    }

    /// The outbound SAs among which one is to be chosen, the first first.
    #[inline]
    #[must_use]
    pub fn outbound(&self, key: &OutboundKey) -> Candidates<'_> {
        Candidates(self.outbound.get(key).map(Vec::as_slice).unwrap_or_default())
    }
}

/// The SAs for one outbound key.
#[derive(Copy, Clone, Debug, Default)]
pub struct Candidates<'a>(&'a [(Selector, Place)]);

impl Candidates<'_> {
    /// The SA for a packet.
    #[inline]
    #[must_use]
    pub fn covering(self, packet: &Packet) -> Option<Place> {
        let mut all = self.0.iter();
        let found = all.find(|(selector, _)| selector.covers_outbound(packet));
        found.map(|(_, place)| *place)
    }
}

/// The SAs that one worker owns, by direction and slot.
#[derive(Debug, Default)]
pub struct Owned {
    /// To seal with.
    pub outbound: Vec<super::outbound::OutboundSa>,
    /// To open with.
    pub inbound: Vec<super::inbound::InboundSa>,
}
