//! Values as they are written: with their place, in the words of the file, one or many.
//!
//! What is said must say something: a field without a value and an empty list are refused, since a rule that asks less
//! than its author meant matches more.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: Location,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T>::deserialize(deserializer)?;
        Ok(Self {
            value: spanned.value,
            at: spanned.referenced,
        })
    }
}

/// A field that may be left out, but is never there without a value.
#[derive(Clone, Debug)]
pub(super) struct Maybe<T>(pub(super) Option<T>);

impl<T> Default for Maybe<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Deref for Maybe<T> {
    type Target = Option<T>;

    fn deref(&self) -> &Option<T> {
        &self.0
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Maybe<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(|value| Self(Some(value)))
    }
}

/// A list that may be left out, but is never there and empty.
#[derive(Clone, Debug)]
pub(super) struct Listed<T>(pub(super) Vec<T>);

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Deref for Listed<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Listed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = Vec::deserialize(deserializer)?;
        if list.is_empty() {
            return Err(D::Error::custom(
                "an empty list says nothing: expected at least one entry, or no list",
            ));
        }
        Ok(Self(list))
    }
}

/// A word or a number, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(super) struct Scalar(pub(super) String);

impl Deref for Scalar {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// One word, or a list of them.
#[derive(Clone, Debug)]
pub(super) struct Words(Vec<Word>);

/// One of several words. Where it stands is known if it stands in a list; else the whole is where it is.
#[derive(Clone, Debug)]
struct Word {
    text: String,
    at: Option<Location>,
}

impl Words {
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|word| word.text.as_str())
    }
}

impl At<Words> {
    /// Each with its place.
    pub(super) fn each(&self) -> impl Iterator<Item = At<String>> + '_ {
        self.value.0.iter().map(|word| At {
            value: word.text.clone(),
            at: word.at.unwrap_or(self.at),
        })
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;

        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word or a list of words")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Words, E> {
                let text = text.to_owned();
                Ok(Words(vec![Word { text, at: None }]))
            }

            fn visit_bool<E: Error>(self, word: bool) -> Result<Words, E> {
                self.visit_str(if word { "true" } else { "false" })
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Words, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Words, E> {
                self.visit_str(&number.to_string())
            }

            /// As it was written is not known any more: 1.10 might have become 1.1.
            fn visit_f64<E: Error>(self, number: f64) -> Result<Words, E> {
                Err(E::custom(format!(
                    "{number} is a number with a point: expected it in quotes"
                )))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Words, A::Error> {
                let words = Listed::<At<String>>::deserialize(SeqAccessDeserializer::new(list))?;
                let word = |word: At<String>| Word {
                    text: word.value,
                    at: Some(word.at),
                };
                Ok(Words(words.0.into_iter().map(word).collect()))
            }
        }

        deserializer.deserialize_any(OneOrMore)
    }
}

/// Labels and the values that each may have; at least one if it is there.
#[derive(Clone, Debug, Default)]
pub(super) struct Labels(pub(super) BTreeMap<String, Words>);

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let labels = BTreeMap::deserialize(deserializer)?;
        if labels.is_empty() {
            return Err(D::Error::custom(
                "an empty map asks for no label: expected such as {tier: front}",
            ));
        }
        Ok(Self(labels))
    }
}

/// Either a word that stands for the whole, or a map.
#[derive(Debug)]
pub(super) enum WordOr<W, T> {
    Word(W),
    Map(T),
}

/// A word of a fixed set, and what is said when it is another.
pub(super) trait Keyword: Sized {
    const EXPECTED: &'static str;

    fn of(word: &str) -> Option<Self>;
}

impl<'de, W: Keyword, T: Deserialize<'de>> Deserialize<'de> for WordOr<W, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<W, T>(PhantomData<(W, T)>);

        impl<'de, W: Keyword, T: Deserialize<'de>> Visitor<'de> for Either<W, T> {
            type Value = WordOr<W, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(W::EXPECTED)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                W::of(text)
                    .map(WordOr::Word)
                    .ok_or_else(|| E::custom(format!("unknown word \"{text}\": expected {}", W::EXPECTED)))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(WordOr::Map)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

/// A section of the file that is there and empty is an empty list.
pub(super) fn section<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Option::<Vec<T>>::deserialize(deserializer).map(Option::unwrap_or_default)
}
