//! The first thing that happens to a message: it is parsed into domain types, or refused with a text that names the field.

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;

use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::domain::request::{
    Access, Capability, Choice, ClassParameters, CreateAccess, CreateVolume, Modifiable, Mount, Publish, Source,
};
use crate::domain::size::Range;
use crate::domain::{AccessMode, Allocation, FsType, Id, Kind, NodeId, NodeName, PoolName, Uuid, Wipe};
use crate::node::{self, options};
use crate::pool::operations::{MOST, Pages};
use crate::proto::csi::v1 as csi;
use crate::share::Ticket;

/// The key of the topology that local volumes and nodes have.
pub const TOPOLOGY_KEY: &str = "topology.cistern.dev/host";
/// Whose keys are accepted and ignored in every parameter map.
const KUBERNETES_PREFIX: &str = "csi.storage.k8s.io/";
/// Except this one, which a StorageClass uses.
const FSTYPE_KEY: &str = "csi.storage.k8s.io/fstype";

/// What a controller sends along with a CreateVolume that it forwards: the message itself is the caller's, unchanged.
pub const CLAIM_KEY: &str = "cistern-claim";
/// Names of hosts, joined by commas; there may be none.
pub const PASSED_OVER_KEY: &str = "cistern-passed-over";

/// CSI's limits (spec, "Size Limits"): of a string, and of a map or list of strings in all, in bytes.
const LONGEST_STRING: usize = 128;
const LONGEST_NODE_ID: usize = 256;
const LARGEST_MAP: usize = 4096;

/// A field that is not what it must be.
pub fn invalid(field: &str, why: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {why}"))
}

/// A string that must not be empty.
pub fn required(field: &str, text: String) -> Result<String, Status> {
    if text.is_empty() { Err(invalid(field, "is missing")) } else { Ok(text) }
}

/// A name as CSI allows it: Unicode without control characters, at most 128 bytes.
pub fn name(field: &str, text: String) -> Result<String, Status> {
    let text = required(field, text)?;
    if text.len() > LONGEST_STRING {
        return Err(invalid(field, format!("has {} bytes, and at most {LONGEST_STRING} are allowed", text.len())));
    }
    // tab, line feed and carriage return are allowed
    let forbidden =
        |c: char| matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{7f}'..='\u{9f}');
    if text.contains(forbidden) { Err(invalid(field, "has control characters")) } else { Ok(text) }
}

/// The id of a volume: `None` if it is one that nobody can have made.
pub fn volume_id(text: String) -> Result<Option<Id>, Status> {
    required("volume_id", text).map(|text| Id::parse(Kind::Volume, &text))
}

/// The id of a snapshot: `None` if it is one that nobody can have made.
pub fn snapshot_id(text: String) -> Result<Option<Id>, Status> {
    required("snapshot_id", text).map(|text| Id::parse(Kind::Snapshot, &text))
}

/// A node id: `None` if it is one that no node can have.
pub fn node_id(text: &str) -> Option<NodeId> {
    if text.len() > LONGEST_NODE_ID { None } else { text.parse().ok() }
}

/// A map within CSI's limit.
pub fn map(field: &str, map: &HashMap<String, String>) -> Result<(), Status> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > LARGEST_MAP {
        return Err(invalid(field, format!("has {bytes} bytes, and at most {LARGEST_MAP} are allowed")));
    }
    Ok(())
}

/// A path that may be used as it is.
pub fn path(field: &str, text: String) -> Result<PathBuf, Status> {
    let text = required(field, text)?;
    if text.contains('\0') {
        return Err(invalid(field, "has a NUL"));
    }
    let path = PathBuf::from(&text);
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(invalid(field, format!("{text:?} is no absolute path without \"..\"")));
    }
    if path.parent().is_none() {
        return Err(invalid(field, "is the root directory"));
    }
    Ok(path)
}

/// A path of NodeGetVolumeStats and NodeExpandVolume, which is only compared with those that are known.
pub fn compared_path(field: &str, text: String) -> Result<PathBuf, Status> {
    required(field, text).map(PathBuf::from)
}

/// The size that is asked for.
pub fn capacity_range(range: Option<csi::CapacityRange>) -> Result<Range, Status> {
    let Some(csi::CapacityRange { required_bytes, limit_bytes }) = range else { return Ok(Range::default()) };
    let positive = |field, bytes: i64| u64::try_from(bytes).map_err(|_| invalid(field, "is negative"));
    let required = positive("capacity_range.required_bytes", required_bytes)?;
    let limit = positive("capacity_range.limit_bytes", limit_bytes)?;
    let limit = (limit != 0).then_some(limit);
    if limit.is_some_and(|limit| limit < required) {
        return Err(invalid("capacity_range", "limit_bytes is less than required_bytes"));
    }
    Ok(Range { required, limit })
}

/// A capability, with what only this field can say of it.
pub fn capability(field: &str, capability: Option<csi::VolumeCapability>) -> Result<Capability, Status> {
    use csi::volume_capability::AccessType;
    let capability = capability.ok_or_else(|| invalid(field, "is missing"))?;
    let mode = capability.access_mode.ok_or_else(|| invalid(&format!("{field}.access_mode"), "is missing"))?;
    let mode = access_mode(&format!("{field}.access_mode.mode"), mode.mode)?;
    let access = match capability.access_type {
        None => return Err(invalid(&format!("{field}.access_type"), "is missing")),
        Some(AccessType::Block(_)) => Access::Block,
        Some(AccessType::Mount(mount)) => Access::Mount(mount_access(&format!("{field}.mount"), mount)?),
    };
    Ok(Capability { access, mode })
}

fn mount_access(field: &str, mount: csi::volume_capability::MountVolume) -> Result<Mount, Status> {
    let fs = match mount.fs_type.as_str() {
        "" => None,
        name => Some(fs_type(&format!("{field}.fs_type"), name)?),
    };
    let flags_field = format!("{field}.mount_flags");
    let bytes: usize = mount.mount_flags.iter().map(String::len).sum();
    if bytes > LARGEST_MAP {
        return Err(invalid(&flags_field, format!("has {bytes} bytes, and at most {LARGEST_MAP} are allowed")));
    }
    options::parse(fs, &mount.mount_flags).map_err(|refused| invalid(&flags_field, refused))?;
    let group = match mount.volume_mount_group.as_str() {
        "" => None,
        group => Some(number(&format!("{field}.volume_mount_group"), group)?),
    };
    Ok(Mount { fs, flags: mount.mount_flags, group })
}

fn access_mode(field: &str, mode: i32) -> Result<AccessMode, Status> {
    use csi::volume_capability::access_mode::Mode;
    match Mode::try_from(mode) {
        Ok(Mode::SingleNodeWriter) => Ok(AccessMode::SingleNodeWriter),
        Ok(Mode::SingleNodeReaderOnly) => Ok(AccessMode::SingleNodeReaderOnly),
        Ok(Mode::MultiNodeReaderOnly) => Ok(AccessMode::MultiNodeReaderOnly),
        Ok(Mode::MultiNodeSingleWriter) => Ok(AccessMode::MultiNodeSingleWriter),
        Ok(Mode::MultiNodeMultiWriter) => Ok(AccessMode::MultiNodeMultiWriter),
        Ok(Mode::SingleNodeSingleWriter) => Ok(AccessMode::SingleNodeSingleWriter),
        Ok(Mode::SingleNodeMultiWriter) => Ok(AccessMode::SingleNodeMultiWriter),
        Ok(Mode::Unknown) | Err(_) => Err(invalid(field, format!("{mode} is no access mode"))),
    }
}

fn fs_type(field: &str, name: &str) -> Result<FsType, Status> {
    FsType::parse(name).ok_or_else(|| invalid(field, format!("{name:?} is not ext4, xfs or btrfs")))
}

fn number<T: FromStr>(field: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|_| invalid(field, format!("{text:?} is no number in range")))
}

/// A volume or snapshot that nobody can have made, or that is not there.
pub fn unknown(what: &str, id: &str) -> Status {
    Status::not_found(format!("the {what} {id:?} does not exist"))
}

/// The part of a list that is wanted. A token is the id of the last entry before it.
pub fn pages(max_entries: i32, starting_token: &str) -> Result<Pages, Status> {
    let most = usize::try_from(max_entries).map_err(|_| invalid("max_entries", "is negative"))?;
    let after = match starting_token {
        "" => None,
        token => {
            Some(token.parse().map_err(|_| Status::aborted(format!("starting_token: {token:?} is none of ours")))?)
        }
    };
    Ok(Pages { after, most: if most == 0 { MOST } else { most.min(MOST) } })
}

/// CreateSnapshot: the snapshot's name, and the id of the volume as it was given.
pub fn create_snapshot(request: csi::CreateSnapshotRequest) -> Result<(String, String), Status> {
    let volume = required("source_volume_id", request.source_volume_id)?;
    let name = name("name", request.name)?;
    map("parameters", &request.parameters)?;
    match request.parameters.keys().find(|key| !key.starts_with(KUBERNETES_PREFIX)) {
        Some(key) => Err(invalid(&format!("parameters[{key}]"), "is unknown")),
        None => Ok((name, volume)),
    }
}

/// GetCapacity, parsed.
pub struct Capacity {
    /// The pool, if one is named.
    pub pool: Option<PoolName>,
    /// The host that is asked about; `Some(None)` for a topology of somebody else's keys, which is nowhere.
    pub host: Option<Option<NodeName>>,
    /// Whether no volume can be used so.
    pub is_impossible: bool,
}

/// GetCapacity.
pub fn capacity(request: csi::GetCapacityRequest) -> Result<Capacity, Status> {
    map("parameters", &request.parameters)?;
    let capabilities = request.volume_capabilities.into_iter().enumerate();
    let capabilities: Vec<Capability> = capabilities
        .map(|(at, one)| capability(&format!("volume_capabilities[{at}]"), Some(one)))
        .collect::<Result<_, _>>()?;
    let has_parameters = !request.parameters.is_empty();
    Ok(Capacity {
        pool: has_parameters.then(|| class_parameters(request.parameters)).transpose()?.map(|class| class.pool),
        host: request.accessible_topology.as_ref().map(host_of),
        is_impossible: capabilities.iter().any(|capability| capability.mode.is_multi_node()),
    })
}

/// CreateVolume.
pub fn create_volume(request: csi::CreateVolumeRequest) -> Result<CreateVolume, Status> {
    let name = name("name", request.name)?;
    let capabilities = capabilities(request.volume_capabilities)?;
    let range = capacity_range(request.capacity_range)?;
    map("parameters", &request.parameters)?;
    map("mutable_parameters", &request.mutable_parameters)?;
    let mut parameters = class_parameters(request.parameters)?;
    parameters.modifiable =
        merged(parameters.modifiable, modifiable("mutable_parameters", request.mutable_parameters)?);
    let access = create_access(&capabilities, parameters.fs)?;
    Ok(CreateVolume {
        name,
        range,
        access,
        modes: capabilities.iter().map(|capability| capability.mode).collect(),
        parameters,
        source: request.volume_content_source.map(content_source).transpose()?,
        hosts: hosts(request.accessibility_requirements.as_ref()),
    })
}

/// How a controller chose this host, from what it sent along.
pub fn choice(metadata: &MetadataMap) -> Result<Choice, Status> {
    let claim = claim(metadata)?;
    let names = text(metadata, PASSED_OVER_KEY)?.unwrap_or_default();
    let names = names.split(',').filter(|name| !name.is_empty()).map(str::parse);
    Ok(Choice {
        claim: claim.ok_or_else(|| invalid(CLAIM_KEY, "is missing: volumes here are made by a controller"))?,
        passed_over: names.collect::<Result<_, _>>().map_err(|error| invalid(PASSED_OVER_KEY, error))?,
    })
}

/// The claim that a controller shows, if it does.
pub fn claim(metadata: &MetadataMap) -> Result<Option<Uuid>, Status> {
    text(metadata, CLAIM_KEY)?.map(|claim| claim.parse().map_err(|error| invalid(CLAIM_KEY, error))).transpose()
}

fn text<'a>(metadata: &'a MetadataMap, key: &str) -> Result<Option<&'a str>, Status> {
    metadata.get(key).map(|value| value.to_str().map_err(|error| invalid(key, error))).transpose()
}

/// A list of capabilities that is not empty.
pub fn capabilities(list: Vec<csi::VolumeCapability>) -> Result<Vec<Capability>, Status> {
    if list.is_empty() {
        return Err(invalid("volume_capabilities", "is missing"));
    }
    let parse = |(at, one)| capability(&format!("volume_capabilities[{at}]"), Some(one));
    list.into_iter().enumerate().map(parse).collect()
}

/// What the capabilities make of a new volume: a device or a file system, never both.
fn create_access(capabilities: &[Capability], class: Option<FsType>) -> Result<CreateAccess, Status> {
    let mut wanted: Option<CreateAccess> = None;
    for capability in capabilities {
        let access = match &capability.access {
            Access::Block => CreateAccess::Block,
            Access::Mount(mount) => CreateAccess::Filesystem(mount.fs.or(class)),
        };
        match wanted {
            Some(other) if other != access => {
                return Err(invalid(
                    "volume_capabilities",
                    "a volume is a device or one type of file system, not both",
                ));
            }
            _ => wanted = Some(access),
        }
    }
    wanted.ok_or_else(|| invalid("volume_capabilities", "is missing"))
}

/// What a StorageClass says. Every key is known or named as unknown.
pub fn class_parameters(parameters: HashMap<String, String>) -> Result<ClassParameters, Status> {
    let (mut pool, mut allocation, mut fs) = (None, Allocation::Thin, None);
    let mut changes = HashMap::new();
    for (key, value) in parameters {
        let field = format!("parameters[{key}]");
        match key.as_str() {
            "pool" => pool = Some(value.parse().map_err(|error| invalid(&field, error))?),
            FSTYPE_KEY => fs = Some(fs_type(&field, &value)?),
            "allocation" => allocation = one_of(&field, &value, &ALLOCATIONS)?,
            "medium" => one_of(&field, &value, &[("dir", ())])?,
            "share" => one_of(&field, &value, &[("local", ())])?,
            "wipe" => {
                changes.insert(key, value);
            }
            key if key.starts_with(KUBERNETES_PREFIX) => {}
            _ => return Err(invalid(&field, "is unknown")),
        }
    }
    let pool = pool.ok_or_else(|| invalid("parameters[pool]", "is missing: a StorageClass names its pool"))?;
    Ok(ClassParameters { pool, allocation, fs, modifiable: modifiable("parameters", changes)? })
}

const ALLOCATIONS: [(&str, Allocation); 2] = [("thin", Allocation::Thin), ("thick", Allocation::Thick)];
const WIPES: [(&str, Wipe); 3] = [("none", Wipe::None), ("discard", Wipe::Discard), ("zero", Wipe::Zero)];
/// The furthest that the kernel may be told to read ahead: 64 MiB.
const LONGEST_READ_AHEAD_KIB: u32 = 64 * 1024;

fn one_of<T: Copy>(field: &str, value: &str, known: &[(&str, T)]) -> Result<T, Status> {
    let found = known.iter().find(|(name, _)| *name == value);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        invalid(field, format!("{value:?} is not {}", names.join(" or ")))
    })
}

/// What a VolumeAttributesClass says. All keys are looked at before any is applied.
pub fn modifiable(field: &str, parameters: HashMap<String, String>) -> Result<Modifiable, Status> {
    let mut changes = Modifiable::default();
    for (key, value) in parameters {
        let field = format!("{field}[{key}]");
        match key.as_str() {
            "wipe" => changes.wipe = Some(one_of(&field, &value, &WIPES)?),
            "readAheadKiB" => {
                let kib: u32 = number(&field, &value)?;
                if kib > LONGEST_READ_AHEAD_KIB {
                    return Err(invalid(&field, format!("is more than {LONGEST_READ_AHEAD_KIB}")));
                }
                changes.read_ahead_kib = Some(kib);
            }
            key if key.starts_with(KUBERNETES_PREFIX) => {}
            _ => return Err(invalid(&field, "is unknown")),
        }
    }
    Ok(changes)
}

fn merged(class: Modifiable, attributes: Modifiable) -> Modifiable {
    Modifiable {
        wipe: attributes.wipe.or(class.wipe),
        read_ahead_kib: attributes.read_ahead_kib.or(class.read_ahead_kib),
    }
}

/// Where the bytes come from. An id that nobody can have made is a source that does not exist.
fn content_source(source: csi::VolumeContentSource) -> Result<Source, Status> {
    use csi::volume_content_source::Type;
    let unknown = |text: &str| Status::not_found(format!("volume_content_source: {text:?} does not exist"));
    match source.r#type {
        None => Err(invalid("volume_content_source.type", "is missing")),
        Some(Type::Snapshot(source)) => {
            let text = required("volume_content_source.snapshot.snapshot_id", source.snapshot_id)?;
            Id::parse(Kind::Snapshot, &text).map(Source::Snapshot).ok_or_else(|| unknown(&text))
        }
        Some(Type::Volume(source)) => {
            let text = required("volume_content_source.volume.volume_id", source.volume_id)?;
            Id::parse(Kind::Volume, &text).map(Source::Volume).ok_or_else(|| unknown(&text))
        }
    }
}

/// The hosts that a topology requirement demands. A segment of somebody else's keys is no host of ours, so that a
/// requirement of only such segments is met nowhere.
fn hosts(requirement: Option<&csi::TopologyRequirement>) -> Option<Vec<NodeName>> {
    let requisite = &requirement?.requisite;
    (!requisite.is_empty()).then(|| requisite.iter().filter_map(host_of).collect())
}

/// The hosts that are better than others, the best first.
pub fn preferred(requirement: Option<&csi::TopologyRequirement>) -> Vec<NodeName> {
    requirement.map_or(Vec::new(), |requirement| requirement.preferred.iter().filter_map(host_of).collect())
}

/// The host that a topology names.
pub fn host_of(topology: &csi::Topology) -> Option<NodeName> {
    topology.segments.get(TOPOLOGY_KEY).and_then(|name| name.parse().ok())
}

/// ControllerPublishVolume, after the ids: `None` for a node that cannot be.
pub fn publish(request: csi::ControllerPublishVolumeRequest) -> Result<PublishRequest, Status> {
    let volume = required("volume_id", request.volume_id)?;
    let node = required("node_id", request.node_id)?;
    let capability = capability("volume_capability", request.volume_capability)?;
    map("volume_context", &request.volume_context)?;
    let Some(id) = Id::parse(Kind::Volume, &volume) else { return Ok(PublishRequest::VolumeUnknown(volume)) };
    let Some(node) = node_id(&node) else { return Ok(PublishRequest::NodeUnknown(node)) };
    Ok(PublishRequest::Known(Publish { volume: id, node, capability, read_only: request.readonly }))
}

/// ControllerPublishVolume, as far as its ids can be.
pub enum PublishRequest {
    /// They can.
    Known(Publish),
    /// No volume can have this id.
    VolumeUnknown(String),
    /// No node can have this id.
    NodeUnknown(String),
}

/// NodeStageVolume. `None` for a volume that cannot be.
pub fn stage(request: csi::NodeStageVolumeRequest) -> Result<Option<node::Stage>, Status> {
    let volume = volume_id(request.volume_id)?;
    let path = path("staging_target_path", request.staging_target_path)?;
    let capability = capability("volume_capability", request.volume_capability)?;
    let Some(volume) = volume else { return Ok(None) };
    map("publish_context", &request.publish_context)?;
    if request.publish_context.is_empty() {
        return Err(Status::failed_precondition("publish_context is empty: the volume is not attached to this node"));
    }
    let ticket = Ticket::from_context(&request.publish_context).map_err(|error| invalid("publish_context", error))?;
    Ok(Some(node::Stage { volume, path, capability, ticket }))
}

/// NodePublishVolume. `None` for a volume that cannot be.
pub fn node_publish(request: csi::NodePublishVolumeRequest) -> Result<Option<node::Publish>, Status> {
    let volume = volume_id(request.volume_id)?;
    let target = path("target_path", request.target_path)?;
    let capability = capability("volume_capability", request.volume_capability)?;
    if request.staging_target_path.is_empty() {
        return Err(Status::failed_precondition("staging_target_path is missing: volumes are staged first"));
    }
    let staging = path("staging_target_path", request.staging_target_path)?;
    let Some(volume) = volume else { return Ok(None) };
    Ok(Some(node::Publish { volume, staging, target, capability, read_only: request.readonly }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode};

    fn block() -> csi::VolumeCapability {
        csi::VolumeCapability {
            access_type: Some(AccessType::Block(BlockVolume {})),
            access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        }
    }

    fn mount(fs: &str) -> csi::VolumeCapability {
        let mount = MountVolume { fs_type: fs.to_owned(), ..Default::default() };
        csi::VolumeCapability { access_type: Some(AccessType::Mount(mount)), ..block() }
    }

    fn map_of(entries: &[(&str, &str)]) -> HashMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn create() -> csi::CreateVolumeRequest {
        csi::CreateVolumeRequest {
            name: "pvc-1".to_owned(),
            volume_capabilities: vec![block()],
            parameters: map_of(&[("pool", "p")]),
            ..Default::default()
        }
    }

    fn range(required_bytes: i64, limit_bytes: i64) -> Option<csi::CapacityRange> {
        Some(csi::CapacityRange { required_bytes, limit_bytes })
    }

    #[test]
    fn a_refusal_names_its_field() {
        let with = |change: &dyn Fn(&mut csi::CreateVolumeRequest)| {
            let mut request = create();
            change(&mut request);
            create_volume(request).map(|_| String::new()).unwrap_or_else(|status| status.message().to_owned())
        };
        for (field, message) in [
            ("name", with(&|request| request.name = String::new())),
            ("name", with(&|request| request.name = "x".repeat(129))),
            ("name", with(&|request| request.name = "a\u{0}b".to_owned())),
            ("volume_capabilities", with(&|request| request.volume_capabilities.clear())),
            ("volume_capabilities[0].access_mode", with(&|request| request.volume_capabilities[0].access_mode = None)),
            ("volume_capabilities[0].access_type", with(&|request| request.volume_capabilities[0].access_type = None)),
            ("volume_capabilities", with(&|request| request.volume_capabilities.push(mount("ext4")))),
            ("volume_capabilities[0].mount.fs_type", with(&|request| request.volume_capabilities[0] = mount("zfs"))),
            ("capacity_range.required_bytes", with(&|request| request.capacity_range = range(-1, 0))),
            ("capacity_range.limit_bytes", with(&|request| request.capacity_range = range(0, i64::MIN))),
            ("capacity_range", with(&|request| request.capacity_range = range(2, 1))),
            ("parameters[pool]", with(&|request| request.parameters.clear())),
            ("parameters[pool]", with(&|request| request.parameters = map_of(&[("pool", "../x")]))),
            ("parameters[colour]", with(&|request| request.parameters = map_of(&[("pool", "p"), ("colour", "blue")]))),
            ("parameters[allocation]", with(&|request| request.parameters = map_of(&[("allocation", "fat")]))),
            ("parameters[medium]", with(&|request| request.parameters = map_of(&[("medium", "lvm")]))),
            ("parameters", with(&|request| request.parameters = map_of(&[("pool", &"p".repeat(4096))]))),
            ("mutable_parameters[x]", with(&|request| request.mutable_parameters = map_of(&[("x", "y")]))),
            (
                "mutable_parameters[readAheadKiB]",
                with(&|request| request.mutable_parameters = map_of(&[("readAheadKiB", "-1")])),
            ),
            (
                "volume_content_source.type",
                with(&|request| request.volume_content_source = Some(csi::VolumeContentSource { r#type: None })),
            ),
        ] {
            assert!(message.starts_with(&format!("{field}: ")), "{field}: {message:?}");
        }
    }

    #[test]
    fn a_class_and_its_attributes_are_read_together() {
        let mut request = create();
        let class =
            [("pool", "p"), ("wipe", "zero"), ("csi.storage.k8s.io/fstype", "xfs"), ("csi.storage.k8s.io/x", "y")];
        request.parameters = map_of(&class);
        request.mutable_parameters = map_of(&[("readAheadKiB", "64"), ("csi.storage.k8s.io/pv/name", "z")]);
        request.volume_capabilities = vec![mount("")];
        let asked = create_volume(request.clone()).unwrap();
        assert_eq!(asked.access, CreateAccess::Filesystem(Some(FsType::Xfs)));
        let modifiable = Modifiable { wipe: Some(Wipe::Zero), read_ahead_kib: Some(64) };
        assert_eq!(asked.parameters.modifiable, modifiable);
        // what the capability says of the file system counts more than the class
        request.volume_capabilities = vec![mount("btrfs")];
        assert_eq!(create_volume(request).unwrap().access, CreateAccess::Filesystem(Some(FsType::Btrfs)));
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for (text, fine) in [
            ("/var/lib/kubelet/pods/x/mount", true),
            ("relative", false),
            ("/a/../b", false),
            ("/", false),
            ("/a\0b", false),
            ("", false),
        ] {
            assert_eq!(path("target_path", text.to_owned()).is_ok(), fine, "{text:?}");
        }
    }
}
