//! Mounts: what is mounted where, and mounting, binding, unmounting.
//!
//! State comes from mountinfo alone; nothing here stats what is mounted, because a dead file server would hold it. What is
//! to be mounted where, and with which options, is decided elsewhere.

mod table;

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
pub use rustix::mount::MountFlags;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

pub use table::{Mount, MountTable};

use crate::domain::Outcome;

/// The most mounts that [`unmount`] takes away from one path.
const MAX_STACKED: usize = 100;
/// How long an unmount is tried while it is busy. A child of ours has our files open between its fork and its exec.
const BUSY_WAIT: Duration = Duration::from_millis(200);
const BUSY_POLL: Duration = Duration::from_millis(10);

/// What failed on a mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// mountinfo cannot be read.
    #[error("cannot read /proc/self/mountinfo")]
    ReadTable(#[source] io::Error),
    /// mountinfo is not what proc(5) says.
    #[error("cannot parse mountinfo")]
    ParseTable(#[source] procfs::ProcError),
    /// A line of mountinfo has no device number of the form `major:minor`.
    #[error("mountinfo says that the device of {} is {device:?}", point.display())]
    ParseDevice {
        /// The mount point.
        point: PathBuf,
        /// What stands there.
        device: String,
    },
    /// The directory that holds the path cannot be resolved.
    #[error("cannot resolve the directory of {}", path.display())]
    Resolve {
        /// The path as given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Mount options with a NUL in them.
    #[error("the mount options {options:?} hold a NUL")]
    Options {
        /// The options.
        options: String,
    },
    /// The file system could not be mounted.
    #[error("cannot mount {} of type {fs_type} on {}", what.display(), target.display())]
    Mount {
        /// The device or export.
        what: PathBuf,
        /// The mount point.
        target: PathBuf,
        /// The file system's name.
        fs_type: String,
        /// Why. The kernel's log often knows more.
        source: io::Error,
    },
    /// The path could not be bound.
    #[error("cannot bind {} to {}", what.display(), target.display())]
    Bind {
        /// What was to be seen at the target.
        what: PathBuf,
        /// The mount point.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mount point is a symbolic link; mount(2) would follow it to somewhere else.
    #[error("{} is a symbolic link", target.display())]
    TargetIsLink {
        /// The mount point.
        target: PathBuf,
    },
    /// The path was bound, and somebody else has unmounted it at once.
    #[error("{} was bound and is not there", target.display())]
    Vanished {
        /// The mount point.
        target: PathBuf,
    },
    /// The path was bound, could not be given its flags, and was unmounted again.
    #[error("cannot set the flags of the mount at {}", target.display())]
    Flags {
        /// The mount point.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody works below the mount point, or has mounted there again each time.
    #[error("{} is busy", target.display())]
    Busy {
        /// The mount point.
        target: PathBuf,
    },
    /// A mount over one of the directories above hides the mount point, so that it cannot be reached.
    #[error("the mount at {} is covered by another one", target.display())]
    Covered {
        /// The mount point.
        target: PathBuf,
    },
    /// The kernel refuses to unmount.
    #[error("cannot unmount {}", target.display())]
    Unmount {
        /// The mount point.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mount's propagation cannot be set.
    #[error("cannot make the mount at {} private", target.display())]
    MakePrivate {
        /// The mount point.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a bind mount forbids beyond what its source forbids already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BindFlags {
    /// Nobody writes through this mount.
    pub read_only: bool,
    /// Set-user-id bits have no effect.
    pub nosuid: bool,
    /// Device nodes cannot be opened. Also that of a device node that is itself bound.
    pub nodev: bool,
    /// Programs cannot be executed.
    pub noexec: bool,
}

impl BindFlags {
    fn to_mount_flags(self) -> MountFlags {
        let chosen = [
            (self.read_only, MountFlags::RDONLY),
            (self.nosuid, MountFlags::NOSUID),
            (self.nodev, MountFlags::NODEV),
            (self.noexec, MountFlags::NOEXEC),
        ];
        chosen.into_iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).collect()
    }
}

/// The path as mountinfo has it: symbolic links in its directory are followed, the last component is taken as it is and
/// never touched, because a dead file server may be mounted there.
///
/// # Errors
/// [`MountError::Resolve`] also when the directory does not exist, or the path ends in `..`.
pub fn resolve(path: &Path) -> Result<PathBuf, MountError> {
    let failed = |source| MountError::Resolve { path: path.into(), source };
    let Some(parent) = path.parent() else { return Ok(path.into()) };
    let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    Ok(parent.canonicalize().map_err(failed)?.join(name))
}

/// Mounts the file system on `source`; `data` are the options that the file system itself reads, comma-separated.
pub fn mount(source: &Path, target: &Path, fs: &str, flags: MountFlags, data: &str) -> Result<(), MountError> {
    refuse_link(target)?;
    let options = CString::new(data).map_err(|_| MountError::Options { options: data.into() })?;
    // another program may be trying the number of a loop device that was free a moment ago, and claims it for that moment
    let mounted = while_busy(|| rustix::mount::mount(source, target, fs, flags, options.as_c_str()));
    mounted.map_err(|errno| MountError::Mount {
        what: source.into(),
        target: target.into(),
        fs_type: fs.into(),
        source: errno.into(),
    })
}

/// Shows `source`, a directory or a file, at `target`, of the same kind. What the source's mount forbids stays forbidden.
/// Flags are set in a second step: after a kill between the two the mount is there without them, so a caller who finds a
/// mount compares its flags.
///
/// # Errors
/// Nothing is mounted after an error.
pub fn bind(source: &Path, target: &Path, flags: BindFlags) -> Result<(), MountError> {
    let point = resolve(target)?;
    refuse_link(&point)?;
    rustix::mount::mount_bind(source, &point).map_err(|errno| MountError::Bind {
        what: source.into(),
        target: target.into(),
        source: errno.into(),
    })?;
    restrict(&point, flags.to_mount_flags()).inspect_err(|_| {
        // the first error is the one that counts
        let _ = rustix::mount::unmount(&point, UnmountFlags::NOFOLLOW);
    })
}

fn refuse_link(target: &Path) -> Result<(), MountError> {
    let is_link = target.read_link().is_ok();
    if is_link { Err(MountError::TargetIsLink { target: target.into() }) } else { Ok(()) }
}

/// Adds flags to those of the mount at `point`. A remount sets all flags anew, so those that it has are given again.
fn restrict(point: &Path, flags: MountFlags) -> Result<(), MountError> {
    let table = MountTable::read()?;
    let mount = table.at(point).ok_or_else(|| MountError::Vanished { target: point.into() })?;
    let wanted = mount.flags() | flags;
    if wanted == mount.flags() {
        return Ok(());
    }
    // how access times are kept survives a remount that says nothing of it
    rustix::mount::mount_remount(point, MountFlags::BIND | wanted, c"")
        .map_err(|errno| MountError::Flags { target: point.into(), source: errno.into() })
}

/// Unmounts everything that is mounted at exactly this path, however often. `Found` when nothing was.
///
/// # Errors
/// [`MountError::Busy`] and [`MountError::Covered`] say that something is still mounted there.
pub fn unmount(target: &Path) -> Result<Outcome<()>, MountError> {
    let point = match resolve(target) {
        Err(MountError::Resolve { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(Outcome::Found(()));
        }
        resolved => resolved?,
    };
    let mut outcome = Outcome::Found(());
    for _ in 0..MAX_STACKED {
        let table = MountTable::read()?;
        if table.at(&point).is_none() {
            let is_hidden = table.has_point(&point);
            return if is_hidden { Err(MountError::Covered { target: point }) } else { Ok(outcome) };
        }
        match unmount_once(&point) {
            Ok(()) => outcome = Outcome::Made(()),
            // somebody else was faster; the table shows what is left
            Err(Errno::INVAL | Errno::NOENT) => {}
            Err(Errno::BUSY) => return Err(MountError::Busy { target: point }),
            Err(errno) => return Err(MountError::Unmount { target: point, source: errno.into() }),
        }
    }
    Err(MountError::Busy { target: point })
}

fn unmount_once(point: &Path) -> Result<(), Errno> {
    while_busy(|| rustix::mount::unmount(point, UnmountFlags::NOFOLLOW))
}

/// Does it again while it is busy, for a moment: what holds it may be gone at once.
pub(super) fn while_busy<T>(mut act: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    let end = Instant::now() + BUSY_WAIT;
    loop {
        match act() {
            Err(Errno::BUSY) if Instant::now() < end => std::thread::sleep(BUSY_POLL),
            result => return result,
        }
    }
}

/// Ends the sharing of mounts below this mount point with other mount namespaces and mounts.
pub fn make_private(path: &Path) -> Result<(), MountError> {
    rustix::mount::mount_change(path, MountPropagationFlags::PRIVATE)
        .map_err(|errno| MountError::MakePrivate { target: path.into(), source: errno.into() })
}

#[cfg(test)]
mod tests;
