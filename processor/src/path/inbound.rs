//! Inbound: uplink -> (express), or parse -> (decapsulate) -> find SA -> (hand over) -> open -> recall, or guard ->
//! classify and key check -> guest port.

use super::batch::{Batch, NextStep};
use super::context::Context;
use super::deliver::{Exits, Ledger, hand_over, replicate, transmit};
use super::outcome::Direction;
use super::{classify, decapsulate, express, guard, open, parse};
use crate::port::Burst;

/// Takes what the uplink received all the way, or as far as this worker goes.
pub fn inbound(
    context: &mut Context<'_>,
    burst: &mut Burst,
    exits: &mut impl Exits,
    ledger: &mut impl Ledger,
) {
    let mut batch = Batch::new();
    express::open_known(context, burst, &mut batch, exits, ledger);
    if !batch.is_empty() {
        decide_and_deliver(context, &mut batch, exits, ledger);
    }
    if burst.is_empty() {
        return;
    }
    parse::parse(burst, &mut batch, context.pool.umem(), Direction::Inbound, None);
    ledger.passed("parse");
    decapsulate::decapsulate(&mut batch, context.tables, context.pool.umem());
    open::find_sa(&mut batch, context.tables, context.pool.umem(), context.notices);
    let own = context.worker;
    hand_over(&mut batch, NextStep::Open, own, exits, |descriptor| {
        descriptor.sa.map_or(own, |place| place.owner)
    });
    ledger.passed("find_sa");
    open_and_deliver(context, &mut batch, exits, ledger);
}

/// The rest of the way, at the worker that owns the SAs.
pub fn open_and_deliver(
    context: &mut Context<'_>,
    batch: &mut Batch,
    exits: &mut impl Exits,
    ledger: &mut impl Ledger,
) {
    open::open(
        batch,
        &mut context.sas.inbound,
        context.tables,
        context.pool,
        context.engine,
    );
    ledger.passed("open");
    decide_and_deliver(context, batch, exits, ledger);
}

/// The rest of the way of what is open.
fn decide_and_deliver(
    context: &mut Context<'_>,
    batch: &mut Batch,
    exits: &mut impl Exits,
    ledger: &mut impl Ledger,
) {
    let some_unknown = context.decisions.recall(batch, context.pool.umem());
    ledger.passed("recall");
    if some_unknown {
        guard::guard_uplink(batch, context.tables);
    }
    ledger.passed("guard");
    if some_unknown {
        classify::classify_uplink(batch, context.tables, context.decisions);
        context.decisions.remember(batch, context.pool.umem());
    }
    ledger.passed("classify");
    if some_unknown {
        open::readdress_all(batch, context.pool.umem());
        context.mirror.copy(batch, context.tables, context.pool.umem());
        replicate(batch, context.worker, context.tables, context.pool, exits, ledger);
    }
    transmit(batch, context.worker, context.tables, context.pool, exits, ledger);
    ledger.passed("deliver");
}
