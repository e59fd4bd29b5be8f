//! Wire formats: bytes only. No sockets, no policy, no allocation.
//!
//! Nothing here panics on any bytes: headers are read by checked conversions, and what does not fit is a
//! [`packet::Malformed`] that names the fact.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

pub mod arp;
pub mod checksum;
pub mod ecn;
pub mod esp;
pub mod ethernet;
pub mod extension;
pub mod geneve;
pub mod icmp;
pub mod ip4;
pub mod ip6;
pub mod packet;
pub mod transport;
pub mod udp;
pub mod vxlan;
