//! Every way in which an event acts on rules holds for the next packet of a flow that is known: tags, labels, logins, what is
//! known of a flow, and what happens to a neighbour; and is over with the next packet after it.

use guestseal::path::outcome::DropReason::RuleDrops;
use guestseal_rules::model::Policy;

use crate::frames::*;
use crate::host::{Host, Options, policy_with};

const DYNAMIC: &str = r#"groups:
  - {name: beside, when: {neighbour: {tag: {service: ids}}, not: {tag: {service: ids}}}}
templates:
  - name: visitor
    when: {login: {group: contractors}}
    rules:
      - {name: visited, from: subject, to: any, protocol: udp, ports: [9003], action: drop}
rules:
  - {name: tagged, from: {tag: {service: ids, severity: ">=50"}}, to: any, protocol: udp, ports: [9001], action: drop}
  - {name: labelled, from: {label: {stage: "froz*"}}, to: any, protocol: udp, ports: [9002], action: drop}
  - {name: told, from: any, to: any, protocol: udp, ports: [9004], flow: {user: mallory}, action: drop}
  - {name: beside, from: {group: beside}, to: any, protocol: udp, ports: [9005], action: drop}
"#;

/// What is changed, by which event, for which rule and port, and what undoes it.
const CASES: [(&str, u16, &str, &str); 5] = [
    (
        "tagged",
        9001,
        r#"{"guest": "blue-1", "tag": {"service": "ids", "name": "scan", "severity": 50}}"#,
        r#"{"guest": "blue-1", "clear": {"service": "ids", "name": "*"}}"#,
    ),
    (
        "labelled",
        9002,
        r#"{"guest": "blue-1", "label": {"name": "stage", "value": "frozen"}}"#,
        r#"{"guest": "blue-1", "label": {"name": "stage"}}"#,
    ),
    (
        "visited",
        9003,
        r#"{"guest": "blue-1", "login": {"user": "eva", "groups": ["contractors"]}}"#,
        r#"{"guest": "blue-1", "logout": {"user": "eva"}}"#,
    ),
    (
        "told",
        9004,
        r#"{"guest": "blue-1", "flow": {"protocol": 17, "local": "10.1.0.1:4000", "remote": "10.1.0.2:9004", "user": "mallory"}}"#,
        r#"{"guest": "blue-1", "flow-end": {"protocol": 17, "local": "10.1.0.1:4000", "remote": "10.1.0.2:9004"}}"#,
    ),
    (
        "beside",
        9005,
        r#"{"guest": "blue-2", "tag": {"service": "ids", "name": "scan", "severity": 1}}"#,
        r#"{"guest": "blue-2", "clear": {"service": "ids", "name": "*"}}"#,
    ),
];

fn policy() -> Policy {
    policy_with("rules:\n  # Guests find", &format!("{DYNAMIC}  # Guests find"))
}

#[test]
fn for_the_next_packet_of_a_known_flow_and_no_longer() {
    let options = Options::default();
    let policy = policy();
    let (mut one, mut two) = (Host::new(&policy, 0, &options), Host::new(&policy, 1, &options));
    for (rule, port, event, undone) in CASES {
        let there = between(BLUE1, BLUE2, false, UDP, &udp(4000, port, b"there"));
        let back = between(BLUE2, BLUE1, false, UDP, &udp(port, 4000, b"back"));
        let passes = |one: &mut Host, two: &mut Host| {
            for _ in 0..3 {
                one.guest_sends(BLUE1, &there);
                let wire = one.on_wire();
                assert_eq!(wire.len(), 1, "{rule}: {:?}", one.outcomes());
                two.wire_brings(0, &wire[0]);
                assert_eq!(two.at_guest(BLUE2), [&there[..]], "{rule}");
                two.guest_sends(BLUE2, &back);
                one.wire_brings(0, &two.on_wire()[0]);
                assert_eq!(one.at_guest(BLUE1), [&back[..]], "{rule}: {:?}", one.outcomes());
            }
        };
        passes(&mut one, &mut two);
        assert_eq!(one.met(rule), 0);
        // This host has heard of it, the other one has not.
        one.hears(event);
        let before = one.dropped(RuleDrops);
        one.guest_sends(BLUE1, &there);
        assert_eq!((one.on_wire().len(), one.met(rule)), (0, 1), "{rule}");
        two.guest_sends(BLUE2, &back);
        one.wire_brings(0, &two.on_wire()[0]);
        assert!(one.at_guest(BLUE1).is_empty(), "{rule}: what comes back");
        assert_eq!((one.met(rule), one.dropped(RuleDrops)), (2, before + 2), "{rule}");
        // Another port, and the other rules, are as they were.
        let other = between(BLUE1, BLUE2, false, UDP, &udp(4000, 9009, b"other"));
        one.guest_sends(BLUE1, &other);
        two.wire_brings(0, &one.on_wire()[0]);
        assert_eq!(two.at_guest(BLUE2), [other], "{rule}");
        one.hears(undone);
        passes(&mut one, &mut two);
        assert_eq!(one.met(rule), 2, "{rule} is over");
    }
    one.assert_accounted();
    two.assert_accounted();
}
