//! Why a packet meets its rule, and why not the ones before it.

use std::fmt;

use serde::Serialize;

use crate::classify::{Action, Miss, Protection, compare};
use crate::compile::Ruleset;
use crate::facts::{Facts, Ports};
use crate::model::{Policy, Rule};

/// What one rule says of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The rule's name.
    pub rule: String,
    /// Where it is: `file:line:column`.
    pub place: String,
    /// Whether it matches.
    pub matches: bool,
    /// Why, or why not.
    pub why: String,
}

/// The whole way to the verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The rules in order, up to the one that decides.
    pub steps: Vec<Step>,
    /// What happens to the packet.
    pub verdict: String,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let mark = if step.matches { "match" } else { "no   " };
            writeln!(f, "{mark}  {} ({}): {}", step.rule, step.place, step.why)?;
        }
        write!(f, "=> {}", self.verdict)
    }
}

/// Explains the verdict on one packet.
#[must_use]
pub fn explain(policy: &Policy, ruleset: &Ruleset, facts: &Facts) -> Explanation {
    let mut steps = Vec::new();
    for (rule, compiled) in policy.rules.iter().zip(&ruleset.rules) {
        let compared = compare(compiled, facts);
        let why = match compared {
            Ok(()) => "every condition holds".to_owned(),
            Err(miss) => why_not(rule, facts, miss),
        };
        let (rule_name, place) = (rule.name.clone(), rule.place.to_string());
        steps.push(Step {
            rule: rule_name,
            place,
            matches: compared.is_ok(),
            why,
        });
        match compared {
            Ok(()) => {
                return Explanation {
                    steps,
                    verdict: describe(policy, rule.action),
                };
            }
            Err(Miss::NeedsPorts) => {
                let verdict =
                    "dropped: FragmentNeedsPorts, a later fragment may not pass a rule that needs ports"
                        .into();
                return Explanation { steps, verdict };
            }
            Err(_) => {}
        }
    }
    Explanation {
        steps,
        verdict: "dropped: NoRule, no rule matches".to_owned(),
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
            policy.keys.get(key.index()).map_or_else(
                || verb.to_owned(),
                |key| format!("{verb} under key {} ({})", key.id, key.suite),
            )
        }
    }
}

fn why_not(rule: &Rule, facts: &Facts, miss: Miss) -> String {
    match miss {
        Miss::Ethertype => {
            format!(
                "the EtherType is {:#06x}, the rule wants {:#06x}",
                facts.ethertype,
                rule.ethertype.unwrap_or(0)
            )
        }
        Miss::Protocol => {
            let found = facts
                .protocol
                .map_or_else(|| "none (not IP)".to_owned(), |number| number.to_string());
            format!(
                "the protocol is {found}, the rule wants {}",
                rule.protocol.unwrap_or(0)
            )
        }
        Miss::Parties if facts.opening => {
            "sender and receiver are not its from and to (a SYN is no reply)".to_owned()
        }
        Miss::Parties => "sender and receiver are not its from and to, in neither direction".to_owned(),
        Miss::Ports => {
            let ranges: Vec<String> = rule
                .ports
                .iter()
                .map(|range| match (range.start(), range.end()) {
                    (first, last) if first == last => first.to_string(),
                    (first, last) => format!("{first}-{last}"),
                })
                .collect();
            let found = match facts.ports {
                Ports::Pair { source, destination } => format!("ports are {source} to {destination}"),
                _ => "the packet has no ports".to_owned(),
            };
            format!("{found}, the rule wants {}", ranges.join(", "))
        }
        Miss::IcmpType => {
            let found = facts
                .icmp
                .map_or_else(|| "none".to_owned(), |(kind, _)| kind.to_string());
            format!(
                "the ICMP type is {found}, the rule wants {}",
                rule.icmp_type.unwrap_or(0)
            )
        }
        Miss::NeedsPorts => "it needs ports, and this fragment has none to read".to_owned(),
    }
}
