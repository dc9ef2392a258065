//! What callers ask for, parsed: past the door there is no text that could be wrong.

use super::filesystem::FsType;
use super::ids::{Id, NodeId, NodeName, PoolName};
use super::size::Range;
use super::uuid::Uuid;
use super::volume::{AccessMode, Allocation, Wipe};

/// How a caller wants to use a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// As a device or as a mounted file system.
    pub access: Access,
    /// By whom at a time.
    pub mode: AccessMode,
}

/// As a device or as a mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// As a raw device.
    Block,
    /// As a mounted file system.
    Mount(Mount),
}

/// How a file system is to be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// The type that the caller expects; `None` takes what the volume has.
    pub fs: Option<FsType>,
    /// Options, each allowed by name.
    pub flags: Vec<String>,
    /// The group that the root directory is handed to.
    pub group: Option<u32>,
}

/// What a StorageClass says of its volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassParameters {
    /// The pool.
    pub pool: PoolName,
    /// Thin or thick.
    pub allocation: Allocation,
    /// The file system for volumes that are mounted, where the capability names none.
    pub fs: Option<FsType>,
    /// What changes later by ControllerModifyVolume.
    pub modifiable: Modifiable,
}

/// What can be changed while a volume lives; `None` leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Modifiable {
    /// What becomes of the bytes at deletion.
    pub wipe: Option<Wipe>,
    /// How far the kernel reads ahead, in KiB.
    pub read_ahead_kib: Option<u32>,
}

/// Where a new volume's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A snapshot.
    Snapshot(Id),
    /// Another volume, as it is now.
    Volume(Id),
}

impl Source {
    /// The id of the snapshot or volume.
    pub fn id(&self) -> Id {
        match self {
            Source::Snapshot(id) | Source::Volume(id) => *id,
        }
    }
}

/// CreateVolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateVolume {
    /// The CSI name.
    pub name: String,
    /// The size.
    pub range: Range,
    /// As devices or as file systems; never both.
    pub access: CreateAccess,
    /// Every mode it is to be used in.
    pub modes: Vec<AccessMode>,
    /// The class.
    pub parameters: ClassParameters,
    /// Where the bytes come from, if not zeros.
    pub source: Option<Source>,
    /// The hosts that it may live on; `None` says nothing.
    pub hosts: Option<Vec<NodeName>>,
}

/// How a controller came to choose this host for a new volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What this host answered when it was asked for the name.
    pub claim: Uuid,
    /// Hosts that could not be asked: each may have a volume of this name too.
    pub passed_over: Vec<NodeName>,
}

/// What a new volume is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateAccess {
    /// Raw bytes.
    Block,
    /// A file system; `None` takes the source's, or ext4.
    Filesystem(Option<FsType>),
}

/// ControllerPublishVolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The volume.
    pub volume: Id,
    /// The node.
    pub node: NodeId,
    /// How it will be used.
    pub capability: Capability,
    /// Whether the node may only read.
    pub read_only: bool,
}
