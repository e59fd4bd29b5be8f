//! A guest's identity comes from its port, a host's from its SA or address: who claims another's ends with one counted drop.

use guestseal::path::outcome::DropReason::{self, *};

use crate::frames::*;
use crate::host::{Host, Options, policy};

fn advertisement(from: Guest, source: Guest, target: Guest, mac: [u8; 6]) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(target.v6.iter().flat_map(|word| word.to_be_bytes()));
    message.extend([2, 1]);
    message.extend(mac);
    let (ethertype, packet) = ip(source.address(true), BLUE2.address(true), 58, &message);
    frame(BLUE2.mac, from.mac, ethertype, &packet)
}

#[test]
fn a_guest_speaks_only_for_itself() {
    let (policy, options) = (policy(), Options::default());
    let mut host = Host::new(&policy, 0, &options);
    let data = udp(1, 2, b"marker");
    let mut other_mac = between(BLUE1, BLUE2, false, UDP, &data);
    other_mac[6..12].copy_from_slice(&BLUE3.mac);
    let from = |claimed: Guest, ip6| {
        let (ethertype, packet) = ip(claimed.address(ip6), BLUE2.address(ip6), UDP, &data);
        frame(BLUE2.mac, BLUE1.mac, ethertype, &packet)
    };
    let to_mac = |mac, to: Guest| {
        let (ethertype, packet) = ip(BLUE1.address(false), to.address(false), UDP, &data);
        frame(mac, BLUE1.mac, ethertype, &packet)
    };
    let mut arp_other_mac = arp(BROADCAST, BLUE1, 2, BLUE1.v4, BLUE2.v4);
    arp_other_mac[22..28].copy_from_slice(&BLUE3.mac);
    let cases: Vec<(&str, Vec<u8>, DropReason)> = vec![
        ("another's MAC", other_mac, SpoofedMac),
        ("a neighbour's IPv4", from(BLUE3, false), SpoofedSource),
        ("a neighbour's IPv6", from(BLUE3, true), SpoofedSource),
        ("another network's IPv4", from(RED1, false), SpoofedSource),
        (
            "ARP: another's address",
            arp(BROADCAST, BLUE1, 2, BLUE3.v4, BLUE2.v4),
            SpoofedNeighbour,
        ),
        ("ARP: another's MAC", arp_other_mac, SpoofedNeighbour),
        (
            "ND: another's address",
            advertisement(BLUE1, BLUE1, BLUE3, BLUE1.mac),
            SpoofedNeighbour,
        ),
        (
            "ND: another's MAC",
            advertisement(BLUE1, BLUE1, BLUE1, BLUE3.mac),
            SpoofedNeighbour,
        ),
        ("to another network's MAC", to_mac(RED2.mac, RED2), NoEndpoint),
        (
            "to an address that its MAC has not",
            to_mac(BLUE2.mac, BLUE3),
            DestinationMismatch,
        ),
        (
            "to an undeclared MAC with a declared address",
            to_mac([2, 9, 9, 9, 9, 9], BLUE2),
            DestinationMismatch,
        ),
    ];
    for (what, frame, reason) in cases {
        let before = host.dropped(reason);
        host.guest_sends(BLUE1, &frame);
        assert_eq!(host.dropped(reason), before + 1, "{what}: {:?}", host.outcomes());
        assert!(
            host.on_wire().is_empty() && host.at_guest(BLUE3).is_empty(),
            "{what}"
        );
    }
    assert!(
        host.outcomes()
            .iter()
            .all(|(outcome, _)| outcome.class() == "dropped")
    );
    host.assert_accounted();
}

#[test]
fn the_wire_speaks_for_no_guest_of_this_host_nor_for_addresses_of_others() {
    let (policy, options) = (policy(), Options::default());
    let mut host = Host::new(&policy, 1, &options);
    let name = |source: Guest, mac| {
        let (ethertype, packet) = ip(
            source.address(false),
            BLUE2.address(false),
            UDP,
            &udp(9, 53, b"name"),
        );
        frame(BLUE2.mac, mac, ethertype, &packet)
    };
    let mut to_h1 = name(BLUE1, BLUE1.mac);
    to_h1[..6].copy_from_slice(&BLUE3.mac);
    let cases: Vec<(&str, Vec<u8>, DropReason)> = vec![
        ("this host's own guest", name(BLUE2, BLUE2.mac), WrongHost),
        (
            "an undeclared MAC with a guest's address",
            name(BLUE1, [2, 9, 9, 9, 9, 9]),
            SpoofedSource,
        ),
        (
            "one guest's MAC with another's address",
            name(BLUE3, BLUE1.mac),
            SpoofedSource,
        ),
        (
            "ARP for another's address",
            arp(BROADCAST, BLUE1, 2, BLUE3.v4, BLUE2.v4),
            SpoofedNeighbour,
        ),
        ("a packet for another host's guest", to_h1, DestinationMismatch),
    ];
    for (what, frame, reason) in cases {
        let before = host.dropped(reason);
        host.wire_brings(0, &frame);
        assert_eq!(host.dropped(reason), before + 1, "{what}: {:?}", host.outcomes());
        assert!(host.at_guest(BLUE2).is_empty(), "{what}");
    }
    // The same from whom it may come.
    host.wire_brings(0, &name(BLUE1, BLUE1.mac));
    assert_eq!(host.at_guest(BLUE2).len(), 1);
    host.assert_accounted();
}
