//! The engine of sessions: datagrams, time, and what control wants go in; datagrams, SAs and events come out.
//!
//! No socket, no clock, no thread: time and random bytes are arguments. Memory is bounded by what the configuration names
//! (peers times channels, six sessions each); an initiator that is not known leaves nothing behind but a cookie that this
//! host can make again.
//!
//! What a datagram costs before it is believed, in this order: its size, the sender's address (a peer's), a keyed hash
//! (mac1), the load (mac2 beyond it), a look-up (the channel), and only then X25519.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::bucket::Bucket;
use crate::keys::derive::Channel;
use crate::keys::identity::{Identity, PublicKey};
use crate::keys::store::{Generation, KeyStore};
use crate::sa::spi::Spi;

use super::directory::Directory;
use super::mac::{CookieJar, ReceiverKeys};
use super::message::{
    CookieReply, Head, Initiation, KeyUnknown, MAC, Message, Response, SpiUnknown, before_last_mac, datagram,
};
use super::noise;
use super::output::{ChannelId, Counters, Output, Pair, PeerId, SessionId, SessionStatus, Usage};
use super::pair::{PairState, before_mac1};
use super::random::Random;
use super::settings::Settings;
use super::shared::{ChannelState, Held, Now, Peer, PeerState, Shared};
use super::spis::{Dealer, MAX_WORKERS};
use super::stamp::Stamp;
use super::statics::Statics;

/// What an engine is made of.
pub struct Setup {
    /// Times and limits.
    pub settings: Settings,
    /// Who this host is.
    pub identity: Identity,
    /// Its workers: 1 to [`MAX_WORKERS`].
    pub workers: u8,
    /// The other hosts.
    pub peers: Vec<Peer>,
    /// What sessions can be for.
    pub channels: Vec<Channel>,
    /// The SPIs of manual SAs, which are not dealt.
    pub manual: Vec<Spi>,
    /// Where random bytes come from.
    pub random: Box<dyn Random>,
}

/// Why there is no engine.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// Too many or no workers.
    #[error("{0} workers: sessions need 1 to {MAX_WORKERS}")]
    Workers(u8),
    /// Two peers have one address.
    #[error("two peers have the address {0}: a peer is known by its address")]
    SharedAddress(IpAddr),
    /// Two peers have one public key, or a peer has this host's.
    #[error(
        "the public key {0} belongs to two hosts: make an identity for each, with guestseal key generate"
    )]
    SharedKey(PublicKey),
    /// A peer has no public key.
    #[error("the peer at {0} has no public key: give it the one that guestseal key public prints there")]
    NoKey(SocketAddr),
}

/// The engine of one host.
pub struct Engine {
    shared: Shared,
    pairs: HashMap<Pair, PairState>,
    timers: BTreeSet<(Duration, Pair)>,
    due: HashMap<Pair, Duration>,
    by_address: HashMap<IpAddr, PeerId>,
    by_public: HashMap<PublicKey, PeerId>,
    by_tag: HashMap<[u8; 8], (ChannelId, Generation)>,
    jar: CookieJar,
    load: Bucket,
    answers: Bucket,
}

impl Engine {
    /// An engine without keys: `set_keys` is next.
    ///
    /// # Errors
    /// See [`SetupError`].
    pub fn new(setup: Setup) -> Result<Self, SetupError> {
        if !(1..=MAX_WORKERS).contains(&setup.workers) {
            return Err(SetupError::Workers(setup.workers));
        }
        let peers = setup.peers.into_iter().map(Some).collect();
        let mut directory = Directory::new(peers, setup.identity.public())?;
        let settings = setup.settings;
        let channel = |channel| {
            let keys = Vec::new();
            Some(ChannelState { channel, keys })
        };
        let peer = |peer: Option<Peer>| peer.map(|peer| PeerState::new(&peer, &settings));
        Ok(Self {
            shared: Shared {
                own_keys: ReceiverKeys::new(setup.identity.public()),
                statics: Statics::new(&setup.identity, directory.publics(), None),
                own: setup.identity,
                workers: setup.workers,
                uplink_mtu: 0,
                peers: std::mem::take(&mut directory.peers)
                    .into_iter()
                    .map(peer)
                    .collect(),
                channels: setup.channels.into_iter().map(channel).collect(),
                random: setup.random,
                outputs: VecDeque::new(),
                indices: HashMap::new(),
                dealer: Dealer::new(&setup.manual),
                sessions: 0,
                stamp: Stamp::default(),
                counters: Counters::default(),
                settings: settings.clone(),
            },
            pairs: HashMap::new(),
            timers: BTreeSet::new(),
            due: HashMap::new(),
            by_address: directory.by_address,
            by_public: directory.by_public,
            by_tag: HashMap::new(),
            jar: CookieJar::new(),
            load: Bucket::new(settings.load, settings.load.div_ceil(4)),
            answers: Bucket::new(settings.load, settings.load.div_ceil(4)),
        })
    }

    // ---- In.

    /// The keys that this host holds now. What is gone is revoked at once; of what is left the newest generation is used,
    /// and an older one for `grace` after a newer one came.
    pub fn set_keys(&mut self, store: &KeyStore, now: Now) {
        let deadline = now.monotonic + self.shared.settings.grace;
        for state in self.shared.channels.iter_mut().flatten() {
            let before: BTreeMap<Generation, Option<Duration>> = state
                .keys
                .iter()
                .map(|held| (held.key.generation, held.until))
                .collect();
            let until = |generation| before.get(&generation).copied().flatten().unwrap_or(deadline);
            state.keys = held(&state.channel, store, until);
        }
        self.keys_changed(now);
    }

    /// Whom sessions are with and what they are for from now on. Numbers keep their meanings: what is no more leaves its own
    /// to nobody, what is new comes behind the others. Sessions with a peer that is no more or elsewhere end, and so do
    /// those for a channel that is no more and those that a peer began with a public key that is not its own any more.
    pub fn set_scope(
        &mut self,
        directory: Directory,
        channels: Vec<Option<Channel>>,
        store: &KeyStore,
        now: Now,
    ) {
        let shared = &mut self.shared;
        shared.statics = Statics::new(&shared.own, directory.publics(), Some(&shared.statics));
        (self.by_address, self.by_public) = (directory.by_address, directory.by_public);
        let mut gone: BTreeSet<PeerId> = BTreeSet::new();
        let mut before = std::mem::take(&mut shared.peers).into_iter();
        for (number, peer) in (0..).map(PeerId).zip(directory.peers) {
            let (before, settings) = (before.next().flatten(), &shared.settings);
            shared.peers.push(match (before, peer) {
                (Some(before), Some(peer)) if before.address == peer.address => Some(before.with_keys(&peer)),
                (before, peer) => {
                    gone.extend(before.map(|_| number));
                    peer.map(|peer| {
                        let mut state = PeerState::new(&peer, settings);
                        state.path.set_most(shared.uplink_mtu, now.monotonic);
                        state
                    })
                }
            });
        }
        let deadline = now.monotonic + shared.settings.grace;
        let mut before = std::mem::take(&mut shared.channels).into_iter();
        for channel in channels {
            let before = before.next().flatten();
            shared.channels.push(channel.map(|channel| match before {
                Some(before) if before.channel == channel => before,
                _ => ChannelState {
                    keys: held(&channel, store, |_| deadline),
                    channel,
                },
            }));
        }
        for pair in self.all_pairs() {
            if gone.contains(&pair.peer) {
                self.drop_pair(pair);
            } else {
                self.with_known(pair, |state, shared| state.peer_changed(shared, now));
            }
        }
        self.keys_changed(now);
    }

    /// This host has a new static key. Sessions go on; the next handshakes use it.
    pub fn set_identity(&mut self, identity: Identity, now: Now) {
        self.shared.set_identity(identity);
        self.fill_tags();
        for pair in self.all_pairs() {
            self.with_pair(pair, |state, shared| state.identity_changed(shared, now));
        }
    }

    /// The uplink takes IP packets of so many bytes.
    pub fn set_uplink_mtu(&mut self, mtu: usize, now: Now) {
        self.shared.uplink_mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        for peer in self.shared.peers.iter_mut().flatten() {
            peer.path.set_most(self.shared.uplink_mtu, now.monotonic);
        }
        for pair in self.all_pairs() {
            self.with_pair(pair, |state, shared| state.tend(shared, now));
        }
    }

    /// A packet waits for a session. Ask again as long as packets do: what nobody asks for is given up.
    pub fn need_session(&mut self, peer: PeerId, channel: ChannelId, now: Now) {
        if self.shared.peer(peer).is_some() && self.shared.channel(channel).is_some() {
            self.with_pair(Pair { peer, channel }, |state, shared| state.need(shared, now));
        }
    }

    /// No guests may use the sessions of a pair any more: they end at once, and the peer is told. A packet that needs one begins
    /// anew.
    pub fn end_unusable(&mut self, pair: Pair, now: Now) {
        self.with_known(pair, |state, shared| state.unusable(shared, now));
    }

    /// The SAs of an `InstallInbound` are in place.
    pub fn installed(&mut self, session: SessionId, now: Now) {
        self.with_known(session.pair, |state, shared| {
            state.installed(shared, session, now)
        });
    }

    /// What workers did under a session up to now.
    pub fn report(&mut self, session: SessionId, usage: Usage, now: Now) {
        self.with_known(session.pair, |state, shared| {
            state.report(shared, session, usage, now);
        });
    }

    /// A sealed packet came from `from` under an SPI that no SA has: its sender may not know that this host restarted.
    pub fn unknown_spi(&mut self, from: IpAddr, spi: u32, now: Now) {
        let Some(id) = self.by_address.get(&from).copied() else {
            return;
        };
        let Some(peer) = self.shared.peer_mut(id) else {
            return;
        };
        if peer.hints.take(now.monotonic) {
            let mut message = SpiUnknown {
                head: Head::SPI_UNKNOWN,
                spi: spi.into(),
                mac1: [0; MAC],
            };
            if let Some((_, keys)) = peer.publics.get(peer.preferred) {
                message.mac1 = keys.mac1(before_last_mac(&message));
            }
            self.shared.send(id, datagram(&message));
        }
    }

    /// A datagram came.
    pub fn receive(&mut self, bytes: &[u8], from: SocketAddr, now: Now) {
        let peer = self.by_address.get(&from.ip()).copied();
        let peer = peer.filter(|peer| self.shared.peer(*peer).is_some_and(|peer| peer.address == from));
        let (Some(peer), Some(message)) = (peer, Message::parse(bytes)) else {
            self.shared.counters.stray += 1;
            return;
        };
        match message {
            Message::Initiation(message) => self.initiation(message, peer, from, now),
            Message::Response(message) => self.response(message, peer, now),
            Message::CookieReply(message) => {
                let index = message.receiver.get();
                self.with_indexed(index, peer, |state, shared| {
                    state.cookie(shared, index, &message.nonce, &message.sealed, now);
                });
            }
            Message::Inside(message) | Message::Probe(message) => {
                let known = self.with_indexed(message.receiver.get(), peer, |state, shared| {
                    state.inside(shared, message, bytes.len(), now);
                });
                self.shared.counters.bad_inside += u64::from(!known);
            }
            Message::KeyUnknown(message) => {
                if self.is_for_us(before_last_mac(message), &message.mac1) {
                    self.with_indexed(message.receiver.get(), peer, |state, shared| {
                        state.key_unknown(shared, message, now);
                    });
                }
            }
            Message::SpiUnknown(message) => {
                if self.is_for_us(before_last_mac(message), &message.mac1) {
                    self.spi_unknown(message.spi.get(), peer, now);
                }
            }
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Now) {
        let over = |held: &Held| held.until.is_some_and(|until| now.monotonic >= until);
        let channels = &mut self.shared.channels;
        if channels.iter().flatten().any(|state| state.keys.iter().any(over)) {
            channels
                .iter_mut()
                .flatten()
                .for_each(|state| state.keys.retain(|held| !over(held)));
            self.keys_changed(now);
        }
        while let Some((at, pair)) = self.timers.first().copied() {
            if at > now.monotonic {
                break;
            }
            self.with_known(pair, |state, shared| state.tend(shared, now));
            if self.due.get(&pair).is_some_and(|due| *due <= now.monotonic) {
                // What is due after it was done would be due forever: look again at the next tick.
                break;
            }
        }
    }

    // ---- Out.

    /// The next thing to do. Take all of them after each call that goes in.
    pub fn output(&mut self) -> Option<Output> {
        self.shared.outputs.pop_front()
    }

    /// When `tick` is to be called next.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let grace = self
            .shared
            .channels
            .iter()
            .flatten()
            .flat_map(|state| &state.keys);
        let grace = grace.filter_map(|held| held.until).min();
        self.timers
            .first()
            .map(|(at, _)| *at)
            .into_iter()
            .chain(grace)
            .min()
    }

    /// The sessions there are.
    pub fn sessions(&self, now: Now) -> impl Iterator<Item = SessionStatus> {
        self.pairs
            .values()
            .flat_map(move |state| state.status(&self.shared, now.monotonic))
    }

    /// The pairs that have sessions, or try for one.
    pub fn live_pairs(&self) -> impl Iterator<Item = Pair> {
        let live = self.pairs.iter().filter(|(_, state)| state.is_live());
        live.map(|(pair, _)| *pair)
    }

    /// The generations of a channel's key that are accepted, the newest first, and until when.
    pub fn accepted(&self, channel: ChannelId) -> impl Iterator<Item = (Generation, Option<Duration>)> {
        let state = self.shared.channel(channel).into_iter();
        state
            .flat_map(|state| &state.keys)
            .map(|held| (held.key.generation, held.until))
    }

    /// What came of datagrams.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.counters
    }

    /// Everything that is held for attempts and sessions, and the indices, SPI blocks and timers that belong to them: a
    /// test sees by it that nothing is left behind.
    #[must_use]
    pub fn held(&self) -> Occupancy {
        Occupancy {
            pairs: self.pairs.len(),
            states: self.pairs.values().map(PairState::count).sum(),
            indices: self.shared.indices.len(),
            blocks: self.shared.dealer.count(),
            timers: self.timers.len().max(self.due.len()),
        }
    }

    // ---- Within.

    fn initiation(&mut self, message: &Initiation, peer: PeerId, from: SocketAddr, now: Now) {
        if !self.is_for_us(before_mac1(message), &message.mac1) {
            return;
        }
        if !self.load.take(now.monotonic) {
            let bytes = before_last_mac(message);
            let random = &mut *self.shared.random;
            if !self
                .jar
                .is_mac2(bytes, &message.mac2, from, now.monotonic, random)
            {
                let (nonce, sealed) =
                    self.jar
                        .seal(&self.shared.own_keys, &message.mac1, from, now.monotonic, random);
                self.shared.counters.cookies += 1;
                let reply = CookieReply {
                    head: Head::COOKIE,
                    receiver: message.sender,
                    nonce,
                    sealed,
                };
                self.shared.send(peer, datagram(&reply));
                return;
            }
            let allowed = self
                .shared
                .peer_mut(peer)
                .is_some_and(|peer| peer.load.take(now.monotonic));
            if !allowed {
                self.shared.counters.overload += 1;
                return;
            }
        }
        let known = self
            .by_tag
            .get(&message.tag)
            .copied()
            .and_then(|(channel, generation)| {
                let state = self.shared.channel(channel)?;
                Some((channel, generation, state.key(generation)?.clone()))
            });
        let Some((channel, generation, key)) = known else {
            self.shared.counters.unknown_key += 1;
            self.refuse(message, peer, now);
            return;
        };
        let asked = self
            .shared
            .channel(channel)
            .and_then(|state| noise::read(&self.shared.statics, &state.channel, &key, &message.noise));
        match asked {
            // Who it is must be who lives there.
            Some(asked) if self.by_public.get(&asked.from) == Some(&peer) => {
                let sender = message.sender.get();
                self.with_pair(Pair { peer, channel }, |state, shared| {
                    state.asked(shared, asked, sender, generation, now);
                });
            }
            _ => self.shared.counters.bad_handshake += 1,
        }
    }

    fn refuse(&mut self, message: &Initiation, id: PeerId, now: Now) {
        let Some(peer) = self.shared.peer_mut(id) else {
            return;
        };
        if peer.hints.take(now.monotonic) {
            let mut reply = KeyUnknown {
                head: Head::KEY_UNKNOWN,
                receiver: message.sender,
                tag: message.tag,
                mac1: [0; MAC],
            };
            if let Some((_, keys)) = peer.publics.get(peer.preferred) {
                reply.mac1 = keys.mac1(before_last_mac(&reply));
            }
            self.shared.send(id, datagram(&reply));
        }
    }

    fn response(&mut self, message: &Response, peer: PeerId, now: Now) {
        let index = message.receiver.get();
        let known = self
            .shared
            .indices
            .get(&index)
            .is_some_and(|pair| pair.peer == peer);
        if !known || !self.is_for_us(before_last_mac(message), &message.mac1) {
            self.shared.counters.bad_handshake += u64::from(!known);
            return;
        }
        // Who sees an initiation can forge answers to it; they cost no more than this a second.
        if self.answers.take(now.monotonic) {
            self.with_indexed(index, peer, |state, shared| state.answered(shared, message, now));
        }
    }

    fn spi_unknown(&mut self, spi: u32, peer: PeerId, now: Now) {
        for channel in (0..self.shared.channels.len() as u16).map(ChannelId) {
            let mut found = false;
            self.with_known(Pair { peer, channel }, |state, shared| {
                found = state.spi_unknown(shared, spi, now);
            });
            if found {
                return;
            }
        }
    }

    fn is_for_us(&mut self, bytes: &[u8], mac1: &[u8; MAC]) -> bool {
        let right = self.shared.own_keys.is_mac1(bytes, mac1);
        self.shared.counters.bad_mac += u64::from(!right);
        right
    }

    fn keys_changed(&mut self, now: Now) {
        self.fill_tags();
        for pair in self.all_pairs() {
            self.with_known(pair, |state, shared| state.keys_changed(shared, now));
        }
    }

    fn fill_tags(&mut self) {
        self.by_tag.clear();
        for (number, state) in (0..).zip(&self.shared.channels) {
            let Some(state) = state else { continue };
            for held in &state.keys {
                let generation = held.key.generation;
                let tag = self.shared.own_keys.tag(&state.channel, generation);
                self.by_tag.insert(tag, (ChannelId(number), generation));
            }
        }
    }

    fn all_pairs(&self) -> Vec<Pair> {
        let mut pairs: Vec<Pair> = self.pairs.keys().copied().collect();
        pairs.sort_unstable();
        pairs
    }

    /// Ends everything with a peer that is not there any more, or for a channel that is none.
    fn drop_pair(&mut self, pair: Pair) {
        if let Some(mut state) = self.pairs.remove(&pair) {
            state.end(&mut self.shared);
        }
        if let Some(due) = self.due.remove(&pair) {
            self.timers.remove(&(due, pair));
        }
    }

    /// Works on the pair that an index of ours belongs to, if it is one of `peer`.
    fn with_indexed(
        &mut self,
        index: u32,
        peer: PeerId,
        work: impl FnOnce(&mut PairState, &mut Shared),
    ) -> bool {
        let pair = self.shared.indices.get(&index).copied();
        let Some(pair) = pair.filter(|pair| pair.peer == peer) else {
            return false;
        };
        self.with_known(pair, work);
        true
    }

    fn with_known(&mut self, pair: Pair, work: impl FnOnce(&mut PairState, &mut Shared)) {
        if self.pairs.contains_key(&pair) {
            self.with_pair(pair, work);
        }
    }

    /// Works on a pair, and sets its timer anew.
    fn with_pair(&mut self, pair: Pair, work: impl FnOnce(&mut PairState, &mut Shared)) {
        let newest = self.shared.channel(pair.channel).and_then(ChannelState::newest);
        let state = self
            .pairs
            .entry(pair)
            .or_insert_with(|| PairState::new(pair, newest));
        work(state, &mut self.shared);
        if state.count() == 0 && self.shared.channel(pair.channel).is_none() {
            return self.drop_pair(pair);
        }
        let due = state.deadline(&self.shared);
        let before = match due {
            Some(due) => self.due.insert(pair, due),
            None => self.due.remove(&pair),
        };
        if let Some(before) = before {
            self.timers.remove(&(before, pair));
        }
        if let Some(due) = due {
            self.timers.insert((due, pair));
        }
    }
}

/// The generations of a channel's key that a store has; all but the newest for a time.
fn held(channel: &Channel, store: &KeyStore, until: impl Fn(Generation) -> Duration) -> Vec<Held> {
    let mut generations = store.generations(&channel.key).peekable();
    let newest = generations.peek().map(|key| key.generation);
    generations
        .map(|key| Held {
            key: Arc::clone(key),
            until: (Some(key.generation) != newest).then(|| until(key.generation)),
        })
        .collect()
}

/// What an engine holds.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Pairs of peer and channel that ever had something to say.
    pub pairs: usize,
    /// Attempts and sessions.
    pub states: usize,
    /// Indices in use.
    pub indices: usize,
    /// SPI blocks in use.
    pub blocks: usize,
    /// Timers.
    pub timers: usize,
}

#[cfg(test)]
mod tests;
