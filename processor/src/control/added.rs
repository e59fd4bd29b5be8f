//! Guests that are in no file of the policy: whoever starts them tells of them, and they are in force like a reload.
//!
//! They are a policy file of guestseal's own, in the state directory, which the loader reads behind the others: what it refuses
//! there it refuses here, with the same words.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::api::problem::Problem;

/// The file's name in the state directory.
const NAME: &str = "added-guests.yaml";

/// A guest, as a policy file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedGuest {
    /// Its id.
    pub id: String,
    /// What stays the same of it; its id if none is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Its host; empty where the one that is told is meant.
    pub host: String,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its ports.
    pub ports: Vec<AddedPort>,
}

/// A port of such a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedPort {
    /// The interface.
    pub interface: String,
    /// The logical network.
    pub network: String,
    /// The card's MAC.
    pub mac: String,
    /// The guest's addresses.
    pub addresses: Vec<String>,
}

/// What is to be another.
#[derive(Clone, Debug)]
pub enum Change {
    /// A guest is to be there, or to have one more port.
    Add(AddedGuest),
    /// A port of a host is to be there no more, and its guest if it was the last.
    Remove {
        /// The host.
        host: String,
        /// The interface.
        interface: String,
    },
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    guests: Vec<AddedGuest>,
}

/// Where they are kept.
#[must_use]
pub fn path(state_directory: &Path) -> PathBuf {
    state_directory.join(NAME)
}

impl Added {
    /// Those of a text; none if it is not one that was written here.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// As the loader reads them, and [`Self::parse`]: JSON is YAML.
    #[must_use]
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Whether a port was added.
    #[must_use]
    pub fn has(&self, host: &str, interface: &str) -> bool {
        let guests = self.guests.iter().filter(|guest| guest.host == host);
        guests
            .flat_map(|guest| &guest.ports)
            .any(|port| port.interface == interface)
    }

    /// The same with a change.
    ///
    /// # Errors
    /// If it changes nothing.
    pub fn with(&self, change: Change) -> Result<Self, Problem> {
        let mut next = self.clone();
        match change {
            Change::Add(new) => {
                match next.guests.iter_mut().find(|guest| guest.id == new.id) {
                    Some(known) => {
                        let is_other = |port: &AddedPort| new.ports.iter().all(|one| one.mac != port.mac);
                        known.ports.retain(is_other);
                        known.ports.extend(new.ports);
                        (known.host, known.uuid) = (new.host, new.uuid.or(known.uuid.take()));
                    }
                    None => next.guests.push(new),
                }
                if next == *self {
                    let message = "it is there already, just so";
                    return Err(Problem::new(StatusCode::CONFLICT, "Duplicate", message));
                }
            }
            Change::Remove { host, interface } => {
                if !self.has(&host, &interface) {
                    let message = format!(
                        "no port was added for interface {interface} of host {host}: those of the policy's files go with them"
                    );
                    return Err(Problem::new(StatusCode::NOT_FOUND, "UnknownPort", message));
                }
                for guest in next.guests.iter_mut().filter(|guest| guest.host == host) {
                    guest.ports.retain(|port| port.interface != interface);
                }
                next.guests.retain(|guest| !guest.ports.is_empty());
            }
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use guestseal_rules::load::{Source, load_policy};

    use super::*;

    fn guest(id: &str, interface: &str, number: u8) -> AddedGuest {
        AddedGuest {
            id: id.into(),
            uuid: None,
            host: "h1".into(),
            labels: BTreeMap::new(),
            ports: vec![AddedPort {
                interface: interface.into(),
                network: "blue".into(),
                mac: format!("02:00:00:01:00:{number:02x}"),
                addresses: vec![format!("10.1.0.{number}")],
            }],
        }
    }

    #[test]
    fn what_was_added_is_a_policy_file_until_its_last_port_is_removed() {
        let added = Added::default()
            .with(Change::Add(guest("web-9", "vnet1", 9)))
            .unwrap();
        let added = added.with(Change::Add(guest("web-9", "vnet2", 10))).unwrap();
        assert!(
            added.with(Change::Add(guest("web-9", "vnet2", 10))).is_err(),
            "it is there"
        );
        assert_eq!(Added::parse(&added.text()), added);
        let demo = include_str!("../../../rules/examples/demo/policy.yaml").to_owned();
        let source = |name: &str, text| Source {
            name: name.into(),
            text,
        };
        let policy = load_policy(&[source("policy.yaml", demo), source("added", added.text())]).unwrap();
        let index = policy.guest("web-9").unwrap();
        assert_eq!(policy.guests[index.index()].ports.len(), 2);
        let remove = |interface: &str| Change::Remove {
            host: "h1".into(),
            interface: interface.into(),
        };
        let added = added.with(remove("vnet1")).unwrap();
        assert!(added.has("h1", "vnet2") && !added.has("h1", "vnet1") && !added.has("h2", "vnet2"));
        assert_eq!(added.with(remove("vnet2")).unwrap(), Added::default());
        assert!(added.with(remove("vnet7")).is_err());
    }
}
