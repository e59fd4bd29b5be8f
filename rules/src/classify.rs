//! Which rule a packet meets.

use crate::facts::Facts;
use crate::model::{KeyIndex, RuleIndex};

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

/// Finds the rule of a packet. Allocates nothing.
pub trait Classifier {
    /// The verdict on one packet.
    fn classify(&self, facts: &Facts) -> Verdict;
}
