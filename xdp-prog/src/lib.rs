//! The XDP programs of Guestseal and their loader.
//!
//! Two programs, in C under bpf/: that of a guest port hands every frame to Guestseal, that of the uplink what
//! is Guestseal's and leaves the rest to the kernel. A frame that is Guestseal's and finds no live AF_XDP
//! socket is dropped, also when the process that attached the program has been killed: see [`PinDirectory`].
//!
//! Two more make and count traffic for measurements: [`Generator`] and [`Sink`].
//!
//! The order at start: load, register the sockets, attach. The order at the end: [`Attached::detach`].

mod attach;
mod error;
mod kernel;
mod loader;
mod pins;
mod skeleton;
mod traffic;

pub use attach::{Attached, Attachment, ModeChoice, XdpMode};
pub use error::XdpError;
pub use kernel::{Trial, Verdict};
pub use loader::{Counters, GuestProgram, Program, UplinkConfig, UplinkProgram};
pub use pins::PinDirectory;
pub use traffic::{Generator, LONGEST, MAGIC, Pace, Seen, Sink};
