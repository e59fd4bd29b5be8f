//! The control socket of a guestseal that carries traffic.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use guestseal::control::api::client::{Client, ClientError};
use guestseal::control::journal::{Deed, Journal};
use guestseal_perf::enforcement;
use guestseal_perf::process::wait_for;
use serde_json::{Value, json};

use crate::net::{Net, PATIENCE, Result, ensure};

pub(crate) fn state(net: &Net, host: usize) -> PathBuf {
    net.deployment.directory().join(format!("state-h{}", host + 1))
}

pub(crate) fn client(net: &Net, host: usize) -> Result<Client> {
    Ok(Client::unix(&state(net, host).join("control.sock"))?)
}

fn tag(number: usize) -> Value {
    json!({"service": "av", "name": format!("n{number}"), "severity": 90})
}

/// Whatever was answered before a SIGKILL is there after the next start: in the guest's container, its tags and the journal.
pub(crate) fn acknowledged() -> Result<()> {
    let mut net = Net::running("ctl-killed", 1)?;
    for round in 0..4 {
        let client = client(&net, 0)?;
        let (mut answered, count) = (Vec::new(), AtomicUsize::new(0));
        let process = &mut net.host(0).process;
        std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                // In the middle of what follows, elsewhere each round.
                let enough = wait_for("answers", PATIENCE, || {
                    Ok((count.load(Ordering::Relaxed) > 3 + 11 * round).then_some(()))
                });
                process.kill();
                enough
            });
            for number in 0.. {
                let number = round * 50 + number % 50;
                match client.call("POST", "/v1/guests/blue-1/tags", Some(&tag(number))) {
                    Ok(_) => answered.push(number),
                    Err(ClientError::Refused(_)) => {}
                    Err(_) => break,
                }
                count.store(answered.len(), Ordering::Relaxed);
            }
            killer.join().map_err(|_| "the killer has ended itself")
        })??;
        ensure(!answered.is_empty(), || {
            "killed before anything was answered".into()
        })?;
        let entries = Journal::read_after(&state(&net, 0), 0, usize::MAX)?;
        let journalled = entries.iter().filter(|entry| match &entry.done.deed {
            Deed::Event { event, .. } => event.what.to_string().contains("tag av/n"),
            _ => false,
        });
        let journalled = journalled.count();
        net.start(0, &[])?;
        let client = self::client(&net, 0)?;
        let guest = client.call("GET", "/v1/guests/blue-1", None)?;
        ensure(guest["quarantine"] == true, || format!("it is free: {guest}"))?;
        let tags: Vec<&str> = guest["tags"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|tag| tag["name"].as_str())
            .collect();
        for number in &answered {
            let name = format!("n{number}");
            ensure(tags.contains(&name.as_str()), || {
                format!("{name} was answered and is lost: {tags:?}, {journalled} in the journal")
            })?;
        }
    }
    net.stop(0)?;
    net.stop(1).map(drop)
}

/// Garbage, oversized bodies and callers that hang cost the traffic nothing.
pub(crate) fn garbage_beside_traffic() -> Result<()> {
    let mut net = Net::running("ctl-garbage", 1)?;
    net.pings("blue-1", "10.1.0.2")?;
    let socket = state(&net, 0).join("control.sock");
    let stop = AtomicBool::new(false);
    let said = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut hanging = Vec::new();
            let large = vec![b'{'; 1 << 20];
            while !stop.load(Ordering::Relaxed) {
                let Ok(mut stream) = UnixStream::connect(&socket) else {
                    continue;
                };
                let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
                let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
                let head = format!(
                    "POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
                    large.len()
                );
                let _ = stream.write_all(head.as_bytes());
                if hanging.len() < 20 {
                    hanging.push(stream);
                    continue;
                }
                let _ = stream.write_all(&large);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read(&mut [0; 4096]);
            }
        });
        let said = net.guest("blue-1").run("ping -i 0.002 -c 1500 -W 2 10.1.0.2");
        stop.store(true, Ordering::Relaxed);
        said
    })?;
    ensure(said.contains("1500 received"), || said.clone())?;
    let status = client(&net, 0)?.call("GET", "/v1/status", None)?;
    ensure(status["host"] == "h1", || status.to_string())?;
    net.stop(0)?;
    net.stop(1).map(drop)
}

/// Each tag is enforced, and the figures are those of the same events.
pub(crate) fn tags_are_enforced() -> Result<()> {
    let report = enforcement::measure(20)?;
    ensure(report.events == 20 && report.packets > 200, || {
        format!("{report:?}")
    })?;
    let ordered = report.host_p50_us > 0.0 && report.host_p50_us <= report.host_p99_us;
    ensure(ordered, || format!("{report:?}"))?;
    let ordered = report.peer_p50_us > 0.0 && report.peer_p50_us <= report.peer_p99_us;
    ensure(ordered, || format!("{report:?}"))
}
