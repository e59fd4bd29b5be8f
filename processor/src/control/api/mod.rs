//! The control socket: HTTP and JSON for whoever may read or change what guestseal does here.
//!
//! Runs in a thread of its own, with a tokio runtime of its own; the packet path knows nothing of it. What it is asked
//! goes to the control loop through a bounded channel and rings its doorbell; the loop answers when what was asked is in force
//! and durable. Who calls is known by SO_PEERCRED or by a certificate, never by what the caller says. Bodies, headers,
//! waiting and the number of connections are bounded: see [`limits`].

pub mod access;
pub mod client;
mod hooks;
pub mod limits;
pub mod problem;
mod routes;
mod serve;
pub(in crate::control) mod tls;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use guestseal_rules::event::Event;
use serde_json::Value;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::added::AddedGuest;
use super::sources::Teller;
use super::sources::webhook::SecretError;
use super::wake::Doorbell;
use crate::wire::ethernet::MacAddress;
use access::Access;
use problem::Problem;
pub(super) use routes::Accepted;
pub use routes::openapi;
pub use tls::TlsConfig;

/// The control socket's name in the state directory.
const SOCKET: &str = "control.sock";

/// A webhook: where signed reports of a source are posted to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookConfig {
    /// The source's name.
    pub name: String,
    /// Where it listens.
    pub listen: std::net::SocketAddr,
    /// The file of its secret.
    pub secret: PathBuf,
}

/// How the control side is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiConfig {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Its permission bits.
    pub mode: u32,
    /// The group that it is given to.
    pub group: Option<u32>,
    /// Who may do what by the Unix socket.
    pub access: Access,
    /// The TCP port with mutual TLS.
    pub tls: Option<TlsConfig>,
    /// Webhooks.
    pub hooks: Vec<HookConfig>,
}

impl ApiConfig {
    /// Only root and guestseal's own user, by a socket in the state directory.
    #[must_use]
    pub fn new(state_directory: &Path) -> Self {
        Self {
            socket: state_directory.join(SOCKET),
            mode: 0o600,
            group: None,
            access: Access::default(),
            tls: None,
            hooks: Vec::new(),
        }
    }
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The socket.
    #[error("{}: the control socket cannot be made", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The TCP port.
    #[error("{address}: the control port cannot be opened")]
    Port {
        /// Its address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// A webhook's secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The thread.
    #[error("the system has no room for the control socket's thread")]
    Thread(#[source] std::io::Error),
}

/// What the control loop is asked.
#[derive(Debug)]
pub enum Ask {
    /// Takes an event.
    Event(Event),
    /// Reads the policy's files again.
    Reload,
    /// A guest's card is behind an interface.
    AddPort {
        /// Id or UUID.
        guest: String,
        /// The card's MAC.
        mac: MacAddress,
        /// The interface.
        interface: String,
    },
    /// There is a guest that is in no file of the policy.
    AddGuest(AddedGuest),
    /// An interface that was added is no guest port any more.
    RemovePort {
        /// The host whose it is; this one without it.
        host: Option<String>,
        /// Its name.
        interface: String,
    },
    /// A guest is on another host.
    Move {
        /// Id or UUID.
        guest: String,
        /// The host's name.
        host: String,
    },
    /// Takes what somebody reports in the words of a source.
    Report {
        /// The source's name.
        source: String,
        /// What is reported.
        report: Value,
        /// Who tells it.
        teller: Teller,
    },
    /// Everything in short.
    Status,
    /// All guests.
    Guests,
    /// One guest, by id or UUID.
    Guest(String),
    /// All containers.
    Containers,
    /// The guest ports of this host.
    Ports,
    /// Where all guest ports are.
    Endpoints,
    /// Security associations.
    SecurityAssociations,
    /// Packets by outcome and rule.
    Counters,
    /// Latencies.
    Histograms,
}

/// A question, who asks, and where the answer goes.
#[derive(Debug)]
pub struct Request {
    /// Who asks, as the journal calls it.
    pub by: String,
    /// What.
    pub ask: Ask,
    /// The answer's way back.
    pub reply: oneshot::Sender<Result<Value, Problem>>,
}

/// The control loop's end.
#[derive(Debug)]
pub struct Desk {
    requests: mpsc::Receiver<Request>,
    bell: Doorbell,
    news: broadcast::Sender<Arc<str>>,
    socket: PathBuf,
}

/// The API's end.
#[derive(Clone, Debug)]
struct Counter {
    requests: mpsc::Sender<Request>,
    bell: Doorbell,
    news: broadcast::Sender<Arc<str>>,
    state_directory: PathBuf,
}

impl Counter {
    /// Asks the control loop, and waits for its answer.
    async fn ask(&self, by: String, ask: Ask) -> Result<Value, Problem> {
        let (reply, answer) = oneshot::channel();
        if self.requests.try_send(Request { by, ask, reply }).is_err() {
            return Err(Problem::busy());
        }
        self.bell.ring();
        answer.await.map_err(|_| Problem::ending())?
    }

    /// Tells a report.
    async fn report(&self, source: String, report: Value, teller: Teller) -> Result<Value, Problem> {
        // By whom it is follows from the source.
        let ask = Ask::Report {
            source,
            report,
            teller,
        };
        self.ask(String::new(), ask).await
    }
}

impl Desk {
    /// Opens the socket, and the port if there is one, and starts the thread that serves them.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn open(config: &ApiConfig, state_directory: &Path) -> Result<Self, ApiError> {
        let (sender, requests) = mpsc::channel(limits::WAITING);
        let bell = Doorbell::new().map_err(ApiError::Thread)?;
        let (news, _) = broadcast::channel(limits::NEWS);
        let counter = Counter {
            requests: sender,
            bell: bell.clone(),
            news: news.clone(),
            state_directory: state_directory.to_owned(),
        };
        serve::start(config, counter)?;
        Ok(Self {
            requests,
            bell,
            news,
            socket: config.socket.clone(),
        })
    }

    /// What can be read when somebody has asked.
    #[must_use]
    pub fn bell(&self) -> &Doorbell {
        &self.bell
    }

    /// What was asked since the last look.
    pub fn take(&mut self) -> Vec<Request> {
        self.bell.silence();
        std::iter::from_fn(|| self.requests.try_recv().ok()).collect()
    }

    /// Tells whoever listens.
    pub fn tell(&self, news: &impl serde::Serialize) {
        // Nobody listens: nothing to do.
        if self.news.receiver_count() > 0
            && let Ok(text) = serde_json::to_string(news)
        {
            let _ = self.news.send(text.into());
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}
