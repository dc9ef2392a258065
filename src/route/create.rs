//! CreateVolume through a controller: the name is asked for first, then a host is chosen, and the message handed on to it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::ask::{Answers, Found, ask_all, confirm_all};
use super::fleet::Fleet;
use super::forward::forward;
use super::placement::{Candidate, Place, Standing, Wanted, place};
use super::settle::{self, Verdict};
use crate::csi::parse;
use crate::domain::request::CreateVolume;
use crate::domain::{Id, Key, Kind, NodeName, StoreId};
use crate::proto::csi::v1 as csi;

/// The path of the call.
const PATH: &str = "/csi.v1.Controller/CreateVolume";

/// Makes a volume on the host that it belongs to, or finds the one there is.
pub async fn create(fleet: &Fleet, message: Bytes, waiting: &Waiting) -> Result<Bytes, Status> {
    let request = csi::CreateVolumeRequest::decode(message.clone())
        .map_err(|error| Status::internal(format!("the message cannot be read: {error}")))?;
    let preferred = parse::preferred(request.accessibility_requirements.as_ref());
    let asked = parse::create_volume(request)?;
    fleet.when_known()?;
    let key = Key::of_name(Kind::Volume, &asked.name);
    let _name = fleet.names.exclusive(&key).map_err(|busy| Status::aborted(busy.to_string()))?;
    let answers = ask_all(fleet, &key).await;
    if let Some(host) = answers.busy.first() {
        return Err(Status::aborted(format!("host {host} is at work on a volume of this name")));
    }
    let mut call = Call { fleet, message, key, asked, answers, waiting };
    let existing: Vec<Found> = call.answers.existing().cloned().collect();
    let made = match existing.as_slice() {
        [] => call.make(preferred).await,
        [one] => call.find(one).await,
        several => return Err(doubled(fleet, &key, several)),
    };
    let made = made.map_err(|status| call.never_final(status))?;
    call.recall_deleted(&made).await?;
    Ok(made)
}

/// There are two of a name. What can be settled is settled beside this call, and the caller asks again. So it does where
/// the owner must choose: a caller that gave up would leave what there is to nobody.
fn doubled(fleet: &Fleet, key: &Key, several: &[Found]) -> Status {
    fleet.unsettled.notify_one();
    let ids: Vec<String> = several.iter().map(|found| format!("{} on {}", found.id, found.host)).collect();
    let ids = ids.join(", ");
    match settle::verdict(several) {
        Verdict::Keep(_) => Status::aborted(format!("two volumes of this name are being settled: {ids}")),
        Verdict::OwnersChoice => Status::aborted(format!(
            "{key}: several volumes have this name ({ids}), and only their owner can tell which one is meant: \
             `cistern volume keep ID`"
        )),
    }
}

/// Whether anybody still waits for the answer of a call.
#[derive(Debug)]
pub struct Waiting {
    /// When the caller stops.
    pub deadline: Instant,
    /// Set when it has gone.
    pub gone: CancellationToken,
}

impl Waiting {
    /// Fails where nobody waits any more. A caller that has gone asks again, through whatever controller: what begins on a
    /// host after that belongs to nobody, and what it would remove may be new.
    pub fn check(&self) -> Result<(), Status> {
        let waits = !self.gone.is_cancelled() && Instant::now() < self.deadline;
        waits.then_some(()).ok_or_else(|| Status::aborted("its caller has gone before it began"))
    }
}

/// A call, after the name was asked for.
struct Call<'a> {
    fleet: &'a Fleet,
    message: Bytes,
    key: Key,
    asked: CreateVolume,
    answers: Answers,
    waiting: &'a Waiting,
}

impl Call<'_> {
    /// After a final answer a caller may never call again, and nothing may be left of what it asked for: none is given
    /// while a host may have a volume of an earlier call.
    fn never_final(&self, status: Status) -> Status {
        let asks_again = matches!(
            status.code(),
            Code::Aborted | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::ResourceExhausted
        );
        let passed_over = self.passed_over();
        if asks_again || passed_over.is_empty() {
            return status;
        }
        let hosts: Vec<String> = passed_over.iter().map(NodeName::to_string).collect();
        let (code, message) = (status.code(), status.message());
        Status::unavailable(format!("{code:?}: {message} (not final: {} cannot be asked for all)", hosts.join(", ")))
    }

    /// The name is there: its host says whether it is what is asked for.
    async fn find(&self, found: &Found) -> Result<Bytes, Status> {
        if found.pool != self.asked.parameters.pool {
            let there = &found.pool;
            return Err(Status::already_exists(format!(
                "a volume of this name exists with another pool: it has {there}"
            )));
        }
        self.hand_on(&found.host).await
    }

    /// The name is new.
    async fn make(&mut self, preferred: Vec<NodeName>) -> Result<Bytes, Status> {
        let hosts = match self.asked.source.map(|source| source.id().store) {
            Some(store) => vec![self.host_of_source(&store)?],
            None => self.place(preferred)?,
        };
        if !confirm_all(self.fleet, &self.key, &mut self.answers).await {
            return Err(Status::aborted("the name was asked for again meanwhile"));
        }
        let refused = match self.make_on_first_that_can(&hosts).await {
            Err(status) if status.code() == Code::ResourceExhausted => status,
            answered => return answered,
        };
        // as long as one that it may live on is away, an earlier call may have made it there: that is not final
        let away = self
            .candidates()
            .into_iter()
            .find(|candidate| matches!(candidate.standing, Standing::Away { .. }) && self.may_live_on(&candidate.host));
        match away {
            Some(away) => Err(Status::unavailable(format!("host {} is away, and {}", away.host, refused.message()))),
            None => Err(refused),
        }
    }

    /// What is cut from another lives where that does; whether it can be cut so, its host says.
    fn host_of_source(&self, store: &StoreId) -> Result<NodeName, Status> {
        if self.fleet.is_lost(store) {
            return Err(Status::not_found(format!("the source's store {store} is lost, its owner says")));
        }
        let host = self.fleet.link_of_store(store)?.name.clone();
        if self.may_live_on(&host) {
            return Ok(host);
        }
        Err(Status::resource_exhausted(format!("its source is on host {host}, which is none of those asked for")))
    }

    fn may_live_on(&self, host: &NodeName) -> bool {
        self.asked.hosts.as_ref().is_none_or(|hosts| hosts.contains(host))
    }

    fn place(&self, preferred: Vec<NodeName>) -> Result<Vec<NodeName>, Status> {
        let pool = &self.asked.parameters.pool;
        let candidates = self.candidates();
        if candidates.is_empty() {
            return Err(Status::invalid_argument(format!("parameters[pool]: no host has a pool {pool}")));
        }
        let wanted = Wanted { requisite: self.asked.hosts.clone(), preferred, size: self.asked.range.required };
        match place(&self.key, &wanted, candidates, self.fleet.patience.placing) {
            Place::On(hosts) => Ok(hosts),
            Place::WaitFor(host) => Err(Status::unavailable(format!(
                "it belongs on host {host}, which is away; it is waited for before another is taken"
            ))),
            Place::OnlyAway(hosts) => {
                let hosts: Vec<String> = hosts.iter().map(NodeName::to_string).collect();
                Err(Status::unavailable(format!("the hosts that may have room for it are away: {}", hosts.join(", "))))
            }
            Place::Full => Err(Status::resource_exhausted(format!("no host has room for it in pool {pool}"))),
            Place::Nowhere => Err(Status::resource_exhausted(format!("none of the hosts asked for has pool {pool}"))),
        }
    }

    /// The hosts that may carry the pool. One that has not answered this call is away, whatever it last reported.
    fn candidates(&self) -> Vec<Candidate> {
        let mut candidates = self.fleet.candidates(&self.asked.parameters.pool);
        for candidate in &mut candidates {
            let answered = self.answers.claims.contains_key(&candidate.host);
            if !answered && matches!(candidate.standing, Standing::Here { .. }) {
                candidate.standing = Standing::Away { since: Duration::ZERO };
            }
        }
        candidates
    }

    /// The hosts in turn, until one does not say that it is full, or that it cannot: what hosts report is a moment old, and
    /// one whose disk fails keeps nobody from the next.
    async fn make_on_first_that_can(&self, hosts: &[NodeName]) -> Result<Bytes, Status> {
        let mut refused = Status::resource_exhausted("no host has room for it");
        for host in hosts {
            match self.hand_on(host).await {
                Err(status) if matches!(status.code(), Code::ResourceExhausted | Code::Internal) => refused = status,
                answered => return answered,
            }
        }
        Err(refused)
    }

    /// Hosts that may have a volume of this name and could not be asked for it. One that was not heard may have been given
    /// any pool meanwhile, with a disk that was another's and all that is on it; one that was heard may be unsure of itself.
    fn passed_over(&self) -> BTreeSet<NodeName> {
        let unsure = self.answers.unsure_of(&self.asked.parameters.pool);
        self.answers.silent.iter().chain(unsure).cloned().collect()
    }

    async fn hand_on(&self, host: &NodeName) -> Result<Bytes, Status> {
        let asked_again = || Status::aborted(format!("host {host} could not be asked"));
        let claim = self.answers.claims.get(host).ok_or_else(asked_again)?;
        let link = self.fleet.link(host).ok_or_else(asked_again)?;
        let others: Vec<String> = self.passed_over().iter().map(NodeName::to_string).collect();
        let mut metadata = MetadataMap::new();
        let value = |text: &str| text.parse().map_err(|_| Status::internal(format!("{text:?} cannot be sent along")));
        metadata.insert(parse::CLAIM_KEY, value(claim)?);
        if !others.is_empty() {
            metadata.insert(parse::PASSED_OVER_KEY, value(&others.join(","))?);
        }
        self.waiting.check()?;
        let answer = forward(&link, PATH, self.message.clone(), metadata, self.waiting.deadline).await?;
        self.check(host, &answer)?;
        Ok(answer)
    }

    /// A host can only have made a volume of the name that was asked for, in a store of its own, that only it can use. The
    /// caller asks again: a store may have changed hands in this moment.
    fn check(&self, host: &NodeName, answer: &Bytes) -> Result<(), Status> {
        let strange = |what: &str| Status::unavailable(format!("host {host} answers with {what}"));
        let answer = csi::CreateVolumeResponse::decode(answer.clone()).map_err(|_| strange("what cannot be read"))?;
        let volume = answer.volume.ok_or_else(|| strange("no volume"))?;
        let id = Id::parse(Kind::Volume, &volume.volume_id).ok_or_else(|| strange("what is no id"))?;
        let size = u64::try_from(volume.capacity_bytes).map_err(|_| strange("a negative size"))?;
        let elsewhere =
            volume.accessible_topology.iter().any(|topology| parse::host_of(topology).as_ref() != Some(host));
        let mut inventory = self.fleet.inventory_mut();
        if id.key != self.key || !inventory.has_store(host, &id.store) {
            return Err(strange("a volume that is not the one asked for, or not in a store of its own"));
        }
        if !self.asked.range.admits(size) || elsewhere || !self.may_live_on(host) {
            return Err(strange("a volume of another size or place than it may have"));
        }
        inventory.made(host, id, size, self.asked.source.map(|source| source.id()));
        Ok(())
    }

    /// The name is wanted again: what is remembered of one that was deleted must not take away what is about to be answered.
    /// Its own host has forgotten it already: under the same id, what stands there now is the new one.
    async fn recall_deleted(&self, made: &Bytes) -> Result<(), Status> {
        let volume = csi::CreateVolumeResponse::decode(made.clone()).ok().and_then(|answer| answer.volume);
        let made = volume.and_then(|volume| Id::parse(Kind::Volume, &volume.volume_id));
        for deleted in self.answers.deleted().filter(|deleted| Some(deleted.id) != made) {
            settle::asked(self.fleet, &self.answers, deleted, deleted.passed_over.clone()).await?;
        }
        Ok(())
    }
}
