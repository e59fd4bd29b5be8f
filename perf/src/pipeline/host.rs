//! One host with one worker and one guest, between memory ports.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::sync::Arc;

use arc_swap::ArcSwap;
use guestseal::aead::engine::{Engine, ExpandedKey};
use guestseal::path::batch::WorkerId;
use guestseal::path::classify::Decisions;
use guestseal::path::endpoints::Endpoints;
use guestseal::path::flood::Floods;
use guestseal::path::mirror::mirror;
use guestseal::path::notices::notices;
use guestseal::path::tables::{NextHops, Parts, PlaceOf, Tables};
use guestseal::path::waiting::WaitingRoom;
use guestseal::port::memory::{Device, MemoryPort};
use guestseal::port::pool::FramePool;
use guestseal::port::umem::{HugePages, Shape, Umem};
use guestseal::port::{BATCH, KernelDrops};
use guestseal::sa::inbound::InboundSa;
use guestseal::sa::nonce::Salt;
use guestseal::sa::outbound::{Mode, OutboundSa};
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
use guestseal::wire::ethernet::MacAddress;
use guestseal::worker::handoff::{Handoff, Waker};
use guestseal::worker::run::{Ports, Stop, Worker, monotonic};
use guestseal_rules::compile::Ruleset;
use guestseal_rules::containers::Containers;
use guestseal_rules::event::Moment;
use guestseal_rules::model::{HostIndex, KeyIndex, NetworkIndex, Policy, PortIndex, Suite};

use super::packets::{Action, Network, Packets, policy};
use crate::process::PerfError;

/// The SPI of the first SA.
pub(super) const FIRST_SPI: u32 = 0x1001;
/// What traffic keys are made of, but for their first bytes: the SA's number.
pub(super) const KEY_BYTE: u8 = 0x5a;
/// The salt of every SA.
pub(super) const SALT: Salt = Salt([1, 2, 3, 4]);

/// A policy and its rules, compiled once for every case that has so many rules and SAs.
#[derive(Debug)]
pub(super) struct Rules {
    policy: Policy,
    ruleset: Ruleset,
    action: Action,
    sas: u32,
}

impl Rules {
    /// So many rules, of which the last `sas` match.
    pub(super) fn new(network: Network, action: Action, rules: u32, sas: u32) -> Result<Self, PerfError> {
        let policy = policy(network, action, rules, sas)?;
        let containers = Containers::new(Arc::new(policy.clone()), Moment::default());
        let ruleset = Ruleset::compile(
            &policy,
            containers.memberships(),
            containers.flows(),
            NonZeroU32::MIN,
        )
        .map_err(|error| PerfError::Malformed {
            what: "policy".into(),
            why: error.to_string(),
        })?;
        Ok(Self {
            policy,
            ruleset,
            action,
            sas,
        })
    }

    fn network(&self) -> NetworkIndex {
        let network = self.policy.network("bench");
        network.unwrap_or_else(|| unreachable!("the policy has it"))
    }

    /// What ESP wraps of what a host sends.
    #[must_use]
    pub(super) fn mode(&self, host: usize) -> Mode {
        if self.policy.is_flat(self.network()) {
            return Mode::Transport;
        }
        let address = |host: usize| self.policy.hosts[host].addresses[0];
        Mode::Overlay {
            local: address(host),
            remote: address(1 - host),
            udp_source: None,
        }
    }
}

/// How many frames the path has in its hands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Rotation {
    /// Frames of the UMEM.
    pub(super) frames: u32,
    /// Packets that arrive before the first of them is carried, and that leave before the first frame of theirs comes back.
    pub(super) depth: usize,
}

impl Rotation {
    /// Up to 1,024 frames are hot: a burst arrives, is carried, leaves and is given back at once. Of more, every frame
    /// takes its turn: half of them wait to be received, half to be given back.
    #[must_use]
    pub(super) fn new(frames: u32) -> Self {
        let depth = match frames {
            0..=1024 => BATCH,
            more => (more as usize / 2 - 4 * BATCH).next_multiple_of(BATCH),
        };
        Self { frames, depth }
    }
}

/// One host.
pub(super) struct Host {
    /// Carries the packets.
    pub(super) worker: Worker,
    /// The guest's end.
    pub(super) guest: Device,
    /// The wire's end.
    pub(super) uplink: Device,
    /// What became of them.
    pub(super) counters: Arc<Counters>,
    rotation: Rotation,
}

impl Host {
    /// The host of a number: the first seals, the second opens.
    pub(super) fn new(
        rules: &Rules,
        number: usize,
        rotation: Rotation,
        engine: &Arc<dyn Engine>,
    ) -> Result<Self, PerfError> {
        let policy = &rules.policy;
        let (umem, frames) = umem(rotation.frames)?;
        let (receives, sends) = ((rotation.depth, BATCH), (BATCH, rotation.depth + BATCH));
        let (at_guest, at_uplink) = if number == 0 {
            (receives, sends)
        } else {
            (sends, receives)
        };
        let (guest_port, guest) = MemoryPort::new(Arc::clone(&umem), at_guest.0, at_guest.1);
        let (uplink_port, uplink) = MemoryPort::new(Arc::clone(&umem), at_uplink.0, at_uplink.1);
        let (sas, owned) = security_associations(rules, number, &**engine);
        let next_hop = NextHops {
            v4: Some(MacAddress([2, 0, 0, 0, 0xff, 9])),
            v6: None,
        };
        let rule_counters = Arc::new(RuleCounters::new(policy));
        let parts = Parts {
            rules: rules.ruleset.clone(),
            endpoints: Arc::new(Endpoints::new(policy)),
            host: HostIndex(number as u16),
            uplink_mac: MacAddress([2, 0, 0, 0, 0xff, number as u8]),
            // What an overlay puts in front of the longest frame must fit.
            uplink_mtu: 1600,
            places: vec![PlaceOf {
                port: Some(PortIndex(number as u32)),
                through: 0,
                owners: vec![WorkerId(0)],
                leaves_checksums: true,
            }],
            next_hops: vec![next_hop; 2],
            sas: Arc::new(sas),
            rule_counters: [Arc::clone(&rule_counters)].into(),
        };
        let tables = Tables::new(policy, parts);
        let waker = Waker::new().map_err(PerfError::io("eventfd"))?;
        let Some(handoff) = Handoff::mesh(std::slice::from_ref(&waker)).pop() else {
            unreachable!("one for each worker")
        };
        let counters: Arc<Counters> = Arc::default();
        let teller = notices(waker.clone()).0;
        let mut host = Self {
            worker: Worker {
                id: WorkerId(0),
                tables: Arc::new(ArcSwap::from_pointee(tables)),
                pool: FramePool::new(umem, frames),
                sas: owned,
                decisions: Decisions::new(rule_counters, samples().0),
                mirror: mirror(Arc::clone(&counters)).0,
                floods: Floods::default(),
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
            rotation,
        };
        host.worker.turn();
        Ok(host)
    }

    /// Lets the guest send as many packets as go round.
    pub(super) fn guest_sends(&mut self, packets: &mut Packets) {
        for _ in 0..self.rotation.depth {
            self.guest.arrive(packets.next(), monotonic());
        }
    }

    /// Lets the wire bring packets.
    pub(super) fn wire_brings(&mut self, packets: &[Vec<u8>]) {
        for packet in packets {
            self.uplink.arrive(packet, monotonic());
        }
    }

    /// Takes what leaves out of the way, and gives the oldest frames back.
    pub(super) fn clear(&mut self) {
        let kept = self.rotation.depth - BATCH;
        for device in [&mut self.guest, &mut self.uplink] {
            device.discard();
            device.complete_all_but(kept);
        }
    }

    /// What leaves by the uplink, as [`Host::clear`] otherwise.
    pub(super) fn on_wire(&mut self, packets: &mut Vec<Vec<u8>>) {
        packets.extend(std::iter::from_fn(|| self.uplink.leave()));
        self.clear();
    }

    /// Whether huge pages back its frames.
    #[must_use]
    pub(super) fn huge_pages(&self) -> bool {
        self.worker.pool.umem().huge_pages()
    }
}

/// A UMEM that no kernel knows of.
pub(crate) fn umem(frames: u32) -> Result<(Arc<Umem>, Vec<guestseal::port::frame::Frame>), PerfError> {
    let shape = Shape {
        frame_size: 2048,
        frames,
        long_frames: 0,
        ring_size: 512,
        huge_pages: HugePages::Auto,
    };
    Umem::memory(shape).map_err(|error| PerfError::Malformed {
        what: "UMEM".into(),
        why: error.to_string(),
    })
}

/// The traffic key of the SA of a number, as the engine wants it.
pub(super) fn expanded(engine: &dyn Engine, number: u32) -> ExpandedKey {
    let mut key = [KEY_BYTE; 32];
    key[..4].copy_from_slice(&number.to_le_bytes());
    engine
        .expand(Suite::Aes256Gcm, &key)
        .unwrap_or_else(|_| unreachable!("32 bytes are a key of AES-256"))
}

/// One SA for each key, from the first host to the second.
fn security_associations(rules: &Rules, number: usize, engine: &dyn Engine) -> (SaTable, Owned) {
    let (mut table, mut owned) = (SaTable::default(), Owned::default());
    let protection = rules.action.protection();
    let (network, mode) = (rules.network(), rules.mode(number));
    for slot in 0..rules.sas {
        let Ok(spi) = Spi::new(FIRST_SPI + slot) else {
            unreachable!("above the reserved ones")
        };
        let rule_key: KeyIndex = match rules.policy.key(&format!("bench-{slot}")) {
            Some(key) => key,
            None => unreachable!("the policy has one for each SA"),
        };
        let key = expanded(engine, slot);
        if number == 0 {
            let outbound = OutboundSa {
                spi,
                protection,
                mode,
                esn: true,
                key,
                sequence: Sequence::fresh(true, SALT),
                tally: Cell::default(),
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
                mode,
                esn: true,
                key,
                salt: SALT,
                window: ReplayWindow::new(1024, true),
                selector: Selector::default(),
                rule_key,
                network,
                peer: HostIndex(0),
                tally: Cell::default(),
            };
            let place = owned.inbound.add(WorkerId(0), inbound);
            let added = table.add_inbound(spi, place);
            debug_assert!(added, "every SPI is new");
        }
    }
    (table, owned)
}
