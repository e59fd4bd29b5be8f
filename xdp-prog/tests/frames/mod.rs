//! Frames for the uplink program, header by header.
//! Checksums are left 0: no XDP program reads them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
pub(crate) const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub(crate) const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];
pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];
pub(crate) const MULTICAST: [u8; 6] = [0x33, 0x33, 0xff, 0, 0, 1];

pub(crate) const HOST: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];
pub(crate) const OTHER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 99)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99)),
];

pub(crate) const ARP: u16 = 0x0806;
pub(crate) const VLAN: u16 = 0x8100;
pub(crate) const VLAN_OUTER: u16 = 0x88a8;
pub(crate) const UDP: u8 = 17;
pub(crate) const TCP: u8 = 6;
pub(crate) const ESP: u8 = 50;
pub(crate) const ICMPV6: u8 = 58;

pub(crate) fn ethernet(destination: [u8; 6], ethertype: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend([2, 0, 0, 0, 0, 0xbb]);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(body);
    frame
}

/// What stands behind an ethertype of VLAN.
pub(crate) fn tagged(id: u16, ethertype: u16, body: &[u8]) -> Vec<u8> {
    [&id.to_be_bytes(), &ethertype.to_be_bytes(), body].concat()
}

/// An IP packet in a frame to the host's MAC.
pub(crate) fn to_host(packet: (u16, Vec<u8>)) -> Vec<u8> {
    ethernet(HOST_MAC, packet.0, &packet.1)
}

/// Ethertype and bytes of an IP packet of either version.
pub(crate) fn ip(destination: IpAddr, protocol: u8, body: &[u8]) -> (u16, Vec<u8>) {
    match destination {
        IpAddr::V4(_) => ipv4(destination, protocol, body, &[], 0),
        IpAddr::V6(_) => ipv6(destination, &[], protocol, body),
    }
}

/// IPv4 with options (a multiple of 4 bytes) and the fragment field (offset in 8 bytes, 0x2000 for "more").
pub(crate) fn ipv4(
    destination: IpAddr,
    protocol: u8,
    body: &[u8],
    options: &[u8],
    fragment: u16,
) -> (u16, Vec<u8>) {
    let IpAddr::V4(destination) = destination else {
        panic!("IPv4 wanted")
    };
    let mut packet = vec![0x45 + (options.len() / 4) as u8, 0];
    packet.extend(((20 + options.len() + body.len()) as u16).to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 203, 0, 113, 5]);
    packet.extend(destination.octets());
    packet.extend(options);
    packet.extend(body);
    (0x0800, packet)
}

/// IPv6 with extension headers: protocol number, and the header whose first byte will say what follows.
pub(crate) fn ipv6(
    destination: IpAddr,
    extensions: &[(u8, Vec<u8>)],
    protocol: u8,
    body: &[u8],
) -> (u16, Vec<u8>) {
    let IpAddr::V6(destination) = destination else {
        panic!("IPv6 wanted")
    };
    let mut chain = Vec::new();
    for (at, (_, header)) in extensions.iter().enumerate() {
        chain.push(extensions.get(at + 1).map_or(protocol, |next| next.0));
        chain.extend(&header[1..]);
    }
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(((chain.len() + body.len()) as u16).to_be_bytes());
    packet.extend([extensions.first().map_or(protocol, |first| first.0), 64]);
    packet.extend("2001:db8::5".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(destination.octets());
    packet.extend(chain);
    packet.extend(body);
    (0x86dd, packet)
}

/// An extension header of 8 bytes and so many units of 8 more.
pub(crate) fn extension(units: u8) -> Vec<u8> {
    let mut header = vec![0; 8 + usize::from(units) * 8];
    header[1] = units;
    header
}

/// A fragment header; offset in 8 bytes.
pub(crate) fn fragment(offset: u16, more: bool) -> Vec<u8> {
    let field = (offset << 3) | u16::from(more);
    [&[0, 0], &field.to_be_bytes()[..], &[0, 0, 0, 7]].concat()
}

pub(crate) fn udp(port: u16) -> Vec<u8> {
    [
        &[0x30, 0x39],
        &port.to_be_bytes()[..],
        &[0, 24, 0, 0],
        &[0x5a; 16],
    ]
    .concat()
}

pub(crate) fn esp() -> Vec<u8> {
    [&[0, 0, 0x10, 1, 0, 0, 0, 1][..], &[0x5a; 40]].concat()
}

/// ARP; operation 1 asks, 2 answers.
pub(crate) fn arp(operation: u16, target: IpAddr) -> Vec<u8> {
    let IpAddr::V4(target) = target else {
        panic!("ARP is for IPv4")
    };
    let mut body = vec![0, 1, 8, 0, 6, 4];
    body.extend(operation.to_be_bytes());
    body.extend([2, 0, 0, 0, 0, 0xbb, 203, 0, 113, 5]);
    body.extend([0; 6]);
    body.extend(target.octets());
    body
}

/// An ICMPv6 message of a type with a target address behind it.
pub(crate) fn neighbour(kind: u8, target: IpAddr) -> Vec<u8> {
    let IpAddr::V6(target) = target else {
        panic!("ND is for IPv6")
    };
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat()
}
