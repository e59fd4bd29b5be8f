//! `guestseal schema`: what a policy file or a file of sources may say, for editors.

use clap::{Args, ValueEnum};
use guestseal_rules::load::{SCHEMA, SOURCES_SCHEMA};

use super::Failure;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  guestseal schema > policy.schema.json\n  guestseal schema sources > sources.schema.json\n\n\
                  A policy's first line lets an editor with a YAML language server check it while it is written:\n  \
                  # yaml-language-server: $schema=policy.schema.json"
)]
pub(super) struct Schema {
    /// Of which files
    #[arg(value_enum, default_value_t = Of::Policy)]
    of: Of,
}

#[derive(Copy, Clone, Debug, ValueEnum)]
enum Of {
    /// Policy files
    Policy,
    /// Files of sources
    Sources,
}

impl Schema {
    pub(super) fn run(self) -> Result<(), Failure> {
        let schema = match self.of {
            Of::Policy => SCHEMA,
            Of::Sources => SOURCES_SCHEMA,
        };
        print!("{schema}");
        Ok(())
    }
}
