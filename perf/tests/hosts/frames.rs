//! Packets that are longer than a frame of the UMEM.

use guestseal_perf::capture::{esp_of, kinds_with};
use guestseal_perf::deployment::{Deployment, number};
use guestseal_perf::process::wait_for;

use crate::net::{Net, PATIENCE, POLICY, Result, ensure};
use crate::overlay::{self, iperf, pings_up_to, traced};
use crate::path_mtu::{set_wire, wait_for_path_mtu};

/// Sets the MTU of hosts, wire, ports and guests.
fn set_mtu(net: &Net, of_hosts: u32, of_guests: u32) -> Result<()> {
    for (host, guest) in [(0, "blue-1"), (1, "blue-2")] {
        let port = format!("gp-{guest}");
        net.topology
            .wire
            .ip(&format!("link set host{host} mtu {of_hosts}"))?;
        for interface in ["uplink", &port] {
            net.topology.hosts[host].ip(&format!("link set {interface} mtu {of_hosts}"))?;
        }
        net.guest(guest).ip(&format!("link set eth0 mtu {of_guests}"))?;
    }
    net.topology.wire.ip(&format!("link set br0 mtu {of_hosts}"))?;
    Ok(())
}

/// With what is in this file of each host besides the usual.
fn start_with(net: &mut Net, umem: &str, arguments: &[&str]) -> Result<()> {
    for host in 0..2 {
        let path = net.write_host(host, 1)?;
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(&path, format!("{text}umem: {umem}\n"))?;
        net.start(host, arguments)?;
    }
    Ok(())
}

/// Without frames for them the kernel drops each, and each is one received packet with an outcome of its own, also while it runs.
pub(crate) fn too_long() -> Result<()> {
    let mut net = Net::new("frames", 1)?;
    // What ESP adds fits, too.
    set_mtu(&net, 3400, 3000)?;
    for mode in ["native", "generic"] {
        start_with(&mut net, "{long-frames: 0}", &["--xdp-mode", mode])?;
        net.pings("blue-1", "10.1.0.2")?;
        // 1,792 bytes are what a frame of 2,048 has room for.
        let fits = net
            .guest("blue-1")
            .run("ping -c 3 -i 0.05 -W 1 -M do -q -s 1650 10.1.0.2");
        ensure(fits.is_ok(), || format!("{fits:?}"))?;
        let sent = net
            .guest("blue-1")
            .run("ping -c 40 -i 0.01 -W 1 -M do -q -s 2500 10.1.0.2");
        ensure(sent.is_err(), || "they came back".into())?;
        let seen = wait_for("the status to show it", PATIENCE, || {
            let text = net.ctl(0, &["status"])?;
            Ok(text.contains("FrameTooLong").then_some(text))
        })?;
        let line = seen.lines().find(|line| line.contains("FrameTooLong"));
        ensure(line.is_some_and(|line| line.ends_with(" 40")), || seen.clone())?;
        let totals = net.stop(0)?;
        ensure(
            number(&totals, "/outcomes/dropped/FrameTooLong") == 40 && number(&totals, "/kernel/other") == 0,
            || totals.to_string(),
        )?;
        let totals = net.stop(1)?;
        ensure(number(&totals, "/outcomes/dropped/FrameTooLong") == 0, || {
            totals.to_string()
        })?;
    }
    // Either way they have room.
    for umem in ["{frame-size: 4096, long-frames: 0}", "{long-frames: 16}"] {
        start_with(&mut net, umem, &[])?;
        net.pings("blue-1", "10.1.0.2")?;
        let line = "ping -c 3 -i 0.05 -W 1 -M do -q -s 2500 10.1.0.2";
        wait_for(line, PATIENCE, || Ok(net.guest("blue-1").run(line).ok()))?;
        for host in 0..2 {
            net.stop(host)?;
        }
    }
    Ok(())
}

/// An uplink of 9,000 bytes, with sessions: every size on the way in pieces and back, in native and in generic mode, sealed; what the
/// way takes is found, and followed down.
pub(crate) fn jumbo() -> Result<()> {
    for (name, policy, around, mode) in [
        ("jumbo-overlay", overlay::POLICY, 84, "native"),
        ("jumbo-flat", POLICY, 54, "generic"),
    ] {
        let deployment = Deployment::with_sessions(name, policy)?;
        let guests = deployment.guests(1);
        let mut net = Net::of(deployment, 1, &guests)?;
        set_mtu(&net, 9000, 9000)?;
        for host in 0..2 {
            net.write_session_host(host, "")?;
            net.start(host, &["--xdp-mode", mode])?;
        }
        net.pings("blue-1", "10.1.0.2")?;
        let said = net.host(0).process.errors();
        ensure(
            said.contains(&format!("uplink uplink: XDP {mode}")) && said.contains("(512 long)"),
            || said,
        )?;
        wait_for_path_mtu(&net, 9000)?;
        let capture = net.capture()?;
        let guest = net.guest("blue-1");
        for to in overlay::NEIGHBOURS {
            pings_up_to(guest, to, 9000 - around)?;
            traced(guest, to, 9000 - around)?;
        }
        guest.run("ping -c 5 -i 0.05 -W 1 -M do -q -s 8000 -p 6d61726b65727321 10.1.0.2")?;
        let frames = capture.stop()?;
        iperf(&net, guest, net.guest("blue-2"), ["10.1.0.2", "fd00:1::2"])?;
        let longest = |sealed: bool| {
            let some = frames.iter().filter(|frame| esp_of(frame).is_some() == sealed);
            some.map(Vec::len).max().unwrap_or(0)
        };
        ensure(longest(true) > 8990, || {
            format!("{} bytes were the most", longest(true))
        })?;
        let readable = kinds_with(&frames, "marker!marker!");
        ensure(readable.is_empty(), || {
            format!("readable on the wire: {readable:?}")
        })?;
        // A wire that takes less than a long packet, and more than a frame.
        set_wire(&net, 4000)?;
        wait_for_path_mtu(&net, 4004)?;
        for host in 0..2 {
            let totals = net.stop(host)?;
            ensure(
                number(&totals, "/outcomes/dropped/FrameTooLong") == 0
                    && number(&totals, "/outcomes/dropped/NoFrame") == 0,
                || totals.to_string(),
            )?;
        }
    }
    Ok(())
}
