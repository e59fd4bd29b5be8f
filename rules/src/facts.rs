//! What a rule may test of a packet.

use std::net::IpAddr;

use crate::model::{GuestIndex, NetworkIndex, Policy};

/// One packet, as the rules see it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Logical network.
    pub network: NetworkIndex,
    /// EtherType behind any VLAN tags.
    pub ethertype: u16,
    /// VLAN identifier, if tagged.
    pub vlan: Option<u16>,
    /// Upper-layer protocol, if IP.
    pub protocol: Option<u8>,
    /// Ports.
    pub ports: Ports,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    /// Differentiated services code point.
    pub dscp: u8,
    /// A TCP SYN without ACK: it opens a connection, and is no reply.
    pub opening: bool,
    /// Who sends.
    pub source: Party,
    /// Who receives.
    pub destination: Party,
}

impl Facts {
    /// The packet in words: network, addresses or guests, protocol, ports.
    #[must_use]
    pub fn describe(&self, policy: &Policy) -> String {
        let network = policy
            .networks
            .get(self.network.index())
            .map_or("?", |network| &network.name);
        let party = |party: &Party| {
            let guest = party.guest.and_then(|guest| policy.guests.get(guest.index()));
            match (guest, party.address) {
                (Some(guest), Some(address)) => format!("{} ({address})", guest.id),
                (Some(guest), None) => guest.id.clone(),
                (None, Some(address)) => address.to_string(),
                (None, None) => "somebody".to_owned(),
            }
        };
        let kind = match (self.protocol, self.ports, self.icmp) {
            (None, ..) => format!("EtherType {:#06x}", self.ethertype),
            (Some(protocol), Ports::Pair { source, destination }, _) => {
                format!("protocol {protocol}, port {source} to {destination}")
            }
            (Some(protocol), _, Some((kind, code))) => {
                format!("protocol {protocol}, type {kind} code {code}")
            }
            (Some(protocol), Ports::Unreadable, _) => format!("protocol {protocol}, a later fragment"),
            (Some(protocol), ..) => format!("protocol {protocol}"),
        };
        format!(
            "network {network}: {} to {}, {kind}",
            party(&self.source),
            party(&self.destination)
        )
    }
}

/// One side of a packet.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// The guest, if its endpoint is known.
    pub guest: Option<GuestIndex>,
    /// The IP address, if IP.
    pub address: Option<IpAddr>,
}

/// What is known of the ports.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// The protocol has none.
    None,
    /// Both.
    Pair {
        /// Of the sender.
        source: u16,
        /// Of the receiver.
        destination: u16,
    },
    /// A later fragment: they are in another packet.
    Unreadable,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Source, load_policy};

    #[test]
    fn a_packet_in_words() {
        let text = "\
hosts: [{name: h1, address: 192.0.2.1}]
networks: [{name: blue}]
guests:
  - {id: web, host: h1, ports: [{interface: a, network: blue, mac: '02:00:00:00:00:01', addresses: [10.0.0.1]}]}
";
        let (name, text) = ("policy.yaml".into(), text.into());
        let policy = load_policy(&[Source { name, text }]).unwrap();
        let tcp = Facts {
            network: NetworkIndex(0),
            ethertype: 0x0800,
            vlan: None,
            protocol: Some(6),
            ports: Ports::Pair {
                source: 4000,
                destination: 80,
            },
            icmp: None,
            dscp: 0,
            opening: true,
            source: Party {
                guest: Some(GuestIndex(0)),
                address: Some(IpAddr::from([10, 0, 0, 1])),
            },
            destination: Party {
                guest: None,
                address: Some(IpAddr::from([10, 0, 0, 2])),
            },
        };
        let nobody = Party {
            guest: None,
            address: None,
        };
        let cases = [
            (
                tcp,
                "network blue: web (10.0.0.1) to 10.0.0.2, protocol 6, port 4000 to 80",
            ),
            (
                Facts {
                    ports: Ports::Unreadable,
                    ..tcp
                },
                "network blue: web (10.0.0.1) to 10.0.0.2, protocol 6, a later fragment",
            ),
            (
                Facts {
                    protocol: Some(1),
                    ports: Ports::None,
                    icmp: Some((8, 0)),
                    ..tcp
                },
                "network blue: web (10.0.0.1) to 10.0.0.2, protocol 1, type 8 code 0",
            ),
            (
                Facts {
                    network: NetworkIndex(7),
                    ethertype: 0x0806,
                    protocol: None,
                    ports: Ports::None,
                    source: Party {
                        address: None,
                        ..tcp.source
                    },
                    destination: nobody,
                    ..tcp
                },
                "network ?: web to somebody, EtherType 0x0806",
            ),
        ];
        for (facts, words) in cases {
            assert_eq!(facts.describe(&policy), words);
        }
    }
}
