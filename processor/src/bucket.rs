//! A token bucket: so many a second, so many at once.

use std::time::Duration;

/// Time is counted from when it was made.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    per_second: u32,
    burst: u32,
    /// Billionths of a token.
    level: u128,
    at: Duration,
}

const TOKEN: u128 = 1_000_000_000;

impl Bucket {
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        Self {
            per_second,
            burst,
            level: u128::from(burst) * TOKEN,
            at: Duration::ZERO,
        }
    }

    /// How long after the last look there is a token again.
    pub(crate) fn wait(&self) -> Duration {
        let missing = TOKEN.saturating_sub(self.level);
        Duration::from_nanos(missing.div_ceil(u128::from(self.per_second.max(1))) as u64)
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, now: Duration) -> bool {
        let since = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let more = since.as_nanos() * u128::from(self.per_second);
        self.level = (self.level + more).min(u128::from(self.burst) * TOKEN);
        let full = self.level >= TOKEN;
        if full {
            self.level -= TOKEN;
        }
        full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_and_a_clock_that_stands() {
        let mut bucket = Bucket::new(10, 3);
        let taken = |bucket: &mut Bucket, at| {
            (0..100)
                .filter(|_| bucket.take(Duration::from_millis(at)))
                .count()
        };
        assert_eq!(taken(&mut bucket, 0), 3);
        assert_eq!(taken(&mut bucket, 0), 0);
        assert_eq!(taken(&mut bucket, 99), 0);
        assert_eq!(taken(&mut bucket, 100), 1);
        assert_eq!(taken(&mut bucket, 50), 0, "a clock that goes back gives nothing");
        assert_eq!(taken(&mut bucket, 60_000), 3);
    }
}
