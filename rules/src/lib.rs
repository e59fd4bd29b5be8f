//! Guestseal's rules: what YAML can say, who may talk to whom and under which key, and why.
//!
//! Pure: no sockets, clocks or threads. [`load`] makes a [`model::Policy`] of texts, [`check`] warns of what is odd in
//! it, [`compile`] makes a classifier of it, [`explain`] says why a packet meets its rule.

#![forbid(unsafe_code)]

pub mod check;
pub mod classify;
pub mod compile;
pub mod explain;
pub mod facts;
pub mod load;
pub mod model;
