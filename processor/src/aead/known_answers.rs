//! What an engine is asked before it is used: two published answers, then every kind of path through it against the
//! portable engine, sealed and opened in one batch, and forgeries that must not open.
//!
//! McGrew and Viega, "The Galois/Counter Mode of Operation (GCM)", test cases 4 and 16.

use guestseal_rules::model::Suite;

use super::aes_gcm::AesGcm;
use super::engine::{Buffers, Engine, ExpandedKey, OpenJob, SealJob, TAG};
use crate::sa::nonce::{Nonce, Salt};
use crate::sa::sequence::{Reservation, Sequence};

/// Lengths of text on both sides of every place at which an engine might change its way: blocks, rows of four, every number
/// of rows up to two groups of eight and one.
const LENGTHS: [usize; 46] = [
    0, 1, 4, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 112, 113, 127, 128, 176, 177, 224, 240, 241,
    256, 304, 305, 369, 432, 433, 496, 497, 512, 561, 625, 689, 753, 817, 881, 944, 945, 1008, 1009, 1384,
    1420, 4112,
];
/// Lengths of what is authenticated only: ESP's 8 and 12, AES-GMAC's packets.
const ADDITIONAL: [usize; 8] = [8, 12, 0, 16, 17, 52, 300, 1424];

/// Asks for every answer.
///
/// # Errors
/// The first case that goes wrong.
pub(super) fn ask(engine: &dyn Engine) -> Result<(), String> {
    for (suite, expected, tag) in [
        (
            Suite::Aes128Gcm,
            "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e\
             21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091",
            "5bc94fbc3221a5db94fae95ae7121a47",
        ),
        (
            Suite::Aes256Gcm,
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa\
             8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
            "76fc6ece0f4e1768cddf8853bb2d551b",
        ),
    ] {
        published(engine, suite, expected, tag).ok_or_else(|| format!("published test case of {suite}"))?;
        paths(engine, suite)?;
    }
    Ok(())
}

fn published(engine: &dyn Engine, suite: Suite, expected: &str, tag: &str) -> Option<()> {
    let key = "feffe9928665731c6d6a8f9467308308".repeat(suite.key_length() / 16);
    let key = engine.expand(suite, &bytes(&key)).ok()?;
    let mut text = bytes(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
         1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
    );
    let additional = bytes("feedfacedeadbeeffeedfacedeadbeefabaddad2");
    let mut made = [0; TAG];
    engine.seal(&mut [SealJob {
        key: &key,
        nonce: nonce(Salt([0xca, 0xfe, 0xba, 0xbe]), 0xface_dbad_deca_f888)?,
        additional: &additional,
        buffers: Buffers::InPlace(&mut text),
        tag: &mut made,
    }]);
    (text == bytes(expected) && made[..] == bytes(tag)).then_some(())
}

/// One packet under test.
struct Case {
    suite: Suite,
    text: Vec<u8>,
    additional: Vec<u8>,
    number: u64,
    sealed: Vec<u8>,
    tag: [u8; TAG],
}

impl Case {
    fn name(&self) -> String {
        format!(
            "{} of {} bytes with {} authenticated",
            self.suite,
            self.text.len(),
            self.additional.len()
        )
    }
}

fn paths(engine: &dyn Engine, suite: Suite) -> Result<(), String> {
    let raw: Vec<u8> = (0..suite.key_length()).map(|place| place as u8 ^ 0x5a).collect();
    let expand = |engine: &dyn Engine| {
        engine
            .expand(suite, &raw)
            .map_err(|error| format!("expansion of a key: {error}"))
    };
    let (key, reference) = (expand(engine)?, expand(&AesGcm)?);
    let mut cases: Vec<Case> = (1..)
        .zip(LENGTHS.into_iter().zip(ADDITIONAL.into_iter().cycle()))
        .chain((100..).zip(ADDITIONAL.into_iter().map(|additional| (0, additional))))
        .map(|(number, (length, additional))| Case {
            suite,
            text: pattern(length, 7),
            additional: pattern(additional, 11),
            number,
            sealed: vec![0; length],
            tag: [0; TAG],
        })
        .collect();
    seal(engine, &key, &mut cases)?;
    for case in &cases {
        let mut text = case.text.clone();
        let mut tag = [0; TAG];
        AesGcm.seal(&mut [SealJob {
            key: &reference,
            nonce: nonce(SALT, case.number).ok_or("a nonce")?,
            additional: &case.additional,
            buffers: Buffers::InPlace(&mut text),
            tag: &mut tag,
        }]);
        if text != case.sealed || tag != case.tag {
            return Err(format!("sealing {}", case.name()));
        }
    }
    open(engine, &key, &cases)
}

const SALT: Salt = Salt([9, 8, 7, 6]);

fn seal(engine: &dyn Engine, key: &ExpandedKey, cases: &mut [Case]) -> Result<(), String> {
    let mut jobs = Vec::new();
    for case in cases {
        jobs.push(SealJob {
            key,
            nonce: nonce(SALT, case.number).ok_or("a nonce")?,
            additional: &case.additional,
            buffers: Buffers::Copy {
                source: &case.text,
                destination: &mut case.sealed,
            },
            tag: &mut case.tag,
        });
    }
    engine.seal(&mut jobs);
    Ok(())
}

/// Every third packet has another tag than the one that was made for it.
fn open(engine: &dyn Engine, key: &ExpandedKey, cases: &[Case]) -> Result<(), String> {
    let mut opened: Vec<Vec<u8>> = cases.iter().map(|case| case.sealed.clone()).collect();
    let forged = |place: usize| place % 3 == 1;
    let tags: Vec<[u8; TAG]> = (0..)
        .zip(cases)
        .map(|(place, case)| {
            let mut tag = case.tag;
            tag[place % TAG] ^= if forged(place) { 1 << (place % 8) } else { 0 };
            tag
        })
        .collect();
    let mut jobs: Vec<OpenJob<'_>> = Vec::new();
    for ((case, text), tag) in cases.iter().zip(&mut opened).zip(&tags) {
        jobs.push(OpenJob {
            key,
            nonce: *nonce(SALT, case.number).ok_or("a nonce")?.as_bytes(),
            additional: &case.additional,
            buffers: Buffers::InPlace(text),
            tag,
            authentic: false,
        });
    }
    engine.open(&mut jobs);
    let authentic: Vec<bool> = jobs.iter().map(|job| job.authentic).collect();
    drop(jobs);
    for (place, (case, text)) in cases.iter().zip(&opened).enumerate() {
        if authentic[place] == forged(place) {
            return Err(format!("the tag of {}", case.name()));
        }
        if forged(place) {
            if *text != case.sealed && text.iter().any(|byte| *byte != 0) {
                return Err(format!("bytes released of a forged {}", case.name()));
            }
        } else if *text != case.text {
            return Err(format!("opening {}", case.name()));
        }
    }
    Ok(())
}

/// Nonces of keys that are published here: nothing is kept secret by them.
fn nonce(salt: Salt, number: u64) -> Option<Nonce> {
    let numbers = Reservation::new(number, u64::MAX);
    Some(Sequence::reserved(true, salt, numbers).take().ok()?.1)
}

fn pattern(length: usize, step: usize) -> Vec<u8> {
    (0..length)
        .map(|place| (place * step + place / 251) as u8)
        .collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|two| {
            two.iter().fold(0, |value, digit| {
                value << 4 | char::from(*digit).to_digit(16).unwrap_or_default() as u8
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::engine::KeyLength;
    use super::*;

    /// The portable engine with one mistake.
    struct Broken {
        seal: fn(&mut SealJob<'_>),
        open: fn(&mut OpenJob<'_>),
    }

    impl Engine for Broken {
        fn name(&self) -> &'static str {
            "broken"
        }

        fn describe(&self) -> String {
            "broken".into()
        }

        fn expand(&self, suite: Suite, key: &[u8]) -> Result<ExpandedKey, KeyLength> {
            AesGcm.expand(suite, key)
        }

        fn seal(&self, jobs: &mut [SealJob<'_>]) {
            AesGcm.seal(jobs);
            jobs.iter_mut().for_each(self.seal);
        }

        fn open(&self, jobs: &mut [OpenJob<'_>]) {
            AesGcm.open(jobs);
            jobs.iter_mut().for_each(self.open);
        }
    }

    fn output<'a>(buffers: &'a mut Buffers<'_>) -> &'a mut [u8] {
        match buffers {
            Buffers::InPlace(bytes) => bytes,
            Buffers::Copy { destination, .. } => destination,
        }
    }

    #[test]
    fn the_portable_engine_answers_right() {
        assert_eq!(ask(&AesGcm), Ok(()));
        let sound = Broken {
            seal: |_| (),
            open: |_| (),
        };
        assert_eq!(ask(&sound), Ok(()));
    }

    #[test]
    fn a_mistake_on_one_way_only_is_found() {
        let broken = Broken {
            seal: |job| {
                if let [.., byte] = output(&mut job.buffers)
                    && job.additional.len() == 17
                {
                    *byte ^= 1;
                }
            },
            open: |_| (),
        };
        assert!(ask(&broken).unwrap_err().starts_with("sealing aes-128-gcm"));
        let broken = Broken {
            seal: |job| job.tag[15] ^= u8::from(job.additional.len() == 1424),
            open: |_| (),
        };
        assert!(ask(&broken).unwrap_err().contains("1424 authenticated"));
    }

    #[test]
    fn an_engine_that_opens_forgeries_or_releases_them_is_refused() {
        let broken = Broken {
            seal: |_| (),
            open: |job| job.authentic = true,
        };
        assert!(ask(&broken).unwrap_err().starts_with("the tag of"));
        let broken = Broken {
            seal: |_| (),
            open: |job| {
                if let [first, ..] = output(&mut job.buffers)
                    && !job.authentic
                {
                    *first ^= 0x80;
                }
            },
        };
        assert!(ask(&broken).unwrap_err().starts_with("bytes released"));
    }
}
