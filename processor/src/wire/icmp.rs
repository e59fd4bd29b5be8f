//! ICMP and neighbour discovery (RFC 792, RFC 4443, RFC 4861): what rules and anti-spoofing need.

use std::net::Ipv6Addr;

use super::ethernet::MacAddress;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Next header of ICMPv6.
pub const ICMPV6: u8 = 58;
/// Type of a neighbour solicitation.
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// Type of a neighbour advertisement.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

const OPTIONS: usize = 24;

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
