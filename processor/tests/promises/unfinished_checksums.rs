//! A checksum that a guest leaves to its network card is finished before its packet leaves, over the wire, within the host and in an
//! overlay; every other byte stays as the guest sent it.

use std::net::IpAddr;

use guestseal::wire::checksum;

use crate::frames::*;
use crate::host::{Host, Options, overlay_with, policy};

/// Where the field is in a segment.
fn place(protocol: u8) -> usize {
    if protocol == TCP { 16 } else { 6 }
}

/// The segment as Linux hands it to a device that finishes checksums (`CHECKSUM_PARTIAL`), and as it should arrive.
pub(crate) fn left_and_finished(
    from: Guest,
    to: Guest,
    ip6: bool,
    protocol: u8,
    segment: &[u8],
) -> (Vec<u8>, Vec<u8>) {
    let place = place(protocol);
    let octets = |address| match address {
        IpAddr::V4(address) => std::net::Ipv4Addr::octets(&address).to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let length = (segment.len() as u32).to_be_bytes();
    let addresses = [octets(from.address(ip6)), octets(to.address(ip6))].concat();
    let pseudo = [&addresses[..], &length, &[0, 0, 0, protocol]].concat();
    let with = |sum: u16| {
        let mut segment = segment.to_vec();
        segment[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    };
    let finished = checksum::checksum(&[&pseudo[..], &with(0)].concat());
    (with(checksum::sum(&pseudo)), with(finished))
}

#[test]
fn a_checksum_that_was_left_arrives_finished() {
    let flat = policy();
    let overlay = overlay_with("", "");
    for (policy, overlay) in [(&flat, false), (&overlay, true)] {
        let options = Options::default();
        let (mut here, mut there) = (Host::new(policy, 0, &options), Host::new(policy, 1, &options));
        for ip6 in [false, true] {
            for (protocol, segment) in [
                (UDP, udp(1, 2, b"odd")),
                (UDP, udp(1, 2, b"")),
                (TCP, tcp(1, 2, ACK, b"a segment")),
            ] {
                let (left, finished) = left_and_finished(BLUE1, BLUE2, ip6, protocol, &segment);
                assert_ne!(left, finished);
                for sent in [&left, &finished] {
                    // Behind the packet there may be padding of Ethernet, which counts for nothing.
                    let frame = [between(BLUE1, BLUE2, ip6, protocol, sent), vec![0xff; 5]].concat();
                    here.guest_sends(BLUE1, &frame);
                    for datagram in here.on_wire() {
                        there.wire_brings(0, &datagram);
                    }
                    let arrived = there.at_guest(BLUE2);
                    let wanted = between(BLUE1, BLUE2, ip6, protocol, &finished);
                    assert_eq!(arrived.len(), 1, "overlay {overlay}: {:?}", here.outcomes());
                    assert_eq!(
                        arrived[0][..wanted.len()],
                        wanted,
                        "overlay {overlay}, IPv6 {ip6}, protocol {protocol}"
                    );
                }
            }
        }
        here.assert_accounted();
        there.assert_accounted();
    }
}

#[test]
fn within_the_host_as_well() {
    let policy = policy();
    let mut host = Host::new(&policy, 0, &Options::default());
    let (left, finished) = left_and_finished(BLUE1, BLUE3, false, UDP, &udp(1, 2, b"near"));
    host.guest_sends(BLUE1, &between(BLUE1, BLUE3, false, UDP, &left));
    assert_eq!(
        host.at_guest(BLUE3),
        [between(BLUE1, BLUE3, false, UDP, &finished)]
    );
    host.assert_accounted();
}

/// What is no checksum that was left: UDP without one, a wrong one, fragments, other protocols; and all of a port whose guest
/// finishes its own.
#[test]
fn everything_else_stays_as_it_was_sent() {
    let policy = policy();
    let stays = |options: &Options, what: &str, frame: &[u8]| {
        let mut host = Host::new(&policy, 0, options);
        host.guest_sends(BLUE1, frame);
        assert_eq!(host.at_guest(BLUE3), [frame], "{what}: {:?}", host.outcomes());
        host.assert_accounted();
    };
    let to = |ip6, protocol, segment: &[u8]| between(BLUE1, BLUE3, ip6, protocol, segment);
    let options = Options::default();
    let (left, finished) = left_and_finished(BLUE1, BLUE3, false, UDP, &udp(1, 2, b"0123456789abcdef"));
    let mut wrong = finished;
    wrong[7] ^= 1;
    for ip6 in [false, true] {
        stays(&options, "no checksum", &to(ip6, UDP, &udp(1, 2, b"none")));
    }
    stays(&options, "a wrong checksum", &to(false, UDP, &wrong));
    let finishes_its_own = Options {
        leaves_checksums: false,
        ..Options::default()
    };
    stays(&finishes_its_own, "another port", &to(false, UDP, &left));
}

#[test]
fn fragments_stay_as_they_were_sent() {
    let policy = policy();
    let options = Options {
        tunnel: true,
        ..Options::default()
    };
    let (mut here, mut there) = (Host::new(&policy, 0, &options), Host::new(&policy, 1, &options));
    let (left, _) = left_and_finished(RED1, RED2, false, UDP, &udp(1, 2, b"0123456789abcdef"));
    for field in [0x2000, 0x2004, 0x0004] {
        let frame = fragment(RED1, RED2, UDP, field, &left);
        here.guest_sends(RED1, &frame);
        for packet in here.on_wire() {
            there.wire_brings(0, &packet);
        }
        assert_eq!(there.at_guest(RED2), [frame], "{:?}", here.outcomes());
    }
}
