//! Secrets in memory: locked, in no core file, wiped when dropped, printed as nothing; and the files they come from.
//!
//! A file with a secret must be readable by its owner alone, and the owner must be who runs Guestseal or root. The
//! questions are asked of the open file, so that it cannot be another one a moment later.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::locked::Locked;

/// Bytes of a rule's key and of a host's static key.
pub const LENGTH: usize = 32;

/// Why a file with a secret cannot be used. Nothing of what is in it is ever shown.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It cannot be read.
    #[error("{}: the secret cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others may read it.
    #[error("{}: mode {mode:03o} lets others read the secret: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is somebody else's.
    #[error("{}: belongs to user {owner}: expected the user that runs guestseal ({expected}) or root", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs.
        expected: u32,
    },
    /// It is longer than any such file.
    #[error("{}: longer than {limit} bytes: this is no file of secrets", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        limit: u64,
    },
    /// It is not hexadecimal.
    #[error("{}: expected {expected} bytes as hexadecimal digits (white space is skipped); something else is in it", path.display())]
    NotHex {
        /// The file.
        path: PathBuf,
        /// Bytes it should have.
        expected: usize,
    },
    /// All bytes are zero: nobody made this key.
    #[error("{}: a key of zeros only: expected random bytes, for example of openssl rand -hex 32", path.display())]
    Zero {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("{}: the secret cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// 32 secret bytes in one place: never moved, so that no copy stays behind, and wiped when dropped.
pub struct Secret(Locked<LENGTH>);

impl Secret {
    /// A place for a secret, filled by `fill`.
    pub fn made_by(fill: impl FnOnce(&mut [u8; LENGTH])) -> Self {
        let mut secret = Self(Locked::new());
        fill(secret.0.bytes_mut());
        secret
    }

    /// A secret of the right length.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == LENGTH).then(|| Self::made_by(|place| place.copy_from_slice(bytes)))
    }

    /// The bytes, for the cipher that needs them.
    #[must_use]
    pub fn expose(&self) -> &[u8; LENGTH] {
        self.0.bytes()
    }

    /// Whether nobody made it.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.expose().iter().fold(0, |any, byte| any | byte) == 0
    }

    /// Reads a file of 64 hexadecimal digits.
    ///
    /// # Errors
    /// See [`SecretFileError`].
    pub fn read(path: &Path) -> Result<Self, SecretFileError> {
        let text = read_private(path, MAX_HEX)?;
        let bytes = from_hex(&text);
        let secret = bytes
            .and_then(|bytes| Self::new(&bytes))
            .ok_or_else(|| SecretFileError::NotHex {
                path: path.to_owned(),
                expected: LENGTH,
            })?;
        if secret.is_zero() {
            return Err(SecretFileError::Zero {
                path: path.to_owned(),
            });
        }
        Ok(secret)
    }

    /// Writes it to a file that must not exist yet, for its owner alone, durably.
    ///
    /// # Errors
    /// See [`SecretFileError`].
    pub fn write_new(&self, path: &Path) -> Result<(), SecretFileError> {
        let write = || -> std::io::Result<()> {
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)?;
            let mut text = Zeroizing::new(Vec::with_capacity(2 * LENGTH + 1));
            for byte in self.expose() {
                text.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
            }
            text.push(b'\n');
            file.write_all(&text)?;
            file.sync_all()?;
            sync_directory(path)
        };
        write().map_err(|source| SecretFileError::Write {
            path: path.to_owned(),
            source,
        })
    }
}

/// Makes what was created or renamed at `path` durable.
pub(super) fn sync_directory(path: &Path) -> std::io::Result<()> {
    let directory = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The longest file with one secret: hexadecimal digits and white space.
pub(super) const MAX_HEX: u64 = 4096;

/// What is in a file that only its owner may read.
///
/// # Errors
/// See [`SecretFileError`].
pub(crate) fn read_private(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
    let failed = |source| SecretFileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretFileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let expected = rustix::process::geteuid().as_raw();
    if metadata.uid() != 0 && metadata.uid() != expected {
        return Err(SecretFileError::Foreign {
            path: path.to_owned(),
            owner: metadata.uid(),
            expected,
        });
    }
    // Of its full size from the start: a vector that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(limit as usize + 1));
    file.take(limit + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > limit {
        return Err(SecretFileError::TooLong {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(text)
}

/// Bytes of hexadecimal digits; white space between them and `0x` in front are skipped.
pub(super) fn from_hex(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    let mut high = None;
    let body = text.strip_prefix(b"0x").unwrap_or(text);
    for character in body.iter().filter(|character| !character.is_ascii_whitespace()) {
        let digit = (*character as char).to_digit(16)? as u8;
        match high.take() {
            None => high = Some(digit),
            Some(high) => bytes.push(high << 4 | digit),
        }
    }
    high.is_none().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nobody_else_can() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        Secret::new(&[0xa5; LENGTH]).unwrap().write_new(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(Secret::read(&path).unwrap().expose(), &[0xa5; LENGTH]);
        let again = Secret::new(&[1; LENGTH]).unwrap().write_new(&path);
        assert!(
            matches!(again, Err(SecretFileError::Write { .. })),
            "never written over"
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).unwrap();
        let error = Secret::read(&path).unwrap_err().to_string();
        assert!(
            error.contains("mode 604") && error.contains("chmod 600") && !error.contains("a5a5"),
            "{error}"
        );
    }

    #[test]
    fn zeros_wrong_digits_and_long_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let long = "ab".repeat(4096);
        for (text, said) in [
            ("00".repeat(32), "zeros"),
            ("ab".repeat(31), "32 bytes"),
            ("zz".repeat(32), "32 bytes"),
            (long, "longer"),
        ] {
            std::fs::write(&path, &text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
            let error = Secret::read(&path).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("abab"), "{error}");
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn nothing_is_printed() {
        assert_eq!(format!("{:?}", Secret::new(&[0xa5; LENGTH]).unwrap()), "Secret");
    }
}
