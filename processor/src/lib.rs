//! Guestseal's processor: the packet path, its keys, ports and workers, and the `guestseal` command.

pub mod aead;
pub mod agent;
mod bucket;
pub mod cli;
pub mod control;
mod files;
pub mod keys;
pub mod path;
pub mod port;
pub mod sa;
pub mod telemetry;
pub mod wire;
pub mod worker;
