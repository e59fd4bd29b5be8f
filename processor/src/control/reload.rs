//! Another policy while guestseal runs: asked for by the API, SIGHUP or files that change.
//!
//! Files are read, checked and compiled in a thread of their own, and what comes of it is taken over by the control loop at
//! once, or not at all: a mistake anywhere leaves everything as it was. Files that change together are waited for until
//! they are quiet. One reload at a time; what is asked for meanwhile is one more after it.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use guestseal_rules::compile::{Ruleset, TooLarge};
use guestseal_rules::containers::Containers;
use guestseal_rules::event::Moment;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;
use utoipa::ToSchema;

use super::added::{Added, Change};
use super::api::ApiConfig;
use super::api::problem::Problem;
use super::config::{ConfigError, Handed, HostConfig};
use super::differences::differences;
use super::guests::PreparedGuests;
use super::sessions::SessionsError;
use super::sessions::reload::{Basis, Plan};
use super::shared::policy::{PolicyFiles, PolicyFilesError};
use super::supervise::chain;
use super::wake::Watched;

/// How long files must be quiet after a change before they are read: an editor writes, renames and writes again.
const QUIET: Duration = Duration::from_millis(300);
/// How long a file that never is quiet is waited for.
const LONGEST: Duration = Duration::from_secs(5);

/// Why another policy is not in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// A file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What is fixed while guestseal runs.
    #[error("{}: {} cannot change while guestseal runs: restart it for that, or take the change back", path.display(), what.join(", "))]
    Fixed {
        /// host.yaml.
        path: PathBuf,
        /// The fields.
        what: Vec<&'static str>,
    },
    /// The rules.
    #[error(transparent)]
    Rules(#[from] TooLarge),
    /// Peers, channels and keys.
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    /// What etcd has as the policy.
    #[error(transparent)]
    Shared(#[from] PolicyFilesError),
    /// The uplink's program.
    #[error("the uplink's program cannot take what the policy wants: {0}")]
    Uplink(String),
    /// More happened to guests meanwhile than is kept.
    #[error("too much happened to guests while the policy was read: ask again")]
    Overtaken,
    /// No thread.
    #[error("the system has no room to read the policy: {0}")]
    System(String),
}

impl From<&ReloadError> for Problem {
    fn from(error: &ReloadError) -> Self {
        let (status, name) = match error {
            ReloadError::Fixed { .. } => (StatusCode::CONFLICT, "NeedsRestart"),
            ReloadError::Overtaken => (StatusCode::SERVICE_UNAVAILABLE, "Overtaken"),
            ReloadError::System(_) => (StatusCode::SERVICE_UNAVAILABLE, "NoRoom"),
            _ => (StatusCode::UNPROCESSABLE_ENTITY, "BadPolicy"),
        };
        Problem::new(status, name, chain(error))
    }
}

/// That a policy is in force, and durable.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Reloaded {
    /// The generation of the rules that hold since.
    pub(super) generation: u32,
    /// The policy, by the SHA-256 of its files.
    pub(super) policy: String,
    /// What it changes, in words; empty if the files say what they said before.
    pub(super) changes: Vec<String>,
}

/// What is needed to prepare another policy beside the one in force.
#[derive(Debug)]
pub(super) struct Present {
    pub(super) config: Arc<HostConfig>,
    /// What etcd has as the policy's files, if this host takes them from there and has heard of them.
    pub(super) policy: Option<Result<PolicyFiles, PolicyFilesError>>,
    pub(super) containers: Containers,
    pub(super) sessions: Option<Basis>,
    pub(super) now: Moment,
}

/// Another policy, ready to be in force.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) config: Arc<HostConfig>,
    pub(super) guests: PreparedGuests,
    pub(super) sessions: Option<Plan>,
    pub(super) changes: Vec<String>,
}

impl Present {
    /// Reads the files and makes everything of them that can be made beforehand; `None` if they say what they said.
    fn prepare(self, added: Option<String>) -> Result<Option<Prepared>, ReloadError> {
        // Guests come and go whatever there is in etcd.
        let policy = match added {
            Some(_) => None,
            None => self.policy.transpose()?,
        };
        let Some(config) = self.config.load_again(Handed { added, policy })? else {
            return Ok(None);
        };
        let what = fixed(&self.config, &config);
        if !what.is_empty() {
            let path = config.origin.path;
            return Err(ReloadError::Fixed { path, what });
        }
        let config = Arc::new(config);
        let policy = &config.policy;
        let (containers, moved) = self.containers.adopt(Arc::clone(policy), self.now);
        let ruleset = Ruleset::compile(
            policy,
            containers.memberships(),
            containers.flows(),
            NonZeroU32::MIN,
        )?;
        let sessions = match &self.sessions {
            Some(basis) => basis.plan(&config)?,
            None => None,
        };
        Ok(Some(Prepared {
            guests: PreparedGuests {
                containers,
                moved,
                ruleset,
            },
            sessions,
            changes: differences(&self.config.policy, policy),
            config,
        }))
    }
}

/// What is another in a configuration and cannot be while guestseal runs.
fn fixed(before: &HostConfig, now: &HostConfig) -> Vec<&'static str> {
    // Webhooks are the sources', and say so.
    let api = |config: &HostConfig| ApiConfig {
        hooks: Vec::new(),
        ..config.api.clone()
    };
    let addresses = |config: &HostConfig| config.policy.hosts[config.host.index()].addresses.clone();
    let same = [
        ("host", before.host == now.host),
        ("the addresses of this host", addresses(before) == addresses(now)),
        ("uplink", before.uplink == now.uplink),
        ("workers", before.workers == now.workers),
        ("umem", before.umem == now.umem),
        ("xdp-mode", before.xdp_mode == now.xdp_mode),
        ("zero-copy", before.zero_copy == now.zero_copy),
        ("in-place", before.in_place == now.in_place),
        ("busy-poll", before.busy_poll == now.busy_poll),
        ("fix-offloads", before.fix_offloads == now.fix_offloads),
        ("aead", before.aead == now.aead),
        ("state-directory", before.state_directory == now.state_directory),
        ("pin-directory", before.pin_directory == now.pin_directory),
        ("histogram-log", before.histogram_log == now.histogram_log),
        ("events", before.events == now.events),
        ("group-rate", before.group_rate == now.group_rate),
        ("api", api(before) == api(now)),
        ("webhooks of sources", before.api.hooks == now.api.hooks),
        // They name what the policy has: also if that is another now, such as a network's kind or a host's address.
        ("security-associations", same_sas(before, now)),
        ("sessions", before.sessions == now.sessions),
        ("etcd", before.etcd == now.etcd),
    ];
    same.into_iter()
        .filter(|(_, same)| !same)
        .map(|(name, _)| name)
        .collect()
}

fn same_sas(before: &HostConfig, now: &HostConfig) -> bool {
    let address =
        |config: &HostConfig, host: usize| config.policy.hosts.get(host).map(|one| one.addresses.clone());
    before.sas == now.sas
        && now
            .sas
            .iter()
            .all(|sa| address(before, sa.peer.index()) == address(now, sa.peer.index()))
}

type Reply = oneshot::Sender<Result<Value, Problem>>;

/// A reload that is wanted: by whom, and who is to be told.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) by: Vec<String>,
    pub(super) replies: Vec<Reply>,
    /// The guests that are to have been added then, if there are to be others.
    pub(super) added: Option<String>,
}

/// A change of the guests that were added: by whom, and who is to be told.
struct Adding {
    by: String,
    change: Change,
    reply: Reply,
}

struct Underway {
    wanted: Wanted,
    result: Receiver<Result<Option<Prepared>, ReloadError>>,
}

/// When the first and the last of changes was seen that nobody has looked at yet.
#[derive(Debug, Default)]
struct Changes(Option<(Instant, Instant)>);

impl Changes {
    fn note(&mut self) {
        let now = Instant::now();
        let first = self.0.map_or(now, |(first, _)| first);
        self.0 = Some((first, now));
    }

    /// Whether they are to be looked at now, which is once.
    fn take_due(&mut self) -> bool {
        let is_due =
            |(first, last): &mut (Instant, Instant)| last.elapsed() >= QUIET || first.elapsed() >= LONGEST;
        self.0.take_if(is_due).is_some()
    }
}

/// Who wants another policy, and how far it is.
pub(super) struct Reloads {
    signal: Arc<AtomicBool>,
    /// Without it only the API and the signal reload.
    watched: Option<Watched>,
    files: Changes,
    etcd: Changes,
    wanted: Option<Wanted>,
    /// One reload each: what is wrong with one is not the others' fault.
    adding: VecDeque<Adding>,
    underway: Option<Underway>,
}

impl Reloads {
    /// Follows the files of a configuration, and a flag that SIGHUP sets.
    pub(super) fn new(config: &HostConfig, signal: Arc<AtomicBool>) -> Self {
        Self {
            signal,
            watched: watch(config),
            files: Changes::default(),
            etcd: Changes::default(),
            wanted: None,
            adding: VecDeque::new(),
            underway: None,
        }
    }

    /// Somebody wants another guest.
    pub(super) fn add(&mut self, by: String, change: Change, reply: Reply) {
        self.adding.push_back(Adding { by, change, reply });
    }

    /// Somebody wants the files read.
    pub(super) fn want(&mut self, by: String, reply: Option<Reply>) {
        let wanted = self.wanted.get_or_insert_default();
        if !wanted.by.contains(&by) {
            wanted.by.push(by);
        }
        wanted.replies.extend(reply);
    }

    /// Once more, for the same ones.
    pub(super) fn want_again(&mut self, again: Wanted, present: Present) {
        self.start(again, present);
    }

    /// The files of another configuration are followed; what has changed since they were read is looked for once more.
    pub(super) fn follow(&mut self, config: &HostConfig) {
        self.watched = watch(config);
        self.files.note();
    }

    /// etcd has another policy.
    pub(super) fn note_etcd(&mut self) {
        self.etcd.note();
    }

    /// Whether what etcd has may be half of what is written there just now.
    pub(super) fn waits_for_etcd(&self) -> bool {
        self.etcd.0.is_some()
    }

    /// Looks for the signal and for files that have changed and are quiet. Whether a reload is to begin.
    pub(super) fn look(&mut self) -> bool {
        if self.signal.swap(false, Ordering::AcqRel) {
            self.want("SIGHUP".to_owned(), None);
        }
        if self.watched.as_ref().is_some_and(Watched::take) {
            self.files.note();
        }
        if self.files.take_due() {
            self.want("a change of its files".to_owned(), None);
        }
        if self.etcd.take_due() {
            self.want("a change of the policy in etcd".to_owned(), None);
        }
        (self.wanted.is_some() || !self.adding.is_empty()) && self.underway.is_none()
    }

    /// Begins what is wanted; whether something was begun.
    pub(super) fn begin(&mut self, present: Present) -> bool {
        if let Some(wanted) = self.wanted.take() {
            // What changes from here on is read again.
            self.files = Changes::default();
            self.start(wanted, present);
            return true;
        }
        let Some(Adding { by, change, reply }) = self.adding.pop_front() else {
            return false;
        };
        match Added::parse(&present.config.origin.added).with(change) {
            Ok(added) => {
                let (by, replies, added) = (vec![by], vec![reply], Some(added.text()));
                self.start(Wanted { by, replies, added }, present);
                true
            }
            Err(problem) => {
                // Who asked may have gone.
                let _ = reply.send(Err(problem));
                false
            }
        }
    }

    fn start(&mut self, wanted: Wanted, present: Present) {
        let added = wanted.added.clone();
        let (sender, result) = sync_channel(1);
        let thread = std::thread::Builder::new().name("reload".to_owned());
        let refuse = sender.clone();
        let begun = thread.spawn(move || {
            // Nobody waits for it if guestseal ends.
            let _ = sender.send(present.prepare(added));
        });
        if let Err(error) = begun {
            let _ = refuse.send(Err(ReloadError::System(error.to_string())));
        }
        self.underway = Some(Underway { wanted, result });
    }

    /// What has come of the one that was begun, once it has.
    pub(super) fn finished(&mut self) -> Option<(Wanted, Result<Option<Prepared>, ReloadError>)> {
        let result = match self.underway.as_ref()?.result.try_recv() {
            Ok(result) => result,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err(ReloadError::System("its thread has ended".to_owned())),
        };
        let Underway { wanted, .. } = self.underway.take()?;
        Some((wanted, result))
    }
}

fn watch(config: &HostConfig) -> Option<Watched> {
    let watched = Watched::new(config.origin.files.iter().cloned());
    watched
        .inspect_err(|error| {
            tracing::warn!(
                "changes of the policy's files are not seen, only SIGHUP and the API reload: {error}"
            );
        })
        .ok()
}
