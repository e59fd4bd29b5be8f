//! Security containers: events in, transfers out.
//!
//! Every guest is in exactly one container. What happens to it is told by [`Containers::apply`], that time passes by
//! [`Containers::advance`]; both say which guests are others than before, and which of them have moved and why.
//! Time is an argument. Only the events and their order decide, not how they are batched: whatever is due is done, in the
//! order of its time, before an event that comes later. The same events at the same times make the same state again.
//! Everything that events can fill is bounded, and no event makes more work than the guests it is about and their
//! neighbours, each settled at most [`MAX_ROUNDS`] times.

mod asks;
mod moves;
pub mod record;
pub mod saved;
mod shared;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::event::{Event, FlowTold, Moment, What};
use crate::explain::Causes;
use crate::flows::{FlowKey, Flows};
use crate::meaning::World;
use crate::membership::Membership;
use crate::model::{ContainerIndex, CriteriaIndex, GuestIndex, Policy, TemplateIndex};

use asks::Neighbours;
use moves::Told;
pub use record::{Cause, Instance, Pin, Record, Tag};
use record::{MAX_FLOWS, MAX_LABELS, MAX_LOGINS, Tagged, ToldFlow, just_after};
pub use saved::Saved;
pub use shared::Shared;

/// How often one event may change what holds of one guest before it is left as it is.
pub const MAX_ROUNDS: usize = 16;
/// Guests that the policy no longer has, and of which the records are kept: they may come back.
pub const MAX_PARKED: usize = 65_536;
/// Bytes of a name in an event.
pub const MAX_NAME: usize = 256;
/// Groups of one user in an event.
pub const MAX_GROUPS: usize = 64;
/// How long what an agent said of a flow holds if it says nothing more: a missed end must not lend a user's name to
/// whoever uses the ports next.
pub const FLOW_LIFE: std::time::Duration = std::time::Duration::from_secs(3600);

/// The state of all guests.
#[derive(Clone, Debug)]
pub struct Containers {
    policy: Arc<Policy>,
    now: Moment,
    /// Events accepted so far.
    events: u64,
    records: Vec<Record>,
    parked: BTreeMap<String, Record>,
    by_name: HashMap<String, GuestIndex, FixedState>,
    memberships: Vec<Membership>,
    neighbours: Neighbours,
    timers: BTreeSet<(Moment, GuestIndex)>,
    /// The timer of each guest.
    due: Vec<Option<Moment>>,
    flows: Flows,
}

/// A guest has moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Which.
    pub guest: GuestIndex,
    /// When.
    pub at: Moment,
    /// From where.
    pub from: ContainerIndex,
    /// Where to.
    pub to: ContainerIndex,
    /// Why.
    pub cause: Cause,
}

/// What an event, or time, has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Guests that are others than before to the rules, or were so for a moment.
    pub guests: BTreeSet<GuestIndex>,
    /// Guests that have moved, in order.
    pub moved: Vec<Moved>,
    /// Flows of which something else is known than before.
    pub flows: BTreeSet<FlowKey>,
    /// Guests of which the policy says so much against itself that it was cut short: they are where they were then.
    pub unsettled: BTreeSet<GuestIndex>,
}

/// What is said of an event that changes nothing, and never will.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No guest has this UUID or id.
    #[error("no guest has this id or UUID")]
    UnknownGuest,
    /// The guest is not in the policy now: only tags of it are taken.
    #[error("the guest is not in the policy at present: only its tags are kept")]
    GuestAway,
    /// No container has this name.
    #[error("no container has this name")]
    UnknownContainer,
    /// The very same was said before.
    #[error("it was said before")]
    Duplicate,
    /// Something later was said before.
    #[error("something later was said before")]
    Late,
    /// There is nothing to clear, end, unpin or release.
    #[error("there is nothing that it could change")]
    Nothing,
    /// The guest has too many of these.
    #[error("the guest has too many of these")]
    TooMany,
    /// A name is too long, or a number out of its range.
    #[error(
        "a name is empty or longer than 256 bytes, a severity is above 100, or a user has more than 64 groups"
    )]
    OutOfRange,
    /// The flow is not the guest's.
    #[error("the local end of the flow is no address of this guest")]
    NotItsFlow,
    /// A hand holds the guest where it is.
    #[error("the guest is pinned")]
    Pinned,
    /// It is what hosts tell each other, and nobody else.
    #[error("only hosts tell each other that")]
    NotAHost,
}

impl Refusal {
    /// Every reason.
    pub const ALL: &'static [Refusal] = &[
        Refusal::UnknownGuest,
        Refusal::GuestAway,
        Refusal::UnknownContainer,
        Refusal::Duplicate,
        Refusal::Late,
        Refusal::Nothing,
        Refusal::TooMany,
        Refusal::OutOfRange,
        Refusal::NotItsFlow,
        Refusal::Pinned,
        Refusal::NotAHost,
    ];

    /// Its name in counters and journals.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Refusal::UnknownGuest => "UnknownGuest",
            Refusal::GuestAway => "GuestAway",
            Refusal::UnknownContainer => "UnknownContainer",
            Refusal::Duplicate => "Duplicate",
            Refusal::Late => "Late",
            Refusal::Nothing => "Nothing",
            Refusal::TooMany => "TooMany",
            Refusal::OutOfRange => "OutOfRange",
            Refusal::NotItsFlow => "NotItsFlow",
            Refusal::Pinned => "Pinned",
            Refusal::NotAHost => "NotAHost",
        }
    }
}

impl Containers {
    /// Every guest of a policy, with nothing having happened to any of them. What they are moves some all the same, such as
    /// a label.
    #[must_use]
    pub fn new(policy: Arc<Policy>, now: Moment) -> Self {
        let guests = policy.guests.len();
        let mut by_name = HashMap::default();
        for (number, guest) in (0u32..).zip(&policy.guests) {
            by_name.entry(guest.id.clone()).or_insert(GuestIndex(number));
        }
        // A UUID is the guest's own, whatever ids others have.
        for (number, guest) in (0u32..).zip(&policy.guests) {
            by_name.insert(guest.uuid.clone(), GuestIndex(number));
        }
        let mut containers = Self {
            now,
            events: 0,
            records: vec![Record::new(); guests],
            parked: BTreeMap::new(),
            by_name,
            memberships: (0..guests as u32)
                .map(|number| Membership::at_start(&policy, GuestIndex(number)))
                .collect(),
            neighbours: Neighbours::new(&policy),
            timers: BTreeSet::new(),
            due: vec![None; guests],
            flows: Flows::default(),
            policy,
        };
        let all = (0..guests as u32).map(GuestIndex).collect();
        containers.settle(all, None, &mut Changes::default());
        containers
    }

    /// The same guests under another policy: known by their UUIDs, containers and templates by their names. Guests that
    /// it does not have are parked; those that come back are as they were. Everything may be another to the rules.
    #[must_use]
    pub fn adopt(&self, policy: Arc<Policy>, now: Moment) -> (Self, Changes) {
        let mut saved = self.save();
        // Of a guest that goes tags are taken, whether something was known of it before or not.
        saved.mention_all(&self.policy);
        saved.now = self.now.max(now);
        saved.release_anew(&self.policy, &policy);
        let all = (0..policy.guests.len() as u32).map(GuestIndex).collect();
        let (next, mut changes) = Self::restore(policy, &saved);
        changes.guests = all;
        (next, changes)
    }

    /// Takes one event that is known of at `now`. Whatever is due by then comes first.
    ///
    /// # Errors
    /// Why it changes nothing. What was due has been done all the same: see [`Self::advance`].
    pub fn apply(&mut self, now: Moment, event: &Event, changes: &mut Changes) -> Result<(), Refusal> {
        self.advance(now, changes);
        check(&event.what)?;
        let own = event.time.map(|time| time.min(self.now));
        let Some(guest) = self.by_name.get(&event.guest).copied() else {
            return self.apply_parked(event, own);
        };
        let own = own.unwrap_or_else(|| self.record(guest).time_of(&event.what, self.now));
        let cause = Cause {
            event: Some(self.events + 1),
            at: self.now,
            text: event.what.to_string().into(),
            host: None,
        };
        self.take(guest, event, own, &cause, changes)?;
        self.events += 1;
        let told = Told {
            guest,
            what: &event.what,
            event: self.events,
        };
        self.settle(BTreeSet::from([guest]), Some(told), changes);
        Ok(())
    }

    /// Does what is due by `now`. Time never goes back: an earlier `now` is the present one.
    pub fn advance(&mut self, now: Moment, changes: &mut Changes) {
        while let Some((due, guest)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            self.now = self.now.max(due);
            self.timers.pop_first();
            self.due[guest.index()] = None;
            self.end_old_flows(guest, changes);
            self.settle(BTreeSet::from([guest]), None, changes);
        }
        self.now = self.now.max(now);
    }

    /// When something is due next.
    #[must_use]
    pub fn next_due(&self) -> Option<Moment> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// What the rules see of the guests, in their order.
    #[must_use]
    pub fn memberships(&self) -> &[Membership] {
        &self.memberships
    }

    /// The policy and its guests, as rules see them now.
    #[must_use]
    pub fn world(&self) -> World<'_> {
        World {
            policy: &self.policy,
            guests: &self.memberships,
            flows: &self.flows,
        }
    }

    /// What is known of flows.
    #[must_use]
    pub fn flows(&self) -> &Flows {
        &self.flows
    }

    /// What is known of a guest.
    #[must_use]
    pub fn record(&self, guest: GuestIndex) -> &Record {
        &self.records[guest.index()]
    }

    /// The guest of a UUID or id.
    #[must_use]
    pub fn guest(&self, name: &str) -> Option<GuestIndex> {
        self.by_name.get(name).copied()
    }

    /// The records of guests that the policy does not have at present, by UUID.
    #[must_use]
    pub fn parked(&self) -> &BTreeMap<String, Record> {
        &self.parked
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The time of what was done last.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Events accepted so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    fn take(
        &mut self,
        guest: GuestIndex,
        event: &Event,
        own: Moment,
        cause: &Cause,
        changes: &mut Changes,
    ) -> Result<(), Refusal> {
        let now = self.now;
        let record = &mut self.records[guest.index()];
        match &event.what {
            What::Tag(set) => tagged(record.set_tag(set, own, now))?,
            What::Clear(clear) => something(record.clear_tags(clear, own))?,
            What::Login(login) => {
                let known = record.logins.get(&login.user);
                if known.is_some_and(|groups| *groups == login.groups) {
                    return Err(Refusal::Duplicate);
                }
                if known.is_none() && record.logins.len() >= MAX_LOGINS {
                    return Err(Refusal::TooMany);
                }
                record.logins.insert(login.user.clone(), login.groups.clone());
                record.logins_at = now.max(just_after(record.logins_at));
            }
            What::Logout(logout) => {
                something(record.logins.remove(&logout.user).is_some())?;
                record.logins_at = now.max(just_after(record.logins_at));
            }
            What::Label(label) => {
                let known = record.labels.get(&label.name);
                if known == Some(&label.value) {
                    return Err(Refusal::Duplicate);
                }
                if known.is_none() && record.labels.len() >= MAX_LABELS {
                    return Err(Refusal::TooMany);
                }
                record.labels.insert(label.name.clone(), label.value.clone());
                record.labels_at = now.max(just_after(record.labels_at));
            }
            What::Flow(told) => self.tell_flow(guest, told, changes)?,
            What::FlowEnd(ended) => {
                let (key, place) = self.flow_of(guest, ended.protocol, ended.local, ended.remote)?;
                let flows = &mut self.records[guest.index()].flows;
                let before = flows.len();
                flows.retain(|flow| (flow.key, flow.place) != (key, place));
                something(flows.len() < before)?;
                self.forget_flow(key, place, changes);
            }
            What::Pin(into) => {
                let to = self.container(&into.container)?;
                let record = &mut self.records[guest.index()];
                let from = record.container;
                match &mut record.pin {
                    Some(_) if from == to => return Err(Refusal::Duplicate),
                    Some(pin) => pin.since = now,
                    None => {
                        let came_from = std::mem::take(&mut record.came_from);
                        record.pin = Some(Pin {
                            from,
                            came_from,
                            since: now,
                        });
                    }
                }
                self.place(guest, to, cause, changes);
            }
            What::Unpin(_) => {
                let pin = record.pin.take().ok_or(Refusal::Nothing)?;
                record.came_from = pin.came_from;
                self.place(guest, pin.from, cause, changes);
            }
            What::Transfer(into) => {
                let to = self.container(&into.container)?;
                let record = &self.records[guest.index()];
                if record.pin.is_some() {
                    return Err(Refusal::Pinned);
                }
                if record.container == to {
                    return Err(Refusal::Duplicate);
                }
                self.transfer(guest, to, cause.clone(), changes);
            }
            What::Release(_) => {
                if record.pin.is_some() {
                    return Err(Refusal::Pinned);
                }
                something(record.container != ContainerIndex(0))?;
                self.release(guest, cause.clone(), changes);
            }
            What::Shared(told) => self.take_shared(guest, told, changes)?,
        }
        if matches!(
            event.what,
            What::Pin(_) | What::Unpin(_) | What::Transfer(_) | What::Release(_)
        ) {
            let record = &mut self.records[guest.index()];
            record.hands = record.hands.saturating_add(1);
        }
        Ok(())
    }

    /// A guest that is away keeps its tags: a tag belongs to the UUID.
    fn apply_parked(&mut self, event: &Event, own: Option<Moment>) -> Result<(), Refusal> {
        if let What::Shared(told) = &event.what {
            let (news, _) = self.news(&event.guest, told)?;
            something(!news.is_empty())?;
            return match self.parked.get_mut(&event.guest) {
                Some(record) => {
                    record.take_shared_tags(&news);
                    self.events += 1;
                    Ok(())
                }
                None => Err(Refusal::UnknownGuest),
            };
        }
        let record = self.parked.get_mut(&event.guest).ok_or(Refusal::UnknownGuest)?;
        let own = own.unwrap_or_else(|| record.time_of(&event.what, self.now));
        match &event.what {
            What::Tag(set) => tagged(record.set_tag(set, own, self.now))?,
            What::Clear(clear) => something(record.clear_tags(clear, own))?,
            _ => return Err(Refusal::GuestAway),
        }
        self.events += 1;
        Ok(())
    }

    fn container(&self, name: &str) -> Result<ContainerIndex, Refusal> {
        self.policy.container(name).ok_or(Refusal::UnknownContainer)
    }

    /// The flow between an end that must be the guest's own and another.
    fn flow_of(
        &self,
        guest: GuestIndex,
        protocol: u8,
        local: std::net::SocketAddr,
        remote: std::net::SocketAddr,
    ) -> Result<(FlowKey, usize), Refusal> {
        let ports = &self.policy.guests[guest.index()].ports;
        let port = ports
            .iter()
            .map(|port| &self.policy.ports[port.index()])
            .find(|port| port.addresses.contains(&local.ip()))
            .ok_or(Refusal::NotItsFlow)?;
        Ok(FlowKey::new(
            port.network,
            protocol,
            (local.ip(), local.port()),
            (remote.ip(), remote.port()),
        ))
    }

    fn tell_flow(
        &mut self,
        guest: GuestIndex,
        told: &FlowTold,
        changes: &mut Changes,
    ) -> Result<(), Refusal> {
        let (key, place) = self.flow_of(guest, told.protocol, told.local, told.remote)?;
        let context = Arc::new(told.context());
        let flows = &mut self.records[guest.index()].flows;
        flows.retain(|flow| (flow.key, flow.place) != (key, place));
        // Whoever fills the room with its own flows forgets its own oldest.
        let oldest = (flows.len() >= MAX_FLOWS).then(|| flows.pop_front()).flatten();
        flows.push_back(ToldFlow {
            key,
            place,
            at: self.now,
            context: Arc::clone(&context),
        });
        if let Some(oldest) = oldest {
            self.forget_flow(oldest.key, oldest.place, changes);
        }
        let known = &mut self.flows.by_key.entry(key).or_default()[place];
        if known.as_ref() != Some(&context) {
            *known = Some(context);
            changes.flows.insert(key);
        }
        Ok(())
    }

    fn forget_flow(&mut self, key: FlowKey, place: usize, changes: &mut Changes) {
        changes.flows.insert(key);
        if let Some(told) = self.flows.by_key.get_mut(&key) {
            told[place] = None;
            if told.iter().all(Option::is_none) {
                self.flows.by_key.remove(&key);
            }
        }
    }

    /// Forgets flows that were told of too long ago.
    fn end_old_flows(&mut self, guest: GuestIndex, changes: &mut Changes) {
        while let Some(flow) = self.records[guest.index()].flows.front() {
            if flow.at.after(FLOW_LIFE) > self.now {
                break;
            }
            let (key, place) = (flow.key, flow.place);
            self.records[guest.index()].flows.pop_front();
            self.forget_flow(key, place, changes);
        }
    }

    /// Makes a guest's membership what its record says; whether it was another.
    fn publish(&mut self, guest: GuestIndex) -> bool {
        let record = &self.records[guest.index()];
        let mut labels = self.policy.guests[guest.index()].labels.clone();
        for (name, value) in &record.labels {
            match value {
                Some(value) => labels.insert(name.clone(), value.clone()),
                None => labels.remove(name),
            };
        }
        let mut next = Membership::at_start(&self.policy, guest);
        next.labels = labels;
        next.containers = self.policy.chain(record.container).collect();
        next.subject_of = record.instances.keys().copied().collect();
        for (number, criteria) in (0u16..).zip(&self.policy.criteria) {
            next.set(CriteriaIndex(number), self.holds(guest, criteria));
        }
        let known = &mut self.memberships[guest.index()];
        let changed = *known != next;
        *known = next;
        changed
    }
}

impl Causes for Containers {
    fn container(&self, guest: GuestIndex) -> Option<String> {
        let cause = self.records.get(guest.index())?.cause.as_ref()?;
        Some(format!("{cause}, {}", cause.at))
    }

    fn subject(&self, guest: GuestIndex, template: TemplateIndex) -> Option<String> {
        let instance = self.records.get(guest.index())?.instances.get(&template)?;
        let until = instance
            .until
            .map_or_else(String::new, |until| format!(", until {until}"));
        Some(format!("{}, {}{until}", instance.cause, instance.cause.at))
    }
}

fn tagged(tagged: Tagged) -> Result<(), Refusal> {
    match tagged {
        Tagged::New => Ok(()),
        Tagged::Duplicate => Err(Refusal::Duplicate),
        Tagged::Late => Err(Refusal::Late),
        Tagged::NoRoom => Err(Refusal::TooMany),
    }
}

fn something(any: bool) -> Result<(), Refusal> {
    if any { Ok(()) } else { Err(Refusal::Nothing) }
}

/// Whether names and numbers of an event are within their bounds.
fn check(what: &What) -> Result<(), Refusal> {
    let name = |name: &str| (1..=MAX_NAME).contains(&name.len());
    let maybe = |text: &Option<String>| text.as_deref().is_none_or(name);
    let list = |groups: &[String]| groups.len() <= MAX_GROUPS && groups.iter().all(|group| name(group));
    let fine = match what {
        What::Tag(tag) => name(&tag.service) && name(&tag.name) && tag.severity <= 100,
        What::Clear(tag) => name(&tag.service) && name(&tag.name),
        What::Login(login) => name(&login.user) && list(&login.groups),
        What::Logout(logout) => name(&logout.user),
        What::Label(label) => name(&label.name) && maybe(&label.value),
        What::Flow(flow) => maybe(&flow.user) && list(&flow.groups) && maybe(&flow.application),
        What::Shared(shared) => shared.is_fine(),
        What::FlowEnd(_) | What::Pin(_) | What::Unpin(_) | What::Transfer(_) | What::Release(_) => true,
    };
    if fine { Ok(()) } else { Err(Refusal::OutOfRange) }
}

#[cfg(test)]
mod tests;
