//! Hosts, the network between them, an attacker on it, and virtual time. What must always hold is asserted here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use guestseal::keys::handshake::output::ChannelId;
use guestseal::keys::handshake::settings::Settings;

use super::host::{Act, Host, Packet, Sealed, UPLINK_MTU, address, rule_key};
use super::seed::Seed;

/// What the network does to each datagram, in thousandths; delays in microseconds.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Weather {
    pub(crate) loss: u64,
    pub(crate) duplicate: u64,
    pub(crate) corrupt: u64,
    pub(crate) delay: (u64, u64),
    /// How long workers take to obey, at most.
    pub(crate) slow: u64,
}

impl Weather {
    pub(crate) const FAIR: Self = Self {
        loss: 0,
        duplicate: 0,
        corrupt: 0,
        delay: (5_000, 0),
        slow: 0,
    };
    /// Late, out of order, twice; but everything arrives.
    pub(crate) const LATE: Self = Self {
        loss: 0,
        duplicate: 100,
        corrupt: 0,
        delay: (100, 80_000),
        slow: 2_000,
    };
}

#[derive(Clone, Debug)]
enum Wire {
    Datagram(Vec<u8>),
    Sealed(Sealed),
}

struct Arrival {
    at: Duration,
    number: u64,
    from: SocketAddr,
    to: usize,
    wire: Wire,
}

impl PartialEq for Arrival {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Arrival {}
impl PartialOrd for Arrival {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Arrival {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// How often workers' counters are reported.
const REPORT: Duration = Duration::from_millis(200);
/// Bytes of IPv4 and UDP around a datagram.
const HEADERS: usize = 28;
/// What the attacker remembers.
const RECORD: usize = 512;

pub(crate) struct World {
    pub(crate) shape: (usize, usize, u8),
    pub(crate) at: Duration,
    pub(crate) weather: Weather,
    pub(crate) cut: HashSet<(usize, usize)>,
    /// Ways that eat longer packets than this, from host to host; they tell nobody.
    pub(crate) widths: HashMap<(usize, usize), u16>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) seed: Seed,
    pub(crate) sent: u64,
    pub(crate) delivered: HashMap<u64, Duration>,
    pub(crate) dropped: u64,
    /// Datagrams between hosts, but sealed packets and probes.
    pub(crate) datagrams: u64,
    pub(crate) probes: u64,
    settings: Settings,
    arrivals: BinaryHeap<Reverse<Arrival>>,
    arrived: u64,
    keys: HashSet<Vec<u8>>,
    inside: HashMap<(usize, [u8; 16]), Vec<u8>>,
    record: Vec<(SocketAddr, usize, Wire)>,
    reported: Duration,
}

impl World {
    pub(crate) fn new(seed: u64, shape: (usize, usize, u8), settings: Settings) -> Self {
        let mut world = Self {
            shape,
            at: Duration::from_secs(1000),
            weather: Weather::FAIR,
            cut: HashSet::new(),
            widths: HashMap::new(),
            hosts: Vec::new(),
            seed: Seed(seed),
            sent: 0,
            delivered: HashMap::new(),
            dropped: 0,
            datagrams: 0,
            probes: 0,
            settings,
            arrivals: BinaryHeap::new(),
            arrived: 0,
            keys: HashSet::new(),
            inside: HashMap::new(),
            record: Vec::new(),
            reported: Duration::ZERO,
        };
        for number in 0..shape.0 {
            let random = world.seed.split();
            let host = Host::new(number, shape, &world.settings, random);
            world.hosts.push(host);
            for channel in 0..shape.1 {
                world.hold(number, channel, 1);
            }
        }
        world
    }

    // ---- What can be done to it.

    /// A host gets a generation.
    pub(crate) fn hold(&mut self, host: usize, channel: usize, generation: u32) {
        let one = &mut self.hosts[host];
        one.store.add(rule_key(channel, generation));
        one.engine.set_keys(&one.store, one.now(self.at));
        self.settle(host);
    }

    /// A generation is taken from a host.
    pub(crate) fn revoke(&mut self, host: usize, channel: usize, generation: u32) {
        let one = &mut self.hosts[host];
        let id = format!("key-{channel}");
        one.store
            .remove(&id, guestseal::keys::store::Generation(generation));
        one.engine.set_keys(&one.store, one.now(self.at));
        self.settle(host);
    }

    /// No guests may use the sessions of a host with another any more; packets that come may.
    pub(crate) fn end_unusable(&mut self, host: usize, other: usize, channel: usize) {
        let one = &mut self.hosts[host];
        let pair = one.pair(other, channel);
        one.engine.end_unusable(pair, one.now(self.at));
        assert!(!one.engine.live_pairs().any(|live| live == pair));
        self.settle(host);
    }

    pub(crate) fn generations(&self, host: usize, channel: usize) -> Vec<u32> {
        let id = format!("key-{channel}");
        self.hosts[host]
            .store
            .generations(&id)
            .map(|key| key.generation.0)
            .collect()
    }

    /// The process of a host ends and begins again; its clock may be another one then.
    pub(crate) fn restart(&mut self, host: usize, skew: i64) {
        // An initiation that was recorded before is new to it: the session has other keys then, under the same index.
        self.inside.retain(|(from, _), _| *from != host);
        let random = self.seed.split();
        let mut new = Host::new(host, self.shape, &self.settings, random);
        new.store = self.hosts[host].store.clone();
        new.skew = skew;
        new.engine.set_keys(&new.store, new.now(self.at));
        self.hosts[host] = new;
        self.settle(host);
    }

    /// A guest sends a packet: its number.
    pub(crate) fn send(&mut self, from: usize, to: usize, channel: usize) -> u64 {
        let id = self.sent;
        self.sent += 1;
        let packet = Packet {
            id,
            from,
            to,
            channel,
        };
        let acts = self.hosts[from].send(packet, self.at, &mut self.seed);
        self.act(from, acts);
        self.settle(from);
        id
    }

    /// The attacker sends again what was sent before, as it was, changed or cut short.
    pub(crate) fn replay(&mut self) {
        let Some(last) = self.record.len().checked_sub(1) else {
            return;
        };
        let (from, to, mut wire) = self.record[self.seed.below(last as u64 + 1) as usize].clone();
        if let Wire::Datagram(bytes) = &mut wire
            && self.seed.one_in(3)
        {
            let place = self.seed.below(bytes.len() as u64) as usize;
            if self.seed.one_in(2) {
                bytes[place] ^= 1 << self.seed.below(8);
            } else {
                bytes.truncate(place);
            }
        }
        let to = if self.seed.one_in(8) {
            self.seed.below(self.shape.0 as u64) as usize
        } else {
            to
        };
        self.arrive(from, to, wire, 0);
    }

    /// The attacker sends bytes of its own from the address of a host.
    pub(crate) fn inject(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        self.arrive(address(from), to, Wire::Datagram(bytes), 0);
    }

    // ---- Time.

    /// Lets time pass, with everything that happens in it.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.at + time;
        loop {
            let arrival = self.arrivals.peek().map(|Reverse(arrival)| arrival.at);
            let commands = self.hosts.iter().filter_map(Host::command_due).min();
            let timers = self.hosts.iter().filter_map(|host| host.engine.deadline()).min();
            let report = self.reported + REPORT;
            let next = [arrival, commands, timers, Some(report)]
                .into_iter()
                .flatten()
                .min()
                .unwrap_or(end);
            if next > end {
                self.at = end;
                return;
            }
            self.at = self.at.max(next);
            for host in 0..self.hosts.len() {
                while self.hosts[host].command_due().is_some_and(|due| due <= self.at) {
                    let acts = self.hosts[host].obey(self.at, &mut self.seed);
                    self.act(host, acts);
                    self.settle(host);
                }
                if self.hosts[host]
                    .engine
                    .deadline()
                    .is_some_and(|due| due <= self.at)
                {
                    let now = self.hosts[host].now(self.at);
                    self.hosts[host].engine.tick(now);
                    let still = self.hosts[host].engine.deadline();
                    assert!(
                        still.is_none_or(|still| still > self.at),
                        "a timer that is due for ever: {:?}",
                        self.hosts[host].engine.sessions(now).collect::<Vec<_>>()
                    );
                    self.settle(host);
                }
            }
            while let Some(Reverse(arrival)) = self.arrivals.peek() {
                if arrival.at > self.at {
                    break;
                }
                if let Some(Reverse(arrival)) = self.arrivals.pop() {
                    self.take(arrival);
                }
            }
            if self.reported + REPORT <= self.at {
                self.reported = self.at;
                for host in 0..self.hosts.len() {
                    self.hosts[host].report(self.at);
                    self.settle(host);
                }
            }
        }
    }

    fn take(&mut self, arrival: Arrival) {
        let host = &mut self.hosts[arrival.to];
        match arrival.wire {
            Wire::Datagram(bytes) => {
                let now = host.now(self.at);
                host.engine.receive(&bytes, arrival.from, now);
            }
            Wire::Sealed(sealed) => {
                if let Some(packet) = host.open(&sealed, arrival.from, self.at) {
                    let before = self.delivered.insert(packet.id, self.at);
                    assert!(before.is_none(), "packet {} was delivered twice", packet.id);
                }
            }
        }
        self.settle(arrival.to);
    }

    fn settle(&mut self, host: usize) {
        let acts = self.hosts[host].drain(self.at, self.weather.slow, &mut self.seed);
        self.act(host, acts);
    }

    fn act(&mut self, host: usize, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Datagram(to, bytes) => {
                    self.check_datagram(host, &bytes);
                    self.datagrams += 1;
                    let to = (0..self.shape.0).find(|other| address(*other) == to).unwrap();
                    self.transmit(host, to, Wire::Datagram(bytes));
                }
                Act::Probe(to, bytes) => {
                    self.check_probe(host, &bytes);
                    self.probes += 1;
                    let to = (0..self.shape.0).find(|other| address(*other) == to).unwrap();
                    self.transmit(host, to, Wire::Datagram(bytes));
                }
                Act::Sealed(to, sealed) => self.transmit(host, to, Wire::Sealed(sealed)),
                Act::NewKey(key) => {
                    // Numbers begin at 1 under every key and only grow, so that no nonce comes twice if no key does.
                    assert!(self.keys.insert(key), "a traffic key was used twice");
                }
                Act::Dropped => self.dropped += 1,
            }
        }
    }

    /// Only messages of the known sizes leave, and no counter inside a session is used for two of them.
    fn check_datagram(&mut self, host: usize, bytes: &[u8]) {
        assert!(
            [176, 108, 64, 48, 32, 24].contains(&bytes.len()),
            "{} bytes",
            bytes.len()
        );
        self.check_counter(host, bytes);
    }

    /// No probe is longer than what the uplink takes, and it is padded with zeros.
    fn check_probe(&mut self, host: usize, bytes: &[u8]) {
        assert!((48..=usize::from(UPLINK_MTU) - HEADERS).contains(&bytes.len()));
        assert!(bytes[0] == 7 && bytes[48..].iter().all(|byte| *byte == 0));
        self.check_counter(host, &bytes[..48]);
    }

    fn check_counter(&mut self, host: usize, bytes: &[u8]) {
        if matches!(bytes[0], 4 | 7) {
            let mut head: [u8; 16] = bytes[..16].try_into().unwrap();
            head[0] = 4;
            if let Some(before) = self.inside.insert((host, head), bytes.to_vec()) {
                assert_eq!(before, bytes, "a nonce inside a session was used twice");
            }
        }
    }

    fn transmit(&mut self, from: usize, to: usize, wire: Wire) {
        let kept = (address(from), to, wire.clone());
        if self.record.len() < RECORD {
            self.record.push(kept);
        } else {
            let place = self.seed.below(RECORD as u64) as usize;
            self.record[place] = kept;
        }
        if self.cut.contains(&(from, to)) || self.seed.chance(self.weather.loss) {
            return;
        }
        let copies = if self.seed.chance(self.weather.duplicate) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let mut wire = wire.clone();
            if let Wire::Datagram(bytes) = &mut wire
                && self.seed.chance(self.weather.corrupt)
            {
                let place = self.seed.below(bytes.len() as u64) as usize;
                bytes[place] ^= 1 << self.seed.below(8);
            }
            let (least, more) = self.weather.delay;
            let delay = least + self.seed.below(more + 1);
            self.arrive(address(from), to, wire, delay);
        }
    }

    fn arrive(&mut self, from: SocketAddr, to: usize, wire: Wire, delay: u64) {
        let is_on_way = |((one, other), _): &(&(usize, usize), &u16)| (address(*one), *other) == (from, to);
        if let (Wire::Datagram(bytes), Some((_, width))) = (&wire, self.widths.iter().find(is_on_way))
            && bytes.len() + HEADERS > usize::from(*width)
        {
            return;
        }
        self.arrived += 1;
        self.arrivals.push(Reverse(Arrival {
            at: self.at + Duration::from_micros(delay),
            number: self.arrived,
            from,
            to,
            wire,
        }));
    }

    // ---- What must hold.

    /// Nothing is held but what belongs to a session or an attempt, and of those no more than the bound.
    pub(crate) fn check_memory(&self) {
        let (hosts, channels, workers) = self.shape;
        let most = (hosts - 1) * channels;
        for host in &self.hosts {
            let held = host.engine.held();
            assert!(held.pairs <= most && held.states <= 7 * most, "{held:?}");
            assert_eq!(held.indices, held.states, "an index was left behind");
            assert_eq!(held.blocks, held.states, "an SPI block was left behind");
            assert!(held.timers <= held.pairs, "{held:?}");
            // Workers may be a few commands behind.
            let sas = (held.states + 8 * most) * usize::from(workers) + most;
            assert!(host.sas() <= sas, "{} SAs", host.sas());
        }
    }

    /// The generations that a host accepts now, and will for a while after `limit`.
    fn accepted(&self, host: usize, channel: usize, limit: Duration) -> Vec<u32> {
        let end = self.at + limit + Duration::from_secs(5);
        let channel = ChannelId(channel as u16);
        let accepted = self.hosts[host].engine.accepted(channel);
        accepted
            .filter(|(_, until)| until.is_none_or(|until| until > end))
            .map(|(generation, _)| generation.0)
            .collect()
    }

    /// The network is well again: how long until every pair of hosts that accept a common generation talks in both
    /// directions, at a packet each 100 ms. Asserts that nothing is lost from then on.
    pub(crate) fn recovers_within(&mut self, limit: Duration) -> Duration {
        self.weather = Weather::FAIR;
        self.cut.clear();
        self.hosts.iter_mut().for_each(Host::forget_waiting);
        let begin = self.at;
        let mut talking: BTreeMap<(usize, usize, usize), Duration> = BTreeMap::new();
        let (hosts, channels, _) = self.shape;
        let mut pairs = Vec::new();
        for (from, to) in (0..hosts).flat_map(|from| (0..hosts).map(move |to| (from, to))) {
            for channel in 0..channels {
                let (one, two) = (
                    self.accepted(from, channel, limit),
                    self.accepted(to, channel, limit),
                );
                if from != to && one.iter().any(|generation| two.contains(generation)) {
                    pairs.push((from, to, channel));
                }
            }
        }
        let mut last = HashMap::new();
        while self.at < begin + limit && talking.len() < pairs.len() {
            for pair in &pairs {
                last.insert(*pair, self.send(pair.0, pair.1, pair.2));
            }
            self.pass(Duration::from_millis(100));
            for pair in &pairs {
                if self.delivered.contains_key(&last[pair]) {
                    talking.entry(*pair).or_insert(self.at);
                }
            }
        }
        let silent: Vec<_> = pairs.iter().filter(|pair| !talking.contains_key(pair)).collect();
        if !silent.is_empty() {
            for (from, to, channel) in &silent {
                eprintln!(
                    "{from}->{to} on {channel}: generations {:?} and {:?}, seals {} {}",
                    self.accepted(*from, *channel, limit),
                    self.accepted(*to, *channel, limit),
                    self.hosts[*from].seals(*to, *channel),
                    self.hosts[*to].seals(*from, *channel)
                );
                let now = self.hosts[*from].now(self.at);
                self.hosts[*from]
                    .engine
                    .sessions(now)
                    .for_each(|one| eprintln!("  {one:?}"));
            }
            panic!("no session again after {limit:?}: {silent:?}");
        }
        let recovered = self.at - begin;
        // Old sessions that are still under way to their end may be replaced, and no packet is lost by it.
        let mut sent = Vec::new();
        for _ in 0..20 {
            for pair in &pairs {
                sent.push((self.send(pair.0, pair.1, pair.2), pair));
            }
            self.pass(Duration::from_millis(100));
        }
        self.pass(Duration::from_secs(1));
        let lost: Vec<_> = sent
            .iter()
            .filter(|(id, _)| !self.delivered.contains_key(id))
            .collect();
        if let Some((_, (from, to, channel))) = lost.first() {
            let pairs: std::collections::BTreeSet<_> = lost.iter().map(|(_, pair)| pair).collect();
            eprintln!("after {recovered:?} lost of {pairs:?}; talked since {talking:?}");
            for (one, other) in [(*from, *to), (*to, *from)] {
                eprintln!(
                    "{one}->{other} on {channel}: accepts {:?}, seals {}",
                    self.accepted(one, *channel, limit),
                    self.hosts[one].seals(other, *channel)
                );
                let now = self.hosts[one].now(self.at);
                self.hosts[one]
                    .engine
                    .sessions(now)
                    .for_each(|one| eprintln!("  {one:?}"));
            }
        }
        assert!(lost.is_empty(), "{} packets lost after recovery", lost.len());
        recovered
    }

    /// What is long over is forgotten; keeps the model's own memory small.
    pub(crate) fn forget(&mut self) {
        self.delivered.clear();
        self.inside.clear();
        self.arrivals.clear();
    }
}
