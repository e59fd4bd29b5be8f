//! A guest that moves between hosts while another one sends to it.

use guestseal_perf::capture::{Capture, Follower};
use guestseal_perf::process::{Running, wait_for};

use crate::net::{Net, PATIENCE, Result, ensure};

/// The overlay example with a third host, and a flow that can be read on the wire.
pub(crate) fn policy() -> String {
    include_str!("../../../rules/examples/overlay/policy.yaml")
        .replacen("# The VNI tells", "  - {name: h3, addresses: [192.0.2.3, \"2001:db8::3\"]}\n\n# The VNI tells", 1)
        .replacen(
            "rules:\n",
            "rules:\n  - {name: stream, from: {network: blue}, to: {network: blue}, protocol: udp, ports: [7100], action: plaintext}\n",
            1,
        )
}

fn running(name: &str) -> Result<Net> {
    Net::of_policy(name, &policy())?.start_all(1)
}

/// The numbers of the flow's datagrams in frames.
fn stream(frames: &[Vec<u8>]) -> Vec<u32> {
    const MARK: &[u8] = b"stream ";
    let number = |frame: &Vec<u8>| {
        let at = frame.windows(MARK.len()).position(|bytes| bytes == MARK)?;
        let digits = frame[at + MARK.len()..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit());
        String::from_utf8(digits.copied().collect()).ok()?.parse().ok()
    };
    frames.iter().filter_map(number).collect()
}

/// What goes to a host by the wire.
struct Wire {
    _captures: Vec<Capture>,
    followers: Vec<Follower>,
}

impl Wire {
    fn new(net: &Net) -> Result<Self> {
        let captures = (0..3)
            .map(|host| {
                Capture::start(
                    &net.topology.wire,
                    &format!("host{host}"),
                    net.deployment.directory(),
                )
            })
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let followers = captures
            .iter()
            .map(Capture::follow)
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            _captures: captures,
            followers,
        })
    }

    /// How many of the flow have passed a host's end of the wire since the last look.
    fn passed(&mut self, host: usize) -> Result<usize> {
        Ok(stream(&self.followers[host].more()?).len())
    }
}

/// The guest's card goes from one host to another, as when a virtual machine migrates.
pub(crate) fn carry_over(net: &mut Net, guest: &str, to: usize) -> Result<()> {
    net.guest(guest).ip("link del eth0")?;
    let place = net.topology.guests.iter().position(|one| one.spec.id == guest);
    let place = place.ok_or("no such guest")?;
    net.topology.guests[place].spec.host = to;
    Ok(net.topology.connect_guest(place)?)
}

fn arrived(collector: &mut Running) -> usize {
    collector.output().lines().count()
}

/// From the second host to the first, where its peer is, to the third: traffic follows, and nothing of the flow goes to the host
/// that it has left. Its neighbours are told. The move outlives SIGKILL, and the way back is one, too.
pub(crate) fn between_three_hosts() -> Result<()> {
    let mut net = running("moves")?;
    net.pings("blue-1", "10.1.0.2")?;
    let mut wire = Wire::new(&net)?;
    let neighbour = Capture::start(net.guest("blue-3"), "eth0", net.deployment.directory())?;
    let mut collector = net.serve(net.guest("blue-2"), &["collect", "7100"])?;
    let _sender = Running::start(
        "sender",
        net.deployment.directory(),
        net.guest("blue-1").command(crate::net::program()).args([
            "actor", "send", "10.1.0.2", "7100", "stream", "1000000", "--rate", "1000",
        ]),
    )?;
    wait_for("the flow", PATIENCE, || {
        Ok((arrived(&mut collector) > 100).then_some(()))
    })?;
    let mut from = 1;
    for to in [0, 2, 1, 2] {
        carry_over(&mut net, "blue-2", to)?;
        let name = format!("h{}", to + 1);
        for host in 0..3 {
            net.ctl(host, &["move", "blue-2", "--to", &name])?;
        }
        let before = arrived(&mut collector);
        // What was on its way when the last host answered.
        std::thread::sleep(std::time::Duration::from_millis(100));
        wire.passed(from)?;
        wait_for(&format!("the flow on {name}"), PATIENCE, || {
            Ok((arrived(&mut collector) > before + 500).then_some(()))
        })?;
        let late = if from == 0 { 0 } else { wire.passed(from)? };
        ensure(late == 0, || {
            format!(
                "{late} datagrams went to h{} after the guest had moved to {name}",
                from + 1
            )
        })?;
        let again = net.ctl(0, &["move", "blue-2", "--to", &name]);
        ensure(again.is_err(), || "it moved to where it is".into())?;
        from = to;
    }
    let endpoints = net.ctl(0, &["endpoints"])?;
    let line = endpoints
        .lines()
        .find(|line| line.contains("blue-2"))
        .unwrap_or_default();
    ensure(line.contains("h3"), || endpoints.clone())?;
    net.host(0).process.kill();
    net.hosts[0] = None;
    net.start(0, &[])?;
    net.pings("blue-1", "10.1.0.2")?;
    let unknown = net
        .ctl(0, &["move", "blue-2", "--to", "h9"])
        .err()
        .map(|error| error.to_string());
    ensure(
        unknown.is_some_and(|why| why.contains("no host of this name")),
        || "h9 is no host".into(),
    )?;
    let told = neighbour.stop()?;
    let is_announcement = |frame: &&Vec<u8>| {
        // Broadcast ARP by blue-2's MAC, whose sender and target are its address (RFC 5227 3).
        frame.len() >= 42
            && frame[..14] == [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 1, 0, 2, 8, 6]
            && frame[28..32] == [10, 1, 0, 2]
            && frame[38..42] == [10, 1, 0, 2]
    };
    let count = told.iter().filter(is_announcement).count();
    ensure(count >= 3, || {
        format!("its neighbour was told {count} times where it is")
    })?;
    (0..3).try_for_each(|host| net.stop(host).map(drop))
}
