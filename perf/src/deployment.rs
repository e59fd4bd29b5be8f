//! Guestseal on the hosts of a topology: its files, its processes, its totals.

use std::fmt::Write;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use guestseal::control::config::{HostConfig, Overrides};
use guestseal::keys::high_water::HighWater;
use guestseal::keys::keymat::Keymat;
use guestseal_rules::classify::{Action, Protection};
use guestseal_rules::load::{Source, load_policy};
use guestseal_rules::model::{NetworkIndex, Policy, Suite};
use rustix::process::Signal;
use serde_json::Value;

use crate::namespaces::{BpfMount, GuestSpec, Namespace};
use crate::process::{PerfError, Running, run, wait_for};

/// A manual SA from one host to another, as both have it.
#[derive(Clone, Debug)]
pub struct SaSpec {
    /// Its name.
    pub name: String,
    /// Its SPI.
    pub spi: u32,
    /// The rule key that it serves.
    pub key: String,
    /// The sealing host's number.
    pub from: usize,
    /// The opening host's number.
    pub to: usize,
    /// The logical network.
    pub network: String,
    /// Whether it only authenticates.
    pub authenticate: bool,
    /// Tunnel mode instead of transport mode.
    pub tunnel: bool,
    /// KEYMAT, as hexadecimal digits.
    pub keymat: String,
    /// Further lines of YAML, such as `esn: false`.
    pub extra: String,
}

/// The directory of one run: policy, host files, KEYMAT, logs. Removed when dropped.
#[derive(Debug)]
pub struct Deployment {
    /// The policy.
    pub policy: Policy,
    /// Every SA.
    pub sas: Vec<SaSpec>,
    directory: PathBuf,
    bpf: BpfMount,
    /// The policy's text.
    text: String,
}

/// The program under test: `GUESTSEAL_BIN`, or guestseal as `guestseal-perf` has it in itself, so that what is measured is never an older
/// one; for other programs the one beside them.
#[must_use]
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("GUESTSEAL_BIN") {
        return path.into();
    }
    let own = std::env::current_exe().unwrap_or_default();
    if own.file_name() == Some("guestseal-perf".as_ref())
        && let Some(link) = by_its_name(&own)
    {
        return link;
    }
    // Test programs are in deps/, one level below.
    let beside = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(GUESTSEAL));
    beside
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| GUESTSEAL.into())
}

/// `guestseal-perf` is guestseal when it is called by that name.
pub const GUESTSEAL: &str = "guestseal";

/// A link to this program by that name, in a directory beside it that stays; `None` if it cannot be made.
fn by_its_name(own: &Path) -> Option<PathBuf> {
    let link = own.with_file_name("guestseal-perf-as").join(GUESTSEAL);
    std::fs::create_dir_all(link.parent()?).ok()?;
    // Relative, so that it holds wherever the directory comes to stand.
    let target = Path::new("..").join(own.file_name()?);
    if let Err(error) = std::os::unix::fs::symlink(target, &link)
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return None;
    }
    Some(link)
}

/// Random bytes as hexadecimal digits.
///
/// # Errors
/// If the system has none.
pub fn random_hex(bytes: usize) -> Result<String, PerfError> {
    let mut random = vec![0; bytes];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .map_err(PerfError::io("/dev/urandom"))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes a file that only its owner may read.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), PerfError> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(PerfError::io(path.display().to_string()))
}

impl Deployment {
    /// Writes the policy, and for every key that a rule seals with SAs of fresh KEYMAT in both directions between every
    /// two hosts; `tunnel` names the networks that go in tunnel mode.
    ///
    /// # Errors
    /// If the policy is wrong or files cannot be written.
    pub fn new(name: &str, policy: &str, tunnel: &[&str]) -> Result<Self, PerfError> {
        let directory = std::env::temp_dir().join(format!("guestseal-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).map_err(PerfError::io(directory.display().to_string()))?;
        let bpf = BpfMount::new(directory.join("bpf"))?;
        let text = policy.to_owned();
        let policy = load_policy(&[Source {
            name: "policy.yaml".into(),
            text: text.clone(),
        }])
        .map_err(|errors| PerfError::Malformed {
            what: "policy".into(),
            why: errors.to_string(),
        })?;
        let mut deployment = Self {
            sas: Vec::new(),
            directory,
            policy,
            bpf,
            text: text.clone(),
        };
        deployment.write("policy.yaml", &text)?;
        deployment.deal_sas(tunnel)?;
        Ok(deployment)
    }

    /// Like [`Self::new`], but the hosts make sessions: an identity for each, its public key in the policy, and generation 1
    /// of every key in a directory of each host.
    ///
    /// # Errors
    /// If the policy is wrong or files cannot be written.
    pub fn with_sessions(name: &str, policy: &str) -> Result<Self, PerfError> {
        let mut deployment = Self::new(name, policy, &[])?;
        deployment.sas.clear();
        let names: Vec<String> = deployment
            .policy
            .hosts
            .iter()
            .map(|host| host.name.clone())
            .collect();
        let mut text = deployment.text.clone();
        for name in &names {
            let identity = deployment.directory.join(format!("{name}.identity"));
            let public = run(Command::new(program()).args(["key", "generate"]).arg(&identity))?;
            let before = format!("{{name: {name}, ");
            text = text.replacen(
                &before,
                &format!("{before}public-key: \"{}\", ", public.trim()),
                1,
            );
        }
        deployment.write("policy.yaml", &text)?;
        deployment.text = text;
        for key in deployment
            .policy
            .keys
            .iter()
            .map(|key| key.id.clone())
            .collect::<Vec<_>>()
        {
            let secret = random_hex(32)?;
            for host in 0..names.len() {
                deployment.give_key(host, &key, 1, &secret)?;
            }
        }
        Ok(deployment)
    }

    /// Gives a host a generation of a key; one that runs takes it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn give_key(&self, host: usize, key: &str, generation: u32, secret: &str) -> Result<(), PerfError> {
        let directory = self.keys_of(host);
        std::fs::create_dir_all(&directory).map_err(PerfError::io(directory.display().to_string()))?;
        // Whole or not at all, as a host that runs looks at it.
        let name = format!("{key}.{generation}");
        let written = self.write(&format!("{name}.new"), secret)?;
        let place = directory.join(name);
        std::fs::rename(&written, &place).map_err(PerfError::io(place.display().to_string()))
    }

    /// Takes a generation of a key from a host.
    ///
    /// # Errors
    /// If it is not there.
    pub fn take_key(&self, host: usize, key: &str, generation: u32) -> Result<(), PerfError> {
        let path = self.keys_of(host).join(format!("{key}.{generation}"));
        std::fs::remove_file(&path).map_err(PerfError::io(path.display().to_string()))
    }

    fn keys_of(&self, host: usize) -> PathBuf {
        self.directory
            .join(format!("{}.keys", self.policy.hosts[host].name))
    }

    /// Writes the file of a host that makes sessions; `sessions` and `extra` are further YAML.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_session_host(
        &self,
        number: usize,
        sessions: &str,
        extra: &str,
    ) -> Result<PathBuf, PerfError> {
        let name = &self.policy.hosts[number].name;
        let text = format!(
            "host: {name}\npolicy: [policy.yaml]\nuplink: {{interface: uplink}}\nstate-directory: state-{name}\n\
             pin-directory: {}\n{extra}\nsessions:\n  identity: {name}.identity\n  keys: {{directory: {name}.keys}}\n{sessions}",
            self.bpf.path().display()
        );
        self.write(&format!("{name}.yaml"), &text)
    }

    /// What a host that runs says of itself.
    ///
    /// # Errors
    /// If it has not said anything.
    pub fn status(&self, host: usize) -> Result<Value, PerfError> {
        let path = self
            .directory
            .join(format!("{}.yaml", self.policy.hosts[host].name));
        let text = run(Command::new(program())
            .args(["status", "--json", "--config"])
            .arg(path))?;
        serde_json::from_str(&text).map_err(|error| PerfError::Malformed {
            what: "status".into(),
            why: error.to_string(),
        })
    }

    /// What `guestseal ctl` says of a host that runs.
    ///
    /// # Errors
    /// If it refuses.
    pub fn ctl(&self, host: usize, words: &[&str]) -> Result<String, PerfError> {
        let name = &self.policy.hosts[host].name;
        let mut command = Command::new(program());
        command
            .arg("ctl")
            .arg("--config")
            .arg(self.directory.join(format!("{name}.yaml")));
        run(command.args(words))
    }

    fn deal_sas(&mut self, tunnel: &[&str]) -> Result<(), PerfError> {
        let hosts = self.policy.hosts.len();
        let mut sealing: Vec<(usize, Protection, NetworkIndex)> = Vec::new();
        for rule in &self.policy.rules {
            if let Action::Seal { protection, key } = rule.action {
                // A rule seals in every network whose guests it can mean; the demo's keys belong to one network each.
                for number in 0..self.policy.networks.len() {
                    let network = NetworkIndex(number as u16);
                    let named = self.policy.keys[key.index()]
                        .id
                        .starts_with(&self.policy.networks[number].name);
                    if named && !sealing.contains(&(key.index(), protection, network)) {
                        sealing.push((key.index(), protection, network));
                    }
                }
            }
        }
        let mut spi = 0x1000;
        for (key, protection, network) in sealing {
            let network = self.policy.networks[network.index()].name.clone();
            let key = &self.policy.keys[key];
            let length = match key.suite {
                Suite::Aes256Gcm => 36,
                Suite::Aes128Gcm => 20,
            };
            for (from, to) in (0..hosts)
                .flat_map(|from| (0..hosts).map(move |to| (from, to)))
                .filter(|(a, b)| a != b)
            {
                spi += 1;
                self.sas.push(SaSpec {
                    name: format!("{}-h{}-h{}", key.id, from + 1, to + 1),
                    spi,
                    key: key.id.clone(),
                    from,
                    to,
                    tunnel: tunnel.contains(&network.as_str()),
                    network: network.clone(),
                    authenticate: protection == Protection::Authenticate,
                    keymat: random_hex(length)?,
                    extra: String::new(),
                });
            }
        }
        Ok(())
    }

    /// The guests that the policy declares, for [`crate::namespaces::Topology`].
    #[must_use]
    pub fn guests(&self, queues: u32) -> Vec<GuestSpec> {
        let spec = |port: &guestseal_rules::model::GuestPort| {
            let guest = &self.policy.guests[port.guest.index()];
            GuestSpec {
                id: guest.id.clone(),
                host: guest.host.index(),
                interface: port.interface.clone(),
                mac: port.mac.map(|byte| format!("{byte:02x}")).join(":"),
                addresses: port
                    .addresses
                    .iter()
                    .map(|address| format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 }))
                    .collect(),
                queues,
            }
        };
        self.policy.ports.iter().map(spec).collect()
    }

    /// Writes the host's file and the KEYMAT that it may have; `extra` is further YAML. Makes the marks of new SAs.
    ///
    /// # Errors
    /// If files cannot be written.
    pub fn write_host(&self, number: usize, extra: &str) -> Result<PathBuf, PerfError> {
        let name = &self.policy.hosts[number].name;
        let mut text = format!(
            "host: {name}\npolicy: [policy.yaml]\nuplink: {{interface: uplink}}\nstate-directory: state-{name}\n\
             pin-directory: {}\n{extra}\n",
            self.bpf.path().display()
        );
        let mut sas = self
            .sas
            .iter()
            .filter(|sa| sa.from == number || sa.to == number)
            .peekable();
        if sas.peek().is_some() {
            text += "security-associations:\n";
        }
        for sa in sas {
            let file = format!("{}.hex", sa.name);
            self.write(&file, &sa.keymat)?;
            let (direction, peer) = if sa.from == number {
                ("out", sa.to)
            } else {
                ("in", sa.from)
            };
            let protection = if sa.authenticate {
                "authenticate"
            } else {
                "encrypt"
            };
            let mode = if sa.tunnel { "tunnel" } else { "transport" };
            let _ = writeln!(
                text,
                "  - {{name: {}, direction: {direction}, spi: {:#x}, key: {}, protection: {protection}, network: {}, \
                 peer: {}, mode: {mode}, keymat: {{file: {file}}}{}{}}}",
                sa.name,
                sa.spi,
                sa.key,
                sa.network,
                self.policy.hosts[peer].name,
                if sa.extra.is_empty() { "" } else { ", " },
                sa.extra
            );
        }
        let path = self.write(&format!("{name}.yaml"), &text)?;
        run(Command::new(program())
            .args(["sa", "init", "--config"])
            .arg(&path))?;
        Ok(path)
    }

    /// Lets an SA of a host, which does not run, go on at a sequence number, as if the ones before were used.
    ///
    /// # Errors
    /// If there is no such SA or its mark cannot be written.
    pub fn set_mark(&self, host: usize, name: &str, mark: u64) -> Result<(), PerfError> {
        let wrong = |error: &dyn std::error::Error| PerfError::Malformed {
            what: format!("the mark of {name}"),
            why: guestseal::control::supervise::chain(error),
        };
        let path = self
            .directory
            .join(format!("{}.yaml", self.policy.hosts[host].name));
        let config = HostConfig::load(&path, &Overrides::default()).map_err(|error| wrong(&error))?;
        let sa = config.sas.iter().find(|sa| sa.name == name);
        let sa = sa.ok_or_else(|| PerfError::Wrong(format!("there is no SA {name}")))?;
        let keymat = Keymat::read(&sa.keymat, sa.suite).map_err(|error| wrong(&error))?;
        HighWater::open(&config.state_directory, name, sa.spi, keymat.fingerprint())
            .and_then(|mut found| found.reserve(mark))
            .map_err(|error| wrong(&error))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, PerfError> {
        let path = self.directory.join(name);
        write_private(&path, text)?;
        Ok(path)
    }

    /// Where the run's files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts guestseal on a host; returns when traffic flows.
    ///
    /// # Errors
    /// If it ends instead.
    pub fn start(&self, number: usize, host: &Namespace, arguments: &[&str]) -> Result<Host, PerfError> {
        self.start_by(number, host.command(program()), arguments)
    }

    /// The same by a command that becomes guestseal.
    ///
    /// # Errors
    /// If it ends instead.
    pub fn start_by(
        &self,
        number: usize,
        mut command: Command,
        arguments: &[&str],
    ) -> Result<Host, PerfError> {
        let name = &self.policy.hosts[number].name;
        let path = |kind: &str| self.directory.join(format!("{name}.{kind}"));
        let (ready, totals) = (path("ready"), path("totals.json"));
        for old in [&ready, &totals] {
            let _ = std::fs::remove_file(old);
        }
        command
            .arg("run")
            .arg("--config")
            .arg(path("yaml"))
            .arg("--ready-file")
            .arg(&ready);
        command
            .arg("--totals-json")
            .arg(&totals)
            .arg("--histogram-log")
            .arg(path("hlog"))
            .args(arguments);
        let mut process = Running::start(&format!("guestseal-{name}"), &self.directory, &mut command)?;
        wait_for("guestseal to be ready", Duration::from_secs(30), || {
            process.check_runs()?;
            Ok(ready.exists().then_some(()))
        })?;
        Ok(Host { process, totals })
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        // The mount is below the directory: it goes first, lazily, and its mount point stays empty.
        let _ = run(Command::new("umount").arg("--lazy").arg(self.bpf.path()));
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A guestseal that runs.
#[derive(Debug)]
pub struct Host {
    /// The process.
    pub process: Running,
    totals: PathBuf,
}

impl Host {
    /// Stops it by SIGTERM; gives its totals.
    ///
    /// # Errors
    /// If it ends badly.
    pub fn stop(&mut self) -> Result<Value, PerfError> {
        self.process.signal(Signal::TERM);
        self.process.finish(Duration::from_secs(20))?;
        let text = std::fs::read(&self.totals).map_err(PerfError::io(self.totals.display().to_string()))?;
        serde_json::from_slice(&text).map_err(|error| PerfError::Malformed {
            what: "totals".into(),
            why: error.to_string(),
        })
    }
}

/// A number in totals, by its path; 0 if it is not there.
#[must_use]
pub fn number(totals: &Value, path: &str) -> u64 {
    totals.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

/// What is wrong in the totals' sums: every packet has one outcome, every frame is in one place.
#[must_use]
pub fn imbalance(totals: &Value) -> Option<String> {
    let at = |path: &str| number(totals, path);
    let (came, ended) = (at("/received") + at("/copies"), at("/ended"));
    let in_flight = totals
        .pointer("/in_flight")
        .and_then(Value::as_i64)
        .unwrap_or(i64::MAX);
    let frames = ["free", "receive", "transmit", "handoff"].map(|place| at(&format!("/frames/{place}")));
    if came as i64 != ended as i64 + in_flight || in_flight != 0 {
        Some(format!(
            "{came} packets came, {ended} ended, {in_flight} are in flight"
        ))
    } else if frames.iter().sum::<u64>() != at("/frames/total") {
        Some(format!(
            "{} frames, of which {frames:?} are free, receiving, transmitting, between workers",
            at("/frames/total")
        ))
    } else {
        None
    }
}
