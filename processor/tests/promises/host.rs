//! Hosts on memory ports: the real workers, path, tables and SAs, without a kernel.

use std::cell::Cell;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use arc_swap::ArcSwap;
use guestseal::aead::aes_gcm::AesGcm;
use guestseal::aead::engine::Engine;
use guestseal::control::announce::arrivals;
use guestseal::path::batch::WorkerId;
use guestseal::path::classify::Decisions;
use guestseal::path::endpoints::Endpoints;
use guestseal::path::flood::Floods;
use guestseal::path::mirror::mirror;
use guestseal::path::notices::{Notice, notices};
use guestseal::path::outcome::{DropReason, Outcome, SentAs};
use guestseal::path::tables::{NextHops, Parts, PathMtu, PlaceOf, Tables};
use guestseal::path::waiting::WaitingRoom;
use guestseal::port::KernelDrops;
use guestseal::port::memory::{Device, MemoryPort};
use guestseal::port::pool::FramePool;
use guestseal::port::umem::{HugePages, Shape, Umem};
use guestseal::sa::inbound::InboundSa;
use guestseal::sa::nonce::Salt;
use guestseal::sa::outbound::{Mode, OutboundSa, Tally};
use guestseal::sa::replay::ReplayWindow;
use guestseal::sa::selector::Selector;
use guestseal::sa::sequence::{Reservation, Sequence};
use guestseal::sa::slots::Owned;
use guestseal::sa::spi::Spi;
use guestseal::sa::table::{OutboundKey, SaTable};
use guestseal::telemetry::counters::Counters;
use guestseal::telemetry::latency::exchange;
use guestseal::telemetry::rules::RuleCounters;
use guestseal::telemetry::samples::{Sample, samples};
use guestseal::wire::esp::udp_source;
use guestseal::wire::ethernet::MacAddress;
use guestseal::worker::handoff::{Handoff, Waker};
use guestseal::worker::run::{Command, Commands, Ports, Stop, Worker, monotonic};
use guestseal_rules::classify::{Action, Protection};
use guestseal_rules::compile::{Ruleset, next_generation};
use guestseal_rules::containers::{Changes, Containers};
use guestseal_rules::event::{Event, Moment};
use guestseal_rules::load::{Source, load_policy};
use guestseal_rules::model::{HostIndex, KeyIndex, NetworkIndex, Policy, PortIndex, RuleIndex};
use rtrb::Consumer;

use crate::frames::Guest;

/// The demo's policy and one more guest, so that two of a network live on one host.
pub(crate) fn policy() -> Policy {
    policy_with("", "")
}

/// The same with one thing different.
pub(crate) fn policy_with(from: &str, to: &str) -> Policy {
    let demo = include_str!("../../../rules/examples/demo/policy.yaml");
    let third = "  - id: blue-3\n    host: h1\n    labels: {tenant: blue}\n    ports:\n      - {interface: gp-blue-3, \
                 network: blue, mac: \"02:00:00:01:00:03\", addresses: [10.1.0.3, \"fd00:1::3\"]}\n";
    let text = demo.replacen("  - id: red-1\n", &format!("{third}  - id: red-1\n"), 1);
    assert!(text.contains(from), "the policy has no `{from}`");
    let text = text.replacen(from, to, 1);
    let name = "policy.yaml".into();
    load_policy(&[Source { name, text }]).expect("the demo's policy is right")
}

/// The overlay example's policy: two tenants of equal MACs and addresses; with one thing different.
pub(crate) fn overlay_with(from: &str, to: &str) -> Policy {
    let text = include_str!("../../../rules/examples/overlay/policy.yaml");
    assert!(text.contains(from), "the policy has no `{from}`");
    let (name, text) = ("policy.yaml".into(), text.replacen(from, to, 1));
    load_policy(&[Source { name, text }]).expect("the example's policy is right")
}

/// How hosts are made.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) workers: u16,
    pub(crate) frames: u32,
    pub(crate) long_frames: u32,
    pub(crate) uplink_mtu: usize,
    pub(crate) transmit_room: usize,
    pub(crate) tunnel: bool,
    pub(crate) tunnel_over_ip6: bool,
    /// An overlay's ESP goes in UDP.
    pub(crate) in_udp: bool,
    pub(crate) esn: bool,
    /// Where every outbound sequence begins.
    pub(crate) start: u64,
    /// Numbers below this are reserved.
    pub(crate) reserved: u64,
    /// SA and guest ports at other workers than the one that receives.
    pub(crate) cross: bool,
    /// What every SA may carry.
    pub(crate) selector: Selector,
    /// No manual SAs: the hosts make sessions.
    pub(crate) sessions: bool,
    /// Guests may leave checksums to the device.
    pub(crate) leaves_checksums: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 1,
            frames: 512,
            long_frames: 0,
            uplink_mtu: 1500,
            transmit_room: 128,
            tunnel: false,
            tunnel_over_ip6: false,
            in_udp: false,
            esn: true,
            start: 1,
            reserved: u64::MAX,
            cross: false,
            selector: Selector::default(),
            sessions: false,
            leaves_checksums: true,
        }
    }
}

/// One direction of one key.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Sa {
    pub(crate) spi: u32,
    pub(crate) key: KeyIndex,
    pub(crate) protection: Protection,
    pub(crate) network: NetworkIndex,
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// An SA in each direction for every key that a rule seals with.
pub(crate) fn sas(policy: &Policy) -> Vec<Sa> {
    let mut sas: Vec<Sa> = Vec::new();
    for rule in &policy.rules {
        let Action::Seal { protection, key } = rule.action else {
            continue;
        };
        if sas.iter().any(|sa| (sa.key, sa.protection) == (key, protection)) {
            continue;
        }
        let network = policy
            .networks
            .iter()
            .position(|network| policy.keys[key.index()].id.starts_with(&network.name));
        let network = NetworkIndex(network.expect("keys are named for their network") as u16);
        let hosts = policy.hosts.len();
        let pairs = (0..hosts).flat_map(|from| (0..hosts).map(move |to| (from, to)));
        for (from, to) in pairs.filter(|(from, to)| from != to) {
            let spi = 0x1001 + sas.len() as u32;
            sas.push(Sa {
                spi,
                key,
                protection,
                network,
                from,
                to,
            });
        }
    }
    sas
}

/// KEYMAT that both ends have: no two SAs share a key.
pub(crate) fn keymat(spi: u32, length: usize) -> (Vec<u8>, Salt) {
    let bytes: Vec<u8> = (0..length as u32 + 4)
        .map(|place| (spi.wrapping_mul(97) + place * 7) as u8)
        .collect();
    let (key, salt) = bytes.split_at(length);
    (key.to_vec(), Salt(salt.try_into().unwrap()))
}

pub(crate) struct Host {
    tables: Arc<ArcSwap<Tables>>,
    containers: Containers,
    ruleset: Ruleset,
    rules: Arc<RuleCounters>,
    logged: Vec<Consumer<Sample>>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) uplinks: Vec<Device>,
    pub(crate) guests: HashMap<String, Device>,
    pub(crate) counters: Vec<Arc<Counters>>,
    pub(crate) reservations: HashMap<u32, Arc<Reservation>>,
    pub(crate) commands: Vec<Commands>,
    pub(crate) notices: Vec<Consumer<Notice>>,
    umem: Arc<Umem>,
    /// Whether sent frames are completed as soon as they are looked at.
    pub(crate) completes: bool,
}

impl Host {
    pub(crate) fn new(policy: &Policy, number: usize, options: &Options) -> Self {
        let count = options.workers;
        let shape = Shape {
            frame_size: 2048,
            frames: options.frames,
            long_frames: options.long_frames,
            ring_size: 512,
            huge_pages: HugePages::Off,
        };
        let (umem, mut frames) = Umem::memory(shape).unwrap();
        let mut long = frames.split_off(options.frames as usize);
        let share = frames.len() / usize::from(count);
        let counters: Vec<Arc<Counters>> = (0..count).map(|_| Arc::default()).collect();
        let (table, mut owned, reservations) = security_associations(policy, number, options);

        let mut guests = HashMap::new();
        let mut places = Vec::new();
        let mut interfaces = HashMap::new();
        let mut worker_ports: Vec<Ports> = (0..count).map(|_| Ports::default()).collect();
        let mut uplinks = Vec::new();
        let fill = (options.frames as usize / 16).min(64);
        for ports in &mut worker_ports {
            let (port, device) = MemoryPort::new(Arc::clone(&umem), fill, options.transmit_room);
            ports.uplink = Some(Box::new(port));
            uplinks.push(device);
        }
        for (index, port) in policy.ports.iter().enumerate() {
            let guest = &policy.guests[port.guest.index()];
            if guest.host.index() != number {
                continue;
            }
            let local = places.len() as u16;
            let owner = if options.cross {
                count - 1 - local % count
            } else {
                local % count
            };
            // Of a trunk the first port has the interface.
            let through = *interfaces.entry(&port.interface).or_insert(local);
            if through == local {
                let (memory, device) = MemoryPort::new(Arc::clone(&umem), fill, options.transmit_room);
                worker_ports[usize::from(owner)]
                    .guests
                    .push((local, Box::new(memory)));
                guests.insert(guest.id.clone(), device);
            }
            places.push(PlaceOf {
                port: Some(PortIndex(index as u32)),
                through,
                owners: vec![WorkerId(owner)],
                leaves_checksums: options.leaves_checksums,
            });
        }
        let rules = Arc::new(RuleCounters::new(policy));
        let mut logged = Vec::new();
        let containers = Containers::new(Arc::new(policy.clone()), Moment::default());
        let ruleset = Ruleset::compile(
            policy,
            containers.memberships(),
            containers.flows(),
            NonZeroU32::MIN,
        )
        .unwrap();
        let tables = Arc::new(ArcSwap::from_pointee(Tables::new(
            policy,
            Parts {
                rules: ruleset.clone(),
                endpoints: Arc::new(Endpoints::new(policy)),
                host: HostIndex(number as u16),
                uplink_mac: host_mac(number),
                uplink_mtu: options.uplink_mtu,
                places,
                next_hops: (0..policy.hosts.len()).map(next_hops).collect(),
                sas: Arc::new(table),
                rule_counters: (0..count).map(|_| Arc::clone(&rules)).collect(),
            },
        )));
        let (mut commands, mut heard) = (Vec::new(), Vec::new());
        let control = Waker::new().unwrap();
        let wakers: Vec<Waker> = (0..count).map(|_| Waker::new().unwrap()).collect();
        let mut handoffs = Handoff::mesh(&wakers).into_iter();
        let stop = Stop::new(usize::from(count));
        let workers = worker_ports
            .into_iter()
            .enumerate()
            .map(|(index, ports)| {
                let take = if index + 1 == usize::from(count) {
                    frames.len()
                } else {
                    share
                };
                let long_take = long.len() / (usize::from(count) - index);
                let mine = frames.drain(..take).chain(long.drain(..long_take)).collect();
                let (sampler, sampled) = samples();
                logged.push(sampled);
                let (commander, commanded) = rtrb::RingBuffer::new(64);
                commands.push(commander);
                let (teller, told) = notices(control.clone());
                heard.push(told);
                Worker {
                    id: WorkerId(index as u16),
                    tables: Arc::clone(&tables),
                    pool: FramePool::new(Arc::clone(&umem), mine),
                    sas: owned.remove(0),
                    decisions: Decisions::new(Arc::clone(&rules), sampler),
                    mirror: mirror(Arc::clone(&counters[index])).0,
                    floods: Floods::default(),
                    engine: Arc::new(AesGcm),
                    ports,
                    handoff: handoffs.next().unwrap(),
                    waker: wakers[index].clone(),
                    counters: Arc::clone(&counters[index]),
                    recorder: exchange().0,
                    commands: commanded,
                    obeyed: Arc::default(),
                    notices: teller,
                    waiting: WaitingRoom::new(options.frames as usize),
                    closed_drops: KernelDrops::default(),
                    stop: Arc::clone(&stop),
                    busy_poll: false,
                }
            })
            .collect();
        let mut host = Self {
            tables,
            containers,
            ruleset,
            rules,
            logged,
            workers,
            uplinks,
            guests,
            counters,
            reservations,
            commands,
            notices: heard,
            umem,
            completes: true,
        };
        host.settle();
        host
    }

    /// Something happens to a guest: the rules that follow are what every worker reads next.
    pub(crate) fn hears(&mut self, event: &str) {
        let event: Event = serde_json::from_str(event).unwrap();
        let mut changes = Changes::default();
        let now = Moment::from_millis(self.containers.now().millis() + 1);
        self.containers.apply(now, &event, &mut changes).unwrap();
        let memberships = self.containers.memberships();
        let changed = changes
            .guests
            .iter()
            .map(|guest| (*guest, &memberships[guest.index()]));
        let generation = next_generation(self.ruleset.generation());
        let next = self.ruleset.update(changed, generation);
        self.ruleset = next.update_flows(&changes.flows, self.containers.flows(), generation);
        let tables = self.tables.load().with_rules(self.ruleset.clone());
        self.tables.store(Arc::new(tables));
    }

    /// A guest moves to another host.
    pub(crate) fn sees_moved(&mut self, guest: Guest, to: usize) {
        let policy = Arc::clone(self.containers.policy());
        let moving = policy.guest(guest.id).expect("a guest of the policy");
        let endpoints = Endpoints::with_hosts(&policy, |one| {
            if one == moving {
                HostIndex(to as u16)
            } else {
                policy.guests[one.index()].host
            }
        });
        let tables = Arc::new(self.tables.load().with_endpoints(Arc::new(endpoints)));
        let before = self.tables.swap(Arc::clone(&tables));
        for (port, frame) in arrivals(&policy, &before, &tables) {
            let owner = tables.owners(port)[0].index();
            assert!(self.commands[owner].push(Command::Say { port, frame }).is_ok());
        }
        self.settle();
    }

    /// Packets that met a rule, or would have.
    pub(crate) fn met(&self, rule: &str) -> u64 {
        let rules = &self.containers.policy().rules;
        let number = rules
            .iter()
            .position(|one| one.name == rule)
            .expect("a rule of the policy");
        self.rules.counts(RuleIndex(number as u32)).packets
    }

    /// Packets of logged rules since the last look, with the rules' names.
    pub(crate) fn logged(&mut self) -> Vec<(String, Sample)> {
        let policy = Arc::clone(self.containers.policy());
        let mut all = Vec::new();
        for ring in &mut self.logged {
            while let Ok(sample) = ring.pop() {
                all.push((policy.rules[sample.rule.index()].name.clone(), sample));
            }
        }
        all
    }

    /// Turns every worker until none has anything to do.
    pub(crate) fn settle(&mut self) {
        let mut quiet = 0;
        // Frames that went to another worker come back a turn or two later.
        while quiet < 4 {
            let work: usize = self.workers.iter_mut().map(Worker::turn).sum();
            quiet = if work == 0 { quiet + 1 } else { 0 };
        }
    }

    /// What a rule accepts besides what it says; nothing but that for every other rule.
    pub(crate) fn also_accepts(&mut self, rule: &str, forms: &[Action]) {
        let rules = &self.containers.policy().rules;
        let number = rules.iter().position(|one| one.name == rule).expect("a rule");
        let forms = forms.iter().map(|form| (RuleIndex(number as u32), *form));
        let tables = self.tables.load().with_also_accepted(Arc::new(forms.collect()));
        self.tables.store(Arc::new(tables));
    }

    /// Packets that came in a rule's second form.
    pub(crate) fn in_second_form(&self, rule: &str) -> u64 {
        let rules = &self.containers.policy().rules;
        let number = rules.iter().position(|one| one.name == rule).expect("a rule");
        self.rules.counts(RuleIndex(number as u32)).in_second_form
    }

    /// Changes where SAs are, for every worker's next batch.
    pub(crate) fn publish_sas(&mut self, change: impl FnOnce(&mut SaTable)) {
        let tables = self.tables.load();
        let mut sas = SaTable::clone(&tables.sas);
        change(&mut sas);
        self.tables.store(Arc::new(tables.with_sas(Arc::new(sas))));
    }

    /// The way to one of a host's addresses takes so much and no more.
    pub(crate) fn finds_path_mtu(&mut self, host: usize, towards: &str, mtu: u16) {
        let towards = towards.parse().expect("an address");
        let known = HashMap::from([(HostIndex(host as u16), PathMtu { towards, mtu })]);
        let tables = self.tables.load().with_path_mtus(&known);
        self.tables.store(Arc::new(tables));
    }

    /// The same tables once more: nothing that was found in the old ones holds.
    pub(crate) fn forgets(&mut self) {
        let same = Tables::clone(&self.tables.load());
        self.tables.store(Arc::new(same));
    }

    /// Packets that took the way of an earlier one of their flow.
    pub(crate) fn known(&self) -> u64 {
        let known = |worker: &Worker| worker.decisions.known();
        self.workers.iter().map(known).sum()
    }

    /// A guest sends a frame.
    pub(crate) fn guest_sends(&mut self, guest: Guest, frame: &[u8]) {
        self.guest_sends_at_once(guest, &[frame]);
    }

    /// A guest sends frames, which are received together.
    pub(crate) fn guest_sends_at_once(&mut self, guest: Guest, frames: &[impl AsRef<[u8]>]) {
        let device = self.guests.get_mut(guest.id).expect("a guest of this host");
        for frame in frames {
            assert!(
                device.arrive(frame.as_ref(), monotonic()),
                "the port takes the frame"
            );
        }
        self.settle();
    }

    /// The same, in turns with heads of so many bytes.
    pub(crate) fn guest_sends_with_heads(&mut self, guest: Guest, frames: &[Vec<u8>], heads: &[u8]) {
        let device = self.guests.get_mut(guest.id).expect("a guest of this host");
        for (frame, head) in frames.iter().zip(heads.iter().cycle()) {
            device.set_head(*head);
            assert!(device.arrive(frame, monotonic()), "the port takes the frame");
        }
        device.set_head(0);
        self.settle();
    }

    /// A frame arrives on a queue of the uplink.
    pub(crate) fn wire_brings(&mut self, queue: usize, frame: &[u8]) {
        self.wire_brings_at_once(queue, &[frame]);
    }

    /// Frames arrive on a queue of the uplink, and are received together.
    pub(crate) fn wire_brings_at_once(&mut self, queue: usize, frames: &[impl AsRef<[u8]>]) {
        for frame in frames {
            assert!(
                self.uplinks[queue].arrive(frame.as_ref(), monotonic()),
                "the uplink takes the frame"
            );
        }
        self.settle();
    }

    /// What left by the uplink since the last look.
    pub(crate) fn on_wire(&mut self) -> Vec<Vec<u8>> {
        let completes = self.completes;
        let left = self
            .uplinks
            .iter_mut()
            .flat_map(|device| leave(device, completes))
            .collect();
        self.settle();
        left
    }

    /// What a guest got since the last look.
    pub(crate) fn at_guest(&mut self, guest: Guest) -> Vec<Vec<u8>> {
        let completes = self.completes;
        let got = leave(
            self.guests.get_mut(guest.id).expect("a guest of this host"),
            completes,
        );
        self.settle();
        got
    }

    pub(crate) fn count(&self, outcome: Outcome) -> u64 {
        self.counters
            .iter()
            .map(|counters| counters.outcome(outcome).get())
            .sum()
    }

    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.count(Outcome::Dropped(reason))
    }

    /// Messages that said that a packet was too long.
    pub(crate) fn told_too_long(&self) -> u64 {
        self.counters.iter().map(|one| one.told_too_long.get()).sum()
    }

    pub(crate) fn encrypted(&self) -> u64 {
        self.count(Outcome::Sent(SentAs::Encrypted))
    }

    pub(crate) fn handed_over(&self) -> u64 {
        self.counters
            .iter()
            .map(|counters| counters.taken_over.get())
            .sum()
    }

    /// Every outcome that was counted.
    pub(crate) fn outcomes(&self) -> Vec<(Outcome, u64)> {
        (0..Outcome::COUNT)
            .filter_map(Outcome::from_index)
            .map(|outcome| (outcome, self.count(outcome)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// What was done under each SA.
    pub(crate) fn tallies(&self) -> Vec<Tally> {
        let of = |worker: &Worker| {
            let outbound = worker.sas.outbound.iter().map(|(_, _, sa)| sa.tally.get());
            let inbound = worker.sas.inbound.iter().map(|(_, _, sa)| sa.tally.get());
            outbound.chain(inbound).collect::<Vec<_>>()
        };
        self.workers.iter().flat_map(of).collect()
    }

    /// Received and copied = sum of outcomes, and every frame is in exactly one place.
    #[track_caller]
    pub(crate) fn assert_accounted(&self) {
        let begun: u64 = self
            .counters
            .iter()
            .map(|one| one.received.get() + one.copied.get())
            .sum();
        let ended: u64 = self.outcomes().iter().map(|(_, count)| count).sum();
        let waiting: usize = self.workers.iter().map(|worker| worker.waiting.len()).sum();
        assert_eq!(
            begun,
            ended + waiting as u64,
            "every packet ends once: {:?}",
            self.outcomes()
        );
        let frames: usize = self
            .workers
            .iter()
            .map(|worker| {
                let held = worker.ports.held();
                let free = worker.pool.available() + worker.pool.available_long();
                free + worker.waiting.len() + held.receive + held.transmit
            })
            .sum();
        assert_eq!(frames, self.umem.frames(), "every frame is in one place");
    }
}

fn leave(device: &mut Device, completes: bool) -> Vec<Vec<u8>> {
    let frames = std::iter::from_fn(|| device.leave()).collect();
    if completes {
        device.complete();
    }
    frames
}

fn next_hops(number: usize) -> NextHops {
    NextHops {
        v4: Some(host_mac(number)),
        v6: Some(host_mac(number)),
    }
}

pub(crate) fn host_mac(number: usize) -> MacAddress {
    MacAddress([2, 0, 0, 0xff, 0, number as u8 + 1])
}

type Prepared = (SaTable, Vec<Owned>, HashMap<u32, Arc<Reservation>>);

fn security_associations(policy: &Policy, number: usize, options: &Options) -> Prepared {
    let mut table = SaTable::default();
    let mut owned: Vec<Owned> = (0..options.workers).map(|_| Owned::default()).collect();
    let mut reservations = HashMap::new();
    if options.sessions {
        table.set_session_peers([HostIndex(1 - number as u16)]);
        return (table, owned, reservations);
    }
    // Always those of the example itself, so that hosts with other rules still share SAs.
    let example = if policy.is_flat(NetworkIndex(0)) {
        self::policy()
    } else if policy.hosts.len() == 2 {
        overlay_with("", "")
    } else {
        policy.clone()
    };
    for sa in sas(&example)
        .into_iter()
        .filter(|sa| [sa.from, sa.to].contains(&number))
    {
        let suite = policy.keys[sa.key.index()].suite;
        let (key, salt) = keymat(sa.spi, suite.key_length());
        let key = AesGcm.expand(suite, &key).unwrap();
        let spi = Spi::new(sa.spi).unwrap();
        // Each worker has some of each direction, which take turns.
        let mut owner = ((sa.spi / 2 + 1) % u32::from(options.workers)) as u16;
        if options.cross {
            owner = options.workers - 1 - owner;
        }
        let address = |host: usize| {
            let mut addresses = policy.hosts[host].addresses.iter();
            *addresses
                .find(|address| address.is_ipv6() == options.tunnel_over_ip6)
                .unwrap()
        };
        let mode = |local, remote| {
            let (local, remote) = (address(local), address(remote));
            match (policy.is_flat(sa.network), options.tunnel) {
                (false, _) => Mode::Overlay {
                    local,
                    remote,
                    udp_source: options.in_udp.then(|| udp_source(sa.spi)),
                },
                (true, true) => Mode::Tunnel { local, remote },
                (true, false) => Mode::Transport,
            }
        };
        let mine = &mut owned[usize::from(owner)];
        let owner = WorkerId(owner);
        if sa.from == number {
            let reservation = Reservation::new(options.start, options.reserved);
            reservations.insert(sa.spi, Arc::clone(&reservation));
            let outbound = OutboundSa {
                spi,
                protection: sa.protection,
                mode: mode(sa.from, sa.to),
                esn: options.esn,
                key,
                sequence: Sequence::reserved(options.esn, salt, reservation),
                tally: Cell::default(),
            };
            let place = mine.outbound.add(owner, outbound);
            let wanted = OutboundKey {
                key: sa.key,
                protection: sa.protection,
                network: sa.network,
                peer: HostIndex(sa.to as u16),
            };
            table.add_outbound(wanted, options.selector.clone(), place);
        } else {
            let inbound = InboundSa {
                spi,
                protection: sa.protection,
                mode: mode(sa.to, sa.from),
                esn: options.esn,
                key,
                salt,
                window: ReplayWindow::new(1024, options.esn),
                selector: options.selector.clone(),
                rule_key: sa.key,
                network: sa.network,
                peer: HostIndex(sa.from as u16),
                tally: Cell::default(),
            };
            let place = mine.inbound.add(owner, inbound);
            assert!(table.add_inbound(spi, place));
        }
    }
    (table, owned, reservations)
}
