//! What the wire carried: tcpdump in the wire's namespace, and a look at every frame.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use guestseal::wire::esp;
use guestseal::wire::packet::{L3, Packet};
use guestseal::wire::{transport, udp};
use rustix::process::Signal;

use crate::namespaces::Namespace;
use crate::process::{PerfError, Running, wait_for};

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    process: Running,
    file: PathBuf,
}

impl Capture {
    /// Captures on an interface; returns when frames are really captured.
    ///
    /// # Errors
    /// If tcpdump does not start.
    pub fn start(namespace: &Namespace, interface: &str, directory: &Path) -> Result<Self, PerfError> {
        let file = directory.join(format!("{interface}.pcap"));
        let mut command: Command = namespace.command("tcpdump");
        command
            .args([
                "-n",
                "-U",
                "--immediate-mode",
                "-B",
                "65536",
                "-Z",
                "root",
                "-i",
                interface,
                "-w",
            ])
            .arg(&file);
        let mut process = Running::start(&format!("tcpdump-{interface}"), directory, &mut command)?;
        wait_for("tcpdump to listen", Duration::from_secs(10), || {
            process.check_runs()?;
            Ok(process.errors().contains("listening on").then_some(()))
        })?;
        Ok(Self { process, file })
    }

    /// Ends the capture; gives every frame.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn stop(mut self) -> Result<Vec<Vec<u8>>, PerfError> {
        self.process.signal(Signal::INT);
        self.process.finish(Duration::from_secs(10))?;
        read(&self.file)
    }

    /// A look at what is captured from here on.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn follow(&self) -> Result<Follower, PerfError> {
        let mut follower = Follower::new(&self.file);
        follower.more()?;
        Ok(follower)
    }

    /// The capture file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }
}

/// Reads a pcap file; a last record that is not whole yet is left out.
///
/// # Errors
/// If it cannot be read or is none.
pub fn read(file: &Path) -> Result<Vec<Vec<u8>>, PerfError> {
    Follower::new(file).more()
}

/// Reads a capture while it grows.
#[derive(Debug)]
pub struct Follower {
    file: PathBuf,
    /// Bytes read so far; 0 before the file's header.
    at: u64,
}

impl Follower {
    /// From the beginning of a file.
    #[must_use]
    pub fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            at: 0,
        }
    }

    /// The frames that have come since the last look.
    ///
    /// # Errors
    /// If the file cannot be read or is no capture.
    pub fn more(&mut self) -> Result<Vec<Vec<u8>>, PerfError> {
        let name = self.file.display().to_string();
        let mut bytes = Vec::new();
        File::open(&self.file)
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(self.at))?;
                file.read_to_end(&mut bytes)
            })
            .map_err(PerfError::io(name.clone()))?;
        let word =
            |at: usize| -> Option<u32> { bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes) };
        let mut at = 0;
        if self.at == 0 {
            // Written by tcpdump on this machine: little-endian, microseconds, Ethernet.
            if word(0) != Some(0xa1b2_c3d4) || word(20) != Some(1) {
                return Err(PerfError::Malformed {
                    what: name,
                    why: "not a capture of Ethernet frames".to_owned(),
                });
            }
            at = 24;
        }
        let mut frames = Vec::new();
        while let Some(length) = word(at + 8) {
            let Some(frame) = bytes.get(at + 16..at + 16 + length as usize) else {
                break;
            };
            frames.push(frame.to_vec());
            at += 16 + length as usize;
        }
        self.at += at as u64;
        Ok(frames)
    }
}

/// SPI and low sequence number of an ESP frame, in UDP port 4500 or not.
#[must_use]
pub fn esp_of(frame: &[u8]) -> Option<(u32, u32)> {
    let packet = Packet::parse(frame).ok()?;
    let skipped = match (packet.l3, packet.protocol, packet.ports) {
        (L3::Ip, esp::ESP, _) => 0,
        (L3::Ip, transport::UDP, Some((_, esp::UDP_PORT))) => udp::HEADER,
        _ => return None,
    };
    let start = usize::from(packet.l4_offset) + skipped;
    let header = frame.get(start..)?.first_chunk::<8>()?;
    let [a, b, c, d, e, f, g, h] = *header;
    Some((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])))
}

/// What a frame is, in a word: `ESP 0x00001001`, `ARP`, `ICMPv6`, `UDP 53`, …
#[must_use]
pub fn kind_of(frame: &[u8]) -> String {
    if let Some((spi, _)) = esp_of(frame) {
        return format!("ESP {spi:#010x}");
    }
    let Ok(packet) = Packet::parse(frame) else {
        return "malformed".to_owned();
    };
    match (packet.l3, packet.protocol, packet.ports) {
        (L3::Arp { .. }, ..) => "ARP".to_owned(),
        (L3::Ip, 1, _) => "ICMP".to_owned(),
        (L3::Ip, 58, _) => "ICMPv6".to_owned(),
        (L3::Ip, 6, Some((source, destination))) => format!("TCP {}", source.min(destination)),
        (L3::Ip, 17, Some((source, destination))) => format!("UDP {}", source.min(destination)),
        (L3::Ip, protocol, _) => format!("IP protocol {protocol}"),
        (L3::Other, ..) => format!("EtherType {:#06x}", packet.ethertype),
    }
}

/// Whether one of the hosts makes its kernel look for another one's MAC by it (an empty datagram to the discard port), or
/// answers that nobody listens there.
#[must_use]
pub fn is_solicitation(frame: &[u8], hosts: &[IpAddr]) -> bool {
    const DISCARD: u16 = 9;
    /// Port unreachable, of ICMP and of ICMPv6.
    const UNREACHABLE: [(u8, u8); 2] = [(3, 3), (1, 4)];
    Packet::parse(frame).is_ok_and(|packet| {
        let is_empty = usize::from(packet.end - packet.l4_offset) == udp::HEADER;
        let asks = packet.protocol == transport::UDP
            && packet.ports.is_some_and(|(_, to)| to == DISCARD)
            && is_empty;
        let answers = packet.icmp.is_some_and(|message| UNREACHABLE.contains(&message));
        packet.l3 == L3::Ip
            && hosts.contains(&packet.source)
            && hosts.contains(&packet.destination)
            && (asks || answers)
    })
}

/// How many frames of each kind.
#[must_use]
pub fn count_kinds(frames: &[Vec<u8>]) -> BTreeMap<String, u64> {
    let mut kinds = BTreeMap::new();
    for frame in frames {
        *kinds.entry(kind_of(frame)).or_default() += 1;
    }
    kinds
}

/// The kinds of frames that have `marker` in them, readable.
#[must_use]
pub fn kinds_with(frames: &[Vec<u8>], marker: &str) -> BTreeMap<String, u64> {
    let has = |frame: &&Vec<u8>| {
        frame
            .windows(marker.len())
            .any(|window| window == marker.as_bytes())
    };
    count_kinds(&frames.iter().filter(has).cloned().collect::<Vec<_>>())
}
