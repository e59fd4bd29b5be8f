//! The look-up against the definition of [`crate::meaning`]: random policies and packets, before and after changes, and out
//! of the flow cache.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{Index as Pick, select};
use proptest::strategy::ValueTree;

use super::*;
use crate::compile::{MOST_BYTES, Ruleset, Seat, TooLarge, next_generation};
use crate::facts::{Party, Ports};
use crate::flow_cache::FlowCache;
use crate::flows::{FlowContext, FlowKey, Flows};
use crate::meaning::{World, reply_type};
use crate::membership::Membership;
use crate::model::{
    Container, ContainerIndex, Criteria, CriteriaIndex, FlowTest, FlowTestIndex, Glob, Group, GroupIndex,
    Guest, GuestIndex, GuestPort, HostIndex, LabelTest, Network, NetworkIndex, NetworkKind, Owner, Place,
    Policy, PortIndex, Rule, Section, SectionIndex, Selector, Template, TemplateIndex, Term, Traffic,
    VlanTest,
};

const GUESTS: u32 = 5;
const NETWORKS: u16 = 3;
const CONTAINERS: u16 = 4;
const CRITERIA: u16 = 66;
const FLOW_TESTS: u16 = 3;

fn first() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// Addresses on both sides of every edge of the prefixes below.
fn addresses() -> Vec<IpAddr> {
    [
        "0.0.0.0",
        "9.255.255.255",
        "10.0.0.0",
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.127",
        "10.0.0.128",
        "10.0.0.255",
        "10.0.1.0",
        "10.0.255.255",
        "10.1.0.0",
        "10.255.255.255",
        "11.0.0.0",
        "127.255.255.255",
        "128.0.0.0",
        "255.255.255.255",
        "::",
        "fcff::1",
        "fd00::",
        "fd00::1",
        "fd00::2",
        "fd00::ffff",
        "fd00:0:0:1::",
        "fe80::1",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ]
    .iter()
    .map(|text| text.parse().unwrap())
    .collect()
}

fn prefixes() -> Vec<&'static str> {
    vec![
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/8",
        "10.0.0.0/16",
        "10.0.0.0/24",
        "10.0.0.128/25",
        "10.0.0.1/32",
        "10.0.0.2/32",
        "128.0.0.0/1",
        "255.255.255.255/32",
        "0.0.0.0/32",
        "fd00::/8",
        "fd00::/64",
        "fd00::1/128",
        "fe80::/10",
        "ffff::/16",
    ]
}

fn any_label() -> impl Strategy<Value = LabelTest> {
    let values = select(vec!["front", "back", "fr*", "*", "", "*a*k"]);
    (select(vec!["tier", "role"]), prop::collection::vec(values, 1..3)).prop_map(|(name, values)| LabelTest {
        name: name.to_owned(),
        values: values.into_iter().map(Glob::new).collect(),
    })
}

/// Terms; of groups only those before this one.
fn any_term(groups: u16, depth: u32) -> BoxedStrategy<Term> {
    let mut terms = vec![
        (0..NETWORKS)
            .prop_map(|number| Term::Network(NetworkIndex(number)))
            .boxed(),
        (0..GUESTS)
            .prop_map(|number| Term::Guest(GuestIndex(number)))
            .boxed(),
        any_label().prop_map(Term::Label).boxed(),
        select(prefixes())
            .prop_map(|text| Term::Cidr(text.parse().unwrap()))
            .boxed(),
        (0..CONTAINERS)
            .prop_map(|number| Term::Container(ContainerIndex(number)))
            .boxed(),
        select(vec![0, 1, 63, 64, 65])
            .prop_map(|number| Term::Criteria(CriteriaIndex(number)))
            .boxed(),
        (0..2u16)
            .prop_map(|number| Term::Subject(TemplateIndex(number)))
            .boxed(),
    ];
    if groups > 0 {
        terms.push(
            (0..groups)
                .prop_map(|number| Term::Group(GroupIndex(number)))
                .boxed(),
        );
    }
    if depth > 0 {
        terms.push(any_selector(groups, depth - 1).prop_map(Term::Not).boxed());
    }
    proptest::strategy::Union::new(terms).boxed()
}

fn any_selector(groups: u16, depth: u32) -> BoxedStrategy<Selector> {
    let all = prop::collection::vec(any_term(groups, depth), 0..3).prop_map(Selector::All);
    if depth == 0 {
        return prop_oneof![1 => Just(Selector::Any), 4 => all].boxed();
    }
    let list = prop::collection::vec(any_selector(groups, depth - 1), 0..3).prop_map(Selector::OneOf);
    prop_oneof![2 => Just(Selector::Any), 5 => all, 2 => list].boxed()
}

fn any_traffic() -> impl Strategy<Value = Traffic> {
    let ranges = prop::collection::vec(
        select(vec![
            80..=80,
            53..=53,
            1000..=2000,
            1500..=2500,
            0..=u16::MAX,
            2001..=2001,
        ]),
        1..3,
    );
    let what = prop_oneof![
        3 => Just((None, Vec::new(), None, None)),
        2 => select(vec![6u8, 17, 47, 58, 1]).prop_map(|protocol| (Some(protocol), Vec::new(), None, None)),
        4 => (select(vec![6u8, 17]), ranges).prop_map(|(protocol, ports)| (Some(protocol), ports, None, None)),
        2 => (select(vec![(1u8, 8u8), (1, 0), (1, 3), (58, 128), (58, 133), (58, 135), (58, 136)]), prop::option::of(0u8..2))
            .prop_map(|((protocol, kind), code)| (Some(protocol), Vec::new(), Some(kind), code)),
    ];
    let rarely = |some| prop::option::weighted(0.2, some);
    (
        what,
        rarely(select(vec![0x0800u16, 0x86dd, 0x0806]).boxed()),
        prop::option::weighted(
            0.2,
            prop_oneof![Just(VlanTest::Untagged), (0u16..3).prop_map(VlanTest::Id)],
        ),
        prop::option::weighted(0.2, select(vec![0u8, 46, 63])),
        prop::option::weighted(0.2, (0..FLOW_TESTS).prop_map(FlowTestIndex)),
    )
        .prop_map(
            |((protocol, ports, icmp_type, icmp_code), ethertype, vlan, dscp, flow)| Traffic {
                ethertype,
                vlan,
                dscp,
                protocol,
                ports,
                icmp_type,
                icmp_code,
                flow,
            },
        )
}

fn any_action() -> impl Strategy<Value = Action> {
    let seal = |protection| {
        move |key| Action::Seal {
            protection,
            key: KeyIndex(key),
        }
    };
    prop_oneof![
        Just(Action::Drop),
        Just(Action::Plaintext),
        any::<u16>().prop_map(seal(Protection::Encrypt)),
        any::<u16>().prop_map(seal(Protection::Authenticate)),
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    (
        any_selector(2, 2),
        any_selector(2, 2),
        prop::collection::vec(any_traffic(), 1..4),
        any_action(),
        select(vec![0u16, 0, 0, 1]),
    )
        .prop_map(|(from, to, traffic, action, section)| Rule {
            name: "r".to_owned(),
            from,
            to,
            traffic,
            action,
            also_accept: None,
            log: false,
            mirror: None,
            section: SectionIndex(section),
            owner: Owner::Section,
            place: Place::default(),
        })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    (
        prop::collection::vec(any_rule(), 0..14),
        any_selector(0, 1),
        any_selector(1, 1),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(mut rules, one, two, monitor, plain)| {
            // Where no rule asks of VLAN, DSCP or flow, most packets go a shorter way.
            for traffic in rules
                .iter_mut()
                .filter(|_| plain)
                .flat_map(|rule| &mut rule.traffic)
            {
                (traffic.vlan, traffic.dscp, traffic.flow) = (None, None, None);
            }
            Policy {
                rules,
                ..world_without_rules(one, two, monitor)
            }
        })
}

fn world_without_rules(one: Selector, two: Selector, monitor: bool) -> Policy {
    let place = Place::default;
    let network = |name: &str| Network {
        name: name.to_owned(),
        kind: NetworkKind::Flat,
        default_key: None,
        place: place(),
    };
    // One guest after the other: an address of each family, a second port, a router, no address, no port.
    let own: [&[&str]; 5] = [&["10.0.0.1", "fd00::1"], &["10.0.0.2"], &["10.0.0.128"], &[], &[]];
    let guests = (0..GUESTS)
        .map(|number| Guest {
            id: format!("g{number}"),
            host: HostIndex(0),
            uuid: format!("g{number}"),
            labels: Default::default(),
            ports: if number < 4 {
                vec![PortIndex(number)]
            } else {
                Vec::new()
            },
            place: place(),
        })
        .collect();
    let ports = (0..4u32)
        .map(|number| GuestPort {
            guest: GuestIndex(number),
            interface: format!("p{number}"),
            vlan: None,
            network: NetworkIndex(number as u16 % NETWORKS),
            mac: [2, 0, 0, 0, 0, number as u8],
            addresses: own[number as usize]
                .iter()
                .map(|text| text.parse().unwrap())
                .collect(),
            router: number == 2,
        })
        .collect();
    let container = |name: &str, parent: Option<u16>| Container {
        name: name.to_owned(),
        parent: parent.map(ContainerIndex),
        quarantine: false,
        services: Vec::new(),
        transfers: Vec::new(),
        release: None,
        by_hand: false,
        place: place(),
    };
    let group = |members| Group {
        name: "group".to_owned(),
        members,
        place: place(),
    };
    let section = |monitor| Section {
        name: "section".to_owned(),
        monitor,
        place: place(),
    };
    let flow = |user: Option<&str>, group: Option<&str>, application: Option<&str>| FlowTest {
        user: user.map(Glob::new),
        group: group.map(Glob::new),
        application: application.map(Glob::new),
    };
    Policy {
        networks: ["a", "b", "c"].map(network).into(),
        guests,
        ports,
        groups: vec![group(one), group(two)],
        containers: vec![
            container("default", None),
            container("outer", None),
            container("inner", Some(1)),
            container("innermost", Some(2)),
        ],
        criteria: vec![Criteria::All(Vec::new()); usize::from(CRITERIA)],
        flow_tests: vec![
            flow(Some("alice"), None, None),
            flow(None, Some("adm*"), None),
            flow(Some("*"), None, Some("ssh")),
        ],
        templates: vec![
            Template {
                name: "t".to_owned(),
                when: Criteria::All(Vec::new()),
                lifetime: None,
                place: place(),
            };
            2
        ],
        sections: vec![section(false), section(monitor)],
        ..Policy::default()
    }
}

/// Labels, container, templates and criteria of a guest.
type Said = (Vec<(String, String)>, u16, Vec<u16>, Vec<u16>);

/// What a guest is at some moment.
fn any_membership() -> impl Strategy<Value = Said> {
    let label = (select(vec!["tier", "role"]), select(vec!["front", "back", ""]))
        .prop_map(|(name, value)| (name.to_owned(), value.to_owned()));
    (
        prop::collection::vec(label, 0..3),
        0..CONTAINERS,
        prop::collection::vec(select(vec![0u16, 1, 63, 64, 65]), 0..4),
        prop::collection::vec(0u16..2, 0..2),
    )
}

fn membership(policy: &Policy, guest: u32, said: &Said) -> Membership {
    let mut now = Membership::at_start(policy, GuestIndex(guest));
    now.labels = said.0.iter().cloned().collect();
    now.containers = policy.chain(ContainerIndex(said.1)).collect();
    said.2
        .iter()
        .for_each(|criteria| now.set(CriteriaIndex(*criteria), true));
    now.subject_of = said.3.iter().copied().map(TemplateIndex).collect();
    now
}

fn any_context() -> impl Strategy<Value = Option<Arc<FlowContext>>> {
    let user = prop::option::of(select(vec!["alice", "bob"]).prop_map(str::to_owned));
    let groups = prop::collection::vec(select(vec!["admin", "users"]).prop_map(str::to_owned), 0..2);
    let application = prop::option::of(select(vec!["ssh", "curl"]).prop_map(str::to_owned));
    prop::option::of(
        (user, groups, application).prop_map(|(user, groups, application)| {
            Arc::new(FlowContext {
                user,
                groups,
                application,
            })
        }),
    )
}

fn any_party() -> impl Strategy<Value = Party> {
    let own = select(vec![
        (0u32, "10.0.0.1"),
        (0, "fd00::1"),
        (1, "10.0.0.2"),
        (2, "10.0.0.128"),
    ])
    .prop_map(|(guest, address)| Party {
        guest: Some(GuestIndex(guest)),
        address: Some(address.parse().unwrap()),
    });
    let other = (
        prop::option::of(0..GUESTS),
        prop::option::weighted(0.9, select(addresses())),
    )
        .prop_map(|(guest, address)| Party {
            guest: guest.map(GuestIndex),
            address,
        });
    prop_oneof![own, other]
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let port = || {
        select(vec![
            0u16,
            53,
            80,
            81,
            999,
            1000,
            1500,
            2000,
            2001,
            2500,
            2501,
            u16::MAX,
        ])
    };
    let pair = (select(vec![6u8, 17]), port(), port()).prop_map(|(protocol, source, destination)| {
        (Some(protocol), Ports::Pair { source, destination }, None)
    });
    let icmp = (
        select(vec![1u8, 58]),
        select(vec![0u8, 3, 8, 128, 129, 133, 134, 135, 136]),
        0u8..3,
    )
        .prop_map(|(protocol, kind, code)| (Some(protocol), Ports::None, Some((kind, code))));
    let bare =
        select(vec![None, Some(47u8), Some(6), Some(255)]).prop_map(|protocol| (protocol, Ports::None, None));
    let fragment =
        select(vec![6u8, 17, 1, 58]).prop_map(|protocol| (Some(protocol), Ports::Unreadable, None));
    (
        0..NETWORKS,
        select(vec![0x0800u16, 0x86dd, 0x0806, 0x88cc]),
        prop::option::of(0u16..4),
        prop_oneof![6 => pair, 3 => icmp, 1 => bare, 2 => fragment],
        select(vec![0u8, 1, 46, 63]),
        any::<bool>(),
        any_party(),
        any_party(),
    )
        .prop_map(
            |(network, ethertype, vlan, (protocol, ports, icmp), dscp, opening, source, destination)| Facts {
                network: NetworkIndex(network),
                ethertype,
                vlan,
                protocol,
                ports,
                icmp,
                dscp,
                opening: opening && protocol == Some(6),
                source,
                destination,
            },
        )
}

/// What happens between packets.
#[derive(Clone, Debug)]
enum Step {
    Guest(u32, Said),
    Flow(Pick, [Option<Arc<FlowContext>>; 2]),
    Packet(Pick),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..GUESTS, any_membership()).prop_map(|(guest, said)| Step::Guest(guest, said)),
        1 => (any::<Pick>(), any_context(), any_context()).prop_map(|(pick, one, two)| Step::Flow(pick, [one, two])),
        6 => any::<Pick>().prop_map(Step::Packet),
    ]
}

/// The definition's answer.
fn naive(world: &World<'_>, facts: &Facts) -> Decision {
    let watched = match world.first_match(facts, true) {
        Verdict::Matched { rule, .. } => Some(rule),
        _ => None,
    };
    Decision {
        verdict: world.first_match(facts, false),
        watched,
    }
}

fn at_start(policy: &Policy) -> Vec<Membership> {
    (0..policy.guests.len() as u32)
        .map(|guest| Membership::at_start(policy, GuestIndex(guest)))
        .collect()
}

fn tell(flows: &mut Flows, key: FlowKey, told: &[Option<Arc<FlowContext>>; 2]) {
    if told.iter().all(Option::is_none) {
        flows.by_key.remove(&key);
    } else {
        flows.by_key.insert(key, told.clone());
    }
}

fn answer_of(facts: &Facts) -> Facts {
    Facts {
        source: facts.destination,
        destination: facts.source,
        ports: match facts.ports {
            Ports::Pair { source, destination } => Ports::Pair {
                source: destination,
                destination: source,
            },
            other => other,
        },
        ..*facts
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn is_the_naive_first_match(
        policy in any_policy(),
        said in prop::collection::vec(any_membership(), GUESTS as usize),
        packets in prop::collection::vec(any_facts(), 1..40),
        told in prop::collection::vec((any::<Pick>(), any_context(), any_context()), 0..6),
    ) {
        let guests: Vec<Membership> = (0u32..).zip(&said).map(|(guest, said)| membership(&policy, guest, said)).collect();
        let mut flows = Flows::default();
        for (pick, one, two) in told {
            if let Some((key, _)) = FlowKey::of(pick.get(&packets)) {
                tell(&mut flows, key, &[one, two]);
            }
        }
        let ruleset = Ruleset::compile(&policy, &guests, &flows, first()).unwrap();
        let world = World { policy: &policy, guests: &guests, flows: &flows };
        let expected: Vec<Decision> = packets.iter().map(|facts| naive(&world, facts)).collect();
        for (facts, expected) in packets.iter().zip(&expected) {
            prop_assert_eq!(ruleset.classify(facts), *expected, "{:?}", facts);
        }
        let mut together = vec![Decision::UNMATCHED; packets.len()];
        ruleset.classify_all(&packets, &mut together);
        prop_assert_eq!(together, expected);
    }

    /// After any changes the ruleset, a fresh one and the definition say the same; so does a cache in which everything collides.
    #[test]
    fn changes_are_as_good_as_a_new_ruleset(
        policy in any_policy(),
        packets in prop::collection::vec(any_facts(), 1..6),
        steps in prop::collection::vec(any_step(), 1..60),
        wraps in any::<bool>(),
    ) {
        let mut guests = at_start(&policy);
        let mut flows = Flows::default();
        let mut generation = if wraps { NonZeroU32::MAX } else { first() };
        let mut ruleset = Ruleset::compile(&policy, &guests, &flows, generation).unwrap();
        let mut caches = [FlowCache::new(1, [3, 5]), FlowCache::new(1 << 10, [3, 5])];
        for step in steps {
            match step {
                Step::Guest(guest, said) => {
                    guests[guest as usize] = membership(&policy, guest, &said);
                    generation = next_generation(generation);
                    ruleset = ruleset.update([(GuestIndex(guest), &guests[guest as usize])], generation);
                }
                Step::Flow(pick, told) => {
                    let Some((key, _)) = FlowKey::of(pick.get(&packets)) else { continue };
                    tell(&mut flows, key, &told);
                    generation = next_generation(generation);
                    ruleset = ruleset.update_flows([&key], &flows, generation);
                }
                Step::Packet(pick) => {
                    let facts = pick.get(&packets);
                    let expected = naive(&World { policy: &policy, guests: &guests, flows: &flows }, facts);
                    prop_assert_eq!(ruleset.classify(facts), expected, "{:?}", facts);
                    for cache in &mut caches {
                        prop_assert_eq!(cache.classify(&ruleset, facts), expected, "{:?}", facts);
                    }
                }
            }
        }
        let fresh = Ruleset::compile(&policy, &guests, &flows, generation).unwrap();
        for facts in &packets {
            prop_assert_eq!(ruleset.classify(facts), fresh.classify(facts), "{:?}", facts);
        }
    }

    /// A batch gets what its packets get one by one, whatever else takes their places in the cache; a flow that all places are
    /// free for is looked up once.
    #[test]
    fn a_batch_is_as_good_as_its_packets(
        policy in any_policy(),
        packets in prop::collection::vec(any_facts(), 1..8),
        picks in prop::collection::vec(any::<Pick>(), 1..=64),
        slots in prop::sample::select(vec![1usize, 2, 1 << 12]),
    ) {
        let guests = at_start(&policy);
        let flows = Flows::default();
        let ruleset = Ruleset::compile(&policy, &guests, &flows, first()).unwrap();
        let world = World { policy: &policy, guests: &guests, flows: &flows };
        let batch: Vec<Facts> = picks.iter().map(|pick| *pick.get(&packets)).collect();
        let expected: Vec<Decision> = batch.iter().map(|facts| naive(&world, facts)).collect();
        let mut cache = FlowCache::new(slots, [3, 5]);
        for round in 0..3 {
            let mut decisions = vec![Decision::UNMATCHED; batch.len()];
            let (hits, misses) = (cache.hits, cache.misses);
            let looked_up = cache.classify_all(&ruleset, &batch, &mut decisions);
            prop_assert_eq!(&decisions, &expected);
            prop_assert_eq!((cache.hits - hits) + (cache.misses - misses), batch.len() as u64);
            prop_assert_eq!(u64::from(looked_up.count_ones()), cache.misses - misses);
            let different: Vec<&Facts> = batch.iter().enumerate().filter(|(at, one)| !batch[..*at].contains(one)).map(|(_, one)| one).collect();
            if different.len() == 1 {
                prop_assert_eq!(looked_up, u64::from(round == 0));
            }
        }
    }

    /// The reply of a packet meets the rule that the packet meets, unless one of them opens a connection.
    #[test]
    fn both_directions_meet_one_rule(
        policy in any_policy(),
        packet in any_facts().prop_filter("no ICMP: echo is not its own reply", |facts| facts.icmp.is_none()),
    ) {
        let ruleset = Ruleset::compile(&policy, &at_start(&policy), &Flows::default(), first()).unwrap();
        let packet = Facts { opening: false, ..packet };
        prop_assert_eq!(ruleset.classify(&packet), ruleset.classify(&answer_of(&packet)));
    }
}

/// The addresses of a guest in a network: of a router any.
fn seats(policy: &Policy, guest: u32, network: NetworkIndex) -> Vec<Seat> {
    let ports = policy
        .ports
        .iter()
        .filter(|port| port.guest == GuestIndex(guest) && port.network == network);
    ports
        .flat_map(|port| {
            let own = port.addresses.iter().copied().map(Some);
            own.chain(port.router.then_some(None))
        })
        .map(|address| Seat {
            guest: GuestIndex(guest),
            address,
        })
        .collect()
}

fn may_meet(
    ruleset: &Ruleset,
    network: NetworkIndex,
    sides: &[Vec<Seat>; 2],
    is_meant: impl Fn(RuleIndex) -> bool,
) -> bool {
    let meeting = ruleset.meeting(network, &is_meant);
    let [ours, theirs] = sides.each_ref().map(|seats| meeting.side(seats.clone()));
    meeting.may_meet(&ours, &theirs, &is_meant)
}

fn rules_of_packets(ruleset: &Ruleset, packets: impl Iterator<Item = Facts>) -> BTreeSet<RuleIndex> {
    let verdicts = packets.map(|facts| ruleset.classify(&facts).verdict);
    verdicts
        .filter_map(|verdict| match verdict {
            Verdict::Matched { rule, .. } => Some(rule),
            _ => None,
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a packet between two guests meets can be met between them, however they have changed.
    #[test]
    fn what_is_met_can_be_met(
        policy in any_policy(),
        said in prop::collection::vec(any_membership(), GUESTS as usize),
        packets in prop::collection::vec(any_facts(), 1..10),
        guests in prop::collection::vec(select(vec![0u32, 1, 2]), 2),
    ) {
        let mut policy = policy;
        policy.ports.iter_mut().for_each(|port| port.network = NetworkIndex(1));
        let mut ruleset = Ruleset::compile(&policy, &at_start(&policy), &Flows::default(), first()).unwrap();
        for (guest, said) in (0u32..).zip(&said) {
            let now = membership(&policy, guest, said);
            ruleset = ruleset.update([(GuestIndex(guest), &now)], next_generation(ruleset.generation()));
        }
        let [ours, theirs] = [guests[0], guests[1]].map(|guest| seats(&policy, guest, NetworkIndex(1)));
        let sides = [&ours, &theirs].map(|seats| seats.clone());
        for facts in packets {
            for (one, other) in ours.iter().flat_map(|one| theirs.iter().map(move |other| (one, other))) {
                let place = |seat: &Seat, party: &Party| Party {
                    guest: Some(seat.guest),
                    address: seat.address.or(party.address),
                };
                let facts = Facts {
                    network: NetworkIndex(1),
                    source: place(one, &facts.source),
                    destination: place(other, &facts.destination),
                    ..facts
                };
                let family = |party: &Party| party.address.map(|address| address.is_ipv4());
                if family(&facts.source).is_none() || family(&facts.source) != family(&facts.destination) {
                    continue;
                }
                for rule in rules_of_packets(&ruleset, [facts, answer_of(&facts)].into_iter()) {
                    prop_assert!(may_meet(&ruleset, NetworkIndex(1), &sides, |one| one == rule), "{:?} {:?}", rule, facts);
                }
            }
        }
    }

    /// Where rules ask of traffic nothing, or for a protocol that no other one asks for and that opens no connections, what can be
    /// met is what some packet meets.
    #[test]
    fn what_can_be_met_is_met(
        policy in any_policy(),
        said in prop::collection::vec(any_membership(), GUESTS as usize),
        asks in prop::collection::vec(any::<bool>(), 14),
        sides in prop::collection::vec(prop::collection::vec(select(vec![0u32, 1]), 0..3), 2),
    ) {
        let mut policy = policy;
        policy.ports.iter_mut().for_each(|port| port.network = NetworkIndex(1));
        let protocol = |number: usize| 100 + number as u8;
        for (number, rule) in policy.rules.iter_mut().enumerate() {
            let protocol = asks[number].then(|| protocol(number));
            rule.traffic = vec![Traffic { protocol, ..Traffic::default() }];
        }
        let guests: Vec<Membership> = (0u32..).zip(&said).map(|(guest, said)| membership(&policy, guest, said)).collect();
        let ruleset = Ruleset::compile(&policy, &guests, &Flows::default(), first()).unwrap();
        let [ours, theirs] = [0, 1].map(|side: usize| -> Vec<Seat> {
            sides[side].iter().flat_map(|guest| seats(&policy, *guest, NetworkIndex(1))).collect()
        });
        let pairs = ours.iter().flat_map(|one| theirs.iter().flat_map(move |other| [(one, other), (other, one)]));
        let alike = pairs.filter(|(one, other)| {
            one.address.is_some_and(|one| other.address.is_some_and(|other| one.is_ipv4() == other.is_ipv4()))
        });
        let packets = alike.flat_map(|(one, other)| {
            let protocols = (0..14).map(|number| (protocol(number), false));
            protocols.chain([(6, true), (6, false), (250, false)]).map(move |(protocol, opening)| Facts {
                network: NetworkIndex(1),
                ethertype: 0x0800,
                vlan: None,
                protocol: Some(protocol),
                ports: Ports::None,
                icmp: None,
                dscp: 0,
                opening,
                source: Party { guest: Some(one.guest), address: one.address },
                destination: Party { guest: Some(other.guest), address: other.address },
            })
        });
        let met = rules_of_packets(&ruleset, packets);
        let sides = [&ours, &theirs].map(|seats| seats.clone());
        let rules = (0..policy.rules.len() as u32).map(RuleIndex);
        let may_be: BTreeSet<RuleIndex> = rules.filter(|rule| may_meet(&ruleset, NetworkIndex(1), &sides, |one| one == *rule)).collect();
        prop_assert_eq!(may_be, met);
    }
}

/// Several parts of rows: what a small policy never reaches.
#[test]
fn thousands_of_rules_are_read_in_order() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let tree = prop::collection::vec(any_rule(), 6000)
        .new_tree(&mut runner)
        .unwrap();
    let mut policy = world_without_rules(Selector::Any, Selector::Any, true);
    policy.rules = tree.current();
    // Most rules ask for a protocol of their own, or the first ones would take every packet.
    for (number, rule) in policy.rules.iter_mut().enumerate() {
        for traffic in rule
            .traffic
            .iter_mut()
            .filter(|traffic| traffic.ports.is_empty() && traffic.icmp_type.is_none())
        {
            traffic.protocol = Some((number % 250) as u8);
        }
    }
    let guests = at_start(&policy);
    let flows = Flows::default();
    let ruleset = Ruleset::compile(&policy, &guests, &flows, first()).unwrap();
    assert!(ruleset.enforced.fixed.parts > 1);
    let world = World {
        policy: &policy,
        guests: &guests,
        flows: &flows,
    };
    let mut rules_met = std::collections::BTreeSet::new();
    let (mut all, mut expected) = (Vec::new(), Vec::new());
    let (mut between_guests, mut could_be_met) = (0, 0);
    for number in 0..2000 {
        let mut facts = any_facts().new_tree(&mut runner).unwrap().current();
        if facts.ports == Ports::None && facts.icmp.is_none() {
            facts.protocol = Some((number % 250) as u8);
        }
        let decision = ruleset.classify(&facts);
        assert_eq!(decision, naive(&world, &facts), "{facts:?}");
        if let Verdict::Matched { rule, .. } = decision.verdict {
            rules_met.insert(rule);
            let seat = |party: &Party| {
                let (guest, address) = (party.guest?, Some(party.address?));
                Some(Seat { guest, address })
            };
            if let (Some(one), Some(other)) = (seat(&facts.source), seat(&facts.destination))
                && one.address.map(|one| one.is_ipv4()) == other.address.map(|other| other.is_ipv4())
            {
                between_guests += 1;
                let sides = [vec![one], vec![other]];
                let may = |meant| may_meet(&ruleset, facts.network, &sides, |one| one == meant);
                assert!(may(rule), "{rule:?} {facts:?}");
                let rules = (0..policy.rules.len() as u32).step_by(50).map(RuleIndex);
                could_be_met += rules.filter(|rule| may(*rule)).count();
            }
        }
        all.push(facts);
        expected.push(decision);
    }
    let mut together = vec![Decision::UNMATCHED; all.len()];
    ruleset.classify_all(&all, &mut together);
    assert!(together == expected);
    let sampled = between_guests * policy.rules.len() / 50;
    assert!(
        between_guests > 300 && (sampled / 20..sampled / 2).contains(&could_be_met),
        "{between_guests} packets between guests, who may meet {could_be_met} of {sampled} rules"
    );
    assert!(
        rules_met.len() > 100 && *rules_met.last().unwrap() > RuleIndex(512),
        "{}",
        rules_met.len()
    );
}

fn rule(from: Selector, to: Selector, traffic: Traffic) -> Rule {
    Rule {
        name: "web".to_owned(),
        from,
        to,
        traffic: vec![traffic],
        action: Action::Plaintext,
        also_accept: None,
        log: false,
        mirror: None,
        section: SectionIndex(0),
        owner: Owner::Section,
        place: Place {
            file: "policy.yaml".to_owned(),
            line: 7,
            column: 5,
        },
    }
}

fn guest(number: u32) -> Selector {
    Selector::All(vec![Term::Guest(GuestIndex(number))])
}

fn of(rules: Vec<Rule>) -> Policy {
    Policy {
        rules,
        ..world_without_rules(Selector::Any, Selector::Any, false)
    }
}

fn tcp(ports: std::ops::RangeInclusive<u16>) -> Traffic {
    Traffic {
        protocol: Some(6),
        ports: vec![ports],
        ..Traffic::default()
    }
}

/// Hundreds of ranges near each other, in a space that is mostly empty: every address on either side of their edges.
#[test]
fn addresses_are_found_where_ranges_are_dense() {
    let number = |address: &str| match address.parse().unwrap() {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    // Where they begin, how many there are, and how far from each other. The lonely ones make the space wide.
    let ranges = [
        ("0.0.0.1", 1, 1),
        ("10.1.0.0", 700, 2),
        ("10.9.0.0", 40, 3),
        ("192.0.2.0", 1500, 2),
        ("255.255.255.254", 1, 1),
        ("::1", 1, 1),
        ("fd00::", 1200, 2),
        ("fd00:0:9::", 50, 3),
        ("ffff::1", 1, 1),
    ];
    let address = |first: &str, offset: u128| -> IpAddr {
        let number = number(first) + offset;
        match first.contains(':') {
            true => IpAddr::V6(number.into()),
            false => IpAddr::V4((number as u32).into()),
        }
    };
    let mut meant = std::collections::HashSet::new();
    for (first, count, step) in ranges {
        meant.extend((0..count).map(|place| address(first, place * step)));
    }
    let single = |address: &IpAddr| {
        let length = if address.is_ipv4() { 32 } else { 128 };
        Selector::All(vec![Term::Cidr(format!("{address}/{length}").parse().unwrap())])
    };
    let to = Selector::OneOf(meant.iter().map(single).collect());
    let policy = of(vec![rule(Selector::Any, to, Traffic::default())]);
    let ruleset = Ruleset::compile(&policy, &at_start(&policy), &Flows::default(), first()).unwrap();
    for (first, count, step) in ranges {
        for offset in 0..count * step + 1 {
            let address = address(first, offset);
            let nobody = Party {
                guest: None,
                address: None,
            };
            let facts = Facts {
                network: NetworkIndex(0),
                ethertype: 0x0800,
                vlan: None,
                protocol: None,
                ports: Ports::None,
                icmp: None,
                dscp: 0,
                opening: false,
                source: nobody,
                destination: Party {
                    address: Some(address),
                    ..nobody
                },
            };
            let matches = matches!(ruleset.classify(&facts).verdict, Verdict::Matched { .. });
            assert_eq!(matches, meant.contains(&address), "{address}");
        }
    }
}

/// What is known of flows comes, goes and comes again: nobody gets the rules of one who is gone.
#[test]
fn flows_take_no_rules_over_from_those_that_are_gone() {
    let asks = |test| Traffic {
        flow: Some(FlowTestIndex(test)),
        ..Traffic::default()
    };
    let rules = [0, 2].map(|test| rule(Selector::Any, Selector::Any, asks(test)));
    let policy = of(rules.into());
    let guests = at_start(&policy);
    let packet = |port| Facts {
        network: NetworkIndex(0),
        ethertype: 0x0800,
        vlan: None,
        protocol: Some(6),
        ports: Ports::Pair {
            source: port,
            destination: 80,
        },
        icmp: None,
        dscp: 0,
        opening: false,
        source: Party {
            guest: Some(GuestIndex(0)),
            address: Some([10, 0, 0, 1].into()),
        },
        destination: Party {
            guest: Some(GuestIndex(1)),
            address: Some([10, 0, 0, 2].into()),
        },
    };
    let context = |user: &str, application: Option<&str>| {
        Some(Arc::new(FlowContext {
            user: Some(user.to_owned()),
            groups: Vec::new(),
            application: application.map(str::to_owned),
        }))
    };
    let mut flows = Flows::default();
    let mut ruleset = Ruleset::compile(&policy, &guests, &flows, first()).unwrap();
    for (port, now) in [
        (1, context("alice", None)),
        (1, None),
        (2, context("bob", Some("ssh"))),
        (1, context("alice", None)),
        (2, None),
        (3, context("alice", Some("ssh"))),
        (2, context("bob", Some("ssh"))),
    ] {
        let (key, _) = FlowKey::of(&packet(port)).unwrap();
        tell(&mut flows, key, &[now.clone(), now]);
        ruleset = ruleset.update_flows([&key], &flows, next_generation(ruleset.generation()));
        let world = World {
            policy: &policy,
            guests: &guests,
            flows: &flows,
        };
        for facts in [1, 2, 3].map(packet) {
            assert_eq!(
                ruleset.classify(&facts),
                naive(&world, &facts),
                "{port}: {facts:?}"
            );
        }
    }
}

#[test]
fn what_opens_a_connection_is_no_reply() {
    let policy = of(vec![rule(guest(0), guest(1), tcp(80..=80))]);
    let ruleset = Ruleset::compile(&policy, &at_start(&policy), &Flows::default(), first()).unwrap();
    let party = |guest: u32| Party {
        guest: Some(GuestIndex(guest)),
        address: None,
    };
    let facts = Facts {
        network: NetworkIndex(0),
        ethertype: 0x0800,
        vlan: None,
        protocol: Some(6),
        ports: Ports::Pair {
            source: 80,
            destination: 4000,
        },
        icmp: None,
        dscp: 0,
        opening: false,
        source: party(1),
        destination: party(0),
    };
    let verdict = |facts: &Facts| ruleset.classify(facts).verdict;
    assert!(matches!(verdict(&facts), Verdict::Matched { .. }), "the reply");
    let opening = Facts {
        opening: true,
        ..facts
    };
    assert_eq!(verdict(&opening), Verdict::NoRule, "a SYN from port 80");
    assert!(
        matches!(
            verdict(&Facts {
                opening: true,
                ..answer_of(&facts)
            }),
            Verdict::Matched { .. }
        ),
        "a SYN to port 80"
    );
}

#[test]
fn an_echo_is_answered_by_its_rule() {
    let echo = Traffic {
        protocol: Some(1),
        icmp_type: Some(8),
        ..Traffic::default()
    };
    assert_eq!(reply_type(Some(1), 8), Some(0));
    let policy = of(vec![rule(guest(0), guest(1), echo)]);
    let ruleset = Ruleset::compile(&policy, &at_start(&policy), &Flows::default(), first()).unwrap();
    let packet = |kind, source, destination| Facts {
        network: NetworkIndex(0),
        ethertype: 0x0800,
        vlan: None,
        protocol: Some(1),
        ports: Ports::None,
        icmp: Some((kind, 0)),
        dscp: 0,
        opening: false,
        source: Party {
            guest: Some(GuestIndex(source)),
            address: None,
        },
        destination: Party {
            guest: Some(GuestIndex(destination)),
            address: None,
        },
    };
    let matches = |facts: &Facts| matches!(ruleset.classify(facts).verdict, Verdict::Matched { .. });
    assert!(matches(&packet(8, 0, 1)) && matches(&packet(0, 1, 0)));
    assert!(!matches(&packet(8, 1, 0)) && !matches(&packet(0, 0, 1)));
}

/// Packets that differ in one thing only, in one place of the cache, one after the other in every order: each has its own decision.
#[test]
fn no_packet_gets_the_decision_of_one_that_differs_in_anything() {
    let party = |guest: u32, address: &str| Party {
        guest: Some(GuestIndex(guest)),
        address: Some(address.parse().unwrap()),
    };
    let base = Facts {
        network: NetworkIndex(0),
        ethertype: 0x0800,
        vlan: None,
        protocol: Some(6),
        ports: Ports::Pair {
            source: 4000,
            destination: 80,
        },
        icmp: None,
        dscp: 0,
        opening: false,
        source: party(0, "10.0.0.1"),
        destination: party(1, "10.0.0.2"),
    };
    let pair = |source, destination| Ports::Pair { source, destination };
    let cidr = |text: &str| Selector::All(vec![Term::Cidr(text.parse().unwrap())]);
    let icmp = |kind, code| Traffic {
        protocol: Some(1),
        icmp_type: Some(kind),
        icmp_code: Some(code),
        ..Traffic::default()
    };
    let echo = |kind, code| Facts {
        protocol: Some(1),
        ports: Ports::None,
        icmp: Some((kind, code)),
        ..base
    };
    let any = || Selector::Any;
    let guests = Selector::OneOf((0..GUESTS).map(guest).collect());
    let traffic = Traffic::default;
    // Each with a rule for it alone.
    let alone = [
        (
            rule(
                any(),
                any(),
                Traffic {
                    dscp: Some(46),
                    ..traffic()
                },
            ),
            Facts { dscp: 46, ..base },
        ),
        (
            rule(
                any(),
                any(),
                Traffic {
                    vlan: Some(VlanTest::Id(0)),
                    ..traffic()
                },
            ),
            Facts {
                vlan: Some(0),
                ..base
            },
        ),
        (
            rule(
                any(),
                any(),
                Traffic {
                    vlan: Some(VlanTest::Id(4095)),
                    ..traffic()
                },
            ),
            Facts {
                vlan: Some(4095),
                ..base
            },
        ),
        (
            rule(
                any(),
                any(),
                Traffic {
                    ethertype: Some(0x86dd),
                    ..traffic()
                },
            ),
            Facts {
                ethertype: 0x86dd,
                ..base
            },
        ),
        (
            rule(
                any(),
                any(),
                Traffic {
                    protocol: Some(17),
                    ..traffic()
                },
            ),
            Facts {
                protocol: Some(17),
                ..base
            },
        ),
        (
            rule(
                Selector::All(vec![Term::Network(NetworkIndex(1))]),
                any(),
                traffic(),
            ),
            Facts {
                network: NetworkIndex(1),
                ..base
            },
        ),
        (
            rule(guest(3), any(), traffic()),
            Facts {
                source: party(3, "10.0.0.1"),
                ..base
            },
        ),
        (
            rule(any(), guest(4), traffic()),
            Facts {
                destination: party(4, "10.0.0.2"),
                ..base
            },
        ),
        (
            rule(Selector::All(vec![Term::Not(guests)]), guest(1), traffic()),
            Facts {
                source: Party {
                    guest: None,
                    ..base.source
                },
                ..base
            },
        ),
        (
            rule(cidr("10.0.0.9/32"), any(), traffic()),
            Facts {
                source: party(0, "10.0.0.9"),
                ..base
            },
        ),
        // The same number as the IPv4 address.
        (
            rule(cidr("::a00:1/128"), any(), traffic()),
            Facts {
                source: party(0, "::a00:1"),
                ..base
            },
        ),
        (
            rule(any(), cidr("::a00:2/128"), traffic()),
            Facts {
                destination: party(1, "::a00:2"),
                ..base
            },
        ),
        (
            rule(any(), cidr("fd00:0:0:1::2/128"), traffic()),
            Facts {
                destination: party(1, "fd00:0:0:1::2"),
                ..base
            },
        ),
        (
            rule(any(), any(), tcp(4001..=4001)),
            Facts {
                ports: pair(4001, 80),
                ..base
            },
        ),
        (
            rule(any(), any(), tcp(81..=81)),
            Facts {
                ports: pair(4000, 81),
                ..base
            },
        ),
        (
            rule(any(), any(), tcp(0..=0)),
            Facts {
                ports: pair(0, 0),
                ..base
            },
        ),
        (rule(any(), any(), icmp(8, 0)), echo(8, 0)),
        (rule(any(), any(), icmp(8, 1)), echo(8, 1)),
        (rule(any(), any(), icmp(3, 0)), echo(3, 0)),
    ];
    let (mut rules, mut packets): (Vec<Rule>, Vec<Facts>) = alone.into_iter().unzip();
    // The packet itself is a reply of this one's; what opens a connection, or has no ports or none to read, is not.
    rules.push(rule(guest(1), guest(0), tcp(4000..=4000)));
    packets.extend([
        base,
        Facts {
            opening: true,
            ..base
        },
        Facts {
            ports: Ports::None,
            ..base
        },
        Facts {
            ports: Ports::Unreadable,
            ..base
        },
    ]);
    let policy = of(rules);
    let (guests, flows) = (at_start(&policy), Flows::default());
    let world = World {
        policy: &policy,
        guests: &guests,
        flows: &flows,
    };
    let ruleset = Ruleset::compile(&policy, &guests, &flows, first()).unwrap();
    let expected: Vec<Decision> = packets.iter().map(|facts| naive(&world, facts)).collect();
    let of_base = packets.iter().position(|facts| *facts == base).unwrap();
    for (number, decision) in expected.iter().enumerate() {
        assert!(
            number == of_base || *decision != expected[of_base],
            "{:?}",
            packets[number]
        );
    }
    let mut cache = FlowCache::new(1, [3, 5]);
    for one in 0..packets.len() {
        for other in 0..packets.len() {
            for number in [one, other, one] {
                assert_eq!(
                    cache.classify(&ruleset, &packets[number]),
                    expected[number],
                    "{:?}",
                    packets[number]
                );
            }
            let both = [packets[one], packets[other]];
            let mut decisions = [Decision::UNMATCHED; 2];
            cache.classify_all(&ruleset, &both, &mut decisions);
            assert_eq!(decisions, [expected[one], expected[other]], "{both:?}");
        }
    }
}

/// A ruleset of another policy whose generation begins anew gets none of the old decisions.
#[test]
fn a_counter_that_begins_anew_finds_the_cache_empty() {
    let (one, two) = (
        of(vec![rule(Selector::Any, Selector::Any, Traffic::default())]),
        of(Vec::new()),
    );
    let compile = |policy: &Policy, generation: u32| {
        let generation = NonZeroU32::new(generation).unwrap();
        Ruleset::compile(policy, &at_start(policy), &Flows::default(), generation).unwrap()
    };
    let mut cache = FlowCache::new(16, [1, 2]);
    let facts = Facts {
        network: NetworkIndex(0),
        ethertype: 0x0806,
        vlan: None,
        protocol: None,
        ports: Ports::None,
        icmp: None,
        dscp: 0,
        opening: false,
        source: Party {
            guest: None,
            address: None,
        },
        destination: Party {
            guest: None,
            address: None,
        },
    };
    let matched = Verdict::Matched {
        rule: RuleIndex(0),
        action: Action::Plaintext,
    };
    assert_eq!(cache.classify(&compile(&one, 1), &facts).verdict, matched);
    // Another flow: the decision on the first one stays where it is.
    let other = Facts {
        ethertype: 0x88cc,
        ..facts
    };
    assert_eq!(cache.classify(&compile(&one, u32::MAX), &other).verdict, matched);
    // After the last number comes the first, which the cache has seen before.
    assert_eq!(next_generation(NonZeroU32::MAX), first());
    assert_eq!(cache.classify(&compile(&two, 1), &facts).verdict, Verdict::NoRule);
    assert_eq!((cache.hits, cache.misses), (0, 3));
    assert_eq!(cache.classify(&compile(&two, 1), &facts).verdict, Verdict::NoRule);
    assert_eq!((cache.hits, cache.misses), (1, 3));
}

#[test]
fn what_comes_to_too_much_is_refused_by_name() {
    let compile =
        |policy: &Policy| Ruleset::compile(policy, &at_start(policy), &Flows::default(), first()).map(|_| ());
    // Labels do not become one alternative, as prefixes do.
    let label = |number: usize| {
        Selector::All(vec![Term::Label(LabelTest {
            name: format!("l{number}"),
            values: vec![Glob::any()],
        })])
    };
    let many = |count: usize| Selector::OneOf((0..count).map(label).collect());
    let policy = of(vec![rule(many(256), many(256), tcp(1..=1)); 5]);
    let error = compile(&policy).unwrap_err();
    assert!(matches!(error, TooLarge::Entries { its: 65_536, .. }));
    assert_eq!(
        error.to_string(),
        "policy.yaml:7:5: with rule \"web\", which comes to 65536 combinations of from, to and traffic, the rules come to more \
         than 262144: expected fewer alternatives in from and to (one prefix or label test instead of many)"
    );
    let both = Selector::All(vec![Term::Not(Selector::All(
        (0..300).map(|number| Term::Not(label(number))).collect(),
    ))]);
    for selector in [many(257), both] {
        assert_eq!(
            compile(&of(vec![rule(selector, Selector::Any, tcp(1..=1))]))
                .unwrap_err()
                .to_string(),
            "policy.yaml:7:5: rule \"web\": from comes to more than 256 alternatives: expected a simpler selector, or several rules"
        );
    }
    // Every second address is a range of its own, on both sides.
    let prefix = |number: u32| {
        let address = std::net::Ipv4Addr::from_bits(number * 2);
        Selector::All(vec![Term::Cidr(format!("{address}/32").parse().unwrap())])
    };
    let scattered = Selector::OneOf((0..1000).map(prefix).collect());
    let group = || Selector::All(vec![Term::Group(GroupIndex(0))]);
    let policy = Policy {
        rules: vec![rule(group(), group(), tcp(1..=1)); 1500],
        ..world_without_rules(scattered, Selector::Any, false)
    };
    let error = compile(&policy).unwrap_err();
    assert!(
        matches!(error, TooLarge::Bytes { needed } if needed > MOST_BYTES >> 20),
        "{error}"
    );
}
