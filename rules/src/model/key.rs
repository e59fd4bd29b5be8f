//! Keys and suites.

use std::fmt;

use serde::Deserialize;

use super::Place;

/// A cipher and its key length.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Suite {
    /// AES-256-GCM; AES-256-GMAC where a rule only authenticates.
    #[default]
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    /// AES-128-GCM; AES-128-GMAC where a rule only authenticates.
    #[serde(rename = "aes-128-gcm")]
    Aes128Gcm,
}

impl Suite {
    /// Bytes of an AES key of this suite.
    #[must_use]
    pub fn key_length(self) -> usize {
        match self {
            Suite::Aes256Gcm => 32,
            Suite::Aes128Gcm => 16,
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Suite::Aes256Gcm => "aes-256-gcm",
            Suite::Aes128Gcm => "aes-128-gcm",
        })
    }
}

/// A key, known by its id: rules name it, the key store has its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Its id.
    pub id: String,
    /// The suite it is used with.
    pub suite: Suite,
    /// Whether it is none any more: an earlier policy had it, and its number is not given to another.
    pub retired: bool,
    /// Where it is declared.
    pub place: Place,
}
