//! DeleteVolume and DeleteSnapshot.

use std::fs::OpenOptions;
use std::time::Duration;

use super::{Afterwards, TearDownError, remove, run_job, tear_down};
use crate::domain::{Id, Key, Outcome, Wipe};
use crate::machine::file::{self, FileError};
use crate::medium::MediumError;
use crate::pool::claims::Claim;
use crate::pool::guards::Busy;
use crate::pool::host::{Host, Unavailable};
use crate::pool::jobs::JobError;
use crate::pool::record::{Job, Record, Work};
use crate::pool::records::{Entry, RecordError, State};
use crate::pool::store::Store;
use crate::share::TargetError;
use crate::step;

/// How long a deletion waits for a copy into what is deleted to stop.
const PATIENCE_WITH_JOBS: Duration = Duration::from_secs(5);

/// A volume or snapshot could not be deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// Somebody else works on it.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The store cannot be reached.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Somebody else asked for the name since.
    #[error("the name was asked for again meanwhile")]
    Superseded,
    /// Somebody uses it.
    #[error("it is in use: {0}")]
    InUse(String),
    /// Its bytes could not be wiped.
    #[error("wiping its bytes")]
    Wipe(#[from] JobError),
    /// Its space could not be discarded.
    #[error("discarding its space")]
    Discard(#[source] FileError),
    /// Its bytes could not be opened.
    #[error("opening its bytes")]
    Open(#[source] std::io::Error),
    /// Its record could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The medium failed.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// The share failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// It could not be removed.
    #[error(transparent)]
    TearDown(#[from] TearDownError),
}

/// Deletes a volume or snapshot. `Found` where there is none.
///
/// A controller shows a claim, as for a creation: a volume that was made again under this id since is not what was meant.
pub fn delete(host: &Host, id: Id, claim: Option<&Claim>) -> Result<Outcome<()>, DeleteError> {
    let store = host.store(&id.store)?;
    let _name = claim.map(|_| host.names.exclusive(&id.key)).transpose()?;
    if claim.is_some_and(|claim| !host.claims.is_newest(&id.key, claim)) {
        return Err(DeleteError::Superseded);
    }
    if store.records.get(&id.key)?.is_none() {
        return Ok(Outcome::Found(()));
    }
    let _guard = store.guards.exclusive_after_stop(&id.key, PATIENCE_WITH_JOBS)?;
    match store.records.get(&id.key)? {
        None | Some(Entry { state: State::Deleted, .. }) => Ok(Outcome::Found(())),
        Some(Entry { state: State::Ready, record }) => {
            if store.is_copied_from(&id.key) {
                return Err(Busy.into());
            }
            refuse_in_use(&store, &record, &id.key)?;
            step!("delete.mark");
            store.records.turn(&id.key, State::Removing)?;
            wipe_and_remove(&store, &id.key, &record)
        }
        Some(Entry { state: State::Removing, record }) => wipe_and_remove(&store, &id.key, &record),
        Some(Entry { state: State::Making, .. }) => Ok(tear_down(&store, &id.key)?),
    }
}

/// Goes on with a removal that an earlier process left.
pub(super) fn resume(store: &Store, key: &Key) -> Result<(), DeleteError> {
    let _guard = store.guards.exclusive(key)?;
    if let Some(Entry { state: State::Removing, record }) = store.records.get(key)? {
        let _ = wipe_and_remove(store, key, &record)?;
    }
    Ok(())
}

fn refuse_in_use(store: &Store, record: &Record, key: &Key) -> Result<(), DeleteError> {
    let Some(volume) = record.volume() else { return Ok(()) };
    if let Some(grant) = volume.grants.first() {
        return Err(DeleteError::InUse(format!("attached to node {}", grant.node)));
    }
    let bytes = match store.medium.open(key) {
        // nobody can use what is gone
        Err(MediumError::Missing(_)) => return Ok(()),
        opened => opened?,
    };
    match store.target.users(&bytes)?.into_iter().next() {
        Some(user) => Err(DeleteError::InUse(user)),
        None => Ok(()),
    }
}

pub(super) fn wipe_and_remove(store: &Store, key: &Key, record: &Record) -> Result<Outcome<()>, DeleteError> {
    let wipe = record.volume().map_or(Wipe::None, |volume| volume.wipe);
    step!("delete.wipe");
    let has_piece = match store.medium.open(key) {
        Ok(_) => true,
        // an earlier call came that far
        Err(MediumError::Missing(_)) => false,
        Err(error) => return Err(error.into()),
    };
    match wipe {
        _ if !has_piece => {}
        Wipe::None => {}
        Wipe::Discard => discard(store, key)?,
        Wipe::Zero => {
            if record.job.is_none() {
                let job = Some(Job { work: Work::Zero { until: record.size }, done: 0 });
                store.records.put(key, State::Removing, Record { job, ..record.clone() })?;
            }
            // only a stop of the whole process stops it: a repeated call must not
            run_job(store, key, &|| false)?;
            discard(store, key)?;
        }
    }
    Ok(remove(store, key, Afterwards::Remember)?)
}

/// Gives the piece's space back to what is below, which may forget the bytes; nothing relies on that.
fn discard(store: &Store, key: &Key) -> Result<(), DeleteError> {
    let bytes = store.medium.open(key)?;
    let opened = OpenOptions::new().write(true).open(bytes.path()).map_err(DeleteError::Open)?;
    let size = opened.metadata().map_err(DeleteError::Open)?.len();
    match file::punch(&opened, 0..size) {
        Ok(()) | Err(FileError::Unsupported { .. }) => Ok(()),
        Err(error) => Err(DeleteError::Discard(error)),
    }
}
