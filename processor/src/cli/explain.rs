//! `guestseal explain`: which rule a packet meets, and why.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use guestseal_rules::containers::{Changes, Containers};
use guestseal_rules::explain::explain;
use guestseal_rules::facts::{Facts, Party, Ports};
use guestseal_rules::load::load_policy;
use guestseal_rules::model::{GuestIndex, GuestPort, NetworkIndex, Policy};

use crate::control::config::{ConfigError, HostConfig, read};
use crate::control::guests::{now, replay};
use crate::control::journal::Journal;
use crate::wire::{ethernet, icmp, transport};

use super::Failure;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  guestseal explain --policy policy.yaml --from web --to db --protocol tcp --to-port 5432 --syn\n  \
                        guestseal explain --policy policy.yaml --network blue --from 10.1.0.1 --to 10.1.0.2 --protocol udp --to-port 53 --json\n  \
                        guestseal explain --config host.yaml --from web --to db --protocol tcp --to-port 22"
)]
pub(super) struct Explain {
    /// Policy files, in order: as if nothing had happened to any guest
    #[arg(long, required_unless_present = "config", num_args = 1.., value_name = "FILE")]
    policy: Vec<PathBuf>,
    /// The host's configuration: with what has happened to its guests until now
    #[arg(long, conflicts_with = "policy", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The logical network, if the guests are in several
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// Who sends: a guest's id, or an address
    #[arg(long, value_name = "GUEST|ADDRESS")]
    from: String,
    /// Who receives: a guest's id, or an address
    #[arg(long, value_name = "GUEST|ADDRESS")]
    to: String,
    /// tcp, udp, sctp, icmp, icmpv6, arp, or a number
    #[arg(long, default_value = "tcp", value_name = "PROTOCOL")]
    protocol: String,
    /// Port of the sender
    #[arg(long, default_value_t = 49152, value_name = "PORT")]
    from_port: u16,
    /// Port of the receiver
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    to_port: u16,
    /// ICMP type
    #[arg(long, default_value_t = 8, value_name = "N")]
    icmp_type: u8,
    /// ICMP code
    #[arg(long, default_value_t = 0, value_name = "N")]
    icmp_code: u8,
    /// Differentiated services code point
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(..64), value_name = "N")]
    dscp: u8,
    /// VLAN of the frame; untagged without it
    #[arg(long, value_parser = clap::value_parser!(u16).range(..4095), value_name = "N")]
    vlan: Option<u16>,
    /// The TCP segment opens a connection (SYN without ACK)
    #[arg(long)]
    syn: bool,
    /// The packet is a later fragment
    #[arg(long)]
    fragment: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn run(self) -> Result<(), Failure> {
        let containers = match &self.config {
            Some(path) => {
                let config = HostConfig::load_offline(path)?;
                let mut containers = replay(&config.policy, &Journal::read(&config.state_directory)?);
                containers.advance(now(), &mut Changes::default());
                containers
            }
            None => {
                let sources = self
                    .policy
                    .iter()
                    .map(|path| read(path))
                    .collect::<Result<Vec<_>, _>>()?;
                Containers::new(Arc::new(load_policy(&sources).map_err(ConfigError::from)?), now())
            }
        };
        let facts = self.facts(containers.policy())?;
        let explanation = explain(&containers.world(), &facts, &containers);
        if self.json {
            println!("{}", serde_json::to_string_pretty(&explanation)?);
        } else {
            println!("{explanation}");
        }
        Ok(())
    }

    fn facts(&self, policy: &Policy) -> Result<Facts, Failure> {
        let wanted = match &self.network {
            Some(name) => Some(
                policy
                    .network(name)
                    .ok_or_else(|| format!("no network \"{name}\" is declared"))?,
            ),
            None => None,
        };
        let (from, from_network) = party(policy, &self.from, wanted, None)?;
        let family = from.address.map(|address| address.is_ipv4());
        let (to, to_network) = party(policy, &self.to, wanted.or(from_network), family)?;
        let network = wanted
            .or(from_network)
            .or(to_network)
            .ok_or("the network is not known from the guests or addresses: say --network")?;
        let is_arp = self.protocol == "arp";
        let protocol = match self.protocol.as_str() {
            "arp" => None,
            "tcp" => Some(transport::TCP),
            "udp" => Some(transport::UDP),
            "sctp" => Some(transport::SCTP),
            "icmp" => Some(icmp::ICMP),
            "icmpv6" => Some(icmp::ICMPV6),
            number => Some(number.parse().map_err(|_| {
                format!("\"{number}\" is no protocol: expected tcp, udp, sctp, icmp, icmpv6, arp or a number")
            })?),
        };
        let is_ip4 = from
            .address
            .or(to.address)
            .is_none_or(|address| address.is_ipv4());
        let has_ports = protocol.is_some_and(|protocol| transport::minimum_header(protocol).is_some());
        Ok(Facts {
            network,
            ethertype: match (is_arp, is_ip4) {
                (true, _) => ethernet::ARP,
                (false, true) => ethernet::IPV4,
                (false, false) => ethernet::IPV6,
            },
            vlan: self.vlan,
            protocol,
            ports: match (self.fragment, has_ports) {
                (true, _) => Ports::Unreadable,
                (false, true) => Ports::Pair {
                    source: self.from_port,
                    destination: self.to_port,
                },
                (false, false) => Ports::None,
            },
            icmp: matches!(protocol, Some(icmp::ICMP | icmp::ICMPV6))
                .then_some((self.icmp_type, self.icmp_code)),
            dscp: self.dscp,
            opening: self.syn && protocol == Some(transport::TCP),
            source: if is_arp {
                Party {
                    address: None,
                    ..from
                }
            } else {
                from
            },
            destination: if is_arp { Party { address: None, ..to } } else { to },
        })
    }
}

/// A guest by id, with its first address of the wanted family, or an address, with the guest that has it.
fn party(
    policy: &Policy,
    text: &str,
    network: Option<NetworkIndex>,
    ip4: Option<bool>,
) -> Result<(Party, Option<NetworkIndex>), Failure> {
    let in_network = |port: &&GuestPort| network.is_none_or(|network| port.network == network);
    if let Some(guest) = policy.guest(text) {
        let port = policy
            .ports
            .iter()
            .filter(in_network)
            .find(|port| port.guest == guest);
        let port = port.ok_or_else(|| format!("guest \"{text}\" has no port in this network"))?;
        let address = port
            .addresses
            .iter()
            .find(|address| ip4.is_none_or(|ip4| address.is_ipv4() == ip4));
        return Ok((
            Party {
                guest: Some(guest),
                address: address.copied(),
            },
            Some(port.network),
        ));
    }
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("\"{text}\" is neither a declared guest nor an address"))?;
    let port = policy
        .ports
        .iter()
        .filter(in_network)
        .find(|port| port.addresses.contains(&address));
    let guest: Option<GuestIndex> = port.map(|port| port.guest);
    Ok((
        Party {
            guest,
            address: Some(address),
        },
        port.map(|port| port.network),
    ))
}
