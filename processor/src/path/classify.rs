//! Finds the rule of each packet and turns its action into the next step.
//!
//! Reads the descriptor's network, source and destination; writes the egress and the key, or a drop reason.
//! Inbound packets are held to the same rules: what was opened must have been opened by the key its rule names.
//! What was decided on a flow is kept until the rules are others.

use std::num::NonZeroU32;
use std::sync::Arc;

use arrayvec::ArrayVec;
use guestseal_rules::classify::{Action, Decision, Verdict};
use guestseal_rules::facts::{Facts, Party, Ports};
use guestseal_rules::flow_cache::FlowCache;
use guestseal_rules::model::RuleIndex;

use crate::port::BATCH;
use crate::port::umem::Umem;
use crate::telemetry::rules::RuleCounters;
use crate::telemetry::samples::{Sample, Sampler};
use crate::wire::packet::{Fragment, L3, Packet};

use super::batch::{Batch, Descriptor, Egress, WorkerId};
use super::endpoints::Endpoint;
use super::outcome::{Direction, DropReason, SentAs};
use super::recall::{Recall, secret};
use super::tables::Tables;

const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Flows of which a worker keeps the decision: 64 bytes each, 512 KiB in all.
const FLOWS: usize = 8192;

/// One worker's decisions on flows, and what it says of them.
#[derive(Debug)]
pub struct Decisions {
    ways: Recall,
    cache: FlowCache,
    counters: Arc<RuleCounters>,
    samples: Sampler,
}

impl Decisions {
    /// With no flow known, for tables that count there first. Which place a flow takes is a secret of the worker's.
    #[must_use]
    pub fn new(counters: Arc<RuleCounters>, samples: Sampler) -> Self {
        Self {
            ways: Recall::default(),
            cache: FlowCache::new(FLOWS, secret()),
            counters,
            samples,
        }
    }

    /// Forgets every way that was not found in these tables, and counts where their rules are counted.
    #[inline]
    pub fn attend(&mut self, tables: &Arc<Tables>, worker: WorkerId) {
        if self.ways.attend(tables)
            && let Some(counters) = tables.rule_counters(worker)
        {
            // Control holds the ones before until nobody else does: nothing is freed here.
            self.counters = Arc::clone(counters);
        }
    }

    /// Gives each live packet whose way is known that way. Says whether some must find theirs.
    #[must_use]
    pub fn recall(&mut self, batch: &mut Batch, umem: &Umem) -> bool {
        self.ways.recall(batch, umem, &self.counters)
    }

    /// The ways that are known, and where the rules of packets that take them are counted.
    #[inline]
    pub(super) fn ways(&mut self) -> (&mut Recall, &RuleCounters) {
        (&mut self.ways, &self.counters)
    }

    /// Remembers the ways that live packets have found, as far as others may take them.
    pub fn remember(&mut self, batch: &mut Batch, umem: &Umem) {
        self.ways.remember(batch, umem);
    }

    /// What the rules say of each packet that is asked about, in the order of the batch: `with` gets it; a rule that drops is an
    /// error already.
    #[inline]
    fn decide(
        &mut self,
        batch: &mut Batch,
        tables: &Tables,
        is_asked: impl Fn(&Descriptor) -> bool,
        mut with: impl FnMut(&mut Descriptor, Result<(RuleIndex, Action), DropReason>, &RuleCounters),
    ) {
        let is_asked = |descriptor: &Descriptor| descriptor.is_unknown() && is_asked(descriptor);
        let asked = batch.iter().filter(|descriptor| is_asked(descriptor));
        let facts: ArrayVec<Facts, BATCH> = asked.map(facts).collect();
        let mut decisions = [Decision::UNMATCHED; BATCH];
        let looked_up = self
            .cache
            .classify_all(&tables.rules, &facts, &mut decisions[..facts.len()]);
        let descriptors = batch.iter_mut().filter(|descriptor| is_asked(descriptor));
        for (((number, descriptor), facts), decision) in (0u32..).zip(descriptors).zip(&facts).zip(&decisions)
        {
            let is_new = looked_up >> number & 1 == 1;
            let action = self.count(
                decision,
                is_new.then(|| tables.rules.generation()),
                descriptor.direction,
                facts,
            );
            let rule = action.ok().map(|(rule, _)| rule);
            descriptor.mirror = rule.and_then(|rule| tables.mirror_of(rule));
            descriptor.rule = rule.filter(|_| decision.watched.is_none() && descriptor.mirror.is_none());
            with(descriptor, action, &self.counters);
        }
    }

    /// Counts what a rule has met, and samples it if the flow is new to this generation of the rules.
    #[inline]
    fn count(
        &mut self,
        decision: &Decision,
        is_new: Option<NonZeroU32>,
        direction: Direction,
        facts: &Facts,
    ) -> Result<(RuleIndex, Action), DropReason> {
        let mut sample = |rule, enforced| {
            if let Some(generation) = is_new.filter(|_| self.counters.is_logged(rule)) {
                self.samples.push(Sample {
                    generation,
                    rule,
                    enforced,
                    direction,
                    facts: *facts,
                });
            }
        };
        if let Some(rule) = decision.watched {
            self.counters.would_meet(rule);
            sample(rule, false);
        }
        if let Verdict::Matched { rule, .. } = decision.verdict {
            self.counters.met(rule);
            sample(rule, true);
        }
        allowed(decision.verdict)
    }

    /// Look-ups that the cache has answered, and those that it has not.
    #[must_use]
    pub fn cached(&self) -> (u64, u64) {
        (self.cache.hits + self.ways.hits, self.cache.misses)
    }

    /// Packets that took the way of an earlier one of their flow.
    #[must_use]
    pub fn known(&self) -> u64 {
        self.ways.hits
    }

    /// Samples that found no room on their way to the log.
    #[must_use]
    pub fn lost_samples(&self) -> u64 {
        self.samples.lost()
    }
}

/// Classifies what guests sent: to another guest of this host, or to the uplink, sealed or not.
pub fn classify_guest(batch: &mut Batch, tables: &Tables, decisions: &mut Decisions) {
    // The answer to what the guest asked has its way already.
    let is_asked = |descriptor: &Descriptor| descriptor.egress.is_none();
    decisions.decide(batch, tables, is_asked, |descriptor, action, _| {
        match action.and_then(|(_, action)| route(descriptor, action, tables)) {
            Ok(egress) => descriptor.egress = Some(egress),
            Err(reason) => descriptor.drop_for(reason),
        }
    });
}

fn route(descriptor: &mut Descriptor, action: Action, tables: &Tables) -> Result<Egress, DropReason> {
    if let Some(to) = descriptor
        .destination
        .filter(|endpoint| endpoint.host == tables.host)
    {
        return tables
            .local_port(to.port)
            .map(Egress::Guest)
            .ok_or(DropReason::PortGone);
    }
    descriptor.overlay = tables.carrier(descriptor.network).is_some();
    if descriptor.overlay {
        // A copy for a group that has waited for a session keeps its host.
        let host = descriptor.destination.map(|endpoint| endpoint.host);
        descriptor.peer = host.or(descriptor.peer);
    }
    match action {
        Action::Plaintext => Ok(Egress::Uplink(SentAs::Plaintext)),
        Action::Drop => Err(DropReason::RuleDrops),
        Action::Seal { .. }
            if !descriptor.overlay && (descriptor.packet.is_group() || descriptor.packet.l3 != L3::Ip) =>
        {
            Err(DropReason::NotSealable)
        }
        Action::Seal { key, protection } => {
            descriptor.seal = Some((key, protection));
            Ok(Egress::Uplink(SentAs::under(protection)))
        }
    }
}

/// Classifies what came from the uplink, opened or in plaintext, and checks that it came as its rule says.
pub fn classify_uplink(batch: &mut Batch, tables: &Tables, decisions: &mut Decisions) {
    let is_asked = |_: &Descriptor| true;
    decisions.decide(batch, tables, is_asked, |descriptor, action, counters| {
        let checked = action.and_then(|(rule, action)| {
            let came = match descriptor.seal {
                Some((key, protection)) => Action::Seal { key, protection },
                None => Action::Plaintext,
            };
            match (action, came) {
                (Action::Plaintext | Action::Seal { .. }, came) if action == came => Ok(()),
                (Action::Plaintext | Action::Seal { .. }, came) if tables.also_accepts(rule, came) => {
                    counters.also_accepted(rule);
                    descriptor.rule = None;
                    Ok(())
                }
                (Action::Seal { .. }, Action::Plaintext) => Err(DropReason::RuleWantsSealed),
                (_, Action::Seal { .. }) => Err(DropReason::KeyNotOfRule),
                (_, _) => Err(DropReason::RuleDrops),
            }
        });
        match checked {
            Err(reason) => descriptor.drop_for(reason),
            // Groups have no single receiver: `deliver` copies them.
            Ok(()) => match descriptor
                .destination
                .and_then(|endpoint| tables.local_port(endpoint.port))
            {
                Some(port) => descriptor.egress = Some(Egress::Guest(port)),
                None if descriptor.packet.is_group() => {}
                None => descriptor.drop_for(DropReason::PortGone),
            },
        }
    });
}

/// Whether a packet for a group may reach one guest that is in it: whether a rule lets the guest have what the sender sends,
/// whatever form it has on the wire.
///
/// # Errors
/// What drops it.
pub fn reaches(
    descriptor: &Descriptor,
    receiver: &Endpoint,
    own: WorkerId,
    tables: &Tables,
) -> Result<(), DropReason> {
    let mut facts = facts(descriptor);
    facts.destination.guest = Some(receiver.guest);
    let verdict = tables.rules.classify(&facts).verdict;
    let allowed = allowed(verdict).map(drop);
    if let (Verdict::Matched { rule, .. }, Err(_)) = (verdict, allowed)
        && let Some(counters) = tables.rule_counters(own)
    {
        counters.met(rule);
    }
    allowed
}

/// The rule that lets a packet pass, and as what.
#[inline]
fn allowed(verdict: Verdict) -> Result<(RuleIndex, Action), DropReason> {
    match verdict {
        Verdict::Matched {
            action: Action::Drop, ..
        } => Err(DropReason::RuleDrops),
        Verdict::Matched { rule, action } => Ok((rule, action)),
        Verdict::NoRule => Err(DropReason::NoRule),
        Verdict::FragmentNeedsPorts => Err(DropReason::FragmentNeedsPorts),
    }
}

/// What a rule may test of a packet.
#[must_use]
pub fn facts(descriptor: &Descriptor) -> Facts {
    let packet: &Packet = &descriptor.packet;
    let is_ip = packet.l3 == L3::Ip;
    Facts {
        network: descriptor.network,
        ethertype: packet.ethertype,
        vlan: packet.vlan,
        protocol: is_ip.then_some(packet.protocol),
        ports: match (packet.fragment, packet.ports) {
            (Fragment::NonFirst, _) => Ports::Unreadable,
            (_, Some((source, destination))) => Ports::Pair { source, destination },
            (_, None) => Ports::None,
        },
        icmp: packet.icmp,
        dscp: packet.dscp,
        opening: is_ip && packet.protocol == TCP && packet.tcp_flags & (SYN | ACK) == SYN,
        source: Party {
            guest: descriptor.source.map(|endpoint| endpoint.guest),
            address: is_ip.then_some(packet.source),
        },
        destination: Party {
            guest: descriptor.destination.map(|endpoint| endpoint.guest),
            address: is_ip.then_some(packet.destination),
        },
    }
}
