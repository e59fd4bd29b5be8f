//! Every frame is in exactly one place, and every packet ends once, whatever drops there are; no ring stops a worker.

use guestseal::path::outcome::DropReason::{NoFrame, TxRingFull};
use guestseal::path::outcome::Outcome;

use crate::frames::*;
use crate::host::{Host, Options, policy};

fn datagram(number: u16) -> Vec<u8> {
    between(BLUE1, BLUE2, false, UDP, &udp(1000 + number, 9, &[1; 100]))
}

#[test]
fn a_transmit_ring_that_does_not_empty_costs_counted_packets_and_resumes() {
    let policy = policy();
    let mut host = Host::new(
        &policy,
        0,
        &Options {
            transmit_room: 16,
            ..Options::default()
        },
    );
    // Nothing is taken from the device: link down, driver in reset, peer gone.
    for number in 0..100 {
        host.guest_sends(BLUE1, &datagram(number));
        host.assert_accounted();
    }
    assert_eq!((host.encrypted(), host.dropped(TxRingFull)), (16, 84));
    assert_eq!(host.on_wire().len(), 16);
    host.guest_sends(BLUE1, &datagram(100));
    assert_eq!(host.on_wire().len(), 1, "it goes on as soon as there is room");
    host.assert_accounted();
}

/// The same for packets of a flow that is known, which are submitted by the burst.
#[test]
fn what_a_ring_has_no_room_for_is_the_end_of_a_burst() {
    let policy = policy();
    let options = Options {
        transmit_room: 16,
        ..Options::default()
    };
    let mut roomy = Host::new(&policy, 0, &Options::default());
    let [mut one, mut two] = [0, 1].map(|number| Host::new(&policy, number, &options));
    for _ in 0..2 {
        roomy.guest_sends_at_once(BLUE1, &vec![datagram(1); 24]);
    }
    let sealed = roomy.on_wire();
    assert_eq!((sealed.len(), roomy.known()), (48, 24));

    one.guest_sends(BLUE1, &datagram(1));
    one.guest_sends_at_once(BLUE1, &vec![datagram(1); 24]);
    assert_eq!(
        (one.known(), one.encrypted(), one.dropped(TxRingFull)),
        (24, 16, 9)
    );
    assert_eq!(one.on_wire(), sealed[..16]);
    one.assert_accounted();

    two.wire_brings(0, &sealed[0]);
    two.wire_brings_at_once(0, &sealed[1..25]);
    assert_eq!(
        (
            two.known(),
            two.count(Outcome::Delivered),
            two.dropped(TxRingFull)
        ),
        (24, 16, 9)
    );
    assert_eq!(two.at_guest(BLUE2), vec![datagram(1); 16]);
    two.assert_accounted();
}

#[test]
fn completions_that_never_come_cost_frames_never_the_worker() {
    let policy = policy();
    let options = Options {
        frames: 64,
        transmit_room: 64,
        ..Options::default()
    };
    let mut host = Host::new(&policy, 0, &options);
    host.completes = false;
    let mut sent = 0;
    let mut starved = 0;
    for number in 0..200 {
        // When the pool is empty the fill ring runs dry, and the device drops what comes.
        let taken = host
            .guests
            .get_mut(BLUE1.id)
            .unwrap()
            .arrive(&datagram(number), 0);
        starved += u64::from(!taken);
        host.settle();
        sent += host.on_wire().len() as u64;
        host.assert_accounted();
    }
    assert_eq!(host.encrypted(), sent);
    assert_eq!(
        sent + host.dropped(NoFrame) + host.dropped(TxRingFull) + starved,
        200,
        "{:?}",
        host.outcomes()
    );
    assert!(host.dropped(NoFrame) > 0, "{:?}", host.outcomes());
    // The completions come after all: everything resumes, no frame was lost.
    host.completes = true;
    host.on_wire();
    host.guest_sends(BLUE1, &datagram(1));
    assert_eq!(host.on_wire().len(), 1);
    host.assert_accounted();
}

#[test]
fn a_guest_that_takes_nothing_does_not_hold_up_the_others() {
    let policy = policy();
    let options = Options {
        transmit_room: 8,
        ..Options::default()
    };
    let (mut one, mut two) = (Host::new(&policy, 0, &options), Host::new(&policy, 1, &options));
    for number in 0..30 {
        one.guest_sends(BLUE1, &datagram(number));
        one.guest_sends(
            RED1,
            &between(RED1, RED2, false, UDP, &udp(1000 + number, 9, b"red")),
        );
        for frame in one.on_wire() {
            two.wire_brings(0, &frame);
        }
        assert_eq!(two.at_guest(RED2).len(), 1);
        two.assert_accounted();
    }
    assert_eq!(two.dropped(TxRingFull), 22);
    assert_eq!(two.at_guest(BLUE2).len(), 8);
}

/// Policy drops, hostile frames, full rings, group copies and hand-overs, all at once.
#[test]
fn every_kind_of_drop_together() {
    let policy = policy();
    let options = Options {
        workers: 2,
        cross: true,
        frames: 256,
        transmit_room: 24,
        ..Options::default()
    };
    let (mut one, mut two) = (Host::new(&policy, 0, &options), Host::new(&policy, 1, &options));
    for round in 0..60u16 {
        let good = datagram(round);
        let frames = [
            good.clone(),
            good[..20].to_vec(),
            between(BLUE1, BLUE2, false, TCP, &tcp(1, 23, SYN, b"")),
            between(BLUE1, BLUE3, false, UDP, &udp(1, 1000 + round, b"local")),
            between(BLUE1, BLUE2, false, UDP, &udp(1, 2, &[0; 1500])),
            between(RED1, BLUE2, false, UDP, &udp(1, 2, b"spoofed")),
            arp(BROADCAST, BLUE1, 1, BLUE1.v4, BLUE2.v4),
            fragment(BLUE1, BLUE2, UDP, 100, b"later"),
            frame(
                BLUE2.mac,
                BLUE1.mac,
                0x0800,
                &ip(BLUE3.address(false), BLUE2.address(false), UDP, &udp(1, 2, b"")).1,
            ),
            fragment(BLUE1, BLUE2, UDP, 0x2000, &udp(1, 2, &[0; 64])),
        ];
        for frame in &frames {
            // Many at a time, so that batches are mixed; what the ring cannot take is the device's drop.
            one.guests.get_mut(BLUE1.id).unwrap().arrive(frame, 0);
        }
        one.settle();
        one.assert_accounted();
        if round % 3 == 0 {
            let wire = one.on_wire();
            for frame in wire.iter().chain(&wire) {
                two.uplinks[usize::from(round % 2)].arrive(frame, 0);
            }
            two.settle();
            two.assert_accounted();
        }
        if round % 7 == 0 {
            one.at_guest(BLUE3);
            two.at_guest(BLUE2);
        }
    }
    let reasons = one.outcomes().len() + two.outcomes().len();
    assert!(reasons >= 12, "{:?} {:?}", one.outcomes(), two.outcomes());
    assert!(one.handed_over() > 0 && two.handed_over() > 0);
}
