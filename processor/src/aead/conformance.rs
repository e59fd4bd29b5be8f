//! The tests that every engine must pass: call [`all`] from each engine's own tests.
//! Wycheproof (AES-GCM, AES-GMAC), the ESP packets of draft-mcgrew-gcm-test-01, and what [`Engine`] promises.

use guestseal_rules::model::Suite;
use wycheproof::{TestResult, aead, mac_with_nonce};

use super::aes_gcm::AesGcm;
use super::engine::{Buffers, Engine, ExpandedKey, KeyLength, OpenJob, SealJob, TAG};
use crate::sa::nonce::Nonce;

/// Runs the whole suite.
pub(super) fn all(engine: &dyn Engine) {
    wycheproof_gcm(engine);
    wycheproof_gmac(engine);
    super::esp_packets::all(engine);
    key_lengths(engine);
    lengths_and_places(engine);
    mixed_batch(engine);
    no_plaintext_on_a_bad_tag(engine);
}

/// Whether the text is replaced where it stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Placing {
    InPlace,
    Copy,
}

pub(super) const PLACINGS: [Placing; 2] = [Placing::InPlace, Placing::Copy];

fn destination(text: &[u8], placing: Placing) -> Vec<u8> {
    match placing {
        Placing::InPlace => text.to_vec(),
        Placing::Copy => vec![0xee; text.len()],
    }
}

fn buffers<'a>(source: &'a [u8], destination: &'a mut [u8], placing: Placing) -> Buffers<'a> {
    match placing {
        Placing::InPlace => Buffers::InPlace(destination),
        Placing::Copy => Buffers::Copy { source, destination },
    }
}

/// Seals one text under a published key: text and tag.
pub(super) fn seal(
    engine: &dyn Engine,
    key: &ExpandedKey,
    nonce: [u8; 12],
    additional: &[u8],
    text: &[u8],
    placing: Placing,
) -> (Vec<u8>, [u8; TAG]) {
    let mut tag = [0; TAG];
    let mut out = destination(text, placing);
    engine.seal(&mut [SealJob {
        key,
        nonce: Nonce::of_vector(nonce),
        additional,
        buffers: buffers(text, &mut out, placing),
        tag: &mut tag,
    }]);
    (out, tag)
}

/// Opens one text; where the tag is wrong, checks that nothing was released.
pub(super) fn open(
    engine: &dyn Engine,
    key: &ExpandedKey,
    nonce: [u8; 12],
    additional: &[u8],
    (text, tag): (&[u8], &[u8; TAG]),
    placing: Placing,
) -> Option<Vec<u8>> {
    let before = destination(text, placing);
    let mut out = before.clone();
    let mut jobs = [OpenJob {
        key,
        nonce,
        additional,
        buffers: buffers(text, &mut out, placing),
        tag,
        authentic: false,
    }];
    engine.open(&mut jobs);
    if jobs[0].authentic {
        return Some(out);
    }
    assert!(
        out == before || out.iter().all(|&byte| byte == 0),
        "{} released plaintext",
        engine.name()
    );
    None
}

fn suite(key_bits: usize) -> Option<Suite> {
    match key_bits {
        256 => Some(Suite::Aes256Gcm),
        128 => Some(Suite::Aes128Gcm),
        _ => None,
    }
}

fn wycheproof_gcm(engine: &dyn Engine) {
    let set = aead::TestSet::load(aead::TestName::AesGcm).unwrap();
    let mut run = 0;
    let groups = set.test_groups.iter();
    for group in groups.filter(|group| group.nonce_size == 96 && group.tag_size == 128) {
        let Some(suite) = suite(group.key_size) else {
            continue;
        };
        for test in &group.tests {
            let key = engine.expand(suite, &test.key).unwrap();
            let nonce: [u8; 12] = test.nonce[..].try_into().unwrap();
            let tag: [u8; TAG] = test.tag[..].try_into().unwrap();
            let valid = test.result == TestResult::Valid;
            for placing in PLACINGS {
                let (text, made) = seal(engine, &key, nonce, &test.aad, &test.pt, placing);
                let found = (text == test.ct[..], made == tag);
                assert_eq!(found, (true, valid), "seal of test {}", test.tc_id);
                let opened = open(engine, &key, nonce, &test.aad, (&test.ct, &tag), placing);
                let expected = valid.then_some(&test.pt[..]);
                assert_eq!(opened.as_deref(), expected, "open of test {}", test.tc_id);
            }
            run += 1;
        }
    }
    assert!(run > 100, "only {run} vectors ran");
}

fn wycheproof_gmac(engine: &dyn Engine) {
    let set = mac_with_nonce::TestSet::load(mac_with_nonce::TestName::Gmac).unwrap();
    let mut run = 0;
    let groups = set.test_groups.iter();
    for group in groups.filter(|group| group.nonce_size == 96 && group.tag_size == 128) {
        let Some(suite) = suite(group.key_size) else {
            continue;
        };
        for test in group.tests.iter() {
            let key = engine.expand(suite, &test.key).unwrap();
            let nonce: [u8; 12] = test.nonce[..].try_into().unwrap();
            let tag: [u8; TAG] = test.tag[..].try_into().unwrap();
            let valid = test.result == TestResult::Valid;
            let (_, made) = seal(engine, &key, nonce, &test.msg, &[], Placing::Copy);
            assert_eq!(made == tag, valid, "test {}", test.tc_id);
            let opened = open(engine, &key, nonce, &test.msg, (&[], &tag), Placing::InPlace);
            assert_eq!(opened.is_some(), valid, "test {}", test.tc_id);
            run += 1;
        }
    }
    assert!(run > 100, "only {run} vectors ran");
}

fn key_lengths(engine: &dyn Engine) {
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
        for found in 0..=40 {
            let made = engine.expand(suite, &vec![7; found]).map(|_| ());
            let expected = suite.key_length();
            let wrong = KeyLength {
                suite,
                expected,
                found,
            };
            assert_eq!(made, if found == expected { Ok(()) } else { Err(wrong) });
        }
    }
}

/// Bytes that repeat at no block size.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place * 7 + place / 251) as u8).collect()
}

/// Every length that a block or a group of blocks could trip over, in place and not, against the portable engine.
fn lengths_and_places(engine: &dyn Engine) {
    let lengths = (0..=300).chain([511, 512, 513, 1023, 1024, 1025, 1420, 2048, 4095, 9216]);
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
        let bytes = pattern(suite.key_length());
        let key = engine.expand(suite, &bytes).unwrap();
        let reference_key = AesGcm.expand(suite, &bytes).unwrap();
        for length in lengths.clone() {
            let text = pattern(length);
            let (nonce, additional) = ([length as u8; 12], pattern(12));
            let expected = seal(&AesGcm, &reference_key, nonce, &additional, &text, Placing::Copy);
            for placing in PLACINGS {
                let made = seal(engine, &key, nonce, &additional, &text, placing);
                assert!(made == expected, "{length} bytes {placing:?}");
                let opened = open(engine, &key, nonce, &additional, (&made.0, &made.1), placing);
                assert!(opened == Some(text.clone()), "{length} bytes {placing:?}");
            }
        }
    }
}

/// 64 jobs of several keys, suites and lengths in one call do what they do alone; one forged tag spoils no other job.
fn mixed_batch(engine: &dyn Engine) {
    let suites = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::Aes256Gcm];
    let keys: Vec<ExpandedKey> = (1u8..)
        .zip(suites)
        .map(|(byte, suite)| engine.expand(suite, &vec![byte; suite.key_length()]).unwrap())
        .collect();
    let texts: Vec<Vec<u8>> = (0..64).map(|place| pattern(place * 23)).collect();
    let additional: Vec<Vec<u8>> = (0..64).map(|place| pattern(8 + place % 2 * 4)).collect();
    let mut outs: Vec<Vec<u8>> = texts.iter().map(|text| vec![0; text.len()]).collect();
    let mut tags = [[0; TAG]; 64];
    let mut jobs: Vec<SealJob<'_>> = Vec::new();
    for (place, (destination, tag)) in outs.iter_mut().zip(&mut tags).enumerate() {
        let source = &texts[place];
        jobs.push(SealJob {
            key: &keys[place % 3],
            nonce: Nonce::of_vector([place as u8; 12]),
            additional: &additional[place],
            buffers: Buffers::Copy { source, destination },
            tag,
        });
    }
    engine.seal(&mut jobs);
    drop(jobs);
    for place in 0..64 {
        let (key, nonce) = (&keys[place % 3], [place as u8; 12]);
        let alone = seal(
            engine,
            key,
            nonce,
            &additional[place],
            &texts[place],
            Placing::InPlace,
        );
        assert!((&outs[place], tags[place]) == (&alone.0, alone.1), "job {place}");
    }

    tags[20][3] ^= 4;
    let mut plain: Vec<Vec<u8>> = texts.iter().map(|text| vec![0xee; text.len()]).collect();
    let mut jobs: Vec<OpenJob<'_>> = Vec::new();
    for (place, destination) in plain.iter_mut().enumerate() {
        let source = &outs[place];
        jobs.push(OpenJob {
            key: &keys[place % 3],
            nonce: [place as u8; 12],
            additional: &additional[place],
            buffers: Buffers::Copy { source, destination },
            tag: &tags[place],
            authentic: false,
        });
    }
    engine.open(&mut jobs);
    for (place, job) in jobs.iter().enumerate() {
        assert_eq!(job.authentic, place != 20, "job {place}");
    }
    drop(jobs);
    for place in (0..64).filter(|place| *place != 20) {
        assert!(plain[place] == texts[place], "job {place}");
    }
}

/// `open` looks at what stands in the destination.
fn no_plaintext_on_a_bad_tag(engine: &dyn Engine) {
    let key = engine.expand(Suite::Aes256Gcm, &[3; 32]).unwrap();
    let (nonce, additional, text) = ([9; 12], pattern(12), pattern(177));
    let (sealed, tag) = seal(engine, &key, nonce, &additional, &text, Placing::Copy);
    for placing in PLACINGS {
        for bit in 0..TAG * 8 {
            let mut tag = tag;
            tag[bit / 8] ^= 1 << (bit % 8);
            let opened = open(engine, &key, nonce, &additional, (&sealed, &tag), placing);
            assert_eq!(opened, None, "bit {bit} of the tag");
        }
        for bit in 0..sealed.len() * 8 {
            let mut sealed = sealed.clone();
            sealed[bit / 8] ^= 1 << (bit % 8);
            let opened = open(engine, &key, nonce, &additional, (&sealed, &tag), placing);
            assert_eq!(opened, None, "bit {bit} of the text");
        }
        for bit in 0..additional.len() * 8 {
            let mut additional = additional.clone();
            additional[bit / 8] ^= 1 << (bit % 8);
            let opened = open(engine, &key, nonce, &additional, (&sealed, &tag), placing);
            assert_eq!(opened, None, "bit {bit} of what is authenticated");
        }
        let cut = &sealed[..sealed.len() - 1];
        assert_eq!(open(engine, &key, nonce, &additional, (cut, &tag), placing), None);
        assert_eq!(
            open(engine, &key, [8; 12], &additional, (&sealed, &tag), placing),
            None
        );
    }
}
