//! Where the engine has its random numbers from: an argument, so that a test can say its seed.

use std::time::Duration;

/// A source of random bytes that nobody can guess.
pub trait Random: Send {
    /// Fills a place with random bytes.
    fn fill(&mut self, place: &mut [u8]);

    /// A random number.
    fn number(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        u32::from_be_bytes(bytes)
    }
}

/// A random time up to `most`.
pub fn jitter(most: Duration, random: &mut dyn Random) -> Duration {
    most.mul_f64(f64::from(random.number()) / f64::from(u32::MAX))
}

/// The system's.
#[derive(Debug, Default)]
pub struct System;

impl Random for System {
    /// Ends the process if the system has none: going on with bytes that can be guessed would be worse.
    fn fill(&mut self, place: &mut [u8]) {
        if let Err(error) = getrandom::fill(place) {
            panic!("the system gives no random bytes: {error}");
        }
    }
}

/// 1, 2, 3 and so on, for unit tests.
#[cfg(test)]
pub(super) struct Counting(pub(super) u8);

#[cfg(test)]
impl Random for Counting {
    fn fill(&mut self, place: &mut [u8]) {
        for byte in place {
            *byte = self.0;
            self.0 = self.0.wrapping_add(1);
        }
    }
}
