//! Address prefixes.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An IP prefix: `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
    /// Both as numbers of 128 bits, for a comparison without branches on the family's length.
    bits: u128,
    mask: u128,
}

/// Why a text is no prefix.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotACidr {
    /// Neither address nor prefix.
    #[error("expected an address or prefix such as 10.0.0.0/8 or fd00::/8")]
    Syntax,
    /// The prefix is longer than the address.
    #[error("the prefix is longer than the address has bits: expected at most /{0}")]
    Length(u8),
    /// Bits behind the prefix.
    #[error("bits are set behind the prefix: expected {0}")]
    HostBits(Cidr),
}

impl Cidr {
    fn new(address: IpAddr, prefix: u8) -> Self {
        let width = width(address);
        let mask = u128::MAX.checked_shl(u32::from(width - prefix)).unwrap_or(0);
        let mask = if width == 32 {
            mask & u128::from(u32::MAX)
        } else {
            mask
        };
        Self {
            address,
            prefix,
            bits: bits(address),
            mask,
        }
    }

    /// Whether an address lies in it.
    #[inline]
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && (bits(address) ^ self.bits) & self.mask == 0
    }

    /// Whether it is of IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Its first and last address, as numbers.
    #[must_use]
    pub fn ends(&self) -> (u128, u128) {
        let width = if self.is_ipv4() {
            u128::from(u32::MAX)
        } else {
            u128::MAX
        };
        (self.bits, self.bits | (width & !self.mask))
    }

    /// Whether every address of `other` lies in it.
    #[must_use]
    pub fn covers(&self, other: &Cidr) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }
}

#[inline]
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Cidr {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NotACidr::Syntax)?;
        let width = width(address);
        let prefix = match prefix {
            Some(prefix) => prefix.parse::<u8>().map_err(|_| NotACidr::Syntax)?,
            None => width,
        };
        if prefix > width {
            return Err(NotACidr::Length(width));
        }
        let cidr = Cidr::new(address, prefix);
        let first = cidr.bits & cidr.mask;
        if first != cidr.bits {
            let first = match address {
                IpAddr::V4(_) => IpAddr::V4((first as u32).into()),
                IpAddr::V6(_) => IpAddr::V6(first.into()),
            };
            return Err(NotACidr::HostBits(Cidr::new(first, prefix)));
        }
        Ok(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contains_by_prefix_and_family() {
        let cidr: Cidr = "10.1.0.0/16".parse().unwrap();
        assert!(cidr.contains("10.1.255.255".parse().unwrap()));
        assert!(!cidr.contains("10.2.0.0".parse().unwrap()));
        assert!(!cidr.contains("::ffff:10.1.0.1".parse().unwrap()));
        assert!(
            "0.0.0.0/0"
                .parse::<Cidr>()
                .unwrap()
                .contains("1.2.3.4".parse().unwrap())
        );
        assert!(
            !"0.0.0.0/0"
                .parse::<Cidr>()
                .unwrap()
                .contains("::1".parse().unwrap())
        );
        assert!(
            "::/0"
                .parse::<Cidr>()
                .unwrap()
                .contains("fe80::1".parse().unwrap())
        );
        assert!(
            "fd00::1"
                .parse::<Cidr>()
                .unwrap()
                .contains("fd00::1".parse().unwrap())
        );
    }

    #[test]
    fn wrong_texts_are_refused() {
        assert_eq!("10.0.0.0/33".parse::<Cidr>(), Err(NotACidr::Length(32)));
        assert_eq!("10.0.0".parse::<Cidr>(), Err(NotACidr::Syntax));
        assert_eq!(
            "10.1.2.3/8".parse::<Cidr>().unwrap_err().to_string(),
            "bits are set behind the prefix: expected 10.0.0.0/8"
        );
    }
}
