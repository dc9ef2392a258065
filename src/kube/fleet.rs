//! The fleet of a cluster, from its objects: every node that has the driver is a host, StoragePools are the pools. Pure: what
//! was seen goes in, the fleet and what is wrong with it come out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use kube::ResourceExt;

use super::pool::{self, StoragePool};
use crate::config::{self, FleetPool, HostSpec};
use crate::domain::error::chain;
use crate::domain::{NodeId, NodeName, StoreId};

/// Where hosts of a cluster listen for controllers.
pub const HOST_PORT: u16 = 7443;

/// What was seen of the cluster's objects, by their names.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The pools, each as it was last understood.
    pub pools: BTreeMap<String, StoragePool>,
    /// Pools that cannot be understood as they are now, and why.
    pub misread: BTreeMap<String, String>,
    /// The labels of each node.
    pub nodes: BTreeMap<String, BTreeMap<String, String>>,
    /// The id that the driver has on each node, from its CSINode. It stays when the driver is taken from there: kubelet does
    /// that whenever the driver starts anew, and a host that is not in the fleet is not asked for names.
    pub drivers: BTreeMap<String, String>,
    /// The pools that are in force.
    pub in_force: BTreeMap<String, FleetPool>,
}

/// What a pool comes to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// The hosts that are to carry it.
    pub hosts: BTreeSet<NodeName>,
    /// Why its spec is not in force; what was in force before is, if anything was.
    pub refused: Option<String>,
    /// What else its owner should look at.
    pub warnings: Vec<String>,
}

/// The fleet, and what each pool comes to.
#[derive(Debug, Clone, Default)]
pub struct Made {
    /// The fleet.
    pub fleet: config::Fleet,
    /// What each pool comes to, by name.
    pub plans: BTreeMap<String, Plan>,
    /// Nodes that are no hosts though they have the driver, and why.
    pub strange: BTreeMap<String, String>,
}

/// Makes the fleet.
pub fn make(seen: &Seen) -> Made {
    let mut made = Made::default();
    let mut hosts = nodes(seen, &mut made.strange);
    let cluster: BTreeSet<NodeName> = hosts.keys().cloned().collect();
    // the older one keeps its place where two overlap
    let mut pools: Vec<&StoragePool> = seen.pools.values().collect();
    pools.sort_by_key(|pool| (pool.creation_timestamp(), pool.name_any()));
    let mut entries = Vec::new();
    for pool in pools {
        let name = pool.name_any();
        let mut plan = Plan { refused: seen.misread.get(&name).cloned(), ..Plan::default() };
        let external = external_hosts(pool, &cluster, &mut hosts, &mut plan.warnings);
        plan.hosts = chosen(pool, seen, &cluster, external, &mut plan.warnings);
        let entry = pool::entry(pool).map_err(|error| chain(&error));
        let entry = entry.map_err(|why| plan.refused.get_or_insert(why)).ok();
        if let Some(FleetPool { spec, text }) = entry.or_else(|| seen.in_force.get(&name).cloned()) {
            let hosts = Some(plan.hosts.iter().cloned().collect());
            entries.push(FleetPool { spec: crate::domain::PoolSpec { hosts, ..spec }, text });
        }
        made.plans.insert(name, plan);
    }
    made.fleet = config::Fleet { hosts: hosts.into_values().collect(), pools: Some(entries) };
    made
}

/// The cluster's own hosts: nodes with the driver, and nodes that had it and still are there.
fn nodes(seen: &Seen, strange: &mut BTreeMap<String, String>) -> BTreeMap<NodeName, HostSpec> {
    let stores = stores_seen(seen);
    let mut hosts = BTreeMap::new();
    for (name, id) in &seen.drivers {
        match (id.parse::<NodeId>(), name.parse::<NodeName>()) {
            (Ok(id), Ok(name)) if id.name == name => {
                let address = |address| SocketAddr::new(address, HOST_PORT).to_string();
                let addresses = id.addresses.into_iter().map(address).collect();
                let seen = stores.get(&name).cloned().unwrap_or_default();
                hosts.insert(name.clone(), HostSpec { name, addresses, stores: Vec::new(), seen });
            }
            (Ok(id), Ok(_)) => {
                strange.insert(name.clone(), format!("the driver's id there is that of {}", id.name));
            }
            (Err(error), _) | (_, Err(error)) => {
                strange.insert(name.clone(), error.to_string());
            }
        }
    }
    // a controller that has just started knows of these from the pools' status alone: they are away, and not forgotten
    for (name, seen) in stores.iter().filter(|(name, _)| seen.nodes.contains_key(&name.to_string())) {
        let (stores, seen, addresses) = (Vec::new(), seen.clone(), Vec::new());
        hosts.entry(name.clone()).or_insert_with(|| HostSpec { name: name.clone(), addresses, stores, seen });
    }
    hosts
}

/// The stores that the pools' status has with each host. A hint where a store may be, and no proof that it is there.
fn stores_seen(seen: &Seen) -> BTreeMap<NodeName, Vec<StoreId>> {
    let mut stores: BTreeMap<NodeName, Vec<StoreId>> = BTreeMap::new();
    let hosts = seen.pools.values().filter_map(|pool| pool.status.as_ref()).flat_map(|status| &status.hosts);
    for host in hosts {
        if let (Ok(name), Ok(store)) = (host.host.parse(), host.store.parse()) {
            stores.entry(name).or_default().push(StoreId(store));
        }
    }
    stores
}

/// Adds a pool's external hosts to the fleet, and answers which they are.
fn external_hosts(
    pool: &StoragePool,
    cluster: &BTreeSet<NodeName>,
    hosts: &mut BTreeMap<NodeName, HostSpec>,
    warnings: &mut Vec<String>,
) -> BTreeSet<NodeName> {
    let mut external = BTreeSet::new();
    for host in &pool.spec.external_hosts {
        let name: NodeName = match host.name.parse() {
            Ok(name) => name,
            Err(error) => {
                warnings.push(format!("externalHosts: {error}"));
                continue;
            }
        };
        let wrong = host.addresses.iter().find(|address| !config::is_address(address));
        if let Some(wrong) = wrong {
            warnings.push(format!("external host {name}: {wrong:?} is not ADDR:PORT"));
        } else if cluster.contains(&name) {
            warnings.push(format!("external host {name} has the name of a node of the cluster"));
        } else if hosts.get(&name).is_some_and(|other| other.addresses != host.addresses) {
            warnings.push(format!("external host {name} stands in an older pool with other addresses"));
        } else {
            let addresses = host.addresses.clone();
            let (stores, seen) = (Vec::new(), Vec::new());
            hosts.entry(name.clone()).or_insert_with(|| HostSpec { name: name.clone(), addresses, stores, seen });
            external.insert(name);
        }
    }
    external
}

/// The hosts that are to carry a pool.
fn chosen(
    pool: &StoragePool,
    seen: &Seen,
    cluster: &BTreeSet<NodeName>,
    mut external: BTreeSet<NodeName>,
    warnings: &mut Vec<String>,
) -> BTreeSet<NodeName> {
    let spec = &pool.spec;
    match (&spec.hosts, &spec.node_selector) {
        (Some(names), _) => {
            for name in names {
                match name.parse::<NodeName>() {
                    Err(error) => warnings.push(format!("hosts: {error}")),
                    Ok(name) => {
                        if !cluster.contains(&name) && !external.contains(&name) {
                            warnings.push(format!("host {name} is no node that has the driver"));
                        }
                        external.insert(name);
                    }
                }
            }
        }
        (None, Some(labels)) => {
            let fits = |name: &&NodeName| {
                let of_node = seen.nodes.get(&name.to_string());
                of_node.is_some_and(|of_node| labels.iter().all(|(key, value)| of_node.get(key) == Some(value)))
            };
            external.extend(cluster.iter().filter(fits).cloned());
        }
        (None, None) if external.is_empty() => external.extend(cluster.iter().cloned()),
        (None, None) => {}
    }
    external
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const STORE: &str = "0188e4b1-7c3a-4f00-8a1b-00ff00ff00ff";

    fn pool(name: &str, spec: &str) -> (String, StoragePool) {
        (name.to_owned(), StoragePool::new(name, serde_yaml::from_str(spec).unwrap()))
    }

    /// Nodes a (disk=fast), b and c; the driver on a and b.
    fn seen(pools: &[(&str, &str)]) -> Seen {
        let labels = |fast: bool| fast.then(|| ("disk".to_owned(), "fast".to_owned())).into_iter().collect();
        Seen {
            pools: pools.iter().map(|(name, spec)| pool(name, spec)).collect(),
            nodes: [("a", true), ("b", false), ("c", true)].map(|(name, fast)| (name.to_owned(), labels(fast))).into(),
            drivers: [("a", "a,10.0.0.1,fd00::1"), ("b", "b,10.0.0.2")].map(|(n, id)| (n.into(), id.into())).into(),
            ..Seen::default()
        }
    }

    fn names(hosts: &BTreeSet<NodeName>) -> String {
        hosts.iter().map(NodeName::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_pool_is_on_the_hosts_that_its_spec_chooses() {
        for (spec, hosts, warning) in [
            ("", "a b", ""),
            ("nodeSelector: { disk: fast }", "a", ""),
            ("nodeSelector: { disk: slow }", "", ""),
            ("hosts: [b]", "b", ""),
            ("hosts: [b, c]", "b c", "host c is no node that has the driver"),
            ("hosts: [B]", "", "machine's name"),
            ("externalHosts: [{ name: san, addresses: ['10.0.0.9:7443'] }]", "san", ""),
            ("hosts: [a]\nexternalHosts: [{ name: san, addresses: ['10.0.0.9:7443'] }]", "a san", ""),
            ("hosts: [san]\nexternalHosts: [{ name: san, addresses: ['10.0.0.9:7443'] }]", "san", ""),
            ("externalHosts: [{ name: a, addresses: ['10.0.0.9:7443'] }]", "a b", "the name of a node"),
            ("hosts: [a]\nexternalHosts: [{ name: san, addresses: ['10.0.0.9'] }]", "a", "ADDR:PORT"),
        ] {
            let made = make(&seen(&[("p", &format!("dir: {{ path: /srv }}\n{spec}"))]));
            let plan = &made.plans["p"];
            assert_eq!(names(&plan.hosts), hosts, "{spec}");
            assert_eq!(warning.is_empty(), plan.warnings.is_empty(), "{spec}: {:?}", plan.warnings);
            assert!(plan.warnings.iter().all(|said| said.contains(warning)), "{spec}: {:?}", plan.warnings);
            let of_fleet = &made.fleet.pools.as_ref().unwrap()[0];
            assert!(
                made.fleet
                    .hosts
                    .iter()
                    .all(|host| of_fleet.spec.may_be_on(&host.name) == plan.hosts.contains(&host.name))
            );
        }
    }

    #[test]
    fn hosts_are_the_nodes_that_have_the_driver() {
        let made = make(&seen(&[]));
        let hosts: Vec<_> =
            made.fleet.hosts.iter().map(|host| (host.name.to_string(), host.addresses.clone())).collect();
        let addresses = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            hosts,
            [
                ("a".into(), addresses(&["10.0.0.1:7443", "[fd00::1]:7443"])),
                ("b".into(), addresses(&["10.0.0.2:7443"]))
            ]
        );
        assert_eq!(made.fleet.pools, Some(Vec::new()), "hosts are told that there are no pools");
    }

    #[test]
    fn an_id_that_is_none_costs_its_own_host_alone() {
        for (id, why) in [("b", "node id"), ("b,x", "node id"), ("a,10.0.0.9", "that of a"), ("", "node id")] {
            let mut seen = seen(&[]);
            seen.drivers.insert("b".into(), id.into());
            let made = make(&seen);
            assert_eq!(made.fleet.hosts.len(), 1);
            assert!(made.strange["b"].contains(why), "{:?}", made.strange);
        }
    }

    #[test]
    fn a_spec_that_is_none_leaves_in_force_what_was() {
        let good = make(&seen(&[("p", "dir: { path: /srv }")])).fleet.pools.unwrap();
        let mut seen = seen(&[("p", "dir: { path: srv }"), ("q", "dir: { path: /q }")]);
        assert_eq!(make(&seen).fleet.pools.unwrap().len(), 1);
        seen.in_force.insert("p".into(), good[0].clone());
        let made = make(&seen);
        assert!(made.plans["p"].refused.as_ref().unwrap().contains("absolute"), "{:?}", made.plans);
        let texts: Vec<_> = made.fleet.pools.unwrap().into_iter().map(|pool| pool.text).collect();
        assert!(texts.len() == 2 && texts.contains(&good[0].text), "{texts:?}");
    }

    #[test]
    fn a_node_that_had_a_store_is_not_forgotten_while_it_is_in_the_cluster() {
        let mut seen = seen(&[("p", "dir: { path: /srv }")]);
        let status: pool::StoragePoolStatus = serde_json::from_value(serde_json::json!({
            "hosts": [{ "host": "c", "state": "Ready", "store": STORE }, { "host": "d", "state": "Ready", "store": STORE }],
        }))
        .unwrap();
        seen.pools.get_mut("p").unwrap().status = Some(status);
        let made = make(&seen);
        let hosts: Vec<_> = made.fleet.hosts.iter().map(|host| (host.name.to_string(), host.seen.len())).collect();
        assert_eq!(hosts, [("a".into(), 0), ("b".into(), 0), ("c".into(), 1)], "d is no node any more");
    }

    #[test]
    fn an_external_host_has_one_set_of_addresses_the_older_pools() {
        let external = |port| {
            format!("{{ dir: {{ path: /srv/{port} }}, externalHosts: [{{ name: san, addresses: ['x:{port}'] }}] }}")
        };
        let made = make(&seen(&[("p", &external(1)), ("q", &external(2))]));
        assert_eq!(made.fleet.hosts.iter().find(|host| host.name.to_string() == "san").unwrap().addresses, ["x:1"]);
        assert!(made.plans["q"].warnings[0].contains("older pool"), "{:?}", made.plans);
    }
}
