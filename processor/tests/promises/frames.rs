//! Frames as guests send them.

use std::net::IpAddr;

use guestseal::wire::{checksum, ethernet, ip4, ip6};

pub(crate) const UDP: u8 = 17;
pub(crate) const TCP: u8 = 6;
pub(crate) const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;
pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];

/// A guest of the demo's policy.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) id: &'static str,
    pub(crate) mac: [u8; 6],
    pub(crate) v4: [u8; 4],
    pub(crate) v6: [u16; 8],
}

const fn guest(id: &'static str, network: u8, number: u8) -> Guest {
    Guest {
        id,
        mac: [2, 0, 0, network, 0, number],
        v4: [10, network, 0, number],
        v6: [0xfd00, network as u16, 0, 0, 0, 0, 0, number as u16],
    }
}

pub(crate) const BLUE1: Guest = guest("blue-1", 1, 1);
pub(crate) const BLUE2: Guest = guest("blue-2", 1, 2);
pub(crate) const BLUE3: Guest = guest("blue-3", 1, 3);
pub(crate) const RED1: Guest = guest("red-1", 2, 1);
pub(crate) const RED2: Guest = guest("red-2", 2, 2);
pub(crate) const GUESTS: [Guest; 5] = [BLUE1, BLUE2, BLUE3, RED1, RED2];

impl Guest {
    pub(crate) fn address(&self, ip6: bool) -> IpAddr {
        if ip6 { self.v6.into() } else { self.v4.into() }
    }
}

pub(crate) fn frame(to: [u8; 6], from: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
}

/// An IP packet.
pub(crate) fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> (u16, Vec<u8>) {
    let length = payload.len() as u16;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = ip4::outer(source, destination, protocol, 0, 20 + length);
            (ethernet::IPV4, [&header[..], payload].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = ip6::outer(source, destination, protocol, 0, length);
            (ethernet::IPV6, [&header[..], payload].concat())
        }
        _ => panic!("one family"),
    }
}

/// A datagram from one guest to another, in a frame.
pub(crate) fn between(from: Guest, to: Guest, ip6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (ethertype, packet) = ip(from.address(ip6), to.address(ip6), protocol, payload);
    frame(to.mac, from.mac, ethertype, &packet)
}

pub(crate) fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let length = 8 + data.len() as u16;
    [
        &from.to_be_bytes()[..],
        &to.to_be_bytes(),
        &length.to_be_bytes(),
        &[0, 0],
        data,
    ]
    .concat()
}

pub(crate) fn tcp(from: u16, to: u16, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    segment.extend(data);
    segment
}

/// Part of a datagram: `field` is the fragment field of IPv4 (offset in 8 bytes, 0x2000 for more).
pub(crate) fn fragment(from: Guest, to: Guest, protocol: u8, field: u16, payload: &[u8]) -> Vec<u8> {
    let mut whole = between(from, to, false, protocol, payload);
    whole[20..22].copy_from_slice(&field.to_be_bytes());
    whole[24..26].fill(0);
    let sum = checksum::checksum(&whole[14..34]);
    whole[24..26].copy_from_slice(&sum.to_be_bytes());
    whole
}

/// ARP; operation 1 asks, 2 answers.
pub(crate) fn arp(to: [u8; 6], from: Guest, operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(from.mac);
    body.extend(sender);
    body.extend([0; 6]);
    body.extend(target);
    frame(to, from.mac, 0x0806, &body)
}
