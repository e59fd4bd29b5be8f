//! Guests that are on another host than the policy's files say: they have moved since.
//!
//! A move is told to each host by the API and holds through restarts. It ends when the files say another host than they said
//! when it was told: whoever wrote them since then knows better.

use std::collections::BTreeMap;

use guestseal_rules::model::{GuestIndex, HostIndex, Policy};
use serde::{Deserialize, Serialize};

use super::journal::{Deed, Entry};

/// Where guests are, by their UUIDs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moves(BTreeMap<String, Moved>);

/// Where a guest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Its host.
    pub to: String,
    /// Its host by the files, when that was told.
    pub declared: String,
    /// Its number among the guest's moves that hosts tell each other; 0 if they do not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub steps: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Moves {
    /// Those that a journal knows.
    #[must_use]
    pub fn of(entries: &[Entry]) -> Self {
        let mut moves = Self::default();
        for entry in entries {
            match &entry.done.deed {
                Deed::Begin { located, .. } => moves.clone_from(located),
                Deed::Located { guest, at } => moves.set(guest, at.clone()),
                _ => {}
            }
        }
        moves
    }

    /// Whether every guest is where the files say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The last move of a guest.
    #[must_use]
    pub fn get(&self, guest: &str) -> Option<&Moved> {
        self.0.get(guest)
    }

    /// Every guest's last move, as far as it matters.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Moved)> {
        self.0.iter().map(|(guest, at)| (guest.as_str(), at))
    }

    /// A guest is somewhere; where the files say ends its move, but for its number that others know.
    pub fn set(&mut self, guest: &str, at: Moved) {
        if at.to == at.declared && at.steps == 0 {
            self.0.remove(guest);
        } else {
            self.0.insert(guest.to_owned(), at);
        }
    }

    /// The guests of a policy that are not where it says. Moves of which its files know better are forgotten; those of guests
    /// and hosts that it does not have wait for them.
    pub fn resolve(&mut self, policy: &Policy) -> BTreeMap<GuestIndex, HostIndex> {
        let mut elsewhere = BTreeMap::new();
        for (number, guest) in (0u32..).map(GuestIndex).zip(&policy.guests) {
            let Some(moved) = self.0.get(&guest.uuid) else {
                continue;
            };
            if policy.hosts[guest.host.index()].name != moved.declared {
                self.0.remove(&guest.uuid);
            } else if let Some(host) = policy.host(&moved.to).filter(|host| *host != guest.host) {
                elsewhere.insert(number, host);
            }
        }
        elsewhere
    }
}

#[cfg(test)]
mod tests {
    use guestseal_rules::load::{Source, load_policy};

    use super::*;

    fn policy(host_of_blue_2: &str) -> Policy {
        let demo = include_str!("../../../rules/examples/demo/policy.yaml");
        let (one, other) = (
            "  - id: blue-2\n    host: h2",
            format!("  - id: blue-2\n    host: {host_of_blue_2}"),
        );
        let text = demo.replace(one, &other);
        let name = "policy.yaml".into();
        load_policy(&[Source { name, text }]).unwrap()
    }

    fn moved(to: &str, declared: &str) -> Moved {
        Moved {
            to: to.into(),
            declared: declared.into(),
            steps: 0,
        }
    }

    #[test]
    fn a_move_holds_until_the_files_know_better_or_it_is_over() {
        let policy_before = policy("h2");
        let guest = policy_before.guest("blue-2").unwrap();
        let mut moves = Moves::default();
        moves.set("blue-2", moved("h1", "h2"));
        let there = BTreeMap::from([(guest, HostIndex(0))]);
        assert_eq!(moves.resolve(&policy_before), there);
        assert_eq!(moves.resolve(&policy_before), there);
        let mut other = moves.clone();
        assert_eq!(
            other.resolve(&policy("h1")),
            BTreeMap::new(),
            "the files say it themselves"
        );
        assert!(other.is_empty());
        moves.set("blue-2", moved("h2", "h2"));
        assert!(moves.is_empty(), "it is back");
        moves.set("who", moved("h1", "h2"));
        assert!(
            moves.resolve(&policy_before).is_empty() && !moves.is_empty(),
            "it may come back"
        );
    }
}
