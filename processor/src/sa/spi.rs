//! The security parameters index (RFC 4303 2.1).

/// An SPI that an SA may have: 256 or more (0 is local, 1 to 255 are reserved by IANA).
#[derive(Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spi(u32);

/// The number is not one that an SA may have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("SPI {0:#x} is reserved: expected {first:#x} or more", first = Spi::FIRST)]
pub struct ReservedSpi(pub u32);

impl Spi {
    /// The smallest.
    pub const FIRST: u32 = 256;

    /// An SPI.
    ///
    /// # Errors
    /// If the number is reserved.
    pub fn new(number: u32) -> Result<Self, ReservedSpi> {
        if number >= Self::FIRST {
            Ok(Self(number))
        } else {
            Err(ReservedSpi(number))
        }
    }

    /// The number.
    #[must_use]
    #[inline]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl std::fmt::Display for Spi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl std::fmt::Debug for Spi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Spi({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_numbers_are_refused() {
        assert_eq!(Spi::new(0), Err(ReservedSpi(0)));
        assert_eq!(Spi::new(255), Err(ReservedSpi(255)));
        assert_eq!(Spi::new(256).map(Spi::get), Ok(256));
    }
}
