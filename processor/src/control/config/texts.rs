//! The text of a host's configuration: its own file, and what that names or has been handed.

use std::path::{Path, PathBuf};

use guestseal_rules::load::{FileError, Source, parse};
use sha2::{Digest, Sha256};

use crate::control::added;
use crate::control::shared::policy::{PolicyFiles, kept_at};

use super::{ConfigError, Overrides, RawHost, STATE, read};

/// Where a configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// host.yaml.
    pub path: PathBuf,
    /// What the command line said.
    pub(super) overrides: Overrides,
    /// host.yaml, the policy files and the sources' file.
    pub files: Vec<PathBuf>,
    /// The guests that were added; empty if none was.
    pub added: String,
    /// The policy's files, if they are from etcd.
    pub policy: Option<PolicyFiles>,
    /// The SHA-256 of them all.
    pub digest: String,
}

/// What is to hold instead of what the state directory has.
#[derive(Clone, Debug, Default)]
pub struct Handed {
    /// The guests that are to have been added.
    pub added: Option<String>,
    /// What etcd has as the policy's files; without meaning for a host that has its own.
    pub policy: Option<PolicyFiles>,
}

/// The text of a configuration.
pub(super) struct Texts {
    pub(super) host: Source,
    pub(super) raw: RawHost,
    pub(super) policies: Vec<Source>,
    /// The sources' file, and where it is.
    pub(super) mapping: Option<(PathBuf, Source)>,
    pub(super) origin: Origin,
}

impl Texts {
    pub(super) fn read(path: &Path, overrides: &Overrides, handed: Handed) -> Result<Self, ConfigError> {
        let host = read(path)?;
        let raw: RawHost = parse(&host)?;
        let is_shared = policy_is_shared(&host, &raw)?;
        let base = path.parent().unwrap_or(Path::new("."));
        let policy_files: Vec<PathBuf> = raw.policy.iter().map(|file| base.join(&file.value)).collect();
        let state_directory = base.join(raw.state_directory.as_deref().unwrap_or(STATE.as_ref()));
        let shared = match (is_shared, handed.policy) {
            (false, _) => None,
            (true, Some(files)) => Some(files),
            (true, None) => Some(kept(path, &state_directory)?),
        };
        let mut policies = match (&raw.etcd, &shared) {
            (Some(etcd), Some(files)) => files.sources(etcd.value.prefix()),
            _ => policy_files
                .iter()
                .map(|file| read(file))
                .collect::<Result<Vec<_>, _>>()?,
        };
        let of_added = added::path(&state_directory);
        let added = match handed.added {
            None if of_added.exists() => read(&of_added)?.text,
            added => added.unwrap_or_default(),
        };
        if !added.is_empty() {
            policies.push(Source {
                name: of_added.display().to_string(),
                text: added.clone(),
            });
        }
        let mapping = match &raw.sources {
            Some(file) => {
                let file = base.join(file);
                let text = read(&file)?;
                Some((file, text))
            }
            None => None,
        };
        let mapping_text = mapping.iter().map(|(_, text)| text);
        let mut digest = Sha256::new();
        for source in std::iter::once(&host).chain(&policies).chain(mapping_text) {
            for part in [&source.name, &source.text] {
                digest.update((part.len() as u64).to_be_bytes());
                digest.update(part);
            }
        }
        let digest = digest
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let origin = Origin {
            path: path.to_owned(),
            overrides: overrides.clone(),
            files: std::iter::once(path.to_owned())
                .chain(policy_files)
                .chain(mapping.iter().map(|(file, _)| file.clone()))
                .collect(),
            added,
            policy: shared,
            digest,
        };
        Ok(Self {
            host,
            raw,
            policies,
            mapping,
            origin,
        })
    }
}

/// Whether the policy is in etcd; it is there or in files, never in both.
fn policy_is_shared(host: &Source, raw: &RawHost) -> Result<bool, FileError> {
    let shared = raw.etcd.as_ref().filter(|etcd| etcd.value.policy);
    match (shared, raw.policy.first()) {
        (None, None) => Err(host.error(
            &raw.host.referenced,
            "no policy file is named: expected policy: [FILE, ...], or policy: true in the etcd part",
        )),
        (Some(_), Some(file)) => Err(host.error(
            &file.referenced,
            "the etcd part says that the policy is there (policy: true): expected no policy files beside it",
        )),
        (shared, _) => Ok(shared.is_some()),
    }
}

fn kept(path: &Path, state_directory: &Path) -> Result<PolicyFiles, ConfigError> {
    let at = kept_at(state_directory);
    match PolicyFiles::kept(state_directory) {
        Ok(Some(files)) => Ok(files),
        Ok(None) => Err(ConfigError::NoPolicy {
            path: path.to_owned(),
            kept: at,
        }),
        Err(source) => Err(ConfigError::Read { path: at, source }),
    }
}
