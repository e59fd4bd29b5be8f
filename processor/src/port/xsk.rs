//! A port on an AF_XDP socket: one queue of one interface, with rings of its own in the UMEM of the process.
//!
//! Receive, transmit, fill and completion move frames between user space and the kernel; none of them waits. A
//! completion that never comes (device gone, driver reset) costs nothing but the frames, and [`Port::close`]
//! takes those back.
//!
//! A packet is one frame of the UMEM. What is longer comes and goes in several ([`super::pieces`])
//! (`XDP_USE_SG`, where the UMEM has long frames; since Linux 6.6, here in copy mode only: zero-copy drivers differ in whether they can), else the kernel drops
//! and counts it. With native XDP it comes only to a program for fragments. Frames that are longer than a page cannot be had,
//! on huge pages neither.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue};

use super::frame::Frame;
use super::pieces::{Gatherer, scatter};
use super::pool::FramePool;
use super::umem::Umem;
use super::{BATCH, Burst, Held, KernelDrops, Port};

/// Of a descriptor: more of its packet follow (`XDP_PKT_CONTD`).
const MORE_FOLLOW: u32 = 1;

/// Frames that one `sendto` makes the kernel transmit in copy mode (`XDP_MAX_TX_SKB_BUDGET`'s default).
const KICK_BUDGET: u32 = 32;

/// Whether the socket shares its frames with the driver.
#[derive(
    Copy, Clone, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum ZeroCopy {
    /// Where the driver can.
    #[default]
    Auto,
    /// Refuse to start without it.
    Require,
    /// Never.
    Off,
}

/// Which queue to open, and how.
#[derive(Clone, Debug)]
pub struct XskConfig {
    /// Interface name.
    pub interface: String,
    /// Queue of the interface.
    pub queue: u32,
    /// Slots of the receive and transmit ring, a power of two.
    pub ring_size: u32,
    /// Free frames to keep in the fill ring.
    pub fill_level: u32,
    /// Zero-copy or copy. The kernel gives all sockets of one UMEM the mode of the first.
    pub zero_copy: bool,
    /// Bytes that the XDP program puts in front of every packet that is received.
    pub head: u8,
    /// A number of its own for every port ever opened on this UMEM, not 0.
    pub holder: u16,
    /// Whether this is the first socket on its UMEM: the kernel keeps it until the UMEM goes.
    pub first: bool,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// The interface name cannot be one.
    #[error("\"{0}\" is not an interface name")]
    Name(String),
    /// The UMEM is plain memory.
    #[error("the UMEM is not registered with the kernel")]
    NotRegistered,
    /// The driver would cut packets into pieces.
    #[error(
        "{interface} (driver {driver}) puts {room} bytes into a zero-copy frame of {frame_size}, and a packet may have {longest}: set umem.frame-size to 4096, or lower the MTU"
    )]
    FrameTooSmall {
        /// Interface name.
        interface: String,
        /// Its driver.
        driver: String,
        /// Bytes it puts into a frame.
        room: usize,
        /// Bytes of a frame.
        frame_size: u32,
        /// Bytes of the longest packet.
        longest: usize,
    },
    /// The kernel refused.
    #[error("no AF_XDP socket on {interface} queue {queue} in {mode} mode: {hint}")]
    Refused {
        /// Interface name.
        interface: String,
        /// Queue.
        queue: u32,
        /// `copy` or `zero-copy`.
        mode: &'static str,
        /// Whether packets in pieces were asked for.
        pieces: bool,
        /// What to do.
        hint: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The mode could not be read back, or the socket not be made this process's only.
    #[error("the mode of the socket on {interface} queue {queue} cannot be read back or set")]
    Options {
        /// Interface name.
        interface: String,
        /// Queue.
        queue: u32,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

impl XskError {
    /// Whether a kernel before 6.6 says so, to which pieces of packets are unknown.
    #[must_use]
    pub fn may_know_no_pieces(&self) -> bool {
        matches!(self, Self::Refused { pieces: true, source, .. } if source.raw_os_error() == Some(libc::EINVAL))
    }

    /// Whether another socket has the queue, which a kernel also says for a while after the socket's process has ended.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(libc::EBUSY))
    }
}

/// An open queue.
pub struct XskPort {
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    umem: Arc<Umem>,
    head: u8,
    holder: u16,
    ring_size: u32,
    fill_level: usize,
    held: Held,
    zero_copy: bool,
    first: bool,
    /// Whether the driver has been told of the first frames to receive into.
    begun: bool,
    too_long: Arc<AtomicU64>,
    gatherer: Gatherer,
    scratch: [FrameDesc; BATCH],
}

impl std::fmt::Debug for XskPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XskPort")
            .field("fd", &self.tx.fd())
            .field("held", &self.held)
            .finish()
    }
}

impl XskPort {
    /// Opens and binds the socket. Nothing is received before it stands in the interface's XSKMAP and the fill ring
    /// has frames.
    ///
    /// # Errors
    /// See [`XskError`].
    pub fn open(umem: &Arc<Umem>, config: &XskConfig) -> Result<Self, XskError> {
        let name =
            CString::new(config.interface.as_str()).map_err(|_| XskError::Name(config.interface.clone()))?;
        let interface = Interface::new(name);
        let registered = umem.registered().ok_or(XskError::NotRegistered)?;
        let size = QueueSize::new(config.ring_size).map_err(|_| XskError::Name(config.interface.clone()))?;
        let mode = if config.zero_copy {
            BindFlags::XDP_ZEROCOPY
        } else {
            BindFlags::XDP_COPY
        };
        let pieces = umem.takes_pieces();
        let mode_of_pieces = if pieces {
            BindFlags::XDP_USE_SG
        } else {
            BindFlags::empty()
        };
        let socket = SocketConfig::builder()
            .rx_queue_size(size)
            .tx_queue_size(size)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(mode | mode_of_pieces | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        let refused = |source: std::io::Error, hint| XskError::Refused {
            interface: config.interface.clone(),
            queue: config.queue,
            mode: if config.zero_copy { "zero-copy" } else { "copy" },
            pieces,
            hint,
            source,
        };
        // SAFETY: libxdp loads no program of its own (INHIBIT_PROG_LOAD), which is what the contract asks for when a
        // UMEM is shared.
        let opened = unsafe { Socket::new(socket, registered, &interface, config.queue) };
        let (tx, rx, rings) = opened.map_err(|error| {
            let code = std::error::Error::source(&error)
                .and_then(|source| source.downcast_ref::<std::io::Error>())
                .and_then(std::io::Error::raw_os_error);
            let hint = match code {
                Some(libc::EBUSY) => "another process has this queue",
                Some(libc::EPERM) => "needs root (CAP_NET_RAW)",
                Some(libc::ENODEV) => "no such interface",
                Some(libc::EINVAL) => "no such queue (see ethtool -l)",
                Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => {
                    "the driver cannot: use --zero-copy auto or off"
                }
                Some(libc::EAFNOSUPPORT) => "this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)",
                _ => "see the cause",
            };
            refused(
                code.map_or_else(
                    || std::io::Error::other(error.to_string()),
                    std::io::Error::from_raw_os_error,
                ),
                hint,
            )
        })?;
        let Some((fill, completion)) = rings else {
            return Err(refused(
                std::io::Error::from_raw_os_error(libc::EBUSY),
                "this process has this queue already",
            ));
        };
        let socket = tx.fd().as_raw_fd();
        let mode = close_on_exec(socket).and_then(|()| mode_in_force(socket));
        let zero_copy = mode.map_err(|source| XskError::Options {
            interface: config.interface.clone(),
            queue: config.queue,
            source,
        })?;
        Ok(Self {
            rx,
            tx,
            fill,
            completion,
            umem: Arc::clone(umem),
            head: config.head,
            holder: config.holder,
            ring_size: config.ring_size,
            fill_level: config.fill_level.min(config.ring_size) as usize,
            held: Held::default(),
            zero_copy,
            first: config.first,
            begun: false,
            too_long: Arc::default(),
            gatherer: Gatherer::default(),
            scratch: [FrameDesc::default(); BATCH],
        })
    }

    /// The socket, to be put into the interface's XSKMAP.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.tx.fd().as_raw_fd()
    }

    /// What it has dropped because it is longer than a frame, as last asked for by [`Port::kernel_drops`].
    #[must_use]
    pub fn too_long(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.too_long)
    }

    /// Whether the kernel says that the socket is in zero-copy mode.
    #[must_use]
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }
}

impl XskPort {
    #[cold]
    fn transmit_in_pieces(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), Frame> {
        let mut pieces = ArrayVec::<FrameDesc, BATCH>::new();
        let room = self.tx.nb_free(BATCH as u32).min(BATCH as u32);
        let (umem, holder) = (&self.umem, self.holder);
        scatter(frame, room as usize, pool, |piece| {
            let more_follow = piece.is_piece();
            let mut descriptor = umem.lend(piece, holder);
            descriptor.set_options(if more_follow { MORE_FOLLOW } else { 0 });
            pieces.push(descriptor);
        })?;
        // SAFETY: the descriptors are of frames just lent, which nobody else can touch.
        let produced = unsafe { self.tx.produce(&pieces) };
        assert_eq!(produced, pieces.len(), "the transmit ring had room");
        self.held.transmit += produced;
        Ok(())
    }
}

/// Lets a socket end with this process: libxdp makes it so that a program that is started from here would keep the queue.
fn close_on_exec(socket: RawFd) -> std::io::Result<()> {
    // SAFETY: sets a flag of a descriptor, and touches no memory.
    match unsafe { libc::fcntl(socket, libc::F_SETFD, libc::FD_CLOEXEC) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Asks the kernel for the mode of a socket: true is zero-copy.
fn mode_in_force(socket: RawFd) -> std::io::Result<bool> {
    let mut options = libc::xdp_options { flags: 0 };
    let mut length = size_of::<libc::xdp_options>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `options`, which outlives the call.
    let status = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_XDP,
            libc::XDP_OPTIONS,
            (&raw mut options).cast(),
            &raw mut length,
        )
    };
    if status < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

impl Port for XskPort {
    #[inline]
    fn receive(&mut self, burst: &mut Burst, pool: &mut FramePool) {
        let room = burst.remaining_capacity().min(BATCH);
        // SAFETY: `scratch` takes descriptors of this UMEM, which the kernel has given up.
        let count = unsafe { self.rx.consume(&mut self.scratch[..room]) };
        let from = burst.len();
        let mut begins = self.gatherer.is_between();
        for descriptor in &self.scratch[..count] {
            let mut frame = self.umem.regain(*descriptor);
            if begins {
                self.umem.skip_head(&mut frame, self.head);
            }
            begins = !frame.is_piece();
            burst.push(frame);
        }
        self.gatherer.gather(burst, from, pool);
        self.held.receive -= count;
    }

    #[inline]
    fn refill(&mut self, pool: &mut FramePool) {
        while self.held.receive < self.fill_level {
            let wanted = (self.fill_level - self.held.receive).min(BATCH);
            let wanted = wanted
                .min(self.fill.nb_free(wanted as u32) as usize)
                .min(pool.available());
            if wanted == 0 {
                break;
            }
            for slot in &mut self.scratch[..wanted] {
                let Some(frame) = pool.take() else {
                    unreachable!("as many as are available")
                };
                *slot = self.umem.lend(frame, self.holder);
            }
            // SAFETY: the descriptors are of frames just lent, which nobody else can touch.
            let produced = unsafe { self.fill.produce(&self.scratch[..wanted]) };
            assert_eq!(produced, wanted, "the fill ring had room");
            self.held.receive += produced;
        }
        // Drivers take frames when the socket is bound, and ours come only after that. Not every driver asks for a wakeup
        // then (igb does not), so the first frames are always announced.
        if self.fill.needs_wakeup() || !self.begun && self.held.receive > 0 {
            self.begun = true;
            // A failure shows as a socket that receives nothing, which the watcher of the interface handles.
            let _ = self.fill.wakeup(self.rx.fd_mut(), 0);
        }
    }

    #[inline]
    fn transmit(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), Frame> {
        if self.umem.is_long(&frame) {
            return self.transmit_in_pieces(frame, pool);
        }
        if self.tx.nb_free(1) == 0 {
            return Err(frame);
        }
        let descriptor = self.umem.lend(frame, self.holder);
        // SAFETY: the descriptor is of a frame just lent, which nobody else can touch.
        let produced = unsafe { self.tx.produce_one(&descriptor) };
        assert_eq!(produced, 1, "the transmit ring had room");
        self.held.transmit += 1;
        Ok(())
    }

    #[inline]
    fn transmit_all(&mut self, packets: &mut Burst) {
        let room = self.tx.nb_free(BATCH as u32) as usize;
        let (umem, holder) = (&self.umem, self.holder);
        let leaving = packets.drain(..room.min(packets.len()));
        let descriptors: ArrayVec<FrameDesc, BATCH> = leaving.map(|frame| umem.lend(frame, holder)).collect();
        // SAFETY: the descriptors are of frames just lent, which nobody else can touch.
        let produced = unsafe { self.tx.produce(&descriptors) };
        assert_eq!(produced, descriptors.len(), "the transmit ring had room");
        self.held.transmit += produced;
    }

    #[inline]
    fn reclaim(&mut self, pool: &mut FramePool) {
        while self.held.transmit > 0 {
            // SAFETY: `scratch` takes descriptors of this UMEM, which the kernel has given up.
            let count = unsafe { self.completion.consume(&mut self.scratch) };
            for descriptor in &self.scratch[..count] {
                pool.put(self.umem.regain(*descriptor));
            }
            self.held.transmit -= count;
            if count < BATCH {
                break;
            }
        }
    }

    #[inline]
    fn kick(&mut self) -> bool {
        if self.held.transmit == 0 {
            return false;
        }
        let mut waiting = self.ring_size - self.tx.nb_free_exact();
        // In copy mode one call transmits at most KICK_BUDGET; a bound keeps a dead device from holding the worker.
        let mut calls = waiting.div_ceil(KICK_BUDGET);
        while waiting > 0 && calls > 0 && self.tx.needs_wakeup() {
            if self.tx.wakeup().is_err() {
                break;
            }
            waiting = self.ring_size - self.tx.nb_free_exact();
            calls -= 1;
        }
        waiting > 0
    }

    fn wait_on(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the socket stays open as long as `self`, which the borrow is bound to.
        Some(unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) })
    }

    fn held(&self) -> Held {
        Held {
            receive: self.held.receive + self.gatherer.held(),
            ..self.held
        }
    }

    fn kernel_drops(&self) -> KernelDrops {
        let Ok(seen) = self.rx.fd().xdp_statistics() else {
            return KernelDrops::default();
        };
        let ours = self.gatherer.dropped();
        let (dropped, met_none) = (seen.rx_dropped(), seen.rx_fill_ring_empty_descs());
        // Dropped is what found no frame in the fill ring, and what is longer than one; in pieces nothing is too long for the
        // kernel, and what found too few frames is not among those that found none.
        let (fill_empty, too_long) = if self.umem.takes_pieces() {
            (dropped.max(met_none), 0)
        } else {
            (met_none, dropped.saturating_sub(met_none))
        };
        let drops = KernelDrops {
            ring_full: seen.rx_ring_full(),
            fill_empty: fill_empty + ours.fill_empty,
            too_long: too_long + ours.too_long,
            other: seen.rx_invalid_descs(),
        };
        self.too_long.store(drops.too_long, Ordering::Relaxed);
        drops
    }

    fn close(self: Box<Self>, pool: &mut FramePool) {
        let Self {
            rx,
            tx,
            fill,
            completion,
            umem,
            holder,
            held,
            first,
            gatherer,
            ..
        } = *self;
        gatherer.give_up(pool);
        // The socket is deleted with the last of its queues; only then has the kernel let go of its frames.
        drop((rx, tx, fill, completion));
        if first {
            // libxdp does not close the socket that registered the UMEM before the UMEM goes: until then the
            // kernel may write to the frames it holds, so they go with the UMEM.
            return;
        }
        let mut recovered = 0;
        umem.recover(holder, |frame| {
            pool.put(frame);
            recovered += 1;
        });
        debug_assert_eq!(
            recovered,
            held.receive + held.transmit,
            "a frame was lost or held twice"
        );
    }
}
