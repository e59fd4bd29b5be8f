//! The sockets of this machine as `/proc` shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::Flow;

/// A socket.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Whose it is.
    pub(super) user: u32,
    /// Its number.
    pub(super) inode: u64,
}

/// Tables, and the protocol of each.
const TABLES: [(&str, u8); 4] = [("tcp", 6), ("tcp6", 6), ("udp", 17), ("udp6", 17)];
/// Established, and those that are about to be or still have something to send.
const ALIVE: std::ops::RangeInclusive<u8> = 1..=5;

/// Flows to other machines.
pub(super) fn all(proc: &Path) -> io::Result<BTreeMap<Flow, Found>> {
    let mut all = table(proc)?;
    all.retain(|flow, _| !flow.remote.ip().is_loopback() && !flow.local.ip().is_loopback());
    Ok(all)
}

/// All flows.
pub(super) fn table(proc: &Path) -> io::Result<BTreeMap<Flow, Found>> {
    let mut all = BTreeMap::new();
    for (name, protocol) in TABLES {
        let text = match fs::read_to_string(proc.join("net").join(name)) {
            Ok(text) => text,
            // A machine without IPv6 has fewer.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        all.extend(text.lines().skip(1).filter_map(|line| row(line, protocol)));
    }
    Ok(all)
}

fn row(line: &str, protocol: u8) -> Option<(Flow, Found)> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, remote, state, _, _, _, user, _, inode, ..] = words[..] else {
        return None;
    };
    let state = u8::from_str_radix(state, 16).ok()?;
    let flow = Flow {
        protocol,
        local: end(local)?,
        remote: end(remote)?,
    };
    let found = Found {
        user: user.parse().ok()?,
        inode: inode.parse().ok()?,
    };
    let is_alive = ALIVE.contains(&state) && flow.remote.port() != 0 && found.inode != 0;
    is_alive.then_some((flow, found))
}

/// `0100007F:1F90`: each four bytes of the address as the machine's own number, the port as it is.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let mut bytes = Vec::new();
    for start in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(start..start + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let address = match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(bytes) => IpAddr::V4(Ipv4Addr::from(bytes)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[..]).ok()?)),
    };
    Some(SocketAddr::new(
        address.to_canonical(),
        u16::from_str_radix(port, 16).ok()?,
    ))
}

/// The programs that have sockets open, by the sockets' numbers.
pub(super) fn owners(proc: &Path, mut inodes: BTreeSet<u64>) -> BTreeMap<u64, String> {
    let mut owners = BTreeMap::new();
    // Processes come and go meanwhile.
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        let path = process.path();
        if inodes.is_empty() {
            break;
        }
        for descriptor in fs::read_dir(path.join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else {
                continue;
            };
            let number = target
                .to_str()
                .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
            let Some(inode) = number.and_then(|number| number.parse().ok()) else {
                continue;
            };
            if !inodes.contains(&inode) {
                continue;
            }
            let program = fs::read_link(path.join("exe")).ok();
            let name = program
                .as_deref()
                .and_then(Path::file_name)
                .and_then(|name| name.to_str());
            if let Some(name) = name {
                inodes.remove(&inode);
                owners.insert(inode, name.to_owned());
            }
        }
    }
    owners
}
