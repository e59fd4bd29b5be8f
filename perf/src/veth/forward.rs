//! The bare AF_XDP forwarder: what comes by one interface leaves by another, unread. What a packet costs here is what the rings, the
//! wakeups and the kernel behind them cost; what Guestseal takes beyond it is its own.
//!
//! The same program, port and UMEM as Guestseal's, with one thread that sleeps when nothing comes.

use std::io::Write;
use std::sync::Arc;

use guestseal::port::pool::FramePool;
use guestseal::port::umem::{HugePages, Shape, Umem};
use guestseal::port::xsk::{XskConfig, XskPort};
use guestseal::port::{Burst, Port};
use guestseal_xdp::{Attachment, GuestProgram, ModeChoice, Program, XdpMode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::scenario::{ifindex, said};
use crate::process::PerfError;

/// Slots of each ring, and frames of the UMEM: Guestseal's, if nothing is said.
const RING: u32 = 1024;
const FRAMES: u32 = 8192;
/// Turns without a packet before it sleeps, as a worker.
const IDLE_TURNS: u32 = 16;

/// Carries what comes by `from` to `to`, until it is ended.
pub(crate) fn carry(from: &str, to: &str) -> Result<(), PerfError> {
    let (umem, frames) = Umem::kernel(Shape {
        frame_size: 2048,
        frames: FRAMES,
        long_frames: 0,
        ring_size: RING,
        huge_pages: HugePages::Auto,
    })
    .map_err(refused)?;
    let mut pool = FramePool::new(Arc::clone(&umem), frames);
    let open = |interface: &str, holder, fill_level| {
        let config = XskConfig {
            interface: interface.to_owned(),
            queue: 0,
            ring_size: RING,
            fill_level,
            zero_copy: false,
            head: 0,
            holder,
            first: holder == 1,
        };
        XskPort::open(&umem, &config).map_err(refused)
    };
    let (mut entry, mut exit) = (open(from, 1, RING)?, open(to, 2, 0)?);
    entry.refill(&mut pool);
    let Some(socket) = entry.wait_on().map(|socket| socket.try_clone_to_owned()) else {
        unreachable!("a socket can be waited on")
    };
    let socket = socket.map_err(PerfError::io("the socket"))?;
    let attachment = Attachment {
        ifindex: ifindex(from)?,
        mode: ModeChoice::Only(XdpMode::Native),
        pins: None,
    };
    let program = GuestProgram::load()
        .and_then(|program| program.attach(attachment))
        .map_err(said)?;
    program.register_socket(0, &socket).map_err(said)?;
    println!("ready");
    std::io::stdout()
        .flush()
        .map_err(PerfError::io("standard output"))?;
    let mut burst = Burst::new();
    let mut idle_turns = 0;
    loop {
        exit.reclaim(&mut pool);
        entry.receive(&mut burst, &mut pool);
        idle_turns = if burst.is_empty() { idle_turns + 1 } else { 0 };
        exit.transmit_all(&mut burst);
        // No room to transmit: what is left is dropped.
        burst.drain(..).for_each(|frame| pool.put(frame));
        entry.refill(&mut pool);
        if !exit.kick() && idle_turns > IDLE_TURNS {
            let mut waited = [PollFd::new(&socket, PollFlags::IN)];
            let nap = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            poll(&mut waited, Some(&nap)).map_err(|error| PerfError::io("poll")(error.into()))?;
        }
    }
}

fn refused(error: impl std::error::Error) -> PerfError {
    PerfError::Wrong(guestseal::control::supervise::chain(&error))
}
