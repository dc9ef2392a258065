//! One name, made twice: because a host could not be asked when the name was made elsewhere, and came back with a volume of
//! it. What was made first and never granted was never answered, or answered and then asked for again: it goes. All else is
//! kept, and nothing of the name is granted until its owner has chosen.
//!
//! Nothing is decided from what was reported: the hosts are asked anew, and each acts only on its newest claim, so that no
//! creation that runs meanwhile, through whatever controller, is crossed.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinSet};
use tonic::{Request, Status};

use super::ask::{Answers, Found, ask};
use super::fleet::Fleet;
use super::link::BOUND;
use crate::domain::{Id, Key, NodeName};
use crate::proto::internal::settle_request::Act;
use crate::proto::internal::{Hosts, SettleRequest};

/// When what is left is tried again, at first and at last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
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
    let mut tries: HashMap<Key, Tried> = HashMap::new();
    loop {
        let keys = fleet.inventory().unsettled();
        tries.retain(|key, _| keys.contains(key));
        let mut settling = JoinSet::new();
        for key in keys {
            if tries.get(&key).is_some_and(|tried| Instant::now() < tried.again) {
                continue;
            }
            if settling.len() >= AT_A_TIME {
                note(&mut tries, settling.join_next().await);
            }
            let fleet = Arc::clone(&fleet);
            settling.spawn(async move { (key, settle(&fleet, &key).await) });
        }
        while let Some(ended) = settling.join_next().await {
            note(&mut tries, Some(ended));
        }
        // cancel-safe: a notice that is missed here is made up for a second later
        let _ = tokio::time::timeout(FIRST_PAUSE, fleet.unsettled.notified()).await;
        // many notices make one round
        tokio::time::sleep(FIRST_PAUSE / 10).await;
    }
}

/// How a try to settle a name ended, with what its owner must know.
type Ended = Result<(Key, Result<Option<String>, Status>), JoinError>;

/// What came of the last try to settle a name.
struct Tried {
    again: Instant,
    pause: Duration,
    /// What was said of it, to say it once.
    said: Option<String>,
}

/// Notes how a try ended, and when the next one is due: what is not settled is tried less and less often.
fn note(tries: &mut HashMap<Key, Tried>, ended: Option<Ended>) {
    let Some(Ok((key, ended))) = ended else { return };
    let said = match ended {
        Ok(said) => said,
        Err(status) => {
            tracing::debug!(%key, why = status.message(), "not settled yet");
            None
        }
    };
    let before = tries.remove(&key);
    let pause = before.as_ref().map_or(FIRST_PAUSE, |tried| LONGEST_PAUSE.min(tried.pause * 2));
    if let Some(said) = &said
        && before.is_none_or(|tried| tried.said.as_ref() != Some(said))
    {
        tracing::warn!(%key, "{said}");
    }
    tries.insert(key, Tried { again: Instant::now() + part_of(pause), pause, said });
}

/// Half of a pause to all of it, by chance. Two controllers that tried in step would each take the other's newest claim away,
/// time after time.
fn part_of(pause: Duration) -> Duration {
    // the seed of each is another, and random
    let chance = RandomState::new().hash_one(pause) as f64 / u64::MAX as f64;
    pause.mul_f64(0.5 + chance / 2.0)
}

/// Settles one name as far as the hosts that are here allow. Answers what its owner must know of it.
async fn settle(fleet: &Fleet, key: &Key) -> Result<Option<String>, Status> {
    let Some(concerned) = concerned(fleet, key) else { return Ok(None) };
    // the question would take its claim away from a call that is just making it
    if fleet.names.exclusive(key).is_err() {
        return Ok(None);
    }
    let links = concerned.iter().filter_map(|host| fleet.link(host)).collect();
    let answers = ask(fleet, links, key).await;
    let existing: Vec<Found> = answers.existing().cloned().collect();
    if existing.len() > 1 {
        return match verdict(&existing) {
            Verdict::Keep(id) => remove_others(fleet, &answers, &existing, id).await.map(|()| None),
            Verdict::OwnersChoice => {
                // in one order: what is said anew is logged anew
                let ids: BTreeSet<String> = existing.iter().map(|found| found.id.to_string()).collect();
                let ids: Vec<String> = ids.into_iter().collect();
                Ok(Some(format!("several volumes have one name, and their owner must choose: {}", ids.join(", "))))
            }
        };
    }
    remove_after_deletion(fleet, &answers).await?;
    tell_who_was_asked(fleet, &answers).await?;
    let left_over = |one: &&Found| answers.deleted().any(|deleted| may_be_left_over(one, deleted));
    Ok(answers.existing().find(left_over).map(|one| {
        format!(
            "{} may be wanted, or be left over from before its name was deleted elsewhere: its owner must choose",
            one.id
        )
    }))
}

/// The hosts that have the name, and those that were passed over when it was made; `None` where none of the latter is here
/// and the name is in one place, so that there is nobody to ask.
fn concerned(fleet: &Fleet, key: &Key) -> Option<BTreeSet<NodeName>> {
    let inventory = fleet.inventory();
    let (mut hosts, mut passed_over) = (BTreeSet::new(), BTreeSet::new());
    for (host, volume) in inventory.of_name(key) {
        hosts.insert(host.clone());
        passed_over.extend(volume.passed_over.iter().cloned());
    }
    let is_double = hosts.len() > 1;
    drop(inventory);
    let is_here = |host: &NodeName| fleet.link(host).is_some_and(|link| link.is_here());
    let worth_it = is_double || passed_over.iter().any(is_here);
    hosts.extend(passed_over);
    worth_it.then_some(hosts)
}

/// The ones that go, each on its own host, which looks once more.
async fn remove_others(fleet: &Fleet, answers: &Answers, existing: &[Found], kept: Id) -> Result<(), Status> {
    for other in existing.iter().filter(|found| found.id != kept) {
        act(fleet, answers, other, Act::YieldTo(kept.to_string())).await?;
        tracing::info!(removed = %other.id, host = %other.host, %kept, "one of two volumes of a name was never granted");
    }
    Ok(())
}

/// A volume was deleted that others had been passed over for: what one of them has of the name nobody wants. If that one was
/// made, or answered, when the host of the deleted one could not be asked, it may be the newer of the two, and stays.
async fn remove_after_deletion(fleet: &Fleet, answers: &Answers) -> Result<(), Status> {
    for one in answers.deleted() {
        let unwanted = |other: &&Found| passed_over(one, other) && !passed_over(other, one) && other.generation == 0;
        for other in answers.existing().filter(unwanted) {
            act(fleet, answers, other, Act::YieldTo(one.id.to_string())).await?;
            tracing::info!(removed = %other.id, host = %other.host, deleted = %one.id, "its name was deleted elsewhere");
        }
    }
    Ok(())
}

/// Hosts that were asked by now are passed over no more, if they have nothing of the name that could still have to go, or to
/// be kept, because of that. What is remembered of a deleted one goes first.
async fn tell_who_was_asked(fleet: &Fleet, answers: &Answers) -> Result<(), Status> {
    for one in answers.deleted() {
        // a grant says that it is wanted
        let unwanted = |host: &NodeName| answers.existing().any(|other| is_of(other, host) && other.generation == 0);
        asked(fleet, answers, one, sure(answers, one).filter(|host| !unwanted(host)).collect()).await?;
    }
    for one in answers.existing() {
        let rivals = |host: &NodeName| answers.found.iter().any(|other| other.id != one.id && is_of(other, host));
        asked(fleet, answers, one, sure(answers, one).filter(|host| !rivals(host)).collect()).await?;
    }
    Ok(())
}

/// Whether it was made before that one was deleted, or answered since, and nobody can tell: each was made, or answered, when
/// the other's host could not be asked. A grant says that it is wanted.
fn may_be_left_over(one: &Found, deleted: &Found) -> bool {
    one.generation == 0 && passed_over(one, deleted) && passed_over(deleted, one)
}

/// Hosts of its list that have said all they may have of the name.
fn sure<'a>(answers: &'a Answers, one: &'a Found) -> impl Iterator<Item = NodeName> + 'a {
    one.passed_over.iter().filter(|host| answers.is_sure_of(host, &one.pool)).cloned()
}

/// Whether this host has it, or made it.
fn is_of(found: &Found, host: &NodeName) -> bool {
    found.host == *host || found.made_on.as_ref() == Some(host)
}

/// Takes hosts out of the list of what was found.
pub async fn asked(fleet: &Fleet, answers: &Answers, found: &Found, hosts: Vec<NodeName>) -> Result<(), Status> {
    if hosts.is_empty() {
        return Ok(());
    }
    let names = hosts.iter().map(NodeName::to_string).collect();
    act(fleet, answers, found, Act::Asked(Hosts { names })).await
}

async fn act(fleet: &Fleet, answers: &Answers, found: &Found, act: Act) -> Result<(), Status> {
    let claim = answers.claims.get(&found.host).cloned();
    let claim = claim.ok_or_else(|| Status::aborted(format!("host {} is at work on it", found.host)))?;
    let link = fleet.link(&found.host).ok_or_else(|| Status::unavailable("the host has left the fleet"))?;
    let mut request = Request::new(SettleRequest { id: found.id.to_string(), claim, act: Some(act) });
    request.set_timeout(BOUND * 5);
    let late = |_| Status::deadline_exceeded("the host does not answer");
    tokio::time::timeout(BOUND * 5, link.client().settle(request)).await.map_err(late)?.map(|_| ())
}

/// The owner's word: this one stays, and the others of its name go, unless a node has or had them.
pub async fn keep(fleet: &Fleet, id: &Id) -> Result<(), Status> {
    let answers = super::ask::ask_all(fleet, &id.key).await;
    let existing: Vec<Found> = answers.existing().cloned().collect();
    if !existing.iter().any(|found| found.id == *id) {
        return Err(Status::not_found(format!("the volume {id} is on no host that can be asked now")));
    }
    remove_others(fleet, &answers, &existing, *id).await?;
    for deleted in answers.deleted() {
        asked(fleet, &answers, deleted, deleted.passed_over.clone()).await?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::ask::FoundState;
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
            pool: "p".parse().unwrap(),
            state: FoundState::There,
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
