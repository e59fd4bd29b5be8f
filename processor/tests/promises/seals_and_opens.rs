//! What a guest sends arrives at the other, byte for byte, and is sealed on the wire as its rule says.

use guestseal::path::outcome::{Outcome, SentAs};
use guestseal::wire::packet::Packet;
use guestseal_rules::model::Policy;

use crate::frames::*;
use crate::host::{Host, Options, policy};

/// Sends a frame from blue-1 on the first host to blue-2 on the second; what was on the wire.
fn crosses(policy: &Policy, options: &Options, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (mut one, mut two) = (Host::new(policy, 0, options), Host::new(policy, 1, options));
    let mut wire = Vec::new();
    for frame in frames {
        one.guest_sends(BLUE1, frame);
        let sent = one.on_wire();
        assert_eq!(sent.len(), 1, "{:?}", one.outcomes());
        two.wire_brings(0, &sent[0]);
        assert_eq!(
            two.at_guest(BLUE2),
            std::slice::from_ref(frame),
            "{:?}",
            two.outcomes()
        );
        wire.extend(sent);
    }
    one.assert_accounted();
    two.assert_accounted();
    wire
}

#[test]
fn any_size_in_any_mode_arrives_as_it_was() {
    let policy = policy();
    for ip6 in [false, true] {
        // Encrypted under AES-256 (any), AES-128 (mail), and authenticated (log).
        let mut frames: Vec<Vec<u8>> = Vec::new();
        for length in (0..70).chain([255, 256, 1000, 1350]) {
            let data: Vec<u8> = (0..length).map(|place| place as u8).collect();
            frames.push(between(BLUE1, BLUE2, ip6, UDP, &udp(4000, 4001, &data)));
            frames.push(between(BLUE1, BLUE2, ip6, TCP, &tcp(4000, 25, ACK, &data)));
            frames.push(between(BLUE1, BLUE2, ip6, UDP, &udp(4000, 514, &data)));
        }
        for esn in [false, true] {
            for (tunnel, tunnel_over_ip6) in [(false, false), (true, false), (true, true)] {
                crosses(
                    &policy,
                    &Options {
                        tunnel,
                        tunnel_over_ip6,
                        esn,
                        ..Options::default()
                    },
                    &frames,
                );
            }
        }
    }
}

#[test]
fn each_kind_of_traffic_has_its_own_sa() {
    let policy = policy();
    let kinds = [
        between(BLUE1, BLUE2, false, UDP, &udp(9, 9, b"any")),
        between(BLUE1, BLUE2, false, TCP, &tcp(9, 8080, SYN, b"")),
        between(BLUE1, BLUE2, false, TCP, &tcp(9, 25, SYN, b"")),
        between(BLUE1, BLUE2, false, UDP, &udp(9, 514, b"log")),
        // Replies: the port is the sender's.
        between(BLUE1, BLUE2, false, TCP, &tcp(8080, 9, ACK, b"web")),
        between(BLUE1, BLUE2, false, TCP, &tcp(25, 9, ACK, b"mail")),
    ];
    let wire = crosses(&policy, &Options::default(), &kinds);
    let spi = |frame: &Vec<u8>| u32::from_be_bytes(frame[34..38].try_into().unwrap());
    let spis: Vec<u32> = wire.iter().map(spi).collect();
    let (any, web, mail, log) = (spis[0], spis[1], spis[2], spis[3]);
    assert_eq!(spis, [any, web, mail, log, web, mail]);
    let different: std::collections::HashSet<u32> = [any, web, mail, log].into();
    assert_eq!(different.len(), 4);
}

#[test]
fn equal_rules_of_two_networks_use_different_keys() {
    let (policy, options) = (policy(), Options::default());
    let (mut one, mut two) = (Host::new(&policy, 0, &options), Host::new(&policy, 1, &options));
    let mut spis = Vec::new();
    for (from, to) in [(BLUE1, BLUE2), (RED1, RED2)] {
        let frame = between(from, to, false, UDP, &udp(1, 2, b"same"));
        one.guest_sends(from, &frame);
        let wire = one.on_wire();
        spis.push(wire[0][34..38].to_vec());
        two.wire_brings(0, &wire[0]);
        assert_eq!(two.at_guest(to), [frame]);
    }
    assert_ne!(spis[0], spis[1]);
}

#[test]
fn arp_and_names_pass_in_plaintext_because_rules_say_so() {
    let (policy, options) = (policy(), Options::default());
    let (mut one, mut two) = (Host::new(&policy, 0, &options), Host::new(&policy, 1, &options));
    let asks = arp(BROADCAST, BLUE1, 1, BLUE1.v4, BLUE2.v4);
    one.guest_sends(BLUE1, &asks);
    let name = between(BLUE1, BLUE2, false, UDP, &udp(4000, 53, b"who is"));
    one.guest_sends(BLUE1, &name);
    let wire = one.on_wire();
    assert_eq!(wire, [asks.clone(), name.clone()]);
    assert_eq!(
        one.at_guest(BLUE3),
        std::slice::from_ref(&asks),
        "a broadcast is also for the neighbour on this host"
    );
    assert_eq!(
        one.at_guest(RED1),
        Vec::<Vec<u8>>::new(),
        "but not for another network"
    );
    for frame in &wire {
        two.wire_brings(0, frame);
    }
    assert_eq!(two.at_guest(BLUE2), [asks, name]);
    assert_eq!(two.at_guest(RED2), Vec::<Vec<u8>>::new());
    assert_eq!(one.count(Outcome::Sent(SentAs::Plaintext)), 2);
    one.assert_accounted();
    two.assert_accounted();
}

#[test]
fn neighbours_on_one_host_never_meet_the_wire() {
    let (policy, options) = (policy(), Options::default());
    let mut one = Host::new(&policy, 0, &options);
    let frame = between(BLUE1, BLUE3, true, UDP, &udp(1, 2, b"local"));
    one.guest_sends(BLUE1, &frame);
    assert_eq!((one.on_wire(), one.at_guest(BLUE3)), (vec![], vec![frame]));
    // A rule that drops holds on the host too.
    one.guest_sends(BLUE1, &between(BLUE1, BLUE3, false, TCP, &tcp(1, 23, SYN, b"")));
    assert_eq!((one.on_wire(), one.at_guest(BLUE3)), (vec![], vec![]));
    one.assert_accounted();
}

#[test]
fn ethernet_padding_is_not_sealed() {
    let policy = policy();
    let frame = between(BLUE1, BLUE2, false, UDP, &udp(1, 2, b"x"));
    let mut padded = frame.clone();
    padded.resize(60, 0xee);
    let options = Options::default();
    let (mut one, mut two) = (Host::new(&policy, 0, &options), Host::new(&policy, 1, &options));
    one.guest_sends(BLUE1, &padded);
    let wire = one.on_wire();
    two.wire_brings(0, &wire[0]);
    assert_eq!(two.at_guest(BLUE2), [frame]);
}

#[test]
fn the_sealed_packet_is_an_ip_packet_of_its_own() {
    let policy = policy();
    for (tunnel, ip6) in [(false, false), (false, true), (true, false)] {
        let options = Options {
            tunnel,
            ..Options::default()
        };
        let wire = crosses(
            &policy,
            &options,
            &[between(BLUE1, BLUE2, ip6, UDP, &udp(1, 2, &[7; 300]))],
        );
        // Parsing checks version, lengths and the header checksum.
        let packet = Packet::parse(&wire[0]).expect("a right IP packet");
        assert_eq!((packet.protocol, usize::from(packet.end)), (50, wire[0].len()));
        let between = if tunnel {
            ("192.0.2.1", "192.0.2.2")
        } else if ip6 {
            ("fd00:1::1", "fd00:1::2")
        } else {
            ("10.1.0.1", "10.1.0.2")
        };
        assert_eq!(
            (packet.source.to_string(), packet.destination.to_string()),
            (between.0.into(), between.1.into())
        );
    }
}
