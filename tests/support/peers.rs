//! Certificates of machines, and clients that show them.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use cistern::domain::{NodeName, Role};
use cistern::peer::certs::{Authority, Issued, days};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use super::Place;

/// An authority with a directory of its own.
pub struct Pki {
    pub place: Place,
    pub authority: Authority,
}

pub fn name(name: &str) -> NodeName {
    name.parse().unwrap()
}

/// From an hour ago to a day from now.
pub fn today() -> Range<SystemTime> {
    SystemTime::now() - Duration::from_secs(3600)..SystemTime::now() + days(1)
}

/// All of yesterday.
pub fn yesterday() -> Range<SystemTime> {
    SystemTime::now() - days(2)..SystemTime::now() - days(1)
}

impl Pki {
    pub fn new() -> Pki {
        // where all machines of a lab see it
        let place = super::far::shared().map_or_else(Place::bare, |shared| Place::below(&shared));
        let authority = Authority::create(&place.path("ca")).unwrap();
        Pki { place, authority }
    }

    /// The directory for `--tls` of a machine in these roles.
    pub fn machine(&self, its: &str, roles: &[Role]) -> PathBuf {
        self.authority.equip(&name(its), roles, days(1)).unwrap()
    }

    pub fn issue(&self, its: &str, roles: &[Role], valid: Range<SystemTime>) -> Issued {
        self.authority.issue(&name(its), roles, valid).unwrap()
    }

    /// What is believed.
    pub fn ca(&self) -> String {
        std::fs::read_to_string(self.place.path("ca/ca.crt")).unwrap()
    }

    /// A directory for `--tls` with just these files.
    pub fn directory(&self, its: &str, ca: &str, issued: &Issued) -> PathBuf {
        let dir = self.place.path(its);
        std::fs::create_dir_all(&dir).unwrap();
        write_all(&dir, ca, issued);
        dir
    }
}

pub fn write_all(dir: &Path, ca: &str, issued: &Issued) {
    std::fs::write(dir.join("ca.crt"), ca).unwrap();
    std::fs::write(dir.join("tls.crt"), &issued.certificate).unwrap();
    std::fs::write(dir.join("tls.key"), &issued.key).unwrap();
}

/// A TLS client that looks at nothing that ours looks at, and shows whatever it is told to.
pub fn bare_client(ca: &str, shows: Option<&Issued>) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let mut config = match shows {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let chain = vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Connects to a host, and waits until it says something. The connection's own address is told also when it fails.
pub async fn bare_connect(
    config: Arc<rustls::ClientConfig>,
    host: &str,
    to: SocketAddr,
) -> (SocketAddr, std::io::Result<tokio_rustls::client::TlsStream<TcpStream>>) {
    let socket = TcpStream::connect(to).await.unwrap();
    let from = socket.local_addr().unwrap();
    let server = ServerName::try_from(format!("{host}.host.cistern.internal")).unwrap();
    let talk = async {
        let mut stream = tokio_rustls::TlsConnector::from(config).connect(server, socket).await?;
        if stream.fill_buf().await?.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(stream)
    };
    (from, talk.await)
}

/// A channel over such connections. Its failures to connect say `not let in`.
pub fn bare_channel(config: rustls::ClientConfig, host: &str, to: SocketAddr) -> Channel {
    let (config, host) = (Arc::new(config), host.to_owned());
    let connector = tower::service_fn(move |_| {
        let (config, host) = (Arc::clone(&config), host.clone());
        async move {
            let (_, connected) = bare_connect(config, &host, to).await;
            connected.map(TokioIo::new).map_err(|error| std::io::Error::other(format!("not let in: {error}")))
        }
    });
    Endpoint::from_static("http://cistern.internal").connect_with_connector_lazy(connector)
}

/// All that this process has logged since the first call of this.
pub fn logged() -> String {
    String::from_utf8_lossy(&log().lock().unwrap()).into_owned()
}

/// The lines that have this in them.
pub fn logged_of(what: &str) -> Vec<String> {
    logged().lines().filter(|line| line.contains(what)).map(str::to_owned).collect()
}

fn log() -> &'static Arc<Mutex<Vec<u8>>> {
    static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Arc::new(Mutex::new(Vec::new()));
        let writer = Writer(Arc::clone(&log));
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        subscriber.with_max_level(tracing::Level::INFO).init();
        log
    })
}

#[derive(Clone)]
struct Writer(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
