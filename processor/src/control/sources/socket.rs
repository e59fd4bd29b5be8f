//! A Unix socket that a service connects to and writes lines into.
//!
//! Nobody is waited for: what a writer writes faster than it is taken waits in its own buffers, and a line that is too long is kept no
//! more than in a file. Writers beyond [`MOST`] at once are sent away.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::lines::{CHUNK, Partial};
use crate::files;

/// Writers at once.
pub(super) const MOST: usize = 16;

/// Held while a socket is put at its path or taken away: whoever takes one away must not find its own there and remove its
/// successor.
static PLACES: Mutex<()> = Mutex::new(());

/// A socket and who has connected to it.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// What is at the path as long as nobody puts something else there.
    inode: u64,
    writers: Vec<Writer>,
    /// Whose turn it is.
    next: usize,
}

#[derive(Debug)]
struct Writer {
    stream: UnixStream,
    partial: Partial,
}

impl Socket {
    /// Listens at a path; only its owner and the group, if one is said, may connect.
    pub(super) fn open(path: &Path, group: Option<u32>) -> io::Result<Self> {
        let _held = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        let listener = files::listen(path, group, if group.is_some() { 0o660 } else { 0o600 })?;
        let inode = std::fs::metadata(path)?.ino();
        Ok(Self {
            listener,
            path: path.to_owned(),
            inode,
            writers: Vec::new(),
            next: 0,
        })
    }

    /// What can be read when something has come.
    pub(super) fn wait_on(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let writers = self.writers.iter().map(|writer| writer.stream.as_fd());
        std::iter::once(self.listener.as_fd()).chain(writers)
    }

    /// Reads on, a bounded amount, from one writer after the other: the lines that became whole, nothing for one that is too long;
    /// nothing at all if nobody has written more.
    pub(super) fn read(&mut self) -> Option<Vec<Option<String>>> {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.writers.len() < MOST && stream.set_nonblocking(true).is_ok() {
                self.writers.push(Writer {
                    stream,
                    partial: Partial::default(),
                });
            }
        }
        let mut buffer = vec![0; CHUNK];
        for _ in 0..self.writers.len() {
            self.next = (self.next + 1) % self.writers.len();
            let writer = &mut self.writers[self.next];
            match writer.stream.read(&mut buffer) {
                Ok(count) if count > 0 => {
                    let mut lines = Vec::new();
                    writer.partial.take(&buffer[..count], |line, _| lines.push(line));
                    return Some(lines);
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                // Half a line of one that is gone has no other half.
                _ => {
                    self.writers.remove(self.next);
                    self.next = 0;
                    // Those behind it have their turn the next time.
                    return Some(Vec::new());
                }
            }
        }
        None
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _held = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        // Its successor may be there already.
        if std::fs::metadata(&self.path).is_ok_and(|now| now.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
