//! The client of a server on this machine.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::LARGEST_MESSAGE;
use crate::proto::internal::fleet_client::FleetClient;
use crate::proto::internal::host_client::HostClient;
use crate::proto::internal::{DescribeRequest, DescribeResponse, KeepRequest};

/// A server cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("no cistern answers on {} (is a server running? --endpoint names its socket)", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The server refused.
    #[error("{} says: {}", socket.display(), status.message())]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// What it said.
        status: Box<tonic::Status>,
    },
}

/// A client of the internal service, of a host's or of a controller's.
pub struct Client {
    socket: PathBuf,
    host: HostClient<Channel>,
    fleet: FleetClient<Channel>,
}

impl Client {
    /// Connects to the server on this socket.
    pub async fn connect(socket: &Path) -> Result<Client, ClientError> {
        let connected = channel(socket).await;
        let channel = connected.map_err(|source| ClientError::Connect { socket: socket.to_owned(), source })?;
        let host = HostClient::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE);
        let fleet = FleetClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
        Ok(Client { socket: socket.to_owned(), host, fleet })
    }

    /// All that the host knows, or all that the controller's hosts know.
    pub async fn describe(&mut self, request: DescribeRequest) -> Result<DescribeResponse, ClientError> {
        let answered = match self.host.describe(request).await {
            Err(status) if status.code() == Code::Unimplemented => self.fleet.describe(request).await,
            answered => answered,
        };
        answered.map(tonic::Response::into_inner).map_err(|status| self.refused(status))
    }

    /// Of several volumes of one name keeps this one.
    pub async fn keep(&mut self, id: String) -> Result<(), ClientError> {
        let kept = self.fleet.keep(KeepRequest { id }).await;
        kept.map(|_| ()).map_err(|status| self.refused(status))
    }

    fn refused(&self, status: tonic::Status) -> ClientError {
        ClientError::Refused { socket: self.socket.clone(), status: Box::new(status) }
    }
}

/// A connection to a unix socket. Its authority is "localhost", as that of the sidecars and of kubelet.
pub async fn channel(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connect).await
}
