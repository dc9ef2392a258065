//! A host's pools: those of its own file, and those that the fleet's owner wrote and a controller brought. The latter are
//! kept beside the host's other notes, so that it starts alone.

use std::path::{Path, PathBuf};

use super::pools::{ConfigError, parse_entry, read_pools};
use crate::domain::{PoolName, PoolSpec};

/// Where a host's pools are written.
#[derive(Debug, Clone)]
pub struct PoolFiles {
    /// The host's own file, if it has one.
    own: Option<PathBuf>,
    /// Where the fleet's pools are kept, if it is part of a fleet.
    kept: Option<PathBuf>,
}

/// A host's pools, and those of the fleet that it does not take.
#[derive(Debug, Default)]
pub struct Pools {
    /// The pools.
    pub specs: Vec<PoolSpec>,
    /// Pools of the fleet that are refused, and why.
    pub refused: Vec<Refused>,
}

/// A pool of the fleet that a host does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its name, as far as it can be told.
    pub pool: String,
    /// Why.
    pub why: String,
}

impl PoolFiles {
    /// The name of the file, in a host's data directory, that the fleet's pools are kept in.
    pub const KEPT: &str = "fleet-pools.json";

    /// The pools of a host with this own file and data directory, to which controllers may bring others.
    pub fn new(own: Option<PathBuf>, data: &Path) -> PoolFiles {
        PoolFiles { own, kept: Some(data.join(PoolFiles::KEPT)) }
    }

    /// The pools of a host that is all there is.
    pub fn own(own: Option<PathBuf>) -> PoolFiles {
        PoolFiles { own, kept: None }
    }

    /// What the files say now, to tell a change.
    pub fn bytes(&self) -> Vec<Option<Vec<u8>>> {
        let read = |path: &Option<PathBuf>| path.as_ref().and_then(|path| std::fs::read(path).ok());
        vec![read(&self.own), read(&self.kept)]
    }

    /// The pools. One of the fleet that the host's own file has too, or whose place overlaps with that of one, is refused.
    pub fn read(&self) -> Result<Pools, ConfigError> {
        let own = self.own.as_deref().map(read_pools).transpose()?;
        Ok(with_fleet(own.unwrap_or_default(), self.read_kept()?))
    }

    fn read_kept(&self) -> Result<Vec<String>, ConfigError> {
        let Some(kept) = &self.kept else { return Ok(Vec::new()) };
        let text = match std::fs::read(kept) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(ConfigError::Read { path: kept.clone(), source }),
        };
        serde_json::from_slice(&text)
            .map_err(|error| ConfigError::Syntax { path: kept.clone(), message: error.to_string() })
    }
}

/// The host's own pools, and those entries of the fleet that go with them.
pub fn with_fleet(own: Vec<PoolSpec>, fleet: Vec<String>) -> Pools {
    let names: Vec<PoolName> = own.iter().map(|pool| pool.name.clone()).collect();
    let mut pools = Pools { specs: own, refused: Vec::new() };
    for text in fleet {
        let refused = match parse_entry(&text) {
            Err(error) => Refused { pool: name_in(&text), why: error.to_string() },
            Ok(pool) => match conflict(&pools.specs, &names, &pool) {
                Some(why) => Refused { pool: pool.name.to_string(), why },
                None => {
                    pools.specs.push(pool);
                    continue;
                }
            },
        };
        pools.refused.push(refused);
    }
    pools
}

fn conflict(there: &[PoolSpec], own: &[PoolName], pool: &PoolSpec) -> Option<String> {
    if own.contains(&pool.name) {
        return Some("a pool of this name stands in the host's own file".to_owned());
    }
    there.iter().find_map(|other| {
        let overlaps = super::pools::overlap(&other.medium, &pool.medium);
        if other.name == pool.name {
            Some("is named twice".to_owned())
        } else if overlaps {
            Some(format!("its place overlaps with that of pool {}", other.name))
        } else {
            None
        }
    })
}

/// The name in an entry that cannot be parsed as a whole.
fn name_in(text: &str) -> String {
    let value: Option<serde_json::Value> = serde_json::from_str(text).ok();
    value.and_then(|value| Some(value.get("name")?.as_str()?.to_owned())).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pools_of_the_fleet_stand_beside_the_hosts_own() {
        let own = vec![parse_entry(r#"{"name":"own","dir":{"path":"/own"}}"#).unwrap()];
        let fleet = [
            r#"{"name":"fleet","dir":{"path":"/fleet"}}"#,
            r#"{"name":"own","dir":{"path":"/other"}}"#,
            r#"{"name":"inside","dir":{"path":"/own/x"}}"#,
            r#"{"name":"newer","zfs":{}}"#,
        ];
        let pools = with_fleet(own, fleet.map(str::to_owned).to_vec());
        let names: Vec<String> = pools.specs.iter().map(|pool| pool.name.to_string()).collect();
        assert_eq!(names, ["own", "fleet"]);
        for (refused, (pool, why)) in pools.refused.iter().zip([
            ("own", "own file"),
            ("inside", "overlaps with that of pool own"),
            ("newer", "zfs"),
        ]) {
            assert!(refused.pool == pool && refused.why.contains(why), "{refused:?}");
        }
        assert_eq!(pools.refused.len(), 3);
    }

    #[test]
    fn a_host_that_no_controller_has_spoken_to_has_its_own_pools() {
        let files = PoolFiles::new(None, Path::new("/nowhere"));
        assert!(files.read().unwrap().specs.is_empty());
        let missing = PoolFiles::new(Some("/nowhere/pools.yaml".into()), Path::new("/nowhere"));
        assert!(missing.read().is_err(), "an own file that was named must be there");
    }
}
