//! How much a source may say: so many events in a second, and nothing twice in the same moment.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use guestseal_rules::event::{Event, What};

use crate::bucket;

/// For how long the same again is nothing new.
const MOMENT: Duration = Duration::from_secs(1);
/// Tags that are remembered for that long.
const REMEMBERED: usize = 4096;

/// A source's allowance: a second's worth at once, then as many as time brings.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: bucket::Bucket,
    since: Instant,
}

impl Bucket {
    pub(super) fn new(rate: u32, now: Instant) -> Self {
        Self {
            tokens: bucket::Bucket::new(rate, rate),
            since: now,
        }
    }

    /// Takes a token; else when there will be one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        match self.tokens.take(now.saturating_duration_since(self.since)) {
            true => Ok(()),
            false => Err(now + self.tokens.wait()),
        }
    }
}

/// The tags that were set a moment ago. A guest that makes a service say the same a thousand times delays nobody else's.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    told: HashMap<Told, Instant>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Told {
    guest: String,
    service: String,
    name: String,
    severity: u8,
}

impl Repeats {
    /// Forgets that an event was said.
    pub(super) fn forget(&mut self, event: &Event) {
        self.told.retain(|told, _| told.guest != event.guest);
    }

    /// Whether an event says what was said a moment ago.
    pub(super) fn is_repeated(&mut self, event: &Event, now: Instant) -> bool {
        let What::Tag(tag) = &event.what else {
            // What was said of the guest before may not hold any more.
            self.forget(event);
            return false;
        };
        let told = Told {
            guest: event.guest.clone(),
            service: tag.service.clone(),
            name: tag.name.clone(),
            severity: tag.severity,
        };
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < MOMENT;
        if self.told.get(&told).is_some_and(is_recent) {
            return true;
        }
        if self.told.len() >= REMEMBERED {
            self.told.retain(|_, at| is_recent(at));
        }
        if self.told.len() < REMEMBERED {
            self.told.insert(told, now);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_at_once_and_then_as_many_as_time_brings() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(10, begin);
        let taken = |bucket: &mut Bucket, now| (0..100).take_while(|_| bucket.take(now).is_ok()).count();
        assert_eq!(taken(&mut bucket, begin), 10);
        let next = bucket.take(begin).unwrap_err();
        assert!(bucket.take(next - Duration::from_millis(1)).is_err());
        assert_eq!(taken(&mut bucket, next), 1);
        assert_eq!(taken(&mut bucket, begin + Duration::from_millis(500)), 4);
        assert_eq!(taken(&mut bucket, begin + Duration::from_secs(3600)), 10);
    }

    fn event(line: &str) -> Event {
        serde_json::from_str(line).unwrap()
    }

    #[test]
    fn the_same_again_is_new_after_a_moment_or_after_something_else() {
        let (begin, mut repeats) = (Instant::now(), Repeats::default());
        let tag = event(r#"{"guest": "web", "tag": {"service": "ids", "name": "scan", "severity": 40}}"#);
        let worse = event(r#"{"guest": "web", "tag": {"service": "ids", "name": "scan", "severity": 80}}"#);
        let clear = event(r#"{"guest": "web", "clear": {"service": "ids", "name": "*"}}"#);
        let later = |millis| begin + Duration::from_millis(millis);
        assert!(!repeats.is_repeated(&tag, begin));
        assert!(repeats.is_repeated(&tag, later(999)));
        assert!(!repeats.is_repeated(&worse, later(999)), "it says more");
        assert!(!repeats.is_repeated(&tag, later(1000)), "the moment is over");
        assert!(!repeats.is_repeated(&clear, later(1001)));
        assert!(!repeats.is_repeated(&tag, later(1002)), "it was cleared between");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (begin, mut repeats) = (Instant::now(), Repeats::default());
        for number in 0..REMEMBERED * 2 {
            let text = format!(
                r#"{{"guest": "web", "tag": {{"service": "ids", "name": "n{number}", "severity": 1}}}}"#
            );
            assert!(!repeats.is_repeated(&event(&text), begin));
        }
        assert_eq!(repeats.told.len(), REMEMBERED);
    }
}
