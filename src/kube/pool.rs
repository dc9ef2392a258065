//! StoragePool: an entry of pools.yaml as an object of the cluster. What an entry may say is read in one place,
//! `config::parse_entry`; what stands here is what the API server can tell people at once, and what may not change.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema, ResourceExt};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::{ConfigError, FleetPool, parse_entry};

/// Keeps a pool until what it holds is gone.
pub const FINALIZER: &str = "cistern.dev/holds-volumes";

/// A pool: a medium, and the hosts that carry it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "cistern.dev",
    version = "v1alpha1",
    kind = "StoragePool",
    plural = "storagepools",
    shortname = "spool",
    status = "StoragePoolStatus",
    derive = "PartialEq",
    doc = "A pool of storage that StorageClasses name: a medium, and the hosts that carry it.",
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$')")
        .message("a pool's name is a DNS label of at most 40: small letters, digits and inner hyphens"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Hosts", type_ = "string", json_path = ".status.summary"),
    printcolumn(name = "Capacity", type_ = "string", json_path = ".status.capacity"),
    printcolumn(name = "Allocated", type_ = "string", json_path = ".status.allocated"),
    printcolumn(name = "Available", type_ = "string", json_path = ".status.available"),
    printcolumn(name = "Volumes", type_ = "integer", json_path = ".status.volumes"),
    printcolumn(name = "Snapshots", type_ = "integer", json_path = ".status.snapshots", priority = 1),
    printcolumn(name = "Overcommit", type_ = "number", json_path = ".status.overcommit", priority = 1),
    printcolumn(name = "Message", type_ = "string", priority = 1,
        json_path = ".status.conditions[?(@.type=='Ready')].message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.dir)").message("a pool needs exactly one medium; this release knows dir"),
    validation = Rule::new("has(self.dir) == has(oldSelf.dir)")
        .message("the medium of a pool never changes: make another pool"),
    validation = Rule::new("!(has(self.hosts) && has(self.nodeSelector))")
        .message("say hosts or nodeSelector, not both"),
)]
pub struct StoragePoolSpec {
    /// Disk-image files in a directory of each host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<Dir>,
    /// How much may be promised for each byte there is, 1 to 1000. 1 if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1.0 && self <= 1000.0").message("overcommit is between 1 and 1000"))]
    pub overcommit: Option<f64>,
    /// How much is never given out. A twentieth, from 32 MiB to 10 GiB, if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 30))]
    pub reserve: Option<String>,
    /// Identities of stores that are gone for good, as status shows them: what they held can be deleted then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(max = 36)))]
    pub lost: Vec<String>,
    /// The nodes that carry it, by name. Without hosts and nodeSelector every node does, or the external hosts alone if there
    /// are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 5000), inner(length(max = 63)))]
    pub hosts: Option<Vec<String>>,
    /// The nodes that carry it, by all of these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Hosts outside the cluster that carry it too. They have certificates of the cluster's authority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub external_hosts: Vec<ExternalHost>,
}

/// A directory of disk images.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    validation = Rule::new("self.path == oldSelf.path").message("the path of a pool never changes: make another pool"),
    validation = Rule::new("has(self.image) == has(oldSelf.image)")
        .message("a pool that was made as one file stays one file, and a directory stays a directory"),
)]
pub struct Dir {
    /// The directory on each host, made if it is not there.
    #[schemars(length(max = 4096))]
    #[x_kube(validation = Rule::new("self.startsWith('/') && !self.matches('(^|/)[.][.](/|$)')")
        .message("path is an absolute path without \"..\""))]
    pub path: String,
    /// Makes the pool one file, fully reserved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
}

/// A pool that is one file.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// Its size: a whole number with a suffix, such as 200Gi. It may be raised later.
    #[schemars(length(max = 30))]
    #[x_kube(validation = Rule::new("isQuantity(self)").message("size is a quantity such as 200Gi"))]
    #[x_kube(validation = Rule::new("!isQuantity(self) || !isQuantity(oldSelf) || \
        quantity(self).compareTo(quantity(oldSelf)) >= 0").message("the size of a pool's file may only grow"))]
    pub size: String,
}

/// A host outside the cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct ExternalHost {
    /// Its name, which its certificate bears. No node has it too.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Where it listens, the best first: ADDR:PORT.
    #[schemars(length(min = 1, max = 8), inner(length(max = 300)))]
    pub addresses: Vec<String>,
}

/// What is seen of a pool.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StoragePoolStatus {
    /// The generation of the spec that this is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted: the spec says what it may. Ready: every host that is to carry the pool does. Deleting: what its deletion
    /// waits for.
    #[serde(default)]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// How many hosts are ready, of how many that are to carry it.
    #[serde(default)]
    pub summary: String,
    /// All there is.
    #[serde(default)]
    pub capacity: String,
    /// What is promised to volumes and snapshots.
    #[serde(default)]
    pub allocated: String,
    /// What may still be promised.
    #[serde(default)]
    pub available: String,
    /// How much may be promised for each byte there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overcommit: Option<f64>,
    /// How many volumes there are.
    #[serde(default)]
    pub volumes: i64,
    /// How many snapshots there are.
    #[serde(default)]
    pub snapshots: i64,
    /// The hosts that carry it or did, as each is; those with trouble first where there are too many for one object.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["host"]))]
    pub hosts: Vec<HostStatus>,
}

/// A pool on one host.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// The host.
    pub host: String,
    /// How it is.
    pub state: HostState,
    /// The identity of its store, as it was last seen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub store: String,
    /// All there is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub total: String,
    /// What nothing uses now.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub free: String,
    /// What is promised to volumes and snapshots.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub allocated: String,
    /// What may still be promised.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub available: String,
    /// How many volumes its store holds.
    #[serde(default)]
    pub volumes: i64,
    /// How many snapshots its store holds.
    #[serde(default)]
    pub snapshots: i64,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How a pool is on one host.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostState {
    /// Its store is open.
    Ready,
    /// The host is here, and has not told of the pool yet.
    Pending,
    /// Its store is not open.
    Down,
    /// The host does not take the pool.
    Refused,
    /// The host does not answer.
    Away,
    /// The host is not to carry the pool any more, or left the cluster, and its store held something when it was last seen.
    Gone,
}

/// Kubernetes' conditions, as its own types have them.
fn conditions(_: &mut SchemaGenerator) -> Schema {
    let text = || json!({ "type": "string" });
    json_schema!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": text(),
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "observedGeneration": { "type": "integer", "format": "int64" },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "reason": text(),
                "message": text(),
            },
        },
    })
}

/// A spec is no pool.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// What it says is not so.
    #[error(transparent)]
    Entry(#[from] ConfigError),
    /// It cannot be written as an entry.
    #[error("the spec cannot be read")]
    Text(#[from] serde_json::Error),
}

/// The pool as hosts are told of it: an entry of pools.yaml. Which hosts are to carry it is no part of that: who is not to
/// is not told of it at all, and hosts that come and go change nothing for the others.
pub fn entry(pool: &StoragePool) -> Result<FleetPool, PoolError> {
    #[derive(Serialize)]
    struct Entry<'a> {
        name: String,
        #[serde(flatten)]
        spec: &'a StoragePoolSpec,
    }
    let spec = StoragePoolSpec { hosts: None, node_selector: None, external_hosts: Vec::new(), ..pool.spec.clone() };
    let text = serde_json::to_string(&Entry { name: pool.name_any(), spec: &spec })?;
    Ok(FleetPool { spec: parse_entry(&text)?, text })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kube::core::CustomResourceExt;

    use super::*;
    use crate::domain::MediumSpec;
    use crate::domain::size::GIB;

    fn pool(spec: &str) -> StoragePool {
        StoragePool::new("fast", serde_yaml::from_str(spec).unwrap())
    }

    #[test]
    fn a_spec_is_an_entry_of_pools_yaml() {
        let text = "
dir: { path: /srv/fast, image: { size: 4Gi } }
overcommit: 2
reserve: 1Gi
lost: [0188e4b1-7c3a-4f00-8a1b-00ff00ff00ff]
nodeSelector: { disk: fast }
externalHosts: [{ name: san, addresses: ['10.0.0.9:7443'] }]
";
        let FleetPool { spec, text } = entry(&pool(text)).unwrap();
        let MediumSpec::Dir(dir) = &spec.medium;
        assert_eq!((spec.name.to_string(), dir.image, spec.reserve), ("fast".to_owned(), Some(4 * GIB), Some(GIB)));
        assert_eq!((spec.lost.len(), spec.hosts.as_ref()), (1, None));
        assert!(!text.contains("nodeSelector") && !text.contains("external"), "{text}");
    }

    #[test]
    fn what_the_api_server_let_through_is_refused_with_the_words_of_pools_yaml() {
        for (spec, message) in [
            ("{}", "dir"),
            ("dir: { path: srv }", "absolute"),
            ("dir: { path: /srv, image: { size: 1.5Gi } }", "size"),
            ("{ dir: { path: /srv }, overcommit: 0.5 }", "overcommit"),
            ("{ dir: { path: /srv }, lost: [x] }", "lost"),
        ] {
            let error = crate::domain::error::chain(&entry(&pool(spec)).unwrap_err());
            assert!(error.contains(message), "{spec}: {error}");
        }
    }

    /// The CustomResourceDefinition stands in the chart as the code makes it: CISTERN_WRITE=1 writes it there.
    #[test]
    fn the_chart_has_the_definition() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/cistern/crds/storagepools.yaml");
        let definition = serde_yaml::to_string(&serde_json::to_value(StoragePool::crd()).unwrap()).unwrap();
        let definition =
            format!("# Made from src/kube/pool.rs; its test holds the two against each other.\n{definition}");
        if std::env::var_os("CISTERN_WRITE").is_some() {
            std::fs::write(path, &definition).unwrap();
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        let how = "CISTERN_WRITE=1 cargo test --lib the_chart_has_the_definition";
        assert!(there == definition, "{path} is not what the code makes: {how}");
    }
}
