//! The mirror thread: puts the workers' copies ([`crate::path::mirror`]) onto monitoring interfaces.
//!
//! Each has an AF_XDP socket on a UMEM of its own, so that it has no say in the mode of the data plane's sockets. It sends only: the
//! interface is a veth whose other end the listener has, or a card that leads to it. One that is not there is looked for
//! each second; copies for it are lost, and counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::path::mirror::{Image, Interface, Mirrored};
use crate::port::Port;
use crate::port::pool::FramePool;
use crate::port::umem::{HugePages, Shape, Umem, UmemError};
use crate::port::xsk::{XskConfig, XskError, XskPort};

use super::link;
use super::supervise::chain;

/// How often interfaces are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// When one that got no copies is closed: its rule may be gone.
const UNUSED: Duration = Duration::from_secs(600);
/// How long the thread rests while a device has not sent everything.
const BUSY: Duration = Duration::from_millis(1);
/// Copies on their way to one interface.
const FRAMES: u32 = 256;

/// The thread; it ends with this.
#[derive(Debug)]
pub struct Mirrors {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Mirrors {
    /// Starts it.
    ///
    /// # Errors
    /// If the system has no thread.
    pub fn start(ends: Vec<Mirrored>, pieces: bool) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("mirror".to_owned())
            .spawn(move || run(ends, pieces, &asked))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Who is to be woken when there are copies.
    #[must_use]
    pub fn thread(&self) -> Option<&Thread> {
        self.thread.as_ref().map(JoinHandle::thread)
    }
}

impl Drop for Mirrors {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

fn run(mut ends: Vec<Mirrored>, pieces: bool, stop: &AtomicBool) {
    let mut monitors: HashMap<Interface, Monitor> = HashMap::new();
    let mut looked = Instant::now();
    loop {
        // Read before the rings are emptied: what was put there before is sent.
        let stops = stop.load(Ordering::Acquire);
        let mut moved = false;
        for end in &mut ends {
            while let Ok(image) = end.full.pop() {
                moved = true;
                let monitor = monitors
                    .entry(image.interface)
                    .or_insert_with(|| Monitor::new(image.interface, pieces));
                if monitor.send(&image) {
                    end.counters.mirrored.add(1);
                } else {
                    end.counters.mirrors_refused.add(1);
                }
                // As many as there are have room there.
                let _ = end.empty.push(image);
            }
        }
        let mut busy = false;
        for monitor in monitors.values_mut() {
            busy |= monitor.flush();
        }
        if stops {
            return;
        }
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            monitors.retain(|_, monitor| monitor.used.elapsed() < UNUSED);
            monitors.values_mut().for_each(Monitor::look);
        }
        if !moved {
            std::thread::park_timeout(if busy { BUSY } else { LOOK });
        }
    }
}

/// An interface, there or not.
struct Monitor {
    name: String,
    /// Long copies go in pieces.
    pieces: bool,
    socket: Option<Sender>,
    /// When it last had a copy.
    used: Instant,
}

struct Sender {
    /// Of the interface that it is on.
    index: u32,
    port: Box<XskPort>,
    umem: Arc<Umem>,
    pool: FramePool,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
enum MonitorError {
    #[error("no such interface")]
    Missing,
    #[error(transparent)]
    Umem(#[from] UmemError),
    #[error(transparent)]
    Socket(#[from] XskError),
}

impl Monitor {
    fn new(interface: Interface, pieces: bool) -> Self {
        let name = interface.iter().take_while(|byte| **byte != 0);
        let mut monitor = Self {
            name: name.map(|byte| char::from(*byte)).collect(),
            pieces,
            socket: None,
            used: Instant::now(),
        };
        match Sender::open(&monitor.name, pieces) {
            Ok(sender) => monitor.opened(sender),
            Err(error) => tracing::warn!(
                "copies for the monitoring interface {} are lost until it is there: {}",
                monitor.name,
                chain(&error)
            ),
        }
        monitor
    }

    fn opened(&mut self, sender: Sender) {
        tracing::info!("copies go to the monitoring interface {}", self.name);
        self.socket = Some(sender);
    }

    /// Follows the interface as it goes and comes.
    fn look(&mut self) {
        let index = link::index_of(&self.name);
        if self
            .socket
            .as_ref()
            .is_some_and(|sender| Some(sender.index) != index)
        {
            tracing::warn!("the monitoring interface {} is gone: copies are lost", self.name);
            self.socket = None;
        }
        if self.socket.is_none()
            && index.is_some()
            && let Ok(sender) = Sender::open(&self.name, self.pieces)
        {
            self.opened(sender);
        }
    }

    /// Whether the interface has taken it.
    fn send(&mut self, image: &Image) -> bool {
        self.used = Instant::now();
        self.socket
            .as_mut()
            .is_some_and(|sender| sender.send(&image.bytes))
    }

    /// Makes the device send. Whether something still waits.
    fn flush(&mut self) -> bool {
        self.socket.as_mut().is_some_and(|sender| {
            let waits = sender.port.kick();
            sender.port.reclaim(&mut sender.pool);
            waits
        })
    }
}

impl Sender {
    fn open(interface: &str, pieces: bool) -> Result<Self, MonitorError> {
        let index = link::index_of(interface).ok_or(MonitorError::Missing)?;
        let (umem, frames) = Umem::kernel(Shape {
            frame_size: 4096,
            frames: FRAMES,
            long_frames: u32::from(pieces),
            ring_size: FRAMES,
            huge_pages: HugePages::Off,
        })?;
        let pool = FramePool::new(Arc::clone(&umem), frames);
        let port = XskPort::open(
            &umem,
            &XskConfig {
                interface: interface.to_owned(),
                queue: 0,
                ring_size: FRAMES,
                fill_level: 0,
                zero_copy: false,
                head: 0,
                holder: 1,
                first: true,
            },
        )?;
        Ok(Self {
            index,
            port: Box::new(port),
            umem,
            pool,
        })
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        if self.pool.available() == 0 {
            self.port.kick();
            self.port.reclaim(&mut self.pool);
        }
        let Some(mut frame) = self.pool.take_for(bytes.len()) else {
            return false;
        };
        let Some(room) = self.umem.room_mut(&mut frame).get_mut(..bytes.len()) else {
            self.pool.put(frame);
            return false;
        };
        room.copy_from_slice(bytes);
        self.umem.set_length(&mut frame, bytes.len());
        let sent = self.port.transmit(frame, &mut self.pool);
        sent.map_err(|frame| self.pool.put(frame)).is_ok()
    }
}
