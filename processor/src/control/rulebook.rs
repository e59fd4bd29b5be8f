//! What rules have counted, through policies: a rule that stays keeps its packets, whatever its number is.
//!
//! Each policy has counters of its own, and workers write to those of the tables that they read. Those of a policy that is
//! not in force any more are kept until no worker can write to them, and are summed up then.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use guestseal_rules::model::{Policy, RuleIndex};

use crate::telemetry::rules::{RuleCounters, RuleCounts};

/// The counters of one policy, one for each worker.
#[derive(Debug)]
struct Page {
    policy: Arc<Policy>,
    /// The first generation of its rules.
    since: NonZeroU32,
    counters: Arc<[Arc<RuleCounters>]>,
}

/// The counters of the policy in force, and what its rules have counted before.
#[derive(Debug)]
pub struct RuleBook {
    current: Page,
    /// The latest first.
    past: Vec<Page>,
    sums: HashMap<String, RuleCounts>,
}

impl Page {
    fn new(policy: &Arc<Policy>, since: NonZeroU32, workers: usize) -> Self {
        let counters = (0..workers).map(|_| Arc::new(RuleCounters::new(policy)));
        Self {
            policy: Arc::clone(policy),
            since,
            counters: counters.collect(),
        }
    }

    fn counts(&self, rule: RuleIndex) -> RuleCounts {
        let all = self.counters.iter().map(|counters| counters.counts(rule));
        all.fold(RuleCounts::default(), RuleCounts::plus)
    }

    /// The number of a rule of a name: the same as before in most policies.
    fn number_of(&self, name: &str, guess: RuleIndex) -> Option<RuleIndex> {
        let rules = &self.policy.rules;
        if rules.get(guess.index()).is_some_and(|rule| rule.name == name) {
            return Some(guess);
        }
        let found = rules.iter().position(|rule| rule.name == name)?;
        Some(RuleIndex(found as u32))
    }
}

impl RuleBook {
    /// For a policy and its first generation of rules, which nothing has met.
    #[must_use]
    pub fn new(policy: &Arc<Policy>, since: NonZeroU32, workers: usize) -> Self {
        Self {
            current: Page::new(policy, since, workers),
            past: Vec::new(),
            sums: HashMap::new(),
        }
    }

    /// Another policy is about to be in force; its counters are [`Self::counters`] from here on.
    pub fn turn(&mut self, policy: &Arc<Policy>, since: NonZeroU32) {
        let next = Page::new(policy, since, self.current.counters.len());
        let before = std::mem::replace(&mut self.current, next);
        self.past.insert(0, before);
    }

    /// The counters of the policy in force, one for each worker.
    #[must_use]
    pub fn counters(&self) -> &Arc<[Arc<RuleCounters>]> {
        &self.current.counters
    }

    /// The policy whose rules had a generation; `None` if it is gone.
    #[must_use]
    pub fn policy_of(&self, generation: NonZeroU32) -> Option<&Policy> {
        let mut pages = std::iter::once(&self.current).chain(&self.past);
        pages
            .find(|page| page.since <= generation)
            .map(|page| &*page.policy)
    }

    /// What a rule of the policy in force has counted.
    #[must_use]
    pub fn counts(&self, rule: RuleIndex) -> RuleCounts {
        let Some(name) = self.current.policy.rules.get(rule.index()).map(|rule| &rule.name) else {
            return RuleCounts::default();
        };
        let past = self.past.iter().filter_map(|page| {
            let rule = page.number_of(name, rule)?;
            Some(page.counts(rule))
        });
        let summed = self.sums.get(name).copied().unwrap_or_default();
        past.fold(self.current.counts(rule), RuleCounts::plus)
            .plus(summed)
    }

    /// Sums up what no worker writes to any more. Of rules that are no more nothing is kept.
    pub fn settle(&mut self) {
        while let Some(page) = self.past.pop() {
            if Arc::strong_count(&page.counters) > 1
                || page.counters.iter().any(|one| Arc::strong_count(one) > 1)
            {
                self.past.push(page);
                return;
            }
            for (number, rule) in (0u32..).map(RuleIndex).zip(&page.policy.rules) {
                let counts = page.counts(number);
                let sum = self.sums.entry(rule.name.clone()).or_default();
                *sum = sum.plus(counts);
            }
            let there: std::collections::HashSet<&str> = std::iter::once(&self.current)
                .chain(&self.past)
                .flat_map(|page| page.policy.rules.iter().map(|rule| &*rule.name))
                .collect();
            self.sums.retain(|name, _| there.contains(name.as_str()));
        }
    }
}

#[cfg(test)]
mod tests {
    use guestseal_rules::load::{Source, load_policy};

    use super::*;

    fn policy(rules: &str) -> Arc<Policy> {
        let text = format!(
            "hosts: [{{name: h1, address: 192.0.2.1}}]\nnetworks: [{{name: blue}}]\nrules:\n{}",
            rules
                .split(' ')
                .map(|name| format!("  - {{name: {name}, from: any, to: any, action: drop}}\n"))
                .collect::<String>()
        );
        let name = "policy.yaml".into();
        Arc::new(load_policy(&[Source { name, text }]).unwrap())
    }

    fn generation(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    #[test]
    fn a_rule_that_stays_keeps_its_packets_and_another_does_not_get_them() {
        let mut book = RuleBook::new(&policy("a b c"), generation(1), 2);
        let worker = Arc::clone(&book.counters()[1]);
        worker.met(RuleIndex(1));
        book.counters()[0].met(RuleIndex(1));
        book.counters()[0].met(RuleIndex(2));
        book.turn(&policy("x b"), generation(7));
        // A worker that has not seen the new tables yet.
        worker.met(RuleIndex(1));
        book.counters()[0].met(RuleIndex(1));
        let count = |book: &RuleBook, rule| book.counts(RuleIndex(rule)).packets;
        assert_eq!((count(&book, 0), count(&book, 1)), (0, 4));
        book.settle();
        assert_eq!(book.past.len(), 1, "somebody may still write to it");
        drop(worker);
        book.settle();
        assert!(book.past.is_empty());
        assert_eq!((count(&book, 0), count(&book, 1)), (0, 4));
        book.turn(&policy("c b"), generation(9));
        book.settle();
        assert_eq!((count(&book, 0), count(&book, 1)), (0, 4), "c begins anew");
    }

    #[test]
    fn a_number_means_what_it_meant_in_its_generation() {
        let mut book = RuleBook::new(&policy("a"), generation(1), 1);
        let held = Arc::clone(book.counters());
        book.turn(&policy("b"), generation(5));
        let name = |book: &RuleBook, number| Some(book.policy_of(generation(number))?.rules[0].name.clone());
        assert_eq!(name(&book, 4).as_deref(), Some("a"));
        assert_eq!(name(&book, 5).as_deref(), Some("b"));
        drop(held);
        book.settle();
        assert_eq!(name(&book, 4), None);
    }
}
