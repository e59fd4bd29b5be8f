//! The handle of one frame of a UMEM: whoever has it may touch the frame's bytes, and nobody else.
//!
//! Neither `Copy` nor `Clone`, made only by [`super::umem`] and by the ports that get a frame back from the kernel,
//! so that a frame is at any moment in exactly one place.

/// Bytes of a long frame, headroom included.
pub(in crate::port) const LONG: usize = 16384;

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
    /// Whether it is of [`LONG`] bytes instead of a chunk of the UMEM.
    pub(in crate::port) is_long: bool,
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

    /// Whether it is a long one.
    #[inline]
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.is_long
    }
}
