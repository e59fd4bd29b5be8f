//! What is known of one guest: tags, logins, labels, flows, its container and how it came there.
//!
//! Everything that events can fill is bounded. Times are the engine's, but for a tag's own, which say what is late.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::event::{Moment, TagClear, TagSet, What};
use crate::flows::{FlowContext, FlowKey};
use crate::model::{ContainerIndex, Glob, LabelTest, LoginTest, TagTest, TemplateIndex};

/// Tags of one guest, set and cleared ones.
pub const MAX_TAGS: usize = 256;
/// Users that are logged in at one guest.
pub const MAX_LOGINS: usize = 256;
/// Labels of one guest that events have changed.
pub const MAX_LABELS: usize = 256;
/// Flows of one guest of which something is known.
pub const MAX_FLOWS: usize = 1024;

/// A tag of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// How bad, 0 to 100: what was said last.
    pub severity: u8,
    /// When it was set first since it was cleared last.
    pub first: Moment,
    /// When it was set last.
    pub last: Moment,
    /// How often it was set since it was cleared last.
    pub count: u32,
    /// When it was cleared: it is remembered so that what was set before that and comes late does not set it again.
    pub cleared: Option<Moment>,
    /// When it is over unless it is set again; `None`: when it is cleared.
    pub until: Option<Moment>,
}

/// Why a guest is where it is, or why a template's rules are there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cause {
    /// The event that did it, numbered from 1; `None` if time did.
    pub event: Option<u64>,
    /// When.
    pub at: Moment,
    /// In words: `transfer infected after tag av/malware.eicar of severity 90`.
    pub text: Arc<str>,
    /// The host where it came about, if that is another one.
    pub host: Option<Arc<str>>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.host {
            Some(host) => write!(f, ", on host {host}"),
            None => Ok(()),
        }
    }
}

/// A template's rules for one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// What made them.
    pub cause: Cause,
    /// When they go; `None`: when their condition does.
    pub until: Option<Moment>,
}

/// A guest that a hand holds in its container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Where it was.
    pub from: ContainerIndex,
    /// Where it had come from.
    pub came_from: Vec<ContainerIndex>,
    /// When it was pinned.
    pub since: Moment,
}

/// What is known of a flow, and when it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ToldFlow {
    pub(super) key: FlowKey,
    /// Which of the key's ends is the guest's.
    pub(super) place: usize,
    pub(super) at: Moment,
    pub(super) context: Arc<FlowContext>,
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Tags by service and name; those with `cleared` are no more.
    pub tags: BTreeMap<(String, String), Tag>,
    /// Users logged in, with their groups.
    pub logins: BTreeMap<String, Vec<String>>,
    /// When that changed last.
    pub(super) logins_at: Moment,
    /// Labels that events have changed; `None` if they took it away.
    pub labels: BTreeMap<String, Option<String>>,
    /// When that changed last.
    pub(super) labels_at: Moment,
    /// How often a hand has moved it, on whatever host.
    pub(super) hands: u64,
    /// Its container.
    pub container: ContainerIndex,
    /// Why it is there; `None` if it never moved.
    pub cause: Option<Cause>,
    /// Where it came from, the last at the end; no container twice.
    pub came_from: Vec<ContainerIndex>,
    /// Whether a hand holds it.
    pub pin: Option<Pin>,
    /// Templates whose rules are there for it.
    pub instances: BTreeMap<TemplateIndex, Instance>,
    /// Until when releases wait, because it was flapping.
    pub held_until: Option<Moment>,
    /// Its last transfers, as many as the damping looks at.
    pub(super) moved: VecDeque<Moment>,
    /// Since when the criteria of its release hold.
    pub(super) releasable: Option<Moment>,
    pub(super) flows: VecDeque<ToldFlow>,
    /// Templates whose condition held when it was last looked at.
    pub(super) held: BTreeSet<TemplateIndex>,
}

/// What came of a tag that was set.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Tagged {
    New,
    /// The very tag of that time is there already.
    Duplicate,
    /// It was set or cleared later than this says.
    Late,
    /// There are too many, all worse.
    NoRoom,
}

impl Record {
    pub(super) fn new() -> Self {
        Self {
            tags: BTreeMap::new(),
            logins: BTreeMap::new(),
            logins_at: Moment::default(),
            labels: BTreeMap::new(),
            labels_at: Moment::default(),
            hands: 0,
            container: ContainerIndex(0),
            cause: None,
            came_from: Vec::new(),
            pin: None,
            instances: BTreeMap::new(),
            held_until: None,
            moved: VecDeque::new(),
            releasable: None,
            flows: VecDeque::new(),
            held: BTreeSet::new(),
        }
    }

    /// When something happens of which its source does not say when: now, and after all that is known of the same. Other
    /// hosts' clocks may be ahead.
    pub(super) fn time_of(&self, what: &What, now: Moment) -> Moment {
        match what {
            What::Tag(set) => {
                let tag = self.tags.get(&(set.service.clone(), set.name.clone()));
                let known = tag.map_or(now, |tag| match tag.cleared {
                    Some(cleared) => just_after(cleared),
                    None => tag.last,
                });
                now.max(known)
            }
            What::Clear(clear) => {
                let (service, name) = (Glob::new(&clear.service), Glob::new(&clear.name));
                let open = self.tags.iter().filter(|(_, tag)| tag.cleared.is_none());
                open.filter(|((of, named), _)| service.matches(of) && name.matches(named))
                    .map(|(_, tag)| tag.last)
                    .fold(now, Moment::max)
            }
            _ => now,
        }
    }

    /// Sets a tag of the time `at`; what would be over by `now` comes too late.
    pub(super) fn set_tag(&mut self, set: &TagSet, at: Moment, now: Moment) -> Tagged {
        let key = (set.service.clone(), set.name.clone());
        let until = set.lasts.map(|lasts| at.after(lasts.0));
        if until.is_some_and(|until| until <= now) {
            return Tagged::Late;
        }
        if let Some(tag) = self.tags.get_mut(&key) {
            match tag.cleared {
                Some(cleared) if at <= cleared => return Tagged::Late,
                None if at == tag.last && set.severity == tag.severity => return Tagged::Duplicate,
                None if at < tag.last => return Tagged::Late,
                Some(_) => (tag.first, tag.count, tag.cleared) = (at, 0, None),
                None => {}
            }
            tag.severity = set.severity;
            tag.last = at;
            tag.until = until;
            tag.count = tag.count.saturating_add(1);
            return Tagged::New;
        }
        if self.tags.len() >= MAX_TAGS && !self.make_room(set.severity) {
            return Tagged::NoRoom;
        }
        let tag = Tag {
            severity: set.severity,
            first: at,
            last: at,
            count: 1,
            cleared: None,
            until,
        };
        self.tags.insert(key, tag);
        Tagged::New
    }

    /// Forgets a cleared tag, the one cleared first; else the mildest tag that is milder than `severity`.
    pub(super) fn make_room(&mut self, severity: u8) -> bool {
        let cleared = self
            .tags
            .iter()
            .filter_map(|(key, tag)| Some((tag.cleared?, key)));
        let mildest = self
            .tags
            .iter()
            .filter(|(_, tag)| tag.severity < severity)
            .map(|(key, tag)| ((tag.severity, tag.last), key));
        let found = cleared
            .min()
            .map(|(_, key)| key)
            .or(mildest.min().map(|(_, key)| key));
        let Some(key) = found.cloned() else { return false };
        self.tags.remove(&key).is_some()
    }

    /// Ends the tags that have lasted long enough.
    pub(super) fn end_tags(&mut self, now: Moment) {
        for tag in self.tags.values_mut().filter(|tag| tag.cleared.is_none()) {
            tag.cleared = tag.until.filter(|until| *until <= now);
        }
    }

    /// When the next tag is over.
    pub(super) fn tag_ends(&self) -> Option<Moment> {
        let open = self.tags.values().filter(|tag| tag.cleared.is_none());
        open.filter_map(|tag| tag.until).min()
    }

    /// Whether a tag was cleared.
    pub(super) fn clear_tags(&mut self, clear: &TagClear, at: Moment) -> bool {
        let (service, name) = (Glob::new(&clear.service), Glob::new(&clear.name));
        let mut any = false;
        for ((of, named), tag) in &mut self.tags {
            // What was set later than this says stays.
            if tag.cleared.is_none() && tag.last <= at && service.matches(of) && name.matches(named) {
                tag.cleared = Some(at);
                any = true;
            }
        }
        any
    }

    pub(super) fn has_tag(&self, test: &TagTest, now: Moment) -> bool {
        self.tags.iter().any(|((service, name), tag)| {
            tag.cleared.is_none() && about(test, service, name, tag) && in_age(test, tag, now)
        })
    }

    /// When the answer to a test may next change only because time passes.
    pub(super) fn tag_ages(&self, test: &TagTest, now: Moment) -> Option<Moment> {
        let open = self
            .tags
            .iter()
            .filter(|((service, name), tag)| tag.cleared.is_none() && about(test, service, name, tag));
        open.flat_map(|(_, tag)| {
            let older = test.older_than.map(|age| tag.first.after(age));
            // `younger_than` itself still counts.
            let younger = test
                .younger_than
                .map(|age| Moment::from_millis(tag.last.after(age).millis() + 1));
            [older, younger]
        })
        .flatten()
        .filter(|at| *at > now)
        .min()
    }

    pub(super) fn has_login(&self, test: &LoginTest) -> bool {
        self.logins
            .iter()
            .any(|(user, groups)| is_login(test, user, groups))
    }

    pub(super) fn has_label(&self, test: &LabelTest, declared: &BTreeMap<String, String>) -> bool {
        test.passes(self.label(&test.name, declared))
    }

    pub(super) fn label<'a>(&'a self, name: &str, declared: &'a BTreeMap<String, String>) -> Option<&'a str> {
        match self.labels.get(name) {
            Some(changed) => changed.as_deref(),
            None => declared.get(name).map(String::as_str),
        }
    }
}

/// The next moment.
pub(super) fn just_after(at: Moment) -> Moment {
    at.after(Duration::from_millis(1))
}

/// Whether a test is about such a tag, of whatever age.
pub(super) fn about(test: &TagTest, service: &str, name: &str, tag: &Tag) -> bool {
    test.severity <= tag.severity
        && test.count <= tag.count
        && test.service.matches(service)
        && test.name.matches(name)
}

fn in_age(test: &TagTest, tag: &Tag, now: Moment) -> bool {
    test.older_than.is_none_or(|age| now.since(tag.first) >= age)
        && test.younger_than.is_none_or(|age| now.since(tag.last) <= age)
}

/// Whether a test is about such a login.
pub(super) fn is_login(test: &LoginTest, user: &str, groups: &[String]) -> bool {
    test.user.matches(user)
        && test
            .group
            .as_ref()
            .is_none_or(|glob| groups.iter().any(|group| glob.matches(group)))
}
