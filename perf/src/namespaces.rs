//! Hosts, guests and a wire in network namespaces: made here, gone when dropped.
//!
//! ```text
//!  guest --veth-- [host: gp-...  guestseal  uplink] --veth-- [wire: bridge] --veth-- [uplink  guestseal  gp-... :host] --veth-- guest
//! ```
//!
//! What XDP redirects and AF_XDP sends cannot be seen by a capture on the hosts' own interfaces, so the wire is a bridge
//! in a namespace of its own.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::{PerfError, run, run_line};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace, removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one whose name says whose it is.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new(role: &str) -> Result<Self, PerfError> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gs{}-{number}-{role}", std::process::id());
        run_line(&format!("ip netns add {name}"))?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a line of words inside.
    ///
    /// # Errors
    /// If it fails.
    pub fn run(&self, line: &str) -> Result<String, PerfError> {
        run_line(&format!("ip netns exec {} {line}", self.name))
    }

    /// Does something in a thread of this process that is inside.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    ///
    /// # Panics
    /// If the work does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, PerfError> {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        let path = Path::new("/run/netns").join(&self.name);
        let file = std::fs::File::open(&path).map_err(PerfError::io(path.display().to_string()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let entered = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
                entered.map(|()| work())
            });
            match thread.join() {
                Ok(done) => done.map_err(|error| PerfError::io("entering a namespace")(error.into())),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs `ip` with the words of a line.
    ///
    /// # Errors
    /// If it fails.
    pub fn ip(&self, line: &str) -> Result<String, PerfError> {
        run_line(&format!("ip -n {} {line}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing is left to be told if this fails; the next run removes what a dead process left.
        let _ = run_line(&format!("ip netns del {}", self.name));
    }
}

/// Removes namespaces of processes that are no more.
///
/// # Errors
/// If they cannot be listed.
pub fn remove_leftovers() -> Result<(), PerfError> {
    for line in run_line("ip netns list")?.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let owner = name
            .strip_prefix("gs")
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another process may be doing the same.
            let _ = run_line(&format!("ip netns del {name}"));
        }
    }
    Ok(())
}

/// A BPF file system of its own, unmounted when dropped. Namespaces made by `ip netns exec` see it, and what is pinned in
/// it outlives them.
#[derive(Debug)]
pub struct BpfMount(PathBuf);

impl BpfMount {
    /// Mounts one at a directory.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new(directory: PathBuf) -> Result<Self, PerfError> {
        std::fs::create_dir_all(&directory).map_err(PerfError::io(directory.display().to_string()))?;
        run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&directory))?;
        Ok(Self(directory))
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for BpfMount {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

/// What a guest is to be.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// Its id.
    pub id: String,
    /// The number of its host.
    pub host: usize,
    /// The host-side interface.
    pub interface: String,
    /// Its MAC.
    pub mac: String,
    /// Its addresses with prefix lengths.
    pub addresses: Vec<String>,
    /// Queues of its port.
    pub queues: u32,
}

/// A guest: its namespace has `eth0`, whose other end is a port of its host.
#[derive(Debug)]
pub struct Guest {
    /// What it is.
    pub spec: GuestSpec,
    /// Where it is.
    pub namespace: Namespace,
}

/// Hosts, guests and the wire.
#[derive(Debug)]
pub struct Topology {
    /// The guests, in the order they were asked for.
    pub guests: Vec<Guest>,
    /// The hosts: `uplink` in each leads to the wire.
    pub hosts: Vec<Namespace>,
    /// The wire: a bridge whose port `host0` leads to the first host, and so on.
    pub wire: Namespace,
}

/// For `ethtool -K`: what AF_XDP would not carry is left to no card. That is unfinished checksums, segments to be cut, and VLAN
/// tags beside the packet.
pub const NO_OFFLOADS: &str = "tx off tso off gso off tx-udp-segmentation off tx-sctp-segmentation off tx-gso-list off txvlan off tx-vlan-stag-hw-insert off";

/// The MTU of guests: what ESP adds to it fits into the wire's 1500.
pub const GUEST_MTU: u32 = 1400;

impl Topology {
    /// Makes so many hosts (192.0.2.1 and 2001:db8::1, and so on) with `queues` queues on each uplink, and the guests.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new(hosts: usize, queues: u32, guests: &[GuestSpec]) -> Result<Self, PerfError> {
        let wire = Namespace::new("wire")?;
        wire.ip("link add br0 type bridge mcast_snooping 0")?;
        wire.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")?;
        // A wire looks at no IP header. Kernels without br_netfilter have no such setting, and need none.
        if Path::new("/proc/sys/net/bridge").exists() {
            wire.run(
                "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
            )?;
        }
        wire.ip("link set br0 up")?;
        let mut topology = Self {
            guests: Vec::new(),
            hosts: Vec::new(),
            wire,
        };
        for number in 0..hosts {
            topology.hosts.push(Namespace::new(&format!("h{}", number + 1))?);
            topology.connect_host(number, queues)?;
        }
        for spec in guests {
            let namespace = Namespace::new(&spec.id)?;
            topology.guests.push(Guest {
                spec: spec.clone(),
                namespace,
            });
            topology.connect_guest(topology.guests.len() - 1)?;
        }
        Ok(topology)
    }

    /// Connects a host to the wire: makes its uplink.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn connect_host(&self, number: usize, queues: u32) -> Result<(), PerfError> {
        let (host, wire) = (&self.hosts[number], &self.wire);
        wire.ip(&format!(
            "link add host{number} numrxqueues {queues} numtxqueues {queues} type veth \
             peer name uplink netns {} numrxqueues {queues} numtxqueues {queues}",
            host.name()
        ))?;
        wire.run(&format!("ethtool -K host{number} tx off tso off gso off"))?;
        wire.ip(&format!("link set host{number} master br0 up"))?;
        host.run("ethtool -K uplink tx off tso off gso off")?;
        host.ip(&format!("addr add 192.0.2.{}/24 dev uplink", number + 1))?;
        host.ip(&format!("addr add 2001:db8::{}/64 dev uplink nodad", number + 1))?;
        host.ip("link set uplink up")?;
        Ok(())
    }

    /// Connects a guest to its host: makes its port.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn connect_guest(&self, number: usize) -> Result<(), PerfError> {
        let Guest { spec, namespace } = &self.guests[number];
        let host = &self.hosts[spec.host];
        let queues = spec.queues;
        namespace.ip(&format!(
            "link add eth0 address {} numrxqueues {queues} numtxqueues {queues} type veth \
             peer name {} netns {} numrxqueues {queues} numtxqueues {queues}",
            spec.mac,
            spec.interface,
            host.name()
        ))?;
        namespace.run(&format!("ethtool -K eth0 {NO_OFFLOADS}"))?;
        namespace
            .run("sysctl -qw net.ipv6.conf.eth0.accept_dad=0 net.ipv6.conf.eth0.router_solicitations=0")?;
        namespace.ip(&format!("link set eth0 mtu {GUEST_MTU} up"))?;
        host.run(&format!(
            "sysctl -qw net.ipv6.conf.{}.disable_ipv6=1",
            spec.interface
        ))?;
        host.ip(&format!("link set {} up", spec.interface))?;
        for address in &spec.addresses {
            let dad = if address.contains(':') { " nodad" } else { "" };
            namespace.ip(&format!("addr add {address} dev eth0{dad}"))?;
        }
        Ok(())
    }

    /// The guest of an id.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn guest(&self, id: &str) -> &Guest {
        self.guests
            .iter()
            .find(|guest| guest.spec.id == id)
            .expect("a guest that was asked for")
    }
}
