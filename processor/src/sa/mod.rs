//! Security associations (RFC 4301): one direction, one SPI, one traffic key, one sequence space, one owner.
//!
//! No I/O, no clock. What changes with every packet ([`outbound::OutboundSa`], [`inbound::InboundSa`]) belongs to one
//! worker; what finds it ([`table::SaTable`]) is immutable and shared.

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

pub mod inbound;
pub mod nonce;
pub mod outbound;
pub mod replay;
pub mod selector;
pub mod sequence;
pub mod slots;
pub mod spi;
pub mod table;
