//! The durable high-water mark of a manual outbound SA.
//!
//! Its key outlives the process, so the numbers that may have been used must too: before numbers up to a mark may be
//! used, the mark is on disk (written aside, synced, renamed, directory synced). A start begins at the mark, not at what
//! was really used: after a crash everything possibly used is skipped. A missing file means that nobody knows what
//! was used, and refuses; `guestseal sa init` is how an operator says that the key is new.
//!
//! A mark that was put back to an older state with the whole disk cannot be told from a true one: give a restored host
//! new keys.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::files;
use crate::sa::spi::Spi;

use super::keymat::Fingerprint;

/// Numbers reserved at a time: at 10 million packets a second a tenth of a second, and what a crash skips is nothing
/// beside 2^64 (without ESN: 4,096 crashes use up an SA).
pub const BLOCK: u64 = 1 << 20;

/// Why a mark cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HighWaterError {
    /// There is none.
    #[error(
        "security association {name}: {} is missing, so the sequence numbers already used under its key are unknown, and \
         using one twice would break the encryption. If the key has never been used, run: guestseal sa init --config FILE. \
         Else give the SA a new key", path.display()
    )]
    Missing {
        /// The SA.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// There is one already.
    #[error("security association {name}: {} exists: a mark is made once for a key", path.display())]
    Exists {
        /// The SA.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// It is not a mark, or not whole.
    #[error("security association {name}: {} is damaged: give the SA a new key, remove the file, and run guestseal sa init", path.display())]
    Damaged {
        /// The SA.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// It belongs to another SPI or key.
    #[error(
        "security association {name}: {} belongs to another SPI or key. If this key has never been used, remove the file \
         and run guestseal sa init", path.display()
    )]
    Foreign {
        /// The SA.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// Another process has it.
    #[error("security association {name}: {} is in use by another guestseal", path.display())]
    InUse {
        /// The SA.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("security association {name}: {} cannot be written", path.display())]
    Io {
        /// The SA.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The mark of one SA, locked against other processes.
#[derive(Debug)]
pub struct HighWater {
    name: String,
    path: PathBuf,
    spi: Spi,
    fingerprint: Fingerprint,
    mark: u64,
    _lock: File,
}

impl HighWater {
    /// Makes the first mark, 1, of an SA whose key has never been used.
    ///
    /// # Errors
    /// See [`HighWaterError`]; a mark that exists is left alone.
    pub fn init(
        directory: &Path,
        name: &str,
        spi: Spi,
        fingerprint: Fingerprint,
    ) -> Result<(), HighWaterError> {
        let path = file_of(directory, name);
        let io = |source| HighWaterError::Io {
            name: name.to_owned(),
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(directory).map_err(io)?;
        let lock = lock(directory, name)?;
        if path.exists() {
            return Err(HighWaterError::Exists {
                name: name.to_owned(),
                path,
            });
        }
        let mut high_water = Self {
            name: name.to_owned(),
            path: path.clone(),
            spi,
            fingerprint,
            mark: 1,
            _lock: lock,
        };
        high_water.reserve(1)
    }

    /// Opens the mark of an SA.
    ///
    /// # Errors
    /// See [`HighWaterError`].
    pub fn open(
        directory: &Path,
        name: &str,
        spi: Spi,
        fingerprint: Fingerprint,
    ) -> Result<Self, HighWaterError> {
        let path = file_of(directory, name);
        let missing = || HighWaterError::Missing {
            name: name.to_owned(),
            path: path.clone(),
        };
        if !directory.is_dir() {
            return Err(missing());
        }
        let lock = lock(directory, name)?;
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => file
                .take(4096)
                .read_to_string(&mut text)
                .map_err(|_| HighWaterError::Damaged {
                    name: name.to_owned(),
                    path: path.clone(),
                })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
            Err(source) => {
                return Err(HighWaterError::Io {
                    name: name.to_owned(),
                    path,
                    source,
                });
            }
        };
        let (body, sum) = text
            .split_once("checksum ")
            .ok_or_else(|| HighWaterError::Damaged {
                name: name.to_owned(),
                path: path.clone(),
            })?;
        let mark = body
            .lines()
            .find_map(|line| line.strip_prefix("mark "))
            .and_then(|mark| mark.parse().ok());
        let (Some(mark), true) = (mark, sum == format!("{}\n", checksum(body))) else {
            return Err(HighWaterError::Damaged {
                name: name.to_owned(),
                path,
            });
        };
        let high_water = Self {
            name: name.to_owned(),
            path,
            spi,
            fingerprint,
            mark,
            _lock: lock,
        };
        if high_water.body(mark) == body {
            Ok(high_water)
        } else {
            Err(HighWaterError::Foreign {
                name: high_water.name,
                path: high_water.path,
            })
        }
    }

    /// Numbers below this one may have been used.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.mark
    }

    /// The SA's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes `mark` durable. Only after this returns may numbers below it be used.
    ///
    /// # Errors
    /// See [`HighWaterError`]; the old mark holds then.
    pub fn reserve(&mut self, mark: u64) -> Result<(), HighWaterError> {
        let mark = mark.max(self.mark);
        self.write(mark).map_err(|source| HighWaterError::Io {
            name: self.name.clone(),
            path: self.path.clone(),
            source,
        })?;
        self.mark = mark;
        Ok(())
    }

    fn body(&self, mark: u64) -> String {
        format!(
            "guestseal high-water mark 1\nname {}\nspi {}\nkey {}\nmark {mark}\n",
            self.name, self.spi, self.fingerprint
        )
    }

    fn write(&self, mark: u64) -> std::io::Result<()> {
        let body = self.body(mark);
        let aside = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&aside)?;
        writeln!(file, "{body}checksum {}", checksum(&body))?;
        file.sync_all()?;
        std::fs::rename(&aside, &self.path)?;
        match self.path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

fn file_of(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.mark"))
}

/// Held as long as the mark: two processes would use the same numbers.
fn lock(directory: &Path, name: &str) -> Result<File, HighWaterError> {
    let path = directory.join(format!("{name}.lock"));
    let name = name.to_owned();
    files::hold(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => HighWaterError::InUse { name, path },
        _ => HighWaterError::Io {
            name,
            path,
            source: error,
        },
    })
}

fn checksum(body: &str) -> String {
    Sha256::digest(body.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPI: u32 = 0x1001;
    const KEY: Fingerprint = Fingerprint([7; 32]);

    fn spi() -> Spi {
        Spi::new(SPI).unwrap()
    }

    fn open(directory: &Path) -> Result<HighWater, HighWaterError> {
        HighWater::open(directory, "sa", spi(), KEY)
    }

    #[test]
    fn a_missing_mark_refuses_until_told() {
        let directory = tempfile::tempdir().unwrap();
        let error = open(directory.path()).unwrap_err();
        assert!(
            matches!(error, HighWaterError::Missing { .. })
                && error.to_string().contains("guestseal sa init")
        );
        HighWater::init(directory.path(), "sa", spi(), KEY).unwrap();
        assert_eq!(open(directory.path()).unwrap().mark(), 1);
        assert!(matches!(
            HighWater::init(directory.path(), "sa", spi(), KEY),
            Err(HighWaterError::Exists { .. })
        ));
    }

    #[test]
    fn what_is_reserved_is_there_after_a_crash() {
        let directory = tempfile::tempdir().unwrap();
        HighWater::init(directory.path(), "sa", spi(), KEY).unwrap();
        let mut mark = open(directory.path()).unwrap();
        mark.reserve(1000).unwrap();
        mark.reserve(500).unwrap();
        drop(mark);
        assert_eq!(open(directory.path()).unwrap().mark(), 1000);
    }

    #[test]
    fn two_processes_cannot_have_one_mark() {
        let directory = tempfile::tempdir().unwrap();
        HighWater::init(directory.path(), "sa", spi(), KEY).unwrap();
        let _first = open(directory.path()).unwrap();
        assert!(matches!(
            open(directory.path()),
            Err(HighWaterError::InUse { .. })
        ));
    }

    #[test]
    fn a_mark_of_another_key_or_spi_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        HighWater::init(directory.path(), "sa", spi(), KEY).unwrap();
        let other = HighWater::open(directory.path(), "sa", spi(), Fingerprint([8; 32]));
        assert!(matches!(other, Err(HighWaterError::Foreign { .. })));
        let other = HighWater::open(directory.path(), "sa", Spi::new(SPI + 1).unwrap(), KEY);
        assert!(matches!(other, Err(HighWaterError::Foreign { .. })));
    }

    /// A crash can cut the write anywhere: the mark is then the old one or refused, never a smaller one.
    #[test]
    fn truncation_at_every_byte_never_lowers_the_mark() {
        let directory = tempfile::tempdir().unwrap();
        HighWater::init(directory.path(), "sa", spi(), KEY).unwrap();
        open(directory.path()).unwrap().reserve(123_456).unwrap();
        let path = directory.path().join("sa.mark");
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(
                matches!(open(directory.path()), Err(HighWaterError::Damaged { .. })),
                "{length} bytes"
            );
            // The same cut of the file written aside leaves the mark untouched.
            std::fs::write(&path, &whole).unwrap();
            std::fs::write(directory.path().join("sa.new"), &whole[..length]).unwrap();
            assert_eq!(open(directory.path()).unwrap().mark(), 123_456);
        }
        for position in 0..whole.len() {
            let mut changed = whole.clone();
            changed[position] ^= 1;
            std::fs::write(&path, &changed).unwrap();
            assert!(open(directory.path()).is_err(), "byte {position}");
        }
    }
}
