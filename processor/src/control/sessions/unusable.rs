//! Ends sessions that no guests may use any more: something has happened to a guest, and nobody is left on the two hosts
//! between whom a rule seals under that key.
//!
//! On the guest's host and on its peers alike, each by the rules that are in force there. Whoever ends a session first tells the
//! other; one that does not know yet what has happened may make it anew, and ends it when it does. Only guests that send to
//! each other count: what an overlay seals to a group makes a session anew when it is sent.
//!
//! Bounded work a turn: hosts that are left are looked at in the next ones. For one host, with 10,000 random rules, 17,742 entries
//! of which hundreds are for all traffic, and 167 addresses on either side, the look took 2.3 ms about one rule's key, 4.9 ms
//! about a key of a hundred rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use guestseal_rules::classify::Action;
use guestseal_rules::compile::{Ruleset, Seat};
use guestseal_rules::model::{HostIndex, NetworkIndex, PortIndex, RuleIndex};

use crate::control::config::HostConfig;
use crate::keys::handshake::output::{Pair, PeerId};
use crate::path::endpoints::addresses_of;

use super::scope::Carried;
use super::{Sessions, clocks};

/// A turn that has looked for so long looks at no other host.
const SLICE: Duration = Duration::from_millis(1);

/// What is to be looked at.
#[derive(Debug, Default)]
pub(super) struct Doubtful {
    pairs: BTreeSet<Pair>,
    ports: Option<PortsByHost>,
}

/// The ports of each host, as a configuration has them.
#[derive(Debug)]
struct PortsByHost {
    config: Arc<HostConfig>,
    ports: Vec<Vec<PortIndex>>,
}

impl PortsByHost {
    fn new(config: &Arc<HostConfig>) -> Self {
        let mut ports = vec![Vec::new(); config.policy.hosts.len()];
        for (number, port) in (0u32..).map(PortIndex).zip(&config.policy.ports) {
            ports[config.host_of(port.guest).index()].push(number);
        }
        let config = Arc::clone(config);
        Self { config, ports }
    }

    /// What guests of a host may send from and be sent in a network: their addresses; of routers any.
    fn seats(&self, host: HostIndex, network: NetworkIndex) -> impl Iterator<Item = Seat> {
        let policy = &self.config.policy;
        let ports = self.ports[host.index()].iter();
        let ports = ports.map(|port| &policy.ports[port.index()]);
        let of_network = ports.filter(move |port| port.network == network);
        of_network.flat_map(|port| {
            let any = port.router.then_some(None);
            let addresses = addresses_of(port).map(Some).chain(any);
            addresses.map(|address| Seat {
                guest: port.guest,
                address,
            })
        })
    }
}

impl Doubtful {
    /// Whether something is left to look at.
    pub(super) fn is_due(&self) -> bool {
        !self.pairs.is_empty()
    }

    /// A peer and its pairs, once.
    fn next(&mut self) -> Option<(PeerId, Vec<Pair>)> {
        let peer = self.pairs.first()?.peer;
        let pairs = self.pairs.extract_if(.., |pair| pair.peer == peer);
        Some((peer, pairs.collect()))
    }

    fn ports(&mut self, config: &Arc<HostConfig>) -> &PortsByHost {
        let known = self.ports.take_if(|known| Arc::ptr_eq(&known.config, config));
        self.ports
            .insert(known.unwrap_or_else(|| PortsByHost::new(config)))
    }
}

impl Sessions {
    /// Something has happened to guests of these hosts.
    pub fn doubt(&mut self, hosts: &BTreeSet<HostIndex>, own: HostIndex) {
        let all = hosts.contains(&own);
        let doubtful = self.engine.live_pairs().filter(|pair| {
            let peer = self.scope.peer(pair.peer);
            all || peer.is_some_and(|peer| hosts.contains(&peer.host))
        });
        self.doubtful.pairs.extend(doubtful);
    }

    /// Ends those of the sessions in doubt that no guests may use under these rules.
    pub fn end_unusable(&mut self, config: &Arc<HostConfig>, rules: &Ruleset) {
        let begin = Instant::now();
        while begin.elapsed() < SLICE
            && let Some((peer, pairs)) = self.doubtful.next()
        {
            for pair in self.unusable(peer, pairs, config, rules) {
                self.engine.end_unusable(pair, clocks());
            }
        }
    }

    /// Of the pairs of a peer those that no guests may use.
    fn unusable(
        &mut self,
        peer: PeerId,
        pairs: Vec<Pair>,
        config: &Arc<HostConfig>,
        rules: &Ruleset,
    ) -> Vec<Pair> {
        let Some(peer) = self.scope.peer(peer) else {
            return Vec::new();
        };
        let mut by_network: BTreeMap<NetworkIndex, Vec<(Pair, Carried)>> = BTreeMap::new();
        for pair in pairs {
            if let Some((_, carried)) = self.scope.meaning(pair) {
                by_network
                    .entry(carried.network)
                    .or_default()
                    .push((pair, carried));
            }
        }
        let ports = self.doubtful.ports(config);
        let seals = |rule: RuleIndex, Carried { protection, key, .. }: Carried| {
            let action = Action::Seal { protection, key };
            let rule = config.policy.rules.get(rule.index());
            rule.is_some_and(|rule| rule.actions().any(|one| one == action))
        };
        let mut unusable = Vec::new();
        for (network, pairs) in by_network {
            let meeting = rules.meeting(network, |rule| {
                pairs.iter().any(|(_, carried)| seals(rule, *carried))
            });
            let [ours, theirs] =
                [config.host, peer.host].map(|host| meeting.side(ports.seats(host, network)));
            let gone = pairs
                .iter()
                .filter(|(_, carried)| !meeting.may_meet(&ours, &theirs, |rule| seals(rule, *carried)));
            unusable.extend(gone.map(|(pair, _)| *pair));
        }
        unusable
    }
}
