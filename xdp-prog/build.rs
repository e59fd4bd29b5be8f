//! Compiles the XDP programs and generates their skeletons.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // clang's BPF target does not look into the directory of the machine's own architecture, where asm/types.h is.
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the target");
    let include = format!("-I/usr/include/{architecture}-linux-gnu");
    for program in ["guest", "uplink"] {
        SkeletonBuilder::new()
            .source(format!("bpf/{program}.bpf.c"))
            .clang_args([include.as_str(), "-Wall", "-Werror"])
            .build_and_generate(out.join(format!("{program}.skel.rs")))
            .unwrap_or_else(|error| panic!("bpf/{program}.bpf.c does not compile (needs clang): {error:#}"));
    }
    println!("cargo:rerun-if-changed=bpf");
}
