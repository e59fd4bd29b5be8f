//! Sources: services that report on guests, and what their reports mean here.
//!
//! A report is a JSON value, whatever its source's own form is; a field of it is named by a JSON pointer (RFC 6901).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::{Glob, NetworkIndex};

/// A service that reports.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// The security service whose tags it sets.
    pub service: String,
    /// Where its reports come from.
    pub input: Input,
    /// Events that it may make in a second.
    pub rate: u32,
    /// When a report's event happened; when it is read without it.
    pub time: Option<Field>,
    /// Whom it speaks of: the first that is a guest.
    pub guests: Vec<Finder>,
    /// What its reports say: the first that matches.
    pub meanings: Vec<Meaning>,
}

/// What reports are, and how they come. Paths are as they are written.
#[derive(Clone, Debug)]
pub enum Input {
    /// Suricata's eve.json.
    Suricata(Way),
    /// ClamAV: clamd's log, or its VirusEvent.
    Clamav(Way),
    /// JSON values.
    Json(Way),
    /// Lines of text, and the regular expressions whose groups are a report's fields.
    Text(Way, Vec<regex::Regex>),
    /// JSON values, each posted by HTTP and signed.
    Webhook(Webhook),
    /// Agents in this host's guests, each by a Unix socket of its own in a directory.
    Agents(Sockets),
}

/// How reports come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a file that somebody else writes, one a line.
    File(PathBuf),
    /// By a Unix socket that somebody connects to, one a line.
    Socket(Sockets),
    /// By the control socket: who may tell them besides those who may change everything, users and @groups.
    Told(Vec<String>),
}

/// One Unix socket, or a directory of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// Where.
    pub path: PathBuf,
    /// The group that may connect besides the owner.
    pub group: Option<String>,
}

/// Where signed reports are posted to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// The address to listen at.
    pub listen: SocketAddr,
    /// The file of the secret.
    pub secret: PathBuf,
}

impl Input {
    /// The path that it names, if it names one.
    pub fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Input::Suricata(way) | Input::Clamav(way) | Input::Json(way) | Input::Text(way, _) => match way {
                Way::File(path) => Some(path),
                Way::Socket(socket) => Some(&mut socket.path),
                Way::Told(_) => None,
            },
            Input::Webhook(webhook) => Some(&mut webhook.secret),
            Input::Agents(sockets) => Some(&mut sockets.path),
        }
    }

    /// How its reports come, if they do not come in a way of their own.
    #[must_use]
    pub fn way(&self) -> Option<&Way> {
        match self {
            Input::Suricata(way) | Input::Clamav(way) | Input::Json(way) | Input::Text(way, _) => Some(way),
            Input::Webhook(_) | Input::Agents(_) => None,
        }
    }
}

/// A field of a report: a JSON pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field(pub String);

/// A text with fields in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(pub Vec<Part>);

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// As it stands.
    Fixed(String),
    /// What the report has there.
    Field(Field),
}

/// A field that is like one of several patterns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// Which.
    pub field: Field,
    /// The patterns.
    pub like: Vec<Glob>,
}

/// What finds a guest in a report.
#[derive(Clone, Debug)]
pub struct Finder {
    /// What must hold of the report.
    pub when: Vec<Test>,
    /// Where to look.
    pub by: By,
}

/// By what a guest is known.
#[derive(Clone, Debug)]
pub enum By {
    /// Its id or UUID.
    Id(Text),
    /// Its id or UUID, within a field: the group `guest` of a pattern.
    Within(Field, regex::Regex),
    /// The interface of one of its ports on this host, and the VLAN of a trunk.
    Interface(Text, Option<Text>),
    /// The MAC of one of its ports; in any logical network without one.
    Mac(Text, Option<NetworkIndex>),
    /// An address of one of its ports, within a logical network.
    Address(Text, NetworkIndex),
}

/// What some reports say.
#[derive(Clone, Debug)]
pub struct Meaning {
    /// Which reports.
    pub when: Vec<Test>,
    /// Whom they speak of, if others than those of the source.
    pub guests: Vec<Finder>,
    /// What they say.
    pub says: Says,
}

/// What a report says of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// A tag.
    Tag {
        /// Its name.
        name: Text,
        /// Its severity, 0 to 100.
        severity: Text,
        /// How long it lasts if it is not set again.
        lasts: Option<Duration>,
    },
    /// The end of tags.
    Clear {
        /// Their name; `*` stands for any characters.
        name: Text,
    },
    /// A user has logged in.
    Login {
        /// The user.
        user: Text,
        /// The user's groups: words between spaces or commas.
        groups: Vec<Text>,
    },
    /// A user has logged out.
    Logout {
        /// The user.
        user: Text,
    },
    /// Nothing: it is only noise.
    Nothing,
}

impl Field {
    /// Each value that a report has there: of a list its elements.
    pub fn values<'a>(&self, report: &'a Value) -> impl Iterator<Item = &'a Value> {
        let found = report.pointer(&self.0);
        let list = found.and_then(Value::as_array);
        let one = found.filter(|_| list.is_none());
        list.into_iter().flatten().chain(one)
    }
}

/// A word or a number as a text; nothing else is one.
#[must_use]
pub fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

impl Test {
    /// Whether it holds of a report; never if the field is not there.
    #[must_use]
    pub fn holds(&self, report: &Value) -> bool {
        let words = self.field.values(report).filter_map(word);
        words
            .into_iter()
            .any(|word| self.like.iter().any(|glob| glob.matches(&word)))
    }
}

impl Text {
    /// With what a report has in its fields; nothing if one of them is not there. Of a list all elements, with commas.
    #[must_use]
    pub fn of(&self, report: &Value) -> Option<String> {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Fixed(text) => out.push_str(text),
                Part::Field(field) => {
                    let words: Vec<String> = field.values(report).filter_map(word).collect();
                    if words.is_empty() {
                        return None;
                    }
                    out.push_str(&words.join(","));
                }
            }
        }
        Some(out)
    }
}
