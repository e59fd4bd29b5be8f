//! Hosts that are told different things come to the same, and then have nothing more to tell each other.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::event::{Event, What};
use crate::load::{Source, load_policy};
use crate::model::Policy;

const POLICY: &str = "\
hosts: [{name: h1, address: 192.0.2.1}]
networks: [{name: blue}]
guests:
  - {id: g0, uuid: u0, host: h1, ports: [{interface: a, network: blue, mac: '02:00:00:00:00:01', addresses: [10.0.0.1]}]}
containers:
  - name: default
    transfers:
      - {name: infected, when: {tag: {service: av, severity: '>=70'}}, to: quarantine}
      - {name: seen, when: {login: {user: '*'}}, to: watched}
  - {name: quarantine, quarantine: true, release: {after: 30s, when: {not: {tag: {service: av}}}}}
  - name: watched
    transfers:
      - {name: infected-too, when: {tag: {service: av, severity: '>=70'}}, to: quarantine}
    release: {when: {not: {login: {user: '*'}}}}
";

fn policy(text: &str) -> Arc<Policy> {
    let (name, text) = ("policy.yaml".into(), text.to_owned());
    Arc::new(load_policy(&[Source { name, text }]).unwrap_or_else(|errors| panic!("{errors}")))
}

fn at(seconds: u64) -> Moment {
    Moment::from_millis(1_000_000_000_000 + seconds * 1000)
}

fn tell(host: &mut Containers, now: Moment, what: &str) -> Result<(), Refusal> {
    let event: Event = serde_json::from_str(&format!("{{\"guest\": \"u0\", {what}}}")).unwrap();
    host.apply(now, &event, &mut Changes::default())
}

fn take(host: &mut Containers, now: Moment, told: &Shared) -> Result<(), Refusal> {
    let (news, _) = host.news("u0", told)?;
    let event = Event {
        time: None,
        guest: "u0".into(),
        what: What::Shared(Box::new(news)),
    };
    host.apply(now, &event, &mut Changes::default())
}

fn is_in(host: &Containers) -> &str {
    let container = host.record(GuestIndex(0)).container;
    &host.policy().containers[container.index()].name
}

fn new() -> Containers {
    Containers::new(policy(POLICY), at(0))
}

const TAG: &str = r#""tag": {"service": "av", "name": "eicar", "severity": 90}"#;
const CLEAR: &str = r#""clear": {"service": "av", "name": "*"}"#;

#[test]
fn what_one_host_is_told_is_so_at_the_other_and_comes_back_as_no_news() {
    let (mut h1, mut h2) = (new(), new());
    tell(&mut h1, at(1), TAG).unwrap();
    assert!(h1.is_ahead("u0", None) && !h2.is_ahead("u0", None));
    let told = h1.share("u0", "h1").unwrap();
    take(&mut h2, at(1), &told).unwrap();
    assert_eq!(is_in(&h2), "quarantine");
    let cause = h2.record(GuestIndex(0)).cause.clone().unwrap();
    assert_eq!(
        cause.to_string(),
        "transfer infected of default after tag av/eicar of severity 90, on host h1"
    );
    let back = h2.share("u0", "h2").unwrap();
    assert!(h1.news("u0", &back).unwrap().0.is_empty());
    assert!(!h1.is_ahead("u0", Some(&back)) && !h2.is_ahead("u0", Some(&told)));
    assert_eq!(take(&mut h2, at(2), &told), Err(Refusal::Duplicate));
    // Cleared at the other one, whose clock is behind.
    tell(&mut h2, at(1), CLEAR).unwrap();
    let told = h2.share("u0", "h2").unwrap();
    take(&mut h1, at(3), &told).unwrap();
    h1.advance(at(60), &mut Changes::default());
    assert_eq!(is_in(&h1), "default");
}

/// A host that never knew of a tag writes between two that do: it must not make them forget that it was cleared.
#[test]
fn who_knows_of_no_tag_passes_on_that_it_was_cleared() {
    let (mut h1, mut h2, mut h3) = (new(), new(), new());
    for host in [&mut h1, &mut h3] {
        tell(host, at(1), TAG).unwrap();
    }
    tell(&mut h1, at(1), CLEAR).unwrap();
    take(&mut h2, at(31), &h1.share("u0", "h1").unwrap()).unwrap();
    take(&mut h3, at(1), &h2.share("u0", "h2").unwrap()).unwrap();
    let told = h3.share("u0", "h3").unwrap();
    assert!(!h1.is_ahead("u0", Some(&told)), "{told:?}");
}

#[test]
fn a_hand_goes_before_rules_and_the_later_hand_before_the_earlier() {
    let (mut h1, mut h2) = (new(), new());
    // The clock of the first is far ahead.
    tell(&mut h1, at(1000), r#""pin": {"container": "watched"}"#).unwrap();
    tell(&mut h2, at(1), TAG).unwrap();
    let (one, two) = (h1.share("u0", "h1").unwrap(), h2.share("u0", "h2").unwrap());
    take(&mut h1, at(1001), &two).unwrap();
    take(&mut h2, at(2), &one).unwrap();
    assert_eq!((is_in(&h1), is_in(&h2)), ("watched", "watched"));
    tell(&mut h2, at(3), r#""unpin": {}"#).unwrap();
    take(&mut h1, at(1002), &h2.share("u0", "h2").unwrap()).unwrap();
    assert_eq!((is_in(&h1), is_in(&h2)), ("quarantine", "quarantine"));
}

#[test]
fn what_cannot_be_is_refused_and_an_unknown_container_holds_nothing_else_up() {
    let (mut h1, mut h2) = (new(), new());
    tell(&mut h1, at(1), TAG).unwrap();
    let mut told = h1.share("u0", "h1").unwrap();
    told.place.as_mut().unwrap().container = "nowhere".into();
    let (news, refusal) = h2.news("u0", &told).unwrap();
    assert_eq!((news.tags.len(), refusal), (1, Some(Refusal::UnknownContainer)));
    take(&mut h2, at(1), &told).unwrap();
    assert_eq!(is_in(&h2), "quarantine", "its own rules say so");
    assert_eq!(h2.news("u9", &told), Err(Refusal::UnknownGuest));
    let wrong: [fn(&mut Shared); 5] = [
        |told| told.tags[0].severity = 101,
        |told| told.tags[0].name = "x".repeat(MAX_NAME + 1),
        |told| told.tags = vec![told.tags[0].clone(); MAX_TAGS + 1],
        |told| told.host.clear(),
        |told| told.place.as_mut().unwrap().hands = u64::MAX,
    ];
    for spoil in wrong {
        let mut told = h1.share("u0", "h1").unwrap();
        spoil(&mut told);
        assert_eq!(h2.news("u0", &told), Err(Refusal::OutOfRange));
    }
}

#[test]
fn only_tags_are_taken_of_a_guest_that_is_away() {
    let (mut h1, h2) = (new(), new());
    let nobody = policy("hosts: [{name: h1, address: 192.0.2.1}]\nnetworks: [{name: blue}]\n");
    let (mut h2, _) = h2.adopt(nobody, at(0));
    tell(&mut h1, at(1), TAG).unwrap();
    take(&mut h2, at(1), &h1.share("u0", "h1").unwrap()).unwrap();
    let (h2, _) = h2.adopt(policy(POLICY), at(2));
    assert_eq!(is_in(&h2), "quarantine");
}

/// Something that happens at one of three hosts, some seconds after what happened before.
#[derive(Clone, Debug)]
enum Step {
    Told(usize, u64, &'static str),
    Reads(usize),
    Writes(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let said = prop::sample::select(vec![
        TAG,
        CLEAR,
        r#""tag": {"service": "av", "name": "mild", "severity": 10}"#,
        r#""pin": {"container": "quarantine"}"#,
        r#""unpin": {}"#,
        r#""transfer": {"container": "watched"}"#,
        r#""release": {}"#,
        r#""login": {"user": "alice"}"#,
        r#""logout": {"user": "alice"}"#,
        r#""label": {"name": "tier", "value": "back"}"#,
    ]);
    prop_oneof![
        4 => (0..3usize, 0..20u64, said).prop_map(|(host, after, what)| Step::Told(host, after, what)),
        1 => (0..3usize).prop_map(Step::Reads),
        2 => (0..3usize).prop_map(Step::Writes),
    ]
}

proptest! {
    /// Whatever each is told and whenever they hear of each other: all know the same in the end, and then there is no news.
    #[test]
    fn all_come_to_the_same(steps in prop::collection::vec(step(), 1..60), skew in prop::array::uniform3(0..50u64)) {
        let mut hosts = [new(), new(), new()];
        let mut kept: Option<Shared> = None;
        let mut now = 100;
        let read = |host: &mut Containers, now, kept: &Option<Shared>| {
            if let Some(told) = kept {
                let _ = take(host, at(now), told);
            }
        };
        let names = ["h1", "h2", "h3"];
        for step in steps {
            match step {
                Step::Told(host, after, what) => {
                    now += after;
                    let _ = tell(&mut hosts[host], at(now + skew[host]), what);
                }
                Step::Reads(host) => read(&mut hosts[host], now + skew[host], &kept),
                Step::Writes(host) => {
                    // A transaction: what is there is read first.
                    read(&mut hosts[host], now + skew[host], &kept);
                    kept = hosts[host].share("u0", names[host]);
                }
            }
        }
        for _ in 0..4 {
            for host in 0..3 {
                read(&mut hosts[host], now + skew[host], &kept);
                if hosts[host].is_ahead("u0", kept.as_ref()) {
                    kept = hosts[host].share("u0", names[host]);
                }
            }
        }
        for host in &hosts {
            prop_assert!(!host.is_ahead("u0", kept.as_ref()));
        }
        now += 1000;
        for host in &mut hosts {
            host.advance(at(now), &mut Changes::default());
        }
        let known = |host: &Containers| {
            let record = host.record(GuestIndex(0));
            let tags: Vec<_> = record.tags.iter().filter(|(_, tag)| tag.cleared.is_none()).map(|(key, tag)| (key.clone(), tag.clone())).collect();
            (is_in(host).to_owned(), record.pin.is_some(), tags, record.logins.clone(), record.labels.clone())
        };
        let first = known(&hosts[0]);
        prop_assert_eq!(&first, &known(&hosts[1]));
        prop_assert_eq!(&first, &known(&hosts[2]));
    }
}
