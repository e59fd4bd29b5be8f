//! The free frames of one worker, last freed first taken: the working set stays small enough for the cache.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::BATCH;
use super::frame::Frame;
use super::umem::Umem;

/// Stacks of free frames, long ones apart. Never allocates after it was made.
#[derive(Debug)]
pub struct FramePool {
    umem: Arc<Umem>,
    free: Vec<Frame>,
    /// What the last batch has left as a whole: taken as a whole by the next, so that frames are not moved one by one.
    left: ArrayVec<Frame, BATCH>,
    long: Vec<Frame>,
}

impl FramePool {
    /// A pool of `frames`, with room for every frame of `umem`.
    #[must_use]
    pub fn new(umem: Arc<Umem>, frames: Vec<Frame>) -> Self {
        let mut pool = Self {
            free: Vec::with_capacity(umem.frames() - umem.long_frames()),
            left: ArrayVec::new(),
            long: Vec::with_capacity(umem.long_frames()),
            umem,
        };
        frames.into_iter().for_each(|frame| pool.put(frame));
        pool
    }

    /// The UMEM whose frames these are.
    #[inline]
    #[must_use]
    pub fn umem(&self) -> &Arc<Umem> {
        &self.umem
    }

    /// A free frame that is no long one, empty, with its data at the place where room for headers is in front.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        let mut frame = self.free.pop().or_else(|| self.left.pop())?;
        self.umem.reset(&mut frame);
        Some(frame)
    }

    /// A free long frame.
    pub fn take_long(&mut self) -> Option<Frame> {
        let mut frame = self.long.pop()?;
        self.umem.reset(&mut frame);
        Some(frame)
    }

    /// A free frame, which is a long one or not.
    pub fn take_as(&mut self, long: bool) -> Option<Frame> {
        if long { self.take_long() } else { self.take() }
    }

    /// A free frame that has room for so many bytes: a long one only if no other has.
    #[inline]
    pub fn take_for(&mut self, length: usize) -> Option<Frame> {
        if length <= self.umem.room() {
            self.take()
        } else if length <= self.umem.most_room() {
            self.take_long()
        } else {
            None
        }
    }

    /// Exchanges a fresh frame for a long one, if one is free.
    #[cold]
    pub fn widen(&mut self, frame: &mut Frame) {
        if let Some(long) = self.take_long() {
            let short = std::mem::replace(frame, long);
            self.put(short);
        }
    }

    /// So many free frames, or as many as there are, for packets of a batch. None is a long one.
    #[inline]
    pub fn take_many(&mut self, wanted: usize) -> ArrayVec<Frame, BATCH> {
        let mut taken = std::mem::take(&mut self.left);
        if taken.len() > wanted {
            self.free.extend(taken.drain(wanted..));
        } else {
            let more = (wanted - taken.len()).min(taken.remaining_capacity());
            let kept = self.free.len().saturating_sub(more);
            taken.extend(self.free.drain(kept..).rev());
        }
        taken.iter_mut().for_each(|frame| self.umem.reset(frame));
        taken
    }

    /// Takes frames of [`Self::take_many`], or what they were exchanged for, back: the first of them is the next to be taken.
    #[inline]
    pub fn put_many(&mut self, frames: ArrayVec<Frame, BATCH>) {
        frames.into_iter().rev().for_each(|frame| self.put(frame));
    }

    /// Takes a frame back.
    #[inline]
    pub fn put(&mut self, frame: Frame) {
        if self.umem.is_long(&frame) {
            return self.put_long(frame);
        }
        debug_assert!(
            self.free.len() < self.umem.frames(),
            "more frames than the UMEM has"
        );
        self.free.push(frame);
    }

    /// Takes so many frames of a batch back, the first ones, of which none is a long one.
    #[inline]
    pub(crate) fn put_first(&mut self, frames: &mut ArrayVec<Frame, BATCH>, count: usize) {
        if self.left.is_empty() && count == frames.len() {
            std::mem::swap(&mut self.left, frames);
        } else {
            self.free.extend(frames.drain(..count));
        }
    }

    #[cold]
    fn put_long(&mut self, frame: Frame) {
        debug_assert!(
            self.long.len() < self.umem.long_frames(),
            "more frames than the UMEM has"
        );
        self.long.push(frame);
    }

    /// How many are free, besides long ones.
    #[inline]
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len() + self.left.len()
    }

    /// How many long ones are free.
    #[inline]
    #[must_use]
    pub fn available_long(&self) -> usize {
        self.long.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::port::umem::{HugePages, Shape};

    fn pool() -> FramePool {
        let shape = Shape {
            frame_size: 2048,
            frames: 128,
            long_frames: 0,
            ring_size: 64,
            huge_pages: HugePages::Off,
        };
        let (umem, frames) = Umem::memory(shape).unwrap();
        FramePool::new(umem, frames)
    }

    #[test]
    fn what_a_batch_leaves_as_a_whole_is_taken_first() {
        let mut pool = pool();
        let mut taken = pool.take_many(40);
        let first: HashSet<u64> = taken.iter().map(|frame| frame.address).collect();
        pool.put_first(&mut taken, 40);
        assert_eq!((taken.len(), pool.available()), (0, 128));
        let mut again = pool.take_many(40);
        assert!(again.iter().all(|frame| first.contains(&frame.address)));
        // Of two, the first.
        let mut others = pool.take_many(30);
        pool.put_first(&mut again, 40);
        pool.put_first(&mut others, 30);
        assert_eq!((again.len(), others.len(), pool.available()), (0, 0, 128));
        assert!(
            pool.take_many(40)
                .iter()
                .all(|frame| first.contains(&frame.address))
        );
    }

    proptest! {
        #[test]
        fn frames_are_in_one_place_each(steps in prop::collection::vec((0usize..70, 0usize..70, 0usize..5), 1..40)) {
            let mut pool = pool();
            for (wanted, kept, singles) in steps {
                let before = pool.available();
                let mut taken = pool.take_many(wanted);
                prop_assert_eq!(taken.len(), wanted.min(BATCH).min(before));
                prop_assert_eq!(pool.available() + taken.len(), before);
                let others: Vec<Frame> = std::iter::from_fn(|| pool.take()).take(singles).collect();
                let count = taken.len().saturating_sub(kept);
                pool.put_first(&mut taken, count);
                pool.put_many(taken);
                others.into_iter().for_each(|frame| pool.put(frame));
                prop_assert_eq!(pool.available(), 128);
            }
            let all: HashSet<u64> = std::iter::from_fn(|| pool.take()).map(|frame| frame.address).collect();
            prop_assert_eq!(all.len(), 128);
        }
    }
}
