//! The control loop of `guestseal run`: starts the data plane, follows interfaces and neighbours, keeps the marks of manual
//! SAs ahead, collects latencies, and stops.

mod ports;
mod reloads;
mod relocate;
mod reports;
mod state;
mod ways;

use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use guestseal_rules::event::Moment;
use guestseal_rules::model::HostIndex;
use hdrhistogram::serialization::V2DeflateSerializer;
use serde_json::json;

use crate::aead::choice::{EngineError, choose};
use crate::path::tables::NextHops;
use crate::sa::slots::Owned;
use crate::telemetry::latency::{Latencies, Log, begin_log, write_interval};
use crate::telemetry::totals::{Frames, Totals};
use crate::worker::handoff::Waker;

use super::added::Change;
use super::api::problem::Problem;
use super::api::{Accepted, ApiError, Ask, Desk, Request};
use super::assemble::{Blueprint, DataPlane, Remains, StartError};
use super::config::HostConfig;
use super::guests::{Guests, GuestsError, now};
use super::journal::{Deed, JournalError};
use super::link;
use super::manual_sa::{self, ManualSaError, Mark};
use super::news::KernelNews;
use super::offloads::{OffloadError, PutBack};
use super::reach::Reach;
use super::reload::Reloads;
use super::rulebook::RuleBook;
use super::sessions::{Sessions, SessionsError};
use super::shared::{EtcdError, Fleet};
use super::sources::{Sources, SourcesError, Told};
use super::transition::Transitions;
use super::wake::wait;

/// How often the control loop turns at least, whether something wakes it or not. A block of sequence numbers lasts longer at any rate that a worker reaches.
const TURN: Duration = Duration::from_millis(20);
/// How often interfaces are looked for.
const LOOK: Duration = Duration::from_millis(100);
/// Packets of logged rules that one turn writes into the log at most.
const SAMPLES: usize = 20;
/// How long one interval of the latency log is.
const INTERVAL: Duration = Duration::from_secs(1);

/// Why a run ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The AEAD engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The data plane.
    #[error(transparent)]
    Start(#[from] StartError),
    /// What guests leave to their cards.
    #[error(transparent)]
    Offload(#[from] OffloadError),
    /// The SAs.
    #[error(transparent)]
    Sa(#[from] ManualSaError),
    /// The sessions.
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    /// The guests and their rules.
    #[error(transparent)]
    Guests(#[from] GuestsError),
    /// The sources of reports.
    #[error(transparent)]
    Sources(#[from] SourcesError),
    /// What is needed to speak to etcd.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// A descriptor.
    #[error("the system has no descriptor left")]
    System(#[from] std::io::Error),
    /// The control socket.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A file that was asked for.
    #[error("{}: cannot be written", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What a run is asked for besides its configuration.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Made when traffic flows.
    pub ready_file: Option<PathBuf>,
    /// Set to have the files read again.
    pub reload: Arc<AtomicBool>,
}

/// An error and its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

struct Control {
    plan: Blueprint,
    book: RuleBook,
    /// Once traffic flows.
    desk: Option<Desk>,
    sources: Option<Sources>,
    fleet: Option<Fleet>,
    guests: Guests,
    sessions: Option<Sessions>,
    transitions: Transitions,
    reloads: Reloads,
    since: Moment,
    marks: Vec<Mark>,
    reach: Reach,
    /// Without it the kernel is asked again and again.
    news: Option<KernelNews>,
    all: Latencies,
    interval: Latencies,
    xdp: Vec<(String, guestseal_xdp::Counters)>,
}

/// Runs until `stop` is set. Gives the totals.
///
/// # Errors
/// See [`RunError`].
pub fn run(config: Arc<HostConfig>, options: &RunOptions, stop: &AtomicBool) -> Result<Totals, RunError> {
    let chosen = choose(config.aead)?;
    for error in &chosen.passed_over {
        match error {
            EngineError::WrongAnswer { .. } => tracing::warn!("{}", chain(error)),
            _ => tracing::debug!("{}", chain(error)),
        }
    }
    let engine = chosen.engine;
    let mut manual = manual_sa::prepare(&config, &*engine)?;
    let sessions = Sessions::open(&config, Arc::clone(&engine), &mut manual.table, &manual.owned)?;
    let mut guests = Guests::open(&config.policy, &config.state_directory, config.events.as_deref())?;
    guests.note(
        now(),
        "guestseal",
        Deed::Started {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            policy: config.origin.digest.clone(),
        },
    );
    let config = guests.placed(&config);
    let fleet = config.etcd.as_ref().map(|etcd| Fleet::open(etcd, &config));
    let fleet = fleet.transpose()?;
    if fleet.is_some() {
        guests.share();
    }
    let workers = config.workers.len();
    let book = RuleBook::new(&config.policy, guests.ruleset().generation(), workers);
    let mut control = Control {
        plan: Blueprint {
            config: Arc::clone(&config),
            engine,
            sas: Arc::new(manual.table),
            rules: guests.ruleset().clone(),
            endpoints: Arc::new(config.endpoints()),
            next_hops: vec![NextHops::default(); config.policy.hosts.len()],
            path_mtus: HashMap::new(),
            also_accepted: Arc::default(),
            counters: (0..workers).map(|_| Arc::default()).collect(),
            rule_counters: Arc::clone(book.counters()),
            control: Waker::new()?,
        },
        book,
        desk: None,
        sources: None,
        fleet,
        guests,
        sessions,
        transitions: Transitions::default(),
        reloads: Reloads::new(&config, Arc::clone(&options.reload)),
        since: now(),
        marks: manual.marks,
        reach: Reach::default(),
        news: KernelNews::new()
            .inspect_err(|error| {
                tracing::warn!("changes of routes and neighbours are met a second later: {error}");
            })
            .ok(),
        all: Latencies::default(),
        interval: Latencies::default(),
        xdp: Vec::new(),
    };
    let file = |path: &PathBuf, source| RunError::File {
        path: path.clone(),
        source,
    };
    let mut log_file = match &config.histogram_log {
        Some(path) => Some(BufWriter::new(
            File::create(path).map_err(|source| file(path, source))?,
        )),
        None => None,
    };
    let mut serializer = V2DeflateSerializer::new();
    let log = match (&mut log_file, &config.histogram_log) {
        (Some(log), Some(path)) => {
            Some(begin_log(log, SystemTime::now(), &mut serializer).map_err(|source| file(path, source))?)
        }
        _ => None,
    };
    let _put_back = PutBack::new(&config.state_directory)?;
    let frames = control.serve(manual.owned, options, stop, log);
    if let Some(fleet) = control.fleet.take() {
        fleet.end();
    }
    Ok(control.totals(Some(frames?)))
}

impl Control {
    fn serve(
        &mut self,
        owned: Vec<Owned>,
        options: &RunOptions,
        stop: &AtomicBool,
        mut log: Option<Log<'_, BufWriter<File>>>,
    ) -> Result<Frames, RunError> {
        let begin = Instant::now();
        self.follow_transitions();
        let mut plane = DataPlane::start(&self.plan, owned).map_err(|(error, _)| error)?;
        for line in plane.describe() {
            tracing::info!("{line}");
        }
        for news in plane.look_out() {
            tracing::warn!("{news}");
        }
        tracing::info!("AEAD engine: {}", self.plan.engine.describe());
        let config = &self.plan.config;
        self.desk = Some(Desk::open(&config.api, &config.state_directory)?);
        self.sources = self.open_sources()?;
        if let Some(path) = &options.ready_file {
            std::fs::write(path, "ready\n").map_err(|source| RunError::File {
                path: path.clone(),
                source,
            })?;
        }
        tracing::info!(
            "ready: host {}, {} workers",
            self.plan.config.host_name(),
            self.plan.config.workers.len()
        );
        // What guestseal has started with, it can start with again. The log says if it cannot be kept.
        let _ = self.keep_policy(None);
        let (mut looked, mut logged) = (begin, begin);
        let mut asked: Option<Instant> = None;
        let mut turn = begin;
        while !stop.load(Ordering::Acquire) {
            self.wait(turn, Some(&plane));
            // What wakes the loop is met at once; everything else has its time.
            self.follow_events(Some(&mut plane));
            self.follow_sessions(&mut plane);
            let told = self.take_news(&mut plane);
            let again = self.reach.look_again(self.news.is_some());
            if told || asked.is_none_or(|asked| asked.elapsed() >= again) {
                asked = Some(Instant::now());
                self.follow_ways(&mut plane);
            }
            if Instant::now() < turn {
                continue;
            }
            turn = Instant::now() + TURN;
            self.tend_marks();
            self.follow_reloads(Some(&mut plane));
            if self.follow_transitions() {
                plane.publish_also_accepted(&self.plan.also_accepted);
            }
            self.collect(&mut plane);
            self.log_samples(&mut plane);
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if let Some(sessions) = &mut self.sessions {
                    sessions.follow_keys();
                }
                if !plane.has_uplink() {
                    tracing::error!(
                        "uplink {} is gone: waiting for it, guest ports stay closed",
                        self.plan.config.uplink
                    );
                    match self.rebuild(plane, stop) {
                        Ok(again) => plane = again,
                        Err(frames) => return Ok(frames),
                    }
                    tracing::info!("uplink {} is back", self.plan.config.uplink);
                }
                self.follow_added_ports(Some(&mut plane));
                for news in plane.follow_guest_ports(&self.plan) {
                    tracing::warn!("{news}");
                }
                for news in plane.look_out() {
                    tracing::warn!("{news}");
                }
            }
            if logged.elapsed() >= INTERVAL {
                self.write_interval(&mut log, logged.duration_since(begin), logged.elapsed());
                logged = Instant::now();
                self.write_status();
                plane.ask_for_drops();
            }
        }
        let frames = self.take_apart(plane, true).0;
        self.write_interval(&mut log, logged.duration_since(begin), logged.elapsed());
        Ok(frames)
    }

    /// Waits until something comes, or until the next turn.
    fn wait(&self, turn: Instant, plane: Option<&DataPlane>) {
        if self.guests.is_behind() {
            return;
        }
        let mut descriptors: Vec<BorrowedFd<'_>> = self.guests.wait_on().into_iter().collect();
        descriptors.extend(self.desk.as_ref().map(|desk| desk.bell().as_fd()));
        descriptors.extend(self.sources.as_ref().map(|sources| sources.bell().as_fd()));
        descriptors.extend(self.fleet.as_ref().map(|fleet| fleet.bell().as_fd()));
        descriptors.extend(self.news.iter().filter(|_| plane.is_some()).map(AsFd::as_fd));
        let mut until = turn;
        let woken = &self.plan.control;
        if let (Some(sessions), Some(plane)) = (&self.sessions, plane) {
            descriptors.extend(sessions.wait_on());
            descriptors.push(woken.wait_on());
            until = sessions.deadline().map_or(turn, |due| due.min(turn));
            woken.announce_sleep();
            if sessions.is_due(plane) {
                return woken.awake();
            }
        }
        wait(&descriptors, until);
        woken.awake();
    }

    /// Looks which rules accept two forms; whether they are others than before.
    fn follow_transitions(&mut self) -> bool {
        let changed = self.transitions.look(&self.plan.config.policy, now());
        if changed {
            self.plan.also_accepted = Arc::clone(self.transitions.accepted());
        }
        changed
    }

    /// Lets sessions do what is due.
    fn follow_sessions(&mut self, plane: &mut DataPlane) {
        match &mut self.sessions {
            Some(sessions) => {
                sessions.end_unusable(&self.plan.config, &self.plan.rules);
                sessions.turn(plane, &mut self.plan.sas);
                if sessions.follow_path_mtus(&mut self.plan.path_mtus) {
                    plane.publish_path_mtus(&self.plan.path_mtus);
                }
                for deed in sessions.deeds() {
                    self.guests.note(now(), "guestseal", deed);
                }
                let next_hops = &self.plan.next_hops;
                let fresh = sessions.fresh_peers();
                // The peer was just spoken with: the kernel knows the way, and the first packet waits for it.
                let unknown = |(host, address): &(HostIndex, IpAddr)| {
                    next_hops[host.index()].towards(*address).is_none()
                };
                if fresh.iter().any(unknown) {
                    self.follow_ways(plane);
                }
            }
            // Without sessions nothing that workers say is of use.
            None => plane.notices().for_each(drop),
        }
    }

    fn tend_marks(&mut self) {
        for mark in &mut self.marks {
            if let Err(error) = mark.tend() {
                tracing::error!(
                    "{}: the SA stops when its reserved numbers are used up",
                    chain(&error)
                );
            }
        }
    }

    /// Takes what has come, from files and callers: first the rules are in force, then what was done is durable, then callers
    /// are answered.
    fn follow_events(&mut self, mut plane: Option<&mut DataPlane>) {
        self.guests.take(now());
        for Told { by, event, read } in self.sources.iter().flat_map(Sources::take) {
            // What is refused is counted.
            let _ = self.guests.offer(now(), &by, event, read);
        }
        let (mut changes, mut questions) = (Vec::new(), Vec::new());
        if let Some(fleet) = &mut self.fleet {
            let due = fleet.hear(&mut self.guests, now(), self.plan.config.host_name());
            for due in due {
                changes.extend(self.make_move(due, false, plane.as_deref_mut()));
            }
        }
        for Request { by, ask, reply } in self.desk.as_mut().map(Desk::take).unwrap_or_default() {
            match ask {
                Ask::Event(event) => {
                    let taken = self.guests.offer(now(), &by, event, None);
                    changes.push((taken.map_err(Problem::from), reply));
                }
                Ask::Reload => self.reloads.want(by, Some(reply)),
                Ask::AddPort {
                    guest,
                    mac,
                    interface,
                } => {
                    let taken = self.add_port(&by, &guest, mac, &interface, plane.as_deref_mut());
                    changes.push((taken, reply));
                }
                Ask::AddGuest(guest) => {
                    let change = Change::Add(self.with_host(guest));
                    self.reloads.add(by, change, reply);
                }
                Ask::RemovePort { host, interface } => match self.added_port(host, &interface) {
                    Some(change) => self.reloads.add(by, change, reply),
                    None => {
                        let taken = self.remove_port(&by, &interface, plane.as_deref_mut());
                        changes.push((taken, reply));
                    }
                },
                Ask::Move { guest, host } => {
                    changes.extend(self.take_move(by, &guest, &host, reply, plane.as_deref_mut()));
                }
                Ask::Report {
                    source,
                    report,
                    teller,
                } => changes.push((self.take_report(&source, &report, &teller), reply)),
                ask => questions.push((ask, reply)),
            }
        }
        self.settle(plane.as_deref_mut());
        let durable = self.commit();
        let accepted = json!(Accepted {
            generation: self.plan.rules.generation().get(),
        });
        for (taken, reply) in changes {
            let answer = match (taken, &durable) {
                (Err(problem), _) => Err(problem),
                (Ok(()), Ok(())) => Ok(accepted.clone()),
                (Ok(()), Err(error)) => Err(Problem::not_durable(&chain(error))),
            };
            // Who asked may have gone.
            let _ = reply.send(answer);
        }
        for (ask, reply) in questions {
            let _ = reply.send(self.answer(ask, plane.as_deref()));
        }
        if let Some(fleet) = &mut self.fleet {
            fleet.tell(&mut self.guests, self.plan.config.host_name());
        }
    }

    /// Lets the rules that follow from what has happened to guests be in force.
    fn settle(&mut self, plane: Option<&mut DataPlane>) {
        let config = &self.plan.config;
        if self
            .guests
            .settle(now(), |guest| config.host_of(guest) == config.host)
        {
            self.plan.rules = self.guests.ruleset().clone();
            if let Some(plane) = plane {
                plane.publish_rules(&self.plan.rules);
            }
            let changed = self.guests.take_changed().into_iter();
            let hosts = changed.map(|guest| config.host_of(guest)).collect();
            if let Some(sessions) = &mut self.sessions {
                sessions.doubt(&hosts, config.host);
            }
        }
    }

    /// Makes what was done durable, and tells of it.
    fn commit(&mut self) -> Result<(), JournalError> {
        let done = self.guests.commit()?;
        if let Some(desk) = &self.desk {
            done.iter().for_each(|done| desk.tell(done));
        }
        Ok(())
    }

    /// Writes packets of rules that are logged into the log, a bounded number of them.
    fn log_samples(&mut self, plane: &mut DataPlane) {
        let mut more = 0u64;
        for (number, sample) in plane.logged().enumerate() {
            if number >= SAMPLES {
                more += 1;
                continue;
            }
            let Some(policy) = self.book.policy_of(sample.generation) else {
                continue;
            };
            let rule = &policy.rules[sample.rule.index()];
            tracing::info!(
                rule = rule.name,
                action = rule.action.verb(),
                enforced = sample.enforced,
                direction = sample.direction.name(),
                "{}",
                sample.facts.describe(policy)
            );
        }
        if more > 0 {
            tracing::info!("{more} more packets of logged rules in this moment");
        }
    }

    fn collect(&mut self, plane: &mut DataPlane) {
        plane.free_retired();
        self.book.settle();
        for collector in plane.collectors() {
            collector.ask();
            if let Some(latencies) = collector.collect() {
                self.interval.add(&latencies);
                self.all.add(&latencies);
            }
        }
    }

    fn write_interval(
        &mut self,
        log: &mut Option<Log<'_, BufWriter<File>>>,
        since: Duration,
        length: Duration,
    ) {
        if let Some(writer) = log
            && let Err(error) = write_interval(writer, since, length, &self.interval)
        {
            tracing::error!("the latency log ends here: {error}");
            *log = None;
        }
        self.interval.clear();
    }

    /// Takes the plane apart and waits for the uplink; the plane that serves it then, or where the frames were if a stop
    /// came first.
    fn rebuild(&mut self, plane: DataPlane, stop: &AtomicBool) -> Result<DataPlane, Frames> {
        let (frames, mut owned) = self.take_apart(plane, false);
        let mut said = String::new();
        loop {
            if stop.load(Ordering::Acquire) {
                return Err(frames);
            }
            self.wait(Instant::now() + LOOK, None);
            self.tend_marks();
            self.follow_events(None);
            self.follow_reloads(None);
            if link::index_of(&self.plan.config.uplink).is_none() {
                continue;
            }
            match DataPlane::start(&self.plan, owned) {
                Ok(plane) => return Ok(plane),
                Err((error, back)) => {
                    owned = back;
                    let text = chain(&error);
                    if text != said {
                        tracing::error!("not yet: {text}");
                        said = text;
                    }
                }
            }
        }
    }

    fn take_apart(&mut self, mut plane: DataPlane, detach: bool) -> (Frames, Vec<Owned>) {
        self.collect(&mut plane);
        let Remains {
            owned,
            notices,
            recorders,
            exchanged,
            frames,
            xdp,
        } = plane.stop(detach);
        self.xdp.extend(xdp);
        if let Some(sessions) = &mut self.sessions {
            sessions.stopped(notices);
        }
        for latencies in recorders
            .iter()
            .map(|recorder| &recorder.current)
            .chain(&exchanged)
        {
            self.interval.add(latencies);
            self.all.add(latencies);
        }
        (frames, owned)
    }
}
