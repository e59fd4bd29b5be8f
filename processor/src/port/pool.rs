//! The free frames of one worker, last freed first taken: the working set stays small enough for the cache.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::BATCH;
use super::frame::Frame;
use super::umem::Umem;

/// A stack of free frames. Never allocates after it was made.
#[derive(Debug)]
pub struct FramePool {
    umem: Arc<Umem>,
    free: Vec<Frame>,
}

impl FramePool {
    /// A pool of `frames`, with room for every frame of `umem`.
    #[must_use]
    pub fn new(umem: Arc<Umem>, frames: Vec<Frame>) -> Self {
        let mut free = Vec::with_capacity(umem.frames());
        free.extend(frames);
        Self { umem, free }
    }

    /// The UMEM whose frames these are.
    #[inline]
    #[must_use]
    pub fn umem(&self) -> &Arc<Umem> {
        &self.umem
    }

    /// A free frame, empty, with its data at the place where room for headers is in front.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        let mut frame = self.free.pop()?;
        self.umem.reset(&mut frame);
        Some(frame)
    }

    /// So many free frames, or as many as there are, for packets of a batch.
    #[inline]
    pub fn take_many(&mut self, wanted: usize) -> ArrayVec<Frame, BATCH> {
        std::iter::from_fn(|| self.take())
            .take(wanted.min(BATCH))
            .collect()
    }

    /// Takes frames of [`Self::take_many`], or what they were exchanged for, back: the first of them is the next to be taken.
    #[inline]
    pub fn put_many(&mut self, frames: ArrayVec<Frame, BATCH>) {
        frames.into_iter().rev().for_each(|frame| self.put(frame));
    }

    /// Takes a frame back.
    #[inline]
    pub fn put(&mut self, frame: Frame) {
        debug_assert!(
            self.free.len() < self.umem.frames(),
            "more frames than the UMEM has"
        );
        self.free.push(frame);
    }

    /// How many are free.
    #[inline]
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Empties the pool.
    pub fn into_frames(self) -> Vec<Frame> {
        self.free
    }
}
