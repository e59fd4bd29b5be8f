//! One connection to etcd, from its beginning to its end: this host's lease, everything that is there, then what changes.

use std::future::Future;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, Error, GetOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse,
    WatchOptions, WatchStream,
};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::config::EtcdConfig;
use super::hosts::{LEASE, Told};
use super::link::Link;
use super::{CALL, News, Order, Put, guests, look, policy};

/// The largest answer that is taken.
const LARGEST: usize = 16 << 20;
/// Keys of one answer, as long as they fit.
const PAGE: i64 = 256;

/// gRPC's numbers of what can be wrong.
pub(super) const INVALID_ARGUMENT: i32 = 3;
pub(super) const PERMISSION_DENIED: i32 = 7;
pub(super) const OUT_OF_RANGE: i32 = 11;
pub(super) const RESOURCE_EXHAUSTED: i32 = 8;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("{0}")]
    Failed(#[from] Error),
    #[error("no answer in time")]
    Silent,
    #[error("what was to be read is compacted")]
    Compacted,
    #[error("everything is read again, under another policy")]
    Asked,
    #[error("the watch was ended: {0}")]
    Canceled(String),
    #[error("the lease of this host is gone")]
    LeaseGone,
}

pub(super) async fn call<T>(asked: impl Future<Output = Result<T, Error>>) -> Result<T, Ended> {
    Ok(timeout(CALL, asked).await.map_err(|_| Ended::Silent)??)
}

pub(super) fn is(error: &Ended, code: i32) -> bool {
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
    link.lease = Some((client.clone(), held));
    // What was wanted of another connection is wanted again.
    while link.orders.try_recv().is_ok() {}
    link.tell(News::Begins).await;
    let revision = read_all(link, &client).await?;
    let mut stream = watch(link, &client, revision + 1).await?;
    link.connected(revision);
    link.tell(News::AllRead).await;
    // The policy, if it is from here, is read as a whole whenever something of it has changed: one read at a time.
    let mut reading: JoinSet<Result<News, Ended>> = JoinSet::new();
    let mut is_stale = link.config.policy;
    let mut writing: JoinSet<Result<News, Ended>> = JoinSet::new();
    loop {
        if is_stale && reading.is_empty() {
            is_stale = false;
            reading.spawn(read_policy(link.config.clone(), client.clone()));
        }
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
                        is_stale |= take(link, pair).await && link.config.policy;
                    }
                }
                if let Some(header) = message.header() {
                    link.connected(header.revision());
                }
            }
            order = link.orders.recv() => match order {
                Some(Order::Put(put)) => {
                    let key = format!("{}/{}", link.config.prefix, put.path);
                    writing.spawn(write(client.clone(), key, put));
                }
                Some(Order::ReadAgain) => return Err(Ended::Asked),
                // The control loop is over, and soon this thread is.
                None => return std::future::pending().await,
            },
            Some(read) = reading.join_next() => {
                let news = read.unwrap_or(Err(Ended::Silent))?;
                link.tell(news).await;
            }
            Some(written) = writing.join_next() => {
                let news = written.unwrap_or(Err(Ended::Silent))?;
                if let News::Denied { path } = &news {
                    link.refused("NotWritable", &format!("this host may not write {path}: other hosts are not told"));
                }
                link.tell(news).await;
            }
            ended = lease.join_next() => {
                return Err(ended.and_then(Result::ok).unwrap_or(Ended::LeaseGone));
            }
        }
    }
}

async fn read_policy(config: EtcdConfig, client: Client) -> Result<News, Ended> {
    policy::read(&config, &client).await.map(News::Policy)
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
            take(link, pair).await;
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

/// Writes a key, if it is still what is known of it.
async fn write(client: Client, key: String, put: Put) -> Result<News, Ended> {
    let Put { path, value, known } = put;
    let txn = Txn::new()
        .when([Compare::mod_revision(key.clone(), CompareOp::Equal, known)])
        .and_then([TxnOp::put(key.clone(), value, None)])
        .or_else([TxnOp::get(key, None)]);
    let mut kv = client.kv_client().max_decoding_message_size(LARGEST);
    let answer = match call(kv.txn(txn)).await {
        Err(error) if is(&error, PERMISSION_DENIED) || is(&error, INVALID_ARGUMENT) => {
            return Ok(News::Denied { path });
        }
        answer => answer?,
    };
    let revision = answer.header().map_or(0, |header| header.revision());
    if answer.succeeded() {
        return Ok(News::Written { path, revision });
    }
    let found = answer
        .op_responses()
        .into_iter()
        .find_map(|response| match response {
            TxnOpResponse::Get(found) => found.kvs().first().cloned(),
            _ => None,
        });
    Ok(News::Overtaken {
        path,
        revision: found.as_ref().map_or(0, KeyValue::mod_revision),
        value: found
            .map(|pair| pair.value().to_owned())
            .filter(|value| value.len() <= guests::LARGEST),
    })
}

/// Takes what a key says. One that was taken away has version 0 and no value. Whether it is of the policy, which is read as a whole.
async fn take(link: &Link, pair: &KeyValue) -> bool {
    let prefix = link.config.prefix.as_bytes();
    let key = pair
        .key()
        .strip_prefix(prefix)
        .and_then(|key| std::str::from_utf8(key).ok());
    let value = (pair.version() > 0).then(|| pair.value());
    let path = key.and_then(|key| key.strip_prefix('/')).unwrap_or_default();
    match path.split_once('/') {
        Some(("hosts", name)) => {
            if !Told::take(&mut look(&link.view).hosts, name, value) {
                link.refused(
                    "MalformedHost",
                    &format!("what host {name:?} says of itself cannot be read"),
                );
            }
        }
        Some(("guests" | "endpoints", _)) if value.is_some_and(|value| value.len() > guests::LARGEST) => {
            link.refused(
                "TooLong",
                &format!("{path:?} says more than {} bytes", guests::LARGEST),
            );
        }
        Some(("guests" | "endpoints", _)) => {
            let item = News::Item {
                path: path.to_owned(),
                value: value.map(<[u8]>::to_owned),
                revision: pair.mod_revision(),
            };
            link.tell(item).await;
        }
        Some(("policy", _)) => return true,
        _ => link.refused(
            "UnknownKey",
            "there are keys under the prefix that no host writes",
        ),
    }
    false
}
