//! What is known of guests and of where they are, to etcd and from it: the control loop's part.
//!
//! What a guest's key says is taken as an event of the host that wrote it. What this host was told of a guest is published once it is
//! done here; until then the guest is noted, and its key is written with whatever is known by then. A key that changed
//! meanwhile is taken first. Only what was told here, and what time does to guests of this host, is published:
//! so nothing is echoed, and of a thousand hosts that come to the same by their rules one writes it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use guestseal_rules::containers::{Refusal, Shared};
use guestseal_rules::event::Moment;

use crate::control::guests::Guests;

use super::endpoints::ENDPOINTS;
use super::{Due, Fleet, News, Order, Put};

/// Keys of guests are under this.
pub(super) const GUESTS: &str = "guests/";
/// Bytes of what is told of a guest.
pub(super) const LARGEST: usize = 1 << 20;
/// Keys that are being written at a time.
const AT_ONCE: usize = 64;
/// What one turn of the control loop takes at most.
const TURN: usize = 256;
/// Between two writes of the same key, but for so many at once: each costs every host something.
const PAUSE: Duration = Duration::from_millis(20);
const BURST: u32 = 8;
/// Until a write that was refused is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// A guest of which etcd does not know all yet.
#[derive(Debug)]
struct Unpublished {
    /// Not written before that.
    after: Instant,
    sending: bool,
    /// Whether more has happened since it is being sent.
    more: bool,
}

/// What etcd knows of guests, and what it does not.
#[derive(Debug, Default)]
pub(super) struct Publishing {
    /// Whether all that was there has been read.
    listening: bool,
    /// Of the keys that are there, by path.
    revisions: BTreeMap<String, i64>,
    unpublished: BTreeMap<String, Unpublished>,
    /// Until when each has used up its pauses, for as long as that matters.
    used_up: BTreeMap<String, Instant>,
    /// Whether etcd is to be read again, since the policy is another.
    again: bool,
}

impl Publishing {
    pub(super) fn unpublished(&self) -> usize {
        self.unpublished.len()
    }

    /// When a key may be written next.
    fn next_write(&self, path: &str) -> Instant {
        let now = Instant::now();
        let used_up = self.used_up.get(path).copied().unwrap_or(now);
        now.max(used_up.checked_sub(PAUSE * BURST).unwrap_or(now))
    }

    pub(super) fn is_listening(&self) -> bool {
        self.listening
    }

    pub(super) fn note(&mut self, path: String) {
        let after = self.next_write(&path);
        let new = Unpublished {
            after,
            sending: false,
            more: false,
        };
        self.unpublished.entry(path).or_insert(new).more = true;
    }

    fn reset(&mut self) {
        self.listening = false;
        self.unpublished.values_mut().for_each(|one| one.sending = false);
    }

    fn done(&mut self, path: &str, revision: i64) {
        self.revisions.insert(path.to_owned(), revision);
        let now = Instant::now();
        self.used_up.retain(|_, until| now < *until);
        *self.used_up.entry(path.to_owned()).or_insert(now) += PAUSE;
        let after = self.next_write(path);
        if let Some(one) = self.unpublished.get_mut(path) {
            (one.sending, one.after) = (false, after);
            if !one.more {
                self.unpublished.remove(path);
            }
        }
    }

    fn wait(&mut self, path: &str, how_long: Duration) {
        if let Some(one) = self.unpublished.get_mut(path) {
            (one.sending, one.after) = (false, Instant::now() + how_long);
        }
    }
}

impl Fleet {
    /// Takes what etcd has told, as events of the hosts that say so. Gives the moves that are to be made now.
    pub fn hear(&mut self, guests: &mut Guests, now: Moment, own: &str) -> Vec<Due> {
        self.bell.silence();
        for _ in 0..TURN {
            match self.news.try_recv() {
                Ok(news) => self.take(news, guests, now, own),
                Err(_) => return self.due(),
            }
        }
        self.bell.ring();
        self.due()
    }

    fn take(&mut self, news: News, guests: &mut Guests, now: Moment, own: &str) {
        match news {
            News::Begins => {
                self.publishing.reset();
                self.publishing.revisions.clear();
                self.forget_steps();
            }
            News::Lost => {
                self.publishing.reset();
                self.wait_no_longer();
            }
            News::Item {
                path,
                value,
                revision,
            } => self.take_item(&path, value.as_deref(), revision, guests, now, own),
            News::AllRead => {
                let states = guests
                    .known()
                    .filter(|guest| guests.containers().is_ahead(guest, None));
                let states = states.map(|guest| format!("{GUESTS}{guest}"));
                let places = guests.moves().map(|(guest, _)| format!("{ENDPOINTS}{guest}"));
                let known = &self.publishing.revisions;
                let ahead = states.chain(places).filter(|path| !known.contains_key(path));
                let ahead: Vec<String> = ahead.collect();
                ahead.into_iter().for_each(|path| self.publishing.note(path));
                self.publishing.listening = true;
            }
            News::Written { path, revision } => self.publishing.done(&path, revision),
            News::Overtaken {
                path,
                value,
                revision,
            } => {
                self.publishing.wait(&path, Duration::ZERO);
                self.take_item(&path, value.as_deref(), revision, guests, now, own);
            }
            News::Policy(files) => self.policy.take(files),
            News::Denied { path } => self.publishing.wait(&path, AGAIN),
        }
    }

    fn take_item(
        &mut self,
        path: &str,
        value: Option<&[u8]>,
        revision: i64,
        guests: &mut Guests,
        now: Moment,
        own: &str,
    ) {
        let Some((kind, guest)) = path.split_once('/') else {
            return;
        };
        if !guests.knows(guest) {
            return self.refuse("UnknownGuest", &format!("{path:?}: {}", Refusal::UnknownGuest));
        }
        let Some(value) = value else {
            self.publishing.revisions.remove(path);
            return;
        };
        self.publishing.revisions.insert(path.to_owned(), revision);
        let (is_ahead, is_over) = if format!("{kind}/") == ENDPOINTS {
            let is_ahead = self.take_endpoint(guest, value, guests, own);
            (is_ahead, !is_ahead && !self.is_asked(guest))
        } else {
            let is_ahead = self.take_guest(guest, value, guests, now);
            (is_ahead && !self.publishing.listening, !is_ahead)
        };
        if is_ahead {
            self.publishing.note(path.to_owned());
        } else if is_over {
            // Another host has said all that was to be said.
            self.publishing.unpublished.remove(path);
        }
    }

    /// Takes what a key says of a guest. Whether this host knows more.
    fn take_guest(&mut self, guest: &str, value: &[u8], guests: &mut Guests, now: Moment) -> bool {
        let told: Option<Shared> = serde_json::from_slice(value).ok();
        let news = told
            .as_ref()
            .and_then(|told| guests.containers().news(guest, told).ok());
        let told = told.filter(|_| news.is_some());
        match news {
            Some((news, unknown)) => {
                if unknown.is_some() {
                    let host = &news.host;
                    let what = format!(
                        "guest {guest}: host {host} puts it in a container that is not in the policy here"
                    );
                    self.refuse("UnknownContainer", &what);
                }
                if !news.is_empty() {
                    // What it changes was looked at just now.
                    let _ = guests.hear(now, guest, news);
                }
            }
            None => {
                self.refuse(
                    "MalformedGuest",
                    &format!("guest {guest}: what is said of it cannot be"),
                );
            }
        }
        guests.containers().is_ahead(guest, told.as_ref())
    }

    /// Publishes what was done to guests, after it was done.
    pub fn tell(&mut self, guests: &mut Guests, own: &str) {
        for guest in guests.take_touched() {
            self.publishing.note(format!("{GUESTS}{guest}"));
        }
        if self.publishing.again && self.orders.try_send(Order::ReadAgain).is_ok() {
            self.publishing.again = false;
        }
        if !self.publishing.listening {
            return;
        }
        let now = Instant::now();
        let unpublished = &self.publishing.unpublished;
        let sending = unpublished.values().filter(|one| one.sending).count();
        let waiting = unpublished
            .iter()
            .filter(|(_, one)| !one.sending && one.after <= now);
        let waiting = waiting.take(AT_ONCE.saturating_sub(sending));
        let paths: Vec<String> = waiting.map(|(path, _)| path.clone()).collect();
        for path in paths {
            self.send(path, guests, own);
        }
    }

    fn send(&mut self, path: String, guests: &Guests, own: &str) {
        let value = match path.strip_prefix(ENDPOINTS) {
            Some(guest) => self.endpoint(guest, guests, own),
            None => {
                let shared = path
                    .strip_prefix(GUESTS)
                    .and_then(|guest| guests.containers().share(guest, own));
                shared.and_then(|shared| serde_json::to_vec(&shared).ok())
            }
        };
        let Some(value) = value else {
            // The guest is nowhere any more.
            self.publishing.unpublished.remove(&path);
            return;
        };
        if value.len() > LARGEST {
            self.publishing.wait(&path, AGAIN);
            let what = format!("{path}: more is known than {LARGEST} bytes: other hosts are not told");
            return self.refuse("TooLarge", &what);
        }
        let known = self.publishing.revisions.get(&path).copied().unwrap_or(0);
        let put = Put {
            path: path.clone(),
            value,
            known,
        };
        if self.orders.try_send(Order::Put(put)).is_ok()
            && let Some(one) = self.publishing.unpublished.get_mut(&path)
        {
            (one.sending, one.more) = (true, false);
        }
    }

    /// Reads everything again: what could not be taken under the policy before may be under this one.
    pub fn read_again(&mut self) {
        self.publishing.again = true;
    }
}
