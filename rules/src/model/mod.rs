//! The policy: what all hosts agree on. Names are resolved to numbers; places in the files are kept.

pub mod cidr;
pub mod key;
pub mod rule;

use std::collections::BTreeMap;
use std::net::IpAddr;

pub use cidr::Cidr;
pub use key::{Key, Suite};
pub use rule::{Place, Rule, Selector, Term};

macro_rules! index {
    ($($(#[$doc:meta])* $name:ident($number:ty);)*) => {
        $(
            $(#[$doc])*
            #[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
            pub struct $name(pub $number);

            impl $name {
                /// The number as an index into the policy's list.
                #[must_use]
                #[inline]
                pub fn index(self) -> usize {
                    self.0 as usize
                }
            }
        )*
    };
}

index! {
    /// A host, by its place in [`Policy::hosts`].
    HostIndex(u16);
    /// A logical network, by its place in [`Policy::networks`].
    NetworkIndex(u16);
    /// A guest, by its place in [`Policy::guests`].
    GuestIndex(u32);
    /// A guest port, by its place in [`Policy::ports`].
    PortIndex(u32);
    /// A key, by its place in [`Policy::keys`].
    KeyIndex(u16);
    /// A rule, by its place in [`Policy::rules`].
    RuleIndex(u32);
}

/// Everything that the policy files say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// Hypervisor hosts.
    pub hosts: Vec<Host>,
    /// Logical networks.
    pub networks: Vec<Network>,
    /// Guests.
    pub guests: Vec<Guest>,
    /// The ports of all guests.
    pub ports: Vec<GuestPort>,
    /// Keys, by id: never their bytes.
    pub keys: Vec<Key>,
    /// Rules, in order: the first that matches decides.
    pub rules: Vec<Rule>,
}

/// A hypervisor host.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its addresses on the wire, at most one of each family.
    pub addresses: Vec<IpAddr>,
}

/// What carries a logical network.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum NetworkKind {
    /// The wire itself.
    #[default]
    Flat,
}

/// A logical network.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// What carries it.
    pub kind: NetworkKind,
}

/// A guest virtual machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Guest {
    /// Its id.
    pub id: String,
    /// The host it runs on.
    pub host: HostIndex,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its ports.
    pub ports: Vec<PortIndex>,
    /// Where it is declared.
    pub place: Place,
}

/// The host-side interface of a guest's NIC.
#[derive(Clone, Debug, PartialEq)]
pub struct GuestPort {
    /// The guest.
    pub guest: GuestIndex,
    /// The interface's name on the guest's host.
    pub interface: String,
    /// Its logical network.
    pub network: NetworkIndex,
    /// The MAC of the guest's NIC.
    pub mac: [u8; 6],
    /// The addresses that the guest may use.
    pub addresses: Vec<IpAddr>,
    /// Whether it may use any address.
    pub router: bool,
}

impl Policy {
    /// The host of a name.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<HostIndex> {
        self.hosts
            .iter()
            .position(|host| host.name == name)
            .map(|number| HostIndex(number as u16))
    }

    /// The network of a name.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<NetworkIndex> {
        self.networks
            .iter()
            .position(|network| network.name == name)
            .map(|number| NetworkIndex(number as u16))
    }

    /// The guest of an id.
    #[must_use]
    pub fn guest(&self, id: &str) -> Option<GuestIndex> {
        self.guests
            .iter()
            .position(|guest| guest.id == id)
            .map(|number| GuestIndex(number as u32))
    }

    /// The key of an id.
    #[must_use]
    pub fn key(&self, id: &str) -> Option<KeyIndex> {
        self.keys
            .iter()
            .position(|key| key.id == id)
            .map(|number| KeyIndex(number as u16))
    }
}
