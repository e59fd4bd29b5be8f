//! The ways to other hosts are the kernel's, as they change.

use std::time::Duration;

use guestseal_perf::capture::Capture;
use guestseal_perf::deployment::Deployment;
use guestseal_perf::process::wait_for;

use crate::net::{Net, Result};

/// Shorter than it takes until the kernel is asked without having told anything.
const AT_ONCE: Duration = Duration::from_secs(10);

/// The overlay example with hosts that have addresses of one family only.
fn running(name: &str, is_v6: bool) -> Result<Net> {
    let mut policy = include_str!("../../../rules/examples/overlay/policy.yaml").to_owned();
    for host in 1..=2 {
        let (v4, v6) = (format!("192.0.2.{host}"), format!("\"2001:db8::{host}\""));
        let only = if is_v6 { &v6 } else { &v4 };
        policy = policy.replace(&format!("[{v4}, {v6}]"), &format!("[{only}]"));
    }
    let mut deployment = Deployment::new(name, &policy, &[])?;
    for sa in &mut deployment.sas {
        sa.extra = format!("over-ip6: {is_v6}");
    }
    let guests = deployment.guests(1);
    Net::of(deployment, 1, &guests)?.start_all(1)
}

fn is_esp(frame: &[u8]) -> bool {
    const ESP: u8 = 50;
    match frame.get(12..14) {
        Some([8, 0]) => frame.get(23) == Some(&ESP),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&ESP),
        _ => false,
    }
}

fn mac_at(frame: &[u8], place: usize) -> String {
    let bytes = frame[place..place + 6].iter();
    bytes
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

/// The other host gets another MAC, and its kernel says so: what is sent goes to the new one, and comes from it.
fn other_mac(is_v6: bool) -> Result<()> {
    let mut net = running(if is_v6 { "ways6" } else { "ways4" }, is_v6)?;
    net.pings("blue-1", "10.1.0.2")?;
    let own = net.topology.hosts[0].run("cat /sys/class/net/uplink/address")?;
    let other = &net.topology.hosts[1];
    other.run("sysctl -qw net.ipv4.conf.uplink.arp_notify=1 net.ipv6.conf.uplink.ndisc_notify=1")?;
    for number in 1..=3 {
        let mac = format!("02:00:00:ff:00:{number:02x}");
        let capture = Capture::start(&net.topology.wire, "host0", net.deployment.directory())?;
        let mut follower = capture.follow()?;
        other.ip(&format!("link set uplink address {mac}"))?;
        let (mut to, mut from) = (String::new(), String::new());
        wait_for(&format!("frames to and from {mac}"), AT_ONCE, || {
            let _ = net.guest("blue-1").run("ping -c 1 -W 1 -q 10.1.0.2");
            for frame in follower.more()?.iter().filter(|frame| is_esp(frame)) {
                match mac_at(frame, 6) == own.trim() {
                    true => to = mac_at(frame, 0),
                    false => from = mac_at(frame, 6),
                }
            }
            Ok((to == mac && from == mac).then_some(()))
        })?;
        capture.stop()?;
        net.pings("blue-1", "10.1.0.2")?;
    }
    for host in 0..2 {
        net.stop(host)?;
    }
    Ok(())
}

/// In both families.
pub(crate) fn next_hop() -> Result<()> {
    other_mac(false)?;
    other_mac(true)
}
