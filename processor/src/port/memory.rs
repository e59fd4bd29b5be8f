//! A port without a kernel, for tests and benchmarks: the four rings of AF_XDP over plain memory, and a [`Device`] at
//! their other end that lets packets arrive, takes those that leave, and completes them when it is told to.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rtrb::{Consumer, Producer, RingBuffer};

use super::frame::{Frame, Kind};
use super::pieces::{Gatherer, scatter};
use super::pool::FramePool;
use super::umem::Umem;
use super::{Burst, Held, KernelDrops, Port};

/// The port's ends of the rings.
#[derive(Debug)]
pub struct MemoryPort {
    umem: Arc<Umem>,
    fill: Producer<Frame>,
    receive: Consumer<Frame>,
    transmit: Producer<Frame>,
    completion: Consumer<Frame>,
    gatherer: Gatherer,
    held: Held,
    fill_level: usize,
    transmit_room: usize,
}

/// The device's ends.
#[derive(Debug)]
pub struct Device {
    umem: Arc<Umem>,
    fill: Consumer<Frame>,
    receive: Producer<Frame>,
    transmit: Consumer<Frame>,
    completion: Producer<Frame>,
    /// Sent and not completed yet.
    sent: VecDeque<Frame>,
    head: u8,
}

/// What is in a frame's head when it arrives: never to be seen again.
pub const STALE: u8 = 0xa5;

impl MemoryPort {
    /// A port that keeps up to `fill_level` frames to receive into and has room to transmit `transmit_room`, and the
    /// device behind it.
    #[must_use]
    pub fn new(umem: Arc<Umem>, fill_level: usize, transmit_room: usize) -> (Self, Device) {
        let (fill, device_fill) = RingBuffer::new(fill_level);
        let (device_receive, receive) = RingBuffer::new(fill_level);
        let (transmit, device_transmit) = RingBuffer::new(transmit_room);
        let (device_completion, completion) = RingBuffer::new(transmit_room);
        let port = Self {
            umem: Arc::clone(&umem),
            fill,
            receive,
            transmit,
            completion,
            gatherer: Gatherer::default(),
            held: Held::default(),
            fill_level,
            transmit_room,
        };
        let device = Device {
            umem,
            fill: device_fill,
            receive: device_receive,
            transmit: device_transmit,
            completion: device_completion,
            sent: VecDeque::with_capacity(transmit_room),
            head: 0,
        };
        (port, device)
    }
}

impl Device {
    /// Puts a head of so many bytes in front of every packet from here on, as an XDP program does.
    pub fn set_head(&mut self, head: u8) {
        self.head = head;
    }

    /// Lets a packet arrive at `arrival` (ns of `CLOCK_MONOTONIC`), in pieces if it is longer than a frame. Returns false, and
    /// drops it, if the fill ring has too few, or if the packet is longer than a frame and the UMEM has no long ones.
    pub fn arrive(&mut self, packet: &[u8], arrival: u64) -> bool {
        let room = self.umem.room();
        let head = usize::from(self.head);
        let pieces = (head + packet.len()).div_ceil(room).max(1);
        if pieces > self.fill.slots() || pieces > 1 && self.umem.long_frames() == 0 {
            return false;
        }
        let mut left = packet;
        (0..pieces).all(|number| {
            let Ok(mut frame) = self.fill.pop() else {
                return false;
            };
            let head = if number == 0 { head } else { 0 };
            let (bytes, rest) = left.split_at(left.len().min(room - head));
            left = rest;
            self.umem.reset(&mut frame);
            let (front, data) = self.umem.room_mut(&mut frame).split_at_mut(head);
            front.fill(STALE);
            data[..bytes.len()].copy_from_slice(bytes);
            self.umem.set_length(&mut frame, head + bytes.len());
            self.umem.skip_head(&mut frame, head as u8);
            self.umem.set_stamp(&mut frame, arrival);
            if number + 1 < pieces {
                frame.kind = Kind::PIECE;
            }
            self.receive.push(frame).is_ok()
        })
    }

    /// The oldest packet that leaves, copied out from where the kernel would have its frames begin. They stay with the device
    /// until [`Device::complete`].
    pub fn leave(&mut self) -> Option<Vec<u8>> {
        let mut packet = Vec::new();
        loop {
            let mut frame = self.transmit.pop().ok()?;
            let more = frame.is_piece();
            frame.kind = Kind::LAST;
            packet.extend_from_slice(&self.umem.with_front(&frame, frame.head())?[..frame.len()]);
            self.sent.push_back(frame);
            if !more {
                return Some(packet);
            }
        }
    }

    /// Sends everything that leaves nowhere. Gives how many packets that were.
    pub fn discard(&mut self) -> usize {
        let before = self.sent.len();
        while let Ok(mut frame) = self.transmit.pop() {
            frame.kind = Kind::LAST;
            self.sent.push_back(frame);
        }
        self.sent.len() - before
    }

    /// Gives the frames of sent packets back to the port.
    pub fn complete(&mut self) {
        self.complete_all_but(0);
    }

    /// Gives the frames of sent packets back to the port, the oldest first, but for so many.
    pub fn complete_all_but(&mut self, kept: usize) {
        let count = self.sent.len().saturating_sub(kept);
        for frame in self.sent.drain(..count) {
            // As long as the transmit ring, which lets no more than that out.
            let _ = self.completion.push(frame);
        }
    }
}

impl MemoryPort {
    #[cold]
    fn transmit_in_pieces(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), Frame> {
        scatter(frame, self.transmit_room - self.held.transmit, pool, |piece| {
            let sent = self.transmit.push(piece);
            debug_assert!(sent.is_ok(), "the ring has a slot for each that is not completed");
            self.held.transmit += 1;
        })
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, burst: &mut Burst, pool: &mut FramePool) {
        let count = self.receive.slots().min(burst.remaining_capacity());
        if let Ok(chunk) = self.receive.read_chunk(count) {
            self.held.receive -= count;
            let from = burst.len();
            burst.extend(chunk);
            self.gatherer.gather(burst, from, pool);
        }
    }

    fn refill(&mut self, pool: &mut FramePool) {
        let wanted = self.fill_level - self.held.receive;
        let count = wanted.min(pool.available()).min(self.fill.slots());
        if let Ok(chunk) = self.fill.write_chunk_uninit(count) {
            self.held.receive += chunk.fill_from_iter(std::iter::from_fn(|| pool.take()));
        }
    }

    fn transmit(&mut self, mut frame: Frame, pool: &mut FramePool) -> Result<(), Frame> {
        if self.umem.is_long(&frame) {
            return self.transmit_in_pieces(frame, pool);
        }
        // Sent and not completed counts too, as on a device.
        if self.held.transmit == self.transmit_room {
            return Err(frame);
        }
        self.umem.close_head(&mut frame);
        match self.transmit.push(frame) {
            Ok(()) => {
                self.held.transmit += 1;
                Ok(())
            }
            Err(rtrb::PushError::Full(frame)) => Err(frame),
        }
    }

    fn transmit_all(&mut self, packets: &mut Burst) {
        let room = self.transmit_room - self.held.transmit;
        let umem = &self.umem;
        if let Ok(chunk) = self.transmit.write_chunk_uninit(room.min(packets.len())) {
            let count = chunk.len();
            let leaving = packets.drain(..count).map(|mut frame| {
                assert!(!frame.is_long(), "a long frame leaves in pieces");
                umem.close_head(&mut frame);
                frame
            });
            self.held.transmit += chunk.fill_from_iter(leaving);
        }
    }

    fn reclaim(&mut self, pool: &mut FramePool) {
        let count = self.completion.slots();
        if let Ok(chunk) = self.completion.read_chunk(count) {
            self.held.transmit -= count;
            chunk.into_iter().for_each(|frame| pool.put(frame));
        }
    }

    fn kick(&mut self) -> bool {
        false
    }

    fn wait_on(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn held(&self) -> Held {
        Held {
            receive: self.held.receive + self.gatherer.held(),
            ..self.held
        }
    }

    fn kernel_drops(&self) -> KernelDrops {
        self.gatherer.dropped()
    }

    /// What the device has not given back stays with it.
    fn close(mut self: Box<Self>, pool: &mut FramePool) {
        self.reclaim(pool);
        while let Ok(frame) = self.receive.pop() {
            pool.put(frame);
        }
        self.gatherer.give_up(pool);
    }
}
