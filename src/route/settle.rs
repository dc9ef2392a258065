//! One name, made twice: because a host could not be asked when the name was made elsewhere, and came back with a volume of
//! it. What was made first and never granted was never answered, or answered and then asked for again: it goes. All else is
//! kept, and nothing of the name is granted until its owner has chosen.
//!
//! Nothing is decided from what was reported: the hosts are asked anew, and each acts only on its newest claim, so that no
//! creation that runs meanwhile, through whatever controller, is crossed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tonic::{Request, Status};

use super::ask::{Answers, Found, ask};
use super::fleet::Fleet;
use super::link::BOUND;
use crate::domain::{Id, Key, NodeName};
use crate::proto::internal::settle_request::Act;
use crate::proto::internal::{Hosts, SettleRequest};

/// How often what is left is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How many names are settled at a time.
const AT_A_TIME: usize = 32;

/// Which of several volumes of one name stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This one; the others go.
    Keep(Id),
    /// Nobody but the owner can tell.
    OwnersChoice,
}

/// Judges volumes of one name that exist. One stays if it may be preferred to each of the others.
pub fn verdict(volumes: &[Found]) -> Verdict {
    let beats_all = |one: &&Found| volumes.iter().filter(|other| other.id != one.id).all(|other| beats(one, other));
    let mut best = volumes.iter().filter(beats_all);
    match (best.next(), best.next()) {
        (Some(one), None) => Verdict::Keep(one.id),
        _ => Verdict::OwnersChoice,
    }
}

/// Whether `other` may go for the sake of `one`: it was never granted, and `one` was made when its host could not be asked.
/// If that is so the other way round too, only a grant tells them apart.
fn beats(one: &Found, other: &Found) -> bool {
    let mutual = passed_over(other, one);
    passed_over(one, other) && other.generation == 0 && (!mutual || one.generation > 0)
}

/// Whether `one` was made, or answered, while the host that made `other` could not be asked.
fn passed_over(one: &Found, other: &Found) -> bool {
    one.passed_over.iter().any(|host| *host == other.host || Some(host) == other.made_on.as_ref())
}

/// Settles what there is to settle, for as long as the controller runs.
pub async fn settle_all(fleet: Arc<Fleet>) {
    loop {
        let mut settling = JoinSet::new();
        let keys = fleet.inventory().unsettled();
        for key in keys {
            if settling.len() >= AT_A_TIME {
                settling.join_next().await;
            }
            let fleet = Arc::clone(&fleet);
            settling.spawn(async move {
                if let Err(status) = settle(&fleet, &key).await {
                    tracing::debug!(%key, why = status.message(), "not settled yet");
                }
            });
        }
        while settling.join_next().await.is_some() {}
        // cancel-safe: a notice that is missed here is made up for a second later
        let _ = tokio::time::timeout(AGAIN, fleet.unsettled.notified()).await;
        // many notices make one round
        tokio::time::sleep(AGAIN / 10).await;
    }
}

/// Settles one name as far as the hosts that are here allow.
async fn settle(fleet: &Fleet, key: &Key) -> Result<(), Status> {
    let concerned = concerned(fleet, key);
    if !concerned.iter().any(|host| can_settle(fleet, key, host)) {
        return Ok(());
    }
    let links = concerned.iter().filter_map(|host| fleet.link(host)).collect();
    let answers = ask(fleet, links, key).await;
    let existing: Vec<Found> = answers.existing().cloned().collect();
    if existing.len() > 1 {
        return match verdict(&existing) {
            Verdict::Keep(id) => remove_others(fleet, &answers, &existing, id).await,
            Verdict::OwnersChoice => {
                let ids: Vec<String> = existing.iter().map(|found| found.id.to_string()).collect();
                tracing::warn!(%key, ids = ids.join(", "), "several volumes have one name; their owner must choose");
                Ok(())
            }
        };
    }
    remove_after_deletion(fleet, &answers).await?;
    tell_who_was_asked(fleet, &answers).await
}

/// The hosts that have the name, and those that were passed over when it was made.
fn concerned(fleet: &Fleet, key: &Key) -> BTreeSet<NodeName> {
    let inventory = fleet.inventory();
    let mut hosts = BTreeSet::new();
    for (host, volume) in inventory.of_name(key) {
        hosts.insert(host.clone());
        hosts.extend(volume.passed_over.iter().cloned());
    }
    hosts
}

/// Whether it is worth asking: a host that was passed over is here, or the name is in two places.
fn can_settle(fleet: &Fleet, key: &Key, host: &NodeName) -> bool {
    let inventory = fleet.inventory();
    let was_passed_over = inventory.of_name(key).any(|(_, volume)| volume.passed_over.contains(host));
    (was_passed_over && fleet.link(host).is_none_or(|link| link.is_here())) || inventory.doubles(key).len() > 1
}

/// The ones that go, each on its own host, which looks once more.
async fn remove_others(fleet: &Fleet, answers: &Answers, existing: &[Found], kept: Id) -> Result<(), Status> {
    for other in existing.iter().filter(|found| found.id != kept) {
        act(fleet, answers, other, Act::YieldTo(kept.to_string())).await?;
        tracing::info!(removed = %other.id, host = %other.host, %kept, "one of two volumes of a name was never granted");
    }
    Ok(())
}

/// A volume was deleted that others had been passed over for: what one of them has of the name nobody wants.
async fn remove_after_deletion(fleet: &Fleet, answers: &Answers) -> Result<(), Status> {
    let deleted: Vec<&Found> = answers.found.iter().filter(|found| found.deleted).collect();
    for one in deleted {
        for other in answers.existing().filter(|other| passed_over(one, other) && other.generation == 0) {
            if passed_over(other, one) {
                // it was answered after the deleted one could not be asked: it may be wanted
                continue;
            }
            act(fleet, answers, other, Act::YieldTo(one.id.to_string())).await?;
            tracing::info!(removed = %other.id, host = %other.host, deleted = %one.id, "its name was deleted elsewhere");
        }
    }
    Ok(())
}

/// Hosts that were asked by now are passed over no more, if they have nothing of the name that is still to be settled.
async fn tell_who_was_asked(fleet: &Fleet, answers: &Answers) -> Result<(), Status> {
    for one in &answers.found {
        let rivals = |host: &NodeName| {
            answers
                .existing()
                .any(|other| other.id != one.id && (other.host == *host || other.made_on.as_ref() == Some(host)))
        };
        // a host that has left the fleet for good has nothing to say
        let asked = |host: &&NodeName| answers.is_sure_of(host) || fleet.link(host).is_none();
        let names: Vec<String> =
            one.passed_over.iter().filter(asked).filter(|host| !rivals(host)).map(NodeName::to_string).collect();
        if !names.is_empty() {
            act(fleet, answers, one, Act::Asked(Hosts { names })).await?;
        }
    }
    Ok(())
}

async fn act(fleet: &Fleet, answers: &Answers, found: &Found, act: Act) -> Result<(), Status> {
    let claim = answers.claims.get(&found.host).cloned();
    let claim = claim.ok_or_else(|| Status::aborted(format!("host {} is at work on it", found.host)))?;
    let link = fleet.link(&found.host).ok_or_else(|| Status::unavailable("the host has left the fleet"))?;
    let mut request = Request::new(SettleRequest { id: found.id.to_string(), claim, act: Some(act) });
    request.set_timeout(BOUND * 5);
    link.client().settle(request).await.map(|_| ())
}

/// The owner's word: this one stays, and the others of its name go, unless a node has or had them.
pub async fn keep(fleet: &Fleet, id: &Id) -> Result<(), Status> {
    let answers = super::ask::ask_all(fleet, &id.key).await;
    let existing: Vec<Found> = answers.existing().cloned().collect();
    if !existing.iter().any(|found| found.id == *id) {
        return Err(Status::not_found(format!("the volume {id} is on no host that can be asked now")));
    }
    remove_others(fleet, &answers, &existing, *id).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::{Kind, StoreId, Uuid};

    /// `a1>b,c`: on host a, granted once, made when b and c could not be asked.
    fn volume(text: &str) -> Found {
        let (what, passed_over) = text.split_once('>').unwrap_or((text, ""));
        let (host, generation) = what.split_at(1);
        let store = StoreId(Uuid::from_bytes([host.as_bytes()[0]; 16]));
        Found {
            host: host.parse().unwrap(),
            id: Id { store, key: Key::of_name(Kind::Volume, "name") },
            pool: "p".to_owned(),
            deleted: false,
            ready: true,
            generation: generation.parse().unwrap(),
            made_on: Some(host.parse().unwrap()),
            passed_over: passed_over
                .split(',')
                .filter(|name| !name.is_empty())
                .map(|name| name.parse().unwrap())
                .collect(),
        }
    }

    #[test]
    fn which_of_several_stays() {
        for (volumes, kept) in [
            // a came back with a volume that nobody was given
            ("a0 b0>a", Some("b")),
            ("a0 b3>a", Some("b")),
            // somebody was given it
            ("a1 b0>a", None),
            ("a1 b1>a", None),
            // nothing says which was first
            ("a0 b0", None),
            ("a0 b1", None),
            // each was made when the other could not be asked: only a grant tells
            ("a0>b b0>a", None),
            ("a1>b b0>a", Some("a")),
            ("a0>b b1>a", Some("b")),
            ("a1>b b1>a", None),
            // three
            ("a0 b0>a c0>a,b", Some("c")),
            ("a0 b0>a c0>a", None),
        ] {
            let volumes: Vec<Found> = volumes.split(' ').map(volume).collect();
            let expected = kept.map_or(Verdict::OwnersChoice, |host| Verdict::Keep(volume(&format!("{host}0")).id));
            assert_eq!(verdict(&volumes), expected, "{volumes:?}");
        }
    }

    #[test]
    fn a_disk_that_was_moved_is_judged_by_the_host_that_made_what_is_on_it() {
        let moved = Found { host: "c".parse().unwrap(), ..volume("a0") };
        let since = volume("b0>a");
        assert_eq!(verdict(&[moved, since.clone()]), Verdict::Keep(since.id));
    }
}
