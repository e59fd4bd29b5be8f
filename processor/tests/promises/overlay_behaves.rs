//! An overlay network behaves as guests expect of a network: neighbours answer, groups are reached, what is too long is said,
//! and who has moved is found.

use guestseal::path::outcome::DropReason;
use guestseal::wire::packet::Packet;
use guestseal::wire::{checksum, icmp};
use guestseal_rules::model::Policy;

use crate::frames::*;
use crate::host::{Host, Options, overlay_with};

const NOTHING: Vec<Vec<u8>> = Vec::new();
const RED1: Guest = Guest { id: "red-1", ..BLUE1 };

fn policy() -> Policy {
    overlay_with("", "")
}

/// A third host with a guest of the blue tenant.
fn three_hosts() -> Policy {
    let text = "  - id: red-1\n";
    let fourth = "  - {id: blue-4, host: h3, ports: [{interface: gp-blue-4, network: blue, mac: \"02:00:00:01:00:04\", \
                  addresses: [10.1.0.4]}]}\n";
    let policy = include_str!("../../../rules/examples/overlay/policy.yaml")
        .replacen(text, &format!("{fourth}{text}"), 1)
        .replacen(
            "\n# The VNI",
            "  - {name: h3, addresses: [192.0.2.3, \"2001:db8::3\"]}\n\n# The VNI",
            1,
        );
    let name = "policy.yaml".into();
    guestseal_rules::load::load_policy(&[guestseal_rules::load::Source { name, text: policy }]).unwrap()
}

fn solicitation(from: Guest, source: [u16; 8], target: Guest, hop_limit: u8) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.v6.iter().flat_map(|word| word.to_be_bytes()));
    if source != [0; 8] {
        message.extend([1, 1]);
        message.extend(from.mac);
    }
    let group = [0xff02, 0, 0, 0, 0, 1, 0xff00, target.v6[7]];
    let (ethertype, mut packet) = ip(source.into(), std::net::IpAddr::from(group), 58, &message);
    packet[7] = hop_limit;
    frame(
        [0x33, 0x33, 0xff, 0, 0, target.mac[5]],
        from.mac,
        ethertype,
        &packet,
    )
}

#[test]
fn neighbours_are_answered_for_from_the_endpoint_table() {
    let mut one = Host::new(&policy(), 0, &Options::default());
    // Of another host, and of this one; from a broadcast, and from a question to the neighbour itself.
    for (to, neighbour) in [(BROADCAST, BLUE2), (BROADCAST, BLUE3), (BLUE2.mac, BLUE2)] {
        one.guest_sends(BLUE1, &arp(to, BLUE1, 1, BLUE1.v4, neighbour.v4));
        let mut answer = arp(BLUE1.mac, neighbour, 2, neighbour.v4, BLUE1.v4);
        answer[32..38].copy_from_slice(&BLUE1.mac);
        assert_eq!(one.at_guest(BLUE1), [answer], "{:?}", one.outcomes());
    }
    for neighbour in [BLUE2, BLUE3] {
        for source in [BLUE1.v6, [0; 8]] {
            one.guest_sends(BLUE1, &solicitation(BLUE1, source, neighbour, 255));
            let answers = one.at_guest(BLUE1);
            assert_eq!(answers.len(), 1, "{:?}", one.outcomes());
            let answer = Packet::parse(&answers[0]).unwrap();
            assert_eq!(answer.icmp, Some((icmp::NEIGHBOUR_ADVERTISEMENT, 0)));
            assert_eq!(answer.source, neighbour.address(true));
            assert_eq!(answer.nd_target.unwrap().segments(), neighbour.v6);
            assert_eq!(answer.nd_link_layer.unwrap().0, neighbour.mac);
            assert_eq!((answer.source_mac.0, answers[0][21]), (neighbour.mac, 255));
            let is_group = source == [0; 8];
            let expected = if is_group {
                icmp::ALL_NODES_MAC.0
            } else {
                BLUE1.mac
            };
            assert_eq!(answer.destination_mac.0, expected);
        }
    }
    assert_eq!(
        (one.on_wire(), one.at_guest(BLUE3), one.at_guest(RED1)),
        (NOTHING, NOTHING, NOTHING)
    );
    one.assert_accounted();
}

#[test]
fn what_is_no_question_about_another_is_not_answered() {
    let mut one = Host::new(&policy(), 0, &Options::default());
    for (what, frame) in [
        (
            "a probe of its own address",
            arp(BROADCAST, BLUE1, 1, [0; 4], BLUE1.v4),
        ),
        ("gratuitous ARP", arp(BROADCAST, BLUE1, 1, BLUE1.v4, BLUE1.v4)),
        (
            "an address of nobody",
            arp(BROADCAST, BLUE1, 1, BLUE1.v4, [10, 1, 0, 99]),
        ),
        ("an answer", arp(BLUE2.mac, BLUE1, 2, BLUE1.v4, BLUE2.v4)),
        (
            "a solicitation from beyond the link",
            solicitation(BLUE1, BLUE1.v6, BLUE2, 254),
        ),
        ("a duplicate of its own", solicitation(BLUE1, [0; 8], BLUE1, 255)),
    ] {
        one.guest_sends(BLUE1, &frame);
        assert_eq!(one.at_guest(BLUE1), NOTHING, "{what}");
        assert_eq!(
            one.on_wire().len(),
            1,
            "{what}: it goes to the other host, sealed"
        );
    }
    // Spoofed questions are not answered either.
    one.guest_sends(BLUE1, &arp(BROADCAST, BLUE1, 1, BLUE3.v4, BLUE2.v4));
    assert_eq!(one.dropped(DropReason::SpoofedNeighbour), 1);
    assert_eq!(one.at_guest(BLUE1), NOTHING);
    one.assert_accounted();
}

#[test]
fn groups_and_unknown_macs_reach_every_host_of_the_network_once() {
    let policy = three_hosts();
    let mut hosts: Vec<Host> = (0..3)
        .map(|number| Host::new(&policy, number, &Options::default()))
        .collect();
    let blue4 = Guest {
        id: "blue-4",
        mac: [2, 0, 0, 1, 0, 4],
        v4: [10, 1, 0, 4],
        ..BLUE2
    };
    let frame = frame(BROADCAST, BLUE1.mac, 0x88b5, b"to all");
    hosts[0].guest_sends(BLUE1, &frame);
    let wire = hosts[0].on_wire();
    assert_eq!(wire.len(), 2, "{:?}", hosts[0].outcomes());
    let destinations: Vec<String> = wire
        .iter()
        .map(|sent| Packet::parse(sent).unwrap().destination.to_string())
        .collect();
    assert_eq!(destinations, ["192.0.2.2", "192.0.2.3"]);
    assert_eq!(
        (hosts[0].at_guest(BLUE3), hosts[0].at_guest(BLUE1)),
        (vec![frame.clone()], NOTHING)
    );
    for (host, guest) in [(1, BLUE2), (2, blue4)] {
        hosts[host].wire_brings(0, &wire[host - 1]);
        assert_eq!(hosts[host].at_guest(guest), std::slice::from_ref(&frame));
        hosts[host].assert_accounted();
    }
    assert_eq!(hosts[0].at_guest(RED1), NOTHING);
    // The red tenant has no guest on the third host.
    hosts[0].guest_sends(RED1, &frame);
    assert_eq!(hosts[0].on_wire().len(), 1);
    let unknown = Guest {
        mac: [2, 9, 9, 9, 9, 9],
        v4: [10, 1, 0, 99],
        ..BLUE2
    };
    hosts[0].guest_sends(BLUE1, &between(BLUE1, unknown, false, UDP, &udp(1, 2, b"")));
    assert_eq!(hosts[0].on_wire().len(), 2);
    hosts[0].assert_accounted();
}

#[test]
fn a_storm_is_copied_at_a_rate_each_port_for_itself() {
    let mut one = Host::new(&policy(), 0, &Options::default());
    let frame = frame(BROADCAST, BLUE1.mac, 0x88b5, b"storm");
    let mut sent = 0;
    for _ in 0..600 {
        one.guest_sends(BLUE1, &frame);
        sent += one.on_wire().len();
        one.at_guest(BLUE3);
    }
    let dropped = one.dropped(DropReason::GroupRateExceeded) as usize;
    assert_eq!(sent + dropped, 600);
    // A burst, and what a second allows for each second that the loop took.
    assert!(dropped > 0 && sent >= 256, "{sent} sent");
    one.guest_sends(RED1, &frame);
    assert_eq!(one.on_wire().len(), 1, "another port");
    let unicast = between(BLUE1, BLUE2, false, UDP, &udp(1, 2, b""));
    one.guest_sends(BLUE1, &unicast);
    assert_eq!(one.on_wire().len(), 1, "what has a receiver is not held back");
    one.assert_accounted();
}

/// The longest that fits is sent; one byte more is answered with a message that says how much would fit, and does fit.
#[test]
fn the_sender_of_what_does_not_fit_is_told() {
    let options = Options::default();
    for (kind, port) in [("vxlan", 4001), ("vxlan", 53), ("geneve", 514)] {
        let policy = overlay_with("type: vxlan, vni: 7001", &format!("type: {kind}, vni: 7001"));
        for ip6 in [false, true] {
            for tunnel_over_ip6 in [false, true] {
                let options = Options {
                    tunnel_over_ip6,
                    ..options.clone()
                };
                let mut one = Host::new(&policy, 0, &options);
                let header = if ip6 { 40 } else { 20 };
                let of_length = |length: usize| {
                    let data: Vec<u8> = (0..length - header - 8).map(|place| place as u8).collect();
                    between(BLUE1, BLUE2, ip6, UDP, &udp(4000, port, &data))
                };
                let long = of_length(1480);
                one.guest_sends(BLUE1, &long);
                assert_eq!((one.on_wire(), one.dropped(DropReason::TooLong)), (NOTHING, 1));
                let told = one.at_guest(BLUE1);
                assert_eq!(told.len(), 1, "{:?}", one.outcomes());
                let message = Packet::parse(&told[0]).unwrap();
                assert_eq!(
                    (message.source, message.destination),
                    (BLUE2.address(ip6), BLUE1.address(ip6))
                );
                assert_eq!(
                    (message.source_mac.0, message.destination_mac.0),
                    (BLUE2.mac, BLUE1.mac)
                );
                assert_eq!(message.icmp, Some(if ip6 { (2, 0) } else { (3, 4) }));
                let body = &told[0][14 + header..];
                let quoted = &body[8..];
                assert_eq!(quoted, &long[14..14 + quoted.len()], "it quotes what was sent");
                assert_eq!(
                    told[0].len() - 14,
                    if ip6 { 1280 } else { 576 },
                    "as much of it as may be"
                );
                if !ip6 {
                    assert_eq!(checksum::sum(body), 0xffff);
                }
                let fits = usize::from(u16::from_be_bytes([body[6], body[7]]));
                let expected = match (port, tunnel_over_ip6) {
                    // Bare packets go between the hosts' first addresses.
                    (53, _) => 1450,
                    (_, false) => 1416,
                    (_, true) => 1396,
                };
                assert_eq!(fits, expected);
                one.guest_sends(BLUE1, &of_length(fits));
                let wire = one.on_wire();
                assert_eq!(wire.len(), 1, "{fits} bytes fit");
                assert!(
                    (1497..=1500).contains(&(wire[0].len() - 14)),
                    "{} of 1500",
                    wire[0].len() - 14
                );
                one.guest_sends(BLUE1, &of_length(fits + 1));
                assert_eq!((one.on_wire(), one.at_guest(BLUE1).len()), (NOTHING, 1));
                assert_eq!(one.told_too_long(), 2);
                one.assert_accounted();
            }
        }
    }
}

#[test]
fn errors_and_later_fragments_are_not_answered() {
    let mut one = Host::new(&policy(), 0, &Options::default());
    let long = vec![7; 1460];
    for frame in [
        between(BLUE1, BLUE2, false, 1, &[&[3, 1][..], &long].concat()),
        between(BLUE1, BLUE2, true, 58, &[&[1, 0][..], &long[..1438]].concat()),
        fragment(BLUE1, BLUE2, 1, 100, &long),
        frame(BLUE2.mac, BLUE1.mac, 0x88b5, &long),
    ] {
        one.guest_sends(BLUE1, &frame);
    }
    assert_eq!((one.on_wire(), one.at_guest(BLUE1)), (NOTHING, NOTHING));
    assert_eq!(one.dropped(DropReason::TooLong), 4, "{:?}", one.outcomes());
    assert_eq!(one.told_too_long(), 0);
}

#[test]
fn what_tcp_offers_is_lowered_both_ways() {
    let policy = policy();
    let (mut one, mut two) = (
        Host::new(&policy, 0, &Options::default()),
        Host::new(&policy, 1, &Options::default()),
    );
    let syn = |from: Guest, to: Guest, ip6, flags, mss: u16| {
        let mut segment = tcp(4000, 80, flags, b"");
        segment[12] = 0x60;
        segment.extend([2, 4]);
        segment.extend(mss.to_be_bytes());
        between(from, to, ip6, TCP, &segment)
    };
    for ip6 in [false, true] {
        for (from, to, flags) in [(BLUE1, BLUE2, SYN), (BLUE2, BLUE1, SYN | ACK)] {
            let (here, there) = if from.id == BLUE1.id {
                (&mut one, &mut two)
            } else {
                (&mut two, &mut one)
            };
            here.guest_sends(from, &syn(from, to, ip6, flags, 1460));
            let wire = here.on_wire();
            there.wire_brings(0, &wire[0]);
            let got = there.at_guest(to);
            let offer = |frame: &[u8]| u16::from_be_bytes(*frame.last_chunk().unwrap());
            let offered = offer(&got[0]);
            // A whole segment of that size fits exactly.
            let header = if ip6 { 60 } else { 40 };
            let data = vec![1; usize::from(offered)];
            here.guest_sends(from, &between(from, to, ip6, TCP, &tcp(4000, 80, ACK, &data)));
            let wire = here.on_wire();
            assert_eq!(wire.len(), 1, "{offered} + {header} fit");
            assert!((1497..=1500).contains(&(wire[0].len() - 14)));
            // What is small enough stays as it was.
            here.guest_sends(from, &syn(from, to, ip6, flags, 1000));
            there.wire_brings(0, &here.on_wire()[0]);
            assert_eq!(there.at_guest(to), [syn(from, to, ip6, flags, 1000)]);
        }
    }
}

#[test]
fn who_has_moved_is_found_at_once_and_nothing_goes_to_the_old_host() {
    let policy = three_hosts();
    let mut hosts: Vec<Host> = (0..3)
        .map(|number| Host::new(&policy, number, &Options::default()))
        .collect();
    let frame = between(BLUE1, BLUE2, false, UDP, &udp(1, 2, b"where"));
    let broadcast = crate::frames::frame(BROADCAST, BLUE1.mac, 0x88b5, b"to all");
    let to = |host: &mut Host| -> Vec<String> {
        let destination = |sent: &Vec<u8>| Packet::parse(sent).unwrap().destination.to_string();
        host.on_wire().iter().map(destination).collect()
    };
    hosts[0].guest_sends(BLUE1, &frame);
    assert_eq!(to(&mut hosts[0]), ["192.0.2.2"]);
    // What it sends from there is believed of its new host only.
    let answer = between(BLUE2, BLUE1, false, UDP, &udp(2, 1, b"here"));
    hosts[1].guest_sends(BLUE2, &answer);
    let from_old = hosts[1].on_wire();
    for host in &mut hosts {
        host.sees_moved(BLUE2, 2);
    }
    hosts[0].guest_sends(BLUE1, &frame);
    hosts[0].guest_sends(BLUE1, &broadcast);
    assert_eq!(
        to(&mut hosts[0]),
        ["192.0.2.3"; 2],
        "the old host has nobody of the network any more"
    );
    hosts[0].wire_brings(0, &from_old[0]);
    assert_eq!(
        (hosts[0].at_guest(BLUE1), hosts[0].dropped(DropReason::WrongHost)),
        (NOTHING, 1)
    );
    hosts[1].guest_sends(BLUE2, &answer);
    assert_eq!(
        (hosts[1].on_wire(), hosts[1].dropped(DropReason::GuestMoved)),
        (NOTHING, 1)
    );
    // A host that has not heard of it yet.
    hosts[0].sees_moved(BLUE2, 1);
    hosts[0].guest_sends(BLUE1, &frame);
    let late = hosts[0].on_wire();
    hosts[1].wire_brings(0, &late[0]);
    assert_eq!(
        (hosts[1].at_guest(BLUE2), hosts[1].dropped(DropReason::NotOurs)),
        (NOTHING, 1)
    );
    hosts.iter().for_each(Host::assert_accounted);
}

#[test]
fn who_comes_back_is_announced_to_its_neighbours() {
    let policy = policy();
    let (mut one, mut two) = (
        Host::new(&policy, 0, &Options::default()),
        Host::new(&policy, 1, &Options::default()),
    );
    // The port is here all the time; the guest goes, and comes back.
    one.sees_moved(BLUE1, 1);
    assert_eq!((one.on_wire(), one.at_guest(BLUE3)), (NOTHING, NOTHING));
    one.sees_moved(BLUE1, 0);
    let mut wire = one.on_wire();
    let heard = one.at_guest(BLUE3);
    assert_eq!(heard[0], {
        let mut announcement = arp(BROADCAST, BLUE1, 1, BLUE1.v4, BLUE1.v4);
        announcement[32..38].fill(0);
        announcement
    });
    let advertised = Packet::parse(&heard[1]).unwrap();
    assert_eq!(advertised.icmp, Some((icmp::NEIGHBOUR_ADVERTISEMENT, 0)));
    assert_eq!(advertised.nd_target.unwrap().segments(), BLUE1.v6);
    assert_eq!(one.at_guest(RED1), NOTHING);
    for sent in wire.drain(..) {
        two.wire_brings(0, &sent);
    }
    assert_eq!(
        two.at_guest(BLUE2),
        heard,
        "the neighbours on the other host hear of it, too"
    );
    one.assert_accounted();
    two.assert_accounted();
}
