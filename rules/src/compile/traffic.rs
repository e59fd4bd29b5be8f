//! Kinds of traffic to rows: network, EtherType and protocol, VLAN, DSCP, ports, ICMP.

use std::collections::BTreeSet;

use crate::facts::{Facts, Ports};
use crate::meaning::reply_type;
use crate::model::{NetworkIndex, Traffic, VlanTest};

use super::parties::Networks;
use super::rows::{Bits, Known, RowId, RowStore, Sweep};

/// What one entry wants of a packet besides its parties.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) networks: Networks,
    pub(crate) traffic: Traffic,
}

#[derive(Debug)]
pub(crate) struct TrafficTable {
    networks: Vec<RowId>,
    /// A network that the policy has not.
    no_network: RowId,
    /// EtherTypes that entries name, sorted.
    ethertypes: Vec<u16>,
    /// Class of each protocol; the last of no protocol.
    protocol_class: Vec<u16>,
    protocol_classes: usize,
    /// By EtherType, then protocol class.
    kinds: Vec<RowId>,
    /// If an entry asks.
    vlans: Option<Vlans>,
    /// If an entry asks: by DSCP; the last of what has none.
    dscps: Option<Vec<RowId>>,
    /// By port.
    port_class: Vec<u16>,
    port_rows: Vec<RowId>,
    no_ports: RowId,
    unreadable: RowId,
    /// Codes that entries name, sorted; then by type and code class, as sent and as answered.
    icmp_codes: Vec<u8>,
    icmp: Vec<[RowId; 2]>,
}

#[derive(Debug)]
struct Vlans {
    /// By identifier, sorted.
    named: Vec<(u16, RowId)>,
    other: RowId,
    untagged: RowId,
}

impl TrafficTable {
    pub(crate) fn build(
        entries: &[&Wanted],
        networks: usize,
        store: &mut RowStore,
        known: &mut Known,
    ) -> Self {
        let blocks = store.blocks_per_row();
        let mut row = |wants: &dyn Fn(&Wanted) -> bool| {
            let wanted = entries.iter().enumerate().filter(|(_, entry)| wants(entry));
            let bits = Bits::of(blocks, wanted.map(|(position, _)| position));
            store.intern(known, &bits)
        };
        let sorted = |mut list: Vec<u16>| {
            list.sort_unstable();
            list.dedup();
            list
        };
        let network_rows = (0..networks as u16)
            .map(|network| row(&|entry| entry.networks.contains(NetworkIndex(network))))
            .collect();
        let no_network = row(&|_| false);

        let ethertypes = sorted(
            entries
                .iter()
                .filter_map(|entry| entry.traffic.ethertype)
                .collect(),
        );
        let protocols = sorted(
            entries
                .iter()
                .filter_map(|entry| entry.traffic.protocol.map(u16::from))
                .collect(),
        );
        // One class for each that is named, and one for all others and none.
        let mut protocol_class = vec![protocols.len() as u16; 257];
        for (class, protocol) in (0u16..).zip(&protocols) {
            protocol_class[usize::from(*protocol)] = class;
        }
        let protocol_classes = protocols.len() + 1;
        let mut kinds = Vec::new();
        for ethertype in ethertypes.iter().map(|one| Some(*one)).chain([None]) {
            for protocol in protocols.iter().map(|one| Some(*one)).chain([None]) {
                kinds.push(row(&|entry| {
                    entry
                        .traffic
                        .ethertype
                        .is_none_or(|wanted| Some(wanted) == ethertype)
                        && entry
                            .traffic
                            .protocol
                            .is_none_or(|wanted| Some(u16::from(wanted)) == protocol)
                }));
            }
        }

        let ids = sorted(
            entries
                .iter()
                .filter_map(|entry| match entry.traffic.vlan {
                    Some(VlanTest::Id(id)) => Some(id),
                    _ => None,
                })
                .collect(),
        );
        let mut vlan_row = |vlan| row(&|entry| entry.traffic.vlan.is_none_or(|test| test.passes(vlan)));
        let vlans = entries
            .iter()
            .any(|entry| entry.traffic.vlan.is_some())
            .then(|| Vlans {
                named: ids.iter().map(|id| (*id, vlan_row(Some(*id)))).collect(),
                other: vlan_row(Some(u16::MAX)),
                untagged: vlan_row(None),
            });
        let dscps = entries.iter().any(|entry| entry.traffic.dscp.is_some()).then(|| {
            (0..64)
                .map(Some)
                .chain([None])
                .map(|dscp| row(&|entry| entry.traffic.dscp.is_none_or(|wanted| Some(wanted) == dscp)))
                .collect()
        });

        let needs_none = |traffic: &Traffic| traffic.ports.is_empty() && traffic.icmp_type.is_none();
        let no_ports = row(&|entry| needs_none(&entry.traffic));
        let unreadable = row(&|_| true);
        let mut codes = sorted(
            entries
                .iter()
                .filter_map(|entry| entry.traffic.icmp_code.map(u16::from))
                .collect(),
        );
        let icmp_codes: Vec<u8> = codes.drain(..).map(|code| code as u8).collect();
        let mut asked: Vec<u8> = Vec::new();
        for entry in entries {
            if let Some(sent) = entry.traffic.icmp_type {
                asked.push(sent);
                asked.extend(reply_type(entry.traffic.protocol, sent));
            }
        }
        asked.sort_unstable();
        asked.dedup();
        let mut icmp = Vec::new();
        for kind in 0..=255u8 {
            if asked.binary_search(&kind).is_err() {
                icmp.extend(std::iter::repeat_n([no_ports; 2], icmp_codes.len() + 1));
                continue;
            }
            for code in icmp_codes.iter().map(|code| Some(*code)).chain([None]) {
                icmp.push([false, true].map(|reply| {
                    row(&|entry| {
                        let traffic = &entry.traffic;
                        needs_none(traffic)
                            || traffic.icmp_type.is_some_and(|sent| {
                                let wanted = if reply {
                                    reply_type(traffic.protocol, sent)
                                } else {
                                    Some(sent)
                                };
                                wanted == Some(kind)
                                    && traffic.icmp_code.is_none_or(|wanted| Some(wanted) == code)
                            })
                    })
                }));
            }
        }
        let (port_class, port_rows) = port_classes(entries, store, known);
        Self {
            networks: network_rows,
            no_network,
            ethertypes,
            protocol_class,
            protocol_classes,
            kinds,
            vlans,
            dscps,
            port_class,
            port_rows,
            no_ports,
            unreadable,
            icmp_codes,
            icmp,
        }
    }

    /// The rows of network, EtherType and protocol.
    #[inline]
    pub(crate) fn common(&self, facts: &Facts) -> [RowId; 2] {
        let ethertype = self
            .ethertypes
            .iter()
            .position(|one| *one == facts.ethertype)
            .unwrap_or(self.ethertypes.len());
        let protocol = self.protocol_class[facts.protocol.map_or(256, usize::from)];
        let network = self
            .networks
            .get(facts.network.index())
            .unwrap_or(&self.no_network);
        let kind = self.kinds[ethertype * self.protocol_classes + usize::from(protocol)];
        [*network, kind]
    }

    /// Whether an entry asks of VLAN or DSCP.
    #[inline]
    pub(crate) fn asks_more(&self) -> bool {
        self.vlans.is_some() || self.dscps.is_some()
    }

    /// The rows of VLAN and DSCP, where an entry asks of it.
    #[inline]
    pub(crate) fn more(&self, facts: &Facts) -> [Option<RowId>; 2] {
        let vlan = self.vlans.as_ref().map(|vlans| match facts.vlan {
            None => vlans.untagged,
            Some(vlan) => vlans
                .named
                .binary_search_by_key(&vlan, |(id, _)| *id)
                .map_or(vlans.other, |at| vlans.named[at].1),
        });
        let dscp = self.dscps.as_ref().map(|rows| match facts.protocol {
            None => rows[64],
            Some(_) => rows[usize::from(facts.dscp & 63)],
        });
        [vlan, dscp]
    }

    /// The rows of the ports, or of the ICMP type and code: as sent, and as answered.
    #[inline]
    pub(crate) fn ports(&self, facts: &Facts) -> [RowId; 2] {
        let of = |port: u16| self.port_rows[usize::from(self.port_class[usize::from(port)])];
        match (facts.ports, facts.icmp) {
            (Ports::Pair { source, destination }, _) => [of(destination), of(source)],
            (Ports::Unreadable, _) => [self.unreadable; 2],
            (Ports::None, None) => [self.no_ports; 2],
            (Ports::None, Some((kind, code))) => {
                let class = self
                    .icmp_codes
                    .binary_search(&code)
                    .unwrap_or(self.icmp_codes.len());
                self.icmp[usize::from(kind) * (self.icmp_codes.len() + 1) + class]
            }
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.port_class.len() * 2
            + 4 * (self.port_rows.len() + self.kinds.len() + self.networks.len())
            + self.icmp.len() * 8
            + self.protocol_class.len()
    }
}

/// Rows that the fields but the ports may need.
pub(crate) fn most_rows<'a>(traffic: impl Iterator<Item = &'a Traffic>, networks: usize) -> usize {
    let (mut ethertypes, mut protocols, mut vlans) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let (mut types, mut codes) = (BTreeSet::new(), BTreeSet::new());
    for traffic in traffic {
        ethertypes.extend(traffic.ethertype);
        protocols.extend(traffic.protocol);
        vlans.extend(match traffic.vlan {
            Some(VlanTest::Id(id)) => Some(id),
            _ => None,
        });
        types.extend(traffic.icmp_type);
        codes.extend(traffic.icmp_code);
    }
    // An ICMP type has rows as sent and as answered, and so has its answer. 65 DSCPs, and a few that stand alone.
    networks
        + (ethertypes.len() + 1) * (protocols.len() + 1)
        + vlans.len()
        + 4 * types.len() * (codes.len() + 1)
        + 80
}

/// The class of each port, and the row of each class.
fn port_classes(entries: &[&Wanted], store: &mut RowStore, known: &mut Known) -> (Vec<u16>, Vec<RowId>) {
    let mut edges: Vec<(u32, usize)> = Vec::new();
    for (position, entry) in entries.iter().enumerate() {
        if entry.traffic.ports.is_empty() {
            continue;
        }
        // Ranges that overlap become one, so that none ends inside another.
        let mut ranges: Vec<(u32, u32)> = entry
            .traffic
            .ports
            .iter()
            .map(|range| (u32::from(*range.start()), u32::from(*range.end())))
            .collect();
        ranges.sort_unstable();
        let mut last: Option<(u32, u32)> = None;
        for range in ranges {
            match &mut last {
                Some((_, end)) if range.0 <= *end + 1 => *end = (*end).max(range.1),
                _ => {
                    if let Some((first, end)) = last.replace(range) {
                        edges.extend([(first, position), (end + 1, position)]);
                    }
                }
            }
        }
        if let Some((first, end)) = last {
            edges.extend([(first, position), (end + 1, position)]);
        }
    }
    edges.sort_unstable_by_key(|edge| edge.0);
    let free = |traffic: &Traffic| traffic.ports.is_empty() && traffic.icmp_type.is_none();
    let positions = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| free(&entry.traffic));
    let free = Bits::of(store.blocks_per_row(), positions.map(|(position, _)| position));
    let mut sweep = Sweep::new(free);
    let mut class_of = Vec::with_capacity(1 << 16);
    let mut rows: Vec<RowId> = Vec::new();
    let mut next = edges.iter().peekable();
    let mut changed = true;
    for port in 0..1u32 << 16 {
        while let Some((_, position)) = next.next_if(|edge| edge.0 == port) {
            changed = true;
            sweep.flip(*position);
        }
        if std::mem::take(&mut changed) {
            rows.push(store.intern_sweep(known, &mut sweep));
        }
        class_of.push((rows.len() - 1) as u16);
    }
    (class_of, rows)
}
