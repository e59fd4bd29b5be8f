//! One source: what it writes is read, made an event and handed on, a bounded amount each time.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Instant;

use guestseal_rules::event::Event;
use guestseal_rules::model::Policy;
use guestseal_rules::model::source::{Input, Lines, Source};
use guestseal_rules::report::{Directory, Unmapped};

use super::bucket::{Bucket, Repeats};
use super::file::{FollowedFile, Line, Position};
use super::{Reported, SourceStatus, Told, suricata};
use crate::control::wake::Watched;

/// Pieces of a file that one turn takes at most, so that every source has its turn.
const PIECES: usize = 16;

/// A source and how far it was read.
#[derive(Debug)]
pub(super) struct Feed {
    source: Source,
    by: String,
    reader: Reader,
    bucket: Bucket,
    repeats: Repeats,
    /// Events that wait for the bucket, or for room; no more is read meanwhile.
    ready: VecDeque<Waiting>,
    pub(super) status: SourceStatus,
}

#[derive(Debug)]
struct Waiting {
    event: Event,
    position: Option<Position>,
    /// Whether the bucket has let it through, or made it wait.
    paid: bool,
    waited: bool,
}

#[derive(Debug)]
enum Reader {
    File {
        file: FollowedFile,
        /// Without it the file is looked at now and then.
        watched: Option<Watched>,
    },
}

/// How a turn has ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There is nothing more at present.
    Idle,
    /// There is more.
    Behind,
    /// There is more, and it may not be told before.
    Until(Instant),
    /// There is more, and control has no room for it yet.
    Full,
}

impl Feed {
    /// A source's name in the journal.
    pub(super) fn name_of(source: &Source) -> String {
        format!("source {}", source.name)
    }

    pub(super) fn new(source: Source, resume: Option<Position>, now: Instant) -> Self {
        let by = Self::name_of(&source);
        let reader = match &source.input {
            Input::Suricata(Lines::File(path)) => Reader::file(path, resume),
        };
        Self {
            by,
            reader,
            bucket: Bucket::new(source.rate, now),
            repeats: Repeats::default(),
            ready: VecDeque::new(),
            status: SourceStatus::default(),
            source,
        }
    }

    /// What can be read when something has come.
    pub(super) fn wait_on(&self) -> Option<BorrowedFd<'_>> {
        match &self.reader {
            Reader::File { watched, .. } => watched.as_ref().map(AsFd::as_fd),
        }
    }

    /// Reads on and hands over what it makes of it; `hand` says whether there was room.
    pub(super) fn turn(
        &mut self,
        policy: &Policy,
        known: &Directory,
        now: Instant,
        mut hand: impl FnMut(Told) -> bool,
    ) -> Turn {
        let Reader::File { watched, .. } = &self.reader;
        if let Some(watched) = watched {
            watched.take();
        }
        for _ in 0..PIECES {
            if let Some(turn) = self.hand_over(now, &mut hand) {
                return turn;
            }
            let Some(lines) = self.read() else {
                return Turn::Idle;
            };
            for line in lines {
                self.take(line, policy, known, now);
            }
        }
        Turn::Behind
    }

    /// What keeps an event from being told, if anything does.
    fn hand_over(&mut self, now: Instant, hand: &mut impl FnMut(Told) -> bool) -> Option<Turn> {
        while let Some(next) = self.ready.front_mut() {
            if !next.paid {
                if let Err(until) = self.bucket.take(now) {
                    self.status.waited += u64::from(!std::mem::replace(&mut next.waited, true));
                    return Some(Turn::Until(until));
                }
                next.paid = true;
            }
            let told = Told {
                by: self.by.clone(),
                event: next.event.clone(),
                read: next.position,
            };
            if !hand(told) {
                return Some(Turn::Full);
            }
            self.ready.pop_front();
            self.status.told += 1;
        }
        None
    }

    fn read(&mut self) -> Option<Vec<Line>> {
        let Reader::File { file, .. } = &mut self.reader;
        match file.read() {
            Ok(lines) => {
                self.status.error.clear();
                self.status.truncated = file.truncated();
                lines
            }
            Err(error) => {
                let text = format!("{}: {error}", file.path().display());
                if text != self.status.error {
                    tracing::error!("source {} cannot be read: {text}", self.source.name);
                    self.status.error = text;
                }
                None
            }
        }
    }

    fn take(&mut self, line: Line, policy: &Policy, known: &Directory, now: Instant) {
        let status = &mut self.status;
        let reported = match &line.text {
            None => Reported::TooLong,
            Some(text) if text.trim().is_empty() => return,
            Some(text) => match &self.source.input {
                Input::Suricata(_) => suricata::read(text),
            },
        };
        let report = match reported {
            Reported::Report(report) => report,
            Reported::Other => return status.other += 1,
            Reported::Malformed => return status.malformed += 1,
            Reported::TooLong => return status.too_long += 1,
        };
        match self.source.event(&report, policy, known) {
            Ok(event) if self.repeats.is_repeated(&event, now) => status.repeated += 1,
            Ok(event) => self.ready.push_back(Waiting {
                event,
                position: Some(line.position),
                paid: false,
                waited: false,
            }),
            Err(Unmapped::Ignored) => status.ignored += 1,
            Err(Unmapped::NoMeaning) => status.no_meaning += 1,
            Err(Unmapped::Nobody) => status.nobody += 1,
            Err(Unmapped::Incomplete) => status.incomplete += 1,
        }
    }
}

impl Reader {
    fn file(path: &Path, resume: Option<Position>) -> Self {
        let watched = Watched::new([path.to_owned()]).inspect_err(|error| {
            tracing::warn!(
                "{}: reports are met up to a second later: {error}",
                path.display()
            );
        });
        Self::File {
            file: FollowedFile::new(path, resume),
            watched: watched.ok(),
        }
    }
}
