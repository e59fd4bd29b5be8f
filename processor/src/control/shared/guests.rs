//! What is known of guests, to etcd and from it: the control loop's part.
//!
//! What a guest's key says is taken as an event of the host that wrote it. What this host was told of a guest is published once it is
//! done here; until then the guest is noted, and its key is written with whatever is known by then. A key that changed
//! meanwhile is taken first. Only what was told here, and what time does to guests of this host, is published:
//! so nothing is echoed, and of a thousand hosts that come to the same by their rules one writes it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use guestseal_rules::containers::{Refusal, Shared};
use guestseal_rules::event::{Event, Moment, What};

use crate::control::guests::Guests;

use super::{Fleet, News, Order, Put};

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
    /// Of the keys that are there, by UUID.
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
    fn next_write(&self, guest: &str) -> Instant {
        let now = Instant::now();
        let used_up = self.used_up.get(guest).copied().unwrap_or(now);
        now.max(used_up.checked_sub(PAUSE * BURST).unwrap_or(now))
    }

    fn note(&mut self, guest: String) {
        let after = self.next_write(&guest);
        let new = Unpublished {
            after,
            sending: false,
            more: false,
        };
        self.unpublished.entry(guest).or_insert(new).more = true;
    }

    fn reset(&mut self) {
        self.listening = false;
        self.unpublished.values_mut().for_each(|one| one.sending = false);
    }

    fn done(&mut self, guest: &str, revision: i64) {
        self.revisions.insert(guest.to_owned(), revision);
        let now = Instant::now();
        self.used_up.retain(|_, until| now < *until);
        *self.used_up.entry(guest.to_owned()).or_insert(now) += PAUSE;
        let after = self.next_write(guest);
        if let Some(one) = self.unpublished.get_mut(guest) {
            (one.sending, one.after) = (false, after);
            if !one.more {
                self.unpublished.remove(guest);
            }
        }
    }

    fn wait(&mut self, guest: &str, how_long: Duration) {
        if let Some(one) = self.unpublished.get_mut(guest) {
            (one.sending, one.after) = (false, Instant::now() + how_long);
        }
    }
}

impl Fleet {
    /// Takes what etcd has told, as events of the hosts that say so.
    pub fn hear(&mut self, guests: &mut Guests, now: Moment) {
        self.bell.silence();
        for _ in 0..TURN {
            match self.news.try_recv() {
                Ok(news) => self.take(news, guests, now),
                Err(_) => return,
            }
        }
        self.bell.ring();
    }

    fn take(&mut self, news: News, guests: &mut Guests, now: Moment) {
        match news {
            News::Begins => {
                self.publishing.reset();
                self.publishing.revisions.clear();
            }
            News::Lost => self.publishing.reset(),
            News::Item {
                path,
                value,
                revision,
            } => {
                if let Some(guest) = path.strip_prefix(GUESTS) {
                    self.take_guest(guest, value.as_deref(), revision, guests, now);
                }
            }
            News::AllRead => {
                let known = &self.publishing.revisions;
                let ahead = guests.known().filter(|guest| !known.contains_key(*guest));
                let ahead = ahead.filter(|guest| guests.containers().is_ahead(guest, None));
                let ahead: Vec<String> = ahead.map(str::to_owned).collect();
                ahead.into_iter().for_each(|guest| self.publishing.note(guest));
                self.publishing.listening = true;
            }
            News::Written { path, revision } => {
                if let Some(guest) = path.strip_prefix(GUESTS) {
                    self.publishing.done(guest, revision);
                }
            }
            News::Overtaken {
                path,
                value,
                revision,
            } => {
                if let Some(guest) = path.strip_prefix(GUESTS) {
                    self.take_guest(guest, value.as_deref(), revision, guests, now);
                    self.publishing.wait(guest, Duration::ZERO);
                }
            }
            News::Denied { path } => {
                if let Some(guest) = path.strip_prefix(GUESTS) {
                    self.publishing.wait(guest, AGAIN);
                }
            }
        }
    }

    fn take_guest(
        &mut self,
        guest: &str,
        value: Option<&[u8]>,
        revision: i64,
        guests: &mut Guests,
        now: Moment,
    ) {
        if !guests.knows(guest) {
            return self.refuse(
                "UnknownGuest",
                &format!("guest {guest:?}: {}", Refusal::UnknownGuest),
            );
        }
        let Some(value) = value else {
            self.publishing.revisions.remove(guest);
            return;
        };
        self.publishing.revisions.insert(guest.to_owned(), revision);
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
                    let by = format!("host {} through etcd", news.host);
                    let event = Event {
                        time: None,
                        guest: guest.to_owned(),
                        what: What::Shared(Box::new(news)),
                    };
                    // What it changed was looked at just now.
                    let _ = guests.hear(now, &by, event);
                }
            }
            None => {
                self.refuse(
                    "MalformedGuest",
                    &format!("guest {guest}: what is said of it cannot be"),
                );
            }
        }
        if !guests.containers().is_ahead(guest, told.as_ref()) {
            // Another host has said all that was to be said.
            self.publishing.unpublished.remove(guest);
        } else if !self.publishing.listening {
            self.publishing.note(guest.to_owned());
        }
    }

    /// Publishes what was done to guests, after it was done.
    pub fn tell(&mut self, guests: &mut Guests, own: &str) {
        for guest in guests.take_touched() {
            self.publishing.note(guest);
        }
        if self.publishing.again && self.orders.try_send(Order::ReadAgain).is_ok() {
            self.publishing.again = false;
        }
        if !self.publishing.listening {
            return;
        }
        let now = Instant::now();
        let sending = self
            .publishing
            .unpublished
            .values()
            .filter(|one| one.sending)
            .count();
        let Publishing {
            unpublished,
            revisions,
            ..
        } = &mut self.publishing;
        let waiting = unpublished
            .iter_mut()
            .filter(|(_, one)| !one.sending && one.after <= now);
        let mut too_large = Vec::new();
        let mut gone = Vec::new();
        for (guest, one) in waiting.take(AT_ONCE.saturating_sub(sending)) {
            let Some(shared) = guests.containers().share(guest, own) else {
                gone.push(guest.clone());
                continue;
            };
            let value = serde_json::to_vec(&shared).unwrap_or_default();
            if value.is_empty() || value.len() > LARGEST {
                one.after = now + AGAIN;
                too_large.push(guest.clone());
                continue;
            }
            let put = Put {
                path: format!("{GUESTS}{guest}"),
                value,
                known: revisions.get(guest).copied().unwrap_or(0),
            };
            if self.orders.try_send(Order::Put(put)).is_err() {
                break;
            }
            (one.sending, one.more) = (true, false);
        }
        for guest in gone {
            self.publishing.unpublished.remove(&guest);
        }
        for guest in too_large {
            let what =
                format!("guest {guest}: more is known of it than {LARGEST} bytes: other hosts are not told");
            self.refuse("TooLarge", &what);
        }
    }

    /// Reads everything again: what could not be taken under the policy before may be under this one.
    pub fn read_again(&mut self) {
        self.publishing.again = true;
    }
}
