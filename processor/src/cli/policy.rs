//! `guestseal policy`: the policy that hosts share by etcd.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use guestseal_rules::load::load_policy;

use crate::control::config::{ConfigError, Overrides, read};
use crate::control::shared::operator::{etcd_of, gather, pull, push};

use super::Failure;
use super::check::{summary, warn};

#[derive(Debug, Args)]
pub(super) struct Policy {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks policy files and puts them into etcd, all of them at once: they are the whole policy of every host that takes it from there.
    #[command(
        after_help = "Example:\n  guestseal check policy/*.yaml && guestseal policy push --config operator.yaml policy/*.yaml\n\n\
                            Their names in etcd are those of the files, without directories, and hosts read them in the order of the names. \
                            What is in etcd under other names is taken away. With a mistake in a file nothing is written."
    )]
    Push {
        /// A file with an etcd part, such as a host's: where etcd is, and who writes there
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Warnings are mistakes
        #[arg(long)]
        strict: bool,
        /// Policy files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Takes the policy in etcd for a host whose file says `policy: true` and which does not run; a start does so by itself.
    #[command(
        after_help = "Example:\n  guestseal policy pull --config host.yaml && guestseal sa init --config host.yaml"
    )]
    Pull {
        /// The host's configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

impl Policy {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Push {
                config,
                strict,
                files,
            } => {
                let sources = files
                    .iter()
                    .map(|file| read(file))
                    .collect::<Result<Vec<_>, _>>()?;
                let etcd = etcd_of(&config)?;
                let (files, sources) = gather(&etcd, &sources)?;
                let policy = load_policy(&sources).map_err(ConfigError::from)?;
                let warned = warn(&policy);
                if strict && warned > 0 {
                    return Err(format!("{warned} warnings: nothing is written").into());
                }
                let revision = push(&etcd, &files)?;
                println!("in etcd at revision {revision}: {}", summary(&policy));
            }
            Command::Pull { config } => {
                // Only the command line can name the uplink of a file that has none.
                let overrides = Overrides {
                    uplink: Some("any".into()),
                    ..Overrides::default()
                };
                let config = pull(&config, &overrides)?;
                println!("host {}: {}", config.host_name(), summary(&config.policy));
            }
        }
        Ok(())
    }
}
