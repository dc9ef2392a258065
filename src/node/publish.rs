//! NodePublishVolume and NodeUnpublishVolume.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::record::{RecordError, RecordedAccess, StageRecord, TargetRecord};
use super::stage::{hand_to_group, is_of};
use super::{Node, Publish};
use crate::domain::Id;
use crate::domain::request::Access;
use crate::machine::mounts::{self, BindFlags, MountError, MountTable};
use crate::pool::guards::Busy;
use crate::share::connect::Made;
use crate::share::{self, ConnectError, Connection, Source};
use crate::step;

/// A volume could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Another call for it is under way.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// It is not staged there.
    #[error("it is not staged at {}", .0.display())]
    NotStaged(PathBuf),
    /// It was staged in another way.
    #[error("it is staged with another {0}")]
    StagedOtherwise(&'static str),
    /// It is published there in another way.
    #[error("it is published at {} with another {what}", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// It may be published once only.
    #[error("it is published at {} already, and its access mode allows one place", .0.display())]
    Once(PathBuf),
    /// Something else is mounted at the target.
    #[error("something else is mounted at {}", .0.display())]
    Occupied(PathBuf),
    /// The target could not be made.
    #[error("making {}", path.display())]
    Target {
        /// The target.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The root directory could not be handed to the group.
    #[error("handing {} to the group", path.display())]
    Group {
        /// Where it is staged.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The volume could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The stage record failed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// A volume could not be unpublished.
#[derive(Debug, thiserror::Error)]
pub enum UnpublishError {
    /// Another call for it is under way.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// Somebody uses it there.
    #[error("somebody still uses it")]
    InUse(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The target could not be removed.
    #[error("removing {}", path.display())]
    Target {
        /// The target.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It could not be unmounted.
    #[error(transparent)]
    Mount(MountError),
    /// Its own device could not be let go of.
    #[error(transparent)]
    Connect(ConnectError),
    /// The stage record failed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Makes a staged volume seen at a target: the device, or the mounted file system.
pub fn publish(node: &Node, request: &Publish) -> Result<(), PublishError> {
    let _guard = node.guards.exclusive(&request.volume)?;
    let not_staged = || PublishError::NotStaged(request.staging.clone());
    let mut record = node.recorded(&request.volume)?.ok_or_else(not_staged)?;
    if record.staging != request.staging {
        return Err(not_staged());
    }
    check(&record, request)?;
    if record.target(&request.target).is_none() {
        step!("node-publish.record");
        let target = TargetRecord { path: request.target.clone(), read_only: request.read_only };
        record.targets.push(target);
        node.save(&record)?;
    }
    match record.access {
        RecordedAccess::Block => publish_device(node, &mut record, request)?,
        RecordedAccess::Mount { .. } => publish_mount(&record, request)?,
    }
    step!("node-publish.done");
    Ok(())
}

/// CSI's table of second publishes.
fn check(record: &StageRecord, request: &Publish) -> Result<(), PublishError> {
    let asked = RecordedAccess::of(&request.capability.access);
    let same_access = match (&record.access, &asked) {
        (RecordedAccess::Block, RecordedAccess::Block) => true,
        // options of the mount are those of the stage
        (RecordedAccess::Mount { .. }, RecordedAccess::Mount { .. }) => true,
        _ => false,
    };
    let published = record.target(&request.target);
    let exists = |what| Err(PublishError::Exists { path: request.target.clone(), what });
    if !same_access {
        return match published {
            Some(_) => exists("access type"),
            None => Err(PublishError::StagedOtherwise("access type")),
        };
    }
    if record.mode != request.capability.mode {
        return match published {
            Some(_) => exists("access mode"),
            None => Err(PublishError::StagedOtherwise("access mode")),
        };
    }
    if let Some(target) = published {
        return if target.read_only == request.read_only { Ok(()) } else { exists("readonly flag") };
    }
    match record.still_published()? {
        Some(other) if !record.mode.allows_many_targets() => Err(PublishError::Once(other)),
        _ => Ok(()),
    }
}

fn publish_device(node: &Node, record: &mut StageRecord, request: &Publish) -> Result<(), PublishError> {
    let device = match request.read_only && !record.connection.ticket.read_only {
        true => reader(node, record)?,
        false => staged_device(record)?,
    };
    make_file(&request.target)?;
    let point = mounts::resolve(&request.target)?;
    // of a device node's bind mount the root is the node's path in its file system
    match MountTable::read()?.at(&point) {
        Some(there) if there.root.file_name() == device.file_name() => return Ok(()),
        // it is the record's own target, so what is there is a device that the volume had before
        Some(_) => {
            let _ = mounts::unmount(&point)?;
        }
        None => {}
    }
    step!("node-publish.bind");
    Ok(mounts::bind(&device, &point, BindFlags::default())?)
}

fn staged_device(record: &StageRecord) -> Result<PathBuf, PublishError> {
    match share::standing(&record.connection)? {
        Some(Source::Device(device)) => Ok(device),
        // the machine was started anew since
        None => Err(PublishError::NotStaged(record.staging.clone())),
    }
}

/// The volume's second device, which refuses writes: a read-only mount of a device node would not.
fn reader(node: &Node, record: &mut StageRecord) -> Result<PathBuf, PublishError> {
    let noted = record.reader;
    record.reader.get_or_insert(Made::Unknown);
    node.save(record)?;
    step!("node-publish.reader");
    let Some(connection) = record.reader() else { return Err(PublishError::NotStaged(record.staging.clone())) };
    let mut connection = Connection { made: noted.unwrap_or(Made::Nothing), ..connection };
    let Source::Device(device) = share::connect(&mut connection)?;
    record.reader = Some(connection.made);
    node.save(record)?;
    Ok(device)
}

fn make_file(path: &Path) -> Result<(), PublishError> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(PublishError::Target { path: path.to_owned(), source }),
    }
}

fn publish_mount(record: &StageRecord, request: &Publish) -> Result<(), PublishError> {
    let target = &request.target;
    match std::fs::create_dir(target) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(source) => return Err(PublishError::Target { path: target.clone(), source }),
    }
    let staging = mounts::resolve(&record.staging)?;
    let point = mounts::resolve(target)?;
    let table = MountTable::read()?;
    let staged = table.at(&staging).ok_or_else(|| PublishError::NotStaged(record.staging.clone()))?;
    match table.at(&point) {
        Some(there) if there.device != staged.device => return Err(PublishError::Occupied(target.clone())),
        // a kill between bind and remount may have left it writable: bound anew
        Some(there) if there.read_only == (request.read_only || staged.read_only) => return Ok(()),
        Some(_) => {
            let _ = mounts::unmount(&point)?;
        }
        None => {}
    }
    let is_writable = !request.read_only && !staged.read_only;
    // a pod may follow another of its node without a new stage, and each brings its own group
    if let Access::Mount(mount) = &request.capability.access
        && let Some(group) = mount.group.filter(|_| is_writable)
    {
        hand_to_group(&staging, group)
            .map_err(|source| PublishError::Group { path: record.staging.clone(), source })?;
    }
    step!("node-publish.bind");
    Ok(mounts::bind(&staging, &point, BindFlags { read_only: request.read_only, ..BindFlags::default() })?)
}

/// Undoes [`publish`], and is done only when nothing is at the target any more. What is gone already is undone.
pub fn unpublish(node: &Node, volume: &Id, target: &Path) -> Result<(), UnpublishError> {
    let _guard = node.guards.exclusive(volume)?;
    let record = node.recorded(volume)?;
    step!("node-unpublish.unmount");
    let Some(mut record) = record.filter(|record| record.target(target).is_some()) else {
        return clear_unrecorded(volume, target);
    };
    unmount(target)?;
    remove(target)?;
    record.targets.retain(|other| other.path != target);
    step!("node-unpublish.reader");
    if let Some(reader) = record.reader().filter(|_| !record.targets.iter().any(|other| other.read_only)) {
        share::disconnect(&reader).map_err(|error| match error {
            error @ ConnectError::InUse { .. } => UnpublishError::InUse(error.into()),
            other => UnpublishError::Connect(other),
        })?;
        record.reader = None;
    }
    step!("node-unpublish.record");
    node.save(&record)?;
    step!("node-unpublish.done");
    Ok(())
}

/// A target that no record knows: only what is this volume's is unmounted, and only what is empty removed.
fn clear_unrecorded(volume: &Id, target: &Path) -> Result<(), UnpublishError> {
    let Ok(point) = mounts::resolve(target) else { return Ok(()) };
    let table = MountTable::read().map_err(UnpublishError::Mount)?;
    match table.at(&point) {
        Some(mount) if !is_of(mount, volume) => return Ok(()),
        Some(_) => unmount(target)?,
        None => {}
    }
    remove(target)
}

fn unmount(target: &Path) -> Result<(), UnpublishError> {
    match mounts::unmount(target) {
        Ok(_) => Ok(()),
        Err(error @ MountError::Busy { .. }) => Err(UnpublishError::InUse(error.into())),
        Err(error) => Err(UnpublishError::Mount(error)),
    }
}

/// Removes what publish made: an empty file or directory. What somebody wrote into the bare place is somebody's.
fn remove(target: &Path) -> Result<(), UnpublishError> {
    let failed = |source| UnpublishError::Target { path: target.to_owned(), source };
    let metadata = match std::fs::symlink_metadata(target) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if metadata.is_dir() {
        return std::fs::remove_dir(target).map_err(failed);
    }
    if !metadata.is_file() || metadata.len() > 0 {
        return Err(failed(std::io::Error::other("it is not the empty file that was made there")));
    }
    std::fs::remove_file(target).map_err(failed)
}
