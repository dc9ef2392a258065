//! Files as pieces: cloning, reserving, punching, measuring, locking, and changing directories so that it lasts.
//!
//! Mechanisms only. Which files there are, what they are called and what they mean is decided elsewhere. Offsets and sizes
//! are bytes.

mod ballast;
mod copy;
mod durable;
mod extents;
mod space;

use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, IFlags};
use rustix::io::Errno;

pub use ballast::Ballast;
pub use copy::{copy_range, overwrite};
pub(super) use durable::is_left_out;
pub use durable::{is_temporary, remove_durably, rename_durably, sync, sync_dir, write_atomically};
pub use extents::{DataRanges, data_ranges, shared_bytes};
pub use space::{FsKind, Space, direct_io_sector, direct_io_sector_in, kind, space, supports_clone};

/// What failed on a file: the step and the path. A file that was given open shows the path it has now.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// No space, or no quota, is left.
    #[error("no space left to {step} {}", path.display())]
    NoSpace {
        /// What was to be done, as a verb.
        step: &'static str,
        /// To what.
        path: PathBuf,
    },
    /// The file system or kernel does not know how.
    #[error("the file system cannot {step} {}", path.display())]
    Unsupported {
        /// What was to be done, as a verb.
        step: &'static str,
        /// To what.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot {step} {}", path.display())]
    Failed {
        /// What was to be done, as a verb.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl FileError {
    fn at(step: &'static str, path: &Path, source: impl Into<io::Error>) -> FileError {
        let (path, source) = (path.to_path_buf(), source.into());
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => FileError::NoSpace { step, path },
            Some(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => FileError::Unsupported { step, path },
            _ => FileError::Failed { step, path, source },
        }
    }

    fn of(step: &'static str, file: &File, source: impl Into<io::Error>) -> FileError {
        FileError::at(step, &path_of(file), source)
    }
}

/// The path of an open file for messages, as the kernel knows it now.
fn path_of(file: &File) -> PathBuf {
    let link = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    fs::read_link(&link).unwrap_or(link)
}

/// Which file it is, whatever its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    /// `st_dev`; on Btrfs each subvolume has its own.
    pub device: u64,
    /// `st_ino`
    pub inode: u64,
}

impl FileId {
    /// The id of an open file.
    pub fn of(file: &File) -> io::Result<FileId> {
        file.metadata().map(|metadata| FileId::of_metadata(&metadata))
    }

    /// The id of the file at this path, which exists.
    pub fn at(path: &Path) -> io::Result<FileId> {
        fs::metadata(path).map(|metadata| FileId::of_metadata(&metadata))
    }

    fn of_metadata(metadata: &fs::Metadata) -> FileId {
        FileId { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Makes all of `dst` share the blocks of `src` (FICLONE). Both are in one file system, and on Btrfs both are
/// [nocow](set_nocow) or neither is. `dst` gets the size of `src` if it was shorter.
///
/// # Errors
/// [`FileError::Unsupported`] where blocks cannot be shared.
pub fn clone_into(src: &File, dst: &File) -> Result<(), FileError> {
    rustix::fs::ioctl_ficlone(dst, src).map_err(|errno| match errno {
        Errno::XDEV => FileError::Unsupported { step: "clone another file system's file into", path: path_of(dst) },
        errno => FileError::of("clone into", dst, errno),
    })
}

/// Takes blocks for the range, so that writing there needs no more space; grows the file to the range's end. What was a
/// hole reads as zero. Blocks shared with a clone stay shared, and writing to those needs space again.
///
/// # Errors
/// [`FileError::NoSpace`], after which part of the range may be reserved; [`FileError::Unsupported`].
pub fn reserve(file: &File, range: Range<u64>) -> Result<(), FileError> {
    allocate("reserve space in", file, FallocateFlags::empty(), range)
}

/// Gives back the blocks of the range, which reads as zero from then on. The file keeps its size.
pub fn punch(file: &File, range: Range<u64>) -> Result<(), FileError> {
    allocate("punch a hole in", file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, range)
}

/// Makes the range read as zero and have blocks of its own. The file keeps its size.
pub fn zero_range(file: &File, range: Range<u64>) -> Result<(), FileError> {
    allocate("zero a range of", file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, range)
}

fn allocate(step: &'static str, file: &File, how: FallocateFlags, range: Range<u64>) -> Result<(), FileError> {
    // fallocate(2) takes no empty range
    let length = match range.end.saturating_sub(range.start) {
        0 => return Ok(()),
        length => length,
    };
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, how, range.start, length))
        .map_err(|errno| FileError::of(step, file, errno))
}

/// Makes an empty file one that Btrfs overwrites in place, without checksums (FS_NOCOW_FL): direct I/O is direct then, and
/// reserved space stays enough. Cloning is still possible.
///
/// # Errors
/// [`FileError::Unsupported`] on other file systems; [`FileError::Failed`] when the file has data, because the kernel then
/// ignores the flag.
pub fn set_nocow(file: &File) -> Result<(), FileError> {
    let failed = |errno| FileError::of("switch off copy-on-write for", file, errno);
    let flags = rustix::fs::ioctl_getflags(file).map_err(failed)?;
    rustix::fs::ioctl_setflags(file, flags | IFlags::NOCOW).map_err(failed)?;
    let is_set = rustix::fs::ioctl_getflags(file).map_err(failed)?.contains(IFlags::NOCOW);
    if is_set { Ok(()) } else { Err(failed(Errno::INVAL)) }
}

/// Sets the size. A longer file gets a hole at its end.
pub fn set_file_size(file: &File, size: u64) -> Result<(), FileError> {
    file.set_len(size).map_err(|source| FileError::of("set the size of", file, source))
}

/// The space that the file's blocks take, those that it shares with clones included.
pub fn allocated_bytes(file: &File) -> Result<u64, FileError> {
    let metadata = file.metadata().map_err(|source| FileError::of("measure", file, source))?;
    // stat(2): in units of 512 bytes, whatever the file system's block is
    Ok(metadata.blocks() * 512)
}

/// A file that is locked until this value goes, or, if a child inherits the file, until both have closed it.
#[derive(Debug)]
pub struct Lock(File);

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Locks the file against every other opening of it (flock(2)); none when somebody has locked it.
pub fn lock_exclusive_try(file: File) -> Result<Option<Lock>, FileError> {
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(FileError::of("lock", &file, source)),
    }
}

#[cfg(test)]
mod tests;
