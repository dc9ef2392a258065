//! CSI Controller, as the sidecars call it at a controller: each message is looked at only as far as it takes to know which
//! host it is for. What it says wrong is refused here with the words that a host would have for it, since both parse alike.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tower::Service;

use super::create::Waiting;
use super::fleet::Fleet;
use super::forward::{RawCodec, forward, is_of_the_way};
use super::inventory::{Snapshot, Volume};
use super::link::Link;
use super::{create, lists};
use crate::csi::parse::{self, PublishRequest};
use crate::csi::{LARGEST_MESSAGE, Telemetry, capabilities, deadline};
use crate::domain::{Id, Key, Kind, StoreId};
use crate::pool::tasks::{Task, Tasks};
use crate::proto::csi::v1 as csi;

/// The Controller service of a controller.
#[derive(Clone)]
pub struct ControllerDoor {
    /// The hosts.
    pub fleet: Arc<Fleet>,
    /// The work under way.
    pub tasks: Tasks,
}

impl NamedService for ControllerDoor {
    const NAME: &'static str = "csi.v1.Controller";
}

impl Service<http::Request<Body>> for ControllerDoor {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().and_then(Method::of);
        let (fleet, task) = (Arc::clone(&self.fleet), self.tasks.begin());
        Box::pin(async move {
            let Some(method) = method else { return Ok(Status::unimplemented("no such call").into_http()) };
            let mut grpc = Grpc::new(RawCodec).max_decoding_message_size(LARGEST_MESSAGE);
            Ok(grpc.unary(Handler { fleet, method, task: Some(task) }, request).await)
        })
    }
}

/// The calls that are answered or handed on.
macro_rules! methods {
    ($($name:ident),+ $(,)?) => {
        /// A call of CSI Controller.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Method { $($name),+ }

        impl Method {
            fn of(name: &str) -> Option<Method> {
                match name {
                    $(stringify!($name) => Some(Method::$name),)+
                    _ => None,
                }
            }

            fn name(self) -> &'static str {
                match self { $(Method::$name => stringify!($name)),+ }
            }

            fn path(self) -> &'static str {
                match self { $(Method::$name => concat!("/csi.v1.Controller/", stringify!($name))),+ }
            }
        }
    };
}

methods!(
    ControllerExpandVolume,
    ControllerGetCapabilities,
    ControllerGetVolume,
    ControllerModifyVolume,
    ControllerPublishVolume,
    ControllerUnpublishVolume,
    CreateSnapshot,
    CreateVolume,
    DeleteSnapshot,
    DeleteVolume,
    GetCapacity,
    GetSnapshot,
    ListSnapshots,
    ListVolumes,
    ValidateVolumeCapabilities,
);

/// One call.
struct Handler {
    fleet: Arc<Fleet>,
    method: Method,
    /// Counts it among the work under way until it has ended.
    task: Option<Task>,
}

impl UnaryService<Bytes> for Handler {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (fleet, method, task) = (Arc::clone(&self.fleet), self.method, self.task.take());
        Box::pin(async move {
            let deadline = deadline(&request);
            let gone = CancellationToken::new();
            // set when the answer is given, or when this is dropped since nobody waits for it
            let _waits = gone.clone().drop_guard();
            let waiting = Waiting { deadline, gone };
            let call = Call { fleet, method, message: request.into_inner(), waiting };
            // in a task of its own: what has begun on a host is followed to its end, whether the caller waits or not
            let answering = tokio::spawn(async move {
                let _task = task;
                let about = call.about();
                Telemetry.observe(method.name(), about, call.answer()).await
            });
            let ended = answering.await.unwrap_or_else(|_| Err(Status::unavailable("it ended without an answer")));
            ended.map(Response::new)
        })
    }
}

/// What all messages about a volume have in their first field.
#[derive(Clone, PartialEq, Message)]
struct About {
    #[prost(string, tag = "1")]
    volume_id: String,
}

/// Where a message goes.
enum To {
    /// To the host of this store; `id` is what it is about.
    Store(Id),
    /// The same, and where the store is lost all is done already: this is the answer.
    StoreOrDone(Id, Bytes),
    /// To nobody: this is the answer.
    Nobody(Bytes),
}

struct Call {
    fleet: Arc<Fleet>,
    method: Method,
    message: Bytes,
    waiting: Waiting,
}

impl Call {
    /// What it is about, for the log.
    fn about(&self) -> String {
        match self.method {
            Method::CreateVolume => self.read::<csi::CreateVolumeRequest>().map(|message| message.name),
            Method::CreateSnapshot => self.read::<csi::CreateSnapshotRequest>().map(|message| message.name),
            Method::DeleteSnapshot => self.read::<csi::DeleteSnapshotRequest>().map(|message| message.snapshot_id),
            Method::GetSnapshot => self.read::<csi::GetSnapshotRequest>().map(|message| message.snapshot_id),
            Method::ControllerExpandVolume
            | Method::ControllerGetVolume
            | Method::ControllerModifyVolume
            | Method::ControllerPublishVolume
            | Method::ControllerUnpublishVolume
            | Method::DeleteVolume
            | Method::ValidateVolumeCapabilities => self.read::<About>().map(|message| message.volume_id),
            Method::ControllerGetCapabilities | Method::GetCapacity | Method::ListSnapshots | Method::ListVolumes => {
                Ok(String::new())
            }
        }
        .unwrap_or_default()
    }

    fn read<M: Message + Default>(&self) -> Result<M, Status> {
        M::decode(self.message.clone())
            .map_err(|error| Status::internal(format!("the message cannot be read: {error}")))
    }

    async fn answer(self) -> Result<Bytes, Status> {
        match self.method {
            Method::CreateVolume => create::create(&self.fleet, self.message, &self.waiting).await,
            Method::ControllerGetCapabilities => Ok(bytes(&capabilities())),
            Method::ListVolumes => lists::volumes(&self.fleet, &self.read()?).map(|answer| bytes(&answer)),
            Method::GetCapacity => lists::capacity(&self.fleet, self.read()?).map(|answer| bytes(&answer)),
            Method::ListSnapshots => match self.filter()? {
                Some(to) => self.send(to).await,
                None => lists::snapshots(&self.fleet, &self.read()?).map(|answer| bytes(&answer)),
            },
            Method::ControllerExpandVolume
            | Method::ControllerGetVolume
            | Method::ControllerModifyVolume
            | Method::ControllerPublishVolume
            | Method::ControllerUnpublishVolume
            | Method::CreateSnapshot
            | Method::DeleteSnapshot
            | Method::DeleteVolume
            | Method::GetSnapshot
            | Method::ValidateVolumeCapabilities => {
                let to = self.to()?;
                self.send(to).await
            }
        }
    }

    /// Whom a message that names a volume or snapshot is for.
    fn to(&self) -> Result<To, Status> {
        let volume = |text: String| known(Kind::Volume, "volume", text);
        match self.method {
            Method::DeleteVolume => {
                let id = parse::volume_id(self.read::<csi::DeleteVolumeRequest>()?.volume_id)?;
                Ok(to_or_done(id, bytes(&csi::DeleteVolumeResponse {})))
            }
            Method::DeleteSnapshot => {
                let id = parse::snapshot_id(self.read::<csi::DeleteSnapshotRequest>()?.snapshot_id)?;
                Ok(to_or_done(id, bytes(&csi::DeleteSnapshotResponse {})))
            }
            Method::ControllerUnpublishVolume => {
                let id = parse::volume_id(self.read::<csi::ControllerUnpublishVolumeRequest>()?.volume_id)?;
                Ok(to_or_done(id, bytes(&csi::ControllerUnpublishVolumeResponse {})))
            }
            Method::ControllerPublishVolume => match parse::publish(self.read()?)? {
                PublishRequest::Known(asked) => self.refuse_doubles(&asked.volume).map(|()| To::Store(asked.volume)),
                PublishRequest::VolumeUnknown(id) => Err(parse::unknown("volume", &id)),
                PublishRequest::NodeUnknown(id) => Err(parse::unknown("node", &id)),
            },
            Method::ControllerExpandVolume => volume(self.read::<csi::ControllerExpandVolumeRequest>()?.volume_id),
            Method::ControllerModifyVolume => {
                let request: csi::ControllerModifyVolumeRequest = self.read()?;
                let to = parse::required("volume_id", request.volume_id)?;
                parse::map("mutable_parameters", &request.mutable_parameters)?;
                parse::modifiable("mutable_parameters", request.mutable_parameters)?;
                volume(to)
            }
            Method::ControllerGetVolume => volume(self.read::<csi::ControllerGetVolumeRequest>()?.volume_id),
            Method::ValidateVolumeCapabilities => {
                let request: csi::ValidateVolumeCapabilitiesRequest = self.read()?;
                let to = parse::required("volume_id", request.volume_id)?;
                parse::capabilities(request.volume_capabilities)?;
                volume(to)
            }
            Method::GetSnapshot => {
                known(Kind::Snapshot, "snapshot", self.read::<csi::GetSnapshotRequest>()?.snapshot_id)
            }
            Method::CreateSnapshot => self.to_cut(self.read()?),
            Method::CreateVolume
            | Method::ControllerGetCapabilities
            | Method::GetCapacity
            | Method::ListSnapshots
            | Method::ListVolumes => Err(Status::internal("it names no volume")),
        }
    }

    /// A snapshot is cut where its volume lives. Its name is looked for in what hosts reported.
    fn to_cut(&self, request: csi::CreateSnapshotRequest) -> Result<To, Status> {
        let (name, volume) = parse::create_snapshot(request)?;
        let key = Key::of_name(Kind::Snapshot, &name);
        let to = known(Kind::Volume, "volume", volume)?;
        if let To::Store(of) = &to
            && let Some(other) = self.fleet.inventory().snapshot_elsewhere(&key, &of.store)
        {
            return Err(Status::already_exists(format!("a snapshot of this name exists, of another volume: {other}")));
        }
        Ok(to)
    }

    /// ListSnapshots of one volume, or of one snapshot: whoever has that tells all there is.
    fn filter(&self) -> Result<Option<To>, Status> {
        let request: csi::ListSnapshotsRequest = self.read()?;
        parse::pages(request.max_entries, &request.starting_token)?;
        let (kind, text) = match (request.snapshot_id, request.source_volume_id) {
            (snapshot, _) if !snapshot.is_empty() => (Kind::Snapshot, snapshot),
            (_, volume) if !volume.is_empty() => (Kind::Volume, volume),
            _ => return Ok(None),
        };
        let none = bytes(&csi::ListSnapshotsResponse::default());
        Ok(Some(to_or_done(Id::parse(kind, &text), none)))
    }

    /// Of several volumes with one name none is given to a node, until one has been, or their owner has chosen.
    fn refuse_doubles(&self, id: &Id) -> Result<(), Status> {
        let doubles = self.fleet.inventory().doubles(&id.key);
        let others: Vec<&(Id, Volume)> = doubles.iter().filter(|(other, _)| other != id).collect();
        let was_granted = doubles.iter().any(|(other, volume)| other == id && volume.generation > 0);
        let other_was_granted = others.iter().any(|(_, volume)| volume.generation > 0);
        if others.is_empty() || (was_granted && !other_was_granted) {
            return Ok(());
        }
        let others: Vec<String> = others.iter().map(|(other, _)| other.to_string()).collect();
        self.fleet.host_changed();
        Err(Status::failed_precondition(format!(
            "{} has the same name; until that is settled, neither is given to a node: `cistern volume ls`",
            others.join(", ")
        )))
    }

    async fn send(&self, to: To) -> Result<Bytes, Status> {
        let id = match to {
            To::Nobody(answer) => return Ok(answer),
            To::StoreOrDone(id, answer) if self.fleet.is_lost(&id.store) => {
                tracing::info!(%id, "its store is lost, its owner says: done");
                return Ok(answer);
            }
            To::Store(id) | To::StoreOrDone(id, _) => id,
        };
        refuse_lost(&self.fleet, &id.store)?;
        let link = self.fleet.link_of_store(&id.store)?;
        let path = self.method.path();
        let metadata = match self.method {
            Method::DeleteVolume => claim(&link, &id).await?,
            _ => MetadataMap::new(),
        };
        self.waiting.check()?;
        let answer = forward(&link, path, self.message.clone(), metadata, self.waiting.deadline).await?;
        self.remember(&id, &answer)?;
        Ok(answer)
    }

    /// Takes into the lists what the host has just done; its report says the same a moment later.
    fn remember(&self, id: &Id, answer: &Bytes) -> Result<(), Status> {
        let mut inventory = self.fleet.inventory_mut();
        match self.method {
            Method::DeleteVolume | Method::DeleteSnapshot => inventory.removed(id),
            Method::ControllerPublishVolume => {
                let node = self.read::<csi::ControllerPublishVolumeRequest>()?.node_id;
                inventory.amend(id, |volume| {
                    volume.generation = volume.generation.max(1);
                    if !volume.nodes.contains(&node) {
                        volume.nodes.push(node);
                    }
                });
            }
            Method::ControllerUnpublishVolume => {
                let node = self.read::<csi::ControllerUnpublishVolumeRequest>()?.node_id;
                inventory.amend(id, |volume| volume.nodes.retain(|other| !node.is_empty() && !same_node(other, &node)));
            }
            Method::CreateSnapshot => {
                let cut = csi::CreateSnapshotResponse::decode(answer.clone()).ok().and_then(|answer| answer.snapshot);
                let name = self.read::<csi::CreateSnapshotRequest>()?.name;
                let asked_for = Id { store: id.store, key: Key::of_name(Kind::Snapshot, &name) };
                let cut = cut.and_then(snapshot_of).filter(|(cut, snapshot)| *cut == asked_for && snapshot.of == *id);
                // whoever is told another's id will delete it one day
                let strange = || Status::internal("the host answers with a snapshot that is not the one asked for");
                let (_, snapshot) = cut.ok_or_else(strange)?;
                inventory.cut(asked_for, snapshot);
            }
            Method::ListSnapshots => {
                let listed = csi::ListSnapshotsResponse::decode(answer.clone()).map_err(|_| unreadable())?.entries;
                let is_its_own = |cut: csi::Snapshot| {
                    Id::parse(Kind::Snapshot, &cut.snapshot_id).is_some_and(|cut| cut.store == id.store)
                };
                if !listed.into_iter().filter_map(|entry| entry.snapshot).all(is_its_own) {
                    return Err(Status::internal("the host answers with snapshots of others"));
                }
            }
            Method::GetSnapshot => {
                let answer = csi::GetSnapshotResponse::decode(answer.clone()).map_err(|_| unreadable())?;
                if answer.snapshot.is_none_or(|cut| cut.snapshot_id != id.to_string()) {
                    return Err(Status::internal("the host answers with another snapshot"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn unreadable() -> Status {
    Status::internal("the host answers with what cannot be read")
}

/// What a deletion shows to the host: a volume that was made anew under the same id, by a call that came in between, is not
/// removed by a message that was long on its way.
async fn claim(link: &Link, id: &Id) -> Result<MetadataMap, Status> {
    let found = link.find(&id.key, true).await.map_err(|status| {
        if is_of_the_way(&status) {
            link.suspect(status.message());
        }
        Status::unavailable(format!("host {} cannot be asked: {}", link.name, status.message()))
    })?;
    if found.claim.is_empty() {
        return Err(Status::aborted(format!("host {} is at work on a volume of this name", link.name)));
    }
    let mut metadata = MetadataMap::new();
    let claim = found.claim.parse().map_err(|_| Status::unavailable(format!("host {} gives no claim", link.name)))?;
    metadata.insert(parse::CLAIM_KEY, claim);
    Ok(metadata)
}

/// The nodes of two ids are the same if their names are.
fn same_node(one: &str, other: &str) -> bool {
    one.split(',').next() == other.split(',').next()
}

fn snapshot_of(cut: csi::Snapshot) -> Option<(Id, Snapshot)> {
    let id = Id::parse(Kind::Snapshot, &cut.snapshot_id)?;
    let of = Id::parse(Kind::Volume, &cut.source_volume_id)?;
    let created = cut.creation_time.map_or((0, 0), |time| (time.seconds, u32::try_from(time.nanos).unwrap_or(0)));
    Some((id, Snapshot::new(u64::try_from(cut.size_bytes).ok()?, of, created, cut.ready_to_use)))
}

fn refuse_lost(fleet: &Fleet, store: &StoreId) -> Result<(), Status> {
    let lost = || Status::not_found(format!("store {store} is lost, its owner says"));
    (!fleet.is_lost(store)).then_some(()).ok_or_else(lost)
}

fn known(kind: Kind, what: &str, text: String) -> Result<To, Status> {
    let text = parse::required(&format!("{what}_id"), text)?;
    Id::parse(kind, &text).map(To::Store).ok_or_else(|| parse::unknown(what, &text))
}

/// What cannot be was never there.
fn to_or_done(id: Option<Id>, done: Bytes) -> To {
    match id {
        Some(id) => To::StoreOrDone(id, done),
        None => To::Nobody(done),
    }
}

fn bytes(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}
