//! Packets whose SA or guest port belongs to another worker go over to it, frame and all.

use std::time::{Duration, Instant};

use guestseal::path::outcome::DropReason::HandoffFull;
use guestseal::path::outcome::Outcome;
use guestseal::worker::handoff::Item;
use guestseal::worker::run::{Worker, monotonic};

use crate::frames::*;
use crate::host::{Host, Options, policy};

#[test]
fn traffic_that_is_forced_to_cross_arrives() {
    let policy = policy();
    for cross in [false, true] {
        let options = Options {
            workers: 2,
            cross,
            ..Options::default()
        };
        let (mut one, mut two) = (Host::new(&policy, 0, &options), Host::new(&policy, 1, &options));
        for round in 0..100u16 {
            for (from, to) in [(BLUE1, BLUE2), (RED1, RED2)] {
                for port in [9, 514] {
                    let frame = between(from, to, round % 2 == 0, UDP, &udp(round, port, b"crossing"));
                    one.guest_sends(from, &frame);
                    let wire = one.on_wire();
                    // Whichever queue the receiver's NIC chooses.
                    two.wire_brings(usize::from(round / 2 % 2), &wire[0]);
                    assert_eq!(two.at_guest(to), [frame], "{:?}", two.outcomes());
                }
            }
        }
        assert!(one.handed_over() > 0 && two.handed_over() > 0, "nothing crossed");
        one.assert_accounted();
        two.assert_accounted();
    }
}

/// Real threads: what is sent arrives, in order within the SA, and every frame is somewhere at the end.
#[test]
fn two_threads_lose_nothing() {
    let policy = policy();
    let options = Options {
        workers: 2,
        cross: true,
        frames: 2048,
        transmit_room: 512,
        ..Options::default()
    };
    let mut host = Host::new(&policy, 0, &options);
    let stop = std::sync::Arc::clone(&host.workers[0].stop);
    let threads: Vec<_> = std::mem::take(&mut host.workers)
        .into_iter()
        .map(|worker| std::thread::spawn(|| worker.run()))
        .collect();
    let wake = |threads: &[std::thread::JoinHandle<Worker>]| {
        threads.iter().for_each(|thread| thread.thread().unpark())
    };

    const PACKETS: usize = 5000;
    let frames = [
        (BLUE1, between(BLUE1, BLUE2, false, UDP, &udp(1, 9, b"blue"))),
        (RED1, between(RED1, RED2, false, UDP, &udp(1, 9, b"red"))),
    ];
    let (mut sent, mut wire) = (0, Vec::new());
    let limit = Instant::now() + Duration::from_secs(60);
    while wire.len() < PACKETS {
        assert!(
            Instant::now() < limit,
            "{sent} sent, {} left: {:?}",
            wire.len(),
            host.outcomes()
        );
        // Not more under way than every ring has room for.
        if sent < PACKETS && sent - wire.len() < 60 {
            let (guest, frame) = &frames[sent % 2];
            sent += usize::from(host.guests.get_mut(guest.id).unwrap().arrive(frame, monotonic()));
        }
        for device in &mut host.uplinks {
            wire.extend(std::iter::from_fn(|| device.leave()));
            device.complete();
        }
        wake(&threads);
    }
    for red in [false, true] {
        let of_one_sa = wire.iter().filter(|frame| (frame[27] == 2) == red);
        let sequences: Vec<u32> = of_one_sa
            .map(|frame| u32::from_be_bytes(frame[38..42].try_into().unwrap()))
            .collect();
        let expected: Vec<u32> = (1..=PACKETS as u32 / 2).collect();
        assert_eq!(sequences, expected, "in the order in which they were sealed");
    }
    stop.ask();
    host.workers = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    for worker in &mut host.workers {
        let left: Vec<Item> = worker.handoff.drain().collect();
        for item in left {
            match item {
                Item::Free(frame) => worker.pool.put(frame),
                Item::Packet(..) => panic!("a packet was left between the workers"),
            }
        }
    }
    for device in &mut host.uplinks {
        device.complete();
    }
    host.settle();
    host.assert_accounted();
    assert_eq!(host.encrypted() as usize, PACKETS);
    assert!(host.handed_over() > 0);
}

/// A worker that does not come round to its ring costs counted packets, not frames.
#[test]
fn a_full_hand_off_ring_drops() {
    let policy = policy();
    let options = Options {
        workers: 2,
        cross: true,
        frames: 8192,
        transmit_room: 2048,
        ..Options::default()
    };
    let mut host = Host::new(&policy, 0, &options);
    let owner = host
        .workers
        .iter()
        .position(|worker| worker.ports.guests.iter().any(|(local, _)| *local == 0))
        .unwrap();
    let frame = between(BLUE1, BLUE2, false, UDP, &udp(1, 9, b"blue"));
    let before = host.handed_over();
    for _ in 0..1000 {
        assert!(host.guests.get_mut(BLUE1.id).unwrap().arrive(&frame, 0));
        host.workers[owner].turn();
    }
    assert!(host.dropped(HandoffFull) > 0, "{:?}", host.outcomes());
    host.settle();
    let ended: u64 = host.outcomes().iter().map(|(_, count)| count).sum();
    assert_eq!(ended, 1000);
    assert_eq!(host.handed_over() - before, host.encrypted());
    assert_eq!(host.count(Outcome::Dropped(HandoffFull)) + host.encrypted(), 1000);
    host.on_wire();
    host.assert_accounted();
}
