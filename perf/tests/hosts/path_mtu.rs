//! The path MTU between hosts: a wire that eats what is too long for it, and tells nobody.

use guestseal_perf::process::{Running, wait_for};
use serde_json::Value;

use crate::net::{Net, PATIENCE, Result, ensure};
use crate::sessions::{current, ping, running};

/// What the wire takes when it is narrow: a bridge drops without a word what is longer than its port's MTU and room for a
/// VLAN tag, which it grants whether there is one or not.
const PORT_MTU: u16 = 1400;
const NARROW: u16 = PORT_MTU + 4;
const WIDE: u16 = 1500;
/// What tunnel mode puts around a guest's packet over IPv4, at least.
const AROUND: u16 = 54;

pub(crate) fn set_wire(net: &Net, mtu: u16) -> Result<()> {
    net.topology.wire.ip(&format!("link set host1 mtu {mtu}"))?;
    Ok(())
}

/// Waits until both hosts have found it, with something sealed meanwhile.
pub(crate) fn wait_for_path_mtu(net: &Net, mtu: u16) -> Result<()> {
    wait_for(&format!("path MTU {mtu} on both hosts"), PATIENCE, || {
        let _ = net.guest("blue-1").run("ping -c 1 -W 1 -q 10.1.0.2");
        let found = |host: usize| {
            net.deployment.status(host).is_ok_and(|status| {
                let sessions = current(&status, "blue-any");
                sessions.iter().any(|session| session["path_mtu"] == mtu)
            })
        };
        Ok((found(0) && found(1)).then_some(()))
    })?;
    Ok(())
}

/// Asks for one echo that must not be fragmented, in an IP packet of so many bytes.
fn try_whole(net: &Net, to: &str, bytes: u16) -> Result<()> {
    let headers = if to.contains(':') { 48 } else { 28 };
    let size = bytes - headers;
    let line = format!("ping -M do -c 1 -W 1 -s {size} {to}");
    net.guest("blue-1").run(&line)?;
    Ok(())
}

/// Waits for such an echo: beside TCP that takes all that it can get, any single packet may find a ring full.
fn whole(net: &Net, to: &str, bytes: u16) -> Result<()> {
    let what = format!("an echo of {bytes} bytes from {to}");
    wait_for(&what, PATIENCE, || Ok(try_whole(net, to, bytes).ok()))?;
    Ok(())
}

/// What the guest's kernel believes of the way to another guest.
fn believed(net: &Net, to: &str) -> Result<Option<u16>> {
    let route = net.guest("blue-1").ip(&format!("route get {to}"))?;
    let mut words = route.split_whitespace();
    let mtu = words.find(|word| *word == "mtu").and_then(|_| words.next());
    Ok(mtu.and_then(|mtu| mtu.parse().ok()))
}

fn forget(net: &Net) -> Result<()> {
    for guest in ["blue-1", "blue-2"] {
        net.guest(guest).run("ip -4 route flush cache")?;
        net.guest(guest).run("ip -6 route flush cache")?;
    }
    Ok(())
}

pub(crate) fn server(net: &Net) -> Result<Running> {
    let server = Running::start(
        "iperf3-server",
        net.deployment.directory(),
        net.guest("blue-2").command("iperf3").args(["-s", "--forceflush"]),
    )?;
    wait_for("iperf3 to listen", PATIENCE, || {
        let listening = net.guest("blue-2").run("ss -Hlt sport 5201").ok();
        Ok(listening.filter(|line| !line.is_empty()))
    })?;
    Ok(server)
}

/// Narrower under a TCP connection that is there: it stalls and goes on. What the guest then sends whole fits or is told of,
/// and a new connection fits from its first packet on. Wider again: full size passes.
pub(crate) fn followed() -> Result<()> {
    let mut net = running("path-mtu", "  raise-mtu-after: 4s\n")?;
    ping(&net, "blue-1", "10.1.0.2")?;
    ping(&net, "blue-1", "fd00:1::2")?;
    wait_for_path_mtu(&net, WIDE)?;
    whole(&net, "10.1.0.2", 1400)?;
    let _server = server(&net)?;
    let mut long = Running::start(
        "iperf3-client",
        net.deployment.directory(),
        net.guest("blue-1")
            .command("iperf3")
            .args(["-c", "10.1.0.2", "-J", "-t", "30"]),
    )?;
    let before = net.sent_by("blue-1");
    wait_for("the transfer", PATIENCE, || {
        Ok((net.sent_by("blue-1") > before + 1000).then_some(()))
    })?;

    set_wire(&net, PORT_MTU)?;
    wait_for_path_mtu(&net, NARROW)?;
    let most = NARROW - AROUND;
    // Whoever sent while it was searched for was told of less, and would believe that for ten minutes.
    forget(&net)?;
    for to in ["10.1.0.2", "fd00:1::2"] {
        // The first one is what the guest is told by; then its kernel knows.
        wait_for(&format!("the guest to be told of {to}"), PATIENCE, || {
            let _ = try_whole(&net, to, 1400);
            let believed = believed(&net, to).ok().flatten();
            Ok(believed.filter(|mtu| *mtu == most))
        })?;
        whole(&net, to, most)?;
    }
    let report: Value = serde_json::from_str(&long.finish(2 * PATIENCE)?)?;
    let sum = &report["end"]["sum_received"];
    let last = report["intervals"].as_array().and_then(|all| all.last().cloned());
    let last = last.unwrap_or_default()["sum"]["bytes"].as_u64();
    ensure(last > Some(100_000), || {
        format!("the connection did not go on: {sum}")
    })?;
    // A new connection, by guests that know nothing of the way.
    forget(&net)?;
    let before = net.counter(0, "/told_too_long")?;
    let said = net.guest("blue-1").run("iperf3 -c 10.1.0.2 -J -t 2")?;
    let report: Value = serde_json::from_str(&said)?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    ensure(rate > Some(1e6), || format!("TCP over the narrow way: {rate:?}"))?;
    ensure(net.counter(0, "/told_too_long")? == before, || {
        "its segments did not fit".to_owned()
    })?;

    set_wire(&net, WIDE)?;
    wait_for_path_mtu(&net, WIDE)?;
    forget(&net)?;
    for to in ["10.1.0.2", "fd00:1::2"] {
        whole(&net, to, 1400)?;
    }
    for host in 0..2 {
        net.stop(host)?;
    }
    Ok(())
}
