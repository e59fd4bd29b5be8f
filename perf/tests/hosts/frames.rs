//! Frames that are longer than those of the UMEM.

use guestseal_perf::deployment::number;
use guestseal_perf::process::wait_for;

use crate::net::{Net, PATIENCE, Result, ensure};

/// The kernel drops each, and each is one received packet with an outcome of its own, also while it runs; with longer frames they
/// arrive.
pub(crate) fn too_long() -> Result<()> {
    let mut net = Net::new("frames", 1)?;
    // Jumbo frames from guest to guest: what ESP adds fits, too.
    for (host, guest) in [(0, "blue-1"), (1, "blue-2")] {
        let port = format!("gp-{guest}");
        net.topology.wire.ip(&format!("link set host{host} mtu 3400"))?;
        for (namespace, interface) in [
            (&net.topology.hosts[host], "uplink"),
            (&net.topology.hosts[host], &*port),
        ] {
            namespace.ip(&format!("link set {interface} mtu 3400"))?;
        }
        net.guest(guest).ip("link set eth0 mtu 3000")?;
    }
    net.topology.wire.ip("link set br0 mtu 3400")?;
    net.write_host(0, 1)?;
    net.write_host(1, 1)?;
    for mode in ["native", "generic"] {
        for host in 0..2 {
            net.start(host, &["--xdp-mode", mode])?;
        }
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
    for host in 0..2 {
        let path = net.write_host(host, 1)?;
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(&path, text + "umem: {frame-size: 4096}\n")?;
        net.start(host, &[])?;
    }
    net.pings("blue-1", "10.1.0.2")?;
    let line = "ping -c 3 -i 0.05 -W 1 -M do -q -s 2500 10.1.0.2";
    wait_for(line, PATIENCE, || Ok(net.guest("blue-1").run(line).ok()))?;
    for host in 0..2 {
        net.stop(host)?;
    }
    Ok(())
}
