//! Patterns of names.

use std::fmt;

/// A pattern in which `*` stands for any characters, none among them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Glob(String);

impl Glob {
    /// The pattern of a text.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self(pattern.to_owned())
    }

    /// The pattern that every name matches.
    #[must_use]
    pub fn any() -> Self {
        Self("*".to_owned())
    }

    /// The pattern's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the whole name matches. Takes time linear in pattern and name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else {
            return false;
        };
        let Some(last) = parts.next_back() else {
            return rest.is_empty();
        };
        // The leftmost place of each part leaves the most for those behind it.
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("av", "av", true),
            ("av", "avx", false),
            ("malware.*", "malware.eicar", true),
            ("malware.*", "malware", false),
            ("*.eicar", "malware.eicar", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("aa*aa", "aaa", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(name), expected, "{pattern} on {name}");
        }
    }

    /// The obvious definition, by trying every length.
    fn obvious(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|skip| obvious(rest, &name[skip..])),
            Some((byte, rest)) => name.first() == Some(byte) && obvious(rest, &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn is_the_obvious_definition(pattern in "[ab*]{0,6}", name in "[ab]{0,8}") {
            prop_assert_eq!(Glob::new(&pattern).matches(&name), obvious(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
