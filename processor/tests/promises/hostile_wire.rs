//! Whatever the wire brings: one counted drop with its reason, no panic, nothing delivered.

use guestseal::path::outcome::DropReason::{self, *};
use guestseal::wire::checksum;
use proptest::prelude::*;

use crate::frames::*;
use crate::host::{Host, Options, policy};

/// Where ESP begins in a transport-mode packet over IPv4.
const ESP: usize = 34;

/// A host, a frame sealed for its guest, and a function that seals more.
fn sealed(options: &Options, count: usize) -> (Host, Vec<Vec<u8>>) {
    let policy = policy();
    let (mut one, two) = (Host::new(&policy, 0, options), Host::new(&policy, 1, options));
    let mut wire = Vec::new();
    for _ in 0..count {
        one.guest_sends(BLUE1, &between(BLUE1, BLUE2, false, UDP, &udp(1, 2, &[7; 40])));
        wire.extend(one.on_wire());
    }
    (two, wire)
}

#[track_caller]
fn drops(host: &mut Host, frame: &[u8], what: &str) -> DropReason {
    let before = host.outcomes();
    host.wire_brings(0, frame);
    let after = host.outcomes();
    let changed: Vec<_> = after.iter().filter(|now| !before.contains(now)).collect();
    let [(guestseal::path::outcome::Outcome::Dropped(reason), count)] = changed[..] else {
        panic!("{what}: one drop, not {changed:?}");
    };
    let counted = before
        .iter()
        .find(|(outcome, _)| outcome.index() == 4 + *reason as usize);
    assert_eq!(*count, counted.map_or(0, |(_, count)| *count) + 1, "{what}");
    assert!(
        host.at_guest(BLUE2).is_empty() && host.at_guest(RED2).is_empty(),
        "{what}: delivered"
    );
    *reason
}

#[test]
fn every_prefix_of_a_sealed_packet() {
    for tunnel in [false, true] {
        let (mut host, wire) = sealed(
            &Options {
                tunnel,
                ..Options::default()
            },
            1,
        );
        for length in 0..wire[0].len() {
            drops(&mut host, &wire[0][..length], &format!("{length} bytes"));
        }
        host.wire_brings(0, &wire[0]);
        assert_eq!(
            host.at_guest(BLUE2).len(),
            1,
            "the whole one still comes: no prefix moved the window"
        );
        host.assert_accounted();
    }
}

/// Nothing authenticates the MACs: in a frame for a group it would be copied to other guests.
#[test]
fn a_sealed_packet_in_a_frame_for_a_group() {
    for tunnel in [false, true] {
        let (mut host, wire) = sealed(
            &Options {
                tunnel,
                ..Options::default()
            },
            3,
        );
        // Of a flow that is not known, and of one that is.
        for frame in &wire[1..] {
            let mut for_group = frame.clone();
            for_group[0] |= 1;
            assert_eq!(drops(&mut host, &for_group, "for a group"), BadEsp);
            host.wire_brings(0, frame);
            assert_eq!(host.at_guest(BLUE2).len(), 1);
        }
        host.assert_accounted();
    }
}

#[test]
fn every_flipped_bit_behind_ethernet() {
    for tunnel in [false, true] {
        let (mut host, wire) = sealed(
            &Options {
                tunnel,
                ..Options::default()
            },
            1,
        );
        for bit in 14 * 8..wire[0].len() * 8 {
            let mut frame = wire[0].clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            drops(&mut host, &frame, &format!("bit {} of byte {}", bit % 8, bit / 8));
        }
        host.wire_brings(0, &wire[0]);
        assert_eq!(
            host.at_guest(BLUE2).len(),
            1,
            "the right one still comes: no forgery moved the window"
        );
        host.assert_accounted();
    }
}

#[test]
fn an_authenticated_packet_cannot_be_changed_either() {
    let (policy, options) = (policy(), Options::default());
    let (mut one, mut two) = (Host::new(&policy, 0, &options), Host::new(&policy, 1, &options));
    one.guest_sends(
        BLUE1,
        &between(BLUE1, BLUE2, false, UDP, &udp(1, 514, b"readable")),
    );
    let wire = one.on_wire();
    assert!(wire[0].windows(8).any(|window| window == b"readable"));
    for bit in 14 * 8..wire[0].len() * 8 {
        let mut frame = wire[0].clone();
        frame[bit / 8] ^= 1 << (bit % 8);
        drops(&mut two, &frame, &format!("bit {bit}"));
    }
    two.wire_brings(0, &wire[0]);
    assert_eq!(two.at_guest(BLUE2).len(), 1);
}

#[test]
fn replays_and_what_is_left_of_the_window() {
    for (tunnel, esn) in [(false, true), (true, true), (false, false)] {
        let (mut host, wire) = sealed(
            &Options {
                tunnel,
                esn,
                ..Options::default()
            },
            1100,
        );
        for frame in &wire[1..] {
            host.wire_brings(0, frame);
            assert_eq!(host.at_guest(BLUE2).len(), 1);
        }
        assert_eq!(drops(&mut host, &wire[1099], "the newest again"), ReplaySeen);
        assert_eq!(
            drops(&mut host, &wire[500], "one of the window again"),
            ReplaySeen
        );
        // RFC 4303 3.4.3: the window is looked at before the tag, so that a replay costs no cipher.
        let mut forged = wire[500].clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(
            drops(&mut host, &forged, "one of the window with another tag"),
            ReplaySeen
        );
        // RFC 4303 A2.2: with ESN, what is left of the window reads as a number of the next 2^32.
        let expected = if esn { BadTag } else { ReplayTooOld };
        assert_eq!(
            drops(&mut host, &wire[0], "one that never came, too late"),
            expected
        );
        let replayed: u64 = host.tallies().iter().map(|tally| tally.replayed).sum();
        assert_eq!(replayed, if esn { 3 } else { 4 });
        host.assert_accounted();
    }
}

/// RFC 4303 2.4: what is sealed ends on 4 bytes.
#[test]
fn esp_that_does_not_end_on_four_bytes() {
    let (mut host, wire) = sealed(&Options::default(), 2);
    for frame in &wire {
        for cut in 1..4 {
            let mut odd = frame[..frame.len() - cut].to_vec();
            let total = (odd.len() - 14) as u16;
            odd[16..18].copy_from_slice(&total.to_be_bytes());
            odd[24..26].fill(0);
            let sum = checksum::checksum(&odd[14..34]);
            odd[24..26].copy_from_slice(&sum.to_be_bytes());
            assert_eq!(drops(&mut host, &odd, "an odd end"), BadEsp);
        }
        host.wire_brings(0, frame);
        assert_eq!(host.at_guest(BLUE2).len(), 1);
    }
    host.assert_accounted();
}

#[test]
fn two_copies_in_one_batch_are_delivered_once() {
    let (mut host, wire) = sealed(&Options::default(), 1);
    for _ in 0..5 {
        assert!(host.uplinks[0].arrive(&wire[0], 0));
    }
    host.settle();
    assert_eq!((host.at_guest(BLUE2).len(), host.dropped(ReplaySeen)), (1, 4));
    let replayed: u64 = host.tallies().iter().map(|tally| tally.replayed).sum();
    assert_eq!(replayed, 4);
    host.assert_accounted();
}

/// The window across the 32-bit boundary, on the wire.
#[test]
fn extended_numbers_cross_the_boundary() {
    let policy = policy();
    // Where a sender with a durable mark may stand: the receiver has followed it there.
    let (near, past) = ((1 << 32) - 3, (1u64 << 32) + 3);
    let options = Options {
        start: near,
        ..Options::default()
    };
    let (mut one, mut two) = (Host::new(&policy, 0, &options), Host::new(&policy, 1, &options));
    for sa in two.workers[0].sas.inbound.iter_mut() {
        let mut reached = 0;
        while reached + (1 << 31) < near {
            reached += 1 << 31;
            sa.window.accept(reached).unwrap();
        }
    }
    let mut wire = Vec::new();
    for _ in near..past {
        one.guest_sends(BLUE1, &between(BLUE1, BLUE2, false, UDP, &udp(1, 2, &[7; 40])));
        wire.extend(one.on_wire());
    }
    // Shuffled: past the boundary first, then from before it.
    for place in [4, 0, 5, 2, 1, 3] {
        two.wire_brings(0, &wire[place]);
        assert_eq!(
            two.at_guest(BLUE2).len(),
            1,
            "packet {place}: {:?}",
            two.outcomes()
        );
    }
    for frame in &wire {
        assert_eq!(drops(&mut two, frame, "again"), ReplaySeen);
    }
}

#[test]
fn wrong_spi_wrong_peer_wrong_shape() {
    let (mut host, wire) = sealed(&Options::default(), 1);
    let good = &wire[0];
    let mut spi = good.clone();
    spi[ESP + 2] ^= 0x40;
    assert_eq!(drops(&mut host, &spi, "SPI"), UnknownSpi);
    let long = between(
        BLUE1,
        BLUE2,
        false,
        50,
        &[&good[ESP..ESP + 16], &[0; 1700]].concat(),
    );
    assert_eq!(
        drops(&mut host, &long, "longer than a packet of the wire"),
        BadTag
    );
    let part = fragment(BLUE1, BLUE2, 50, 0x2000, &good[ESP..]);
    assert_eq!(drops(&mut host, &part, "a fragment of ESP"), BadEsp);
    let short = between(BLUE1, BLUE2, false, 50, &good[ESP..ESP + 16]);
    assert_eq!(drops(&mut host, &short, "no room for a tag"), BadEsp);
    // A header for all hops, padded, which no tag covers: IPv6 only.
    let hop = [&[50, 0, 1, 4, 0, 0, 0, 0], &good[ESP..]].concat();
    let hop = between(BLUE1, BLUE2, true, 0, &hop);
    assert_eq!(
        drops(&mut host, &hop, "an extension header in front of ESP"),
        BadExtensionHeader
    );

    let (mut host, wire) = sealed(
        &Options {
            tunnel: true,
            ..Options::default()
        },
        1,
    );
    let (_, elsewhere) = ip(
        [203, 0, 113, 9].into(),
        [192, 0, 2, 2].into(),
        50,
        &wire[0][ESP..],
    );
    let elsewhere = [&wire[0][..14], &elsewhere].concat();
    assert_eq!(
        drops(&mut host, &elsewhere, "from an address that is not the peer's"),
        WrongHost
    );
    host.assert_accounted();
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let ethertype = prop::sample::select(vec![0x0800u16, 0x86dd, 0x0806, 0x8100, 0x88a8, 0x88b5]);
    let mac = prop::sample::select(vec![
        BLUE1.mac,
        BLUE2.mac,
        RED2.mac,
        BROADCAST,
        [2, 9, 9, 9, 9, 9],
    ]);
    let first = prop::sample::select(vec![0x45u8, 0x4f, 0x60, 0x00, 0xff]);
    (
        mac.clone(),
        mac,
        ethertype,
        first,
        prop::collection::vec(any::<u8>(), 0..200),
    )
        .prop_map(|(to, from, ethertype, first, mut body)| {
            if let Some(byte) = body.first_mut() {
                *byte = first;
            }
            frame(to, from, ethertype, &body)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Frames of any bytes, by the wire and by a guest, and bytes over any part of a sealed packet.
    #[test]
    fn any_bytes_end_once(frames in prop::collection::vec(any_frame(), 1..40), at in 0usize..120, bytes in prop::collection::vec(any::<u8>(), 1..60)) {
        let (mut host, wire) = sealed(&Options::default(), 1);
        let mut damaged = wire[0].clone();
        for (place, byte) in damaged.iter_mut().skip(at).zip(&bytes) {
            *place = *byte;
        }
        for frame in frames.iter().chain([&damaged]) {
            host.wire_brings(0, frame);
            host.guest_sends(BLUE2, frame);
            let got = host.at_guest(BLUE2).into_iter().chain(host.at_guest(RED2));
            // What a guest sends to itself comes back to it.
            for got in got.filter(|got| got[..6] != got[6..12]) {
                // Only what a rule lets through in plaintext, or the packet itself if no byte of it changed behind Ethernet.
                prop_assert!(got[12..14] == [8, 6] || damaged[14..] == wire[0][14..], "{:02x?}", got);
            }
            host.on_wire();
        }
        host.assert_accounted();
    }
}
