//! What passed, failed and was skipped, said as it happens.

use std::fmt;

/// The counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
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

    /// Counts a failure.
    pub fn failed(&mut self, what: &str, why: &str) {
        self.failed += 1;
        println!("FAILED   {what}: {why}");
    }

    /// Counts what was not run.
    pub fn skipped(&mut self, what: &str, why: &str) {
        self.skipped += 1;
        println!("SKIPPED  {what}: {why}");
    }

    /// Whether something passed and nothing failed.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.passed > 0 && self.failed == 0
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_run_is_not_ok_and_skips_are_no_passes() {
        let mut tally = Tally::default();
        tally.skipped("a", "no kernel");
        assert!(!tally.ok());
        tally.count("b", &Ok::<(), String>(()));
        assert!(tally.ok());
        tally.count("c", &Err("why"));
        assert!(!tally.ok());
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 1 skipped");
    }
}
