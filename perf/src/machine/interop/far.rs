//! The far host: what Linux is told of addresses, SAs, policies and overlay devices.

use std::fmt::Write as _;

use crate::deployment::{Deployment, SaSpec};
use crate::machine::matrix::{BEFORE_WRAP, Cell, Cipher, Encapsulation, Family, Mode, Start};
use crate::machine::qemu::Machine;
use crate::process::PerfError;

use super::{FAR_MAC, NEAR_MAC, PATIENCE, VNIS, addresses, key};

/// Keeps a socket for ESP in UDP in each family: the kernel's way to say that what comes there is ESP (`UDP_ENCAP`), without a checksum over IPv6, too
/// (`UDP_NO_CHECK6_RX`).
const IN_UDP: [(&str, &str); 2] = [
    (
        "udp4",
        "UDP4-DATAGRAM:127.0.0.1:9,bind=:4500,setsockopt-int=17:100:2",
    ),
    (
        "udp6",
        "UDP6-DATAGRAM:[::1]:9,bind=[::]:4500,ipv6only=1,setsockopt-int=17:100:2,setsockopt-int=17:102:1",
    ),
];

/// The far and the near host.
fn hosts(outer: Family) -> [&'static str; 2] {
    match outer {
        Family::V4 => ["192.0.2.2", "192.0.2.1"],
        Family::V6 => ["2001:db8::2", "2001:db8::1"],
    }
}

/// The machine's device of an overlay network between addresses of a family, and the port of its datagrams.
fn device(encapsulation: Encapsulation, outer: Family) -> (&'static str, u16) {
    match (encapsulation, outer) {
        (Encapsulation::Vxlan, Family::V4) => ("vxlan4", 4789),
        (Encapsulation::Vxlan, Family::V6) => ("vxlan6", 4789),
        (Encapsulation::Geneve, Family::V4) => ("geneve4", 6081),
        (Encapsulation::Geneve, Family::V6) => ("geneve6", 6081),
    }
}

/// Addresses, SAs and policies of the machine.
pub(super) fn configure(
    machine: &mut Machine,
    cells: &[Cell],
    deployment: &Deployment,
) -> Result<(), PerfError> {
    let mut batch = String::from(
        "link set eth0 up\naddr add 192.0.2.2/24 dev eth0\naddr add 2001:db8::2/64 dev eth0 nodad\n",
    );
    // Linux would seal its neighbour discovery, too, and so lose the neighbour: it goes before the policies of the cells.
    for kind in [135, 136] {
        for way in ["in", "out"] {
            let _ = writeln!(
                batch,
                "xfrm policy add src ::/0 dst ::/0 proto 58 type {kind} dir {way} priority 1"
            );
        }
    }
    let mut devices = Vec::new();
    for cell in cells {
        let [near, far] = addresses(cell);
        let interface = match cell.mode {
            Mode::Overlay {
                encapsulation, outer, ..
            } => {
                let (name, _) = device(encapsulation, outer);
                if !devices.contains(&name) {
                    devices.push(name);
                    batch += &overlay_device(encapsulation, outer);
                }
                // Guestseal answers its own guests' questions; those from afar are its guests' to answer, by rules.
                let _ = writeln!(
                    batch,
                    "neigh add {near} lladdr {NEAR_MAC} dev {name} nud permanent"
                );
                name
            }
            Mode::Transport(_) | Mode::Tunnel { .. } => "eth0",
        };
        let (prefix, dad) = match cell.mode.inner() {
            Family::V4 => (24, ""),
            Family::V6 => (64, " nodad"),
        };
        let _ = writeln!(batch, "addr add {far}/{prefix} dev {interface}{dad}");
        for sa in deployment.sas.iter().filter(|sa| sa.key == key(cell)) {
            batch += &security_association(cell, sa);
        }
    }
    // KEYMAT stays in the machine's memory; nothing of it is printed.
    machine.write("/tmp/batch", &batch)?;
    machine.run("ip -batch /tmp/batch")?;
    for name in devices {
        // It would speak by itself, and what nobody expects would be counted.
        machine.run(&format!("echo 1 >/proc/sys/net/ipv6/conf/{name}/disable_ipv6"))?;
    }
    if cells
        .iter()
        .any(|cell| matches!(cell.mode, Mode::Overlay { in_udp: true, .. }))
    {
        for (name, socket) in IN_UDP {
            machine.begin(name, &format!("socat -u {socket} OPEN:/dev/null"))?;
        }
        machine.wait_until(
            "sockets for ESP in UDP",
            PATIENCE,
            "[ $(ss -Hlun 'sport = 4500' | wc -l) = 2 ]",
        )?;
    }
    Ok(())
}

fn overlay_device(encapsulation: Encapsulation, outer: Family) -> String {
    let (name, port) = device(encapsulation, outer);
    let [ours, theirs] = hosts(outer);
    let (kind, local, vni) = match encapsulation {
        Encapsulation::Vxlan => ("vxlan", format!(" local {ours}"), VNIS[0]),
        Encapsulation::Geneve => ("geneve", String::new(), VNIS[1]),
    };
    let checksum = match outer {
        Family::V4 => "",
        Family::V6 => " udp6zerocsumrx",
    };
    format!(
        "link add {name} address {FAR_MAC} type {kind} id {vni}{local} remote {theirs} dstport {port}{checksum}\n\
         link set {name} mtu 1400 up\n"
    )
}

/// An SA, and but for overlays its policy: those of overlays tell no cell from another ([`turn_to`]).
fn security_association(cell: &Cell, sa: &SaSpec) -> String {
    let [near, far] = addresses(cell);
    let (mode, [ours, theirs]) = match cell.mode {
        Mode::Transport(_) => ("transport", [far.as_str(), near.as_str()]),
        Mode::Tunnel { outer, .. } => ("tunnel", hosts(outer)),
        Mode::Overlay { outer, .. } => ("transport", hosts(outer)),
    };
    let algorithm = match cell.cipher {
        Cipher::Gcm(_) => "rfc4106(gcm(aes))",
        Cipher::Gmac(_) => "rfc4543(gcm(aes))",
    };
    let outward = sa.from == 1;
    let ((source, destination), (from, to), way) = if outward {
        ((ours, theirs), (&far, &near), "out")
    } else {
        ((theirs, ours), (&near, &far), "in")
    };
    let number = cell.number;
    let mut text = format!(
        "xfrm state add src {source} dst {destination} proto esp spi {:#x} reqid {number} mode {mode} aead {algorithm} 0x{} 128",
        sa.spi, sa.keymat
    );
    match cell.mode {
        // A machine's inner and outer addresses may be of different families: the selector says which are inside.
        Mode::Tunnel { .. } => {
            let _ = write!(text, " sel src {from} dst {to}");
        }
        Mode::Overlay { in_udp: true, .. } => text += " encap espinudp 4500 4500 0.0.0.0",
        Mode::Transport(_) | Mode::Overlay { .. } => {}
    }
    if cell.esn {
        text += " flag esn";
    }
    let _ = write!(text, " replay-window {}", cell.window);
    if cell.start == Start::BeforeWrap {
        let (which, value) = if outward {
            ("replay-oseq", BEFORE_WRAP)
        } else {
            // Guestseal begins at the number itself.
            ("replay-seq", BEFORE_WRAP - 1)
        };
        let _ = write!(text, " {which} {value:#x}");
    }
    text.push('\n');
    if !matches!(cell.mode, Mode::Overlay { .. }) {
        let _ = writeln!(
            text,
            "xfrm policy add src {from} dst {to} dir {way} priority 2 tmpl src {source} dst {destination} proto esp reqid {number} mode {mode}"
        );
    }
    text
}

/// Lets the machine seal an overlay's datagrams with the SA of this cell: between two hosts they are all of one policy.
pub(super) fn turn_to(machine: &mut Machine, cell: &Cell) -> Result<(), PerfError> {
    let Mode::Overlay {
        encapsulation, outer, ..
    } = cell.mode
    else {
        return Ok(());
    };
    let [ours, theirs] = hosts(outer);
    let (_, port) = device(encapsulation, outer);
    let number = cell.number;
    machine.run(&format!(
        "ip xfrm policy update src {ours} dst {theirs} proto 17 dport {port} dir out priority 2 \
           tmpl src {ours} dst {theirs} proto esp reqid {number} mode transport && \
         ip xfrm policy update src {theirs} dst {ours} proto 17 dport {port} dir in priority 2 \
           tmpl src {theirs} dst {ours} proto esp mode transport"
    ))?;
    Ok(())
}
