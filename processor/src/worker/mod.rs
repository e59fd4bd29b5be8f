//! Workers: pinned threads that carry packets through the path.

pub mod handoff;
pub mod run;
