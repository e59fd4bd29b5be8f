//! The control loop of `guestseal run`: starts the data plane, follows interfaces and neighbours, keeps the marks of manual
//! SAs ahead, collects latencies, and stops.

use std::fs::File;
use std::io::BufWriter;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;

use crate::aead::choice::{EngineError, choose};
use crate::aead::engine::Engine;
use crate::port::KernelDrops;
use crate::sa::table::{Owned, SaTable};
use crate::telemetry::counters::Counters;
use crate::telemetry::latency::{Latencies, Log, begin_log, write_interval};
use crate::telemetry::totals::{Frames, Totals};
use crate::wire::ethernet::MacAddress;

use super::assemble::{DataPlane, Remains, StartError};
use super::config::{HostConfig, SaMode};
use super::link;
use super::manual_sa::{self, ManualSaError, Mark};

/// One turn of the control loop. A block of sequence numbers lasts longer at any rate that a worker reaches.
const TURN: Duration = Duration::from_millis(20);
/// How often interfaces are looked for.
const LOOK: Duration = Duration::from_millis(100);
/// How often neighbours are asked for.
const ASK: Duration = Duration::from_secs(1);
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
    /// The SAs.
    #[error(transparent)]
    Sa(#[from] ManualSaError),
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

struct Control<'a> {
    config: &'a HostConfig,
    engine: Arc<dyn Engine>,
    sas: SaTable,
    marks: Vec<Mark>,
    counters: Vec<Arc<Counters>>,
    all: Latencies,
    interval: Latencies,
    kernel: Vec<KernelDrops>,
    xdp: Vec<(String, guestseal_xdp::Counters)>,
    next_hops: Vec<Option<MacAddress>>,
}

/// Runs until `stop` is set. Gives the totals.
///
/// # Errors
/// See [`RunError`].
pub fn run(config: &HostConfig, options: &RunOptions, stop: &AtomicBool) -> Result<Totals, RunError> {
    let chosen = choose(config.aead)?;
    for error in &chosen.passed_over {
        match error {
            EngineError::WrongAnswer { .. } => tracing::warn!("{}", chain(error)),
            _ => tracing::debug!("{}", chain(error)),
        }
    }
    let engine = chosen.engine;
    let manual = manual_sa::prepare(config, &*engine)?;
    let mut control = Control {
        config,
        engine,
        sas: manual.table,
        marks: manual.marks,
        counters: config.workers.iter().map(|_| Arc::default()).collect(),
        all: Latencies::default(),
        interval: Latencies::default(),
        kernel: Vec::new(),
        xdp: Vec::new(),
        next_hops: vec![None; config.policy.hosts.len()],
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
    let frames = control.serve(manual.owned, options, stop, log)?;
    Ok(control.totals(frames))
}

impl Control<'_> {
    fn serve(
        &mut self,
        owned: Vec<Owned>,
        options: &RunOptions,
        stop: &AtomicBool,
        mut log: Option<Log<'_, BufWriter<File>>>,
    ) -> Result<Frames, RunError> {
        let begin = Instant::now();
        let start = |control: &Self, owned| {
            DataPlane::start(
                control.config,
                &control.engine,
                &control.sas,
                owned,
                &control.counters,
            )
        };
        let mut plane = start(self, owned).map_err(|(error, _)| error)?;
        for line in plane.describe() {
            tracing::info!("{line}");
        }
        tracing::info!("AEAD engine: {}", self.engine.describe());
        if let Some(path) = &options.ready_file {
            std::fs::write(path, "ready\n").map_err(|source| RunError::File {
                path: path.clone(),
                source,
            })?;
        }
        tracing::info!(
            "ready: host {}, {} workers",
            self.config.policy.hosts[self.config.host.index()].name,
            self.config.workers.len()
        );
        let (mut looked, mut asked, mut logged) = (begin, begin - ASK, begin);
        while !stop.load(Ordering::Acquire) {
            std::thread::sleep(TURN);
            self.tend_marks();
            self.collect(&mut plane);
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if !plane.has_uplink() {
                    tracing::error!(
                        "uplink {} is gone: waiting for it, guest ports stay closed",
                        self.config.uplink
                    );
                    match self.rebuild(plane, stop) {
                        Ok(again) => plane = again,
                        Err(frames) => return Ok(frames),
                    }
                    tracing::info!("uplink {} is back", self.config.uplink);
                }
                for news in plane.follow_guest_ports(self.config, &self.sas, &self.next_hops) {
                    tracing::warn!("{news}");
                }
            }
            if asked.elapsed() >= ASK {
                asked = Instant::now();
                self.follow_neighbours(&plane);
            }
            if logged.elapsed() >= INTERVAL {
                self.write_interval(&mut log, logged.duration_since(begin), logged.elapsed());
                logged = Instant::now();
            }
        }
        let frames = self.take_apart(plane, true).0;
        self.write_interval(&mut log, logged.duration_since(begin), logged.elapsed());
        Ok(frames)
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

    fn collect(&mut self, plane: &mut DataPlane) {
        for collector in plane.collectors() {
            collector.ask();
            if let Some(latencies) = collector.collect() {
                self.interval.merge(&latencies);
                self.all.merge(&latencies);
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

    /// Finds the MACs of the peers that tunnel-mode SAs go to.
    fn follow_neighbours(&mut self, plane: &DataPlane) {
        let peers: Vec<(usize, IpAddr)> = self
            .config
            .sas
            .iter()
            .filter(|sa| sa.mode == SaMode::Tunnel)
            .filter_map(|sa| {
                let addresses = &self.config.policy.hosts[sa.peer.index()].addresses;
                let address = addresses
                    .iter()
                    .find(|address| address.is_ipv6() == sa.over_ip6)?;
                Some((sa.peer.index(), *address))
            })
            .collect();
        if peers.is_empty() {
            return;
        }
        let known = match link::neighbours(plane.uplink.index) {
            Ok(known) => known,
            Err(error) => return tracing::error!("the kernel's neighbours cannot be read: {error}"),
        };
        let mut next_hops = self.next_hops.clone();
        for (host, address) in peers {
            match known.iter().find(|(neighbour, _)| *neighbour == address) {
                Some((_, mac)) => next_hops[host] = Some(*mac),
                None => link::solicit(address),
            }
        }
        if next_hops != self.next_hops {
            self.next_hops = next_hops;
            plane.publish(self.config, &self.sas, &self.next_hops);
        }
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
            std::thread::sleep(LOOK);
            self.tend_marks();
            if link::index_of(&self.config.uplink).is_none() {
                continue;
            }
            match DataPlane::start(self.config, &self.engine, &self.sas, owned, &self.counters) {
                Ok(plane) => {
                    plane.publish(self.config, &self.sas, &self.next_hops);
                    return Ok(plane);
                }
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
            recorders,
            exchanged,
            frames,
            kernel,
            xdp,
        } = plane.stop(detach);
        self.xdp.extend(xdp);
        for latencies in recorders
            .iter()
            .map(|recorder| &recorder.current)
            .chain(&exchanged)
        {
            self.interval.merge(latencies);
            self.all.merge(latencies);
        }
        self.kernel.extend(kernel);
        (frames, owned)
    }

    fn totals(&self, frames: Frames) -> Totals {
        let mut totals = Totals {
            frames,
            ..Totals::default()
        };
        self.counters.iter().for_each(|counters| totals.add(counters));
        self.kernel.iter().for_each(|drops| totals.add_kernel(*drops));
        for (interface, counters) in &self.xdp {
            totals.add_xdp(interface.clone(), *counters);
        }
        totals.set_latency(&self.all);
        totals
    }
}
