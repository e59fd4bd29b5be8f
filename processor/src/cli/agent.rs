//! `guestseal agent`: runs in a guest, and tells the host of its flows.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use guestseal_rules::load::duration;

use crate::agent;

use super::Failure;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  guestseal agent --to /dev/virtio-ports/guestseal\n\n\
                  Runs in a Linux guest, as root. The host knows by the channel whose word it is."
)]
pub(super) struct Agent {
    /// The channel to the host: a virtio-serial port's device, or a Unix socket
    #[arg(long, value_name = "PATH")]
    to: PathBuf,
    /// How often it looks
    #[arg(long, value_name = "DURATION", default_value = "250ms", value_parser = some_time)]
    every: Duration,
}

fn some_time(text: &str) -> Result<Duration, &'static str> {
    match duration(text)? {
        Duration::ZERO => Err("is no time at all"),
        time => Ok(time),
    }
}

impl Agent {
    pub(super) fn run(self) -> Result<(), Failure> {
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
        agent::run(&self.to, self.every)
    }
}
