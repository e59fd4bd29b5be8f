//! Sessions over every kind of network and way: overlays of both kinds, also in UDP, IPv6 between the hosts, two workers on
//! each of them.

use std::collections::BTreeMap;

use guestseal_perf::capture::{esp_of, kinds_with};
use guestseal_perf::deployment::Deployment;
use guestseal_perf::process::wait_for;

use crate::net::{Net, PATIENCE, POLICY, Result, ensure};
use crate::overlay::{self, iperf};
use crate::path_mtu::{server, set_wire, wait_for_path_mtu};
use crate::sessions::{current, no_drops, ping};

/// IP protocols of ESP, and of UDP to port 4500.
const ESP: u8 = 50;
const UDP: u8 = 17;

/// Hosts that run with so many workers; the policy's hosts have addresses of one family only, if it is said.
fn running(name: &str, policy: &str, sessions: &str, workers: u32, only_ip6: bool) -> Result<Net> {
    let mut policy = policy.to_owned();
    for host in 1..=2 {
        let (v4, v6) = (format!("192.0.2.{host}"), format!("\"2001:db8::{host}\""));
        let both = format!("[{v4}, {v6}]");
        ensure(policy.contains(&both), || policy.clone())?;
        if only_ip6 {
            policy = policy.replace(&both, &format!("[{v6}]"));
        }
    }
    let deployment = Deployment::with_sessions(name, &policy)?;
    let guests = deployment.guests(workers);
    let mut net = Net::of(deployment, workers, &guests)?;
    for host in 0..2 {
        net.write_session_host_of(host, workers, sessions)?;
        net.start(host, &[])?;
    }
    Ok(net)
}

/// Frames between the hosts of a protocol, in either family.
fn of_protocol(frames: &[Vec<u8>], protocol: u8) -> usize {
    let is_it = |frame: &&Vec<u8>| match frame.get(12..14) {
        Some([8, 0]) => frame.get(23) == Some(&protocol),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&protocol),
        _ => false,
    };
    frames.iter().filter(is_it).count()
}

/// Both tenants reach their own, in both families; each host has one session that it seals with for each of their keys.
fn both_tenants(net: &Net, pings: &[(&str, &str)]) -> Result<()> {
    for (from, to) in pings {
        ping(net, from, to)?;
    }
    for host in 0..2 {
        wait_for("a session for each tenant", PATIENCE, || {
            let status = net.deployment.status(host).ok();
            Ok(status.filter(|status| {
                ["blue-any", "red-any"]
                    .iter()
                    .all(|key| current(status, key).len() == 1)
            }))
        })?;
    }
    Ok(())
}

const OVERLAY_PINGS: [(&str, &str); 4] = [
    ("blue-1", "10.1.0.2"),
    ("red-2", "10.1.0.1"),
    ("blue-2", "fd00:1::1"),
    ("red-1", "fd00:1::2"),
];

/// VXLAN and Geneve, as ESP and as ESP in UDP: pings, TCP both ways and UDP; nothing readable is on the wire.
pub(crate) fn overlays() -> Result<()> {
    for (name, sessions, protocol) in [
        ("ways-esp", "", ESP),
        ("ways-udp", "  udp-encapsulation: true\n", UDP),
    ] {
        let mut net = running(name, overlay::POLICY, sessions, 1, false)?;
        let capture = net.capture()?;
        both_tenants(&net, &OVERLAY_PINGS)?;
        let frames = capture.stop()?;
        ensure(of_protocol(&frames, protocol) >= 8, || {
            format!("{name}: too few sealed packets on the wire")
        })?;
        let readable = kinds_with(&frames, "sealed?sealed?");
        ensure(readable.is_empty(), || {
            format!("readable on the wire: {readable:?}")
        })?;
        for tenant in ["blue", "red"] {
            let guest = |number: u32| net.guest(&format!("{tenant}-{number}"));
            iperf(&net, guest(1), guest(2), ["10.1.0.2", "fd00:1::2"])?;
        }
        no_drops(&mut net)?;
    }
    Ok(())
}

/// IPv6 between the hosts, for tunnels and overlays; and a wire that becomes narrow there is followed, too.
pub(crate) fn over_ip6() -> Result<()> {
    let flat: [(&str, &str); 3] = [
        ("blue-1", "10.1.0.2"),
        ("red-2", "10.2.0.1"),
        ("blue-2", "fd00:1::1"),
    ];
    for (name, policy, pings) in [
        ("ways-flat6", POLICY, &flat[..]),
        ("ways-overlay6", overlay::POLICY, &OVERLAY_PINGS[..]),
    ] {
        let mut net = running(name, policy, "  raise-mtu-after: 2s\n", 1, true)?;
        let capture = net.capture()?;
        both_tenants(&net, pings)?;
        let frames = capture.stop()?;
        let is_ip6 = |frame: &Vec<u8>| frame.get(12..14) == Some(&[0x86, 0xdd]);
        let sealed: Vec<Vec<u8>> = frames.into_iter().filter(is_ip6).collect();
        ensure(of_protocol(&sealed, ESP) >= pings.len() * 2, || {
            format!("{name}: too few sealed packets over IPv6")
        })?;
        let carries = || {
            let (client, server) = (net.guest("blue-1"), net.guest("blue-2"));
            iperf(&net, client, server, ["10.1.0.2", "fd00:1::2"])
        };
        carries()?;
        set_wire(&net, 1400)?;
        wait_for_path_mtu(&net, 1404)?;
        carries()?;
        set_wire(&net, 1500)?;
        wait_for_path_mtu(&net, 1500)?;
        no_drops(&mut net)?;
    }
    Ok(())
}

/// Two workers on each host: every flow finds its SA whichever worker gets it, on either side, also while sessions are made
/// anew each second.
pub(crate) fn two_workers() -> Result<()> {
    let mut net = running("ways-workers", POLICY, "  rekey-after: 1s\n", 2, false)?;
    for (from, to) in [
        ("blue-1", "10.1.0.2"),
        ("blue-2", "fd00:1::1"),
        ("red-1", "10.2.0.2"),
        ("red-2", "10.2.0.1"),
    ] {
        ping(&net, from, to)?;
    }
    let _server = server(&net)?;
    let capture = net.capture()?;
    let said = net
        .guest("blue-1")
        .run("iperf3 -c 10.1.0.2 -u -b 250K -l 500 -P 8 -t 6 -J")?;
    let report: serde_json::Value = serde_json::from_str(&said)?;
    let sum = &report["end"]["sum"];
    ensure(sum["packets"].as_u64() > Some(1000), || format!("too few: {sum}"))?;
    ensure(sum["lost_packets"].as_u64() == Some(0), || {
        format!("datagrams lost while sessions were made anew: {sum}")
    })?;
    // Both workers of a host seal, each with an SA of its own: in the block of a session's SPIs they stand beside each other.
    let mut blocks: BTreeMap<u32, BTreeMap<u32, usize>> = BTreeMap::new();
    for (spi, _) in capture.stop()?.iter().filter_map(|frame| esp_of(frame)) {
        *blocks.entry(spi / 64).or_default().entry(spi).or_default() += 1;
    }
    let busy = |lanes: &BTreeMap<u32, usize>| lanes.values().filter(|count| **count > 20).count();
    let both = blocks.values().filter(|lanes| busy(lanes) == 2).count();
    ensure(both >= 3, || {
        format!("sessions of which both SAs were used: {blocks:?}")
    })?;
    for host in 0..2 {
        let status = wait_for("a session", PATIENCE, || {
            let status = net.deployment.status(host).ok();
            Ok(status.filter(|status| current(status, "blue-any").len() == 1))
        })?;
        let usage = &status["sessions"]["keys"]["blue-any.1"];
        // An SA for each worker of each host, in each session.
        let (sessions, sas) = (usage["sessions"].as_u64(), usage["sas"].as_u64());
        ensure(
            sas.is_some() && sas == sessions.map(|sessions| 4 * sessions),
            || format!("usage: {usage}"),
        )?;
    }
    no_drops(&mut net)
}
