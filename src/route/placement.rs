//! Placement: which host a new volume belongs to. Pure: the same name, topology and hosts give the same answer in every
//! controller.

use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::domain::{Key, NodeName};

/// A host that may carry the volume's pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The host.
    pub host: NodeName,
    /// Whether it can be asked.
    pub standing: Standing,
}

/// Whether a host can be asked now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It answers, and this much is available in its pool, in bytes.
    Here {
        /// What it last reported.
        available: u64,
    },
    /// It does not, or its pool is down.
    Away {
        /// For how long, as far as this controller knows.
        since: Duration,
    },
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// The hosts that it may live on; `None` says nothing.
    pub requisite: Option<Vec<NodeName>>,
    /// Hosts that are better than others, the best first.
    pub preferred: Vec<NodeName>,
    /// Its size in bytes, as far as it is known.
    pub size: u64,
}

/// Where a volume may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On these hosts, in this order.
    On(Vec<NodeName>),
    /// It belongs to this host, which is away and is still waited for.
    WaitFor(NodeName),
    /// The hosts that are left have no room, and others are away.
    OnlyAway(Vec<NodeName>),
    /// No host has room.
    Full,
    /// None of the hosts asked for has the pool.
    Nowhere,
}

/// Where the volume of this key is to be made. A host that ranks first and is away is waited for this long.
pub fn place(key: &Key, wanted: &Wanted, candidates: Vec<Candidate>, patience: Duration) -> Place {
    let may = |host: &NodeName| wanted.requisite.as_ref().is_none_or(|hosts| hosts.contains(host));
    let mut candidates: Vec<Candidate> = candidates.into_iter().filter(|candidate| may(&candidate.host)).collect();
    if candidates.is_empty() {
        return Place::Nowhere;
    }
    // a host without room is no candidate; one that is away may have some
    candidates.retain(|candidate| match candidate.standing {
        Standing::Here { available } => available >= wanted.size,
        Standing::Away { .. } => true,
    });
    candidates.sort_by_cached_key(|candidate| rank(key, wanted, &candidate.host));
    match candidates.first() {
        None => return Place::Full,
        Some(Candidate { host, standing: Standing::Away { since } }) if *since < patience => {
            return Place::WaitFor(host.clone());
        }
        Some(_) => {}
    }
    let (here, away): (Vec<Candidate>, Vec<Candidate>) =
        candidates.into_iter().partition(|candidate| matches!(candidate.standing, Standing::Here { .. }));
    let names = |candidates: Vec<Candidate>| candidates.into_iter().map(|candidate| candidate.host).collect();
    if here.is_empty() { Place::OnlyAway(names(away)) } else { Place::On(names(here)) }
}

/// The topology's order first, then a hash of the name with the host's: volumes spread, and one name has one order.
fn rank(key: &Key, wanted: &Wanted, host: &NodeName) -> (usize, [u8; 32]) {
    let preferred = wanted.preferred.iter().position(|preferred| preferred == host).unwrap_or(usize::MAX);
    let hash = Sha256::new().chain_update(key.to_string()).chain_update("/").chain_update(host.to_string()).finalize();
    (preferred, hash.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::Kind;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn names(text: &str) -> Vec<NodeName> {
        text.split_whitespace().map(|name| name.parse().unwrap()).collect()
    }

    /// `a:10` has ten bytes, `b:away` is away for good, `c:lost` only just.
    fn candidates(text: &str) -> Vec<Candidate> {
        let one = |word: &str| {
            let (host, standing) = word.split_once(':').unwrap();
            let standing = match standing {
                "away" => Standing::Away { since: PATIENCE },
                "lost" => Standing::Away { since: Duration::ZERO },
                bytes => Standing::Here { available: bytes.parse().unwrap() },
            };
            Candidate { host: host.parse().unwrap(), standing }
        };
        text.split_whitespace().map(one).collect()
    }

    fn on(text: &str) -> Place {
        Place::On(names(text))
    }

    #[test]
    fn the_topology_decides_before_the_hash() {
        let key = Key::of_name(Kind::Volume, "a");
        for (requisite, preferred, hosts, place) in [
            (None, "b a c", "a:9 b:9 c:9", on("b a c")),
            (None, "b a c", "a:9 b:1 c:9", on("a c")),
            (Some("a c"), "c a", "a:9 b:9 c:9", on("c a")),
            (Some("d"), "d", "a:9 b:9", Place::Nowhere),
            (Some(""), "", "a:9", Place::Nowhere),
            (None, "", "", Place::Nowhere),
            (Some("a"), "a", "a:1 b:9", Place::Full),
            // who ranks first is waited for, and then passed over
            (None, "a b", "a:lost b:9", Place::WaitFor(names("a")[0].clone())),
            (None, "b a", "a:lost b:9", on("b")),
            (None, "a b", "a:away b:9", on("b")),
            (None, "a b", "a:away b:1", Place::OnlyAway(names("a"))),
            (Some("a"), "a", "a:away b:9", Place::OnlyAway(names("a"))),
        ] {
            let wanted = Wanted { requisite: requisite.map(names), preferred: names(preferred), size: 5 };
            let got = super::place(&key, &wanted, candidates(hosts), PATIENCE);
            assert_eq!(got, place, "{requisite:?} {preferred} {hosts}");
        }
    }

    #[test]
    fn names_spread_and_each_has_one_order_whatever_else_there_is() {
        let hosts = "a:9 b:9 c:9 d:9";
        let order = |name: &str, hosts: &str| {
            let key = Key::of_name(Kind::Volume, name);
            match place(&key, &Wanted::default(), candidates(hosts), PATIENCE) {
                Place::On(order) => order,
                other => panic!("{other:?}"),
            }
        };
        let mut first = std::collections::BTreeMap::<NodeName, usize>::new();
        for number in 0..1000 {
            let name = format!("pvc-{number}");
            let all = order(&name, hosts);
            *first.entry(all[0].clone()).or_default() += 1;
            let without_d: Vec<NodeName> = all.into_iter().filter(|host| host.to_string() != "d").collect();
            assert_eq!(order(&name, "c:9 b:9 a:9"), without_d);
        }
        assert!(first.len() == 4 && first.values().all(|count| (150..350).contains(count)), "{first:?}");
    }
}
