//! The server's end: connections whose client has shown who it is, and those of guests (`guests.rs`), who need not.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::Connected;

use super::Tls;
use super::guests::Place;
use crate::domain::error::chain;
use crate::peer::Identity;

/// How long a client has to show who it is.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How many clients may be at it. One more, and the oldest of them is let go: whoever keeps silent costs nobody a place.
const HANDSHAKES: usize = 256;
/// How long to wait when the system has no descriptor or memory for one more connection.
const REST: Duration = Duration::from_millis(200);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Who its certificate speaks for: somebody.
    pub identity: Arc<Identity>,
    /// Where it called from.
    pub address: SocketAddr,
}

/// Why a client is not let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("the handshake was not finished in {HANDSHAKE:?}")]
    Late,
    #[error("the handshake failed")]
    Handshake(#[source] io::Error),
    #[error("its certificate has no DNS name of the form NAME.ROLE.cistern.internal")]
    Nobody,
    #[error("too many of its address are here already")]
    Crowded,
    #[error("no certificate can be used")]
    Own(#[source] io::Error),
}

/// The connections of a listener, for `serve_with_incoming_shutdown`. It ends when it is dropped, and never by itself.
pub struct Incoming<I> {
    ready: mpsc::Receiver<Accepted<I>>,
    _accepting: AbortOnDropHandle<()>,
}

impl Tls {
    /// Accepts connections. Handshakes run beside each other; a client that fails is logged, and costs nobody else.
    pub fn incoming(self: Arc<Self>, listener: TcpListener) -> Incoming<PeerInfo> {
        Incoming::begin(listener, move |socket, address| {
            let tls = Arc::clone(&self);
            async move { greet(&tls, socket, address).await }
        })
    }
}

impl<I: Send + 'static> Incoming<I> {
    /// Greets whoever comes.
    pub(super) fn begin<G>(
        listener: TcpListener,
        greet: impl Fn(TcpStream, SocketAddr) -> G + Send + 'static,
    ) -> Incoming<I>
    where
        G: Future<Output = Result<Accepted<I>, HandshakeError>> + Send + 'static,
    {
        let (sender, ready) = mpsc::channel(HANDSHAKES);
        let accepting = AbortOnDropHandle::new(tokio::spawn(accept(listener, sender, greet)));
        Incoming { ready, _accepting: accepting }
    }
}

impl<I> Stream for Incoming<I> {
    type Item = io::Result<Accepted<I>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(context).map(|ready| ready.map(Ok))
    }
}

async fn accept<I: Send + 'static, G>(
    listener: TcpListener,
    ready: mpsc::Sender<Accepted<I>>,
    greet: impl Fn(TcpStream, SocketAddr) -> G,
) where
    G: Future<Output = Result<Accepted<I>, HandshakeError>> + Send + 'static,
{
    let mut begun: VecDeque<(SocketAddr, AbortHandle)> = VecDeque::new();
    let mut failing = false;
    loop {
        let (socket, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            // the connection's own end, or no descriptor left: neither is the listener's end, and the latter passes
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "a connection could not be accepted");
                }
                failing = true;
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        failing = false;
        if begun.len() >= HANDSHAKES {
            begun.retain(|(_, handshake)| !handshake.is_finished());
        }
        if begun.len() >= HANDSHAKES
            && let Some((address, oldest)) = begun.pop_front()
        {
            oldest.abort();
            tracing::info!(%address, "a client was let go, as {HANDSHAKES} others came after it");
        }
        let (greeting, ready) = (tokio::time::timeout(HANDSHAKE, greet(socket, address)), ready.clone());
        let handshake = tokio::spawn(async move {
            match greeting.await.unwrap_or(Err(HandshakeError::Late)) {
                // nobody takes it when the server has stopped
                Ok(stream) => drop(ready.send(stream).await),
                Err(error) => tracing::info!(%address, error = %chain(&error), "a client was refused"),
            }
        });
        begun.push_back((address, handshake.abort_handle()));
    }
}

async fn greet(tls: &Arc<Tls>, socket: TcpStream, address: SocketAddr) -> Result<PeerStream, HandshakeError> {
    // gRPC's small frames are not held back
    socket.set_nodelay(true).map_err(HandshakeError::Handshake)?;
    let set = tls.current().await.map_err(HandshakeError::Own)?;
    let acceptor = TlsAcceptor::from(Arc::clone(&set.server));
    let stream = acceptor.accept(socket).await.map_err(HandshakeError::Handshake)?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = certificate.and_then(|certificate| Identity::of(certificate).ok());
    let identity = identity.filter(|identity| !identity.is_nobody()).ok_or(HandshakeError::Nobody)?;
    Ok(Accepted { stream, info: PeerInfo { identity: Arc::new(identity), address }, stay: None })
}

/// A connection whose client has shown who it is.
pub type PeerStream = Accepted<PeerInfo>;

/// A connection, and what is known of its client.
pub struct Accepted<I> {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) info: I,
    /// How long it may stay, and the place that it takes meanwhile; for guests.
    pub(super) stay: Option<(Pin<Box<Sleep>>, Place)>,
}

impl<I> Accepted<I> {
    /// The connection; an error when it may stay no longer.
    fn open(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut TlsStream<TcpStream>>> {
        if let Some((end, _)) = &mut self.stay
            && end.as_mut().poll(context).is_ready()
        {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Pin::new(&mut self.stream))
    }
}

impl<I: Clone + Send + Sync + 'static> Connected for Accepted<I> {
    type ConnectInfo = I;

    fn connect_info(&self) -> I {
        self.info.clone()
    }
}

impl<I: Unpin> AsyncRead for Accepted<I> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().open(context)?.poll_read(context, into)
    }
}

impl<I: Unpin> AsyncWrite for Accepted<I> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().open(context)?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().open(context)?.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().open(context)?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
