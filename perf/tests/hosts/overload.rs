//! More than the host can carry.

use std::time::Instant;

use guestseal_perf::deployment::number;

use crate::net::{Net, Result, ensure};

/// Slots of the receive ring, the queue in front of a worker.
const RING: f64 = 1024.0;

pub(crate) fn flood() -> Result<()> {
    let mut net = Net::running("flood", 1)?;
    net.pings("blue-1", "10.1.0.2")?;
    let began = Instant::now();
    let floods = [
        net.flood("flood-one", 0)?,
        net.flood("flood-two", 0)?,
        net.flood("flood-three", 0)?,
    ];
    let before = net.sent_by("blue-1");
    net.wait_for_sent("blue-1", 1_000_000)?;
    let offered = net.sent_by("blue-1") - before;
    let seconds = began.elapsed().as_secs_f64();
    drop(floods);
    // At once: the very first five are answered.
    net.guest("blue-1").run("ping -c 5 -i 0.05 -W 1 -q 10.1.0.2")?;

    let totals = net.stop(0)?;
    let at = |path: &str| number(&totals, path);
    let refused = at("/kernel/ring_full") + at("/kernel/fill_empty") + at("/outcomes/dropped/TxRingFull");
    ensure(refused > 0, || {
        format!("{offered} packets were no flood: {totals}")
    })?;
    let redirected =
        at("/xdp/uplink/redirected") + at("/xdp/gp-blue-1/redirected") + at("/xdp/gp-red-1/redirected");
    let missed = at("/kernel/ring_full") + at("/kernel/fill_empty") + at("/kernel/other");
    ensure(redirected == at("/received") + missed, || {
        format!(
            "{redirected} redirected, {} accounted for: {totals}",
            at("/received") + missed
        )
    })?;
    // Little's law: packets waiting = rate x time in the queue. Half of what passes waited no longer than a full ring
    // and a batch on either side of the path take at the rate at which packets passed.
    let rate = at("/latency_ns/outbound~1sent_encrypted/count") as f64 / seconds;
    let waiting = rate * at("/latency_ns/outbound~1sent_encrypted/p50") as f64 / 1e9;
    ensure(waiting < 2.0 * RING, || {
        format!("{waiting:.0} packets waited at {rate:.0} packets a second: {totals}")
    })?;
    net.stop(1)?;
    Ok(())
}
