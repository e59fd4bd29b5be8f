//! Follows a key manager in a thread of its own: the control loop never waits for it, and traffic goes on without it.
//!
//! What it gave last holds until it gives something else; that it cannot be reached, or gives something that is no key,
//! changes nothing and is said once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use guestseal_rules::event::Moment;
use serde::Serialize;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConnection, StreamOwned};

use crate::control::api::tls::{TlsError, connector};
use crate::control::guests::now;
use crate::control::supervise::chain;
use crate::keys::handshake::random::{System, jitter};
use crate::keys::kmip::order::{Ordered, Orders, SETTLE};
use crate::keys::kmip::{Fetched, KmipError};
use crate::keys::store::{Generation, KeyStore};

/// How long each step of a connection may take.
const STEP: Duration = Duration::from_secs(5);
/// How long a start waits for the first keys.
const FIRST: Duration = Duration::from_secs(10);

/// A key manager that speaks KMIP over TLS, both sides with certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerConfig {
    /// Its name or address, which its certificate must have.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
    /// The authorities of its certificate: PEM.
    pub authority: PathBuf,
    /// This host's certificate, by which the manager knows it: PEM.
    pub certificate: PathBuf,
    /// Its key: PEM, readable by nobody else.
    pub key: PathBuf,
    /// How often it is asked.
    pub every: Duration,
    /// Whether it is to make the next generation of a key that is used up.
    pub order: bool,
}

/// A key's id, its generation, and a fingerprint of its bytes.
type Known = (String, Generation, [u8; 32]);

#[derive(Debug, thiserror::Error)]
enum ManagerError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{0}: the key manager's name is no DNS name and no address")]
    Name(String),
    #[error("the key manager {address} cannot be reached")]
    Unreachable {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("TLS with the key manager")]
    Handshake(#[from] tokio_rustls::rustls::Error),
    #[error(transparent)]
    Kmip(#[from] KmipError),
}

/// How it is with a key manager.
#[derive(Clone, Debug, Serialize)]
pub struct ManagerStatus {
    /// Its name or address, and port.
    pub server: String,
    /// Whether it gave its keys at the last look.
    pub answers: bool,
    /// Since when that is so.
    pub since: Moment,
    /// The last look, once there was one.
    pub looked: Option<Moment>,
    /// Why it gave none.
    pub why: Option<String>,
    /// Generations of keys that have come from it since the start.
    pub generations_taken: u64,
    /// Those that this host has it make since the start.
    pub generations_ordered: u64,
    /// Why it makes none.
    pub why_no_order: Option<String>,
}

/// The newest generation of each key that is used up.
pub(super) type UsedUp = BTreeMap<String, Generation>;

/// The keys of a manager, as they come.
#[derive(Debug)]
pub(super) struct Manager {
    news: Receiver<KeyStore>,
    status: Arc<ArcSwap<ManagerStatus>>,
    /// Whether it is to make keys.
    orders: bool,
    /// Tells the thread which are used up; its end ends the thread.
    used_up: Sender<UsedUp>,
    /// What was told last.
    told: UsedUp,
}

impl Manager {
    /// Begins to follow it. Gives the keys that it has now, or none if it does not say in time.
    pub(super) fn follow(config: ManagerConfig) -> io::Result<(Self, KeyStore)> {
        let (sender, news) = channel();
        let (used_up, wanted) = channel();
        let orders = config.order;
        let status = Arc::new(ArcSwap::from_pointee(ManagerStatus {
            server: format!("{}:{}", config.host, config.port),
            answers: false,
            since: now(),
            looked: None,
            why: None,
            generations_taken: 0,
            generations_ordered: 0,
            why_no_order: None,
        }));
        let told = Arc::clone(&status);
        std::thread::Builder::new()
            .name("key-manager".to_owned())
            .spawn(move || ask_and_ask(&config, &told, &sender, &wanted))?;
        let first = news.recv_timeout(FIRST).unwrap_or_else(|_| {
            tracing::warn!("the key manager gives no keys: what they seal is dropped until it does");
            KeyStore::default()
        });
        let manager = Self {
            news,
            status,
            orders,
            used_up,
            told: UsedUp::new(),
        };
        Ok((manager, first))
    }

    /// These generations are used up, and no others: what follows them is ordered, if it is to be. Says whether it is.
    pub(super) fn order(&mut self, used_up: UsedUp) -> bool {
        if self.orders && self.told != used_up {
            self.told.clone_from(&used_up);
            // The thread ends only with this one.
            let _ = self.used_up.send(used_up);
        }
        self.orders
    }

    /// How it is with it.
    pub(super) fn status(&self) -> ManagerStatus {
        ManagerStatus::clone(&self.status.load())
    }

    /// The keys, if they are others than at the last look.
    pub(super) fn look(&self) -> Option<KeyStore> {
        self.news.try_iter().last()
    }
}

fn ask_and_ask(
    config: &ManagerConfig,
    told: &ArcSwap<ManagerStatus>,
    sender: &Sender<KeyStore>,
    wanted: &Receiver<UsedUp>,
) {
    let begin = Instant::now();
    let mut fetched = Fetched::default();
    let mut orders = Orders::default();
    let mut used_up = UsedUp::new();
    let mut held: Option<BTreeSet<Known>> = None;
    let mut said: Option<String> = None;
    let mut status = ManagerStatus::clone(&told.load());
    loop {
        let answer = connect(config).and_then(|mut stream| {
            let store = fetched.fetch(&mut stream)?;
            // What is there by now is not ordered.
            let mut wanted = used_up.clone();
            wanted.retain(|key, used| store.generations(key).all(|one| one.generation <= *used));
            let ordered = orders.place(&mut stream, &wanted, begin.elapsed());
            Ok((store, ordered))
        });
        let looked = now();
        status.looked = Some(looked);
        if answer.is_ok() != status.answers {
            (status.answers, status.since) = (answer.is_ok(), looked);
        }
        status.why = answer.as_ref().err().map(|error| chain(error));
        match answer {
            Ok((store, ordered)) => {
                if said.take().is_some() {
                    tracing::info!("the key manager {}:{} answers again", config.host, config.port);
                }
                let keys = store.fingerprints();
                let now: BTreeSet<Known> = keys
                    .map(|(key, bytes)| (key.id.clone(), key.generation, bytes))
                    .collect();
                if held.as_ref() != Some(&now) {
                    let before = held.replace(now.clone()).unwrap_or_default();
                    status.generations_taken += now.difference(&before).count() as u64;
                    if sender.send(store).is_err() {
                        return;
                    }
                }
                say_ordered(&mut status, ordered);
            }
            Err(error) => {
                let text = chain(&error);
                if said.as_ref() != Some(&text) {
                    tracing::error!("the keys stay as they were: {text}");
                    said = Some(text);
                }
            }
        }
        told.store(Arc::new(status.clone()));
        let every = if used_up.is_empty() {
            config.every
        } else {
            config.every.min(SETTLE)
        };
        // Up to a tenth less: hosts that started together do not ask together.
        let wait = every - jitter(every / 10, &mut System);
        match wanted.recv_timeout(wait) {
            Ok(news) => used_up = news,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Says what was ordered, or once why nothing is.
fn say_ordered(status: &mut ManagerStatus, ordered: Result<Ordered, KmipError>) {
    match ordered {
        Ok(Ordered { made, active }) => {
            for name in made {
                tracing::info!("key {name} is ordered: it is made at the key manager");
                status.generations_ordered += 1;
            }
            for name in active {
                tracing::info!("key {name} is active at the key manager");
            }
            status.why_no_order = None;
        }
        Err(error) => {
            let why = chain(&error);
            if status.why_no_order.as_ref() != Some(&why) {
                tracing::error!("no key is ordered: {why}");
            }
            status.why_no_order = Some(why);
        }
    }
}

fn connect(config: &ManagerConfig) -> Result<StreamOwned<ClientConnection, TcpStream>, ManagerError> {
    let tls = connector(&config.authority, &config.certificate, &config.key)?;
    let name =
        ServerName::try_from(config.host.clone()).map_err(|_| ManagerError::Name(config.host.clone()))?;
    let stream = dial(config).map_err(|source| ManagerError::Unreachable {
        address: format!("{}:{}", config.host, config.port),
        source,
    })?;
    let connection = ClientConnection::new(Arc::clone(tls.config()), name)?;
    Ok(StreamOwned::new(connection, stream))
}

fn dial(config: &ManagerConfig) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for address in (config.host.as_str(), config.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, STEP) {
            Ok(stream) => {
                stream.set_read_timeout(Some(STEP))?;
                stream.set_write_timeout(Some(STEP))?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}
