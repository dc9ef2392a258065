//! Block devices and mounted file systems, as far as files and loop devices do not say it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;

use super::file::is_left_out;

/// The size of a block device, in bytes.
pub fn size(device: &Path) -> io::Result<u64> {
    File::open(device)?.seek(SeekFrom::End(0))
}

/// Brings everything that was written to a mounted file system to its device (syncfs(2)).
pub fn sync_filesystem(mount_point: &Path) -> io::Result<()> {
    if is_left_out("mount.flush") {
        return Ok(());
    }
    Ok(rustix::fs::syncfs(File::open(mount_point)?)?)
}

/// The space of a mounted file system, in bytes and in inodes (statvfs(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// All bytes, those that are used, and those that anyone may still use.
    pub bytes: [u64; 3],
    /// The same of inodes.
    pub inodes: [u64; 3],
}

/// Measures a mounted file system.
pub fn usage(mount_point: &Path) -> io::Result<Usage> {
    let stat = rustix::fs::statvfs(mount_point)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    let used_inodes = stat.f_files.saturating_sub(stat.f_ffree);
    Ok(Usage {
        bytes: [bytes(stat.f_blocks), bytes(used), bytes(stat.f_bavail)],
        inodes: [stat.f_files, used_inodes, stat.f_favail],
    })
}
