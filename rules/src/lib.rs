//! Guestseal's rules: what YAML can say, who may talk to whom and under which key, and why.
//!
//! Pure: no sockets, clocks or threads. [`load`] makes a [`model::Policy`] of texts, [`check`] warns of what is odd in
//! it, [`containers`] says what its guests are after what happened, [`compile`] makes a ruleset of both, [`classify`]
//! looks packets up in it, [`meaning`] is what the look-up is held to, [`explain`] says why a packet meets its rule;
//! [`report`] makes events of what security services say.

#![forbid(unsafe_code)]

pub mod check;
pub mod classify;
pub mod compile;
pub mod containers;
pub mod event;
pub mod explain;
pub mod facts;
pub mod flow_cache;
pub mod flows;
pub mod load;
pub mod meaning;
pub mod membership;
pub mod model;
pub mod report;
