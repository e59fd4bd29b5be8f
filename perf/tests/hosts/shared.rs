//! What hosts share by a real etcd, which comes and goes.

use std::time::{Duration, Instant};

use guestseal_perf::etcd::{ADDRESS, Etcd};
use guestseal_perf::process::{PerfError, wait_for};
use rustix::process::Signal;
use serde_json::Value;

use crate::net::{Net, PATIENCE, POLICY, Result, ensure};

/// Hosts and an etcd. It goes before the namespaces that it is in.
pub(crate) struct Fleet {
    pub(crate) etcd: Etcd,
    pub(crate) net: Net,
}

impl Fleet {
    /// The hosts of a policy; nothing runs yet but etcd.
    fn new_with(name: &str, policy: &str) -> Result<Self> {
        let net = Net::of_policy(name, policy)?;
        let etcd = Etcd::start(net.deployment.directory(), &net.topology)?;
        Ok(Self { etcd, net })
    }

    /// Writes the host's file; with `as_itself` etcd knows it by its name.
    fn write_host(&self, host: usize, as_itself: bool) -> Result<()> {
        let name = &self.net.deployment.policy.hosts[host].name;
        let section = self.etcd.section(as_itself.then_some(name));
        self.net.write_host_with(host, &section).map(drop)
    }

    fn running_with(name: &str, policy: &str) -> Result<Self> {
        let mut fleet = Self::new_with(name, policy)?;
        for host in 0..fleet.net.hosts.len() {
            fleet.write_host(host, false)?;
            fleet.net.start(host, &[])?;
            fleet.connected(host, true)?;
        }
        Ok(fleet)
    }

    /// Waits until what a host says of etcd is so.
    pub(crate) fn wait_for(&self, host: usize, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        Ok(wait_for(what, PATIENCE, || {
            // A host that has just started has not said anything yet.
            let status = self.net.deployment.status(host).unwrap_or_default();
            Ok(Some(status["etcd"].clone()).filter(&holds))
        })?)
    }

    pub(crate) fn connected(&self, host: usize, connected: bool) -> Result<Value> {
        let what = format!("host {host} to say connected: {connected}");
        self.wait_for(host, &what, |etcd| etcd["connected"] == connected)
    }

    /// Waits until one host says whether another is alive.
    fn alive(&self, host: usize, other: &str, alive: bool) -> Result<Value> {
        let what = format!("host {host} to say that {other} is alive: {alive}");
        self.wait_for(host, &what, |etcd| etcd["hosts"][other]["alive"] == alive)
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        for host in 0..self.net.hosts.len() {
            self.net.stop(host)?;
        }
        Ok(())
    }
}

/// Each host knows whether the other is alive; without etcd hosts start and traffic flows; a host that is killed is not heard any more.
pub(crate) fn liveness() -> Result<()> {
    let mut fleet = Fleet::running_with("liveness", POLICY)?;
    fleet.alive(0, "h2", true)?;
    fleet.alive(1, "h1", true)?;
    fleet.etcd.kill();
    fleet.connected(0, false)?;
    fleet.net.pings("blue-1", "10.1.0.2")?;
    fleet.net.stop(1)?;
    fleet.net.start(1, &[])?;
    fleet.net.pings("blue-1", "10.1.0.2")?;
    fleet.connected(1, false)?;
    let said = fleet.net.deployment.status(1)?["etcd"]["error"].clone();
    ensure(said.is_string(), || said.to_string())?;
    fleet.etcd.restart(&fleet.net.topology)?;
    fleet.connected(0, true)?;
    fleet.alive(0, "h2", true)?;
    // Who says something that cannot be is counted, and nothing else.
    let wire = &fleet.net.topology.wire;
    fleet
        .etcd
        .operator(wire, &["put", "/guestseal/hosts/h9", "nonsense"])?;
    fleet
        .etcd
        .operator(wire, &["put", "/guestseal/elsewhere", "nonsense"])?;
    fleet.wait_for(0, "both to be counted", |etcd| {
        etcd["refused"]["MalformedHost"] == 1 && etcd["refused"]["UnknownKey"] == 1
    })?;
    fleet.net.host(1).process.kill();
    fleet.net.hosts[1] = None;
    fleet.alive(0, "h2", false)?;
    fleet.net.start(1, &[])?;
    fleet.alive(0, "h2", true)?;
    fleet.stop()
}

/// A guest reaches another, or does not.
fn reaches(fleet: &Fleet, from: &str, to: &str, does: bool) -> Result<()> {
    let line = format!("ping -c 3 -i 0.05 -W 1 -q {to}");
    wait_for(&format!("{from} to reach {to}: {does}"), PATIENCE, || {
        let reached = fleet.net.guest(from).run(&line).is_ok();
        Ok((reached == does).then_some(()))
    })?;
    Ok(())
}

impl Fleet {
    fn guest(&self, host: usize, guest: &str) -> std::result::Result<Value, PerfError> {
        let said = self.net.ctl(host, &["--json", "guests"])?;
        let all: Value = serde_json::from_str(&said).map_err(|error| PerfError::Malformed {
            what: "guests".into(),
            why: error.to_string(),
        })?;
        let all = all.as_array().cloned().unwrap_or_default();
        Ok(all
            .into_iter()
            .find(|one| one["guest"] == guest)
            .unwrap_or_default())
    }

    /// Waits until a host has a guest in a container.
    fn is_in(&self, host: usize, guest: &str, container: &str) -> Result<Value> {
        let what = format!("host {host} to have {guest} in {container}");
        Ok(wait_for(&what, PATIENCE, || {
            let found = self.guest(host, guest)?;
            Ok(Some(found).filter(|found| found["container"] == container))
        })?)
    }

    pub(crate) fn journal(&self, host: usize) -> Result<String> {
        Ok(self.net.ctl(host, &["--json", "journal"])?)
    }

    pub(crate) fn operator(&self, words: &[&str]) -> Result<String> {
        Ok(self.etcd.operator(&self.net.topology.wire, words)?)
    }

    /// Nothing is left of what was before now.
    fn compact(&self) -> Result<()> {
        let said = self.operator(&["endpoint", "status", "-w", "json"])?;
        let said: Value = serde_json::from_str(&said)?;
        let revision = said[0]["Status"]["header"]["revision"].to_string();
        self.operator(&["compact", &revision]).map(drop)
    }

    /// Nothing goes between a host and etcd; what guests send does.
    pub(crate) fn part(&self, host: usize, apart: bool) -> Result<()> {
        // What it says of itself is a second old.
        self.connected(host, apart)?;
        let verb = if apart { "add" } else { "del" };
        self.net.topology.hosts[host].ip(&format!("route {verb} blackhole {ADDRESS}/32"))?;
        self.connected(host, !apart).map(drop)
    }
}

/// A tag that one host is told of is enforced at the others, the guest's own among them; so are hands. Who did it, and where, is in each journal.
pub(crate) fn tags_and_hands() -> Result<()> {
    let fleet = Fleet::running_with("shared", POLICY)?;
    reaches(&fleet, "blue-1", "10.1.0.2", true)?;
    // blue-2 lives on the second host, and the first is told.
    fleet.net.tag(0, "blue-2", "eicar")?;
    let found = fleet.is_in(1, "blue-2", "quarantine")?;
    let because = "transfer infected of default after tag av/eicar of severity 90, on host h1";
    ensure(found["because"] == because, || found.to_string())?;
    reaches(&fleet, "blue-2", "10.1.0.1", false)?;
    let journal = fleet.journal(1)?;
    ensure(journal.contains("host h1 through etcd"), || journal.clone())?;
    fleet.net.clear(1, "blue-2")?;
    fleet.is_in(0, "blue-2", "default")?;
    reaches(&fleet, "blue-1", "10.1.0.2", true)?;
    fleet.net.ctl(0, &["pin", "blue-1", "quarantine"])?;
    let found = fleet.is_in(1, "blue-1", "quarantine")?;
    ensure(found["pinned"] == true, || found.to_string())?;
    fleet.net.ctl(1, &["unpin", "blue-1"])?;
    let found = fleet.is_in(0, "blue-1", "default")?;
    ensure(found["pinned"] == false, || found.to_string())?;
    fleet.net.ctl(0, &["transfer", "blue-1", "quarantine"])?;
    wait_for("the transfer to be in the other journal", PATIENCE, || {
        let journal = fleet.net.ctl(1, &["--json", "journal"])?;
        Ok(journal
            .contains("transfer to quarantine by hand, on host h1")
            .then_some(()))
    })?;
    fleet.is_in(1, "blue-1", "default")?;
    fleet.is_in(0, "blue-1", "default")?;
    fleet.wait_for(0, "all to be published", |etcd| etcd["unpublished"] == 0)?;
    // What was said by one is not said again by the other: the key is as old as its last change.
    let before = fleet.operator(&["get", "/guestseal/guests/", "--prefix", "-w", "json"])?;
    std::thread::sleep(Duration::from_millis(500));
    let after = fleet.operator(&["get", "/guestseal/guests/", "--prefix", "-w", "json"])?;
    let kept = |text: &str| serde_json::from_str::<Value>(text).map(|value| value["kvs"].clone());
    ensure(kept(&before)? == kept(&after)?, || {
        format!("{before} became {after}")
    })?;
    fleet.stop()
}

/// A host that is stopped in order is not alive from then on, long before its lease would end; a stop does not wait for an etcd that stands still.
pub(crate) fn ordered_stop() -> Result<()> {
    let mut fleet = Fleet::running_with("ordered", POLICY)?;
    fleet.alive(0, "h2", true)?;
    fleet.net.stop(1)?;
    let stopped = Instant::now();
    fleet.alive(0, "h2", false)?;
    let took = stopped.elapsed();
    // It was renewed at most a third of its 10 s before.
    ensure(took < Duration::from_secs(4), || {
        format!("not heard {took:?} after the stop")
    })?;
    fleet.net.start(1, &[])?;
    fleet.alive(0, "h2", true)?;
    fleet.etcd.pause(true);
    let begun = Instant::now();
    fleet.net.stop(1)?;
    let took = begun.elapsed();
    fleet.etcd.pause(false);
    ensure(took < Duration::from_secs(4), || {
        format!("the stop took {took:?}")
    })?;
    fleet.net.stop(0).map(drop)
}

/// A host that is so far behind that etcd gives its watch up, since what it had to tell is compacted, reads everything again.
pub(crate) fn compacted() -> Result<()> {
    let mut fleet = Fleet::running_with("compacted", POLICY)?;
    fleet.alive(0, "h2", true)?;
    fleet.net.host(1).process.signal(Signal::STOP);
    // More than the connection and etcd's own queue have room for.
    fleet.etcd.fill(&fleet.net.topology.wire, 3000, 6000)?;
    fleet.net.tag(0, "blue-2", "eicar")?;
    fleet.wait_for(0, "it to be published", |etcd| etcd["unpublished"] == 0)?;
    fleet.compact()?;
    fleet.net.host(1).process.signal(Signal::CONT);
    fleet
        .net
        .wait_for_word(1, "etcd: what was to be read is compacted")?;
    fleet.is_in(1, "blue-2", "quarantine")?;
    fleet.connected(1, true)?;
    fleet.stop()
}

/// Without etcd a tag works where it is told, and traffic goes on. What was told meanwhile, on either side of a partition, is caught up: also
/// past a compaction, and by a host that did not run.
pub(crate) fn catching_up() -> Result<()> {
    let mut fleet = Fleet::running_with("catching", POLICY)?;
    reaches(&fleet, "red-1", "10.2.0.2", true)?;
    fleet.etcd.kill();
    fleet.connected(0, false)?;
    fleet.net.tag(0, "blue-2", "eicar")?;
    reaches(&fleet, "blue-1", "10.1.0.2", false)?;
    reaches(&fleet, "red-1", "10.2.0.2", true)?;
    fleet.wait_for(0, "the tag to be kept", |etcd| etcd["unpublished"] == 1)?;
    fleet.etcd.restart(&fleet.net.topology)?;
    fleet.is_in(1, "blue-2", "quarantine")?;
    // A host that is parted hears nothing; its own word is kept. Meanwhile the past is compacted.
    fleet.part(1, true)?;
    fleet.net.clear(0, "blue-2")?;
    fleet.net.tag(1, "blue-1", "parted")?;
    for number in 0..20 {
        fleet.net.tag(0, "red-1", &format!("n{number}"))?;
    }
    fleet.wait_for(0, "all to be published", |etcd| etcd["unpublished"] == 0)?;
    fleet.compact()?;
    fleet.part(1, false)?;
    fleet.is_in(1, "blue-2", "default")?;
    fleet.is_in(1, "red-1", "quarantine")?;
    fleet.is_in(0, "blue-1", "quarantine")?;
    // A host that does not run is told when it does.
    fleet.net.host(1).process.kill();
    fleet.net.hosts[1] = None;
    fleet.net.clear(0, "red-1")?;
    fleet.net.tag(0, "blue-2", "again")?;
    fleet.net.tag(0, "red-2", "fresh")?;
    fleet.wait_for(0, "all to be published", |etcd| etcd["unpublished"] == 0)?;
    fleet.net.start(1, &[])?;
    fleet.is_in(1, "red-2", "quarantine")?;
    fleet.is_in(1, "red-1", "default")?;
    fleet.is_in(1, "blue-2", "quarantine")?;
    // A host that was killed before it could say what it had answered says it then.
    fleet.etcd.kill();
    fleet.connected(1, false)?;
    fleet.net.clear(1, "blue-1")?;
    fleet.net.host(1).process.kill();
    fleet.net.hosts[1] = None;
    fleet.etcd.restart(&fleet.net.topology)?;
    fleet.net.start(1, &[])?;
    fleet.is_in(0, "blue-1", "default")?;
    fleet.stop()
}

/// A host that may only read hears, and what it is told holds for itself; that nobody else hears of it is shown. What cannot be is counted.
pub(crate) fn who_may() -> Result<()> {
    let mut fleet = Fleet::new_with("roles", POLICY)?;
    fleet
        .etcd
        .know_hosts(&fleet.net.topology.wire, &["h1", "h2"], &["h1"])?;
    for host in 0..2 {
        fleet.write_host(host, true)?;
        fleet.net.start(host, &[])?;
        fleet.connected(host, true)?;
    }
    fleet.net.tag(0, "blue-1", "eicar")?;
    fleet.is_in(1, "blue-1", "quarantine")?;
    fleet.net.tag(1, "red-1", "eicar")?;
    fleet.wait_for(1, "the refusal to be shown", |etcd| {
        etcd["refused"]["NotWritable"] == 1
            && etcd["unpublished"] == 1
            && etcd["refused"]["HostNotWritable"] == 1
    })?;
    fleet.is_in(1, "red-1", "quarantine")?;
    let elsewhere = fleet.guest(0, "red-1")?;
    ensure(elsewhere["container"] == "default", || elsewhere.to_string())?;
    let wrong = [
        ("blue-1", "nonsense"),
        (
            "blue-1",
            r#"{"host": "h9", "tags": [{"service": "av", "name": "x", "severity": 200, "first": "2026-01-01T00:00:00Z", "last": "2026-01-01T00:00:00Z", "count": 1}]}"#,
        ),
        ("nobody", r#"{"host": "h9"}"#),
        (
            "blue-2",
            r#"{"host": "h9", "place": {"hands": 1, "container": "nowhere", "cause": {"at": "2026-01-01T00:00:00Z", "text": "so"}}}"#,
        ),
    ];
    for (guest, value) in wrong {
        fleet.operator(&["put", &format!("/guestseal/guests/{guest}"), value])?;
    }
    let wire = &fleet.net.topology.wire;
    fleet
        .etcd
        .put_large(wire, "/guestseal/guests/red-2", &[b'x'; 1_400_000])?;
    fleet.wait_for(0, "all of it to be counted", |etcd| {
        etcd["refused"]["MalformedGuest"] == 2
            && etcd["refused"]["TooLong"] == 1
            && etcd["refused"]["UnknownGuest"] == 1
            && etcd["refused"]["UnknownContainer"] == 1
    })?;
    fleet.is_in(0, "blue-1", "quarantine")?;
    reaches(&fleet, "red-1", "10.2.0.2", false)?;
    fleet.stop()
}

impl Fleet {
    /// Waits until a host has a guest on another; gives when its journal says that it came there, and by whom.
    fn is_on(&self, host: usize, guest: &str, on: &str) -> Result<(String, String)> {
        let what = format!("host {host} to have {guest} on {on}");
        wait_for(&what, PATIENCE, || {
            Ok(Some(self.guest(host, guest)?).filter(|found| found["host"] == on))
        })?;
        let journal = self.net.ctl(host, &["--json", "journal"])?;
        let lines: Value = serde_json::from_str(&journal)?;
        let lines = lines.as_array().cloned().unwrap_or_default();
        let is_it = |line: &&Value| line["located"]["guest"] == guest && line["located"]["to"] == on;
        let line = lines.iter().rev().find(is_it).ok_or_else(|| journal.clone())?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok((text(&line["at"]), text(&line["by"])))
    }

    /// Every host has the guest there; the new one had it first.
    fn followed(&self, guest: &str, on: usize) -> Result<()> {
        let name = format!("h{}", on + 1);
        let (first, _) = self.is_on(on, guest, &name)?;
        for host in 0..self.net.hosts.len() {
            let (at, by) = self.is_on(host, guest, &name)?;
            ensure(first <= at, || {
                format!("host {host} had {guest} on {name} at {at} (by {by}), {name} itself at {first}")
            })?;
        }
        Ok(())
    }
}

/// A move that one host is told is made by all, by the new one first; without etcd at once by who is told, and by the others when it is back.
pub(crate) fn moves() -> Result<()> {
    let mut fleet = Fleet::running_with("places", &crate::moves::policy())?;
    for host in 0..3 {
        for other in ["h1", "h2", "h3"]
            .iter()
            .enumerate()
            .filter(|(number, _)| *number != host)
        {
            fleet.alive(host, other.1, true)?;
        }
    }
    fleet.net.pings("blue-1", "10.1.0.2")?;
    // By the host that it leaves, the one that it comes to, and one that has nothing to do with it.
    for (told, to) in [(1, 2), (0, 0), (1, 1), (0, 2)] {
        crate::moves::carry_over(&mut fleet.net, "blue-2", to)?;
        fleet
            .net
            .ctl(told, &["move", "blue-2", "--to", &format!("h{}", to + 1)])?;
        fleet.followed("blue-2", to)?;
        fleet.net.pings("blue-1", "10.1.0.2")?;
    }
    let (_, by) = fleet.is_on(1, "blue-2", "h3")?;
    ensure(by == "host h1 through etcd", || by.clone())?;
    let again = fleet.net.ctl(1, &["move", "blue-2", "--to", "h3"]);
    ensure(again.is_err(), || "it moved to where it is".into())?;
    // Without etcd, and while one of them does not run.
    fleet.etcd.kill();
    fleet.connected(0, false)?;
    fleet.net.host(1).process.kill();
    fleet.net.hosts[1] = None;
    crate::moves::carry_over(&mut fleet.net, "blue-2", 0)?;
    fleet.net.ctl(0, &["move", "blue-2", "--to", "h1"])?;
    fleet.is_on(0, "blue-2", "h1")?;
    fleet.net.pings("blue-1", "10.1.0.2")?;
    fleet.etcd.restart(&fleet.net.topology)?;
    fleet.is_on(2, "blue-2", "h1")?;
    fleet.net.start(1, &[])?;
    fleet.is_on(1, "blue-2", "h1")?;
    fleet.operator(&["put", "/guestseal/endpoints/blue-2", "nonsense"])?;
    fleet.wait_for(0, "it to be counted", |etcd| {
        etcd["refused"]["MalformedMove"] == 1
    })?;
    fleet.net.pings("blue-1", "10.1.0.2")?;
    fleet.stop()
}
