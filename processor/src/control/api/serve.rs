//! Connections: accepted, bounded in number and time, and told who is at their other end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use crate::files;

use super::access::{Access, Caller};
use super::{ApiConfig, ApiError, Counter, TlsConfig, hooks, limits, routes, tls};

/// How long accepting waits when the system has no descriptor left.
const BREATH: Duration = Duration::from_millis(100);

/// Opens the listeners, and starts the thread that serves them until the control loop's end is gone.
pub(super) fn start(config: &ApiConfig, counter: Counter) -> Result<(), ApiError> {
    let unix =
        files::listen(&config.socket, config.group, config.mode).map_err(|source| ApiError::Socket {
            path: config.socket.clone(),
            source,
        })?;
    let tcp = match &config.tls {
        Some(tls) => Some((listen(tls.listen)?, tls::acceptor(tls)?, tls.clone())),
        None => None,
    };
    let mut hooks = Vec::new();
    for (address, router) in hooks::routers(&config.hooks, &counter)? {
        hooks.push((listen(address)?, router));
    }
    let access = config.access.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ApiError::Thread)?;
    let serve = async move {
        let over = counter.requests.clone();
        let router = routes::router(counter);
        let permits = Arc::new(Semaphore::new(limits::CONNECTIONS));
        if let Some((listener, acceptor, tls)) = tcp {
            let (router, permits) = (router.clone(), Arc::clone(&permits));
            tokio::spawn(async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => accept_tls(listener, acceptor, Arc::new(tls), router, permits).await,
                    Err(error) => tracing::error!("control port: {error}"),
                }
            });
        }
        for (listener, router) in hooks {
            match TcpListener::from_std(listener) {
                Ok(listener) => drop(tokio::spawn(accept_hooks(listener, router))),
                Err(error) => tracing::error!("webhooks: {error}"),
            }
        }
        match UnixListener::from_std(unix) {
            Ok(listener) => tokio::select! {
                () = accept_unix(listener, access, router, permits) => {}
                () = over.closed() => {}
            },
            Err(error) => tracing::error!("control socket: {error}"),
        }
    };
    let thread = std::thread::Builder::new().name("control-api".to_owned());
    thread
        .spawn(move || runtime.block_on(serve))
        .map(drop)
        .map_err(ApiError::Thread)
}

fn listen(address: SocketAddr) -> Result<std::net::TcpListener, ApiError> {
    let listener = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|source| ApiError::Port { address, source })
}

async fn room(permits: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    loop {
        // It is never closed.
        if let Ok(permit) = Arc::clone(permits).acquire_owned().await {
            return permit;
        }
    }
}

async fn accept_unix(listener: UnixListener, access: Access, router: Router, permits: Arc<Semaphore>) {
    loop {
        let permit = room(&permits).await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("control socket: {error}");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let Ok(peer) = stream.peer_cred() else { continue };
        let caller = Caller::Local {
            user: peer.uid(),
            group: peer.gid(),
            process: peer.pid(),
            may: access.of(peer.uid(), peer.gid()),
        };
        let router = router.clone();
        tokio::spawn(async move {
            serve(stream, caller, router).await;
            drop(permit);
        });
    }
}

/// Serves connections of a port, `what`, each by `serve`.
async fn accept_tcp<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    what: &'static str,
    permits: Arc<Semaphore>,
    serve: impl Fn(TcpStream) -> F,
) {
    loop {
        let permit = room(&permits).await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = serve(stream);
                tokio::spawn(async move {
                    served.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("{what}: {error}");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

async fn accept_tls(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    config: Arc<TlsConfig>,
    router: Router,
    permits: Arc<Semaphore>,
) {
    let shake_hands = |stream| {
        let (acceptor, config, router) = (acceptor.clone(), Arc::clone(&config), router.clone());
        async move {
            if let Ok(Ok(stream)) = timeout(limits::HEAD_TIME, acceptor.accept(stream)).await {
                let caller = config.caller(stream.get_ref().1.peer_certificates());
                serve(stream, caller, router).await;
            }
        }
    };
    accept_tcp(listener, "control port", permits, shake_hands).await;
}

/// Whoever connects may post; connections are those of one address.
async fn accept_hooks(listener: TcpListener, router: Router) {
    let in_time = |stream| {
        // A sender keeps no connection: it could keep all of them.
        let served = timeout(
            limits::HEAD_TIME + limits::ANSWER_TIME,
            serve_router(stream, router.clone()),
        );
        async move {
            let _ = served.await;
        }
    };
    let permits = Arc::new(Semaphore::new(limits::CONNECTIONS));
    accept_tcp(listener, "webhooks", permits, in_time).await;
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Send + 'static, caller: Caller, router: Router) {
    serve_router(stream, router.layer(Extension(caller))).await;
}

async fn serve_router(stream: impl AsyncRead + AsyncWrite + Send + 'static, router: Router) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits::WRITE_TIME));
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIME)
        .max_buf_size(limits::HEAD)
        // Who has said all may close this half and still wait for the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    // A caller that breaks off, or says what is no HTTP, is told by hyper as far as it can be.
    let _ = connection.await;
}
