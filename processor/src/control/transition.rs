//! Rules that accept two forms for a time, so that sealing can be switched on and off while traffic flows: which do now,
//! what came in the second form, and the end of it, which comes by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use guestseal_rules::event::Moment;
use guestseal_rules::model::{Policy, RuleIndex};
use serde::Serialize;

use crate::path::tables::AlsoAccepted;

/// How often it is said that it goes on.
const SAY: Duration = Duration::from_secs(60);

/// A rule that accepts two forms, or did, as status shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Transition {
    /// The rule.
    pub rule: String,
    /// What it does.
    pub action: &'static str,
    /// What it accepts as well.
    pub also_accepts: &'static str,
    /// Until when.
    pub until: Moment,
    /// Whether it does now.
    pub active: bool,
    /// Packets that came in the second form.
    pub packets: u64,
}

/// Follows the rules that accept two forms.
#[derive(Debug, Default)]
pub struct Transitions {
    now: Arc<AlsoAccepted>,
    said: Option<Instant>,
}

impl Transitions {
    /// What is accepted as well at this moment.
    #[must_use]
    pub fn accepted(&self) -> &Arc<AlsoAccepted> {
        &self.now
    }

    /// Looks what is accepted as well at a moment; whether that is another than before. Says so, again and again.
    pub fn look(&mut self, policy: &Policy, at: Moment) -> bool {
        let rules = (0u32..).map(RuleIndex).zip(&policy.rules);
        let accepted: AlsoAccepted = rules
            .filter_map(|(number, rule)| {
                let also = rule.also_accept.filter(|also| at < also.until)?;
                Some((number, also.action))
            })
            .collect();
        let changed = accepted != *self.now;
        if changed {
            let ended = self.now.keys().filter(|rule| !accepted.contains_key(rule));
            for rule in ended.filter_map(|rule| policy.rules.get(rule.index())) {
                tracing::warn!("rule \"{}\" accepts one form only from now on", rule.name);
            }
            self.now = Arc::new(accepted);
            self.said = None;
        }
        if !self.now.is_empty() && self.said.is_none_or(|said| said.elapsed() >= SAY) {
            self.said = Some(Instant::now());
            for (rule, also) in &*self.now {
                let rule = &policy.rules[rule.index()];
                let until = rule.also_accept.map(|also| also.until).unwrap_or_default();
                tracing::warn!(
                    "rule \"{}\" says {} and also accepts {} until {until}",
                    rule.name,
                    rule.action.verb(),
                    also.verb()
                );
            }
        }
        changed
    }

    /// What status shows.
    #[must_use]
    pub fn status(&self, policy: &Policy, packets: impl Fn(RuleIndex) -> u64) -> Vec<Transition> {
        let rules = (0u32..).map(RuleIndex).zip(&policy.rules);
        rules
            .filter_map(|(number, rule)| {
                let also = rule.also_accept?;
                Some(Transition {
                    rule: rule.name.clone(),
                    action: rule.action.verb(),
                    also_accepts: also.action.verb(),
                    until: also.until,
                    active: self.now.contains_key(&number),
                    packets: packets(number),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use guestseal_rules::load::{Source, load_policy};

    use super::*;

    #[test]
    fn it_ends_by_itself() {
        let demo = include_str!("../../../rules/examples/demo/policy.yaml");
        let text = demo.replace(
            "action: encrypt, key: red-any}",
            "action: encrypt, key: red-any, also-accept: {action: plaintext, until: \"2026-12-01T12:00:00Z\"}}",
        );
        let name = "policy.yaml".into();
        let policy = load_policy(&[Source { name, text }]).unwrap();
        let until = policy
            .rules
            .iter()
            .find_map(|rule| rule.also_accept)
            .unwrap()
            .until;
        let mut transitions = Transitions::default();
        let before = Moment::from_millis(until.millis() - 1);
        assert!(transitions.look(&policy, before));
        assert!(!transitions.look(&policy, before));
        assert_eq!(transitions.accepted().len(), 1);
        assert!(transitions.status(&policy, |_| 0)[0].active);
        assert!(transitions.look(&policy, until));
        assert!(transitions.accepted().is_empty() && !transitions.status(&policy, |_| 0)[0].active);
    }
}
