//! The other end is not ours: scapy and OpenSSL (python3-cryptography) open what is sealed here and seal what is opened.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use guestseal_perf::deployment::number;
use guestseal_perf::process::wait_for;
use serde_json::{Value, json};

use crate::net::{Net, PATIENCE, Result, ensure, of_spi};

pub(crate) const PEER: &str = include_str!("peer.py");

/// Runs the peer in a namespace (or here) with orders on standard input; its answer.
pub(crate) fn peer(command: &mut Command, orders: &Value) -> Result<Value> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .ok_or("a pipe")?
        .write_all(orders.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    ensure(output.status.success(), || {
        String::from_utf8_lossy(&output.stderr).into_owned()
    })?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Debian's own interpreter: the one that Debian's packages are for.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// Every second SA without extended sequence numbers, so that both forms are met.
fn net(name: &str) -> Result<Net> {
    let mut net = Net::new(name, 1)?;
    for (number, sa) in net.deployment.sas.iter_mut().enumerate() {
        if number / 2 % 2 == 1 {
            sa.extra = "esn: false".into();
        }
    }
    for host in 0..2 {
        net.write_host(host, 1)?;
    }
    Ok(net)
}

pub(crate) fn associations(net: &Net) -> Value {
    let one = |sa: &guestseal_perf::deployment::SaSpec| {
        json!({
            "spi": sa.spi, "keymat": sa.keymat, "esn": !sa.extra.contains("esn: false"), "tunnel": sa.tunnel,
               "in_udp": sa.extra.contains("udp-encapsulation: true"), "authenticate": sa.authenticate,
            "name": sa.name,
        })
    };
    net.deployment.sas.iter().map(one).collect()
}

/// Lets the peer open a capture, of which nothing may fail to open and of each of these SAs so many packets must: how many
/// opened of each SA, and what of their payload was found.
pub(crate) fn opened(net: &Net, file: &Path, names: &[&str], least: u64) -> Result<Value> {
    let answer = peer(
        Command::new(PYTHON).args(["-c", PEER, "open"]),
        &json!({"pcap": file, "associations": associations(net)}),
    )?;
    ensure(answer["failed"] == 0, || answer.to_string())?;
    for name in names {
        ensure(number(&answer["opened"], &format!("/{name}")) >= least, || {
            format!("too little of {name} opened: {answer}")
        })?;
    }
    Ok(answer)
}

pub(crate) fn opens_elsewhere() -> Result<()> {
    let mut net = net("opens")?;
    net.start(0, &[])?;
    net.start(1, &[])?;
    let capture = net.capture()?;
    net.pings_of_both_tenants()?;
    let _mail = net.serve(net.guest("blue-2"), &["mail-server"])?;
    net.play(
        net.guest("blue-1"),
        &["mail-client", "10.1.0.2", "marker-of-mail"],
    )?;
    let mut log = net.serve(net.guest("blue-2"), &["log-server"])?;
    let (mut follower, mut found) = (capture.follow()?, 0);
    net.play(net.guest("blue-1"), &["log-client", "10.1.0.2", "marker-of-log"])?;
    log.finish(PATIENCE)?;
    wait_for("the log on the wire", PATIENCE, || {
        found += of_spi(&follower.more()?, net.spi("blue-log-h1-h2"));
        Ok((found > 0).then_some(()))
    })?;
    let file = capture.file().to_owned();
    capture.stop()?;
    let names = [
        "blue-any-h1-h2",
        "blue-any-h2-h1",
        "red-any-h1-h2",
        "red-any-h2-h1",
        "blue-mail-h1-h2",
        "blue-mail-h2-h1",
        "blue-log-h1-h2",
    ];
    let answer = opened(&net, &file, &names, 1)?;
    let markers = answer["markers"].as_array().cloned().unwrap_or_default();
    ensure(
        markers == [json!("marker-of-log"), json!("marker-of-mail")],
        || answer.to_string(),
    )
}

/// The second host is a Python program on a raw socket; the first one must deliver what it seals, once, and count what it
/// sends wrong.
pub(crate) fn delivered() -> Result<()> {
    let mut net = net("delivered")?;
    net.start(0, &[])?;
    let mut messages = Vec::new();
    for (id, port) in [("blue-1", "7001"), ("red-1", "7001"), ("blue-1", "514")] {
        messages.push(net.serve(net.guest(id), &["receive", port])?);
    }
    let guest = |id: &str| &net.topology.guest(id).spec;
    let packet = |sa: &str,
                  sequence: u64,
                  from: &str,
                  to: &str,
                  ip6: bool,
                  port: u16,
                  text: &str,
                  how: &str| {
        let address = |id: &str| {
            let addresses = &guest(id).addresses;
            addresses
                .iter()
                .find(|one| one.contains(':') == ip6)
                .map(|one| one.split('/').next().unwrap_or_default().to_owned())
        };
        json!({"sa": sa, "sequence": sequence, "source_mac": guest(from).mac, "destination_mac": guest(to).mac,
               "source": address(from), "destination": address(to), "port": port, "text": text, "how": how})
    };
    let packets = [
        packet(
            "blue-any-h2-h1",
            1,
            "blue-2",
            "blue-1",
            false,
            7001,
            "transport-4",
            "right",
        ),
        packet(
            "blue-any-h2-h1",
            2,
            "blue-2",
            "blue-1",
            true,
            7001,
            "transport-6",
            "right",
        ),
        packet(
            "red-any-h2-h1",
            1,
            "red-2",
            "red-1",
            false,
            7001,
            "tunnel-4",
            "right",
        ),
        packet(
            "red-any-h2-h1",
            2,
            "red-2",
            "red-1",
            true,
            7001,
            "tunnel-6",
            "right",
        ),
        packet(
            "blue-log-h2-h1",
            1,
            "blue-2",
            "blue-1",
            false,
            514,
            "authenticated",
            "right",
        ),
        packet(
            "blue-any-h2-h1",
            2,
            "blue-2",
            "blue-1",
            false,
            7001,
            "wrong",
            "right",
        ),
        packet(
            "blue-any-h2-h1",
            5,
            "blue-2",
            "blue-1",
            false,
            7001,
            "wrong",
            "tag",
        ),
        packet(
            "blue-any-h2-h1",
            6,
            "blue-2",
            "blue-1",
            false,
            7001,
            "wrong",
            "spi",
        ),
        packet(
            "blue-web-h2-h1",
            7,
            "blue-2",
            "blue-1",
            false,
            7001,
            "wrong",
            "right",
        ),
        packet(
            "blue-any-h2-h1",
            8,
            "blue-2",
            "blue-1",
            false,
            7001,
            "wrong",
            "cut",
        ),
        packet(
            "blue-any-h2-h1",
            9,
            "blue-2",
            "blue-1",
            false,
            7001,
            "wrong",
            "plain",
        ),
        packet(
            "blue-any-h2-h1",
            10,
            "blue-2",
            "blue-1",
            false,
            7001,
            "last",
            "right",
        ),
    ];
    let uplink = net.topology.hosts[0].run("cat /sys/class/net/uplink/address")?;
    let sent = peer(
        net.topology.hosts[1].command(PYTHON).args(["-c", PEER, "send"]),
        &json!({"interface": "uplink", "uplink_mac": uplink.trim(), "outer": ["192.0.2.2", "192.0.2.1"], "packets": packets,
                "associations": associations(&net)}),
    )?;
    ensure(sent["sent"] == packets.len(), || sent.to_string())?;
    wait_for("what the peer sealed", PATIENCE, || {
        Ok(messages[0].output().contains("last").then_some(()))
    })?;
    let got: Vec<String> = messages.iter_mut().map(|one| one.output()).collect();
    ensure(got[0] == "listening\ntransport-4\ntransport-6\nlast\n", || {
        format!("{got:?}")
    })?;
    ensure(
        got[1] == "listening\ntunnel-4\ntunnel-6\n" && got[2] == "listening\nauthenticated\n",
        || format!("{got:?}"),
    )?;
    let totals = net.stop(0)?;
    for (reason, count) in [
        ("ReplaySeen", 1),
        ("BadTag", 1),
        ("UnknownSpi", 1),
        ("KeyNotOfRule", 1),
        ("RuleWantsSealed", 1),
    ] {
        let found = number(&totals, &format!("/outcomes/dropped/{reason}"));
        ensure(found == count, || {
            format!("{reason}: {found}, expected {count}: {totals}")
        })?;
    }
    // The packet that was cut: its IP header says more than there is.
    ensure(
        number(&totals, "/outcomes/dropped/Truncated") + number(&totals, "/outcomes/dropped/BadIpHeader")
            == 1,
        || totals.to_string(),
    )?;
    Ok(())
}
