//! Copies of plain packets for monitoring interfaces: what the wire no longer shows is seen there, by an intrusion detection system.
//!
//! Reads the packets whose rule says `mirror`, as they are between guest and seal: on the host of the sender as the guest sent
//! them, on that of the receiver as its guest gets them. Writes them into buffers that the mirror thread
//! ([`crate::control::mirrors`]) hands out, and hands them over by a bounded ring. A slow listener loses copies, which are counted; the packets
//! themselves go on. Packets of such rules take no remembered way. Allocates nothing.

use std::sync::Arc;
use std::thread::Thread;

use arrayvec::ArrayVec;
use rtrb::{Consumer, Producer, RingBuffer};

use crate::port::umem::Umem;
use crate::telemetry::counters::Counters;

use super::batch::{Batch, live};
use super::tables::Tables;

/// Bytes of the longest packet: what a long frame of the UMEM has room for.
const LONGEST: usize = 16384;

/// Copies of one worker that may wait for the mirror thread: 192 KiB of 1,500 bytes each, 2 MiB at most.
const WAITING: usize = 128;

/// A monitoring interface's name, padded with zeros.
pub type Interface = [u8; 16];

/// A copy on its way.
#[derive(Debug, Default)]
pub struct Image {
    /// Where it goes.
    pub interface: Interface,
    /// The packet.
    pub bytes: ArrayVec<u8, LONGEST>,
}

/// A worker's end.
#[derive(Debug)]
pub struct Mirror {
    empty: Consumer<Box<Image>>,
    full: Producer<Box<Image>>,
    counters: Arc<Counters>,
    thread: Option<Thread>,
}

/// The mirror thread's end.
#[derive(Debug)]
pub struct Mirrored {
    /// To be filled by the worker.
    pub empty: Producer<Box<Image>>,
    /// Filled by the worker.
    pub full: Consumer<Box<Image>>,
    /// The worker's counters.
    pub counters: Arc<Counters>,
}

/// The two ends for a worker with these counters.
#[must_use]
pub fn mirror(counters: Arc<Counters>) -> (Mirror, Mirrored) {
    let (mut empty, empty_end) = RingBuffer::new(WAITING);
    let (full, full_end) = RingBuffer::new(WAITING);
    while empty.push(Box::default()).is_ok() {}
    let worker = Mirror {
        empty: empty_end,
        full,
        counters: Arc::clone(&counters),
        thread: None,
    };
    let thread = Mirrored {
        empty,
        full: full_end,
        counters,
    };
    (worker, thread)
}

impl Mirror {
    /// Says who is to be woken when there are copies.
    pub fn wakes(&mut self, thread: Thread) {
        self.thread = Some(thread);
    }

    /// Copies the live packets whose rule wants it.
    pub fn copy(&mut self, batch: &mut Batch, tables: &Tables, umem: &Umem) {
        let mut some = false;
        for descriptor in live(batch) {
            let Some(interface) = descriptor.mirror.take().and_then(|number| tables.mirror(number)) else {
                continue;
            };
            let Ok(mut image) = self.empty.pop() else {
                self.counters.mirrors_lost.add(1);
                continue;
            };
            image.interface = *interface;
            image.bytes.clear();
            // No frame is longer.
            let copied = image.bytes.try_extend_from_slice(umem.bytes(&descriptor.frame));
            debug_assert!(copied.is_ok(), "a frame has at most {LONGEST} bytes");
            // As many as there are have room there.
            let _ = self.full.push(image);
            some = true;
        }
        if let (true, Some(thread)) = (some, &self.thread) {
            thread.unpark();
        }
    }
}
