//! The ways to other hosts, from the kernel to the tables.

use crate::control::assemble::DataPlane;
use crate::control::reach;
use crate::control::sessions::Sessions;

use super::Control;

impl Control {
    /// Takes what the kernel tells. Whether ways to other hosts may be others.
    pub(super) fn take_news(&mut self, plane: &mut DataPlane) -> bool {
        let news = self.news.as_ref().map(|news| news.take(plane.uplink.index));
        let news = news.unwrap_or_default();
        if news.uplink && plane.follow_uplink() {
            let (mac, mtu) = (plane.uplink.mac, plane.uplink.mtu);
            tracing::info!("uplink {}: MAC {mac}, MTU {mtu}", plane.uplink.name);
            let longest = plane.longest_packet();
            if longest < mtu {
                tracing::warn!(
                    "uplink {}: packets of more than {longest} bytes have no room in frames of the UMEM: restart, which makes frames for them",
                    plane.uplink.name
                );
            }
            plane.publish(&self.plan);
        }
        self.reach.concerns(&news)
    }

    /// Finds the MACs that lead to the hosts that tunnels and overlays go to.
    pub(super) fn follow_ways(&mut self, plane: &mut DataPlane) {
        let peers = self.sessions.iter().flat_map(Sessions::peers);
        let ends = reach::far_ends(&self.plan.config, &self.plan.endpoints, peers);
        let mut next_hops = self.plan.next_hops.clone();
        if let Err(error) = self.reach.look(plane.uplink.index, &ends, &mut next_hops) {
            return tracing::error!("the kernel's routes and neighbours cannot be read: {error}");
        }
        if next_hops != self.plan.next_hops {
            let hosts = self
                .plan
                .config
                .policy
                .hosts
                .iter()
                .zip(&next_hops)
                .zip(&self.plan.next_hops);
            for ((host, now), before) in hosts {
                for address in &host.addresses {
                    match (before.towards(*address), now.towards(*address)) {
                        (before, Some(mac)) if before != Some(mac) => {
                            tracing::info!("host {} is reached by {mac} at {address}", host.name);
                        }
                        (Some(_), None) => {
                            tracing::warn!("host {} is not reached at {address} any more", host.name);
                        }
                        _ => {}
                    }
                }
            }
            self.plan.next_hops = next_hops;
            plane.publish(&self.plan);
        }
    }
}
