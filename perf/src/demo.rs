//! The demo: two hosts, two tenants, four guests, one wire; real traffic, and a comparison of what was seen with what the
//! rules say. Then two tenants of equal addresses in overlay networks.

mod overlay;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::actor;
use crate::capture::{Capture, count_kinds, kinds_with};
use crate::deployment::{Deployment, Host, imbalance, number};
use crate::namespaces::{Topology, remove_leftovers};
use crate::process::{PerfError, Running, cpus, json_text, run, wait_for};

/// The policy that the demo shows.
pub const POLICY: &str = include_str!("../../rules/examples/demo/policy.yaml");

/// The hosts' file of events, in the demo's directory.
const EVENTS: &str = "events.jsonl";
const PATIENCE: Duration = Duration::from_secs(60);
const DOWNLOAD: usize = 8 << 20;
const IPERF_BYTES: &str = "16M";
/// What the quarantine interrupts, and how fast it goes: slow enough to be met on its way.
const LONG_DOWNLOAD: usize = 24 << 20;
const LONG_RATE: &str = "6M";

/// One thing that was compared.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Guest, wire or host.
    pub place: &'static str,
    /// What was looked at.
    pub what: String,
    /// What the rules say.
    pub expected: String,
    /// What was seen.
    pub seen: String,
    /// Whether they agree.
    pub ok: bool,
}

/// What the demo found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Whether everything agrees with the rules.
    pub ok: bool,
    /// Every comparison.
    pub checks: Vec<Check>,
    /// Frames on the wire by kind; an SPI with the name of its SA.
    pub wire: BTreeMap<String, u64>,
    /// The totals of each host.
    pub hosts: BTreeMap<String, Value>,
}

fn own_program() -> Result<PathBuf, PerfError> {
    std::env::current_exe().map_err(PerfError::io("this program's own file"))
}

struct Demo {
    // In the order in which they must go: programs before namespaces, namespaces before files.
    servers: Vec<Running>,
    topology: Topology,
    deployment: Deployment,
    report: Report,
    progress: bool,
}

/// Runs the demo and prints what it found; `json` gets the same for machines. Gives whether all agrees with the rules.
///
/// # Errors
/// If it cannot be run to its end.
pub fn run_demo(json: Option<&Path>) -> Result<bool, PerfError> {
    remove_leftovers()?;
    let deployment = Deployment::new("demo", POLICY, &["red"])?;
    let topology = Topology::new(2, 1, &deployment.guests(1))?;
    let mut demo = Demo {
        servers: Vec::new(),
        topology,
        deployment,
        report: Report::default(),
        progress: true,
    };
    demo.play()?;
    overlay::play(&mut demo)?;
    let report = &mut demo.report;
    report.ok = report.checks.iter().all(|check| check.ok);
    print!("{}", render(report, std::io::stdout().is_terminal()));
    if let Some(path) = json {
        let text = json_text("report", report)?;
        std::fs::write(path, text + "\n").map_err(PerfError::io(path.display().to_string()))?;
    }
    Ok(report.ok)
}

impl Demo {
    fn say(&self, text: &str) {
        if self.progress {
            eprintln!("demo: {text}");
        }
    }

    fn check(&mut self, place: &'static str, what: &str, expected: &str, seen: impl Into<String>, ok: bool) {
        let (what, expected, seen) = (what.to_owned(), expected.to_owned(), seen.into());
        self.report.checks.push(Check {
            place,
            what,
            expected,
            seen,
            ok,
        });
    }

    fn play(&mut self) -> Result<(), PerfError> {
        self.say("two hosts, four guests of two tenants, and a wire that is watched");
        let capture = Capture::start(&self.topology.wire, "host0", self.deployment.directory())?;
        let mut hosts = Vec::new();
        let cpus = cpus()?;
        for host in 0..2 {
            let cpu = cpus[host % cpus.len()];
            self.deployment.write_host(
                host,
                &format!("workers: [{{queue: 0, cpu: {cpu}}}]\nevents: {EVENTS}"),
            )?;
            hosts.push(self.deployment.start(host, &self.topology.hosts[host], &[])?);
        }
        let secret = crate::deployment::random_hex(8)?;
        let markers = Markers::new(&secret);

        self.pings(&markers)?;
        self.download(&markers)?;
        self.iperf("blue-1", "blue-2", "10.1.0.2")?;
        self.iperf("red-1", "red-2", "10.2.0.2")?;
        self.names(&markers)?;
        self.mail(&markers)?;
        self.log(&markers)?;
        self.forbidden()?;
        self.quarantine(&hosts)?;

        self.say("stopping");
        self.servers.clear();
        for (number, host) in hosts.iter_mut().enumerate() {
            let totals = host.stop()?;
            let name = self.deployment.policy.hosts[number].name.clone();
            let balance = imbalance(&totals);
            let what = format!("{name}: packets and frames");
            let expected = "received = sum of outcomes, every frame in one place";
            self.check(
                "host",
                &what,
                expected,
                balance.clone().unwrap_or_else(|| "so it is".into()),
                balance.is_none(),
            );
            self.report.hosts.insert(name, totals);
        }
        let frames = capture.stop()?;
        self.wire(&frames, &markers);
        Ok(())
    }

    /// Lets a guest play a part to its end; gives what it printed.
    fn actor(&self, guest: &str, words: &[&str]) -> Result<String, PerfError> {
        actor::play_in(&own_program()?, &self.topology.guest(guest).namespace, words)
    }

    /// Starts a server in a guest and waits until it listens.
    fn serve(&mut self, guest: &str, words: &[&str]) -> Result<usize, PerfError> {
        let namespace = &self.topology.guest(guest).namespace;
        let server = actor::serve(&own_program()?, namespace, self.deployment.directory(), words)?;
        self.servers.push(server);
        Ok(self.servers.len() - 1)
    }

    fn pings(&mut self, markers: &Markers) -> Result<(), PerfError> {
        let pattern: String = markers.ping.bytes().map(|byte| format!("{byte:02x}")).collect();
        for (from, to) in [
            ("blue-1", "10.1.0.2"),
            ("blue-1", "fd00:1::2"),
            ("blue-2", "10.1.0.1"),
            ("red-1", "10.2.0.2"),
            ("red-2", "fd00:2::1"),
        ] {
            self.say(&format!("{from} pings {to}"));
            let guest = &self.topology.guest(from).namespace;
            let line = format!("ping -c 5 -i 0.05 -W 2 -s 600 -p {pattern} {to}");
            // The first waits for the kernel to find the tunnel's next hop.
            let first = wait_for(&format!("{from} to reach {to}"), PATIENCE, || {
                Ok(guest.run(&format!("ping -c 1 -W 1 {to}")).ok())
            });
            let seen = first.and_then(|_| guest.run(&line));
            let text = seen.as_deref().unwrap_or("no answer").to_owned();
            let loss = text
                .lines()
                .find(|line| line.contains("packets transmitted"))
                .unwrap_or("no answer")
                .to_owned();
            self.check(
                "guest",
                &format!("{from} pings {to}"),
                "5 answers",
                &loss,
                loss.contains("5 received"),
            );
        }
        Ok(())
    }

    fn download(&mut self, markers: &Markers) -> Result<(), PerfError> {
        self.say("blue-1 downloads from blue-2 by HTTP");
        let directory = self.deployment.directory().join("www");
        std::fs::create_dir_all(&directory).map_err(PerfError::io("www"))?;
        let line = format!("{} {}\n", markers.web, crate::deployment::random_hex(400)?);
        let body = line.repeat(DOWNLOAD / line.len());
        let (file, got) = (directory.join("file"), self.deployment.directory().join("got"));
        std::fs::write(&file, &body).map_err(PerfError::io("www/file"))?;
        let mut command = self.topology.guest("blue-2").namespace.command("python3");
        command
            .args(["-u", "-m", "http.server", "8080", "--bind", "::", "--directory"])
            .arg(&directory);
        let mut server = Running::start("http-server", self.deployment.directory(), &mut command)?;
        wait_for("the HTTP server", PATIENCE, || {
            server.check_runs()?;
            Ok(server.output().contains("Serving").then_some(()))
        })?;
        self.servers.push(server);
        for url in ["http://10.1.0.2:8080/file", "http://[fd00:1::2]:8080/file"] {
            let guest = &self.topology.guest("blue-1").namespace;
            let fetched = run(guest
                .command("curl")
                .args(["-sSf", "--max-time", "30", "-o"])
                .arg(&got)
                .arg(url));
            let sum = |path: &Path| run(std::process::Command::new("sha256sum").arg(path));
            let digest = |text: String| text.split_whitespace().next().unwrap_or_default().to_owned();
            let expected = digest(sum(&file)?);
            let seen = match fetched {
                Ok(_) => digest(sum(&got)?),
                Err(error) => error.to_string(),
            };
            let ok = seen == expected;
            let short = |text: &str| format!("SHA-256 {}…", &text[..text.len().min(16)]);
            let what = format!("blue-1 fetches {url} ({} MiB)", body.len() >> 20);
            let shown = if ok { short(&seen) } else { seen };
            self.check("guest", &what, &short(&expected), shown, ok);
        }
        Ok(())
    }

    fn iperf(&mut self, from: &str, to: &str, address: &str) -> Result<(), PerfError> {
        let mut command = self.topology.guest(to).namespace.command("iperf3");
        command.args(["-s", "--forceflush"]);
        let mut server = Running::start(&format!("iperf3-{to}"), self.deployment.directory(), &mut command)?;
        wait_for("iperf3", PATIENCE, || {
            server.check_runs()?;
            Ok(server.output().contains("listening").then_some(()))
        })?;
        self.servers.push(server);
        for (way, flag) in [("to", ""), ("from", " -R")] {
            self.say(&format!("{from} sends {IPERF_BYTES}B by TCP {way} {to}"));
            let guest = &self.topology.guest(from).namespace;
            let seen = guest.run(&format!("iperf3 -c {address} -n {IPERF_BYTES} -J{flag}"));
            let moved = seen.as_ref().ok().and_then(|text| {
                let end = serde_json::from_str::<Value>(text).ok()?;
                let bytes = |side: &str| end.pointer(&format!("/end/{side}/bytes")).and_then(Value::as_u64);
                let rate = end.pointer("/end/sum_received/bits_per_second")?.as_f64()?;
                Some((bytes("sum_sent")?, bytes("sum_received")?, rate))
            });
            let text = match (moved, seen) {
                (Some((_, arrived, rate)), _) => format!("{} MiB, {:.0} Mbit/s", arrived >> 20, rate / 1e6),
                (None, Ok(_)) => "no result".into(),
                (None, Err(error)) => error.to_string(),
            };
            let what = format!("iperf3 TCP {way} {to} at {from}");
            // iperf3 ends when all was sent: what is on its way then is not counted as received.
            let ok = moved.is_some_and(|(sent, arrived, _)| sent >= 16 << 20 && arrived >= 1 << 20);
            self.check("guest", &what, "16 MiB sent, and data arrives", text, ok);
        }
        Ok(())
    }

    fn names(&mut self, markers: &Markers) -> Result<(), PerfError> {
        self.say("blue-1 asks blue-2 for a name");
        self.serve("blue-2", &["name-server"])?;
        let seen = self.actor("blue-1", &["name-client", "10.1.0.2", &markers.name]);
        let seen = seen.unwrap_or_else(|error| error.to_string());
        self.check(
            "guest",
            "blue-1 asks for a name",
            "192.0.2.53",
            &seen,
            seen == "192.0.2.53",
        );
        Ok(())
    }

    fn mail(&mut self, markers: &Markers) -> Result<(), PerfError> {
        self.say("blue-1 sends mail to blue-2");
        self.serve("blue-2", &["mail-server"])?;
        let seen = self.actor("blue-1", &["mail-client", "10.1.0.2", &markers.mail]);
        let seen = seen.unwrap_or_else(|error| error.to_string());
        let expected = format!("250 {}", markers.mail);
        let ok = seen == expected;
        self.check("guest", "blue-1 sends mail", &expected, seen, ok);
        Ok(())
    }

    fn log(&mut self, markers: &Markers) -> Result<(), PerfError> {
        self.say("blue-1 logs to blue-2, authenticated and readable");
        let server = self.serve("blue-2", &["log-server"])?;
        self.actor("blue-1", &["log-client", "10.1.0.2", &markers.log])?;
        let seen = self.servers[server]
            .finish(Duration::from_secs(5))
            .unwrap_or_else(|error| error.to_string());
        let ok = seen.contains(&markers.log);
        let line = seen.lines().last().unwrap_or_default().to_owned();
        self.check("guest", "blue-2's log", &markers.log, line, ok);
        Ok(())
    }

    fn forbidden(&mut self) -> Result<(), PerfError> {
        self.say("what the rules forbid");
        self.serve("blue-2", &["listen", "23"])?;
        self.serve("red-2", &["listen", "9000"])?;
        let seen = self.actor("blue-1", &["connect", "10.1.0.2", "23"])?;
        self.check(
            "guest",
            "blue-1 connects to port 23, which a rule drops",
            "refused",
            &seen,
            seen == "refused",
        );
        let seen = self.actor("red-1", &["connect", "10.2.0.2", "9000"])?;
        self.check(
            "guest",
            "red-1 connects to red-2",
            "connected",
            &seen,
            seen == "connected",
        );
        // The same from the other tenant, with a route and a neighbour entry that would lead there.
        let blue = &self.topology.guest("blue-1").namespace;
        blue.ip("route add 10.2.0.0/24 dev eth0")?;
        blue.ip("neigh add 10.2.0.2 lladdr 02:00:00:02:00:02 dev eth0")?;
        let seen = self.actor("blue-1", &["connect", "10.2.0.2", "9000"])?;
        self.check(
            "guest",
            "blue-1 connects to red-2, another tenant",
            "refused",
            &seen,
            seen == "refused",
        );
        Ok(())
    }

    /// A guest is found to be infected while it downloads; then it is clean again.
    fn quarantine(&mut self, hosts: &[Host]) -> Result<(), PerfError> {
        self.say("blue-1 is found to be infected while it downloads");
        let directory = self.deployment.directory().to_owned();
        let (file, got) = (directory.join("www/long"), directory.join("got-long"));
        std::fs::write(&file, vec![b'x'; LONG_DOWNLOAD]).map_err(PerfError::io("www/long"))?;
        self.serve("blue-2", &["listen", "8530"])?;
        let guest = &self.topology.guest("blue-1").namespace;
        let mut command = guest.command("curl");
        command.args(["-sSf", "--limit-rate", LONG_RATE, "-o"]).arg(&got);
        let mut download = Running::start("curl", &directory, command.arg("http://10.1.0.2:8080/long"))?;
        let size = || std::fs::metadata(&got).map_or(0, |metadata| metadata.len());
        wait_for("the download to begin", PATIENCE, || {
            download.check_runs()?;
            Ok((size() > 0).then_some(()))
        })?;
        self.tell(
            r#"{"guest": "blue-1", "tag": {"service": "av", "name": "malware.eicar", "severity": 90}}"#,
        )?;
        moved(hosts, "guest blue-1 moved from container default to quarantine")?;
        let interrupted = size();
        for (port, what, expected) in [
            ("8080", "the web server", "refused"),
            ("8530", "the remediation server", "connected"),
        ] {
            let seen = self.actor("blue-1", &["connect", "10.1.0.2", port])?;
            let ok = seen == expected;
            self.check(
                "guest",
                &format!("blue-1 in quarantine connects to {what}"),
                expected,
                seen,
                ok,
            );
        }
        let (later, whole) = (size(), LONG_DOWNLOAD as u64);
        // What was in the socket's buffers may still be written out.
        let stands = later < whole && download.check_runs().is_ok();
        let seen = format!("{interrupted}, then {later} of {whole} bytes");
        self.check(
            "guest",
            "blue-1's download in quarantine",
            "stands still",
            seen,
            stands,
        );

        self.say("blue-1 is clean again");
        self.tell(r#"{"guest": "blue-1", "clear": {"service": "av", "name": "*"}}"#)?;
        moved(hosts, "guest blue-1 moved from container quarantine to default")?;
        let ended = download.finish(PATIENCE);
        let seen = match ended {
            Ok(_) => format!("{} bytes", size()),
            Err(error) => error.to_string(),
        };
        let expected = format!("{whole} bytes");
        let ok = seen == expected;
        self.check(
            "guest",
            "blue-1's download after its release",
            &expected,
            seen,
            ok,
        );
        Ok(())
    }

    /// Writes a line into the hosts' file of events.
    fn tell(&self, event: &str) -> Result<(), PerfError> {
        let path = self.deployment.directory().join(EVENTS);
        let mut options = std::fs::OpenOptions::new();
        options
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{event}"))
            .map_err(PerfError::io(path.display().to_string()))
    }

    fn wire(&mut self, frames: &[Vec<u8>], markers: &Markers) {
        let names: BTreeMap<u32, String> = self
            .deployment
            .sas
            .iter()
            .map(|sa| (sa.spi, sa.name.clone()))
            .collect();
        let named = |kind: &String| {
            let spi = kind
                .strip_prefix("ESP 0x")
                .and_then(|digits| u32::from_str_radix(digits, 16).ok());
            match spi.and_then(|spi| names.get(&spi)) {
                Some(name) => format!("{kind} {name}"),
                None => kind.clone(),
            }
        };
        let kinds = count_kinds(frames);
        self.report.wire = kinds.iter().map(|(kind, count)| (named(kind), *count)).collect();
        for (what, marker) in [
            ("ping", &markers.ping),
            ("web page", &markers.web),
            ("mail", &markers.mail),
        ] {
            let seen = kinds_with(frames, marker);
            let text = if seen.is_empty() {
                "nowhere".to_owned()
            } else {
                format!("{seen:?}")
            };
            self.check(
                "wire",
                &format!("the {what}'s marker, readable"),
                "nowhere",
                text,
                seen.is_empty(),
            );
        }
        // A name stands in a query with its lengths between the labels.
        let label = markers.name.split('.').next().unwrap_or_default();
        let seen = kinds_with(frames, label);
        let ok = seen.keys().eq(["UDP 53"]);
        self.check(
            "wire",
            "the name's marker, readable",
            "in UDP 53",
            format!("{seen:?}"),
            ok,
        );
        let log_spi = self
            .deployment
            .sas
            .iter()
            .find(|sa| sa.key == "blue-log" && sa.from == 0)
            .map_or(0, |sa| sa.spi);
        let expected = format!("ESP {log_spi:#010x}");
        let seen = kinds_with(frames, &markers.log);
        let ok = seen.keys().eq([&expected]);
        self.check(
            "wire",
            "the log's marker, readable",
            &format!("in {expected} only"),
            format!("{seen:?}"),
            ok,
        );
        for sa in self.deployment.sas.clone() {
            // The log goes one way.
            let used = sa.key != "blue-log" || sa.from == 0;
            let count = kinds.get(&format!("ESP {:#010x}", sa.spi)).copied().unwrap_or(0);
            let expected = if used { "packets" } else { "none" };
            self.check(
                "wire",
                &format!("SA {}", sa.name),
                expected,
                format!("{count} packets"),
                (count > 0) == used,
            );
        }
        let expected = "ESP, ARP, ICMPv6 (neighbour discovery), UDP 53";
        // The hosts' own datagrams to port 9 make their kernels look for each other.
        let allowed = ["ARP", "ICMPv6", "UDP 53", "UDP 9", "ICMP"];
        let odd: Vec<_> = kinds
            .keys()
            .filter(|kind| !kind.starts_with("ESP ") && !allowed.contains(&kind.as_str()))
            .collect();
        self.check(
            "wire",
            "kinds of frames",
            expected,
            if odd.is_empty() {
                "only these".into()
            } else {
                format!("{odd:?}")
            },
            odd.is_empty(),
        );
    }
}

/// Waits until every host has said it.
fn moved(hosts: &[Host], what: &str) -> Result<(), PerfError> {
    wait_for(what, PATIENCE, || {
        Ok(hosts
            .iter()
            .all(|host| host.process.errors().contains(what))
            .then_some(()))
    })
}

/// Strings that are looked for on the wire; new ones each run.
struct Markers {
    ping: String,
    web: String,
    name: String,
    mail: String,
    log: String,
}

impl Markers {
    fn new(secret: &str) -> Self {
        Self {
            // ping repeats at most 16 bytes.
            ping: format!("ping{}", &secret[..12]),
            web: format!("web-{secret}"),
            name: format!("name-{secret}.example"),
            mail: format!("mail-{secret}"),
            log: format!("log-{secret}"),
        }
    }
}

fn render(report: &Report, colour: bool) -> String {
    let paint = |ok: bool| match (ok, colour) {
        (true, true) => "\x1b[32mok\x1b[0m  ",
        (false, true) => "\x1b[31mFAIL\x1b[0m",
        (true, false) => "ok  ",
        (false, false) => "FAIL",
    };
    let mut text = String::new();
    for (place, title) in [
        ("guest", "What the guests saw"),
        ("wire", "What the wire saw"),
        ("host", "What the hosts counted"),
    ] {
        let _ = writeln!(text, "\n{title}");
        for check in report.checks.iter().filter(|check| check.place == place) {
            let _ = writeln!(
                text,
                "  {} {:<52} {:<28} {}",
                paint(check.ok),
                check.what,
                check.expected,
                check.seen
            );
        }
    }
    let _ = writeln!(text, "\nFrames on the wire");
    for (kind, count) in &report.wire {
        let _ = writeln!(text, "  {count:>9}  {kind}");
    }
    let _ = writeln!(text, "\nPackets by outcome");
    for (host, totals) in &report.hosts {
        for (name, count) in outcomes(totals) {
            let _ = writeln!(text, "  {count:>9}  {host}  {name}");
        }
    }
    let _ = writeln!(
        text,
        "\nLatency, us: from arrival to the transmit ring{:>20} {:>9} {:>9} {:>9}",
        "packets", "p50", "p99", "p99.9"
    );
    for (host, totals) in &report.hosts {
        for (name, one) in totals["latency_ns"].as_object().into_iter().flatten() {
            let us = |key: &str| number(one, key) as f64 / 1000.0;
            let _ = writeln!(
                text,
                "  {host}  {name:<45} {:>15} {:>9.1} {:>9.1} {:>9.1}",
                number(one, "/count"),
                us("/p50"),
                us("/p99"),
                us("/p999")
            );
        }
    }
    let failed = report.checks.iter().filter(|check| !check.ok).count();
    let _ = match failed {
        0 => writeln!(
            text,
            "\nAll {} comparisons agree with the rules.",
            report.checks.len()
        ),
        _ => writeln!(
            text,
            "\n{failed} of {} comparisons differ from the rules.",
            report.checks.len()
        ),
    };
    text
}

fn outcomes(totals: &Value) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    for (name, value) in totals["outcomes"].as_object().into_iter().flatten() {
        match value.as_object() {
            Some(reasons) => {
                all.extend(
                    reasons
                        .iter()
                        .map(|(reason, count)| (format!("dropped: {reason}"), count.as_u64().unwrap_or(0))),
                );
            }
            None => all.push((name.replace('_', " "), value.as_u64().unwrap_or(0))),
        }
    }
    all
}
