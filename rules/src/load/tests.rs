//! Every message for a wrong file, and that no bytes make the loader panic.

use proptest::prelude::*;

use super::*;

/// A right policy, for cases that change one thing of it.
const RIGHT: &str = "\
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

fn load(text: &str) -> Result<Policy, FileErrors> {
    load_policy(&[Source {
        name: "policy.yaml".into(),
        text: text.into(),
    }])
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
    let source = |name: &str, text: &str| Source {
        name: name.into(),
        text: text.into(),
    };
    let policy = load_policy(&[source("rules.yaml", rules), source("guests.yaml", front)]).unwrap();
    assert_eq!(policy, {
        let mut whole = load(RIGHT).unwrap();
        for guest in &mut whole.guests {
            guest.place.file = "guests.yaml".into();
        }
        whole.keys[0].place.file = "guests.yaml".into();
        whole.rules[0].place = policy.rules[0].place.clone();
        whole
    });
}

/// What is changed in the right file, and what is said then.
#[test]
fn every_mistake_is_named_with_its_place_and_what_was_expected() {
    let rule = "action: encrypt, key: k1";
    let selector = "to: {network: blue}";
    let cases = [
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
    ];
    let mut said = String::new();
    for (what, right, wrong) in cases {
        assert!(RIGHT.contains(right), "{what}: the right file has no `{right}`");
        let errors = load(&RIGHT.replacen(right, wrong, 1)).expect_err(what);
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
fn independent_mistakes_are_told_together() {
    let text = RIGHT
        .replace("host: h2", "host: h9")
        .replace("key: k1", "key: k9")
        .replace("10.0.0.1]", "10.0.0.x]");
    let errors = load(&text).unwrap_err();
    assert_eq!(errors.0.len(), 3, "{errors}");
}

#[test]
fn the_examples_are_right_and_nothing_about_them_is_odd() {
    let mut found = 0;
    for directory in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap() {
        let mut sources = Vec::new();
        for file in std::fs::read_dir(directory.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            // Host files lie beside their policies.
            if !text.lines().any(|line| line.starts_with("host:")) {
                sources.push(Source {
                    name: path.display().to_string(),
                    text,
                });
            }
        }
        let policy = load_policy(&sources).unwrap_or_else(|errors| panic!("{errors}"));
        let warnings = crate::check::warnings(&policy);
        // What no rule matches is dropped in the demo, and the demo shows it.
        let odd: Vec<_> = warnings
            .iter()
            .filter(|warning| warning.place.is_some())
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
