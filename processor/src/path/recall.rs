//! The ways of the flows seen last: what guard, rules and the SA table found for the packet before, found by its headers.
//!
//! Nearly every packet belongs to a flow of which one went through all stages a moment ago, under the very same tables. What
//! they would find is a function of the tables, of where the packet comes from (a guest port; an SA) and of the headers that
//! they read; so a packet that has all of these in common with an earlier one takes its way. Reads parsed packets; writes
//! everything that guard, classify and select SA write, and counts the rule.
//!
//! Only what those stages read is in the key, and all of it: both MACs, EtherType, DSCP, both addresses, protocol and ports.
//! What they read more of is never remembered and goes through them one by one: tags, options and extension headers,
//! fragments, what opens a TCP connection, ARP, ICMP, groups, what is dropped, and what a rule lets pass in a second form or
//! a section in monitor mode has an opinion of. A way dies with its tables ([`Recall::attend`]). A flow has two places, dealt
//! with a secret: it takes the first that is free, and if none is, the first. Allocates nothing after it is made.
//!
//! Guard, classify and select SA take 160 cycles of a packet of a known flow (`guestseal-perf pipeline`, 64 bytes, 10,000
//! rules, Zen 4); this takes 28.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use arrayvec::ArrayVec;
use guestseal_rules::classify::Protection;
use guestseal_rules::flow_cache::fold;
use guestseal_rules::model::{HostIndex, KeyIndex, NetworkIndex, RuleIndex};

use crate::port::BATCH;
use crate::port::umem::Umem;
use crate::sa::slots::Place;
use crate::telemetry::rules::RuleCounters;
use crate::wire::ethernet::MacAddress;
use crate::wire::packet::{Fragment, Packet};
use crate::wire::{ethernet, ip4, ip6, transport};

use super::batch::{Batch, Descriptor, Egress, live};
use super::endpoints::Endpoint;
use super::open::readdress;
use super::tables::Tables;

/// Flows whose way a worker remembers: 128 bytes each, 1 MiB in all.
const FLOWS: usize = 8192;

/// Words of headers that tell flows apart.
const WORDS: usize = 8;

/// Those of a flow of IPv4.
pub(super) type Words = [u64; 5];

/// The ways that one worker remembers.
#[derive(Debug)]
pub struct Recall {
    slots: Box<[Slot]>,
    secret: [u64; 2],
    /// The tables that the ways of this generation were found in. Held, so that no other ones can have their address.
    tables: Option<Arc<Tables>>,
    /// Of the tables; 0 before there are any, when nothing is remembered.
    generation: u64,
    /// Packets whose way was known.
    pub hits: u64,
}

/// A flow and its way: two cache lines.
#[derive(Copy, Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Slot {
    headers: [u64; WORDS],
    generation: u64,
    from: u64,
    pub(super) way: Way,
}

const _: () = assert!(size_of::<Slot>() == 128, "two cache lines");

impl Slot {
    /// Whether these are the flow's headers. Those of IPv4 have fewer words: their EtherType is among the first two.
    #[inline(always)]
    fn has<const N: usize>(&self, words: &[u64; N]) -> bool {
        let headers = self.headers.first_chunk();
        headers.is_some_and(|headers| equal(headers, words))
    }

    /// The protocol of a flow of IPv4.
    #[inline(always)]
    pub(super) fn protocol(&self) -> u8 {
        self.headers[2].to_ne_bytes()[7]
    }
}

/// What the stages found.
#[derive(Copy, Clone, Debug)]
pub(super) struct Way {
    pub(super) rule: RuleIndex,
    pub(super) sa: Option<Place>,
    /// The MACs that an opened packet of a flat network gets: whose it is, and whose it was.
    pub(super) macs: Option<[MacAddress; 2]>,
    pub(super) egress: Egress,
    pub(super) seal: Option<(KeyIndex, Protection)>,
    pub(super) peer: Option<HostIndex>,
    pub(super) network: NetworkIndex,
    pub(super) overlay: bool,
}

/// No flow's: headers without an EtherType.
const EMPTY: Slot = Slot {
    headers: [0; WORDS],
    generation: 0,
    from: 0,
    way: Way {
        rule: RuleIndex(0),
        sa: None,
        macs: None,
        egress: Egress::Guest(0),
        seal: None,
        peer: None,
        network: NetworkIndex(0),
        overlay: false,
    },
};

/// What nobody else knows.
pub(super) fn secret() -> [u64; 2] {
    [0, 1].map(|number| RandomState::new().hash_one(number))
}

impl Default for Recall {
    fn default() -> Self {
        Self {
            slots: vec![EMPTY; FLOWS].into_boxed_slice(),
            secret: secret(),
            tables: None,
            generation: 0,
            hits: 0,
        }
    }
}

impl Recall {
    /// Forgets every way that was not found in these tables. Whether they are others than before; those are control's to free.
    #[inline]
    pub fn attend(&mut self, tables: &Arc<Tables>) -> bool {
        let same = |known: &Arc<Tables>| Arc::ptr_eq(known, tables);
        let changed = !self.tables.as_ref().is_some_and(same);
        if changed {
            self.generation += 1;
            self.tables = Some(Arc::clone(tables));
        }
        changed
    }

    /// Gives each live packet whose way is known that way. Says whether some must find theirs.
    pub fn recall(&mut self, batch: &mut Batch, umem: &Umem, counters: &RuleCounters) -> bool {
        let (mut some_unknown, mut hits) = (false, 0);
        // Packets of a burst are mostly of the flow before: it is looked up once for as many as follow one another.
        let mut last: Option<&Slot> = None;
        for descriptor in live(batch) {
            let packet = (&descriptor.packet, umem.bytes(&descriptor.frame));
            let Some(slot) = self.slot(packet, origin(descriptor), last) else {
                some_unknown = true;
                continue;
            };
            last = Some(slot);
            let way = &slot.way;
            counters.met(way.rule);
            hits += 1;
            descriptor.known = true;
            descriptor.network = way.network;
            descriptor.seal = way.seal;
            descriptor.peer = way.peer;
            descriptor.overlay = way.overlay;
            descriptor.sa = way.sa;
            descriptor.egress = Some(way.egress);
            if let Some([destination, source]) = way.macs {
                readdress(umem.room_mut(&mut descriptor.frame), destination, source);
            }
        }
        self.hits += hits;
        some_unknown
    }

    /// The flow of a packet, which comes from there, and which may be that of the packet before.
    #[inline(always)]
    fn slot<'a>(
        &'a self,
        (packet, frame): (&Packet, &[u8]),
        from: u64,
        last: Option<&'a Slot>,
    ) -> Option<&'a Slot> {
        match headers(packet, frame)? {
            Headers::V4(words) => self.find(&words, from, last),
            Headers::V6(words) => self.find(&words, from, last),
        }
    }

    /// The flow of a frame that comes from there, if it is one of IPv4: then the frame is of the usual form but for what
    /// [`crate::wire::packet::Usual::again`] asks, and for what opens a TCP connection.
    #[inline(always)]
    pub(super) fn slot_of(&self, frame: &[u8], from: u64) -> Option<&Slot> {
        // Only the first words of flows of IPv6 would be compared.
        const ETHERTYPE: u64 = word([0, 0, 0, 0, 0xff, 0xff, 0, 0]);
        const IPV4: u64 = word([0, 0, 0, 0, 8, 0, 0, 0]);
        let words = Self::words(frame).filter(|words| words[1] & ETHERTYPE == IPV4)?;
        self.find(&words, from, None)
    }

    /// Reads the places that the flows of a burst may have, unless it seems to be all of one flow: one after the other without a
    /// look at what is there, so that the memory is asked for as many at once as the CPU can. `of` gives the headers of a packet.
    ///
    /// Saves most of the 60 cycles that a packet waited for its flow's place (1,000 flows, Zen 3).
    #[inline(always)]
    pub(super) fn fetch(
        &self,
        packets: std::ops::Range<usize>,
        mut of: impl FnMut(usize) -> Option<Words>,
        from: u64,
    ) {
        if packets.len() < 2 || of(packets.start) == of(packets.end - 1) {
            return;
        }
        let places = packets.filter_map(of).map(|words| self.place(&words, from));
        self.read(&places.take(BATCH).collect());
    }

    /// The first place that a flow may have.
    #[inline(always)]
    pub(super) fn place(&self, words: &Words, from: u64) -> usize {
        let [first, _] = self.places(words, from);
        first
    }

    /// Reads places, so that they are near.
    #[inline(always)]
    pub(super) fn read(&self, places: &ArrayVec<usize, BATCH>) {
        let read = |sum, place: &usize| sum ^ self.slots[*place].headers[0] ^ self.slots[*place].generation;
        std::hint::black_box(places.iter().fold(0, read));
    }

    /// The words of a frame of IPv4.
    #[inline(always)]
    pub(super) fn words(frame: &[u8]) -> Option<Words> {
        masked(frame, &MASKS_V4)
    }

    /// Whether a frame that comes from where those of a flow of IPv4 do is of that flow, if it is of the usual form but for what
    /// [`crate::wire::packet::Usual::again`] asks.
    #[inline(always)]
    pub(super) fn is_of(slot: &Slot, frame: &[u8]) -> bool {
        let headers = slot.headers.first_chunk();
        headers.is_some_and(|words| Self::has(words, frame))
    }

    /// Whether these are the words of a frame of IPv4.
    #[inline(always)]
    pub(super) fn has(words: &Words, frame: &[u8]) -> bool {
        masked(frame, &MASKS_V4).is_some_and(|others| equal(words, &others))
    }

    /// The flow of a packet that came in transport mode, by the frame that it came in: the headers are its own, but for the
    /// protocol and the ports behind them. The opened frame is not read, since its headers were just written in small pieces.
    #[inline(always)]
    pub(super) fn slot_of_sealed<'a>(
        &'a self,
        came: &[u8],
        protocol: u8,
        ports: [u8; 4],
        from: u64,
    ) -> Option<&'a Slot> {
        self.find(&Self::words_of_sealed(came, protocol, ports)?, from, None)
    }

    /// The words of that flow.
    #[inline(always)]
    pub(super) fn words_of_sealed(came: &[u8], protocol: u8, [a, b, c, d]: [u8; 4]) -> Option<Words> {
        let [one, two, ip, addresses, rest] = masked(came, &MASKS_V4)?;
        let ip =
            ip & word([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]) | word([0, 0, 0, 0, 0, 0, 0, protocol]);
        let rest = rest & word([0xff, 0xff, 0, 0, 0, 0, 0, 0]) | word([0, 0, a, b, c, d, 0, 0]);
        Some([one, two, ip, addresses, rest])
    }

    #[inline(always)]
    fn find<'a, const N: usize>(
        &'a self,
        words: &[u64; N],
        from: u64,
        last: Option<&'a Slot>,
    ) -> Option<&'a Slot> {
        let is_of_flow =
            |slot: &&Slot| slot.has(words) && slot.from == from && slot.generation == self.generation;
        if let Some(last) = last.filter(is_of_flow) {
            return Some(last);
        }
        let [first, second] = self.places(words, from);
        let slot = Some(&self.slots[first]).filter(is_of_flow);
        slot.or_else(|| Some(&self.slots[second]).filter(is_of_flow))
    }

    /// Remembers the ways that live packets have found, as far as others may take them.
    pub fn remember(&mut self, batch: &mut Batch, umem: &Umem) {
        for descriptor in live(batch) {
            let Some(rule) = descriptor.rule.take() else {
                continue;
            };
            let headers = headers(&descriptor.packet, umem.bytes(&descriptor.frame));
            let (Some(headers), Some(egress)) = (headers, descriptor.egress) else {
                continue;
            };
            let has_sa = descriptor.seal.is_none() || descriptor.sa.is_some();
            // Towards a MAC that nobody declared every host gets a copy.
            let is_for_one = !descriptor.overlay || descriptor.destination.is_some();
            if self.generation == 0 || !has_sa || !is_for_one {
                continue;
            }
            let opened = descriptor.ingress.is_none() && descriptor.seal.is_some() && !descriptor.overlay;
            let macs = |to: Endpoint| Some([to.mac, descriptor.source?.mac]);
            let from = origin(descriptor);
            let (places, headers) = match headers {
                Headers::V4(words) => (self.places(&words, from), padded(&words)),
                Headers::V6(words) => (self.places(&words, from), words),
            };
            let is_free = |place: &&usize| self.slots[**place].generation != self.generation;
            let place = *places.iter().find(is_free).unwrap_or(&places[0]);
            self.slots[place] = Slot {
                headers,
                generation: self.generation,
                from,
                way: Way {
                    rule,
                    sa: descriptor.sa,
                    macs: descriptor.destination.filter(|_| opened).and_then(macs),
                    egress,
                    seal: descriptor.seal,
                    peer: descriptor.far_host(),
                    network: descriptor.network,
                    overlay: descriptor.overlay,
                },
            };
        }
    }

    /// The two places that a flow may have.
    #[inline(always)]
    fn places<const N: usize>(&self, words: &[u64; N], from: u64) -> [usize; 2] {
        let [one, two] = self.secret;
        let mix = |a: u64, b: u64| fold(a ^ one, b ^ two);
        let (first, rest) = words.split_first().unwrap_or((&0, &[]));
        let pairs = rest.chunks(2).zip(1u32..);
        let sum = pairs.fold(mix(*first, from), |sum, (pair, turn)| match *pair {
            [a, b] => sum ^ mix(a.rotate_left(turn), b),
            [a] => sum ^ mix(a.rotate_left(turn), 0),
            _ => sum,
        });
        // Not by `map`, which is a call in builds with several codegen units (16 cycles a packet of 1,000 flows, Zen 3).
        let place = |bits: u64| bits as usize & (FLOWS - 1);
        [place(sum), place(sum >> 32)]
    }
}

/// Where a packet comes from: a guest port, the SA that opened it, a host by a bare overlay packet, or the wire.
#[inline]
fn origin(descriptor: &Descriptor) -> u64 {
    const OVERLAY: u64 = 1 << 30;
    const WIRE: u64 = 1 << 29;
    match (descriptor.ingress, descriptor.sa) {
        (Some(port), _) => of_port(port),
        (None, Some(place)) => of_sa(place),
        (None, None) => match descriptor.peer.filter(|_| descriptor.overlay) {
            Some(peer) => u64::from(peer.0) << 32 | OVERLAY | u64::from(descriptor.network.0),
            None => WIRE,
        },
    }
}

/// The same of a packet that an SA has opened.
#[inline]
pub(super) fn of_sa(place: Place) -> u64 {
    // No worker has so many slots for SAs that their numbers reach these bits.
    const SA: u64 = 1 << 31;
    u64::from(place.serial) << 32 | SA | u64::from(place.slot)
}

/// The same of a packet that comes from a guest port.
#[inline]
pub(super) fn of_port(port: u16) -> u64 {
    u64::from(port)
}

/// What guard and rules read of a packet of the usual form, all else masked out.
enum Headers {
    V4([u64; 5]),
    V6([u64; WORDS]),
}

fn padded(words: &[u64; 5]) -> [u64; WORDS] {
    let [a, b, c, d, e] = *words;
    [a, b, c, d, e, 0, 0, 0]
}

/// `None` if guard or rules may read more of the packet.
#[inline(always)]
fn headers(packet: &Packet, frame: &[u8]) -> Option<Headers> {
    if packet.ports.is_none()
        || packet.fragment != Fragment::Whole
        || packet.tcp_flags & transport::SYN != 0
        || packet.l3_offset != ethernet::HEADER as u16
        || packet.is_group()
    {
        return None;
    }
    if packet.ethertype == ethernet::IPV4 && packet.l4_offset == (ethernet::HEADER + ip4::HEADER) as u16 {
        return Some(Headers::V4(masked(frame, &MASKS_V4)?));
    }
    if packet.ethertype == ethernet::IPV6 && packet.l4_offset == (ethernet::HEADER + ip6::HEADER) as u16 {
        return Some(Headers::V6(masked(frame, &MASKS_V6)?));
    }
    None
}

const ALL: u64 = u64::MAX;

/// Without ECN, lengths, identification, "don't fragment", TTL and checksum.
const MASKS_V4: [u64; 5] = [
    ALL,
    word([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfc]),
    word([0, 0, 0, 0, 0x3f, 0xff, 0, 0xff]),
    word([0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
    word([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
];

/// Without ECN, flow label, length and hop limit.
const MASKS_V6: [u64; WORDS] = [
    ALL,
    word([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xc0]),
    word([0, 0, 0, 0, 0xff, 0, 0xff, 0xff]),
    ALL,
    ALL,
    ALL,
    ALL,
    word([0xff, 0xff, 0, 0, 0, 0, 0, 0]),
];

const fn word(bytes: [u8; 8]) -> u64 {
    u64::from_ne_bytes(bytes)
}

/// The first words of a frame, as far as the masks let them through; `None` if it is shorter.
///
/// A plain loop, which compilers unroll: of `array::from_fn` and `zip` they made calls for each packet or word (up to 18
/// cycles a packet, Zen 3).
#[inline(always)]
fn masked<const N: usize>(frame: &[u8], masks: &[u64; N]) -> Option<[u64; N]> {
    let (words, _) = frame.as_chunks::<8>();
    let words = words.first_chunk::<N>()?;
    let mut masked = [0; N];
    let mut number = 0;
    while number < N {
        masked[number] = u64::from_ne_bytes(words[number]) & masks[number];
        number += 1;
    }
    Some(masked)
}

/// Whether words are the same, in one comparison of all.
#[inline(always)]
fn equal<const N: usize>(one: &[u64; N], other: &[u64; N]) -> bool {
    let (mut differ, mut number) = (0, 0);
    while number < N {
        differ |= one[number] ^ other[number];
        number += 1;
    }
    differ == 0
}
