//! What can go wrong between the loader and the kernel, said to an operator.
//! Every message names the object, what was expected and what to do; the kernel's own word is the source.

use std::io;
use std::path::PathBuf;

use crate::XdpMode;

/// An XDP program could not be loaded, attached or spoken to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum XdpError {
    /// The kernel refused for want of privilege.
    #[error("{action}: not permitted; run as root, or with CAP_NET_ADMIN, CAP_BPF and CAP_SYS_ADMIN")]
    NotPermitted {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel did not take the program.
    #[error(
        "the kernel does not load the XDP program {program}: Linux 5.15 or later with CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS is needed"
    )]
    Load {
        /// `guest_port` or `uplink`.
        program: &'static str,
        /// libbpf's answer.
        source: libbpf_rs::Error,
    },
    /// No such interface in this network namespace.
    #[error("no interface with index {ifindex} in this network namespace; it may have been removed")]
    NoInterface {
        /// The index that was asked for.
        ifindex: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The interface has an XDP program that is not Guestseal's, or not one of this pin directory.
    #[error(
        "{interface} already has an XDP program, `{name}` (id {id}, {mode} mode), that Guestseal did not leave there; \
         stop what attached it, or detach it with `ip link set dev {interface} xdp off`"
    )]
    OtherProgram {
        /// The interface's name.
        interface: String,
        /// The program's name in the kernel.
        name: String,
        /// The program's id in the kernel.
        id: u32,
        /// The mode it is attached in.
        mode: XdpMode,
    },
    /// Another live process of Guestseal serves the interface.
    #[error(
        "{interface} is served by another running Guestseal (it holds a lock on {pin}); stop that one first"
    )]
    InUse {
        /// The interface's name.
        interface: String,
        /// The directory of the interface's pin.
        pin: PathBuf,
    },
    /// The driver does not do the mode that was asked for.
    #[error("{interface} does not take an XDP program in {mode} mode; use --xdp-mode {other}")]
    ModeUnsupported {
        /// The interface's name.
        interface: String,
        /// The mode that was asked for.
        mode: XdpMode,
        /// The mode to try instead.
        other: XdpMode,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A killed process left the interface in the other mode, which cannot change without a gap.
    #[error(
        "{interface} is still guarded in {in_force} mode by a program that a killed run left at {pin}, and {wanted} mode \
         cannot replace it without a moment in which frames reach the host's stack; start with --xdp-mode auto or {in_force}, \
         or remove {pin} when the interface carries no traffic"
    )]
    ModeFixed {
        /// The interface's name.
        interface: String,
        /// The mode that is in force.
        in_force: XdpMode,
        /// The mode that was asked for.
        wanted: XdpMode,
        /// The pinned link.
        pin: PathBuf,
    },
    /// The kernel refused to attach, replace or query a program.
    #[error("{interface}: cannot {action} the XDP program")]
    Attach {
        /// The interface's name.
        interface: String,
        /// `attach`, `replace`, `query`, ...
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A map of a program refused an entry.
    #[error("cannot {action} in the map {map} of an XDP program{hint}")]
    Map {
        /// The map's name.
        map: &'static str,
        /// What was tried, with the entry.
        action: String,
        /// What to do, empty or beginning with `: `.
        hint: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The directory that keeps links over the death of the process is not usable.
    #[error(
        "{path}: cannot {action}; expected a bpf file system, or a directory where root can mount one \
         (mount -t bpf bpf {path})"
    )]
    Pins {
        /// The directory or the pin in it.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel did not run the program over a frame.
    #[error(
        "the kernel does not run the XDP program over a frame of {length} bytes; it takes 14 bytes up to a page"
    )]
    Trial {
        /// Bytes of the frame.
        length: usize,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// libbpf's error as the kernel's, for the cases where only its number matters.
pub(crate) fn kernel_error(error: &libbpf_rs::Error) -> io::Error {
    use std::error::Error as _;
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return io.raw_os_error().map_or_else(
                || io::Error::new(io.kind(), io.to_string()),
                io::Error::from_raw_os_error,
            );
        }
        cause = inner.source();
    }
    io::Error::other(error.to_string())
}
