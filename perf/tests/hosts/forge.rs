//! Handshakes that an attacker sends: all that can be right without a secret is.

use std::time::Duration;

use guestseal::keys::derive::Channel;
use guestseal::keys::handshake::engine::{Engine, Setup};
use guestseal::keys::handshake::output::{ChannelId, Output, PeerId};
use guestseal::keys::handshake::random::System;
use guestseal::keys::handshake::settings::Settings;
use guestseal::keys::handshake::shared::{Now, Peer};
use guestseal::keys::identity::{Identity, PublicKey};
use guestseal::keys::secret::Secret;
use guestseal::keys::store::{Generation, KeyStore, RuleKey};
use guestseal_rules::classify::Protection;
use guestseal_rules::model::Suite;

use crate::net::{Net, Result};

const PORT: u16 = guestseal::control::sessions::config::PORT;

/// Ethernet frames with initiations to host 1, as if host 2 sent them; each from an identity of its own.
pub(crate) fn initiations(net: &Net, count: usize) -> Result<Vec<Vec<u8>>> {
    let identity = net.deployment.directory().join("h1.identity");
    let victim = Identity::read(&identity)?.public();
    let mac = |host: usize| -> Result<Vec<u8>> {
        let text = net.topology.hosts[host].run("cat /sys/class/net/uplink/address")?;
        let byte = |part| u8::from_str_radix(part, 16);
        Ok(text
            .trim()
            .split(':')
            .map(byte)
            .collect::<std::result::Result<_, _>>()?)
    };
    let (to, from) = (mac(0)?, mac(1)?);
    (0..count)
        .map(|_| Ok(frame(&to, &from, &initiation(victim)?)))
        .collect()
}

fn initiation(victim: PublicKey) -> Result<Vec<u8>> {
    let now = Now {
        monotonic: Duration::from_secs(1),
        wall: std::time::UNIX_EPOCH.elapsed()?,
    };
    let mut engine = Engine::new(Setup {
        settings: Settings::default(),
        identity: Identity::generate()?,
        workers: 1,
        peers: vec![Peer {
            address: ([192, 0, 2, 1], PORT).into(),
            public_keys: vec![victim],
        }],
        channels: vec![Channel {
            network: "blue".into(),
            key: "blue-any".into(),
            protection: Protection::Encrypt,
            suite: Suite::Aes256Gcm,
        }],
        manual: Vec::new(),
        random: Box::new(System),
    })?;
    let mut store = KeyStore::default();
    let secret = Secret::new(&[0x5a; 32]).ok_or("a key has 32 bytes")?;
    store.add(RuleKey::new("blue-any".into(), Generation(1), secret));
    engine.set_keys(&store, now);
    engine.need_session(PeerId(0), ChannelId(0), now);
    while let Some(output) = engine.output() {
        if let Output::Send { datagram, .. } = output {
            return Ok(datagram.to_vec());
        }
    }
    Err("the engine says nothing".into())
}

fn frame(to: &[u8], from: &[u8], payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let ip = guestseal::wire::ip4::outer([192, 0, 2, 2].into(), [192, 0, 2, 1].into(), 17, 0, 20 + length);
    let port = PORT.to_be_bytes();
    let udp = [&port[..], &port, &length.to_be_bytes(), &[0, 0]].concat();
    [to, from, &[8, 0], &ip[..], &udp, payload].concat()
}

/// The same to another port.
pub(crate) fn to_port(frame: &[u8], port: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[36..38].copy_from_slice(&port.to_be_bytes());
    frame
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
