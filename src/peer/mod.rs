//! What CSI has no word for (`proto/cistern.proto`): the server's half on the host, and the client's half for people's
//! commands. On a unix socket only root is answered.

mod client;
mod host;

pub use client::{Client, ClientError, channel};
pub use host::HostService;

/// The largest message that is read or written, in bytes: some 100,000 volumes.
pub const LARGEST_MESSAGE: usize = 64 << 20;
