use super::*;
use crate::load::{Source, load_policy};

const FRONT: &str = "\
hosts: [{name: h1, address: 192.0.2.1}]
networks: [{name: blue}]
guests:
  - {id: web, host: h1, labels: {tier: front}, ports: [{interface: a, network: blue, mac: '02:00:00:00:00:01'}]}
  - {id: db, host: h1, ports: [{interface: b, network: blue, mac: '02:00:00:00:00:02'}]}
keys: [{id: k}]
rules:
";

fn warned(rules: &str) -> Vec<String> {
    let text = format!("{FRONT}{rules}");
    let name = "policy.yaml".into();
    let policy = load_policy(&[Source { name, text }]).unwrap_or_else(|errors| panic!("{errors}"));
    warnings(&policy).iter().map(ToString::to_string).collect()
}

const LAST: &str = "  - {name: last, from: any, to: any, action: encrypt, key: k}\n";

#[test]
fn nothing_odd_is_said_of_a_good_policy() {
    assert_eq!(warned(LAST), Vec::<String>::new());
    let narrow = "  - {name: ssh, from: {guest: web}, to: any, protocol: tcp, ports: [22], action: drop}\n";
    assert_eq!(warned(&format!("{narrow}{LAST}")), Vec::<String>::new());
}

#[test]
fn packets_that_no_rule_matches() {
    for open in [
        "  - {name: tcp, from: any, to: any, protocol: tcp, action: encrypt, key: k}\n",
        "  - {name: web, from: {guest: web}, to: any, action: encrypt, key: k}\n",
    ] {
        let warned = warned(open);
        assert_eq!(warned.len(), 1, "{warned:?}");
        assert!(
            warned[0].contains("network \"blue\"") && warned[0].contains("dropped"),
            "{warned:?}"
        );
    }
}

#[test]
fn a_rule_behind_a_wider_one() {
    for (wide, narrow) in [
        (
            "from: any, to: any",
            "from: {guest: web}, to: {cidr: 10.0.0.0/8}, protocol: tcp, ports: [80]",
        ),
        (
            "from: {cidr: 10.0.0.0/8}, to: any",
            "from: {cidr: 10.1.0.0/16}, to: any",
        ),
        (
            "from: any, to: any, protocol: tcp, ports: [80-90, 443]",
            "from: any, to: any, protocol: tcp, ports: [81-82, 443]",
        ),
        (
            "from: [{guest: web}, {guest: db}], to: any",
            "from: {guest: db, network: blue}, to: any",
        ),
        (
            "from: any, to: any, protocol: icmp",
            "from: any, to: any, protocol: icmp, icmp-type: 8",
        ),
    ] {
        let rules = format!(
            "  - {{name: wide, {wide}, action: drop}}\n  - {{name: narrow, {narrow}, action: drop}}\n{LAST}"
        );
        let all = warned(&rules);
        let found = all
            .iter()
            .any(|one| one.starts_with("policy.yaml:9:12: rule \"narrow\" can never match: rule \"wide\""));
        assert!(found, "{wide} before {narrow}: {all:?}");
    }
}

#[test]
fn a_rule_that_is_only_partly_taken_is_not_odd() {
    for (first, second) in [
        (
            "from: any, to: any, protocol: tcp, ports: [80]",
            "from: any, to: any, protocol: tcp, ports: [80, 81]",
        ),
        (
            "from: any, to: any, protocol: tcp, ports: [80]",
            "from: any, to: any, protocol: tcp",
        ),
        (
            "from: {cidr: 10.1.0.0/16}, to: any",
            "from: {cidr: 10.0.0.0/8}, to: any",
        ),
        (
            "from: {guest: web}, to: any",
            "from: [{guest: web}, {guest: db}], to: any",
        ),
        (
            "from: {guest: web, network: blue}, to: any",
            "from: {guest: web}, to: any",
        ),
    ] {
        let rules = format!(
            "  - {{name: first, {first}, action: drop}}\n  - {{name: second, {second}, action: drop}}\n{LAST}"
        );
        assert_eq!(warned(&rules), Vec::<String>::new(), "{first} before {second}");
    }
}

#[test]
fn selectors_that_select_nobody_keys_that_no_rule_names_guests_without_ports() {
    let nobody = "  - {name: x, from: {label: {tier: back}}, to: any, action: drop}\n";
    let all = warned(&format!("{nobody}{LAST}"));
    assert!(
        all.len() == 1 && all[0].contains("its from selects no guest"),
        "{all:?}"
    );
    let unused = warned("  - {name: last, from: any, to: any, action: drop}\n");
    assert!(
        unused.len() == 1 && unused[0].contains("key \"k\" is named by no rule"),
        "{unused:?}"
    );
    let text = format!("{FRONT}{LAST}").replace("keys:", "  - {id: idle, host: h1}\nkeys:");
    let name = "policy.yaml".into();
    let policy = load_policy(&[Source { name, text }]).unwrap();
    let all: Vec<String> = warnings(&policy).iter().map(ToString::to_string).collect();
    assert!(
        all.len() == 1 && all[0].contains("guest \"idle\" has no port"),
        "{all:?}"
    );
}
