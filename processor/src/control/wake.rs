//! What wakes the control loop: a descriptor that has something, a doorbell that other threads ring, files that change,
//! or the time at which something is due.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::time::Timespec;

/// Waits until one of the descriptors can be read, or has failed, or until `deadline`. A signal ends it early.
pub fn wait(descriptors: &[BorrowedFd<'_>], deadline: Instant) {
    let mut polled: Vec<PollFd<'_>> = descriptors
        .iter()
        .map(|descriptor| PollFd::from_borrowed_fd(*descriptor, PollFlags::IN))
        .collect();
    let left = deadline.saturating_duration_since(Instant::now());
    // An interrupted wait is as good as one that ended.
    let _ = poll(&mut polled, Some(&timespec(left)));
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// Rung by any thread, heard by the control loop.
#[derive(Clone, Debug)]
pub struct Doorbell(Arc<OwnedFd>);

impl Doorbell {
    /// A doorbell.
    ///
    /// # Errors
    /// If the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self(Arc::new(event)))
    }

    /// Rings it.
    pub fn ring(&self) {
        // Full (EAGAIN) means that it is ringing already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Silences it. What was put somewhere before it was rung is to be looked for after this.
    pub fn silence(&self) {
        let mut count = [0u8; 8];
        // Empty (EAGAIN) means that it was not rung.
        let _ = rustix::io::read(&self.0, &mut count);
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Files that are watched for changes, also through renaming and symbolic links.
#[derive(Debug)]
pub struct Watched {
    inotify: OwnedFd,
    files: Vec<PathBuf>,
}

impl Watched {
    /// Watches files, whether they are there or not.
    ///
    /// # Errors
    /// If the system gives no inotify descriptor or cannot watch a directory.
    pub fn new(files: impl IntoIterator<Item = PathBuf>) -> io::Result<Self> {
        let watched = Self {
            inotify: inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?,
            files: files.into_iter().collect(),
        };
        for file in &watched.files {
            let directory = match file.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            };
            let names = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
            inotify::add_watch(&watched.inotify, directory, names)?;
        }
        watched.watch_files();
        Ok(watched)
    }

    /// Takes what has been told; whether there was something. From here on a file that is new under its name is watched too.
    pub fn take(&self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut any = false;
        while reader.next().is_ok() {
            any = true;
        }
        if any {
            self.watch_files();
        }
        any
    }

    fn watch_files(&self) {
        for file in &self.files {
            // One that is not there yet is met by its directory's watch.
            let _ = inotify::add_watch(&self.inotify, file, WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE);
        }
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    /// Longer than any of these tests takes: who waits so long was not woken.
    const LONG: Duration = Duration::from_secs(60);

    fn woken(by: BorrowedFd<'_>) -> bool {
        let begin = Instant::now();
        wait(&[by], begin + LONG);
        begin.elapsed() < LONG
    }

    #[test]
    fn a_doorbell_is_heard_and_silenced() {
        let bell = Doorbell::new().unwrap();
        let ringer = bell.clone();
        let thread = std::thread::spawn(move || (0..3).for_each(|_| ringer.ring()));
        assert!(woken(bell.as_fd()));
        thread.join().unwrap();
        bell.silence();
        let begin = Instant::now();
        wait(&[bell.as_fd()], begin + Duration::from_millis(1));
        assert!(begin.elapsed() >= Duration::from_millis(1), "nobody has rung");
    }

    fn append(path: &Path) {
        let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(b"more").unwrap();
    }

    #[test]
    fn a_file_is_watched_as_it_comes_grows_is_replaced_and_linked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let elsewhere = tempfile::tempdir().unwrap();
        let target = elsewhere.path().join("target");
        fs::write(&target, "").unwrap();
        let linked = directory.path().join("link");
        std::os::unix::fs::symlink(&target, &linked).unwrap();
        let watched = Watched::new([path.clone(), linked]).unwrap();
        assert!(!watched.take());
        let mut changes: Vec<Box<dyn Fn()>> = Vec::new();
        changes.push(Box::new(|| fs::write(&path, "new").unwrap()));
        changes.push(Box::new(|| append(&path)));
        changes.push(Box::new(|| {
            fs::rename(&path, path.with_extension("old")).unwrap()
        }));
        changes.push(Box::new(|| fs::write(&path, "newer").unwrap()));
        changes.push(Box::new(|| append(&path)));
        changes.push(Box::new(|| append(&target)));
        for (number, change) in changes.iter().enumerate() {
            change();
            // What is renamed away is no news until there is a new one.
            if number != 2 {
                assert!(woken(watched.as_fd()), "change {number}");
                assert!(watched.take(), "change {number}");
            }
        }
    }
}
