//! The client's end: channels to a machine that has shown it is the one that was meant.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::Tls;
use crate::domain::error::chain;
use crate::domain::{NodeName, Role};
use crate::peer::identity::{Identity, dns_name};
use crate::peer::{KEEP_ALIVE_EVERY, KEEP_ALIVE_WAIT};

/// How long one address is tried, and all of them.
const EACH: Duration = Duration::from_secs(2);
const ALL: Duration = Duration::from_secs(5);
/// How long a failure stands for the next calls. A channel connects once per call that waits: without this, ten calls to a
/// machine that is off would fail after 2, 4, … 20 seconds and not after 2.
const STANDS: Duration = Duration::from_millis(500);

impl Tls {
    /// A channel to this machine, by the first of its addresses (`host:port`) that answers as it. It connects when it is
    /// used, again after its connection broke, and then with the certificate of that time. To be called within a runtime.
    ///
    /// Flow control begins with windows of 64 KiB and follows what the connection carries: a volume's copy soon has
    /// megabytes, and thousands of idle connections promise next to nothing. All in all an idle connection takes some
    /// 40 KiB here and 30 KiB at the server, and keeping 5,000 of them alive some 3 % of a processor.
    pub fn channel(self: &Arc<Self>, role: Role, name: NodeName, addresses: Vec<String>) -> Channel {
        let machine = Arc::new(Machine { tls: Arc::clone(self), role, name, addresses, failed: Mutex::new(None) });
        let connector = tower::service_fn(move |_| {
            let machine = Arc::clone(&machine);
            async move { machine.connect().await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://cistern.internal")
            .http2_adaptive_window(true)
            .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
            .keep_alive_timeout(KEEP_ALIVE_WAIT)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connector)
    }
}

/// A machine that is called.
struct Machine {
    tls: Arc<Tls>,
    role: Role,
    name: NodeName,
    addresses: Vec<String>,
    /// When it could last not be reached, and why.
    failed: Mutex<Option<(Instant, Unreachable)>>,
}

/// No address of a machine answers as it. Its text has the causes in it: a caller gets this text as the status's message,
/// and nothing else of it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{role} {name} cannot be reached: {why}")]
struct Unreachable {
    role: Role,
    name: NodeName,
    why: Tries,
}

/// What came of each address.
#[derive(Debug, Clone, Default)]
struct Tries(Vec<(String, Arc<TryError>)>);

/// Why an address is of no use.
#[derive(Debug, thiserror::Error)]
enum TryError {
    #[error("no connection")]
    Connect(#[source] io::Error),
    #[error("no TLS")]
    Handshake(#[source] io::Error),
    #[error("another answers, {0}")]
    Other(Identity),
    #[error("our certificate is not taken")]
    Refused(#[source] io::Error),
    #[error("no answer in time")]
    Late,
    #[error("no certificate can be used")]
    Own(#[source] io::Error),
}

impl fmt::Display for Tries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("it has no address");
        }
        for (index, (address, error)) in self.0.iter().enumerate() {
            let semicolon = if index == 0 { "" } else { "; " };
            write!(f, "{semicolon}{address}: {}", chain(&**error))?;
        }
        Ok(())
    }
}

impl Machine {
    async fn connect(&self) -> Result<TlsStream<TcpStream>, Unreachable> {
        if let Some((when, error)) = &*self.failed.lock().unwrap_or_else(PoisonError::into_inner)
            && when.elapsed() < STANDS
        {
            return Err(error.clone());
        }
        let result = self.try_all().await;
        let failed = result.as_ref().err().map(|error| (Instant::now(), error.clone()));
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
        result
    }

    async fn try_all(&self) -> Result<TlsStream<TcpStream>, Unreachable> {
        let end = Instant::now() + ALL;
        let mut tries = Tries::default();
        for address in &self.addresses {
            let left = EACH.min(end.saturating_duration_since(Instant::now()));
            match self.try_one(address, left).await {
                Ok(stream) => return Ok(stream),
                Err(error) => tries.0.push((address.clone(), Arc::new(error))),
            }
        }
        Err(Unreachable { role: self.role, name: self.name.clone(), why: tries })
    }

    /// Connects, and greets when there is a turn for it: the time of both is the other end's, and not ours.
    async fn try_one(&self, address: &str, time: Duration) -> Result<TlsStream<TcpStream>, TryError> {
        // the files are looked at also while nobody answers
        let set = self.tls.current().await.map_err(TryError::Own)?;
        let connected = tokio::time::timeout(time, TcpStream::connect(address)).await;
        let socket = connected.map_err(|_| TryError::Late)?.map_err(TryError::Connect)?;
        let turn = self.tls.handshakes.acquire().await;
        let _turn = turn.map_err(|closed| TryError::Own(io::Error::other(closed)))?;
        tokio::time::timeout(time, self.greet(socket, &set.client)).await.unwrap_or(Err(TryError::Late))
    }

    async fn greet(&self, socket: TcpStream, config: &Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, TryError> {
        let expected = ServerName::try_from(dns_name(&self.name, self.role));
        let expected = expected.map_err(|error| TryError::Own(io::Error::other(error)))?;
        // gRPC's small frames are not held back
        socket.set_nodelay(true).map_err(TryError::Connect)?;
        let connector = TlsConnector::from(Arc::clone(config));
        let mut stream = connector.connect(expected, socket).await.map_err(TryError::Handshake)?;
        // a wildcard would do for TLS, and not for us
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let identity = certificate.and_then(|certificate| Identity::of(certificate).ok());
        match identity {
            Some(identity) if identity.speaks_for(&self.name, self.role) => {}
            Some(identity) => return Err(TryError::Other(identity)),
            None => return Err(TryError::Handshake(io::ErrorKind::InvalidData.into())),
        }
        // with TLS 1.3 the server looks at our certificate after our end is done; its first bytes say that it is content
        match stream.fill_buf().await {
            Ok([]) => Err(TryError::Refused(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(stream),
            Err(error) => Err(TryError::Refused(error)),
        }
    }
}
