//! What callers of the control socket may cost at most.

use std::time::Duration;

/// Questions that wait for the control loop.
pub const WAITING: usize = 256;
/// Connections at once; more wait until one ends.
pub const CONNECTIONS: usize = 64;
/// Event streams at once among them, so that listeners cannot shut others out.
pub const STREAMS: usize = 16;
/// News that a listener may be behind; then it is told how many it lost.
pub const NEWS: usize = 1024;
/// Bytes of a request's body.
pub const BODY: usize = 256 << 10;
/// Bytes of a request's head.
pub const HEAD: usize = 16 << 10;
/// How long a request's head may take.
pub const HEAD_TIME: Duration = Duration::from_secs(5);
/// How long a request's body, and the answer to it, may take.
pub const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How long the answer to a reload may take: a fleet's policy is read, checked and compiled in it.
pub const RELOAD_TIME: Duration = Duration::from_secs(120);
/// How long a caller may take nothing of an answer.
pub const WRITE_TIME: Duration = Duration::from_secs(10);
/// How often a quiet event stream says that it lives.
pub const PULSE: Duration = Duration::from_secs(15);
/// Entries of the journal in one answer.
pub const ENTRIES: usize = 1000;
