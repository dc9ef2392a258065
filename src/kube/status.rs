//! What is seen of the pools, written where their owners look: status, events, and the finalizer that keeps a pool's object for
//! as long as the pool holds something. One controller writes; nothing is decided from what was written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;

use super::fleet::{Followed, Mistake};
use super::leader::Leader;
use super::pool::{Condition, HostStatus, StoragePool, StoragePoolStatus};
use crate::domain::error::chain;
use crate::domain::{NodeName, PoolName, size};
use crate::route::Fleet;

/// Keeps the object of a pool that holds volumes.
const FINALIZER: &str = "cistern.dev/volumes";
/// Whose fields are written.
const MANAGER: &str = "cistern-controller";
/// How often all pools are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often sizes alone are written anew.
const SIZES_EVERY: Duration = Duration::from_secs(15);

/// Writes for as long as the controller runs and leads.
pub struct Writer {
    client: Client,
    fleet: Arc<Fleet>,
    leader: Leader,
    recorder: Recorder,
    /// What was written last of each pool, and when.
    written: BTreeMap<String, (StoragePoolStatus, Instant)>,
}

impl Writer {
    /// Writes under this name.
    pub fn new(client: Client, name: &str, fleet: Arc<Fleet>, leader: Leader) -> Writer {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(name.to_owned()) };
        let recorder = Recorder::new(client.clone(), reporter);
        Writer { client, fleet, leader, recorder, written: BTreeMap::new() }
    }

    /// Looks at all pools, again and again. `mistakes` tells what is wrong with the pools' text now.
    pub async fn write_all(mut self, followed: Arc<Followed>, mistakes: impl Fn() -> Vec<Mistake>) {
        loop {
            if self.leader.is() {
                let mistakes = mistakes();
                for pool in followed.pools.state() {
                    let mistake = mistakes.iter().find(|mistake| mistake.pool == pool.name_any());
                    if let Err(error) = self.write(&pool, mistake).await {
                        tracing::warn!(pool = pool.name_any(), error = %chain(&error), "what is seen of it cannot be written");
                    }
                }
            } else {
                self.written.clear();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn write(&mut self, pool: &StoragePool, mistake: Option<&Mistake>) -> Result<(), kube::Error> {
        let api: Api<StoragePool> = Api::all(self.client.clone());
        let name = pool.name_any();
        let hosts = hosts(&self.fleet, &name, pool.status.as_ref());
        let is_deleted = pool.metadata.deletion_timestamp.is_some();
        let waits_for = waits_for(&hosts);
        if is_deleted && waits_for.is_none() {
            self.written.remove(&name);
            return finalize(&api, pool, false).await;
        }
        if !is_deleted {
            finalize(&api, pool, true).await?;
        }
        let before = pool.status.clone().unwrap_or_default();
        let seen = Seen {
            hosts,
            mistake: mistake.map(|mistake| mistake.what.clone()),
            waits_for: waits_for.filter(|_| is_deleted),
        };
        let status = status(pool, &before, seen, &Timestamp::now().to_string());
        let is_due = match self.written.get(&name) {
            Some((last, _)) if *last == status => false,
            // sizes change all the time
            Some((last, at)) => *without_sizes(last) != *without_sizes(&status) || at.elapsed() >= SIZES_EVERY,
            None => before != status,
        };
        if is_due {
            let patch = json!({
                "apiVersion": StoragePool::api_version(&()), "kind": StoragePool::kind(&()), "status": status,
            });
            let params = PatchParams::apply(MANAGER).force();
            api.patch_status(&name, &params, &Patch::Apply(patch)).await?;
            self.tell(pool, &before, &status).await;
        }
        if is_due || !self.written.contains_key(&name) {
            self.written.insert(name, (status, Instant::now()));
        }
        Ok(())
    }

    /// Events of what has changed for the worse, or is well again.
    async fn tell(&self, pool: &StoragePool, before: &StoragePoolStatus, now: &StoragePoolStatus) {
        let reference = pool.object_ref(&());
        for (type_, reason, note) in news(before, now) {
            let event = Event { type_, reason, note: Some(note), action: "Watching".to_owned(), secondary: None };
            if let Err(error) = self.recorder.publish(&event, &reference).await {
                tracing::debug!(%error, "an event cannot be written");
            }
        }
    }
}

/// Adds the finalizer, or takes it away. A change that came in between is looked at first.
async fn finalize(api: &Api<StoragePool>, pool: &StoragePool, wanted: bool) -> Result<(), kube::Error> {
    let mut finalizers = pool.finalizers().to_vec();
    if finalizers.iter().any(|finalizer| finalizer == FINALIZER) == wanted {
        return Ok(());
    }
    match wanted {
        true => finalizers.push(FINALIZER.to_owned()),
        false => finalizers.retain(|finalizer| finalizer != FINALIZER),
    }
    let patch = json!({ "metadata": { "resourceVersion": pool.resource_version(), "finalizers": finalizers } });
    match api.patch(&pool.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        patched => patched.map(drop),
    }
}

/// Each host's part of a pool, as it was reported. What was written earlier stands for hosts that were not heard since this
/// controller's start.
fn hosts(fleet: &Fleet, pool: &str, before: Option<&StoragePoolStatus>) -> Vec<HostStatus> {
    let Ok(name) = pool.parse::<PoolName>() else { return Vec::new() };
    let (text, inventory) = (fleet.text(), fleet.inventory());
    let spec = text.pools.iter().flatten().find(|of_fleet| of_fleet.spec.name == name).map(|of_fleet| &of_fleet.spec);
    let mut hosts = Vec::new();
    for link in fleet.links() {
        let (view, is_to) = (inventory.pool(&link.name, &name), spec.is_some_and(|spec| spec.may_be_on(&link.name)));
        let earlier = before.and_then(|before| before.hosts.iter().find(|host| host.name == link.name.to_string()));
        let Some(view) = view else {
            if inventory.is_whole(&link.name) && !is_to {
                continue;
            }
            if is_to || earlier.is_some_and(|earlier| earlier.store.is_some()) {
                hosts.push(unheard(&link.name, link.is_here(), earlier));
            }
            continue;
        };
        let store = view.store.or(view.last_store);
        let (volumes, snapshots) = store.map_or((0, 0), |store| inventory.count(&link.name, &store));
        let bytes = |size: u64| view.store.map(|_| i64::try_from(size).unwrap_or(i64::MAX));
        let (state, message) = match (link.is_here(), &view.down) {
            (true, None) => ("Ready", None),
            (true, Some((_, why))) => ("Down", Some(why.clone())),
            (false, _) => ("Away", Some("the host does not answer".to_owned())),
        };
        hosts.push(HostStatus {
            name: link.name.to_string(),
            state: state.to_owned(),
            store: store.map(|store| store.to_string()),
            message,
            total_bytes: bytes(view.told.total_bytes),
            allocated_bytes: bytes(view.told.promised_bytes),
            available_bytes: bytes(view.available),
            volumes,
            snapshots,
        });
    }
    hosts
}

fn unheard(name: &NodeName, is_here: bool, earlier: Option<&HostStatus>) -> HostStatus {
    let (state, message) = match is_here {
        true => ("Waiting", "the host has not opened it yet"),
        false => ("Away", "the host does not answer"),
    };
    let earlier = earlier.cloned().unwrap_or_default();
    HostStatus { name: name.to_string(), state: state.to_owned(), message: Some(message.to_owned()), ..earlier }
}

/// Why a pool's object cannot go yet: something is in it, or a host that carries it cannot say.
fn waits_for(hosts: &[HostStatus]) -> Option<String> {
    let full = hosts.iter().filter(|host| host.volumes + host.snapshots > 0);
    let full: Vec<String> = full
        .map(|host| format!("{} volumes and {} snapshots on {}", host.volumes, host.snapshots, host.name))
        .collect();
    if !full.is_empty() {
        return Some(format!("it holds {}", full.join(", ")));
    }
    let silent = hosts.iter().filter(|host| host.store.is_some() && host.state != "Ready");
    let silent: Vec<&str> = silent.map(|host| host.name.as_str()).collect();
    (!silent.is_empty()).then(|| format!("what it holds on {} is not known now", silent.join(", ")))
}

/// What is seen of a pool.
struct Seen {
    hosts: Vec<HostStatus>,
    mistake: Option<String>,
    waits_for: Option<String>,
}

fn status(pool: &StoragePool, before: &StoragePoolStatus, seen: Seen, now: &str) -> StoragePoolStatus {
    let Seen { hosts, mistake, waits_for } = seen;
    let sum = |of: fn(&HostStatus) -> Option<i64>| hosts.iter().filter_map(of).fold(0, i64::saturating_add);
    let shown = |bytes: i64| Some(size::show(u64::try_from(bytes).unwrap_or_default()));
    let ready = hosts.iter().filter(|host| host.state == "Ready").count();
    let not_ready: Vec<String> = hosts
        .iter()
        .filter(|host| host.state != "Ready")
        .map(|host| format!("{}: {}", host.name, host.message.as_deref().unwrap_or(&host.state)))
        .collect();
    let (is_ready, reason, message) = match (&mistake, hosts.len()) {
        (Some(mistake), _) => ("False", "Invalid", mistake.clone()),
        (None, 0) => ("False", "NoHosts", "no host carries it".to_owned()),
        (None, all) if ready == all => ("True", "AllHostsReady", "all hosts serve it".to_owned()),
        (None, _) => ("False", "HostsNotReady", not_ready.join("; ")),
    };
    let mut conditions = vec![condition("Ready", is_ready, reason, message, before, now)];
    if let Some(what) = waits_for {
        conditions.push(condition("Deleting", "False", "HoldsVolumes", format!("waits: {what}"), before, now));
    }
    StoragePoolStatus {
        observed_generation: pool.metadata.generation,
        medium: pool.spec.dir.as_ref().map(|_| "dir".to_owned()),
        conditions,
        hosts_ready: Some(format!("{ready}/{}", hosts.len())),
        total: shown(sum(|host| host.total_bytes)),
        allocated: shown(sum(|host| host.allocated_bytes)),
        available: shown(sum(|host| host.available_bytes)),
        volumes: sum(|host| Some(host.volumes)),
        snapshots: sum(|host| Some(host.snapshots)),
        hosts,
    }
}

/// A condition; its time is that of its last change.
fn condition(
    name: &str,
    status: &str,
    reason: &str,
    message: String,
    before: &StoragePoolStatus,
    now: &str,
) -> Condition {
    let earlier = before.conditions.iter().find(|earlier| earlier.r#type == name && earlier.status == status);
    let last_transition_time = earlier.map_or(now, |earlier| &earlier.last_transition_time).to_owned();
    Condition {
        r#type: name.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time,
    }
}

/// The same without what changes with every write to a volume.
fn without_sizes(status: &StoragePoolStatus) -> Box<StoragePoolStatus> {
    let mut same = Box::new(status.clone());
    (same.total, same.allocated, same.available) = (None, None, None);
    for host in &mut same.hosts {
        (host.total_bytes, host.allocated_bytes, host.available_bytes) = (None, None, None);
    }
    same
}

/// What is told of a change.
fn news(before: &StoragePoolStatus, now: &StoragePoolStatus) -> Vec<(EventType, String, String)> {
    let mut news = Vec::new();
    for host in &now.hosts {
        let earlier =
            before.hosts.iter().find(|earlier| earlier.name == host.name).map(|earlier| earlier.state.as_str());
        let message = host.message.clone().unwrap_or_default();
        match host.state.as_str() {
            "Ready" if earlier.is_some_and(|earlier| earlier != "Ready") => {
                news.push((EventType::Normal, "HostReady".to_owned(), format!("{} serves it", host.name)));
            }
            state @ ("Down" | "Away") if earlier != Some(state) => {
                news.push((EventType::Warning, format!("Host{state}"), format!("{}: {message}", host.name)));
            }
            _ => {}
        }
    }
    for condition in &now.conditions {
        let earlier = before.conditions.iter().find(|earlier| earlier.r#type == condition.r#type);
        let is_new =
            earlier.is_none_or(|earlier| earlier.reason != condition.reason || earlier.message != condition.message);
        if is_new && matches!(condition.reason.as_str(), "Invalid" | "HoldsVolumes") {
            news.push((EventType::Warning, condition.reason.clone(), condition.message.clone()));
        }
    }
    news
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn host(name: &str, state: &str, volumes: i64) -> HostStatus {
        let (name, state) = (name.to_owned(), state.to_owned());
        let message = (state != "Ready").then(|| "why".to_owned());
        HostStatus {
            name,
            state,
            message,
            store: Some("s".to_owned()),
            total_bytes: Some(1 << 30),
            volumes,
            ..Default::default()
        }
    }

    fn seen(hosts: Vec<HostStatus>) -> Seen {
        Seen { hosts, mistake: None, waits_for: None }
    }

    fn pool() -> StoragePool {
        StoragePool::new("p", Default::default())
    }

    #[test]
    fn a_pool_is_ready_where_all_its_hosts_are() {
        for (hosts, ready, reason, shown) in [
            (vec![], "False", "NoHosts", "0/0"),
            (vec![host("a", "Ready", 1), host("b", "Ready", 0)], "True", "AllHostsReady", "2/2"),
            (vec![host("a", "Ready", 1), host("b", "Away", 0)], "False", "HostsNotReady", "1/2"),
            (vec![host("a", "Down", 0)], "False", "HostsNotReady", "0/1"),
        ] {
            let status = status(&pool(), &Default::default(), seen(hosts), "now");
            let Condition { status: is_ready, reason: why, .. } = &status.conditions[0];
            assert_eq!((is_ready.as_str(), why.as_str(), status.hosts_ready.as_deref()), (ready, reason, Some(shown)));
        }
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let time = |status: &StoragePoolStatus| status.conditions[0].last_transition_time.clone();
        let first = status(&pool(), &Default::default(), seen(vec![host("a", "Ready", 0)]), "1");
        let second = status(&pool(), &first, seen(vec![host("a", "Ready", 1)]), "2");
        let third = status(&pool(), &second, seen(vec![host("a", "Away", 1)]), "3");
        assert_eq!((time(&first), time(&second), time(&third)), ("1".into(), "1".into(), "3".into()));
        let told = |before, now| news(before, now).into_iter().map(|(_, reason, _)| reason).collect::<Vec<_>>();
        assert_eq!(told(&first, &second), Vec::<String>::new());
        assert_eq!(told(&second, &third), ["HostAway"]);
        assert_eq!(told(&third, &second), ["HostReady"]);
    }

    #[test]
    fn what_the_end_of_a_pool_waits_for() {
        for (hosts, waits) in [
            (vec![], None),
            (vec![host("a", "Ready", 0)], None),
            (vec![host("a", "Ready", 2), host("b", "Ready", 0)], Some("2 volumes and 0 snapshots on a")),
            // its host may have something that nobody has heard of
            (vec![host("a", "Away", 0)], Some("on a is not known")),
            // one that never opened it has nothing
            (vec![HostStatus { store: None, ..host("a", "Waiting", 0) }], None),
        ] {
            let found = waits_for(&hosts);
            assert_eq!(found.is_some(), waits.is_some(), "{hosts:?}");
            assert!(waits.is_none_or(|waits| found.as_ref().is_some_and(|found| found.contains(waits))), "{found:?}");
        }
    }
}
