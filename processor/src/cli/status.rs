//! `guestseal status`: what a running guestseal says of itself.

use std::path::PathBuf;

use clap::Args;
use rustix::process::{Pid, test_kill_process};
use serde_json::Value;

use crate::control::config::HostConfig;
use crate::control::status;
use crate::telemetry::totals::{RULES_SHOWN, rule_line};

use super::Failure;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  guestseal status --config host.yaml\n  guestseal status --config host.yaml --json\n\n\
                        Exits with 1 if guestseal does not run with this configuration."
)]
pub(super) struct Status {
    /// The host's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = HostConfig::load_offline(&self.config)?;
        let path = status::path(&config.state_directory);
        let text = std::fs::read_to_string(&path).map_err(|error| {
            format!(
                "{}: no status: {error}; guestseal has not run here",
                path.display()
            )
        })?;
        let value: Value = serde_json::from_str(&text)?;
        let pid = value["pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32));
        if pid.is_none_or(|pid| test_kill_process(pid).is_err()) {
            let at = value["at"].as_str().unwrap_or("an unknown time");
            return Err(format!(
                "guestseal does not run here; its last status is of {at}: {}",
                path.display()
            )
            .into());
        }
        if self.json {
            println!("{text}");
        } else {
            print!("{}", render(&value));
        }
        Ok(())
    }
}

/// A line for each session, and what was done under each generation of a key.
pub(super) fn render_sessions(status: &Value) -> String {
    let mut out = String::new();
    let Some(sessions) = status["sessions"].as_array() else {
        return out;
    };
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    out += &format!(
        "sessions\n  {:<12} {:<12} {:<20} {:<4} {:>7} {:>12} {:>12} {:>8} {:>8} {:>8}\n",
        "peer",
        "network",
        "key.generation",
        "",
        "age s",
        "sent",
        "received",
        "replays",
        "rekey s",
        "path MTU"
    );
    for session in sessions {
        out += &format!(
            "  {:<12} {:<12} {:<20} {:<4} {:>7} {:>12} {:>12} {:>8} {:>8} {:>8}\n",
            text(&session["peer"]),
            text(&session["network"]),
            format!("{}.{}", text(&session["key"]), session["generation"]),
            if session["current"] == true { "now" } else { "old" },
            text(&session["age_seconds"]),
            text(&session["sent_packets"]),
            text(&session["received_packets"]),
            text(&session["replay_drops"]),
            text(&session["next_rekey_seconds"]),
            text(&session["path_mtu"]),
        );
    }
    for (key, usage) in status["keys"].as_object().into_iter().flatten() {
        out += &format!(
            "  under {key}: {} packets, {} bytes, {} sessions, {} SAs, {} hosts{}\n",
            usage["packets"],
            usage["bytes"],
            usage["sessions"],
            usage["sas"],
            usage["hosts"].as_array().map_or(0, Vec::len),
            if usage["used_up"] == true {
                ": USED UP, the next generation is due"
            } else {
                ""
            }
        );
    }
    if let Some(manager) = status["key_manager"].as_object() {
        let answers = if manager["answers"] == true {
            "answers"
        } else {
            "DOES NOT ANSWER"
        };
        out += &format!(
            "  key manager {}: {answers} since {}, last asked {}, {} generations taken, {} ordered{}\n",
            text(&manager["server"]),
            text(&manager["since"]),
            text(&manager["looked"]),
            manager["generations_taken"],
            manager["generations_ordered"],
            manager["why"]
                .as_str()
                .or(manager["why_no_order"].as_str())
                .map_or_else(String::new, |why| format!(": {why}"))
        );
    }
    if status["secrets"]["unlocked"].as_u64() > Some(0) {
        out += &format!(
            "  {} secrets are in memory that may be swapped out\n",
            status["secrets"]["unlocked"]
        );
    }
    if status["secrets"]["all_memory"] == false {
        out += "  traffic keys are in memory that may be swapped out\n";
    }
    for (reason, count) in status["ended"].as_object().into_iter().flatten() {
        out += &format!("  ended, {reason}: {count}\n");
    }
    out
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn render_etcd(status: &Value) -> String {
    let Some(hosts) = status["hosts"].as_object() else {
        return String::new();
    };
    let (since, revision) = (text(&status["since"]), &status["revision"]);
    let mut out = if status["connected"] == true {
        format!("etcd: connected since {since}, revision {revision}\n")
    } else {
        format!("etcd: UNREACHABLE since {since}: {}\n", text(&status["error"]))
    };
    for (reason, count) in status["refused"].as_object().into_iter().flatten() {
        out += &format!("  refused: {reason:<19} {count:>14}\n");
    }
    if let Some(why) = status["policy_error"].as_str() {
        out += &format!("  the policy there is NOT IN FORCE here: {why}\n");
    }
    for (name, host) in hosts {
        let alive = if host["alive"] == true {
            "alive"
        } else {
            "not heard"
        };
        out += &format!("  host {name}: {alive} {}\n", text(&host["version"]));
        if let Some(differs) = host["differs"].as_str() {
            out += &format!("    SAYS {differs} of itself than the policy does\n");
        }
    }
    out
}

pub(super) fn render(status: &Value) -> String {
    let mut out = format!(
        "host {}, process {}, since {}\n",
        text(&status["host"]),
        status["pid"],
        text(&status["since"])
    );
    let totals = &status["totals"];
    out += "packets\n";
    let mut line =
        |name: &str, count: &Value| out += &format!("  {name:<28} {:>14}\n", count.as_u64().unwrap_or(0));
    line("received", &totals["received"]);
    for (name, count) in totals["outcomes"].as_object().into_iter().flatten() {
        match count.as_object() {
            Some(reasons) => reasons
                .iter()
                .for_each(|(reason, count)| line(&format!("dropped: {reason}"), count)),
            None => line(&name.replace('_', " "), count),
        }
    }
    out += &format!("{RULES_SHOWN}\n");
    for rule in totals["rules"].as_array().into_iter().flatten() {
        let monitor = rule["monitor"].as_bool().unwrap_or(false);
        let packets = rule["packets"].as_u64().unwrap_or(0);
        let line = rule_line(text(&rule["action"]), text(&rule["rule"]), monitor, packets);
        out.extend(line.map(|line| line + "\n"));
    }
    out += "containers, guests\n";
    for (name, count) in status["containers"].as_object().into_iter().flatten() {
        out += &format!("  {name:<28} {count:>14}\n");
    }
    for guest in status["guests"].as_array().into_iter().flatten() {
        let pinned = if guest["pinned"].as_bool().unwrap_or(false) {
            ", pinned"
        } else {
            ""
        };
        out += &format!(
            "guest {} in {}{pinned}",
            text(&guest["guest"]),
            text(&guest["container"])
        );
        if let Some(because) = guest["because"].as_str() {
            out += &format!(": {because}, {}", text(&guest["since"]));
        }
        out.push('\n');
        for (tag, severity) in guest["tags"].as_object().into_iter().flatten() {
            out += &format!("  tag {tag}, severity {severity}\n");
        }
        for (template, because) in guest["templates"].as_object().into_iter().flatten() {
            out += &format!("  rules of template {template}: {}\n", text(because));
        }
    }
    for rule in status["transitions"].as_array().into_iter().flatten() {
        let state = if rule["active"] == true {
            "ALSO ACCEPTS"
        } else {
            "no longer accepts"
        };
        out += &format!(
            "rule {} ({}) {state} {}, until {}: {} packets\n",
            text(&rule["rule"]),
            text(&rule["action"]),
            text(&rule["also_accepts"]),
            text(&rule["until"]),
            rule["packets"]
        );
    }
    out += &render_sessions(&status["sessions"]);
    out += &render_etcd(&status["etcd"]);
    let events = &status["events"];
    out += &format!(
        "events: {} accepted, {} malformed, {} transfers\n",
        events["accepted"], events["malformed"], events["transfers"]
    );
    for (reason, count) in events["refused"].as_object().into_iter().flatten() {
        out += &format!("  refused: {reason:<19} {count:>14}\n");
    }
    for (name, source) in status["sources"].as_object().into_iter().flatten() {
        out += &format!("source {name}\n");
        for (what, count) in source.as_object().into_iter().flatten() {
            match count.as_str() {
                Some(text) => out += &format!("  {what}: {text}\n"),
                None if *count == 0 => {}
                None => out += &format!("  {:<28} {count:>14}\n", what.replace('_', " ")),
            }
        }
    }
    out
}
