//! Why a packet meets its rule, and why not the ones before it.
//!
//! Reads the rules as [`World::first_match`] does, and says of each the condition that decides. Rules of sections in
//! monitor mode are told beside the others: what they would do, and that they do not.

use std::fmt;

use serde::Serialize;

use crate::classify::{Action, Protection};
use crate::facts::{Facts, Party};
use crate::meaning::{Miss, World};
use crate::model::{GuestIndex, Owner, Policy, Rule, TemplateIndex};

mod words;

use words::Words;

/// What is known of why guests are where they are.
pub trait Causes {
    /// Why a guest is in its container: the event that moved it there.
    fn container(&self, guest: GuestIndex) -> Option<String>;

    /// The event that made a template's rules for a guest.
    fn subject(&self, guest: GuestIndex, template: TemplateIndex) -> Option<String>;
}

/// Nothing is known.
impl Causes for () {
    fn container(&self, _: GuestIndex) -> Option<String> {
        None
    }

    fn subject(&self, _: GuestIndex, _: TemplateIndex) -> Option<String> {
        None
    }
}

/// What one rule says of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The rule's name.
    pub rule: String,
    /// Where it is: `file:line:column`.
    pub place: String,
    /// Its section.
    pub section: String,
    /// The container or the template whose rule it is, such as `container quarantine`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Whether its section is in monitor mode: it decides nothing.
    pub monitor: bool,
    /// Whether it matches.
    pub matches: bool,
    /// Why, or why not.
    pub why: String,
}

/// The whole way to the verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The rules in order: up to the one that decides, and the watched ones up to the one that would.
    pub steps: Vec<Step>,
    /// What happens to the packet.
    pub verdict: String,
    /// What the sections in monitor mode would do to it, if they say anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<String>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let mark = match (step.matches, step.monitor) {
                (true, false) => "match",
                (true, true) => "would",
                (false, _) => "no   ",
            };
            write!(f, "{mark}  {} ({}", step.rule, step.place)?;
            match &step.owner {
                Some(owner) => write!(f, ", {owner}")?,
                None => write!(f, ", section {}", step.section)?,
            }
            let monitor = if step.monitor { ", monitor" } else { "" };
            writeln!(f, "{monitor}): {}", step.why)?;
        }
        if let Some(monitor) = &self.monitor {
            writeln!(f, "=> {monitor}")?;
        }
        write!(f, "=> {}", self.verdict)
    }
}

/// Explains the verdict on one packet.
#[must_use]
pub fn explain(world: &World<'_>, facts: &Facts, causes: &dyn Causes) -> Explanation {
    let policy = world.policy;
    let words = Words { world, causes };
    let mut steps = Vec::new();
    let (mut verdict, mut monitor) = (None, None);
    for rule in &policy.rules {
        let section = &policy.sections[rule.section.index()];
        let decided = if section.monitor {
            &mut monitor
        } else {
            &mut verdict
        };
        if decided.is_some() {
            continue;
        }
        let compared = world.compare(rule, facts);
        steps.push(Step {
            rule: rule.name.clone(),
            place: rule.place.to_string(),
            section: section.name.clone(),
            owner: owner(policy, rule),
            monitor: section.monitor,
            matches: compared.is_ok(),
            why: match compared {
                Ok(()) => words.why(rule, facts),
                Err(miss) => words.why_not(rule, facts, miss),
            },
        });
        *decided = match compared {
            Ok(()) if section.monitor => Some(format!(
                "would: {}, by rule {} of section {} (monitor)",
                describe(policy, rule.action),
                rule.name,
                section.name
            )),
            Ok(()) => Some(describe(policy, rule.action)),
            Err(Miss::NeedsPorts) if section.monitor => Some(format!("would: {NEEDS_PORTS} (monitor)")),
            Err(Miss::NeedsPorts) => Some(NEEDS_PORTS.to_owned()),
            Err(_) => None,
        };
    }
    Explanation {
        steps,
        verdict: verdict.unwrap_or_else(|| "dropped: NoRule, no rule matches".to_owned()),
        monitor,
    }
}

const NEEDS_PORTS: &str =
    "dropped: FragmentNeedsPorts, a later fragment may not pass a rule that needs ports";

fn owner(policy: &Policy, rule: &Rule) -> Option<String> {
    match rule.owner {
        Owner::Section => None,
        Owner::Container(container) => {
            Some(format!("container {}", policy.containers[container.index()].name))
        }
        Owner::Template(template) => Some(format!("template {}", policy.templates[template.index()].name)),
    }
}

fn describe(policy: &Policy, action: Action) -> String {
    match action {
        Action::Plaintext => "plaintext".to_owned(),
        Action::Drop => "dropped: RuleDrops, the rule says drop".to_owned(),
        Action::Seal { protection, key } => {
            let verb = match protection {
                Protection::Encrypt => "encrypt",
                Protection::Authenticate => "authenticate",
            };
            let key = &policy.keys[key.index()];
            format!("{verb} under key {} ({})", key.id, key.suite)
        }
    }
}

/// A party as an operator calls it.
fn party(policy: &Policy, party: &Party) -> String {
    match (party.guest, party.address) {
        (Some(guest), Some(address)) => format!("{} ({address})", policy.guests[guest.index()].id),
        (Some(guest), None) => policy.guests[guest.index()].id.clone(),
        (None, Some(address)) => address.to_string(),
        (None, None) => "an unknown machine".to_owned(),
    }
}

#[cfg(test)]
mod tests;
