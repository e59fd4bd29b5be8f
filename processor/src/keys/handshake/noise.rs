//! The Noise handshake itself: IKpsk2 over X25519, ChaCha20-Poly1305 and BLAKE2s, by crate `snow`.
//!
//! IKpsk2: the initiator knows the responder's static key, both prove theirs in one round trip, and the rule's key is
//! mixed in last. These primitives, because they run in constant time in software on any CPU, and are WireGuard's, whose
//! proofs and vectors hold for this handshake; the traffic is AES-GCM all the same.
//!
//! snow does not wipe its symmetric state: it lives from an initiation to its answer, at most one retry interval, in memory that is
//! in no core file. What is taken out here is wiped.

use std::sync::{Arc, LazyLock};

use snow::params::NoiseParams;
use snow::{Builder, HandshakeState};
use zeroize::{Zeroize, Zeroizing};

use crate::keys::derive::Channel;
use crate::keys::identity::PublicKey;
use crate::keys::secret::LENGTH;
use crate::keys::store::{Generation, RuleKey};

use super::message::{NOISE_1, NOISE_2, PAYLOAD, VERSION};
use super::statics::{Resolver, Statics};

static SUITE: LazyLock<NoiseParams> =
    LazyLock::new(|| match "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s".parse() {
        Ok(params) => params,
        Err(_) => unreachable!("snow is built with these primitives"),
    });

/// The two secret halves, the initiator's direction first.
pub(super) type RawSplit = (Zeroizing<[u8; LENGTH]>, Zeroizing<[u8; LENGTH]>);

/// The initiator, waiting for the answer.
pub(super) struct Waiting(HandshakeState);

/// The responder, having read the initiation.
pub(super) struct Asked {
    state: HandshakeState,
    /// Who it is from: proven, but not that it is new.
    pub(super) from: PublicKey,
    pub(super) payload: [u8; PAYLOAD],
}

/// Both hosts must have the same, or no message opens.
fn prologue(channel: &Channel, generation: Generation) -> Vec<u8> {
    let mut bytes = b"guestseal session".to_vec();
    bytes.push(VERSION);
    bytes.extend(channel.bind(generation));
    bytes
}

fn builder<'a>(
    own: &'a Arc<Statics>,
    key: &'a RuleKey,
    prologue: &'a [u8],
) -> Result<Builder<'a>, snow::Error> {
    Builder::with_resolver(SUITE.clone(), Box::new(Resolver(Arc::clone(own))))
        .local_private_key(own.private())?
        .prologue(prologue)?
        .psk(2, key.psk())
}

/// Begins a handshake with `remote`.
pub(super) fn begin(
    own: &Arc<Statics>,
    remote: PublicKey,
    channel: &Channel,
    key: &RuleKey,
    payload: &[u8; PAYLOAD],
) -> Option<(Waiting, [u8; NOISE_1])> {
    let prologue = prologue(channel, key.generation);
    let mut state = builder(own, key, &prologue)
        .and_then(|builder| builder.remote_public_key(&remote.0))
        .and_then(Builder::build_initiator)
        .ok()?;
    let mut message = [0; NOISE_1];
    let length = state.write_message(payload, &mut message).ok()?;
    (length == NOISE_1).then_some((Waiting(state), message))
}

/// Reads an initiation. Nothing, if it is not from who knows this host, or not for this channel and generation.
pub(super) fn read(
    own: &Arc<Statics>,
    channel: &Channel,
    key: &RuleKey,
    message: &[u8; NOISE_1],
) -> Option<Asked> {
    let prologue = prologue(channel, key.generation);
    let mut state = builder(own, key, &prologue)
        .and_then(Builder::build_responder)
        .ok()?;
    let mut payload = [0; PAYLOAD];
    let length = state.read_message(message, &mut payload).ok()?;
    let from = PublicKey(state.get_remote_static()?.try_into().ok()?);
    (length == PAYLOAD).then_some(Asked { state, from, payload })
}

impl Asked {
    /// Answers it: the session's secret, and the message.
    pub(super) fn answer(mut self, payload: &[u8; PAYLOAD]) -> Option<(RawSplit, [u8; NOISE_2])> {
        let mut message = [0; NOISE_2];
        let length = self.state.write_message(payload, &mut message).ok()?;
        (length == NOISE_2).then(|| (split(&mut self.state), message))
    }
}

impl Waiting {
    /// Reads the answer: the session's secret, and what was said. A wrong answer changes nothing.
    pub(super) fn finish(&mut self, message: &[u8; NOISE_2]) -> Option<(RawSplit, [u8; PAYLOAD])> {
        let mut payload = [0; PAYLOAD];
        let length = self.0.read_message(message, &mut payload).ok()?;
        (length == PAYLOAD).then(|| (split(&mut self.0), payload))
    }
}

fn split(state: &mut HandshakeState) -> RawSplit {
    let (mut one, mut two) = state.dangerously_get_raw_split();
    let halves = (Zeroizing::new(one), Zeroizing::new(two));
    one.zeroize();
    two.zeroize();
    halves
}

#[cfg(test)]
mod tests {
    use chacha20poly1305::aead::{Aead, KeyInit};
    use chacha20poly1305::{ChaCha20Poly1305, Nonce};

    use guestseal_rules::classify::Protection;
    use guestseal_rules::model::Suite;

    use crate::keys::identity::Identity;
    use crate::keys::secret::{Secret, from_hex};

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        from_hex(hex.as_bytes()).unwrap().to_vec()
    }

    fn array(hex: &str) -> [u8; 32] {
        bytes(hex).try_into().unwrap()
    }

    /// The published vector for this suite (cacophony.txt of the cacophony and snow projects), handshake messages to the
    /// byte, then the transport messages under the raw split: the keys that everything is derived from are those of Noise.
    #[test]
    fn messages_and_raw_split_are_those_of_the_published_vector() {
        let vector: serde_json::Value = serde_json::from_str(include_str!("ikpsk2_vector.json")).unwrap();
        let text = |name: &str| vector[name].as_str().unwrap();
        let prologue = bytes(text("prologue"));
        let psk = array(text("psk"));
        let (initiator_static, responder_static) = (array(text("init_static")), array(text("resp_static")));
        let (initiator_ephemeral, responder_ephemeral) =
            (array(text("init_ephemeral")), array(text("resp_ephemeral")));
        let remote = array(text("init_remote_static"));
        assert_eq!(
            Identity::new(Secret::new(&responder_static).unwrap()).public().0,
            remote
        );
        let public_of = |private: &[u8; 32]| Identity::new(Secret::new(private).unwrap()).public();
        let build = |own, ephemeral| {
            let identity = Identity::new(Secret::new(own).unwrap());
            // As hosts have it: what is shared with the other static key was worked out before.
            let statics = Statics::new(&identity, [PublicKey(remote), public_of(&initiator_static)], None);
            Builder::with_resolver(SUITE.clone(), Box::new(Resolver(statics)))
                .local_private_key(own)
                .unwrap()
                .fixed_ephemeral_key_for_testing_only(ephemeral)
                .prologue(&prologue)
                .unwrap()
                .psk(2, &psk)
                .unwrap()
        };
        let mut initiator = build(&initiator_static, &initiator_ephemeral)
            .remote_public_key(&remote)
            .unwrap()
            .build_initiator()
            .unwrap();
        let mut responder = build(&responder_static, &responder_ephemeral)
            .build_responder()
            .unwrap();
        let messages: Vec<(Vec<u8>, Vec<u8>)> = vector["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| {
                let part = |name: &str| bytes(message[name].as_str().unwrap());
                (part("payload"), part("ciphertext"))
            })
            .collect();
        assert_eq!(messages.len(), 6);
        let mut buffer = [0; 256];
        let mut read = [0; 256];
        for (number, (payload, expected)) in messages[..2].iter().enumerate() {
            let (writer, reader) = match number {
                0 => (&mut initiator, &mut responder),
                _ => (&mut responder, &mut initiator),
            };
            let length = writer.write_message(payload, &mut buffer).unwrap();
            assert_eq!(&buffer[..length], &expected[..], "message {number}");
            let length = reader.read_message(expected, &mut read).unwrap();
            assert_eq!(&read[..length], &payload[..]);
        }
        let (from_initiator, from_responder) = split(&mut initiator);
        assert_eq!(
            split(&mut responder),
            (from_initiator.clone(), from_responder.clone())
        );
        for (number, (payload, expected)) in messages.iter().enumerate().skip(2) {
            let key = if number % 2 == 0 {
                &from_initiator
            } else {
                &from_responder
            };
            // Each direction counts for itself, in little endian.
            let mut nonce = [0; 12];
            nonce[4] = (number as u8 - 2) / 2;
            let sealed = ChaCha20Poly1305::new_from_slice(key.as_ref())
                .unwrap()
                .encrypt(Nonce::from_slice(&nonce), &payload[..])
                .unwrap();
            assert_eq!(&sealed, expected, "message {number}");
        }
    }

    fn public(byte: u8) -> PublicKey {
        Identity::new(Secret::new(&[byte; LENGTH]).unwrap()).public()
    }

    /// A host that knows the second one.
    fn host(byte: u8) -> Arc<Statics> {
        let own = Identity::new(Secret::new(&[byte; LENGTH]).unwrap());
        Statics::new(&own, [public(2)], None)
    }

    fn channel(network: &str) -> Channel {
        Channel {
            network: network.into(),
            key: "any".into(),
            protection: Protection::Encrypt,
            suite: Suite::Aes256Gcm,
        }
    }

    fn key(generation: u32, byte: u8) -> std::sync::Arc<RuleKey> {
        RuleKey::new(
            "any".into(),
            Generation(generation),
            Secret::new(&[byte; LENGTH]).unwrap(),
        )
    }

    #[test]
    fn both_end_with_the_same_secret_and_know_each_other() {
        let (one, two) = (host(1), host(2));
        let (mut waiting, message) =
            begin(&one, public(2), &channel("blue"), &key(1, 7), &[3; PAYLOAD]).unwrap();
        let asked = read(&two, &channel("blue"), &key(1, 7), &message).unwrap();
        assert_eq!((asked.from, asked.payload), (public(1), [3; PAYLOAD]));
        let (split, answer) = asked.answer(&[4; PAYLOAD]).unwrap();
        let mut forged = answer;
        forged[NOISE_2 - 1] ^= 1;
        assert!(waiting.finish(&forged).is_none());
        let (same, payload) = waiting
            .finish(&answer)
            .expect("a forged answer before it changed nothing");
        assert_eq!((same, payload), (split, [4; PAYLOAD]));
    }

    /// Network, generation, receiver and version are bound by message 1; the key's bytes by message 2.
    #[test]
    fn hosts_that_do_not_mean_the_same_get_nowhere() {
        let (one, two) = (host(1), host(2));
        let begin = || begin(&one, public(2), &channel("blue"), &key(1, 7), &[3; PAYLOAD]).unwrap();
        let (_, message) = begin();
        assert!(read(&two, &channel("red"), &key(1, 7), &message).is_none());
        assert!(read(&two, &channel("blue"), &key(2, 7), &message).is_none());
        assert!(read(&host(3), &channel("blue"), &key(1, 7), &message).is_none());
        for place in [0, 40, 90, NOISE_1 - 1] {
            let mut changed = message;
            changed[place] ^= 1;
            assert!(
                read(&two, &channel("blue"), &key(1, 7), &changed).is_none(),
                "{place}"
            );
        }
        let (mut waiting, message) = begin();
        let other_bytes = read(&two, &channel("blue"), &key(1, 8), &message).unwrap();
        let (_, answer) = other_bytes.answer(&[4; PAYLOAD]).unwrap();
        assert!(waiting.finish(&answer).is_none());
    }
}
