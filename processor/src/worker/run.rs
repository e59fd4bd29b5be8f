//! The loop of one worker: receive, carry through the path, transmit; sleep when nothing comes.
//!
//! Owns its ports, free frames and SAs; shares nothing that changes with other workers but the rings of
//! [`super::handoff`]. Work that was begun is finished first: packets from other workers before the uplink's, the
//! uplink's before the guests'. No turn of the loop waits for a ring.

use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rtrb::{Consumer, Producer};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::aead::engine::Engine;
use crate::path::batch::{Batch, Descriptor, NextStep, WorkerId};
use crate::path::classify::Decisions;
use crate::path::context::Context;
use crate::path::deliver::{Exits, Ledger, transmit};
use crate::path::flood::Floods;
use crate::path::mirror::Mirror;
use crate::path::notices::{Notice, Notices, Survey};
use crate::path::outcome::{Direction, DropReason, Outcome};
use crate::path::tables::Tables;
use crate::path::waiting::WaitingRoom;
use crate::path::{inbound, outbound};
use crate::port::frame::Frame;
use crate::port::pool::FramePool;
use crate::port::{BATCH, Burst, Held, KernelDrops, Port};
use crate::sa::inbound::InboundSa;
use crate::sa::outbound::OutboundSa;
use crate::sa::slots::{Owned, Place, Slot};
use crate::telemetry::counters::{Counter, Counters};
use crate::telemetry::latency::Recorder;

use super::handoff::{Handoff, Item, Waker};

/// How long a worker sleeps at most before it looks around.
const NAP: Duration = Duration::from_millis(100);
/// How long it waits while something is still to be transmitted.
const SHORT_NAP: Duration = Duration::from_millis(1);
/// Turns without work before it sleeps: what comes right after a batch is met awake.
const IDLE_TURNS: u32 = 16;
/// How long a stopping worker waits for completions.
const DRAIN: Duration = Duration::from_millis(500);

/// What control tells a worker. A slot of the ring has room for an SA, so that the worker frees nothing.
pub enum Command {
    /// Opens a queue of a guest port.
    AddGuest {
        /// Local number of the port.
        port: u16,
        /// The queue.
        queue: Box<dyn Port>,
    },
    /// Closes every queue of a guest port.
    RemoveGuest {
        /// Local number of the port.
        port: u16,
    },
    /// Tells what the kernel has dropped, by the worker's counters.
    TellDrops,
    /// Carries a frame as if the guest had sent it.
    Say {
        /// Local number of the port.
        port: u16,
        /// The frame.
        frame: Box<[u8]>,
    },
    /// Puts an SA to seal with at its place.
    InstallOutbound(Place, OutboundSa),
    /// Puts an SA to open with at its place.
    InstallInbound(Place, InboundSa),
    /// Seals no more with an SA, and gives it back.
    RetireOutbound(Place),
    /// Opens no more with an SA, and gives it back.
    RetireInbound(Place),
    /// More slots for SAs to seal with.
    OutboundRoom(Vec<Slot<OutboundSa>>),
    /// More slots for SAs to open with.
    InboundRoom(Vec<Slot<InboundSa>>),
    /// Asks what was done under each SA.
    Survey(Box<Survey>),
}

/// How far the stop of all workers has come.
#[derive(Debug)]
pub struct Stop {
    asked: AtomicBool,
    idle: Vec<AtomicBool>,
}

impl Stop {
    /// For so many workers.
    #[must_use]
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self {
            asked: AtomicBool::new(false),
            idle: (0..workers).map(|_| AtomicBool::new(false)).collect(),
        })
    }

    /// Asks every worker to finish what it has and stop.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Release);
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    fn idle(&self, worker: WorkerId, idle: bool) -> bool {
        self.idle[worker.index()].store(idle, Ordering::SeqCst);
        idle && self.idle.iter().all(|one| one.load(Ordering::SeqCst))
    }
}

/// A worker, before, while and after it runs.
pub struct Worker {
    /// Its number.
    pub id: WorkerId,
    /// What it reads.
    pub tables: Arc<ArcSwap<Tables>>,
    /// Its free frames.
    pub pool: FramePool,
    /// The SAs it owns.
    pub sas: Owned,
    /// What it has found out about flows, and what it says of rules.
    pub decisions: Decisions,
    /// Its copies for monitoring interfaces.
    pub mirror: Mirror,
    /// What its guest ports may still send for copying to other hosts.
    pub floods: Floods,
    /// The AEAD engine.
    pub engine: Arc<dyn Engine>,
    /// Its queues.
    pub ports: Ports,
    /// Its ends of the rings between workers.
    pub handoff: Handoff,
    /// What wakes it.
    pub waker: Waker,
    /// Its counters.
    pub counters: Arc<Counters>,
    /// Its latencies.
    pub recorder: Recorder,
    /// What control tells it.
    pub commands: Consumer<Command>,
    /// How many commands it has obeyed.
    pub obeyed: Arc<Counter>,
    /// What it tells control.
    pub notices: Notices,
    /// Its packets that wait for a session.
    pub waiting: WaitingRoom,
    /// What the closed ports' kernel side dropped.
    pub closed_drops: KernelDrops,
    /// How it stops.
    pub stop: Arc<Stop>,
    /// Never sleep.
    pub busy_poll: bool,
}

/// Control's end of the commands to one worker.
pub type Commands = Producer<Command>;

/// The queues of one worker.
#[derive(Default)]
pub struct Ports {
    /// Its queue of the uplink.
    pub uplink: Option<Box<dyn Port>>,
    /// Its queues of guest ports, with the ports' local numbers.
    pub guests: Vec<(u16, Box<dyn Port>)>,
}

impl Ports {
    fn all(&self) -> impl Iterator<Item = &dyn Port> {
        self.uplink
            .iter()
            .map(|port| &**port)
            .chain(self.guests.iter().map(|(_, port)| &**port))
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Box<dyn Port>> {
        self.uplink
            .iter_mut()
            .chain(self.guests.iter_mut().map(|(_, port)| port))
    }

    /// The frames that all of them hold.
    #[must_use]
    pub fn held(&self) -> Held {
        self.all().map(Port::held).fold(Held::default(), |sum, one| Held {
            receive: sum.receive + one.receive,
            transmit: sum.transmit + one.transmit,
        })
    }

    /// What was dropped before any of them received it.
    #[must_use]
    pub fn kernel_drops(&self) -> KernelDrops {
        self.all()
            .map(Port::kernel_drops)
            .fold(KernelDrops::default(), Add::add)
    }
}

struct WorkerExits<'a> {
    ports: &'a mut Ports,
    handoff: &'a mut Handoff,
}

impl Exits for WorkerExits<'_> {
    #[inline]
    fn uplink(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), (Frame, DropReason)> {
        match &mut self.ports.uplink {
            Some(port) => port
                .transmit(frame, pool)
                .map_err(|frame| (frame, DropReason::TxRingFull)),
            None => Err((frame, DropReason::PortGone)),
        }
    }

    #[inline]
    fn uplink_all(&mut self, packets: &mut Burst) -> Result<(), DropReason> {
        submit(self.ports.uplink.as_mut(), packets)
    }

    #[inline]
    fn guest(&mut self, port: u16, frame: Frame, pool: &mut FramePool) -> Result<(), (Frame, DropReason)> {
        match self.ports.guests.iter_mut().find(|(number, _)| *number == port) {
            Some((_, port)) => port
                .transmit(frame, pool)
                .map_err(|frame| (frame, DropReason::TxRingFull)),
            None => Err((frame, DropReason::PortGone)),
        }
    }

    #[inline]
    fn guest_all(&mut self, port: u16, packets: &mut Burst) -> Result<(), DropReason> {
        let mut guests = self.ports.guests.iter_mut();
        let queue = guests.find(|(number, _)| *number == port);
        submit(queue.map(|(_, queue)| queue), packets)
    }

    #[inline]
    fn hand_over(&mut self, to: WorkerId, step: NextStep, packet: Descriptor) -> Result<(), Descriptor> {
        self.handoff.push(to, step, packet)
    }
}

/// Submits packets to a queue, if it is there, until one cannot be.
#[inline]
fn submit(port: Option<&mut Box<dyn Port>>, packets: &mut Burst) -> Result<(), DropReason> {
    port.ok_or(DropReason::PortGone)?.transmit_all(packets);
    if packets.is_empty() {
        Ok(())
    } else {
        Err(DropReason::TxRingFull)
    }
}

/// Who is told when a burst has gone through a stage.
pub trait Watch {
    /// It has.
    fn passed(&mut self, stage: &'static str);
}

/// Nobody.
impl Watch for () {
    #[inline]
    fn passed(&mut self, _: &'static str) {}
}

struct WorkerLedger<'a, W> {
    watch: &'a mut W,
    counters: &'a Counters,
    recorder: &'a mut Recorder,
    /// Read once a batch, when the first packet ends.
    now: Option<u64>,
}

impl<W: Watch> Ledger for WorkerLedger<'_, W> {
    #[inline]
    fn ended(&mut self, direction: Direction, outcome: Outcome, arrival: u64) {
        let now = *self.now.get_or_insert_with(monotonic);
        self.counters.outcome(outcome).add(1);
        self.recorder
            .current
            .record(direction, outcome, now.saturating_sub(arrival));
    }

    #[inline]
    fn all_ended(&mut self, direction: Direction, outcome: Outcome, arrivals: &[u64]) {
        let now = *self.now.get_or_insert_with(monotonic);
        self.counters.outcome(outcome).add(arrivals.len() as u64);
        let ages = arrivals.iter().map(|arrival| now.saturating_sub(*arrival));
        self.recorder.current.record_all(direction, outcome, ages);
    }

    #[inline]
    fn copied(&mut self) {
        self.counters.copied.add(1);
    }

    #[inline]
    fn told_too_long(&mut self) {
        self.counters.told_too_long.add(1);
    }

    #[inline]
    fn passed(&mut self, stage: &'static str) {
        self.watch.passed(stage);
    }
}

/// `CLOCK_MONOTONIC` in ns: the clock of the XDP programs' stamps.
#[inline]
#[must_use]
pub fn monotonic() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
    tv_sec as u64 * 1_000_000_000 + tv_nsec as u64
}

/// Where a burst came from.
#[derive(Copy, Clone)]
enum From {
    Uplink,
    Guest(usize),
}

impl Worker {
    /// Runs until a stop is asked for and everything begun is finished; gives itself back, so that control can count
    /// frames and keep its SAs.
    #[must_use]
    pub fn run(mut self) -> Self {
        let mut idle_turns = 0;
        let mut deadline = None;
        loop {
            let work = self.turn();
            if self.stop.is_asked() {
                self.give_up_waiting();
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + DRAIN);
                let finished = work == 0 && self.ports.held().transmit == 0;
                if self.stop.idle(self.id, finished) || Instant::now() > deadline {
                    self.obey();
                    self.notices.settle();
                    return self;
                }
            } else if work > 0 || self.busy_poll {
                idle_turns = 0;
            } else if idle_turns < IDLE_TURNS {
                idle_turns += 1;
                std::hint::spin_loop();
            } else {
                self.sleep();
                idle_turns = 0;
            }
        }
    }

    /// One look at every ring. Gives the number of packets that were carried.
    pub fn turn(&mut self) -> usize {
        self.turn_watched(&mut ())
    }

    /// The same, and somebody watches: a benchmark that reads the clock after each stage.
    pub fn turn_watched(&mut self, watch: &mut impl Watch) -> usize {
        self.obey();
        for port in self.ports.all_mut() {
            port.reclaim(&mut self.pool);
        }
        let mut work = self.take_over(watch);
        work += self.receive(From::Uplink, watch);
        for number in 0..self.ports.guests.len() {
            work += self.receive(From::Guest(number), watch);
        }
        if !self.waiting.is_empty() {
            self.resume(watch);
        }
        self.recorder.swap_if_asked();
        self.notices.settle();
        let pool = std::cell::RefCell::new(&mut self.pool);
        self.handoff.settle(
            |long| pool.borrow_mut().take_as(long),
            |frame| pool.borrow_mut().put(frame),
        );
        work
    }

    /// Packets whose session is there go on; who waited too long ends.
    fn resume(&mut self, watch: &mut impl Watch) {
        let now = monotonic();
        if self.waiting.is_due(now) {
            self.with_context(watch, |context, exits, ledger| {
                outbound::resume(context, exits, ledger, now)
            });
            self.kick();
        }
    }

    fn give_up_waiting(&mut self) {
        if !self.waiting.is_empty() {
            self.with_context(&mut (), |context, exits, ledger| {
                outbound::give_up(context, exits, ledger)
            });
        }
    }

    /// Does what control has said, after the worker stopped. Says whether there is more: then what it told is to be taken first.
    #[must_use]
    pub fn obeys_more(&mut self) -> bool {
        self.obey();
        !self.commands.is_empty()
    }

    /// Does what control says, as long as there is room to answer.
    fn obey(&mut self) {
        while self.notices.has_room() {
            let Ok(command) = self.commands.pop() else {
                break;
            };
            match command {
                Command::InstallOutbound(place, sa) => {
                    if let Some(sa) = self.sas.outbound.install(place, sa) {
                        self.notices.tell(Notice::Outbound(place, sa));
                    }
                }
                Command::InstallInbound(place, sa) => {
                    if let Some(sa) = self.sas.inbound.install(place, sa) {
                        self.notices.tell(Notice::Inbound(place, sa));
                    }
                }
                Command::RetireOutbound(place) => {
                    if let Some(sa) = self.sas.outbound.retire(place) {
                        self.notices.tell(Notice::Outbound(place, sa));
                    }
                }
                Command::RetireInbound(place) => {
                    if let Some(sa) = self.sas.inbound.retire(place) {
                        self.notices.tell(Notice::Inbound(place, sa));
                    }
                }
                Command::OutboundRoom(room) => {
                    let old = self.sas.outbound.grow(room);
                    self.notices.tell(Notice::OutboundRoom(old));
                }
                Command::InboundRoom(room) => {
                    let old = self.sas.inbound.grow(room);
                    self.notices.tell(Notice::InboundRoom(old));
                }
                Command::Survey(mut survey) => {
                    survey.fill(&self.sas);
                    self.notices.tell(Notice::Survey(survey));
                }
                Command::TellDrops => self.tell_drops(),
                Command::Say { port, frame } => self.say(port, &frame),
                Command::AddGuest { port, queue } => self.ports.guests.push((port, queue)),
                Command::RemoveGuest { port } => {
                    let (closing, kept) = std::mem::take(&mut self.ports.guests)
                        .into_iter()
                        .partition(|(number, _): &(u16, _)| *number == port);
                    self.ports.guests = kept;
                    let closing: Vec<(u16, Box<dyn Port>)> = closing;
                    for (_, queue) in closing {
                        self.closed_drops = self.closed_drops + queue.kernel_drops();
                        queue.close(&mut self.pool);
                    }
                }
            }
            self.obeyed.add(1);
            self.notices.obeyed();
        }
    }

    /// Tells what the kernel has dropped so far.
    pub fn tell_drops(&self) {
        self.counters
            .set_kernel_drops(self.closed_drops + self.ports.kernel_drops());
    }

    /// Carries what control says in a guest's name; nothing if there is no frame for it.
    fn say(&mut self, port: u16, said: &[u8]) {
        let Some(mut frame) = self.pool.take() else {
            return;
        };
        let umem = Arc::clone(self.pool.umem());
        if let Some(room) = umem.room_mut(&mut frame).get_mut(..said.len()) {
            room.copy_from_slice(said);
        }
        umem.set_length(&mut frame, said.len().min(umem.room()));
        umem.set_stamp(&mut frame, monotonic());
        let mut burst = Burst::new();
        burst.push(frame);
        self.counters.copied.add(1);
        self.with_context(&mut (), |context, exits, ledger| {
            outbound::outbound(context, &mut burst, port, exits, ledger, monotonic);
        });
    }

    /// Carries one burst of a port.
    fn receive(&mut self, from: From, watch: &mut impl Watch) -> usize {
        let mut burst = Burst::new();
        let ingress = match from {
            From::Uplink => match &mut self.ports.uplink {
                Some(port) => {
                    port.receive(&mut burst, &mut self.pool);
                    port.refill(&mut self.pool);
                    None
                }
                None => return 0,
            },
            From::Guest(number) => match self.ports.guests.get_mut(number) {
                Some((local, port)) => {
                    port.receive(&mut burst, &mut self.pool);
                    port.refill(&mut self.pool);
                    Some(*local)
                }
                None => return 0,
            },
        };
        let count = burst.len();
        if count > 0 {
            self.counters.received.add(count as u64);
            watch.passed("receive");
            self.with_context(watch, |context, exits, ledger| match ingress {
                None => inbound::inbound(context, &mut burst, exits, ledger),
                Some(port) => outbound::outbound(context, &mut burst, port, exits, ledger, monotonic),
            });
        }
        self.kick();
        count
    }

    /// Carries on with what other workers handed over: a batch of each step at a time.
    fn take_over(&mut self, watch: &mut impl Watch) -> usize {
        let (mut sealing, mut opening, mut leaving) = (Batch::new(), Batch::new(), Batch::new());
        let mut count = 0;
        while count < BATCH {
            match self.handoff.pop() {
                Some(Item::Packet(step, packet)) => {
                    count += 1;
                    match step {
                        NextStep::Seal => sealing.push(packet),
                        NextStep::Open => opening.push(packet),
                        NextStep::Transmit => leaving.push(packet),
                    }
                }
                Some(Item::Free(frame)) => self.pool.put(frame),
                None => break,
            }
        }
        if count > 0 {
            self.counters.taken_over.add(count as u64);
            self.with_context(watch, |context, exits, ledger| {
                transmit(
                    &mut leaving,
                    context.worker,
                    context.tables,
                    context.pool,
                    exits,
                    ledger,
                );
                inbound::open_and_deliver(context, &mut opening, exits, ledger);
                outbound::seal_and_send(context, &mut sealing, exits, ledger);
            });
            self.kick();
        }
        count
    }

    fn with_context<W: Watch>(
        &mut self,
        watch: &mut W,
        run: impl FnOnce(&mut Context<'_>, &mut WorkerExits<'_>, &mut WorkerLedger<'_, W>),
    ) {
        self.counters.batches.add(1);
        let tables = self.tables.load();
        self.decisions.attend(&tables, self.id);
        let mut context = Context {
            worker: self.id,
            tables: &tables,
            pool: &mut self.pool,
            sas: &mut self.sas,
            decisions: &mut self.decisions,
            notices: &mut self.notices,
            waiting: &mut self.waiting,
            floods: &mut self.floods,
            mirror: &mut self.mirror,
            engine: &*self.engine,
        };
        let mut exits = WorkerExits {
            ports: &mut self.ports,
            handoff: &mut self.handoff,
        };
        let mut ledger = WorkerLedger {
            watch,
            counters: &self.counters,
            recorder: &mut self.recorder,
            now: None,
        };
        run(&mut context, &mut exits, &mut ledger);
        let (hits, misses) = self.decisions.cached();
        self.counters.flow_hits.become_count(hits);
        self.counters.flow_misses.become_count(misses);
        self.counters
            .lost_samples
            .become_count(self.decisions.lost_samples());
    }

    fn kick(&mut self) -> bool {
        let mut waiting = false;
        for port in self.ports.all_mut() {
            waiting |= port.kick();
        }
        waiting
    }

    /// Waits for a received frame, a packet from another worker or a command, but not for long.
    fn sleep(&mut self) {
        // What the kernel did not take at once (a device that is down, a full queue) is offered again.
        let waiting = self.kick();
        self.waker.announce_sleep();
        if !self.handoff.is_waiting() && self.commands.is_empty() && !self.stop.is_asked() {
            let mut descriptors = arrayvec::ArrayVec::<PollFd<'_>, 256>::new();
            let woken = self.waker.wait_on();
            descriptors.push(PollFd::from_borrowed_fd(woken, PollFlags::IN));
            for socket in self
                .ports
                .all()
                .filter_map(Port::wait_on)
                .take(descriptors.remaining_capacity())
            {
                descriptors.push(PollFd::from_borrowed_fd(socket, PollFlags::IN));
            }
            let nap = if waiting || !self.waiting.is_empty() || self.ports.held().transmit > 0 {
                SHORT_NAP
            } else {
                NAP
            };
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: nap.subsec_nanos().into(),
            };
            // An interrupted wait is as good as one that ended.
            let _ = poll(&mut descriptors, Some(&timeout));
        }
        self.waker.awake();
    }
}
