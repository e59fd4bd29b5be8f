//! The control loop takes another policy over: everything at once, from the workers' next batch on.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use crate::control::added;
use crate::control::api::problem::Problem;
use crate::control::assemble::DataPlane;
use crate::control::guests::now;
use crate::control::journal::Deed;
use crate::control::reload::{Prepared, Present, ReloadError, Reloaded, Wanted};
use crate::control::sessions::Sessions;
use crate::control::shared::Fleet;
use crate::control::shared::policy::{PolicyFiles, kept_at};
use crate::control::transition::Transitions;
use crate::files;
use crate::path::tables::NextHops;

use super::{Control, chain};

impl Control {
    /// Begins a reload that is wanted, and ends one that is prepared.
    pub(super) fn follow_reloads(&mut self, plane: Option<&mut DataPlane>) {
        if self.fleet.as_mut().is_some_and(Fleet::take_policy_change) {
            self.reloads.note_etcd();
        }
        if self.reloads.look() {
            let present = self.present();
            if !self.reloads.begin(present) {
                self.guests.stay();
            }
        }
        let Some((wanted, prepared)) = self.reloads.finished() else {
            return;
        };
        if self.guests.was_overtaken() && matches!(prepared, Ok(Some(_))) {
            tracing::info!("{}: the policy is prepared anew", chain(&ReloadError::Overtaken));
            let present = self.present();
            return self.reloads.want_again(wanted, present);
        }
        let by = wanted.by.join(", ");
        let before = self.plan.config.origin.policy.clone();
        let changes = match prepared {
            Ok(Some(prepared)) => self.adopt(&by, prepared, plane),
            Ok(None) => {
                tracing::debug!("reload by {by}: the files say what they said");
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        };
        self.guests.stay();
        if let Err(error) = &changes {
            tracing::error!("reload by {by}: the policy stays as it was: {}", chain(error));
            let why = chain(error);
            self.guests.note(now(), &by, Deed::PolicyRefused { why });
        }
        if wanted.added.is_none() {
            self.note_offered(changes.as_ref().err());
        }
        let kept = match (&changes, &wanted.added) {
            (Ok(_), Some(added)) => self.keep_added(added),
            _ => Ok(()),
        };
        let kept = kept.and(self.keep_policy(before.as_ref()));
        let durable = kept.and(self.commit().map_err(|error| chain(&error)));
        let answer = match (changes, durable) {
            (Err(error), _) => Err(Problem::from(&error)),
            (Ok(_), Err(why)) => Err(Problem::not_durable(&why)),
            (Ok(changes), Ok(())) => Ok(json!(Reloaded {
                generation: self.plan.rules.generation().get(),
                policy: self.plan.config.origin.digest.clone(),
                changes,
            })),
        };
        let Wanted { replies, .. } = wanted;
        for reply in replies {
            // Who asked may have gone.
            let _ = reply.send(answer.clone());
        }
    }

    /// What another policy is prepared from.
    fn present(&mut self) -> Present {
        let quiet = self.fleet.as_ref().filter(|_| !self.reloads.waits_for_etcd());
        let policy = quiet.and_then(Fleet::policy);
        Present {
            config: Arc::clone(&self.plan.config),
            policy,
            containers: self.guests.set_out(),
            sessions: self.sessions.as_ref().map(Sessions::basis),
            now: now(),
        }
    }

    /// Lets a restart know of the guests that were added.
    fn keep_added(&self, added: &str) -> Result<(), String> {
        let path = added::path(&self.plan.config.state_directory);
        files::replace_for_good(&path, added.as_bytes()).map_err(|error| {
            let why = format!("{}: {error}", path.display());
            tracing::error!("{why}: a restart will not know of the last guest that was added or removed");
            why
        })
    }

    /// Lets a restart have the policy of etcd that is in force, if it is another than before.
    pub(super) fn keep_policy(&self, before: Option<&PolicyFiles>) -> Result<(), String> {
        let origin = &self.plan.config.origin;
        let Some(policy) = origin.policy.as_ref().filter(|policy| Some(*policy) != before) else {
            return Ok(());
        };
        let state_directory = &self.plan.config.state_directory;
        policy.keep(state_directory).map_err(|error| {
            let why = format!("{}: {error}", kept_at(state_directory).display());
            tracing::error!("{why}: a restart that does not reach etcd will have the policy before");
            why
        })
    }

    /// Notes whether what etcd has as the policy is in force.
    fn note_offered(&mut self, error: Option<&ReloadError>) {
        let in_force = self.plan.config.origin.policy.clone();
        if let Some(fleet) = &mut self.fleet
            && let Some(offered) = fleet.policy()
        {
            let refused = error.filter(|_| offered.ok() != in_force);
            fleet.note_policy(refused.map(|error| chain(error)).as_deref());
        }
    }

    /// Lets a prepared policy be in force; gives what it changes. If it fails everything is as it was.
    fn adopt(
        &mut self,
        by: &str,
        prepared: Prepared,
        mut plane: Option<&mut DataPlane>,
    ) -> Result<Vec<String>, ReloadError> {
        let Prepared {
            config,
            guests,
            sessions,
            changes,
        } = prepared;
        if let Some(plane) = &mut plane {
            plane
                .take_either(&config)
                .map_err(|error| ReloadError::Uplink(chain(&error)))?;
        }
        // What is known of guests by their numbers under the policy before is done with.
        self.settle(plane.as_deref_mut());
        let digest = &config.origin.digest;
        self.guests.adopt(by, digest, &changes, guests, now());
        let config = self.guests.placed(&config);
        let plan = &mut self.plan;
        plan.rules = self.guests.ruleset().clone();
        plan.endpoints = Arc::new(config.endpoints());
        plan.next_hops
            .resize(config.policy.hosts.len(), NextHops::default());
        self.book.turn(&config.policy, plan.rules.generation());
        plan.rule_counters = Arc::clone(self.book.counters());
        if let (Some(sessions), Some(wanted)) = (&mut self.sessions, sessions) {
            sessions.adopt(wanted, &config.policy, &mut plan.sas);
            // Whatever has become of guests, and of rules.
            sessions.doubt(&BTreeSet::from([config.host]), config.host);
        }
        plan.config = config;
        // Which rules accept two forms is known by their numbers.
        self.transitions = Transitions::default();
        self.transitions.look(&self.plan.config.policy, now());
        self.plan.also_accepted = Arc::clone(self.transitions.accepted());
        if let Some(plane) = plane {
            plane.adopt(&self.plan);
            self.follow_ways(plane);
        }
        // Who a report speaks of is known by the policy. What was read and not told yet is read again.
        match self.open_sources() {
            Ok(sources) => self.sources = sources,
            Err(error) => tracing::error!(
                "security services are heard as the policy before says: {}",
                chain(&error)
            ),
        }
        if let Some(fleet) = &mut self.fleet {
            fleet.read_again();
        }
        self.reloads.follow(&self.plan.config);
        tracing::info!(
            "reload by {by}: another policy is in force since generation {} of the rules{}",
            self.plan.rules.generation(),
            changes
                .iter()
                .map(|change| format!("\n  {change}"))
                .collect::<String>()
        );
        Ok(changes)
    }
}
