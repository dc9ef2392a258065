//! Reading the bytes of a snapshot, or of a volume that nobody has: what a copy into another store begins with.

use std::fs::File;

use super::create::user_of;
use crate::domain::Id;
use crate::machine::file::FileError;
use crate::medium::MediumError;
use crate::pool::guards::Busy;
use crate::pool::host::{Host, Unavailable};
use crate::pool::records::{Entry, RecordError, State};
use crate::share::TargetError;

/// The bytes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Somebody works on it.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The store cannot be reached.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// There is nothing of this id, or it is not whole yet.
    #[error("{0} does not exist")]
    Unknown(Id),
    /// Somebody may write it.
    #[error("it is in use: {0}")]
    InUse(String),
    /// Its record could not be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The medium failed.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// The share failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Its bytes could not be opened.
    #[error("opening its bytes")]
    Open(#[source] std::io::Error),
    /// Its data could not be found.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its bytes could not be read.
    #[error("reading its bytes")]
    Bytes(#[source] std::io::Error),
}

/// Does something with the bytes of what nobody may write. It is neither attached nor removed meanwhile.
pub fn with_quiet_bytes(
    host: &Host,
    id: Id,
    act: impl FnOnce(&File) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let store = host.store(&id.store)?;
    let _guard = store.guards.shared(&id.key)?;
    let record = match store.records.get(&id.key)? {
        Some(Entry { state: State::Ready, record }) if record.job.is_none() => record,
        Some(_) | None => return Err(ReadError::Unknown(id)),
    };
    let bytes = store.medium.open(&id.key)?;
    if let Some(by) = user_of(&store, &record, &bytes)? {
        return Err(ReadError::InUse(by));
    }
    act(&File::open(bytes.path()).map_err(ReadError::Open)?)
}
