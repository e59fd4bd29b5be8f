//! `guestseal man`: the man pages, made of the command line's own descriptions.

use std::path::PathBuf;

use clap::Args;

use super::Failure;

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Where to write them
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Man {
    pub(super) fn run(self, command: &clap::Command) -> Result<(), Failure> {
        std::fs::create_dir_all(&self.directory)?;
        clap_mangen::generate_to(command.clone(), &self.directory)?;
        Ok(())
    }
}
