//! What all pairs of peer and channel share: who this host is, its peers, its keys, and where answers go.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::bucket::Bucket;
use crate::keys::derive::Channel;
use crate::keys::identity::{Identity, PublicKey};
use crate::keys::store::{Generation, RuleKey};

use super::mac::{COOKIE_LIFE, ReceiverKeys};
use super::message::Datagram;
use super::output::{ChannelId, Counters, Event, Output, Pair, PeerId};
use super::pmtu::PathMtu;
use super::random::Random;
use super::settings::Settings;
use super::spis::Dealer;
use super::stamp::Stamp;
use super::statics::Statics;

/// The two clocks, read by who calls.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Now {
    /// Never goes back: since some moment, always the same one.
    pub monotonic: Duration,
    /// The wall clock, since 1970.
    pub wall: Duration,
}

/// A peer, as the policy says.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it listens and sends from.
    pub address: SocketAddr,
    /// Its public keys: one, or two while it changes from one to the other.
    pub public_keys: Vec<PublicKey>,
}

pub(super) struct PeerState {
    pub(super) address: SocketAddr,
    pub(super) publics: Vec<(PublicKey, ReceiverKeys)>,
    /// The one that it was last heard with.
    pub(super) preferred: usize,
    cookie: Option<([u8; 16], Duration)>,
    /// Initiations that are answered under load.
    pub(super) load: Bucket,
    /// Answers to what cannot be authenticated.
    pub(super) hints: Bucket,
    /// How long packets to it may be.
    pub(super) path: PathMtu,
}

impl PeerState {
    pub(super) fn new(peer: &Peer, settings: &Settings) -> Self {
        let keys = |public: &PublicKey| (*public, ReceiverKeys::new(*public));
        Self {
            address: peer.address,
            publics: peer.public_keys.iter().map(keys).collect(),
            preferred: 0,
            cookie: None,
            load: Bucket::new(settings.load_of_peer, 2 * settings.load_of_peer),
            hints: Bucket::new(5, 10),
            path: PathMtu::default(),
        }
    }

    /// Bytes of IP and UDP in front of a datagram to it.
    pub(super) fn headers(&self) -> u16 {
        let ip = if self.address.is_ipv4() { 20 } else { 40 };
        ip + 8
    }

    /// The same peer with the public keys that it has now.
    pub(super) fn with_keys(mut self, peer: &Peer) -> Self {
        let preferred = self.publics.get(self.preferred).map(|(public, _)| *public);
        let mut before = std::mem::take(&mut self.publics);
        let keys = |public: &PublicKey| {
            let known = before.iter().position(|(one, _)| one == public);
            known.map_or_else(
                || (*public, ReceiverKeys::new(*public)),
                |place| before.swap_remove(place),
            )
        };
        self.publics = peer.public_keys.iter().map(keys).collect();
        let place = self
            .publics
            .iter()
            .position(|(public, _)| Some(*public) == preferred);
        self.preferred = place.unwrap_or(0);
        self
    }

    /// Whether a public key is one of its own.
    pub(super) fn has(&self, public: PublicKey) -> bool {
        self.publics.iter().any(|(one, _)| *one == public)
    }

    pub(super) fn keep_cookie(&mut self, cookie: [u8; 16], now: Duration) {
        self.cookie = Some((cookie, now));
    }

    pub(super) fn cookie(&self, now: Duration) -> Option<&[u8; 16]> {
        let (cookie, at) = self.cookie.as_ref()?;
        (now < *at + COOKIE_LIFE).then_some(cookie)
    }
}

/// A generation that is accepted.
pub(super) struct Held {
    pub(super) key: Arc<RuleKey>,
    /// Until when, if a newer one came.
    pub(super) until: Option<Duration>,
}

pub(super) struct ChannelState {
    pub(super) channel: Channel,
    /// The newest first.
    pub(super) keys: Vec<Held>,
}

impl ChannelState {
    pub(super) fn key(&self, generation: Generation) -> Option<&Arc<RuleKey>> {
        let held = self.keys.iter().find(|held| held.key.generation == generation);
        held.map(|held| &held.key)
    }

    pub(super) fn newest(&self) -> Option<Generation> {
        self.keys.first().map(|held| held.key.generation)
    }
}

pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) own: Identity,
    /// What handshakes need of it.
    pub(super) statics: Arc<Statics>,
    pub(super) own_keys: ReceiverKeys,
    pub(super) workers: u8,
    /// What the uplink takes; 0 as long as nobody has said.
    pub(super) uplink_mtu: u16,
    /// By their numbers; one that is nobody's any more has none.
    pub(super) peers: Vec<Option<PeerState>>,
    /// By their numbers, in the same way.
    pub(super) channels: Vec<Option<ChannelState>>,
    pub(super) random: Box<dyn Random>,
    pub(super) outputs: VecDeque<Output>,
    /// Whose the indices in messages are.
    pub(super) indices: HashMap<u32, Pair>,
    pub(super) dealer: Dealer,
    pub(super) sessions: u64,
    pub(super) stamp: Stamp,
    pub(super) counters: Counters,
}

impl Shared {
    /// Becomes another host to its peers.
    pub(super) fn set_identity(&mut self, identity: Identity) {
        let publics = self.peers.iter().flatten().flat_map(|peer| &peer.publics);
        self.statics = Statics::new(&identity, publics.map(|(public, _)| *public), None);
        self.own_keys = ReceiverKeys::new(identity.public());
        self.own = identity;
    }

    pub(super) fn peer(&self, peer: PeerId) -> Option<&PeerState> {
        self.peers.get(usize::from(peer.0))?.as_ref()
    }

    pub(super) fn peer_mut(&mut self, peer: PeerId) -> Option<&mut PeerState> {
        self.peers.get_mut(usize::from(peer.0))?.as_mut()
    }

    /// A peer, with what its path MTU is searched by and where probes go.
    pub(super) fn path_of(
        &mut self,
        peer: PeerId,
    ) -> (Option<&mut PeerState>, &Settings, &mut VecDeque<Output>) {
        let peer = self.peers.get_mut(usize::from(peer.0));
        (peer.and_then(Option::as_mut), &self.settings, &mut self.outputs)
    }

    pub(super) fn channel(&self, channel: ChannelId) -> Option<&ChannelState> {
        self.channels.get(usize::from(channel.0))?.as_ref()
    }

    /// An index that no other attempt or session has.
    pub(super) fn take_index(&mut self, pair: Pair) -> u32 {
        loop {
            let index = self.random.number();
            if let std::collections::hash_map::Entry::Vacant(place) = self.indices.entry(index) {
                place.insert(pair);
                return index;
            }
        }
    }

    pub(super) fn send(&mut self, peer: PeerId, datagram: Datagram) {
        if let Some(to) = self.peer(peer).map(|peer| peer.address) {
            self.outputs.push_back(Output::Send { to, datagram });
        }
    }

    /// Tells how long packets to a peer may be, if that has changed.
    pub(super) fn tell_path(&mut self, id: PeerId) {
        let Some(peer) = self.peer_mut(id) else { return };
        let (news, is_narrow) = (peer.path.news(), peer.path.is_narrow_now());
        if let Some(mtu) = news {
            self.outputs.push_back(Output::PathMtu { peer: id, mtu });
        }
        if is_narrow {
            self.event(Event::NarrowPath { peer: id });
        }
    }

    pub(super) fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }
}
