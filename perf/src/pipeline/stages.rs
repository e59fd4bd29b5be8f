//! Where the cycles of a burst go: the worker's own turn, with a clock that is read after each stage.
//!
//! What the engine takes of `seal` and `open` is told apart as `cipher`. Reading the clock costs each stage some 30 cycles
//! a burst.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guestseal::aead::engine::{Engine, ExpandedKey, KeyLength, OpenJob, SealJob};
use guestseal::worker::run::Watch;
use guestseal_rules::model::Suite;

use super::host::Host;

/// An engine whose calls are timed.
pub(super) struct TimedEngine {
    engine: Arc<dyn Engine>,
    clock: quanta::Clock,
    cycles: AtomicU64,
}

impl TimedEngine {
    /// Times another one.
    #[must_use]
    pub(super) fn new(engine: &Arc<dyn Engine>, clock: quanta::Clock) -> Self {
        Self {
            engine: Arc::clone(engine),
            clock,
            cycles: AtomicU64::new(0),
        }
    }

    fn time(&self, call: impl FnOnce()) {
        self.cycles
            .fetch_add(super::timed(&self.clock, call), Ordering::Relaxed);
    }
}

impl Engine for TimedEngine {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn describe(&self) -> String {
        self.engine.describe()
    }

    fn expand(&self, suite: Suite, key: &[u8]) -> Result<ExpandedKey, KeyLength> {
        self.engine.expand(suite, key)
    }

    fn seal(&self, jobs: &mut [SealJob<'_>]) {
        self.time(|| self.engine.seal(jobs));
    }

    fn open(&self, jobs: &mut [OpenJob<'_>]) {
        self.time(|| self.engine.open(jobs));
    }
}

/// Cycles of every burst, by stage.
#[derive(Debug, Default)]
pub(super) struct Stages(BTreeMap<&'static str, Vec<u64>>);

impl Stages {
    /// Lets a host carry one burst.
    pub(super) fn carry(&mut self, host: &mut Host, engine: &Arc<TimedEngine>) {
        let untimed = std::mem::replace(&mut host.worker.engine, Arc::clone(engine) as Arc<dyn Engine>);
        let mut clocked = Clocked {
            stages: self,
            engine,
            last: engine.clock.raw(),
        };
        host.worker.turn_watched(&mut clocked);
        host.worker.engine = untimed;
    }

    /// The median of each stage, in cycles of a burst.
    #[must_use]
    pub(super) fn medians(self) -> BTreeMap<&'static str, f64> {
        let median = |(stage, list)| (stage, super::median(list));
        self.0.into_iter().map(median).collect()
    }

    /// Forgets the first bursts.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

struct Clocked<'a> {
    stages: &'a mut Stages,
    engine: &'a TimedEngine,
    last: u64,
}

impl Watch for Clocked<'_> {
    fn passed(&mut self, stage: &'static str) {
        let cycles = self.engine.clock.raw() - self.last;
        let cipher = self.engine.cycles.swap(0, Ordering::Relaxed);
        let mut note = |stage, cycles| self.stages.0.entry(stage).or_default().push(cycles);
        note(stage, cycles.saturating_sub(cipher));
        if cipher > 0 {
            note("cipher", cipher);
        }
        self.last = self.engine.clock.raw();
    }
}
