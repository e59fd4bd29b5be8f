//! Latency per direction and outcome: from the XDP program's stamp to the transmit ring (or to the drop).
//!
//! A worker counts in buckets of its own; at intervals it swaps them for empty ones that control sends, so that
//! neither waits for the other and nothing is allocated on the packet path. Control makes histograms of them: the buckets are
//! HdrHistogram's, but to find one takes a shift and an addition in line, where a record into a histogram took 19 cycles a
//! packet (Zen 4).

use std::io::Write;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriter, IntervalLogWriterBuilder, Tag};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::path::outcome::{Direction, Outcome};

/// The classes that latency is kept for, in the order of [`class_of`].
const CLASSES: [&str; 5] = [
    "sent_encrypted",
    "sent_authenticated",
    "sent_plaintext",
    "delivered",
    "dropped",
];

/// Longest latency that is told apart from longer ones, in ns.
const LONGEST: u64 = 10_000_000_000;

/// Two significant digits: a class then has 28 KiB, and what is touched of it stays in the cache.
const DIGITS: u8 = 2;

/// With two digits a value is told apart by its first 8 bits.
const BITS: u32 = 8;
const HALF: usize = 1 << (BITS - 1);

/// Buckets of a class.
const BUCKETS: usize = bucket_of(LONGEST) + 1;

/// The bucket of a value: values of up to 8 bits have one each; of longer ones the first 8 bits and the length count.
#[inline]
const fn bucket_of(value: u64) -> usize {
    let cut = (value | ((1 << BITS) - 1)).ilog2() + 1 - BITS;
    cut as usize * HALF + (value >> cut) as usize
}

/// The least value of a bucket.
fn least_of(bucket: usize) -> u64 {
    let cut = (bucket / HALF).saturating_sub(1);
    ((bucket - cut * HALF) as u64) << cut
}

/// What a worker has counted: a bucket for each range of ns, for each direction and class of outcome.
#[derive(Debug)]
pub struct Counts(Box<[[u64; BUCKETS]]>);

impl Default for Counts {
    fn default() -> Self {
        Self(vec![[0; BUCKETS]; Direction::ALL.len() * CLASSES.len()].into_boxed_slice())
    }
}

impl Counts {
    /// Records one packet.
    #[inline]
    pub fn record(&mut self, direction: Direction, outcome: Outcome, nanoseconds: u64) {
        self.record_all(direction, outcome, std::iter::once(nanoseconds));
    }

    /// Records packets that ended alike.
    #[inline]
    pub fn record_all(
        &mut self,
        direction: Direction,
        outcome: Outcome,
        nanoseconds: impl Iterator<Item = u64>,
    ) {
        let class = &mut self.0[direction as usize * CLASSES.len() + class_of(outcome)];
        nanoseconds.for_each(|one| class[bucket_of(one.min(LONGEST))] += 1);
    }
}

#[inline]
fn class_of(outcome: Outcome) -> usize {
    outcome.index().min(CLASSES.len() - 1)
}

/// One histogram for each direction and class of outcome, in ns.
#[derive(Clone, Debug)]
pub struct Latencies(Vec<Histogram<u64>>);

impl Default for Latencies {
    fn default() -> Self {
        let one = Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("constant bounds are valid");
        Self(vec![one; Direction::ALL.len() * CLASSES.len()])
    }
}

impl Latencies {
    /// Adds what a worker has counted.
    pub fn add(&mut self, counts: &Counts) {
        for (histogram, counts) in self.0.iter_mut().zip(&counts.0) {
            for (bucket, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                histogram.saturating_record_n(least_of(bucket).max(1), *count);
            }
        }
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.0.iter_mut().for_each(Histogram::reset);
    }

    /// Every histogram that has something in it, with direction and class.
    pub fn recorded(&self) -> impl Iterator<Item = (&'static str, &'static str, &Histogram<u64>)> {
        self.0
            .iter()
            .enumerate()
            .filter(|(_, histogram)| !histogram.is_empty())
            .map(|(number, histogram)| {
                (
                    Direction::ALL[number / CLASSES.len()].name(),
                    CLASSES[number % CLASSES.len()],
                    histogram,
                )
            })
    }
}

/// The worker's end of the exchange.
#[derive(Debug)]
pub struct Recorder {
    /// What it counts in.
    pub current: Box<Counts>,
    empty: Consumer<Box<Counts>>,
    full: Producer<Box<Counts>>,
}

/// Control's end of the exchange.
#[derive(Debug)]
pub struct Collector {
    empty: Producer<Box<Counts>>,
    full: Consumer<Box<Counts>>,
}

/// The two ends.
#[must_use]
pub fn exchange() -> (Recorder, Collector) {
    let (empty, empty_end) = RingBuffer::new(1);
    let (full, full_end) = RingBuffer::new(1);
    let recorder = Recorder {
        current: Box::default(),
        empty: empty_end,
        full,
    };
    (
        recorder,
        Collector {
            empty,
            full: full_end,
        },
    )
}

impl Recorder {
    /// Swaps the counts if control asked for them.
    #[inline]
    pub fn swap_if_asked(&mut self) {
        if self.empty.is_empty() || self.full.is_full() {
            return;
        }
        if let Ok(empty) = self.empty.pop() {
            let full = std::mem::replace(&mut self.current, empty);
            if let Err(rtrb::PushError::Full(full)) = self.full.push(full) {
                self.current = full;
            }
        }
    }
}

impl Collector {
    /// Asks for the counts. They come with a later [`Collector::collect`].
    pub fn ask(&mut self) {
        if !self.empty.is_full() {
            let _ = self.empty.push(Box::default());
        }
    }

    /// What the worker gave since it was last asked.
    pub fn collect(&mut self) -> Option<Box<Counts>> {
        self.full.pop().ok()
    }
}

/// A log of intervals that HdrHistogram's own tools read.
pub type Log<'a, W> = IntervalLogWriter<'a, 'a, W, V2DeflateSerializer>;

/// Begins a log.
///
/// # Errors
/// Those of the writer.
pub fn begin_log<'a, W: Write>(
    to: &'a mut W,
    start: SystemTime,
    serializer: &'a mut V2DeflateSerializer,
) -> std::io::Result<Log<'a, W>> {
    IntervalLogWriterBuilder::new()
        .add_comment("guestseal latency, ns, tagged direction/outcome")
        .with_start_time(start)
        .with_base_time(start)
        // Values stand in the log as they are, in ns; the column of the largest is in us.
        .with_max_value_divisor(1000.0)
        .begin_log_with(to, serializer)
}

/// Writes one interval, one line for each histogram that has something in it.
///
/// # Errors
/// Those of the writer.
pub fn write_interval<W: Write>(
    log: &mut Log<'_, W>,
    since: Duration,
    length: Duration,
    latencies: &Latencies,
) -> std::io::Result<()> {
    for (direction, class, histogram) in latencies.recorded() {
        let name = format!("{direction}/{class}");
        let tag = Tag::new(&name).expect("names have no comma, space or line break");
        log.write_histogram(histogram, since, length, Some(tag))
            .map_err(|error| std::io::Error::other(format!("{error:?}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use proptest::prelude::*;

    use super::*;
    use crate::path::outcome::{DropReason, SentAs};

    #[test]
    fn the_log_is_read_back() {
        let mut counts = Counts::default();
        for nanoseconds in [1_000, 2_000, 3_000] {
            counts.record(Direction::Outbound, Outcome::Sent(SentAs::Encrypted), nanoseconds);
        }
        counts.record(Direction::Inbound, Outcome::Dropped(DropReason::NoRule), 500);
        let latencies = histograms(&counts);
        let (mut bytes, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
        let mut log = begin_log(&mut bytes, SystemTime::UNIX_EPOCH, &mut serializer).unwrap();
        write_interval(&mut log, Duration::ZERO, Duration::from_secs(1), &latencies).unwrap();
        let mut seen = Vec::new();
        for entry in IntervalLogIterator::new(&bytes) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                let raw = base64(interval.encoded_histogram());
                let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut raw.as_slice()).unwrap();
                seen.push((
                    interval.tag().unwrap().as_str().to_owned(),
                    histogram.len(),
                    histogram.max() / 1000,
                ));
            }
        }
        assert_eq!(
            seen,
            [
                ("outbound/sent_encrypted".to_owned(), 3, 3),
                ("inbound/dropped".to_owned(), 1, 0)
            ]
        );
    }

    fn base64(text: &str) -> Vec<u8> {
        let digit = |byte: u8| match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let mut bytes = Vec::new();
        for group in text.trim_end_matches('=').as_bytes().chunks(4) {
            let number = group
                .iter()
                .fold(0u32, |number, byte| number << 6 | u32::from(digit(*byte)));
            let number = number << (6 * (4 - group.len()));
            bytes.extend(&number.to_be_bytes()[1..group.len()]);
        }
        bytes
    }

    #[test]
    fn counts_go_over_and_come_back_empty() {
        let (mut recorder, mut collector) = exchange();
        recorder.current.record(Direction::Local, Outcome::Delivered, 7);
        recorder.swap_if_asked();
        assert!(collector.collect().is_none(), "nobody asked");
        collector.ask();
        recorder.swap_if_asked();
        assert_eq!(histograms(&collector.collect().unwrap()).recorded().count(), 1);
        assert_eq!(histograms(&recorder.current).recorded().count(), 0);
    }

    #[test]
    fn the_longest_saturate() {
        let mut counts = Counts::default();
        counts.record(Direction::Local, Outcome::Delivered, u64::MAX);
        let latencies = histograms(&counts);
        let (_, _, histogram) = latencies.recorded().next().unwrap();
        assert_eq!((histogram.len(), histogram.max() >= LONGEST), (1, true));
    }

    fn histograms(counts: &Counts) -> Latencies {
        let mut latencies = Latencies::default();
        latencies.add(counts);
        latencies
    }

    proptest! {
        #[test]
        fn a_bucket_is_one_of_the_histogram_s(value in 0..=LONGEST, shift in 0u32..34) {
            let value = value >> shift;
            let histogram = Histogram::<u64>::new_with_bounds(1, LONGEST, DIGITS).unwrap();
            prop_assert_eq!(least_of(bucket_of(value)), histogram.lowest_equivalent(value));
            prop_assert!(bucket_of(value) < BUCKETS);
        }
    }
}
