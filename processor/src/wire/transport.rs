//! Ports and flags of TCP, UDP and SCTP (RFC 9293, RFC 768, RFC 9260).

use super::checksum;

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

/// Lowers the maximum segment size that a TCP SYN offers to `most`, and keeps its checksum right (RFC 9293 3.7.1); whether
/// there was anything to lower.
pub fn clamp_mss(segment: &mut [u8], most: u16) -> bool {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const MSS: u8 = 2;
    const FIXED: usize = 20;
    let Some(words) = segment.get(12).map(|byte| usize::from(byte >> 4)) else {
        return false;
    };
    let mut place = FIXED;
    while let Some([kind, length, high, low]) = segment
        .get(..words * 4)
        .and_then(|header| header.get(place..)?.first_chunk())
    {
        match (*kind, *length) {
            (END, _) => return false,
            (NOTHING, _) => place += 1,
            (MSS, 4) => {
                if u16::from_be_bytes([*high, *low]) <= most {
                    return false;
                }
                return lower(segment, place + 2, most).is_some();
            }
            (_, length) if length < 2 => return false,
            (_, length) => place += usize::from(length),
        }
    }
    false
}

/// Writes two bytes that may lie across words of the checksum.
fn lower(segment: &mut [u8], place: usize, value: u16) -> Option<()> {
    const CHECKSUM: usize = 16;
    let first = place & !1;
    let word = |segment: &[u8], at: usize| Some(u16::from_be_bytes(*segment.get(at..)?.first_chunk()?));
    let words = if place == first { 1 } else { 2 };
    let mut changes = [(0, 0); 2];
    for (number, change) in changes.iter_mut().enumerate().take(words) {
        change.0 = word(segment, first + 2 * number)?;
    }
    segment
        .get_mut(place..place + 2)?
        .copy_from_slice(&value.to_be_bytes());
    for (number, change) in changes.iter_mut().enumerate().take(words) {
        change.1 = word(segment, first + 2 * number)?;
    }
    let sum = checksum::update(word(segment, CHECKSUM)?, &changes);
    segment
        .get_mut(CHECKSUM..CHECKSUM + 2)?
        .copy_from_slice(&sum.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A SYN with these options, whose checksum is right without a pseudo header.
    fn syn(options: &[u8]) -> Vec<u8> {
        let mut segment = vec![0; 20];
        segment.extend(options);
        segment.resize(20 + options.len().next_multiple_of(4), 0);
        segment[12] = ((segment.len() / 4) << 4) as u8;
        segment[13] = SYN;
        let sum = checksum::checksum(&segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    #[test]
    fn the_offer_is_lowered_never_raised() {
        for before in [&[][..], &[1], &[1, 1, 1], &[3, 3, 7], &[4, 2]] {
            let with = |mss: u16| {
                let [high, low] = mss.to_be_bytes();
                syn(&[before, &[2, 4, high, low], &[8, 4, 9, 9]].concat())
            };
            let mut segment = with(1460);
            assert!(clamp_mss(&mut segment, 1300));
            assert_eq!(segment, with(1300), "behind {before:?}");
            assert_eq!(checksum::sum(&segment), 0xffff);
            assert!(!clamp_mss(&mut segment, 1400));
            assert_eq!(segment, with(1300));
        }
        for without in [
            &[][..],
            &[0, 2, 4, 5, 180],
            &[2, 3, 5],
            &[9, 0, 2, 4, 5, 180],
            &[9, 200, 2, 4, 5, 180],
        ] {
            let mut segment = syn(without);
            assert!(!clamp_mss(&mut segment, 100));
            assert_eq!(segment, syn(without));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_clamped_or_left(mut bytes in prop::collection::vec(any::<u8>(), 0..70), most in any::<u16>()) {
            let before = bytes.clone();
            if !clamp_mss(&mut bytes, most) {
                prop_assert_eq!(bytes, before);
            }
        }
    }
}
