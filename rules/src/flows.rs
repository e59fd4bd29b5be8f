//! What agents in guests have said of their flows: whose they are, and of which application.
//!
//! An agent's word is bound to its own guest: it speaks for the end of the flow that is its guest's, never for the other.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::facts::{Facts, Ports};
use crate::model::{FlowTest, Glob, NetworkIndex};

/// One end of a flow: address and port.
pub type End = (IpAddr, u16);

/// A flow of both directions: its ends are in one order, whichever side speaks.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    network: NetworkIndex,
    protocol: u8,
    ends: [End; 2],
}

/// What is known of a flow from one of its ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowContext {
    /// The user whose it is.
    pub user: Option<String>,
    /// The user's groups.
    pub groups: Vec<String>,
    /// The application.
    pub application: Option<String>,
}

/// What each end's agent has said, in the order of the key's ends.
pub type Told = [Option<Arc<FlowContext>>; 2];

/// The flows of which something is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flows {
    /// By flow; never neither end.
    pub by_key: BTreeMap<FlowKey, Told>,
}

impl FlowKey {
    /// The flow between two ends, and the place of the first among the key's ends.
    #[inline]
    #[must_use]
    pub fn new(network: NetworkIndex, protocol: u8, one: End, other: End) -> (Self, usize) {
        let (ends, place) = if one <= other {
            ([one, other], 0)
        } else {
            ([other, one], 1)
        };
        let key = Self {
            network,
            protocol,
            ends,
        };
        (key, place)
    }

    /// Its logical network.
    #[must_use]
    pub fn network(&self) -> NetworkIndex {
        self.network
    }

    /// Its upper-layer protocol.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// The first or second of its ends.
    #[must_use]
    pub fn end(&self, place: usize) -> End {
        self.ends[place]
    }

    /// The flow of a packet, if it has ports, and the place of its sender's end.
    #[inline]
    #[must_use]
    pub fn of(facts: &Facts) -> Option<(Self, usize)> {
        let Ports::Pair { source, destination } = facts.ports else {
            return None;
        };
        let one = (facts.source.address?, source);
        let other = (facts.destination.address?, destination);
        Some(Self::new(facts.network, facts.protocol?, one, other))
    }
}

impl Flows {
    /// What the sender's agent has said of a packet's flow; for a packet that is a reply, the receiver's agent.
    #[must_use]
    pub fn context(&self, facts: &Facts, reply: bool) -> Option<&FlowContext> {
        let (key, place) = FlowKey::of(facts)?;
        self.by_key.get(&key)?[place ^ usize::from(reply)].as_deref()
    }
}

impl FlowTest {
    /// Whether a flow of this context passes; one of which nothing is known never does.
    #[must_use]
    pub fn passes(&self, context: Option<&FlowContext>) -> bool {
        let Some(context) = context else { return false };
        let is = |glob: &Option<Glob>, found: &Option<String>| {
            glob.as_ref()
                .is_none_or(|glob| found.as_ref().is_some_and(|found| glob.matches(found)))
        };
        let in_group = |glob: &Glob| context.groups.iter().any(|group| glob.matches(group));
        is(&self.user, &context.user)
            && is(&self.application, &context.application)
            && self.group.as_ref().is_none_or(in_group)
    }
}
