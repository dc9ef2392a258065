//! The text of pools: pools.yaml, and the same entries in other places.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::domain::pool::{DirSpec, MediumSpec, Overcommit, PoolSpec};
use crate::domain::size::{self, GIB, MIB};
use crate::domain::{NodeName, PoolName, StoreId};

/// pools.yaml, whole.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolsText {
    pools: Vec<PoolText>,
}

/// One entry of `pools:`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PoolText {
    name: PoolName,
    dir: DirText,
    overcommit: Option<f64>,
    reserve: Option<String>,
    #[serde(default)]
    lost: Vec<StoreId>,
    hosts: Option<Vec<NodeName>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DirText {
    path: PathBuf,
    image: Option<ImageText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageText {
    size: String,
}

/// pools.yaml could not be read, or says something that is not so.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no YAML, or has keys that pools do not have.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what, with an excerpt.
        message: String,
    },
    /// An entry is none, or has keys that pools do not have.
    #[error("{message}")]
    Entry {
        /// Where and what.
        message: String,
    },
    /// A pool says something that is not so.
    #[error("pool {pool}: {message}")]
    Pool {
        /// The pool.
        pool: PoolName,
        /// What.
        message: String,
    },
}

/// Reads pools.yaml.
pub fn read_pools(path: &Path) -> Result<Vec<PoolSpec>, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse_pools(&text, path)
}

/// Parses the text of pools.yaml; the path is for messages.
fn parse_pools(text: &str, path: &Path) -> Result<Vec<PoolSpec>, ConfigError> {
    let parsed: Result<PoolsText, _> = serde_yaml::from_str(text);
    let text = parsed.map_err(|error| ConfigError::Syntax { path: path.to_owned(), message: error.to_string() })?;
    let pools: Vec<PoolSpec> = text.pools.into_iter().map(pool).collect::<Result<_, _>>()?;
    for (at, pool) in pools.iter().enumerate() {
        for earlier in &pools[..at] {
            let message = if earlier.name == pool.name {
                "is named twice".to_owned()
            } else if overlap(&earlier.medium, &pool.medium) {
                format!("its directory overlaps with that of pool {}", earlier.name)
            } else {
                continue;
            };
            return Err(ConfigError::Pool { pool: pool.name.clone(), message });
        }
    }
    Ok(pools)
}

/// Parses one entry by itself, as a controller sends it: JSON, which is YAML too.
pub fn parse_entry(text: &str) -> Result<PoolSpec, ConfigError> {
    let parsed: Result<PoolText, _> = serde_yaml::from_str(text);
    pool(parsed.map_err(|error| ConfigError::Entry { message: error.to_string() })?)
}

/// Whether two pools would have the same place, or one within the other's.
pub fn overlap(one: &MediumSpec, other: &MediumSpec) -> bool {
    let (MediumSpec::Dir(one), MediumSpec::Dir(other)) = (one, other);
    one.path.starts_with(&other.path) || other.path.starts_with(&one.path)
}

fn pool(text: PoolText) -> Result<PoolSpec, ConfigError> {
    let PoolText { name, dir, overcommit, reserve, lost, hosts } = text;
    let refuse = |message: String| ConfigError::Pool { pool: name.clone(), message };
    let bytes = |key: &str, text: &str| size::parse(text).map_err(|error| refuse(format!("{key}: {error}")));
    if !dir.path.is_absolute() || dir.path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(refuse(format!("dir.path: {} is no absolute path without \"..\"", dir.path.display())));
    }
    let image = dir.image.map(|image| bytes("dir.image.size", &image.size)).transpose()?;
    if image.is_some_and(|size| size < SMALLEST_IMAGE) {
        return Err(refuse(format!("dir.image.size: at least {}", size::show(SMALLEST_IMAGE))));
    }
    let overcommit = match overcommit {
        None => Overcommit::NONE,
        Some(factor) => {
            Overcommit::new(factor).ok_or_else(|| refuse(format!("overcommit: {factor} is not between 1 and 1000")))?
        }
    };
    let reserve = reserve.map(|text| bytes("reserve", &text)).transpose()?;
    Ok(PoolSpec {
        name: name.clone(),
        medium: MediumSpec::Dir(DirSpec { path: dir.path, image }),
        overcommit,
        reserve,
        lost,
        hosts,
    })
}

/// The smallest pool that is one file: XFS below it has no room for its log and a volume.
const SMALLEST_IMAGE: u64 = 512 * MIB;

/// The pool that `serve` has without a pools.yaml: a directory below the data directory. Where that directory has no
/// reflinks, it is one file of a quarter of what is free, between 2 and 32 GiB.
pub fn default_pool(data: &Path, free: u64, has_reflinks: bool) -> PoolSpec {
    #[allow(clippy::expect_used)]
    let name = "default".parse().expect("a DNS label");
    let quarter = (free / 4).clamp(2 * GIB, 32 * GIB);
    let image = (!has_reflinks).then_some(quarter - quarter % size::GRAIN);
    PoolSpec {
        name,
        medium: MediumSpec::Dir(DirSpec { path: data.join("default"), image }),
        overcommit: Overcommit::NONE,
        reserve: None,
        lost: Vec::new(),
        hosts: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<PoolSpec>, String> {
        parse_pools(text, Path::new("pools.yaml")).map_err(|error| error.to_string())
    }

    #[test]
    fn pools_as_their_owner_wrote_them() {
        let text = "
pools:
  - name: scratch
    dir: { path: /var/lib/cistern/scratch }
  - name: boxed
    dir: { path: /var/lib/cistern/boxed, image: { size: 200Gi } }
    overcommit: 4
    reserve: 1Gi
    lost: [0188e4b1-7c3a-4f00-8a1b-00ff00ff00ff]
";
        let pools = parsed(text).unwrap();
        let MediumSpec::Dir(boxed) = &pools[1].medium;
        assert_eq!((boxed.image, pools[1].reserve, pools[1].lost.len()), (Some(200 * GIB), Some(GIB), 1));
        assert_eq!((pools[0].overcommit, pools[1].overcommit), (Overcommit::NONE, Overcommit::new(4.0).unwrap()));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            ("pools: [{name: a, dir: {path: x}}]", "absolute"),
            ("pools: [{name: a, dir: {path: /x/../y}}]", "absolute"),
            ("pools: [{name: A, dir: {path: /x}}]", "DNS label"),
            ("pools: [{name: a, dir: {path: /x}, overcomit: 2}]", "overcomit"),
            ("pools: [{name: a, dir: {path: /x}, overcommit: 0.5}]", "overcommit"),
            ("pools: [{name: a, dir: {path: /x}, reserve: much}]", "reserve"),
            ("pools: [{name: a, dir: {path: /x, image: {size: 1Mi}}}]", "at least 512Mi"),
            ("pools: [{name: a, dir: {path: /x}}, {name: a, dir: {path: /y}}]", "twice"),
            ("pools: [{name: a, dir: {path: /x}}, {name: b, dir: {path: /x/y}}]", "overlaps"),
            ("pools: [{name: a, lvm: {volumeGroup: v}}]", "lvm"),
            ("pools: [{name: a}]", "dir"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn the_default_pool_is_a_quarter_of_what_is_free() {
        for (free, reflinks, image) in [
            (80 * GIB, false, Some(20 * GIB)),
            (GIB, false, Some(2 * GIB)),
            (900 * GIB, false, Some(32 * GIB)),
            (80 * GIB, true, None),
        ] {
            let MediumSpec::Dir(dir) = default_pool(Path::new("/data"), free, reflinks).medium;
            assert_eq!(dir.image, image);
        }
    }
}
