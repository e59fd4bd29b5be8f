//! Guests' packets come with room in front and are sealed where they are; what is not sealed leaves as it came.

use guestseal_perf::capture::{esp_of, kinds_with};
use guestseal_perf::process::wait_for;
use serde_json::Value;

use crate::net::{Net, PATIENCE, Result, ensure};
use crate::overlay;

/// Guestseal runs on both hosts, and says of each of the first one's guest ports how many bytes go in front.
fn running(mut net: Net, arguments: &[&str], ports: &[(&str, usize)]) -> Result<Net> {
    for host in 0..2 {
        net.write_host_with(host, "in-place: true")?;
        net.start(host, arguments)?;
    }
    let said = net.host(0).process.errors();
    for (port, head) in ports {
        let line = said
            .lines()
            .find(|line| line.contains(&format!("guest port {port}:")));
        let expected = format!("sealed in place: {head} bytes in front");
        ensure(line.is_some_and(|line| line.contains(&expected)), || {
            format!("{port} is not {expected}: {said}")
        })?;
    }
    Ok(net)
}

/// VXLAN and Geneve between hosts' IPv4 addresses.
pub(crate) fn overlay() -> Result<()> {
    let net = Net::of_policy("in-place", overlay::POLICY)?;
    let ports = [("gp-blue-1", 66), ("gp-red-1", 66)];
    overlay::sizes_over(running(net, &[], &ports)?)
}

/// Transport mode, tunnel mode, plaintext and what stays on the host.
pub(crate) fn flat() -> Result<()> {
    for mode in ["native", "generic"] {
        let net = Net::new(&format!("in-place-{mode}"), 1)?;
        let ports = [("gp-blue-1", 16), ("gp-red-1", 36)];
        let mut net = running(net, &["--xdp-mode", mode], &ports)?;
        let capture = net.capture()?;
        net.pings_of_both_tenants()?;
        let text = "marker-in-place";
        let mut messages = net.serve(net.guest("blue-2"), &["receive", "7001"])?;
        wait_for("the message", PATIENCE, || {
            let sent = format!("echo -n {text} > /dev/udp/10.1.0.2/7001");
            let _ = guestseal_perf::process::run(net.guest("blue-1").command("bash").args(["-c", &sent]));
            Ok(messages.output().contains(text).then_some(()))
        })?;
        overlay::iperf(
            &net,
            net.guest("blue-1"),
            net.guest("blue-2"),
            ["10.1.0.2", "fd00:1::2"],
        )?;
        let frames = capture.stop()?;
        let sealed = frames.iter().filter(|frame| esp_of(frame).is_some()).count();
        let readable = kinds_with(&frames, text);
        ensure(sealed > 100 && readable.is_empty(), || {
            format!("{sealed} sealed frames, readable: {readable:?}")
        })?;
        let totals: Vec<Value> = (0..2).map(|host| net.stop(host)).collect::<Result<_>>()?;
        for totals in totals {
            let malformed = guestseal_perf::deployment::number(&totals, "/outcomes/dropped/Malformed");
            ensure(malformed == 0, || totals.to_string())?;
        }
    }
    Ok(())
}
