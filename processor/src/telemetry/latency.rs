//! Latency per direction and outcome: from the XDP program's stamp to the transmit ring (or to the drop).
//!
//! A worker records into its own histograms; at intervals it swaps them for empty ones that control sends, so that
//! neither waits for the other and nothing is allocated on the packet path.

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

/// Two significant digits: a histogram then has 30 KiB, and what is touched of it stays in the cache.
const DIGITS: u8 = 2;

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
    /// Records one packet.
    #[inline]
    pub fn record(&mut self, direction: Direction, outcome: Outcome, nanoseconds: u64) {
        self.0[direction as usize * CLASSES.len() + class_of(outcome)].saturating_record(nanoseconds.max(1));
    }

    /// Adds another set to this one.
    pub fn merge(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            own.add(other).expect("the same bounds");
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
    /// What it records into.
    pub current: Box<Latencies>,
    empty: Consumer<Box<Latencies>>,
    full: Producer<Box<Latencies>>,
}

/// Control's end of the exchange.
#[derive(Debug)]
pub struct Collector {
    empty: Producer<Box<Latencies>>,
    full: Consumer<Box<Latencies>>,
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
    /// Swaps the histograms if control asked for them.
    #[inline]
    pub fn swap_if_asked(&mut self) {
        if self.empty.is_empty() || self.full.is_full() {
            return;
        }
        if let Ok(empty) = self.empty.pop() {
            let full = std::mem::replace(&mut self.current, empty);
            if let Err(rtrb::PushError::Full(full)) = self.full.push(full) {
                self.current.merge(&full);
            }
        }
    }
}

impl Collector {
    /// Asks for the histograms. They come with a later [`Collector::collect`].
    pub fn ask(&mut self) {
        if !self.empty.is_full() {
            let _ = self.empty.push(Box::default());
        }
    }

    /// What the worker gave since it was last asked.
    pub fn collect(&mut self) -> Option<Box<Latencies>> {
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

    use super::*;
    use crate::path::outcome::{DropReason, SentAs};

    #[test]
    fn the_log_is_read_back() {
        let mut latencies = Latencies::default();
        for nanoseconds in [1_000, 2_000, 3_000] {
            latencies.record(Direction::Outbound, Outcome::Sent(SentAs::Encrypted), nanoseconds);
        }
        latencies.record(Direction::Inbound, Outcome::Dropped(DropReason::NoRule), 500);
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
    fn histograms_go_over_and_come_back_empty() {
        let (mut recorder, mut collector) = exchange();
        recorder.current.record(Direction::Local, Outcome::Delivered, 7);
        recorder.swap_if_asked();
        assert!(collector.collect().is_none(), "nobody asked");
        collector.ask();
        recorder.swap_if_asked();
        assert_eq!(collector.collect().unwrap().recorded().count(), 1);
        assert_eq!(recorder.current.recorded().count(), 0);
    }

    #[test]
    fn the_longest_saturate() {
        let mut latencies = Latencies::default();
        latencies.record(Direction::Local, Outcome::Delivered, u64::MAX);
        assert_eq!(latencies.recorded().next().unwrap().2.len(), 1);
    }
}
