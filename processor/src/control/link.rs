//! What the kernel says of interfaces, routes and neighbours.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NetlinkPayload};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::port::umem::HEADROOM;
use crate::wire::ethernet::MacAddress;

use super::netlink;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index: a new one when it is made anew.
    pub index: u32,
    /// Its MAC.
    pub mac: MacAddress,
    /// Its MTU: bytes of an IP packet.
    pub mtu: usize,
    /// Receive queues in use.
    pub queues: u32,
    /// The driver of the device behind it; none for tap, veth and the like.
    pub driver: Option<String>,
}

/// Drivers whose receive buffers are whole KiB (the SRRCTL register of these cards).
const WHOLE_KIB: [&str; 3] = ["igb", "igc", "ixgbe"];

/// Drivers that were seen to hand over frames which the card still writes to, after XDP was detached and attached under load
/// (Linux 7.3, in QEMU). Such a frame may be sent with a guest's plaintext in it.
const UNSOUND: [&str; 1] = ["igb"];

impl Link {
    /// Whether the driver's zero-copy mode is one to choose without being told to.
    #[must_use]
    pub fn zero_copy_is_sound(&self) -> bool {
        !self
            .driver
            .as_ref()
            .is_some_and(|driver| UNSOUND.contains(&driver.as_str()))
    }

    /// Whether frames may come from it with checksums that their sender has left to the device: what is no hardware, such as
    /// veth and tap, hands them over as they are.
    #[must_use]
    pub fn may_leave_checksums(&self) -> bool {
        self.driver.is_none()
    }

    /// Bytes of a packet, Ethernet header and all, that the driver puts into one frame of this size in zero-copy mode. What
    /// is longer it cuts, and what it does with the pieces is not to be relied on: igb was seen to send frames out whose
    /// contents had been replaced.
    #[must_use]
    pub fn zero_copy_room(&self, frame_size: u32) -> usize {
        let room = frame_size as usize - HEADROOM;
        match &self.driver {
            Some(driver) if WHOLE_KIB.contains(&driver.as_str()) => room / 1024 * 1024,
            _ => room,
        }
    }
}

/// Why an interface is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is none.
    #[error("no interface {0}: see ip link show")]
    Missing(String),
    /// The kernel's description of it cannot be read.
    #[error("{}: cannot be read as {expected}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
}

/// The index of an interface; `None` if there is none.
#[must_use]
pub fn index_of(name: &str) -> Option<u32> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )
    .ok()?;
    rustix::net::netdevice::name_to_index(&socket, name).ok()
}

/// Reads what the kernel says of an interface.
///
/// # Errors
/// See [`LinkError`].
pub fn describe(name: &str) -> Result<Link, LinkError> {
    let missing = || LinkError::Missing(name.to_owned());
    if name.is_empty() || name.contains('/') {
        return Err(missing());
    }
    let index = index_of(name).ok_or_else(missing)?;
    let directory = PathBuf::from("/sys/class/net").join(name);
    let text = |file: &str, expected| {
        let path = directory.join(file);
        std::fs::read_to_string(&path)
            .map(|text| text.trim().to_owned())
            .map_err(|_| LinkError::Unreadable { path, expected })
    };
    let unreadable = |file: &str, expected| LinkError::Unreadable {
        path: directory.join(file),
        expected,
    };
    let mac = text("address", "a MAC address")?
        .parse()
        .map_err(|_| unreadable("address", "a MAC address"))?;
    let mtu = text("mtu", "a number")?
        .parse()
        .map_err(|_| unreadable("mtu", "a number"))?;
    let queues = std::fs::read_dir(directory.join("queues"))
        .map_err(|_| unreadable("queues", "a list of queues"))?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-"))
        .count() as u32;
    let driver = std::fs::read_link(directory.join("device/driver"))
        .ok()
        .and_then(|target| Some(target.file_name()?.to_string_lossy().into_owned()));
    Ok(Link {
        name: name.to_owned(),
        index,
        mac,
        mtu,
        queues,
        driver,
    })
}

/// Of a tap, whether it carries virtio-net headers (`IFF_VNET_HDR`): then QEMU lets the guest leave segments to be cut by the
/// host, unless the device's options say otherwise, which cannot be seen from here. None of what is no tap.
#[must_use]
pub fn virtio_header(tap: &str) -> Option<bool> {
    const IFF_VNET_HDR: u32 = 0x4000;
    let flags = std::fs::read_to_string(PathBuf::from("/sys/class/net").join(tap).join("tun_flags")).ok()?;
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).ok()?;
    Some(flags & IFF_VNET_HDR != 0)
}

/// The name of an interface.
///
/// # Errors
/// If there is none.
pub fn name_of(index: u32) -> std::io::Result<String> {
    let (family, kind) = (rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM);
    let socket = rustix::net::socket(family, kind, None)?;
    Ok(rustix::net::netdevice::index_to_name(&socket, index)?)
}

/// The other end of a veth.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its index, in its own network namespace.
    pub index: u32,
    /// The number by which this network namespace knows that one; none if it is this one.
    pub namespace: Option<i32>,
}

/// The other end of an interface that is a veth; none if it is something else.
///
/// # Errors
/// Those of netlink; also if there is no such interface.
pub fn peer(interface: u32) -> std::io::Result<Option<Peer>> {
    let mut wanted = LinkMessage::default();
    wanted.header.index = interface;
    let answer = ask(RouteNetlinkMessage::GetLink(wanted), 0)?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = answer else {
        return Ok(None);
    };
    let (mut is_veth, mut index, mut namespace) = (false, None, None);
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::LinkInfo(info) => is_veth = info.contains(&LinkInfo::Kind(InfoKind::Veth)),
            LinkAttribute::Link(found) => index = Some(found),
            LinkAttribute::LinkNetNsId(found) => namespace = Some(found),
            _ => {}
        }
    }
    Ok(index
        .filter(|index| is_veth && *index != 0)
        .map(|index| Peer { index, namespace }))
}

/// Where packets to an address go out of an interface by the kernel's routes: to a gateway or to the address itself; `None` if
/// there is no route, or it leads elsewhere.
#[must_use]
pub fn next_hop(address: IpAddr, interface: u32) -> Option<IpAddr> {
    let mut wanted = RouteMessage::default();
    (
        wanted.header.address_family,
        wanted.header.destination_prefix_length,
    ) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    wanted
        .attributes
        .push(RouteAttribute::Destination(address.into()));
    // A refusal is how the kernel says that there is no route.
    let answer = ask(RouteNetlinkMessage::GetRoute(wanted), 0).ok()?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) = answer else {
        return None;
    };
    let (mut out, mut via) = (None, address);
    for attribute in route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => out = Some(index),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => via = gateway.into(),
            RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => via = gateway.into(),
            // An IPv4 route by way of an IPv6 gateway (RFC 8950).
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => via = gateway.into(),
            _ => {}
        }
    }
    (out == Some(interface)).then_some(via)
}

/// A neighbour on an interface, as the kernel knows it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: MacAddress,
    /// Whether it has not been heard for a while: it may have another MAC by now.
    pub is_stale: bool,
}

/// The neighbours on an interface whose MACs the kernel knows.
///
/// # Errors
/// Those of netlink.
pub fn neighbours(interface: u32) -> std::io::Result<Vec<Neighbour>> {
    let all = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let socket = netlink::put(NETLINK_ROUTE, all, NLM_F_DUMP)?;
    let mut found = Vec::new();
    netlink::receive(&socket, |payload| {
        match payload {
            NetlinkPayload::Done(_) => return Some(Ok(())),
            NetlinkPayload::Error(error) => return Some(Err(error.to_io())),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour)) => {
                found.extend(entry(&neighbour, interface));
            }
            _ => {}
        }
        None
    })?;
    Ok(found)
}

fn entry(neighbour: &NeighbourMessage, interface: u32) -> Option<Neighbour> {
    if neighbour.header.ifindex != interface {
        return None;
    }
    let (address, mac) = told(neighbour)?;
    Some(Neighbour {
        address,
        mac: mac?,
        is_stale: neighbour.header.state == NeighbourState::Stale,
    })
}

/// What a message says of a neighbour: its address, and its MAC if the kernel knows it.
pub(super) fn told(neighbour: &NeighbourMessage) -> Option<(IpAddr, Option<MacAddress>)> {
    let (mut address, mut mac) = (None, None);
    for attribute in &neighbour.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                address = Some(IpAddr::V4(*found))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                address = Some(IpAddr::V6(*found))
            }
            NeighbourAttribute::LinkLocalAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddress);
            }
            _ => {}
        }
    }
    Some((address?, mac.filter(|mac| *mac != MacAddress::default())))
}

/// Makes an interface take frames to a MAC that is not its own: an entry of its unicast filter (`bridge fdb add MAC dev X
/// self`). Network cards drop such frames before any XDP program sees them; one without a filter goes promiscuous. There is
/// no harm in adding what is there.
///
/// # Errors
/// Those of netlink.
pub fn add_to_filter(interface: u32, mac: MacAddress) -> std::io::Result<()> {
    change(
        RouteNetlinkMessage::NewNeighbour(filter_entry(interface, mac)),
        NLM_F_CREATE,
    )
}

/// Takes back [`add_to_filter`].
///
/// # Errors
/// Those of netlink; also if there is no such entry.
pub fn remove_from_filter(interface: u32, mac: MacAddress) -> std::io::Result<()> {
    change(RouteNetlinkMessage::DelNeighbour(filter_entry(interface, mac)), 0)
}

fn filter_entry(interface: u32, mac: MacAddress) -> NeighbourMessage {
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Bridge;
    entry.header.ifindex = interface;
    entry.header.state = NeighbourState::Permanent;
    entry.header.flags = NeighbourFlags::Own;
    entry
        .attributes
        .push(NeighbourAttribute::LinkLocalAddress(mac.0.to_vec()));
    entry
}

/// Asks for a change and waits for the kernel's answer.
fn change(wanted: RouteNetlinkMessage, flags: u16) -> std::io::Result<()> {
    ask(wanted, NLM_F_ACK | flags).map(drop)
}

/// Asks for one answer.
pub(super) fn ask(
    wanted: RouteNetlinkMessage,
    flags: u16,
) -> std::io::Result<NetlinkPayload<RouteNetlinkMessage>> {
    let socket = netlink::put(NETLINK_ROUTE, wanted, flags)?;
    netlink::receive(&socket, |payload| match payload {
        // Without a code it is the acknowledgement.
        NetlinkPayload::Error(error) if error.code.is_some() => Some(Err(error.to_io())),
        payload => Some(Ok(payload)),
    })
}

/// Makes the kernel look for a neighbour's MAC: by an empty datagram to its discard port (RFC 863).
pub fn solicit(address: IpAddr) {
    let own: SocketAddr = if address.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    // A host that cannot be reached now is asked for again at the next turn.
    if let Ok(socket) = UdpSocket::bind(own) {
        let _ = socket.send_to(&[], (address, 9));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_drivers() {
        let link = |driver: Option<&str>| Link {
            name: "eth0".into(),
            index: 2,
            mac: MacAddress::default(),
            mtu: 1500,
            queues: 1,
            driver: driver.map(str::to_owned),
        };
        assert!(!link(Some("igb")).zero_copy_is_sound());
        assert!(link(None).may_leave_checksums() && !link(Some("igb")).may_leave_checksums());
        assert!(link(Some("virtio_net")).zero_copy_is_sound() && link(None).zero_copy_is_sound());
        assert_eq!(link(Some("igb")).zero_copy_room(2048), 1024);
        assert_eq!(link(Some("igb")).zero_copy_room(4096), 3072);
        assert_eq!(link(Some("virtio_net")).zero_copy_room(2048), 1792);
        assert_eq!(link(None).zero_copy_room(4096), 3840);
    }
}
