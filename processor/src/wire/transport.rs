//! Ports, flags and checksums of TCP, UDP and SCTP (RFC 9293, RFC 768, RFC 9260).

use std::net::IpAddr;

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

/// The pseudo header of a flow's packets, but for their lengths: by it is known whether a sender left a checksum to its network
/// card.
#[derive(Copy, Clone)]
pub struct PseudoHeader {
    sum: u16,
    protocol: u8,
}

impl PseudoHeader {
    /// That of packets between these.
    #[inline(always)]
    #[must_use]
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self {
            sum: checksum::pseudo_header(source, destination, protocol, 0),
            protocol,
        }
    }

    /// Where the checksum stands.
    #[inline(always)]
    fn place(self) -> Option<usize> {
        match self.protocol {
            TCP => Some(16),
            UDP => Some(6),
            _ => None,
        }
    }

    /// Finishes the checksum of a whole TCP segment or UDP datagram whose sender left it; whether it was left.
    ///
    /// Such a sender has put the sum of the pseudo header there. A finished checksum that happens to have this value comes
    /// out as it went in. UDP's 0 for none (RFC 768, RFC 6935) is no such sum.
    #[inline(always)]
    pub fn finish_checksum(self, segment: &mut [u8]) -> bool {
        let Some(place) = self.place() else {
            return false;
        };
        let left = self.has_left(segment);
        if left {
            complete(segment, place, self.protocol);
        }
        left
    }

    /// Whether the sender of a segment or datagram left its checksum.
    #[inline(always)]
    #[must_use]
    pub fn has_left(self, segment: &[u8]) -> bool {
        let Some(place) = self.place() else {
            return false;
        };
        let sum = checksum::add(&[self.sum, segment.len() as u16]);
        segment.get(place..).and_then(<[u8]>::first_chunk) == Some(&sum.to_be_bytes())
    }
}

/// Completes a checksum whose field holds what the pseudo header would add.
#[inline(never)]
fn complete(segment: &mut [u8], place: usize, protocol: u8) {
    let sum = match !checksum::sum(segment) {
        // As a UDP checksum 0 means none (RFC 768).
        0 if protocol == UDP => 0xffff,
        sum => sum,
    };
    if let Some(field) = segment.get_mut(place..place + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

/// Writes two bytes that may lie across words of the checksum.
fn lower(segment: &mut [u8], place: usize, value: u16) -> Option<()> {
    const CHECKSUM: usize = 16;
    let first = place & !1;
    let word = |segment: &[u8], at: usize| Some(u16::from_be_bytes(*segment.get(at..)?.first_chunk()?));
    let words = if place == first { 1 } else { 2 };
    let sum_of = |segment: &[u8]| {
        let all = (0..words).map(|number| word(segment, first + 2 * number));
        all.map(|word| word.map(u32::from)).sum::<Option<u32>>()
    };
    let before = sum_of(segment)?;
    segment
        .get_mut(place..place + 2)?
        .copy_from_slice(&value.to_be_bytes());
    let sum = checksum::update(word(segment, CHECKSUM)?, before, sum_of(segment)?);
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

    /// The sum of 16-bit words over pseudo header and segment, as RFC 9293 3.1 and RFC 8200 8.1 draw them.
    fn reference(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
        let octets = |address| match address {
            IpAddr::V4(address) => std::net::Ipv4Addr::octets(&address).to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let length = (segment.len() as u32).to_be_bytes();
        let mut bytes = [
            &octets(source)[..],
            &octets(destination),
            &length,
            &[0, 0, 0, protocol],
        ]
        .concat();
        bytes.extend(segment);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        let mut total: u32 = bytes
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        prop_oneof![
            any::<([u8; 4], [u8; 4])>().prop_map(|(source, destination)| (source.into(), destination.into())),
            any::<([u8; 16], [u8; 16])>()
                .prop_map(|(source, destination)| (source.into(), destination.into())),
        ]
    }

    proptest! {
        /// What the sum comes to is forced to every value by two bytes of payload, 0 and 0xffff among them.
        #[test]
        fn a_checksum_is_finished_or_left(
            (source, destination) in addresses(), is_tcp: bool, mut segment in prop::collection::vec(any::<u8>(), 22..80),
            wanted in prop_oneof![Just(None), Just(Some(0)), Just(Some(0xffffu16)), any::<u16>().prop_map(Some)],
        ) {
            let (protocol, place) = if is_tcp { (TCP, 16) } else { (UDP, 6) };
            segment[place..place + 2].fill(0);
            if let Some(wanted) = wanted {
                segment[20..22].fill(0);
                let rest = reference(source, destination, protocol, &segment);
                segment[20..22].copy_from_slice(&checksum::add(&[wanted, !rest]).to_be_bytes());
            }
            let right = match !reference(source, destination, protocol, &segment) {
                0 if protocol == UDP => 0xffff,
                sum => sum,
            };
            let pseudo = reference(source, destination, protocol, &[]);
            let begun = checksum::add(&[pseudo, segment.len() as u16]);
            let mut finished = segment.clone();
            finished[place..place + 2].copy_from_slice(&right.to_be_bytes());
            let mut unfinished = segment.clone();
            unfinished[place..place + 2].copy_from_slice(&begun.to_be_bytes());
            prop_assert!(PseudoHeader::new(source, destination, protocol).finish_checksum(&mut unfinished));
            prop_assert_eq!(&unfinished, &finished);
            let mut again = finished.clone();
            prop_assert_eq!(PseudoHeader::new(source, destination, protocol).finish_checksum(&mut again), right == begun);
            prop_assert_eq!(again, finished);
            // None: not UDP's either.
            let mut none = segment.clone();
            prop_assert!(!PseudoHeader::new(source, destination, protocol).finish_checksum(&mut none));
            prop_assert_eq!(none, segment);
        }

        #[test]
        fn any_bytes_are_finished_or_left(
            (source, destination) in addresses(), protocol: u8, mut bytes in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let before = bytes.clone();
            if !PseudoHeader::new(source, destination, protocol).finish_checksum(&mut bytes) {
                prop_assert_eq!(bytes, before);
            }
        }

        #[test]
        fn any_bytes_are_clamped_or_left(mut bytes in prop::collection::vec(any::<u8>(), 0..70), most in any::<u16>()) {
            let before = bytes.clone();
            if !clamp_mss(&mut bytes, most) {
                prop_assert_eq!(bytes, before);
            }
        }
    }
}
