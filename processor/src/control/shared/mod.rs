//! What the hosts of a fleet share, by etcd: what happens to guests, where they are, which hosts are alive, and the policy
//! if they take it from there.
//!
//! etcd holds state, not a log: one key a guest with all that is known of it, written by the host that was told, in a
//! transaction that compares the key's revision. So a host that comes late or was away reads what there is and goes on from
//! there; compaction takes nothing that anybody needs, and the size is bounded by the number of guests.
//!
//! etcd is spoken to in a thread of its own, with a small tokio runtime of its own; bounded channels lead to the control loop and back.
//! The control loop never waits for it, and nothing that is answered or forwarded depends on it.

pub mod config;
mod endpoints;
mod guests;
mod hosts;
mod link;
pub mod operator;
pub mod policy;
mod session;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guestseal_rules::event::Moment;
use serde::Serialize;
use tokio::sync::mpsc;

use super::config::HostConfig;
use super::guests::now;
use super::wake::Doorbell;
pub use config::{EtcdConfig, EtcdError};
pub use endpoints::Due;
use endpoints::Endpoints;
use guests::Publishing;
pub use hosts::HostSeen;
use hosts::Own;
use link::{Link, in_short};
use policy::{PolicyFiles, PolicyFilesError};

/// How long etcd may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How long it may take to answer.
const CALL: Duration = Duration::from_secs(3);

/// How long an ordered stop waits for etcd to be told.
const FAREWELL: Duration = Duration::from_secs(1);

/// What waits for the control loop, and what waits to be written.
const NEWS: usize = 32;
const ORDERS: usize = 128;

/// What the control loop is told. A path is what a key has behind the prefix.
#[derive(Debug)]
enum News {
    /// etcd answers: everything that is there will be told.
    Begins,
    /// What a key says, or that it is gone.
    Item {
        path: String,
        value: Option<Vec<u8>>,
        revision: i64,
    },
    /// What was there has been told; from here on what changes.
    AllRead,
    /// A key was written.
    Written { path: String, revision: i64 },
    /// A key was not written: somebody else has, this.
    Overtaken {
        path: String,
        value: Option<Vec<u8>>,
        revision: i64,
    },
    /// A key may not be written.
    Denied { path: String },
    /// What there is as the policy's files.
    Policy(Result<PolicyFiles, PolicyFilesError>),
    /// etcd does not answer any more.
    Lost,
}

/// A key that is to be written.
#[derive(Debug)]
struct Put {
    path: String,
    value: Vec<u8>,
    /// The revision that is known of it; 0 if it is not there.
    known: i64,
}

/// What the control loop wants.
#[derive(Debug)]
enum Order {
    Put(Put),
    ReadAgain,
}

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
    /// Guests of which etcd does not know all that this host knows.
    pub unpublished: usize,
    /// What was refused, by reason: what this host may not write, what etcd said that cannot be.
    pub refused: BTreeMap<&'static str, u64>,
    /// Why the policy that is there is not in force here, if this host takes it from there.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy_error: String,
    /// The hosts of the policy, and those that etcd knows besides.
    pub hosts: BTreeMap<String, HostSeen>,
}

type Shared = Arc<Mutex<View>>;

/// Counts what was refused, and says it in the log when it is the first of its kind.
fn refuse(view: &Shared, reason: &'static str, what: &str) {
    let mut view = look(view);
    let count = view.refused.entry(reason).or_default();
    *count += 1;
    let what = in_short(what);
    if *count == 1 {
        tracing::error!("etcd: {what}");
    } else {
        tracing::debug!("etcd: {what}");
    }
}

fn look(view: &Shared) -> MutexGuard<'_, View> {
    // Whoever panicked has left numbers that are as good as any.
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What etcd has as the policy's files.
#[derive(Debug, Default)]
struct Offered {
    /// Once they have been heard.
    files: Option<Result<PolicyFiles, PolicyFilesError>>,
    is_news: bool,
    /// Why they are not in force.
    error: String,
}

impl Offered {
    fn take(&mut self, files: Result<PolicyFiles, PolicyFilesError>) {
        let files = Some(files);
        // After a loss everything is told again.
        self.is_news |= self.files != files;
        self.files = files;
    }
}

/// The control loop's end.
#[derive(Debug)]
pub struct Fleet {
    view: Shared,
    news: mpsc::Receiver<News>,
    bell: Doorbell,
    /// Its end ends the thread.
    orders: mpsc::Sender<Order>,
    /// Closed when the thread has ended.
    ended: Receiver<Infallible>,
    publishing: Publishing,
    endpoints: Endpoints,
    policy: Offered,
}

impl Fleet {
    /// Begins to speak to etcd; whether it answers is not waited for.
    ///
    /// # Errors
    /// If this host's own files cannot be used. See [`EtcdError`].
    pub fn open(etcd: &EtcdConfig, config: &HostConfig) -> Result<Self, EtcdError> {
        let view = Arc::new(Mutex::new(View::new()));
        let (told, news) = mpsc::channel(NEWS);
        let (orders, wanted) = mpsc::channel(ORDERS);
        let bell = Doorbell::new().map_err(EtcdError::Thread)?;
        let link = Link {
            config: etcd.clone(),
            credentials: etcd.credentials()?,
            own: Own::of(config),
            view: Arc::clone(&view),
            news: told,
            bell: bell.clone(),
            orders: wanted,
            lease: None,
        };
        let (ending, ended) = sync_channel(0);
        link::start(link, ending)?;
        Ok(Self {
            view,
            news,
            bell,
            orders,
            ended,
            publishing: Publishing::default(),
            endpoints: Endpoints::default(),
            policy: Offered::default(),
        })
    }

    /// Takes leave: the other hosts see that this one is gone. Waits for that, but never long.
    pub fn end(self) {
        let Self {
            news, orders, ended, ..
        } = self;
        drop((news, orders));
        // It ends in time or it does not.
        let _ = ended.recv_timeout(FAREWELL);
    }

    /// What can be read when etcd has told something.
    #[must_use]
    pub fn bell(&self) -> &Doorbell {
        &self.bell
    }

    /// The policy's files as etcd has them, as far as this host has heard.
    pub fn policy(&self) -> Option<Result<PolicyFiles, PolicyFilesError>> {
        self.policy.files.clone()
    }

    /// Whether they are others than before, which is said once.
    pub fn take_policy_change(&mut self) -> bool {
        std::mem::take(&mut self.policy.is_news)
    }

    /// Notes why they are not in force, or that they are.
    pub fn note_policy(&mut self, refused: Option<&str>) {
        self.policy.error = refused.unwrap_or_default().to_owned();
        if refused.is_some() {
            // The log has it already.
            *look(&self.view).refused.entry("BadPolicy").or_default() += 1;
        }
    }

    fn refuse(&self, reason: &'static str, what: &str) {
        refuse(&self.view, reason, what);
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
            unpublished: self.publishing.unpublished(),
            refused: view.refused.clone(),
            policy_error: self.policy.error.clone(),
            hosts: hosts::seen(&view.hosts, &config.policy, config.host),
        }
    }
}
