//! Files to model: YAML with the place of every value, and every mistake named with what was expected.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};
use serde::de::DeserializeOwned;
use serde_saphyr::{Location, Spanned};

use crate::classify::{Action, Protection};
use crate::model::{
    Cidr, Guest, GuestIndex, GuestPort, Host, HostIndex, Key, Network, NetworkKind, Place, Policy, PortIndex,
    Rule, Selector, Term,
};

mod raw;

use raw::{RawAction, RawRule, RawSelector};

/// A file's name and text.
#[derive(Clone, Debug)]
pub struct Source {
    /// The name to show.
    pub name: String,
    /// The text.
    pub text: String,
}

/// A mistake in a file.
#[derive(Clone, Debug)]
pub struct FileError(Box<Mistake>);

#[derive(Clone, Debug)]
struct Mistake {
    place: Place,
    /// What is wrong, and what was expected.
    message: String,
    /// What may have been meant.
    help: Option<String>,
    span: (usize, usize),
    source: NamedSource<String>,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.place, self.0.message)?;
        self.0.help.as_ref().map_or(Ok(()), |help| write!(f, " ({help})"))
    }
}

impl std::error::Error for FileError {}

impl Diagnostic for FileError {
    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.0.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(std::iter::once(LabeledSpan::new(
            Some("here".into()),
            self.0.span.0,
            self.0.span.1,
        ))))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0
            .help
            .as_ref()
            .map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }
}

/// All mistakes that were found.
#[derive(Clone, Debug)]
pub struct FileErrors(pub Vec<FileError>);

impl fmt::Display for FileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if number > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for FileErrors {}

impl Source {
    /// A mistake at a place of this file.
    #[must_use]
    pub fn error(&self, at: &Location, message: impl Into<String>) -> FileError {
        let known = at.line() > 0;
        let offset = at.span().byte_offset().filter(|_| known).unwrap_or(0) as usize;
        let offset = offset.min(self.text.len());
        let length = at.span().byte_len().filter(|_| known).unwrap_or(0) as usize;
        FileError(Box::new(Mistake {
            place: self.place(at),
            message: message.into(),
            help: None,
            span: (offset, length.min(self.text.len() - offset)),
            source: NamedSource::new(&self.name, self.text.clone()),
        }))
    }

    fn place(&self, at: &Location) -> Place {
        Place {
            file: self.name.clone(),
            line: (at.line() as u32).max(1),
            column: (at.column() as u32).max(1),
        }
    }
}

/// Reads one file as a `T`.
///
/// # Errors
/// The first mistake in it.
pub fn parse<T: DeserializeOwned>(source: &Source) -> Result<T, FileError> {
    serde_saphyr::from_str(&source.text).map_err(|error| {
        let text = error.without_snippet().to_string();
        // The place is said once, in front.
        let message = match text.rfind(" at line ") {
            Some(end) => text[..end].to_owned(),
            None => text,
        };
        let mut error = source.error(&error.location().unwrap_or(Location::UNKNOWN), reworded(message));
        error.0.help = meant(&error.0.message);
        error
    })
}

/// The parser's words in an operator's.
fn reworded(message: String) -> String {
    match message.as_str() {
        "expected sequence start" => "expected a list, such as [one, two]".to_owned(),
        "expected mapping start" => "expected a map, such as {name: value}".to_owned(),
        "expected string scalar" => "expected one word or number".to_owned(),
        "invalid u8" => "expected a number from 0 to 255".to_owned(),
        "invalid bool" => "expected true or false".to_owned(),
        _ => message
            .replace(
                ", set DuplicateKeyPolicy in Options if acceptable",
                ": expected once",
            )
            .replace("unknown variant ", "unknown word "),
    }
}

/// Of ``unknown field `x`, expected one of a, b``: the one that was probably meant.
fn meant(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown ")?;
    let (name, expected) = rest.split_once('`')?.1.split_once("`, expected one of ")?;
    let all: Vec<String> = expected.split(", ").map(str::to_owned).collect();
    nearest(name, &all).map(|near| format!("did you mean \"{near}\"?"))
}

/// Reads policy files; their lists are put together in the files' order.
///
/// # Errors
/// Every mistake that was found.
pub fn load_policy(sources: &[Source]) -> Result<Policy, FileErrors> {
    let mut errors = Vec::new();
    let mut files = Vec::new();
    for source in sources {
        match parse::<raw::RawPolicy>(source) {
            Ok(file) => files.push((source, file)),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() {
        let mut resolver = Resolver {
            policy: Policy::default(),
            errors,
        };
        resolver.resolve(&files);
        if resolver.errors.is_empty() {
            return Ok(resolver.policy);
        }
        errors = resolver.errors;
    }
    Err(FileErrors(errors))
}

struct Resolver {
    policy: Policy,
    errors: Vec<FileError>,
}

impl Resolver {
    fn resolve(&mut self, files: &[(&Source, raw::RawPolicy)]) {
        for (source, file) in files {
            for host in &file.hosts {
                self.host(source, host);
            }
            for network in &file.networks {
                let taken = self.policy.network(&network.name.value).is_some();
                self.named_once(source, "network", &network.name, taken);
                let kind = match network.kind {
                    raw::RawKind::Flat => NetworkKind::Flat,
                };
                self.policy.networks.push(Network {
                    name: network.name.value.clone(),
                    kind,
                });
            }
            for key in &file.keys {
                let taken = self.policy.key(&key.id.value).is_some();
                self.named_once(source, "key", &key.id, taken);
                let place = source.place(&key.id.referenced);
                self.policy.keys.push(Key {
                    id: key.id.value.clone(),
                    suite: key.suite,
                    place,
                });
            }
        }
        for (source, file) in files {
            for guest in &file.guests {
                self.guest(source, guest);
            }
        }
        let mut names = HashMap::new();
        for (source, file) in files {
            for rule in &file.rules {
                if let Some(before) =
                    names.insert(rule.name.value.as_str(), source.place(&rule.name.referenced))
                {
                    let message = format!(
                        "rule \"{}\" is declared twice, first at {before}",
                        rule.name.value
                    );
                    self.errors.push(source.error(&rule.name.referenced, message));
                }
                self.rule(source, rule);
            }
        }
    }

    fn fail(&mut self, source: &Source, at: &Location, message: impl Into<String>) {
        self.errors.push(source.error(at, message));
    }

    fn named_once(&mut self, source: &Source, what: &str, name: &Spanned<String>, taken: bool) {
        if taken {
            self.fail(
                source,
                &name.referenced,
                format!("{what} \"{}\" is declared twice", name.value),
            );
        }
        if name.value.is_empty()
            || name
                .value
                .contains(|c: char| c.is_control() || c.is_whitespace() || c == '/')
        {
            self.fail(
                source,
                &name.referenced,
                format!("the name of a {what} is not empty and has no space or slash"),
            );
        }
    }

    /// A name that something else declares.
    fn known<T>(
        &mut self,
        source: &Source,
        what: &str,
        name: &Spanned<String>,
        found: Option<T>,
        all: impl FnOnce(&Policy) -> Vec<String>,
    ) -> Option<T> {
        if found.is_none() {
            let all = all(&self.policy);
            let mut error = source.error(
                &name.referenced,
                format!("no {what} \"{}\" is declared", name.value),
            );
            error.0.help = nearest(&name.value, &all).map(|near| format!("did you mean \"{near}\"?"));
            self.errors.push(error);
        }
        found
    }

    fn host(&mut self, source: &Source, raw: &raw::RawHost) {
        let taken = self.policy.host(&raw.name.value).is_some();
        self.named_once(source, "host", &raw.name, taken);
        let mut addresses: Vec<IpAddr> = Vec::new();
        for text in raw.address.iter().chain(&raw.addresses) {
            let Some(address) = self.address(source, text) else {
                continue;
            };
            if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                self.fail(
                    source,
                    &text.referenced,
                    "a second address of one family: expected at most one IPv4 and one IPv6",
                );
            }
            if self
                .policy
                .hosts
                .iter()
                .any(|host| host.addresses.contains(&address))
            {
                self.fail(
                    source,
                    &text.referenced,
                    format!("{address} is another host's address too"),
                );
            }
            addresses.push(address);
        }
        if raw.address.is_none() && raw.addresses.is_empty() {
            let message = format!(
                "host \"{}\" has no address: expected address or addresses",
                raw.name.value
            );
            self.fail(source, &raw.name.referenced, message);
        }
        self.policy.hosts.push(Host {
            name: raw.name.value.clone(),
            addresses,
        });
    }

    fn address(&mut self, source: &Source, text: &Spanned<String>) -> Option<IpAddr> {
        let parsed = text.value.parse::<IpAddr>().ok();
        match parsed {
            Some(address) if address.is_multicast() || address.is_unspecified() => {
                self.fail(
                    source,
                    &text.referenced,
                    format!("{address} names no single machine"),
                );
                None
            }
            Some(address) => Some(address),
            None => {
                let message = format!(
                    "\"{}\" is no address: expected one such as 10.1.0.1 or fd00::1",
                    text.value
                );
                self.fail(source, &text.referenced, message);
                None
            }
        }
    }

    fn guest(&mut self, source: &Source, raw: &raw::RawGuest) {
        let taken = self.policy.guest(&raw.id.value).is_some();
        self.named_once(source, "guest", &raw.id, taken);
        let found = self.policy.host(&raw.host.value);
        let names = |policy: &Policy| policy.hosts.iter().map(|host| host.name.clone()).collect();
        let known = self.known(source, "host", &raw.host, found, names);
        let host = known.unwrap_or(HostIndex(0));
        let index = GuestIndex(self.policy.guests.len() as u32);
        let mut ports = Vec::new();
        for port in &raw.ports {
            ports.push(PortIndex(self.policy.ports.len() as u32));
            self.port(source, port, index, known);
        }
        let place = source.place(&raw.id.referenced);
        let labels = raw.labels.clone();
        self.policy.guests.push(Guest {
            id: raw.id.value.clone(),
            host,
            labels,
            ports,
            place,
        });
    }

    fn port(&mut self, source: &Source, raw: &raw::RawPort, guest: GuestIndex, host: Option<HostIndex>) {
        let found = self.policy.network(&raw.network.value);
        let names = |policy: &Policy| {
            policy
                .networks
                .iter()
                .map(|network| network.name.clone())
                .collect()
        };
        let Some(network) = self.known(source, "network", &raw.network, found, names) else {
            return;
        };
        let interface = &raw.interface;
        if interface.value.is_empty()
            || interface.value.len() > 15
            || interface.value.contains(['/', ' ', ':'])
        {
            let message = format!(
                "\"{}\" is no interface name: expected 1 to 15 characters, no space, slash or colon",
                interface.value
            );
            self.fail(source, &interface.referenced, message);
        }
        let same_interface = |port: &GuestPort| {
            // The guest itself is not in the list yet.
            let its_host = self.policy.guests.get(port.guest.index()).map(|guest| guest.host);
            port.interface == interface.value && host.is_some() && its_host.or(host) == host
        };
        if self.policy.ports.iter().any(same_interface) {
            let message = format!(
                "interface \"{}\" is another port of this host too",
                interface.value
            );
            self.fail(source, &interface.referenced, message);
        }
        let Some(mac) = parse_mac(&raw.mac.value) else {
            let message = format!(
                "\"{}\" is no MAC address: expected six bytes such as 02:00:00:01:00:0a",
                raw.mac.value
            );
            return self.fail(source, &raw.mac.referenced, message);
        };
        if mac[0] & 1 != 0 || mac == [0; 6] {
            self.fail(
                source,
                &raw.mac.referenced,
                format!("{} names no single NIC (it is zero or a group's)", raw.mac.value),
            );
        }
        if self.policy.ports.iter().any(|port| port.mac == mac) {
            let message = format!(
                "{} is another port's MAC too: flat networks share the wire",
                raw.mac.value
            );
            self.fail(source, &raw.mac.referenced, message);
        }
        let mut addresses = Vec::new();
        for text in &raw.addresses {
            let Some(address) = self.address(source, text) else {
                continue;
            };
            let same = |port: &GuestPort| port.network == network && port.addresses.contains(&address);
            if addresses.contains(&address) || self.policy.ports.iter().any(same) {
                let message = format!("{address} is declared twice in network \"{}\"", raw.network.value);
                self.fail(source, &text.referenced, message);
            }
            addresses.push(address);
        }
        let interface = interface.value.clone();
        self.policy.ports.push(GuestPort {
            guest,
            interface,
            network,
            mac,
            addresses,
            router: raw.router,
        });
    }

    fn rule(&mut self, source: &Source, raw: &RawRule) {
        let name_at = &raw.name.referenced;
        let from = self.selector(source, &raw.from);
        let to = self.selector(source, &raw.to);
        let protocol = raw.protocol.as_ref().and_then(|text| {
            let number = protocol_number(&text.value);
            if number.is_none() {
                let message = format!(
                    "\"{}\" is no protocol: expected tcp, udp, sctp, icmp, icmpv6, esp or a number up to 255",
                    text.value
                );
                self.fail(source, &text.referenced, message);
            }
            number
        });
        let ethertype = raw.ethertype.as_ref().and_then(|text| {
            let number = ethertype_number(&text.value);
            if number.is_none() {
                let message = format!(
                    "\"{}\" is no EtherType: expected arp, ipv4, ipv6 or a number such as 0x88cc",
                    text.value
                );
                self.fail(source, &text.referenced, message);
            }
            number
        });
        let mut ports = Vec::new();
        for text in &raw.ports {
            match port_range(&text.value) {
                Ok(range) => ports.push(range),
                Err(why) => self.fail(source, &text.referenced, format!("\"{}\" {why}", text.value)),
            }
        }
        if let (Some(first), false) = (raw.ports.first(), matches!(protocol, Some(6 | 17 | 132))) {
            self.fail(
                source,
                &first.referenced,
                "ports need a protocol that has them: expected protocol: tcp, udp or sctp",
            );
        }
        if let (Some(kind), false) = (&raw.icmp_type, matches!(protocol, Some(1 | 58))) {
            self.fail(
                source,
                &kind.referenced,
                "icmp-type needs protocol: icmp or icmpv6",
            );
        }
        if let (Some(text), true, Some(number)) = (&raw.ethertype, protocol.is_some(), ethertype)
            && !matches!(number, 0x0800 | 0x86dd)
        {
            self.fail(
                source,
                &text.referenced,
                "a rule with a protocol is about IP: expected ethertype ipv4, ipv6 or none",
            );
        }
        let action = self.action(source, raw, name_at);
        let place = source.place(name_at);
        let icmp_type = raw.icmp_type.as_ref().map(|kind| kind.value);
        let name = raw.name.value.clone();
        if name.is_empty() {
            self.fail(source, name_at, "a rule's name is not empty");
        }
        self.policy.rules.push(Rule {
            name,
            from,
            to,
            ethertype,
            protocol,
            ports,
            icmp_type,
            action,
            place,
        });
    }

    fn action(&mut self, source: &Source, raw: &RawRule, name_at: &Location) -> Action {
        let protection = match raw.action {
            RawAction::Encrypt => Protection::Encrypt,
            RawAction::Authenticate => Protection::Authenticate,
            RawAction::Plaintext | RawAction::Drop => {
                if let Some(key) = &raw.key {
                    self.fail(
                        source,
                        &key.referenced,
                        "a key goes with encrypt or authenticate only",
                    );
                }
                return if matches!(raw.action, RawAction::Drop) {
                    Action::Drop
                } else {
                    Action::Plaintext
                };
            }
        };
        let Some(key) = &raw.key else {
            self.fail(
                source,
                name_at,
                format!("rule \"{}\" seals but names no key: expected key", raw.name.value),
            );
            return Action::Drop;
        };
        let found = self.policy.key(&key.value);
        let ids = |policy: &Policy| policy.keys.iter().map(|key| key.id.clone()).collect();
        self.known(source, "key", key, found, ids)
            .map_or(Action::Drop, |key| Action::Seal { protection, key })
    }

    fn selector(&mut self, source: &Source, raw: &RawSelector) -> Selector {
        match raw {
            RawSelector::Any => Selector::Any,
            RawSelector::OneOf(all) => {
                Selector::OneOf(all.iter().map(|one| self.selector(source, one)).collect())
            }
            RawSelector::All(terms) => {
                let mut all = Vec::new();
                if let Some(name) = &terms.network {
                    let found = self.policy.network(&name.value);
                    let names =
                        |policy: &Policy| policy.networks.iter().map(|one| one.name.clone()).collect();
                    all.extend(
                        self.known(source, "network", name, found, names)
                            .map(Term::Network),
                    );
                }
                if let Some(id) = &terms.guest {
                    let found = self.policy.guest(&id.value);
                    let ids = |policy: &Policy| policy.guests.iter().map(|one| one.id.clone()).collect();
                    all.extend(self.known(source, "guest", id, found, ids).map(Term::Guest));
                }
                for (name, value) in &terms.label {
                    all.push(Term::Label {
                        name: name.clone(),
                        value: value.clone(),
                    });
                }
                if let Some(text) = &terms.cidr {
                    match text.value.parse::<Cidr>() {
                        Ok(cidr) => all.push(Term::Cidr(cidr)),
                        Err(why) => self.fail(source, &text.referenced, format!("\"{}\": {why}", text.value)),
                    }
                }
                Selector::All(all)
            }
        }
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = parts
            .next()
            .filter(|part| part.len() == 2)
            .and_then(|part| u8::from_str_radix(part, 16).ok())?;
    }
    parts.next().is_none().then_some(mac)
}

/// An upper-layer protocol by its name or number.
#[must_use]
pub fn protocol_number(text: &str) -> Option<u8> {
    match text {
        "tcp" => Some(6),
        "udp" => Some(17),
        "sctp" => Some(132),
        "icmp" => Some(1),
        "icmpv6" => Some(58),
        "esp" => Some(50),
        _ => text.parse().ok(),
    }
}

fn ethertype_number(text: &str) -> Option<u16> {
    match text {
        "arp" => Some(0x0806),
        "ipv4" => Some(0x0800),
        "ipv6" => Some(0x86dd),
        _ => {
            let number = match text.strip_prefix("0x") {
                Some(digits) => u16::from_str_radix(digits, 16).ok()?,
                None => text.parse().ok()?,
            };
            // Smaller numbers are lengths (IEEE 802.3).
            (number >= 0x0600).then_some(number)
        }
    }
}

/// One port or a range of them, such as `53` or `6000-6010`.
///
/// # Errors
/// What was expected.
pub fn port_range(text: &str) -> Result<RangeInclusive<u16>, &'static str> {
    const SYNTAX: &str = "is no port: expected 0 to 65535, or a range such as 6000-6010";
    let port = |text: &str| text.trim().parse::<u16>().map_err(|_| SYNTAX);
    match text.split_once('-') {
        None => port(text).map(|port| port..=port),
        Some((first, last)) => match (port(first)?, port(last)?) {
            (first, last) if first > last => Err("runs backwards: expected the smaller port first"),
            (first, last) => Ok(first..=last),
        },
    }
}

/// The name that was probably meant: at most half of its letters away.
fn nearest<'a>(name: &str, all: &'a [String]) -> Option<&'a str> {
    all.iter()
        .map(|other| (distance(name, other), other.as_str()))
        .filter(|(distance, other)| distance * 2 <= other.len())
        .min()
        .map(|(_, other)| other)
}

/// Levenshtein's distance.
fn distance(one: &str, two: &str) -> usize {
    let two: Vec<char> = two.chars().collect();
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (number, left) in one.chars().enumerate() {
        let mut diagonal = number;
        row[0] = number + 1;
        for (place, right) in two.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[place + 1];
            row[place + 1] = replaced.min(diagonal + 1).min(row[place] + 1);
        }
    }
    row[two.len()]
}

#[cfg(test)]
mod tests;
