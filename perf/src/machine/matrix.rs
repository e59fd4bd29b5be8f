//! The cells of the interoperability matrix: which SAs a foreign kernel and Guestseal are to share, and the table of them.

use std::fmt::Write;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What an overlay network puts its guests' frames into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// VXLAN (RFC 7348).
    Vxlan,
    /// Geneve (RFC 8926).
    Geneve,
}

/// What ESP wraps, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The payload of a guest's packet.
    Transport(Family),
    /// A guest's packet, between hosts' addresses.
    Tunnel {
        /// The guest's packet.
        inner: Family,
        /// The hosts' addresses.
        outer: Family,
    },
    /// The datagram between hosts that has a guest's frame.
    Overlay {
        /// What the frame is in.
        encapsulation: Encapsulation,
        /// The hosts' addresses.
        outer: Family,
        /// ESP in UDP port 4500 (RFC 3948).
        in_udp: bool,
    },
}

impl Mode {
    /// The family of the guests' addresses.
    #[must_use]
    pub fn inner(self) -> Family {
        match self {
            Mode::Transport(family) | Mode::Tunnel { inner: family, .. } => family,
            Mode::Overlay { .. } => Family::V4,
        }
    }

    /// Whether ESP is between the hosts' IPv6 addresses.
    #[must_use]
    pub fn over_ip6(self) -> bool {
        matches!(
            self,
            Mode::Tunnel {
                outer: Family::V6,
                ..
            } | Mode::Overlay {
                outer: Family::V6,
                ..
            }
        )
    }
}

/// The cipher, and whether it hides or only authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// AES-GCM (RFC 4106) with a key of so many bits.
    Gcm(u16),
    /// AES-GMAC (RFC 4543) with a key of so many bits.
    Gmac(u16),
}

/// Where the senders' numbers begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At 1.
    One,
    /// Shortly before 2^32.
    BeforeWrap,
}

/// The number after which senders begin in cells that wrap.
pub const BEFORE_WRAP: u32 = 0xffff_fff0;
/// Datagrams that a sender sends in each direction.
pub const DATAGRAMS: u32 = 40;

/// One pair of SAs that both ends have.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// Its number, from 1: part of its addresses and names.
    pub number: u8,
    /// Transport or tunnel.
    pub mode: Mode,
    /// The cipher.
    pub cipher: Cipher,
    /// Extended sequence numbers.
    pub esn: bool,
    /// The foreign kernel's replay window.
    pub window: u32,
    /// Where the numbers begin.
    pub start: Start,
    /// Whether the window's edges are tried.
    pub edges: bool,
}

impl Cell {
    /// Guestseal's replay window: its configuration has none below 1024.
    #[must_use]
    pub fn own_window(&self) -> u32 {
        self.window.max(1024)
    }

    /// Datagrams of [`DATAGRAMS`] that must arrive: an SA of 32-bit numbers ends before they wrap (RFC 4303 3.3.3).
    #[must_use]
    pub fn expected(&self) -> u32 {
        if self.start == Start::BeforeWrap && !self.esn {
            u32::MAX - BEFORE_WRAP
        } else {
            DATAGRAMS
        }
    }

    /// What the cell is, in the table's columns.
    #[must_use]
    pub fn columns(&self) -> [String; 6] {
        let family = |family| match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let mode = match self.mode {
            Mode::Transport(inner) => format!("transport, {}", family(inner)),
            Mode::Tunnel { inner, outer } => format!("tunnel, {} in {}", family(inner), family(outer)),
            Mode::Overlay {
                encapsulation,
                outer,
                in_udp,
            } => format!(
                "transport{}, {} over {}",
                if in_udp { " in UDP 4500" } else { "" },
                match encapsulation {
                    Encapsulation::Vxlan => "VXLAN",
                    Encapsulation::Geneve => "Geneve",
                },
                family(outer)
            ),
        };
        let cipher = match self.cipher {
            Cipher::Gcm(bits) => format!("AES-{bits}-GCM"),
            Cipher::Gmac(bits) => format!("AES-{bits}-GMAC"),
        };
        let numbers = match (self.start, self.esn) {
            (Start::One, _) => "from 1",
            (Start::BeforeWrap, true) => "across 2^32",
            (Start::BeforeWrap, false) => "to the end at 2^32",
        };
        let window = if self.edges {
            format!("{}, both edges", self.window)
        } else {
            self.window.to_string()
        };
        [
            self.number.to_string(),
            mode,
            cipher,
            if self.esn { "yes" } else { "no" }.into(),
            numbers.into(),
            window,
        ]
    }
}

/// Every cell; a few that touch every part of the matrix if `short`.
#[must_use]
pub fn cells(short: bool) -> Vec<Cell> {
    use Family::{V4, V6};
    let tunnel = |inner, outer| Mode::Tunnel { inner, outer };
    let overlay = |encapsulation, outer, in_udp| Mode::Overlay {
        encapsulation,
        outer,
        in_udp,
    };
    let modes = [
        Mode::Transport(V4),
        Mode::Transport(V6),
        tunnel(V4, V4),
        tunnel(V6, V6),
    ];
    let ciphers = [
        Cipher::Gcm(128),
        Cipher::Gcm(256),
        Cipher::Gmac(128),
        Cipher::Gmac(256),
    ];
    let mut cells = Vec::new();
    let mut add = |mode, cipher, esn, window, start, edges| {
        cells.push(Cell {
            number: cells.len() as u8 + 1,
            mode,
            cipher,
            esn,
            window,
            start,
            edges,
        });
    };
    if short {
        add(
            Mode::Transport(V4),
            Cipher::Gcm(256),
            true,
            1024,
            Start::BeforeWrap,
            false,
        );
        add(tunnel(V6, V6), Cipher::Gcm(128), false, 32, Start::One, true);
        add(
            Mode::Transport(V6),
            Cipher::Gmac(256),
            true,
            128,
            Start::One,
            false,
        );
        add(
            tunnel(V4, V4),
            Cipher::Gcm(256),
            false,
            32,
            Start::BeforeWrap,
            false,
        );
        for mode in [
            overlay(Encapsulation::Vxlan, V4, true),
            overlay(Encapsulation::Geneve, V6, false),
        ] {
            add(mode, Cipher::Gcm(256), true, 1024, Start::One, false);
        }
        return cells;
    }
    for mode in modes {
        for cipher in ciphers {
            for esn in [true, false] {
                add(mode, cipher, esn, 1024, Start::One, false);
            }
        }
    }
    for mode in [tunnel(V4, V6), tunnel(V6, V4)] {
        for esn in [true, false] {
            add(mode, Cipher::Gcm(256), esn, 1024, Start::One, false);
        }
    }
    for window in [32, 64, 256, 1024, 2048, 4096] {
        for esn in [true, false] {
            add(
                Mode::Transport(V4),
                Cipher::Gcm(256),
                esn,
                window,
                Start::One,
                true,
            );
        }
    }
    for mode in modes {
        for cipher in [Cipher::Gcm(128), Cipher::Gcm(256), Cipher::Gmac(256)] {
            add(mode, cipher, true, 1024, Start::BeforeWrap, false);
        }
        add(mode, Cipher::Gcm(256), false, 1024, Start::BeforeWrap, false);
    }
    for encapsulation in [Encapsulation::Vxlan, Encapsulation::Geneve] {
        for outer in [V4, V6] {
            for in_udp in [false, true] {
                let mode = overlay(encapsulation, outer, in_udp);
                add(mode, Cipher::Gcm(256), true, 1024, Start::One, false);
                add(mode, Cipher::Gcm(128), false, 1024, Start::One, false);
                add(mode, Cipher::Gmac(256), true, 1024, Start::One, false);
            }
        }
        let mode = overlay(encapsulation, V4, false);
        add(mode, Cipher::Gcm(256), true, 1024, Start::BeforeWrap, false);
    }
    cells
}

/// What a cell showed: Guestseal seals, Guestseal opens.
pub type Seen = [Result<(), String>; 2];

/// The table, in Markdown.
#[must_use]
pub fn table(cells: &[(Cell, Seen)]) -> String {
    let mut text = String::from(
        "| | ESP | cipher | ESN | numbers | window | Guestseal seals, Linux opens | Linux seals, Guestseal opens |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for (cell, seen) in cells {
        let said = seen.each_ref().map(|result| match result {
            Ok(()) => "ok".to_owned(),
            Err(why) => format!("**fails**: {}", why.replace(['\n', '|'], " ")),
        });
        let _ = writeln!(text, "| {} | {} |", cell.columns().join(" | "), said.join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_there_once_and_has_an_address() {
        for short in [false, true] {
            let cells = cells(short);
            let columns = |cell: &Cell| cell.columns()[1..].join(" ");
            let mut different: Vec<String> = cells.iter().map(columns).collect();
            different.sort();
            different.dedup();
            assert_eq!(different.len(), cells.len());
            assert!(cells.len() < 250, "cells are numbered by one byte of an address");
        }
    }

    #[test]
    fn without_esn_fifteen_numbers_are_left_before_the_wrap() {
        let cells = cells(true);
        let expected = |esn: bool| {
            let wraps = |cell: &&Cell| cell.start == Start::BeforeWrap && cell.esn == esn;
            cells.iter().find(wraps).unwrap().expected()
        };
        assert_eq!((expected(true), expected(false)), (DATAGRAMS, 15));
    }

    #[test]
    fn the_table_says_why_a_cell_is_red() {
        let cell = cells(true)[0];
        let text = table(&[(cell, [Ok(()), Err("a|b".into())])]);
        assert!(
            text.ends_with(
                "| transport, IPv4 | AES-256-GCM | yes | across 2^32 | 1024 | ok | **fails**: a b |\n"
            ),
            "{text}"
        );
    }
}
