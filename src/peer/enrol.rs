//! The node's half of enrolment: a machine of a cluster gets its certificate from a controller, and renews it.
//!
//! What waits for what: kubelet's socket for nothing; the door to controllers for a certificate that can be used, be it of
//! this start or of an earlier one. So a machine that was enrolled starts without any controller.

use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::certs::CertsError;
use super::certs::directory::{self, Lack};
use super::tls::{self, FILES, TlsError};
use crate::domain::error::chain;
use crate::domain::{NodeName, Role};
use crate::proto::internal::enrolment_client::EnrolmentClient;
use crate::proto::internal::{EnrolRequest, EnrolResponse};

/// What a machine that enrols is.
pub const ROLES: [Role; 2] = [Role::Host, Role::Node];
/// The largest message of enrolment, in bytes: a request with its token, an answer with its authorities.
pub const LARGEST_MESSAGE: usize = 64 << 10;

/// How often the machine's certificate and the authorities in force are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long to wait after a failure; twice as long after each, up to the longest.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a connection may take, and then the answer.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(15);
/// How long after an enrolment the authorities that it brought may be newer than those in the credentials: it takes kubelet a
/// minute or two to bring what a ConfigMap has to its pods.
const NEWEST: Duration = Duration::from_secs(300);

/// Where controllers enrol machines: `ADDR:PORT`. An IPv6 address may be without its brackets, as in the variables that
/// Kubernetes sets for a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolAddress {
    host: String,
    port: u16,
}

impl FromStr for EnrolAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<EnrolAddress, String> {
        let wrong = || format!("{text:?} is not ADDR:PORT");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_good = !host.is_empty() && (!host.contains(':') || host.parse::<Ipv6Addr>().is_ok());
        let port = port.parse().map_err(|_| wrong())?;
        if is_good { Ok(EnrolAddress { host: host.to_owned(), port }) } else { Err(wrong()) }
    }
}

/// How a machine of a cluster comes by its certificate.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// The controllers' door.
    pub controller: EnrolAddress,
    /// The directory with `ca.crt`, the authorities in force, and `token`. Both are read anew each time.
    pub credentials: PathBuf,
    /// Where the certificate is kept: what `--tls` takes.
    pub tls: PathBuf,
    /// The machine's name.
    pub name: NodeName,
}

/// When a machine was enrolled, and what the authorities in force were, as far as it knew.
#[derive(Debug, Clone)]
struct Enrolled {
    when: Instant,
    with: Vec<u8>,
}

impl Enrolled {
    /// Whether what the controller answered may be newer than these authorities, and they are not to be heeded yet.
    fn is_newer_than(&self, in_force: &[u8]) -> bool {
        self.with == in_force && self.when.elapsed() < NEWEST
    }
}

/// A machine is not enrolled.
#[derive(Debug, thiserror::Error)]
enum EnrolError {
    #[error("cannot read {}", path.display())]
    Credentials { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Authorities(TlsError),
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    #[error("the controller cannot be reached")]
    Connect(#[source] io::Error),
    #[error("who answers is not believed to be a controller, and was not shown the token")]
    Handshake(#[source] io::Error),
    #[error("the controller does not speak HTTP/2")]
    Channel(#[source] tonic::transport::Error),
    #[error("no answer in time")]
    Late,
    #[error("the controller refuses: {}", _0.message())]
    Refused(Box<Status>),
    #[error("the certificate is of no use yet, or no more; do the clocks agree?")]
    Lacking(#[source] Lack),
    #[error(transparent)]
    Keep(#[from] CertsError),
    #[error("the work was cut off")]
    Cut(#[source] tokio::task::JoinError),
}

impl Enrolment {
    /// Enrols the machine as often as it is needed, for as long as this is polled. `usable` becomes true when there is a
    /// certificate that can be used.
    pub async fn keep(self, usable: watch::Sender<bool>) {
        let this = Arc::new(self);
        let (mut pause, mut enrolled) = (PAUSE, None);
        loop {
            let wait = match this.look(&usable, &mut enrolled).await {
                Ok(renew_at) => {
                    usable.send_replace(true);
                    pause = PAUSE;
                    renew_at.duration_since(SystemTime::now()).unwrap_or_default().min(LOOK_EVERY)
                }
                Err(error) => {
                    let (wait, error) = (pause, chain(&error));
                    tracing::warn!(machine = %this.name, error, "not enrolled; once more in {wait:?}");
                    pause = LONGEST_PAUSE.min(pause * 2);
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Looks at what the machine has, and enrols it if something is lacking. Answers when the certificate is to be renewed.
    async fn look(
        self: &Arc<Self>,
        usable: &watch::Sender<bool>,
        enrolled: &mut Option<Enrolled>,
    ) -> Result<SystemTime, EnrolError> {
        let before = enrolled.clone();
        let lack = match self.apart(move |this| this.look_at_files(before.as_ref())).await?? {
            Ok(renew_at) => return Ok(renew_at),
            Err(lack) => lack,
        };
        if lack.is_usable() {
            usable.send_replace(true);
        }
        tracing::info!(machine = %self.name, reason = %chain(&lack), "enrolling");
        let now = Enrolled { when: Instant::now(), with: self.enrol().await? };
        *enrolled = Some(now.clone());
        self.apart(move |this| this.look_at_files(Some(&now))).await??.map_err(EnrolError::Lacking)
    }

    /// Does on a thread of its own what reads and writes files.
    async fn apart<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, EnrolError> {
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&this)).await.map_err(EnrolError::Cut)
    }

    /// When the certificate is to be renewed, or why it is to be so now. The authorities in force are taken over; if they
    /// cannot be read, what the machine has goes on.
    fn look_at_files(&self, enrolled: Option<&Enrolled>) -> Result<Result<SystemTime, Lack>, EnrolError> {
        directory::finish(&self.tls)?;
        let look = |in_force| directory::look(&self.tls, &self.name, &ROLES, in_force, SystemTime::now());
        let Ok(in_force) = std::fs::read(self.credentials.join(FILES[0])) else { return Ok(look(None)) };
        match look(Some(&in_force)) {
            Ok(renew_at) => {
                if directory::believe(&self.tls, &in_force)? {
                    tracing::info!(machine = %self.name, "the authorities that are believed were taken over");
                }
                Ok(Ok(renew_at))
            }
            Err(Lack::NotBelieved) if enrolled.is_some_and(|enrolled| enrolled.is_newer_than(&in_force)) => {
                Ok(look(None))
            }
            Err(lack) => Ok(Err(lack)),
        }
    }

    /// Makes a key, has it signed, and brings it to its place. The key is on this machine alone. Answers the authorities that
    /// the controller was held against.
    async fn enrol(self: &Arc<Self>) -> Result<Vec<u8>, EnrolError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(EnrolError::Key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(EnrolError::Key)?.der().to_vec();
        let (config, in_force) = self.apart(|this| this.in_force()).await??;
        let stream = self.connect(config).await?;
        // only now, since who answers is a controller
        let token = self.apart(|this| read(&this.credentials.join("token"))).await??;
        let token = String::from_utf8_lossy(&token).trim().to_owned();
        let answer = ask(stream, EnrolRequest { request, token }).await?;
        self.apart(move |this| this.install(&answer, &key.serialize_pem())).await??;
        Ok(in_force)
    }

    fn in_force(&self) -> Result<(Arc<rustls::ClientConfig>, Vec<u8>), EnrolError> {
        let path = self.credentials.join(FILES[0]);
        let in_force = read(&path)?;
        Ok((tls::of_controllers(&path, &in_force).map_err(EnrolError::Authorities)?, in_force))
    }

    async fn connect(&self, config: Arc<rustls::ClientConfig>) -> Result<TlsStream<TcpStream>, EnrolError> {
        let EnrolAddress { host, port } = &self.controller;
        let socket = tokio::time::timeout(CONNECT, TcpStream::connect((host.as_str(), *port))).await;
        let socket = socket.map_err(|_| EnrolError::Late)?.map_err(EnrolError::Connect)?;
        let greeted = tokio::time::timeout(CONNECT, tls::greet_controller(config, socket)).await;
        greeted.map_err(|_| EnrolError::Late)?.map_err(EnrolError::Handshake)
    }

    fn install(&self, answer: &EnrolResponse, key: &str) -> Result<(), EnrolError> {
        let files = [answer.authorities.as_bytes(), answer.certificates.as_bytes(), key.as_bytes()];
        directory::install(&self.tls, files)?;
        tracing::info!(machine = %self.name, "enrolled");
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, EnrolError> {
    std::fs::read(path).map_err(|source| EnrolError::Credentials { path: path.to_owned(), source })
}

/// Sends the request on this connection, and on no other.
async fn ask(stream: TlsStream<TcpStream>, request: EnrolRequest) -> Result<EnrolResponse, EnrolError> {
    let channel = over(stream).await.map_err(EnrolError::Channel)?;
    let mut client = EnrolmentClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
    let answered = tokio::time::timeout(ANSWER, client.enrol(request)).await.map_err(|_| EnrolError::Late)?;
    Ok(answered.map_err(|status| EnrolError::Refused(Box::new(status)))?.into_inner())
}

async fn over(stream: TlsStream<TcpStream>) -> Result<Channel, tonic::transport::Error> {
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    Endpoint::from_static("http://cistern.internal").connect_with_connector(connector).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_and_kubernetes_write_them() {
        for (text, host, port) in [
            ("10.96.0.7:7444", "10.96.0.7", 7444),
            ("[fd00::7]:7444", "fd00::7", 7444),
            ("fd00::7:7444", "fd00::7", 7444),
            ("cistern-controller.cistern.svc:1", "cistern-controller.cistern.svc", 1),
        ] {
            assert_eq!(text.parse(), Ok(EnrolAddress { host: host.to_owned(), port }), "{text}");
        }
        for text in ["", ":", "a", "a:", ":7444", "a:b", "a:70000", "a:b:1", "$(CISTERN):$(PORT)"] {
            assert!(text.parse::<EnrolAddress>().is_err(), "{text}");
        }
    }
}
