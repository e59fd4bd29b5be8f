//! The thread that speaks to etcd: connects, follows, and begins anew when etcd goes.

use std::convert::Infallible;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use etcd_client::Client;
use tokio::sync::mpsc;

use crate::control::guests::now;
use crate::control::wake::Doorbell;
use crate::keys::handshake::random::{System, jitter};

use super::config::{Credentials, EtcdConfig, EtcdError};
use super::hosts::Own;
use super::session::{self, Ended};
use super::{News, Order, Shared, look};

/// How long the first try after a loss waits, and the later ones at most; up to half as long again, so that a fleet does not come at once.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(4);

/// Characters of what etcd says that are shown.
const MOST_WORDS: usize = 300;

/// The thread's end.
pub(super) struct Link {
    pub(super) config: EtcdConfig,
    pub(super) credentials: Credentials,
    pub(super) own: Own,
    pub(super) view: Shared,
    pub(super) news: mpsc::Sender<News>,
    pub(super) bell: Doorbell,
    pub(super) orders: mpsc::Receiver<Order>,
    /// By which this host is alive, as long as the connection lasts that it was granted on.
    pub(super) lease: Option<(Client, i64)>,
}

/// Starts the thread; it ends with the control loop's end, and `ended` then.
pub(super) fn start(mut link: Link, ended: SyncSender<Infallible>) -> Result<(), EtcdError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(EtcdError::Thread)?;
    let over = link.news.clone();
    let serve = async move {
        tokio::select! {
            never = link.follow() => match never {},
            () = over.closed() => {}
        }
        link.leave().await;
        drop(ended);
    };
    let thread = std::thread::Builder::new().name("etcd".to_owned());
    thread
        .spawn(move || runtime.block_on(serve))
        .map(drop)
        .map_err(EtcdError::Thread)
}

/// What somebody else said, fit for a log.
pub(super) fn in_short(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MOST_WORDS)
        .collect()
}

impl Link {
    /// Lets the other hosts see at once that this one is gone; where etcd does not answer, they see it when the lease ends.
    async fn leave(&mut self) {
        if let Some((client, lease)) = self.lease.take()
            && let Err(ended) = session::call(client.lease_client().revoke(lease)).await
        {
            tracing::debug!("etcd: this host counts as alive until its lease ends: {ended}");
        }
    }

    async fn follow(&mut self) -> Infallible {
        let mut wait = FIRST;
        loop {
            let ended = session::run(self).await;
            self.lease = None;
            let was_connected = self.lost(&ended);
            self.tell(News::Lost).await;
            if matches!(ended, Ended::Compacted | Ended::Asked) {
                // It is there: everything is read again.
                continue;
            }
            wait = if was_connected {
                FIRST
            } else {
                (wait * 2).min(LONGEST)
            };
            tokio::time::sleep(wait + jitter(wait / 2, &mut System)).await;
        }
    }

    /// Notes that etcd answers.
    pub(super) fn connected(&self, revision: i64) {
        let mut view = look(&self.view);
        view.revision = revision;
        if !view.connected {
            view.connected = true;
            view.since = now();
            view.error.clear();
            tracing::info!("etcd: connected, at revision {revision}");
        }
    }

    /// Notes that it does not, and why; whether it did before.
    fn lost(&self, ended: &Ended) -> bool {
        let why = in_short(&ended.to_string());
        let mut view = look(&self.view);
        let was_connected = std::mem::take(&mut view.connected);
        if was_connected {
            view.since = now();
        }
        view.hosts.clear();
        if view.error != why {
            tracing::warn!("etcd: {why}; what other hosts tell comes later");
            view.error = why;
        }
        was_connected
    }

    /// Tells the control loop, and waits for it as long as it has no room.
    pub(super) async fn tell(&self, news: News) {
        // Without a control loop the thread ends.
        let _ = self.news.send(news).await;
        self.bell.ring();
    }

    /// Counts what was refused.
    pub(super) fn refused(&self, reason: &'static str, what: &str) {
        super::refuse(&self.view, reason, what);
    }
}
