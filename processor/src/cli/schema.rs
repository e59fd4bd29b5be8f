//! `guestseal schema`: what a policy file may say, for editors.

use clap::Args;
use guestseal_rules::load::SCHEMA;

use super::Failure;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guestseal schema > policy.schema.json\n\n\
                  A policy's first line lets an editor with a YAML language server check it while it is written:\n  \
                  # yaml-language-server: $schema=policy.schema.json")]
pub(super) struct Schema {}

impl Schema {
    pub(super) fn run(self) -> Result<(), Failure> {
        print!("{SCHEMA}");
        Ok(())
    }
}
