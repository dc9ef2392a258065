//! An authority of our own, for those who have none: what `cistern certs` makes, and in a cluster the controller
//! (`signer.rs`). Keys are ECDSA on P-256.

pub mod directory;
mod signer;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

pub use signer::{Signer, SignerError};

use super::identity::{DOMAIN, dns_name};
use super::tls::{self, TlsError};
use crate::domain::{NodeName, Role};
use crate::machine::file::{FileError, write_atomically};

/// How long an authority lives.
const AUTHORITY_DAYS: u32 = 3650;
/// How far clocks of machines may lie apart.
const CLOCKS: Duration = Duration::from_secs(3600);

/// Certificates cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file of the authority cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The authority's key is kept elsewhere, or is lost.
    #[error(
        "{0}/ca.crt is there and {0}/ca.key is not: bring the key back to where it was, or begin anew in an empty directory, \
         and give every machine what is made there",
        dir.display()
    )]
    NoKey {
        /// The authority's directory.
        dir: PathBuf,
    },
    /// A key cannot be used.
    #[error("{} cannot be used", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rcgen::Error,
    },
    /// A key or a certificate cannot be made.
    #[error("cannot make the certificate of {of}")]
    Make {
        /// Whose.
        of: String,
        /// Why.
        source: rcgen::Error,
    },
    /// What was made would not be believed.
    #[error(
        "{0}/ca.key signs for no authority in {0}/ca.crt that cistern made; with an authority of your own, make certificates \
         with its tools",
        dir.display()
    )]
    Unfit {
        /// The authority's directory.
        dir: PathBuf,
        /// Why.
        source: TlsError,
    },
    /// A directory cannot be made.
    #[error("cannot make the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was made would be of no use.
    #[error("the new certificate is of no use")]
    Useless(#[source] TlsError),
    /// What is of no use any more cannot be removed.
    #[error("cannot remove {}", path.display())]
    Clear {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] FileError),
}

/// A certificate and its key, in PEM.
pub struct Issued {
    /// `tls.crt`
    pub certificate: String,
    /// `tls.key`
    pub key: String,
}

/// Whoever signs certificates: `ca.crt` and `ca.key` in a directory. Two processes at once are not safe: the caller holds a
/// lock.
pub struct Authority {
    dir: PathBuf,
    /// `ca.crt`, which may hold more authorities than this one.
    believed: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one for ten years. A key that is there without a certificate is a making that was cut off, and is used.
    pub fn create(dir: &Path) -> Result<Authority, CertsError> {
        make_directory(dir)?;
        let made = |source| CertsError::Make { of: "the authority".to_owned(), source };
        let key = match read_key(dir)? {
            Some(key) => key,
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
                write_atomically(dir, "ca.key", key.serialize_pem().as_bytes())?;
                key
            }
        };
        let (params, certificate) = make_authority(&key).map_err(made)?;
        write_atomically(dir, "ca.crt", certificate.as_bytes())?;
        Ok(Authority { dir: dir.to_owned(), believed: certificate.into_bytes(), issuer: Issuer::new(params, key) })
    }

    /// The one of this directory; none where there is no `ca.crt`.
    pub fn open(dir: &Path) -> Result<Option<Authority>, CertsError> {
        let Some(believed) = read(&dir.join("ca.crt"))? else { return Ok(None) };
        let key = read_key(dir)?.ok_or_else(|| CertsError::NoKey { dir: dir.to_owned() })?;
        // all that a certificate says of its issuer is the issuer's name
        let issuer = Issuer::new(params(&name_of(&key), &(UNIX_EPOCH..UNIX_EPOCH)), key);
        Ok(Some(Authority { dir: dir.to_owned(), believed, issuer }))
    }

    /// Signs a new key for a machine in these roles.
    pub fn issue(&self, name: &NodeName, roles: &[Role], valid: Range<SystemTime>) -> Result<Issued, CertsError> {
        let made = |source| CertsError::Make { of: name.to_string(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
        let certificate = sign(&self.issuer, &key, name, roles, valid).map_err(made)?;
        Ok(Issued { certificate, key: key.serialize_pem() })
    }

    /// Makes or renews what `--tls` takes, in a directory named after the machine. Returns it.
    pub fn equip(&self, name: &NodeName, roles: &[Role], lifetime: Duration) -> Result<PathBuf, CertsError> {
        let dir = self.dir.join(name.to_string());
        let now = SystemTime::now();
        let issued = self.issue(name, roles, now - CLOCKS..now + lifetime)?;
        let files = [&self.believed, issued.certificate.as_bytes(), issued.key.as_bytes()];
        tls::check(&dir, files).map_err(|source| CertsError::Unfit { dir: self.dir.clone(), source })?;
        make_directory(&dir)?;
        for (name, bytes) in tls::FILES.into_iter().zip(files) {
            write_atomically(&dir, name, bytes)?;
        }
        Ok(dir)
    }
}

/// So many days.
pub fn days(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 24 * 3600)
}

/// From when until when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Its first moment.
    pub from: SystemTime,
    /// Its last.
    pub until: SystemTime,
}

impl Life {
    /// That of a certificate; none where it is no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Life> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let at = |seconds: i64| Some(UNIX_EPOCH + Duration::from_secs(seconds.try_into().ok()?));
        let validity = parsed.validity();
        Some(Life { from: at(validity.not_before.timestamp())?, until: at(validity.not_after.timestamp())? })
    }

    /// That of the first certificate of a text.
    pub fn of_pem(text: &[u8]) -> Option<Life> {
        Life::of(&CertificateDer::from_pem_slice(text).ok()?)
    }

    /// When it is renewed.
    pub fn middle(&self) -> SystemTime {
        self.from + self.until.duration_since(self.from).unwrap_or_default() / 2
    }
}

/// A certificate of an authority that is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The certificate.
    pub pem: String,
    /// The first half of its SHA-256: what it is called in lists.
    pub fingerprint: String,
    /// How long it lives itself.
    pub life: Life,
}

/// The certificates of a text that can be believed. What is between them, and what cannot be understood, is left out.
pub fn anchors(text: &str) -> Vec<Anchor> {
    let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
    let blocks = text.split(begin).skip(1).filter_map(|rest| Some(rest.split_once(end)?.0));
    blocks.filter_map(|block| anchor(format!("{begin}\n{}\n{end}\n", block.trim()))).collect()
}

fn anchor(pem: String) -> Option<Anchor> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    webpki::anchor_from_trusted_cert(&der).ok()?;
    let digest = Sha256::digest(&der);
    let fingerprint = digest[..16].iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    Some(Anchor { fingerprint, life: Life::of(&der)?, pem })
}

/// An authority's certificate for ten years, signed by itself.
fn make_authority(key: &KeyPair) -> Result<(CertificateParams, String), rcgen::Error> {
    let now = SystemTime::now();
    let mut params = params(&name_of(key), &(now - CLOCKS..now + days(AUTHORITY_DAYS)));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // whoever steals the key can be nobody else on the network with it
    let ours = GeneralSubtree::DnsName(DOMAIN.to_owned());
    params.name_constraints = Some(NameConstraints { permitted_subtrees: vec![ours], excluded_subtrees: Vec::new() });
    let certificate = params.self_signed(key)?.pem();
    Ok((params, certificate))
}

/// Signs a machine's key for its name in these roles.
fn sign(
    issuer: &Issuer<'_, KeyPair>,
    key: &impl PublicKeyData,
    name: &NodeName,
    roles: &[Role],
    valid: Range<SystemTime>,
) -> Result<String, rcgen::Error> {
    let names: Vec<String> = roles.iter().map(|role| dns_name(name, *role)).collect();
    let mut params = params(&name.to_string(), &valid);
    params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(key, issuer)?.pem())
}

/// The authority's name follows from its key, so that no two have the same.
fn name_of(key: &KeyPair) -> String {
    let digest = Sha256::digest(key.public_key_raw());
    digest[..8].iter().fold("cistern ".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

fn params(common_name: &str, valid: &Range<SystemTime>) -> CertificateParams {
    let at = |time: SystemTime| rcgen::date_time_ymd(1970, 1, 1) + time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = at(valid.start);
    params.not_after = at(valid.end);
    params
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, CertsError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CertsError::Read { path: path.to_owned(), source }),
    }
}

fn read_key(dir: &Path) -> Result<Option<KeyPair>, CertsError> {
    let path = dir.join("ca.key");
    let Some(bytes) = read(&path)? else { return Ok(None) };
    let key = KeyPair::from_pem(&String::from_utf8_lossy(&bytes));
    key.map(Some).map_err(|source| CertsError::Key { path, source })
}

/// Makes a directory for its owner alone, as all that will be in it.
pub fn make_directory(dir: &Path) -> Result<(), CertsError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| CertsError::Directory { path: dir.to_owned(), source })
}
