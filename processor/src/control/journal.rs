//! The journal: everything that was done to guests, rules, ports and keys, by whom and why; what a start makes the guests'
//! state of again.
//!
//! One JSON object a line, numbered, appended and synced; when [`Journal::append`] returns, it is acknowledged. Each line ends
//! with a checksum over itself and the line before, so that a line that was changed, lost or put in is found. A last line that
//! is not whole was being written when the power went: it was never acknowledged, and is cut off. Any other damage refuses to
//! start, since nobody knows then who is in quarantine. A file that has grown large is followed by another one, which begins
//! with the guests' state; it appears whole or not at all.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use guestseal_rules::containers::Saved;
use guestseal_rules::event::{Event, Moment};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::bindings::{Binding, Bindings};
use super::moves::Moves;
use super::sources::file::Position;

/// The directory in the state directory.
const NAME: &str = "journal";
/// Bytes of a file after which another one begins.
const LARGE: u64 = 16 << 20;
/// Files that are kept: the one that is written, and the ones before it.
const KEEP: usize = 64;
/// What stands between a line's content and its checksum.
const SUM: &str = ",\"sum\":\"";

/// Why there is no journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused.
    #[error("{}: the journal cannot be read or written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is not what was written.
    #[error(
        "{}:{line}: the journal is damaged ({why}), so it is not known which guests are in quarantine. Put back a whole one, \
         or move the directory away to start as if nothing had happened", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number, from 1, through all files.
    pub n: u64,
    /// What was done.
    #[serde(flatten)]
    pub done: Done,
}

/// What was done, when and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// When.
    pub at: Moment,
    /// By whom: a source of events, a caller of the control socket, or guestseal itself.
    pub by: String,
    /// What.
    #[serde(flatten)]
    pub deed: Deed,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// A file of the journal begins.
    Begin {
        /// The checksum that the file before it ended with.
        after: String,
        /// The guests at that moment.
        state: Saved,
        /// How far each followed file was read then.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        read: BTreeMap<String, Position>,
        /// The guests that were not where the policy's files said.
        #[serde(default, skip_serializing_if = "Moves::is_empty")]
        located: Moves,
        /// Ports that went by other interfaces than the policy's files said.
        #[serde(default, skip_serializing_if = "Bindings::is_empty")]
        bound: Bindings,
    },
    /// An event was accepted.
    Event {
        /// The event.
        #[serde(flatten)]
        event: Event,
        /// How far the followed file that it came from was read then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        read: Option<Position>,
    },
    /// A guest has moved; it follows from the events.
    Moved {
        /// The guest.
        guest: String,
        /// Its container before.
        from: String,
        /// Its container since.
        to: String,
        /// Why.
        because: String,
    },
    /// A guest is on a host from then on.
    Located {
        /// Its UUID.
        guest: String,
        /// Where.
        #[serde(flatten)]
        at: super::moves::Moved,
    },
    /// Guestseal has started.
    Started {
        /// Its version.
        version: String,
        /// The policy, by the SHA-256 of its files.
        policy: String,
    },
    /// Another policy is in force.
    Policy {
        /// By the SHA-256 of its files.
        policy: String,
        /// What it changes, in words.
        changes: Vec<String>,
        /// The guests under it.
        state: Saved,
    },
    /// Another policy was asked for, and is not in force.
    PolicyRefused {
        /// Why.
        why: String,
    },
    /// Generations of keys have come to this host, or are gone: from its file, its directory or its key manager.
    Keys {
        /// Those that it holds since, each by key and generation; after a start all of them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        came: Vec<String>,
        /// Those that are revoked since.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gone: Vec<String>,
    },
    /// So much was done under the newest generation of a key as may be: another one is due.
    KeyUsedUp {
        /// The key and its generation.
        key: String,
    },
    /// A guest port was added while guestseal runs.
    PortAdded(Binding),
    /// A guest port was removed while guestseal runs.
    PortRemoved {
        /// The port's interface.
        interface: String,
        /// Its guest.
        guest: String,
    },
}

/// The journal, open for more.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    path: PathBuf,
    file: File,
    length: u64,
    next: u64,
    sum: String,
    large: u64,
}

impl Journal {
    /// Opens the journal of a state directory, or makes it; gives what is in its last file.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn open(state: &Path) -> Result<(Self, Vec<Entry>), JournalError> {
        let directory = state.join(NAME);
        std::fs::create_dir_all(&directory).map_err(|source| io_at(&directory, source))?;
        let path = match files(&directory)?.pop() {
            Some((_, path)) => path,
            None => {
                let now = super::guests::now();
                let begin = Deed::Begin {
                    after: String::new(),
                    state: Saved {
                        now,
                        ..Saved::default()
                    },
                    read: BTreeMap::new(),
                    located: Moves::default(),
                    bound: Bindings::default(),
                };
                make(&directory, now, 1, begin)?.0
            }
        };
        let io = |source| io_at(&path, source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(io)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(io)?;
        let whole = parse(&path, &text)?;
        if whole.length < text.len() as u64 {
            tracing::warn!(
                "{}: the last entry was not finished, and is cut off",
                path.display()
            );
        }
        file.set_len(whole.length).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        let journal = Self {
            directory,
            next: whole.entries.last().map_or(1, |entry| entry.n + 1),
            sum: whole.sum,
            length: whole.length,
            path,
            file,
            large: LARGE,
        };
        Ok((journal, whole.entries))
    }

    /// Reads the last file of the journal of a state directory without changing it; none is an empty one.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn read(state: &Path) -> Result<Vec<Entry>, JournalError> {
        match files(&state.join(NAME))?.pop() {
            Some((_, path)) => read_file(&path).map(|whole| whole.entries),
            None => Ok(Vec::new()),
        }
    }

    /// The entries behind number `after`, at most `most` of them, from all files that are kept, without changing them. Their
    /// checksums are looked at, also from file to file.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn read_after(state: &Path, after: u64, most: usize) -> Result<Vec<Entry>, JournalError> {
        let mut found: Vec<Entry> = Vec::new();
        let files = files(&state.join(NAME))?;
        // The last file that begins at or before what is asked for.
        let skip = files
            .iter()
            .rposition(|(first, _)| *first <= after.saturating_add(1));
        let mut sum: Option<String> = None;
        for (_, path) in files.into_iter().skip(skip.unwrap_or(0)) {
            let whole = read_file(&path)?;
            if let (
                Some(sum),
                Some(Entry {
                    done:
                        Done {
                            deed: Deed::Begin { after, .. },
                            ..
                        },
                    ..
                }),
            ) = (&sum, whole.entries.first())
                && sum != after
            {
                let why = "it does not follow the file before it".to_owned();
                return Err(JournalError::Damaged { path, line: 1, why });
            }
            sum = Some(whole.sum);
            found.extend(whole.entries.into_iter().filter(|entry| entry.n > after));
            if found.len() >= most {
                found.truncate(most);
                break;
            }
        }
        Ok(found)
    }

    /// Appends what was done and syncs it: when it returns it is acknowledged. If it fails nothing of it is there.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn append(&mut self, done: &[Done]) -> Result<(), JournalError> {
        let (mut text, mut sum, mut next) = (String::new(), self.sum.clone(), self.next);
        for done in done {
            let entry = Entry {
                n: next,
                done: done.clone(),
            };
            sum = write_line(&mut text, &entry, &sum).map_err(|source| io_at(&self.path, source))?;
            next += 1;
        }
        let written = self
            .file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Half of it would be damage in the middle once more is appended.
            let _ = self.file.set_len(self.length);
            let _ = self.file.seek(SeekFrom::Start(self.length));
            return Err(io_at(&self.path, source));
        }
        self.length += text.len() as u64;
        (self.sum, self.next) = (sum, next);
        Ok(())
    }

    /// Whether it is time for [`Journal::rotate`].
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.length >= self.large
    }

    /// Begins another file with the guests' state, and forgets the oldest where there are too many.
    ///
    /// # Errors
    /// See [`JournalError`]. The old file goes on then.
    pub fn rotate(
        &mut self,
        at: Moment,
        state: Saved,
        read: BTreeMap<String, Position>,
        located: Moves,
        bound: Bindings,
    ) -> Result<(), JournalError> {
        let begin = Deed::Begin {
            after: self.sum.clone(),
            state,
            read,
            located,
            bound,
        };
        let (path, file, length, sum) = make(&self.directory, at, self.next, begin)?;
        (self.path, self.file, self.length, self.sum) = (path, file, length, sum);
        self.next += 1;
        let files = files(&self.directory)?;
        let many = files.len().saturating_sub(KEEP);
        for (_, path) in files.into_iter().take(many) {
            std::fs::remove_file(&path).map_err(|source| io_at(&path, source))?;
        }
        Ok(())
    }
}

fn io_at(path: &Path, source: io::Error) -> JournalError {
    JournalError::Io {
        path: path.to_owned(),
        source,
    }
}

/// The files of a journal with the numbers of their first entries, in order.
fn files(directory: &Path) -> Result<Vec<(u64, PathBuf)>, JournalError> {
    let listed = match std::fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(io_at(directory, source)),
    };
    let mut files = Vec::new();
    for file in listed {
        let path = file.map_err(|source| io_at(directory, source))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let first = name.and_then(|name| name.strip_suffix(".jsonl")?.parse().ok());
        files.extend(first.map(|first| (first, path)));
    }
    files.sort();
    Ok(files)
}

/// Makes a file that begins with an entry: aside first, so that it has its name only when it is whole.
fn make(
    directory: &Path,
    at: Moment,
    n: u64,
    begin: Deed,
) -> Result<(PathBuf, File, u64, String), JournalError> {
    let path = directory.join(format!("{n:012}.jsonl"));
    let aside = path.with_extension("new");
    let io = |source| io_at(&path, source);
    let after = match &begin {
        Deed::Begin { after, .. } => after.clone(),
        _ => String::new(),
    };
    let mut text = String::new();
    let by = "guestseal".to_owned();
    let sum = write_line(
        &mut text,
        &Entry {
            n,
            done: Done { at, by, deed: begin },
        },
        &after,
    )
    .map_err(io)?;
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600);
    let mut file = options.open(&aside).map_err(io)?;
    file.write_all(text.as_bytes()).map_err(io)?;
    file.sync_all().map_err(io)?;
    std::fs::rename(&aside, &path).map_err(io)?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io)?;
    Ok((path, file, text.len() as u64, sum))
}

/// Writes an entry as a line; gives its checksum.
fn write_line(text: &mut String, entry: &Entry, before: &str) -> io::Result<String> {
    let line = serde_json::to_string(entry)?;
    let content = &line[..line.len() - 1];
    let sum = sum_of(content, before);
    text.push_str(content);
    text.push_str(SUM);
    text.push_str(&sum);
    text.push_str("\"}\n");
    Ok(sum)
}

/// The first 128 bits of SHA-256 over the checksum before and the content.
fn sum_of(content: &str, before: &str) -> String {
    let digest = Sha256::new()
        .chain_update(before)
        .chain_update(content)
        .finalize();
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The whole lines of a file.
struct Whole {
    entries: Vec<Entry>,
    /// Their bytes.
    length: u64,
    /// The last one's checksum.
    sum: String,
}

fn read_file(path: &Path) -> Result<Whole, JournalError> {
    let text = std::fs::read_to_string(path).map_err(|source| io_at(path, source))?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Whole, JournalError> {
    let length = text.rfind('\n').map_or(0, |end| end + 1);
    let mut whole = Whole {
        entries: Vec::new(),
        length: length as u64,
        sum: String::new(),
    };
    for (number, line) in text[..length].lines().enumerate() {
        let damaged = |why: &str| JournalError::Damaged {
            path: path.to_owned(),
            line: number + 1,
            why: why.to_owned(),
        };
        let parts = line.strip_suffix("\"}").and_then(|line| line.rsplit_once(SUM));
        let (content, sum) = parts.ok_or_else(|| damaged("it has no checksum"))?;
        let entry: Entry =
            serde_json::from_str(&format!("{content}}}")).map_err(|error| damaged(&error.to_string()))?;
        if let (0, Deed::Begin { after, .. }) = (number, &entry.done.deed) {
            whole.sum.clone_from(after);
        } else if number == 0 {
            return Err(damaged("the file does not begin with the guests' state"));
        }
        if sum_of(content, &whole.sum) != sum {
            return Err(damaged("its checksum is wrong"));
        }
        sum.clone_into(&mut whole.sum);
        whole.entries.push(entry);
    }
    if whole.entries.is_empty() {
        return Err(JournalError::Damaged {
            path: path.to_owned(),
            line: 1,
            why: "the file does not begin with the guests' state".to_owned(),
        });
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(second: u64) -> Moment {
        Moment::from_millis(1_700_000_000_000 + second * 1000)
    }

    fn event(offset: u64) -> Done {
        let event = r#"{"guest": "g", "tag": {"service": "av", "name": "x", "severity": 90}}"#;
        let deed = Deed::Event {
            event: serde_json::from_str(event).unwrap(),
            read: Some(Position { inode: 7, offset }),
        };
        Done {
            at: moment(offset),
            by: "events".to_owned(),
            deed,
        }
    }

    fn deeds(entries: &[Entry]) -> Vec<Done> {
        entries.iter().skip(1).map(|entry| entry.done.clone()).collect()
    }

    fn last_file(state: &Path) -> PathBuf {
        files(&state.join(NAME)).unwrap().pop().unwrap().1
    }

    #[test]
    fn what_was_appended_is_read_again() {
        let state = tempfile::tempdir().unwrap();
        let (mut journal, entries) = Journal::open(state.path()).unwrap();
        assert_eq!(entries.len(), 1, "it begins with no guests: {entries:?}");
        journal.append(&[event(1), event(2)]).unwrap();
        journal.append(&[event(3)]).unwrap();
        drop(journal);
        let (_, entries) = Journal::open(state.path()).unwrap();
        assert_eq!(deeds(&entries), [event(1), event(2), event(3)]);
        assert_eq!(
            entries.iter().map(|entry| entry.n).collect::<Vec<_>>(),
            [1, 2, 3, 4]
        );
        assert_eq!(Journal::read(state.path()).unwrap(), entries);
        assert_eq!(Journal::read_after(state.path(), 2, 1).unwrap(), entries[2..3]);
    }

    /// At whichever byte the power went: every entry before it is there, and more can be appended.
    #[test]
    fn cut_off_at_any_byte_it_has_every_whole_entry() {
        let state = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(state.path()).unwrap();
        let begins = journal.length as usize;
        journal.append(&[event(1), event(2)]).unwrap();
        let path = last_file(state.path());
        let whole = std::fs::read(&path).unwrap();
        for length in begins..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let (mut journal, entries) = Journal::open(state.path()).unwrap();
            let expected = whole[..length].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(entries.len(), expected, "{length} bytes");
            journal.append(&[event(9)]).unwrap();
            let (_, entries) = Journal::open(state.path()).unwrap();
            assert_eq!(entries.len(), expected + 1);
            assert_eq!(deeds(&entries).last(), Some(&event(9)), "{length} bytes");
        }
        // A file that begins with half an entry was never made by us: it has its name only when it is whole.
        std::fs::write(&path, &whole[..begins - 1]).unwrap();
        assert!(matches!(
            Journal::open(state.path()),
            Err(JournalError::Damaged { .. })
        ));
    }

    #[test]
    fn every_changed_byte_and_every_lost_line_refuses() {
        let state = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(state.path()).unwrap();
        journal.append(&[event(1), event(2)]).unwrap();
        let path = last_file(state.path());
        let whole = std::fs::read(&path).unwrap();
        let refused = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            Journal::open(state.path()).is_err()
        };
        // The last newline makes the last line whole, or not.
        for at in 0..whole.len() - 1 {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(
                refused(&changed),
                "byte {at} of {}",
                String::from_utf8_lossy(&whole)
            );
        }
        let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        assert!(refused(&[lines[0], lines[2]].concat()), "a line is lost");
        assert!(
            refused(&[lines[0], lines[1], lines[1], lines[2]].concat()),
            "a line is there twice"
        );
        assert!(!refused(&whole));
    }

    #[test]
    fn a_large_file_is_followed_by_another_and_the_oldest_is_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(state.path()).unwrap();
        journal.large = 1;
        for number in 0..KEEP as u64 + 3 {
            assert!(journal.is_large());
            journal.append(&[event(number)]).unwrap();
            let read = BTreeMap::from([(
                "events".to_owned(),
                Position {
                    inode: 7,
                    offset: number,
                },
            )]);
            journal
                .rotate(
                    moment(number),
                    Saved::default(),
                    read,
                    Moves::default(),
                    Bindings::default(),
                )
                .unwrap();
        }
        journal.append(&[event(999)]).unwrap();
        let (_, entries) = Journal::open(state.path()).unwrap();
        assert_eq!(deeds(&entries), [event(999)]);
        let all = files(&state.path().join(NAME)).unwrap();
        assert_eq!(all.len(), KEEP);
        let kept = Journal::read_after(state.path(), 0, usize::MAX).unwrap();
        assert_eq!(kept.first().unwrap().n, all[0].0);
        assert!(kept.windows(2).all(|two| two[1].n == two[0].n + 1));
        // A file in the middle that is another one is found.
        std::fs::copy(&all[3].1, &all[4].1).unwrap();
        assert!(Journal::read_after(state.path(), 0, usize::MAX).is_err());
    }

    #[test]
    fn a_file_that_was_being_made_is_none() {
        let state = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(state.path()).unwrap();
        journal.append(&[event(1)]).unwrap();
        std::fs::write(state.path().join(NAME).join("000000000003.new"), "{\"n\":3").unwrap();
        let (_, entries) = Journal::open(state.path()).unwrap();
        assert_eq!(deeds(&entries), [event(1)]);
    }
}
