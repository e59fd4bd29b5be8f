//! The files as they are written: serde's side of the model. Unknown fields are errors.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::model::Suite;

use super::written::{At, Keyword, Labels, Listed, Maybe, Scalar, WordOr, Words, section};

/// A policy file of Guestseal. The lists of all files are put together in the files' order.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawPolicy {
    /// Hypervisor hosts.
    #[serde(default, deserialize_with = "section")]
    pub(super) hosts: Vec<RawHost>,
    /// Logical networks: guests of different ones never meet.
    #[serde(default, deserialize_with = "section")]
    pub(super) networks: Vec<RawNetwork>,
    /// Guests and their ports.
    #[serde(default, deserialize_with = "section")]
    pub(super) guests: Vec<RawGuest>,
    /// Keys by id: never their bytes.
    #[serde(default, deserialize_with = "section")]
    pub(super) keys: Vec<RawKey>,
    /// Named sets of addresses and guests.
    #[serde(default, deserialize_with = "section")]
    pub(super) groups: Vec<RawGroup>,
    /// Named protocols and ports; the usual ones need no declaration.
    #[serde(default, deserialize_with = "section")]
    pub(super) services: Vec<RawService>,
    /// The security services whose tags count, the one that is trusted most first.
    #[serde(default, deserialize_with = "section")]
    pub(super) security_services: Vec<At<String>>,
    /// Security containers; `default` is where guests are that nothing has moved.
    #[serde(default, deserialize_with = "section")]
    pub(super) containers: Vec<RawContainer>,
    /// When a guest counts as flapping between containers, and how long its releases wait then. In one file only.
    #[serde(default)]
    pub(super) damping: Maybe<At<RawDamping>>,
    /// Rules that an event makes for the guest that it is about.
    #[serde(default, deserialize_with = "section")]
    pub(super) templates: Vec<RawTemplate>,
    /// The sections of rules, in the order in which they are tried.
    #[serde(default, deserialize_with = "section")]
    pub(super) sections: Vec<RawSection>,
    /// The section that this file's rules belong to; `general` if none is said.
    #[serde(default)]
    pub(super) section: Maybe<At<String>>,
    /// Rules; the first that matches decides.
    #[serde(default, deserialize_with = "section")]
    pub(super) rules: Vec<RawRule>,
}

/// A named set of addresses and guests: everybody of whom at least one field holds.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawGroup {
    /// Its name.
    pub(super) name: At<String>,
    /// Addresses and prefixes.
    #[serde(default)]
    pub(super) addresses: Maybe<Vec<At<String>>>,
    /// Guests by id.
    #[serde(default)]
    pub(super) guests: Maybe<Vec<At<String>>>,
    /// Guests with all of these labels.
    #[serde(default)]
    pub(super) labels: Labels,
    /// Guests of whom this holds at the moment.
    #[serde(default)]
    pub(super) when: Maybe<RawCriteria>,
}

/// A name for protocols and ports.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawService {
    /// Its name.
    pub(super) name: At<String>,
    /// Its protocol: tcp, udp, sctp, icmp, icmpv6, esp or a number.
    #[serde(default)]
    pub(super) protocol: Maybe<At<Scalar>>,
    /// Ports and ranges at the server's side.
    #[serde(default)]
    pub(super) ports: Listed<At<Scalar>>,
    /// Several protocols, each with its ports.
    #[serde(default, rename = "match")]
    pub(super) matches: Listed<RawProtocolPorts>,
}

/// A protocol and ports of it.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawProtocolPorts {
    /// tcp, udp, sctp, icmp, icmpv6, esp or a number.
    pub(super) protocol: At<Scalar>,
    /// Ports and ranges at the server's side.
    #[serde(default)]
    pub(super) ports: Listed<At<Scalar>>,
}

/// A security container.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawContainer {
    /// Its name.
    pub(super) name: At<String>,
    /// The container it is nested in: that one's rules hold for its guests, too, behind its own.
    #[serde(default)]
    pub(super) parent: Maybe<At<String>>,
    /// Whether guests that a security service has something against are held here.
    #[serde(default)]
    pub(super) quarantine: bool,
    /// The security services that its guests are to have.
    #[serde(default)]
    pub(super) security_services: Vec<At<String>>,
    /// What moves its guests elsewhere.
    #[serde(default)]
    pub(super) transfers: Vec<RawTransfer>,
    /// What leads back to where a guest came from: criteria, or by-hand.
    #[serde(default)]
    pub(super) release: Maybe<WordOr<ByHand, RawRelease>>,
    /// Rules about its members, before all others.
    #[serde(default)]
    pub(super) rules: Vec<RawRule>,
}

/// What moves guests to another container.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawTransfer {
    /// Its name, shown as the cause.
    pub(super) name: At<String>,
    /// What must hold.
    pub(super) when: RawCriteria,
    /// The container.
    pub(super) to: At<String>,
    /// Of several that hold at once the highest decides.
    #[serde(default)]
    pub(super) priority: i32,
}

/// The word by-hand: only an operator leads guests back.
#[derive(Debug)]
pub(super) struct ByHand;

impl Keyword for ByHand {
    const EXPECTED: &'static str = "by-hand, or a map of when and after";

    fn of(word: &str) -> Option<Self> {
        (word == "by-hand").then_some(Self)
    }
}

/// What leads back.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawRelease {
    /// What must hold. Without it: no tag is left.
    #[serde(default)]
    pub(super) when: Maybe<RawCriteria>,
    /// For how long without a break.
    #[serde(default)]
    pub(super) after: Maybe<At<String>>,
}

/// When a guest counts as flapping.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawDamping {
    /// So many transfers,
    pub(super) transfers: At<u32>,
    /// in so long,
    pub(super) within: At<String>,
    /// make its releases wait for so long.
    pub(super) hold: At<String>,
}

/// Rules that an event makes.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawTemplate {
    /// Its name.
    pub(super) name: At<String>,
    /// What must hold of the guest that the rules are about.
    pub(super) when: RawCriteria,
    /// How long the rules live after the event. Without it: as long as `when` holds.
    #[serde(default, rename = "for")]
    pub(super) lifetime: Maybe<At<String>>,
    /// The rules; `subject` is the guest.
    pub(super) rules: Listed<RawRule>,
}

/// A part of the rules that one owner keeps.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawSection {
    /// Its name.
    pub(super) name: At<String>,
    /// Whether its decisions hold, or are only counted and shown.
    #[serde(default)]
    pub(super) mode: RawMode,
}

/// Whether the decisions of a section hold.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(super) enum RawMode {
    /// They hold.
    #[default]
    Enforce,
    /// They are counted and shown only.
    Monitor,
}

/// A question about a guest: every field that is there holds.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawCriteria {
    /// Every one holds.
    #[serde(default)]
    pub(super) all: Listed<RawCriteria>,
    /// At least one holds.
    #[serde(default)]
    pub(super) any: Listed<RawCriteria>,
    /// It does not hold.
    #[serde(default)]
    pub(super) not: Maybe<Box<RawCriteria>>,
    /// It has such a tag.
    #[serde(default)]
    pub(super) tag: Maybe<RawTag>,
    /// Such a user is logged in.
    #[serde(default)]
    pub(super) login: Maybe<RawLogin>,
    /// Such a flow of it is open.
    #[serde(default)]
    pub(super) flow: Maybe<At<RawFlow>>,
    /// It has these labels.
    #[serde(default)]
    pub(super) label: Labels,
    /// It is in this container, or in one nested in it.
    #[serde(default)]
    pub(super) container: Maybe<At<String>>,
    /// It holds of another guest of one of its networks.
    #[serde(default)]
    pub(super) neighbour: Maybe<At<Box<RawCriteria>>>,
}

/// Which tags count: every field that is there holds. `*` stands for any characters.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawTag {
    /// The security service that set it.
    #[serde(default)]
    pub(super) service: Maybe<At<String>>,
    /// Its name.
    #[serde(default)]
    pub(super) name: Maybe<String>,
    /// The severity that it has at least, 0 to 100, such as ">=70".
    #[serde(default)]
    pub(super) severity: Maybe<At<Scalar>>,
    /// How old it is, such as ">10m" or "<1h".
    #[serde(default)]
    pub(super) age: Maybe<At<String>>,
    /// How often it was set at least, such as ">=3".
    #[serde(default)]
    pub(super) count: Maybe<At<Scalar>>,
}

/// Whose logins count. `*` stands for any characters.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawLogin {
    /// The user.
    #[serde(default)]
    pub(super) user: Maybe<String>,
    /// A group of the user.
    #[serde(default)]
    pub(super) group: Maybe<String>,
}

/// What an agent in the guest has said of a flow. `*` stands for any characters.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawFlow {
    /// The user whose it is.
    #[serde(default)]
    pub(super) user: Maybe<String>,
    /// A group of the user.
    #[serde(default)]
    pub(super) group: Maybe<String>,
    /// The application.
    #[serde(default)]
    pub(super) application: Maybe<String>,
}

/// A hypervisor host.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawHost {
    /// Its name.
    pub(super) name: At<String>,
    /// Its address on the wire.
    #[serde(default)]
    pub(super) address: Maybe<At<String>>,
    /// Its addresses, at most one of each family.
    #[serde(default)]
    pub(super) addresses: Vec<At<String>>,
    /// Its public key, as guestseal key public prints it: 64 hexadecimal digits.
    #[serde(default, rename = "public-key")]
    pub(super) public_key: Maybe<At<String>>,
    /// Its public keys, two while it changes from one to the other.
    #[serde(default, rename = "public-keys")]
    pub(super) public_keys: Vec<At<String>>,
}

/// What carries a logical network.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(super) enum RawKind {
    /// The wire itself.
    #[default]
    Flat,
    /// VXLAN (RFC 7348).
    Vxlan,
    /// Geneve (RFC 8926).
    Geneve,
}

/// A logical network.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawNetwork {
    /// Its name.
    pub(super) name: At<String>,
    /// What carries it.
    #[serde(default, rename = "type")]
    pub(super) kind: RawKind,
    /// The virtual network identifier of an overlay, 1 to 16777215.
    #[serde(default)]
    pub(super) vni: Maybe<At<u32>>,
    /// The key of rules that seal within it and name none.
    #[serde(default)]
    pub(super) key: Maybe<At<String>>,
}

/// A guest virtual machine.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawGuest {
    /// Its id.
    pub(super) id: At<String>,
    /// What its tags and container are kept by; its id if none is said.
    #[serde(default)]
    pub(super) uuid: Maybe<At<String>>,
    /// The host it runs on.
    pub(super) host: At<String>,
    /// Its labels.
    #[serde(default)]
    pub(super) labels: BTreeMap<String, Scalar>,
    /// Its ports.
    #[serde(default)]
    pub(super) ports: Vec<RawPort>,
}

/// The host's end of a guest's NIC.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawPort {
    /// The interface's name on the host.
    pub(super) interface: At<String>,
    /// The VLAN of the interface that this port is, 1 to 4094: the interface is a trunk, and other ports may have it, too.
    #[serde(default)]
    pub(super) vlan: Maybe<At<u16>>,
    /// The logical network.
    pub(super) network: At<String>,
    /// The MAC of the guest's NIC.
    pub(super) mac: At<String>,
    /// The addresses that the guest may use.
    #[serde(default)]
    pub(super) addresses: Vec<At<String>>,
    /// Whether it may use any address.
    #[serde(default)]
    pub(super) router: bool,
}

/// A key.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawKey {
    /// Its id.
    pub(super) id: At<String>,
    /// The suite it is used with.
    #[serde(default)]
    pub(super) suite: Suite,
}

/// What happens to a packet.
#[derive(Copy, Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(super) enum RawAction {
    /// Sealed: AES-GCM.
    Encrypt,
    /// Readable, not changeable: AES-GMAC.
    Authenticate,
    /// As it is.
    Plaintext,
    /// Not at all.
    Drop,
}

/// A rule. It means the replies, too.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawRule {
    /// Its name, once in the policy.
    pub(super) name: At<String>,
    /// Who opens.
    pub(super) from: RawSelector,
    /// To whom.
    pub(super) to: RawSelector,
    /// tcp, udp, sctp, icmp, icmpv6, esp or a number.
    #[serde(default)]
    pub(super) protocol: Maybe<At<Scalar>>,
    /// arp, ipv4, ipv6 or a number.
    #[serde(default)]
    pub(super) ethertype: Maybe<At<Scalar>>,
    /// Ports and ranges at the side of `to`.
    #[serde(default)]
    pub(super) ports: Listed<At<Scalar>>,
    /// A service, or several.
    #[serde(default)]
    pub(super) service: Maybe<At<Words>>,
    /// The ICMP type, as `from` sends it.
    #[serde(default)]
    pub(super) icmp_type: Maybe<At<u8>>,
    /// The ICMP code.
    #[serde(default)]
    pub(super) icmp_code: Maybe<At<u8>>,
    /// The differentiated services code point: 0 to 63, or a name such as ef or af41.
    #[serde(default)]
    pub(super) dscp: Maybe<At<Scalar>>,
    /// The VLAN, 0 to 4094, or none for untagged frames.
    #[serde(default)]
    pub(super) vlan: Maybe<At<Scalar>>,
    /// What an agent must have said of the flow.
    #[serde(default)]
    pub(super) flow: Maybe<At<RawFlow>>,
    /// What happens.
    pub(super) action: RawAction,
    /// The key of encrypt and authenticate.
    #[serde(default)]
    pub(super) key: Maybe<At<String>>,
    /// The suite that the key must have.
    #[serde(default)]
    pub(super) suite: Maybe<At<Suite>>,
    /// A second form that receivers take for a time, while hosts change one by one.
    #[serde(default)]
    pub(super) also_accept: Maybe<At<RawAlsoAccept>>,
    /// Whether its packets are sampled into the log.
    #[serde(default)]
    pub(super) log: bool,
    /// The monitoring interface of each host that gets a plain copy of every packet that the rule lets pass there.
    #[serde(default)]
    pub(super) mirror: Maybe<At<String>>,
}

/// What receivers take besides what the rule's action says.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawAlsoAccept {
    /// Plaintext where the rule seals; encrypt or authenticate where it does not, or does so otherwise.
    pub(super) action: RawAction,
    /// The key of encrypt and authenticate.
    #[serde(default)]
    pub(super) key: Maybe<At<String>>,
    /// Until when, as RFC 3339 writes it.
    pub(super) until: At<String>,
}

/// Conditions on a party: every field that is there holds. Where several values are listed, one of them does.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawTerms {
    /// In this logical network.
    #[serde(default)]
    pub(super) network: Maybe<At<Words>>,
    /// This guest.
    #[serde(default)]
    pub(super) guest: Maybe<At<Words>>,
    /// A guest with these labels.
    #[serde(default)]
    pub(super) label: Labels,
    /// An address in this prefix.
    #[serde(default)]
    pub(super) cidr: Maybe<At<Words>>,
    /// One of this group.
    #[serde(default)]
    pub(super) group: Maybe<At<Words>>,
    /// A guest in this container, or in one nested in it.
    #[serde(default)]
    pub(super) container: Maybe<At<Words>>,
    /// A guest with such a tag.
    #[serde(default)]
    pub(super) tag: Maybe<RawTag>,
    /// Not one of these.
    #[serde(default)]
    pub(super) not: Maybe<RawSelector>,
}

impl RawTerms {
    fn is_empty(&self) -> bool {
        self.network.is_none()
            && self.guest.is_none()
            && self.label.0.is_empty()
            && self.cidr.is_none()
            && self.group.is_none()
            && self.container.is_none()
            && self.tag.is_none()
            && self.not.is_none()
    }
}

/// `any`, `members`, `subject`, a map of terms that all hold, or a list of which one holds.
#[derive(Debug)]
pub(super) enum RawSelector {
    Any,
    /// Of the container whose rule it is.
    Members,
    /// Of the template whose rule it is.
    Subject,
    All(Box<RawTerms>),
    OneOf(Vec<RawSelector>),
}

impl<'de> Deserialize<'de> for RawSelector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Selects;

        impl<'de> Visitor<'de> for Selects {
            type Value = RawSelector;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any, members, subject, a map of network, guest, label, cidr, group, container, tag, not, or a list of such maps")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<RawSelector, E> {
                match text {
                    "any" => Ok(RawSelector::Any),
                    "members" => Ok(RawSelector::Members),
                    "subject" => Ok(RawSelector::Subject),
                    other => Err(E::custom(format!(
                        "\"{other}\" selects nothing: expected any, members, subject, a map of network, guest, label, cidr, group, container, tag, not, or a list of such maps"
                    ))),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawSelector, A::Error> {
                let terms = RawTerms::deserialize(MapAccessDeserializer::new(map))?;
                if terms.is_empty() {
                    return Err(A::Error::custom(
                        "an empty map selects nothing: expected network, guest, label, cidr, group, container, tag or not, or the word any",
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
