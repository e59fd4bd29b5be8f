//! What a rule seals never leaves readable, however the guest shapes it.

use guestseal::path::outcome::DropReason::{self, *};
use guestseal::wire::packet::{L3, Packet};
use proptest::prelude::*;

use crate::frames::*;
use crate::host::{Host, Options, policy};

const MARKER: &[u8] = b"MARKER-in-clear";

/// ESP, or what a rule of the demo lets through: ARP, neighbour discovery, names.
fn may_be_on_the_wire(frame: &[u8]) -> bool {
    let Ok(packet) = Packet::parse(frame) else {
        return false;
    };
    match packet.l3 {
        L3::Arp { .. } => true,
        L3::Ip => match packet.protocol {
            50 => true,
            58 => packet.icmp.is_some_and(|(kind, _)| kind == 135 || kind == 136),
            17 => packet.ports.is_some_and(|(from, to)| from == 53 || to == 53),
            _ => false,
        },
        L3::Other => false,
    }
}

fn readable(wire: &[Vec<u8>]) -> bool {
    wire.iter()
        .any(|frame| frame.windows(MARKER.len()).any(|window| window == MARKER))
}

#[test]
fn odd_shapes_are_dropped_not_leaked() {
    let policy = policy();
    let data = [MARKER, &[0; 1]].concat();
    let datagram = between(BLUE1, BLUE2, false, UDP, &udp(7, 7, &data));
    let tagged = [&datagram[..12], &[0x81, 0, 0, 5], &datagram[12..]].concat();
    let mut broadcast = datagram.clone();
    broadcast[..6].copy_from_slice(&BROADCAST);
    let (ethertype, hop) = ip(
        BLUE1.address(true),
        BLUE2.address(true),
        0,
        &[&[UDP, 0, 0, 0, 0, 0, 0, 0], &udp(7, 7, &data)[..]].concat(),
    );
    let extended = frame(BLUE2.mac, BLUE1.mac, ethertype, &hop);
    let undeclared = frame(BLUE2.mac, BLUE1.mac, 0x88b5, &data);
    let to_nobody = {
        let (ethertype, packet) = ip(BLUE1.address(false), [8, 8, 8, 8].into(), UDP, &udp(7, 7, &data));
        frame([2, 9, 9, 9, 9, 9], BLUE1.mac, ethertype, &packet)
    };
    let later = fragment(BLUE1, BLUE2, UDP, 100, &data);
    let first = fragment(BLUE1, BLUE2, UDP, 0x2000, &udp(7, 7, &data));
    let cases: Vec<(&str, bool, &Vec<u8>, Option<DropReason>)> = vec![
        (
            "a later fragment, which a port rule may mean",
            false,
            &later,
            Some(FragmentNeedsPorts),
        ),
        (
            "a first fragment in transport mode",
            false,
            &first,
            Some(FragmentInTransportMode),
        ),
        ("a first fragment in tunnel mode", true, &first, None),
        ("a broadcast", false, &broadcast, Some(NotSealable)),
        (
            "extension headers in transport mode",
            false,
            &extended,
            Some(ExtensionInTransportMode),
        ),
        ("extension headers in tunnel mode", true, &extended, None),
        ("a VLAN tag in tunnel mode", true, &tagged, Some(VlanInTunnelMode)),
        ("an unknown EtherType", false, &undeclared, Some(NotSealable)),
        (
            "an address that nobody has",
            false,
            &to_nobody,
            Some(NoSecurityAssociation),
        ),
    ];
    for (what, tunnel, frame, reason) in cases {
        let mut host = Host::new(
            &policy,
            0,
            &Options {
                tunnel,
                ..Options::default()
            },
        );
        host.guest_sends(BLUE1, frame);
        let wire = host.on_wire();
        assert!(
            !readable(&wire) && wire.iter().all(|frame| may_be_on_the_wire(frame)),
            "{what}: {wire:02x?}"
        );
        match reason {
            Some(reason) => assert_eq!(
                (host.dropped(reason), wire.len()),
                (1, 0),
                "{what}: {:?}",
                host.outcomes()
            ),
            None => assert_eq!(
                (host.encrypted(), wire.len()),
                (1, 1),
                "{what}: {:?}",
                host.outcomes()
            ),
        }
        host.assert_accounted();
    }
}

#[test]
fn a_rule_without_an_sa_drops() {
    let policy = policy();
    let selector = guestseal::sa::selector::Selector {
        protocol: Some(99),
        ..Default::default()
    };
    let mut host = Host::new(
        &policy,
        0,
        &Options {
            selector,
            ..Options::default()
        },
    );
    host.guest_sends(BLUE1, &between(BLUE1, BLUE2, false, UDP, &udp(7, 7, MARKER)));
    assert_eq!(
        (host.on_wire().len(), host.dropped(NoSecurityAssociation)),
        (0, 1)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any protocol, ports, flags, fragment field, tags and addresses.
    #[test]
    fn nothing_readable_but_by_rule(
        protocol in prop::sample::select(vec![1u8, 6, 17, 47, 50, 58, 132, 255]),
        ports in prop::sample::select(vec![(7u16, 7u16), (25, 9), (9, 25), (8080, 9), (9, 23), (514, 9), (1, 54)]),
        flags in any::<u8>(),
        field in prop::sample::select(vec![0u16, 0x2000, 1, 100, 0x2064, 0x4000, 0x8000]),
        tags in 0usize..4,
        to in prop::sample::select(vec![BLUE2.mac, BLUE3.mac, RED2.mac, BROADCAST, [0x33, 0x33, 0, 0, 0, 1], [2, 9, 9, 9, 9, 9]]),
        destination in prop::sample::select(GUESTS.to_vec()),
        tunnel in any::<bool>(),
    ) {
        let policy = policy();
        let mut host = Host::new(&policy, 0, &Options { tunnel, ..Options::default() });
        let payload = match protocol {
            6 => tcp(ports.0, ports.1, flags, MARKER),
            17 => udp(ports.0, ports.1, MARKER),
            _ => [&[flags, 0, 0, 0, 0, 0, 0, 0], MARKER].concat(),
        };
        let whole = fragment(BLUE1, destination, protocol, field, &payload);
        let mut frame = to.to_vec();
        frame.extend(BLUE1.mac);
        for _ in 0..tags {
            frame.extend([0x81, 0, 0, 9]);
        }
        frame.extend(&whole[12..]);
        host.guest_sends(BLUE1, &frame);
        let wire = host.on_wire();
        prop_assert!(wire.iter().all(|frame| may_be_on_the_wire(frame)), "{:02x?}", wire);
        // The rule for logs authenticates: readable by rule. ESP of the guest's own is sealed again.
        prop_assert!(!readable(&wire) || (protocol == 17 && ports.0 == 514), "{:02x?}", wire);
        host.assert_accounted();
    }
}
