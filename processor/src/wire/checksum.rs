//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// The folded one's complement sum of `bytes`, taken as big-endian 16-bit words, an odd last byte padded with zero.
///
/// Four bytes at a time, since 2^16 is 1 in one's complement; in the machine's byte order, which is turned once at the
/// end (RFC 1071 2 (B)).
#[inline]
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0u64;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    total += u64::from(u32::from_ne_bytes(last));
    u16::from_be(fold(total))
}

/// Whether the checksum of an IPv4 header without options is right.
///
/// In line always, since every packet is asked: all ones are all ones in any byte order.
#[inline(always)]
#[must_use]
pub fn is_right(header: &[u8; 20]) -> bool {
    // 2^64 is 1 in one's complement, too.
    let [one, two] = *header.as_chunks::<8>().0 else {
        return false;
    };
    let last = header.last_chunk().map_or(0, |last| u32::from_ne_bytes(*last));
    let (total, first) = u64::from_ne_bytes(one).overflowing_add(u64::from_ne_bytes(two));
    let (total, second) = total.overflowing_add(u64::from(last) + u64::from(first));
    // A carry leaves room for itself.
    fold(total + u64::from(second)) == 0xffff
}

/// The checksum of a header in which some 16-bit words have changed: its old checksum, and the sums of these words before and after;
/// of 16 words at most.
///
/// Without a look at the header (RFC 1624, equation 3).
#[inline(always)]
#[must_use]
pub fn update(checksum: u16, before: u32, after: u32) -> u16 {
    // A multiple of what is 0 in one's complement.
    const ZERO: u32 = 16 * 0xffff;
    !fold_32(u32::from(!checksum) + after + (ZERO - before))
}

/// The folded sum of the pseudo header of an upper-layer packet of `length` bytes (RFC 9293 3.1, RFC 8200 8.1). It is never 0,
/// since no protocol number that has a checksum is.
#[inline(always)]
#[must_use]
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: u32) -> u16 {
    // In sums of 32 bits, folded once: all of it in the order of the bytes on the wire.
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            let part = |shift: u32| u64::from((bits >> shift) as u32);
            part(0) + part(32) + part(64) + part(96)
        }
    };
    fold(address(source) + address(destination) + u64::from(protocol) + u64::from(length))
}

/// One's complement sum of sums.
#[inline]
#[must_use]
pub fn add(sums: &[u16]) -> u16 {
    fold(sums.iter().map(|sum| u64::from(*sum)).sum())
}

/// The checksum field's value for `bytes` in which that field is zero.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

#[inline]
fn fold(total: u64) -> u16 {
    let (low, carried) = (total as u32).overflowing_add((total >> 32) as u32);
    // A carry out of 32 bits is 1 at the other end, where there is room for it then.
    fold_32(low + u32::from(carried))
}

#[inline]
fn fold_32(total: u32) -> u16 {
    let (low, carried) = (total as u16).overflowing_add((total >> 16) as u16);
    low + u16::from(carried)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_sum_is_that_of_16_bit_words(bytes in prop::collection::vec(any::<u8>(), 0..70)) {
            let mut total = 0u32;
            for pair in bytes.chunks(2) {
                total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
                total = (total & 0xffff) + (total >> 16);
            }
            prop_assert_eq!(u32::from(sum(&bytes)), total);
        }

        /// Also where all the sums carry.
        #[test]
        fn a_header_is_right_if_its_sum_is(
            words in prop::array::uniform10(prop_oneof![any::<u16>(), Just(0), Just(0xffff)]), corrects: bool,
        ) {
            let mut header: [u8; 20] = zerocopy::transmute!(words.map(u16::to_be_bytes));
            if corrects {
                header[10..12].fill(0);
                let right = checksum(&header);
                header[10..12].copy_from_slice(&right.to_be_bytes());
            }
            prop_assert_eq!(is_right(&header), sum(&header) == 0xffff);
        }

        #[test]
        fn an_updated_checksum_is_right(
            mut header in prop::collection::vec(any::<u8>(), 20..=60), one in any::<u16>(), two in any::<u16>(),
        ) {
            header.truncate(header.len() & !3);
            header[0] = 0x45;
            header[10..12].fill(0);
            let before = checksum(&header);
            let word = |place: usize| u16::from_be_bytes([header[place], header[place + 1]]);
            let (old, new) = (word(2), word(8));
            let (old, new) = (u32::from(old) + u32::from(new), u32::from(one) + u32::from(two));
            header[2..4].copy_from_slice(&one.to_be_bytes());
            header[8..10].copy_from_slice(&two.to_be_bytes());
            header[10..12].copy_from_slice(&update(before, old, new).to_be_bytes());
            prop_assert_eq!(sum(&header), 0xffff);
        }
    }

    #[test]
    fn rfc_1071_section_3_example() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            0x220d
        );
    }

    #[test]
    fn an_odd_byte_counts_as_the_high_half() {
        assert_eq!(sum(&[0x12]), 0x1200);
    }
}
