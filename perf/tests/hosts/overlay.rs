//! Overlay networks over real packets: tenants of equal addresses, Linux's own VXLAN device as the far end, routes.

use guestseal_perf::capture::{Capture, esp_of, kinds_with};
use guestseal_perf::deployment::number;
use guestseal_perf::namespaces::Namespace;
use guestseal_perf::process::{Running, wait_for};
use serde_json::json;

use crate::foreign::{PEER, PYTHON, associations, opened, peer};
use crate::net::{Net, PATIENCE, Result, ensure};

pub(crate) const POLICY: &str = include_str!("../../../rules/examples/overlay/policy.yaml");

/// What ESP between VTEPs leaves of 1,500 bytes for the guest's IP packet: IPv4 outside, VXLAN or Geneve inside.
const FITS: usize = 1416;

fn running(name: &str, policy: &str) -> Result<Net> {
    Net::of_policy(name, policy)?.start_all(1)
}

/// Where the guests' neighbours are, in both families: the number of header bytes that a ping has besides its data.
pub(crate) const NEIGHBOURS: [(&str, usize); 2] = [("10.1.0.2", 28), ("fd00:1::2", 48)];

/// A ping with "don't fragment" of an IP packet of so many bytes.
fn ping_of(namespace: &Namespace, (to, headers): (&str, usize), length: usize) -> bool {
    let line = format!("ping -c 1 -W 1 -M do -s {} -q {to}", length - headers);
    namespace.run(&line).is_ok()
}

/// Pings of every length up to `fits` come back, and none that is longer.
pub(crate) fn pings_up_to(namespace: &Namespace, to: (&str, usize), fits: usize) -> Result<()> {
    for length in [60, 576, 1280].into_iter().chain(fits - 9..=fits) {
        wait_for("a ping that fits", PATIENCE, || {
            Ok(ping_of(namespace, to, length).then_some(()))
        })?;
    }
    for length in fits + 1..fits + 4 {
        ensure(!ping_of(namespace, to, length), || {
            format!("{length} bytes to {} came back", to.0)
        })?;
    }
    Ok(())
}

/// What path MTU discovery by datagrams finds, from end to end.
pub(crate) fn traced(namespace: &Namespace, (to, _): (&str, usize), fits: usize) -> Result<()> {
    let found = format!("Resume: pmtu {fits} ");
    wait_for(&found, PATIENCE, || {
        let seen = namespace
            .run(&format!("tracepath -n -m 4 {to}"))
            .unwrap_or_default();
        Ok((seen.contains(&found) && seen.contains("reached")).then_some(()))
    })?;
    Ok(())
}

/// TCP in both directions and UDP, in both families, between guests and whatever is at the other end.
pub(crate) fn iperf(net: &Net, client: &Namespace, server: &Namespace, addresses: [&str; 2]) -> Result<()> {
    let _server = Running::start(
        "iperf3",
        net.deployment.directory(),
        server.command("iperf3").arg("-s"),
    )?;
    for address in addresses {
        for how in ["", " -R", " -u -b 20M -l 1200"] {
            let line = format!("iperf3 -c {address} -t 1 --connect-timeout 2000{how}");
            wait_for(&line, PATIENCE, || Ok(client.run(&line).ok()))?;
        }
    }
    Ok(())
}

/// Two tenants with the same MACs and addresses: each reaches its own, neighbours are found without a rule or a broadcast, and
/// nothing readable is on the wire.
pub(crate) fn tenants() -> Result<()> {
    let mut net = running("tenants", POLICY)?;
    let capture = net.capture()?;
    for tenant in ["blue", "red"] {
        for (from, to) in [
            ("1", "10.1.0.2"),
            ("2", "fd00:1::1"),
            ("1", "fd00:1::2"),
            ("2", "10.1.0.1"),
        ] {
            net.pings(&format!("{tenant}-{from}"), to)?;
        }
    }
    net.pings("blue-3", "10.1.0.1")?;
    // What each kernel was answered is its own tenant's neighbour, though on the wire nobody asked.
    for guest in ["blue-1", "red-1"] {
        for (address, _) in NEIGHBOURS {
            let entry = net
                .guest(guest)
                .ip(&format!("neigh show to {address} dev eth0"))?;
            ensure(entry.contains("lladdr 02:00:00:01:00:02"), || entry.clone())?;
        }
    }
    // Both tenants' servers have one address and port; each client gets its own tenant's answer.
    for tenant in ["blue", "red"] {
        let server = format!("{tenant}-2");
        let text = format!("marker-of-{tenant}");
        let mut messages = net.serve(net.guest(&server), &["receive", "7001"])?;
        wait_for("the message", PATIENCE, || {
            let sent = format!("echo -n {text} > /dev/udp/10.1.0.2/7001");
            let client = net.guest(&format!("{tenant}-1"));
            let _ = guestseal_perf::process::run(client.command("bash").args(["-c", &sent]));
            Ok(messages.output().contains(&text).then_some(()))
        })?;
        let got = messages.output();
        let other = if tenant == "blue" { "red" } else { "blue" };
        ensure(!got.contains(&format!("marker-of-{other}")), || got)?;
    }
    let frames = capture.stop()?;
    ensure(
        frames.iter().filter(|frame| esp_of(frame).is_some()).count() > 40,
        || "nothing sealed was on the wire".into(),
    )?;
    let readable = kinds_with(&frames, "marker-of-");
    ensure(readable.is_empty(), || {
        format!("readable on the wire: {readable:?}")
    })?;
    // Guests' ARP ends at their host: what is on the wire is the hosts' own.
    let is_guests = |frame: &&Vec<u8>| frame.get(6..11) == Some(&[2, 0, 0, 1, 0]);
    let guests = frames.iter().filter(is_guests).count();
    ensure(guests == 0, || format!("{guests} frames with guests' own MACs"))?;
    for host in 0..2 {
        net.stop(host)?;
    }
    Ok(())
}

/// Every size around the largest that fits, path MTU discovery by both families, and TCP and UDP in bulk.
pub(crate) fn sizes() -> Result<()> {
    sizes_over(running("sizes", POLICY)?)
}

pub(crate) fn sizes_over(mut net: Net) -> Result<()> {
    for guest in ["blue-1", "blue-2", "red-1", "red-2"] {
        net.guest(guest).ip("link set eth0 mtu 1500")?;
    }
    net.pings("blue-1", "10.1.0.2")?;
    for tenant in ["blue", "red"] {
        let (from, to) = (format!("{tenant}-1"), format!("{tenant}-2"));
        let (client, server) = (net.guest(&from), net.guest(&to));
        for neighbour in NEIGHBOURS {
            pings_up_to(client, neighbour, FITS)?;
            // The guest has been told, and each tool finds the same.
            let route = client.ip(&format!("route get {}", neighbour.0))?;
            ensure(route.contains(&format!("mtu {FITS}")), || route)?;
            traced(client, neighbour, FITS)?;
            // Fragments of the guest's own making, now that it knows, and just as well if it does not.
            for data in [FITS, 4000] {
                let line = format!("ping -c 1 -W 1 -s {data} -q {}", neighbour.0);
                wait_for(&line, PATIENCE, || Ok(client.run(&line).ok()))?;
                client.ip("route flush cache")?;
                wait_for(&line, PATIENCE, || Ok(client.run(&line).ok()))?;
            }
        }
        // With guests at 1,500 bytes: what TCP offers was lowered, UDP is told.
        iperf(&net, client, server, NEIGHBOURS.map(|(address, _)| address))?;
    }
    let totals = net.stop(0)?;
    let told = number(&totals, "/told_too_long");
    // In each network and family by a ping and by tracepath, at least.
    ensure(
        told >= 8 && number(&totals, "/outcomes/dropped/TooLong") >= told,
        || totals.to_string(),
    )?;
    net.stop(1)?;
    Ok(())
}

/// The second host is Linux with a VXLAN device and no Guestseal.
pub(crate) fn linux_vxlan() -> Result<()> {
    let plain = POLICY.replacen(
        "rules:\n",
        "rules:\n  - {name: bare, from: {network: blue}, to: any, action: plaintext}\n",
        1,
    );
    for (ip6, local, remote) in [
        (false, "192.0.2.2", "192.0.2.1"),
        (true, "2001:db8::2", "2001:db8::1"),
    ] {
        // Between hosts that have IPv6 addresses only, the overlay goes over IPv6.
        let policy = if ip6 {
            plain
                .replacen("192.0.2.1, ", "", 1)
                .replacen("192.0.2.2, ", "", 1)
        } else {
            plain.clone()
        };
        let mut net = Net::of_policy(if ip6 { "vxlan6" } else { "vxlan4" }, &policy)?;
        // No SA can go over IPv4 then.
        if ip6 {
            net.deployment.sas.clear();
        }
        net.write_host(0, 1)?;
        net.start(0, &[])?;
        let far = &net.topology.hosts[1];
        far.ip(&format!(
            "link add vx0 address 02:00:00:01:00:02 type vxlan id 7001 local {local} remote {remote} dstport 4789{}",
            if ip6 { " udp6zerocsumrx" } else { "" }
        ))?;
        // Bare, 50 or 70 bytes are lost to the headers.
        let fits = if ip6 { 1430 } else { 1450 };
        far.ip(&format!("link set vx0 mtu {fits} up"))?;
        far.ip("addr add 10.1.0.2/24 dev vx0")?;
        far.ip("addr add fd00:1::2/64 dev vx0 nodad")?;
        let near = net.guest("blue-1");
        near.ip("link set eth0 mtu 1500")?;
        for neighbour in NEIGHBOURS {
            net.pings("blue-1", neighbour.0)?;
            pings_up_to(near, neighbour, fits)?;
            traced(near, neighbour, fits)?;
            let (own, headers) = neighbour;
            let back = (
                own.strip_suffix('2').unwrap_or_default().to_owned() + "1",
                headers,
            );
            let back = (back.0.as_str(), back.1);
            for length in [60, 1280, fits - 1, fits] {
                wait_for(&format!("{length} bytes to {}", back.0), PATIENCE, || {
                    Ok(ping_of(far, back, length).then_some(()))
                })?;
            }
            // In fragments, both ways.
            for (from, to) in [(near, neighbour.0), (far, back.0)] {
                let line = format!("ping -c 1 -W 1 -s 4000 -q {to}");
                wait_for(&line, PATIENCE, || Ok(from.run(&line).ok()))?;
            }
        }
        wait_for("the far end's ping", PATIENCE, || {
            Ok(far.run("ping -c 3 -i 0.05 -W 1 -q 10.1.0.3").ok())
        })?;
        iperf(&net, near, far, NEIGHBOURS.map(|(address, _)| address))?;
        let totals = net.stop(0)?;
        ensure(number(&totals, "/outcomes/sent_plaintext") > 100, || {
            totals.to_string()
        })?;
        // The red tenant's own kernel may say something that is sealed; nothing of the blue one's is.
        let rules = totals["rules"].as_array();
        let sealed_blue = rules.and_then(|all| all.iter().find(|rule| rule["rule"] == "blue"));
        ensure(sealed_blue.is_some_and(|rule| rule["packets"] == 0), || {
            totals.to_string()
        })?;
    }
    Ok(())
}

/// The way to the other host leads over a router, then straight to it again, then over the router: the packets follow.
pub(crate) fn routes() -> Result<()> {
    let mut net = running("routes", POLICY)?;
    net.pings("blue-1", "10.1.0.2")?;
    let wire = &net.topology.wire;
    wire.ip("addr add 192.0.2.254/24 dev br0")?;
    wire.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.br0.send_redirects=0")?;
    let mac_of = |namespace: &guestseal_perf::namespaces::Namespace, interface: &str| -> Result<Vec<u8>> {
        let text = namespace.run(&format!("cat /sys/class/net/{interface}/address"))?;
        let byte = |part| u8::from_str_radix(part, 16);
        Ok(text
            .trim()
            .split(':')
            .map(byte)
            .collect::<std::result::Result<_, _>>()?)
    };
    let (router, straight) = (mac_of(wire, "br0")?, mac_of(&net.topology.hosts[1], "uplink")?);
    for (route, expected) in [
        ("route add 192.0.2.2/32 via 192.0.2.254", &router),
        ("route del 192.0.2.2/32 via 192.0.2.254", &straight),
        ("route add 192.0.2.2/32 via 192.0.2.254", &router),
    ] {
        net.topology.hosts[0].ip(route)?;
        let capture = Capture::start(&net.topology.wire, "host0", net.deployment.directory())?;
        let mut follower = capture.follow()?;
        wait_for(route, PATIENCE, || {
            let answered = net.guest("blue-1").run("ping -c 1 -W 1 -q 10.1.0.2").is_ok();
            let sealed: Vec<Vec<u8>> = follower
                .more()?
                .into_iter()
                .filter(|frame| esp_of(frame).is_some() && frame[26..30] == [192, 0, 2, 1])
                .collect();
            let follows = sealed.last().is_some_and(|frame| frame[..6] == expected[..]);
            Ok((answered && follows).then_some(()))
        })?;
        capture.stop()?;
    }
    for host in 0..2 {
        net.stop(host)?;
    }
    Ok(())
}

/// Scapy opens what is sealed here, and what it seals is delivered: VXLAN and Geneve, once each, to the right tenant only; between
/// the hosts' IPv4 addresses, the red tenant's in UDP, and between their IPv6 addresses.
pub(crate) fn scapy() -> Result<()> {
    for (name, red, all, outer) in [
        (
            "scapy4",
            "udp-encapsulation: true",
            "",
            ["192.0.2.2", "192.0.2.1"],
        ),
        (
            "scapy6",
            "over-ip6: true",
            "over-ip6: true",
            ["2001:db8::2", "2001:db8::1"],
        ),
    ] {
        let mut net = Net::of_policy(name, POLICY)?;
        for sa in &mut net.deployment.sas {
            sa.extra = if sa.network == "red" { red } else { all }.to_owned();
        }
        for host in 0..2 {
            net.write_host(host, 1)?;
            net.start(host, &[])?;
        }
        scapy_at_the_other_end(&mut net, outer)?;
    }
    Ok(())
}

fn scapy_at_the_other_end(net: &mut Net, outer: [&str; 2]) -> Result<()> {
    let capture = net.capture()?;
    for tenant in ["blue", "red"] {
        for (address, _) in NEIGHBOURS {
            net.pings(&format!("{tenant}-1"), address)?;
        }
    }
    let file = capture.file().to_owned();
    capture.stop()?;
    let names = [
        "blue-any-h1-h2",
        "blue-any-h2-h1",
        "red-any-h1-h2",
        "red-any-h2-h1",
    ];
    opened(net, &file, &names, 10)?;
    // The second host is now scapy's.
    net.stop(1)?;
    let mut messages = Vec::new();
    for id in ["blue-1", "red-1"] {
        messages.push(net.serve(net.guest(id), &["receive", "7001"])?);
    }
    // The windows have seen what Guestseal itself sealed on the second host: far above that.
    let mut sequence = 5_000;
    let mut packet = |sa: &str, header: &str, port: u16, text: &str, how: &str, step: u64| {
        sequence += step;
        let (source, destination) = match text {
            "six" => ("fd00:1::2", "fd00:1::1"),
            _ => ("10.1.0.2", "10.1.0.1"),
        };
        json!({"sa": sa, "sequence": sequence, "source_mac": "02:00:00:01:00:02", "destination_mac": "02:00:00:01:00:01",
               "source": source, "destination": destination, "port": 7001, "text": text, "how": how,
               "overlay": {"header": header, "port": port}})
    };
    let (blue, red) = ("08000000001b5900", "00006558001b5a00");
    let packets = [
        packet("blue-any-h2-h1", blue, 4789, "blue", "right", 1),
        packet("blue-any-h2-h1", blue, 4789, "six", "right", 1),
        packet("red-any-h2-h1", red, 6081, "six", "right", 1),
        packet("red-any-h2-h1", red, 6081, "red", "right", 1),
        // The same number again, a changed tag, the other tenant's VNI under this one's key, and bare.
        packet("red-any-h2-h1", red, 6081, "wrong", "right", 0),
        packet("blue-any-h2-h1", blue, 4789, "wrong", "tag", 1),
        packet("blue-any-h2-h1", red, 6081, "wrong", "right", 1),
        packet("blue-any-h2-h1", blue, 4789, "wrong", "plain", 1),
        packet("blue-any-h2-h1", blue, 4789, "last", "right", 1),
        packet("red-any-h2-h1", red, 6081, "last", "right", 1),
    ];
    let uplink = net.topology.hosts[0].run("cat /sys/class/net/uplink/address")?;
    let sent = peer(
        net.topology.hosts[1].command(PYTHON).args(["-c", PEER, "send"]),
        &json!({"interface": "uplink", "uplink_mac": uplink.trim(), "outer": outer, "packets": packets,
                "associations": associations(net)}),
    )?;
    ensure(sent["sent"] == packets.len(), || sent.to_string())?;
    for (server, expected) in messages.iter_mut().zip(["blue\nsix", "six\nred"]) {
        wait_for("what scapy sealed", PATIENCE, || {
            Ok(server.output().contains("last").then_some(()))
        })?;
        let got = server.output();
        ensure(got == format!("listening\n{expected}\nlast\n"), || got)?;
    }
    let totals = net.stop(0)?;
    for reason in ["ReplaySeen", "BadTag", "WrongNetwork", "RuleWantsSealed"] {
        let found = number(&totals, &format!("/outcomes/dropped/{reason}"));
        ensure(found == 1, || format!("{reason}: {found}: {totals}"))?;
    }
    Ok(())
}
