//! Attaches a loaded program to an interface by a bpf link, and lets go of it.
//! Reads a program, an interface and the wish for a mode; gives the hold on the link.
//! Dropping the hold leaves a pinned program in force: only `detach` opens the interface to the host's stack.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::{Xdp, XdpFlags};
use rustix::io::Errno;

use crate::error::kernel_error;
use crate::kernel::{create_link, link_state, replace_program};
use crate::pins::{Pin, PinDirectory};
use crate::{Program, XdpError};

/// Where in the receive path an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum XdpMode {
    /// In the driver, before the kernel makes anything of the frame.
    Native,
    /// In the kernel's common receive path, on any driver, slower.
    Generic,
}

/// Which mode the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ModeChoice {
    /// Native where the driver does it, else generic, with a reason.
    #[default]
    Auto,
    /// This one or an error.
    Only(XdpMode),
}

/// Where and how to attach a program.
#[derive(Clone, Copy, Debug)]
pub struct Attachment<'a> {
    /// An interface of the calling thread's network namespace.
    pub ifindex: u32,
    /// The mode that is wanted.
    pub mode: ModeChoice,
    /// Where the link outlives the process. Without, the program goes when the process does, however it ends,
    /// and frames reach the host's stack again.
    pub pins: Option<&'a PinDirectory>,
}

/// A program in force at an interface.
///
/// Dropping it keeps a pinned program in force, which then drops what is Guestseal's; see [`Attached::detach`].
#[derive(Debug)]
#[must_use = "an attachment without a pin ends when this is dropped"]
pub struct Attached<P> {
    program: P,
    link: OwnedFd,
    pin: Option<Pin>,
    ifindex: u32,
    interface: String,
    fallback: Option<String>,
    taken_over: bool,
}

/// The program at an interface, as the kernel tells it.
struct InForce {
    program_id: u32,
    mode: XdpMode,
}

impl<P: Program> Attached<P> {
    /// Puts the program in force. A program that a killed process left pinned there is replaced between two frames.
    pub(crate) fn new(program: P, attachment: Attachment<'_>) -> Result<Self, XdpError> {
        let interface = name_of(attachment.ifindex)?;
        let at = Site {
            interface: &interface,
            ifindex: attachment.ifindex,
            choice: attachment.mode,
        };
        let (link, pin, fallback, taken_over) = match attachment.pins {
            None => {
                at.refuse_other(program.descriptor())?;
                let (link, fallback) = at.create(program.descriptor())?;
                (link, None, fallback, false)
            }
            Some(pins) => at.pinned(program.descriptor(), pins)?,
        };
        Ok(Self {
            program,
            link,
            pin,
            ifindex: attachment.ifindex,
            interface,
            fallback,
            taken_over,
        })
    }

    /// The mode in force, asked of the kernel now.
    pub fn mode(&self) -> Result<XdpMode, XdpError> {
        let in_force = in_force(self.program.descriptor(), self.ifindex, &self.interface)?;
        let own = link_state(self.link.as_fd())
            .map_err(|source| self.failed("query", source))?
            .program_id;
        match in_force {
            Some(found) if found.program_id == own => Ok(found.mode),
            _ => Err(self.failed("query", Errno::NODEV.into())),
        }
    }

    /// Why `Auto` did not end in native mode, for a warning.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Whether a program was found in force that an earlier process had left, and replaced.
    pub fn taken_over(&self) -> bool {
        self.taken_over
    }

    /// The interface's name when the program was attached.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The orderly end: the program leaves the interface and the pin its directory.
    ///
    /// Frames then reach the host's stack: stop the guest, take its port down or hand it over before, where that matters.
    pub fn detach(self) -> Result<(), XdpError> {
        let Some(pin) = self.pin else { return Ok(()) };
        let path = pin.link();
        match pin.remove() {
            // The interface's end may have had the pin swept away already.
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(XdpError::Pins {
                path,
                action: "remove the pinned link",
                source,
            }),
            _ => Ok(()),
        }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> XdpError {
        XdpError::Attach {
            interface: self.interface.clone(),
            action,
            source,
        }
    }
}

impl<P> Deref for Attached<P> {
    type Target = P;

    fn deref(&self) -> &P {
        &self.program
    }
}

/// One attempt at one interface.
struct Site<'a> {
    interface: &'a str,
    ifindex: u32,
    choice: ModeChoice,
}

type Pinned = (OwnedFd, Option<Pin>, Option<String>, bool);

impl Site<'_> {
    fn pinned(&self, program: BorrowedFd<'_>, pins: &PinDirectory) -> Result<Pinned, XdpError> {
        let _alone = pins.lock()?;
        let present = in_force(program, self.ifindex, self.interface)?;
        let left = pins.find(present.as_ref().map(|found| found.program_id))?;
        match (present, left) {
            (Some(present), Some(left)) => {
                let directory = left.directory.clone();
                let pin = self.hold(directory)?;
                let fallback = self.accept(present.mode, &pin)?;
                replace_program(left.link.as_fd(), program)
                    .map_err(|source| self.failed("replace", source))?;
                Ok((left.link, Some(pin), fallback, true))
            }
            (Some(present), None) => Err(self.other(present)),
            (None, _) => {
                let directory = pins
                    .name(self.ifindex)
                    .map_err(|source| self.failed("name the pin of", source))?;
                let pin = self.hold(directory)?;
                let created = self.create(program).and_then(|(link, fallback)| {
                    pin.keep(&link).map_err(|source| XdpError::Pins {
                        path: pin.link(),
                        action: "pin the link",
                        source,
                    })?;
                    Ok((link, fallback))
                });
                match created {
                    Ok((link, fallback)) => Ok((link, Some(pin), fallback, false)),
                    Err(error) => {
                        // No link has this name; its directory goes again.
                        let _ = pin.link().parent().map(fs::remove_dir);
                        Err(error)
                    }
                }
            }
        }
    }

    fn hold(&self, directory: std::path::PathBuf) -> Result<Pin, XdpError> {
        match Pin::hold(directory.clone()) {
            Ok(Some(pin)) => Ok(pin),
            Ok(None) => Err(XdpError::InUse {
                interface: self.interface.to_owned(),
                pin: directory,
            }),
            Err(source) => Err(XdpError::Pins {
                path: directory,
                action: "create the pin's directory",
                source,
            }),
        }
    }

    /// Whether the mode that a killed process left is one that was asked for.
    fn accept(&self, in_force: XdpMode, pin: &Pin) -> Result<Option<String>, XdpError> {
        match (self.choice, in_force) {
            (ModeChoice::Only(wanted), _) if wanted != in_force => Err(XdpError::ModeFixed {
                interface: self.interface.to_owned(),
                in_force,
                wanted,
                pin: pin.link(),
            }),
            (ModeChoice::Auto, XdpMode::Generic) => Ok(Some(
                "a run that was killed left the interface in generic mode".to_owned(),
            )),
            _ => Ok(None),
        }
    }

    fn create(&self, program: BorrowedFd<'_>) -> Result<(OwnedFd, Option<String>), XdpError> {
        let (mode, other) = match self.choice {
            ModeChoice::Only(XdpMode::Generic) => (XdpMode::Generic, XdpMode::Native),
            _ => (XdpMode::Native, XdpMode::Generic),
        };
        let source = match create_link(program, self.ifindex, mode) {
            Ok(link) => return Ok((link, None)),
            Err(source) => source,
        };
        match Errno::from_io_error(&source) {
            Some(Errno::PERM | Errno::ACCESS) => {
                let action = format!("attach an XDP program to {}", self.interface);
                return Err(XdpError::NotPermitted { action, source });
            }
            Some(Errno::BUSY | Errno::EXIST | Errno::NODEV) => return Err(self.failed("attach", source)),
            _ => (),
        }
        if self.choice != ModeChoice::Auto {
            let interface = self.interface.to_owned();
            return Err(XdpError::ModeUnsupported {
                interface,
                mode,
                other,
                source,
            });
        }
        let link =
            create_link(program, self.ifindex, other).map_err(|second| self.failed("attach", second))?;
        Ok((
            link,
            Some(format!(
                "the driver of {} refuses native mode: {source}",
                self.interface
            )),
        ))
    }

    fn refuse_other(&self, program: BorrowedFd<'_>) -> Result<(), XdpError> {
        match in_force(program, self.ifindex, self.interface)? {
            Some(present) => Err(self.other(present)),
            None => Ok(()),
        }
    }

    fn other(&self, present: InForce) -> XdpError {
        let name = ProgInfoIter::default()
            .find(|program| program.id == present.program_id)
            .map_or_else(
                || "?".to_owned(),
                |program| program.name.to_string_lossy().into_owned(),
            );
        XdpError::OtherProgram {
            interface: self.interface.to_owned(),
            name,
            id: present.program_id,
            mode: present.mode,
        }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> XdpError {
        XdpError::Attach {
            interface: self.interface.to_owned(),
            action,
            source,
        }
    }
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

fn in_force(program: BorrowedFd<'_>, ifindex: u32, interface: &str) -> Result<Option<InForce>, XdpError> {
    let failed = |source| XdpError::Attach {
        interface: interface.to_owned(),
        action: "query",
        source,
    };
    let index = i32::try_from(ifindex).map_err(|_| failed(Errno::INVAL.into()))?;
    let found = Xdp::new(program)
        .query(index, XdpFlags::NONE)
        .map_err(|error| failed(kernel_error(&error)))?;
    Ok(match (found.drv_prog_id, found.skb_prog_id) {
        (0, 0) => None,
        (0, program_id) => Some(InForce {
            program_id,
            mode: XdpMode::Generic,
        }),
        (program_id, _) => Some(InForce {
            program_id,
            mode: XdpMode::Native,
        }),
    })
}

fn name_of(ifindex: u32) -> Result<String, XdpError> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
    let missing = |error: Errno| XdpError::NoInterface {
        ifindex,
        source: error.into(),
    };
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map_err(missing)?;
    netdevice::index_to_name(&socket, ifindex).map_err(missing)
}
