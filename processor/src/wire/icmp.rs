//! ICMP and neighbour discovery (RFC 792, RFC 4443, RFC 4861): what rules and anti-spoofing need.

use std::net::Ipv6Addr;

use super::checksum;
use super::ethernet::MacAddress;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Next header of ICMPv6.
pub const ICMPV6: u8 = 58;
/// Type of a neighbour solicitation.
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// Type of a neighbour advertisement.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Every node of a link (RFC 4291 2.7.1).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The MAC of that group (RFC 2464 7).
pub const ALL_NODES_MAC: MacAddress = MacAddress([0x33, 0x33, 0, 0, 0, 1]);

/// Bytes in front of what an error quotes.
pub const ERROR_HEADER: usize = 8;
/// The traffic class of errors: network control (RFC 1812 4.3.2.5).
pub const ERROR_CLASS: u8 = 0xc0;

const OPTIONS: usize = 24;

/// Whether a message of ICMP reports an error, and must not be answered by another (RFC 1122 3.2.2).
#[must_use]
pub fn is_error_v4(kind: u8) -> bool {
    // Unreachable, source quench, redirect, time exceeded, parameter problem.
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

/// The same for ICMPv6 (RFC 4443 2.1, 2.4 e): errors, and redirects.
#[must_use]
pub fn is_error_v6(kind: u8) -> bool {
    kind < 128 || kind == 137
}

/// Writes "fragmentation needed" with the MTU that would do (RFC 1191 4) over `message`, which is as long as header and quoted
/// packet.
pub fn write_too_long_v4(message: &mut [u8], mtu: u16, quoted: &[u8]) {
    let [high, low] = mtu.to_be_bytes();
    write_error(message, [3, 4, 0, 0, 0, 0, high, low], quoted);
    set_checksum(message, checksum::checksum(message));
}

/// Writes "packet too big" (RFC 4443 3.2) over `message`, which is as long as header and quoted packet.
pub fn write_too_long_v6(
    message: &mut [u8],
    mtu: u16,
    quoted: &[u8],
    source: Ipv6Addr,
    destination: Ipv6Addr,
) {
    let [high, low] = mtu.to_be_bytes();
    write_error(message, [2, 0, 0, 0, 0, 0, high, low], quoted);
    set_checksum(message, checksum_v6(source, destination, message));
}

fn write_error(message: &mut [u8], header: [u8; ERROR_HEADER], quoted: &[u8]) {
    for (to, from) in message.iter_mut().zip(header.iter().chain(quoted)) {
        *to = *from;
    }
}

fn set_checksum(message: &mut [u8], sum: u16) {
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

/// The checksum of an ICMPv6 message whose field is zero (RFC 4443 2.3).
fn checksum_v6(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let pseudo = checksum::pseudo_header(source.into(), destination.into(), ICMPV6, message.len() as u32);
    !checksum::add(&[pseudo, checksum::sum(message)])
}

/// A neighbour advertisement (RFC 4861 4.4).
#[derive(Copy, Clone, Debug)]
pub struct Advertisement {
    /// The address spoken for.
    pub target: Ipv6Addr,
    /// Its link-layer address.
    pub mac: MacAddress,
    /// Whether it is a router.
    pub is_router: bool,
    /// Whether it was asked for.
    pub is_solicited: bool,
}

impl Advertisement {
    /// The message, from and to these addresses.
    #[must_use]
    pub fn write(&self, source: Ipv6Addr, destination: Ipv6Addr) -> [u8; OPTIONS + 8] {
        const OVERRIDE: u8 = 0x20;
        let flags = OVERRIDE | u8::from(self.is_router) << 7 | u8::from(self.is_solicited) << 6;
        let mut message = [0; OPTIONS + 8];
        let [a, b, c, d, e, f] = self.mac.0;
        let header = [NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
        // Target link-layer address, 8 bytes.
        let option = [2, 1, a, b, c, d, e, f];
        let target = self.target.octets();
        let all = header.iter().chain(&target).chain(&option);
        for (to, from) in message.iter_mut().zip(all) {
            *to = *from;
        }
        let sum = checksum_v6(source, destination, &message);
        set_checksum(&mut message, sum);
        message
    }
}

/// What a neighbour solicitation or advertisement says.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The address asked for, or spoken for.
    pub target: Ipv6Addr,
    /// The link-layer address in its options, if there is one.
    pub link_layer: Option<MacAddress>,
}

/// Reads a neighbour solicitation or advertisement; `None` if `message` is neither, or its options are out of bounds.
#[must_use]
pub fn neighbour(message: &[u8]) -> Option<Neighbour> {
    if !matches!(
        message.first(),
        Some(&(NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT))
    ) {
        return None;
    }
    let target: [u8; 16] = message.get(8..OPTIONS)?.try_into().ok()?;
    let mut options = message.get(OPTIONS..)?;
    let mut link_layer = None;
    while let [kind, units, ..] = options {
        let length = usize::from(*units) * 8;
        if length == 0 {
            return None;
        }
        // Source (1) or target (2) link-layer address.
        if matches!(kind, 1 | 2) {
            link_layer = Some(MacAddress(options.get(2..8)?.try_into().ok()?));
        }
        options = options.get(length..)?;
    }
    Some(Neighbour {
        target: Ipv6Addr::from(target),
        link_layer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_is_read_as_it_was_written() {
        let target = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
        let mac = MacAddress([2, 0, 0, 1, 0, 2]);
        let advertisement = Advertisement {
            target,
            mac,
            is_router: true,
            is_solicited: false,
        };
        let message = advertisement.write(target, ALL_NODES);
        assert_eq!(
            neighbour(&message),
            Some(Neighbour {
                target,
                link_layer: Some(mac)
            })
        );
        assert_eq!(message[4], 0xa0);
        assert_eq!(
            checksum_v6(target, ALL_NODES, &message),
            0,
            "the sum with the checksum in its field"
        );
    }

    #[test]
    fn errors_quote_and_sum() {
        let mut message = [0xff; ERROR_HEADER + 5];
        write_too_long_v4(&mut message, 1400, &[1, 2, 3, 4, 5]);
        assert_eq!(checksum::sum(&message), 0xffff);
        assert_eq!(
            (message[..2].to_vec(), &message[4..]),
            (vec![3, 4], &[0, 0, 5, 120, 1, 2, 3, 4, 5][..])
        );
        let (source, destination) = (Ipv6Addr::LOCALHOST, ALL_NODES);
        write_too_long_v6(&mut message, 1400, &[1, 2, 3, 4, 5], source, destination);
        assert_eq!(checksum_v6(source, destination, &message), 0);
        assert_eq!(message[..2], [2, 0]);
    }
}
