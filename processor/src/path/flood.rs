//! Head-end replication: what an overlay has for a group or for a MAC that nobody declared goes to every other host of the
//! network, one copy each, at most so many a second from one guest port.

use super::batch::{Batch, Descriptor};
use super::context::Context;
use super::deliver::{Exits, Ledger, duplicate};
use super::outbound::select_and_send;
use super::outcome::{Direction, DropReason};

/// Guest ports whose rates are kept apart: those whose local numbers differ by so much share one.
const PORTS: usize = 1024;
/// Frames that a port may send at once after a pause.
const BURST: u64 = 256;
const SECOND: u64 = 1_000_000_000;

/// What one worker's guest ports may still send for copying. The clock is the frames' time of arrival.
#[derive(Debug)]
pub struct Floods {
    /// Frames a second for each port.
    rate: u64,
    /// For each port until when what it has sent is paid for, in ns: never more than a burst ahead of now.
    paid_until: Box<[u64]>,
}

impl Floods {
    /// Frames a second that a port may send if the configuration says nothing.
    pub const RATE: u32 = 1000;

    /// With a rate for every port, in frames a second.
    #[must_use]
    pub fn new(rate: u32) -> Self {
        Self {
            rate: u64::from(rate.max(1)),
            paid_until: vec![0; PORTS].into_boxed_slice(),
        }
    }

    /// Whether a frame that arrived at `now` is within the port's rate.
    fn admits(&mut self, port: u16, now: u64) -> bool {
        let cost = SECOND / self.rate;
        let Some(paid) = self.paid_until.get_mut(usize::from(port) % PORTS) else {
            return false;
        };
        let next = (*paid).max(now) + cost;
        let admitted = next <= now + BURST * cost;
        if admitted {
            *paid = next;
        }
        admitted
    }
}

impl Default for Floods {
    fn default() -> Self {
        Self::new(Self::RATE)
    }
}

/// Sends copies to all hosts of the network but one, for which the packet itself is left.
pub fn flood(context: &mut Context<'_>, batch: &mut Batch, exits: &mut impl Exits, ledger: &mut impl Ledger) {
    for descriptor in batch.iter_mut() {
        if !descriptor.is_live() || !descriptor.overlay || descriptor.peer.is_some() {
            continue;
        }
        if !descriptor
            .ingress
            .is_some_and(|port| context.floods.admits(port, descriptor.arrival))
        {
            descriptor.drop_for(DropReason::GroupRateExceeded);
            continue;
        }
        let tables = context.tables;
        let hosts = tables.endpoints.hosts_of(descriptor.network);
        for host in hosts.iter().filter(|host| **host != tables.host) {
            if let Some(before) = descriptor.peer.replace(*host) {
                let copy = duplicate(descriptor, Direction::Outbound, context.pool, ledger);
                if let Some(copy) = copy {
                    let mut leaving = Batch::new();
                    leaving.push(Descriptor {
                        source: descriptor.source,
                        seal: descriptor.seal,
                        peer: Some(before),
                        overlay: true,
                        egress: descriptor.egress,
                        ..copy
                    });
                    let now = descriptor.arrival;
                    select_and_send(context, &mut leaving, exits, ledger, || now);
                }
            }
        }
        if descriptor.peer.is_none() {
            // No other host has the network: it stays here.
            descriptor.overlay = false;
            descriptor.seal = None;
            descriptor.egress = None;
            descriptor.direction = Direction::Local;
            if !descriptor.packet.is_group() {
                descriptor.drop_for(DropReason::NoEndpoint);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_each_port_for_itself() {
        let mut floods = Floods::new(100);
        let begin = 5 * SECOND;
        let burst = (0..1000).filter(|_| floods.admits(3, begin)).count();
        assert_eq!(burst as u64, BURST);
        assert!(floods.admits(4, begin), "another port");
        let each_ms = (1..=2000).filter(|ms| floods.admits(3, begin + ms * SECOND / 1000));
        assert_eq!(each_ms.count(), 200, "two seconds at a hundred a second");
        assert!(!floods.admits(3, begin), "a clock that steps back gives nothing");
    }
}
