//! Who the peers are: each known by one address and by public keys that nobody else has.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::keys::identity::PublicKey;

use super::engine::SetupError;
use super::output::PeerId;
use super::shared::Peer;

/// Peers by their numbers, checked against each other and against this host.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// A number that is nobody's any more has none.
    pub(super) peers: Vec<Option<Peer>>,
    pub(super) by_address: HashMap<IpAddr, PeerId>,
    pub(super) by_public: HashMap<PublicKey, PeerId>,
}

impl Directory {
    /// The peers of the host whose public key is `own`.
    ///
    /// # Errors
    /// If two are not to be told apart, or one has no public key.
    pub fn new(peers: Vec<Option<Peer>>, own: PublicKey) -> Result<Self, SetupError> {
        let mut directory = Self::default();
        for (number, peer) in (0..).map(PeerId).zip(&peers) {
            let Some(peer) = peer else { continue };
            if peer.public_keys.is_empty() {
                return Err(SetupError::NoKey(peer.address));
            }
            let address = peer.address.ip();
            if directory.by_address.insert(address, number).is_some() {
                return Err(SetupError::SharedAddress(address));
            }
            for public in &peer.public_keys {
                let taken = directory.by_public.insert(*public, number);
                if taken.is_some() || *public == own {
                    return Err(SetupError::SharedKey(*public));
                }
            }
        }
        directory.peers = peers;
        Ok(directory)
    }

    pub(super) fn publics(&self) -> impl Iterator<Item = PublicKey> + '_ {
        let peers = self.peers.iter().flatten();
        peers.flat_map(|peer| &peer.public_keys).copied()
    }
}
