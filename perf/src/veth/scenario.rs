//! What carries the packets: Guestseal by one rule or another, the kernel, boringtun, or a bare AF_XDP forwarder,
//! all between the same veths.
//!
//! ```text
//!  guest g1 [eth0] --veth-- [gp1  host h1  uplink] --veth-- [host0  wire  host1] --veth-- [uplink  host h2  gp2] --veth-- [eth0] guest g2
//! ```
//!
//! One host is measured from the guest's `eth0` to the wire's `host0` (opening: the other way round at h2, from `host1` to
//! g2), two from guest to guest. The generator and what is received have CPU 0, what is measured has the last CPU.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use guestseal_xdp::{Attached, Attachment, ModeChoice, Program, Sink, XdpMode};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use super::tunnel::Keys;
use crate::actor;
use crate::deployment::{Deployment, Host};
use crate::namespaces::{GuestSpec, Namespace, Topology};
use crate::pipeline::seal::{KEYMAT, SPI};
use crate::process::{PerfError, Running, wait_for};

/// The MTU of guests: that of boringtun's device, which is the least of all that carry their packets.
const MTU: u32 = 1420;

/// What carries the packets.
#[derive(Copy, Clone, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// The kernel's bridge on one host: plain forwarding without Guestseal.
    Bridge,
    /// The kernel's bridge and VXLAN on one host, not sealed.
    Vxlan,
    /// boringtun on one host, on one thread.
    Boringtun,
    /// A bare AF_XDP forwarder on one host, which reads nothing: what any program of this kind can carry at most.
    AfXdp,
    /// Guestseal on one host, by a rule that says plaintext: plain forwarding by the same program.
    Plaintext,
    /// Guestseal on one host, by a rule that says authenticate.
    Authenticate,
    /// Guestseal on one host, by a rule that says encrypt.
    Encrypt,
    /// Guestseal on the receiving host: opens what was sealed beforehand.
    Opening,
    /// The kernel's bridge on both hosts, guest to guest.
    TwoBridges,
    /// Guestseal on both hosts, guest to guest, by a rule that says plaintext.
    TwoPlaintext,
    /// Guestseal on both hosts, guest to guest: sealed, carried, opened.
    TwoHosts,
}

impl Scenario {
    /// Every one, in the order they are measured and shown.
    pub const ALL: [Scenario; 11] = [
        Scenario::Bridge,
        Scenario::Vxlan,
        Scenario::Boringtun,
        Scenario::AfXdp,
        Scenario::Plaintext,
        Scenario::Authenticate,
        Scenario::Encrypt,
        Scenario::Opening,
        Scenario::TwoBridges,
        Scenario::TwoPlaintext,
        Scenario::TwoHosts,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Bridge => "bridge",
            Scenario::Vxlan => "vxlan",
            Scenario::Boringtun => "boringtun",
            Scenario::AfXdp => "af-xdp",
            Scenario::Plaintext => "plaintext",
            Scenario::Authenticate => "authenticate",
            Scenario::Encrypt => "encrypt",
            Scenario::Opening => "opening",
            Scenario::TwoBridges => "two-bridges",
            Scenario::TwoPlaintext => "two-plaintext",
            Scenario::TwoHosts => "two-hosts",
        }
    }

    /// Whether what arrives can be read, so that its age is known.
    pub(super) fn is_readable(self) -> bool {
        matches!(
            self,
            Scenario::Bridge
                | Scenario::AfXdp
                | Scenario::Plaintext
                | Scenario::Authenticate
                | Scenario::TwoBridges
                | Scenario::TwoPlaintext
                | Scenario::TwoHosts
        )
    }
}

/// A scenario that runs.
pub(super) struct Setup {
    pub(super) topology: Topology,
    hosts: Vec<Host>,
    /// Other programs that carry packets. Of two the first is measured.
    peers: Vec<Running>,
    // Dropped after the processes that use its files.
    _deployment: Option<Deployment>,
    scenario: Scenario,
}

/// One rule for everything; the names, addresses and the key are those of [`crate::pipeline`].
fn policy(action: &str) -> String {
    let mut text = String::from(
        "hosts:\n  - {name: h1, addresses: [192.0.2.1]}\n  - {name: h2, addresses: [192.0.2.2]}\n\
         networks:\n  - {name: bench, type: flat}\nkeys:\n  - {id: bench-0}\nguests:\n",
    );
    for number in [1, 2] {
        text += &format!(
            "  - {{id: g{number}, host: h{number}, ports: [{{interface: gp{number}, network: bench, \
             mac: \"02:00:00:00:00:0{number}\", addresses: [10.0.0.{number}]}}]}}\n"
        );
    }
    text + "rules:\n  - {name: arp, from: any, to: any, ethertype: arp, action: plaintext}\n"
        + &format!("  - {{name: all, from: any, to: any, action: {action}}}\n")
}

fn guests() -> [GuestSpec; 2] {
    [1, 2].map(|number| GuestSpec {
        id: format!("g{number}"),
        host: number - 1,
        interface: format!("gp{number}"),
        mac: format!("02:00:00:00:00:0{number}"),
        addresses: vec![format!("10.0.0.{number}/24")],
        queues: 1,
    })
}

impl Setup {
    /// Builds the namespaces and starts what carries the packets: the hosts take the CPUs in turns.
    pub(super) fn new(scenario: Scenario, cpus: &[usize], busy_poll: bool) -> Result<Self, PerfError> {
        let topology = Topology::new(2, 1, &guests())?;
        let mut setup = Self {
            topology,
            hosts: Vec::new(),
            peers: Vec::new(),
            _deployment: None,
            scenario,
        };
        setup.know_neighbours()?;
        for guest in &setup.topology.guests {
            guest.namespace.ip(&format!("link set eth0 mtu {MTU}"))?;
        }
        match scenario {
            Scenario::Bridge => setup.bridge(0, "uplink")?,
            Scenario::TwoBridges => {
                setup.bridge(0, "uplink")?;
                setup.bridge(1, "uplink")?;
            }
            Scenario::Vxlan => {
                setup.topology.hosts[0].ip(
                    "link add vx0 mtu 1450 type vxlan id 7 local 192.0.2.1 remote 192.0.2.2 dstport 4789 dev uplink",
                )?;
                setup.bridge(0, "vx0")?;
            }
            Scenario::Boringtun => setup.boringtun(cpus)?,
            Scenario::AfXdp => setup.forwarder(cpus, busy_poll)?,
            Scenario::Plaintext => setup.guestseal("plaintext", &[0], cpus, busy_poll)?,
            Scenario::Authenticate => setup.guestseal("authenticate, key: bench-0", &[0], cpus, busy_poll)?,
            Scenario::Encrypt => setup.guestseal("encrypt, key: bench-0", &[0], cpus, busy_poll)?,
            Scenario::Opening => setup.guestseal("encrypt, key: bench-0", &[1], cpus, busy_poll)?,
            Scenario::TwoPlaintext => setup.guestseal("plaintext", &[0, 1], cpus, busy_poll)?,
            Scenario::TwoHosts => setup.guestseal("encrypt, key: bench-0", &[0, 1], cpus, busy_poll)?,
        }
        Ok(setup)
    }

    /// Every interface knows where the others are: nothing has to be asked for or flooded.
    fn know_neighbours(&self) -> Result<(), PerfError> {
        let topology = &self.topology;
        for number in [0, 1] {
            let other = 1 - number;
            let mac = mac_of(&topology.hosts[other], "uplink")?;
            topology.hosts[number].ip(&format!(
                "neigh replace 192.0.2.{} lladdr {mac} dev uplink nud permanent",
                other + 1
            ))?;
            topology.guests[number].namespace.ip(&format!(
                "neigh replace 10.0.0.{} lladdr 02:00:00:00:00:0{} dev eth0 nud permanent",
                other + 1,
                other + 1
            ))?;
            // What goes to guest and host is behind this port of the wire.
            for mac in [
                format!("02:00:00:00:00:0{}", number + 1),
                mac_of(&topology.hosts[number], "uplink")?,
            ] {
                topology.wire.run(&format!(
                    "bridge fdb replace {mac} dev host{number} master static"
                ))?;
            }
            // What XDP redirects into a veth is received only where somebody polls it.
            topology.hosts[number].run(&format!("ethtool -K gp{} gro on", number + 1))?;
            topology.hosts[number].run("ethtool -K uplink gro on")?;
            topology.wire.run(&format!("ethtool -K host{number} gro on"))?;
            topology.guests[number].namespace.run("ethtool -K eth0 gro on")?;
        }
        Ok(())
    }

    pub(super) fn bridge(&self, number: usize, out: &str) -> Result<(), PerfError> {
        let host = &self.topology.hosts[number];
        let port = format!("gp{}", number + 1);
        host.ip("link add br0 type bridge mcast_snooping 0")?;
        for interface in [port.as_str(), out] {
            host.ip(&format!("link set {interface} master br0 up"))?;
        }
        host.ip("link set br0 up")?;
        let (own, other) = (number + 1, 2 - number);
        host.run(&format!(
            "bridge fdb replace 02:00:00:00:00:0{own} dev {port} master static"
        ))?;
        host.run(&format!(
            "bridge fdb replace 02:00:00:00:00:0{other} dev {out} master static"
        ))?;
        Ok(())
    }

    fn guestseal(
        &mut self,
        action: &str,
        hosts: &[usize],
        cpus: &[usize],
        busy_poll: bool,
    ) -> Result<(), PerfError> {
        let mut deployment = Deployment::new("veth", &policy(action), &[])?;
        // What was sealed beforehand is sealed under these.
        for sa in deployment.sas.iter_mut().filter(|sa| sa.from == 0) {
            (sa.spi, sa.keymat) = (SPI, KEYMAT.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        for &number in hosts {
            let cpu = cpus[number % cpus.len()].to_string();
            let mut arguments = vec!["--queue", "0", "--cpu", &cpu];
            if busy_poll {
                arguments.push("--busy-poll");
            }
            deployment.write_host(number, "")?;
            self.hosts
                .push(deployment.start(number, &self.topology.hosts[number], &arguments)?);
        }
        self._deployment = Some(deployment);
        Ok(())
    }

    fn boringtun(&mut self, cpus: &[usize]) -> Result<(), PerfError> {
        let keys = [Keys::generate()?, Keys::generate()?];
        for (number, host) in self.topology.hosts.iter().enumerate() {
            let other = 1 - number;
            let settings = keys[number].settings(
                &keys[other],
                &format!("192.0.2.{}:51820", other + 1),
                &[
                    &format!("10.0.0.{}/32", other + 1),
                    &format!("10.9.0.{}/32", other + 1),
                ],
            );
            let peer = start_peer("tunnel", number, host, cpus, &["bt0", &settings])?;
            self.peers.push(peer);
            // The guest's packets are addressed to the other guest: here the host routes them.
            let port = format!("gp{}", number + 1);
            host.ip(&format!("link set {port} address 02:00:00:00:00:0{}", other + 1))?;
            host.ip(&format!("addr add 10.9.0.{}/24 dev bt0", number + 1))?;
            host.ip(&format!("link set bt0 mtu {MTU} up"))?;
            host.ip(&format!("route add 10.0.0.{}/32 dev bt0", other + 1))?;
            host.ip(&format!("route add 10.0.0.{}/32 dev {port}", number + 1))?;
            host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0")?;
        }
        let host = &self.topology.hosts[0];
        wait_for("boringtun's session", Duration::from_secs(20), || {
            Ok(host.run("ping -c 1 -W 1 10.9.0.2").is_ok().then_some(()))
        })
    }

    fn forwarder(&mut self, cpus: &[usize], busy_poll: bool) -> Result<(), PerfError> {
        let host = &self.topology.hosts[0];
        let mut arguments = vec!["gp1", "uplink"];
        if busy_poll {
            arguments.push("--busy-poll");
        }
        let peer = start_peer("forward", 0, host, cpus, &arguments)?;
        self.peers.push(peer);
        Ok(())
    }

    /// Where packets go in: the namespace and its interface.
    pub(super) fn entrance(&self) -> (&Namespace, &'static str) {
        match self.scenario {
            Scenario::Opening => (&self.topology.wire, "host1"),
            _ => (&self.topology.guests[0].namespace, "eth0"),
        }
    }

    /// Where they come out.
    fn exit(&self) -> (&Namespace, &'static str) {
        match self.scenario {
            Scenario::Opening | Scenario::TwoBridges | Scenario::TwoPlaintext | Scenario::TwoHosts => {
                (&self.topology.guests[1].namespace, "eth0")
            }
            _ => (&self.topology.wire, "host0"),
        }
    }

    /// Puts the sink where they come out.
    pub(super) fn sink(&self) -> Result<Attached<Sink>, PerfError> {
        let (namespace, interface) = self.exit();
        attach_sink(namespace, interface)
    }

    /// The CPU time, in ns, that the processes which carry packets have had; none where the kernel does it all.
    pub(super) fn cpu_time(&self) -> Result<Option<u64>, PerfError> {
        let hosts = self.hosts.iter().map(|host| host.process.pid());
        let peers = self.peers.iter().take(1).map(Running::pid);
        let mut sum = None;
        for pid in hosts.chain(peers) {
            *sum.get_or_insert(0) += cpu_time_of(pid)?;
        }
        Ok(sum)
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            // In order if it can: the programs are detached and the pins removed.
            let _ = host.stop();
        }
        for peer in &mut self.peers {
            peer.kill();
            peer.remove_output();
        }
    }
}

/// Starts a part of [`actor::Actor`] that carries packets on a host, on a CPU.
fn start_peer(
    part: &str,
    number: usize,
    host: &Namespace,
    cpus: &[usize],
    arguments: &[&str],
) -> Result<Running, PerfError> {
    let mut command = actor::pinned(host, cpus[number % cpus.len()])?;
    command.arg(part).args(arguments);
    let name = format!("{part}-{}-{number}", std::process::id());
    actor::start(
        &name,
        &std::env::temp_dir(),
        &mut command,
        Duration::from_secs(10),
    )
}

/// Of all threads of a process, ns.
fn cpu_time_of(pid: u32) -> Result<u64, PerfError> {
    let directory = format!("/proc/{pid}/task");
    let mut sum = 0;
    for task in std::fs::read_dir(&directory).map_err(PerfError::io(directory.clone()))? {
        let path = task
            .map_err(PerfError::io(directory.clone()))?
            .path()
            .join("schedstat");
        // A thread may have ended in between.
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let time = text
            .split_whitespace()
            .next()
            .and_then(|word| word.parse::<u64>().ok());
        sum += time.unwrap_or(0);
    }
    Ok(sum)
}

/// Puts a sink at an interface.
pub(super) fn attach_sink(namespace: &Namespace, interface: &str) -> Result<Attached<Sink>, PerfError> {
    namespace.inside(|| {
        let attachment = Attachment {
            ifindex: ifindex(interface)?,
            mode: ModeChoice::Only(XdpMode::Native),
            pins: None,
        };
        Sink::load()
            .and_then(|sink| sink.attach(attachment))
            .map_err(said)
    })?
}

/// What a part of Guestseal says, as an error of ours.
pub(super) fn said(error: impl std::error::Error) -> PerfError {
    PerfError::Wrong(guestseal::control::supervise::chain(&error))
}

/// The index of an interface of this thread's namespace.
pub(super) fn ifindex(interface: &str) -> Result<u32, PerfError> {
    socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .and_then(|socket| netdevice::name_to_index(socket.as_fd(), interface))
        .map_err(|error| PerfError::io(format!("interface {interface}"))(error.into()))
}

fn mac_of(namespace: &Namespace, interface: &str) -> Result<String, PerfError> {
    let shown = namespace.ip(&format!("-o link show dev {interface}"))?;
    let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
    words
        .nth(1)
        .map(str::to_owned)
        .ok_or_else(|| PerfError::Malformed {
            what: format!("the MAC of {interface}"),
            why: shown.clone(),
        })
}

/// Whether this machine can run any of it, and why not.
pub(super) fn cannot() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces and AF_XDP need root".into());
    }
    (!Path::new("/dev/net/tun").exists()).then(|| "boringtun needs /dev/net/tun".into())
}
