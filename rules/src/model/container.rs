//! Security containers: who is in, and what moves a guest elsewhere.

use std::time::Duration;

use super::{ContainerIndex, Criteria, Place};

/// A named set of guests with rules of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// The container it is nested in.
    pub parent: Option<ContainerIndex>,
    /// Whether guests that a security service has something against are held here.
    pub quarantine: bool,
    /// The security services that its guests are to have.
    pub services: Vec<String>,
    /// What moves its guests elsewhere.
    pub transfers: Vec<Transfer>,
    /// What leads back to where a guest came from; without one only a hand does.
    pub release: Option<Release>,
    /// Whether it is said that only a hand leads back.
    pub by_hand: bool,
    /// Where it is declared.
    pub place: Place,
}

impl Container {
    /// What its transfers and its release ask.
    pub(crate) fn criteria(&self) -> impl Iterator<Item = &Criteria> {
        let transfers = self.transfers.iter().map(|transfer| &transfer.when);
        transfers.chain(self.release.iter().map(|release| &release.when))
    }
}

/// A service whose tags count.
#[derive(Clone, Debug, PartialEq)]
pub struct SecurityService {
    /// Its name.
    pub name: String,
    /// Where it is declared.
    pub place: Place,
}

/// What moves guests to another container.
#[derive(Clone, Debug, PartialEq)]
pub struct Transfer {
    /// Its name.
    pub name: String,
    /// What must hold.
    pub when: Criteria,
    /// Where to.
    pub to: ContainerIndex,
    /// Of several that hold at once the highest decides; then the precedence of the services they ask, then their order.
    pub priority: i32,
    /// The rank of the first of the declared services that it asks; smaller is first.
    pub precedence: u32,
    /// Where it is declared.
    pub place: Place,
}

/// What leads back.
#[derive(Clone, Debug, PartialEq)]
pub struct Release {
    /// What must hold.
    pub when: Criteria,
    /// For how long without a break.
    pub after: Duration,
}

/// When a guest counts as flapping, and what then: its releases wait. Transfers into quarantine never do.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Damping {
    /// So many transfers,
    pub transfers: u32,
    /// in so long,
    pub within: Duration,
    /// hold it where it is for so long.
    pub hold: Duration,
}

impl Default for Damping {
    fn default() -> Self {
        Self {
            transfers: 6,
            within: Duration::from_secs(600),
            hold: Duration::from_secs(600),
        }
    }
}
