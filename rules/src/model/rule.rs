//! Rules and what they select.

use std::fmt;
use std::ops::RangeInclusive;

use crate::classify::Action;
use crate::event::Moment;

use super::{
    Cidr, ContainerIndex, CriteriaIndex, FlowTestIndex, Glob, GroupIndex, GuestIndex, NetworkIndex,
    SectionIndex, TemplateIndex,
};

/// A place in a file, lines and columns from 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// One condition on a party.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    /// In this logical network.
    Network(NetworkIndex),
    /// This guest.
    Guest(GuestIndex),
    /// A guest with this label.
    Label(LabelTest),
    /// An address in this prefix.
    Cidr(Cidr),
    /// One of this group.
    Group(GroupIndex),
    /// A guest in this security container, or in one nested in it.
    Container(ContainerIndex),
    /// A guest of which this holds.
    Criteria(CriteriaIndex),
    /// A guest for which this template has made its rules.
    Subject(TemplateIndex),
    /// Not one of these.
    Not(Selector),
}

/// A label's name and the values it may have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LabelTest {
    /// The label's name.
    pub name: String,
    /// The values; `*` stands for any characters.
    pub values: Vec<Glob>,
}

impl LabelTest {
    /// Whether a label of this value passes.
    #[must_use]
    pub fn passes(&self, value: Option<&str>) -> bool {
        value.is_some_and(|value| self.values.iter().any(|glob| glob.matches(value)))
    }
}

/// Which parties a rule means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// All.
    Any,
    /// Those for which every term holds.
    All(Vec<Term>),
    /// Those that at least one of these means.
    OneOf(Vec<Selector>),
}

/// A second form in which a receiver takes what a rule means, while hosts change from one form to the other one by one.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct AlsoAccept {
    /// The form: sealed under a key, or plaintext; never drop.
    pub action: Action,
    /// Until when.
    pub until: Moment,
}

/// Which frames a rule means by their VLAN tag.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum VlanTest {
    /// Those without a tag.
    Untagged,
    /// Those of this VLAN, 0 to 4094.
    Id(u16),
}

impl VlanTest {
    /// Whether a frame passes.
    #[inline]
    #[must_use]
    pub fn passes(self, vlan: Option<u16>) -> bool {
        match self {
            VlanTest::Untagged => vlan.is_none(),
            VlanTest::Id(wanted) => vlan == Some(wanted),
        }
    }
}

/// A kind of traffic: what every field that is there says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// EtherType.
    pub ethertype: Option<u16>,
    /// VLAN tag.
    pub vlan: Option<VlanTest>,
    /// Differentiated services code point, 0 to 63.
    pub dscp: Option<u8>,
    /// Upper-layer protocol.
    pub protocol: Option<u8>,
    /// Ports at `to`'s side; empty means any, or none.
    pub ports: Vec<RangeInclusive<u16>>,
    /// ICMP type, as `from` sends it.
    pub icmp_type: Option<u8>,
    /// ICMP code; only with a type.
    pub icmp_code: Option<u8>,
    /// What an agent must have said of the flow.
    pub flow: Option<FlowTestIndex>,
}

/// Which flows count, by what an agent in the guest has said of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowTest {
    /// The user whose it is.
    pub user: Option<Glob>,
    /// A group of the user.
    pub group: Option<Glob>,
    /// The application.
    pub application: Option<Glob>,
}

/// Whose rule it is.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Its section's alone.
    #[default]
    Section,
    /// A security container's: it is about its members.
    Container(ContainerIndex),
    /// A template's: it is about the guests that an event made it for.
    Template(TemplateIndex),
}

/// A rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// Who opens.
    pub from: Selector,
    /// To whom.
    pub to: Selector,
    /// What: at least one of these; never empty.
    pub traffic: Vec<Traffic>,
    /// What happens.
    pub action: Action,
    /// What a receiver takes as well, for a time.
    pub also_accept: Option<AlsoAccept>,
    /// Whether its packets are sampled into the log.
    pub log: bool,
    /// The monitoring interface that gets a plain copy of each packet that the rule lets pass.
    pub mirror: Option<String>,
    /// The section it stands in.
    pub section: SectionIndex,
    /// Whose it is.
    pub owner: Owner,
    /// Where it is.
    pub place: Place,
}

impl Rule {
    /// What a receiver takes: what the rule says, then what it takes as well for a time.
    pub fn actions(&self) -> impl Iterator<Item = Action> {
        std::iter::once(self.action).chain(self.also_accept.map(|also| also.action))
    }
}
