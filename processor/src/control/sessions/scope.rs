//! What sessions can be for, and with whom: channels and peers of a policy, and their numbers in the engine.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use guestseal_rules::classify::{Action, Protection};
use guestseal_rules::model::{HostIndex, KeyIndex, NetworkIndex, NetworkKind, Policy, Selector, Term};

use crate::keys::derive::Channel;
use crate::keys::handshake::output::{ChannelId, Pair, PeerId};
use crate::keys::handshake::shared::Peer;
use crate::keys::identity::PublicKey;
use crate::path::tables::between;
use crate::sa::table::OutboundKey;

/// What one channel carries, by the policy's numbers.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Carried {
    /// The logical network.
    pub network: NetworkIndex,
    /// The rule key.
    pub key: KeyIndex,
    /// What rules do with it.
    pub protection: Protection,
}

/// A host that this one can have sessions with.
#[derive(Clone, Debug)]
pub struct KnownPeer {
    /// The host.
    pub host: HostIndex,
    /// This host's address that leads to it.
    pub local: IpAddr,
    /// Its address.
    pub remote: IpAddr,
}

/// The channels and peers of one host.
#[derive(Clone, Debug)]
pub struct Scope {
    /// By the engine's numbers; those that are no more among them.
    channels: Vec<Carried>,
    /// By the engine's numbers; those that are no more among them.
    peers: Vec<KnownPeer>,
    by_carried: HashMap<Carried, ChannelId>,
    by_host: HashMap<HostIndex, PeerId>,
}

/// Why there can be no sessions.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// No host to have any with.
    #[error(
        "no other host of the policy has a public key and an address of a family that host {host} has: expected \
         public-key at each host that is to have sessions"
    )]
    Alone {
        /// This host.
        host: String,
    },
    /// A point that is no public key.
    #[error(
        "the public key of host {host} is none that a host could have: give it the one that guestseal key public prints there"
    )]
    BadKey {
        /// The host.
        host: String,
    },
    /// Too many channels.
    #[error(
        "the rules seal {count} pairs of key and network: expected at most 65536; rules whose from or to names a network or \
         guest seal in that network only"
    )]
    Channels {
        /// How many there are.
        count: usize,
    },
    /// All numbers have been used.
    #[error(
        "so many pairs of key and network have come and gone that no number is left for another one: restart guestseal"
    )]
    Used,
}

impl Scope {
    /// Those of a policy, for one of its hosts.
    ///
    /// # Errors
    /// See [`ScopeError`].
    pub fn new(policy: &Policy, host: HostIndex) -> Result<Self, ScopeError> {
        let none = Self {
            channels: Vec::new(),
            peers: Vec::new(),
            by_carried: HashMap::new(),
            by_host: HashMap::new(),
        };
        none.after(policy, host)
    }

    /// Those of a policy that comes after: who is the same peer, and what is the same channel, keeps its number.
    ///
    /// # Errors
    /// See [`ScopeError`].
    pub fn after(&self, policy: &Policy, host: HostIndex) -> Result<Self, ScopeError> {
        let wanted = channels(policy);
        if wanted.len() > usize::from(u16::MAX) {
            let count = wanted.len();
            return Err(ScopeError::Channels { count });
        }
        let own = &policy.hosts[host.index()];
        let reach = |number: usize| {
            let other = policy.hosts.get(number)?;
            let (local, remote) = between(&own.addresses, &other.addresses)?;
            let host = HostIndex(number as u16);
            (!other.public_keys.is_empty()).then_some(KnownPeer { host, local, remote })
        };
        let others = (0..policy.hosts.len()).filter(|number| *number != host.index());
        let reached: Vec<KnownPeer> = others.filter_map(reach).collect();
        if reached.is_empty() {
            let host = own.name.clone();
            return Err(ScopeError::Alone { host });
        }
        let mut next = Self {
            by_carried: HashMap::new(),
            by_host: HashMap::new(),
            ..self.clone()
        };
        let numbers: HashMap<Carried, usize> = (0..).zip(&self.channels).map(swap).collect();
        for carried in wanted {
            let number = numbers.get(&carried).copied().unwrap_or_else(|| {
                next.channels.push(carried);
                next.channels.len() - 1
            });
            let number = u16::try_from(number).map_err(|_| ScopeError::Used)?;
            next.by_carried.insert(carried, ChannelId(number));
        }
        for peer in reached {
            let known = next.peers.iter().position(|known| known.host == peer.host);
            let number = known.unwrap_or(next.peers.len());
            next.by_host.insert(peer.host, PeerId(number as u16));
            match next.peers.get_mut(number) {
                Some(known) => *known = peer,
                None => next.peers.push(peer),
            }
        }
        Ok(next)
    }

    /// The peers that there are.
    pub fn peers(&self) -> impl Iterator<Item = &KnownPeer> {
        self.peers
            .iter()
            .filter(|peer| self.by_host.contains_key(&peer.host))
    }

    /// What rules seal.
    pub fn channels(&self) -> impl Iterator<Item = Carried> + '_ {
        let channels = self.channels.iter().copied();
        channels.filter(|carried| self.by_carried.contains_key(carried))
    }

    /// The channels as the engine wants them: none where a number is of one that is no more.
    #[must_use]
    pub fn engine_channels(&self, policy: &Policy) -> Vec<Option<Channel>> {
        let channel = |carried: &Carried| {
            self.by_carried.get(carried)?;
            let key = &policy.keys[carried.key.index()];
            Some(Channel {
                network: policy.networks[carried.network.index()].name.clone(),
                key: key.id.clone(),
                protection: carried.protection,
                suite: key.suite,
            })
        };
        self.channels.iter().map(channel).collect()
    }

    /// The peers as the engine wants them: none where a number is of one that is no more.
    ///
    /// # Errors
    /// See [`ScopeError::BadKey`].
    pub fn engine_peers(&self, policy: &Policy, port: u16) -> Result<Vec<Option<Peer>>, ScopeError> {
        let peer = |known: &KnownPeer| {
            if !self.by_host.contains_key(&known.host) {
                return Ok(None);
            }
            let host = &policy.hosts[known.host.index()];
            let keys: Option<Vec<PublicKey>> = host
                .public_keys
                .iter()
                .map(|key| PublicKey::of_bytes(*key))
                .collect();
            Ok(Some(Peer {
                address: SocketAddr::new(known.remote, port),
                public_keys: keys.ok_or_else(|| ScopeError::BadKey {
                    host: host.name.clone(),
                })?,
            }))
        };
        self.peers.iter().map(peer).collect()
    }

    /// The engine's numbers of what a packet needs.
    #[must_use]
    pub fn pair(&self, wanted: &OutboundKey) -> Option<Pair> {
        let carried = Carried {
            network: wanted.network,
            key: wanted.key,
            protection: wanted.protection,
        };
        Some(Pair {
            peer: *self.by_host.get(&wanted.peer)?,
            channel: *self.by_carried.get(&carried)?,
        })
    }

    /// A peer by the engine's number.
    #[must_use]
    pub fn peer(&self, peer: PeerId) -> Option<&KnownPeer> {
        self.peers.get(usize::from(peer.0))
    }

    /// The peer and what a pair carries.
    #[must_use]
    pub fn meaning(&self, pair: Pair) -> Option<(&KnownPeer, Carried)> {
        let peer = self.peer(pair.peer)?;
        Some((peer, *self.channels.get(usize::from(pair.channel.0))?))
    }

    /// What outbound SAs of a pair are found by.
    #[must_use]
    pub fn outbound_key(&self, pair: Pair) -> Option<OutboundKey> {
        let (peer, carried) = self.meaning(pair)?;
        Some(OutboundKey {
            key: carried.key,
            protection: carried.protection,
            network: carried.network,
            peer: peer.host,
        })
    }
}

fn swap((number, carried): (usize, &Carried)) -> (Carried, usize) {
    (*carried, number)
}

/// What rules seal: each of their keys in each network that they can mean.
fn channels(policy: &Policy) -> Vec<Carried> {
    let mut seen = std::collections::HashSet::new();
    let mut channels = Vec::new();
    for rule in &policy.rules {
        let (from, to) = (networks_of(policy, &rule.from), networks_of(policy, &rule.to));
        for (protection, key) in rule.actions().filter_map(sealing) {
            let there = (0..).map(NetworkIndex).zip(&policy.networks);
            for (network, _) in there.filter(|(_, network)| network.kind != NetworkKind::Retired) {
                let meant = |networks: &Option<Vec<NetworkIndex>>| {
                    networks.as_ref().is_none_or(|all| all.contains(&network))
                };
                let carried = Carried {
                    network,
                    key,
                    protection,
                };
                if meant(&from) && meant(&to) && seen.insert(carried) {
                    channels.push(carried);
                }
            }
        }
    }
    channels
}

fn sealing(action: Action) -> Option<(Protection, KeyIndex)> {
    match action {
        Action::Seal { protection, key } => Some((protection, key)),
        _ => None,
    }
}

/// The networks that a selector can mean, if it says so.
fn networks_of(policy: &Policy, selector: &Selector) -> Option<Vec<NetworkIndex>> {
    match selector {
        Selector::Any => None,
        Selector::All(terms) => terms.iter().find_map(|term| match term {
            Term::Network(network) => Some(vec![*network]),
            Term::Guest(guest) => {
                let ports = policy.ports.iter().filter(|port| port.guest == *guest);
                Some(ports.map(|port| port.network).collect())
            }
            _ => None,
        }),
        Selector::OneOf(selectors) => {
            let each = selectors.iter().map(|one| networks_of(policy, one));
            each.collect::<Option<Vec<_>>>().map(|all| all.concat())
        }
    }
}

#[cfg(test)]
mod tests {
    use guestseal_rules::load::{Source, load_policy};

    use super::*;

    fn policy(change: impl Fn(String) -> String) -> Policy {
        let demo = include_str!("../../../../rules/examples/demo/policy.yaml").to_owned();
        let (name, text) = ("policy.yaml".to_owned(), change(demo));
        load_policy(&[Source { name, text }]).unwrap()
    }

    fn with_key(text: String) -> String {
        let host = "{name: h2, ";
        assert!(text.contains(host));
        text.replace(host, &format!("{host}public-key: \"{}\", ", "09".repeat(32)))
    }

    #[test]
    fn a_rule_seals_in_the_networks_that_it_can_mean() {
        let policy = policy(with_key);
        let scope = Scope::new(&policy, HostIndex(0)).unwrap();
        let names: Vec<(&str, &str)> = scope
            .channels()
            .map(|carried| {
                let key = &policy.keys[carried.key.index()];
                (&*policy.networks[carried.network.index()].name, &*key.id)
            })
            .collect();
        // Labels may be any network's guests'.
        let both = [("blue", "blue-web"), ("red", "blue-web")];
        assert!(both.iter().all(|one| names.contains(one)), "{names:?}");
        for (network, key) in [("blue", "blue-any"), ("red", "red-any"), ("blue", "blue-remedy")] {
            let of_key: Vec<_> = names.iter().filter(|(_, one)| *one == key).collect();
            assert_eq!(of_key, [&(network, key)]);
        }
        for number in 0..scope.channels().count() as u16 {
            let pair = Pair {
                peer: PeerId(0),
                channel: ChannelId(number),
            };
            let wanted = scope.outbound_key(pair).unwrap();
            assert_eq!((wanted.peer, scope.pair(&wanted)), (HostIndex(1), Some(pair)));
        }
    }

    #[test]
    fn who_has_no_public_key_is_no_peer() {
        let policy = policy(|text| text);
        let error = Scope::new(&policy, HostIndex(0)).unwrap_err();
        assert!(error.to_string().contains("public-key"), "{error}");
    }
}
