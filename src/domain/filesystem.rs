//! The file systems that cistern makes in a volume.

use serde::{Deserialize, Serialize};

use super::size::{GIB, MIB};

/// A file system that a host can make and a node can mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// The default: works from a few MiB up.
    Ext4,
    /// XFS; its tools refuse less than 300 MiB.
    Xfs,
    /// Btrfs; from 256 MiB up.
    Btrfs,
}

impl FsType {
    /// Every file system there is, for tables and tests.
    pub const ALL: [FsType; 3] = [FsType::Ext4, FsType::Xfs, FsType::Btrfs];

    /// The name that mount(2), mkfs and `csi.storage.k8s.io/fstype` use.
    pub fn as_str(self) -> &'static str {
        match self {
            FsType::Ext4 => "ext4",
            FsType::Xfs => "xfs",
            FsType::Btrfs => "btrfs",
        }
    }

    /// Parses the name that [`FsType::as_str`] gives.
    pub fn parse(name: &str) -> Option<FsType> {
        FsType::ALL.into_iter().find(|fs| fs.as_str() == name)
    }

    /// The smallest volume, in bytes, that the file system can be made in and grown from.
    pub fn smallest(self) -> u64 {
        match self {
            // below it there is no room for a journal of blocks of 4 KiB
            FsType::Ext4 => 8 * MIB,
            FsType::Xfs => 300 * MIB,
            // the kernel resizes to nothing smaller, so what is smaller could not grow a little
            FsType::Btrfs => 256 * MIB,
        }
    }

    /// The largest volume, in bytes, that the file system can fill with the features cistern makes it with.
    pub fn largest(self) -> u64 {
        match self {
            // 2^32 blocks of 4 KiB are sure everywhere; `64bit` allows more, but not every older kernel grows past it
            FsType::Ext4 => 16 * 1024 * GIB,
            FsType::Xfs | FsType::Btrfs => 1024 * 1024 * GIB,
        }
    }
}

impl std::fmt::Display for FsType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
