//! The operations, in steps, one file each. An operation owns its guards, runs to its end whether its caller waits or not,
//! and leaves after every step something that start-up or the same call again brings to an end.

mod create;
mod delete;
mod expand;
mod find;
mod list;
mod modify;
mod publish;
mod read;
mod settle;
mod snapshot;

use std::sync::Arc;

pub use create::{CreateError, create};
pub use delete::{DeleteError, delete};
pub use expand::{ExpandError, Expanded, expand};
pub use find::{FindError, Findings, Found, confirm, find};
pub use list::{ListedSnapshot, ListedVolume, MOST, Page, Pages, snapshots, volumes};
pub use modify::{ModifyError, modify};
pub use publish::{PublishError, UnpublishError, publish, restore_grants, unpublish};
pub use read::{ReadError, with_quiet_bytes};
pub use settle::{SettleError, Settlement, settle};
pub use snapshot::{SnapshotError, info as snapshot_info, snapshot};

use super::jobs::run as run_job;
use super::record::{Record, Timestamp};
use super::records::{RecordError, State};
use super::store::Store;
use crate::domain::error::chain;
use crate::domain::{Id, Key, Kind, Outcome};
use crate::medium::{Layout, MediumError};
use crate::step;

/// A volume, as callers are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its id.
    pub id: Id,
    /// Its size in bytes.
    pub size: u64,
    /// Where its bytes came from.
    pub source: Option<super::record::Origin>,
    /// The only host that can use it.
    pub host: crate::domain::NodeName,
}

/// A snapshot, as callers are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: Id,
    /// The volume it was cut from.
    pub of: Id,
    /// The size in bytes of what is restored from it.
    pub size: u64,
    /// When it was cut.
    pub created: Timestamp,
    /// Whether it can be restored from.
    pub ready: bool,
}

impl VolumeInfo {
    fn of(store: &Store, key: Key, record: &Record) -> VolumeInfo {
        let source = record.volume().and_then(|volume| volume.source);
        VolumeInfo { id: store.id_of(key), size: record.size, source, host: store.host.clone() }
    }
}

/// What is ready under this key.
pub fn look_up(store: &Store, key: &Key) -> Result<Option<Arc<Record>>, RecordError> {
    let entry = store.records.get(key)?.filter(|entry| entry.state == State::Ready);
    Ok(entry.map(|entry| entry.record))
}

/// What callers are told of the volume with this record.
pub fn volume_info(store: &Store, key: &Key, record: &Record) -> VolumeInfo {
    VolumeInfo::of(store, *key, record)
}

/// How the piece of this record is laid out.
fn layout(record: &Record) -> Layout {
    Layout { allocation: record.allocation }
}

/// The piece and the record cannot be removed.
#[derive(Debug, thiserror::Error)]
pub enum TearDownError {
    /// The medium failed.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// The record could not be changed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What becomes of the record of something that is removed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    /// It goes too.
    Forget,
    /// It stays as [`State::Deleted`] if there are hosts that may have a volume of the same name.
    Remember,
}

/// Removes a volume or snapshot for good, from any state. The caller holds its guard.
fn tear_down(store: &Store, key: &Key) -> Result<Outcome<()>, TearDownError> {
    remove(store, key, Afterwards::Forget)
}

fn remove(store: &Store, key: &Key, afterwards: Afterwards) -> Result<Outcome<()>, TearDownError> {
    let Some(entry) = store.records.get(key)? else { return Ok(Outcome::Found(())) };
    step!("remove.mark");
    store.records.turn(key, State::Removing)?;
    step!("remove.temporary");
    let _ = store.medium.remove(&key.temporary())?;
    step!("remove.piece");
    store.medium.close(key)?;
    let _ = store.medium.remove(key)?;
    step!("remove.record");
    if afterwards == Afterwards::Remember && !entry.record.passed_over().is_empty() {
        store.records.turn(key, State::Deleted)?;
    } else {
        store.records.remove(key)?;
    }
    store.ledger.release(entry.promised());
    step!("remove.done");
    Ok(Outcome::Made(()))
}

/// Goes on with what start-up found half done: each job and each removal on a thread of its own.
pub fn resume_all(store: &Arc<Store>) {
    let (jobs, removals) = store.take_found();
    let resume = jobs.into_iter().map(|key| (key, resume_job as fn(&Arc<Store>, &Key)));
    let remove = removals.into_iter().map(|key| (key, resume_removal as fn(&Arc<Store>, &Key)));
    for (key, work) in resume.chain(remove) {
        let inner = Arc::clone(store);
        if let Err(error) = store.tasks.spawn(format!("resume {key}"), move || work(&inner, &key)) {
            tracing::error!(store = %store.id, %key, %error, "cannot go on with it; the next call or start will");
        }
    }
}

fn resume_job(store: &Arc<Store>, key: &Key) {
    let resumed: Result<(), Box<dyn std::error::Error>> = match key.kind() {
        Kind::Volume => create::resume(store, key).map_err(Into::into),
        Kind::Snapshot => snapshot::finish(store, key).map_err(Into::into),
        Kind::Temporary => Ok(()),
    };
    if let Err(error) = resumed {
        tracing::warn!(store = %store.id, %key, error = %chain(error.as_ref()), "a job was not finished");
    }
}

fn resume_removal(store: &Arc<Store>, key: &Key) {
    if let Err(error) = delete::resume(store, key) {
        tracing::warn!(store = %store.id, %key, error = %chain(&error), "a removal was not finished");
    }
}
