//! Seals packets by ESP: transport mode on the guest's own IP packet, or tunnel mode between the hosts.
//!
//! Reads each descriptor's SA slot and frame; writes the sealed packet into a fresh frame (the cipher's pass over the
//! bytes is the move) or a drop reason. A sequence number is taken only once nothing else can fail.
//! Never allocates. RFC 4303 3.3, RFC 4106, RFC 4543.

use std::net::IpAddr;

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
use crate::sa::table::OutboundKey;
use crate::wire::packet::{Fragment, Packet};
use crate::wire::{esp, ethernet, ip4, ip6};

use super::batch::{Batch, Descriptor, live};
use super::outcome::DropReason;
use super::tables::{HostEntry, Tables};

/// The longest headers in front of ESP: Ethernet with two tags, and IPv4 with options (60) or IPv6.
const MAX_HEADERS: usize = ethernet::HEADER + 2 * ethernet::TAG + 60;

/// Chooses the SA of each packet that is to be sealed.
pub fn select_sa(batch: &mut Batch, tables: &Tables) {
    for descriptor in live(batch) {
        let Some((key, protection)) = descriptor.seal else {
            continue;
        };
        let place = descriptor.destination.and_then(|to| {
            let wanted = OutboundKey {
                key,
                protection,
                network: descriptor.network,
                peer: to.host,
            };
            tables.sas.outbound(&wanted, &descriptor.packet)
        });
        match place {
            Some(place) => descriptor.sa = Some(place),
            None => descriptor.drop_for(DropReason::NoSecurityAssociation),
        }
    }
}

/// A packet whose headers are decided, waiting for the engine.
struct Prepared {
    /// Its place in the batch.
    position: usize,
    fresh: Frame,
    /// Used up by the engine.
    nonce: Option<Nonce>,
    /// What stands in front of ESP.
    headers: ArrayVec<u8, MAX_HEADERS>,
    esp: esp::Header,
    /// Where the payload begins in the source frame.
    from: usize,
    /// Bytes of payload, padding and trailer.
    length: usize,
    /// The high half of the sequence number, if it is authenticated.
    high: Option<[u8; 4]>,
}

/// Seals every live packet of the batch; all of them have SAs among `sas`.
pub fn seal(
    batch: &mut Batch,
    sas: &mut [OutboundSa],
    tables: &Tables,
    pool: &mut FramePool,
    engine: &dyn Engine,
) {
    let umem = std::sync::Arc::clone(pool.umem());
    let mut prepared = ArrayVec::<Prepared, BATCH>::new();
    for (position, descriptor) in batch.iter_mut().enumerate() {
        let Some(place) = descriptor.sa.filter(|_| descriptor.is_live()) else {
            continue;
        };
        let Some(sa) = sas.get_mut(place.slot as usize) else {
            descriptor.drop_for(DropReason::NoSecurityAssociation);
            continue;
        };
        match prepare(descriptor, position, sa, tables, pool, &umem) {
            Ok(one) => prepared.push(one),
            Err(reason) => descriptor.drop_for(reason),
        }
    }
    if prepared.is_empty() {
        return;
    }
    run_engine(batch, &mut prepared, sas, &umem, engine);
    for one in prepared {
        let Some(descriptor) = batch.get_mut(one.position) else {
            continue;
        };
        pool.put(std::mem::replace(&mut descriptor.frame, one.fresh));
    }
}

fn prepare(
    descriptor: &mut Descriptor,
    position: usize,
    sa: &mut OutboundSa,
    tables: &Tables,
    pool: &mut FramePool,
    umem: &Umem,
) -> Result<Prepared, DropReason> {
    let packet = &descriptor.packet;
    let (from, next_header) = inside(packet, sa.mode)?;
    let payload = usize::from(packet.end) - from;
    let outer = esp::length(payload);
    let headers = match sa.mode {
        Mode::Transport => transport_headers(packet, umem.bytes(&descriptor.frame), from, outer)?,
        Mode::Tunnel { local, remote } => {
            let peer = descriptor
                .destination
                .and_then(|to| tables.hosts.get(usize::from(to.host.0)));
            tunnel_headers(packet, tables, peer, local, remote, outer)?
        }
    };
    let l3 = usize::from(match sa.mode {
        Mode::Transport => packet.l3_offset,
        Mode::Tunnel { .. } => ethernet::HEADER as u16,
    });
    if headers.len() - l3 + outer > tables.uplink_mtu || headers.len() + outer > umem.room() {
        return Err(DropReason::TooLong);
    }
    // The trailer goes behind the payload in the frame that it came in.
    let room = umem
        .room_mut(&mut descriptor.frame)
        .get_mut(usize::from(packet.end)..)
        .unwrap_or_default();
    let trailer = esp::write_trailer(room, payload, next_header).ok_or(DropReason::TooLong)?;
    umem.set_length(&mut descriptor.frame, usize::from(packet.end) + trailer);
    let mut fresh = pool.take().ok_or(DropReason::NoFrame)?;
    match sa.sequence.take() {
        Ok((number, nonce)) => {
            umem.set_length(&mut fresh, headers.len() + outer);
            let esp = esp::Header {
                spi: sa.spi.get().into(),
                sequence: (number as u32).into(),
                iv: number.into(),
            };
            let high = sa.esn.then(|| ((number >> 32) as u32).to_be_bytes());
            Ok(Prepared {
                position,
                fresh,
                nonce: Some(nonce),
                headers,
                esp,
                from,
                length: payload + trailer,
                high,
            })
        }
        Err(error) => {
            pool.put(fresh);
            Err(match error {
                SequenceError::Exhausted => DropReason::SequenceExhausted,
                SequenceError::NotReserved => DropReason::SequenceNotReserved,
            })
        }
    }
}

/// Where the part begins that ESP wraps, and its next header.
fn inside(packet: &Packet, mode: Mode) -> Result<(usize, u8), DropReason> {
    match mode {
        Mode::Transport if packet.fragment != Fragment::Whole => Err(DropReason::FragmentInTransportMode),
        Mode::Transport if packet.has_extensions => Err(DropReason::ExtensionInTransportMode),
        Mode::Transport => Ok((usize::from(packet.l4_offset), packet.protocol)),
        Mode::Tunnel { .. } if packet.vlan.is_some() => Err(DropReason::VlanInTunnelMode),
        Mode::Tunnel { .. } => Ok((
            usize::from(packet.l3_offset),
            if packet.ethertype == ethernet::IPV4 {
                esp::NEXT_IPV4
            } else {
                esp::NEXT_IPV6
            },
        )),
    }
}

type Headers = ArrayVec<u8, MAX_HEADERS>;

fn headers_of(parts: &[&[u8]]) -> Result<Headers, DropReason> {
    let mut headers = Headers::new();
    for part in parts {
        headers
            .try_extend_from_slice(part)
            .map_err(|_| DropReason::TooLong)?;
    }
    Ok(headers)
}

/// The guest's own headers, with ESP as what follows (RFC 4303 3.1.1).
fn transport_headers(
    packet: &Packet,
    frame: &[u8],
    from: usize,
    esp_length: usize,
) -> Result<Headers, DropReason> {
    let mut headers = headers_of(&[frame.get(..from).ok_or(DropReason::Truncated)?])?;
    let l3 = usize::from(packet.l3_offset);
    let l3_length = from - l3;
    let ip = headers.get_mut(l3..).ok_or(DropReason::Truncated)?;
    let too_long = |_| DropReason::TooLong;
    if packet.ethertype == ethernet::IPV4 {
        ip4::rewrite(
            ip,
            u16::try_from(l3_length + esp_length).map_err(too_long)?,
            esp::ESP,
        );
    } else {
        ip6::rewrite(ip, u16::try_from(esp_length).map_err(too_long)?, esp::ESP);
    }
    Ok(headers)
}

/// Headers between the hosts. DSCP and ECN are those of the guest's packet (RFC 4301 5.1.2).
fn tunnel_headers(
    packet: &Packet,
    tables: &Tables,
    peer: Option<&HostEntry>,
    local: IpAddr,
    remote: IpAddr,
    esp_length: usize,
) -> Result<Headers, DropReason> {
    let destination = peer.and_then(|peer| peer.next_hop).ok_or(DropReason::NoNextHop)?;
    let too_long = |_| DropReason::TooLong;
    let ethernet = |ethertype: u16| ethernet::Header {
        destination,
        source: tables.uplink_mac,
        ethertype: ethertype.into(),
    };
    match (local, remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            let length = u16::try_from(ip4::HEADER + esp_length).map_err(too_long)?;
            let ip = ip4::outer(local, remote, esp::ESP, packet.traffic_class, length);
            headers_of(&[ethernet(ethernet::IPV4).as_bytes(), &ip])
        }
        (IpAddr::V6(local), IpAddr::V6(remote)) => {
            let length = u16::try_from(esp_length).map_err(too_long)?;
            let ip = ip6::outer(local, remote, esp::ESP, packet.traffic_class, length);
            headers_of(&[ethernet(ethernet::IPV6).as_bytes(), &ip])
        }
        // Control refuses an SA between addresses of different families.
        _ => Err(DropReason::NoNextHop),
    }
}

/// Writes headers and lets the engine seal from the frames received into the fresh ones.
fn run_engine(
    batch: &Batch,
    prepared: &mut ArrayVec<Prepared, BATCH>,
    sas: &[OutboundSa],
    umem: &Umem,
    engine: &dyn Engine,
) {
    let mut additional = [[0u8; 12]; BATCH];
    let mut jobs = ArrayVec::<SealJob<'_>, BATCH>::new();
    for (one, additional) in prepared.iter_mut().zip(&mut additional) {
        let descriptor = &batch[one.position];
        let Some(sa) = descriptor.sa.and_then(|place| sas.get(place.slot as usize)) else {
            unreachable!("prepared from this SA")
        };
        let source = &umem.bytes(&descriptor.frame)[one.from..one.from + one.length];
        let start = one.headers.len();
        let room = umem.room_mut(&mut one.fresh);
        let Some(nonce) = one.nonce.take() else {
            unreachable!("prepared once, sealed once")
        };
        match sa.protection {
            Protection::Encrypt => {
                let (front, rest) = room.split_at_mut(start + esp::HEADER);
                front[..start].copy_from_slice(&one.headers);
                front[start..].copy_from_slice(one.esp.as_bytes());
                let (destination, rest) = rest.split_at_mut(one.length);
                let Some(tag) = rest.first_chunk_mut() else {
                    unreachable!("the length was checked")
                };
                let length = fill_additional(additional, &one.esp, one.high);
                jobs.push(SealJob {
                    key: &sa.key,
                    nonce,
                    additional: &additional[..length],
                    buffers: Buffers::Copy { source, destination },
                    tag,
                });
            }
            Protection::Authenticate => {
                let (front, rest) = room.split_at_mut(start + esp::HEADER + one.length);
                front[..start].copy_from_slice(&one.headers);
                front[start..start + esp::HEADER].copy_from_slice(one.esp.as_bytes());
                front[start + esp::HEADER..].copy_from_slice(source);
                let from = lay_out_gmac(front, start, one.high);
                let Some(tag) = rest.first_chunk_mut() else {
                    unreachable!("the length was checked")
                };
                jobs.push(SealJob {
                    key: &sa.key,
                    nonce,
                    additional: &front[from..],
                    buffers: Buffers::InPlace(&mut []),
                    tag,
                });
            }
        }
    }
    engine.seal(&mut jobs);
    drop(jobs);
    for one in prepared.iter_mut().filter(|one| one.high.is_some()) {
        let start = one.headers.len();
        let room = umem.room_mut(&mut one.fresh);
        room[..start].copy_from_slice(&one.headers);
        room[start..start + esp::HEADER].copy_from_slice(one.esp.as_bytes());
    }
}

/// SPI and sequence number as they are authenticated (RFC 4106 5): with ESN the high half between them.
pub(super) fn fill_additional(
    additional: &mut [u8; 12],
    header: &esp::Header,
    high: Option<[u8; 4]>,
) -> usize {
    let (spi, low) = (header.spi.to_bytes(), header.sequence.to_bytes());
    additional[..4].copy_from_slice(&spi);
    match high {
        Some(high) => {
            additional[4..8].copy_from_slice(&high);
            additional[8..].copy_from_slice(&low);
            12
        }
        None => {
            additional[4..8].copy_from_slice(&low);
            8
        }
    }
}

/// Makes what AES-GMAC authenticates stand in one piece (RFC 4543 3.3: SPI, sequence, IV, payload) and gives where it
/// begins.
///
/// With ESN the high half belongs between SPI and sequence: the SPI moves 4 bytes forward over the end of the headers,
/// which the caller writes again afterwards.
pub(super) fn lay_out_gmac(frame: &mut [u8], esp_start: usize, high: Option<[u8; 4]>) -> usize {
    let Some(high) = high else { return esp_start };
    let spi = [
        frame[esp_start],
        frame[esp_start + 1],
        frame[esp_start + 2],
        frame[esp_start + 3],
    ];
    frame[esp_start - 4..esp_start].copy_from_slice(&spi);
    frame[esp_start..esp_start + 4].copy_from_slice(&high);
    esp_start - 4
}
