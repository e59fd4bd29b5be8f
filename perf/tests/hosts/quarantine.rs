//! What becomes of sessions when something happens to guests.

use guestseal_perf::deployment::Deployment;
use guestseal_perf::etcd::Etcd;
use guestseal_perf::process::{PerfError, wait_for};
use serde_json::Value;

use crate::net::{Net, PATIENCE, POLICY, Result, ensure};
use crate::sessions::{current, ping, running_under};

/// Three blue guests, two of them on the first host.
fn policy() -> String {
    let red = "  - id: red-1\n";
    let blue = "  - id: blue-3\n    host: h1\n    labels: {tenant: blue}\n    ports:\n      - {interface: gp-blue-3, network: blue, \
                mac: \"02:00:00:01:00:03\", addresses: [10.1.0.3, \"fd00:1::3\"]}\n";
    POLICY.replace(red, &format!("{blue}{red}"))
}

/// Whether one of a few pings comes back soon.
fn is_answered(net: &Net, from: &str, to: &str) -> bool {
    net.guest(from)
        .run(&format!("ping -c 3 -i 0.2 -W 1 -q {to}"))
        .is_ok()
}

/// Numbers of the sessions that a host seals with under a key.
fn sealing(net: &Net, host: usize, key: &str) -> std::result::Result<Vec<Value>, PerfError> {
    let status = net.status(host)?;
    let sessions = current(&status, key);
    Ok(sessions.iter().map(|session| session["number"].clone()).collect())
}

fn ended(net: &Net, host: usize, reason: &str) -> std::result::Result<u64, PerfError> {
    let status = net.status(host)?;
    Ok(status["sessions"]["ended"][reason].as_u64().unwrap_or(0))
}

/// Waits until a host seals with so many sessions under a key, and has ended so many for a reason.
fn wait_for_sessions(
    net: &Net,
    host: usize,
    key: &str,
    count: usize,
    (reason, times): (&str, u64),
) -> Result<()> {
    let what = format!("host {host} to have {count} sessions under {key} and {times} ended: {reason}");
    wait_for(&what, PATIENCE, || {
        let is_so = sealing(net, host, key)?.len() == count && ended(net, host, reason)? == times;
        Ok(is_so.then_some(()))
    })
    .map_err(|error| {
        let said = (0..2).map(|host| net.status(host).map(|status| status["sessions"].to_string()));
        let said: Vec<String> = said.map(|said| said.unwrap_or_default()).collect();
        format!("{error}: {}", said.join("\n")).into()
    })
}

/// Waits until no host seals under the key of the blue guests any more, and each has ended so many sessions, first or second.
fn wait_for_end(net: &Net, times: u64) -> Result<()> {
    wait_for("both hosts to end their session", PATIENCE, || {
        let over = |host| {
            let count = ended(net, host, "unusable")? + ended(net, host, "by-peer")?;
            Ok::<bool, PerfError>(count == times && sealing(net, host, "blue-any")?.is_empty())
        };
        Ok((over(0)? && over(1)?).then_some(()))
    })?;
    Ok(())
}

/// The last guest under a key ends its session, on both hosts, whichever of them knows first; not one before it, and not those
/// of other keys. What is released goes on at once.
pub(crate) fn the_last_guest_ends_the_session() -> Result<()> {
    let mut net = running_under("quarantine", &policy(), "")?;
    ping(&net, "blue-1", "10.1.0.2")?;
    ping(&net, "blue-3", "10.1.0.2")?;
    ping(&net, "red-1", "10.2.0.2")?;
    for host in 0..2 {
        wait_for_sessions(&net, host, "blue-any", 1, ("unusable", 0))?;
        wait_for_sessions(&net, host, "red-any", 1, ("unusable", 0))?;
    }
    let (blue, red) = (sealing(&net, 0, "blue-any")?, sealing(&net, 0, "red-any")?);

    // Another guest may use it yet.
    net.tag(0, "blue-1", "eicar")?;
    ping(&net, "blue-3", "10.1.0.2")?;
    ensure(!is_answered(&net, "blue-1", "10.1.0.2"), || {
        "blue-1 is in quarantine and sends".to_owned()
    })?;
    ensure(sealing(&net, 0, "blue-any")? == blue, || {
        "another session".to_owned()
    })?;

    // Nobody may on this host. The other one does not know, hears of the end, and makes it anew: its guest sends.
    net.tag(0, "blue-3", "eicar")?;
    wait_for_sessions(&net, 0, "blue-any", 0, ("unusable", 1))?;
    wait_for_sessions(&net, 1, "blue-any", 0, ("by-peer", 1))?;
    ensure(!is_answered(&net, "blue-2", "10.1.0.3"), || {
        "blue-3 is in quarantine and is sent to".to_owned()
    })?;
    wait_for_sessions(&net, 1, "blue-any", 1, ("by-peer", 1))?;
    net.tag(1, "blue-1", "eicar")?;
    ensure(ended(&net, 1, "unusable")? == 0, || {
        "blue-3 may, it believes".to_owned()
    })?;
    net.tag(1, "blue-3", "eicar")?;
    for host in 0..2 {
        wait_for_sessions(&net, host, "blue-any", 0, ("unusable", 1))?;
    }
    wait_for_sessions(&net, 0, "blue-any", 0, ("by-peer", 1))?;
    ensure(sealing(&net, 0, "red-any")? == red, || {
        "red is another's".to_owned()
    })?;

    for host in 0..2 {
        net.clear(host, "blue-1")?;
        net.ctl(host, &["release", "blue-1"])?;
    }
    ping(&net, "blue-1", "10.1.0.2")?;
    ping(&net, "red-1", "10.2.0.2")?;
    for host in 0..2 {
        wait_for_sessions(&net, host, "blue-any", 1, ("unusable", 1))?;
    }
    ensure(sealing(&net, 0, "red-any")? == red, || {
        "red is another's".to_owned()
    })?;
    // Another policy, which both read, seals under the same key between guests that there are none of.
    let whom = "from: {network: blue}, to: {network: blue}, action: encrypt, key: blue-any";
    let nobody = whom.replacen("{network: blue}", "{label: {tenant: nobody}}", 1);
    net.edit(&[(whom, &nobody)])?;
    wait_for_end(&net, 3)?;
    for host in 0..2 {
        net.stop(host)?;
    }
    Ok(())
}

/// One host is told, and it is not the guest's own: both end the session.
pub(crate) fn hosts_that_share_end_it_together() -> Result<()> {
    let deployment = Deployment::with_sessions("quarantine-shared", POLICY)?;
    let guests = deployment.guests(1);
    let mut net = Net::of(deployment, 1, &guests)?;
    let etcd = Etcd::start(net.deployment.directory(), &net.topology)?;
    for host in 0..2 {
        net.write_session_host(host, &etcd.section(None))?;
        net.start(host, &[])?;
    }
    ping(&net, "blue-1", "10.1.0.2")?;
    for host in 0..2 {
        wait_for_sessions(&net, host, "blue-any", 1, ("unusable", 0))?;
    }
    net.tag(0, "blue-2", "eicar")?;
    wait_for_end(&net, 1)?;
    ensure(!is_answered(&net, "blue-1", "10.1.0.2"), || {
        "blue-2 is in quarantine and is sent to".to_owned()
    })?;
    for host in 0..2 {
        ensure(sealing(&net, host, "blue-any")?.is_empty(), || {
            format!("host {host} has made it anew")
        })?;
    }
    net.clear(1, "blue-2")?;
    wait_for("the guest to be released", PATIENCE, || {
        Ok(ping(&net, "blue-1", "10.1.0.2").ok())
    })?;
    for host in 0..2 {
        net.stop(host)?;
    }
    Ok(())
}
