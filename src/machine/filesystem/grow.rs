//! Growing a mounted file system to the size of its device, by ioctl and without a tool.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags, fstat, fstatfs, major, minor, statx};

use super::ioctls;
use super::superblock::{self, Superblock};
use crate::domain::FsType;

/// Why a file system has not grown.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// The mount point cannot be opened or examined.
    #[error("cannot open {}", path.display())]
    Open {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing is mounted there, so the file system would be that of the directory above.
    #[error("nothing is mounted on {}", path.display())]
    NotMounted {
        /// The directory.
        path: PathBuf,
    },
    /// Something is mounted there that cannot grow this way.
    #[error("what is mounted on {} (type {magic:#x}) is not a file system of ours", path.display())]
    Foreign {
        /// The mount point.
        path: PathBuf,
        /// The number that statfs(2) gives for its type.
        magic: u64,
    },
    /// The device below, or what the file system says of itself, cannot be read.
    #[error("cannot find out the size of the {fs} on {} and of its device", path.display())]
    Size {
        /// The file system.
        fs: FsType,
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel said no.
    #[error("the kernel cannot grow the {fs} on {} to its device of {device} bytes", path.display())]
    Kernel {
        /// The file system.
        fs: FsType,
        /// The mount point.
        path: PathBuf,
        /// The device's size.
        device: u64,
        /// Why.
        source: io::Error,
    },
}

/// Grows the file system mounted on this directory (the root of the mount, ext4, XFS or btrfs of one device) to the size
/// of its device, and returns its size in bytes; one that is as large already is left as it is. The file system's size can
/// be less than the device's by what is too little for another group of blocks.
///
/// # Errors
/// [`GrowError::Kernel`] also for a btrfs that is to become larger, but not 256 MiB: the kernel resizes to no less.
pub fn grow(mount_point: &Path) -> Result<u64, GrowError> {
    let (root, fs) = open(mount_point)?;
    let unknown = |source| GrowError::Size { fs, path: mount_point.into(), source };
    let device = BlockDevice::below(&root, fs).map_err(unknown)?;
    let device_size = device.size().map_err(unknown)?;
    let size = size(&root, fs, &device).map_err(unknown)?;
    if size >= device_size {
        return Ok(size);
    }
    resize(&root, fs, device_size).map_err(|source| GrowError::Kernel {
        fs,
        path: mount_point.into(),
        device: device_size,
        source,
    })?;
    self::size(&root, fs, &device).map_err(unknown)
}

fn resize(root: &File, fs: FsType, device_size: u64) -> io::Result<()> {
    match fs {
        FsType::Ext4 => {
            let block = u64::try_from(fstatfs(root)?.f_bsize).map_err(io::Error::other)?;
            Ok(rustix::fs::ext4_ioc_resize_fs(root, device_size / block)?)
        }
        FsType::Xfs => {
            let geometry = ioctls::xfs_geometry(root)?;
            ioctls::xfs_grow(root, device_size / u64::from(geometry.block_size), geometry.inode_percent)
        }
        FsType::Btrfs => ioctls::btrfs_grow(root),
    }
}

/// Opens the root of the mount and tells its type.
fn open(mount_point: &Path) -> Result<(File, FsType), GrowError> {
    let failed = |errno: rustix::io::Errno| GrowError::Open { path: mount_point.into(), source: errno.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = File::from(rustix::fs::openat(CWD, mount_point, flags, Mode::empty()).map_err(failed)?);
    let attributes = statx(&root, "", AtFlags::EMPTY_PATH, StatxFlags::empty()).map_err(failed)?.stx_attributes;
    if !attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(GrowError::NotMounted { path: mount_point.into() });
    }
    let magic = u64::try_from(fstatfs(&root).map_err(failed)?.f_type).unwrap_or_default();
    // linux/magic.h
    let fs = match magic {
        0xef53 => FsType::Ext4,
        0x5846_5342 => FsType::Xfs,
        0x9123_683e => FsType::Btrfs,
        magic => return Err(GrowError::Foreign { path: mount_point.into(), magic }),
    };
    Ok((root, fs))
}

/// The file system's size in bytes.
fn size(root: &File, fs: FsType, device: &BlockDevice) -> io::Result<u64> {
    match fs {
        // the mounted superblock is a page of the device's cache, and there is no ioctl for it before Linux 6.18
        FsType::Ext4 => {
            let bytes = device.superblock(fs)?;
            match superblock::parse(fs, &bytes) {
                Superblock::Sound(found) => Ok(found.size),
                found => Err(io::Error::other(format!("{found:?} on the mounted device"))),
            }
        }
        FsType::Xfs => ioctls::xfs_geometry(root).map(|geometry| geometry.blocks * u64::from(geometry.block_size)),
        FsType::Btrfs => ioctls::btrfs_device_size(root),
    }
}

/// The block device below a file system, as sysfs shows it: the same in every mount namespace, whatever its node is called.
struct BlockDevice {
    sysfs: PathBuf,
}

impl BlockDevice {
    fn below(root: &File, fs: FsType) -> io::Result<BlockDevice> {
        if fs == FsType::Btrfs {
            // st_dev is no device's here
            let devices = format!("/sys/fs/btrfs/{}/devices", ioctls::btrfs_uuid(root)?);
            let mut links = fs::read_dir(devices)?;
            return match (links.next(), links.next()) {
                (Some(only), None) => Ok(BlockDevice { sysfs: only?.path() }),
                _ => Err(io::Error::other("it has more than one device, or none")),
            };
        }
        let number = fstat(root)?.st_dev;
        Ok(BlockDevice { sysfs: format!("/sys/dev/block/{}:{}", major(number), minor(number)).into() })
    }

    /// In bytes: what BLKGETSIZE64 gives.
    fn size(&self) -> io::Result<u64> {
        let sectors: u64 = fs::read_to_string(self.sysfs.join("size"))?.trim().parse().map_err(io::Error::other)?;
        Ok(sectors * 512)
    }

    fn superblock(&self, fs: FsType) -> io::Result<Vec<u8>> {
        let event = fs::read_to_string(self.sysfs.join("uevent"))?;
        let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        let name = name.ok_or_else(|| io::Error::other("the device has no name"))?;
        superblock::read(&Path::new("/dev").join(name), fs)
    }
}
