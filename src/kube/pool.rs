//! StoragePool: an entry of pools.yaml as an object of Kubernetes, and what is known of it. What an entry may say is decided
//! by one parser (`config`); the rules here tell a person of the commonest mistakes before the object is stored.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{self, ConfigError};
use crate::domain::{NodeName, PoolSpec};

/// Storage that StorageClasses name: where it is, and on which hosts.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "cistern.dev",
    version = "v1alpha1",
    kind = "StoragePool",
    shortname = "spool",
    category = "storage",
    status = "StoragePoolStatus",
    derive = "PartialEq",
    doc = "Storage given to volumes: what it is made of, and the hosts that carry it.",
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 40")
        .message("a pool's name is a DNS label of at most 40 characters: a-z, 0-9 and -"),
    printcolumn(name = "Medium", type_ = "string", json_path = ".status.medium"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Hosts", type_ = "string", json_path = ".status.hostsReady"),
    printcolumn(name = "Total", type_ = "string", json_path = ".status.total"),
    printcolumn(name = "Available", type_ = "string", json_path = ".status.available"),
    printcolumn(name = "Volumes", type_ = "integer", json_path = ".status.volumes"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.dir)").message("say what the pool is made of: dir"),
    validation = Rule::new("!(has(self.hosts) && has(self.nodeSelector))")
        .message("say which hosts carry the pool by hosts or by nodeSelector, not by both")
)]
pub struct StoragePoolSpec {
    /// A directory of disk images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<Dir>,
    /// How much may be promised for each byte there is, from 1 (the default) to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1.0 && self <= 1000.0").message("overcommit is a factor from 1 to 1000"))]
    pub overcommit: Option<f64>,
    /// What is never given out of each store, such as 10Gi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve: Option<String>,
    /// Stores that are gone for good, by the identity that the status shows: what they held may be deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
    /// The hosts that carry the pool, by name. Without this and nodeSelector every node does, or every external host if there
    /// are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// The nodes that carry the pool, by their labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Storage servers outside the cluster that carry the pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external_hosts: Vec<ExternalHost>,
}

/// A directory of disk images.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.path == oldSelf.path").message("dir.path cannot be changed: make another pool"),
    validation = Rule::new("has(self.image) == has(oldSelf.image)")
        .message("a pool that is one file stays one, and another cannot become one: make another pool")
)]
pub struct Dir {
    /// An absolute path on each host.
    #[x_kube(validation = Rule::new("self.startsWith('/')").message("dir.path is absolute"))]
    pub path: String,
    /// Makes the pool one file in that directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
}

/// The one file that a pool is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// Its size, such as 200Gi. It can be raised.
    #[x_kube(validation = Rule::new("!isQuantity(self) || !isQuantity(oldSelf) || quantity(self).compareTo(quantity(oldSelf)) >= 0")
        .message("dir.image.size can be raised, and never lowered"))]
    pub size: String,
}

/// A storage server outside the cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalHost {
    /// Its name, which its certificate bears.
    pub name: String,
    /// Where it listens, the best first: ADDR:PORT.
    pub addresses: Vec<String>,
}

/// What is known of a pool.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StoragePoolStatus {
    /// The generation that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What the pool is made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub medium: Option<String>,
    /// Ready: all hosts serve it. Deleting: what its deletion waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// How many of its hosts serve it, such as 2/3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts_ready: Option<String>,
    /// The hosts that carry it, or are to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostStatus>,
    /// All there is, over all hosts that serve it, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<String>,
    /// What is promised to volumes and snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated: Option<String>,
    /// What may still be promised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<String>,
    /// How many volumes there are.
    #[serde(default)]
    pub volumes: i64,
    /// How many snapshots there are.
    #[serde(default)]
    pub snapshots: i64,
}

/// One host's part of a pool.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// The host.
    pub name: String,
    /// Ready, Down (the host answers, its pool does not), Away (the host does not answer) or Waiting (not heard yet).
    pub state: String,
    /// The store's identity, also while the host is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// All there is, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<i64>,
    /// What is promised to volumes and snapshots, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated_bytes: Option<i64>,
    /// What may still be promised, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<i64>,
    /// How many volumes it has.
    #[serde(default)]
    pub volumes: i64,
    /// How many snapshots it has.
    #[serde(default)]
    pub snapshots: i64,
}

/// A condition, as Kubernetes has them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is said.
    pub r#type: String,
    /// True, False or Unknown.
    pub status: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// Since when it is so.
    pub last_transition_time: String,
}

impl StoragePoolSpec {
    /// The entry that hosts are sent, as JSON, and what it says. `hosts` are those that it is to be on.
    ///
    /// # Errors
    /// The entry says something that is not so; the message is for the pool's owner.
    pub fn entry(&self, name: &str, hosts: &[NodeName]) -> Result<(PoolSpec, String), ConfigError> {
        let own = StoragePoolSpec { hosts: None, node_selector: None, external_hosts: Vec::new(), ..self.clone() };
        let broken = |error: serde_json::Error| ConfigError::Entry { message: error.to_string() };
        let mut entry = serde_json::to_value(own).map_err(broken)?;
        entry["name"] = name.into();
        entry["hosts"] = hosts.iter().map(NodeName::to_string).collect::<Vec<_>>().into();
        let text = entry.to_string();
        Ok((config::parse_entry(&text)?, text))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    /// `CISTERN_WRITE=1 cargo test the_chart_has_the_definition` writes it anew.
    #[test]
    fn the_chart_has_the_definition_that_the_code_makes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/cistern/crds/storagepools.yaml");
        let made = serde_yaml::to_string(&StoragePool::crd()).unwrap();
        let made = format!("# Made of src/kube/pool.rs, and held against it by a test there.\n{made}");
        if std::env::var_os("CISTERN_WRITE").is_some() {
            std::fs::write(path, &made).unwrap();
        }
        let there = std::fs::read_to_string(path).unwrap();
        assert!(there == made, "{path} is not what the code makes");
    }

    #[test]
    fn an_entry_is_one_of_pools_yaml() {
        let spec = StoragePoolSpec {
            dir: Some(Dir { path: "/srv/p".into(), image: Some(Image { size: "20Gi".into() }) }),
            overcommit: Some(2.0),
            node_selector: Some([("disk".to_owned(), "fast".to_owned())].into()),
            ..Default::default()
        };
        let (parsed, text) = spec.entry("fast", &["a".parse().unwrap()]).unwrap();
        assert_eq!(parsed.name.to_string(), "fast");
        assert!(parsed.may_be_on(&"a".parse().unwrap()) && !parsed.may_be_on(&"b".parse().unwrap()));
        assert!(!text.contains("nodeSelector"), "{text}");
        let nothing = StoragePoolSpec::default().entry("p", &[]).unwrap_err().to_string();
        assert!(nothing.contains("dir"), "{nothing}");
    }
}
