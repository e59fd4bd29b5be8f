//! What one policy has that another has not, in words for the journal and for who asked.

use std::collections::BTreeSet;

use guestseal_rules::model::{NetworkKind, Policy};

/// Lines at most; a fleet's worth of new guests is a number.
const MOST: usize = 30;

/// What changes from one policy to another: names that come and go, guests on other hosts, ports and rules that do something
/// else. At most so many lines; empty if none of it is another.
#[must_use]
pub(super) fn differences(before: &Policy, now: &Policy) -> Vec<String> {
    let mut lines = Vec::new();
    let hosts = |policy: &Policy| {
        let live = policy.hosts.iter().filter(|host| !host.addresses.is_empty());
        live.map(|host| host.name.clone()).collect()
    };
    let networks = |policy: &Policy| {
        let live = policy
            .networks
            .iter()
            .filter(|one| one.kind != NetworkKind::Retired);
        live.map(|network| format!("{} ({:?})", network.name, network.kind))
            .collect()
    };
    let keys = |policy: &Policy| {
        let live = policy.keys.iter().filter(|key| !key.retired);
        live.map(|key| format!("{} ({})", key.id, key.suite)).collect()
    };
    names(&mut lines, "host", hosts(before), hosts(now));
    names(&mut lines, "network", networks(before), networks(now));
    names(&mut lines, "key", keys(before), keys(now));
    names(&mut lines, "guest", guests(before), guests(now));
    names(&mut lines, "port", ports(before), ports(now));
    macro_rules! named {
        ($($what:literal $list:ident)*) => {
            $(
                let of = |policy: &Policy| policy.$list.iter().map(|one| one.name.clone()).collect();
                names(&mut lines, $what, of(before), of(now));
            )*
        };
    }
    named! {"group" groups "container" containers "template" templates "section" sections}
    names(&mut lines, "rule", rules(before), rules(now));
    if lines.len() > MOST {
        let more = lines.len() - MOST;
        lines.truncate(MOST);
        lines.push(format!("and {more} more"));
    }
    lines
}

fn guests(policy: &Policy) -> BTreeSet<String> {
    let guests = policy.guests.iter();
    guests
        .map(|guest| format!("{} on {}", guest.id, policy.hosts[guest.host.index()].name))
        .collect()
}

fn ports(policy: &Policy) -> BTreeSet<String> {
    let ports = policy.ports.iter();
    ports
        .map(|port| {
            let addresses: Vec<String> = port.addresses.iter().map(ToString::to_string).collect();
            let vlan = port.vlan.map_or_else(String::new, |vlan| format!(" VLAN {vlan}"));
            format!(
                "{}{vlan} of {} in {}: {} {}{}",
                port.interface,
                policy.guests[port.guest.index()].id,
                policy.networks[port.network.index()].name,
                crate::wire::ethernet::MacAddress(port.mac),
                addresses.join(" "),
                if port.router { ", router" } else { "" }
            )
        })
        .collect()
}

fn rules(policy: &Policy) -> BTreeSet<String> {
    let rules = policy.rules.iter();
    rules
        .map(|rule| {
            let section = &policy.sections[rule.section.index()];
            let key = match rule.action {
                guestseal_rules::classify::Action::Seal { key, .. } => {
                    format!(" under {}", policy.keys[key.index()].id)
                }
                _ => String::new(),
            };
            let watched = if section.monitor { ", only watched" } else { "" };
            format!("{} ({}{key}{watched})", rule.name, rule.action.verb())
        })
        .collect()
}

fn names(lines: &mut Vec<String>, what: &str, before: BTreeSet<String>, now: BTreeSet<String>) {
    lines.extend(
        now.difference(&before)
            .map(|name| format!("{what} {name} is new")),
    );
    lines.extend(
        before
            .difference(&now)
            .map(|name| format!("{what} {name} is gone")),
    );
}

#[cfg(test)]
mod tests {
    use guestseal_rules::load::{Source, load_policy, load_policy_after};

    use super::*;

    #[test]
    fn what_comes_goes_and_changes_is_named() {
        let demo = include_str!("../../../rules/examples/demo/policy.yaml");
        let source = |text: &str| {
            let (name, text) = ("policy.yaml".into(), text.into());
            [Source { name, text }]
        };
        let before = load_policy(&source(demo)).unwrap();
        assert_eq!(differences(&before, &before), Vec::<String>::new());
        let other = demo
            .replace("interface: gp-blue-1, network", "interface: tap7, network")
            .replace("id: red-2", "id: red-3");
        let other = other.replacen("action: plaintext", "action: drop", 1);
        let now = load_policy_after(&before, &source(&other)).unwrap();
        let said = differences(&before, &now).join("\n");
        for line in [
            "guest red-3 on h2 is new",
            "guest red-2 on h2 is gone",
            "port tap7 of blue-1 in blue: 02:00:00:01:00:01",
            "(drop) is new",
            "(plaintext) is gone",
        ] {
            assert!(said.contains(line), "{line} is not in:\n{said}");
        }
    }
}
