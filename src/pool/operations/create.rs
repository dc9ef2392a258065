//! CreateVolume: from zeros, from a snapshot, from another volume.

use super::publish::change_volume;
use super::{TearDownError, VolumeInfo, layout, run_job, tear_down};
use crate::domain::error::chain;
use crate::domain::request::{Choice, CreateAccess, CreateVolume, Source};
use crate::domain::size::{Impossible, Possible};
use crate::domain::volume::Content;
use crate::domain::{AccessMode, Clean, FsType, Id, Key, Kind, NodeName, PoolName, Uuid, Wipe};
use crate::machine;
use crate::machine::filesystem::{AdoptError, MakeError};
use crate::medium::{Cut, MediumError};
use crate::pool::capacity::Exceeded;
use crate::pool::guards::{Busy, Guard};
use crate::pool::host::{Host, Unavailable};
use crate::pool::jobs::JobError;
use crate::pool::record::{FORMAT, Job, Origin, Record, Role, Timestamp, Volume, Work};
use crate::pool::records::{Entry, RecordError, State};
use crate::pool::store::{PromiseError, Store, StoreError};
use crate::share::TargetError;
use crate::step;

/// A volume could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Somebody else works on it, or on its source.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The pool or store cannot be reached.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Somebody else asked for the name since, or this host has started anew.
    #[error("the name was asked for again meanwhile")]
    Superseded,
    /// The pool cannot be used in this mode.
    #[error("pool {pool} is local: a volume of it can be used on one node at a time, and {mode:?} asks for more")]
    Mode {
        /// The pool.
        pool: PoolName,
        /// What was asked for.
        mode: AccessMode,
    },
    /// There is one of this name that is not what is asked for.
    #[error("a volume of this name exists with another {what}: it has {there}")]
    Exists {
        /// What differs.
        what: &'static str,
        /// What the existing one has.
        there: String,
    },
    /// A piece is there that no record speaks of.
    #[error("{} is there, and no record knows it: move it away, or give its record back", .0.display())]
    Stray(std::path::PathBuf),
    /// The source does not exist.
    #[error("the source {0} does not exist")]
    SourceUnknown(Id),
    /// The source cannot be restored from yet.
    #[error("the source {0} is still being copied")]
    SourceNotReady(Id),
    /// The source is in another store.
    #[error("the source {source_id} is not in pool {pool}: copies between pools are not there yet")]
    SourceElsewhere {
        /// The source.
        source_id: Id,
        /// The pool that was asked for.
        pool: PoolName,
    },
    /// The source holds something else.
    #[error("the source holds {there}, and {wanted} is asked for")]
    SourceContent {
        /// What it holds.
        there: String,
        /// What is asked for.
        wanted: String,
    },
    /// The source must be at rest for this.
    #[error(
        "the source {source_id} is in use ({by}), and this pool's file system cannot copy a file at one moment: detach the \
         volume first, or keep it in a pool on XFS or Btrfs"
    )]
    SourceInUse {
        /// The source.
        source_id: Id,
        /// Who uses it.
        by: String,
    },
    /// The source does not fit in.
    #[error("the source has {source_size} bytes, and {wanted} are asked for")]
    SmallerThanSource {
        /// The source's size in bytes.
        source_size: u64,
        /// The size asked for, in bytes.
        wanted: u64,
    },
    /// The store cannot make this size.
    #[error(transparent)]
    Size(#[from] Impossible),
    /// The store has not enough left.
    #[error("pool {pool} is full")]
    Full {
        /// The pool.
        pool: PoolName,
        /// By how much.
        source: Exceeded,
    },
    /// The volume may not live on this host.
    #[error("none of the hosts asked for has pool {pool}, which is on {host}")]
    Elsewhere {
        /// The pool.
        pool: PoolName,
        /// Its host.
        host: NodeName,
    },
    /// Its job did not come to its end.
    #[error("copying its bytes")]
    Job(#[from] JobError),
    /// Its file system could not be made.
    #[error("making its file system")]
    Format(#[from] MakeError),
    /// Its file system could not be given an identity of its own.
    #[error("giving its file system an identity of its own")]
    Adopt(#[from] AdoptError),
    /// Its record could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The medium failed.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// The share failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What an earlier call left could not be removed.
    #[error(transparent)]
    TearDown(#[from] TearDownError),
    /// The kernel gave no random bytes.
    #[error("making a UUID")]
    Random(#[source] std::io::Error),
}

/// Makes a volume, or finds the one that is there under this name. A host that is all there is needs no choice.
pub fn create(host: &Host, request: &CreateVolume, choice: Option<&Choice>) -> Result<VolumeInfo, CreateError> {
    let store = host.store_of_pool(&request.parameters.pool)?;
    refuse_what_cannot_be(&store, request)?;
    let key = Key::of_name(Kind::Volume, &request.name);
    let _name = host.names.exclusive(&key)?;
    if choice.is_some_and(|choice| !host.claims.is_newest(&key, &choice.claim)) {
        return Err(CreateError::Superseded);
    }
    let passed_over = choice.map_or(&[][..], |choice| &choice.passed_over);
    if let Some(pool) = host.other_pool_with(&key, &store)? {
        return Err(CreateError::Exists { what: "pool", there: pool.to_string() });
    }
    let guard = store.guards.exclusive(&key)?;
    match store.records.get(&key)? {
        Some(Entry { state: State::Ready, record }) => {
            compare(&record, request)?;
            remember_passed_over(&store, &key, &record, passed_over)?;
            return Ok(VolumeInfo::of(&store, key, &record));
        }
        Some(Entry { state: State::Making, record }) if record.job.is_some() && compare(&record, request).is_ok() => {
            finish_or_undo(&store, &key, &guard)?;
            if let Some(Entry { record, .. }) = store.records.get(&key)? {
                remember_passed_over(&store, &key, &record, passed_over)?;
            }
        }
        left_behind => {
            match left_behind.map(|entry| entry.state) {
                // whoever asks for the name now has asked all hosts anew, and names those that did not answer
                Some(State::Deleted) => store.records.remove(&key)?,
                Some(State::Making | State::Removing) => {
                    let _ = tear_down(&store, &key)?;
                }
                Some(State::Ready) | None => {}
            }
            let source = guard_source(host, &store, request)?;
            make(&store, &key, &guard, request, passed_over, source)?;
        }
    }
    let made = store.records.get(&key)?.ok_or(CreateError::Job(JobError::Stopped))?;
    Ok(VolumeInfo::of(&store, key, &made.record))
}

/// Notes hosts that could not be asked this time. The volume is about to be answered, so it stays, whatever they have.
fn remember_passed_over(
    store: &Store,
    key: &Key,
    record: &Record,
    passed_over: &[NodeName],
) -> Result<(), RecordError> {
    let new: Vec<&NodeName> = passed_over.iter().filter(|host| !record.passed_over().contains(host)).collect();
    if new.is_empty() {
        return Ok(());
    }
    step!("create.passed-over");
    change_volume(store, key, record, |volume| volume.passed_over.extend(new.into_iter().cloned()))
}

/// Goes on with a volume whose job an earlier process left. The record alone says how.
pub(super) fn resume(store: &Store, key: &Key) -> Result<(), CreateError> {
    let guard = store.guards.exclusive(key)?;
    match store.records.get(key)? {
        Some(Entry { state: State::Making, .. }) => finish_or_undo(store, key, &guard),
        // what a volume in use grew by is being zeroed
        Some(Entry { state: State::Ready, .. }) => Ok(run_job(store, key, &|| guard.stop_is_wanted())?),
        _ => Ok(()),
    }
}

fn refuse_what_cannot_be(store: &Store, request: &CreateVolume) -> Result<(), CreateError> {
    if let Some(mode) = request.modes.iter().find(|mode| mode.is_multi_node()) {
        return Err(CreateError::Mode { pool: store.pool.clone(), mode: *mode });
    }
    if request.hosts.as_ref().is_some_and(|hosts| !hosts.contains(&store.host)) {
        return Err(CreateError::Elsewhere { pool: store.pool.clone(), host: store.host.clone() });
    }
    Ok(())
}

/// Whether the volume that is there is what is asked for.
fn compare(there: &Record, request: &CreateVolume) -> Result<(), CreateError> {
    let differs = |what, there: String| Err(CreateError::Exists { what, there });
    if !request.range.admits(there.size) {
        return differs("size", format!("{} bytes", there.size));
    }
    let same_content = match (request.access, there.content) {
        (CreateAccess::Block, Content::Block) => true,
        (CreateAccess::Filesystem(wanted), Content::Filesystem { fs, .. }) => wanted.is_none_or(|wanted| wanted == fs),
        _ => false,
    };
    if !same_content {
        return differs("content", describe(&there.content));
    }
    if request.parameters.allocation != there.allocation {
        return differs("allocation", format!("{:?}", there.allocation).to_lowercase());
    }
    let source = there.volume().and_then(|volume| volume.source);
    if request.source.map(Origin::from) != source {
        return differs("source", source.map_or("none".to_owned(), |source| format!("{source:?}")));
    }
    Ok(())
}

fn describe(content: &Content) -> String {
    match content {
        Content::Block => "raw bytes".to_owned(),
        Content::Filesystem { fs, .. } => format!("a file system of type {fs}"),
    }
}

/// A source that nobody changes or removes while its guard is held.
struct GuardedSource {
    id: Id,
    record: std::sync::Arc<Record>,
    guard: Option<Guard<Key>>,
}

fn guard_source(host: &Host, store: &Store, request: &CreateVolume) -> Result<Option<GuardedSource>, CreateError> {
    if let Some(source) = request.source {
        // one that is away may be there again
        let _ = host.store(&source.id().store)?;
    }
    request.source.map(|source| guarded(store, source)).transpose()
}

fn guarded(store: &Store, source: Source) -> Result<GuardedSource, CreateError> {
    let id = source.id();
    if id.store != store.id {
        return Err(CreateError::SourceElsewhere { source_id: id, pool: store.pool.clone() });
    }
    let guard = store.guards.shared(&id.key);
    match store.records.get(&id.key)? {
        Some(Entry { state: State::Ready, record }) if record.job.is_none() => {
            Ok(GuardedSource { id, record, guard: Some(guard?) })
        }
        Some(Entry { state: State::Ready, .. }) => Err(CreateError::SourceNotReady(id)),
        Some(_) | None => Err(CreateError::SourceUnknown(id)),
    }
}

/// Makes the volume from nothing; on failure nothing is left of it.
fn make(
    store: &Store,
    key: &Key,
    guard: &Guard<Key>,
    request: &CreateVolume,
    passed_over: &[NodeName],
    mut source: Option<GuardedSource>,
) -> Result<(), CreateError> {
    refuse_stray(store, key)?;
    let mut record = plan(store, key, request, source.as_ref())?;
    if let Role::Volume(volume) = &mut record.role {
        volume.passed_over = passed_over.to_vec();
    }
    let promise = store.promise(record.size).map_err(|error| refused(store, error))?;
    step!("create.record");
    store.records.put(key, State::Making, record.clone())?;
    promise.keep();
    let begun = match &mut source {
        None => make_empty(store, key, &record),
        Some(source) => cut(store, key, &record, source),
    };
    match begun {
        Ok(()) => finish_or_undo(store, key, guard),
        Err(error) => Err(undo(store, key, error)),
    }
}

/// Why a promise was refused, in the words of a creation.
pub(super) fn refused(store: &Store, error: PromiseError) -> CreateError {
    match error {
        PromiseError::Exceeded(source) => CreateError::Full { pool: store.pool.clone(), source },
        PromiseError::Medium(error) => error.into(),
    }
}

/// The record of the volume that is asked for.
fn plan(
    store: &Store,
    key: &Key,
    request: &CreateVolume,
    source: Option<&GuardedSource>,
) -> Result<Record, CreateError> {
    let space = store.medium.space()?;
    let content = choose_content(request.access, source)?;
    let (smallest, largest) = match content {
        Content::Block => (space.grain, space.largest),
        Content::Filesystem { fs, .. } => (fs.smallest(), space.largest.min(fs.largest())),
    };
    let smallest = smallest.max(source.map_or(0, |source| source.record.size));
    if let Some(source) = source
        && (request.range.limit.is_some_and(|limit| limit < source.record.size)
            || (1..source.record.size).contains(&request.range.required))
    {
        let wanted = if request.range.required > 0 { request.range.required } else { request.range.limit.unwrap_or(0) };
        return Err(CreateError::SmallerThanSource { source_size: source.record.size, wanted });
    }
    let size = match source {
        // a size that nobody asked for is the source's own
        Some(source) if request.range.required == 0 => source.record.size,
        _ => request.range.choose(&Possible { smallest, largest, grain: space.grain })?,
    };
    let wipe = request.parameters.modifiable.wipe.unwrap_or(Wipe::None);
    Ok(Record {
        format: FORMAT,
        name: request.name.clone(),
        created: Timestamp::now(),
        size,
        sector: source.map_or(space.sector, |source| source.record.sector),
        content,
        allocation: request.parameters.allocation,
        family: source.map_or(*key, |source| source.record.family),
        job: None,
        role: Role::Volume(Volume {
            source: request.source.map(Origin::from),
            wipe,
            read_ahead_kib: request.parameters.modifiable.read_ahead_kib,
            generation: 0,
            grants: Vec::new(),
            made_on: Some(store.host.clone()),
            passed_over: Vec::new(),
        }),
    })
}

/// What the new volume is to hold. The bytes of a Block source are never taken for a file system.
fn choose_content(access: CreateAccess, source: Option<&GuardedSource>) -> Result<Content, CreateError> {
    let there = source.map(|source| source.record.content);
    let fs = match (access, there) {
        (CreateAccess::Block, _) => return Ok(Content::Block),
        (CreateAccess::Filesystem(None), Some(Content::Filesystem { fs, .. })) => fs,
        (CreateAccess::Filesystem(Some(wanted)), Some(Content::Filesystem { fs, .. })) if wanted == fs => fs,
        (CreateAccess::Filesystem(wanted), None) => wanted.unwrap_or(FsType::Ext4),
        (CreateAccess::Filesystem(wanted), Some(there)) => {
            let wanted = wanted.map_or("a file system".to_owned(), |fs| format!("a file system of type {fs}"));
            return Err(CreateError::SourceContent { there: describe(&there), wanted });
        }
    };
    let uuid = Uuid::from_random(machine::random_bytes().map_err(CreateError::Random)?);
    Ok(Content::Filesystem { fs, uuid })
}

/// A piece of zeros, and the file system in it if there is to be one: the only place where one is ever made.
fn make_empty(store: &Store, key: &Key, record: &Record) -> Result<(), CreateError> {
    step!("create.piece");
    let made = store.medium.make(key, record.size, &layout(record)).map_err(|error| no_space(store, error))?;
    if let Clean::NeedsZeroing(range) = made.get() {
        let job = Job { work: Work::Zero { until: range.end }, done: range.start };
        store.records.put(key, State::Making, Record { job: Some(job), ..record.clone() })?;
    }
    step!("create.format");
    if let Content::Filesystem { fs, uuid } = record.content {
        let bytes = store.medium.open(key)?;
        let lock = store.tool_lock(key)?;
        machine::filesystem::make(bytes.path(), fs, record.sector, &uuid, &lock)?;
    }
    Ok(())
}

/// A piece with the source's bytes: at once, or by a job that the record holds.
fn cut(store: &Store, key: &Key, record: &Record, source: &mut GuardedSource) -> Result<(), CreateError> {
    step!("create.flush-source");
    let from = source.id.key;
    let opened = store.medium.open(&from)?;
    store.target.flush(&opened)?;
    step!("create.cut");
    let cut = store.medium.cut((&from, &layout(&source.record)), (key, &layout(record)));
    if let Cut::NeedsCopy { from: copied, quiesced } = cut.map_err(|error| no_space(store, error))? {
        if quiesced && let Some(by) = user_of(store, &source.record, &opened)? {
            return Err(CreateError::SourceInUse { source_id: source.id, by });
        }
        note_copy(store, key, record, copied, source.record.size).map_err(|error| refused_copy(store, error))?;
        if copied.kind() == Kind::Temporary {
            // the source may be used and changed again: its bytes of now are in the temporary piece
            source.guard = None;
        }
    }
    Ok(())
}

/// Who may write the bytes of this record now.
pub(super) fn user_of(
    store: &Store,
    record: &Record,
    opened: &crate::domain::Bytes,
) -> Result<Option<String>, TargetError> {
    let grants = record.volume().map_or(&[][..], |volume| &volume.grants);
    match grants.iter().find(|grant| !grant.read_only) {
        Some(grant) => Ok(Some(format!("attached to node {}", grant.node.name))),
        None if record.volume().is_none() => Ok(None),
        None => Ok(store.target.users(opened)?.into_iter().next()),
    }
}

/// A copy could not be noted in the record.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoteError {
    #[error(transparent)]
    Promise(#[from] PromiseError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

fn refused_copy(store: &Store, error: NoteError) -> CreateError {
    match error {
        NoteError::Promise(error) => refused(store, error),
        NoteError::Record(error) => error.into(),
    }
}

/// Puts a copy into the record. While it reads a temporary piece, that counts too.
pub(super) fn note_copy(store: &Store, key: &Key, record: &Record, from: Key, size: u64) -> Result<(), NoteError> {
    let job = Some(Job { work: Work::Copy { from, size }, done: 0 });
    let record = Record { job, ..record.clone() };
    let promise = store.promise(record.promised() - record.size)?;
    step!("copy.note");
    let state = store.records.get(key)?.map_or(State::Making, |entry| entry.state);
    store.records.put(key, state, record)?;
    promise.keep();
    Ok(())
}

/// Runs what is left to do; undoes all on failure, and leaves it to be continued where it was only stopped.
fn finish_or_undo(store: &Store, key: &Key, guard: &Guard<Key>) -> Result<(), CreateError> {
    match finish(store, key, guard) {
        Err(error @ CreateError::Job(JobError::Stopped)) => Err(error),
        Err(error) => Err(undo(store, key, error)),
        Ok(()) => Ok(()),
    }
}

/// What remains once the volume's bytes are there or its record holds the job that brings them.
fn finish(store: &Store, key: &Key, guard: &Guard<Key>) -> Result<(), CreateError> {
    let stop = || guard.stop_is_wanted();
    // a copy that reads another volume or a snapshot keeps it from being changed or removed
    let copied = store.records.get(key)?.and_then(|entry| entry.record.copied_from());
    let source = copied.filter(|from| from.kind() != Kind::Temporary).map(|from| store.guards.shared(&from));
    let source = source.transpose()?;
    run_job(store, key, &stop)?;
    drop(source);
    let Some(Entry { record, .. }) = store.records.get(key)? else { return Ok(()) };
    if record.volume().is_some_and(|volume| volume.source.is_some()) {
        make_own(store, key, &record, &stop)?;
    }
    step!("create.ready");
    store.records.turn(key, State::Ready)?;
    step!("create.done");
    Ok(())
}

/// Makes a clone's bytes its own: of its own size, and a file system with a UUID of its own.
fn make_own(store: &Store, key: &Key, record: &Record, stop: &dyn Fn() -> bool) -> Result<(), CreateError> {
    step!("create.grow");
    let grown = store.medium.grow(key, record.size, &layout(record)).map_err(|error| no_space(store, error))?;
    if let Clean::NeedsZeroing(range) = grown.get() {
        let job = Job { work: Work::Zero { until: range.end }, done: range.start };
        store.records.put(key, State::Making, Record { job: Some(job), ..record.clone() })?;
        run_job(store, key, stop)?;
    }
    step!("create.own-uuid");
    // a volume with a file system has a source with one: a Block volume's bytes are never taken for it
    if let Content::Filesystem { fs, uuid } = record.content {
        let bytes = store.medium.open(key)?;
        let lock = store.tool_lock(key)?;
        machine::filesystem::adopt(bytes.path(), fs, record.sector, &uuid, &lock)?;
    }
    Ok(())
}

/// Takes back what was made. The caller is told why it failed, or that something is left and it must ask again.
fn undo(store: &Store, key: &Key, error: CreateError) -> CreateError {
    match tear_down(store, key) {
        Ok(_) => error,
        Err(left) => {
            tracing::warn!(store = %store.id, %key, error = %chain(&error), "it failed, and is not undone yet");
            left.into()
        }
    }
}

/// A piece that no record knows may be somebody's data: it is never taken for a new one.
pub(super) fn refuse_stray(store: &Store, key: &Key) -> Result<(), CreateError> {
    match store.medium.open(key) {
        Ok(bytes) => Err(CreateError::Stray(bytes.path().to_owned())),
        Err(MediumError::Missing(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A medium without space is a full pool.
pub(super) fn no_space(store: &Store, error: MediumError) -> CreateError {
    match error {
        MediumError::NoSpace(_) => {
            let available = store.available().unwrap_or(0);
            CreateError::Full { pool: store.pool.clone(), source: Exceeded { wanted: 0, available } }
        }
        other => other.into(),
    }
}
