//! Whether criteria hold of a guest, what of that hangs on its neighbours, and when time may change it.

use std::collections::BTreeSet;

use crate::event::{Moment, What};
use crate::model::{Container, Criteria, GuestIndex, NetworkIndex, Policy};

use super::moves::Told;
use super::record::{about, is_login};
use super::{Containers, FLOW_LIFE};

/// What criteria ask of neighbours, and how many guests of each network it holds of: so that a question about all the
/// others of a network is answered by a number.
#[derive(Clone, Debug)]
pub(super) struct Neighbours {
    /// What is asked, each once.
    asked: Vec<Criteria>,
    /// By question, then network.
    counts: Vec<Vec<u32>>,
    /// By guest: whether each question's answer is yes.
    answers: Vec<Vec<bool>>,
    /// By network, if anything is asked.
    guests: Vec<BTreeSet<GuestIndex>>,
}

impl Neighbours {
    pub(super) fn new(policy: &Policy) -> Self {
        let mut asked = Vec::new();
        let containers = policy.containers.iter().flat_map(Container::criteria);
        let templates = policy.templates.iter().map(|template| &template.when);
        for criteria in policy.criteria.iter().chain(containers).chain(templates) {
            collect(criteria, &mut asked);
        }
        let mut guests = vec![
            BTreeSet::new();
            if asked.is_empty() {
                0
            } else {
                policy.networks.len()
            }
        ];
        if !asked.is_empty() {
            for port in &policy.ports {
                guests[port.network.index()].insert(port.guest);
            }
        }
        Self {
            counts: vec![vec![0; policy.networks.len()]; asked.len()],
            answers: vec![vec![false; asked.len()]; policy.guests.len()],
            asked,
            guests,
        }
    }
}

fn collect(criteria: &Criteria, asked: &mut Vec<Criteria>) {
    match criteria {
        Criteria::Neighbour(inner) => {
            if !asked.contains(inner) {
                asked.push((**inner).clone());
            }
        }
        Criteria::All(list) | Criteria::Any(list) => list.iter().for_each(|one| collect(one, asked)),
        Criteria::Not(inner) => collect(inner, asked),
        Criteria::Tag(_)
        | Criteria::Login(_)
        | Criteria::Flow(_)
        | Criteria::Label(_)
        | Criteria::Container(_) => {}
    }
}

impl Containers {
    fn networks_of(&self, guest: GuestIndex) -> BTreeSet<NetworkIndex> {
        let ports = &self.policy.guests[guest.index()].ports;
        ports
            .iter()
            .map(|port| self.policy.ports[port.index()].network)
            .collect()
    }

    /// The other guests of a guest's networks.
    pub(super) fn neighbours_of(&self, guest: GuestIndex) -> BTreeSet<GuestIndex> {
        let networks = self.networks_of(guest);
        let mut all: BTreeSet<GuestIndex> = networks
            .iter()
            .filter_map(|network| self.neighbours.guests.get(network.index()))
            .flatten()
            .copied()
            .collect();
        all.remove(&guest);
        all
    }

    /// Whether criteria hold of a guest now.
    pub(super) fn holds(&self, guest: GuestIndex, criteria: &Criteria) -> bool {
        let record = &self.records[guest.index()];
        match criteria {
            Criteria::All(list) => list.iter().all(|one| self.holds(guest, one)),
            Criteria::Any(list) => list.iter().any(|one| self.holds(guest, one)),
            Criteria::Not(inner) => !self.holds(guest, inner),
            Criteria::Tag(test) => record.has_tag(test, self.now),
            Criteria::Login(test) => record.has_login(test),
            Criteria::Flow(test) => record.flows.iter().any(|flow| test.passes(Some(&flow.context))),
            Criteria::Label(test) => record.has_label(test, &self.policy.guests[guest.index()].labels),
            Criteria::Container(container) => {
                self.policy.chain(record.container).any(|one| one == *container)
            }
            Criteria::Neighbour(inner) => self.neighbour_holds(guest, inner),
        }
    }

    fn neighbour_holds(&self, guest: GuestIndex, inner: &Criteria) -> bool {
        let Some(question) = self.neighbours.asked.iter().position(|one| one == inner) else {
            return false;
        };
        let own = u32::from(self.neighbours.answers[guest.index()][question]);
        let counts = &self.neighbours.counts[question];
        self.networks_of(guest)
            .iter()
            .any(|network| counts[network.index()] > own)
    }

    /// Counts a guest's answers anew; gives the others for whom that may change something.
    pub(super) fn count_answers(&mut self, guest: GuestIndex) -> BTreeSet<GuestIndex> {
        let mut others = BTreeSet::new();
        for question in 0..self.neighbours.asked.len() {
            let holds = self.holds(guest, &self.neighbours.asked[question]);
            if std::mem::replace(&mut self.neighbours.answers[guest.index()][question], holds) == holds {
                continue;
            }
            for network in self.networks_of(guest) {
                let count = &mut self.neighbours.counts[question][network.index()];
                let before = *count;
                *count = if holds { before + 1 } else { before - 1 };
                // To each guest it matters whether there is another: between none, one and two.
                if before.min(*count) < 2 {
                    others.extend(&self.neighbours.guests[network.index()]);
                }
            }
        }
        others.remove(&guest);
        others
    }

    /// When time alone may next change the answer.
    pub(super) fn ages_at(&self, guest: GuestIndex, criteria: &Criteria) -> Option<Moment> {
        match criteria {
            Criteria::All(list) | Criteria::Any(list) => {
                list.iter().filter_map(|one| self.ages_at(guest, one)).min()
            }
            Criteria::Not(inner) => self.ages_at(guest, inner),
            Criteria::Tag(test) => self.records[guest.index()].tag_ages(test, self.now),
            // A neighbour's time is due with the neighbour.
            Criteria::Neighbour(_) => None,
            Criteria::Login(_) | Criteria::Flow(_) | Criteria::Label(_) | Criteria::Container(_) => None,
        }
    }

    /// When something is due for a guest.
    pub(super) fn next_due_of(&self, guest: GuestIndex) -> Option<Moment> {
        let record = &self.records[guest.index()];
        let chain = self.policy.chain(record.container);
        let own = chain.flat_map(|container| self.policy.containers[container.index()].criteria());
        let templates = self.policy.templates.iter().map(|template| &template.when);
        let everywhere = self
            .policy
            .criteria
            .iter()
            .chain(templates)
            .chain(&self.neighbours.asked);
        let ages = own
            .chain(everywhere)
            .filter_map(|criteria| self.ages_at(guest, criteria));
        let released = record.releasable.and_then(|since| {
            let release = self.release_of(record.container)?;
            Some(since.after(release.after))
        });
        let instances = record.instances.values().filter_map(|instance| instance.until);
        let flow = record.flows.front().map(|flow| flow.at.after(FLOW_LIFE));
        ages.chain(released)
            .chain(instances)
            .chain(record.held_until)
            .chain(flow)
            .chain(record.tag_ends())
            .filter(|due| *due > self.now)
            .min()
    }

    /// Whether an event is one that criteria ask for: by what they ask of the guest itself, or, of its neighbours, by what
    /// they ask of those.
    pub(super) fn brings(&self, criteria: &Criteria, told: Told<'_>, itself: bool) -> bool {
        match (criteria, told.what) {
            (Criteria::All(list) | Criteria::Any(list), _) => {
                list.iter().any(|one| self.brings(one, told, itself))
            }
            (Criteria::Neighbour(inner), _) => !itself && self.brings(inner, told, true),
            _ if !itself => false,
            (Criteria::Tag(test), What::Tag(set)) => {
                let key = (set.service.clone(), set.name.clone());
                let tag = self.records[told.guest.index()].tags.get(&key);
                tag.is_some_and(|tag| about(test, &set.service, &set.name, tag))
            }
            (Criteria::Login(test), What::Login(login)) => is_login(test, &login.user, &login.groups),
            (Criteria::Flow(test), What::Flow(flow)) => test.passes(Some(&flow.context())),
            (Criteria::Label(test), What::Label(label)) => {
                test.name == label.name && test.passes(label.value.as_deref())
            }
            _ => false,
        }
    }
}
