//! What one worker brings to the stages.

use crate::aead::engine::Engine;
use crate::port::pool::FramePool;
use crate::sa::slots::Owned;

use super::batch::WorkerId;
use super::classify::Decisions;
use super::flood::Floods;
use super::mirror::Mirror;
use super::notices::Notices;
use super::tables::Tables;
use super::waiting::WaitingRoom;

/// A worker's own things and what it reads, for one batch.
pub struct Context<'a> {
    /// The worker.
    pub worker: WorkerId,
    /// What it reads.
    pub tables: &'a Tables,
    /// Its free frames.
    pub pool: &'a mut FramePool,
    /// The SAs it owns.
    pub sas: &'a mut Owned,
    /// What it has found out about flows, and what it says of rules.
    pub decisions: &'a mut Decisions,
    /// What it tells control.
    pub notices: &'a mut Notices,
    /// Its packets that wait for a session.
    pub waiting: &'a mut WaitingRoom,
    /// What its guest ports may still send for copying.
    pub floods: &'a mut Floods,
    /// Its copies for monitoring interfaces.
    pub mirror: &'a mut Mirror,
    /// The AEAD engine.
    pub engine: &'a dyn Engine,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("worker", &self.worker)
            .finish_non_exhaustive()
    }
}
