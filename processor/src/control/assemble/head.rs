//! How much room the XDP program of a guest port makes in front of what the guest sends, so that it is sealed where it is.
//!
//! It is the same for every packet and as long as the port is open, so it must be known beforehand: with every SA that may seal what
//! comes from there just as many bytes go in front. Where that is not so there is none, and everything is sealed into fresh
//! frames. Nothing depends on it but what sealing costs: what does not fit the room goes out of place.

use std::net::IpAddr;

use guestseal_rules::model::NetworkIndex;

use crate::control::config::HostConfig;
use crate::control::manual_sa;
use crate::path::seal::in_front;
use crate::port::umem::HEADROOM;
use crate::sa::outbound::Mode;

use super::LONGEST_ETHERNET;

/// Bytes in front of what comes from an interface.
pub(super) fn of(interface: &str, config: &HostConfig, mtu: usize) -> u8 {
    if !config.in_place {
        return 0;
    }
    let behind_it = config.local_ports().filter(|(_, its)| its.name == interface);
    let networks = behind_it.map(|(port, _)| config.policy.ports[port.index()].network);
    let modes: Vec<Mode> = networks.flat_map(|network| modes(network, config)).collect();
    let mut heads = modes.into_iter().map(in_front);
    let Some(head) = heads.next() else { return 0 };
    // In copy mode the room is in the frame.
    let fits = mtu + LONGEST_ETHERNET + head + HEADROOM <= config.umem.frame_size as usize;
    if fits && heads.all(|other| other == head) {
        head as u8
    } else {
        0
    }
}

/// How what a guest of a network sends may be sealed, once for each form.
fn modes(network: NetworkIndex, config: &HostConfig) -> Vec<Mode> {
    let of_network = config.sas.iter().filter(|sa| sa.network == network);
    let manual = of_network.filter_map(|sa| manual_sa::mode(sa, config).ok());
    let hosts = &config.policy.hosts;
    let addresses = hosts.iter().flat_map(|host| host.addresses.iter().copied());
    let of_sessions = config.sessions.iter().flat_map(|sessions| {
        let in_udp = sessions.udp_encapsulation.then_some(0);
        // Which of its addresses a session is between is not known here.
        addresses.clone().map(move |address: IpAddr| {
            let (local, remote) = (address, address);
            if config.policy.is_flat(network) {
                Mode::Tunnel { local, remote }
            } else {
                Mode::Overlay {
                    local,
                    remote,
                    udp_source: in_udp,
                }
            }
        })
    });
    manual.chain(of_sessions).collect()
}
