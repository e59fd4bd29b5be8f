//! Puts the data plane together: UMEM, sockets, XDP programs, tables, workers; and takes it apart again.
//!
//! The guest ports' programs are attached first, and drop until a socket is there. A socket stands in its XSKMAP only
//! when its fill ring has frames. The uplink's first socket is also the one that registered the UMEM, which lives as long
//! as the data plane: when the uplink goes, the whole plane is taken apart and put together anew.

mod head;
mod places;

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU16;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use guestseal_rules::compile::Ruleset;
use guestseal_rules::model::{GuestPort, HostIndex, NetworkKind, PortIndex};
use guestseal_xdp::{
    Attached, Attachment, Counters as XdpCounters, PinDirectory, Program, UplinkConfig, UplinkProgram,
    XdpError,
};
use rtrb::Consumer;

use crate::aead::engine::Engine;
use crate::path::batch::WorkerId;
use crate::path::classify::Decisions;
use crate::path::endpoints::Endpoints;
use crate::path::flood::Floods;
use crate::path::mirror::mirror;
use crate::path::notices::{Notice, notices};
use crate::path::tables::{AlsoAccepted, NextHops, Parts, PathMtu, Tables};
use crate::path::waiting::WaitingRoom;
use crate::port::Port;
use crate::port::frame::Frame;
use crate::port::memory_node::MemoryNode;
use crate::port::pool::FramePool;
use crate::port::umem::{HEADROOM, Shape, Umem, UmemError};
use crate::port::xsk::{XskConfig, XskError, XskPort, ZeroCopy};
use crate::sa::slots::Owned;
use crate::sa::table::SaTable;
use crate::telemetry::counters::{Counter, Counters};
use crate::telemetry::latency::{Collector, Counts, Recorder, exchange};
use crate::telemetry::rules::RuleCounters;
use crate::telemetry::samples::{Sample, samples};
use crate::telemetry::totals::Frames;
use crate::wire::ethernet::{self, MacAddress};
use crate::worker::handoff::{Handoff, Item, Waker};
use crate::worker::run::{Command, Commands, Ports, Stop, Worker};

use super::announce;
use super::config::HostConfig;
use super::link::{self, Link, LinkError};
use super::mirrors::Mirrors;
use super::offloads::OffloadError;
use places::{OpenPort, Places};

/// Why there is no data plane.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An interface.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The UMEM.
    #[error(transparent)]
    Umem(#[from] UmemError),
    /// A socket.
    #[error(transparent)]
    Xsk(#[from] XskError),
    /// An XDP program.
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// What a guest leaves to its card.
    #[error(transparent)]
    Offload(#[from] OffloadError),
    /// A queue that the uplink has not.
    #[error(
        "{interface} has {has} receive queues: queue {queue} is not among them (see ethtool -l {interface})"
    )]
    Queue {
        /// Interface.
        interface: String,
        /// Queue asked for.
        queue: u32,
        /// Queues there are.
        has: u32,
    },
    /// A CPU that is not there.
    #[error("CPU {cpu} is not one that this process may run on: expected one of {may}")]
    Cpu {
        /// CPU asked for.
        cpu: usize,
        /// CPUs there are.
        may: String,
    },
    /// A thread or descriptor.
    #[error("the system has no room for a worker")]
    System(#[from] std::io::Error),
}

/// What a data plane is made of.
pub struct Blueprint {
    /// The host's configuration.
    pub config: Arc<HostConfig>,
    /// The AEAD engine.
    pub engine: Arc<dyn Engine>,
    /// Where SAs are.
    pub sas: Arc<SaTable>,
    /// The rules.
    pub rules: Ruleset,
    /// Where guest ports are.
    pub endpoints: Arc<Endpoints>,
    /// For each host the MACs that lead to it.
    pub next_hops: Vec<NextHops>,
    /// How long packets to hosts may be, as far as that was probed.
    pub path_mtus: HashMap<HostIndex, PathMtu>,
    /// The counters of each worker.
    pub counters: Vec<Arc<Counters>>,
    /// The second forms that rules accept now.
    pub also_accepted: Arc<AlsoAccepted>,
    /// The rules' counters of each worker.
    pub rule_counters: Arc<[Arc<RuleCounters>]>,
    /// What wakes the control loop.
    pub control: Waker,
}

/// A running data plane.
pub struct DataPlane {
    /// What workers read.
    pub tables: Arc<ArcSwap<Tables>>,
    /// The uplink.
    pub uplink: Link,
    /// Whether the kernel says that the sockets are in zero-copy mode.
    pub zero_copy: bool,
    umem: Arc<Umem>,
    /// The node that memory was asked of.
    node: Option<MemoryNode>,
    program: Attached<UplinkProgram>,
    pins: PinDirectory,
    /// What the programs of closed ports decided.
    closed_xdp: Vec<(String, XdpCounters)>,
    places: Places,
    /// What the uplink's program takes.
    taken: UplinkConfig,
    /// Tables that were replaced, until no worker reads them any more: they are freed here, never on the packet path.
    retired: Vec<Arc<Tables>>,
    threads: Vec<JoinHandle<Worker>>,
    commands: Vec<Commands>,
    /// Commands that each worker was given, and those that it has obeyed.
    commanded: Vec<u64>,
    obeyed: Vec<Arc<Counter>>,
    notices: Vec<Consumer<Notice>>,
    /// What was taken from a ring before it was asked for.
    heard: VecDeque<(WorkerId, Notice)>,
    wakers: Vec<Waker>,
    collectors: Vec<Collector>,
    logged: Vec<Consumer<Sample>>,
    /// After the workers: it takes their last copies.
    mirrors: Mirrors,
    stop: Arc<Stop>,
    /// The uplink's queues that have sockets.
    queues: Vec<u32>,
    /// MACs of guests that were added to the uplink's filter.
    filtered: Vec<MacAddress>,
    next_holder: u16,
    fill_level: u32,
    ring_size: u32,
}

/// What is left of a data plane.
pub struct Remains {
    /// What the workers told last.
    pub notices: Vec<(WorkerId, Notice)>,
    /// The workers' SAs, in the order of the workers.
    pub owned: Vec<Owned>,
    /// The workers' latencies that were not collected.
    pub recorders: Vec<Recorder>,
    /// Those that were on their way.
    pub exchanged: Vec<Box<Counts>>,
    /// Where the frames were.
    pub frames: Frames,
    /// What the XDP programs decided, by interface.
    pub xdp: Vec<(String, XdpCounters)>,
}

/// Bytes of an Ethernet header with one VLAN tag.
const LONGEST_ETHERNET: usize = 18;

/// Long frames for each worker, where they are wanted: some batches on their way in, sealed or opened, and out. 8 MiB.
const LONG_FRAMES: u32 = 512;

/// How long a plane that starts waits for queues that are another socket's. The kernel lets go of a queue some time after the process
/// that had it has ended, on a busy machine seconds later: who starts again at once must not fail for it, nor take another mode.
const RELEASE: Duration = Duration::from_secs(5);

/// How often it asks.
const RELEASE_LOOK: Duration = Duration::from_millis(20);

/// How a plane is put together.
#[derive(Copy, Clone)]
struct Manner {
    zero_copy: bool,
    /// Packets may come and go in pieces.
    pieces: bool,
    /// Until when it waits for queues.
    patient_until: Instant,
    /// The node that memory was asked of.
    node: Option<MemoryNode>,
}

struct Opener<'a> {
    umem: &'a Arc<Umem>,
    frame_size: u32,
    zero_copy: bool,
    ring_size: u32,
    fill_level: u32,
    next_holder: &'a mut u16,
    /// Until when it waits for queues.
    patient_until: Instant,
}

impl Opener<'_> {
    fn open(
        &mut self,
        link: &Link,
        queue: u32,
        head: u8,
        first: bool,
    ) -> Result<(RawFd, bool, XskPort), XskError> {
        let (room, longest) = (link.zero_copy_room(self.frame_size), link.mtu + LONGEST_ETHERNET);
        if self.zero_copy && longest > room {
            return Err(XskError::FrameTooSmall {
                interface: link.name.clone(),
                driver: link.driver.clone().unwrap_or_else(|| "unknown".to_owned()),
                room,
                frame_size: self.frame_size,
                longest,
            });
        }
        let holder = *self.next_holder;
        *self.next_holder += 1;
        let config = XskConfig {
            interface: link.name.clone(),
            queue,
            ring_size: self.ring_size,
            fill_level: self.fill_level,
            zero_copy: self.zero_copy,
            head,
            holder,
            first,
        };
        let mut waits = false;
        let port = loop {
            match XskPort::open(self.umem, &config) {
                Err(error) if error.is_busy() && Instant::now() < self.patient_until => {
                    if !waits {
                        tracing::info!("waiting for a queue: {}", super::supervise::chain(&error));
                    }
                    waits = true;
                    std::thread::sleep(RELEASE_LOOK);
                }
                opened => break opened?,
            }
        };
        Ok((port.raw_fd(), port.zero_copy(), port))
    }
}

impl DataPlane {
    /// Puts a data plane together and starts its workers.
    ///
    /// # Errors
    /// See [`StartError`]; what was attached stays closed, or goes with the error.
    pub fn start(plan: &Blueprint, owned: Vec<Owned>) -> Result<Self, (StartError, Vec<Owned>)> {
        let config = &*plan.config;
        let mut owned = Some(owned);
        // Without an uplink the start fails, and says so.
        let sound = link::describe(&config.uplink).map_or(true, |uplink| uplink.zero_copy_is_sound());
        let wanted = match config.zero_copy {
            ZeroCopy::Off => false,
            ZeroCopy::Auto => sound,
            ZeroCopy::Require => true,
        };
        if !sound && config.zero_copy != ZeroCopy::Off {
            tracing::warn!(
                "the zero-copy mode of the driver of {} was seen to mix up frames when XDP is attached under load, and may send \
                 guests' plaintext: {}, see docs/drivers.md",
                config.uplink,
                if wanted {
                    "it is used because it is required"
                } else {
                    "it is not chosen"
                }
            );
        }
        let mut manner = Manner {
            zero_copy: wanted,
            pieces: true,
            patient_until: Instant::now() + RELEASE,
            node: prefer_memory(config),
        };
        let mut started = Self::try_start(plan, &mut owned, manner);
        if let (Err(StartError::Xsk(error)), ZeroCopy::Auto) = (&started, config.zero_copy) {
            tracing::info!("no zero-copy: {}", super::supervise::chain(error));
            manner.zero_copy = false;
            started = Self::try_start(plan, &mut owned, manner);
        }
        if let Err(StartError::Xsk(error)) = &started
            && error.may_know_no_pieces()
        {
            tracing::info!(
                "packets that a frame has no room for are dropped (FrameTooLong): {}",
                super::supervise::chain(error)
            );
            manner.pieces = false;
            started = Self::try_start(plan, &mut owned, manner);
        }
        started.map_err(|error| (error, owned.unwrap_or_default()))
    }

    fn try_start(
        plan: &Blueprint,
        owned: &mut Option<Vec<Owned>>,
        Manner {
            zero_copy,
            pieces,
            patient_until,
            node,
        }: Manner,
    ) -> Result<Self, StartError> {
        let config = &*plan.config;
        let uplink = link::describe(&config.uplink)?;
        check_workers(config, &uplink)?;
        let count = config.workers.len();
        let pins = open_pins(config)?;
        let mut places = Places::attach(config, &pins)?;
        let queues: u32 = places
            .all
            .iter()
            .filter_map(|place| place.open.as_ref())
            .map(|open| open.link.queues)
            .sum();
        let sockets = queues + count as u32;
        let ring_size = config.umem.ring_size;
        let fill_level = (config.umem.frames / (2 * sockets)).clamp(1, ring_size);
        let ports = places.all.iter().filter_map(|place| place.open.as_ref());
        let links = ports.map(|open| &open.link).chain([&uplink]);
        let longest = links.map(|link| link.mtu + LONGEST_ETHERNET).max().unwrap_or(0);
        let room = config.umem.frame_size as usize - HEADROOM;
        let long_frames = match config.long_frames {
            _ if zero_copy || !pieces => 0,
            Some(wanted) => wanted,
            None if longest > room => LONG_FRAMES * count as u32,
            None => 0,
        };
        let (umem, frames) = Umem::kernel(Shape {
            ring_size,
            long_frames,
            ..config.umem
        })?;
        let mut pools = deal(&umem, frames, count);
        let mut next_holder = 1;
        let mut opener = Opener {
            umem: &umem,
            frame_size: config.umem.frame_size,
            zero_copy,
            ring_size,
            fill_level,
            next_holder: &mut next_holder,
            patient_until,
        };

        let mut in_force = false;
        let mut worker_ports: Vec<Ports> = (0..count).map(|_| Ports::default()).collect();
        let mut uplink_sockets = Vec::new();
        for (number, worker) in config.workers.iter().enumerate() {
            let (socket, zero_copy, mut port) = opener.open(&uplink, worker.queue, 0, number == 0)?;
            in_force = zero_copy;
            port.refill(&mut pools[number]);
            worker_ports[number].uplink = Some(Box::new(port));
            uplink_sockets.push((worker.queue, socket));
        }
        for (local, place) in (0u16..).zip(&mut places.all) {
            let Some(open) = &mut place.open else { continue };
            open.owners.clear();
            for queue in 0..open.link.queues {
                let owner = WorkerId(((u32::from(local) + queue) % count as u32) as u16);
                let (socket, _, mut socket_port) = opener.open(&open.link, queue, open.head, false)?;
                open.lookout.watch(socket_port.too_long());
                socket_port.refill(&mut pools[owner.index()]);
                worker_ports[owner.index()]
                    .guests
                    .push((local, Box::new(socket_port)));
                open.program.register_socket(queue, &socket)?;
                open.owners.push(owner);
            }
        }

        // Without a pin: what comes for guests while no process lives is sealed or theirs, and the kernel has no use for it.
        let taken = uplink_config(config);
        let program = UplinkProgram::load(&taken)?.attach(Attachment {
            ifindex: uplink.index,
            mode: config.xdp_mode,
            pins: None,
        })?;
        if let Some(reason) = program.fallback() {
            tracing::warn!(
                "XDP on {} is generic, which is slower: native was refused: {reason}",
                uplink.name
            );
        }
        for (queue, socket) in uplink_sockets {
            program.register_socket(queue, &socket)?;
        }
        let filtered = open_filter(&uplink, &taken.guest_macs);

        let tables = Arc::new(ArcSwap::from_pointee(make_tables(plan, &uplink, &umem, &places)));
        let wakers = (0..count).map(|_| Waker::new()).collect::<Result<Vec<_>, _>>()?;
        let stop = Stop::new(count);
        let (mut threads, mut commands, mut collectors) = (Vec::new(), Vec::new(), Vec::new());
        let mut logged = Vec::new();
        let (mut told, mut obeyed) = (Vec::new(), Vec::new());
        let pairs = plan.counters.iter().map(|counters| mirror(Arc::clone(counters)));
        let (mirrors_of_workers, mirrored): (Vec<_>, Vec<_>) = pairs.unzip();
        let mirrors = Mirrors::start(mirrored, umem.takes_pieces())?;
        let mut mirrors_of_workers = mirrors_of_workers.into_iter();
        let mut handoffs = Handoff::mesh(&wakers).into_iter();
        let mut all_owned = owned.take().unwrap_or_default().into_iter();
        for (number, (pool, ports)) in pools.into_iter().zip(worker_ports).enumerate() {
            let (recorder, collector) = exchange();
            let (sampler, sampled) = samples();
            logged.push(sampled);
            let (sender, receiver) = rtrb::RingBuffer::new(256);
            let (teller, listener) = notices(plan.control.clone());
            told.push(listener);
            let obeys: Arc<Counter> = Arc::default();
            obeyed.push(Arc::clone(&obeys));
            let mut mirror = mirrors_of_workers
                .next()
                .unwrap_or_else(|| unreachable!("one for each worker"));
            if let Some(thread) = mirrors.thread() {
                mirror.wakes(thread.clone());
            }
            let worker = Worker {
                id: WorkerId(number as u16),
                tables: Arc::clone(&tables),
                waiting: WaitingRoom::new(pool.available()),
                pool,
                sas: all_owned.next().unwrap_or_default(),
                decisions: Decisions::new(Arc::clone(&plan.rule_counters[number]), sampler),
                mirror,
                floods: Floods::new(config.group_rate),
                engine: Arc::clone(&plan.engine),
                ports,
                handoff: handoffs
                    .next()
                    .unwrap_or_else(|| unreachable!("one for each worker")),
                waker: wakers[number].clone(),
                counters: Arc::clone(&plan.counters[number]),
                recorder,
                commands: receiver,
                obeyed: obeys,
                notices: teller,
                closed_drops: plan.counters[number].kernel_drops(),
                stop: Arc::clone(&stop),
                busy_poll: config.busy_poll,
            };
            let cpu = config.workers[number].cpu;
            threads.push(std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
                    tracing::error!("worker {number} cannot be pinned to CPU {cpu}, and runs where the kernel puts it");
                }
                worker.run()
            })?);
            commands.push(sender);
            collectors.push(collector);
        }
        Ok(Self {
            tables,
            uplink,
            zero_copy: in_force,
            umem,
            node,
            program,
            pins,
            closed_xdp: Vec::new(),
            places,
            taken,
            retired: Vec::new(),
            threads,
            commands,
            commanded: vec![0; count],
            obeyed,
            notices: told,
            heard: VecDeque::new(),
            wakers,
            collectors,
            logged,
            mirrors,
            stop,
            queues: config.workers.iter().map(|worker| worker.queue).collect(),
            filtered,
            next_holder,
            fill_level,
            ring_size,
        })
    }

    /// One line for each port: what is really in force.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let sockets = if self.zero_copy { "zero-copy" } else { "copy" };
        let huge = if self.umem.huge_pages() {
            "huge pages"
        } else {
            "4 KiB pages"
        };
        let long = match self.umem.long_frames() {
            0 => String::new(),
            long => format!(" ({long} long)"),
        };
        let node = self
            .node
            .map_or_else(String::new, |node| format!(", memory of node {node}"));
        let mut lines = vec![format!(
            "uplink {}: XDP {}, sockets {sockets}, {} frames{long} on {huge}{node}",
            self.uplink.name,
            mode_of(&self.program),
            self.umem.frames()
        )];
        let numbers = (0..self.places.all.len()).filter(|number| self.places.has_interface(*number));
        lines.extend(numbers.map(|number| match &self.places.all[number].open {
            Some(open) => format!(
                "guest port {}: XDP {}, sockets {sockets}{}",
                open.link.name,
                mode_of(&open.program),
                match open.head {
                    0 => String::new(),
                    head => format!(", sealed in place: {head} bytes in front"),
                }
            ),
            None => format!(
                "guest port {}: no such interface yet",
                self.places.interface(number)
            ),
        }));
        lines
    }

    /// The guest ports that it serves, and whether each is open.
    pub fn ports(&self) -> impl Iterator<Item = (PortIndex, bool)> + '_ {
        let places = self.places.all.iter();
        places.filter_map(|place| Some((place.port?, self.places.open(place).is_some())))
    }

    /// Whether the uplink is still the interface that the plane was made for.
    #[must_use]
    pub fn has_uplink(&self) -> bool {
        link::index_of(&self.uplink.name) == Some(self.uplink.index)
    }

    /// Bytes of the longest IP packet that can leave by the uplink and be received there.
    #[must_use]
    pub fn longest_packet(&self) -> usize {
        longest_packet(&self.uplink, &self.umem)
    }

    /// Looks at the uplink again, if it is the one that the plane was made for; whether its MAC or MTU is another.
    pub fn follow_uplink(&mut self) -> bool {
        let now = link::describe(&self.uplink.name).ok();
        let Some(now) = now.filter(|now| now.index == self.uplink.index) else {
            return false;
        };
        let changed = (now.mac, now.mtu) != (self.uplink.mac, self.uplink.mtu);
        self.uplink = now;
        changed
    }

    /// Closes guest ports whose interface is gone and opens those whose interface has come. Gives what happened.
    pub fn follow_guest_ports(&mut self, plan: &Blueprint) -> Vec<String> {
        let mut news = Vec::new();
        for number in 0..self.places.all.len() {
            self.settle_closing(number);
            if !self.places.has_interface(number) {
                continue;
            }
            let interface = self.places.interface(number).to_owned();
            let now = self.places.index_of(number);
            let before = self.places.all[number].open.as_ref().map(|open| open.link.index);
            if now == before {
                continue;
            }
            if before.is_some() {
                news.push(format!("guest port {interface} is gone"));
                if let Some(open) = self.close_guest(number) {
                    self.closed_xdp
                        .extend(counters_of(&open.link.name, open.program.counters()));
                    detach_or_say(open.program);
                }
            }
            if now.is_some() && !self.places.is_closing(&interface) {
                let opened = self.open_guest(number, &plan.config);
                let trouble = &mut self.places.all[number].trouble;
                match opened {
                    Ok(()) => {
                        trouble.clear();
                        news.push(format!("guest port {interface} is open"));
                    }
                    Err(error) => {
                        let why = super::supervise::chain(&error);
                        if *trouble != why {
                            news.push(format!("guest port {interface} stays closed: {why}"));
                            *trouble = why;
                        }
                    }
                }
            }
        }
        if !news.is_empty() {
            self.publish(plan);
        }
        news
    }

    /// What is to be said of open guest ports, once each.
    pub fn look_out(&mut self) -> impl Iterator<Item = String> + '_ {
        self.places.look_out()
    }

    /// Replaces what workers read, and announces the guests that have come by that.
    pub fn publish(&mut self, plan: &Blueprint) {
        let tables = Arc::new(make_tables(plan, &self.uplink, &self.umem, &self.places));
        let before = self.replace(Arc::clone(&tables));
        for (port, frame) in announce::arrivals(&plan.config.policy, &before, &tables) {
            if let Some(owner) = tables.owners(port).first() {
                self.command(*owner, Command::Say { port, frame });
            }
        }
    }

    /// Lets the uplink's program take what either the policy in force or another one wants.
    ///
    /// # Errors
    /// If the program cannot: then it takes what it took.
    pub fn take_either(&mut self, config: &HostConfig) -> Result<(), XdpError> {
        let either = either(&self.taken, &uplink_config(config));
        self.program.configure(&either).or_else(|error| {
            self.program.configure(&self.taken)?;
            Err(error)
        })
    }

    /// Serves another policy, from the workers' next batch on: ports that stay keep their sockets. After [`Self::take_either`].
    pub fn adopt(&mut self, plan: &Blueprint) {
        let wanted = uplink_config(&plan.config);
        let is_new = |mac: &[u8; 6]| !self.taken.guest_macs.contains(mac);
        let new: Vec<[u8; 6]> = wanted.guest_macs.iter().copied().filter(is_new).collect();
        self.filtered.extend(open_filter(&self.uplink, &new));
        self.places.adopt(&plan.config, Instant::now());
        self.publish(plan);
        if let Err(error) = self.program.configure(&wanted) {
            // It takes more than it need: what is nobody's is dropped.
            tracing::error!("{}", super::supervise::chain(&error));
        }
        let stays = |mac: &MacAddress| wanted.guest_macs.contains(&mac.0);
        for mac in self.filtered.extract_if(.., |mac| !stays(mac)) {
            // The uplink may be what is gone.
            let _ = link::remove_from_filter(self.uplink.index, mac);
        }
        self.taken = wanted;
        for number in 0..self.places.all.len() {
            if !self.places.has_interface(number)
                && let Some(open) = self.close_guest(number)
            {
                self.places.keep_shut(open);
            }
        }
        for news in self.follow_guest_ports(plan) {
            tracing::info!("{news}");
        }
    }

    /// Replaces the rules that workers read, and nothing else.
    pub fn publish_rules(&mut self, rules: &Ruleset) {
        let tables = self.tables.load().with_rules(rules.clone());
        self.replace(Arc::new(tables));
    }

    /// Gives the tables that were there before.
    fn replace(&mut self, tables: Arc<Tables>) -> Arc<Tables> {
        let before = self.tables.swap(tables);
        self.retired.push(Arc::clone(&before));
        before
    }

    /// Frees tables that no worker reads any more.
    pub fn free_retired(&mut self) {
        // Nobody can get one anew: whoever else had it is done with it.
        self.retired.retain(|tables| Arc::strong_count(tables) > 1);
    }

    /// Takes a guest port from its workers; gives its interface and program.
    fn close_guest(&mut self, number: usize) -> Option<OpenPort> {
        let open = self.places.all[number].open.take()?;
        for owner in &open.owners {
            self.command(*owner, Command::RemoveGuest { port: number as u16 });
            let told = (*owner, self.commanded(*owner));
            self.places.all[number].closing.push(told);
        }
        Some(open)
    }

    /// Forgets workers that have closed the sockets of a place.
    fn settle_closing(&mut self, number: usize) {
        let mut closing = std::mem::take(&mut self.places.all[number].closing);
        closing.retain(|(worker, commands)| !self.has_obeyed(*worker, *commands));
        self.places.all[number].closing = closing;
    }

    fn open_guest(&mut self, number: usize, config: &HostConfig) -> Result<(), StartError> {
        let interface = self.places.interface(number).to_owned();
        let mut open = self.places.attach_to(&interface, config, &self.pins)?;
        let mut opener = Opener {
            umem: &self.umem,
            frame_size: config.umem.frame_size,
            zero_copy: self.zero_copy,
            ring_size: self.ring_size,
            fill_level: self.fill_level,
            next_holder: &mut self.next_holder,
            // It is tried again by who looks after ports.
            patient_until: Instant::now(),
        };
        let mut opened = Vec::new();
        for queue in 0..open.link.queues {
            let owner = WorkerId(((number as u32 + queue) % self.wakers.len() as u32) as u16);
            let (socket, _, port) = opener.open(&open.link, queue, open.head, false)?;
            open.lookout.watch(port.too_long());
            open.program.register_socket(queue, &socket)?;
            open.owners.push(owner);
            opened.push((owner, port));
        }
        for (owner, port) in opened {
            self.command(
                owner,
                Command::AddGuest {
                    port: number as u16,
                    queue: Box::new(port),
                },
            );
        }
        self.places.all[number].open = Some(open);
        Ok(())
    }

    fn command(&mut self, worker: WorkerId, command: Command) {
        let mut command = Some(command);
        // The ring is long and the worker looks at it every turn: it is full only for a moment.
        while let Some(waiting) = command.take() {
            match self.commands[worker.index()].push(waiting) {
                Ok(()) => {}
                Err(rtrb::PushError::Full(back)) => {
                    command = Some(back);
                    // A worker that has no room to answer obeys no more.
                    let told = &mut self.notices[worker.index()];
                    self.heard
                        .extend(std::iter::from_fn(|| Some((worker, told.pop().ok()?))));
                    std::thread::yield_now();
                }
            }
        }
        self.commanded[worker.index()] += 1;
        self.wakers[worker.index()].wake();
    }

    /// How many commands a worker was given. See [`Self::has_obeyed`].
    #[must_use]
    pub fn commanded(&self, worker: WorkerId) -> u64 {
        self.commanded[worker.index()]
    }

    /// Whether a worker has obeyed so many commands.
    #[must_use]
    pub fn has_obeyed(&self, worker: WorkerId, commands: u64) -> bool {
        self.obeyed[worker.index()].get() >= commands
    }

    /// Tells a worker something. What it says is to be taken by [`Self::notices`] now and then, or it does nothing more.
    pub fn tell(&mut self, worker: WorkerId, command: Command) {
        self.command(worker, command);
    }

    /// What workers have said since the last look, and which.
    pub fn notices(&mut self) -> impl Iterator<Item = (WorkerId, Notice)> + '_ {
        let rings = (0u16..).map(WorkerId).zip(&mut self.notices);
        let rings =
            rings.flat_map(|(worker, ring)| std::iter::from_fn(move || Some((worker, ring.pop().ok()?))));
        self.heard.drain(..).chain(rings)
    }

    /// Whether a worker has said something.
    #[must_use]
    pub fn has_notices(&self) -> bool {
        !self.heard.is_empty() || self.notices.iter().any(|ring| !ring.is_empty())
    }

    /// Replaces the second forms that rules accept, and nothing else.
    pub fn publish_also_accepted(&mut self, accepted: &Arc<AlsoAccepted>) {
        let tables = self.tables.load().with_also_accepted(Arc::clone(accepted));
        self.replace(Arc::new(tables));
    }

    /// Replaces where security associations are, and nothing else.
    pub fn publish_sas(&mut self, sas: &Arc<SaTable>) {
        let tables = self.tables.load().with_sas(Arc::clone(sas));
        self.replace(Arc::new(tables));
    }

    /// Replaces how long packets to hosts may be, and nothing else.
    pub fn publish_path_mtus(&mut self, known: &HashMap<HostIndex, PathMtu>) {
        let tables = self.tables.load().with_path_mtus(known);
        self.replace(Arc::new(tables));
    }

    /// Lets the workers tell what the kernel has dropped.
    pub fn ask_for_drops(&mut self) {
        for worker in (0..self.commands.len() as u16).map(WorkerId) {
            self.command(worker, Command::TellDrops);
        }
    }

    /// The packets of rules that are logged, since the last look.
    pub fn logged(&mut self) -> impl Iterator<Item = Sample> + '_ {
        self.logged
            .iter_mut()
            .flat_map(|ring| std::iter::from_fn(|| ring.pop().ok()))
    }

    /// The exchanges of latencies, one a worker.
    pub fn collectors(&mut self) -> &mut [Collector] {
        &mut self.collectors
    }

    /// Wakes every worker.
    pub fn wake(&self) {
        self.wakers.iter().for_each(Waker::wake);
    }

    /// Stops: nothing more is taken in, what was begun is finished, the programs are detached where `detach` says so
    /// (else the guest ports stay closed), every frame is counted.
    #[must_use]
    pub fn stop(mut self, detach: bool) -> Remains {
        self.queues
            .iter()
            .for_each(|queue| self.program.unregister_socket(*queue));
        self.places.unregister_sockets();
        self.stop.ask();
        self.wakers.iter().for_each(Waker::wake);
        let mut workers: Vec<Worker> = Vec::new();
        for thread in self.threads {
            match thread.join() {
                Ok(worker) => workers.push(worker),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        drop(self.mirrors);
        let mut remains = Remains {
            notices: self.heard.into(),
            owned: Vec::new(),
            recorders: Vec::new(),
            exchanged: self
                .collectors
                .iter_mut()
                .filter_map(Collector::collect)
                .collect(),
            frames: Frames {
                total: self.umem.frames(),
                ..Frames::default()
            },
            xdp: self.closed_xdp,
        };
        for (mut worker, mut told) in workers.into_iter().zip(self.notices) {
            let id = worker.id;
            let mut hear = || {
                remains
                    .notices
                    .extend(std::iter::from_fn(|| Some((id, told.pop().ok()?))))
            };
            while worker.obeys_more() {
                hear();
            }
            hear();
            let held = worker.ports.held();
            remains.frames.free += worker.pool.available() + worker.pool.available_long();
            remains.frames.receive += held.receive;
            remains.frames.transmit += held.transmit;
            remains.frames.handoff += worker
                .handoff
                .drain()
                .filter(|item| matches!(item, Item::Packet(..) | Item::Free(_)))
                .count();
            worker.tell_drops();
            remains.owned.push(worker.sas);
            remains.recorders.push(worker.recorder);
        }
        remains
            .xdp
            .extend(counters_of(&self.uplink.name, self.program.counters()));
        detach_or_say(self.program);
        for mac in &self.filtered {
            // The uplink may be what is gone.
            let _ = link::remove_from_filter(self.uplink.index, *mac);
        }
        remains.xdp.extend(self.places.end(detach));
        remains
    }
}

/// On a flat network the wire carries the guests' own MACs. Gives those that the uplink now takes.
fn open_filter(uplink: &Link, guests: &[[u8; 6]]) -> Vec<MacAddress> {
    let mut filtered = Vec::new();
    for mac in guests.iter().copied().map(MacAddress) {
        match link::add_to_filter(uplink.index, mac) {
            Ok(()) => filtered.push(mac),
            Err(error) => tracing::warn!(
                "{} cannot be made to take frames to the guest's MAC {mac} ({error}): if it drops them, run \
                 ip link set {} promisc on",
                uplink.name,
                uplink.name
            ),
        }
    }
    filtered
}

fn open_pins(config: &HostConfig) -> Result<PinDirectory, XdpError> {
    let pins = PinDirectory::open(&config.pin_directory)?;
    if let Some(caveat) = pins.caveat() {
        tracing::warn!("{caveat}");
    }
    Ok(pins)
}

fn mode_of<P: Program>(program: &Attached<P>) -> String {
    program
        .mode()
        .map_or_else(|error| super::supervise::chain(&error), |mode| mode.to_string())
}

/// What a program counted, with its interface; an error is said.
fn counters_of(interface: &str, counters: Result<XdpCounters, XdpError>) -> Option<(String, XdpCounters)> {
    match counters {
        Ok(counters) => Some((interface.to_owned(), counters)),
        Err(error) => {
            tracing::error!("{}", super::supervise::chain(&error));
            None
        }
    }
}

fn detach_or_say<P: Program>(program: Attached<P>) {
    if let Err(error) = program.detach() {
        tracing::error!("{}", super::supervise::chain(&error));
    }
}

fn check_workers(config: &HostConfig, uplink: &Link) -> Result<(), StartError> {
    let cpus = core_affinity::get_core_ids().unwrap_or_default();
    for worker in &config.workers {
        if worker.queue >= uplink.queues {
            let interface = uplink.name.clone();
            return Err(StartError::Queue {
                interface,
                queue: worker.queue,
                has: uplink.queues,
            });
        }
        if !cpus.iter().any(|cpu| cpu.id == worker.cpu) {
            let may: Vec<String> = cpus.iter().map(|cpu| cpu.id.to_string()).collect();
            return Err(StartError::Cpu {
                cpu: worker.cpu,
                may: may.join(", "),
            });
        }
    }
    Ok(())
}

/// Asks for memory of the node that the uplink's card is on, or if it is on none the first worker, and says which workers are elsewhere.
/// The workers, which are started later, get theirs there, too.
fn prefer_memory(config: &HostConfig) -> Option<MemoryNode> {
    let card = MemoryNode::of_interface(&config.uplink);
    let first = config.workers.first();
    let node = card.or_else(|| MemoryNode::of_cpu(first?.cpu))?;
    for worker in &config.workers {
        if let Some(far) = MemoryNode::of_cpu(worker.cpu).filter(|far| *far != node) {
            tracing::warn!(
                "the worker of queue {} on CPU {} is on memory node {far}, and its frames on node {node}{}: every packet crosses between them; CPUs \
                 of node {node} stand in /sys/devices/system/node/node{node}/cpulist",
                worker.queue,
                worker.cpu,
                if card.is_some() {
                    ", where the uplink's card is"
                } else {
                    ""
                }
            );
        }
    }
    match node.prefer() {
        Ok(()) => Some(node),
        Err(error) => {
            tracing::info!(
                "memory of node {node} cannot be asked for, so that it is where the kernel puts it: {error}"
            );
            None
        }
    }
}

fn uplink_config(config: &HostConfig) -> UplinkConfig {
    let policy = &config.policy;
    // On a flat network the wire carries the guests' own MACs.
    let is_local_and_flat =
        |port: &GuestPort| config.host_of(port.guest) == config.host && policy.is_flat(port.network);
    let has = |wanted: fn(NetworkKind) -> bool| policy.networks.iter().any(|one| wanted(one.kind));
    UplinkConfig {
        host_addresses: config.policy.hosts[config.host.index()].addresses.clone(),
        guest_macs: policy
            .ports
            .iter()
            .filter(|port| is_local_and_flat(port))
            .map(|port| port.mac)
            .collect(),
        flat: has(|kind| kind == NetworkKind::Flat),
        udp_encapsulation: config.sas.iter().any(|sa| sa.udp_encapsulation)
            || config.sessions.as_ref().is_some_and(|one| one.udp_encapsulation),
        vxlan: has(|kind| matches!(kind, NetworkKind::Vxlan(_))),
        geneve: has(|kind| matches!(kind, NetworkKind::Geneve(_))),
        handshakes: config.sessions.as_ref().and_then(|one| NonZeroU16::new(one.port)),
    }
}

/// What is wanted by one configuration or the other.
fn either(one: &UplinkConfig, other: &UplinkConfig) -> UplinkConfig {
    UplinkConfig {
        host_addresses: [&*one.host_addresses, &*other.host_addresses].concat(),
        guest_macs: [&*one.guest_macs, &*other.guest_macs].concat(),
        flat: one.flat || other.flat,
        udp_encapsulation: one.udp_encapsulation || other.udp_encapsulation,
        vxlan: one.vxlan || other.vxlan,
        geneve: one.geneve || other.geneve,
        handshakes: one.handshakes.or(other.handshakes),
    }
}

/// What the uplink's MTU and the frames allow.
fn longest_packet(uplink: &Link, umem: &Umem) -> usize {
    uplink.mtu.min(umem.most_room() - ethernet::HEADER)
}

/// To each worker as many frames of each kind as to the others, and what is left over to the last.
fn deal(umem: &Arc<Umem>, frames: Vec<Frame>, workers: usize) -> Vec<FramePool> {
    let (long, short): (Vec<Frame>, Vec<Frame>) = frames.into_iter().partition(Frame::is_long);
    let shares = [long.len() / workers, short.len() / workers];
    let mut kinds = [long.into_iter(), short.into_iter()];
    (0..workers)
        .map(|number| {
            let share = |(frames, share)| {
                let frames: &mut std::vec::IntoIter<Frame> = frames;
                let count = if number + 1 == workers { usize::MAX } else { share };
                frames.take(count)
            };
            let dealt = kinds.iter_mut().zip(shares).flat_map(share).collect();
            FramePool::new(Arc::clone(umem), dealt)
        })
        .collect()
}

fn make_tables(plan: &Blueprint, uplink: &Link, umem: &Umem, places: &Places) -> Tables {
    let parts = Parts {
        rules: plan.rules.clone(),
        endpoints: Arc::clone(&plan.endpoints),
        host: plan.config.host,
        uplink_mac: uplink.mac,
        uplink_mtu: longest_packet(uplink, umem),
        places: places.for_tables(),
        next_hops: plan.next_hops.clone(),
        sas: Arc::clone(&plan.sas),
        rule_counters: Arc::clone(&plan.rule_counters),
    };
    Tables::new(&plan.config.policy, parts)
        .with_path_mtus(&plan.path_mtus)
        .with_also_accepted(Arc::clone(&plan.also_accepted))
}
