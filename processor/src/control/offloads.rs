//! What guests leave to their cards that nobody would do for them: looked for when a guest port is opened, refused or turned
//! off, and put back at the end.
//!
//! AF_XDP hands packets over as they are: segments that nobody has cut are longer than a frame and are lost, and a VLAN tag that
//! the card was to put in is not there. Checksums are finished by [`crate::path::finish`]. On a veth all this is up to the
//! guest's own end, wherever that is; native XDP takes the segments from it while it is attached. Merging on the way in (GRO)
//! does no harm: native XDP comes before it, and the kernel leaves it out on an interface with generic XDP.
//!
//! On a tap the guest and its VMM agree on it by virtio, and nothing of that reaches the kernel: the features that a tap shows
//! (`TUNSETOFFLOAD`) are those of the other direction. Only a tap without virtio-net headers (`IFF_VNET_HDR`) is known to leave
//! nothing, because it has no place to say so. With them, seen on Linux 6.18 with XDP in either mode: a packet that is to be cut comes
//! whole, and nothing tells it from one that is not. The kernel drops and counts it if it is longer than a frame of the UMEM; a
//! shorter one of TCP is a segment like any other, but one of UDP holds what were to be several datagrams.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guestseal_xdp::XdpMode;
use serde::{Deserialize, Serialize};

use crate::files;

use super::features;
use super::link::{self, Link, Peer};
use super::namespace::Place;

/// By whichever of these is on, packets come uncut: `NETIF_F_GSO_SOFTWARE`. Those of tunnels need one of these beside them.
const SEGMENTS: [&str; 8] = [
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-tcp-accecn-segmentation",
    "tx-udp-segmentation",
    "tx-sctp-segmentation",
    "tx-gso-list",
];
/// What turns off, in a guest, all that it would leave to the host.
const IN_GUEST: &str = "ethtool -K eth0 tx off tso off gso off";
/// By these, VLAN tags come beside the packet and not in it.
const TAGS: [&str; 2] = ["tx-vlan-hw-insert", "tx-vlan-stag-hw-insert"];

/// Why a guest port is not opened.
#[derive(Debug, thiserror::Error)]
pub enum OffloadError {
    /// The guest leaves things to its card.
    #[error(
        "guest port {port}: its guest leaves segments or VLAN tags to its card {card}, and they would be lost ({}): run\n  \
         {command}\nor start with --fix-offloads, which does that and puts it back at the end", features.join(", ")
    )]
    Offloads {
        /// The guest port's interface.
        port: String,
        /// The guest's interface.
        card: String,
        /// What is on.
        features: Vec<String>,
        /// What turns it off.
        command: String,
    },
    /// They cannot be turned off.
    #[error("guest port {port}: {} of {card}, its guest's card, cannot be turned off", features.join(", "))]
    Fixed {
        /// The guest port's interface.
        port: String,
        /// The guest's interface.
        card: String,
        /// What stays on.
        features: Vec<String>,
    },
    /// What is turned off could not be put back.
    #[error("{}: cannot be written: without it nothing that is turned off could be put back", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Two processes.
    #[error("{}: the state directory is in use by another guestseal", path.display())]
    InUse {
        /// The locked file.
        path: PathBuf,
    },
    /// The kernel.
    #[error("guest port {port}: what its guest leaves to its card cannot be looked at")]
    Kernel {
        /// The guest port's interface.
        port: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What was turned off, so that it can be put back, by this process or, if it is killed, by the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TurnedOff {
    /// The guest port's interface.
    port: String,
    /// Its index: another one means another interface, whose guest's card was never touched.
    index: u32,
    /// Names of features.
    features: Vec<String>,
}

/// A guest's card: the other end of a veth.
struct Card {
    place: Place,
    index: u32,
    name: String,
}

/// Looks whether the guest of a port leaves to its card what would be lost, once the port's XDP program is attached.
///
/// With `fix` it is turned off, and noted in a file of that directory.
///
/// # Errors
/// See [`OffloadError`].
pub fn check(link: &Link, mode: XdpMode, fix: Option<&Path>) -> Result<(), OffloadError> {
    let (port, index) = (&*link.name, link.index);
    let kernel = |source| OffloadError::Kernel {
        port: port.to_owned(),
        source,
    };
    let Some(peer) = link::peer(index).map_err(kernel)? else {
        return Ok(());
    };
    let Some(card) = card(peer).map_err(kernel)? else {
        let segments = if mode == XdpMode::Generic {
            SEGMENTS.as_slice()
        } else {
            &[]
        };
        tracing::warn!(
            "guest port {port}: its guest's card is in a network namespace that no name in /run/netns and no process leads to. \
             What it leaves to its card cannot be seen, and would be lost. Unless that is off already, run in the guest: {}",
            command("eth0", segments.iter().chain(&TAGS).copied())
        );
        return Ok(());
    };
    let harmful = || -> io::Result<Vec<String>> {
        let active = card.place.inside(|| features::active(card.index))?;
        let all = SEGMENTS.into_iter().chain(TAGS).map(str::to_owned);
        Ok(all.filter(|feature| active.contains(feature)).collect())
    };
    let found = harmful().map_err(kernel)?;
    if found.is_empty() {
        return Ok(());
    }
    let Some(state_directory) = fix else {
        let command = command(&card.name, found.iter().map(String::as_str));
        return Err(OffloadError::Offloads {
            port: port.to_owned(),
            command: card.place.command(&command),
            card: card.name,
            features: found,
        });
    };
    note(
        state_directory,
        TurnedOff {
            port: port.to_owned(),
            index,
            features: found.clone(),
        },
    )?;
    card.place
        .inside(|| features::set(card.index, &found, false))
        .map_err(kernel)?;
    let left = harmful().map_err(kernel)?;
    if !left.is_empty() {
        return Err(OffloadError::Fixed {
            port: port.to_owned(),
            card: card.name,
            features: left,
        });
    }
    tracing::info!(
        "guest port {port}: turned off on its guest's card {}, until the end: {}",
        card.name,
        found.join(", ")
    );
    Ok(())
}

/// Puts back, when it goes, what was turned off by this process or by one that was killed. What cannot be put back is said.
#[derive(Debug)]
pub struct PutBack {
    record: PathBuf,
    _lock: File,
}

impl PutBack {
    /// Takes charge of the record in this directory.
    ///
    /// # Errors
    /// If it cannot be locked, or another process has.
    pub fn new(state_directory: &Path) -> Result<Self, OffloadError> {
        let path = state_directory.join("offloads.lock");
        match std::fs::create_dir_all(state_directory).and_then(|()| files::hold(&path)) {
            Ok(lock) => Ok(Self {
                record: record(state_directory),
                _lock: lock,
            }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(OffloadError::InUse { path }),
            Err(source) => Err(OffloadError::Record { path, source }),
        }
    }
}

impl Drop for PutBack {
    fn drop(&mut self) {
        put_back(&self.record);
    }
}

fn put_back(path: &Path) {
    for off in noted(path) {
        let done = link::peer(off.index).and_then(|peer| {
            let now = link::index_of(&off.port);
            match peer
                .filter(|_| now == Some(off.index))
                .map(card)
                .transpose()?
                .flatten()
            {
                // The port is gone, and its guest's card with it.
                None => Ok(()),
                Some(card) => card
                    .place
                    .inside(|| features::set(card.index, &off.features, true)),
            }
        });
        if let Err(error) = done {
            tracing::warn!(
                "guest port {}: {} of its guest's card stay off: {error}",
                off.port,
                off.features.join(", ")
            );
        }
    }
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("{}: cannot be removed: {error}", path.display());
    }
}

/// What there is to say of a guest port while it is open, each once: that what its guest leaves to the host cannot be seen, and that
/// frames of it were too long. A tap may get virtio-net headers only when a VMM opens it.
#[derive(Debug)]
pub struct Lookout {
    mode: XdpMode,
    is_veth: bool,
    said_unseen: bool,
    /// Frames that were too long, of each of its queues.
    too_long: Vec<Arc<AtomicU64>>,
    said_too_long: bool,
}

impl Lookout {
    /// For a port with XDP in this mode.
    #[must_use]
    pub fn new(link: &Link, mode: XdpMode) -> Self {
        Self {
            mode,
            // Of a veth, what is left was looked at when it was opened.
            is_veth: link::peer(link.index).is_ok_and(|peer| peer.is_some()),
            said_unseen: false,
            too_long: Vec::new(),
            said_too_long: false,
        }
    }

    /// Also counts what is too long for this queue.
    pub fn watch(&mut self, too_long: Arc<AtomicU64>) {
        self.too_long.push(too_long);
    }

    /// What is to be said now.
    pub fn news(&mut self, link: &Link) -> Option<String> {
        if !self.is_veth
            && !self.said_unseen
            && let Some(unseen) = self.unseen(link)
        {
            self.said_unseen = true;
            return Some(unseen);
        }
        let counts = self.too_long.iter().map(|count| count.load(Ordering::Relaxed));
        let too_long: u64 = counts.sum();
        if too_long == 0 || self.said_too_long {
            return None;
        }
        self.said_too_long = true;
        Some(format!(
            "guest port {}: what no frame of the UMEM has room for was dropped (FrameTooLong), {too_long} so far. If its MTU is \
             larger than at the start, restart; else set umem.long-frames, or umem.frame-size to 4096; if it leaves segments to be cut, turn that off, in the guest: \
             {IN_GUEST}",
            link.name
        ))
    }

    /// Of a tap, what the guest may leave to it was settled between guest and VMM.
    fn unseen(&self, link: &Link) -> Option<String> {
        let port = &link.name;
        match link::virtio_header(port) {
            Some(true) => Some(format!(
                "guest port {port} is a tap with vnet_hdr: what its guest leaves to the host is between guest and VMM, and cannot be \
                 seen. By QEMU's defaults it leaves the cutting of segments: those longer than a frame of the UMEM are lost \
                 (FrameTooLong), and shorter ones of UDP arrive as one datagram. Unless that is off already: in the guest \
                 {IN_GUEST}; or for QEMU's netdev vnet_hdr=off; or for its device \
                 csum=off,gso=off,host_tso4=off,host_tso6=off,host_ufo=off,host_ecn=off (libvirt: <host csum='off' gso='off' \
                 tso4='off' tso6='off' ecn='off' ufo='off'/>)"
            )),
            None if link.driver.is_none() && self.mode == XdpMode::Generic => Some(format!(
                "guest port {port} has generic XDP: what its guest leaves to be cut into segments, and is longer than a frame of the \
                 UMEM, is lost. Unless that is off already: in the guest {IN_GUEST}"
            )),
            _ => None,
        }
    }
}

/// The card at the other end; none if nothing leads to its namespace.
fn card(peer: Peer) -> io::Result<Option<Card>> {
    let place = match peer.namespace {
        None => Place::Here,
        Some(number) => match Place::of_number(number) {
            Some(place) => place,
            None => return Ok(None),
        },
    };
    let name = place.inside(|| link::name_of(peer.index))?;
    Ok(Some(Card {
        place,
        index: peer.index,
        name,
    }))
}

fn command<'a>(card: &str, features: impl Iterator<Item = &'a str>) -> String {
    features.fold(format!("ethtool -K {card}"), |command, feature| {
        command + " " + feature + " off"
    })
}

fn record(state_directory: &Path) -> PathBuf {
    state_directory.join("offloads.json")
}

fn noted(path: &Path) -> Vec<TurnedOff> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!("{}: cannot be read: {error}", path.display());
            return Vec::new();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!(
            "{}: what was turned off is not known any more: {error}",
            path.display()
        );
        Vec::new()
    })
}

/// Notes what will be turned off, beside what was noted before of ports that are still the same.
fn note(state_directory: &Path, off: TurnedOff) -> Result<(), OffloadError> {
    let path = record(state_directory);
    let mut all = noted(&path);
    all.retain(|one| link::index_of(&one.port) == Some(one.index));
    all.push(off);
    serde_json::to_vec_pretty(&all)
        .map_err(io::Error::from)
        .and_then(|text| files::replace(&path, &text))
        .map_err(|source| OffloadError::Record { path, source })
}
