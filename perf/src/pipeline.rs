//! The data path without a kernel: a worker between memory ports, in cycles a packet, beside the bare cipher.
//!
//! Bursts of 64 arrive, one turn of the worker's loop is timed (receive, parse, guard, classify, seal or open, transmit,
//! reclaim), and the device takes what leaves, outside the clock. In between, the bare cipher (the call of the same engine,
//! without the making of its jobs) seals or opens as many bytes at the same places of as many frames, so that both see the
//! same machine. A figure is the median over bursts.

use std::num::NonZeroU32;
use std::sync::Arc;

use arc_swap::ArcSwap;
use clap::Args;
use guestseal::aead::choice::{Choice, ENGINES, choose};
use guestseal::aead::engine::{Buffers, Engine, ExpandedKey, OpenJob, SealJob, TAG};
use guestseal::control::supervise::chain;
use guestseal::path::batch::WorkerId;
use guestseal::path::classify::Decisions;
use guestseal::path::endpoints::Endpoints;
use guestseal::path::notices::notices;
use guestseal::path::outcome::{Outcome, SentAs};
use guestseal::path::tables::{Parts, Tables};
use guestseal::path::waiting::WaitingRoom;
use guestseal::port::frame::Frame;
use guestseal::port::memory::{Device, MemoryPort};
use guestseal::port::pool::FramePool;
use guestseal::port::umem::{HugePages, Shape, Umem};
use guestseal::port::{BATCH, KernelDrops};
use guestseal::sa::inbound::InboundSa;
use guestseal::sa::nonce::Salt;
use guestseal::sa::outbound::{Mode, OutboundSa, Tally};
use guestseal::sa::replay::ReplayWindow;
use guestseal::sa::selector::Selector;
use guestseal::sa::sequence::Sequence;
use guestseal::sa::slots::Owned;
use guestseal::sa::spi::Spi;
use guestseal::sa::table::{OutboundKey, SaTable};
use guestseal::telemetry::counters::Counters;
use guestseal::telemetry::latency::exchange;
use guestseal::telemetry::rules::RuleCounters;
use guestseal::telemetry::samples::samples;
use guestseal::wire::ethernet::{self, MacAddress};
use guestseal::wire::{esp, ip4, transport};
use guestseal::worker::handoff::{Handoff, Waker};
use guestseal::worker::run::{Ports, Stop, Worker, monotonic};
use guestseal_rules::classify::Protection;
use guestseal_rules::compile::Ruleset;
use guestseal_rules::containers::Containers;
use guestseal_rules::event::Moment;
use guestseal_rules::load::{Source, load_policy};
use guestseal_rules::model::{HostIndex, Policy, PortIndex, Suite};
use serde::Serialize;

use crate::process::PerfError;

const SPI: u32 = 0x1001;
const KEY: [u8; 32] = [0x5a; 32];
const SALT: Salt = Salt([1, 2, 3, 4]);
const FRAMES: u32 = 1024;
/// Bytes of the headers that transport mode leaves in front: Ethernet and IPv4.
const HEADERS: usize = ethernet::HEADER + ip4::HEADER;

/// `guestseal-perf pipeline`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// One JSON array instead of a table
    #[arg(long)]
    json: bool,
    /// Bytes of the guest's frame
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256, 1414, 1420], value_name = "BYTES", value_parser = clap::value_parser!(u16).range(46..=1460))]
    size: Vec<u16>,
    /// Rules in the policy; the last one matches
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100], value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rules: Vec<u32>,
    /// UDP flows that take turns
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1000], value_name = "N", value_parser = clap::value_parser!(u16).range(1..=60000))]
    flows: Vec<u16>,
    /// AEAD engines, each in turn; all that can run here if none is named
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME")]
    engine: Vec<Choice>,
    /// Bursts of 64 packets timed for each case
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    bursts: u32,
}

/// One case.
#[derive(Clone, Debug, Serialize)]
struct Row {
    direction: &'static str,
    network: &'static str,
    size: u16,
    rules: u32,
    flows: u16,
    engine: &'static str,
    cycles_per_packet: f64,
    cipher_cycles_per_packet: f64,
}

/// Measures every case and prints it.
///
/// # Errors
/// If memory or the policy cannot be had, or a packet does not go the way that is measured.
pub fn run(options: &Options) -> Result<(), PerfError> {
    let engines = engines(&options.engine)?;
    let mut rows = Vec::new();
    if !options.json {
        println!(
            "{:<9} {:>6} {:>6} {:>6} {:>9} {:>14} {:>14}",
            "direction", "size", "rules", "flows", "engine", "cycles/packet", "cipher alone"
        );
    }
    for &size in &options.size {
        for &rules in &options.rules {
            for &flows in &options.flows {
                for engine in &engines {
                    for row in measure(engine, size, rules, flows, options.bursts)? {
                        if !options.json {
                            println!("{row}");
                        }
                        rows.push(row);
                    }
                }
            }
        }
    }
    if options.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|error| PerfError::Malformed {
            what: "rows".into(),
            why: error.to_string(),
        })?;
        println!("{text}");
    }
    Ok(())
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:<9} {:>6} {:>6} {:>6} {:>9} {:>14.0} {:>14.0}",
            self.direction,
            self.size,
            self.rules,
            self.flows,
            self.engine,
            self.cycles_per_packet,
            self.cipher_cycles_per_packet
        )
    }
}

/// The engines asked for, or all that can run here.
fn engines(wanted: &[Choice]) -> Result<Vec<Arc<dyn Engine>>, PerfError> {
    if wanted.is_empty() {
        let all = ENGINES.into_iter().filter_map(|one| choose(one).ok());
        return Ok(all.map(|chosen| chosen.engine).collect());
    }
    let one = |choice: &Choice| match choose(*choice) {
        Ok(chosen) => Ok(chosen.engine),
        Err(error) => Err(PerfError::Malformed {
            what: "--engine".into(),
            why: chain(&error),
        }),
    };
    wanted.iter().map(one).collect()
}

/// One host with one worker and one guest.
struct Bench {
    worker: Worker,
    guest: Device,
    uplink: Device,
    counters: Arc<Counters>,
}

impl Bench {
    fn new(policy: &Policy, number: usize, engine: &Arc<dyn Engine>) -> Result<Self, PerfError> {
        let shape = Shape {
            frame_size: 2048,
            frames: FRAMES,
            ring_size: 512,
            huge_pages: HugePages::Auto,
        };
        let (umem, frames) = Umem::memory(shape).map_err(|error| PerfError::Malformed {
            what: "UMEM".into(),
            why: error.to_string(),
        })?;
        let (guest_port, guest) = MemoryPort::new(Arc::clone(&umem), BATCH, BATCH);
        let (uplink_port, uplink) = MemoryPort::new(Arc::clone(&umem), BATCH, BATCH);
        let (sas, owned) = security_associations(policy, number, &**engine);
        let owners = vec![(PortIndex(number as u32), vec![WorkerId(0)])];
        let containers = Containers::new(Arc::new(policy.clone()), Moment::default());
        let rules = Ruleset::compile(
            policy,
            containers.memberships(),
            containers.flows(),
            NonZeroU32::MIN,
        )
        .map_err(|error| PerfError::Malformed {
            what: "policy".into(),
            why: error.to_string(),
        })?;
        let parts = Parts {
            rules,
            endpoints: Arc::new(Endpoints::new(policy)),
            host: HostIndex(number as u16),
            uplink_mac: MacAddress([2, 0, 0, 0, 0xff, number as u8]),
            uplink_mtu: 1500,
            owners,
            next_hops: vec![None; 2],
            sas: Arc::new(sas),
        };
        let tables = Tables::new(policy, parts);
        let waker = Waker::new().map_err(PerfError::io("eventfd"))?;
        let Some(handoff) = Handoff::mesh(std::slice::from_ref(&waker)).pop() else {
            unreachable!("one for each worker")
        };
        let counters: Arc<Counters> = Arc::default();
        let teller = notices(waker.clone()).0;
        let mut bench = Self {
            worker: Worker {
                id: WorkerId(0),
                tables: Arc::new(ArcSwap::from_pointee(tables)),
                pool: FramePool::new(umem, frames),
                sas: owned,
                decisions: Decisions::new(Arc::new(RuleCounters::new(policy)), samples().0),
                engine: Arc::clone(engine),
                ports: Ports {
                    uplink: Some(Box::new(uplink_port)),
                    guests: vec![(0, Box::new(guest_port))],
                },
                handoff,
                waker,
                counters: Arc::clone(&counters),
                recorder: exchange().0,
                commands: rtrb::RingBuffer::new(1).1,
                obeyed: Arc::default(),
                notices: teller,
                waiting: WaitingRoom::new(0),
                closed_drops: KernelDrops::default(),
                stop: Stop::new(1),
                busy_poll: true,
            },
            guest,
            uplink,
            counters,
        };
        bench.worker.turn();
        Ok(bench)
    }
}

fn security_associations(policy: &Policy, number: usize, engine: &dyn Engine) -> (SaTable, Owned) {
    let (mut table, mut owned) = (SaTable::default(), Owned::default());
    let (Some(rule_key), Some(network), Ok(spi)) =
        (policy.key("bench"), policy.network("bench"), Spi::new(SPI))
    else {
        unreachable!("the policy below has them")
    };
    let protection = Protection::Encrypt;
    let key = expand(engine);
    if number == 0 {
        let outbound = OutboundSa {
            spi,
            protection,
            mode: Mode::Transport,
            esn: true,
            key,
            sequence: Sequence::fresh(true, SALT),
            tally: Tally::default(),
        };
        let place = owned.outbound.add(WorkerId(0), outbound);
        let wanted = OutboundKey {
            key: rule_key,
            protection,
            network,
            peer: HostIndex(1),
        };
        table.add_outbound(wanted, Selector::default(), place);
    } else {
        let inbound = InboundSa {
            spi,
            protection,
            mode: Mode::Transport,
            esn: true,
            key,
            salt: SALT,
            window: ReplayWindow::new(1024, true),
            selector: Selector::default(),
            rule_key,
            network,
            peer: HostIndex(0),
            tally: Tally::default(),
        };
        let place = owned.inbound.add(WorkerId(0), inbound);
        let added = table.add_inbound(spi, place);
        debug_assert!(added, "the only SPI");
    }
    (table, owned)
}

fn expand(engine: &dyn Engine) -> ExpandedKey {
    engine
        .expand(Suite::Aes256Gcm, &KEY)
        .unwrap_or_else(|_| unreachable!("32 bytes are a key of AES-256"))
}

/// Two hosts, a guest on each; so many rules, of which the last one matches.
fn policy(rules: u32) -> Result<Policy, PerfError> {
    let mut text = String::from(
        "hosts:\n  - {name: h1, addresses: [192.0.2.1]}\n  - {name: h2, addresses: [192.0.2.2]}\n\
         networks:\n  - {name: bench, type: flat}\nkeys:\n  - {id: bench}\nguests:\n",
    );
    for number in [1, 2] {
        text += &format!(
            "  - {{id: g{number}, host: h{number}, ports: [{{interface: gp{number}, network: bench, \
             mac: \"02:00:00:00:00:0{number}\", addresses: [10.0.0.{number}]}}]}}\n"
        );
    }
    text += "rules:\n";
    for number in 1..rules {
        let (high, low) = (number / 250, number % 250);
        text += &format!(
            "  - {{name: r{number}, from: {{guest: g1}}, to: {{cidr: 10.{}.{high}.{low}/32}}, protocol: udp, ports: [{}], \
             action: drop}}\n",
            1 + high / 250,
            10_000 + number % 50_000
        );
    }
    text += "  - {name: all, from: any, to: any, action: encrypt, key: bench}\n";
    load_policy(&[Source {
        name: "bench.yaml".into(),
        text,
    }])
    .map_err(|errors| PerfError::Malformed {
        what: "policy".into(),
        why: errors.to_string(),
    })
}

/// A UDP packet of flow `flow` from the first guest to the second, `size` bytes with its Ethernet header.
fn frame(size: u16, flow: u16) -> Vec<u8> {
    let size = usize::from(size);
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let total = (size - ethernet::HEADER) as u16;
    frame.extend(ip4::outer(
        [10, 0, 0, 1].into(),
        [10, 0, 0, 2].into(),
        transport::UDP,
        0,
        total,
    ));
    frame.extend((1024 + flow).to_be_bytes());
    frame.extend([0, 9]);
    frame.extend((total - ip4::HEADER as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.resize(size, 0x42);
    frame
}

fn measure(
    engine: &Arc<dyn Engine>,
    size: u16,
    rules: u32,
    flows: u16,
    bursts: u32,
) -> Result<[Row; 2], PerfError> {
    let policy = policy(rules)?;
    let (mut one, mut two) = (Bench::new(&policy, 0, engine)?, Bench::new(&policy, 1, engine)?);
    let frames: Vec<Vec<u8>> = (0..flows).map(|flow| frame(size, flow)).collect();
    let mut next = frames.iter().cycle();
    let clock = quanta::Clock::new();
    let mut cipher = Cipher::new(engine, usize::from(size) - HEADERS, clock.clone())?;
    let mut cycles: [Vec<u64>; 4] = Default::default();
    // The first tenth warms up and is not counted.
    let warm = bursts / 10;
    for burst in 0..bursts + warm {
        for frame in next.by_ref().take(BATCH) {
            one.guest.arrive(frame, monotonic());
        }
        let outbound = timed(&clock, || one.worker.turn());
        let mut sealed = Vec::with_capacity(BATCH);
        while let Some(packet) = one.uplink.leave() {
            sealed.push(packet);
        }
        one.uplink.complete();
        let seal = cipher.seal();

        for packet in &sealed {
            two.uplink.arrive(packet, monotonic());
        }
        let inbound = timed(&clock, || two.worker.turn());
        two.guest.discard();
        two.guest.complete();
        let open = cipher.open();
        if burst >= warm {
            for (list, one) in cycles.iter_mut().zip([outbound, seal, inbound, open]) {
                list.push(one);
            }
        }
    }
    let expected = u64::from(bursts + warm) * BATCH as u64;
    let went = [
        one.counters.outcome(Outcome::Sent(SentAs::Encrypted)).get(),
        two.counters.outcome(Outcome::Delivered).get(),
    ];
    if went != [expected; 2] {
        return Err(PerfError::Malformed {
            what: "pipeline".into(),
            why: format!(
                "of {expected} packets {} were sealed and {} delivered",
                went[0], went[1]
            ),
        });
    }
    let [outbound, seal, inbound, open] = cycles.map(median);
    let row = |direction, packet, cipher| Row {
        direction,
        network: "flat",
        size,
        rules,
        flows,
        engine: engine.name(),
        cycles_per_packet: packet / BATCH as f64,
        cipher_cycles_per_packet: cipher / BATCH as f64,
    };
    Ok([row("outbound", outbound, seal), row("inbound", inbound, open)])
}

fn timed<T>(clock: &quanta::Clock, work: impl FnOnce() -> T) -> u64 {
    let begin = clock.raw();
    std::hint::black_box(work());
    clock.raw() - begin
}

fn median(mut values: Vec<u64>) -> f64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default() as f64
}

/// The engine alone over a burst: as many frames as the path has in its hands, in a UMEM like the path's.
struct Cipher {
    engine: Arc<dyn Engine>,
    key: ExpandedKey,
    sequence: Sequence,
    umem: Arc<Umem>,
    /// Bytes of payload, padding and trailer.
    length: usize,
    plain: Vec<Frame>,
    sealed: Vec<Frame>,
    opened: Vec<Frame>,
    nonces: Vec<[u8; 12]>,
    clock: quanta::Clock,
}

/// Where ESP's payload stands in a sealed frame.
const SEALED: usize = HEADERS + esp::HEADER;

impl Cipher {
    fn new(engine: &Arc<dyn Engine>, payload: usize, clock: quanta::Clock) -> Result<Self, PerfError> {
        let shape = Shape {
            frame_size: 2048,
            frames: 3 * BATCH as u32,
            ring_size: 64,
            huge_pages: HugePages::Auto,
        };
        let (umem, mut frames) = Umem::memory(shape).map_err(|error| PerfError::Malformed {
            what: "UMEM".into(),
            why: error.to_string(),
        })?;
        for frame in &mut frames {
            umem.room_mut(frame).fill(0x42);
        }
        let mut frames = frames.into_iter();
        let mut burst = || frames.by_ref().take(BATCH).collect();
        Ok(Self {
            engine: Arc::clone(engine),
            key: expand(&**engine),
            // Nothing that it seals leaves the process.
            sequence: Sequence::fresh(true, Salt([9; 4])),
            umem,
            length: payload + esp::padding(payload) + esp::TRAILER,
            plain: burst(),
            sealed: burst(),
            opened: burst(),
            nonces: vec![[0; 12]; BATCH],
            clock,
        })
    }

    /// Cycles of the engine's call.
    fn seal(&mut self) -> u64 {
        let mut jobs = arrayvec::ArrayVec::<SealJob<'_>, BATCH>::new();
        let frames = self.plain.iter_mut().zip(&mut self.sealed);
        for ((plain, sealed), kept) in frames.zip(&mut self.nonces) {
            let Ok((_, nonce)) = self.sequence.take() else {
                unreachable!("2^64 numbers")
            };
            *kept = *nonce.as_bytes();
            let (destination, rest) = self.umem.room_mut(sealed)[SEALED..].split_at_mut(self.length);
            let Some(tag) = rest.first_chunk_mut() else {
                unreachable!("a frame is long enough")
            };
            jobs.push(SealJob {
                key: &self.key,
                nonce,
                additional: &[0; 12],
                buffers: Buffers::Copy {
                    source: &self.umem.room_mut(plain)[HEADERS..][..self.length],
                    destination,
                },
                tag,
            });
        }
        timed(&self.clock, || self.engine.seal(&mut jobs))
    }

    /// Cycles of the engine's call.
    fn open(&mut self) -> u64 {
        let mut jobs = arrayvec::ArrayVec::<OpenJob<'_>, BATCH>::new();
        let frames = self.sealed.iter_mut().zip(&mut self.opened);
        for ((sealed, opened), nonce) in frames.zip(&self.nonces) {
            let (source, rest) = self.umem.room_mut(sealed)[SEALED..].split_at(self.length);
            let Some(tag) = rest.first_chunk::<TAG>() else {
                unreachable!("a frame is long enough")
            };
            jobs.push(OpenJob {
                key: &self.key,
                nonce: *nonce,
                additional: &[0; 12],
                buffers: Buffers::Copy {
                    source,
                    destination: &mut self.umem.room_mut(opened)[HEADERS..][..self.length],
                },
                tag,
                authentic: false,
            });
        }
        let cycles = timed(&self.clock, || self.engine.open(&mut jobs));
        assert!(jobs.iter().all(|job| job.authentic), "what was sealed opens");
        cycles
    }
}
