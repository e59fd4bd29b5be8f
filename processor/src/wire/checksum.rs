//! The Internet checksum (RFC 1071).

/// The folded one's complement sum of `bytes`, taken as big-endian 16-bit words, an odd last byte padded with zero.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0u64;
    let (words, rest) = bytes.as_chunks::<2>();
    for word in words {
        total += u64::from(u16::from_be_bytes(*word));
    }
    if let [last] = rest {
        total += u64::from(*last) << 8;
    }
    fold(total)
}

/// The checksum field's value for `bytes` in which that field is zero.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

#[inline]
fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

#[cfg(test)]
mod tests {
    use super::*;

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
