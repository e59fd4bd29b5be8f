//! What sources of the policy report to the control loop.

use serde_json::Value;

use crate::control::api::problem::Problem;
use crate::control::guests::now;
use crate::control::sources::{Sources, SourcesError, Teller};

use super::Control;

impl Control {
    pub(super) fn open_sources(&self) -> Result<Option<Sources>, SourcesError> {
        let config = &self.plan.config;
        if config.sources.is_empty() {
            return Ok(None);
        }
        let read = |by: &str| self.guests.position(by);
        let is_here = |guest| config.host_of(guest) == config.host;
        Sources::open(&config.sources, &config.policy, is_here, read).map(Some)
    }

    /// Takes a report of a source that is told.
    pub(super) fn take_report(
        &mut self,
        source: &str,
        report: &Value,
        teller: &Teller,
    ) -> Result<(), Problem> {
        let sources = self
            .sources
            .as_mut()
            .ok_or_else(|| Problem::unknown_source(source))?;
        match sources.report(source, report, teller)? {
            Some((by, event)) => Ok(self.guests.offer(now(), &by, event, None)?),
            None => Ok(()),
        }
    }
}
