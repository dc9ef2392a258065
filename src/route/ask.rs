//! The question for a name: which hosts have a volume of it. It goes to all hosts at once, with one bound; who does not
//! answer within it cannot be reached from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::task::JoinSet;
use tonic::Status;

use super::fleet::Fleet;
use super::forward;
use super::inventory::Owner;
use super::link::Link;
use crate::domain::{Id, Key, Kind, NodeName, PoolName, StoreId};
use crate::proto::internal;

/// What the hosts answered.
#[derive(Debug, Default)]
pub struct Answers {
    /// What they have of the name, each with the host that said so.
    pub found: Vec<Found>,
    /// The claims they gave, to make or settle a volume of the name.
    pub claims: BTreeMap<NodeName, String>,
    /// Hosts where something of the name is just being made, so that they gave no claim.
    pub busy: BTreeSet<NodeName>,
    /// Hosts that did not answer.
    pub silent: BTreeSet<NodeName>,
    /// Hosts that answered and may have the name all the same.
    unsure: BTreeMap<NodeName, Unsure>,
    /// The stores that were searched, each by the host whose it is.
    searched: BTreeSet<StoreId>,
    /// Stores that hosts had and have not now.
    missing: Vec<(NodeName, StoreId)>,
}

/// Why a host that answered may have the name all the same.
#[derive(Debug, Default)]
struct Unsure {
    /// These pools of it are down.
    pools: BTreeSet<PoolName>,
    /// It has it in a store that is not known to be its own, or had a store that was searched nowhere.
    is_strange: bool,
}

/// What a host has of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The host.
    pub host: NodeName,
    /// The volume's id.
    pub id: Id,
    /// Its pool.
    pub pool: PoolName,
    /// Where it is in its life.
    pub state: FoundState,
    /// The number of the newest grant; 0 if there never was one.
    pub generation: u64,
    /// The host that made it.
    pub made_on: Option<NodeName>,
    /// Hosts that could not be asked for the name, and were not asked since.
    pub passed_over: Vec<NodeName>,
}

/// Where what was found is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundState {
    /// It is there, or is being made.
    There,
    /// It is being removed, and never comes back.
    Going,
    /// It exists no more, and is remembered because of hosts that could not be asked.
    Deleted,
}

impl Answers {
    /// The volumes of the name that exist.
    pub fn existing(&self) -> impl Iterator<Item = &Found> {
        self.found.iter().filter(|found| found.state == FoundState::There)
    }

    /// What is remembered of volumes of the name that exist no more.
    pub fn deleted(&self) -> impl Iterator<Item = &Found> {
        self.found.iter().filter(|found| found.state == FoundState::Deleted)
    }

    /// Whether this host has said all that it may have of the name in this pool.
    pub fn is_sure_of(&self, host: &NodeName, pool: &PoolName) -> bool {
        self.claims.contains_key(host) && !self.is_unsure(host, pool)
    }

    /// Whether this host answered, and may have the name in this pool all the same.
    pub fn is_unsure(&self, host: &NodeName, pool: &PoolName) -> bool {
        self.unsure.get(host).is_some_and(|unsure| unsure.is_strange || unsure.pools.contains(pool))
    }

    /// Hosts that answered, and may have the name in this pool all the same.
    pub fn unsure_of(&self, pool: &PoolName) -> impl Iterator<Item = &NodeName> {
        self.unsure.keys().filter(|host| self.is_unsure(host, pool))
    }
}

/// Asks all hosts for a name, and for a claim to make a volume of it.
pub async fn ask_all(fleet: &Fleet, key: &Key) -> Answers {
    ask(fleet, fleet.links(), key).await
}

/// Asks these hosts, and those that have by now what one of them had.
pub async fn ask(fleet: &Fleet, links: Vec<Arc<Link>>, key: &Key) -> Answers {
    let mut answers = Answers::default();
    let mut asked: BTreeSet<NodeName> = links.iter().map(|link| link.name.clone()).collect();
    gather(fleet, &mut answers, links, key).await;
    let heirs = answers.missing.iter().filter_map(|(_, store)| owner(fleet, store));
    let heirs: Vec<NodeName> = heirs.filter(|host| asked.insert(host.clone())).collect();
    gather(fleet, &mut answers, heirs.iter().filter_map(|host| fleet.link(host)).collect(), key).await;
    for (host, store) in std::mem::take(&mut answers.missing) {
        if !answers.searched.contains(&store) && !fleet.is_lost(&store) {
            answers.unsure.entry(host).or_default().is_strange = true;
        }
    }
    answers
}

fn owner(fleet: &Fleet, store: &StoreId) -> Option<NodeName> {
    match fleet.inventory().owner(store) {
        Owner::Host(host) => Some(host),
        Owner::Disputed(_) | Owner::Unseen(_) => None,
    }
}

async fn gather(fleet: &Fleet, answers: &mut Answers, links: Vec<Arc<Link>>, key: &Key) {
    let mut asking = JoinSet::new();
    for link in links {
        if link.is_here() {
            let key = *key;
            let question = async move {
                let answer = link.find(&key, true).await;
                (link, answer)
            };
            begin(fleet, &mut asking, question).await;
        } else {
            answers.silent.insert(link.name.clone());
        }
    }
    while let Some(joined) = asking.join_next().await {
        let Ok((link, answer)) = joined else { continue };
        match answer {
            Ok(answer) => take(fleet, answers, &link.name, key, answer),
            Err(status) => not_heard(answers, &link, &status),
        }
    }
}

/// Notes a host that did not answer. One that answers with an error of its own has trouble with this name alone.
fn not_heard(answers: &mut Answers, link: &Link, status: &Status) {
    if forward::is_of_the_way(status) {
        link.suspect(status.message());
    }
    answers.silent.insert(link.name.clone());
}

/// Begins a question when its turn has come, and with it the host's time: how busy we are is no host's fault.
async fn begin<T: Send + 'static>(
    fleet: &Fleet,
    asking: &mut JoinSet<T>,
    question: impl Future<Output = T> + Send + 'static,
) {
    let turn = Arc::clone(&fleet.questions).acquire_owned().await;
    asking.spawn(async move {
        let _turn = turn;
        question.await
    });
}

/// Asks every host that gave a claim whether it still is the newest. Of two who asked at once, one of them is told so by
/// every host, and the other by none. Who does not answer now has not been asked at all.
pub async fn confirm_all(fleet: &Fleet, key: &Key, answers: &mut Answers) -> bool {
    let mut asking = JoinSet::new();
    for (host, claim) in &answers.claims {
        let Some(link) = fleet.link(host) else { continue };
        let (key, claim) = (*key, claim.clone());
        let question = async move {
            let answer = link.confirm(&key, claim).await;
            (link, answer)
        };
        begin(fleet, &mut asking, question).await;
    }
    let mut is_newest = true;
    while let Some(joined) = asking.join_next().await {
        let Ok((link, answer)) = joined else { continue };
        match answer {
            Ok(newest) => is_newest &= newest,
            Err(status) => {
                answers.claims.remove(&link.name);
                not_heard(answers, &link, &status);
            }
        }
    }
    is_newest
}

fn take(fleet: &Fleet, answers: &mut Answers, host: &NodeName, key: &Key, answer: internal::FindResponse) {
    let pools = answer.unsure_pools.iter().filter_map(|pool| pool.parse().ok()).collect();
    let mut unsure = Unsure { pools, is_strange: false };
    let stores = |texts: Vec<String>| texts.into_iter().filter_map(|text| text.parse().ok().map(StoreId));
    answers.searched.extend(stores(answer.stores).filter(|store| fleet.inventory().has_store(host, store)));
    answers.missing.extend(stores(answer.missing).map(|store| (host.clone(), store)));
    for told in answer.found {
        // whoever could claim names that it was only asked for could draw every new volume to itself
        if Key::of_name(Kind::Volume, &told.name) != *key {
            tracing::error!(%host, id = told.id, "the host does not know the name of what it says it has; it is not believed");
            continue;
        }
        match found(fleet, host, key, &told) {
            Some(found) => answers.found.push(found),
            None => {
                tracing::warn!(%host, id = told.id, "the host has it in a store that is not known to be its own");
                unsure.is_strange = true;
            }
        }
    }
    if !answer.claim.is_empty() {
        answers.claims.insert(host.clone(), answer.claim);
        fleet.not_busy(host, key);
    } else if fleet.is_busy_for_too_long(host, key) {
        // whatever it does there, it holds up nobody else's volumes
        unsure.is_strange = true;
    } else {
        answers.busy.insert(host.clone());
    }
    if unsure.is_strange || !unsure.pools.is_empty() {
        answers.unsure.insert(host.clone(), unsure);
    }
}

/// What a host says it has, if it may have it: under the key that was asked for, in a store of its own.
fn found(fleet: &Fleet, host: &NodeName, key: &Key, told: &internal::Found) -> Option<Found> {
    let id: Id = told.id.parse().ok().filter(|id: &Id| id.key == *key)?;
    if !fleet.inventory().has_store(host, &id.store) {
        return None;
    }
    Some(Found {
        host: host.clone(),
        id,
        pool: told.pool.parse().ok()?,
        state: match told.state.as_str() {
            "deleted" => FoundState::Deleted,
            "removing" => FoundState::Going,
            _ => FoundState::There,
        },
        generation: told.generation,
        made_on: told.made_on.parse().ok(),
        passed_over: told.passed_over.iter().filter_map(|host| host.parse().ok()).collect(),
    })
}
