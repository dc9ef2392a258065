//! What is made of the three files, and what can be wrong with them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};

use crate::domain::Role;
use crate::peer::identity::{Identity, dns_name};

/// What is wrong with a directory of certificates.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file has not what it is for.
    #[error("{} holds no {what} in PEM", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What is looked for.
        what: &'static str,
    },
    /// A file is not PEM.
    #[error("{} cannot be understood", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// A file's certificate or key is of no use.
    #[error("{} cannot be used", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The key is another certificate's.
    #[error("tls.key is not the key of tls.crt, in {}", dir.display())]
    OtherKey {
        /// The directory.
        dir: PathBuf,
    },
    /// The certificate is another authority's.
    #[error("tls.crt is not signed by any authority in ca.crt, in {}", dir.display())]
    OtherAuthority {
        /// The directory.
        dir: PathBuf,
    },
    /// The certificate speaks for nobody.
    #[error("{} has no DNS name of the form NAME.ROLE.cistern.internal, such as a.host.cistern.internal", path.display())]
    Nobody {
        /// The file.
        path: PathBuf,
    },
}

/// What is in `ca.crt`, `tls.crt` and `tls.key`, or why it cannot be read. Renewals are told by comparing these.
pub type Contents = [Result<Vec<u8>, io::ErrorKind>; 3];

/// Their names.
pub const FILES: [&str; 3] = ["ca.crt", "tls.crt", "tls.key"];

/// Reads the files. Each is opened by its full path every time: Kubernetes swaps a symbolic link in the middle of it.
pub fn read(dir: &Path) -> Contents {
    FILES.map(|name| std::fs::read(dir.join(name)).map_err(|error| error.kind()))
}

/// One set of files, ready for use at both ends.
pub(super) struct Set {
    pub server: Arc<ServerConfig>,
    /// For those who have no certificate yet: it asks for none.
    pub open: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
    pub identity: Arc<Identity>,
}

impl Set {
    pub fn new(dir: &Path, contents: &Contents) -> Result<Set, TlsError> {
        let [ca_path, certificate_path, key_path] = FILES.map(|name| dir.join(name));
        let [ca, certificate, key] = contents;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = roots(&ca_path, readable(&ca_path, ca)?)?;
        let chain = certificates(&certificate_path, readable(&certificate_path, certificate)?)?;
        let unusable = |source| TlsError::Unusable { path: certificate_path.clone(), source };
        let encoding = |_| unusable(CertificateError::BadEncoding.into());
        let identity = chain.first().map(Identity::of).transpose().map_err(encoding)?;
        let identity = identity.filter(|identity| !identity.is_nobody());
        let identity = identity.ok_or_else(|| TlsError::Nobody { path: certificate_path.clone() })?;
        let key = private_key(&key_path, readable(&key_path, key)?)?;
        let own = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                TlsError::OtherKey { dir: dir.to_owned() }
            }
            source => TlsError::Unusable { path: key_path, source },
        })?;
        let of_clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build();
        let of_servers = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let unusable_ca = |error| TlsError::Unusable { path: ca_path.clone(), source: rustls::Error::General(error) };
        let of_clients = of_clients.map_err(|error| unusable_ca(error.to_string()))?;
        let of_servers = of_servers.map_err(|error| unusable_ca(error.to_string()))?;
        accepted(&own, &identity, &*of_clients, &of_servers).map_err(|error| match error {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                TlsError::OtherAuthority { dir: dir.to_owned() }
            }
            source => unusable(source),
        })?;
        let own = Arc::new(SingleCertAndKey::from(own));
        let of_guests = WebPkiClientVerifier::no_client_auth();
        let open = server(Arc::clone(&provider), of_guests, Arc::clone(&own)).map_err(unusable)?;
        let server = server(Arc::clone(&provider), of_clients, Arc::clone(&own)).map_err(unusable)?;
        let client = client(provider, of_servers, own).map_err(unusable)?;
        let (server, open, client) = (Arc::new(server), Arc::new(open), Arc::new(client));
        Ok(Set { server, open, client, identity: Arc::new(identity) })
    }
}

fn readable<'a>(path: &Path, contents: &'a Result<Vec<u8>, io::ErrorKind>) -> Result<&'a [u8], TlsError> {
    let failed = |kind: &io::ErrorKind| TlsError::Read { path: path.to_owned(), source: (*kind).into() };
    contents.as_deref().map_err(failed)
}

fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let read = read.map_err(|source| TlsError::Pem { path: path.to_owned(), source })?;
    if read.is_empty() { Err(TlsError::Empty { path: path.to_owned(), what: "certificate" }) } else { Ok(read) }
}

fn private_key(path: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::Empty { path: path.to_owned(), what: "private key" },
        source => TlsError::Pem { path: path.to_owned(), source },
    })
}

/// The authorities: several while one takes over from another.
pub(super) fn roots(path: &Path, text: &[u8]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, text)? {
        roots.add(certificate).map_err(|source| TlsError::Unusable { path: path.to_owned(), source })?;
    }
    Ok(Arc::new(roots))
}

/// Whether others who have our authorities will accept our own certificate: everybody calls, hosts are called too.
fn accepted(
    own: &CertifiedKey,
    identity: &Identity,
    of_clients: &dyn ClientCertVerifier,
    of_servers: &WebPkiServerVerifier,
) -> Result<(), rustls::Error> {
    let (certificate, intermediates) = own.cert.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
    of_clients.verify_client_cert(certificate, intermediates, UnixTime::now())?;
    if let Some(name) = identity.name_as(Role::Host) {
        let name = ServerName::try_from(dns_name(name, Role::Host)).map_err(|_| CertificateError::BadEncoding)?;
        of_servers.verify_server_cert(certificate, intermediates, &name, &[], UnixTime::now())?;
    }
    Ok(())
}

/// The one protocol that is spoken over these connections: HTTP/2.
pub(super) fn protocols() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec()]
}

fn server(
    provider: Arc<CryptoProvider>,
    of_clients: Arc<dyn ClientCertVerifier>,
    own: Arc<SingleCertAndKey>,
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
    let mut config = builder.with_client_cert_verifier(of_clients).with_cert_resolver(own);
    config.alpn_protocols = protocols();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

fn client(
    provider: Arc<CryptoProvider>,
    of_servers: Arc<WebPkiServerVerifier>,
    own: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
    let mut config = builder.with_webpki_verifier(of_servers).with_client_cert_resolver(own);
    config.alpn_protocols = protocols();
    config.resumption = Resumption::disabled();
    Ok(config)
}
