//! What a volume is like.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::filesystem::FsType;
use super::uuid::Uuid;

/// What a volume holds; decided when it is made, and never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Bytes that belong to the guest and are never interpreted.
    Block,
    /// A file system that the host made.
    Filesystem {
        /// Its type.
        fs: FsType,
        /// Its UUID; a clone has one of its own.
        uuid: Uuid,
    },
}

/// Whether a later write can run out of space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allocation {
    /// Space is taken when it is first written.
    #[default]
    Thin,
    /// All space is taken when the volume is made, and kept.
    Thick,
}

/// What becomes of a volume's bytes when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wipe {
    /// The space is freed. The next tenant reads zeros all the same.
    #[default]
    None,
    /// The space is discarded first.
    Discard,
    /// The bytes are overwritten with zeros first.
    Zero,
}

/// The access modes of CSI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessMode {
    /// Read and written on one node.
    SingleNodeWriter,
    /// Read on one node.
    SingleNodeReaderOnly,
    /// Read on many nodes.
    MultiNodeReaderOnly,
    /// Written on one node, read on many.
    MultiNodeSingleWriter,
    /// Read and written on many nodes.
    MultiNodeMultiWriter,
    /// Published once, on one node.
    SingleNodeSingleWriter,
    /// Published any number of times, on one node.
    SingleNodeMultiWriter,
}

impl AccessMode {
    /// Whether more than one node may have the volume at a time.
    pub fn is_multi_node(self) -> bool {
        match self {
            AccessMode::MultiNodeReaderOnly | AccessMode::MultiNodeSingleWriter | AccessMode::MultiNodeMultiWriter => {
                true
            }
            AccessMode::SingleNodeWriter
            | AccessMode::SingleNodeReaderOnly
            | AccessMode::SingleNodeSingleWriter
            | AccessMode::SingleNodeMultiWriter => false,
        }
    }

    /// Whether nobody may write.
    pub fn is_read_only(self) -> bool {
        matches!(self, AccessMode::SingleNodeReaderOnly | AccessMode::MultiNodeReaderOnly)
    }

    /// Whether one node may publish the volume at several targets (CSI, NodePublishVolume, the table of second publishes).
    pub fn allows_many_targets(self) -> bool {
        self.is_multi_node() || self == AccessMode::SingleNodeMultiWriter
    }
}

/// Where the bytes of an open piece are on its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bytes {
    /// A block device.
    Device(PathBuf),
    /// A file.
    File(PathBuf),
}

impl Bytes {
    /// The path of the device or file.
    pub fn path(&self) -> &Path {
        match self {
            Bytes::Device(path) | Bytes::File(path) => path,
        }
    }
}
