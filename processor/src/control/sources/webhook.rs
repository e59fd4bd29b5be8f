//! Signed reports: HMAC-SHA256 over id, time and body, as the Standard Webhooks specification (1.0.0) has it.
//!
//! What is not signed under the source's secret, is older or newer than [`WINDOW`], or was accepted before, is refused; nothing of it is
//! looked at. Signatures are compared in constant time.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

/// Seconds that a report may be old, and as many that its sender's clock may be ahead.
pub const WINDOW: u64 = 300;
/// Reports that are remembered for that long.
const REMEMBERED: usize = 10_000;
/// Bytes of a report's id.
const LONGEST_ID: usize = 256;
/// Bytes of a secret: 24 at least, 64 at most.
const SECRET: std::ops::RangeInclusive<usize> = 24..=64;
/// What a secret's text begins with.
const PREFIX: &str = "whsec_";

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("{}: the webhook's secret cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others may read it.
    #[error("{}: mode {mode:03o} lets others read the webhook's secret: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is none.
    #[error("{}: expected a webhook's secret, whsec_ and 24 to 64 bytes in base64: echo whsec_$(openssl rand -base64 32)", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

/// Why a report is not taken.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A header is missing or odd.
    #[error("expected the headers webhook-id, webhook-timestamp (seconds since 1970) and webhook-signature")]
    Headers,
    /// Signed by nobody who knows the secret.
    #[error("no signature v1 is one of id, timestamp and body under this webhook's secret")]
    Signature,
    /// Too old, or of a time to come.
    #[error("webhook-timestamp is more than {WINDOW} s from this host's clock")]
    Time,
    /// Accepted before.
    #[error("a report of this webhook-id was accepted before")]
    Replayed,
    /// More reports than are remembered.
    #[error("too many reports within {WINDOW} s: try again later")]
    TooMany,
}

/// A webhook's secret and what it has accepted.
pub struct Gate {
    secret: Zeroizing<Vec<u8>>,
    /// Ids, and the seconds at which they are forgotten.
    accepted: HashMap<String, u64>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

/// What stands in the headers of a report.
#[derive(Copy, Clone, Debug)]
pub struct Headers<'a> {
    /// `webhook-id`.
    pub id: &'a str,
    /// `webhook-timestamp`.
    pub timestamp: &'a str,
    /// `webhook-signature`.
    pub signature: &'a str,
}

impl Gate {
    /// With the secret in a file that only its owner may read.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn open(path: &Path) -> Result<Self, SecretError> {
        let unreadable = |source| SecretError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Exposed {
                path: path.to_owned(),
                mode,
            });
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(unreadable)?);
        let digits = text.trim().strip_prefix(PREFIX);
        let secret = digits
            .and_then(|digits| STANDARD.decode(digits).ok())
            .map(Zeroizing::new);
        let secret = secret.filter(|secret| SECRET.contains(&secret.len()));
        Ok(Self {
            secret: secret.ok_or_else(|| SecretError::Malformed {
                path: path.to_owned(),
            })?,
            accepted: HashMap::new(),
        })
    }

    /// Takes a report, once.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn accept(&mut self, headers: Headers<'_>, body: &[u8], now: u64) -> Result<(), Refused> {
        let Headers {
            id,
            timestamp,
            signature,
        } = headers;
        let seconds: u64 = timestamp.parse().map_err(|_| Refused::Headers)?;
        if id.is_empty() || id.len() > LONGEST_ID {
            return Err(Refused::Headers);
        }
        // HMAC takes keys of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).map_err(|_| Refused::Signature)?;
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        // Several stand there while the sender changes its secret.
        let signatures = signature.split(' ').filter_map(|one| one.strip_prefix("v1,"));
        let mut signatures = signatures.filter_map(|one| STANDARD.decode(one).ok());
        if !signatures.any(|one| mac.clone().verify_slice(&one).is_ok()) {
            return Err(Refused::Signature);
        }
        if seconds.abs_diff(now) > WINDOW {
            return Err(Refused::Time);
        }
        if self.accepted.len() >= REMEMBERED {
            self.accepted.retain(|_, until| *until >= now);
        }
        if self.accepted.contains_key(id) {
            return Err(Refused::Replayed);
        }
        if self.accepted.len() >= REMEMBERED {
            return Err(Refused::TooMany);
        }
        // As long as its timestamp would let it in once more.
        self.accepted.insert(id.to_owned(), seconds + WINDOW);
        Ok(())
    }

    /// Forgets that a report was accepted, since nothing came of it: its sender may send it again.
    pub fn forget(&mut self, id: &str) {
        self.accepted.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn secret(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    fn gate() -> Gate {
        let (_directory, path) = secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n", 0o600);
        Gate::open(&path).unwrap()
    }

    fn signed(gate: &Gate, id: &str, timestamp: &str, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&gate.secret).unwrap();
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }

    /// The example of the specification.
    #[test]
    fn the_published_example_is_accepted() {
        let headers = Headers {
            id: "msg_p5jXN8AQM9LWM0D4loKWxJek",
            timestamp: "1614265330",
            signature: "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        };
        let body = br#"{"test": 2432232314}"#;
        assert_eq!(gate().accept(headers, body, 1_614_265_330), Ok(()));
    }

    #[test]
    fn what_is_not_signed_so_is_refused() {
        let mut gate = gate();
        let now = NOW.to_string();
        let good = signed(&gate, "a", &now, b"body");
        let mut accept = |id: &str, timestamp: &str, signature: &str, body: &[u8]| {
            gate.accept(
                Headers {
                    id,
                    timestamp,
                    signature,
                },
                body,
                NOW,
            )
        };
        for (id, timestamp, signature, body) in [
            ("b", now.as_str(), good.as_str(), b"body".as_slice()),
            ("a", "1700000001", &good, b"body"),
            ("a", &now, &good, b"bodx"),
            ("a", &now, &good.replace("v1,", "v2,"), b"body"),
            ("a", &now, &good[..good.len() - 4], b"body"),
            ("a", &now, "v1,", b"body"),
            ("a", &now, "", b"body"),
        ] {
            assert_eq!(
                accept(id, timestamp, signature, body),
                Err(Refused::Signature),
                "{signature}"
            );
        }
        for (id, timestamp) in [
            ("", now.as_str()),
            ("a", ""),
            ("a", "-1"),
            ("a", "soon"),
            (&"x".repeat(300), &now),
        ] {
            assert_eq!(
                accept(id, timestamp, &good, b"body"),
                Err(Refused::Headers),
                "{timestamp}"
            );
        }
        let both = format!("v1,AAAA {good}");
        assert_eq!(accept("a", &now, &both, b"body"), Ok(()));
    }

    #[test]
    fn a_report_is_taken_once_and_within_its_time() {
        let mut gate = gate();
        let mut send = |id: &str, timestamp: u64, now: u64| {
            let text = timestamp.to_string();
            let signature = signed(&gate, id, &text, b"");
            let headers = Headers {
                id,
                timestamp: &text,
                signature: &signature,
            };
            gate.accept(headers, b"", now)
        };
        assert_eq!(send("old", NOW - WINDOW - 1, NOW), Err(Refused::Time));
        assert_eq!(send("new", NOW + WINDOW + 1, NOW), Err(Refused::Time));
        assert_eq!(send("ahead", NOW + WINDOW, NOW), Ok(()));
        // It is remembered for as long as its time would let it in.
        assert_eq!(
            send("ahead", NOW + WINDOW, NOW + 2 * WINDOW),
            Err(Refused::Replayed)
        );
        gate.forget("ahead");
        assert!(!gate.accepted.contains_key("ahead"));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_nothing_in_it_is_forgotten_early() {
        let mut gate = gate();
        gate.accepted = (0..REMEMBERED).map(|number| (number.to_string(), NOW)).collect();
        let send = |gate: &mut Gate, now: u64| {
            let text = now.to_string();
            let signature = signed(gate, "more", &text, b"");
            let headers = Headers {
                id: "more",
                timestamp: &text,
                signature: &signature,
            };
            gate.accept(headers, b"", now)
        };
        assert_eq!(send(&mut gate, NOW), Err(Refused::TooMany));
        assert_eq!(send(&mut gate, NOW + 1), Ok(()));
        assert_eq!(gate.accepted.len(), 1);
    }

    #[test]
    fn a_secret_is_one_and_nobody_elses() {
        let open = |text: &str, mode: u32| {
            let (_directory, path) = secret(text, mode);
            Gate::open(&path).map(drop).map_err(|error| error.to_string())
        };
        let good = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        assert!(open(good, 0o600).is_ok() && open(good, 0o400).is_ok());
        assert!(open(good, 0o640).unwrap_err().contains("chmod 600"));
        for bad in [
            "",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_MfKQ",
            "whsec_!!!!",
            &format!("whsec_{}", "A".repeat(400)),
        ] {
            assert!(open(bad, 0o600).unwrap_err().contains("openssl rand"), "{bad}");
        }
        assert!(!format!("{:?}", gate()).contains("secret"));
    }
}
