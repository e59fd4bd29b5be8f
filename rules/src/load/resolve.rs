//! Hosts, networks, guests and keys: names to numbers.

use std::net::IpAddr;

use serde_saphyr::Location;

use crate::model::{
    Guest, GuestIndex, GuestPort, Host, HostIndex, Key, Network, NetworkIndex, NetworkKind, Policy,
    PortIndex, Vni,
};

use super::names::{Kind, Names};
use super::words::{nearest, parse_mac, parse_public_key};
use super::written::At;
use super::{File, FileError, raw};

/// More mistakes than are told at once.
const MOST_TOLD: usize = 100;

pub(super) struct Resolver {
    pub(super) policy: Policy,
    pub(super) names: Names,
    pub(super) errors: Vec<FileError>,
    /// Mistakes behind the last that is told, and where the first of them is.
    untold: Option<(usize, FileError)>,
}

impl Resolver {
    /// What declares names comes before what uses them, whatever the order of the files.
    pub(super) fn resolve(
        files: &[(File, raw::RawPolicy)],
        before: &Policy,
    ) -> Result<Policy, Vec<FileError>> {
        let mut resolver = Self {
            policy: Policy::default(),
            names: Names::default(),
            errors: Vec::new(),
            untold: None,
        };
        resolver.hosts(files, before);
        resolver.keys(files, before);
        resolver.networks(files, before);
        for (source, file) in files {
            file.guests.iter().for_each(|guest| resolver.guest(source, guest));
        }
        resolver.containers(files);
        resolver.groups(files);
        resolver.services(files);
        resolver.templates(files);
        resolver.rules(files);
        if let Some((more, mut first)) = resolver.untold.take() {
            first.0.message = format!("from here on {more} more mistakes are not told");
            first.0.help = None;
            resolver.errors.push(first);
        }
        if resolver.errors.is_empty() {
            Ok(resolver.policy)
        } else {
            Err(resolver.errors)
        }
    }

    fn hosts(&mut self, files: &[(File, raw::RawPolicy)], before: &Policy) {
        let declared = files
            .iter()
            .flat_map(|(source, file)| file.hosts.iter().map(move |host| (source, host)));
        let (kept, new) = numbered(declared, &before.hosts, |(_, raw), host| {
            !host.addresses.is_empty() && raw.name.value == host.name
        });
        for (kept, host) in kept.into_iter().zip(&before.hosts) {
            match kept {
                Some((source, raw)) => self.host(source, raw),
                None => self.policy.hosts.push(Host {
                    name: host.name.clone(),
                    addresses: Vec::new(),
                    public_keys: Vec::new(),
                }),
            }
        }
        new.into_iter().for_each(|(source, raw)| self.host(source, raw));
    }

    fn keys(&mut self, files: &[(File, raw::RawPolicy)], before: &Policy) {
        let declared = files
            .iter()
            .flat_map(|(source, file)| file.keys.iter().map(move |key| (source, key)));
        let (kept, new) = numbered(declared, &before.keys, |(_, raw), key| {
            !key.retired && raw.id.value == key.id && raw.suite == key.suite
        });
        for (kept, key) in kept.into_iter().zip(&before.keys) {
            match kept {
                Some((source, raw)) => self.key(source, raw),
                None => self.policy.keys.push(Key {
                    retired: true,
                    ..key.clone()
                }),
            }
        }
        new.into_iter().for_each(|(source, raw)| self.key(source, raw));
    }

    fn networks(&mut self, files: &[(File, raw::RawPolicy)], before: &Policy) {
        let declared = files
            .iter()
            .flat_map(|(source, file)| file.networks.iter().map(move |network| (source, network)));
        let (kept, new) = numbered(declared, &before.networks, |(_, raw), network| {
            raw.name.value == network.name && raw.is(network.kind)
        });
        for (kept, network) in kept.into_iter().zip(&before.networks) {
            match kept {
                Some((source, raw)) => self.network(source, raw),
                None => self.policy.networks.push(Network {
                    kind: NetworkKind::Retired,
                    default_key: None,
                    ..network.clone()
                }),
            }
        }
        new.into_iter()
            .for_each(|(source, raw)| self.network(source, raw));
    }

    fn key(&mut self, source: &File, key: &raw::RawKey) {
        if !self.declare(source, Kind::Key, &key.id, self.policy.keys.len()) {
            return;
        }
        let place = source.place(&key.id.at);
        self.policy.keys.push(Key {
            id: key.id.value.clone(),
            suite: key.suite,
            retired: false,
            place,
        });
    }

    fn network(&mut self, source: &File, network: &raw::RawNetwork) {
        if !self.declare(source, Kind::Network, &network.name, self.policy.networks.len()) {
            return;
        }
        let kind = self.network_kind(source, network);
        let default_key = network.key.as_ref().and_then(|key| self.key_of(source, key));
        self.policy.networks.push(Network {
            name: network.name.value.clone(),
            kind,
            default_key,
            place: source.place(&network.name.at),
        });
    }

    fn network_kind(&mut self, source: &File, raw: &raw::RawNetwork) -> NetworkKind {
        let kind: fn(Vni) -> NetworkKind = match raw.kind {
            raw::RawKind::Flat => {
                if let Some(vni) = &*raw.vni {
                    let message = "a flat network has no VNI: expected type vxlan or geneve, or no vni";
                    self.fail(source, &vni.at, message);
                }
                return NetworkKind::Flat;
            }
            raw::RawKind::Vxlan => NetworkKind::Vxlan,
            raw::RawKind::Geneve => NetworkKind::Geneve,
        };
        let Some(number) = &*raw.vni else {
            let message = format!(
                "network \"{}\" is an overlay without a VNI: expected vni",
                raw.name.value
            );
            self.fail(source, &raw.name.at, message);
            return NetworkKind::Flat;
        };
        let Some(vni) = Vni::new(number.value) else {
            let message = format!("{} is no VNI: expected 1 to {}", number.value, Vni::MAX);
            self.fail(source, &number.at, message);
            return NetworkKind::Flat;
        };
        if !self.names.overlays.insert(kind(vni)) {
            let message = format!("VNI {} is another network's too", vni.get());
            self.fail(source, &number.at, message);
        }
        kind(vni)
    }

    pub(super) fn fail(&mut self, source: &File, at: &Location, message: impl Into<String>) {
        self.tell(source.error(at, message));
    }

    fn tell(&mut self, error: FileError) {
        match &mut self.untold {
            Some((more, _)) => *more += 1,
            None if self.errors.len() == MOST_TOLD => self.untold = Some((1, error)),
            None => self.errors.push(error),
        }
    }

    /// Takes a name for the one that becomes number `number` of its kind. False if there are too many: then it has no number.
    pub(super) fn declare(&mut self, source: &File, kind: Kind, name: &At<String>, number: usize) -> bool {
        if number >= kind.most() {
            let message = format!("too many {kind}s: expected at most {}", kind.most());
            // Said once: the others are too many, too.
            if !self.errors.iter().any(|error| error.0.message == message) {
                self.fail(source, &name.at, message);
            }
            return false;
        }
        if !self.names.declare(kind, &name.value, number) {
            let message = format!("{kind} \"{}\" is declared twice", name.value);
            self.fail(source, &name.at, message);
        }
        if name.value.is_empty()
            || name
                .value
                .contains(|c: char| c.is_control() || c.is_whitespace() || c == '/')
        {
            let message = format!("the name of a {kind} is not empty and has no space or slash");
            self.fail(source, &name.at, message);
        }
        true
    }

    /// The number of a name that something else declares.
    pub(super) fn known(&mut self, source: &File, kind: Kind, name: &At<String>) -> Option<usize> {
        let found = self.names.find(kind, &name.value);
        if found.is_none() {
            let mut error = source.error(&name.at, format!("no {kind} \"{}\" is declared", name.value));
            // What is not told needs no help.
            if self.errors.len() < MOST_TOLD {
                error.0.help = nearest(&name.value, self.names.all(kind))
                    .map(|near| format!("did you mean \"{near}\"?"));
            }
            self.tell(error);
        }
        found
    }

    fn host(&mut self, source: &File, raw: &raw::RawHost) {
        if !self.declare(source, Kind::Host, &raw.name, self.policy.hosts.len()) {
            return;
        }
        let mut addresses: Vec<IpAddr> = Vec::new();
        for text in raw.address.iter().chain(&raw.addresses) {
            let Some(address) = self.address(source, text) else {
                continue;
            };
            if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                self.fail(
                    source,
                    &text.at,
                    "a second address of one family: expected at most one IPv4 and one IPv6",
                );
            }
            if !self.names.host_addresses.insert(address) {
                self.fail(
                    source,
                    &text.at,
                    format!("{address} is another host's address too"),
                );
            }
            addresses.push(address);
        }
        if raw.address.is_none() && raw.addresses.is_empty() {
            let message = format!(
                "host \"{}\" has no address: expected address or addresses",
                raw.name.value
            );
            self.fail(source, &raw.name.at, message);
        }
        let public_keys = self.public_keys(source, raw);
        self.policy.hosts.push(Host {
            name: raw.name.value.clone(),
            addresses,
            public_keys,
        });
    }

    fn public_keys(&mut self, source: &File, raw: &raw::RawHost) -> Vec<[u8; 32]> {
        let mut keys = Vec::new();
        for text in raw.public_key.iter().chain(&raw.public_keys) {
            let Some(key) = parse_public_key(&text.value) else {
                let message = format!(
                    "\"{}\" is no public key: expected 64 hexadecimal digits, as guestseal key public prints them",
                    text.value
                );
                self.fail(source, &text.at, message);
                continue;
            };
            if !self.names.public_keys.insert(key) {
                let message = "this public key is given twice: every host has an identity of its own";
                self.fail(source, &text.at, message);
            }
            keys.push(key);
        }
        if keys.len() > 2 {
            self.fail(
                source,
                &raw.name.at,
                "more than two public keys: expected one, or two while the host changes its identity",
            );
        }
        keys
    }

    fn address(&mut self, source: &File, text: &At<String>) -> Option<IpAddr> {
        let parsed = text.value.parse::<IpAddr>().ok();
        match parsed {
            Some(address) if address.is_multicast() || address.is_unspecified() => {
                self.fail(source, &text.at, format!("{address} names no single machine"));
                None
            }
            Some(address) => Some(address),
            None => {
                let message = format!(
                    "\"{}\" is no address: expected one such as 10.1.0.1 or fd00::1",
                    text.value
                );
                self.fail(source, &text.at, message);
                None
            }
        }
    }

    fn guest(&mut self, source: &File, raw: &raw::RawGuest) {
        let number = self.policy.guests.len();
        if !self.declare(source, Kind::Guest, &raw.id, number) {
            return;
        }
        let host = self.known(source, Kind::Host, &raw.host);
        let host = host.map(|number| HostIndex(number as u16));
        let mut ports = Vec::new();
        for port in &raw.ports {
            if let Some(port) = self.port(source, port, GuestIndex(number as u32), host) {
                ports.push(PortIndex(self.policy.ports.len() as u32));
                self.policy.ports.push(port);
            }
        }
        let uuid = raw.uuid.as_ref().unwrap_or(&raw.id);
        if uuid.value.is_empty() || uuid.value.contains(|c: char| c.is_control() || c.is_whitespace()) {
            self.fail(source, &uuid.at, "a uuid is not empty and has no space");
        }
        if !self.names.uuids.insert(uuid.value.clone()) {
            let message = format!("\"{}\" is another guest's uuid too", uuid.value);
            self.fail(source, &uuid.at, message);
        }
        let labels = raw.labels.iter();
        self.policy.guests.push(Guest {
            id: raw.id.value.clone(),
            uuid: uuid.value.clone(),
            host: host.unwrap_or(HostIndex(0)),
            labels: labels
                .map(|(name, value)| (name.clone(), value.0.clone()))
                .collect(),
            ports,
            place: source.place(&raw.id.at),
        });
    }

    pub(super) fn interface_name(&mut self, source: &File, interface: &At<String>) {
        let name = &interface.value;
        if name.is_empty() || name.len() > 15 || name.contains(['/', ' ', ':']) {
            let message = format!(
                "\"{name}\" is no interface name: expected 1 to 15 characters, no space, slash or colon"
            );
            self.fail(source, &interface.at, message);
        }
    }

    fn port(
        &mut self,
        source: &File,
        raw: &raw::RawPort,
        guest: GuestIndex,
        host: Option<HostIndex>,
    ) -> Option<GuestPort> {
        let network = self.known(source, Kind::Network, &raw.network)?;
        let network = NetworkIndex(network as u16);
        let interface = &raw.interface;
        self.interface_name(source, interface);
        if self.policy.ports.len() > u32::MAX as usize - 1 {
            self.fail(source, &interface.at, "too many ports");
            return None;
        }
        let vlan = raw.vlan.as_ref().as_ref().map(|vlan| vlan.value);
        if let Some(vlan) = raw
            .vlan
            .as_ref()
            .as_ref()
            .filter(|vlan| !(1..=4094).contains(&vlan.value))
        {
            let message = format!("{} is no VLAN of a trunk: expected 1 to 4094", vlan.value);
            self.fail(source, &vlan.at, message);
        }
        let place = host.map(|host| (host, interface.value.clone(), vlan));
        if place.is_some_and(|place| !self.names.interfaces.insert(place)) {
            let message = format!(
                "{}interface \"{}\" is another port of this host too",
                vlan.map(|vlan| format!("VLAN {vlan} of ")).unwrap_or_default(),
                interface.value
            );
            self.fail(source, &interface.at, message);
        }
        let Some(mac) = parse_mac(&raw.mac.value) else {
            let message = format!(
                "\"{}\" is no MAC address: expected six bytes such as 02:00:00:01:00:0a",
                raw.mac.value
            );
            self.fail(source, &raw.mac.at, message);
            return None;
        };
        if mac[0] & 1 != 0 || mac == [0; 6] {
            self.fail(
                source,
                &raw.mac.at,
                format!("{} names no single NIC (it is zero or a group's)", raw.mac.value),
            );
        }
        let overlay = (!self.policy.is_flat(network)).then_some(network);
        if !self.names.macs.insert((overlay, mac)) {
            let message = format!(
                "{} is another port's MAC too, and they meet: flat networks share the wire",
                raw.mac.value
            );
            self.fail(source, &raw.mac.at, message);
        }
        let mut addresses = Vec::new();
        for text in &raw.addresses {
            let Some(address) = self.address(source, text) else {
                continue;
            };
            if !self.names.addresses.insert((network, address)) {
                let message = format!("{address} is declared twice in network \"{}\"", raw.network.value);
                self.fail(source, &text.at, message);
            }
            addresses.push(address);
        }
        Some(GuestPort {
            guest,
            interface: interface.value.clone(),
            vlan,
            network,
            mac,
            addresses,
            router: raw.router,
        })
    }
}

impl raw::RawNetwork {
    /// Whether it is a network of this kind, as far as it is declared rightly.
    fn is(&self, kind: NetworkKind) -> bool {
        let vni = self.vni.as_ref().as_ref().map(|vni| vni.value);
        match kind {
            NetworkKind::Flat => self.kind == raw::RawKind::Flat,
            NetworkKind::Vxlan(other) => self.kind == raw::RawKind::Vxlan && vni == Some(other.get()),
            NetworkKind::Geneve(other) => self.kind == raw::RawKind::Geneve && vni == Some(other.get()),
            NetworkKind::Retired => false,
        }
    }
}

/// What is declared now, in the places of what was there before, and what is new.
fn numbered<T, B>(
    declared: impl Iterator<Item = T>,
    before: &[B],
    is: impl Fn(&T, &B) -> bool,
) -> (Vec<Option<T>>, Vec<T>) {
    let mut kept: Vec<Option<T>> = before.iter().map(|_| None).collect();
    let mut new = Vec::new();
    for one in declared {
        let place = before.iter().position(|other| is(&one, other));
        match place.filter(|place| kept[*place].is_none()) {
            Some(place) => kept[place] = Some(one),
            None => new.push(one),
        }
    }
    (kept, new)
}
