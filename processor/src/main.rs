//! The `guestseal` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    guestseal::cli::main()
}
