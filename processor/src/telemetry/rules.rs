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

/// What a rule has counted.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleCounts {
    /// Packets that met it, or would have.
    pub packets: u64,
    /// Packets that came in the second form that it accepts for a time.
    pub in_second_form: u64,
}

impl RuleCounts {
    /// The sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            in_second_form: self.in_second_form + other.in_second_form,
        }
    }
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
        self.met_by(rule, 1);
    }

    /// So many packets met a rule.
    #[inline]
    pub fn met_by(&self, rule: RuleIndex, packets: usize) {
        if let Some(counter) = self.rules.get(rule.index()) {
            counter.enforced.add(packets as u64);
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

    /// Whether packets of a rule are sampled into the log.
    #[inline]
    #[must_use]
    pub fn is_logged(&self, rule: RuleIndex) -> bool {
        self.rules.get(rule.index()).is_some_and(|counter| counter.log)
    }

    /// What a rule has counted.
    #[must_use]
    pub fn counts(&self, rule: RuleIndex) -> RuleCounts {
        let of = |counter: &RuleCounter| RuleCounts {
            packets: counter.enforced.get() + counter.watched.get(),
            in_second_form: counter.also_accepted.get(),
        };
        self.rules.get(rule.index()).map(of).unwrap_or_default()
    }
}
