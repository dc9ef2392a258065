//! Follows StoragePools, CSINodes and Nodes, and keeps the fleet as they say. Nothing is applied before all three were listed
//! once: a fleet without pools would take them from their hosts. A cluster that does not answer changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::CSINode;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::time::Instant;

use super::fleet::{Made, Seen, make};
use super::pool::StoragePool;
use crate::route;

/// Changes that come together are taken together.
const TOGETHER: Duration = Duration::from_millis(100);

/// What a cluster was seen to want.
#[derive(Default)]
pub struct Cluster {
    now: Mutex<Option<Arc<View>>>,
}

/// One moment of it.
pub struct View {
    /// The pools, as they were last understood.
    pub pools: BTreeMap<String, StoragePool>,
    /// What was made of them.
    pub made: Made,
}

impl Cluster {
    /// What was seen last; `None` before everything was listed once.
    pub fn view(&self) -> Option<Arc<View>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, view: View) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(view));
    }
}

/// One kind of objects while it is listed and followed.
struct Followed<K> {
    kind: &'static str,
    events: Pin<Box<dyn Stream<Item = watcher::Result<Event<K>>> + Send>>,
    listing: Vec<K>,
    is_listed: bool,
    is_failing: bool,
}

/// What an event comes to.
enum Change<K> {
    Nothing,
    All(Vec<K>),
    One(K),
    Gone(K),
}

impl<K: Resource> Followed<K> {
    fn new(kind: &'static str, events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static) -> Followed<K> {
        let events = Box::pin(events.default_backoff());
        Followed { kind, events, listing: Vec::new(), is_listed: false, is_failing: false }
    }

    /// The next change; `None` when there never is one again.
    async fn next(&mut self) -> Option<Change<K>> {
        // cancel-safe: an event is taken in one go
        let event = match self.events.next().await? {
            Ok(event) => event,
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let error = crate::domain::error::chain(&error);
                    tracing::warn!(kind = self.kind, error, "cannot be followed now; what was seen last stays");
                }
                return Some(Change::Nothing);
            }
        };
        self.is_failing = false;
        Some(match event {
            Event::Init => {
                self.listing.clear();
                Change::Nothing
            }
            Event::InitApply(object) => {
                self.listing.push(object);
                Change::Nothing
            }
            Event::InitDone => {
                self.is_listed = true;
                Change::All(std::mem::take(&mut self.listing))
            }
            Event::Apply(object) => Change::One(object),
            Event::Delete(object) => Change::Gone(object),
        })
    }
}

/// What is known of the cluster's objects, and whether it has changed.
#[derive(Default)]
struct Objects {
    seen: Seen,
    /// When what has changed is to be applied.
    due: Option<Instant>,
}

impl Objects {
    fn note(&mut self, is_news: bool) {
        if is_news {
            self.due.get_or_insert_with(|| Instant::now() + TOGETHER);
        }
    }

    fn take_pools(&mut self, change: Change<DeserializeGuard<StoragePool>>) {
        match change {
            Change::Nothing => return,
            Change::All(pools) => {
                let names: BTreeSet<String> = pools.iter().map(ResourceExt::name_any).collect();
                self.seen.pools.retain(|name, _| names.contains(name));
                self.seen.misread.retain(|name, _| names.contains(name));
                pools.into_iter().for_each(|pool| self.take_pool(pool));
            }
            Change::One(pool) => self.take_pool(pool),
            Change::Gone(pool) => {
                let name = pool.name_any();
                self.seen.pools.remove(&name);
                self.seen.misread.remove(&name);
                self.seen.in_force.remove(&name);
            }
        }
        self.note(true);
    }

    /// One that cannot be understood leaves what was understood of it before.
    fn take_pool(&mut self, pool: DeserializeGuard<StoragePool>) {
        let name = pool.name_any();
        match pool.0 {
            Ok(pool) => {
                self.seen.misread.remove(&name);
                self.seen.pools.insert(name, pool);
            }
            Err(invalid) => {
                tracing::error!(pool = name, error = invalid.error, "the StoragePool cannot be understood");
                self.seen.misread.insert(name, invalid.error);
            }
        }
    }

    fn take_nodes(&mut self, change: Change<PartialObjectMeta<Node>>) {
        let labels = |node: &PartialObjectMeta<Node>| (node.name_any(), node.labels().clone());
        let is_news = match change {
            Change::Nothing => false,
            Change::All(nodes) => {
                let nodes = nodes.iter().map(labels).collect();
                std::mem::replace(&mut self.seen.nodes, nodes) != self.seen.nodes
            }
            Change::One(node) => {
                let (name, labels) = labels(&node);
                self.seen.nodes.insert(name, labels.clone()) != Some(labels)
            }
            Change::Gone(node) => self.seen.nodes.remove(&node.name_any()).is_some(),
        };
        self.note(is_news);
    }

    fn take_drivers(&mut self, driver: &str, change: Change<CSINode>) {
        let id = |node: &CSINode| {
            let of_node = node.spec.drivers.iter().find(|of_node| of_node.name == driver);
            of_node.map(|of_node| (node.name_any(), of_node.node_id.clone()))
        };
        let before = self.seen.drivers.clone();
        match change {
            Change::Nothing => return,
            // those that were there and have no driver now stay while their nodes do
            Change::All(nodes) => self.seen.drivers.extend(nodes.iter().filter_map(id)),
            Change::One(node) => self.seen.drivers.extend(id(&node)),
            Change::Gone(_) => {}
        }
        self.note(before != self.seen.drivers);
    }

    /// Applies what has changed.
    fn apply(&mut self, cluster: &Cluster, fleet: &Arc<route::Fleet>) {
        self.due = None;
        let Seen { nodes, drivers, .. } = &mut self.seen;
        drivers.retain(|name, _| nodes.contains_key(name));
        let made = make(&self.seen);
        for (node, why) in &made.strange {
            tracing::error!(node, why, "the node has the driver, and is no host");
        }
        let pools = made.fleet.pools.iter().flatten();
        self.seen.in_force = pools.map(|pool| (pool.spec.name.to_string(), pool.clone())).collect();
        if *fleet.text() != made.fleet {
            let (hosts, pools) = (made.fleet.hosts.len(), self.seen.in_force.len());
            tracing::info!(hosts, pools, "the fleet is as the cluster says");
            fleet.apply(made.fleet.clone());
        }
        cluster.set(View { pools: self.seen.pools.clone(), made });
    }
}

/// Follows the cluster's objects, and applies what they say to the fleet. It ends only when it cannot go on.
pub async fn follow(client: Client, driver: String, cluster: Arc<Cluster>, fleet: Arc<route::Fleet>) {
    let config = watcher::Config::default;
    let api: Api<DeserializeGuard<StoragePool>> = Api::all(client.clone());
    let mut pools = Followed::new("StoragePool", watcher::watcher(api, config()));
    let labels: Api<PartialObjectMeta<Node>> = Api::all(client.clone());
    let mut nodes = Followed::new("Node", watcher::watcher(labels, config()));
    let mut drivers = Followed::new("CSINode", watcher::watcher(Api::<CSINode>::all(client), config()));
    let mut objects = Objects::default();
    loop {
        let is_listed = pools.is_listed && nodes.is_listed && drivers.is_listed;
        let due = objects.due.filter(|_| is_listed);
        let is_followed = tokio::select! {
            change = pools.next() => change.map(|change| objects.take_pools(change)),
            change = nodes.next() => change.map(|change| objects.take_nodes(change)),
            change = drivers.next() => change.map(|change| objects.take_drivers(&driver, change)),
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                objects.apply(&cluster, &fleet);
                Some(())
            }
        };
        if is_followed.is_none() {
            return;
        }
    }
}
