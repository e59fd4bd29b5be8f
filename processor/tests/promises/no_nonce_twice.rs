//! No (key, nonce) pair is used twice: not across workers, restarts or the end of the sequence space.
//! The harness gives every SA a key of its own, so that SPI and IV stand for key and nonce.

use std::collections::HashSet;

use guestseal::path::outcome::DropReason::{SequenceExhausted, SequenceNotReserved};

use crate::frames::*;
use crate::host::{Host, Options, policy};

fn pairs(wire: &[Vec<u8>]) -> Vec<(u32, u64)> {
    wire.iter()
        .map(|frame| {
            let esp = &frame[34..];
            let word = |at: usize| u32::from_be_bytes(esp[at..at + 4].try_into().unwrap());
            let iv = u64::from_be_bytes(esp[8..16].try_into().unwrap());
            assert_eq!(iv as u32, word(4), "the IV is the sequence number");
            (word(0), iv)
        })
        .collect()
}

fn kinds(round: u16) -> [Vec<u8>; 5] {
    let port = 1000 + round;
    [
        between(BLUE1, BLUE2, false, UDP, &udp(port, 9, b"any")),
        between(BLUE1, BLUE2, false, TCP, &tcp(port, 8080, ACK, b"web")),
        between(BLUE1, BLUE2, false, TCP, &tcp(port, 25, ACK, b"mail")),
        between(BLUE1, BLUE2, false, UDP, &udp(port, 514, b"log")),
        // Fails after the SA was chosen: no number may be used for it, or used twice.
        between(BLUE1, BLUE2, false, UDP, &udp(port, 9, &[0; 1480])),
    ]
}

#[test]
fn across_workers_and_restarts() {
    let policy = policy();
    let mut seen = HashSet::new();
    let mut start = 1;
    for restart in 0..4 {
        let options = Options {
            workers: 2,
            cross: restart % 2 == 1,
            start,
            reserved: start + 4096,
            ..Options::default()
        };
        let mut host = Host::new(&policy, 0, &options);
        for round in 0..100 {
            for frame in kinds(round) {
                host.guest_sends(BLUE1, &frame);
            }
            for frame in pairs(&host.on_wire()) {
                assert!(seen.insert(frame), "{frame:?} twice");
            }
        }
        assert_eq!(host.encrypted(), 300);
        host.assert_accounted();
        // A killed process goes on at its mark, whatever it had used below it.
        start = host.reservations[&0x1001].reserved();
    }
    assert_eq!(seen.len(), 1600);
}

#[test]
fn an_sa_that_ran_out_stops() {
    let policy = policy();
    for (esn, last) in [(false, u64::from(u32::MAX)), (true, u64::MAX)] {
        let mut host = Host::new(
            &policy,
            0,
            &Options {
                esn,
                start: last - 3,
                ..Options::default()
            },
        );
        for round in 0..10 {
            host.guest_sends(BLUE1, &kinds(round)[0]);
        }
        let pairs = pairs(&host.on_wire());
        assert_eq!(
            pairs.iter().map(|pair| pair.1).collect::<Vec<_>>(),
            [last - 3, last - 2, last - 1]
        );
        assert_eq!(host.dropped(SequenceExhausted), 7);
        host.assert_accounted();
    }
}

#[test]
fn nothing_is_sealed_past_the_durable_mark() {
    let policy = policy();
    let mut host = Host::new(
        &policy,
        0,
        &Options {
            start: 100,
            reserved: 103,
            ..Options::default()
        },
    );
    for round in 0..5 {
        host.guest_sends(BLUE1, &kinds(round)[0]);
    }
    let first = pairs(&host.on_wire());
    assert_eq!((first.len(), host.dropped(SequenceNotReserved)), (3, 2));
    host.reservations[&first[0].0].raise(200);
    host.guest_sends(BLUE1, &kinds(9)[0]);
    assert_eq!(pairs(&host.on_wire()), [(first[0].0, 103)]);
    host.assert_accounted();
}
