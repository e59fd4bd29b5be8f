//! The short way of packets whose flow is known: from the frame that came to the engine's job in one run, without a descriptor.
//!
//! The stages exist for what must be found out about a packet. Of nearly every packet nothing must: its form is the usual one
//! ([`Usual`]), its flow is remembered ([`super::recall`]) and its SA is here. Then what the stages would write into a
//! descriptor and read again stays in registers: the same functions (layout.rs, [`super::open`]) are compiled in line over
//! a packet of which most is known beforehand. What is the same for packets that follow one another is found out once: of
//! one flow, that its form is the usual one; under one SA, how it seals. Frames change hands by the burst.
//!
//! It takes packets from the front of a burst and ends at the first that is anything else, before it has changed or counted
//! anything of it: that one and those behind it go the long way, so that nothing overtakes. Never allocates.

mod inbound;
mod outbound;

use std::ops::Range;

use crate::wire::packet::{Packet, Usual};
use crate::wire::transport;

use super::recall::{Recall, Slot};

pub use inbound::open_known;
pub use outbound::seal_known;

/// What [`Usual`] reads. In line always: most of it is known beforehand, and what nobody asks for is never written.
#[inline(always)]
fn usual(frame: &[u8]) -> Option<Packet> {
    let mut packet = Packet::EMPTY;
    Usual::of(frame)?.write(&mut packet);
    Some(packet)
}

/// What a frame says, its flow if that is known, and whether that is the flow of the frame before, which came from the same place.
/// What opens a TCP connection is of no known flow.
///
/// Not a [`Packet`], which would be put down and read again, since it may come from either way.
#[inline(always)]
fn flow<'f, 'a>(
    ways: &'a Recall,
    frame: &'f [u8],
    from: u64,
    last: Option<&'a Slot>,
) -> Option<(Usual<'f>, &'a Slot, bool)> {
    let like = last.filter(|slot| Recall::is_of(slot, frame));
    let usual = match like {
        Some(slot) => Usual::again(frame, slot.protocol())?,
        None => Usual::of(frame)?,
    };
    let slot = match like {
        Some(slot) => slot,
        None => {
            let mut packet = Packet::EMPTY;
            usual.write(&mut packet);
            ways.slot((&packet, frame), from, None)?
        }
    };
    (usual.tcp_flags() & transport::SYN == 0).then_some((usual, slot, like.is_some()))
}

/// What packets that follow one another have in common, of which the number of the first is noted, and the numbers of them all;
/// there are `count` packets.
fn runs<T: Copy>(firsts: &[(T, usize)], count: usize) -> impl Iterator<Item = (T, Range<usize>)> {
    firsts.iter().enumerate().map(move |(number, &(common, begin))| {
        let end = firsts.get(number + 1).map_or(count, |(_, next)| *next);
        (common, begin.min(count)..end.min(count))
    })
}
