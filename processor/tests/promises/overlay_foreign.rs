//! Overlay datagrams as other implementations, or attackers, write them: sealed by another cipher's hand, with whatever header.

use aes_gcm::aead::{AeadInOut, inout::InOutBuf};
use aes_gcm::{Aes256Gcm, KeyInit};
use guestseal::path::outcome::DropReason;
use guestseal::wire::{esp, geneve, vxlan};
use guestseal_rules::model::Policy;
use proptest::prelude::*;

use crate::frames::*;
use crate::host::{Host, Options, host_mac, keymat, overlay_with, sas};

pub(crate) const UDP_HEADER: usize = 8;
pub(crate) const OVERLAY_HEADER: usize = 8;
/// The hosts' addresses in the example, of both families.
pub(crate) const OUTER: [[&str; 2]; 2] = [["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]];

/// An overlay's header as another implementation, or an attacker, may write it, with the datagram around it.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) port: u16,
    pub(crate) first: u8,
    pub(crate) flags: u8,
    pub(crate) protocol: u16,
    pub(crate) vni: u32,
    pub(crate) reserved: u8,
    pub(crate) options: Vec<u8>,
    /// What the UDP header says of its length besides the truth.
    pub(crate) longer: i16,
    /// Bytes behind the datagram's end.
    pub(crate) behind: usize,
}

impl Written {
    pub(crate) fn geneve(vni: u32, options: Vec<u8>) -> Self {
        Self {
            port: geneve::PORT,
            first: (options.len() / 4) as u8,
            flags: 0,
            protocol: 0x6558,
            vni,
            reserved: 0,
            options,
            longer: 0,
            behind: 0,
        }
    }

    pub(crate) fn vxlan(vni: u32) -> Self {
        Self {
            port: vxlan::PORT,
            first: 8,
            protocol: 0,
            ..Self::geneve(vni, Vec::new())
        }
    }

    pub(crate) fn datagram(&self, frame: &[u8]) -> Vec<u8> {
        let mut payload = vec![self.first, self.flags];
        payload.extend(self.protocol.to_be_bytes());
        payload.extend((self.vni << 8 | u32::from(self.reserved)).to_be_bytes());
        payload.extend(&self.options);
        payload.extend(frame);
        let mut datagram = udp(0xc001, self.port, &payload);
        let length = (datagram.len() as u16).wrapping_add_signed(self.longer);
        datagram[4..6].copy_from_slice(&length.to_be_bytes());
        datagram.resize(datagram.len() + self.behind, 0);
        datagram
    }
}

/// A datagram in ESP by another implementation than the path's.
pub(crate) fn sealed(spi: u32, sequence: u64, datagram: &[u8]) -> Vec<u8> {
    sealed_as(UDP, spi, sequence, datagram)
}

/// What says that it is of a protocol: AES-256-GCM with extended sequence numbers.
pub(crate) fn sealed_as(protocol: u8, spi: u32, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let (key, salt) = keymat(spi, 32);
    let mut text = payload.to_vec();
    let padding = esp::padding(text.len()) as u8;
    text.extend(1..=padding);
    text.extend([padding, protocol]);
    let iv = sequence.to_be_bytes();
    let nonce: [u8; 12] = [&salt.0[..], &iv].concat().try_into().unwrap();
    let additional = [&spi.to_be_bytes()[..], &sequence.to_be_bytes()].concat();
    let cipher = Aes256Gcm::new_from_slice(&key).unwrap();
    let buffer = InOutBuf::from(&mut text[..]);
    let tag = cipher
        .encrypt_inout_detached((&nonce).into(), &additional, buffer)
        .unwrap();
    [
        &spi.to_be_bytes()[..],
        &sequence.to_be_bytes()[4..],
        &iv,
        &text,
        &tag,
    ]
    .concat()
}

/// Between the hosts, from this one to the other.
pub(crate) fn on_the_way(from: usize, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [source, destination] = [OUTER[0][from], OUTER[0][1 - from]].map(|address| address.parse().unwrap());
    let (ethertype, packet) = ip(source, destination, protocol, payload);
    frame(host_mac(1 - from).0, host_mac(from).0, ethertype, &packet)
}

/// The SPI of the key that a network's guests are sealed under, from this host to the other.
pub(crate) fn spi_of(policy: &Policy, key: &str, from: usize) -> u32 {
    let all = sas(policy).into_iter();
    let mut found = all.filter(|sa| policy.keys[sa.key.index()].id == key && sa.from == from);
    found.next().expect("an SA of the example").spi
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// RFC 7348 5, RFC 8926 3.4: reserved bits are ignored, options that need not be understood are skipped, however many.
    #[test]
    fn what_others_write_around_a_frame_is_taken_off(
        is_geneve in any::<bool>(),
        words in 0..=63usize,
        noise in prop_oneof![Just((0, 0, 0)), any::<(u8, u8, u8)>()],
        length in 0..1000usize,
        behind in 0..4usize,
    ) {
        let kind = if is_geneve { "geneve" } else { "vxlan" };
        let policy = overlay_with("type: vxlan", &format!("type: {kind}"));
        let mut host = Host::new(&policy, 0, &Options::default());
        let (reserved, flags, option) = noise;
        let written = if is_geneve {
            let options = vec![option; words * 4];
            Written { flags: flags & 0x3f, reserved, behind, ..Written::geneve(7001, options) }
        } else {
            Written { first: 8 | flags, flags, protocol: u16::from(option), reserved, behind, ..Written::vxlan(7001) }
        };
        let data: Vec<u8> = (0..length).map(|place| place as u8).collect();
        for (sequence, port) in [(1, 53), (2, 4001)] {
            let frame = between(BLUE2, BLUE1, false, UDP, &udp(4000, port, &data));
            let datagram = written.datagram(&frame);
            let packet = match port {
                53 => on_the_way(1, UDP, &datagram),
                _ => on_the_way(1, esp::ESP, &sealed(spi_of(&policy, "blue-any", 1), sequence, &datagram)),
            };
            host.wire_brings(0, &packet);
            prop_assert_eq!(host.at_guest(BLUE1), [&frame[..]], "port {}: {:?}", port, host.outcomes());
            // Options beyond the datagram's end.
            if is_geneve && length < 200 {
                let cut = Written { first: 63, options: Vec::new(), ..written.clone() }.datagram(&frame);
                let packet = match port {
                    53 => on_the_way(1, UDP, &cut),
                    _ => on_the_way(1, esp::ESP, &sealed(spi_of(&policy, "blue-any", 1), sequence + 10, &cut)),
                };
                let before = host.dropped(DropReason::BadEncapsulation);
                host.wire_brings(0, &packet);
                prop_assert!(host.at_guest(BLUE1).is_empty() && host.dropped(DropReason::BadEncapsulation) == before + 1);
            }
        }
        host.assert_accounted();
    }
}
