//! Drives the engine of sessions on the control thread: datagrams, time, keys and what workers say go in; datagrams, SAs
//! and what happened come out.
//!
//! Never blocks, and takes a bounded number of datagrams a turn: what a flood brings beyond that the kernel drops.

pub mod config;
mod installer;
mod keys;
pub mod manager;
mod path_mtu;
pub mod reload;
pub mod scope;
mod unusable;
pub mod usage;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guestseal_rules::classify::Protection;
use guestseal_rules::model::{HostIndex, Policy};
use serde::Serialize;

use crate::aead::engine::{Engine as Aead, KeyLength};
use crate::keys::handshake::engine::{Engine, Setup, SetupError};
use crate::keys::handshake::output::{
    Counters, EndReason, Event, InboundSaOrder, OutboundSaOrder, Output, Pair, SessionId, Usage,
};
use crate::keys::handshake::random::System;
use crate::keys::handshake::shared::Now;
use crate::keys::identity::{Identity, IdentityError, PublicKey};
use crate::keys::locked::{Census, census};
use crate::keys::store::{Generation, KeyStore, StoreError};
use crate::path::batch::WorkerId;
use crate::path::notices::Notice;
use crate::path::tables::PathMtu;
use crate::sa::inbound::InboundSa;
use crate::sa::outbound::{Mode, OutboundSa};
use crate::sa::replay::ReplayWindow;
use crate::sa::selector::Selector;
use crate::sa::sequence::Sequence;
use crate::sa::slots::Owned;
use crate::sa::spi::Spi;
use crate::sa::table::SaTable;
use crate::wire::{esp, ip4, ip6, udp};
use crate::worker::run::monotonic;

use super::assemble::DataPlane;
use super::config::HostConfig;
use super::journal::Deed;
use super::supervise::chain;
use installer::Installer;
use keys::FollowedKeys;
use manager::ManagerStatus;
use scope::{Carried, KnownPeer, Scope, ScopeError};
use unusable::Doubtful;
use usage::{KeyBook, KeyUsage};

/// Datagrams that are taken in a second, and at once: what a flood brings beyond that the kernel drops, and it costs the
/// workers' CPUs no more.
const RATE: f64 = 2500.0;
const BURST: f64 = 512.0;
/// How long a flood waits when its allowance is used up.
const PAUSE: Duration = Duration::from_millis(5);
/// How often workers are asked what they did.
const SURVEY: Duration = Duration::from_millis(500);
/// Numbers of a replay window: an SA has one sender, so that only the network reorders.
const WINDOW: u32 = 1024;

/// Why a host can make no sessions.
#[derive(Debug, thiserror::Error)]
pub enum SessionsError {
    /// Its identity.
    #[error("sessions: no identity: make one with guestseal key generate FILE")]
    Identity(#[from] IdentityError),
    /// Its keys.
    #[error("sessions: no keys")]
    Keys(#[from] StoreError),
    /// No thread to follow a key manager.
    #[error("sessions: the key manager cannot be followed")]
    Manager(#[source] io::Error),
    /// Peers and channels.
    #[error("sessions")]
    Scope(#[from] ScopeError),
    /// The engine.
    #[error("sessions")]
    Setup(#[from] SetupError),
    /// More workers than SPIs can tell apart.
    #[error("sessions: {0} workers: expected at most 64")]
    Workers(usize),
    /// Handshakes cannot be received.
    #[error(
        "sessions: UDP port {address} cannot be had: the address must be one of this host's, and the port free"
    )]
    Socket {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The AEAD engine does not take a key.
    #[error("sessions")]
    Key(#[from] KeyLength),
}

/// The sessions of one host.
pub struct Sessions {
    policy: Arc<Policy>,
    own: PublicKey,
    scope: Scope,
    engine: Engine,
    aead: Arc<dyn Aead>,
    sockets: Vec<UdpSocket>,
    /// Datagrams that may be taken, and when that was.
    allowance: (f64, Duration),
    udp_encapsulation: bool,
    keys: FollowedKeys,
    installer: Installer,
    surveyed: Duration,
    /// Packets that replay windows refused, by session.
    replayed: HashMap<SessionId, u64>,
    /// Of each session that was established the generation of its key, and how many SAs it has.
    known: HashMap<SessionId, (Generation, u64)>,
    ended: BTreeMap<EndReason, u64>,
    doubtful: Doubtful,
    book: KeyBook,
    deeds: Vec<Deed>,
    /// Secrets whose memory could not be locked, when that was said.
    unlocked: usize,
    /// Hosts with which a session was established since they were asked for.
    fresh: Vec<(HostIndex, IpAddr)>,
    /// What the engine knows of the uplink.
    uplink_mtu: usize,
    /// Path MTUs that were found since they were asked for.
    path_mtus: Vec<(HostIndex, PathMtu)>,
    /// Whether a datagram could not be sent: said once until one can.
    unsent: bool,
}

/// The two clocks.
fn clocks() -> Now {
    Now {
        monotonic: Duration::from_nanos(monotonic()),
        wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
    }
}

impl Sessions {
    /// The sessions that a host's configuration asks for, beside the manual SAs that workers own already.
    ///
    /// # Errors
    /// See [`SessionsError`].
    pub fn open(
        config: &HostConfig,
        aead: Arc<dyn Aead>,
        table: &mut SaTable,
        owned: &[Owned],
    ) -> Result<Option<Self>, SessionsError> {
        let Some(wanted) = &config.sessions else {
            return Ok(None);
        };
        let policy = Arc::clone(&config.policy);
        let scope = Scope::new(&policy, config.host)?;
        let identity = Identity::read(&wanted.identity)?;
        let own = identity.public();
        tracing::info!("sessions: this host's public key is {own}");
        let (keys, store) = FollowedKeys::open(&wanted.keys)?;
        let workers = config.workers.len();
        let mut engine = Engine::new(Setup {
            settings: wanted.settings.clone(),
            identity,
            workers: u8::try_from(workers).map_err(|_| SessionsError::Workers(workers))?,
            peers: scope
                .engine_peers(&policy, wanted.port)?
                .into_iter()
                .flatten()
                .collect(),
            channels: scope.engine_channels(&policy).into_iter().flatten().collect(),
            manual: config.sas.iter().map(|sa| sa.spi).collect(),
            random: Box::new(System),
        })?;
        engine.set_keys(&store, clocks());
        say_missing(&policy, &scope, &store);
        let mut book = KeyBook::open(&config.state_directory, wanted.key_limit);
        let held = hold(&mut book, &store, &policy);
        let mut locals: Vec<IpAddr> = scope.peers().map(|peer| peer.local).collect();
        locals.sort_unstable();
        locals.dedup();
        let sockets = locals
            .into_iter()
            .map(|local| listen(SocketAddr::new(local, wanted.port)))
            .collect::<Result<Vec<_>, _>>()?;
        table.set_session_peers(scope.peers().map(|peer| peer.host));
        Ok(Some(Self {
            policy,
            own,
            scope,
            engine,
            aead,
            sockets,
            allowance: (BURST, Duration::ZERO),
            udp_encapsulation: wanted.udp_encapsulation,
            keys,
            installer: Installer::new(table.clone(), owned),
            surveyed: Duration::ZERO,
            replayed: HashMap::new(),
            known: HashMap::new(),
            ended: BTreeMap::new(),
            doubtful: Doubtful::default(),
            book,
            deeds: held.into_iter().collect(),
            unlocked: 0,
            fresh: Vec::new(),
            uplink_mtu: 0,
            path_mtus: Vec::new(),
            unsent: false,
        }))
    }

    /// The hosts that there can be sessions with.
    pub fn peers(&self) -> impl Iterator<Item = HostIndex> + '_ {
        self.scope.peers().map(|peer| peer.host)
    }

    /// Hosts with which a session was established since the last call, and their addresses.
    pub fn fresh_peers(&mut self) -> Vec<(HostIndex, IpAddr)> {
        std::mem::take(&mut self.fresh)
    }

    /// What can be read when something has come.
    pub fn wait_on(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listens = self.allowance.0 >= 1.0;
        self.sockets.iter().filter(move |_| listens).map(AsFd::as_fd)
    }

    /// When [`Self::turn`] is to be called, whatever comes.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let pause = (self.allowance.0 < 1.0).then(|| self.allowance.1 + PAUSE);
        let doubt = self.doubtful.is_due().then_some(Duration::ZERO);
        let due = [self.engine.deadline(), self.installer.deadline(), pause, doubt];
        let due = due.into_iter().flatten().min()?;
        Some(Instant::now() + due.saturating_sub(clocks().monotonic))
    }

    /// Does everything that there is to do. `sas` becomes the table that is published.
    pub fn turn(&mut self, plane: &mut DataPlane, sas: &mut Arc<SaTable>) {
        let now = clocks();
        if self.uplink_mtu != plane.longest_packet() {
            self.uplink_mtu = plane.longest_packet();
            self.engine.set_uplink_mtu(self.uplink_mtu, now);
        }
        self.hear(plane, now);
        self.receive(now);
        self.engine.tick(now);
        self.survey(plane, now);
        loop {
            self.obey(plane);
            let ready = self.installer.settle(plane, sas, now.monotonic);
            if ready.is_empty() {
                break;
            }
            ready
                .into_iter()
                .for_each(|session| self.engine.installed(session, now));
        }
    }

    /// Whether workers have said or done something since the last turn.
    #[must_use]
    pub fn is_due(&self, plane: &DataPlane) -> bool {
        plane.has_notices() || self.installer.has_obeyed(plane)
    }

    /// The workers have stopped; a plane will come that has the same SAs.
    pub fn stopped(&mut self, notices: Vec<(WorkerId, Notice)>) {
        self.installer.stopped(notices);
    }

    /// Follows the keys; what is gone is revoked at once.
    pub fn follow_keys(&mut self) {
        if let Some(store) = self.keys.look() {
            tracing::info!("sessions: the keys have changed");
            say_missing(&self.policy, &self.scope, &store);
            self.hold(&store);
            self.engine.set_keys(&store, clocks());
        }
    }

    fn hear(&mut self, plane: &mut DataPlane, now: Now) {
        let notices: Vec<(WorkerId, Notice)> = plane.notices().collect();
        let mut surveyed = false;
        for (worker, notice) in notices {
            match notice {
                Notice::Wanted(key) => {
                    if let Some(Pair { peer, channel }) = self.scope.pair(&key) {
                        self.engine.need_session(peer, channel, now);
                    }
                }
                Notice::UnknownSpi { from, spi } => self.engine.unknown_spi(from, spi, now),
                notice => surveyed |= self.installer.hear(worker, notice),
            }
        }
        if surveyed {
            self.replayed.clear();
            for (session, (usage, replayed)) in self.installer.usage() {
                self.replayed.insert(session, replayed);
                self.engine.report(session, usage, now);
            }
        }
    }

    fn receive(&mut self, now: Now) {
        let (left, at) = self.allowance;
        let more = now.monotonic.saturating_sub(at).as_secs_f64() * RATE;
        let mut left = (left + more).min(BURST);
        let mut bytes = [0; 1 << 14];
        for socket in &self.sockets {
            while left >= 1.0 {
                // An error that the kernel remembers (ICMP unreachable) is taken by this, too.
                match socket.recv_from(&mut bytes) {
                    Ok((length, from)) => {
                        // A probe that guests' packets of its length could not follow must not be answered.
                        let headers = udp::HEADER + if from.is_ipv4() { ip4::HEADER } else { ip6::HEADER };
                        if length + headers <= self.uplink_mtu {
                            self.engine
                                .receive(bytes.get(..length).unwrap_or_default(), from, now);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => {}
                }
                left -= 1.0;
            }
        }
        self.allowance = (left, now.monotonic);
    }

    fn survey(&mut self, plane: &mut DataPlane, now: Now) {
        if now.monotonic < self.surveyed + SURVEY {
            return;
        }
        self.surveyed = now.monotonic;
        self.installer.survey(plane);
        let live: std::collections::HashSet<SessionId> =
            self.engine.sessions(now).map(|status| status.session).collect();
        for (session, usage) in self.installer.forget(|session| !live.contains(&session)) {
            self.replayed.remove(&session);
            if let Some((generation, sas)) = self.known.remove(&session) {
                let mut over = std::mem::take(&mut self.book.over);
                self.add_usage(&mut over, session.pair, generation, sas, usage);
                self.book.over = over;
            }
        }
        let mut all = self.usage(now);
        let news = self.book.mark(&mut all);
        let used_up = self
            .book
            .used_up(&all)
            .map(|(id, generation)| (id.to_owned(), generation));
        let ordered = self.keys.order(used_up.collect());
        for (key, usage) in news {
            tracing::error!(
                "key {key} is used up: {} packets, {} bytes under it on this host, with {} hosts. {}",
                usage.packets,
                usage.bytes,
                usage.hosts.len(),
                if ordered {
                    "The key manager is asked for the next generation"
                } else {
                    "Give all hosts the next generation"
                }
            );
            self.deeds.push(Deed::KeyUsedUp { key });
        }
        self.say_unlocked();
    }

    /// Does what the engine asks for.
    fn obey(&mut self, plane: &mut DataPlane) {
        while let Some(output) = self.engine.output() {
            match output {
                Output::Send { to, datagram } => self.send(to, &datagram),
                Output::Probe { to, datagram, length } => self.probe(to, &datagram, length.into()),
                Output::PathMtu { peer, mtu } => self.found_path_mtu(peer, mtu),
                Output::InstallInbound { session, sas } => match self.inbound(session, sas) {
                    Ok(sas) => self.installer.open(plane, session, sas),
                    Err(error) => tracing::error!("{}", chain(&error)),
                },
                Output::UseOutbound {
                    session,
                    sas,
                    packets,
                } => match (
                    self.scope.outbound_key(session.pair),
                    self.outbound(session, sas, packets),
                ) {
                    (Some(key), Ok(sas)) => self.installer.seal(plane, session, key, sas),
                    (_, Err(error)) => tracing::error!("{}", chain(&error)),
                    (None, _) => {}
                },
                Output::RetireInbound { session, .. } => self.installer.retire_inbound(session),
                Output::RetireOutbound { session } => self.installer.retire_outbound(session),
                Output::Event(event) => self.note(event),
            }
        }
    }

    /// The socket that leads to an address.
    fn towards(&self, to: SocketAddr) -> Option<&UdpSocket> {
        self.sockets.iter().find(|socket| {
            socket
                .local_addr()
                .is_ok_and(|local| local.is_ipv4() == to.is_ipv4())
        })
    }

    fn send(&mut self, to: SocketAddr, datagram: &[u8]) {
        let sent = self.towards(to).map(|socket| socket.send_to(datagram, to));
        match sent {
            // What is lost is sent again by the engine.
            Some(Err(error)) if !std::mem::replace(&mut self.unsent, true) => {
                tracing::warn!("sessions: nothing can be sent to {to}: {error}");
            }
            Some(Ok(_)) => self.unsent = false,
            _ => {}
        }
    }

    fn inbound(
        &self,
        session: SessionId,
        sas: Vec<InboundSaOrder>,
    ) -> Result<Vec<(WorkerId, InboundSa)>, SessionsError> {
        let Some((peer, carried)) = self.scope.meaning(session.pair) else {
            return Ok(Vec::new());
        };
        let make = |order: InboundSaOrder| {
            let sa = InboundSa {
                spi: order.spi,
                protection: carried.protection,
                mode: self.mode(peer, carried, order.spi),
                esn: true,
                key: self.aead.expand(order.key.suite(), order.key.key())?,
                salt: order.key.salt(),
                window: ReplayWindow::new(WINDOW, true),
                selector: Selector::default(),
                rule_key: carried.key,
                network: carried.network,
                peer: peer.host,
                tally: Cell::default(),
            };
            Ok((order.owner, sa))
        };
        sas.into_iter().map(make).collect()
    }

    fn outbound(
        &self,
        session: SessionId,
        sas: Vec<OutboundSaOrder>,
        packets: u64,
    ) -> Result<Vec<OutboundSa>, SessionsError> {
        let Some((peer, carried)) = self.scope.meaning(session.pair) else {
            return Ok(Vec::new());
        };
        let make = |order: OutboundSaOrder| {
            Ok(OutboundSa {
                spi: order.spi,
                protection: carried.protection,
                mode: self.mode(peer, carried, order.spi),
                esn: true,
                key: self.aead.expand(order.key.suite(), order.key.key())?,
                sequence: Sequence::fresh(true, order.key.salt()).at_most(packets),
                tally: Cell::default(),
            })
        };
        sas.into_iter().map(make).collect()
    }

    /// What ESP wraps in an SA. On a flat network it is the whole packet: many guests share the SA, and in transport mode
    /// the wire could change whose packet it is.
    fn mode(&self, peer: &KnownPeer, carried: Carried, spi: Spi) -> Mode {
        let (local, remote) = (peer.local, peer.remote);
        if self.policy.is_flat(carried.network) {
            Mode::Tunnel { local, remote }
        } else {
            let udp_source = self.udp_encapsulation.then(|| esp::udp_source(spi.get()));
            Mode::Overlay {
                local,
                remote,
                udp_source,
            }
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Established {
                session,
                generation,
                sas,
            } => {
                self.known.insert(session, (generation, sas));
                let peer = self.scope.meaning(session.pair).map(|(peer, _)| peer);
                self.fresh.extend(peer.map(|peer| (peer.host, peer.remote)));
                tracing::debug!(
                    "session {} {}: established, generation {generation}",
                    session.number,
                    self.name(session.pair)
                );
            }
            Event::Ended {
                session,
                generation,
                reason,
            } => {
                *self.ended.entry(reason).or_default() += 1;
                let name = self.name(session.pair);
                match reason {
                    EndReason::Unusable => {
                        tracing::info!("session {} {name}: ended, {}", session.number, reason.words());
                    }
                    EndReason::Revoked | EndReason::ByPeer => tracing::warn!(
                        "session {} {name}: ended, {}, generation {generation}",
                        session.number,
                        reason.words()
                    ),
                    _ => tracing::debug!("session {} {name}: ended, {}", session.number, reason.words()),
                }
            }
            Event::GaveUp { pair } => {
                tracing::warn!("session {}: nobody answers", self.name(pair));
            }
            Event::Silent { session } => {
                tracing::warn!(
                    "session {} {}: the peer is silent",
                    session.number,
                    self.name(session.pair)
                );
            }
            Event::Refused { pair, generation } => {
                tracing::info!(
                    "session {}: the peer does not know generation {generation} yet",
                    self.name(pair)
                );
            }
            Event::NarrowPath { peer } => self.say_narrow(peer),
            Event::NoKey { pair } => {
                tracing::error!("session {}: this host does not have the key", self.name(pair));
            }
        }
    }

    fn name(&self, pair: Pair) -> String {
        let Some((peer, carried)) = self.scope.meaning(pair) else {
            return String::new();
        };
        format!(
            "with {} for {} under {}",
            self.policy.hosts[peer.host.index()].name,
            self.policy.networks[carried.network.index()].name,
            self.policy.keys[carried.key.index()].id
        )
    }

    /// What was done under each generation of each key up to now.
    fn usage(&self, now: Now) -> usage::ByName {
        let mut all = self.book.over.clone();
        for live in self.engine.sessions(now) {
            if let Some((generation, sas)) = self.known.get(&live.session) {
                self.add_usage(&mut all, live.session.pair, *generation, *sas, live.usage);
            }
        }
        all
    }

    fn add_usage(&self, all: &mut usage::ByName, pair: Pair, generation: Generation, sas: u64, usage: Usage) {
        if let Some((peer, carried)) = self.scope.meaning(pair) {
            let id = &self.policy.keys[carried.key.index()].id;
            let host = &self.policy.hosts[peer.host.index()].name;
            let entry = all.entry(usage::name(id, generation)).or_default();
            entry.add(host, sas, usage);
        }
    }

    /// What is to be journalled since the last call: generations of keys that came, went, or were used up.
    pub fn deeds(&mut self) -> Vec<Deed> {
        std::mem::take(&mut self.deeds)
    }

    fn hold(&mut self, store: &KeyStore) {
        self.deeds.extend(hold(&mut self.book, store, &self.policy));
    }

    /// Says that secrets may be swapped out, if there are more of them than before.
    fn say_unlocked(&mut self) {
        let Census { locked, unlocked, .. } = census();
        if unlocked > self.unlocked {
            tracing::warn!(
                "{unlocked} of {} secrets are in memory that may be swapped out, since the system locks no more: raise the limit \
                 (LimitMEMLOCK=infinity in the unit), or encrypt swap or turn it off",
                locked + unlocked
            );
        }
        self.unlocked = unlocked;
    }

    /// What status shows.
    #[must_use]
    pub fn status(&self) -> SessionsStatus {
        let now = clocks();
        let mut keys = self.usage(now);
        self.book.clone().mark(&mut keys);
        let mut sessions: Vec<SessionLine> = self
            .engine
            .sessions(now)
            .filter_map(|status| {
                let (peer, carried) = self.scope.meaning(status.session.pair)?;
                let key = self.policy.keys[carried.key.index()].id.clone();
                Some(SessionLine {
                    number: status.session.number,
                    peer: self.policy.hosts[peer.host.index()].name.clone(),
                    network: self.policy.networks[carried.network.index()].name.clone(),
                    key,
                    generation: status.generation.0,
                    protection: match carried.protection {
                        Protection::Encrypt => "encrypt",
                        Protection::Authenticate => "authenticate",
                    },
                    current: status.current,
                    age_seconds: status.age.as_secs(),
                    sent_packets: status.usage.sent_packets,
                    sent_bytes: status.usage.sent_bytes,
                    received_packets: status.usage.received_packets,
                    received_bytes: status.usage.received_bytes,
                    replay_drops: self.replayed.get(&status.session).copied().unwrap_or(0),
                    heard_seconds: status.heard.map(|heard| heard.as_secs()),
                    next_rekey_seconds: status.next_rekey.map(|next| next.as_secs()),
                    path_mtu: status.path_mtu,
                })
            })
            .collect();
        sessions.sort_by(|one, other| {
            let order = |line: &SessionLine| {
                (
                    line.peer.clone(),
                    line.network.clone(),
                    line.key.clone(),
                    line.number,
                )
            };
            order(one).cmp(&order(other))
        });
        SessionsStatus {
            sessions,
            keys,
            key_manager: self.keys.manager(),
            secrets: census(),
            ended: self
                .ended
                .iter()
                .map(|(reason, count)| (reason.name(), *count))
                .collect(),
            handshakes: self.engine.counters(),
        }
    }
}

/// Takes note of what this host holds; gives what of it is to be journalled.
fn hold(book: &mut KeyBook, store: &KeyStore, policy: &Policy) -> Option<Deed> {
    let (came, gone) = book.hold(store, policy.keys.iter().map(|key| &*key.id));
    (!came.is_empty() || !gone.is_empty()).then_some(Deed::Keys { came, gone })
}

/// A socket that handshakes come to and go from.
fn listen(address: SocketAddr) -> Result<UdpSocket, SessionsError> {
    UdpSocket::bind(address)
        .and_then(|socket| {
            socket.set_nonblocking(true)?;
            path_mtu::leave_whole(&socket)?;
            Ok(socket)
        })
        .map_err(|source| SessionsError::Socket { address, source })
}

/// Says which keys of the rules this host does not have: it cannot seal or open under them.
fn say_missing(policy: &Policy, scope: &Scope, store: &KeyStore) {
    let mut missing: Vec<&str> = scope
        .channels()
        .map(|carried| &*policy.keys[carried.key.index()].id)
        .filter(|id| store.generations(id).next().is_none())
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if !missing.is_empty() {
        tracing::warn!(
            "sessions: this host has no generation of {}: what these keys seal is dropped here",
            missing.join(", ")
        );
    }
}

/// Sessions, as status shows them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SessionsStatus {
    /// Those there are, old ones that still open among them.
    pub sessions: Vec<SessionLine>,
    /// What was done under each key and generation, `ID.GENERATION`.
    pub keys: BTreeMap<String, KeyUsage>,
    /// How it is with the key manager, if keys come from one.
    pub key_manager: Option<ManagerStatus>,
    /// Secrets in memory.
    pub secrets: Census,
    /// Sessions that are over, by reason.
    pub ended: BTreeMap<&'static str, u64>,
    /// What came of datagrams.
    pub handshakes: Counters,
}

/// One session, as status shows it.
#[derive(Clone, Debug, Serialize)]
pub struct SessionLine {
    /// Its number in this process.
    pub number: u64,
    /// The other host.
    pub peer: String,
    /// The logical network.
    pub network: String,
    /// The rule key.
    pub key: String,
    /// The key's generation.
    pub generation: u32,
    /// `encrypt` or `authenticate`.
    pub protection: &'static str,
    /// Whether this host seals with it.
    pub current: bool,
    /// How old it is.
    pub age_seconds: u64,
    /// Packets sealed.
    pub sent_packets: u64,
    /// Bytes sealed.
    pub sent_bytes: u64,
    /// Packets opened.
    pub received_packets: u64,
    /// Bytes opened.
    pub received_bytes: u64,
    /// Packets that the replay windows refused.
    pub replay_drops: u64,
    /// Since the peer was last heard.
    pub heard_seconds: Option<u64>,
    /// Until it is replaced, if it is used till then.
    pub next_rekey_seconds: Option<u64>,
    /// How long a packet to the peer may be, with everything around what is sealed.
    pub path_mtu: Option<u16>,
}
