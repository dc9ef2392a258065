//! The question for a name: which hosts have a volume of it. It goes to all hosts at once, with one bound; who does not
//! answer within it cannot be reached from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::task::JoinSet;

use super::fleet::Fleet;
use super::forward;
use super::link::Link;
use crate::domain::{Id, Key, NodeName};
use crate::proto::internal;

/// What the hosts answered.
#[derive(Debug, Default)]
pub struct Answers {
    /// What they have of the name, each with the host that said so.
    pub found: Vec<Found>,
    /// The claims they gave, to make or settle a volume of the name.
    pub claims: BTreeMap<NodeName, String>,
    /// Hosts where something of the name is just being made, so that they gave no claim.
    pub busy: Vec<NodeName>,
    /// Hosts that did not answer.
    pub silent: Vec<NodeName>,
    /// Hosts that answered and may have the name all the same: a pool of theirs is down, or it is in a store that is not
    /// known to be theirs.
    pub unsure: BTreeSet<NodeName>,
}

/// What a host has of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The host.
    pub host: NodeName,
    /// The volume's id.
    pub id: Id,
    /// Its pool.
    pub pool: String,
    /// Whether it exists no more, and is remembered because of hosts that could not be asked.
    pub deleted: bool,
    /// Whether it is whole.
    pub ready: bool,
    /// The number of the newest grant; 0 if there never was one.
    pub generation: u64,
    /// The host that made it.
    pub made_on: Option<NodeName>,
    /// Hosts that could not be asked for the name, and were not asked since.
    pub passed_over: Vec<NodeName>,
}

impl Answers {
    /// The volumes of the name that exist.
    pub fn existing(&self) -> impl Iterator<Item = &Found> {
        self.found.iter().filter(|found| !found.deleted)
    }

    /// Whether this host has said all that it may have of the name.
    pub fn is_sure_of(&self, host: &NodeName) -> bool {
        self.claims.contains_key(host) && !self.unsure.contains(host)
    }
}

/// Asks all hosts for a name, and for a claim to make a volume of it.
pub async fn ask_all(fleet: &Fleet, key: &Key) -> Answers {
    ask(fleet, fleet.links(), key).await
}

/// Asks these hosts.
pub async fn ask(fleet: &Fleet, links: Vec<Arc<Link>>, key: &Key) -> Answers {
    let mut answers = Answers::default();
    let mut asking = JoinSet::new();
    for link in links {
        if link.is_here() {
            let key = *key;
            asking.spawn(async move {
                let answer = link.find(&key, true).await;
                (link, answer)
            });
        } else {
            answers.silent.push(link.name.clone());
        }
    }
    while let Some(joined) = asking.join_next().await {
        let Ok((link, answer)) = joined else { continue };
        match answer {
            Ok(answer) => take(fleet, &mut answers, &link.name, key, answer),
            Err(status) => {
                // one that answers with an error of its own has trouble with this name alone
                if forward::is_of_the_way(&status) {
                    link.suspect(status.message());
                }
                answers.silent.push(link.name.clone());
            }
        }
    }
    answers
}

fn take(fleet: &Fleet, answers: &mut Answers, host: &NodeName, key: &Key, answer: internal::FindResponse) {
    match answer.claim {
        claim if claim.is_empty() => answers.busy.push(host.clone()),
        claim => {
            answers.claims.insert(host.clone(), claim);
        }
    }
    if !answer.unsure_pools.is_empty() {
        answers.unsure.insert(host.clone());
    }
    for told in answer.found {
        match found(fleet, host, key, &told) {
            Some(found) => answers.found.push(found),
            None => {
                tracing::warn!(%host, id = told.id, "the host has it in a store that is not known to be its own");
                answers.unsure.insert(host.clone());
            }
        }
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
        pool: told.pool.clone(),
        deleted: told.state == "deleted",
        ready: told.state == "ready",
        generation: told.generation,
        made_on: told.made_on.parse().ok(),
        passed_over: told.passed_over.iter().filter_map(|host| host.parse().ok()).collect(),
    })
}
