//! A machine in its role of using volumes: stage, publish, grow, statistics, and the records that lead back from them. It
//! never formats: a device without the file system that its ticket names is refused.

mod grow;
pub mod options;
mod publish;
mod record;
mod stage;
mod statistics;

use std::path::{Path, PathBuf};

use crate::domain::request::Capability;
use crate::domain::{Id, NodeId};
use crate::pool::guards::Guards;
use crate::share::Ticket;

pub use grow::{GrowError, grow};
pub use publish::{PublishError, UnpublishError, publish, unpublish};
pub use record::{RecordError, Recorded, StageRecord, TargetRecord};
pub use stage::{StageError, UnstageError, stage, unstage};
pub use statistics::{Statistics, StatisticsError, statistics};

/// A machine in its role of using volumes.
pub struct Node {
    /// Its id.
    pub id: NodeId,
    guards: Guards<Id>,
    records: PathBuf,
}

/// NodeStageVolume.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The volume.
    pub volume: Id,
    /// Where it is staged.
    pub path: PathBuf,
    /// How it will be used.
    pub capability: Capability,
    /// The way to it.
    pub ticket: Ticket,
}

/// NodePublishVolume.
#[derive(Debug, Clone)]
pub struct Publish {
    /// The volume.
    pub volume: Id,
    /// Where it was staged.
    pub staging: PathBuf,
    /// Where it is to be seen.
    pub target: PathBuf,
    /// How it will be used there.
    pub capability: Capability,
    /// Whether it may only be read there.
    pub read_only: bool,
}

impl Node {
    /// The node with this id, which keeps what it must know below `data`.
    pub fn new(id: NodeId, data: &Path) -> Node {
        let node = Node { id, guards: Guards::default(), records: data.join("stage") };
        node.remove_unfinished();
        node
    }
}
