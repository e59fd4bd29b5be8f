//! Reports that somebody tells: by `guestseal ctl report`, or by a webhook. Whoever tells is answered when what follows is in force.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::http::StatusCode;
use guestseal_rules::event::Event;
use guestseal_rules::model::source::{Input, Source, Way};
use guestseal_rules::report::Unmapped;
use serde_json::Value;

use super::bucket::Bucket;
use super::feed::name_of;
use super::translator::{Known, NoEvent, Translator};
use super::{SourceStatus, SourcesError};
use crate::control::api::access::{Caller, People, Right};
use crate::control::api::problem::Problem;

/// Who tells a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Teller {
    /// A caller of the control socket.
    Caller(Caller),
    /// One who knows the secret of the source's webhook.
    Webhook,
}

/// The sources that are told.
#[derive(Debug, Default)]
pub(super) struct ToldSources {
    by_name: BTreeMap<String, ToldSource>,
}

#[derive(Debug)]
struct ToldSource {
    translator: Translator,
    bucket: Bucket,
    /// Who may, besides whoever may change everything; nobody if only its webhook may.
    people: Option<People>,
}

impl ToldSources {
    /// Those among all sources.
    ///
    /// # Errors
    /// The user or group that this host does not know.
    pub(super) fn new(sources: &[Source], now: Instant) -> Result<Self, SourcesError> {
        let mut by_name = BTreeMap::new();
        for source in sources {
            let people = match (&source.input, source.input.way()) {
                (_, Some(Way::Told(people))) => Some(
                    People::parse(people.iter().map(String::as_str))
                        .map_err(|why| SourcesError::People(format!("source {}: {why}", source.name)))?,
                ),
                (Input::Webhook(_), _) => None,
                _ => continue,
            };
            let told = ToldSource {
                translator: Translator::new(source.clone()),
                bucket: Bucket::new(source.rate, now),
                people,
            };
            by_name.insert(source.name.clone(), told);
        }
        Ok(Self { by_name })
    }

    /// The names of those that are told.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.by_name.keys()
    }

    /// The event that a report is, and by whom it is; nothing if it needs none.
    ///
    /// # Errors
    /// Why it is none.
    pub(super) fn event(
        &mut self,
        name: &str,
        report: &Value,
        teller: &Teller,
        known: &Known<'_>,
        now: Instant,
        status: &mut SourceStatus,
    ) -> Result<Option<(String, Event)>, Problem> {
        let Some(source) = self.by_name.get_mut(name) else {
            return Err(Problem::unknown_source(name));
        };
        let own = name_of(&source.translator.source);
        let by = match (teller, &source.people) {
            (Teller::Webhook, None) => own,
            (Teller::Caller(caller), Some(people))
                if caller.may(Right::Change) || caller.is_among(people) =>
            {
                format!("{own}, told by {}", caller.name())
            }
            (Teller::Caller(caller), _) => {
                let message = format!("{} may not tell source \"{name}\" of reports", caller.name());
                return Err(Problem::new(StatusCode::FORBIDDEN, "Forbidden", message));
            }
            (Teller::Webhook, Some(_)) => {
                let message = format!("source \"{name}\" has no webhook");
                return Err(Problem::new(StatusCode::FORBIDDEN, "Forbidden", message));
            }
        };
        let event = match source.translator.event(report, known, now, status) {
            Ok(event) => event,
            Err(NoEvent::Repeated | NoEvent::Unmapped(Unmapped::Ignored)) => return Ok(None),
            Err(NoEvent::Unmapped(why)) => return Err(unmapped(why)),
        };
        if source.bucket.take(now).is_err() {
            status.waited += 1;
            source.translator.forget(&event);
            let message = format!("source \"{name}\" says more than its rate: tell it again later");
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "TooFast", message));
        }
        status.told += 1;
        Ok(Some((by, event)))
    }
}

fn unmapped(why: Unmapped) -> Problem {
    let (name, message) = match why {
        Unmapped::Ignored => ("Ignored", "the mapping says that it means nothing"),
        Unmapped::NoMeaning => ("NoMeaning", "the mapping says nothing of such a report"),
        Unmapped::Nobody => ("Nobody", "whom it speaks of is no guest, or could be several"),
        Unmapped::Incomplete => ("Incomplete", "what it is to say is not in it"),
    };
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, name, message)
}
