//! The keys of a session, derived from the handshake's raw split: the secret that it ends with.
//!
//! Never from the handshake hash, which is public. The split has a half for each direction; HKDF (RFC 5869, SHA-256)
//! takes a half and a label that says everything the key is for. Two keys are equal only if all of it is.

use std::fmt;

use guestseal_rules::classify::Protection;
use guestseal_rules::model::Suite;
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::sa::nonce::Salt;
use crate::sa::spi::Spi;

use super::secret::LENGTH;
use super::store::Generation;

/// Extraction salt: names the protocol and its version.
const SALT: &[u8] = b"guestseal session keys 1";
/// Bytes of SA key and salt.
const MAX_KEYMAT: usize = 32 + 4;

/// What a session is for: both hosts must mean the same, in names, not in numbers of their own files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Channel {
    /// The logical network.
    pub network: String,
    /// The key that rules name.
    pub key: String,
    /// Encrypted or authenticated only.
    pub protection: Protection,
    /// The suite.
    pub suite: Suite,
}

impl Channel {
    /// Everything of it, and the generation, as bytes that no other channel has.
    #[must_use]
    pub fn bind(&self, generation: Generation) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.network.len() + self.key.len() + 14);
        for name in [&self.network, &self.key] {
            bytes.extend((name.len() as u32).to_be_bytes());
            bytes.extend(name.as_bytes());
        }
        bytes.extend(generation.0.to_be_bytes());
        bytes.push(match self.protection {
            Protection::Encrypt => 1,
            Protection::Authenticate => 2,
        });
        bytes.push(match self.suite {
            Suite::Aes256Gcm => 1,
            Suite::Aes128Gcm => 2,
        });
        bytes
    }
}

/// A direction of a session.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the host that began the handshake.
    FromInitiator,
    /// From the host that answered.
    FromResponder,
}

/// Key and salt of one SA. Wiped when dropped; prints nothing of itself.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct TrafficKey {
    bytes: [u8; MAX_KEYMAT],
    #[zeroize(skip)]
    suite: Suite,
}

impl fmt::Debug for TrafficKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrafficKey(secret)")
    }
}

impl TrafficKey {
    /// The suite that it is for.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The AES key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.bytes[..self.suite.key_length()]
    }

    /// The salt.
    #[must_use]
    pub fn salt(&self) -> Salt {
        let mut salt = [0; 4];
        salt.copy_from_slice(&self.bytes[32..]);
        Salt(salt)
    }
}

/// What all keys of a session come from. Wiped when dropped.
pub struct SessionSecret {
    from_initiator: Zeroizing<[u8; LENGTH]>,
    from_responder: Zeroizing<[u8; LENGTH]>,
    binding: Vec<u8>,
    suite: Suite,
}

impl fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSecret")
    }
}

impl SessionSecret {
    /// Of a handshake's raw split, for a channel and a generation of its key.
    #[must_use]
    pub fn new(
        (from_initiator, from_responder): (Zeroizing<[u8; LENGTH]>, Zeroizing<[u8; LENGTH]>),
        channel: &Channel,
        generation: Generation,
    ) -> Self {
        Self {
            from_initiator,
            from_responder,
            binding: channel.bind(generation),
            suite: channel.suite,
        }
    }

    /// The key of one SA: of a direction, of the sender's worker `lane`, under `spi`.
    #[must_use]
    pub fn traffic_key(&self, direction: Direction, lane: u8, spi: Spi) -> TrafficKey {
        let mut key = TrafficKey {
            bytes: [0; MAX_KEYMAT],
            suite: self.suite,
        };
        self.expand(
            direction,
            &[b"sa", &[lane], &spi.get().to_be_bytes()],
            &mut key.bytes,
        );
        key
    }

    /// The key of the messages inside the session in one direction.
    #[must_use]
    pub fn message_key(&self, direction: Direction) -> Zeroizing<[u8; LENGTH]> {
        let mut key = Zeroizing::new([0; LENGTH]);
        self.expand(direction, &[b"message"], key.as_mut());
        key
    }

    fn expand(&self, direction: Direction, label: &[&[u8]], key: &mut [u8]) {
        let (half, name): (_, &[u8]) = match direction {
            Direction::FromInitiator => (&self.from_initiator, b"from initiator"),
            Direction::FromResponder => (&self.from_responder, b"from responder"),
        };
        // Every part with its length in front: no two lists of parts are the same bytes.
        let mut info = Vec::with_capacity(self.binding.len() + 64);
        for part in label.iter().copied().chain([name, &self.binding]) {
            info.extend((part.len() as u32).to_be_bytes());
            info.extend(part);
        }
        if Hkdf::<Sha256>::new(Some(SALT), half.as_ref())
            .expand(&info, key)
            .is_err()
        {
            unreachable!("HKDF-SHA256 gives up to 8160 bytes, and no key here has more than 36")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn channel(network: &str, key: &str) -> Channel {
        Channel {
            network: network.into(),
            key: key.into(),
            protection: Protection::Encrypt,
            suite: Suite::Aes256Gcm,
        }
    }

    fn secret(first: u8, second: u8, channel: &Channel, generation: u32) -> SessionSecret {
        let halves = (Zeroizing::new([first; LENGTH]), Zeroizing::new([second; LENGTH]));
        SessionSecret::new(halves, channel, Generation(generation))
    }

    /// Whatever differs, the key does: worker, direction, SPI, network, key, generation, protection, suite, either half.
    #[test]
    fn every_key_is_for_one_thing_only() {
        let mut seen = HashSet::new();
        let mut channels = vec![
            channel("blue", "any"),
            channel("blu", "eany"),
            channel("red", "any"),
            channel("blue", "mail"),
        ];
        channels.push(Channel {
            protection: Protection::Authenticate,
            ..channels[0].clone()
        });
        channels.push(Channel {
            suite: Suite::Aes128Gcm,
            ..channels[0].clone()
        });
        for channel in &channels {
            for generation in [1, 2] {
                let secret = secret(7, 7, channel, generation);
                for direction in [Direction::FromInitiator, Direction::FromResponder] {
                    for lane in 0..4 {
                        for spi in [0x1000, 0x1001] {
                            let key = secret.traffic_key(direction, lane, Spi::new(spi).unwrap());
                            assert!(
                                seen.insert(key.key()[..16].to_vec()),
                                "{channel:?} {generation} {lane}"
                            );
                        }
                    }
                    assert!(seen.insert(secret.message_key(direction)[..16].to_vec()));
                }
            }
        }
    }

    #[test]
    fn each_direction_comes_from_its_own_half() {
        let channel = channel("blue", "any");
        let spi = Spi::new(0x1000).unwrap();
        let key = |first, second, direction| {
            secret(first, second, &channel, 1)
                .traffic_key(direction, 0, spi)
                .key()
                .to_vec()
        };
        let (from_initiator, from_responder) = (Direction::FromInitiator, Direction::FromResponder);
        assert_eq!(key(1, 2, from_initiator), key(1, 3, from_initiator));
        assert_ne!(key(1, 2, from_initiator), key(9, 2, from_initiator));
        assert_eq!(key(1, 2, from_responder), key(9, 2, from_responder));
        assert_ne!(key(1, 2, from_responder), key(1, 3, from_responder));
    }

    /// RFC 5869 A.1, through the same crate in the same way: extract with a salt, expand with an info.
    #[test]
    fn hkdf_is_that_of_rfc_5869() {
        let salt: Vec<u8> = (0..=0x0c).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let mut okm = [0; 42];
        Hkdf::<Sha256>::new(Some(&salt), &[0x0b; 22])
            .expand(&info, &mut okm)
            .unwrap();
        let text: String = okm.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            text,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
        );
    }

    #[test]
    fn nothing_secret_is_printed() {
        let secret = secret(1, 2, &channel("blue", "any"), 1);
        let key = secret.traffic_key(Direction::FromInitiator, 0, Spi::new(0x1000).unwrap());
        assert_eq!(
            format!("{secret:?} {key:?} {:?}", key.salt()),
            "SessionSecret TrafficKey(secret) Salt(secret)"
        );
    }
}
