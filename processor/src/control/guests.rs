//! What happens to guests: events from their source, through the containers, to the rules that workers read.
//!
//! An event is applied at once and then journalled, and only then acknowledged; where the process dies in between, it is read
//! again from the file that it came from, or its sender was told nothing.

mod adopt;
pub(in crate::control) mod share;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use guestseal_rules::compile::{Ruleset, TooLarge, next_generation};
use guestseal_rules::containers::{Changes, Containers, Moved as Transferred, Refusal};
use guestseal_rules::event::{Event, Moment, What};
use guestseal_rules::model::{GuestIndex, Policy};
use serde::Serialize;

use super::bindings::{Binding, Bindings};
use super::config::HostConfig;
use super::journal::{Deed, Done, Entry, Journal, JournalError};
use super::moves::{Moved, Moves};
use super::sources::file::{FollowedFile, Position};
use super::supervise::chain;
use super::wake::Watched;
pub use adopt::PreparedGuests;

/// Lines that one turn takes at most.
const LINES: usize = 1024;
/// Entries that wait for a journal that cannot be written; the oldest go first.
const MOST_PENDING: usize = 16_384;

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
    journal: Journal,
    /// What was done and is not in the journal yet.
    pending: Vec<Done>,
    /// What the journal could not be written for, said once.
    journal_error: String,
    source: Option<FollowedFile>,
    /// How far the followed files were read, as the journal knows it.
    read: BTreeMap<String, Position>,
    /// Tells when the source has more; without it the source is looked at now and then.
    watched: Option<Watched>,
    /// Whether more has come than one turn takes.
    behind: bool,
    /// What the source could not be read for, said once.
    source_error: String,
    /// What has changed since the rules were made.
    changes: Changes,
    /// Guests for which other rules hold since they were asked for.
    changed: BTreeSet<GuestIndex>,
    /// Those that are not where the policy says.
    moves: Moves,
    /// Ports that go by other interfaces than the policy says.
    bindings: Bindings,
    /// Guests of which other hosts are to know more, by UUID; `None` if there are none to tell.
    touched: Option<BTreeSet<String>>,
    /// While another policy is prepared.
    meanwhile: Option<adopt::Meanwhile>,
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
    let state = |entry: &Entry| match &entry.done.deed {
        Deed::Begin { state, .. } | Deed::Policy { state, .. } => Some(state.clone()),
        _ => None,
    };
    let found = entries.iter().enumerate().rev();
    let found = found
        .filter_map(|(number, entry)| Some((number + 1, state(entry)?)))
        .next();
    let (from, mut containers) = match found {
        Some((from, state)) => (from, Containers::restore(Arc::clone(policy), &state).0),
        None => (0, Containers::new(Arc::clone(policy), now())),
    };
    let mut changes = Changes::default();
    for entry in &entries[from..] {
        let Deed::Event { event, .. } = &entry.done.deed else {
            continue;
        };
        if let Err(refusal) = containers.apply(entry.done.at, event, &mut changes) {
            // It was accepted under another policy.
            tracing::warn!(
                "journal: guest {}, {} of {}: {refusal}",
                event.guest,
                event.what,
                entry.done.at
            );
        }
    }
    containers
}

/// How far followed files were read, as a journal has it.
fn positions(entries: &[Entry]) -> BTreeMap<String, Position> {
    let mut positions = BTreeMap::new();
    for entry in entries {
        match &entry.done.deed {
            Deed::Begin { read, .. } => positions.clone_from(read),
            Deed::Event {
                read: Some(position), ..
            } => {
                positions.insert(entry.done.by.clone(), *position);
            }
            _ => {}
        }
    }
    positions
}

/// The followed file's name in the journal.
fn name_of(path: &Path) -> String {
    format!("file {}", path.display())
}

impl Guests {
    /// As the journal of the state directory has them; follows the file of events, if there is one.
    ///
    /// # Errors
    /// See [`GuestsError`].
    pub fn open(
        policy: &Arc<Policy>,
        state_directory: &Path,
        events: Option<&Path>,
    ) -> Result<Self, GuestsError> {
        let (journal, entries) = Journal::open(state_directory)?;
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
        let read = positions(&entries);
        let (moves, bindings) = (Moves::of(&entries), Bindings::of(&entries));
        Ok(Self {
            ruleset: Ruleset::compile(
                policy,
                containers.memberships(),
                containers.flows(),
                NonZeroU32::MIN,
            )?,
            watched,
            behind: false,
            source: events.map(|path| FollowedFile::new(path, read.get(&name_of(path)).copied())),
            read,
            policy: Arc::clone(policy),
            containers,
            journal,
            pending: Vec::new(),
            journal_error: String::new(),
            source_error: String::new(),
            changes: Changes::default(),
            changed: BTreeSet::new(),
            moves,
            bindings,
            touched: None,
            meanwhile: None,
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

    /// How far somebody's file was read, as the journal knows it.
    #[must_use]
    pub fn position(&self, by: &str) -> Option<Position> {
        self.read.get(by).copied()
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

    /// Takes what the followed file has to tell.
    pub fn take(&mut self, now: Moment) {
        let mut taken = 0;
        if let Some(watched) = &self.watched {
            watched.take();
        }
        while let Some(source) = self.source.as_mut().filter(|_| taken < LINES) {
            let by = name_of(source.path());
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
                if let Some(event) = self.parse(line.text.as_deref()) {
                    // What is refused is counted.
                    let _ = self.offer(now, &by, event, Some(line.position));
                }
            }
        }
        self.behind = taken >= LINES;
    }

    /// Takes one event from somebody.
    ///
    /// # Errors
    /// Why it changes nothing.
    pub fn offer(
        &mut self,
        now: Moment,
        by: &str,
        event: Event,
        read: Option<Position>,
    ) -> Result<(), Refusal> {
        if matches!(event.what, What::Shared(_)) {
            *self.totals.refused.entry(Refusal::NotAHost.name()).or_default() += 1;
            return Err(Refusal::NotAHost);
        }
        self.take_event(now, by, event, read)
    }

    fn take_event(
        &mut self,
        now: Moment,
        by: &str,
        event: Event,
        read: Option<Position>,
    ) -> Result<(), Refusal> {
        match self.containers.apply(now, &event, &mut self.changes) {
            Ok(()) => {
                self.totals.accepted += 1;
                if !matches!(event.what, What::Shared(_) | What::Flow(_) | What::FlowEnd(_)) {
                    self.touch(&event.guest);
                }
                if let Some(meanwhile) = &mut self.meanwhile {
                    meanwhile.note(now, &event);
                }
                self.note(now, by, Deed::Event { event, read });
                if let Some(position) = read {
                    self.read.insert(by.to_owned(), position);
                }
                Ok(())
            }
            Err(refusal) => {
                *self.totals.refused.entry(refusal.name()).or_default() += 1;
                tracing::debug!("event refused: guest {}, {}: {refusal}", event.guest, event.what);
                Err(refusal)
            }
        }
    }

    /// Notes what was done `now`: it is in the journal when [`Self::commit`] says so.
    pub fn note(&mut self, now: Moment, by: &str, deed: Deed) {
        self.containers.advance(now, &mut self.changes);
        self.pending.push(Done {
            at: self.containers.now(),
            by: by.to_owned(),
            deed,
        });
    }

    /// Does what is due, and makes the rules that follow from all that was taken. Whether they are others than before. What time does to
    /// a guest is told to other hosts by the one that it is on, which `is_here` knows.
    pub fn settle(&mut self, now: Moment, is_here: impl Fn(GuestIndex) -> bool) -> bool {
        self.containers.advance(now, &mut self.changes);
        let changes = std::mem::take(&mut self.changes);
        self.touch_moved(&changes, is_here);
        self.say(&changes);
        self.recompile(&changes)
    }

    /// Puts what was done into the journal; gives it. What fails is tried again the next time.
    ///
    /// # Errors
    /// If it is not durable: what was done holds, but a restart would not know of it.
    pub fn commit(&mut self) -> Result<Vec<Done>, JournalError> {
        if self.pending.is_empty() {
            return Ok(Vec::new());
        }
        if let Err(error) = self.journal.append(&self.pending) {
            let text = chain(&error);
            if text != self.journal_error {
                tracing::error!("{text}: a restart will not know of the last events");
                self.journal_error = text;
            }
            let many = self.pending.len().saturating_sub(MOST_PENDING);
            self.pending.drain(..many);
            return Err(error);
        }
        self.journal_error.clear();
        let done = std::mem::take(&mut self.pending);
        if self.journal.is_large()
            && let Err(error) = self.journal.rotate(
                self.containers.now(),
                self.containers.save(),
                self.read.clone(),
                self.moves.clone(),
                self.bindings.clone(),
            )
        {
            tracing::error!("{}: the journal goes on in its old file", chain(&error));
        }
        Ok(done)
    }

    /// A configuration with guests and ports where they are, whatever its policy says.
    pub fn placed(&mut self, config: &HostConfig) -> Arc<HostConfig> {
        let mut placed = config.clone();
        placed.elsewhere = self.moves.resolve(&config.policy);
        placed.bound = self.bindings.resolve(&config.policy);
        Arc::new(placed)
    }

    /// Notes that a guest is on a host.
    pub fn locate(&mut self, now: Moment, by: &str, guest: &str, at: Moved) {
        self.moves.set(guest, at.clone());
        let guest = guest.to_owned();
        self.note(now, by, Deed::Located { guest, at });
    }

    /// Ports that go by other interfaces than the policy says.
    #[must_use]
    pub fn bindings(&self) -> &Bindings {
        &self.bindings
    }

    /// A port goes by an interface from now on.
    pub fn bind(&mut self, now: Moment, by: &str, binding: Binding) {
        self.bindings.add(binding.clone());
        self.note(now, by, Deed::PortAdded(binding));
    }

    /// No port goes by an interface any more that one was bound to.
    pub fn unbind(&mut self, now: Moment, by: &str, binding: Binding) {
        self.bindings.remove(&binding.interface);
        let (interface, guest) = (binding.interface, binding.guest);
        self.note(now, by, Deed::PortRemoved { interface, guest });
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
        let policy = Arc::clone(&self.policy);
        let name = |moved: &Transferred| {
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
                moved.cause
            );
            self.pending.push(Done {
                at: moved.at,
                by: "guestseal".to_owned(),
                deed: Deed::Moved {
                    guest: guest.clone(),
                    from: from.clone(),
                    to: to.clone(),
                    because: moved.cause.to_string(),
                },
            });
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
        self.changed.extend(&changes.guests);
        true
    }

    /// The guests for which other rules may hold than at the last call.
    pub fn take_changed(&mut self) -> BTreeSet<GuestIndex> {
        std::mem::take(&mut self.changed)
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

        /// As if the process had died before anything was appended.
        fn forget_but_the_first_line(&self) {
            let journal = self.directory.path().join("state/journal");
            let path = std::fs::read_dir(journal)
                .unwrap()
                .next()
                .unwrap()
                .unwrap()
                .path();
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, &text[..=text.find('\n').unwrap()]).unwrap();
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

    fn turn(guests: &mut Guests) -> bool {
        guests.take(now());
        let others = guests.settle(now(), |_| true);
        guests.commit().unwrap();
        others
    }

    fn container(guests: &Guests) -> &str {
        let container = guests.containers().record(GuestIndex(0)).container;
        &guests.policy.containers[container.index()].name
    }

    #[test]
    fn what_came_is_taken_once_and_what_is_wrong_is_counted() {
        let world = World::new();
        let mut guests = world.start();
        assert!(!turn(&mut guests), "there is no file");
        world.write(&["", "no event", TAG, TAG.replace("g0", "g9").as_str()]);
        let before = guests.ruleset().generation();
        assert!(turn(&mut guests), "the rules are others");
        assert!(guests.ruleset().generation() > before);
        assert_eq!(container(&guests), "quarantine");
        let totals = guests.totals();
        assert_eq!((totals.accepted, totals.malformed, totals.transfers), (1, 1, 1));
        assert_eq!(totals.refused, BTreeMap::from([("UnknownGuest", 1)]));
        assert!(!turn(&mut guests));
    }

    #[test]
    fn a_restart_finds_the_guest_where_it_was_and_reads_on_behind_what_it_knows() {
        let world = World::new();
        world.write(&[TAG]);
        let mut guests = world.start();
        turn(&mut guests);
        let known = guests.containers().record(GuestIndex(0)).clone();
        drop(guests);
        // While nobody listened.
        world.write(&[CLEAR, TAG.replace("eicar", "second").as_str()]);
        let mut guests = world.start();
        assert_eq!(*guests.containers().record(GuestIndex(0)), known);
        assert_eq!(container(&guests), "quarantine");
        turn(&mut guests);
        assert_eq!(guests.totals().accepted, 2);
        let tags = &guests.containers().record(GuestIndex(0)).tags;
        assert!(tags[&("av".into(), "eicar".into())].cleared.is_some());
    }

    /// Whatever came last, and however long ago.
    #[test]
    fn what_is_noted_is_as_old_as_it_is_and_what_was_due_before_it_is_done() {
        let world = World::new();
        world.write(&[TAG, CLEAR]);
        let mut guests = world.start();
        turn(&mut guests);
        assert_eq!(container(&guests), "quarantine");
        let later = Moment::from_millis(guests.containers().now().millis() + 7_200_000);
        let at = Moved {
            to: "h1".to_owned(),
            declared: "h1".to_owned(),
            steps: 1,
        };
        guests.locate(later, "test", "u0", at);
        assert!(guests.settle(later, |_| true), "it is released");
        let done = guests.commit().unwrap();
        let located = done.iter().find(|one| matches!(one.deed, Deed::Located { .. }));
        assert_eq!(located.map(|one| one.at), Some(later));
        assert_eq!(container(&guests), "default");
    }

    /// Applied, but not journalled: it is read from its source again.
    #[test]
    fn an_event_that_was_not_acknowledged_is_not_lost() {
        let world = World::new();
        world.write(&[CLEAR, TAG]);
        let mut guests = world.start();
        turn(&mut guests);
        drop(guests);
        world.forget_but_the_first_line();
        let mut guests = world.start();
        assert_eq!(container(&guests), "default");
        turn(&mut guests);
        assert_eq!(container(&guests), "quarantine");
    }
}
