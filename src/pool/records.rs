//! The records of one store: a directory of small files, one format, one implementation for all media.
//!
//! A file's name is the key and the state (`v-….making`, `.ready`, `.removing`, `.deleted`), so that a change of state is a
//! rename, which needs next to no space; where there is none at all, a ballast lends it. Every change is on the disk before
//! the call returns: temporary name, fsync, rename, fsync of the directory. What is in memory is what is on the disk: a
//! store is locked against a second daemon, and whoever changes a record holds its key's guard, so no lock is held while
//! the disk works. Whoever watches the store is told of each change once it is on the disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::record::{FORMAT, Record};
use crate::domain::Key;
use crate::machine::file::{self, Ballast};

/// Where a volume or snapshot is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Its piece is being made; nobody knows its id.
    Making,
    /// It is there.
    Ready,
    /// It is being removed; it never comes back.
    Removing,
    /// It exists no more. The record stays because of hosts that could not be asked for the name when it was made: one of
    /// them may come back with a volume of that name, which nobody wants any more.
    Deleted,
}

impl State {
    /// All there are, for tables.
    pub const ALL: [State; 4] = [State::Making, State::Ready, State::Removing, State::Deleted];

    /// Its word: in the names of files, and in what hosts tell controllers.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Making => "making",
            State::Ready => "ready",
            State::Removing => "removing",
            State::Deleted => "deleted",
        }
    }
}

/// What is known under a key.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where it is in its life.
    pub state: State,
    /// What is known of it.
    pub record: Arc<Record>,
}

impl Entry {
    /// The bytes that it takes of what the pool may promise.
    pub fn promised(&self) -> u64 {
        if self.state == State::Deleted { 0 } else { self.record.promised() }
    }

    /// Whether its job still has to read what it names.
    pub fn has_use_for_pieces(&self) -> bool {
        matches!(self.state, State::Making | State::Ready)
    }
}

/// The records of one store.
pub struct Records {
    directory: PathBuf,
    ballast: Ballast,
    entries: RwLock<BTreeMap<Key, Entry>>,
    unreadable: BTreeMap<Key, String>,
    on_change: OnChange,
}

/// What is called with a key whose record has changed.
pub type OnChange = Box<dyn Fn(Key) + Send + Sync>;

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The directory or a file in it could not be read.
    #[error("reading {}", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The change is not on the disk.
    #[error("writing the record {key}")]
    Write {
        /// Whose.
        key: Key,
        /// Why.
        source: std::io::Error,
    },
    /// The record is there, but this version cannot read it.
    #[error("the record {key} cannot be read: {why}")]
    Unreadable {
        /// Whose.
        key: Key,
        /// What is wrong.
        why: String,
    },
}

impl Records {
    /// Reads all records below this directory, which is made if it is not there. Later changes are told to `on_change`.
    pub fn open(directory: &Path, ballast: Ballast, on_change: OnChange) -> Result<Records, RecordError> {
        let read = |source| RecordError::Read { path: directory.to_owned(), source };
        std::fs::create_dir_all(directory).map_err(read)?;
        let mut entries = BTreeMap::new();
        let mut unreadable = BTreeMap::new();
        for file in std::fs::read_dir(directory).map_err(read)? {
            let path = file.map_err(read)?.path();
            if path.file_name().is_some_and(file::is_temporary) {
                // a write that was cut off; what it was to replace is there
                std::fs::remove_file(&path).map_err(|source| RecordError::Read { path: path.clone(), source })?;
            }
            let Some((key, state)) = parse_name(&path) else { continue };
            let text = std::fs::read(&path).map_err(|source| RecordError::Read { path: path.clone(), source })?;
            match parse(&text) {
                Ok(record) if !unreadable.contains_key(&key) => {
                    let entry = Entry { state, record: Arc::new(record) };
                    if let Some(other) = entries.insert(key, entry) {
                        entries.remove(&key);
                        unreadable.insert(key, format!("it stands there as {:?} and as {state:?}", other.state));
                    }
                }
                Ok(_) => {}
                Err(why) => {
                    entries.remove(&key);
                    unreadable.insert(key, why);
                }
            }
        }
        let directory = directory.to_owned();
        Ok(Records { directory, ballast, entries: RwLock::new(entries), unreadable, on_change })
    }

    /// What is known under this key. A record that cannot be read is an error, never nothing.
    pub fn get(&self, key: &Key) -> Result<Option<Entry>, RecordError> {
        if let Some(why) = self.unreadable.get(key) {
            return Err(RecordError::Unreadable { key: *key, why: why.clone() });
        }
        Ok(self.read().get(key).cloned())
    }

    /// All that can be read, in the order of their keys.
    pub fn all(&self) -> Vec<(Key, Entry)> {
        self.read().iter().map(|(key, entry)| (*key, entry.clone())).collect()
    }

    /// Those after this key, in the order of their keys, as long as the caller wants more.
    pub fn walk_after(&self, after: Option<Key>, mut visit: impl FnMut(Key, &Entry) -> bool) {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        for (key, entry) in self.read().range((from, Unbounded)) {
            if !visit(*key, entry) {
                return;
            }
        }
    }

    /// The keys whose records are there but cannot be read, with the reason.
    pub fn unreadable(&self) -> &BTreeMap<Key, String> {
        &self.unreadable
    }

    /// Writes a record that is in this state already, or that is new.
    pub fn put(&self, key: &Key, state: State, record: Record) -> Result<(), RecordError> {
        let text = serde_json::to_vec(&record).map_err(|error| write_failed(key, error.into()))?;
        self.ballast
            .lend(|| file::write_atomically(&self.directory, &file_name(key, state), &text))
            .map_err(|error| write_failed(key, std::io::Error::other(error)))?;
        self.write().insert(*key, Entry { state, record: Arc::new(record) });
        (self.on_change)(*key);
        Ok(())
    }

    /// Brings a record into another state.
    pub fn turn(&self, key: &Key, to: State) -> Result<(), RecordError> {
        let Some(Entry { state, record }) = self.read().get(key).cloned() else { return Ok(()) };
        if state != to {
            let (old, new) = (self.directory.join(file_name(key, state)), self.directory.join(file_name(key, to)));
            self.ballast
                .lend(|| file::rename_durably(&old, &new))
                .map_err(|error| write_failed(key, std::io::Error::other(error)))?;
            self.write().insert(*key, Entry { state: to, record });
            (self.on_change)(*key);
        }
        Ok(())
    }

    /// Forgets a record. One that is not there is forgotten already.
    pub fn remove(&self, key: &Key) -> Result<(), RecordError> {
        let Some(Entry { state, .. }) = self.read().get(key).cloned() else { return Ok(()) };
        let _ = file::remove_durably(&self.directory.join(file_name(key, state)))
            .map_err(|error| write_failed(key, std::io::Error::other(error)))?;
        self.write().remove(key);
        (self.on_change)(*key);
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Key, Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Key, Entry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_failed(key: &Key, source: std::io::Error) -> RecordError {
    RecordError::Write { key: *key, source }
}

fn file_name(key: &Key, state: State) -> String {
    format!("{key}.{}", state.as_str())
}

fn parse_name(path: &Path) -> Option<(Key, State)> {
    let (key, suffix) = path.file_name()?.to_str()?.split_once('.')?;
    let state = State::ALL.into_iter().find(|state| state.as_str() == suffix)?;
    Some((Key::from_str(key).ok()?, state))
}

/// Parses a record; the error says why this version cannot.
fn parse(text: &[u8]) -> Result<Record, String> {
    #[derive(serde::Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format } = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if format > FORMAT {
        return Err(format!("it has format {format}, and this version knows {FORMAT}"));
    }
    serde_json::from_slice(text).map_err(|error| error.to_string())
}
