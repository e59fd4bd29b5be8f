//! No byte of one overlay network's traffic is delivered in another: random tenants, traffic and attackers.

use guestseal::wire::packet::Packet;
use guestseal::wire::{esp, geneve, vxlan};
use guestseal_rules::load::{Source, load_policy};
use guestseal_rules::model::{Policy, Vni};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::frames::*;
use crate::host::{Host, Options};
use crate::overlay_foreign::{OVERLAY_HEADER, UDP_HEADER, Written, on_the_way, sealed, spi_of};

/// What every byte of a network's payloads is.
const FILL: [u8; 2] = [0xb1, 0x4e];
const BLUE: usize = 0;
const RED: usize = 1;

/// Two tenants' networks whose guests have MACs and addresses out of one pool, and whose VNIs are near each other.
#[derive(Clone, Debug)]
struct Tenants {
    kinds: [&'static str; 2],
    vnis: [u32; 2],
    /// For each of blue-1, blue-2, blue-3, red-1, red-2: the numbers of its MAC and of its addresses in the pool.
    numbers: [(u8, u8); 5],
}

const IDS: [(&str, usize, usize); 5] = [
    ("blue-1", BLUE, 0),
    ("blue-2", BLUE, 1),
    ("blue-3", BLUE, 0),
    ("red-1", RED, 0),
    ("red-2", RED, 1),
];

fn any_tenants() -> impl Strategy<Value = Tenants> {
    let kind = select(vec!["vxlan", "geneve"]);
    let order = Just([1u8, 2, 3]).prop_shuffle();
    let vnis = (1..=Vni::MAX, 0..6usize).prop_map(|(vni, relation)| {
        let other = match relation {
            0 => vni ^ 1,
            1 => vni.swap_bytes() >> 8,
            2 => vni << 8 & Vni::MAX,
            3 => vni >> 8,
            4 => vni ^ 0x80_0000,
            _ => Vni::MAX,
        };
        [vni, other]
    });
    (
        [kind.clone(), kind],
        vnis,
        [order.clone(), order.clone(), order.clone(), order],
    )
        .prop_filter("networks that can be told apart", |(_, vnis, _)| {
            vnis[0] != vnis[1] && vnis[1] != 0
        })
        .prop_map(
            |(kinds, vnis, [blue_macs, blue_addresses, red_macs, red_addresses])| {
                let blue = |guest| (blue_macs[guest], blue_addresses[guest]);
                let red = |guest| (red_macs[guest], red_addresses[guest]);
                Tenants {
                    kinds,
                    vnis,
                    numbers: [blue(0), blue(1), blue(2), red(0), red(1)],
                }
            },
        )
}

impl Tenants {
    fn guests(&self) -> [Guest; 5] {
        std::array::from_fn(|place| {
            let ((mac, address), (id, ..)) = (self.numbers[place], IDS[place]);
            let mac = [2, 0, 0, 1, 0, mac];
            Guest {
                id,
                mac,
                v4: [10, 1, 0, address],
                v6: [0xfd00, 1, 0, 0, 0, 0, 0, address.into()],
            }
        })
    }

    /// Whether what a step forges is of the network whose key it is sealed under, and as long as it says.
    fn may_be_delivered(&self, step: &Step) -> bool {
        let Change::Forge(written) = &step.change else {
            return true;
        };
        let port = match self.kinds[step.network] {
            "vxlan" => vxlan::PORT,
            _ => geneve::PORT,
        };
        (written.port, written.vni) == (port, self.vnis[step.network]) && written.longer <= 0
    }

    fn policy(&self) -> Policy {
        let example = include_str!("../../../rules/examples/overlay/policy.yaml");
        let (before, rest) = example.split_once("networks:\n").unwrap();
        let (_, after) = rest.split_once("keys:\n").unwrap();
        let mut text = format!("{before}networks:\n");
        for (name, kind, vni) in [
            ("blue", self.kinds[0], self.vnis[0]),
            ("red", self.kinds[1], self.vnis[1]),
        ] {
            text += &format!("  - {{name: {name}, type: {kind}, vni: {vni}}}\n");
        }
        text += "guests:\n";
        for (guest, (id, network, host)) in self.guests().iter().zip(IDS) {
            let mac = guest.mac.map(|byte| format!("{byte:02x}")).join(":");
            text += &format!(
                "  - {{id: {id}, host: h{}, ports: [{{interface: gp-{id}, network: {}, mac: \"{mac}\", addresses: [{}, \"{}\"]}}]}}\n",
                host + 1,
                ["blue", "red"][network],
                guest.address(false),
                guest.address(true),
            );
        }
        let (name, text) = ("policy.yaml".into(), format!("{text}keys:\n{after}"));
        load_policy(&[Source { name, text }]).expect("a right policy")
    }
}

/// What happens to what a guest sends.
#[derive(Clone, Debug)]
enum Change {
    Nothing,
    Flip(Index, u8),
    Cut(Index),
    /// A readable frame gets another header in front.
    Relabel(Written),
    /// Something of before comes once more, to either host.
    Replay(Index, bool),
    /// Whoever has the network's key seals it with another header.
    Forge(Written),
}

/// Headers with VNIs that are one of the networks', or nearly; honest in everything else, or not.
fn any_written(vnis: [u32; 2]) -> impl Strategy<Value = Written> {
    let near = move |(which, change): (bool, usize)| {
        let vni = vnis[usize::from(which)];
        match change {
            0..4 => vni,
            4 => vni ^ 1,
            5 => vni << 8 & Vni::MAX,
            6 => vni >> 8,
            7 => vni.swap_bytes() >> 8,
            8 => 0,
            _ => Vni::MAX,
        }
    };
    let vni = (any::<bool>(), 0..10usize).prop_map(near);
    let options = (0..8usize).prop_map(|words| vec![0; words * 4]);
    (
        (any::<bool>(), vni, options),
        prop::option::weighted(0.3, any::<(u8, u8, u16, u8)>()),
        prop_oneof![4 => Just(0i16), 1 => -80..600i16],
    )
        .prop_map(|((is_geneve, vni, options), noise, longer)| {
            let honest = if is_geneve {
                Written::geneve(vni, options)
            } else {
                Written::vxlan(vni)
            };
            match noise {
                Some((first, flags, protocol, reserved)) => Written {
                    first,
                    flags,
                    protocol,
                    reserved,
                    longer,
                    ..honest
                },
                None => Written { longer, ..honest },
            }
        })
}

#[derive(Clone, Debug)]
struct Step {
    network: usize,
    from: usize,
    traffic: usize,
    ip6: bool,
    length: usize,
    change: Change,
}

fn any_step(vnis: [u32; 2]) -> impl Strategy<Value = Step> {
    let change = prop_oneof![
        2 => Just(Change::Nothing),
        1 => (any::<Index>(), 1..=255u8).prop_map(|(place, bits)| Change::Flip(place, bits)),
        1 => any::<Index>().prop_map(Change::Cut),
        2 => any_written(vnis).prop_map(Change::Relabel),
        1 => any::<(Index, bool)>().prop_map(|(which, to)| Change::Replay(which, to)),
        3 => any_written(vnis).prop_map(Change::Forge),
    ];
    (
        0..2usize,
        0..2usize,
        0..7usize,
        any::<bool>(),
        8..300usize,
        change,
    )
        .prop_map(|(network, from, traffic, ip6, length, change)| Step {
            network,
            from,
            traffic,
            ip6,
            length,
            change,
        })
}

fn tenants_and_steps() -> impl Strategy<Value = (Tenants, Vec<Step>)> {
    any_tenants().prop_flat_map(|tenants| {
        let steps = prop::collection::vec(any_step(tenants.vnis), 1..40);
        (Just(tenants), steps)
    })
}

struct World {
    hosts: [Host; 2],
    guests: [Guest; 5],
    policy: Policy,
    seen: Vec<Vec<u8>>,
    sequence: u64,
}

impl World {
    /// The guests of a network at a host, at the other one, and a third MAC and address that may be of either network or none.
    fn ends(&self, step: &Step) -> (Guest, Guest, Guest) {
        let [blue1, blue2, blue3, red1, red2] = self.guests;
        let (at_one, at_two) = if step.network == BLUE {
            (blue1, blue2)
        } else {
            (red1, red2)
        };
        let third = if step.network == BLUE { red1 } else { blue3 };
        if step.from == 0 {
            (at_one, at_two, third)
        } else {
            (at_two, at_one, third)
        }
    }

    fn frame(&self, step: &Step) -> Vec<u8> {
        let (from, to, third) = self.ends(step);
        let data = vec![FILL[step.network]; step.length];
        match step.traffic {
            0 => between(from, to, step.ip6, UDP, &udp(1, 53, &data)),
            1 => between(from, to, step.ip6, UDP, &udp(1, 514, &data)),
            2 => frame(BROADCAST, from.mac, 0x88b5, &data),
            3 => between(from, third, step.ip6, UDP, &udp(1, 2, &data)),
            4 => frame(third.mac, from.mac, 0x88b5, &data),
            5 => between(
                from,
                to,
                step.ip6,
                UDP,
                &udp(1, 2, &vec![FILL[step.network]; 1472]),
            ),
            _ => between(from, to, step.ip6, TCP, &tcp(1, 2, ACK, &data)),
        }
    }

    fn change(&mut self, step: &Step, mut sent: Vec<u8>) -> (usize, Vec<u8>) {
        let there = 1 - step.from;
        match &step.change {
            Change::Nothing | Change::Forge(_) => {}
            Change::Flip(place, bits) => {
                let place = place.index(sent.len());
                sent[place] ^= bits;
            }
            Change::Cut(place) => sent.truncate(place.index(sent.len())),
            Change::Relabel(written) => {
                let outer = Packet::parse(&sent).expect("what a host has sent");
                if outer.protocol == UDP {
                    let inside = &sent[usize::from(outer.l4_offset) + UDP_HEADER + OVERLAY_HEADER..];
                    return (there, on_the_way(step.from, UDP, &written.datagram(inside)));
                }
            }
            Change::Replay(which, to) => return (usize::from(*to), which.get(&self.seen).clone()),
        }
        (there, sent)
    }

    fn forged(&mut self, step: &Step) -> Option<Vec<u8>> {
        let Change::Forge(written) = &step.change else {
            return None;
        };
        self.sequence += 1;
        let key = ["blue-any", "red-any"][step.network];
        let datagram = written.datagram(&self.frame(step));
        let packet = sealed(spi_of(&self.policy, key, step.from), self.sequence, &datagram);
        Some(on_the_way(step.from, esp::ESP, &packet))
    }

    /// What every guest has got since the last look.
    fn got(&mut self) -> Vec<(&'static str, usize, Vec<u8>)> {
        let mut all = Vec::new();
        for (guest, (id, network, host)) in self.guests.into_iter().zip(IDS) {
            let frames = self.hosts[host].at_guest(guest);
            all.extend(frames.into_iter().map(|frame| (id, network, frame)));
        }
        all
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Both tenants send everything that a guest can send; some of it is changed on the wire, put behind other headers, or played
    /// again, and whoever has one network's key seals what it likes under it. No byte of one network's is delivered in the other.
    #[test]
    fn nothing_of_one_network_is_delivered_in_another((tenants, steps) in tenants_and_steps()) {
        let policy = tenants.policy();
        let options = Options::default();
        let mut world = World {
            hosts: [Host::new(&policy, 0, &options), Host::new(&policy, 1, &options)],
            guests: tenants.guests(),
            policy,
            seen: vec![Vec::new()],
            // Above what the hosts' own senders will use, and near enough that their numbers stay within the window.
            sequence: 500,
        };
        for step in steps {
            let (from, to, _) = world.ends(&step);
            let frame = world.frame(&step);
            world.hosts[step.from].guest_sends(from, &frame);
            for sent in world.hosts[step.from].on_wire() {
                world.seen.push(sent.clone());
                let (host, packet) = world.change(&step, sent);
                world.hosts[host].wire_brings(0, &packet);
            }
            let mut got = world.got();
            if let Some(packet) = world.forged(&step) {
                world.hosts[1 - step.from].wire_brings(0, &packet);
                let forged = world.got();
                // What names another network, or more bytes than there are, is delivered nowhere, whoever sealed it.
                prop_assert!(tenants.may_be_delivered(&step) || forged.is_empty(), "{forged:02x?} after {step:?}");
                got.extend(forged);
            }
            for (id, network, frame) in &got {
                let other = FILL[1 - network];
                prop_assert!(!frame.windows(4).any(|bytes| bytes == [other; 4]), "{id} got {frame:02x?} after {step:?}");
            }
            if matches!((&step.change, step.traffic), (Change::Nothing, 0 | 1 | 6)) {
                prop_assert!(got.iter().any(|(id, _, got)| *id == to.id && *got == frame), "{:?}", step);
            }
        }
        world.hosts.iter().for_each(Host::assert_accounted);
    }
}
