//! A record: what is known of a volume or snapshot. It lives in the same store as what it speaks of.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::domain::request::{Modifiable, Source};
use crate::domain::{AccessMode, Allocation, Content, Id, Key, NodeId, NodeName, Wipe};

/// The newest format that this version writes. A record of a newer one is never rewritten.
pub const FORMAT: u32 = 1;

/// What is known of one volume or snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The format it is written in.
    pub format: u32,
    /// The CSI name.
    pub name: String,
    /// When it was made; for a snapshot, no later than its cut.
    pub created: Timestamp,
    /// Its size in bytes.
    pub size: u64,
    /// The logical sector in bytes that its bytes were laid out for.
    pub sector: u32,
    /// What it holds.
    pub content: Content,
    /// Whether its space is its own from the start.
    pub allocation: Allocation,
    /// The first of those that it may share space with; itself, if it was not cut from another.
    pub family: Key,
    /// Work on its bytes that is not yet done.
    pub job: Option<Job>,
    /// The rest, by kind.
    #[serde(flatten)]
    pub role: Role,
}

/// What only a volume or only a snapshot has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Role {
    /// A volume.
    Volume(Volume),
    /// A snapshot.
    Snapshot {
        /// The volume it was cut from, whether that still exists or not.
        of: Id,
    },
}

/// What only a volume has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Where its bytes came from.
    pub source: Option<Origin>,
    /// What becomes of its bytes at deletion.
    pub wipe: Wipe,
    /// How far the kernel reads ahead, in KiB, if its owner said so.
    pub read_ahead_kib: Option<u32>,
    /// The generation of the newest grant.
    pub generation: u64,
    /// Who may use it now.
    pub grants: Vec<Grant>,
    /// The host that made it, which may not be the one that has its disk now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_on: Option<NodeName>,
    /// Hosts that could not be asked for the name when it was made, and were not asked since: each may have one too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<NodeName>,
}

/// Where a volume's bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A snapshot.
    Snapshot(Id),
    /// A volume.
    Volume(Id),
}

/// A node's right to a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Whose it is. Names are compared, addresses are refreshed.
    pub node: NodeId,
    /// Its number: no two grants of one volume have the same.
    pub generation: u64,
    /// Whether the node may only read.
    pub read_only: bool,
    /// How the volume is used.
    pub mode: AccessMode,
}

/// Work that grows with bytes and goes on after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What is done.
    pub work: Work,
    /// All bytes before this one are done and on the disk.
    pub done: u64,
}

/// The kinds of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Copy the bytes of this piece of the same store; drop it afterwards if it is temporary.
    Copy {
        /// The piece that is read.
        from: Key,
        /// How many bytes it has.
        size: u64,
    },
    /// Overwrite with zeros.
    Zero {
        /// Up to here.
        until: u64,
    },
}

/// A moment, as CSI shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds since 1970 (UTC).
    pub seconds: i64,
    /// And nanoseconds.
    pub nanos: u32,
}

impl Timestamp {
    /// This moment.
    pub fn now() -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
    }
}

impl Record {
    /// The bytes that this record takes of what the pool may promise: its size, and once more while a temporary piece
    /// stands for it.
    pub fn promised(&self) -> u64 {
        match &self.job {
            Some(Job { work: Work::Copy { from, size }, .. }) if from.kind() == crate::domain::Kind::Temporary => {
                self.size.saturating_add(*size)
            }
            _ => self.size,
        }
    }

    /// The piece that its copy reads, if it has one to do.
    pub fn copied_from(&self) -> Option<Key> {
        match &self.job {
            Some(Job { work: Work::Copy { from, .. }, .. }) => Some(*from),
            _ => None,
        }
    }

    /// The same record with the volume's part changed; one of a snapshot stays as it is.
    pub fn with_volume(&self, change: impl FnOnce(&mut Volume)) -> Record {
        let mut record = self.clone();
        if let Role::Volume(volume) = &mut record.role {
            change(volume);
        }
        record
    }

    /// The volume's part, if it is one.
    pub fn volume(&self) -> Option<&Volume> {
        match &self.role {
            Role::Volume(volume) => Some(volume),
            Role::Snapshot { .. } => None,
        }
    }

    /// Hosts that could not be asked for the name when it was made, and were not asked since.
    pub fn passed_over(&self) -> &[NodeName] {
        self.volume().map_or(&[], |volume| &volume.passed_over)
    }

    /// The grant of the node with this name.
    pub fn grant_of(&self, node: &NodeName) -> Option<&Grant> {
        self.volume()?.grants.iter().find(|grant| grant.node.name == *node)
    }
}

impl Volume {
    /// Takes over what was asked to change.
    pub fn modify(&mut self, changes: &Modifiable) {
        if let Some(wipe) = changes.wipe {
            self.wipe = wipe;
        }
        if changes.read_ahead_kib.is_some() {
            self.read_ahead_kib = changes.read_ahead_kib;
        }
    }
}

impl From<Source> for Origin {
    fn from(source: Source) -> Origin {
        match source {
            Source::Snapshot(id) => Origin::Snapshot(id),
            Source::Volume(id) => Origin::Volume(id),
        }
    }
}
