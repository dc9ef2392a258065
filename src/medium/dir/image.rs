//! A pool that is one file: an XFS in a fully reserved file, mounted beside it. The file is formatted under a name of its
//! own before it gets the name that is mounted, so that nothing that was ever used is formatted.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::domain::error::chain;
use crate::domain::size::show;
use crate::domain::{FsType, Uuid};
use crate::machine::file::{self, FileId};
use crate::machine::loopdev::{Attach, LoopDevice};
use crate::machine::mounts::{self, MountTable};
use crate::machine::{self, filesystem};
use crate::medium::MediumError;

use rustix::mount::MountFlags;

/// The name of the file that is the pool.
pub(super) const FILE: &str = "pool.xfs";
const UNFINISHED: &str = "pool.xfs.making";
const MOUNT_POINT: &str = "pool";

/// A pool that is one file, mounted. When it goes it is unmounted, unless somebody uses what is in it.
pub(super) struct Image {
    mount_point: PathBuf,
    device: LoopDevice,
    is_ours: bool,
}

impl Image {
    /// Makes the file if it is not there, unless a store `is_expected`; grows it if it is smaller than `size` bytes and
    /// there is room; and mounts it.
    pub(super) fn open(directory: &Path, size: u64, is_expected: bool) -> Result<Image, MediumError> {
        let path = directory.join(FILE);
        if !path.try_exists().map_err(MediumError::step("looking for", &path))? {
            if is_expected {
                let why = "the store that was here is gone: is the file system that it is on mounted?".to_owned();
                return Err(MediumError::Unfit { path, why });
            }
            make(directory, size)?;
        }
        let backing = OpenOptions::new().write(true).open(&path).map_err(MediumError::step("opening", &path))?;
        let grown = grow_file(&backing, &path, directory, size)?;
        let mut image =
            Image { mount_point: directory.join(MOUNT_POINT), device: attach(&path, &backing)?, is_ours: false };
        image.mount()?;
        image.is_ours = true;
        if grown {
            image.device.refresh_size().map_err(MediumError::step("growing", &path))?;
        }
        // a growth that was cut off is finished too
        filesystem::grow(&image.mount_point).map_err(MediumError::step("growing", &image.mount_point))?;
        Ok(image)
    }

    pub(super) fn mounted_at(&self) -> &Path {
        &self.mount_point
    }

    fn mount(&self) -> Result<(), MediumError> {
        let point = &self.mount_point;
        std::fs::create_dir_all(point).map_err(MediumError::step("making", point))?;
        let point = &mounts::resolve(point).map_err(MediumError::step("finding", point))?;
        let table = MountTable::read().map_err(MediumError::step("looking for", point))?;
        let device = self.device.dev().map_err(MediumError::step("looking for", point))?;
        match table.at(point) {
            Some(mount) if mount.device == device => Ok(()),
            Some(_) => {
                let why = "something else is mounted here".to_owned();
                Err(MediumError::Unfit { path: point.clone(), why })
            }
            None => {
                let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
                mounts::mount(&self.device.path(), point, FsType::Xfs.as_str(), flags, "")
                    .map_err(MediumError::step("mounting", point))
            }
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // volumes in use keep the mount busy: then it stays for the next process to find
        // what is mounted there may be somebody else's, if ours could not be
        let is_unmounted = !self.is_ours || mounts::unmount(&self.mount_point).is_ok();
        if is_unmounted && let Err(error) = self.device.detach() {
            tracing::warn!(device = %self.device.path().display(), %error, "cannot detach");
        }
    }
}

/// Makes the file larger. Where there is no room for that it stays as it is: the pool is smaller than its owner wishes, and
/// no less usable.
fn grow_file(backing: &File, path: &Path, directory: &Path, size: u64) -> Result<bool, MediumError> {
    let before = backing.metadata().map_err(MediumError::step("measuring", path))?.len();
    if before >= size {
        return Ok(false);
    }
    if let Err(error) = refuse_without_room(directory, size - before) {
        tracing::warn!(error = %chain(&error), "the pool keeps its size");
        return Ok(false);
    }
    file::reserve(backing, before..size).map_err(MediumError::step("growing", path))?;
    file::sync("image.grow", backing).map_err(MediumError::step("growing", path))?;
    Ok(true)
}

/// A reservation that does not fit would fill the file system before it fails.
fn refuse_without_room(directory: &Path, more: u64) -> Result<(), MediumError> {
    let free = file::space(directory).map_err(MediumError::step("measuring", directory))?.free;
    if free >= more {
        return Ok(());
    }
    let why = format!("{} are needed for the pool's file, and {} are free", show(more), show(free));
    Err(MediumError::Unfit { path: directory.to_owned(), why })
}

/// Reserves and formats the file.
fn make(directory: &Path, size: u64) -> Result<(), MediumError> {
    let path = directory.join(UNFINISHED);
    // a file of its own, whatever an earlier process may still write into the one it began
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(MediumError::step("removing", &path)(error));
        }
        _ => {}
    }
    refuse_without_room(directory, size)?;
    tracing::info!(path = %directory.join(FILE).display(), size, "making the pool's file");
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let made = made.map_err(MediumError::step("making", &path))?;
    made.lock().map_err(MediumError::step("locking", &path))?;
    let formatted = reserve_and_format(&made, &path, directory, size);
    if formatted.is_err() {
        // best effort: the next attempt removes it first
        let _ = std::fs::remove_file(&path);
    }
    formatted
}

fn reserve_and_format(made: &File, path: &Path, directory: &Path, size: u64) -> Result<(), MediumError> {
    file::reserve(made, 0..size).map_err(MediumError::step("reserving", path))?;
    let random = machine::random_bytes().map_err(MediumError::step("naming", path))?;
    let sector = sector_of(made, path)?;
    filesystem::make(path, FsType::Xfs, sector, &Uuid::from_random(random), made)
        .map_err(MediumError::step("formatting", path))?;
    file::rename_durably(path, &directory.join(FILE)).map_err(MediumError::step("naming", path))
}

fn sector_of(file: &File, path: &Path) -> Result<u32, MediumError> {
    let sector = file::direct_io_sector(file).map_err(MediumError::step("probing", path))?;
    sector.ok_or_else(|| MediumError::Unfit {
        path: path.to_owned(),
        why: "its file system has no direct I/O".to_owned(),
    })
}

/// The loop device over the file: the one that an earlier process attached, or a new one. Its space stays reserved,
/// whoever trims the file system in it.
fn attach(path: &Path, backing: &File) -> Result<LoopDevice, MediumError> {
    let id = FileId::of(backing).map_err(MediumError::step("looking at", path))?;
    let found = LoopDevice::find(id).map_err(MediumError::step("attaching", path))?;
    if let Some(device) = found.into_iter().next() {
        return Ok(device);
    }
    let how = Attach { read_only: false, sector: sector_of(backing, path)?, discard: false };
    LoopDevice::attach(path, &how).map_err(MediumError::step("attaching", path))
}
