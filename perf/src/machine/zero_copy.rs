//! Zero-copy on real drivers: Guestseal runs inside a machine whose uplink and guest port are network cards.
//!
//! ```text
//!  near --veth-- [h1: guestseal, copy] --veth-- [wire: bridge] --tap-- [machine h2: eth0  guestseal  eth1] --tap-- far
//! ```
//!
//! The mode is read back from the kernel twice, by Guestseal and by `ss`. Sealed traffic goes both ways for a while, then the
//! uplink goes down and up and Guestseal is started anew, all under load; and it seals in place and out of place, in turns. At each
//! end the totals must balance.

use std::path::PathBuf;
use std::time::Duration;

use crate::actor;
use crate::capture::{Capture, esp_of, kinds_with};
use crate::deployment::{Deployment, Host, imbalance, number};
use crate::namespaces::{GUEST_MTU, Namespace, Topology};
use crate::process::{PerfError, Running, cpus, wait_for};

use super::Setting;
use super::inside::{Inside, bound};
use super::qemu::{Machine, MachineSpec, Nic};
use super::tally::Tally;

const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_net",
    "igb",
    "af_packet",
    "xsk_diag",
    "veth",
];
const PATIENCE: Duration = Duration::from_secs(60);
const MARKER: &str = "zero-copy-datagram";
/// Of the machine's UMEM.
const FRAMES: u32 = 4096;
const PORT: &str = "7001";
/// Datagrams a second in each direction: well below what a machine without KVM takes.
const RATE: u32 = 1000;

/// A driver, and how QEMU is told to have it.
struct Driver {
    name: &'static str,
    flavour: &'static str,
    /// QEMU's device and its options.
    device: &'static str,
    /// Bytes of a UMEM frame that the driver needs for packets of 1500 bytes.
    frame_size: u32,
    /// Seconds of traffic both ways.
    seconds: u32,
}

const VIRTIO: Driver = Driver {
    name: "virtio_net",
    flavour: "cloud-amd64",
    // The driver needs the device to use the DMA API (ACCESS_PLATFORM), and QEMU offers that to modern devices alone.
    device: "virtio-net-pci,iommu_platform=on,disable-legacy=on,rx_queue_size=1024",
    frame_size: 2048,
    seconds: 60,
};

const IGB: Driver = Driver {
    name: "igb",
    flavour: "amd64",
    device: "igb",
    frame_size: 4096,
    seconds: 60,
};

/// On virtio_net.
///
/// # Errors
/// If it cannot be set up.
pub fn virtio(setting: &Setting, tally: &mut Tally) -> Result<(), PerfError> {
    run(setting, &VIRTIO, tally)
}

/// On igb.
///
/// # Errors
/// If it cannot be set up.
pub fn igb(setting: &Setting, tally: &mut Tally) -> Result<(), PerfError> {
    run(setting, &IGB, tally)
}

const POLICY: &str = r#"
hosts:
  - {name: h1, addresses: [192.0.2.1]}
  - {name: h2, addresses: [192.0.2.2]}
networks:
  - {name: blue, type: flat}
guests:
  - {id: near, host: h1, ports: [{interface: gp-near, network: blue, mac: "02:00:00:01:00:01", addresses: [10.1.0.1]}]}
  - {id: far, host: h2, ports: [{interface: eth1, network: blue, mac: "02:00:00:01:00:02", addresses: [10.1.0.2]}]}
keys:
  - {id: blue-any}
rules:
  - {name: arp, from: any, to: any, ethertype: arp, action: plaintext}
  - {name: blue, from: {network: blue}, to: {network: blue}, action: encrypt, key: blue-any}
"#;

struct Bench {
    // In the order in which they must go: programs before namespaces, namespaces before files.
    near_host: Host,
    machine: Machine,
    inside: Inside,
    collectors: [Running; 2],
    capture: Option<Capture>,
    far: Namespace,
    topology: Topology,
    deployment: Deployment,
    program: PathBuf,
}

fn run(setting: &Setting, driver: &Driver, tally: &mut Tally) -> Result<(), PerfError> {
    println!("zero-copy on {}", driver.name);
    let mut bench = Bench::new(setting, driver)?;
    let mut step = |what: &str, result: Result<(), PerfError>| -> Result<bool, PerfError> {
        if let Err(PerfError::Interrupted) = result {
            return Err(PerfError::Interrupted);
        }
        tally.count(&format!("zero-copy on {}: {what}", driver.name), &result);
        Ok(result.is_ok())
    };
    let begun = bench.begins();
    if step("`--zero-copy require` binds, the kernel and ss say so", begun)? {
        let near = bench.memory_is_near(driver);
        step("the UMEM is on the memory node of the uplink's card", near)?;
        let seconds = if setting.short { 10 } else { driver.seconds };
        let passed = bench.both_ways("steady", RATE * seconds, 0);
        step(
            &format!("{seconds} s both ways, every datagram whole and once"),
            passed,
        )?;
        // igb's zero-copy mode mixes up frames under load, in place or not: nothing that it loses says anything of either.
        if driver.name != "igb" {
            let compared = bench.in_place_and_not(if setting.short { 5 } else { 10 });
            step("sealed in place and out of place, in turns", compared)?;
        }
        let survived = bench.link_flaps();
        step("the uplink goes down and up three times under load", survived)?;
        let survived = bench.restarts();
        step(
            "XDP is detached and attached twice under load, totals balance",
            survived,
        )?;
    }
    if driver.frame_size > 2048 {
        let refused = bench.refuses_small_frames();
        step("small frames are refused, and `auto` takes copy mode", refused)?;
    }
    let fallen = bench.falls_back();
    step(
        "`auto` falls back to copy where the driver cannot, `require` refuses",
        fallen,
    )?;
    let ended = bench.end();
    step("no plaintext on the wire, totals of both ends balance", ended)?;
    Ok(())
}

/// Whether guestseal has said all of these.
fn ensure_said(said: &str, expected: [&str; 2]) -> Result<(), PerfError> {
    match expected.into_iter().find(|words| !said.contains(words)) {
        None => Ok(()),
        Some(words) => Err(PerfError::Wrong(format!(
            "guestseal does not say \"{words}\": {said}"
        ))),
    }
}

impl Bench {
    fn new(setting: &Setting, driver: &Driver) -> Result<Self, PerfError> {
        let program = std::env::current_exe().map_err(PerfError::io("this program's own file"))?;
        let deployment = Deployment::new(&format!("zero-copy-{}", driver.name), POLICY, &[])?;
        let guests: Vec<_> = deployment
            .guests(1)
            .into_iter()
            .filter(|guest| guest.host == 0)
            .collect();
        let topology = Topology::new(1, 1, &guests)?;
        let wire = &topology.wire;
        for tap in ["machine0", "machine1"] {
            wire.ip(&format!("tuntap add dev {tap} mode tap vnet_hdr"))?;
        }
        wire.ip("link set machine0 master br0 up")?;
        let programs = ["ip", "ss", "ping", "ethtool"].map(PathBuf::from);
        let boot = setting.boot(
            driver.name,
            driver.flavour,
            MODULES,
            &[programs.as_slice(), &[crate::deployment::program()]].concat(),
        )?;
        let nic = |number: u32| Nic {
            tap: format!("machine{number}"),
            device: format!("{},mac=52:54:00:00:02:0{number}", driver.device),
            queues: 1,
        };
        let spec = MachineSpec {
            name: format!("h2-{}", driver.name),
            memory: 768,
            cpus: 1,
            nodes: 2,
            nics: vec![nic(0), nic(1)],
        };
        let mut machine = Machine::start(wire, &boot.image, &boot.initramfs, &spec, &setting.logs)?;
        // QEMU keeps its end of the tap: the other end is the guest's own network card.
        let far = Namespace::new("far")?;
        wire.ip(&format!("link set machine1 netns {} name eth0", far.name()))?;
        far.ip("link set eth0 address 02:00:00:01:00:02")?;
        far.ip(&format!("link set eth0 mtu {GUEST_MTU} up"))?;
        far.ip("addr add 10.1.0.2/24 dev eth0")?;

        machine.run(
            // A tap hands over whatever its guest sends; a card stands in for it here, and must be told to.
            "ip link set eth1 promisc on\n\
             for nic in eth0 eth1; do\n\
               echo 1 >/proc/sys/net/ipv6/conf/$nic/disable_ipv6\n\
               ip link set $nic up\n\
             done\n\
             ip addr add 192.0.2.2/24 dev eth0\n\
             card=$(readlink -f /sys/class/net/eth0/device)\n\
             [ -e $card/numa_node ] || card=${card%/*}\n\
             echo 1 >$card/numa_node",
        )?;
        let inside = Inside::install(
            &mut machine,
            &deployment,
            1,
            &format!(
                "workers: [{{queue: 0, cpu: 0}}]\numem: {{frames: {FRAMES}, frame-size: {}}}\nin-place: false",
                driver.frame_size
            ),
        )?;
        let cpu = cpus()?[0];
        deployment.write_host(0, &format!("workers: [{{queue: 0, cpu: {cpu}}}]"))?;
        let near_host = deployment.start(0, &topology.hosts[0], &[])?;
        let collect =
            |namespace| actor::serve(&program, namespace, deployment.directory(), &["collect", PORT]);
        let collectors = [collect(&topology.guests[0].namespace)?, collect(&far)?];
        let capture = Some(Capture::start(wire, "machine0", deployment.directory())?);
        Ok(Self {
            near_host,
            machine,
            inside,
            collectors,
            capture,
            far,
            topology,
            deployment,
            program,
        })
    }

    fn begins(&mut self) -> Result<(), PerfError> {
        let said = self
            .inside
            .start(&mut self.machine, "--uplink eth0 --zero-copy require")?;
        for line in said.lines().filter(|line| line.contains("sockets")) {
            println!("         {line}");
        }
        ensure_said(
            &said,
            [
                "uplink eth0: XDP native, sockets zero-copy",
                "guest port eth1: XDP native, sockets zero-copy",
            ],
        )?;
        self.zero_copy_by_ss()?;
        self.reach()
    }

    /// The card is on the second memory node, the worker's CPU on the first.
    fn memory_is_near(&mut self, driver: &Driver) -> Result<(), PerfError> {
        let said = self.inside.said(&mut self.machine)?;
        ensure_said(
            &said,
            [
                "memory of node 1",
                "on CPU 0 is on memory node 0, and its frames on node 1",
            ],
        )?;
        let maps = self
            .machine
            .run("cat /proc/$(cat /tmp/guestseal.pid)/numa_maps")?;
        // Shared memory without a file.
        let umem = maps.lines().find(|line| line.contains("file=/dev/zero"));
        let pages_on = |node: &str| {
            let mut fields = umem.unwrap_or_default().split_whitespace();
            let pages = fields.find_map(|field| field.strip_prefix(node)?.parse::<u64>().ok());
            pages.unwrap_or(0)
        };
        let all = u64::from(FRAMES) * u64::from(driver.frame_size) / 4096;
        if pages_on("N1=") == all && pages_on("N0=") == 0 {
            Ok(())
        } else {
            Err(PerfError::Wrong(format!(
                "{all} pages of a UMEM on node 1: {maps}"
            )))
        }
    }

    fn zero_copy_by_ss(&mut self) -> Result<(), PerfError> {
        let (sockets, text) = bound(&mut self.machine)?;
        for line in text.lines().filter(|line| line.contains("umem(")) {
            println!("         {}", line.trim());
        }
        if sockets.len() == 2 && sockets.iter().all(|socket| socket.zero_copy) {
            Ok(())
        } else {
            Err(PerfError::Wrong(format!(
                "expected two sockets in zero-copy mode: {text}"
            )))
        }
    }

    /// Waits until the guests reach each other.
    fn reach(&self) -> Result<(), PerfError> {
        let near = &self.topology.guests[0].namespace;
        wait_for("the guests to reach each other", PATIENCE, || {
            Ok(near.run("ping -c 3 -i 0.1 -W 1 -q 10.1.0.2").ok())
        })?;
        Ok(())
    }

    /// Starts datagrams in both directions.
    fn flood(&self, marker: &str, count: u32) -> Result<[Running; 2], PerfError> {
        let send = |namespace: &Namespace, to: &str, way: &str| {
            let mut command = namespace.command(&self.program);
            let (marker, count) = (format!("{MARKER}-{marker}-{way}"), count.to_string());
            command.args([
                "actor",
                "send",
                to,
                PORT,
                &marker,
                &count,
                "--rate",
                &RATE.to_string(),
            ]);
            Running::start(
                &format!("send-{marker}"),
                self.deployment.directory(),
                &mut command,
            )
        };
        Ok([
            send(&self.topology.guests[0].namespace, "10.1.0.2", "out")?,
            send(&self.far, "10.1.0.1", "back")?,
        ])
    }

    /// Distinct numbers of a marker that came, and how many came more than once, at who collects them.
    fn collected(&mut self, marker: &str) -> [(usize, usize); 2] {
        let mut seen = [(0, 0); 2];
        for (place, (collector, way)) in [(1, "out"), (0, "back")].into_iter().enumerate() {
            let prefix = format!("{MARKER}-{marker}-{way} ");
            let text = self.collectors[collector].output();
            let mut numbers: Vec<&str> = text
                .lines()
                .filter_map(|line| line.strip_prefix(&prefix))
                .collect();
            let all = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            seen[place] = (numbers.len(), all - numbers.len());
        }
        seen
    }

    /// Datagrams in both directions, of which so many may be lost.
    fn both_ways(&mut self, marker: &str, count: u32, may_miss: usize) -> Result<(), PerfError> {
        for mut sender in self.flood(marker, count)? {
            sender.finish(Duration::from_secs(u64::from(count / RATE) + 60))?;
        }
        let expected = count as usize - may_miss;
        let mut seen = [(0, 0); 2];
        let waited = wait_for("datagrams to arrive", Duration::from_secs(10), || {
            seen = self.collected(marker);
            Ok(seen.iter().all(|(numbers, _)| *numbers >= expected).then_some(()))
        });
        println!(
            "         {} of {count} to the machine, {} of {count} from it",
            seen[0].0, seen[1].0
        );
        match waited {
            Ok(()) | Err(PerfError::Timeout { .. }) => {}
            Err(error) => return Err(error),
        }
        if seen
            .iter()
            .any(|(numbers, twice)| *numbers < expected || *twice > 0)
        {
            return Err(PerfError::Wrong(format!(
                "of {count} datagrams each way (different, more than once) arrived: {seen:?}"
            )));
        }
        Ok(())
    }

    fn link_flaps(&mut self) -> Result<(), PerfError> {
        let _senders = self.flood("flaps", RATE * 600)?;
        for _ in 0..3 {
            self.flows("flaps")?;
            self.machine.run("ip link set eth0 down")?;
            self.machine.run("ip link set eth0 up")?;
        }
        self.flows("flaps")?;
        self.zero_copy_by_ss()
    }

    /// Waits until more arrives in both directions.
    fn flows(&mut self, marker: &str) -> Result<(), PerfError> {
        let before = self.collected(marker);
        wait_for("traffic to flow both ways", PATIENCE, || {
            let now = self.collected(marker);
            let more = before
                .iter()
                .zip(&now)
                .all(|(before, now)| now.0 > before.0 + 200);
            Ok(more.then_some(()))
        })
    }

    fn restarts(&mut self) -> Result<(), PerfError> {
        let _senders = self.flood("restarts", RATE * 600)?;
        for _ in 0..2 {
            self.flows("restarts")?;
            let totals = self.inside.stop(&mut self.machine)?;
            println!("         totals: {}", totals["outcomes"]);
            self.inside
                .start(&mut self.machine, "--uplink eth0 --zero-copy require")?;
        }
        self.flows("restarts")
    }

    /// The same traffic sealed out of place and in place, twice each, and what Guestseal had of the CPU for it. Without KVM the
    /// figures are worth something beside one another only.
    fn in_place_and_not(&mut self, seconds: u32) -> Result<(), PerfError> {
        const FILE: &str = "/etc/guestseal/h2.yaml";
        let mut taken = [[0; 2]; 2];
        for (turn, in_place) in [false, true, true, false].into_iter().enumerate() {
            self.stop_inside()?;
            self.machine
                .run(&format!("sed -i 's/^in-place:.*/in-place: {in_place}/' {FILE}"))?;
            let said = self
                .inside
                .start(&mut self.machine, "--uplink eth0 --zero-copy require")?;
            if said.contains("sealed in place") != in_place {
                return Err(PerfError::Wrong(format!(
                    "`in-place: {in_place}` is not in force: {said}"
                )));
            }
            self.zero_copy_by_ss()?;
            self.reach()?;
            let before = self.cpu_ticks()?;
            self.both_ways(&format!("turn-{turn}"), RATE * seconds, 0)?;
            let after = self.cpu_ticks()?;
            for (sum, (after, before)) in taken[usize::from(in_place)]
                .iter_mut()
                .zip(after.into_iter().zip(before))
            {
                *sum += after - before;
            }
        }
        // A tick is 10 ms; so many packets were sealed, and as many opened.
        let each = |ticks: u64| ticks as f64 * 10_000.0 / f64::from(2 * RATE * seconds);
        for (what, [user, system]) in ["out of place", "in place"].into_iter().zip(taken) {
            println!(
                "         {what}: {:.0} us of the CPU for a packet out and one in, {:.0} of them not in the kernel",
                each(user + system),
                each(user)
            );
        }
        self.stop_inside()?;
        self.machine
            .run(&format!("sed -i 's/^in-place:.*/in-place: false/' {FILE}"))?;
        self.inside
            .start(&mut self.machine, "--uplink eth0 --zero-copy require")?;
        self.reach()
    }

    /// What Guestseal has had of the CPU, in its own code and in the kernel.
    fn cpu_ticks(&mut self) -> Result<[u64; 2], PerfError> {
        let stat = self.machine.run("cat /proc/$(cat /tmp/guestseal.pid)/stat")?;
        // proc_pid_stat(5): utime and stime are the 14th and 15th, the second is a name in parentheses.
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let mut fields = after_name.split_whitespace().skip(11).map(str::parse);
        match (fields.next(), fields.next()) {
            (Some(Ok(user)), Some(Ok(system))) => Ok([user, system]),
            _ => Err(PerfError::Malformed {
                what: "/proc/*/stat".into(),
                why: stat,
            }),
        }
    }

    fn refuses_small_frames(&mut self) -> Result<(), PerfError> {
        self.stop_inside()?;
        let file = "/etc/guestseal/h2.yaml";
        self.machine.run(&format!(
            "cp {file} /tmp/h2.yaml && sed -i 's/frame-size: 4096/frame-size: 2048/' {file}"
        ))?;
        let started = self
            .inside
            .start(&mut self.machine, "--uplink eth0 --zero-copy require");
        self.machine.run(&format!("cp /tmp/h2.yaml {file}"))?;
        match started {
            Err(PerfError::Wrong(said)) if said.contains("set umem.frame-size to 4096") => {}
            Err(error) => return Err(error),
            Ok(said) => {
                return Err(PerfError::Wrong(format!(
                    "frames of 2048 bytes were taken: {said}"
                )));
            }
        }
        // The one driver with such frames is also one whose zero-copy mode is not to be chosen without being told to.
        let said = self
            .inside
            .start(&mut self.machine, "--uplink eth0 --zero-copy auto")?;
        self.inside.stop(&mut self.machine)?;
        if said.contains("it is not chosen") && said.contains("uplink eth0: XDP native, sockets copy") {
            Ok(())
        } else {
            Err(PerfError::Wrong(format!("`auto` should take copy mode: {said}")))
        }
    }

    /// Ends Guestseal in the machine, if it runs; it must have sealed and delivered.
    fn stop_inside(&mut self) -> Result<(), PerfError> {
        if self
            .machine
            .try_run("[ -e /proc/$(cat /tmp/guestseal.pid)/exe ]")?
            .0
            != 0
        {
            return Ok(());
        }
        let totals = self.inside.stop(&mut self.machine)?;
        println!("         totals: {}", totals["outcomes"]);
        for way in ["/outcomes/sent_encrypted", "/outcomes/delivered"] {
            if number(&totals, way) == 0 {
                return Err(PerfError::Wrong(format!("nothing in {way}: {totals}")));
            }
        }
        Ok(())
    }

    fn falls_back(&mut self) -> Result<(), PerfError> {
        self.stop_inside()?;
        self.machine.run(
            "ip link add veth0 type veth peer name veth1 && ip link set veth0 up && ip link set veth1 up",
        )?;
        match self
            .inside
            .start(&mut self.machine, "--uplink veth0 --zero-copy require")
        {
            Err(PerfError::Wrong(said))
                if said.contains("the driver cannot: use --zero-copy auto or off") => {}
            Err(error) => return Err(error),
            Ok(said) => return Err(PerfError::Wrong(format!("zero-copy on veth: {said}"))),
        }
        let said = self
            .inside
            .start(&mut self.machine, "--uplink veth0 --zero-copy auto")?;
        for words in ["no zero-copy: ", "uplink veth0: XDP native, sockets copy"] {
            if !said.contains(words) {
                return Err(PerfError::Wrong(format!(
                    "guestseal does not say \"{words}\": {said}"
                )));
            }
        }
        let (sockets, text) = bound(&mut self.machine)?;
        if sockets.iter().any(|socket| socket.zero_copy) {
            return Err(PerfError::Wrong(format!("expected copy mode: {text}")));
        }
        self.inside.stop(&mut self.machine)?;
        Ok(())
    }

    fn end(&mut self) -> Result<(), PerfError> {
        let totals = self.near_host.stop()?;
        if let Some(what) = imbalance(&totals) {
            return Err(PerfError::Wrong(what));
        }
        let Some(capture) = self.capture.take() else {
            return Ok(());
        };
        let frames = capture.stop()?;
        let sealed = frames.iter().filter(|frame| esp_of(frame).is_some()).count();
        let readable = kinds_with(&frames, MARKER);
        if sealed == 0 || !readable.is_empty() {
            return Err(PerfError::Wrong(format!(
                "{sealed} sealed frames, readable: {readable:?}"
            )));
        }
        self.machine.stop()
    }
}
