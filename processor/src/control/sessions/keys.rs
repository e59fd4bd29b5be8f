//! Follows where keys are: what changes there is taken over whole, or not at all.

use std::path::Path;
use std::time::SystemTime;

use crate::control::supervise::chain;
use crate::keys::store::{KeySource, KeyStore};

use super::SessionsError;
use super::config::KeysFrom;
use super::manager::{Manager, ManagerStatus, UsedUp};

/// A file's name, size and time of change, or that it cannot be looked at.
pub(super) type Stamp = Vec<(std::ffi::OsString, Option<(u64, SystemTime, u64)>)>;

/// Keys that are taken over anew when their file or directory changes, or when their manager has others.
#[derive(Debug)]
pub(super) enum FollowedKeys {
    Files { source: KeySource, stamp: Stamp },
    Manager { manager: Manager, held: KeyStore },
}

impl FollowedKeys {
    /// Loads them.
    pub(super) fn open(from: &KeysFrom) -> Result<(Self, KeyStore), SessionsError> {
        match from {
            KeysFrom::Files(source) => {
                let source = source.clone();
                // Before it is read: what changes while it is read is read again.
                let stamp = stamp(&source);
                let store = KeyStore::load(&source)?;
                Ok((Self::Files { source, stamp }, store))
            }
            KeysFrom::Manager(config) => {
                let (manager, held) = Manager::follow(config.clone()).map_err(SessionsError::Manager)?;
                let store = held.clone();
                Ok((Self::Manager { manager, held }, store))
            }
        }
    }

    /// The keys, if they are others than at the last look. Keys that cannot be loaded change nothing, and it is said why.
    pub(super) fn look(&mut self) -> Option<KeyStore> {
        match self {
            Self::Files { source, stamp: known } => {
                let now = stamp(source);
                if now == *known {
                    return None;
                }
                *known = now;
                KeyStore::load(source)
                    .inspect_err(|error| {
                        tracing::error!("the keys stay as they were: {}", chain(error));
                    })
                    .ok()
            }
            Self::Manager { manager, held } => {
                let now = manager.look()?;
                held.clone_from(&now);
                Some(now)
            }
        }
    }

    /// These generations are used up, and no others. Says whether the next ones are ordered from a manager.
    pub(super) fn order(&mut self, used_up: UsedUp) -> bool {
        match self {
            Self::Files { .. } => false,
            Self::Manager { manager, .. } => manager.order(used_up),
        }
    }

    /// How it is with the manager; `None` of files.
    pub(super) fn manager(&self) -> Option<ManagerStatus> {
        match self {
            Self::Files { .. } => None,
            Self::Manager { manager, .. } => Some(manager.status()),
        }
    }

    /// What a manager gave last; `None` of files, which are read again.
    pub(super) fn held(&self) -> Option<KeyStore> {
        match self {
            Self::Files { .. } => None,
            Self::Manager { held, .. } => Some(held.clone()),
        }
    }
}

fn stamp(source: &KeySource) -> Stamp {
    let of = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::metadata(path).ok()?;
        Some((found.len(), found.modified().ok()?, found.ino()))
    };
    match source {
        KeySource::File(path) => vec![(path.as_os_str().to_owned(), of(path))],
        KeySource::Directory(path) => {
            let entries = std::fs::read_dir(path)
                .into_iter()
                .flatten()
                .filter_map(Result::ok);
            let mut all: Stamp = entries
                .map(|entry| (entry.file_name(), of(&entry.path())))
                .collect();
            all.sort_unstable();
            all
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn put(directory: &Path, name: &str, byte: &str) {
        let path = directory.join(name);
        std::fs::write(&path, byte.repeat(32)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn what_comes_and_goes_is_seen_and_what_is_wrong_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        put(directory.path(), "blue.1", "11");
        let source = KeySource::Directory(directory.path().to_owned());
        let (mut keys, store) = FollowedKeys::open(&KeysFrom::Files(source)).unwrap();
        let generations = |store: &KeyStore| {
            let all = store.generations("blue");
            all.map(|key| key.generation.0).collect::<Vec<_>>()
        };
        assert_eq!(generations(&store), [1]);
        assert!(keys.look().is_none());
        put(directory.path(), "blue.2", "22");
        assert_eq!(generations(&keys.look().unwrap()), [2, 1]);
        put(directory.path(), "blue.3", "00");
        assert!(keys.look().is_none(), "zeros are no key");
        assert!(keys.look().is_none(), "and it is said once");
        std::fs::remove_file(directory.path().join("blue.3")).unwrap();
        std::fs::remove_file(directory.path().join("blue.1")).unwrap();
        assert_eq!(generations(&keys.look().unwrap()), [2]);
    }
}
