//! What happens to guests: the events that move them between containers, and their form as JSON, one object a line.
//!
//! ```json
//! {"time": "2026-11-24T21:00:00Z", "guest": "web-1", "tag": {"service": "av", "name": "malware.eicar", "severity": 90}}
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::containers::Shared;
use crate::flows::FlowContext;

/// A moment: milliseconds since 1970 in UTC. In files as RFC 3339 writes it, and always of the same length, so that texts have the order of moments.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "jiff::Timestamp", into = "String")]
pub struct Moment(u64);

impl Moment {
    /// The last moment that RFC 3339 can write: the end of the year 9999.
    pub const LAST: Moment = Moment(253_402_207_200_000 - 1);

    /// From milliseconds since 1970; the last moment if they are more than that.
    #[must_use]
    pub fn from_millis(millis: u64) -> Self {
        Self(millis.min(Self::LAST.0))
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn millis(self) -> u64 {
        self.0
    }

    /// So much later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self::from_millis(
            self.0
                .saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// How long ago `earlier` was; nothing if it is still to come.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl TryFrom<jiff::Timestamp> for Moment {
    type Error = &'static str;

    fn try_from(time: jiff::Timestamp) -> Result<Self, &'static str> {
        u64::try_from(time.as_millisecond())
            .map(Self::from_millis)
            .map_err(|_| "a time before 1970")
    }
}

impl From<Moment> for jiff::Timestamp {
    fn from(moment: Moment) -> Self {
        // `LAST` is the largest that there is.
        jiff::Timestamp::from_millisecond(moment.0 as i64).unwrap_or(jiff::Timestamp::MAX)
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> Self {
        moment.to_string()
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", jiff::Timestamp::from(*self))
    }
}

/// Something that happened to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened, if its source says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Moment>,
    /// The guest, by UUID or id.
    pub guest: String,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A security service has something against the guest.
    Tag(TagSet),
    /// It no longer has.
    Clear(TagClear),
    /// A user has logged in.
    Login(Login),
    /// A user has logged out.
    Logout(Logout),
    /// A label has got a value, or none.
    Label(LabelChange),
    /// The agent in the guest tells of a flow.
    Flow(FlowTold),
    /// The agent in the guest tells that a flow has ended.
    FlowEnd(FlowEnds),
    /// By hand: into a container, whatever the rules say, until it is unpinned.
    Pin(Into),
    /// By hand: back to where it was when it was pinned.
    Unpin(Nothing),
    /// By hand: into a container, from which the rules may move it on.
    Transfer(Into),
    /// By hand: back to where it came from.
    Release(Nothing),
    /// Another host knows more of it.
    Shared(Box<Shared>),
}

/// A tag is set, or set once more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagSet {
    /// The security service.
    pub service: String,
    /// The tag's name.
    pub name: String,
    /// How bad, 0 to 100.
    pub severity: u8,
    /// How long it lasts if it is not set again; until it is cleared without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Lasts>,
}

/// A duration, as policy files write it: `90s`, `12h`.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lasts(pub Duration);

impl TryFrom<String> for Lasts {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match crate::load::duration(&text) {
            Ok(Duration::ZERO) => Err("lasts: expected more than nothing".to_owned()),
            Ok(duration) => Ok(Self(duration)),
            Err(why) => Err(format!("lasts: \"{text}\" {why}")),
        }
    }
}

impl From<Lasts> for String {
    fn from(lasts: Lasts) -> Self {
        format!("{}ms", lasts.0.as_millis())
    }
}

/// Tags are cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagClear {
    /// The service whose tags.
    pub service: String,
    /// Their name; `*` stands for any characters.
    pub name: String,
}

/// A user logs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The user's groups.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// A user logs out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logout {
    /// The user.
    pub user: String,
}

/// A label changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelChange {
    /// The label's name.
    pub name: String,
    /// Its new value; without one it goes, also if the policy declares it.
    #[serde(default)]
    pub value: Option<String>,
}

/// A flow between the guest and another machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowTold {
    /// The upper-layer protocol's number.
    pub protocol: u8,
    /// The guest's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// The user whose it is.
    #[serde(default)]
    pub user: Option<String>,
    /// The user's groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The application.
    #[serde(default)]
    pub application: Option<String>,
}

impl FlowTold {
    /// What it says of the flow.
    #[must_use]
    pub fn context(&self) -> FlowContext {
        FlowContext {
            user: self.user.clone(),
            groups: self.groups.clone(),
            application: self.application.clone(),
        }
    }
}

/// A flow ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowEnds {
    /// The upper-layer protocol's number.
    pub protocol: u8,
    /// The guest's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// Into which container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Into {
    /// The container's name.
    pub container: String,
}

/// Nothing more to say.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Tag(tag) => write!(f, "tag {}/{} of severity {}", tag.service, tag.name, tag.severity),
            What::Clear(tag) => write!(f, "clearing of {}/{}", tag.service, tag.name),
            What::Login(login) => write!(f, "login of {}", login.user),
            What::Logout(logout) => write!(f, "logout of {}", logout.user),
            What::Label(label) => match &label.value {
                Some(value) => write!(f, "label {}={value}", label.name),
                None => write!(f, "loss of label {}", label.name),
            },
            What::Flow(flow) => write!(f, "flow {} to {}", flow.local, flow.remote),
            What::FlowEnd(flow) => write!(f, "end of flow {} to {}", flow.local, flow.remote),
            What::Pin(into) => write!(f, "pin to {}", into.container),
            What::Unpin(_) => f.write_str("unpin"),
            What::Transfer(into) => write!(f, "transfer to {} by hand", into.container),
            What::Release(_) => f.write_str("release by hand"),
            What::Shared(shared) => write!(f, "what host {} knows", shared.host),
        }
    }
}
