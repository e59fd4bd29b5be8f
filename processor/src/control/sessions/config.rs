//! The `sessions` part of host.yaml: who this host is, where its keys are, and how often sessions are made anew.

use std::path::{Path, PathBuf};
use std::time::Duration;

use guestseal_rules::load::{FileError, Source, duration};
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::keys::handshake::settings::Settings;
use crate::keys::store::KeySource;

/// The UDP port of handshakes, on every host that does not say another one.
pub const PORT: u16 = 51829;

/// How a host makes sessions.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionConfig {
    /// The file of its identity.
    pub identity: PathBuf,
    /// Where its keys are.
    pub keys: KeySource,
    /// The UDP port, the same one on all hosts.
    pub port: u16,
    /// Whether overlays' ESP goes in UDP (RFC 3948).
    pub udp_encapsulation: bool,
    /// Times and limits.
    pub settings: Settings,
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
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum RawKeys {
    File(PathBuf),
    Directory(PathBuf),
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
        SessionConfig {
            identity: base.join(&self.identity),
            keys: match &self.keys {
                RawKeys::File(path) => KeySource::File(base.join(path)),
                RawKeys::Directory(path) => KeySource::Directory(base.join(path)),
            },
            port,
            udp_encapsulation: self.udp_encapsulation,
            settings: Settings {
                rekey_after: rekey_after.unwrap_or(usual.rekey_after),
                keepalive,
                grace: grace.unwrap_or(usual.grace),
                ..usual
            },
        }
    }
}
