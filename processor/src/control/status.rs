//! What a running guestseal says of itself: written to a file of the state directory each second, read by
//! `guestseal status`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use guestseal_rules::containers::{Containers, Record};
use guestseal_rules::event::Moment;
use guestseal_rules::model::{ContainerIndex, GuestIndex, Policy};
use serde::Serialize;

use crate::files;
use crate::telemetry::totals::Totals;

use super::guests::EventTotals;
use super::sessions::SessionsStatus;
use super::shared::EtcdStatus;
use super::sources::SourceStatus;
use super::transition::Transition;

/// The status.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// This host.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// When it was written.
    pub at: Moment,
    /// Since when the process has been running.
    pub since: Moment,
    /// Packets so far.
    pub totals: Totals,
    /// Events so far.
    pub events: EventTotals,
    /// What became of what each source has reported.
    pub sources: BTreeMap<String, SourceStatus>,
    /// Guests in each container.
    pub containers: BTreeMap<String, usize>,
    /// Guests of which there is something to say.
    pub guests: Vec<GuestStatus>,
    /// Sessions with other hosts, if this host makes any.
    pub sessions: Option<SessionsStatus>,
    /// What hosts share by etcd, if they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd: Option<EtcdStatus>,
    /// Rules that accept two forms for a time.
    pub transitions: Vec<Transition>,
}

/// A guest that is not as the policy alone has it.
#[derive(Clone, Debug, Serialize)]
pub struct GuestStatus {
    /// Its id.
    pub guest: String,
    /// Its container.
    pub container: String,
    /// Whether that is one of quarantine.
    pub quarantine: bool,
    /// Why it is there.
    pub because: Option<String>,
    /// Since when.
    pub since: Option<Moment>,
    /// Whether a hand holds it there.
    pub pinned: bool,
    /// Until when a release waits, because it was flapping.
    pub held_until: Option<Moment>,
    /// Its tags: `service/name` and severity.
    pub tags: BTreeMap<String, u8>,
    /// Templates whose rules are there for it, and why.
    pub templates: BTreeMap<String, String>,
}

/// The guests in each container.
#[must_use]
pub fn containers(containers: &Containers) -> BTreeMap<String, usize> {
    let policy = containers.policy();
    let mut counts: BTreeMap<String, usize> = policy
        .containers
        .iter()
        .map(|container| (container.name.clone(), 0))
        .collect();
    for number in 0..policy.guests.len() {
        let record = containers.record(GuestIndex(number as u32));
        *counts.entry(name(policy, record.container)).or_default() += 1;
    }
    counts
}

/// The guests of which there is something to say.
#[must_use]
pub fn guests(containers: &Containers) -> Vec<GuestStatus> {
    let policy = containers.policy();
    (0..policy.guests.len() as u32)
        .map(|number| (GuestIndex(number), containers.record(GuestIndex(number))))
        .filter(|(_, record)| is_noteworthy(record))
        .map(|(guest, record)| of_guest(policy, guest, record))
        .collect()
}

fn is_noteworthy(record: &Record) -> bool {
    record.container != ContainerIndex(0)
        || record.pin.is_some()
        || !record.instances.is_empty()
        || record.tags.values().any(|tag| tag.cleared.is_none())
}

fn name(policy: &Policy, container: ContainerIndex) -> String {
    policy.containers[container.index()].name.clone()
}

fn of_guest(policy: &Policy, guest: GuestIndex, record: &Record) -> GuestStatus {
    let open = record.tags.iter().filter(|(_, tag)| tag.cleared.is_none());
    let instances = record.instances.iter();
    GuestStatus {
        guest: policy.guests[guest.index()].id.clone(),
        container: name(policy, record.container),
        quarantine: policy.containers[record.container.index()].quarantine,
        because: record.cause.as_ref().map(ToString::to_string),
        since: record.cause.as_ref().map(|cause| cause.at),
        pinned: record.pin.is_some(),
        held_until: record
            .held_until
            .filter(|until| *until > record.cause.as_ref().map_or(Moment::default(), |cause| cause.at)),
        tags: open
            .map(|((service, name), tag)| (format!("{service}/{name}"), tag.severity))
            .collect(),
        templates: instances
            .map(|(template, instance)| {
                (
                    policy.templates[template.index()].name.clone(),
                    instance.cause.to_string(),
                )
            })
            .collect(),
    }
}

/// The file in a state directory.
#[must_use]
pub fn path(state_directory: &Path) -> PathBuf {
    state_directory.join("status.json")
}

/// Replaces the file.
///
/// # Errors
/// If the file system refuses.
pub fn write(state_directory: &Path, status: &Status) -> io::Result<()> {
    files::replace(&path(state_directory), &serde_json::to_vec_pretty(status)?)
}
