//! The files as they are written: serde's side of the model. Unknown fields are errors.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::model::Suite;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPolicy {
    #[serde(default, deserialize_with = "list")]
    pub(super) hosts: Vec<RawHost>,
    #[serde(default, deserialize_with = "list")]
    pub(super) networks: Vec<RawNetwork>,
    #[serde(default, deserialize_with = "list")]
    pub(super) guests: Vec<RawGuest>,
    #[serde(default, deserialize_with = "list")]
    pub(super) keys: Vec<RawKey>,
    #[serde(default, deserialize_with = "list")]
    pub(super) rules: Vec<RawRule>,
}

/// A section that is there and empty is an empty list.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Option::<Vec<T>>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHost {
    pub(super) name: Spanned<String>,
    #[serde(default)]
    pub(super) address: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) addresses: Vec<Spanned<String>>,
}

#[derive(Copy, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RawKind {
    #[default]
    Flat,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNetwork {
    pub(super) name: Spanned<String>,
    #[serde(default, rename = "type")]
    pub(super) kind: RawKind,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGuest {
    pub(super) id: Spanned<String>,
    pub(super) host: Spanned<String>,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) ports: Vec<RawPort>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPort {
    pub(super) interface: Spanned<String>,
    pub(super) network: Spanned<String>,
    pub(super) mac: Spanned<String>,
    #[serde(default)]
    pub(super) addresses: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) router: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawKey {
    pub(super) id: Spanned<String>,
    #[serde(default)]
    pub(super) suite: Suite,
}

#[derive(Copy, Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RawAction {
    Encrypt,
    Authenticate,
    Plaintext,
    Drop,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawRule {
    pub(super) name: Spanned<String>,
    pub(super) from: RawSelector,
    pub(super) to: RawSelector,
    #[serde(default)]
    pub(super) protocol: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) ethertype: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) ports: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) icmp_type: Option<Spanned<u8>>,
    pub(super) action: RawAction,
    #[serde(default)]
    pub(super) key: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTerms {
    #[serde(default)]
    pub(super) network: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) guest: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) label: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) cidr: Option<Spanned<String>>,
}

/// `any`, a map of terms that all hold, or a list of which one holds.
#[derive(Debug)]
pub(super) enum RawSelector {
    Any,
    All(Box<RawTerms>),
    OneOf(Vec<RawSelector>),
}

impl<'de> Deserialize<'de> for RawSelector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Selects;

        impl<'de> Visitor<'de> for Selects {
            type Value = RawSelector;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any, a map of network, guest, label, cidr, or a list of such maps")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<RawSelector, E> {
                match text {
                    "any" => Ok(RawSelector::Any),
                    other => Err(E::custom(format!(
                        "\"{other}\" selects nothing: expected any, a map of network, guest, label, cidr, or a list of such maps"
                    ))),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawSelector, A::Error> {
                let terms = RawTerms::deserialize(MapAccessDeserializer::new(map))?;
                let empty = terms.network.is_none()
                    && terms.guest.is_none()
                    && terms.label.is_empty()
                    && terms.cidr.is_none();
                if empty {
                    return Err(A::Error::custom(
                        "an empty map selects nothing: expected network, guest, label or cidr, or the word any",
                    ));
                }
                Ok(RawSelector::All(Box::new(terms)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<RawSelector, A::Error> {
                let all = Vec::deserialize(SeqAccessDeserializer::new(list))?;
                if all.is_empty() {
                    return Err(A::Error::custom(
                        "an empty list selects nothing: expected at least one selector",
                    ));
                }
                Ok(RawSelector::OneOf(all))
            }
        }

        deserializer.deserialize_any(Selects)
    }
}
