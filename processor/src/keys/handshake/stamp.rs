//! The time stamp of an initiation: each later than the one before, so that an old one is known as such.
//!
//! TAI64N in shape (seconds and nanoseconds since an epoch), of the host's wall clock, but never twice the same from one
//! process.

use std::time::Duration;

/// Bytes of a stamp.
pub(super) const STAMP: usize = 12;
/// A stamp that is behind by more than this is no datagram that came late, but a clock that was set back, or a replay.
pub(super) const LATE: Duration = Duration::from_secs(5);

/// Wall-clock time since the Unix epoch.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp(Duration);

impl Stamp {
    /// A stamp of now, or, if the clock stands or went back, the next one after `self`.
    pub(super) fn next(self, wall: Duration) -> Self {
        Self(wall.max(self.0.saturating_add(Duration::from_nanos(1))))
    }

    pub(super) fn to_bytes(self) -> [u8; STAMP] {
        let mut bytes = [0; STAMP];
        bytes[..8].copy_from_slice(&self.0.as_secs().to_be_bytes());
        bytes[8..].copy_from_slice(&self.0.subsec_nanos().to_be_bytes());
        bytes
    }

    /// Nothing, if the nanoseconds are a second or more.
    pub(super) fn from_bytes([a, b, c, d, e, f, g, h, i, j, k, l]: [u8; STAMP]) -> Option<Self> {
        let nanos = u32::from_be_bytes([i, j, k, l]);
        let seconds = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        (nanos < 1_000_000_000).then(|| Self(Duration::new(seconds, nanos)))
    }

    /// How far behind `later` it is.
    pub(super) fn behind(self, later: Self) -> Duration {
        later.0.saturating_sub(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_only_grow_and_read_as_written() {
        let wall = Duration::new(1_700_000_000, 5);
        let one = Stamp::default().next(wall);
        assert_eq!(one.to_bytes()[..8], 1_700_000_000u64.to_be_bytes());
        let two = one.next(wall);
        let three = two.next(wall - Duration::from_secs(3600));
        assert!(one < two && two < three);
        assert_eq!(Stamp::from_bytes(three.to_bytes()), Some(three));
        assert_eq!(Stamp::from_bytes([0xff; STAMP]), None);
        assert_eq!(one.behind(three), Duration::from_nanos(2));
        assert_eq!(three.behind(one), Duration::ZERO);
    }
}
