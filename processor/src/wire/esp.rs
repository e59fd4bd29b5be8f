//! ESP packets with AES-GCM or AES-GMAC (RFC 4303, RFC 4106, RFC 4543).
//!
//! ```text
//! | SPI 4 | sequence 4 | IV 8 | payload, padding, pad length 1, next header 1 | tag 16 |
//! ```

use super::udp;
use zerocopy::byteorder::network_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The UDP port that ESP in UDP is sent to (RFC 3948).
pub const UDP_PORT: u16 = 4500;
/// Protocol number of ESP.
pub const ESP: u8 = 50;
/// Next header of IPv4 in tunnel mode.
pub const NEXT_IPV4: u8 = 4;
/// Next header of IPv6 in tunnel mode.
pub const NEXT_IPV6: u8 = 41;
/// Next header of a dummy packet (RFC 4303 2.6).
pub const NEXT_NONE: u8 = 59;
/// Bytes of SPI, sequence and IV.
pub const HEADER: usize = 16;
/// Bytes of the tag.
pub const TAG: usize = 16;
/// Bytes of pad length and next header.
pub const TRAILER: usize = 2;

/// What stands before the payload.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Security parameters index.
    pub spi: U32,
    /// The low 32 bits of the sequence number.
    pub sequence: U32,
    /// The explicit part of the nonce.
    pub iv: U64,
}

/// Bytes of padding so that payload, padding and trailer end on 4 bytes (RFC 4303 2.4).
#[inline]
#[must_use]
pub fn padding(payload: usize) -> usize {
    (payload + TRAILER).wrapping_neg() & 3
}

/// Bytes of a whole ESP packet with `payload` bytes inside.
#[inline]
#[must_use]
pub fn length(payload: usize) -> usize {
    HEADER + payload + padding(payload) + TRAILER + TAG
}

/// The most payload that an ESP packet of `room` bytes can have.
#[must_use]
pub fn most_inside(room: usize) -> usize {
    (room.saturating_sub(HEADER + TAG) & !3).saturating_sub(TRAILER)
}

/// A source port of its own for an SA's packets in UDP, so that receive queues and paths are chosen by it.
#[must_use]
pub fn udp_source(spi: u32) -> u16 {
    // A product with an odd constant spreads SPIs that follow one another.
    0xc000 | (spi.wrapping_mul(0x9e37_79b1) >> 18) as u16
}

/// The UDP header in front of an ESP packet: `length` bytes with this header. Its checksum is none (RFC 3948 2.1).
#[inline]
#[must_use]
pub fn in_udp(source: u16, length: u16) -> udp::Header {
    udp::Header {
        source: source.into(),
        destination: UDP_PORT.into(),
        length: length.into(),
        checksum: 0.into(),
    }
}

/// Writes padding, pad length and next header into `room`, which begins right behind the payload; gives their length,
/// or `None` if the room is too small. Up to 8 bytes of it are written.
#[inline(always)]
#[must_use]
pub fn write_trailer(room: &mut [u8], payload: usize, next_header: u8) -> Option<usize> {
    let padding = padding(payload);
    let length = padding + TRAILER;
    let trailer = trailer(padding, next_header);
    // One move, whatever the padding, where there is room for it: what comes to stand behind the trailer is nobody's.
    match room.first_chunk_mut() {
        Some(room) => *room = trailer,
        None => room.get_mut(..length)?.copy_from_slice(trailer.get(..length)?),
    }
    Some(length)
}

/// A trailer of so much padding, and zeros.
#[inline(always)]
fn trailer(padding: usize, next_header: u8) -> [u8; 8] {
    let (padded, bits) = match padding {
        0 => (0x00, 8),
        1 => (0x01_01, 16),
        2 => (0x02_02_01, 24),
        _ => (0x03_03_02_01, 32),
    };
    (padded | u64::from(next_header) << bits).to_le_bytes()
}

/// The payload's length and the next header of an opened packet; `None` if the padding is not 1, 2, 3, … (RFC 4303 2.4)
/// or longer than the packet.
#[inline]
#[must_use]
pub fn read_trailer(opened: &[u8]) -> Option<(usize, u8)> {
    let [rest @ .., padding, next_header] = opened else {
        return None;
    };
    let payload = rest.len().checked_sub(usize::from(*padding))?;
    let is_right = match rest.get(payload..)? {
        [] | [1] | [1, 2] | [1, 2, 3] => true,
        // More than aligns a packet, which nearly nobody sends.
        pads => (1u8..).zip(pads).all(|(number, byte)| number == *byte),
    };
    is_right.then_some((payload, *next_header))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn trailer_round_trip(payload in 0usize..300, next in any::<u8>()) {
            let end = payload + padding(payload) + TRAILER;
            // With room for the trailer and no more, and with plenty.
            let mut bytes = vec![0xaa; end];
            prop_assert_eq!(write_trailer(&mut bytes[payload..], payload, next), Some(end - payload));
            prop_assert_eq!(write_trailer(&mut bytes[payload + 1..], payload, next), None);
            let exact = bytes.clone();
            bytes.resize(payload + 8, 0xbb);
            let written = write_trailer(&mut bytes[payload..], payload, next).unwrap();
            prop_assert_eq!(&bytes[..end], &exact[..]);
            prop_assert_eq!((payload + written) % 4, 0);
            prop_assert_eq!(HEADER + payload + written + TAG, length(payload));
            prop_assert_eq!(read_trailer(&bytes[..payload + written]), Some((payload, next)));
        }

        #[test]
        fn the_most_fits_and_one_more_does_not(room in HEADER + TAG + TRAILER + 2..2000usize) {
            let most = most_inside(room);
            prop_assert!(length(most) <= room && length(most + 1) > room, "{most}");
        }

        #[test]
        fn trailers_of_any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some((payload, _)) = read_trailer(&bytes) {
                prop_assert!(payload + TRAILER <= bytes.len());
            }
        }
    }

    #[test]
    fn wrong_padding_is_refused() {
        assert_eq!(read_trailer(&[9, 1, 1, 4]), Some((1, 4)));
        assert_eq!(read_trailer(&[9, 1, 2, 2, 4]), Some((1, 4)));
        assert_eq!(read_trailer(&[9, 1, 1, 2, 4]), None);
        assert_eq!(read_trailer(&[9, 7, 1, 4]), None);
        assert_eq!(read_trailer(&[9, 7, 200, 4]), None);
        assert_eq!(read_trailer(&[4]), None);
    }
}
