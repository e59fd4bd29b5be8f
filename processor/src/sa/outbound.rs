//! An outbound SA: what its owner needs to seal with it.
//!
//! Neither `Copy` nor `Clone`: two owners would be two sequence spaces under one key.
//!
//! ```compile_fail
//! fn two_owners(sa: guestseal::sa::outbound::OutboundSa) {
//!     let copy = sa.clone();
//! }
//! ```

use std::cell::Cell;
use std::net::IpAddr;

use guestseal_rules::classify::Protection;

use crate::aead::engine::ExpandedKey;

use super::sequence::Sequence;
use super::spi::Spi;

/// What ESP wraps (RFC 4301 4.1).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The payload of the guest's own IP packet.
    Transport,
    /// The guest's whole IP packet, in one between the hosts.
    Tunnel {
        /// This host's address.
        local: IpAddr,
        /// The peer's address.
        remote: IpAddr,
    },
    /// The datagram between the hosts in which an overlay network carries the guest's frame: transport mode between VTEPs.
    Overlay {
        /// This host's address.
        local: IpAddr,
        /// The peer's address.
        remote: IpAddr,
        /// The source port of ESP in UDP (RFC 3948), if it goes in UDP.
        udp_source: Option<u16>,
    },
}

/// An SA to seal with.
#[derive(Debug)]
pub struct OutboundSa {
    /// What the peer finds it by.
    pub spi: Spi,
    /// Encrypted or authenticated only.
    pub protection: Protection,
    /// What ESP wraps.
    pub mode: Mode,
    /// Whether the high half of the sequence number is authenticated with the packet (RFC 4304).
    pub esn: bool,
    /// The traffic key.
    pub key: ExpandedKey,
    /// The sequence space.
    pub sequence: Sequence,
    /// What left under it.
    pub tally: Cell<Tally>,
}

/// What was done under an SA: it stands in it, so that counting touches no memory of its own.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets sealed, or opened and accepted.
    pub packets: u64,
    /// Their bytes, from the start of ESP.
    pub bytes: u64,
    /// Packets refused by the replay window.
    pub replayed: u64,
}
