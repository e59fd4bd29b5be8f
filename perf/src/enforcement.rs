//! From tag to enforcement: how long the old rules still let packets through when a guest is tagged.
//!
//! Two hosts in namespaces; a guest sends to the other host's guest without pause, and is tagged as infected again and again by
//! the control socket. Measured is from the moment at which the event is sent to the arrival of the last packet under the
//! old rules, the packet's own way included; and to the answer, which says that the event is on disk. Then the same for two guests of
//! the second host, which learns by a real etcd what the first one is told.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use guestseal::control::api::client::Client;
use guestseal::worker::run::monotonic;
use serde::Serialize;
use serde_json::json;

use crate::deployment::Deployment;
use crate::etcd::Etcd;
use crate::namespaces::Topology;
use crate::process::{PerfError, check_interrupted, cpus, wait_for};

/// One tenant, whose infected guests speak with nobody. Nothing counts as flapping: that is what is done here.
const POLICY: &str = "\
hosts: [{name: h1, address: 192.0.2.1}, {name: h2, address: 192.0.2.2}]
networks: [{name: blue}]
guests:
  - {id: one, host: h1, ports: [{interface: gp-one, network: blue, mac: '02:00:00:01:00:01', addresses: [10.1.0.1]}]}
  - {id: two, host: h2, ports: [{interface: gp-two, network: blue, mac: '02:00:00:01:00:02', addresses: [10.1.0.2]}]}
  - {id: three, host: h2, ports: [{interface: gp-three, network: blue, mac: '02:00:00:01:00:03', addresses: [10.1.0.3]}]}
keys: [{id: blue-any}]
damping: {transfers: 1000000, within: 1s, hold: 1s}
containers:
  - {name: default, transfers: [{name: infected, when: {tag: {service: av}}, to: quarantine}]}
  - name: quarantine
    quarantine: true
    release: {when: {not: {tag: {service: av}}}}
    rules: [{name: alone, from: members, to: any, protocol: udp, action: drop}]
rules:
  - {name: arp, from: any, to: any, ethertype: arp, action: plaintext}
  - {name: all, from: any, to: any, action: encrypt, key: blue-any}
";

/// Between two packets: how finely it is measured.
const PERIOD: Duration = Duration::from_micros(50);
/// So long without a packet, ns, and so many sent meanwhile: none comes any more. A sender that is held up is not silence.
const SILENCE: u64 = 20_000_000;
const UNHEARD: u64 = 50;
const PATIENCE: Duration = Duration::from_secs(30);

/// `guestseal-perf enforcement`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "host_*: from the event's sending to the arrival of the last packet under the old rules. answered_*: to the answer.\npeer_*: the same at a host that learns of it through etcd.\n\nExamples:\n  guestseal-perf enforcement\n  guestseal-perf enforcement --events 100 --json"
)]
pub struct Options {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    /// How often the guest is tagged
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    events: u32,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Half of the events were enforced after so many microseconds.
    pub host_p50_us: f64,
    /// 99 of 100.
    pub host_p99_us: f64,
    /// Half of as many events were enforced at the other host after so many microseconds.
    pub peer_p50_us: f64,
    /// 99 of 100.
    pub peer_p99_us: f64,
    /// Half of the events were answered, and so on disk, after so many microseconds.
    pub answered_p50_us: f64,
    /// 99 of 100.
    pub answered_p99_us: f64,
    /// How many.
    pub events: u32,
    /// Packets that arrived beside.
    pub packets: u64,
}

/// Measures and prints.
///
/// # Errors
/// If the hosts do not run, or an event is not enforced.
pub fn run(options: &Options) -> Result<(), PerfError> {
    let report = measure(options.events)?;
    if options.json {
        println!("{}", json!(report));
    } else {
        println!(
            "{} events beside {} packets\nfrom tag to last packet: {:.0} us (p50), {:.0} us (p99)\nthe same at the other host: {:.0} us (p50), {:.0} us (p99)\nfrom tag to answer, on disk: {:.0} us (p50), {:.0} us (p99)",
            report.events,
            report.packets,
            report.host_p50_us,
            report.host_p99_us,
            report.peer_p50_us,
            report.peer_p99_us,
            report.answered_p50_us,
            report.answered_p99_us
        );
    }
    Ok(())
}

/// The traffic, as the thread that measures sees it.
#[derive(Debug, Default)]
struct Flow {
    stop: AtomicBool,
    /// When the last packet came, ns of `CLOCK_MONOTONIC`.
    last: AtomicU64,
    sent: AtomicU64,
    packets: AtomicU64,
}

impl Flow {
    fn send(&self, socket: &UdpSocket, to: &str) {
        while !self.stop.load(Ordering::Relaxed) {
            // A full queue is no reason to end.
            let _ = socket.send_to(b"as fast as that", to);
            self.sent.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(PERIOD);
        }
    }

    fn receive(&self, socket: &UdpSocket) {
        let mut buffer = [0; 64];
        while !self.stop.load(Ordering::Relaxed) {
            match socket.recv(&mut buffer) {
                Ok(_) => {
                    self.last.store(monotonic(), Ordering::Relaxed);
                    self.packets.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
        }
    }

    /// Waits until packets come that were not on their way before.
    fn flows(&self) -> Result<(), PerfError> {
        let before = self.packets.load(Ordering::Relaxed);
        wait_for("the traffic to flow", PATIENCE, || {
            Ok((self.packets.load(Ordering::Relaxed) > before + 10).then_some(()))
        })
    }

    /// Waits until no packet comes any more; gives when the last one came.
    fn ends(&self) -> Result<u64, PerfError> {
        let (mut newest, mut sent) = (0, 0);
        wait_for("the traffic to end", PATIENCE, || {
            let last = self.last.load(Ordering::Relaxed);
            if last != newest {
                (newest, sent) = (last, self.sent.load(Ordering::Relaxed));
            }
            let unheard = self.sent.load(Ordering::Relaxed) - sent;
            let ended = unheard >= UNHEARD && monotonic().saturating_sub(last) > SILENCE;
            Ok(ended.then_some(last))
        })
    }
}

/// Tags a guest so often.
///
/// # Errors
/// If the hosts do not run, or an event is not enforced.
pub fn measure(events: u32) -> Result<Report, PerfError> {
    let deployment = Deployment::new("enforcement", POLICY, &[])?;
    let topology = Topology::new(2, 1, &deployment.guests(1))?;
    let cpus = cpus()?;
    let etcd = Etcd::start(deployment.directory(), &topology)?;
    let mut hosts = Vec::new();
    for host in 0..2 {
        let workers = format!("workers: [{{queue: 0, cpu: {}}}]", cpus[host % cpus.len()]);
        deployment.write_host(host, &format!("{workers}\n{}", etcd.section(None)))?;
        hosts.push(deployment.start(host, &topology.hosts[host], &[])?);
    }
    let socket = deployment.directory().join("state-h1/control.sock");
    let client = Client::unix(&socket).map_err(|error| failed(&error))?;
    let mut host = Series::default();
    host.measure(&topology, ("one", "10.1.0.1"), &client, events)?;
    let mut peer = Series::default();
    peer.measure(&topology, ("three", "10.1.0.3"), &client, events)?;
    for host in &mut hosts {
        host.stop()?;
    }
    Ok(Report {
        host_p50_us: percentile(&mut host.enforced, 50),
        host_p99_us: percentile(&mut host.enforced, 99),
        peer_p50_us: percentile(&mut peer.enforced, 50),
        peer_p99_us: percentile(&mut peer.enforced, 99),
        answered_p50_us: percentile(&mut host.answered, 50),
        answered_p99_us: percentile(&mut host.answered, 99),
        events,
        packets: host.packets + peer.packets,
    })
}

fn failed(error: &dyn std::error::Error) -> PerfError {
    PerfError::Wrong(format!(
        "control socket: {}",
        guestseal::control::supervise::chain(error)
    ))
}

/// What was measured of one guest, in ns.
#[derive(Debug, Default)]
struct Series {
    enforced: Vec<u64>,
    answered: Vec<u64>,
    packets: u64,
}

impl Series {
    /// Tags a guest that sends to the second one so often.
    fn measure(
        &mut self,
        topology: &Topology,
        (guest, address): (&str, &str),
        client: &Client,
        events: u32,
    ) -> Result<(), PerfError> {
        let bind = |guest: &str, address: &str| {
            let bound = topology
                .guest(guest)
                .namespace
                .inside(|| UdpSocket::bind(address))?;
            bound.map_err(PerfError::io(address.to_owned()))
        };
        let to = "10.1.0.2:4000";
        let (sender, receiver) = (bind(guest, &format!("{address}:4000"))?, bind("two", to)?);
        receiver
            .set_read_timeout(Some(Duration::from_millis(100)))
            .map_err(PerfError::io("the receiver"))?;
        let flow = Flow::default();
        let tags = format!("/v1/guests/{guest}/tags");
        let done = std::thread::scope(|scope| {
            scope.spawn(|| flow.send(&sender, to));
            scope.spawn(|| flow.receive(&receiver));
            let mut tag_all = || -> Result<(), PerfError> {
                for number in 0..events {
                    check_interrupted()?;
                    flow.flows()?;
                    let tag = json!({"service": "av", "name": format!("n{}", number % 16), "severity": 90});
                    let sent = monotonic();
                    client
                        .call("POST", &tags, Some(&tag))
                        .map_err(|error| failed(&error))?;
                    self.answered.push(monotonic() - sent);
                    self.enforced.push(flow.ends()?.saturating_sub(sent));
                    client
                        .call("DELETE", &format!("{tags}?service=av&name=*"), None)
                        .map_err(|error| failed(&error))?;
                }
                Ok(())
            };
            let done = tag_all();
            flow.stop.store(true, Ordering::Relaxed);
            done
        });
        self.packets = flow.packets.load(Ordering::Relaxed);
        done
    }
}

/// Of ns, in us: so many of a hundred are at most that.
fn percentile(all: &mut [u64], of_hundred: usize) -> f64 {
    all.sort_unstable();
    let place = (all.len() * of_hundred).div_ceil(100).saturating_sub(1);
    all.get(place).map_or(0.0, |ns| *ns as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn percentiles_are_of_what_was_seen() {
        let mut all: Vec<u64> = (1..=1000).rev().map(|number| number * 1000).collect();
        assert_eq!(super::percentile(&mut all, 50), 500.0);
        assert_eq!(super::percentile(&mut all, 99), 990.0);
        assert_eq!(super::percentile(&mut [7000], 99), 7.0);
    }
}
