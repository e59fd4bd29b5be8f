//! Sealing is switched on and off host by host: for a time a rule accepts both forms, and only that rule, and only those.

use guestseal::path::outcome::DropReason::*;
use guestseal_rules::classify::{Action, Protection};

use crate::frames::*;
use crate::host::{Host, Options, policy, policy_with};

#[test]
fn hosts_change_one_by_one_and_lose_nothing() {
    let (sealing, plain) = (
        policy(),
        policy_with("action: encrypt, key: blue-any}", "action: plaintext}"),
    );
    let options = Options::default();
    let (mut one, mut two) = (Host::new(&plain, 0, &options), Host::new(&sealing, 1, &options));
    let seal = |id: &str, protection| Action::Seal {
        protection,
        key: sealing.key(id).unwrap(),
    };
    let to_two = between(BLUE1, BLUE2, false, UDP, &udp(9, 9, b"in plaintext"));
    let to_one = between(BLUE2, BLUE1, false, UDP, &udp(9, 9, b"sealed"));
    let exchange = |one: &mut Host, two: &mut Host| {
        one.guest_sends(BLUE1, &to_two);
        let out = one.on_wire();
        assert_eq!(out[0], to_two, "what a host sends is what its rule says");
        two.wire_brings(0, &out[0]);
        two.guest_sends(BLUE2, &to_one);
        let back = two.on_wire();
        assert_ne!(back[0], to_one);
        one.wire_brings(0, &back[0]);
        (two.at_guest(BLUE2), one.at_guest(BLUE1))
    };
    let nothing = (Vec::new(), Vec::new());
    assert_eq!(
        exchange(&mut one, &mut two),
        nothing,
        "each takes its own form only"
    );
    assert_eq!((one.dropped(KeyNotOfRule), two.dropped(RuleWantsSealed)), (1, 1));
    // Another key, or another protection, is another form.
    one.also_accepts("blue", &[seal("blue-mail", Protection::Encrypt)]);
    two.also_accepts("blue", &[seal("blue-any", Protection::Authenticate)]);
    assert_eq!(exchange(&mut one, &mut two), nothing);
    one.also_accepts("blue", &[seal("blue-any", Protection::Encrypt)]);
    two.also_accepts("blue", &[Action::Plaintext]);
    let both = (vec![to_two.clone()], vec![to_one.clone()]);
    assert_eq!(exchange(&mut one, &mut two), both);
    assert_eq!((one.in_second_form("blue"), two.in_second_form("blue")), (1, 1));
    // Another rule's traffic is held to that rule.
    let mail = between(BLUE1, BLUE2, false, TCP, &tcp(9, 25, SYN, b""));
    two.wire_brings(0, &mail);
    assert!(two.at_guest(BLUE2).is_empty());
    // It is over.
    one.also_accepts("blue", &[]);
    two.also_accepts("blue", &[]);
    assert_eq!(exchange(&mut one, &mut two), nothing);
    one.assert_accounted();
    two.assert_accounted();
}
