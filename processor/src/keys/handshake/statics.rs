//! Static keys in handshakes: this host's public key, and the secret that it shares with each peer's static key, are worked
//! out once, not in every handshake. That is a quarter of a handshake's point multiplications.
//!
//! crate snow is given these by a resolver; everything else of Noise is snow's own. Private halves are wiped when dropped.

use std::collections::HashMap;
use std::sync::Arc;

use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use x25519_dalek::{StaticSecret, x25519};
use zeroize::Zeroizing;

use crate::keys::identity::{Identity, PublicKey};
use crate::keys::secret::{LENGTH, Secret};

/// What is worked out once.
pub(super) struct Statics {
    private: Secret,
    public: [u8; LENGTH],
    shared: HashMap<[u8; LENGTH], Arc<Secret>>,
}

impl Statics {
    /// For a host and its peers' public keys. What was worked out `before` for the same host is not worked out again.
    pub(super) fn new(
        own: &Identity,
        peers: impl IntoIterator<Item = PublicKey>,
        before: Option<&Self>,
    ) -> Arc<Self> {
        let known = before.filter(|before| before.public == own.public().0);
        let shared = |peer: PublicKey| {
            let known = known.and_then(|known| known.shared.get(&peer.0)).cloned();
            let shared = known
                .unwrap_or_else(|| Arc::new(Secret::made_by(|place| *place = x25519(*own.secret(), peer.0))));
            (peer.0, shared)
        };
        Arc::new(Self {
            private: Secret::made_by(|place| *place = *own.secret()),
            public: own.public().0,
            shared: peers.into_iter().map(shared).collect(),
        })
    }

    pub(super) fn private(&self) -> &[u8; LENGTH] {
        self.private.expose()
    }
}

/// Gives a handshake its primitives.
pub(super) struct Resolver(pub(super) Arc<Statics>);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        DefaultResolver.resolve_rng()
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| {
            Box::new(Curve25519 {
                statics: Arc::clone(&self.0),
                private: Zeroizing::default(),
                public: [0; LENGTH],
                is_static: false,
            }) as Box<dyn Dh>
        })
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// A key pair: the static one, or one of this handshake.
struct Curve25519 {
    statics: Arc<Statics>,
    private: Zeroizing<[u8; LENGTH]>,
    public: [u8; LENGTH],
    is_static: bool,
}

impl Curve25519 {
    fn become_key(&mut self, private: Zeroizing<[u8; LENGTH]>) {
        // By the table of multiples of the base point.
        self.public = x25519_dalek::PublicKey::from(&StaticSecret::from(*private)).to_bytes();
        self.private = private;
        self.is_static = false;
    }
}

impl Dh for Curve25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        LENGTH
    }

    fn priv_len(&self) -> usize {
        LENGTH
    }

    fn set(&mut self, private: &[u8]) {
        let Ok(private) = <[u8; LENGTH]>::try_from(private) else {
            return;
        };
        let private = Zeroizing::new(private);
        if *private == *self.statics.private() {
            self.public = self.statics.public;
            self.private = private;
            self.is_static = true;
        } else {
            self.become_key(private);
        }
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        let mut private = Zeroizing::new([0; LENGTH]);
        random.try_fill_bytes(private.as_mut())?;
        self.become_key(private);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        self.private.as_ref()
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        // snow's buffers are longer than this key.
        let public = public.first_chunk::<LENGTH>().ok_or(Error::Dh)?;
        let out = out.first_chunk_mut::<LENGTH>().ok_or(Error::Dh)?;
        match self.statics.shared.get(public).filter(|_| self.is_static) {
            Some(shared) => *out = *shared.expose(),
            None => *out = x25519(*self.private, *public),
        }
        // A point of small order: the secret would be everybody's (RFC 7748 6.1).
        if *out == [0; LENGTH] {
            return Err(Error::Dh);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(byte: u8) -> Identity {
        Identity::new(Secret::new(&[byte; LENGTH]).unwrap())
    }

    /// With the cache and without it, for static and other keys: the same numbers as snow's own.
    #[test]
    fn what_is_worked_out_once_is_what_snow_works_out() {
        let (one, two, three) = (identity(1), identity(2), identity(3));
        let statics = Statics::new(&one, [two.public()], None);
        let mut ours = Resolver(statics).resolve_dh(&DHChoice::Curve25519).unwrap();
        let mut theirs = DefaultResolver.resolve_dh(&DHChoice::Curve25519).unwrap();
        for private in [*one.secret(), [9; LENGTH]] {
            ours.set(&private);
            theirs.set(&private);
            assert_eq!(ours.pubkey(), theirs.pubkey());
            for peer in [two.public(), three.public()] {
                let (mut a, mut b) = ([0; LENGTH], [0; LENGTH]);
                ours.dh(&peer.0, &mut a).unwrap();
                theirs.dh(&peer.0, &mut b).unwrap();
                assert_eq!(a, b);
            }
        }
        let mut out = [0; LENGTH];
        assert!(ours.dh(&[0; LENGTH], &mut out).is_err(), "a point of small order");
    }
}
