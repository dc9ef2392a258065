//! The node's half of a share: from a ticket to a device, and back from what was noted alone.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::local;
use super::ticket::{Reach, Ticket};

/// What a node did, or is about to do, to reach a volume. It stands in the stage record before anything is done, so that
/// the way back needs nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// What the host wrote.
    pub ticket: Ticket,
    /// What was made on this node.
    pub made: Made,
}

/// What a connection made on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Made {
    /// Nothing yet.
    Nothing,
    /// Something may have been made: it is looked for before anything is made again.
    Unknown,
    /// This loop device.
    Loop(u32),
    /// Nothing: the piece is a device of this machine already.
    NotNeeded,
}

/// Where a node finds a volume's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A block device.
    Device(PathBuf),
}

/// A node could not reach a volume, or not let go of it.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The volume's bytes are not where the ticket says.
    #[error("the volume's bytes are not at {}", path.display())]
    Missing {
        /// Where they should be.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Somebody has the device open.
    #[error("{} is in use", device.display())]
    InUse {
        /// The device.
        device: PathBuf,
    },
    /// A step failed.
    #[error("{step} {}", path.display())]
    Step {
        /// What was done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Connection {
    /// A connection that nothing was done for.
    pub fn new(ticket: Ticket) -> Connection {
        Connection { ticket, made: Made::Nothing }
    }
}

/// Makes the volume reachable. A caller that was cut off calls again with what it had noted: with
/// [`Made::Unknown`] if it cannot know what was made.
pub fn connect(connection: &mut Connection) -> Result<Source, ConnectError> {
    match &connection.ticket.reach {
        Reach::Local(bytes) => local::connect(&connection.ticket, bytes, &mut connection.made),
    }
}

/// Where the volume's bytes are now, if the connection stands: nothing is made.
pub fn standing(connection: &Connection) -> Result<Option<Source>, ConnectError> {
    match &connection.ticket.reach {
        Reach::Local(bytes) => local::standing(bytes, connection.made),
    }
}

/// Undoes [`connect`], from what was noted alone. What is gone already is done.
pub fn disconnect(connection: &Connection) -> Result<(), ConnectError> {
    match &connection.ticket.reach {
        Reach::Local(bytes) => local::disconnect(&connection.ticket, bytes, connection.made),
    }
}

/// Lets the node see the volume's present size, and answers it in bytes; `None` where the connection does not stand.
pub fn refresh(connection: &Connection) -> Result<Option<u64>, ConnectError> {
    match &connection.ticket.reach {
        Reach::Local(bytes) => local::refresh(bytes, connection.made),
    }
}
