//! The state of one pair of peer and channel: at most one initiation under way, at most one session that is sealed with,
//! and the few that still open.
//!
//! Which session is sealed with: of those established the one that began last. Both hosts see the same order, because an
//! initiation that crosses another one is settled by the public keys, and any other was sent after the one before was
//! read. An older session opens until the peer was heard in a newer one, and `drain` longer.

use std::time::Duration;

use zerocopy::IntoBytes;

use crate::keys::derive::SessionSecret;
use crate::keys::store::Generation;

use super::attempt::{Attempt, wait};
use super::mac::mac2;
use super::message::{
    Head, Initiation, Inside, KeyUnknown, MAC, PAYLOAD, Response, before_last_mac, datagram,
};
use super::noise::{self, Asked, RawSplit};
use super::output::{EndReason, Event, Output, Pair, SessionId, SessionStatus, Usage};
use super::random::jitter;
use super::session::{Parts, Ping, Role, Session, Stage, Word};
use super::shared::{ChannelState, Now, Shared};
use super::spis::Block;
use super::stamp::{LATE, STAMP, Stamp};

/// The most sessions of a pair at a time.
const SESSIONS: usize = 6;
/// A probe without padding.
const SMALL: u16 = size_of::<Inside>() as u16;
/// The least time between two initiations of a peer that are answered.
const APART: Duration = Duration::from_millis(20);
/// The least time between two handshakes that unauthenticated hints begin.
const HINT_APART: Duration = Duration::from_secs(1);

/// What the hosts tell each other in the sealed part of the handshake.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Of the initiator.
    pub(super) stamp: Stamp,
    /// The SPIs that its sender opens; the peer's lanes are not known yet.
    pub(super) base: u32,
    /// Workers that will seal.
    pub(super) lanes: u8,
}

impl Told {
    fn to_bytes(self) -> [u8; PAYLOAD] {
        let mut bytes = [0; PAYLOAD];
        bytes[..STAMP].copy_from_slice(&self.stamp.to_bytes());
        bytes[STAMP..STAMP + 4].copy_from_slice(&self.base.to_be_bytes());
        bytes[STAMP + 4] = self.lanes;
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; PAYLOAD]) -> Option<Self> {
        let (stamp, rest) = bytes.split_first_chunk::<STAMP>()?;
        let (base, rest) = rest.split_first_chunk::<4>()?;
        Some(Self {
            stamp: Stamp::from_bytes(*stamp)?,
            base: u32::from_be_bytes(*base),
            lanes: *rest.first()?,
        })
    }
}

pub(super) struct PairState {
    pair: Pair,
    attempt: Option<Attempt>,
    /// The oldest first.
    sessions: Vec<Session>,
    /// The latest stamp of an initiation whose sender was heard in its session: no replay. One that was only accepted
    /// does not count, or whoever replays an old one to a host that restarted could shut the true peer out.
    proven: Stamp,
    accepted: Option<Duration>,
    /// A session was asked for, and there is none.
    wanted: bool,
    /// A new session is needed though there may be one.
    renew: bool,
    /// When a session was last asked for.
    demand: Duration,
    /// No initiation before this: the peer's handshake goes first.
    hold: Duration,
    /// Till then this host's own initiation goes before one of the peer, if its public key is the greater one.
    crossing: Duration,
    /// When an unauthenticated hint was last followed.
    followed: Option<Duration>,
    /// The newest generation that this host had when keys changed last.
    newest: Option<Generation>,
    /// It was said that there is no key.
    without_key: bool,
    /// The newest generation that the peer proved.
    floor: Option<Generation>,
    /// These generations are not known to the peer, each till then; at most those that this host holds.
    refused: Vec<(Generation, Duration)>,
}

impl PairState {
    pub(super) fn new(pair: Pair, newest: Option<Generation>) -> Self {
        Self {
            pair,
            attempt: None,
            sessions: Vec::new(),
            proven: Stamp::default(),
            accepted: None,
            wanted: false,
            renew: false,
            demand: Duration::ZERO,
            hold: Duration::ZERO,
            crossing: Duration::ZERO,
            followed: None,
            newest,
            without_key: false,
            floor: None,
            refused: Vec::new(),
        }
    }

    fn current(&self) -> Option<usize> {
        self.sessions.iter().position(Session::is_established)
    }

    fn find(&self, id: SessionId) -> Option<usize> {
        self.sessions.iter().position(|session| session.id == id)
    }

    fn find_index(&self, index: u32) -> Option<usize> {
        self.sessions.iter().position(|session| session.index == index)
    }

    // ---- What control asks.

    /// A packet needs a session.
    pub(super) fn need(&mut self, shared: &mut Shared, now: Now) {
        self.demand = now.monotonic;
        if self.current().is_none() {
            let first = !std::mem::replace(&mut self.wanted, true);
            if let Some(attempt) = self.attempt.as_mut().filter(|_| first) {
                // It was to replace a session that was there yet, and could wait.
                attempt.hasten(&shared.settings, now.monotonic);
            }
            self.tend(shared, now);
        }
    }

    /// The inbound SAs of a session are in place.
    pub(super) fn installed(&mut self, shared: &mut Shared, id: SessionId, now: Now) {
        let Some(place) = self.find(id) else { return };
        let session = &mut self.sessions[place];
        let Stage::Installing(response) = &mut session.stage else {
            return;
        };
        match response.take() {
            Some(response) => {
                session.stage = Stage::Unconfirmed;
                shared.counters.answered += 1;
                shared.send(self.pair.peer, response);
            }
            None => {
                shared.counters.initiated += 1;
                self.establish(place, shared, now);
            }
        }
        self.tend(shared, now);
    }

    /// What the workers did.
    pub(super) fn report(&mut self, shared: &mut Shared, id: SessionId, usage: Usage, now: Now) {
        let Some(place) = self.find(id) else { return };
        let session = &mut self.sessions[place];
        let before = std::mem::replace(&mut session.usage, usage);
        if usage.received_packets > before.received_packets {
            self.heard(place, shared, now);
        }
        if usage.sent_packets > before.sent_packets
            && let Some(peer) = shared.peer_mut(self.pair.peer)
        {
            peer.path.sealed();
        }
        let Some(session) = self.sessions.get_mut(place) else {
            return;
        };
        let silent = now
            .monotonic
            .saturating_sub(session.heard.unwrap_or(session.born));
        if usage.sent_packets > before.sent_packets
            && silent >= shared.settings.silence
            && session.is_established()
            && session.ping.is_none()
        {
            session.ask(shared.settings.ping_first, now);
        }
        let old = now.monotonic >= session.born + shared.settings.rekey_after;
        let given_up = session.rekey_at >= session.born + shared.settings.reject_after;
        if (old && given_up && usage.sent_packets > before.sent_packets)
            || usage.most_packets >= shared.settings.rekey_packets
            || usage.most_bytes >= shared.settings.rekey_bytes
        {
            session.rekey_at = session.rekey_at.min(now.monotonic);
        }
        self.tend(shared, now);
    }

    /// Keys came or went.
    pub(super) fn keys_changed(&mut self, shared: &mut Shared, now: Now) {
        let channel = shared.channel(self.pair.channel);
        if channel.is_none() {
            // Nothing is sealed for it any more.
            (self.wanted, self.renew) = (false, false);
        }
        let newest = channel.and_then(ChannelState::newest);
        let held = |generation| channel.is_some_and(|channel| channel.key(generation).is_some());
        let gone = self.open(|session| !held(session.generation));
        let attempt_gone = self
            .attempt
            .as_ref()
            .is_some_and(|attempt| !held(attempt.generation));
        if attempt_gone {
            self.drop_attempt(shared);
        }
        self.without_key = false;
        if newest > self.newest {
            // What the peer did not know before says nothing of this one.
            self.refused.clear();
            if let Some(first) = self.attempt.as_ref().map(|attempt| attempt.first) {
                self.launch(shared, 0, first, now);
            }
        }
        self.newest = newest;
        self.close_all(gone, EndReason::Revoked, shared, now);
        if let (Some(place), Some(newest)) = (self.current(), newest)
            && newest > self.sessions[place].generation
            && !self.sessions[place].outdated
        {
            let soon = now.monotonic + jitter(shared.settings.spread, &mut *shared.random);
            let session = &mut self.sessions[place];
            session.outdated = true;
            session.rekey_at = session.rekey_at.min(soon);
        }
        self.tend(shared, now);
    }

    /// No guests may use it any more: everything of it ends, until a packet needs it again.
    pub(super) fn unusable(&mut self, shared: &mut Shared, now: Now) {
        self.drop_attempt(shared);
        (self.wanted, self.renew) = (false, false);
        self.close_all(self.open(|_| true), EndReason::Unusable, shared, now);
        self.tend(shared, now);
    }

    /// Whether anything is there that has not ended.
    pub(super) fn is_live(&self) -> bool {
        self.attempt.is_some() || !self.sessions.iter().all(Session::is_closing)
    }

    /// The peer's public keys have changed: what it has proven with one that is not its own any more ends.
    pub(super) fn peer_changed(&mut self, shared: &mut Shared, now: Now) {
        let its = |session: &Session| {
            shared
                .peer(self.pair.peer)
                .is_some_and(|peer| peer.has(session.with))
        };
        let gone = self.open(|session| !its(session));
        self.close_all(gone, EndReason::Revoked, shared, now);
        // The one under way is for a key by its place among the ones before.
        if let Some(attempt) = &self.attempt {
            let (tries, first) = (attempt.tries, attempt.first);
            self.launch(shared, tries, first, now);
        }
    }

    /// There is nobody to have sessions with any more.
    pub(super) fn end(&mut self, shared: &mut Shared) {
        self.drop_attempt(shared);
        while !self.sessions.is_empty() {
            self.remove(0, EndReason::PeerGone, shared);
        }
    }

    // ---- What the peer says.

    /// An initiation, proven to be from the peer. Whether it is new is decided here.
    pub(super) fn asked(
        &mut self,
        shared: &mut Shared,
        asked: Asked,
        sender: u32,
        generation: Generation,
        now: Now,
    ) {
        let told = Told::from_bytes(&asked.payload);
        let Some((told, outbound)) =
            told.and_then(|told| Some((told, Block::new(told.base, shared.workers)?)))
        else {
            shared.counters.bad_handshake += 1;
            return;
        };
        if self.sessions.iter().any(|session| session.stamp == told.stamp) {
            shared.counters.replayed += 1;
            return;
        }
        if told.stamp <= self.proven {
            shared.counters.replayed += 1;
            // A host whose clock was set back cannot make itself heard: this one begins, a replay gains nothing more.
            if told.stamp.behind(self.proven) > LATE && self.is_time_to_follow(LATE, now) {
                match &mut self.attempt {
                    // That of this host has waited for long, perhaps, for a way that is there again.
                    Some(attempt) => attempt.hasten(&shared.settings, now.monotonic),
                    None => self.renew = true,
                }
                self.demand = now.monotonic;
                self.tend(shared, now);
            }
            return;
        }
        // Also when this host's own is answered already: the other one was sent before that.
        if now.monotonic < self.crossing && shared.own.public() > asked.from {
            return;
        }
        if self
            .accepted
            .is_some_and(|accepted| now.monotonic < accepted + APART)
        {
            return;
        }
        let base = shared.dealer.deal(&mut *shared.random);
        let Some(inbound) = Block::new(base, told.lanes) else {
            shared.dealer.free(base);
            shared.counters.bad_handshake += 1;
            return;
        };
        let from = asked.from;
        let answer = Told {
            stamp: Stamp::default(),
            base,
            lanes: shared.workers,
        };
        let Some((split, noise)) = asked.answer(&answer.to_bytes()) else {
            shared.dealer.free(base);
            shared.counters.bad_handshake += 1;
            return;
        };
        self.accepted = Some(now.monotonic);
        self.drop_attempt(shared);
        self.hold = now.monotonic + shared.settings.patience;
        let index = shared.take_index(self.pair);
        let mut response = Response {
            head: Head::RESPONSE,
            sender: index.into(),
            receiver: sender.into(),
            noise,
            mac1: [0; MAC],
        };
        if let Some(peer) = shared.peer_mut(self.pair.peer)
            && let Some(place) = peer.publics.iter().position(|(public, _)| *public == from)
        {
            peer.preferred = place;
            response.mac1 = peer.publics[place].1.mac1(before_last_mac(&response));
        }
        let parts = Parts {
            id: self.next_id(shared),
            index,
            remote_index: sender,
            generation,
            with: from,
            role: Role::Responder,
            stamp: told.stamp,
            response: Some(datagram(&response)),
            inbound,
            outbound,
            secret: self.secret(shared, split, generation),
            rekey_at: now.monotonic + shared.settings.rekey_after + shared.settings.rekey_after / 10,
        };
        self.begin(parts, shared, now);
    }

    /// A response, with its mac1 right and from the peer's address.
    pub(super) fn answered(&mut self, shared: &mut Shared, message: &Response, now: Now) {
        let index = message.receiver.get();
        let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.index == index) else {
            shared.counters.bad_handshake += 1;
            return;
        };
        let finished = attempt
            .waiting
            .finish(&message.noise)
            .and_then(|(split, payload)| {
                let told = Told::from_bytes(&payload)?;
                let inbound = Block::new(attempt.block, told.lanes)?;
                let outbound = Block::new(told.base, shared.workers)?;
                Some((split, inbound, outbound))
            });
        let Some((split, inbound, outbound)) = finished else {
            shared.counters.bad_handshake += 1;
            return;
        };
        let (generation, public) = (attempt.generation, attempt.public);
        self.attempt = None;
        let Some(peer) = shared.peer_mut(self.pair.peer) else {
            unreachable!("a pair is made for a peer that there is");
        };
        peer.preferred = public;
        let with = peer.publics[public].0;
        // A host rekeys at its own time, not when all that started with it do.
        let early = jitter(shared.settings.rekey_after / 10, &mut *shared.random);
        let parts = Parts {
            id: self.next_id(shared),
            index,
            remote_index: message.sender.get(),
            generation,
            with,
            role: Role::Initiator,
            stamp: Stamp::default(),
            response: None,
            inbound,
            outbound,
            secret: self.secret(shared, split, generation),
            rekey_at: now.monotonic + shared.settings.rekey_after - early,
        };
        self.hold = now.monotonic + shared.settings.patience;
        self.begin(parts, shared, now);
    }

    /// A cookie for the initiation under way: it is sent again at once, with the cookie.
    pub(super) fn cookie(
        &mut self,
        shared: &mut Shared,
        index: u32,
        nonce: &[u8; 24],
        sealed: &[u8; 32],
        now: Now,
    ) {
        let Some(attempt) = self.attempt.as_ref().filter(|attempt| attempt.index == index) else {
            return;
        };
        let cookie = shared
            .peer(self.pair.peer)
            .and_then(|peer| peer.publics.get(attempt.public))
            .and_then(|(_, keys)| keys.open_cookie(nonce, sealed, &attempt.mac1));
        let again = !attempt.with_cookie;
        let (tries, first) = (attempt.tries, attempt.first);
        if let (Some(cookie), Some(peer)) = (cookie, shared.peer_mut(self.pair.peer)) {
            peer.keep_cookie(cookie, now.monotonic);
            if again {
                self.launch(shared, tries, first, now);
            }
        }
    }

    /// The peer does not know the key or its generation: another one is tried at once, if there is one that it has not refused.
    pub(super) fn key_unknown(&mut self, shared: &mut Shared, message: &KeyUnknown, now: Now) {
        let Some(attempt) = self
            .attempt
            .as_ref()
            .filter(|attempt| attempt.index == message.receiver.get() && attempt.tag == message.tag)
        else {
            return;
        };
        let (generation, tries, first) = (attempt.generation, attempt.tries, attempt.first);
        let was_refused = self.is_refused(generation, now);
        self.refused
            .retain(|(refused, till)| *refused != generation && now.monotonic < *till);
        self.refused
            .push((generation, now.monotonic + shared.settings.refused_again));
        // Said once, not as often as the answer comes.
        if !was_refused {
            shared.event(Event::Refused {
                pair: self.pair,
                generation,
            });
        }
        let next = self.candidates(shared, now).first().copied();
        let next = next.filter(|next| !self.is_refused(*next, now));
        let enough = self
            .current()
            .map(|place| &self.sessions[place])
            .filter(|session| {
                next.is_none_or(|next| session.generation >= next)
                    && !self.renew
                    && now.monotonic < session.born + shared.settings.rekey_after
            });
        if let Some(id) = enough.map(|session| session.id) {
            // What is there is as good as what could be had.
            self.drop_attempt(shared);
            if let Some(place) = self.find(id) {
                self.sessions[place].rekey_at = now.monotonic + shared.settings.refused_again;
            }
        } else if next.is_some() {
            self.launch(shared, tries, first, now);
        }
        self.tend(shared, now);
    }

    /// The peer says, unauthenticated, that it does not know an SPI that this host seals with.
    pub(super) fn spi_unknown(&mut self, shared: &mut Shared, spi: u32, now: Now) -> bool {
        let ours = self
            .current()
            .is_some_and(|place| self.sessions[place].outbound.contains(spi));
        if ours && self.may_follow(HINT_APART, now) {
            self.renew = true;
            self.demand = now.monotonic;
            self.tend(shared, now);
        }
        ours
    }

    /// A message inside a session, in a datagram of so many bytes.
    pub(super) fn inside(&mut self, shared: &mut Shared, message: &Inside, length: usize, now: Now) {
        let place = self.find_index(message.receiver.get());
        let heard = place.and_then(|place| Some((place, self.sessions[place].hear(message)?)));
        let Some((place, word)) = heard else {
            shared.counters.bad_inside += 1;
            return;
        };
        let id = self.sessions[place].id;
        self.heard(place, shared, now);
        let Some(place) = self.find(id) else { return };
        match word {
            Word::Ping => {
                let pong = self.sessions[place].say(Word::Pong);
                shared.send(self.pair.peer, pong);
            }
            Word::Pong => {}
            Word::Probe(said) if usize::from(said) == length => {
                let passed = self.sessions[place].say(Word::Passed(said));
                shared.send(self.pair.peer, passed);
            }
            // It was cut short on the way.
            Word::Probe(_) => {}
            Word::Passed(length) => self.passed(length, shared, now),
            Word::Close => {
                if !self.sessions[place].is_closing() {
                    let close = self.sessions[place].say(Word::Close);
                    shared.send(self.pair.peer, close);
                    shared.counters.revoked += 1;
                }
                self.remove(place, EndReason::ByPeer, shared);
            }
        }
        self.tend(shared, now);
    }

    // ---- Time.

    /// Does everything that is due.
    pub(super) fn tend(&mut self, shared: &mut Shared, now: Now) {
        let at = now.monotonic;
        let mut place = 0;
        while place < self.sessions.len() {
            self.ping(place, shared, at);
            let session = &self.sessions[place];
            if let Some(reason) = session.over(&shared.settings, at) {
                self.remove(place, reason, shared);
                continue;
            }
            if session.is_established() && at >= session.born + shared.settings.reject_after {
                let id = session.id;
                self.sessions[place].spend();
                self.sessions[place].drained = Some(at + shared.settings.drain);
                shared.outputs.push_back(Output::RetireOutbound { session: id });
            }
            place += 1;
        }
        self.probe(shared, at);
        match &self.attempt {
            Some(attempt) if at < attempt.next => {}
            Some(attempt) => {
                let (tries, first) = (attempt.tries, attempt.first);
                if at.saturating_sub(self.demand) > shared.settings.give_up {
                    self.drop_attempt(shared);
                    (self.wanted, self.renew) = (false, false);
                    if let Some(place) = self.current() {
                        // Not before something is sealed again.
                        let session = &mut self.sessions[place];
                        session.rekey_at = session.born + shared.settings.reject_after;
                    }
                    shared.event(Event::GaveUp { pair: self.pair });
                } else {
                    self.launch(shared, tries + 1, first, now);
                }
            }
            None if self.start(shared).is_some_and(|start| at >= start) => {
                self.demand = at;
                self.launch(shared, 0, at, now);
            }
            None => {}
        }
    }

    /// When something is due next.
    pub(super) fn deadline(&self, shared: &Shared) -> Option<Duration> {
        let settings = &shared.settings;
        let sessions = self
            .sessions
            .iter()
            .flat_map(|session| session.deadlines(settings));
        let attempt = match &self.attempt {
            Some(attempt) => Some(attempt.next),
            None => self.start(shared),
        };
        let probe = self
            .current()
            .and_then(|_| shared.peer(self.pair.peer)?.path.due());
        sessions.chain(attempt).chain(probe).min()
    }

    /// When this host begins a handshake, if it has a reason.
    fn start(&self, shared: &Shared) -> Option<Duration> {
        let current = self.current().map(|place| &self.sessions[place]);
        let keep = shared.settings.keepalive.is_some();
        let rekey = current
            .filter(|session| session.is_used() || session.outdated || keep)
            .map(|session| session.rekey_at);
        let asked = self.renew || (self.wanted && current.is_none());
        let start = if asked { Some(self.hold) } else { rekey };
        start.map(|start| start.max(self.hold))
    }

    /// Probes how long packets to the peer may be, inside the session that is sealed with.
    fn probe(&mut self, shared: &mut Shared, at: Duration) {
        let Some(place) = self.current() else { return };
        let (peer, settings, outputs) = shared.path_of(self.pair.peer);
        let Some(peer) = peer else { return };
        while let Some(probes) = peer.path.turn(settings, at) {
            let small = probes.and_small.then_some(SMALL);
            for length in [Some(probes.size - peer.headers()), small].into_iter().flatten() {
                outputs.push_back(Output::Probe {
                    to: peer.address,
                    datagram: self.sessions[place].say(Word::Probe(length)),
                    length,
                });
            }
        }
        shared.tell_path(self.pair.peer);
    }

    /// A datagram of so many bytes has arrived there.
    fn passed(&mut self, length: u16, shared: &mut Shared, now: Now) {
        let (peer, settings, _) = shared.path_of(self.pair.peer);
        match peer {
            Some(peer) if length == SMALL => peer.path.small_passed(),
            Some(peer) => {
                let size = length.saturating_add(peer.headers());
                peer.path.passed(size, settings, now.monotonic);
            }
            None => {}
        }
    }

    fn ping(&mut self, place: usize, shared: &mut Shared, at: Duration) {
        let settings = &shared.settings;
        let session = &mut self.sessions[place];
        let quiet = at.saturating_sub(session.heard.unwrap_or(session.born));
        if session.is_established()
            && session.ping.is_none()
            && settings.keepalive.is_some_and(|keepalive| quiet >= keepalive)
        {
            session.ping = Some(Ping {
                next: at,
                interval: settings.ping_first,
                unanswered: 0,
            });
        }
        let word = if session.is_established() {
            Word::Ping
        } else {
            Word::Close
        };
        let Some(ping) = session.ping.as_mut().filter(|ping| at >= ping.next) else {
            return;
        };
        if ping.unanswered >= settings.pings {
            session.ping = None;
            if session.is_established() {
                // Nothing is sent again before the next report that something was sealed, or the handshake's answer.
                self.renew = true;
                self.demand = at;
                let session = session.id;
                shared.event(Event::Silent { session });
            } else {
                session.drained = Some(at);
            }
            return;
        }
        ping.unanswered += 1;
        ping.next = at + ping.interval;
        ping.interval = (ping.interval * 2).min(settings.retry_longest);
        let said = session.say(word);
        shared.send(self.pair.peer, said);
    }

    // ---- Steps.

    fn is_refused(&self, generation: Generation, now: Now) -> bool {
        let mut refused = self.refused.iter();
        refused.any(|(refused, till)| *refused == generation && now.monotonic < *till)
    }

    /// The generations that could be tried, the newest first: those that the peer has not refused and that are not older than
    /// what it has proved to know, or else the first, or else all.
    fn candidates(&self, shared: &Shared, now: Now) -> Vec<Generation> {
        let Some(channel) = shared.channel(self.pair.channel) else {
            return Vec::new();
        };
        let held: Vec<Generation> = channel.keys.iter().map(|held| held.key.generation).collect();
        let of = |wanted: &dyn Fn(Generation) -> bool| -> Vec<Generation> {
            held.iter().copied().filter(|one| wanted(*one)).collect()
        };
        let is_known = |one| !self.is_refused(one, now);
        let best = of(&|one| is_known(one) && self.floor.is_none_or(|floor| one >= floor));
        if !best.is_empty() {
            return best;
        }
        let known = of(&is_known);
        if known.is_empty() { held } else { known }
    }

    /// Sends an initiation, in place of the one under way.
    fn launch(&mut self, shared: &mut Shared, tries: u32, first: Duration, now: Now) {
        self.drop_attempt(shared);
        let candidates = self.candidates(shared, now);
        let tried = tries as usize;
        let generation = match candidates.len() {
            0 => None,
            length => candidates.get(tried % length).copied(),
        };
        let key = shared
            .channel(self.pair.channel)
            .zip(generation)
            .and_then(|(channel, generation)| channel.key(generation).cloned());
        // What keeps it from being sent now may still do so in a moment.
        let later = self.hold.max(now.monotonic + shared.settings.retry_first);
        let Some(key) = key else {
            self.hold = later;
            (self.wanted, self.renew) = (false, false);
            if !std::mem::replace(&mut self.without_key, true) {
                shared.event(Event::NoKey { pair: self.pair });
            }
            return;
        };
        let Some(peer) = shared
            .peer(self.pair.peer)
            .filter(|peer| !peer.publics.is_empty())
        else {
            self.hold = later;
            return;
        };
        let public = (peer.preferred + tried / candidates.len()) % peer.publics.len();
        let (remote, keys) = peer.publics[public].clone();
        let cookie = peer.cookie(now.monotonic).copied();
        let Some(channel) = shared
            .channel(self.pair.channel)
            .map(|state| state.channel.clone())
        else {
            return;
        };
        self.crossing = first + shared.settings.crossing;
        shared.stamp = shared.stamp.next(now.wall);
        let block = shared.dealer.deal(&mut *shared.random);
        let told = Told {
            stamp: shared.stamp,
            base: block,
            lanes: shared.workers,
        };
        let Some((waiting, noise)) = noise::begin(&shared.statics, remote, &channel, &key, &told.to_bytes())
        else {
            self.hold = later;
            shared.dealer.free(block);
            return;
        };
        let index = shared.take_index(self.pair);
        let mut message = Initiation {
            head: Head::INITIATION,
            sender: index.into(),
            tag: keys.tag(&channel, key.generation),
            noise,
            mac1: [0; MAC],
            mac2: [0; MAC],
        };
        message.mac1 = keys.mac1(before_mac1(&message));
        if let Some(cookie) = &cookie {
            message.mac2 = mac2(cookie, before_last_mac(&message));
        }
        self.attempt = Some(Attempt {
            index,
            block,
            generation: key.generation,
            tag: message.tag,
            mac1: message.mac1,
            public,
            waiting,
            first,
            tries,
            sent: now.monotonic,
            next: now.monotonic + wait(&shared.settings, tries, &mut *shared.random),
            with_cookie: cookie.is_some(),
        });
        shared.send(self.pair.peer, datagram(&message));
    }

    fn drop_attempt(&mut self, shared: &mut Shared) {
        if let Some(attempt) = self.attempt.take() {
            shared.indices.remove(&attempt.index);
            shared.dealer.free(attempt.block);
        }
    }

    fn next_id(&self, shared: &mut Shared) -> SessionId {
        shared.sessions += 1;
        SessionId {
            pair: self.pair,
            number: shared.sessions,
        }
    }

    fn secret(&self, shared: &Shared, split: RawSplit, generation: Generation) -> SessionSecret {
        match shared.channel(self.pair.channel) {
            Some(state) => SessionSecret::new(split, &state.channel, generation),
            None => unreachable!("a pair is made for a channel that there is"),
        }
    }

    /// A session whose inbound SAs are to be installed.
    fn begin(&mut self, parts: Parts, shared: &mut Shared, now: Now) {
        while self.sessions.len() >= SESSIONS {
            // What was never confirmed goes first, then the oldest.
            let idle = |session: &Session| {
                matches!(
                    session.stage,
                    Stage::Installing(_) | Stage::Unconfirmed | Stage::Closing
                )
            };
            let place = self.sessions.iter().position(idle).unwrap_or(0);
            let reason = if idle(&self.sessions[place]) {
                EndReason::Unconfirmed
            } else {
                EndReason::Superseded
            };
            self.remove(place, reason, shared);
        }
        let session = Session::new(parts, now.monotonic);
        let sas = session.inbound_sas(shared.workers);
        shared.outputs.push_back(Output::InstallInbound {
            session: session.id,
            sas,
        });
        self.sessions.push(session);
    }

    /// The session may be sealed with, unless a newer one is.
    fn establish(&mut self, place: usize, shared: &mut Shared, now: Now) {
        let id = self.sessions[place].id;
        if self
            .current()
            .is_some_and(|current| self.sessions[current].id > id)
        {
            self.sessions[place].stage = Stage::Spent;
            return;
        }
        for older in &mut self.sessions {
            if older.is_established() {
                older.spend();
            }
        }
        let session = &mut self.sessions[place];
        session.stage = Stage::Established;
        shared.outputs.push_back(Output::UseOutbound {
            session: id,
            sas: session.take_outbound_sas(),
            packets: shared.settings.reject_packets,
        });
        shared.event(Event::Established {
            session: id,
            generation: session.generation,
            sas: (session.inbound.spis().count() + session.outbound.spis().count()) as u64,
        });
        if session.role == Role::Initiator {
            // Confirms: the responder seals with it only after this.
            session.ask(shared.settings.ping_first, now);
        }
        self.floor = self.floor.max(Some(session.generation));
        if shared
            .channel(self.pair.channel)
            .and_then(|channel| channel.newest())
            > Some(session.generation)
        {
            let later = now.monotonic + shared.settings.refused_again;
            session.outdated = true;
            session.rekey_at = session.rekey_at.min(later);
        }
        (self.wanted, self.renew) = (false, false);
        if let Some(peer) = shared.peer_mut(self.pair.peer) {
            peer.path.sealed();
        }
    }

    /// The peer is alive and has the keys of this session.
    fn heard(&mut self, place: usize, shared: &mut Shared, now: Now) {
        let session = &mut self.sessions[place];
        session.heard = Some(now.monotonic);
        if let Some(peer) = shared.peer_mut(self.pair.peer) {
            peer.path.heard();
        }
        if !session.is_closing() {
            session.ping = None;
        }
        self.proven = self.proven.max(session.stamp);
        if matches!(session.stage, Stage::Unconfirmed) {
            self.establish(place, shared, now);
        }
        // Both hosts use this one now: what is older ends when its last packets have arrived.
        if self.sessions[place].is_established() {
            let drained = now.monotonic + shared.settings.drain;
            for older in self.sessions.iter_mut().take(place) {
                older.drained.get_or_insert(drained);
            }
        }
    }

    /// The sessions that are not closing already and of which something is so.
    fn open(&self, is_meant: impl Fn(&Session) -> bool) -> Vec<SessionId> {
        let sessions = self.sessions.iter();
        let open = sessions.filter(|session| !session.is_closing() && is_meant(session));
        open.map(|session| session.id).collect()
    }

    fn close_all(&mut self, sessions: Vec<SessionId>, reason: EndReason, shared: &mut Shared, now: Now) {
        for id in sessions {
            if let Some(place) = self.find(id) {
                self.close(place, reason, shared, now);
            }
        }
    }

    /// Ends a session at once, on this host, and tells the peer until it answers.
    fn close(&mut self, place: usize, reason: EndReason, shared: &mut Shared, now: Now) {
        let session = &mut self.sessions[place];
        let (id, generation) = (session.id, session.generation);
        if session.is_established() {
            shared.outputs.push_back(Output::RetireOutbound { session: id });
        }
        let spis = session.inbound.spis().map(|(_, spi)| spi).collect();
        shared
            .outputs
            .push_back(Output::RetireInbound { session: id, spis });
        session.stage = Stage::Closing;
        session.ask(shared.settings.ping_first, now);
        shared.counters.revoked += 1;
        shared.event(Event::Ended {
            session: id,
            generation,
            reason,
        });
    }

    fn remove(&mut self, place: usize, reason: EndReason, shared: &mut Shared) {
        let session = self.sessions.remove(place);
        shared.indices.remove(&session.index);
        shared.dealer.free(session.inbound.base());
        if session.is_closing() {
            return;
        }
        if session.is_established() {
            let id = session.id;
            shared.outputs.push_back(Output::RetireOutbound { session: id });
        }
        let spis = session.inbound.spis().map(|(_, spi)| spi).collect();
        shared.outputs.push_back(Output::RetireInbound {
            session: session.id,
            spis,
        });
        shared.event(Event::Ended {
            session: session.id,
            generation: session.generation,
            reason,
        });
    }

    /// Whether a hint may begin a handshake, if none is under way.
    fn may_follow(&mut self, apart: Duration, now: Now) -> bool {
        self.attempt.is_none() && self.is_time_to_follow(apart, now)
    }

    fn is_time_to_follow(&mut self, apart: Duration, now: Now) -> bool {
        let is_time = self
            .followed
            .is_none_or(|followed| now.monotonic >= followed + apart);
        if is_time {
            self.followed = Some(now.monotonic);
        }
        is_time
    }

    // ---- What status shows.

    pub(super) fn status(&self, shared: &Shared, now: Duration) -> impl Iterator<Item = SessionStatus> {
        let path_mtu = shared.peer(self.pair.peer).and_then(|peer| peer.path.used());
        self.sessions.iter().map(move |session| SessionStatus {
            session: session.id,
            generation: session.generation,
            current: session.is_established(),
            age: now.saturating_sub(session.born),
            next_rekey: session
                .is_established()
                .then(|| session.rekey_at.saturating_sub(now)),
            heard: session.heard.map(|heard| now.saturating_sub(heard)),
            path_mtu,
            usage: session.usage,
        })
    }

    /// Attempts and sessions that are held.
    pub(super) fn count(&self) -> usize {
        self.sessions.len() + usize::from(self.attempt.is_some())
    }

    /// This host has a new static key: what is under way begins anew with it.
    pub(super) fn identity_changed(&mut self, shared: &mut Shared, now: Now) {
        if let Some(attempt) = &self.attempt {
            let (tries, first) = (attempt.tries, attempt.first);
            self.launch(shared, tries, first, now);
        }
    }
}

/// All of an initiation in front of its mac1.
pub(super) fn before_mac1(message: &Initiation) -> &[u8] {
    let bytes = message.as_bytes();
    bytes.get(..bytes.len() - 2 * MAC).unwrap_or_default()
}
