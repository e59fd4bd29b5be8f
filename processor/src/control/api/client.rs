//! The caller's side of the control socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::rustls::pki_types::ServerName;

use super::limits;
use super::problem::Problem;
use super::tls::{self, TlsError};

/// How long an answer may take: longer than the other side lets it.
const PATIENCE: Duration = Duration::from_secs(limits::RELOAD_TIME.as_secs() + 20);

/// Where guestseal listens.
#[derive(Clone, Debug)]
pub enum Server {
    /// At a Unix socket.
    Unix(PathBuf),
    /// At a TCP port.
    Tls {
        /// `name:port`; the name is the one in its certificate.
        address: String,
        /// The authority of its certificate.
        authority: PathBuf,
        /// One's own certificate.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or may be spoken to.
    #[error("{}: guestseal cannot be reached: does it run, and may this user connect?", path.display())]
    Unix {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Nobody listens at the port, or TLS fails.
    #[error("{address}: guestseal cannot be reached")]
    Tcp {
        /// The port.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What was asked is refused.
    #[error("{0}")]
    Refused(Problem),
    /// What came is no answer.
    #[error("guestseal's answer cannot be read: {0}")]
    Unreadable(String),
    /// Nothing came.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Slow,
    /// No thread or descriptor.
    #[error("the system has no room for a connection")]
    System(#[source] std::io::Error),
}

/// Calls guestseal.
#[derive(Debug)]
pub struct Client {
    server: Server,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// A caller of a server; nothing is connected yet.
    ///
    /// # Errors
    /// If the system has no room.
    pub fn new(server: Server) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::System)?;
        Ok(Self { server, runtime })
    }

    /// A caller of the socket at a path.
    ///
    /// # Errors
    /// If the system has no room.
    pub fn unix(path: &Path) -> Result<Self, ClientError> {
        Self::new(Server::Unix(path.to_owned()))
    }

    /// Asks; gives the answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        self.runtime.block_on(async {
            let answer = async {
                let response = self.send(method, path, body).await?;
                let body = response.into_body().collect().await.map_err(unreadable)?;
                serde_json::from_slice(&body.to_bytes()).map_err(unreadable)
            };
            let answer = tokio::time::timeout(PATIENCE, answer);
            answer.await.map_err(|_| ClientError::Slow)?
        })
    }

    /// Follows an event stream: `each` gets the event's name, if it has one, and its data, until it says false or the stream
    /// ends.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn follow(
        &self,
        path: &str,
        mut each: impl FnMut(Option<&str>, &str) -> bool,
    ) -> Result<(), ClientError> {
        self.runtime.block_on(async {
            let mut body = self.send("GET", path, None).await?.into_body();
            let (mut rest, mut name): (Vec<u8>, Option<String>) = (Vec::new(), None);
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.map_err(unreadable)?.into_data() else {
                    continue;
                };
                rest.extend_from_slice(&data);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    let line = String::from_utf8_lossy(&line);
                    let line = line.trim_end();
                    if let Some(event) = line.strip_prefix("event: ") {
                        name = Some(event.to_owned());
                    } else if let Some(data) = line.strip_prefix("data: ")
                        && !each(name.take().as_deref(), data)
                    {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, ClientError> {
        match &self.server {
            Server::Unix(socket) => {
                let stream = UnixStream::connect(socket)
                    .await
                    .map_err(|source| ClientError::Unix {
                        path: socket.clone(),
                        source,
                    })?;
                exchange(stream, "guestseal", method, path, body).await
            }
            Server::Tls {
                address,
                authority,
                certificate,
                key,
            } => {
                let failed = |source| ClientError::Tcp {
                    address: address.clone(),
                    source,
                };
                let connector = tls::connector(authority, certificate, key)?;
                let name = address
                    .rsplit_once(':')
                    .map_or(address.as_str(), |(name, _)| name);
                let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
                let server = ServerName::try_from(name.clone())
                    .map_err(|error| failed(std::io::Error::other(error)))?;
                let stream = TcpStream::connect(address).await.map_err(failed)?;
                let stream = connector.connect(server, stream).await.map_err(failed)?;
                exchange(stream, &name, method, path, body).await
            }
        }
    }
}

fn unreadable(error: impl std::fmt::Display) -> ClientError {
    ClientError::Unreadable(error.to_string())
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    host: &str,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Response<Incoming>, ClientError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unreadable)?;
    tokio::spawn(connection);
    let text = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).map_err(unreadable)?)
        .uri(path)
        .header(HOST, host)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(text)))
        .map_err(unreadable)?;
    let response = sender.send_request(request).await.map_err(unreadable)?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(unreadable)?;
    let problem: Problem = serde_json::from_slice(&body.to_bytes()).map_err(unreadable)?;
    Err(ClientError::Refused(Problem { status, ..problem }))
}
