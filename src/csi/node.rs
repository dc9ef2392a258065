//! CSI Node.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::status::Coded;
use super::{Telemetry, controller, deadline, parse, run};
use crate::domain::{Id, Kind};
use crate::node::{self, Node, Stage, Statistics};
use crate::pool::tasks::Tasks;
use crate::pool::{Host, operations};
use crate::proto::csi::v1 as csi;

use csi::node_service_capability::rpc::Type as Rpc;

/// What the node can do.
const CAPABILITIES: [Rpc; 5] = [
    Rpc::StageUnstageVolume,
    Rpc::GetVolumeStats,
    Rpc::ExpandVolume,
    Rpc::SingleNodeMultiWriter,
    Rpc::VolumeMountGroup,
];

/// How many volumes a node works on at a time.
const OPERATIONS_AT_A_TIME: usize = 64;

/// The Node service.
pub struct NodeService {
    node: Arc<Node>,
    /// This machine's stores, if it serves any.
    host: Option<Arc<Host>>,
    tasks: Tasks,
    turns: Arc<Semaphore>,
}

impl NodeService {
    /// The service of this node.
    pub fn new(node: Arc<Node>, host: Option<Arc<Host>>, tasks: Tasks) -> NodeService {
        NodeService { node, host, tasks, turns: Arc::new(Semaphore::new(OPERATIONS_AT_A_TIME)) }
    }

    async fn on_node<T, E>(
        &self,
        deadline: Instant,
        operation: impl FnOnce(&Node) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        E: Coded + Send,
    {
        let node = Arc::clone(&self.node);
        run(&self.tasks, Arc::clone(&self.turns), deadline, move || operation(&node)).await
    }

    async fn stage(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<csi::NodeStageVolumeResponse, Status> {
        let deadline = deadline(&request);
        let text = request.get_ref().volume_id.clone();
        let stage = parse::stage(request.into_inner())?.ok_or_else(|| unknown(&text))?;
        let host = self.host.clone();
        self.on_node(deadline, move |node| node::stage(node, &as_of_now(host.as_deref(), stage))).await?;
        Ok(csi::NodeStageVolumeResponse {})
    }

    async fn unstage(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<csi::NodeUnstageVolumeResponse, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let volume = parse::volume_id(request.volume_id)?;
        let staging = parse::path("staging_target_path", request.staging_target_path)?;
        // what cannot be was never staged
        if let Some(volume) = volume {
            self.on_node(deadline, move |node| node::unstage(node, &volume, &staging)).await?;
        }
        Ok(csi::NodeUnstageVolumeResponse {})
    }

    async fn publish(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<csi::NodePublishVolumeResponse, Status> {
        let deadline = deadline(&request);
        let text = request.get_ref().volume_id.clone();
        let publish = parse::node_publish(request.into_inner())?.ok_or_else(|| unknown(&text))?;
        self.on_node(deadline, move |node| node::publish(node, &publish)).await?;
        Ok(csi::NodePublishVolumeResponse {})
    }

    async fn unpublish(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<csi::NodeUnpublishVolumeResponse, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let volume = parse::volume_id(request.volume_id)?;
        let target = parse::path("target_path", request.target_path)?;
        if let Some(volume) = volume {
            self.on_node(deadline, move |node| node::unpublish(node, &volume, &target)).await?;
        }
        Ok(csi::NodeUnpublishVolumeResponse {})
    }

    async fn statistics(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
        use csi::volume_usage::Unit;
        let deadline = deadline(&request);
        let request = request.into_inner();
        let text = parse::required("volume_id", request.volume_id)?;
        let path = parse::compared_path("volume_path", request.volume_path)?;
        let volume = Id::parse(Kind::Volume, &text).ok_or_else(|| unknown(&text))?;
        let measured = self.on_node(deadline, move |node| node::statistics(node, &volume, &path)).await?;
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let usage = |unit: Unit, [total, used, available]: [u64; 3]| csi::VolumeUsage {
            total: signed(total),
            used: signed(used),
            available: signed(available),
            unit: unit.into(),
        };
        let usage = match measured {
            // what of a device is used only the guest knows
            Statistics::Device(size) => {
                vec![csi::VolumeUsage { total: signed(size), unit: Unit::Bytes.into(), ..Default::default() }]
            }
            Statistics::Filesystem(measured) => {
                vec![usage(Unit::Bytes, measured.bytes), usage(Unit::Inodes, measured.inodes)]
            }
        };
        Ok(csi::NodeGetVolumeStatsResponse { usage })
    }

    async fn expand(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<csi::NodeExpandVolumeResponse, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let text = parse::required("volume_id", request.volume_id)?;
        let path = parse::compared_path("volume_path", request.volume_path)?;
        let range = parse::capacity_range(request.capacity_range)?;
        let volume = Id::parse(Kind::Volume, &text).ok_or_else(|| unknown(&text))?;
        let size = self.on_node(deadline, move |node| node::grow(node, &volume, &path, range.required)).await?;
        Ok(csi::NodeExpandVolumeResponse { capacity_bytes: i64::try_from(size).unwrap_or(i64::MAX) })
    }
}

/// With what the volume's owner last said of it. Who stages shows the ticket of when the volume was attached: kubelet keeps it
/// for the next pod, and over a reboot, whatever was modified since.
fn as_of_now(host: Option<&Host>, mut stage: Stage) -> Stage {
    let record = host.and_then(|host| host.store(&stage.volume.store).ok()).and_then(|store| {
        // one that cannot be read is as it was when it was attached
        operations::look_up(&store, &stage.volume.key).ok().flatten()
    });
    if let Some(kib) = record.and_then(|record| record.volume()?.read_ahead_kib) {
        stage.ticket.read_ahead_kib = Some(kib);
    }
    stage
}

fn unknown(volume: &str) -> Status {
    Status::not_found(format!("the volume {volume:?} does not exist"))
}

/// Calls the method's handler within its telemetry, and wraps the answer.
macro_rules! observed {
    ($method:literal, $handler:ident, $self:ident, $request:ident) => {{
        let about = $request.get_ref().volume_id.clone();
        Telemetry.observe($method, about, $self.$handler($request)).await.map(Response::new)
    }};
}

#[tonic::async_trait]
impl csi::node_server::Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        observed!("NodeStageVolume", stage, self, request)
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        observed!("NodeUnstageVolume", unstage, self, request)
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        observed!("NodePublishVolume", publish, self, request)
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        observed!("NodeUnpublishVolume", unpublish, self, request)
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        observed!("NodeGetVolumeStats", statistics, self, request)
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        observed!("NodeExpandVolume", expand, self, request)
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        use csi::node_service_capability::{Rpc as Wrapped, Type};
        let capability =
            |rpc: Rpc| csi::NodeServiceCapability { r#type: Some(Type::Rpc(Wrapped { r#type: rpc.into() })) };
        let capabilities = CAPABILITIES.into_iter().map(capability).collect();
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _request: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: self.node.id.to_string(),
            // loop devices are made as they are needed
            max_volumes_per_node: 0,
            accessible_topology: Some(controller::topology(&self.node.id.name)),
        }))
    }

    async fn node_get_volume_health(
        &self,
        _request: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<csi::NodeGetVolumeHealthResponse>, Status> {
        Err(Status::unimplemented("volume health is not reported yet"))
    }

    async fn node_get_storage_health(
        &self,
        _request: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Result<Response<csi::NodeGetStorageHealthResponse>, Status> {
        Err(Status::unimplemented("storage health is not reported yet"))
    }
}
