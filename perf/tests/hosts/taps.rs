//! Guests behind real taps: what can be known of what they leave to the host is said, and what is lost is counted.

use guestseal_perf::deployment::{Deployment, number};
use guestseal_perf::process::{run, wait_for};

use crate::foreign::PYTHON;
use crate::net::{Net, PATIENCE, POLICY, Result, ensure};

const TAP: &str = include_str!("tap.py");

/// The guest blue-1 is behind a tap, without virtio-net headers.
fn net() -> Result<Net> {
    let deployment = Deployment::new("taps", POLICY, &["red"])?;
    let specs: Vec<_> = deployment
        .guests(1)
        .into_iter()
        .filter(|spec| spec.id != "blue-1")
        .collect();
    let net = Net::of(deployment, 1, &specs)?;
    let host = &net.topology.hosts[0];
    host.ip("tuntap add dev gp-blue-1 mode tap")?;
    host.run("sysctl -qw net.ipv6.conf.gp-blue-1.disable_ipv6=1")?;
    host.ip("link set gp-blue-1 up")?;
    for host in 0..2 {
        net.write_host(host, 1)?;
    }
    Ok(net)
}

/// Opens the tap as a VMM does, and writes a packet of the guest's.
fn sends(net: &Net, words: &[&str]) -> Result<()> {
    let mut command = net.topology.hosts[0].command(PYTHON);
    run(command.args(["-c", TAP, "gp-blue-1"]).args(words))?;
    Ok(())
}

/// Without virtio-net headers nothing is left, and nothing is said. With them, which a VMM may ask for at any time, it is said once
/// that it cannot be seen. Checksums are finished; what is to be cut is dropped and counted if it is longer than a frame, said
/// once, and goes on as one packet if it is not.
pub(crate) fn left_to_the_host() -> Result<()> {
    let unseen = "guest port gp-blue-1 is a tap with vnet_hdr";
    let mut net = net()?;
    net.start(1, &[])?;
    let mut messages = net.serve(net.guest("blue-2"), &["receive", "7001"])?;
    for mode in ["native", "generic"] {
        net.start(0, &["--xdp-mode", mode])?;
        // Of the run before, the tap still has its headers: then it is said before traffic flows.
        ensure(
            net.host(0).process.errors().contains(unseen) == (mode == "generic"),
            || net.host(0).process.errors(),
        )?;
        let mut arrives = |net: &mut Net, words: &[&str], text: &str| -> Result<()> {
            wait_for(text, PATIENCE, || {
                sends(net, words).map_err(|error| error.to_string()).ok();
                Ok(messages.output().lines().any(|line| line == text).then_some(()))
            })?;
            Ok(())
        };
        if mode == "native" {
            arrives(&mut net, &["plain", "plain"], "plain")?;
            let said = net.host(0).process.errors();
            ensure(!said.contains("vnet_hdr"), || said)?;
        }
        let partial = format!("partial-{mode}");
        arrives(&mut net, &["partial", &partial], &partial)?;
        net.wait_for_word(0, unseen)?;
        let segments = format!("one-two-{mode}");
        arrives(&mut net, &["segments", &segments, "4"], &segments)?;
        ensure(net.dropped(0, "FrameTooLong")? == 0, || {
            "nothing was too long yet".into()
        })?;
        for _ in 0..5 {
            sends(&net, &["tcp", "20000", "1000"])?;
        }
        wait_for("each to be counted", PATIENCE, || {
            Ok((net.dropped(0, "FrameTooLong").unwrap_or_default() == 5).then_some(()))
        })?;
        let lost = "guest port gp-blue-1: what no frame of the UMEM has room for was dropped";
        net.wait_for_word(0, lost)?;
        sends(&net, &["tcp", "20000", "1000"])?;
        wait_for("one more", PATIENCE, || {
            Ok((net.dropped(0, "FrameTooLong").unwrap_or_default() == 6).then_some(()))
        })?;
        let said = net.host(0).process.errors();
        ensure(
            [unseen, lost].iter().all(|what| said.matches(what).count() == 1),
            || said,
        )?;
        let totals = net.stop(0)?;
        ensure(number(&totals, "/outcomes/dropped/FrameTooLong") == 6, || {
            totals.to_string()
        })?;
    }
    net.stop(1)?;
    Ok(())
}
