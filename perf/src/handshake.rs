//! Handshakes a second on one core: Guestseal's engine beside boringtun's, the same primitives on the same machine.
//!
//! Both run all of a handshake for both hosts in one thread: initiation, its answer, and the message that confirms it;
//! the SA keys of one worker are derived. The two take turns, so that both see the same machine; a figure is the median
//! over rounds.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey as BoringPublic, StaticSecret};
use clap::Args;
use guestseal::keys::derive::Channel;
use guestseal::keys::handshake::engine::{Engine, Setup};
use guestseal::keys::handshake::output::{ChannelId, Output, PeerId};
use guestseal::keys::handshake::random::System;
use guestseal::keys::handshake::settings::Settings;
use guestseal::keys::handshake::shared::{Now, Peer};
use guestseal::keys::identity::Identity;
use guestseal::keys::secret::Secret;
use guestseal::keys::store::{Generation, KeyStore, RuleKey};
use guestseal_rules::classify::Protection;
use guestseal_rules::model::Suite;
use serde::Serialize;

use crate::process::{PerfError, json_text};
use crate::resume::resume_after_restart;

/// Handshakes of a round.
const ROUND: u32 = 100;

/// `guestseal-perf handshake`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Rounds of 100 handshakes each
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
struct Report {
    handshakes_per_second: f64,
    boringtun_handshakes_per_second: f64,
    /// Null without root: it takes hosts in namespaces.
    resume_after_restart_ms: Option<f64>,
}

/// Measures and prints.
///
/// # Errors
/// If a handshake does not end with a session on both sides.
pub fn run(options: &Options) -> Result<(), PerfError> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        ours.push(rate(guestseal_handshake)?);
        theirs.push(rate(boringtun_handshake)?);
    }
    let resume_after_restart_ms = if rustix::process::geteuid().is_root() {
        Some(resume_after_restart()?)
    } else {
        eprintln!("not measured without root: how long traffic stands still when a host has restarted");
        None
    };
    let report = Report {
        handshakes_per_second: median(ours),
        boringtun_handshakes_per_second: median(theirs),
        resume_after_restart_ms,
    };
    if options.json {
        println!("{}", json_text("report", &report)?);
    } else {
        println!("handshakes a second, both hosts on one core");
        println!("  guestseal {:>8.0}", report.handshakes_per_second);
        println!("  boringtun {:>8.0}", report.boringtun_handshakes_per_second);
        if let Some(milliseconds) = report.resume_after_restart_ms {
            println!("traffic after a host's restart: {milliseconds:.1} ms to the first answer");
        }
    }
    Ok(())
}

/// What one handshake takes, of which the making of hosts is not part.
fn rate(handshake: impl Fn() -> Result<Duration, PerfError>) -> Result<f64, PerfError> {
    let mut taken = Duration::ZERO;
    for _ in 0..ROUND {
        taken += handshake()?;
    }
    Ok(f64::from(ROUND) / taken.as_secs_f64())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or_default()
}

fn wrong(why: &str) -> PerfError {
    PerfError::Malformed {
        what: "handshake".into(),
        why: why.into(),
    }
}

fn guestseal_handshake() -> Result<Duration, PerfError> {
    let identities = [generate()?, generate()?];
    let publics = identities.each_ref().map(Identity::public);
    let addresses: [SocketAddr; 2] = [([192, 0, 2, 1], 4510).into(), ([192, 0, 2, 2], 4510).into()];
    let mut store = KeyStore::default();
    let secret = Secret::new(&[0x5a; 32]).ok_or_else(|| wrong("a key has 32 bytes"))?;
    store.add(RuleKey::new("any".into(), Generation(1), secret));
    let now = Now {
        monotonic: Duration::from_secs(1),
        wall: Duration::from_secs(1_700_000_000),
    };
    let mut engines = Vec::new();
    for (number, identity) in identities.into_iter().enumerate() {
        let mut engine = Engine::new(Setup {
            settings: Settings::default(),
            identity,
            workers: 1,
            peers: vec![Peer {
                address: addresses[1 - number],
                public_keys: vec![publics[1 - number]],
            }],
            channels: vec![Channel {
                network: "blue".into(),
                key: "any".into(),
                protection: Protection::Encrypt,
                suite: Suite::Aes256Gcm,
            }],
            manual: Vec::new(),
            random: Box::new(System),
        })
        .map_err(|error| wrong(&error.to_string()))?;
        engine.set_keys(&store, now);
        engines.push(engine);
    }
    let begin = Instant::now();
    engines[0].need_session(PeerId(0), ChannelId(0), now);
    let mut uses = 0;
    // Each turn carries what one host has to say: initiation, response, ping, pong.
    for turn in 0..5 {
        let number = turn % 2;
        while let Some(output) = engines[number].output() {
            match output {
                Output::Send { datagram, .. } => {
                    engines[1 - number].receive(&datagram, addresses[number], now)
                }
                Output::InstallInbound { session, .. } => engines[number].installed(session, now),
                Output::UseOutbound { .. } => uses += 1,
                _ => {}
            }
        }
    }
    let taken = begin.elapsed();
    if uses == 2 {
        Ok(taken)
    } else {
        Err(wrong("guestseal: a host has no session"))
    }
}

fn generate() -> Result<Identity, PerfError> {
    Identity::generate().map_err(|error| wrong(&error.to_string()))
}

fn boringtun_handshake() -> Result<Duration, PerfError> {
    let secret = || -> Result<StaticSecret, PerfError> {
        let mut bytes = [0; 32];
        guestseal::keys::handshake::random::Random::fill(&mut System, &mut bytes);
        Ok(StaticSecret::from(bytes))
    };
    let (one, two) = (secret()?, secret()?);
    let publics = [BoringPublic::from(&one), BoringPublic::from(&two)];
    let psk = Some([0x5a; 32]);
    let mut one = Tunn::new(one, publics[1], psk, None, 1, None);
    let mut two = Tunn::new(two, publics[0], psk, None, 2, None);
    let mut buffers = [[0; 256]; 3];
    let [first, second, third] = &mut buffers;
    let begin = Instant::now();
    let TunnResult::WriteToNetwork(initiation) = one.format_handshake_initiation(first, false) else {
        return Err(wrong("boringtun: no initiation"));
    };
    let TunnResult::WriteToNetwork(response) = two.decapsulate(None, initiation, second) else {
        return Err(wrong("boringtun: no response"));
    };
    let TunnResult::WriteToNetwork(confirmation) = one.decapsulate(None, response, third) else {
        return Err(wrong("boringtun: no confirmation"));
    };
    let mut rest = [0; 256];
    match two.decapsulate(None, confirmation, &mut rest) {
        TunnResult::Done => Ok(begin.elapsed()),
        _ => Err(wrong("boringtun: the confirmation was not taken")),
    }
}
