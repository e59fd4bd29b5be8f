//! The journal of events: what a start makes the guests' state of again.
//!
//! One JSON object a line, appended and synced. A last line that is not whole was being written when the power went: it was
//! never acknowledged, and is cut off. Any other damage refuses to start, since nobody knows then who is in quarantine.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use guestseal_rules::event::{Event, Moment};
use serde::{Deserialize, Serialize};

use super::sources::file::Position;

/// The file's name in the state directory.
const NAME: &str = "events.journal";

/// Why there is no journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused.
    #[error("{}: the journal of events cannot be read or written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line in the middle is no entry.
    #[error(
        "{}:{line}: the journal of events is damaged, so it is not known which guests are in quarantine. Put back a whole \
         one, or move it away to start as if nothing had happened", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// An event that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// When it was accepted.
    pub at: Moment,
    /// The event.
    pub event: Event,
    /// How far its source was read then, if it is the followed file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<Position>,
}

/// The journal, open for more.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal of a state directory, or makes it; gives what is in it.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn open(directory: &Path) -> Result<(Self, Vec<Entry>), JournalError> {
        let path = directory.join(NAME);
        let io = |source| JournalError::Io {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(directory).map_err(io)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(io)?;
        let (entries, whole) = parse(&path, &text)?;
        if whole < text.len() {
            tracing::warn!(
                "{}: the last entry was not finished, and is cut off",
                path.display()
            );
        }
        file.set_len(whole as u64).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        // The file's name is in the directory when the first entry is acknowledged.
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(io)?;
        Ok((Self { path, file }, entries))
    }

    /// Reads the journal of a state directory without changing it; none is an empty one.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn read(directory: &Path) -> Result<Vec<Entry>, JournalError> {
        let path = directory.join(NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(JournalError::Io { path, source }),
        };
        parse(&path, &text).map(|(entries, _)| entries)
    }

    /// Appends entries and syncs them: when it returns they are acknowledged.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        let mut text = Vec::new();
        let io = |source| JournalError::Io {
            path: self.path.clone(),
            source,
        };
        for entry in entries {
            serde_json::to_writer(&mut text, entry).map_err(|error| io(error.into()))?;
            text.push(b'\n');
        }
        self.file
            .write_all(&text)
            .and_then(|()| self.file.sync_data())
            .map_err(io)
    }
}

/// The entries of a journal's text, and the bytes of its whole lines.
fn parse(path: &Path, text: &str) -> Result<(Vec<Entry>, usize), JournalError> {
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let entry = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|source| JournalError::Damaged {
            path: path.to_owned(),
            line: number + 1,
            source,
        })
    };
    let entries = text[..whole]
        .lines()
        .enumerate()
        .map(entry)
        .collect::<Result<_, _>>()?;
    Ok((entries, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(second: u64) -> Entry {
        let event = r#"{"guest": "g", "tag": {"service": "av", "name": "x", "severity": 90}}"#;
        Entry {
            at: Moment::from_millis(1_700_000_000_000 + second * 1000),
            event: serde_json::from_str(event).unwrap(),
            read: Some(Position {
                inode: 7,
                offset: second,
            }),
        }
    }

    #[test]
    fn what_was_appended_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, entries) = Journal::open(directory.path()).unwrap();
        assert!(entries.is_empty());
        journal.append(&[entry(1), entry(2)]).unwrap();
        journal.append(&[entry(3)]).unwrap();
        drop(journal);
        let (_, entries) = Journal::open(directory.path()).unwrap();
        assert_eq!(entries, [entry(1), entry(2), entry(3)]);
        assert_eq!(Journal::read(directory.path()).unwrap(), entries);
    }

    /// At whichever byte the power went: every entry before it is there, and more can be appended.
    #[test]
    fn cut_off_at_any_byte_it_has_every_whole_entry() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(directory.path()).unwrap();
        journal.append(&[entry(1), entry(2)]).unwrap();
        let path = directory.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let (mut journal, entries) = Journal::open(directory.path()).unwrap();
            let expected = whole[..length].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(entries.len(), expected, "{length} bytes");
            journal.append(&[entry(9)]).unwrap();
            let (_, entries) = Journal::open(directory.path()).unwrap();
            assert_eq!(entries.last(), Some(&entry(9)), "{length} bytes");
            assert_eq!(entries.len(), expected + 1);
        }
    }

    #[test]
    fn damage_in_the_middle_refuses() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(directory.path()).unwrap();
        journal.append(&[entry(1), entry(2)]).unwrap();
        let path = directory.path().join(NAME);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("guest", "gu st", 1)).unwrap();
        let error = Journal::open(directory.path()).unwrap_err();
        assert!(matches!(error, JournalError::Damaged { line: 1, .. }), "{error}");
    }
}
