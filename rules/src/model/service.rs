//! Services: names for protocols and ports.

use std::ops::RangeInclusive;

use super::Place;

/// A protocol and ports of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolPorts {
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Ports at the server's side; empty means any, or none.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// A named set of protocols and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// What it is; never empty.
    pub matches: Vec<ProtocolPorts>,
    /// Where it is declared; nowhere if it is built in.
    pub place: Option<Place>,
    /// Whether a rule names it.
    pub used: bool,
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Protocols, each with its ports.
type Matches = &'static [(u8, &'static [u16])];

/// The usual services, by the names and numbers that IANA registered. A policy may declare one of these names anew.
const USUAL: &[(&str, Matches)] = &[
    ("dhcp", &[(UDP, &[67, 68])]),
    ("dhcpv6", &[(UDP, &[546, 547])]),
    ("dns", &[(UDP, &[53]), (TCP, &[53])]),
    ("dns-over-tls", &[(TCP, &[853]), (UDP, &[853])]),
    ("ftp", &[(TCP, &[20, 21])]),
    ("http", &[(TCP, &[80])]),
    ("https", &[(TCP, &[443]), (UDP, &[443])]),
    ("imap", &[(TCP, &[143])]),
    ("imaps", &[(TCP, &[993])]),
    ("iscsi", &[(TCP, &[3260])]),
    ("kerberos", &[(TCP, &[88]), (UDP, &[88])]),
    ("ldap", &[(TCP, &[389]), (UDP, &[389])]),
    ("ldaps", &[(TCP, &[636])]),
    ("mysql", &[(TCP, &[3306])]),
    ("nfs", &[(TCP, &[2049]), (UDP, &[2049])]),
    ("ntp", &[(UDP, &[123])]),
    ("pop3", &[(TCP, &[110])]),
    ("pop3s", &[(TCP, &[995])]),
    ("postgresql", &[(TCP, &[5432])]),
    ("rdp", &[(TCP, &[3389]), (UDP, &[3389])]),
    ("smb", &[(TCP, &[445])]),
    ("smtp", &[(TCP, &[25])]),
    ("snmp", &[(UDP, &[161, 162])]),
    ("ssh", &[(TCP, &[22])]),
    ("submission", &[(TCP, &[587, 465])]),
    ("syslog", &[(UDP, &[514])]),
    ("telnet", &[(TCP, &[23])]),
    ("vnc", &[(TCP, &[5900])]),
];

/// The services that need no declaration.
#[must_use]
pub fn built_in() -> Vec<Service> {
    USUAL
        .iter()
        .map(|(name, matches)| Service {
            name: (*name).to_owned(),
            place: None,
            used: false,
            matches: matches
                .iter()
                .map(|(protocol, ports)| ProtocolPorts {
                    protocol: *protocol,
                    ports: ports.iter().map(|port| *port..=*port).collect(),
                })
                .collect(),
        })
        .collect()
}
