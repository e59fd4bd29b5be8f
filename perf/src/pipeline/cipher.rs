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
use super::packets::Action;
use super::{Case, timed};
use crate::process::PerfError;

/// Bytes of the headers that transport mode leaves in front: Ethernet and IPv4.
const HEADERS: usize = ethernet::HEADER + ip4::HEADER;
/// Where ESP's payload stands in a sealed frame.
const SEALED: usize = HEADERS + esp::HEADER;
/// Bytes in front of it that AES-GMAC authenticates with it: SPI, both halves of the sequence number, IV (RFC 4543 3.3).
const WITH_PAYLOAD: usize = 20;

/// The engine alone over one burst after the other.
pub(super) struct Cipher {
    engine: Arc<dyn Engine>,
    action: Action,
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
    /// Over the frames of a case's packets, one SA after the other.
    pub(super) fn new(
        engine: &Arc<dyn Engine>,
        case: &Case,
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
            let payload = case.network.sealed(case.size.of(slots.len()));
            slots.push(Slot {
                plain,
                sealed,
                opened,
                nonce: [0; 12],
                key: slots.len() % case.sas as usize,
                length: payload + esp::padding(payload) + esp::TRAILER,
            });
        }
        Ok(Self {
            keys: (0..case.sas).map(|number| expanded(&**engine, number)).collect(),
            engine: Arc::clone(engine),
            action: case.action,
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
            let (sealed, rest) = room.split_at_mut(SEALED + slot.length);
            let Some(tag) = rest.first_chunk_mut() else {
                unreachable!("a frame is long enough")
            };
            let (additional, buffers): (&[u8], _) = match self.action {
                Action::Encrypt => {
                    let buffers = Buffers::Copy {
                        source: &self.umem.room_mut(&mut slot.plain)[HEADERS..][..slot.length],
                        destination: &mut sealed[SEALED..],
                    };
                    (&[0; 12], buffers)
                }
                Action::Authenticate => (&sealed[SEALED - WITH_PAYLOAD..], Buffers::InPlace(&mut [])),
            };
            jobs.push(SealJob {
                key: &self.keys[slot.key],
                nonce,
                additional,
                buffers,
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
            let (sealed, rest) = room.split_at(SEALED + slot.length);
            let Some(tag) = rest.first_chunk::<TAG>() else {
                unreachable!("a frame is long enough")
            };
            let (additional, buffers): (&[u8], _) = match self.action {
                Action::Encrypt => {
                    let buffers = Buffers::Copy {
                        source: &sealed[SEALED..],
                        destination: &mut self.umem.room_mut(&mut slot.opened)[HEADERS..][..slot.length],
                    };
                    (&[0; 12], buffers)
                }
                Action::Authenticate => (&sealed[SEALED - WITH_PAYLOAD..], Buffers::InPlace(&mut [])),
            };
            jobs.push(OpenJob {
                key: &self.keys[slot.key],
                nonce: slot.nonce,
                additional,
                buffers,
                tag,
                authentic: false,
            });
        }
        let cycles = timed(&self.clock, || self.engine.open(&mut jobs));
        assert!(jobs.iter().all(|job| job.authentic), "what was sealed opens");
        cycles
    }
}
