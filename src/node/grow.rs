//! NodeExpandVolume: the device sees its new size, and the file system fills it.

use std::path::Path;

use super::Node;
use super::record::{RecordError, RecordedAccess};
use crate::domain::Id;
use crate::machine::filesystem::{self, GrowError as FilesystemError};
use crate::machine::mounts::{self, MountError, MountTable};
use crate::pool::guards::Busy;
use crate::share::{self, ConnectError};
use crate::step;

/// A volume could not be grown on this node.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// Another call for it is under way.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// It is not there.
    #[error("volume {volume} is not at {path}")]
    NotHere {
        /// The volume.
        volume: String,
        /// Where it was looked for.
        path: String,
    },
    /// It is smaller than asked for: the controller has not grown it.
    #[error("it has {size} bytes, and {required} are asked for: it must be grown on its host first")]
    TooSmall {
        /// Its size in bytes.
        size: u64,
        /// What is asked for, in bytes.
        required: u64,
    },
    /// The device could not be looked at.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The mounts could not be read.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The file system could not be grown.
    #[error(transparent)]
    Filesystem(#[from] FilesystemError),
    /// The stage record failed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Brings the volume at `path` to its present size, and answers it in bytes.
pub fn grow(node: &Node, volume: &Id, path: &Path, required: u64) -> Result<u64, GrowError> {
    let not_here = || GrowError::NotHere { volume: volume.to_string(), path: path.display().to_string() };
    if node.recorded(volume)?.is_none_or(|record| !record.is_at(path)) {
        return Err(not_here());
    }
    let _guard = node.guards.exclusive(volume)?;
    let record = node.recorded(volume)?.filter(|record| record.is_at(path)).ok_or_else(not_here)?;
    step!("node-expand.device");
    let size = share::refresh(&record.connection)?.ok_or_else(not_here)?;
    if let Some(reader) = record.reader() {
        share::refresh(&reader)?;
    }
    if size < required {
        return Err(GrowError::TooSmall { size, required });
    }
    if matches!(record.access, RecordedAccess::Mount { .. }) {
        let point = mounts::resolve(&record.staging)?;
        let table = MountTable::read()?;
        let mount = table.at(&point).ok_or_else(not_here)?;
        // one that is mounted read-only grows when it is next mounted to be written
        if !mount.read_only && !mount.read_only_fs {
            step!("node-expand.file-system");
            filesystem::grow(&point)?;
        }
    }
    step!("node-expand.done");
    Ok(size)
}
