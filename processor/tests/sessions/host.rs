//! A host of the model: the real engine, and workers that are a few maps.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use guestseal::keys::derive::Channel;
use guestseal::keys::handshake::engine::{Engine, Setup};
use guestseal::keys::handshake::output::{
    ChannelId, InboundSaOrder, OutboundSaOrder, Output, Pair, PeerId, SessionId, Usage,
};
use guestseal::keys::handshake::settings::Settings;
use guestseal::keys::handshake::shared::{Now, Peer};
use guestseal::keys::identity::Identity;
use guestseal::keys::secret::Secret;
use guestseal::keys::store::{Generation, KeyStore, RuleKey};
use guestseal::sa::replay::ReplayWindow;
use guestseal_rules::classify::Protection;
use guestseal_rules::model::Suite;

use super::seed::Seed;

/// A guest's packet.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) id: u64,
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) channel: usize,
}

/// A sealed packet, as the model has it: it opens where the SA has the same key.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub(crate) spi: u32,
    pub(crate) sequence: u64,
    key: Vec<u8>,
    packet: Packet,
}

struct OpensWith {
    session: SessionId,
    key: Vec<u8>,
    window: ReplayWindow,
}

struct SealsWith {
    session: SessionId,
    lanes: Vec<Lane>,
}

struct Lane {
    spi: u32,
    key: Vec<u8>,
    next: u64,
}

/// What control tells the workers, in order.
pub(crate) enum Command {
    Install(SessionId, Vec<InboundSaOrder>),
    Use(SessionId, Vec<OutboundSaOrder>, u64),
    RetireInbound(Vec<u32>),
    RetireOutbound(SessionId),
}

/// What a host does that the world must see.
pub(crate) enum Act {
    Datagram(SocketAddr, Vec<u8>),
    Probe(SocketAddr, Vec<u8>),
    Sealed(usize, Sealed),
    /// A key that was never sealed with before, says the engine.
    NewKey(Vec<u8>),
    /// Too many packets waited.
    Dropped,
}

/// Packets of a pair that wait for a session.
const WAITING: usize = 64;

pub(crate) struct Host {
    pub(crate) number: usize,
    pub(crate) engine: Engine,
    pub(crate) store: KeyStore,
    /// How far the wall clock is from true time.
    pub(crate) skew: i64,
    workers: u8,
    inbound: HashMap<u32, OpensWith>,
    outbound: HashMap<Pair, SealsWith>,
    waiting: HashMap<Pair, VecDeque<Packet>>,
    usage: HashMap<SessionId, Usage>,
    commands: VecDeque<(Duration, Command)>,
    limit: u64,
    /// What the data path would use, by peer.
    path_mtus: HashMap<PeerId, u16>,
}

/// What every uplink takes.
pub(crate) const UPLINK_MTU: u16 = 1500;

pub(crate) fn address(number: usize) -> SocketAddr {
    format!("192.0.2.{}:4500", number + 1).parse().unwrap()
}

pub(crate) fn identity(number: usize) -> Identity {
    Identity::new(Secret::new(&[number as u8 + 1; 32]).unwrap())
}

pub(crate) fn rule_key(channel: usize, generation: u32) -> std::sync::Arc<RuleKey> {
    let mut bytes = [channel as u8 + 0x80; 32];
    bytes[..4].copy_from_slice(&generation.to_be_bytes());
    RuleKey::new(
        format!("key-{channel}"),
        Generation(generation),
        Secret::new(&bytes).unwrap(),
    )
}

/// The hosts in the order in which this one lists them: all but itself.
fn peer_of(own: usize, other: usize) -> PeerId {
    PeerId(if other > own { other - 1 } else { other } as u16)
}

impl Host {
    pub(crate) fn new(
        number: usize,
        (hosts, channels, workers): (usize, usize, u8),
        settings: &Settings,
        random: Seed,
    ) -> Self {
        let peers = (0..hosts).filter(|other| *other != number).map(|other| Peer {
            address: address(other),
            public_keys: vec![identity(other).public()],
        });
        let channels = (0..channels).map(|channel| Channel {
            network: format!("network-{channel}"),
            key: format!("key-{channel}"),
            protection: Protection::Encrypt,
            suite: Suite::Aes256Gcm,
        });
        let mut engine = Engine::new(Setup {
            settings: settings.clone(),
            identity: identity(number),
            workers,
            peers: peers.collect(),
            channels: channels.collect(),
            manual: Vec::new(),
            random: Box::new(random),
        })
        .unwrap();
        let start = Now {
            monotonic: Duration::ZERO,
            wall: Duration::ZERO,
        };
        engine.set_uplink_mtu(UPLINK_MTU.into(), start);
        Self {
            number,
            engine,
            store: KeyStore::default(),
            skew: 0,
            workers,
            inbound: HashMap::new(),
            outbound: HashMap::new(),
            waiting: HashMap::new(),
            usage: HashMap::new(),
            commands: VecDeque::new(),
            limit: settings.reject_packets,
            path_mtus: HashMap::new(),
        }
    }

    pub(crate) fn now(&self, at: Duration) -> Now {
        let wall = 1_700_000_000 + at.as_secs() as i64 + self.skew;
        Now {
            monotonic: at,
            wall: Duration::new(wall as u64, at.subsec_nanos()),
        }
    }

    pub(crate) fn pair(&self, to: usize, channel: usize) -> Pair {
        Pair {
            peer: peer_of(self.number, to),
            channel: ChannelId(channel as u16),
        }
    }

    pub(crate) fn seals(&self, to: usize, channel: usize) -> bool {
        self.outbound.contains_key(&self.pair(to, channel))
    }

    /// A worker has a guest's packet.
    pub(crate) fn send(&mut self, packet: Packet, at: Duration, seed: &mut Seed) -> Vec<Act> {
        let pair = self.pair(packet.to, packet.channel);
        match self.seal(packet, seed) {
            Some(sealed) => vec![Act::Sealed(packet.to, sealed)],
            None => {
                let queue = self.waiting.entry(pair).or_default();
                let dropped = (queue.len() >= WAITING).then(|| queue.pop_front()).flatten();
                queue.push_back(packet);
                let now = self.now(at);
                self.engine.need_session(pair.peer, pair.channel, now);
                dropped.map(|_| Act::Dropped).into_iter().collect()
            }
        }
    }

    fn seal(&mut self, packet: Packet, seed: &mut Seed) -> Option<Sealed> {
        let pair = self.pair(packet.to, packet.channel);
        let sa = self.outbound.get_mut(&pair)?;
        let lane = seed.below(sa.lanes.len() as u64) as usize;
        let lane = &mut sa.lanes[lane];
        if lane.next > self.limit {
            return None;
        }
        let usage = self.usage.entry(sa.session).or_default();
        usage.sent_packets += 1;
        usage.sent_bytes += 1000;
        usage.most_packets = usage.most_packets.max(lane.next);
        usage.most_bytes = usage.most_packets * 1000;
        let sealed = Sealed {
            spi: lane.spi,
            sequence: lane.next,
            key: lane.key.clone(),
            packet,
        };
        lane.next += 1;
        Some(sealed)
    }

    /// A sealed packet arrives: the guest's packet, if it opens and is no replay.
    pub(crate) fn open(&mut self, sealed: &Sealed, from: SocketAddr, at: Duration) -> Option<Packet> {
        let now = self.now(at);
        let Some(sa) = self.inbound.get_mut(&sealed.spi) else {
            self.engine.unknown_spi(from.ip(), sealed.spi, now);
            return None;
        };
        if sa.key != sealed.key || sa.window.accept(sealed.sequence).is_err() {
            return None;
        }
        let usage = self.usage.entry(sa.session).or_default();
        usage.received_packets += 1;
        usage.received_bytes += 1000;
        let pair = sa.session.pair;
        // What the model's key proves, the SA must mean.
        assert_eq!(
            self.pair(sealed.packet.from, sealed.packet.channel),
            pair,
            "an SA opened what another channel or host sealed"
        );
        assert_eq!(sealed.packet.to, self.number);
        Some(sealed.packet)
    }

    pub(crate) fn report(&mut self, at: Duration) {
        let now = self.now(at);
        let mut all: Vec<_> = self
            .usage
            .iter()
            .map(|(session, usage)| (*session, *usage))
            .collect();
        all.sort_unstable_by_key(|(session, _)| *session);
        for (session, usage) in all {
            self.engine.report(session, usage, now);
        }
    }

    /// Takes what the engine put out. SA commands reach the workers a little later, in order.
    pub(crate) fn drain(&mut self, at: Duration, slow: u64, seed: &mut Seed) -> Vec<Act> {
        let mut acts = Vec::new();
        while let Some(output) = self.engine.output() {
            let command = match output {
                Output::Send { to, datagram } => {
                    acts.push(Act::Datagram(to, datagram.to_vec()));
                    continue;
                }
                Output::Probe { to, datagram, length } => {
                    let mut padded = datagram.to_vec();
                    padded.resize(usize::from(length), 0);
                    acts.push(Act::Probe(to, padded));
                    continue;
                }
                Output::PathMtu { peer, mtu } => {
                    self.path_mtus.insert(peer, mtu);
                    continue;
                }
                Output::Event(_) => continue,
                Output::InstallInbound { session, sas } => Command::Install(session, sas),
                Output::UseOutbound {
                    session,
                    sas,
                    packets,
                } => {
                    for sa in &sas {
                        acts.push(Act::NewKey(sa.key.key().to_vec()));
                    }
                    Command::Use(session, sas, packets)
                }
                Output::RetireInbound { spis, .. } => {
                    Command::RetireInbound(spis.iter().map(|spi| spi.get()).collect())
                }
                Output::RetireOutbound { session } => Command::RetireOutbound(session),
            };
            let last = self.commands.back().map_or(at, |(due, _)| *due);
            let due = last.max(at + Duration::from_micros(seed.below(slow + 1)));
            self.commands.push_back((due, command));
        }
        acts
    }

    pub(crate) fn command_due(&self) -> Option<Duration> {
        self.commands.front().map(|(due, _)| *due)
    }

    /// The workers obey the next command.
    pub(crate) fn obey(&mut self, at: Duration, seed: &mut Seed) -> Vec<Act> {
        let Some((_, command)) = self.commands.pop_front() else {
            return Vec::new();
        };
        match command {
            Command::Install(session, sas) => {
                for sa in sas {
                    assert_eq!(
                        u32::from(sa.owner.0),
                        sa.spi.get() % 64 % u32::from(self.workers),
                        "the SPI tells the owner"
                    );
                    let opens = OpensWith {
                        session,
                        key: sa.key.key().to_vec(),
                        window: ReplayWindow::new(1024, true),
                    };
                    assert!(
                        self.inbound.insert(sa.spi.get(), opens).is_none(),
                        "an SPI in use was dealt"
                    );
                }
                let now = self.now(at);
                self.engine.installed(session, now);
                Vec::new()
            }
            Command::Use(session, sas, packets) => {
                assert_eq!(sas.len(), usize::from(self.workers), "an SA for each worker");
                let lanes = sas
                    .iter()
                    .map(|sa| Lane {
                        spi: sa.spi.get(),
                        key: sa.key.key().to_vec(),
                        next: 1,
                    })
                    .collect();
                self.limit = packets;
                self.outbound.insert(session.pair, SealsWith { session, lanes });
                let waiting = self.waiting.remove(&session.pair).unwrap_or_default();
                waiting
                    .into_iter()
                    .flat_map(|packet| self.send(packet, at, seed))
                    .collect()
            }
            Command::RetireInbound(spis) => {
                for spi in spis {
                    self.inbound.remove(&spi);
                }
                let kept: Vec<SessionId> = self.inbound.values().map(|sa| sa.session).collect();
                let outbound: Vec<SessionId> = self.outbound.values().map(|sa| sa.session).collect();
                self.usage
                    .retain(|session, _| kept.contains(session) || outbound.contains(session));
                Vec::new()
            }
            Command::RetireOutbound(session) => {
                if self
                    .outbound
                    .get(&session.pair)
                    .is_some_and(|sa| sa.session == session)
                {
                    self.outbound.remove(&session.pair);
                }
                Vec::new()
            }
        }
    }

    /// How long the data path lets packets to another host be.
    pub(crate) fn path_mtu(&self, to: usize) -> u16 {
        let found = self.path_mtus.get(&peer_of(self.number, to));
        found.copied().unwrap_or(UPLINK_MTU)
    }

    /// SAs that workers hold.
    pub(crate) fn sas(&self) -> usize {
        self.inbound.len() + self.outbound.len()
    }

    pub(crate) fn forget_waiting(&mut self) {
        self.waiting.clear();
    }
}
