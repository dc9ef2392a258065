//! Where a file has data, and how much of that it shares with clones.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use super::FileError;

/// The ranges that may hold something else than zeros from `from` on, ascending. A hole is sure to read as zero. Moves
/// the position of `file`.
pub fn data_ranges(file: &File, from: u64) -> DataRanges<'_> {
    DataRanges { file, next: Some(from) }
}

/// See [`data_ranges`]. Ends after an error.
#[derive(Debug)]
pub struct DataRanges<'file> {
    file: &'file File,
    next: Option<u64>,
}

impl Iterator for DataRanges<'_> {
    type Item = Result<Range<u64>, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        let from = self.next.take()?;
        let start = match rustix::fs::seek(self.file, SeekFrom::Data(from)) {
            Ok(start) => start,
            // no data up to the end, or `from` is beyond it
            Err(Errno::NXIO) => return None,
            Err(errno) => return Some(Err(FileError::of("find data in", self.file, errno))),
        };
        match rustix::fs::seek(self.file, SeekFrom::Hole(start)) {
            Ok(end) => {
                self.next = Some(end);
                Some(Ok(start..end))
            }
            Err(errno) => Some(Err(FileError::of("find a hole in", self.file, errno))),
        }
    }
}

/// How many extents one call asks for: 14 KiB of them.
const EXTENTS_A_CALL: usize = 256;
const FIEMAP_EXTENT_LAST: u32 = 0x0001;
const FIEMAP_EXTENT_SHARED: u32 = 0x2000;
/// `FS_IOC_FIEMAP` (linux/fs.h); the structure's size in it leaves out the extents.
const FS_IOC_FIEMAP: Opcode = opcode::read_write::<MapHeader>(b'f', 11);

/// `struct fiemap` (linux/fiemap.h) without the extents.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MapHeader {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<MapHeader>() == 32);

/// `struct fiemap_extent`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}
const _: () = assert!(size_of::<Extent>() == 56);

/// `struct fiemap` with room for extents.
#[repr(C)]
struct Map {
    header: MapHeader,
    extents: [Extent; EXTENTS_A_CALL],
}

impl Map {
    /// The extents of `file` from `start` on, as many as there is room for. What is not yet written out has none.
    #[allow(unsafe_code)]
    fn read(&mut self, file: &File, start: u64) -> Result<&[Extent], Errno> {
        let extent_count = u32::try_from(EXTENTS_A_CALL).map_err(|_| Errno::OVERFLOW)?;
        self.header = MapHeader { start, length: u64::MAX - start, extent_count, ..MapHeader::default() };
        // SAFETY: FS_IOC_FIEMAP reads and writes a `struct fiemap` followed by at most `extent_count` extents, and `Map`
        // is just that.
        let request = unsafe { Updater::<FS_IOC_FIEMAP, Map>::new(self) };
        // SAFETY: as above.
        unsafe { ioctl(file.as_fd(), request) }?;
        let mapped = usize::try_from(self.header.mapped_extents).map_err(|_| Errno::OVERFLOW)?;
        self.extents.get(..mapped).ok_or(Errno::OVERFLOW)
    }
}

/// How many bytes of the file are in blocks that a clone or snapshot uses too. Such blocks are counted for each of the
/// files that share them. Btrfs counts a whole extent as long as any of it is shared, and is slow for a file in many pieces.
///
/// # Errors
/// [`FileError::Unsupported`] where the file system does not say (tmpfs, NFS).
pub fn shared_bytes(file: &File) -> Result<u64, FileError> {
    let mut map = Box::new(Map { header: MapHeader::default(), extents: [Extent::default(); EXTENTS_A_CALL] });
    let mut shared = 0;
    let mut start = 0;
    loop {
        let extents = map.read(file, start).map_err(|errno| FileError::of("map", file, errno))?;
        let Some(last) = extents.last() else { return Ok(shared) };
        shared +=
            extents.iter().filter(|extent| extent.flags & FIEMAP_EXTENT_SHARED != 0).map(|e| e.length).sum::<u64>();
        let end = last.logical.saturating_add(last.length);
        // a file system that makes no progress would hold us for ever
        if last.flags & FIEMAP_EXTENT_LAST != 0 || end <= start {
            return Ok(shared);
        }
        start = end;
    }
}
