//! The way of a packet: stages over a batch, each a plain function that a unit test can call.
//!
//! [`outbound`], [`inbound`] and [`local`] call them in order. A stage leaves each descriptor live or with an outcome;
//! later stages skip those that have one, and the last empties the batch.

pub mod answer;
pub mod batch;
pub mod classify;
pub mod context;
pub mod decapsulate;
pub mod deliver;
pub mod encapsulate;
pub mod endpoints;
pub mod express;
pub mod finish;
pub mod fit;
pub mod flood;
pub mod guard;
pub mod inbound;
mod layout;
pub mod local;
pub mod mirror;
pub mod notices;
pub mod open;
pub mod outbound;
pub mod outcome;
mod outer;
pub mod parse;
pub mod recall;
pub mod seal;
pub mod tables;
pub mod trunk;
pub mod waiting;
