//! One source that writes: what it writes is read, made an event and handed on, a bounded amount each time.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Instant;

use guestseal_rules::event::Event;
use guestseal_rules::model::source::{Input, Source};
use serde_json::Value;

use super::bucket::Bucket;
use super::file::{FollowedFile, Position};
use super::socket::Socket;
use super::translator::{Known, Translator};
use super::{Reported, SourceStatus, Told, agent, clamav, suricata, text};
use crate::control::wake::Watched;

/// Pieces that one turn takes at most, so that every source has its turn.
const PIECES: usize = 16;

/// A source and how far it was read.
#[derive(Debug)]
pub(super) struct Feed {
    /// The source's name.
    pub(super) name: String,
    by: String,
    reader: Reader,
    voice: Voice,
    bucket: Bucket,
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

/// Whose lines they are.
#[derive(Debug)]
enum Voice {
    /// A service's: its mapping says what they mean.
    Service(Box<Translator>),
    /// An agent's in the guest of this UUID.
    Agent(String),
}

#[derive(Debug)]
pub(super) enum Reader {
    File {
        file: FollowedFile,
        /// Without it the file is looked at now and then.
        watched: Option<Watched>,
    },
    Socket(Socket),
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

/// A source's name in the journal.
pub(super) fn name_of(source: &Source) -> String {
    format!("source {}", source.name)
}

impl Feed {
    /// A service's lines.
    pub(super) fn of_service(source: Source, reader: Reader, now: Instant) -> Self {
        Self {
            name: source.name.clone(),
            by: name_of(&source),
            bucket: Bucket::new(source.rate, now),
            reader,
            voice: Voice::Service(Box::new(Translator::new(source))),
            ready: VecDeque::new(),
            status: SourceStatus::default(),
        }
    }

    /// The lines of the agent in a guest.
    pub(super) fn of_agent(source: &Source, guest: &str, uuid: &str, socket: Socket, now: Instant) -> Self {
        Self {
            name: source.name.clone(),
            by: format!("agent in {guest}"),
            reader: Reader::Socket(socket),
            voice: Voice::Agent(uuid.to_owned()),
            bucket: Bucket::new(source.rate, now),
            ready: VecDeque::new(),
            status: SourceStatus::default(),
        }
    }

    /// Whether they are the lines of the agent in the guest of a UUID.
    pub(super) fn is_of(&self, uuid: &str) -> bool {
        matches!(&self.voice, Voice::Agent(guest) if guest == uuid)
    }

    /// What can be read when something has come; of nothing while what came before waits.
    pub(super) fn wait_on(&self) -> Vec<BorrowedFd<'_>> {
        match &self.reader {
            _ if !self.ready.is_empty() => Vec::new(),
            Reader::File { watched, .. } => watched.iter().map(AsFd::as_fd).collect(),
            Reader::Socket(socket) => socket.wait_on().collect(),
        }
    }

    /// Reads on and hands over what it makes of it; `hand` says whether there was room.
    pub(super) fn turn(
        &mut self,
        known: &Known<'_>,
        now: Instant,
        mut hand: impl FnMut(Told) -> bool,
    ) -> Turn {
        if let Reader::File {
            watched: Some(watched),
            ..
        } = &self.reader
        {
            watched.take();
        }
        for _ in 0..PIECES {
            if let Some(turn) = self.hand_over(now, &mut hand) {
                return turn;
            }
            let Some(lines) = self.read() else {
                return Turn::Idle;
            };
            for (line, position) in lines {
                self.take(line.as_deref(), position, known, now);
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

    fn read(&mut self) -> Option<Vec<(Option<String>, Option<Position>)>> {
        let file = match &mut self.reader {
            Reader::Socket(socket) => {
                return Some(socket.read()?.into_iter().map(|line| (line, None)).collect());
            }
            Reader::File { file, .. } => file,
        };
        match file.read() {
            Ok(lines) => {
                self.status.error.clear();
                self.status.truncated = file.truncated();
                let line = |line: super::file::Line| (line.text, Some(line.position));
                Some(lines?.into_iter().map(line).collect())
            }
            Err(error) => {
                let text = format!("{}: {error}", file.path().display());
                if text != self.status.error {
                    tracing::error!("source {} cannot be read: {text}", self.name);
                    self.status.error = text;
                }
                None
            }
        }
    }

    fn take(&mut self, line: Option<&str>, position: Option<Position>, known: &Known<'_>, now: Instant) {
        let status = &mut self.status;
        let Some(line) = line else {
            status.too_long += 1;
            return;
        };
        if line.trim().is_empty() {
            return;
        }
        let event = match &mut self.voice {
            Voice::Agent(guest) => {
                let event = agent::read(line, guest);
                status.malformed += u64::from(event.is_none());
                event
            }
            Voice::Service(translator) => match reported(&translator.source.input, line) {
                // What is none is counted.
                Reported::Report(report) => translator.event(&report, known, now, status).ok(),
                Reported::Other => {
                    status.other += 1;
                    None
                }
                Reported::Malformed => {
                    status.malformed += 1;
                    None
                }
            },
        };
        self.ready.extend(event.map(|event| Waiting {
            event,
            position,
            paid: false,
            waited: false,
        }));
    }
}

fn reported(input: &Input, line: &str) -> Reported {
    match input {
        Input::Suricata(_) => suricata::read(line),
        Input::Clamav(_) => clamav::read(line),
        Input::Text(_, like) => text::read(line, like),
        Input::Json(_) | Input::Webhook(_) | Input::Agents(_) => match serde_json::from_str::<Value>(line) {
            Ok(report) => Reported::Report(report),
            Err(_) => Reported::Malformed,
        },
    }
}

impl Reader {
    pub(super) fn file(path: &Path, resume: Option<Position>) -> Self {
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
