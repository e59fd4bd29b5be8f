//! `guestseal hook`: what calls Guestseal when virtual machines start and stop.
//!
//! Libvirt runs a hook with the guest's name, an operation and its definition on standard input, which names the interface
//! behind each card once it is there. Nothing is ever written to standard output: there libvirt would take it for a definition.

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::control::api::client::{Client, ClientError};
use crate::control::config::HostConfig;
use crate::wire::ethernet::MacAddress;

use super::Failure;

/// Bytes of a definition.
const LONGEST: u64 = 16 << 20;

#[derive(Debug, Args)]
pub(super) struct Hook {
    #[command(subcommand)]
    caller: Caller,
}

#[derive(Debug, Subcommand)]
enum Caller {
    /// Called by libvirt's hook for QEMU (/etc/libvirt/hooks/qemu) with the arguments and the input that libvirt gives it
    #[command(
        after_help = "Example, as /etc/libvirt/hooks/qemu, mode 755:\n  #!/bin/sh\n  \
                            exec guestseal hook libvirt --config /etc/guestseal/h1.yaml \"$@\""
    )]
    Libvirt(Libvirt),
}

#[derive(Debug, Args)]
struct Libvirt {
    /// The host's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The guest's name
    guest: String,
    /// What happens: prepare, start, started, stopped, release, ...
    operation: String,
    /// begin or end
    #[arg(default_value = "-")]
    part: String,
    /// What else libvirt says
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    extra: Vec<String>,
}

impl Hook {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.caller {
            Caller::Libvirt(hook) => hook.run(),
        }
    }
}

/// A card of a guest, and the interface behind it while there is one.
#[derive(Debug, PartialEq, Eq)]
struct Card {
    mac: MacAddress,
    interface: Option<String>,
}

impl Libvirt {
    fn run(self) -> Result<(), Failure> {
        // At `start` QEMU has its taps and does not run yet; at `reconnect` libvirt has been started anew.
        let begins = match (self.operation.as_str(), self.part.as_str()) {
            ("start" | "started" | "reconnect" | "attach", "begin") => true,
            ("stopped" | "release", "end") => false,
            _ => return Ok(()),
        };
        let mut definition = String::new();
        std::io::stdin().take(LONGEST).read_to_string(&mut definition)?;
        let (uuid, cards) =
            cards(&definition).map_err(|why| format!("the definition of {}: {why}", self.guest))?;
        let config = HostConfig::load_offline(&self.config)?;
        let policy = &config.policy;
        let mut guests = policy.guests.iter();
        let known = guests.find(|guest| Some(&guest.uuid) == uuid.as_ref() || guest.id == self.guest);
        // Others' guests are not ours to speak of.
        let Some(guest) = known else { return Ok(()) };
        let is_ours = |card: &Card| {
            let mut ports = guest.ports.iter();
            ports.any(|port| policy.ports[port.index()].mac == card.mac.0)
        };
        let client = Client::unix(&config.api.socket)?;
        for card in cards.into_iter().filter(is_ours) {
            let Some(interface) = card.interface else { continue };
            if begins {
                let body = json!({"guest": guest.uuid, "mac": card.mac.to_string(), "interface": interface});
                client.call("POST", "/v1/ports", Some(&body))?;
            } else {
                match client.call("DELETE", &format!("/v1/ports/{interface}"), None) {
                    Ok(_) => {}
                    // Its tap has gone before it, and the port with that.
                    Err(ClientError::Refused(problem)) if problem.status == 404 => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

/// The UUID and the cards of a guest's definition.
fn cards(definition: &str) -> Result<(Option<String>, Vec<Card>), String> {
    let document = roxmltree::Document::parse(definition).map_err(|error| error.to_string())?;
    let domain = document.root_element();
    let child = |node: &roxmltree::Node<'_, '_>, name: &str| {
        let mut children = node.children();
        children
            .find(|child| child.has_tag_name(name))
            .map(|child| child.id())
    };
    let text = |name: &str| {
        let found = child(&domain, name).and_then(|id| document.get_node(id))?;
        Some(found.text()?.trim().to_owned())
    };
    if !domain.has_tag_name("domain") {
        return Err("expected <domain>".to_owned());
    }
    let devices = domain.children().filter(|node| node.has_tag_name("devices"));
    let interfaces =
        devices.flat_map(|devices| devices.children().filter(|node| node.has_tag_name("interface")));
    let attribute = |node: &roxmltree::Node<'_, '_>, name: &str, attribute: &str| {
        let found = child(node, name).and_then(|id| document.get_node(id))?;
        found.attribute(attribute).map(str::to_owned)
    };
    let cards = interfaces.filter_map(|interface| {
        Some(Card {
            mac: attribute(&interface, "mac", "address")?.parse().ok()?,
            interface: attribute(&interface, "target", "dev"),
        })
    });
    Ok((text("uuid"), cards.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_says_who_it_is_and_what_is_behind_its_cards() {
        let running = include_str!("../../tests/libvirt/running.xml");
        let (uuid, found) = cards(running).unwrap();
        assert_eq!(uuid.as_deref(), Some("6a5f4f0e-3c0c-4b7a-9d0f-2f1f6b1f7d01"));
        let card = |mac: &str, interface: Option<&str>| Card {
            mac: mac.parse().unwrap(),
            interface: interface.map(str::to_owned),
        };
        assert_eq!(
            found,
            [
                card("02:00:00:01:00:01", Some("vnet7")),
                card("52:54:00:6b:3c:58", Some("vnet8"))
            ]
        );
        // Before there are taps nothing is behind them.
        let defined = include_str!("../../tests/libvirt/defined.xml");
        let (_, found) = cards(defined).unwrap();
        assert_eq!(found, [card("02:00:00:01:00:01", None)]);
    }

    #[test]
    fn what_is_no_definition_is_refused() {
        for text in [
            "",
            "<network/>",
            "<domain>",
            "no XML",
            "<!DOCTYPE a [<!ENTITY b \"c\">]><domain>&b;</domain>",
        ] {
            let found = cards(text);
            assert!(
                found.is_err() || found.is_ok_and(|(_, cards)| cards.is_empty()),
                "{text}"
            );
        }
    }
}
