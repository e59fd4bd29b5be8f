//! Outbound: guest port -> (express), or parse -> (take VLAN tag off) -> (finish) -> recall, or guard -> (answer) -> classify -> (flood) ->
//! select SA -> (wait, hand over) -> (encapsulate) -> seal -> uplink.

use super::batch::{Batch, NextStep};
use super::context::Context;
use super::deliver::{Exits, Ledger, hand_over, replicate, transmit};
use super::outcome::Direction;
use super::{answer, classify, encapsulate, express, finish, fit, flood, guard, local, parse, seal, trunk};
use crate::port::Burst;

/// Takes what a guest port received all the way, or as far as this worker goes. `now` is asked for only if a packet has
/// to wait: ns of `CLOCK_MONOTONIC`.
pub fn outbound(
    context: &mut Context<'_>,
    burst: &mut Burst,
    port: u16,
    exits: &mut impl Exits,
    ledger: &mut impl Ledger,
    now: impl FnOnce() -> u64,
) {
    express::seal_known(context, burst, port, exits, ledger);
    if burst.is_empty() {
        return;
    }
    let mut batch = Batch::new();
    parse::parse(
        burst,
        &mut batch,
        context.pool.umem(),
        Direction::Outbound,
        Some(port),
    );
    trunk::untag(&mut batch, context.tables, port, context.pool.umem());
    finish::finish(&mut batch, context.tables, port, context.pool.umem());
    ledger.passed("parse");
    let some_unknown = context.decisions.recall(&mut batch, context.pool.umem());
    ledger.passed("recall");
    decide(context, &mut batch, some_unknown, ledger);
    if some_unknown {
        context
            .mirror
            .copy(&mut batch, context.tables, context.pool.umem());
        flood::flood(context, &mut batch, exits, ledger);
        replicate(
            &mut batch,
            context.worker,
            context.tables,
            context.pool,
            exits,
            ledger,
        );
    }
    select_and_send(context, &mut batch, exits, ledger, now);
}

/// Carries on with packets that have waited, as far as they need not wait any more.
pub fn resume(context: &mut Context<'_>, exits: &mut impl Exits, ledger: &mut impl Ledger, now: u64) {
    let mut batch = Batch::new();
    if context
        .waiting
        .leave(&mut batch, context.tables, context.worker, now)
    {
        for descriptor in &mut batch {
            (descriptor.seal, descriptor.egress) = (None, None);
            descriptor.direction = Direction::Outbound;
        }
        decide(context, &mut batch, true, ledger);
    }
    select_and_send(context, &mut batch, exits, ledger, || now);
}

/// Ends the packets that wait: the worker stops.
pub fn give_up(context: &mut Context<'_>, exits: &mut impl Exits, ledger: &mut impl Ledger) {
    let mut batch = Batch::new();
    while !context.waiting.is_empty() {
        context.waiting.give_up(&mut batch);
        transmit(
            &mut batch,
            context.worker,
            context.tables,
            context.pool,
            exits,
            ledger,
        );
    }
}

fn decide(context: &mut Context<'_>, batch: &mut Batch, some_unknown: bool, ledger: &mut impl Ledger) {
    if some_unknown {
        guard::guard_guest(batch, context.tables);
        answer::answer(batch, context.tables, context.pool.umem());
    }
    ledger.passed("guard");
    if some_unknown {
        classify::classify_guest(batch, context.tables, context.decisions);
    }
    ledger.passed("classify");
}

pub(super) fn select_and_send(
    context: &mut Context<'_>,
    batch: &mut Batch,
    exits: &mut impl Exits,
    ledger: &mut impl Ledger,
    now: impl FnOnce() -> u64,
) {
    let own = context.worker;
    local::turn(batch);
    if seal::select_sa(batch, context.tables, own) {
        context
            .waiting
            .park(batch, context.tables, now(), context.notices);
    }
    context.decisions.remember(batch, context.pool.umem());
    hand_over(batch, NextStep::Seal, own, exits, |descriptor| {
        descriptor.sa.map_or(own, |place| place.owner)
    });
    ledger.passed("select_sa");
    seal_and_send(context, batch, exits, ledger);
}

/// The rest of the way, at the worker that owns the SAs.
pub fn seal_and_send(
    context: &mut Context<'_>,
    batch: &mut Batch,
    exits: &mut impl Exits,
    ledger: &mut impl Ledger,
) {
    let mut too_long = encapsulate::encapsulate(batch, context.tables, context.pool.umem());
    too_long |= seal::seal(
        batch,
        &context.sas.outbound,
        context.tables,
        context.pool,
        context.engine,
    );
    if too_long {
        fit::tell_senders(context, batch, exits, ledger);
    }
    ledger.passed("seal");
    transmit(batch, context.worker, context.tables, context.pool, exits, ledger);
    ledger.passed("deliver");
}
