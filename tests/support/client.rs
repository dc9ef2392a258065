//! A CSI client that reads like a story: every call waits for its answer, and every answer is plain.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cistern::proto::csi::v1 as csi;
use csi::controller_client::ControllerClient;
use csi::identity_client::IdentityClient;
use csi::node_client::NodeClient;
use csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode};
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::lab::Host;

/// How long a call may take: that of the sidecars is 10 to 15 seconds.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A client with a connection of its own.
pub struct Csi {
    runtime: Runtime,
    /// To the tested machine.
    channel: Channel,
    /// To whoever answers the sidecars.
    controller: Channel,
    /// Where the server is, if not on this machine: kubelet's directories are made there.
    host: Option<Host>,
}

/// What a test wants of a volume, and where it is used.
#[derive(Debug, Clone)]
pub struct Volume {
    pub name: String,
    pub size: i64,
    /// `None` is a Block volume.
    pub fs: Option<String>,
    pub mode: Mode,
    pub parameters: HashMap<String, String>,
    pub source: Option<csi::volume_content_source::Type>,
    pub mount_flags: Vec<String>,
    pub group: String,
    /// The hosts that it may be on, the best first; none says nothing.
    pub hosts: Vec<String>,
    /// Once it is made.
    pub id: String,
    /// Once it is attached.
    pub context: HashMap<String, String>,
}

pub const MIB: i64 = 1 << 20;
pub const GIB: i64 = 1 << 30;

impl Volume {
    /// A Block volume of pool `p`.
    pub fn block(name: &str, size: i64) -> Volume {
        Volume {
            name: name.to_owned(),
            size,
            fs: None,
            mode: Mode::SingleNodeMultiWriter,
            parameters: [("pool".to_owned(), "p".to_owned())].into(),
            source: None,
            mount_flags: Vec::new(),
            group: String::new(),
            hosts: Vec::new(),
            id: String::new(),
            context: HashMap::new(),
        }
    }

    /// A Filesystem volume of pool `p`.
    pub fn filesystem(name: &str, fs: &str, size: i64) -> Volume {
        Volume { fs: Some(fs.to_owned()), ..Volume::block(name, size) }
    }

    pub fn with(mut self, key: &str, value: &str) -> Volume {
        self.parameters.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn mode(self, mode: Mode) -> Volume {
        Volume { mode, ..self }
    }

    /// On one of these hosts, the best first.
    pub fn on(self, hosts: &[&str]) -> Volume {
        Volume { hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), ..self }
    }

    /// Restored from this snapshot.
    pub fn restored_from(self, snapshot: &str) -> Volume {
        let snapshot_id = snapshot.to_owned();
        let source = csi::volume_content_source::SnapshotSource { snapshot_id };
        Volume { source: Some(csi::volume_content_source::Type::Snapshot(source)), ..self }
    }

    /// Cloned from this volume.
    pub fn cloned_from(self, volume: &Volume) -> Volume {
        let source = csi::volume_content_source::VolumeSource { volume_id: volume.id.clone() };
        Volume { source: Some(csi::volume_content_source::Type::Volume(source)), ..self }
    }

    pub fn capability(&self) -> csi::VolumeCapability {
        let access_type = match &self.fs {
            None => AccessType::Block(BlockVolume {}),
            Some(fs) => AccessType::Mount(MountVolume {
                fs_type: fs.clone(),
                mount_flags: self.mount_flags.clone(),
                volume_mount_group: self.group.clone(),
            }),
        };
        let access_mode = Some(AccessMode { mode: self.mode.into() });
        csi::VolumeCapability { access_type: Some(access_type), access_mode }
    }

    /// CreateVolume, as it will be asked.
    pub fn request(&self) -> csi::CreateVolumeRequest {
        let hosts: Vec<csi::Topology> = self.hosts.iter().map(|host| topology(host)).collect();
        let requirement = csi::TopologyRequirement { requisite: hosts.clone(), preferred: hosts };
        csi::CreateVolumeRequest {
            name: self.name.clone(),
            capacity_range: Some(csi::CapacityRange { required_bytes: self.size, limit_bytes: 0 }),
            volume_capabilities: vec![self.capability()],
            parameters: self.parameters.clone(),
            volume_content_source: self.source.clone().map(|source| csi::VolumeContentSource { r#type: Some(source) }),
            accessibility_requirements: Some(requirement).filter(|_| !self.hosts.is_empty()),
            ..Default::default()
        }
    }
}

impl Csi {
    /// A client, if the server answers a probe.
    pub fn try_connect(socket: &Path) -> Option<Csi> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let channel = runtime.block_on(cistern::peer::channel(socket)).ok()?;
        let client = Csi { runtime, controller: channel.clone(), channel, host: None };
        client.probe().ok().map(|_| client)
    }

    /// The same, whose calls of the Controller service go to this socket, if that can be connected to.
    pub fn with_controller(self, socket: &Path) -> Option<Csi> {
        let controller = self.runtime.block_on(cistern::peer::channel(socket)).ok()?;
        Some(Csi { controller, ..self })
    }

    fn probe(&self) -> Result<csi::ProbeResponse, Status> {
        self.wait(IdentityClient::new(self.controller.clone()).probe(request(csi::ProbeRequest {})))
    }

    /// Whether whoever answers the sidecars says that it is ready.
    pub fn is_ready(&self) -> bool {
        self.probe().is_ok_and(|probed| probed.ready == Some(true))
    }

    /// The same for a server in a host of a lab.
    pub fn far(self, host: Host) -> Csi {
        Csi { host: Some(host), ..self }
    }

    /// Makes a directory as kubelet does, where the server is.
    fn make_directory(&self, path: &Path) -> Result<(), Status> {
        let Some(host) = &self.host else {
            std::fs::create_dir_all(path).unwrap();
            return Ok(());
        };
        let made = host.try_run(&["mkdir", "-p", &text(path)]);
        made.status.success().then_some(()).ok_or_else(|| Status::unknown(format!("mkdir {path:?}: {made:?}")))
    }

    fn wait<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
        self.runtime.block_on(call).map(tonic::Response::into_inner)
    }

    /// The Controller service, for calls that a test makes itself.
    pub fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.controller.clone())
    }

    /// The Node service likewise.
    pub fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    /// A call of the Controller service with a codec of the test's own.
    pub fn call<C>(&self, path: &str, codec: C, message: C::Encode) -> Result<C::Decode, Status>
    where
        C: tonic::codec::Codec<Encode: Sync + 'static, Decode: Sync + 'static>,
    {
        let mut grpc = tonic::client::Grpc::new(self.controller.clone());
        self.wait(async {
            grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
            grpc.unary(request(message), path.parse().unwrap(), codec).await
        })
    }

    /// Waits for a call that a test made itself.
    pub fn block_on<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }

    pub fn create(&self, volume: &mut Volume) -> Result<csi::Volume, Status> {
        let made = self.wait(self.controller().create_volume(request(volume.request())))?.volume.unwrap();
        volume.id = made.volume_id.clone();
        volume.size = made.capacity_bytes;
        Ok(made)
    }

    pub fn delete(&self, volume: &Volume) -> Result<(), Status> {
        let asked = csi::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
        self.wait(self.controller().delete_volume(request(asked))).map(|_| ())
    }

    pub fn node_id(&self) -> Result<String, Status> {
        Ok(self.wait(self.node().node_get_info(request(csi::NodeGetInfoRequest {})))?.node_id)
    }

    pub fn attach(&self, volume: &mut Volume) -> Result<(), Status> {
        self.attach_to(volume, &self.node_id()?, false)
    }

    pub fn attach_to(&self, volume: &mut Volume, node: &str, readonly: bool) -> Result<(), Status> {
        let asked = csi::ControllerPublishVolumeRequest {
            volume_id: volume.id.clone(),
            node_id: node.to_owned(),
            volume_capability: Some(volume.capability()),
            readonly,
            ..Default::default()
        };
        volume.context = self.wait(self.controller().controller_publish_volume(request(asked)))?.publish_context;
        Ok(())
    }

    pub fn detach(&self, volume: &Volume) -> Result<(), Status> {
        let asked = csi::ControllerUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            node_id: self.node_id()?,
            ..Default::default()
        };
        self.wait(self.controller().controller_unpublish_volume(request(asked))).map(|_| ())
    }

    pub fn stage(&self, volume: &Volume, staging: &Path) -> Result<(), Status> {
        self.make_directory(staging)?;
        let asked = csi::NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context: volume.context.clone(),
            staging_target_path: text(staging),
            volume_capability: Some(volume.capability()),
            ..Default::default()
        };
        self.wait(self.node().node_stage_volume(request(asked))).map(|_| ())
    }

    pub fn unstage(&self, volume: &Volume, staging: &Path) -> Result<(), Status> {
        let (volume_id, staging_target_path) = (volume.id.clone(), text(staging));
        let asked = csi::NodeUnstageVolumeRequest { volume_id, staging_target_path };
        self.wait(self.node().node_unstage_volume(request(asked))).map(|_| ())
    }

    pub fn publish(&self, volume: &Volume, staging: &Path, target: &Path, readonly: bool) -> Result<(), Status> {
        self.make_directory(target.parent().unwrap())?;
        let asked = csi::NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context: volume.context.clone(),
            staging_target_path: text(staging),
            target_path: text(target),
            volume_capability: Some(volume.capability()),
            readonly,
            ..Default::default()
        };
        self.wait(self.node().node_publish_volume(request(asked))).map(|_| ())
    }

    pub fn unpublish(&self, volume: &Volume, target: &Path) -> Result<(), Status> {
        let (volume_id, target_path) = (volume.id.clone(), text(target));
        let asked = csi::NodeUnpublishVolumeRequest { volume_id, target_path };
        self.wait(self.node().node_unpublish_volume(request(asked))).map(|_| ())
    }

    pub fn snapshot(&self, volume: &Volume, name: &str) -> Result<csi::Snapshot, Status> {
        let asked = csi::CreateSnapshotRequest {
            source_volume_id: volume.id.clone(),
            name: name.to_owned(),
            ..Default::default()
        };
        Ok(self.wait(self.controller().create_snapshot(request(asked)))?.snapshot.unwrap())
    }

    /// Cuts a snapshot, and asks again until it can be restored from.
    pub fn snapshot_when_ready(&self, volume: &Volume, name: &str) -> Result<csi::Snapshot, Status> {
        let end = std::time::Instant::now() + TIMEOUT;
        loop {
            let cut = self.snapshot(volume, name)?;
            if cut.ready_to_use || std::time::Instant::now() > end {
                return Ok(cut);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn delete_snapshot(&self, snapshot: &str) -> Result<(), Status> {
        let asked = csi::DeleteSnapshotRequest { snapshot_id: snapshot.to_owned(), ..Default::default() };
        self.wait(self.controller().delete_snapshot(request(asked))).map(|_| ())
    }

    pub fn expand(&self, volume: &mut Volume, size: i64) -> Result<(), Status> {
        let asked = csi::ControllerExpandVolumeRequest {
            volume_id: volume.id.clone(),
            capacity_range: Some(csi::CapacityRange { required_bytes: size, limit_bytes: 0 }),
            volume_capability: Some(volume.capability()),
            ..Default::default()
        };
        volume.size = self.wait(self.controller().controller_expand_volume(request(asked)))?.capacity_bytes;
        Ok(())
    }

    pub fn node_expand(&self, volume: &Volume, path: &Path) -> Result<i64, Status> {
        let asked = csi::NodeExpandVolumeRequest {
            volume_id: volume.id.clone(),
            volume_path: text(path),
            capacity_range: Some(csi::CapacityRange { required_bytes: volume.size, limit_bytes: 0 }),
            ..Default::default()
        };
        Ok(self.wait(self.node().node_expand_volume(request(asked)))?.capacity_bytes)
    }

    pub fn modify(&self, volume: &Volume, key: &str, value: &str) -> Result<(), Status> {
        let asked = csi::ControllerModifyVolumeRequest {
            volume_id: volume.id.clone(),
            mutable_parameters: [(key.to_owned(), value.to_owned())].into(),
            ..Default::default()
        };
        self.wait(self.controller().controller_modify_volume(request(asked))).map(|_| ())
    }

    pub fn stats(&self, volume: &Volume, path: &Path) -> Result<Vec<csi::VolumeUsage>, Status> {
        let asked = csi::NodeGetVolumeStatsRequest {
            volume_id: volume.id.clone(),
            volume_path: text(path),
            ..Default::default()
        };
        Ok(self.wait(self.node().node_get_volume_stats(request(asked)))?.usage)
    }

    pub fn capacity(&self) -> i64 {
        self.try_capacity().unwrap()
    }

    pub fn try_capacity(&self) -> Result<i64, Status> {
        let asked =
            csi::GetCapacityRequest { parameters: [("pool".to_owned(), "p".to_owned())].into(), ..Default::default() };
        Ok(self.wait(self.controller().get_capacity(request(asked)))?.available_capacity)
    }

    pub fn volumes(&self) -> Vec<csi::list_volumes_response::Entry> {
        self.try_volumes().unwrap()
    }

    pub fn try_volumes(&self) -> Result<Vec<csi::list_volumes_response::Entry>, Status> {
        Ok(self.wait(self.controller().list_volumes(request(csi::ListVolumesRequest::default())))?.entries)
    }

    pub fn snapshots(&self) -> Result<Vec<csi::Snapshot>, Status> {
        let listed = self.wait(self.controller().list_snapshots(request(csi::ListSnapshotsRequest::default())))?;
        Ok(listed.entries.into_iter().filter_map(|entry| entry.snapshot).collect())
    }

    /// Attaches, stages and publishes a volume as kubelet does; below `at` are its staging path and its targets.
    pub fn use_at(&self, volume: &mut Volume, at: &Path) -> Result<PathBuf, Status> {
        self.attach(volume)?;
        self.stage(volume, &at.join("staging"))?;
        let target = at.join("target");
        self.publish(volume, &at.join("staging"), &target, false)?;
        Ok(target)
    }

    /// Undoes [`Csi::use_at`].
    pub fn release(&self, volume: &Volume, at: &Path) -> Result<(), Status> {
        self.unpublish(volume, &at.join("target"))?;
        self.unstage(volume, &at.join("staging"))?;
        self.detach(volume)
    }
}

/// A host, as a topology names it.
pub fn topology(host: &str) -> csi::Topology {
    csi::Topology { segments: [("topology.cistern.dev/host".to_owned(), host.to_owned())].into() }
}

/// Whether a server answers on this socket, whatever it serves there.
pub fn answers(socket: &Path) -> bool {
    let probe = async {
        let channel = cistern::peer::channel(socket).await.ok()?;
        Some(IdentityClient::new(channel).probe(request(csi::ProbeRequest {})).await)
    };
    let ask = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(probe);
    // the caller may be in a runtime of its own
    let probed = std::thread::scope(|scope| scope.spawn(ask).join().unwrap());
    probed.is_some_and(|probed| probed.map_or_else(|status| status.code() == Code::Unimplemented, |_| true))
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
