//! Outbound: guest port -> parse -> guard -> classify -> select SA -> (hand over) -> seal -> uplink.

use super::batch::{Batch, NextStep};
use super::context::Context;
use super::deliver::{Exits, Ledger, hand_over, replicate, transmit};
use super::outcome::Direction;
use super::{classify, guard, local, parse, seal};
use crate::port::Burst;

/// Takes what a guest port received all the way, or as far as this worker goes.
pub fn outbound(
    context: &mut Context<'_>,
    burst: &mut Burst,
    port: u16,
    exits: &mut impl Exits,
    ledger: &mut impl Ledger,
) {
    let mut batch = Batch::new();
    parse::parse(
        burst,
        &mut batch,
        context.pool.umem(),
        Direction::Outbound,
        Some(port),
    );
    guard::guard_guest(&mut batch, context.tables);
    classify::classify_guest(&mut batch, context.tables, context.decisions);
    local::turn(&mut batch);
    replicate(
        &mut batch,
        context.worker,
        context.tables,
        context.pool,
        exits,
        ledger,
    );
    seal::select_sa(&mut batch, context.tables);
    let own = context.worker;
    hand_over(&mut batch, NextStep::Seal, own, exits, |descriptor| {
        descriptor.sa.map_or(own, |place| place.owner)
    });
    seal_and_send(context, &mut batch, exits, ledger);
}

/// The rest of the way, at the worker that owns the SAs.
pub fn seal_and_send(
    context: &mut Context<'_>,
    batch: &mut Batch,
    exits: &mut impl Exits,
    ledger: &mut impl Ledger,
) {
    seal::seal(
        batch,
        &mut context.sas.outbound,
        context.tables,
        context.pool,
        context.engine,
    );
    transmit(batch, context.worker, context.tables, context.pool, exits, ledger);
}
