//! hosts.yaml: the hosts of a fleet without Kubernetes, and the pools that its owner wants on them.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::pools::{ConfigError, parse_entry};
use crate::domain::{NodeName, PoolSpec, StoreId};

/// The fleet, as its owner wrote it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fleet {
    /// The hosts.
    pub hosts: Vec<HostSpec>,
    /// The pools that controllers bring to hosts; `None` where each host has its own and no controller brings any.
    pub pools: Option<Vec<FleetPool>>,
}

/// A host of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// Its name, which its certificate bears.
    pub name: NodeName,
    /// Where it listens, the best first: `ADDR:PORT`.
    pub addresses: Vec<String>,
    /// Stores that are this host's: nobody else's word for them counts, and ids of them can be placed before it was seen.
    #[serde(default)]
    pub stores: Vec<StoreId>,
}

/// A pool that controllers bring to hosts.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetPool {
    /// The pool.
    pub spec: PoolSpec,
    /// Its entry as JSON, as it is sent.
    pub text: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FleetText {
    hosts: Vec<HostSpec>,
    pools: Option<Vec<serde_json::Value>>,
}

impl Fleet {
    /// The entries of the pools that a host is to carry, as they are sent to it.
    pub fn entries_of(&self, host: &NodeName) -> Option<Vec<String>> {
        let pools = self.pools.as_ref()?.iter();
        Some(pools.filter(|pool| pool.spec.may_be_on(host)).map(|pool| pool.text.clone()).collect())
    }
}

/// Reads hosts.yaml.
pub fn read_hosts(path: &Path) -> Result<Fleet, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse_hosts(&text, path)
}

/// Parses the text of hosts.yaml; the path is for messages.
pub fn parse_hosts(text: &str, path: &Path) -> Result<Fleet, ConfigError> {
    let refuse = |message: String| ConfigError::Syntax { path: path.to_owned(), message };
    let text: FleetText = serde_yaml::from_str(text).map_err(|error| refuse(error.to_string()))?;
    let (mut names, mut stores) = (BTreeSet::new(), BTreeSet::new());
    for host in &text.hosts {
        if !names.insert(host.name.clone()) {
            return Err(refuse(format!("host {} is named twice", host.name)));
        }
        if host.addresses.is_empty() {
            return Err(refuse(format!("host {} has no addresses: write ADDR:PORT", host.name)));
        }
        for address in &host.addresses {
            is_address(address).then_some(()).ok_or_else(|| refuse(format!("{address:?} is not ADDR:PORT")))?;
        }
        for store in &host.stores {
            if !stores.insert(*store) {
                return Err(refuse(format!("store {store} stands with two hosts")));
            }
        }
    }
    let pools = text.pools.map(|pools| pools.into_iter().map(pool).collect::<Result<Vec<_>, _>>()).transpose()?;
    let (mut pool_names, known) = (BTreeSet::new(), &names);
    for pool in pools.iter().flatten() {
        let name = &pool.spec.name;
        if !pool_names.insert(name.clone()) {
            return Err(refuse(format!("pool {name} is named twice")));
        }
        if let Some(host) = pool.spec.hosts.iter().flatten().find(|host| !known.contains(host)) {
            return Err(refuse(format!("pool {name} is to be on {host}, which is no host of this file")));
        }
    }
    Ok(Fleet { hosts: text.hosts, pools })
}

fn pool(value: serde_json::Value) -> Result<FleetPool, ConfigError> {
    let text = value.to_string();
    Ok(FleetPool { spec: parse_entry(&text)?, text })
}

/// Whether this is `ADDR:PORT`, where ADDR is a name or an address (an IPv6 one in brackets).
pub fn is_address(text: &str) -> bool {
    let parts = text.rsplit_once(':').map(|(address, port)| (address, port.parse::<u16>()));
    let fits = |address: &str| {
        address.starts_with('[') == address.ends_with(']') && (!address.contains(':') || address.starts_with('['))
    };
    matches!(parts, Some((address, Ok(port))) if !address.is_empty() && port > 0 && fits(address))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Fleet, String> {
        parse_hosts(text, Path::new("hosts.yaml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_fleet_as_its_owner_wrote_it() {
        let fleet = parsed(
            "
hosts:
  - { name: a, addresses: ['10.0.0.1:7443'], stores: [0188e4b1-7c3a-4f00-8a1b-00ff00ff00ff] }
  - { name: b, addresses: ['b.example.com:7443', '[fd00::2]:7443'] }
pools:
  - { name: everywhere, dir: { path: /srv/p } }
  - { name: fast, dir: { path: /srv/fast }, hosts: [b], overcommit: 2 }
",
        )
        .unwrap();
        let names = |host: &str| -> Vec<String> {
            let entries = fleet.entries_of(&host.parse().unwrap()).unwrap();
            entries.iter().map(|entry| parse_entry(entry).unwrap().name.to_string()).collect()
        };
        assert_eq!((names("a"), names("b")), (vec!["everywhere".to_owned()], vec!["everywhere".into(), "fast".into()]));
        assert_eq!(parsed("hosts: []").unwrap().entries_of(&"a".parse().unwrap()), None);
    }

    #[test]
    fn mistakes_are_named() {
        let twice = "{name: a, addresses: ['x:1'], stores: [0188e4b1-7c3a-4f00-8a1b-00ff00ff00ff]}";
        for (text, message) in [
            ("hosts: [{name: a, addresses: []}]", "no addresses"),
            ("hosts: [{name: a, addresses: ['10.0.0.1']}]", "ADDR:PORT"),
            ("hosts: [{name: a, addresses: ['fd00::2:1']}]", "ADDR:PORT"),
            ("hosts: [{name: A, addresses: ['x:1']}]", "machine's name"),
            ("hosts: [{name: a, addresses: ['x:1']}, {name: a, addresses: ['x:1']}]", "twice"),
            (&format!("hosts: [{twice}, {}]", twice.replace("name: a", "name: b")), "two hosts"),
            ("hosts: []\npools: [{name: p, dir: {path: /x}, hosts: [c]}]", "no host of this file"),
            ("hosts: []\npools: [{name: p, dir: {path: x}}]", "absolute"),
            ("hosts: []\npools: [{name: p, dir: {path: /x}}, {name: p, dir: {path: /y}}]", "twice"),
            ("hosts: []\nhost: []", "host"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
