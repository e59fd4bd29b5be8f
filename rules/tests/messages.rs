//! Every message that is no file's: what is said of events, of policies that are too large, and beside policies that are right.

use std::fmt::Write;

use guestseal_rules::check::warnings;
use guestseal_rules::compile::TooLarge;
use guestseal_rules::containers::Refusal;
use guestseal_rules::event::Event;
use guestseal_rules::load::{Source, load_policy};
use guestseal_rules::model::Place;

const REFUSALS: [Refusal; 11] = [
    Refusal::UnknownGuest,
    Refusal::GuestAway,
    Refusal::UnknownContainer,
    Refusal::Duplicate,
    Refusal::Late,
    Refusal::Nothing,
    Refusal::TooMany,
    Refusal::OutOfRange,
    Refusal::NotItsFlow,
    Refusal::Pinned,
    Refusal::NotAHost,
];

#[test]
fn every_refusal_says_why() {
    let mut said = String::new();
    for (number, refusal) in REFUSALS.into_iter().enumerate() {
        // One that is new does not compile before it stands here and above.
        let place = match refusal {
            Refusal::UnknownGuest => 0,
            Refusal::GuestAway => 1,
            Refusal::UnknownContainer => 2,
            Refusal::Duplicate => 3,
            Refusal::Late => 4,
            Refusal::Nothing => 5,
            Refusal::TooMany => 6,
            Refusal::OutOfRange => 7,
            Refusal::NotItsFlow => 8,
            Refusal::Pinned => 9,
            Refusal::NotAHost => 10,
        };
        assert_eq!(number, place);
        let _ = writeln!(said, "{refusal:?}: {refusal}");
    }
    insta::assert_snapshot!("refusals", said);
}

#[test]
fn what_is_too_large_says_how_much_it_may_be() {
    let place = Place {
        file: "policy.yaml".to_owned(),
        line: 7,
        column: 5,
    };
    let rule = "web".to_owned();
    let all = [
        TooLarge::Alternatives {
            rule: rule.clone(),
            place: place.clone(),
            side: "from",
        },
        TooLarge::Entries {
            rule,
            place,
            its: 65_536,
        },
        TooLarge::Rules(5_000_000),
        TooLarge::Bytes { needed: 700 },
    ];
    let said: Vec<String> = all.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!("too_large", said.join("\n"));
}

/// An event in the words of the journal and of `explain`, or why it is none.
#[test]
fn every_event_has_its_words_and_every_mistake_in_one_is_named() {
    let mut said = String::new();
    for what in [
        r#""tag": {"service": "av", "name": "eicar", "severity": 90}"#,
        r#""tag": {"service": "av", "name": "eicar", "severity": 90, "lasts": "90s"}"#,
        r#""clear": {"service": "av", "name": "*"}"#,
        r#""login": {"user": "alice", "groups": ["admins"]}"#,
        r#""logout": {"user": "alice"}"#,
        r#""label": {"name": "tier", "value": "front"}"#,
        r#""label": {"name": "tier"}"#,
        r#""flow": {"protocol": 6, "local": "10.0.0.1:5", "remote": "[fd00::2]:80", "user": "alice"}"#,
        r#""flow-end": {"protocol": 6, "local": "10.0.0.1:5", "remote": "10.0.0.2:80"}"#,
        r#""pin": {"container": "quarantine"}"#,
        r#""unpin": {}"#,
        r#""transfer": {"container": "quarantine"}"#,
        r#""release": {}"#,
        // And what is none.
        r#""tag": {"service": "av", "name": "eicar"}"#,
        r#""tag": {"service": "av", "name": "eicar", "severity": 256}"#,
        r#""tag": {"service": "av", "name": "eicar", "severity": 90, "severe": true}"#,
        r#""tag": {"service": "av", "name": "eicar", "severity": 90, "lasts": "0s"}"#,
        r#""tag": {"service": "av", "name": "eicar", "severity": 90, "lasts": "long"}"#,
        r#""tag": {"service": "av", "name": "eicar", "severity": 90, "lasts": "400d"}"#,
        r#""flow": {"protocol": 6, "local": "10.0.0.1", "remote": "10.0.0.2:80"}"#,
        r#""tagged": {}"#,
        r#""time": "1969-12-31T23:59:59Z", "unpin": {}"#,
        r#""time": "yesterday", "unpin": {}"#,
    ] {
        let text = format!(r#"{{"guest": "web", {what}}}"#);
        let _ = match serde_json::from_str::<Event>(&text) {
            Ok(event) => {
                let again = serde_json::to_string(&event).unwrap();
                assert_eq!(serde_json::from_str::<Event>(&again).unwrap(), event, "{again}");
                writeln!(said, "{what}\n    {}", event.what)
            }
            Err(error) => writeln!(said, "{what}\n    no event: {error}"),
        };
    }
    insta::assert_snapshot!("event_words", said);
}

#[test]
fn a_rule_that_accepts_two_forms_is_named_as_long_as_it_does() {
    let text = "\
hosts: [{name: h1, address: 192.0.2.1}]
networks: [{name: blue}]
guests: [{id: web, host: h1, ports: [{interface: a, network: blue, mac: '02:00:00:00:00:01', addresses: [10.0.0.1]}]}]
keys: [{id: k}, {id: old}]
rules:
  - {name: both, from: any, to: any, action: encrypt, key: k, also-accept: {action: plaintext, until: '2026-12-01T12:00:00Z'}}
  - {name: keys, from: any, to: any, action: encrypt, key: k, also-accept: {action: encrypt, key: old, until: '2026-12-01T12:00:00Z'}}
";
    let source = Source {
        name: "policy.yaml".to_owned(),
        text: text.to_owned(),
    };
    let policy = load_policy(&[source]).unwrap();
    let said: Vec<String> = warnings(&policy).iter().map(ToString::to_string).collect();
    insta::assert_snapshot!("two_forms", said.join("\n"));
}
