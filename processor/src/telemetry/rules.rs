//! What rules have decided: packets by rule, of one worker; written only by it, read by anyone.

use guestseal_rules::model::{Policy, RuleIndex};

use super::counters::Counter;

/// Packets of each rule, in the rules' order.
#[derive(Debug)]
pub struct RuleCounters {
    rules: Box<[RuleCounter]>,
}

/// Of one rule.
#[derive(Debug)]
struct RuleCounter {
    enforced: Counter,
    watched: Counter,
    also_accepted: Counter,
    log: bool,
}

impl RuleCounters {
    /// For the rules of a policy.
    #[must_use]
    pub fn new(policy: &Policy) -> Self {
        let one = |log| RuleCounter {
            enforced: Counter::default(),
            watched: Counter::default(),
            also_accepted: Counter::default(),
            log,
        };
        Self {
            rules: policy.rules.iter().map(|rule| one(rule.log)).collect(),
        }
    }

    /// A packet met a rule.
    #[inline]
    pub fn met(&self, rule: RuleIndex) {
        if let Some(counter) = self.rules.get(rule.index()) {
            counter.enforced.add(1);
        }
    }

    /// A packet would have met a rule of a section in monitor mode.
    #[inline]
    pub fn would_meet(&self, rule: RuleIndex) {
        if let Some(counter) = self.rules.get(rule.index()) {
            counter.watched.add(1);
        }
    }

    /// A packet came in the second form that a rule accepts for a time.
    #[inline]
    pub fn also_accepted(&self, rule: RuleIndex) {
        if let Some(counter) = self.rules.get(rule.index()) {
            counter.also_accepted.add(1);
        }
    }

    /// Packets that came in a rule's second form.
    #[must_use]
    pub fn in_second_form(&self, rule: RuleIndex) -> u64 {
        self.rules
            .get(rule.index())
            .map_or(0, |counter| counter.also_accepted.get())
    }

    /// Whether packets of a rule are sampled into the log.
    #[inline]
    #[must_use]
    pub fn is_logged(&self, rule: RuleIndex) -> bool {
        self.rules.get(rule.index()).is_some_and(|counter| counter.log)
    }

    /// Packets that met, or would have met, a rule.
    #[must_use]
    pub fn packets(&self, rule: RuleIndex) -> u64 {
        self.rules
            .get(rule.index())
            .map_or(0, |counter| counter.enforced.get() + counter.watched.get())
    }
}
