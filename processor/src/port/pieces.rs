//! Packets that come and go in pieces, because no frame of the kernel's has room for them (`XDP_USE_SG`).
//!
//! Everything behind a port is made for packets in one piece of memory: an AEAD engine's jobs, checksums, headers that are put
//! in front. So a packet in pieces is put together in a long frame when it is received, and taken apart when it is sent: two copies,
//! which only packets pay that are longer than a frame. Never allocates.

use super::frame::{Frame, Kind};
use super::pool::FramePool;
use super::{Burst, KernelDrops};

/// Puts received packets together.
#[derive(Debug, Default)]
pub struct Gatherer {
    state: State,
    dropped: KernelDrops,
}

#[derive(Debug, Default)]
enum State {
    /// What comes next begins a packet.
    #[default]
    Between,
    /// The pieces so far.
    Within(Frame),
    /// The rest of a packet that was dropped.
    Dropping,
}

impl Gatherer {
    /// Whether what comes next begins a packet.
    #[inline]
    #[must_use]
    pub fn is_between(&self) -> bool {
        matches!(self.state, State::Between)
    }

    /// Puts what was received into `burst`, from this place on, together: what is left there are packets. Frames that are not
    /// needed any more go to `pool`.
    #[inline]
    pub fn gather(&mut self, burst: &mut Burst, from: usize, pool: &mut FramePool) {
        let longest = pool.umem().longest_in_short();
        let is_whole = |frame: &Frame| !frame.is_piece() && frame.head() + frame.len() <= longest;
        if !(self.is_between() && burst[from..].iter().all(is_whole)) {
            self.gather_pieces(burst, from, pool, is_whole);
        }
    }

    #[cold]
    fn gather_pieces(
        &mut self,
        burst: &mut Burst,
        from: usize,
        pool: &mut FramePool,
        is_whole: impl Fn(&Frame) -> bool,
    ) {
        let received: Burst = burst.drain(from..).collect();
        for frame in received {
            if self.is_between() && is_whole(&frame) {
                burst.push(frame);
            } else {
                burst.extend(self.add(frame, pool));
            }
        }
    }

    /// Takes the next piece; gives the packet if it was the last.
    fn add(&mut self, mut piece: Frame, pool: &mut FramePool) -> Option<Frame> {
        let umem = std::sync::Arc::clone(pool.umem());
        let more_follow = piece.is_piece();
        piece.kind = Kind::LAST;
        let whole = match std::mem::take(&mut self.state) {
            State::Within(whole) => Some(whole),
            State::Dropping => None,
            State::Between => match pool.take_long() {
                Some(mut whole) => {
                    umem.set_stamp(&mut whole, umem.stamp(&piece));
                    Some(whole)
                }
                // What is to stand behind it may have no room: then it is dropped as too long.
                None if !more_follow => return Some(piece),
                None => {
                    self.dropped.fill_empty += 1;
                    None
                }
            },
        };
        let whole = whole.and_then(|mut whole| {
            let (from, bytes) = (whole.len(), umem.bytes(&piece));
            if let Some(place) = umem.room_mut(&mut whole).get_mut(from..from + bytes.len()) {
                place.copy_from_slice(bytes);
                umem.set_length(&mut whole, from + bytes.len());
                return Some(whole);
            }
            self.dropped.too_long += 1;
            pool.put(whole);
            None
        });
        pool.put(piece);
        match whole {
            Some(whole) if more_follow => self.state = State::Within(whole),
            None if more_follow => self.state = State::Dropping,
            whole => return whole,
        }
        None
    }

    /// What was dropped so far: longer than a long frame, or met none that was free.
    #[must_use]
    pub fn dropped(&self) -> KernelDrops {
        self.dropped
    }

    /// Frames that it has.
    #[must_use]
    pub fn held(&self) -> usize {
        usize::from(matches!(self.state, State::Within(_)))
    }

    /// Gives up the packet that it has pieces of.
    pub fn give_up(self, pool: &mut FramePool) {
        if let State::Within(whole) = self.state {
            pool.put(whole);
        }
    }
}

/// Takes a packet in a long frame apart: `send` gets at most `room` pieces in frames of the pool, each of which says whether more follow.
///
/// # Errors
/// Gives the frame back if there is no room for all of it, or no frames; then nothing was sent.
pub fn scatter(
    frame: Frame,
    room: usize,
    pool: &mut FramePool,
    mut send: impl FnMut(Frame),
) -> Result<(), Frame> {
    let umem = std::sync::Arc::clone(pool.umem());
    let mut left = frame.len().div_ceil(umem.room());
    if left > room || left > pool.available() {
        return Err(frame);
    }
    for bytes in umem.bytes(&frame).chunks(umem.room()) {
        let Some(mut piece) = pool.take() else {
            unreachable!("there are as many")
        };
        umem.room_mut(&mut piece)[..bytes.len()].copy_from_slice(bytes);
        umem.set_length(&mut piece, bytes.len());
        left -= 1;
        if left > 0 {
            piece.kind = Kind::PIECE;
        }
        send(piece);
    }
    pool.put(frame);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::umem::{HugePages, Shape, Umem};
    use super::*;

    fn pool(long_frames: u32) -> FramePool {
        let (umem, frames) = Umem::memory(Shape {
            frame_size: 2048,
            frames: 64,
            long_frames,
            ring_size: 64,
            huge_pages: HugePages::Off,
        })
        .unwrap();
        FramePool::new(umem, frames)
    }

    /// The pieces of a packet as a kernel makes them.
    fn pieces(packet: &[u8], pool: &mut FramePool) -> Vec<Frame> {
        let umem = Arc::clone(pool.umem());
        let count = packet.len().div_ceil(umem.room()).max(1);
        (0..count)
            .map(|number| {
                let from = number * umem.room();
                let bytes = &packet[from..packet.len().min(from + umem.room())];
                let mut frame = pool.take().unwrap();
                umem.room_mut(&mut frame)[..bytes.len()].copy_from_slice(bytes);
                umem.set_length(&mut frame, bytes.len());
                umem.set_stamp(&mut frame, number as u64 + 7);
                frame.kind = if number + 1 < count {
                    Kind::PIECE
                } else {
                    Kind::LAST
                };
                frame
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever comes, in whatever order of lengths: each packet is whole or counted, and no frame is lost.
        #[test]
        fn packets_come_together_and_apart(lengths in prop::collection::vec(0usize..20_000, 1..20), free in 0u32..3) {
            let mut pool = pool(free);
            let umem = Arc::clone(pool.umem());
            let mut gatherer = Gatherer::default();
            let (mut too_long, mut unmet) = (0, 0);
            for (number, length) in lengths.into_iter().enumerate() {
                let packet: Vec<u8> = (0..length).map(|at| (at * 7 + number) as u8).collect();
                // They come in two bursts, of which the second has been begun by another packet.
                let mut all = pieces(&packet, &mut pool).into_iter();
                let mut burst: Burst = all.by_ref().take(2).collect();
                gatherer.gather(&mut burst, 0, &mut pool);
                let from = burst.len();
                burst.extend(all);
                gatherer.gather(&mut burst, from, &mut pool);
                prop_assert_eq!(gatherer.held(), 0);
                prop_assert!(burst.len() <= 1);
                match burst.pop() {
                    Some(frame) => {
                        prop_assert_eq!(umem.bytes(&frame), &packet[..]);
                        prop_assert_eq!(umem.stamp(&frame), 7);
                        prop_assert!(free == 0 || frame.is_long() || umem.room() - frame.len() >= 128);
                        if frame.is_long() {
                            let mut sent = Vec::new();
                            let mut ended = false;
                            let taken_apart = scatter(frame, 9, &mut pool, |mut piece| {
                                assert!(!ended && !piece.is_long());
                                ended = !piece.is_piece();
                                piece.kind = Kind::LAST;
                                sent.push(piece);
                            });
                            prop_assert!(taken_apart.is_ok() && ended);
                            let bytes: Vec<u8> = sent.iter().flat_map(|piece| umem.bytes(piece)).copied().collect();
                            prop_assert_eq!(bytes, packet);
                            sent.into_iter().for_each(|piece| pool.put(piece));
                        } else {
                            pool.put(frame);
                        }
                    }
                    None if free == 0 => unmet += 1,
                    None => too_long += 1,
                }
                prop_assert_eq!(gatherer.dropped().too_long, too_long);
                prop_assert_eq!(gatherer.dropped().fill_empty, unmet);
                prop_assert_eq!((pool.available(), pool.available_long()), (64, free as usize));
            }
        }
    }

    #[test]
    fn what_has_no_room_is_given_back_whole() {
        let mut pool = pool(1);
        let umem = Arc::clone(pool.umem());
        let mut frame = pool.take_long().unwrap();
        umem.set_length(&mut frame, 9000);
        let frame = scatter(frame, 5, &mut pool, |_| panic!("it takes six")).unwrap_err();
        assert_eq!(frame.len(), 9000);
        let kept: Vec<Frame> = (0..59).map(|_| pool.take().unwrap()).collect();
        let frame = scatter(frame, 6, &mut pool, |_| panic!("there are five")).unwrap_err();
        kept.into_iter().chain([frame]).for_each(|frame| pool.put(frame));
        assert_eq!((pool.available(), pool.available_long()), (64, 1));
    }

    #[test]
    fn half_a_packet_is_given_up() {
        let mut pool = pool(1);
        let mut gatherer = Gatherer::default();
        let mut all = pieces(&[1; 3000], &mut pool).into_iter();
        let mut burst: Burst = all.next().into_iter().collect();
        gatherer.gather(&mut burst, 0, &mut pool);
        assert!(burst.is_empty());
        assert_eq!((gatherer.held(), pool.available_long()), (1, 0));
        gatherer.give_up(&mut pool);
        all.for_each(|piece| pool.put(piece));
        assert_eq!((pool.available(), pool.available_long()), (64, 1));
    }
}
