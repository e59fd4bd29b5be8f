//! What keeps a flood cheap: codes that only those can make who know the receiver's public key (mac1), and, under load,
//! who receive at the address that they send from (mac2, by a cookie). As in the WireGuard paper, 5.3 and 5.4.7.
//!
//! Keyed BLAKE2s of 16 bytes; cookies travel under XChaCha20-Poly1305, bound to the message that asked for them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use blake2::digest::consts::U16;
use blake2::digest::{Digest, FixedOutput, Mac as _};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::keys::derive::Channel;
use crate::keys::identity::PublicKey;
use crate::keys::store::Generation;

use super::message::MAC;
use super::random::Random;

/// How long a cookie is good for, on both sides.
pub(super) const COOKIE_LIFE: Duration = Duration::from_secs(120);

type Code = [u8; MAC];

fn keyed(key: &[u8], parts: &[&[u8]]) -> Code {
    let Ok(mut mac) = <Blake2sMac<U16> as blake2::digest::Mac>::new_from_slice(key) else {
        unreachable!("keys here have 16 or 32 bytes, and BLAKE2s takes up to 32")
    };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize_fixed().into()
}

/// Compares in constant time.
fn equal(one: &Code, two: &Code) -> bool {
    one.iter().zip(two).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

fn hash(label: &[u8], key: PublicKey) -> [u8; 32] {
    Blake2s256::new()
        .chain_update(label)
        .chain_update(key.0)
        .finalize()
        .into()
}

/// The keys that everyone derives from a receiver's public key.
#[derive(Clone, Debug)]
pub(super) struct ReceiverKeys {
    mac1: [u8; 32],
    tag: [u8; 32],
    cookie: [u8; 32],
}

impl ReceiverKeys {
    pub(super) fn new(receiver: PublicKey) -> Self {
        Self {
            mac1: hash(b"guestseal mac1 1", receiver),
            tag: hash(b"guestseal tag 1", receiver),
            cookie: hash(b"guestseal cookie 1", receiver),
        }
    }

    pub(super) fn mac1(&self, bytes: &[u8]) -> Code {
        keyed(&self.mac1, &[bytes])
    }

    pub(super) fn is_mac1(&self, bytes: &[u8], mac1: &Code) -> bool {
        equal(&self.mac1(bytes), mac1)
    }

    /// The short name of a channel and a generation of its key. Who does not know the receiver cannot test guesses.
    pub(super) fn tag(&self, channel: &Channel, generation: Generation) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = keyed(&self.tag, &[&channel.bind(generation)]);
        [a, b, c, d, e, f, g, h]
    }

    /// Opens a cookie that answers the message with `mac1`.
    pub(super) fn open_cookie(&self, nonce: &[u8; 24], sealed: &[u8; MAC + 16], mac1: &Code) -> Option<Code> {
        let (body, tag) = sealed.split_first_chunk::<MAC>()?;
        let mut cookie = *body;
        XChaCha20Poly1305::new(&self.cookie.into())
            .decrypt_in_place_detached(XNonce::from_slice(nonce), mac1, &mut cookie, Tag::from_slice(tag))
            .ok()?;
        Some(cookie)
    }
}

/// The code that proves a cookie.
pub(super) fn mac2(cookie: &Code, bytes: &[u8]) -> Code {
    keyed(cookie, &[bytes])
}

/// Gives cookies and knows them again, without remembering whom it gave one.
pub(super) struct CookieJar {
    secret: Zeroizing<[u8; 32]>,
    made: Option<Duration>,
}

impl CookieJar {
    pub(super) fn new() -> Self {
        Self {
            secret: Zeroizing::new([0; 32]),
            made: None,
        }
    }

    fn cookie(&mut self, to: SocketAddr, now: Duration, random: &mut dyn Random) -> Code {
        if self.made.is_none_or(|made| now >= made + COOKIE_LIFE) {
            random.fill(self.secret.as_mut());
            self.made = Some(now);
        }
        let port = to.port().to_be_bytes();
        match to.ip() {
            IpAddr::V4(ip) => keyed(self.secret.as_ref(), &[&ip.octets(), &port]),
            IpAddr::V6(ip) => keyed(self.secret.as_ref(), &[&ip.octets(), &port]),
        }
    }

    pub(super) fn is_mac2(
        &mut self,
        bytes: &[u8],
        code: &Code,
        from: SocketAddr,
        now: Duration,
        random: &mut dyn Random,
    ) -> bool {
        equal(&mac2(&self.cookie(from, now, random), bytes), code)
    }

    /// The sealed cookie for the sender of a message with `mac1`.
    pub(super) fn seal(
        &mut self,
        own: &ReceiverKeys,
        mac1: &Code,
        to: SocketAddr,
        now: Duration,
        random: &mut dyn Random,
    ) -> ([u8; 24], [u8; MAC + 16]) {
        let mut cookie = self.cookie(to, now, random);
        let mut nonce = [0; 24];
        random.fill(&mut nonce);
        let sealed = XChaCha20Poly1305::new(&own.cookie.into()).encrypt_in_place_detached(
            XNonce::from_slice(&nonce),
            mac1,
            &mut cookie,
        );
        let Ok(tag) = sealed else {
            unreachable!("16 bytes are not too long to seal")
        };
        let mut both = [0; MAC + 16];
        both[..MAC].copy_from_slice(&cookie);
        both[MAC..].copy_from_slice(&tag);
        (nonce, both)
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::Counting;
    use super::*;

    #[test]
    fn a_cookie_is_for_one_address_one_question_and_two_minutes() {
        let keys = ReceiverKeys::new(PublicKey([9; 32]));
        let (mut jar, mut random) = (CookieJar::new(), Counting(1));
        let (here, there) = (
            "192.0.2.1:4000".parse().unwrap(),
            "192.0.2.1:4001".parse().unwrap(),
        );
        let second = Duration::from_secs(1);
        let (nonce, sealed) = jar.seal(&keys, &[1; MAC], here, second, &mut random);
        assert_eq!(keys.open_cookie(&nonce, &sealed, &[2; MAC]), None);
        assert_eq!(
            ReceiverKeys::new(PublicKey([8; 32])).open_cookie(&nonce, &sealed, &[1; MAC]),
            None
        );
        let cookie = keys.open_cookie(&nonce, &sealed, &[1; MAC]).unwrap();
        let code = mac2(&cookie, b"message");
        assert!(jar.is_mac2(b"message", &code, here, second, &mut random));
        assert!(!jar.is_mac2(b"massage", &code, here, second, &mut random));
        assert!(!jar.is_mac2(b"message", &code, there, second, &mut random));
        assert!(!jar.is_mac2(b"message", &code, here, second + COOKIE_LIFE, &mut random));
    }

    #[test]
    fn mac1_and_tag_are_the_receivers() {
        let (one, two) = (
            ReceiverKeys::new(PublicKey([1; 32])),
            ReceiverKeys::new(PublicKey([2; 32])),
        );
        assert!(one.is_mac1(b"bytes", &one.mac1(b"bytes")));
        assert!(!two.is_mac1(b"bytes", &one.mac1(b"bytes")));
        assert!(!one.is_mac1(b"byte", &one.mac1(b"bytes")));
    }
}
