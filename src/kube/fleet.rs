//! The fleet of a cluster: its StoragePools, and its nodes as hosts. A node is a host from the moment kubelet has registered
//! the driver on it until its Node object is gone; a driver that is just being replaced is no node that has left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::CSINode;
use kube::api::PartialObjectMeta;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::Notify;

use super::pool::StoragePool;
use crate::config::{self, FleetPool, HostSpec};
use crate::domain::{NodeId, NodeName};

/// Where a cluster's hosts listen for controllers.
const PORT: u16 = 7443;
/// Changes that come together are taken in together.
const TOGETHER: Duration = Duration::from_millis(50);

/// What the cluster holds of the fleet, followed.
pub struct Followed {
    /// The pools.
    pub pools: Store<StoragePool>,
    drivers: Store<CSINode>,
    machines: Store<PartialObjectMeta<Node>>,
}

/// A pool of which something is wrong, for its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The pool.
    pub pool: String,
    /// What.
    pub what: String,
}

/// What becomes of the cluster's objects.
#[derive(Debug, Default)]
pub struct Read {
    /// The fleet.
    pub fleet: config::Fleet,
    /// Pools that are in no fleet, and why.
    pub mistakes: Vec<Mistake>,
}

/// What was read before, and holds where nothing better can be read.
#[derive(Debug, Default)]
pub struct Remembered {
    hosts: BTreeMap<NodeName, NodeId>,
    pools: BTreeMap<String, Pool>,
}

/// A pool, and the hosts outside the cluster that it names.
type Pool = (FleetPool, Vec<HostSpec>);

/// Begins to follow the cluster. The future never ends by itself; what it follows can be read as soon as it has begun.
pub fn follow(client: &Client, changed: &Arc<Notify>) -> (Followed, impl Future<Output = ()> + Send + 'static) {
    let (pools, pools_writer) = reflector::store();
    let (drivers, drivers_writer) = reflector::store();
    let (machines, machines_writer) = reflector::store();
    let config = watcher::Config::default;
    let of_pools = reflector::reflector(pools_writer, watcher(Api::<StoragePool>::all(client.clone()), config()));
    let of_drivers = reflector::reflector(drivers_writer, watcher(Api::<CSINode>::all(client.clone()), config()));
    let of_machines =
        reflector::reflector(machines_writer, watcher(Api::<PartialObjectMeta<Node>>::all(client.clone()), config()));
    let all = {
        let (one, two, three) = (Arc::clone(changed), Arc::clone(changed), Arc::clone(changed));
        async move {
            tokio::join!(
                drain("pools", of_pools, one),
                drain("drivers", of_drivers, two),
                drain("nodes", of_machines, three)
            );
        }
    };
    (Followed { pools, drivers, machines }, all)
}

/// A cluster that does not answer changes nothing, and is asked again, less and less often.
async fn drain<K>(
    what: &str,
    stream: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send,
    changed: Arc<Notify>,
) {
    let stream = stream.default_backoff();
    tokio::pin!(stream);
    while let Some(event) = stream.next().await {
        match event {
            Ok(_) => changed.notify_one(),
            Err(error) => {
                tracing::warn!(error = %crate::domain::error::chain(&error), "the cluster's {what} stay as they were seen last")
            }
        }
    }
}

impl Followed {
    /// Waits until all of it was read once.
    pub async fn ready(&self) {
        let (pools, drivers, machines) = tokio::join!(
            self.pools.wait_until_ready(),
            self.drivers.wait_until_ready(),
            self.machines.wait_until_ready()
        );
        // a writer that is gone will never be ready; its task's end is the process's
        if pools.is_err() || drivers.is_err() || machines.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The fleet as it is now.
    pub fn read(&self, driver: &str, remembered: &mut Remembered) -> Read {
        let machines: BTreeMap<String, BTreeMap<String, String>> =
            self.machines.state().iter().map(|node| (node.name_any(), node.labels().clone())).collect();
        let registered: Vec<String> = self.drivers.state().iter().filter_map(|node| node_id(node, driver)).collect();
        note_hosts(&mut remembered.hosts, &machines, &registered);
        let pools: Vec<StoragePool> = self.pools.state().iter().map(|pool| (**pool).clone()).collect();
        fleet(&pools, remembered, &machines)
    }

    /// Waits until changes have come, and for those that come with them.
    pub async fn changed(changed: &Notify) {
        changed.notified().await;
        tokio::time::sleep(TOGETHER).await;
    }
}

fn node_id(node: &CSINode, driver: &str) -> Option<String> {
    node.spec.drivers.iter().find(|of| of.name == driver).map(|of| of.node_id.clone())
}

/// Takes over what kubelets have registered, and forgets machines that are no nodes any more.
fn note_hosts(
    known: &mut BTreeMap<NodeName, NodeId>,
    machines: &BTreeMap<String, BTreeMap<String, String>>,
    registered: &[String],
) {
    for text in registered {
        match text.parse::<NodeId>() {
            Ok(id) => {
                known.insert(id.name.clone(), id);
            }
            Err(error) => tracing::warn!(node = text, %error, "a node registered the driver with an id that is none"),
        }
    }
    known.retain(|name, _| machines.contains_key(&name.to_string()));
}

/// The fleet of these objects. A pool that has become wrong stays as it was.
fn fleet(
    pools: &[StoragePool],
    remembered: &mut Remembered,
    machines: &BTreeMap<String, BTreeMap<String, String>>,
) -> Read {
    let Remembered { hosts, pools: before } = remembered;
    let (mut read, mut mistakes) = (BTreeMap::new(), Vec::new());
    for pool in pools {
        let name = pool.name_any();
        let parsed = read_pool(pool, hosts, machines).map_err(|what| {
            mistakes.push(Mistake { pool: name.clone(), what });
        });
        if let Some(parsed) = parsed.ok().or_else(|| before.remove(&name)) {
            read.insert(name, parsed);
        }
    }
    *before = read;
    let mut all: BTreeMap<NodeName, HostSpec> = hosts.iter().map(|(name, id)| (name.clone(), host_spec(id))).collect();
    for (name, (_, external)) in before.iter() {
        for host in external {
            let other = all.entry(host.name.clone()).or_insert_with(|| host.clone());
            if other != host {
                let what = format!("host {} has other addresses elsewhere: {}", host.name, other.addresses.join(", "));
                mistakes.push(Mistake { pool: name.clone(), what });
            }
        }
    }
    let of_fleet = before.values().map(|(pool, _)| pool.clone()).collect();
    Read { fleet: config::Fleet { hosts: all.into_values().collect(), pools: Some(of_fleet) }, mistakes }
}

fn host_spec(id: &NodeId) -> HostSpec {
    let address = |ip: &IpAddr| std::net::SocketAddr::new(*ip, PORT).to_string();
    HostSpec { name: id.name.clone(), addresses: id.addresses.iter().map(address).collect(), stores: Vec::new() }
}

fn read_pool(
    pool: &StoragePool,
    hosts: &BTreeMap<NodeName, NodeId>,
    machines: &BTreeMap<String, BTreeMap<String, String>>,
) -> Result<Pool, String> {
    let mut external = Vec::new();
    for host in &pool.spec.external_hosts {
        let name: NodeName = host.name.parse().map_err(|error| format!("externalHosts: {error}"))?;
        if hosts.contains_key(&name) {
            return Err(format!("externalHosts: {name} is a node of the cluster"));
        }
        if host.addresses.is_empty() || !host.addresses.iter().all(|address| config::is_address(address)) {
            return Err(format!("externalHosts: {name} needs addresses of the form ADDR:PORT"));
        }
        external.push(HostSpec { name, addresses: host.addresses.clone(), stores: Vec::new() });
    }
    let mut carried: BTreeSet<NodeName> = external.iter().map(|host| host.name.clone()).collect();
    match (&pool.spec.hosts, &pool.spec.node_selector) {
        (Some(names), _) => {
            for name in names {
                carried.insert(name.parse().map_err(|error| format!("hosts: {error}"))?);
            }
        }
        (None, Some(selector)) => {
            let fits =
                |labels: &BTreeMap<String, String>| selector.iter().all(|(key, value)| labels.get(key) == Some(value));
            let fitting = |name: &&NodeName| machines.get(&name.to_string()).is_some_and(fits);
            carried.extend(hosts.keys().filter(fitting).cloned());
        }
        (None, None) if external.is_empty() => carried.extend(hosts.keys().cloned()),
        (None, None) => {}
    }
    let carried: Vec<NodeName> = carried.into_iter().collect();
    let (spec, text) = pool.spec.entry(&pool.name_any(), &carried).map_err(|error| error.to_string())?;
    Ok((FleetPool { spec, text }, external))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pool(name: &str, spec: serde_json::Value) -> StoragePool {
        let mut spec = spec;
        spec["dir"] = json!({ "path": format!("/srv/{name}") });
        StoragePool::new(name, serde_json::from_value(spec).unwrap())
    }

    fn machines(of: &[(&str, &str)]) -> BTreeMap<String, BTreeMap<String, String>> {
        let labels = |disk: &str| [("disk".to_owned(), disk.to_owned())].into();
        of.iter().map(|(name, disk)| ((*name).to_owned(), labels(disk))).collect()
    }

    #[test]
    fn which_hosts_carry_a_pool() {
        let machines = machines(&[("a", "fast"), ("b", "slow"), ("c", "fast")]);
        let mut known = Remembered::default();
        // c's kubelet knows no driver yet
        note_hosts(
            &mut known.hosts,
            &machines,
            &["a,10.0.0.1,fd00::1".into(), "b,10.0.0.2".into(), "no address".into()],
        );
        let external = json!([{ "name": "filer", "addresses": ["10.1.0.1:7443"] }]);
        for (spec, carried) in [
            (json!({}), vec!["a", "b"]),
            (json!({ "hosts": ["b", "later"] }), vec!["b"]),
            (json!({ "nodeSelector": { "disk": "fast" } }), vec!["a"]),
            (json!({ "nodeSelector": {} }), vec!["a", "b"]),
            (json!({ "externalHosts": external }), vec!["filer"]),
            (json!({ "externalHosts": external, "hosts": ["a"] }), vec!["a", "filer"]),
        ] {
            let read = fleet(&[pool("p", spec.clone())], &mut known, &machines);
            assert_eq!(read.mistakes, [], "{spec}");
            let of_fleet = &read.fleet.pools.as_ref().unwrap()[0];
            let hosts: Vec<String> = read.fleet.hosts.iter().map(|host| host.name.to_string()).collect();
            let on: Vec<&String> =
                hosts.iter().filter(|host| of_fleet.spec.may_be_on(&host.parse().unwrap())).collect();
            assert_eq!(on, carried, "{spec}");
        }
        let of_a = fleet(&[], &mut known, &machines).fleet.hosts.remove(0);
        assert_eq!(of_a.addresses, ["10.0.0.1:7443", "[fd00::1]:7443"]);
    }

    #[test]
    fn a_node_is_a_host_until_it_is_deleted() {
        let (mut known, both) = (BTreeMap::new(), machines(&[("a", ""), ("b", "")]));
        note_hosts(&mut known, &both, &["a,10.0.0.1".into(), "b,10.0.0.2".into()]);
        // the driver's pod on b is being replaced, and a has another address
        note_hosts(&mut known, &both, &["a,10.0.0.9".into()]);
        let ids = |known: &BTreeMap<NodeName, NodeId>| known.values().map(NodeId::to_string).collect::<Vec<_>>();
        assert_eq!(ids(&known), ["a,10.0.0.9", "b,10.0.0.2"]);
        note_hosts(&mut known, &machines(&[("a", "")]), &["a,10.0.0.9".into()]);
        assert_eq!(ids(&known), ["a,10.0.0.9"]);
    }

    #[test]
    fn one_wrong_pool_keeps_no_other_away() {
        let machines = machines(&[("a", "")]);
        let mut known = Remembered::default();
        note_hosts(&mut known.hosts, &machines, &["a,10.0.0.1".into()]);
        for (spec, what) in [
            (json!({ "reserve": "much" }), "reserve"),
            (json!({ "hosts": ["A!"] }), "hosts"),
            (json!({ "externalHosts": [{ "name": "a", "addresses": ["10.0.0.1:7443"] }] }), "node of the cluster"),
            (json!({ "externalHosts": [{ "name": "x", "addresses": ["10.0.0.1"] }] }), "ADDR:PORT"),
            (json!({ "lost": ["x"] }), "lost"),
        ] {
            let read = fleet(&[pool("wrong", spec), pool("right", json!({}))], &mut known, &machines);
            let pools: Vec<String> = read.fleet.pools.unwrap().iter().map(|pool| pool.spec.name.to_string()).collect();
            assert_eq!(pools, ["right"]);
            assert_eq!(read.mistakes[0].pool, "wrong");
            assert!(read.mistakes[0].what.contains(what), "{what}: {}", read.mistakes[0].what);
        }
        // one that was right stays as it was
        let read = fleet(&[pool("right", json!({ "reserve": "much" }))], &mut known, &machines);
        assert_eq!((read.fleet.pools.unwrap().len(), read.mistakes.len()), (1, 1));
        assert!(fleet(&[], &mut known, &machines).fleet.pools.unwrap().is_empty());
    }
}
