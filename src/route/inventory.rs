//! What the hosts reported, checked against what each may have. A host can say nothing of another's stores: a store that
//! two hosts claim is nobody's until one of them is right, by the fleet's own text or by being the only one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Instant;

use prost::Message;

use crate::config::Fleet;
use crate::domain::{Id, Key, Kind, NodeId, NodeName, PoolName, StoreId};
use crate::proto::internal::{self, report::News};

/// The most nodes that one volume may be on: an entry of a list stays a few KiB.
const MOST_NODES: usize = 64;

/// How much of one host's report is kept, in bytes as it was sent: some 100,000 volumes. What is more is not believed.
const MOST_KEPT: usize = 64 << 20;
/// How many pools one host may have.
const MOST_POOLS: usize = 1000;
/// What an entry weighs beyond its bytes.
const ENTRY: usize = 128;

/// What it takes to keep an entry.
fn weight(told: &impl Message) -> usize {
    ENTRY + told.encoded_len()
}

/// What the hosts reported.
#[derive(Debug, Default)]
pub struct Inventory {
    hosts: BTreeMap<NodeName, HostView>,
    stores: BTreeMap<StoreId, Vec<Claimed>>,
    /// Stores that stand with a host in the fleet's text.
    pinned: BTreeMap<StoreId, NodeName>,
    /// In how many stores each volume's name is: only those in more than one.
    doubled: BTreeMap<Key, BTreeSet<StoreId>>,
    /// Volumes of all stores, by name; to see doubles.
    names: std::collections::HashMap<Key, StoreId>,
    /// Volumes that were made while others could not be asked for their names.
    unsettled: BTreeSet<Id>,
}

/// What one host reported of itself.
#[derive(Debug, Default)]
struct HostView {
    /// Whether its report goes on, and has told all there is.
    live: bool,
    /// Whether it has told all there is, once.
    whole: bool,
    /// Counts its reports: what an earlier one had and this one has not is gone.
    session: u64,
    pools: BTreeMap<PoolName, PoolView>,
    /// How much of its report is kept: what [`weight`] makes of it.
    kept: usize,
}

/// A pool on one host.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolView {
    /// Its store; `None` while it is down.
    pub store: Option<StoreId>,
    /// The store it has, or had before it went down.
    pub last_store: Option<StoreId>,
    /// Since when it is down, and why.
    pub down: Option<(Instant, String)>,
    /// What may still be promised, in bytes.
    pub available: u64,
    /// As it was told.
    pub told: internal::Pool,
    session: u64,
}

/// A store as one host has it.
#[derive(Debug)]
struct Claimed {
    host: NodeName,
    pool: PoolName,
    /// Whether the pool is up: a store that is down keeps its volumes.
    is_up: bool,
    volumes: BTreeMap<Key, Volume>,
    snapshots: BTreeMap<Key, Snapshot>,
}

/// A volume as its host reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its size in bytes.
    pub size: u64,
    /// What it was cut from.
    pub source: Option<Id>,
    /// The ids of the nodes that have it.
    pub nodes: Vec<String>,
    /// The number of the newest grant; 0 if there never was one.
    pub generation: u64,
    /// The host that made it.
    pub made_on: Option<NodeName>,
    /// Hosts that were not asked for its name.
    pub passed_over: Vec<NodeName>,
    /// It exists no more, and is remembered because of those hosts.
    pub deleted: bool,
    session: u64,
    weight: usize,
}

/// A snapshot as its host reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its size in bytes.
    pub size: u64,
    /// The volume it was cut from.
    pub of: Id,
    /// When, in seconds and nanoseconds.
    pub created: (i64, u32),
    /// Whether it can be restored from.
    pub ready: bool,
    session: u64,
    weight: usize,
}

/// Whose a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// This host's.
    Host(NodeName),
    /// Several hosts say it is theirs: cloned machines, a copied disk, or a lie.
    Disputed(Vec<NodeName>),
    /// No host has said so since start; the fleet's text may say whose it is.
    Unseen(Option<NodeName>),
}

impl Inventory {
    /// Takes over which store stands with which host, and forgets hosts that are not there any more.
    pub fn follow(&mut self, fleet: &Fleet) {
        self.pinned =
            fleet.hosts.iter().flat_map(|host| host.stores.iter().map(|id| (*id, host.name.clone()))).collect();
        let known: BTreeSet<&NodeName> = fleet.hosts.iter().map(|host| &host.name).collect();
        let gone: Vec<NodeName> = self.hosts.keys().filter(|host| !known.contains(host)).cloned().collect();
        for host in gone {
            self.hosts.remove(&host);
            let stores: Vec<StoreId> = self.stores.keys().copied().collect();
            stores.iter().for_each(|store| self.drop_claim(&host, store));
        }
    }

    /// A host begins a report anew.
    pub fn begin(&mut self, host: &NodeName) {
        let view = self.hosts.entry(host.clone()).or_default();
        view.session += 1;
        // what an earlier report said stands until this one has told all; meanwhile others may have its disks
        view.live = false;
    }

    /// A host's report has ended. What it said is kept: its volumes still exist.
    pub fn end(&mut self, host: &NodeName) {
        if let Some(view) = self.hosts.get_mut(host) {
            view.live = false;
        }
    }

    /// Whether the host has told all it has, at least once.
    pub fn is_whole(&self, host: &NodeName) -> bool {
        self.hosts.get(host).is_some_and(|view| view.whole)
    }

    /// Takes in a piece of a host's report. The error says what it may not say; nothing of that piece is believed.
    pub fn take(&mut self, host: &NodeName, fleet: &Fleet, news: News) -> Result<(), String> {
        match news {
            News::Greeting(_) => Ok(()),
            News::Pool(pool) => self.take_pool(host, fleet, pool),
            News::PoolGone(name) => {
                let name: PoolName = name.parse().map_err(|error| format!("a pool that is gone: {error}"))?;
                self.drop_pool(host, &name);
                Ok(())
            }
            News::Volume(volume) => self.take_volume(host, volume),
            News::Snapshot(snapshot) => self.take_snapshot(host, snapshot),
            News::Gone(id) => {
                let id: Id = id.parse().map_err(|error| format!("what is gone: {error}"))?;
                self.forget(host, &id);
                Ok(())
            }
            News::Whole(_) => {
                self.whole(host);
                Ok(())
            }
        }
    }

    fn take_pool(&mut self, host: &NodeName, fleet: &Fleet, told: internal::Pool) -> Result<(), String> {
        let name: PoolName = told.name.parse().map_err(|error| format!("a pool: {error}"))?;
        let of_fleet = fleet.pools.iter().flatten().find(|pool| pool.spec.name == name);
        if of_fleet.is_some_and(|pool| !pool.spec.may_be_on(host)) {
            return Err(format!("pool {name} is not for this host, the fleet's text says"));
        }
        let largest = i64::MAX.unsigned_abs();
        if told.available_bytes > told.total_bytes.saturating_mul(1000) || told.total_bytes > largest {
            return Err(format!("pool {name} has {} of {} bytes available", told.available_bytes, told.total_bytes));
        }
        let store = match told.store.as_str() {
            "" => None,
            text => Some(text.parse().map(StoreId).map_err(|error| format!("pool {name}: its store: {error}"))?),
        };
        let view = self.hosts.entry(host.clone()).or_default();
        let before = view.pools.get(&name);
        let kept = view.kept + weight(&told) - before.map_or(0, |before| weight(&before.told));
        if kept > MOST_KEPT || (before.is_none() && view.pools.len() >= MOST_POOLS) {
            return Err(format!("pool {name} is more than is kept of one host"));
        }
        let down = match (store, before.and_then(|before| before.down.clone())) {
            (Some(_), _) => None,
            (None, Some((since, _))) => Some((since, told.down.clone())),
            (None, None) => Some((Instant::now(), told.down.clone())),
        };
        let last_store = store.or(before.and_then(|before| before.last_store));
        let replaced = before.and_then(|before| before.last_store).filter(|old| store.is_some_and(|new| new != *old));
        let (available, session) = (told.available_bytes, view.session);
        view.kept = kept;
        view.pools.insert(name.clone(), PoolView { store, last_store, down, available, told, session });
        if let Some(old) = replaced {
            self.drop_claim(host, &old);
        }
        if let Some(last) = last_store
            && let Some(claim) = self.claim(host, &last)
        {
            claim.is_up = store.is_some();
        }
        if let Some(store) = store {
            let claims = self.stores.entry(store).or_default();
            match claims.iter_mut().find(|claim| claim.host == *host) {
                Some(claim) => claim.pool = name,
                None => {
                    let (host, volumes, snapshots) = (host.clone(), BTreeMap::new(), BTreeMap::new());
                    claims.push(Claimed { host, pool: name, is_up: true, volumes, snapshots });
                }
            }
        }
        Ok(())
    }

    fn take_volume(&mut self, host: &NodeName, told: internal::Volume) -> Result<(), String> {
        let id = Id::parse(Kind::Volume, &told.id).ok_or_else(|| format!("{:?} is no volume's id", told.id))?;
        if Key::of_name(Kind::Volume, &told.name) != id.key {
            return Err(format!("volume {id} is not of its name {:?}", told.name));
        }
        if i64::try_from(told.size_bytes).is_err() {
            return Err(format!("volume {id} has {} bytes", told.size_bytes));
        }
        if told.nodes.len() > MOST_NODES || told.nodes.iter().any(|node| node.parse::<NodeId>().is_err()) {
            return Err(format!("volume {id} is on what is no node, or on too many"));
        }
        let names = |names: &[String]| names.iter().map(|name| name.parse()).collect::<Result<Vec<NodeName>, _>>();
        let passed_over = names(&told.passed_over).map_err(|error| format!("volume {id}: passed over: {error}"))?;
        let source = match told.source.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|error| format!("volume {id}: its source: {error}"))?),
        };
        let (session, weight) = (self.session(host), weight(&told));
        let claim = self.claim(host, &id.store).ok_or_else(|| format!("volume {id} is in no store of this host"))?;
        let before = claim.volumes.get(&id.key).map_or(0, |before| before.weight);
        self.weigh(host, before, weight).map_err(|why| format!("volume {id} {why}"))?;
        let volume = Volume {
            size: told.size_bytes,
            source,
            nodes: told.nodes,
            generation: told.generation,
            made_on: told.made_on.parse().ok(),
            passed_over,
            deleted: told.deleted,
            session,
            weight,
        };
        let is_unsettled = volume.deleted || !volume.passed_over.is_empty();
        if let Some(claim) = self.claim(host, &id.store) {
            claim.volumes.insert(id.key, volume);
        }
        if is_unsettled {
            self.unsettled.insert(id)
        } else {
            self.unsettled.remove(&id)
        };
        self.note_name(id);
        Ok(())
    }

    fn take_snapshot(&mut self, host: &NodeName, told: internal::Snapshot) -> Result<(), String> {
        let id = Id::parse(Kind::Snapshot, &told.id).ok_or_else(|| format!("{:?} is no snapshot's id", told.id))?;
        if Key::of_name(Kind::Snapshot, &told.name) != id.key {
            return Err(format!("snapshot {id} is not of its name {:?}", told.name));
        }
        let of =
            Id::parse(Kind::Volume, &told.volume).ok_or_else(|| format!("snapshot {id} is of {:?}", told.volume))?;
        if i64::try_from(told.size_bytes).is_err() || of.store != id.store {
            return Err(format!("snapshot {id} has {} bytes and is of {of}", told.size_bytes));
        }
        let (session, weight) = (self.session(host), weight(&told));
        let claim = self.claim(host, &id.store).ok_or_else(|| format!("snapshot {id} is in no store of this host"))?;
        let before = claim.snapshots.get(&id.key).map_or(0, |before| before.weight);
        self.weigh(host, before, weight).map_err(|why| format!("snapshot {id} {why}"))?;
        let created = (told.created_seconds, told.created_nanos.min(999_999_999));
        let snapshot = Snapshot { size: told.size_bytes, of, created, ready: told.ready, session, weight };
        if let Some(claim) = self.claim(host, &id.store) {
            claim.snapshots.insert(id.key, snapshot);
        }
        Ok(())
    }

    /// Notes that an entry of a host weighs more or less than before, unless that would be more than is kept of one host.
    fn weigh(&mut self, host: &NodeName, before: usize, now: usize) -> Result<(), &'static str> {
        let Some(view) = self.hosts.get_mut(host) else { return Ok(()) };
        let kept = view.kept + now - before;
        if kept > MOST_KEPT && now > before {
            return Err("is more than is kept of one host");
        }
        view.kept = kept;
        Ok(())
    }

    /// Forgets what was reported in earlier sessions and not in this one. It looks through the host's own stores alone:
    /// thousands of hosts tell all they have when a controller starts.
    fn whole(&mut self, host: &NodeName) {
        let session = self.session(host);
        let stores: BTreeSet<StoreId> = self.pools(host).filter_map(|(_, pool)| pool.last_store).collect();
        let mut gone = Vec::new();
        for store in stores {
            let Some(claim) = self.claim(host, &store) else { continue };
            let volumes = claim.volumes.iter().filter(|(_, volume)| volume.session != session).map(|(key, _)| key);
            let snapshots = claim.snapshots.iter().filter(|(_, cut)| cut.session != session).map(|(key, _)| key);
            gone.extend(volumes.chain(snapshots).map(|key| Id { store, key: *key }));
        }
        gone.iter().for_each(|id| self.forget(host, id));
        let pools = self.hosts.get(host).into_iter().flat_map(|view| &view.pools);
        let old: Vec<PoolName> =
            pools.filter(|(_, pool)| pool.session != session).map(|(name, _)| name.clone()).collect();
        old.iter().for_each(|name| self.drop_pool(host, name));
        if let Some(view) = self.hosts.get_mut(host) {
            view.whole = true;
            view.live = true;
        }
    }

    fn session(&self, host: &NodeName) -> u64 {
        self.hosts.get(host).map_or(0, |view| view.session)
    }

    fn claim(&mut self, host: &NodeName, store: &StoreId) -> Option<&mut Claimed> {
        self.stores.get_mut(store)?.iter_mut().find(|claim| claim.host == *host)
    }

    fn drop_pool(&mut self, host: &NodeName, name: &PoolName) {
        let Some(view) = self.hosts.get_mut(host) else { return };
        let Some(gone) = view.pools.remove(name) else { return };
        view.kept -= weight(&gone.told);
        if let Some(store) = gone.last_store {
            self.drop_claim(host, &store);
        }
    }

    fn drop_claim(&mut self, host: &NodeName, store: &StoreId) {
        let keys: Vec<Key> = self
            .claim(host, store)
            .map_or(Vec::new(), |claim| claim.volumes.keys().chain(claim.snapshots.keys()).copied().collect());
        keys.into_iter().for_each(|key| self.forget(host, &Id { store: *store, key }));
        if let Some(claims) = self.stores.get_mut(store) {
            claims.retain(|claim| claim.host != *host);
            if claims.is_empty() {
                self.stores.remove(store);
            }
        }
    }

    fn forget(&mut self, host: &NodeName, id: &Id) {
        if let Some(claim) = self.claim(host, &id.store) {
            let volume = claim.volumes.remove(&id.key).map_or(0, |volume| volume.weight);
            let snapshot = claim.snapshots.remove(&id.key).map_or(0, |snapshot| snapshot.weight);
            if let Some(view) = self.hosts.get_mut(host) {
                view.kept -= volume + snapshot;
            }
        }
        let is_elsewhere =
            self.stores.get(&id.store).into_iter().flatten().any(|claim| claim.volumes.contains_key(&id.key));
        if id.key.kind() == Kind::Volume && !is_elsewhere {
            self.unsettled.remove(id);
            self.forget_name(id);
        }
    }

    fn note_name(&mut self, id: Id) {
        match self.names.get(&id.key) {
            Some(first) if *first != id.store => {
                let stores = self.doubled.entry(id.key).or_default();
                stores.extend([*first, id.store]);
            }
            Some(_) => {}
            None => {
                self.names.insert(id.key, id.store);
            }
        }
    }

    fn forget_name(&mut self, id: &Id) {
        if let Some(stores) = self.doubled.get_mut(&id.key) {
            stores.remove(&id.store);
            if let Some(left) = stores.first().copied() {
                self.names.insert(id.key, left);
            }
            if stores.len() < 2 {
                self.doubled.remove(&id.key);
            }
        } else if self.names.get(&id.key) == Some(&id.store) {
            self.names.remove(&id.key);
        }
    }

    /// Whose a store is. One that stands with a host in the fleet's text is that host's. Of others, whoever reports it now
    /// is right if it is the only one; a disk that was moved is its new host's as soon as the old one is away.
    pub fn owner(&self, store: &StoreId) -> Owner {
        match (self.claim_of_owner(store), self.pinned.get(store)) {
            (Some(claim), _) => Owner::Host(claim.host.clone()),
            (None, Some(pinned)) => Owner::Unseen(Some(pinned.clone())),
            (None, None) => match self.claims(store) {
                [] => Owner::Unseen(None),
                several => Owner::Disputed(several.iter().map(|claim| claim.host.clone()).collect()),
            },
        }
    }

    fn claims(&self, store: &StoreId) -> &[Claimed] {
        self.stores.get(store).map_or(&[], Vec::as_slice)
    }

    /// A store as the host has it whose it is; `None` where it is nobody's.
    fn claim_of_owner(&self, store: &StoreId) -> Option<&Claimed> {
        let claims = self.claims(store);
        if let Some(pinned) = self.pinned.get(store) {
            return claims.iter().find(|claim| claim.host == *pinned);
        }
        if let [only] = claims {
            return Some(only);
        }
        let is_live = |claim: &&Claimed| claim.is_up && self.hosts.get(&claim.host).is_some_and(|view| view.live);
        let mut live = claims.iter().filter(is_live);
        live.next().filter(|_| live.next().is_none())
    }

    /// The stores, in the order of their ids, each as the host has it whose it is.
    fn owned(&self, from: Option<StoreId>) -> impl Iterator<Item = (StoreId, &Claimed)> {
        use std::ops::Bound::{Included, Unbounded};
        let stores = self.stores.range((from.map_or(Unbounded, Included), Unbounded));
        stores.filter_map(|(store, _)| Some((*store, self.claim_of_owner(store)?)))
    }

    /// The volumes after this id, in the order of ids, each with its host.
    pub fn volumes_after(&self, after: Option<Id>) -> impl Iterator<Item = (Id, &NodeName, &Volume)> {
        self.owned(after.map(|id| id.store)).flat_map(move |(store, claim)| {
            let volumes = claim.volumes.range(keys_after(after, store)).filter(|(_, volume)| !volume.deleted);
            volumes.map(move |(key, volume)| (Id { store, key: *key }, &claim.host, volume))
        })
    }

    /// The snapshots after this id, in the order of ids.
    pub fn snapshots_after(&self, after: Option<Id>) -> impl Iterator<Item = (Id, &Snapshot)> {
        self.owned(after.map(|id| id.store)).flat_map(move |(store, claim)| {
            let snapshots = claim.snapshots.range(keys_after(after, store));
            snapshots.map(move |(key, snapshot)| (Id { store, key: *key }, snapshot))
        })
    }

    /// A volume as its host reported it.
    pub fn volume(&self, id: &Id) -> Option<&Volume> {
        self.claim_of_owner(&id.store)?.volumes.get(&id.key)
    }

    /// The pool as this host has it.
    pub fn pool(&self, host: &NodeName, pool: &PoolName) -> Option<&PoolView> {
        self.hosts.get(host)?.pools.get(pool)
    }

    /// All pools that a host reported.
    pub fn pools(&self, host: &NodeName) -> impl Iterator<Item = (&PoolName, &PoolView)> {
        self.hosts.get(host).into_iter().flat_map(|view| &view.pools)
    }

    /// How many volumes and snapshots a host has in a store, as it reported.
    pub fn count(&self, host: &NodeName, store: &StoreId) -> (i64, i64) {
        let claim = self.stores.get(store).into_iter().flatten().find(|claim| claim.host == *host);
        let Some(claim) = claim else { return (0, 0) };
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let volumes = claim.volumes.values().filter(|volume| !volume.deleted).count();
        (number(volumes), number(claim.snapshots.len()))
    }

    /// What hosts have of a name, also where it is remembered only.
    pub fn of_name(&self, key: &Key) -> impl Iterator<Item = (&NodeName, &Volume)> {
        let doubled = self.doubled.get(key).into_iter().flatten();
        let only = self.names.get(key).filter(|_| !self.doubled.contains_key(key));
        let claims = doubled.chain(only).filter_map(|store| self.stores.get(store)).flatten();
        claims.filter_map(|claim| Some((&claim.host, claim.volumes.get(key)?)))
    }

    /// The volumes that have a name that others have too, and that exist, whoever shows them: none where the name is in one
    /// place.
    pub fn doubles(&self, key: &Key) -> Vec<(Id, Volume)> {
        let stores = self.doubled.get(key).into_iter().flatten();
        let shown = |store: &StoreId| {
            let claims = self.stores.get(store).into_iter().flatten();
            let volume = claims.filter_map(|claim| claim.volumes.get(key)).find(|volume| !volume.deleted)?;
            Some((Id { store: *store, key: *key }, volume.clone()))
        };
        let there: Vec<_> = stores.filter_map(shown).collect();
        if there.len() < 2 { Vec::new() } else { there }
    }

    /// Volumes of which something is left to be settled: made while others could not be asked, or in several places.
    pub fn unsettled(&self) -> BTreeSet<Key> {
        self.unsettled.iter().map(|id| id.key).chain(self.doubled.keys().copied()).collect()
    }

    /// Changes what is known of a volume, after its host has answered: its report says the same a moment later.
    pub fn amend(&mut self, id: &Id, change: impl FnOnce(&mut Volume)) {
        let Owner::Host(host) = self.owner(&id.store) else { return };
        if let Some(volume) = self.claim(&host, &id.store).and_then(|claim| claim.volumes.get_mut(&id.key)) {
            change(volume);
        }
    }

    /// Forgets what its host has just removed.
    pub fn removed(&mut self, id: &Id) {
        let Owner::Host(host) = self.owner(&id.store) else { return };
        // one that may have to be remembered stays until its host says what becomes of it
        if self.volume(id).is_none_or(|volume| volume.passed_over.is_empty()) {
            self.forget(&host, id);
        }
    }

    /// Adds a volume that its host has just made.
    pub fn made(&mut self, host: &NodeName, id: Id, size: u64, source: Option<Id>) {
        let session = self.session(host);
        let made_on = Some(host.clone());
        let Some(claim) = self.claim(host, &id.store) else { return };
        let (nodes, passed_over) = (Vec::new(), Vec::new());
        // it weighs nothing until it is reported
        let new =
            Volume { size, source, nodes, generation: 0, made_on, passed_over, deleted: false, session, weight: 0 };
        claim.volumes.entry(id.key).or_insert(new);
        self.note_name(id);
    }

    /// A snapshot of this name in another store than this, as far as hosts reported.
    pub fn snapshot_elsewhere(&self, key: &Key, but: &StoreId) -> Option<Id> {
        let mut others = self.stores.iter().filter(|(store, _)| *store != but);
        let has = |claims: &[Claimed]| claims.iter().any(|claim| claim.snapshots.contains_key(key));
        others.find(|(_, claims)| has(claims)).map(|(store, _)| Id { store: *store, key: *key })
    }

    /// Adds a snapshot that its host has just cut.
    pub fn cut(&mut self, id: Id, snapshot: Snapshot) {
        let Owner::Host(host) = self.owner(&id.store) else { return };
        let session = self.session(&host);
        if let Some(claim) = self.claim(&host, &id.store) {
            claim.snapshots.entry(id.key).or_insert(Snapshot { session, ..snapshot });
        }
    }

    /// Whether a host said that it has this store.
    pub fn has_store(&self, host: &NodeName, store: &StoreId) -> bool {
        self.claim_of_owner(store).is_some_and(|claim| claim.host == *host)
    }
}

/// The keys of a store that come after an id: a page of one large store does not begin at its beginning.
fn keys_after(after: Option<Id>, store: StoreId) -> (Bound<Key>, Bound<Key>) {
    let after = after.filter(|after| after.store == store);
    (after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.key)), Bound::Unbounded)
}

impl Snapshot {
    /// A snapshot that was just cut.
    pub fn new(size: u64, of: Id, created: (i64, u32), ready: bool) -> Snapshot {
        Snapshot { size, of, created, ready, session: 0, weight: 0 }
    }
}
