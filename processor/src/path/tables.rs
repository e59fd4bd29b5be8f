//! What the packet path reads: rules, endpoints, guest ports, security associations and hosts, as one immutable whole.
//!
//! Control builds a new one and replaces the old; a worker takes it once a batch. Look-ups allocate nothing. What does not
//! change with the rules is shared by the old and the new.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::FixedState;
use guestseal_rules::classify::Action;
use guestseal_rules::compile::Ruleset;
use guestseal_rules::model::{HostIndex, NetworkIndex, Policy, PortIndex, RuleIndex, Vni};

use crate::sa::table::SaTable;
use crate::wire::ethernet::MacAddress;

use super::batch::WorkerId;
use super::encapsulate::Carrier;
use super::endpoints::{Endpoint, Endpoints};

/// A guest port of this host.
#[derive(Clone, Debug)]
pub struct LocalPort {
    /// Its endpoint.
    pub endpoint: Endpoint,
    /// The workers that have a queue of it, in the order of the queues; never empty while the port is open.
    pub owners: Vec<WorkerId>,
    /// Whether its guest may leave checksums to the device.
    pub leaves_checksums: bool,
    /// The local port that has the interface: itself, or of a trunk's ports the first.
    pub through: u16,
    /// The VLAN that it is of a trunk; none if frames carry no tag there.
    pub vlan: Option<u16>,
}

/// The MACs that lead to a host, while the kernel knows them: one for each family, since routes may differ.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct NextHops {
    /// Towards its IPv4 address.
    pub v4: Option<MacAddress>,
    /// Towards its IPv6 address.
    pub v6: Option<MacAddress>,
}

impl NextHops {
    /// The one towards an address.
    #[inline]
    #[must_use]
    pub fn towards(&self, address: IpAddr) -> Option<MacAddress> {
        match address {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }

    /// The place of the one towards an address.
    pub fn towards_mut(&mut self, address: IpAddr) -> &mut Option<MacAddress> {
        match address {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        }
    }
}

/// Another host, and this one.
#[derive(Clone, Debug)]
pub struct HostEntry {
    /// Its addresses on the wire.
    pub addresses: Vec<IpAddr>,
    /// The MACs that lead to it.
    pub next_hops: NextHops,
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
    /// The ports of trunks, by the one that has the interface, and VLAN.
    trunks: Arc<HashMap<(u16, Option<u16>), u16, FixedState>>,
    trunk_interfaces: Arc<HashSet<u16, FixedState>>,
    /// What carries each network.
    carriers: Arc<[Option<Carrier>]>,
    by_vni: Arc<HashMap<(u16, Vni), NetworkIndex, FixedState>>,
    by_address: Arc<HashMap<IpAddr, HostIndex, FixedState>>,
    also_accepted: Arc<AlsoAccepted>,
}

/// The first of a host's own addresses whose family the other host has, too, and the other's first of that family.
#[inline]
#[must_use]
pub fn between(own: &[IpAddr], theirs: &[IpAddr]) -> Option<(IpAddr, IpAddr)> {
    own.iter().find_map(|local| {
        let remote = theirs.iter().find(|one| one.is_ipv6() == local.is_ipv6())?;
        Some((*local, *remote))
    })
}

/// The second forms that rules accept now.
pub type AlsoAccepted = HashMap<RuleIndex, Action, FixedState>;

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
    /// Those of them whose guests may leave checksums to the device.
    pub leave_checksums: Vec<PortIndex>,
    /// For each host by its number, the MACs that lead to it.
    pub next_hops: Vec<NextHops>,
    /// The security associations.
    pub sas: Arc<SaTable>,
}

impl Tables {
    /// Builds the tables of one host from the policy.
    #[must_use]
    pub fn new(policy: &Policy, parts: Parts) -> Self {
        let hosts = policy.hosts.iter().enumerate().map(|(number, host)| HostEntry {
            addresses: host.addresses.clone(),
            next_hops: parts.next_hops.get(number).copied().unwrap_or_default(),
        });
        let mut local = HashMap::default();
        let mut ports: Vec<LocalPort> = Vec::new();
        let mut interfaces: HashMap<&str, u16> = HashMap::new();
        for (index, owners) in parts.owners {
            let number = ports.len() as u16;
            local.insert(index, number);
            let declared = &policy.ports[index.index()];
            ports.push(LocalPort {
                endpoint: parts
                    .endpoints
                    .of_port(index)
                    .copied()
                    .unwrap_or_else(|| Endpoint::of(policy, index)),
                owners,
                leaves_checksums: parts.leave_checksums.contains(&index),
                through: *interfaces.entry(&declared.interface).or_insert(number),
                vlan: declared.vlan,
            });
        }
        let tagged = ports.iter().filter(|port| port.vlan.is_some());
        let trunk_interfaces: HashSet<u16, FixedState> = tagged.map(|port| port.through).collect();
        let trunks = (0u16..)
            .zip(&ports)
            .filter(|(_, port)| trunk_interfaces.contains(&port.through))
            .map(|(number, port)| ((port.through, port.vlan), number))
            .collect();
        let carriers: Arc<[Option<Carrier>]> = policy
            .networks
            .iter()
            .map(|network| Carrier::of(network.kind))
            .collect();
        let by_vni = (0u16..)
            .zip(&*carriers)
            .filter_map(|(number, carrier)| {
                let carrier = carrier.as_ref()?;
                Some(((carrier.port, carrier.vni), NetworkIndex(number)))
            })
            .collect();
        let by_address = (0u16..)
            .zip(&policy.hosts)
            .flat_map(|(number, host)| host.addresses.iter().map(move |one| (*one, HostIndex(number))))
            .collect();
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
            trunks: Arc::new(trunks),
            trunk_interfaces: Arc::new(trunk_interfaces),
            carriers,
            by_vni: Arc::new(by_vni),
            by_address: Arc::new(by_address),
            also_accepted: Arc::default(),
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

    /// The same with guest ports elsewhere: the next packet goes where its endpoint is now.
    #[must_use]
    pub fn with_endpoints(&self, endpoints: Arc<Endpoints>) -> Self {
        let moved = |port: &LocalPort| LocalPort {
            endpoint: endpoints
                .of_port(port.endpoint.port)
                .copied()
                .unwrap_or(port.endpoint),
            ..port.clone()
        };
        Self {
            ports: self.ports.iter().map(moved).collect(),
            endpoints,
            ..self.clone()
        }
    }

    /// The same with other second forms that rules accept.
    #[must_use]
    pub fn with_also_accepted(&self, also_accepted: Arc<AlsoAccepted>) -> Self {
        Self {
            also_accepted,
            ..self.clone()
        }
    }

    /// Whether a rule accepts a form that is not its own.
    #[must_use]
    pub fn also_accepts(&self, rule: RuleIndex, form: Action) -> bool {
        self.also_accepted.get(&rule) == Some(&form)
    }

    /// The same with other security associations.
    #[must_use]
    pub fn with_sas(&self, sas: Arc<SaTable>) -> Self {
        Self { sas, ..self.clone() }
    }

    /// What carries a network; `None` if the wire itself does.
    #[inline]
    #[must_use]
    pub fn carrier(&self, network: NetworkIndex) -> Option<&Carrier> {
        self.carriers.get(network.index())?.as_ref()
    }

    /// The overlay network of a VNI at a UDP port.
    #[inline]
    #[must_use]
    pub fn network_of_vni(&self, port: u16, vni: Vni) -> Option<NetworkIndex> {
        self.by_vni.get(&(port, vni)).copied()
    }

    /// The host that an address on the wire belongs to.
    #[inline]
    #[must_use]
    pub fn host_of(&self, address: IpAddr) -> Option<HostIndex> {
        self.by_address.get(&address).copied()
    }

    /// The addresses that bare overlay packets to a host go between: the first of this host's whose family that one has, too.
    #[inline]
    #[must_use]
    pub fn addresses_towards(&self, host: HostIndex) -> Option<(IpAddr, IpAddr)> {
        let theirs = &self.hosts.get(usize::from(host.0))?.addresses;
        let own = &self.hosts.get(usize::from(self.host.0))?.addresses;
        between(own, theirs)
    }

    /// The local number of a port of this host.
    #[inline]
    #[must_use]
    pub fn local_port(&self, port: PortIndex) -> Option<u16> {
        self.local.get(&port).copied()
    }

    /// Whether a port has the interface of a trunk.
    #[inline]
    #[must_use]
    pub fn is_trunk(&self, port: u16) -> bool {
        self.has_trunks() && self.trunk_interfaces.contains(&port)
    }

    /// Whether this host has trunks at all.
    #[inline]
    #[must_use]
    pub fn has_trunks(&self) -> bool {
        !self.trunk_interfaces.is_empty()
    }

    /// Of the trunk whose interface a port has, the port of a VLAN, or of untagged frames.
    #[inline]
    #[must_use]
    pub fn trunk_member(&self, port: u16, vlan: Option<u16>) -> Option<u16> {
        self.trunks.get(&(port, vlan)).copied()
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
