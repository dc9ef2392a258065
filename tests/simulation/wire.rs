//! The way to a host that is played: one listener for all, mutual TLS with the certificate of the one that is called.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use cistern::peer::certs::Issued;
use cistern::proto::csi::v1::controller_server::ControllerServer;
use cistern::proto::internal::host_server::HostServer;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::services::Plays;
use super::{Manner, Played};

/// How many connections may wait to be accepted: a whole fleet's, since one listener stands for all hosts.
const WAITING: u32 = 8192;

/// The host's end of TLS.
pub fn config(ca: &str, issued: &Issued) -> Arc<rustls::ServerConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let mut config = builder.with_client_cert_verifier(clients).with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

/// Serves all hosts, and answers the port on which they are reached.
pub async fn serve(hosts: Vec<Arc<Played>>) -> u16 {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([0, 0, 0, 0], 0))).unwrap();
    let listener = socket.listen(WAITING).unwrap();
    let port = listener.local_addr().unwrap().port();
    let hosts: HashMap<IpAddr, Arc<Played>> = hosts.into_iter().map(|host| (host.address.into(), host)).collect();
    let (sender, connections) = mpsc::channel(64);
    tokio::spawn(async move {
        loop {
            let Ok((socket, _)) = listener.accept().await else { continue };
            let Some(host) = socket.local_addr().ok().and_then(|called| hosts.get(&called.ip()).cloned()) else {
                continue;
            };
            let sender = sender.clone();
            tokio::spawn(async move {
                if let Ok(wire) = greet(host, socket).await {
                    let _ = sender.send(Ok::<_, io::Error>(wire)).await;
                }
            });
        }
    });
    let server = Server::builder()
        .add_service(HostServer::new(Plays))
        .add_service(ControllerServer::new(Plays))
        .serve_with_incoming(ReceiverStream::new(connections));
    tokio::spawn(async move { server.await.unwrap() });
    port
}

async fn greet(host: Arc<Played>, socket: TcpStream) -> io::Result<Wire> {
    let (manner, cut) = (host.manner(), host.lock().cut.clone());
    if manner == Manner::Silent {
        cut.cancelled().await;
        return Err(io::ErrorKind::TimedOut.into());
    }
    socket.set_nodelay(true)?;
    let stream = TlsAcceptor::from(Arc::clone(&host.tls)).accept(socket).await?;
    if let Manner::Flapping(after) = manner {
        let cut = cut.child_token();
        let ends = cut.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            ends.cancel();
        });
        return Ok(Wire::new(stream, host, cut));
    }
    Ok(Wire::new(stream, host, cut))
}

/// A connection, until it is cut.
pub struct Wire {
    stream: TlsStream<TcpStream>,
    host: Arc<Played>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Wire {
    fn new(stream: TlsStream<TcpStream>, host: Arc<Played>, cut: CancellationToken) -> Wire {
        Wire { stream, host, cut: Box::pin(cut.cancelled_owned()) }
    }
}

impl Connected for Wire {
    type ConnectInfo = Arc<Played>;

    fn connect_info(&self) -> Arc<Played> {
        Arc::clone(&self.host)
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
