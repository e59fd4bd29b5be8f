//! An inbound SA: what its owner needs to open what comes under its SPI.

use std::cell::Cell;

use guestseal_rules::classify::Protection;
use guestseal_rules::model::{HostIndex, KeyIndex, NetworkIndex};

use crate::aead::engine::ExpandedKey;

use super::nonce::Salt;
use super::outbound::{Mode, Tally};
use super::replay::ReplayWindow;
use super::selector::Selector;
use super::spi::Spi;

/// An SA to open with. Not `Clone`: two windows would accept a packet twice.
#[derive(Debug)]
pub struct InboundSa {
    /// What it is found by.
    pub spi: Spi,
    /// Encrypted or authenticated only.
    pub protection: Protection,
    /// What ESP wraps.
    pub mode: Mode,
    /// Whether the high half of the sequence number is authenticated with the packet.
    pub esn: bool,
    /// The traffic key.
    pub key: ExpandedKey,
    /// The part of the nonce that comes with the key.
    pub salt: Salt,
    /// What was accepted before.
    pub window: ReplayWindow,
    /// What it may carry.
    pub selector: Selector,
    /// The rule key that it serves.
    pub rule_key: KeyIndex,
    /// The logical network of what it carries.
    pub network: NetworkIndex,
    /// The host that seals with it.
    pub peer: HostIndex,
    /// What came under it.
    pub tally: Cell<Tally>,
}
