//! What may be asked of a guest: its tags, users, labels, container and neighbours.

use std::time::Duration;

use super::{ContainerIndex, FlowTest, Glob, LabelTest};

/// A question about a guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Criteria {
    /// Every one holds.
    All(Vec<Criteria>),
    /// At least one holds.
    Any(Vec<Criteria>),
    /// It does not hold.
    Not(Box<Criteria>),
    /// It has such a tag.
    Tag(TagTest),
    /// Such a user is logged in.
    Login(LoginTest),
    /// A flow of it of which an agent has said this is open.
    Flow(FlowTest),
    /// It has such a label.
    Label(LabelTest),
    /// It is in this container, or in one nested in it.
    Container(ContainerIndex),
    /// It holds of another guest of one of its networks.
    Neighbour(Box<Criteria>),
}

/// Which tags count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TagTest {
    /// The service that set it.
    pub service: Glob,
    /// Its name.
    pub name: Glob,
    /// The severity it has at least, 0 to 100.
    pub severity: u8,
    /// How long ago it was set first, at least.
    pub older_than: Option<Duration>,
    /// How long ago it was set last, at most.
    pub younger_than: Option<Duration>,
    /// How often it was set, at least; never 0.
    pub count: u32,
}

/// Whose logins count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LoginTest {
    /// The user's name.
    pub user: Glob,
    /// A group of the user.
    pub group: Option<Glob>,
}
