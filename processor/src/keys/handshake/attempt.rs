//! An initiation that waits for its answer, and is sent anew when none comes.

use std::time::Duration;

use crate::keys::store::Generation;

use super::noise::Waiting;
use super::random::{Random, jitter};
use super::settings::Settings;

pub(super) struct Attempt {
    pub(super) index: u32,
    pub(super) block: u32,
    pub(super) generation: Generation,
    pub(super) tag: [u8; 8],
    pub(super) mac1: [u8; 16],
    /// Which of the peer's public keys it is to.
    pub(super) public: usize,
    pub(super) waiting: Waiting,
    /// When the first of these initiations was sent.
    pub(super) first: Duration,
    /// How many were sent before this one.
    pub(super) tries: u32,
    /// When this one was sent.
    pub(super) sent: Duration,
    /// When it is sent anew.
    pub(super) next: Duration,
    /// Whether it carried a cookie.
    pub(super) with_cookie: bool,
}

impl Attempt {
    /// There is a reason to send it anew before its time, once its answer should be here.
    pub(super) fn hasten(&mut self, settings: &Settings, now: Duration) {
        self.next = self.next.min(now.max(self.sent + settings.retry_first));
    }
}

/// How long to wait for an answer after so many tries: doubled each time, and up to a third more, so that hosts that lost
/// the same peer do not come back at the same moment.
pub(super) fn wait(settings: &Settings, tries: u32, random: &mut dyn Random) -> Duration {
    let wait = settings
        .retry_first
        .saturating_mul(1 << tries.min(16))
        .min(settings.retry_longest);
    wait + jitter(wait / 3, random)
}

#[cfg(test)]
mod tests {
    use super::super::random::Counting;
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_with_at_most_a_third_added() {
        let settings = Settings::default();
        for (tries, base) in [(0, 1), (1, 2), (3, 8), (4, 8), (1000, 8)] {
            let base = Duration::from_secs(base);
            let mut seen = std::collections::HashSet::new();
            for seed in 0..50 {
                let wait = wait(&settings, tries, &mut Counting(seed * 5));
                assert!(wait >= base && wait <= base + base / 3, "{tries}: {wait:?}");
                seen.insert(wait);
            }
            assert!(seen.len() > 40, "they differ");
        }
    }
}
