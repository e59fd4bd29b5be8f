//! Keeps XDP links over the death of the process: names for them in a bpf file system, and who holds which.
//! Reads and writes one directory; each interface has a directory in it, with the pinned link and a lock.
//! Nothing in it needs cleaning by hand: links of vanished interfaces are removed at the next attachment.
//!
//! A link without a name dies with its last descriptor, so that SIGKILL would detach the program of a guest port
//! and hand what the guest sends to the host's stack. A named one stays, its map empty of sockets: drop.
//!
//! Every mount of type bpf is a file system of its own, and mounts made in a private mount namespace (`ip netns
//! exec` makes one, where it also hides /sys/fs/bpf; hardened services have one) end with it. A directory that
//! holds no bpf file system yet therefore gets one in the mount namespace of process 1, and is used through
//! /proc/1/root. Where that is out of reach the mount is made here, and `caveat` says what that means.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock, statfs};

use crate::XdpError;
use crate::kernel::{LinkState, link_state, open_link, pin_link};

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FILE_SYSTEM: u64 = 0xcafe_4a11;
const LINK: &str = "link";

/// A directory of a bpf file system in which links outlive the process.
#[derive(Clone, Debug)]
pub struct PinDirectory {
    path: PathBuf,
    caveat: Option<String>,
}

/// The mount namespace in which a new mount lasts longest.
enum Lasting {
    /// This process's own is that of process 1.
    Own,
    /// That of process 1.
    First,
    /// Process 1 does not show its own: this process's, whose life is unknown.
    Unknown,
}

/// The hold of this process on the pin of one interface; released when it dies.
#[derive(Debug)]
pub(crate) struct Pin {
    directory: PathBuf,
    _lock: File,
}

/// A link that a process left behind.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) directory: PathBuf,
    pub(crate) link: OwnedFd,
}

impl PinDirectory {
    /// Where the links are kept if nobody says otherwise.
    pub const DEFAULT: &str = "/run/guestseal/bpf";

    /// Takes a directory of a bpf file system, or makes it one.
    ///
    /// A path on another file system is created if need be, and a bpf file system mounted over it in the mount
    /// namespace of process 1, so that it outlives every process that is started in a namespace of its own. A path
    /// that is on a bpf file system already is used as it is: that it lasts is then the caller's care.
    pub fn open(path: &Path) -> Result<Self, XdpError> {
        let fail = |action| {
            move |source: io::Error| XdpError::Pins {
                path: path.to_owned(),
                action,
                source,
            }
        };
        let path = std::path::absolute(path).map_err(fail("name the directory"))?;
        let lasting = Lasting::find();
        let seen = match lasting {
            Lasting::First => Path::new("/proc/1/root").join(path.strip_prefix("/").unwrap_or(&path)),
            Lasting::Own | Lasting::Unknown => path.clone(),
        };
        for candidate in [&path, &seen] {
            if candidate
                .ancestors()
                .find(|above| above.exists())
                .is_some_and(is_bpf)
            {
                fs::create_dir_all(candidate).map_err(fail("create the directory"))?;
                return Ok(Self {
                    path: candidate.clone(),
                    caveat: None,
                });
            }
        }
        fs::create_dir_all(&seen).map_err(fail("create the directory"))?;
        // Two processes that start at once must not mount over one another.
        let parent = seen.parent().unwrap_or(&seen);
        let lock = File::open(parent).map_err(fail("open the directory above"))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| fail("lock the directory above")(error.into()))?;
        if !is_bpf(&seen) {
            lasting.mount(&path).map_err(fail("mount a bpf file system"))?;
        }
        let caveat = matches!(lasting, Lasting::Unknown).then(|| {
            format!(
                "a bpf file system was mounted at {} in this process's mount namespace, since that of process 1 is out \
                 of reach; if this namespace ends with the process (ip netns exec, a service with private mounts), a \
                 killed process leaves its guest ports open: mount one there beforehand, from outside",
                path.display()
            )
        });
        Ok(Self { path: seen, caveat })
    }

    /// What the operator should be warned of: that the directory may not outlive the process.
    pub fn caveat(&self) -> Option<&str> {
        self.caveat.as_deref()
    }

    /// The directory as this process reaches it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps other processes out for the time of an attachment.
    pub(crate) fn lock(&self) -> Result<File, XdpError> {
        let fail = |action| {
            move |source: io::Error| XdpError::Pins {
                path: self.path.clone(),
                action,
                source,
            }
        };
        let lock = File::open(&self.path).map_err(fail("open the directory"))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| fail("lock the directory")(error.into()))?;
        Ok(lock)
    }

    /// Finds the link that runs a program, and removes those that run nowhere any more. Call it under the lock.
    pub(crate) fn find(&self, program_id: Option<u32>) -> Result<Option<Found>, XdpError> {
        let entries = fs::read_dir(&self.path).map_err(|source| XdpError::Pins {
            path: self.path.clone(),
            action: "read the directory",
            source,
        })?;
        let mut found = None;
        for directory in entries.flatten().map(|entry| entry.path()) {
            let pin = directory.join(LINK);
            let Some((link, state)) = open_state(&pin) else {
                // Left by a process that died before it pinned, or not ours: only an empty directory goes.
                let _ = fs::remove_dir(&directory);
                continue;
            };
            if state.ifindex == 0 {
                let _ = fs::remove_file(&pin);
                let _ = fs::remove_dir(&directory);
            } else if Some(state.program_id) == program_id {
                found = Some(Found { directory, link });
            }
        }
        Ok(found)
    }

    /// The directory of a new pin. Interface indexes repeat over network namespaces, whose inodes do not.
    pub(crate) fn name(&self, ifindex: u32) -> io::Result<PathBuf> {
        let namespace = fs::metadata("/proc/thread-self/ns/net")?.ino();
        Ok(self.path.join(format!("{namespace}-{ifindex}")))
    }
}

impl Pin {
    /// Takes the hold on an interface's pin; `None` if another process has it.
    pub(crate) fn hold(directory: PathBuf) -> io::Result<Option<Self>> {
        fs::create_dir_all(&directory)?;
        let lock = File::open(&directory)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self {
                directory,
                _lock: lock,
            })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the link its name.
    pub(crate) fn keep(&self, link: impl AsFd) -> io::Result<()> {
        pin_link(link.as_fd(), &self.link())
    }

    /// Takes the name away; the link then ends with its descriptors.
    pub(crate) fn remove(self) -> io::Result<()> {
        fs::remove_file(self.link())?;
        fs::remove_dir(&self.directory)
    }

    /// The pinned link itself.
    pub(crate) fn link(&self) -> PathBuf {
        self.directory.join(LINK)
    }
}

fn open_state(pin: &Path) -> Option<(OwnedFd, LinkState)> {
    let link = open_link(pin).ok()?;
    let state = link_state(link.as_fd()).ok()?;
    Some((link, state))
}

fn is_bpf(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.f_type as u64 == BPF_FILE_SYSTEM)
}

impl Lasting {
    fn find() -> Self {
        match (
            fs::read_link("/proc/self/ns/mnt"),
            fs::read_link("/proc/1/ns/mnt"),
        ) {
            (Ok(own), Ok(first)) if own == first => Self::Own,
            (Ok(_), Ok(_)) => Self::First,
            _ => Self::Unknown,
        }
    }

    /// A mount can only be made from inside its mount namespace; nsenter and mount are part of every Debian.
    fn mount(&self, path: &Path) -> io::Result<()> {
        let mut command = match self {
            Self::First => {
                let mut command = Command::new("nsenter");
                // Its root too, which need not be that of its mount namespace (a container, a chroot).
                command.args(["--mount=/proc/1/ns/mnt", "--root=/proc/1/root", "mount"]);
                command
            }
            Self::Own | Self::Unknown => Command::new("mount"),
        };
        let outcome = command
            .args(["-t", "bpf", "-o", "mode=0700", "guestseal"])
            .arg(path)
            .output()?;
        if outcome.status.success() {
            return Ok(());
        }
        Err(io::Error::other(
            String::from_utf8_lossy(&outcome.stderr).trim().to_owned(),
        ))
    }
}
