//! CreateSnapshot: the cut at once, the copy, where one is needed, by a job.

use std::sync::Arc;

use super::create::{NoteError, note_copy, user_of};
use super::{SnapshotInfo, TearDownError, layout, run_job, tear_down};
use crate::domain::error::chain;
use crate::domain::{Id, Key, Kind, PoolName};
use crate::medium::{Cut, MediumError};
use crate::pool::capacity::Exceeded;
use crate::pool::guards::{Busy, Guard};
use crate::pool::host::{Host, Unavailable};
use crate::pool::jobs::JobError;
use crate::pool::record::{FORMAT, Record, Role, Timestamp};
use crate::pool::records::{Entry, RecordError, State};
use crate::pool::store::{PromiseError, Store};
use crate::share::TargetError;
use crate::step;

/// A snapshot could not be cut.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Somebody else works on it, or on the volume.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The store cannot be reached.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The volume does not exist.
    #[error("the volume {0} does not exist")]
    VolumeUnknown(String),
    /// A piece is there that no record speaks of.
    #[error("{} is there, and no record knows it: move it away, or give its record back", .0.display())]
    Stray(std::path::PathBuf),
    /// There is one of this name of another volume.
    #[error("a snapshot of this name exists, of volume {0}")]
    Exists(Id),
    /// The volume must be at rest for this.
    #[error(
        "the volume is in use ({by}), and the file system of pool {pool} cannot copy a file at one moment: detach the \
         volume first, or keep it in a pool on XFS or Btrfs"
    )]
    InUse {
        /// The pool.
        pool: PoolName,
        /// Who uses it.
        by: String,
    },
    /// The store has not enough left.
    #[error("pool {pool} is full")]
    Full {
        /// The pool.
        pool: PoolName,
        /// By how much.
        source: Exceeded,
    },
    /// Its job did not come to its end.
    #[error("copying its bytes")]
    Job(#[from] JobError),
    /// A record could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The medium failed.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// The share failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// What an earlier call left could not be removed.
    #[error(transparent)]
    TearDown(#[from] TearDownError),
    /// No thread could be started for its job.
    #[error("starting its job")]
    Thread(#[source] std::io::Error),
}

/// Cuts a snapshot, or finds the one that is there under this name. It may still have to be copied when this returns.
pub fn snapshot(host: &Host, name: &str, of: Id) -> Result<SnapshotInfo, SnapshotError> {
    let key = Key::of_name(Kind::Snapshot, name);
    let _name = host.names.exclusive(&key)?;
    if let Some((store, record)) = host.find_anywhere(&key)? {
        return existing(&store, &key, &record, of);
    }
    let store = host.store(&of.store)?;
    let guard = store.guards.exclusive(&key)?;
    match store.records.get(&key)? {
        Some(Entry { state: State::Ready, record }) => return existing(&store, &key, &record, of),
        Some(_) => {
            let _ = tear_down(&store, &key)?;
        }
        None => {}
    }
    let source_guard = store.guards.shared(&of.key);
    let source = match store.records.get(&of.key)? {
        Some(Entry { state: State::Ready, record }) if record.volume().is_some() => record,
        _ => return Err(SnapshotError::VolumeUnknown(of.to_string())),
    };
    let source_guard = source_guard?;
    if source.job.is_some() {
        return Err(Busy.into());
    }
    if let Ok(bytes) = store.medium.open(&key) {
        return Err(SnapshotError::Stray(bytes.path().to_owned()));
    }
    let record = plan(name, of, &source);
    let promise = store.promise(record.size).map_err(|error| refused(&store, error))?;
    step!("snapshot.record");
    store.records.put(&key, State::Making, record.clone())?;
    promise.keep();
    if let Err(error) = cut(&store, &key, &record, &of.key, &source) {
        let _ = tear_down(&store, &key)?;
        return Err(error);
    }
    step!("snapshot.ready");
    store.records.turn(&key, State::Ready)?;
    step!("snapshot.done");
    let made = store.records.get(&key)?.map_or(Arc::new(record), |entry| entry.record);
    if let Some(from) = made.copied_from() {
        // nobody needs to wait for the copy of a temporary piece
        let source_guard = (from == of.key).then_some(source_guard);
        copy_apart(&store, key, guard, source_guard)?;
    }
    Ok(info(&store, &key, &made))
}

/// Goes on with a copy that an earlier process left.
pub(super) fn finish(store: &Store, key: &Key) -> Result<(), SnapshotError> {
    let guard = store.guards.exclusive(key)?;
    let from = store.records.get(key)?.and_then(|entry| entry.record.copied_from());
    let source_guard = from.map(|from| store.guards.shared(&from)).transpose()?;
    let done = run_job(store, key, &|| guard.stop_is_wanted());
    drop(source_guard);
    Ok(done?)
}

fn existing(store: &Arc<Store>, key: &Key, record: &Record, of: Id) -> Result<SnapshotInfo, SnapshotError> {
    let info = info(store, key, record);
    if info.of != of {
        return Err(SnapshotError::Exists(info.of));
    }
    // a copy that failed is begun again by the caller's own asking; one under way is guarded
    if let Some(from) = record.copied_from()
        && let Ok(guard) = store.guards.exclusive(key)
        && let Ok(source_guard) = store.guards.shared(&from)
    {
        copy_apart(store, *key, guard, Some(source_guard))?;
    }
    Ok(info)
}

fn plan(name: &str, of: Id, source: &Record) -> Record {
    Record {
        format: FORMAT,
        name: name.to_owned(),
        created: Timestamp::now(),
        size: source.size,
        sector: source.sector,
        content: source.content,
        allocation: source.allocation,
        family: source.family,
        job: None,
        role: Role::Snapshot { of },
    }
}

fn cut(store: &Store, key: &Key, record: &Record, from: &Key, source: &Record) -> Result<(), SnapshotError> {
    step!("snapshot.flush");
    let opened = store.medium.open(from)?;
    store.target.flush(&opened)?;
    step!("snapshot.cut");
    let cut = store.medium.cut((from, &layout(source)), (key, &layout(record)));
    if let Cut::NeedsCopy { from: copied, quiesced } = cut.map_err(|error| no_space(store, error))? {
        if quiesced && let Some(by) = user_of(store, source, &opened)? {
            return Err(SnapshotError::InUse { pool: store.pool.clone(), by });
        }
        note_copy(store, key, record, copied, source.size).map_err(|error| match error {
            NoteError::Promise(error) => refused(store, error),
            NoteError::Record(error) => error.into(),
        })?;
    }
    Ok(())
}

/// Copies on a thread of its own, which owns the guards: nobody writes the volume or removes either until it has ended.
fn copy_apart(
    store: &Arc<Store>,
    key: Key,
    guard: Guard<Key>,
    source: Option<Guard<Key>>,
) -> Result<(), SnapshotError> {
    let inner = Arc::clone(store);
    let copy = move || {
        let done = run_job(&inner, &key, &|| guard.stop_is_wanted());
        drop((guard, source));
        if let Err(error) = done {
            tracing::warn!(store = %inner.id, %key, error = %chain(&error), "a snapshot's copy was not finished");
        }
    };
    store.tasks.spawn(format!("copy {key}"), copy).map_err(SnapshotError::Thread)
}

/// What callers are told of the snapshot with this record.
pub fn info(store: &Store, key: &Key, record: &Record) -> SnapshotInfo {
    let of = match record.role {
        Role::Snapshot { of } => of,
        Role::Volume(_) => store.id_of(*key),
    };
    SnapshotInfo { id: store.id_of(*key), of, size: record.size, created: record.created, ready: record.job.is_none() }
}

fn refused(store: &Store, error: PromiseError) -> SnapshotError {
    match error {
        PromiseError::Exceeded(source) => SnapshotError::Full { pool: store.pool.clone(), source },
        PromiseError::Medium(error) => no_space(store, error),
    }
}

fn no_space(store: &Store, error: MediumError) -> SnapshotError {
    match error {
        MediumError::NoSpace(_) => {
            let available = store.available().unwrap_or(0);
            SnapshotError::Full { pool: store.pool.clone(), source: Exceeded { wanted: 0, available } }
        }
        other => other.into(),
    }
}
