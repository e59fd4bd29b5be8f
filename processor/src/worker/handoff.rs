//! Rings between workers: a packet whose next step belongs to another worker goes over with its frame.
//!
//! One bounded single-producer single-consumer ring for each ordered pair of workers. Frames that went over come back
//! as free frames through the ring of the other direction, so that no pool runs dry. A worker that sleeps is woken.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rtrb::{Consumer, Producer, RingBuffer};
use rustix::event::{EventfdFlags, eventfd};

use crate::path::batch::{Descriptor, NextStep, WorkerId};
use crate::port::frame::Frame;

/// Slots of one ring: a few batches, so that a slow worker delays a packet by microseconds, not by a queue.
pub const RING: usize = 512;

/// What goes over.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a slot of the ring has room for a packet; nothing is allocated for it"
)]
pub enum Item {
    /// A packet, and what to do next with it.
    Packet(NextStep, Descriptor),
    /// A free frame for one that came earlier.
    Free(Frame),
}

/// Wakes a worker that sleeps.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<OwnedFd>,
    sleeping: Arc<AtomicBool>,
}

impl Waker {
    /// A waker for one worker.
    ///
    /// # Errors
    /// If the system has no descriptor left.
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self {
            event: Arc::new(event),
            sleeping: Arc::new(AtomicBool::new(false)),
        })
    }

    /// Wakes the worker if it sleeps or is about to. Costs a fence if it does not.
    #[inline]
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) {
            // Full (EAGAIN) means that a wake-up is already waiting.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Says that the worker is about to sleep. It must look at its rings once more after this, then wait on
    /// [`Waker::wait_on`].
    pub fn announce_sleep(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Says that it is awake.
    pub fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
        let mut count = [0u8; 8];
        // Empty (EAGAIN) means that nobody had to wake it.
        let _ = rustix::io::read(&self.event, &mut count);
    }

    /// What becomes readable when somebody wakes the worker.
    #[must_use]
    pub fn wait_on(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// One worker's ends of the rings to and from every other worker.
#[derive(Debug)]
pub struct Handoff {
    peers: Vec<Option<PeerRings>>,
}

#[derive(Debug)]
struct PeerRings {
    to: Producer<Item>,
    from: Consumer<Item>,
    waker: Waker,
    /// Frames that came from this peer and did not go back yet: others, and long ones.
    owed: [usize; 2],
    /// Whether something went over since the peer was last woken.
    pushed: bool,
}

impl Handoff {
    /// The ends of `wakers.len()` workers, in the order of their numbers.
    #[must_use]
    pub fn mesh(wakers: &[Waker]) -> Vec<Handoff> {
        let count = wakers.len();
        let mut meshed: Vec<Handoff> = (0..count)
            .map(|_| Handoff {
                peers: (0..count).map(|_| None).collect(),
            })
            .collect();
        for one in 0..count {
            for two in one + 1..count {
                let (forth, forth_end) = RingBuffer::new(RING);
                let (back, back_end) = RingBuffer::new(RING);
                let rings = |to, from, waker: &Waker| PeerRings {
                    to,
                    from,
                    waker: waker.clone(),
                    owed: [0; 2],
                    pushed: false,
                };
                meshed[one].peers[two] = Some(rings(forth, back_end, &wakers[two]));
                meshed[two].peers[one] = Some(rings(back, forth_end, &wakers[one]));
            }
        }
        meshed
    }

    /// Hands a packet to another worker.
    ///
    /// # Errors
    /// Gives it back if the ring is full, or if there is no such worker.
    #[inline]
    #[expect(
        clippy::result_large_err,
        reason = "a packet comes back whole, and nothing is allocated for it"
    )]
    pub fn push(&mut self, to: WorkerId, step: NextStep, packet: Descriptor) -> Result<(), Descriptor> {
        let Some(Some(peer)) = self.peers.get_mut(to.index()) else {
            return Err(packet);
        };
        match peer.to.push(Item::Packet(step, packet)) {
            Ok(()) => {
                peer.pushed = true;
                Ok(())
            }
            Err(rtrb::PushError::Full(Item::Packet(_, packet))) => Err(packet),
            Err(rtrb::PushError::Full(Item::Free(_))) => unreachable!("a packet was pushed"),
        }
    }

    /// The oldest item from any other worker.
    #[inline]
    pub fn pop(&mut self) -> Option<Item> {
        for peer in self.peers.iter_mut().flatten() {
            if let Ok(item) = peer.from.pop() {
                if let Item::Packet(_, packet) = &item {
                    peer.owed[usize::from(packet.frame.is_long())] += 1;
                }
                return Some(item);
            }
        }
        None
    }

    /// Gives frames back for those that came, as far as `take` has any (long ones if it is told so) and the rings have room, and
    /// wakes the workers that something went to.
    #[inline]
    pub fn settle(&mut self, mut take: impl FnMut(bool) -> Option<Frame>, mut put: impl FnMut(Frame)) {
        for peer in self.peers.iter_mut().flatten() {
            for (long, owed) in [false, true].into_iter().zip(&mut peer.owed) {
                while *owed > 0 && peer.to.slots() > RING / 2 {
                    let Some(frame) = take(long) else { break };
                    match peer.to.push(Item::Free(frame)) {
                        Ok(()) => {
                            *owed -= 1;
                            peer.pushed = true;
                        }
                        Err(rtrb::PushError::Full(Item::Free(frame))) => {
                            put(frame);
                            break;
                        }
                        Err(rtrb::PushError::Full(Item::Packet(..))) => {
                            unreachable!("a free frame was pushed")
                        }
                    }
                }
            }
            if peer.pushed {
                peer.pushed = false;
                peer.waker.wake();
            }
        }
    }

    /// Whether something from another worker is waiting.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.peers.iter().flatten().any(|peer| !peer.from.is_empty())
    }

    /// Takes everything that is still in the rings towards this worker, after the others have stopped.
    pub fn drain(&mut self) -> impl Iterator<Item = Item> + '_ {
        std::iter::from_fn(|| self.pop())
    }
}
