//! Loads and attaches the XDP programs, puts sockets into their maps, and reads their counters.
//!
//! The guest program's link is pinned in a bpffs: when the process dies, by SIGKILL too, the program stays and drops what
//! it has no socket for, so that no guest's packet takes the way through the host's own stack. The next start finds the
//! pin and puts its program in the old one's place. The uplink's link ends with the process: what came for guests was
//! sealed or theirs, and the host's kernel has no use for it.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, OpenObject, Xdp, XdpFlags};

use crate::link;
use crate::skeleton::{guest, uplink};

/// How an XDP program is attached.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the stack, after the kernel has made an skb: works everywhere, slower.
    Generic,
    /// Native where the driver can, else generic.
    #[default]
    Auto,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
            XdpMode::Auto => "auto",
        })
    }
}

/// Why a program is not attached.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The kernel does not load it.
    #[error(
        "the kernel does not load the {program} program: needs root (CAP_BPF, CAP_NET_ADMIN) and a kernel of 5.9 or later"
    )]
    Load {
        /// `guest` or `uplink`.
        program: &'static str,
        /// What libbpf said.
        #[source]
        source: libbpf_rs::Error,
    },
    /// The interface does not take it.
    #[error("XDP does not attach to {interface} in {mode} mode: {hint}")]
    Attach {
        /// Interface name.
        interface: String,
        /// The mode tried.
        mode: XdpMode,
        /// What to do.
        hint: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The pin directory is no use.
    #[error("{}: no BPF file system can be used there, so the guest ports could not be kept closed if guestseal died: mount one (mount -t bpf bpf {}) or name another --pin-directory", path.display(), path.display())]
    Pin {
        /// The directory or pin.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A map refuses.
    #[error("the map {map} of {interface} refuses an entry")]
    Map {
        /// Map name.
        map: &'static str,
        /// Interface name.
        interface: String,
        /// What libbpf said.
        #[source]
        source: libbpf_rs::Error,
    },
}

/// An interface, by name and index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
}

/// What a program did, summed over CPUs.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct XdpCounters {
    /// To a live socket.
    pub redirected: u64,
    /// Dropped: no socket on the queue.
    pub no_socket: u64,
    /// Dropped: no room for the time of arrival.
    pub no_stamp: u64,
    /// To the kernel.
    pub passed: u64,
}

/// What the uplink program sends to Guestseal.
#[derive(Clone, Debug, Default)]
pub struct UplinkConfig {
    /// This host's own addresses on the wire.
    pub host_addresses: Vec<IpAddr>,
    /// MACs of this host's guests on flat networks.
    pub guest_macs: Vec<[u8; 6]>,
    /// Whether there are flat networks.
    pub flat_networks: bool,
    /// ESP in UDP (RFC 3948), port 4500.
    pub udp_encapsulation: bool,
    /// VXLAN, port 4789.
    pub vxlan: bool,
    /// Geneve, port 6081.
    pub geneve: bool,
}

/// A program that is attached.
struct Attached {
    link: OwnedFd,
    pin: Option<PathBuf>,
    mode: XdpMode,
    /// Why it is not native, where that was wanted first.
    fallback: Option<String>,
}

/// The program of a guest port.
pub struct GuestProgram {
    skeleton: guest::GuestSkel<'static>,
    interface: Interface,
    attached: Attached,
}

/// The program of the uplink.
pub struct UplinkProgram {
    skeleton: uplink::UplinkSkel<'static>,
    interface: Interface,
    attached: Attached,
}

impl fmt::Debug for GuestProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestProgram")
            .field("interface", &self.interface)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for UplinkProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UplinkProgram")
            .field("interface", &self.interface)
            .finish_non_exhaustive()
    }
}

/// libbpf's object lives as long as the process may have the program: it is small, and made once a port.
fn storage() -> &'static mut MaybeUninit<OpenObject> {
    Box::leak(Box::new(MaybeUninit::uninit()))
}

impl GuestProgram {
    /// Attaches to a guest port, or takes over from a process that died.
    ///
    /// # Errors
    /// See [`XdpError`].
    pub fn attach(interface: Interface, mode: XdpMode, pin_directory: &Path) -> Result<Self, XdpError> {
        let load = |source| XdpError::Load {
            program: "guest",
            source,
        };
        let skeleton = guest::GuestSkelBuilder::default()
            .open(storage())
            .map_err(load)?
            .load()
            .map_err(load)?;
        ensure_bpffs(pin_directory)?;
        let pin = pin_directory.join(pin_name(&interface.name));
        let attached = take_over(&skeleton.progs.guest, &interface, mode, &pin)
            .map_or_else(|| attach(&skeleton.progs.guest, &interface, mode, Some(&pin)), Ok)?;
        Ok(Self {
            skeleton,
            interface,
            attached,
        })
    }

    /// Detaches: from here on the host's own stack gets what the guest sends. Dropping the program instead keeps the
    /// port closed.
    pub fn detach(self) {
        end(&self.attached);
    }
}

impl UplinkProgram {
    /// Attaches to the uplink.
    ///
    /// # Errors
    /// See [`XdpError`].
    pub fn attach(interface: Interface, mode: XdpMode, config: &UplinkConfig) -> Result<Self, XdpError> {
        let load = |source| XdpError::Load {
            program: "uplink",
            source,
        };
        let mut open = uplink::UplinkSkelBuilder::default()
            .open(storage())
            .map_err(load)?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.flat_networks = config.flat_networks.into();
            constants.udp_encapsulation = config.udp_encapsulation.into();
            constants.vxlan = config.vxlan.into();
            constants.geneve = config.geneve.into();
        }
        let skeleton = open.load().map_err(load)?;
        for address in &config.host_addresses {
            let mapped = match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            put(
                &skeleton.maps.host_addresses,
                "host_addresses",
                &interface,
                &mapped,
            )?;
        }
        for mac in &config.guest_macs {
            put(&skeleton.maps.guest_macs, "guest_macs", &interface, mac)?;
        }
        let attached = attach(&skeleton.progs.uplink, &interface, mode, None)?;
        Ok(Self {
            skeleton,
            interface,
            attached,
        })
    }

    /// Detaches.
    pub fn detach(self) {
        end(&self.attached);
    }
}

macro_rules! program {
    ($type:ty, $program:ident) => {
        impl $type {
            /// The mode that the kernel says is in force.
            #[must_use]
            pub fn mode(&self) -> XdpMode {
                self.attached.mode
            }

            /// Why the mode is not native although that was wanted first.
            #[must_use]
            pub fn fallback(&self) -> Option<&str> {
                self.attached.fallback.as_deref()
            }

            /// The interface it is attached to.
            #[must_use]
            pub fn interface(&self) -> &Interface {
                &self.interface
            }

            /// Lets a socket have the packets of a receive queue.
            ///
            /// # Errors
            /// If the kernel refuses: the queue is beyond the map, or the socket is not bound to this queue.
            pub fn register(&self, queue: u32, socket: RawFd) -> Result<(), XdpError> {
                self.skeleton
                    .maps
                    .sockets
                    .update(&queue.to_ne_bytes(), &socket.to_ne_bytes(), MapFlags::ANY)
                    .map_err(|source| XdpError::Map {
                        map: "sockets",
                        interface: self.interface.name.clone(),
                        source,
                    })
            }

            /// Takes the packets of a receive queue from its socket: from here on they are dropped.
            pub fn unregister(&self, queue: u32) {
                // An entry that is not there is as good as one removed.
                let _ = self.skeleton.maps.sockets.delete(&queue.to_ne_bytes());
            }

            /// What the program did.
            #[must_use]
            pub fn counters(&self) -> XdpCounters {
                read_counters(&self.skeleton.maps.counters)
            }

            /// The program, to be run on test packets.
            #[doc(hidden)]
            pub fn program(&self) -> &impl libbpf_rs::AsRawLibbpf {
                &self.skeleton.progs.$program
            }
        }
    };
}

program!(GuestProgram, guest);
program!(UplinkProgram, uplink);

fn put(map: &impl MapCore, name: &'static str, interface: &Interface, key: &[u8]) -> Result<(), XdpError> {
    map.update(key, &[1], MapFlags::ANY)
        .map_err(|source| XdpError::Map {
            map: name,
            interface: interface.name.clone(),
            source,
        })
}

fn read_counters(map: &impl MapCore) -> XdpCounters {
    let sum = |which: u32| {
        let per_cpu = map
            .lookup_percpu(&which.to_ne_bytes(), MapFlags::ANY)
            .ok()
            .flatten()
            .unwrap_or_default();
        per_cpu
            .iter()
            .filter_map(|bytes| bytes.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)))
            .sum()
    };
    XdpCounters {
        redirected: sum(0),
        no_socket: sum(1),
        no_stamp: sum(2),
        passed: sum(3),
    }
}

fn attach(
    program: &libbpf_rs::ProgramMut<'_>,
    interface: &Interface,
    mode: XdpMode,
    pin: Option<&Path>,
) -> Result<Attached, XdpError> {
    let create = |flags| link::create(program.as_fd(), interface.index as i32, flags);
    let refused = |mode, source: io::Error| XdpError::Attach {
        interface: interface.name.clone(),
        mode,
        hint: match source.raw_os_error() {
            Some(libc::EBUSY) => "another XDP program is attached: see ip link show, and detach it",
            Some(libc::EOPNOTSUPP) => {
                "the driver cannot (or MTU or offloads forbid it): use --xdp-mode generic"
            }
            Some(libc::EPERM) => "needs root (CAP_NET_ADMIN, CAP_BPF)",
            Some(libc::ENODEV | libc::EINVAL) => "the interface is gone or takes no XDP program",
            Some(libc::ERANGE) => "the MTU is too large for native XDP: lower it or use --xdp-mode generic",
            _ => "see the cause",
        },
        source,
    };
    let (link, fallback) = match mode {
        XdpMode::Native => (
            create(link::NATIVE).map_err(|source| refused(mode, source))?,
            None,
        ),
        XdpMode::Generic => (
            create(link::GENERIC).map_err(|source| refused(mode, source))?,
            None,
        ),
        XdpMode::Auto => match create(link::NATIVE) {
            Ok(link) => (link, None),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(refused(XdpMode::Native, error));
            }
            Err(error) => (
                create(link::GENERIC).map_err(|source| refused(XdpMode::Generic, source))?,
                Some(error.to_string()),
            ),
        },
    };
    if let Some(pin) = pin {
        link::pin(link.as_fd(), pin).map_err(|source| XdpError::Pin {
            path: pin.to_owned(),
            source,
        })?;
    }
    let mode = mode_in_force(program.as_fd(), interface).unwrap_or(mode);
    Ok(Attached {
        link,
        pin: pin.map(Path::to_owned),
        mode,
        fallback,
    })
}

/// Puts the program in the place of one that a dead process left on the interface. `None` if there is none, or if it is
/// of no use: of another interface, or in another mode than the one wanted.
fn take_over(
    program: &libbpf_rs::ProgramMut<'_>,
    interface: &Interface,
    mode: XdpMode,
    pin: &Path,
) -> Option<Attached> {
    let link = link::open(pin).ok()?;
    if link::interface_of(link.as_fd()).is_ok_and(|index| index == interface.index)
        && link::update(link.as_fd(), program.as_fd()).is_ok()
    {
        let found = mode_in_force(program.as_fd(), interface);
        if let Some(found) = found.filter(|found| mode == XdpMode::Auto || mode == *found) {
            return Some(Attached {
                link,
                pin: Some(pin.to_owned()),
                mode: found,
                fallback: None,
            });
        }
    }
    // Between this and the attachment that follows the port is open to the host's stack for a moment; it can only
    // happen when the interface was made anew or the operator asked for another mode.
    let _ = link::detach(link.as_fd());
    let _ = std::fs::remove_file(pin);
    None
}

fn mode_in_force(program: BorrowedFd<'_>, interface: &Interface) -> Option<XdpMode> {
    let found = Xdp::new(program)
        .query(interface.index as i32, XdpFlags::NONE)
        .ok()?;
    match u32::from(found.attach_mode) {
        1 => Some(XdpMode::Native),
        2 => Some(XdpMode::Generic),
        _ => None,
    }
}

fn end(attached: &Attached) {
    // The interface may be gone already, and the program with it.
    let _ = link::detach(attached.link.as_fd());
    if let Some(pin) = &attached.pin {
        let _ = std::fs::remove_file(pin);
    }
    debug_assert!(attached.link.as_raw_fd() >= 0);
}

/// Interfaces of one name exist in many network namespaces, and all may share one bpffs. No dot: bpffs refuses it.
fn pin_name(interface: &str) -> String {
    let namespace = std::fs::metadata("/proc/self/ns/net").map_or(0, |namespace| namespace.ino());
    format!("guest-{namespace}-{}", interface.replace('.', "_"))
}

fn ensure_bpffs(directory: &Path) -> Result<(), XdpError> {
    let failed = |source| XdpError::Pin {
        path: directory.to_owned(),
        source,
    };
    std::fs::create_dir_all(directory).map_err(failed)?;
    if link::is_bpffs(directory) {
        return Ok(());
    }
    link::mount_bpffs(directory).map_err(failed)
}

/// Whether the system says that an error of libbpf was one of permission.
#[must_use]
pub fn is_permission(error: &XdpError) -> bool {
    match error {
        XdpError::Load { source, .. } | XdpError::Map { source, .. } => {
            source.kind() == libbpf_rs::ErrorKind::PermissionDenied
        }
        XdpError::Attach { source, .. } | XdpError::Pin { source, .. } => {
            source.kind() == io::ErrorKind::PermissionDenied
        }
    }
}
