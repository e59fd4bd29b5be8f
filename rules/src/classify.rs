//! Which rule a packet meets.

use crate::compile::{Compiled, Ruleset};
use crate::facts::{Facts, Ports};
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

/// The first condition of a rule that a packet does not meet.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    Ethertype,
    Protocol,
    /// From and to, in either direction; or in the forward one, for a packet that opens a connection.
    Parties,
    Ports,
    IcmpType,
    /// Everything else holds, and the packet is a fragment whose ports cannot be read.
    NeedsPorts,
}

/// Compares one rule. A rule `from A to B port P` also means the reply, from B port P to A; what opens a TCP connection
/// is no reply.
#[inline]
pub(crate) fn compare(rule: &Compiled, facts: &Facts) -> Result<(), Miss> {
    if rule.ethertype.is_some_and(|wanted| wanted != facts.ethertype) {
        return Err(Miss::Ethertype);
    }
    if rule.protocol.is_some() && rule.protocol != facts.protocol {
        return Err(Miss::Protocol);
    }
    let forward = one_way(rule, facts, false);
    if forward.is_ok() || facts.opening {
        return forward;
    }
    match (forward, one_way(rule, facts, true)) {
        (_, Ok(())) => Ok(()),
        (Err(Miss::Parties), reply) => reply,
        (forward, _) => forward,
    }
}

#[inline]
fn one_way(rule: &Compiled, facts: &Facts, reply: bool) -> Result<(), Miss> {
    let (from, to) = if reply {
        (&facts.destination, &facts.source)
    } else {
        (&facts.source, &facts.destination)
    };
    if !rule.from.contains(facts.network, from) || !rule.to.contains(facts.network, to) {
        return Err(Miss::Parties);
    }
    if !rule.ports.is_empty() {
        let port = match facts.ports {
            Ports::Unreadable => return Err(Miss::NeedsPorts),
            Ports::None => return Err(Miss::Ports),
            Ports::Pair { source, .. } if reply => source,
            Ports::Pair { destination, .. } => destination,
        };
        if !rule.ports.iter().any(|range| range.contains(&port)) {
            return Err(Miss::Ports);
        }
    }
    if let Some(wanted) = rule.icmp_type {
        if facts.ports == Ports::Unreadable {
            return Err(Miss::NeedsPorts);
        }
        let wanted = if reply {
            reply_type(rule.protocol, wanted)
        } else {
            Some(wanted)
        };
        if wanted.is_none() || facts.icmp.map(|(kind, _)| kind) != wanted {
            return Err(Miss::IcmpType);
        }
    }
    Ok(())
}

/// The ICMP type that answers one: echo and neighbour discovery have an answer, nothing else has.
fn reply_type(protocol: Option<u8>, kind: u8) -> Option<u8> {
    match (protocol, kind) {
        (Some(1), 8) => Some(0),
        (Some(58), 128) => Some(129),
        (Some(58), 135) => Some(136),
        (Some(58), 133) => Some(134),
        _ => None,
    }
}

impl Classifier for Ruleset {
    fn classify(&self, facts: &Facts) -> Verdict {
        for (number, rule) in (0u32..).zip(&self.rules) {
            match compare(rule, facts) {
                Ok(()) => {
                    return Verdict::Matched {
                        rule: RuleIndex(number),
                        action: rule.action,
                    };
                }
                Err(Miss::NeedsPorts) => return Verdict::FragmentNeedsPorts,
                Err(_) => {}
            }
        }
        Verdict::NoRule
    }
}

#[cfg(test)]
mod tests;
