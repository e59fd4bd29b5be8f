//! The `etcd` part of host.yaml: where etcd is, who this host is there, and under which keys hosts share.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use guestseal_rules::load::{FileError, Source};
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::keys::secret::{SecretFileError, read_private};

use super::{CALL, CONNECT};

/// Under which all keys are, unless the file says another one.
const PREFIX: &str = "/guestseal";
const MOST_ENDPOINTS: usize = 16;
const LONGEST: usize = 256;
/// Bytes of a file with a key or a password.
const MOST_SECRET: u64 = 64 << 10;

/// How a host reaches etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// Its members: `https://NAME:PORT`, or `http://` of this machine.
    pub endpoints: Vec<String>,
    /// Under which all keys are, without a slash at its end.
    pub prefix: String,
    /// The authorities of its certificates: PEM.
    pub authority: Option<PathBuf>,
    /// This host's certificate and its key: PEM, the key readable by nobody else.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// This host's name there, and the file of its password.
    pub user: Option<(String, PathBuf)>,
    /// Whether the policy is there.
    pub policy: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(in crate::control) struct RawEtcd {
    endpoints: Vec<Spanned<String>>,
    #[serde(default)]
    prefix: Option<Spanned<String>>,
    #[serde(default)]
    authority: Option<PathBuf>,
    #[serde(default)]
    certificate: Option<PathBuf>,
    #[serde(default)]
    key: Option<PathBuf>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    password: Option<PathBuf>,
    #[serde(default)]
    pub(in crate::control) policy: bool,
}

/// Why etcd cannot be spoken to, before anything was said.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// A key or password.
    #[error(transparent)]
    Secret(#[from] SecretFileError),
    /// A certificate.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The password.
    #[error("{}: expected a password in one line", path.display())]
    Password {
        /// The file.
        path: PathBuf,
    },
    /// The thread.
    #[error("the system has no room for etcd's thread")]
    Thread(#[source] std::io::Error),
}

/// Certificates, key and password, as they are handed to the client.
#[derive(Clone)]
pub(super) struct Credentials(ConnectOptions);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Credentials {
    pub(super) fn options(&self) -> ConnectOptions {
        self.0.clone()
    }
}

impl RawEtcd {
    pub(in crate::control) fn prefix(&self) -> &str {
        self.prefix.as_ref().map_or(PREFIX, |prefix| &prefix.value)
    }

    /// The meaning, with paths relative to `base`; `at` is where the file says it. What is wrong goes to `errors`.
    pub(in crate::control) fn resolve(
        raw: Spanned<Self>,
        source: &Source,
        base: &Path,
        errors: &mut Vec<FileError>,
    ) -> EtcdConfig {
        let (at, raw) = (raw.referenced, raw.value);
        let mut wrong = |message: &str| errors.push(source.error(&at, format!("etcd: {message}")));
        if !(1..=MOST_ENDPOINTS).contains(&raw.endpoints.len()) {
            wrong("expected 1 to 16 endpoints");
        }
        if raw.certificate.is_some() != raw.key.is_some() {
            wrong("a certificate and its key go together: expected both or neither");
        }
        if raw.user.is_some() != raw.password.is_some() {
            wrong("a user and the file of its password go together: expected both or neither");
        }
        let is_sealed = |endpoint: &Spanned<String>| endpoint.value.starts_with("https://");
        let sealed = raw.endpoints.iter().any(is_sealed);
        if !raw.endpoints.iter().all(is_sealed) && sealed {
            wrong("expected https:// of all endpoints or of none");
        }
        if sealed != raw.authority.is_some() {
            wrong(
                "https:// needs an authority, the certificates of whoever vouches for etcd's; http:// has none",
            );
        }
        if !sealed && raw.certificate.is_some() {
            wrong("a certificate is shown by https:// only");
        }
        for endpoint in &raw.endpoints {
            if let Err(why) = check_endpoint(&endpoint.value) {
                let message = format!("etcd: \"{}\": {why}", endpoint.value);
                errors.push(source.error(&endpoint.referenced, message));
            }
        }
        let prefix = raw.prefix().to_owned();
        let fine = prefix.starts_with('/')
            && !prefix.ends_with('/')
            && prefix.len() <= LONGEST
            && prefix.bytes().all(|byte| byte.is_ascii_graphic());
        if let Some(at) = raw.prefix.as_ref().filter(|_| !fine) {
            let message =
                format!("etcd: \"{prefix}\": expected a prefix such as {PREFIX}, without a slash at its end");
            errors.push(source.error(&at.referenced, message));
        }
        EtcdConfig {
            endpoints: raw.endpoints.into_iter().map(|one| one.value).collect(),
            prefix,
            authority: raw.authority.map(|path| base.join(path)),
            identity: raw
                .certificate
                .zip(raw.key)
                .map(|(certificate, key)| (base.join(certificate), base.join(key))),
            user: raw
                .user
                .zip(raw.password)
                .map(|(user, path)| (user, base.join(path))),
            policy: raw.policy,
        }
    }
}

/// What decides who is in quarantine is not read from a wire that anybody may write to.
fn check_endpoint(endpoint: &str) -> Result<(), &'static str> {
    const EXPECTED: &str = "expected https://NAME:PORT, or http://127.0.0.1:PORT of this machine";
    let (sealed, rest) = match endpoint.strip_prefix("https://") {
        Some(rest) => (true, rest),
        None => (false, endpoint.strip_prefix("http://").ok_or(EXPECTED)?),
    };
    let (name, port) = rest.rsplit_once(':').ok_or(EXPECTED)?;
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let named = match bare {
        Some(address) => address.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()),
        None => !name.is_empty() && name.len() <= LONGEST && name.chars().all(plain),
    };
    if !named || port.parse::<u16>().map_or(true, |port| port == 0) {
        return Err(EXPECTED);
    }
    let address = bare.unwrap_or(name).parse::<IpAddr>();
    if !sealed && name != "localhost" && !address.is_ok_and(|address| address.is_loopback()) {
        return Err(
            "http:// is for this machine only, since whoever can write to that wire decides who is in quarantine: expected https://",
        );
    }
    Ok(())
}

impl EtcdConfig {
    /// Reads certificates, key and password.
    pub(super) fn credentials(&self) -> Result<Credentials, EtcdError> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|source| EtcdError::Read {
                path: path.clone(),
                source,
            })
        };
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(CALL, CALL)
            .with_keep_alive_while_idle(true)
            .with_auto_token_refresh(true)
            .with_require_leader(true);
        if let Some(authority) = &self.authority {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(authority)?));
            if let Some((certificate, key)) = &self.identity {
                let key = read_private(key, MOST_SECRET)?;
                tls = tls.identity(Identity::from_pem(read(certificate)?, &*key));
            }
            options = options.with_tls(tls);
        }
        if let Some((user, path)) = &self.user {
            let bytes = read_private(path, MOST_SECRET)?;
            let text = std::str::from_utf8(&bytes).map(|text| text.trim_end_matches(['\n', '\r']));
            let password = text.ok().filter(|text| !text.is_empty() && !text.contains('\n'));
            let password = password.ok_or_else(|| EtcdError::Password { path: path.clone() })?;
            options = options.with_user(user, password);
        }
        Ok(Credentials(options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_spoken_to_in_the_open() {
        for fine in [
            "https://etcd.example:2379",
            "https://192.0.2.9:2379",
            "https://[2001:db8::9]:2379",
            "http://127.0.0.1:2379",
            "http://[::1]:2379",
            "http://localhost:2379",
        ] {
            assert_eq!(check_endpoint(fine), Ok(()), "{fine}");
        }
        for wrong in [
            "http://192.0.2.9:2379",
            "http://etcd.example:2379",
            "http://localhost.example:2379",
            "https://etcd.example",
            "https://etcd.example:0",
            "https://user@etcd.example:2379",
            "https://etcd.example/x:2379",
            "etcd.example:2379",
            "https://:2379",
        ] {
            assert!(check_endpoint(wrong).is_err(), "{wrong}");
        }
    }

    fn resolve(text: &str) -> (EtcdConfig, Vec<String>) {
        let raw: Spanned<RawEtcd> = serde_saphyr::from_str(text).unwrap();
        let source = Source {
            name: "h1.yaml".into(),
            text: text.to_owned(),
        };
        let mut errors = Vec::new();
        let config = RawEtcd::resolve(raw, &source, Path::new("/etc/guestseal"), &mut errors);
        (config, errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_does_not_go_together_is_told() {
        let (config, errors) = resolve("endpoints: ['http://127.0.0.1:2379']");
        assert_eq!((errors, config.prefix.as_str()), (Vec::new(), "/guestseal"));
        let sealed = "endpoints: ['https://e:2379']\nauthority: ca.pem\n";
        let (config, errors) = resolve(&format!("{sealed}user: h1\npassword: h1.password"));
        assert!(errors.is_empty(), "{errors:?}");
        let password = PathBuf::from("/etc/guestseal/h1.password");
        assert_eq!(config.user, Some(("h1".to_owned(), password)));
        for (text, word) in [
            ("endpoints: []", "1 to 16 endpoints"),
            ("endpoints: ['https://e:2379']", "needs an authority"),
            (
                "endpoints: ['https://e:1', 'http://127.0.0.1:1']\nauthority: ca.pem",
                "of all endpoints or of none",
            ),
            (&format!("{sealed}certificate: h1.pem"), "both or neither"),
            (&format!("{sealed}user: h1"), "both or neither"),
            (&format!("{sealed}prefix: guestseal"), "expected a prefix"),
            (&format!("{sealed}prefix: /guestseal/"), "expected a prefix"),
        ] {
            let (_, errors) = resolve(text);
            assert!(
                errors.iter().any(|error| error.contains(word)),
                "{text}: {errors:?}"
            );
        }
    }

    #[test]
    fn a_password_that_others_may_read_is_refused_and_none_is_shown() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, "secret\n").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let (mut config, _) = resolve("endpoints: ['http://127.0.0.1:2379']");
        config.user = Some(("h1".into(), path.clone()));
        mode(0o640);
        let refused = config.credentials();
        assert!(matches!(
            refused,
            Err(EtcdError::Secret(SecretFileError::Exposed { .. }))
        ));
        mode(0o600);
        let shown = format!("{:?}", config.credentials().unwrap());
        assert!(!shown.contains("secret"), "{shown}");
        std::fs::write(&path, "two\nlines\n").unwrap();
        assert!(matches!(config.credentials(), Err(EtcdError::Password { .. })));
    }
}
