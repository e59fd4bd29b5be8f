//! What arrives is held to the receiver's own rules: opened by the key that they name, from the host it may come from.

use guestseal::path::outcome::DropReason::{self, *};
use guestseal::sa::selector::Selector;
use guestseal_rules::model::Policy;

use crate::frames::*;
use crate::host::{Host, Options, policy, policy_with};

/// Sends a frame through a host that has other rules than the receiver; why the receiver drops it.
#[track_caller]
fn refused(senders: &Policy, frame: &[u8], reason: DropReason) {
    let options = Options::default();
    let (mut one, mut two) = (Host::new(senders, 0, &options), Host::new(&policy(), 1, &options));
    one.guest_sends(BLUE1, frame);
    let wire = one.on_wire();
    assert_eq!(wire.len(), 1, "{:?}", one.outcomes());
    two.wire_brings(0, &wire[0]);
    assert_eq!(two.dropped(reason), 1, "{:?}", two.outcomes());
    assert!(two.at_guest(BLUE2).is_empty());
    two.assert_accounted();
}

#[test]
fn another_rules_key_opens_but_does_not_admit() {
    let senders = policy_with(
        "ports: [25], action: encrypt, key: blue-mail",
        "ports: [25], action: encrypt, key: blue-web",
    );
    refused(
        &senders,
        &between(BLUE1, BLUE2, false, TCP, &tcp(9, 25, SYN, b"")),
        KeyNotOfRule,
    );
}

#[test]
fn a_rule_that_drops_admits_no_key() {
    let senders = policy_with(
        "ports: [23], action: drop",
        "ports: [23], action: encrypt, key: blue-any",
    );
    refused(
        &senders,
        &between(BLUE1, BLUE2, false, TCP, &tcp(9, 23, SYN, b"")),
        RuleDrops,
    );
}

#[test]
fn plaintext_is_delivered_only_where_the_rule_says_so() {
    let senders = policy_with(
        "network: blue}, action: encrypt, key: blue-any",
        "network: blue}, action: plaintext",
    );
    refused(
        &senders,
        &between(BLUE1, BLUE2, false, UDP, &udp(9, 9, b"plain")),
        RuleWantsSealed,
    );
}

#[test]
fn sealed_is_not_delivered_where_the_rule_says_plaintext() {
    let senders = policy_with(
        "ports: [53], action: plaintext",
        "ports: [53], action: encrypt, key: blue-any",
    );
    refused(
        &senders,
        &between(BLUE1, BLUE2, false, UDP, &udp(9, 53, b"name")),
        KeyNotOfRule,
    );
}

/// The first host may not speak for a guest that, as the receiver knows, lives elsewhere.
#[test]
fn a_host_speaks_only_for_its_own_guests() {
    // To the sender the two guests of the network have changed places: blue-3's name for an address of the second host.
    let senders = policy_with(
        "addresses: [10.1.0.1, \"fd00:1::1\"]",
        "addresses: [10.1.0.9, \"fd00:1::9\"]",
    );
    let spoofed = Guest {
        v4: [10, 1, 0, 9],
        ..BLUE1
    };
    refused(
        &senders,
        &between(spoofed, BLUE2, false, UDP, &udp(9, 9, b"who")),
        NoEndpoint,
    );
}

/// RFC 4301 5.2: selectors hold for what was opened, not only for what is sealed.
#[test]
fn selectors_are_checked_after_opening() {
    let policy = policy();
    let only = |port| Options {
        selector: Selector {
            protocol: Some(UDP),
            remote_ports: Some(port..=port),
            ..Selector::default()
        },
        ..Options::default()
    };
    // The sender's SA covers its remote port 7; seen from the receiver that is the local port.
    let receiver = Options {
        selector: Selector {
            protocol: Some(UDP),
            local_ports: Some(7..=7),
            ..Selector::default()
        },
        ..Options::default()
    };
    let (mut one, mut two) = (Host::new(&policy, 0, &only(7)), Host::new(&policy, 1, &receiver));
    one.guest_sends(BLUE1, &between(BLUE1, BLUE2, false, UDP, &udp(9, 7, b"covered")));
    one.guest_sends(
        BLUE1,
        &between(BLUE1, BLUE2, false, UDP, &udp(9, 8, b"not covered")),
    );
    assert_eq!(one.dropped(NoSecurityAssociation), 1);
    let wire = one.on_wire();
    assert_eq!(wire.len(), 1);
    two.wire_brings(0, &wire[0]);
    assert_eq!(two.at_guest(BLUE2).len(), 1, "{:?}", two.outcomes());

    let (mut one, mut two) = (Host::new(&policy, 0, &only(8)), Host::new(&policy, 1, &receiver));
    one.guest_sends(
        BLUE1,
        &between(BLUE1, BLUE2, false, UDP, &udp(9, 8, b"outside the receiver's")),
    );
    let wire = one.on_wire();
    two.wire_brings(0, &wire[0]);
    assert_eq!((two.at_guest(BLUE2).len(), two.dropped(SelectorMismatch)), (0, 1));
}
