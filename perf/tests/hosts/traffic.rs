//! What works when nothing is wrong.

use std::collections::BTreeSet;
use std::process::Command;

use guestseal::port::umem::{HugePages, Shape, Umem};
use guestseal::port::xsk::{XskConfig, XskPort};
use guestseal_perf::deployment::{Host, number};
use guestseal_perf::process::{Running, run_line, wait_for};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use rustix::process::Signal;

use crate::net::{Net, PATIENCE, POLICY, Result, ensure, program};

/// Transport mode (blue) and tunnel mode (red), IPv4 and IPv6, and meanwhile a TCP server of the host's own.
pub(crate) fn both_modes() -> Result<()> {
    let mut net = Net::running("modes", 1)?;
    let _flood = net.flood("both-modes", 5000)?;
    let host = &net.topology.hosts[0];
    let _server = net.serve(host, &["listen", "2222"])?;
    net.pings_of_both_tenants()?;
    for address in ["192.0.2.1", "2001:db8::1"] {
        let seen = net.play(&net.topology.hosts[1], &["connect", address, "2222"])?;
        ensure(seen == "connected", || {
            format!("the host's own server at {address}: {seen}")
        })?;
    }
    // A card would drop frames to MACs that are not in its filter.
    let in_filter = |net: &Net| -> Result<bool> {
        let filter = net.topology.hosts[0].run("bridge fdb show dev uplink")?;
        Ok(["02:00:00:01:00:01", "02:00:00:02:00:01"]
            .iter()
            .all(|mac| filter.contains(mac)))
    };
    ensure(in_filter(&net)?, || {
        "the guests' MACs are not in the filter".to_owned()
    })?;
    for host in 0..2 {
        let totals = net.stop(host)?;
        ensure(host == 1 || !in_filter(&net)?, || {
            "the guests' MACs were left in the filter".to_owned()
        })?;
        ensure(number(&totals, "/outcomes/sent_encrypted") > 20, || {
            format!("host {host} sealed nothing: {totals}")
        })?;
        ensure(number(&totals, "/xdp/uplink/passed") > 3, || {
            format!("host {host} passed nothing: {totals}")
        })?;
    }
    Ok(())
}

pub(crate) fn generic() -> Result<()> {
    let mut net = Net::new("generic", 1)?;
    for host in 0..2 {
        net.write_host(host, 1)?;
        net.start(host, &["--xdp-mode", "generic"])?;
    }
    net.pings("blue-1", "10.1.0.2")?;
    net.pings("red-2", "10.2.0.1")?;
    let link = net.topology.hosts[0].ip("link show gp-blue-1")?;
    ensure(link.contains("xdpgeneric"), || link)?;
    for host in 0..2 {
        let said = net.host(host).process.errors();
        ensure(said.contains("uplink uplink: XDP generic"), || said)?;
        net.stop(host)?;
    }
    Ok(())
}

/// A policy in files of different owners: who is where in one, what happens to the infected in another, the rules in a third. What
/// only the last two say is done to packets.
pub(crate) fn many_files() -> Result<()> {
    let mut net = Net::new("files", 1)?;
    let (inventory, rest) = POLICY
        .split_once("\ncontainers:")
        .ok_or("containers in the policy")?;
    let (containers, rules) = rest.split_once("\nrules:").ok_or("rules behind them")?;
    let directory = net.deployment.directory();
    std::fs::write(directory.join("policy.yaml"), inventory)?;
    std::fs::write(
        directory.join("security.yaml"),
        format!("containers:{containers}"),
    )?;
    std::fs::write(directory.join("rules.yaml"), format!("rules:{rules}"))?;
    for host in 0..2 {
        let path = net.write_host(host, 1)?;
        let text = std::fs::read_to_string(&path)?;
        let files = "policy: [policy.yaml, security.yaml, rules.yaml]";
        std::fs::write(&path, text.replacen("policy: [policy.yaml]", files, 1))?;
        net.start(host, &[])?;
    }
    net.pings("blue-1", "10.1.0.2")?;
    for host in 0..2 {
        let words = [
            "tag",
            "set",
            "blue-1",
            "--service",
            "av",
            "--name",
            "found",
            "--severity",
            "90",
        ];
        net.ctl(host, &words)?;
    }
    let lost = net
        .guest("blue-1")
        .run("ping -c 3 -i 0.05 -W 1 -q 10.1.0.2")
        .is_err();
    ensure(lost, || "a guest in quarantine reaches its neighbour".to_owned())?;
    let totals = net.stop(0)?;
    let (sealed, dropped) = (
        number(&totals, "/outcomes/sent_encrypted"),
        number(&totals, "/outcomes/dropped/RuleDrops"),
    );
    ensure(sealed >= 5 && dropped >= 3, || {
        format!("{sealed} sealed, {dropped} dropped by rules: {totals}")
    })?;
    net.stop(1)?;
    Ok(())
}

/// Two workers a host: queues, SAs and guest ports are dealt over them, so that packets have to go over.
pub(crate) fn two_queues() -> Result<()> {
    let mut net = Net::running("queues", 2)?;
    for (from, to) in [
        ("blue-1", "10.1.0.2"),
        ("blue-2", "fd00:1::1"),
        ("red-1", "10.2.0.2"),
        ("red-2", "10.2.0.1"),
    ] {
        net.pings(from, to)?;
    }
    let _server = Running::start(
        "iperf3",
        net.deployment.directory(),
        net.guest("blue-2").command("iperf3").arg("-s"),
    )?;
    // Several flows, so that the kernel spreads them over both queues.
    wait_for("iperf3 to move data", PATIENCE, || {
        Ok(net
            .guest("blue-1")
            .run("iperf3 -c 10.1.0.2 -t 2 -P 8 --connect-timeout 2000")
            .ok())
    })?;
    for host in 0..2 {
        let totals = net.stop(host)?;
        ensure(number(&totals, "/handed_over") > 100, || {
            format!("nothing went over: {totals}")
        })?;
    }
    Ok(())
}

/// What is redirected, received and ended agrees between XDP, sockets, workers, histograms and logs.
pub(crate) fn orderly_end() -> Result<()> {
    let mut net = Net::new("end", 1)?;
    for host in 0..2 {
        net.write_host(host, 1)?;
        net.start(host, &["--log-format", "json"])?;
    }
    net.pings("blue-1", "10.1.0.2")?;
    let flood = net.flood("orderly", 20_000)?;
    net.wait_for_sent("blue-1", 20_000)?;
    drop(flood);
    net.pings("blue-1", "10.1.0.2")?;
    let log = net.deployment.directory().join("h1.hlog");
    let said = net.host(0).process.errors();
    let totals = net.stop(0)?;
    for line in said.lines() {
        serde_json::from_str::<serde_json::Value>(line)?;
    }
    let at = |path: &str| number(&totals, path);
    let redirected =
        at("/xdp/uplink/redirected") + at("/xdp/gp-blue-1/redirected") + at("/xdp/gp-red-1/redirected");
    let missed = at("/kernel/ring_full") + at("/kernel/fill_empty") + at("/kernel/other");
    ensure(redirected == at("/received") + missed, || {
        format!(
            "XDP redirected {redirected}, received or refused by a ring were {}: {totals}",
            at("/received") + missed
        )
    })?;
    let recorded: u64 = totals["latency_ns"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(_, one)| number(one, "/count"))
        .sum();
    ensure(recorded == at("/ended"), || {
        format!("{recorded} latencies of {} packets", at("/ended"))
    })?;

    // The interval log, read by the library's own reader.
    let bytes = std::fs::read(log)?;
    let (mut logged, mut tags) = (0, BTreeSet::new());
    for entry in IntervalLogIterator::new(&bytes) {
        let LogEntry::Interval(interval) = entry.map_err(|error| format!("{error:?}"))? else {
            continue;
        };
        tags.extend(interval.tag().map(|tag| tag.as_str().to_owned()));
        let compressed = base64_decode(interval.encoded_histogram())?;
        let histogram: Histogram<u64> = Deserializer::new()
            .deserialize(&mut compressed.as_slice())
            .map_err(|error| format!("{error:?}"))?;
        logged += histogram.len();
    }
    ensure(logged == recorded, || {
        format!("{logged} latencies in the log, {recorded} in the totals")
    })?;
    ensure(tags.iter().any(|tag| tag.contains("outbound")), || {
        format!("tags {tags:?}")
    })?;
    let text = std::fs::read_to_string(net.deployment.directory().join("guestseal-h1.out"))?;
    ensure(text.contains("sent encrypted"), || {
        format!("the printed totals: {text}")
    })?;
    Ok(())
}

/// By the system's own decoder.
fn base64_decode(text: &str) -> Result<Vec<u8>> {
    use std::io::Write;
    let mut child = Command::new("base64")
        .arg("-d")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    child.stdin.take().ok_or("a pipe")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure(output.status.success(), || "base64".to_owned())?;
    Ok(output.stdout)
}

pub(crate) fn second_process() -> Result<()> {
    let mut net = Net::running("second", 1)?;
    let mut second = net.topology.hosts[0].command(guestseal_perf::deployment::program());
    let output = second
        .arg("run")
        .arg("--config")
        .arg(net.deployment.directory().join("h1.yaml"))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure(!output.status.success(), || "a second process ran".to_owned())?;
    ensure(said.contains("in use by another guestseal"), || said)?;
    net.pings("blue-1", "10.1.0.2")?;
    net.stop(0)?;
    Ok(())
}

/// The uplink's queue is another socket's still, as it is for a while after a kill: who starts waits for it.
pub(crate) fn queue_of_another() -> Result<()> {
    let mut net = Net::new("queue", 1)?;
    for host in 0..2 {
        net.write_host(host, 1)?;
    }
    net.start(1, &[])?;
    let other = net.topology.hosts[0].inside(|| -> std::result::Result<XskPort, String> {
        let (umem, _) = Umem::kernel(Shape {
            frame_size: 2048,
            frames: 64,
            long_frames: 0,
            ring_size: 64,
            huge_pages: HugePages::Off,
        })
        .map_err(|error| error.to_string())?;
        let config = XskConfig {
            interface: "uplink".into(),
            queue: 0,
            ring_size: 64,
            fill_level: 0,
            zero_copy: false,
            head: 0,
            holder: 1,
            first: true,
        };
        XskPort::open(&umem, &config).map_err(|error| error.to_string())
    })??;
    let log = net.deployment.directory().join("guestseal-h1.err");
    let (deployment, host) = (&net.deployment, &net.topology.hosts[0]);
    let started = std::thread::scope(|scope| -> Result<Host> {
        let starting = scope.spawn(|| deployment.start(0, host, &[]));
        let waited = wait_for("guestseal to wait", PATIENCE, || {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            Ok(said.contains("waiting for a queue").then_some(()))
        });
        drop(other);
        let started = starting.join().map_err(|_| "a panic")?;
        waited?;
        Ok(started?)
    })?;
    net.hosts[0] = Some(started);
    net.pings("blue-1", "10.1.0.2")?;
    net.stop(0)?;
    Ok(())
}

pub(crate) fn demo() -> Result<()> {
    let report = tempfile::NamedTempFile::new()?;
    let mut demo = Running::start(
        "demo",
        report.path().parent().ok_or("a directory")?,
        Command::new(program())
            .args(["demo", "--json"])
            .arg(report.path())
            .env("GUESTSEAL_BIN", guestseal_perf::deployment::program()),
    )?;
    let prefix = format!("gs{}-", demo.pid());
    let text = demo.finish(std::time::Duration::from_secs(180))?;
    ensure(text.contains("comparisons agree with the rules"), || text.clone())?;
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(report.path())?)?;
    ensure(
        report["ok"] == true
            && report["checks"]
                .as_array()
                .is_some_and(|checks| checks.len() > 30),
        || report.to_string(),
    )?;
    // Of the tenants with equal addresses: pings, mails, sessions, what is on the wire, what the hosts counted.
    let overlay = report["checks"].as_array().into_iter().flatten();
    let overlay = overlay.filter(|check| {
        check["what"]
            .as_str()
            .is_some_and(|what| what.starts_with("overlay"))
    });
    ensure(overlay.count() == 13, || report.to_string())?;
    nothing_left(&prefix, demo.pid())
}

pub(crate) fn interrupted_demo() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for (signal, begun) in [(Signal::INT, "pings"), (Signal::TERM, "by TCP")] {
        let mut command = Command::new(program());
        command
            .arg("demo")
            .env("GUESTSEAL_BIN", guestseal_perf::deployment::program());
        let mut demo = Running::start("demo", directory.path(), &mut command)?;
        let prefix = format!("gs{}-", demo.pid());
        wait_for("the demo to be under way", PATIENCE, || {
            demo.check_runs()?;
            Ok(demo.errors().contains(begun).then_some(()))
        })?;
        demo.signal(signal);
        let ended = demo.finish(PATIENCE);
        ensure(
            ended.is_err_and(|error| error.to_string().contains("interrupted")),
            || "it did not say so".to_owned(),
        )?;
        nothing_left(&prefix, demo.pid())?;
    }
    Ok(())
}

fn nothing_left(prefix: &str, pid: u32) -> Result<()> {
    let namespaces = run_line("ip netns list")?;
    ensure(!namespaces.contains(prefix), || {
        format!("namespaces are left: {namespaces}")
    })?;
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let directory = format!("guestseal-demo-{pid}");
    ensure(!mounts.contains(&directory), || "a mount is left".to_owned())?;
    ensure(!std::env::temp_dir().join(&directory).exists(), || {
        format!("{directory} is left")
    })
}
