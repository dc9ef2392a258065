//! ControllerExpandVolume: grow the piece, zero what is new, then let it be seen.

use super::{layout, run_job};
use crate::domain::size::{Impossible, Possible, Range};
use crate::domain::volume::Content;
use crate::domain::{Clean, Id, PoolName};
use crate::medium::MediumError;
use crate::pool::capacity::Exceeded;
use crate::pool::guards::Busy;
use crate::pool::host::{Host, Unavailable};
use crate::pool::jobs::JobError;
use crate::pool::record::{Job, Record, Work};
use crate::pool::records::{Entry, RecordError, State};
use crate::pool::store::{PromiseError, Store};
use crate::share::TargetError;
use crate::step;

/// A volume could not be grown.
#[derive(Debug, thiserror::Error)]
pub enum ExpandError {
    /// Somebody else works on it.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The store cannot be reached.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The volume does not exist.
    #[error("the volume {0} does not exist")]
    VolumeUnknown(String),
    /// The volume is larger than may be.
    #[error("the volume has {there} bytes, at most {limit} are asked for, and volumes never shrink")]
    TooLarge {
        /// Its size in bytes.
        there: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The store cannot make this size.
    #[error(transparent)]
    Size(#[from] Impossible),
    /// The store has not enough left.
    #[error("pool {pool} has no room for that")]
    Full {
        /// The pool.
        pool: PoolName,
        /// By how much.
        source: Exceeded,
    },
    /// The new range could not be zeroed.
    #[error("zeroing what is new")]
    Job(#[from] JobError),
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

/// What became of an expansion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expanded {
    /// The volume's size now, in bytes.
    pub size: u64,
    /// Whether each node that has it must look again, and grow a file system in it.
    pub node_has_work: bool,
}

/// Makes a volume at least as large as asked for.
pub fn expand(host: &Host, id: Id, range: Range) -> Result<Expanded, ExpandError> {
    let store = host.store(&id.store)?;
    let unknown = || ExpandError::VolumeUnknown(id.to_string());
    if store.records.get(&id.key)?.is_none() {
        return Err(unknown());
    }
    let _guard = store.guards.exclusive(&id.key)?;
    let record = match store.records.get(&id.key)? {
        Some(Entry { state: State::Ready, record }) if record.volume().is_some() => record,
        _ => return Err(unknown()),
    };
    if store.is_copied_from(&id.key) {
        return Err(Busy.into());
    }
    // zeroing what an earlier call added
    run_job(&store, &id.key, &|| false)?;
    if let Some(limit) = range.limit.filter(|limit| *limit < record.size) {
        return Err(ExpandError::TooLarge { there: record.size, limit });
    }
    let mut size = record.size;
    if record.size < range.required {
        let record = Record { job: None, ..(*record).clone() };
        size = choose(&store, &record, range)?;
        grow(&store, &id, &record, size)?;
    }
    step!("expand.resized");
    store.target.resized(&id.key, &store.medium.open(&id.key)?)?;
    step!("expand.done");
    Ok(Expanded { size, node_has_work: true })
}

fn choose(store: &Store, record: &Record, range: Range) -> Result<u64, ExpandError> {
    let space = store.medium.space()?;
    let largest = match record.content {
        Content::Block => space.largest,
        Content::Filesystem { fs, .. } => space.largest.min(fs.largest()),
    };
    Ok(range.choose(&Possible { smallest: record.size, largest, grain: space.grain })?)
}

fn grow(store: &Store, id: &Id, record: &Record, size: u64) -> Result<(), ExpandError> {
    let full = |source| ExpandError::Full { pool: store.pool.clone(), source };
    let more = size.saturating_sub(record.size);
    let promise = store.promise(more).map_err(|error| match error {
        PromiseError::Exceeded(exceeded) => full(exceeded),
        PromiseError::Medium(error) => error.into(),
    })?;
    step!("expand.grow");
    let grown = store.medium.grow(&id.key, size, &layout(record)).map_err(|error| match error {
        MediumError::NoSpace(_) => full(Exceeded { wanted: more, available: store.available().unwrap_or(0) }),
        other => other.into(),
    })?;
    let mut record = Record { size, ..record.clone() };
    if let Clean::NeedsZeroing(range) = grown.get() {
        record.job = Some(Job { work: Work::Zero { until: range.end }, done: range.start });
    }
    step!("expand.record");
    store.records.put(&id.key, State::Ready, record)?;
    promise.keep();
    step!("expand.zero");
    run_job(store, &id.key, &|| false)?;
    Ok(())
}
