//! What measures and shows Guestseal: network namespaces with hosts, guests and a wire, captures, the demo, benchmarks.
//!
//! Everything happens in namespaces of its own, with names that carry the process's number, and leaves nothing behind.

#![forbid(unsafe_code)]

pub mod actor;
pub mod capture;
pub mod classbench;
pub mod classify;
pub mod compare;
pub mod demo;
pub mod deployment;
pub mod enforcement;
pub mod etcd;
pub mod fleet;
mod goals;
pub mod handshake;
pub mod machine;
pub mod namespaces;
pub mod pipeline;
pub mod process;
pub mod report;
pub mod resume;
pub mod statistics;
pub mod veth;
pub mod workers;
