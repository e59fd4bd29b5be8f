//! Benchmark of the data path on memory ports.

use clap::Args;

use crate::process::PerfError;

/// What to measure.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// One JSON array instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Measures.
///
/// # Errors
/// If there is no memory.
pub fn run(_options: &Options) -> Result<(), PerfError> {
    Ok(())
}
