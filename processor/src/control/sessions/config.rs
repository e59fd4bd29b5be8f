//! The `sessions` part of host.yaml: who this host is, where its keys are, and how often sessions are made anew.

use std::path::{Path, PathBuf};
use std::time::Duration;

use guestseal_rules::load::{FileError, Source, duration};
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::keys::handshake::settings::Settings;
use crate::keys::store::KeySource;

use super::manager::ManagerConfig;
use super::usage::KeyLimit;

/// The UDP port of handshakes, on every host that does not say another one.
pub const PORT: u16 = 51829;

/// The TCP port of key managers (IANA: kmip).
const KMIP_PORT: u16 = 5696;
/// How often a key manager is asked, unless it is said.
const EVERY: Duration = Duration::from_secs(60);

/// How a host makes sessions.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionConfig {
    /// The file of its identity.
    pub identity: PathBuf,
    /// Where its keys are.
    pub keys: KeysFrom,
    /// The UDP port, the same one on all hosts.
    pub port: u16,
    /// Whether overlays' ESP goes in UDP (RFC 3948).
    pub udp_encapsulation: bool,
    /// How much may be done under a generation of a key.
    pub key_limit: KeyLimit,
    /// Times and limits.
    pub settings: Settings,
}

/// Where a host's keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysFrom {
    /// Files of its own.
    Files(KeySource),
    /// A key manager.
    Manager(ManagerConfig),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(in crate::control) struct RawSessions {
    identity: PathBuf,
    keys: RawKeys,
    #[serde(default)]
    port: Option<Spanned<u16>>,
    #[serde(default)]
    udp_encapsulation: bool,
    #[serde(default)]
    rekey_after: Option<Spanned<String>>,
    #[serde(default)]
    keepalive: Option<Spanned<String>>,
    #[serde(default)]
    grace: Option<Spanned<String>>,
    #[serde(default)]
    raise_mtu_after: Option<Spanned<String>>,
    #[serde(default)]
    key_limit: Option<Spanned<RawLimit>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawLimit {
    #[serde(default)]
    packets: Option<u64>,
    #[serde(default)]
    bytes: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum RawKeys {
    File(PathBuf),
    Directory(PathBuf),
    Kmip(Box<RawManager>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawManager {
    server: Spanned<String>,
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    #[serde(default)]
    every: Option<Spanned<String>>,
    #[serde(default)]
    order: bool,
}

impl RawSessions {
    /// The meaning, with paths relative to `base`; what is wrong goes to `errors`.
    pub(in crate::control) fn resolve(
        &self,
        source: &Source,
        base: &Path,
        errors: &mut Vec<FileError>,
    ) -> SessionConfig {
        let port = self.port.as_ref().map_or(PORT, |port| port.value);
        if let Some(at) = self.port.as_ref().filter(|port| port.value == 0) {
            errors.push(source.error(&at.referenced, "0 is no port: expected 1 to 65535"));
        }
        let mut time = |text: &Option<Spanned<String>>, least: Duration, most: Duration| {
            let text = text.as_ref()?;
            let (what, at) = (&text.value, &text.referenced);
            match duration(what) {
                Ok(time) if (least..=most).contains(&time) => Some(time),
                Ok(_) => {
                    let message = format!("\"{what}\": expected {least:?} to {most:?}");
                    errors.push(source.error(at, message));
                    None
                }
                Err(why) => {
                    errors.push(source.error(at, format!("\"{what}\" {why}")));
                    None
                }
            }
        };
        let seconds = Duration::from_secs;
        let usual = Settings::default();
        // A session may be made anew early, never used for longer than the nonces and the proof allow.
        let rekey_after = time(&self.rekey_after, seconds(1), usual.rekey_after);
        let keepalive = time(&self.keepalive, seconds(1), seconds(3600));
        let grace = time(&self.grace, seconds(1), seconds(366 * 86_400));
        let raise_after = time(&self.raise_mtu_after, seconds(1), seconds(86_400));
        let every = match &self.keys {
            RawKeys::Kmip(manager) => time(&manager.every, seconds(1), seconds(86_400)),
            _ => None,
        };
        let key_limit = self.key_limit.as_ref().map_or_else(KeyLimit::default, |limit| {
            let RawLimit { packets, bytes } = limit.value;
            if packets.or(bytes).is_none() || [packets, bytes].contains(&Some(0)) {
                let message = "expected packets or bytes, or both, of at least 1";
                errors.push(source.error(&limit.referenced, message));
            }
            KeyLimit { packets, bytes }
        });
        SessionConfig {
            key_limit,
            identity: base.join(&self.identity),
            keys: match &self.keys {
                RawKeys::File(path) => KeysFrom::Files(KeySource::File(base.join(path))),
                RawKeys::Directory(path) => KeysFrom::Files(KeySource::Directory(base.join(path))),
                RawKeys::Kmip(raw) => {
                    let (host, port) = server(&raw.server, source, errors);
                    KeysFrom::Manager(ManagerConfig {
                        host,
                        port,
                        authority: base.join(&raw.authority),
                        certificate: base.join(&raw.certificate),
                        key: base.join(&raw.key),
                        every: every.unwrap_or(EVERY),
                        order: raw.order,
                    })
                }
            },
            port,
            udp_encapsulation: self.udp_encapsulation,
            settings: Settings {
                rekey_after: rekey_after.unwrap_or(usual.rekey_after),
                keepalive,
                grace: grace.unwrap_or(usual.grace),
                raise_after: raise_after.unwrap_or(usual.raise_after),
                ..usual
            },
        }
    }
}

/// A name or address with or without a port: `kms.example`, `192.0.2.1:5697`, `[2001:db8::1]:5697`.
fn server(at: &Spanned<String>, source: &Source, errors: &mut Vec<FileError>) -> (String, u16) {
    let text = at.value.as_str();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let parts = match (bare, text.rsplit_once(':')) {
        (Some(address), _) => Some((address, KMIP_PORT)),
        (None, None) => Some((text, KMIP_PORT)),
        (None, Some((host, port))) => {
            let host = host
                .strip_prefix('[')
                .and_then(|host| host.strip_suffix(']'))
                .or_else(|| {
                    // Two colons without brackets: an address, and nobody knows where it ends.
                    (!host.contains(':')).then_some(host)
                });
            host.zip(port.parse().ok().filter(|port| *port > 0))
        }
    };
    let (host, port) = parts.filter(|(host, _)| !host.is_empty()).unwrap_or_else(|| {
        let message =
            format!("\"{text}\": expected a name or address and a port, such as kms.example:{KMIP_PORT}");
        errors.push(source.error(&at.referenced, message));
        Default::default()
    });
    (host.to_owned(), port)
}
