//! How long packets to peers may be: probes leave whole, and what they find reaches the tables.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};

use guestseal_rules::model::HostIndex;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};

use crate::keys::handshake::output::PeerId;
use crate::keys::handshake::pmtu::{CEILING, FLOOR};
use crate::path::tables::PathMtu;

use super::Sessions;
use super::scope::KnownPeer;

/// Lets what a socket sends leave whole or not at all, whatever the kernel believes of the way: "don't fragment" is set, and
/// only the interface's own MTU is heeded (RFC 8899 4.1).
pub(super) fn leave_whole(socket: &UdpSocket) -> io::Result<()> {
    if socket.local_addr()?.is_ipv4() {
        set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE)?;
    } else {
        set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE)?;
    }
    Ok(())
}

impl Sessions {
    /// Sends a datagram that is filled up to a length. What the kernel refuses is lost, as on the way.
    pub(super) fn probe(&self, to: SocketAddr, datagram: &[u8], length: usize) {
        let mut bytes = [0; CEILING as usize];
        let padded = bytes
            .get_mut(..length)
            .filter(|padded| padded.len() >= datagram.len());
        if let (Some(socket), Some(padded)) = (self.towards(to), padded) {
            padded[..datagram.len()].copy_from_slice(datagram);
            // A lost probe says what it is for.
            let _ = socket.send_to(padded, to);
        }
    }

    /// Packets to a peer may be so long.
    pub(super) fn found_path_mtu(&mut self, peer: PeerId, mtu: u16) {
        if let Some(&KnownPeer { host, remote, .. }) = self.scope.peer(peer) {
            self.path_mtus.push((host, PathMtu { towards: remote, mtu }));
        }
    }

    /// Packets of [`FLOOR`] bytes do not pass to a peer.
    pub(super) fn say_narrow(&self, peer: PeerId) {
        if let Some(KnownPeer { host, remote, .. }) = self.scope.peer(peer) {
            tracing::error!(
                "host {} at {remote}: packets of {FLOOR} bytes do not pass, though every link must take them: guests' packets near that \
                 size are lost on the way",
                self.policy.hosts[host.index()].name
            );
        }
    }

    /// Brings what is known of the ways to hosts up to date, and says it. Whether something was news.
    pub fn follow_path_mtus(&mut self, known: &mut HashMap<HostIndex, PathMtu>) -> bool {
        let mut is_news = false;
        for (host, found) in std::mem::take(&mut self.path_mtus) {
            let before = known.get(&host).filter(|before| before.towards == found.towards);
            let before = before.map_or(self.uplink_mtu, |before| before.mtu.into());
            let mtu = usize::from(found.mtu);
            // Without an entry it is what the uplink takes.
            if mtu == before {
                continue;
            }
            is_news = true;
            known.insert(host, found);
            let (name, towards) = (&self.policy.hosts[host.index()].name, found.towards);
            if mtu < before {
                tracing::warn!(
                    "host {name} at {towards}: only packets of {mtu} bytes pass, of {before} before"
                );
            } else {
                tracing::info!("host {name} at {towards}: packets of {mtu} bytes pass, of {before} before");
            }
        }
        is_news
    }
}
