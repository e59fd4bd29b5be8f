//! The memory that all frames of the process live in, and the only way to their bytes.
//!
//! A UMEM is registered with the kernel (AF_XDP) or plain memory (tests, benchmarks). Access goes through a
//! [`Frame`]: a shared borrow of the handle reads, an exclusive one writes.
//! Never allocates after it was made; panics if a frame is used with another UMEM than its own.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use xsk_rs::FrameDesc;
use xsk_rs::config::{FrameSize, QueueSize, UmemConfig};

use super::frame::{Frame, Kind, LONG};

/// Bytes before the data of a fresh frame: what XDP keeps free in front of a received packet (`XDP_PACKET_HEADROOM`).
pub const HEADROOM: usize = 256;

/// Bytes of metadata that the XDP programs put in front of a packet: the time of arrival.
pub const STAMP: usize = 8;

/// Bytes that may come to stand behind a packet's data in its frame: a VLAN tag, an overlay's headers in plaintext, padding and trailer.
const BEHIND: usize = 128;

/// Whether huge pages back the UMEM.
#[derive(
    Copy, Clone, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum HugePages {
    /// If the system has them reserved.
    #[default]
    Auto,
    /// Refuse to start without them.
    Require,
    /// Never.
    Off,
}

/// The shape of a UMEM.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of one frame, headroom included: 2048 or 4096.
    pub frame_size: u32,
    /// Number of frames.
    pub frames: u32,
    /// Number of long frames besides, of 16384 bytes, for packets that a frame has no room for.
    pub long_frames: u32,
    /// Slots of each fill and completion ring, a power of two.
    pub ring_size: u32,
    /// Huge pages.
    pub huge_pages: HugePages,
}

impl Shape {
    /// Checks what a UMEM can be; gives its number of chunks.
    ///
    /// # Errors
    /// [`UmemError::FrameSize`] and [`UmemError::Frames`].
    pub fn check(&self) -> Result<NonZeroU32, UmemError> {
        if !matches!(self.frame_size, 2048 | 4096) {
            return Err(UmemError::FrameSize(self.frame_size));
        }
        match NonZeroU32::new(self.frames) {
            Some(frames) if self.frames >= 64 => {
                let long = self.long_frames.checked_mul(self.chunks_of_long());
                long.and_then(|chunks| frames.checked_add(chunks))
                    .ok_or(UmemError::Frames(self.frames))
            }
            _ => Err(UmemError::Frames(self.frames)),
        }
    }

    /// Chunks of a long frame.
    fn chunks_of_long(&self) -> u32 {
        LONG as u32 / self.frame_size
    }
}

/// Why there is no UMEM.
#[derive(Debug, thiserror::Error)]
pub enum UmemError {
    /// Frames of this size cannot be had.
    #[error("umem.frame-size is {0}: AF_XDP takes 2048 or 4096")]
    FrameSize(u32),
    /// A ring of this size cannot be had.
    #[error("a ring of {0} slots: expected a power of two")]
    RingSize(u32),
    /// Too few frames.
    #[error("umem.frames is {0}: expected at least 64")]
    Frames(u32),
    /// Memory was refused.
    #[error(
        "no memory for a UMEM of {megabytes} MiB with huge pages: reserve them (sysctl vm.nr_hugepages={pages}) or set umem.huge-pages to auto"
    )]
    NoHugePages {
        /// Size in MiB.
        megabytes: u64,
        /// Pages of 2 MiB needed.
        pages: u64,
        /// What the system said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel refused to register it.
    #[error(
        "the kernel refuses a UMEM of {megabytes} MiB: needs root (CAP_NET_RAW, CAP_IPC_LOCK) and a kernel with AF_XDP"
    )]
    Refused {
        /// Size in MiB.
        megabytes: u64,
        /// What the system said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What only the owner of a frame may touch besides its bytes.
struct Slot {
    /// The kernel's descriptor of the frame; its address is that of the frame's data, less the frame's head.
    descriptor: UnsafeCell<FrameDesc>,
    /// The port that the kernel holds the frame for; 0 if user space has it. Read by [`Umem::held_by`] after that
    /// port's socket is closed.
    holder: AtomicU16,
}

enum Backing {
    Kernel(xsk_rs::Umem),
    Memory,
}

/// The memory of all frames.
pub struct Umem {
    id: u32,
    base: NonNull<u8>,
    frame_size: usize,
    frames: usize,
    long_frames: usize,
    /// Where the first long frame begins.
    long_from: u64,
    most_room: usize,
    longest_in_short: usize,
    slots: Box<[Slot]>,
    fresh: Box<[FrameDesc]>,
    huge: bool,
    backing: Backing,
}

// SAFETY: the memory and the slots' descriptors are reached only through a `Frame`, of which one exists for each
// chunk, or for the neighbours that make a long one (this module and the ports make them; they are neither Copy nor Clone), so
// no two threads touch one chunk.
unsafe impl Send for Umem {}
// SAFETY: as for Send.
unsafe impl Sync for Umem {}

impl std::fmt::Debug for Umem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Umem")
            .field("frames", &self.frames)
            .field("long_frames", &self.long_frames)
            .field("frame_size", &self.frame_size)
            .finish()
    }
}

static NEXT_ID: AtomicU32 = AtomicU32::new(1);

impl Umem {
    /// A UMEM registered with the kernel, and its frames.
    ///
    /// # Errors
    /// See [`UmemError`].
    pub fn kernel(shape: Shape) -> Result<(Arc<Self>, Vec<Frame>), UmemError> {
        let chunks = shape.check()?;
        let ring = QueueSize::new(shape.ring_size).map_err(|_| UmemError::RingSize(shape.ring_size))?;
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(shape.frame_size).map_err(|_| UmemError::FrameSize(shape.frame_size))?)
            .fill_queue_size(ring)
            .comp_queue_size(ring)
            .build()
            .map_err(|_| UmemError::FrameSize(shape.frame_size))?;
        let bytes = u64::from(chunks.get()) * u64::from(shape.frame_size);
        let megabytes = bytes >> 20;
        let with_huge =
            match shape.huge_pages {
                HugePages::Off => None,
                HugePages::Auto => xsk_rs::Umem::new(config, chunks, true).ok(),
                HugePages::Require => Some(xsk_rs::Umem::new(config, chunks, true).map_err(|source| {
                    UmemError::NoHugePages {
                        megabytes,
                        pages: bytes.div_ceil(2 << 20),
                        source: source.into(),
                    }
                })?),
            };
        let huge = with_huge.is_some();
        let (umem, descriptors) = match with_huge {
            Some(made) => made,
            None => xsk_rs::Umem::new(config, chunks, false).map_err(|source| UmemError::Refused {
                megabytes,
                source: source.into(),
            })?,
        };
        let first = descriptors[0];
        // SAFETY: the descriptor belongs to this UMEM, and nobody else has it yet; only its address is used.
        let data = unsafe { umem.data(&first) };
        let base = data.contents().as_ptr().cast_mut().wrapping_sub(first.addr());
        let base = NonNull::new(base).expect("the UMEM is mapped");
        Ok(Self::assemble(
            base,
            shape,
            descriptors,
            huge,
            Backing::Kernel(umem),
        ))
    }

    /// A UMEM of plain memory, for ports without a kernel.
    ///
    /// # Errors
    /// See [`UmemError`].
    pub fn memory(shape: Shape) -> Result<(Arc<Self>, Vec<Frame>), UmemError> {
        let chunks = shape.check()?.get() as usize;
        let bytes = chunks * shape.frame_size as usize;
        let map = |flags| {
            // SAFETY: a fresh anonymous mapping at an address of the kernel's choice; unmapped in Drop.
            unsafe {
                mmap_anonymous(
                    std::ptr::null_mut(),
                    bytes,
                    ProtFlags::READ | ProtFlags::WRITE,
                    flags,
                )
            }
        };
        let plain = MapFlags::PRIVATE | MapFlags::POPULATE;
        let with_huge = match shape.huge_pages {
            HugePages::Off => None,
            HugePages::Auto => map(plain | MapFlags::HUGETLB).ok(),
            HugePages::Require => {
                Some(
                    map(plain | MapFlags::HUGETLB).map_err(|source| UmemError::NoHugePages {
                        megabytes: (bytes >> 20) as u64,
                        pages: bytes.div_ceil(2 << 20) as u64,
                        source: source.into(),
                    })?,
                )
            }
        };
        let huge = with_huge.is_some();
        let address = match with_huge {
            Some(address) => address,
            None => map(plain).map_err(|source| UmemError::Refused {
                megabytes: (bytes >> 20) as u64,
                source: source.into(),
            })?,
        };
        let base = NonNull::new(address.cast::<u8>()).expect("mmap gave an address");
        let descriptors = vec![FrameDesc::default(); chunks];
        Ok(Self::assemble(base, shape, descriptors, huge, Backing::Memory))
    }

    fn assemble(
        base: NonNull<u8>,
        shape: Shape,
        descriptors: Vec<FrameDesc>,
        huge: bool,
        backing: Backing,
    ) -> (Arc<Self>, Vec<Frame>) {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let slots = descriptors
            .iter()
            .map(|d| Slot {
                descriptor: UnsafeCell::new(*d),
                holder: AtomicU16::new(0),
            })
            .collect();
        let umem = Self {
            id,
            base,
            frame_size: shape.frame_size as usize,
            frames: shape.frames as usize,
            long_frames: shape.long_frames as usize,
            long_from: u64::from(shape.frames) * u64::from(shape.frame_size),
            longest_in_short: match shape.long_frames {
                0 => shape.frame_size as usize,
                _ => shape.frame_size as usize - HEADROOM - BEHIND,
            },
            most_room: if shape.long_frames > 0 {
                LONG
            } else {
                shape.frame_size as usize
            } - HEADROOM,
            slots,
            fresh: descriptors.into_boxed_slice(),
            huge,
            backing,
        };
        let of_long = shape.chunks_of_long();
        let short = (0..shape.frames).map(|chunk| (chunk, Kind::LAST));
        let long = (0..shape.long_frames).map(|number| (shape.frames + number * of_long, Kind::LONG));
        let frames = short
            .chain(long)
            .map(|(chunk, kind)| Frame {
                address: u64::from(chunk) * u64::from(shape.frame_size) + HEADROOM as u64,
                length: 0,
                head: 0,
                kind,
                umem: id,
            })
            .collect();
        (Arc::new(umem), frames)
    }

    /// Number of frames, long ones among them.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames + self.long_frames
    }

    /// Number of long frames.
    #[must_use]
    pub fn long_frames(&self) -> usize {
        self.long_frames
    }

    /// Whether packets may come and go in pieces: there are long frames to put them together in.
    #[must_use]
    pub fn takes_pieces(&self) -> bool {
        self.long_frames > 0
    }

    /// Bytes that a fresh frame has room for that is no long one.
    #[inline]
    #[must_use]
    pub fn room(&self) -> usize {
        self.frame_size - HEADROOM
    }

    /// Bytes that the largest fresh frame has room for.
    #[inline]
    #[must_use]
    pub fn most_room(&self) -> usize {
        self.most_room
    }

    /// The longest packet to be received into a frame that is no long one: with long ones there is always room behind it for
    /// what may come to stand there.
    #[inline]
    pub(super) fn longest_in_short(&self) -> usize {
        self.longest_in_short
    }

    /// Whether huge pages back it.
    #[must_use]
    pub fn huge_pages(&self) -> bool {
        self.huge
    }

    /// Whether a frame is a long one, by its place: for what is about to move the frame. Whoever looks at its kind there makes
    /// compilers move the other bytes by themselves, which costs some 6 cycles.
    #[inline]
    pub(super) fn is_long(&self, frame: &Frame) -> bool {
        frame.address >= self.long_from
    }

    /// Bytes of a frame, headroom included.
    #[inline]
    fn size(&self, frame: &Frame) -> usize {
        if self.is_long(frame) {
            long_size()
        } else {
            self.frame_size
        }
    }

    #[inline]
    fn chunk(&self, frame: &Frame) -> usize {
        assert!(frame.umem == self.id, "a frame of another UMEM");
        // frame_size is a power of two
        (frame.address >> self.frame_size.trailing_zeros()) as usize
    }

    #[inline]
    fn offset(&self, frame: &Frame) -> usize {
        frame.address as usize & (self.frame_size - 1)
    }

    /// Bytes in front of the frame's data, headroom.
    #[inline]
    #[must_use]
    pub fn front_of(&self, frame: &Frame) -> usize {
        self.offset(frame)
    }

    /// Bytes from the start of the frame's data to the end of its frame.
    #[inline]
    #[must_use]
    pub fn room_of(&self, frame: &Frame) -> usize {
        self.size(frame) - self.offset(frame)
    }

    /// The frame's data.
    #[inline]
    #[must_use]
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        assert!(frame.umem == self.id, "a frame of another UMEM");
        // SAFETY: address and length lie within one frame of this UMEM (kept by every maker of a Frame and by
        // `set_length`); the borrow of the only handle of this frame excludes a writer.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(frame.address as usize), frame.len()) }
    }

    /// All bytes from the start of the frame's data to the end of its frame, for writing.
    #[inline]
    #[must_use]
    pub fn room_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        assert!(frame.umem == self.id, "a frame of another UMEM");
        let room = self.size(frame) - self.offset(frame);
        // SAFETY: as in `bytes`; the exclusive borrow of the only handle of this frame excludes everybody else.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(frame.address as usize), room) }
    }

    /// The bytes of the frame and so many in front of them, where the headroom is; `None` if it has not so many.
    #[inline]
    #[must_use]
    pub fn with_front(&self, frame: &Frame, front: usize) -> Option<&[u8]> {
        assert!(frame.umem == self.id, "a frame of another UMEM");
        if front > self.offset(frame) {
            return None;
        }
        // SAFETY: as in `bytes`; what is in front lies within the same frame, which the frame's owner alone touches.
        Some(unsafe {
            std::slice::from_raw_parts(
                self.base.as_ptr().add(frame.address as usize - front),
                front + frame.len(),
            )
        })
    }

    /// All bytes from so many in front of the frame's data to the end of its frame, for writing; `None` if the headroom has
    /// not so many.
    #[inline]
    #[must_use]
    pub fn room_with_front_mut<'a>(&'a self, frame: &'a mut Frame, front: usize) -> Option<&'a mut [u8]> {
        assert!(frame.umem == self.id, "a frame of another UMEM");
        let offset = self.offset(frame);
        if front > offset {
            return None;
        }
        let room = front + self.size(frame) - offset;
        // SAFETY: as in `with_front`; the exclusive borrow of the only handle of this frame excludes everybody else.
        Some(unsafe {
            std::slice::from_raw_parts_mut(self.base.as_ptr().add(frame.address as usize - front), room)
        })
    }

    /// So many bytes from the start of the frame's data, for writing: they are its data from here on.
    ///
    /// # Panics
    /// If they would reach beyond the frame.
    #[inline]
    #[must_use]
    pub fn data_mut<'a>(&'a self, frame: &'a mut Frame, length: usize) -> &'a mut [u8] {
        self.set_length(frame, length);
        // SAFETY: as in `room_mut`, of whose bytes these are the first.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(frame.address as usize), length) }
    }

    /// Sets the length of the frame's data.
    ///
    /// # Panics
    /// If the data would reach beyond the frame.
    #[inline]
    pub fn set_length(&self, frame: &mut Frame, length: usize) {
        assert!(
            frame.umem == self.id && length <= self.size(frame) - self.offset(frame),
            "data beyond the frame"
        );
        frame.length = length as u16;
    }

    /// Makes the frame's head part of its data: they begin where the kernel has the frame begin. The bytes of the head are
    /// whatever they were, and the caller writes all of them.
    #[inline]
    pub fn take_head(&self, frame: &mut Frame) {
        assert!(frame.umem == self.id, "a frame of another UMEM");
        frame.address -= u64::from(frame.head);
        frame.length += u16::from(frame.head);
        frame.head = 0;
    }

    /// Moves the frame's data to where the kernel has the frame begin, so that no byte of the head is sent.
    #[inline]
    pub(super) fn close_head(&self, frame: &mut Frame) {
        if frame.head > 0 {
            let (head, length) = (frame.head(), frame.len());
            self.take_head(frame);
            self.room_mut(frame).copy_within(head..head + length, 0);
            self.set_length(frame, length);
        }
    }

    /// Takes the first bytes of a received frame out of its data: they are the head that the XDP program has put there.
    ///
    /// A frame that has not so many is nothing that the program has handed over, and has no data.
    #[inline]
    pub(super) fn skip_head(&self, frame: &mut Frame, head: u8) {
        assert!(frame.umem == self.id, "a frame of another UMEM");
        if let Some(length) = frame.length.checked_sub(head.into()) {
            frame.address += u64::from(head);
            (frame.length, frame.head) = (length, head);
        } else {
            frame.length = 0;
        }
    }

    /// Makes the frame empty, with its data at the fresh place.
    #[inline]
    pub(super) fn reset(&self, frame: &mut Frame) {
        let chunk = self.chunk(frame);
        let address = (chunk * self.frame_size + HEADROOM) as u64;
        if frame.address != address || frame.head != 0 {
            // SAFETY: the frame's owner is the only one to touch its slot.
            unsafe { *self.slots[chunk].descriptor.get() = self.fresh[chunk] };
            (frame.address, frame.head) = (address, 0);
        }
        frame.length = 0;
    }

    /// The time of arrival that stands in front of a received frame's data, in ns of `CLOCK_MONOTONIC`.
    #[inline]
    #[must_use]
    pub fn stamp(&self, frame: &Frame) -> u64 {
        assert!(
            frame.umem == self.id && self.offset(frame) >= STAMP,
            "no room for a stamp"
        );
        let mut stamp = [0u8; STAMP];
        // SAFETY: the STAMP bytes before the data lie within the same frame, which the frame's owner alone touches.
        unsafe {
            let from = self.base.as_ptr().add(frame.address as usize - STAMP);
            std::ptr::copy_nonoverlapping(from, stamp.as_mut_ptr(), STAMP);
        }
        u64::from_ne_bytes(stamp)
    }

    /// Writes the time of arrival in front of the frame's data, as an XDP program does.
    #[inline]
    pub fn set_stamp(&self, frame: &mut Frame, stamp: u64) {
        assert!(
            frame.umem == self.id && self.offset(frame) >= STAMP,
            "no room for a stamp"
        );
        // SAFETY: as in `stamp`, with the exclusive borrow of the handle.
        unsafe {
            let to = self.base.as_ptr().add(frame.address as usize - STAMP);
            std::ptr::copy_nonoverlapping(stamp.to_ne_bytes().as_ptr(), to, STAMP);
        }
    }

    /// The kernel's side of it; `None` for plain memory.
    pub(super) fn registered(&self) -> Option<&xsk_rs::Umem> {
        match &self.backing {
            Backing::Kernel(umem) => Some(umem),
            Backing::Memory => None,
        }
    }

    /// Turns a frame into the kernel's descriptor of it: from here on the kernel owns the frame, for `holder`.
    #[inline]
    pub(super) fn lend(&self, mut frame: Frame, holder: u16) -> FrameDesc {
        assert!(!frame.is_long(), "the kernel never has a long frame");
        self.close_head(&mut frame);
        let chunk = self.chunk(&frame);
        // SAFETY: `frame` is the only handle of its chunk, and it ends here.
        let mut descriptor = unsafe { *self.slots[chunk].descriptor.get() };
        debug_assert_eq!(descriptor.addr() as u64, frame.address);
        if let Backing::Kernel(umem) = &self.backing {
            // SAFETY: the descriptor is of this UMEM and its frame is ours until it is produced; only the length is set.
            unsafe { umem.data_mut(&mut descriptor) }
                .cursor()
                .set_pos(frame.len());
        }
        self.slots[chunk].holder.store(holder, Ordering::Relaxed);
        descriptor
    }

    /// Turns a descriptor that the kernel gave back into the frame.
    ///
    /// The caller must just have consumed it from a receive or completion ring of this UMEM.
    #[inline]
    pub(super) fn regain(&self, descriptor: FrameDesc) -> Frame {
        let address = descriptor.addr() as u64;
        let frame = Frame {
            address,
            length: descriptor.lengths().data() as u16,
            head: 0,
            kind: if descriptor.has_more_frames() {
                Kind::PIECE
            } else {
                Kind::LAST
            },
            umem: self.id,
        };
        let chunk = self.chunk(&frame);
        self.slots[chunk].holder.store(0, Ordering::Relaxed);
        // Whether more pieces followed is nothing that what is sent in this frame should say.
        let mut descriptor = descriptor;
        descriptor.set_options(0);
        // SAFETY: the kernel gave the frame back, so `frame` is its only handle.
        unsafe { *self.slots[chunk].descriptor.get() = descriptor };
        frame
    }

    /// Takes back all frames that the kernel held for a port whose socket is closed.
    pub(super) fn recover(&self, holder: u16, mut take: impl FnMut(Frame)) {
        for (chunk, slot) in self.slots.iter().enumerate() {
            if slot.holder.load(Ordering::Relaxed) == holder {
                take(self.regain(self.fresh[chunk]));
            }
        }
    }
}

/// Apart, so that it is a branch that nearly always goes the other way, and nothing waits for the comparison.
#[cold]
fn long_size() -> usize {
    LONG
}

impl Drop for Umem {
    fn drop(&mut self) {
        if matches!(self.backing, Backing::Memory) {
            let bytes = self.slots.len() * self.frame_size;
            // SAFETY: the mapping made in `memory`, of this size; no frame can be used any more.
            let _ = unsafe { munmap(self.base.as_ptr().cast(), bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            frame_size: 2048,
            frames: 64,
            long_frames: 3,
            ring_size: 64,
            huge_pages: HugePages::Off,
        }
    }

    #[test]
    fn frames_do_not_overlap() {
        let (umem, mut frames) = Umem::memory(shape()).unwrap();
        for (number, frame) in frames.iter_mut().enumerate() {
            umem.room_mut(frame).fill(number as u8);
            let room = if frame.is_long() {
                umem.most_room()
            } else {
                umem.room()
            };
            umem.set_length(frame, room);
        }
        assert_eq!(frames.iter().filter(|frame| frame.is_long()).count(), 3);
        for (number, frame) in frames.iter().enumerate() {
            assert!(umem.bytes(frame).iter().all(|byte| *byte == number as u8));
        }
    }

    #[test]
    fn a_stamp_does_not_touch_the_data() {
        let (umem, mut frames) = Umem::memory(shape()).unwrap();
        let frame = &mut frames[1];
        umem.room_mut(frame).fill(7);
        umem.set_stamp(frame, 0x0102_0304_0506_0708);
        assert_eq!(umem.stamp(frame), 0x0102_0304_0506_0708);
        assert!(umem.room_mut(frame).iter().all(|byte| *byte == 7));
    }

    #[test]
    fn the_headroom_is_in_front_and_ends() {
        let (umem, mut frames) = Umem::memory(shape()).unwrap();
        frames.iter_mut().for_each(|frame| umem.room_mut(frame).fill(7));
        let frame = &mut frames[1];
        umem.set_length(frame, 3);
        umem.room_with_front_mut(frame, 4).unwrap()[..6].copy_from_slice(&[1, 2, 3, 4, 5, 6]);
        assert_eq!(umem.with_front(frame, 4), Some(&[1, 2, 3, 4, 5, 6, 7][..]));
        assert_eq!(umem.bytes(frame), [5, 6, 7]);
        assert_eq!(
            umem.room_with_front_mut(frame, HEADROOM).map(|room| room.len()),
            Some(2048)
        );
        assert!(umem.with_front(frame, HEADROOM + 1).is_none());
        assert!(umem.room_with_front_mut(frame, HEADROOM + 1).is_none());
        assert!(umem.bytes(&frames[0]).is_empty());
    }

    #[test]
    fn a_head_is_in_front_of_the_data_until_it_is_taken_or_closed() {
        let (umem, mut frames) = Umem::memory(shape()).unwrap();
        let frame = &mut frames[1];
        let arrive = |frame: &mut Frame| {
            umem.reset(frame);
            // As a driver in zero-copy mode: the data are where they would be without a head.
            frame.address -= 4;
            umem.room_mut(frame)[..7].copy_from_slice(&[9, 9, 9, 9, 1, 2, 3]);
            umem.set_length(frame, 7);
            umem.skip_head(frame, 4);
            assert_eq!((umem.bytes(frame), frame.head()), (&[1, 2, 3][..], 4));
        };
        arrive(frame);
        umem.close_head(frame);
        assert_eq!((umem.bytes(frame), frame.head()), (&[1, 2, 3][..], 0));
        assert_eq!(umem.room_mut(frame).len(), umem.room() + 4);
        arrive(frame);
        umem.take_head(frame);
        assert_eq!((umem.bytes(frame), frame.head()), (&[9, 9, 9, 9, 1, 2, 3][..], 0));
        arrive(frame);
        umem.reset(frame);
        umem.close_head(frame);
        assert_eq!((frame.len(), umem.room_mut(frame).len()), (0, umem.room()));
        // Less than the program hands over.
        umem.set_length(frame, 3);
        umem.skip_head(frame, 4);
        assert_eq!((frame.len(), frame.head()), (0, 0));
    }

    #[test]
    #[should_panic(expected = "another UMEM")]
    fn a_frame_of_another_umem_is_refused() {
        let (_one, frames) = Umem::memory(shape()).unwrap();
        let (two, _) = Umem::memory(shape()).unwrap();
        let _ = two.bytes(&frames[0]);
    }

    #[test]
    #[should_panic(expected = "beyond the frame")]
    fn data_stay_within_the_frame() {
        let (umem, mut frames) = Umem::memory(shape()).unwrap();
        umem.set_length(&mut frames[0], umem.room() + 1);
    }
}
