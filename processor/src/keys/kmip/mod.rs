//! Keys of a key manager that speaks KMIP (OASIS, version 1.2 or later).
//!
//! A key is an active symmetric key of 32 bytes there, with a name ID.GENERATION as a directory of keys has it; what this
//! host may see of others is left alone. Three requests: Locate, Get Attributes for the names, Get for the bytes, each key's
//! once; and Create, Activate, Destroy for the next generation of a key, if this host is to order it ([`order`]). This module writes and reads them over any stream; nothing of it knows of TLS or threads.

pub mod order;
mod ttlv;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::secret::Secret;
use super::store::{Generation, KeyStore, RuleKey, StoreError, ends_in_number, parse_name};
use order::{Keys, Ordered, Orders};
use ttlv::{HEAD, Items, Writer};

/// The longest answer.
const MAX_ANSWER: usize = 1 << 20;
/// Keys that a host may see at most.
const MOST_KEYS: u32 = 4096;

/// Tags (KMIP 1.4, 9.1.3.1).
mod tag {
    use super::ttlv::Tag;

    pub(super) const ATTRIBUTE: Tag = 0x42_0008;
    pub(super) const ATTRIBUTE_NAME: Tag = 0x42_000a;
    pub(super) const ATTRIBUTE_VALUE: Tag = 0x42_000b;
    pub(super) const BATCH_COUNT: Tag = 0x42_000d;
    pub(super) const BATCH_ITEM: Tag = 0x42_000f;
    pub(super) const KEY_BLOCK: Tag = 0x42_0040;
    pub(super) const KEY_FORMAT: Tag = 0x42_0042;
    pub(super) const KEY_MATERIAL: Tag = 0x42_0043;
    pub(super) const KEY_VALUE: Tag = 0x42_0045;
    pub(super) const MAXIMUM_ITEMS: Tag = 0x42_004f;
    pub(super) const MAXIMUM_RESPONSE: Tag = 0x42_0050;
    pub(super) const NAME_TYPE: Tag = 0x42_0054;
    pub(super) const NAME_VALUE: Tag = 0x42_0055;
    pub(super) const OBJECT_TYPE: Tag = 0x42_0057;
    pub(super) const OPERATION: Tag = 0x42_005c;
    pub(super) const PROTOCOL_VERSION: Tag = 0x42_0069;
    pub(super) const MAJOR: Tag = 0x42_006a;
    pub(super) const MINOR: Tag = 0x42_006b;
    pub(super) const REQUEST_HEADER: Tag = 0x42_0077;
    pub(super) const REQUEST: Tag = 0x42_0078;
    pub(super) const REQUEST_PAYLOAD: Tag = 0x42_0079;
    pub(super) const RESPONSE: Tag = 0x42_007b;
    pub(super) const RESPONSE_PAYLOAD: Tag = 0x42_007c;
    pub(super) const RESULT_MESSAGE: Tag = 0x42_007d;
    pub(super) const RESULT_STATUS: Tag = 0x42_007f;
    pub(super) const SYMMETRIC_KEY: Tag = 0x42_008f;
    pub(super) const TEMPLATE_ATTRIBUTE: Tag = 0x42_0091;
    pub(super) const UNIQUE_IDENTIFIER: Tag = 0x42_0094;
}

/// Operations (9.1.3.2.27).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Operation {
    Create = 0x01,
    Locate = 0x08,
    Get = 0x0a,
    GetAttributes = 0x0b,
    Activate = 0x12,
    Destroy = 0x14,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Create => "Create",
            Operation::Locate => "Locate",
            Operation::Get => "Get",
            Operation::GetAttributes => "Get Attributes",
            Operation::Activate => "Activate",
            Operation::Destroy => "Destroy",
        }
    }
}

/// Object Type Symmetric Key, States Pre-Active and Active, Key Format Type Raw, Result Status Success.
const SYMMETRIC_KEY: u32 = 2;
const PRE_ACTIVE: u32 = 1;
const ACTIVE: u32 = 2;
const RAW: u32 = 1;
const SUCCESS: u32 = 0;
/// Cryptographic Algorithm AES, Cryptographic Usage Mask Derive Key, Name Type Uninterpreted Text String.
const AES: u32 = 3;
const DERIVE_KEY: u32 = 0x200;
const UNINTERPRETED: u32 = 1;

/// How it is with a key (KMIP 1.4, 3.22).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum State {
    /// It is not active yet.
    Waiting,
    /// It is there for all who may see it.
    Active,
    /// It was deactivated, compromised or destroyed.
    Over,
}

/// Why a key manager gives no keys. Nothing of a key is ever shown.
#[derive(Debug, thiserror::Error)]
pub enum KmipError {
    /// The connection.
    #[error("the key manager cannot be reached, or went away")]
    Io(#[from] io::Error),
    /// It does not speak KMIP, or not enough of it.
    #[error("the key manager's answer to {operation} is no KMIP that is understood: {what}")]
    Malformed {
        /// What was asked.
        operation: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// It refused.
    #[error("the key manager refuses {operation}: {why}")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// Its words.
        why: String,
    },
    /// More keys than are taken.
    #[error("this host may see {MOST_KEYS} keys or more: let it see fewer")]
    TooMany,
    /// A key that is none.
    #[error("{name}: expected a symmetric key of 32 bytes in format Raw, not all zero")]
    NoKey {
        /// Its name.
        name: String,
    },
    /// Which of two keys is it?
    #[error("{name}: two active keys have this name: deactivate one")]
    Twice {
        /// Their name.
        name: String,
    },
    /// A name, or two keys of the same bytes.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was fetched before: a key's bytes never change, its names and its state may.
#[derive(Debug, Default)]
pub struct Fetched {
    secrets: HashMap<String, Arc<Secret>>,
}

impl Orders {
    /// Does at a manager what is due for the keys of which a generation behind this one is wanted; `now` is on a clock that
    /// never goes back.
    ///
    /// # Errors
    /// See [`KmipError`]: at the next call it goes on.
    pub fn place(
        &mut self,
        stream: &mut (impl Read + Write),
        wanted: &BTreeMap<String, Generation>,
        now: Duration,
    ) -> Result<Ordered, KmipError> {
        self.follow(&mut Asked(stream), wanted, now)
    }
}

impl Fetched {
    /// All keys that the manager has for this host now: all of them, or an error.
    ///
    /// # Errors
    /// See [`KmipError`].
    pub fn fetch(&mut self, stream: &mut (impl Read + Write)) -> Result<KeyStore, KmipError> {
        let found = locate(stream, Attribute::Active)?;
        self.secrets.retain(|id, _| found.contains(id));
        let mut store = KeyStore::default();
        for id in found {
            for name in names(stream, &id)?
                .into_iter()
                .filter(|name| ends_in_number(name))
            {
                let (key, generation) = parse_name(&name)?;
                let secret = match self.secrets.get(&id) {
                    Some(secret) => Arc::clone(secret),
                    None => {
                        let secret = Arc::new(get(stream, &id, &name)?);
                        self.secrets.insert(id.clone(), Arc::clone(&secret));
                        secret
                    }
                };
                if store.has(&key, generation) {
                    return Err(KmipError::Twice { name });
                }
                let copy = Secret::made_by(|place| place.copy_from_slice(secret.expose()));
                store.add(RuleKey::new(key, generation, copy));
            }
        }
        Ok(store.distinct()?)
    }
}

/// What a key is made of on a manager, and found by.
#[derive(Copy, Clone)]
enum Attribute<'a> {
    ObjectType,
    Active,
    Algorithm,
    Bits(u32),
    DeriveKey,
    Name(&'a str),
}

impl Attribute<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::ObjectType => "Object Type",
            Self::Active => "State",
            Self::Algorithm => "Cryptographic Algorithm",
            Self::Bits(_) => "Cryptographic Length",
            Self::DeriveKey => "Cryptographic Usage Mask",
            Self::Name(_) => "Name",
        }
    }

    fn write(self, writer: &mut Writer) {
        writer.structure(tag::ATTRIBUTE, |attribute| {
            attribute.text(tag::ATTRIBUTE_NAME, self.name());
            let value = tag::ATTRIBUTE_VALUE;
            match self {
                Self::ObjectType => attribute.enumeration(value, SYMMETRIC_KEY),
                Self::Active => attribute.enumeration(value, ACTIVE),
                Self::Algorithm => attribute.enumeration(value, AES),
                Self::Bits(bits) => attribute.integer(value, bits),
                Self::DeriveKey => attribute.integer(value, DERIVE_KEY),
                Self::Name(name) => attribute.structure(value, |inside| {
                    inside
                        .text(tag::NAME_VALUE, name)
                        .enumeration(tag::NAME_TYPE, UNINTERPRETED);
                }),
            };
        });
    }
}

/// The identifiers of the symmetric keys that this host may see and that have an attribute.
fn locate(stream: &mut (impl Read + Write), which: Attribute<'_>) -> Result<Vec<String>, KmipError> {
    let answer = ask(stream, Operation::Locate, |payload| {
        payload.integer(tag::MAXIMUM_ITEMS, MOST_KEYS);
        Attribute::ObjectType.write(payload);
        which.write(payload);
    })?;
    let payload = answer.payload(Operation::Locate)?;
    let all: Vec<String> = payload.texts(tag::UNIQUE_IDENTIFIER).map(str::to_owned).collect();
    match all.len() < MOST_KEYS as usize {
        true => Ok(all),
        false => Err(KmipError::TooMany),
    }
}

/// The names of a key.
fn names(stream: &mut (impl Read + Write), id: &str) -> Result<Vec<String>, KmipError> {
    let answer = attributes(stream, id, "Name")?;
    let payload = answer.payload(Operation::GetAttributes)?;
    Ok(payload
        .structures(tag::ATTRIBUTE)
        .filter_map(|attribute| attribute.structure(tag::ATTRIBUTE_VALUE))
        .filter_map(|name| name.texts(tag::NAME_VALUE).next().map(str::to_owned))
        .collect())
}

/// What a manager is asked to make, over a stream.
struct Asked<'a, S>(&'a mut S);

impl<S: Read + Write> Keys for Asked<'_, S> {
    fn find(&mut self, name: &str) -> Result<Vec<(String, State)>, KmipError> {
        let found = locate(self.0, Attribute::Name(name))?;
        found
            .into_iter()
            .map(|id| {
                let answer = attributes(self.0, &id, "State")?;
                let payload = answer.payload(Operation::GetAttributes)?;
                let mut values = payload.structures(tag::ATTRIBUTE);
                let state = match values.find_map(|one| one.enumeration(tag::ATTRIBUTE_VALUE)) {
                    Some(PRE_ACTIVE) => State::Waiting,
                    Some(ACTIVE) => State::Active,
                    Some(_) => State::Over,
                    None => return Err(malformed(Operation::GetAttributes, "it has no state")),
                };
                Ok((id, state))
            })
            .collect()
    }

    fn make(&mut self, name: &str) -> Result<String, KmipError> {
        let answer = ask(self.0, Operation::Create, |payload| {
            payload.enumeration(tag::OBJECT_TYPE, SYMMETRIC_KEY);
            payload.structure(tag::TEMPLATE_ATTRIBUTE, |template| {
                let all = [
                    Attribute::Algorithm,
                    Attribute::Bits(256),
                    Attribute::DeriveKey,
                    Attribute::Name(name),
                ];
                all.into_iter().for_each(|one| one.write(template));
            });
        })?;
        let payload = answer.payload(Operation::Create)?;
        let id = payload.texts(tag::UNIQUE_IDENTIFIER).next();
        id.map(str::to_owned)
            .ok_or_else(|| malformed(Operation::Create, "it has no identifier"))
    }

    fn activate(&mut self, id: &str) -> Result<(), KmipError> {
        self.bring(Operation::Activate, id)
    }

    fn destroy(&mut self, id: &str) -> Result<(), KmipError> {
        self.bring(Operation::Destroy, id)
    }
}

impl<S: Read + Write> Asked<'_, S> {
    /// Brings a key into another state.
    fn bring(&mut self, operation: Operation, id: &str) -> Result<(), KmipError> {
        let answer = ask(self.0, operation, |payload| {
            payload.text(tag::UNIQUE_IDENTIFIER, id);
        })?;
        answer.payload(operation).map(|_| ())
    }
}

/// What a key has of an attribute.
fn attributes(
    stream: &mut (impl Read + Write),
    id: &str,
    attribute: &'static str,
) -> Result<Answer, KmipError> {
    ask(stream, Operation::GetAttributes, |payload| {
        payload
            .text(tag::UNIQUE_IDENTIFIER, id)
            .text(tag::ATTRIBUTE_NAME, attribute);
    })
}

/// The bytes of a key.
fn get(stream: &mut (impl Read + Write), id: &str, name: &str) -> Result<Secret, KmipError> {
    let answer = ask(stream, Operation::Get, |payload| {
        payload
            .text(tag::UNIQUE_IDENTIFIER, id)
            .enumeration(tag::KEY_FORMAT, RAW);
    })?;
    let payload = answer.payload(Operation::Get)?;
    let block = payload
        .structure(tag::SYMMETRIC_KEY)
        .and_then(|key| key.structure(tag::KEY_BLOCK));
    block
        .filter(|block| block.enumeration(tag::KEY_FORMAT) == Some(RAW))
        .and_then(|block| block.structure(tag::KEY_VALUE)?.bytes(tag::KEY_MATERIAL))
        .and_then(Secret::new)
        .filter(|secret| !secret.is_zero())
        .ok_or_else(|| KmipError::NoKey {
            name: name.to_owned(),
        })
}

/// An answer: it may hold a key, and is wiped.
struct Answer(Zeroizing<Vec<u8>>);

/// One request and its answer.
fn ask(
    stream: &mut (impl Read + Write),
    operation: Operation,
    payload: impl FnOnce(&mut Writer),
) -> Result<Answer, KmipError> {
    let mut request = Writer::default();
    request.structure(tag::REQUEST, |message| {
        message.structure(tag::REQUEST_HEADER, |header| {
            header.structure(tag::PROTOCOL_VERSION, |version| {
                version.integer(tag::MAJOR, 1).integer(tag::MINOR, 2);
            });
            header
                .integer(tag::MAXIMUM_RESPONSE, MAX_ANSWER as u32)
                .integer(tag::BATCH_COUNT, 1);
        });
        message.structure(tag::BATCH_ITEM, |item| {
            item.enumeration(tag::OPERATION, operation as u32);
            item.structure(tag::REQUEST_PAYLOAD, payload);
        });
    });
    stream.write_all(&request.into_bytes())?;
    stream.flush()?;
    let mut head = [0; HEAD];
    stream.read_exact(&mut head)?;
    let length = ttlv::length(&head);
    if length > MAX_ANSWER {
        return Err(malformed(operation, "it is longer than 1 MiB"));
    }
    // In one piece at once: no copy of it stays behind in memory that it outgrew.
    let mut answer = Zeroizing::new(vec![0; HEAD + length]);
    answer[..HEAD].copy_from_slice(&head);
    stream.read_exact(&mut answer[HEAD..])?;
    Ok(Answer(answer))
}

impl Answer {
    /// What was asked for, unless it was refused.
    fn payload(&self, operation: Operation) -> Result<Items<'_>, KmipError> {
        let message = Items::of(&self.0).structure(tag::RESPONSE);
        let item = message.and_then(|message| message.structure(tag::BATCH_ITEM));
        let item = item.ok_or_else(|| malformed(operation, "it has no batch item"))?;
        match item.enumeration(tag::RESULT_STATUS) {
            Some(SUCCESS) => item
                .structure(tag::RESPONSE_PAYLOAD)
                .ok_or_else(|| malformed(operation, "it has no payload")),
            Some(_) => Err(KmipError::Refused {
                operation: operation.name(),
                why: item
                    .texts(tag::RESULT_MESSAGE)
                    .next()
                    .unwrap_or("it says no more")
                    .to_owned(),
            }),
            None => Err(malformed(operation, "it has no result")),
        }
    }
}

fn malformed(operation: Operation, what: &'static str) -> KmipError {
    KmipError::Malformed {
        operation: operation.name(),
        what,
    }
}
