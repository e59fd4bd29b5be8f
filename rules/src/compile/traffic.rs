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
    kinds: Vec<Kind>,
    /// If an entry asks.
    vlans: Option<Vlans>,
    /// If an entry asks: by DSCP; the last of what has none.
    dscps: Option<Vec<RowId>>,
    /// By port.
    port_class: Vec<u16>,
    /// ICMP codes that entries name, sorted.
    icmp_codes: Vec<u8>,
}

/// The rows of one EtherType and protocol, with what they have of ports or of ICMP types.
#[derive(Debug)]
struct Kind {
    /// By class of port; empty if no entry of the kind names one.
    ports: Vec<RowId>,
    /// By ICMP type and class of code, as sent and as answered; empty if no entry of the kind names one.
    icmp: Vec<[RowId; 2]>,
    /// Of what has neither, and of what no entry names.
    neither: RowId,
    /// Of what may have any.
    unreadable: RowId,
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

        let mut codes = sorted(
            entries
                .iter()
                .filter_map(|entry| entry.traffic.icmp_code.map(u16::from))
                .collect(),
        );
        let icmp_codes: Vec<u8> = codes.drain(..).map(|code| code as u8).collect();
        let ports = PortEdges::of(entries);
        let mut kinds = Vec::new();
        for ethertype in ethertypes.iter().map(|one| Some(*one)).chain([None]) {
            for protocol in protocols.iter().map(|one| Some(*one)).chain([None]) {
                let is_of_kind = |entry: &Wanted| {
                    let (of_type, of_protocol) = (entry.traffic.ethertype, entry.traffic.protocol);
                    of_type.is_none_or(|wanted| Some(wanted) == ethertype)
                        && of_protocol.is_none_or(|wanted| Some(u16::from(wanted)) == protocol)
                };
                let members: Vec<bool> = entries.iter().map(|entry| is_of_kind(entry)).collect();
                kinds.push(Kind::build(entries, &members, &ports, &icmp_codes, store, known));
            }
        }
        Self {
            networks: network_rows,
            no_network,
            ethertypes,
            protocol_class,
            protocol_classes,
            kinds,
            vlans,
            dscps,
            port_class: ports.class_of,
            icmp_codes,
        }
    }

    /// The row of a network.
    #[inline]
    pub(crate) fn network(&self, network: NetworkIndex) -> RowId {
        *self.networks.get(network.index()).unwrap_or(&self.no_network)
    }

    /// The rows of EtherType, protocol, and ports or ICMP type and code: as sent, and as answered.
    #[inline]
    pub(crate) fn kind(&self, facts: &Facts) -> [RowId; 2] {
        let ethertype = self
            .ethertypes
            .iter()
            .position(|one| *one == facts.ethertype)
            .unwrap_or(self.ethertypes.len());
        let protocol = self.protocol_class[facts.protocol.map_or(256, usize::from)];
        let kind = &self.kinds[ethertype * self.protocol_classes + usize::from(protocol)];
        match (facts.ports, facts.icmp) {
            (Ports::Pair { source, destination }, _) => [destination, source].map(|port| {
                let class = self.port_class[usize::from(port)];
                *kind.ports.get(usize::from(class)).unwrap_or(&kind.neither)
            }),
            (Ports::Unreadable, _) => [kind.unreadable; 2],
            (Ports::None, Some((sent, code))) if !kind.icmp.is_empty() => {
                let class = self
                    .icmp_codes
                    .binary_search(&code)
                    .unwrap_or(self.icmp_codes.len());
                kind.icmp[usize::from(sent) * (self.icmp_codes.len() + 1) + class]
            }
            (Ports::None, _) => [kind.neither; 2],
        }
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

    pub(crate) fn bytes(&self) -> usize {
        let kinds = self.kinds.iter().map(|kind| {
            size_of::<Kind>()
                + kind.ports.len() * size_of::<RowId>()
                + kind.icmp.len() * size_of::<[RowId; 2]>()
        });
        self.port_class.len() * 2
            + self.networks.len() * size_of::<RowId>()
            + self.protocol_class.len() * 2
            + kinds.sum::<usize>()
    }
}

/// Whether an entry wants neither ports nor an ICMP type.
fn wants_neither(traffic: &Traffic) -> bool {
    traffic.ports.is_empty() && traffic.icmp_type.is_none()
}

impl Kind {
    /// Of the entries that are `members`.
    fn build(
        entries: &[&Wanted],
        members: &[bool],
        ports: &PortEdges,
        codes: &[u8],
        store: &mut RowStore,
        known: &mut Known,
    ) -> Self {
        let blocks = store.blocks_per_row();
        let those = || {
            entries
                .iter()
                .zip(members)
                .enumerate()
                .filter(|(_, (_, member))| **member)
        };
        let bits = |wants: &dyn Fn(&Traffic) -> bool| {
            let wanted = those().filter(|(_, (entry, _))| wants(&entry.traffic));
            Bits::of(blocks, wanted.map(|(position, _)| position))
        };
        let neither = bits(&wants_neither);
        let mut kind = Self {
            ports: Vec::new(),
            icmp: Vec::new(),
            neither: store.intern(known, &neither),
            unreadable: store.intern(known, &bits(&|_| true)),
        };
        let mut asked: Vec<u8> = Vec::new();
        for (_, (entry, _)) in those() {
            if let Some(sent) = entry.traffic.icmp_type {
                asked.push(sent);
                asked.extend(reply_type(entry.traffic.protocol, sent));
            }
        }
        if !asked.is_empty() {
            kind.icmp = vec![[kind.neither; 2]; 256 * (codes.len() + 1)];
            asked.sort_unstable();
            asked.dedup();
        }
        for sent in asked {
            let classes = codes.iter().map(|code| Some(*code)).chain([None]);
            for (class, code) in classes.enumerate() {
                kind.icmp[usize::from(sent) * (codes.len() + 1) + class] = [false, true].map(|reply| {
                    let wants = |traffic: &Traffic| {
                        let is_type = |wanted| match reply {
                            true => reply_type(traffic.protocol, wanted) == Some(sent),
                            false => wanted == sent,
                        };
                        wants_neither(traffic)
                            || traffic.icmp_type.is_some_and(is_type)
                                && traffic.icmp_code.is_none_or(|wanted| Some(wanted) == code)
                    };
                    store.intern(known, &bits(&wants))
                });
            }
        }
        if those().any(|(_, (entry, _))| !entry.traffic.ports.is_empty()) {
            kind.ports = ports.rows(members, neither, store, known);
        }
        kind
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
        + 2 * (ethertypes.len() + 1) * (protocols.len() + 1)
        + vlans.len()
        + 4 * types.len() * (codes.len() + 1) * (ethertypes.len() + 1)
        + 80
}

/// Where an entry's ports begin and end: cut into classes of ports, in each of which the same entries hold.
struct PortEdges {
    class_of: Vec<u16>,
    /// By class, the entries that begin or end there.
    classes: Vec<Vec<usize>>,
}

impl PortEdges {
    fn of(entries: &[&Wanted]) -> Self {
        let mut edges: Vec<(u32, usize)> = Vec::new();
        for (position, entry) in entries.iter().enumerate() {
            // Ranges that overlap become one, so that none ends inside another.
            let ports = entry.traffic.ports.iter();
            let mut ranges: Vec<(u32, u32)> = ports
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
        let mut class_of = Vec::with_capacity(1 << 16);
        let mut classes: Vec<Vec<usize>> = vec![Vec::new()];
        let mut next = edges.iter().peekable();
        for port in 0..1u32 << 16 {
            let mut here = Vec::new();
            while let Some((_, position)) = next.next_if(|edge| edge.0 == port) {
                here.push(*position);
            }
            if port == 0 {
                classes[0] = here;
            } else if !here.is_empty() {
                classes.push(here);
            }
            class_of.push((classes.len() - 1) as u16);
        }
        Self { class_of, classes }
    }

    /// The row of each class, of some of the entries; `neither` has those of them that hold for every port.
    fn rows(&self, members: &[bool], neither: Bits, store: &mut RowStore, known: &mut Known) -> Vec<RowId> {
        let mut sweep = Sweep::new(neither);
        let mut row = None;
        let mut rows = Vec::with_capacity(self.classes.len());
        for class in &self.classes {
            for position in class.iter().filter(|position| members[**position]) {
                sweep.flip(*position);
                row = None;
            }
            rows.push(*row.get_or_insert_with(|| store.intern_sweep(known, &mut sweep)));
        }
        rows
    }
}
