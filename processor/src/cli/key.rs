//! `guestseal key`: the static key of this host.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::keys::identity::Identity;

use super::Failure;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  guestseal key generate /etc/guestseal/identity\n  \
                        guestseal key public /etc/guestseal/identity\n  \
                        guestseal key rotate /etc/guestseal/identity && guestseal key rotate --activate /etc/guestseal/identity\n\n\
                        The file has 64 hexadecimal digits and mode 0600. Standard output is the public key alone, for the policy."
)]
pub(super) struct Key {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Makes the identity of this host, in a file that must not exist yet, and prints its public key.
    #[command(after_help = "Example:\n  guestseal key generate /etc/guestseal/identity")]
    Generate {
        /// Where to write it
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Prints the public key of an identity.
    #[command(after_help = "Example:\n  guestseal key public /etc/guestseal/identity")]
    Public {
        /// The identity
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Makes the next identity beside the one in use (FILE.next) and prints its public key; --activate begins to use it.
    #[command(
        after_help = "Example:\n  guestseal key rotate /etc/guestseal/identity             # give its public key to every peer, \
                            beside the old one\n  guestseal key rotate --activate /etc/guestseal/identity  # then use it; \
                            then take the old one from the peers"
    )]
    Rotate {
        /// The identity in use
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Put FILE.next in its place; the old one is gone then
        #[arg(long)]
        activate: bool,
    },
}

impl Key {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (identity, note) = match self.command {
            KeyCommand::Generate { file } => {
                let note = format!("{}: made; this is its public key:", file.display());
                (Identity::create(&file)?, Some(note))
            }
            KeyCommand::Public { file } => (Identity::read(&file)?, None),
            KeyCommand::Rotate {
                file,
                activate: false,
            } => {
                let note = format!(
                    "{}.next: made; tell this public key to every peer before --activate:",
                    file.display()
                );
                (Identity::prepare_next(&file)?, Some(note))
            }
            KeyCommand::Rotate { file, activate: true } => {
                let note = format!("{}: the next identity, from the next start on:", file.display());
                (Identity::activate_next(&file)?, Some(note))
            }
        };
        if let Some(note) = note {
            eprintln!("{note}");
        }
        println!("{}", identity.public());
        Ok(())
    }
}
