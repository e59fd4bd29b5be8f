//! The control side: configuration, building the data plane, watching it. Never on a worker's thread.

pub mod added;
pub mod announce;
pub mod answers;
pub mod api;
pub mod assemble;
pub mod bindings;
pub mod config;
mod differences;
pub mod features;
pub mod guests;
pub mod journal;
pub mod link;
pub mod manual_sa;
pub mod moves;
pub mod namespace;
mod netlink;
pub mod news;
pub mod offloads;
pub mod reach;
mod reload;
pub mod rulebook;
pub mod sessions;
pub mod sources;
pub mod status;
pub mod supervise;
pub mod transition;
pub mod wake;
