//! `guestseal run`: the packet processor.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, ValueEnum};
use guestseal_xdp::{ModeChoice, XdpMode};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::aead::choice::Choice;
use crate::control::config::{Overrides, WorkerConfig};
use crate::control::shared::operator::load_to_start;
use crate::control::supervise::{RunOptions, run};
use crate::keys::locked::lock_all;
use crate::port::xsk::ZeroCopy;

use super::Failure;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  guestseal run --config host.yaml\n  \
                        guestseal run --config host.yaml --uplink eth1 --queue 0 --cpu 2 --queue 1 --cpu 3\n\n\
                        SIGTERM or SIGINT finishes what was begun, detaches and prints totals; a second one ends at once.\n\
                        SIGHUP reads the configuration and the policy again.")]
pub(super) struct Run {
    /// The host's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The interface that leads to the other hosts
    #[arg(long, value_name = "INTERFACE")]
    uplink: Option<String>,
    /// A queue of the uplink: one worker each, repeated in pairs with --cpu
    #[arg(long, value_name = "N", requires = "cpu")]
    queue: Vec<u32>,
    /// The CPU that the queue's worker is pinned to
    #[arg(long, value_name = "N", requires = "queue")]
    cpu: Vec<usize>,
    /// How XDP programs are attached; auto falls back to generic with a warning
    #[arg(long, value_enum, value_name = "MODE")]
    xdp_mode: Option<Mode>,
    /// Whether sockets share frames with the driver
    #[arg(long, value_enum, value_name = "WHEN")]
    zero_copy: Option<ZeroCopy>,
    /// Workers never sleep
    #[arg(long)]
    busy_poll: bool,
    /// What guests leave to their cards and would be lost is turned off, and put back at the end
    #[arg(long)]
    fix_offloads: bool,
    /// The AEAD engine; auto takes the fastest that can run here
    #[arg(long, value_enum, value_name = "ENGINE")]
    aead: Option<Choice>,
    /// How messages are written
    #[arg(long, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    log_format: LogFormat,
    /// Write latency histograms to an HdrHistogram interval log
    #[arg(long, value_name = "FILE")]
    histogram_log: Option<PathBuf>,
    /// Follow a file of events, one JSON object a line
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Made when traffic flows
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Write the totals as JSON at the end
    #[arg(long, value_name = "FILE")]
    totals_json: Option<PathBuf>,
    /// Where the guest ports' XDP programs are pinned: a BPF file system
    #[arg(long, value_name = "DIR")]
    pin_directory: Option<PathBuf>,
}

#[derive(Copy, Clone, Debug, ValueEnum)]
enum Mode {
    Auto,
    Native,
    Generic,
}

#[derive(Copy, Clone, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl Run {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.queue.len() != self.cpu.len() {
            let message = format!(
                "{} --queue and {} --cpu: expected pairs",
                self.queue.len(),
                self.cpu.len()
            );
            clap::Error::raw(clap::error::ErrorKind::WrongNumberOfValues, message + "\n").exit();
        }
        self.log();
        let workers = self
            .queue
            .iter()
            .zip(&self.cpu)
            .map(|(queue, cpu)| WorkerConfig {
                queue: *queue,
                cpu: *cpu,
            })
            .collect();
        let overrides = Overrides {
            uplink: self.uplink.clone(),
            workers,
            xdp_mode: self.xdp_mode.map(|mode| match mode {
                Mode::Auto => ModeChoice::Auto,
                Mode::Native => ModeChoice::Only(XdpMode::Native),
                Mode::Generic => ModeChoice::Only(XdpMode::Generic),
            }),
            zero_copy: self.zero_copy,
            busy_poll: self.busy_poll,
            fix_offloads: self.fix_offloads,
            aead: self.aead,
            histogram_log: self.histogram_log.clone(),
            events: self.events.clone(),
            pin_directory: self.pin_directory.clone(),
        };
        let config = Arc::new(load_to_start(&self.config, &overrides)?);
        check_possible()?;
        keep_secrets()?;
        // The kernel counts the UMEM as locked memory.
        let unlimited = Rlimit {
            current: None,
            maximum: None,
        };
        if setrlimit(Resource::Memlock, unlimited).is_err() {
            // Where it matters the kernel refuses the UMEM, and says so.
            tracing::debug!("the limit of locked memory cannot be raised (CAP_SYS_RESOURCE)");
        }
        lock_memory();
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // In this order: the first signal finds the flag unset and sets it, the second ends the process.
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))?;
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        let reload = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGHUP, Arc::clone(&reload))?;
        let options = RunOptions {
            ready_file: self.ready_file.clone(),
            reload,
        };
        let totals = run(config, &options, &stop)?;
        print!("{totals}");
        if let Some(path) = &self.totals_json {
            let mut file = File::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
            serde_json::to_writer_pretty(&mut file, &totals)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    }

    fn log(&self) {
        let filter = tracing_subscriber::EnvFilter::try_from_env("GUESTSEAL_LOG")
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Json => subscriber.json().init(),
            LogFormat::Text => subscriber
                .with_ansi(std::io::stderr().is_terminal())
                .with_target(false)
                .init(),
        }
    }
}

/// Says in one sentence why no packet can be processed here, before anything else fails for that reason.
fn check_possible() -> Result<(), Failure> {
    const NEEDED: [(CapabilitySet, &str); 4] = [
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
        (CapabilitySet::NET_RAW, "CAP_NET_RAW"),
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
        (CapabilitySet::BPF, "CAP_BPF"),
    ];
    let effective = capabilities(None)?.effective;
    let lacks = |one: &&(CapabilitySet, &str)| !effective.contains(one.0);
    let missing: Vec<&str> = NEEDED.iter().filter(lacks).map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        return Err(format!("run needs root, or at least {}", missing.join(", ")).into());
    }
    const AF_XDP: u16 = 44;
    let family = rustix::net::AddressFamily::from_raw(AF_XDP);
    match rustix::net::socket(family, rustix::net::SocketType::RAW, None) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("this kernel gives no AF_XDP socket (CONFIG_XDP_SOCKETS): {error}").into()),
    }
}

/// No core file, and no other process of the same user may look into the memory that has keys.
fn keep_secrets() -> Result<(), Failure> {
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// No traffic key is swapped out; under a limit nothing is locked, since what is allocated later would be refused.
fn lock_memory() {
    let limited = getrlimit(Resource::Memlock).current.is_some();
    let may = |sets: CapabilitySets| sets.effective.contains(CapabilitySet::IPC_LOCK);
    let refused = if limited && !capabilities(None).is_ok_and(may) {
        Some("needs CAP_IPC_LOCK, or LimitMEMLOCK=infinity in the unit".to_owned())
    } else {
        lock_all().err().map(|error| error.to_string())
    };
    if let Some(why) = refused {
        tracing::warn!(
            "traffic keys are in memory that may be swapped out: {why}; or encrypt swap or turn it off"
        );
    }
}
