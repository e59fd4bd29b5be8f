//! What passed and failed, said as it happens. What cannot be run at all is skipped by ci/vm, before.

use std::fmt;

use crate::process::PerfError;

/// What is shown, and how.
pub type Step<B> = (&'static str, fn(&mut B) -> Result<(), PerfError>);

/// The counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    /// Counts a result.
    pub fn count<E: fmt::Display>(&mut self, what: &str, result: &Result<(), E>) {
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("ok       {what}");
            }
            Err(error) => self.failed(what, &error.to_string()),
        }
    }

    /// Goes through the steps of a part, each of which is counted.
    ///
    /// # Errors
    /// If it is interrupted.
    pub fn steps<B>(&mut self, part: &str, bench: &mut B, steps: &[Step<B>]) -> Result<(), PerfError> {
        for (what, step) in steps {
            match step(bench) {
                Err(PerfError::Interrupted) => return Err(PerfError::Interrupted),
                result => self.count(&format!("{part}: {what}"), &result),
            }
        }
        Ok(())
    }

    /// Counts a failure.
    pub fn failed(&mut self, what: &str, why: &str) {
        self.failed += 1;
        println!("FAILED   {what}: {why}");
    }

    /// Whether something passed and nothing failed.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.passed > 0 && self.failed == 0
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, 0 skipped", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_run_is_not_ok() {
        let mut tally = Tally::default();
        assert!(!tally.ok());
        tally.count("b", &Ok::<(), String>(()));
        assert!(tally.ok());
        tally.count("c", &Err("why"));
        assert!(!tally.ok());
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 0 skipped");
    }
}
