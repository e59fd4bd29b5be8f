//! The key store: rule keys by id and generation, from a YAML file, a directory of credentials or a key manager.
//!
//! What is not in the store is not held: a generation that is taken out is revoked. The newest generation of a key is
//! used, older ones are accepted as long as sessions allow. A [`RuleKey`] prints its id and generation, never its bytes.
//! A store is loaded whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor};
use sha2::{Digest, Sha256};

use super::secret::{LENGTH, Secret, SecretFileError, from_hex, read_private};

/// The longest key file.
const MAX_FILE: u64 = 1 << 20;

/// A generation of a key: later ones have greater numbers.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u32);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One generation of a rule's key.
pub struct RuleKey {
    /// The id that rules name.
    pub id: String,
    /// Its generation.
    pub generation: Generation,
    secret: Secret,
}

impl RuleKey {
    /// A key of given bytes.
    #[must_use]
    pub fn new(id: String, generation: Generation, secret: Secret) -> Arc<Self> {
        Arc::new(Self {
            id,
            generation,
            secret,
        })
    }

    /// The pre-shared key of a handshake.
    #[must_use]
    pub(super) fn psk(&self) -> &[u8; LENGTH] {
        self.secret.expose()
    }
}

impl fmt::Debug for RuleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RuleKey({} generation {})", self.id, self.generation)
    }
}

/// Files with keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A YAML file: `keys: {ID: {GENERATION: "64 hexadecimal digits"}}`.
    File(PathBuf),
    /// A directory with a file `ID.GENERATION` each, of 64 hexadecimal digits, as systemd's `LoadCredential=` makes it.
    Directory(PathBuf),
}

/// Why keys cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file with a secret.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// The directory cannot be read.
    #[error("{}: the directory of keys cannot be read", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The YAML is wrong.
    #[error("{}: {what}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Line, column and what is expected there.
        what: String,
    },
    /// The name says no id or no generation.
    #[error(
        "{name}: expected ID.GENERATION: the id of letters, digits, - _ and ., the generation from 1 to 4294967295"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// Two entries have the same bytes.
    #[error("{one} and {two} have the same bytes: whoever has one has the other; make a new key for each")]
    SameBytes {
        /// One.
        one: String,
        /// The other.
        two: String,
    },
}

/// The keys of one host.
#[derive(Clone, Debug, Default)]
pub struct KeyStore {
    keys: BTreeMap<String, BTreeMap<Generation, Arc<RuleKey>>>,
}

impl KeyStore {
    /// Reads every key of a source.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn load(source: &KeySource) -> Result<Self, StoreError> {
        match source {
            KeySource::File(path) => Self::load_file(path),
            KeySource::Directory(path) => Self::load_directory(path),
        }
    }

    fn load_file(path: &Path) -> Result<Self, StoreError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            keys: BTreeMap<String, BTreeMap<u32, Hex>>,
        }
        let yaml = |what: String| StoreError::Yaml {
            path: path.to_owned(),
            what,
        };
        let bytes = read_private(path, MAX_FILE)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| yaml("expected UTF-8 text".into()))?;
        // Only where, and what is expected: the parser's own words could quote a secret.
        let options = serde_saphyr::options! { with_snippet: false };
        let raw: Raw = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let place = error.location().map_or_else(String::new, |place| {
                format!("{}:{}: ", place.line(), place.column())
            });
            yaml(format!(
                "{place}expected keys: {{ID: {{GENERATION: \"64 hexadecimal digits, not all zero\"}}}}, nothing twice"
            ))
        })?;
        let mut store = Self::default();
        for (id, generations) in raw.keys {
            for (generation, Hex(secret)) in generations {
                let (id, generation) = parse_name(&format!("{id}.{generation}"))?;
                store.add(RuleKey::new(id, generation, secret));
            }
        }
        store.distinct()
    }

    fn load_directory(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Directory {
            path: path.to_owned(),
            source,
        };
        let mut store = Self::default();
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            // Credentials of other use (a host's identity, a certificate) may lie beside: keys end in a number.
            let Some(name) = name.to_str().filter(|name| ends_in_number(name)) else {
                continue;
            };
            let (id, generation) = parse_name(name)?;
            store.add(RuleKey::new(id, generation, Secret::read(&entry.path())?));
        }
        store.distinct()
    }

    /// Adds a key, in place of one of the same id and generation.
    pub fn add(&mut self, key: Arc<RuleKey>) {
        let generations = self.keys.entry(key.id.clone()).or_default();
        generations.insert(key.generation, key);
    }

    /// Takes a generation out.
    pub fn remove(&mut self, id: &str, generation: Generation) {
        if let Some(generations) = self.keys.get_mut(id) {
            generations.remove(&generation);
        }
    }

    /// Whether a generation of a key is here.
    pub(super) fn has(&self, id: &str, generation: Generation) -> bool {
        self.keys.get(id).is_some_and(|all| all.contains_key(&generation))
    }

    /// The generations of a key, the newest first.
    pub fn generations(&self, id: &str) -> impl Iterator<Item = &Arc<RuleKey>> {
        self.keys
            .get(id)
            .into_iter()
            .flat_map(|generations| generations.values().rev())
    }

    /// Every key's id and generation, with what tells its bytes from others.
    pub fn fingerprints(&self) -> impl Iterator<Item = (&Arc<RuleKey>, [u8; 32])> {
        self.keys.values().flat_map(BTreeMap::values).map(|key| {
            let mut hash = Sha256::new();
            hash.update(b"guestseal rule key fingerprint 1");
            hash.update(key.psk());
            (key, hash.finalize().into())
        })
    }

    /// Refuses two keys of the same bytes.
    pub(super) fn distinct(self) -> Result<Self, StoreError> {
        let mut seen: HashMap<[u8; 32], String> = HashMap::new();
        for (key, fingerprint) in self.fingerprints() {
            let name = format!("{}.{}", key.id, key.generation);
            if let Some(one) = seen.insert(fingerprint, name.clone()) {
                return Err(StoreError::SameBytes { one, two: name });
            }
        }
        Ok(self)
    }
}

/// A secret in a YAML file. Taken from the parser's text at once; refused without being shown.
struct Hex(Secret);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Hex;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("64 hexadecimal digits")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Hex, E> {
                from_hex(text.as_bytes())
                    .and_then(|bytes| Secret::new(&bytes))
                    .filter(|secret| !secret.is_zero())
                    .map(Hex)
                    .ok_or_else(|| E::custom("expected 64 hexadecimal digits, not all zero"))
            }
        }
        deserializer.deserialize_str(Text).map_err(D::Error::custom)
    }
}

pub(super) fn ends_in_number(name: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, end)| !end.is_empty() && end.bytes().all(|character| character.is_ascii_digit()))
}

pub(super) fn parse_name(name: &str) -> Result<(String, Generation), StoreError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let parts = name.rsplit_once('.').and_then(|(id, generation)| {
        let generation: u32 = generation.parse().ok()?;
        let valid = !id.is_empty() && !id.starts_with('.') && id.chars().all(plain) && generation > 0;
        valid.then(|| (id.to_owned(), Generation(generation)))
    });
    parts.ok_or_else(|| StoreError::Name {
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn yaml(text: &str) -> Result<KeyStore, StoreError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.yaml");
        write(&path, text, 0o600);
        KeyStore::load(&KeySource::File(path))
    }

    fn generations(store: &KeyStore, id: &str) -> Vec<(u32, u8)> {
        store
            .generations(id)
            .map(|key| (key.generation.0, key.psk()[0]))
            .collect()
    }

    #[test]
    fn a_file_and_a_directory_hold_the_same_keys() {
        let (one, two) = ("a1".repeat(32), "a2".repeat(32));
        let file = yaml(&format!(
            "keys:\n  blue-any:\n    1: \"{one}\"\n    2: {two}\n  red.any: {{7: \"{}\"}}\n",
            "b7".repeat(32)
        ))
        .unwrap();
        let directory = tempfile::tempdir().unwrap();
        write(&directory.path().join("blue-any.1"), &one, 0o400);
        write(&directory.path().join("blue-any.2"), &format!("{two}\n"), 0o600);
        write(&directory.path().join("red.any.7"), &"b7".repeat(32), 0o400);
        write(&directory.path().join("identity"), "something else", 0o400);
        let directory = KeyStore::load(&KeySource::Directory(directory.path().to_owned())).unwrap();
        for store in [&file, &directory] {
            assert_eq!(
                generations(store, "blue-any"),
                [(2, 0xa2), (1, 0xa1)],
                "newest first"
            );
            assert_eq!(generations(store, "red.any"), [(7, 0xb7)]);
            assert_eq!(generations(store, "green"), []);
        }
    }

    #[test]
    fn a_digits_only_yaml_scalar_is_text_all_the_same() {
        let store = yaml(&format!("keys: {{k: {{1: {}}}}}", "10".repeat(32))).unwrap();
        assert_eq!(generations(&store, "k"), [(1, 0x10)]);
    }

    #[test]
    fn what_others_may_read_is_refused_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        write(&directory.path().join("k.1"), &"a1".repeat(32), 0o644);
        let error = KeyStore::load(&KeySource::Directory(directory.path().to_owned())).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        let path = directory.path().join("keys.yaml");
        write(&path, "keys: {}", 0o640);
        let error = KeyStore::load(&KeySource::File(path)).unwrap_err();
        assert!(error.to_string().contains("mode 640"), "{error}");
    }

    #[test]
    fn wrong_entries_are_refused_and_no_secret_is_shown() {
        let hex = "c3".repeat(32);
        for (text, said) in [
            (format!("keys: {{k: {{0: \"{hex}\"}}}}"), "from 1 to"),
            (
                format!("keys: {{\"../k\": {{1: \"{hex}\"}}}}"),
                "expected ID.GENERATION",
            ),
            (
                format!("keys: {{k: {{1: \"{hex}c3\"}}}}"),
                "64 hexadecimal digits",
            ),
            (format!("keys:\n  k:\n    1: [{hex}]\n"), "64 hexadecimal digits"),
            (
                format!("keys: {{k: {{1: \"{}\"}}}}", "00".repeat(32)),
                "not all zero",
            ),
            (
                format!("keys: {{k: {{1: \"{hex}\", 1: \"{hex}\"}}}}"),
                "nothing twice",
            ),
            (
                format!("keys: {{k: {{1: \"{hex}\"}}, l: {{4: \"{hex}\"}}}}"),
                "k.1 and l.4 have the same bytes",
            ),
            (format!("kyes: {{k: {{1: \"{hex}\"}}}}"), "expected keys:"),
        ] {
            let error = yaml(&text).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("c3c3"), "{text}: {error}");
        }
        let directory = tempfile::tempdir().unwrap();
        write(&directory.path().join("k.99999999999"), &hex, 0o400);
        let error = KeyStore::load(&KeySource::Directory(directory.path().to_owned())).unwrap_err();
        assert!(matches!(error, StoreError::Name { .. }), "{error}");
    }

    #[test]
    fn a_key_prints_its_id_and_generation() {
        let store = yaml(&format!("keys: {{k: {{3: \"{}\"}}}}", "c3".repeat(32))).unwrap();
        let key = store.generations("k").next().unwrap();
        assert_eq!(format!("{key:?}"), "RuleKey(k generation 3)");
        assert!(!format!("{store:?}").contains("195"), "{store:?}");
    }
}
