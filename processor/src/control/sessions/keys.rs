//! Follows where keys are: what changes there is loaded whole, or not at all.

use std::path::Path;
use std::time::SystemTime;

use crate::control::supervise::chain;
use crate::keys::store::{KeySource, KeyStore, StoreError};

/// A file's name, size and time of change, or that it cannot be looked at.
type Stamp = Vec<(std::ffi::OsString, Option<(u64, SystemTime, u64)>)>;

/// Keys that are loaded anew when their file or directory changes.
#[derive(Debug)]
pub(super) struct FollowedKeys {
    source: KeySource,
    stamp: Stamp,
}

impl FollowedKeys {
    /// Loads them.
    pub(super) fn open(source: KeySource) -> Result<(Self, KeyStore), StoreError> {
        // Before it is read: what changes while it is read is read again.
        let stamp = stamp(&source);
        let store = KeyStore::load(&source)?;
        Ok((Self { source, stamp }, store))
    }

    /// The keys, if they are others than at the last look. Keys that cannot be loaded change nothing, and it is said why.
    pub(super) fn look(&mut self) -> Option<KeyStore> {
        let now = stamp(&self.source);
        if now == self.stamp {
            return None;
        }
        self.stamp = now;
        KeyStore::load(&self.source)
            .inspect_err(|error| {
                tracing::error!("the keys stay as they were: {}", chain(error));
            })
            .ok()
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
        let (mut keys, store) = FollowedKeys::open(source).unwrap();
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
