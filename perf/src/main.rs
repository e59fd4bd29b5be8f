//! The `guestseal-perf` command.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use guestseal_perf::actor::Actor;
use guestseal_perf::deployment::GUESTSEAL;
use guestseal_perf::process::{PerfError, watch_signals};
use guestseal_perf::{
    classify, compare, demo, enforcement, fleet, handshake, machine, pipeline, veth, workers,
};

#[derive(Debug, Parser)]
#[command(
    name = "guestseal-perf",
    version,
    about = "Shows and measures Guestseal",
    after_help = "Examples:\n  guestseal-perf demo --json demo.json\n  guestseal-perf pipeline --json\n  guestseal-perf veth --short --html veth.html\n  guestseal-perf compare main HEAD\n  guestseal-perf classify --json\n  guestseal-perf handshake --json\n  guestseal-perf enforcement --json"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Two hosts seal their guests' traffic by rules, in namespaces of their own. Needs root
    Demo {
        /// Write what was found as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Measures the data path without a kernel: cycles a packet beside those of the bare cipher
    Pipeline(pipeline::Options),
    /// Measures real packets over veths beside the kernel and boringtun: throughput without loss, latency, CPU. Needs root
    Veth(veth::Options),
    /// Builds two revisions, runs them in turns, and says what became slower
    Compare(compare::Options),
    /// Measures one worker, two, and what a hand-off costs; says what more would carry
    Workers(workers::Options),
    /// Shows Guestseal with QEMU machines: called by ci/vm, which fetches kernels. Needs root
    Vm(machine::Options),
    /// Measures session set-up on one core beside boringtun
    Handshake(handshake::Options),
    /// Measures how long the old rules still hold when a guest is tagged, under traffic. Needs root
    Enforcement(enforcement::Options),
    /// Measures what a fleet that shares by etcd costs one of its hosts: a tag, a move, a policy
    Fleet(fleet::Options),
    /// Measures the classifier: cycles a packet out of the flow cache, past it, and rule by rule
    Classify(classify::Options),
    /// A part that a guest of the demo plays
    #[command(hide = true, subcommand)]
    Actor(Actor),
}

fn main() -> ExitCode {
    let name = std::env::args_os().next().map(PathBuf::from);
    if name.is_some_and(|name| name.file_name() == Some(GUESTSEAL.as_ref())) {
        return guestseal::cli::main();
    }
    let done = match Cli::parse().command {
        Command::Demo { json } => watch_signals().and_then(|()| demo::run_demo(json.as_deref())),
        Command::Pipeline(options) => pipeline::run(&options).map(|()| true),
        Command::Veth(options) => watch_signals().and_then(|()| veth::run(&options)).map(|()| true),
        Command::Compare(options) => watch_signals().and_then(|()| compare::compare(&options)),
        Command::Workers(options) => workers::run(&options).map(|()| true),
        Command::Vm(options) => watch_signals().and_then(|()| machine::run(&options)),
        Command::Handshake(options) => watch_signals()
            .and_then(|()| handshake::run(&options))
            .map(|()| true),
        Command::Enforcement(options) => watch_signals()
            .and_then(|()| enforcement::run(&options))
            .map(|()| true),
        Command::Fleet(options) => fleet::run(&options).map(|()| true),
        Command::Classify(options) => classify::run(&options).map(|()| true),
        Command::Actor(actor) => actor.play().map(|()| true).map_err(PerfError::io("actor")),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("guestseal-perf: {}", guestseal::control::supervise::chain(&error));
            ExitCode::FAILURE
        }
    }
}
