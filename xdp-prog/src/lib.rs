//! The XDP programs of Guestseal and their loader.
//!
//! The guest program redirects everything that a guest sends to AF_XDP; the uplink program redirects what is for
//! Guestseal and passes the rest to the kernel. Where no socket is, both drop: fail closed.

mod link;
pub mod loader;
mod skeleton;
