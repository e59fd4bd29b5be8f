//! Wycheproof (AES-GCM, AES-GMAC), and what [`Engine`] promises.

use guestseal::aead::engine::{Buffers, Engine, ExpandedKey, KeyLength, OpenJob, SealJob, TAG};
use guestseal::sa::nonce::{Nonce, Salt};
use guestseal::sa::sequence::{Reservation, Sequence};
use guestseal_rules::model::Suite;
use wycheproof::{TestResult, aead, mac_with_nonce};

/// Whether the text is replaced where it stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Placing {
    InPlace,
    Copy,
}

pub(crate) const PLACINGS: [Placing; 2] = [Placing::InPlace, Placing::Copy];

pub(crate) fn destination(text: &[u8], placing: Placing) -> Vec<u8> {
    match placing {
        Placing::InPlace => text.to_vec(),
        Placing::Copy => vec![0xee; text.len()],
    }
}

pub(crate) fn buffers<'a>(source: &'a [u8], destination: &'a mut [u8], placing: Placing) -> Buffers<'a> {
    match placing {
        Placing::InPlace => Buffers::InPlace(destination),
        Placing::Copy => Buffers::Copy { source, destination },
    }
}

/// The nonce of these bytes, as an SA would make it; `None` for those that no SA makes: IVs 0 and 2^64-1.
pub(crate) fn nonce(bytes: [u8; 12]) -> Option<Nonce> {
    let [salt @ .., _, _, _, _, _, _, _, _] = bytes;
    let [_, _, _, _, iv @ ..] = bytes;
    let number = u64::from_be_bytes(iv);
    let sequence = Sequence::reserved(true, Salt(salt), Reservation::new(number, u64::MAX));
    let (taken, nonce) = sequence.take().ok()?;
    (taken == number).then_some(nonce)
}

/// Seals one text under a published key, if an SA would ever have the nonce: text and tag.
pub(crate) fn seal_if_possible(
    engine: &dyn Engine,
    key: &ExpandedKey,
    bytes: [u8; 12],
    additional: &[u8],
    text: &[u8],
    placing: Placing,
) -> Option<(Vec<u8>, [u8; TAG])> {
    let mut tag = [0; TAG];
    let mut out = destination(text, placing);
    engine.seal(&mut [SealJob {
        key,
        nonce: nonce(bytes)?,
        additional,
        buffers: buffers(text, &mut out, placing),
        tag: &mut tag,
    }]);
    Some((out, tag))
}

/// Seals one text: text and tag.
pub(crate) fn seal(
    engine: &dyn Engine,
    key: &ExpandedKey,
    nonce: [u8; 12],
    additional: &[u8],
    text: &[u8],
    placing: Placing,
) -> (Vec<u8>, [u8; TAG]) {
    seal_if_possible(engine, key, nonce, additional, text, placing).expect("a nonce that an SA makes")
}

/// Opens one text; where the tag is wrong, checks that nothing was released.
pub(crate) fn open(
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

pub(crate) fn wycheproof_gcm(engine: &dyn Engine) {
    let set = aead::TestSet::load(aead::TestName::AesGcm).unwrap();
    let (mut run, mut sealed) = (0, 0);
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
                if let Some((text, made)) =
                    seal_if_possible(engine, &key, nonce, &test.aad, &test.pt, placing)
                {
                    let found = (text == test.ct[..], made == tag);
                    assert_eq!(found, (true, valid), "seal of test {}", test.tc_id);
                    sealed += 1;
                }
                let opened = open(engine, &key, nonce, &test.aad, (&test.ct, &tag), placing);
                let expected = valid.then_some(&test.pt[..]);
                assert_eq!(opened.as_deref(), expected, "open of test {}", test.tc_id);
            }
            run += 1;
        }
    }
    assert!(
        run > 100 && sealed > 100,
        "only {run} vectors ran, {sealed} sealed"
    );
}

pub(crate) fn wycheproof_gmac(engine: &dyn Engine) {
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
            if let Some((_, made)) = seal_if_possible(engine, &key, nonce, &test.msg, &[], Placing::Copy) {
                assert_eq!(made == tag, valid, "test {}", test.tc_id);
            }
            let opened = open(engine, &key, nonce, &test.msg, (&[], &tag), Placing::InPlace);
            assert_eq!(opened.is_some(), valid, "test {}", test.tc_id);
            run += 1;
        }
    }
    assert!(run > 100, "only {run} vectors ran");
}

pub(crate) fn key_lengths(engine: &dyn Engine) {
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
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place * 7 + place / 251) as u8).collect()
}

/// Every bit of a short, a middling and a long packet; `open` looks at what stands in the destination.
pub(crate) fn no_plaintext_on_a_bad_tag(engine: &dyn Engine) {
    for length in [32, 177, 700] {
        no_plaintext_of(engine, length);
    }
}

fn no_plaintext_of(engine: &dyn Engine, length: usize) {
    let key = engine.expand(Suite::Aes256Gcm, &[3; 32]).unwrap();
    let (nonce, additional, text) = ([9; 12], pattern(12), pattern(length));
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
