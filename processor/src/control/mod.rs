//! The control side: configuration, building the data plane, watching it. Never on a worker's thread.

pub mod assemble;
pub mod config;
pub mod link;
pub mod manual_sa;
pub mod supervise;
