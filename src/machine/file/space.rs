//! What the file system below a directory is and can do.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, StatFs, StatxFlags};
use rustix::io::Errno;

use super::durable::temporary_name;
use super::{FileError, clone_into, path_of};

/// The smallest unit of direct I/O that a block device can have, in bytes.
const SMALLEST_SECTOR: u32 = 512;

/// Bytes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What is left without what the file system keeps for root.
    pub free: u64,
    /// The block that it allocates in.
    pub block: u64,
}

/// The file system that holds the directory.
pub fn space(dir: &Path) -> Result<Space, FileError> {
    let stat = rustix::fs::statvfs(dir).map_err(|errno| FileError::at("measure the space of", dir, errno))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Space { total: bytes(stat.f_blocks), free: bytes(stat.f_bavail), block: stat.f_frsize })
}

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsKind {
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// Ext4, or its elder brothers, which have the same magic.
    Ext4,
    /// Memory.
    Tmpfs,
    /// An NFS client's.
    Nfs,
    /// One with this magic of statfs(2).
    Other(u64),
}

impl FsKind {
    /// From `f_type` (linux/magic.h).
    fn of(stat: &StatFs) -> FsKind {
        match u64::try_from(stat.f_type).unwrap_or(u64::MAX) {
            0x5846_5342 => FsKind::Xfs,
            0x9123_683e => FsKind::Btrfs,
            0xef53 => FsKind::Ext4,
            0x0102_1994 => FsKind::Tmpfs,
            0x6969 => FsKind::Nfs,
            other => FsKind::Other(other),
        }
    }
}

/// The kind of file system that holds the directory.
pub fn kind(dir: &Path) -> Result<FsKind, FileError> {
    let recognized = rustix::fs::statfs(dir).map(|stat| FsKind::of(&stat));
    recognized.map_err(|errno| FileError::at("recognize the file system of", dir, errno))
}

/// Whether files in the directory can be cloned: tried on two files that have no name.
pub fn supports_clone(dir: &Path) -> Result<bool, FileError> {
    try_clone(&probe_file(dir)?, &unnamed_file(dir)?)
}

fn try_clone(src: &File, dst: &File) -> Result<bool, FileError> {
    match clone_into(src, dst) {
        Ok(()) => Ok(true),
        Err(FileError::Unsupported { .. }) => Ok(false),
        // ioctl_ficlone(2): the file system does not support it for these files
        Err(FileError::Failed { source, .. }) if Errno::from_io_error(&source) == Some(Errno::INVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The smallest sector, in bytes, in which every file of the directory can be written with direct I/O, also once it shares
/// blocks with a clone (XFS then writes whole blocks: 4096 where 512 was possible before). None without direct I/O.
pub fn direct_io_sector_in(dir: &Path) -> Result<Option<u32>, FileError> {
    let (file, clone) = (probe_file(dir)?, unnamed_file(dir)?);
    // where it fails no file will ever be cloned
    try_clone(&file, &clone)?;
    direct_io_sector(&file)
}

/// The smallest sector, in bytes, in which this file, as it is now, can be written with direct I/O; at least 512. None
/// without direct I/O.
pub fn direct_io_sector(file: &File) -> Result<Option<u32>, FileError> {
    let failed = |errno| FileError::of("find the direct I/O unit of", file, errno);
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).map_err(failed)?;
    if StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN) {
        let unit = stat.stx_dio_offset_align;
        return Ok((unit > 0).then(|| unit.max(SMALLEST_SECTOR)));
    }
    // Linux before 6.1, and file systems that do not say
    if FsKind::of(&rustix::fs::fstatfs(file).map_err(failed)?) == FsKind::Btrfs {
        // it takes less than its own sector, but goes through the page cache then
        return Ok(u32::try_from(rustix::fs::fstatvfs(file).map_err(failed)?.f_bsize).ok());
    }
    let path = path_of(file);
    let dir = path.parent().unwrap_or(Path::new("/"));
    tried_direct_io_sector(&probe_file(dir)?)
}

/// The smallest unit in which `file`, which has two blocks of data on disk, can be read with direct I/O.
fn tried_direct_io_sector(file: &File) -> Result<Option<u32>, FileError> {
    // by its number, because it may have no name
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    let direct = match rustix::fs::open(&again, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()) {
        Ok(direct) => File::from(direct),
        // open(2): the file system has no direct I/O
        Err(Errno::INVAL) => return Ok(None),
        Err(errno) => return Err(FileError::of("open for direct I/O", file, errno)),
    };
    let mut page = Box::new(Page([0; BLOCK]));
    for (sector, length) in [(SMALLEST_SECTOR, 512), (4096, BLOCK)] {
        match direct.read_exact_at(&mut page.0[..length], u64::from(sector)) {
            Ok(()) => return Ok(Some(sector)),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {}
            Err(source) => return Err(FileError::of("read with direct I/O", file, source)),
        }
    }
    Ok(None)
}

const BLOCK: usize = 4096;

/// Memory where direct I/O wants it.
#[repr(align(4096))]
struct Page([u8; BLOCK]);

/// A file without a name that has two blocks of data on disk.
fn probe_file(dir: &Path) -> Result<File, FileError> {
    let file = unnamed_file(dir)?;
    let written = file.write_all_at(&[0xa5; 2 * BLOCK], 0).and_then(|()| file.sync_data());
    written.map_err(|source| FileError::at("write a probe in", dir, source))?;
    Ok(file)
}

/// A file without a name, which goes when it is closed.
fn unnamed_file(dir: &Path) -> Result<File, FileError> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // open(2): NFS has no such files
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            named_and_removed(dir).map_err(|source| FileError::at("make a probe in", dir, source))
        }
        Err(errno) => Err(FileError::at("make a probe in", dir, errno)),
    }
}

fn named_and_removed(dir: &Path) -> io::Result<File> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let unique = format!("probe-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    // a name that is cleaned up after a crash like that of any other unfinished file
    let path = dir.join(temporary_name(&unique));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::domain::FsType;
    use crate::domain::size::MIB;
    use crate::machine::testing::{TestDir, TestFs};

    #[test]
    fn trying_finds_the_same_sector_that_the_kernel_says() {
        for fs in [FsType::Ext4, FsType::Xfs] {
            for sector in [512, 4096] {
                let test = TestFs::with_sector(fs, fs.smallest().max(64 * MIB), sector);
                let file = probe_file(test.path()).unwrap();
                assert_eq!(tried_direct_io_sector(&file).unwrap(), Some(sector), "{fs:?}");
                assert_eq!(direct_io_sector(&file).unwrap(), Some(sector), "{fs:?}");
            }
        }
    }

    #[test]
    fn probes_leave_no_names() {
        let dir = TestDir::new();
        let file = named_and_removed(dir.path()).unwrap();
        file.write_all_at(&[1], 0).unwrap();
        probe_file(dir.path()).unwrap();
        supports_clone(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
