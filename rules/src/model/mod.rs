//! The policy: what all hosts agree on. Names are resolved to numbers; places in the files are kept.

pub mod cidr;
pub mod container;
pub mod criteria;
pub mod glob;
pub mod key;
pub mod rule;
pub mod service;
pub mod source;
pub mod template;

use std::collections::BTreeMap;
use std::net::IpAddr;

pub use cidr::Cidr;
pub use container::{Container, Damping, Release, SecurityService, Transfer};
pub use criteria::{Criteria, LoginTest, TagTest};
pub use glob::Glob;
pub use key::{Key, Suite};
pub use rule::{AlsoAccept, FlowTest, LabelTest, Owner, Place, Rule, Selector, Term, Traffic, VlanTest};
pub use service::{ProtocolPorts, Service};
pub use template::Template;

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
    /// A group, by its place in [`Policy::groups`].
    GroupIndex(u16);
    /// A security container, by its place in [`Policy::containers`].
    ContainerIndex(u16);
    /// A question about guests, by its place in [`Policy::criteria`].
    CriteriaIndex(u16);
    /// A section, by its place in [`Policy::sections`].
    SectionIndex(u16);
    /// A template, by its place in [`Policy::templates`].
    TemplateIndex(u16);
    /// A question about flows, by its place in [`Policy::flow_tests`].
    FlowTestIndex(u16);
}

/// Guests that a policy may have.
pub const MAX_GUESTS: usize = (1 << 24) - 1;

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
    /// Groups.
    pub groups: Vec<Group>,
    /// Services: the declared ones, and the built-in ones whose names they leave.
    pub services: Vec<Service>,
    /// The security services whose tags count, in the order of their precedence.
    pub security_services: Vec<SecurityService>,
    /// Security containers: at least one; the first is where guests are that nothing has moved.
    pub containers: Vec<Container>,
    /// What counts as flapping between containers.
    pub damping: Damping,
    /// What rules and groups ask of guests.
    pub criteria: Vec<Criteria>,
    /// What rules ask of flows.
    pub flow_tests: Vec<FlowTest>,
    /// What makes rules when something happens.
    pub templates: Vec<Template>,
    /// Sections, in order; the first holds the containers' rules, the second the templates'.
    pub sections: Vec<Section>,
    /// Rules, in order: the first that matches decides.
    pub rules: Vec<Rule>,
}

/// A named set of addresses and guests.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Who is in it.
    pub members: Selector,
    /// Where it is declared.
    pub place: Place,
}

/// A part of the rules that one owner keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// Whether its decisions are only counted and shown.
    pub monitor: bool,
    /// Where it is declared; at its default if it is in no file.
    pub place: Place,
}

/// A hypervisor host.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its addresses on the wire, at most one of each family. None if it is no host any more: an earlier policy had it, and
    /// its number is not given to another.
    pub addresses: Vec<IpAddr>,
    /// Its public keys: none, one, or two while it changes from one to the other.
    pub public_keys: Vec<[u8; 32]>,
}

/// What carries a logical network.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkKind {
    /// The wire itself.
    #[default]
    Flat,
    /// VXLAN (RFC 7348).
    Vxlan(Vni),
    /// Geneve (RFC 8926).
    Geneve(Vni),
    /// Nothing any more: an earlier policy had it, and its number is not given to another. No guest is in it.
    Retired,
}

/// A virtual network identifier: 24 bits, never 0.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vni(u32);

impl Vni {
    /// The largest.
    pub const MAX: u32 = (1 << 24) - 1;

    /// The identifier, if the number is one.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        (1..=Self::MAX).contains(&number).then_some(Self(number))
    }

    /// The number.
    #[must_use]
    #[inline]
    pub fn get(self) -> u32 {
        self.0
    }
}

/// A logical network.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// What carries it.
    pub kind: NetworkKind,
    /// The key of rules that seal within it and name none.
    pub default_key: Option<KeyIndex>,
    /// Where it is declared.
    pub place: Place,
}

/// A guest virtual machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Guest {
    /// Its id.
    pub id: String,
    /// The host it runs on.
    pub host: HostIndex,
    /// What stays the same when it moves or is registered anew: tags and containers are kept by it. Its id if none is said.
    pub uuid: String,
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
    /// The VLAN that it is of the interface, if that is a trunk.
    pub vlan: Option<u16>,
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
            .position(|host| host.name == name && !host.addresses.is_empty())
            .map(|number| HostIndex(number as u16))
    }

    /// The network of a name.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<NetworkIndex> {
        self.networks
            .iter()
            .position(|network| network.name == name && network.kind != NetworkKind::Retired)
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

    /// Whether a logical network is the wire itself.
    #[must_use]
    pub fn is_flat(&self, network: NetworkIndex) -> bool {
        self.networks[network.index()].kind == NetworkKind::Flat
    }

    /// The template of a name.
    #[must_use]
    pub fn template(&self, name: &str) -> Option<TemplateIndex> {
        self.templates
            .iter()
            .position(|template| template.name == name)
            .map(|number| TemplateIndex(number as u16))
    }

    /// The container of a name.
    #[must_use]
    pub fn container(&self, name: &str) -> Option<ContainerIndex> {
        self.containers
            .iter()
            .position(|container| container.name == name)
            .map(|number| ContainerIndex(number as u16))
    }

    /// A container and those it is nested in, from the inside.
    pub fn chain(&self, container: ContainerIndex) -> impl Iterator<Item = ContainerIndex> + '_ {
        std::iter::successors(Some(container), |inner| {
            self.containers.get(inner.index())?.parent
        })
    }

    /// The key of an id.
    #[must_use]
    pub fn key(&self, id: &str) -> Option<KeyIndex> {
        self.keys
            .iter()
            .position(|key| key.id == id && !key.retired)
            .map(|number| KeyIndex(number as u16))
    }
}
