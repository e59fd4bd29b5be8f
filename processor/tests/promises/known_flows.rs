//! A packet of a flow that is remembered goes the way that it would find by itself: in everything that can be seen of it.

use guestseal::path::outcome::DropReason;
use guestseal::wire::checksum;
use guestseal_rules::classify::{Action, Protection};
use guestseal_rules::model::Policy;
use proptest::prelude::*;

use crate::frames::*;
use crate::host::{Host, Options, overlay_with, policy, policy_with};
use crate::in_place::{OVERLAY, OVERLAY_UDP, TRANSPORT, TUNNEL};
use crate::overlay_foreign::{sealed_as, spi_of};
use crate::unfinished_checksums::left_and_finished;

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    /// By the port of a guest, by its place among those of the policy, comes a frame from one, its own or another, to one.
    Sends {
        by: usize,
        from: usize,
        to: usize,
        shape: Shape,
    },
    /// The frame that crossed the wire last crosses it again.
    CrossesAgain,
    Infected(usize),
    Cleared(usize),
    Moves(usize, usize),
    AlsoAccepts(bool),
}

/// What a frame is like.
#[derive(Clone, Debug)]
struct Shape {
    ip6: bool,
    protocol: u8,
    port: u16,
    flags: u8,
    /// Of DSCP and ECN.
    class: u8,
    ttl: u8,
    data: usize,
    /// A place of the headers that is another than it should be, and what stands there.
    wrong: Option<(usize, u8)>,
    /// Its checksum is left to the network card.
    left: bool,
}

impl Shape {
    fn frame(&self, from: Guest, to: Guest) -> Vec<u8> {
        let data = vec![7; self.data];
        let segment = match self.protocol {
            TCP => tcp(9, self.port, self.flags, &data),
            UDP => udp(9, self.port, &data),
            // An echo request.
            _ => [&[8, 0, 0, 0, 0, 1, 0, 1][..], &data].concat(),
        };
        let segment = match self.left {
            true => left_and_finished(from, to, self.ip6, self.protocol, &segment).0,
            false => segment,
        };
        let mut frame = between(from, to, self.ip6, self.protocol, &segment);
        if self.ip6 {
            frame[14] = 0x60 | self.class >> 4;
            frame[15] = self.class << 4 | self.ttl & 15;
            frame[21] = self.ttl;
        } else {
            (frame[15], frame[22]) = (self.class, self.ttl);
        }
        if let Some((place, byte)) = self.wrong {
            frame[place] = byte;
        }
        if !self.ip6 {
            frame[24..26].fill(0);
            let sum = checksum::checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        frame
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    let port = prop::sample::select(vec![53u16, 514, 23, 25, 8080, 4500, 4789]);
    let protocol = prop::sample::select(vec![UDP, UDP, TCP, TCP, 1]);
    let flags = prop::sample::select(vec![SYN, SYN | ACK, ACK]);
    let class = prop::sample::select(vec![0u8, 0, 1, 3, 0xb8]);
    // MACs, EtherType, fragments, protocol, addresses, ports: more often as they should be.
    let wrong = prop_oneof![6 => Just(None), 1 => (0..38usize, 0..8u8).prop_map(Some)];
    let data = prop::sample::select(vec![0usize, 3, 40, 1390]);
    (any::<bool>(), protocol, port, flags, class, 60..64u8, data, wrong).prop_map(
        |(ip6, protocol, port, flags, class, ttl, data, wrong)| Shape {
            ip6,
            protocol,
            port,
            flags,
            class,
            ttl,
            data,
            wrong,
            left: false,
        },
    )
}

/// Few flows and many packets of each, with something else now and then.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Mostly between guests of one network, and now and then somebody sends what another sends, or a packet is marked.
    let pair = prop_oneof![
        3 => prop::sample::select(vec![(0usize, 1usize), (1, 0), (0, 2), (2, 1)]),
        1 => (0..4usize, 0..4usize),
    ];
    let by = prop_oneof![8 => Just(None), 1 => (0..4usize).prop_map(Some)];
    let palette = prop::collection::vec((pair, shape()), 1..6);
    let marked = prop::bool::weighted(0.1);
    let others = prop_oneof![
        5 => Just(None),
        1 => prop_oneof![
            Just(Step::CrossesAgain),
            (0..4usize).prop_map(Step::Infected),
            (0..4usize).prop_map(Step::Cleared),
            (0..4usize, 0..2usize).prop_map(|(guest, host)| Step::Moves(guest, host)),
            any::<bool>().prop_map(Step::AlsoAccepts),
        ].prop_map(Some),
    ];
    let order = prop::collection::vec((any::<prop::sample::Index>(), by, marked, others), 1..60);
    (palette, order).prop_map(|(palette, order)| {
        let step = |(which, by, marked, other): (prop::sample::Index, Option<usize>, bool, Option<Step>)| {
            let ((from, to), mut shape) = which.get(&palette).clone();
            if marked {
                shape.class = 46 << 2;
            }
            let by = by.unwrap_or(from);
            other.unwrap_or(Step::Sends { by, from, to, shape })
        };
        order.into_iter().map(step).collect()
    })
}

/// What the short way is for: few flows of IPv4, and now and then something opens a connection.
fn few_flows() -> impl Strategy<Value = Vec<Step>> {
    let port = prop::sample::select(vec![53u16, 514, 25, 8080, 5222]);
    let flags = prop::sample::select(vec![ACK, ACK, ACK, SYN]);
    let data = prop::sample::select(vec![0usize, 1, 2, 3, 40]);
    // Up to what no longer fits, whatever the way.
    let long = prop::option::weighted(0.1, 1360..1450usize);
    let pair = prop::sample::select(vec![(1usize, 0usize), (1, 2), (0, 1)]);
    let shape = (
        pair,
        prop::sample::select(vec![UDP, TCP]),
        port,
        flags,
        data,
        any::<bool>(),
    );
    let opens = prop::bool::weighted(0.1);
    // The low byte of the packet's length, too short now and then.
    let short = prop_oneof![9 => Just(None), 1 => (18..50u8).prop_map(|length| Some((17, length)))];
    let palette = prop::collection::vec(shape, 2..5);
    let order = prop::collection::vec((any::<prop::sample::Index>(), opens, short, long), 20..60);
    (palette, order).prop_map(|(palette, order)| {
        type Which = (prop::sample::Index, bool, Option<(usize, u8)>, Option<usize>);
        let step = |(which, opens, wrong, long): Which| {
            let ((from, to), protocol, port, flags, data, left) = *which.get(&palette);
            let shape = Shape {
                ip6: false,
                protocol,
                port,
                flags: if opens { SYN } else { flags },
                class: 0,
                ttl: 64,
                data: long.unwrap_or(data),
                wrong,
                left,
            };
            let by = from;
            Step::Sends { by, from, to, shape }
        };
        order.into_iter().map(step).collect()
    })
}

/// Two hosts, and the guests by the host where each began.
struct Pair {
    hosts: [Host; 2],
    crossed: Option<(usize, Vec<u8>)>,
    forgets: bool,
}

impl Pair {
    fn new(policy: &Policy, options: &Options, forgets: bool) -> Self {
        Self {
            hosts: [0, 1].map(|number| Host::new(policy, number, options)),
            crossed: None,
            forgets,
        }
    }

    /// Carries frames out and over, which are received together, in turns with heads of so many bytes; everything that came out
    /// anywhere, behind the number of the guest that got it.
    fn carry(
        &mut self,
        at: usize,
        from: Guest,
        frames: &[Vec<u8>],
        heads: &[u8],
        guests: &[(Guest, usize)],
    ) -> Vec<Vec<u8>> {
        if self.forgets {
            self.hosts.iter_mut().for_each(Host::forgets);
        }
        self.hosts[at].guest_sends_with_heads(from, frames, heads);
        let mut seen = self.hosts[at].on_wire();
        self.hosts[1 - at].wire_brings_at_once(0, &seen);
        if let Some(last) = seen.last() {
            self.crossed = Some((1 - at, last.clone()));
        }
        for (number, (guest, home)) in (0u8..).zip(guests) {
            let got = self.hosts[*home].at_guest(*guest).into_iter();
            seen.extend(got.map(|frame| [&[number][..], &frame].concat()));
        }
        seen
    }

    fn cross(&mut self) {
        if let Some((to, sealed)) = &self.crossed {
            self.hosts[*to].wire_brings(0, sealed);
        }
    }
}

fn compare(world: &World, steps: &[Step]) {
    let World {
        policy,
        options,
        guests,
        rules,
        ..
    } = world;
    let mut pairs = [false, true].map(|forgets| Pair::new(policy, options, forgets));
    let mut infected = [false; 4];
    for step in steps {
        match step {
            Step::Infected(guest) if !infected[*guest] => infected[*guest] = true,
            Step::Cleared(guest) if infected[*guest] => infected[*guest] = false,
            // Nothing would change.
            Step::Infected(_) | Step::Cleared(_) => continue,
            _ => {}
        }
        let seen = pairs.each_mut().map(|pair| {
            match step {
                Step::Sends { by, from, to, shape } => {
                    let (by, home) = guests[*by];
                    let frame = shape.frame(guests[*from].0, guests[*to].0);
                    return pair.carry(home, by, &[frame], &[0], guests);
                }
                Step::CrossesAgain => pair.cross(),
                Step::Infected(guest) | Step::Cleared(guest) => {
                    let what = match step {
                        Step::Infected(_) => r#""tag": {"service": "av", "name": "eicar", "severity": 90}"#,
                        _ => r#""clear": {"service": "*", "name": "*"}"#,
                    };
                    let event = format!(r#"{{"guest": "{}", {what}}}"#, guests[*guest].0.id);
                    pair.hosts.iter_mut().for_each(|host| host.hears(&event));
                }
                Step::Moves(guest, to) => {
                    for host in &mut pair.hosts {
                        host.sees_moved(guests[*guest].0, *to);
                    }
                }
                Step::AlsoAccepts(on) => {
                    let seal = Action::Seal {
                        protection: Protection::Encrypt,
                        key: policy.key("blue-any").expect("a key of both policies"),
                    };
                    let forms: &[Action] = if *on { &[Action::Plaintext, seal] } else { &[] };
                    for host in &mut pair.hosts {
                        host.also_accepts("blue", forms);
                    }
                }
            }
            Vec::new()
        });
        assert_eq!(seen[0], seen[1], "{step:?}");
        assert_alike(&pairs, rules, &format!("{step:?}"));
    }
}

/// Both pairs have counted the same.
fn assert_alike(pairs: &[Pair; 2], rules: &[String], after: &str) {
    for number in [0, 1] {
        let [one, other] = pairs.each_ref().map(|pair| &pair.hosts[number]);
        assert_eq!(one.outcomes(), other.outcomes(), "host {number}: {after}");
        assert_eq!(one.tallies(), other.tallies(), "host {number}: {after}");
        for rule in rules {
            let counted = [one, other].map(|host| (host.met(rule), host.in_second_form(rule)));
            assert_eq!(counted[0], counted[1], "host {number}, rule {rule}: {after}");
        }
        one.assert_accounted();
        other.assert_accounted();
    }
}

/// Frames that a port takes at once.
const TOGETHER: usize = 24;

/// What each guest sends comes to one pair packet by packet, and to the other at once and with heads. Guests may send damaged packets.
fn compare_bursts(world: &World, steps: &[Step], mishaps: &[Mishap], heads: &[u8]) {
    let World {
        policy,
        options,
        guests,
        rules,
        ..
    } = world;
    let mut pairs = [false; 2].map(|forgets| Pair::new(policy, options, forgets));
    for (number, (guest, home)) in guests.iter().enumerate() {
        let sent = world.sent_by(number, steps);
        // The second time their flows are known.
        // Some come twice.
        let bursts = || sent.chunks(TOGETHER / 2);
        for burst in bursts().chain(bursts()) {
            let burst = &meet(burst.to_vec(), mishaps)[..];
            let [one_by_one, at_once] = &mut pairs;
            let mut seen = [
                burst
                    .iter()
                    .flat_map(|frame| {
                        one_by_one.carry(*home, *guest, std::slice::from_ref(frame), &[0], guests)
                    })
                    .collect(),
                at_once.carry(*home, *guest, burst, heads, guests),
            ];
            seen.iter_mut().for_each(|frames| frames.sort_unstable());
            assert_eq!(seen[0], seen[1], "{}: {steps:?}", guest.id);
            assert_alike(&pairs, rules, guest.id);
        }
    }
}

/// What the wire does to a frame.
#[derive(Clone, Debug)]
enum Mishap {
    None,
    /// It comes twice.
    Twice,
    /// Some bits of one byte are others.
    Flips(usize, u8),
    /// Its end is missing.
    Cuts(usize),
    /// A router has met congestion, or has marked it.
    Marks(u8),
    /// It comes before the one before it.
    Overtakes,
}

fn mishaps() -> impl Strategy<Value = Vec<Mishap>> {
    let one = prop_oneof![
        6 => Just(Mishap::None),
        1 => Just(Mishap::Twice),
        1 => (0..120usize, 1..=255u8).prop_map(|(place, bits)| Mishap::Flips(place, bits)),
        1 => (0..120usize).prop_map(Mishap::Cuts),
        1 => (0..4u8).prop_map(Mishap::Marks),
        1 => Just(Mishap::Overtakes),
    ];
    prop::collection::vec(one, TOGETHER)
}

fn meet(frames: Vec<Vec<u8>>, mishaps: &[Mishap]) -> Vec<Vec<u8>> {
    let mut met: Vec<Vec<u8>> = Vec::new();
    for (mut frame, mishap) in frames.into_iter().zip(mishaps) {
        match mishap {
            Mishap::None => {}
            Mishap::Twice => met.push(frame.clone()),
            Mishap::Flips(place, bits) => {
                let place = place % frame.len();
                frame[place] ^= bits;
            }
            Mishap::Cuts(place) => frame.truncate(place % frame.len()),
            Mishap::Marks(class) if frame[12..14] == [8, 0] => {
                frame[15] = frame[15] & !3 | class;
                frame[24..26].fill(0);
                let sum = checksum::checksum(&frame[14..34]);
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            Mishap::Marks(class) => frame[15] = frame[15] & !0x30 | class << 4,
            Mishap::Overtakes => {
                let last = met.pop();
                met.push(frame);
                met.extend(last);
                continue;
            }
        }
        met.push(frame);
    }
    met
}

/// What each guest sends crosses a bad wire and arrives at once, with flows that are known and with none.
fn compare_on_wire(world: &World, steps: &[Step], mishaps: &[Mishap]) {
    let World {
        policy,
        options,
        guests,
        rules,
        ..
    } = world;
    let mut pairs = [false, true].map(|forgets| Pair::new(policy, options, forgets));
    for (number, (guest, home)) in guests.iter().enumerate() {
        let sent = world.sent_by(number, steps);
        for burst in sent.chunks(TOGETHER / 2) {
            let seen = pairs.each_mut().map(|pair| {
                // Only some of their flows, so that known ones and others come together.
                pair.carry(*home, *guest, &burst[..burst.len().div_ceil(2)], &[0], guests);
                pair.hosts[*home].guest_sends_at_once(*guest, burst);
                let crossing = meet(pair.hosts[*home].on_wire(), mishaps);
                if pair.forgets {
                    pair.hosts[1 - *home].forgets();
                }
                // By either queue.
                let queue = number % pair.hosts[1 - *home].uplinks.len();
                pair.hosts[1 - *home].wire_brings_at_once(queue, &crossing);
                let at = |(guest, home): &(Guest, usize)| pair.hosts[*home].at_guest(*guest);
                // In their order.
                guests.iter().map(at).collect::<Vec<_>>()
            });
            assert_eq!(seen[0], seen[1], "{}: {steps:?}", guest.id);
            assert_alike(&pairs, rules, guest.id);
        }
    }
}

/// The guests that are there in both policies.
const HOMES: [(Guest, usize); 4] = [(BLUE1, 0), (BLUE2, 1), (BLUE3, 0), (RED1, 0)];

/// A rule of the same key as the last one for blue's guests.
const CHAT: &str = "  - {name: chat, from: {network: blue}, to: {network: blue}, protocol: udp, ports: [5222], action: encrypt, \
                    key: blue-any}\n";

/// A flat network or an overlay.
struct World {
    policy: Policy,
    options: Options,
    guests: [(Guest, usize); 4],
    rules: Vec<String>,
    /// Bytes that are put in front of a packet that is sealed.
    head: u8,
}

impl World {
    /// Tunnel mode; an overlay; ESP in UDP; guests that leave checksums; a second worker, which has the SAs and ports that the
    /// first has not.
    fn of([tunnel, overlay, in_udp, leaves_checksums, two_workers]: [bool; 5]) -> Self {
        let options = Options {
            tunnel,
            in_udp: overlay && in_udp,
            leaves_checksums,
            workers: if two_workers { 2 } else { 1 },
            ..Options::default()
        };
        let mut guests = HOMES;
        let (policy, rules) = if overlay {
            guests[3].0 = Guest { id: "red-1", ..BLUE1 };
            let urgent = "  - {name: urgent, from: {network: blue}, to: any, dscp: 46, action: drop}\n";
            let rules = ["urgent", "chat", "names", "log", "telnet", "blue", "red"];
            (
                overlay_with("rules:\n", &format!("rules:\n{urgent}{CHAT}")),
                rules.map(str::to_owned).to_vec(),
            )
        } else {
            let before = "  - {name: telnet,";
            let policy = policy_with(before, &format!("{CHAT}{before}"));
            let rules = policy.rules.iter().map(|rule| rule.name.to_string()).collect();
            (policy, rules)
        };
        Self {
            policy,
            options,
            guests,
            rules,
            head: match (overlay, in_udp, tunnel) {
                (true, true, _) => OVERLAY_UDP,
                (true, false, _) => OVERLAY,
                (false, _, true) => TUNNEL,
                (false, _, false) => TRANSPORT,
            },
        }
    }

    /// The frames that come by the port of the guest of a number.
    fn sent_by(&self, number: usize, steps: &[Step]) -> Vec<Vec<u8>> {
        let sent = steps.iter().filter_map(|step| match step {
            Step::Sends { by, from, to, shape } if *by == number => {
                Some(shape.frame(self.guests[*from].0, self.guests[*to].0))
            }
            _ => None,
        });
        sent.collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn as_if_every_packet_were_the_first(steps in steps(), ways: [bool; 5]) {
        compare(&World::of(ways), &steps);
    }

    /// Whatever was found for the packets before it.
    #[test]
    fn a_burst_is_as_good_as_its_packets(steps in steps(), ways: [bool; 5]) {
        compare_bursts(&World::of(ways), &steps, &[const { Mishap::None }; TOGETHER], &[0]);
    }

    /// Even where most are known and of few kinds, and some are damaged.
    #[test]
    fn a_burst_of_few_flows_is_as_good_as_its_packets(
        steps in few_flows(),
        mishaps in mishaps(),
        ways: [bool; 5],
        left in prop_oneof![4 => Just(None), 1 => (1..30u64).prop_map(Some)],
        heads in prop_oneof![Just(vec![false]), prop::collection::vec(any::<bool>(), 1..8)],
    ) {
        let mut world = World::of(ways);
        if let Some(left) = left {
            // So many sequence numbers.
            let start = u64::from(u32::MAX) - left;
            world.options = Options { esn: false, start, ..world.options };
        }
        let heads: Vec<u8> = heads.iter().map(|has| if *has { world.head } else { 0 }).collect();
        compare_bursts(&world, &steps, &mishaps, &heads);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_on_the_wire(steps in steps(), mishaps in mishaps(), ways: [bool; 5]) {
        compare_on_wire(&World::of(ways), &steps, &mishaps);
    }
}

/// Guards, rules and SAs are asked once for a flow, not once for a packet; and anew as soon as anything of them changes.
#[test]
fn a_flow_is_looked_up_once_under_the_same_tables() {
    let mut host = Host::new(&policy(), 0, &Options::default());
    let data = between(BLUE1, BLUE2, false, TCP, &tcp(9, 8080, ACK, b"data"));
    host.guest_sends(BLUE1, &data);
    assert_eq!(host.known(), 0);
    host.guest_sends(BLUE1, &data);
    host.guest_sends(BLUE1, &data);
    assert_eq!(host.known(), 2);
    host.forgets();
    host.guest_sends(BLUE1, &data);
    assert_eq!(host.known(), 2);
    host.guest_sends(BLUE1, &data);
    assert_eq!(host.known(), 3);
    // What opens a connection is asked about each time: its rule may be another.
    let opens = between(BLUE1, BLUE2, false, TCP, &tcp(9, 8080, SYN, b""));
    host.guest_sends(BLUE1, &opens);
    host.guest_sends(BLUE1, &opens);
    let sealed = host.on_wire();
    assert_eq!((host.known(), sealed.len()), (3, 7));
    host.guest_sends_at_once(BLUE1, &[data.clone(), opens.clone(), data.clone()]);
    assert_eq!((host.known(), host.on_wire().len()), (5, 3));
    host.assert_accounted();
    // So at the other end.
    let mut other = Host::new(&policy(), 1, &Options::default());
    for (number, frame) in sealed.iter().enumerate() {
        other.wire_brings(0, frame);
        assert_eq!(other.known() as usize, number.min(4), "{:?}", other.outcomes());
    }
    assert_eq!(
        other.at_guest(BLUE2),
        [
            data.clone(),
            data.clone(),
            data.clone(),
            data.clone(),
            data,
            opens.clone(),
            opens
        ]
    );
    other.assert_accounted();
}

/// So among packets that come together, whatever they travel in.
#[test]
fn what_opens_a_connection_is_asked_about_among_known_packets() {
    let tunnel = Options {
        tunnel: true,
        ..Options::default()
    };
    for (policy, options) in [
        (policy(), Options::default()),
        (policy(), tunnel),
        (overlay_with("", ""), Options::default()),
    ] {
        let mut hosts = [0, 1].map(|number| Host::new(&policy, number, &options));
        let data = between(BLUE1, BLUE2, false, TCP, &tcp(9, 8080, ACK, b"data"));
        let opens = between(BLUE1, BLUE2, false, TCP, &tcp(9, 8080, SYN, b""));
        let burst = [data.clone(), opens, data];
        for known in [0, 2] {
            hosts[0].guest_sends_at_once(BLUE1, &burst);
            let crossing = hosts[0].on_wire();
            hosts[1].wire_brings_at_once(0, &crossing);
            assert_eq!(hosts[1].at_guest(BLUE2), burst);
            assert_eq!(hosts.each_ref().map(Host::known), [known; 2]);
        }
        hosts.iter().for_each(Host::assert_accounted);
    }
}

/// What another implementation seals, or a peer that means harm: it is what it says inside, whatever else is known of its SA.
#[test]
fn a_known_flow_is_that_of_its_protocol() {
    let policy = policy();
    let spi = spi_of(&policy, "blue-any", 0);
    let mut host = Host::new(&policy, 1, &Options::default());
    let sealed = |sequence, protocol, payload: &[u8]| {
        between(
            BLUE1,
            BLUE2,
            false,
            50,
            &sealed_as(protocol, spi, sequence, payload),
        )
    };
    let datagram = udp(9, 23, b"known");
    for sequence in 1..=3 {
        host.wire_brings(0, &sealed(sequence, UDP, &datagram));
        assert_eq!(
            host.at_guest(BLUE2),
            [between(BLUE1, BLUE2, false, UDP, &datagram)]
        );
    }
    assert_eq!(host.known(), 2);
    host.wire_brings(0, &sealed(4, TCP, &tcp(9, 23, ACK, b"telnet")));
    assert_eq!(host.dropped(DropReason::RuleDrops), 1);
    for short in 0..8 {
        host.wire_brings(0, &sealed(5 + short, UDP, &datagram[..short as usize]));
        assert_eq!(host.dropped(DropReason::BadTransportHeader), short + 1);
    }
    assert!(host.at_guest(BLUE2).is_empty());
    assert_eq!(host.known(), 2);
    host.assert_accounted();
}

/// What comes together under one SA is told apart by all of its headers, and by what is inside: by ports alone, by addresses alone,
/// and behind what was damaged.
#[test]
fn what_comes_together_is_not_taken_for_its_neighbour() {
    let policy = policy();
    let spi = spi_of(&policy, "blue-any", 0);
    let mut host = Host::new(&policy, 1, &Options::default());
    let mut sequence = 0;
    let mut sealed = |from, port| {
        sequence += 1;
        let payload = sealed_as(TCP, spi, sequence, &tcp(9, port, ACK, b"data"));
        between(from, BLUE2, false, 50, &payload)
    };
    let plain = |from, port| between(from, BLUE2, false, TCP, &tcp(9, port, ACK, b"data"));
    for _ in 0..2 {
        host.wire_brings_at_once(0, &[sealed(BLUE1, 9000), sealed(BLUE3, 9000)]);
    }
    assert_eq!((host.known(), host.at_guest(BLUE2).len()), (2, 4));
    // A rule drops telnet.
    host.wire_brings_at_once(0, &[sealed(BLUE1, 9000), sealed(BLUE1, 23), sealed(BLUE1, 9000)]);
    assert_eq!(host.at_guest(BLUE2), [plain(BLUE1, 9000), plain(BLUE1, 9000)]);
    assert_eq!(host.dropped(DropReason::RuleDrops), 1);
    let mut damaged = sealed(BLUE3, 9000);
    damaged[60] ^= 1;
    host.wire_brings_at_once(0, &[sealed(BLUE1, 9000), damaged, sealed(BLUE3, 9000)]);
    assert_eq!(host.at_guest(BLUE2), [plain(BLUE1, 9000), plain(BLUE3, 9000)]);
    assert_eq!(host.dropped(DropReason::BadTag), 1);
    host.assert_accounted();
}

/// The tags of a trunk are looked at whatever is known of a flow.
#[test]
fn a_known_flow_of_a_trunk_keeps_to_its_tag() {
    let trunk = policy_with("interface: gp-blue-1,", "interface: trunk, vlan: 101,");
    let mut hosts = [0, 1].map(|number| Host::new(&trunk, number, &Options::default()));
    let tagged = |frame: &[u8]| [&frame[..12], &[0x81, 0, 0, 101], &frame[12..]].concat();
    let there = between(BLUE1, BLUE2, false, UDP, &udp(9, 8080, b"there"));
    let back = between(BLUE2, BLUE1, false, UDP, &udp(8080, 9, b"back"));
    for _ in 0..3 {
        hosts[0].guest_sends(BLUE1, &tagged(&there));
        let sealed = hosts[0].on_wire();
        assert_eq!(sealed.len(), 1);
        hosts[1].wire_brings_at_once(0, &sealed);
        assert_eq!(hosts[1].at_guest(BLUE2), [&there[..]]);
        hosts[1].guest_sends(BLUE2, &back);
        let sealed = hosts[1].on_wire();
        hosts[0].wire_brings_at_once(0, &sealed);
        assert_eq!(hosts[0].at_guest(BLUE1), [tagged(&back)]);
    }
    assert!(hosts[0].known() > 0);
    hosts[0].guest_sends(BLUE1, &there);
    assert_eq!(hosts[0].on_wire(), [[0; 0]; 0], "without its tag");
    assert_eq!(hosts[0].dropped(DropReason::UnknownVlan), 1);
    hosts.iter().for_each(Host::assert_accounted);
}

/// What goes to every host of its network, and is counted against a rate, is no flow.
#[test]
fn what_is_flooded_is_never_remembered() {
    let mut host = Host::new(&overlay_with("", ""), 0, &Options::default());
    let nobody = Guest {
        mac: [2, 0, 0, 9, 9, 9],
        v4: [10, 1, 0, 99],
        ..BLUE2
    };
    let flooded = between(BLUE1, nobody, false, UDP, &udp(9, 9, b"who"));
    for _ in 0..3 {
        host.guest_sends(BLUE1, &flooded);
    }
    assert_eq!((host.known(), host.on_wire().len()), (0, 3));
    host.assert_accounted();
}
