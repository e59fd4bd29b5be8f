//! Seals packets by ESP: transport mode on the guest's own IP packet, tunnel mode between the hosts, or transport mode on
//! the datagrams of an overlay between the hosts.
//!
//! Reads each descriptor's SA slot and frame; writes the sealed packet into a fresh frame (the cipher's pass over the
//! bytes is the move), or into the frame that came, if that has a head of just as many bytes as go in front, or a drop
//! reason. How it is laid out stands in layout.rs.
//! Never allocates. RFC 4303 3.3.

use std::net::IpAddr;

use arrayvec::ArrayVec;

use crate::aead::engine::Engine;
use crate::port::BATCH;
use crate::port::pool::FramePool;
use crate::sa::outbound::{Mode, OutboundSa};
use crate::sa::sequence::SequenceError;
use crate::sa::slots::Slots;
use crate::sa::table::{Candidates, OutboundKey};
use crate::wire::{esp, ethernet, ip4, ip6, udp};

use super::batch::{Batch, Descriptor, WorkerId, unknown};
use super::encapsulate;
use super::layout::{Form, Jobs, LastOuter, Restore, Under, Unfit};
use super::outcome::DropReason;
use super::tables::Tables;

/// Chooses the SA of each packet that is to be sealed. Says whether some have none yet and may wait for a session.
#[must_use]
pub fn select_sa(batch: &mut Batch, tables: &Tables, own: WorkerId) -> bool {
    // Packets of a burst mostly go the same way: it is looked up once for as many as follow one another.
    let mut last: Option<(OutboundKey, Candidates<'_>)> = None;
    let mut some_wait = false;
    for descriptor in unknown(batch) {
        let Some((key, protection)) = descriptor.seal else {
            continue;
        };
        let host = descriptor.far_host();
        let place = host.and_then(|peer| {
            let wanted = OutboundKey {
                key,
                protection,
                network: descriptor.network,
                peer,
            };
            let candidates = match last {
                Some((key, candidates)) if key == wanted => candidates,
                _ => tables.sas.outbound(&wanted),
            };
            last = Some((wanted, candidates));
            candidates.covering(&descriptor.packet, own)
        });
        match place {
            Some(place) => descriptor.sa = Some(place),
            None if host.is_some_and(|host| tables.sas.may_have_session(host)) => {
                some_wait = true;
            }
            None => descriptor.drop_for(DropReason::NoSecurityAssociation),
        }
    }
    some_wait
}

/// Bytes that sealing puts in front of what a guest sent: a frame with a head of just so many is sealed where it is.
#[must_use]
pub fn in_front(mode: Mode) -> usize {
    let ip = |local: IpAddr| if local.is_ipv6() { ip6::HEADER } else { ip4::HEADER };
    let headers = match mode {
        Mode::Transport => 0,
        // Instead of the guest's Ethernet header there is one between the hosts.
        Mode::Tunnel { local, .. } => ip(local),
        Mode::Overlay {
            local, udp_source, ..
        } => {
            let in_udp = udp_source.map_or(0, |_| udp::HEADER);
            ethernet::HEADER + ip(local) + in_udp + encapsulate::HEADER
        }
    };
    headers + esp::HEADER
}

/// Seals every live packet of the batch; all of them have SAs among `sas`. Says whether some were too long.
///
/// One pass makes the engine's jobs, so that nothing of a packet is put down and read again before the engine does.
#[must_use]
pub fn seal(
    batch: &mut Batch,
    sas: &Slots<OutboundSa>,
    tables: &Tables,
    pool: &mut FramePool,
    engine: &dyn Engine,
) -> bool {
    let mut too_long = false;
    let umem = std::sync::Arc::clone(pool.umem());
    let is_concerned = batch.iter().any(|descriptor| descriptor.sa.is_some());
    let mut fresh = pool.take_many(if is_concerned { batch.len() } else { 0 });
    let mut additional = [[0; 12]; BATCH];
    // Those that are sealed into a fresh frame.
    let mut sealed = ArrayVec::<u16, BATCH>::new();
    let mut unfit = ArrayVec::<(u16, Unfit), BATCH>::new();
    let mut overwritten = Restore::default();
    let mut jobs = Jobs::new(&mut fresh, &mut additional, &mut overwritten, &umem);
    let mut last = LastOuter::None;
    for (position, descriptor) in (0u16..).zip(batch.iter_mut()) {
        let Some(place) = descriptor.sa.filter(|_| descriptor.is_live()) else {
            // Whatever went wrong before: what is to be sealed never leaves as it is.
            if descriptor.seal.is_some() && descriptor.is_live() {
                descriptor.drop_for(DropReason::NoSecurityAssociation);
            }
            continue;
        };
        let Some(sa) = sas.get(place) else {
            descriptor.drop_for(DropReason::NoSecurityAssociation);
            continue;
        };
        let under = Under {
            place,
            sa,
            network: descriptor.network,
            host: descriptor.far_host(),
        };
        let Descriptor { packet, frame, .. } = descriptor;
        let form = Form::new(packet, under, &mut last, tables, &umem);
        let pushed = form.map_err(Unfit::from).and_then(|form| {
            let outer = last.as_ref().map(|(_, outer)| outer);
            jobs.push(packet, frame, (sa, &form, outer), Some(pool))
        });
        match pushed {
            Ok(true) => {}
            Ok(false) => sealed.push(position),
            Err(reason) => unfit.push((position, reason)),
        }
    }
    jobs.seal(engine);
    drop(jobs);
    for (position, Unfit { reason, fits }) in unfit {
        let descriptor = &mut batch[usize::from(position)];
        descriptor.fits = fits;
        descriptor.drop_for(reason);
        too_long |= reason == DropReason::TooLong;
    }
    overwritten.restore(&mut fresh, &umem);
    for (position, frame) in sealed.into_iter().zip(&mut fresh) {
        std::mem::swap(&mut batch[usize::from(position)].frame, frame);
    }
    // Those that were sealed from, and those that nothing was sealed into.
    pool.put_many(fresh);
    too_long
}

impl From<SequenceError> for DropReason {
    fn from(error: SequenceError) -> Self {
        match error {
            SequenceError::Exhausted => DropReason::SequenceExhausted,
            SequenceError::NotReserved => DropReason::SequenceNotReserved,
        }
    }
}
