//! Keeps StoragePools: writes their status, tells events, and lets go of one that is to be deleted when nothing holds it.
//! One controller does, which the Lease says.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::elect::Elector;
use super::fleet::Plan;
use super::pool::{FINALIZER, HostState, HostStatus, StoragePool, StoragePoolStatus};
use super::status;
use super::watch::Cluster;
use crate::domain::error::chain;
use crate::route;

/// Who writes: the field manager, and who events are from.
const MANAGER: &str = "cistern-controller";
/// How often pools are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How long a status rests in which nothing but sizes has changed.
const SIZES_EVERY: Duration = Duration::from_secs(30);
/// How long the cluster may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How many events one look at a pool tells.
const MOST_EVENTS: usize = 5;

/// Keeps the pools.
struct Keeper {
    pools: Api<StoragePool>,
    recorder: Recorder,
    fleet: Arc<route::Fleet>,
    /// What was written last of each pool, by its UID: the watch shows it a moment later.
    written: HashMap<String, (StoragePoolStatus, Instant)>,
}

/// The cluster did not take something.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("cannot {what} StoragePool {pool}")]
    Write { what: &'static str, pool: String, source: Box<kube::Error> },
    #[error("the cluster does not answer")]
    Late,
}

/// Keeps the pools for as long as the Lease is this controller's, and stands for election otherwise. Ends at the stop.
pub async fn keep(
    client: Client,
    namespace: String,
    controller: String,
    cluster: Arc<Cluster>,
    fleet: Arc<route::Fleet>,
    stop: CancellationToken,
) {
    let mut elector = Elector::new(client.clone(), &namespace, &controller);
    let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(controller) };
    let recorder = Recorder::new(client.clone(), reporter);
    let mut keeper = Keeper { pools: Api::all(client), recorder, fleet, written: HashMap::new() };
    // cancel-safe: what is slept has no effect
    while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        if !elector.leads().await {
            keeper.written.clear();
            continue;
        }
        let Some(view) = cluster.view().filter(|_| keeper.fleet.is_ready()) else { continue };
        for (name, pool) in &view.pools {
            let plan = view.made.plans.get(name).cloned().unwrap_or_default();
            let tended = tokio::time::timeout(ANSWER, keeper.tend(pool.clone(), &plan)).await;
            if let Err(error) = tended.unwrap_or(Err(KeepError::Late)) {
                tracing::warn!(error = %chain(&error), "once more in a moment");
            }
        }
        let uids: Vec<String> = view.pools.values().filter_map(ResourceExt::uid).collect();
        keeper.written.retain(|uid, _| uids.contains(uid));
    }
    elector.let_go().await;
}

impl Keeper {
    async fn tend(&mut self, mut pool: StoragePool, plan: &Plan) -> Result<(), KeepError> {
        let uid = pool.uid().unwrap_or_default();
        let written = self.written.get(&uid).cloned();
        if let Some((status, _)) = &written {
            pool.status = Some(status.clone());
        }
        let is_deleted = pool.metadata.deletion_timestamp.is_some();
        let holds = pool.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
        if !is_deleted && !holds {
            self.set_finalizers(&pool, true).await?;
        }
        let facts = status::facts(&self.fleet, &pool.name_any(), status::hosts(&pool, plan));
        let now = status::status(&pool, plan, &facts, &Time(Timestamp::now()));
        let before = pool.status.clone().unwrap_or_default();
        if is_due(&before, &now, written.map(|(_, at)| at.elapsed())) {
            self.write(&pool, &now).await?;
            self.written.insert(uid, (now.clone(), Instant::now()));
            self.tell(&pool, news(&before, &now)).await;
        }
        if is_deleted && holds && status::held(&pool, plan, &facts, &before.hosts).is_empty() {
            tracing::info!(pool = pool.name_any(), "nothing holds the pool: it is let go of");
            self.set_finalizers(&pool, false).await?;
        }
        Ok(())
    }

    async fn write(&self, pool: &StoragePool, status: &StoragePoolStatus) -> Result<(), KeepError> {
        let name = pool.name_any();
        let patch = json!({
            "apiVersion": StoragePool::api_version(&()),
            "kind": StoragePool::kind(&()),
            "metadata": { "name": name },
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        let written = self.pools.patch_status(&name, &params, &Patch::Apply(&patch)).await;
        written.map(drop).or_else(|error| accept_gone("write the status of", name, error))
    }

    /// Puts our finalizer on a pool, or takes it away, and leaves others' alone.
    async fn set_finalizers(&self, pool: &StoragePool, with_ours: bool) -> Result<(), KeepError> {
        let name = pool.name_any();
        let mut finalizers: Vec<&str> = pool.finalizers().iter().map(String::as_str).collect();
        finalizers.retain(|finalizer| *finalizer != FINALIZER);
        finalizers.extend(with_ours.then_some(FINALIZER));
        // with the version that was seen: another's change in between is a conflict, and looked at again
        let metadata = json!({ "resourceVersion": pool.resource_version(), "finalizers": finalizers });
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        let written = self.pools.patch(&name, &PatchParams::default(), &patch).await;
        written.map(drop).or_else(|error| accept_gone("hold or let go of", name, error))
    }

    async fn tell(&self, pool: &StoragePool, news: Vec<(EventType, &'static str, String)>) {
        let about = pool.object_ref(&());
        for (type_, reason, note) in news.into_iter().take(MOST_EVENTS) {
            // Kubernetes takes notes of at most 1024 bytes
            let note: String = note.chars().take(240).collect();
            let (reason, action) = (reason.to_owned(), "Keep".to_owned());
            let event = Event { type_, reason, note: Some(note), action, secondary: None };
            if let Err(error) = self.recorder.publish(&event, &about).await {
                tracing::warn!(pool = pool.name_any(), error = %chain(&error), "an event was not taken");
            }
        }
    }
}

/// One that has gone meanwhile, or was changed by another, is no failure: the watch tells.
fn accept_gone(what: &'static str, pool: String, error: kube::Error) -> Result<(), KeepError> {
    match error {
        kube::Error::Api(status) if status.is_not_found() || status.is_conflict() => Ok(()),
        error => Err(KeepError::Write { what, pool, source: Box::new(error) }),
    }
}

/// Whether a status is to be written: at once if it says something new, and now and then if sizes alone differ.
fn is_due(before: &StoragePoolStatus, now: &StoragePoolStatus, since: Option<Duration>) -> bool {
    fn without_sizes(status: &StoragePoolStatus) -> StoragePoolStatus {
        let none = String::new;
        let hosts = status.hosts.iter().map(|host| HostStatus {
            total: none(),
            free: none(),
            allocated: none(),
            available: none(),
            ..host.clone()
        });
        let hosts = hosts.collect();
        StoragePoolStatus { capacity: none(), allocated: none(), available: none(), hosts, ..status.clone() }
    }
    before != now && (without_sizes(before) != without_sizes(now) || since.is_none_or(|since| since >= SIZES_EVERY))
}

/// What people are told of a change.
fn news(before: &StoragePoolStatus, now: &StoragePoolStatus) -> Vec<(EventType, &'static str, String)> {
    let mut news = Vec::new();
    let said = |status: &StoragePoolStatus, type_: &str| {
        status.conditions.iter().find(|condition| condition.type_ == type_).cloned()
    };
    for (type_, is_trouble, reason) in [("Accepted", "False", "Refused"), ("Deleting", "True", "DeletionWaits")] {
        let Some(condition) = said(now, type_).filter(|condition| condition.status == is_trouble) else { continue };
        let is_new = said(before, type_).is_none_or(|was| was.message != condition.message);
        if is_new && condition.reason != "Empty" {
            news.push((EventType::Warning, reason, condition.message));
        }
    }
    let was: BTreeMap<&str, HostState> = before.hosts.iter().map(|host| (host.host.as_str(), host.state)).collect();
    for host in &now.hosts {
        let (was, on) = (was.get(host.host.as_str()).copied(), format!("on host {}", host.host));
        let (type_, reason, note) = match host.state {
            state if was == Some(state) => continue,
            HostState::Ready if was.is_some_and(|was| was != HostState::Pending) => {
                (EventType::Normal, "PoolReady", format!("{on} the pool is ready again"))
            }
            HostState::Down => (EventType::Warning, "PoolDown", format!("{on} the pool is down: {}", host.message)),
            HostState::Refused => (EventType::Warning, "PoolRefused", format!("{on} it is refused: {}", host.message)),
            HostState::Away => (EventType::Warning, "HostAway", format!("{on}: {}", host.message)),
            HostState::Ready | HostState::Pending | HostState::Gone => continue,
        };
        news.push((type_, reason, note));
    }
    news
}
