//! What the packet path reads: rules, endpoints, guest ports, security associations and hosts, as one immutable whole.
//!
//! Control builds a new one and replaces the old; a worker takes it once a batch. Look-ups allocate nothing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use foldhash::fast::FixedState;
use guestseal_rules::classify::Classifier;
use guestseal_rules::model::{GuestIndex, HostIndex, NetworkIndex, Policy, PortIndex};

use crate::sa::table::SaTable;
use crate::wire::ethernet::MacAddress;

use super::batch::WorkerId;

/// Where a guest port is: (logical network, MAC, IPs) at a host.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The guest.
    pub guest: GuestIndex,
    /// Its port, by the policy's numbers.
    pub port: PortIndex,
    /// The host it is on.
    pub host: HostIndex,
    /// The logical network of the port.
    pub network: NetworkIndex,
    /// The MAC of the guest's NIC.
    pub mac: MacAddress,
    /// Whether the guest may send from, and be sent, addresses that are not its own.
    pub router: bool,
}

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
pub struct Tables {
    /// The rules.
    pub rules: Box<dyn Classifier + Send + Sync>,
    /// Where security associations are.
    pub sas: SaTable,
    /// This host.
    pub host: HostIndex,
    /// Every host, by its number.
    pub hosts: Vec<HostEntry>,
    /// The uplink's MAC.
    pub uplink_mac: MacAddress,
    /// The uplink's MTU: bytes of an IP packet.
    pub uplink_mtu: usize,
    /// Guest ports of this host, by local number.
    pub ports: Vec<LocalPort>,
    local: HashMap<PortIndex, u16, FixedState>,
    by_mac: HashMap<(NetworkIndex, MacAddress), Endpoint, FixedState>,
    by_address: HashMap<(NetworkIndex, IpAddr), Endpoint, FixedState>,
    flat_by_mac: HashMap<MacAddress, Endpoint, FixedState>,
    flat_networks: Vec<NetworkIndex>,
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
    pub sas: SaTable,
}

impl Tables {
    /// Builds the tables of one host from the policy.
    #[must_use]
    pub fn new(policy: &Policy, rules: Box<dyn Classifier + Send + Sync>, parts: Parts) -> Self {
        let endpoint = |number: usize| {
            let port = &policy.ports[number];
            Endpoint {
                guest: port.guest,
                port: PortIndex(number as u32),
                host: policy.guests[port.guest.0 as usize].host,
                network: port.network,
                mac: MacAddress(port.mac),
                router: port.router,
            }
        };
        let mut tables = Self {
            rules,
            sas: parts.sas,
            host: parts.host,
            hosts: policy
                .hosts
                .iter()
                .enumerate()
                .map(|(number, host)| HostEntry {
                    addresses: host.addresses.clone(),
                    next_hop: parts.next_hops.get(number).copied().flatten(),
                })
                .collect(),
            uplink_mac: parts.uplink_mac,
            uplink_mtu: parts.uplink_mtu,
            ports: Vec::new(),
            local: HashMap::default(),
            by_mac: HashMap::default(),
            by_address: HashMap::default(),
            flat_by_mac: HashMap::default(),
            flat_networks: (0..policy.networks.len())
                .map(|number| NetworkIndex(number as u16))
                .collect(),
        };
        for (number, port) in policy.ports.iter().enumerate() {
            let endpoint = endpoint(number);
            tables.by_mac.insert((endpoint.network, endpoint.mac), endpoint);
            tables.flat_by_mac.insert(endpoint.mac, endpoint);
            tables
                .by_address
                .insert((endpoint.network, link_local(endpoint.mac)), endpoint);
            for address in &port.addresses {
                tables.by_address.insert((endpoint.network, *address), endpoint);
            }
        }
        for (port, owners) in parts.owners {
            tables.local.insert(port, tables.ports.len() as u16);
            tables.ports.push(LocalPort {
                endpoint: endpoint(port.0 as usize),
                owners,
            });
        }
        tables
    }

    /// The local number of a port of this host.
    #[inline]
    #[must_use]
    pub fn local_port(&self, port: PortIndex) -> Option<u16> {
        self.local.get(&port).copied()
    }

    /// The endpoint with this MAC in a network.
    #[inline]
    #[must_use]
    pub fn by_mac(&self, network: NetworkIndex, mac: MacAddress) -> Option<&Endpoint> {
        self.by_mac.get(&(network, mac))
    }

    /// The endpoint with this IP address in a network.
    #[inline]
    #[must_use]
    pub fn by_address(&self, network: NetworkIndex, address: IpAddr) -> Option<&Endpoint> {
        self.by_address.get(&(network, address))
    }

    /// The endpoint with this MAC in any flat network: they share the wire, so MACs are unique among them.
    #[inline]
    #[must_use]
    pub fn by_flat_mac(&self, mac: MacAddress) -> Option<&Endpoint> {
        self.flat_by_mac.get(&mac)
    }

    /// The only flat network, if there is exactly one.
    #[inline]
    #[must_use]
    pub fn only_flat_network(&self) -> Option<NetworkIndex> {
        match self.flat_networks.as_slice() {
            [network] => Some(*network),
            _ => None,
        }
    }

    /// The flat network in which this IP address belongs to an endpoint, if it is in exactly one.
    #[must_use]
    pub fn flat_network_of(&self, address: IpAddr) -> Option<NetworkIndex> {
        let mut holders = self
            .flat_networks
            .iter()
            .filter(|network| self.by_address(**network, address).is_some());
        match (holders.next(), holders.next()) {
            (Some(network), None) => Some(*network),
            _ => None,
        }
    }

    /// Whether `address` is one that `endpoint` may send from and be sent: its own, or any if it is a router.
    #[inline]
    #[must_use]
    pub fn belongs(&self, endpoint: &Endpoint, address: IpAddr) -> bool {
        endpoint.router
            || self
                .by_address(endpoint.network, address)
                .is_some_and(|owner| owner.port == endpoint.port)
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

/// The link-local address that a guest makes from its MAC (RFC 4291 Appendix A).
#[must_use]
pub fn link_local(mac: MacAddress) -> IpAddr {
    let [a, b, c, d, e, f] = mac.0;
    IpAddr::V6(Ipv6Addr::from([
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ]))
}
