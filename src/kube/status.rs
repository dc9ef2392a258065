//! What a StoragePool's status says, from what the hosts reported, and what holds a pool that is to be deleted. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::fleet::Plan;
use super::pool::{HostState, HostStatus, StoragePool, StoragePoolStatus};
use crate::domain::{NodeName, PoolName, size};
use crate::proto::internal;
use crate::route::{self, Standing};

/// How many hosts stand in a status: an object of the cluster has room for so many. Those with trouble come first.
const MOST_HOSTS: usize = 500;
/// How many hosts a message names.
const MOST_NAMED: usize = 3;

/// A pool on one host, as this controller knows it.
#[derive(Debug, Clone, Default)]
pub struct Fact {
    /// Whether the host is in the fleet.
    pub is_member: bool,
    /// Why it does not answer; `None` while it does.
    pub away: Option<String>,
    /// Whether it has told all it has, at least once since this controller started.
    pub is_whole: bool,
    /// Why it does not take the pool.
    pub refused: Option<String>,
    /// The pool as it told it.
    pub told: Option<internal::Pool>,
    /// Its store, also one that was open before it went down.
    pub store: String,
    /// How many volumes and snapshots the store holds.
    pub holds: (usize, usize),
}

/// What is known of a pool on these hosts.
pub fn facts(fleet: &route::Fleet, pool: &str, hosts: BTreeSet<NodeName>) -> BTreeMap<NodeName, Fact> {
    let Ok(pool) = pool.parse::<PoolName>() else { return BTreeMap::new() };
    let inventory = fleet.inventory();
    let fact = |host: NodeName| {
        let view = inventory.pool(&host, &pool);
        let store = view.and_then(|view| view.last_store);
        let link = fleet.link(&host);
        let away = link.as_ref().map(|link| link.standing()).and_then(|standing| match standing {
            Standing::Here { .. } => None,
            Standing::Away { why, .. } => Some(why),
        });
        let fact = Fact {
            is_member: link.is_some(),
            away,
            is_whole: inventory.is_whole(&host),
            refused: fleet.refusal(&host, &pool),
            told: view.map(|view| view.told.clone()),
            store: store.map(|store| store.to_string()).unwrap_or_default(),
            holds: store.map_or((0, 0), |store| inventory.holds(&host, &store)),
        };
        (host, fact)
    };
    hosts.into_iter().map(fact).collect()
}

/// The hosts that a pool's status is about: those that are to carry it, and those where something of it was seen.
pub fn hosts(pool: &StoragePool, plan: &Plan) -> BTreeSet<NodeName> {
    let before = pool.status.iter().flat_map(|status| &status.hosts).filter_map(|host| host.host.parse().ok());
    plan.hosts.iter().cloned().chain(before).collect()
}

/// The status.
pub fn status(pool: &StoragePool, plan: &Plan, facts: &BTreeMap<NodeName, Fact>, now: &Time) -> StoragePoolStatus {
    let before = pool.status.clone().unwrap_or_default();
    let previous: BTreeMap<&str, &HostStatus> = before.hosts.iter().map(|host| (host.host.as_str(), host)).collect();
    let on = |(name, fact): (&NodeName, &Fact)| {
        let was = previous.get(name.to_string().as_str()).copied();
        on_host(name, plan.hosts.contains(name), fact, was)
    };
    let is_lost = |host: &HostStatus| pool.spec.lost.contains(&host.store);
    let mut hosts: Vec<HostStatus> = facts.iter().filter_map(on).collect();
    hosts.retain(|host| host.state != HostState::Gone || !is_lost(host));
    let told = || facts.iter().filter(|(name, fact)| plan.hosts.contains(name) && fact.away.is_none());
    let sum = |bytes: fn(&internal::Pool) -> u64| {
        let all = told().filter_map(|(_, fact)| fact.told.as_ref()).filter(|pool| pool.down.is_empty());
        size::show(all.map(bytes).fold(0, u64::saturating_add))
    };
    let ready = hosts.iter().filter(|host| host.state == HostState::Ready).count();
    let wanted = plan.hosts.len();
    let counted = |count: fn(&HostStatus) -> i64| hosts.iter().map(count).sum();
    let mut status = StoragePoolStatus {
        observed_generation: pool.metadata.generation,
        conditions: Vec::new(),
        summary: format!("{ready}/{wanted}"),
        capacity: sum(|pool| pool.total_bytes),
        allocated: sum(|pool| pool.promised_bytes),
        available: sum(|pool| pool.available_bytes),
        overcommit: Some(pool.spec.overcommit.unwrap_or(1.0)),
        volumes: counted(|host| host.volumes),
        snapshots: counted(|host| host.snapshots),
        hosts: Vec::new(),
    };
    let mut conditions = vec![accepted(plan), is_ready(plan, &hosts)];
    if pool.metadata.deletion_timestamp.is_some() {
        let held = held(pool, plan, facts, &before.hosts);
        let text = if held.is_empty() { "nothing holds it".to_owned() } else { several(&held) };
        conditions.push(("Deleting", true, if held.is_empty() { "Empty" } else { "HoldsVolumes" }, text));
    }
    let condition = |said| condition(said, &before.conditions, pool.metadata.generation, now);
    status.conditions = conditions.into_iter().map(condition).collect();
    if hosts.len() > MOST_HOSTS {
        hosts.sort_by_key(|host| (host.state == HostState::Ready, host.host.clone()));
        hosts.truncate(MOST_HOSTS);
        hosts.sort_by(|one, other| one.host.cmp(&other.host));
    }
    status.hosts = hosts;
    status
}

/// Of a host that left the cluster and whose store holds something.
const LEFT: &str = "the host left the cluster: bring it back, or declare the store lost with `lost` of the spec";

/// The pool on one host; `None` where there is nothing to tell.
fn on_host(name: &NodeName, is_wanted: bool, fact: &Fact, before: Option<&HostStatus>) -> Option<HostStatus> {
    let remembered = before.filter(|before| !before.store.is_empty());
    let told = fact.told.as_ref();
    let (state, message) = match (is_wanted, &fact.refused, &fact.away, told) {
        (false, ..) => match remembered.filter(|before| before.volumes + before.snapshots > 0) {
            None => return None,
            Some(_) if fact.is_member => (HostState::Gone, "the host is not to carry the pool any more".to_owned()),
            Some(_) => (HostState::Gone, LEFT.to_owned()),
        },
        _ if !fact.is_member => (HostState::Away, "there is no such host".to_owned()),
        (_, Some(why), ..) => (HostState::Refused, why.clone()),
        (_, _, Some(why), _) if why.is_empty() => (HostState::Away, "the host was not reached yet".to_owned()),
        (_, _, Some(why), _) => (HostState::Away, why.clone()),
        (_, _, None, None) => (HostState::Pending, "the host has not told of the pool yet".to_owned()),
        (_, _, None, Some(told)) if !told.down.is_empty() => (HostState::Down, told.down.clone()),
        (_, _, None, Some(_)) => (HostState::Ready, String::new()),
    };
    let store =
        if fact.store.is_empty() { remembered.map(|before| before.store.clone()) } else { Some(fact.store.clone()) };
    // what was counted before this controller started stands until the store is seen again
    let (volumes, snapshots) = match remembered.filter(|_| fact.store.is_empty() || state == HostState::Gone) {
        Some(before) => (before.volumes, before.snapshots),
        None => (count(fact.holds.0), count(fact.holds.1)),
    };
    let shown = |bytes: fn(&internal::Pool) -> u64| {
        told.filter(|_| state == HostState::Ready).map(|pool| size::show(bytes(pool))).unwrap_or_default()
    };
    Some(HostStatus {
        host: name.to_string(),
        state,
        store: store.unwrap_or_default(),
        total: shown(|pool| pool.total_bytes),
        free: shown(|pool| pool.free_bytes),
        allocated: shown(|pool| pool.promised_bytes),
        available: shown(|pool| pool.available_bytes),
        volumes,
        snapshots,
        message,
    })
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What a condition says: its type, whether it is so, the reason, the message.
type Said = (&'static str, bool, &'static str, String);

fn accepted(plan: &Plan) -> Said {
    match (&plan.refused, plan.warnings.is_empty()) {
        (Some(why), _) => ("Accepted", false, "SpecRefused", format!("{why}; what was in force before stays")),
        (None, false) => ("Accepted", true, "Warnings", several(&plan.warnings)),
        (None, true) => ("Accepted", true, "Accepted", String::new()),
    }
}

fn is_ready(plan: &Plan, hosts: &[HostStatus]) -> Said {
    if plan.hosts.is_empty() {
        return (
            "Ready",
            false,
            "NoHosts",
            "no host is to carry it: no node has the driver and fits the spec".to_owned(),
        );
    }
    let trouble = |host: &&HostStatus| !matches!(host.state, HostState::Ready | HostState::Gone);
    let lacking: Vec<String> =
        hosts.iter().filter(trouble).map(|host| format!("{}: {:?}: {}", host.host, host.state, host.message)).collect();
    match (lacking.is_empty(), &plan.refused) {
        (true, None) => ("Ready", true, "AllHosts", String::new()),
        (true, Some(why)) => ("Ready", false, "SpecRefused", why.clone()),
        (false, _) => ("Ready", false, "HostsNotReady", several(&lacking)),
    }
}

/// Some of them, and how many more there are.
fn several(texts: &[String]) -> String {
    let named = texts.iter().take(MOST_NAMED).cloned().collect::<Vec<_>>().join("; ");
    match texts.len().saturating_sub(MOST_NAMED) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}

fn condition(
    (type_, is_so, reason, message): Said,
    before: &[Condition],
    generation: Option<i64>,
    now: &Time,
) -> Condition {
    let status = if is_so { "True" } else { "False" }.to_owned();
    let same = before.iter().find(|before| before.type_ == type_ && before.status == status);
    Condition {
        last_transition_time: same.map_or_else(|| now.clone(), |before| before.last_transition_time.clone()),
        type_: type_.to_owned(),
        status,
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
    }
}

/// Why a pool that is to be deleted stays: what its stores hold, and hosts that were not heard. A store that its owner gave up
/// holds nothing; nor does a host that refuses the pool or never came to have a store.
pub fn held(pool: &StoragePool, plan: &Plan, facts: &BTreeMap<NodeName, Fact>, before: &[HostStatus]) -> Vec<String> {
    let holds = |(name, fact): (&NodeName, &Fact)| {
        let was = before.iter().find(|before| before.host == name.to_string());
        let host = on_host(name, plan.hosts.contains(name), fact, was)?;
        if !host.store.is_empty() && pool.spec.lost.contains(&host.store) {
            return None;
        }
        let what = contents(&host);
        if !what.is_empty() {
            return Some(format!("{what} on host {name} (store {})", host.store));
        }
        let is_known = match host.state {
            HostState::Ready | HostState::Refused | HostState::Gone => true,
            HostState::Away => fact.is_whole || !fact.is_member,
            HostState::Down => host.store.is_empty(),
            // a spec that was never in force was brought to nobody
            HostState::Pending => plan.refused.is_some(),
        };
        (!is_known).then(|| format!("what host {name} has of it is not known: {}", host.message))
    };
    facts.iter().filter_map(holds).collect()
}

/// What a pool holds on a host: `2 volumes and 1 snapshot`.
fn contents(host: &HostStatus) -> String {
    let of = |number: i64, what: &str| match number {
        0 => None,
        1 => Some(format!("1 {what}")),
        number => Some(format!("{number} {what}s")),
    };
    let both = [of(host.volumes, "volume"), of(host.snapshots, "snapshot")];
    both.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    const STORE: &str = "0188e4b1-7c3a-4f00-8a1b-00ff00ff00ff";

    /// A pool that is to be on `a`, whose status has this of it.
    fn pool(before: Option<(HostState, &str, i64)>, lost: bool) -> (StoragePool, Plan) {
        let mut pool = StoragePool::new("p", serde_yaml::from_str("dir: { path: /srv }").unwrap());
        pool.spec.lost.extend(lost.then(|| STORE.to_owned()));
        let host = |(state, store, volumes): (HostState, &str, i64)| {
            let text = serde_json::json!({ "host": "a", "state": state, "store": store, "volumes": volumes });
            serde_json::from_value(text).unwrap()
        };
        let hosts = before.into_iter().map(host).collect();
        pool.status = Some(StoragePoolStatus { hosts, ..StoragePoolStatus::default() });
        (pool, Plan { hosts: ["a".parse().unwrap()].into(), ..Plan::default() })
    }

    fn here(volumes: usize) -> Fact {
        let told = internal::Pool { store: STORE.to_owned(), total_bytes: 1 << 30, ..internal::Pool::default() };
        let (store, holds) = (STORE.to_owned(), (volumes, 0));
        Fact { is_member: true, is_whole: true, told: Some(told), store, holds, ..Fact::default() }
    }

    fn down(store: &str) -> Fact {
        let told = internal::Pool { down: "no disk".to_owned(), ..internal::Pool::default() };
        Fact { told: Some(told), store: store.to_owned(), ..here(0) }
    }

    /// A host that was not heard since this controller started.
    fn away() -> Fact {
        Fact { is_member: true, away: Some("no route".to_owned()), ..Fact::default() }
    }

    fn facts(fact: Fact) -> BTreeMap<NodeName, Fact> {
        [("a".parse().unwrap(), fact)].into()
    }

    #[test]
    fn a_pool_that_is_to_go_is_held_by_what_it_holds_and_by_hosts_that_were_not_heard() {
        let seen = |volumes| Some((HostState::Ready, STORE, volumes));
        let gone = Fact::default();
        let heard_before = Fact { away: Some("no route".to_owned()), ..here(0) };
        let pending = Fact { told: None, store: String::new(), ..here(0) };
        let refused = Fact { refused: Some("own file".to_owned()), ..pending.clone() };
        for (before, lost, fact, held) in [
            (None, false, here(0), ""),
            (None, false, here(2), "2 volumes on host a"),
            (None, true, here(2), ""),
            (None, false, away(), "not known"),
            (seen(0), false, away(), "not known"),
            (seen(3), false, away(), "3 volumes on host a"),
            (seen(3), true, away(), ""),
            (None, false, heard_before, ""),
            (None, false, pending, "not known"),
            (None, false, refused, ""),
            // it never came to have a store: a path that cannot be made, say
            (None, false, down(""), ""),
            (None, false, down(STORE), "not known"),
            (seen(0), false, down(""), "not known"),
            (seen(1), false, down(""), "1 volume on host a"),
            (None, false, gone.clone(), ""),
            (seen(1), false, gone.clone(), "1 volume on host a"),
            (seen(1), true, gone, ""),
        ] {
            let (pool, plan) = pool(before, lost);
            let said = super::held(&pool, &plan, &facts(fact.clone()), &pool.status.clone().unwrap().hosts).join("; ");
            assert_eq!(said.is_empty(), held.is_empty(), "{before:?} lost={lost} {fact:?}: {said}");
            assert!(said.contains(held), "{before:?} lost={lost} {fact:?}: {said}");
        }
    }

    #[test]
    fn a_host_that_left_is_told_of_while_its_store_held_something() {
        for (volumes, told) in [(0, 0), (2, 1)] {
            let (pool, _) = pool(Some((HostState::Ready, STORE, volumes)), false);
            let status = super::status(&pool, &Plan::default(), &facts(Fact::default()), &Time(Timestamp::UNIX_EPOCH));
            assert_eq!((status.hosts.len(), status.volumes), (told, volumes));
            assert!(status.hosts.iter().all(|host| host.state == HostState::Gone && host.store == STORE));
        }
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let (mut pool, plan) = pool(None, false);
        let at = |second| Time(Timestamp::from_second(second).unwrap());
        let mut ready = Vec::new();
        for (second, fact) in [(1, here(0)), (2, here(1)), (3, down(STORE)), (4, away()), (5, here(1))] {
            let status = super::status(&pool, &plan, &facts(fact), &at(second));
            let condition = status.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
            ready.push((condition.status.clone(), condition.last_transition_time.0.as_second()));
            pool.status = Some(status);
        }
        let expected = [("True", 1), ("True", 1), ("False", 3), ("False", 3), ("True", 5)];
        assert_eq!(ready, expected.map(|(status, second)| (status.to_owned(), second)));
    }

    #[test]
    fn hosts_in_trouble_stand_first_where_there_are_too_many() {
        let name = |number: usize| format!("h{number:04}").parse::<NodeName>().unwrap();
        let all: BTreeMap<NodeName, Fact> =
            (0..2000).map(|number| (name(number), if number == 1999 { away() } else { here(1) })).collect();
        let (pool, _) = pool(None, false);
        let plan = Plan { hosts: all.keys().cloned().collect(), ..Plan::default() };
        let status = super::status(&pool, &plan, &all, &Time(Timestamp::UNIX_EPOCH));
        assert_eq!((status.hosts.len(), status.summary.as_str(), status.volumes), (MOST_HOSTS, "1999/2000", 1999));
        assert!(status.hosts.iter().any(|host| host.state == HostState::Away));
        assert!(serde_json::to_string(&status).unwrap().len() < 200_000);
    }
}
