//! The portable engine: the crate `aes-gcm`, always there.

use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes128Gcm, Aes256Gcm, KeyInit};
use guestseal_rules::model::Suite;

use super::engine::{Buffers, Engine, Expanded, ExpandedKey, KeyLength, OpenJob, SealJob, another_engine};

/// The crate `aes-gcm` (AES-NI and PCLMULQDQ where the CPU has them).
#[derive(Copy, Clone, Debug, Default)]
pub struct AesGcm;

impl Engine for AesGcm {
    fn name(&self) -> &'static str {
        "aes-gcm"
    }

    fn describe(&self) -> String {
        "aes-gcm (the portable one)".into()
    }

    fn expand(&self, suite: Suite, key: &[u8]) -> Result<ExpandedKey, KeyLength> {
        let wrong = |_| KeyLength {
            suite,
            expected: suite.key_length(),
            found: key.len(),
        };
        Ok(ExpandedKey(match suite {
            Suite::Aes128Gcm => {
                Expanded::Portable128(Box::new(Aes128Gcm::new_from_slice(key).map_err(wrong)?))
            }
            Suite::Aes256Gcm => {
                Expanded::Portable256(Box::new(Aes256Gcm::new_from_slice(key).map_err(wrong)?))
            }
        }))
    }

    fn seal(&self, jobs: &mut [SealJob<'_>]) {
        for job in jobs {
            match &job.key.0 {
                Expanded::Portable128(cipher) => seal(&**cipher, job),
                Expanded::Portable256(cipher) => seal(&**cipher, job),
                #[cfg(target_arch = "x86_64")]
                _ => another_engine(),
            }
        }
    }

    fn open(&self, jobs: &mut [OpenJob<'_>]) {
        for job in jobs {
            job.authentic = match &job.key.0 {
                Expanded::Portable128(cipher) => open(&**cipher, job),
                Expanded::Portable256(cipher) => open(&**cipher, job),
                #[cfg(target_arch = "x86_64")]
                _ => another_engine(),
            };
        }
    }
}

fn in_out<'a>(buffers: &'a mut Buffers<'_>) -> InOutBuf<'a, 'a, u8> {
    match buffers {
        Buffers::InPlace(bytes) => InOutBuf::from(&mut **bytes),
        Buffers::Copy { source, destination } => {
            InOutBuf::new(source, destination).expect("source and destination have the same length")
        }
    }
}

fn seal<C>(cipher: &C, job: &mut SealJob<'_>)
where
    C: AeadInOut<NonceSize = aes_gcm::aead::consts::U12, TagSize = aes_gcm::aead::consts::U16>,
{
    let tag = cipher
        .encrypt_inout_detached(
            job.nonce.as_bytes().into(),
            job.additional,
            in_out(&mut job.buffers),
        )
        .expect("a packet is shorter than AES-GCM's limit");
    job.tag.copy_from_slice(&tag);
}

/// The crate compares the tag before it decrypts: a wrong one leaves the destination as it was.
fn open<C>(cipher: &C, job: &mut OpenJob<'_>) -> bool
where
    C: AeadInOut<NonceSize = aes_gcm::aead::consts::U12, TagSize = aes_gcm::aead::consts::U16>,
{
    let (nonce, tag) = ((&job.nonce).into(), job.tag.into());
    cipher
        .decrypt_inout_detached(nonce, job.additional, in_out(&mut job.buffers), tag)
        .is_ok()
}
