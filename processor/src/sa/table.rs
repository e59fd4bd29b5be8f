//! Where security associations are: immutable, shared by all workers, built whole by control.
//!
//! Inbound by SPI, outbound by what a rule has decided. A hash of the SPI finds an SA in one probe for ten SAs as for
//! ten thousand; a peer chooses the SPIs that it sends, not those that are in the table, so that it cannot make it slow.

use std::collections::{HashMap, HashSet};

use foldhash::fast::FixedState;
use guestseal_rules::classify::Protection;
use guestseal_rules::model::{HostIndex, KeyIndex, NetworkIndex};

use crate::path::batch::WorkerId;
use crate::wire::packet::Packet;

use super::selector::Selector;
use super::slots::Place;
use super::spi::Spi;

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
    outbound: HashMap<OutboundKey, Outbound, FixedState>,
    /// The hosts that this one can have sessions with.
    session_peers: HashSet<HostIndex, FixedState>,
}

/// The outbound SAs of one key: manual ones go before those of a session.
#[derive(Clone, Debug, Default)]
struct Outbound {
    manual: Vec<(Selector, Place)>,
    /// One for each worker, in their order.
    session: Vec<Place>,
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

    /// Takes an inbound SA out.
    pub fn remove_inbound(&mut self, spi: Spi) {
        self.inbound.remove(&spi.get());
    }

    /// Adds a manual outbound SA: of several that cover a packet the first added is used.
    pub fn add_outbound(&mut self, key: OutboundKey, selector: Selector, place: Place) {
        self.outbound
            .entry(key)
            .or_default()
            .manual
            .push((selector, place));
    }

    /// Seals what no manual SA covers with these, one for each worker, from now on. None at all ends it.
    pub fn set_session(&mut self, key: OutboundKey, places: Vec<Place>) {
        let outbound = self.outbound.entry(key).or_default();
        outbound.session = places;
        if outbound.session.is_empty() && outbound.manual.is_empty() {
            self.outbound.remove(&key);
        }
    }

    /// The hosts with which there can be sessions: what has no SA yet may wait for one.
    pub fn set_session_peers(&mut self, peers: impl IntoIterator<Item = HostIndex>) {
        self.session_peers = peers.into_iter().collect();
    }

    /// Whether a packet without an SA may get one by waiting.
    #[inline]
    #[must_use]
    pub fn may_have_session(&self, peer: HostIndex) -> bool {
        self.session_peers.contains(&peer)
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
        Candidates(self.outbound.get(key))
    }
}

/// The SAs for one outbound key.
#[derive(Copy, Clone, Debug, Default)]
pub struct Candidates<'a>(Option<&'a Outbound>);

impl Candidates<'_> {
    /// The SA for a packet that worker `own` has: of a session it is the worker's own.
    #[inline]
    #[must_use]
    pub fn covering(self, packet: &Packet, own: WorkerId) -> Option<Place> {
        let outbound = self.0?;
        let mut manual = outbound.manual.iter();
        match manual.find(|(selector, _)| selector.covers_outbound(packet)) {
            Some((_, place)) => Some(*place),
            None => outbound.session.get(own.index()).copied(),
        }
    }
}
