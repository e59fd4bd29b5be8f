//! A file that somebody else writes, line by line: followed as it grows.
//!
//! Survives rotation (what is left of the old file is read first), truncation, half-written lines and a file that is not
//! there yet. Reads a bounded amount each time, and keeps no more of a line than may be read.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::lines::{CHUNK, Partial};

/// How far a file was read.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The file's inode: another one is another file.
    pub inode: u64,
    /// Bytes up to the end of the last whole line.
    pub offset: u64,
}

/// A line that was read, and where the next one begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Without its end; `None` if it was too long.
    pub text: Option<String>,
    /// Behind it.
    pub position: Position,
}

/// A file that is followed.
#[derive(Debug)]
pub struct FollowedFile {
    path: PathBuf,
    open: Option<Open>,
    /// Where reading stopped: an earlier process's, or this one's of a file that is not believed at present.
    resume: Option<Position>,
    /// How often it was found shorter than it was read.
    truncated: u64,
}

#[derive(Debug)]
struct Open {
    file: File,
    position: Position,
    /// What was read behind `position`.
    partial: Partial,
}

impl FollowedFile {
    /// Follows a file, from where an earlier process stopped if it is still that file.
    #[must_use]
    pub fn new(path: &Path, resume: Option<Position>) -> Self {
        Self {
            path: path.to_owned(),
            open: None,
            resume,
            truncated: 0,
        }
    }

    /// The file's name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How often it was truncated in place: what was not read then is lost.
    #[must_use]
    pub fn truncated(&self) -> u64 {
        self.truncated
    }

    /// Reads on, a bounded amount: the lines that became whole; `None` if there is nothing more at present.
    ///
    /// # Errors
    /// If the file cannot be read, or everybody may write it; that it is not there is none.
    pub fn read(&mut self) -> io::Result<Option<Vec<Line>>> {
        let Some(open) = &mut self.open else {
            return match self.open()? {
                true => self.read(),
                false => Ok(None),
            };
        };
        let length = open.file.metadata()?.len();
        if length < open.position.offset {
            // Truncated in place: what is there now is new.
            open.file.seek(SeekFrom::Start(0))?;
            open.position.offset = 0;
            open.partial.clear();
            self.truncated += 1;
        }
        let position = open.position;
        let lines = open.read_on()?;
        if anyone_may_write(&open.file.metadata()?) {
            // Nobody knows who wrote what was read just now: it is read again when somebody has seen to it.
            self.open = None;
            self.resume = Some(position);
            return self.read();
        }
        if lines.is_none() && self.is_replaced()? {
            // Nothing more will come to the old one.
            self.open = None;
            return self.read();
        }
        Ok(lines)
    }

    fn is_replaced(&self) -> io::Result<bool> {
        let Some(open) = &self.open else { return Ok(false) };
        match std::fs::metadata(&self.path) {
            Ok(now) => Ok(now.ino() != open.position.inode),
            // Until there is a new one the old one goes on.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn open(&mut self) -> io::Result<bool> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if anyone_may_write(&metadata) {
            let why = "anyone may write it, and could free a guest from quarantine: run chmod o-w on it";
            return Err(io::Error::other(why));
        }
        let same =
            |position: &Position| position.inode == metadata.ino() && position.offset <= metadata.len();
        let offset = self
            .resume
            .take()
            .filter(same)
            .map_or(0, |position| position.offset);
        file.seek(SeekFrom::Start(offset))?;
        self.open = Some(Open {
            file,
            position: Position {
                inode: metadata.ino(),
                offset,
            },
            partial: Partial::default(),
        });
        Ok(true)
    }
}

fn anyone_may_write(metadata: &Metadata) -> bool {
    metadata.mode() & 0o002 != 0
}

impl Open {
    fn read_on(&mut self) -> io::Result<Option<Vec<Line>>> {
        let mut bytes = vec![0; CHUNK];
        let count = self.file.read(&mut bytes)?;
        if count == 0 {
            return Ok(None);
        }
        let mut lines = Vec::new();
        let position = &mut self.position;
        self.partial.take(&bytes[..count], |text, length| {
            position.offset += length;
            lines.push(Line {
                text,
                position: *position,
            });
        });
        Ok(Some(lines))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::super::lines::LONGEST;
    use super::*;

    struct Followed {
        directory: tempfile::TempDir,
        file: FollowedFile,
    }

    impl Followed {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let file = FollowedFile::new(&directory.path().join("events"), None);
            Self { directory, file }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("events")
        }

        fn append(&self, text: &str) {
            let mut file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.path())
                .unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn mode(&self, mode: u32) {
            std::fs::set_permissions(self.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        }

        /// All that is there to be read.
        fn lines(&mut self) -> Vec<String> {
            let mut all = Vec::new();
            while let Some(lines) = self.file.read().unwrap() {
                all.extend(
                    lines
                        .into_iter()
                        .map(|line| line.text.unwrap_or("(too long)".into())),
                );
            }
            all
        }
    }

    #[test]
    fn lines_come_when_they_are_whole() {
        let mut followed = Followed::new();
        assert!(followed.lines().is_empty(), "there is no file");
        followed.append("one\ntw");
        assert_eq!(followed.lines(), ["one"]);
        followed.append("o\n\nthree");
        assert_eq!(followed.lines(), ["two", ""]);
        followed.append("\n");
        assert_eq!(followed.lines(), ["three"]);
    }

    #[test]
    fn a_file_that_everybody_may_write_is_not_believed() {
        let mut followed = Followed::new();
        followed.append("one\n");
        followed.mode(0o666);
        let error = followed.file.read().unwrap_err();
        assert!(error.to_string().contains("chmod o-w"), "{error}");
        followed.mode(0o664);
        assert_eq!(followed.lines(), ["one"]);
    }

    #[test]
    fn a_file_that_everybody_may_write_from_now_on_is_not_believed_any_more() {
        let mut followed = Followed::new();
        followed.append("one\nha");
        assert_eq!(followed.lines(), ["one"]);
        followed.mode(0o666);
        followed.append("lf\n");
        let error = followed.file.read().unwrap_err();
        assert!(error.to_string().contains("chmod o-w"), "{error}");
        followed.mode(0o664);
        assert_eq!(
            followed.lines(),
            ["half"],
            "nothing is read twice, nothing is lost"
        );
        followed.mode(0o666);
        std::fs::rename(followed.path(), followed.directory.path().join("events.1")).unwrap();
        followed.append("new\n");
        assert_eq!(followed.lines(), ["new"], "that one is its owner's");
    }

    #[test]
    fn rotation_loses_nothing_of_either_file() {
        let mut followed = Followed::new();
        followed.append("one\n");
        assert_eq!(followed.lines(), ["one"]);
        followed.append("two\n");
        std::fs::rename(followed.path(), followed.directory.path().join("events.1")).unwrap();
        assert_eq!(
            followed.lines(),
            ["two"],
            "the old file goes on until there is a new one"
        );
        followed.append("three\n");
        assert_eq!(followed.lines(), ["three"]);
    }

    #[test]
    fn truncation_begins_anew() {
        let mut followed = Followed::new();
        followed.append("one\ntwo\nhal");
        assert_eq!(followed.lines(), ["one", "two"]);
        std::fs::write(followed.path(), "3\n").unwrap();
        assert_eq!(followed.lines(), ["3"]);
        assert_eq!(followed.file.truncated(), 1);
    }

    #[test]
    fn a_line_without_end_takes_no_memory_and_the_next_is_read() {
        let mut followed = Followed::new();
        followed.append(&"x".repeat(5 * LONGEST));
        assert!(followed.lines().is_empty());
        assert!(followed.file.open.as_ref().unwrap().partial.kept() <= LONGEST);
        followed.append("\nshort\n");
        assert_eq!(followed.lines(), ["(too long)", "short"]);
        let position = followed.file.open.as_ref().unwrap().position;
        assert_eq!(position.offset, std::fs::metadata(followed.path()).unwrap().len());
    }

    #[test]
    fn a_later_process_goes_on_where_this_one_stopped_if_it_is_the_same_file() {
        let mut followed = Followed::new();
        followed.append("one\ntwo\n");
        let position = followed.file.read().unwrap().unwrap()[0].position;
        followed.file = FollowedFile::new(&followed.path(), Some(position));
        assert_eq!(followed.lines(), ["two"]);
        // The old file is kept, so that its inode is not given to the new one.
        std::fs::rename(followed.path(), followed.directory.path().join("kept")).unwrap();
        followed.append("new\n");
        followed.file = FollowedFile::new(&followed.path(), Some(position));
        assert_eq!(followed.lines(), ["new"], "another file");
        let beyond = Position {
            offset: 1000,
            ..followed.file.open.as_ref().unwrap().position
        };
        followed.file = FollowedFile::new(&followed.path(), Some(beyond));
        assert_eq!(followed.lines(), ["new"], "it was truncated");
    }
}
