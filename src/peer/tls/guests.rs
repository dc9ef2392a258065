//! Connections of those who have no certificate yet: guests. The server alone shows one, and it must be a controller's.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::accept::{Accepted, HandshakeError, Incoming};
use super::set::{protocols, roots};
use super::{Tls, TlsError};
use crate::domain::Role;
use crate::peer::identity::{DOMAIN, Identity, dns_name};

/// How many connections guests have at a time: from one address, and all in all. One more is not let in, and comes again
/// later: what one machine does, also when it keeps silent, is at its own cost.
const OF_ONE: usize = 4;
const OF_ALL: usize = 512;
/// How long a connection lasts, whatever is done with it. Enrolling takes a fraction of a second.
const STAY: Duration = Duration::from_secs(20);

/// Who is at the other end: all that is known is where it called from.
#[derive(Debug, Clone, Copy)]
pub struct GuestInfo {
    /// Where it called from.
    pub address: SocketAddr,
}

/// A guest's connection.
pub type GuestStream = Accepted<GuestInfo>;

impl Tls {
    /// Accepts connections and asks for no certificate.
    pub fn incoming_guests(self: Arc<Self>, listener: TcpListener) -> Incoming<GuestInfo> {
        let places = Arc::new(Places::default());
        Incoming::begin(listener, move |socket, address| {
            let (tls, place) = (Arc::clone(&self), places.take(address.ip()));
            async move { greet(&tls, socket, address, place.ok_or(HandshakeError::Crowded)?).await }
        })
    }
}

async fn greet(
    tls: &Arc<Tls>,
    socket: TcpStream,
    address: SocketAddr,
    place: Place,
) -> Result<GuestStream, HandshakeError> {
    socket.set_nodelay(true).map_err(HandshakeError::Handshake)?;
    let set = tls.current().await.map_err(HandshakeError::Own)?;
    let stream = TlsAcceptor::from(Arc::clone(&set.open)).accept(socket).await.map_err(HandshakeError::Handshake)?;
    let stay = Some((Box::pin(tokio::time::sleep(STAY)), place));
    Ok(Accepted { stream, info: GuestInfo { address }, stay })
}

/// How many guests there are of each address.
#[derive(Debug, Default)]
struct Places(Mutex<HashMap<IpAddr, usize>>);

/// A guest's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<Places>,
    address: IpAddr,
}

impl Places {
    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let its = taken.get(&address).copied().unwrap_or(0);
        if its >= OF_ONE || all >= OF_ALL {
            return None;
        }
        taken.insert(address, its + 1);
        Some(Place { of: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.address) {
            Some(its) if *its > 1 => *its -= 1,
            _ => drop(taken.remove(&self.address)),
        }
    }
}

/// Greets a server, and goes on only if it shows a certificate of one of these authorities for a controller.
pub async fn greet_controller(config: Arc<ClientConfig>, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    socket.set_nodelay(true)?;
    // whoever it is by name, the verifier looks for the role
    let server = ServerName::try_from(DOMAIN).map_err(io::Error::other)?;
    TlsConnector::from(config).connect(server, socket).await
}

/// A guest's end. `path` is where the authorities are from, for messages.
pub fn of_controllers(path: &Path, authorities: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
    let unusable = |source| TlsError::Unusable { path: path.to_owned(), source };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = roots(path, authorities)?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
    let verifier = verifier.map_err(|error| unusable(rustls::Error::General(error.to_string())))?;
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]).map_err(unusable)?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(OfControllers(verifier)));
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = protocols();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// Believes whoever is a controller, by whatever name: a guest knows none. All else is as for every server.
#[derive(Debug)]
struct OfControllers(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for OfControllers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let identity = Identity::of(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        let name = identity.name_as(Role::Controller).ok_or(CertificateError::NotValidForName)?;
        let name = ServerName::try_from(dns_name(name, Role::Controller)).map_err(|_| CertificateError::BadEncoding)?;
        self.0.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_address_takes_the_places_of_others() {
        let places = Arc::new(Places::default());
        let (one, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut taken: Vec<_> = (0..OF_ONE).map(|_| places.take(one).unwrap()).collect();
        assert!(places.take(one).is_none());
        drop(places.take(other).unwrap());
        taken.pop();
        taken.push(places.take(one).unwrap());
        drop(taken);
        assert!(places.0.lock().unwrap().is_empty());
    }

    #[test]
    fn all_together_take_no_more_than_there_are() {
        let places = Arc::new(Places::default());
        let address = |number: usize| IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
        let _taken: Vec<_> = (0..OF_ALL).map(|number| places.take(address(number)).unwrap()).collect();
        assert!(places.take(address(OF_ALL)).is_none());
    }
}
