//! Interoperability with Linux's ESP: a machine whose kernel has `ip xfrm` is the far host, and its guest in one.
//!
//! ```text
//!  guest --veth-- [h1: gp-near  guestseal  uplink] --veth-- [wire: bridge] --tap-- [machine: eth0, ip xfrm]
//! ```
//!
//! One boot, one guestseal, a pair of SAs and a pair of addresses for each cell. In both directions numbered datagrams must
//! arrive whole and once; all sealed packets are then played in again and must all be refused; where a cell has edges, one
//! packet that is late by exactly the window is refused, and the next one is taken.

mod far;
mod sealed;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::actor;
use crate::capture::{Capture, kinds_with};
use crate::deployment::{Deployment, Host, imbalance, number};
use crate::namespaces::Topology;
use crate::process::{PerfError, Running, cpus, wait_for};

use super::Setting;
use super::matrix::{
    BEFORE_WRAP, Cell, Cipher, DATAGRAMS, Encapsulation, Family, Mode, Seen, Start, cells, table,
};
use super::qemu::{Machine, MachineSpec, Nic};
use super::tally::Tally;
use sealed::{Sealed, inject};

const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_net",
    "af_packet",
    "xfrm_user",
    "esp4",
    "esp6",
    "gcm",
    "ghash_generic",
    "ctr",
    "seqiv",
    "echainiv",
    "aesni_intel",
    "vxlan",
    "geneve",
];
const NEAR_MAC: &str = "02:00:00:01:00:01";
const FAR_MAC: &str = "52:54:00:00:00:02";
const PORT: u16 = 7001;
/// The logical networks: a flat one, one in VXLAN, one in Geneve.
const NETWORKS: [&str; 3] = ["blue", "red", "green"];
/// The VNIs of the last two.
const VNIS: [u32; 2] = [7001, 7002];
const PATIENCE: Duration = Duration::from_secs(30);
/// What every datagram begins with: found on the wire only where a cell only authenticates.
const MARKER: &str = "interop-cell";
/// Datagrams a second that move a window: what a machine without KVM takes without loss.
const PACE: u32 = 2000;

/// Who seals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Guestseal,
    Linux,
}

struct Bench {
    // In the order in which they must go: programs before namespaces, namespaces before files.
    host: Host,
    machine: Machine,
    /// What collects at each of the near guest's ports.
    near: Vec<Running>,
    from_host: Sealed,
    from_machine: Sealed,
    captures: Vec<Capture>,
    topology: Topology,
    deployment: Deployment,
    program: PathBuf,
    /// What each end must have refused.
    guestseal_refuses: Refused,
    linux_refuses: Refused,
}

/// Packets that a receiver refuses, by its reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Refused {
    /// Left of the window.
    too_old: u32,
    /// In the window, and seen before.
    seen: u32,
    /// With extended numbers what is left of the window is taken for a number of the next 2^32 (RFC 4303 A2.2), and its tag is
    /// wrong.
    bad_tag: u32,
}

impl Refused {
    /// What a receiver says of `copies` packets that it has, and of `late` ones that it never had.
    fn of(esn: bool, window: u32, copies: u32, late: u32) -> Self {
        let old = copies.saturating_sub(window);
        let (too_old, bad_tag) = if esn { (0, old + late) } else { (old + late, 0) };
        Self {
            too_old,
            seen: copies - old,
            bad_tag,
        }
    }

    fn add(&mut self, other: Self) {
        self.too_old += other.too_old;
        self.seen += other.seen;
        self.bad_tag += other.bad_tag;
    }
}

/// Runs the matrix.
///
/// # Errors
/// If it cannot be set up.
pub fn run(setting: &Setting, tally: &mut Tally) -> Result<(), PerfError> {
    let cells = cells(setting.short);
    println!("interop: {} cells, each both ways", cells.len());
    let mut bench = Bench::new(setting, &cells)?;
    let release = bench.machine.release.clone();
    let mut rows: Vec<(Cell, Seen)> = Vec::new();
    for cell in &cells {
        let mut one = |direction| match bench.cell(cell, direction) {
            Err(PerfError::Interrupted) => Err(PerfError::Interrupted),
            Err(error) => Ok(Err(error.to_string())),
            Ok(()) => Ok(Ok(())),
        };
        let seen = [one(Direction::Guestseal)?, one(Direction::Linux)?];
        for (who, result) in ["Guestseal seals", "Linux seals"].iter().zip(&seen) {
            let columns = cell.columns();
            tally.count(&format!("interop {}: {who}", columns.join(", ")), result);
        }
        rows.push((*cell, seen));
    }
    let logs = bench.deployment.directory().to_owned();
    let ended = bench.end(&cells);
    if ended.is_err() || rows.iter().any(|(_, seen)| seen.iter().any(Result::is_err)) {
        keep_logs(&logs, &setting.logs);
    }
    tally.count(
        "interop: every packet once, all accounted for, nothing readable on the wire",
        &ended,
    );
    println!("\n{}", table(&rows));
    if setting.write_docs && !setting.short {
        let text = document(&release, &rows);
        std::fs::write("docs/interop.md", text).map_err(PerfError::io("docs/interop.md"))?;
    }
    Ok(())
}

/// What guestseal said, without its KEYMAT.
fn keep_logs(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let kind = Path::new(&name).extension().unwrap_or_default();
        if ["err", "out", "json", "pcap"]
            .iter()
            .any(|wanted| kind == *wanted)
        {
            // A log that is not there is no reason to fail again.
            let _ = std::fs::copy(entry.path(), to.join(&name));
        }
    }
}

fn document(release: &str, rows: &[(Cell, Seen)]) -> String {
    format!(
        "# Interoperability with Linux's ESP\n\n\
         Made by `ci/vm --write-docs`, not by hand. The far host is a machine with Debian's kernel {release} and `ip xfrm`; Guestseal has\n\
         manual SAs ([manual-sas.md](manual-sas.md)). In each direction of each cell {DATAGRAMS} datagrams of 20 to 1,120 bytes must arrive whole and once, and\n\
         all sealed packets are played in again, and must all be refused. *Window* is Linux's; Guestseal's is the same, and at least 1024.\n\
         *Both edges*: a packet late by the whole window is refused, the next one is taken. Numbers *to the end at 2^32*: without ESN an SA\n\
         stops there, so that 15 datagrams arrive and no more.\n\n\
         Neighbour discovery stays in plaintext on a flat network, which Linux must be told, or it seals its advertisements as well:\n\
         `ip xfrm policy add src ::/0 dst ::/0 proto ipv6-icmp type 136 dir out priority 1`, the same for type 135 and for `dir in`.\n\n\
         VXLAN and Geneve are the machine's own devices, whose datagrams `ip xfrm policy ... proto udp dport 4789` (6081) seals between the hosts; for ESP in UDP a socket\n\
         with `UDP_ENCAP` is bound to port 4500, and over IPv6 takes datagrams without a checksum (`UDP_NO_CHECK6_RX`; the devices `udp6zerocsumrx`).\n\n\
         {}",
        table(rows)
    )
}

/// The near and the far guest's address in a cell.
fn addresses(cell: &Cell) -> [String; 2] {
    let number = cell.number;
    match cell.mode.inner() {
        Family::V4 => [1, 2].map(|end| format!("10.1.{number}.{end}")),
        Family::V6 => [1, 2].map(|end| format!("fd00:1:{number}::{end}")),
    }
}

/// The number of a cell's logical network.
fn network(cell: &Cell) -> usize {
    match cell.mode {
        Mode::Transport(_) | Mode::Tunnel { .. } => 0,
        Mode::Overlay {
            encapsulation: Encapsulation::Vxlan,
            ..
        } => 1,
        Mode::Overlay {
            encapsulation: Encapsulation::Geneve,
            ..
        } => 2,
    }
}

/// A cell's key.
fn key(cell: &Cell) -> String {
    format!("{}-{}", NETWORKS[network(cell)], cell.number)
}

fn policy(cells: &[Cell]) -> String {
    let ports = |guest: &str, mac: &str, end: usize| {
        let port = |(number, network_name): (usize, &&str)| {
            let addresses: Vec<String> = cells
                .iter()
                .filter(|cell| network(cell) == number)
                .map(|cell| format!("\"{}\"", addresses(cell)[end]))
                .collect();
            format!(
                "\x20     - {{interface: gp-{guest}-{number}, network: {network_name}, mac: \"{mac}\", addresses: [{}]}}\n",
                addresses.join(", ")
            )
        };
        NETWORKS.iter().enumerate().map(port).collect::<String>()
    };
    let [flat, vxlan, geneve] = NETWORKS;
    let mut text = format!(
        "hosts:\n  - {{name: h1, addresses: [192.0.2.1, \"2001:db8::1\"]}}\n  - {{name: h2, addresses: [192.0.2.2, \"2001:db8::2\"]}}\n\
         networks:\n  - {{name: {flat}, type: flat}}\n  - {{name: {vxlan}, type: vxlan, vni: {}}}\n  - {{name: {geneve}, type: geneve, vni: {}}}\n\
         guests:\n  - id: near\n    host: h1\n    ports:\n{}  - id: far\n    host: h2\n    ports:\n{}keys:\n",
        VNIS[0],
        VNIS[1],
        ports("near", NEAR_MAC, 0),
        ports("far", FAR_MAC, 1)
    );
    for cell in cells {
        let (Cipher::Gcm(bits) | Cipher::Gmac(bits)) = cell.cipher;
        let _ = writeln!(text, "  - {{id: {}, suite: aes-{bits}-gcm}}", key(cell));
    }
    text += "rules:\n";
    for (name, what) in [
        ("arp", "ethertype: arp"),
        ("solicitation", "protocol: icmpv6, icmp-type: 135"),
        ("advertisement", "protocol: icmpv6, icmp-type: 136"),
    ] {
        let _ = writeln!(
            text,
            "  - {{name: {name}, from: {{network: {flat}}}, to: {{network: {flat}}}, {what}, action: plaintext}}"
        );
    }
    for cell in cells {
        let action = match cell.cipher {
            Cipher::Gcm(_) => "encrypt",
            Cipher::Gmac(_) => "authenticate",
        };
        let [near, far] = addresses(cell);
        let _ = writeln!(
            text,
            "  - {{name: cell-{}, from: {{cidr: \"{near}\"}}, to: {{cidr: \"{far}\"}}, action: {action}, key: {}}}",
            cell.number,
            key(cell)
        );
    }
    text
}

impl Bench {
    fn new(setting: &Setting, cells: &[Cell]) -> Result<Self, PerfError> {
        let program = std::env::current_exe().map_err(PerfError::io("this program's own file"))?;
        let mut deployment = Deployment::new("interop", &policy(cells), &[])?;
        for sa in &mut deployment.sas {
            let Some(cell) = cells.iter().find(|cell| sa.key == key(cell)) else {
                continue;
            };
            sa.tunnel = matches!(cell.mode, Mode::Tunnel { .. });
            let mut extra = format!("esn: {}", cell.esn);
            if cell.mode.over_ip6() {
                extra += ", over-ip6: true";
            }
            if matches!(cell.mode, Mode::Overlay { in_udp: true, .. }) {
                extra += ", udp-encapsulation: true";
            }
            if sa.to == 0 {
                let _ = write!(extra, ", replay-window: {}", cell.own_window());
            }
            sa.extra = extra;
        }
        let guests: Vec<_> = deployment
            .guests(1)
            .into_iter()
            .filter(|guest| guest.host == 0)
            .collect();
        let topology = Topology::new(1, 1, &guests)?;
        let wire = &topology.wire;
        wire.ip("tuntap add dev machine0 mode tap vnet_hdr")?;
        wire.ip("link set machine0 master br0 up")?;

        let boot = setting.boot(
            "interop",
            "cloud-amd64",
            MODULES,
            &["ip", "ss", "ping", "ethtool", "socat"]
                .map(PathBuf::from)
                .into_iter()
                .chain([program.clone()])
                .collect::<Vec<_>>(),
        )?;
        let spec = MachineSpec {
            name: "far".into(),
            memory: 512,
            cpus: 1,
            nodes: 1,
            nics: vec![Nic {
                tap: "machine0".into(),
                device: format!("virtio-net-pci,mac={FAR_MAC}"),
                queues: 1,
            }],
        };
        let mut machine = Machine::start(wire, &boot.image, &boot.initramfs, &spec, &setting.logs)?;
        far::configure(&mut machine, cells, &deployment)?;
        machine.begin("collected", &format!("guestseal-perf actor collect {PORT}"))?;
        machine.wait_until("the collector", PATIENCE, "grep listening /tmp/collected")?;

        let cpu = cpus()?[0];
        deployment.write_host(0, &format!("workers: [{{queue: 0, cpu: {cpu}}}]"))?;
        for cell in cells.iter().filter(|cell| cell.start == Start::BeforeWrap) {
            deployment.set_mark(0, &format!("{}-h1-h2", key(cell)), u64::from(BEFORE_WRAP))?;
        }
        let host = deployment.start(0, &topology.hosts[0], &[])?;
        if cells.iter().any(|cell| matches!(cell.mode, Mode::Tunnel { .. })) {
            // What is sent before that is dropped, and no cell sends anything twice.
            wait_for("the way to the machine", PATIENCE, || {
                Ok(host
                    .process
                    .errors()
                    .contains("host h2 is reached by")
                    .then_some(()))
            })?;
        }
        let mut near = Vec::new();
        for guest in &topology.guests {
            near.push(actor::serve(
                &program,
                &guest.namespace,
                deployment.directory(),
                &["collect", &PORT.to_string()],
            )?);
        }
        let capture = |interface| Capture::start(&topology.wire, interface, deployment.directory());
        let captures = vec![capture("host0")?, capture("machine0")?];
        Ok(Self {
            from_host: Sealed::new(captures[0].file()),
            from_machine: Sealed::new(captures[1].file()),
            captures,
            host,
            machine,
            near,
            topology,
            deployment,
            program,
            guestseal_refuses: Refused::default(),
            linux_refuses: Refused::default(),
        })
    }

    /// One direction of a cell.
    fn cell(&mut self, cell: &Cell, direction: Direction) -> Result<(), PerfError> {
        let marker = marker(cell, direction);
        far::turn_to(&mut self.machine, cell)?;
        // One ahead: neighbours are found, and the receiver's window begins, before many come at once.
        self.send(cell, direction, &marker, 1..=1, 0)?;
        self.wait_for_number(&marker, direction, 1)?;
        self.send(cell, direction, &marker, 2..=DATAGRAMS, 0)?;
        let expected: BTreeSet<u32> = (1..=cell.expected()).collect();
        self.wait_for_numbers(&marker, direction, &expected)?;

        // Everything again: nothing of it may arrive.
        let spi = self.spi(cell, direction);
        let sealed = self.sealed(direction).take(spi, expected.len())?;
        self.inject(direction, &sealed)?;
        if cell.edges {
            self.edges(cell, direction, spi)?;
        }
        let refused = |window| Refused::of(cell.esn, window, cell.expected(), u32::from(cell.edges));
        match direction {
            Direction::Guestseal => {
                let refused = refused(cell.window);
                self.linux_refuses.add(refused);
                self.wait_for_state(spi, refused)?;
            }
            Direction::Linux => self.guestseal_refuses.add(refused(cell.own_window())),
        }
        self.exactly(&marker, direction, &expected)
    }

    /// Two packets are held back while others move the receiver's window: the first is then late by the window, the second
    /// by one less.
    fn edges(&mut self, cell: &Cell, direction: Direction, spi: u32) -> Result<(), PerfError> {
        let (port, window) = match direction {
            Direction::Guestseal => ("machine0", cell.window),
            Direction::Linux => ("host0", cell.own_window()),
        };
        let (held, moved) = (
            format!("{}-held", marker(cell, direction)),
            format!("{}-moved", marker(cell, direction)),
        );
        // The replays were captured, too.
        self.sealed(direction).forget(spi)?;
        self.bridge_port(port, "disabled")?;
        self.send(cell, direction, &held, 1..=2, 0)?;
        let late = self.sealed(direction).take(spi, 2)?;
        self.bridge_port(port, "forwarding")?;
        self.send(cell, direction, &moved, 1..=window - 1, PACE)?;
        self.wait_for_number(&moved, direction, window - 1)?;
        self.inject(direction, &late)?;
        self.wait_for_number(&held, direction, 2)?;
        self.exactly(&held, direction, &BTreeSet::from([2]))
    }

    fn send(
        &mut self,
        cell: &Cell,
        direction: Direction,
        marker: &str,
        numbers: RangeInclusive<u32>,
        rate: u32,
    ) -> Result<(), PerfError> {
        let [near, far] = addresses(cell);
        let words = |to: &str| {
            let (first, last) = (numbers.start(), numbers.end());
            format!("send {to} {PORT} {marker} {last} --first {first} --rate {rate}")
        };
        match direction {
            Direction::Guestseal => {
                let words = words(&far);
                let words: Vec<&str> = words.split(' ').collect();
                let guest = &self.topology.guests[network(cell)];
                actor::play_in(&self.program, &guest.namespace, &words)?;
            }
            Direction::Linux => {
                self.machine
                    .run(&format!("guestseal-perf actor {}", words(&near)))?;
            }
        }
        Ok(())
    }

    /// How often each number of a marker has arrived.
    fn collected(&mut self, marker: &str, direction: Direction) -> Result<BTreeMap<u32, u32>, PerfError> {
        let text = match direction {
            Direction::Linux => self.near.iter_mut().map(Running::output).collect(),
            Direction::Guestseal => self
                .machine
                .run(&format!("grep '^{marker} ' /tmp/collected || true"))?,
        };
        let mut numbers = BTreeMap::new();
        for line in text.lines() {
            if let Some(number) = line
                .strip_prefix(marker)
                .and_then(|rest| rest.strip_prefix(' '))
                .and_then(|digits| digits.parse().ok())
            {
                *numbers.entry(number).or_default() += 1;
            }
        }
        Ok(numbers)
    }

    fn wait_for_numbers(
        &mut self,
        marker: &str,
        direction: Direction,
        expected: &BTreeSet<u32>,
    ) -> Result<(), PerfError> {
        let mut missing = expected.len();
        let waited = wait_for(&format!("{marker} to arrive"), PATIENCE, || {
            let collected = self.collected(marker, direction)?;
            missing = expected
                .iter()
                .filter(|number| !collected.contains_key(number))
                .count();
            Ok((missing == 0).then_some(()))
        });
        waited.map_err(|error| match error {
            PerfError::Timeout { .. } => wrong(format!(
                "{missing} of {} datagrams did not arrive",
                expected.len()
            )),
            other => other,
        })
    }

    fn wait_for_number(&mut self, marker: &str, direction: Direction, number: u32) -> Result<(), PerfError> {
        wait_for(
            &format!("datagram {number} of {marker} to arrive"),
            PATIENCE,
            || {
                Ok(self
                    .collected(marker, direction)?
                    .contains_key(&number)
                    .then_some(()))
            },
        )
    }

    /// Fails if something arrived twice, or that should not.
    fn exactly(
        &mut self,
        marker: &str,
        direction: Direction,
        expected: &BTreeSet<u32>,
    ) -> Result<(), PerfError> {
        let collected = self.collected(marker, direction)?;
        let numbers: BTreeSet<u32> = collected.keys().copied().collect();
        if numbers != *expected {
            return Err(wrong(format!("{numbers:?} arrived, expected {expected:?}")));
        }
        match collected.iter().find(|(_, times)| **times != 1) {
            Some((number, times)) => Err(wrong(format!("datagram {number} arrived {times} times"))),
            None => Ok(()),
        }
    }

    fn spi(&self, cell: &Cell, direction: Direction) -> u32 {
        let name = match direction {
            Direction::Guestseal => format!("{}-h1-h2", key(cell)),
            Direction::Linux => format!("{}-h2-h1", key(cell)),
        };
        let sa = self.deployment.sas.iter().find(|sa| sa.name == name);
        sa.map_or(0, |sa| sa.spi)
    }

    fn sealed(&mut self, direction: Direction) -> &mut Sealed {
        match direction {
            Direction::Guestseal => &mut self.from_host,
            Direction::Linux => &mut self.from_machine,
        }
    }

    /// Puts frames on the wire, towards who opens them.
    fn inject(&self, direction: Direction, frames: &[Vec<u8>]) -> Result<(), PerfError> {
        let port = match direction {
            Direction::Guestseal => "machine0",
            Direction::Linux => "host0",
        };
        inject(&self.topology.wire, port, frames)
    }

    fn bridge_port(&self, port: &str, state: &str) -> Result<(), PerfError> {
        self.topology
            .wire
            .run(&format!("bridge link set dev {port} state {state}"))?;
        Ok(())
    }

    /// Waits until the machine's kernel says of an SA that it has refused this and nothing else.
    fn wait_for_state(&mut self, spi: u32, refused: Refused) -> Result<(), PerfError> {
        let expected = format!(
            "replay-window {} replay {} failed {}",
            refused.too_old, refused.seen, refused.bad_tag
        );
        let mut seen = String::new();
        let machine = &mut self.machine;
        let waited = wait_for("the kernel to refuse", PATIENCE, || {
            let text = machine.run(&format!("ip -s xfrm state list spi {spi:#x}"))?;
            let stats = text.lines().skip_while(|line| !line.contains("stats:")).nth(1);
            seen = stats.unwrap_or_default().trim().to_owned();
            Ok((seen == expected).then_some(()))
        });
        waited.map_err(|error| match error {
            PerfError::Timeout { .. } => wrong(format!("Linux counts `{seen}`, expected `{expected}`")),
            other => other,
        })
    }

    /// All that the machine's kernel counts as errors of ESP must be what was played in.
    fn check_kernel(&mut self, exhausted: u32) -> Result<(), PerfError> {
        let Refused {
            too_old,
            seen,
            bad_tag,
        } = self.linux_refuses;
        for line in self.machine.run("cat /proc/net/xfrm_stat")?.lines() {
            let mut words = line.split_whitespace();
            let (name, count) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let expected = match name {
                "XfrmInStateSeqError" => too_old + seen,
                "XfrmInStateProtoError" => bad_tag,
                "XfrmOutStateSeqError" => exhausted,
                _ => 0,
            };
            if count != expected.to_string() {
                return Err(wrong(format!(
                    "the machine's kernel counts {name} {count}, expected {expected}"
                )));
            }
        }
        Ok(())
    }

    /// The end: nothing came late, totals balance and name what was refused, the wire had no plaintext.
    fn end(&mut self, cells: &[Cell]) -> Result<(), PerfError> {
        for cell in cells {
            for direction in [Direction::Guestseal, Direction::Linux] {
                let expected: BTreeSet<u32> = (1..=cell.expected()).collect();
                self.exactly(&marker(cell, direction), direction, &expected)?;
            }
        }
        let exhausted: u32 = cells.iter().map(|cell| DATAGRAMS - cell.expected()).sum();
        self.check_kernel(exhausted)?;
        let totals = self.host.stop()?;
        if let Some(what) = imbalance(&totals) {
            return Err(wrong(what));
        }
        let Refused {
            too_old,
            seen,
            bad_tag,
        } = self.guestseal_refuses;
        for (reason, expected) in [
            ("ReplaySeen", seen),
            ("ReplayTooOld", too_old),
            ("BadTag", bad_tag),
            ("SequenceExhausted", exhausted),
        ] {
            let seen = number(&totals, &format!("/outcomes/dropped/{reason}"));
            if seen != u64::from(expected) {
                return Err(wrong(format!(
                    "{seen} packets dropped as {reason}, expected {expected}: {totals}"
                )));
            }
        }
        let readable: BTreeSet<String> = self
            .deployment
            .sas
            .iter()
            .filter(|sa| sa.authenticate)
            .map(|sa| format!("ESP {:#010x}", sa.spi))
            .collect();
        for capture in self.captures.drain(..) {
            for (kind, count) in kinds_with(&capture.stop()?, MARKER) {
                if !readable.contains(&kind) {
                    return Err(wrong(format!(
                        "{count} frames of {kind} are readable on the wire"
                    )));
                }
            }
        }
        self.machine.stop()
    }
}

fn marker(cell: &Cell, direction: Direction) -> String {
    let who = match direction {
        Direction::Guestseal => "out",
        Direction::Linux => "back",
    };
    format!("{MARKER}-{}-{who}", cell.number)
}

fn wrong(why: String) -> PerfError {
    PerfError::Wrong(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_the_window_is_too_old_or_of_the_next_numbers() {
        let refused = |too_old, seen, bad_tag| Refused {
            too_old,
            seen,
            bad_tag,
        };
        assert_eq!(Refused::of(false, 32, 40, 1), refused(9, 32, 0));
        assert_eq!(Refused::of(true, 32, 40, 1), refused(0, 32, 9));
        assert_eq!(Refused::of(true, 1024, 40, 0), refused(0, 40, 0));
    }
}
