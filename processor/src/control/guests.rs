//! What happens to guests: events from their source, through the containers, to the rules that workers read.
//!
//! An event is applied at once and then journalled; where the process dies in between, it is read again from its source.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use guestseal_rules::compile::{Ruleset, TooLarge, next_generation};
use guestseal_rules::containers::{Changes, Containers, Moved};
use guestseal_rules::event::{Event, Moment};
use guestseal_rules::model::Policy;
use serde::Serialize;

use super::journal::{Entry, Journal, JournalError};
use super::sources::file::FollowedFile;
use super::supervise::chain;
use super::wake::Watched;

/// Lines that one turn takes at most.
const LINES: usize = 1024;

/// Events by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EventTotals {
    /// Accepted.
    pub accepted: u64,
    /// Refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Lines that are no event.
    pub malformed: u64,
    /// Transfers of guests between containers.
    pub transfers: u64,
}

/// The guests' state, and the rules that follow from it.
#[derive(Debug)]
pub struct Guests {
    policy: Arc<Policy>,
    containers: Containers,
    ruleset: Ruleset,
    journal: Option<Journal>,
    source: Option<FollowedFile>,
    /// Tells when the source has more; without it the source is looked at now and then.
    watched: Option<Watched>,
    /// Whether more has come than one turn takes.
    behind: bool,
    /// What the source could not be read for, said once.
    source_error: String,
    totals: EventTotals,
}

/// Why the guests' state is not known, or no rules follow from it.
#[derive(Debug, thiserror::Error)]
pub enum GuestsError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The rules.
    #[error(transparent)]
    Rules(#[from] TooLarge),
}

/// The time of day.
#[must_use]
pub fn now() -> Moment {
    // A clock before 1970 is as good as one at 1970: time does not go back in the engine.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The guests of a policy as a journal has them.
#[must_use]
pub fn replay(policy: &Arc<Policy>, entries: &[Entry]) -> Containers {
    let begin = entries.first().map_or_else(now, |entry| entry.at);
    let mut containers = Containers::new(Arc::clone(policy), begin);
    let mut changes = Changes::default();
    for entry in entries {
        if let Err(refusal) = containers.apply(entry.at, &entry.event, &mut changes) {
            // It was accepted under another policy.
            tracing::warn!(
                "journal: guest {}, {} of {}: {refusal}",
                entry.event.guest,
                entry.event.what,
                entry.at
            );
        }
    }
    containers
}

impl Guests {
    /// As the journal of the state directory has them; follows the file of events. Without one nothing ever happens.
    ///
    /// # Errors
    /// See [`GuestsError`].
    pub fn open(
        policy: &Arc<Policy>,
        state_directory: &Path,
        events: Option<&Path>,
    ) -> Result<Self, GuestsError> {
        let (journal, entries) = match events {
            Some(_) => Journal::open(state_directory).map(|(journal, entries)| (Some(journal), entries))?,
            None => (None, Vec::new()),
        };
        let mut containers = replay(policy, &entries);
        containers.advance(now(), &mut Changes::default());
        let watched = events.and_then(|path| {
            Watched::new([path.to_owned()])
                .inspect_err(|error| {
                    tracing::warn!(
                        "{}: events are met some milliseconds later: {error}",
                        path.display()
                    );
                })
                .ok()
        });
        let resume = entries.iter().rev().find_map(|entry| entry.read);
        Ok(Self {
            ruleset: Ruleset::compile(
                policy,
                containers.memberships(),
                containers.flows(),
                NonZeroU32::MIN,
            )?,
            watched,
            behind: false,
            source: events.map(|path| FollowedFile::new(path, resume)),
            policy: Arc::clone(policy),
            containers,
            journal,
            source_error: String::new(),
            totals: EventTotals::default(),
        })
    }

    /// The rules as they are now.
    #[must_use]
    pub fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// The guests.
    #[must_use]
    pub fn containers(&self) -> &Containers {
        &self.containers
    }

    /// Events so far.
    #[must_use]
    pub fn totals(&self) -> &EventTotals {
        &self.totals
    }

    /// What can be read when something has come.
    #[must_use]
    pub fn wait_on(&self) -> Option<BorrowedFd<'_>> {
        self.watched.as_ref().map(AsFd::as_fd)
    }

    /// Whether there is more to take, and so nothing to wait for.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Takes what has come, and does what is due. Whether the rules are others than before.
    pub fn turn(&mut self, now: Moment) -> bool {
        let mut changes = Changes::default();
        let entries = self.take(now, &mut changes);
        self.containers.advance(now, &mut changes);
        self.say(&changes);
        let others = self.recompile(&changes);
        if let Some(journal) = &mut self.journal
            && !entries.is_empty()
            && let Err(error) = journal.append(&entries)
        {
            tracing::error!("{}: a restart will not know of the last events", chain(&error));
        }
        others
    }

    fn take(&mut self, now: Moment, changes: &mut Changes) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut taken = 0;
        if let Some(watched) = &self.watched {
            watched.take();
        }
        while let Some(source) = self.source.as_mut().filter(|_| taken < LINES) {
            let lines = match source.read() {
                Ok(Some(lines)) => lines,
                Ok(None) => break,
                Err(error) => {
                    let text = format!("{}: events cannot be read: {error}", source.path().display());
                    if text != self.source_error {
                        tracing::error!("{text}");
                        self.source_error = text;
                    }
                    break;
                }
            };
            taken += 1 + lines.len();
            for line in lines {
                let Some(event) = self.parse(line.text.as_deref()) else {
                    continue;
                };
                match self.containers.apply(now, &event, changes) {
                    Ok(()) => {
                        self.totals.accepted += 1;
                        entries.push(Entry {
                            at: self.containers.now(),
                            event,
                            read: Some(line.position),
                        });
                    }
                    Err(refusal) => {
                        *self.totals.refused.entry(refusal.name()).or_default() += 1;
                        tracing::debug!("event refused: guest {}, {}: {refusal}", event.guest, event.what);
                    }
                }
            }
        }
        self.behind = taken >= LINES;
        entries
    }

    fn parse(&mut self, line: Option<&str>) -> Option<Event> {
        let parsed = match line {
            Some(text) if text.trim().is_empty() => return None,
            Some(text) => serde_json::from_str(text).map_err(|error| error.to_string()),
            None => Err("it is too long".to_owned()),
        };
        parsed
            .map_err(|why| {
                self.totals.malformed += 1;
                tracing::warn!("a line of the events is no event: {why}");
            })
            .ok()
    }

    fn say(&mut self, changes: &Changes) {
        let policy = &self.policy;
        let name = |moved: &Moved| {
            let container =
                |index: guestseal_rules::model::ContainerIndex| &policy.containers[index.index()].name;
            (
                &policy.guests[moved.guest.index()].id,
                container(moved.from),
                container(moved.to),
            )
        };
        for moved in &changes.moved {
            let (guest, from, to) = name(moved);
            tracing::info!(
                "guest {guest} moved from container {from} to {to}: {}",
                moved.cause.text
            );
        }
        for guest in &changes.unsettled {
            let guest = &policy.guests[guest.index()].id;
            tracing::error!("the policy moves guest {guest} round in circles: it stays where it is now");
        }
        self.totals.transfers += changes.moved.len() as u64;
    }

    fn recompile(&mut self, changes: &Changes) -> bool {
        if changes.guests.is_empty() && changes.flows.is_empty() {
            return false;
        }
        let generation = next_generation(self.ruleset.generation());
        let memberships = self.containers.memberships();
        let changed = changes
            .guests
            .iter()
            .map(|guest| (*guest, &memberships[guest.index()]));
        let mut next = self.ruleset.update(changed, generation);
        if !changes.flows.is_empty() {
            next = next.update_flows(&changes.flows, self.containers.flows(), generation);
        }
        self.ruleset = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use guestseal_rules::load::{Source, load_policy};
    use guestseal_rules::model::GuestIndex;

    use super::*;

    const POLICY: &str = "\
hosts: [{name: h1, address: 192.0.2.1}]
networks: [{name: blue}]
guests:
  - {id: g0, uuid: u0, host: h1, ports: [{interface: a, network: blue, mac: '02:00:00:00:00:01', addresses: [10.0.0.1]}]}
containers:
  - {name: default, transfers: [{name: infected, when: {tag: {service: av}}, to: quarantine}]}
  - {name: quarantine, quarantine: true, release: {after: 1h}}
rules: [{name: r, from: {container: quarantine}, to: any, action: drop}]
";
    const TAG: &str = r#"{"guest": "g0", "tag": {"service": "av", "name": "eicar", "severity": 90}}"#;
    const CLEAR: &str = r#"{"guest": "g0", "clear": {"service": "*", "name": "*"}}"#;

    struct World {
        directory: tempfile::TempDir,
        policy: Arc<Policy>,
    }

    impl World {
        fn new() -> Self {
            let (name, text) = ("policy.yaml".into(), POLICY.into());
            Self {
                directory: tempfile::tempdir().unwrap(),
                policy: Arc::new(load_policy(&[Source { name, text }]).unwrap()),
            }
        }

        fn start(&self) -> Guests {
            let state = self.directory.path().join("state");
            Guests::open(&self.policy, &state, Some(&self.directory.path().join("events"))).unwrap()
        }

        fn write(&self, lines: &[&str]) {
            let path = self.directory.path().join("events");
            let mut file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .unwrap();
            lines.iter().for_each(|line| writeln!(file, "{line}").unwrap());
        }
    }

    fn container(guests: &Guests) -> &str {
        let container = guests.containers().record(GuestIndex(0)).container;
        &guests.policy.containers[container.index()].name
    }

    #[test]
    fn what_came_is_taken_once_and_what_is_wrong_is_counted() {
        let world = World::new();
        let mut guests = world.start();
        assert!(!guests.turn(now()), "there is no file");
        world.write(&["", "no event", TAG, TAG.replace("g0", "g9").as_str()]);
        let before = guests.ruleset().generation();
        assert!(guests.turn(now()), "the rules are others");
        assert!(guests.ruleset().generation() > before);
        assert_eq!(container(&guests), "quarantine");
        let totals = guests.totals();
        assert_eq!((totals.accepted, totals.malformed, totals.transfers), (1, 1, 1));
        assert_eq!(totals.refused, BTreeMap::from([("UnknownGuest", 1)]));
        assert!(!guests.turn(now()));
    }

    #[test]
    fn a_restart_finds_the_guest_where_it_was_and_reads_on_behind_what_it_knows() {
        let world = World::new();
        world.write(&[TAG]);
        let mut guests = world.start();
        guests.turn(now());
        let known = guests.containers().record(GuestIndex(0)).clone();
        drop(guests);
        // While nobody listened.
        world.write(&[CLEAR, TAG.replace("eicar", "second").as_str()]);
        let mut guests = world.start();
        assert_eq!(*guests.containers().record(GuestIndex(0)), known);
        assert_eq!(container(&guests), "quarantine");
        guests.turn(now());
        assert_eq!(guests.totals().accepted, 2);
        let tags = &guests.containers().record(GuestIndex(0)).tags;
        assert!(tags[&("av".into(), "eicar".into())].cleared.is_some());
    }

    /// Applied, but not journalled: it is read from its source again.
    #[test]
    fn an_event_that_was_not_acknowledged_is_not_lost() {
        let world = World::new();
        world.write(&[CLEAR, TAG]);
        let mut guests = world.start();
        guests.turn(now());
        drop(guests);
        std::fs::write(world.directory.path().join("state/events.journal"), "").unwrap();
        let mut guests = world.start();
        assert_eq!(container(&guests), "default");
        guests.turn(now());
        assert_eq!(container(&guests), "quarantine");
    }
}
