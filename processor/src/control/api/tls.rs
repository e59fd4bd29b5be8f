//! The TCP port: both sides show certificates, and the caller's name is in its own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, crypto};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use webpki::EndEntityCert;

use super::access::{Caller, Right};

/// The TCP port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// This host's certificate, and those up to the authority's: PEM.
    pub certificate: PathBuf,
    /// Its key: PEM, readable by nobody else.
    pub key: PathBuf,
    /// The authorities of callers' certificates: PEM.
    pub clients: PathBuf,
    /// DNS names in certificates whose holders may read.
    pub read: BTreeSet<String>,
    /// DNS names in certificates whose holders may change, and read.
    pub change: BTreeSet<String>,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("{}: expected {expected} in PEM: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Others may read the key.
    #[error("{}: mode {mode:03o} lets others read the key: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// They do not go together.
    #[error("certificate and key cannot be used together")]
    Unusable(#[from] tokio_rustls::rustls::Error),
    /// The authorities.
    #[error("the authorities of callers' certificates cannot be used")]
    Authorities(#[from] tokio_rustls::rustls::server::VerifierBuilderError),
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |why: String| TlsError::File {
        path: path.to_owned(),
        expected: "certificates",
        why,
    };
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(error.to_string()))?;
    if all.is_empty() {
        return Err(wrong("there is none".to_owned()));
    }
    Ok(all)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let wrong = |why: String| TlsError::File {
        path: path.to_owned(),
        expected: "a private key",
        why,
    };
    let metadata = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(TlsError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| wrong(error.to_string()))
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate)?;
    }
    Ok(store)
}

/// What makes a caller's connection a TLS one.
pub(super) fn acceptor(config: &TlsConfig) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let clients = Arc::new(authorities(&config.clients)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(clients, Arc::clone(&provider)).build()?;
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&config.certificate)?, private_key(&config.key)?)?;
    Ok(TlsAcceptor::from(Arc::new(server)))
}

/// What makes a connection to a host or a key manager a TLS one.
pub(in crate::control) fn connector(
    authority: &Path,
    certificate: &Path,
    key: &Path,
) -> Result<TlsConnector, TlsError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(authorities(authority)?)
        .with_client_auth_cert(certificates(certificate)?, private_key(key)?)?;
    Ok(TlsConnector::from(Arc::new(client)))
}

impl TlsConfig {
    /// The holder of a certificate that was verified. Of several names the one that may most counts.
    pub(super) fn caller(&self, certificates: Option<&[CertificateDer<'_>]>) -> Caller {
        let first = certificates.and_then(<[_]>::first);
        let names: Vec<String> = first
            .and_then(|der| {
                let certificate = EndEntityCert::try_from(der).ok()?;
                Some(certificate.valid_dns_names().map(str::to_owned).collect())
            })
            .unwrap_or_default();
        for (list, right) in [(&self.change, Right::Change), (&self.read, Right::Read)] {
            if let Some(name) = names.iter().find(|name| list.contains(*name)) {
                return Caller::Certificate {
                    name: name.clone(),
                    may: Some(right),
                };
            }
        }
        Caller::Certificate {
            name: names.into_iter().next().unwrap_or_default(),
            may: None,
        }
    }
}
