//! One trial after the other: throughput without loss, and how old what arrives is.
//!
//! RFC 2544 26.1: the throughput is the highest rate at which nothing is lost. A trial that loses something is repeated once
//! (a virtual machine's CPU is sometimes taken away for a moment); a rate that loses twice is too high.

use crate::process::PerfError;

/// The highest rate at which `trial` succeeds, within `precision` of it; 0 if none does. `high` is where it begins: a rate
/// that may fail.
pub(super) fn search(
    high: f64,
    precision: f64,
    mut trial: impl FnMut(f64) -> Result<bool, PerfError>,
) -> Result<f64, PerfError> {
    let mut passes = |rate| Ok::<bool, PerfError>(trial(rate)? || trial(rate)?);
    if passes(high)? {
        return Ok(high);
    }
    let (mut low, mut high) = (0.0, high);
    while high - low > precision * high {
        // Nothing is known to pass yet: come down faster.
        let rate = if low == 0.0 {
            high * 0.7
        } else {
            (low + high) / 2.0
        };
        if passes(rate)? {
            low = rate;
        } else {
            high = rate;
        }
        if high < 1000.0 {
            break;
        }
    }
    Ok(low)
}

/// How old packets were: nanoseconds, and how many were about as old as that, the youngest first.
pub(super) type Ages = Vec<(u64, u64)>;

/// What came between two readings.
pub(super) fn difference(before: &Ages, after: &Ages) -> Ages {
    let old = |age| {
        before
            .iter()
            .find(|(other, _)| *other == age)
            .map_or(0, |(_, count)| *count)
    };
    after
        .iter()
        .map(|(age, count)| (*age, count - old(*age)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// The age that this part of all packets is not older than.
pub(super) fn percentile(ages: &Ages, part: f64) -> u64 {
    let all: u64 = ages.iter().map(|(_, count)| count).sum();
    let wanted = (all as f64 * part).ceil() as u64;
    let mut seen = 0;
    let found = ages.iter().find(|(_, count)| {
        seen += count;
        seen >= wanted
    });
    found.or(ages.last()).map_or(0, |(age, _)| *age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_rate_without_loss_is_found() {
        for capacity in [3_000.0, 480_000.0, 999_999.0] {
            let found = search(1_000_000.0, 0.02, |rate| Ok(rate <= capacity)).unwrap();
            assert!(
                found <= capacity && found > capacity * 0.96,
                "{found} of {capacity}"
            );
        }
        assert_eq!(search(100.0, 0.02, |_| Ok(true)).unwrap(), 100.0);
        assert_eq!(search(1e6, 0.02, |_| Ok(false)).unwrap(), 0.0);
    }

    /// A hiccup costs one repetition, not the rate.
    #[test]
    fn one_loss_is_forgiven_two_are_not() {
        let mut trials = 0;
        let found = search(1000.0, 0.02, |_| {
            trials += 1;
            Ok(trials > 1)
        });
        assert_eq!((found.unwrap(), trials), (1000.0, 2));
    }

    #[test]
    fn percentiles_count_packets() {
        let ages = vec![(10, 90), (20, 9), (1000, 1)];
        let at = [0.5, 0.9, 0.91, 0.99, 1.0].map(|part| percentile(&ages, part));
        assert_eq!(at, [10, 10, 20, 20, 1000]);
        assert_eq!(percentile(&Vec::new(), 0.5), 0);
        assert_eq!(difference(&vec![(10, 80), (20, 9)], &ages), [(10, 10), (1000, 1)]);
    }
}
