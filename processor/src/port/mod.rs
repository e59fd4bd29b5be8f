//! Ports: where frames come from and go to.
//!
//! A port is an interface of the code. [`xsk`] is AF_XDP, [`memory`] serves tests and benchmarks; nothing behind
//! [`Port`] knows which. A frame given to a port is moved into it, so that only one owner can touch its bytes.

pub mod frame;
pub mod memory;
pub mod memory_node;
pub mod pieces;
pub mod pool;
pub mod umem;
pub mod xsk;

use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;

use frame::Frame;
use pool::FramePool;

/// The largest number of frames that go through the stages together.
pub const BATCH: usize = 64;

/// Frames just received, oldest first.
pub type Burst = ArrayVec<Frame, BATCH>;

/// How many frames a port holds, by place.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// In the fill ring or receive ring, or with pieces of a packet that is not whole yet.
    pub receive: usize,
    /// In the transmit ring or completion ring.
    pub transmit: usize,
}

/// What the kernel dropped before a frame was received, since the port was opened.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelDrops {
    /// The receive ring was full.
    pub ring_full: u64,
    /// The fill ring was empty, or no long frame was free.
    pub fill_empty: u64,
    /// It is longer than a frame of the UMEM, or than a long one.
    pub too_long: u64,
    /// Any other reason.
    pub other: u64,
}

impl std::ops::Add for KernelDrops {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            ring_full: self.ring_full + other.ring_full,
            fill_empty: self.fill_empty + other.fill_empty,
            too_long: self.too_long + other.too_long,
            other: self.other + other.other,
        }
    }
}

/// One queue of one interface.
pub trait Port: Send {
    /// Appends received packets to `burst`, at most as many as it has room for. Those that came in pieces are in long frames of
    /// `pool`.
    fn receive(&mut self, burst: &mut Burst, pool: &mut FramePool);

    /// Hands the received frames' room back: moves free frames from `pool` to the port, up to its fill level.
    fn refill(&mut self, pool: &mut FramePool);

    /// Submits one packet; in pieces, in frames of `pool`, if it is in a long frame.
    ///
    /// # Errors
    /// Gives the frame back if the transmit ring has no room, or the pool no frames for the pieces.
    fn transmit(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), Frame>;

    /// Submits packets in order, none of them in a long frame, until one cannot be: that and what is behind it stays.
    fn transmit_all(&mut self, packets: &mut Burst);

    /// Takes back the frames whose transmission has ended.
    fn reclaim(&mut self, pool: &mut FramePool);

    /// Makes the device start on what was submitted. Never blocks. Returns whether something is still waiting.
    fn kick(&mut self) -> bool;

    /// What to wait on for received frames; `None` if the port cannot be waited on.
    fn wait_on(&self) -> Option<BorrowedFd<'_>>;

    /// The frames that the port holds now.
    fn held(&self) -> Held;

    /// What was dropped before it was received.
    fn kernel_drops(&self) -> KernelDrops;

    /// Closes the port and moves every frame that the kernel has given up into `pool`.
    fn close(self: Box<Self>, pool: &mut FramePool);
}
