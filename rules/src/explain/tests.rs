//! What is said of packets, and that it is what happens to them.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::classify::Verdict;
use crate::containers::{Changes, Containers};
use crate::event::{Event, Moment};
use crate::facts::Ports;
use crate::flows::{FlowContext, FlowKey, Flows};
use crate::load::{Source, load_policy};
use crate::membership::Membership;
use crate::model::{ContainerIndex, CriteriaIndex, NetworkIndex, SectionIndex};

const FRONT: &str = "\
hosts: [{name: h1, address: 192.0.2.1}]
networks: [{name: blue}]
guests:
  - {id: web, host: h1, labels: {tier: front}, ports: [{interface: a, network: blue, mac: '02:00:00:00:00:01', addresses: [10.0.0.1]}]}
  - {id: db, host: h1, ports: [{interface: b, network: blue, mac: '02:00:00:00:00:02', addresses: [10.0.0.2]}]}
keys: [{id: k}]
security-services: [av]
groups:
  - {name: servers, guests: [db], addresses: [10.0.0.9]}
services:
  - {name: mixed, match: [{protocol: udp, ports: [53]}, {protocol: tcp, ports: [53, 853]}, {protocol: sctp}]}
containers:
  - name: quarantine
    release: by-hand
    rules:
      - {name: cleaning, from: members, to: {cidr: 10.0.0.9}, protocol: tcp, ports: [443], action: encrypt, key: k}
      - {name: held, from: members, to: any, action: drop}
templates:
  - name: visitor
    when: {login: {}}
    rules:
      - {name: visit, from: subject, to: {group: servers}, vlan: 7, action: authenticate, key: k}
sections:
  - {name: try, mode: monitor}
  - {name: general}
";

/// Rules of the watched section, then of the enforced one.
fn policy(watched: &[String], enforced: &[String]) -> Policy {
    let file = |front: &str, name: &str, rules: &[String]| {
        let rules = rules.iter().zip(0..);
        let rules: String = rules
            .map(|(rule, number)| format!("  - {{name: {name}{number}, {rule}}}\n"))
            .collect();
        Source {
            name: format!("{name}.yaml"),
            text: format!("{front}section: {name}\nrules:\n{rules}"),
        }
    };
    let files = [file(FRONT, "try", watched), file("", "general", enforced)];
    load_policy(&files).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The guests as they begin, the first in quarantine or a visitor.
fn guests(policy: &Policy, held: bool, visits: bool) -> Vec<Membership> {
    let mut guests: Vec<Membership> = (0..2)
        .map(|guest| Membership::at_start(policy, GuestIndex(guest)))
        .collect();
    if held {
        guests[0].containers = vec![ContainerIndex(1)];
    }
    if visits {
        guests[0].subject_of = vec![TemplateIndex(0)];
    }
    for number in 0..policy.criteria.len() {
        guests[0].set(CriteriaIndex(number as u16), visits);
    }
    guests
}

struct Told;

impl Causes for Told {
    fn container(&self, guest: GuestIndex) -> Option<String> {
        (guest.0 == 0).then(|| "there since 12:00: av/malware".to_owned())
    }

    fn subject(&self, _: GuestIndex, _: TemplateIndex) -> Option<String> {
        Some("made at 12:01: login of eva".to_owned())
    }
}

/// What the sender's agent says of a packet's flow, if it has one.
fn told(facts: &Facts, context: FlowContext) -> Flows {
    let mut flows = Flows::default();
    if let Some((key, place)) = FlowKey::of(facts) {
        let mut told = [None, None];
        told[place] = Some(Arc::new(context));
        flows.by_key.insert(key, told);
    }
    flows
}

fn tcp(from: u16, to: u16) -> Facts {
    let party = |guest: u32| Party {
        guest: Some(GuestIndex(guest)),
        address: Some([10, 0, 0, guest as u8 + 1].into()),
    };
    Facts {
        network: NetworkIndex(0),
        ethertype: 0x0800,
        vlan: None,
        protocol: Some(6),
        ports: Ports::Pair {
            source: from,
            destination: to,
        },
        icmp: None,
        dscp: 0,
        opening: false,
        source: party(0),
        destination: party(1),
    }
}

#[test]
fn each_condition_is_told() {
    let enforced: Vec<String> = [
        "from: {label: {tier: [back, 'mid*']}}, to: any, action: drop",
        "from: any, to: any, ethertype: arp, action: plaintext",
        "from: any, to: any, ethertype: 0x88cc, action: plaintext",
        "from: any, to: any, vlan: none, dscp: ef, action: drop",
        "from: any, to: any, vlan: 3, action: drop",
        "from: any, to: any, protocol: esp, action: drop",
        "from: any, to: any, service: mixed, action: drop",
        "from: any, to: any, service: ssh, action: drop",
        "from: any, to: any, flow: {user: root, application: 'apt*', group: g}, action: drop",
        "from: any, to: any, protocol: icmp, icmp-type: 8, icmp-code: 1, action: drop",
        "from: any, to: any, protocol: icmp, icmp-type: 3, action: drop",
        "from: {tag: {service: av, name: 'x*', severity: 70, count: 2, age: '>1h'}}, to: {not: [{guest: web}, {network: blue}]}, action: drop",
        "from: {tag: {age: '<90s'}}, to: {container: quarantine}, action: drop",
        "from: any, to: {group: servers}, protocol: tcp, ports: [80, 8000-8080], action: encrypt, key: k",
        "from: any, to: any, protocol: icmp, action: authenticate, key: k",
        "from: [{guest: db, cidr: 10.0.0.0/8}, {group: servers}], to: any, vlan: none, ethertype: ipv4, protocol: tcp, ports: [6000], action: plaintext",
    ]
    .map(String::from)
    .into();
    let watched = vec![
        "from: {guest: db}, to: {guest: db}, action: plaintext".to_owned(),
        "from: any, to: any, protocol: tcp, ports: [80], action: drop".to_owned(),
    ];
    let policy = policy(&watched, &enforced);
    let flows = told(
        &tcp(4000, 22),
        FlowContext {
            user: Some("eva".to_owned()),
            groups: vec!["a".to_owned(), "b".to_owned()],
            application: Some("ssh".to_owned()),
        },
    );
    let mut said = String::new();
    let mut say = |what: &str, held: bool, visits: bool, facts: &Facts| {
        let guests = guests(&policy, held, visits);
        let world = World {
            policy: &policy,
            guests: &guests,
            flows: &flows,
        };
        let explained = explain(&world, facts, &Told);
        said += &format!("# {what}\n{explained}\n\n");
    };
    let packet = tcp(4000, 80);
    say("web to db, port 80", false, false, &packet);
    say(
        "the same, opening",
        false,
        false,
        &Facts {
            opening: true,
            ..packet
        },
    );
    say("web in quarantine", true, false, &packet);
    say(
        "web's visitor in VLAN 7",
        false,
        true,
        &Facts {
            vlan: Some(7),
            ..packet
        },
    );
    let other = Facts {
        protocol: Some(132),
        ports: Ports::None,
        ..packet
    };
    say("a service", false, false, &other);
    say("a flow of which something is known", false, false, &tcp(4000, 22));
    say("a reply", false, false, &tcp(6000, 4000));
    let echo = Facts {
        protocol: Some(1),
        ports: Ports::None,
        icmp: Some((8, 0)),
        dscp: 46,
        vlan: Some(9),
        ..packet
    };
    say("an echo request", false, false, &echo);
    let fragment = Facts {
        ports: Ports::Unreadable,
        ..packet
    };
    say("a later fragment", false, false, &fragment);
    let unknown = Party {
        guest: None,
        address: None,
    };
    let lldp = Facts {
        ethertype: 0x88cc,
        protocol: None,
        ports: Ports::None,
        source: unknown,
        destination: Party {
            guest: None,
            address: Some([10, 9, 9, 9].into()),
        },
        ..packet
    };
    say("no IP", false, false, &lldp);
    let arp = Facts {
        ethertype: 0x0806,
        source: Party {
            address: None,
            ..packet.source
        },
        ..lldp
    };
    say("ARP", false, false, &arp);
    let other = Facts {
        protocol: Some(47),
        ethertype: 0x86dd,
        ports: Ports::None,
        ..packet
    };
    say("what no rule matches", false, false, &other);
    insta::assert_snapshot!("told", said);
}

/// What a group asks of its members, a tag of its age, and what is missing of a packet.
#[test]
fn each_question_is_told() {
    let groups = "\
groups:
  - {name: g-tag, guests: [db], when: {tag: {service: av, count: '>=3', age: '<1d'}}}
  - {name: g-age, when: {tag: {name: x, age: '>1500ms'}}}
  - {name: g-login, when: {login: {user: eva, group: admins}}}
  - {name: g-any, when: {any: [{login: {}}, {label: {tier: [front, back]}}]}}
  - {name: g-not, when: {not: {container: quarantine}}}
  - {name: g-flow, when: {flow: {user: root, group: wheel, application: ssh}}}
  - {name: g-all, when: {all: [{tag: {}}, {neighbour: {tag: {service: av, severity: '>=70', age: '>90m'}}}]}}
";
    let front = FRONT.replacen("groups:\n", groups, 1);
    let names = ["tag", "age", "login", "any", "not", "flow", "all"];
    let mut rules: Vec<String> = names
        .iter()
        .map(|name| format!("from: {{group: g-{name}}}, to: {{network: blue}}, dscp: 1, action: drop"))
        .collect();
    rules.extend(
        [
            "from: any, to: any, protocol: udp, ports: [53], action: drop",
            "from: any, to: any, protocol: icmpv6, icmp-type: 128, action: drop",
            "from: any, to: any, ethertype: ipv6, action: drop",
            "from: any, to: any, flow: {group: wheel}, action: drop",
            "from: any, to: any, dscp: 1, action: drop",
        ]
        .map(String::from),
    );
    let text = rules.iter().enumerate().fold(
        format!("{front}section: general\nrules:\n"),
        |text, (number, rule)| format!("{text}  - {{name: rule{number}, {rule}}}\n"),
    );
    let name = "policy.yaml".into();
    let policy = load_policy(&[Source { name, text }]).unwrap_or_else(|errors| panic!("{errors}"));
    let packet = tcp(4000, 80);
    let nothing = Facts {
        ports: Ports::None,
        ..packet
    };
    let mut said = String::new();
    for (what, visits, facts, context) in [
        ("what is asked of members", false, packet, FlowContext::default()),
        (
            "what members are",
            true,
            Facts { dscp: 1, ..packet },
            FlowContext::default(),
        ),
        (
            "a flow of a group",
            true,
            packet,
            FlowContext {
                groups: vec!["users".to_owned()],
                ..FlowContext::default()
            },
        ),
        (
            "UDP without ports",
            true,
            Facts {
                protocol: Some(17),
                ..nothing
            },
            FlowContext::default(),
        ),
        (
            "ICMPv6 without a type",
            true,
            Facts {
                protocol: Some(58),
                ..nothing
            },
            FlowContext::default(),
        ),
        (
            "no IP",
            true,
            Facts {
                protocol: None,
                ethertype: 0x88cc,
                ..nothing
            },
            FlowContext::default(),
        ),
    ] {
        let guests = guests(&policy, false, visits);
        let flows = told(&facts, context);
        let world = World {
            policy: &policy,
            guests: &guests,
            flows: &flows,
        };
        said += &format!("# {what}\n{}\n\n", explain(&world, &facts, &Told));
    }
    insta::assert_snapshot!("questions", said);
}

#[test]
fn the_containers_tell_the_causes() {
    let policy = Arc::new(policy(&[], &["from: any, to: any, action: plaintext".to_owned()]));
    let mut containers = Containers::new(policy, Moment::from_millis(0));
    assert_eq!(containers.container(GuestIndex(0)), None);
    assert_eq!(containers.subject(GuestIndex(0), TemplateIndex(0)), None);
    for (second, text) in [
        (1, r#"{"guest": "web", "pin": {"container": "quarantine"}}"#),
        (2, r#"{"guest": "db", "login": {"user": "eva"}}"#),
    ] {
        let event: Event = serde_json::from_str(text).unwrap();
        let now = Moment::from_millis(second * 1000);
        containers.apply(now, &event, &mut Changes::default()).unwrap();
    }
    let explain = |packet: &Facts| explain(&containers.world(), packet, &containers).to_string();
    let said = explain(&tcp(1, 2));
    assert!(
        said.contains("container quarantine (") && said.contains("1970-01-01T00:00:01.000Z)"),
        "{said}"
    );
    let packet = tcp(1, 2);
    let back = Facts {
        source: packet.destination,
        destination: packet.destination,
        vlan: Some(7),
        ..packet
    };
    let said = explain(&back);
    assert!(
        said.contains("subject of template visitor (")
            && said.contains("login of eva, 1970-01-01T00:00:02.000Z)"),
        "{said}"
    );
}

#[test]
fn the_causes_may_be_unknown_and_json_says_the_same() {
    let policy = policy(&[], &["from: any, to: any, action: plaintext".to_owned()]);
    let guests = guests(&policy, true, false);
    let world = World {
        policy: &policy,
        guests: &guests,
        flows: &Flows::default(),
    };
    let explained = explain(&world, &tcp(1, 2), &());
    assert!(!explained.to_string().contains("there since"));
    let value = serde_json::to_value(&explained).unwrap();
    assert_eq!(
        value,
        serde_json::json!({
            "steps": [
                {
                    "rule": "cleaning", "place": "try.yaml:16:16", "section": "containers", "owner": "container quarantine",
                    "monitor": false, "matches": false,
                    "why": "db (10.0.0.2) is not to (10.0.0.9/32); as a reply db (10.0.0.2) is not from (container quarantine) and web (10.0.0.1) is not to (10.0.0.9/32)",
                },
                {
                    "rule": "held", "place": "try.yaml:17:16", "section": "containers", "owner": "container quarantine",
                    "monitor": false, "matches": true,
                    "why": "from is web (10.0.0.1), asked for container quarantine; to is db (10.0.0.2), asked for any",
                },
            ],
            "verdict": "dropped: RuleDrops, the rule says drop",
        })
    );
}

fn any_rule() -> impl Strategy<Value = String> {
    let selector = || {
        prop::sample::select(vec![
            "any",
            "{guest: web}",
            "{label: {tier: front}}",
            "{cidr: 10.0.0.0/31}",
            "{container: quarantine}",
            "{not: {container: [quarantine, default]}}",
            "{group: servers}",
            "[{guest: db}, {tag: {name: x}}]",
        ])
    };
    let what = prop::sample::select(vec![
        "",
        "protocol: tcp, ports: [80], ",
        "service: mixed, ",
        "vlan: none, ",
        "vlan: 7, ",
        "dscp: 46, ",
        "flow: {user: eva}, ",
        "protocol: icmp, icmp-type: 8, icmp-code: 0, ",
        "ethertype: arp, ",
    ]);
    let action = prop::sample::select(vec!["drop", "plaintext", "encrypt, key: k"]);
    (selector(), selector(), what, action)
        .prop_map(|(from, to, what, action)| format!("from: {from}, to: {to}, {what}action: {action}"))
}

fn any_packet() -> impl Strategy<Value = Facts> {
    let port = || prop::sample::select(vec![53u16, 80, 853, 4000]);
    let ports = prop_oneof![
        3 => (port(), port()).prop_map(|(source, destination)| Ports::Pair { source, destination }),
        1 => Just(Ports::None),
        1 => Just(Ports::Unreadable),
    ];
    let party = || {
        let address = prop::option::of((1u8..4).prop_map(|last| [10, 0, 0, last].into()));
        (prop::option::of((0u32..2).prop_map(GuestIndex)), address)
            .prop_map(|(guest, address)| Party { guest, address })
    };
    (
        prop::sample::select(vec![0x0800u16, 0x0806]),
        prop::option::of(prop::sample::select(vec![1u8, 6, 17, 132])),
        prop::option::of(Just(7u16)),
        prop::sample::select(vec![0u8, 46]),
        ports,
        prop::option::of(prop::sample::select(vec![(8u8, 0u8), (0, 0), (8, 1)])),
        any::<bool>(),
        (party(), party()),
    )
        .prop_map(
            |(ethertype, protocol, vlan, dscp, ports, icmp, opening, (source, destination))| Facts {
                network: NetworkIndex(0),
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
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_explained_is_what_happens(
        watched in prop::collection::vec(any_rule(), 0..5),
        enforced in prop::collection::vec(any_rule(), 0..8),
        packets in prop::collection::vec((any_packet(), any::<bool>(), any::<bool>()), 1..20),
    ) {
        let policy = policy(&watched, &enforced);
        for (facts, held, visits) in packets {
            let guests = guests(&policy, held, visits);
            let user = Some("eva".to_owned());
            let eva = FlowContext { user, ..FlowContext::default() };
            let flows = if visits { told(&facts, eva) } else { Flows::default() };
            let world = World { policy: &policy, guests: &guests, flows: &flows };
            let explained = explain(&world, &facts, &Told);
            for (monitor, told) in [(false, Some(&explained.verdict)), (true, explained.monitor.as_ref())] {
                let matching: Vec<&str> = explained
                    .steps
                    .iter()
                    .filter(|step| step.matches && step.monitor == monitor)
                    .map(|step| step.rule.as_str())
                    .collect();
                let last = explained.steps.iter().rfind(|step| step.monitor == monitor);
                match world.first_match(&facts, monitor) {
                    Verdict::Matched { rule, action } => {
                        prop_assert_eq!(&matching, &[policy.rules[rule.index()].name.as_str()]);
                        prop_assert!(last.unwrap().matches);
                        prop_assert!(told.unwrap().contains(&describe(&policy, action)));
                    }
                    Verdict::FragmentNeedsPorts => {
                        prop_assert!(matching.is_empty() && told.unwrap().contains("FragmentNeedsPorts"));
                    }
                    Verdict::NoRule => {
                        prop_assert!(matching.is_empty());
                        prop_assert_eq!(told.is_some_and(|told| told.contains("NoRule")), !monitor);
                    }
                }
            }
            // Nobody stops before the end without a reason.
            let enforced = |step: &&Step| !step.monitor;
            if explained.verdict.contains("NoRule") {
                let all = policy.rules.iter().filter(|rule| rule.section != SectionIndex(2)).count();
                prop_assert_eq!(explained.steps.iter().filter(enforced).count(), all);
            }
            prop_assert!(explained.steps.iter().all(|step| !step.why.is_empty()));
            let known = |step: &Step| policy.rules.iter().any(|rule| rule.name == step.rule);
            prop_assert!(explained.steps.iter().all(known));
        }
    }
}
