//! One pool's storage in one place, opened by the one process that may change it.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use super::capacity::{Exceeded, Ledger, Limits, others};
use super::guards::{Guard, Guards};
use super::news::News;
use super::record::FORMAT;
use super::records::{Entry, RecordError, Records, State};
use super::recovery::Found;
use super::seen;
use super::tasks::Tasks;
use crate::domain::error::chain;
use crate::domain::ids::Malformed;
use crate::domain::size::MIB;
use crate::domain::{Allocation, Id, Key, Kind, NodeName, PoolName, PoolSpec, StoreId, Uuid};
use crate::machine::file::Ballast;
use crate::machine::{self, file};
use crate::medium::{Layout, Medium, MediumError, Space};
use crate::share::Target;

/// How many operations may work on one store at a time; the next ones wait for their turn, outside any guard.
const OPERATIONS_AT_A_TIME: usize = 32;

/// What is set aside for records, in bytes: a full pool can still be emptied.
const BALLAST: u64 = 16 * MIB;

/// One pool's storage in one place.
pub struct Store {
    /// Its identity, which its ids begin with.
    pub id: StoreId,
    /// The pool it belongs to.
    pub pool: PoolName,
    /// The machine that serves it.
    pub host: NodeName,
    /// A turn is taken for each operation.
    pub turns: Arc<tokio::sync::Semaphore>,
    // dropped before the medium, which may be a mount that this file is in
    _only_daemon: File,
    pub(super) medium: Box<dyn Medium>,
    pub(super) target: Box<dyn Target>,
    pub(super) records: Records,
    pub(super) guards: Guards<Key>,
    pub(super) ledger: Ledger,
    pub(super) tasks: Tasks,
    limits: RwLock<Limits>,
    ballast: Ballast,
    tool_locks: PathBuf,
    data: PathBuf,
    is_withdrawn: AtomicBool,
    found: Mutex<Found>,
}

/// What a store needs of the process that opens it.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The machine's name.
    pub host: NodeName,
    /// Where the process keeps what is not in a store: locks of tools, identities of stores seen.
    pub data: PathBuf,
    /// The work under way.
    pub tasks: Tasks,
    /// Who is to be told of changes.
    pub news: News,
}

/// A store cannot be opened or brought in order.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The medium failed.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// The records failed.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// Another daemon serves it.
    #[error("another process serves {}", home.display())]
    Taken {
        /// The store's directory.
        home: PathBuf,
    },
    /// It belongs to another pool.
    #[error("{} belongs to pool {owner}", home.display())]
    OfOtherPool {
        /// The store's directory.
        home: PathBuf,
        /// The pool that it says it belongs to.
        owner: PoolName,
    },
    /// The store that was here is not here.
    #[error(
        "store {expected}, which this pool had, is not in {}: is its file system mounted? If it is gone for good, say so \
         in the pool's entry with lost: [{expected}]", home.display()
    )]
    Gone {
        /// The store's directory.
        home: PathBuf,
        /// The identity that was seen here last.
        expected: StoreId,
    },
    /// A store that was given up is here.
    #[error("store {store}, which was given up with lost:, is in {}: take it out of that list, or move it away", home.display())]
    CameBack {
        /// The store's directory.
        home: PathBuf,
        /// Its identity.
        store: StoreId,
    },
    /// Its identity cannot be read.
    #[error("{} is no identity of a store: {why}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file cannot be read or written.
    #[error("{step} {}", path.display())]
    File {
        /// What was done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// What a store says of itself, in `store.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    format: u32,
    store: StoreId,
    pool: PoolName,
}

impl Store {
    /// Opens the store that a medium and a share make, and brings it in order. Jobs and removals that an earlier process
    /// left are to be continued by the caller ([`Store::take_found`]).
    pub fn open(
        spec: &PoolSpec,
        medium: Box<dyn Medium>,
        target: Box<dyn Target>,
        around: &Surroundings,
    ) -> Result<Arc<Store>, StoreError> {
        let home = medium.home().to_owned();
        let only_daemon = lock_store(&home)?;
        let id = identify(spec, medium.as_ref(), &around.data)?;
        let ballast = Ballast::new(&home, BALLAST);
        let news = &around.news;
        let tool_locks = around.data.join("locks");
        std::fs::create_dir_all(&tool_locks).map_err(failed("making", &tool_locks))?;
        let store = Arc::new(Store {
            id,
            pool: spec.name.clone(),
            host: around.host.clone(),
            turns: Arc::new(tokio::sync::Semaphore::new(OPERATIONS_AT_A_TIME)),
            records: Records::open(&home.join("records"), ballast.clone(), news.of_store(id))?,
            ballast,
            medium,
            target,
            guards: Guards::default(),
            ledger: Ledger::default(),
            tasks: around.tasks.clone(),
            limits: RwLock::new(limits_of(spec)),
            tool_locks,
            data: around.data.clone(),
            is_withdrawn: AtomicBool::new(false),
            found: Mutex::default(),
            _only_daemon: only_daemon,
        });
        let surviving = store.surviving_tools()?;
        let busy: Vec<Key> = surviving.iter().map(|(key, _)| *key).collect();
        let found = store.recover(&busy)?;
        *store.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
        for (_, entry) in store.records.all() {
            store.ledger.count(entry.promised());
        }
        if let Err(error) = store.measure() {
            tracing::warn!(store = %store.id, error = %chain(&error), "measuring");
        }
        for (key, lock) in surviving {
            store.wait_for_tool(key, lock)?;
        }
        Ok(store)
    }

    /// What is known of what is in it.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// The id of what this key names here.
    pub fn id_of(&self, key: Key) -> Id {
        Id { store: self.id, key }
    }

    /// How far to go, as the pool's owner says now.
    pub fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the pool's owner changed.
    pub fn reconfigure(&self, spec: &PoolSpec) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits_of(spec);
    }

    /// The pool's owner does not want it here any more. Operations that are under way go on.
    pub fn withdraw(&self) {
        self.is_withdrawn.store(true, Ordering::Relaxed);
    }

    /// How much there is.
    pub fn space(&self) -> Result<Space, MediumError> {
        self.medium.space()
    }

    /// What may still be promised, in bytes.
    pub fn available(&self) -> Result<u64, MediumError> {
        Ok(self.ledger.available(&self.limits(), &self.medium.space()?))
    }

    /// What is promised, in bytes.
    pub fn promised(&self) -> u64 {
        self.ledger.promised()
    }

    /// Measures what others take of the store's space, and takes back what thick pieces lost: whoever zeroes a device may
    /// punch holes into the file below it. Linear in the number of pieces: for the background.
    pub fn measure(&self) -> Result<(), MediumError> {
        if let Err(error) = self.ballast.take() {
            tracing::warn!(pool = %self.pool, error = %chain(&error), "nothing can be set aside for records");
        }
        let mut pieces = self.medium.pieces()?;
        let space = self.medium.space()?;
        let record_of = |key: &Key| self.records.get(key).ok().flatten();
        // a piece that no record promises space to is as good as another tenant's
        pieces.retain(|piece| record_of(&piece.key).is_some() || piece.key.kind() == Kind::Temporary);
        self.ledger.set_others(others(&space, &pieces, |key| record_of(key).map_or(*key, |entry| entry.record.family)));
        for piece in pieces.iter().filter(|piece| piece.allocated < piece.size) {
            let thick = |entry: &Entry| {
                let Entry { state, record } = entry;
                *state == State::Ready && record.job.is_none() && record.allocation == Allocation::Thick
            };
            if record_of(&piece.key).as_ref().is_some_and(thick)
                && let Ok(_guard) = self.guards.exclusive(&piece.key)
                && let Some(entry) = record_of(&piece.key).filter(thick)
            {
                let layout = Layout { allocation: entry.record.allocation };
                if let Err(error) = self.medium.make(&piece.key, entry.record.size, &layout) {
                    tracing::warn!(pool = %self.pool, key = %piece.key, error = %chain(&error), "its blocks cannot be kept");
                }
            }
        }
        Ok(())
    }

    /// Promises bytes; the answer takes the promise back unless it is kept.
    pub(super) fn promise(&self, bytes: u64) -> Result<Promise<'_>, PromiseError> {
        self.ledger.promise(bytes, &self.limits(), &self.medium.space()?)?;
        Ok(Promise { store: self, bytes })
    }

    /// Whether a copy reads this piece, under way or waiting to go on: nobody may change or remove it.
    pub(super) fn is_copied_from(&self, key: &Key) -> bool {
        let mut is_read = false;
        self.records.walk_after(None, |_, entry| {
            is_read = entry.has_use_for_pieces() && entry.record.copied_from() == Some(*key);
            !is_read
        });
        is_read
    }

    /// A lock for a tool that changes this key's piece: held until the tool has ended, whatever becomes of this process.
    pub(super) fn tool_lock(&self, key: &Key) -> Result<ToolLock, StoreError> {
        let path = self.tool_lock_path(key);
        let file = File::create(&path).map_err(failed("making", &path))?;
        if try_lock(&file, &path)? { Ok(ToolLock { file, path }) } else { Err(StoreError::Taken { home: path }) }
    }

    /// Records and pieces that start-up could not bring together, and those whose record cannot be read.
    pub fn troubles(&self) -> Vec<(Key, String)> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let strays = found.strays.iter().map(|key| (*key, "a piece without a record".to_owned()));
        let damaged = found.damaged.iter().map(|key| (*key, "its piece is missing or too small".to_owned()));
        let unreadable = self.records.unreadable().iter().map(|(key, why)| (*key, why.clone()));
        strays.chain(damaged).chain(unreadable).collect()
    }

    /// The jobs and removals that start-up left to be continued: each once.
    pub(super) fn take_found(&self) -> (Vec<Key>, Vec<Key>) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        (std::mem::take(&mut found.resume), std::mem::take(&mut found.remove))
    }

    fn tool_lock_path(&self, key: &Key) -> PathBuf {
        self.tool_locks.join(format!("{}.{key}", self.id))
    }

    /// Tools of an earlier process that still work on pieces of this store. Locks that nobody holds are removed.
    fn surviving_tools(&self) -> Result<Vec<(Key, PathBuf)>, StoreError> {
        let mut surviving = Vec::new();
        let prefix = format!("{}.", self.id);
        for entry in std::fs::read_dir(&self.tool_locks).map_err(failed("reading", &self.tool_locks))? {
            let path = entry.map_err(failed("reading", &self.tool_locks))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let key: Result<Key, Malformed> = name.strip_prefix(&prefix).unwrap_or_default().parse();
            let Ok(key) = key else { continue };
            let file = File::open(&path).map_err(failed("opening", &path))?;
            if try_lock(&file, &path)? {
                std::fs::remove_file(&path).map_err(failed("removing", &path))?;
            } else {
                surviving.push((key, path));
            }
        }
        Ok(surviving)
    }

    /// Keeps the key guarded until a tool of an earlier process has ended, then does for it what start-up did for others.
    fn wait_for_tool(self: &Arc<Self>, key: Key, lock: PathBuf) -> Result<(), StoreError> {
        let guard: Guard<Key> = match self.guards.exclusive(&key) {
            Ok(guard) => guard,
            Err(busy) => return Err(failed("guarding", &lock)(std::io::Error::other(busy))),
        };
        tracing::info!(store = %self.id, %key, "a tool of an earlier process still works on it");
        let (store, path) = (Arc::clone(self), lock.clone());
        let wait = move || {
            let ended = File::open(&path).and_then(|file| file.lock());
            let recovered =
                ended.map_err(failed("locking", &path)).and_then(|()| store.recover_after_tool(&key, &path));
            drop(guard);
            match recovered {
                Ok(()) => super::operations::resume_all(&store),
                Err(error) => tracing::error!(%key, error = %chain(&error), "recovery"),
            }
        };
        // not a counted task: a stop does not wait for tools, they outlive the process by design
        std::thread::Builder::new().name(format!("tool {key}")).spawn(wait).map_err(failed("waiting for", &lock))?;
        Ok(())
    }

    fn recover_after_tool(&self, key: &Key, lock: &Path) -> Result<(), StoreError> {
        let pieces = self.medium.pieces()?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.records.get(key)?.map_or(0, |entry| entry.promised());
        self.recover_key(key, pieces.iter().find(|piece| piece.key == *key), &mut found)?;
        let after = self.records.get(key)?.map_or(0, |entry| entry.promised());
        self.ledger.release(before);
        self.ledger.count(after);
        std::fs::remove_file(lock).map_err(failed("removing", lock))
    }
}

/// The lock under which a tool works. It is gone when the tool has ended and this is dropped; if this process is killed
/// meanwhile the next one finds it.
#[derive(Debug)]
pub(super) struct ToolLock {
    file: File,
    path: PathBuf,
}

impl std::ops::Deref for ToolLock {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for ToolLock {
    fn drop(&mut self) {
        // one that stays is removed at the next start
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Bytes that are promised; taken back when this is dropped, unless it is kept.
#[must_use]
pub(super) struct Promise<'a> {
    store: &'a Store,
    bytes: u64,
}

impl Promise<'_> {
    /// A record stands for the promise from now on.
    pub(super) fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.store.ledger.release(self.bytes);
    }
}

/// Bytes cannot be promised.
#[derive(Debug, thiserror::Error)]
pub(super) enum PromiseError {
    /// There are not enough.
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
    /// How many there are cannot be told.
    #[error(transparent)]
    Medium(#[from] MediumError),
}

impl Drop for Store {
    /// Nobody works on it any more. If its pool was withdrawn and nothing is in it, nothing is to be looked for in it either.
    fn drop(&mut self) {
        let is_empty = || self.records.all().is_empty() && self.records.unreadable().is_empty();
        if self.is_withdrawn.load(Ordering::Relaxed)
            && is_empty()
            && let Err(error) = seen::note_empty(&self.pool, self.id, &self.data)
        {
            tracing::warn!(pool = %self.pool, error = %chain(&error), "it is looked for as if it held something");
        }
    }
}

fn limits_of(spec: &PoolSpec) -> Limits {
    Limits { overcommit: spec.overcommit, reserve: spec.reserve }
}

pub(super) fn failed(step: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    move |source| StoreError::File { step, path: path.to_owned(), source }
}

fn lock_store(home: &Path) -> Result<File, StoreError> {
    let path = home.join("lock");
    let file = File::create(&path).map_err(failed("making", &path))?;
    if try_lock(&file, &path)? { Ok(file) } else { Err(StoreError::Taken { home: home.to_owned() }) }
}

/// Takes the lock on an open file (flock(2)); false when somebody else has it.
fn try_lock(file: &File, path: &Path) -> Result<bool, StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(source)) => Err(failed("locking", path)(source)),
    }
}

/// Reads the store's identity, or gives it one. A pool that had a store is not given a new one in silence: an unmounted
/// file system looks just like an empty directory.
fn identify(spec: &PoolSpec, medium: &dyn Medium, data: &Path) -> Result<StoreId, StoreError> {
    let home = medium.home();
    let path = home.join("store.json");
    let expected = seen::expected(spec, data)?;
    let identity = match (read_if_there(&path)?, expected) {
        (Some(text), _) => parse_identity(&path, &text)?,
        (None, Some(expected)) => return Err(StoreError::Gone { home: home.to_owned(), expected }),
        (None, None) => new_identity(spec, medium)?,
    };
    if spec.lost.contains(&identity.store) {
        return Err(StoreError::CameBack { home: home.to_owned(), store: identity.store });
    }
    if let Some(expected) = expected.filter(|expected| *expected != identity.store) {
        return Err(StoreError::Gone { home: home.to_owned(), expected });
    }
    if identity.pool != spec.name {
        return Err(StoreError::OfOtherPool { home: home.to_owned(), owner: identity.pool });
    }
    seen::note(&spec.name, identity.store, data)?;
    Ok(identity.store)
}

fn new_identity(spec: &PoolSpec, medium: &dyn Medium) -> Result<Identity, StoreError> {
    let home = medium.home();
    if home.join("records").exists() || !medium.pieces()?.is_empty() {
        let why = "it is missing, but records or pieces of a store are there".to_owned();
        return Err(StoreError::Identity { path: home.join("store.json"), why });
    }
    let random = machine::random_bytes().map_err(failed("naming", home))?;
    let identity = Identity { format: FORMAT, store: StoreId(Uuid::from_random(random)), pool: spec.name.clone() };
    let text = serde_json::to_vec_pretty(&identity).map_err(|error| failed("naming", home)(error.into()))?;
    write(home, "store.json", &text)?;
    Ok(identity)
}

fn parse_identity(path: &Path, text: &str) -> Result<Identity, StoreError> {
    let refused = |why: String| StoreError::Identity { path: path.to_owned(), why };
    let identity: Identity = serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
    if identity.format > FORMAT {
        return Err(refused(format!("it has format {}, and this version knows {FORMAT}", identity.format)));
    }
    Ok(identity)
}

pub(super) fn read_if_there(path: &Path) -> Result<Option<String>, StoreError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("reading", path)(error)),
    }
}

pub(super) fn write(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    std::fs::create_dir_all(directory).map_err(failed("making", directory))?;
    file::write_atomically(directory, name, bytes)
        .map_err(|error| failed("writing", &directory.join(name))(std::io::Error::other(error)))
}
