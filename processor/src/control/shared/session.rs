//! One connection to etcd, from its beginning to its end: this host's lease, everything that is there, then what changes.

use std::future::Future;
use std::time::Duration;

use etcd_client::{Client, Error, GetOptions, KeyValue, PutOptions, WatchOptions, WatchStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::hosts::{LEASE, Told};
use super::link::Link;
use super::{CALL, look};

/// The largest answer that is taken.
const LARGEST: usize = 16 << 20;
/// Keys of one answer, as long as they fit.
const PAGE: i64 = 256;

/// gRPC's numbers of what can be wrong.
const PERMISSION_DENIED: i32 = 7;
const OUT_OF_RANGE: i32 = 11;
const RESOURCE_EXHAUSTED: i32 = 8;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("{0}")]
    Failed(#[from] Error),
    #[error("no answer in time")]
    Silent,
    #[error("what was to be read is compacted")]
    Compacted,
    #[error("the watch was ended: {0}")]
    Canceled(String),
    #[error("the lease of this host is gone")]
    LeaseGone,
}

async fn call<T>(asked: impl Future<Output = Result<T, Error>>) -> Result<T, Ended> {
    Ok(timeout(CALL, asked).await.map_err(|_| Ended::Silent)??)
}

fn is(error: &Ended, code: i32) -> bool {
    matches!(error, Ended::Failed(Error::GRpcStatus(status)) if i32::from(status.code()) == code)
}

/// Speaks to etcd until something ends it.
pub(super) async fn run(link: &mut Link) -> Ended {
    match speak(link).await {
        Err(ended) => ended,
        Ok(never) => match never {},
    }
}

async fn speak(link: &mut Link) -> Result<std::convert::Infallible, Ended> {
    let options = link.credentials.options();
    let client = call(Client::connect(&link.config.endpoints, Some(options))).await?;
    let mut lease = JoinSet::new();
    let held = hold_lease(link, &client).await?;
    lease.spawn(keep_lease(client.clone(), held));
    let revision = read_all(link, &client).await?;
    let mut stream = watch(link, &client, revision + 1).await?;
    link.connected(revision);
    loop {
        tokio::select! {
            message = stream.message() => {
                let message = message?.ok_or_else(|| Ended::Canceled("its stream is over".to_owned()))?;
                if message.compact_revision() > 0 {
                    return Err(Ended::Compacted);
                }
                if message.canceled() {
                    return Err(Ended::Canceled(message.cancel_reason().to_owned()));
                }
                for event in message.events() {
                    if let Some(pair) = event.kv() {
                        take(link, pair);
                    }
                }
                if let Some(header) = message.header() {
                    link.connected(header.revision());
                }
            }
            ended = lease.join_next() => {
                return Err(ended.and_then(Result::ok).unwrap_or(Ended::LeaseGone));
            }
        }
    }
}

/// Lets etcd know that this host is alive, as long as it is; a host that may not write goes on without. Gives the lease.
async fn hold_lease(link: &Link, client: &Client) -> Result<i64, Ended> {
    let lease = call(client.lease_client().grant(LEASE, None)).await?.id();
    let key = format!("{}/hosts/{}", link.config.prefix, link.own.name);
    let value = serde_json::to_vec(&link.own.told).unwrap_or_default();
    let options = PutOptions::new().with_lease(lease);
    match call(client.kv_client().put(key, value, Some(options))).await {
        Err(error) if is(&error, PERMISSION_DENIED) => {
            link.refused(
                "HostNotWritable",
                &format!("this host may not say that it is alive: {error}"),
            );
        }
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    Ok(lease)
}

async fn keep_lease(client: Client, lease: i64) -> Ended {
    let keep = async {
        let (mut keeper, mut answers) = call(client.lease_client().keep_alive(lease)).await?;
        let mut tick = interval(Duration::from_secs(LEASE.unsigned_abs()) / 3);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            keeper.keep_alive().await?;
            match call(answers.message()).await? {
                Some(answer) if answer.ttl() > 0 => {}
                _ => return Err(Ended::LeaseGone),
            }
        }
    };
    let kept: Result<std::convert::Infallible, Ended> = keep.await;
    match kept {
        Err(ended) => ended,
        Ok(never) => match never {},
    }
}

/// Reads everything that is there, page by page, at one revision; gives that.
async fn read_all(link: &Link, client: &Client) -> Result<i64, Ended> {
    let mut kv = client.kv_client().max_decoding_message_size(LARGEST);
    let mut from = format!("{}/", link.config.prefix).into_bytes();
    let end = range_end(&from);
    let (mut revision, mut page) = (0, PAGE);
    loop {
        let options = GetOptions::new()
            .with_range(end.clone())
            .with_limit(page)
            .with_revision(revision);
        let answer = match call(kv.get(from.clone(), Some(options))).await {
            // More than is taken at once.
            Err(error) if page > 1 && (is(&error, OUT_OF_RANGE) || is(&error, RESOURCE_EXHAUSTED)) => {
                page = (page / 8).max(1);
                continue;
            }
            answer => answer?,
        };
        if revision == 0 {
            revision = answer.header().map_or(0, |header| header.revision());
        }
        for pair in answer.kvs() {
            take(link, pair);
        }
        match answer.kvs().last().filter(|_| answer.more()) {
            Some(last) => {
                from = last.key().to_owned();
                from.push(0);
            }
            None => return Ok(revision),
        }
    }
}

/// The first key behind all that begin with a prefix, which does not end with the last byte.
fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_owned();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

async fn watch(link: &Link, client: &Client, from: i64) -> Result<WatchStream, Ended> {
    let key = format!("{}/", link.config.prefix);
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(from)
        .with_progress_notify()
        .with_fragment();
    let mut watcher = client.watch_client().max_decoding_message_size(LARGEST);
    call(watcher.watch(key, Some(options))).await
}

/// Takes what a key says. One that was taken away has version 0 and no value.
fn take(link: &Link, pair: &KeyValue) {
    let prefix = link.config.prefix.as_bytes();
    let key = pair
        .key()
        .strip_prefix(prefix)
        .and_then(|key| std::str::from_utf8(key).ok());
    let value = (pair.version() > 0).then(|| pair.value());
    match key.and_then(|key| key.strip_prefix('/')?.split_once('/')) {
        Some(("hosts", name)) => {
            if !Told::take(&mut look(&link.view).hosts, name, value) {
                link.refused(
                    "MalformedHost",
                    &format!("what host {name:?} says of itself cannot be read"),
                );
            }
        }
        _ => link.refused(
            "UnknownKey",
            "there are keys under the prefix that no host writes",
        ),
    }
}
