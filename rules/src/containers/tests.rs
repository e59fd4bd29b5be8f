//! What moves guests, what holds them, and that only events and their order decide.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::load::{Source, load_policy};

const FRONT: &str = "\
hosts: [{name: h1, address: 192.0.2.1}]
networks: [{name: blue}, {name: red}]
guests:
  - {id: g0, uuid: u0, host: h1, labels: {tier: front}, ports: [{interface: a, network: blue, mac: '02:00:00:00:00:01', addresses: [10.0.0.1]}]}
  - {id: g1, uuid: u1, host: h1, labels: {tier: back}, ports: [{interface: b, network: blue, mac: '02:00:00:00:00:02', addresses: [10.0.0.2]}]}
  - {id: g2, uuid: u2, host: h1, labels: {tier: back}, ports: [{interface: c, network: red, mac: '02:00:00:00:00:03', addresses: [10.0.0.1]}]}
";

const CONTAINERS: &str = "\
containers:
  - name: default
    transfers:
      - {name: infected, when: {tag: {service: av, severity: '>=70'}}, to: quarantine}
      - {name: noisy, when: {tag: {service: ids, count: '>=3'}}, to: watched}
  - {name: quarantine, quarantine: true, release: {after: 30s}}
  - name: watched
    transfers:
      - {name: infected-too, when: {tag: {service: av, severity: '>=70'}}, to: quarantine}
    release: {when: {not: {tag: {service: ids}}}}
";

fn policy(rest: &str) -> Arc<Policy> {
    let text = format!("{FRONT}{rest}");
    let name = "policy.yaml".into();
    Arc::new(load_policy(&[Source { name, text }]).unwrap_or_else(|errors| panic!("{errors}")))
}

fn at(seconds: u64) -> Moment {
    Moment::from_millis(1_000_000_000_000 + seconds * 1000)
}

/// An engine with a clock of seconds, told events as they stand in files.
struct World {
    containers: Containers,
    changes: Changes,
}

impl World {
    fn new(rest: &str) -> Self {
        Self {
            containers: Containers::new(policy(rest), at(0)),
            changes: Changes::default(),
        }
    }

    fn tell(&mut self, seconds: u64, guest: &str, what: &str) -> Result<(), Refusal> {
        let event = event(&format!("{{\"guest\": \"{guest}\", {what}}}"));
        self.changes = Changes::default();
        self.containers.apply(at(seconds), &event, &mut self.changes)
    }

    fn wait(&mut self, seconds: u64) {
        self.changes = Changes::default();
        self.containers.advance(at(seconds), &mut self.changes);
    }

    fn is_in(&self, guest: &str) -> &str {
        let guest = self.containers.guest(guest).unwrap();
        let container = self.containers.record(guest).container;
        let seen = &self.containers.memberships()[guest.index()];
        assert_eq!(seen.containers[0], container, "what the rules see");
        &self.containers.policy().containers[container.index()].name
    }

    /// `g0: default > quarantine, because`.
    fn moves(&self) -> Vec<String> {
        let policy = self.containers.policy();
        let name = |container: ContainerIndex| &policy.containers[container.index()].name;
        let told = |moved: &Moved| {
            let guest = &policy.guests[moved.guest.index()].id;
            format!(
                "{guest}: {} > {}, {}",
                name(moved.from),
                name(moved.to),
                moved.cause.text
            )
        };
        self.changes.moved.iter().map(told).collect()
    }
}

fn event(text: &str) -> Event {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn tag(service: &str, name: &str, severity: u8) -> String {
    format!("\"tag\": {{\"service\": \"{service}\", \"name\": \"{name}\", \"severity\": {severity}}}")
}

fn clear(service: &str, name: &str) -> String {
    format!("\"clear\": {{\"service\": \"{service}\", \"name\": \"{name}\"}}")
}

#[test]
fn a_tag_moves_its_guest_and_nobody_else_and_clearing_leads_back_after_the_time_said() {
    let mut world = World::new(CONTAINERS);
    world.tell(1, "g0", &tag("av", "eicar", 69)).unwrap();
    assert_eq!(world.is_in("g0"), "default", "severity 69 is below 70");
    world.tell(2, "g0", &tag("av", "eicar", 90)).unwrap();
    assert_eq!(
        world.moves(),
        ["g0: default > quarantine, transfer infected of default after tag av/eicar of severity 90"]
    );
    assert_eq!(world.changes.guests, BTreeSet::from([GuestIndex(0)]));
    assert_eq!((world.is_in("g1"), world.is_in("g2")), ("default", "default"));
    world.tell(10, "u0", &clear("av", "*")).unwrap();
    world.wait(39);
    assert_eq!(world.is_in("g0"), "quarantine", "29 s of 30");
    world.wait(40);
    assert_eq!(
        world.moves(),
        ["g0: quarantine > default, release from quarantine as time passed"]
    );
    assert_eq!(world.changes.moved[0].at, at(40));
}

#[test]
fn a_tag_that_lasts_for_a_time_is_over_then_unless_it_is_set_again() {
    let brief = "\"tag\": {\"service\": \"av\", \"name\": \"eicar\", \"severity\": 90, \"lasts\": \"60s\"}";
    let mut world = World::new(CONTAINERS);
    world.tell(0, "g0", brief).unwrap();
    world.tell(50, "g0", brief).unwrap();
    world.wait(109);
    let tag =
        |world: &World| world.containers.record(GuestIndex(0)).tags[&("av".into(), "eicar".into())].clone();
    assert_eq!((tag(&world).cleared, tag(&world).until), (None, Some(at(110))));
    let (mut restored, _) = Containers::restore(policy(CONTAINERS), &world.containers.save());
    restored.advance(at(110), &mut Changes::default());
    world.wait(110);
    assert_eq!(restored.save(), world.containers.save(), "saved or not");
    assert_eq!(tag(&world).cleared, Some(at(110)));
    assert_eq!(world.is_in("g0"), "quarantine");
    world.wait(140);
    assert_eq!(world.is_in("g0"), "default", "30 s after the tag was over");
    let old = format!("\"time\": \"{}\", {brief}", at(141));
    assert_eq!(
        world.tell(201, "g0", &old),
        Err(Refusal::Late),
        "it is over already"
    );
    world.tell(202, "g0", brief).unwrap();
    world.tell(203, "g0", &self::tag("av", "eicar", 90)).unwrap();
    world.wait(10_000);
    assert_eq!(world.is_in("g0"), "quarantine", "what was said last holds");
    for wrong in ["0s", "an hour", "400d"] {
        let text = brief.replace("60s", wrong);
        assert!(
            serde_json::from_str::<Event>(&format!("{{\"guest\": \"g0\", {text}}}")).is_err(),
            "{wrong}"
        );
    }
}

#[test]
fn the_time_to_release_begins_again_with_every_break() {
    let mut world = World::new(CONTAINERS);
    world.tell(0, "g0", &tag("av", "eicar", 90)).unwrap();
    world.tell(10, "g0", &clear("av", "eicar")).unwrap();
    world.tell(30, "g0", &tag("av", "other", 1)).unwrap();
    world.wait(100);
    assert_eq!(world.is_in("g0"), "quarantine", "any tag is in the way");
    world.tell(110, "g0", &clear("av", "other")).unwrap();
    world.wait(139);
    assert_eq!(world.is_in("g0"), "quarantine");
    world.wait(140);
    assert_eq!(world.is_in("g0"), "default");
}

#[test]
fn release_leads_back_to_where_the_guest_came_from_step_by_step() {
    let mut world = World::new(CONTAINERS);
    for second in 0..3 {
        world.tell(second, "g0", &tag("ids", "scan", 20)).unwrap();
    }
    assert_eq!(world.is_in("g0"), "watched", "three alerts");
    world.tell(5, "g0", &tag("av", "eicar", 90)).unwrap();
    assert_eq!(world.is_in("g0"), "quarantine");
    world.tell(6, "g0", &clear("*", "*")).unwrap();
    world.wait(36);
    assert_eq!(
        world.moves(),
        [
            "g0: quarantine > watched, release from quarantine as time passed",
            "g0: watched > default, release from watched as time passed"
        ]
    );
}

#[test]
fn of_transfers_that_hold_at_once_priority_then_precedence_then_order_decides() {
    let choose = |services: &str, first: &str, second: &str| {
        let mut world = World::new(&format!(
            "security-services: {services}
containers:
  - name: default
    transfers:
      - {{name: by-av, when: {{tag: {{service: av}}}}, to: one{first}}}
      - {{name: by-ids, when: {{tag: {{service: ids}}}}, to: two{second}}}
  - {{name: one}}
  - {{name: two}}
"
        ));
        world
            .tell(0, "g0", "\"pin\": {\"container\": \"default\"}")
            .unwrap();
        world.tell(0, "g0", &tag("av", "x", 1)).unwrap();
        world.tell(0, "g0", &tag("ids", "y", 1)).unwrap();
        world.tell(0, "g0", "\"unpin\": {}").unwrap();
        world.is_in("g0").to_owned()
    };
    assert_eq!(choose("[av, ids]", "", ""), "one", "precedence");
    assert_eq!(choose("[ids, av]", "", ""), "two", "precedence");
    assert_eq!(choose("[]", "", ""), "one", "order");
    assert_eq!(
        choose("[av, ids]", "", ", priority: 1"),
        "two",
        "priority comes before precedence"
    );
    assert_eq!(choose("[av, ids]", ", priority: -1", ""), "two");
}

#[test]
fn a_nested_container_says_first_and_its_outer_one_says_the_rest() {
    let mut world = World::new(
        "containers:
  - name: default
    transfers: [{name: seen, when: {tag: {service: ids}}, to: inner}]
  - name: outer
    transfers: [{name: bad, when: {tag: {service: av}}, to: quarantine}, {name: seen-again, when: {tag: {service: ids}}, to: outer2}]
    release: {after: 5s}
  - name: inner
    parent: outer
  - {name: outer2}
  - {name: quarantine, quarantine: true}
groups: [{name: members, when: {container: outer}}]
rules: [{name: r, from: {container: outer}, to: any, action: drop}]
",
    );
    world
        .tell(0, "g1", "\"transfer\": {\"container\": \"inner\"}")
        .unwrap();
    let outer = world.containers.policy().container("outer").unwrap();
    assert!(
        world.containers.memberships()[1].containers.contains(&outer),
        "in the outer one too"
    );
    assert!(world.containers.memberships()[1].holds(CriteriaIndex(0)));
    world.wait(5);
    assert_eq!(world.is_in("g1"), "default", "the outer one's release");
    world.tell(6, "g0", &tag("ids", "x", 1)).unwrap();
    assert_eq!(
        world.moves(),
        [
            "g0: default > inner, transfer seen of default after tag ids/x of severity 1",
            "g0: inner > outer2, transfer seen-again of outer after tag ids/x of severity 1"
        ]
    );
}

#[test]
fn a_pin_overrides_and_unpinning_gives_the_guest_back_to_the_rules() {
    let mut world = World::new(CONTAINERS);
    world
        .tell(0, "g0", "\"pin\": {\"container\": \"watched\"}")
        .unwrap();
    assert_eq!(world.moves(), ["g0: default > watched, pin to watched"]);
    assert_eq!(
        world.containers.record(GuestIndex(0)).pin.as_ref().unwrap().since,
        at(0)
    );
    world.tell(1, "g0", &tag("av", "eicar", 100)).unwrap();
    assert_eq!(world.is_in("g0"), "watched", "a hand is stronger");
    for refused in ["\"release\": {}", "\"transfer\": {\"container\": \"default\"}"] {
        assert_eq!(world.tell(2, "g0", refused), Err(Refusal::Pinned));
    }
    assert_eq!(
        world.tell(2, "g0", "\"pin\": {\"container\": \"watched\"}"),
        Err(Refusal::Duplicate)
    );
    world.tell(3, "g0", "\"unpin\": {}").unwrap();
    assert_eq!(
        world.moves(),
        [
            "g0: watched > default, unpin",
            "g0: default > quarantine, transfer infected of default after unpin"
        ]
    );
    assert_eq!(world.tell(4, "g0", "\"unpin\": {}"), Err(Refusal::Nothing));
}

#[test]
fn a_guest_that_flaps_is_held_but_never_out_of_quarantine() {
    let mut world = World::new(&format!(
        "damping: {{transfers: 4, within: 60s, hold: 300s}}\n{}",
        CONTAINERS.replace("after: 30s", "after: 0s")
    ));
    let mut second = 0;
    for _ in 0..2 {
        world.tell(second, "g0", &tag("av", "eicar", 90)).unwrap();
        world.tell(second + 1, "g0", &clear("av", "*")).unwrap();
        assert_eq!(world.is_in("g0"), "default", "not held yet");
        second += 2;
    }
    assert_eq!(
        world.containers.record(GuestIndex(0)).held_until,
        Some(at(303)),
        "four within a minute"
    );
    for alert in 0..3 {
        world.tell(second + alert, "g0", &tag("ids", "scan", 20)).unwrap();
    }
    assert_eq!(world.is_in("g0"), "default", "what is no quarantine waits");
    world.tell(10, "g0", &tag("av", "eicar", 90)).unwrap();
    assert_eq!(world.is_in("g0"), "quarantine", "quarantine never waits");
    world.tell(11, "g0", &clear("av", "*")).unwrap();
    world.tell(11, "g0", &clear("ids", "*")).unwrap();
    world.wait(309);
    assert_eq!(world.is_in("g0"), "quarantine", "held");
    world.wait(310);
    assert_eq!(world.is_in("g0"), "default", "300 s after its last transfer");
}

#[test]
fn ages_count_from_the_tag_and_are_seen_when_they_are_due() {
    let mut world = World::new(
        "containers:
  - name: default
    transfers: [{name: stale, when: {tag: {service: av, age: '>10m'}}, to: late}]
  - {name: late, release: {when: {not: {tag: {service: av, age: '<1h'}}}}}
",
    );
    world.tell(0, "g0", &tag("av", "x", 1)).unwrap();
    world.wait(599);
    assert_eq!(world.is_in("g0"), "default");
    assert_eq!(world.containers.next_due(), Some(at(600)));
    world.wait(600);
    assert_eq!(world.is_in("g0"), "late");
    world.wait(3600);
    assert_eq!(world.is_in("g0"), "late", "one hour is not more than one hour");
    world
        .containers
        .advance(Moment::from_millis(at(3600).millis() + 1), &mut world.changes);
    assert_eq!(
        world.is_in("g0"),
        "late",
        "the tag is there still, and older than 10 minutes: it comes back at once"
    );
    assert!(world.changes.moved.len() > 1, "and that is seen");
}

#[test]
fn late_duplicate_unknown_and_boundless_events_are_refused_by_name() {
    let mut world = World::new(CONTAINERS);
    let timed = |seconds: u64, what: &str| format!("{what}, \"time\": \"{}\"", at(seconds));
    assert_eq!(
        world.tell(0, "nobody", &tag("av", "x", 1)),
        Err(Refusal::UnknownGuest)
    );
    world.tell(10, "g0", &timed(9, &tag("av", "x", 80))).unwrap();
    assert_eq!(
        world.tell(11, "g0", &timed(9, &tag("av", "x", 80))),
        Err(Refusal::Duplicate)
    );
    assert_eq!(
        world.tell(11, "g0", &timed(8, &tag("av", "x", 99))),
        Err(Refusal::Late)
    );
    assert_eq!(
        world.tell(12, "g0", &timed(8, &clear("av", "x"))),
        Err(Refusal::Nothing),
        "cleared before it was set"
    );
    world.tell(20, "g0", &timed(15, &clear("av", "x"))).unwrap();
    assert_eq!(
        world.tell(21, "g0", &timed(14, &tag("av", "x", 80))),
        Err(Refusal::Late),
        "what was cleared is not set again by what comes late"
    );
    world.tell(22, "g0", &timed(16, &tag("av", "x", 80))).unwrap();
    let count = |world: &World| world.containers.record(GuestIndex(0)).tags[&("av".into(), "x".into())].count;
    assert_eq!(count(&world), 1, "counted anew since it was cleared");
    let future = timed(1_000_000, &tag("av", "x", 80));
    world.tell(23, "g0", &future).unwrap();
    assert_eq!(
        world.containers.now(),
        at(23),
        "a source's clock is not believed beyond now"
    );
    for what in [
        tag("", "x", 1),
        tag("av", &"x".repeat(257), 1),
        tag("av", "x", 101),
    ] {
        assert_eq!(world.tell(24, "g0", &what), Err(Refusal::OutOfRange), "{what}");
    }
    assert_eq!(
        world.tell(24, "g0", "\"transfer\": {\"container\": \"nowhere\"}"),
        Err(Refusal::UnknownContainer)
    );
    world.tell(25, "g0", "\"login\": {\"user\": \"alice\"}").unwrap();
    assert_eq!(
        world.tell(25, "g0", "\"login\": {\"user\": \"alice\"}"),
        Err(Refusal::Duplicate)
    );
    assert_eq!(
        world.tell(25, "g0", "\"logout\": {\"user\": \"bob\"}"),
        Err(Refusal::Nothing)
    );
}

#[test]
fn nothing_that_a_guest_or_service_says_grows_without_bound_and_the_worst_is_kept() {
    let mut world = World::new(CONTAINERS);
    world.tell(0, "g0", &tag("av", "worst", 95)).unwrap();
    for number in 0..2 * record::MAX_TAGS {
        let told = world.tell(1, "g0", &tag("ids", &format!("n{number}"), 10));
        let full = number >= record::MAX_TAGS - 1;
        assert_eq!(
            told,
            if full { Err(Refusal::TooMany) } else { Ok(()) },
            "{number}"
        );
    }
    world.tell(2, "g0", &tag("ids", "worse", 11)).unwrap();
    let tags = &world.containers.record(GuestIndex(0)).tags;
    assert_eq!(tags.len(), record::MAX_TAGS);
    assert!(
        tags.contains_key(&("av".into(), "worst".into()))
            && tags.contains_key(&("ids".into(), "worse".into()))
    );
    for number in 0..2 * record::MAX_FLOWS {
        let told = world.tell(
            3,
            "g0",
            &flow(&format!("10.0.0.1:{number}"), "10.0.0.9:1", "alice"),
        );
        assert_eq!(told, Ok(()), "{number}");
    }
    assert_eq!(world.containers.flows().by_key.len(), record::MAX_FLOWS);
    for number in 0..record::MAX_LOGINS + 1 {
        let told = world.tell(4, "g0", &format!("\"login\": {{\"user\": \"u{number}\"}}"));
        let full = number == record::MAX_LOGINS;
        assert_eq!(
            told,
            if full { Err(Refusal::TooMany) } else { Ok(()) },
            "{number}"
        );
    }
}

fn flow(local: &str, remote: &str, user: &str) -> String {
    format!(
        "\"flow\": {{\"protocol\": 6, \"local\": \"{local}\", \"remote\": \"{remote}\", \"user\": \"{user}\"}}"
    )
}

#[test]
fn an_agent_speaks_for_its_own_guests_end_and_not_for_ever() {
    let mut world = World::new(
        "templates:
  - {name: t, when: {flow: {user: alice}}, rules: [{name: r, from: subject, to: any, flow: {user: alice}, action: drop}]}
",
    );
    assert_eq!(
        world.tell(0, "g1", &flow("10.0.0.1:5", "10.0.0.2:80", "alice")),
        Err(Refusal::NotItsFlow),
        "another guest's end"
    );
    world
        .tell(0, "g0", &flow("10.0.0.1:5", "10.0.0.2:80", "alice"))
        .unwrap();
    assert_eq!(world.changes.flows.len(), 1);
    assert_eq!(world.containers.memberships()[0].subject_of.len(), 1);
    let (key, place) = FlowKey::new(
        crate::model::NetworkIndex(0),
        6,
        ("10.0.0.1".parse().unwrap(), 5),
        ("10.0.0.2".parse().unwrap(), 80),
    );
    let told = &world.containers.flows().by_key[&key];
    assert_eq!(told[place].as_ref().unwrap().user.as_deref(), Some("alice"));
    assert_eq!(told[1 - place], None, "the other end has said nothing");
    world
        .tell(1, "g1", &flow("10.0.0.2:80", "10.0.0.1:5", "root"))
        .unwrap();
    let told = &world.containers.flows().by_key[&key];
    assert_eq!(told[place].as_ref().unwrap().user.as_deref(), Some("alice"));
    world.wait(FLOW_LIFE.as_secs());
    assert_eq!(world.changes.flows.len(), 1);
    assert!(
        world.containers.flows().by_key[&key][place].is_none(),
        "nothing was said for an hour"
    );
    assert_eq!(world.containers.memberships()[0].subject_of.len(), 0);
    let end = "\"flow-end\": {\"protocol\": 6, \"local\": \"10.0.0.2:80\", \"remote\": \"10.0.0.1:5\"}";
    world.tell(FLOW_LIFE.as_secs(), "g1", end).unwrap();
    assert!(world.containers.flows().by_key.is_empty());
    assert_eq!(world.tell(FLOW_LIFE.as_secs(), "g1", end), Err(Refusal::Nothing));
}

#[test]
fn malware_on_one_guest_puts_the_healthy_ones_of_its_network_into_a_group() {
    let mut world = World::new(
        "groups: [{name: healthy-beside-infected, when: {neighbour: {tag: {service: av, severity: '>=70'}}, not: {tag: {service: av}}}}]
rules: [{name: r, from: {group: healthy-beside-infected}, to: any, action: drop}]
",
    );
    let members = |world: &World| -> Vec<bool> {
        let seen = world.containers.memberships();
        seen.iter().map(|one| one.holds(CriteriaIndex(0))).collect()
    };
    assert_eq!(members(&world), [false, false, false]);
    world.tell(0, "g0", &tag("av", "eicar", 90)).unwrap();
    assert_eq!(members(&world), [false, true, false], "g2 is in another network");
    assert_eq!(
        world.changes.guests,
        BTreeSet::from([GuestIndex(1)]),
        "only what it touches"
    );
    world.tell(1, "g1", &tag("av", "eicar", 90)).unwrap();
    assert_eq!(members(&world), [false, false, false], "both are infected");
    world.tell(2, "g0", &clear("av", "*")).unwrap();
    assert_eq!(members(&world), [true, false, false]);
}

#[test]
fn templates_make_rules_for_their_subject_for_their_lifetime() {
    let mut world = World::new(
        "templates:
  - name: after-login
    when: {login: {group: admins}}
    for: 10m
    rules: [{name: r1, from: subject, to: any, action: drop}]
  - name: beside-malware
    when: {neighbour: {tag: {service: av}}}
    for: 1m
    rules: [{name: r2, from: subject, to: any, action: drop}]
  - name: while-infected
    when: {tag: {service: av}}
    rules: [{name: r3, from: subject, to: any, action: drop}]
",
    );
    let subjects = |world: &World, guest: usize| -> Vec<String> {
        let seen = &world.containers.memberships()[guest];
        let policy = world.containers.policy();
        seen.subject_of
            .iter()
            .map(|one| policy.templates[one.index()].name.clone())
            .collect()
    };
    world.tell(0, "g0", "\"login\": {\"user\": \"eve\"}").unwrap();
    assert!(subjects(&world, 0).is_empty());
    world
        .tell(
            0,
            "g0",
            "\"login\": {\"user\": \"alice\", \"groups\": [\"admins\"]}",
        )
        .unwrap();
    assert_eq!(subjects(&world, 0), ["after-login"]);
    world
        .tell(
            60,
            "g0",
            "\"login\": {\"user\": \"bob\", \"groups\": [\"admins\"]}",
        )
        .unwrap();
    world.wait(659);
    assert_eq!(
        subjects(&world, 0),
        ["after-login"],
        "made anew by the second login"
    );
    world.wait(660);
    assert!(
        subjects(&world, 0).is_empty(),
        "its lifetime is over though the users are still there"
    );

    world.tell(700, "g1", &tag("av", "x", 1)).unwrap();
    assert_eq!(subjects(&world, 0), ["beside-malware"]);
    assert_eq!(subjects(&world, 1), ["while-infected"]);
    let instance = &world.containers.record(GuestIndex(0)).instances[&crate::model::TemplateIndex(1)];
    assert_eq!(
        &*instance.cause.text,
        "template beside-malware after tag av/x of severity 1 of g1"
    );
    assert_eq!(instance.until, Some(at(760)));
    world.tell(730, "g1", &tag("av", "y", 1)).unwrap();
    world
        .tell(731, "g0", "\"label\": {\"name\": \"tier\", \"value\": \"x\"}")
        .unwrap();
    world.wait(789);
    assert_eq!(
        subjects(&world, 0),
        ["beside-malware"],
        "made anew by the neighbour's second tag"
    );
    world.wait(790);
    assert!(subjects(&world, 0).is_empty(), "and by nothing else");
    assert_eq!(subjects(&world, 1), ["while-infected"]);
    world.tell(800, "g1", &clear("*", "*")).unwrap();
    assert!(subjects(&world, 1).is_empty());
}

#[test]
fn labels_change_what_holds_and_may_place_a_guest_from_the_start() {
    let text = "containers:
  - {name: default, transfers: [{name: back, when: {label: {tier: back}}, to: backs}]}
  - {name: backs, release: {when: {not: {label: {tier: [back, 'db*']}}}}}
";
    let mut world = World::new(text);
    assert_eq!(
        ["g0", "g1", "g2"].map(|guest| world.is_in(guest).to_owned()),
        ["default", "backs", "backs"]
    );
    world
        .tell(0, "g1", "\"label\": {\"name\": \"tier\", \"value\": \"db-7\"}")
        .unwrap();
    assert_eq!(world.is_in("g1"), "backs");
    assert_eq!(world.containers.memberships()[1].labels["tier"], "db-7");
    world.tell(1, "g1", "\"label\": {\"name\": \"tier\"}").unwrap();
    assert_eq!(world.is_in("g1"), "default");
    assert!(!world.containers.memberships()[1].labels.contains_key("tier"));
}

#[test]
fn a_policy_against_itself_is_cut_short_and_said() {
    let mut world = World::new(
        "containers:
  - {name: default, transfers: [{name: there, when: {tag: {service: av}}, to: other}]}
  - {name: other, transfers: [{name: back, when: {tag: {service: av}}, to: default}]}
",
    );
    world.tell(0, "g0", &tag("av", "x", 1)).unwrap();
    assert!(world.changes.moved.len() <= MAX_ROUNDS, "{:?}", world.moves());
    assert_eq!(
        world.containers.record(GuestIndex(0)).held_until,
        Some(at(600)),
        "damped"
    );
}

#[test]
fn tags_belong_to_the_uuid_and_survive_move_and_registration_anew() {
    let mut world = World::new(CONTAINERS);
    world.tell(0, "g0", &tag("av", "eicar", 90)).unwrap();
    world.tell(0, "g0", "\"login\": {\"user\": \"alice\"}").unwrap();
    let with = |guests: &str| {
        let front = "hosts: [{name: h9, address: 192.0.2.9}]\nnetworks: [{name: green}]\n";
        let text = format!("{front}guests:\n{guests}{CONTAINERS}");
        let name = "policy.yaml".into();
        Arc::new(load_policy(&[Source { name, text }]).unwrap())
    };
    let other = "  - {id: g7, uuid: u7, host: h9, ports: [{interface: a, network: green, mac: '02:00:00:00:00:07'}]}\n";
    let (away, changes) = world.containers.adopt(with(other), at(10));
    assert_eq!((changes.guests.len(), away.parked().len()), (1, 3));
    world.containers = away;
    assert_eq!(
        world.tell(11, "u0", "\"login\": {\"user\": \"bob\"}"),
        Err(Refusal::GuestAway)
    );
    world.tell(12, "u0", &tag("av", "second", 80)).unwrap();
    world.tell(13, "u0", &clear("av", "eicar")).unwrap();
    let moved = "  - {id: renamed, uuid: u0, host: h9, ports: [{interface: b, network: green, mac: '02:00:00:00:00:08'}]}\n";
    let (back, _) = world.containers.adopt(with(&format!("{other}{moved}")), at(20));
    world.containers = back;
    assert_eq!(world.is_in("renamed"), "quarantine");
    let record = world.containers.record(GuestIndex(1));
    assert!(record.tags[&("av".into(), "eicar".into())].cleared.is_some());
    assert!(
        record.logins.is_empty(),
        "users do not outlive the guest's absence"
    );
    world.tell(21, "u0", &clear("av", "second")).unwrap();
    world.wait(51);
    assert_eq!(world.is_in("renamed"), "default");
}

#[test]
fn a_new_policy_that_says_the_same_of_a_guest_changes_nothing_for_it() {
    let mut world = World::new(CONTAINERS);
    world.tell(0, "g0", &tag("av", "eicar", 90)).unwrap();
    world
        .tell(1, "g0", &flow("10.0.0.1:9", "10.0.0.9:9", "alice"))
        .unwrap();
    world.tell(10, "g0", &clear("av", "*")).unwrap();
    let same = policy(&format!(
        "{CONTAINERS}rules: [{{name: more, from: any, to: any, action: drop}}]\n"
    ));
    let flows = world.containers.flows().clone();
    let (next, changes) = world.containers.adopt(same, at(20));
    assert!(changes.moved.is_empty());
    assert_eq!(*next.flows(), flows);
    world.containers = next;
    world.wait(39);
    assert_eq!(world.is_in("g0"), "quarantine", "29 s of 30");
    world.wait(40);
    assert_eq!(world.is_in("g0"), "default", "the time to release went on");

    world.tell(50, "g0", &tag("av", "eicar", 90)).unwrap();
    world.tell(60, "g0", &clear("av", "*")).unwrap();
    let longer = policy(&CONTAINERS.replace("after: 30s", "after: 20s"));
    world.containers = world.containers.adopt(longer, at(70)).0;
    world.wait(89);
    assert_eq!(
        world.is_in("g0"),
        "quarantine",
        "it is released otherwise: the time begins anew"
    );
    world.wait(90);
    assert_eq!(world.is_in("g0"), "default");
}

#[test]
fn a_container_that_the_new_policy_has_not_gives_its_guests_back() {
    let mut world = World::new(CONTAINERS);
    for second in 0..3 {
        world.tell(second, "g0", &tag("ids", "scan", 20)).unwrap();
    }
    world.tell(4, "g0", &tag("av", "eicar", 90)).unwrap();
    let without = CONTAINERS
        .replace("quarantine", "isolation")
        .replace("isolation: true", "quarantine: true");
    let (next, changes) = world.containers.adopt(policy(&without), at(5));
    world.containers = next;
    world.changes = changes;
    assert_eq!(
        world.moves(),
        ["g0: watched > isolation, transfer infected-too of watched as time passed"],
        "where it came from, and on from there"
    );
}

#[test]
fn time_does_not_go_back() {
    let mut world = World::new(CONTAINERS);
    world.tell(100, "g0", &tag("av", "eicar", 90)).unwrap();
    world.tell(50, "g0", &clear("av", "*")).unwrap();
    assert_eq!(world.containers.now(), at(100));
    world.wait(129);
    assert_eq!(world.is_in("g0"), "quarantine");
    world.wait(130);
    assert_eq!(world.is_in("g0"), "default");
}

const RICH: &str = "\
security-services: [av, ids]
damping: {transfers: 5, within: 100s, hold: 50s}
groups: [{name: beside, when: {neighbour: {container: quarantine}}}]
templates:
  - {name: t, when: {login: {user: alice}}, for: 20s, rules: [{name: r1, from: subject, to: any, action: drop}]}
  - {name: n, when: {neighbour: {tag: {service: av, severity: '>=50'}}}, for: 30s, rules: [{name: r2, from: subject, to: any, action: drop}]}
containers:
  - name: default
    transfers:
      - {name: infected, when: {any: [{tag: {service: av, severity: '>=70'}}, {all: [{tag: {service: ids}}, {login: {user: alice}}]}]}, to: quarantine}
      - {name: stale, when: {tag: {service: ids, age: '>40s'}}, to: watched, priority: 3}
  - {name: quarantine, quarantine: true, release: {when: {not: {tag: {service: av}}}, after: 30s}}
  - {name: watched, parent: default, release: {when: {not: {tag: {age: '<25s'}}}}}
rules: [{name: r3, from: {group: beside}, to: any, action: drop}]
";

/// What may happen, at which second after the one before.
fn any_events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let what = prop_oneof![
        (
            prop::sample::select(vec!["av", "ids"]),
            0u8..3,
            prop::sample::select(vec![10u8, 60, 90])
        )
            .prop_map(|(service, name, severity)| tag(service, &format!("n{name}"), severity)),
        prop::sample::select(vec!["av", "ids", "*"]).prop_map(|service| clear(service, "*")),
        prop::sample::select(vec!["login", "logout"])
            .prop_map(|verb| format!("\"{verb}\": {{\"user\": \"alice\"}}")),
        prop::sample::select(vec!["default", "quarantine", "watched"])
            .prop_map(|name| format!("\"transfer\": {{\"container\": \"{name}\"}}")),
        prop::sample::select(vec!["default", "watched"])
            .prop_map(|name| format!("\"pin\": {{\"container\": \"{name}\"}}")),
        Just("\"unpin\": {}".to_owned()),
        Just("\"release\": {}".to_owned()),
        (1u16..4).prop_map(|port| flow(&format!("10.0.0.1:{port}"), "10.0.0.9:9", "alice")),
    ];
    let one = (0u64..40, 0u8..3, what)
        .prop_map(|(pause, guest, what)| (pause, event(&format!("{{\"guest\": \"g{guest}\", {what}}}"))));
    prop::collection::vec(one, 0..40)
}

fn state(containers: &Containers) -> String {
    format!("{containers:?}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// However often time is looked at between the events, and whether refused events are in the journal or not.
    #[test]
    fn only_events_and_their_times_decide(events in any_events(), looks in prop::collection::vec(0u64..7, 1..9)) {
        let policy = policy(RICH);
        let mut one = Containers::new(Arc::clone(&policy), at(0));
        let mut two = one.clone();
        let mut journal = Vec::new();
        let (mut all_one, mut all_two) = (Changes::default(), Changes::default());
        let mut second = 0;
        let mut looks = looks.iter().cycle();
        for (pause, event) in &events {
            for step in 0..*pause {
                if *looks.next().unwrap() == 0 {
                    two.advance(at(second + step), &mut all_two);
                }
            }
            second += pause;
            let accepted = one.apply(at(second), event, &mut all_one);
            prop_assert_eq!(accepted, two.apply(at(second), event, &mut all_two));
            if accepted.is_ok() {
                journal.push((one.now(), event));
            }
        }
        for containers in [(&mut one, &mut all_one), (&mut two, &mut all_two)] {
            containers.0.advance(at(second + 5), containers.1);
        }
        prop_assert_eq!(&all_one.moved, &all_two.moved);
        prop_assert_eq!(state(&one), state(&two));
        let mut replayed = Containers::new(policy, at(0));
        let mut changes = Changes::default();
        for (now, event) in journal {
            prop_assert_eq!(replayed.apply(now, event, &mut changes), Ok(()));
        }
        replayed.advance(at(second + 5), &mut changes);
        prop_assert_eq!(state(&one), state(&replayed));
    }

    /// Written down and read again at any moment, it is the very same, and goes on the same way.
    #[test]
    fn what_is_saved_is_restored(events in any_events(), stop in 0usize..40) {
        let policy = policy(RICH);
        let mut one = Containers::new(Arc::clone(&policy), at(0));
        let mut two = one.clone();
        let mut second = 0;
        for (number, (pause, event)) in events.iter().enumerate() {
            if number == stop {
                let text = serde_json::to_string(&two.save()).unwrap();
                let (restored, changes) = Containers::restore(Arc::clone(&policy), &serde_json::from_str(&text).unwrap());
                prop_assert!(changes.moved.is_empty(), "{:?}", changes.moved);
                prop_assert_eq!(state(&restored), state(&two));
                two = restored;
            }
            second += pause;
            let accepted = one.apply(at(second), event, &mut Changes::default());
            prop_assert_eq!(accepted, two.apply(at(second), event, &mut Changes::default()));
        }
        prop_assert_eq!(state(&one), state(&two));
    }

    /// What the rules see is what holds, for every guest, after every event; counts of neighbours are right.
    #[test]
    fn memberships_are_what_holds(events in any_events()) {
        let policy = policy(RICH);
        let mut containers = Containers::new(Arc::clone(&policy), at(0));
        let mut second = 0;
        for (pause, event) in &events {
            second += pause;
            let before = containers.memberships().to_vec();
            let mut changes = Changes::default();
            let _ = containers.apply(at(second), event, &mut changes);
            for (number, before) in before.iter().enumerate() {
                let guest = GuestIndex(number as u32);
                let record = containers.record(guest);
                let seen = &containers.memberships()[number];
                prop_assert_eq!(seen.containers[0], record.container);
                prop_assert!(!record.came_from.contains(&record.container), "{:?}", record);
                let neighbours: Vec<usize> = (0..policy.guests.len())
                    .filter(|other| *other != number && (number < 2) == (*other < 2))
                    .collect();
                let beside = neighbours.iter().any(|other| {
                    let quarantine = policy.container("quarantine").unwrap();
                    containers.memberships()[*other].containers.contains(&quarantine)
                });
                if changes.unsettled.is_empty() {
                    prop_assert_eq!(seen.holds(CriteriaIndex(0)), beside);
                }
                prop_assert!(before == seen || changes.guests.contains(&guest), "{:?}", changes);
                if let Some(due) = containers.next_due() {
                    prop_assert!(due > containers.now());
                }
            }
        }
    }
}

#[test]
fn one_event_among_many_guests_is_cheap_in_what_it_touches() {
    let mut text = String::from("hosts: [{name: h1, address: 192.0.2.1}]\nnetworks: [{name: n}]\nguests:\n");
    for number in 0..300u32 {
        text += &format!(
            "  - {{id: g{number}, host: h1, ports: [{{interface: i{number}, network: n, mac: '02:00:00:00:{:02x}:{:02x}'}}]}}\n",
            number / 256,
            number % 256
        );
    }
    text += CONTAINERS;
    text += "groups: [{name: x, when: {neighbour: {tag: {service: av}}}}]\n";
    let name = "policy.yaml".into();
    let policy = Arc::new(load_policy(&[Source { name, text }]).unwrap());
    let mut containers = Containers::new(policy, at(0));
    let mut tell = |guest: &str, what: &str| {
        let mut changes = Changes::default();
        let event = event(&format!("{{\"guest\": \"{guest}\", {what}}}"));
        containers.apply(at(1), &event, &mut changes).unwrap();
        changes.guests.len()
    };
    assert_eq!(tell("g0", &tag("ids", "x", 1)), 0, "nothing asks for one alert");
    assert_eq!(
        tell("g0", &tag("av", "x", 1)),
        299,
        "the others have an infected neighbour now"
    );
    assert_eq!(tell("g1", &tag("av", "x", 1)), 1, "and so has the first one");
    assert_eq!(tell("g2", &tag("av", "x", 1)), 0);
    assert_eq!(tell("g3", &tag("av", "x", 90)), 1);
}

#[test]
fn durations_beyond_all_time_do_not_wrap() {
    assert_eq!(at(0).after(Duration::MAX), Moment::LAST);
    assert_eq!(Moment::from_millis(u64::MAX), Moment::LAST);
    assert_eq!(at(0).since(at(5)), Duration::ZERO);
}

#[test]
fn by_hand_within_a_container_that_releases_is_by_hand() {
    let mut world = World::new(
        "\
containers:
  - {name: default, transfers: [{name: bad, when: {tag: {name: a}}, to: sick}, {name: worse, when: {tag: {name: b}}, to: locked}]}
  - {name: ward, release: {after: 0s}}
  - {name: sick, parent: ward}
  - {name: locked, parent: ward, release: by-hand}
",
    );
    for (guest, name, container) in [("g0", "a", "sick"), ("g1", "b", "locked")] {
        world.tell(1, guest, &tag("av", name, 50)).unwrap();
        assert_eq!(world.is_in(guest), container);
        world.tell(2, guest, &clear("av", name)).unwrap();
    }
    assert_eq!(world.is_in("g0"), "default");
    assert_eq!(world.is_in("g1"), "locked");
    world.tell(3, "g1", "\"release\": {}").unwrap();
    assert_eq!(world.is_in("g1"), "default");
}
