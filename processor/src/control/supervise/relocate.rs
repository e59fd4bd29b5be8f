//! Guests that move to another host, or come from one, while guestseal runs.

use std::sync::Arc;

use axum::http::StatusCode;
use guestseal_rules::model::{GuestIndex, HostIndex};

use crate::control::api::problem::Problem;
use crate::control::assemble::DataPlane;
use crate::control::config::HostConfig;
use crate::control::moves::Moved;

use super::{Control, chain};

impl Control {
    /// A guest is on another host from the workers' next batch on: what is for it goes there, and its ports are served here, or
    /// are not any more.
    ///
    /// # Errors
    /// If there is no such guest or host, if the guest is there, or if the uplink's program cannot take what is for it.
    pub(super) fn relocate(
        &mut self,
        by: &str,
        guest: &str,
        host: &str,
        plane: Option<&mut DataPlane>,
    ) -> Result<(), Problem> {
        let policy = Arc::clone(&self.plan.config.policy);
        let index = self
            .guests
            .containers()
            .guest(guest)
            .ok_or_else(|| Problem::unknown_guest(guest))?;
        let to = policy.host(host).ok_or_else(|| {
            let message = format!("host \"{host}\": the policy has no host of this name");
            Problem::new(StatusCode::NOT_FOUND, "UnknownHost", message)
        })?;
        if self.plan.config.host_of(index) == to {
            let message = format!("guest {guest} is on host {host} already");
            return Err(Problem::new(StatusCode::CONFLICT, "Duplicate", message));
        }
        let declared = &policy.guests[index.index()];
        let at = Moved {
            to: host.to_owned(),
            declared: policy.hosts[declared.host.index()].name.clone(),
        };
        self.place(index, to, plane)?;
        tracing::info!("guest {} is on host {host} from now on, says {by}", declared.id);
        self.guests.locate(by, &declared.uuid, at);
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
        self.plan.config = config;
        if let Some(plane) = plane {
            plane.adopt(&self.plan);
            self.follow_ways(plane);
        }
        Ok(())
    }
}
