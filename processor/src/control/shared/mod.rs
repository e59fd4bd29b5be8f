//! What the hosts of a fleet share, by etcd: what happens to guests, where they are, and which hosts are alive.
//!
//! etcd holds state, not a log: one key a guest with all that is known of it, written by the host that was told, in a
//! transaction that compares the key's revision. So a host that comes late or was away reads what there is and goes on from
//! there; compaction takes nothing that anybody needs, and the size is bounded by the number of guests.
//!
//! etcd is spoken to in a thread of its own, with a small tokio runtime of its own; bounded channels lead to the control loop and back.
//! The control loop never waits for it, and nothing that is answered or forwarded depends on it.

pub mod config;
mod hosts;
mod link;
mod session;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guestseal_rules::event::Moment;
use serde::Serialize;
use tokio::sync::mpsc;

use super::config::HostConfig;
use super::guests::now;
pub use config::{EtcdConfig, EtcdError};
pub use hosts::HostSeen;
use hosts::Own;
use link::Link;

/// How long etcd may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How long it may take to answer.
const CALL: Duration = Duration::from_secs(3);

/// How etcd is at the moment, as the thread that speaks to it knows.
#[derive(Debug)]
struct View {
    connected: bool,
    since: Moment,
    error: String,
    revision: i64,
    refused: BTreeMap<&'static str, u64>,
    hosts: BTreeMap<String, hosts::Told>,
}

impl View {
    fn new() -> Self {
        Self {
            connected: false,
            since: now(),
            error: String::new(),
            revision: 0,
            refused: BTreeMap::new(),
            hosts: BTreeMap::new(),
        }
    }
}

/// What status shows of etcd.
#[derive(Clone, Debug, Serialize)]
pub struct EtcdStatus {
    /// Whether it answers.
    pub connected: bool,
    /// Since when it does, or does not.
    pub since: Moment,
    /// Why it does not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Up to which of its revisions this host knows.
    pub revision: i64,
    /// What was refused, by reason: what this host may not write, what etcd said that cannot be.
    pub refused: BTreeMap<&'static str, u64>,
    /// The hosts of the policy, and those that etcd knows besides.
    pub hosts: BTreeMap<String, HostSeen>,
}

type Shared = Arc<Mutex<View>>;

fn look(view: &Shared) -> MutexGuard<'_, View> {
    // Whoever panicked has left numbers that are as good as any.
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The control loop's end.
#[derive(Debug)]
pub struct Fleet {
    view: Shared,
    /// Its end ends the thread.
    _stop: mpsc::Sender<()>,
}

impl Fleet {
    /// Begins to speak to etcd; whether it answers is not waited for.
    ///
    /// # Errors
    /// If this host's own files cannot be used. See [`EtcdError`].
    pub fn open(etcd: &EtcdConfig, config: &HostConfig) -> Result<Self, EtcdError> {
        let view = Arc::new(Mutex::new(View::new()));
        let (stop, stopped) = mpsc::channel(1);
        let link = Link {
            config: etcd.clone(),
            credentials: etcd.credentials()?,
            own: Own::of(config),
            view: Arc::clone(&view),
        };
        link::start(link, stopped)?;
        Ok(Self { view, _stop: stop })
    }

    /// What status shows.
    #[must_use]
    pub fn status(&self, config: &HostConfig) -> EtcdStatus {
        let view = look(&self.view);
        EtcdStatus {
            connected: view.connected,
            since: view.since,
            error: view.error.clone(),
            revision: view.revision,
            refused: view.refused.clone(),
            hosts: hosts::seen(&view.hosts, &config.policy, config.host),
        }
    }
}
