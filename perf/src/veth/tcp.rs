//! From guest to guest with the guests' own stacks: one TCP flow, and requests that wait for their answers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::scenario::{Scenario, Setup};
use super::trial::percentile;
use crate::actor;
use crate::process::{PerfError, Running, run, wait_for};

/// One TCP flow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TcpRow {
    /// What carried it.
    pub scenario: String,
    /// What arrived.
    pub bits_per_second: f64,
    /// As a part of what arrived over two bridges.
    pub share_of_bridges: f64,
    /// As a part of what arrived in plaintext over the same two programs.
    pub share_of_plaintext: f64,
}

/// One request after the other, a few bytes each, over UDP.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AnswerRow {
    /// What carried them.
    pub scenario: String,
    /// Whether workers never sleep.
    pub busy_poll: bool,
    /// Answers.
    pub count: u64,
    /// Half took no longer, us.
    pub p50_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
}

impl std::fmt::Display for AnswerRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let polling = if self.busy_poll {
            "busy polling"
        } else {
            "sleeping"
        };
        write!(
            f,
            "{:<14} {polling:<13} p50 {:>7.1} us, p99 {:>7.1} us",
            self.scenario, self.p50_us, self.p99_us
        )
    }
}

/// Both, over bridges, in plaintext and sealed.
pub(super) fn measure(cpus: &[usize], short: bool) -> Result<(Vec<TcpRow>, Vec<AnswerRow>), PerfError> {
    let (seconds, requests) = if short { (2, 2000) } else { (8, 10_000) };
    let (mut rates, mut answers) = (Vec::new(), Vec::new());
    for scenario in [Scenario::TwoBridges, Scenario::TwoPlaintext, Scenario::TwoHosts] {
        let setup = Setup::new(scenario, cpus, false)?;
        rates.push((scenario, tcp(&setup, seconds)?));
        answers.push(ask(&setup, scenario.name(), false, requests)?);
    }
    // A worker that never sleeps wants a CPU of its own: of two CPUs the guests have one and one host the other, while a
    // bridge is the second host.
    for busy_poll in [false, true] {
        for scenario in [Scenario::AfXdp, Scenario::Plaintext] {
            let last = &cpus[cpus.len() - 1..];
            let setup = Setup::new(scenario, last, busy_poll)?;
            setup.bridge(1, "uplink")?;
            let name = format!("{}-bridge", scenario.name());
            answers.push(ask(&setup, &name, busy_poll, requests)?);
        }
    }
    if cpus.len() > 2 {
        let setup = Setup::new(Scenario::TwoHosts, &cpus[1..], true)?;
        answers.push(ask(&setup, Scenario::TwoHosts.name(), true, requests)?);
    }
    let of = |wanted| {
        rates
            .iter()
            .find(|(one, _)| *one == wanted)
            .map_or(f64::NAN, |(_, rate)| *rate)
    };
    let (bridges, plaintext) = (of(Scenario::TwoBridges), of(Scenario::TwoPlaintext));
    let rows = rates
        .iter()
        .map(|(scenario, rate)| TcpRow {
            scenario: scenario.name().into(),
            bits_per_second: *rate,
            share_of_bridges: rate / bridges,
            share_of_plaintext: rate / plaintext,
        })
        .collect();
    Ok((rows, answers))
}

/// Bits a second of one flow.
fn tcp(setup: &Setup, seconds: u32) -> Result<f64, PerfError> {
    let [client, server] = [0, 1].map(|number| &setup.topology.guests[number].namespace);
    let mut command = server.command("iperf3");
    let name = format!("iperf3-{}", std::process::id());
    let mut running = Running::start(
        &name,
        &std::env::temp_dir(),
        command.args(["-s", "-1", "--forceflush"]),
    )?;
    wait_for("iperf3 to listen", Duration::from_secs(10), || {
        running.check_runs()?;
        Ok(running.output().contains("listening").then_some(()))
    })?;
    let mut command = client.command("iperf3");
    let said = run(command.args(["-J", "-c", "10.0.0.2", "-t", &seconds.to_string()]));
    running.remove_output();
    let said: serde_json::Value = serde_json::from_str(&said?).map_err(|error| PerfError::Malformed {
        what: "iperf3's report".into(),
        why: error.to_string(),
    })?;
    let rate = said.pointer("/end/sum_received/bits_per_second");
    rate.and_then(serde_json::Value::as_f64)
        .ok_or_else(|| PerfError::Malformed {
            what: "iperf3's report".into(),
            why: "it has no /end/sum_received/bits_per_second".into(),
        })
}

fn ask(setup: &Setup, scenario: &str, busy_poll: bool, requests: u32) -> Result<AnswerRow, PerfError> {
    let [client, server] = [0, 1].map(|number| &setup.topology.guests[number].namespace);
    let name = format!("echo-{}", std::process::id());
    let mut command = actor::pinned(server, 0)?;
    let mut echo = Running::start(&name, &std::env::temp_dir(), command.args(["echo", "7"]))?;
    let once = |count: u32| {
        let mut command = actor::pinned(client, 0)?;
        run(command.args(["ask", "10.0.0.2:7", &count.to_string()]))
    };
    // Asks until it is there, and warms up.
    let warm = wait_for("the echo", Duration::from_secs(20), || {
        echo.check_runs()?;
        Ok(once(10).ok())
    });
    let said = warm.and_then(|_| once(requests));
    echo.remove_output();
    let mut times: Vec<(u64, u64)> = said?
        .lines()
        .filter_map(|line| Some((line.parse().ok()?, 1)))
        .collect();
    times.sort_unstable();
    Ok(AnswerRow {
        scenario: scenario.into(),
        busy_poll,
        count: times.len() as u64,
        p50_us: percentile(&times, 0.5) as f64 / 1000.0,
        p99_us: percentile(&times, 0.99) as f64 / 1000.0,
    })
}
