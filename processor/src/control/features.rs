//! What a network card does for its sender, such as cutting segments: ethtool's features, by its netlink family.
//!
//! Everything here is about the network namespace of the thread that calls. Names are the kernel's own, those that
//! `ethtool -k` shows on its indented lines and that `ethtool -K` takes.

use std::collections::BTreeSet;
use std::io;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NetlinkDeserializable, NetlinkPayload,
    NetlinkSerializable, NlasIterator, ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;

use super::netlink;

// linux/ethtool_netlink.h
const FEATURES_GET: u8 = 11;
const FEATURES_SET: u8 = 12;
const HEADER: u16 = 1;
const WANTED: u16 = 3;
const ACTIVE: u16 = 4;
const DEVICE_INDEX: u16 = 1;
const BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// The features of an interface that are on.
///
/// # Errors
/// Those of netlink; also if there is no such interface.
pub fn active(interface: u32) -> io::Result<BTreeSet<String>> {
    let answer = ask(FEATURES_GET, vec![device(interface)], 0)?;
    let malformed = |error: DecodeError| io::Error::other(error);
    let Some(answer) = answer else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let mut found = BTreeSet::new();
    for bits in inner(&answer.0, ACTIVE)
        .map_err(malformed)?
        .iter()
        .flat_map(|set| inner(set, BITS))
        .flatten()
    {
        for bit in inner(bits, BIT).map_err(malformed)? {
            for name in inner(bit, BIT_NAME).map_err(malformed)? {
                let name = name.strip_suffix(&[0]).unwrap_or(name);
                found.insert(String::from_utf8_lossy(name).into_owned());
            }
        }
    }
    Ok(found)
}

/// Wants features of an interface on or off. Those that the driver does not change stay as they are: look again.
///
/// # Errors
/// Those of netlink.
pub fn set<'a>(interface: u32, names: impl IntoIterator<Item = &'a String>, on: bool) -> io::Result<()> {
    let bit = |name: &String| {
        let mut zero_ended = name.clone().into_bytes();
        zero_ended.push(0);
        let name = DefaultNla::new(BIT_NAME, zero_ended);
        let value = on.then(|| DefaultNla::new(BIT_VALUE, Vec::new()));
        nest(BIT, &[name].into_iter().chain(value).collect::<Vec<_>>())
    };
    let bits: Vec<DefaultNla> = names.into_iter().map(bit).collect();
    let wanted = nest(WANTED, &[nest(BITS, &bits)]);
    ask(FEATURES_SET, vec![device(interface), wanted], NLM_F_ACK).map(drop)
}

fn device(interface: u32) -> DefaultNla {
    let index = DefaultNla::new(DEVICE_INDEX, interface.to_ne_bytes().to_vec());
    nest(HEADER, &[index])
}

fn nest(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

/// The values of all attributes of a kind.
fn inner(bytes: &[u8], kind: u16) -> Result<Vec<&[u8]>, DecodeError> {
    let mut found = Vec::new();
    for attribute in NlasIterator::new(bytes) {
        let attribute = attribute?;
        if attribute.kind() == kind {
            found.push(
                attribute
                    .into_inner()
                    .get(4..usize::from(attribute.length()))
                    .unwrap_or_default(),
            );
        }
    }
    Ok(found)
}

/// A message of ethtool's family that asks.
#[derive(Debug)]
struct Asked {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl GenlFamily for Asked {
    fn family_name() -> &'static str {
        "ethtool"
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Asked {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

/// What it answers, not yet read.
#[derive(Debug)]
struct Answered(Vec<u8>);

impl ParseableParametrized<[u8], GenlHeader> for Answered {
    fn parse_with_param(bytes: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Self(bytes.to_vec()))
    }
}

fn ask(command: u8, attributes: Vec<DefaultNla>, flags: u16) -> io::Result<Option<Answered>> {
    let name = GenlCtrlAttrs::FamilyName(Asked::family_name().to_owned());
    let question = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![name],
    });
    let known: Option<GenlMessage<GenlCtrl>> = exchange(question, 0)?;
    let attributes_of_family = known.map(|known| known.payload.nlas).unwrap_or_default();
    let family = attributes_of_family.iter().find_map(|attribute| match attribute {
        GenlCtrlAttrs::FamilyId(id) => Some(*id),
        _ => None,
    });
    let mut message = GenlMessage::from_payload(Asked { command, attributes });
    message.set_resolved_family_id(family.ok_or(io::ErrorKind::Unsupported)?);
    let answer: Option<GenlMessage<Answered>> = exchange(message, flags)?;
    Ok(answer.map(|answer| answer.payload))
}

/// Sends a message and waits for its answer; none if it is the acknowledgement.
fn exchange<Q, A>(question: Q, flags: u16) -> io::Result<Option<A>>
where
    Q: NetlinkSerializable + Into<NetlinkPayload<Q>>,
    A: NetlinkDeserializable,
{
    let socket = netlink::put(NETLINK_GENERIC, question, flags)?;
    netlink::receive(&socket, |payload| match payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Some(Err(error.to_io())),
        NetlinkPayload::Error(_) => Some(Ok(None)),
        // With an acknowledgement to come, this is what it is about.
        NetlinkPayload::InnerMessage(answer) if flags & NLM_F_ACK == 0 => Some(Ok(Some(answer))),
        _ => None,
    })
}
