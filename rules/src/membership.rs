//! What the rules see of each guest at one moment: its labels, containers and what holds of it.

use std::collections::BTreeMap;

use crate::model::{ContainerIndex, CriteriaIndex, GuestIndex, Policy, TemplateIndex};

/// One guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its container and those it is nested in, from the inside.
    pub containers: Vec<ContainerIndex>,
    /// The templates that have made their rules for it, sorted.
    pub subject_of: Vec<TemplateIndex>,
    /// Of [`Policy::criteria`], which hold; a bit each.
    holds: Vec<u64>,
}

impl Membership {
    /// A guest that nothing has happened to, and of which nothing holds.
    #[must_use]
    pub fn at_start(policy: &Policy, guest: GuestIndex) -> Self {
        Self {
            labels: policy.guests[guest.index()].labels.clone(),
            containers: policy.chain(ContainerIndex(0)).collect(),
            subject_of: Vec::new(),
            holds: vec![0; policy.criteria.len().div_ceil(64)],
        }
    }

    /// Says whether a question's answer is yes.
    pub fn set(&mut self, criteria: CriteriaIndex, holds: bool) {
        let bit = 1 << (criteria.index() % 64);
        let word = &mut self.holds[criteria.index() / 64];
        *word = if holds { *word | bit } else { *word & !bit };
    }

    /// Whether a question's answer is yes.
    #[must_use]
    pub fn holds(&self, criteria: CriteriaIndex) -> bool {
        self.holds
            .get(criteria.index() / 64)
            .is_some_and(|word| word & 1 << (criteria.index() % 64) != 0)
    }
}
