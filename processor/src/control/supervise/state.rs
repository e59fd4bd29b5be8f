//! What the control loop says of itself: to who asks, to the status file, at the end.

use serde_json::{Value, json};

use crate::control::answers;
use crate::control::api::Ask;
use crate::control::api::problem::Problem;
use crate::control::assemble::DataPlane;
use crate::control::guests::now;
use crate::control::sessions::Sessions;
use crate::control::sources::Sources;
use crate::control::status::{self, Status};
use crate::telemetry::totals::{Frames, Totals};

use super::Control;

impl Control {
    pub(super) fn answer(&self, ask: Ask, plane: Option<&DataPlane>) -> Result<Value, Problem> {
        let (containers, config) = (self.guests.containers(), &self.plan.config);
        Ok(match ask {
            Ask::Event(_)
            | Ask::Report { .. }
            | Ask::Reload
            | Ask::Move { .. }
            | Ask::AddPort { .. }
            | Ask::AddGuest(_)
            | Ask::RemovePort { .. } => {
                unreachable!("it is no question")
            }
            Ask::Status => json!(self.status()),
            Ask::Guests => answers::guests(containers, config),
            Ask::Guest(name) => {
                let guest = containers.guest(&name);
                answers::guest(
                    containers,
                    config,
                    guest.ok_or_else(|| Problem::unknown_guest(&name))?,
                )
            }
            Ask::Containers => answers::containers(containers),
            Ask::Ports => answers::ports(config, plane.into_iter().flat_map(DataPlane::ports)),
            Ask::Endpoints => answers::endpoints(config),
            Ask::SecurityAssociations => json!({
                "manual": answers::manual_sas(config, &self.marks),
                "sessions": self.sessions.as_ref().map(Sessions::status),
            }),
            Ask::Counters => {
                let mut counters = json!(self.totals(None));
                if let Some(fields) = counters.as_object_mut() {
                    fields.remove("latency_ns");
                }
                counters
            }
            Ask::Histograms => json!(self.totals(None).latency_ns),
        })
    }

    fn status(&self) -> Status {
        Status {
            host: self.plan.config.host_name().to_owned(),
            pid: std::process::id(),
            at: now(),
            since: self.since,
            totals: self.totals(None),
            events: self.guests.totals().clone(),
            sources: self.sources.as_ref().map(Sources::status).unwrap_or_default(),
            containers: status::containers(self.guests.containers()),
            guests: status::guests(self.guests.containers()),
            sessions: self.sessions.as_ref().map(Sessions::status),
            etcd: self.fleet.as_ref().map(|fleet| fleet.status(&self.plan.config)),
            transitions: self.transitions.status(&self.plan.config.policy, |rule| {
                self.book.counts(rule).in_second_form
            }),
        }
    }

    pub(super) fn write_status(&mut self) {
        let status = self.status();
        if let Err(error) = status::write(&self.plan.config.state_directory, &status) {
            tracing::error!(
                "{}: no status: {error}",
                self.plan.config.state_directory.display()
            );
        }
    }

    pub(super) fn totals(&self, frames: Option<Frames>) -> Totals {
        let mut totals = Totals {
            frames,
            ..Totals::default()
        };
        totals.set_rules(&self.plan.config.policy, |rule| self.book.counts(rule).packets);
        self.plan
            .counters
            .iter()
            .for_each(|counters| totals.add(counters));
        for (interface, counters) in &self.xdp {
            totals.add_xdp(interface.clone(), *counters);
        }
        totals.set_latency(&self.all);
        totals
    }
}
