//! Installs and retires the SAs of sessions: slots of workers, the table that finds them, and what must come before what.
//!
//! An SA that opens is in its slot and in the table before the engine hears of it, an SA that seals is in its slot before
//! it is in the table. One that a newer one has replaced stays in its slot for a moment: packets may be on their way to it.
//! What was done under an SA is summed up for its session, also after it is gone.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use guestseal_rules::model::HostIndex;

use crate::control::assemble::DataPlane;
use crate::keys::handshake::output::{SessionId, Usage};
use crate::path::batch::WorkerId;
use crate::path::notices::{Notice, Survey};
use crate::sa::inbound::InboundSa;
use crate::sa::outbound::{OutboundSa, Tally};
use crate::sa::slots::{Owned, Place};
use crate::sa::spi::Spi;
use crate::sa::table::{OutboundKey, SaTable};
use crate::worker::run::Command;

/// How long a replaced SA may still seal what was handed over to its worker.
const LINGER: Duration = Duration::from_secs(1);
/// The first slots that a worker gets.
const FIRST_ROOM: usize = 64;

/// The two directions of SAs.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
enum Way {
    Out,
    In,
}

/// The slots of one worker and direction.
#[derive(Debug, Default)]
struct Rooms {
    capacity: usize,
    free: Vec<u32>,
}

/// An SA that is, or is about to be, in a slot.
#[derive(Debug)]
struct Placed {
    serial: u32,
    session: SessionId,
    tally: Tally,
}

/// What follows when workers have obeyed.
#[derive(Debug)]
enum Then {
    Open(SessionId, Vec<(Spi, Place)>),
    Seal(SessionId, OutboundKey, Vec<Place>),
}

#[derive(Debug)]
struct Pending {
    /// For each worker that was told something, the number of that command.
    told: Vec<(WorkerId, u64)>,
    then: Then,
}

impl Pending {
    fn is_obeyed(&self, plane: &DataPlane) -> bool {
        let mut told = self.told.iter();
        told.all(|(worker, count)| plane.has_obeyed(*worker, *count))
    }
}

/// What a session has done under SAs that are gone.
#[derive(Debug, Default)]
struct Gone {
    outbound: Tally,
    inbound: Tally,
}

/// The SAs of sessions.
#[derive(Debug)]
pub(super) struct Installer {
    table: SaTable,
    /// By worker: outbound, inbound.
    rooms: Vec<[Rooms; 2]>,
    placed: HashMap<(WorkerId, Way, u32), Placed>,
    serial: u32,
    pending: Vec<Pending>,
    /// SAs in the table that open, by session.
    opening: HashMap<SessionId, Vec<(Spi, Place)>>,
    /// What is sealed with now.
    sealing: HashMap<OutboundKey, (SessionId, Vec<Place>)>,
    lingering: VecDeque<(Duration, Vec<Place>)>,
    /// To be retired once the table without them is published.
    retiring: Vec<(Way, Place)>,
    /// To be told to the engine once the table with them is published.
    ready: Vec<SessionId>,
    gone: HashMap<SessionId, Gone>,
    changed: bool,
    /// Surveys that have not come back.
    surveys: usize,
}

fn add(sum: &mut Tally, one: Tally) {
    sum.packets += one.packets;
    sum.bytes += one.bytes;
    sum.replayed += one.replayed;
}

impl Installer {
    /// Beside the SAs of `table`, which workers own already.
    #[must_use]
    pub(super) fn new(table: SaTable, owned: &[Owned]) -> Self {
        let rooms = |owned: &Owned| {
            [owned.outbound.capacity(), owned.inbound.capacity()].map(|capacity| Rooms {
                capacity,
                free: Vec::new(),
            })
        };
        Self {
            table,
            rooms: owned.iter().map(rooms).collect(),
            placed: HashMap::new(),
            serial: 0,
            pending: Vec::new(),
            opening: HashMap::new(),
            sealing: HashMap::new(),
            lingering: VecDeque::new(),
            retiring: Vec::new(),
            ready: Vec::new(),
            gone: HashMap::new(),
            changed: false,
            surveys: 0,
        }
    }

    /// There can be sessions with these hosts from now on. Gives the table that says so.
    pub(super) fn set_session_peers(&mut self, peers: impl IntoIterator<Item = HostIndex>) -> Arc<SaTable> {
        self.table.set_session_peers(peers);
        Arc::new(self.table.clone())
    }

    /// Installs SAs that open; [`Self::settle`] says when the engine may be told.
    pub(super) fn open(
        &mut self,
        plane: &mut DataPlane,
        session: SessionId,
        sas: Vec<(WorkerId, InboundSa)>,
    ) {
        let mut placed = Vec::new();
        for (owner, sa) in sas {
            let (spi, place) = (sa.spi, self.place(plane, owner, Way::In, session));
            plane.tell(owner, Command::InstallInbound(place, sa));
            placed.push((spi, place));
        }
        let workers = placed.iter().map(|(_, place)| place.owner);
        let told = workers.map(|worker| (worker, plane.commanded(worker))).collect();
        self.pending.push(Pending {
            told,
            then: Then::Open(session, placed),
        });
    }

    /// Installs SAs that seal, one for each worker in their order, and then lets them be used.
    pub(super) fn seal(
        &mut self,
        plane: &mut DataPlane,
        session: SessionId,
        key: OutboundKey,
        sas: Vec<OutboundSa>,
    ) {
        let mut places = Vec::new();
        for (owner, sa) in (0..).map(WorkerId).zip(sas) {
            let place = self.place(plane, owner, Way::Out, session);
            plane.tell(owner, Command::InstallOutbound(place, sa));
            places.push(place);
        }
        let told = places
            .iter()
            .map(|place| (place.owner, plane.commanded(place.owner)));
        self.pending.push(Pending {
            told: told.collect(),
            then: Then::Seal(session, key, places),
        });
    }

    /// Opens no more with the SAs of a session.
    pub(super) fn retire_inbound(&mut self, session: SessionId) {
        let cancelled = self.cancel(|then| matches!(then, Then::Open(one, _) if *one == session));
        let open = self.opening.remove(&session).unwrap_or_default();
        for (spi, place) in open {
            self.table.remove_inbound(spi);
            self.changed = true;
            self.retiring.push((Way::In, place));
        }
        for then in cancelled {
            if let Then::Open(_, places) = then {
                let places = places.into_iter().map(|(_, place)| (Way::In, place));
                self.retiring.extend(places);
                self.changed = true;
            }
        }
    }

    /// Seals no more with the SAs of a session.
    pub(super) fn retire_outbound(&mut self, session: SessionId) {
        let mut places = Vec::new();
        for then in self.cancel(|then| matches!(then, Then::Seal(one, ..) if *one == session)) {
            if let Then::Seal(_, _, cancelled) = then {
                places.extend(cancelled);
            }
        }
        let key = self
            .sealing
            .iter()
            .find_map(|(key, (one, _))| (*one == session).then_some(*key));
        if let Some((key, (_, current))) = key.and_then(|key| self.sealing.remove_entry(&key)) {
            self.table.set_session(key, Vec::new());
            places.extend(current);
        }
        if !places.is_empty() {
            self.changed = true;
            self.retiring
                .extend(places.into_iter().map(|place| (Way::Out, place)));
        }
    }

    /// Goes on with what workers have obeyed, publishes what has changed, retires what is not in use any more. Gives the
    /// sessions whose SAs open from now on.
    pub(super) fn settle(
        &mut self,
        plane: &mut DataPlane,
        sas: &mut Arc<SaTable>,
        now: Duration,
    ) -> Vec<SessionId> {
        // In the order in which they were begun: what waits for one worker holds up what came later.
        let count = self
            .pending
            .iter()
            .take_while(|pending| pending.is_obeyed(plane))
            .count();
        let done: Vec<Pending> = self.pending.drain(..count).collect();
        for pending in done {
            self.changed = true;
            match pending.then {
                Then::Open(session, places) => {
                    for (spi, place) in &places {
                        if !self.table.add_inbound(*spi, *place) {
                            tracing::error!("SPI {spi} is another SA's already: the session cannot be used");
                        }
                    }
                    self.opening.insert(session, places);
                    self.ready.push(session);
                }
                Then::Seal(session, key, places) => {
                    self.table.set_session(key, places.clone());
                    if let Some((_, replaced)) = self.sealing.insert(key, (session, places)) {
                        self.lingering.push_back((now + LINGER, replaced));
                    }
                }
            }
        }
        if std::mem::take(&mut self.changed) {
            *sas = Arc::new(self.table.clone());
            plane.publish_sas(sas);
            // Packets may be waiting for it.
            plane.wake();
        }
        while self.lingering.front().is_some_and(|(until, _)| now >= *until) {
            let (_, places) = self.lingering.pop_front().unwrap_or_default();
            self.retiring
                .extend(places.into_iter().map(|place| (Way::Out, place)));
        }
        for (way, place) in std::mem::take(&mut self.retiring) {
            let command = match way {
                Way::Out => Command::RetireOutbound(place),
                Way::In => Command::RetireInbound(place),
            };
            plane.tell(place.owner, command);
        }
        std::mem::take(&mut self.ready)
    }

    /// Whether [`Self::settle`] would go on with something.
    #[must_use]
    pub(super) fn has_obeyed(&self, plane: &DataPlane) -> bool {
        self.pending
            .first()
            .is_some_and(|pending| pending.is_obeyed(plane))
    }

    /// When a replaced SA is to be retired.
    #[must_use]
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.lingering.front().map(|(until, _)| *until)
    }

    /// Asks every worker what was done under its SAs, unless it was asked already.
    pub(super) fn survey(&mut self, plane: &mut DataPlane) {
        if self.surveys > 0 {
            return;
        }
        for (worker, [outbound, inbound]) in (0..).map(WorkerId).zip(&self.rooms) {
            let survey = Survey::with_room(outbound.capacity, inbound.capacity);
            plane.tell(worker, Command::Survey(survey));
            self.surveys += 1;
        }
    }

    /// Takes what a worker says of SAs. Whether it was the last answer to a survey.
    pub(super) fn hear(&mut self, worker: WorkerId, notice: Notice) -> bool {
        match notice {
            Notice::Outbound(place, sa) => self.freed(Way::Out, place, sa.tally.get()),
            Notice::Inbound(place, sa) => self.freed(Way::In, place, sa.tally.get()),
            Notice::Survey(survey) => {
                for (way, all) in [(Way::Out, &survey.outbound), (Way::In, &survey.inbound)] {
                    for (slot, serial, tally) in all {
                        let placed = self.placed.get_mut(&(worker, way, *slot));
                        if let Some(placed) = placed.filter(|placed| placed.serial == *serial) {
                            placed.tally = *tally;
                        }
                    }
                }
                self.surveys -= 1;
                return self.surveys == 0;
            }
            Notice::OutboundRoom(_)
            | Notice::InboundRoom(_)
            | Notice::Wanted(_)
            | Notice::UnknownSpi { .. } => {}
        }
        false
    }

    /// What was done under each session, and packets that its replay windows refused.
    #[must_use]
    pub(super) fn usage(&self) -> HashMap<SessionId, (Usage, u64)> {
        let mut all: HashMap<SessionId, (Usage, u64)> = HashMap::new();
        for (session, gone) in &self.gone {
            let (usage, replayed) = all.entry(*session).or_default();
            sent(usage, gone.outbound);
            received(usage, gone.inbound);
            *replayed += gone.inbound.replayed;
        }
        for ((_, way, _), placed) in &self.placed {
            let (usage, replayed) = all.entry(placed.session).or_default();
            match way {
                Way::Out => sent(usage, placed.tally),
                Way::In => received(usage, placed.tally),
            }
            *replayed += placed.tally.replayed;
        }
        all
    }

    /// Forgets sessions that are over, once all their SAs have come back. Gives them with what was done under them.
    pub(super) fn forget(&mut self, over: impl Fn(SessionId) -> bool) -> Vec<(SessionId, Usage)> {
        let there: std::collections::HashSet<SessionId> =
            self.placed.values().map(|placed| placed.session).collect();
        let over: Vec<SessionId> = self
            .gone
            .keys()
            .copied()
            .filter(|session| !there.contains(session) && over(*session))
            .collect();
        let forget = |session: SessionId| {
            let gone = self.gone.remove(&session)?;
            let mut usage = Usage::default();
            sent(&mut usage, gone.outbound);
            received(&mut usage, gone.inbound);
            Some((session, usage))
        };
        over.into_iter().filter_map(forget).collect()
    }

    /// The workers have stopped: they obeyed everything, and what they said is here.
    pub(super) fn stopped(&mut self, notices: Vec<(WorkerId, Notice)>) {
        for (worker, notice) in notices {
            self.hear(worker, notice);
        }
        self.surveys = 0;
        self.pending.iter_mut().for_each(|pending| pending.told.clear());
    }

    fn freed(&mut self, way: Way, place: Place, tally: Tally) {
        let at = (place.owner, way, place.slot);
        if let Some(placed) = self.placed.remove(&at) {
            let gone = self.gone.entry(placed.session).or_default();
            add(
                match way {
                    Way::Out => &mut gone.outbound,
                    Way::In => &mut gone.inbound,
                },
                tally,
            );
            self.rooms_of(place.owner, way).free.push(place.slot);
        }
    }

    fn rooms_of(&mut self, worker: WorkerId, way: Way) -> &mut Rooms {
        &mut self.rooms[worker.index()][way as usize]
    }

    /// A slot that nobody has, and a serial number that nobody had.
    fn place(&mut self, plane: &mut DataPlane, owner: WorkerId, way: Way, session: SessionId) -> Place {
        let rooms = self.rooms_of(owner, way);
        let slot = match rooms.free.pop() {
            Some(slot) => slot,
            None => {
                let wanted = (2 * rooms.capacity).max(FIRST_ROOM);
                let (command, capacity) = match way {
                    Way::Out => {
                        let room = Vec::with_capacity(wanted);
                        let capacity = room.capacity();
                        (Command::OutboundRoom(room), capacity)
                    }
                    Way::In => {
                        let room = Vec::with_capacity(wanted);
                        let capacity = room.capacity();
                        (Command::InboundRoom(room), capacity)
                    }
                };
                plane.tell(owner, command);
                let first = rooms.capacity as u32;
                rooms.capacity = capacity;
                rooms.free.extend((first + 1..capacity as u32).rev());
                first
            }
        };
        self.serial = self.serial.wrapping_add(1).max(1);
        let placed = Placed {
            serial: self.serial,
            session,
            tally: Tally::default(),
        };
        self.placed.insert((owner, way, slot), placed);
        Place {
            owner,
            slot,
            serial: self.serial,
        }
    }

    fn cancel(&mut self, which: impl Fn(&Then) -> bool) -> Vec<Then> {
        let (cancelled, kept) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| which(&pending.then));
        self.pending = kept;
        let cancelled: Vec<Pending> = cancelled;
        cancelled.into_iter().map(|pending| pending.then).collect()
    }
}

fn sent(usage: &mut Usage, tally: Tally) {
    usage.sent_packets += tally.packets;
    usage.sent_bytes += tally.bytes;
    usage.most_packets = usage.most_packets.max(tally.packets);
    usage.most_bytes = usage.most_bytes.max(tally.bytes);
}

fn received(usage: &mut Usage, tally: Tally) {
    usage.received_packets += tally.packets;
    usage.received_bytes += tally.bytes;
}
