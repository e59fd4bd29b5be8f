//! The policy in etcd from outside of a running guestseal: what an operator puts there, and what a host takes before it starts.
//!
//! One connection each, with a bound on its time. What is put there is put by one transaction: no host ever
//! has some of its files without the others.

use std::future::Future;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use guestseal_rules::compile::{Ruleset, TooLarge};
use guestseal_rules::containers::Containers;
use guestseal_rules::load::{FileErrors, Source, parse};
use serde::Deserialize;
use serde_saphyr::Spanned;
use tokio::time::timeout;

use crate::control::config::{ConfigError, Handed, HostConfig, Overrides, read};
use crate::control::guests::now;
use crate::control::sessions::SessionsError;
use crate::control::sessions::reload::check_scope;
use crate::control::supervise::chain;

use super::config::{EtcdConfig, EtcdError, RawEtcd};
use super::policy::{self, LARGEST, PolicyFiles, PolicyFilesError};
use super::session::{Ended, INVALID_ARGUMENT, PERMISSION_DENIED, call, is};

/// How long etcd may take for all that is asked of it. A start waits no longer.
const LONGEST: Duration = Duration::from_secs(5);

/// Why the policy in etcd was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// This side's certificates and passwords.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// What the files are.
    #[error(transparent)]
    Files(#[from] PolicyFilesError),
    /// No sessions can be had under it.
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    /// It is too large.
    #[error(transparent)]
    Rules(#[from] TooLarge),
    /// The file has no part for etcd.
    #[error("{}: expected an etcd part that says where etcd is, as a host's file has it", .0.display())]
    NoEtcd(PathBuf),
    /// The host takes its policy from files.
    #[error("{}: this host has a policy of its own files: expected policy: true in its etcd part", .0.display())]
    Own(PathBuf),
    /// etcd.
    #[error("etcd at {}: {why}", endpoints.join(", "))]
    Ended {
        /// What it said, or did not.
        why: String,
        /// Where it is.
        endpoints: Vec<String>,
    },
    /// Who asks may not.
    #[error("etcd: {who} may not write under {at}: expected a user whom a role grants that")]
    Denied {
        /// Whom etcd knows the asker as.
        who: String,
        /// The keys.
        at: String,
    },
    /// etcd takes no more at once.
    #[error("etcd: {0}: put less into the policy, or give etcd more: --max-request-bytes")]
    TooMuch(String),
    /// Somebody else was faster.
    #[error(
        "somebody else has written the policy in etcd meanwhile, and nothing of this was: look at it, then push again"
    )]
    Overtaken,
    /// There is nothing to start with.
    #[error("{}: the policy is in etcd, and this host has none of it in {} to start with: see to it that etcd answers and has one, then start again", path.display(), kept.display())]
    NothingKept {
        /// host.yaml.
        path: PathBuf,
        /// Where it would be.
        kept: PathBuf,
        /// Why etcd gave none.
        #[source]
        source: Box<Self>,
    },
    /// It cannot be kept.
    #[error("{}: cannot be written", path.display())]
    Keep {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A file's part for etcd.
#[derive(Debug, Deserialize)]
struct OnlyEtcd {
    #[serde(default)]
    etcd: Option<Spanned<RawEtcd>>,
}

/// The part for etcd of a host's file, or of an operator's.
///
/// # Errors
/// If there is none, or something is wrong in it.
pub fn etcd_of(path: &Path) -> Result<EtcdConfig, PolicyError> {
    let source = read(path)?;
    let raw: OnlyEtcd = parse(&source).map_err(ConfigError::from)?;
    let raw = raw.etcd.ok_or_else(|| PolicyError::NoEtcd(path.to_owned()))?;
    let base = path.parent().unwrap_or(Path::new("."));
    let mut errors = Vec::new();
    let etcd = RawEtcd::resolve(raw, &source, base, &mut errors);
    if errors.is_empty() {
        Ok(etcd)
    } else {
        Err(ConfigError::File(FileErrors(errors)).into())
    }
}

/// Asks etcd something, in a runtime that lasts as long.
fn ask<T, F: Future<Output = Result<T, PolicyError>>>(
    etcd: &EtcdConfig,
    what: impl FnOnce(Client) -> F,
) -> Result<T, PolicyError> {
    let options = etcd.credentials()?.options();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(EtcdError::Thread)?;
    let asked = async {
        let client = call(Client::connect(&etcd.endpoints, Some(options))).await;
        what(client.map_err(|ended| PolicyError::of(&ended, etcd))?).await
    };
    let answer = runtime.block_on(async { timeout(LONGEST, asked).await });
    answer.unwrap_or_else(|_| Err(PolicyError::of(&Ended::Silent, etcd)))
}

impl PolicyError {
    fn of(ended: &Ended, etcd: &EtcdConfig) -> Self {
        let why = super::link::in_short(&ended.to_string());
        if is(ended, PERMISSION_DENIED) {
            let who = etcd
                .user
                .as_ref()
                .map_or("whoever shows no user", |(user, _)| user);
            return Self::Denied {
                who: who.to_owned(),
                at: policy::at(etcd),
            };
        }
        if is(ended, INVALID_ARGUMENT) {
            return Self::TooMuch(why);
        }
        let endpoints = etcd.endpoints.clone();
        Self::Ended { why, endpoints }
    }
}

/// The policy's files, as the loader will read them from etcd.
///
/// # Errors
/// If they cannot be there.
pub fn gather(etcd: &EtcdConfig, sources: &[Source]) -> Result<(PolicyFiles, Vec<Source>), PolicyError> {
    let name = |source: &Source| {
        let name = Path::new(&source.name).file_name();
        name.unwrap_or_default().to_string_lossy().into_owned()
    };
    let named: Vec<(String, &str)> = sources
        .iter()
        .map(|source| (name(source), &*source.text))
        .collect();
    let named = named
        .iter()
        .map(|(name, text)| (name.as_bytes(), text.as_bytes()));
    let files = PolicyFiles::new("", named)?;
    let sources = files.sources(&etcd.prefix);
    Ok((files, sources))
}

/// Puts the policy's files into etcd, all at once, and takes those away that are there besides; gives the revision.
///
/// # Errors
/// See [`PolicyError`]; then nothing was written, unless etcd did not answer.
pub fn push(etcd: &EtcdConfig, files: &PolicyFiles) -> Result<i64, PolicyError> {
    let at = policy::at(etcd);
    ask(etcd, async |client| {
        let options = policy::all().with_keys_only();
        let mut kv = client.kv_client().max_decoding_message_size(LARGEST);
        let there = call(kv.get(at.clone(), Some(options)))
            .await
            .map_err(|ended| PolicyError::of(&ended, etcd))?;
        if there.more() {
            return Err(PolicyFilesError::TooMany.into());
        }
        let revision = there.header().map_or(0, |header| header.revision());
        let old = there.kvs().iter().filter_map(|pair| {
            let name = std::str::from_utf8(pair.key().strip_prefix(at.as_bytes())?);
            let is_new = name.is_ok_and(|name| files.has(name));
            (!is_new).then(|| TxnOp::delete(pair.key(), None))
        });
        let new = files
            .iter()
            .map(|(name, text)| TxnOp::put(format!("{at}{name}"), text.as_bytes(), None));
        // None of them was written since they were looked at.
        let unchanged = Compare::mod_revision(at.clone(), CompareOp::Less, revision + 1).with_prefix();
        let txn = Txn::new()
            .when([unchanged])
            .and_then(new.chain(old).collect::<Vec<_>>());
        let answer = call(kv.txn(txn))
            .await
            .map_err(|ended| PolicyError::of(&ended, etcd))?;
        if !answer.succeeded() {
            return Err(PolicyError::Overtaken);
        }
        Ok(answer.header().map_or(0, |header| header.revision()))
    })
}

/// The configuration of a host with the policy that etcd has now.
///
/// # Errors
/// See [`PolicyError`].
pub fn take(path: &Path, overrides: &Overrides) -> Result<HostConfig, PolicyError> {
    let etcd = etcd_of(path)?;
    if !etcd.policy {
        return Err(PolicyError::Own(path.to_owned()));
    }
    let files = ask(&etcd, async |client| {
        let read = policy::read(&etcd, &client).await;
        Ok(read.map_err(|ended| PolicyError::of(&ended, &etcd))??)
    })?;
    let handed = Handed {
        policy: Some(files),
        added: None,
    };
    Ok(HostConfig::load_handed(path, overrides, handed)?)
}

/// Takes the policy in etcd and keeps it, for what is done before the first start.
///
/// # Errors
/// See [`PolicyError`]; then what was kept before still is.
pub fn pull(path: &Path, overrides: &Overrides) -> Result<HostConfig, PolicyError> {
    let config = take(path, overrides)?;
    if let Some(files) = &config.origin.policy {
        let kept = files.keep(&config.state_directory);
        kept.map_err(|source| PolicyError::Keep {
            path: policy::kept_at(&config.state_directory),
            source,
        })?;
    }
    Ok(config)
}

/// What a reload would look at besides: a host that starts must not be worse off than one that runs.
fn can_be(config: &HostConfig) -> Result<(), PolicyError> {
    check_scope(config)?;
    let policy = &config.policy;
    let containers = Containers::new(Arc::clone(policy), now());
    Ruleset::compile(
        policy,
        containers.memberships(),
        containers.flows(),
        NonZeroU32::MIN,
    )?;
    Ok(())
}

/// What a host starts with: if its policy is in etcd, what etcd has, or else what the host has kept.
///
/// # Errors
/// See [`PolicyError`].
pub fn load_to_start(path: &Path, overrides: &Overrides) -> Result<HostConfig, PolicyError> {
    let taken = take(path, overrides).and_then(|config| can_be(&config).map(|()| config));
    let why = match taken {
        Ok(config) => return Ok(config),
        Err(why) => why,
    };
    match HostConfig::load(path, overrides) {
        Ok(config) => {
            if config.origin.policy.is_some() {
                tracing::error!(
                    "{}; guestseal starts with the policy that was in force last",
                    chain(&why)
                );
            }
            Ok(config)
        }
        Err(ConfigError::NoPolicy { path, kept }) => Err(PolicyError::NothingKept {
            path,
            kept,
            source: Box::new(why),
        }),
        Err(error) => Err(error.into()),
    }
}
