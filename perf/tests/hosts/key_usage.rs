//! What was done under a key is counted through restarts, and too much of it is said everywhere until there is another one.

use std::process::Command;

use guestseal::control::journal::{Deed, Journal};
use guestseal_perf::deployment::{program, random_hex};
use guestseal_perf::process::wait_for;
use serde_json::Value;

use crate::control::state;
use crate::net::{Net, PATIENCE, Result, ensure};
use crate::sessions::{ping, running};

/// What status says of a generation, once it is so.
fn usage(net: &Net, name: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
    let found = wait_for(&format!("the usage of {name}"), PATIENCE, || {
        let Ok(status) = net.deployment.status(0) else {
            return Ok(None);
        };
        let usage = status["sessions"]["keys"][name].clone();
        Ok(is_so(&usage).then_some(usage))
    })?;
    Ok(found)
}

/// What `guestseal check` warns of for the first host's file, and whether it is a mistake with `--strict`.
fn check(net: &Net) -> Result<(bool, bool)> {
    let file = net.deployment.directory().join("h1.yaml");
    let done = Command::new(program()).arg("check").arg(&file).output()?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure(done.status.success(), || format!("check: {said}"))?;
    let strict = Command::new(program())
        .args(["check", "--strict"])
        .arg(&file)
        .output()?;
    Ok((said.contains("blue-any.1 is used up"), strict.status.success()))
}

fn journalled(net: &Net) -> Result<usize> {
    let entries = Journal::read_after(&state(net, 0), 0, usize::MAX)?;
    let is_it = |deed: &Deed| matches!(deed, Deed::KeyUsedUp { key } if key == "blue-any.1");
    Ok(entries.iter().filter(|entry| is_it(&entry.done.deed)).count())
}

/// Counted over two runs, used up in the second one, and over with the next generation.
pub(crate) fn used_up() -> Result<()> {
    let mut net = running("usage", "  key-limit: {packets: 16}\n")?;
    for _ in 0..4 {
        ping(&net, "blue-1", "10.1.0.2")?;
    }
    let before = usage(&net, "blue-any.1", |usage| usage["packets"].as_u64() >= Some(8))?;
    ensure(before["hosts"] == serde_json::json!(["h2"]), || {
        before.to_string()
    })?;
    ensure(before["used_up"] == false && !check(&net)?.0, || {
        before.to_string()
    })?;
    net.stop(0)?;
    net.start(0, &[])?;
    for _ in 0..4 {
        wait_for("a ping after the restart", PATIENCE, || {
            Ok(ping(&net, "blue-1", "10.1.0.2").ok())
        })?;
    }
    let after = usage(&net, "blue-any.1", |usage| usage["used_up"] == true)?;
    ensure(
        after["packets"].as_u64() >= Some(16) && after["sessions"].as_u64() >= Some(2),
        || format!("{before}, then {after}"),
    )?;
    net.wait_for_word(0, "key blue-any.1 is used up")?;
    wait_for("the journal's entry", PATIENCE, || {
        Ok(journalled(&net).is_ok_and(|count| count == 1).then_some(()))
    })?;
    ensure(check(&net)? == (true, false), || {
        "check does not say it".to_owned()
    })?;
    // It asks, and does not stop the traffic.
    ping(&net, "blue-1", "10.1.0.2")?;
    let secret = random_hex(32)?;
    for host in 0..2 {
        net.deployment.give_key(host, "blue-any", 2, &secret)?;
    }
    usage(&net, "blue-any.2", |usage| usage["sessions"].as_u64() >= Some(1))?;
    wait_for("check to be content", PATIENCE, || {
        Ok(check(&net).is_ok_and(|(said, _)| !said).then_some(()))
    })?;
    for host in 0..2 {
        net.stop(host)?;
    }
    Ok(())
}
