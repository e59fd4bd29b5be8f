//! IPv6 extension headers (RFC 8200 4, RFC 4302, RFC 6275): walked to the upper-layer protocol, or refused.

use super::packet::Malformed;

/// The longest chain that is followed.
pub const MAX_CHAIN: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;

/// What the fragment header says.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FragmentField {
    /// Offset in bytes.
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
}

/// Where the chain of extension headers leads.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The upper-layer protocol.
    pub protocol: u8,
    /// Bytes of extension headers.
    pub length: usize,
    /// The fragment header, if there is one.
    pub fragment: Option<FragmentField>,
}

/// Follows the chain that begins with `first` at the start of `bytes`.
///
/// Behind the header of a non-first fragment nothing is read: what stands there is payload.
///
/// # Errors
/// [`Malformed::Extension`] if a header is out of bounds, the chain is longer than [`MAX_CHAIN`], or hop-by-hop options
/// do not come first.
#[inline]
pub fn walk(first: u8, bytes: &[u8]) -> Result<Chain, Malformed> {
    let mut chain = Chain {
        protocol: first,
        length: 0,
        fragment: None,
    };
    for position in 0..=MAX_CHAIN {
        let rest = bytes.get(chain.length..).ok_or(Malformed::Extension)?;
        let length = match chain.protocol {
            HOP_BY_HOP if position > 0 => return Err(Malformed::Extension),
            HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY => match rest {
                [_, units, ..] => (usize::from(*units) + 1) * 8,
                _ => return Err(Malformed::Extension),
            },
            AUTHENTICATION => match rest {
                [_, words, ..] => (usize::from(*words) + 2) * 4,
                _ => return Err(Malformed::Extension),
            },
            FRAGMENT => {
                let [_, _, high, low, ..] = rest else {
                    return Err(Malformed::Extension);
                };
                if chain.fragment.is_some() {
                    return Err(Malformed::Extension);
                }
                let field = u16::from_be_bytes([*high, *low]);
                chain.fragment = Some(FragmentField {
                    offset: field & !7,
                    more: field & 1 != 0,
                });
                8
            }
            _ => return Ok(chain),
        };
        let (Some(next), true) = (rest.first(), rest.len() >= length) else {
            return Err(Malformed::Extension);
        };
        chain.protocol = *next;
        chain.length += length;
        if chain.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return Ok(chain);
        }
    }
    Err(Malformed::Extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_to_the_upper_layer() {
        let mut bytes = [0u8; 24];
        bytes[0] = ROUTING;
        bytes[8] = FRAGMENT;
        bytes[16] = 6;
        bytes[18..20].copy_from_slice(&0x0001u16.to_be_bytes());
        let chain = walk(HOP_BY_HOP, &bytes).unwrap();
        assert_eq!(
            chain,
            Chain {
                protocol: 6,
                length: 24,
                fragment: Some(FragmentField {
                    offset: 0,
                    more: true
                })
            }
        );
    }

    #[test]
    fn refuses_what_would_be_guessed() {
        assert_eq!(
            walk(ROUTING, &[6, 1, 0, 0, 0, 0, 0, 0]),
            Err(Malformed::Extension),
            "longer than the packet"
        );
        assert_eq!(
            walk(HOP_BY_HOP, &[0; 128]),
            Err(Malformed::Extension),
            "hop-by-hop twice"
        );
        assert_eq!(
            walk(DESTINATION, &[DESTINATION, 0].repeat(64)),
            Err(Malformed::Extension),
            "endless chain"
        );
        let twice = [FRAGMENT, 0, 0, 1, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(
            walk(FRAGMENT, &twice),
            Err(Malformed::Extension),
            "two fragment headers"
        );
    }

    #[test]
    fn payload_of_a_later_fragment_is_not_read() {
        let bytes = [DESTINATION, 0, 0x05, 0xa8, 0, 0, 0, 0, 0xff];
        let chain = walk(FRAGMENT, &bytes).unwrap();
        assert_eq!((chain.protocol, chain.length), (DESTINATION, 8));
    }
}
