//! Rule sets and packets of ClassBench's shape, for this product: tenants with guests, and rules of addresses, labels and guests.
//!
//! A seed names a family of filters as they were found in the field: access lists (`acl`), firewalls (`fw`), IP chains
//! (`ipc`). It says how long the prefixes of both sides are, how often the wider of two nests the narrower, and which
//! protocols and port classes come with them: wildcard, above 1023, below 1024, a range, one port. Where the families' rules
//! test the sender's port, this language has no word, and the rule leaves it open. Three rules of ten are about labels or
//! guests instead of addresses. The same number makes the same rules and packets.
//! Taylor and Turner, ClassBench: a packet classification benchmark (INFOCOM 2005), sections III and IV.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use guestseal_rules::facts::{Facts, Party, Ports};
use guestseal_rules::model::{GuestIndex, NetworkIndex};

/// Tenants, each a network.
const NETWORKS: u32 = 10;
const HOSTS: u32 = 20;
const ROLES: u32 = 40;
const TIERS: u32 = 5;
/// Of ten rules, those about labels and guests.
const GUEST_RULES: u32 = 3;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A family of filters.
#[derive(Copy, Clone, Debug)]
pub struct Seed {
    /// Its name.
    pub name: &'static str,
    /// Prefix lengths of `from` and `to`, and how often.
    prefixes: &'static [((u8, u8), u32)],
    /// Protocols, and how often; `None` is any.
    protocols: &'static [(Option<u8>, u32)],
    /// Classes of the port at `to`, and how often.
    ports: &'static [(PortClass, u32)],
    /// Of a hundred prefixes, those that lie in one that is there already.
    nested: u32,
    /// Of a hundred, those that are there already.
    again: u32,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum PortClass {
    Wildcard,
    High,
    Low,
    Range,
    Exact,
}

/// The families.
pub const SEEDS: [Seed; 3] = [
    Seed {
        name: "acl",
        prefixes: &[
            ((0, 32), 14),
            ((0, 24), 8),
            ((16, 32), 10),
            ((21, 28), 9),
            ((24, 24), 14),
            ((24, 32), 23),
            ((27, 27), 6),
            ((32, 32), 12),
            ((32, 24), 4),
        ],
        protocols: &[(Some(TCP), 80), (Some(UDP), 13), (Some(ICMP), 3), (None, 4)],
        ports: &[
            (PortClass::Wildcard, 23),
            (PortClass::High, 4),
            (PortClass::Low, 1),
            (PortClass::Range, 17),
            (PortClass::Exact, 55),
        ],
        nested: 55,
        again: 25,
    },
    Seed {
        name: "fw",
        prefixes: &[
            ((0, 0), 3),
            ((0, 32), 24),
            ((0, 24), 11),
            ((0, 16), 4),
            ((32, 0), 16),
            ((24, 0), 8),
            ((8, 32), 3),
            ((16, 24), 5),
            ((24, 24), 7),
            ((32, 24), 7),
            ((32, 32), 12),
        ],
        protocols: &[
            (Some(TCP), 60),
            (Some(UDP), 25),
            (Some(ICMP), 6),
            (Some(47), 2),
            (Some(50), 2),
            (None, 5),
        ],
        ports: &[
            (PortClass::Wildcard, 34),
            (PortClass::High, 9),
            (PortClass::Low, 1),
            (PortClass::Range, 7),
            (PortClass::Exact, 49),
        ],
        nested: 40,
        again: 35,
    },
    Seed {
        name: "ipc",
        prefixes: &[
            ((0, 0), 1),
            ((0, 32), 9),
            ((32, 0), 8),
            ((8, 24), 5),
            ((16, 16), 6),
            ((16, 32), 11),
            ((24, 16), 7),
            ((24, 24), 13),
            ((24, 32), 14),
            ((32, 24), 9),
            ((32, 32), 17),
        ],
        protocols: &[
            (Some(TCP), 54),
            (Some(UDP), 27),
            (Some(ICMP), 7),
            (Some(47), 1),
            (None, 11),
        ],
        ports: &[
            (PortClass::Wildcard, 40),
            (PortClass::High, 5),
            (PortClass::Low, 2),
            (PortClass::Range, 12),
            (PortClass::Exact, 41),
        ],
        nested: 50,
        again: 30,
    },
];

/// Numbers that look like chance and are the same for the same seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Beginning at a number.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of the numbers below.
    pub fn below(&mut self, end: u32) -> u32 {
        (((self.roll() >> 32) * u64::from(end)) >> 32) as u32
    }

    fn percent(&mut self, share: u32) -> bool {
        self.below(100) < share
    }

    fn weighted<T: Copy>(&mut self, list: &[(T, u32)]) -> T {
        let mut left = self.below(list.iter().map(|(_, weight)| weight).sum());
        for (one, weight) in list {
            match left.checked_sub(*weight) {
                Some(rest) => left = rest,
                None => return *one,
            }
        }
        unreachable!("the rest is below the sum")
    }

    /// Copies of one packet in a row: Pareto with shape 1 and scale 0.1, as in ClassBench's traces of medium locality.
    fn pareto(&mut self) -> usize {
        let uniform = (self.roll() >> 11) as f64 / (1u64 << 53) as f64;
        (0.1 / (1.0 - uniform)).ceil().min(64.0) as usize
    }
}

/// A policy, and what its packets are made of.
#[derive(Clone, Debug)]
pub struct Filters {
    /// The policy's file.
    pub yaml: String,
    rules: Vec<Filter>,
    /// Addresses of the guests by number.
    guests: u32,
}

#[derive(Copy, Clone, Debug)]
struct Filter {
    network: u32,
    from: Side,
    to: Side,
    protocol: Option<u8>,
    ports: (u16, u16),
}

#[derive(Copy, Clone, Debug)]
enum Side {
    Prefix { address: u32, length: u8 },
    Role(u32),
    Tier(u32),
    Guest(u32),
}

impl Seed {
    /// A policy of so many rules and guests.
    #[must_use]
    pub fn filters(&self, rules: u32, guests: u32, seed: u64) -> Filters {
        let mut dice = Dice::new(seed ^ u64::from(rules) << 32);
        let mut pools = [Vec::new(), Vec::new()];
        let mut list: Vec<Filter> = (1..rules)
            .map(|_| self.filter(&mut dice, &mut pools, guests))
            .collect();
        // The widest stand last, as an operator puts them, or nothing behind them would ever match.
        list.sort_by_key(|rule| rule.width());
        let mut yaml = front(guests);
        for (number, rule) in list.iter().enumerate() {
            rule.write(&mut yaml, number, &mut dice);
        }
        yaml += "  - {name: rest, from: any, to: any, action: encrypt, key: k0}\n";
        Filters {
            yaml,
            rules: list,
            guests,
        }
    }

    fn filter(&self, dice: &mut Dice, pools: &mut [Vec<(u32, u8)>; 2], guests: u32) -> Filter {
        let network = dice.below(NETWORKS);
        let [from, to] = if dice.below(10) < GUEST_RULES {
            [(); 2].map(|()| match dice.below(4) {
                0 => Side::Guest(dice.below(guests / NETWORKS) * NETWORKS + network),
                1 => Side::Tier(dice.below(TIERS)),
                _ => Side::Role(dice.below(ROLES)),
            })
        } else {
            let (from, to) = dice.weighted(self.prefixes);
            let [sources, destinations] = pools;
            [
                self.prefix(dice, sources, from, network),
                self.prefix(dice, destinations, to, network),
            ]
        };
        let protocol = dice.weighted(self.protocols);
        let ports = match (protocol, dice.weighted(self.ports)) {
            (Some(TCP | UDP), class) => class.ports(dice),
            _ => (0, u16::MAX),
        };
        Filter {
            network,
            from,
            to,
            protocol,
            ports,
        }
    }

    fn prefix(&self, dice: &mut Dice, pool: &mut Vec<(u32, u8)>, length: u8, network: u32) -> Side {
        let same: Vec<(u32, u8)> = pool
            .iter()
            .rev()
            .filter(|one| one.1 == length)
            .take(200)
            .copied()
            .collect();
        let wider: Vec<(u32, u8)> = pool
            .iter()
            .rev()
            .filter(|one| one.1 < length && one.1 > 0)
            .take(200)
            .copied()
            .collect();
        let fresh = if dice.percent(60) {
            // Where the tenant's guests are.
            10 << 24 | network << 16 | dice.below(1 << 13)
        } else {
            dice.roll() as u32
        };
        let (address, _) = if !same.is_empty() && dice.percent(self.again) {
            same[dice.below(same.len() as u32) as usize]
        } else if !wider.is_empty() && dice.percent(self.nested) {
            let (address, wide) = wider[dice.below(wider.len() as u32) as usize];
            (address | dice.roll() as u32 & !mask(wide), length)
        } else {
            (fresh, length)
        };
        let address = address & mask(length);
        pool.push((address, length));
        Side::Prefix { address, length }
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

impl PortClass {
    fn ports(self, dice: &mut Dice) -> (u16, u16) {
        match self {
            PortClass::Wildcard => (0, u16::MAX),
            PortClass::High => (1024, u16::MAX),
            PortClass::Low => (0, 1023),
            PortClass::Range => {
                let first = 1 + dice.below(40_000) as u16;
                (first, first + 1 + dice.below(400) as u16)
            }
            PortClass::Exact => {
                // A few ports are asked for again and again.
                const USUAL: [u16; 12] = [80, 443, 25, 53, 22, 21, 1521, 3306, 135, 139, 445, 8080];
                let port = match dice.percent(70) {
                    true => USUAL[dice.below(USUAL.len() as u32) as usize],
                    false => 1 + dice.below(20_000) as u16,
                };
                (port, port)
            }
        }
    }
}

fn front(guests: u32) -> String {
    let mut yaml = String::from("hosts:\n");
    for host in 0..HOSTS {
        let _ = writeln!(yaml, "  - {{name: h{host}, addresses: [192.0.2.{}]}}", host + 1);
    }
    yaml += "networks:\n";
    for network in 0..NETWORKS {
        let _ = writeln!(
            yaml,
            "  - {{name: n{network}, type: vxlan, vni: {}}}",
            network + 1
        );
    }
    yaml += "keys:\n  - {id: k0}\n  - {id: k1}\ncontainers:\n  - {name: default}\n  - {name: held, quarantine: true}\nguests:\n";
    for guest in 0..guests {
        let [_, high, middle, low] = (guest + 1).to_be_bytes();
        let _ = writeln!(
            yaml,
            "  - {{id: g{guest}, host: h{}, labels: {{role: r{}, tier: t{}}}, ports: [{{interface: gp{guest}, network: n{}, \
             mac: \"02:00:00:{high:02x}:{middle:02x}:{low:02x}\", addresses: [{}]}}]}}",
            guest % HOSTS,
            role(guest),
            tier(guest),
            guest % NETWORKS,
            address(guest)
        );
    }
    yaml += "rules:\n";
    yaml
}

fn role(guest: u32) -> u32 {
    guest / NETWORKS % ROLES
}

fn tier(guest: u32) -> u32 {
    guest / 7 % TIERS
}

fn address(guest: u32) -> Ipv4Addr {
    // Spread over the lower half of the tenant's /16.
    Ipv4Addr::from_bits(10 << 24 | (guest % NETWORKS) << 16 | (guest / NETWORKS * 79 + 1) & 0x1fff)
}

impl Filter {
    fn width(&self) -> u32 {
        let side = |side: Side| match side {
            Side::Prefix { length, .. } => 32 - u32::from(length),
            Side::Role(_) => 8,
            Side::Tier(_) => 10,
            Side::Guest(_) => 0,
        };
        let (from, to) = (side(self.from), side(self.to));
        from + to
            + (self.ports.1 - self.ports.0)
                .checked_ilog2()
                .map_or(0, |bits| bits + 1)
    }

    fn write(&self, yaml: &mut String, number: usize, dice: &mut Dice) {
        let network = self.network;
        let side = |side: Side| match side {
            Side::Prefix { length: 0, .. } => format!("{{network: n{network}}}"),
            Side::Prefix { address, length } => {
                format!(
                    "{{network: n{network}, cidr: {}/{length}}}",
                    Ipv4Addr::from_bits(address)
                )
            }
            Side::Role(role) => format!("{{network: n{network}, label: {{role: r{role}}}}}"),
            Side::Tier(tier) => format!("{{network: n{network}, label: {{tier: t{tier}}}}}"),
            Side::Guest(guest) => format!("{{guest: g{guest}}}"),
        };
        let _ = write!(
            yaml,
            "  - {{name: r{number}, from: {}, to: {}, ",
            side(self.from),
            side(self.to)
        );
        if let Some(protocol) = self.protocol {
            let _ = write!(yaml, "protocol: {protocol}, ");
        }
        match self.ports {
            (0, u16::MAX) => {}
            (first, last) if first == last => {
                let _ = write!(yaml, "ports: [{first}], ");
            }
            (first, last) => {
                let _ = write!(yaml, "ports: [{first}-{last}], ");
            }
        }
        *yaml += match dice.below(4) {
            0 => "action: drop}\n",
            1 => "action: plaintext}\n",
            2 => "action: encrypt, key: k1}\n",
            _ => "action: encrypt, key: k0}\n",
        };
    }
}

impl Filters {
    /// Packets that meet the rules, each as likely: so many flows, each of which another packet opened or answers.
    #[must_use]
    pub fn flows(&self, count: usize, seed: u64) -> Vec<Facts> {
        let mut dice = Dice::new(seed);
        (0..count)
            .map(|_| {
                let rule = self.rules.get(dice.below(self.rules.len() as u32 + 1) as usize);
                self.packet(rule, &mut dice)
            })
            .collect()
    }

    /// A trace of so many packets over some flows: one at a time, each for as long as Pareto says.
    #[must_use]
    pub fn trace(flows: &[Facts], count: usize, seed: u64) -> Vec<Facts> {
        let mut dice = Dice::new(seed);
        let mut trace = Vec::with_capacity(count + 64);
        while trace.len() < count {
            let flow = flows[dice.below(flows.len() as u32) as usize];
            trace.extend(std::iter::repeat_n(flow, dice.pareto()));
        }
        trace.truncate(count);
        trace
    }

    fn packet(&self, rule: Option<&Filter>, dice: &mut Dice) -> Facts {
        let any = Side::Prefix {
            address: 0,
            length: 0,
        };
        let rule = rule.copied().unwrap_or(Filter {
            network: dice.below(NETWORKS),
            from: any,
            to: any,
            protocol: None,
            ports: (0, u16::MAX),
        });
        let source = self.party(rule.from, rule.network, dice);
        let destination = self.party(rule.to, rule.network, dice);
        let protocol = rule
            .protocol
            .unwrap_or([TCP, TCP, UDP, ICMP][dice.below(4) as usize]);
        let (first, last) = rule.ports;
        let port = first + dice.below(u32::from(last - first) + 1) as u16;
        let ephemeral = 32_768 + dice.below(28_000) as u16;
        let reply = dice.percent(50);
        let ports = match protocol {
            TCP | UDP if reply => Ports::Pair {
                source: port,
                destination: ephemeral,
            },
            TCP | UDP => Ports::Pair {
                source: ephemeral,
                destination: port,
            },
            _ => Ports::None,
        };
        let [source, destination] = if reply {
            [destination, source]
        } else {
            [source, destination]
        };
        Facts {
            network: NetworkIndex(rule.network as u16),
            ethertype: 0x0800,
            vlan: None,
            protocol: Some(protocol),
            ports,
            icmp: (protocol == ICMP).then_some((if reply { 0 } else { 8 }, 0)),
            dscp: 0,
            opening: protocol == TCP && !reply && dice.percent(10),
            source,
            destination,
        }
    }

    /// One of those that a side means, a guest if one is among them.
    fn party(&self, side: Side, network: u32, dice: &mut Dice) -> Party {
        let fits = |guest: u32| match side {
            Side::Prefix {
                address: prefix,
                length,
            } => (address(guest).to_bits() ^ prefix) & mask(length) == 0,
            Side::Role(wanted) => role(guest) == wanted,
            Side::Tier(wanted) => tier(guest) == wanted,
            Side::Guest(wanted) => guest == wanted,
        };
        let mates = self.guests / NETWORKS;
        let first = dice.below(mates);
        let guest = (0..mates)
            .map(|step| (first + step) % mates * NETWORKS + network)
            .find(|guest| fits(*guest));
        match (guest, side) {
            (Some(guest), _) => Party {
                guest: Some(GuestIndex(guest)),
                address: Some(IpAddr::V4(address(guest))),
            },
            (None, Side::Prefix { address, length }) => Party {
                guest: None,
                address: Some(IpAddr::V4(Ipv4Addr::from_bits(
                    address | dice.roll() as u32 & !mask(length),
                ))),
            },
            (None, _) => Party {
                guest: None,
                address: None,
            },
        }
    }
}
