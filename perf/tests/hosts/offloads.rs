//! What guests leave to their cards: finished, taken from them, refused, or turned off and put back.

use std::fs::File;
use std::path::Path;

use guestseal_perf::namespaces::NO_OFFLOADS;
use guestseal_perf::process::{PerfError, Running, run_line, wait_for};

use crate::net::{Net, PATIENCE, Result, ensure};

/// For `ethtool -K`: everything is left to the card.
fn all_on() -> String {
    NO_OFFLOADS.replace(" off", " on")
}

fn net(name: &str) -> Result<Net> {
    let net = Net::new(name, 1)?;
    for host in 0..2 {
        net.write_host(host, 1)?;
    }
    Ok(net)
}

fn iperf(net: &Net) -> Result<()> {
    let _server = Running::start(
        "iperf3",
        net.deployment.directory(),
        net.guest("blue-2").command("iperf3").arg("-s"),
    )?;
    for line in [
        "iperf3 -c 10.1.0.2 -n 4M --connect-timeout 2000",
        "iperf3 -c fd00:1::2 -n 4M --connect-timeout 2000",
        "iperf3 -c 10.1.0.2 -u -b 10M -n 1M -l 1300 --connect-timeout 2000",
        "iperf3 -c fd00:1::2 -u -b 10M -n 1M -l 1300 --connect-timeout 2000",
    ] {
        wait_for(line, PATIENCE, || Ok(net.guest("blue-1").run(line).ok()))?;
    }
    Ok(())
}

/// Guests with checksums and segments left to their card, as a veth has it by default: what they leave is finished, and what
/// they would leave to be cut the kernel has taken from them.
pub(crate) fn left_to_the_card() -> Result<()> {
    let mut net = net("left")?;
    for guest in ["blue-1", "blue-2"] {
        let but_tags = all_on().replace("txvlan on tx-vlan-stag-hw-insert on", "");
        net.guest(guest).run(&format!("ethtool -K eth0 {but_tags}"))?;
    }
    for host in 0..2 {
        net.start(host, &[])?;
    }
    let features = net.guest("blue-1").run("ethtool -k eth0")?;
    for state in [
        "tx-checksumming: on",
        "tcp-segmentation-offload: off",
        "tx-udp-segmentation: off",
    ] {
        ensure(features.contains(state), || features.clone())?;
    }
    net.pings("blue-1", "10.1.0.2")?;
    net.pings("blue-2", "fd00:1::1")?;
    iperf(&net)?;
    for host in 0..2 {
        net.stop(host)?;
    }
    Ok(())
}

/// What is said when a start is refused.
fn refusal(net: &mut Net, arguments: &[&str]) -> Result<String> {
    match net.deployment.start(0, &net.topology.hosts[0], arguments) {
        Err(PerfError::Ended { said, .. }) => Ok(said),
        Err(other) => Err(other.into()),
        Ok(_) => Err("it was not refused".into()),
    }
}

/// The command that is said to help.
fn command(said: &str) -> Result<&str> {
    let found = said
        .lines()
        .map(str::trim)
        .find(|line| line.contains("ethtool -K"));
    Ok(found.ok_or_else(|| said.to_owned())?)
}

/// The start says which command helps, and after that command it is one that works.
pub(crate) fn refused() -> Result<()> {
    let mut net = net("refused")?;
    net.start(1, &["--xdp-mode", "generic"])?;
    let blue = net.guest("blue-1").name().to_owned();
    for (offload, mode) in [
        ("tso on tx on", "generic"),
        ("tx-udp-segmentation on tx on", "generic"),
        ("txvlan on", "native"),
    ] {
        net.guest("blue-1").run(&format!("ethtool -K eth0 {offload}"))?;
        let said = refusal(&mut net, &["--xdp-mode", mode])?;
        ensure(said.contains("guest port gp-blue-1"), || said.clone())?;
        let line = command(&said)?;
        ensure(
            line.starts_with(&format!("ip netns exec {blue} ethtool -K eth0 tx-")),
            || line.to_owned(),
        )?;
        run_line(line)?;
        net.start(0, &["--xdp-mode", mode])?;
        net.pings("blue-1", "10.1.0.2")?;
        net.stop(0)?;
    }

    // A port that comes later stays closed until the command was run, and the other ports are served.
    net.start(0, &["--xdp-mode", "generic"])?;
    net.guest("blue-1").ip("link del eth0")?;
    net.topology.connect_guest(0)?;
    net.pings("blue-1", "10.1.0.2")?;
    net.guest("blue-1").ip("link del eth0")?;
    net.wait_for_word(0, "guest port gp-blue-1 is gone")?;
    // As `connect_guest` makes it, but for the offloads, which a new veth has on.
    let host = net.topology.hosts[0].name().to_owned();
    net.guest("blue-1").ip(&format!(
        "link add eth0 address 02:00:00:01:00:01 type veth peer name gp-blue-1 netns {host}"
    ))?;
    net.topology.hosts[0].ip("link set gp-blue-1 up")?;
    net.guest("blue-1").ip("link set eth0 mtu 1400 up")?;
    net.guest("blue-1").ip("addr add 10.1.0.1/24 dev eth0")?;
    net.wait_for_word(
        0,
        "guest port gp-blue-1 stays closed: guest port gp-blue-1: its guest leaves",
    )?;
    net.pings("red-1", "10.2.0.2")?;
    let said = net.host(0).process.errors();
    run_line(command(&said)?)?;
    net.pings("blue-1", "10.1.0.2")?;
    net.stop(0)?;

    // A namespace without a name, which only a process leads to.
    net.guest("red-1").run("ethtool -K eth0 txvlan on")?;
    let red = net.guest("red-1").name().to_owned();
    let directory = net.deployment.directory().to_owned();
    let mut inside = net.guest("red-1").command("sleep");
    let inside = Running::start("inside", &directory, inside.arg("300"))?;
    let held = File::open(Path::new("/run/netns").join(&red))?;
    // `ip netns exec` is in it once the program is another.
    let name = Path::new("/proc").join(inside.pid().to_string()).join("comm");
    wait_for("sleep", PATIENCE, || {
        Ok(std::fs::read_to_string(&name)
            .ok()
            .filter(|name| name == "sleep\n"))
    })?;
    run_line(&format!("ip netns del {red}"))?;
    let said = refusal(&mut net, &[])?;
    ensure(command(&said)?.starts_with("nsenter --net=/proc/"), || {
        said.clone()
    })?;
    // And one that nothing leads to.
    drop(inside);
    net.start(0, &[])?;
    let said = net.host(0).process.errors();
    ensure(
        said.contains("guest port gp-red-1: its guest's card is in a network namespace"),
        || said,
    )?;
    net.pings("blue-1", "10.1.0.2")?;
    net.stop(0)?;
    drop(held);
    net.stop(1)?;
    Ok(())
}

/// Turned off while it runs, put back by an orderly end, and after SIGKILL by the end of the next run.
pub(crate) fn fixed() -> Result<()> {
    let mut net = net("fixed")?;
    let guests = ["blue-1", "blue-2", "red-1", "red-2"];
    for guest in guests {
        net.guest(guest).run(&format!("ethtool -K eth0 {}", all_on()))?;
    }
    let features = |net: &Net| -> Result<Vec<String>> {
        let of = |guest: &&str| net.guest(guest).run("ethtool -k eth0");
        Ok(guests.iter().map(of).collect::<std::result::Result<_, _>>()?)
    };
    let before = features(&net)?;
    let is_off = |net: &Net| -> Result<()> {
        for text in features(net)? {
            for feature in [
                "tcp-segmentation-offload",
                "tx-udp-segmentation",
                "tx-vlan-offload",
            ] {
                ensure(text.contains(&format!("{feature}: off")), || text.clone())?;
            }
        }
        Ok(())
    };
    let is_back = |net: &Net| -> Result<()> {
        let now = features(net)?;
        ensure(now == before, || format!("{before:?} became {now:?}"))
    };
    let start = |net: &mut Net, more: &[&str]| -> Result<()> {
        for host in 0..2 {
            net.start(host, &[&["--xdp-mode", "generic"], more].concat())?;
        }
        Ok(())
    };
    start(&mut net, &["--fix-offloads"])?;
    is_off(&net)?;
    net.pings("blue-1", "10.1.0.2")?;
    iperf(&net)?;
    for host in 0..2 {
        net.stop(host)?;
    }
    is_back(&net)?;

    start(&mut net, &["--fix-offloads"])?;
    for host in 0..2 {
        net.host(host).process.kill();
    }
    is_off(&net)?;
    // What the killed ones noted is known; what is off is not refused.
    start(&mut net, &[])?;
    // A second process touches nothing of the first's.
    let said = refusal(&mut net, &["--fix-offloads"])?;
    ensure(said.contains("in use by another guestseal"), || said)?;
    is_off(&net)?;
    net.pings("blue-1", "10.1.0.2")?;
    for host in 0..2 {
        net.stop(host)?;
    }
    is_back(&net)?;
    Ok(())
}
