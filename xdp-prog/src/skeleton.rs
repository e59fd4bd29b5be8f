//! What libbpf-cargo generated from bpf/: one module a program.

#[allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    rust_2018_idioms,
    dead_code
)]
pub(crate) mod guest {
    include!(concat!(env!("OUT_DIR"), "/guest.skel.rs"));
}

#[allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    rust_2018_idioms,
    dead_code
)]
pub(crate) mod uplink {
    include!(concat!(env!("OUT_DIR"), "/uplink.skel.rs"));
}
