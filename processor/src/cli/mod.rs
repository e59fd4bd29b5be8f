//! The command line: a file a subcommand.
//!
//! Exit codes: 0 done, 1 failed (the message says what, where and what to do), 2 wrong usage.

mod agent;
mod check;
mod ctl;
mod explain;
mod hook;
mod key;
mod man;
mod policy;
mod run;
mod sa;
mod schema;
mod status;
mod table;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::control::config::ConfigError;
use crate::control::shared::operator::PolicyError;
use crate::control::supervise::chain;

#[derive(Debug, Parser)]
#[command(
    name = "guestseal",
    version,
    about = "Seals the traffic of a hypervisor's guests by rules",
    long_about = "Takes every packet that a guest sends, decides by YAML rules whether and under which key to seal it, and \
                  sends it out of the uplink; opens what arrives, holds it to the same rules and delivers it to its guests.",
    after_help = "Examples:\n  guestseal check policy.yaml\n  guestseal sa init --config host.yaml\n  \
                  guestseal run --config host.yaml --uplink eth1 --queue 0 --cpu 2\n  \
                  guestseal explain --policy policy.yaml --from web --to db --protocol tcp --to-port 5432"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the packet processor of this host.
    Run(run::Run),
    /// Validates policy and host files, without touching anything.
    Check(check::Check),
    /// Says which rule a packet meets, why, and why not the ones before it.
    Explain(explain::Explain),
    /// This host's identity: the static key that proves who it is to its peers.
    Key(key::Key),
    /// What a running guestseal says of itself: packets, rules that do not seal, containers, guests.
    Status(status::Status),
    /// Asks a running guestseal, and tells it what to do: tags, containers, ports, journal.
    Ctl(ctl::Ctl),
    /// Called by what starts and stops guests: libvirt.
    Hook(hook::Hook),
    /// The policy in etcd: puts it there for all hosts, or takes it for this one.
    Policy(policy::Policy),
    /// Manual security associations.
    Sa(sa::Sa),
    /// Runs in a Linux guest: tells the host whose the guest's flows are.
    Agent(agent::Agent),
    /// Prints the JSON Schema of policy files or files of sources, for editors.
    Schema(schema::Schema),
    /// Writes the man pages into a directory.
    Man(man::Man),
}

/// What a subcommand ends with when it fails.
type Failure = Box<dyn std::error::Error>;

/// Runs the command.
#[must_use]
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(run) => run.run(),
        Command::Check(check) => check.run(),
        Command::Explain(explain) => explain.run(),
        Command::Key(key) => key.run(),
        Command::Status(status) => status.run(),
        Command::Ctl(ctl) => ctl.run(),
        Command::Hook(hook) => hook.run(),
        Command::Policy(policy) => policy.run(),
        Command::Sa(sa) => sa.run(),
        Command::Agent(agent) => agent.run(),
        Command::Schema(schema) => schema.run(),
        Command::Man(man) => man.run(&Cli::command()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&*failure);
            ExitCode::FAILURE
        }
    }
}

/// Mistakes in files with the place shown, anything else on one line with its causes.
fn report(failure: &(dyn std::error::Error + 'static)) {
    let mistakes = match (failure.downcast_ref(), failure.downcast_ref()) {
        (Some(ConfigError::File(errors)), _) | (_, Some(PolicyError::Config(ConfigError::File(errors)))) => {
            Some(errors)
        }
        _ => None,
    };
    if let Some(errors) = mistakes {
        for error in &errors.0 {
            eprintln!("guestseal: {error}");
            eprintln!("{:?}", miette::Report::new(error.clone()));
        }
        let count = errors.0.len();
        eprintln!(
            "guestseal: {count} {} found",
            if count == 1 { "mistake" } else { "mistakes" }
        );
    } else {
        eprintln!("guestseal: {}", chain(failure));
    }
}
