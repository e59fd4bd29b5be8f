//! What the packet path says of itself: counters, latency histograms, totals. Time is an argument.

pub mod counters;
pub mod latency;
pub mod rules;
pub mod samples;
pub mod totals;
