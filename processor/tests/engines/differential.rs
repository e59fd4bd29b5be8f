//! Engines against the portable one: the same bytes and tags, in both directions.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use guestseal::aead::aes_gcm::AesGcm;
use guestseal::aead::engine::{Engine, ExpandedKey, OpenJob, SealJob, TAG};
use guestseal_rules::model::Suite;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::conformance::{PLACINGS, Placing, buffers, destination, nonce, open, seal};

/// What a packet on a usual MTU holds, and one on a big MTU.
const USUAL: usize = 1500;
const LONGEST: usize = 9216;
pub(crate) const SUITES: [Suite; 2] = [Suite::Aes128Gcm, Suite::Aes256Gcm];

/// A stream of bytes that looks like any other, the same in every run (SplitMix64).
pub(crate) struct Bytes(u64);

impl Bytes {
    pub(crate) fn new() -> Self {
        Self(0)
    }

    pub(crate) fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for eight in bytes.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^= mixed >> 31;
            eight.copy_from_slice(&mixed.to_le_bytes()[..eight.len()]);
        }
        bytes
    }
}

/// One key, as the engine under test and as the portable one has it.
pub(crate) struct Keys {
    pub(crate) tested: ExpandedKey,
    pub(crate) reference: ExpandedKey,
}

impl Keys {
    pub(crate) fn new(engine: &dyn Engine, suite: Suite, bytes: &mut Bytes) -> Self {
        let key = bytes.take(suite.key_length());
        Self {
            tested: engine.expand(suite, &key).unwrap(),
            reference: AesGcm.expand(suite, &key).unwrap(),
        }
    }
}

pub(crate) fn any_nonce(bytes: &mut Bytes) -> [u8; 12] {
    bytes.take(12).try_into().unwrap()
}

fn check(engine: &dyn Engine, keys: &Keys, bytes: &mut Bytes, length: usize, additional: usize) {
    let (text, additional) = (bytes.take(length), bytes.take(additional));
    let nonce = any_nonce(bytes);
    let expected = seal(
        &AesGcm,
        &keys.reference,
        nonce,
        &additional,
        &text,
        Placing::InPlace,
    );
    for placing in PLACINGS {
        let case = || format!("{length} bytes, {} authenticated, {placing:?}", additional.len());
        let made = seal(engine, &keys.tested, nonce, &additional, &text, placing);
        assert!(made == expected, "sealing {}", case());
        let sealed = (&expected.0[..], &expected.1);
        let opened = open(engine, &keys.tested, nonce, &additional, sealed, placing);
        assert!(opened.as_deref() == Some(&text[..]), "opening {}", case());
    }
}

/// Packets of all these lengths; `shape` gives the bytes of text and those authenticated beside it.
fn lengths(engine: &dyn Engine, lengths: RangeInclusive<usize>, shape: fn(usize) -> (usize, usize)) {
    let mut bytes = Bytes::new();
    for suite in SUITES {
        let keys = Keys::new(engine, suite, &mut bytes);
        for (length, additional) in lengths.clone().map(shape) {
            check(engine, &keys, &mut bytes, length, additional);
        }
    }
}

/// ESP without and with extended sequence numbers authenticates 8 and 12 bytes.
fn encrypted(length: usize) -> (usize, usize) {
    (length, 8 + length % 2 * 4)
}

fn authenticated(length: usize) -> (usize, usize) {
    (0, length)
}

pub(crate) fn every_length(engine: &dyn Engine) {
    lengths(engine, 0..=USUAL, encrypted);
}

pub(crate) fn every_length_beyond(engine: &dyn Engine) {
    lengths(engine, USUAL + 1..=LONGEST, encrypted);
}

pub(crate) fn every_length_of_gmac(engine: &dyn Engine) {
    lengths(engine, 0..=USUAL, authenticated);
}

pub(crate) fn every_length_of_gmac_beyond(engine: &dyn Engine) {
    lengths(engine, USUAL + 1..=LONGEST, authenticated);
}

pub(crate) fn additional(engine: &dyn Engine) {
    let mut bytes = Bytes::new();
    for suite in SUITES {
        let keys = Keys::new(engine, suite, &mut bytes);
        for additional in (0..=300).chain([511, 512, 513, 1424]) {
            for length in [0, 1, 30, 48, 49, 224, 240, 241, 700] {
                check(engine, &keys, &mut bytes, length, additional);
            }
        }
    }
}

/// One packet of a batch.
#[derive(Clone, Debug)]
struct Packet {
    key: usize,
    length: usize,
    additional: usize,
    placing: Placing,
}

fn packet(keys: usize) -> impl Strategy<Value = Packet> {
    let length = prop_oneof![
        4 => 0..=64usize,
        3 => 0..=300usize,
        2 => 0..=1500usize,
        1 => 0..=LONGEST,
    ];
    let additional = prop_oneof![4 => Just(8usize), 4 => Just(12), 1 => 0..=1500usize];
    let placing = prop_oneof![Just(Placing::InPlace), Just(Placing::Copy)];
    (0..keys, length, additional, placing).prop_map(|(key, length, additional, placing)| Packet {
        key,
        length,
        additional,
        placing,
    })
}

/// Runs `test` on batches of 1 to 64 packets, and for each the packets that are forged on the way.
fn on_batches(test: impl Fn(&[Packet], &BTreeSet<usize>)) {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config {
        cases: 150,
        failure_persistence: None,
        ..Config::default()
    };
    let batches = (
        prop::collection::vec(packet(5), 1..=64),
        prop::collection::btree_set(0..64usize, 0..8),
    );
    let outcome = TestRunner::new_with_rng(config, rng).run(&batches, |(packets, forged)| {
        test(&packets, &forged);
        Ok(())
    });
    outcome.unwrap();
}

fn keys(engine: &dyn Engine, bytes: &mut Bytes) -> Vec<Keys> {
    (0..5)
        .map(|number| Keys::new(engine, SUITES[number % 2], bytes))
        .collect()
}

/// What one packet of a batch is made of.
struct Parts {
    text: Vec<u8>,
    additional: Vec<u8>,
    nonce: [u8; 12],
    sealed: (Vec<u8>, [u8; TAG]),
}

fn parts(packets: &[Packet], keys: &[Keys], bytes: &mut Bytes) -> Vec<Parts> {
    let part = |packet: &Packet| {
        let (text, additional) = (bytes.take(packet.length), bytes.take(packet.additional));
        let (nonce, key) = (any_nonce(bytes), &keys[packet.key].reference);
        let sealed = seal(&AesGcm, key, nonce, &additional, &text, Placing::Copy);
        Parts {
            text,
            additional,
            nonce,
            sealed,
        }
    };
    packets.iter().map(part).collect()
}

/// Sizes, keys, suites and places mixed in one call.
pub(crate) fn any_batch(engine: &dyn Engine) {
    let keys = keys(engine, &mut Bytes::new());
    on_batches(|packets, _| {
        let parts = parts(packets, &keys, &mut Bytes::new());
        let mut outs: Vec<Vec<u8>> = Vec::new();
        let mut tags = vec![[0; TAG]; packets.len()];
        for (packet, part) in packets.iter().zip(&parts) {
            outs.push(destination(&part.text, packet.placing));
        }
        let mut jobs = Vec::new();
        for (((packet, part), out), tag) in packets.iter().zip(&parts).zip(&mut outs).zip(&mut tags) {
            jobs.push(SealJob {
                key: &keys[packet.key].tested,
                nonce: nonce(part.nonce).unwrap(),
                additional: &part.additional,
                buffers: buffers(&part.text, out, packet.placing),
                tag,
            });
        }
        engine.seal(&mut jobs);
        drop(jobs);
        for (place, (part, (out, tag))) in parts.iter().zip(outs.into_iter().zip(tags)).enumerate() {
            assert!((out, tag) == part.sealed, "packet {place} of {}", packets.len());
        }
    });
}

/// Wrong tags anywhere in a batch: those packets are refused and hold no plaintext, all others open.
pub(crate) fn forgeries(engine: &dyn Engine) {
    let keys = keys(engine, &mut Bytes::new());
    on_batches(|packets, forged| {
        let parts = parts(packets, &keys, &mut Bytes::new());
        let mut outs: Vec<Vec<u8>> = Vec::new();
        let mut tags = Vec::new();
        for (place, (packet, part)) in packets.iter().zip(&parts).enumerate() {
            outs.push(destination(&part.sealed.0, packet.placing));
            let mut tag = part.sealed.1;
            if forged.contains(&place) {
                tag[place % TAG] ^= 1 << (place % 8);
            }
            tags.push(tag);
        }
        let before = outs.clone();
        let mut jobs = Vec::new();
        for (((packet, part), out), tag) in packets.iter().zip(&parts).zip(&mut outs).zip(&tags) {
            jobs.push(OpenJob {
                key: &keys[packet.key].tested,
                nonce: part.nonce,
                additional: &part.additional,
                buffers: buffers(&part.sealed.0, out, packet.placing),
                tag,
                authentic: false,
            });
        }
        engine.open(&mut jobs);
        let authentic: Vec<bool> = jobs.iter().map(|job| job.authentic).collect();
        drop(jobs);
        for (place, part) in parts.iter().enumerate() {
            let expected = !forged.contains(&place);
            assert_eq!(authentic[place], expected, "packet {place} of {}", packets.len());
            if expected {
                assert!(outs[place] == part.text, "packet {place} of {}", packets.len());
            } else {
                let wiped = outs[place].iter().all(|byte| *byte == 0);
                assert!(
                    wiped || outs[place] == before[place],
                    "packet {place} released plaintext"
                );
            }
        }
    });
}
