//! The policy, by etcd: every key under `policy/` is one of its files, by name, and they are read in the order of their names.
//!
//! They are taken as they were at one revision, never some of a change's keys without the others: what changes is
//! told by the watch, and read as a whole then. What a host has had in force is kept in its state directory; it starts with that where
//! etcd does not answer.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use etcd_client::{Client, GetOptions};
use guestseal_rules::load::Source;

use crate::files;

use super::config::EtcdConfig;
use super::session::{Ended, OUT_OF_RANGE, RESOURCE_EXHAUSTED, call, is};

/// The policy's files are under this.
const POLICY: &str = "policy/";
/// Files, bytes of all of them with their names, and of one name. So many can be put, and as many others taken away, in one of etcd's transactions.
const MOST: usize = 64;
pub(super) const LARGEST: usize = 8 << 20;
const LONGEST_NAME: usize = 128;

/// The file of the state directory that has what was in force last.
const KEPT: &str = "policy-of-etcd.json";

/// The policy's files, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFiles(Arc<BTreeMap<String, String>>);

/// Why something cannot be the policy's files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFilesError {
    /// There are none.
    #[error("there is no policy in etcd under {0}: put one there with `guestseal policy push`")]
    None(String),
    /// Too many.
    #[error("more than {MOST} files are no policy: put some together")]
    TooMany,
    /// Too long.
    #[error("more than {LARGEST} bytes in all are no policy that is taken from etcd")]
    TooLarge,
    /// A name.
    #[error("\"{}\" is no name of a policy's file in etcd: expected at most {LONGEST_NAME} letters, digits, dots, dashes and underscores, and .yaml or .yml at the end", .0.escape_debug())]
    Name(String),
    /// A text.
    #[error("{0} is no text: expected YAML in UTF-8")]
    Text(String),
    /// Two files.
    #[error("two files are called {0}: expected another name each")]
    Twice(String),
}

/// Where a host keeps it.
#[must_use]
pub fn kept_at(state_directory: &Path) -> PathBuf {
    state_directory.join(KEPT)
}

impl PolicyFiles {
    /// Names and contents.
    ///
    /// # Errors
    /// See [`PolicyFilesError`]; `at` is where they are from.
    pub(super) fn new<'a>(
        at: &str,
        all: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, PolicyFilesError> {
        let (mut files, mut bytes) = (BTreeMap::new(), 0);
        for (name, text) in all {
            let name = String::from_utf8_lossy(name).into_owned();
            bytes += name.len() + text.len();
            if files.len() == MOST {
                return Err(PolicyFilesError::TooMany);
            }
            if bytes > LARGEST {
                return Err(PolicyFilesError::TooLarge);
            }
            if !is_name(&name) {
                return Err(PolicyFilesError::Name(name.chars().take(LONGEST_NAME).collect()));
            }
            let text = String::from_utf8(text.to_owned());
            let text = text.map_err(|_| PolicyFilesError::Text(name.clone()))?;
            if files.contains_key(&name) {
                return Err(PolicyFilesError::Twice(name));
            }
            files.insert(name, text);
        }
        if files.is_empty() {
            return Err(PolicyFilesError::None(at.to_owned()));
        }
        Ok(Self(Arc::new(files)))
    }

    /// As the loader reads them; `prefix` is etcd's.
    #[must_use]
    pub fn sources(&self, prefix: &str) -> Vec<Source> {
        let source = |(name, text): (&String, &String)| Source {
            name: format!("etcd:{prefix}/{POLICY}{name}"),
            text: text.clone(),
        };
        self.0.iter().map(source).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// What a host has kept; `None` if it has kept nothing that can be read as that.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn kept(state_directory: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(kept_at(state_directory)) {
            Ok(text) => {
                let files: Option<BTreeMap<String, String>> = serde_json::from_slice(&text).ok();
                let named = files.iter().flatten();
                Ok(Self::new("", named.map(|(name, text)| (name.as_bytes(), text.as_bytes()))).ok())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets the next start have it, if etcd does not answer then.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn keep(&self, state_directory: &Path) -> io::Result<()> {
        std::fs::create_dir_all(state_directory)?;
        let text = serde_json::to_vec(&*self.0)?;
        files::replace_for_good(&kept_at(state_directory), &text)
    }
}

fn is_name(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let stem = name.strip_suffix(".yaml").or_else(|| name.strip_suffix(".yml"));
    name.len() <= LONGEST_NAME
        && name.chars().all(fine)
        && stem.is_some_and(|stem| !stem.is_empty() && !stem.starts_with('.'))
}

/// Where the policy's files are.
pub(super) fn at(config: &EtcdConfig) -> String {
    format!("{}/{POLICY}", config.prefix)
}

/// They and one more, which would be too many.
pub(super) fn all() -> GetOptions {
    let limit = i64::try_from(MOST).unwrap_or(i64::MAX).saturating_add(1);
    GetOptions::new().with_prefix().with_limit(limit)
}

/// What etcd has under the prefix now.
pub(super) async fn read(
    config: &EtcdConfig,
    client: &Client,
) -> Result<Result<PolicyFiles, PolicyFilesError>, Ended> {
    let at = at(config);
    // Names and the like come on top of what counts.
    let mut kv = client
        .kv_client()
        .max_decoding_message_size(LARGEST + LARGEST / 8);
    let answer = match call(kv.get(at.clone(), Some(all()))).await {
        Err(error) if is(&error, OUT_OF_RANGE) || is(&error, RESOURCE_EXHAUSTED) => {
            return Ok(Err(PolicyFilesError::TooLarge));
        }
        answer => answer?,
    };
    let named = answer
        .kvs()
        .iter()
        .filter_map(|pair| Some((pair.key().strip_prefix(at.as_bytes())?, pair.value())));
    Ok(PolicyFiles::new(&at, named))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(all: &[(&str, &[u8])]) -> Result<PolicyFiles, PolicyFilesError> {
        PolicyFiles::new(
            "/guestseal/policy/",
            all.iter().map(|(name, text)| (name.as_bytes(), *text)),
        )
    }

    #[test]
    fn they_are_read_by_name_and_bounded() {
        let files = of(&[("20-rules.yaml", b"rules: []"), ("10-hosts.yml", b"hosts: []")]).unwrap();
        let sources = files.sources("/guestseal");
        let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "etcd:/guestseal/policy/10-hosts.yml",
                "etcd:/guestseal/policy/20-rules.yaml"
            ]
        );
        assert_eq!(of(&[]), Err(PolicyFilesError::None("/guestseal/policy/".into())));
        assert_eq!(
            of(&[("a.yaml", b"\xff")]),
            Err(PolicyFilesError::Text("a.yaml".into()))
        );
        for wrong in [
            "",
            "a",
            ".yaml",
            "..yaml",
            "a/b.yaml",
            "a b.yaml",
            "a\n.yaml",
            &format!("{}.yaml", "a".repeat(LONGEST_NAME)),
        ] {
            assert!(
                matches!(of(&[(wrong, b"")]), Err(PolicyFilesError::Name(_))),
                "{wrong:?}"
            );
        }
        let twice: [(&str, &[u8]); 2] = [("a.yaml", b""), ("a.yaml", b"")];
        assert_eq!(of(&twice), Err(PolicyFilesError::Twice("a.yaml".into())));
        let half = vec![b'#'; LARGEST / 2];
        assert!(of(&[("a.yaml", &half)]).is_ok());
        assert_eq!(
            of(&[("a.yaml", &half), ("b.yaml", &half)]),
            Err(PolicyFilesError::TooLarge)
        );
        let names: Vec<String> = (0..=MOST).map(|number| format!("{number}.yaml")).collect();
        let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
        assert!(of(&many[1..]).is_ok());
        assert_eq!(of(&many), Err(PolicyFilesError::TooMany));
    }

    #[test]
    fn what_is_kept_is_there_again_and_its_owners_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        assert_eq!(PolicyFiles::kept(&state).unwrap(), None);
        let files = of(&[("a.yaml", "rules: [] # \u{e9}".as_bytes())]).unwrap();
        files.keep(&state).unwrap();
        assert_eq!(PolicyFiles::kept(&state).unwrap(), Some(files));
        let mode = std::fs::metadata(kept_at(&state)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(kept_at(&state), "{\"a.yaml\": ").unwrap();
        assert_eq!(PolicyFiles::kept(&state).unwrap(), None);
    }
}
