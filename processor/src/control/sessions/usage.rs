//! What this host has done under each generation of each key, through restarts, and whether that is as much as may be.
//!
//! What was done before a restart is in the status file, which is written each second. A generation that is used up still
//! seals: nobody but who makes keys can give the whole fleet another one. So it is said loudly, until there is one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::control::status;
use crate::keys::handshake::output::Usage;
use crate::keys::store::{Generation, KeyStore};

/// What was done under one generation of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyUsage {
    /// The other hosts.
    pub hosts: BTreeSet<String>,
    /// Sessions that there were.
    pub sessions: u64,
    /// Security associations that there were, of both directions.
    pub sas: u64,
    /// Packets sealed and opened.
    pub packets: u64,
    /// Bytes sealed and opened.
    pub bytes: u64,
    /// Whether that is as much as may be.
    pub used_up: bool,
}

impl KeyUsage {
    pub(super) fn add(&mut self, host: &str, sas: u64, usage: Usage) {
        self.hosts.insert(host.to_owned());
        self.sessions += 1;
        self.sas += sas;
        self.packets += usage.sent_packets + usage.received_packets;
        self.bytes += usage.sent_bytes + usage.received_bytes;
    }
}

/// How much may be done under one generation of a key, on one host.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyLimit {
    /// Packets sealed and opened.
    pub packets: Option<u64>,
    /// Bytes sealed and opened.
    pub bytes: Option<u64>,
}

impl KeyLimit {
    fn is_reached(self, usage: &KeyUsage) -> bool {
        let reached = |limit: Option<u64>, used| limit.is_some_and(|limit| used >= limit);
        reached(self.packets, usage.packets) || reached(self.bytes, usage.bytes)
    }
}

/// A generation of a key, as status and files name it.
pub(super) fn name(key: &str, generation: Generation) -> String {
    format!("{key}.{}", generation.0)
}

/// Usage by [`name`].
pub(super) type ByName = BTreeMap<String, KeyUsage>;

/// What is over, and what is used up.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyBook {
    /// Under sessions that are over, and in runs before.
    pub(super) over: ByName,
    limit: KeyLimit,
    /// The newest generation of each key that this host holds.
    newest: BTreeMap<String, Generation>,
    /// All of them.
    held: BTreeSet<String>,
    said: BTreeSet<String>,
}

impl KeyBook {
    /// Goes on with what is in the status file of a state directory, if there is one.
    pub(super) fn open(state: &Path, limit: KeyLimit) -> Self {
        Self {
            over: read(state),
            limit,
            ..Self::default()
        }
    }

    /// This host holds these keys now; what was done under keys that no rule names is forgotten. Gives the generations that
    /// have come, and those that are gone.
    pub(super) fn hold<'a>(
        &mut self,
        store: &KeyStore,
        keys: impl Iterator<Item = &'a str>,
    ) -> (Vec<String>, Vec<String>) {
        let keys: BTreeSet<&str> = keys.collect();
        let newest = |id: &&str| Some(((*id).to_owned(), store.generations(id).next()?.generation));
        self.newest = keys.iter().filter_map(newest).collect();
        let is_named = |one: &String| one.rsplit_once('.').is_some_and(|(id, _)| keys.contains(id));
        self.over.retain(|one, _| is_named(one));
        let generations = keys.iter().flat_map(|id| store.generations(id));
        let held = generations.map(|key| name(&key.id, key.generation)).collect();
        let before = std::mem::replace(&mut self.held, held);
        let without = |these: &BTreeSet<String>, those| these.difference(those).cloned().collect();
        (without(&self.held, &before), without(&before, &self.held))
    }

    /// Marks what is used up in all that was done; gives the newest generations of which that was not said yet.
    pub(super) fn mark(&mut self, all: &mut ByName) -> Vec<(String, KeyUsage)> {
        for usage in all.values_mut() {
            usage.used_up = self.limit.is_reached(usage);
        }
        let used_up = self.used_up(all).map(|(id, generation)| name(id, generation));
        let news: Vec<String> = used_up.filter(|one| !self.said.contains(one)).collect();
        self.said.extend(news.iter().cloned());
        news.into_iter()
            .map(|one| {
                let usage = all[&one].clone();
                (one, usage)
            })
            .collect()
    }

    /// The newest generations that are marked.
    pub(super) fn used_up(&self, all: &ByName) -> impl Iterator<Item = (&str, Generation)> {
        let newest = self
            .newest
            .iter()
            .map(|(id, generation)| (id.as_str(), *generation));
        newest.filter(|(id, generation)| all.get(&name(id, *generation)).is_some_and(|usage| usage.used_up))
    }
}

fn read(state: &Path) -> ByName {
    let text = std::fs::read(status::path(state)).unwrap_or_default();
    let status: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    serde_json::from_value(status["sessions"]["keys"].clone()).unwrap_or_default()
}

/// The generations of keys that were used up when a host's status was last written, and no newer one was used.
#[must_use]
pub fn used_up(state: &Path) -> Vec<String> {
    let all = read(state);
    let number = |one: &str| one.rsplit_once('.')?.1.parse::<u32>().ok();
    let id = |one: &str| one.rsplit_once('.').map(|(id, _)| id.to_owned());
    let is_newest = |one: &String| {
        let same = all.keys().filter(|other| id(other) == id(one));
        same.map(|other| number(other)).max() == Some(number(one))
    };
    let over = all.iter().filter(|(one, usage)| usage.used_up && is_newest(one));
    over.map(|(one, _)| one.clone()).collect()
}

#[cfg(test)]
mod tests {
    use crate::keys::secret::Secret;
    use crate::keys::store::RuleKey;

    use super::*;

    fn usage(packets: u64) -> Usage {
        Usage {
            sent_packets: packets,
            sent_bytes: packets * 100,
            ..Usage::default()
        }
    }

    fn written(state: &Path, keys: &ByName) {
        let text = serde_json::json!({"sessions": {"keys": keys}}).to_string();
        std::fs::write(status::path(state), text).unwrap();
    }

    #[test]
    fn what_was_done_outlives_the_process_and_is_said_once_it_is_too_much() {
        let state = tempfile::tempdir().unwrap();
        let limit = KeyLimit {
            packets: Some(10),
            bytes: None,
        };
        let mut store = KeyStore::default();
        let secret = || Secret::new(&[7; 32]).unwrap();
        store.add(RuleKey::new("blue".into(), Generation(1), secret()));
        let mut book = KeyBook::open(state.path(), limit);
        let held = |came: &[&str], gone: &[&str]| {
            (
                came.iter().map(ToString::to_string).collect(),
                gone.iter().map(ToString::to_string).collect(),
            )
        };
        assert_eq!(book.hold(&store, ["blue"].into_iter()), held(&["blue.1"], &[]));
        let mut all = book.over.clone();
        all.entry("blue.1".into()).or_default().add("h2", 2, usage(6));
        all.entry("gone.1".into()).or_default().add("h2", 2, usage(6));
        assert!(book.mark(&mut all).is_empty() && !all["blue.1"].used_up);
        written(state.path(), &all);
        assert!(used_up(state.path()).is_empty());

        let mut book = KeyBook::open(state.path(), limit);
        book.hold(&store, ["blue"].into_iter());
        let mut all = book.over.clone();
        assert!(!all.contains_key("gone.1"), "no rule names it");
        all.entry("blue.1".into()).or_default().add("h3", 2, usage(4));
        let news = book.mark(&mut all);
        assert_eq!(news.len(), 1);
        let (one, used) = &news[0];
        assert_eq!((one.as_str(), used.packets, used.bytes), ("blue.1", 10, 1000));
        assert_eq!((used.hosts.len(), used.sessions, used.sas), (2, 2, 4));
        assert!(book.mark(&mut all).is_empty(), "said once");
        assert_eq!(book.used_up(&all).collect::<Vec<_>>(), [("blue", Generation(1))]);
        written(state.path(), &all);
        assert_eq!(used_up(state.path()), ["blue.1"]);
        // The next generation is there: nothing is to be said of the one before any more.
        store.remove("blue", Generation(1));
        store.add(RuleKey::new("blue".into(), Generation(2), secret()));
        assert_eq!(
            book.hold(&store, ["blue"].into_iter()),
            held(&["blue.2"], &["blue.1"])
        );
        assert_eq!(book.used_up(&all).count(), 0);
        all.entry("blue.2".into()).or_default().add("h3", 2, usage(1));
        written(state.path(), &all);
        assert!(used_up(state.path()).is_empty());
    }

    #[test]
    fn each_limit_holds_by_itself_and_none_is_none() {
        let used = KeyUsage {
            packets: 10,
            bytes: 1000,
            ..KeyUsage::default()
        };
        let limit = |packets, bytes| KeyLimit { packets, bytes }.is_reached(&used);
        assert!(!limit(None, None) && !limit(Some(11), Some(1001)));
        assert!(limit(Some(10), None) && limit(None, Some(1000)) && limit(Some(11), Some(999)));
    }
}
