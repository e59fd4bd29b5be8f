//! Warnings: what is allowed, and odd.
//!
//! That a rule can never match is only said where it is certain; some such rules are missed.

use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::classify::Action;
use crate::model::{GroupIndex, LabelTest, NetworkKind, Owner, Place, Policy, Selector, Term, Traffic};

mod containers;
mod shadow;

use shadow::{Cover, Entry};

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

/// What is found, in the order of the questions.
#[derive(Default)]
struct Found(Vec<Warning>);

impl Found {
    fn warn(&mut self, place: &Place, message: String) {
        self.0.push(Warning {
            // What is in no file has no place.
            place: (place.line > 0).then(|| place.clone()),
            message,
        });
    }
}

/// Everything odd in a policy.
#[must_use]
pub fn warnings(policy: &Policy) -> Vec<Warning> {
    let mut found = Found::default();
    let entries: Vec<Vec<Entry<'_>>> = policy
        .rules
        .iter()
        .map(|rule| shadow::entries(policy, rule))
        .collect();
    let covered = shadow::covered(policy, &entries);
    rules(policy, &covered, &mut found);
    sections(policy, &covered, &mut found);
    names(policy, &mut found);
    labels(policy, &mut found);
    networks(policy, &entries, &mut found);
    containers::warnings(policy, &mut found);
    found.0
}

/// Rules that can never match.
fn rules(policy: &Policy, covered: &[Cover], found: &mut Found) {
    for (rule, cover) in policy.rules.iter().zip(covered) {
        let by = |number: &usize| {
            let wider = &policy.rules[*number];
            format!("rule \"{}\" ({})", wider.name, wider.place)
        };
        let why = match cover {
            Cover::Open => continue,
            Cover::Nobody => "nobody is whom its from and to mean together".to_owned(),
            Cover::By(rules) if rules.len() == 1 => {
                format!("{} takes all of it", rules.iter().map(by).collect::<String>())
            }
            Cover::By(rules) => {
                let all: Vec<String> = rules.iter().map(by).collect();
                format!("{} take all of it together", all.join(", "))
            }
        };
        found.warn(
            &rule.place,
            format!("rule \"{}\" can never match: {why}", rule.name),
        );
    }
}

/// Sections without rules, and those that are never reached.
fn sections(policy: &Policy, covered: &[Cover], found: &mut Found) {
    for (number, section) in policy.sections.iter().enumerate() {
        let its_own = || {
            let rules = policy.rules.iter().zip(covered).enumerate();
            rules.filter(move |(_, (rule, _))| rule.section.index() == number)
        };
        let declared = section.place.line > 0;
        if its_own().next().is_none() {
            if declared {
                found.warn(
                    &section.place,
                    format!("section \"{}\" has no rules", section.name),
                );
            }
            continue;
        }
        let first = its_own().map(|(rule, _)| rule).next().unwrap_or_default();
        let by_others = |cover: &Cover| match cover {
            Cover::By(rules) => rules.iter().all(|rule| *rule < first),
            _ => false,
        };
        if its_own().all(|(_, (_, cover))| by_others(cover)) {
            let message = format!(
                "section \"{}\" is never reached: sections before it take all of its rules",
                section.name
            );
            found.warn(&section.place, message);
        }
    }
}

/// What is declared and used by nothing.
fn names(policy: &Policy, found: &mut Found) {
    let keys: HashSet<usize> = policy
        .rules
        .iter()
        .flat_map(|rule| rule.actions())
        .filter_map(|action| match action {
            Action::Seal { key, .. } => Some(key.index()),
            _ => None,
        })
        .collect();
    for rule in &policy.rules {
        if let Some(also) = rule.also_accept {
            let message = format!(
                "rule \"{}\" also accepts {} until {}",
                rule.name,
                also.action.verb(),
                also.until
            );
            found.warn(&rule.place, message);
        }
    }
    for (number, key) in policy.keys.iter().enumerate() {
        if !keys.contains(&number) && !key.retired {
            found.warn(&key.place, format!("key \"{}\" is named by no rule", key.id));
        }
    }
    let mut groups = HashSet::new();
    for rule in &policy.rules {
        for selector in [&rule.from, &rule.to] {
            each_term(selector, false, &mut |term, _| {
                if let Term::Group(group) = term {
                    groups.insert(*group);
                }
            });
        }
    }
    for (number, group) in (0u16..).zip(&policy.groups) {
        if !groups.contains(&GroupIndex(number)) {
            found.warn(
                &group.place,
                format!("group \"{}\" is named by no rule", group.name),
            );
        }
    }
    for service in policy.services.iter().filter(|service| !service.used) {
        if let Some(place) = &service.place {
            found.warn(place, format!("service \"{}\" is named by no rule", service.name));
        }
    }
    for guest in policy.guests.iter().filter(|guest| guest.ports.is_empty()) {
        found.warn(
            &guest.place,
            format!("guest \"{}\" has no port: it is in no network", guest.id),
        );
    }
}

/// Labels that rules ask for and no guest is declared with: an event may still set them.
fn labels(policy: &Policy, found: &mut Found) {
    let mut declared: HashMap<&str, HashSet<&str>> = HashMap::new();
    for (name, value) in policy.guests.iter().flat_map(|guest| &guest.labels) {
        declared.entry(name).or_default().insert(value);
    }
    let mut known: HashSet<&LabelTest> = HashSet::new();
    let mut absent: HashSet<&LabelTest> = HashSet::new();
    let groups = policy
        .groups
        .iter()
        .map(|group| (format!("group \"{}\"", group.name), &group.place, &group.members));
    let rules = policy.rules.iter().flat_map(|rule| {
        let name = format!("rule \"{}\"", rule.name);
        [&rule.from, &rule.to].map(|selector| (name.clone(), &rule.place, selector))
    });
    for (name, place, selector) in groups.chain(rules) {
        each_term(selector, false, &mut |term, negated| {
            let Term::Label(test) = term else { return };
            if negated || known.contains(test) {
                return;
            }
            let values = || declared.get(test.name.as_str()).into_iter().flatten().copied();
            if !absent.contains(test) && values().any(|value| test.passes(Some(value))) {
                known.insert(test);
                return;
            }
            absent.insert(test);
            let values: Vec<String> = test.values.iter().map(ToString::to_string).collect();
            let message = format!(
                "{name}: no guest is declared with label {}: {}",
                test.name,
                values.join(" or ")
            );
            found.warn(place, message);
        });
    }
}

/// Networks in which a packet may meet no rule.
fn networks(policy: &Policy, entries: &[Vec<Entry<'_>>], found: &mut Found) {
    let mut closed = vec![false; policy.networks.len()];
    let enforced = policy
        .rules
        .iter()
        .zip(entries)
        .filter(|(rule, _)| !policy.sections[rule.section.index()].monitor);
    for entry in enforced.flat_map(|(_, entries)| entries) {
        if entry.is_about_everybody() && *entry.traffic == Traffic::default() {
            for (number, closed) in (0u16..).zip(&mut closed) {
                *closed |= entry.networks.contains(crate::model::NetworkIndex(number));
            }
        }
    }
    let open = policy.networks.iter().zip(closed).filter(|(_, closed)| !closed);
    for (network, _) in open.filter(|(network, _)| network.kind != NetworkKind::Retired) {
        let message = format!(
            "network \"{}\": packets that no rule matches exist, and are dropped; a last rule can say what they meet",
            network.name
        );
        found.warn(&network.place, message);
    }
}

/// Every term of a selector, and whether it stands under an odd number of nots.
fn each_term<'a>(selector: &'a Selector, negated: bool, of: &mut impl FnMut(&'a Term, bool)) {
    match selector {
        Selector::Any => {}
        Selector::OneOf(all) => all.iter().for_each(|one| each_term(one, negated, of)),
        Selector::All(terms) => {
            for term in terms {
                of(term, negated);
                if let Term::Not(inner) = term {
                    each_term(inner, !negated, of);
                }
            }
        }
    }
}

/// Whether a rule is a container's.
fn is_of(owner: Owner, container: crate::model::ContainerIndex) -> bool {
    owner == Owner::Container(container)
}

#[cfg(test)]
mod tests;
