//! How other hosts are reached: by the kernel's routes and neighbours, in both families, looked at whenever the kernel tells
//! that they have changed.
//!
//! An address is reached by the MAC of its next hop, the host itself or a gateway, if the route leads out of the uplink. When
//! the route changes, the MAC is unknown until the new next hop's is there: nothing goes to an old gateway.
//! Workers' packets do not pass the kernel, which therefore does not notice when a neighbour is silent: one that it has not
//! heard for a while is asked for now and then.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use guestseal_rules::model::{HostIndex, NetworkIndex};

use crate::path::endpoints::Endpoints;
use crate::path::tables::NextHops;
use crate::wire::ethernet::MacAddress;

use super::config::{HostConfig, SaMode};
use super::link;
use super::news::News;

/// How often it is looked at while something is asked for, or where the kernel tells nothing.
const SOON: Duration = Duration::from_secs(1);
/// How often it is looked at though nothing was told.
const SELDOM: Duration = Duration::from_secs(30);

/// What is known of the ways to other hosts.
#[derive(Debug, Default)]
pub struct Reach {
    /// For each address the next hop, and its MAC once it was seen.
    ways: HashMap<IpAddr, (IpAddr, Option<MacAddress>)>,
    /// Addresses whose next hop's MAC was not there at the last look.
    waiting: usize,
}

/// The addresses that tunnels, overlays and sessions go to, with the numbers of their hosts.
#[must_use]
pub fn far_ends(
    config: &HostConfig,
    endpoints: &Endpoints,
    sessions: impl Iterator<Item = HostIndex>,
) -> Vec<(usize, IpAddr)> {
    let policy = &config.policy;
    let is_overlay = |network: NetworkIndex| !policy.is_flat(network);
    let sealed = config
        .sas
        .iter()
        .filter(|sa| sa.mode == SaMode::Tunnel || is_overlay(sa.network))
        .map(|sa| sa.peer.index());
    let networks = (0..policy.networks.len() as u16).map(NetworkIndex);
    let bare = networks
        .filter(|network| is_overlay(*network))
        .flat_map(|network| endpoints.hosts_of(network))
        .map(|host| host.index())
        .filter(|host| *host != config.host.index());
    let sessions = sessions.map(|host| host.index());
    let hosts: BTreeSet<usize> = sealed.chain(bare).chain(sessions).collect();
    hosts
        .into_iter()
        .flat_map(|host| policy.hosts[host].addresses.iter().map(move |one| (host, *one)))
        .collect()
}

impl Reach {
    /// When to look again, though the kernel tells nothing: soon as long as a MAC is asked for.
    #[must_use]
    pub fn look_again(&self, is_told: bool) -> Duration {
        if is_told && self.waiting == 0 {
            SELDOM
        } else {
            SOON
        }
    }

    /// Whether what the kernel tells may change a way.
    #[must_use]
    pub fn concerns(&self, news: &News) -> bool {
        let is_another = |(address, mac): &(IpAddr, Option<MacAddress>)| {
            let mut ways = self.ways.values();
            ways.any(|(via, known)| via == address && known != mac)
        };
        news.uplink || news.routes || news.anything || news.neighbours.iter().any(is_another)
    }

    /// Looks at the ways to these addresses; what is not known is asked for. Changes the MACs of those whose way has changed.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn look(
        &mut self,
        uplink: u32,
        ends: &[(usize, IpAddr)],
        next_hops: &mut [NextHops],
    ) -> std::io::Result<()> {
        self.waiting = 0;
        if ends.is_empty() {
            return Ok(());
        }
        let known = link::neighbours(uplink)?;
        for (host, address) in ends {
            let Some(next_hop) = next_hops.get_mut(*host) else {
                continue;
            };
            let mac = match link::next_hop(*address, uplink) {
                Some(via) => {
                    let seen = known.iter().find(|neighbour| neighbour.address == via);
                    let before = self.ways.get(address).filter(|(before, _)| *before == via);
                    self.waiting += usize::from(seen.is_none());
                    if seen.is_none_or(|seen| seen.is_stale) {
                        link::solicit(*address);
                    }
                    // An entry that the kernel has dropped is asked for; until the answer comes the old one is as good.
                    let mac = seen
                        .map(|seen| seen.mac)
                        .or_else(|| before.and_then(|(_, mac)| *mac));
                    self.ways.insert(*address, (via, mac));
                    mac
                }
                None => {
                    self.ways.remove(address);
                    None
                }
            };
            *next_hop.towards_mut(*address) = mac;
        }
        Ok(())
    }
}
