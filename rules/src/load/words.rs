//! Words of the files to numbers, and the word that was meant.

use std::ops::RangeInclusive;
use std::time::Duration;

pub(crate) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = parts
            .next()
            .filter(|part| part.len() == 2)
            .and_then(|part| u8::from_str_radix(part, 16).ok())?;
    }
    parts.next().is_none().then_some(mac)
}

pub(super) fn parse_public_key(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = *pair else { return None };
        *byte = (digit(high)? << 4 | digit(low)?) as u8;
    }
    Some(key)
}

/// An upper-layer protocol by its name or number.
#[must_use]
pub fn protocol_number(text: &str) -> Option<u8> {
    match text {
        "tcp" => Some(6),
        "udp" => Some(17),
        "sctp" => Some(132),
        "icmp" => Some(1),
        "icmpv6" => Some(58),
        "esp" => Some(50),
        _ => text.parse().ok(),
    }
}

pub(super) fn ethertype_number(text: &str) -> Option<u16> {
    match text {
        "arp" => Some(0x0806),
        "ipv4" => Some(0x0800),
        "ipv6" => Some(0x86dd),
        _ => {
            let number = match text.strip_prefix("0x") {
                Some(digits) => u16::from_str_radix(digits, 16).ok()?,
                None => text.parse().ok()?,
            };
            // Smaller numbers are lengths (IEEE 802.3).
            (number >= 0x0600).then_some(number)
        }
    }
}

/// One port or a range of them, such as `53` or `6000-6010`.
///
/// # Errors
/// What was expected.
pub fn port_range(text: &str) -> Result<RangeInclusive<u16>, &'static str> {
    const SYNTAX: &str = "is no port: expected 0 to 65535, or a range such as 6000-6010";
    let port = |text: &str| text.trim().parse::<u16>().map_err(|_| SYNTAX);
    match text.split_once('-') {
        None => port(text).map(|port| port..=port),
        Some((first, last)) => match (port(first)?, port(last)?) {
            (first, last) if first > last => Err("runs backwards: expected the smaller port first"),
            (first, last) => Ok(first..=last),
        },
    }
}

/// The name that was probably meant: at most half of its letters away.
pub(super) fn nearest<'a>(name: &str, all: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Names of other lengths are far away; and nobody means a name as long as a page.
    all.filter(|other| other.len().abs_diff(name.len()) * 2 <= other.len() && name.len() <= 200)
        .map(|other| (distance(name, other), other))
        .filter(|(distance, other)| distance * 2 <= other.len())
        .min()
        .map(|(_, other)| other)
}

/// Levenshtein's distance.
fn distance(one: &str, two: &str) -> usize {
    let two: Vec<char> = two.chars().collect();
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (number, left) in one.chars().enumerate() {
        let mut diagonal = number;
        row[0] = number + 1;
        for (place, right) in two.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[place + 1];
            row[place + 1] = replaced.min(diagonal + 1).min(row[place] + 1);
        }
    }
    row[two.len()]
}

/// How long: a number and `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// What is wrong, to be said after the text.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    const SYNTAX: &str = "is no duration: expected a number and ms, s, m, h or d, such as 30s or 5m";
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or(SYNTAX)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| SYNTAX)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(SYNTAX),
    };
    number
        .checked_mul(milliseconds)
        .filter(|milliseconds| *milliseconds <= 366 * 86_400_000)
        .map(Duration::from_millis)
        .ok_or("is too long: expected at most 366d")
}

/// A number, or `>=` and a number: at least so much.
pub(super) fn at_least(text: &str, most: u32) -> Option<u32> {
    let number = text.strip_prefix(">=").unwrap_or(text).trim();
    number.parse().ok().filter(|number| *number <= most)
}

/// How old something is.
pub(super) enum Age {
    AtLeast(Duration),
    AtMost(Duration),
}

/// A duration behind `>` or `<`, with or without `=`.
pub(super) fn age(text: &str) -> Option<Age> {
    let (is, rest): (fn(Duration) -> Age, &str) = match text.split_at_checked(1)? {
        (">", rest) => (Age::AtLeast, rest),
        ("<", rest) => (Age::AtMost, rest),
        _ => return None,
    };
    duration(rest.strip_prefix('=').unwrap_or(rest).trim())
        .ok()
        .map(is)
}

/// A differentiated services code point by its number, or by its name (RFC 2474, RFC 2597, RFC 3246, RFC 8622).
pub(super) fn dscp_number(text: &str) -> Option<u8> {
    let digit = |text: &str, most: u8| text.parse().ok().filter(|digit| *digit <= most);
    match (text, text.split_at_checked(2)) {
        ("ef", _) => Some(46),
        ("le", _) => Some(1),
        ("default", _) => Some(0),
        (_, Some(("cs", class))) => digit(class, 7).map(|class| class * 8),
        (_, Some(("af", number))) => {
            let (class, precedence) = number.split_at_checked(1)?;
            let class = digit(class, 4).filter(|class| *class > 0)?;
            let precedence = digit(precedence, 3).filter(|precedence| *precedence > 0)?;
            Some(class * 8 + precedence * 2)
        }
        _ => digit(text, 63),
    }
}
