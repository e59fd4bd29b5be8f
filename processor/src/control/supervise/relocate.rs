//! Guests that move to another host, or come from one, while guestseal runs.

use std::sync::Arc;

use axum::http::StatusCode;
use guestseal_rules::model::{GuestIndex, HostIndex};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::control::api::problem::Problem;
use crate::control::assemble::DataPlane;
use crate::control::config::HostConfig;
use crate::control::guests::now;
use crate::control::moves::Moved;
use crate::control::shared::Due;

use super::{Control, chain};

/// Where an answer goes.
type Reply = oneshot::Sender<Result<Value, Problem>>;

fn unknown_host(host: &str) -> Problem {
    let message = format!("host \"{host}\": the policy has no host of this name");
    Problem::new(StatusCode::NOT_FOUND, "UnknownHost", message)
}

impl Control {
    /// Takes a move that was told here, which hosts that share make on the new host first. Gives what came of it, if that is known already.
    pub(super) fn take_move(
        &mut self,
        by: String,
        guest: &str,
        host: &str,
        reply: Reply,
        plane: Option<&mut DataPlane>,
    ) -> Option<(Result<(), Problem>, Reply)> {
        let (guest, mut at) = match self.check_move(guest, host) {
            Ok(checked) => checked,
            Err(problem) => return Some((Err(problem), reply)),
        };
        if let Some(fleet) = &self.fleet {
            at.steps = fleet.next_step(&guest, self.guests.moved(&guest));
        }
        let due = Due {
            guest,
            at,
            by,
            reply: Some(reply),
        };
        let due = match &mut self.fleet {
            Some(fleet) => fleet.propose(due, self.plan.config.host_name())?,
            None => due,
        };
        self.make_move(due, true, plane)
    }

    /// What a move is, if it can be made.
    fn check_move(&self, guest: &str, host: &str) -> Result<(String, Moved), Problem> {
        let policy = &self.plan.config.policy;
        let index = self
            .guests
            .containers()
            .guest(guest)
            .ok_or_else(|| Problem::unknown_guest(guest))?;
        let to = policy.host(host).ok_or_else(|| unknown_host(host))?;
        if self.plan.config.host_of(index) == to {
            let message = format!("guest {guest} is on host {host} already");
            return Err(Problem::new(StatusCode::CONFLICT, "Duplicate", message));
        }
        let declared = &policy.guests[index.index()];
        let at = Moved {
            to: host.to_owned(),
            declared: policy.hosts[declared.host.index()].name.clone(),
            steps: 0,
        };
        Ok((declared.uuid.clone(), at))
    }

    /// Makes a move; other hosts are told if it `is_news`, and by the new host that it has the guest. Gives what came of it to
    /// whom it is to be answered.
    pub(super) fn make_move(
        &mut self,
        due: Due,
        is_news: bool,
        plane: Option<&mut DataPlane>,
    ) -> Option<(Result<(), Problem>, Reply)> {
        let made = self.relocate(&due.by, &due.guest, &due.at, plane);
        match (&made, &mut self.fleet) {
            (Ok(()), Some(fleet)) => {
                let is_here = due.at.to == self.plan.config.host_name();
                fleet.moved(&due.guest, is_news || is_here);
            }
            (Err(problem), _) => tracing::error!("guest {} does not move: {problem}", due.guest),
            (Ok(()), None) => {}
        }
        due.reply.map(|reply| (made, reply))
    }

    /// A guest is on another host from the workers' next batch on: what is for it goes there, and its ports are served here, or
    /// are not any more.
    ///
    /// # Errors
    /// If there is no such guest or host, or if the uplink's program cannot take what is for it.
    fn relocate(
        &mut self,
        by: &str,
        guest: &str,
        at: &Moved,
        plane: Option<&mut DataPlane>,
    ) -> Result<(), Problem> {
        let policy = Arc::clone(&self.plan.config.policy);
        let index = self
            .guests
            .containers()
            .guest(guest)
            .ok_or_else(|| Problem::unknown_guest(guest))?;
        let to = policy.host(&at.to).ok_or_else(|| unknown_host(&at.to))?;
        if self.plan.config.host_of(index) != to {
            self.place(index, to, plane)?;
            let (id, host) = (&policy.guests[index.index()].id, &at.to);
            tracing::info!("guest {id} is on host {host} from now on, says {by}");
        }
        self.guests.locate(now(), by, guest, at.clone());
        Ok(())
    }

    fn place(
        &mut self,
        guest: GuestIndex,
        to: HostIndex,
        plane: Option<&mut DataPlane>,
    ) -> Result<(), Problem> {
        let mut config = HostConfig::clone(&self.plan.config);
        if config.policy.guests[guest.index()].host == to {
            config.elsewhere.remove(&guest);
        } else {
            config.elsewhere.insert(guest, to);
        }
        let config = Arc::new(config);
        let plane = match plane {
            Some(plane) => {
                plane.take_either(&config).map_err(|error| {
                    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "Uplink", chain(&error))
                })?;
                Some(plane)
            }
            None => None,
        };
        self.plan.endpoints = Arc::new(config.endpoints());
        if let Some(sources) = &mut self.sources {
            sources.place(guest, to == config.host);
        }
        self.plan.config = config;
        if let Some(plane) = plane {
            plane.adopt(&self.plan);
            self.follow_ways(plane);
        }
        Ok(())
    }
}
