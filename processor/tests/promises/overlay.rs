//! Overlay networks: a frame arrives as it was, in its own network and no other, from the host that may speak for its sender.

use guestseal::path::outcome::{DropReason, Outcome, SentAs};
use guestseal::wire::packet::{Fragment, Packet};
use guestseal::wire::{checksum, esp, geneve, vxlan};
use guestseal_rules::model::{Policy, Vni};

use crate::frames::*;
use crate::host::{Host, Options, host_mac, overlay_with};

/// The red tenant's guests have the blue ones' MACs and addresses.
const RED1: Guest = Guest { id: "red-1", ..BLUE1 };
const RED2: Guest = Guest { id: "red-2", ..BLUE2 };
const NOTHING: Vec<Vec<u8>> = Vec::new();

const BLUE_VNI: u32 = 7001;

/// Both tenants in networks of this type.
fn both(kind: &str) -> Policy {
    overlay_with(
        "type: vxlan, vni: 7001}\n  - {name: red, type: geneve,",
        &format!("type: {kind}, vni: 7001}}\n  - {{name: red, type: {kind},"),
    )
}

fn hosts(policy: &Policy, options: &Options) -> (Host, Host) {
    (Host::new(policy, 0, options), Host::new(policy, 1, options))
}

fn vni(number: u32) -> Vni {
    Vni::new(number).unwrap()
}

/// A bare packet of a VTEP.
fn bare(outer: (&str, &str), port: u16, header: &[u8], frame: &[u8]) -> Vec<u8> {
    let datagram = udp(0xc001, port, &[header, frame].concat());
    let (ethertype, packet) = ip(outer.0.parse().unwrap(), outer.1.parse().unwrap(), UDP, &datagram);
    crate::frames::frame(host_mac(0).0, host_mac(1).0, ethertype, &packet)
}

#[test]
fn any_size_in_any_form_arrives_as_it_was() {
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for ip6 in [false, true] {
        for length in (0..70).chain([255, 256, 1000, 1300]) {
            let data: Vec<u8> = (0..length).map(|place| place as u8).collect();
            // Encrypted, authenticated under AES-128, and bare.
            for port in [4001, 514, 53] {
                frames.push(between(BLUE1, BLUE2, ip6, UDP, &udp(4000, port, &data)));
            }
        }
    }
    for kind in ["vxlan", "geneve"] {
        let policy = both(kind);
        for (tunnel_over_ip6, in_udp, esn) in [
            (false, false, true),
            (true, false, false),
            (false, true, false),
            (true, true, true),
        ] {
            let options = Options {
                tunnel_over_ip6,
                in_udp,
                esn,
                ..Options::default()
            };
            let (mut one, mut two) = hosts(&policy, &options);
            for frame in &frames {
                one.guest_sends(BLUE1, frame);
                let wire = one.on_wire();
                assert_eq!(wire.len(), 1, "{:?}", one.outcomes());
                let outer = Packet::parse(&wire[0]).expect("a right IP packet");
                assert_eq!(usize::from(outer.end), wire[0].len());
                two.wire_brings(0, &wire[0]);
                assert_eq!(
                    two.at_guest(BLUE2),
                    std::slice::from_ref(frame),
                    "{:?}",
                    two.outcomes()
                );
            }
            let third = frames.len() as u64 / 3;
            for sent_as in [SentAs::Encrypted, SentAs::Authenticated, SentAs::Plaintext] {
                assert_eq!(one.count(Outcome::Sent(sent_as)), third);
            }
            one.assert_accounted();
            two.assert_accounted();
        }
    }
}

#[test]
fn the_bare_packet_is_the_rfcs() {
    for (kind, port, header) in [
        ("vxlan", vxlan::PORT, vxlan::header(vni(BLUE_VNI))),
        ("geneve", geneve::PORT, geneve::header(vni(BLUE_VNI))),
    ] {
        let mut one = Host::new(&both(kind), 0, &Options::default());
        let frame = between(BLUE1, BLUE2, false, UDP, &udp(4000, 53, b"who is"));
        one.guest_sends(BLUE1, &frame);
        let wire = one.on_wire();
        let outer = Packet::parse(&wire[0]).unwrap();
        assert_eq!(
            (outer.source.to_string(), outer.destination.to_string()),
            ("192.0.2.1".into(), "192.0.2.2".into())
        );
        assert_eq!(wire[0][22], 64, "TTL");
        let (source, destination) = outer.ports.unwrap();
        assert!(source >= 0xc000 && destination == port, "{source} {destination}");
        assert_eq!(wire[0][42..50], header);
        assert_eq!(wire[0][50..], frame);
    }
}

#[test]
fn flows_are_told_apart_by_the_source_port_and_fragments_are_not() {
    let mut one = Host::new(&both("vxlan"), 0, &Options::default());
    let mut port_of = |frame: Vec<u8>| {
        one.guest_sends(BLUE1, &frame);
        let wire = one.on_wire();
        Packet::parse(&wire[0]).unwrap().ports.unwrap().0
    };
    for ip6 in [false, true] {
        let ports: std::collections::HashSet<u16> = (0..200)
            .map(|flow| port_of(between(BLUE1, BLUE2, ip6, UDP, &udp(4000 + flow, 53, b""))))
            .collect();
        assert!(ports.len() > 180, "{} source ports for 200 flows", ports.len());
    }
    let again = between(BLUE1, BLUE2, false, UDP, &udp(4000, 53, b"other"));
    let first = port_of(between(BLUE1, BLUE2, false, UDP, &udp(4000, 53, b"one")));
    assert_eq!(port_of(again), first);
}

#[test]
fn esp_in_udp_has_a_source_port_for_each_sa() {
    let policy = both("vxlan");
    let options = Options {
        in_udp: true,
        ..Options::default()
    };
    let (mut one, mut two) = hosts(&policy, &options);
    let mut ports = std::collections::HashSet::new();
    for (from, to) in [(BLUE1, BLUE2), (RED1, RED2)] {
        for flow in 0..20 {
            one.guest_sends(from, &between(from, to, false, UDP, &udp(flow, 9, b"")));
            let wire = one.on_wire();
            let outer = Packet::parse(&wire[0]).unwrap();
            let (source, destination) = outer.ports.unwrap();
            assert_eq!(destination, esp::UDP_PORT);
            assert_eq!(wire[0][40..42], [0, 0], "no checksum (RFC 3948 2.1)");
            ports.insert(source);
            two.wire_brings(0, &wire[0]);
            assert_eq!(two.at_guest(to).len(), 1, "{:?}", two.outcomes());
        }
    }
    assert_eq!(ports.len(), 2);
    // IKE's marker and keepalives (RFC 3948 2.2, 2.3) are no ESP.
    for payload in [vec![0; 60], vec![0xff]] {
        let (ethertype, packet) = ip(
            "192.0.2.1".parse().unwrap(),
            "192.0.2.2".parse().unwrap(),
            UDP,
            &udp(4500, 4500, &payload),
        );
        two.wire_brings(0, &frame(host_mac(1).0, host_mac(0).0, ethertype, &packet));
    }
    assert_eq!(
        two.dropped(DropReason::UnknownSpi) + two.dropped(DropReason::BadEsp),
        2
    );
    two.assert_accounted();
}

/// RFC 6040: what goes out has the guest's code point, what comes in hears of congestion.
#[test]
fn congestion_is_heard_of() {
    let policy = both("vxlan");
    let with_class = |class: u8, port: u16, ip6: bool| {
        let mut frame = between(BLUE1, BLUE2, ip6, UDP, &udp(4000, port, b"ecn"));
        if ip6 {
            frame[14] = 0x60 | class >> 4;
            frame[15] = class << 4;
        } else {
            frame[15] = class;
            fix_checksum(&mut frame);
        }
        frame
    };
    for ip6 in [false, true] {
        for port in [53, 4001] {
            let (mut one, mut two) = hosts(&policy, &Options::default());
            for inner in 0..4u8 {
                one.guest_sends(BLUE1, &with_class(0xb8 | inner, port, ip6));
                let mut wire = one.on_wire().remove(0);
                assert_eq!(wire[15], 0xb8 | inner, "outbound: DSCP and ECN are the guest's");
                wire[15] |= 3;
                fix_checksum(&mut wire);
                two.wire_brings(0, &wire);
                let expected = match inner {
                    0 => NOTHING,
                    _ => vec![with_class(0xb8 | 3, port, ip6)],
                };
                assert_eq!(two.at_guest(BLUE2), expected, "inner {inner}, port {port}");
            }
            assert_eq!(two.dropped(DropReason::CongestionUnheard), 1);
        }
    }
}

fn fix_checksum(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = checksum::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn neighbours_on_one_host_never_meet_the_wire() {
    let (mut one, _) = hosts(&both("geneve"), &Options::default());
    let frame = between(BLUE1, BLUE3, true, UDP, &udp(1, 2, b"local"));
    one.guest_sends(BLUE1, &frame);
    assert_eq!((one.on_wire(), one.at_guest(BLUE3)), (NOTHING, vec![frame]));
    one.guest_sends(BLUE1, &between(BLUE1, BLUE3, false, TCP, &tcp(1, 23, SYN, b"")));
    assert_eq!((one.on_wire(), one.at_guest(BLUE3)), (NOTHING, NOTHING));
    one.assert_accounted();
}

/// Fragments and extension headers are the guest's own business within an overlay; a rule that needs ports is not escaped.
#[test]
fn fragments_go_along_and_escape_no_rule() {
    let policy = overlay_with(
        "  - {name: names, from: {network: blue}, to: {network: blue}, protocol: udp, ports: [53], action: plaintext}\n",
        "",
    );
    let (mut one, mut two) = hosts(&policy, &Options::default());
    let first = fragment(BLUE1, BLUE2, 1, 0x2000, &[8, 0, 0, 0, 0, 0, 0, 0]);
    let later = fragment(BLUE1, BLUE2, 1, 1, &[7; 16]);
    for frame in [&first, &later] {
        assert_ne!(Packet::parse(frame).unwrap().fragment, Fragment::Whole);
        one.guest_sends(BLUE1, frame);
        let wire = one.on_wire();
        assert_eq!(wire.len(), 1, "{:?}", one.outcomes());
        two.wire_brings(0, &wire[0]);
        assert_eq!(two.at_guest(BLUE2), std::slice::from_ref(frame));
    }
    for protocol in [UDP, TCP] {
        one.guest_sends(BLUE1, &fragment(BLUE1, BLUE2, protocol, 100, &[7; 16]));
    }
    assert_eq!(one.on_wire(), NOTHING);
    assert_eq!(one.dropped(DropReason::FragmentNeedsPorts), 2);
}

#[test]
fn tags_and_extension_headers_go_along() {
    let policy = both("vxlan");
    let (mut one, mut two) = hosts(&policy, &Options::default());
    let tagged = |tags: &[u16], port| {
        let whole = between(BLUE1, BLUE2, false, UDP, &udp(4000, port, b"tagged"));
        let mut frame = whole[..12].to_vec();
        for tag in tags {
            frame.extend([0x81, 0]);
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(&whole[12..]);
        frame
    };
    // Destination options in front of UDP.
    let mut behind_options = vec![UDP, 0, 1, 4, 0, 0, 0, 0];
    behind_options.extend(udp(4000, 4001, b"options"));
    for (frame, sent_as) in [
        (tagged(&[10], 4001), SentAs::Encrypted),
        (tagged(&[10, 20], 514), SentAs::Authenticated),
        (tagged(&[10], 53), SentAs::Plaintext),
        (
            between(BLUE1, BLUE2, true, 60, &behind_options),
            SentAs::Encrypted,
        ),
    ] {
        let before = one.count(Outcome::Sent(sent_as));
        one.guest_sends(BLUE1, &frame);
        let wire = one.on_wire();
        assert_eq!(
            one.count(Outcome::Sent(sent_as)),
            before + 1,
            "{:?}",
            one.outcomes()
        );
        two.wire_brings(0, &wire[0]);
        assert_eq!(two.at_guest(BLUE2), [frame]);
    }
    // The port that is forbidden is found behind tags and options, too.
    let mut to_telnet = vec![TCP, 0, 1, 4, 0, 0, 0, 0];
    to_telnet.extend(tcp(4000, 23, SYN, b""));
    one.guest_sends(BLUE1, &between(BLUE1, BLUE2, true, 60, &to_telnet));
    assert_eq!((one.on_wire(), one.dropped(DropReason::RuleDrops)), (NOTHING, 1));
}

#[test]
fn a_vtep_speaks_for_its_own_guests_only() {
    let policy = both("vxlan");
    let header = vxlan::header(vni(BLUE_VNI));
    let name = |from: Guest, to: Guest| between(from, to, false, UDP, &udp(4000, 53, b"name"));
    let ends = ("192.0.2.2", "192.0.2.1");
    let mut spoofed = name(BLUE2, BLUE1);
    spoofed[26..30].copy_from_slice(&BLUE3.v4);
    fix_checksum(&mut spoofed);
    let unknown = Guest {
        mac: [2, 9, 9, 9, 9, 9],
        ..BLUE2
    };
    let nobody = Guest {
        mac: [2, 9, 9, 9, 9, 8],
        ..BLUE1
    };
    let mut cut = bare(ends, vxlan::PORT, &header, &name(BLUE2, BLUE1));
    cut[38..40].copy_from_slice(&500u16.to_be_bytes());
    let outer_fragment = {
        let mut packet = bare(ends, vxlan::PORT, &header, &name(BLUE2, BLUE1));
        packet[20] = 0x20;
        fix_checksum(&mut packet);
        packet
    };
    let cases: Vec<(&str, Vec<u8>, DropReason)> = vec![
        (
            "this host's own guest",
            bare(ends, vxlan::PORT, &header, &name(BLUE3, BLUE1)),
            DropReason::WrongHost,
        ),
        (
            "from an address of no host",
            bare(("192.0.2.9", ends.1), vxlan::PORT, &header, &name(BLUE2, BLUE1)),
            DropReason::WrongHost,
        ),
        (
            "from this host's own address",
            bare((ends.1, ends.1), vxlan::PORT, &header, &name(BLUE2, BLUE1)),
            DropReason::WrongHost,
        ),
        (
            "another guest's address",
            bare(ends, vxlan::PORT, &header, &spoofed),
            DropReason::SpoofedSource,
        ),
        (
            "a MAC that nobody declared",
            bare(ends, vxlan::PORT, &header, &name(unknown, BLUE1)),
            DropReason::NoEndpoint,
        ),
        (
            "for a guest of another host",
            bare(ends, vxlan::PORT, &header, &name(BLUE2, BLUE2)),
            DropReason::NotOurs,
        ),
        (
            "for a MAC that nobody declared",
            bare(ends, vxlan::PORT, &header, &name(BLUE2, nobody)),
            DropReason::DestinationMismatch,
        ),
        (
            "a VNI of no network",
            bare(ends, vxlan::PORT, &vxlan::header(vni(9)), &name(BLUE2, BLUE1)),
            DropReason::WrongNetwork,
        ),
        (
            "Geneve for a network of VXLAN",
            bare(
                ends,
                geneve::PORT,
                &geneve::header(vni(BLUE_VNI)),
                &name(BLUE2, BLUE1),
            ),
            DropReason::WrongNetwork,
        ),
        (
            "without its VNI flag",
            bare(ends, vxlan::PORT, &[0; 8], &name(BLUE2, BLUE1)),
            DropReason::BadEncapsulation,
        ),
        (
            "no frame",
            bare(ends, vxlan::PORT, &header, &[1; 13]),
            DropReason::Truncated,
        ),
        ("a datagram that is cut", cut, DropReason::BadEncapsulation),
        ("a fragment", outer_fragment, DropReason::BadEncapsulation),
        (
            "bare where the rule seals",
            bare(
                ends,
                vxlan::PORT,
                &header,
                &between(BLUE2, BLUE1, false, UDP, &udp(1, 2, b"")),
            ),
            DropReason::RuleWantsSealed,
        ),
    ];
    let mut host = Host::new(&policy, 0, &Options::default());
    for (what, frame, reason) in cases {
        let before = host.dropped(reason);
        host.wire_brings(0, &frame);
        assert_eq!(host.dropped(reason), before + 1, "{what}: {:?}", host.outcomes());
        for guest in [BLUE1, BLUE3, RED1] {
            assert_eq!(host.at_guest(guest), NOTHING, "{what}");
        }
    }
    host.wire_brings(0, &bare(ends, vxlan::PORT, &header, &name(BLUE2, BLUE1)));
    assert_eq!(host.at_guest(BLUE1), [name(BLUE2, BLUE1)]);
    host.assert_accounted();
}

/// A key of one network opens nothing for another, whatever the VNI inside says.
#[test]
fn the_vni_inside_is_the_sas_networks() {
    let policy = both("vxlan");
    // The sender has the two tenants' VNIs exchanged, but the same keys.
    let exchanged = overlay_with(
        "vni: 7001}\n  - {name: red, type: geneve, vni: 7002}",
        "vni: 7002}\n  - {name: red, type: vxlan, vni: 7001}",
    );
    let mut one = Host::new(&exchanged, 0, &Options::default());
    let mut two = Host::new(&policy, 1, &Options::default());
    one.guest_sends(BLUE1, &between(BLUE1, BLUE2, false, UDP, &udp(1, 2, b"blue")));
    let wire = one.on_wire();
    two.wire_brings(0, &wire[0]);
    assert_eq!(two.dropped(DropReason::WrongNetwork), 1, "{:?}", two.outcomes());
    assert_eq!((two.at_guest(BLUE2), two.at_guest(RED2)), (NOTHING, NOTHING));
    two.assert_accounted();
}

#[test]
fn geneve_options_that_need_not_be_understood_are_skipped() {
    let mut host = Host::new(&both("geneve"), 0, &Options::default());
    let name = between(BLUE2, BLUE1, false, UDP, &udp(4000, 53, b"name"));
    let mut header = geneve::header(vni(BLUE_VNI)).to_vec();
    header[0] = 2;
    header.extend([0x01, 0x02, 0x03, 1, 9, 9, 9, 9]);
    let ends = ("192.0.2.2", "192.0.2.1");
    host.wire_brings(0, &bare(ends, geneve::PORT, &header, &name));
    assert_eq!(
        host.at_guest(BLUE1),
        std::slice::from_ref(&name),
        "{:?}",
        host.outcomes()
    );
    header[1] = 0x40;
    host.wire_brings(0, &bare(ends, geneve::PORT, &header, &name));
    assert_eq!(host.dropped(DropReason::BadEncapsulation), 1);
}

#[test]
fn a_guest_of_a_flat_network_may_speak_vxlan_itself() {
    let policy = overlay_with("{name: red, type: geneve, vni: 7002}", "{name: red, type: flat}");
    let mut host = Host::new(&policy, 0, &Options::default());
    // To the red guest's own address: not this host's VTEP.
    let own = between(
        RED2,
        RED1,
        false,
        UDP,
        &udp(9, vxlan::PORT, &vxlan::header(vni(BLUE_VNI))),
    );
    host.wire_brings(0, &own);
    assert_eq!(
        host.dropped(DropReason::RuleWantsSealed),
        1,
        "{:?}",
        host.outcomes()
    );
}

#[test]
fn a_burst_to_two_hosts_goes_to_each() {
    let third = "  - {name: h3, addresses: [192.0.2.3, \"2001:db8::3\"]}\n\n# The VNI tells";
    let policy = overlay_with("# The VNI tells", third);
    let mut host = Host::new(&policy, 0, &Options::default());
    host.sees_moved(BLUE3, 2);
    let burst = [BLUE2, BLUE3, BLUE2, BLUE3].map(|to| between(BLUE1, to, false, UDP, &udp(9, 8080, b"data")));
    // The second time the flows are known.
    for _ in 0..2 {
        host.guest_sends_at_once(BLUE1, &burst);
        let hosts: Vec<[u8; 4]> = host
            .on_wire()
            .iter()
            .map(|sent| sent[30..34].try_into().unwrap())
            .collect();
        assert_eq!(hosts, [2, 3, 2, 3].map(|last| [192, 0, 2, last]));
    }
    host.assert_accounted();
}
