//! Geneve headers (RFC 8926).

use guestseal_rules::model::Vni;
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The UDP port that it is sent to.
pub const PORT: u16 = 6081;
/// Bytes of the header without options.
pub const HEADER: usize = 8;

/// The payload is an Ethernet frame.
const ETHERNET: u16 = 0x6558;
/// A control packet: not a guest's.
const CONTROL: u8 = 0x80;
/// There are options that a receiver must understand; none is understood here.
const CRITICAL: u8 = 0x40;

/// The header without options, as it stands on the wire.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    /// Version (2 bits, 0) and length of the options in 4 bytes (6).
    version_length: u8,
    flags: u8,
    protocol: U16,
    /// VNI (24 bits) and 8 reserved bits.
    vni: U32,
}

/// The header of a network.
#[must_use]
pub fn header(vni: Vni) -> [u8; HEADER] {
    zerocopy::transmute!(Header {
        version_length: 0,
        flags: 0,
        protocol: ETHERNET.into(),
        vni: (vni.get() << 8).into(),
    })
}

/// The network that a datagram's payload belongs to, and where the frame begins in it, behind the options; `None` if it is
/// no Geneve packet with an Ethernet frame, or has an option that must be understood (RFC 8926 3.4).
#[must_use]
pub fn read(payload: &[u8]) -> Option<(Vni, usize)> {
    let (header, rest) = Header::ref_from_prefix(payload).ok()?;
    let options = usize::from(header.version_length & 0x3f) * 4;
    if header.version_length >> 6 != 0
        || header.flags & (CONTROL | CRITICAL) != 0
        || header.protocol.get() != ETHERNET
        || rest.len() < options
    {
        return None;
    }
    Some((Vni::new(header.vni.get() >> 8)?, HEADER + options))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(number in 1..=Vni::MAX, frame in prop::collection::vec(any::<u8>(), 0..20)) {
            let vni = Vni::new(number).unwrap();
            let bytes = [&header(vni)[..], &frame].concat();
            prop_assert_eq!(read(&bytes), Some((vni, HEADER)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some((_, frame)) = read(&bytes) {
                prop_assert!(frame <= bytes.len());
            }
        }
    }

    /// RFC 8926 3.4: options that need not be understood are skipped, others are not.
    #[test]
    fn options_and_flags() {
        let vni = Vni::new(5).unwrap();
        let packet = |first: u8, flags: u8| [first, flags, 0x65, 0x58, 0, 0, 5, 0xff, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(read(&packet(0, 0)), Some((vni, 8)));
        assert_eq!(read(&packet(2, 0x3f)), Some((vni, 16)));
        for (first, flags, what) in [
            (3, 0, "options beyond the end"),
            (0, CONTROL, "a control packet"),
            (1, CRITICAL, "an option that must be understood"),
            (0x40, 0, "version 1"),
        ] {
            assert_eq!(read(&packet(first, flags)), None, "{what}");
        }
        let mut other = packet(0, 0);
        other[3] = 0x59;
        assert_eq!(read(&other), None, "no Ethernet frame");
    }
}
