//! What has no session yet waits: bounded in number and time, and never leaves but sealed.

use std::cell::Cell;

use guestseal::aead::aes_gcm::AesGcm;
use guestseal::aead::engine::Engine;
use guestseal::path::batch::WorkerId;
use guestseal::path::notices::Notice;
use guestseal::path::outcome::DropReason::*;
use guestseal::sa::outbound::{Mode, OutboundSa};
use guestseal::sa::sequence::Sequence;
use guestseal::sa::slots::Place;
use guestseal::sa::spi::Spi;
use guestseal::sa::table::OutboundKey;
use guestseal::worker::run::{Command, monotonic};
use guestseal_rules::classify::Protection;
use guestseal_rules::model::{HostIndex, Policy};

use crate::frames::*;
use crate::host::{Host, Options, keymat, policy};

const SPI: u32 = 0x4000;
const SECOND: u64 = 1_000_000_000;

fn host(policy: &Policy) -> Host {
    let options = Options {
        sessions: true,
        ..Options::default()
    };
    Host::new(policy, 0, &options)
}

fn datagram(port: u16) -> Vec<u8> {
    between(BLUE1, BLUE2, false, UDP, &udp(9, port, b"waits for its session"))
}

fn key_of(policy: &Policy, id: &str) -> OutboundKey {
    OutboundKey {
        key: policy.key(id).unwrap(),
        protection: Protection::Encrypt,
        network: policy.network("blue").unwrap(),
        peer: HostIndex(1),
    }
}

/// The keys that sessions are wanted for.
fn wanted(host: &mut Host) -> Vec<OutboundKey> {
    let mut keys = Vec::new();
    while let Ok(notice) = host.notices[0].pop() {
        match notice {
            Notice::Wanted(key) => keys.push(key),
            other => panic!("{other:?}"),
        }
    }
    keys
}

/// As control does it: more slots, the SA at its place, then the table that has it.
fn establish(host: &mut Host, policy: &Policy, id: &str, serial: u32) -> Place {
    let key = key_of(policy, id);
    let suite = policy.keys[key.key.index()].suite;
    let (bytes, salt) = keymat(SPI + serial, suite.key_length());
    let place = Place {
        owner: WorkerId(0),
        slot: serial,
        serial,
    };
    let address = |host: usize| policy.hosts[host].addresses[0];
    let sa = OutboundSa {
        spi: Spi::new(SPI + serial).unwrap(),
        protection: Protection::Encrypt,
        mode: Mode::Tunnel {
            local: address(0),
            remote: address(1),
        },
        esn: true,
        key: AesGcm.expand(suite, &bytes).unwrap(),
        sequence: Sequence::fresh(true, salt),
        tally: Cell::default(),
    };
    for command in [
        Command::OutboundRoom(Vec::with_capacity(8)),
        Command::InstallOutbound(place, sa),
    ] {
        assert!(host.commands[0].push(command).is_ok());
    }
    host.settle();
    host.publish_sas(|sas| sas.set_session(key, vec![place]));
    place
}

/// Turns the worker until it has looked at those who wait.
fn look(host: &mut Host) {
    let until = monotonic() + SECOND / 100;
    while monotonic() < until {
        host.settle();
    }
}

fn spi_of(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[34..38].try_into().unwrap())
}

#[test]
fn the_first_packets_wait_and_leave_sealed_in_order() {
    let policy = policy();
    let mut host = host(&policy);
    for _ in 0..5 {
        host.guest_sends(BLUE1, &datagram(99));
    }
    assert!(host.on_wire().is_empty());
    assert_eq!(wanted(&mut host), [key_of(&policy, "blue-any")], "asked for once");
    host.assert_accounted();
    // Another key is another session, and what needs none does not wait.
    host.guest_sends(BLUE1, &between(BLUE1, BLUE2, false, TCP, &tcp(9, 25, SYN, b"")));
    host.guest_sends(BLUE1, &datagram(53));
    assert_eq!(host.on_wire().len(), 1, "plaintext by its rule");
    assert_eq!(wanted(&mut host), [key_of(&policy, "blue-mail")]);

    establish(&mut host, &policy, "blue-any", 1);
    look(&mut host);
    let wire = host.on_wire();
    let seen: Vec<(u32, u32)> = wire
        .iter()
        .map(|frame| {
            (
                spi_of(frame),
                u32::from_be_bytes(frame[38..42].try_into().unwrap()),
            )
        })
        .collect();
    let sealed: Vec<(u32, u32)> = (1..=5).map(|number| (SPI + 1, number)).collect();
    assert_eq!(seen, sealed);
    host.guest_sends(BLUE1, &datagram(99));
    assert_eq!(host.on_wire().len(), 1, "at once from now on");
    assert_eq!(host.workers[0].waiting.len(), 1, "the mail waits for its own");
    host.assert_accounted();
}

#[test]
fn who_finds_no_room_and_who_waits_too_long_is_counted() {
    let policy = policy();
    let mut host = host(&policy);
    for _ in 0..100 {
        host.guest_sends(BLUE1, &datagram(99));
    }
    let (waiting, full) = (host.workers[0].waiting.len(), host.dropped(WaitingRoomFull));
    assert_eq!(waiting as u64 + full, 100);
    assert_eq!(waiting, 32, "for one peer and key");
    host.assert_accounted();
    // What came long ago is given up at the next look; its place is free again.
    let device = host.guests.get_mut(BLUE1.id).unwrap();
    let mail = between(BLUE1, BLUE2, false, TCP, &tcp(9, 25, SYN, b""));
    assert!(device.arrive(&mail, monotonic().saturating_sub(10 * SECOND)));
    look(&mut host);
    assert_eq!(
        (host.dropped(NoSessionInTime), host.workers[0].waiting.len()),
        (1, 32)
    );
    host.assert_accounted();
    assert!(host.on_wire().is_empty());
}

#[test]
fn rules_that_change_meanwhile_decide() {
    let policy = policy();
    let mut host = host(&policy);
    host.guest_sends(BLUE1, &datagram(99));
    assert_eq!(host.workers[0].waiting.len(), 1);
    host.hears(r#"{"guest": "blue-1", "tag": {"service": "av", "name": "eicar", "severity": 90}}"#);
    establish(&mut host, &policy, "blue-any", 1);
    look(&mut host);
    assert!(host.on_wire().is_empty(), "quarantine lets nothing out");
    assert_eq!(host.dropped(RuleDrops), 1);
    host.assert_accounted();
}

#[test]
fn an_sa_that_was_retired_seals_nothing_more() {
    let policy = policy();
    let mut host = host(&policy);
    let first = establish(&mut host, &policy, "blue-any", 1);
    host.guest_sends(BLUE1, &datagram(99));
    assert_eq!(host.on_wire().len(), 1);
    // Retired before the table says so: what still finds its way there is dropped, also when the slot has another SA.
    assert!(host.commands[0].push(Command::RetireOutbound(first)).is_ok());
    host.settle();
    host.guest_sends(BLUE1, &datagram(99));
    assert!(host.on_wire().is_empty());
    assert_eq!(host.dropped(NoSecurityAssociation), 1);
    let given_back = std::iter::from_fn(|| host.notices[0].pop().ok()).any(
        |notice| matches!(notice, Notice::Outbound(place, sa) if place == first && sa.tally.get().packets == 1),
    );
    assert!(given_back, "with what was done under it");
    host.publish_sas(|sas| sas.set_session(key_of(&policy, "blue-any"), Vec::new()));
    host.guest_sends(BLUE1, &datagram(99));
    assert_eq!(host.workers[0].waiting.len(), 1, "the next one waits");
    host.assert_accounted();
}

#[test]
fn a_worker_that_stops_ends_those_who_wait() {
    let policy = policy();
    let mut host = host(&policy);
    host.guest_sends(BLUE1, &datagram(99));
    let stop = std::sync::Arc::clone(&host.workers[0].stop);
    stop.ask();
    let worker = host.workers.remove(0).run();
    assert!(worker.waiting.is_empty());
    host.workers.push(worker);
    assert_eq!(host.dropped(NoSessionInTime), 1);
    host.assert_accounted();
}
