//! Warnings: what is allowed, and odd.

use std::fmt;

use crate::classify::Action;
use crate::compile::compile;
use crate::model::{KeyIndex, Place, Policy, Rule, Selector, Term};

/// Something odd in a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where, if it is at one place.
    pub place: Option<Place>,
    /// What.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Everything odd in a policy. A warning about a rule that can never match is never wrong; some such rules are missed.
#[must_use]
pub fn warnings(policy: &Policy) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |place: Option<&Place>, message: String| {
        warnings.push(Warning {
            place: place.cloned(),
            message,
        })
    };
    let compiled = compile(policy);
    for (number, (rule, sets)) in policy.rules.iter().zip(&compiled.rules).enumerate() {
        if let Some(wider) = policy.rules[..number].iter().find(|before| covers(before, rule)) {
            let message = format!(
                "rule \"{}\" can never match: rule \"{}\" ({}) takes all of it",
                rule.name, wider.name, wider.place
            );
            warn(Some(&rule.place), message);
        }
        for (side, parties) in [("from", &sets.from), ("to", &sets.to)] {
            if parties.is_nobody() {
                warn(
                    Some(&rule.place),
                    format!(
                        "rule \"{}\" can never match: its {side} selects no guest",
                        rule.name
                    ),
                );
            }
        }
    }
    for (number, key) in policy.keys.iter().enumerate() {
        let used =
            |rule: &Rule| matches!(rule.action, Action::Seal { key, .. } if key == KeyIndex(number as u16));
        if !policy.rules.iter().any(used) {
            warn(
                Some(&key.place),
                format!("key \"{}\" is named by no rule", key.id),
            );
        }
    }
    for guest in policy.guests.iter().filter(|guest| guest.ports.is_empty()) {
        warn(
            Some(&guest.place),
            format!("guest \"{}\" has no port: it is in no network", guest.id),
        );
    }
    for (number, network) in policy.networks.iter().enumerate() {
        let catches = |rule: &Rule| {
            let whole = |selector: &Selector| means_network(selector, number);
            whole(&rule.from) && whole(&rule.to) && is_about_everything(rule)
        };
        if !policy.rules.iter().any(catches) {
            let message = format!(
                "network \"{}\": packets that no rule matches exist, and are dropped; a last rule can say what they meet",
                network.name
            );
            warn(None, message);
        }
    }
    warnings
}

fn is_about_everything(rule: &Rule) -> bool {
    rule.ethertype.is_none() && rule.protocol.is_none() && rule.ports.is_empty() && rule.icmp_type.is_none()
}

fn means_network(selector: &Selector, network: usize) -> bool {
    match selector {
        Selector::Any => true,
        Selector::All(terms) => terms
            .iter()
            .all(|term| matches!(term, Term::Network(one) if one.index() == network)),
        Selector::OneOf(all) => all.iter().any(|one| means_network(one, network)),
    }
}

/// Whether every packet that meets `narrow` meets `wide`.
fn covers(wide: &Rule, narrow: &Rule) -> bool {
    let within = |wide: Option<u16>, narrow: Option<u16>| wide.is_none() || wide == narrow;
    selector_covers(&wide.from, &narrow.from)
        && selector_covers(&wide.to, &narrow.to)
        && within(wide.ethertype, narrow.ethertype)
        && within(wide.protocol.map(u16::from), narrow.protocol.map(u16::from))
        && within(wide.icmp_type.map(u16::from), narrow.icmp_type.map(u16::from))
        && (wide.ports.is_empty()
            || (!narrow.ports.is_empty()
                && narrow.ports.iter().all(|range| {
                    wide.ports
                        .iter()
                        .any(|wide| wide.start() <= range.start() && range.end() <= wide.end())
                })))
}

fn selector_covers(wide: &Selector, narrow: &Selector) -> bool {
    match (wide, narrow) {
        (Selector::Any, _) => true,
        (_, Selector::OneOf(all)) => all.iter().all(|one| selector_covers(wide, one)),
        (Selector::OneOf(all), _) => all.iter().any(|one| selector_covers(one, narrow)),
        (Selector::All(wide), Selector::All(narrow)) => wide.iter().all(|term| match term {
            Term::Cidr(cidr) => narrow
                .iter()
                .any(|other| matches!(other, Term::Cidr(inner) if cidr.covers(inner))),
            term => narrow.contains(term),
        }),
        (Selector::All(_), Selector::Any) => false,
    }
}

#[cfg(test)]
mod tests;
