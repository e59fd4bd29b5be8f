//! The classifier against the model itself: what a rule says, read word for word, first match first.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::compile::compile;
use crate::explain::explain;
use crate::facts::Party;
use crate::load::{Source, load_policy};
use crate::model::{GuestIndex, NetworkIndex, Policy, Rule, Selector, Term};

/// What the rule's words mean, without sets, bits or short cuts.
mod naive {
    use super::*;

    fn selects(selector: &Selector, policy: &Policy, network: NetworkIndex, party: &Party) -> bool {
        match selector {
            Selector::Any => true,
            Selector::OneOf(all) => all.iter().any(|one| selects(one, policy, network, party)),
            Selector::All(terms) => terms.iter().all(|term| match term {
                Term::Network(wanted) => *wanted == network,
                Term::Guest(wanted) => party.guest == Some(*wanted),
                Term::Label { name, value } => party
                    .guest
                    .is_some_and(|guest| policy.guests[guest.index()].labels.get(name) == Some(value)),
                Term::Cidr(cidr) => party.address.is_some_and(|address| cidr.contains(address)),
            }),
        }
    }

    /// `None` if the answer hangs on ports that cannot be read.
    fn one_way(rule: &Rule, policy: &Policy, facts: &Facts, reply: bool) -> Option<bool> {
        let (from, to) = match reply {
            false => (&facts.source, &facts.destination),
            true => (&facts.destination, &facts.source),
        };
        let parties =
            selects(&rule.from, policy, facts.network, from) && selects(&rule.to, policy, facts.network, to);
        let protocol = rule.ethertype.is_none_or(|wanted| wanted == facts.ethertype)
            && rule.protocol.is_none_or(|wanted| Some(wanted) == facts.protocol);
        if !parties || !protocol || (reply && facts.opening) {
            return Some(false);
        }
        if rule.ports.is_empty() && rule.icmp_type.is_none() {
            return Some(true);
        }
        let port = match facts.ports {
            Ports::Unreadable => return None,
            Ports::None => None,
            Ports::Pair { source, destination } => Some(if reply { source } else { destination }),
        };
        let ports = rule.ports.is_empty()
            || port.is_some_and(|port| rule.ports.iter().any(|range| range.contains(&port)));
        let icmp = rule.icmp_type.is_none_or(|wanted| {
            let wanted = match (reply, rule.protocol, wanted) {
                (false, ..) => Some(wanted),
                (true, Some(1), 8) => Some(0),
                (true, Some(58), 128) => Some(129),
                (true, Some(58), 135) => Some(136),
                (true, Some(58), 133) => Some(134),
                _ => None,
            };
            wanted.is_some() && facts.icmp.map(|(kind, _)| kind) == wanted
        });
        Some(ports && icmp)
    }

    pub(super) fn classify(policy: &Policy, facts: &Facts) -> Verdict {
        for (number, rule) in policy.rules.iter().enumerate() {
            let ways = [
                one_way(rule, policy, facts, false),
                one_way(rule, policy, facts, true),
            ];
            if ways.contains(&Some(true)) {
                let (rule, action) = (RuleIndex(number as u32), rule.action);
                return Verdict::Matched { rule, action };
            }
            if ways.contains(&None) {
                return Verdict::FragmentNeedsPorts;
            }
        }
        Verdict::NoRule
    }
}

const FRONT: &str = "\
hosts: [{name: h1, address: 192.0.2.1}, {name: h2, address: 192.0.2.2}]
networks: [{name: blue}, {name: red}]
guests:
  - {id: g0, host: h1, labels: {tier: front}, ports: [{interface: a, network: blue, mac: '02:00:00:00:00:01', addresses: [10.0.0.1]}]}
  - {id: g1, host: h1, labels: {tier: back}, ports: [{interface: b, network: blue, mac: '02:00:00:00:00:02', addresses: [10.0.1.2]}]}
  - {id: g2, host: h2, labels: {tier: front}, ports: [{interface: c, network: red, mac: '02:00:00:00:00:03', addresses: [10.0.0.1]}]}
keys: [{id: k0}, {id: k1}]
rules:
";

fn policy(rules: &[String]) -> Policy {
    let lines: String = rules
        .iter()
        .enumerate()
        .map(|(number, rule)| format!("  - {{name: r{number}, {rule}}}\n"))
        .collect();
    let text = format!("{FRONT}{lines}");
    let name = "policy.yaml".into();
    load_policy(&[Source { name, text }]).unwrap_or_else(|errors| panic!("{errors}"))
}

fn any_rule() -> impl Strategy<Value = String> {
    let selector = || {
        prop::sample::select(vec![
            "any",
            "{network: blue}",
            "{network: red}",
            "{guest: g0}",
            "{guest: g2}",
            "{label: {tier: front}}",
            "{label: {tier: back}, network: blue}",
            "{cidr: 10.0.0.0/24}",
            "{cidr: 10.0.0.0/16, label: {tier: front}}",
            "[{guest: g1}, {cidr: 10.0.0.1/32}]",
            "[{guest: g0}, any]",
            "{label: {tier: none}}",
        ])
    };
    let what = prop::sample::select(vec![
        "",
        "protocol: tcp, ",
        "protocol: tcp, ports: [80], ",
        "protocol: udp, ports: [53, 1000-2000], ",
        "protocol: icmp, ",
        "protocol: icmp, icmp-type: 8, ",
        "protocol: icmpv6, icmp-type: 135, ",
        "ethertype: arp, ",
        "ethertype: ipv4, ",
        "protocol: 47, ",
    ]);
    let action = prop::sample::select(vec![
        "drop",
        "plaintext",
        "encrypt, key: k0",
        "authenticate, key: k1",
    ]);
    (selector(), selector(), what, action)
        .prop_map(|(from, to, what, action)| format!("from: {from}, to: {to}, {what}action: {action}"))
}

fn any_party() -> impl Strategy<Value = Party> {
    let address = prop::sample::select(vec!["10.0.0.1", "10.0.1.2", "192.168.0.1", "fd00::1"]);
    (prop::option::of(0u32..3), prop::option::of(address)).prop_map(|(guest, address)| Party {
        guest: guest.map(GuestIndex),
        address: address.map(|text| text.parse::<IpAddr>().unwrap()),
    })
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let port = || prop::sample::select(vec![22u16, 53, 80, 999, 1000, 1500, 2000, 2001]);
    let ports = prop_oneof![
        3 => (port(), port()).prop_map(|(source, destination)| Ports::Pair { source, destination }),
        1 => Just(Ports::None),
        1 => Just(Ports::Unreadable),
    ];
    let protocol = prop::option::of(prop::sample::select(vec![1u8, 6, 17, 47, 58]));
    let ethertype = prop::sample::select(vec![0x0800u16, 0x86dd, 0x0806]);
    let icmp = prop::option::of((prop::sample::select(vec![0u8, 8, 128, 129, 135, 136]), Just(0u8)));
    (
        0u16..2,
        ethertype,
        protocol,
        ports,
        icmp,
        any::<bool>(),
        any_party(),
        any_party(),
    )
        .prop_map(
            |(network, ethertype, protocol, ports, icmp, opening, source, destination)| Facts {
                network: NetworkIndex(network),
                ethertype,
                vlan: None,
                protocol,
                ports,
                icmp,
                dscp: 0,
                opening,
                source,
                destination,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn is_the_naive_first_match(rules in prop::collection::vec(any_rule(), 0..12), packets in prop::collection::vec(any_facts(), 1..30)) {
        let policy = policy(&rules);
        let ruleset = compile(&policy);
        for facts in packets {
            let verdict = ruleset.classify(&facts);
            prop_assert_eq!(verdict, naive::classify(&policy, &facts), "{:?}", facts);
            // And what is explained is what happens.
            let explained = explain(&policy, &ruleset, &facts);
            let matching = explained.steps.iter().position(|step| step.matches);
            match verdict {
                Verdict::Matched { rule, .. } => prop_assert_eq!(matching, Some(rule.index())),
                _ => prop_assert_eq!(matching, None),
            }
        }
    }

    /// The reply of a packet meets the rule that the packet meets, unless one of them opens a connection.
    #[test]
    fn both_directions_meet_one_rule(rules in prop::collection::vec(any_rule(), 0..12), packet in any_facts()) {
        let ruleset = compile(&policy(&rules));
        let packet = Facts { opening: false, icmp: None, ..packet };
        let reply = Facts {
            source: packet.destination,
            destination: packet.source,
            ports: match packet.ports {
                Ports::Pair { source, destination } => Ports::Pair { source: destination, destination: source },
                other => other,
            },
            ..packet
        };
        prop_assert_eq!(ruleset.classify(&packet), ruleset.classify(&reply));
    }
}

#[test]
fn what_opens_a_connection_is_no_reply() {
    let policy = policy(&[
        "from: {guest: g0}, to: {guest: g1}, protocol: tcp, ports: [80], action: encrypt, key: k0".into(),
    ]);
    let ruleset = compile(&policy);
    let party = |guest: u32| Party {
        guest: Some(GuestIndex(guest)),
        address: None,
    };
    let facts = Facts {
        network: NetworkIndex(0),
        ethertype: 0x0800,
        vlan: None,
        protocol: Some(6),
        ports: Ports::Pair {
            source: 80,
            destination: 4000,
        },
        icmp: None,
        dscp: 0,
        opening: false,
        source: party(1),
        destination: party(0),
    };
    assert!(
        matches!(ruleset.classify(&facts), Verdict::Matched { .. }),
        "the reply"
    );
    assert_eq!(
        ruleset.classify(&Facts {
            opening: true,
            ..facts
        }),
        Verdict::NoRule,
        "a SYN from port 80"
    );
}
