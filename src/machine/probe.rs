//! What an image file or block device holds, read from it directly: never from udev, blkid or a cache of theirs.
//!
//! This only looks. A device is [`Signature::Blank`] when every known place shows nothing *and* its first and last MiB are
//! zero; anything unknown is [`Signature::Other`], and what cannot be read is an error. Whether a blank device may be
//! written is its owner's decision, never this module's.

mod signatures;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use super::filesystem::{Filesystem, Superblock, parse, place};
use crate::domain::FsType;
use signatures::{AT_THE_END, AT_THE_START, Mark, OTHER_FILE_SYSTEMS};

/// How much must be zero at each end, in bytes.
const END: u64 = 1 << 20;

/// What a device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature {
    /// Nothing that is known, and zeros at both ends.
    Blank,
    /// A file system that cistern makes.
    Filesystem(Filesystem),
    /// Something else, by name.
    Other(&'static str),
}

/// Why nothing can be said about a device.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// How large it is cannot be found out.
    #[error("cannot find out the size")]
    Size(#[source] io::Error),
    /// It has no bytes, like a loop device that is bound to nothing.
    #[error("the size is zero")]
    Empty,
    /// A place that has to be looked at cannot be read.
    #[error("cannot read {length} bytes at {offset}")]
    Read {
        /// Where, in bytes.
        offset: u64,
        /// How much.
        length: usize,
        /// Why.
        source: io::Error,
    },
}

/// What can be probed: bytes at offsets.
pub trait ReadAt {
    /// The number of bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills the buffer from this offset; less is an error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        let mut file: &File = self;
        file.seek(SeekFrom::End(0))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

/// Tells what the device holds. If it holds several things, the one that owns the others is told: a container at the start
/// of the device, then the file systems that cistern makes (of which a user of the volume can write neither the superblock
/// nor what is before it, so nothing inside one can pass for another), then everything else.
///
/// # Errors
/// Any place that cannot be read, because it might have shown something.
pub fn probe(device: &impl ReadAt) -> Result<Signature, ProbeError> {
    let view = View::of(device)?;
    let other = |marks: &[Mark]| Ok(view.first(marks)?.map(Signature::Other));
    if let Some(found) = other(AT_THE_START)? {
        return Ok(found);
    }
    if let Some(found) = view.filesystem()? {
        return Ok(found);
    }
    for marks in [OTHER_FILE_SYSTEMS, AT_THE_END] {
        if let Some(found) = other(marks)? {
            return Ok(found);
        }
    }
    if view.zfs()? {
        return Ok(Signature::Other("ZFS"));
    }
    let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    Ok(if zero(&view.head) && zero(&view.tail) { Signature::Blank } else { Signature::Other("unknown data") })
}

/// A device with both ends read.
struct View<'a, Device> {
    device: &'a Device,
    size: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl<Device: ReadAt> View<'_, Device> {
    fn of(device: &Device) -> Result<View<'_, Device>, ProbeError> {
        let size = device.size().map_err(ProbeError::Size)?;
        if size == 0 {
            return Err(ProbeError::Empty);
        }
        let head = read(device, 0, size.min(END))?;
        let tail = read(device, size - size.min(END), size.min(END))?;
        Ok(View { device, size, head, tail })
    }

    /// The bytes there; `None` where the device has none.
    fn bytes(&self, offset: u64, length: u64) -> Result<Option<Vec<u8>>, ProbeError> {
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Ok(None);
        }
        let ends = [(0, &self.head), (self.size - self.size.min(END), &self.tail)];
        for (start, bytes) in ends {
            let from = offset.checked_sub(start).and_then(|from| usize::try_from(from).ok());
            let inside =
                from.zip(usize::try_from(length).ok()).and_then(|(from, length)| bytes.get(from..from + length));
            if let Some(inside) = inside {
                return Ok(Some(inside.to_vec()));
            }
        }
        read(self.device, offset, length).map(Some)
    }

    /// The first of these marks that is there.
    fn first(&self, marks: &[Mark]) -> Result<Option<&'static str>, ProbeError> {
        for mark in marks {
            let Some(offset) = mark.place.offset(self.size) else { continue };
            if self.bytes(offset, mark.bytes.len() as u64)?.as_deref() == Some(mark.bytes) {
                return Ok(Some(mark.name));
            }
        }
        Ok(None)
    }

    /// A file system that cistern makes, or one that is like it.
    fn filesystem(&self) -> Result<Option<Signature>, ProbeError> {
        // in the order of their places, so that a file in one is never taken for another
        for fs in [FsType::Xfs, FsType::Ext4, FsType::Btrfs] {
            let (offset, length) = place(fs);
            // the longest superblock is cut where the device ends
            let length = (length as u64).min(self.size.saturating_sub(offset));
            match self.bytes(offset, length)?.map_or(Superblock::Absent, |bytes| parse(fs, &bytes)) {
                Superblock::Absent => {}
                Superblock::Foreign(name) => return Ok(Some(Signature::Other(name))),
                Superblock::Sound(found) => return Ok(Some(Signature::Filesystem(found))),
            }
        }
        Ok(None)
    }

    /// Whether one of the four labels of a ZFS device has an uberblock. Source: OpenZFS, `include/sys/vdev_impl.h`.
    fn zfs(&self) -> Result<bool, ProbeError> {
        const LABEL: u64 = 256 << 10;
        const UBERBLOCKS: u64 = 128 << 10;
        const MAGIC: u64 = 0x00ba_b10c;
        let end = self.size - self.size % LABEL;
        let labels = [Some(0), Some(LABEL), end.checked_sub(2 * LABEL), end.checked_sub(LABEL)];
        for label in labels.into_iter().flatten() {
            let Some(ring) = self.bytes(label + UBERBLOCKS, UBERBLOCKS)? else { continue };
            let is_magic =
                |slot: &[u8]| slot.starts_with(&MAGIC.to_le_bytes()) || slot.starts_with(&MAGIC.to_be_bytes());
            if ring.chunks(1024).any(is_magic) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn read(device: &impl ReadAt, offset: u64, length: u64) -> Result<Vec<u8>, ProbeError> {
    // never more than a MiB
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length];
    let failed = |source| ProbeError::Read { offset, length, source };
    device.read_at(&mut bytes, offset).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use signatures::Place;

    const MIB: u64 = 1 << 20;

    /// A device of zeros but for some bytes, and with places that cannot be read.
    #[derive(Default)]
    struct Fixture {
        size: u64,
        bytes: Vec<(u64, Vec<u8>)>,
        broken: Option<u64>,
    }

    impl Fixture {
        fn zeros(size: u64) -> Fixture {
            Fixture { size, ..Fixture::default() }
        }

        fn with(mut self, offset: u64, bytes: &[u8]) -> Fixture {
            self.bytes.push((offset, bytes.to_vec()));
            self
        }
    }

    impl ReadAt for Fixture {
        fn size(&self) -> io::Result<u64> {
            Ok(self.size)
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let end = offset + buffer.len() as u64;
            if end > self.size || self.broken.is_some_and(|broken| (offset..end).contains(&broken)) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for (start, bytes) in &self.bytes {
                for (place, byte) in (*start..).zip(bytes).filter(|(place, _)| (offset..end).contains(place)) {
                    buffer[usize::try_from(place - offset).unwrap()] = *byte;
                }
            }
            Ok(())
        }
    }

    #[test]
    fn only_zeros_are_blank() {
        for size in [1, 512, 4096, MIB - 1, MIB, MIB + 512, 2 * MIB, 512 * MIB, 1 << 50] {
            assert_eq!(probe(&Fixture::zeros(size)).unwrap(), Signature::Blank, "{size}");
            for offset in [0, size / 2, size - 1] {
                let found = probe(&Fixture::zeros(size).with(offset, &[1])).unwrap();
                let seen = offset < MIB || offset >= size - MIB;
                assert_eq!(found == Signature::Other("unknown data"), seen, "{size} {offset}");
            }
        }
        assert!(matches!(probe(&Fixture::zeros(0)), Err(ProbeError::Empty)));
    }

    #[test]
    fn every_mark_is_found_wherever_it_belongs() {
        for size in [300 * MIB, 300 * MIB + 7 * 512, 260 << 30] {
            for mark in [AT_THE_START, OTHER_FILE_SYSTEMS, AT_THE_END].into_iter().flatten() {
                let Some(offset) = mark.place.offset(size).filter(|offset| *offset < size) else { continue };
                let found = probe(&Fixture::zeros(size).with(offset, mark.bytes)).unwrap();
                assert_eq!(found, Signature::Other(mark.name), "{:?}", mark.place);
            }
        }
    }

    #[test]
    fn zfs_is_found_in_each_of_its_labels() {
        let size = 100 * MIB + 12345 * 512;
        let end = size / (256 << 10) * (256 << 10);
        for label in [0, 256 << 10, end - (512 << 10), end - (256 << 10)] {
            for (slot, magic) in [(0, 0xbab10c_u64.to_le_bytes()), (127, 0xbab10c_u64.to_be_bytes())] {
                let offset = label + (128 << 10) + slot * 1024;
                let found = probe(&Fixture::zeros(size).with(offset, &magic)).unwrap();
                assert_eq!(found, Signature::Other("ZFS"), "{offset}");
            }
        }
    }

    #[test]
    fn a_place_that_cannot_be_read_is_never_blank() {
        let size = 300 * MIB;
        for broken in [0, 4096, MIB - 1, 64 * MIB + 64, size - MIB, size - 1] {
            let device = Fixture { broken: Some(broken), ..Fixture::zeros(size) };
            assert!(matches!(probe(&device), Err(ProbeError::Read { .. })), "{broken}");
        }
    }

    #[test]
    fn the_places_of_raid_superblocks_follow_the_size() {
        for (place, size, offset) in [
            (Place::Raid090, 1 << 20, Some((1 << 20) - (64 << 10))),
            (Place::Raid090, (1 << 20) + 512, Some((1 << 20) - (64 << 10))),
            (Place::Raid090, 4096, None),
            (Place::Raid10, 1 << 20, Some((1 << 20) - 8192)),
            (Place::Raid10, (1 << 20) + 7 * 512, Some((1 << 20) - 8192)),
            (Place::Raid10, 4096, None),
            (Place::End(512), 512, Some(0)),
            (Place::End(512), 511, None),
        ] {
            assert_eq!(place.offset(size), offset, "{place:?} {size}");
        }
    }
}
