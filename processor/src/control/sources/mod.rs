//! Where events come from: the file of events, and the services that report in their own words.
//!
//! Services are read in a thread of its own: a service that floods, or writes what takes long to read, costs the control loop no more
//! than the events that come of it, and of those a bounded number a second. What is not taken yet waits where it is: in its file. What
//! maps to no event is counted, and never an error.

mod bucket;
mod feed;
pub mod file;
mod suricata;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use guestseal_rules::event::Event;
use guestseal_rules::load::load_sources;
pub use guestseal_rules::model::source::Source;
use guestseal_rules::model::source::{Input, Lines};
use guestseal_rules::model::{HostIndex, Policy};
use guestseal_rules::report::Directory;
use serde::Serialize;
use serde_json::Value;

use super::config::{ConfigError, read};
use super::wake::{Doorbell, wait};
use feed::{Feed, Turn};
use file::Position;

/// Events that wait for the control loop.
const WAITING: usize = 256;
/// How often sources are looked at, whether something wakes their thread or not.
const LOOK: Duration = Duration::from_secs(1);
/// How long a full control loop is left alone.
const BREATH: Duration = Duration::from_millis(10);

/// What somebody has written, before anything is known of its meaning.
#[derive(Debug)]
enum Reported {
    /// A report.
    Report(Value),
    /// Something that is no report, as it should be.
    Other,
    /// Nothing that the service would write.
    Malformed,
    /// More than is read at once.
    TooLong,
}

/// An event of a source.
#[derive(Debug)]
pub struct Told {
    /// The source, as the journal calls it.
    pub by: String,
    /// What happened.
    pub event: Event,
    /// How far the source is read with it.
    pub read: Option<Position>,
}

/// What became of what a source has reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceStatus {
    /// Events that were told to the control loop.
    pub told: u64,
    /// Events that had to wait for the source's rate.
    pub waited: u64,
    /// What said what was said a moment ago.
    pub repeated: u64,
    /// Reports that the mapping ignores.
    pub ignored: u64,
    /// Reports that the mapping says nothing of.
    pub no_meaning: u64,
    /// Reports that speak of nobody who is a guest.
    pub nobody: u64,
    /// Reports without what they are to say.
    pub incomplete: u64,
    /// What is no report, as it should be.
    pub other: u64,
    /// What the service would not write.
    pub malformed: u64,
    /// What is longer than is read.
    pub too_long: u64,
    /// How often a file was truncated: what was not read then is lost.
    pub truncated: u64,
    /// Why it cannot be read at present, if it cannot.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}

type Statuses = Arc<Mutex<BTreeMap<String, SourceStatus>>>;

/// The control loop's end of the sources.
#[derive(Debug)]
pub struct Sources {
    told: Receiver<Told>,
    /// Rung when there is something.
    bell: Doorbell,
    statuses: Statuses,
    stop: Arc<AtomicBool>,
    wake: Doorbell,
}

/// Reads a file of sources; paths in it are relative to it.
///
/// # Errors
/// See [`ConfigError`].
pub fn load(path: &Path, policy: &Policy) -> Result<Vec<Source>, ConfigError> {
    let mut sources = load_sources(&read(path)?, policy)?;
    let base = path.parent().unwrap_or(Path::new("."));
    for source in &mut sources {
        let Input::Suricata(Lines::File(path)) = &mut source.input;
        *path = base.join(path.as_path());
    }
    Ok(sources)
}

impl Sources {
    /// Starts the thread that reads them, each from where the journal knows it.
    ///
    /// # Errors
    /// If the system has no room for it.
    pub fn open(
        sources: &[Source],
        policy: &Arc<Policy>,
        host: HostIndex,
        read: impl Fn(&str) -> Option<Position>,
    ) -> io::Result<Self> {
        let (sender, told) = sync_channel(WAITING);
        let (bell, wake) = (Doorbell::new()?, Doorbell::new()?);
        let now = Instant::now();
        let feed = |source: &Source| Feed::new(source.clone(), read(&Feed::name_of(source)), now);
        let reader = Reader {
            feeds: sources
                .iter()
                .map(|source| (source.name.clone(), feed(source)))
                .collect(),
            policy: Arc::clone(policy),
            known: Directory::new(policy, host),
            told: sender,
            bell: bell.clone(),
            statuses: Statuses::default(),
            stop: Arc::default(),
            wake: wake.clone(),
        };
        let (statuses, stop) = (Arc::clone(&reader.statuses), Arc::clone(&reader.stop));
        reader.show();
        let thread = std::thread::Builder::new().name("sources".to_owned());
        thread.spawn(move || reader.run())?;
        Ok(Self {
            told,
            bell,
            statuses,
            stop,
            wake,
        })
    }

    /// What can be read when something was told.
    #[must_use]
    pub fn bell(&self) -> &Doorbell {
        &self.bell
    }

    /// What was told since the last look.
    pub fn take(&self) -> Vec<Told> {
        self.bell.silence();
        self.told.try_iter().take(WAITING).collect()
    }

    /// What became of what each source has reported.
    #[must_use]
    pub fn status(&self) -> BTreeMap<String, SourceStatus> {
        self.statuses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake.ring();
    }
}

/// The thread's end.
struct Reader {
    feeds: Vec<(String, Feed)>,
    policy: Arc<Policy>,
    known: Directory,
    told: SyncSender<Told>,
    bell: Doorbell,
    statuses: Statuses,
    stop: Arc<AtomicBool>,
    wake: Doorbell,
}

impl Reader {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            let mut until = now + LOOK;
            for (_, feed) in &mut self.feeds {
                let (told, mut any) = (&self.told, false);
                let turn = feed.turn(&self.policy, &self.known, now, |event| {
                    let there_is_room = told.try_send(event).is_ok();
                    any |= there_is_room;
                    there_is_room
                });
                if any {
                    self.bell.ring();
                }
                until = until.min(match turn {
                    Turn::Idle => until,
                    Turn::Behind => now,
                    Turn::Until(time) => time,
                    Turn::Full => now + BREATH,
                });
            }
            self.show();
            let mut descriptors = vec![std::os::fd::AsFd::as_fd(&self.wake)];
            descriptors.extend(self.feeds.iter().filter_map(|(_, feed)| feed.wait_on()));
            wait(&descriptors, until);
        }
    }

    fn show(&self) {
        let status = |(name, feed): &(String, Feed)| (name.clone(), feed.status.clone());
        let all = self.feeds.iter().map(status).collect();
        *self.statuses.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }
}

#[cfg(test)]
mod tests;
