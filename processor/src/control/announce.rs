//! Tells the neighbours of a guest that has come to this host where it is: gratuitous ARP (RFC 5227 3) and unsolicited
//! neighbour advertisements (RFC 4861 7.2.6), in the guest's name and by the rules that hold for it.

use std::net::IpAddr;

use guestseal_rules::model::Policy;
use zerocopy::IntoBytes;

use crate::path::endpoints::Endpoint;
use crate::path::tables::{LocalPort, Tables};
use crate::wire::ethernet::{self, MacAddress};
use crate::wire::{arp, icmp, ip6};

/// What is to be said for a guest, as if by the port of this local number.
pub type Announcement = (u16, Box<[u8]>);

/// The announcements of the overlay guests that are here now and were not before.
#[must_use]
pub fn arrivals(policy: &Policy, before: &Tables, now: &Tables) -> Vec<Announcement> {
    // A place stays a port's own, whatever the policy's numbers are.
    let is_here = |tables: &Tables, number: u16| {
        let is_here = |port: &LocalPort| port.endpoint.host == tables.host;
        tables.port(number).is_some_and(is_here) && !tables.owners(number).is_empty()
    };
    now.ports()
        .filter(|(_, port)| now.carrier(port.endpoint.network).is_some())
        .filter(|(number, _)| is_here(now, *number) && !is_here(before, *number))
        .flat_map(|(_, port)| {
            let addresses = &policy.ports[port.endpoint.port.index()].addresses;
            addresses
                .iter()
                .map(move |address| (port.through, frame(&port.endpoint, port.vlan, *address)))
        })
        .collect()
}

/// One announcement of one address, as the guest itself would send it.
fn frame(endpoint: &Endpoint, vlan: Option<u16>, address: IpAddr) -> Box<[u8]> {
    let mac = endpoint.mac;
    let (destination, ethertype, payload) = match address {
        IpAddr::V4(address) => {
            let message = arp::Message::announcement(mac, address);
            (MacAddress::BROADCAST, ethernet::ARP, message.as_bytes().to_vec())
        }
        IpAddr::V6(target) => {
            let advertisement = icmp::Advertisement {
                target,
                mac,
                is_router: endpoint.router,
                is_solicited: false,
            };
            let message = advertisement.write(target, icmp::ALL_NODES);
            let length = message.len() as u16;
            let mut header = ip6::outer(target, icmp::ALL_NODES, icmp::ICMPV6, 0, length);
            // The hop limit of what comes from the link itself (RFC 4861 7.1.2).
            header[7] = 255;
            let packet = [&header[..], &message].concat();
            (icmp::ALL_NODES_MAC, ethernet::IPV6, packet)
        }
    };
    let header = ethernet::Header {
        destination,
        source: mac,
        ethertype: ethertype.into(),
    };
    let (macs, ethertype) = header.as_bytes().split_at(ethernet::MACS);
    let tag = vlan.map(ethernet::tag);
    [
        macs,
        tag.as_ref().map_or(&[], |tag| &tag[..]),
        ethertype,
        &payload,
    ]
    .concat()
    .into()
}
