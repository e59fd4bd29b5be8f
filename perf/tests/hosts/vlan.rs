//! VLAN tags, fragments and extension headers over real packets: a trunk whose VLANs are ports of different networks, and what
//! guests make themselves within a network.

use guestseal_perf::capture::{esp_of, kinds_with};
use guestseal_perf::deployment::{Deployment, number};
use guestseal_perf::namespaces::Namespace;
use guestseal_perf::process::{PerfError, Running, run, wait_for};

use crate::foreign::PYTHON;
use crate::net::{Net, PATIENCE, Result, ensure};

const POLICY: &str = include_str!("../../../rules/examples/overlay/policy.yaml");
const GUEST: &str = include_str!("guest.py");

const TO_2: &str = "Ether(src='02:00:00:01:00:01', dst='02:00:00:01:00:02')";
const PING: &str = "IP(src='10.1.0.1', dst='10.1.0.2')/ICMP(id=7)";
const PING6: &str = "IPv6(src='fd00:1::1', dst='fd00:1::2')/ICMPv6EchoRequest(id=7)";

fn guest(namespace: &Namespace, words: &[&str]) -> std::result::Result<String, PerfError> {
    run(namespace.command(PYTHON).args(["-c", GUEST]).args(words))
}

/// Answers pings in the VLAN that they come in; the guest's kernel has no addresses.
fn answerer(net: &Net, id: &str) -> Result<Running> {
    let namespace = net.guest(id);
    namespace.run("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1")?;
    namespace.ip("addr flush dev eth0")?;
    let mut command = namespace.command(PYTHON);
    command.args(["-c", GUEST, "answer"]);
    let mut answering = Running::start(&format!("answer-{id}"), net.deployment.directory(), &mut command)?;
    wait_for("scapy to listen", PATIENCE, || {
        answering.check_runs()?;
        Ok(answering.output().contains("listening").then_some(()))
    })?;
    Ok(answering)
}

fn net(name: &str, policy: &str, without: Option<&str>) -> Result<Net> {
    let deployment = Deployment::new(name, policy, &[])?;
    let specs = deployment.guests(1).into_iter();
    let specs: Vec<_> = specs.filter(|spec| Some(&*spec.id) != without).collect();
    let net = Net::of(deployment, 1, &specs)?;
    for host in 0..2 {
        net.write_host(host, 1)?;
    }
    Ok(net)
}

/// Each VLAN of a trunk is a guest port of a network of its own; what has another tag, or none, goes nowhere.
pub(crate) fn trunk() -> Result<()> {
    // Both tenants' first guests are VLANs of one card.
    let policy = POLICY
        .replace("interface: gp-blue-1", "interface: trunk, vlan: 101")
        .replace("interface: gp-red-1", "interface: trunk, vlan: 102");
    let mut net = net("trunk", &policy, Some("red-1"))?;
    let _answerer = answerer(&net, "blue-1")?;
    for host in 0..2 {
        net.start(host, &[])?;
    }
    let capture = net.capture()?;
    // In both directions: tags are put on and taken off, in both families, and to a port of the same host.
    for (from, to) in [
        ("blue-2", "10.1.0.1"),
        ("red-2", "10.1.0.1"),
        ("blue-2", "fd00:1::1"),
        ("red-2", "fd00:1::1"),
        ("blue-3", "10.1.0.1"),
    ] {
        let line = format!("ping -c 3 -i 0.3 -W 1 -q {to}");
        wait_for(&line, PATIENCE, || Ok(net.guest(from).run(&line).ok()))?;
    }
    // Each tenant's server gets its own tenant's words, and each answer comes in the tenant's VLAN.
    for (tenant, vlan, other) in [("blue", 101, "red"), ("red", 102, "blue")] {
        let mut messages = net.serve(net.guest(&format!("{tenant}-2")), &["receive", "7001"])?;
        let datagram = format!(
            "{TO_2}/Dot1Q(vlan={vlan})/IP(src='10.1.0.1', dst='10.1.0.2')/UDP(sport=7000, dport=7001)/Raw(b'vlan-of-{tenant}')"
        );
        guest(net.guest("blue-1"), &["send", &datagram, "1"])?;
        let other = datagram.replace(&format!("vlan-of-{tenant}"), &format!("vlan-of-{other}"));
        let other = other.replace(&format!("vlan={vlan}"), &format!("vlan={}", 203 - vlan));
        guest(net.guest("blue-1"), &["send", &other, "1"])?;
        wait_for("the message", PATIENCE, || {
            Ok(messages
                .output()
                .contains(&format!("vlan-of-{tenant}"))
                .then_some(()))
        })?;
        for packet in [PING, PING6] {
            let ping = format!("{TO_2}/Dot1Q(vlan={vlan})/{packet}");
            let got = guest(net.guest("blue-1"), &["ask", &ping])?;
            ensure(got.trim() == vlan.to_string(), || format!("{ping}: {got}"))?;
        }
        // What came by the other VLAN before is not here.
        let got = messages.output();
        ensure(got == format!("listening\nvlan-of-{tenant}\n"), || got)?;
    }
    let before = net.dropped(0, "UnknownVlan")?;
    let rest = "IP(src='10.1.0.1', dst='10.1.0.2')/UDP(sport=7000, dport=7001)/Raw(b'vlan-of-nobody')";
    for tags in ["/", "/Dot1Q(vlan=0)/", "/Dot1Q(vlan=103)/", "/Dot1AD(vlan=101)/"] {
        guest(
            net.guest("blue-1"),
            &["send", &format!("{TO_2}{tags}{rest}"), "5"],
        )?;
    }
    wait_for("every frame to be counted", PATIENCE, || {
        Ok((net.dropped(0, "UnknownVlan")? >= before + 20).then_some(()))
    })?;
    let frames = capture.stop()?;
    let readable = kinds_with(&frames, "vlan-of-");
    ensure(readable.is_empty(), || format!("readable: {readable:?}"))?;
    ensure(frames.iter().any(|frame| esp_of(frame).is_some()), || {
        "nothing sealed".into()
    })?;
    let totals = net.stop(0)?;
    let counted = number(&totals, "/outcomes/dropped/UnknownVlan");
    ensure(counted == before + 20, || {
        format!("{before} and 20 became {counted}")
    })?;
    net.stop(1)?;
    Ok(())
}

/// A guest's own tags, fragments and extension headers: they arrive as they were sent, and never escape the rule that is for them.
pub(crate) fn within_a_network() -> Result<()> {
    let policy = POLICY.replacen(
        "rules:\n",
        "rules:\n  - {name: vlan-200, from: {network: blue}, to: any, vlan: 200, action: drop}\n",
        1,
    );
    let mut net = net("tags", &policy, None)?;
    for host in 0..2 {
        net.start(host, &[])?;
    }
    let own = "IPv6(src='fd00:1::1', dst='fd00:1::2')";
    let option = "IPv6ExtHdrDestOpt(options=[PadN(optdata=b'\\0\\0\\0\\0')])";
    // By the receiver's kernel: extension headers, and fragments of which the first has a header in front of it.
    let asked = format!("{TO_2}/{own}/{option}/ICMPv6EchoRequest(id=7)");
    let got = guest(net.guest("blue-1"), &["ask", &asked])?;
    ensure(got.trim() == "untagged", || got)?;
    // TCP to port 23 is what a rule drops: behind extension headers, in a first fragment, and where no port can be read.
    for (packet, reason) in [
        (format!("{own}/{option}/TCP(dport=23)"), "RuleDrops"),
        (
            format!("{own}/IPv6ExtHdrFragment(m=1, id=9)/{option}/TCP(dport=23)/Raw(b'12345678')"),
            "RuleDrops",
        ),
        (
            format!("{own}/IPv6ExtHdrFragment(offset=3, id=9, nh=6)/Raw(b'12345678')"),
            "FragmentNeedsPorts",
        ),
        (
            "IP(src='10.1.0.1', dst='10.1.0.2', flags='MF')/TCP(dport=23)/Raw(b'1234')".to_owned(),
            "RuleDrops",
        ),
        (
            "IP(src='10.1.0.1', dst='10.1.0.2', frag=5, proto=6)/Raw(b'12345678')".to_owned(),
            "FragmentNeedsPorts",
        ),
        (format!("Dot1Q(vlan=200)/{PING}"), "RuleDrops"),
        (
            format!("Dot1Q(vlan=100)/{own}/{option}/TCP(dport=23)"),
            "RuleDrops",
        ),
    ] {
        let before = net.dropped(0, reason)?;
        guest(net.guest("blue-1"), &["send", &format!("{TO_2}/{packet}"), "3"])?;
        wait_for(&packet, PATIENCE, || {
            Ok((net.dropped(0, reason)? == before + 3).then_some(()))
        })?;
    }
    let _answerer = answerer(&net, "blue-2")?;
    for packet in [PING, PING6] {
        let got = guest(
            net.guest("blue-1"),
            &["ask", &format!("{TO_2}/Dot1Q(vlan=100)/{packet}")],
        )?;
        ensure(got.trim() == "100", || got)?;
    }
    for host in 0..2 {
        net.stop(host)?;
    }
    Ok(())
}
