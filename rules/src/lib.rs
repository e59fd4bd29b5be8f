//! Guestseal's rules: model, compile, classify. Pure: no sockets, clocks or threads.

pub mod classify;
pub mod facts;
pub mod model;
