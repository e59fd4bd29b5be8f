//! Manual SAs: from configuration and files to what workers own, with the durable marks behind them.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;

use guestseal_rules::model::Policy;

use crate::aead::engine::{Engine, KeyLength};
use crate::keys::high_water::{BLOCK, HighWater, HighWaterError};
use crate::keys::keymat::{Keymat, KeymatError, SharedKey, distinct};
use crate::path::batch::WorkerId;
use crate::sa::inbound::InboundSa;
use crate::sa::outbound::{Mode, OutboundSa};
use crate::sa::replay::ReplayWindow;
use crate::sa::sequence::{Reservation, Sequence};
use crate::sa::slots::Owned;
use crate::sa::table::{OutboundKey, SaTable};
use crate::wire::esp;

use super::config::{HostConfig, SaConfig, SaDirection, SaMode};

/// Why the SAs cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ManualSaError {
    /// KEYMAT.
    #[error("security association {name}: no KEYMAT")]
    Keymat {
        /// The SA.
        name: String,
        /// Why.
        #[source]
        source: KeymatError,
    },
    /// The engine does not take the key.
    #[error("security association {name}: the engine refuses its key")]
    Key {
        /// The SA.
        name: String,
        /// Why.
        #[source]
        source: KeyLength,
    },
    /// Two SAs share a key.
    #[error(transparent)]
    Shared(#[from] SharedKey),
    /// The mark.
    #[error(transparent)]
    HighWater(#[from] HighWaterError),
    /// Tunnel mode or an overlay without addresses of one family.
    #[error("security association {name}: it needs {family} addresses of both hosts in the policy")]
    NoAddress {
        /// The SA.
        name: String,
        /// IPv4 or IPv6.
        family: &'static str,
    },
    /// Two SAs have one SPI.
    #[error("security association {name}: another inbound SA has its SPI")]
    SpiTaken {
        /// The SA.
        name: String,
    },
}

/// The mark of an outbound SA and how far its numbers are reserved.
#[derive(Debug)]
pub struct Mark {
    high_water: HighWater,
    reservation: Arc<Reservation>,
}

impl Mark {
    /// The sequence number that is used next.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.reservation.next()
    }

    /// Raises the mark when half of a block is used up: on disk first, then for the worker.
    ///
    /// # Errors
    /// If it cannot be made durable: the worker stops sealing with the SA when the block is used up.
    pub fn tend(&mut self) -> Result<(), HighWaterError> {
        let next = self.reservation.next();
        if self.high_water.mark().saturating_sub(next) < BLOCK / 2 {
            let mark = next.saturating_add(BLOCK);
            self.high_water.reserve(mark)?;
            self.reservation.raise(mark);
        }
        Ok(())
    }
}

/// All manual SAs of a host, made ready.
#[derive(Debug, Default)]
pub struct ManualSas {
    /// Where they are.
    pub table: SaTable,
    /// What each worker owns.
    pub owned: Vec<Owned>,
    /// The marks to be tended.
    pub marks: Vec<Mark>,
}

/// Reads KEYMAT and marks of every SA, and deals the SAs to the workers.
///
/// # Errors
/// See [`ManualSaError`].
pub fn prepare(config: &HostConfig, engine: &dyn Engine) -> Result<ManualSas, ManualSaError> {
    let keymats = read_keymats(config)?;
    let workers = config.workers.len() as u16;
    let mut ready = ManualSas {
        owned: (0..workers).map(|_| Owned::default()).collect(),
        ..ManualSas::default()
    };
    for (sa, keymat) in config.sas.iter().zip(&keymats) {
        let owner = WorkerId(sa.worker.unwrap_or((sa.spi.get() % u32::from(workers)) as u16));
        let owned = &mut ready.owned[owner.index()];
        let key = engine
            .expand(sa.suite, keymat.key())
            .map_err(|source| ManualSaError::Key {
                name: sa.name.clone(),
                source,
            })?;
        let mode = mode(sa, config)?;
        match sa.direction {
            SaDirection::Out => {
                let mut high_water =
                    HighWater::open(&config.state_directory, &sa.name, sa.spi, keymat.fingerprint())?;
                let start = high_water.mark();
                high_water.reserve(start.saturating_add(BLOCK))?;
                let reservation = Reservation::new(start, high_water.mark());
                let outbound = OutboundSa {
                    spi: sa.spi,
                    protection: sa.protection,
                    mode,
                    esn: sa.esn,
                    key,
                    sequence: Sequence::reserved(sa.esn, keymat.salt(), Arc::clone(&reservation)),
                    tally: Cell::default(),
                };
                let place = owned.outbound.add(owner, outbound);
                let wanted = OutboundKey {
                    key: sa.key,
                    protection: sa.protection,
                    network: sa.network,
                    peer: sa.peer,
                };
                ready.table.add_outbound(wanted, sa.selector.clone(), place);
                ready.marks.push(Mark {
                    high_water,
                    reservation,
                });
            }
            SaDirection::In => {
                let inbound = InboundSa {
                    spi: sa.spi,
                    protection: sa.protection,
                    mode,
                    esn: sa.esn,
                    key,
                    salt: keymat.salt(),
                    window: ReplayWindow::new(sa.replay_window, sa.esn),
                    selector: sa.selector.clone(),
                    rule_key: sa.key,
                    network: sa.network,
                    peer: sa.peer,
                    tally: Cell::default(),
                };
                let place = owned.inbound.add(owner, inbound);
                if !ready.table.add_inbound(sa.spi, place) {
                    return Err(ManualSaError::SpiTaken {
                        name: sa.name.clone(),
                    });
                }
            }
        }
    }
    Ok(ready)
}

/// Makes the marks of outbound SAs that have none. Gives the names of those made.
///
/// # Errors
/// See [`ManualSaError`].
pub fn init_marks(config: &HostConfig) -> Result<Vec<String>, ManualSaError> {
    let keymats = read_keymats(config)?;
    let mut made = Vec::new();
    for (sa, keymat) in config
        .sas
        .iter()
        .zip(&keymats)
        .filter(|(sa, _)| sa.direction == SaDirection::Out)
    {
        match HighWater::init(&config.state_directory, &sa.name, sa.spi, keymat.fingerprint()) {
            Ok(()) => made.push(sa.name.clone()),
            Err(HighWaterError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(made)
}

fn read_keymats(config: &HostConfig) -> Result<Vec<Keymat>, ManualSaError> {
    let keymats = config
        .sas
        .iter()
        .map(|sa| {
            Keymat::read(&sa.keymat, sa.suite).map_err(|source| ManualSaError::Keymat {
                name: sa.name.clone(),
                source,
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    distinct(
        config
            .sas
            .iter()
            .zip(&keymats)
            .map(|(sa, keymat)| (sa.name.as_str(), keymat.fingerprint())),
    )?;
    Ok(keymats)
}

/// What ESP wraps.
pub(super) fn mode(sa: &SaConfig, config: &HostConfig) -> Result<Mode, ManualSaError> {
    let is_overlay = !config.policy.is_flat(sa.network);
    if !is_overlay && sa.mode == SaMode::Transport {
        return Ok(Mode::Transport);
    }
    let address = |policy: &Policy, host: usize| -> Option<IpAddr> {
        policy
            .hosts
            .get(host)?
            .addresses
            .iter()
            .find(|address| address.is_ipv6() == sa.over_ip6)
            .copied()
    };
    let local = address(&config.policy, config.host.index());
    let remote = address(&config.policy, sa.peer.index());
    match (local, remote) {
        (Some(local), Some(remote)) if is_overlay => Ok(Mode::Overlay {
            local,
            remote,
            udp_source: sa.udp_encapsulation.then(|| esp::udp_source(sa.spi.get())),
        }),
        (Some(local), Some(remote)) => Ok(Mode::Tunnel { local, remote }),
        _ => Err(ManualSaError::NoAddress {
            name: sa.name.clone(),
            family: if sa.over_ip6 { "IPv6" } else { "IPv4" },
        }),
    }
}
