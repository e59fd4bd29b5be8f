//! How other hosts are reached: by the kernel's routes and neighbours, in both families, looked at again and again.
//!
//! An address is reached by the MAC of its next hop, the host itself or a gateway, if the route leads out of the uplink. When
//! the route changes, the MAC is unknown until the new next hop's is there: nothing goes to an old gateway.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use guestseal_rules::model::{HostIndex, NetworkIndex};

use crate::path::endpoints::Endpoints;
use crate::path::tables::NextHops;
use crate::wire::ethernet::MacAddress;

use super::config::{HostConfig, SaMode};
use super::link;

/// What is known of the ways to other hosts.
#[derive(Debug, Default)]
pub struct Reach {
    /// For each address the next hop, and its MAC once it was seen.
    ways: HashMap<IpAddr, (IpAddr, Option<MacAddress>)>,
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
                    let seen = known.iter().find(|(neighbour, _)| *neighbour == via);
                    let before = self.ways.get(address).filter(|(before, _)| *before == via);
                    if seen.is_none() {
                        link::solicit(*address);
                    }
                    // An entry that the kernel has dropped is asked for; until the answer comes the old one is as good.
                    let mac = seen
                        .map(|(_, mac)| *mac)
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
