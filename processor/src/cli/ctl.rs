//! `guestseal ctl`: asks a running guestseal, and tells it what to do.

use std::fmt::Write;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::control::api::client::{Client, Server};
use crate::control::api::openapi;
use crate::control::config::HostConfig;

use super::{Failure, status, table};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  guestseal ctl --config host.yaml guests\n  \
                  guestseal ctl --config host.yaml tag set web-1 --service av --name malware.eicar --severity 90\n  \
                  guestseal ctl --config host.yaml pin web-1 quarantine\n  \
                  guestseal ctl --socket /run/guestseal/control.sock follow --json\n  \
                  guestseal ctl --connect h1.example:7443 --ca ca.pem --certificate me.pem --key me.key status\n\n\
                  Exits with 0 when what was asked is in force and durable, with 1 when it is refused or nobody answers.")]
pub(super) struct Ctl {
    /// The host's configuration: it says where the socket is
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The control socket
    #[arg(long, value_name = "PATH", global = true, conflicts_with = "config")]
    socket: Option<PathBuf>,
    /// The control port of a host, by the name in its certificate
    #[arg(long, value_name = "NAME:PORT", global = true, conflicts_with_all = ["config", "socket"])]
    connect: Option<String>,
    /// With --connect: the authority of the host's certificate
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
    /// With --connect: one's own certificate
    #[arg(long, value_name = "FILE", global = true)]
    certificate: Option<PathBuf>,
    /// With --connect: its key
    #[arg(long, value_name = "FILE", global = true)]
    key: Option<PathBuf>,
    /// Write JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything in short
    Status,
    /// All guests, or one of them
    Guests {
        /// Id or UUID
        guest: Option<String>,
    },
    /// All containers and who is in them
    Containers,
    /// The guest ports of the host
    Ports,
    /// Where all guest ports are
    Endpoints,
    /// Security associations
    Sas,
    /// Packets by outcome and rule
    Counters,
    /// Latencies by direction and outcome
    Histograms,
    /// Tags of guests
    Tag {
        #[command(subcommand)]
        command: TagCommand,
    },
    /// Moves a guest into a container; the rules may move it on
    Transfer {
        /// Id or UUID
        guest: String,
        /// The container
        container: String,
    },
    /// Holds a guest in a container, whatever the rules say
    Pin {
        /// Id or UUID
        guest: String,
        /// The container
        container: String,
    },
    /// Gives a pinned guest back to where it was
    Unpin {
        /// Id or UUID
        guest: String,
    },
    /// Moves a guest back to where it came from
    Release {
        /// Id or UUID
        guest: String,
    },
    /// Tells of an event, as it stands in a file of events
    Event {
        /// JSON
        event: String,
    },
    /// Guest ports that come and go while guestseal runs
    Port {
        #[command(subcommand)]
        command: PortCommand,
    },
    /// Says that a guest is on another host from now on; every host is to be told
    Move {
        /// Id or UUID
        guest: String,
        /// The host
        #[arg(long, value_name = "HOST")]
        to: String,
    },
    /// Reads the host's file and the policy's files again; a mistake in them changes nothing
    Reload,
    /// Tells of something in the words of a source, which the file of sources maps to an event
    #[command(after_help = REPORT_HELP)]
    Report {
        /// The source
        source: String,
        /// The report, in JSON; what the other arguments say is added to it
        #[arg(default_value = "{}", value_name = "JSON")]
        report: String,
        /// A field of the report
        #[arg(long = "field", value_name = "NAME=VALUE")]
        fields: Vec<String>,
        /// Every variable of the environment whose name begins so is a field
        #[arg(long = "environment", value_name = "PREFIX")]
        prefix: Option<String>,
    },
    /// Who did what and when
    Journal {
        /// Entries behind this number
        #[arg(long, default_value_t = 0, value_name = "N")]
        after: u64,
        /// At most so many
        #[arg(long, default_value_t = 1000, value_name = "N")]
        most: usize,
    },
    /// What is done from now on, as it is done
    Follow,
    /// Prints the description of the control socket's HTTP in OpenAPI; needs no running guestseal
    Openapi,
}

const REPORT_HELP: &str = "Examples:\n  \
    guestseal ctl --config host.yaml report av --environment CLAM_VIRUSEVENT_\n  \
    guestseal ctl --config host.yaml report logins --environment PAM_ --field \"groups=$(id -nG \"$PAM_USER\")\"\n  \
    guestseal ctl --config host.yaml report edr '{\"vm\": \"web-1\", \"score\": 80}'";

#[derive(Debug, Subcommand)]
enum PortCommand {
    /// A guest's card is behind an interface, whatever the policy calls that; with --network, of a guest that is in no file of it
    Add {
        /// Id or UUID of the guest
        guest: String,
        /// The logical network, of a guest that is in no file of the policy
        #[arg(long)]
        network: Option<String>,
        /// An address of that guest; repeated for more
        #[arg(long, value_name = "IP", requires = "network")]
        address: Vec<String>,
        /// The host of that guest; without it this one
        #[arg(long, requires = "network")]
        host: Option<String>,
        /// The UUID of that guest; without it its id
        #[arg(long, requires = "network")]
        uuid: Option<String>,
        /// The card's MAC, as the policy has it
        #[arg(long)]
        mac: String,
        /// The interface
        #[arg(long)]
        interface: String,
    },
    /// An interface that was added is no guest port any more
    Remove {
        /// The interface
        interface: String,
        /// The host whose it is; without it this one
        #[arg(long)]
        host: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum TagCommand {
    /// Sets a tag, or sets it once more
    Set {
        /// Id or UUID of the guest
        guest: String,
        /// The security service
        #[arg(long)]
        service: String,
        /// The tag's name
        #[arg(long)]
        name: String,
        /// How bad, 0 to 100
        #[arg(long, value_parser = clap::value_parser!(u8).range(..=100))]
        severity: u8,
        /// How long it lasts if it is not set again, such as 12h; without it until it is cleared
        #[arg(long, value_name = "DURATION")]
        lasts: Option<String>,
    },
    /// Clears tags; * stands for any characters
    Clear {
        /// Id or UUID of the guest
        guest: String,
        /// The security service
        #[arg(long)]
        service: String,
        /// The tag's name
        #[arg(long, default_value = "*")]
        name: String,
    },
}

impl Ctl {
    pub(super) fn run(self) -> Result<(), Failure> {
        if matches!(self.command, Command::Openapi) {
            println!("{}", serde_json::to_string_pretty(&openapi())?);
            return Ok(());
        }
        let client = Client::new(self.server()?)?;
        let get = |path: &str| client.call("GET", path, None);
        let post = |path: &str, body: &Value| client.call("POST", path, Some(body));
        let answer = match &self.command {
            Command::Status => get("/v1/status")?,
            Command::Guests { guest: None } => get("/v1/guests")?,
            Command::Guests { guest: Some(guest) } => get(&of_guest(guest, ""))?,
            Command::Containers => get("/v1/containers")?,
            Command::Ports => get("/v1/ports")?,
            Command::Endpoints => get("/v1/endpoints")?,
            Command::Sas => get("/v1/security-associations")?,
            Command::Counters => get("/v1/counters")?,
            Command::Histograms => get("/v1/histograms")?,
            Command::Tag {
                command:
                    TagCommand::Set {
                        guest,
                        service,
                        name,
                        severity,
                        lasts,
                    },
            } => {
                let mut body = json!({"service": service, "name": name, "severity": severity});
                if let Some(lasts) = lasts {
                    body["lasts"] = lasts.as_str().into();
                }
                post(&of_guest(guest, "/tags"), &body)?
            }
            Command::Tag {
                command: TagCommand::Clear { guest, service, name },
            } => {
                let query = format!("/tags?service={}&name={}", encoded(service), encoded(name));
                client.call("DELETE", &of_guest(guest, &query), None)?
            }
            Command::Transfer { guest, container } => {
                post(&of_guest(guest, "/transfer"), &json!({"container": container}))?
            }
            Command::Pin { guest, container } => {
                post(&of_guest(guest, "/pin"), &json!({"container": container}))?
            }
            Command::Unpin { guest } => client.call("DELETE", &of_guest(guest, "/pin"), None)?,
            Command::Release { guest } => post(&of_guest(guest, "/release"), &Value::Null)?,
            Command::Event { event } => {
                let event = serde_json::from_str(event).map_err(|error| format!("the event: {error}"))?;
                post("/v1/events", &event)?
            }
            Command::Port {
                command:
                    PortCommand::Add {
                        guest,
                        network,
                        address,
                        host,
                        uuid,
                        mac,
                        interface,
                    },
            } => {
                let body = json!({
                    "guest": guest, "mac": mac, "interface": interface,
                    "network": network, "addresses": address, "host": host, "uuid": uuid,
                });
                post("/v1/ports", &body)?
            }
            Command::Port {
                command: PortCommand::Remove { interface, host },
            } => {
                let host = host.as_ref().map(|host| format!("?host={}", encoded(host)));
                let path = format!("/v1/ports/{}{}", encoded(interface), host.unwrap_or_default());
                client.call("DELETE", &path, None)?
            }
            Command::Move { guest, to } => post(&of_guest(guest, "/move"), &json!({"host": to}))?,
            Command::Reload => post("/v1/policy/reload", &Value::Null)?,
            Command::Report {
                source,
                report,
                fields,
                prefix,
            } => {
                let report = self::report(report, fields, prefix.as_deref())?;
                post(&format!("/v1/sources/{}/reports", encoded(source)), &report)?
            }
            Command::Journal { after, most } => get(&format!("/v1/journal?after={after}&most={most}"))?,
            Command::Follow => {
                client.follow("/v1/events", |name, data| {
                    self.show_news(name, data);
                    true
                })?;
                return Err("guestseal has ended".into());
            }
            Command::Openapi => Value::Null,
        };
        if self.json {
            println!("{}", serde_json::to_string_pretty(&answer)?);
        } else {
            print!("{}", self.render(&answer));
        }
        Ok(())
    }

    fn server(&self) -> Result<Server, Failure> {
        if let Some(address) = &self.connect {
            let needed = |file: &Option<PathBuf>, what: &str| {
                file.clone()
                    .ok_or_else(|| format!("--connect needs {what}: both sides show certificates"))
            };
            return Ok(Server::Tls {
                address: address.clone(),
                authority: needed(&self.ca, "--ca")?,
                certificate: needed(&self.certificate, "--certificate")?,
                key: needed(&self.key, "--key")?,
            });
        }
        match (&self.socket, &self.config) {
            (Some(socket), _) => Ok(Server::Unix(socket.clone())),
            (None, Some(config)) => Ok(Server::Unix(HostConfig::load_offline(config)?.api.socket)),
            (None, None) => {
                Err("where is guestseal? Expected --config FILE, --socket PATH or --connect NAME:PORT".into())
            }
        }
    }

    fn show_news(&self, name: Option<&str>, data: &str) {
        match (name, serde_json::from_str::<Value>(data)) {
            (Some("lost"), _) => eprintln!("guestseal: {data} events were missed"),
            (_, Ok(done)) if !self.json => println!("{}", entry_line(&done)),
            _ => println!("{data}"),
        }
        // Whoever reads a pipe wants it now.
        if !std::io::stdout().is_terminal() {
            let _ = std::io::Write::flush(&mut std::io::stdout());
        }
    }

    fn render(&self, answer: &Value) -> String {
        let all = answer.as_array().map(Vec::as_slice).unwrap_or_default();
        match &self.command {
            Command::Status => status::render(answer),
            Command::Guests { guest: None } => table::table(
                &["guest", "host", "container", "pinned", "tags", "because"],
                all,
                |guest| {
                    vec![
                        text(&guest["guest"]),
                        text(&guest["host"]),
                        text(&guest["container"]),
                        yes(&guest["pinned"]),
                        tags(guest),
                        text(&guest["because"]),
                    ]
                },
            ),
            Command::Containers => table::table(&["container", "quarantine", "guests"], all, |container| {
                vec![
                    text(&container["container"]),
                    yes(&container["quarantine"]),
                    list(&container["guests"]),
                ]
            }),
            Command::Ports => table::table(
                &["interface", "open", "guest", "network", "MAC", "addresses"],
                all,
                |port| {
                    vec![
                        text(&port["interface"]),
                        yes(&port["open"]),
                        text(&port["guest"]),
                        text(&port["network"]),
                        text(&port["mac"]),
                        list(&port["addresses"]),
                    ]
                },
            ),
            Command::Endpoints => table::table(
                &["network", "MAC", "addresses", "guest", "host", "VTEP"],
                all,
                |port| {
                    vec![
                        text(&port["network"]),
                        text(&port["mac"]),
                        list(&port["addresses"]),
                        text(&port["guest"]),
                        text(&port["host"]),
                        list(&port["vtep"]),
                    ]
                },
            ),
            Command::Sas => {
                let manual = answer["manual"].as_array().map(Vec::as_slice).unwrap_or_default();
                let manual = table::table(
                    &[
                        "name",
                        "direction",
                        "SPI",
                        "key",
                        "network",
                        "peer",
                        "mode",
                        "next sequence",
                    ],
                    manual,
                    |sa| {
                        vec![
                            text(&sa["name"]),
                            text(&sa["direction"]),
                            text(&sa["spi"]),
                            text(&sa["key"]),
                            text(&sa["network"]),
                            text(&sa["peer"]),
                            text(&sa["mode"]),
                            text(&sa["next-sequence"]),
                        ]
                    },
                );
                manual + &status::render_sessions(&answer["sessions"])
            }
            Command::Histograms => {
                let all: Vec<Value> = answer
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(name, percentiles)| json!({"name": name, "of": percentiles}))
                    .collect();
                table::table(
                    &[
                        "packets that were",
                        "count",
                        "p50 ns",
                        "p99 ns",
                        "p99.9 ns",
                        "longest ns",
                    ],
                    &all,
                    |one| {
                        let of = &one["of"];
                        vec![
                            text(&one["name"]),
                            text(&of["count"]),
                            text(&of["p50"]),
                            text(&of["p99"]),
                            text(&of["p999"]),
                            text(&of["max"]),
                        ]
                    },
                )
            }
            Command::Journal { .. } => all.iter().fold(String::new(), |mut out, entry| {
                let _ = writeln!(out, "{:>8}  {}", text(&entry["n"]), entry_line(entry));
                out
            }),
            Command::Reload => {
                let changes = answer["changes"]
                    .as_array()
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                let mut out = format!(
                    "in force since generation {} of the rules\n",
                    text(&answer["generation"])
                );
                if changes.is_empty() {
                    out.push_str("  nothing that has a name is new, gone or another\n");
                }
                changes.iter().for_each(|change| {
                    let _ = writeln!(out, "  {}", text(change));
                });
                out
            }
            Command::Guests { guest: Some(_) } | Command::Counters => {
                let mut out = String::new();
                tree(&mut out, answer, 0);
                out
            }
            _ => format!(
                "in force since generation {} of the rules\n",
                text(&answer["generation"])
            ),
        }
    }
}

/// A report of what the command line and the environment say.
fn report(json: &str, fields: &[String], prefix: Option<&str>) -> Result<Value, Failure> {
    let mut report: Value = serde_json::from_str(json).map_err(|error| format!("the report: {error}"))?;
    let mut add = |name: &str, value: &str| match report.as_object_mut() {
        Some(report) => {
            report.insert(name.to_owned(), value.into());
            Ok(())
        }
        None => Err("the report: expected an object, to which fields can be added"),
    };
    for field in fields {
        let (name, value) = field
            .split_once('=')
            .ok_or_else(|| format!("--field {field}: expected NAME=VALUE"))?;
        add(name, value)?;
    }
    for (name, value) in std::env::vars_os() {
        if let Some(name) = name
            .to_str()
            .filter(|name| prefix.is_some_and(|prefix| name.starts_with(prefix)))
        {
            add(name, &value.to_string_lossy())?;
        }
    }
    Ok(report)
}

fn of_guest(guest: &str, rest: &str) -> String {
    format!("/v1/guests/{}{rest}", encoded(guest))
}

/// As it stands in a path or behind a question mark (RFC 3986, 2.1).
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn yes(value: &Value) -> String {
    if value.as_bool() == Some(true) {
        "yes"
    } else {
        "no"
    }
    .to_owned()
}

fn list(value: &Value) -> String {
    let all = value.as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().map(text).collect::<Vec<_>>().join(" ")
}

fn tags(guest: &Value) -> String {
    let all = guest["tags"].as_array().map(Vec::as_slice).unwrap_or_default();
    let tag = |tag: &Value| {
        format!(
            "{}/{}:{}",
            text(&tag["service"]),
            text(&tag["name"]),
            text(&tag["severity"])
        )
    };
    all.iter().map(tag).collect::<Vec<_>>().join(" ")
}

/// What was done, on one line.
fn entry_line(entry: &Value) -> String {
    let known = ["n", "at", "by"];
    let deed = entry
        .as_object()
        .into_iter()
        .flatten()
        .find(|(name, _)| !known.contains(&name.as_str()));
    let (name, of) = deed.map_or(("", &Value::Null), |(name, of)| (name.as_str(), of));
    let said = match name {
        "begin" => "the guests' state at the beginning of a file".to_owned(),
        "moved" => format!(
            "guest {} from {} to {}: {}",
            text(&of["guest"]),
            text(&of["from"]),
            text(&of["to"]),
            text(&of["because"])
        ),
        _ => {
            let mut of = of.clone();
            if let Some(fields) = of.as_object_mut() {
                fields.remove("read");
                fields.remove("state");
            }
            of.to_string()
        }
    };
    format!("{}  {name}  {said}  ({})", text(&entry["at"]), text(&entry["by"]))
}

fn tree(out: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::Object(inner) if !inner.is_empty() => {
                        let _ = writeln!(out, "{indent}{name}");
                        tree(out, field, depth + 1);
                    }
                    Value::Array(inner) if inner.iter().any(Value::is_object) => {
                        let _ = writeln!(out, "{indent}{name}");
                        inner.iter().for_each(|one| tree(out, one, depth + 1));
                    }
                    Value::Array(_) => {
                        let _ = writeln!(out, "{indent}{name}  {}", list(field));
                    }
                    Value::Object(_) | Value::Null => {}
                    _ => {
                        let _ = writeln!(out, "{indent}{name}  {}", text(field));
                    }
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|one| tree(out, one, depth)),
        other => {
            let _ = writeln!(out, "{indent}{}", text(other));
        }
    }
}
