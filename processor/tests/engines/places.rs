//! Engines touch the bytes of their jobs and no others: at every alignment, between canaries, and against pages that
//! nobody may touch.

#![allow(unsafe_code)]

use guestseal::aead::aes_gcm::AesGcm;
use guestseal::aead::engine::{Buffers, Engine, OpenJob, SealJob, TAG};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use crate::conformance::{Placing, nonce, seal};
use crate::differential::{Bytes, Keys, SUITES, any_nonce};

/// Every place in a cache line that source and destination can begin at.
pub(crate) fn every_alignment(engine: &dyn Engine) {
    const CANARY: u8 = 0xc5;
    let mut bytes = Bytes::new();
    for suite in SUITES {
        let keys = Keys::new(engine, suite, &mut bytes);
        for length in [1, 32, 47, 112, 224, 239, 700] {
            let (text, additional) = (bytes.take(length), bytes.take(12));
            let nonce_bytes = any_nonce(&mut bytes);
            let expected = seal(
                &AesGcm,
                &keys.reference,
                nonce_bytes,
                &additional,
                &text,
                Placing::Copy,
            );
            let mut from = vec![CANARY; 64 + 64 + length + 64];
            let mut to = vec![CANARY; 64 + 64 + length + TAG + 64];
            for source_at in 64..128 {
                for destination_at in 64..128 {
                    for open in [false, true] {
                        let input = if open { &expected.0 } else { &text };
                        from[source_at..source_at + length].copy_from_slice(input);
                        let source = &from[source_at..source_at + length];
                        let end = destination_at + length;
                        let (destination, rest) = to[destination_at..].split_at_mut(length);
                        if open {
                            let mut jobs = [OpenJob {
                                key: &keys.tested,
                                nonce: nonce_bytes,
                                additional: &additional,
                                buffers: Buffers::Copy { source, destination },
                                tag: &expected.1,
                                authentic: false,
                            }];
                            engine.open(&mut jobs);
                            assert!(jobs[0].authentic);
                            assert!(to[destination_at..end] == text[..]);
                        } else {
                            engine.seal(&mut [SealJob {
                                key: &keys.tested,
                                nonce: nonce(nonce_bytes).unwrap(),
                                additional: &additional,
                                buffers: Buffers::Copy { source, destination },
                                tag: rest.first_chunk_mut().unwrap(),
                            }]);
                            assert!(to[destination_at..end] == expected.0[..]);
                            assert!(to[end..end + TAG] == expected.1);
                            to[end..end + TAG].fill(CANARY);
                        }
                        from[source_at..source_at + length].fill(CANARY);
                        to[destination_at..end].fill(CANARY);
                        assert!(from.iter().chain(&to).all(|byte| *byte == CANARY), "a canary");
                    }
                }
            }
        }
    }
}

/// A page of memory between two that end the process when they are touched.
struct Guarded(*mut u8);

const PAGE: usize = 4096;

impl Guarded {
    fn new() -> Self {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping of three pages at an address of the kernel's choice, unmapped in Drop; the first and the
        // last page lose all access before anything has a pointer to them.
        unsafe {
            let base = mmap_anonymous(std::ptr::null_mut(), 3 * PAGE, access, MapFlags::PRIVATE).unwrap();
            for page in [0, 2] {
                mprotect(base.byte_add(page * PAGE), PAGE, MprotectFlags::empty()).unwrap();
            }
            Self(base.cast())
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the page in the middle, borrowed as long as its owner is.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(PAGE), PAGE) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; no borrow of it is left.
        let _ = unsafe { munmap(self.0.cast(), 3 * PAGE) };
    }
}

/// Everything that a job reads or writes ends where memory ends.
pub(crate) fn end_of_memory(engine: &dyn Engine) {
    at(engine, |page, length| {
        let start = page.len() - length;
        &mut page[start..]
    });
}

/// Everything that a job reads or writes begins where memory begins.
pub(crate) fn begin_of_memory(engine: &dyn Engine) {
    at(engine, |page, length| &mut page[..length]);
}

fn at(engine: &dyn Engine, place: fn(&mut [u8], usize) -> &mut [u8]) {
    let mut bytes = Bytes::new();
    let (mut from, mut to) = (Guarded::new(), Guarded::new());
    let (mut beside, mut tags) = (Guarded::new(), Guarded::new());
    for suite in SUITES {
        let keys = Keys::new(engine, suite, &mut bytes);
        for length in (0..=320).chain((320..=PAGE).step_by(61)) {
            let additional_length = if length % 5 == 4 {
                length
            } else {
                8 + length % 2 * 4
            };
            let (text, additional) = (bytes.take(length), bytes.take(additional_length));
            let nonce_bytes = any_nonce(&mut bytes);
            let (sealed, tag) = seal(
                &AesGcm,
                &keys.reference,
                nonce_bytes,
                &additional,
                &text,
                Placing::Copy,
            );
            let source = place(from.bytes(), length);
            source.copy_from_slice(&text);
            let destination = place(to.bytes(), length);
            let beside = place(beside.bytes(), additional.len());
            beside.copy_from_slice(&additional);
            let made: &mut [u8; TAG] = place(tags.bytes(), TAG).try_into().unwrap();
            engine.seal(&mut [SealJob {
                key: &keys.tested,
                nonce: nonce(nonce_bytes).unwrap(),
                additional: beside,
                buffers: Buffers::Copy { source, destination },
                tag: made,
            }]);
            assert!(destination == sealed && *made == tag, "sealing {length} bytes");
            source.copy_from_slice(&sealed);
            for forge in [0, 1] {
                made[0] ^= forge;
                let mut jobs = [OpenJob {
                    key: &keys.tested,
                    nonce: nonce_bytes,
                    additional: beside,
                    buffers: Buffers::Copy { source, destination },
                    tag: made,
                    authentic: false,
                }];
                engine.open(&mut jobs);
                assert_eq!(jobs[0].authentic, forge == 0, "opening {length} bytes");
                assert!(forge == 1 || destination == text, "opening {length} bytes");
            }
        }
    }
}
