//! What the XDP programs decide: frame in, verdict and frame out, run by the kernel on no interface.
//! Every case runs twice: without a live socket, where what is Guestseal's must be dropped, and with one.

mod frames;
mod namespace;

use frames::*;
use guestseal_xdp::{GuestProgram, Program, UplinkConfig, UplinkProgram, Verdict};
use libtest_mimic::Failed;
use namespace::{Body, Case, LiveSocket};
use rustix::time::{ClockId, clock_gettime};

/// Whose a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Guestseal,
    Kernel,
}
use Owner::{Guestseal, Kernel};

fn main() {
    let mut cases: Vec<Case> = Vec::new();
    let mut uplink = |name: &str, config: UplinkConfig, frame: Vec<u8>, owner: Owner| {
        let body = move || uplink_case(&config, &frame, owner);
        cases.push((format!("uplink::{name}"), Box::new(body)));
    };
    tunnels(&mut uplink);
    flat_networks(&mut uplink);
    let single: [(&str, Body); 9] = [
        ("guest::every_length_is_guestseals", guest_every_length),
        ("guest::a_head_is_exact_and_stamped", guest_head),
        ("guest::a_queue_without_a_socket_drops", guest_other_queue),
        ("uplink::every_prefix_has_a_verdict", every_prefix),
        ("uplink::macs_change_while_it_runs", macs_change),
        ("uplink::settings_change_while_it_runs", settings_change),
        ("uplink::counters_add_up", counters_add_up),
        ("uplink::handshakes_pass_up_to_a_rate", handshakes_up_to_a_rate),
        (
            "kernel::refuses_less_than_an_ethernet_header",
            too_short_for_the_kernel,
        ),
    ];
    cases.extend(single.map(|(name, body)| -> Case { (name.to_owned(), Box::new(body)) }));
    namespace::run(cases);
}

fn tunnels(case: &mut impl FnMut(&str, UplinkConfig, Vec<u8>, Owner)) {
    for (version, host, other) in [("ipv4", HOST[0], OTHER[0]), ("ipv6", HOST[1], OTHER[1])] {
        let name = |what: &str| format!("{version}_{what}");
        case(
            &name("esp_to_host"),
            overlay(),
            to_host(ip(host, ESP, &esp())),
            Guestseal,
        );
        case(
            &name("esp_to_host_beside_flat"),
            flat(),
            to_host(ip(host, ESP, &esp())),
            Guestseal,
        );
        case(
            &name("esp_to_another"),
            overlay(),
            to_host(ip(other, ESP, &esp())),
            Kernel,
        );
        case(
            &name("tcp_to_host"),
            overlay(),
            to_host(ip(host, TCP, &[0; 20])),
            Kernel,
        );
        case(
            &name("udp_dns_to_host"),
            overlay(),
            to_host(ip(host, UDP, &udp(53))),
            Kernel,
        );
        let (ethertype, packet) = ip(host, ESP, &esp());
        case(
            &name("esp_to_host_tagged"),
            overlay(),
            ethernet(HOST_MAC, VLAN, &tagged(5, ethertype, &packet)),
            Kernel,
        );
        let wrong = if ethertype == 0x0800 { 0x86dd } else { 0x0800 };
        case(
            &name("esp_under_the_wrong_ethertype"),
            overlay(),
            ethernet(HOST_MAC, wrong, &packet),
            Kernel,
        );
        for port in [4500, 4789, 6081] {
            let frame = |address| to_host(ip(address, UDP, &udp(port)));
            let only = UplinkConfig {
                udp_encapsulation: port == 4500,
                vxlan: port == 4789,
                geneve: port == 6081,
                ..quiet()
            };
            let without = UplinkConfig {
                udp_encapsulation: port != 4500,
                vxlan: port != 4789,
                geneve: port != 6081,
                ..quiet()
            };
            case(
                &name(&format!("udp_{port}_switched_on")),
                only,
                frame(host),
                Guestseal,
            );
            case(
                &name(&format!("udp_{port}_switched_off")),
                without,
                frame(host),
                Kernel,
            );
            case(
                &name(&format!("udp_{port}_to_another")),
                overlay(),
                frame(other),
                Kernel,
            );
        }
    }
    let v4 = HOST[0];
    for words in [1, 10] {
        let options = vec![1; words * 4];
        let udp_frame = to_host(ipv4(v4, UDP, &udp(4789), &options, 0));
        case(
            &format!("ipv4_options_{words}_words_udp_4789"),
            overlay(),
            udp_frame,
            Guestseal,
        );
        let esp_frame = to_host(ipv4(v4, ESP, &esp(), &options, 0));
        case(
            &format!("ipv4_options_{words}_words_esp"),
            overlay(),
            esp_frame,
            Guestseal,
        );
    }
    let mut short = to_host(ipv4(v4, ESP, &esp(), &[], 0));
    short[14] = 0x44;
    case("ipv4_header_length_below_20", overlay(), short, Kernel);
    case(
        "ipv4_esp_first_fragment",
        overlay(),
        to_host(ipv4(v4, ESP, &esp(), &[], 0x2000)),
        Guestseal,
    );
    case(
        "ipv4_esp_later_fragment",
        overlay(),
        to_host(ipv4(v4, ESP, &esp(), &[], 0x2003)),
        Guestseal,
    );
    case(
        "ipv4_udp_first_fragment",
        overlay(),
        to_host(ipv4(v4, UDP, &udp(4789), &[], 0x2000)),
        Guestseal,
    );
    // The bytes look like a UDP header with the port, but they are in the middle of a datagram.
    case(
        "ipv4_udp_later_fragment",
        overlay(),
        to_host(ipv4(v4, UDP, &udp(4789), &[], 3)),
        Kernel,
    );

    let v6 = HOST[1];
    let chain =
        |extensions: &[(u8, Vec<u8>)], protocol, body: &[u8]| to_host(ipv6(v6, extensions, protocol, body));
    let hop = || (0, extension(0));
    case(
        "ipv6_hop_by_hop_esp",
        overlay(),
        chain(&[hop()], ESP, &esp()),
        Guestseal,
    );
    let three = [hop(), (43, extension(2)), (60, extension(31))];
    case(
        "ipv6_three_extensions_udp_6081",
        overlay(),
        chain(&three, UDP, &udp(6081)),
        Guestseal,
    );
    let eight: Vec<_> = (0..8).map(|_| (60, extension(0))).collect();
    case(
        "ipv6_eight_extensions_esp",
        overlay(),
        chain(&eight, ESP, &esp()),
        Guestseal,
    );
    let nine: Vec<_> = (0..9).map(|_| (60, extension(0))).collect();
    case(
        "ipv6_nine_extensions_esp",
        overlay(),
        chain(&nine, ESP, &esp()),
        Kernel,
    );
    case(
        "ipv6_esp_first_fragment",
        overlay(),
        chain(&[(44, fragment(0, true))], ESP, &esp()),
        Guestseal,
    );
    case(
        "ipv6_esp_later_fragment",
        overlay(),
        chain(&[(44, fragment(9, false))], ESP, &esp()),
        Guestseal,
    );
    let udp_fragment = chain(&[(44, fragment(0, true))], UDP, &udp(4500));
    case("ipv6_udp_first_fragment", overlay(), udp_fragment, Guestseal);
    let later = chain(&[(44, fragment(9, true))], UDP, &udp(4500));
    case("ipv6_udp_later_fragment", overlay(), later, Kernel);
}

fn flat_networks(case: &mut impl FnMut(&str, UplinkConfig, Vec<u8>, Owner)) {
    let tcp = |destination: [u8; 6]| ethernet(destination, 0x0800, &ip(OTHER[0], TCP, &[0; 20]).1);
    case("guest_mac", flat(), tcp(GUEST_MAC), Guestseal);
    case(
        "guest_mac_without_flat_networks",
        overlay(),
        tcp(GUEST_MAC),
        Kernel,
    );
    case("another_mac", flat(), tcp(OTHER_MAC), Kernel);
    case("host_mac", flat(), tcp(HOST_MAC), Kernel);
    case(
        "guest_mac_unknown_ethertype",
        flat(),
        ethernet(GUEST_MAC, 0x88b5, &[1, 2, 3]),
        Guestseal,
    );
    case(
        "guest_mac_bare_header",
        flat(),
        ethernet(GUEST_MAC, 0x0800, &[]),
        Guestseal,
    );
    let inner = tagged(7, 0x0800, &ip(OTHER[0], TCP, &[0; 20]).1);
    case(
        "guest_mac_tagged",
        flat(),
        ethernet(GUEST_MAC, VLAN, &inner),
        Guestseal,
    );
    let double = tagged(8, VLAN, &inner);
    case(
        "guest_mac_tagged_twice",
        flat(),
        ethernet(GUEST_MAC, VLAN_OUTER, &double),
        Guestseal,
    );
    case(
        "broadcast_udp",
        flat(),
        ethernet(BROADCAST, 0x0800, &ip(OTHER[0], UDP, &udp(67)).1),
        Guestseal,
    );

    let ask = |target| arp(1, target);
    case(
        "arp_for_host",
        flat(),
        ethernet(BROADCAST, ARP, &ask(HOST[0])),
        Kernel,
    );
    case(
        "arp_for_host_tagged",
        flat(),
        ethernet(BROADCAST, VLAN, &tagged(7, ARP, &ask(HOST[0]))),
        Kernel,
    );
    case(
        "arp_for_another",
        flat(),
        ethernet(BROADCAST, ARP, &ask(OTHER[0])),
        Guestseal,
    );
    case(
        "arp_for_another_without_flat",
        overlay(),
        ethernet(BROADCAST, ARP, &ask(OTHER[0])),
        Kernel,
    );
    case(
        "arp_reply_broadcast_for_host",
        flat(),
        ethernet(BROADCAST, ARP, &arp(2, HOST[0])),
        Guestseal,
    );
    case(
        "arp_reply_unicast_to_host",
        flat(),
        ethernet(HOST_MAC, ARP, &arp(2, HOST[0])),
        Kernel,
    );
    let mut odd = ask(HOST[0]);
    odd[4] = 8;
    case(
        "arp_with_long_hardware_addresses",
        flat(),
        ethernet(BROADCAST, ARP, &odd),
        Guestseal,
    );
    case(
        "arp_cut_short",
        flat(),
        ethernet(BROADCAST, ARP, &ask(HOST[0])[..27]),
        Guestseal,
    );

    let nd = |kind, target| ip(HOST[1], ICMPV6, &neighbour(kind, target)).1;
    case(
        "solicitation_for_host",
        flat(),
        ethernet(MULTICAST, 0x86dd, &nd(135, HOST[1])),
        Kernel,
    );
    case(
        "solicitation_for_another",
        flat(),
        ethernet(MULTICAST, 0x86dd, &nd(135, OTHER[1])),
        Guestseal,
    );
    case(
        "advertisement_of_host",
        flat(),
        ethernet(MULTICAST, 0x86dd, &nd(136, HOST[1])),
        Guestseal,
    );
    let cut = nd(135, HOST[1]);
    let cut = ethernet(MULTICAST, 0x86dd, &cut[..cut.len() - 1]);
    case("solicitation_cut_short", flat(), cut, Guestseal);
    let behind = ipv6(HOST[1], &[(0, extension(0))], ICMPV6, &neighbour(135, HOST[1])).1;
    case(
        "solicitation_behind_hop_by_hop",
        flat(),
        ethernet(MULTICAST, 0x86dd, &behind),
        Kernel,
    );
    case(
        "multicast_without_flat",
        overlay(),
        ethernet(MULTICAST, 0x86dd, &nd(135, OTHER[1])),
        Kernel,
    );
}

fn uplink_case(config: &UplinkConfig, frame: &[u8], owner: Owner) -> Result<(), Failed> {
    let program = UplinkProgram::load(config)?;
    let without = program.trial(frame)?;
    let socket = LiveSocket::bind("lo");
    program.register_socket(0, &socket.fd)?;
    let with = program.trial(frame)?;
    match owner {
        Guestseal => {
            assert_eq!(
                (without.verdict, with.verdict),
                (Verdict::Drop, Verdict::Redirect)
            );
            assert_stamped(&with.metadata);
        }
        Kernel => {
            assert_eq!((without.verdict, with.verdict), (Verdict::Pass, Verdict::Pass));
            assert_eq!(with.metadata, []);
        }
    }
    assert_eq!(with.frame, frame, "the frame itself is not touched");
    Ok(())
}

fn guest_every_length() -> Result<(), Failed> {
    let program = GuestProgram::load()?;
    let bytes: Vec<u8> = (0..1514_u32).map(|at| at as u8).collect();
    for length in [14, 15, 33, 34, 60, 64, 1514] {
        assert_eq!(
            program.trial(&bytes[..length])?.verdict,
            Verdict::Drop,
            "{length} bytes, no socket"
        );
    }
    let socket = LiveSocket::bind("lo");
    program.register_socket(0, &socket.fd)?;
    for length in 14..bytes.len() {
        let outcome = program.trial(&bytes[..length])?;
        assert_eq!(outcome.verdict, Verdict::Redirect, "{length} bytes");
        assert_eq!(outcome.frame, bytes[..length]);
        assert_stamped(&outcome.metadata);
    }
    drop(socket);
    namespace::wait_for("a closed socket to leave the map", || {
        program.trial(&bytes[..64]).unwrap().verdict == Verdict::Drop
    });
    Ok(())
}

fn guest_head() -> Result<(), Failed> {
    let socket = LiveSocket::bind("lo");
    let bytes: Vec<u8> = (0..1514_u32).map(|at| at as u8).collect();
    for head in [8, 16, 66, 94, 200] {
        let program = GuestProgram::with_head(head)?;
        assert_eq!(program.trial(&bytes[..64])?.verdict, Verdict::Drop, "no socket");
        program.register_socket(0, &socket.fd)?;
        for length in [14, 15, 60, 1514] {
            let outcome = program.trial(&bytes[..length])?;
            assert_eq!(outcome.verdict, Verdict::Redirect, "head {head}, {length} bytes");
            let (front, frame) = outcome.frame.split_at(head.into());
            assert_eq!((frame, outcome.metadata), (&bytes[..length], vec![]));
            assert_stamped(&front[front.len() - 8..]);
        }
    }
    // No driver has so much room in front of a frame: what cannot be stamped is dropped.
    let program = GuestProgram::with_head(u8::MAX)?;
    program.register_socket(0, &socket.fd)?;
    assert_eq!(program.trial(&bytes[..64])?.verdict, Verdict::Drop);
    assert_eq!(program.counters()?.no_stamp, 1);
    Ok(())
}

/// So many at once as the kernel is given time for pass, then as many as time brings; nothing else is held to it.
fn handshakes_up_to_a_rate() -> Result<(), Failed> {
    const AT_ONCE: u64 = 1024;
    const A_SECOND: u64 = 5_000;
    let port = 51829;
    let config = UplinkConfig {
        handshakes: std::num::NonZeroU16::new(port),
        ..flat()
    };
    for (host, other) in HOST.into_iter().zip(OTHER) {
        let program = UplinkProgram::load(&config)?;
        let handshake = to_host(ip(host, UDP, &udp(port)));
        let begin = std::time::Instant::now();
        let (mut passed, mut dropped) = (0, 0);
        // A slow machine gives more allowance; it comes to an end all the same.
        while dropped < 100 {
            match program.trial(&handshake)?.verdict {
                Verdict::Pass => passed += 1,
                Verdict::Drop => dropped += 1,
                other => return Err(format!("{other:?}").into()),
            }
        }
        let most = AT_ONCE + begin.elapsed().as_micros() as u64 * A_SECOND / 1_000_000 + 1;
        assert!((AT_ONCE..=most).contains(&passed), "{passed} of at most {most}");
        assert_eq!(program.counters()?.handshakes, dropped);
        for frame in [
            to_host(ip(host, UDP, &udp(port + 1))),
            to_host(ip(host, TCP, &[0; 20])),
            to_host(ip(other, UDP, &udp(port))),
        ] {
            assert_eq!(program.trial(&frame)?.verdict, Verdict::Pass);
        }
        let later = std::time::Instant::now();
        while program.trial(&handshake)?.verdict != Verdict::Pass {
            assert!(later.elapsed().as_secs() < 10, "none passes any more");
        }
    }
    let program = UplinkProgram::load(&flat())?;
    let frame = to_host(ip(HOST[0], UDP, &udp(port)));
    for _ in 0..3 * AT_ONCE {
        assert_eq!(program.trial(&frame)?.verdict, Verdict::Pass, "no port is set");
    }
    Ok(())
}

fn guest_other_queue() -> Result<(), Failed> {
    let program = GuestProgram::load()?;
    let socket = LiveSocket::bind("lo");
    program.register_socket(1, &socket.fd)?;
    assert_eq!(program.trial(&[0; 64])?.verdict, Verdict::Drop);
    assert!(program.register_socket(256, &socket.fd).is_err(), "no such queue");
    assert!(program.register_socket(0, &0).is_err(), "not an AF_XDP socket");
    Ok(())
}

/// No length of any frame makes the program fail, and what shows its owner early keeps it.
fn every_prefix() -> Result<(), Failed> {
    let program = UplinkProgram::load(&flat())?;
    let chain = [(0, extension(1)), (44, fragment(0, true)), (60, extension(0))];
    let samples = [
        (
            ethernet(GUEST_MAC, 0x0800, &ip(OTHER[0], UDP, &udp(9)).1),
            Some(Verdict::Drop),
        ),
        (to_host(ipv4(HOST[0], UDP, &udp(4789), &[1; 8], 0)), None),
        (to_host(ipv6(HOST[1], &chain, ESP, &esp())), None),
        (
            ethernet(
                MULTICAST,
                VLAN,
                &tagged(1, 0x86dd, &ip(HOST[1], ICMPV6, &neighbour(135, HOST[1])).1),
            ),
            None,
        ),
        (ethernet(BROADCAST, ARP, &arp(1, HOST[0])), None),
    ];
    for (frame, always) in samples {
        for length in 14..=frame.len() {
            let verdict = program.trial(&frame[..length])?.verdict;
            match always {
                Some(expected) => assert_eq!(verdict, expected, "{length} bytes of {frame:02x?}"),
                None => assert!(
                    matches!(verdict, Verdict::Drop | Verdict::Pass),
                    "{length} bytes: {verdict:?}"
                ),
            }
        }
    }
    // Headers that end at the last byte count, one byte less does not.
    let edge = to_host(ipv4(HOST[0], UDP, &udp(4789)[..8], &[1; 8], 0));
    assert_eq!(program.trial(&edge)?.verdict, Verdict::Drop);
    assert_eq!(program.trial(&edge[..edge.len() - 1])?.verdict, Verdict::Pass);
    Ok(())
}

fn macs_change() -> Result<(), Failed> {
    let program = UplinkProgram::load(&flat())?;
    let verdict = |mac| {
        program
            .trial(&ethernet(mac, 0x0800, &[]))
            .map(|outcome| outcome.verdict)
    };
    assert_eq!(
        (verdict(GUEST_MAC)?, verdict(OTHER_MAC)?),
        (Verdict::Drop, Verdict::Pass)
    );
    program.set_guest_macs(&[OTHER_MAC])?;
    assert_eq!(
        (verdict(GUEST_MAC)?, verdict(OTHER_MAC)?),
        (Verdict::Pass, Verdict::Drop)
    );
    Ok(())
}

fn settings_change() -> Result<(), Failed> {
    let program = UplinkProgram::load(&overlay())?;
    let esp_to = |address| {
        program
            .trial(&to_host(ip(address, ESP, &esp())))
            .map(|outcome| outcome.verdict)
    };
    assert_eq!(
        (esp_to(HOST[0])?, esp_to(OTHER[0])?),
        (Verdict::Drop, Verdict::Pass)
    );
    program.configure(&UplinkConfig {
        host_addresses: vec![OTHER[0]],
        flat: true,
        ..quiet()
    })?;
    assert_eq!(
        (esp_to(HOST[0])?, esp_to(OTHER[0])?),
        (Verdict::Pass, Verdict::Drop)
    );
    assert_eq!(
        program.trial(&ethernet(BROADCAST, 0x0800, &[]))?.verdict,
        Verdict::Drop
    );
    Ok(())
}

fn counters_add_up() -> Result<(), Failed> {
    let program = UplinkProgram::load(&flat())?;
    let ours = ethernet(GUEST_MAC, 0x0800, &[]);
    program.trial(&ours)?;
    let socket = LiveSocket::bind("lo");
    program.register_socket(0, &socket.fd)?;
    program.trial(&ours)?;
    program.trial(&ours)?;
    for _ in 0..3 {
        program.trial(&ethernet(HOST_MAC, 0x0800, &[]))?;
    }
    let counted = program.counters()?;
    let found = (
        counted.no_socket,
        counted.redirected,
        counted.passed,
        counted.no_stamp,
    );
    assert_eq!(found, (1, 2, 3, 0));
    Ok(())
}

/// A driver never hands over less than an Ethernet header; nor does the kernel let a test do so.
fn too_short_for_the_kernel() -> Result<(), Failed> {
    let program = UplinkProgram::load(&flat())?;
    for length in 0..14 {
        let error = program.trial(&vec![0; length]).unwrap_err();
        assert!(error.to_string().contains("14 bytes up to a page"), "{error}");
    }
    Ok(())
}

/// The arrival is CLOCK_MONOTONIC of just now, in host byte order.
fn assert_stamped(metadata: &[u8]) {
    let arrival = u64::from_ne_bytes(metadata.try_into().expect("8 bytes of metadata"));
    let now = clock_gettime(ClockId::Monotonic);
    let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    assert!(
        (now - 60_000_000_000..=now).contains(&arrival),
        "stamp {arrival}, now {now}"
    );
}

fn quiet() -> UplinkConfig {
    UplinkConfig {
        host_addresses: HOST.to_vec(),
        ..UplinkConfig::default()
    }
}

/// Every tunnel, no flat network; the guest's MAC is known but must not matter.
fn overlay() -> UplinkConfig {
    UplinkConfig {
        guest_macs: vec![GUEST_MAC],
        udp_encapsulation: true,
        vxlan: true,
        geneve: true,
        ..quiet()
    }
}

fn flat() -> UplinkConfig {
    UplinkConfig {
        flat: true,
        ..overlay()
    }
}
