//! An authority whose certificate and key are texts, as in a Secret: it signs keys that others made.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateSigningRequestParams, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, pem};

use super::{Anchor, CLOCKS, Issued, anchors, make_authority, sign};
use crate::domain::{NodeName, Role};

/// An authority cannot be made or used, or something cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The authority's certificate is none.
    #[error("tls.crt holds no authority's certificate in PEM")]
    NoCertificate,
    /// The authority's key cannot be used.
    #[error("tls.key cannot be used: it must be a private key in PEM, encoded as PKCS #8")]
    Key(#[source] rcgen::Error),
    /// The key is another certificate's.
    #[error("tls.key is not the key of tls.crt")]
    OtherKey,
    /// The certificate's name or extensions cannot be understood.
    #[error("tls.crt cannot sign")]
    Certificate(#[source] rcgen::Error),
    /// The authority's own time is over.
    #[error("the authority's certificate has expired")]
    Expired,
    /// What was sent is no signing request in PEM.
    #[error("the signing request is not PEM")]
    RequestPem(#[source] pem::Error),
    /// What was sent is no signing request, or not one of whoever has the key.
    #[error("the signing request cannot be used")]
    Request(#[source] rcgen::Error),
    /// A certificate cannot be made.
    #[error("cannot make the certificate of {of}")]
    Make {
        /// Whose.
        of: String,
        /// Why.
        source: rcgen::Error,
    },
}

/// Whoever signs certificates in a cluster.
pub struct Signer {
    anchor: Anchor,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    /// Makes an authority for ten years, as `cistern certs` does; answers it with its key, in PEM.
    pub fn make() -> Result<(Signer, String), SignerError> {
        let made = |source| SignerError::Make { of: "the authority".to_owned(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
        let (_, certificate) = make_authority(&key).map_err(made)?;
        let key = key.serialize_pem();
        Ok((Signer::of(&certificate, &key)?, key))
    }

    /// The one with this certificate and key. Of several certificates the first is its own: that one is believed, whoever
    /// signed it.
    pub fn of(certificate: &str, key: &str) -> Result<Signer, SignerError> {
        let anchor = anchors(certificate).into_iter().next().ok_or(SignerError::NoCertificate)?;
        let der = CertificateDer::from_pem_slice(anchor.pem.as_bytes()).map_err(|_| SignerError::NoCertificate)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|_| SignerError::NoCertificate)?;
        if !parsed.is_ca() {
            return Err(SignerError::NoCertificate);
        }
        let key = KeyPair::from_pem(key).map_err(SignerError::Key)?;
        if key.public_key_raw() != &*parsed.public_key().subject_public_key.data {
            return Err(SignerError::OtherKey);
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(SignerError::Certificate)?;
        Ok(Signer { anchor, issuer })
    }

    /// Its own certificate.
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// Makes a key and signs it.
    pub fn issue(&self, name: &NodeName, roles: &[Role], lifetime: Duration) -> Result<Issued, SignerError> {
        let made = |source| SignerError::Make { of: name.to_string(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
        let certificate = sign(&self.issuer, &key, name, roles, self.valid(lifetime)?).map_err(made)?;
        Ok(Issued { certificate, key: key.serialize_pem() })
    }

    /// Signs the key of a request, in DER or PEM, for this machine in these roles: whatever else the request asks for is not
    /// read. That the asker has the key is seen by the request's own signature.
    pub fn sign(
        &self,
        request: &[u8],
        name: &NodeName,
        roles: &[Role],
        lifetime: Duration,
    ) -> Result<String, SignerError> {
        let request = if request.starts_with(b"-----") {
            CertificateSigningRequestDer::from_pem_slice(request).map_err(SignerError::RequestPem)?
        } else {
            request.into()
        };
        let key = CertificateSigningRequestParams::from_der(&request).map_err(SignerError::Request)?.public_key;
        let made = |source| SignerError::Make { of: name.to_string(), source };
        sign(&self.issuer, &key, name, roles, self.valid(lifetime)?).map_err(made)
    }

    /// From a little before now, since clocks differ, for this long; never longer than the authority itself.
    fn valid(&self, lifetime: Duration) -> Result<std::ops::Range<SystemTime>, SignerError> {
        let now = SystemTime::now();
        let until = (now + lifetime).min(self.anchor.life.until);
        if until <= now {
            return Err(SignerError::Expired);
        }
        // what lives shortly is not half over when it begins
        Ok(now - CLOCKS.min(lifetime / 10)..until)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::CertificateParams;

    use super::*;
    use crate::peer::Identity;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn request_for(names: &[&str]) -> (KeyPair, rcgen::CertificateSigningRequest) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let request = CertificateParams::new(names).unwrap().serialize_request(&key).unwrap();
        (key, request)
    }

    fn identity(certificate: &str) -> String {
        Identity::of(&CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap().to_string()
    }

    #[test]
    fn a_request_gives_its_key_and_nothing_else() {
        let (signer, _) = Signer::make().unwrap();
        let (key, request) = request_for(&["a.controller.cistern.internal", "b.host.cistern.internal"]);
        let (name, roles) = ("a".parse().unwrap(), [Role::Host, Role::Node]);
        let pem = request.pem().unwrap();
        for request in [&request.der()[..], pem.as_bytes()] {
            let certificate = signer.sign(request, &name, &roles, DAY).unwrap();
            assert_eq!(identity(&certificate), "host a, node a");
            let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
            assert_eq!(&*parsed.public_key().subject_public_key.data, key.public_key_raw());
            assert!(!parsed.is_ca());
        }
    }

    #[test]
    fn what_is_no_request_of_the_keys_owner_is_refused() {
        let (signer, _) = Signer::make().unwrap();
        let (_, request) = request_for(&[]);
        let mut forged = request.der().to_vec();
        *forged.last_mut().unwrap() ^= 1;
        for request in [&forged[..], b"", b"-----BEGIN", b"what", &[0x30; 4096]] {
            let signed = signer.sign(request, &"a".parse().unwrap(), &[Role::Host], DAY);
            assert!(matches!(signed, Err(SignerError::Request(_) | SignerError::RequestPem(_))), "{signed:?}");
        }
    }

    #[test]
    fn nothing_outlives_its_authority() {
        let (signer, _) = Signer::make().unwrap();
        let certificate = signer.issue(&"a".parse().unwrap(), &[Role::Host], DAY * 36500).unwrap().certificate;
        assert_eq!(anchors(&certificate)[0].life.until, signer.anchor().life.until);
    }

    #[test]
    fn texts_that_are_no_authority_are_told() {
        let (one, one_key) = Signer::make().unwrap();
        let (_, other_key) = Signer::make().unwrap();
        let leaf = one.issue(&"a".parse().unwrap(), &[Role::Host], DAY).unwrap();
        let certificate = &one.anchor().pem;
        assert!(matches!(Signer::of("", &one_key), Err(SignerError::NoCertificate)));
        assert!(matches!(Signer::of(&leaf.certificate, &leaf.key), Err(SignerError::NoCertificate)));
        assert!(matches!(Signer::of(certificate, ""), Err(SignerError::Key(_))));
        assert!(matches!(Signer::of(certificate, &other_key), Err(SignerError::OtherKey)));
        let again = Signer::of(certificate, &one_key).unwrap();
        assert_eq!(again.anchor(), one.anchor());
    }
}
