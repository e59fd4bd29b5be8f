//! Loads the two programs and speaks to their maps.
//! Takes configuration and socket descriptors; gives loaded programs, ready to attach, and their counters.
//! A loaded program is only descriptors: it can be dropped in any order and from any thread.

use std::collections::HashSet;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Once;

use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use crate::XdpError;
use crate::attach::{Attached, Attachment};
use crate::error::kernel_error;
use crate::kernel::{Trial, try_program};
use crate::skeleton::guest::GuestSkelBuilder;
use crate::skeleton::uplink::UplinkSkelBuilder;

/// What a program has counted since it was loaded, in frames, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Handed to a socket, whose ring may still have refused the frame.
    pub redirected: u64,
    /// Dropped because no socket served the queue that the frame came by.
    pub no_socket: u64,
    /// Dropped because the driver gave no room for the time stamp.
    pub no_stamp: u64,
    /// Left to the kernel; always 0 at a guest port.
    pub passed: u64,
    /// Dropped because more came to the port of handshakes than is taken there; always 0 at a guest port.
    pub handshakes: u64,
}

/// What the uplink program takes for Guestseal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UplinkConfig {
    /// The host's own addresses: ESP to them is Guestseal's, ARP and ND for them is the kernel's.
    pub host_addresses: Vec<IpAddr>,
    /// MACs of the local guests on flat networks.
    pub guest_macs: Vec<[u8; 6]>,
    /// Whether there are flat networks: their frames, broadcasts and multicasts are Guestseal's.
    pub flat: bool,
    /// UDP port 4500 to the host (RFC 3948).
    pub udp_encapsulation: bool,
    /// UDP port 4789 to the host (RFC 7348).
    pub vxlan: bool,
    /// UDP port 6081 to the host (RFC 8926).
    pub geneve: bool,
    /// The UDP port of handshakes: the kernel's, up to 5,000 datagrams a second and 1,024 at once by each queue.
    pub handshakes: Option<NonZeroU16>,
}

/// A program in the kernel that can be attached. This crate's are all there are.
pub trait Program: sealed::Sealed + Sized {
    /// The loaded program.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Puts the program in force at an interface.
    fn attach(self, attachment: Attachment<'_>) -> Result<Attached<Self>, XdpError> {
        Attached::new(self, attachment)
    }

    /// Runs the program over one frame, on no interface; queue 0's socket counts. Changes nothing but counters.
    fn trial(&self, frame: &[u8]) -> Result<Trial, XdpError> {
        try_program(self.descriptor(), frame).map_err(|source| XdpError::Trial {
            length: frame.len(),
            source,
        })
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::GuestProgram {}
    impl Sealed for super::UplinkProgram {}
    impl Sealed for crate::traffic::Sink {}
}

/// The program of a guest port: every frame is Guestseal's.
#[derive(Debug)]
pub struct GuestProgram {
    common: Common,
}

/// The program of the uplink: what is Guestseal's is taken, the rest passes.
#[derive(Debug)]
pub struct UplinkProgram {
    common: Common,
    settings: MapHandle,
    host_addresses: MapHandle,
    guest_macs: MapHandle,
}

/// What both programs have.
#[derive(Debug)]
struct Common {
    program: OwnedFd,
    sockets: MapHandle,
    counters: MapHandle,
}

impl GuestProgram {
    /// Loads a copy of the program, with maps of its own: one a guest port.
    pub fn load() -> Result<Self, XdpError> {
        Self::with_head(0)
    }

    /// The same, for a port whose frames get so many bytes in front, of which the last 8 are the time of arrival.
    ///
    /// # Panics
    /// If the time of arrival would not fit.
    pub fn with_head(head: u8) -> Result<Self, XdpError> {
        assert!(head == 0 || head >= 8, "a head has room for the time of arrival");
        log_libbpf();
        let mut object = MaybeUninit::uninit();
        let skeleton = GuestSkelBuilder::default()
            .open(&mut object)
            .and_then(|mut open| {
                if let Some(constants) = &mut open.maps.rodata_data {
                    constants.head = head.into();
                }
                open.load()
            })
            .map_err(|error| not_loaded("guest_port", error))?;
        let common = Common::take(
            skeleton.progs.guest_port.as_fd(),
            &skeleton.maps.sockets,
            &skeleton.maps.counters,
        )
        .map_err(|error| not_loaded("guest_port", error))?;
        Ok(Self { common })
    }

    /// Gives the frames of a receive queue to a bound AF_XDP socket.
    pub fn register_socket(&self, queue: u32, socket: &impl AsRawFd) -> Result<(), XdpError> {
        self.common.register_socket(queue, socket)
    }

    /// Takes the frames of a receive queue from its socket: from here on they are dropped.
    pub fn unregister_socket(&self, queue: u32) {
        self.common.unregister_socket(queue);
    }

    /// What the program has counted.
    pub fn counters(&self) -> Result<Counters, XdpError> {
        self.common.counters()
    }
}

impl UplinkProgram {
    /// Loads a copy of the program, with maps of its own, and configures it.
    pub fn load(config: &UplinkConfig) -> Result<Self, XdpError> {
        let mut object = MaybeUninit::uninit();
        let failed = |error| not_loaded("uplink", error);
        let skeleton = UplinkSkelBuilder::default()
            .open(&mut object)
            .and_then(|open| open.load())
            .map_err(failed)?;
        let maps = &skeleton.maps;
        let program = Self {
            common: Common::take(skeleton.progs.uplink.as_fd(), &maps.sockets, &maps.counters)
                .map_err(failed)?,
            settings: MapHandle::try_from(&maps.settings).map_err(failed)?,
            host_addresses: MapHandle::try_from(&maps.host_addresses).map_err(failed)?,
            guest_macs: MapHandle::try_from(&maps.guest_macs).map_err(failed)?,
        };
        program.configure(config)?;
        Ok(program)
    }

    /// Changes what the program takes, while it runs: additions before removals, so that nothing that stays is missed.
    pub fn configure(&self, config: &UplinkConfig) -> Result<(), XdpError> {
        replace_keys(
            &self.host_addresses,
            "host_addresses",
            config.host_addresses.iter().map(address_key),
        )?;
        self.set_guest_macs(&config.guest_macs)?;
        let [flat, udp_encapsulation, vxlan, geneve] =
            [config.flat, config.udp_encapsulation, config.vxlan, config.geneve].map(u8::from);
        let [one, other] = config.handshakes.map_or(0, NonZeroU16::get).to_ne_bytes();
        let settings = [flat, udp_encapsulation, vxlan, geneve, one, other];
        put(&self.settings, "settings", &0_u32.to_ne_bytes(), &settings)
    }

    /// Changes the MACs of the local guests, while the program runs.
    pub fn set_guest_macs(&self, macs: &[[u8; 6]]) -> Result<(), XdpError> {
        replace_keys(
            &self.guest_macs,
            "guest_macs",
            macs.iter().map(|mac| mac.to_vec()),
        )
    }

    /// Gives the frames of a receive queue to a bound AF_XDP socket.
    pub fn register_socket(&self, queue: u32, socket: &impl AsRawFd) -> Result<(), XdpError> {
        self.common.register_socket(queue, socket)
    }

    /// Takes the frames of a receive queue from its socket: from here on they are dropped.
    pub fn unregister_socket(&self, queue: u32) {
        self.common.unregister_socket(queue);
    }

    /// What the program has counted.
    pub fn counters(&self) -> Result<Counters, XdpError> {
        self.common.counters()
    }
}

impl Program for GuestProgram {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.common.program.as_fd()
    }
}

impl Program for UplinkProgram {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.common.program.as_fd()
    }
}

impl Common {
    /// Takes descriptors of its own out of a skeleton, which is then free to go.
    fn take(
        program: BorrowedFd<'_>,
        sockets: &libbpf_rs::MapMut<'_>,
        counters: &libbpf_rs::MapMut<'_>,
    ) -> libbpf_rs::Result<Self> {
        Ok(Self {
            program: program.try_clone_to_owned()?,
            sockets: MapHandle::try_from(sockets)?,
            counters: MapHandle::try_from(counters)?,
        })
    }

    fn register_socket(&self, queue: u32, socket: &impl AsRawFd) -> Result<(), XdpError> {
        let value = socket.as_raw_fd().to_ne_bytes();
        self.sockets
            .update(&queue.to_ne_bytes(), &value, MapFlags::ANY)
            .map_err(|error| XdpError::Map {
                map: "sockets",
                action: format!("register the socket of queue {queue}"),
                hint: ": expected an AF_XDP socket with a UMEM, and a queue below 256",
                source: kernel_error(&error),
            })
    }

    fn unregister_socket(&self, queue: u32) {
        // An entry that is not there is as good as one removed.
        let _ = self.sockets.delete(&queue.to_ne_bytes());
    }

    fn counters(&self) -> Result<Counters, XdpError> {
        let read = |index: u32| -> Result<u64, XdpError> {
            let failed = |source| XdpError::Map {
                map: "counters",
                action: format!("read counter {index}"),
                hint: "",
                source,
            };
            let values = self
                .counters
                .lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)
                .map_err(|error| failed(kernel_error(&error)))?
                .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
            Ok(values
                .iter()
                .filter_map(|value| value.first_chunk())
                .map(|value| u64::from_ne_bytes(*value))
                .sum())
        };
        Ok(Counters {
            redirected: read(0)?,
            no_socket: read(1)?,
            no_stamp: read(2)?,
            passed: read(3)?,
            handshakes: read(4)?,
        })
    }
}

/// What libbpf says besides its errors (a verifier's log runs to thousands of lines) goes to the log, for those who ask.
pub(crate) fn log_libbpf() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let to_log = |_, text: String| tracing::debug!(target: "libbpf", "{}", text.trim_end());
        libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Info, to_log)));
    });
}

/// Makes the keys of a map exactly these.
fn replace_keys(
    map: &MapHandle,
    name: &'static str,
    keys: impl Iterator<Item = Vec<u8>>,
) -> Result<(), XdpError> {
    let wanted: HashSet<Vec<u8>> = keys.collect();
    for key in &wanted {
        put(map, name, key, &[1])?;
    }
    let stale: Vec<Vec<u8>> = map.keys().filter(|key| !wanted.contains(key)).collect();
    for key in stale {
        map.delete(&key).map_err(|error| XdpError::Map {
            map: name,
            action: format!("remove {key:02x?}"),
            hint: "",
            source: kernel_error(&error),
        })?;
    }
    Ok(())
}

pub(crate) fn put(map: &MapHandle, name: &'static str, key: &[u8], value: &[u8]) -> Result<(), XdpError> {
    map.update(key, value, MapFlags::ANY)
        .map_err(|error| XdpError::Map {
            map: name,
            action: format!("set {key:02x?}"),
            hint: ": it may be full (host_addresses takes 256 entries, guest_macs 16384)",
            source: kernel_error(&error),
        })
}

/// As `struct address` of bpf/parse.h.
fn address_key(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(crate) fn not_loaded(program: &'static str, error: libbpf_rs::Error) -> XdpError {
    if error.kind() == libbpf_rs::ErrorKind::PermissionDenied {
        let action = format!("load the XDP program {program}");
        return XdpError::NotPermitted {
            action,
            source: kernel_error(&error),
        };
    }
    XdpError::Load {
        program,
        source: error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_share_one_key_form() {
        let key = address_key(&IpAddr::from([192, 0, 2, 1]));
        assert_eq!(key, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
        assert_eq!(address_key(&"2001:db8::1".parse().unwrap()).len(), 16);
    }
}
