//! CSI Controller, served by the host that has the volumes.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::parse::{self, PublishRequest, TOPOLOGY_KEY, invalid, pages, unknown};
use super::status::Coded;
use super::{Telemetry, deadline, run};
use crate::domain::request::{Access, Capability};
use crate::domain::size::GRAIN;
use crate::domain::volume::Content;
use crate::domain::{Id, Kind, NodeName, StoreId};
use crate::pool::operations::{self, SnapshotInfo, VolumeInfo};
use crate::pool::record::{Origin, Record, Timestamp};
use crate::pool::tasks::Tasks;
use crate::pool::{Host, Unavailable};
use crate::proto::csi::v1 as csi;

use csi::controller_service_capability::rpc::Type as Rpc;

/// What the controller can do.
const CAPABILITIES: [Rpc; 14] = [
    Rpc::CreateDeleteVolume,
    Rpc::PublishUnpublishVolume,
    Rpc::ListVolumes,
    Rpc::GetCapacity,
    Rpc::CreateDeleteSnapshot,
    Rpc::ListSnapshots,
    Rpc::CloneVolume,
    Rpc::PublishReadonly,
    Rpc::ExpandVolume,
    Rpc::ListVolumesPublishedNodes,
    Rpc::GetVolume,
    Rpc::SingleNodeMultiWriter,
    Rpc::ModifyVolume,
    Rpc::GetSnapshot,
];

/// The Controller service.
pub struct Controller {
    /// The stores.
    pub host: Arc<Host>,
    /// The work under way.
    pub tasks: Tasks,
    /// Whether this host is one of many: then a controller chooses it for each new volume, and says how
    /// ([`parse::choice`]).
    pub chosen: bool,
}

impl Controller {
    /// Runs an operation on a store when its turn has come.
    async fn on_store<T, E>(
        &self,
        store: &StoreId,
        deadline: Instant,
        operation: impl FnOnce(&Host) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        E: Coded + Send,
    {
        let store = self.host.store(store).map_err(away)?;
        self.with_turns(Arc::clone(&store.turns), deadline, operation).await
    }

    /// Runs an operation that takes something away; of a store that is lost all is taken away already.
    async fn take_away<E>(
        &self,
        store: &StoreId,
        deadline: Instant,
        operation: impl FnOnce(&Host) -> Result<(), E> + Send + 'static,
    ) -> Result<(), Status>
    where
        E: Coded + Send,
    {
        match self.host.store(store) {
            Err(Unavailable::Lost(_)) => Ok(()),
            _ => self.on_store(store, deadline, operation).await,
        }
    }

    async fn with_turns<T, E>(
        &self,
        turns: Arc<Semaphore>,
        deadline: Instant,
        operation: impl FnOnce(&Host) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        E: Coded + Send,
    {
        let host = Arc::clone(&self.host);
        run(&self.tasks, turns, deadline, move || operation(&host)).await
    }

    async fn create(&self, request: Request<csi::CreateVolumeRequest>) -> Result<csi::CreateVolumeResponse, Status> {
        let deadline = deadline(&request);
        let choice = if self.chosen { Some(parse::choice(request.metadata())?) } else { None };
        let asked = parse::create_volume(request.into_inner())?;
        let store = self.host.store_of_pool(&asked.parameters.pool).map_err(away)?;
        let operation = move |host: &Host| operations::create(host, &asked, choice.as_ref());
        let made = self.with_turns(Arc::clone(&store.turns), deadline, operation).await?;
        Ok(csi::CreateVolumeResponse { volume: Some(volume(&made)) })
    }

    async fn delete(&self, request: Request<csi::DeleteVolumeRequest>) -> Result<csi::DeleteVolumeResponse, Status> {
        let deadline = deadline(&request);
        let claim = parse::claim(request.metadata())?;
        if let Some(id) = parse::volume_id(request.into_inner().volume_id)? {
            let operation = move |host: &Host| operations::delete(host, id, claim.as_ref()).map(|_| ());
            self.take_away(&id.store, deadline, operation).await?;
        }
        Ok(csi::DeleteVolumeResponse {})
    }

    async fn publish(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<csi::ControllerPublishVolumeResponse, Status> {
        let deadline = deadline(&request);
        let asked = match parse::publish(request.into_inner())? {
            PublishRequest::Known(asked) => asked,
            PublishRequest::VolumeUnknown(id) => return Err(unknown("volume", &id)),
            PublishRequest::NodeUnknown(id) => return Err(unknown("node", &id)),
        };
        let store = asked.volume.store;
        let ticket = self.on_store(&store, deadline, move |host| operations::publish(host, &asked)).await?;
        Ok(csi::ControllerPublishVolumeResponse { publish_context: ticket.to_context() })
    }

    async fn unpublish(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<csi::ControllerUnpublishVolumeResponse, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let volume = parse::volume_id(request.volume_id)?;
        let node: Option<NodeName> = match request.node_id.as_str() {
            "" => None,
            // a node that cannot be has nothing
            text => match parse::node_id(text) {
                Some(node) => Some(node.name),
                None => return Ok(csi::ControllerUnpublishVolumeResponse {}),
            },
        };
        if let Some(id) = volume {
            let operation = move |host: &Host| operations::unpublish(host, id, node.as_ref());
            self.take_away(&id.store, deadline, operation).await?;
        }
        Ok(csi::ControllerUnpublishVolumeResponse {})
    }

    fn validate(
        &self,
        request: csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse, Status> {
        let id = parse::required("volume_id", request.volume_id)?;
        let capabilities = parse::capabilities(request.volume_capabilities.clone())?;
        parse::map("volume_context", &request.volume_context)?;
        let (_, record) = self.find(Kind::Volume, &id)?;
        let refused = capabilities.iter().find_map(|capability| refusal(&record, capability));
        let parameters = parse::modifiable("mutable_parameters", request.mutable_parameters.clone());
        let message = refused.or(parameters.err().map(|status| status.message().to_owned()));
        let confirmed = message.is_none().then_some(csi::validate_volume_capabilities_response::Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
            mutable_parameters: request.mutable_parameters,
        });
        Ok(csi::ValidateVolumeCapabilitiesResponse { confirmed, message: message.unwrap_or_default() })
    }

    /// A volume or snapshot that is there, by the text of its id.
    fn find(&self, kind: Kind, text: &str) -> Result<(Id, Arc<Record>), Status> {
        let what = if kind == Kind::Volume { "volume" } else { "snapshot" };
        let id = Id::parse(kind, text).ok_or_else(|| unknown(what, text))?;
        let store = self.host.store(&id.store).map_err(away)?;
        let record = operations::look_up(&store, &id.key).map_err(|error| Status::internal(error.to_string()))?;
        record.map(|record| (id, record)).ok_or_else(|| unknown(what, text))
    }

    fn list_volumes(&self, request: csi::ListVolumesRequest) -> Result<csi::ListVolumesResponse, Status> {
        self.host.all_are_up().map_err(away)?;
        let page = operations::volumes(&self.host, pages(request.max_entries, &request.starting_token)?);
        let entry = |listed: operations::ListedVolume| csi::list_volumes_response::Entry {
            volume: Some(volume(&listed.volume)),
            status: Some(csi::list_volumes_response::VolumeStatus {
                published_node_ids: listed.nodes.iter().map(ToString::to_string).collect(),
            }),
        };
        Ok(csi::ListVolumesResponse {
            entries: page.entries.into_iter().map(entry).collect(),
            next_token: page.next.map(|id| id.to_string()).unwrap_or_default(),
        })
    }

    fn list_snapshots(&self, request: csi::ListSnapshotsRequest) -> Result<csi::ListSnapshotsResponse, Status> {
        let pages = pages(request.max_entries, &request.starting_token)?;
        // a filter that nothing can match makes an empty list
        let id = |kind, text: &str| (!text.is_empty()).then(|| Id::parse(kind, text));
        let (of, only) = (id(Kind::Volume, &request.source_volume_id), id(Kind::Snapshot, &request.snapshot_id));
        self.host.all_are_up().map_err(away)?;
        let page = operations::snapshots(&self.host, pages, |snapshot| {
            of.is_none_or(|of| of == Some(snapshot.of)) && only.is_none_or(|only| only == Some(snapshot.id))
        });
        let entry = |listed: operations::ListedSnapshot| csi::list_snapshots_response::Entry {
            snapshot: Some(snapshot(&listed.snapshot)),
        };
        Ok(csi::ListSnapshotsResponse {
            entries: page.entries.into_iter().map(entry).collect(),
            next_token: page.next.map(|id| id.to_string()).unwrap_or_default(),
        })
    }

    fn capacity(&self, request: csi::GetCapacityRequest) -> Result<csi::GetCapacityResponse, Status> {
        let asked = parse::capacity(request)?;
        let elsewhere = asked.host.is_some_and(|host| host.as_ref() != Some(self.host.name()));
        let stores = match &asked.pool {
            None => self.host.stores(),
            Some(pool) => vec![self.host.store_of_pool(pool).map_err(away)?],
        };
        let (mut sum, mut largest) = (0_u64, 0_u64);
        for store in stores.iter().filter(|_| !elsewhere && !asked.is_impossible) {
            let available = store.available().map_err(|error| Status::internal(error.to_string()))?;
            sum = sum.saturating_add(available);
            largest = largest.max(available);
        }
        Ok(csi::GetCapacityResponse {
            available_capacity: bytes(sum),
            maximum_volume_size: Some(bytes(largest)),
            minimum_volume_size: Some(bytes(GRAIN)),
        })
    }

    async fn cut(&self, request: Request<csi::CreateSnapshotRequest>) -> Result<csi::CreateSnapshotResponse, Status> {
        let deadline = deadline(&request);
        let (name, volume) = parse::create_snapshot(request.into_inner())?;
        let of = Id::parse(Kind::Volume, &volume).ok_or_else(|| unknown("volume", &volume))?;
        let operation = move |host: &Host| operations::snapshot(host, &name, of);
        let cut = self.on_store(&of.store, deadline, operation).await?;
        Ok(csi::CreateSnapshotResponse { snapshot: Some(snapshot(&cut)) })
    }

    async fn drop_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<csi::DeleteSnapshotResponse, Status> {
        let deadline = deadline(&request);
        if let Some(id) = parse::snapshot_id(request.into_inner().snapshot_id)? {
            let operation = move |host: &Host| operations::delete(host, id, None).map(|_| ());
            self.take_away(&id.store, deadline, operation).await?;
        }
        Ok(csi::DeleteSnapshotResponse {})
    }

    async fn expand(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<csi::ControllerExpandVolumeResponse, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let volume = parse::required("volume_id", request.volume_id)?;
        if request.capacity_range.is_none() {
            return Err(invalid("capacity_range", "is missing"));
        }
        let range = parse::capacity_range(request.capacity_range)?;
        let capability =
            request.volume_capability.map(|one| parse::capability("volume_capability", Some(one))).transpose()?;
        let id = Id::parse(Kind::Volume, &volume).ok_or_else(|| unknown("volume", &volume))?;
        if let Some(capability) = capability
            && let Ok((_, record)) = self.find(Kind::Volume, &volume)
            && let Some(why) = refusal(&record, &capability)
        {
            return Err(invalid("volume_capability", why));
        }
        let expanded = self.on_store(&id.store, deadline, move |host| operations::expand(host, id, range)).await?;
        Ok(csi::ControllerExpandVolumeResponse {
            capacity_bytes: bytes(expanded.size),
            node_expansion_required: expanded.node_has_work,
        })
    }

    async fn modify(
        &self,
        request: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Result<csi::ControllerModifyVolumeResponse, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let volume = parse::required("volume_id", request.volume_id)?;
        parse::map("mutable_parameters", &request.mutable_parameters)?;
        let changes = parse::modifiable("mutable_parameters", request.mutable_parameters)?;
        let id = Id::parse(Kind::Volume, &volume).ok_or_else(|| unknown("volume", &volume))?;
        self.on_store(&id.store, deadline, move |host| operations::modify(host, id, &changes)).await?;
        Ok(csi::ControllerModifyVolumeResponse {})
    }
}

fn away(error: Unavailable) -> Status {
    super::status::away(&error)
}

/// Why a volume cannot be used so; `None` if it can.
fn refusal(record: &Record, capability: &Capability) -> Option<String> {
    if capability.mode.is_multi_node() {
        return Some(format!("a local volume cannot be used in mode {:?}", capability.mode));
    }
    match (&capability.access, record.content) {
        (Access::Block, Content::Block) => None,
        (Access::Mount(mount), Content::Filesystem { fs, .. }) if mount.fs.is_none_or(|wanted| wanted == fs) => None,
        (_, Content::Block) => Some("the volume is a device".to_owned()),
        (_, Content::Filesystem { fs, .. }) => Some(format!("the volume has a file system of type {fs}")),
    }
}

/// A size in CSI's own type. No store has 8 EiB.
fn bytes(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// What the controller can do, as it is answered.
pub fn capabilities() -> csi::ControllerGetCapabilitiesResponse {
    use csi::controller_service_capability::{Rpc as Wrapped, Type};
    let capability =
        |rpc: Rpc| csi::ControllerServiceCapability { r#type: Some(Type::Rpc(Wrapped { r#type: rpc.into() })) };
    csi::ControllerGetCapabilitiesResponse { capabilities: CAPABILITIES.into_iter().map(capability).collect() }
}

fn volume(info: &VolumeInfo) -> csi::Volume {
    let source = info.source.map(|source| match source {
        Origin::Snapshot(id) | Origin::Volume(id) => id,
    });
    listed_volume(&info.id, info.size, source, &info.host)
}

/// A volume, as callers are told of it: on this host, and cut from this snapshot or volume.
pub fn listed_volume(id: &Id, size: u64, source: Option<Id>, host: &NodeName) -> csi::Volume {
    use csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
    let content_source = source.map(|source| csi::VolumeContentSource {
        r#type: Some(match source.key.kind() {
            Kind::Snapshot => Type::Snapshot(SnapshotSource { snapshot_id: source.to_string() }),
            Kind::Volume | Kind::Temporary => Type::Volume(VolumeSource { volume_id: source.to_string() }),
        }),
    });
    csi::Volume {
        capacity_bytes: bytes(size),
        volume_id: id.to_string(),
        volume_context: Default::default(),
        content_source,
        accessible_topology: vec![topology(host)],
    }
}

/// The topology of what only this host can use.
pub(super) fn topology(host: &NodeName) -> csi::Topology {
    csi::Topology { segments: [(TOPOLOGY_KEY.to_owned(), host.to_string())].into() }
}

fn snapshot(info: &SnapshotInfo) -> csi::Snapshot {
    let Timestamp { seconds, nanos } = info.created;
    listed_snapshot(&info.id, info.size, &info.of, (seconds, nanos), info.ready)
}

/// A snapshot, as callers are told of it: cut at this second and nanosecond.
pub fn listed_snapshot(id: &Id, size: u64, of: &Id, created: (i64, u32), ready: bool) -> csi::Snapshot {
    let (seconds, nanos) = created;
    let nanos = i32::try_from(nanos).unwrap_or_default();
    csi::Snapshot {
        size_bytes: bytes(size),
        snapshot_id: id.to_string(),
        source_volume_id: of.to_string(),
        creation_time: Some(prost_types::Timestamp { seconds, nanos }),
        ready_to_use: ready,
        group_snapshot_id: String::new(),
        accessible_topology: Vec::new(),
    }
}

/// Calls the method's handler within its telemetry, and wraps the answer.
macro_rules! observed {
    ($method:literal, $about:expr, $handler:expr) => {
        Telemetry.observe($method, $about, $handler).await.map(Response::new)
    };
}

#[tonic::async_trait]
impl csi::controller_server::Controller for Controller {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        observed!("CreateVolume", request.get_ref().name.clone(), self.create(request))
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        observed!("DeleteVolume", request.get_ref().volume_id.clone(), self.delete(request))
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        observed!("ControllerPublishVolume", request.get_ref().volume_id.clone(), self.publish(request))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        observed!("ControllerUnpublishVolume", request.get_ref().volume_id.clone(), self.unpublish(request))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let about = request.get_ref().volume_id.clone();
        observed!("ValidateVolumeCapabilities", about, async { self.validate(request.into_inner()) })
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        observed!("ListVolumes", String::new(), async { self.list_volumes(request.into_inner()) })
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        observed!("GetCapacity", String::new(), async { self.capacity(request.into_inner()) })
    }

    async fn controller_get_capabilities(
        &self,
        _request: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        Ok(Response::new(capabilities()))
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        observed!("CreateSnapshot", request.get_ref().name.clone(), self.cut(request))
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        observed!("DeleteSnapshot", request.get_ref().snapshot_id.clone(), self.drop_snapshot(request))
    }

    async fn list_snapshots(
        &self,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        observed!("ListSnapshots", String::new(), async { self.list_snapshots(request.into_inner()) })
    }

    async fn get_snapshot(
        &self,
        request: Request<csi::GetSnapshotRequest>,
    ) -> Result<Response<csi::GetSnapshotResponse>, Status> {
        observed!("GetSnapshot", request.get_ref().snapshot_id.clone(), async {
            let text = parse::required("snapshot_id", request.into_inner().snapshot_id)?;
            let (id, record) = self.find(Kind::Snapshot, &text)?;
            let store = self.host.store(&id.store).map_err(away)?;
            let info = operations::snapshot_info(&store, &id.key, &record);
            Ok(csi::GetSnapshotResponse { snapshot: Some(snapshot(&info)) })
        })
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>, Status> {
        observed!("ControllerExpandVolume", request.get_ref().volume_id.clone(), self.expand(request))
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        observed!("ControllerGetVolume", request.get_ref().volume_id.clone(), async {
            let text = parse::required("volume_id", request.into_inner().volume_id)?;
            let (id, record) = self.find(Kind::Volume, &text)?;
            let store = self.host.store(&id.store).map_err(away)?;
            let grants = record.volume().map_or(&[][..], |volume| &volume.grants);
            Ok(csi::ControllerGetVolumeResponse {
                volume: Some(volume(&operations::volume_info(&store, &id.key, &record))),
                status: Some(csi::controller_get_volume_response::VolumeStatus {
                    published_node_ids: grants.iter().map(|grant| grant.node.to_string()).collect(),
                }),
            })
        })
    }

    async fn controller_modify_volume(
        &self,
        request: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Result<Response<csi::ControllerModifyVolumeResponse>, Status> {
        observed!("ControllerModifyVolume", request.get_ref().volume_id.clone(), self.modify(request))
    }

    async fn controller_list_volume_health(
        &self,
        _request: Request<csi::ControllerListVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerListVolumeHealthResponse>, Status> {
        Err(Status::unimplemented("volume health is not reported yet"))
    }

    async fn controller_get_volume_health(
        &self,
        _request: Request<csi::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeHealthResponse>, Status> {
        Err(Status::unimplemented("volume health is not reported yet"))
    }
}
