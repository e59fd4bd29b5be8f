//! The KEYMAT of a manual SA: AES key and salt (RFC 4106 8.1), from a file that only its owner may read.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use guestseal_rules::model::Suite;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::sa::nonce::Salt;

use super::secret::{MAX_HEX, SecretFileError, from_hex, read_private};

/// Bytes of salt behind the key.
pub const SALT: usize = 4;

/// Why there is no KEYMAT.
#[derive(Debug, thiserror::Error)]
pub enum KeymatError {
    /// The file.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// It has the wrong length.
    #[error("{}: {found} bytes: {suite} takes {expected}, the key and 4 bytes of salt (RFC 4106 8.1)", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// The suite.
        suite: Suite,
        /// Bytes it takes.
        expected: usize,
        /// Bytes there are.
        found: usize,
    },
}

/// Key and salt of one SA. Wiped when dropped; prints nothing of itself.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Keymat {
    bytes: Vec<u8>,
    #[zeroize(skip)]
    suite: Suite,
}

impl fmt::Debug for Keymat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keymat(secret)")
    }
}

impl Keymat {
    /// Reads a file of hexadecimal digits.
    ///
    /// # Errors
    /// See [`KeymatError`].
    pub fn read(path: &Path, suite: Suite) -> Result<Self, KeymatError> {
        let text = read_private(path, MAX_HEX)?;
        Self::parse(&text, suite, path)
    }

    fn parse(text: &[u8], suite: Suite, path: &Path) -> Result<Self, KeymatError> {
        let expected = suite.key_length() + SALT;
        let Some(bytes) = from_hex(text) else {
            return Err(SecretFileError::NotHex {
                path: path.to_owned(),
                expected,
            }
            .into());
        };
        if bytes.len() != expected {
            return Err(KeymatError::Length {
                path: path.to_owned(),
                suite,
                expected,
                found: bytes.len(),
            });
        }
        Ok(Self {
            bytes: bytes.to_vec(),
            suite,
        })
    }

    /// The AES key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.bytes[..self.suite.key_length()]
    }

    /// The salt.
    #[must_use]
    pub fn salt(&self) -> Salt {
        let mut salt = [0; SALT];
        salt.copy_from_slice(&self.bytes[self.suite.key_length()..]);
        Salt(salt)
    }

    /// A one-way name of the AES key: equal for equal keys, of no use to find the key.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        hash.update(b"guestseal keymat fingerprint 1");
        hash.update(self.key());
        Fingerprint(hash.finalize().into())
    }
}

/// A one-way name of an AES key.
#[derive(Copy, Clone, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Two SAs have the same AES key: each would use the other's nonces.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "security associations {one} and {two} have the same AES key, so that they would use the same nonces: \
     give each direction and each SA a key of its own"
)]
pub struct SharedKey {
    /// One SA's name.
    pub one: String,
    /// The other's.
    pub two: String,
}

/// Checks that no two SAs of either direction have the same AES key.
///
/// # Errors
/// Names the first two that do.
pub fn distinct<'a>(all: impl IntoIterator<Item = (&'a str, Fingerprint)>) -> Result<(), SharedKey> {
    let mut seen = HashMap::new();
    for (name, fingerprint) in all {
        if let Some(before) = seen.insert(fingerprint, name) {
            return Err(SharedKey {
                one: before.to_owned(),
                two: name.to_owned(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn key_and_salt_are_read() {
        let text = format!("{}\n01020304\n", "ab".repeat(32));
        let keymat = Keymat::read(file(&text, 0o600).path(), Suite::Aes256Gcm).unwrap();
        assert_eq!(keymat.key(), [0xab; 32]);
        assert_eq!(keymat.salt(), Salt([1, 2, 3, 4]));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let error = Keymat::read(file(&"ab".repeat(36), 0o640).path(), Suite::Aes256Gcm).unwrap_err();
        assert!(
            matches!(
                error,
                KeymatError::File(SecretFileError::Exposed { mode: 0o640, .. })
            ),
            "{error}"
        );
        assert!(error.to_string().contains("chmod 600"));
    }

    #[test]
    fn wrong_contents_are_refused_without_being_shown() {
        let wrong = [
            ("ab".repeat(35), "bytes"),
            ("xy".repeat(36), "hexadecimal"),
            ("abc".to_owned(), "hexadecimal"),
        ];
        for (text, said) in wrong {
            let error = Keymat::read(file(&text, 0o600).path(), Suite::Aes256Gcm)
                .unwrap_err()
                .to_string();
            assert!(error.contains(said) && !error.contains(&text), "{error}");
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let keymat = Keymat::read(file(&"ab".repeat(36), 0o600).path(), Suite::Aes256Gcm).unwrap();
        assert_eq!(
            format!("{keymat:?} {:?}", keymat.salt()),
            "Keymat(secret) Salt(secret)"
        );
        assert!(!keymat.fingerprint().to_string().contains("abab"));
    }

    #[test]
    fn equal_keys_are_found_whatever_their_salt() {
        let one = Keymat::read(file(&"ab".repeat(36), 0o600).path(), Suite::Aes256Gcm).unwrap();
        let text = format!("{}00000000", "ab".repeat(32));
        let two = Keymat::read(file(&text, 0o600).path(), Suite::Aes256Gcm).unwrap();
        let error = distinct([("a", one.fingerprint()), ("b", two.fingerprint())]).unwrap_err();
        assert_eq!(
            error,
            SharedKey {
                one: "a".into(),
                two: "b".into()
            }
        );
    }
}
