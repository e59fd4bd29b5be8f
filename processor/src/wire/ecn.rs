//! Explicit congestion notification through a tunnel (RFC 6040).

use zerocopy::FromBytes;

use super::{checksum, ethernet, ip4, ip6};

/// The bits of a traffic class that it has.
pub const MASK: u8 = 3;
/// Congestion experienced.
const CE: u8 = 3;
/// Not capable of it.
const NOT_ECT: u8 = 0;
/// Capable of it, the second code point.
const ECT_1: u8 = 1;

/// What the packet inside gets, given what it has and what the outer header brought; `None` if it must be dropped, since
/// its sender would not hear of the congestion (RFC 6040 4.2).
#[inline]
#[must_use]
pub fn combine(inner: u8, outer: u8) -> Option<u8> {
    match (inner & MASK, outer & MASK) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (CE, _) => Some(CE),
        (_, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// Writes the code point into an IP header, whose checksum stays right.
///
/// Does nothing if `header` is too short to be one.
pub fn write(header: &mut [u8], ethertype: u16, ecn: u8) {
    match ethertype {
        ethernet::IPV4 => {
            if let Ok((fields, _)) = ip4::Header::mut_from_prefix(header) {
                // Version, header length and traffic class are one word, of which the first two stay.
                let class = fields.traffic_class & !MASK | ecn;
                let (before, after) = (fields.traffic_class.into(), class.into());
                let sum = checksum::update(fields.checksum.get(), before, after);
                fields.traffic_class = class;
                fields.checksum.set(sum);
            }
        }
        ethernet::IPV6 => {
            if let Ok((fields, _)) = ip6::Header::mut_from_prefix(header) {
                let word = fields.version_class_flow.get();
                fields
                    .version_class_flow
                    .set(word & !(3 << 20) | u32::from(ecn) << 20);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::Packet;

    /// RFC 6040 figure 4: rows are the packet inside (Not-ECT, ECT(0), ECT(1), CE), columns the outer header.
    #[test]
    fn figure_4() {
        let (not, ect0, ect1) = (Some(0), Some(2), Some(1));
        let ce = Some(3);
        let table = [
            (0, [not, not, not, None]),
            (2, [ect0, ect0, ect1, ce]),
            (1, [ect1, ect1, ect1, ce]),
            (3, [ce, ce, ce, ce]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [0, 2, 1, 3].into_iter().zip(row) {
                assert_eq!(combine(inner, outer), expected, "inner {inner}, outer {outer}");
                assert_eq!(
                    combine(0xb8 | inner, 0x48 | outer),
                    expected,
                    "DSCP has no part in it"
                );
            }
        }
    }

    #[test]
    fn only_the_code_point_changes() {
        let four = ip4::outer([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 17, 0xb8 | 2, 28);
        let six = ip6::outer([1u16; 8].into(), [2u16; 8].into(), 17, 0xb8 | 2, 8);
        for (ethertype, mut header) in [(ethernet::IPV4, four.to_vec()), (ethernet::IPV6, six.to_vec())] {
            let before = header.clone();
            write(&mut header, ethertype, CE);
            let frame = [
                &[0; 12][..],
                &ethertype.to_be_bytes(),
                &header,
                &[0, 1, 0, 2, 0, 8, 0, 0],
            ]
            .concat();
            let packet = Packet::parse(&frame).unwrap();
            assert_eq!(packet.traffic_class, 0xb8 | 3);
            write(&mut header, ethertype, 2);
            assert_eq!(header, before);
        }
        write(&mut [1, 2, 3], ethernet::IPV4, CE);
    }
}
