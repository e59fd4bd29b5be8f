//! Every message for a wrong file, and that no bytes make the loader panic.

use proptest::prelude::*;

use super::*;
use crate::classify::{Action, Protection};
use crate::model::{GuestIndex, NetworkIndex, NetworkKind, Selector, Term};

/// A right policy, for cases that change one thing of it.
pub(super) const RIGHT: &str = "\
hosts:
  - {name: h1, addresses: [192.0.2.1, '2001:db8::1']}
  - {name: h2, address: 192.0.2.2}
networks:
  - {name: blue, type: flat}
guests:
  - {id: web, host: h1, labels: {tier: front}, ports: [{interface: gp1, network: blue, mac: '02:00:00:00:00:01', addresses: [10.0.0.1]}]}
  - {id: db, host: h2, ports: [{interface: gp1, network: blue, mac: '02:00:00:00:00:02', addresses: [10.0.0.2], router: true}]}
keys:
  - {id: k1, suite: aes-128-gcm}
rules:
  - {name: all, from: any, to: {network: blue}, action: encrypt, key: k1}
";

/// A right policy of what may happen to guests, read beside [`RIGHT`].
pub(super) const EVENTS: &str = "\
groups:
  - {name: front, addresses: [10.0.0.0/24, 'fd00::/64'], guests: [web], labels: {tier: front, stage: [live, test*]}, when: {tag: {service: av}}}
services:
  - {name: web, protocol: tcp, ports: [80, 8000-8080]}
  - {name: talk, match: [{protocol: udp, ports: [5060]}, {protocol: esp}]}
security-services: [av, ids]
containers:
  - {name: base, security-services: [av], transfers: [{name: bad, when: {tag: {service: av, severity: '>=70', age: '<1h', count: 2}}, to: held, priority: 1}]}
  - name: held
    parent: base
    quarantine: true
    release: {when: {not: {tag: {}}}, after: 10m}
    rules:
      - {name: held-web, from: members, to: [members, {cidr: 10.0.0.9}], service: [web, dns], action: encrypt, key: k1}
  - {name: cell, release: by-hand, transfers: [{name: out, when: {all: [{any: [{label: {tier: x}}]}, {neighbour: {container: held}}]}, to: base}]}
damping: {transfers: 3, within: 10m, hold: 30m}
templates:
  - name: visitor
    when: {login: {user: '*', group: admins}, flow: {user: root}}
    for: 1h
    rules:
      - {name: visit, from: subject, to: {not: subject}, protocol: tcp, action: drop}
sections:
  - {name: try, mode: monitor}
section: try
rules:
  - {name: marked, from: {group: front}, to: {tag: {name: x}}, dscp: ef, vlan: 7, flow: {user: root, group: g, application: a}, action: drop, log: true}
  - {name: pinged, from: {guest: [web, db], network: blue}, to: any, protocol: icmp, icmp-type: 3, icmp-code: 4, action: authenticate, key: k1, suite: aes-128-gcm}
";

fn source(name: &str, text: &str) -> Source {
    Source {
        name: name.into(),
        text: text.into(),
    }
}

fn load(text: &str) -> Result<Policy, FileErrors> {
    load_policy(&[source("policy.yaml", text)])
}

fn load_both(right: &str, events: &str) -> Result<Policy, FileErrors> {
    load_policy(&[source("policy.yaml", right), source("events.yaml", events)])
}

#[test]
fn a_right_file_is_read_as_it_is_written() {
    let policy = load(RIGHT).unwrap();
    assert_eq!(
        (policy.hosts.len(), policy.guests.len(), policy.ports.len()),
        (2, 2, 2)
    );
    assert_eq!(policy.ports[1].mac, [2, 0, 0, 0, 0, 2]);
    assert!(policy.ports[1].router && !policy.ports[0].router);
    assert_eq!(policy.guests[0].labels["tier"], "front");
    assert_eq!(policy.rules[0].place.to_string(), "policy.yaml:12:12");
    let Action::Seal { protection, key } = policy.rules[0].action else {
        panic!("{:?}", policy.rules[0].action)
    };
    assert_eq!(
        (protection, policy.keys[key.index()].id.as_str()),
        (Protection::Encrypt, "k1")
    );
}

#[test]
fn lists_of_several_files_are_put_together() {
    let (front, rules) = RIGHT.split_at(RIGHT.find("rules:").unwrap());
    let policy = load_policy(&[source("rules.yaml", rules), source("guests.yaml", front)]).unwrap();
    assert_eq!(policy, {
        let mut whole = load(RIGHT).unwrap();
        for guest in &mut whole.guests {
            guest.place.file = "guests.yaml".into();
        }
        whole.keys[0].place.file = "guests.yaml".into();
        whole.networks[0].place.file = "guests.yaml".into();
        whole.rules[0].place = policy.rules[0].place.clone();
        whole
    });
}

/// What is changed in the right files, and what is said then.
#[test]
fn every_mistake_is_named_with_its_place_and_what_was_expected() {
    let rule = "action: encrypt, key: k1";
    let selector = "to: {network: blue}";
    let of_right = [
        ("not YAML", "hosts:\n", "hosts: [\n"),
        ("unknown section", "keys:\n", "kyes:\n"),
        (
            "unknown field of a host",
            "address: 192.0.2.2",
            "adress: 192.0.2.2",
        ),
        (
            "unknown field of a guest",
            "labels: {tier: front}",
            "label: {tier: front}",
        ),
        ("unknown field of a port", "router: true", "routes: true"),
        ("no VLAN of a trunk", "router: true", "vlan: 4095"),
        ("unknown field of a rule", rule, "action: encrypt, keys: k1"),
        ("unknown field of a selector", selector, "to: {net: blue}"),
        (
            "a field twice",
            "address: 192.0.2.2",
            "address: 192.0.2.2, address: 192.0.2.3",
        ),
        ("a list where a word goes", "name: h1", "name: [h1]"),
        (
            "a word where a list goes",
            "addresses: [10.0.0.1]",
            "addresses: 10.0.0.1",
        ),
        ("missing field", "name: all, ", ""),
        ("unknown action", rule, "action: encrpyt, key: k1"),
        ("unknown suite", "aes-128-gcm", "aes-192-gcm"),
        ("unknown type of network", "type: flat", "type: round"),
        ("not an address", "192.0.2.2", "192.0.2.256"),
        ("a multicast address", "192.0.2.2", "224.0.0.1"),
        ("two addresses of one family", "'2001:db8::1'", "192.0.2.9"),
        ("an address of two hosts", "192.0.2.2", "192.0.2.1"),
        (
            "a second form that is none",
            "action: encrypt, key: k1}",
            "action: encrypt, key: k1, also-accept: {action: drop, until: '2026-12-01T12:00:00Z'}}",
        ),
        (
            "a second form that is the first",
            "action: encrypt, key: k1}",
            "action: encrypt, key: k1, also-accept: {action: encrypt, key: k1, until: '2026-12-01T12:00:00Z'}}",
        ),
        (
            "a second form without its key",
            "action: encrypt, key: k1}",
            "action: encrypt, key: k1, also-accept: {action: authenticate, until: '2026-12-01T12:00:00Z'}}",
        ),
        (
            "a second form without an end",
            "action: encrypt, key: k1}",
            "action: encrypt, key: k1, also-accept: {action: plaintext, until: soon}}",
        ),
        (
            "a copy of what is dropped",
            "rules:\n",
            "rules:\n  - {name: seen, from: any, to: any, action: drop, mirror: mon0}\n",
        ),
        (
            "a copy for what is no interface",
            "action: encrypt, key: k1}",
            "action: encrypt, key: k1, mirror: a-name-that-is-too-long}",
        ),
        ("no public key", "{name: h1, ", "{name: h1, public-key: 2f, "),
        (
            "three public keys",
            "{name: h1, ",
            "{name: h1, public-key: 00000000000000000000000000000000000000000000000000000000000000f1, public-keys: \
             [00000000000000000000000000000000000000000000000000000000000000f2, \
             00000000000000000000000000000000000000000000000000000000000000f3], ",
        ),
        (
            "a public key twice",
            "{name: h1, ",
            "{name: h1, public-keys: [00000000000000000000000000000000000000000000000000000000000000f1, \
             00000000000000000000000000000000000000000000000000000000000000f1], ",
        ),
        ("no address", ", address: 192.0.2.2", ""),
        ("a host twice", "name: h2", "name: h1"),
        (
            "a network twice",
            "  - {name: blue, type: flat}\n",
            "  - {name: blue}\n  - {name: blue}\n",
        ),
        ("a guest twice", "id: db", "id: web"),
        (
            "a key twice",
            "  - {id: k1, suite: aes-128-gcm}\n",
            "  - {id: k1}\n  - {id: k1}\n",
        ),
        (
            "a rule twice",
            "rules:\n",
            "rules:\n  - {name: all, from: any, to: any, action: drop}\n",
        ),
        ("a name with a space", "name: h2", "name: h 2"),
        ("an empty name of a rule", "name: all", "name: ''"),
        ("undeclared host", "host: h2", "host: h3"),
        (
            "undeclared network",
            "network: blue, mac: '02:00:00:00:00:02'",
            "network: bleu, mac: '02:00:00:00:00:02'",
        ),
        ("undeclared key", "key: k1", "key: k2"),
        (
            "undeclared network of a selector",
            selector,
            "to: {network: green}",
        ),
        ("undeclared guest of a selector", selector, "to: {guest: wen}"),
        ("not a MAC", "02:00:00:00:00:02", "02:00:00:00:00"),
        ("a group's MAC", "02:00:00:00:00:02", "03:00:00:00:00:02"),
        ("a MAC of two ports", "02:00:00:00:00:02", "02:00:00:00:00:01"),
        ("an address of two ports", "[10.0.0.2]", "[10.0.0.1]"),
        ("an interface of two ports", "host: h2, ports", "host: h1, ports"),
        (
            "not an interface",
            "interface: gp1",
            "interface: a-name-that-is-too-long",
        ),
        ("not a selector", "from: any", "from: all"),
        ("an empty selector", "from: any", "from: {}"),
        ("an empty list of selectors", "from: any", "from: []"),
        ("not a prefix", "from: any", "from: {cidr: 10.0.0.0/33}"),
        (
            "a prefix with bits behind it",
            "from: any",
            "from: {cidr: 10.0.0.1/24}",
        ),
        ("no key", ", key: k1", ""),
        ("a key too many", rule, "action: plaintext, key: k1"),
        ("not a protocol", rule, "protocol: tpc, action: drop"),
        ("not an EtherType", rule, "ethertype: 0x0100, action: drop"),
        ("not a port", rule, "protocol: tcp, ports: [70000], action: drop"),
        (
            "a range that runs backwards",
            rule,
            "protocol: tcp, ports: [90-80], action: drop",
        ),
        ("ports without a protocol", rule, "ports: [80], action: drop"),
        (
            "ports of a protocol that has none",
            rule,
            "protocol: icmp, ports: [80], action: drop",
        ),
        (
            "an ICMP type without ICMP",
            rule,
            "protocol: tcp, icmp-type: 8, action: drop",
        ),
        (
            "an ICMP type beyond a byte",
            rule,
            "protocol: icmp, icmp-type: 256, action: drop",
        ),
        (
            "ARP with a protocol",
            rule,
            "ethertype: arp, protocol: tcp, action: drop",
        ),
        (
            "an empty list of ports",
            rule,
            "protocol: tcp, ports: [], action: drop",
        ),
        ("a field without a value", rule, "protocol: , action: drop"),
        ("neither true nor false", "router: true", "router: yes"),
        (
            "a list without a value",
            "ports: [{interface: gp1, network: blue, mac: '02:00:00:00:00:02', addresses: [10.0.0.2], router: true}]",
            "ports: ",
        ),
        (
            "not a section of the file's",
            "rules:\n",
            "section: mail\nrules:\n",
        ),
        ("a uuid of two guests", "id: db", "id: db, uuid: web"),
        ("a uuid with a space", "id: db", "id: db, uuid: 'a b'"),
        ("a flat network with a VNI", "type: flat", "type: flat, vni: 5"),
        ("an overlay without a VNI", "type: flat", "type: vxlan"),
        ("a VNI of 25 bits", "type: flat", "type: geneve, vni: 16777216"),
        ("a VNI below zero", "type: flat", "type: geneve, vni: -1"),
        (
            "a VNI of two networks",
            "type: flat}",
            "type: vxlan, vni: 5}\n  - {name: red, type: vxlan, vni: 5}",
        ),
        ("an undeclared default key", "type: flat", "type: flat, key: k7"),
        (
            "a suite that is not the key's",
            rule,
            "action: encrypt, key: k1, suite: aes-256-gcm",
        ),
        (
            "a suite where nothing is sealed",
            rule,
            "action: drop, suite: aes-128-gcm",
        ),
        ("an unknown service", rule, "service: [dns, htpp], action: drop"),
        (
            "a service and a protocol",
            rule,
            "service: dns, protocol: tcp, action: drop",
        ),
        (
            "a service and ports",
            rule,
            "service: dns, ports: [80], action: drop",
        ),
        (
            "an ICMP code without a type",
            rule,
            "protocol: icmp, icmp-code: 1, action: drop",
        ),
        ("a DSCP of seven bits", rule, "dscp: 64, action: drop"),
        ("a DSCP of no class", rule, "dscp: af50, action: drop"),
        ("a DSCP of something else", rule, "dscp: d\u{e9}, action: drop"),
        ("a VLAN of 13 bits", rule, "vlan: 4095, action: drop"),
        ("ARP with a DSCP", rule, "ethertype: arp, dscp: 1, action: drop"),
        ("a flow that asks nothing", rule, "flow: {}, action: drop"),
        ("members of no container", "from: any", "from: members"),
        (
            "members of no container, in a list",
            "from: any",
            "from: [any, members]",
        ),
        ("the subject of no template", "from: any", "from: {not: subject}"),
        ("an undeclared group", "from: any", "from: {group: g}"),
        (
            "an undeclared container",
            "from: any",
            "from: {container: [default, held]}",
        ),
        ("an empty list of words", "from: any", "from: {guest: []}"),
        (
            "a number with a point",
            "from: any",
            "from: {label: {version: 1.10}}",
        ),
        (
            "a map where words go",
            "from: any",
            "from: {label: {version: {x: y}}}",
        ),
        ("no label", "from: any", "from: {network: blue, label: {}}"),
        ("a number that selects", "from: any", "from: 7"),
        ("a selector of too many alternatives", "from: any", "from: MANY"),
    ];
    let of_events = [
        (
            "a group twice",
            "services:\n",
            "  - {name: front, guests: []}\nservices:\n",
        ),
        ("a group of an unknown guest", "guests: [web]", "guests: [wed]"),
        ("a group of no prefix", "10.0.0.0/24", "10.0.0/24"),
        (
            "a group that says nothing",
            "services:\n",
            "  - {name: x}\nservices:\n",
        ),
        ("an unknown field of a group", "guests: [web]", "guest: [web]"),
        ("a service twice", "name: talk", "name: web"),
        (
            "a service that is nothing",
            "name: talk, match: [{protocol: udp, ports: [5060]}, {protocol: esp}]",
            "name: talk",
        ),
        (
            "a service of ports without a protocol",
            "protocol: tcp, ports: [80",
            "ports: [80",
        ),
        ("a service of no protocol", "protocol: udp", "protocol: upd"),
        ("a service of no ports", "5060", "x"),
        (
            "a service of ports of a protocol without",
            "protocol: udp",
            "protocol: icmp",
        ),
        ("an unknown field of a service", "match:", "matches:"),
        ("a security service twice", "[av, ids]", "[av, ids, av]"),
        (
            "an undeclared security service of a container",
            "security-services: [av],",
            "security-services: [avv],",
        ),
        (
            "an undeclared security service of a tag",
            "{service: av, severity",
            "{service: avv, severity",
        ),
        ("a container twice", "name: held\n", "name: base\n"),
        (
            "the default container twice",
            "name: base",
            "name: default, transfers: []}\n  - {name: default",
        ),
        ("a container in itself", "parent: base", "parent: held"),
        ("an undeclared parent", "parent: base", "parent: bsae"),
        ("an unknown field of a container", "parent: base", "in: base"),
        ("a transfer to where it is", "to: held", "to: base"),
        ("a transfer to nowhere", "to: held", "to: jail"),
        ("an unknown field of a transfer", "priority: 1", "prio: 1"),
        ("a priority that is no number", "priority: 1", "priority: high"),
        ("a release by a word", "release: by-hand", "release: by-foot"),
        ("a release by a number", "release: by-hand", "release: 5"),
        ("an unknown field of a release", "after: 10m", "for: 10m"),
        ("no duration", "after: 10m", "after: 10"),
        ("a duration of no unit", "after: 10m", "after: 10y"),
        ("a duration without a number", "after: 10m", "after: m"),
        (
            "a duration of too many digits",
            "after: 10m",
            "after: 99999999999999999999s",
        ),
        ("a duration that is too long", "after: 10m", "after: 367d"),
        (
            "a rule of a container about others",
            "from: members, to: [members, {cidr: 10.0.0.9}]",
            "from: any, to: [members, any]",
        ),
        (
            "a rule of a container about the subject",
            "from: members",
            "from: subject",
        ),
        ("no severity", "severity: '>=70'", "severity: 101"),
        ("no count", "count: 2", "count: 0"),
        ("no age", "age: '<1h'", "age: 1h"),
        ("no age at all", "age: '<1h'", "age: ''"),
        ("an age of no duration", "age: '<1h'", "age: '>x'"),
        ("an unknown field of a tag", "count: 2", "counts: 2"),
        (
            "a question that asks nothing",
            "{login: {user: '*', group: admins}, flow: {user: root}}",
            "{}",
        ),
        ("a list of no questions", "any: [{label: {tier: x}}]", "any: []"),
        (
            "a question of an unknown field",
            "flow: {user: root}",
            "flows: {user: root}",
        ),
        ("a login of an unknown field", "group: admins", "groups: admins"),
        ("a flow of an unknown field", "application: a", "app: a"),
        (
            "a flow of a guest that asks nothing",
            "flow: {user: root}}",
            "flow: {}}",
        ),
        (
            "a question of an undeclared container",
            "{container: held}",
            "{container: holding}",
        ),
        (
            "a neighbour's neighbour",
            "{container: held}",
            "{not: {neighbour: {container: held}}}",
        ),
        (
            "damping twice",
            "templates:",
            "damping: {transfers: 1, within: 1s, hold: 1s}\ntemplates:",
        ),
        ("damping without transfers", "transfers: 3", "transfers: 0"),
        ("damping in no time", "within: 10m", "within: 0s"),
        ("damping of no duration", "hold: 30m", "hold: long"),
        ("an unknown field of damping", "hold: 30m", "hold-for: 30m"),
        (
            "a template twice",
            "name: visitor",
            "name: visitor\n    when: {tag: {}}\n    rules: [{name: v, from: subject, to: any, action: drop}]\n  - name: visitor",
        ),
        ("a template for no time", "for: 1h", "for: 0s"),
        (
            "a template without rules",
            "    rules:\n      - {name: visit, from: subject, to: {not: subject}, protocol: tcp, action: drop}\n",
            "",
        ),
        (
            "a template of an empty list of rules",
            "rules:\n      - {name: visit, from: subject, to: {not: subject}, protocol: tcp, action: drop}\n",
            "rules: []\n",
        ),
        (
            "a rule of a template about others",
            "from: subject, to: {not: subject}",
            "from: any, to: {not: subject}",
        ),
        ("an unknown field of a template", "for: 1h", "lifetime: 1h"),
        (
            "a section twice",
            "mode: monitor}",
            "mode: monitor}\n  - {name: try}",
        ),
        (
            "a section that is there already",
            "name: try, mode",
            "name: containers, mode",
        ),
        ("an unknown mode", "mode: monitor", "mode: watch"),
        ("an unknown field of a section", "mode: monitor", "monitor: true"),
        ("an undeclared section", "section: try", "section: tri"),
        (
            "a rule of the name of a container's",
            "name: marked",
            "name: held-web",
        ),
    ];
    let many: Vec<String> = (0..257)
        .map(|number| format!("{{label: {{n: {number}}}}}"))
        .collect();
    let many = format!("[{}]", many.join(", "));
    let mut said = String::new();
    let cases = of_right.iter().map(|case| (RIGHT, case));
    for (text, (what, right, wrong)) in cases.chain(of_events.iter().map(|case| (EVENTS, case))) {
        assert!(text.contains(right), "{what}: the right file has no `{right}`");
        let changed = text.replacen(right, &wrong.replace("MANY", &many), 1);
        let loaded = if text == RIGHT {
            load(&changed)
        } else {
            load_both(RIGHT, &changed)
        };
        let errors = loaded.expect_err(what);
        assert!(!errors.0.is_empty());
        for error in &errors.0 {
            let place = &error.0.place;
            assert!(place.line > 0 && place.column > 0, "{what}: {error}");
        }
        said += &format!("# {what}: {wrong}\n{errors}\n\n");
    }
    insta::assert_snapshot!("messages", said);
}

#[test]
fn what_may_happen_is_read_as_it_is_written() {
    let policy = load_both(RIGHT, EVENTS).unwrap();
    insta::assert_debug_snapshot!(
        "events",
        (
            &policy.groups,
            &policy.services[..2],
            &policy.security_services,
            &policy.containers,
            &policy.damping,
            &policy.criteria,
            &policy.flow_tests,
            &policy.templates,
            &policy.sections,
            &policy.rules,
        )
    );
}

#[test]
fn an_overlay_is_read_with_its_key() {
    let text = RIGHT
        .replace("type: flat", "type: geneve, vni: 77, key: k1")
        .replace("action: encrypt, key: k1", "action: encrypt");
    let policy = load(&text).unwrap();
    let NetworkKind::Geneve(vni) = policy.networks[0].kind else {
        panic!("{:?}", policy.networks[0]);
    };
    assert_eq!(vni.get(), 77);
    // The rule takes the key of the network that it is about.
    let key = policy.networks[0].default_key.unwrap();
    assert_eq!(
        policy.rules[0].action,
        Action::Seal {
            protection: Protection::Encrypt,
            key
        }
    );
    // Also if it lists its parties, but not if they are of several networks.
    let listed = text.replace(
        "to: {network: blue}",
        "to: [{network: blue, guest: web}, {network: blue, guest: db}]",
    );
    assert_eq!(load(&listed).unwrap().rules[0].action, policy.rules[0].action);
    let several = text
        .replace("guests:", "  - {name: red, type: flat}\nguests:")
        .replace("to: {network: blue}", "to: {network: [blue, red]}");
    let error = load(&several).unwrap_err().to_string();
    assert!(error.contains("names no key"), "{error}");
}

#[test]
fn several_values_of_a_field_are_a_choice() {
    let policy = load(&RIGHT.replace(
        "from: any",
        "from: {guest: [web, db], cidr: [10.0.0.0/24, fd00::/8]}",
    ))
    .unwrap();
    let Selector::OneOf(all) = &policy.rules[0].from else {
        panic!("{:?}", policy.rules[0].from);
    };
    assert_eq!(all.len(), 4);
    for one in all {
        let Selector::All(terms) = one else {
            panic!("{one:?}")
        };
        assert!(matches!(terms[..], [Term::Guest(_), Term::Cidr(_)]), "{terms:?}");
    }
    assert_eq!(
        all[3],
        Selector::All(vec![
            Term::Guest(GuestIndex(1)),
            Term::Cidr("fd00::/8".parse().unwrap())
        ])
    );
}

#[test]
fn words_that_look_like_something_else_stay_words() {
    let text = RIGHT
        .replace("labels: {tier: front}", "labels: {tier: yes, n: 007, t: true}")
        .replace("from: any", "from: {label: {tier: yes, n: [007, 12], t: true}}");
    let policy = load(&text).unwrap();
    let Selector::All(terms) = &policy.rules[0].from else {
        panic!("{:?}", policy.rules[0].from);
    };
    for term in terms {
        let Term::Label(test) = term else {
            panic!("{term:?}")
        };
        assert!(
            test.passes(policy.guests[0].labels.get(&test.name).map(String::as_str)),
            "{test:?}"
        );
    }
    assert_eq!(terms.len(), 3);
}

#[test]
fn the_order_of_rules_is_containers_from_the_inside_templates_sections() {
    let text = "\
containers:
  - {name: outer, release: by-hand, rules: [{name: outer, from: members, to: any, action: drop}]}
  - {name: inner, parent: outer, rules: [{name: inner, from: members, to: any, action: drop}]}
  - {name: default, rules: [{name: default, from: members, to: any, action: drop}]}
sections: [{name: first}, {name: general}]
section: first
rules: [{name: first, from: any, to: any, action: drop}]
";
    let templates = "\
rules: [{name: general, from: any, to: any, action: drop}]
templates: [{name: t, when: {tag: {}}, rules: [{name: template, from: subject, to: any, action: drop}]}]
";
    let policy = load_policy(&[source("general", templates), source("first", text)]).unwrap();
    let names: Vec<&str> = policy.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(
        names,
        ["inner", "outer", "default", "template", "first", "general"]
    );
    assert_eq!(policy.containers[0].name, "default");
}

/// What is nested so deep that a stack would not hold it is refused; what an operator writes is far from it.
#[test]
fn nesting_has_an_end() {
    let nested = |levels: usize, open: &str, inside: &str, close: &str| {
        format!("{}{inside}{}", open.repeat(levels), close.repeat(levels))
    };
    let question = |levels| {
        let when = nested(levels, "{not: ", "{tag: {}}", "}");
        format!("groups: [{{name: g, when: {when}}}]\n")
    };
    let selector = |levels, open: &str, close: &str| {
        let from = nested(levels, open, "any", close);
        format!("rules: [{{name: r, from: {from}, to: any, action: drop}}]\n")
    };
    assert!(load(&question(20)).is_ok());
    assert!(load(&selector(20, "[", "]")).is_ok());
    assert!(load(&selector(20, "{not: ", "}")).is_ok());
    for levels in [60, 10_000] {
        for text in [
            question(levels),
            selector(levels, "[", "]"),
            selector(levels, "{not: ", "}"),
        ] {
            let errors = load(&text).unwrap_err().to_string();
            assert!(errors.contains("nested too deep"), "{errors}");
        }
    }
    let containers = |levels: usize| {
        let each: String = (0..levels)
            .map(|level| match level {
                0 => "  - {name: c0}\n".to_owned(),
                level => format!("  - {{name: c{level}, parent: c{}}}\n", level - 1),
            })
            .collect();
        load(&format!("containers:\n{each}"))
    };
    assert!(containers(16).is_ok());
    let errors = containers(20).unwrap_err().to_string();
    assert!(errors.contains("\"c16\" is nested too deep"), "{errors}");
}

#[test]
fn numbers_have_an_end() {
    let errors = |text: String| load(&text).unwrap_err().to_string();
    let keys = |count: usize| -> String {
        let each: String = (0..count)
            .map(|number| format!("- {{id: k{number}}}\n"))
            .collect();
        format!("keys:\n{each}")
    };
    let said = errors(keys(65_540));
    assert_eq!(said, "policy.yaml:65537:8: too many keys: expected at most 65535");
    let asked: String = (0..65_537)
        .map(|number| {
            format!("- {{name: r{number}, from: any, to: any, flow: {{user: u{number}}}, action: drop}}\n")
        })
        .collect();
    let said = errors(format!("rules:\n{asked}"));
    assert!(
        said.ends_with("too many questions about flows: expected at most 65536"),
        "{said}"
    );
    let rules = "- {name: r, from: any, to: any, action: drop}\n".repeat(1 + (1 << 17));
    let said = errors(format!("rules:\n{rules}"));
    assert_eq!(
        said,
        "policy.yaml:131074:10: too many rules: expected at most 131072"
    );
}

/// A fleet: its guests, and a rule for every fifth of them.
fn fleet(guests: usize) -> String {
    use std::fmt::Write;
    let mut text = String::from("hosts: [{name: h, address: 192.0.2.1}]\nnetworks: [{name: n}]\nguests:\n");
    for number in 0..guests {
        let [.., a, b] = (number as u32).to_be_bytes();
        let address = std::net::Ipv4Addr::from(0x0a00_0001 + number as u32);
        writeln!(
            text,
            "- {{id: g{number}, host: h, ports: [{{interface: i{number}, network: n, mac: '02:00:00:{:02x}:{a:02x}:{b:02x}', addresses: [{address}]}}]}}",
            number >> 16
        )
        .unwrap();
    }
    text += "rules:\n";
    for number in (0..guests).step_by(5) {
        writeln!(
            text,
            "- {{name: r{number}, from: {{guest: g{number}}}, to: {{cidr: 10.0.0.0/8}}, service: https, action: drop}}"
        )
        .unwrap();
    }
    text
}

/// Eight times the guests take eight times as long, not sixty-four; by the fastest of three, since the machine has other work.
#[test]
fn a_fleet_loads_in_the_time_of_its_size() {
    let (small, large) = (fleet(1_000), fleet(8_000));
    let time = |text: &str| {
        let once = |_| {
            let begin = std::time::Instant::now();
            assert!(load(text).is_ok());
            begin.elapsed()
        };
        (0..3).map(once).min().unwrap()
    };
    let (small, large) = (time(&small), time(&large));
    assert!(large < small * 24, "{small:?} and {large:?}");
}

#[test]
fn so_many_mistakes_are_told_and_the_rest_counted() {
    let rules: String = (0..300)
        .map(|number| format!("- {{name: r{number}, from: {{guest: nobody}}, to: any, action: drop}}\n"))
        .collect();
    let errors = load(&format!("rules:\n{rules}")).unwrap_err();
    assert_eq!(errors.0.len(), 101);
    assert_eq!(
        errors.0[100].to_string(),
        "policy.yaml:102:30: from here on 200 more mistakes are not told"
    );
    // They share the text.
    assert!(std::sync::Arc::ptr_eq(
        &errors.0[0].0.source,
        &errors.0[99].0.source
    ));
}

#[test]
fn a_report_points_at_the_place() {
    let errors = load(&RIGHT.replace("host: h2", "host: h9")).unwrap_err();
    let error = &errors.0[0];
    let label = error.labels().unwrap().next().unwrap();
    assert_eq!(error.help().unwrap().to_string(), "did you mean \"h1\"?");
    let text = error
        .source_code()
        .unwrap()
        .read_span(label.inner(), 0, 0)
        .unwrap();
    assert_eq!(&text.data()[..2], b"h9");
}

#[test]
fn damping_is_said_in_one_file() {
    let right = format!("{RIGHT}damping: {{transfers: 3, within: 10m, hold: 30m}}\n");
    let errors = load_both(&right, EVENTS).unwrap_err().to_string();
    assert_eq!(
        errors,
        "events.yaml:16:10: damping is declared twice: expected it in one file"
    );
    let errors = load(&right.replace("transfers: 3", "transfers: few")).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "policy.yaml:13:22: expected a number from 0 to 4294967295"
    );
}

#[test]
fn independent_mistakes_are_told_together() {
    let text = RIGHT
        .replace("host: h2", "host: h9")
        .replace("key: k1", "key: k9")
        .replace("10.0.0.1]", "10.0.0.x]");
    let errors = load(&text).unwrap_err();
    assert_eq!(errors.0.len(), 3, "{errors}");
}

/// The policy files of a directory of examples; host files lie beside them.
pub(super) fn policy_files(directory: &std::path::Path) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let is_yaml = path.extension().is_some_and(|end| end == "yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        if is_yaml && !text.lines().any(|line| line.starts_with("host:")) {
            files.push((path.display().to_string(), text));
        }
    }
    files.sort();
    files
}

#[test]
fn the_examples_are_right_and_nothing_about_them_is_odd() {
    let mut found = 0;
    for directory in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap() {
        let files = policy_files(&directory.unwrap().path());
        let sources: Vec<Source> = files.iter().map(|(name, text)| source(name, text)).collect();
        let policy = load_policy(&sources).unwrap_or_else(|errors| panic!("{errors}"));
        let warnings = crate::check::warnings(&policy);
        // What no rule matches is dropped in the demo, and the demo shows it.
        let odd: Vec<_> = warnings
            .iter()
            .filter(|warning| !warning.message.contains("that no rule matches"))
            .collect();
        assert!(odd.is_empty(), "{odd:?}");
        found += 1;
    }
    assert!(found > 0);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,300}") {
        let _ = load(&text);
    }

    /// Any bytes over any part of a right file; the place of a mistake is within the file.
    #[test]
    fn any_damage_is_read_or_refused(at in 0usize..800, length in 0usize..20, text in "[ -~\\n]{0,20}") {
        let at = at.min(RIGHT.len());
        let end = (at + length).min(RIGHT.len());
        let damaged = format!("{}{text}{}", &RIGHT[..at], &RIGHT[end..]);
        if let Err(errors) = load(&damaged) {
            for error in errors.0 {
                let (offset, length) = error.0.span;
                prop_assert!(offset + length <= damaged.len(), "{}", error);
            }
        }
    }

    #[test]
    fn any_port_text_is_read_or_refused(text in "[0-9-]{0,12}") {
        if let Ok(range) = port_range(&text) {
            prop_assert!(range.start() <= range.end());
        }
    }
}

const BEFORE: &str = "\
hosts: [{name: h1, address: 192.0.2.1}, {name: h2, address: 192.0.2.2}, {name: h3, address: 192.0.2.3}]
networks: [{name: a}, {name: b, type: vxlan, vni: 5}, {name: c, type: vxlan, vni: 6}]
keys: [{id: k1}, {id: k2}, {id: k3}]
";

#[test]
fn what_a_new_policy_keeps_has_the_number_that_it_had_and_no_number_is_given_twice() {
    let before = load_policy(&[source("before.yaml", BEFORE)]).unwrap();
    let after = "\
hosts: [{name: h4, address: 192.0.2.1}, {name: h3, address: 192.0.2.9}, {name: h2, address: 192.0.2.2}]
networks: [{name: d, type: vxlan, vni: 5}, {name: c, type: geneve, vni: 6}, {name: a}]
keys: [{id: k3}, {id: k2, suite: aes-128-gcm}]
rules: [{name: r, from: {network: a}, to: any, action: encrypt, key: k3}]
";
    let after = load_policy_after(&before, &[source("after.yaml", after)]).unwrap();
    let host = |name| after.host(name).map(|host| host.0);
    let hosts = ["h1", "h2", "h3", "h4"].map(host);
    assert_eq!(hosts, [None, Some(1), Some(2), Some(3)], "h1 is gone");
    let network = |name| after.network(name).map(|network| network.0);
    let networks = ["a", "b", "c", "d"].map(network);
    assert_eq!(
        networks,
        [Some(0), None, Some(3 + 1), Some(3)],
        "b is gone, c is carried otherwise"
    );
    assert!(!after.is_flat(NetworkIndex(1)));
    assert_eq!(after.networks[1].kind, NetworkKind::Retired);
    let key = |id| after.key(id).map(|key| key.0);
    assert_eq!(
        ["k1", "k2", "k3"].map(key),
        [None, Some(3), Some(2)],
        "k2 has another suite"
    );
    let Action::Seal { key, .. } = after.rules[0].action else {
        panic!("{:?}", after.rules[0]);
    };
    assert_eq!(key.0, 2);
    // What is gone and comes back is something new.
    let back = load_policy_after(&after, &[source("before.yaml", BEFORE)]).unwrap();
    assert_eq!(back.host("h1").map(|host| host.0), Some(4));
    assert_eq!(back.network("b").map(|network| network.0), Some(5));
    assert_eq!(back.key("k1").map(|key| key.0), Some(4));
}
