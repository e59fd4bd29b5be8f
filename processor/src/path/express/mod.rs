//! The short way of packets whose flow is known: from the frame that came to the engine's job in one run, without a descriptor.
//!
//! The stages exist for what must be found out about a packet. Of nearly every packet nothing must: its form is the usual one
//! ([`crate::wire::packet::Usual`]), its flow is remembered ([`super::recall`]) and its SA is here. Then what the stages would write into a
//! descriptor and read again stays in registers: the same functions (layout.rs, [`super::open`]) are compiled in line over
//! a packet of which most is known beforehand. What is the same for packets that follow one another is found out once: of
//! one flow, that its form is the usual one; under one SA, how it seals and opens. That stands in functions of its own, never
//! in line, so that the loops past them keep their registers. Frames change hands by the burst. Outbound, one loop reads packets that
//! are sealed alike and another lays them out, each compiled apart for what most packets are (20 of 157 cycles a packet, Zen 3).
//!
//! It takes packets from the front of a burst and ends at the first that is anything else, before it has counted anything of it
//! or changed more than finished its checksum: that one and those behind it go the long way, so that nothing overtakes. Never
//! allocates.

mod inbound;
mod outbound;

use std::ops::Range;

pub use inbound::open_known;
pub use outbound::seal_known;

/// What packets that follow one another have in common, of which the number of the first is noted, and the numbers of them all;
/// there are `count` packets.
fn runs<T: Copy>(firsts: &[(T, usize)], count: usize) -> impl Iterator<Item = (T, Range<usize>)> {
    firsts.iter().enumerate().map(move |(number, &(common, begin))| {
        let end = firsts.get(number + 1).map_or(count, |(_, next)| *next);
        (common, begin.min(count)..end.min(count))
    })
}
