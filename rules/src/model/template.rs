//! Templates: rules that an event makes for the guest that it is about.

use std::time::Duration;

use super::{Criteria, Place};

/// What makes rules for a guest, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// Its name.
    pub name: String,
    /// What must hold of the guest: an event that brings it about, or brings it about anew, makes the rules.
    pub when: Criteria,
    /// How long the rules live after the event; without it, as long as `when` holds.
    pub lifetime: Option<Duration>,
    /// Where it is declared.
    pub place: Place,
}
