//! Hosts, guests and a wire, and what the tests do with them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use guestseal_perf::actor;
use guestseal_perf::capture::{Capture, esp_of};
use guestseal_perf::deployment::{Deployment, Host, imbalance, number};
use guestseal_perf::namespaces::{GuestSpec, Namespace, Topology};
use guestseal_perf::process::{PerfError, Running, cpus, wait_for};
use serde_json::Value;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

pub(crate) const POLICY: &str = include_str!("../../../rules/examples/demo/policy.yaml");
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// In the order in which they must go: programs before namespaces, namespaces before files.
pub(crate) struct Net {
    pub(crate) hosts: Vec<Option<Host>>,
    pub(crate) topology: Topology,
    pub(crate) deployment: Deployment,
}

/// `guestseal-perf`, for the parts that guests play.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_guestseal-perf"))
}

/// Fails a test with a reason.
pub(crate) fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(why().into()) }
}

/// The part of a host's file that has a worker for each queue.
fn workers(host: usize, queues: u32) -> Result<String> {
    let cpus = cpus()?;
    let worker = |queue: u32| {
        let cpu = cpus[(host + queue as usize) % cpus.len()];
        format!("{{queue: {queue}, cpu: {cpu}}}")
    };
    let workers: Vec<String> = (0..queues).map(worker).collect();
    Ok(format!("workers: [{}]", workers.join(", ")))
}

impl Net {
    /// The demo's hosts and guests, red in tunnel mode; nothing runs yet.
    pub(crate) fn new(name: &str, queues: u32) -> Result<Self> {
        let deployment = Deployment::new(name, POLICY, &["red"])?;
        let guests = deployment.guests(queues);
        Self::of(deployment, queues, &guests)
    }

    /// The hosts and guests of a policy; nothing runs yet.
    pub(crate) fn of_policy(name: &str, policy: &str) -> Result<Self> {
        let deployment = Deployment::new(name, policy, &[])?;
        let guests = deployment.guests(1);
        Self::of(deployment, 1, &guests)
    }

    /// The hosts of a deployment and these guests; nothing runs yet.
    pub(crate) fn of(deployment: Deployment, queues: u32, guests: &[GuestSpec]) -> Result<Self> {
        let hosts = deployment.policy.hosts.len();
        Ok(Self {
            hosts: (0..hosts).map(|_| None).collect(),
            topology: Topology::new(hosts, queues, guests)?,
            deployment,
        })
    }

    /// Writes the files of all hosts, and lets guestseal run on each.
    pub(crate) fn start_all(mut self, queues: u32) -> Result<Self> {
        for host in 0..self.hosts.len() {
            self.write_host(host, queues)?;
            self.start(host, &[])?;
        }
        Ok(self)
    }

    /// The same, and guestseal runs on both hosts with a worker for each queue.
    pub(crate) fn running(name: &str, queues: u32) -> Result<Self> {
        Self::new(name, queues)?.start_all(queues)
    }

    pub(crate) fn write_host(&self, host: usize, queues: u32) -> Result<PathBuf> {
        Ok(self.deployment.write_host(host, &workers(host, queues)?)?)
    }

    /// The file of a host with one queue, and more of it.
    pub(crate) fn write_host_with(&self, host: usize, extra: &str) -> Result<PathBuf> {
        let workers = workers(host, 1)?;
        Ok(self.deployment.write_host(host, &format!("{workers}\n{extra}"))?)
    }

    /// The host's file, to make sessions; `sessions` is further YAML of that part.
    pub(crate) fn write_session_host(&self, host: usize, sessions: &str) -> Result<PathBuf> {
        self.write_session_host_of(host, 1, sessions)
    }

    /// The same with a worker for each queue.
    pub(crate) fn write_session_host_of(&self, host: usize, queues: u32, sessions: &str) -> Result<PathBuf> {
        Ok(self
            .deployment
            .write_session_host(host, sessions, &workers(host, queues)?)?)
    }

    pub(crate) fn start(&mut self, host: usize, arguments: &[&str]) -> Result<()> {
        let started = self
            .deployment
            .start(host, &self.topology.hosts[host], arguments)?;
        self.hosts[host] = Some(started);
        Ok(())
    }

    pub(crate) fn host(&mut self, host: usize) -> &mut Host {
        self.hosts[host].as_mut().expect("a host that was started")
    }

    /// Stops guestseal in order; its totals, which must balance.
    pub(crate) fn stop(&mut self, host: usize) -> Result<Value> {
        let mut stopping = self.hosts[host].take().expect("a host that was started");
        let totals = stopping.stop()?;
        match imbalance(&totals) {
            None => Ok(totals),
            Some(what) => Err(what.into()),
        }
    }

    pub(crate) fn guest(&self, id: &str) -> &Namespace {
        &self.topology.guest(id).namespace
    }

    /// Pings until five of five come back, so that a first packet lost to neighbour discovery is no failure.
    pub(crate) fn pings(&self, from: &str, to: &str) -> Result<()> {
        let line = format!("ping -c 5 -i 0.05 -W 1 -q {to}");
        wait_for(&format!("{from} to reach {to}"), PATIENCE, || {
            Ok(self.guest(from).run(&line).ok())
        })?;
        Ok(())
    }

    /// Pings in both directions and families between the guests of each tenant of the flat policy.
    pub(crate) fn pings_of_both_tenants(&self) -> Result<()> {
        for (from, to) in [
            ("blue-1", "10.1.0.2"),
            ("blue-2", "fd00:1::1"),
            ("red-1", "10.2.0.2"),
            ("red-2", "fd00:2::1"),
        ] {
            self.pings(from, to)?;
        }
        Ok(())
    }

    /// Packets that the guest's own interface has sent.
    pub(crate) fn sent_by(&self, guest: &str) -> u64 {
        let said = self
            .guest(guest)
            .run("cat /sys/class/net/eth0/statistics/tx_packets");
        said.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Packets that a host has dropped for a reason so far.
    pub(crate) fn dropped(&self, host: usize, reason: &str) -> std::result::Result<u64, PerfError> {
        self.counter(host, &format!("/outcomes/dropped/{reason}"))
    }

    /// What a host has counted so far, by its path.
    pub(crate) fn counter(&self, host: usize, path: &str) -> std::result::Result<u64, PerfError> {
        let said = self.ctl(host, &["--json", "counters"])?;
        let counters = serde_json::from_str(&said).map_err(|error| PerfError::Malformed {
            what: "counters".into(),
            why: error.to_string(),
        })?;
        Ok(number(&counters, path))
    }

    /// Waits until the guest has sent so many more.
    pub(crate) fn wait_for_sent(&self, guest: &str, more: u64) -> Result<()> {
        let target = self.sent_by(guest) + more;
        wait_for(&format!("{guest} to send"), PATIENCE, || {
            Ok((self.sent_by(guest) >= target).then_some(()))
        })?;
        Ok(())
    }

    /// Starts datagrams from blue-1 to blue-2.
    pub(crate) fn flood(&self, marker: &str, rate: u32) -> Result<Running> {
        let rate = rate.to_string();
        let words = ["flood", "10.1.0.2", marker, "--rate", &rate];
        Ok(actor::serve(
            program(),
            self.guest("blue-1"),
            self.deployment.directory(),
            &words,
        )?)
    }

    pub(crate) fn capture(&self) -> Result<Capture> {
        Ok(Capture::start(
            &self.topology.wire,
            "host0",
            self.deployment.directory(),
        )?)
    }

    pub(crate) fn serve(&self, namespace: &Namespace, words: &[&str]) -> Result<Running> {
        Ok(actor::serve(
            program(),
            namespace,
            self.deployment.directory(),
            words,
        )?)
    }

    pub(crate) fn play(
        &self,
        namespace: &Namespace,
        words: &[&str],
    ) -> std::result::Result<String, PerfError> {
        actor::play_in(program(), namespace, words)
    }

    /// Waits until guestseal on a host has said something.
    pub(crate) fn wait_for_word(&mut self, host: usize, word: &str) -> Result<()> {
        let process = &mut self.host(host).process;
        wait_for(word, PATIENCE, || {
            process.check_runs()?;
            Ok(process.errors().contains(word).then_some(()))
        })?;
        Ok(())
    }

    /// What `guestseal ctl` says of a host.
    pub(crate) fn ctl(&self, host: usize, words: &[&str]) -> std::result::Result<String, PerfError> {
        self.deployment.ctl(host, words)
    }

    /// What a host says of itself at this moment.
    pub(crate) fn status(&self, host: usize) -> std::result::Result<Value, PerfError> {
        let said = self.ctl(host, &["--json", "status"])?;
        serde_json::from_str(&said).map_err(|error| PerfError::Malformed {
            what: "status".into(),
            why: error.to_string(),
        })
    }

    /// Tells a host of a tag that sends a guest to quarantine.
    pub(crate) fn tag(&self, host: usize, guest: &str, name: &str) -> Result<()> {
        let words = ["--service", "av", "--name", name, "--severity", "90"];
        self.ctl(host, &[&["tag", "set", guest], &words[..]].concat())?;
        Ok(())
    }

    /// Tells a host that all such tags of a guest are cleared.
    pub(crate) fn clear(&self, host: usize, guest: &str) -> Result<()> {
        self.ctl(host, &["tag", "clear", guest, "--service", "av", "--name", "*"])?;
        Ok(())
    }

    /// The SPI of an SA.
    pub(crate) fn spi(&self, name: &str) -> u32 {
        self.deployment
            .sas
            .iter()
            .find(|sa| sa.name == name)
            .expect("an SA of the deployment")
            .spi
    }
}

/// Frames of any SA in a capture.
pub(crate) fn esp_packets(frames: &[Vec<u8>]) -> usize {
    frames.iter().filter(|frame| esp_of(frame).is_some()).count()
}

/// Frames of an SA in a capture.
pub(crate) fn of_spi(frames: &[Vec<u8>], spi: u32) -> usize {
    frames
        .iter()
        .filter(|frame| esp_of(frame).is_some_and(|(found, _)| found == spi))
        .count()
}

/// Waits until so many more frames of an SA were captured.
pub(crate) fn wait_for_spi(capture: &Capture, spi: u32, more: usize) -> Result<()> {
    let (mut follower, mut found) = (capture.follow()?, 0);
    wait_for("sealed packets on the wire", PATIENCE, || {
        found += of_spi(&follower.more()?, spi);
        Ok((found >= more).then_some(()))
    })?;
    Ok(())
}
