//! Sources as services feed them, up to what the control loop is told.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;

use guestseal_rules::event::What;
use guestseal_rules::load::{self, load_policy};

use super::*;

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
        let sources = super::load(&path, &policy).unwrap_or_else(|error| panic!("{error}"));
        let mut world = Self {
            directory,
            policy,
            sources,
            running: None,
        };
        world.start(None);
        world
    }

    fn start(&mut self, resume: Option<Position>) {
        self.running = None;
        let host = self.policy.host("h1").unwrap();
        self.running = Some(Sources::open(&self.sources, &self.policy, host, |_| resume).unwrap());
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
    let long = format!("{}\n", "x".repeat(3 * file::LONGEST));
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
    world.append("");
    let path = world.path("log");
    let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o666);
    world.append(&alert("10.1.0.1", "one", 1));
    world.until("shown", |status| status.error.contains("chmod o-w"));
    mode(0o644);
    world.append(&alert("10.1.0.1", "two", 1));
    assert_eq!(names(&world.told(2)), ["blue-1 one:90", "blue-1 two:90"]);
    world.until("forgotten", |status| status.error.is_empty());
}
