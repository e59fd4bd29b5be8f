//! `guestseal sa`: manual security associations.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::control::config::HostConfig;
use crate::control::manual_sa::init_marks;

use super::Failure;

#[derive(Debug, Args)]
pub(super) struct Sa {
    #[command(subcommand)]
    command: SaCommand,
}

#[derive(Debug, Subcommand)]
enum SaCommand {
    /// Makes the high-water marks of outbound SAs that have none: says that their keys have never been used.
    #[command(after_help = "Example:\n  guestseal sa init --config host.yaml\n\n\
                            Do this once for a new key. A mark that is there is left alone. Never do it for a key that was \
                            used before: its sequence numbers, and so its nonces, would be used again.")]
    Init {
        /// The host's configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

impl Sa {
    pub(super) fn run(self) -> Result<(), Failure> {
        let SaCommand::Init { config } = self.command;
        let config = HostConfig::load_offline(&config)?;
        let made = init_marks(&config)?;
        made.iter()
            .for_each(|name| println!("{name}: begins at sequence number 1"));
        if made.is_empty() {
            println!(
                "every outbound security association has its mark in {}",
                config.state_directory.display()
            );
        }
        Ok(())
    }
}
