//! One host's configuration: host.yaml.

mod texts;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guestseal_rules::classify::Protection;
use guestseal_rules::load::{FileError, FileErrors, Source, load_policy_after, port_range, protocol_number};
use guestseal_rules::model::{Cidr, GuestIndex, HostIndex, KeyIndex, NetworkIndex, Policy, PortIndex, Suite};
use guestseal_xdp::{ModeChoice, XdpMode};
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::aead::choice::Choice;
use crate::path::endpoints::Endpoints;
use crate::path::flood::Floods;
use crate::port::umem::{HugePages, Shape};
use crate::port::xsk::ZeroCopy;
use crate::sa::selector::Selector;
use crate::sa::spi::Spi;

use super::api::access::{People, group_number};
use super::api::{ApiConfig, TlsConfig};
use super::bindings::Interface;
use super::sessions::config::{RawSessions, SessionConfig};
use super::shared::config::{EtcdConfig, RawEtcd};
use super::sources;
use texts::Texts;
pub use texts::{Handed, Origin};

/// Where pinned XDP programs are kept.
pub const PIN_DIRECTORY: &str = "/run/guestseal/bpf";

/// The state directory, if the file does not say another one.
const STATE: &str = "state";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something is wrong in a file.
    #[error(transparent)]
    File(#[from] FileErrors),
    /// The policy is in etcd, and this host has not had it yet.
    #[error(
        "{}: the policy is in etcd, and this host has none in {} yet: `guestseal policy pull --config {}`, or a start that reaches etcd, takes it",
        path.display(),
        kept.display(),
        path.display()
    )]
    NoPolicy {
        /// host.yaml.
        path: PathBuf,
        /// Where it would be.
        kept: PathBuf,
    },
}

impl From<FileError> for ConfigError {
    fn from(error: FileError) -> Self {
        ConfigError::File(FileErrors(vec![error]))
    }
}

/// A worker's queue of the uplink, and its CPU.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerConfig {
    /// Queue of the uplink.
    pub queue: u32,
    /// CPU to be pinned to.
    pub cpu: usize,
}

/// Which way a manual SA goes.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SaDirection {
    /// This host seals.
    Out,
    /// This host opens.
    In,
}

/// What ESP wraps.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SaMode {
    /// The payload of the guest's IP packet.
    #[default]
    Transport,
    /// The whole IP packet, between the hosts' addresses.
    Tunnel,
}

/// A manual SA, with its names resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaConfig {
    /// Its name.
    pub name: String,
    /// Which way.
    pub direction: SaDirection,
    /// SPI.
    pub spi: Spi,
    /// The rule key that it serves.
    pub key: KeyIndex,
    /// The key's suite.
    pub suite: Suite,
    /// Encrypted or authenticated only.
    pub protection: Protection,
    /// The logical network of what it carries.
    pub network: NetworkIndex,
    /// The other host.
    pub peer: HostIndex,
    /// What ESP wraps.
    pub mode: SaMode,
    /// Whether tunnel mode, or an overlay, goes between IPv6 addresses.
    pub over_ip6: bool,
    /// Whether an overlay's ESP goes in UDP (RFC 3948).
    pub udp_encapsulation: bool,
    /// The file of its KEYMAT.
    pub keymat: PathBuf,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Size of the replay window.
    pub replay_window: u32,
    /// The worker that owns it, if the file says.
    pub worker: Option<u16>,
    /// What it may carry.
    pub selector: Selector,
}

/// One host's configuration.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Where it comes from.
    pub origin: Origin,
    /// The policy.
    pub policy: Arc<Policy>,
    /// This host.
    pub host: HostIndex,
    /// Guests that are not where the policy says.
    pub elsewhere: BTreeMap<GuestIndex, HostIndex>,
    /// Ports that go by other interfaces than the policy says.
    pub bound: BTreeMap<PortIndex, Interface>,
    /// The uplink's interface.
    pub uplink: String,
    /// The workers.
    pub workers: Vec<WorkerConfig>,
    /// Frame size, number of frames, huge pages. The ring size follows from the number of frames.
    pub umem: Shape,
    /// Long frames for packets that a frame has no room for; if it is not said, what the MTUs of the interfaces want.
    pub long_frames: Option<u32>,
    /// XDP mode wanted.
    pub xdp_mode: ModeChoice,
    /// Zero-copy wanted.
    pub zero_copy: ZeroCopy,
    /// Whether guests' packets come with room in front, to be sealed where they are.
    pub in_place: bool,
    /// Never sleep.
    pub busy_poll: bool,
    /// What guests leave to their cards and would be lost is turned off, and put back at the end.
    pub fix_offloads: bool,
    /// The AEAD engine wanted.
    pub aead: Choice,
    /// Where high-water marks are.
    pub state_directory: PathBuf,
    /// Where pinned XDP programs are.
    pub pin_directory: PathBuf,
    /// Where latency histograms are logged.
    pub histogram_log: Option<PathBuf>,
    /// The file of events that is followed.
    pub events: Option<PathBuf>,
    /// The services that report on guests.
    pub sources: Vec<sources::Source>,
    /// Broadcasts, multicasts and frames to unknown MACs that a guest port may have copied to other hosts in a second.
    pub group_rate: u32,
    /// How the control side is reached.
    pub api: ApiConfig,
    /// Manual SAs.
    pub sas: Vec<SaConfig>,
    /// How sessions are made, if they are.
    pub sessions: Option<SessionConfig>,
    /// How etcd is reached, if hosts share by it.
    pub etcd: Option<EtcdConfig>,
}

/// What the command line overrides.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The uplink's interface.
    pub uplink: Option<String>,
    /// The workers; empty leaves the file's.
    pub workers: Vec<WorkerConfig>,
    /// XDP mode.
    pub xdp_mode: Option<ModeChoice>,
    /// Zero-copy.
    pub zero_copy: Option<ZeroCopy>,
    /// Never sleep.
    pub busy_poll: bool,
    /// What guests leave to their cards and would be lost is turned off, and put back at the end.
    pub fix_offloads: bool,
    /// AEAD engine.
    pub aead: Option<Choice>,
    /// Histogram log.
    pub histogram_log: Option<PathBuf>,
    /// File of events.
    pub events: Option<PathBuf>,
    /// Pin directory.
    pub pin_directory: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawHost {
    host: Spanned<String>,
    #[serde(default)]
    policy: Vec<Spanned<String>>,
    #[serde(default)]
    uplink: Option<RawUplink>,
    #[serde(default)]
    workers: Vec<WorkerConfig>,
    #[serde(default)]
    umem: RawUmem,
    #[serde(default)]
    xdp_mode: RawXdpMode,
    #[serde(default)]
    zero_copy: ZeroCopy,
    #[serde(default)]
    in_place: bool,
    #[serde(default)]
    busy_poll: bool,
    #[serde(default)]
    fix_offloads: bool,
    #[serde(default)]
    aead: Choice,
    #[serde(default)]
    state_directory: Option<PathBuf>,
    #[serde(default)]
    pin_directory: Option<PathBuf>,
    #[serde(default)]
    histogram_log: Option<PathBuf>,
    #[serde(default)]
    events: Option<PathBuf>,
    #[serde(default)]
    sources: Option<PathBuf>,
    #[serde(default)]
    group_rate: Option<u32>,
    #[serde(default)]
    api: Option<Spanned<RawApi>>,
    #[serde(default)]
    security_associations: Vec<RawSa>,
    #[serde(default)]
    sessions: Option<RawSessions>,
    #[serde(default)]
    etcd: Option<Spanned<RawEtcd>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawApi {
    #[serde(default)]
    socket: Option<PathBuf>,
    /// Octal digits.
    #[serde(default)]
    mode: Option<String>,
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    read: Vec<String>,
    #[serde(default)]
    change: Vec<String>,
    #[serde(default)]
    tls: Option<RawTls>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    listen: SocketAddr,
    certificate: PathBuf,
    key: PathBuf,
    clients: PathBuf,
    #[serde(default)]
    read: BTreeSet<String>,
    #[serde(default)]
    change: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUplink {
    interface: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawUmem {
    frame_size: u32,
    frames: u32,
    long_frames: Option<u32>,
    huge_pages: HugePages,
}

impl Default for RawUmem {
    fn default() -> Self {
        Self {
            frame_size: 2048,
            frames: 8192,
            long_frames: None,
            huge_pages: HugePages::Auto,
        }
    }
}

#[derive(Copy, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawXdpMode {
    #[default]
    Auto,
    Native,
    Generic,
}

#[derive(Copy, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawProtection {
    #[default]
    Encrypt,
    Authenticate,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawSa {
    name: Spanned<String>,
    direction: SaDirection,
    spi: Spanned<u32>,
    key: Spanned<String>,
    #[serde(default)]
    protection: RawProtection,
    network: Spanned<String>,
    peer: Spanned<String>,
    #[serde(default)]
    mode: SaMode,
    #[serde(default)]
    over_ip6: bool,
    #[serde(default)]
    udp_encapsulation: bool,
    keymat: RawKeymat,
    #[serde(default = "yes")]
    esn: bool,
    #[serde(default)]
    replay_window: Option<Spanned<u32>>,
    #[serde(default)]
    worker: Option<Spanned<u16>>,
    #[serde(default)]
    selector: RawSelector,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKeymat {
    file: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawSelector {
    #[serde(default)]
    local: Option<Spanned<String>>,
    #[serde(default)]
    remote: Option<Spanned<String>>,
    #[serde(default)]
    protocol: Option<Spanned<String>>,
    #[serde(default)]
    local_ports: Option<Spanned<String>>,
    #[serde(default)]
    remote_ports: Option<Spanned<String>>,
}

impl RawSelector {
    fn is_given(&self) -> bool {
        let texts = [
            &self.local,
            &self.remote,
            &self.protocol,
            &self.local_ports,
            &self.remote_ports,
        ];
        texts.into_iter().any(Option::is_some)
    }
}

/// Reads a file.
///
/// # Errors
/// If it cannot be read.
pub fn read(path: &Path) -> Result<Source, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(Source {
        name: path.display().to_string(),
        text,
    })
}

/// Whether a file is a host's configuration, not a policy: it says which host it is for.
#[must_use]
pub fn is_host_file(source: &Source) -> bool {
    source.text.lines().any(|line| line.starts_with("host:"))
}

impl HostConfig {
    /// Reads host.yaml for what needs no uplink: only the command line can name that of a file that has none.
    ///
    /// # Errors
    /// See [`Self::load`].
    pub fn load_offline(path: &Path) -> Result<Self, ConfigError> {
        let overrides = Overrides {
            uplink: Some("any".into()),
            ..Overrides::default()
        };
        Self::load(path, &overrides)
    }

    /// Reads host.yaml and the policy files that it names; what the command line says comes first.
    ///
    /// # Errors
    /// See [`ConfigError`]; of mistakes in the files all that could be found.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        Self::load_handed(path, overrides, Handed::default())
    }

    /// The same with what is to hold instead of what the state directory has.
    ///
    /// # Errors
    /// See [`Self::load`].
    pub fn load_handed(path: &Path, overrides: &Overrides, handed: Handed) -> Result<Self, ConfigError> {
        Self::resolve(Texts::read(path, overrides, handed)?, &Policy::default())
    }

    /// What this host is called.
    #[must_use]
    pub fn host_name(&self) -> &str {
        &self.policy.hosts[self.host.index()].name
    }

    /// The host that a guest is on.
    #[must_use]
    pub fn host_of(&self, guest: GuestIndex) -> HostIndex {
        let elsewhere = self.elsewhere.get(&guest);
        elsewhere.map_or_else(|| self.policy.guests[guest.index()].host, |host| *host)
    }

    /// The interface that a port goes by.
    #[must_use]
    pub fn interface_of(&self, port: PortIndex) -> Interface {
        let bound = self.bound.get(&port).cloned();
        bound.unwrap_or_else(|| Interface {
            name: self.policy.ports[port.index()].interface.clone(),
            index: None,
        })
    }

    /// The ports of this host, with the interfaces that they go by.
    pub fn local_ports(&self) -> impl Iterator<Item = (PortIndex, Interface)> + '_ {
        let ports = (0u32..).map(PortIndex).zip(&self.policy.ports);
        let local = ports.filter(|(_, port)| self.host_of(port.guest) == self.host);
        local.map(|(number, _)| (number, self.interface_of(number)))
    }

    /// Where guest ports are.
    #[must_use]
    pub fn endpoints(&self) -> Endpoints {
        Endpoints::with_hosts(&self.policy, |guest| self.host_of(guest))
    }

    /// Reads the same files again; `None` if they say what they said. What is the same host, network or key keeps its number.
    /// With what is handed, if something is to be another.
    ///
    /// # Errors
    /// See [`Self::load`].
    pub fn load_again(&self, mut handed: Handed) -> Result<Option<Self>, ConfigError> {
        handed.policy = handed.policy.or_else(|| self.origin.policy.clone());
        let texts = Texts::read(&self.origin.path, &self.origin.overrides, handed)?;
        if texts.origin.digest == self.origin.digest {
            return Ok(None);
        }
        Self::resolve(texts, &self.policy).map(Some)
    }

    fn resolve(texts: Texts, before: &Policy) -> Result<Self, ConfigError> {
        let Texts {
            host: source,
            raw,
            policies,
            mapping,
            origin,
        } = texts;
        let (path, overrides) = (&origin.path, &origin.overrides);
        let base = path.parent().unwrap_or(Path::new("."));
        let policy = load_policy_after(before, &policies)?;
        let mut errors = Vec::new();
        let host = policy.host(&raw.host.value).unwrap_or_else(|| {
            let message = format!("no host \"{}\" is declared in the policy", raw.host.value);
            errors.push(source.error(&raw.host.referenced, message));
            HostIndex(0)
        });
        let host_name = raw.host.value.clone();
        let umem = Shape {
            frame_size: raw.umem.frame_size,
            frames: raw.umem.frames,
            long_frames: raw.umem.long_frames.unwrap_or_default(),
            ring_size: 1024,
            huge_pages: raw.umem.huge_pages,
        };
        if let Err(error) = umem.check() {
            errors.push(source.error(&raw.host.referenced, format!("umem: {error}")));
        }
        let named = raw.uplink.map(|uplink| uplink.interface);
        let uplink = overrides.uplink.clone().or(named.clone()).unwrap_or_else(|| {
            let message = "no uplink is named: expected uplink: {interface: NAME} or --uplink NAME";
            errors.push(source.error(&raw.host.referenced, message));
            String::new()
        });
        let workers = match (overrides.workers.is_empty(), raw.workers.is_empty()) {
            (false, _) => overrides.workers.clone(),
            (true, false) => raw.workers,
            (true, true) => vec![WorkerConfig { queue: 0, cpu: 0 }],
        };
        for (number, worker) in workers.iter().enumerate() {
            if workers[..number].iter().any(|other| other.queue == worker.queue) {
                let message = format!("queue {} has two workers: expected one each", worker.queue);
                errors.push(source.error(&raw.host.referenced, message));
            }
        }
        let state_directory = base.join(raw.state_directory.unwrap_or_else(|| STATE.into()));
        let mut api = match raw.api {
            None => ApiConfig::new(&state_directory),
            Some(api) => {
                let at = api.referenced;
                resolve_api(api.value, base, &state_directory).unwrap_or_else(|message| {
                    errors.push(source.error(&at, format!("api: {message}")));
                    ApiConfig::new(&state_directory)
                })
            }
        };
        let mut sas: Vec<SaConfig> = Vec::new();
        for raw in &raw.security_associations {
            match resolve_sa(raw, &source, base, &policy, &host_name, workers.len()) {
                Ok(sa) => {
                    if sas.iter().any(|other| other.name == sa.name) {
                        let message = format!("security association \"{}\" is declared twice", sa.name);
                        errors.push(source.error(&raw.name.referenced, message));
                    }
                    if sas
                        .iter()
                        .any(|other| other.direction == sa.direction && other.spi == sa.spi)
                    {
                        let message = format!("SPI {} is another SA's of the same direction too", sa.spi);
                        errors.push(source.error(&raw.spi.referenced, message));
                    }
                    sas.push(sa);
                }
                Err(error) => errors.push(error),
            }
        }
        let sources = mapping.map(|(path, file)| sources::load(&path, &file, &policy));
        let sources = sources.transpose().unwrap_or_else(|mistakes| {
            errors.extend(mistakes.0);
            None
        });
        let sources = sources.unwrap_or_default();
        api.hooks = sources::hooks(&sources);
        let sessions = raw.sessions.as_ref();
        let sessions = sessions.map(|sessions| sessions.resolve(&source, base, &mut errors));
        let etcd = raw.etcd;
        let etcd = etcd.map(|etcd| RawEtcd::resolve(etcd, &source, base, &mut errors));
        let leaks = leaking_mirrors(&policy, host, [Some(&uplink), named.as_ref()]);
        errors.extend(leaks.map(|message| source.error(&raw.host.referenced, message)));
        if !errors.is_empty() {
            return Err(FileErrors(errors).into());
        }
        let config = Self {
            policy: Arc::new(policy),
            host,
            elsewhere: BTreeMap::new(),
            bound: BTreeMap::new(),
            uplink,
            workers,
            umem,
            long_frames: raw.umem.long_frames,
            xdp_mode: overrides.xdp_mode.unwrap_or(match raw.xdp_mode {
                RawXdpMode::Auto => ModeChoice::Auto,
                RawXdpMode::Native => ModeChoice::Only(XdpMode::Native),
                RawXdpMode::Generic => ModeChoice::Only(XdpMode::Generic),
            }),
            zero_copy: overrides.zero_copy.unwrap_or(raw.zero_copy),
            in_place: raw.in_place,
            busy_poll: overrides.busy_poll || raw.busy_poll,
            fix_offloads: overrides.fix_offloads || raw.fix_offloads,
            aead: overrides.aead.unwrap_or(raw.aead),
            state_directory,
            pin_directory: overrides
                .pin_directory
                .clone()
                .or(raw.pin_directory)
                .unwrap_or_else(|| PIN_DIRECTORY.into()),
            histogram_log: overrides
                .histogram_log
                .clone()
                .or(raw.histogram_log.map(|path| base.join(path))),
            events: overrides
                .events
                .clone()
                .or(raw.events.map(|path| base.join(path))),
            sources,
            group_rate: raw.group_rate.unwrap_or(Floods::RATE),
            api,
            sas,
            sessions,
            etcd,
            origin: Origin::default(),
        };
        Ok(Self { origin, ..config })
    }
}

/// Rules whose copies would leave by the wire or reach a guest.
fn leaking_mirrors<'a>(
    policy: &'a Policy,
    host: HostIndex,
    uplinks: [Option<&'a String>; 2],
) -> impl Iterator<Item = String> + 'a {
    let is_guests = move |name: &str| {
        let mut ports = policy.ports.iter().filter(|port| port.interface == name);
        ports.any(|port| policy.guests[port.guest.index()].host == host)
    };
    policy.rules.iter().filter_map(move |rule| {
        let mirror = rule.mirror.as_deref()?;
        let what = if uplinks.into_iter().flatten().any(|uplink| mirror == uplink) {
            "uplink"
        } else if is_guests(mirror) {
            "guest port"
        } else {
            return None;
        };
        Some(format!(
            "rule \"{}\" ({}) copies plaintext to {mirror}, which is a {what} of this host: expected a monitoring interface",
            rule.name, rule.place
        ))
    })
}

/// Gives what is wrong and what was expected.
fn resolve_api(raw: RawApi, base: &Path, state_directory: &Path) -> Result<ApiConfig, String> {
    let mut api = ApiConfig::new(state_directory);
    if let Some(socket) = raw.socket {
        api.socket = base.join(socket);
    }
    if let Some(group) = raw.group {
        let number = group_number(&group).ok_or_else(|| format!("this host has no group \"{group}\""))?;
        api.group = Some(number);
        api.mode = 0o660;
    }
    if let Some(mode) = raw.mode {
        let bits = u32::from_str_radix(&mode, 8).ok().filter(|bits| *bits <= 0o777);
        api.mode =
            bits.ok_or_else(|| format!("\"{mode}\" is no mode: expected octal digits such as \"0660\""))?;
    }
    api.access.read = People::parse(raw.read.iter().map(String::as_str))?;
    api.access.change = People::parse(raw.change.iter().map(String::as_str))?;
    api.tls = raw.tls.map(|tls| TlsConfig {
        listen: tls.listen,
        certificate: base.join(tls.certificate),
        key: base.join(tls.key),
        clients: base.join(tls.clients),
        read: tls.read,
        change: tls.change,
    });
    Ok(api)
}

fn resolve_sa(
    raw: &RawSa,
    source: &Source,
    base: &Path,
    policy: &Policy,
    host: &str,
    workers: usize,
) -> Result<SaConfig, FileError> {
    let unknown = |what: &str, name: &Spanned<String>| {
        source.error(
            &name.referenced,
            format!("no {what} \"{}\" is declared in the policy", name.value),
        )
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if raw.name.value.is_empty() || raw.name.value.starts_with('.') || !raw.name.value.chars().all(plain) {
        let message =
            "the name of a security association is also a file's: expected letters, digits, - _ and .";
        return Err(source.error(&raw.name.referenced, message));
    }
    let key = policy
        .key(&raw.key.value)
        .ok_or_else(|| unknown("key", &raw.key))?;
    let network = policy
        .network(&raw.network.value)
        .ok_or_else(|| unknown("network", &raw.network))?;
    let peer = policy
        .host(&raw.peer.value)
        .ok_or_else(|| unknown("host", &raw.peer))?;
    if raw.peer.value == host {
        return Err(source.error(
            &raw.peer.referenced,
            "the peer is this host: expected another one",
        ));
    }
    let is_overlay = !policy.is_flat(network);
    if is_overlay && raw.mode == SaMode::Tunnel {
        let message = "an overlay's SA is in transport mode between the VTEPs: expected no mode";
        return Err(source.error(&raw.name.referenced, message));
    }
    if is_overlay && raw.selector.is_given() {
        let message = "an overlay's SA carries whatever its network does: expected no selector";
        return Err(source.error(&raw.name.referenced, message));
    }
    if raw.udp_encapsulation && !is_overlay {
        let message = "UDP encapsulation is for overlay networks: expected no udp-encapsulation";
        return Err(source.error(&raw.name.referenced, message));
    }
    let tunnel_address = |host: &str| {
        let host = policy.hosts.iter().find(|one| one.name == host);
        host.is_some_and(|host| {
            host.addresses
                .iter()
                .any(|address| address.is_ipv6() == raw.over_ip6)
        })
    };
    let between_hosts = is_overlay || raw.mode == SaMode::Tunnel;
    if between_hosts && !(tunnel_address(host) && tunnel_address(&raw.peer.value)) {
        let family = if raw.over_ip6 { "IPv6" } else { "IPv4" };
        let what = if is_overlay { "an overlay" } else { "tunnel mode" };
        let message = format!("{what} needs an {family} address of both hosts in the policy");
        return Err(source.error(&raw.name.referenced, message));
    }
    let spi =
        Spi::new(raw.spi.value).map_err(|error| source.error(&raw.spi.referenced, error.to_string()))?;
    if let Some(window) = raw
        .replay_window
        .as_ref()
        .filter(|window| !(1024..=65536).contains(&window.value))
    {
        return Err(source.error(&window.referenced, "a replay window has 1024 to 65536 numbers"));
    }
    if let Some(worker) = raw
        .worker
        .as_ref()
        .filter(|worker| usize::from(worker.value) >= workers)
    {
        let message = format!(
            "there is no worker {}: expected 0 to {}",
            worker.value,
            workers - 1
        );
        return Err(source.error(&worker.referenced, message));
    }
    let cidr = |text: &Option<Spanned<String>>| -> Result<Option<Cidr>, FileError> {
        let Some(text) = text else { return Ok(None) };
        let parsed = text
            .value
            .parse()
            .map_err(|why| format!("\"{}\": {why}", text.value));
        parsed
            .map(Some)
            .map_err(|message| source.error(&text.referenced, message))
    };
    let ports = |text: &Option<Spanned<String>>| -> Result<Option<RangeInclusive<u16>>, FileError> {
        let Some(text) = text else { return Ok(None) };
        let parsed = port_range(&text.value).map_err(|why| format!("\"{}\" {why}", text.value));
        parsed
            .map(Some)
            .map_err(|message| source.error(&text.referenced, message))
    };
    let protocol = match &raw.selector.protocol {
        None => None,
        Some(text) => Some(protocol_number(&text.value).ok_or_else(|| {
            let message = format!(
                "\"{}\" is no protocol: expected tcp, udp or a number up to 255",
                text.value
            );
            source.error(&text.referenced, message)
        })?),
    };
    Ok(SaConfig {
        name: raw.name.value.clone(),
        direction: raw.direction,
        spi,
        key,
        suite: policy.keys[key.index()].suite,
        protection: match raw.protection {
            RawProtection::Encrypt => Protection::Encrypt,
            RawProtection::Authenticate => Protection::Authenticate,
        },
        network,
        peer,
        mode: raw.mode,
        over_ip6: raw.over_ip6,
        udp_encapsulation: raw.udp_encapsulation,
        keymat: base.join(&raw.keymat.file),
        esn: raw.esn,
        replay_window: raw.replay_window.as_ref().map_or(1024, |window| window.value),
        worker: raw.worker.as_ref().map(|worker| worker.value),
        selector: Selector {
            local: cidr(&raw.selector.local)?,
            remote: cidr(&raw.selector.remote)?,
            protocol,
            local_ports: ports(&raw.selector.local_ports)?,
            remote_ports: ports(&raw.selector.remote_ports)?,
        },
    })
}
