//! Hosts that make sessions: nothing is sealed under a key that was not agreed on a moment ago.

use guestseal_perf::capture::kinds_with;
use guestseal_perf::deployment::{Deployment, number, random_hex};
use guestseal_perf::process::{Running, wait_for};
use serde_json::Value;

use crate::forge;
use crate::net::{Net, PATIENCE, Result, ensure, esp_packets};

/// Two hosts that run, with further lines of their `sessions`.
pub(crate) fn running(name: &str, sessions: &str) -> Result<Net> {
    running_under(name, crate::net::POLICY, sessions)
}

/// The same with another policy.
pub(crate) fn running_under(name: &str, policy: &str, sessions: &str) -> Result<Net> {
    let deployment = Deployment::with_sessions(name, policy)?;
    let guests = deployment.guests(1);
    let mut net = Net::of(deployment, 1, &guests)?;
    for host in 0..2 {
        net.write_session_host(host, sessions)?;
        net.start(host, &[])?;
    }
    Ok(net)
}

/// One ping, which must come back.
pub(crate) fn ping(net: &Net, from: &str, to: &str) -> Result<()> {
    let family = if to.contains(':') { "-6" } else { "-4" };
    let line = format!("ping {family} -c 1 -W 5 -p 7365616c65643f -q {to}");
    net.guest(from).run(&line).map_err(|error| {
        let outcomes = |host: usize| match net.deployment.status(host) {
            Ok(status) => status["totals"]["outcomes"].to_string(),
            Err(error) => error.to_string(),
        };
        format!(
            "{from} to {to}: {error}; h1: {}; h2: {}",
            outcomes(0),
            outcomes(1)
        )
    })?;
    Ok(())
}

/// The sessions that a host seals with, by key.
pub(crate) fn current<'a>(status: &'a Value, key: &str) -> Vec<&'a Value> {
    let all = status["sessions"]["sessions"].as_array();
    all.into_iter()
        .flatten()
        .filter(|session| session["key"] == key && session["current"] == true)
        .collect()
}

/// The very first packet waits for its session and arrives; nothing else of it is on the wire but sealed.
pub(crate) fn first_packet() -> Result<()> {
    let mut net = running("first", "")?;
    let capture = net.capture()?;
    let (mut follower, mut frames) = (capture.follow()?, Vec::new());
    for (from, to) in [
        ("blue-1", "10.1.0.2"),
        ("red-2", "10.2.0.1"),
        ("blue-2", "fd00:1::1"),
    ] {
        ping(&net, from, to)?;
    }
    wait_for("both ways of three pings, sealed", PATIENCE, || {
        frames.extend(follower.more()?);
        Ok((esp_packets(&frames) >= 6).then_some(()))
    })?;
    let readable = kinds_with(&frames, "sealed?sealed?");
    ensure(readable.is_empty(), || {
        format!("readable on the wire: {readable:?}")
    })?;
    let status = wait_for("status to show the session", PATIENCE, || {
        let Ok(status) = net.deployment.status(0) else {
            return Ok(None);
        };
        let sent = current(&status, "blue-any")
            .iter()
            .any(|session| session["sent_packets"].as_u64() > Some(0) && session["peer"] == "h2");
        Ok(sent.then_some(status))
    })?;
    ensure(current(&status, "red-any").len() == 1, || format!("{status:#}"))?;
    ensure(
        status["sessions"]["keys"]["blue-any.1"]["packets"].as_u64() > Some(3),
        || format!("usage by key: {:#}", status["sessions"]["keys"]),
    )?;
    let secrets = &status["sessions"]["secrets"];
    ensure(
        secrets["locked"].as_u64() > Some(4) && secrets["unlocked"] == 0 && secrets["all_memory"] == true,
        || format!("secrets in memory: {secrets}"),
    )?;
    for host in 0..2 {
        never_swapped(net.host(host).process.pid())?;
    }
    for host in 0..2 {
        let totals = net.stop(host)?;
        ensure(number(&totals, "/outcomes/dropped/NoSessionInTime") == 0, || {
            totals.to_string()
        })?;
    }
    Ok(())
}

/// Wherever a process keeps its traffic keys: all memory that is no file's is locked, as the kernel has it.
fn never_swapped(pid: u32) -> Result<()> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut mapping, mut locked) = ("", 0);
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let mut words = mapping.split_whitespace().skip(1);
            let access = words.next().unwrap_or_default();
            let name = words.nth(3).unwrap_or_default();
            if access.starts_with("rw") && ["", "[heap]", "[stack]"].contains(&name) {
                ensure(flags.split_whitespace().any(|flag| flag == "lo"), || {
                    format!("may be swapped out: {mapping}")
                })?;
                locked += 1;
            }
        } else if line.split_once(' ').is_some_and(|(range, _)| range.contains('-')) {
            mapping = line;
        }
    }
    ensure(locked > 3, || format!("{locked} mappings of process {pid}"))
}

/// TCP while sessions are made anew each second: no packet is lost.
pub(crate) fn rekey() -> Result<()> {
    let mut net = running("rekey", "  rekey-after: 1s\n")?;
    ping(&net, "blue-1", "10.1.0.2")?;
    let before = numbers(&net, "blue-any")?;
    let lost = traffic(&net, 6)?;
    let after = numbers(&net, "blue-any")?;
    eprintln!("rekey each second: sessions {before} to {after}, lost {lost}");
    ensure(after >= before + 4, || format!("sessions {before} to {after}"))?;
    ensure(lost == 0, || {
        format!("{lost} datagrams lost while sessions were made anew")
    })?;
    no_drops(&mut net)
}

/// A new generation comes to the hosts one by one, the old one goes, and nothing is lost; then the last one is revoked,
/// and nothing passes any more.
pub(crate) fn rotation_and_revocation() -> Result<()> {
    let mut net = running("rotation", "")?;
    ping(&net, "blue-1", "10.1.0.2")?;
    let secret = random_hex(32)?;
    let load = datagrams(&net, 25)?;
    for host in [1, 0] {
        net.deployment.give_key(host, "blue-any", 2, &secret)?;
        wait_for("the host to take the key", PATIENCE, || {
            let said = net.host(host).process.errors();
            Ok(said.contains("the keys have changed").then_some(()))
        })?;
    }
    wait_for("both to seal under generation 2", PATIENCE, || {
        let both = (0..2).all(|host| {
            net.deployment.status(host).is_ok_and(|status| {
                let sessions = current(&status, "blue-any");
                sessions.len() == 1 && sessions.iter().all(|session| session["generation"] == 2)
            })
        });
        Ok(both.then_some(()))
    })?;
    for host in [1, 0] {
        net.deployment.take_key(host, "blue-any", 1)?;
    }
    let lost = finish(load)?;
    eprintln!("rotation: lost {lost}");
    ensure(lost == 0, || format!("{lost} datagrams lost in the rotation"))?;
    ping(&net, "blue-1", "10.1.0.2")?;
    // Only one host revokes: the session ends on both.
    net.deployment.take_key(0, "blue-any", 2)?;
    wait_for("the sessions to end on both hosts", PATIENCE, || {
        let ended = |host: usize, reason: &str| {
            let status = net.deployment.status(host)?;
            Ok::<bool, guestseal_perf::process::PerfError>(
                status["sessions"]["ended"][reason].as_u64() > Some(0)
                    && current(&status, "blue-any").is_empty(),
            )
        };
        Ok((ended(0, "revoked")? && ended(1, "by-peer")?).then_some(()))
    })?;
    ensure(ping(&net, "blue-1", "10.1.0.2").is_err(), || {
        "a revoked key still seals".to_owned()
    })?;
    ping(&net, "red-1", "10.2.0.2")
}

/// Either side is killed and starts again: the next packets make a new session at once.
pub(crate) fn restarts() -> Result<()> {
    let mut net = running("restarts", "")?;
    ping(&net, "blue-1", "10.1.0.2")?;
    for killed in [0, 1] {
        net.host(killed).process.signal(rustix::process::Signal::KILL);
        net.hosts[killed] = None;
        net.start(killed, &[])?;
        // The one that lived has the old session and does not know: its first packet is what tells it.
        let survivor = if killed == 0 {
            ("blue-2", "10.1.0.1")
        } else {
            ("blue-1", "10.1.0.2")
        };
        wait_for("a ping to come back", PATIENCE, || {
            Ok(ping(&net, survivor.0, survivor.1).ok())
        })?;
        ping(&net, "blue-1", "10.1.0.2")?;
    }
    Ok(())
}

/// 100,000 forged handshakes a second, as dear as an attacker can make them: from the peer's address, for a channel that
/// there is, with a right mac1. Beside them the same packets to a port where nobody listens, which cost the machine as much
/// before Guestseal sees any. Sessions are made anew meanwhile.
pub(crate) fn forged_handshakes() -> Result<()> {
    const RATE: u32 = 100_000;
    const SECONDS: u32 = 4;
    let mut net = running("forged", "  rekey-after: 2s\n")?;
    ping(&net, "blue-1", "10.1.0.2")?;
    let forged = forge::initiations(&net, 64)?;
    let elsewhere: Vec<Vec<u8>> = forged.iter().map(|packet| forge::to_port(packet, 9)).collect();
    let directory = net.deployment.directory().to_owned();
    let throughput = |packets: Option<&[Vec<u8>]>| -> Result<f64> {
        let _flood = match packets {
            None => None,
            Some(packets) => {
                let lines: Vec<String> = packets.iter().map(|packet| forge::hex(packet)).collect();
                let file = directory.join("packets");
                std::fs::write(&file, lines.join("\n"))?;
                let (file, rate, seconds) = (
                    file.display().to_string(),
                    RATE.to_string(),
                    (SECONDS + 2).to_string(),
                );
                Some(net.serve(&net.topology.wire, &["repeat", "host0", &file, &rate, &seconds])?)
            }
        };
        tcp(&net, SECONDS)
    };
    let (mut quiet, mut dropped, mut met) = (0.0f64, 0.0f64, 0.0f64);
    for _ in 0..2 {
        quiet = quiet.max(throughput(None)?);
        dropped = dropped.max(throughput(Some(&elsewhere))?);
        met = met.max(throughput(Some(&forged))?);
    }
    eprintln!(
        "TCP, Mbit/s: {quiet:.0} alone, {dropped:.0} beside {RATE} packets a second that nobody takes, {met:.0} beside as many \
         forged handshakes: {:.2} of it",
        met / dropped
    );
    let status = wait_for("what came of the forged ones", PATIENCE, || {
        Ok(net.deployment.status(0).ok())
    })?;
    let handshakes = &status["sessions"]["handshakes"];
    ensure(handshakes["cookies"].as_u64() > Some(0), || {
        format!("nothing was asked for a cookie: {handshakes}")
    })?;
    ensure(
        handshakes["answered"].as_u64().unwrap_or(0) + handshakes["initiated"].as_u64().unwrap_or(0) > 2,
        || format!("no session was made anew: {handshakes}"),
    )?;
    ensure(met > dropped / 2.0, || {
        format!("forged handshakes take {met:.0} of {dropped:.0} Mbit/s")
    })?;
    ping(&net, "blue-1", "10.1.0.2")?;
    let totals = net.stop(0)?;
    ensure(number(&totals, "/xdp/uplink/handshakes") > 1000, || {
        format!("the XDP program has passed them all: {totals}")
    })?;
    Ok(())
}

/// TCP from blue-1 to blue-2; Mbit/s received.
fn tcp(net: &Net, seconds: u32) -> Result<f64> {
    let server = Running::start(
        "iperf3-server",
        net.deployment.directory(),
        net.guest("blue-2")
            .command("iperf3")
            .args(["-s", "-1", "--forceflush"]),
    )?;
    wait_for("iperf3 to listen", PATIENCE, || {
        Ok(net
            .guest("blue-2")
            .run("ss -Hlt sport 5201")
            .ok()
            .filter(|line| !line.is_empty()))
    })?;
    let said = net
        .guest("blue-1")
        .run(&format!("iperf3 -c 10.1.0.2 -J -t {seconds}"))?;
    drop(server);
    let report: Value = serde_json::from_str(&said)?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    rate.map(|rate| rate / 1e6)
        .ok_or_else(|| "iperf3 says no rate".into())
}

fn numbers(net: &Net, key: &str) -> Result<u64> {
    let status = wait_for("a current session", PATIENCE, || {
        let status = net.deployment.status(0).ok();
        Ok(status.filter(|status| !current(status, key).is_empty()))
    })?;
    Ok(current(&status, key)[0]["number"].as_u64().unwrap_or(0))
}

/// UDP between the blue guests for so many seconds; datagrams that were lost.
fn traffic(net: &Net, seconds: u32) -> Result<u64> {
    finish(datagrams(net, seconds)?)
}

/// iperf3 from blue-1 to blue-2: client and server.
pub(crate) struct Datagrams {
    client: Running,
    _server: Running,
}

pub(crate) fn datagrams(net: &Net, seconds: u32) -> Result<Datagrams> {
    let directory = net.deployment.directory();
    let server = Running::start(
        "iperf3-server",
        directory,
        net.guest("blue-2").command("iperf3").args(["-s", "--forceflush"]),
    )?;
    wait_for("iperf3 to listen", PATIENCE, || {
        Ok(net
            .guest("blue-2")
            .run("ss -Hlt sport 5201")
            .ok()
            .filter(|line| !line.is_empty()))
    })?;
    let seconds = seconds.to_string();
    let client = Running::start(
        "iperf3-client",
        directory,
        net.guest("blue-1").command("iperf3").args([
            "-c", "10.1.0.2", "-u", "-b", "4M", "-l", "500", "-J", "-t", &seconds,
        ]),
    )?;
    Ok(Datagrams {
        client,
        _server: server,
    })
}

/// Waits for the end; datagrams that were lost, of which there must be enough to say something.
pub(crate) fn finish(mut load: Datagrams) -> Result<u64> {
    let said = load.client.finish(2 * PATIENCE)?;
    let report: Value = serde_json::from_str(&said)?;
    let sum = &report["end"]["sum"];
    ensure(sum["packets"].as_u64() > Some(1000), || {
        format!("iperf3 sent too little: {sum}")
    })?;
    sum["lost_packets"]
        .as_u64()
        .ok_or_else(|| format!("iperf3 says nothing of loss: {sum}").into())
}

/// Stops both; no packet may have ended because of its SA.
pub(crate) fn no_drops(net: &mut Net) -> Result<()> {
    const REASONS: [&str; 7] = [
        "NoSecurityAssociation",
        "WaitingRoomFull",
        "NoSessionInTime",
        "UnknownSpi",
        "ReplaySeen",
        "ReplayTooOld",
        "BadTag",
    ];
    for host in 0..2 {
        let totals = net.stop(host)?;
        for reason in REASONS {
            let count = number(&totals, &format!("/outcomes/dropped/{reason}"));
            ensure(count == 0, || format!("host {host}: {count} dropped, {reason}"))?;
        }
    }
    Ok(())
}
