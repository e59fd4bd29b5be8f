//! A Debian kernel, unpacked from its packages: the image that QEMU starts and the modules that a machine loads.
//!
//! The directory has `vmlinuz` and `lib/modules/RELEASE`, as `ci/vm` makes it. Nothing of it is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{PerfError, run};

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    directory: PathBuf,
    release: String,
}

impl Kernel {
    /// The kernel in a directory.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn at(directory: &Path) -> Result<Self, PerfError> {
        let modules = directory.join("lib/modules");
        let failed = || PerfError::io(modules.display().to_string());
        let mut found = Vec::new();
        for entry in fs::read_dir(&modules).map_err(failed())? {
            found.push(
                entry
                    .map_err(failed())?
                    .file_name()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
        match found.as_slice() {
            [release] => Ok(Self {
                directory: directory.to_owned(),
                release: release.clone(),
            }),
            _ => Err(PerfError::Malformed {
                what: modules.display().to_string(),
                why: format!("expected one kernel, found {found:?}"),
            }),
        }
    }

    /// Its release, as `uname -r` says it.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The uncompressed image, which QEMU enters directly (PVH): without KVM the guest would take seconds to unpack it.
    ///
    /// # Errors
    /// If `vmlinuz` is none, or cannot be unpacked.
    pub fn image(&self) -> Result<PathBuf, PerfError> {
        let image = self.directory.join("vmlinux");
        if !image.exists() {
            let compressed = self.directory.join("vmlinuz");
            let name = compressed.display().to_string();
            let bytes = fs::read(&compressed).map_err(PerfError::io(name.clone()))?;
            let payload = payload(&bytes).ok_or_else(|| PerfError::Malformed {
                what: name,
                why: "not a bzImage of boot protocol 2.08 or later".into(),
            })?;
            // Beside, then renamed: an interrupted run leaves no half image.
            let aside = self.directory.join(format!("vmlinux.{}", std::process::id()));
            fs::write(&aside, decompress(payload, &self.directory)?)
                .and_then(|()| fs::rename(&aside, &image))
                .map_err(PerfError::io(image.display().to_string()))?;
        }
        Ok(image)
    }

    /// The files of these modules and of those that they need, in the order in which they are loaded. A name that is no
    /// module is built into this kernel, or missing: what needs it fails in the machine.
    #[must_use]
    pub fn modules(&self, names: &[&str]) -> Vec<PathBuf> {
        let mut order: Vec<PathBuf> = Vec::new();
        for name in names {
            let mut command = Command::new("modprobe");
            command.arg("-d").arg(&self.directory);
            command.args(["-S", &self.release, "--show-depends", name]);
            for line in run(&mut command).unwrap_or_default().lines() {
                if let Some(file) = line.strip_prefix("insmod ") {
                    let file = PathBuf::from(file.trim());
                    if !order.contains(&file) {
                        order.push(file);
                    }
                }
            }
        }
        order
    }
}

/// The compressed kernel in a bzImage: the Linux/x86 boot protocol's `setup_sects`, `payload_offset`, `payload_length`.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + word(0x248)?;
    image.get(start..start.checked_add(word(0x24c)?)?)
}

/// What a file's first bytes say it was compressed by.
fn decompress(bytes: &[u8], directory: &Path) -> Result<Vec<u8>, PerfError> {
    let program = match bytes {
        [0xfd, b'7', b'z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x1f, 0x8b, ..] => "gzip",
        _ => return Ok(bytes.to_vec()),
    };
    let aside = directory.join(format!("compressed.{}", std::process::id()));
    fs::write(&aside, bytes).map_err(PerfError::io(aside.display().to_string()))?;
    let output = fs::File::open(&aside)
        .and_then(|file| Command::new(program).arg("-dc").stdin(file).output())
        .map_err(PerfError::io(program))?;
    fs::remove_file(&aside).map_err(PerfError::io(aside.display().to_string()))?;
    // The kernel's payload ends with its size, which the programs take for trailing garbage.
    if output.stdout.is_empty() {
        return Err(PerfError::Malformed {
            what: format!("what {program} unpacks"),
            why: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(output.stdout)
}

/// A module's bytes, unpacked.
///
/// # Errors
/// If it cannot be read.
pub fn module_bytes(file: &Path, scratch: &Path) -> Result<Vec<u8>, PerfError> {
    let bytes = fs::read(file).map_err(PerfError::io(file.display().to_string()))?;
    decompress(&bytes, scratch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_stands_where_the_header_says() {
        let mut image = vec![0u8; 0x1000];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&5u32.to_le_bytes());
        image[1024 + 16..1024 + 21].copy_from_slice(b"hello");
        assert_eq!(payload(&image), Some(b"hello".as_slice()));
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(payload(&image), None);
        assert_eq!(payload(b"MZ"), None);
    }
}
