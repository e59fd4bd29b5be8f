//! A source's reports become events, and what becomes none is counted.

use std::time::Instant;

use guestseal_rules::event::Event;
use guestseal_rules::model::Policy;
use guestseal_rules::model::source::Source;
use guestseal_rules::report::{Directory, Unmapped};
use serde_json::Value;

use super::SourceStatus;
use super::bucket::Repeats;

/// Whom sources can speak of.
#[derive(Debug)]
pub(super) struct Known<'a> {
    pub(super) policy: &'a Policy,
    pub(super) directory: &'a Directory,
}

/// What a source's reports mean, and what they said a moment ago.
#[derive(Debug)]
pub(super) struct Translator {
    pub(super) source: Source,
    repeats: Repeats,
}

/// Why no event comes of a report.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum NoEvent {
    /// It says what was said a moment ago.
    Repeated,
    /// It maps to none.
    Unmapped(Unmapped),
}

impl Translator {
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            repeats: Repeats::default(),
        }
    }

    /// Forgets that an event was said, since it was not told.
    pub(super) fn forget(&mut self, event: &Event) {
        self.repeats.forget(event);
    }

    /// The event that a report is; what is none is counted.
    pub(super) fn event(
        &mut self,
        report: &Value,
        known: &Known<'_>,
        now: Instant,
        status: &mut SourceStatus,
    ) -> Result<Event, NoEvent> {
        let (count, why) = match self.source.event(report, known.policy, known.directory) {
            Ok(event) if self.repeats.is_repeated(&event, now) => (&mut status.repeated, NoEvent::Repeated),
            Ok(event) => return Ok(event),
            Err(why) => {
                let count = match why {
                    Unmapped::Ignored => &mut status.ignored,
                    Unmapped::NoMeaning => &mut status.no_meaning,
                    Unmapped::Nobody => &mut status.nobody,
                    Unmapped::Incomplete => &mut status.incomplete,
                };
                (count, NoEvent::Unmapped(why))
            }
        };
        *count += 1;
        Err(why)
    }
}
