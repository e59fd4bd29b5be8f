//! Sources as services feed them, up to what the control loop is told.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;

use guestseal_rules::event::What;
use guestseal_rules::load::{self, load_policy};
use serde_json::json;

use super::*;
use crate::control::api::access::{Caller, Right};
use crate::control::config::read;

/// Longer than any of these tests takes.
const LONG: Duration = Duration::from_secs(60);

/// The demo's guests, and one source.
struct World {
    directory: tempfile::TempDir,
    policy: Arc<Policy>,
    sources: Vec<Source>,
    running: Option<Sources>,
}

impl World {
    fn new(source: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = include_str!("../../../../rules/examples/demo/policy.yaml");
        let policy = load_policy(&[load::Source {
            name: "policy.yaml".to_owned(),
            text: text.to_owned(),
        }]);
        let policy = Arc::new(policy.unwrap());
        let path = directory.path().join("sources.yaml");
        std::fs::write(&path, format!("sources:\n{source}")).unwrap();
        let sources =
            super::load(&path, &read(&path).unwrap(), &policy).unwrap_or_else(|error| panic!("{error}"));
        let mut world = Self {
            directory,
            policy,
            sources,
            running: None,
        };
        world.start(None);
        world
    }

    /// What somebody writes into a socket.
    fn connect(&self, name: &str) -> std::os::unix::net::UnixStream {
        std::os::unix::net::UnixStream::connect(self.path(name)).unwrap()
    }

    /// What becomes of a report that somebody tells.
    fn tell(&mut self, name: &str, teller: &Teller, report: Value) -> Result<String, String> {
        let told = self.running.as_mut().unwrap().report(name, &report, teller);
        match told.map_err(|problem| problem.error)? {
            Some((by, event)) => Ok(format!("{by}: {} {}", event.guest, event.what)),
            None => Ok(String::new()),
        }
    }

    fn start(&mut self, resume: Option<Position>) {
        self.running = None;
        let host = self.policy.host("h1").unwrap();
        let is_here = |guest: GuestIndex| self.policy.guests[guest.index()].host == host;
        self.running = Some(Sources::open(&self.sources, &self.policy, is_here, |_| resume).unwrap());
    }

    fn running(&self) -> &Sources {
        self.running.as_ref().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn append(&self, text: &str) {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create(true).append(true).open(self.path("log")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// The next events, which come.
    fn told(&self, count: usize) -> Vec<Told> {
        let (begin, mut told) = (Instant::now(), Vec::new());
        while told.len() < count {
            assert!(
                begin.elapsed() < LONG,
                "{} of {count}: {:?}",
                told.len(),
                self.status()
            );
            wait(&[self.running().bell().as_fd()], begin + LONG);
            told.extend(self.running().take());
        }
        assert_eq!(told.len(), count, "{told:?}");
        told
    }

    fn status(&self) -> SourceStatus {
        self.running().status().into_values().next().unwrap()
    }

    /// Waits until the status is so.
    fn until(&self, what: &str, is: impl Fn(&SourceStatus) -> bool) {
        let begin = Instant::now();
        while !is(&self.status()) {
            assert!(begin.elapsed() < LONG, "{what}: {:?}", self.status());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn alert(source: &str, signature: &str, severity: u8) -> String {
    format!(
        r#"{{"event_type":"alert","src_ip":"{source}","dest_ip":"198.51.100.1","alert":{{"signature":"{signature}","severity":{severity}}}}}"#
    ) + "\n"
}

fn names(told: &[Told]) -> Vec<String> {
    let name = |told: &Told| match &told.event.what {
        What::Tag(tag) => format!("{} {}:{}", told.event.guest, tag.name, tag.severity),
        what => what.to_string(),
    };
    told.iter().map(name).collect()
}

const SURICATA: &str = "  - name: ids
    suricata: {file: log}
    guest: [{address: '{source}', network: blue}]
    reports:
      - {when: {severity: 1}, tag: {name: '{signature}', severity: 90}}
      - {when: {severity: 3}, ignore: true}
";

#[test]
fn alerts_become_events_and_everything_else_is_counted() {
    let world = World::new(SURICATA);
    world.append(&alert("10.1.0.1", "one", 1));
    let told = world.told(1);
    assert_eq!(names(&told), ["blue-1 one:90"]);
    assert_eq!(told[0].by, "source ids");
    let long = format!("{}\n", "x".repeat(3 * lines::LONGEST));
    world.append(&alert("10.2.0.1", "nobody", 1));
    world.append(&alert("10.1.0.1", "noise", 3));
    world.append(&alert("10.1.0.1", "unmapped", 2));
    world.append(&format!("{{\"event_type\":\"flow\"}}\n\nnonsense\n{long}"));
    world.append(&alert("10.1.0.2", "two", 1));
    // Half of it comes later.
    let three = alert("10.1.0.1", "three", 1);
    let (half, rest) = three.split_at(40);
    world.append(half);
    assert_eq!(names(&world.told(1)), ["blue-2 two:90"]);
    world.append(rest);
    assert_eq!(names(&world.told(1)), ["blue-1 three:90"]);
    world.until("counted", |status| status.told == 3);
    let wanted = SourceStatus {
        told: 3,
        nobody: 1,
        ignored: 1,
        no_meaning: 1,
        other: 1,
        malformed: 1,
        too_long: 1,
        ..SourceStatus::default()
    };
    assert_eq!(world.status(), wanted);
}

#[test]
fn files_are_rotated_both_ways_and_read_on_after_a_restart() {
    let mut world = World::new(SURICATA);
    world.append(&alert("10.1.0.1", "one", 1));
    world.told(1);
    std::fs::rename(world.path("log"), world.path("log.1")).unwrap();
    world.append(&alert("10.1.0.1", "two", 1));
    assert_eq!(names(&world.told(1)), ["blue-1 two:90"]);
    // Copied and truncated: the file stays the same.
    std::fs::copy(world.path("log"), world.path("log.2")).unwrap();
    std::fs::write(world.path("log"), "").unwrap();
    world.until("truncated", |status| status.truncated == 1);
    world.append(&alert("10.1.0.1", "three", 1));
    let told = world.told(1);
    assert_eq!(names(&told), ["blue-1 three:90"]);
    world.append(&alert("10.1.0.1", "four", 1));
    world.told(1);
    world.start(told[0].read);
    assert_eq!(names(&world.told(1)), ["blue-1 four:90"]);
}

#[test]
fn a_flood_waits_in_the_file_and_what_repeats_itself_does_not_count() {
    let world = World::new(&SURICATA.replace("    guest:", "    rate: 20\n    guest:"));
    let begin = Instant::now();
    let flood: String = (0..30)
        .map(|number| alert("10.1.0.1", &format!("n{number}"), 1))
        .collect();
    world.append(&flood);
    world.append(&alert("10.1.0.1", "n29", 1).repeat(10_000));
    world.append(&alert("10.1.0.2", "real", 1));
    let told = names(&world.told(31));
    assert_eq!(
        (told[29].as_str(), told[30].as_str()),
        ("blue-1 n29:90", "blue-2 real:90")
    );
    let took = begin.elapsed();
    assert!(
        took >= Duration::from_millis(500),
        "20 at once, and 20 a second: {took:?}"
    );
    world.until("counted", |status| status.told == 31);
    let status = world.status();
    assert!(status.waited >= 5, "{status:?}");
    assert!(status.repeated > 9_000, "{status:?}");
}

#[test]
fn a_file_that_anyone_may_write_is_not_believed_and_shown() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new(SURICATA);
    world.append(&alert("10.1.0.1", "nought", 1));
    world.told(1);
    let path = world.path("log");
    let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o666);
    world.append(&alert("10.1.0.1", "one", 1));
    world.until("shown", |status| status.error.contains("chmod o-w"));
    assert_eq!(world.status().told, 1);
    mode(0o644);
    world.append(&alert("10.1.0.1", "two", 1));
    assert_eq!(names(&world.told(2)), ["blue-1 one:90", "blue-1 two:90"]);
    world.until("forgotten", |status| status.error.is_empty());
}

#[test]
fn writers_of_a_socket_each_have_their_lines_and_do_not_wait_for_each_other() {
    let world = World::new(&SURICATA.replace("{file: log}", "{socket: eve.sock}"));
    let (mut one, mut two) = (world.connect("eve.sock"), world.connect("eve.sock"));
    let first = alert("10.1.0.1", "one", 1);
    let (half, rest) = first.split_at(50);
    one.write_all(half.as_bytes()).unwrap();
    two.write_all(alert("10.1.0.2", "two", 1).as_bytes()).unwrap();
    assert_eq!(names(&world.told(1)), ["blue-2 two:90"]);
    one.write_all(rest.as_bytes()).unwrap();
    assert_eq!(names(&world.told(1)), ["blue-1 one:90"]);
    // One that never ends its line, and one that breaks off within it.
    one.write_all("x".repeat(300_000).as_bytes()).unwrap();
    two.write_all(half.as_bytes()).unwrap();
    drop(two);
    one.write_all(b"\n").unwrap();
    one.write_all(alert("10.1.0.1", "three", 1).as_bytes()).unwrap();
    assert_eq!(names(&world.told(1)), ["blue-1 three:90"]);
    world.until("counted", |status| status.told == 3);
    assert_eq!((world.status().too_long, world.status().malformed), (1, 0));
}

#[test]
fn only_so_many_write_at_once_and_one_that_goes_makes_room() {
    let world = World::new(&SURICATA.replace("{file: log}", "{socket: eve.sock}"));
    let mut writers: Vec<_> = (0..socket::MOST).map(|_| world.connect("eve.sock")).collect();
    writers[0]
        .write_all(alert("10.1.0.1", "one", 1).as_bytes())
        .unwrap();
    world.told(1);
    // It is sent away: what it writes meets nobody.
    let mut more = world.connect("eve.sock");
    let mut nothing = [0];
    assert_eq!(std::io::Read::read(&mut more, &mut nothing).unwrap(), 0);
    writers.pop();
    let begin = Instant::now();
    // Until the one that went is noticed.
    loop {
        assert!(begin.elapsed() < LONG);
        let mut next = world.connect("eve.sock");
        next.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        if std::io::Read::read(&mut next, &mut nothing).is_err() {
            next.write_all(alert("10.1.0.1", "two", 1).as_bytes()).unwrap();
            break;
        }
    }
    assert_eq!(names(&world.told(1)), ["blue-1 two:90"]);
}

#[test]
fn sockets_are_their_owners_and_of_a_group() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let mode = |world: &World| {
        let metadata = std::fs::metadata(world.path("eve.sock")).unwrap();
        (metadata.permissions().mode() & 0o777, metadata.gid())
    };
    let own = World::new(&SURICATA.replace("{file: log}", "{socket: eve.sock}"));
    assert_eq!(mode(&own).0, 0o600);
    let group = rustix::process::getegid().as_raw();
    let text = format!("{{socket: eve.sock, group: '{group}'}}");
    let shared = World::new(&SURICATA.replace("{file: log}", &text));
    assert_eq!(mode(&shared), (0o660, group));
}

const AGENTS: &str = "  - {name: flows, agents: {directory: agents}}\n";

#[test]
fn an_agents_word_is_bound_to_the_guest_whose_socket_it_is() {
    let world = World::new(AGENTS);
    assert!(
        !world.path("agents/blue-2.sock").exists(),
        "a guest of another host"
    );
    let mut agent = world.connect("agents/blue-1.sock");
    let flow = |guest: &str| {
        format!(
            r#"{{{guest}"flow": {{"protocol": 6, "local": "10.1.0.1:40000", "remote": "10.1.0.2:443", "user": "alice"}}}}"#
        ) + "\n"
    };
    agent.write_all(flow(r#""guest": "red-1", "#).as_bytes()).unwrap();
    agent
        .write_all(b"{\"release\": {}}\n{\"login\": {\"user\": \"root\"}}\n")
        .unwrap();
    agent.write_all(flow("").as_bytes()).unwrap();
    let told = world.told(1);
    assert_eq!(
        (told[0].event.guest.as_str(), told[0].by.as_str()),
        ("blue-1", "agent in blue-1")
    );
    let mut other = world.connect("agents/red-1.sock");
    other.write_all(flow("").as_bytes()).unwrap();
    // Whose address it is, is for the engine to say: it is told of the right guest.
    assert_eq!(world.told(1)[0].event.guest, "red-1");
    world.until("counted", |status| status.told == 2);
    assert_eq!(world.status().malformed, 3);
}

#[test]
fn an_agents_socket_goes_where_its_guest_goes() {
    let mut world = World::new(AGENTS);
    let line = |local: &str| {
        format!(r#"{{"flow": {{"protocol": 6, "local": "{local}:40000", "remote": "10.9.9.9:443"}}}}"#) + "\n"
    };
    let mut agent = world.connect("agents/blue-1.sock");
    agent.write_all(line("10.1.0.1").as_bytes()).unwrap();
    assert_eq!(world.told(1)[0].event.guest, "blue-1");
    let [stays, comes] = ["blue-1", "blue-2"].map(|id| world.policy.guest(id).unwrap());
    let sources = world.running.as_mut().unwrap();
    sources.place(stays, false);
    sources.place(comes, true);
    // It is asked to once more: nothing comes of that.
    sources.place(comes, true);
    let begin = Instant::now();
    while world.path("agents/blue-1.sock").exists() || !world.path("agents/blue-2.sock").exists() {
        assert!(begin.elapsed() < LONG, "the sockets are where they were");
        std::thread::sleep(Duration::from_millis(2));
    }
    // Whoever was connected is not heard any more, or cannot even write.
    let _ = agent.write_all(line("10.1.0.1").as_bytes());
    let mut other = world.connect("agents/blue-2.sock");
    other.write_all(line("10.1.0.2").as_bytes()).unwrap();
    assert_eq!(world.told(1)[0].event.guest, "blue-2");
    world.until("both counted", |status| status.told == 2);
}

#[test]
fn a_guests_agent_that_floods_delays_no_other_guests() {
    let world = World::new(&AGENTS.replace("agents: {", "rate: 5, agents: {"));
    let line = |number: u32, address: &str| {
        format!(r#"{{"flow": {{"protocol": 6, "local": "{address}:40000", "remote": "10.1.0.2:{number}"}}}}"#)
            + "\n"
    };
    let flood: String = (1..=50).map(|number| line(number, "10.1.0.1")).collect();
    world
        .connect("agents/blue-1.sock")
        .write_all(flood.as_bytes())
        .unwrap();
    world.until("held back", |status| status.waited > 0);
    world
        .connect("agents/red-1.sock")
        .write_all(line(1, "10.2.0.1").as_bytes())
        .unwrap();
    let mut told = Vec::new();
    let begin = Instant::now();
    while !told.iter().any(|told: &Told| told.event.guest == "red-1") {
        assert!(begin.elapsed() < LONG);
        wait(&[world.running().bell().as_fd()], begin + LONG);
        told.extend(world.running().take());
    }
    assert!(told.len() < 50, "{}", told.len());
}

const TOLD: &str = "  - name: av
    clamav: {told: ['4711', '@4712']}
    rate: 2
    guest: [{in: file, like: '^/srv/(?<guest>[^/]+)/'}]
    reports:
      - {when: {virus: Test.*}, ignore: true}
      - {when: {virus: '*'}, tag: {name: 'malware.{virus}', severity: 90}}
  - name: edr
    webhook: {listen: '127.0.0.1:7444', secret: edr.secret}
    guest: [{id: '{/vm}'}]
    reports: [{tag: {name: t, severity: 1}}]
";

#[test]
fn who_tells_is_one_who_may_and_is_answered() {
    let mut world = World::new(TOLD);
    let caller = |user, group, may| {
        Teller::Caller(Caller::Local {
            user,
            group,
            process: None,
            may,
        })
    };
    let (clamav, root) = (caller(4711, 1, None), caller(0, 0, Some(Right::Change)));
    let found = |guest: &str, virus: &str| json!({"CLAM_VIRUSEVENT_FILENAME": format!("/srv/{guest}/x"), "CLAM_VIRUSEVENT_VIRUSNAME": virus});
    let said = world.tell("av", &clamav, found("blue-1", "Eicar"));
    assert_eq!(
        said.unwrap(),
        "source av, told by user 4711: blue-1 tag av/malware.Eicar of severity 90"
    );
    assert_eq!(
        world.tell("av", &clamav, found("blue-1", "Eicar")),
        Ok(String::new()),
        "repeated"
    );
    assert_eq!(
        world.tell("av", &root, found("blue-1", "Test.x")),
        Ok(String::new()),
        "ignored"
    );
    let refused =
        |world: &mut World, teller: &Teller, report: Value| world.tell("av", teller, report).unwrap_err();
    assert_eq!(refused(&mut world, &root, found("nobody", "Eicar")), "Nobody");
    assert_eq!(refused(&mut world, &root, json!({})), "NoMeaning");
    let reader = caller(99, 99, Some(Right::Read));
    assert_eq!(
        refused(&mut world, &reader, found("blue-1", "Other")),
        "Forbidden"
    );
    assert_eq!(
        refused(&mut world, &Teller::Webhook, found("blue-1", "Other")),
        "Forbidden"
    );
    assert!(
        world
            .tell("av", &caller(1, 4712, None), found("blue-2", "Eicar"))
            .is_ok()
    );
    let next = found("red-1", "Eicar");
    assert_eq!(refused(&mut world, &root, next.clone()), "TooFast");
    assert_eq!(
        refused(&mut world, &root, next),
        "TooFast",
        "it was not taken, and so is not repeated"
    );
    let status = world.status();
    assert_eq!(
        (status.told, status.waited, status.repeated, status.ignored),
        (2, 2, 1, 1)
    );
    assert_eq!(
        world.tell("edr", &root, json!({"vm": "red-1"})),
        Err("Forbidden".to_owned())
    );
    assert!(
        world
            .tell("edr", &Teller::Webhook, json!({"vm": "red-1"}))
            .is_ok()
    );
    assert_eq!(
        world.tell("ids", &root, json!({})),
        Err("UnknownSource".to_owned())
    );
}

#[test]
fn who_is_not_known_here_is_a_mistake_of_the_file() {
    let world = World::new(TOLD);
    let wrong = |right: &str, wrong: &str| {
        let path = world.path("wrong.yaml");
        std::fs::write(&path, format!("sources:\n{}", TOLD.replace(right, wrong))).unwrap();
        super::load(&path, &read(&path).unwrap(), &world.policy)
            .unwrap_err()
            .to_string()
    };
    let said = wrong("'4711'", "'no such user'");
    assert!(
        said.contains("wrong.yaml") && said.contains("source av: this host has no user \"no such user\""),
        "{said}"
    );
    let said = wrong(
        "clamav: {told: ['4711', '@4712']}",
        "clamav: {socket: s, group: no-such-group}",
    );
    assert!(
        said.contains("this host has no group \"no-such-group\""),
        "{said}"
    );
}

#[test]
fn a_reload_leaves_the_sockets_of_the_new_sources() {
    let mut world = World::new(&SURICATA.replace("{file: log}", "{socket: eve.sock}"));
    for number in 0..20 {
        world.start(None);
        let name = format!("n{number}");
        let mut writer = world.connect("eve.sock");
        writer.write_all(alert("10.1.0.1", &name, 1).as_bytes()).unwrap();
        assert_eq!(names(&world.told(1)), [format!("blue-1 {name}:90")]);
    }
}
