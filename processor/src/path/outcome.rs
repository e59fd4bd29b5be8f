//! The one list of endings: every packet ends in exactly one [`Outcome`].
//!
//! Metrics, `explain`, traces and docs derive from this list: a reason carries its stage, its severity and the line
//! an operator reads. Detail beyond the reason leaves through the event ring.

use guestseal_rules::classify::Protection;

/// How a packet ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Submitted to the uplink.
    Sent(SentAs),
    /// Submitted to a guest port.
    Delivered,
    /// Ended here, and why.
    Dropped(DropReason),
}

/// The protection under which a packet left by the uplink.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum SentAs {
    /// Sealed by AES-GCM (RFC 4106).
    Encrypted,
    /// Readable, with an AES-GMAC tag (RFC 4543).
    Authenticated,
    /// As the guest sent it, because a rule says so.
    Plaintext,
}

impl SentAs {
    /// What leaves under an SA that protects so.
    #[inline]
    #[must_use]
    pub fn under(protection: Protection) -> Self {
        match protection {
            Protection::Encrypt => Self::Encrypted,
            Protection::Authenticate => Self::Authenticated,
        }
    }
}

/// The way a packet goes through the host, as the guest sees it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// From a guest port to the uplink.
    Outbound,
    /// From the uplink to a guest port.
    Inbound,
    /// From a guest port to another guest port of this host.
    Local,
}

impl Direction {
    /// Every direction, in the order of their numbers.
    pub const ALL: [Direction; 3] = [Direction::Outbound, Direction::Inbound, Direction::Local];

    /// The name in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
            Direction::Local => "local",
        }
    }
}

/// What a drop says about the host's state.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The rules at work.
    Policy,
    /// Bytes that are not a packet we accept: a fault or an attack.
    Hostile,
    /// The host lacks room, a key or a device: an operator should look.
    Trouble,
}

macro_rules! drop_reasons {
    ($($name:ident, $stage:literal, $severity:ident, $line:literal;)*) => {
        /// Why a packet was dropped. Fieldless: it names the fact.
        #[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $(#[doc = $line] $name,)* }

        impl DropReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)*];

            /// The name in metrics and logs: the variant's own.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$name => stringify!($name),)* }
            }

            /// The stage of the packet's way that decides it.
            #[must_use]
            pub fn stage(self) -> &'static str {
                match self { $(DropReason::$name => $stage,)* }
            }

            /// What it says about the host.
            #[must_use]
            pub fn severity(self) -> Severity {
                match self { $(DropReason::$name => Severity::$severity,)* }
            }

            /// One line for the operator.
            #[must_use]
            pub fn line(self) -> &'static str {
                match self { $(DropReason::$name => $line,)* }
            }
        }
    };
}

drop_reasons! {
    FrameTooLong, "receive", Trouble, "No frame of the UMEM has room for it (umem: frame-size, long-frames): it was dropped before it was received.";
    Truncated, "parse", Hostile, "The frame ends before a header that it announces does.";
    BadIpHeader, "parse", Hostile, "An IP version, header length, total length or header checksum is impossible.";
    BadExtensionHeader, "parse", Hostile, "An IPv6 extension header is unknown, out of bounds, or the chain is longer than 8.";
    BadFragment, "parse", Hostile, "A fragment is so small or so placed that it could hide a header (RFC 1858).";
    BadTransportHeader, "parse", Hostile, "A transport header is impossible.";
    BadVlan, "parse", Hostile, "VLAN tags are stacked deeper than two.";
    UnknownVlan, "parse", Hostile, "The VLAN tag, or that there is none, is that of no guest port of the trunk it came from.";
    GuestMoved, "guard", Policy, "The guest that the port is for lives on another host now.";
    SpoofedMac, "guard", Hostile, "The source MAC is not the one of the guest port it came from.";
    SpoofedSource, "guard", Hostile, "The source IP is not one of the guest port it came from.";
    SpoofedNeighbour, "guard", Hostile, "An ARP or neighbour discovery message claims an address that is not the sender's.";
    WrongHost, "guard", Hostile, "The source endpoint lives on another host than the one that spoke for it.";
    NotOurs, "guard", Hostile, "The frame from the uplink is for no guest of this host.";
    DestinationMismatch, "guard", Hostile, "The destination IP does not belong to the guest whose MAC it is sent to.";
    NoRule, "classify", Policy, "No rule matches.";
    RuleDrops, "classify", Policy, "The rule that matches says drop.";
    FragmentNeedsPorts, "classify", Policy, "A fragment without ports met a rule that needs them.";
    RuleWantsSealed, "classify", Policy, "It arrived in plaintext, and its rule does not say plaintext.";
    KeyNotOfRule, "classify", Hostile, "It was opened by a key or protection that its rule does not name.";
    NoSecurityAssociation, "seal", Trouble, "The rule's key has no outbound SA that covers this packet.";
    WaitingRoomFull, "seal", Trouble, "There is no session with the peer yet, and as many packets wait for one as may.";
    NoSessionInTime, "seal", Trouble, "The packet waited for a session with the peer, and there was none in time.";
    NotSealable, "seal", Policy, "The rule seals, but this is not an IP packet to one guest (ARP, broadcast, multicast).";
    FragmentInTransportMode, "seal", Policy, "ESP transport mode carries whole datagrams only, and this is a fragment (RFC 4303 3.1.1).";
    ExtensionInTransportMode, "seal", Policy, "The SA is in transport mode, and the IPv6 packet has extension headers.";
    VlanInTunnelMode, "seal", Policy, "The SA is in tunnel mode, which carries no VLAN tag.";
    NoNextHop, "seal", Trouble, "The MAC of the peer host is not known (yet).";
    TooLong, "seal", Policy, "The sealed packet is longer than the uplink's MTU or the frame.";
    SequenceExhausted, "seal", Trouble, "The SA has used its last sequence number: a new SA is needed.";
    SequenceNotReserved, "seal", Trouble, "The SA's durable high-water mark has not been raised in time.";
    UnknownSpi, "open", Hostile, "No inbound SA has this SPI.";
    BadEsp, "open", Hostile, "The ESP packet is too short, misaligned, a fragment, or in a frame for a group.";
    ReplaySeen, "open", Hostile, "The sequence number was accepted before.";
    ReplayTooOld, "open", Hostile, "The sequence number is left of the replay window.";
    BadTag, "open", Hostile, "The tag is wrong: changed, or sealed under another key.";
    BadTrailer, "open", Hostile, "The ESP trailer, padding or next header is impossible.";
    DummyPacket, "open", Policy, "A dummy packet of traffic flow confidentiality (RFC 4303 2.6).";
    SelectorMismatch, "open", Hostile, "The opened packet is outside the selectors of its SA (RFC 4301 5.2).";
    BadEncapsulation, "decapsulate", Hostile, "What came to a VTEP is no whole VXLAN or Geneve packet with an Ethernet frame.";
    WrongNetwork, "decapsulate", Hostile, "Its VNI is not the one of the SA's network, or of no network.";
    CongestionUnheard, "decapsulate", Policy, "It met congestion on the way, and the guest's packet cannot carry the mark (RFC 6040 4.2).";
    GroupRateExceeded, "encapsulate", Policy, "The guest port sends more broadcasts, multicasts and frames to unknown MACs than an overlay copies to other hosts.";
    NoEndpoint, "deliver", Policy, "Its addresses belong to no endpoint of its network.";
    NoFrame, "deliver", Trouble, "No free frame: the pool of the worker is empty.";
    TxRingFull, "deliver", Trouble, "The transmit ring is full: the device is slower than the offered load.";
    PortGone, "deliver", Trouble, "The port it should leave by is down or gone.";
    HandoffFull, "handoff", Trouble, "The ring to the worker that owns its next step is full.";
}

impl Outcome {
    /// How many different outcomes exist.
    pub const COUNT: usize = 4 + DropReason::ALL.len();

    /// A dense number below [`Outcome::COUNT`], for counters.
    #[must_use]
    #[inline]
    pub fn index(self) -> usize {
        match self {
            Outcome::Sent(SentAs::Encrypted) => 0,
            Outcome::Sent(SentAs::Authenticated) => 1,
            Outcome::Sent(SentAs::Plaintext) => 2,
            Outcome::Delivered => 3,
            Outcome::Dropped(reason) => 4 + reason as usize,
        }
    }

    /// The outcome of a number that [`Outcome::index`] gave; `None` from [`Outcome::COUNT`] on.
    #[must_use]
    pub fn from_index(index: usize) -> Option<Outcome> {
        match index {
            0 => Some(Outcome::Sent(SentAs::Encrypted)),
            1 => Some(Outcome::Sent(SentAs::Authenticated)),
            2 => Some(Outcome::Sent(SentAs::Plaintext)),
            3 => Some(Outcome::Delivered),
            _ => DropReason::ALL
                .get(index - 4)
                .map(|reason| Outcome::Dropped(*reason)),
        }
    }

    /// The name of its class in metrics: `sent_encrypted`, `sent_authenticated`, `sent_plaintext`, `delivered`,
    /// `dropped`.
    #[must_use]
    pub fn class(self) -> &'static str {
        match self {
            Outcome::Sent(SentAs::Encrypted) => "sent_encrypted",
            Outcome::Sent(SentAs::Authenticated) => "sent_authenticated",
            Outcome::Sent(SentAs::Plaintext) => "sent_plaintext",
            Outcome::Delivered => "delivered",
            Outcome::Dropped(_) => "dropped",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_number_of_its_own() {
        for index in 0..Outcome::COUNT {
            assert_eq!(Outcome::from_index(index).expect("below COUNT").index(), index);
        }
        assert_eq!(Outcome::from_index(Outcome::COUNT), None);
    }
}
