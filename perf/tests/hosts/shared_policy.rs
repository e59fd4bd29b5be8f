//! The policy in a real etcd: what is put there holds on every host, as a whole or not at all.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use guestseal_perf::deployment::{Deployment, program, random_hex};
use guestseal_perf::etcd::Etcd;
use guestseal_perf::process::{PerfError, run, wait_for};
use rustix::process::Signal;

use crate::net::{Net, PATIENCE, POLICY, Result, ensure};
use crate::ports::add_blue_9;
use crate::reload::{Flows, met};
use crate::sessions::ping;
use crate::shared::Fleet;

/// The two files of the policy in etcd.
const BASE: &str = "10-base.yaml";
const RULES: &str = "20-rules.yaml";
/// Who reloads.
const BY: &str = "a change of the policy in etcd";
/// A rule in front of all others, so that every rule has another number.
const CUT: &str = "  - {name: cut, from: any, to: any, protocol: udp, ports: [7200], action: drop}\n";

/// Why a program has failed, as it must.
fn failure(done: std::result::Result<String, PerfError>) -> Result<String> {
    match done {
        Ok(said) => Err(format!("it has not failed: {said}").into()),
        Err(error) => Ok(error.to_string()),
    }
}

impl Fleet {
    /// Hosts that make sessions and have no policy, an etcd that has none either, and an operator's file of policy.
    fn of_shared_policy(name: &str) -> Result<Self> {
        let deployment = Deployment::with_sessions(name, POLICY)?;
        let guests = deployment.guests(1);
        let net = Net::of(deployment, 1, &guests)?;
        let etcd = Etcd::start(net.deployment.directory(), &net.topology)?;
        let fleet = Self { etcd, net };
        std::fs::create_dir(fleet.policy(""))?;
        let text = std::fs::read_to_string(fleet.file("policy.yaml"))?;
        let (base, rules) = text.split_once("\nrules:\n").ok_or("a policy without rules")?;
        std::fs::write(fleet.policy(BASE), base)?;
        std::fs::write(fleet.policy(RULES), format!("rules:\n{rules}"))?;
        // What a host would find, if it looked for files.
        std::fs::remove_file(fleet.file("policy.yaml"))?;
        fleet.write_hosts(false)?;
        Ok(fleet)
    }

    /// The hosts' files and the operator's; `as_themselves`: etcd knows each by a name.
    fn write_hosts(&self, as_themselves: bool) -> Result<()> {
        for host in 0..self.net.hosts.len() {
            let name = &self.net.deployment.policy.hosts[host].name;
            let etcd = self.etcd.section(as_themselves.then_some(name));
            let path = self
                .net
                .write_session_host(host, &format!("{etcd}  policy: true\n"))?;
            let text = std::fs::read_to_string(&path)?;
            std::fs::write(&path, text.replace("policy: [policy.yaml]\n", ""))?;
        }
        let operator = self.etcd.section(as_themselves.then_some("operator"));
        Ok(std::fs::write(self.file("operator.yaml"), operator)?)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.net.deployment.directory().join(name)
    }

    fn policy(&self, name: &str) -> PathBuf {
        self.file("policy").join(name)
    }

    fn edit_policy(&self, name: &str, from: &str, to: &str) -> Result<()> {
        let text = std::fs::read_to_string(self.policy(name))?;
        ensure(text.contains(from), || format!("{name} has no `{from}`:\n{text}"))?;
        Ok(std::fs::write(self.policy(name), text.replacen(from, to, 1))?)
    }

    /// `guestseal policy push` of both files, as a file says who that is.
    fn push_as(&self, who: &str) -> std::result::Result<String, PerfError> {
        let mut command = self.net.topology.hosts[0].command(program());
        command.args(["policy", "push", "--config"]).arg(self.file(who));
        run(command.args([self.policy(BASE), self.policy(RULES)]))
    }

    fn push(&self) -> Result<()> {
        let said = self.push_as("operator.yaml")?;
        ensure(said.contains("in etcd at revision"), || said.clone())
    }

    /// Waits until a host has taken so many policies from etcd, each without a refusal.
    fn has_taken(&self, host: usize, count: usize) -> Result<()> {
        let what = format!("h{} to have taken {count} policies", host + 1);
        let reloads = wait_for(&what, PATIENCE, || {
            let reloads = self.net.reloads(host)?;
            let taken = reloads
                .iter()
                .filter(|(by, why)| by.contains(BY) && why.is_none());
            Ok((taken.count() == count).then_some(reloads))
        })
        .map_err(|error| format!("{error}: {:?}", self.net.reloads(host)))?;
        ensure(reloads.iter().all(|(_, why)| why.is_none()), || {
            format!("{reloads:?}")
        })
    }

    /// Waits until the last thing that a host's journal says of policies is why one was refused.
    fn has_refused(&self, host: usize, why: &str) -> Result<()> {
        let what = format!("h{} to refuse a policy: {why}", host + 1);
        wait_for(&what, PATIENCE, || {
            let last = self.net.reloads(host)?.pop();
            let is_it = |(by, said): (String, Option<String>)| {
                by.contains(BY) && said.is_some_and(|said| said.contains(why))
            };
            Ok(last.is_some_and(is_it).then_some(()))
        })?;
        self.wait_for(host, "status to say why", |etcd| {
            etcd["policy_error"]
                .as_str()
                .is_some_and(|said| said.contains(why))
        })?;
        Ok(())
    }

    fn start_hosts(&mut self) -> Result<()> {
        for host in 0..self.net.hosts.len() {
            self.net.start(host, &[])?;
            self.connected(host, true)?;
        }
        Ok(())
    }

    /// What guestseal says on a host where it cannot start.
    fn fails_to_start(&self, host: usize) -> Result<String> {
        let mut command: Command = self.net.topology.hosts[host].command(program());
        command
            .args(["run", "--config"])
            .arg(self.file(&format!("h{}.yaml", host + 1)));
        failure(run(&mut command))
    }

    fn kept(&self, host: usize) -> PathBuf {
        self.file(&format!("state-h{}/policy-of-etcd.json", host + 1))
    }
}

/// Rules and keys that only fit together are in force on both hosts at moments of their own: of the flow that every policy allows nothing is
/// lost, and no host ever sees one file without the other.
pub(crate) fn under_traffic() -> Result<()> {
    let mut fleet = Fleet::of_shared_policy("pushed")?;
    fleet.push()?;
    fleet.start_hosts()?;
    ping(&fleet.net, "blue-1", "10.1.0.2")?;
    let net = &fleet.net;
    // Etcd and the pushes want the CPUs as well: what a late sender catches up must not flood the guest's own queue.
    let mut flows = Flows::start(net, 24_000, 2000)?;
    fleet.edit_policy(RULES, "rules:\n", &format!("rules:\n{CUT}"))?;
    fleet.push()?;
    (0..2).try_for_each(|host| fleet.has_taken(host, 1))?;
    wait_for("the cut to count", PATIENCE, || {
        Ok(met(net, 0, "cut").is_ok_and(|count| count > 200).then_some(()))
    })?;
    // Each names what only the other file declares: half of it is a mistake.
    let mut before = "red-any".to_owned();
    for number in 2..5 {
        let (key, secret) = (format!("red-{number}"), random_hex(32)?);
        (0..2).try_for_each(|host| net.deployment.give_key(host, &key, 1, &secret))?;
        fleet.edit_policy(BASE, &format!("id: {before},"), &format!("id: {key},"))?;
        fleet.edit_policy(RULES, &format!("key: {before}}}"), &format!("key: {key}}}"))?;
        fleet.push()?;
        (0..2).try_for_each(|host| fleet.has_taken(host, number))?;
        before = key;
    }
    flows.all_arrive().map_err(|error| {
        let said = |host| fleet.net.ctl(host, &["--json", "counters"]).unwrap_or_default();
        format!("{error}; h1: {}; h2: {}", said(0), said(1))
    })?;
    flows.other.kill();
    ping(&fleet.net, "red-1", "10.2.0.2")?;
    fleet.stop()
}

/// A policy that cannot be, put there past the check: both hosts go on under the one before and say why, and a restart has that one too.
pub(crate) fn refused() -> Result<()> {
    let mut fleet = Fleet::of_shared_policy("unpushed")?;
    fleet.push()?;
    fleet.start_hosts()?;
    ping(&fleet.net, "blue-1", "10.1.0.2")?;
    let mail = "action: encrypt, key: blue-mail}";
    let wrong = "action: encrypt, key: blue-male}";
    fleet.edit_policy(RULES, mail, wrong)?;
    // A push looks first.
    let said = failure(fleet.push_as("operator.yaml"))?;
    ensure(said.contains("no key \"blue-male\" is declared"), || said.clone())?;
    let there = fleet.operator(&["get", "/guestseal/policy/", "--prefix"])?;
    ensure(there.contains(mail) && !there.contains(wrong), || there.clone())?;
    let text = std::fs::read_to_string(fleet.policy(RULES))?;
    let key = format!("/guestseal/policy/{RULES}");
    let line = 1 + text[..text.find(wrong).unwrap_or(0)].matches('\n').count();
    fleet.operator(&["put", &key, &text])?;
    for host in 0..2 {
        fleet.has_refused(host, &format!("etcd:{key}:{line}:"))?;
        fleet.wait_for(host, "it to be counted", |etcd| etcd["refused"]["BadPolicy"] == 1)?;
    }
    ping(&fleet.net, "blue-2", "10.1.0.1")?;
    ensure(fleet.net.reload(0).is_err(), || {
        "a reload has not said what is wrong".into()
    })?;
    // Guests of no file come and go all the same.
    add_blue_9(&fleet.net, 0, "10.1.0.9")?;
    // What it says at once, not what it said a second ago.
    let said = fleet.net.ctl(0, &["status"])?;
    ensure(said.contains("NOT IN FORCE here: etcd:"), || said.clone())?;
    fleet.net.ctl(0, &["port", "remove", "vnet9"])?;
    // It starts with what it had, and says that again.
    fleet.net.stop(1)?;
    fleet.net.start(1, &[])?;
    fleet.has_refused(1, "blue-male")?;
    fleet.net.pings("blue-1", "10.1.0.2")?;
    // The same with one that can be read, and under which there are no sessions.
    fleet.edit_policy(RULES, wrong, mail)?;
    let base = std::fs::read_to_string(fleet.policy(BASE))?;
    let public: Vec<&str> = base.split("public-key: \"").skip(1).collect();
    let public: Vec<&str> = public.iter().filter_map(|text| text.split('"').next()).collect();
    // Points of a small order.
    for (number, key) in public.iter().enumerate() {
        fleet.edit_policy(BASE, key, &format!("{number:02}{}", "00".repeat(31)))?;
    }
    fleet.push()?;
    for host in 0..2 {
        fleet.has_refused(host, &format!("the public key of host h{} is none", 2 - host))?;
    }
    fleet.net.stop(1)?;
    fleet.net.start(1, &[])?;
    fleet
        .net
        .wait_for_word(1, "guestseal starts with the policy that was in force last")?;
    fleet.has_refused(1, "the public key of host h1 is none")?;
    fleet.net.pings("blue-1", "10.1.0.2")?;
    std::fs::write(fleet.policy(BASE), &base)?;
    fleet.edit_policy(RULES, mail, wrong)?;
    // Names, texts and nothing at all.
    fleet.operator(&["put", "/guestseal/policy/nonsense", "rules: []"])?;
    fleet.has_refused(0, "\"nonsense\" is no name of a policy's file")?;
    fleet.operator(&["del", "/guestseal/policy/", "--prefix"])?;
    fleet.has_refused(0, "there is no policy in etcd")?;
    for number in 0..6 {
        let (wire, key) = (
            &fleet.net.topology.wire,
            format!("/guestseal/policy/{number}.yaml"),
        );
        fleet.etcd.put_large(wire, &key, &[b'#'; 1_400_000])?;
    }
    fleet.has_refused(0, "more than 8388608 bytes")?;
    ping(&fleet.net, "blue-1", "10.1.0.2")?;
    // A push takes away what is there besides.
    fleet.edit_policy(RULES, wrong, mail)?;
    fleet.push()?;
    for host in 0..2 {
        fleet.wait_for(host, "the policy to be fine", |etcd| {
            etcd["policy_error"].is_null()
        })?;
    }
    let reloads = fleet.net.reloads(0)?;
    let is_taken = |(by, why): &(String, Option<String>)| by.contains(BY) && why.is_none();
    ensure(!reloads.iter().any(is_taken), || format!("{reloads:?}"))?;
    fleet.net.reload(0)?;
    let there = fleet.operator(&["get", "/guestseal/policy/", "--prefix", "--keys-only"])?;
    let there: Vec<&str> = there.split_whitespace().collect();
    ensure(there == [&*format!("/guestseal/policy/{BASE}"), &key], || {
        format!("{there:?}")
    })?;
    fleet.stop()
}

/// A host starts without etcd under the policy that was in force last, and not at all if there never was one; what changed while it
/// was away or parted holds once it hears of it.
pub(crate) fn without_etcd() -> Result<()> {
    let mut fleet = Fleet::of_shared_policy("unshared")?;
    let said = fleet.fails_to_start(0)?;
    ensure(
        said.contains("there is no policy in etcd under /guestseal/policy/"),
        || said.clone(),
    )?;
    fleet.push()?;
    fleet.start_hosts()?;
    ping(&fleet.net, "blue-1", "10.1.0.2")?;
    let kept: BTreeMap<String, String> = serde_json::from_slice(&std::fs::read(fleet.kept(1))?)?;
    ensure(kept.keys().eq([BASE, RULES]), || format!("{:?}", kept.keys()))?;
    let mode = std::fs::metadata(fleet.kept(1))?.permissions().mode();
    ensure(mode & 0o777 == 0o600, || format!("{mode:o}"))?;
    // Under a policy that it was told while it ran.
    fleet.edit_policy(RULES, "rules:\n", &format!("rules:\n{CUT}"))?;
    fleet.push()?;
    (0..2).try_for_each(|host| fleet.has_taken(host, 1))?;
    fleet.etcd.kill();
    fleet.net.host(1).process.kill();
    fleet.net.hosts[1] = None;
    fleet.net.start(1, &[])?;
    fleet
        .net
        .wait_for_word(1, "guestseal starts with the policy that was in force last")?;
    fleet.net.pings("blue-1", "10.1.0.2")?;
    ensure(met(&fleet.net, 1, "cut").is_ok(), || {
        "it has an older policy".into()
    })?;
    fleet.net.host(1).process.signal(Signal::HUP);
    fleet.net.wait_for_word(1, "etcd: ")?;
    // A third has never had one.
    fleet.net.stop(1)?;
    std::fs::rename(fleet.kept(1), fleet.file("aside"))?;
    let said = fleet.fails_to_start(1)?;
    ensure(
        said.contains("the policy is in etcd, and this host has none of it in"),
        || said.clone(),
    )?;
    std::fs::rename(fleet.file("aside"), fleet.kept(1))?;
    fleet.net.start(1, &[])?;
    // What is put there while a host does not run holds from its first packet on, and what is while it is parted once it is back.
    fleet.etcd.restart(&fleet.net.topology)?;
    (0..2).try_for_each(|host| fleet.connected(host, true).map(drop))?;
    fleet.net.stop(1)?;
    fleet.edit_policy(RULES, CUT, "")?;
    fleet.push()?;
    fleet.has_taken(0, 2)?;
    fleet.net.start(1, &[])?;
    ensure(met(&fleet.net, 1, "cut").is_err(), || {
        "it has started under the policy before".into()
    })?;
    fleet.connected(1, true)?;
    fleet.part(1, true)?;
    fleet.edit_policy(RULES, "rules:\n", &format!("rules:\n{CUT}"))?;
    fleet.push()?;
    fleet.has_taken(0, 3)?;
    fleet.net.pings("blue-1", "10.1.0.2")?;
    ensure(met(&fleet.net, 1, "cut").is_err(), || {
        "it hears although it is parted".into()
    })?;
    fleet.part(1, false)?;
    fleet.has_taken(1, 2)?;
    met(&fleet.net, 1, "cut")?;
    // An etcd that stands still is not waited for long.
    fleet.etcd.pause(true);
    fleet.net.stop(1)?;
    let begun = Instant::now();
    fleet.net.start(1, &[])?;
    let took = begun.elapsed();
    fleet.etcd.pause(false);
    ensure(took < Duration::from_secs(10), || {
        format!("the start took {took:?}")
    })?;
    fleet.net.pings("blue-1", "10.1.0.2")?;
    fleet.stop()
}

/// With the roles of the documentation hosts read the policy and do not write it; who may write it need not be a host.
pub(crate) fn who_may() -> Result<()> {
    let mut fleet = Fleet::of_shared_policy("editor")?;
    let wire = &fleet.net.topology.wire;
    fleet.etcd.know_hosts(wire, &["h1", "h2"], &["h1", "h2"])?;
    fleet
        .etcd
        .know(wire, "operator", &["--prefix=true readwrite /guestseal/policy/"])?;
    fleet.write_hosts(true)?;
    fleet.push()?;
    fleet.start_hosts()?;
    fleet.net.pings("blue-1", "10.1.0.2")?;
    let before = fleet.operator(&["get", "/guestseal/policy/", "--prefix"])?;
    fleet.edit_policy(RULES, "rules:\n", &format!("rules:\n{CUT}"))?;
    let said = failure(fleet.push_as("h1.yaml"))?;
    ensure(said.contains("h1 may not write under /guestseal/policy/"), || {
        said.clone()
    })?;
    let after = fleet.operator(&["get", "/guestseal/policy/", "--prefix"])?;
    ensure(before == after, || after.clone())?;
    fleet.push()?;
    (0..2).try_for_each(|host| fleet.has_taken(host, 1))?;
    fleet.stop()
}
