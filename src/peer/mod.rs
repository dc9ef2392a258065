//! What CSI has no word for (`proto/cistern.proto`): the server's half on the host, and the client's half for people's
//! commands. On a unix socket only root and the server's own user are answered; between machines there is mutual TLS
//! (`tls.rs`), and the roles of a certificate say which calls it may make (`roles.rs`).

pub mod certs;
mod client;
mod describe;
pub mod enrol;
mod host;
mod identity;
mod read;
pub mod roles;
pub mod tls;
mod watch;

use std::time::Duration;

use tonic::transport::Server;
use tower::layer::util::{Identity as NoLayer, Stack};

pub use client::{Client, ClientError, channel};
pub use host::HostService;
pub use identity::{Identity, dns_name};
pub use roles::{RolesLayer, caller};
pub use tls::{GuestInfo, PeerInfo, Tls, TlsError};
pub use watch::Looks;

/// The largest message that is read or written, in bytes: some 100,000 volumes.
pub const LARGEST_MESSAGE: usize = 64 << 20;

/// How often each end asks whether the other still is there, and how long it waits for the answer.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_WAIT: Duration = Duration::from_secs(5);

/// The largest headers, in bytes: the names of thousands of hosts that could not be asked travel there.
const LARGEST_HEADERS: u32 = 1 << 20;

/// What a server holds of a request's body before a service has read it, per call and per connection. Requests are small;
/// what is large goes the other way.
const WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// The mTLS door, to be given services and [`Tls::incoming`]: who may call what is checked before any of them.
pub fn server() -> Server<Stack<RolesLayer, NoLayer>> {
    Server::builder()
        .http2_max_header_list_size(LARGEST_HEADERS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEP_ALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_WAIT))
        .layer(RolesLayer)
}

/// The door for enrolment, to be given that service alone and [`Tls::incoming_guests`]: whoever comes has shown nothing yet,
/// and is given little.
pub fn guest_server() -> Server {
    Server::builder()
        .http2_max_header_list_size(16 << 10)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(1)
}
