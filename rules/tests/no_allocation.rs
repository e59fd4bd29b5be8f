//! The look-up allocates nothing: out of the flow cache, past it, with every kind of rule, and for packets that no rule knows.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::num::NonZeroU32;
use std::sync::Arc;

use guestseal_rules::classify::Verdict;
use guestseal_rules::compile::Ruleset;
use guestseal_rules::facts::{Facts, Party, Ports};
use guestseal_rules::flow_cache::FlowCache;
use guestseal_rules::flows::{FlowContext, FlowKey, Flows};
use guestseal_rules::load::{Source, load_policy};
use guestseal_rules::membership::Membership;
use guestseal_rules::model::{GuestIndex, NetworkIndex, RuleIndex};

/// The system's, and how often this thread asked it.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // What a thread that ends asks for is nobody's look-up.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

// SAFETY: every call goes on to the system's allocator as it came; counting allocates nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const POLICY: &str = "
hosts:
  - {name: h, addresses: [192.0.2.1]}
networks:
  - {name: n, type: flat}
keys:
  - {id: k}
guests:
  - {id: g, host: h, labels: {tier: front}, ports: [{interface: p, network: n, mac: \"02:00:00:00:00:01\", addresses: [10.0.0.1, \"fd00::1\"]}]}
sections:
  - {name: watched, mode: monitor}
rules:
  - {name: told, from: {guest: g}, to: any, flow: {user: alice}, action: encrypt, key: k}
  - {name: web, from: {label: {tier: fr*}}, to: {cidr: 10.0.0.0/8}, protocol: tcp, ports: [80, 1000-2000], dscp: 46, vlan: 7, action: plaintext}
  - {name: six, from: {cidr: \"fd00::/64\"}, to: any, protocol: icmpv6, icmp-type: 128, action: drop}
";
const WATCHED: &str = "
section: watched
rules:
  - {name: all, from: any, to: any, protocol: tcp, action: drop}
";

fn facts(source: &str, destination: &str, port: u16) -> Facts {
    let party = |text: &str| Party {
        guest: (text == "10.0.0.1").then_some(GuestIndex(0)),
        address: text.parse().ok(),
    };
    Facts {
        network: NetworkIndex(0),
        ethertype: 0x0800,
        vlan: Some(7),
        protocol: Some(6),
        ports: Ports::Pair {
            source: 40_000,
            destination: port,
        },
        icmp: None,
        dscp: 46,
        opening: false,
        source: party(source),
        destination: party(destination),
    }
}

#[test]
fn a_look_up_allocates_nothing() {
    let sources = [("policy.yaml", POLICY), ("watched.yaml", WATCHED)].map(|(name, text)| Source {
        name: name.into(),
        text: text.into(),
    });
    let policy = load_policy(&sources).unwrap_or_else(|errors| panic!("{errors}"));
    let guests = [Membership::at_start(&policy, GuestIndex(0))];
    let told = facts("10.0.0.1", "10.9.9.9", 4);
    let mut flows = Flows::default();
    let (key, sender) = FlowKey::of(&told).expect("it has ports");
    let context = FlowContext {
        user: Some("alice".into()),
        ..FlowContext::default()
    };
    let mut ends = [None, None];
    ends[sender] = Some(Arc::new(context));
    flows.by_key.insert(key, ends);
    let ruleset =
        Ruleset::compile(&policy, &guests, &flows, NonZeroU32::MIN).unwrap_or_else(|error| panic!("{error}"));
    let mut cache = FlowCache::new(1 << 10, [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344]);

    let before = ASKED.get();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(ASKED.get() - before, 2, "it counts");

    let web = facts("10.0.0.1", "10.9.9.9", 80);
    let packets = [
        told,
        web,
        facts("10.9.9.9", "10.0.0.1", 80),
        facts("11.0.0.1", "10.0.0.1", 1500),
        Facts {
            ports: Ports::Unreadable,
            ..web
        },
        Facts {
            // A guest under an address that is not its own.
            source: Party {
                guest: Some(GuestIndex(0)),
                address: "fd00::2".parse().ok(),
            },
            protocol: Some(58),
            ports: Ports::None,
            icmp: Some((128, 0)),
            ..web
        },
        Facts {
            ethertype: 0x0806,
            protocol: None,
            ports: Ports::None,
            ..web
        },
    ];
    let before = ASKED.get();
    let mut verdicts = [Verdict::NoRule; 7];
    for _ in 0..3 {
        for (facts, verdict) in packets.iter().zip(&mut verdicts) {
            *verdict = ruleset.classify(facts).verdict;
            assert!(cache.classify(&ruleset, facts).verdict == *verdict);
        }
    }
    assert_eq!(
        ASKED.get() - before,
        0,
        "allocations and frees in {} look-ups",
        2 * 3 * packets.len()
    );
    assert!(
        cache.hits >= 7 && cache.misses >= 7,
        "both ways were gone: {} {}",
        cache.hits,
        cache.misses
    );
    let rules = verdicts.map(|verdict| match verdict {
        Verdict::Matched { rule, .. } => Some(rule),
        _ => None,
    });
    let rule = |number| Some(RuleIndex(number));
    // The watched section is declared first, and its rule is number 0.
    assert_eq!(rules, [rule(1), rule(2), None, None, None, rule(3), None]);
    assert_eq!(verdicts[4], Verdict::FragmentNeedsPorts);
}
