//! Which rule a packet meets.
//!
//! Packets are looked up together where they come together (see `walk`). Allocates nothing.

use arrayvec::ArrayVec;

use crate::compile::{Class, EntryVerdict, Ruleset};
use crate::facts::{Facts, Ports};
use crate::model::{KeyIndex, RuleIndex};

mod walk;

pub(crate) use walk::GROUP;

/// How a packet is sealed.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Protection {
    /// AES-GCM.
    Encrypt,
    /// AES-GMAC.
    Authenticate,
}

/// What a rule does.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sealed under a key.
    Seal {
        /// How.
        protection: Protection,
        /// Under which key.
        key: KeyIndex,
    },
    /// As it is.
    Plaintext,
    /// Not at all.
    Drop,
}

impl Action {
    /// Its word in a policy.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Action::Seal {
                protection: Protection::Encrypt,
                ..
            } => "encrypt",
            Action::Seal {
                protection: Protection::Authenticate,
                ..
            } => "authenticate",
            Action::Plaintext => "plaintext",
            Action::Drop => "drop",
        }
    }
}

/// What the rules say of a packet.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A rule matches.
    Matched {
        /// Which.
        rule: RuleIndex,
        /// What it does.
        action: Action,
    },
    /// No rule matches.
    NoRule,
    /// A fragment without ports met a rule that needs them.
    FragmentNeedsPorts,
}

/// What holds of a packet, and what would hold if the sections that are only watched were all.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What happens.
    pub verdict: Verdict,
    /// The rule of a watched section that matches, if there is one.
    pub watched: Option<RuleIndex>,
}

impl Decision {
    /// Of what no rule matches.
    pub const UNMATCHED: Self = Self {
        verdict: Verdict::NoRule,
        watched: None,
    };
}

impl Ruleset {
    /// The decision on one packet.
    #[must_use]
    pub fn classify(&self, facts: &Facts) -> Decision {
        let mut decision = [Decision::UNMATCHED];
        self.classify_all(std::slice::from_ref(facts), &mut decision);
        decision[0]
    }

    /// The decision on each packet, in its place: the lines of memory that one packet waits for come while others are looked
    /// at.
    pub fn classify_all(&self, facts: &[Facts], decisions: &mut [Decision]) {
        for (facts, decisions) in facts.chunks(GROUP).zip(decisions.chunks_mut(GROUP)) {
            self.classify_group(facts, decisions);
        }
    }

    fn classify_group(&self, facts: &[Facts], decisions: &mut [Decision]) {
        let told: ArrayVec<[Class; 2], GROUP> = match &self.flows {
            Some(flows) => facts.iter().map(|facts| flows.classes(facts)).collect(),
            None => ArrayVec::new(),
        };
        let mut found = [EntryVerdict::NONE; GROUP];
        self.enforced.look_up(facts, &told, &mut found);
        for ((decision, facts), found) in decisions.iter_mut().zip(facts).zip(&found) {
            decision.verdict = self.verdict(*found, facts);
            decision.watched = None;
        }
        if let Some(index) = &self.monitored {
            let mut found = [EntryVerdict::NONE; GROUP];
            index.look_up(facts, &told, &mut found);
            for ((decision, facts), found) in decisions.iter_mut().zip(facts).zip(&found) {
                decision.watched = match self.verdict(*found, facts) {
                    Verdict::Matched { rule, .. } => Some(rule),
                    _ => None,
                };
            }
        }
    }

    #[inline]
    fn verdict(&self, found: EntryVerdict, facts: &Facts) -> Verdict {
        if found.needs_ports() && facts.ports == Ports::Unreadable {
            return Verdict::FragmentNeedsPorts;
        }
        let rule = found.rule();
        match self.actions.get(rule.index()) {
            Some(action) => Verdict::Matched {
                rule,
                action: *action,
            },
            None => Verdict::NoRule,
        }
    }
}

#[cfg(test)]
mod tests;
