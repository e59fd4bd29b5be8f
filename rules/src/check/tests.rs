use proptest::prelude::*;

use super::*;
use crate::classify::Verdict;
use crate::facts::{Facts, Party, Ports};
use crate::flows::Flows;
use crate::load::{Source, load_policy};
use crate::meaning::World;
use crate::membership::Membership;
use crate::model::{ContainerIndex, CriteriaIndex, GuestIndex, NetworkIndex};

const FRONT: &str = "\
hosts: [{name: h1, address: 192.0.2.1}]
networks: [{name: blue}, {name: red}]
guests:
  - {id: web, host: h1, labels: {tier: front}, ports: [{interface: a, network: blue, mac: '02:00:00:00:00:01'}]}
  - {id: db, host: h1, labels: {tier: back}, ports: [{interface: b, network: blue, mac: '02:00:00:00:00:02'}]}
keys: [{id: k}]
";

/// Containers to speak of: `inner` is in `outer`, `aside` is not.
const CONTAINERS: &str = "\
containers:
  - {name: default, transfers: [{name: a, when: {tag: {name: a}}, to: inner}, {name: b, when: {tag: {name: b}}, to: aside}]}
  - {name: outer, release: by-hand}
  - {name: inner, parent: outer, release: {after: 1m}}
  - {name: aside, transfers: [{name: back, when: {tag: {name: c}}, to: default}]}
";

const LAST: &str = "  - {name: last, from: any, to: any, action: encrypt, key: k}\n";

fn policy(files: &[&str]) -> Policy {
    let source = |(number, text): (usize, &&str)| Source {
        name: format!("{number}.yaml"),
        text: (*text).to_owned(),
    };
    let files: Vec<Source> = files.iter().enumerate().map(source).collect();
    load_policy(&files).unwrap_or_else(|errors| panic!("{errors}"))
}

fn warned_of(files: &[&str]) -> Vec<String> {
    warnings(&policy(files)).iter().map(ToString::to_string).collect()
}

fn warned(rules: &str) -> Vec<String> {
    warned_of(&[&format!("{FRONT}{CONTAINERS}rules:\n{rules}")])
}

#[test]
fn nothing_odd_is_said_of_a_good_policy() {
    assert_eq!(warned(LAST), Vec::<String>::new());
    let narrow = "  - {name: ssh, from: {guest: web}, to: any, protocol: tcp, ports: [22], action: drop}\n";
    assert_eq!(warned(&format!("{narrow}{LAST}")), Vec::<String>::new());
}

#[test]
fn packets_that_no_rule_matches() {
    for (open, networks) in [
        ("from: any, to: any, protocol: tcp", 2),
        ("from: {guest: web}, to: any", 2),
        ("from: any, to: {cidr: 0.0.0.0/0}", 2),
        ("from: any, to: {network: red}", 1),
    ] {
        let warned = warned(&format!("  - {{name: r, {open}, action: encrypt, key: k}}\n"));
        assert_eq!(warned.len(), networks, "{warned:?}");
        assert!(
            warned[0].starts_with("0.yaml:2:19: network \"blue\"") && warned[0].contains("dropped"),
            "{warned:?}"
        );
    }
    assert_eq!(
        warned(
            "  - {name: b, from: {network: blue}, to: any, action: encrypt, key: k}\n  - {name: r, from: any, to: {network: [red]}, action: drop}\n"
        ),
        Vec::<String>::new()
    );
}

/// Pairs of rules of which the first takes all of the second.
const TAKEN: [(&str, &str); 22] = [
    (
        "from: any, to: any",
        "from: {guest: web}, to: {cidr: 10.0.0.0/8}, protocol: tcp, ports: [80]",
    ),
    (
        "from: {cidr: 10.0.0.0/8}, to: any",
        "from: {cidr: 10.1.0.0/16}, to: any",
    ),
    (
        "from: {cidr: [10.0.0.0/9, 10.128.0.0/9]}, to: any",
        "from: {cidr: 10.0.0.0/8}, to: any",
    ),
    (
        "from: {not: {cidr: 10.0.0.0/8}}, to: any",
        "from: {cidr: 'fd00::/8'}, to: any",
    ),
    (
        "from: any, to: any, protocol: tcp, ports: [80-90, 91-100, 443]",
        "from: any, to: any, protocol: tcp, ports: [81-95, 443]",
    ),
    (
        "from: [{guest: web}, {guest: db}], to: any",
        "from: {guest: db, network: blue}, to: any",
    ),
    (
        "from: any, to: any, protocol: icmp",
        "from: any, to: any, protocol: icmp, icmp-type: 8",
    ),
    (
        "from: any, to: any, protocol: icmp, icmp-type: 3",
        "from: any, to: any, protocol: icmp, icmp-type: 3, icmp-code: 4",
    ),
    ("from: {network: blue}, to: any", "from: any, to: {network: blue}"),
    (
        "from: {not: {network: red}}, to: any",
        "from: {network: blue}, to: {guest: web}",
    ),
    (
        "from: any, to: any, service: [dns, ssh]",
        "from: any, to: any, protocol: udp, ports: [53], vlan: 7, dscp: ef, flow: {user: x}, ethertype: ipv4",
    ),
    (
        "from: any, to: any, vlan: none, dscp: 46",
        "from: any, to: any, vlan: none, dscp: ef, service: dns",
    ),
    (
        "from: any, to: any, flow: {user: root}",
        "from: any, to: any, flow: {user: root}, protocol: tcp",
    ),
    (
        "from: {container: outer}, to: any",
        "from: {container: inner}, to: any",
    ),
    (
        "from: {not: {container: inner}}, to: any",
        "from: {not: {container: outer}}, to: any",
    ),
    (
        "from: {not: {container: outer}}, to: any",
        "from: {container: aside}, to: any",
    ),
    ("from: {not: {guest: web}}, to: any", "from: {guest: db}, to: any"),
    (
        "from: {label: {tier: [front, back]}}, to: any",
        "from: {label: {tier: back}}, to: any",
    ),
    (
        "from: {label: {tier: '*'}}, to: any",
        "from: {label: {tier: [front, back]}}, to: any",
    ),
    (
        "from: {not: {label: {tier: front}}}, to: any",
        "from: {not: {label: {tier: [front, back]}}}, to: any",
    ),
    (
        "from: {tag: {name: x, severity: 5}}, to: any",
        "from: {tag: {severity: '>=5', name: x}, guest: web}, to: any",
    ),
    ("from: {group: both}, to: any", "from: {guest: web}, to: any"),
];

fn pair(first: &str, second: &str) -> String {
    let groups = if first.contains("group") {
        "groups: [{name: both, guests: [web, db]}]\n"
    } else {
        ""
    };
    format!(
        "{FRONT}{CONTAINERS}{groups}rules:\n  - {{name: first, {first}, action: drop}}\n  - {{name: second, {second}, action: drop}}\n{LAST}"
    )
}

#[test]
fn a_rule_behind_a_wider_one() {
    for (wide, narrow) in TAKEN {
        let all = warned_of(&[&pair(wide, narrow)]);
        let said = |one: &String| one.contains("rule \"second\" can never match: rule \"first\" (0.yaml:");
        assert!(all.iter().any(said), "{wide} before {narrow}: {all:?}");
    }
}

#[test]
fn a_rule_that_is_only_partly_taken_is_not_odd() {
    let other_way: Vec<(&str, &str)> = TAKEN
        .iter()
        .filter(|(wide, _)| {
            // These mean the same.
            !wide.contains("network") && !wide.contains("10.128")
        })
        .map(|(wide, narrow)| (*narrow, *wide))
        .collect();
    let others = [
        (
            "from: any, to: any, protocol: tcp, ports: [80]",
            "from: any, to: any, protocol: tcp, ports: [80, 81]",
        ),
        (
            "from: any, to: any, protocol: tcp, ports: [0-65535]",
            "from: any, to: any, protocol: tcp",
        ),
        (
            "from: {guest: web}, to: {guest: db}",
            "from: {guest: db}, to: {guest: web}",
        ),
        (
            "from: {container: inner}, to: any",
            "from: {container: aside}, to: any",
        ),
        (
            "from: {label: {tier: back}}, to: any",
            "from: {guest: db}, to: any",
        ),
        (
            "from: {not: {container: aside}}, to: any",
            "from: {not: {container: outer}}, to: any",
        ),
        (
            "from: {label: {tier: 'b*'}}, to: any",
            "from: {label: {tier: back}, guest: db}, to: any",
        ),
    ];
    for (first, second) in other_way.iter().chain(&others) {
        let groups = pair(first, second).replace(
            "rules:",
            if second.contains("group") {
                "groups: [{name: both, guests: [web, db]}]\nrules:"
            } else {
                "rules:"
            },
        );
        let all = warned_of(&[&groups]);
        let said = |one: &String| one.contains("rule \"second\" can never match");
        assert!(!all.iter().any(said), "{first} before {second}: {all:?}");
    }
}

#[test]
fn rules_that_several_take_together_and_rules_about_nobody() {
    let all = warned(&format!(
        "  - {{name: w, from: {{guest: web}}, to: any, action: drop}}\n  - {{name: d, from: {{guest: db}}, to: any, action: drop}}\n  - {{name: both, from: {{guest: [web, db]}}, to: any, action: drop}}\n{LAST}"
    ));
    assert_eq!(
        all,
        [
            "0.yaml:15:12: rule \"both\" can never match: rule \"w\" (0.yaml:13:12), rule \"d\" (0.yaml:14:12) take all of it together"
        ]
    );
    for nobody in [
        "from: {network: blue}, to: {network: red}",
        "from: {guest: web, not: {guest: web}}, to: any",
        "from: {not: any}, to: any",
        "from: {cidr: 10.0.0.0/8, not: {cidr: 0.0.0.0/0}}, to: any",
    ] {
        let all = warned(&format!("  - {{name: r, {nobody}, action: drop}}\n{LAST}"));
        assert_eq!(
            all,
            ["0.yaml:13:12: rule \"r\" can never match: nobody is whom its from and to mean together"]
        );
    }
}

#[test]
fn what_is_watched_takes_nothing_of_what_is_enforced() {
    let rules = |name: &str, section: &str| {
        format!(
            "section: {section}\nrules: [{{name: {name}, from: any, to: any, action: encrypt, key: k}}]\n"
        )
    };
    let front = |mode: &str| {
        format!(
            "{FRONT}sections: [{{name: first, mode: {mode}}}, {{name: second, mode: enforce}}]\n{}",
            rules("a", "first")
        )
    };
    assert_eq!(
        warned_of(&[&front("monitor"), &rules("b", "second")]),
        Vec::<String>::new()
    );
    assert_eq!(
        warned_of(&[&front("enforce"), &rules("b", "second")]),
        [
            "1.yaml:2:16: rule \"b\" can never match: rule \"a\" (0.yaml:9:16) takes all of it",
            "0.yaml:7:49: section \"second\" is never reached: sections before it take all of its rules",
        ]
    );
    // Nor does a network count as closed by what is only watched.
    let open = warned_of(&[&front("monitor")]);
    assert_eq!(
        open,
        [
            "0.yaml:7:49: section \"second\" has no rules",
            "0.yaml:2:19: network \"blue\": packets that no rule matches exist, and are dropped; a last rule can say what they meet",
            "0.yaml:2:33: network \"red\": packets that no rule matches exist, and are dropped; a last rule can say what they meet",
        ]
    );
}

#[test]
fn names_that_nothing_uses_and_guests_that_are_nowhere() {
    let text = format!(
        "{FRONT}  - {{id: idle, host: h1}}\ngroups: [{{name: g, guests: []}}, {{name: used, addresses: [10.0.0.1]}}, {{name: l, labels: {{tier: side}}}}]\nservices: [{{name: s, protocol: tcp}}, {{name: t, protocol: udp}}]\nsecurity-services: [av, ids]\nrules:\n  - {{name: r, from: {{not: {{group: used}}}}, to: {{label: {{tier: [mid, 'x*']}}, not: {{label: {{tier: none}}}}}}, service: [t, ssh], action: drop}}\n{}",
        LAST.replace("encrypt, key: k", "drop")
    )
    .replace("keys: [{id: k}]\n  - {id: idle, host: h1}\n", "  - {id: idle, host: h1}\nkeys: [{id: k}]\n");
    let mut said = warned_of(&[&text]).join("\n");
    said.push('\n');
    insta::assert_snapshot!(said);
}

#[test]
fn containers_that_guests_cannot_leave_or_reach_and_transfers_that_never_fire() {
    let text = "\
security-services: [av, ids, audit]
containers:
  - name: default
    security-services: [av]
    transfers:
      - {name: bad, when: {tag: {service: ids}}, to: held}
      - {name: bad-too, when: {tag: {service: ids}}, to: cell}
      - {name: first-bad, when: {tag: {service: ids, severity: 9}}, to: cell, priority: 3}
      - {name: elsewhere, when: {container: aside}, to: cell}
      - {name: never, when: {all: [{tag: {}}, {not: {tag: {}}}]}, to: held}
      - {name: not-here, when: {any: [{not: {container: default}}]}, to: held}
      - {name: deep, when: {not: {neighbour: {container: held}}}, to: deep}
  - {name: held, quarantine: true}
  - name: cell
    quarantine: true
    transfers: [{name: on, when: {login: {}}, to: inner-cell}]
    rules:
      - {name: out, from: members, to: any, action: drop}
      - {name: in, from: any, to: members, action: drop}
  - {name: inner-cell, parent: cell, quarantine: true}
  - {name: aside, release: by-hand}
  - {name: around, release: {}}
  - {name: deep, parent: around, transfers: [{name: home, when: {label: {x: y}}, to: default}]}
";
    let rules = format!("{FRONT}rules:\n{LAST}");
    let mut said = warned_of(&[&rules, text]).join("\n");
    said.push('\n');
    insta::assert_snapshot!(said);
}

/// Ten thousand rules of many shapes; the time is that of the pairs that are compared, which are bounded.
#[test]
fn many_rules_are_checked() {
    let mut rules = String::new();
    for number in 0..10_000u32 {
        let [_, _, a, b] = number.to_be_bytes();
        let port = 1 + number % 60_000;
        rules += &format!(
            "  - {{name: r{number}, from: {{cidr: 10.{a}.{b}.0/24}}, to: {{cidr: 10.{b}.0.0/16}}, protocol: tcp, ports: [{port}], action: drop}}\n"
        );
    }
    rules += "  - {name: again, from: {cidr: 10.1.1.7/32}, to: {cidr: 10.1.0.0/16}, protocol: tcp, ports: [258], action: drop}\n";
    let policy = policy(&[&format!("{FRONT}rules:\n{rules}{LAST}")]);
    let all = warnings(&policy);
    assert_eq!(all.len(), 1, "{all:?}");
    assert!(
        all[0]
            .message
            .contains("\"again\" can never match: rule \"r257\""),
        "{all:?}"
    );
}

#[test]
fn a_rule_of_very_many_alternatives_is_passed_over() {
    let guests = "[{label: {tier: front}}, {label: {tier: back}}, {guest: web}, {guest: db}, {tag: {name: a}}, {tag: {name: b}}, {tag: {name: c}}, {tag: {name: d}}]";
    let services = "[dns, https, kerberos, ldap, rdp, dns-over-tls, dhcp, ssh, smb, ntp, nfs]";
    let rule = format!("from: {guests}, to: {guests}, service: {services}");
    assert_eq!(
        warned(&format!(
            "  - {{name: a, {rule}, action: drop}}\n  - {{name: b, {rule}, action: drop}}\n{LAST}"
        )),
        Vec::<String>::new()
    );
}

fn any_rule() -> impl Strategy<Value = String> {
    let selector = || {
        prop::sample::select(vec![
            "any",
            "any",
            "{network: blue}",
            "{guest: web}",
            "{not: {guest: web}}",
            "{label: {tier: front}}",
            "{label: {tier: [front, back]}}",
            "{label: {tier: '*'}}",
            "{not: {label: {tier: front}}}",
            "{cidr: 10.0.0.0/31}",
            "{cidr: 10.0.0.0/8}",
            "{not: {cidr: 10.0.0.0/31}}",
            "{container: outer}",
            "{container: inner}",
            "{not: {container: inner}}",
            "{not: {container: outer}}",
            "{container: aside}",
            "[{guest: db}, {tag: {name: x}}]",
            "{tag: {name: x}, guest: web}",
        ])
    };
    let what = prop::sample::select(vec![
        "",
        "",
        "protocol: tcp, ",
        "protocol: tcp, ports: [80], ",
        "protocol: tcp, ports: [79-81], ",
        "service: dns, ",
        "vlan: none, ",
        "dscp: 46, ",
        "protocol: icmp, icmp-type: 8, icmp-code: 0, ",
        "protocol: icmp, icmp-type: 8, ",
        "ethertype: ipv4, ",
    ]);
    (selector(), selector(), what)
        .prop_map(|(from, to, what)| format!("from: {from}, to: {to}, {what}action: drop"))
}

fn any_guest() -> impl Strategy<Value = (Option<&'static str>, u16, bool)> {
    (
        prop::option::of(prop::sample::select(vec!["front", "back", "side"])),
        0u16..4,
        any::<bool>(),
    )
}

fn any_packet() -> impl Strategy<Value = Facts> {
    let port = || prop::sample::select(vec![53u16, 79, 80, 4000]);
    let ports = prop_oneof![
        3 => (port(), port()).prop_map(|(source, destination)| Ports::Pair { source, destination }),
        1 => Just(Ports::None),
        1 => Just(Ports::Unreadable),
    ];
    let party = || {
        let address = prop::option::of((0u8..4).prop_map(|last| [10, 0, 0, last].into()));
        (prop::option::of((0u32..2).prop_map(GuestIndex)), address)
            .prop_map(|(guest, address)| Party { guest, address })
    };
    (
        (0u16..2).prop_map(NetworkIndex),
        prop::sample::select(vec![0x0800u16, 0x0806]),
        prop::option::of(prop::sample::select(vec![1u8, 6, 17])),
        prop::option::of(Just(7u16)),
        prop::sample::select(vec![0u8, 46]),
        ports,
        prop::option::of(prop::sample::select(vec![(8u8, 0u8), (0, 0), (8, 1)])),
        any::<bool>(),
        (party(), party()),
    )
        .prop_map(
            |(network, ethertype, protocol, vlan, dscp, ports, icmp, opening, (source, destination))| Facts {
                network,
                ethertype,
                vlan,
                protocol,
                ports,
                icmp,
                dscp,
                opening,
                source,
                destination,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// A rule of which it is said that it can never match never does, whatever its guests are and whatever they send.
    #[test]
    fn what_can_never_match_never_does(
        watched in prop::collection::vec(any_rule(), 0..4),
        enforced in prop::collection::vec(any_rule(), 2..12),
        moments in prop::collection::vec((any_packet(), any_guest(), any_guest()), 60),
    ) {
        let lines = |rules: &[String], name: &str| -> String {
            let rules = rules.iter().enumerate();
            rules.map(|(number, rule)| format!("  - {{name: {name}{number}, {rule}}}\n")).collect()
        };
        let one = format!("{FRONT}{CONTAINERS}sections: [{{name: try, mode: monitor}}]\nsection: try\nrules:\n{}", lines(&watched, "w"));
        let two = format!("rules:\n{}", lines(&enforced, "e"));
        let policy = policy(&[&one, &two]);
        let entries: Vec<_> = policy.rules.iter().map(|rule| shadow::entries(&policy, rule)).collect();
        let covered = shadow::covered(&policy, &entries);
        for (facts, one, two) in moments {
            let guests: Vec<Membership> = [one, two].into_iter().zip(0..).map(|((label, container, tagged), number)| {
                let mut guest = Membership::at_start(&policy, GuestIndex(number));
                guest.labels.clear();
                guest.labels.extend(label.map(|label| ("tier".to_owned(), label.to_owned())));
                guest.containers = policy.chain(ContainerIndex(container)).collect();
                for question in 0..policy.criteria.len() as u16 {
                    guest.set(CriteriaIndex(question), tagged);
                }
                guest
            }).collect();
            let world = World { policy: &policy, guests: &guests, flows: &Flows::default() };
            for monitor in [false, true] {
                if let Verdict::Matched { rule, .. } = world.first_match(&facts, monitor) {
                    prop_assert_eq!(&covered[rule.index()], &Cover::Open, "{:?} meets {}", facts, policy.rules[rule.index()].name);
                }
            }
        }
    }
}
