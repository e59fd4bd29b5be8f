//! One session: two directions of SAs, and the messages inside it (ping, pong, close).
//!
//! A responder's session may not be sealed with until the initiator has been heard in it: only then is it known that the
//! initiation was no replay, and that the initiator can open.

use std::time::Duration;

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};
use zerocopy::IntoBytes;

use crate::keys::derive::{Direction, SessionSecret};
use crate::keys::identity::PublicKey;
use crate::keys::store::Generation;
use crate::path::batch::WorkerId;
use crate::sa::replay::ReplayWindow;

use super::message::{Datagram, Head, Inside, datagram};
use super::output::{EndReason, InboundSaOrder, OutboundSaOrder, SessionId, Usage};
use super::settings::Settings;
use super::shared::Now;
use super::spis::Block;
use super::stamp::Stamp;

/// Which end of the handshake this host was.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Initiator,
    Responder,
}

/// How far a session is.
#[derive(Debug)]
pub(super) enum Stage {
    /// Its inbound SAs are being installed; then the response goes out, if this host answered.
    Installing(Option<Datagram>),
    /// Answered; the initiator has not been heard in it.
    Unconfirmed,
    /// It may be sealed with.
    Established,
    /// It may not be sealed with any more.
    Spent,
    /// Its SAs are gone; the peer is told until it answers.
    Closing,
}

/// What a message inside a session says.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Ping,
    Pong,
    Close,
    /// Does a datagram of so many bytes pass?
    Probe(u16),
    /// One of so many bytes did.
    Passed(u16),
}

/// A question that is not answered yet.
#[derive(Debug)]
pub(super) struct Ping {
    pub(super) next: Duration,
    pub(super) interval: Duration,
    pub(super) unanswered: u32,
}

pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) index: u32,
    pub(super) generation: Generation,
    /// The public key that the peer has proven to be its own.
    pub(super) with: PublicKey,
    pub(super) role: Role,
    /// Of the initiation, if this host answered it.
    pub(super) stamp: Stamp,
    pub(super) stage: Stage,
    pub(super) inbound: Block,
    pub(super) outbound: Block,
    pub(super) born: Duration,
    /// When it is replaced, if it is used.
    pub(super) rekey_at: Duration,
    /// Replaced even if it is not used: its key has a newer generation.
    pub(super) outdated: bool,
    /// When it opens no more, since both hosts use a newer one or it may not be sealed with any more.
    pub(super) drained: Option<Duration>,
    /// Whether the peer was heard in it.
    pub(super) heard: Option<Duration>,
    pub(super) ping: Option<Ping>,
    pub(super) usage: Usage,
    remote_index: u32,
    /// Until all SAs are derived.
    secret: Option<SessionSecret>,
    sealer: ChaCha20Poly1305,
    opener: ChaCha20Poly1305,
    sent: u64,
    window: ReplayWindow,
}

/// What a session is made of.
pub(super) struct Parts {
    pub(super) id: SessionId,
    pub(super) index: u32,
    pub(super) remote_index: u32,
    pub(super) generation: Generation,
    pub(super) with: PublicKey,
    pub(super) role: Role,
    pub(super) stamp: Stamp,
    pub(super) response: Option<Datagram>,
    pub(super) inbound: Block,
    pub(super) outbound: Block,
    pub(super) secret: SessionSecret,
    pub(super) rekey_at: Duration,
}

impl Session {
    pub(super) fn new(parts: Parts, now: Duration) -> Self {
        let (out, back) = directions(parts.role);
        let cipher = |direction| ChaCha20Poly1305::new((&*parts.secret.message_key(direction)).into());
        let (sealer, opener) = (cipher(out), cipher(back));
        Self {
            id: parts.id,
            index: parts.index,
            remote_index: parts.remote_index,
            generation: parts.generation,
            with: parts.with,
            role: parts.role,
            stamp: parts.stamp,
            stage: Stage::Installing(parts.response),
            inbound: parts.inbound,
            outbound: parts.outbound,
            born: now,
            rekey_at: parts.rekey_at,
            outdated: false,
            drained: None,
            heard: None,
            ping: None,
            usage: Usage::default(),
            sealer,
            opener,
            secret: Some(parts.secret),
            sent: 0,
            window: ReplayWindow::new(64, true),
        }
    }

    /// The SAs that open what each worker of the peer seals.
    pub(super) fn inbound_sas(&self, workers: u8) -> Vec<InboundSaOrder> {
        let (_, back) = directions(self.role);
        let Some(secret) = &self.secret else {
            return Vec::new();
        };
        let order = |(lane, spi)| InboundSaOrder {
            spi,
            owner: self.inbound.owner(lane, workers),
            key: secret.traffic_key(back, lane, spi),
        };
        self.inbound.spis().map(order).collect()
    }

    /// The SAs that the workers of this host seal with. The secret is gone then: there is nothing to derive once more.
    pub(super) fn take_outbound_sas(&mut self) -> Vec<OutboundSaOrder> {
        let (out, _) = directions(self.role);
        let Some(secret) = self.secret.take() else {
            return Vec::new();
        };
        let order = |(lane, spi)| OutboundSaOrder {
            spi,
            worker: WorkerId(u16::from(lane)),
            key: secret.traffic_key(out, lane, spi),
        };
        self.outbound.spis().map(order).collect()
    }

    /// Over on this host; the peer is told till it answers.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.stage, Stage::Closing)
    }

    pub(super) fn is_established(&self) -> bool {
        matches!(self.stage, Stage::Established)
    }

    /// It may not be sealed with any more.
    pub(super) fn spend(&mut self) {
        self.stage = Stage::Spent;
        self.ping = None;
    }

    /// Asks the peer for an answer, at once and again.
    pub(super) fn ask(&mut self, interval: Duration, now: Now) {
        self.ping = Some(Ping {
            next: now.monotonic,
            interval,
            unanswered: 0,
        });
    }

    /// Why it is over, if it is.
    pub(super) fn over(&self, settings: &Settings, at: Duration) -> Option<EndReason> {
        let early = matches!(self.stage, Stage::Installing(_) | Stage::Unconfirmed);
        if self.drained.is_some_and(|drained| at >= drained) {
            let spent = at >= self.born + settings.reject_after;
            Some(if spent {
                EndReason::Expired
            } else {
                EndReason::Superseded
            })
        } else if early && at >= self.born + settings.unconfirmed {
            Some(EndReason::Unconfirmed)
        } else {
            // The peer may seal as long as this host, counted from when it began to.
            let last = self.born + settings.reject_after + settings.drain;
            (at >= last && self.drained.is_none()).then_some(EndReason::Expired)
        }
    }

    /// When something is due.
    pub(super) fn deadlines(&self, settings: &Settings) -> impl Iterator<Item = Duration> {
        let over = match (self.drained, &self.stage) {
            (Some(drained), _) => drained,
            (None, Stage::Installing(_) | Stage::Unconfirmed) => self.born + settings.unconfirmed,
            (None, Stage::Established) => self.born + settings.reject_after,
            (None, Stage::Spent | Stage::Closing) => self.born + settings.reject_after + settings.drain,
        };
        let keepalive = settings
            .keepalive
            .filter(|_| self.is_established() && self.ping.is_none())
            .map(|keepalive| self.heard.unwrap_or(self.born) + keepalive);
        let ping = self.ping.as_ref().map(|ping| ping.next);
        [Some(over), keepalive, ping].into_iter().flatten()
    }

    pub(super) fn is_used(&self) -> bool {
        self.usage.sent_packets > 0 || self.usage.received_packets > 0
    }

    /// A message inside the session.
    pub(super) fn say(&mut self, word: Word) -> Datagram {
        let counter = self.sent;
        // One message a microsecond would take 500,000 years to come back to 0.
        self.sent += 1;
        let (head, kind, length) = match word {
            Word::Ping => (Head::INSIDE, 1, 0),
            Word::Pong => (Head::INSIDE, 2, 0),
            Word::Close => (Head::INSIDE, 3, 0),
            Word::Probe(length) => (Head::PROBE, 4, length),
            Word::Passed(length) => (Head::INSIDE, 5, length),
        };
        let mut message = Inside {
            head,
            receiver: self.remote_index.into(),
            counter: counter.into(),
            sealed: [0; 16],
            authenticator: [0; 16],
        };
        message.sealed[0] = kind;
        message.sealed[1..3].copy_from_slice(&length.to_be_bytes());
        let additional = additional(&message);
        let sealed = self
            .sealer
            .encrypt_in_place_detached(&nonce(counter), &additional, &mut message.sealed);
        let Ok(tag) = sealed else {
            unreachable!("16 bytes are not too long to seal")
        };
        message.authenticator = tag.into();
        datagram(&message)
    }

    /// What a message inside the session says, if it is the peer's and new.
    pub(super) fn hear(&mut self, message: &Inside) -> Option<Word> {
        // The window begins at 1: 0 is no number to it.
        let number = message.counter.get().checked_add(1)?;
        self.window.check(number).ok()?;
        let mut word = message.sealed;
        self.opener
            .decrypt_in_place_detached(
                &nonce(message.counter.get()),
                &additional(message),
                &mut word,
                Tag::from_slice(&message.authenticator),
            )
            .ok()?;
        self.window.accept(number).ok()?;
        let [kind, high, low, ..] = word;
        match (message.head, kind) {
            (Head::PROBE, 4) => Some(Word::Probe(u16::from_be_bytes([high, low]))),
            (Head::PROBE, _) => None,
            (_, 1) => Some(Word::Ping),
            (_, 2) => Some(Word::Pong),
            (_, 3) => Some(Word::Close),
            (_, 5) => Some(Word::Passed(u16::from_be_bytes([high, low]))),
            _ => None,
        }
    }
}

fn directions(role: Role) -> (Direction, Direction) {
    match role {
        Role::Initiator => (Direction::FromInitiator, Direction::FromResponder),
        Role::Responder => (Direction::FromResponder, Direction::FromInitiator),
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce.into()
}

fn additional(message: &Inside) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&message.as_bytes()[..16]);
    bytes
}
