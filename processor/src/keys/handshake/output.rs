//! What the engine asks for, and what it says happened.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::keys::derive::TrafficKey;
use crate::keys::store::Generation;
use crate::path::batch::WorkerId;
use crate::sa::spi::Spi;

use super::message::Datagram;

/// A peer: its place in the list that the engine was given.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u16);

/// A channel: its place in the list that the engine was given.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub u16);

/// What sessions are between: one peer, one channel.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair {
    /// The peer.
    pub peer: PeerId,
    /// The channel.
    pub channel: ChannelId,
}

/// A session of this process: never the same number twice, later ones greater.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    /// Between whom, and for what.
    pub pair: Pair,
    /// The number.
    pub number: u64,
}

/// An SA that opens.
#[derive(Debug)]
pub struct InboundSaOrder {
    /// What packets carry.
    pub spi: Spi,
    /// The worker that owns it.
    pub owner: WorkerId,
    /// Its key.
    pub key: TrafficKey,
}

/// An SA that seals.
#[derive(Debug)]
pub struct OutboundSaOrder {
    /// What packets carry.
    pub spi: Spi,
    /// The worker that seals with it.
    pub worker: WorkerId,
    /// Its key.
    pub key: TrafficKey,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub enum Output {
    /// Send a datagram.
    Send {
        /// To whom.
        to: SocketAddr,
        /// What.
        datagram: Datagram,
    },
    /// Send a datagram, filled up with zeros to a length, so that it arrives whole or not at all (IPv4: don't fragment).
    Probe {
        /// To whom.
        to: SocketAddr,
        /// What it begins with.
        datagram: Datagram,
        /// Its length.
        length: u16,
    },
    /// Packets to a peer may be so long from now on, and no longer.
    PathMtu {
        /// The peer.
        peer: PeerId,
        /// Bytes of an IP packet.
        mtu: u16,
    },
    /// Install SAs that open, then tell the engine `installed`: until then the peer hears nothing that lets it use them.
    InstallInbound {
        /// The session.
        session: SessionId,
        /// An SA for each worker of the peer.
        sas: Vec<InboundSaOrder>,
    },
    /// From now on seal with these, instead of any before of the same pair.
    UseOutbound {
        /// The session.
        session: SessionId,
        /// An SA for each worker of this host.
        sas: Vec<OutboundSaOrder>,
        /// Packets that one SA may seal, no more.
        packets: u64,
    },
    /// Open no more with these SAs.
    RetireInbound {
        /// The session.
        session: SessionId,
        /// Their SPIs.
        spis: Vec<Spi>,
    },
    /// Seal no more with the SAs of this session: there are none to take their place.
    RetireOutbound {
        /// The session.
        session: SessionId,
    },
    /// Something happened that an operator may want to know.
    Event(Event),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session may be sealed with.
    Established {
        /// The session.
        session: SessionId,
        /// The generation of its key.
        generation: Generation,
        /// Its SAs, of both directions.
        sas: u64,
    },
    /// A session is over.
    Ended {
        /// The session.
        session: SessionId,
        /// The generation of its key.
        generation: Generation,
        /// Why.
        reason: EndReason,
    },
    /// Nobody answers, and nobody asks any more.
    GaveUp {
        /// Between whom, and for what.
        pair: Pair,
    },
    /// The peer does not answer inside a session.
    Silent {
        /// The session.
        session: SessionId,
    },
    /// The peer does not know this generation.
    Refused {
        /// Between whom, and for what.
        pair: Pair,
        /// The generation.
        generation: Generation,
    },
    /// Packets as long as every link must take do not pass to a peer.
    NarrowPath {
        /// The peer.
        peer: PeerId,
    },
    /// A session is wanted, and there is no key for it.
    NoKey {
        /// Between whom, and for what.
        pair: Pair,
    },
}

/// Why a session is over.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndReason {
    /// A newer one took its place.
    Superseded,
    /// Its time is over.
    Expired,
    /// Its key is not held any more, no rule names it, or the peer's public key is another.
    Revoked,
    /// No guests of the two hosts may use it any more.
    Unusable,
    /// The peer ended it.
    ByPeer,
    /// It was never confirmed.
    Unconfirmed,
    /// The policy has no such peer any more, or has it elsewhere.
    PeerGone,
}

impl EndReason {
    /// The name in status and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EndReason::Superseded => "superseded",
            EndReason::Expired => "expired",
            EndReason::Revoked => "revoked",
            EndReason::Unusable => "unusable",
            EndReason::ByPeer => "by-peer",
            EndReason::Unconfirmed => "unconfirmed",
            EndReason::PeerGone => "peer-gone",
        }
    }

    /// The same in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            EndReason::Superseded => "a newer one took its place",
            EndReason::Expired => "its time is over",
            EndReason::Revoked => "its key is revoked",
            EndReason::Unusable => "no guests of the two hosts may use it any more",
            EndReason::ByPeer => "the peer has ended it",
            EndReason::Unconfirmed => "it was never confirmed",
            EndReason::PeerGone => "the policy has no such peer there any more",
        }
    }
}

/// What the workers did under a session, since it began.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Packets sealed, of all workers.
    pub sent_packets: u64,
    /// Bytes sealed, of all workers.
    pub sent_bytes: u64,
    /// Packets sealed by the worker that sealed most.
    pub most_packets: u64,
    /// Bytes sealed by the worker that sealed most.
    pub most_bytes: u64,
    /// Packets opened.
    pub received_packets: u64,
    /// Bytes opened.
    pub received_bytes: u64,
}

/// A session, as status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// The session.
    pub session: SessionId,
    /// The generation of its key.
    pub generation: Generation,
    /// Whether this host seals with it.
    pub current: bool,
    /// How old it is.
    pub age: Duration,
    /// Until it is replaced, if it is used till then.
    pub next_rekey: Option<Duration>,
    /// Since the peer was last heard in it.
    pub heard: Option<Duration>,
    /// How long a packet to the peer may be, with everything around what is sealed; none before it is known what the uplink
    /// takes.
    pub path_mtu: Option<u16>,
    /// What was done under it.
    pub usage: Usage,
}

/// What came of datagrams, for the exporter.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Handshakes that this host finished as the initiator.
    pub initiated: u64,
    /// Handshakes that this host answered.
    pub answered: u64,
    /// No message, or from an address of no peer.
    pub stray: u64,
    /// A wrong mac1.
    pub bad_mac: u64,
    /// Cookies sent.
    pub cookies: u64,
    /// Initiations refused under load.
    pub overload: u64,
    /// Initiations under a key or generation that is not known here.
    pub unknown_key: u64,
    /// Handshake messages that do not open.
    pub bad_handshake: u64,
    /// Initiations with an old time stamp.
    pub replayed: u64,
    /// Messages inside a session that do not open, are replayed, or belong to none.
    pub bad_inside: u64,
    /// Sessions that were ended at once, on this host or by the peer: their key is not held any more, or no guests may use it.
    pub revoked: u64,
}
