//! NodeStageVolume and NodeUnstageVolume.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::options::{self, Options, Refused};
use super::record::{RecordError, RecordedAccess, StageRecord};
use super::{Node, Stage};
use crate::domain::error::chain;
use crate::domain::request::{Access, Mount};
use crate::domain::volume::Content;
use crate::domain::{FsType, Id};
use crate::machine::filesystem;
use crate::machine::loopdev::LoopDevice;
use crate::machine::mounts::{self, Mount as Mounted, MountError, MountTable};
use crate::machine::probe::{self, ProbeError, Signature};
use crate::pool::guards::Busy;
use crate::share::connect::Made;
use crate::share::{self, ConnectError, Source};
use crate::step;

use rustix::mount::MountFlags;

/// A volume could not be staged.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// Another call for it is under way.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// It is staged in another way.
    #[error("it is staged with another {0}")]
    Exists(&'static str),
    /// It is staged at another place.
    #[error("it is staged at {}", .0.display())]
    Elsewhere(PathBuf),
    /// The ticket is for another volume.
    #[error("the publish_context is of volume {0}")]
    OtherVolume(Id),
    /// The volume does not hold what is asked for.
    #[error("the volume holds {there:?}, which cannot be used as {wanted}")]
    Content {
        /// What it holds.
        there: Content,
        /// What is asked for.
        wanted: String,
    },
    /// The device does not hold the file system that the host made.
    #[error("{} holds {there:?} and not the {expected} that its host made: it is left alone", device.display())]
    NotFormatted {
        /// The device.
        device: PathBuf,
        /// What is there.
        there: Signature,
        /// What should be there.
        expected: FsType,
    },
    /// A mount option is not allowed.
    #[error(transparent)]
    Option(#[from] Refused),
    /// Something else is mounted at the staging path.
    #[error("{} is mounted at {}", there.display(), path.display())]
    Occupied {
        /// The staging path.
        path: PathBuf,
        /// What is mounted there.
        there: PathBuf,
    },
    /// The volume could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The device could not be looked at.
    #[error("looking at the device")]
    Probe(#[from] ProbeError),
    /// The device could not be opened.
    #[error("opening {}", device.display())]
    Open {
        /// The device.
        device: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The root directory could not be made, or handed to the group.
    #[error("setting up {}", path.display())]
    Directory {
        /// The staging path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The stage record failed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// A volume could not be unstaged.
#[derive(Debug, thiserror::Error)]
pub enum UnstageError {
    /// Another call for it is under way.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// It is still published.
    #[error("it is still published at {}", .0.display())]
    Published(PathBuf),
    /// Somebody uses it.
    #[error("somebody still uses it")]
    InUse(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It could not be let go of.
    #[error(transparent)]
    Connect(ConnectError),
    /// It could not be unmounted.
    #[error(transparent)]
    Mount(MountError),
    /// The stage record failed.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Makes a volume usable on this node: as a device, or as a file system mounted at the staging path.
pub fn stage(node: &Node, request: &Stage) -> Result<(), StageError> {
    let _guard = node.guards.exclusive(&request.volume)?;
    let options = check(request)?;
    refuse_occupied(request)?;
    let mut record = match node.recorded(&request.volume)? {
        Some(record) => renewed(record, request)?,
        None => StageRecord::new(request),
    };
    // while the record says unknown, whoever finds it looks for what may have been made
    let before = std::mem::replace(&mut record.connection.made, Made::Unknown);
    step!("stage.record");
    node.save(&record)?;
    record.connection.made = before;
    if let Err(error) = connect_and_mount(node, &mut record, request, options) {
        undo(node, record, before);
        return Err(error);
    }
    step!("stage.done");
    Ok(())
}

fn connect_and_mount(
    node: &Node,
    record: &mut StageRecord,
    request: &Stage,
    options: Option<Options>,
) -> Result<(), StageError> {
    step!("stage.connect");
    let Source::Device(device) = share::connect(&mut record.connection)?;
    step!("stage.note");
    node.save(record)?;
    if let (Access::Mount(mount), Some(options)) = (&request.capability.access, options) {
        step!("stage.mount");
        mount_at(request, mount, &options, &device)?;
    }
    Ok(())
}

/// Nothing but the volume itself may be mounted where it is to be staged.
fn refuse_occupied(request: &Stage) -> Result<(), StageError> {
    let Ok(point) = mounts::resolve(&request.path) else { return Ok(()) };
    match MountTable::read()?.at(&point) {
        Some(there) if !is_of(there, &request.volume) => {
            let there = there.source.clone().unwrap_or_default().into();
            Err(StageError::Occupied { path: request.path.clone(), there })
        }
        _ => Ok(()),
    }
}

/// Whether the request and its ticket go together; the options that it is mounted with.
fn check(request: &Stage) -> Result<Option<Options>, StageError> {
    if request.ticket.volume != request.volume {
        return Err(StageError::OtherVolume(request.ticket.volume));
    }
    match (&request.capability.access, request.ticket.content) {
        (Access::Block, Content::Block) => Ok(None),
        (Access::Mount(mount), Content::Filesystem { fs, .. }) if mount.fs.is_none_or(|wanted| wanted == fs) => {
            let mut options = options::parse(Some(fs), &mount.flags)?;
            if request.ticket.read_only || request.capability.mode.is_read_only() {
                options.flags |= MountFlags::RDONLY;
            }
            Ok(Some(options))
        }
        (Access::Block, there) => Err(StageError::Content { there, wanted: "a device".to_owned() }),
        (Access::Mount(mount), there) => {
            let of_type = mount.fs.map_or(String::new(), |fs| format!(" of type {fs}"));
            Err(StageError::Content { there, wanted: format!("a file system{of_type}") })
        }
    }
}

/// The record of a volume that was staged before, or nearly so, if this request is the same.
fn renewed(mut record: StageRecord, request: &Stage) -> Result<StageRecord, StageError> {
    if record.staging != request.path {
        return Err(StageError::Elsewhere(record.staging));
    }
    let asked = RecordedAccess::of(&request.capability.access);
    if !record.access.is_but_for_the_group(&asked) {
        return Err(StageError::Exists("access type or mount option"));
    }
    record.access = asked;
    if record.mode != request.capability.mode {
        return Err(StageError::Exists("access mode"));
    }
    record.connection.ticket = request.ticket.clone();
    Ok(record)
}

/// A stage that failed leaves what it found, since the caller may never come back to undo it.
fn undo(node: &Node, mut record: StageRecord, before: Made) {
    if before != Made::Nothing && record.connection.made == before {
        // it stood before; the record says so again
        if let Err(error) = node.save(&record) {
            tracing::warn!(volume = %record.volume, %error, "the stage record says unknown; the next call looks");
        }
        return;
    }
    let is_ours = |point: PathBuf| {
        let table = MountTable::read().ok()?;
        table.at(&point).filter(|mount| is_of(mount, &record.volume)).map(|_| ())
    };
    let is_mounted = mounts::resolve(&record.staging).ok().and_then(is_ours).is_some();
    let unmounted = !is_mounted || mounts::unmount(&record.staging).is_ok();
    let undone = unmounted && share::disconnect(&record.connection).is_ok();
    let noted = undone && {
        record.connection.made = Made::Nothing;
        let forgotten = before == Made::Nothing && record.targets.is_empty();
        if forgotten { node.forget(&record.volume).is_ok() } else { node.save(&record).is_ok() }
    };
    if !noted {
        tracing::warn!(volume = %record.volume, "a failed stage was not undone whole; unstage will do it");
    }
}

/// Whether what is mounted there is this volume: its loop device, as a file system or as a device node.
pub(super) fn is_of(mount: &Mounted, volume: &Id) -> bool {
    let node = Path::new("/dev").join(mount.root.file_name().unwrap_or_default());
    let source = mount.source.as_deref().map(Path::new).and_then(LoopDevice::from_path);
    let Some(device) = source.or_else(|| LoopDevice::from_path(&node)) else { return false };
    let Ok(Some(status)) = device.status() else { return false };
    // a file that was removed meanwhile has " (deleted)" behind its name
    let name = status.backing_path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.split(' ').next() == Some(volume.key.to_string().as_str())
}

fn mount_at(request: &Stage, mount: &Mount, options: &Options, device: &Path) -> Result<(), StageError> {
    let Content::Filesystem { fs, .. } = request.ticket.content else { return Ok(()) };
    let directory = |source| StageError::Directory { path: request.path.clone(), source };
    std::fs::create_dir_all(&request.path).map_err(directory)?;
    let point = mounts::resolve(&request.path)?;
    // whatever is mounted there is this volume: all else was refused
    if MountTable::read()?.at(&point).is_none() {
        expect(device, fs)?;
        mounts::mount(device, &point, fs.as_str(), options.flags, &options.data)?;
    }
    if options.flags.contains(MountFlags::RDONLY) {
        return Ok(());
    }
    step!("stage.grow");
    // the volume may be larger than the file system: grown while it was not staged, or cloned into a larger one
    if let Err(error) = filesystem::grow(&point) {
        // it can be used as it is, and NodeExpandVolume tells its caller
        tracing::warn!(volume = %request.volume, error = %chain(&error), "the file system keeps its size");
    }
    match mount.group {
        Some(group) => hand_to_group(&point, group).map_err(directory),
        None => Ok(()),
    }
}

/// Whether the device holds the file system that the host made in it. Nothing else is ever mounted, and nothing is ever
/// formatted.
fn expect(device: &Path, expected: FsType) -> Result<(), StageError> {
    let file = File::open(device).map_err(|source| StageError::Open { device: device.to_owned(), source })?;
    match probe::probe(&file)? {
        Signature::Filesystem(found) if found.fs == expected => Ok(()),
        there => Err(StageError::NotFormatted { device: device.to_owned(), there, expected }),
    }
}

/// Hands the root directory, and nothing below it, to the group: set-gid, so that what is made in it is the group's too.
pub(super) fn hand_to_group(root: &Path, group: u32) -> std::io::Result<()> {
    let metadata = std::fs::metadata(root)?;
    if metadata.gid() != group {
        std::os::unix::fs::chown(root, None, Some(group))?;
    }
    let mode = metadata.permissions().mode() & 0o7777;
    let wanted = mode | 0o2770;
    if mode != wanted {
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(wanted))?;
    }
    Ok(())
}

/// Undoes [`stage`]. What is gone already is undone.
pub fn unstage(node: &Node, volume: &Id, staging: &Path) -> Result<(), UnstageError> {
    let _guard = node.guards.exclusive(volume)?;
    let Some(record) = node.recorded(volume)?.filter(|record| record.staging == staging) else {
        // it is not staged here, whatever is
        return unmount(volume, staging);
    };
    if let Some(target) = record.still_published().map_err(UnstageError::Mount)? {
        return Err(UnstageError::Published(target));
    }
    step!("unstage.unmount");
    unmount(volume, staging)?;
    step!("unstage.disconnect");
    // a target that went with a reboot may have left the device for readers in the record
    for connection in record.reader().into_iter().chain([record.connection.clone()]) {
        share::disconnect(&connection).map_err(|error| match error {
            error @ ConnectError::InUse { .. } => UnstageError::InUse(error.into()),
            other => UnstageError::Connect(other),
        })?;
    }
    step!("unstage.record");
    node.forget(volume)?;
    step!("unstage.done");
    Ok(())
}

/// Unmounts the volume, if that is what is mounted there.
fn unmount(volume: &Id, staging: &Path) -> Result<(), UnstageError> {
    let Ok(point) = mounts::resolve(staging) else { return Ok(()) };
    if !MountTable::read().map_err(UnstageError::Mount)?.at(&point).is_some_and(|mount| is_of(mount, volume)) {
        return Ok(());
    }
    match mounts::unmount(staging) {
        Ok(_) => Ok(()),
        Err(error @ MountError::Busy { .. }) => Err(UnstageError::InUse(error.into())),
        Err(error) => Err(UnstageError::Mount(error)),
    }
}
