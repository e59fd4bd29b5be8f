//! The root file system of a machine: busybox, the programs it is to run with their libraries, and kernel modules.
//!
//! Written as a cpio archive in the "newc" format, which the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{PerfError, run};

use super::kernel::{Kernel, module_bytes};

const INIT: &str = include_str!("init.sh");

/// Busybox applets that would stand in for the real programs.
const REPLACED: [&str; 4] = ["ip", "ss", "ping", "ethtool"];

/// An archive that is being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    made: BTreeSet<PathBuf>,
}

impl Archive {
    /// The root file system of a machine: what its first process needs, `programs` by name or path, `modules` with all that they need.
    ///
    /// # Errors
    /// If a file is missing.
    pub fn of_machine(
        kernel: &Kernel,
        modules: &[&str],
        programs: &[PathBuf],
        scratch: &Path,
    ) -> Result<Self, PerfError> {
        let mut archive = Self::default();
        for directory in ["proc", "sys", "dev", "tmp", "run", "etc", "root", "modules"] {
            archive.directory(Path::new(directory));
        }
        archive.file(Path::new("init"), 0o755, INIT.as_bytes());
        archive.file(Path::new("etc/passwd"), 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
        let busybox = found("busybox")?;
        archive.copy(&busybox, Path::new("bin/busybox"))?;
        for applet in run(Command::new(&busybox).arg("--list"))?.lines() {
            if !REPLACED.contains(&applet) && applet != "busybox" {
                archive.link(&Path::new("bin").join(applet), "busybox");
            }
        }
        for program in programs {
            archive.program(program, scratch)?;
        }
        let mut order = String::new();
        for file in kernel.modules(modules) {
            let name = file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let name = name.split(".ko").next().unwrap_or_default().to_owned();
            let bytes = module_bytes(&file, scratch)?;
            archive.file(&Path::new("modules").join(&name), 0o644, &bytes);
            order += &format!("{name}\n");
        }
        archive.file(Path::new("modules/order"), 0o644, order.as_bytes());
        Ok(archive)
    }

    /// A program, by name or path, as `/sbin/NAME`, and the libraries that it is linked with, where they are here. Those of our own
    /// come without what debuggers read: it would fill the machine's memory.
    fn program(&mut self, program: &Path, scratch: &Path) -> Result<(), PerfError> {
        let file = if program.is_absolute() {
            program.to_owned()
        } else {
            found(&program.to_string_lossy())?
        };
        let name = file.file_name().unwrap_or_default().to_owned();
        let place = Path::new("sbin").join(&name);
        if program.is_absolute() {
            let stripped = scratch.join(name);
            run(Command::new("strip").arg("-o").arg(&stripped).arg(&file))?;
            self.copy(&stripped, &place)?;
        } else {
            self.copy(&file, &place)?;
        }
        // A static program has none: ldd fails.
        for word in run(Command::new("ldd").arg(&file))
            .unwrap_or_default()
            .split_whitespace()
        {
            if let Some(inside) = word.strip_prefix('/') {
                self.copy(Path::new(word), Path::new(inside))?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, from: &Path, to: &Path) -> Result<(), PerfError> {
        if self.made.contains(to) {
            return Ok(());
        }
        let failed = || PerfError::io(from.display().to_string());
        let mode = std::fs::metadata(from).map_err(failed())?.permissions().mode();
        let bytes = std::fs::read(from).map_err(failed())?;
        self.file(to, mode & 0o7777, &bytes);
        Ok(())
    }

    fn directory(&mut self, path: &Path) {
        if path.as_os_str().is_empty() || !self.made.insert(path.to_owned()) {
            return;
        }
        self.parent_of(path);
        self.entry(path, 0o040_755, &[]);
    }

    /// A file with these bytes.
    pub fn file(&mut self, path: &Path, mode: u32, bytes: &[u8]) {
        self.parent_of(path);
        self.made.insert(path.to_owned());
        self.entry(path, 0o100_000 | mode, bytes);
    }

    fn link(&mut self, path: &Path, target: &str) {
        self.parent_of(path);
        self.entry(path, 0o120_777, target.as_bytes());
    }

    fn parent_of(&mut self, path: &Path) {
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &Path, mode: u32, bytes: &[u8]) {
        self.entries += 1;
        let name = path.to_string_lossy();
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            bytes.len() as u32,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(bytes);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(Path::new("TRAILER!!!"), 0, &[]);
        self.bytes
    }
}

/// A program of this machine, by its name.
fn found(name: &str) -> Result<PathBuf, PerfError> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|directory| Path::new(directory).join(name))
        .find(|file| file.exists())
        .ok_or_else(|| PerfError::Malformed {
            what: format!("`{name}`"),
            why: "there is no such program here".into(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_parents_come_first() {
        let mut archive = Archive::default();
        archive.file(Path::new("a/b"), 0o644, b"x");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        // Header of 110 bytes, name and its end, to a multiple of 4; then the contents, the same.
        assert!(text.starts_with("07070100000001000041ED"), "{text}");
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..134], b"07070100000002000081A4".as_slice());
        assert_eq!(&bytes[222..226], b"a/b\0");
        assert_eq!(bytes[228], b'x');
        assert_eq!(&bytes[232..238], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }
}
