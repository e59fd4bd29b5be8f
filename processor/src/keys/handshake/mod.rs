//! Sessions between hosts: the handshake that makes them, and their life (docs/sessions.md).
//!
//! Sans-IO: bytes, time and random numbers are arguments, what is to be done is the result. [`engine::Engine`] is what
//! control drives; below it `pair` is the state of one peer and channel, `session` one session, `noise` the
//! handshake, [`message`] and `mac` the bytes.

#![deny(clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod attempt;
pub mod directory;
pub mod engine;
mod mac;
pub mod message;
mod noise;
pub mod output;
mod pair;
pub mod pmtu;
pub mod random;
mod session;
pub mod settings;
pub mod shared;
pub mod spis;
mod stamp;
mod statics;
