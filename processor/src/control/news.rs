//! What the kernel tells without being asked: interfaces, routes and neighbours that have changed.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::wire::ethernet::MacAddress;

use super::link;

/// `RTMGRP_LINK`, `RTMGRP_NEIGH`, `RTMGRP_IPV4_ROUTE` and `RTMGRP_IPV6_ROUTE` of linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x4 | 0x40 | 0x400;
/// Datagrams that one look takes at most; the rest wakes again.
const MOST: usize = 256;

/// What has changed since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// The uplink itself: its MAC, its MTU, that it is up.
    pub uplink: bool,
    /// A route.
    pub routes: bool,
    /// Neighbours on the uplink, and the MACs that they have now.
    pub neighbours: Vec<(IpAddr, Option<MacAddress>)>,
    /// Anything: more was told than could be heard.
    pub anything: bool,
}

/// Hears the kernel.
#[derive(Debug)]
pub struct KernelNews(Socket);

impl KernelNews {
    /// Hears it from now on.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, GROUPS))?;
        Ok(Self(socket))
    }

    /// What has been told of an uplink, by its index, and of routes.
    #[must_use]
    pub fn take(&self, uplink: u32) -> News {
        let mut news = News::default();
        for _ in 0..MOST {
            match self.0.recv_from_full() {
                Ok((datagram, _)) => read(&datagram, uplink, &mut news),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // More was told than the socket holds (ENOBUFS): anything may be another.
                Err(_) => (news.uplink, news.anything) = (true, true),
            }
        }
        news
    }
}

impl AsFd for KernelNews {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn read(datagram: &[u8], uplink: u32, news: &mut News) {
    let mut rest = datagram;
    while !rest.is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) else {
            news.anything = true;
            return;
        };
        let length = (message.header.length as usize).next_multiple_of(4).max(4);
        if let NetlinkPayload::InnerMessage(told) = message.payload {
            match told {
                RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                    news.uplink |= link.header.index == uplink;
                }
                RouteNetlinkMessage::NewNeighbour(neighbour) if neighbour.header.ifindex == uplink => {
                    news.neighbours.extend(link::told(&neighbour));
                }
                RouteNetlinkMessage::DelNeighbour(neighbour) if neighbour.header.ifindex == uplink => {
                    news.neighbours
                        .extend(link::told(&neighbour).map(|(address, _)| (address, None)));
                }
                RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => news.routes = true,
                _ => {}
            }
        }
        rest = rest.get(length..).unwrap_or_default();
    }
}
