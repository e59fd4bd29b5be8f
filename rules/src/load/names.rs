//! What the files declare by name, and what may stand in them only once. Found by hash, so that fleets load fast.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;

use crate::model::{
    Criteria, CriteriaIndex, FlowTest, FlowTestIndex, HostIndex, MAX_GUESTS, NetworkIndex, NetworkKind,
};

/// What has a name.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Host,
    Network,
    Guest,
    Key,
    Group,
    Service,
    SecurityService,
    Container,
    Section,
    Template,
}

impl Kind {
    const COUNT: usize = Kind::Template as usize + 1;

    /// So many a policy may have: what their numbers hold.
    pub(super) fn most(self) -> usize {
        match self {
            Kind::Guest => MAX_GUESTS,
            _ => usize::from(u16::MAX),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Host => "host",
            Kind::Network => "network",
            Kind::Guest => "guest",
            Kind::Key => "key",
            Kind::Group => "group",
            Kind::Service => "service",
            Kind::SecurityService => "security service",
            Kind::Container => "container",
            Kind::Section => "section",
            Kind::Template => "template",
        })
    }
}

#[derive(Default)]
pub(super) struct Names {
    of: [HashMap<String, usize>; Kind::COUNT],
    pub(super) uuids: HashSet<String>,
    pub(super) host_addresses: HashSet<IpAddr>,
    pub(super) public_keys: HashSet<[u8; 32]>,
    pub(super) overlays: HashSet<NetworkKind>,
    /// Interfaces of hosts, and their VLANs.
    pub(super) interfaces: HashSet<(HostIndex, String, Option<u16>)>,
    /// MACs with the overlay network they are in; flat networks share the wire.
    pub(super) macs: HashSet<(Option<NetworkIndex>, [u8; 6])>,
    pub(super) addresses: HashSet<(NetworkIndex, IpAddr)>,
    pub(super) criteria: HashMap<Criteria, CriteriaIndex>,
    pub(super) flow_tests: HashMap<FlowTest, FlowTestIndex>,
}

impl Names {
    pub(super) fn find(&self, kind: Kind, name: &str) -> Option<usize> {
        self.of[kind as usize].get(name).copied()
    }

    /// Gives a name a number; false if it has one.
    pub(super) fn declare(&mut self, kind: Kind, name: &str, number: usize) -> bool {
        let names = &mut self.of[kind as usize];
        let is_new = !names.contains_key(name);
        if is_new {
            names.insert(name.to_owned(), number);
        }
        is_new
    }

    pub(super) fn all(&self, kind: Kind) -> impl Iterator<Item = &str> {
        self.of[kind as usize].keys().map(String::as_str)
    }
}
