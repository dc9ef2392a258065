//! A machine in its role of serving stores: its pools as their owner wrote them, and the stores they are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::claims::Claims;
use super::guards::Guards;
use super::news::News;
use super::operations::{restore_grants, resume_all};
use super::record::Record;
use super::records::{Entry, RecordError, State};
use super::seen;
use super::store::{Store, StoreError, Surroundings};
use super::tasks::Tasks;
use crate::domain::error::chain;
use crate::domain::{Key, MediumSpec, NodeName, PoolName, PoolSpec, StoreId};
use crate::medium::dir::Dir;
use crate::medium::{self, Medium};
use crate::share::local::LocalTarget;

/// A machine in its role of serving stores.
pub struct Host {
    around: Surroundings,
    pools: RwLock<BTreeMap<PoolName, Pool>>,
    /// Names are guarded across stores: two calls never make one name in two pools.
    pub(super) names: Guards<Key>,
    /// Who may make a volume of which name here, of those who asked.
    pub(super) claims: Claims,
    /// Held while the host is asked for a name.
    pub(super) asking: Mutex<()>,
}

/// A pool and what became of it on this host.
#[derive(Clone)]
pub struct Pool {
    /// As its owner wrote it.
    pub spec: PoolSpec,
    /// Its store, or why there is none.
    pub store: Result<Arc<Store>, String>,
}

/// What is said of a pool that was not tried yet.
const OPENING: &str = "it is being opened";

/// A store, and the record in it that was looked for.
type Found = (Arc<Store>, Arc<Record>);

/// The pool or store that a call needs is not there now.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// No pool has this name.
    #[error("there is no pool {0}")]
    NoSuchPool(PoolName),
    /// The pool's store could not be opened.
    #[error("pool {pool} cannot be used: {why}")]
    PoolDown {
        /// The pool.
        pool: PoolName,
        /// Why its store is not open.
        why: String,
    },
    /// Its owner gave it up: what it held exists no more.
    #[error("store {0} is lost, its owner says")]
    Lost(StoreId),
    /// Nobody has seen this store since start.
    #[error("store {0} is not here; a store that is not known is never taken for lost")]
    StoreUnseen(StoreId),
}

impl Host {
    /// The host of this name, with no pools yet. What is not in a store is kept below `data`.
    pub fn new(name: NodeName, data: PathBuf, tasks: Tasks) -> Host {
        Host {
            around: Surroundings { host: name, data, tasks, news: News::default() },
            pools: RwLock::default(),
            names: Guards::default(),
            claims: Claims::default(),
            asking: Mutex::default(),
        }
    }

    /// Who watches this host.
    pub fn news(&self) -> &News {
        &self.around.news
    }

    /// The machine's name.
    pub fn name(&self) -> &NodeName {
        &self.around.host
    }

    /// Makes the pools those of the list: opens what is new, tries again what could not be opened, takes over changed
    /// limits, lets go of what is gone. A pool that cannot be opened holds up no other; until it was tried it is down, and not
    /// unknown: it may have what is looked for.
    pub fn apply(&self, specs: Vec<PoolSpec>) {
        let names: Vec<PoolName> = specs.iter().map(|spec| spec.name.clone()).collect();
        self.write().retain(|name, pool| {
            let is_wanted = names.contains(name);
            if let (false, Ok(store)) = (is_wanted, &pool.store) {
                store.withdraw();
            }
            is_wanted
        });
        let mut to_open = Vec::new();
        for spec in specs {
            let mut pools = self.write();
            match pools.remove(&spec.name) {
                Some(Pool { spec: old, store: Ok(store) }) if old.medium == spec.medium => {
                    store.reconfigure(&spec);
                    pools.insert(spec.name.clone(), Pool { spec, store: Ok(store) });
                }
                other => {
                    let said = other.as_ref().and_then(|pool| pool.store.as_ref().err().cloned());
                    let opening = Err(said.clone().unwrap_or_else(|| OPENING.to_owned()));
                    pools.insert(spec.name.clone(), Pool { spec: spec.clone(), store: opening });
                    drop(pools);
                    // an open store is let go of before its place is opened anew
                    drop(other);
                    to_open.push((spec, said));
                }
            }
        }
        self.news().pools_changed();
        for (spec, said) in to_open {
            let store = self.open(&spec, said);
            self.write().insert(spec.name.clone(), Pool { spec, store });
            self.news().pools_changed();
        }
    }

    /// Whether it has this pool as it is written here, open or down.
    pub fn knows(&self, spec: &PoolSpec) -> bool {
        self.read().get(&spec.name).is_some_and(|pool| pool.spec == *spec)
    }

    /// Tries again what could not be opened.
    pub fn retry(&self) {
        let down: Vec<Pool> = self.pools().into_iter().filter(|pool| pool.store.is_err()).collect();
        for Pool { spec, store } in down {
            let store = self.open(&spec, store.err());
            self.write().insert(spec.name.clone(), Pool { spec, store });
            self.news().pools_changed();
        }
    }

    /// Opens the pool's store. What was said of it last time is not logged again.
    fn open(&self, spec: &PoolSpec, said: Option<String>) -> Result<Arc<Store>, String> {
        let opened = open_medium(spec, &self.around)
            .and_then(|medium| Store::open(spec, medium, Box::new(LocalTarget), &self.around))
            .map_err(|error| chain(&error))
            .and_then(|store| restore_grants(&store).map(|()| store).map_err(|error| chain(&error)));
        match opened {
            Ok(store) => {
                tracing::info!(pool = %spec.name, store = %store.id, "pool is open");
                for (key, trouble) in store.troubles() {
                    tracing::warn!(pool = %spec.name, %key, trouble, "kept, and left alone");
                }
                resume_all(&store);
                Ok(store)
            }
            Err(why) => {
                if said.as_ref() != Some(&why) {
                    tracing::error!(pool = %spec.name, error = why, "pool cannot be opened; it is tried again");
                }
                Err(why)
            }
        }
    }

    /// The pools and what became of them.
    pub fn pools(&self) -> Vec<Pool> {
        self.read().values().cloned().collect()
    }

    /// The open stores, in the order of their ids.
    pub fn stores(&self) -> Vec<Arc<Store>> {
        let mut stores: Vec<_> = self.read().values().filter_map(|pool| pool.store.as_ref().ok().cloned()).collect();
        stores.sort_by_key(|store| store.id);
        stores
    }

    /// The store with this identity.
    pub fn store(&self, id: &StoreId) -> Result<Arc<Store>, Unavailable> {
        if let Some(store) = self.stores().into_iter().find(|store| store.id == *id) {
            return Ok(store);
        }
        let is_lost = self.read().values().any(|pool| pool.spec.lost.contains(id));
        Err(if is_lost { Unavailable::Lost(*id) } else { Unavailable::StoreUnseen(*id) })
    }

    /// Fails if a pool is down: a list without what is in it would be taken for the whole.
    pub fn all_are_up(&self) -> Result<(), Unavailable> {
        match self.read().iter().find_map(|(name, pool)| Some((name, pool.store.as_ref().err()?))) {
            Some((pool, why)) => Err(Unavailable::PoolDown { pool: pool.clone(), why: why.clone() }),
            None => Ok(()),
        }
    }

    /// Stores that were seen here, are not open in these pools, were not given up, and not empty when their pool was withdrawn:
    /// a disk that was moved, or one that cannot be read. Each may have what is looked for.
    pub(super) fn missing(&self, pools: &[Pool]) -> Result<Vec<StoreId>, StoreError> {
        let is_open = |id: &StoreId| pools.iter().any(|pool| pool.store.as_ref().is_ok_and(|store| store.id == *id));
        let is_lost = |id: &StoreId| pools.iter().any(|pool| pool.spec.lost.contains(id));
        let seen = seen::stores(&self.around.data)?.into_iter();
        Ok(seen.filter(|id| !is_open(id) && !is_lost(id)).collect())
    }

    /// The store of this pool.
    pub fn store_of_pool(&self, pool: &PoolName) -> Result<Arc<Store>, Unavailable> {
        match self.read().get(pool) {
            None => Err(Unavailable::NoSuchPool(pool.clone())),
            Some(Pool { store: Ok(store), .. }) => Ok(Arc::clone(store)),
            Some(Pool { store: Err(why), .. }) => Err(Unavailable::PoolDown { pool: pool.clone(), why: why.clone() }),
        }
    }

    /// What is ready under this key, in whatever store it is.
    pub(super) fn find_anywhere(&self, key: &Key) -> Result<Option<Found>, RecordError> {
        for store in self.stores() {
            if let Some(Entry { state: State::Ready, record }) = store.records.get(key)? {
                return Ok(Some((store, record)));
            }
        }
        Ok(None)
    }

    /// The other pool that has something under this key.
    pub(super) fn other_pool_with(&self, key: &Key, but: &Store) -> Result<Option<PoolName>, RecordError> {
        for store in self.stores().into_iter().filter(|store| store.id != but.id) {
            if store.records.get(key)?.is_some_and(|entry| entry.state != State::Deleted) {
                return Ok(Some(store.pool.clone()));
            }
        }
        Ok(None)
    }

    /// Measures every store, and reserves again what thick pieces lost. For the background.
    pub fn tend(&self) {
        for store in self.stores() {
            if let Err(error) = store.measure() {
                tracing::warn!(pool = %store.pool, error = %chain(&error), "measuring");
            }
        }
    }

    /// Lets go of all stores. What nobody uses is unmounted.
    pub fn close(&self) {
        self.write().clear();
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<PoolName, Pool>> {
        self.pools.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<PoolName, Pool>> {
        self.pools.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Whether it is down, and may have a store that nobody knows to be there.
    pub(super) fn is_unsure(&self) -> bool {
        let MediumSpec::Dir(dir) = &self.spec.medium;
        self.store.is_err() && medium::dir::may_be_in(dir)
    }
}

fn open_medium(spec: &PoolSpec, around: &Surroundings) -> Result<Box<dyn Medium>, StoreError> {
    let is_expected = seen::expected(spec, &around.data)?.is_some();
    match &spec.medium {
        MediumSpec::Dir(dir) => Ok(Box::new(Dir::open(dir, is_expected)?)),
    }
}
