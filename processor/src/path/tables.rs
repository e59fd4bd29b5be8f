//! What the packet path reads: rules, endpoints, guest ports, security associations and hosts, as one immutable whole.
//!
//! Control builds a new one and replaces the old; a worker takes it once a batch. Look-ups allocate nothing. What does not
//! change with the rules is shared by the old and the new.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use foldhash::fast::FixedState;
use guestseal_rules::classify::Action;
use guestseal_rules::compile::Ruleset;
use guestseal_rules::model::{HostIndex, NetworkIndex, Policy, PortIndex, RuleIndex, Vni};

use crate::sa::table::SaTable;
use crate::telemetry::rules::RuleCounters;
use crate::wire::ethernet::MacAddress;

use super::batch::WorkerId;
use super::encapsulate::Carrier;
use super::endpoints::{Endpoint, Endpoints};
use super::mirror::Interface;

/// A guest port of this host.
#[derive(Clone, Debug)]
pub struct LocalPort {
    /// Its endpoint.
    pub endpoint: Endpoint,
    /// The number of the place that has the interface: its own, or of a trunk's ports the first one's.
    pub through: u16,
    /// The VLAN that it is of a trunk; none if frames carry no tag there.
    pub vlan: Option<u16>,
}

/// A place among the guest ports of this host. Its number is what workers, rings and packets on their way know: it stays a
/// port's own as long as there is the port, and is nobody's for a while when that is gone.
#[derive(Clone, Debug)]
struct Place {
    port: Option<LocalPort>,
    owners: Vec<WorkerId>,
    leaves_checksums: bool,
}

/// What [`Tables::new`] is told of a place.
#[derive(Clone, Debug)]
pub struct PlaceOf {
    /// Whose it is, by the policy's number.
    pub port: Option<PortIndex>,
    /// The number of the place that has the interface.
    pub through: u16,
    /// The workers that have a queue of the interface, in the order of the queues; none while it is closed.
    pub owners: Vec<WorkerId>,
    /// Whether guests behind the interface may leave checksums to the device.
    pub leaves_checksums: bool,
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

/// How long a packet to one of a host's addresses may be, as far as that was probed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct PathMtu {
    /// The address.
    pub towards: IpAddr,
    /// Bytes of an IP packet.
    pub mtu: u16,
}

/// Another host, and this one.
#[derive(Clone, Debug)]
pub struct HostEntry {
    /// Its addresses on the wire.
    pub addresses: Vec<IpAddr>,
    /// The MACs that lead to it.
    pub next_hops: NextHops,
    /// What is known of the way to it besides.
    pub path_mtu: Option<PathMtu>,
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
    places: Arc<[Place]>,
    local: Arc<HashMap<PortIndex, u16, FixedState>>,
    /// The ports of trunks, by the one that has the interface, and VLAN.
    trunks: Arc<HashMap<(u16, Option<u16>), u16, FixedState>>,
    trunk_interfaces: Arc<HashSet<u16, FixedState>>,
    /// What carries each network.
    carriers: Arc<[Option<Carrier>]>,
    by_vni: Arc<HashMap<(u16, Vni), NetworkIndex, FixedState>>,
    by_address: Arc<HashMap<IpAddr, HostIndex, FixedState>>,
    also_accepted: Arc<AlsoAccepted>,
    mirrors: Arc<Mirrors>,
    /// Where each worker counts what the rules decide.
    rule_counters: Arc<[Arc<RuleCounters>]>,
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

/// The monitoring interfaces, and the rules that they are for.
#[derive(Debug, Default)]
struct Mirrors {
    interfaces: Vec<Interface>,
    of_rules: HashMap<RuleIndex, NonZeroU16, FixedState>,
}

impl Mirrors {
    fn of(policy: &Policy) -> Self {
        let mut mirrors = Self::default();
        for (number, rule) in (0u32..).zip(&policy.rules) {
            let Some(name) = &rule.mirror else { continue };
            let mut interface = Interface::default();
            for (to, from) in interface.iter_mut().zip(name.bytes()) {
                *to = from;
            }
            let known = mirrors.interfaces.iter().position(|one| *one == interface);
            let place = known.unwrap_or_else(|| {
                mirrors.interfaces.push(interface);
                mirrors.interfaces.len() - 1
            });
            let place = u16::try_from(place + 1).ok().and_then(NonZeroU16::new);
            if let Some(place) = place {
                mirrors.of_rules.insert(RuleIndex(number), place);
            }
        }
        mirrors
    }
}

/// The second forms that rules accept now.
pub type AlsoAccepted = HashMap<RuleIndex, Action, FixedState>;

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables")
            .field("host", &self.host)
            .field("ports", &self.local.len())
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
    /// The places of guest ports, by their numbers.
    pub places: Vec<PlaceOf>,
    /// For each host by its number, the MACs that lead to it.
    pub next_hops: Vec<NextHops>,
    /// The security associations.
    pub sas: Arc<SaTable>,
    /// For each worker, where it counts what the rules decide.
    pub rule_counters: Arc<[Arc<RuleCounters>]>,
}

impl Tables {
    /// Builds the tables of one host from the policy.
    #[must_use]
    pub fn new(policy: &Policy, parts: Parts) -> Self {
        let hosts = policy.hosts.iter().enumerate().map(|(number, host)| HostEntry {
            addresses: host.addresses.clone(),
            next_hops: parts.next_hops.get(number).copied().unwrap_or_default(),
            path_mtu: None,
        });
        let mut local = HashMap::default();
        let mut trunk_members = Vec::new();
        let mut places = Vec::with_capacity(parts.places.len());
        for (number, place) in (0u16..).zip(parts.places) {
            let port = place.port.map(|index| {
                local.insert(index, number);
                let vlan = policy.ports[index.index()].vlan;
                trunk_members.push((place.through, vlan, number));
                let known = parts.endpoints.of_port(index).copied();
                LocalPort {
                    endpoint: known.unwrap_or_else(|| Endpoint::of(policy, index)),
                    through: place.through,
                    vlan,
                }
            });
            places.push(Place {
                port,
                owners: place.owners,
                leaves_checksums: place.leaves_checksums,
            });
        }
        let tagged = trunk_members.iter().filter(|(_, vlan, _)| vlan.is_some());
        let trunk_interfaces: HashSet<u16, FixedState> = tagged.map(|(through, ..)| *through).collect();
        let trunks = trunk_members
            .into_iter()
            .filter(|(through, ..)| trunk_interfaces.contains(through))
            .map(|(through, vlan, number)| ((through, vlan), number))
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
            places: places.into(),
            local: Arc::new(local),
            trunks: Arc::new(trunks),
            trunk_interfaces: Arc::new(trunk_interfaces),
            carriers,
            by_vni: Arc::new(by_vni),
            by_address: Arc::new(by_address),
            also_accepted: Arc::default(),
            mirrors: Arc::new(Mirrors::of(policy)),
            rule_counters: parts.rule_counters,
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
        let moved = |place: &Place| Place {
            port: place.port.as_ref().map(|port| LocalPort {
                endpoint: endpoints
                    .of_port(port.endpoint.port)
                    .copied()
                    .unwrap_or(port.endpoint),
                ..port.clone()
            }),
            ..place.clone()
        };
        Self {
            places: self.places.iter().map(moved).collect(),
            endpoints,
            ..self.clone()
        }
    }

    /// The same with what is known now of the ways to hosts.
    #[must_use]
    pub fn with_path_mtus(&self, known: &HashMap<HostIndex, PathMtu>) -> Self {
        let entry = |(number, entry): (u16, &HostEntry)| HostEntry {
            path_mtu: known.get(&HostIndex(number)).copied(),
            ..entry.clone()
        };
        Self {
            hosts: (0..).zip(&*self.hosts).map(entry).collect(),
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

    /// The number of the monitoring interface that gets copies of what a rule lets pass.
    #[inline]
    #[must_use]
    pub fn mirror_of(&self, rule: RuleIndex) -> Option<NonZeroU16> {
        if self.mirrors.interfaces.is_empty() {
            return None;
        }
        self.mirrors.of_rules.get(&rule).copied()
    }

    /// The monitoring interface of a number.
    #[inline]
    #[must_use]
    pub fn mirror(&self, number: NonZeroU16) -> Option<&Interface> {
        self.mirrors.interfaces.get(usize::from(number.get()) - 1)
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

    /// How long a packet to one of a host's addresses may be.
    #[inline]
    #[must_use]
    pub fn mtu_towards(&self, host: Option<HostIndex>, address: IpAddr) -> usize {
        let entry = host.and_then(|host| self.hosts.get(usize::from(host.0)));
        let probed = entry.and_then(|entry| entry.path_mtu);
        let probed = probed.filter(|path| path.towards == address);
        probed.map_or(self.uplink_mtu, |path| self.uplink_mtu.min(path.mtu.into()))
    }

    /// The port of this host that has a place.
    #[inline]
    #[must_use]
    pub fn port(&self, number: u16) -> Option<&LocalPort> {
        self.places.get(usize::from(number))?.port.as_ref()
    }

    /// The ports of this host, with their local numbers.
    pub fn ports(&self) -> impl Iterator<Item = (u16, &LocalPort)> {
        let places = (0u16..).zip(&*self.places);
        places.filter_map(|(number, place)| Some((number, place.port.as_ref()?)))
    }

    /// The workers that have a queue of the interface of a place, in the order of the queues; none if it is closed.
    #[inline]
    #[must_use]
    pub fn owners(&self, number: u16) -> &[WorkerId] {
        let place = self.places.get(usize::from(number));
        place.map_or(&[], |place| &place.owners)
    }

    /// Whether guests behind the interface of a place may leave checksums to the device.
    #[inline]
    #[must_use]
    pub fn leaves_checksums(&self, number: u16) -> bool {
        let place = self.places.get(usize::from(number));
        place.is_some_and(|place| place.leaves_checksums)
    }

    /// Where a worker counts what these rules decide.
    #[inline]
    #[must_use]
    pub fn rule_counters(&self, worker: WorkerId) -> Option<&Arc<RuleCounters>> {
        self.rule_counters.get(worker.index())
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
