//! Guestseal's processor: the packet path, its keys, ports and workers, and the `guestseal` command.

pub mod path;
pub mod port;
