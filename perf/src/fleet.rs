//! What a fleet costs each of its hosts: one tag, one move, one policy change, and reading everything again.
//!
//! The control code of one host has the policy of the whole fleet, and is told what etcd tells every host: keys of
//! guests, as another host's control code writes them. What is counted is the host's own: from the bytes of a key to the rules, the
//! endpoints and the journal that follow from it, on disk. Not counted are gRPC and TLS, and the workers' taking of the tables.

use std::fmt::Write;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use guestseal::control::guests::{Guests, now};
use guestseal::control::moves::Moved;
use guestseal::path::endpoints::Endpoints;
use guestseal_rules::compile::Ruleset;
use guestseal_rules::containers::{Changes, Containers, Shared};
use guestseal_rules::event::Event;
use guestseal_rules::load::{Source, load_policy};
use guestseal_rules::model::{GuestIndex, HostIndex, Policy};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::process::{PerfError, json_text};
use crate::statistics::median;

/// Guests of one logical network.
const NETWORK: u32 = 1000;

/// `guestseal-perf fleet`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Per host: bytes of keys and values (of the policy's text), its control thread's CPU time and the time until it is on disk.\n\nExamples:\n  guestseal-perf fleet\n  guestseal-perf fleet --hosts 100 --guests 5000 --json"
)]
pub struct Options {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Hosts
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=10_000))]
    hosts: u32,
    /// Guests
    #[arg(long, default_value_t = 50_000, value_name = "N", value_parser = clap::value_parser!(u32).range(10..=80_000))]
    guests: u32,
    /// How many tags and moves
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    events: u32,
}

/// What something costs one host.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cost {
    /// Bytes that it is told.
    pub bytes: usize,
    /// CPU time of its control thread, us.
    pub cpu_us: f64,
    /// Time until it is done, us.
    pub time_us: f64,
}

/// What a fleet costs one host; medians.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Hosts.
    pub hosts: u32,
    /// Guests.
    pub guests: u32,
    /// A guest is tagged, and goes to quarantine.
    pub tag: Cost,
    /// A guest moves to another host.
    pub r#move: Cost,
    /// The policy changes; reading, checking and compiling are not on the control thread.
    pub policy: Cost,
    /// All keys are read again, of which every guest has one, and none is news.
    pub read_again: Cost,
}

fn policy_text(hosts: u32, guests: u32) -> String {
    let mut text = String::from("hosts:\n");
    for host in 0..hosts {
        let _ = writeln!(
            text,
            "  - {{name: h{host}, address: 172.16.{}.{}}}",
            host / 250,
            host % 250 + 1
        );
    }
    text += "networks:\n";
    let networks = guests.div_ceil(NETWORK);
    for network in 0..networks {
        let _ = writeln!(text, "  - {{name: n{network}}}");
    }
    text += "keys:\n";
    for network in 0..networks {
        let _ = writeln!(text, "  - {{id: k{network}}}");
    }
    text += "guests:\n";
    for guest in 0..guests {
        let [_, a, b, c] = guest.to_be_bytes();
        let _ = writeln!(
            text,
            "  - {{id: g{guest}, host: h{}, ports: [{{interface: p{guest}, network: n{}, mac: '02:00:00:{a:02x}:{b:02x}:{c:02x}', addresses: [10.{a}.{b}.{c}]}}]}}",
            guest % hosts,
            guest / NETWORK
        );
    }
    text += "containers:\n  - {name: default, transfers: [{name: infected, when: {tag: {service: av}}, to: quarantine}]}\n  \
             - name: quarantine\n    quarantine: true\n    rules: [{name: alone, from: members, to: any, action: drop}]\n\
             rules:\n  - {name: arp, from: any, to: any, ethertype: arp, action: plaintext}\n";
    for network in 0..networks {
        let _ = writeln!(
            text,
            "  - {{name: r{network}, from: {{network: n{network}}}, to: {{network: n{network}}}, action: encrypt, key: k{network}}}"
        );
    }
    text
}

fn load(text: &str) -> Result<Arc<Policy>, PerfError> {
    let source = Source {
        name: "policy.yaml".into(),
        text: text.to_owned(),
    };
    let policy = load_policy(&[source]).map_err(|errors| PerfError::Malformed {
        what: "policy".into(),
        why: errors.to_string(),
    })?;
    Ok(Arc::new(policy))
}

fn wrong(error: &dyn std::error::Error) -> PerfError {
    PerfError::Wrong(guestseal::control::supervise::chain(error))
}

/// What something costs this thread.
fn cost<T>(bytes: usize, work: impl FnOnce() -> Result<T, PerfError>) -> Result<(Cost, T), PerfError> {
    let cpu = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
    };
    let (began, cpu_began) = (Instant::now(), cpu());
    let done = work()?;
    let cost = Cost {
        bytes,
        cpu_us: cpu() - cpu_began,
        time_us: began.elapsed().as_secs_f64() * 1e6,
    };
    Ok((cost, done))
}

fn medians(costs: &[Cost]) -> Cost {
    let of = |figure: fn(&Cost) -> f64| median(&costs.iter().map(figure).collect::<Vec<_>>());
    Cost {
        bytes: of(|cost| cost.bytes as f64) as usize,
        cpu_us: of(|cost| cost.cpu_us),
        time_us: of(|cost| cost.time_us),
    }
}

/// What another host writes into the key of a guest that it was told has a virus.
fn tagged(other: &mut Containers, guest: &str) -> Result<Vec<u8>, PerfError> {
    let event = serde_json::json!({"guest": guest, "tag": {"service": "av", "name": "malware.eicar", "severity": 90}});
    let event: Event = serde_json::from_value(event).map_err(|error| wrong(&error))?;
    other
        .apply(now(), &event, &mut Changes::default())
        .map_err(|error| wrong(&error))?;
    let shared = other.share(guest, "h1");
    serde_json::to_vec(&shared).map_err(|error| wrong(&error))
}

/// What a host does with what a key says; whether it is news.
fn hear(guests: &mut Guests, guest: &str, value: &[u8]) -> Result<bool, PerfError> {
    let told: Shared = serde_json::from_slice(value).map_err(|error| wrong(&error))?;
    let news = guests.containers().news(guest, &told);
    let (news, _) = news.map_err(|error| wrong(&error))?;
    if news.is_empty() {
        return Ok(false);
    }
    let taken = guests.hear(now(), guest, news);
    taken.map_err(|error| wrong(&error))?;
    Ok(true)
}

/// Measures and prints.
///
/// # Errors
/// If the policy is none, or the state directory cannot be written.
pub fn run(options: &Options) -> Result<(), PerfError> {
    let directory = std::env::temp_dir().join(format!("guestseal-fleet-{}", std::process::id()));
    let report = measure(options, &directory);
    let _ = std::fs::remove_dir_all(&directory);
    let report = report?;
    if options.json {
        println!("{}", json_text("fleet", &report)?);
        return Ok(());
    }
    println!("{} hosts, {} guests; per host:", report.hosts, report.guests);
    for (name, cost) in [
        ("a tag", report.tag),
        ("a move", report.r#move),
        ("a policy", report.policy),
        ("all again", report.read_again),
    ] {
        let Cost {
            bytes,
            cpu_us,
            time_us,
        } = cost;
        println!("  {name:<10} {bytes:>10} bytes {cpu_us:>12.0} us CPU {time_us:>12.0} us");
    }
    Ok(())
}

fn measure(options: &Options, directory: &Path) -> Result<Report, PerfError> {
    let text = policy_text(options.hosts, options.guests);
    let policy = load(&text)?;
    let mut other = Containers::new(Arc::clone(&policy), now());
    let mut guests = Guests::open(&policy, directory, None).map_err(|error| wrong(&error))?;
    let names: Vec<String> = policy.guests.iter().map(|guest| guest.uuid.clone()).collect();
    let of_key = |kind: &str, guest: &str| format!("/guestseal/{kind}/{guest}").len();

    let mut tags = Vec::new();
    for guest in names.iter().take(options.events as usize) {
        let value = tagged(&mut other, guest)?;
        let (cost, is_news) = cost(of_key("guests", guest) + value.len(), || {
            let is_news = hear(&mut guests, guest, &value)?;
            guests.settle(now(), |_| false);
            guests.commit().map_err(|error| wrong(&error))?;
            Ok(is_news)
        })?;
        if !is_news {
            return Err(PerfError::Wrong(format!("the tag of {guest} is no news")));
        }
        tags.push(cost);
    }

    let mut moves = Vec::new();
    for (number, guest) in (0u32..).zip(names.iter().take(options.events as usize)) {
        let to = HostIndex(((number + 1) % options.hosts) as u16);
        let declared = policy.guests[number as usize].host;
        let at = Moved {
            to: policy.hosts[to.index()].name.clone(),
            declared: policy.hosts[declared.index()].name.clone(),
            steps: 1,
        };
        let value = serde_json::json!({"host": "h1", "to": at.to, "declared": at.declared, "steps": 1, "taken": true});
        let bytes = of_key("endpoints", guest) + value.to_string().len();
        let (cost, _) = cost(bytes, || {
            let moved = GuestIndex(number);
            let host_of = |guest: GuestIndex| match guest == moved {
                true => to,
                false => policy.guests[guest.index()].host,
            };
            let endpoints = Endpoints::with_hosts(&policy, host_of);
            guests.locate(now(), "host h1 through etcd", guest, at);
            guests.commit().map_err(|error| wrong(&error))?;
            Ok(endpoints)
        })?;
        moves.push(cost);
    }

    let changed = text.replace("{name: arp,", "{name: neighbours,");
    let (policy_cost, _) = cost(changed.len(), || {
        let policy = load(&changed)?;
        let (containers, _) = guests.containers().adopt(Arc::clone(&policy), now());
        let memberships = containers.memberships();
        Ruleset::compile(&policy, memberships, containers.flows(), NonZeroU32::MIN)
            .map_err(|error| wrong(&error))
    })?;

    let mut keys = Vec::new();
    for (number, guest) in names.iter().enumerate() {
        if number >= options.events as usize {
            let value = tagged(&mut other, guest)?;
            hear(&mut guests, guest, &value)?;
            keys.push((guest, value));
        } else if let Some(shared) = other.share(guest, "h1") {
            keys.push((guest, serde_json::to_vec(&shared).map_err(|error| wrong(&error))?));
        }
    }
    guests.settle(now(), |_| false);
    guests.commit().map_err(|error| wrong(&error))?;
    let bytes = keys
        .iter()
        .map(|(guest, value)| of_key("guests", guest) + value.len())
        .sum();
    let (read_again, news) = cost(bytes, || {
        let mut news = 0;
        for (guest, value) in &keys {
            news += u32::from(hear(&mut guests, guest, value)?);
        }
        Ok(news)
    })?;
    if news > 0 {
        return Err(PerfError::Wrong(format!(
            "{news} keys that were read again were news"
        )));
    }
    Ok(Report {
        hosts: options.hosts,
        guests: options.guests,
        tag: medians(&tags),
        r#move: medians(&moves),
        policy: policy_cost,
        read_again,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_fleet_is_measured() {
        let options = Options {
            json: false,
            hosts: 3,
            guests: 20,
            events: 5,
        };
        let directory = tempfile::tempdir().unwrap();
        let report = measure(&options, directory.path()).unwrap();
        for cost in [report.tag, report.r#move, report.policy, report.read_again] {
            assert!(cost.bytes > 0 && cost.time_us > 0.0, "{report:?}");
        }
        assert!(report.tag.bytes < 1000, "{report:?}");
    }
}
