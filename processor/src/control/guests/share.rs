//! What of the guests other hosts are to know, and what they tell.

use std::collections::BTreeSet;

use guestseal_rules::containers::{Changes, Refusal, Shared};
use guestseal_rules::event::{Event, Moment, What};
use guestseal_rules::model::GuestIndex;

use super::Guests;
use crate::control::moves::Moved;

/// Another host, as the journal calls it.
pub(in crate::control) fn through_etcd(host: &str) -> String {
    format!("host {host} through etcd")
}

impl Guests {
    /// Takes what is news of what another host knows of a guest, as an event of that host.
    ///
    /// # Errors
    /// Why it changes nothing.
    pub fn hear(&mut self, now: Moment, guest: &str, news: Shared) -> Result<(), Refusal> {
        let by = through_etcd(&news.host);
        let event = Event {
            time: None,
            guest: guest.to_owned(),
            what: What::Shared(Box::new(news)),
        };
        self.take_event(now, &by, event, None)
    }

    /// From here on it is noted of which guests other hosts are to know more.
    pub fn share(&mut self) {
        self.touched = Some(BTreeSet::new());
    }

    /// The guests of which other hosts are to know more than at the last look.
    pub fn take_touched(&mut self) -> BTreeSet<String> {
        self.touched.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Other hosts are to know more of a guest.
    pub(super) fn touch(&mut self, guest: &str) {
        if let Some(touched) = &mut self.touched {
            let known = self.containers.guest(guest);
            let uuid = known.map(|index| self.policy.guests[index.index()].uuid.clone());
            touched.insert(uuid.unwrap_or_else(|| guest.to_owned()));
        }
    }

    /// Whether a guest of this UUID is, or was, in the policy.
    #[must_use]
    pub fn knows(&self, uuid: &str) -> bool {
        let index = self.containers.guest(uuid);
        let is_uuid = |index: GuestIndex| self.policy.guests[index.index()].uuid == uuid;
        index.is_some_and(is_uuid) || self.containers.parked().contains_key(uuid)
    }

    /// The guests that are, or were, in the policy, by UUID.
    pub fn known(&self) -> impl Iterator<Item = &str> {
        let here = self.policy.guests.iter().map(|guest| guest.uuid.as_str());
        here.chain(self.containers.parked().keys().map(String::as_str))
    }

    /// What time has done to guests of this host is told by it, and by no other host.
    pub(super) fn touch_moved(&mut self, changes: &Changes, is_here: impl Fn(GuestIndex) -> bool) {
        let Some(touched) = &mut self.touched else { return };
        let by_time = changes.moved.iter().filter(|moved| moved.cause.event.is_none());
        let here = by_time.filter(|moved| is_here(moved.guest));
        touched.extend(here.map(|moved| self.policy.guests[moved.guest.index()].uuid.clone()));
    }

    /// The last move of a guest, by UUID.
    #[must_use]
    pub fn moved(&self, guest: &str) -> Option<&Moved> {
        self.moves.get(guest)
    }

    /// The moves that other hosts are to know of.
    pub fn moves(&self) -> impl Iterator<Item = (&str, &Moved)> {
        self.moves.iter().filter(|(_, at)| at.steps > 0)
    }

    /// The host that the policy says for a guest.
    #[must_use]
    pub fn declared_host(&self, guest: &str) -> Option<&str> {
        let guest = &self.policy.guests[self.containers.guest(guest)?.index()];
        Some(&self.policy.hosts[guest.host.index()].name)
    }

    /// Whether the policy has no host of this name.
    #[must_use]
    pub fn is_no_host(&self, name: &str) -> bool {
        self.policy.host(name).is_none()
    }
}
