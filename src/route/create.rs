//! CreateVolume through a controller: the name is asked for first, then a host is chosen, and the message handed on to it.

use std::collections::BTreeSet;
use std::time::Instant;

use bytes::Bytes;
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::ask::{Answers, Found, ask_all};
use super::fleet::Fleet;
use super::forward::forward;
use super::placement::{Candidate, Place, Standing, Wanted, place};
use super::settle;
use crate::csi::parse;
use crate::domain::request::CreateVolume;
use crate::domain::{Id, Key, Kind, NodeName};
use crate::proto::csi::v1 as csi;

/// The path of the call.
const PATH: &str = "/csi.v1.Controller/CreateVolume";

/// Makes a volume on the host that it belongs to, or finds the one there is.
pub async fn create(fleet: &Fleet, message: Bytes, deadline: Instant) -> Result<Bytes, Status> {
    let request = csi::CreateVolumeRequest::decode(message.clone())
        .map_err(|error| Status::internal(format!("the message cannot be read: {error}")))?;
    let preferred = parse::preferred(request.accessibility_requirements.as_ref());
    let asked = parse::create_volume(request)?;
    let key = Key::of_name(Kind::Volume, &asked.name);
    let answers = ask_all(fleet, &key).await;
    let passed_over = passed_over(fleet, &asked, &answers);
    let call = Call { fleet, message, key, asked, passed_over, answers, deadline };
    let existing: Vec<Found> = call.answers.existing().cloned().collect();
    match existing.as_slice() {
        [] => call.make(preferred).await,
        [one] => call.find(one).await,
        several => Err(doubled(fleet, &key, several)),
    }
}

/// Hosts that may have a volume of this name and could not be asked for it.
fn passed_over(fleet: &Fleet, asked: &CreateVolume, answers: &Answers) -> BTreeSet<NodeName> {
    let may_carry: BTreeSet<NodeName> =
        fleet.candidates(&asked.parameters.pool).into_iter().map(|candidate| candidate.host).collect();
    let silent = answers.silent.iter().filter(|host| may_carry.contains(*host));
    silent.chain(&answers.unsure).cloned().collect()
}

/// There are two of a name. What can be settled is settled beside this call, and the caller asks again.
fn doubled(fleet: &Fleet, key: &Key, several: &[Found]) -> Status {
    fleet.unsettled.notify_one();
    let ids: Vec<String> = several.iter().map(|found| format!("{} on {}", found.id, found.host)).collect();
    let ids = ids.join(", ");
    match settle::verdict(several) {
        settle::Verdict::Keep(_) => Status::aborted(format!("two volumes of this name are being settled: {ids}")),
        settle::Verdict::OwnersChoice => Status::failed_precondition(format!(
            "{key}: several volumes have this name ({ids}), and only their owner can tell which one is meant: \
             `cistern volume keep ID`"
        )),
    }
}

/// A call, after the name was asked for.
struct Call<'a> {
    fleet: &'a Fleet,
    message: Bytes,
    key: Key,
    asked: CreateVolume,
    passed_over: BTreeSet<NodeName>,
    answers: Answers,
    deadline: Instant,
}

impl Call<'_> {
    /// The name is there: its host says whether it is what is asked for.
    async fn find(&self, found: &Found) -> Result<Bytes, Status> {
        if found.pool != self.asked.parameters.pool.to_string() {
            return Err(Status::already_exists(format!(
                "a volume of this name exists with another pool: it has {}",
                found.pool
            )));
        }
        self.hand_on(&found.host).await
    }

    /// The name is new.
    async fn make(&self, preferred: Vec<NodeName>) -> Result<Bytes, Status> {
        if let Some(host) = self.answers.busy.first() {
            return Err(Status::aborted(format!("a volume of this name is being made on host {host}")));
        }
        let wanted = self.wanted(preferred)?;
        let candidates = self.candidates();
        let pool = &self.asked.parameters.pool;
        if candidates.is_empty() {
            return Err(Status::invalid_argument(format!("parameters[pool]: no host has a pool {pool}")));
        }
        match place(&self.key, &wanted, candidates, self.fleet.patience.placing) {
            Place::On(hosts) => self.make_on_first_with_room(&hosts).await,
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

    /// Where it may live: what is cut from another lives where that does.
    fn wanted(&self, preferred: Vec<NodeName>) -> Result<Wanted, Status> {
        let mut wanted = Wanted { requisite: self.asked.hosts.clone(), preferred, size: self.asked.range.required };
        if let Some(source) = self.asked.source {
            if self.fleet.is_lost(&source.id().store) {
                return Err(Status::not_found(format!("the source {} is lost, its owner says", source.id())));
            }
            let link = self.fleet.link_of_store(&source.id().store)?;
            let may = wanted.requisite.as_ref().is_none_or(|hosts| hosts.contains(&link.name));
            // the host itself says what is wrong, in the words that it has for it
            wanted = Wanted { requisite: Some(vec![link.name.clone()]), preferred: Vec::new(), size: 0 };
            if !may {
                let host = &link.name;
                return Err(Status::resource_exhausted(format!("its source is on {host}, which is not asked for")));
            }
        }
        Ok(wanted)
    }

    /// The hosts that may carry the pool. One that has just been silent is away, whatever it last reported.
    fn candidates(&self) -> Vec<Candidate> {
        let mut candidates = self.fleet.candidates(&self.asked.parameters.pool);
        for candidate in &mut candidates {
            let answered = self.answers.claims.contains_key(&candidate.host);
            if !answered && matches!(candidate.standing, Standing::Here { .. }) {
                candidate.standing = Standing::Away { since: std::time::Duration::ZERO };
            }
        }
        candidates
    }

    /// The hosts in turn, until one does not say that it is full. What hosts report of their room is a moment old.
    async fn make_on_first_with_room(&self, hosts: &[NodeName]) -> Result<Bytes, Status> {
        let mut refused = Status::resource_exhausted("no host has room for it");
        for host in hosts {
            match self.hand_on(host).await {
                Err(status) if status.code() == Code::ResourceExhausted => refused = status,
                answered => return answered,
            }
        }
        Err(refused)
    }

    async fn hand_on(&self, host: &NodeName) -> Result<Bytes, Status> {
        let busy = || Status::aborted(format!("a volume of this name is being made on host {host}"));
        let claim = self.answers.claims.get(host).ok_or_else(busy)?;
        let link =
            self.fleet.link(host).ok_or_else(|| Status::unavailable(format!("host {host} has left the fleet")))?;
        // a host is not its own rival
        let others: Vec<String> =
            self.passed_over.iter().filter(|other| *other != host).map(NodeName::to_string).collect();
        let mut metadata = MetadataMap::new();
        let value = |text: &str| text.parse().map_err(|_| Status::internal(format!("{text:?} cannot be sent along")));
        metadata.insert(parse::CLAIM_KEY, value(claim)?);
        if !others.is_empty() {
            metadata.insert(parse::PASSED_OVER_KEY, value(&others.join(","))?);
        }
        let answer = forward(&link, PATH, self.message.clone(), metadata, self.deadline).await?;
        self.check(host, &answer)?;
        Ok(answer)
    }

    /// A host can only have made a volume of the name that was asked for, in a store of its own, that only it can use.
    fn check(&self, host: &NodeName, answer: &Bytes) -> Result<(), Status> {
        let strange = |what: &str| Status::internal(format!("host {host} answers with {what}"));
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
        if !self.asked.range.admits(size) || elsewhere {
            return Err(strange("a volume of another size or place than it may have"));
        }
        inventory.made(host, id, size, self.asked.source.map(|source| source.id()));
        Ok(())
    }
}
