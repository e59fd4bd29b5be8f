//! A host's identity: its X25519 static key (RFC 7748), in a file that only its owner may read.
//!
//! A new identity is made in two steps, so that its peers can know the public key before it is used: `prepare_next`
//! makes it beside the one in use, `activate_next` puts it in its place.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};

use super::secret::{LENGTH, Secret, SecretFileError, from_hex, sync_directory};

/// A public static key.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; LENGTH]);

/// The text is no public key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a public key: 64 hexadecimal digits, as guestseal key public prints them")]
pub struct NotAPublicKey;

impl FromStr for PublicKey {
    type Err = NotAPublicKey;

    fn from_str(text: &str) -> Result<Self, NotAPublicKey> {
        let bytes = from_hex(text.as_bytes()).ok_or(NotAPublicKey)?;
        let key: [u8; LENGTH] = bytes.as_slice().try_into().map_err(|_| NotAPublicKey)?;
        Self::of_bytes(key).ok_or(NotAPublicKey)
    }
}

impl PublicKey {
    /// The key of these bytes, unless everybody would share a secret with it.
    #[must_use]
    pub fn of_bytes(key: [u8; LENGTH]) -> Option<Self> {
        // A point of small order has the same secret with everyone. x25519 gives zeros for each of them.
        (x25519([0x55; LENGTH], key) != [0; LENGTH]).then_some(Self(key))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// There is no next identity to use.
    #[error("{}: is not there: make the next identity first, with guestseal key rotate {}", next.display(), path.display())]
    NoNext {
        /// The identity in use.
        path: PathBuf,
        /// Where the next one would be.
        next: PathBuf,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
}

/// A static key with its public half.
pub struct Identity {
    secret: Secret,
    public: PublicKey,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.public)
    }
}

impl Identity {
    /// The identity of a secret.
    #[must_use]
    pub fn new(secret: Secret) -> Self {
        let public = PublicKey(x25519(*secret.expose(), X25519_BASEPOINT_BYTES));
        Self { secret, public }
    }

    /// Makes one that nobody had before.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut done = Ok(());
        let secret = Secret::made_by(|place| done = getrandom::fill(place));
        done.map_err(|error| IdentityError::Random(error.to_string()))?;
        Ok(Self::new(secret))
    }

    /// Reads a file of 64 hexadecimal digits.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn read(path: &Path) -> Result<Self, IdentityError> {
        Ok(Self::new(Secret::read(path)?))
    }

    /// Makes one and writes it to a file that must not exist yet.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn create(path: &Path) -> Result<Self, IdentityError> {
        let identity = Self::generate()?;
        identity.secret.write_new(path)?;
        Ok(identity)
    }

    /// The next identity of the one at `path`: the one that is prepared already, else a new one.
    ///
    /// # Errors
    /// See [`IdentityError`]; also if there is no identity at `path`.
    pub fn prepare_next(path: &Path) -> Result<Self, IdentityError> {
        Self::read(path)?;
        let next = next_of(path);
        if next.exists() {
            Self::read(&next)
        } else {
            Self::create(&next)
        }
    }

    /// Puts the next identity in the place of the one at `path`, which is gone then.
    ///
    /// # Errors
    /// See [`IdentityError`]; the one in use stays then.
    pub fn activate_next(path: &Path) -> Result<Self, IdentityError> {
        let next = next_of(path);
        if !next.exists() {
            return Err(IdentityError::NoNext {
                path: path.to_owned(),
                next,
            });
        }
        let identity = Self::read(&next)?;
        std::fs::rename(&next, path)
            .and_then(|()| sync_directory(path))
            .map_err(|source| SecretFileError::Write {
                path: path.to_owned(),
                source,
            })?;
        Ok(identity)
    }

    /// The public half, for peers.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The secret half, for the handshake.
    #[must_use]
    pub(super) fn secret(&self) -> &[u8; LENGTH] {
        self.secret.expose()
    }
}

fn next_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7748 6.1: Bob's keys.
    #[test]
    fn the_public_key_is_that_of_rfc_7748() {
        let bob = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";
        let secret = Secret::new(&from_hex(bob.as_bytes()).unwrap()).unwrap();
        assert_eq!(
            Identity::new(secret).public().to_string(),
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
        );
    }

    #[test]
    fn a_public_key_reads_as_it_prints_and_small_orders_are_refused() {
        let public = Identity::generate().unwrap().public();
        assert_eq!(public.to_string().parse(), Ok(public));
        for wrong in [
            "".to_owned(),
            "ab".repeat(31),
            "zz".repeat(32),
            "00".repeat(32),
            format!("01{}", "00".repeat(31)),
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800".to_owned(),
        ] {
            assert_eq!(wrong.parse::<PublicKey>(), Err(NotAPublicKey), "{wrong}");
        }
    }

    #[test]
    fn rotation_keeps_the_old_one_until_the_new_one_is_activated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity");
        assert!(matches!(
            Identity::prepare_next(&path),
            Err(IdentityError::File(_))
        ));
        let old = Identity::create(&path).unwrap();
        let error = Identity::activate_next(&path).unwrap_err();
        assert!(error.to_string().contains("guestseal key rotate"), "{error}");
        let next = Identity::prepare_next(&path).unwrap();
        assert_eq!(
            Identity::prepare_next(&path).unwrap().public(),
            next.public(),
            "asked twice, made once"
        );
        assert_eq!(Identity::read(&path).unwrap().public(), old.public());
        assert_eq!(Identity::activate_next(&path).unwrap().public(), next.public());
        assert_eq!(Identity::read(&path).unwrap().public(), next.public());
        assert!(Identity::activate_next(&path).is_err(), "it is used up");
    }

    #[test]
    fn the_secret_half_is_not_printed() {
        let identity = Identity::generate().unwrap();
        assert_eq!(
            format!("{identity:?}"),
            format!("Identity({})", identity.public())
        );
    }
}
