//! A frame that comes with a head is sealed where it is, if just so many bytes go in front; whatever the head's length, what leaves
//! is the same as without one, and no byte of the head leaves.

use guestseal::path::outcome::DropReason;
use guestseal_rules::model::Policy;

use crate::frames::*;
use crate::host::{Host, Options, overlay_with, policy};

/// What is in front of the guest's frame when it is sealed, by the way: Ethernet, IP, (UDP,) ESP, (UDP and VXLAN,) less what of
/// the frame is not sealed.
pub(crate) const TRANSPORT: u8 = 16;
pub(crate) const TUNNEL: u8 = 14 + 20 + 16 - 14;
const TUNNEL_IP6: u8 = 14 + 40 + 16 - 14;
pub(crate) const OVERLAY: u8 = 14 + 20 + 16 + 16;
pub(crate) const OVERLAY_UDP: u8 = OVERLAY + 8;
const OVERLAY_IP6: u8 = 14 + 40 + 16 + 16;
const OVERLAY_IP6_UDP: u8 = OVERLAY_IP6 + 8;

/// Every way to seal, and the head that it takes.
fn ways() -> Vec<(Policy, Options, u8)> {
    let flat = |tunnel, tunnel_over_ip6, esn, head| {
        let options = Options {
            tunnel,
            tunnel_over_ip6,
            esn,
            ..Options::default()
        };
        (policy(), options, head)
    };
    let overlay = |tunnel_over_ip6, in_udp, esn, head| {
        let options = Options {
            tunnel_over_ip6,
            in_udp,
            esn,
            ..Options::default()
        };
        (overlay_with("", ""), options, head)
    };
    vec![
        flat(false, false, true, TRANSPORT),
        flat(true, false, false, TUNNEL),
        flat(true, true, true, TUNNEL_IP6),
        overlay(false, false, true, OVERLAY),
        overlay(false, true, false, OVERLAY_UDP),
        overlay(true, false, false, OVERLAY_IP6),
        overlay(true, true, true, OVERLAY_IP6_UDP),
    ]
}

/// Sealed, authenticated, in plaintext, answered, delivered on the host, told to be too long, dropped.
fn frames() -> Vec<Vec<u8>> {
    let mut frames = vec![
        arp(BROADCAST, BLUE1, 1, [0; 4], BLUE2.v4),
        arp(BROADCAST, BLUE1, 1, [0; 4], BLUE3.v4),
        fragment(BLUE1, BLUE2, 1, 0x2000, &[8, 0, 0, 0, 0, 0, 0, 0]),
        frame(BROADCAST, BLUE1.mac, 0x88b5, &[7; 60]),
        frame(BLUE2.mac, BLUE1.mac, 0x0800, &[0x45, 0, 0]),
    ];
    for ip6 in [false, true] {
        for length in [0, 1, 2, 3, 15, 16, 64, 250, 1000, 1300, 1380, 1420, 1440, 1452] {
            let data: Vec<u8> = (0..length).map(|place| place as u8).collect();
            for port in [4001, 514, 53] {
                frames.push(between(BLUE1, BLUE2, ip6, UDP, &udp(4000, port, &data)));
            }
            frames.push(between(BLUE1, BLUE3, ip6, UDP, &udp(4000, 4001, &data)));
            frames.push(between(BLUE1, BLUE2, ip6, TCP, &tcp(4000, 25, ACK, &data)));
        }
        // The largest segment size is an option of the SYN, and changed in the frame.
        frames.push(between(BLUE1, BLUE2, ip6, TCP, &tcp(4000, 25, SYN, b"")));
    }
    frames
}

/// What leaves for each frame, by the uplink and by the ports.
fn carried(policy: &Policy, options: &Options, head: u8) -> Vec<[Vec<Vec<u8>>; 3]> {
    let mut host = Host::new(policy, 0, options);
    let device = host.guests.get_mut(BLUE1.id).expect("a guest of this host");
    device.set_head(head);
    let carry = |frame: &Vec<u8>| {
        host.guest_sends(BLUE1, frame);
        [host.on_wire(), host.at_guest(BLUE1), host.at_guest(BLUE3)]
    };
    let all = frames().iter().map(carry).collect();
    host.assert_accounted();
    all
}

#[test]
fn what_leaves_is_the_same_whatever_the_head() {
    let ways = ways();
    let mut heads: Vec<u8> = ways.iter().map(|(_, _, head)| *head).collect();
    heads.extend([8, 12, 40, 100, 160]);
    for (policy, options, exact) in &ways {
        let without = carried(policy, options, 0);
        for head in &heads {
            for (number, (with, without)) in carried(policy, options, *head).iter().zip(&without).enumerate()
            {
                assert_eq!(
                    with, without,
                    "frame {number}, head {head}, of {exact} that it takes"
                );
            }
        }
    }
}

#[test]
fn only_the_head_that_it_takes_saves_a_frame() {
    for (policy, options, exact) in ways() {
        for (head, in_place) in [(exact, true), (0, false), (exact - 1, false), (exact + 1, false)] {
            let mut host = Host::new(&policy, 0, &options);
            let device = host.guests.get_mut(BLUE1.id).expect("a guest of this host");
            device.set_head(head);
            let pool = &mut host.workers[0].pool;
            let mut kept: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
            host.guest_sends(BLUE1, &between(BLUE1, BLUE2, false, UDP, &udp(9, 9, b"sealed")));
            let (encrypted, none) = if in_place { (1, 0) } else { (0, 1) };
            assert_eq!(
                (host.encrypted(), host.dropped(DropReason::NoFrame)),
                (encrypted, none),
                "head {head}, of {exact} that it takes: {:?}",
                host.outcomes()
            );
            let pool = &mut host.workers[0].pool;
            kept.drain(..).for_each(|frame| pool.put(frame));
            host.on_wire();
            host.assert_accounted();
        }
    }
}

/// A frame's head goes with the packet: whoever gets the frame next finds it as a fresh one.
#[test]
fn frames_are_whole_again_after_any_way() {
    let (policy, options, exact) = ways().remove(3);
    let options = Options {
        frames: 64,
        ..options
    };
    for head in [exact, exact + 10] {
        let mut host = Host::new(&policy, 0, &options);
        for round in 0..40 {
            let device = host.guests.get_mut(BLUE1.id).expect("a guest of this host");
            device.set_head(if round % 3 == 1 { 0 } else { head });
            for frame in frames() {
                host.guest_sends(BLUE1, &frame);
                host.on_wire();
                host.at_guest(BLUE1);
                host.at_guest(BLUE3);
            }
        }
        host.assert_accounted();
        assert_eq!(host.dropped(DropReason::NoFrame), 0, "{:?}", host.outcomes());
        let pool = &mut host.workers[0].pool;
        let umem = std::sync::Arc::clone(pool.umem());
        while let Some(mut frame) = pool.take() {
            assert_eq!((frame.head(), umem.room_mut(&mut frame).len()), (0, umem.room()));
        }
    }
}
