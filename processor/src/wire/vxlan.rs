//! VXLAN headers (RFC 7348).

use guestseal_rules::model::Vni;
use zerocopy::byteorder::network_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The UDP port that it is sent to.
pub const PORT: u16 = 4789;
/// Bytes of the header.
pub const HEADER: usize = 8;

/// The flag that says that there is a VNI; the other bits are ignored on receipt.
const HAS_VNI: u32 = 0x0800_0000;

/// The header as it stands on the wire.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    flags: U32,
    /// VNI (24 bits) and 8 reserved bits.
    vni: U32,
}

/// The header of a network.
#[must_use]
pub fn header(vni: Vni) -> [u8; HEADER] {
    zerocopy::transmute!(Header {
        flags: HAS_VNI.into(),
        vni: (vni.get() << 8).into(),
    })
}

/// The network that a datagram's payload belongs to, and where the frame begins in it; `None` if it is no VXLAN packet.
#[must_use]
pub fn read(payload: &[u8]) -> Option<(Vni, usize)> {
    let (header, _) = Header::ref_from_prefix(payload).ok()?;
    if header.flags.get() & HAS_VNI == 0 {
        return None;
    }
    Some((Vni::new(header.vni.get() >> 8)?, HEADER))
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
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..16)) {
            if let Some((_, frame)) = read(&bytes) {
                prop_assert!(frame <= bytes.len());
            }
        }
    }

    /// RFC 7348 5: the I flag must be set, reserved bits are ignored.
    #[test]
    fn flags() {
        assert_eq!(
            header(Vni::new(0x12_3456).unwrap()),
            [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]
        );
        let vni = Vni::new(5).unwrap();
        assert_eq!(read(&[0xff, 1, 2, 3, 0, 0, 5, 9]), Some((vni, HEADER)));
        assert_eq!(read(&[0xf7, 0, 0, 0, 0, 0, 5, 0]), None);
        assert_eq!(read(&[8, 0, 0, 0, 0, 0, 0, 0]), None, "VNI 0 is no network");
        assert_eq!(read(&[8, 0, 0, 0, 0, 0, 5]), None);
    }
}
