//! The state of all guests in names instead of numbers: what is written down, and what lives on under another policy.
//!
//! Restored under the same policy it is the very same state. Under another one guests are known by their UUIDs, containers,
//! templates and networks by their names; guests that it does not have are parked, and those that come back are as they were.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::event::Moment;
use crate::flows::FlowContext;
use crate::model::{ContainerIndex, GuestIndex, Policy, TemplateIndex};

use super::record::{Cause, Instance, Pin, Record, Tag, ToldFlow};
use super::{Changes, Containers, MAX_PARKED};

/// Everything that has happened, as far as it still matters; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// The time of what was done last.
    pub now: Moment,
    /// Events accepted.
    pub events: u64,
    /// Guests of which something is known, by UUID.
    pub guests: BTreeMap<String, SavedGuest>,
}

/// What is known of one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedGuest {
    pub(super) container: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cause: Option<SavedCause>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) came_from: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pin: Option<SavedPin>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tags: Vec<SavedTag>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) logins: BTreeMap<String, Vec<String>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) labels: BTreeMap<String, Option<String>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) instances: BTreeMap<String, SavedInstance>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    held: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) held_until: Option<Moment>,
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub(super) moved: VecDeque<Moment>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) releasable: Option<Moment>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    flows: Vec<SavedFlow>,
    #[serde(default, skip_serializing_if = "is_never")]
    logins_at: Moment,
    #[serde(default, skip_serializing_if = "is_never")]
    labels_at: Moment,
    #[serde(default, skip_serializing_if = "is_zero")]
    hands: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedCause {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) event: Option<u64>,
    pub(super) at: Moment,
    pub(super) text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) host: Option<String>,
}

fn is_never(at: &Moment) -> bool {
    *at == Moment::default()
}

pub(super) fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedPin {
    pub(super) from: String,
    pub(super) came_from: Vec<String>,
    pub(super) since: Moment,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedTag {
    pub(super) service: String,
    pub(super) name: String,
    pub(super) severity: u8,
    pub(super) first: Moment,
    pub(super) last: Moment,
    pub(super) count: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cleared: Option<Moment>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) until: Option<Moment>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedInstance {
    pub(super) cause: SavedCause,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) until: Option<Moment>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedFlow {
    network: String,
    protocol: u8,
    local: SocketAddr,
    remote: SocketAddr,
    at: Moment,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    application: Option<String>,
}

impl Containers {
    /// The state, in names. Guests of which nothing is known are left out.
    #[must_use]
    pub fn save(&self) -> Saved {
        let untouched = Record::new();
        let own = self.policy.guests.iter().map(|guest| &guest.uuid);
        let known = own.zip(&self.records).filter(|(_, record)| **record != untouched);
        Saved {
            now: self.now,
            events: self.events,
            guests: known
                .chain(&self.parked)
                .map(|(uuid, record)| (uuid.clone(), save(record, &self.policy)))
                .collect(),
        }
    }

    /// The guests of a policy as they were saved, and what has become of them under it.
    #[must_use]
    pub fn restore(policy: Arc<Policy>, saved: &Saved) -> (Self, Changes) {
        let mut next = Self::new(Arc::clone(&policy), saved.now);
        next.events = saved.events;
        for (uuid, guest) in &saved.guests {
            let mut record = restore(guest, &policy);
            match next.by_name.get(uuid).copied() {
                Some(number) if policy.guests[number.index()].uuid == *uuid => {
                    next.restore_flows(number, guest, &mut record);
                    next.records[number.index()] = record;
                }
                _ => {
                    // Nobody is logged in at a guest that is not there.
                    record.logins.clear();
                    next.parked.insert(uuid.clone(), record);
                }
            }
        }
        while next.parked.len() > MAX_PARKED {
            next.parked.pop_first();
        }
        let all: BTreeSet<GuestIndex> = (0..policy.guests.len() as u32).map(GuestIndex).collect();
        // What they are comes first, what follows from it second: nothing is to come about only because one of them was
        // looked at before another.
        let mut waiting = all.clone();
        let mut rounds = 0;
        while !waiting.is_empty() && rounds < super::MAX_ROUNDS {
            rounds += 1;
            for guest in std::mem::take(&mut waiting) {
                waiting.extend(next.count_answers(guest));
                if next.publish(guest) {
                    waiting.insert(guest);
                }
            }
        }
        let mut changes = Changes::default();
        next.settle(all, None, &mut changes);
        (next, changes)
    }

    /// What was told of flows of this guest, as far as they are still its own.
    fn restore_flows(&mut self, guest: GuestIndex, saved: &SavedGuest, record: &mut Record) {
        for flow in &saved.flows {
            let Ok((key, place)) = self.flow_of(guest, flow.protocol, flow.local, flow.remote) else {
                continue;
            };
            if self.policy.network(&flow.network) != Some(key.network()) {
                continue;
            }
            let context = Arc::new(FlowContext {
                user: flow.user.clone(),
                groups: flow.groups.clone(),
                application: flow.application.clone(),
            });
            record.flows.push_back(ToldFlow {
                key,
                place,
                at: flow.at,
                context: Arc::clone(&context),
            });
            self.flows.by_key.entry(key).or_default()[place] = Some(context);
        }
    }
}

pub(super) fn save(record: &Record, policy: &Policy) -> SavedGuest {
    let container = |index: ContainerIndex| policy.containers[index.index()].name.clone();
    let all = |list: &[ContainerIndex]| list.iter().copied().map(container).collect();
    let template = |index: TemplateIndex| policy.templates[index.index()].name.clone();
    let tags = record.tags.iter().map(|((service, name), tag)| SavedTag {
        service: service.clone(),
        name: name.clone(),
        severity: tag.severity,
        first: tag.first,
        last: tag.last,
        count: tag.count,
        cleared: tag.cleared,
        until: tag.until,
    });
    let instances = record.instances.iter().map(|(index, instance)| {
        let saved = SavedInstance {
            cause: save_cause(&instance.cause),
            until: instance.until,
        };
        (template(*index), saved)
    });
    SavedGuest {
        container: container(record.container),
        cause: record.cause.as_ref().map(save_cause),
        came_from: all(&record.came_from),
        pin: record.pin.as_ref().map(|pin| SavedPin {
            from: container(pin.from),
            came_from: all(&pin.came_from),
            since: pin.since,
        }),
        tags: tags.collect(),
        logins: record.logins.clone(),
        labels: record.labels.clone(),
        instances: instances.collect(),
        held: record.held.iter().copied().map(template).collect(),
        held_until: record.held_until,
        moved: record.moved.clone(),
        releasable: record.releasable,
        flows: record.flows.iter().map(|flow| save_flow(flow, policy)).collect(),
        logins_at: record.logins_at,
        labels_at: record.labels_at,
        hands: record.hands,
    }
}

fn save_flow(flow: &ToldFlow, policy: &Policy) -> SavedFlow {
    let end = |place| SocketAddr::from(flow.key.end(place));
    SavedFlow {
        network: policy.networks[flow.key.network().index()].name.clone(),
        protocol: flow.key.protocol(),
        local: end(flow.place),
        remote: end(1 - flow.place),
        at: flow.at,
        user: flow.context.user.clone(),
        groups: flow.context.groups.clone(),
        application: flow.context.application.clone(),
    }
}

/// The record but for its flows, under a policy that may have other containers and templates.
fn restore(saved: &SavedGuest, policy: &Policy) -> Record {
    let of = |name: &String| policy.container(name);
    let all = |list: &[String]| list.iter().filter_map(of).collect::<Vec<_>>();
    let mut came_from = all(&saved.came_from);
    // Without its container a guest is where it came from.
    let found = of(&saved.container);
    let container = found.or_else(|| came_from.pop()).unwrap_or(ContainerIndex(0));
    if let Some(at) = came_from.iter().position(|one| *one == container) {
        came_from.truncate(at);
    }
    let pin = saved.pin.as_ref().filter(|_| found.is_some()).map(|pin| {
        let from = of(&pin.from).unwrap_or(ContainerIndex(0));
        let mut came_from = all(&pin.came_from);
        came_from.retain(|one| *one != from);
        Pin {
            from,
            came_from,
            since: pin.since,
        }
    });
    let tags = saved.tags.iter().map(|tag| {
        let key = (tag.service.clone(), tag.name.clone());
        (key, tag.restored())
    });
    let instances = saved.instances.iter().filter_map(|(name, instance)| {
        let known = Instance {
            cause: instance.cause.restored(),
            until: instance.until,
        };
        Some((policy.template(name)?, known))
    });
    let held = saved.held.iter().filter_map(|name| policy.template(name));
    Record {
        tags: tags.collect(),
        logins: saved.logins.clone(),
        logins_at: saved.logins_at,
        labels: saved.labels.clone(),
        labels_at: saved.labels_at,
        hands: saved.hands,
        container,
        cause: saved.cause.as_ref().map(SavedCause::restored),
        came_from,
        pin,
        instances: instances.collect(),
        held_until: saved.held_until,
        moved: saved.moved.clone(),
        releasable: saved.releasable.filter(|_| found.is_some()),
        flows: VecDeque::new(),
        held: held.collect(),
    }
}

fn save_cause(cause: &Cause) -> SavedCause {
    SavedCause {
        event: cause.event,
        at: cause.at,
        text: cause.text.to_string(),
        host: cause.host.as_ref().map(ToString::to_string),
    }
}

impl SavedCause {
    pub(super) fn restored(&self) -> Cause {
        Cause {
            event: self.event,
            at: self.at,
            text: self.text.as_str().into(),
            host: self.host.as_deref().map(Into::into),
        }
    }
}

impl SavedTag {
    pub(super) fn restored(&self) -> Tag {
        Tag {
            severity: self.severity,
            first: self.first,
            last: self.last,
            count: self.count,
            cleared: self.cleared,
            until: self.until,
        }
    }
}

impl Saved {
    /// Names also the guests of which nothing is known.
    pub(super) fn mention_all(&mut self, policy: &Policy) {
        for guest in &policy.guests {
            self.guests
                .entry(guest.uuid.clone())
                .or_insert_with(|| save(&Record::new(), policy));
        }
    }

    /// Lets the time to release begin anew for guests whose container releases otherwise under another policy.
    pub(super) fn release_anew(&mut self, old: &Policy, new: &Policy) {
        let release = |policy: &Policy, name: &str| {
            let container = policy.container(name)?;
            Some(policy.containers[container.index()].release.clone())
        };
        for guest in self
            .guests
            .values_mut()
            .filter(|guest| guest.releasable.is_some())
        {
            if release(old, &guest.container) != release(new, &guest.container) {
                guest.releasable = None;
            }
        }
    }
}
