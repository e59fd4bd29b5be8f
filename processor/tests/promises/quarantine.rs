//! What happens to a guest holds for its next packet: at its host and at its peers, for flows that are known already.

use guestseal::path::outcome::DropReason::*;
use guestseal_rules::classify::Action;
use guestseal_rules::model::Policy;

use crate::frames::*;
use crate::host::{Host, Options, policy, policy_with};

const INFECTED: &str = r#"{"guest": "blue-1", "tag": {"service": "av", "name": "eicar", "severity": 90}}"#;

fn hosts(policy: &Policy) -> (Host, Host) {
    let options = Options::default();
    (Host::new(policy, 0, &options), Host::new(policy, 1, &options))
}

#[test]
fn the_next_packet_of_a_known_flow_meets_the_new_rules() {
    let (mut one, _) = hosts(&policy());
    let web = between(BLUE1, BLUE2, false, TCP, &tcp(9, 8080, ACK, b"data"));
    for _ in 0..3 {
        one.guest_sends(BLUE1, &web);
    }
    assert_eq!((one.on_wire().len(), one.met("web")), (3, 3));
    one.hears(INFECTED);
    one.guest_sends(BLUE1, &web);
    assert!(one.on_wire().is_empty());
    assert_eq!((one.dropped(RuleDrops), one.met("nobody-out")), (1, 1));
    // To the remediation server, under its key.
    one.guest_sends(BLUE1, &between(BLUE1, BLUE2, false, TCP, &tcp(9, 8530, SYN, b"")));
    let wire = one.on_wire();
    let spi = u32::from_be_bytes(wire[0][34..38].try_into().unwrap());
    let remedy = crate::host::sas(&policy())
        .into_iter()
        .find(|sa| policy().keys[sa.key.index()].id == "blue-remedy" && sa.from == 0)
        .unwrap();
    assert_eq!(spi, remedy.spi);
    // Another guest of the same host is as it was.
    one.guest_sends(
        BLUE3,
        &between(BLUE3, BLUE2, false, TCP, &tcp(9, 8080, ACK, b"data")),
    );
    assert_eq!((one.on_wire().len(), one.met("web")), (1, 4));
    one.hears(r#"{"guest": "blue-1", "clear": {"service": "*", "name": "*"}}"#);
    one.hears(r#"{"guest": "blue-1", "release": {}}"#);
    one.guest_sends(BLUE1, &web);
    assert_eq!((one.on_wire().len(), one.met("web")), (1, 5), "it is back");
    one.assert_accounted();
}

#[test]
fn neither_a_neighbour_on_the_host_nor_the_wire_reaches_a_guest_in_quarantine() {
    let (mut one, mut two) = hosts(&policy());
    let from_neighbour = between(BLUE3, BLUE1, false, UDP, &udp(9, 9, b"local"));
    let from_peer = between(BLUE2, BLUE1, false, TCP, &tcp(8080, 9, ACK, b"reply"));
    one.guest_sends(BLUE3, &from_neighbour);
    two.guest_sends(BLUE2, &from_peer);
    for frame in two.on_wire() {
        one.wire_brings(0, &frame);
    }
    assert_eq!(one.at_guest(BLUE1).len(), 2);
    // The peer has not heard of it yet: what it seals under the old rule is no longer let in.
    one.hears(INFECTED);
    one.guest_sends(BLUE3, &from_neighbour);
    two.guest_sends(BLUE2, &from_peer);
    let wire = two.on_wire();
    assert_eq!(wire.len(), 1);
    one.wire_brings(0, &wire[0]);
    assert!(one.at_guest(BLUE1).is_empty());
    assert_eq!(
        (
            one.dropped(RuleDrops),
            one.met("nobody-out") + one.met("nobody-in")
        ),
        (2, 2)
    );
    // And when it has, it seals nothing for it.
    two.hears(INFECTED);
    two.guest_sends(BLUE2, &from_peer);
    assert!(two.on_wire().is_empty());
    one.assert_accounted();
    two.assert_accounted();
}

/// What is for a group is for each guest by itself: one that the rules keep the sender from gets no copy, from the wire or from a
/// neighbour, and everybody else gets theirs.
#[test]
fn a_guest_in_quarantine_gets_nothing_that_is_for_a_group() {
    let (mut one, mut two) = hosts(&policy());
    let everybody = Guest {
        mac: BROADCAST,
        v4: [10, 1, 0, 255],
        ..BLUE2
    };
    let from_neighbour = between(BLUE3, everybody, false, UDP, &udp(9, 53, b"local"));
    let from_peer = between(BLUE2, everybody, false, UDP, &udp(9, 53, b"wire"));
    two.guest_sends(BLUE2, &from_peer);
    let from_wire = two.on_wire().remove(0);
    for host in [true, false] {
        one.guest_sends(BLUE3, &from_neighbour);
        one.wire_brings(0, &from_wire);
        assert_eq!(one.on_wire(), std::slice::from_ref(&from_neighbour));
        assert_eq!(one.at_guest(BLUE3), std::slice::from_ref(&from_peer));
        let got = one.at_guest(BLUE1);
        if host {
            assert_eq!(got, [from_neighbour.clone(), from_peer.clone()]);
            one.hears(INFECTED);
        } else {
            assert_eq!(got, [] as [Vec<u8>; 0]);
        }
    }
    let met = one.met("nobody-out") + one.met("nobody-in");
    assert_eq!((one.dropped(RuleDrops), met), (2, 2));
    // Nobody else is left to hear it: the packet itself ends so.
    one.hears(&INFECTED.replace("blue-1", "blue-3"));
    one.wire_brings(0, &from_wire);
    assert_eq!((one.at_guest(BLUE1).len(), one.at_guest(BLUE3).len()), (0, 0));
    assert_eq!((one.dropped(RuleDrops), one.dropped(NoEndpoint)), (4, 0));
    one.assert_accounted();
    two.assert_accounted();
}

#[test]
fn a_watched_section_decides_nothing_and_is_counted() {
    let policy = policy_with(
        "rules:\n  # Guests find",
        "sections:\n  - {name: planned, mode: monitor}\n  - {name: general}\nrules:\n  # Guests find",
    );
    let mut policy = policy;
    // Another owner's file would say `section: planned`.
    let planned = policy
        .sections
        .iter()
        .position(|section| section.name == "planned")
        .unwrap();
    let rule = policy
        .rules
        .iter_mut()
        .find(|rule| rule.name == "telnet")
        .unwrap();
    rule.section = guestseal_rules::model::SectionIndex(planned as u16);
    rule.log = true;
    assert_eq!(rule.action, Action::Drop);
    let (mut one, _) = hosts(&policy);
    let telnet = between(BLUE1, BLUE2, false, TCP, &tcp(9, 23, SYN, b""));
    one.guest_sends(BLUE1, &telnet);
    one.guest_sends(BLUE1, &telnet);
    assert_eq!(one.on_wire().len(), 2, "what would be dropped goes on");
    assert_eq!((one.met("telnet"), one.met("blue")), (2, 2));
    let logged = one.logged();
    assert_eq!(logged.len(), 1, "one sample a flow");
    assert_eq!((logged[0].0.as_str(), logged[0].1.enforced), ("telnet", false));
    one.assert_accounted();
}
