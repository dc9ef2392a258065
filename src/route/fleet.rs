//! The fleet: a link to each host, what the hosts reported, and what its owner wrote.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use tonic::Status;

use super::inventory::{Inventory, Owner, PoolView};
use super::link::{self, Link, Standing};
use super::placement;
use crate::config;
use crate::domain::{Key, NodeName, PoolName, Role, StoreId};
use crate::peer::Tls;
use crate::pool::guards::Guards;
use crate::proto::internal::report::News;
use crate::proto::internal::{Report, Reports};

/// How long hosts that are away are waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Before a volume that belongs to one is made elsewhere.
    pub placing: Duration,
    /// Before lists are answered without one that was not seen since start.
    pub starting: Duration,
}

/// How many questions for names are under way at once, over all hosts and all calls. Each name is asked of all hosts: without
/// this, a few creates at once would miss the bound in this very process, and hosts be taken for away that are not. The price:
/// more hosts than these that begin to hang in one moment cost one create the bound for each so many of them.
const QUESTIONS: usize = 256;

/// The fleet.
pub struct Fleet {
    tls: Arc<Tls>,
    /// How long hosts that are away are waited for.
    pub patience: Patience,
    text: RwLock<Arc<config::Fleet>>,
    links: RwLock<BTreeMap<NodeName, Member>>,
    inventory: RwLock<Inventory>,
    /// Which pools each host was brought last.
    brought: Mutex<HashMap<NodeName, Vec<String>>>,
    /// Which of them it refused, and why.
    refused: Mutex<HashMap<NodeName, BTreeMap<String, String>>>,
    text_changed: Notify,
    /// Turns of questions for names: first come, first served.
    pub(super) questions: Arc<Semaphore>,
    /// Names that are being asked for: one call at a time each.
    pub(super) names: Guards<Key>,
    /// Hosts that were at work on a name when they were asked for it, since when.
    busy: Mutex<HashMap<(NodeName, Key), Instant>>,
    /// Something may have to be settled.
    pub(super) unsettled: Notify,
    /// When it had its first text.
    started: OnceLock<Instant>,
    ready: AtomicBool,
}

/// What came of some news.
#[derive(Default)]
pub(super) struct Taken {
    /// The host has told all it has by now.
    pub is_whole: bool,
    /// Why some of it is not believed.
    pub lies: Vec<String>,
}

/// A host of the fleet, and the task that follows it.
struct Member {
    link: Arc<Link>,
    addresses: Vec<String>,
    following: AbortHandle,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Fleet {
    /// A fleet without hosts; [`Fleet::apply`] gives it some.
    pub fn new(tls: Arc<Tls>, patience: Patience) -> Arc<Fleet> {
        Arc::new(Fleet {
            tls,
            patience,
            text: RwLock::default(),
            links: RwLock::default(),
            inventory: RwLock::default(),
            brought: Mutex::default(),
            refused: Mutex::default(),
            text_changed: Notify::new(),
            questions: Arc::new(Semaphore::new(QUESTIONS)),
            names: Guards::default(),
            busy: Mutex::default(),
            unsettled: Notify::new(),
            started: OnceLock::new(),
            ready: AtomicBool::new(false),
        })
    }

    /// Makes the fleet that of the text: follows hosts that are new or have moved, lets go of those that are gone.
    pub fn apply(self: &Arc<Self>, text: config::Fleet) {
        self.started.get_or_init(Instant::now);
        let mut links = write(&self.links);
        let wanted: BTreeMap<&NodeName, &Vec<String>> =
            text.hosts.iter().map(|host| (&host.name, &host.addresses)).collect();
        links.retain(|name, member| wanted.get(name).is_some_and(|addresses| **addresses == member.addresses));
        for host in &text.hosts {
            if !links.contains_key(&host.name) {
                links.insert(host.name.clone(), self.join(host));
            }
        }
        drop(links);
        write(&self.inventory).follow(&text);
        *write(&self.text) = Arc::new(text);
        self.text_changed.notify_waiters();
    }

    fn join(self: &Arc<Self>, host: &config::HostSpec) -> Member {
        let channel = self.tls.channel(Role::Host, host.name.clone(), host.addresses.clone());
        let link = Arc::new(Link::new(host.name.clone(), channel));
        let following = tokio::spawn(link::follow(Arc::clone(self), Arc::clone(&link))).abort_handle();
        Member { link, addresses: host.addresses.clone(), following }
    }

    /// The link to a host.
    pub fn link(&self, host: &NodeName) -> Option<Arc<Link>> {
        read(&self.links).get(host).map(|member| Arc::clone(&member.link))
    }

    /// All links.
    pub fn links(&self) -> Vec<Arc<Link>> {
        read(&self.links).values().map(|member| Arc::clone(&member.link)).collect()
    }

    /// What the owner wrote.
    pub fn text(&self) -> Arc<config::Fleet> {
        Arc::clone(&read(&self.text))
    }

    /// What the hosts reported.
    pub fn inventory(&self) -> RwLockReadGuard<'_, Inventory> {
        read(&self.inventory)
    }

    /// The same, to be changed.
    pub(super) fn inventory_mut(&self) -> RwLockWriteGuard<'_, Inventory> {
        write(&self.inventory)
    }

    /// Fails before it is known which hosts there are: a question to all of them would be asked of nobody.
    pub(super) fn when_known(&self) -> Result<(), Status> {
        let not_yet =
            || Status::unavailable("the controller has just started, and does not know yet which hosts there are");
        self.started.get().map(|_| ()).ok_or_else(not_yet)
    }

    /// Whether every host has told what it has, or was found away; and at the latest after a bounded time.
    pub fn is_ready(&self) -> bool {
        if self.ready.load(Ordering::Relaxed) {
            return true;
        }
        // nobody knows which hosts there are
        let Some(started) = self.started.get() else { return false };
        let links = self.links();
        let inventory = self.inventory();
        let known = |link: &Arc<Link>| match link.is_here() {
            true => inventory.is_whole(&link.name),
            false => link.was_tried(),
        };
        let is_ready = links.iter().all(known) || started.elapsed() >= self.patience.starting;
        if is_ready && !self.ready.swap(true, Ordering::Relaxed) {
            let away = links.iter().filter(|link| !link.is_here()).count();
            tracing::info!(hosts = links.len(), away, milliseconds = started.elapsed().as_millis(), "ready");
        }
        is_ready
    }

    /// The link to the host that has a store, or the answer where there is none now.
    pub fn link_of_store(&self, store: &StoreId) -> Result<Arc<Link>, Status> {
        let owner = self.inventory().owner(store);
        let host = match owner {
            Owner::Host(host) => host,
            Owner::Unseen(Some(host)) => host,
            Owner::Unseen(None) => {
                return Err(Status::unavailable(format!(
                    "no host of the fleet has shown store {store} since this controller started; it is waited for until \
                     it is declared lost with `lost` of its pool"
                )));
            }
            Owner::Disputed(hosts) => {
                let hosts: Vec<String> = hosts.iter().map(NodeName::to_string).collect();
                return Err(Status::unavailable(format!(
                    "store {store} is claimed by several hosts ({}): write it under the right one in hosts.yaml, and \
                     give the other's disk an identity of its own or take it away",
                    hosts.join(", ")
                )));
            }
        };
        let gone = || {
            Status::unavailable(format!(
                "host {host}, which has store {store}, is not in the fleet: bring it back, or declare the store lost with \
                 `lost` of its pool"
            ))
        };
        let link = self.link(&host).ok_or_else(gone)?;
        match link.standing() {
            Standing::Here { .. } => Ok(link),
            Standing::Away { why, .. } if why.is_empty() => {
                Err(Status::unavailable(format!("host {host} was not reached yet")))
            }
            Standing::Away { why, .. } => Err(Status::unavailable(format!("host {host} cannot be reached: {why}"))),
        }
    }

    /// Whether the owner gave this store up, in the text of a pool.
    pub fn is_lost(&self, store: &StoreId) -> bool {
        self.text().pools.iter().flatten().any(|pool| pool.spec.lost.contains(store))
    }

    /// The hosts that carry a pool, or may: those that have not told what they have may have any pool that the fleet's text
    /// lets them have, and those that it is brought to will have it.
    pub fn candidates(&self, pool: &PoolName) -> Vec<placement::Candidate> {
        let text = self.text();
        let spec = text.pools.iter().flatten().find(|of_fleet| of_fleet.spec.name == *pool);
        let inventory = self.inventory();
        let candidate = |link: Arc<Link>| {
            let known = inventory.pool(&link.name, pool);
            let standing = match (link.standing(), known) {
                // a store that others claim too is nobody's, and stays so until its owner has said whose it is
                (Standing::Here { .. }, Some(PoolView { store: Some(store), .. }))
                    if !inventory.has_store(&link.name, store) =>
                {
                    placement::Standing::Away { since: Duration::MAX }
                }
                (Standing::Here { .. }, Some(view)) => match &view.down {
                    None => placement::Standing::Here { available: view.available },
                    Some((since, _)) => placement::Standing::Away { since: since.elapsed() },
                },
                (Standing::Away { since, .. }, Some(_)) => placement::Standing::Away { since: since.elapsed() },
                (Standing::Here { since } | Standing::Away { since, .. }, None) => {
                    let may = match spec {
                        Some(of_fleet) => of_fleet.spec.may_be_on(&link.name),
                        None => !inventory.is_whole(&link.name),
                    };
                    may.then_some(placement::Standing::Away { since: since.elapsed() })?
                }
            };
            Some(placement::Candidate { host: link.name.clone(), standing })
        };
        self.links().into_iter().filter_map(candidate).collect()
    }

    /// Whether a host that gives no claim of a name, and shows nothing of it, has done so for longer than any host is waited
    /// for.
    pub(super) fn is_busy_for_too_long(&self, host: &NodeName, key: &Key) -> bool {
        let mut busy = lock(&self.busy);
        let since = *busy.entry((host.clone(), *key)).or_insert_with(Instant::now);
        since.elapsed() >= self.patience.placing.max(link::BOUND)
    }

    pub(super) fn not_busy(&self, host: &NodeName, key: &Key) {
        lock(&self.busy).remove(&(host.clone(), *key));
    }

    // what the links tell

    pub(super) fn begun(&self, host: &NodeName) {
        self.inventory_mut().begin(host);
    }

    pub(super) fn ended(&self, host: &NodeName) {
        self.inventory_mut().end(host);
    }

    pub(super) fn host_changed(&self) {
        self.unsettled.notify_one();
    }

    /// Takes in news.
    pub(super) fn take(&self, host: &NodeName, reports: Reports) -> Taken {
        let text = self.text();
        let mut taken = Taken::default();
        let mut inventory = self.inventory_mut();
        for news in reports.reports.into_iter().filter_map(|Report { news }| news) {
            taken.is_whole |= matches!(news, News::Whole(_));
            taken.lies.extend(inventory.take(host, &text, news).err());
        }
        drop(inventory);
        self.unsettled.notify_one();
        taken
    }

    /// The pools that are to be on a host; `None` where no controller brings any.
    pub(super) fn entries_of(&self, host: &NodeName) -> Option<Vec<String>> {
        self.text().entries_of(host)
    }

    pub(super) fn nothing_brought(&self, host: &NodeName) {
        lock(&self.brought).remove(host);
    }

    pub(super) fn brought(&self, host: &NodeName, pools: Vec<String>, refused: BTreeMap<String, String>) {
        lock(&self.brought).insert(host.clone(), pools);
        lock(&self.refused).insert(host.clone(), refused);
    }

    /// Why a host does not take a pool that it was brought; `None` where it does, as far as is known.
    pub fn refusal(&self, host: &NodeName, pool: &PoolName) -> Option<String> {
        lock(&self.refused).get(host)?.get(&pool.to_string()).cloned()
    }

    /// Waits until the pools that are to be on a host are not those that it was brought.
    pub(super) async fn pools_differ(&self, host: &NodeName) {
        loop {
            let changed = self.text_changed.notified();
            tokio::pin!(changed);
            // registered before the look, so that no change falls between
            changed.as_mut().enable();
            if self.entries_of(host).is_some_and(|wanted| lock(&self.brought).get(host) != Some(&wanted)) {
                return;
            }
            changed.await;
        }
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
