//! A worker's turn allocates nothing and frees nothing, whatever comes: sealed, opened, delivered to a neighbour, copied for a
//! group, refused, or forged. A thread allocates once, when it first reads tables that may be replaced under its feet.

#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use arc_swap::ArcSwap;
use guestseal::worker::run::monotonic;

use crate::frames::*;
use crate::host::{Host, Options, overlay_with, policy};

/// The system's, and how often this thread asked it.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // What a thread that ends asks for is no packet's.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

// SAFETY: every call goes on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Packets that a worker carries in a turn, and what it asked of the allocator meanwhile.
fn turn(host: &mut Host) -> (usize, u64) {
    let before = ASKED.with(Cell::get);
    let carried = host.workers[0].turn();
    (carried, ASKED.with(Cell::get) - before)
}

fn arrive(host: &mut Host, guest: Guest, frames: &[Vec<u8>]) {
    let device = host.guests.get_mut(guest.id).unwrap();
    for frame in frames {
        assert!(device.arrive(frame, monotonic()));
    }
}

#[test]
fn a_turn_allocates_nothing() {
    // The registration of this thread.
    drop(ArcSwap::from_pointee(()).load());
    for (policy, tunnel, in_udp) in [
        (policy(), false, false),
        (policy(), true, false),
        (overlay_with("", ""), false, true),
    ] {
        let options = Options {
            tunnel,
            in_udp,
            frames: 1024,
            long_frames: 64,
            uplink_mtu: 9000,
            ..Options::default()
        };
        let (mut one, mut two) = (Host::new(&policy, 0, &options), Host::new(&policy, 1, &options));
        for round in 0..3_u16 {
            let datagram = |to, port| between(BLUE1, to, false, UDP, &udp(1000 + round, port, b"nothing"));
            let mut spoofed = datagram(BLUE2, 9);
            spoofed[29] ^= 0x40;
            let frames = [
                datagram(BLUE2, 9),
                between(BLUE1, BLUE2, true, UDP, &udp(round, 9, b"IPv6")),
                datagram(BLUE2, 514),
                between(BLUE1, BLUE2, false, UDP, &udp(round, 9, &[7; 5000])),
                datagram(BLUE3, 9),
                spoofed,
                datagram(BLUE2, 9)[..30].to_vec(),
                frame(BROADCAST, BLUE1.mac, 0x0806, &[0; 28]),
            ];
            arrive(&mut one, BLUE1, &frames);
            let (carried, asked) = turn(&mut one);
            assert_eq!((carried, asked), (frames.len(), 0), "outbound, round {round}");

            let mut wire = one.on_wire();
            assert!(wire.len() >= 2, "something was sent: {:?}", one.outcomes());
            // The same again, and forged.
            wire.extend_from_within(..);
            let mut forged = wire[0].clone();
            *forged.last_mut().unwrap() ^= 1;
            wire.push(forged);
            for packet in &wire {
                assert!(two.uplinks[0].arrive(packet, monotonic()));
            }
            let (carried, asked) = turn(&mut two);
            assert_eq!((carried, asked), (wire.len(), 0), "inbound, round {round}");
            assert!(!two.at_guest(BLUE2).is_empty(), "{:?}", two.outcomes());
        }
    }
}
