//! The bare AF_XDP forwarder: what comes by one of two interfaces leaves by the other, unread. What a packet costs here is what the rings, the
//! wakeups and the kernel behind them cost; what Guestseal takes beyond it is its own.
//!
//! The same program, port and UMEM as Guestseal's, with one thread.

use std::io::Write;
use std::sync::Arc;

use arrayvec::ArrayVec;
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

/// Carries what comes by either interface to the other, until it is ended; never sleeps if it is to poll.
pub(crate) fn carry(interfaces: [&str; 2], busy_poll: bool) -> Result<(), PerfError> {
    let (umem, frames) = Umem::kernel(Shape {
        frame_size: 2048,
        frames: FRAMES,
        long_frames: 0,
        ring_size: RING,
        huge_pages: HugePages::Auto,
    })
    .map_err(said)?;
    let mut pool = FramePool::new(Arc::clone(&umem), frames);
    let (mut ports, mut programs) = (Vec::new(), Vec::new());
    for (interface, holder) in interfaces.into_iter().zip(1..) {
        let config = XskConfig {
            interface: interface.to_owned(),
            queue: 0,
            ring_size: RING,
            fill_level: RING,
            zero_copy: false,
            head: 0,
            holder,
            first: holder == 1,
        };
        let mut port = XskPort::open(&umem, &config).map_err(said)?;
        port.refill(&mut pool);
        let attachment = Attachment {
            ifindex: ifindex(interface)?,
            mode: ModeChoice::Only(XdpMode::Native),
            pins: None,
        };
        let program = GuestProgram::load()
            .and_then(|program| program.attach(attachment))
            .map_err(said)?;
        program.register_socket(0, &port.raw_fd()).map_err(said)?;
        ports.push(port);
        programs.push(program);
    }
    println!("listening");
    std::io::stdout()
        .flush()
        .map_err(PerfError::io("standard output"))?;
    let [one, other] = ports.as_mut_slice() else {
        unreachable!("two interfaces")
    };
    let mut idle_turns = 0;
    loop {
        let is_busy = carry_burst(one, other, &mut pool) | carry_burst(other, one, &mut pool);
        idle_turns = if is_busy { 0 } else { idle_turns + 1 };
        if !busy_poll && idle_turns > IDLE_TURNS {
            let sockets = [&*one, &*other].into_iter().filter_map(Port::wait_on);
            let mut waited: ArrayVec<PollFd<'_>, 2> = sockets
                .map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN))
                .collect();
            let nap = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            poll(&mut waited, Some(&nap)).map_err(|error| PerfError::io("poll")(error.into()))?;
        }
    }
}

/// One burst from one port to another. Says whether there was anything to do.
fn carry_burst(entry: &mut XskPort, exit: &mut XskPort, pool: &mut FramePool) -> bool {
    let mut burst = Burst::new();
    exit.reclaim(pool);
    entry.receive(&mut burst, pool);
    let came = !burst.is_empty();
    exit.transmit_all(&mut burst);
    // No room to transmit: what is left is dropped.
    burst.into_iter().for_each(|frame| pool.put(frame));
    entry.refill(pool);
    exit.kick() || came
}
