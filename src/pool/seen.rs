//! Which stores were seen on this machine: a note of the last one of each pool, in the data directory. A pool that had a store
//! is not given a new one in silence, and a store that is away may have what is looked for. Nothing here looks into a store.

use std::path::Path;

use super::store::{StoreError, failed, read_if_there, write};
use crate::domain::{PoolName, PoolSpec, StoreId};
use crate::machine::file;

/// Where the notes are: a file for each pool, with the store's identity.
const SEEN: &str = "stores";
/// The same, of stores that had nothing in them when their pool was withdrawn. (Versions before this one look only at the
/// others.)
const EMPTY: &str = "empty-stores";

/// The store that this pool was seen to have, unless its owner gave it up.
pub fn expected(spec: &PoolSpec, data: &Path) -> Result<Option<StoreId>, StoreError> {
    let store = match read(&spec.name, &data.join(SEEN))? {
        Some(store) => Some(store),
        None => read(&spec.name, &data.join(EMPTY))?,
    };
    Ok(store.filter(|store| !spec.lost.contains(store)))
}

/// The stores that were seen and may hold something, each the last of its pool, whether the pool is still known here or not.
pub fn stores(data: &Path) -> Result<Vec<StoreId>, StoreError> {
    let directory = data.join(SEEN);
    let files = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        files => files.map_err(failed("reading", &directory))?,
    };
    let mut stores = Vec::new();
    for file in files {
        let path = file.map_err(failed("reading", &directory))?.path();
        // a note that is just being written stands under a temporary name as well
        if !path.file_name().is_some_and(file::is_temporary)
            && let Some(text) = read_if_there(&path)?
        {
            stores.push(parse(&path, &text)?);
        }
    }
    Ok(stores)
}

/// Notes a pool's store, before anything is put into it.
pub fn note(pool: &PoolName, store: StoreId, data: &Path) -> Result<(), StoreError> {
    if read(pool, &data.join(SEEN))? != Some(store) {
        write(&data.join(SEEN), &pool.to_string(), store.to_string().as_bytes())?;
    }
    remove(&data.join(EMPTY).join(pool.to_string()))
}

/// Notes that nothing is in a pool's store, which is let go of.
pub fn note_empty(pool: &PoolName, store: StoreId, data: &Path) -> Result<(), StoreError> {
    write(&data.join(EMPTY), &pool.to_string(), store.to_string().as_bytes())?;
    remove(&data.join(SEEN).join(pool.to_string()))
}

fn read(pool: &PoolName, directory: &Path) -> Result<Option<StoreId>, StoreError> {
    let path = directory.join(pool.to_string());
    read_if_there(&path)?.map(|text| parse(&path, &text)).transpose()
}

/// A note that outlives a power cut stands beside the other, which is preferred where it matters.
fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
        _ => Ok(()),
    }
}

fn parse(path: &Path, text: &str) -> Result<StoreId, StoreError> {
    let refused = |why: String| StoreError::Identity { path: path.to_owned(), why };
    text.trim().parse().map(StoreId).map_err(|error: crate::domain::uuid::NotAUuid| refused(error.to_string()))
}
