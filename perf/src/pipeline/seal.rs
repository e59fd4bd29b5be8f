//! Packets as the first host seals them, for a second one that is measured elsewhere.

use guestseal::aead::choice::{Choice, choose};
use guestseal::control::supervise::chain;

pub(crate) use super::host::umem;
use super::host::{Host, Rotation, Rules};
pub(crate) use super::packets::Size;
use super::packets::{Action, Network, Packets};
use crate::process::PerfError;

/// The SPI that they have.
pub(crate) const SPI: u32 = super::host::FIRST_SPI;

/// KEYMAT of their SA: key and salt.
pub(crate) const KEYMAT: [u8; 36] = {
    let mut keymat = [super::host::KEY_BYTE; 36];
    let mut at = 0;
    while at < 4 {
        keymat[at] = 0;
        keymat[32 + at] = super::host::SALT.0[at];
        at += 1;
    }
    keymat
};

/// Seals, in transport mode with extended sequence numbers; no number is used twice.
pub(crate) struct Sealer(Host);

impl Sealer {
    /// Begins with sequence number 1.
    pub(crate) fn new() -> Result<Self, PerfError> {
        let chosen = choose(Choice::Auto).map_err(|error| PerfError::Wrong(chain(&error)))?;
        let rules = Rules::new(Network::Flat, Action::Encrypt, 1, 1)?;
        Ok(Self(Host::new(&rules, 0, Rotation::new(1024), &chosen.engine)?))
    }

    /// So many packets at least, sealed.
    pub(crate) fn seal(&mut self, size: Size, flows: u32, count: usize) -> Vec<Vec<u8>> {
        let mut packets = Packets::new(size, flows, 1);
        let mut sealed = Vec::with_capacity(count + 64);
        while sealed.len() < count {
            self.0.guest_sends(&mut packets);
            self.0.worker.turn();
            self.0.on_wire(&mut sealed);
        }
        sealed
    }
}

/// A worker that seals, one burst after the other.
pub(crate) struct Outbound {
    host: Host,
    packets: Packets,
}

impl Outbound {
    /// 1,000 rules, 1,000 flows, one SA, the fastest engine.
    pub(crate) fn new(size: Size) -> Result<Self, PerfError> {
        let chosen = choose(Choice::Auto).map_err(|error| PerfError::Wrong(chain(&error)))?;
        let rules = Rules::new(Network::Flat, Action::Encrypt, 1000, 1)?;
        Ok(Self {
            host: Host::new(&rules, 0, Rotation::new(1024), &chosen.engine)?,
            packets: Packets::new(size, 1000, 1),
        })
    }

    /// Cycles that the worker takes for 64 packets.
    pub(crate) fn burst(&mut self, clock: &quanta::Clock) -> u64 {
        self.host.guest_sends(&mut self.packets);
        let cycles = super::timed(clock, || self.host.worker.turn());
        self.host.clear();
        cycles
    }
}

/// Packets in plaintext, one of each size and flow: what is sent in turns.
pub(crate) fn plain(size: Size, flows: u32, count: usize) -> Vec<Vec<u8>> {
    let mut packets = Packets::new(size, flows, 1);
    (0..count).map(|_| packets.next().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_numbered_and_of_the_spi() {
        let mut sealer = Sealer::new().unwrap();
        let mut expected = 1_u32;
        for _ in 0..2 {
            for packet in sealer.seal(Size::Bytes(64), 10, 100) {
                assert_eq!(packet[34..38], SPI.to_be_bytes());
                assert_eq!(packet[38..42], expected.to_be_bytes());
                expected += 1;
            }
        }
        assert!(expected > 200);
    }
}
