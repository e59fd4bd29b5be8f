//! Seals packets by ESP: transport mode on the guest's own IP packet, tunnel mode between the hosts, or transport mode on
//! the datagrams of an overlay between the hosts.
//!
//! Reads each descriptor's SA slot and frame; writes the sealed packet into a fresh frame (the cipher's pass over the
//! bytes is the move) or a drop reason. A sequence number is taken only once nothing else can fail.
//! Never allocates. RFC 4303 3.3, RFC 4106, RFC 4543, RFC 3948.

use arrayvec::ArrayVec;
use guestseal_rules::classify::Protection;
use zerocopy::IntoBytes;

use crate::aead::engine::{Buffers, Engine, SealJob};
use crate::port::BATCH;
use crate::port::frame::Frame;
use crate::port::pool::FramePool;
use crate::port::umem::Umem;
use crate::sa::nonce::Nonce;
use crate::sa::outbound::{Mode, OutboundSa};
use crate::sa::sequence::SequenceError;
use crate::sa::slots::{Place, Slots};
use crate::sa::table::{Candidates, OutboundKey};
use crate::wire::packet::{Fragment, Packet};
use crate::wire::{esp, ethernet, ip4, ip6, transport, udp};

use super::batch::{Batch, Descriptor, WorkerId, unknown};
use super::encapsulate;
use super::fit;
use super::outcome::DropReason;
use super::outer::Outer;
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

/// A packet whose headers stand in its fresh frame, waiting for the engine: no more than a cache line, since a whole batch of
/// them waits.
struct Prepared {
    fresh: Frame,
    /// Used up by the engine.
    nonce: Option<Nonce>,
    /// What AES-GCM authenticates: 12 bytes with ESN, otherwise the first 8.
    additional: [u8; 12],
    /// Its place in the batch.
    position: u16,
    /// Where ESP begins in the fresh frame.
    start: u16,
    /// Where the payload begins in the source frame, counted from so many bytes in front of its data.
    from: u16,
    front: u16,
    /// Bytes of payload, padding and trailer.
    length: u16,
}

const _: () = assert!(size_of::<Prepared>() <= 64, "a cache line");

/// Seals every live packet of the batch; all of them have SAs among `sas`. Says whether some were too long.
#[must_use]
pub fn seal(
    batch: &mut Batch,
    sas: &mut Slots<OutboundSa>,
    tables: &Tables,
    pool: &mut FramePool,
    engine: &dyn Engine,
) -> bool {
    let mut too_long = false;
    let umem = std::sync::Arc::clone(pool.umem());
    let mut prepared = ArrayVec::<Prepared, BATCH>::new();
    // Packets of a burst mostly go the same way: their headers are made once for as many as follow one another.
    let mut last: Option<(Place, Outer)> = None;
    for (position, descriptor) in batch.iter_mut().enumerate() {
        let Some(place) = descriptor.sa.filter(|_| descriptor.is_live()) else {
            // Whatever went wrong before: what is to be sealed never leaves as it is.
            if descriptor.seal.is_some() && descriptor.is_live() {
                descriptor.drop_for(DropReason::NoSecurityAssociation);
            }
            continue;
        };
        let Some(sa) = sas.get_mut(place) else {
            descriptor.drop_for(DropReason::NoSecurityAssociation);
            continue;
        };
        match prepare(descriptor, (position, place), sa, &mut last, tables, pool, &umem) {
            Ok(one) => prepared.push(one),
            Err(reason) => {
                descriptor.drop_for(reason);
                too_long |= reason == DropReason::TooLong;
            }
        }
    }
    if prepared.is_empty() {
        return too_long;
    }
    run_engine(batch, &mut prepared, sas, &umem, engine);
    for one in prepared {
        let Some(descriptor) = batch.get_mut(usize::from(one.position)) else {
            continue;
        };
        pool.put(std::mem::replace(&mut descriptor.frame, one.fresh));
    }
    too_long
}

fn prepare(
    descriptor: &mut Descriptor,
    (position, place): (usize, Place),
    sa: &mut OutboundSa,
    last: &mut Option<(Place, Outer)>,
    tables: &Tables,
    pool: &mut FramePool,
    umem: &Umem,
) -> Result<Prepared, DropReason> {
    let packet = &descriptor.packet;
    let Inside {
        from,
        front,
        next_header,
    } = inside(packet, sa.mode)?;
    let end = usize::from(packet.end);
    let payload = front + end - from;
    let outer_length = esp::length(payload);
    let mut outer_for = |local, remote| -> Result<(), DropReason> {
        if !matches!(last, Some((known, _)) if *known == place) {
            *last = Some((place, Outer::new(tables, descriptor.far_host(), local, remote)?));
        }
        Ok(())
    };
    let udp_source = match sa.mode {
        Mode::Transport => None,
        Mode::Tunnel { local, remote } => {
            outer_for(local, remote)?;
            Some(None)
        }
        Mode::Overlay {
            local,
            remote,
            udp_source,
        } => {
            outer_for(local, remote)?;
            Some(udp_source)
        }
    };
    let between = udp_source.and_then(|source| Some((&last.as_ref()?.1, source)));
    let (l3, start) = match &between {
        None => (usize::from(packet.l3_offset), from),
        Some((outer, None)) => (ethernet::HEADER, outer.length()),
        Some((outer, Some(_))) => (ethernet::HEADER, outer.length() + udp::HEADER),
    };
    let bound = tables.uplink_mtu.min(umem.room() - l3);
    let fits = || {
        let most = esp::most_inside(bound.saturating_sub(start - l3));
        // What of the payload is no part of the guest's IP packet, or of that packet is no part of the payload.
        (most + end).saturating_sub(payload + usize::from(packet.l3_offset)) as u16
    };
    if start - l3 + outer_length > bound {
        descriptor.fits = fits();
        return Err(DropReason::TooLong);
    }
    if packet.tcp_flags & transport::SYN != 0 {
        fit::clamp(packet, umem.room_mut(&mut descriptor.frame), fits());
    }
    if front > 0 {
        let carrier = tables.carrier(descriptor.network);
        let room = umem.room_with_front_mut(&mut descriptor.frame, front);
        let (Some(carrier), Some(header)) = (carrier, room.and_then(|room| room.first_chunk_mut())) else {
            return Err(DropReason::TooLong);
        };
        carrier.write(header, packet, end);
    }
    // The trailer goes behind the payload in the frame that it came in.
    let room = umem
        .room_mut(&mut descriptor.frame)
        .get_mut(end..)
        .unwrap_or_default();
    let trailer = esp::write_trailer(room, payload, next_header).ok_or(DropReason::TooLong)?;
    umem.set_length(&mut descriptor.frame, end + trailer);
    let headers = umem
        .bytes(&descriptor.frame)
        .get(..from)
        .ok_or(DropReason::Truncated)?;
    let mut fresh = pool.take().ok_or(DropReason::NoFrame)?;
    let (number, nonce) = match sa.sequence.take() {
        Ok(taken) => taken,
        Err(error) => {
            pool.put(fresh);
            return Err(match error {
                SequenceError::Exhausted => DropReason::SequenceExhausted,
                SequenceError::NotReserved => DropReason::SequenceNotReserved,
            });
        }
    };
    sa.tally.packets += 1;
    sa.tally.bytes += outer_length as u64;
    umem.set_length(&mut fresh, start + outer_length);
    let (before, rest) = umem.room_mut(&mut fresh).split_at_mut(start);
    match between {
        None => write_transport_headers(before, packet, headers, outer_length),
        Some((outer, None)) => outer.write(before, esp::ESP, packet.traffic_class, outer_length),
        Some((outer, Some(source))) => {
            let length = udp::HEADER + outer_length;
            outer.write(before, transport::UDP, packet.traffic_class, length);
            before[outer.length()..].copy_from_slice(esp::in_udp(source, length as u16).as_bytes());
        }
    }
    let esp = esp::Header {
        spi: sa.spi.get().into(),
        sequence: (number as u32).into(),
        iv: number.into(),
    };
    rest[..esp::HEADER].copy_from_slice(esp.as_bytes());
    Ok(Prepared {
        fresh,
        nonce: Some(nonce),
        additional: additional(&esp, number, sa.esn),
        position: position as u16,
        start: start as u16,
        from: from as u16,
        front: front as u16,
        length: (payload + trailer) as u16,
    })
}

/// The part that ESP wraps.
struct Inside {
    /// Where it begins in the frame.
    from: usize,
    /// Bytes that stand in front of it, in the headroom.
    front: usize,
    next_header: u8,
}

fn inside(packet: &Packet, mode: Mode) -> Result<Inside, DropReason> {
    let (from, front, next_header) = match mode {
        Mode::Transport if packet.fragment != Fragment::Whole => {
            return Err(DropReason::FragmentInTransportMode);
        }
        Mode::Transport if packet.has_extensions => return Err(DropReason::ExtensionInTransportMode),
        Mode::Transport => (usize::from(packet.l4_offset), 0, packet.protocol),
        Mode::Tunnel { .. } if packet.vlan.is_some() => return Err(DropReason::VlanInTunnelMode),
        Mode::Tunnel { .. } if packet.ethertype == ethernet::IPV4 => {
            (usize::from(packet.l3_offset), 0, esp::NEXT_IPV4)
        }
        Mode::Tunnel { .. } => (usize::from(packet.l3_offset), 0, esp::NEXT_IPV6),
        Mode::Overlay { .. } => (0, encapsulate::HEADER, transport::UDP),
    };
    Ok(Inside {
        from,
        front,
        next_header,
    })
}

/// The guest's own headers, with ESP as what follows (RFC 4303 3.1.1).
#[inline]
fn write_transport_headers(front: &mut [u8], packet: &Packet, headers: &[u8], esp_length: usize) {
    copy_headers(front, headers);
    let l3 = usize::from(packet.l3_offset);
    let ip = &mut front[l3..];
    if packet.ethertype == ethernet::IPV4 {
        ip4::rewrite(ip, (ip.len() + esp_length) as u16, esp::ESP);
    } else {
        ip6::rewrite(ip, esp_length as u16, esp::ESP);
    }
}

/// Copies headers; those of IPv4 without tags and options, as they nearly always are, by a few moves in line.
#[inline]
pub(super) fn copy_headers(to: &mut [u8], from: &[u8]) {
    const USUAL: usize = ethernet::HEADER + ip4::HEADER;
    match (<&mut [u8; USUAL]>::try_from(&mut *to), from.first_chunk()) {
        (Ok(to), Some(from)) => *to = *from,
        _ => to.copy_from_slice(from),
    }
}

/// Lets the engine seal from the frames received into the fresh ones.
fn run_engine(
    batch: &Batch,
    prepared: &mut ArrayVec<Prepared, BATCH>,
    sas: &Slots<OutboundSa>,
    umem: &Umem,
    engine: &dyn Engine,
) {
    let mut jobs = ArrayVec::<SealJob<'_>, BATCH>::new();
    // What stood around the start of ESP before it was laid out for AES-GMAC.
    let mut saved = [[0; 8]; BATCH];
    for (one, saved) in prepared.iter_mut().zip(&mut saved) {
        let descriptor = &batch[usize::from(one.position)];
        let sa = sa_of(descriptor, sas);
        let (start, length) = (usize::from(one.start), usize::from(one.length));
        let (from, front) = (usize::from(one.from), usize::from(one.front));
        let source = umem.with_front(&descriptor.frame, front);
        let Some(source) = source.and_then(|bytes| bytes.get(from..from + length)) else {
            unreachable!("the headers were written there")
        };
        let Some(nonce) = one.nonce.take() else {
            unreachable!("prepared once, sealed once")
        };
        let text = start + esp::HEADER;
        let (front, rest) = umem.room_mut(&mut one.fresh).split_at_mut(text + length);
        let Some(tag) = rest.first_chunk_mut() else {
            unreachable!("the length was checked")
        };
        let additional = authenticated(&one.additional, sa.esn);
        let (additional, buffers) = match sa.protection {
            Protection::Encrypt => {
                let destination = &mut front[text..];
                (additional, Buffers::Copy { source, destination })
            }
            Protection::Authenticate => {
                front[text..].copy_from_slice(source);
                saved.copy_from_slice(&front[start - 4..start + 4]);
                let from = lay_out_gmac(front, start, additional);
                (&front[from..], Buffers::InPlace(&mut []))
            }
        };
        jobs.push(SealJob {
            key: &sa.key,
            nonce,
            additional,
            buffers,
            tag,
        });
    }
    engine.seal(&mut jobs);
    drop(jobs);
    for (one, saved) in prepared.iter_mut().zip(&saved) {
        let sa = sa_of(&batch[usize::from(one.position)], sas);
        if sa.protection == Protection::Authenticate {
            let start = usize::from(one.start);
            umem.room_mut(&mut one.fresh)[start - 4..start + 4].copy_from_slice(saved);
        }
    }
}

/// SPI and sequence number as they are authenticated (RFC 4106 5): with ESN all of the number, of which the packet has the low
/// half.
#[inline]
pub(super) fn additional(header: &esp::Header, sequence: u64, esn: bool) -> [u8; 12] {
    let [a, b, c, d] = header.spi.to_bytes();
    let [e, f, g, h, i, j, k, l] = sequence.to_be_bytes();
    if esn {
        [a, b, c, d, e, f, g, h, i, j, k, l]
    } else {
        [a, b, c, d, i, j, k, l, 0, 0, 0, 0]
    }
}

/// The SA that a packet has, which was looked up among these before.
#[inline]
pub(super) fn sa_of<'a, T>(descriptor: &Descriptor, sas: &'a Slots<T>) -> &'a T {
    let sa = descriptor.sa.and_then(|place| sas.get(place));
    sa.unwrap_or_else(|| unreachable!("it was there a moment ago"))
}

/// As much of [`additional`] as there is.
#[inline]
pub(super) fn authenticated(additional: &[u8; 12], esn: bool) -> &[u8] {
    if esn { additional } else { &additional[..8] }
}

/// Makes what AES-GMAC authenticates stand in one piece (RFC 4543 3.3: SPI, sequence, IV, payload) and gives where it
/// begins.
///
/// With ESN the high half belongs between SPI and sequence: it takes the place of the SPI, which moves 4 bytes forward over
/// the end of the headers; the caller puts them back afterwards.
pub(super) fn lay_out_gmac(frame: &mut [u8], esp_start: usize, additional: &[u8]) -> usize {
    let from = esp_start + 8 - additional.len();
    frame[from..esp_start + 8].copy_from_slice(additional);
    from
}
