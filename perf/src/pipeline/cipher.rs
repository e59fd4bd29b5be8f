//! The bare cipher: an engine's calls over as many frames, at the same places of them, under as many keys as on the path.

use std::sync::Arc;

use guestseal::aead::engine::{Buffers, Engine, ExpandedKey, OpenJob, SealJob, TAG};
use guestseal::port::BATCH;
use guestseal::port::frame::Frame;
use guestseal::port::umem::Umem;
use guestseal::sa::nonce::Salt;
use guestseal::sa::sequence::Sequence;
use guestseal::wire::{esp, ethernet, ip4};

use super::host::{Rotation, expanded, umem};
use super::packets::{Network, Size};
use super::timed;
use crate::process::PerfError;

/// Bytes of the headers that transport mode leaves in front: Ethernet and IPv4.
const HEADERS: usize = ethernet::HEADER + ip4::HEADER;
/// Where ESP's payload stands in a sealed frame.
const SEALED: usize = HEADERS + esp::HEADER;

/// The engine alone over one burst after the other.
pub(super) struct Cipher {
    engine: Arc<dyn Engine>,
    keys: Vec<ExpandedKey>,
    sequence: Sequence,
    umem: Arc<Umem>,
    slots: Vec<Slot>,
    /// The bursts sealed so far.
    sealed: usize,
    /// The bursts opened so far.
    opened: usize,
    clock: quanta::Clock,
}

/// A packet in its three forms.
struct Slot {
    plain: Frame,
    sealed: Frame,
    opened: Frame,
    nonce: [u8; 12],
    key: usize,
    /// Bytes of payload, padding and trailer.
    length: usize,
}

impl Cipher {
    /// Over the frames of packets of a size, one SA after the other.
    pub(super) fn new(
        engine: &Arc<dyn Engine>,
        network: Network,
        size: Size,
        sas: u32,
        rotation: Rotation,
        clock: quanta::Clock,
    ) -> Result<Self, PerfError> {
        let (umem, mut frames) = umem(3 * rotation.depth as u32)?;
        for frame in &mut frames {
            umem.room_mut(frame).fill(0x42);
        }
        let mut slots = Vec::with_capacity(rotation.depth);
        let mut frames = frames.into_iter();
        while let (Some(plain), Some(sealed), Some(opened)) = (frames.next(), frames.next(), frames.next()) {
            let payload = network.sealed(size.of(slots.len()));
            slots.push(Slot {
                plain,
                sealed,
                opened,
                nonce: [0; 12],
                key: slots.len() % sas as usize,
                length: payload + esp::padding(payload) + esp::TRAILER,
            });
        }
        Ok(Self {
            keys: (0..sas).map(|number| expanded(&**engine, number)).collect(),
            engine: Arc::clone(engine),
            // Nothing that it seals leaves the process.
            sequence: Sequence::fresh(true, Salt([9; 4])),
            umem,
            slots,
            sealed: 0,
            opened: 0,
            clock,
        })
    }

    /// Cycles of the engine's call over the next burst.
    pub(super) fn seal(&mut self) -> u64 {
        let bursts = self.slots.len() / BATCH;
        let slots = self.slots.chunks_exact_mut(BATCH).nth(self.sealed % bursts);
        self.sealed += 1;
        let mut jobs = arrayvec::ArrayVec::<SealJob<'_>, BATCH>::new();
        for slot in slots.unwrap_or_default() {
            let Ok((_, nonce)) = self.sequence.take() else {
                unreachable!("2^64 numbers")
            };
            slot.nonce = *nonce.as_bytes();
            let room = self.umem.room_mut(&mut slot.sealed);
            let (destination, rest) = room[SEALED..].split_at_mut(slot.length);
            let Some(tag) = rest.first_chunk_mut() else {
                unreachable!("a frame is long enough")
            };
            jobs.push(SealJob {
                key: &self.keys[slot.key],
                nonce,
                additional: &[0; 12],
                buffers: Buffers::Copy {
                    source: &self.umem.room_mut(&mut slot.plain)[HEADERS..][..slot.length],
                    destination,
                },
                tag,
            });
        }
        timed(&self.clock, || self.engine.seal(&mut jobs))
    }

    /// Cycles of the engine's call over the next burst of what was sealed.
    pub(super) fn open(&mut self) -> u64 {
        let bursts = self.slots.len() / BATCH;
        let slots = self.slots.chunks_exact_mut(BATCH).nth(self.opened % bursts);
        self.opened += 1;
        let mut jobs = arrayvec::ArrayVec::<OpenJob<'_>, BATCH>::new();
        for slot in slots.unwrap_or_default() {
            let room = self.umem.room_mut(&mut slot.sealed);
            let (source, rest) = room[SEALED..].split_at(slot.length);
            let Some(tag) = rest.first_chunk::<TAG>() else {
                unreachable!("a frame is long enough")
            };
            jobs.push(OpenJob {
                key: &self.keys[slot.key],
                nonce: slot.nonce,
                additional: &[0; 12],
                buffers: Buffers::Copy {
                    source,
                    destination: &mut self.umem.room_mut(&mut slot.opened)[HEADERS..][..slot.length],
                },
                tag,
                authentic: false,
            });
        }
        let cycles = timed(&self.clock, || self.engine.open(&mut jobs));
        assert!(jobs.iter().all(|job| job.authentic), "what was sealed opens");
        cycles
    }
}
