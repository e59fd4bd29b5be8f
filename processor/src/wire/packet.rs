//! One pass over a frame: everything that guards and rules may ask about it, or the reason why it is no packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::arp;
use super::checksum;
use super::esp;
use super::ethernet::{self, MacAddress};
use super::extension;
use super::icmp;
use super::ip4;
use super::ip6;
use super::transport::{self, TCP};

/// Why a frame is no packet.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It ends before a header that it announces.
    Truncated,
    /// More than two VLAN tags.
    Vlan,
    /// IP version, header length, total length or checksum.
    Ip,
    /// IPv6 extension headers.
    Extension,
    /// A fragment that could hide a header (RFC 1858, RFC 5722).
    Fragment,
    /// A transport header.
    Transport,
}

/// What the frame carries.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum L3 {
    /// ARP for Ethernet and IPv4.
    Arp {
        /// MAC that the sender claims.
        sender_mac: MacAddress,
        /// Address that the sender claims.
        sender_ip: Ipv4Addr,
        /// Address asked for or answered to.
        target_ip: Ipv4Addr,
    },
    /// IPv4 or IPv6.
    Ip,
    /// Anything else.
    Other,
}

/// Which part of a datagram the packet is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The first fragment: it has the transport header.
    First,
    /// A later fragment: it has no ports.
    NonFirst,
}

/// How most frames begin.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Start {
    ethernet: ethernet::Header,
    ip: ip4::Header,
    source_port: U16,
    destination_port: U16,
}

/// Where the flags of TCP stand, counted from behind its ports.
const TCP_FLAGS_BEHIND_PORTS: usize = 9;

/// A frame of the usual form, read in one straight run: untagged, a protocol with ports or ESP in a whole IPv4 packet without
/// options, in order.
#[derive(Copy, Clone)]
pub struct Usual<'a> {
    start: &'a Start,
    ports: Option<(u16, u16)>,
    tcp_flags: u8,
    end: u16,
}

impl<'a> Usual<'a> {
    /// Where the headers of Ethernet and IP end.
    pub const HEADERS: usize = ethernet::HEADER + ip4::HEADER;
    /// Where DSCP and ECN stand in them.
    pub const TRAFFIC_CLASS: usize = ethernet::HEADER + 1;

    /// `None` says nothing about a frame.
    #[inline(always)]
    #[must_use]
    pub fn of(frame: &'a [u8]) -> Option<Self> {
        let (start, _) = Start::ref_from_prefix(frame).ok()?;
        let ip = &start.ip;
        if start.ethernet.ethertype.get() != ethernet::IPV4
            || ip.version_length != 0x45
            || ip.fragment.get() & (ip4::OFFSET | ip4::MORE_FRAGMENTS) != 0
        {
            return None;
        }
        Self::again(frame, ip.protocol)
    }

    /// The same of a frame whose EtherType, version, header length and fragment fields are those of one that was of the usual
    /// form, and whose protocol is this one: asks only what else may differ.
    #[inline(always)]
    #[must_use]
    pub fn again(frame: &'a [u8], protocol: u8) -> Option<Self> {
        let (start, rest) = Start::ref_from_prefix(frame).ok()?;
        let ip = &start.ip;
        let total = usize::from(ip.total_length.get());
        let end = ethernet::HEADER + total;
        let ports = Some((start.source_port.get(), start.destination_port.get()));
        let (least, ports) = match transport::minimum_header(protocol) {
            Some(least) => (least, ports),
            // Its own header is read when its SA is looked for.
            None if protocol == esp::ESP => (0, None),
            None => return None,
        };
        let header = <&[u8; ip4::HEADER]>::try_from(ip.as_bytes()).ok()?;
        let tcp_flags = match (protocol, rest.get(TCP_FLAGS_BEHIND_PORTS)) {
            (TCP, Some(flags)) => *flags,
            (TCP, None) => return None,
            _ => 0,
        };
        if total < ip4::HEADER + least || end > frame.len() || !checksum::is_right(header) {
            return None;
        }
        Some(Self {
            start,
            ports,
            tcp_flags,
            end: end as u16,
        })
    }

    /// The same of a frame that this said of a moment ago, and that it ends there; its protocol has ports, and it opens no TCP
    /// connection. Asks nothing again.
    #[inline(always)]
    #[must_use]
    pub fn known(frame: &'a [u8], end: u16) -> Option<Self> {
        let (start, _) = Start::ref_from_prefix(frame).ok()?;
        Some(Self {
            start,
            ports: Some((start.source_port.get(), start.destination_port.get())),
            tcp_flags: 0,
            end,
        })
    }

    /// Flags of TCP; 0 if it is not TCP.
    #[inline(always)]
    #[must_use]
    pub fn tcp_flags(&self) -> u8 {
        self.tcp_flags
    }

    /// Where the packet ends.
    #[inline(always)]
    #[must_use]
    pub fn end(&self) -> u16 {
        self.end
    }

    /// The traffic class: DSCP and ECN.
    #[inline(always)]
    #[must_use]
    pub fn traffic_class(&self) -> u8 {
        self.start.ip.traffic_class
    }

    /// Writes what was read over an earlier packet.
    ///
    /// Field by field: what is put together elsewhere from small pieces and then moved in large ones is waited for (a store
    /// that is not forwarded), which took more than half of the time.
    #[inline(always)]
    pub fn write(&self, packet: &mut Packet) {
        let ip = &self.start.ip;
        packet.destination_mac = self.start.ethernet.destination;
        packet.source_mac = self.start.ethernet.source;
        packet.vlan = None;
        packet.ethertype = ethernet::IPV4;
        packet.l3 = L3::Ip;
        packet.source = IpAddr::V4(ip.source.into());
        packet.destination = IpAddr::V4(ip.destination.into());
        packet.protocol = ip.protocol;
        packet.dscp = ip.traffic_class >> 2;
        packet.traffic_class = ip.traffic_class;
        packet.fragment = Fragment::Whole;
        packet.ports = self.ports;
        packet.tcp_flags = self.tcp_flags;
        packet.icmp = None;
        packet.nd_target = None;
        packet.nd_link_layer = None;
        packet.l3_offset = ethernet::HEADER as u16;
        packet.l4_offset = Self::HEADERS as u16;
        packet.end = self.end;
        packet.has_extensions = false;
    }
}

/// What was read from a frame. Offsets are bytes from the frame's start.
///
/// Aligned to what a move of it loads and stores at once: then each load finds all of its bytes in one store before it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(align(16))]
pub struct Packet {
    /// To whom the frame is.
    pub destination_mac: MacAddress,
    /// From whom it says it is.
    pub source_mac: MacAddress,
    /// The outermost VLAN identifier, if tagged.
    pub vlan: Option<u16>,
    /// What the frame carries, behind any tags.
    pub ethertype: u16,
    /// The same, as far as it is understood.
    pub l3: L3,
    /// Source address; unspecified if not IP.
    pub source: IpAddr,
    /// Destination address; unspecified if not IP.
    pub destination: IpAddr,
    /// Upper-layer protocol; 0 if not IP.
    pub protocol: u8,
    /// Differentiated services code point, 0..=63.
    pub dscp: u8,
    /// Traffic class: DSCP and ECN.
    pub traffic_class: u8,
    /// Part of the datagram.
    pub fragment: Fragment,
    /// Source and destination port, where the protocol has them and they are here.
    pub ports: Option<(u16, u16)>,
    /// TCP flags; 0 if not TCP.
    pub tcp_flags: u8,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    /// The target of a neighbour solicitation or advertisement.
    pub nd_target: Option<Ipv6Addr>,
    /// The link-layer address in its options.
    pub nd_link_layer: Option<MacAddress>,
    /// Where the IP header (or other payload of Ethernet) begins.
    pub l3_offset: u16,
    /// Where the upper-layer header begins.
    pub l4_offset: u16,
    /// Where the packet ends; what follows is Ethernet padding.
    pub end: u16,
    /// Whether the IPv6 packet has extension headers.
    pub has_extensions: bool,
}

impl Packet {
    /// What stands for a frame that could not be read.
    pub const EMPTY: Packet = Packet {
        destination_mac: MacAddress([0; 6]),
        source_mac: MacAddress([0; 6]),
        vlan: None,
        ethertype: 0,
        l3: L3::Other,
        source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        destination: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        protocol: 0,
        dscp: 0,
        traffic_class: 0,
        fragment: Fragment::Whole,
        ports: None,
        tcp_flags: 0,
        icmp: None,
        nd_target: None,
        nd_link_layer: None,
        l3_offset: 0,
        l4_offset: 0,
        end: 0,
        has_extensions: false,
    };

    /// Reads a frame.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn parse(frame: &[u8]) -> Result<Packet, Malformed> {
        let mut packet = Packet::EMPTY;
        packet.read(frame)?;
        Ok(packet)
    }

    /// Reads a frame over an earlier one, in place: a packet is larger than what moves at no cost.
    ///
    /// # Errors
    /// See [`Malformed`]: then the packet is not to be used.
    #[inline(always)]
    pub fn read(&mut self, frame: &[u8]) -> Result<(), Malformed> {
        if self.read_usual(frame) {
            Ok(())
        } else {
            self.read_any(frame)
        }
    }

    #[inline(always)]
    fn read_usual(&mut self, frame: &[u8]) -> bool {
        match Usual::of(frame) {
            Some(usual) => {
                usual.write(self);
                true
            }
            None => false,
        }
    }

    /// Makes of an IP packet without extension headers, whose payload was ESP, the packet that was sealed in transport mode: the
    /// headers stay what they are, `payload` is what `protocol` says.
    ///
    /// So the header that was read before is not read again: it was just written in small pieces, and a load of several of
    /// them waits until they are in the cache.
    ///
    /// # Errors
    /// See [`Malformed`]: then the packet is not to be used.
    #[inline]
    pub fn unwrapped(&mut self, protocol: u8, payload: &[u8]) -> Result<(), Malformed> {
        let start = self.l4_offset;
        if self.ethertype == ethernet::IPV6 {
            return self.parse_chain(start, protocol, payload);
        }
        self.protocol = protocol;
        self.end = start + payload.len() as u16;
        self.parse_transport(payload, 0)
    }

    #[inline(never)]
    fn read_any(&mut self, frame: &[u8]) -> Result<(), Malformed> {
        let (header, mut rest) =
            ethernet::Header::ref_from_prefix(frame).map_err(|_| Malformed::Truncated)?;
        let mut ethertype = header.ethertype.get();
        let mut offset = ethernet::HEADER;
        let mut vlan = None;
        while matches!(ethertype, ethernet::VLAN | ethernet::SERVICE_VLAN) {
            if offset == ethernet::HEADER + 2 * ethernet::TAG {
                return Err(Malformed::Vlan);
            }
            let (tag, behind) = ethernet::VlanTag::ref_from_prefix(rest).map_err(|_| Malformed::Truncated)?;
            vlan = vlan.or(Some(tag.control.get() & 0x0fff));
            ethertype = tag.ethertype.get();
            offset += ethernet::TAG;
            rest = behind;
        }
        *self = Packet {
            destination_mac: header.destination,
            source_mac: header.source,
            vlan,
            ethertype,
            l3_offset: offset as u16,
            l4_offset: offset as u16,
            end: u16::try_from(frame.len()).map_err(|_| Malformed::Truncated)?,
            ..Packet::EMPTY
        };
        match ethertype {
            ethernet::IPV4 => self.parse_ip4(rest)?,
            ethernet::IPV6 => self.parse_ip6(rest)?,
            ethernet::ARP => {
                let message = arp::Message::parse(rest).ok_or(Malformed::Truncated)?;
                self.l3 = L3::Arp {
                    sender_mac: message.sender_mac,
                    sender_ip: message.sender_ip.into(),
                    target_ip: message.target_ip.into(),
                };
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the frame is for a group: broadcast or multicast.
    #[inline]
    #[must_use]
    pub fn is_group(&self) -> bool {
        self.destination_mac.is_group()
    }

    #[inline]
    fn parse_ip4(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let (header, _) = ip4::Header::ref_from_prefix(bytes).map_err(|_| Malformed::Truncated)?;
        let header_length = usize::from(header.version_length & 0x0f) * 4;
        let total = usize::from(header.total_length.get());
        if header.version_length >> 4 != 4 || header_length < ip4::HEADER || total < header_length {
            return Err(Malformed::Ip);
        }
        let packet = bytes.get(..total).ok_or(Malformed::Truncated)?;
        let (whole_header, payload) = packet
            .split_at_checked(header_length)
            .ok_or(Malformed::Truncated)?;
        if checksum::sum(whole_header) != 0xffff {
            return Err(Malformed::Ip);
        }
        let field = header.fragment.get();
        let fragment_offset = (field & ip4::OFFSET) * 8;
        self.l3 = L3::Ip;
        self.source = IpAddr::V4(header.source.into());
        self.destination = IpAddr::V4(header.destination.into());
        self.protocol = header.protocol;
        self.traffic_class = header.traffic_class;
        self.dscp = header.traffic_class >> 2;
        self.fragment = fragment_state(fragment_offset, field & ip4::MORE_FRAGMENTS != 0);
        self.end = self.l3_offset + total as u16;
        self.l4_offset = self.l3_offset + header_length as u16;
        self.parse_transport(payload, fragment_offset)
    }

    #[inline]
    fn parse_ip6(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let (header, rest) = ip6::Header::ref_from_prefix(bytes).map_err(|_| Malformed::Truncated)?;
        let word = header.version_class_flow.get();
        if word >> 28 != 6 {
            return Err(Malformed::Ip);
        }
        let payload = rest
            .get(..usize::from(header.payload_length.get()))
            .ok_or(Malformed::Truncated)?;
        self.l3 = L3::Ip;
        self.source = IpAddr::V6(header.source.into());
        self.destination = IpAddr::V6(header.destination.into());
        self.traffic_class = (word >> 20) as u8;
        self.dscp = self.traffic_class >> 2;
        self.parse_chain(self.l3_offset + ip6::HEADER as u16, header.next_header, payload)
    }

    /// Follows extension headers from `start` to the upper-layer protocol.
    #[inline]
    fn parse_chain(&mut self, start: u16, next_header: u8, payload: &[u8]) -> Result<(), Malformed> {
        let chain = extension::walk(next_header, payload)?;
        let upper = payload.get(chain.length..).ok_or(Malformed::Extension)?;
        self.protocol = chain.protocol;
        self.has_extensions = chain.length > 0;
        let offset = chain.fragment.map_or(0, |fragment| fragment.offset);
        self.fragment = match chain.fragment {
            // An atomic fragment is a whole datagram (RFC 6946).
            Some(fragment) => fragment_state(fragment.offset, fragment.more),
            None => Fragment::Whole,
        };
        self.end = start + payload.len() as u16;
        self.l4_offset = start + chain.length as u16;
        self.parse_transport(upper, offset)
    }

    #[inline]
    fn parse_transport(&mut self, payload: &[u8], fragment_offset: u16) -> Result<(), Malformed> {
        let minimum = transport::minimum_header(self.protocol);
        if self.fragment == Fragment::NonFirst {
            // A fragment that overlaps the transport header could rewrite ports or flags that were classified.
            return match minimum {
                Some(minimum) if usize::from(fragment_offset) < minimum => Err(Malformed::Fragment),
                _ => Ok(()),
            };
        }
        if let Some(minimum) = minimum {
            if payload.len() < minimum {
                return Err(if self.fragment == Fragment::First {
                    Malformed::Fragment
                } else {
                    Malformed::Transport
                });
            }
            self.ports = transport::ports(payload);
            if self.protocol == TCP {
                self.tcp_flags = transport::tcp_flags(payload).ok_or(Malformed::Transport)?;
            }
        } else if matches!(self.protocol, icmp::ICMP | icmp::ICMPV6) {
            let [kind, code, ..] = payload else {
                return Err(Malformed::Transport);
            };
            self.icmp = Some((*kind, *code));
            if self.protocol == icmp::ICMPV6
                && matches!(
                    *kind,
                    icmp::NEIGHBOUR_SOLICITATION | icmp::NEIGHBOUR_ADVERTISEMENT
                )
            {
                let neighbour = icmp::neighbour(payload).ok_or(Malformed::Transport)?;
                self.nd_target = Some(neighbour.target);
                self.nd_link_layer = neighbour.link_layer;
            }
        }
        Ok(())
    }
}

#[inline]
fn fragment_state(offset: u16, more: bool) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::NonFirst,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
    const DESTINATION: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);

    fn frame(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        for tag in tags {
            frame.extend(ethernet::VLAN.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn udp4() -> Vec<u8> {
        let mut packet = ip4::outer(SOURCE, DESTINATION, transport::UDP, 0xb8, 20 + 8 + 4).to_vec();
        packet.extend([0x30, 0x39, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
        frame(&[], ethernet::IPV4, &packet)
    }

    fn tcp6() -> Vec<u8> {
        let (source, destination) = ("fd00:1::1".parse().unwrap(), "fd00:1::2".parse().unwrap());
        let mut packet = ip6::outer(source, destination, TCP, 0, 20).to_vec();
        packet.extend([0x30, 0x39, 0, 80]);
        packet.extend([0; 9]);
        packet.push(transport::SYN);
        packet.extend([0; 6]);
        frame(&[], ethernet::IPV6, &packet)
    }

    fn fragment4(field: u16, payload: &[u8], protocol: u8) -> Vec<u8> {
        let mut packet = ip4::outer(SOURCE, DESTINATION, protocol, 0, (20 + payload.len()) as u16).to_vec();
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum::checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(payload);
        frame(&[], ethernet::IPV4, &packet)
    }

    #[test]
    fn reads_udp_over_ipv4_and_cuts_padding() {
        let mut bytes = udp4();
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(
            (packet.source, packet.destination),
            (SOURCE.into(), DESTINATION.into())
        );
        assert_eq!(
            (packet.ports, packet.dscp, packet.l4_offset),
            (Some((12345, 53)), 46, 34)
        );
        let end = bytes.len() as u16;
        bytes.extend([0; 14]);
        assert_eq!(Packet::parse(&bytes).unwrap().end, end);
    }

    #[test]
    fn reads_tcp_over_ipv6() {
        let packet = Packet::parse(&tcp6()).unwrap();
        assert_eq!(
            (packet.ports, packet.tcp_flags, packet.l4_offset),
            (Some((12345, 80)), transport::SYN, 54)
        );
    }

    #[test]
    fn reads_vlan_tags_up_to_two() {
        let inner = &udp4()[14..];
        assert_eq!(
            Packet::parse(&frame(&[0x2064], ethernet::IPV4, inner))
                .unwrap()
                .vlan,
            Some(100)
        );
        assert_eq!(
            Packet::parse(&frame(&[7, 8], ethernet::IPV4, inner))
                .unwrap()
                .vlan,
            Some(7)
        );
        assert_eq!(
            Packet::parse(&frame(&[7, 8, 9], ethernet::IPV4, inner)),
            Err(Malformed::Vlan)
        );
    }

    #[test]
    fn fragments_have_ports_only_in_front() {
        let first = Packet::parse(&fragment4(
            ip4::MORE_FRAGMENTS,
            &[0, 1, 0, 2, 0, 0, 0, 0],
            transport::UDP,
        ))
        .unwrap();
        assert_eq!((first.fragment, first.ports), (Fragment::First, Some((1, 2))));
        let later = Packet::parse(&fragment4(10, &[0, 1, 0, 2, 0, 0, 0, 0], transport::UDP)).unwrap();
        assert_eq!((later.fragment, later.ports), (Fragment::NonFirst, None));
    }

    /// RFC 1858 3: tiny and overlapping fragments hide or rewrite TCP flags.
    #[test]
    fn fragments_that_hide_a_header_are_refused() {
        assert_eq!(
            Packet::parse(&fragment4(ip4::MORE_FRAGMENTS, &[0; 8], TCP)),
            Err(Malformed::Fragment)
        );
        assert_eq!(
            Packet::parse(&fragment4(1, &[0; 8], TCP)),
            Err(Malformed::Fragment)
        );
    }

    #[test]
    fn a_wrong_header_checksum_is_refused() {
        let mut bytes = udp4();
        bytes[22] ^= 1;
        assert_eq!(Packet::parse(&bytes), Err(Malformed::Ip));
    }

    #[test]
    fn every_prefix_is_refused() {
        for whole in [udp4(), tcp6()] {
            for length in 0..whole.len() {
                assert!(
                    Packet::parse(&whole[..length]).is_err(),
                    "{length} bytes of {}",
                    whole.len()
                );
            }
        }
    }

    proptest! {
        #[test]
        fn unwrapped_is_what_is_read_of_the_plain_packet(
            v6: bool,
            tagged: bool,
            // Those whose headers are looked into, and any.
            protocol in prop_oneof![prop::sample::select(vec![0u8, 1, 6, 17, 43, 44, 50, 51, 58, 60, 132]), any::<u8>()],
            payload in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..80),
        ) {
            let tags: &[u16] = if tagged { &[7] } else { &[] };
            let packet = |protocol, payload: &[u8]| {
                let (header, ethertype) = if v6 {
                    let (source, destination) = ("fd00:1::1".parse().unwrap(), "fd00:1::2".parse().unwrap());
                    let header = ip6::outer(source, destination, protocol, 0xb8, payload.len() as u16);
                    (header.to_vec(), ethernet::IPV6)
                } else {
                    let length = (ip4::HEADER + payload.len()) as u16;
                    (ip4::outer(SOURCE, DESTINATION, protocol, 0xb8, length).to_vec(), ethernet::IPV4)
                };
                frame(tags, ethertype, &[&header, payload].concat())
            };
            let mut sealed = Packet::parse(&packet(50, &[0xaa; 100])).unwrap();
            let unwrapped = sealed.unwrapped(protocol, &payload).map(|()| sealed);
            prop_assert_eq!(unwrapped, Packet::parse(&packet(protocol, &payload)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..4u8) {
            if bytes.len() >= 15 {
                let kinds = [ethernet::IPV4, ethernet::IPV6, ethernet::ARP, ethernet::VLAN];
                bytes[12..14].copy_from_slice(&kinds[usize::from(kind)].to_be_bytes());
                bytes[14] = bytes[14] & 0x0f | if kind == 0 { 0x40 } else { 0x60 };
            }
            if let Ok(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.l3_offset <= packet.l4_offset);
                prop_assert!(packet.l4_offset <= packet.end);
                prop_assert!(usize::from(packet.end) <= bytes.len());
            }
        }

        /// Most positions break the form, some a rule of it, some neither.
        #[test]
        fn the_straight_run_reads_what_the_thorough_one_reads(
            position in 0usize..54, byte in any::<u8>(), protocol in 0..5usize, shorter in 0usize..24,
        ) {
            let protocol = [transport::UDP, TCP, transport::SCTP, esp::ESP, 1][protocol];
            let mut frame = fragment4(ip4::DONT_FRAGMENT, &[7; 24], protocol);
            prop_assert_eq!({ Packet::EMPTY }.read_usual(&frame), protocol != 1);
            frame[position] = byte;
            let sum = |frame: &mut Vec<u8>| {
                frame[24..26].fill(0);
                let sum = checksum::checksum(&frame[14..34]);
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
            };
            if byte & 1 == 0 {
                sum(&mut frame);
            }
            frame.truncate(frame.len() - shorter);
            // What was read before leaves nothing behind.
            let before = Packet { vlan: Some(7), icmp: Some((1, 2)), has_extensions: true, ..Packet::EMPTY };
            let (mut straight, mut thorough) = (before, before);
            let read = thorough.read_any(&frame);
            if straight.read_usual(&frame) {
                prop_assert_eq!(read, Ok(()));
                prop_assert_eq!(straight, thorough);
            }
        }

        #[test]
        fn any_damage_to_a_packet_is_read_or_refused(position in 0usize..70, byte in any::<u8>()) {
            for mut whole in [udp4(), tcp6()] {
                if let Some(place) = whole.get_mut(position) {
                    *place = byte;
                }
                let _ = Packet::parse(&whole);
            }
        }
    }
}
