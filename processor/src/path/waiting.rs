//! Packets that wait for a session: bounded for each peer and key and in all, each for a bounded time.
//!
//! Reads what `select_sa` found no SA for; holds its descriptors, frames and all, until the tables have an SA, their time
//! is over or the worker stops. What finds no room, and what waited too long, ends with its reason. When the rules have
//! changed meanwhile, a packet is decided anew before it leaves. Never allocates after it was made, never blocks.

use std::collections::VecDeque;
use std::num::NonZeroU32;

use arrayvec::ArrayVec;

use crate::port::BATCH;
use crate::sa::table::OutboundKey;

use super::batch::{Batch, Descriptor, WorkerId};
use super::notices::{Notice, Notices};
use super::outcome::DropReason;
use super::tables::Tables;

/// Packets that wait at most.
const ROOM: usize = 256;
/// Packets that wait at most for one peer and key.
const ROOM_OF_ONE: usize = 32;
/// Peers and keys that are waited for at a time.
const ASKED: usize = 64;
/// How long a packet waits, ns: three initiations are sent in that time.
const PATIENCE: u64 = 4_000_000_000;
/// How often control is told of one peer and key, ns.
const ASK_AGAIN: u64 = 500_000_000;
/// How often those who wait are looked at, ns: a worker under load has better to do.
const LOOK_AGAIN: u64 = 1_000_000;

/// A peer and key for which packets wait.
#[derive(Debug)]
struct Asked {
    key: OutboundKey,
    waiting: usize,
    told: u64,
}

#[derive(Debug)]
struct Waiting {
    key: OutboundKey,
    /// When it is given up, ns of `CLOCK_MONOTONIC`.
    until: u64,
    /// The rules that decided it.
    rules: NonZeroU32,
    descriptor: Descriptor,
}

/// The packets of one worker that wait.
#[derive(Debug)]
pub struct WaitingRoom {
    packets: VecDeque<Waiting>,
    asked: ArrayVec<Asked, ASKED>,
    room: usize,
    /// When it is looked at again.
    due: u64,
}

impl WaitingRoom {
    /// For a worker with so many frames: at most an eighth of them wait.
    #[must_use]
    pub fn new(frames: usize) -> Self {
        Self {
            packets: VecDeque::with_capacity(ROOM),
            asked: ArrayVec::new(),
            room: ROOM.min(frames / 8),
            due: 0,
        }
    }

    /// Whether nobody waits.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether it is time to look at those who wait.
    #[must_use]
    pub fn is_due(&self, now: u64) -> bool {
        !self.is_empty() && now >= self.due
    }

    /// Takes the live packets out of a batch that are to be sealed and have no SA yet, and tells control.
    pub fn park(&mut self, batch: &mut Batch, tables: &Tables, now: u64, notices: &mut Notices) {
        for mut descriptor in std::mem::take(batch) {
            match outbound_key(&descriptor).filter(|_| descriptor.is_live() && descriptor.sa.is_none()) {
                Some(key) => {
                    let full = self.packets.len() >= self.room;
                    let asked = self.ask(key, now, notices);
                    match asked.filter(|asked| !full && asked.waiting < ROOM_OF_ONE) {
                        Some(asked) => {
                            asked.waiting += 1;
                            self.packets.push_back(Waiting {
                                key,
                                until: descriptor.arrival + PATIENCE,
                                rules: tables.rules.generation(),
                                descriptor,
                            });
                        }
                        None => {
                            descriptor.drop_for(DropReason::WaitingRoomFull);
                            batch.push(descriptor);
                        }
                    }
                }
                None => batch.push(descriptor),
            }
        }
    }

    /// Notes that a session is wanted, and tells control now and then. Nothing if too many are wanted at a time.
    fn ask(&mut self, key: OutboundKey, now: u64, notices: &mut Notices) -> Option<&mut Asked> {
        let place = match self.asked.iter().position(|asked| asked.key == key) {
            Some(place) => place,
            None => {
                let asked = Asked {
                    key,
                    waiting: 0,
                    told: 0,
                };
                self.asked.try_push(asked).ok()?;
                self.asked.len() - 1
            }
        };
        let asked = self.asked.get_mut(place)?;
        if now.saturating_sub(asked.told) >= ASK_AGAIN && notices.hint(Notice::Wanted(key)) {
            asked.told = now;
        }
        Some(asked)
    }

    /// Takes up to a batch of packets out whose waiting is over: the tables have an SA for them now, or their time is up.
    /// Says whether some of them must be decided anew: the rules are others, or their receiver has moved.
    pub fn leave(&mut self, batch: &mut Batch, tables: &Tables, own: WorkerId, now: u64) -> bool {
        self.due = now + LOOK_AGAIN;
        let rules = tables.rules.generation();
        let mut changed = false;
        for _ in 0..self.packets.len() {
            let Some(mut waiting) = self.packets.pop_front() else {
                break;
            };
            let late = now >= waiting.until;
            let candidates = tables.sas.outbound(&waiting.key);
            let decided_anew = waiting.rules != rules || has_moved(&waiting.descriptor, tables);
            let ready = decided_anew || candidates.covering(&waiting.descriptor.packet, own).is_some();
            if batch.len() == BATCH || !(late || ready) {
                self.packets.push_back(waiting);
                continue;
            }
            if let Some(asked) = self.asked.iter_mut().find(|asked| asked.key == waiting.key) {
                asked.waiting -= 1;
            }
            if late {
                waiting.descriptor.drop_for(DropReason::NoSessionInTime);
            }
            changed |= decided_anew;
            batch.push(waiting.descriptor);
        }
        self.asked.retain(|asked| asked.waiting > 0);
        changed
    }

    /// Takes up to a batch of packets out, to be ended: the worker stops.
    pub fn give_up(&mut self, batch: &mut Batch) {
        while batch.len() < BATCH
            && let Some(mut waiting) = self.packets.pop_front()
        {
            waiting.descriptor.drop_for(DropReason::NoSessionInTime);
            batch.push(waiting.descriptor);
        }
        if self.packets.is_empty() {
            self.asked.clear();
        }
    }
}

/// Whether the guest that a packet is for lives on another host by now.
fn has_moved(descriptor: &Descriptor, tables: &Tables) -> bool {
    descriptor.destination.is_some_and(|to| {
        let now = tables.endpoints.of_port(to.port);
        now.is_none_or(|now| now.host != to.host)
    })
}

/// What the SA of a packet is chosen by, if it is to be sealed.
#[inline]
#[must_use]
pub fn outbound_key(descriptor: &Descriptor) -> Option<OutboundKey> {
    let (key, protection) = descriptor.seal?;
    Some(OutboundKey {
        key,
        protection,
        network: descriptor.network,
        peer: descriptor.far_host()?,
    })
}
