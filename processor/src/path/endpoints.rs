//! Where guest ports are: by MAC, by address, in each logical network.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use foldhash::fast::FixedState;
use guestseal_rules::model::{GuestIndex, GuestPort, HostIndex, NetworkIndex, Policy, PortIndex};

use crate::wire::ethernet::MacAddress;

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

/// Every endpoint. Look-ups allocate nothing.
#[derive(Debug)]
pub struct Endpoints {
    /// By the ports' numbers.
    all: Vec<Endpoint>,
    by_mac: HashMap<(NetworkIndex, MacAddress), Endpoint, FixedState>,
    by_address: HashMap<(NetworkIndex, IpAddr), Endpoint, FixedState>,
    flat_by_mac: HashMap<MacAddress, Endpoint, FixedState>,
    flat_networks: Vec<NetworkIndex>,
    /// For each network the hosts that have ports in it.
    hosts: Vec<Vec<HostIndex>>,
}

impl Endpoint {
    /// The endpoint of a port of a policy.
    #[must_use]
    pub fn of(policy: &Policy, index: PortIndex) -> Self {
        let port = &policy.ports[index.index()];
        Self {
            guest: port.guest,
            port: index,
            host: policy.guests[port.guest.index()].host,
            network: port.network,
            mac: MacAddress(port.mac),
            router: port.router,
        }
    }
}

impl Endpoints {
    /// Those of a policy, each guest on the host that the policy says.
    #[must_use]
    pub fn new(policy: &Policy) -> Self {
        Self::with_hosts(policy, |guest| policy.guests[guest.index()].host)
    }

    /// Those of a policy, each guest on the host that `host_of` says: where it has moved to.
    #[must_use]
    pub fn with_hosts(policy: &Policy, host_of: impl Fn(GuestIndex) -> HostIndex) -> Self {
        let networks = (0..policy.networks.len() as u16).map(NetworkIndex);
        let mut endpoints = Self {
            all: Vec::with_capacity(policy.ports.len()),
            by_mac: HashMap::default(),
            by_address: HashMap::default(),
            flat_by_mac: HashMap::default(),
            flat_networks: networks.filter(|network| policy.is_flat(*network)).collect(),
            hosts: vec![Vec::new(); policy.networks.len()],
        };
        for (number, port) in (0u32..).zip(&policy.ports) {
            let endpoint = Endpoint {
                host: host_of(port.guest),
                ..Endpoint::of(policy, PortIndex(number))
            };
            endpoints.all.push(endpoint);
            let network = endpoint.network;
            let hosts = &mut endpoints.hosts[network.index()];
            if !hosts.contains(&endpoint.host) {
                hosts.push(endpoint.host);
            }
            endpoints.by_mac.insert((network, endpoint.mac), endpoint);
            if policy.is_flat(network) {
                endpoints.flat_by_mac.insert(endpoint.mac, endpoint);
            }
            let addresses = addresses_of(port).map(|address| ((network, address), endpoint));
            endpoints.by_address.extend(addresses);
        }
        endpoints
    }

    /// The endpoint of a port.
    #[inline]
    #[must_use]
    pub fn of_port(&self, port: PortIndex) -> Option<&Endpoint> {
        self.all.get(port.index())
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

    /// The hosts that have ports in a network.
    #[inline]
    #[must_use]
    pub fn hosts_of(&self, network: NetworkIndex) -> &[HostIndex] {
        self.hosts.get(network.index()).map_or(&[], Vec::as_slice)
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
}

/// The addresses that a port has: the policy's, and the link-local one.
pub fn addresses_of(port: &GuestPort) -> impl Iterator<Item = IpAddr> {
    let own = port.addresses.iter().copied();
    own.chain([link_local(MacAddress(port.mac))])
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
