//! Transfers, releases, templates' instances: what follows from what holds, until nothing more does.
//!
//! Of the transfers that hold at once the highest priority decides, then the declared precedence of the services that they
//! ask, then their order, those of the guest's own container before those of the ones it is nested in. A guest that flaps
//! waits where it is; into quarantine it never waits.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::event::What;
use crate::model::{ContainerIndex, GuestIndex, Release, Template, TemplateIndex, Transfer};

use super::record::{Cause, Instance};
use super::{Changes, Containers, MAX_ROUNDS, Moved};

/// An event that is being told.
#[derive(Copy, Clone)]
pub(super) struct Told<'a> {
    pub(super) guest: GuestIndex,
    pub(super) what: &'a What,
    /// Its number.
    pub(super) event: u64,
}

impl Containers {
    /// Does what follows for these guests, and for those for whom that changes something, the smallest number first.
    pub(super) fn settle(
        &mut self,
        mut waiting: BTreeSet<GuestIndex>,
        told: Option<Told<'_>>,
        changes: &mut Changes,
    ) {
        if let Some(told) = told {
            waiting.extend(self.told_neighbours(told));
        }
        let mut rounds: BTreeMap<GuestIndex, usize> = BTreeMap::new();
        while let Some(guest) = waiting.pop_first() {
            let round = rounds.entry(guest).or_default();
            *round += 1;
            if *round > MAX_ROUNDS {
                changes.unsettled.insert(guest);
                continue;
            }
            self.records[guest.index()].end_tags(self.now);
            waiting.extend(self.count_answers(guest));
            self.make_instances(guest, told);
            let moved = self.move_once(guest, told, changes);
            let changed = self.publish(guest);
            if changed {
                changes.guests.insert(guest);
            }
            // What it became may hold of more, or of its neighbours.
            if moved || changed {
                waiting.insert(guest);
            }
            self.set_timer(guest);
        }
    }

    fn set_timer(&mut self, guest: GuestIndex) {
        let due = self.next_due_of(guest);
        let known = &mut self.due[guest.index()];
        if *known != due {
            if let Some(known) = known.take() {
                self.timers.remove(&(known, guest));
            }
            *known = due;
            self.timers.extend(due.map(|due| (due, guest)));
        }
    }

    /// The neighbours for which an event makes a template's rules, or makes them anew.
    fn told_neighbours(&self, told: Told<'_>) -> BTreeSet<GuestIndex> {
        let asked = |template: &Template| self.brings(&template.when, told, false);
        if self.policy.templates.iter().any(asked) {
            self.neighbours_of(told.guest)
        } else {
            BTreeSet::new()
        }
    }

    /// Makes the rules of templates for a guest, or makes them anew, or lets them go.
    ///
    /// Rules with a lifetime are made when the condition comes about, and anew by each event that it asks for; that it
    /// merely goes on holding does not make them live longer.
    fn make_instances(&mut self, guest: GuestIndex, told: Option<Told<'_>>) {
        let policy = Arc::clone(&self.policy);
        for (number, template) in (0u16..).zip(&policy.templates) {
            let index = TemplateIndex(number);
            let holds = self.holds(guest, &template.when);
            let told_anew = told.is_some_and(|told| {
                let itself = told.guest == guest;
                (itself || self.neighbours_of(told.guest).contains(&guest))
                    && self.brings(&template.when, told, itself)
            });
            let cause = self.because(guest, &format!("template {}", template.name), told);
            let record = &mut self.records[guest.index()];
            let held = if holds {
                !record.held.insert(index)
            } else {
                record.held.remove(&index)
            };
            let is_there = record.instances.get(&index);
            let until = template.lifetime.map(|lifetime| self.now.after(lifetime));
            let make = holds
                && if until.is_some() {
                    !held || told_anew
                } else {
                    is_there.is_none()
                };
            let over = match is_there.map(|instance| instance.until) {
                Some(Some(until)) => until <= self.now,
                Some(None) => !holds,
                None => false,
            };
            if make {
                record.instances.insert(index, Instance { cause, until });
            } else if over {
                record.instances.remove(&index);
            }
        }
    }

    /// One transfer or release, if one is due.
    fn move_once(&mut self, guest: GuestIndex, told: Option<Told<'_>>, changes: &mut Changes) -> bool {
        if self.records[guest.index()].pin.is_some() {
            self.records[guest.index()].releasable = None;
            return false;
        }
        if let Some((from, transfer)) = self.transfer_due(guest) {
            let (to, text) = (transfer.to, format!("transfer {} of {from}", transfer.name));
            let cause = self.because(guest, &text, told);
            self.transfer(guest, to, cause, changes);
            return true;
        }
        let record = &self.records[guest.index()];
        let held = record.held_until.is_some_and(|until| self.now < until);
        let since = record.releasable;
        let releasable = self
            .release_of(record.container)
            .is_some_and(|release| self.holds(guest, &release.when));
        let since = releasable.then(|| since.unwrap_or(self.now));
        self.records[guest.index()].releasable = since;
        let record = &self.records[guest.index()];
        let due = since
            .zip(self.release_of(record.container))
            .is_some_and(|(since, release)| self.now >= since.after(release.after));
        if !due || held {
            return false;
        }
        let name = &self.policy.containers[record.container.index()].name;
        let cause = self.because(guest, &format!("release from {name}"), told);
        self.release(guest, cause, changes);
        true
    }

    /// The transfer that decides, with the name of the container whose it is.
    fn transfer_due(&self, guest: GuestIndex) -> Option<(String, Transfer)> {
        let record = &self.records[guest.index()];
        let held = record.held_until.is_some_and(|until| self.now < until);
        let waits = |to: ContainerIndex| held && !self.policy.containers[to.index()].quarantine;
        let chain = self.policy.chain(record.container).enumerate();
        let candidates = chain.flat_map(|(depth, container)| {
            let container = &self.policy.containers[container.index()];
            container
                .transfers
                .iter()
                .enumerate()
                .map(move |(number, transfer)| (depth, number, container, transfer))
        });
        candidates
            .filter(|(depth, _, _, transfer)| {
                // What an outer container says leads nobody out of an inner one into where it is all the same.
                let inside = self.policy.chain(record.container).any(|one| one == transfer.to);
                let stays = transfer.to == record.container || (*depth > 0 && inside);
                !stays && !waits(transfer.to) && self.holds(guest, &transfer.when)
            })
            .min_by_key(|(depth, number, _, transfer)| {
                (Reverse(transfer.priority), transfer.precedence, *depth, *number)
            })
            .map(|(_, _, container, transfer)| (container.name.clone(), transfer.clone()))
    }

    /// The release that holds in a container: its own, or that of the nearest it is nested in. Where one of them says
    /// that only a hand releases, that is it.
    pub(super) fn release_of(&self, container: ContainerIndex) -> Option<&Release> {
        self.policy
            .chain(container)
            .map(|container| &self.policy.containers[container.index()])
            .find(|container| container.release.is_some() || container.by_hand)?
            .release
            .as_ref()
    }

    /// Moves a guest on, and notes where it came from.
    pub(super) fn transfer(
        &mut self,
        guest: GuestIndex,
        to: ContainerIndex,
        cause: Cause,
        changes: &mut Changes,
    ) {
        let record = &mut self.records[guest.index()];
        record.came_from.push(record.container);
        // Who comes again to where it was is there as it was then.
        if let Some(before) = record.came_from.iter().position(|container| *container == to) {
            record.came_from.truncate(before);
        }
        self.count_move(guest);
        self.place(guest, to, &cause, changes);
    }

    /// Moves a guest back to where it came from.
    pub(super) fn release(&mut self, guest: GuestIndex, cause: Cause, changes: &mut Changes) {
        let back = self.records[guest.index()]
            .came_from
            .pop()
            .unwrap_or(ContainerIndex(0));
        self.count_move(guest);
        self.place(guest, back, &cause, changes);
    }

    pub(super) fn place(
        &mut self,
        guest: GuestIndex,
        to: ContainerIndex,
        cause: &Cause,
        changes: &mut Changes,
    ) {
        let record = &mut self.records[guest.index()];
        record.releasable = None;
        record.cause = Some(cause.clone());
        let from = std::mem::replace(&mut record.container, to);
        if from != to {
            changes.moved.push(Moved {
                guest,
                at: self.now,
                from,
                to,
                cause: cause.clone(),
            });
        }
    }

    fn count_move(&mut self, guest: GuestIndex) {
        let damping = self.policy.damping;
        let record = &mut self.records[guest.index()];
        record.moved.push_back(self.now);
        while record.moved.len() > damping.transfers as usize {
            record.moved.pop_front();
        }
        let flaps = record.moved.len() == damping.transfers as usize
            && record
                .moved
                .front()
                .is_some_and(|first| self.now.since(*first) < damping.within);
        if flaps {
            record.held_until = Some(self.now.after(damping.hold));
        }
    }

    /// A cause in words, with the event behind it if there is one.
    fn because(&self, guest: GuestIndex, text: &str, told: Option<Told<'_>>) -> Cause {
        let text = match told {
            Some(told) if told.guest == guest => format!("{text} after {}", told.what),
            Some(told) => {
                let other = &self.policy.guests[told.guest.index()].id;
                format!("{text} after {} of {other}", told.what)
            }
            None => format!("{text} as time passed"),
        };
        Cause {
            event: told.map(|told| told.event),
            at: self.now,
            text: text.into(),
            host: None,
        }
    }
}
