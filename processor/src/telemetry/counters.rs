//! Counters of one worker: written only by it, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::path::outcome::Outcome;
use crate::port::KernelDrops;

/// A counter with one writer: adding is a load and a store, no locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only its one writer may.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(count),
            Ordering::Relaxed,
        );
    }

    /// Becomes a number that is counted elsewhere; only its one writer may.
    #[inline]
    pub fn become_count(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Packets of one worker. Aligned so that no two workers share a cache line.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    /// Packets received from ports.
    pub received: Counter,
    /// Copies made of group packets.
    pub copied: Counter,
    /// Packets that came from another worker.
    pub taken_over: Counter,
    /// Batches that went through the stages.
    pub batches: Counter,
    /// Packets whose flow's decision was known.
    pub flow_hits: Counter,
    /// Packets whose rule was looked up.
    pub flow_misses: Counter,
    /// Samples of logged rules that found no room on their way to the log.
    pub lost_samples: Counter,
    /// Copies that went to monitoring interfaces; counted by the mirror thread.
    pub mirrored: Counter,
    /// Copies that a monitoring interface did not take, or that was not there; counted by the mirror thread.
    pub mirrors_refused: Counter,
    /// Copies that found no room on their way to the mirror thread.
    pub mirrors_lost: Counter,
    /// Messages made for guests whose packets were too long.
    pub told_too_long: Counter,
    kernel: [Counter; 4],
    outcomes: [Counter; Outcome::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            received: Counter::default(),
            copied: Counter::default(),
            taken_over: Counter::default(),
            batches: Counter::default(),
            flow_hits: Counter::default(),
            flow_misses: Counter::default(),
            lost_samples: Counter::default(),
            mirrored: Counter::default(),
            mirrors_refused: Counter::default(),
            mirrors_lost: Counter::default(),
            told_too_long: Counter::default(),
            kernel: Default::default(),
            outcomes: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl Counters {
    /// The counter of one outcome.
    #[inline]
    #[must_use]
    pub fn outcome(&self, outcome: Outcome) -> &Counter {
        &self.outcomes[outcome.index()]
    }

    /// What the kernel has dropped before it was received, as last told.
    #[must_use]
    pub fn kernel_drops(&self) -> KernelDrops {
        let [ring_full, fill_empty, too_long, other] = self.kernel.each_ref().map(Counter::get);
        KernelDrops {
            ring_full,
            fill_empty,
            too_long,
            other,
        }
    }

    /// Tells what the kernel has dropped; only the worker may.
    pub fn set_kernel_drops(&self, drops: KernelDrops) {
        let now = [drops.ring_full, drops.fill_empty, drops.too_long, drops.other];
        for (counter, count) in self.kernel.iter().zip(now) {
            counter.become_count(count);
        }
    }
}
