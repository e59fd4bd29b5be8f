//! Where guests are, by etcd: a move that one host is told becomes true on all of them, on the new host first.
//!
//! The host that is told writes the move; the new one serves the guest and says so there (`taken`); the others follow when it has, or when it
//! did not say so for [`PATIENCE`]. The one that was told waits with its answer as long, if the new one is alive. Moves of
//! a guest are numbered; one that is not later than what a host knows changes nothing. One that was told under other files of the policy,
//! which say another host of the guest, is none.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::control::api::problem::Problem;
use crate::control::guests::Guests;
use crate::control::guests::share::through_etcd;
use crate::control::moves::Moved;

use super::{Fleet, look};

/// Where guests are is under this.
pub(super) const ENDPOINTS: &str = "endpoints/";
/// Bytes of a move.
const LARGEST: usize = 4096;
/// How long the new host is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Moves that wait for their new hosts at a time, of those that were told here.
const MOST_ASKED: usize = 64;

type Reply = oneshot::Sender<Result<Value, Problem>>;

/// What a key says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    /// By which host.
    host: String,
    #[serde(flatten)]
    at: Moved,
    /// Whether the new host serves the guest.
    #[serde(default)]
    taken: bool,
}

/// A move that is to be made here.
#[derive(Debug)]
pub struct Due {
    /// The guest's UUID.
    pub guest: String,
    /// Where to.
    pub at: Moved,
    /// By whom, as the journal calls it.
    pub by: String,
    /// Whom to answer.
    pub reply: Option<Reply>,
}

/// A move that waits for its new host.
#[derive(Debug)]
struct Waiting {
    until: Instant,
    due: Due,
}

/// What is known of moves.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    /// The number of each guest's last move in etcd.
    steps: BTreeMap<String, u64>,
    waiting: BTreeMap<String, Waiting>,
}

impl Fleet {
    /// The number of a guest's next move.
    #[must_use]
    pub fn next_step(&self, guest: &str, known: Option<&Moved>) -> u64 {
        let told = self.endpoints.steps.get(guest).copied().unwrap_or(0);
        told.max(known.map_or(0, |moved| moved.steps)).saturating_add(1)
    }

    /// Lets the new host have a move first, if it can: gives it back if it is to be made now.
    pub fn propose(&mut self, due: Due, own: &str) -> Option<Due> {
        let is_alive = look(&self.view).hosts.contains_key(&due.at.to);
        let has_room =
            self.endpoints.waiting.len() < MOST_ASKED && !self.endpoints.waiting.contains_key(&due.guest);
        if due.at.to == own || !is_alive || !has_room || !self.publishing.is_listening() {
            return Some(due);
        }
        self.publishing.note(format!("{ENDPOINTS}{}", due.guest));
        let until = Instant::now() + PATIENCE;
        self.endpoints
            .waiting
            .insert(due.guest.clone(), Waiting { until, due });
        None
    }

    /// Whether a move that was told here waits for its new host.
    pub(super) fn is_asked(&self, guest: &str) -> bool {
        let waiting = self.endpoints.waiting.get(guest);
        waiting.is_some_and(|one| one.due.reply.is_some())
    }

    /// A move was made here; with `is_news` other hosts are told.
    pub fn moved(&mut self, guest: &str, is_news: bool) {
        if is_news {
            self.publishing.note(format!("{ENDPOINTS}{guest}"));
        }
    }

    /// The moves that wait no longer.
    pub(super) fn due(&mut self) -> Vec<Due> {
        let now = Instant::now();
        let is_due = |waiting: &Waiting| waiting.until <= now;
        let guests: Vec<String> = self
            .endpoints
            .waiting
            .iter()
            .filter(|(_, one)| is_due(one))
            .map(|(guest, _)| guest.clone())
            .collect();
        let due = guests
            .into_iter()
            .filter_map(|guest| self.endpoints.waiting.remove(&guest));
        due.map(|waiting| waiting.due).collect()
    }

    /// Nobody is waited for without etcd.
    pub(super) fn wait_no_longer(&mut self) {
        let now = Instant::now();
        self.endpoints
            .waiting
            .values_mut()
            .for_each(|one| one.until = now);
    }

    pub(super) fn forget_steps(&mut self) {
        self.endpoints.steps.clear();
    }

    /// What is to be written of a guest's place, if it was ever moved.
    pub(super) fn endpoint(&self, guest: &str, guests: &Guests, own: &str) -> Option<Vec<u8>> {
        let waiting = self.endpoints.waiting.get(guest).filter(|_| self.is_asked(guest));
        let at = waiting.map(|one| &one.due.at).or_else(|| guests.moved(guest))?;
        let written = Written {
            host: own.to_owned(),
            at: at.clone(),
            taken: waiting.is_none() && at.to == own,
        };
        serde_json::to_vec(&written).ok()
    }

    /// Takes what a key says of a guest's place. Whether this host knows of a later move.
    pub(super) fn take_endpoint(&mut self, guest: &str, value: &[u8], guests: &Guests, own: &str) -> bool {
        let known = guests.moved(guest);
        let steps = known.map_or(0, |moved| moved.steps);
        let written: Option<Written> = Some(value)
            .filter(|value| value.len() <= LARGEST)
            .and_then(|value| serde_json::from_slice(value).ok())
            .filter(|written: &Written| {
                (1..u64::MAX).contains(&written.at.steps) && !written.host.contains(char::is_control)
            });
        let Some(Written { host, at, taken }) = written else {
            self.refuse(
                "MalformedMove",
                &format!("where guest {guest} is said to be cannot be read"),
            );
            return steps > 0;
        };
        self.endpoints.steps.insert(guest.to_owned(), at.steps);
        if at.steps < steps || known == Some(&at) {
            // A host that is there already may not have said so.
            return at.steps < steps || (at.to == own && !taken);
        }
        if guests.declared_host(guest) != Some(at.declared.as_str()) {
            return false;
        }
        if guests.is_no_host(&at.to) {
            self.refuse(
                "UnknownHost",
                &format!(
                    "guest {guest} is said to be on {:?}, which is no host of the policy here",
                    at.to
                ),
            );
            return false;
        }
        let now = Instant::now();
        let until = if taken || at.to == own {
            now
        } else {
            now + PATIENCE
        };
        let due = Due {
            guest: guest.to_owned(),
            at,
            by: through_etcd(&host),
            reply: None,
        };
        match self.endpoints.waiting.get_mut(guest) {
            // What was asked here is what was written, and is answered then.
            Some(waiting) if waiting.due.at == due.at => waiting.until = waiting.until.min(until),
            Some(waiting) => {
                let reply = waiting.due.reply.take();
                if let Some(reply) = reply {
                    let message = format!(
                        "host {host} was told of another move first: the guest is on {}",
                        due.at.to
                    );
                    let _ = reply.send(Err(Problem::new(StatusCode::CONFLICT, "Overtaken", message)));
                }
                *waiting = Waiting { until, due };
            }
            None => drop(
                self.endpoints
                    .waiting
                    .insert(guest.to_owned(), Waiting { until, due }),
            ),
        }
        false
    }
}
