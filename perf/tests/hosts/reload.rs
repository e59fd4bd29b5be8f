//! Another policy under traffic: by the API, by SIGHUP and by the change of a file.

use std::collections::BTreeSet;

use guestseal::control::journal::{Deed, Entry, Journal};
use guestseal_perf::process::{PerfError, Running, wait_for};
use rustix::process::Signal;
use serde_json::Value;

use crate::control::{client, state};
use crate::net::{Net, PATIENCE, POLICY, Result, ensure};
use crate::sessions::{current, ping, running};

/// The port of the flow that every policy here allows, and that of one that some forbid.
const ALLOWED: u16 = 7100;
const FORBIDDEN: u16 = 7200;

impl Net {
    /// The policy that is on disk, with some of its text replaced.
    pub(crate) fn edit(&self, changes: &[(&str, &str)]) -> Result<()> {
        let path = self.deployment.directory().join("policy.yaml");
        let mut text = std::fs::read_to_string(&path)?;
        for (from, to) in changes {
            ensure(text.contains(from), || {
                format!("the policy has no `{from}`:\n{text}")
            })?;
            text = text.replacen(from, to, 1);
        }
        // As editors do it: a new file under the old name.
        let aside = path.with_extension("new");
        std::fs::write(&aside, text)?;
        Ok(std::fs::rename(&aside, &path)?)
    }

    pub(crate) fn reload(&self, host: usize) -> Result<Value> {
        Ok(client(self, host)?.call("POST", "/v1/policy/reload", None)?)
    }

    /// The reloads that a host's journal has: by whom, and why not if it was refused.
    pub(crate) fn reloads(
        &self,
        host: usize,
    ) -> std::result::Result<Vec<(String, Option<String>)>, PerfError> {
        let entries = Journal::read_after(&state(self, host), 0, usize::MAX);
        let entries = entries.map_err(|error| PerfError::Wrong(error.to_string()))?;
        let reload = |entry: Entry| match entry.done.deed {
            Deed::Policy { .. } => Some((entry.done.by, None)),
            Deed::PolicyRefused { why } => Some((entry.done.by, Some(why))),
            _ => None,
        };
        Ok(entries.into_iter().filter_map(reload).collect())
    }

    fn wait_for_reload(&self, host: usize, by: &str) -> Result<()> {
        wait_for(&format!("h{} to reload by {by}", host + 1), PATIENCE, || {
            let done = self.reloads(host)?;
            let found = done
                .iter()
                .any(|(who, refused)| who.contains(by) && refused.is_none());
            Ok(found.then_some(()))
        })?;
        Ok(())
    }

    fn collect(&self, guest: &str, port: u16) -> Result<Running> {
        self.serve(self.guest(guest), &["collect", &port.to_string()])
    }

    /// Numbered datagrams to blue-2, so many a second.
    fn send(&self, port: u16, mark: &str, count: u32, rate: u32) -> Result<Running> {
        let words = [port.to_string(), count.to_string(), rate.to_string()];
        Ok(Running::start(
            mark,
            self.deployment.directory(),
            self.guest("blue-1").command(crate::net::program()).args([
                "actor", "send", "10.1.0.2", &words[0], mark, &words[1], "--rate", &words[2],
            ]),
        )?)
    }
}

/// The numbers that a collector has got, and how many datagrams.
fn numbers(collector: &mut Running, mark: &str) -> (BTreeSet<u32>, usize) {
    let said = collector.output();
    let numbers = said
        .lines()
        .filter_map(|line| line.strip_prefix(mark)?.trim().parse::<u32>().ok());
    let all: Vec<u32> = numbers.collect();
    (all.iter().copied().collect(), all.len())
}

/// The flow to blue-2 that every policy here allows, and the one that some forbid, while policies change.
pub(crate) struct Flows {
    count: u32,
    load: Running,
    allowed: Running,
    pub(crate) other: Running,
    pub(crate) forbidden: Running,
}

impl Flows {
    /// Sends so many datagrams of each, those that are allowed at this rate; both have begun to arrive.
    pub(crate) fn start(net: &Net, count: u32, rate: u32) -> Result<Self> {
        let mut flows = Self {
            count,
            allowed: net.collect("blue-2", ALLOWED)?,
            forbidden: net.collect("blue-2", FORBIDDEN)?,
            load: net.send(ALLOWED, "allowed", count, rate)?,
            other: net.send(FORBIDDEN, "forbidden", count, 500)?,
        };
        wait_for("both flows", PATIENCE, || {
            let both = !numbers(&mut flows.allowed, "allowed").0.is_empty()
                && !numbers(&mut flows.forbidden, "forbidden").0.is_empty();
            Ok(both.then_some(()))
        })?;
        Ok(flows)
    }

    /// Waits until the load has ended and each of the datagrams that are allowed has arrived once.
    pub(crate) fn all_arrive(&mut self) -> Result<()> {
        let Self {
            count, load, allowed, ..
        } = self;
        let wanted = *count as usize;
        load.finish(PATIENCE)?;
        wait_for("every datagram", PATIENCE, || {
            Ok((numbers(allowed, "allowed").1 >= wanted).then_some(()))
        })
        .map_err(|_| format!("{} of {wanted} arrived", numbers(allowed, "allowed").0.len()))?;
        let (all, many) = numbers(allowed, "allowed");
        ensure(all.len() == wanted && many == all.len(), || {
            format!(
                "{} of {wanted} datagrams arrived, {many} with those that came twice",
                all.len()
            )
        })
    }
}

/// Packets that a rule of a host has met.
pub(crate) fn met(net: &Net, host: usize, rule: &str) -> Result<u64> {
    let counters = client(net, host)?.call("GET", "/v1/counters", None)?;
    let rules = counters["rules"].as_array();
    let found = rules.into_iter().flatten().find(|one| one["rule"] == rule);
    found
        .and_then(|one| one["packets"].as_u64())
        .ok_or_else(|| format!("no rule {rule} in {counters}").into())
}

/// Rules come in front and go, guests come and go, keys are others, by each of the three ways and on both hosts at moments of
/// their own: of the flow that every policy allows nothing is lost, and each rule counts its own packets on.
pub(crate) fn under_traffic() -> Result<()> {
    const COUNT: u32 = 60_000;
    let mut net = running("reload", "")?;
    ping(&net, "blue-1", "10.1.0.2")?;
    let before = met(&net, 0, "blue")?;
    let mut flows = Flows::start(&net, COUNT, 5000)?;
    // In front of all others, so that every rule has another number.
    let cut = "rules:\n  - {name: cut, from: any, to: any, protocol: udp, ports: [7200], action: drop}\n  # Guests find";
    net.edit(&[
        ("rules:\n  # Guests find", cut),
        ("  - id: blue-1\n", "  - id: red-9\n    host: h1\n    ports:\n      - {interface: gp-red-9, network: red, mac: \"02:00:00:02:00:09\", addresses: [10.2.0.9]}\n  - id: blue-1\n"),
    ])?;
    let answer = net.reload(0)?;
    let said = answer["changes"].to_string();
    ensure(
        said.contains("rule cut (drop) is new") && said.contains("guest red-9 on h1 is new"),
        || answer.to_string(),
    )?;
    // In force for known flows, too: what was on its way when the answer came has arrived a moment later.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let (_, held) = numbers(&mut flows.forbidden, "forbidden");
    wait_for("the cut to count", PATIENCE, || {
        Ok(met(&net, 0, "cut").is_ok_and(|count| count > 200).then_some(()))
    })?;
    let (_, now) = numbers(&mut flows.forbidden, "forbidden");
    ensure(held == now, || {
        format!("{} datagrams of a flow that is cut arrived", now - held)
    })?;
    net.reload(1)?;
    // Back again, by a signal; meanwhile the files' change is seen by the host that gets none.
    net.edit(&[(
        "  - {name: cut, from: any, to: any, protocol: udp, ports: [7200], action: drop}\n",
        "",
    )])?;
    net.host(0).process.signal(Signal::HUP);
    net.wait_for_reload(0, "SIGHUP")?;
    net.wait_for_reload(1, "a change of its files")?;
    wait_for("the flow that was cut", PATIENCE, || {
        Ok((numbers(&mut flows.forbidden, "forbidden").1 > now).then_some(()))
    })?;
    flows.other.kill();
    // A guest goes, a key is another, containers and groups change.
    net.edit(&[
        ("interface: gp-red-9, network", "interface: gp-red-8, network"),
        ("action: encrypt, key: red-any}", "action: encrypt, key: red-new}"),
        (
            "  - {id: red-any, suite: aes-256-gcm}",
            "  - {id: red-new, suite: aes-256-gcm}",
        ),
        (
            "  - name: quarantine\n",
            "  - {name: watched}\n  - name: quarantine\n",
        ),
    ])?;
    net.reload(1)?;
    net.wait_for_reload(0, "a change of its files")?;
    flows.all_arrive()?;
    let counted = met(&net, 0, "blue")? - before;
    ensure(counted >= u64::from(COUNT), || {
        format!("the rule has counted {counted} of {COUNT} packets through the reloads")
    })?;
    net.stop(0)?;
    net.stop(1).map(drop)
}

/// What is wrong, or cannot change, changes nothing: who asked, the log and the journal have file, line, what and what to do.
pub(crate) fn refused() -> Result<()> {
    let mut net = running("refused", "")?;
    ping(&net, "blue-1", "10.1.0.2")?;
    let generation = |net: &Net| -> Result<Value> { Ok(net.reload(0)?["generation"].clone()) };
    let before = generation(&net)?;
    let mail = "action: encrypt, key: blue-mail}";
    net.edit(&[(mail, "action: encrypt, key: blue-male}")])?;
    let line = 1 + POLICY[..POLICY.find(mail).unwrap_or(0)].matches('\n').count();
    let why = net
        .reload(0)
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    for part in [
        &*format!("policy.yaml:{line}:"),
        "no key \"blue-male\" is declared",
        "did you mean \"blue-mail\"",
    ] {
        ensure(why.contains(part), || format!("`{part}` is not in `{why}`"))?;
    }
    net.wait_for_word(1, "reload by a change of its files: the policy stays as it was")?;
    net.wait_for_word(1, &format!("policy.yaml:{line}:"))?;
    let refused = net.reloads(0)?.pop().and_then(|(_, why)| why);
    ensure(refused.is_some_and(|why| why.contains("blue-male")), || {
        "the journal has no refusal".into()
    })?;
    ping(&net, "blue-2", "10.1.0.1")?;
    net.edit(&[("key: blue-male}", "key: blue-mail}")])?;
    ensure(generation(&net)? == before, || "the rules are others".into())?;
    // What is fixed while it runs.
    let host = net.deployment.directory().join("h1.yaml");
    let text = std::fs::read_to_string(&host)?;
    std::fs::write(&host, text.replace("interface: uplink", "interface: other"))?;
    let why = net
        .reload(0)
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    ensure(
        why.contains("uplink cannot change while guestseal runs: restart"),
        || why.clone(),
    )?;
    std::fs::write(&host, text)?;
    ensure(generation(&net)? == before, || "the rules are others".into())?;
    ping(&net, "blue-1", "10.1.0.2")?;
    net.stop(0)?;
    net.stop(1).map(drop)
}

/// A guest that vanishes is cut off, from the host's stack too, and comes back as it was: in quarantine. A key that no rule
/// names any more has no session from then on.
pub(crate) fn vanished() -> Result<()> {
    let mut net = running("vanished", "")?;
    ping(&net, "red-1", "10.2.0.2")?;
    ping(&net, "blue-1", "10.1.0.2")?;
    let client = client(&net, 0)?;
    let tag = serde_json::json!({"service": "av", "name": "eicar", "severity": 90});
    client.call("POST", "/v1/guests/red-1/tags", Some(&tag))?;
    let declared = POLICY
        .split_once("  - id: red-1\n")
        .and_then(|(_, rest)| {
            Some(format!(
                "  - id: red-1\n{}",
                rest.split_once("  - id: red-2\n")?.0
            ))
        })
        .ok_or("the policy has no red-1")?;
    net.edit(&[(&declared, "")])?;
    net.reload(0)?;
    ensure(client.call("GET", "/v1/guests/red-1", None).is_err(), || {
        "it is still there".into()
    })?;
    // The host would answer, if what the guest sends reached it.
    net.topology.hosts[0].ip("addr add 10.2.0.77/24 dev gp-red-1")?;
    let sent = net.sent_by("red-1");
    let heard = net.guest("red-1").run("ping -c 3 -i 0.1 -W 1 -q 10.2.0.77");
    ensure(heard.is_err() && net.sent_by("red-1") > sent, || {
        format!("the host has heard a guest that it does not have: {heard:?}")
    })?;
    net.topology.hosts[0].ip("addr del 10.2.0.77/24 dev gp-red-1")?;
    net.edit(&[("  - id: red-2\n", &format!("{declared}  - id: red-2\n"))])?;
    net.reload(0)?;
    let guest = client.call("GET", "/v1/guests/red-1", None)?;
    ensure(
        guest["quarantine"] == true && guest["tags"][0]["name"] == "eicar",
        || guest.to_string(),
    )?;
    wait_for("its port", PATIENCE, || {
        let ports = client
            .call("GET", "/v1/ports", None)
            .map_err(|error| PerfError::Wrong(error.to_string()))?;
        let all = ports.as_array();
        let open = all
            .into_iter()
            .flatten()
            .any(|port| port["interface"] == "gp-red-1" && port["open"] == true);
        Ok(open.then_some(()))
    })?;
    client.call("DELETE", "/v1/guests/red-1/tags?service=av&name=*", None)?;
    client
        .call("POST", "/v1/guests/red-1/release", Some(&Value::Null))
        .ok();
    net.pings("red-1", "10.2.0.2")?;
    // The key of red is another: generation 1 of it is on both hosts.
    let secret = guestseal_perf::deployment::random_hex(32)?;
    (0..2).try_for_each(|host| net.deployment.give_key(host, "red-new", 1, &secret))?;
    net.edit(&[
        ("action: encrypt, key: red-any}", "action: encrypt, key: red-new}"),
        (
            "  - {id: red-any, suite: aes-256-gcm}",
            "  - {id: red-new, suite: aes-256-gcm}",
        ),
    ])?;
    (0..2).try_for_each(|host| net.reload(host).map(drop))?;
    ping(&net, "red-1", "10.2.0.2")?;
    for host in 0..2 {
        wait_for(
            "the old session to end and a new one to be there",
            PATIENCE,
            || {
                let Ok(status) = net.deployment.status(host) else {
                    return Ok(None);
                };
                let done = current(&status, "red-any").is_empty() && current(&status, "red-new").len() == 1;
                Ok(done.then_some(()))
            },
        )?;
    }
    net.stop(0)?;
    net.stop(1).map(drop)
}
