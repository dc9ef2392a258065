//! Find: what this host has under a key, in whatever pool, asked by a controller before it chooses a host for a new volume.

use std::sync::PoisonError;

use crate::domain::{Id, Key, NodeName, PoolName, StoreId, Uuid};
use crate::machine;
use crate::pool::claims::Claim;
use crate::pool::host::Host;
use crate::pool::record::Record;
use crate::pool::records::{Entry, RecordError, State};
use crate::pool::store::StoreError;
use crate::step;

/// What a host has under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// What its stores have.
    pub found: Vec<Found>,
    /// The right to make, or to settle, a volume of the key here; `None` where it was not asked for, or where something of
    /// the key is just being made.
    pub claim: Option<Claim>,
    /// Pools that are down, and may have a store that has it.
    pub unsure: Vec<PoolName>,
    /// The stores that were searched.
    pub searched: Vec<StoreId>,
    /// Stores that were here and are not: a disk that was moved, or cannot be read.
    pub missing: Vec<StoreId>,
}

/// What one store has under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: Id,
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: PoolName,
    /// Where it is in its life.
    pub state: State,
    /// The number of the newest grant; 0 if there never was one.
    pub generation: u64,
    /// The host that made it.
    pub made_on: Option<NodeName>,
    /// Hosts that could not be asked for the name, and were not asked since.
    pub passed_over: Vec<NodeName>,
}

/// A host cannot say what it has.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// A record could not be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Which stores were here before could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel gave no random bytes.
    #[error("making a claim")]
    Random(#[source] std::io::Error),
}

/// What this host has under the key, and a claim if it is asked for. A claim ends all earlier ones; while a volume of the
/// name is being made there is none.
pub fn find(host: &Host, key: &Key, with_claim: bool) -> Result<Findings, FindError> {
    step!("find.claim");
    // one question at a time, so that only work on the name itself keeps it from being claimed
    let _asking = host.asking.lock().unwrap_or_else(PoisonError::into_inner);
    // held until the stores have been read: no volume of the name begins between the reading and the claim
    let name = if with_claim { host.names.exclusive(key).ok() } else { None };
    // one look: what is opened or closed from here on is missing, and not forgotten
    let pools = host.pools();
    let (mut found, mut searched) = (Vec::new(), Vec::new());
    for store in pools.iter().filter_map(|pool| pool.store.as_ref().ok()) {
        searched.push(store.id);
        if let Some(Entry { state, record }) = store.records.get(key)? {
            found.push(describe(store.id_of(*key), store.pool.clone(), state, &record));
        }
    }
    let claim = match &name {
        Some(_) => Some(Uuid::from_random(machine::random_bytes().map_err(FindError::Random)?)),
        None => None,
    };
    if let Some(claim) = claim {
        host.claims.set(key, claim);
    }
    let unsure = pools.iter().filter(|pool| pool.is_unsure()).map(|pool| pool.spec.name.clone()).collect();
    let missing = host.missing(&pools)?;
    Ok(Findings { found, claim, unsure, searched, missing })
}

/// Whether this claim still is the newest of its name.
pub fn confirm(host: &Host, key: &Key, claim: &Claim) -> bool {
    host.claims.is_newest(key, claim)
}

fn describe(id: Id, pool: PoolName, state: State, record: &Record) -> Found {
    let volume = record.volume();
    Found {
        id,
        name: record.name.clone(),
        pool,
        state,
        generation: volume.map_or(0, |volume| volume.generation),
        made_on: volume.and_then(|volume| volume.made_on.clone()),
        passed_over: record.passed_over().to_vec(),
    }
}
