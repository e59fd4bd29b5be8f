//! The way of a packet: stages over a batch, each a plain function that a unit test can call.

pub mod outcome;
