//! QEMU machines: what needs a kernel of its own. `guestseal-perf vm`, called by `ci/vm`, which fetches the kernels.
//!
//! Every part makes its own namespaces and machines and leaves nothing behind; logs of what failed are kept. The last
//! line counts: `N passed, N failed, N skipped`.

pub mod guests;
pub mod initramfs;
pub mod inside;
pub mod interop;
pub mod kernel;
pub mod libvirt;
pub mod matrix;
pub mod qemu;
pub mod tally;
pub mod zero_copy;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use guestseal_rules::model::Policy;

use crate::capture::{Capture, count_kinds, esp_of, is_solicitation, kinds_with};
use crate::namespaces::remove_leftovers;
use crate::process::PerfError;

use initramfs::Archive;
use kernel::Kernel;
use tally::Tally;

/// What to run.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The directory with Debian's kernels, as ci/vm makes it
    #[arg(long, value_name = "DIR")]
    kernels: PathBuf,
    /// A few cells on one machine
    #[arg(long)]
    short: bool,
    /// Only parts whose name has this in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Write the table of interoperability to docs/interop.md
    #[arg(long)]
    write_docs: bool,
}

/// What every part is given.
#[derive(Debug)]
pub struct Setting {
    /// Where logs go.
    pub logs: PathBuf,
    /// The directory with kernels.
    pub kernels: PathBuf,
    /// Whether only the short form is asked for.
    pub short: bool,
    /// Whether docs are written.
    pub write_docs: bool,
}

/// A kernel's image and the root file system for it.
#[derive(Debug)]
pub struct Boot {
    /// The image.
    pub image: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

impl Setting {
    /// Makes what a machine boots: a flavour of Debian's kernel with modules and programs.
    ///
    /// # Errors
    /// If something is missing.
    pub fn boot(
        &self,
        name: &str,
        flavour: &str,
        modules: &[&str],
        programs: &[PathBuf],
    ) -> Result<Boot, PerfError> {
        self.boot_with(name, flavour, modules, programs, None)
    }

    /// The same; the machine runs the script `start` (of a shell) in place of orders, if there is one.
    ///
    /// # Errors
    /// If something is missing.
    pub fn boot_with(
        &self,
        name: &str,
        flavour: &str,
        modules: &[&str],
        programs: &[PathBuf],
        start: Option<&str>,
    ) -> Result<Boot, PerfError> {
        let kernel = Kernel::at(&self.kernels.join(flavour))?;
        let initramfs = self.logs.join(format!("{name}.initramfs"));
        let mut archive = Archive::of_machine(&kernel, modules, programs, &self.logs)?;
        if let Some(start) = start {
            archive.file(Path::new("start"), 0o644, start.as_bytes());
        }
        std::fs::write(&initramfs, archive.finish())
            .map_err(PerfError::io(initramfs.display().to_string()))?;
        Ok(Boot {
            image: kernel.image()?,
            initramfs,
        })
    }
}

/// That a capture of the wire has sealed packets, and besides them only what hosts and guests ask for their neighbours; `marker` stands in
/// nothing that can be read.
fn only_sealed(capture: Capture, policy: &Policy, marker: &str) -> Result<(), PerfError> {
    let frames = capture.stop()?;
    let hosts = policy.hosts.iter().flat_map(|host| host.addresses.clone());
    let hosts: Vec<IpAddr> = hosts.collect();
    let others: Vec<_> = frames
        .iter()
        .filter(|frame| esp_of(frame).is_none() && !is_solicitation(frame, &hosts))
        .cloned()
        .collect();
    let (kinds, readable) = (count_kinds(&others), kinds_with(&frames, marker));
    println!(
        "         on the wire: {} sealed, {kinds:?}",
        frames.len() - others.len()
    );
    let meant = kinds
        .keys()
        .all(|kind| kind == "ARP" || kind.starts_with("ICMPv6"));
    if !readable.is_empty() || !meant || frames.len() == others.len() {
        return Err(PerfError::Wrong(format!(
            "readable on the wire: {readable:?}, {kinds:?}"
        )));
    }
    Ok(())
}

type Part = fn(&Setting, &mut Tally) -> Result<(), PerfError>;

/// The parts, and whether the short form has them.
const PARTS: &[(&str, bool, Part)] = &[
    ("interop", true, interop::run),
    ("guests", false, guests::run),
    ("libvirt", true, libvirt::run),
    ("zero-copy-virtio", true, zero_copy::virtio),
    ("zero-copy-igb", false, zero_copy::igb),
];

/// Runs what is asked for. Gives whether everything passed.
///
/// # Errors
/// If a part cannot be begun.
pub fn run(options: &Options) -> Result<bool, PerfError> {
    remove_leftovers()?;
    let logs = std::env::temp_dir().join(format!("guestseal-vm-{}", std::process::id()));
    std::fs::create_dir_all(&logs).map_err(PerfError::io(logs.display().to_string()))?;
    let setting = Setting {
        logs: logs.clone(),
        kernels: options.kernels.clone(),
        short: options.short,
        write_docs: options.write_docs,
    };
    let mut tally = Tally::default();
    for (name, in_short, part) in PARTS {
        if !name.contains(&options.only) {
            continue;
        }
        if options.short && !in_short {
            println!("{name} is not part of the short form");
            continue;
        }
        match part(&setting, &mut tally) {
            Ok(()) => {}
            Err(PerfError::Interrupted) => {
                remove(&logs);
                return Err(PerfError::Interrupted);
            }
            Err(error) => tally.failed(name, &guestseal::control::supervise::chain(&error)),
        }
    }
    let ok = tally.ok();
    if ok {
        remove(&logs);
    } else {
        eprintln!("vm: logs are in {}", logs.display());
    }
    println!("{tally}");
    Ok(ok)
}

fn remove(logs: &Path) {
    // What is left in a temporary directory is a nuisance, no failure.
    let _ = std::fs::remove_dir_all(logs);
}
