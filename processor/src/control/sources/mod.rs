//! Where events come from: the file of events, and the services that report in their own words.
//!
//! What services write is read in a thread of its own: a service that floods, or writes what takes long to read, costs the control loop no
//! more than the events that come of it, and of those a bounded number a second. What is not taken yet waits where it is: in its file, in
//! its socket, with its teller. What maps to no event is counted, and never an error.

mod agent;
mod bucket;
mod clamav;
mod feed;
pub mod file;
mod lines;
mod socket;
mod suricata;
mod text;
mod told;
mod translator;
pub mod webhook;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guestseal_rules::event::Event;
use guestseal_rules::load::{self, FileErrors, load_sources};
pub use guestseal_rules::model::source::Source;
use guestseal_rules::model::source::{Input, Way};
use guestseal_rules::model::{Guest, GuestIndex, Policy};
use guestseal_rules::report::Directory;
use serde::Serialize;
use serde_json::Value;
use serde_saphyr::Location;

use super::api::HookConfig;
use super::api::access::group_number;
use super::api::problem::Problem;
use super::supervise::chain;
use super::wake::{Doorbell, wait};
use feed::{Feed, Reader, Turn, name_of};
use file::Position;
use socket::Socket;
pub use told::Teller;
use told::ToldSources;
use translator::Known;

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
    /// What the service would not write, or what an agent may not say.
    pub malformed: u64,
    /// What is longer than is read.
    pub too_long: u64,
    /// How often a file was truncated: what was not read then is lost.
    pub truncated: u64,
    /// Why it cannot be read at present, if it cannot.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}

impl SourceStatus {
    /// Adds what became of another part of the same source.
    fn add(&mut self, other: &Self) {
        for (count, more) in [
            (&mut self.told, other.told),
            (&mut self.waited, other.waited),
            (&mut self.repeated, other.repeated),
            (&mut self.ignored, other.ignored),
            (&mut self.no_meaning, other.no_meaning),
            (&mut self.nobody, other.nobody),
            (&mut self.incomplete, other.incomplete),
            (&mut self.other, other.other),
            (&mut self.malformed, other.malformed),
            (&mut self.too_long, other.too_long),
            (&mut self.truncated, other.truncated),
        ] {
            *count += more;
        }
        self.error.clone_from(&other.error);
    }
}

/// Why sources cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum SourcesError {
    /// A socket.
    #[error("{}: the source's socket cannot be made", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A user or group.
    #[error("{0}")]
    People(String),
    /// The thread.
    #[error("the system has no room for the sources' thread")]
    Thread(#[source] io::Error),
}

type Statuses = BTreeMap<String, SourceStatus>;

/// The control loop's end of the sources.
#[derive(Debug)]
pub struct Sources {
    told: Receiver<Told>,
    /// Rung when there is something.
    bell: Doorbell,
    statuses: Arc<Mutex<Statuses>>,
    tellers: ToldSources,
    policy: Arc<Policy>,
    known: Directory,
    moves: Sender<(GuestIndex, bool)>,
    stop: Arc<AtomicBool>,
    wake: Doorbell,
}

/// The sources of a file at a path; paths in it are relative to that.
///
/// # Errors
/// Every mistake that was found.
pub fn load(path: &Path, file: &load::Source, policy: &Policy) -> Result<Vec<Source>, FileErrors> {
    let mut sources = load_sources(file, policy)?;
    for source in &sources {
        let who =
            group_of(source).and_then(|_| ToldSources::new(std::slice::from_ref(source), Instant::now()));
        who.map_err(|error| FileErrors(vec![file.error(&Location::UNKNOWN, error.to_string())]))?;
    }
    let base = path.parent().unwrap_or(Path::new("."));
    for source in &mut sources {
        if let Some(path) = source.input.path_mut() {
            *path = base.join(path.as_path());
        }
    }
    Ok(sources)
}

/// Where signed reports are posted to.
#[must_use]
pub fn hooks(sources: &[Source]) -> Vec<HookConfig> {
    let hook = |source: &Source| match &source.input {
        Input::Webhook(webhook) => Some(HookConfig {
            name: source.name.clone(),
            listen: webhook.listen,
            secret: webhook.secret.clone(),
        }),
        _ => None,
    };
    sources.iter().filter_map(hook).collect()
}

fn hold(statuses: &Mutex<Statuses>) -> MutexGuard<'_, Statuses> {
    statuses.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sources {
    /// Starts the thread that reads them, each from where the journal knows it; guests that are here have sockets for agents.
    ///
    /// # Errors
    /// See [`SourcesError`].
    pub fn open(
        sources: &[Source],
        policy: &Arc<Policy>,
        is_here: impl Fn(GuestIndex) -> bool,
        read: impl Fn(&str) -> Option<Position>,
    ) -> Result<Self, SourcesError> {
        let (sender, told) = sync_channel(WAITING);
        let bell = Doorbell::new().map_err(SourcesError::Thread)?;
        let wake = Doorbell::new().map_err(SourcesError::Thread)?;
        let now = Instant::now();
        let mut feeds = Vec::new();
        for source in sources {
            feeds.extend(open_feeds(source, policy, &is_here, &read, now)?);
        }
        let tellers = ToldSources::new(sources, now)?;
        let statuses = tellers
            .names()
            .map(|name| (name.clone(), SourceStatus::default()));
        let known = Directory::new(policy, is_here);
        let (moves, moved) = channel();
        let has_agents = |source: &&Source| matches!(source.input, Input::Agents(_));
        let thread = Thread {
            feeds,
            agents: sources.iter().filter(has_agents).cloned().collect(),
            moved,
            gone: Statuses::new(),
            policy: Arc::clone(policy),
            known: known.clone(),
            told: sender,
            bell: bell.clone(),
            statuses: Arc::new(Mutex::new(statuses.collect())),
            stop: Arc::default(),
            wake: wake.clone(),
        };
        thread.show();
        let opened = Self {
            told,
            bell,
            statuses: Arc::clone(&thread.statuses),
            tellers,
            policy: Arc::clone(policy),
            known,
            moves,
            stop: Arc::clone(&thread.stop),
            wake,
        };
        let builder = std::thread::Builder::new().name("sources".to_owned());
        builder
            .spawn(move || thread.run())
            .map_err(SourcesError::Thread)?;
        Ok(opened)
    }

    /// A guest is here from now on, and its agent has a socket; or it is not any more.
    pub fn place(&mut self, guest: GuestIndex, is_here: bool) {
        self.known.place(&self.policy, guest, is_here);
        // The thread ends only with this.
        let _ = self.moves.send((guest, is_here));
        self.wake.ring();
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

    /// The event that a report is which somebody tells, and by whom it is; nothing if it needs none.
    ///
    /// # Errors
    /// Why it is none.
    pub fn report(
        &mut self,
        name: &str,
        report: &Value,
        teller: &Teller,
    ) -> Result<Option<(String, Event)>, Problem> {
        let known = Known {
            policy: &self.policy,
            directory: &self.known,
        };
        let mut statuses = hold(&self.statuses);
        let mut unknown = SourceStatus::default();
        let status = statuses.get_mut(name).unwrap_or(&mut unknown);
        self.tellers
            .event(name, report, teller, &known, Instant::now(), status)
    }

    /// What became of what each source has reported.
    #[must_use]
    pub fn status(&self) -> BTreeMap<String, SourceStatus> {
        hold(&self.statuses).clone()
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake.ring();
    }
}

/// The group that may connect to a source's sockets.
fn group_of(source: &Source) -> Result<Option<u32>, SourcesError> {
    let ((Some(Way::Socket(sockets)), _) | (_, Input::Agents(sockets))) = (source.input.way(), &source.input)
    else {
        return Ok(None);
    };
    let Some(name) = &sockets.group else {
        return Ok(None);
    };
    let number = group_number(name);
    number.map(Some).ok_or_else(|| {
        SourcesError::People(format!(
            "source {}: this host has no group \"{name}\"",
            source.name
        ))
    })
}

/// What of a source is read by the thread.
fn open_feeds(
    source: &Source,
    policy: &Policy,
    is_here: &impl Fn(GuestIndex) -> bool,
    read: impl Fn(&str) -> Option<Position>,
    now: Instant,
) -> Result<Vec<Feed>, SourcesError> {
    let reader = match (&source.input, source.input.way()) {
        (_, Some(Way::File(path))) => Reader::file(path, read(&name_of(source))),
        (_, Some(Way::Socket(sockets))) => {
            let opened = Socket::open(&sockets.path, group_of(source)?);
            Reader::Socket(opened.map_err(|error| failed(&sockets.path, error))?)
        }
        (Input::Agents(_), _) => {
            let all = (0u32..).zip(&policy.guests);
            let own = all.filter(|(number, _)| is_here(GuestIndex(*number)));
            return own.map(|(_, guest)| agent_feed(source, guest, now)).collect();
        }
        _ => return Ok(Vec::new()),
    };
    Ok(vec![Feed::of_service(source.clone(), reader, now)])
}

fn failed(path: &Path, source: io::Error) -> SourcesError {
    SourcesError::Socket {
        path: path.to_owned(),
        source,
    }
}

/// The socket of a guest's agent.
fn agent_feed(source: &Source, guest: &Guest, now: Instant) -> Result<Feed, SourcesError> {
    let Input::Agents(sockets) = &source.input else {
        unreachable!("only sources of agents have guests' sockets")
    };
    let path = sockets.path.join(format!("{}.sock", guest.id));
    let socket = Socket::open(&path, group_of(source)?).map_err(|error| failed(&path, error))?;
    Ok(Feed::of_agent(source, &guest.id, &guest.uuid, socket, now))
}

/// What the thread has.
struct Thread {
    feeds: Vec<Feed>,
    /// The sources that have a socket for each guest.
    agents: Vec<Source>,
    /// Guests that are here from now on, or not any more.
    moved: Receiver<(GuestIndex, bool)>,
    /// What came of the words of agents whose guests are here no more.
    gone: Statuses,
    policy: Arc<Policy>,
    known: Directory,
    told: SyncSender<Told>,
    bell: Doorbell,
    statuses: Arc<Mutex<Statuses>>,
    stop: Arc<AtomicBool>,
    wake: Doorbell,
}

impl Thread {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            let mut until = now + LOOK;
            while let Ok((guest, is_here)) = self.moved.try_recv() {
                self.place(guest, is_here, now);
            }
            let known = Known {
                policy: &self.policy,
                directory: &self.known,
            };
            for feed in &mut self.feeds {
                let (told, mut any) = (&self.told, false);
                let turn = feed.turn(&known, now, |event| {
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
            let mut descriptors = vec![self.wake.as_fd()];
            descriptors.extend(self.feeds.iter().flat_map(Feed::wait_on));
            wait(&descriptors, until);
        }
    }

    fn place(&mut self, guest: GuestIndex, is_here: bool, now: Instant) {
        let policy = Arc::clone(&self.policy);
        self.known.place(&policy, guest, is_here);
        let guest = &policy.guests[guest.index()];
        for source in &self.agents {
            let is_its = |feed: &Feed| feed.name == source.name && feed.is_of(&guest.uuid);
            match (is_here, self.feeds.iter().position(is_its)) {
                (true, None) => match agent_feed(source, guest, now) {
                    Ok(feed) => self.feeds.push(feed),
                    Err(error) => {
                        let why = chain(&error);
                        tracing::error!("what an agent in {} says is not heard: {why}", guest.id);
                        self.gone.entry(source.name.clone()).or_default().error = why;
                    }
                },
                (false, Some(place)) => {
                    let feed = self.feeds.remove(place);
                    self.gone.entry(feed.name.clone()).or_default().add(&feed.status);
                }
                _ => {}
            }
        }
    }

    fn show(&self) {
        let mut all = self.gone.clone();
        for feed in &self.feeds {
            all.entry(feed.name.clone()).or_default().add(&feed.status);
        }
        hold(&self.statuses).extend(all);
    }
}

#[cfg(test)]
mod tests;
