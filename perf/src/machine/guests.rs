//! Guests as users have them: two QEMU machines on two hosts, virtio-net on taps, each in two logical networks.
//!
//! ```text
//!  [machine eth0, eth1] --taps blue-1, red-1-- [h1: guestseal] --veth-- [wire] --veth-- [h2: guestseal] --taps blue-2, red-2-- [machine]
//! ```
//!
//! What docs/guests.md tells users to type is what is done here.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::capture::Capture;
use crate::deployment::{Deployment, Host, imbalance, number};
use crate::namespaces::{GUEST_MTU, Topology};
use crate::process::{PerfError, cpus, wait_for};

use super::qemu::{Machine, MachineSpec, Nic};
use super::tally::{Step, Tally};
use super::{Setting, only_sealed};

const MODULES: &[&str] = &["virtio_pci", "virtio_console", "virtio_net", "af_packet"];
const PATIENCE: Duration = Duration::from_secs(60);
const MARKER: &str = "guests-page-marker";

/// What stops a guest from leaving checksums and segmentation to the host, in the guest.
const IN_GUEST: &str = "tx off tso off gso off";
/// The same, as options of QEMU's device.
const IN_QEMU: [&str; 6] = ["csum", "gso", "host_tso4", "host_tso6", "host_ufo", "host_ecn"];

const POLICY: &str = r#"
hosts:
  - {name: h1, addresses: [192.0.2.1]}
  - {name: h2, addresses: [192.0.2.2]}
networks:
  - {name: blue, type: flat}
  - {name: red, type: flat}
guests:
  - id: one
    host: h1
    ports:
      - {interface: blue-1, network: blue, mac: "52:54:00:00:01:00", addresses: [10.1.0.1]}
      - {interface: red-1, network: red, mac: "52:54:00:00:01:01", addresses: [10.2.0.1]}
  - id: two
    host: h2
    ports:
      - {interface: blue-2, network: blue, mac: "52:54:00:00:02:00", addresses: [10.1.0.2]}
      - {interface: red-2, network: red, mac: "52:54:00:00:02:01", addresses: [10.2.0.2]}
keys:
  - {id: blue-any}
  - {id: red-any}
  - {id: blue-remedy}
containers:
  - name: default
    transfers:
      - {name: infected, when: {tag: {service: av, severity: ">=70"}}, to: quarantine}
  - name: quarantine
    quarantine: true
    release: {when: {not: {tag: {service: av}}}}
    rules:
      - {name: quarantine-arp, from: members, to: any, ethertype: arp, action: plaintext}
      - {name: remediation, from: members, to: {guest: two}, protocol: tcp, ports: [8530], action: encrypt, key: blue-remedy}
      - {name: nobody-out, from: members, to: any, action: drop}
      - {name: nobody-in, from: any, to: members, action: drop}
rules:
  - {name: arp, from: any, to: any, ethertype: arp, action: plaintext}
  - {name: blue, from: {network: blue}, to: {network: blue}, action: encrypt, key: blue-any}
  - {name: red, from: {network: red}, to: {network: red}, action: encrypt, key: red-any}
"#;

struct Bench {
    // In the order in which they must go: programs before namespaces, namespaces before files.
    hosts: Vec<Host>,
    machines: Vec<Machine>,
    capture: Option<Capture>,
    topology: Topology,
    deployment: Deployment,
}

/// Runs them.
///
/// # Errors
/// If they cannot be set up.
pub fn run(setting: &Setting, tally: &mut Tally) -> Result<(), PerfError> {
    println!("guests: two machines on two hosts");
    let mut bench = Bench::new(setting)?;
    let steps: [Step<Bench>; 7] = [
        (
            "QEMU's defaults: guestseal names what to turn off; ping passes, and a page by TCP",
            Bench::defaults,
        ),
        ("ping in both networks, and between them nothing", Bench::pings),
        ("iperf3 TCP and UDP, an HTTP download by its hash", Bench::traffic),
        (
            "a guest found infected while it downloads reaches the remediation server only, and goes on when it is clean",
            Bench::quarantine,
        ),
        ("a guest is reset and comes back", Bench::reset),
        (
            "a card is unplugged, its tap deleted, and both come back with offloads off in QEMU",
            Bench::replug,
        ),
        (
            "no plaintext on the wire, totals of both hosts balance",
            Bench::end,
        ),
    ];
    tally.steps("guests", &mut bench, &steps)
}

/// The taps of a host, in the order of its guest's cards.
fn taps(host: usize) -> [String; 2] {
    ["blue", "red"].map(|network| format!("{network}-{}", host + 1))
}

impl Bench {
    fn new(setting: &Setting) -> Result<Self, PerfError> {
        let deployment = Deployment::new("guests", POLICY, &["red"])?;
        let topology = Topology::new(2, 1, &[])?;
        let boot = setting.boot(
            "guests",
            "cloud-amd64",
            MODULES,
            &["ip", "ss", "ping", "ethtool", "iperf3", "curl"].map(PathBuf::from),
        )?;
        let (mut machines, mut hosts) = (Vec::new(), Vec::new());
        let cpus = cpus()?;
        for host in 0..2 {
            for tap in taps(host) {
                make_tap(&topology, host, &tap)?;
            }
            let nics = taps(host)
                .into_iter()
                .enumerate()
                .map(|(number, tap)| Nic {
                    tap,
                    device: format!("virtio-net-pci,mac={}", mac(host, number)),
                    queues: 1,
                })
                .collect();
            let spec = MachineSpec {
                name: format!("guest-{}", host + 1),
                memory: 384,
                cpus: 1,
                nodes: 1,
                nics,
            };
            machines.push(Machine::start(
                &topology.hosts[host],
                &boot.image,
                &boot.initramfs,
                &spec,
                &setting.logs,
            )?);
            let cpu = cpus[host % cpus.len()];
            deployment.write_host(host, &format!("workers: [{{queue: 0, cpu: {cpu}}}]"))?;
            hosts.push(deployment.start(host, &topology.hosts[host], &[])?);
        }
        let capture = Some(Capture::start(&topology.wire, "host0", deployment.directory())?);
        let mut bench = Self {
            hosts,
            machines,
            capture,
            topology,
            deployment,
        };
        for host in 0..2 {
            bench.configure(host)?;
        }
        Ok(bench)
    }

    /// Addresses of a guest, as its own start-up would set them.
    fn configure(&mut self, host: usize) -> Result<(), PerfError> {
        let end = host + 1;
        self.machines[host].run(&format!(
            "for card in eth0 eth1; do\n\
               echo 1 >/proc/sys/net/ipv6/conf/$card/disable_ipv6\n\
               ip link set $card mtu {GUEST_MTU} up\n\
             done\n\
             ip addr replace 10.1.0.{end}/24 dev eth0\n\
             ip addr replace 10.2.0.{end}/24 dev eth1"
        ))?;
        Ok(())
    }

    fn ping(&mut self, host: usize, to: &str) -> Result<(), PerfError> {
        self.machines[host].wait_until(
            &format!("guest {} to reach {to}", host + 1),
            PATIENCE,
            &format!("ping -c 3 -i 0.1 -W 1 -q {to}"),
        )?;
        Ok(())
    }

    fn defaults(&mut self) -> Result<(), PerfError> {
        for host in 0..2 {
            let said = self.hosts[host].process.errors();
            for tap in taps(host) {
                let warned = said
                    .lines()
                    .any(|line| line.contains(&tap) && line.contains("csum=off"));
                if !warned {
                    return Err(PerfError::Wrong(format!(
                        "guestseal does not warn of {tap}: {said}"
                    )));
                }
            }
        }
        self.ping(0, "10.1.0.2")?;
        self.machines[1].begin("httpd", "httpd -f -p 80 -h /tmp")?;
        self.listens(1, ":80")?;
        self.machines[1].run("echo page >/tmp/page")?;
        // Short enough to need no cutting; its checksums are left to the card.
        self.machines[0].run("curl -sSf --max-time 5 http://10.1.0.2/page")?;
        for machine in &mut self.machines {
            machine.run(&format!("ethtool -K eth0 {IN_GUEST}; ethtool -K eth1 {IN_GUEST}"))?;
        }
        Ok(())
    }

    fn listens(&mut self, host: usize, port: &str) -> Result<(), PerfError> {
        self.machines[host].wait_until("a server", PATIENCE, &format!("ss -Hltn | grep -q '{port} '"))?;
        Ok(())
    }

    fn pings(&mut self) -> Result<(), PerfError> {
        for (host, to) in [(0, "10.1.0.2"), (0, "10.2.0.2"), (1, "10.1.0.1"), (1, "10.2.0.1")] {
            self.ping(host, to)?;
        }
        // Out of the blue card to the red address, with a neighbour entry that would lead there.
        let red = mac(1, 1);
        self.machines[0].run(&format!(
            "ip route add 10.2.0.2/32 dev eth0 && ip neigh replace 10.2.0.2 lladdr {red} dev eth0"
        ))?;
        let (status, said) = self.machines[0].try_run("ping -c 2 -W 1 -I eth0 10.2.0.2")?;
        self.machines[0].run("ip route del 10.2.0.2/32 dev eth0")?;
        if status == 0 {
            return Err(PerfError::Wrong(format!("red answers to blue: {said}")));
        }
        self.ping(0, "10.2.0.2")
    }

    fn traffic(&mut self) -> Result<(), PerfError> {
        self.machines[1].begin("iperf3", "iperf3 -s")?;
        self.listens(1, ":5201")?;
        for (what, to, how) in [
            ("TCP, blue", "10.1.0.2", "-t 3"),
            ("TCP back, red", "10.2.0.2", "-t 3 -R"),
            ("UDP, blue", "10.1.0.2", "-t 3 -u -b 20M -l 1300"),
        ] {
            let said = self.machines[0].run(&format!("iperf3 -c {to} {how} -f m"))?;
            let line = said
                .lines()
                .rfind(|line| line.contains("receiver"))
                .unwrap_or_default();
            let rate = line.split_whitespace().collect::<Vec<_>>();
            let rate = rate
                .windows(2)
                .find(|pair| pair[1] == "Mbits/sec")
                .and_then(|pair| pair[0].parse::<f64>().ok());
            match rate {
                Some(rate) if rate > 1.0 => println!("         iperf3 {what}: {rate} Mbit/s"),
                _ => return Err(PerfError::Wrong(format!("iperf3 {what}: {said}"))),
            }
        }
        let made = self.machines[1].run(&format!(
            "yes '{MARKER} 0123456789abcdef' | head -c 4000000 >/tmp/page && sha256sum </tmp/page"
        ))?;
        for url in ["http://10.1.0.2/page", "http://10.2.0.2/page"] {
            let got = self.machines[0].run(&format!("curl -sSf --max-time 60 {url} | sha256sum"))?;
            if got != made {
                return Err(PerfError::Wrong(format!("{url}: {got}, expected {made}")));
            }
        }
        Ok(())
    }

    fn quarantine(&mut self) -> Result<(), PerfError> {
        self.machines[1].begin("remedy", "httpd -f -p 8530 -h /tmp")?;
        self.listens(1, ":8530")?;
        let made = self.machines[1].run("sha256sum </tmp/page")?;
        self.machines[0].begin(
            "download",
            "curl -sSf --limit-rate 400k -o /tmp/got http://10.1.0.2/page",
        )?;
        self.machines[0].wait_until("the download to begin", PATIENCE, "[ -s /tmp/got ]")?;
        let size = |bench: &mut Self| bench.machines[0].run("stat -c %s /tmp/got");

        self.both(&[
            "tag",
            "set",
            "one",
            "--service",
            "av",
            "--name",
            "malware.eicar",
            "--severity",
            "90",
        ])?;
        let remedy = "curl -sSf --max-time 10 -o /dev/null http://10.1.0.2:8530/page";
        self.machines[0].wait_until("the remediation server", PATIENCE, remedy)?;
        let before = size(self)?;
        for to in ["10.1.0.2", "10.2.0.2"] {
            let (status, said) = self.machines[0].try_run(&format!("ping -c 2 -W 1 {to}"))?;
            if status == 0 {
                return Err(PerfError::Wrong(format!(
                    "{to} answers a guest in quarantine: {said}"
                )));
            }
        }
        let after = size(self)?;
        let whole = self.machines[1].run("stat -c %s /tmp/page")?;
        if before != after || after == whole {
            return Err(PerfError::Wrong(format!(
                "the download had {before} bytes, then {after} of {whole} in quarantine"
            )));
        }

        self.both(&[
            "tag",
            "clear",
            "one",
            "--service",
            "av",
            "--name",
            "malware.eicar",
        ])?;
        self.ping(0, "10.1.0.2")?;
        self.ping(0, "10.2.0.2")?;
        self.machines[0].wait_until(
            "the download to end",
            PATIENCE,
            "! [ -e /proc/$(cat /tmp/download.pid)/exe ]",
        )?;
        let got = self.machines[0].run("sha256sum </tmp/got")?;
        if got != made {
            return Err(PerfError::Wrong(format!(
                "the download has {got}, expected {made}"
            )));
        }
        Ok(())
    }

    /// Tells both hosts, as a security service does.
    fn both(&self, words: &[&str]) -> Result<(), PerfError> {
        for host in 0..2 {
            self.deployment.ctl(host, words)?;
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), PerfError> {
        self.machines[0].reset()?;
        self.configure(0)?;
        self.machines[0].run(&format!("ethtool -K eth0 {IN_GUEST}; ethtool -K eth1 {IN_GUEST}"))?;
        self.ping(0, "10.1.0.2")?;
        self.ping(0, "10.2.0.2")?;
        self.ping(1, "10.1.0.1")
    }

    fn replug(&mut self) -> Result<(), PerfError> {
        let machine = &mut self.machines[0];
        machine.order(&json!({"execute": "device_del", "arguments": {"id": "nic0"}}))?;
        machine.wait_event("DEVICE_DELETED")?;
        machine.order(&json!({"execute": "netdev_del", "arguments": {"id": "net0"}}))?;
        self.topology.hosts[0].ip("link del blue-1")?;
        self.wait_for_word(0, "guest port blue-1 is gone")?;
        // The other card goes on.
        self.ping(0, "10.2.0.2")?;

        make_tap(&self.topology, 0, "blue-1")?;
        let machine = &mut self.machines[0];
        machine.order(&json!({"execute": "netdev_add", "arguments":
            {"type": "tap", "id": "net0", "ifname": "blue-1", "script": "no", "downscript": "no"}}))?;
        let mut device = json!({"driver": "virtio-net-pci", "id": "nic0", "netdev": "net0", "bus": "port0", "mac": mac(0, 0)});
        for option in IN_QEMU {
            device[option] = json!(false);
        }
        machine.order(&json!({"execute": "device_add", "arguments": device}))?;
        machine.wait_until("the card to come back", PATIENCE, "[ -e /sys/class/net/eth0 ]")?;
        self.wait_for_word(0, "guest port blue-1 is open")?;
        self.configure(0)?;
        self.ping(0, "10.1.0.2")?;
        // TCP without a word to the guest.
        self.machines[0].run("curl -sSf --max-time 60 -o /dev/null http://10.1.0.2/page")?;
        Ok(())
    }

    fn wait_for_word(&mut self, host: usize, word: &str) -> Result<(), PerfError> {
        let process = &mut self.hosts[host].process;
        wait_for(word, PATIENCE, || {
            process.check_runs()?;
            Ok(process.errors().contains(word).then_some(()))
        })
    }

    fn end(&mut self) -> Result<(), PerfError> {
        for host in &mut self.hosts {
            let totals = host.stop()?;
            if let Some(what) = imbalance(&totals) {
                return Err(PerfError::Wrong(format!("{what}: {totals}")));
            }
            println!("         totals: {}", totals["outcomes"]);
            if number(&totals, "/outcomes/sent_encrypted") < 1000 {
                return Err(PerfError::Wrong(format!("hardly anything was sealed: {totals}")));
            }
        }
        let Some(capture) = self.capture.take() else {
            return Ok(());
        };
        only_sealed(capture, &self.deployment.policy, MARKER)?;
        for machine in &mut self.machines {
            machine.stop()?;
        }
        Ok(())
    }
}

fn mac(host: usize, number: usize) -> String {
    format!("52:54:00:00:0{}:0{number}", host + 1)
}

fn make_tap(topology: &Topology, host: usize, tap: &str) -> Result<(), PerfError> {
    let host = &topology.hosts[host];
    host.ip(&format!("tuntap add dev {tap} mode tap vnet_hdr"))?;
    host.run(&format!("sysctl -qw net.ipv6.conf.{tap}.disable_ipv6=1"))?;
    host.ip(&format!("link set {tap} up"))?;
    Ok(())
}
