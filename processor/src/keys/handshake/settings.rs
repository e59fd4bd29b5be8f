//! How long, how often, how much: the constants of sessions, in one place.

use std::time::Duration;

/// Times and limits of sessions. The defaults are what a host runs with; tests make them short.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// A session that is used is replaced after this time, by who began it; a tenth later by the other host.
    pub rekey_after: Duration,
    /// A session seals nothing after this time, whatever happened.
    pub reject_after: Duration,
    /// An SA that sealed so many packets is replaced.
    pub rekey_packets: u64,
    /// An SA seals no more packets than this.
    pub reject_packets: u64,
    /// An SA that sealed so many bytes is replaced.
    pub rekey_bytes: u64,
    /// How long an old session still opens after both hosts use a newer one: longer than any packet is under way.
    pub drain: Duration,
    /// When an unanswered initiation is sent again; the time doubles up to `retry_longest`, and a third of it at random is
    /// added.
    pub retry_first: Duration,
    /// The longest time between two initiations.
    pub retry_longest: Duration,
    /// An unanswered handshake that nobody asked for during this time is given up.
    pub give_up: Duration,
    /// Initiations that cross: for this long from its first one, the host with the greater public key ignores the other's.
    pub crossing: Duration,
    /// How long a host waits for a handshake that the peer began before it begins one itself.
    pub patience: Duration,
    /// How long an answered handshake may stay unconfirmed.
    pub unconfirmed: Duration,
    /// A peer that is sent to and silent for this time is asked whether it lives.
    pub silence: Duration,
    /// When an unanswered ping is sent again; the time doubles up to `retry_longest`.
    pub ping_first: Duration,
    /// Unanswered pings after which a new handshake begins.
    pub pings: u32,
    /// A ping at least so often, where something on the way forgets quiet flows.
    pub keepalive: Option<Duration>,
    /// When an unanswered probe of the path MTU is sent again (RFC 8899 5.1.1: PROBE_TIMER, not less than a second).
    pub probe_timer: Duration,
    /// The path MTU in use is probed so often while something is sealed (CONFIRMATION_TIMER).
    pub confirm_after: Duration,
    /// A greater one is tried so often while something is sealed (PMTU_RAISE_TIMER).
    pub raise_after: Duration,
    /// How long an older generation of a key is accepted after a newer one came.
    pub grace: Duration,
    /// Sessions move to a new generation of their key spread over this time.
    pub spread: Duration,
    /// How long a generation that the peer does not know is not tried again with it.
    pub refused_again: Duration,
    /// Initiations a second above which a cookie is asked for.
    pub load: u32,
    /// Initiations a second of one peer that are answered under load, cookie or not.
    pub load_of_peer: u32,
}

impl Default for Settings {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            rekey_after: seconds(600),
            reject_after: seconds(900),
            rekey_packets: 1 << 32,
            reject_packets: 1 << 34,
            // 2^34 blocks of AES: the chance that two are equal stays below 2^-60.
            rekey_bytes: 1 << 38,
            drain: seconds(30),
            retry_first: seconds(1),
            retry_longest: seconds(8),
            give_up: seconds(90),
            crossing: Duration::from_millis(500),
            patience: seconds(1),
            unconfirmed: seconds(60),
            silence: seconds(10),
            ping_first: Duration::from_millis(500),
            pings: 5,
            keepalive: None,
            probe_timer: seconds(1),
            confirm_after: seconds(5),
            raise_after: seconds(600),
            grace: seconds(24 * 3600),
            spread: seconds(10),
            refused_again: seconds(30),
            // A tenth of a millisecond each: some hundredths of a core.
            load: 250,
            load_of_peer: 20,
        }
    }
}
