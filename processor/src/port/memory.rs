//! A port without a kernel: tests and benchmarks put frames in at one end and take them out at the other.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::frame::Frame;
use super::pool::FramePool;
use super::umem::Umem;
use super::{Burst, Held, KernelDrops, Port};

/// A port over plain memory.
#[derive(Debug)]
pub struct MemoryPort {
    umem: Arc<Umem>,
    incoming: VecDeque<Frame>,
    outgoing: VecDeque<Frame>,
    transmit_room: usize,
}

impl MemoryPort {
    /// A port whose transmit ring has room for `transmit_room` frames.
    #[must_use]
    pub fn new(umem: Arc<Umem>, transmit_room: usize) -> Self {
        Self {
            incoming: VecDeque::with_capacity(umem.frames()),
            outgoing: VecDeque::with_capacity(transmit_room),
            umem,
            transmit_room,
        }
    }

    /// Lets a packet arrive. Returns false if `pool` has no free frame or the packet is longer than one.
    pub fn inject(&mut self, pool: &mut FramePool, packet: &[u8], arrival: u64) -> bool {
        if packet.len() > self.umem.room() {
            return false;
        }
        let Some(mut frame) = pool.take() else {
            return false;
        };
        self.umem.room_mut(&mut frame)[..packet.len()].copy_from_slice(packet);
        self.umem.set_length(&mut frame, packet.len());
        self.umem.set_stamp(&mut frame, arrival);
        self.incoming.push_back(frame);
        true
    }

    /// The oldest transmitted packet, copied out; its frame goes to `pool`.
    pub fn sent(&mut self, pool: &mut FramePool) -> Option<Vec<u8>> {
        let frame = self.outgoing.pop_front()?;
        let packet = self.umem.bytes(&frame).to_vec();
        pool.put(frame);
        Some(packet)
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, burst: &mut Burst) {
        while burst.remaining_capacity() > 0 {
            let Some(frame) = self.incoming.pop_front() else {
                break;
            };
            burst.push(frame);
        }
    }

    fn refill(&mut self, _pool: &mut FramePool) {}

    fn transmit(&mut self, frame: Frame) -> Result<(), Frame> {
        if self.outgoing.len() == self.transmit_room {
            return Err(frame);
        }
        self.outgoing.push_back(frame);
        Ok(())
    }

    fn reclaim(&mut self, _pool: &mut FramePool) {}

    fn kick(&mut self) -> bool {
        false
    }

    fn wait_on(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn held(&self) -> Held {
        Held {
            receive: self.incoming.len(),
            transmit: self.outgoing.len(),
        }
    }

    fn kernel_drops(&self) -> KernelDrops {
        KernelDrops::default()
    }

    fn close(self: Box<Self>, pool: &mut FramePool) {
        for frame in self.incoming.into_iter().chain(self.outgoing) {
            pool.put(frame);
        }
    }
}
