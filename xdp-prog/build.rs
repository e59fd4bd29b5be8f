//! Compiles bpf/*.bpf.c with clang and writes their Rust skeletons into OUT_DIR.

use std::env;
use std::path::{Path, PathBuf};

use libbpf_cargo::SkeletonBuilder;

fn main() {
    println!("cargo::rerun-if-changed=bpf");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // bpf_helpers.h and bpf_endian.h of the very libbpf that loads the programs.
    let libbpf = env::var("DEP_BPF_INCLUDE").expect("libbpf-sys names its headers");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the target");
    let mut arguments = vec![
        "-Wall".to_owned(),
        "-Wextra".to_owned(),
        "-Werror".to_owned(),
        "-I".to_owned(),
        libbpf,
    ];
    // Debian keeps asm/types.h, which linux/bpf.h needs, under the machine's own name; other systems do not.
    let machine = format!("/usr/include/{arch}-linux-gnu");
    if Path::new(&machine).is_dir() {
        arguments.extend(["-isystem".to_owned(), machine]);
    }
    for program in ["guest", "uplink", "traffic"] {
        SkeletonBuilder::new()
            .source(format!("bpf/{program}.bpf.c"))
            .clang_args(&arguments)
            .build_and_generate(out.join(format!("{program}.skel.rs")))
            .unwrap_or_else(|error| {
                panic!("bpf/{program}.bpf.c does not compile (is clang installed?): {error:#}")
            });
    }
}
