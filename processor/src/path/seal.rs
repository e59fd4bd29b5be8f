//! Seals packets by ESP: transport mode on the guest's own IP packet, or tunnel mode between the hosts.
//!
//! Reads each descriptor's SA slot and frame; writes the sealed packet into a fresh frame (the cipher's pass over the
//! bytes is the move) or a drop reason. A sequence number is taken only once nothing else can fail.
//! Never allocates. RFC 4303 3.3, RFC 4106, RFC 4543.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
use crate::sa::slots::Slots;
use crate::sa::table::{Candidates, OutboundKey};
use crate::wire::ethernet::MacAddress;
use crate::wire::packet::{Fragment, Packet};
use crate::wire::{esp, ethernet, ip4, ip6};

use super::batch::{Batch, Descriptor, WorkerId, live};
use super::outcome::DropReason;
use super::tables::{HostEntry, Tables};

/// Chooses the SA of each packet that is to be sealed. Says whether some have none yet and may wait for a session.
#[must_use]
pub fn select_sa(batch: &mut Batch, tables: &Tables, own: WorkerId) -> bool {
    // Packets of a burst mostly go the same way: it is looked up once for as many as follow one another.
    let mut last: Option<(OutboundKey, Candidates<'_>)> = None;
    let mut some_wait = false;
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
            let candidates = match last {
                Some((key, candidates)) if key == wanted => candidates,
                _ => tables.sas.outbound(&wanted),
            };
            last = Some((wanted, candidates));
            candidates.covering(&descriptor.packet, own)
        });
        match place {
            Some(place) => descriptor.sa = Some(place),
            None if descriptor
                .destination
                .is_some_and(|to| tables.sas.may_have_session(to.host)) =>
            {
                some_wait = true;
            }
            None => descriptor.drop_for(DropReason::NoSecurityAssociation),
        }
    }
    some_wait
}

/// A packet whose headers stand in its fresh frame, waiting for the engine.
struct Prepared {
    /// Its place in the batch.
    position: usize,
    fresh: Frame,
    /// Used up by the engine.
    nonce: Option<Nonce>,
    /// Where ESP begins in the fresh frame.
    start: usize,
    /// Where the payload begins in the source frame.
    from: usize,
    /// Bytes of payload, padding and trailer.
    length: usize,
    /// What AES-GCM authenticates, and how much of it there is.
    additional: ([u8; 12], usize),
    /// The high half of the sequence number, if it is authenticated.
    high: Option<[u8; 4]>,
    /// What stood around the start of ESP before it was laid out for AES-GMAC.
    saved: [u8; 8],
}

/// Seals every live packet of the batch; all of them have SAs among `sas`.
pub fn seal(
    batch: &mut Batch,
    sas: &mut Slots<OutboundSa>,
    tables: &Tables,
    pool: &mut FramePool,
    engine: &dyn Engine,
) {
    let umem = std::sync::Arc::clone(pool.umem());
    let mut prepared = ArrayVec::<Prepared, BATCH>::new();
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
    let tunnel = match sa.mode {
        Mode::Transport => None,
        Mode::Tunnel { local, remote } => {
            let peer = descriptor
                .destination
                .and_then(|to| tables.hosts.get(usize::from(to.host.0)));
            Some(Tunnel::new(tables, peer, local, remote)?)
        }
    };
    let (l3, start) = match &tunnel {
        None => (usize::from(packet.l3_offset), from),
        Some(tunnel) => (ethernet::HEADER, tunnel.length()),
    };
    if start - l3 + outer > tables.uplink_mtu || start + outer > umem.room() {
        return Err(DropReason::TooLong);
    }
    // The trailer goes behind the payload in the frame that it came in.
    let room = umem
        .room_mut(&mut descriptor.frame)
        .get_mut(usize::from(packet.end)..)
        .unwrap_or_default();
    let trailer = esp::write_trailer(room, payload, next_header).ok_or(DropReason::TooLong)?;
    umem.set_length(&mut descriptor.frame, usize::from(packet.end) + trailer);
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
    sa.tally.bytes += outer as u64;
    umem.set_length(&mut fresh, start + outer);
    let (front, rest) = umem.room_mut(&mut fresh).split_at_mut(start);
    match tunnel {
        None => write_transport_headers(front, packet, headers, outer),
        Some(tunnel) => tunnel.write(front, packet, outer),
    }
    let esp = esp::Header {
        spi: sa.spi.get().into(),
        sequence: (number as u32).into(),
        iv: number.into(),
    };
    rest[..esp::HEADER].copy_from_slice(esp.as_bytes());
    let high = sa.esn.then(|| ((number >> 32) as u32).to_be_bytes());
    Ok(Prepared {
        position,
        fresh,
        nonce: Some(nonce),
        start,
        from,
        length: payload + trailer,
        additional: additional(&esp, high),
        high,
        saved: [0; 8],
    })
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

/// Headers between the hosts.
struct Tunnel {
    addresses: Addresses,
    source: MacAddress,
    destination: MacAddress,
}

enum Addresses {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl Tunnel {
    fn new(
        tables: &Tables,
        peer: Option<&HostEntry>,
        local: IpAddr,
        remote: IpAddr,
    ) -> Result<Self, DropReason> {
        Ok(Self {
            addresses: match (local, remote) {
                (IpAddr::V4(local), IpAddr::V4(remote)) => Addresses::V4(local, remote),
                (IpAddr::V6(local), IpAddr::V6(remote)) => Addresses::V6(local, remote),
                // Control refuses an SA between addresses of different families.
                _ => return Err(DropReason::NoNextHop),
            },
            source: tables.uplink_mac,
            destination: peer.and_then(|peer| peer.next_hop).ok_or(DropReason::NoNextHop)?,
        })
    }

    fn length(&self) -> usize {
        ethernet::HEADER
            + match self.addresses {
                Addresses::V4(..) => ip4::HEADER,
                Addresses::V6(..) => ip6::HEADER,
            }
    }

    /// DSCP and ECN are those of the guest's packet (RFC 4301 5.1.2).
    fn write(&self, front: &mut [u8], packet: &Packet, esp_length: usize) {
        let (ethernet, ip) = front.split_at_mut(ethernet::HEADER);
        let ethertype = match self.addresses {
            Addresses::V4(local, remote) => {
                let length = (ip4::HEADER + esp_length) as u16;
                let header = ip4::outer(local, remote, esp::ESP, packet.traffic_class, length);
                ip.copy_from_slice(&header);
                ethernet::IPV4
            }
            Addresses::V6(local, remote) => {
                let header = ip6::outer(local, remote, esp::ESP, packet.traffic_class, esp_length as u16);
                ip.copy_from_slice(&header);
                ethernet::IPV6
            }
        };
        let header = ethernet::Header {
            destination: self.destination,
            source: self.source,
            ethertype: ethertype.into(),
        };
        ethernet.copy_from_slice(header.as_bytes());
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
    for one in prepared.iter_mut() {
        let descriptor = &batch[one.position];
        let Some(sa) = descriptor.sa.and_then(|place| sas.get(place)) else {
            unreachable!("prepared from this SA")
        };
        let source = &umem.bytes(&descriptor.frame)[one.from..one.from + one.length];
        let Some(nonce) = one.nonce.take() else {
            unreachable!("prepared once, sealed once")
        };
        let text = one.start + esp::HEADER;
        let (front, rest) = umem.room_mut(&mut one.fresh).split_at_mut(text + one.length);
        let Some(tag) = rest.first_chunk_mut() else {
            unreachable!("the length was checked")
        };
        let (additional, buffers) = match sa.protection {
            Protection::Encrypt => {
                let (bytes, length) = &one.additional;
                let destination = &mut front[text..];
                (&bytes[..*length], Buffers::Copy { source, destination })
            }
            Protection::Authenticate => {
                front[text..].copy_from_slice(source);
                one.saved.copy_from_slice(&front[one.start - 4..one.start + 4]);
                let from = lay_out_gmac(front, one.start, one.high);
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
    for one in prepared.iter_mut() {
        let Some(sa) = batch[one.position].sa.and_then(|place| sas.get(place)) else {
            continue;
        };
        if sa.protection == Protection::Authenticate {
            umem.room_mut(&mut one.fresh)[one.start - 4..one.start + 4].copy_from_slice(&one.saved);
        }
    }
}

/// SPI and sequence number as they are authenticated (RFC 4106 5): with ESN the high half between them.
#[inline]
pub(super) fn additional(header: &esp::Header, high: Option<[u8; 4]>) -> ([u8; 12], usize) {
    let [a, b, c, d] = header.spi.to_bytes();
    let [i, j, k, l] = header.sequence.to_bytes();
    match high {
        Some([e, f, g, h]) => ([a, b, c, d, e, f, g, h, i, j, k, l], 12),
        None => ([a, b, c, d, i, j, k, l, 0, 0, 0, 0], 8),
    }
}

/// Makes what AES-GMAC authenticates stand in one piece (RFC 4543 3.3: SPI, sequence, IV, payload) and gives where it
/// begins.
///
/// With ESN the high half belongs between SPI and sequence: the SPI moves 4 bytes forward over the end of the headers,
/// which the caller puts back afterwards.
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
