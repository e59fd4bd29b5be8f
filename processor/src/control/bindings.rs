//! Guest ports whose interfaces have other names than the policy's files say: a virtual machine's tap is called as it comes.
//!
//! A binding is to one interface, known by its number in this boot. When that is gone the binding is over: another interface
//! that gets its name is another guest's.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use guestseal_rules::model::{GuestIndex, Policy, PortIndex};
use serde::{Deserialize, Serialize};

use crate::wire::ethernet::MacAddress;

use super::journal::{Deed, Entry};

/// A guest's card, and the interface that it is behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The guest's UUID.
    pub guest: String,
    /// The card's MAC.
    pub mac: String,
    /// The interface.
    pub interface: String,
    /// Its number.
    pub index: u32,
    /// The boot in which it has that number.
    pub boot: String,
}

/// All of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bindings(Vec<Binding>);

/// The interface that a port goes by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number; none if any interface of the name is meant.
    pub index: Option<u32>,
}

/// What the kernel calls this boot.
#[must_use]
pub fn boot() -> &'static str {
    static BOOT: LazyLock<String> = LazyLock::new(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        id.unwrap_or_default().trim().to_owned()
    });
    &BOOT
}

/// The ports of a guest's card: several if it is a trunk.
pub fn ports_of(policy: &Policy, guest: GuestIndex, mac: MacAddress) -> impl Iterator<Item = PortIndex> + '_ {
    let ports = policy.guests[guest.index()].ports.iter().copied();
    ports.filter(move |port| policy.ports[port.index()].mac == mac.0)
}

impl Bindings {
    /// Those that a journal knows.
    #[must_use]
    pub fn of(entries: &[Entry]) -> Self {
        let mut bindings = Self::default();
        for entry in entries {
            match &entry.done.deed {
                Deed::Begin { bound, .. } => bindings.clone_from(bound),
                Deed::PortAdded(binding) => bindings.add(binding.clone()),
                Deed::PortRemoved { interface, .. } => {
                    bindings.remove(interface);
                }
                _ => {}
            }
        }
        bindings
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The binding to an interface.
    #[must_use]
    pub fn to(&self, interface: &str) -> Option<&Binding> {
        self.0.iter().find(|binding| binding.interface == interface)
    }

    /// Binds, in place of what the card or the interface was bound to.
    pub fn add(&mut self, new: Binding) {
        let is_other = |old: &Binding| {
            old.interface != new.interface && (&old.guest, &old.mac) != (&new.guest, &new.mac)
        };
        self.0.retain(is_other);
        self.0.push(new);
    }

    /// Ends the binding to an interface.
    pub fn remove(&mut self, interface: &str) -> Option<Binding> {
        let place = self.0.iter().position(|binding| binding.interface == interface)?;
        Some(self.0.remove(place))
    }

    /// Those whose interface is gone, as far as `index_of` knows.
    pub fn gone(&self, index_of: impl Fn(&str) -> Option<u32>) -> Vec<Binding> {
        let is_gone = |one: &&Binding| one.boot != boot() || index_of(&one.interface) != Some(one.index);
        self.0.iter().filter(is_gone).cloned().collect()
    }

    /// The ports of a policy that are bound.
    #[must_use]
    pub fn resolve(&self, policy: &Policy) -> BTreeMap<PortIndex, Interface> {
        let guests: std::collections::HashMap<&str, GuestIndex> = (0u32..)
            .map(GuestIndex)
            .zip(&policy.guests)
            .map(|(number, guest)| (&*guest.uuid, number))
            .collect();
        let ports = self.0.iter().filter_map(|binding| {
            let (guest, mac) = (*guests.get(&*binding.guest)?, binding.mac.parse().ok()?);
            let interface = Interface {
                name: binding.interface.clone(),
                index: Some(binding.index),
            };
            Some(ports_of(policy, guest, mac).map(move |port| (port, interface.clone())))
        });
        ports.flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(guest: &str, interface: &str, index: u32) -> Binding {
        Binding {
            guest: guest.into(),
            mac: "02:00:00:01:00:01".into(),
            interface: interface.into(),
            index,
            boot: boot().to_owned(),
        }
    }

    #[test]
    fn an_interface_is_one_cards_and_a_card_behind_one_interface() {
        let mut bindings = Bindings::default();
        bindings.add(binding("one", "vnet0", 7));
        bindings.add(binding("one", "vnet1", 8));
        assert_eq!(bindings.to("vnet0"), None, "the card is behind another one now");
        bindings.add(binding("two", "vnet1", 9));
        assert_eq!(
            bindings.0,
            [binding("two", "vnet1", 9)],
            "the interface is another's now"
        );
        assert_eq!(bindings.remove("vnet1"), Some(binding("two", "vnet1", 9)));
        assert_eq!((bindings.remove("vnet1"), bindings.is_empty()), (None, true));
    }

    #[test]
    fn another_interface_of_the_name_is_not_the_guests_and_neither_is_one_of_another_boot() {
        let mut bindings = Bindings::default();
        bindings.add(binding("one", "vnet0", 7));
        bindings.add(Binding {
            boot: "an earlier one".into(),
            ..binding("two", "vnet1", 8)
        });
        let interfaces = |name: &str| (name == "vnet1").then_some(8).or((name == "vnet0").then_some(12));
        let gone: Vec<String> = bindings
            .gone(interfaces)
            .into_iter()
            .map(|one| one.guest)
            .collect();
        assert_eq!(gone, ["one", "two"]);
        assert_eq!(bindings.gone(|name| (name == "vnet0").then_some(7)).len(), 1);
    }
}
