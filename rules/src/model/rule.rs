//! Rules and what they select.

use std::fmt;
use std::ops::RangeInclusive;

use crate::classify::Action;

use super::{Cidr, GuestIndex, NetworkIndex};

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
    Label {
        /// The label's name.
        name: String,
        /// The value it must have.
        value: String,
    },
    /// An address in this prefix.
    Cidr(Cidr),
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

/// A rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// Who opens.
    pub from: Selector,
    /// To whom.
    pub to: Selector,
    /// EtherType.
    pub ethertype: Option<u16>,
    /// Upper-layer protocol.
    pub protocol: Option<u8>,
    /// Ports at `to`'s side; empty means any, or none.
    pub ports: Vec<RangeInclusive<u16>>,
    /// ICMP type, as `from` sends it.
    pub icmp_type: Option<u8>,
    /// What happens.
    pub action: Action,
    /// Where it is.
    pub place: Place,
}
