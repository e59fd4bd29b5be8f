//! The handle of one frame of a UMEM: whoever has it may touch the frame's bytes, and nobody else.
//!
//! Neither `Copy` nor `Clone`, made only by [`super::umem`] and by the ports that get a frame back from the kernel,
//! so that a frame is at any moment in exactly one place.

/// Bytes of a long frame, headroom included.
pub(in crate::port) const LONG: usize = 16384;

/// What a frame is.
///
/// Not an enum: its unused values would stand for `None` and `Ok` around a frame, for which compilers move frames as fifteen
/// bytes and one, at some 6 cycles each time.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(in crate::port) struct Kind(u8);

impl Kind {
    /// A chunk of the UMEM, with all of a packet or the last piece of one.
    pub(in crate::port) const LAST: Self = Self(0);
    /// A chunk of the UMEM, with a piece that others follow, in the next frames.
    pub(in crate::port) const PIECE: Self = Self(1);
    /// One of [`LONG`] bytes.
    pub(in crate::port) const LONG: Self = Self(2);
}

/// One frame: where its data begin in the UMEM, and how long they are.
///
/// A long one takes several chunks of the UMEM that are neighbours. The kernel never has it: it holds a packet that came in
/// pieces, or leaves in pieces.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a frame that is forgotten is lost: give it to a pool, a port or a ring"]
pub struct Frame {
    /// Offset of the first byte of data from the start of the UMEM.
    pub(in crate::port) address: u64,
    /// The UMEM that the address belongs to.
    pub(in crate::port) umem: u32,
    /// Bytes of data.
    pub(in crate::port) length: u16,
    /// Bytes in front of the data that an XDP program has made room with: that far in front the kernel has the frame begin.
    pub(in crate::port) head: u8,
    /// What it is of its packet.
    pub(in crate::port) kind: Kind,
}

impl Frame {
    /// Bytes of data.
    #[inline]
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "an empty frame is one that was not written yet, not a state"
    )]
    pub fn len(&self) -> usize {
        self.length.into()
    }

    /// Bytes in front of the data that an XDP program has made for headers. What is sent begins in front of them.
    #[inline]
    #[must_use]
    pub fn head(&self) -> usize {
        self.head.into()
    }

    /// Whether the next frame has more of its packet.
    #[inline]
    #[must_use]
    pub(in crate::port) fn is_piece(&self) -> bool {
        self.kind == Kind::PIECE
    }

    /// Whether it is a long one.
    #[inline]
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.kind == Kind::LONG
    }
}
