//! What one message can do. What many do over time is the model's (processor/tests/sessions).

use std::sync::Arc;

use guestseal_rules::classify::Protection;
use guestseal_rules::model::Suite;
use zerocopy::{FromBytes, IntoBytes};

use crate::keys::secret::Secret;
use crate::keys::store::RuleKey;

use super::super::message::{Datagram, Inside};
use super::super::output::{EndReason, Event};
use super::super::random::{Counting, System};
use super::*;

fn now(seconds: u64) -> Now {
    Now {
        monotonic: Duration::from_secs(seconds),
        wall: Duration::from_secs(1_700_000_000 + seconds),
    }
}

fn identity(byte: u8) -> Identity {
    Identity::new(Secret::new(&[byte; 32]).unwrap())
}

fn address(number: u8) -> SocketAddr {
    ([192, 0, 2, number], 4510).into()
}

fn peer(number: u8) -> Peer {
    Peer {
        address: address(number),
        public_keys: vec![identity(number).public()],
    }
}

fn key(generation: u32, byte: u8) -> Arc<RuleKey> {
    RuleKey::new(
        "any".into(),
        Generation(generation),
        Secret::new(&[byte; 32]).unwrap(),
    )
}

fn setup(number: u8, peers: Vec<Peer>) -> Setup {
    Setup {
        settings: Settings::default(),
        identity: identity(number),
        workers: 2,
        peers,
        channels: vec![Channel {
            network: "blue".into(),
            key: "any".into(),
            protection: Protection::Encrypt,
            suite: Suite::Aes256Gcm,
        }],
        manual: Vec::new(),
        random: Box::new(System),
    }
}

/// Host 1 or 2 or 3, which knows the others, with generation 1 of the key.
fn engine(number: u8) -> Engine {
    let peers = (1..=3).filter(|other| *other != number).map(peer).collect();
    let mut engine = Engine::new(setup(number, peers)).unwrap();
    engine.set_keys(&store(&[key(1, 0x5a)]), now(0));
    engine
}

fn store(keys: &[Arc<RuleKey>]) -> KeyStore {
    let mut store = KeyStore::default();
    keys.iter().for_each(|key| store.add(key.clone()));
    store
}

/// What an engine sends, with everything installed at once; events beside.
fn take(engine: &mut Engine, now: Now, events: &mut Vec<Event>) -> Vec<(SocketAddr, Datagram)> {
    let mut sent = Vec::new();
    while let Some(output) = engine.output() {
        match output {
            Output::Send { to, datagram } => sent.push((to, datagram)),
            Output::InstallInbound { session, .. } => engine.installed(session, now),
            Output::Event(event) => events.push(event),
            _ => {}
        }
    }
    sent
}

/// Carries everything between hosts until nobody has anything to say.
fn talk(hosts: &mut [(u8, Engine)], now: Now) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let mut said = Vec::new();
        for (number, engine) in hosts.iter_mut() {
            for (to, datagram) in take(engine, now, &mut events) {
                said.push((address(*number), to, datagram));
            }
        }
        if said.is_empty() {
            return events;
        }
        for (from, to, datagram) in said {
            if let Some((_, engine)) = hosts.iter_mut().find(|(number, _)| address(*number) == to) {
                engine.receive(&datagram, from, now);
            }
        }
    }
}

fn established(events: &[Event]) -> usize {
    let is = |event: &&Event| matches!(event, Event::Established { .. });
    events.iter().filter(is).count()
}

fn initiation(engine: &mut Engine, now: Now) -> Datagram {
    engine.need_session(PeerId(0), ChannelId(0), now);
    take(engine, now, &mut Vec::new()).remove(0).1
}

#[test]
fn mistakes_in_the_setup_are_said() {
    let mistakes = [
        (
            setup(
                1,
                vec![
                    peer(2),
                    Peer {
                        address: address(2),
                        ..peer(3)
                    },
                ],
            ),
            "two peers have the address 192.0.2.2",
        ),
        (
            setup(
                1,
                vec![
                    peer(2),
                    Peer {
                        address: address(3),
                        ..peer(2)
                    },
                ],
            ),
            "belongs to two hosts",
        ),
        (
            setup(
                1,
                vec![Peer {
                    address: address(3),
                    ..peer(1)
                }],
            ),
            "belongs to two hosts",
        ),
        (
            setup(
                1,
                vec![Peer {
                    public_keys: Vec::new(),
                    ..peer(2)
                }],
            ),
            "has no public key",
        ),
        (
            Setup {
                workers: 0,
                ..setup(1, vec![])
            },
            "0 workers",
        ),
        (
            Setup {
                workers: 65,
                ..setup(1, vec![])
            },
            "65 workers",
        ),
    ];
    for (setup, said) in mistakes {
        let error = Engine::new(setup).err().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    }
}

/// The first initiation is lost, and the next one is under a generation that the peer has no more: all others are tried at
/// once, the newest among them.
#[test]
fn a_peer_that_has_only_the_newest_generation_is_found() {
    let (mut one, mut two) = (engine(1), engine(2));
    one.set_keys(&store(&[key(1, 0x5a), key(2, 2), key(3, 3)]), now(0));
    two.set_keys(&store(&[key(3, 3)]), now(0));
    initiation(&mut one, now(1));
    one.need_session(PeerId(0), ChannelId(0), now(3));
    let events = talk(&mut [(1, one), (2, two)], now(3));
    assert!(established(&events) > 0, "{events:?}");
    let refused: Vec<Generation> = events
        .iter()
        .filter_map(|event| match event {
            Event::Refused { generation, .. } => Some(*generation),
            _ => None,
        })
        .collect();
    assert_eq!(refused, [Generation(2), Generation(1)]);
}

/// Random bytes in every message, with a mac1 that anybody who knows the public key can make: no state, no panic, and
/// nothing that is longer than the question.
#[test]
fn what_is_not_authenticated_leaves_no_state() {
    let mut engine = engine(2);
    let keys = ReceiverKeys::new(identity(2).public());
    let mut random = Counting(1);
    for round in 0..500u64 {
        let now = now(1 + round);
        let mut bytes = [0; 176];
        for (kind, size) in [(1, 176), (2, 108), (3, 64), (4, 48), (5, 32), (6, 24)] {
            let message = &mut bytes[..size];
            random.fill(message);
            System.fill(&mut message[4..12]);
            message[..4].copy_from_slice(&[kind, 1, 0, 0]);
            let end = size - if kind == 1 { 32 } else { 16 };
            let code = keys.mac1(&message[..end]);
            message[end..end + 16].copy_from_slice(&code);
            engine.receive(message, address(1), now);
            engine.receive(message, address(9), now);
            engine.receive(message, ([192, 0, 2, 1], 53).into(), now);
            for (_, answer) in take(&mut engine, now, &mut Vec::new()) {
                assert!(answer.len() < size, "kind {kind}");
            }
        }
        assert_eq!(engine.held(), Occupancy::default());
    }
    let counters = engine.counters();
    assert_eq!(counters.stray, 500 * 12, "two of three came from no peer");
    assert_eq!(counters.unknown_key, 500, "{counters:?}");
}

/// Each bit of each message of a handshake: changed, it brings nothing about, and the true one still does.
#[test]
fn no_bit_of_a_handshake_can_be_changed() {
    let at = now(1);
    let (mut one, mut two) = (engine(1), engine(2));
    let asked = initiation(&mut one, at);
    // mac2 is looked at under load only.
    for bit in 0..(asked.len() - 16) * 8 {
        let mut changed = asked.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        two.receive(&changed, address(1), at);
    }
    assert_eq!(two.held(), Occupancy::default());
    two.receive(&asked, address(1), at);
    let answer = take(&mut two, at, &mut Vec::new()).pop().unwrap().1;
    let mut events = Vec::new();
    for bit in 0..answer.len() * 8 {
        let mut changed = answer.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        // The sender's index (bytes 4 to 7) is not the handshake's, but mac1 covers it.
        one.receive(&changed, address(2), at);
    }
    take(&mut one, at, &mut events);
    assert_eq!(established(&events), 0);
    one.receive(&answer, address(2), at);
    let ping = take(&mut one, at, &mut events).pop();
    assert_eq!(established(&events), 1);
    one.tick(at);
    let ping = ping.or_else(|| take(&mut one, at, &mut events).pop()).unwrap().1;
    for bit in 0..ping.len() * 8 {
        let mut changed = ping.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        two.receive(&changed, address(1), at);
    }
    take(&mut two, at, &mut events);
    assert_eq!(established(&events), 1, "the responder does not seal yet");
    two.receive(&ping, address(1), at);
    take(&mut two, at, &mut events);
    assert_eq!(established(&events), 2);
}

#[test]
fn the_responder_seals_only_after_it_heard_the_initiator() {
    let at = now(1);
    let (mut one, mut two) = (engine(1), engine(2));
    let asked = initiation(&mut one, at);
    two.receive(&asked, address(1), at);
    let Some(Output::InstallInbound { session, sas }) = two.output() else {
        panic!("first the SAs that open")
    };
    assert_eq!(sas.len(), 2, "one for each worker of the peer");
    assert!(two.output().is_none(), "no answer before they are in place");
    two.installed(session, at);
    let mut events = Vec::new();
    let answer = take(&mut two, at, &mut events).pop().unwrap().1;
    assert_eq!(established(&events), 0);
    one.receive(&answer, address(2), at);
    take(&mut one, at, &mut events);
    assert_eq!(established(&events), 1);
    // A sealed packet that opened is as good as a ping.
    let usage = Usage {
        received_packets: 1,
        ..Usage::default()
    };
    two.report(session, usage, at);
    take(&mut two, at, &mut events);
    assert_eq!(established(&events), 2);
}

/// Who has another host's address but its own key, or the right identity but other bytes of the rule's key.
#[test]
fn the_wrong_host_and_the_wrong_key_get_no_session() {
    let at = now(1);
    let (mut one, mut two) = (engine(1), engine(2));
    let asked = initiation(&mut one, at);
    two.receive(&asked, address(3), at);
    assert_eq!((two.counters().bad_handshake, two.held().states), (1, 0));

    let mut one = engine(1);
    one.set_keys(&store(&[key(1, 0x5b)]), at);
    let mut hosts = [(1, one), (2, engine(2))];
    hosts[0].1.need_session(PeerId(0), ChannelId(0), at);
    let events = talk(&mut hosts, at);
    assert_eq!(established(&events), 0, "{events:?}");
    assert_eq!(hosts[0].1.counters().bad_handshake, 1);
}

/// The peer is told the next public key first, then the host uses it; both can begin.
#[test]
fn an_identity_changes_without_a_gap() {
    for begins in [1, 2] {
        let changing = Peer {
            public_keys: vec![identity(1).public(), identity(7).public()],
            ..peer(1)
        };
        let mut two = Engine::new(setup(2, vec![changing])).unwrap();
        two.set_keys(&store(&[key(1, 0x5a)]), now(0));
        let mut one = engine(1);
        one.set_identity(identity(7), now(0));
        let mut hosts = [(1, one), (2, two)];
        let engine = &mut hosts[begins - 1].1;
        engine.need_session(PeerId(0), ChannelId(0), now(1));
        let mut events = talk(&mut hosts, now(1));
        // Who begins with the old public key hears nothing, and takes the other one the next time.
        hosts[1].1.tick(now(3));
        events.extend(talk(&mut hosts, now(3)));
        assert_eq!(established(&events), 2, "host {begins} begins: {events:?}");
    }
}

#[test]
fn a_close_is_the_peers_or_nothing() {
    let mut hosts = [(1, engine(1)), (2, engine(2))];
    hosts[0].1.need_session(PeerId(0), ChannelId(0), now(1));
    talk(&mut hosts, now(1));
    hosts[0].1.set_keys(&KeyStore::default(), now(2));
    let close = take(&mut hosts[0].1, now(2), &mut Vec::new()).pop().unwrap().1;
    let other = {
        let mut other = Inside::read_from_bytes(&close).unwrap();
        other.counter = 77.into();
        other
    };
    hosts[1].1.receive(other.as_bytes(), address(1), now(2));
    assert_eq!(hosts[1].1.held().states, 1, "a close with another counter");
    hosts[1].1.receive(&close, address(3), now(2));
    assert_eq!(hosts[1].1.held().states, 1, "a close from another peer");
    hosts[1].1.receive(&close, address(1), now(2));
    let mut events = Vec::new();
    take(&mut hosts[1].1, now(2), &mut events);
    assert!(
        matches!(
            events[..],
            [Event::Ended {
                reason: EndReason::ByPeer,
                ..
            }]
        ),
        "{events:?}"
    );
}

/// Each ping is answered once, however often it comes.
#[test]
fn a_ping_is_answered_once() {
    let mut hosts = [(1, engine(1)), (2, engine(2))];
    hosts[0].1.need_session(PeerId(0), ChannelId(0), now(1));
    talk(&mut hosts, now(1));
    let usage = Usage {
        sent_packets: 1,
        ..Usage::default()
    };
    let session = hosts[0].1.sessions(now(1)).next().unwrap().session;
    // Sent to, and silent for longer than ten seconds: it is asked.
    hosts[0].1.report(session, usage, now(20));
    hosts[0].1.tick(now(20));
    let ping = take(&mut hosts[0].1, now(20), &mut Vec::new()).pop().unwrap().1;
    let mut answers = Vec::new();
    for _ in 0..3 {
        hosts[1].1.receive(&ping, address(1), now(20));
        answers.push(take(&mut hosts[1].1, now(20), &mut Vec::new()).len());
    }
    assert_eq!(answers, [1, 0, 0]);
    assert_eq!(hosts[1].1.counters().bad_inside, 2);
}

/// Host 1 with sessions to 2 and 3 for one channel; what its policy says next.
struct Before {
    hosts: Vec<(u8, Engine)>,
}

impl Before {
    fn new() -> Self {
        let mut hosts: Vec<(u8, Engine)> = (1..=3).map(|number| (number, engine(number))).collect();
        for peer in 0..2 {
            hosts[0].1.need_session(PeerId(peer), ChannelId(0), now(1));
        }
        assert_eq!(
            established(&talk(&mut hosts, now(1))),
            4,
            "both ends of two sessions"
        );
        Self { hosts }
    }

    /// What happens when the policy has these peers and channels.
    fn becomes(&mut self, peers: Vec<Option<Peer>>, channels: &[Option<&str>]) -> Vec<Event> {
        let channel = |network: &Option<&str>| {
            network.map(|network| Channel {
                network: network.into(),
                ..setup(1, Vec::new()).channels.remove(0)
            })
        };
        let directory = Directory::new(peers, identity(1).public()).unwrap();
        let channels = channels.iter().map(channel).collect();
        self.hosts[0]
            .1
            .set_scope(directory, channels, &store(&[key(1, 0x5a)]), now(2));
        talk(&mut self.hosts, now(2))
    }

    fn peers_with_sessions(&self) -> Vec<u16> {
        let sessions = self.hosts[0].1.sessions(now(2)).filter(|session| session.current);
        let mut peers: Vec<u16> = sessions.map(|session| session.session.pair.peer.0).collect();
        peers.sort_unstable();
        peers
    }
}

fn ended(events: &[Event]) -> Vec<EndReason> {
    let reason = |event: &Event| match event {
        Event::Ended { reason, .. } => Some(*reason),
        _ => None,
    };
    events.iter().filter_map(reason).collect()
}

#[test]
fn what_another_policy_has_too_goes_on_and_what_is_new_begins() {
    let mut before = Before::new();
    let events = before.becomes(vec![Some(peer(2)), Some(peer(3))], &[Some("blue"), Some("red")]);
    assert_eq!(
        (ended(&events), before.peers_with_sessions()),
        (vec![], vec![0, 1])
    );
    // Host 2 hears of the new channel, too.
    let peers = [1, 3].map(peer).map(Some).to_vec();
    let channels = ["blue", "red"].map(|network| {
        Some(Channel {
            network: network.into(),
            ..setup(1, Vec::new()).channels.remove(0)
        })
    });
    let directory = Directory::new(peers, identity(2).public()).unwrap();
    let store = store(&[key(1, 0x5a)]);
    before.hosts[1]
        .1
        .set_scope(directory, channels.to_vec(), &store, now(2));
    before.hosts[0].1.need_session(PeerId(0), ChannelId(1), now(3));
    assert_eq!(established(&talk(&mut before.hosts, now(3))), 2);
}

#[test]
fn a_peer_that_is_no_more_or_elsewhere_has_no_session_and_leaves_nothing() {
    let elsewhere = Peer {
        address: address(9),
        ..peer(3)
    };
    for (peers, held) in [
        (vec![Some(peer(2)), None], 1),
        (vec![Some(peer(2)), Some(elsewhere)], 1),
    ] {
        let mut before = Before::new();
        let events = before.becomes(peers, &[Some("blue")]);
        assert_eq!(ended(&events), [EndReason::PeerGone]);
        assert_eq!(before.peers_with_sessions(), [0]);
        let left = before.hosts[0].1.held();
        assert_eq!(
            (left.pairs, left.states, left.indices, left.blocks),
            (held, held, held, held)
        );
        // The one that is left is not to be reached from where the other was.
        let initiation = initiation(&mut engine(3), now(3));
        before.hosts[0].1.receive(&initiation, address(3), now(3));
        assert_eq!(take(&mut before.hosts[0].1, now(3), &mut Vec::new()).len(), 0);
    }
}

#[test]
fn a_channel_that_no_rule_seals_ends_on_both_hosts_and_leaves_nothing() {
    let mut before = Before::new();
    let events = before.becomes(vec![Some(peer(2)), Some(peer(3))], &[None, Some("red")]);
    let mut reasons = ended(&events);
    reasons.sort_unstable();
    assert_eq!(
        reasons,
        [
            EndReason::Revoked,
            EndReason::Revoked,
            EndReason::ByPeer,
            EndReason::ByPeer
        ]
    );
    assert_eq!(before.peers_with_sessions(), [] as [u16; 0]);
    let left = before.hosts[0].1.held();
    assert_eq!(
        (left.pairs, left.states, left.indices, left.blocks, left.timers),
        (0, 0, 0, 0, 0)
    );
    let initiation = initiation(&mut before.hosts[1].1, now(3));
    before.hosts[0].1.receive(&initiation, address(2), now(3));
    assert_eq!(
        before.hosts[0].1.counters().unknown_key,
        1,
        "a number of no channel"
    );
}

#[test]
fn a_public_key_that_is_taken_away_ends_what_was_proven_with_it_and_another_does_not() {
    let with = |keys: &[u8]| Peer {
        public_keys: keys.iter().map(|number| identity(*number).public()).collect(),
        ..peer(2)
    };
    let mut before = Before::new();
    let events = before.becomes(vec![Some(with(&[7, 2])), Some(peer(3))], &[Some("blue")]);
    assert_eq!(
        (ended(&events), before.peers_with_sessions()),
        (vec![], vec![0, 1])
    );
    let events = before.becomes(vec![Some(with(&[7])), Some(peer(3))], &[Some("blue")]);
    assert!(ended(&events).contains(&EndReason::Revoked), "{events:?}");
    assert_eq!(before.peers_with_sessions(), [1]);
}

/// Of one peer, and what is under way as well; the next packet begins anew, without waiting for anything.
#[test]
fn what_no_guests_may_use_ends_on_both_hosts_until_a_packet_needs_it() {
    let mut before = Before::new();
    let pair = Pair {
        peer: PeerId(0),
        channel: ChannelId(0),
    };
    before.hosts[0].1.end_unusable(pair, now(2));
    assert!(!before.hosts[0].1.live_pairs().any(|live| live == pair));
    let events = talk(&mut before.hosts, now(2));
    assert_eq!(ended(&events), [EndReason::Unusable, EndReason::ByPeer]);
    assert_eq!(before.peers_with_sessions(), [1]);
    assert_eq!(before.hosts[0].1.held().states, 1, "of the other peer");
    // Asked for, and in doubt before the peer has answered.
    let unanswered = initiation(&mut before.hosts[0].1, now(3));
    before.hosts[0].1.end_unusable(pair, now(3));
    before.hosts[1].1.receive(&unanswered, address(1), now(3));
    assert_eq!(established(&talk(&mut before.hosts, now(3))), 0);
    before.hosts[0].1.tick(now(9));
    assert_eq!(established(&talk(&mut before.hosts, now(9))), 0, "nobody asks");
    before.hosts[0].1.need_session(pair.peer, pair.channel, now(10));
    assert_eq!(established(&talk(&mut before.hosts, now(10))), 2);
}
