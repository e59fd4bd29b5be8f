//! What hosts tell each other of a guest, and what becomes of it here.
//!
//! It is state, not what happened: tags with their times, who is logged in, labels, the container and why. Taking it makes of
//! two states the one that follows from both, whatever the order, and taking it twice changes nothing:
//!
//! - of a tag the later word holds, and of two of the same time that it was cleared;
//! - logins are one thing, and so are labels: the later word on any of them holds for all;
//! - the container goes by hands first, since what a hand does at a host follows what it knows of the hands before it, then
//!   by time. Where only rules move a guest, every host comes to the same by itself;
//! - what follows from the new state by the rules here is done here.
//!
//! What agents say of flows is not told: it holds for an hour at most and is large.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::event::Moment;
use crate::model::{ContainerIndex, GuestIndex};

use super::record::{Cause, Instance, MAX_LABELS, MAX_LOGINS, MAX_TAGS, Pin, Record, Tag};
use super::saved::{SavedCause, SavedInstance, SavedPin, SavedTag, is_zero, save};
use super::{Changes, Containers, MAX_GROUPS, MAX_NAME, Refusal};

/// Hands that have moved one guest, at most: a number that no host comes to.
const MOST_HANDS: u64 = 1 << 48;
/// Bytes of a cause in words, and entries of lists that policies bound.
const MAX_CAUSE: usize = 4096;
const MAX_LIST: usize = 65_536;

/// A guest as a host knows it, or that part of it that is news.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// The host that tells.
    pub host: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<SavedTag>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    logins: Option<SharedLogins>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    labels: Option<SharedLabels>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<SharedPlace>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    instances: BTreeMap<String, SavedInstance>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SharedLogins {
    at: Moment,
    users: BTreeMap<String, Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SharedLabels {
    at: Moment,
    values: BTreeMap<String, Option<String>>,
}

/// Where a guest is, and all that goes with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SharedPlace {
    #[serde(default, skip_serializing_if = "is_zero")]
    hands: u64,
    container: String,
    cause: SavedCause,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    came_from: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pin: Option<SavedPin>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held_until: Option<Moment>,
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    moved: VecDeque<Moment>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    releasable: Option<Moment>,
}

/// The later of two words on a tag; of two of the same moment that it was cleared, then the worse one.
type Word = (Moment, bool, u32, u8, Reverse<Moment>, Option<Moment>);

fn word_of(tag: &Tag) -> Word {
    let (at, is_cleared) = (tag.cleared.unwrap_or(tag.last), tag.cleared.is_some());
    (
        at,
        is_cleared,
        tag.count,
        tag.severity,
        Reverse(tag.first),
        tag.until,
    )
}

/// The later of two words on where a guest is. Of two of the same moment quarantine holds, then a pin, then anything that all
/// hosts agree on.
type PlaceWord<'a> = (u64, Moment, bool, Option<&'a str>, &'a str, Vec<&'a str>);

impl Shared {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
            && self.logins.is_none()
            && self.labels.is_none()
            && self.place.is_none()
            && self.instances.is_empty()
    }

    /// Whether all of it is within the bounds of what a guest may have.
    pub(super) fn is_fine(&self) -> bool {
        let name = |name: &String| (1..=MAX_NAME).contains(&name.len());
        let cause =
            |cause: &SavedCause| cause.text.len() <= MAX_CAUSE && cause.host.as_ref().is_none_or(name);
        let tag = |tag: &SavedTag| name(&tag.service) && name(&tag.name) && tag.severity <= 100;
        let user = |(user, groups): (&String, &Vec<String>)| {
            name(user) && groups.len() <= MAX_GROUPS && groups.iter().all(name)
        };
        let label =
            |(label, value): (&String, &Option<String>)| name(label) && value.as_ref().is_none_or(name);
        let place = |place: &SharedPlace| {
            place.hands <= MOST_HANDS
                && cause(&place.cause)
                && place.came_from.len() <= MAX_LIST
                && place.moved.len() <= MAX_LIST
                && place
                    .pin
                    .as_ref()
                    .is_none_or(|pin| pin.came_from.len() <= MAX_LIST)
        };
        let logins =
            |logins: &SharedLogins| logins.users.len() <= MAX_LOGINS && logins.users.iter().all(user);
        let labels =
            |labels: &SharedLabels| labels.values.len() <= MAX_LABELS && labels.values.iter().all(label);
        name(&self.host)
            && !self.host.contains(char::is_control)
            && self.tags.len() <= MAX_TAGS
            && self.tags.iter().all(tag)
            && self.logins.as_ref().is_none_or(logins)
            && self.labels.as_ref().is_none_or(labels)
            && self.place.as_ref().is_none_or(place)
            && self.instances.len() <= MAX_LIST
            && self.instances.values().all(|instance| cause(&instance.cause))
    }
}

impl Containers {
    fn place_of(&self, record: &Record) -> PlaceWord<'_> {
        let name = |index: ContainerIndex| self.policy.containers[index.index()].name.as_str();
        (
            record.hands,
            record.cause.as_ref().map(|cause| cause.at).unwrap_or_default(),
            self.policy.containers[record.container.index()].quarantine,
            record.pin.as_ref().map(|pin| name(pin.from)),
            name(record.container),
            record.came_from.iter().copied().map(name).collect(),
        )
    }

    fn place_in<'a>(&self, told: &'a SharedPlace) -> PlaceWord<'a> {
        let container = self.policy.container(&told.container);
        (
            told.hands,
            told.cause.at,
            container.is_some_and(|index| self.policy.containers[index.index()].quarantine),
            told.pin.as_ref().map(|pin| pin.from.as_str()),
            &told.container,
            told.came_from.iter().map(String::as_str).collect(),
        )
    }

    fn known(&self, guest: &str) -> Option<(&Record, bool)> {
        match self.guest(guest) {
            Some(index) => Some((self.record(index), true)),
            None => Some((self.parked.get(guest)?, false)),
        }
    }

    /// What this host, `own`, has to tell of a guest; `None` if it knows of no such guest. Of one that is away only its tags.
    #[must_use]
    pub fn share(&self, guest: &str, own: &str) -> Option<Shared> {
        let (record, is_here) = self.known(guest)?;
        let saved = save(record, &self.policy);
        let mut shared = Shared {
            host: own.to_owned(),
            tags: saved.tags,
            ..Shared::default()
        };
        if !is_here {
            return Some(shared);
        }
        let by = |cause: SavedCause| SavedCause {
            host: Some(cause.host.unwrap_or_else(|| own.to_owned())),
            // Its number is this host's own.
            event: None,
            ..cause
        };
        if record.logins_at != Moment::default() {
            shared.logins = Some(SharedLogins {
                at: record.logins_at,
                users: saved.logins,
            });
        }
        if record.labels_at != Moment::default() {
            shared.labels = Some(SharedLabels {
                at: record.labels_at,
                values: saved.labels,
            });
        }
        shared.place = saved.cause.map(|cause| SharedPlace {
            hands: record.hands,
            container: saved.container,
            cause: by(cause),
            came_from: saved.came_from,
            pin: saved.pin,
            held_until: saved.held_until,
            moved: saved.moved,
            releasable: saved.releasable,
        });
        // What has no end of its own follows from what holds.
        let with_end = saved.instances.into_iter();
        shared.instances = with_end
            .filter(|(_, instance)| instance.until.is_some())
            .map(|(template, instance)| {
                let cause = by(instance.cause);
                (template, SavedInstance { cause, ..instance })
            })
            .collect();
        Some(shared)
    }

    /// What of that which another host tells is news here, and whether it speaks of a container that there is not. Nothing is
    /// news if it says no more than what is known.
    ///
    /// # Errors
    /// [`Refusal::UnknownGuest`] and [`Refusal::OutOfRange`].
    pub fn news(&self, guest: &str, told: &Shared) -> Result<(Shared, Option<Refusal>), Refusal> {
        if !told.is_fine() {
            return Err(Refusal::OutOfRange);
        }
        let (record, is_here) = self.known(guest).ok_or(Refusal::UnknownGuest)?;
        let tags = told.tags.iter().filter(|tag| {
            let known = record.tags.get(&(tag.service.clone(), tag.name.clone()));
            match known {
                Some(known) => word_of(&tag.restored()) > word_of(known),
                // What was cleared is remembered where there is room: who writes next would else forget it for those that have it set.
                None => tag.cleared.is_none() || record.tags.len() < MAX_TAGS,
            }
        });
        let mut news = Shared {
            host: told.host.clone(),
            tags: tags.cloned().collect(),
            ..Shared::default()
        };
        if !is_here {
            return Ok((news, None));
        }
        let later = |logins: &&SharedLogins| (logins.at, &logins.users) > (record.logins_at, &record.logins);
        news.logins = told.logins.as_ref().filter(later).cloned();
        let later = |labels: &&SharedLabels| (labels.at, &labels.values) > (record.labels_at, &record.labels);
        news.labels = told.labels.as_ref().filter(later).cloned();
        let later = |place: &&SharedPlace| self.place_in(place) > self.place_of(record);
        let mut unknown = None;
        if let Some(place) = told.place.as_ref().filter(later) {
            match self.container(&place.container) {
                Ok(_) => news.place = Some(place.clone()),
                Err(refusal) => unknown = Some(refusal),
            }
        }
        let instances = told.instances.iter().filter(|(template, instance)| {
            let known = self.policy.template(template);
            let until = instance.until.filter(|until| *until > self.now);
            known.zip(until).is_some_and(|(template, until)| {
                record
                    .instances
                    .get(&template)
                    .is_none_or(|known| known.until.is_some_and(|known| until > known))
            })
        });
        news.instances = instances
            .map(|(template, instance)| (template.clone(), instance.clone()))
            .collect();
        Ok((news, unknown))
    }

    /// Whether this host knows more of a guest than was told, `None` if nothing was.
    #[must_use]
    pub fn is_ahead(&self, guest: &str, told: Option<&Shared>) -> bool {
        let Some((record, is_here)) = self.known(guest) else {
            return false;
        };
        let nothing = Shared::default();
        let told = told.unwrap_or(&nothing);
        let words: BTreeMap<(&str, &str), Word> = told
            .tags
            .iter()
            .map(|tag| {
                (
                    (tag.service.as_str(), tag.name.as_str()),
                    word_of(&tag.restored()),
                )
            })
            .collect();
        let tags = record.tags.iter().any(|((service, name), tag)| {
            let word = words.get(&(service.as_str(), name.as_str()));
            word.map_or(tag.cleared.is_none(), |word| word_of(tag) > *word)
        });
        if tags || !is_here {
            return tags;
        }
        let logins = told.logins.as_ref().map(|logins| (logins.at, &logins.users));
        let labels = told.labels.as_ref().map(|labels| (labels.at, &labels.values));
        let (no_logins, no_labels) = (BTreeMap::new(), BTreeMap::new());
        let place = told.place.as_ref().map(|place| self.place_in(place));
        // That it came there at another moment is no more: it did so by the same rules.
        let is_elsewhere = |told: PlaceWord<'_>| {
            let own = self.place_of(record);
            own > told && (own.0, own.3, own.4, &own.5) != (told.0, told.3, told.4, &told.5)
        };
        let moved = record.cause.is_some() && place.is_none_or(is_elsewhere);
        (record.logins_at, &record.logins) > logins.unwrap_or((Moment::default(), &no_logins))
            || (record.labels_at, &record.labels) > labels.unwrap_or((Moment::default(), &no_labels))
            || moved
    }

    /// Takes what another host tells; the same as if it had been found out here.
    pub(super) fn take_shared(
        &mut self,
        guest: GuestIndex,
        told: &Shared,
        changes: &mut Changes,
    ) -> Result<(), Refusal> {
        let name = self.policy.guests[guest.index()].uuid.clone();
        let (news, unknown) = self.news(&name, told)?;
        if news.is_empty() {
            return Err(unknown.unwrap_or(Refusal::Duplicate));
        }
        let record = &mut self.records[guest.index()];
        record.take_shared_tags(&news);
        if let Some(logins) = news.logins {
            record.logins_at = logins.at;
            record.logins = logins.users;
        }
        if let Some(labels) = news.labels {
            record.labels_at = labels.at;
            record.labels = labels.values;
        }
        for (template, saved) in &news.instances {
            if let Some(index) = self.policy.template(template) {
                let instance = Instance {
                    cause: saved.cause.restored(),
                    until: saved.until,
                };
                let record = &mut self.records[guest.index()];
                record.instances.insert(index, instance);
                record.held.insert(index);
            }
        }
        if let Some(place) = news.place {
            self.take_place(guest, place, changes)?;
        }
        Ok(())
    }

    fn take_place(
        &mut self,
        guest: GuestIndex,
        told: SharedPlace,
        changes: &mut Changes,
    ) -> Result<(), Refusal> {
        let to = self.container(&told.container)?;
        let policy = &self.policy;
        let all = |names: &[String], but: ContainerIndex| -> Vec<ContainerIndex> {
            let mut seen = BTreeSet::from([but]);
            let known = names.iter().filter_map(|name| policy.container(name));
            known.filter(|container| seen.insert(*container)).collect()
        };
        let came_from = all(&told.came_from, to);
        let pin = told.pin.map(|pin| {
            let from = policy.container(&pin.from).unwrap_or(ContainerIndex(0));
            Pin {
                from,
                came_from: all(&pin.came_from, from),
                since: pin.since,
            }
        });
        let cause: Cause = told.cause.restored();
        self.place(guest, to, &cause, changes);
        let most = self.policy.damping.transfers as usize;
        let record = &mut self.records[guest.index()];
        record.hands = told.hands;
        record.came_from = came_from;
        record.pin = pin;
        record.held_until = told.held_until;
        record.moved = told.moved;
        while record.moved.len() > most {
            record.moved.pop_front();
        }
        record.releasable = told.releasable;
        Ok(())
    }
}

impl Record {
    /// Takes the later words on tags, as far as there is room.
    pub(super) fn take_shared_tags(&mut self, news: &Shared) {
        for told in &news.tags {
            let key = (told.service.clone(), told.name.clone());
            let known = self.tags.contains_key(&key);
            let has_room = known || self.tags.len() < MAX_TAGS;
            if has_room || told.cleared.is_none() && self.make_room(told.severity) {
                self.tags.insert(key, told.restored());
            }
        }
    }
}

#[cfg(test)]
mod tests;
