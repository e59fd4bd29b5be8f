//! What the packet path reads: rules, endpoints, guest ports, security associations and hosts, as one immutable whole.
//!
//! Control builds a new one and replaces the old; a worker takes it once a batch. Look-ups allocate nothing. What does not
//! change with the rules is shared by the old and the new.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::FixedState;
use guestseal_rules::compile::Ruleset;
use guestseal_rules::model::{HostIndex, Policy, PortIndex};

use crate::sa::table::SaTable;
use crate::wire::ethernet::MacAddress;

use super::batch::WorkerId;
use super::endpoints::{Endpoint, Endpoints};

/// A guest port of this host.
#[derive(Clone, Debug)]
pub struct LocalPort {
    /// Its endpoint.
    pub endpoint: Endpoint,
    /// The workers that have a queue of it, in the order of the queues; never empty while the port is open.
    pub owners: Vec<WorkerId>,
}

/// Another host, and this one.
#[derive(Clone, Debug)]
pub struct HostEntry {
    /// Its addresses on the wire.
    pub addresses: Vec<IpAddr>,
    /// The MAC that leads to it, while the kernel knows one.
    pub next_hop: Option<MacAddress>,
}

/// Everything that the packet path reads.
#[derive(Clone)]
pub struct Tables {
    /// The rules.
    pub rules: Ruleset,
    /// Where security associations are.
    pub sas: Arc<SaTable>,
    /// Where guest ports are.
    pub endpoints: Arc<Endpoints>,
    /// This host.
    pub host: HostIndex,
    /// Every host, by its number.
    pub hosts: Arc<[HostEntry]>,
    /// The uplink's MAC.
    pub uplink_mac: MacAddress,
    /// The uplink's MTU: bytes of an IP packet.
    pub uplink_mtu: usize,
    /// Guest ports of this host, by local number.
    pub ports: Arc<[LocalPort]>,
    local: Arc<HashMap<PortIndex, u16, FixedState>>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables")
            .field("host", &self.host)
            .field("ports", &self.ports.len())
            .finish_non_exhaustive()
    }
}

/// What [`Tables::new`] puts together.
#[derive(Debug)]
pub struct Parts {
    /// The rules.
    pub rules: Ruleset,
    /// Where guest ports are.
    pub endpoints: Arc<Endpoints>,
    /// This host.
    pub host: HostIndex,
    /// The uplink's MAC.
    pub uplink_mac: MacAddress,
    /// The uplink's MTU.
    pub uplink_mtu: usize,
    /// For each local port by the policy's number, the workers that have a queue of it.
    pub owners: Vec<(PortIndex, Vec<WorkerId>)>,
    /// For each host by its number, the MAC that leads to it.
    pub next_hops: Vec<Option<MacAddress>>,
    /// The security associations.
    pub sas: Arc<SaTable>,
}

impl Tables {
    /// Builds the tables of one host from the policy.
    #[must_use]
    pub fn new(policy: &Policy, parts: Parts) -> Self {
        let hosts = policy.hosts.iter().enumerate().map(|(number, host)| HostEntry {
            addresses: host.addresses.clone(),
            next_hop: parts.next_hops.get(number).copied().flatten(),
        });
        let mut local = HashMap::default();
        let mut ports = Vec::new();
        for (index, owners) in parts.owners {
            local.insert(index, ports.len() as u16);
            ports.push(LocalPort {
                endpoint: Endpoint::of(policy, index),
                owners,
            });
        }
        Self {
            rules: parts.rules,
            sas: parts.sas,
            endpoints: parts.endpoints,
            host: parts.host,
            hosts: hosts.collect(),
            uplink_mac: parts.uplink_mac,
            uplink_mtu: parts.uplink_mtu,
            ports: ports.into(),
            local: Arc::new(local),
        }
    }

    /// The same under other rules.
    #[must_use]
    pub fn with_rules(&self, rules: Ruleset) -> Self {
        Self {
            rules,
            ..self.clone()
        }
    }

    /// The same with other security associations.
    #[must_use]
    pub fn with_sas(&self, sas: Arc<SaTable>) -> Self {
        Self { sas, ..self.clone() }
    }

    /// The local number of a port of this host.
    #[inline]
    #[must_use]
    pub fn local_port(&self, port: PortIndex) -> Option<u16> {
        self.local.get(&port).copied()
    }

    /// Whether `address` is one of a host's own addresses on the wire.
    #[inline]
    #[must_use]
    pub fn is_host_address(&self, host: HostIndex, address: IpAddr) -> bool {
        self.hosts
            .get(usize::from(host.0))
            .is_some_and(|entry| entry.addresses.contains(&address))
    }
}
