//! Packets that a frame has no room for come and go in pieces, and are in between like any other.

use guestseal::path::outcome::{DropReason, Outcome, SentAs};
use guestseal::wire::packet::Packet;
use guestseal_rules::model::Policy;

use crate::frames::*;
use crate::host::{Host, Options, overlay_with, policy};

const MTU: usize = 9000;

fn options() -> Options {
    Options {
        frames: 1024,
        long_frames: 64,
        uplink_mtu: MTU,
        ..Options::default()
    }
}

fn hosts(policy: &Policy, options: &Options) -> (Host, Host) {
    (Host::new(policy, 0, options), Host::new(policy, 1, options))
}

/// A guest's frame whose IP packet has so many bytes.
fn of_length(to: Guest, ip6: bool, port: u16, length: usize) -> Vec<u8> {
    let header = if ip6 { 40 } else { 20 };
    let data: Vec<u8> = (0..length - header - 8)
        .map(|place| (place * 11 + length) as u8)
        .collect();
    between(BLUE1, to, ip6, UDP, &udp(4000, port, &data))
}

/// Around what a frame has room for (1792 bytes, of which 128 stay free), and what several have, up to what the uplink takes.
fn lengths() -> impl Iterator<Item = usize> {
    let near = |middle: usize| middle - 3..middle + 3;
    let whole = (1600..1800)
        .step_by(7)
        .chain(near(1664 - 14))
        .chain(near(1792 - 14));
    let several = near(2 * 1792 - 14).chain(near(4 * 1792 - 80)).chain([5000, 8000]);
    whole.chain(several).chain(8880..8888)
}

#[test]
fn any_length_in_any_form_arrives_as_it_was() {
    let flat = policy();
    let (vxlan, geneve) = (
        overlay_with("", ""),
        overlay_with("type: vxlan, vni: 7001", "type: geneve, vni: 7001"),
    );
    let on_overlay = [
        (&vxlan, 4001),
        (&vxlan, 514),
        (&vxlan, 53),
        (&geneve, 4001),
        (&geneve, 53),
    ];
    let on_flat = [(&flat, 9), (&flat, 514)];
    for (policy, port, tunnel) in on_overlay
        .into_iter()
        .chain(on_flat)
        .flat_map(|(policy, port)| [(policy, port, false), (policy, port, true)])
    {
        for (workers, cross) in [(1, false), (2, true)] {
            let options = Options {
                workers,
                cross,
                // Of overlays: over IPv6 and in UDP.
                tunnel,
                tunnel_over_ip6: tunnel,
                in_udp: tunnel,
                ..options()
            };
            let (mut one, mut two) = hosts(policy, &options);
            // With a head in front, of just as much as one of these ways takes.
            let head = if workers == 2 { 66 } else { 0 };
            one.guests.get_mut(BLUE1.id).unwrap().set_head(head);
            for (number, length) in lengths().enumerate() {
                let frame = of_length(BLUE2, number % 2 == 0, port, length);
                // A short one behind it finds nothing of it left.
                let short = of_length(BLUE2, false, port, 100);
                one.guest_sends_at_once(BLUE1, &[&frame, &short]);
                let wire = one.on_wire();
                assert_eq!(wire.len(), 2, "{length} bytes: {:?}", one.outcomes());
                assert!(wire[0].len() > frame.len() && wire[0].len() <= MTU + 14);
                assert!(Packet::parse(&wire[0]).is_ok());
                two.wire_brings_at_once(number % usize::from(workers), &wire);
                assert_eq!(
                    two.at_guest(BLUE2),
                    [frame, short],
                    "{length} bytes: {:?}",
                    two.outcomes()
                );
            }
            assert!(workers == 1 || one.handed_over() + two.handed_over() > 0);
            assert_eq!(one.count(Outcome::Sent(SentAs::Plaintext)) > 0, port == 53);
            one.assert_accounted();
            two.assert_accounted();
        }
    }
}

#[test]
fn long_packets_stay_on_their_host_or_go_to_all() {
    let mut one = Host::new(&policy(), 0, &options());
    let frame = of_length(BLUE3, false, 9, 7000);
    one.guest_sends(BLUE1, &frame);
    assert_eq!(one.at_guest(BLUE3), [frame]);
    let mut to_all = of_length(BLUE3, false, 53, 7000);
    to_all[..6].copy_from_slice(&BROADCAST);
    one.guest_sends(BLUE1, &to_all);
    let copies = one.at_guest(BLUE3);
    assert!(
        copies.is_empty() || copies == [to_all],
        "a copy is whole: {:?}",
        one.outcomes()
    );
    one.assert_accounted();
}

#[test]
fn the_sender_of_what_the_uplink_does_not_take_is_told() {
    let mut one = Host::new(&overlay_with("", ""), 0, &options());
    one.guest_sends(BLUE1, &of_length(BLUE2, false, 4001, 9000));
    assert_eq!(one.dropped(DropReason::TooLong), 1);
    let told = one.at_guest(BLUE1);
    let fits = usize::from(u16::from_be_bytes([told[0][40], told[0][41]]));
    assert_eq!(fits, 8916, "9000 less 84, as of 1500");
    one.guest_sends(BLUE1, &of_length(BLUE2, false, 4001, fits));
    assert_eq!(one.on_wire().len(), 1);
    one.guest_sends(BLUE1, &of_length(BLUE2, false, 4001, fits + 1));
    assert_eq!((one.on_wire().len(), one.told_too_long()), (0, 2));
    one.assert_accounted();
}

/// A frame to receive it into and one to seal it into: with one, what comes is counted, and the next short packet is met.
#[test]
fn without_long_frames_they_are_counted() {
    let few = Options {
        long_frames: 1,
        ..options()
    };
    let (mut one, _) = hosts(&overlay_with("", ""), &few);
    let long = of_length(BLUE2, false, 4001, 5000);
    one.guest_sends_at_once(BLUE1, &[&long, &long, &of_length(BLUE2, false, 4001, 100)]);
    assert_eq!(one.on_wire().len(), 1, "the short one: {:?}", one.outcomes());
    assert_eq!(
        one.dropped(DropReason::NoFrame),
        1,
        "the first has nothing to be sealed into"
    );
    let missed = one.workers[0].ports.kernel_drops();
    assert_eq!(
        (missed.fill_empty, missed.too_long),
        (1, 0),
        "the second had nothing to come into"
    );
    one.guest_sends(BLUE1, &vec![7; 16_200]);
    let missed = one.workers[0].ports.kernel_drops();
    assert_eq!((missed.fill_empty, missed.too_long), (1, 1));
    one.assert_accounted();
}

/// A peer's ESP that says more than it holds, in pieces.
#[test]
fn what_the_wire_makes_up_is_dropped() {
    let (mut one, mut two) = hosts(&overlay_with("", ""), &options());
    one.guest_sends(BLUE1, &of_length(BLUE2, false, 4001, 8000));
    let sealed = one.on_wire().remove(0);
    for cut in [1, 2, 1000, 4000, 6300] {
        two.wire_brings(0, &sealed[..sealed.len() - cut]);
    }
    for place in [50, 1700, 1800, 5000, sealed.len() - 1] {
        let mut forged = sealed.clone();
        forged[place] ^= 1;
        two.wire_brings(0, &forged);
    }
    assert!(two.at_guest(BLUE2).is_empty(), "{:?}", two.outcomes());
    two.wire_brings(0, &sealed);
    assert_eq!(two.at_guest(BLUE2).len(), 1);
    two.assert_accounted();
}
