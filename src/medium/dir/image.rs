//! A pool that is one file: an XFS in a fully reserved file, mounted beside it. The file is formatted under a name of its
//! own before it gets the name that is mounted, so that nothing that was ever used is formatted.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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
}

impl Image {
    /// Makes the file if it is not there, grows it if it is smaller than `size` bytes, and mounts it.
    pub(super) fn open(directory: &Path, size: u64) -> Result<Image, MediumError> {
        let path = directory.join(FILE);
        if !path.try_exists().map_err(MediumError::step("looking for", &path))? {
            make(directory, size)?;
        }
        let backing = OpenOptions::new().write(true).open(&path).map_err(MediumError::step("opening", &path))?;
        let before = backing.metadata().map_err(MediumError::step("measuring", &path))?.len();
        if before < size {
            file::reserve(&backing, before..size).map_err(MediumError::step("growing", &path))?;
            backing.sync_all().map_err(MediumError::step("growing", &path))?;
        }
        let image = Image { mount_point: directory.join(MOUNT_POINT), device: attach(&path, &backing)? };
        image.mount()?;
        if before < size {
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
        if mounts::unmount(&self.mount_point).is_ok()
            && let Err(error) = self.device.detach()
        {
            tracing::warn!(device = %self.device.path().display(), %error, "cannot detach");
        }
    }
}

/// Reserves and formats the file.
fn make(directory: &Path, size: u64) -> Result<(), MediumError> {
    let path = directory.join(UNFINISHED);
    tracing::info!(path = %directory.join(FILE).display(), size, "making the pool's file");
    let made = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    let made = made.map_err(MediumError::step("making", &path))?;
    let formatted = reserve_and_format(&made, &path, directory, size);
    if formatted.is_err() {
        // best effort: the next attempt begins with an empty file anyway
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
    made.sync_all().map_err(MediumError::step("formatting", path))?;
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
