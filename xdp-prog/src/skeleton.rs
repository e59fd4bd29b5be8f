//! The skeletons that libbpf-cargo writes from bpf/*.bpf.c.
//! Everything of theirs ends here: the loader takes descriptors out of them and lets them go.
#![allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    reason = "generated code"
)]

pub(crate) mod guest {
    include!(concat!(env!("OUT_DIR"), "/guest.skel.rs"));
}

pub(crate) mod uplink {
    include!(concat!(env!("OUT_DIR"), "/uplink.skel.rs"));
}

pub(crate) mod traffic {
    include!(concat!(env!("OUT_DIR"), "/traffic.skel.rs"));
}
