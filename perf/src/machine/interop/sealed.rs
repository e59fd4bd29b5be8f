//! Sealed frames off the wire, and back onto it.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use crate::capture::{Follower, esp_of};
use crate::namespaces::Namespace;
use crate::process::{PerfError, wait_for};

use super::{PATIENCE, wrong};

/// The sealed frames of each SPI that a capture has.
pub(super) struct Sealed {
    follower: Follower,
    frames: HashMap<u32, Vec<Vec<u8>>>,
}

impl Sealed {
    pub(super) fn new(file: &Path) -> Self {
        Self {
            follower: Follower::new(file),
            frames: HashMap::new(),
        }
    }

    fn look(&mut self) -> Result<(), PerfError> {
        for frame in self.follower.more()? {
            if let Some((spi, _)) = esp_of(&frame) {
                self.frames.entry(spi).or_default().push(frame);
            }
        }
        Ok(())
    }

    /// Waits for so many frames of an SPI; gives them.
    pub(super) fn take(&mut self, spi: u32, count: usize) -> Result<Vec<Vec<u8>>, PerfError> {
        wait_for(
            &format!("{count} frames of {spi:#x} on the wire"),
            PATIENCE,
            || {
                self.look()?;
                Ok(self
                    .frames
                    .get(&spi)
                    .is_some_and(|frames| frames.len() >= count)
                    .then_some(()))
            },
        )?;
        let mut frames = self.frames.remove(&spi).unwrap_or_default();
        frames.truncate(count);
        Ok(frames)
    }

    pub(super) fn forget(&mut self, spi: u32) -> Result<(), PerfError> {
        self.look()?;
        self.frames.remove(&spi);
        Ok(())
    }
}

/// Sends frames out of an interface.
pub(super) fn inject(namespace: &Namespace, interface: &str, frames: &[Vec<u8>]) -> Result<(), PerfError> {
    const SEND: &str = "import socket, sys\n\
                        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
                        s.bind((sys.argv[1], 0))\n\
                        for line in sys.stdin: s.send(bytes.fromhex(line))\n";
    let mut command = namespace.command("python3");
    let failed = || PerfError::io("a program that injects frames");
    let mut child = command
        .args(["-c", SEND, interface])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(failed())?;
    let text: String = frames
        .iter()
        .map(|frame| frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n")
        .collect();
    if let Some(mut input) = child.stdin.take() {
        input.write_all(text.as_bytes()).map_err(failed())?;
    }
    let status = child.wait().map_err(failed())?;
    if status.success() {
        Ok(())
    } else {
        Err(wrong(format!("frames could not be injected ({status})")))
    }
}
