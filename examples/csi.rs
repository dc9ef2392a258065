//! A CSI client for people: what Kubernetes' sidecars and kubelet ask of the driver, one command for each call.
//!
//! It knows nothing of cistern but its socket, and keeps what a cluster would keep for it (the publish_context of a
//! VolumeAttachment) in `csi.json` of the directory that `--at` names. There a volume is staged at `staging` and seen at
//! `volume`: a directory, or a block device.

use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use cistern::domain::error::chain;
use cistern::domain::size;
use cistern::peer;
use cistern::proto::csi::v1 as csi;
use csi::controller_client::ControllerClient;
use csi::node_client::NodeClient;
use csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode};
use csi::volume_content_source::{SnapshotSource, Type as Source, VolumeSource};

/// How long one call may take: what the sidecars allow.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long a call is repeated that says that the work is still under way.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long between two of them.
const PAUSE: Duration = Duration::from_millis(300);

/// A CSI client: the calls of Kubernetes' sidecars and of kubelet, by hand.
///
/// A volume's way to its user, and back: create, attach, stage, publish; unpublish, unstage, detach, delete.
#[derive(Parser)]
struct Cli {
    /// The driver's socket
    #[arg(long, global = true, env = "CISTERN_ENDPOINT", default_value = "unix:///run/cistern/csi.sock")]
    endpoint: String,
    /// Print ids (of publish: the path) and nothing else
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a volume
    Create(Create),
    /// Delete a volume
    Delete {
        /// The volume
        id: String,
    },
    /// Give this node the right to a volume
    Attach(Place),
    /// Make it usable on this node: as a device, or as a mounted file system
    Stage(Place),
    /// Show it at DIR/volume
    Publish {
        #[command(flatten)]
        place: Place,
        /// So that it can only be read there
        #[arg(long)]
        read_only: bool,
    },
    /// Take it away from DIR/volume
    Unpublish(Place),
    /// Unmount it, and let go of its device
    Unstage(Place),
    /// Take the right back
    Detach {
        /// The volume
        id: String,
        /// Where `attach` noted it
        #[arg(long, value_name = "DIR")]
        at: Option<PathBuf>,
    },
    /// Grow a volume, and the file system in it where it is in use
    Expand {
        /// The volume
        id: String,
        /// The new size, such as 2Gi
        #[arg(value_parser = bytes)]
        size: i64,
        /// Where it is staged
        #[arg(long, value_name = "DIR")]
        at: Option<PathBuf>,
    },
    /// Cut a snapshot of a volume, and wait until it can be restored from
    Snapshot {
        /// The volume
        id: String,
        /// The snapshot's name: the same name is the same snapshot
        name: String,
    },
    /// Delete a snapshot
    DeleteSnapshot {
        /// The snapshot
        id: String,
    },
    /// List the volumes
    List,
    /// List the snapshots
    Snapshots,
    /// Tell how full a staged volume is
    Stats(Place),
}

/// A volume, and where it is used.
#[derive(Args)]
struct Place {
    /// The volume
    id: String,
    /// The directory of this use of the volume
    #[arg(long, value_name = "DIR")]
    at: PathBuf,
}

#[derive(Args)]
struct Create {
    /// Its name: the same name is the same volume
    name: String,
    /// Its size, such as 1Gi [default: that of its source, or 1Gi]
    #[arg(long, value_parser = bytes, default_value = "0", hide_default_value = true)]
    size: i64,
    /// A parameter of its StorageClass, such as pool=default
    #[arg(long, value_name = "KEY=VALUE", value_parser = parameter)]
    param: Vec<(String, String)>,
    /// A raw block device
    #[arg(long, conflicts_with = "fs")]
    block: bool,
    /// A file system of this type [default: that of its source, or ext4]
    #[arg(long, value_name = "TYPE")]
    fs: Option<String>,
    /// With the bytes of this snapshot
    #[arg(long, value_name = "ID", conflicts_with = "from_volume")]
    from_snapshot: Option<String>,
    /// With the bytes that this volume has now
    #[arg(long, value_name = "ID")]
    from_volume: Option<String>,
}

fn bytes(text: &str) -> Result<i64, String> {
    let bytes = size::parse(text).map_err(|error| error.to_string())?;
    i64::try_from(bytes).map_err(|_| format!("{text} is too much"))
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("nobody answers on {0}")]
    Connect(String, #[source] tonic::transport::Error),
    #[error("{0} answers {1:?}: {2}")]
    Refused(&'static str, Code, String),
    #[error("{0} answers without what was asked for")]
    Empty(&'static str),
    #[error("{}", .0.display())]
    File(PathBuf, #[source] std::io::Error),
    #[error("{} is no note of `attach`", .0.display())]
    Note(PathBuf, #[source] serde_json::Error),
    #[error("{id} is not attached at {}: `csi attach` comes first", at.display())]
    NotAttached { id: String, at: PathBuf },
}

/// What a command did: the id or path of it, and the same in words.
struct Done {
    id: String,
    words: String,
}

fn done(id: &str, words: String) -> Vec<Done> {
    vec![Done { id: id.to_owned(), words }]
}

fn main() -> ExitCode {
    let Cli { endpoint, quiet, command } = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(async { Client::connect(&endpoint).await?.carry_out(command).await }),
        Err(error) => Err(Failure::File("starting".into(), error)),
    };
    match result {
        Ok(all) => {
            // whoever reads this may have heard enough
            let mut out = std::io::stdout();
            let _ = all.iter().try_for_each(|one| writeln!(out, "{}", if quiet { &one.id } else { &one.words }));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("csi: {}", chain(&failure));
            ExitCode::FAILURE
        }
    }
}

/// What `attach` notes for the commands that come after it.
#[derive(Serialize, Deserialize)]
struct Note {
    volume: String,
    block: bool,
    publish_context: HashMap<String, String>,
}

impl Place {
    /// The place with an absolute path: the driver has another working directory.
    fn resolve(self) -> Result<Place, Failure> {
        let at = std::path::absolute(&self.at).map_err(|error| Failure::File(self.at.clone(), error))?;
        Ok(Place { at, ..self })
    }

    fn staging(&self) -> PathBuf {
        self.at.join("staging")
    }

    fn target(&self) -> PathBuf {
        self.at.join("volume")
    }

    fn note_path(&self) -> PathBuf {
        self.at.join("csi.json")
    }

    fn note(&self) -> Result<Note, Failure> {
        let not_attached = || Failure::NotAttached { id: self.id.clone(), at: self.at.clone() };
        let path = self.note_path();
        let text = std::fs::read(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => not_attached(),
            _ => Failure::File(path.clone(), error),
        })?;
        let note: Note = serde_json::from_slice(&text).map_err(|error| Failure::Note(path, error))?;
        if note.volume == self.id { Ok(note) } else { Err(not_attached()) }
    }

    fn write(&self, note: &Note) -> Result<(), Failure> {
        let path = self.note_path();
        let text = serde_json::to_vec_pretty(note).map_err(|error| Failure::Note(path.clone(), error))?;
        let staging = self.staging();
        std::fs::create_dir_all(&staging).map_err(|error| Failure::File(staging, error))?;
        std::fs::write(&path, text).map_err(|error| Failure::File(path, error))
    }

    /// Removes the note, and the directories if nothing else is in them.
    fn clear(&self) -> Result<(), Failure> {
        let path = self.note_path();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Failure::File(path, error)),
            _ => {}
        }
        let _ = std::fs::remove_dir(self.staging()).and_then(|()| std::fs::remove_dir(&self.at));
        Ok(())
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn show(bytes: i64) -> String {
    size::show(u64::try_from(bytes).unwrap_or_default())
}

/// As Kubernetes asks for a ReadWriteOnce volume.
fn capability(block: bool, fs: &str) -> csi::VolumeCapability {
    let access_type = match block {
        true => AccessType::Block(BlockVolume {}),
        false => AccessType::Mount(MountVolume { fs_type: fs.to_owned(), ..Default::default() }),
    };
    let access_mode = Some(AccessMode { mode: Mode::SingleNodeWriter.into() });
    csi::VolumeCapability { access_type: Some(access_type), access_mode }
}

/// Makes a call, and makes it again while the driver says that it is still at it: as the sidecars do.
async fn ask<T: Clone, R>(
    name: &'static str,
    message: T,
    call: impl AsyncFn(Request<T>) -> Result<Response<R>, Status>,
) -> Result<R, Failure> {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut request = Request::new(message.clone());
        request.set_timeout(TIMEOUT);
        match call(request).await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) if status.code() == Code::Aborted && Instant::now() < end => tokio::time::sleep(PAUSE).await,
            Err(status) => return Err(Failure::Refused(name, status.code(), status.message().to_owned())),
        }
    }
}

/// Makes the call of this name.
macro_rules! call {
    ($client:expr, $method:ident, $message:expr) => {
        ask(stringify!($method), $message, async |request| $client.clone().$method(request).await).await
    };
}

struct Client {
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
}

impl Client {
    async fn connect(endpoint: &str) -> Result<Client, Failure> {
        let socket = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        let connected = peer::channel(Path::new(socket)).await;
        let channel = connected.map_err(|error| Failure::Connect(socket.to_owned(), error))?;
        Ok(Client { controller: ControllerClient::new(channel.clone()), node: NodeClient::new(channel) })
    }

    async fn carry_out(&self, command: Command) -> Result<Vec<Done>, Failure> {
        match command {
            Command::Create(create) => self.create(create).await,
            Command::Delete { id } => self.delete(id).await,
            Command::Attach(place) => self.attach(place.resolve()?).await,
            Command::Stage(place) => self.stage(place.resolve()?).await,
            Command::Publish { place, read_only } => self.publish(place.resolve()?, read_only).await,
            Command::Unpublish(place) => self.unpublish(place.resolve()?).await,
            Command::Unstage(place) => self.unstage(place.resolve()?).await,
            Command::Detach { id, at } => self.detach(id, at).await,
            Command::Expand { id, size, at } => self.expand(id, size, at).await,
            Command::Snapshot { id, name } => self.snapshot(id, name).await,
            Command::DeleteSnapshot { id } => self.delete_snapshot(id).await,
            Command::List => self.list().await,
            Command::Snapshots => self.snapshots().await,
            Command::Stats(place) => self.stats(place.resolve()?).await,
        }
    }

    async fn create(&self, create: Create) -> Result<Vec<Done>, Failure> {
        let Create { name, size, param, block, fs, from_snapshot, from_volume } = create;
        let snapshot = from_snapshot.map(|snapshot_id| Source::Snapshot(SnapshotSource { snapshot_id }));
        let source = snapshot.or(from_volume.map(|volume_id| Source::Volume(VolumeSource { volume_id })));
        let asked = csi::CreateVolumeRequest {
            name: name.clone(),
            capacity_range: Some(csi::CapacityRange { required_bytes: size, limit_bytes: 0 }),
            volume_capabilities: vec![capability(block, fs.as_deref().unwrap_or_default())],
            parameters: param.into_iter().collect(),
            volume_content_source: source.map(|source| csi::VolumeContentSource { r#type: Some(source) }),
            ..Default::default()
        };
        let made = call!(self.controller, create_volume, asked)?.volume.ok_or(Failure::Empty("create_volume"))?;
        let words = format!("{name} is made, {}: {}", show(made.capacity_bytes), made.volume_id);
        Ok(done(&made.volume_id, words))
    }

    async fn delete(&self, id: String) -> Result<Vec<Done>, Failure> {
        let asked = csi::DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() };
        call!(self.controller, delete_volume, asked)?;
        Ok(done(&id, format!("deleted: {id}")))
    }

    async fn node_id(&self) -> Result<String, Failure> {
        Ok(call!(self.node, node_get_info, csi::NodeGetInfoRequest {})?.node_id)
    }

    /// In a cluster the PersistentVolume says whether a volume is a device; here the driver is asked.
    async fn is_block(&self, id: &str) -> Result<bool, Failure> {
        let asked = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: id.to_owned(),
            volume_capabilities: vec![capability(true, "")],
            ..Default::default()
        };
        Ok(call!(self.controller, validate_volume_capabilities, asked)?.confirmed.is_some())
    }

    async fn attach(&self, place: Place) -> Result<Vec<Done>, Failure> {
        let (node_id, block) = (self.node_id().await?, self.is_block(&place.id).await?);
        let asked = csi::ControllerPublishVolumeRequest {
            volume_id: place.id.clone(),
            node_id: node_id.clone(),
            volume_capability: Some(capability(block, "")),
            ..Default::default()
        };
        let publish_context = call!(self.controller, controller_publish_volume, asked)?.publish_context;
        place.write(&Note { volume: place.id.clone(), block, publish_context })?;
        Ok(done(&place.id, format!("attached to node {node_id}")))
    }

    async fn stage(&self, place: Place) -> Result<Vec<Done>, Failure> {
        let note = place.note()?;
        let asked = csi::NodeStageVolumeRequest {
            volume_id: note.volume,
            publish_context: note.publish_context,
            staging_target_path: text(&place.staging()),
            volume_capability: Some(capability(note.block, "")),
            ..Default::default()
        };
        call!(self.node, node_stage_volume, asked)?;
        let what = if note.block {
            "its device is ready".to_owned()
        } else {
            format!("mounted at {}", text(&place.staging()))
        };
        Ok(done(&place.id, format!("staged: {what}")))
    }

    async fn publish(&self, place: Place, readonly: bool) -> Result<Vec<Done>, Failure> {
        let note = place.note()?;
        let target = text(&place.target());
        let asked = csi::NodePublishVolumeRequest {
            volume_id: note.volume,
            publish_context: note.publish_context,
            staging_target_path: text(&place.staging()),
            target_path: target.clone(),
            volume_capability: Some(capability(note.block, "")),
            readonly,
            ..Default::default()
        };
        call!(self.node, node_publish_volume, asked)?;
        let what = if note.block { "block device" } else { "directory" };
        Ok(done(&target, format!("published: the {what} {target}")))
    }

    async fn unpublish(&self, place: Place) -> Result<Vec<Done>, Failure> {
        let asked = csi::NodeUnpublishVolumeRequest { volume_id: place.id.clone(), target_path: text(&place.target()) };
        call!(self.node, node_unpublish_volume, asked)?;
        Ok(done(&place.id, format!("nothing is at {} any more", text(&place.target()))))
    }

    async fn unstage(&self, place: Place) -> Result<Vec<Done>, Failure> {
        let staging_target_path = text(&place.staging());
        let asked = csi::NodeUnstageVolumeRequest { volume_id: place.id.clone(), staging_target_path };
        call!(self.node, node_unstage_volume, asked)?;
        Ok(done(&place.id, "unstaged: nothing of it is mounted".to_owned()))
    }

    async fn detach(&self, id: String, at: Option<PathBuf>) -> Result<Vec<Done>, Failure> {
        let node_id = self.node_id().await?;
        let asked = csi::ControllerUnpublishVolumeRequest {
            volume_id: id.clone(),
            node_id: node_id.clone(),
            ..Default::default()
        };
        call!(self.controller, controller_unpublish_volume, asked)?;
        if let Some(at) = at {
            Place { id: id.clone(), at }.clear()?;
        }
        Ok(done(&id, format!("detached from node {node_id}")))
    }

    async fn expand(&self, id: String, size: i64, at: Option<PathBuf>) -> Result<Vec<Done>, Failure> {
        let range = Some(csi::CapacityRange { required_bytes: size, limit_bytes: 0 });
        let asked =
            csi::ControllerExpandVolumeRequest { volume_id: id.clone(), capacity_range: range, ..Default::default() };
        let grown = call!(self.controller, controller_expand_volume, asked)?;
        let words = format!("grown to {}", show(grown.capacity_bytes));
        let Some(at) = at.filter(|_| grown.node_expansion_required) else { return Ok(done(&id, words)) };
        let place = Place { id, at }.resolve()?;
        let asked = csi::NodeExpandVolumeRequest {
            volume_id: place.id.clone(),
            volume_path: text(&place.staging()),
            capacity_range: range,
            ..Default::default()
        };
        call!(self.node, node_expand_volume, asked)?;
        Ok(done(&place.id, format!("{words}, and seen at {}", text(&place.target()))))
    }

    async fn snapshot(&self, id: String, name: String) -> Result<Vec<Done>, Failure> {
        let end = Instant::now() + PATIENCE;
        loop {
            let asked =
                csi::CreateSnapshotRequest { source_volume_id: id.clone(), name: name.clone(), ..Default::default() };
            let cut = call!(self.controller, create_snapshot, asked)?.snapshot;
            let cut = cut.ok_or(Failure::Empty("create_snapshot"))?;
            if cut.ready_to_use || Instant::now() > end {
                let state = if cut.ready_to_use { "ready" } else { "still being copied" };
                return Ok(done(&cut.snapshot_id, format!("{name} is cut, {state}: {}", cut.snapshot_id)));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn delete_snapshot(&self, id: String) -> Result<Vec<Done>, Failure> {
        let asked = csi::DeleteSnapshotRequest { snapshot_id: id.clone(), ..Default::default() };
        call!(self.controller, delete_snapshot, asked)?;
        Ok(done(&id, format!("deleted: {id}")))
    }

    async fn list(&self) -> Result<Vec<Done>, Failure> {
        let (mut all, mut starting_token) = (Vec::new(), String::new());
        loop {
            let asked = csi::ListVolumesRequest { starting_token, ..Default::default() };
            let page = call!(self.controller, list_volumes, asked)?;
            for entry in page.entries {
                let nodes = entry.status.unwrap_or_default().published_node_ids;
                let users =
                    if nodes.is_empty() { "detached".to_owned() } else { format!("attached to {}", nodes.join(" ")) };
                let volume = entry.volume.unwrap_or_default();
                let words = format!("{}  {}  {users}", volume.volume_id, show(volume.capacity_bytes));
                all.push(Done { id: volume.volume_id, words });
            }
            starting_token = page.next_token;
            if starting_token.is_empty() {
                return Ok(all);
            }
        }
    }

    async fn snapshots(&self) -> Result<Vec<Done>, Failure> {
        let (mut all, mut starting_token) = (Vec::new(), String::new());
        loop {
            let asked = csi::ListSnapshotsRequest { starting_token, ..Default::default() };
            let page = call!(self.controller, list_snapshots, asked)?;
            for snapshot in page.entries.into_iter().filter_map(|entry| entry.snapshot) {
                let state = if snapshot.ready_to_use { "ready" } else { "being copied" };
                let (id, of) = (snapshot.snapshot_id, snapshot.source_volume_id);
                let words = format!("{id}  {}  {state}  of {of}", show(snapshot.size_bytes));
                all.push(Done { id, words });
            }
            starting_token = page.next_token;
            if starting_token.is_empty() {
                return Ok(all);
            }
        }
    }

    async fn stats(&self, place: Place) -> Result<Vec<Done>, Failure> {
        use csi::volume_usage::Unit;
        let volume_path = text(&place.staging());
        let asked = csi::NodeGetVolumeStatsRequest { volume_id: place.id.clone(), volume_path, ..Default::default() };
        let usage = call!(self.node, node_get_volume_stats, asked)?.usage;
        let words: Vec<String> = usage
            .iter()
            .map(|usage| match Unit::try_from(usage.unit) {
                Ok(Unit::Inodes) => format!("{} files, room for {} more", usage.used, usage.available),
                // of a device only its user knows what is used
                _ if usage.available == 0 && usage.used == 0 => show(usage.total),
                _ => format!("{}, {} used, {} available", show(usage.total), show(usage.used), show(usage.available)),
            })
            .collect();
        Ok(done(&place.id, words.join("; ")))
    }
}
