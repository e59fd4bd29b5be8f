//! What a guest of an overlay sends arrives byte for byte: random frames of every length, in every form that an overlay has.

use guestseal::path::outcome::{Outcome, SentAs};
use guestseal::wire::esp;
use guestseal::wire::packet::Packet;
use guestseal_rules::load::{Source, load_policy};
use guestseal_rules::model::Policy;
use proptest::prelude::*;
use proptest::sample::select;

use crate::frames::*;
use crate::host::{Host, Options};
use crate::overlay_foreign::{OUTER, OVERLAY_HEADER, UDP_HEADER};

/// How an overlay's frames travel.
#[derive(Copy, Clone, Debug)]
struct Form {
    kind: &'static str,
    protection: SentAs,
    over_ip6: bool,
    in_udp: bool,
    esn: bool,
}

fn any_form() -> impl Strategy<Value = Form> {
    (
        select(vec!["vxlan", "geneve"]),
        select(vec![SentAs::Encrypted, SentAs::Authenticated, SentAs::Plaintext]),
        any::<[bool; 3]>(),
    )
        .prop_map(|(kind, protection, [over_ip6, in_udp, esn])| Form {
            kind,
            protection,
            over_ip6,
            in_udp,
            esn,
        })
}

impl Form {
    /// The example's networks, with one rule for all that the blue guests send.
    fn policy(&self) -> Policy {
        let action = match self.protection {
            SentAs::Encrypted => "encrypt, key: blue-any",
            SentAs::Authenticated => "authenticate, key: blue-log",
            SentAs::Plaintext => "plaintext",
        };
        let mut text = include_str!("../../../rules/examples/overlay/policy.yaml")
            .replacen("type: vxlan", &format!("type: {}", self.kind), 1)
            .replacen(
                "rules:\n",
                &format!("rules:\n  - {{name: all, from: {{network: blue}}, to: any, action: {action}}}\n"),
                1,
            );
        // Bare packets go between the hosts' first addresses.
        if self.over_ip6 {
            text = text.replacen("192.0.2.1, ", "", 1).replacen("192.0.2.2, ", "", 1);
        }
        let name = "policy.yaml".into();
        load_policy(&[Source { name, text }]).expect("the example's policy is right")
    }

    fn options(&self) -> Options {
        Options {
            tunnel_over_ip6: self.over_ip6,
            in_udp: self.in_udp,
            esn: self.esn,
            leaves_checksums: false,
            ..Options::default()
        }
    }

    /// Bytes of the longest frame that a wire of 1,500 carries.
    fn longest_frame(&self) -> usize {
        let room = 1500 - if self.over_ip6 { 40 } else { 20 };
        let datagram = match self.protection {
            SentAs::Plaintext => room,
            _ if self.in_udp => esp::most_inside(room - UDP_HEADER),
            _ => esp::most_inside(room),
        };
        datagram - UDP_HEADER - OVERLAY_HEADER
    }
}

/// What stands in a frame behind its MACs and tags.
#[derive(Clone, Debug)]
enum Content {
    Other(u16),
    Udp {
        ip6: bool,
        ports: (u16, u16),
    },
    Tcp {
        ip6: bool,
        ports: (u16, u16),
    },
    Echo {
        ip6: bool,
    },
    /// A protocol that has no ports, or whose ports no rule asks for.
    Unknown {
        ip6: bool,
        protocol: u8,
    },
    Fragment {
        offset: u16,
    },
    Options {
        ports: (u16, u16),
    },
}

#[derive(Clone, Debug)]
struct Sent {
    content: Content,
    to: [u8; 6],
    tags: Vec<u16>,
    traffic_class: u8,
    /// Bytes of payload; sizes around the longest that fits are as likely as all others together.
    length: usize,
    seed: u8,
    padding: usize,
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let ports = any::<(u16, u16)>();
    let content = prop_oneof![
        select(vec![0x0600u16, 0x88b5, 0x8847, 0xffff]).prop_map(Content::Other),
        (any::<bool>(), ports).prop_map(|(ip6, ports)| Content::Udp { ip6, ports }),
        (any::<bool>(), any::<(u16, u16)>()).prop_map(|(ip6, ports)| Content::Tcp { ip6, ports }),
        any::<bool>().prop_map(|ip6| Content::Echo { ip6 }),
        (any::<bool>(), select(vec![4u8, 47, 50, 132, 253]))
            .prop_map(|(ip6, protocol)| Content::Unknown { ip6, protocol }),
        (1..8000u16).prop_map(|offset| Content::Fragment { offset }),
        any::<(u16, u16)>().prop_map(|ports| Content::Options { ports }),
    ];
    (
        content,
        select(vec![
            BLUE2.mac,
            BLUE2.mac,
            BROADCAST,
            [0x33, 0x33, 0, 0, 0, 9],
            [1, 0, 0x5e, 0, 0, 9],
        ]),
        prop::collection::vec(any::<u16>(), 0..3),
        any::<u8>(),
        prop_oneof![0..1500usize, 1360..1470usize],
        any::<u8>(),
        select(vec![0usize, 0, 1, 18]),
    )
        .prop_map(|(content, to, tags, traffic_class, length, seed, padding)| Sent {
            content,
            to,
            tags,
            traffic_class,
            length,
            seed,
            padding,
        })
}

impl Sent {
    /// The frame; without the padding, which ends at the host.
    fn frame(&self) -> Vec<u8> {
        let data: Vec<u8> = (0..self.length)
            .map(|place| self.seed.wrapping_add(place as u8))
            .collect();
        let inside =
            |ip6, protocol, payload: &[u8]| ip(BLUE1.address(ip6), BLUE2.address(ip6), protocol, payload);
        let (ethertype, mut packet) = match self.content {
            Content::Other(ethertype) => (ethertype, data),
            Content::Udp { ip6, ports } => inside(ip6, UDP, &udp(ports.0, ports.1, &data)),
            Content::Tcp { ip6, ports } => inside(ip6, TCP, &tcp(ports.0, ports.1, ACK, &data)),
            Content::Echo { ip6: false } => inside(false, 1, &[&[8, 0, 0, 0][..], &data].concat()),
            Content::Echo { ip6: true } => inside(true, 58, &[&[128, 0, 0, 0][..], &data].concat()),
            // Long enough for the header of SCTP and GRE.
            Content::Unknown { ip6, protocol } => inside(ip6, protocol, &[&[0; 16][..], &data].concat()),
            Content::Fragment { offset } => {
                let whole = fragment(BLUE1, BLUE2, UDP, offset, &data);
                (0x0800, whole[14..].to_vec())
            }
            Content::Options { ports } => {
                let options = [UDP, 0, 1, 4, 0, 0, 0, 0];
                inside(true, 60, &[&options[..], &udp(ports.0, ports.1, &data)].concat())
            }
        };
        match ethertype {
            0x0800 => {
                packet[1] = self.traffic_class;
                packet[10..12].fill(0);
                let sum = guestseal::wire::checksum::checksum(&packet[..20]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            0x86dd => {
                packet[0] = 0x60 | self.traffic_class >> 4;
                packet[1] = self.traffic_class << 4;
            }
            _ => {}
        }
        let tags: Vec<u8> = self
            .tags
            .iter()
            .flat_map(|tag| [&[0x81, 0][..], &tag.to_be_bytes()].concat())
            .collect();
        [&self.to[..], &BLUE1.mac, &tags, &ethertype.to_be_bytes(), &packet].concat()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever fits arrives as it was sent, in every form; whatever does not, does not leave.
    #[test]
    fn decapsulation_undoes_encapsulation(form in any_form(), frames in prop::collection::vec(any_sent(), 1..16)) {
        let (policy, options) = (form.policy(), form.options());
        let (mut one, mut two) = (Host::new(&policy, 0, &options), Host::new(&policy, 1, &options));
        for sent in frames {
            let frame = sent.frame();
            // Padding of what is IP ends where it came in.
            let padding = if matches!(sent.content, Content::Other(_)) { 0 } else { sent.padding };
            one.guest_sends(BLUE1, &[&frame[..], &vec![0; padding]].concat());
            let wire = one.on_wire();
            let fits = frame.len() <= form.longest_frame();
            prop_assert_eq!(wire.len(), usize::from(fits), "{:?} of {}: {:?}", sent, frame.len(), one.outcomes());
            for packet in wire {
                let outer = Packet::parse(&packet).expect("a right IP packet");
                prop_assert_eq!(usize::from(outer.end), packet.len());
                let addresses = [outer.source.to_string(), outer.destination.to_string()];
                prop_assert_eq!(addresses, OUTER[usize::from(form.over_ip6)]);
                two.wire_brings(0, &packet);
                prop_assert_eq!(two.at_guest(BLUE2), [&frame[..]], "{:?}: {:?}", sent, two.outcomes());
            }
            // What came back is about its length, and what a group was sent to is for the neighbour.
            one.at_guest(BLUE1);
            one.at_guest(BLUE3);
        }
        prop_assert_eq!(two.count(Outcome::Delivered), one.count(Outcome::Sent(form.protection)));
        one.assert_accounted();
        two.assert_accounted();
    }
}
