//! What the control loop answers when it is asked: state as JSON.

use std::collections::BTreeMap;

use guestseal_rules::containers::{Containers, Record};
use guestseal_rules::model::{GuestIndex, Policy, PortIndex};
use serde_json::{Value, json};

use crate::wire::ethernet::MacAddress;

use super::config::{HostConfig, SaDirection, SaMode};
use super::manual_sa::Mark;

/// All guests.
#[must_use]
pub fn guests(containers: &Containers, config: &HostConfig) -> Value {
    let all = (0..containers.policy().guests.len() as u32).map(GuestIndex);
    all.map(|index| guest(containers, config, index)).collect()
}

/// One guest.
#[must_use]
pub fn guest(containers: &Containers, config: &HostConfig, index: GuestIndex) -> Value {
    let policy = containers.policy();
    let guest = &policy.guests[index.index()];
    let record = containers.record(index);
    let container = &policy.containers[record.container.index()];
    json!({
        "guest": guest.id,
        "uuid": guest.uuid,
        "host": policy.hosts[config.host_of(index).index()].name,
        "container": container.name,
        "quarantine": container.quarantine,
        "because": record.cause.as_ref().map(ToString::to_string),
        "since": record.cause.as_ref().map(|cause| cause.at),
        "pinned": record.pin.is_some(),
        "held_until": record.held_until,
        "labels": labels(&guest.labels, record),
        "tags": tags(record),
        "logins": record.logins,
        "templates": templates(policy, record),
        "ports": guest.ports.iter().map(|port| config.interface_of(*port).name).collect::<Vec<_>>(),
    })
}

fn labels(declared: &BTreeMap<String, String>, record: &Record) -> BTreeMap<String, String> {
    let mut labels = declared.clone();
    for (name, value) in &record.labels {
        match value {
            Some(value) => labels.insert(name.clone(), value.clone()),
            None => labels.remove(name),
        };
    }
    labels
}

fn tags(record: &Record) -> Value {
    let open = record.tags.iter().filter(|(_, tag)| tag.cleared.is_none());
    open.map(|((service, name), tag)| {
        json!({
            "service": service,
            "name": name,
            "severity": tag.severity,
            "first": tag.first,
            "last": tag.last,
            "count": tag.count,
            "until": tag.until,
        })
    })
    .collect()
}

fn templates(policy: &Policy, record: &Record) -> Value {
    let instances = record.instances.iter();
    instances
        .map(|(template, instance)| {
            json!({
                "template": policy.templates[template.index()].name,
                "because": instance.cause.to_string(),
                "since": instance.cause.at,
                "until": instance.until,
            })
        })
        .collect()
}

/// All containers.
#[must_use]
pub fn containers(containers: &Containers) -> Value {
    let policy = containers.policy();
    let mut members: Vec<Vec<&str>> = vec![Vec::new(); policy.containers.len()];
    for (number, guest) in (0u32..).zip(&policy.guests) {
        members[containers.record(GuestIndex(number)).container.index()].push(&guest.id);
    }
    let all = policy.containers.iter().zip(members);
    all.map(|(container, guests)| {
        json!({
            "container": container.name,
            "quarantine": container.quarantine,
            "guests": guests,
        })
    })
    .collect()
}

fn port(config: &HostConfig, index: PortIndex) -> Value {
    let policy = &config.policy;
    let port = &policy.ports[index.index()];
    let guest = &policy.guests[port.guest.index()];
    json!({
        "guest": guest.id,
        "interface": config.interface_of(index).name,
        "vlan": port.vlan,
        "network": policy.networks[port.network.index()].name,
        "mac": MacAddress(port.mac).to_string(),
        "addresses": port.addresses,
        "router": port.router,
    })
}

/// The guest ports of this host, and whether each is open.
#[must_use]
pub fn ports(config: &HostConfig, open: impl Iterator<Item = (PortIndex, bool)>) -> Value {
    open.map(|(index, open)| {
        let mut value = port(config, index);
        value["open"] = open.into();
        value
    })
    .collect()
}

/// Where all guest ports are.
#[must_use]
pub fn endpoints(config: &HostConfig) -> Value {
    let policy = &config.policy;
    let all = (0..policy.ports.len() as u32).map(PortIndex);
    all.map(|index| {
        let mut value = port(config, index);
        let host = config.host_of(policy.ports[index.index()].guest);
        value["host"] = policy.hosts[host.index()].name.clone().into();
        value["vtep"] = json!(policy.hosts[host.index()].addresses);
        value
    })
    .collect()
}

/// Manual security associations. `marks` are those of the outbound ones, in their order.
#[must_use]
pub fn manual_sas(config: &HostConfig, marks: &[Mark]) -> Value {
    let policy = &config.policy;
    let mut marks = marks.iter();
    let all = config.sas.iter();
    all.map(|sa| {
        let out = sa.direction == SaDirection::Out;
        json!({
            "name": sa.name,
            "direction": if out { "out" } else { "in" },
            "spi": sa.spi.get(),
            "key": policy.keys[sa.key.index()].id,
            "suite": sa.suite.to_string(),
            "network": policy.networks[sa.network.index()].name,
            "peer": policy.hosts[sa.peer.index()].name,
            "mode": if sa.mode == SaMode::Tunnel { "tunnel" } else { "transport" },
            "next-sequence": if out { marks.next().map(Mark::next) } else { None },
        })
    })
    .collect()
}
