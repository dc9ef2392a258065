//! ControllerModifyVolume.

use super::publish::change_volume;
use crate::domain::Id;
use crate::domain::request::Modifiable;
use crate::medium::MediumError;
use crate::pool::guards::Busy;
use crate::pool::host::{Host, Unavailable};
use crate::pool::records::{Entry, RecordError, State};
use crate::share::TargetError;
use crate::step;

/// A volume could not be modified; nothing of it was changed.
#[derive(Debug, thiserror::Error)]
pub enum ModifyError {
    /// Somebody else works on it.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The store cannot be reached.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The volume does not exist.
    #[error("the volume {0} does not exist")]
    VolumeUnknown(String),
    /// Its record could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The medium failed.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// The share failed.
    #[error(transparent)]
    Target(#[from] TargetError),
}

/// Changes what is named and nothing else; in one write of the record, so all of it or nothing.
pub fn modify(host: &Host, id: Id, changes: &Modifiable) -> Result<(), ModifyError> {
    let store = host.store(&id.store)?;
    let unknown = || ModifyError::VolumeUnknown(id.to_string());
    if store.records.get(&id.key)?.is_none() {
        return Err(unknown());
    }
    let _guard = store.guards.exclusive(&id.key)?;
    let Some(Entry { state: State::Ready, record }) = store.records.get(&id.key)? else { return Err(unknown()) };
    let mut changed = record.volume().ok_or_else(unknown)?.clone();
    changed.modify(changes);
    if record.volume() != Some(&changed) {
        step!("modify.record");
        change_volume(&store, &id.key, &record, |volume| *volume = changed)?;
    }
    if let Some(kib) = changes.read_ahead_kib {
        store.target.read_ahead(&store.medium.open(&id.key)?, kib)?;
    }
    Ok(())
}
