//! NodeGetVolumeStats. Takes no guard: it only reads.

use std::path::Path;

use super::Node;
use super::record::{RecordError, RecordedAccess};
use crate::domain::Id;
use crate::machine::device::{self, Usage};
use crate::machine::mounts::{self, MountError, MountTable};
use crate::share::{self, ConnectError, Source};

/// How much of a volume is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistics {
    /// A device of this many bytes; what of them is used only the guest knows.
    Device(u64),
    /// A mounted file system.
    Filesystem(Usage),
}

/// Nothing can be said of a volume.
#[derive(Debug, thiserror::Error)]
pub enum StatisticsError {
    /// It is not there.
    #[error("volume {volume} is not at {path}")]
    NotHere {
        /// The volume.
        volume: String,
        /// Where it was looked for.
        path: String,
    },
    /// It could not be measured.
    #[error("measuring {path}")]
    Measure {
        /// What.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The device could not be looked at.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The mounts could not be read.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The stage record failed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Measures the volume at a path where it is staged or published.
pub fn statistics(node: &Node, volume: &Id, path: &Path) -> Result<Statistics, StatisticsError> {
    let not_here = || StatisticsError::NotHere { volume: volume.to_string(), path: path.display().to_string() };
    let record = node.recorded(volume)?.filter(|record| record.is_at(path)).ok_or_else(not_here)?;
    let measured = |source| StatisticsError::Measure { path: path.display().to_string(), source };
    match record.access {
        // at the staging path there is only a directory, so the device itself is asked
        RecordedAccess::Block => {
            let standing = share::standing(&record.connection)?;
            let Some(Source::Device(device)) = standing else { return Err(not_here()) };
            Ok(Statistics::Device(device::size(&device).map_err(measured)?))
        }
        RecordedAccess::Mount { .. } => {
            let point = mounts::resolve(path).map_err(|_| not_here())?;
            if MountTable::read()?.at(&point).is_none() {
                return Err(not_here());
            }
            Ok(Statistics::Filesystem(device::usage(&point).map_err(measured)?))
        }
    }
}
