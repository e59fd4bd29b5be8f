//! Ports and flags of TCP, UDP and SCTP (RFC 9293, RFC 768, RFC 9260).

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of SCTP.
pub const SCTP: u8 = 132;
/// TCP flag: opens a connection.
pub const SYN: u8 = 0x02;
/// TCP flag: acknowledges.
pub const ACK: u8 = 0x10;

/// The shortest header of a protocol that has ports; `None` for one that has none.
#[inline]
#[must_use]
pub fn minimum_header(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(20),
        UDP => Some(8),
        SCTP => Some(12),
        _ => None,
    }
}

/// Source and destination port at the start of a header.
#[inline]
#[must_use]
pub fn ports(header: &[u8]) -> Option<(u16, u16)> {
    match header {
        [a, b, c, d, ..] => Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))),
        _ => None,
    }
}

/// The flags of a TCP header.
#[inline]
#[must_use]
pub fn tcp_flags(header: &[u8]) -> Option<u8> {
    header.get(13).copied()
}
