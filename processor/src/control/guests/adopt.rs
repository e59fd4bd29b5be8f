//! The guests under another policy: known by their UUIDs, with all that has happened to them.

use std::sync::Arc;

use guestseal_rules::compile::{Ruleset, next_generation};
use guestseal_rules::containers::{Changes, Containers};
use guestseal_rules::event::{Event, Moment};

use super::Guests;
use crate::control::journal::Deed;

/// Events that are kept while another policy is prepared.
const MOST: usize = 65_536;

/// What has been accepted since somebody began to prepare another policy from what the guests were then.
#[derive(Debug, Default)]
pub(super) struct Meanwhile {
    events: Vec<(Moment, Event)>,
    too_many: bool,
}

impl Meanwhile {
    pub(super) fn note(&mut self, at: Moment, event: &Event) {
        if self.events.len() < MOST {
            self.events.push((at, event.clone()));
        } else {
            self.too_many = true;
        }
    }
}

/// The guests and rules of another policy.
#[derive(Debug)]
pub struct PreparedGuests {
    /// The guests, as they were at [`Guests::set_out`].
    pub containers: Containers,
    /// What has become of them by the policy alone.
    pub moved: Changes,
    /// The rules; their generation is given when they are in force.
    pub ruleset: Ruleset,
}

impl Guests {
    /// What the guests are now, to prepare another policy from; what happens to them from here on is noted.
    pub fn set_out(&mut self) -> Containers {
        self.meanwhile = Some(Meanwhile::default());
        self.containers.clone()
    }

    /// Nothing came of it.
    pub fn stay(&mut self) {
        self.meanwhile = None;
    }

    /// Whether more has happened since [`Self::set_out`] than was noted.
    #[must_use]
    pub fn was_overtaken(&self) -> bool {
        self.meanwhile.as_ref().is_none_or(|meanwhile| meanwhile.too_many)
    }

    /// Another policy, as it was prepared from [`Self::set_out`]; what happened meanwhile happens under it. `policy` is what
    /// the journal calls it, `changes` what it changes.
    pub fn adopt(
        &mut self,
        by: &str,
        policy: &str,
        changes: &[String],
        prepared: PreparedGuests,
        now: Moment,
    ) {
        self.policy = Arc::clone(prepared.containers.policy());
        self.containers = prepared.containers;
        let mut since = Changes::default();
        for (at, event) in self.meanwhile.take().unwrap_or_default().events {
            if let Err(refusal) = self.containers.apply(at, &event, &mut since) {
                tracing::warn!(
                    "guest {}, {}: accepted under the policy before; under this one: {refusal}",
                    event.guest,
                    event.what
                );
            }
        }
        self.containers.advance(now, &mut since);
        self.ruleset = prepared
            .ruleset
            .update([], next_generation(self.ruleset.generation()));
        let deed = Deed::Policy {
            policy: policy.to_owned(),
            changes: changes.to_vec(),
            state: self.containers.save(),
        };
        self.note(now, by, deed);
        self.say(&prepared.moved);
        self.say(&since);
        self.recompile(&since);
    }
}
