//! Reports of security services: which guest they speak of, and which event they are.
//!
//! A report is written by somebody else, and partly by whom it speaks of: what it says may be long or odd, but never makes its event
//! one that is refused for its form.

use std::collections::HashMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::event::{Event, Lasts, Login, Logout, Moment, TagClear, TagSet, What};
use crate::load::parse_mac;
use crate::model::source::{By, Finder, Says, Source, Test, Text};
use crate::model::{GuestIndex, NetworkIndex, Policy};

/// Bytes of a name that is made of a report's fields.
const LONGEST_NAME: usize = 200;

/// Groups of a user that are taken from a report.
const MOST_GROUPS: usize = 64;

/// Why no event comes of a report.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// The mapping says that it means nothing.
    Ignored,
    /// The mapping says nothing of it.
    NoMeaning,
    /// Whom it speaks of is no guest, or could be several.
    Nobody,
    /// What it is to say is not in it, or no number is its severity.
    Incomplete,
}

/// By what guests are known.
#[derive(Clone, Debug)]
pub struct Directory {
    ids: HashMap<String, GuestIndex>,
    /// Of the guests that are here.
    interfaces: HashMap<(String, Option<u16>), GuestIndex>,
    /// Nothing if several guests have it.
    macs: HashMap<[u8; 6], Option<GuestIndex>>,
    macs_of_networks: HashMap<(NetworkIndex, [u8; 6]), GuestIndex>,
    addresses: HashMap<(NetworkIndex, IpAddr), GuestIndex>,
}

impl Directory {
    /// The guests of a policy as a host knows them: those that are here by their interfaces, too.
    #[must_use]
    pub fn new(policy: &Policy, is_here: impl Fn(GuestIndex) -> bool) -> Self {
        let mut directory = Self {
            ids: HashMap::new(),
            interfaces: HashMap::new(),
            macs: HashMap::new(),
            macs_of_networks: HashMap::new(),
            addresses: HashMap::new(),
        };
        for (number, guest) in (0u32..).zip(&policy.guests) {
            directory.ids.insert(guest.id.clone(), GuestIndex(number));
        }
        for (number, guest) in (0u32..).zip(&policy.guests) {
            directory.ids.insert(guest.uuid.clone(), GuestIndex(number));
        }
        for port in &policy.ports {
            let guest = port.guest;
            if is_here(guest) {
                directory
                    .interfaces
                    .insert((port.interface.clone(), port.vlan), guest);
            }
            let known = directory.macs.entry(port.mac).or_insert(Some(guest));
            *known = known.filter(|known| *known == guest);
            directory.macs_of_networks.insert((port.network, port.mac), guest);
            for address in &port.addresses {
                directory.addresses.insert((port.network, *address), guest);
            }
        }
        directory
    }

    /// A guest is here from now on, or is not any more.
    pub fn place(&mut self, policy: &Policy, guest: GuestIndex, is_here: bool) {
        for port in policy.ports.iter().filter(|port| port.guest == guest) {
            let at = (port.interface.clone(), port.vlan);
            if is_here {
                self.interfaces.insert(at, guest);
            } else if self.interfaces.get(&at) == Some(&guest) {
                self.interfaces.remove(&at);
            }
        }
    }

    fn find(&self, finder: &Finder, report: &Value) -> Option<GuestIndex> {
        if !all_hold(&finder.when, report) {
            return None;
        }
        match &finder.by {
            By::Id(text) => self.ids.get(&text.of(report)?).copied(),
            By::Within(field, like) => {
                let mut words = field.values(report).filter_map(Value::as_str);
                words.find_map(|word| {
                    self.ids
                        .get(like.captures(word)?.name("guest")?.as_str())
                        .copied()
                })
            }
            By::Interface(interface, vlan) => {
                let vlan = match vlan {
                    Some(vlan) => Some(vlan.of(report)?.parse().ok()?),
                    None => None,
                };
                self.interfaces.get(&(interface.of(report)?, vlan)).copied()
            }
            By::Mac(mac, network) => {
                let mac = parse_mac(&mac.of(report)?)?;
                match network {
                    Some(network) => self.macs_of_networks.get(&(*network, mac)).copied(),
                    None => self.macs.get(&mac).copied().flatten(),
                }
            }
            By::Address(address, network) => {
                let address: IpAddr = address.of(report)?.parse().ok()?;
                self.addresses.get(&(*network, address)).copied()
            }
        }
    }
}

fn all_hold(tests: &[Test], report: &Value) -> bool {
    tests.iter().all(|test| test.holds(report))
}

/// A name that no field makes too long or unreadable: who is reported on has often chosen a part of it.
fn name(text: &Text, report: &Value) -> Option<String> {
    let mut name = text.of(report)?.replace(char::is_control, "_");
    name.truncate(name.floor_char_boundary(LONGEST_NAME));
    (!name.is_empty()).then_some(name)
}

impl Source {
    /// The event that a report is.
    ///
    /// # Errors
    /// Why it is none.
    pub fn event(&self, report: &Value, policy: &Policy, known: &Directory) -> Result<Event, Unmapped> {
        let mut meanings = self.meanings.iter();
        let meaning = meanings
            .find(|meaning| all_hold(&meaning.when, report))
            .ok_or(Unmapped::NoMeaning)?;
        let what = self.what(&meaning.says, report)?;
        let own = Some(&meaning.guests).filter(|own| !own.is_empty());
        let mut finders = own.unwrap_or(&self.guests).iter();
        let guest = finders
            .find_map(|finder| known.find(finder, report))
            .ok_or(Unmapped::Nobody)?;
        let time = self
            .time
            .as_ref()
            .and_then(|field| moment(field.values(report).next()?));
        Ok(Event {
            time,
            guest: policy.guests[guest.index()].uuid.clone(),
            what,
        })
    }

    fn what(&self, says: &Says, report: &Value) -> Result<What, Unmapped> {
        let service = self.service.clone();
        let made = match says {
            Says::Nothing => return Err(Unmapped::Ignored),
            Says::Tag {
                name: tag,
                severity,
                lasts,
            } => name(tag, report)
                .zip(number(severity, report))
                .map(|(name, severity)| {
                    What::Tag(TagSet {
                        service,
                        name,
                        severity,
                        lasts: lasts.map(Lasts),
                    })
                }),
            Says::Clear { name: tags } => {
                name(tags, report).map(|name| What::Clear(TagClear { service, name }))
            }
            Says::Login { user, groups } => name(user, report).map(|user| {
                let groups = groups.iter().filter_map(|group| group.of(report));
                let groups: Vec<String> = groups.collect();
                let words = groups
                    .iter()
                    .flat_map(|text| text.split(|c: char| c == ',' || c.is_whitespace()));
                let words = words.filter(|word| !word.is_empty() && word.len() <= LONGEST_NAME);
                let groups = words.take(MOST_GROUPS).map(str::to_owned).collect();
                What::Login(Login { user, groups })
            }),
            Says::Logout { user } => name(user, report).map(|user| What::Logout(Logout { user })),
        };
        made.ok_or(Unmapped::Incomplete)
    }
}

fn number(severity: &Text, report: &Value) -> Option<u8> {
    let number: f64 = severity.of(report)?.trim().parse().ok()?;
    // Worse than the worst is the worst.
    (!number.is_nan()).then_some(number.clamp(0.0, 100.0).round() as u8)
}

/// As RFC 3339 writes it, or seconds since 1970.
fn moment(value: &Value) -> Option<Moment> {
    match value {
        Value::String(text) => text.parse::<jiff::Timestamp>().ok()?.try_into().ok(),
        Value::Number(seconds) => Some(Moment::from_millis((seconds.as_f64()? * 1000.0) as u64)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
