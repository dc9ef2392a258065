//! btrfs's superblock and its copies. Source: the kernel's `include/uapi/linux/btrfs_tree.h`, `struct btrfs_super_block`;
//! all numbers are little-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::crc32c;
use super::superblock::{Filesystem, Superblock, field, le16, le32, le64};
use crate::domain::{FsType, Uuid};
use crate::machine::file::sync;

/// Offset and length in bytes.
pub const PLACE: (u64, usize) = (64 << 10, LENGTH);

const LENGTH: usize = 4096;
/// Where the copies are; a device has those that fit.
const COPIES: [u64; 2] = [64 << 20, 256 << 30];

const MAGIC: [u8; 8] = *b"_BHRfS_M";

const FSID: usize = 0x20;
const OFFSET: usize = 0x30;
const FLAGS: usize = 0x38;
const TOTAL_BYTES: usize = 0x70;
const DEVICES: usize = 0x88;
const INCOMPATIBLE: usize = 0xbc;
const METADATA_UUID: usize = 0x23b;

/// The feature of a file system whose blocks carry another UUID (`metadata_uuid`) than it shows (Linux 5.0).
const HAS_METADATA_UUID: u64 = 1 << 10;
/// Flags of a change of the UUID that another tool began.
const CHANGING: u64 = 1 << 35 | 1 << 36;

/// What these 4096 bytes say.
pub fn parse(bytes: &[u8]) -> Superblock {
    if bytes.len() < LENGTH || field(bytes, 0x40) != MAGIC {
        return Superblock::Absent;
    }
    match le16(bytes, 0xc4) {
        0 => {}
        1 => return Superblock::Foreign("btrfs with xxhash64 checksums"),
        2 => return Superblock::Foreign("btrfs with sha256 checksums"),
        3 => return Superblock::Foreign("btrfs with blake2 checksums"),
        _ => return Superblock::Foreign("btrfs with unknown checksums"),
    }
    if !crc32c::register([&bytes[FSID..LENGTH]]) != le32(bytes, 0) || le64(bytes, OFFSET) != PLACE.0 {
        return Superblock::Foreign("damaged btrfs");
    }
    Superblock::Sound(Filesystem {
        fs: FsType::Btrfs,
        uuid: Uuid::from_bytes(field(bytes, FSID)),
        size: le64(bytes, TOTAL_BYTES),
        dirty: le64(bytes, 0x60) != 0,
    })
}

/// The sound superblock with another UUID, sealed again. The blocks of the trees keep the old one, which is why nothing
/// else has to be written.
///
/// # Errors
/// Why it cannot be done to this file system.
pub fn renewed(bytes: &[u8], new: &Uuid) -> Result<Vec<u8>, &'static str> {
    if le64(bytes, DEVICES) != 1 {
        return Err("it has more than one device");
    }
    if le64(bytes, FLAGS) & CHANGING != 0 {
        return Err("another change of its UUID was begun and not ended");
    }
    let mut bytes = bytes[..LENGTH].to_vec();
    let features = le64(&bytes, INCOMPATIBLE);
    if features & HAS_METADATA_UUID == 0 {
        bytes.copy_within(FSID..FSID + 16, METADATA_UUID);
        bytes[INCOMPATIBLE..INCOMPATIBLE + 8].copy_from_slice(&(features | HAS_METADATA_UUID).to_le_bytes());
    }
    bytes[FSID..FSID + 16].copy_from_slice(new.as_bytes());
    seal(&mut bytes);
    Ok(bytes)
}

/// Writes the superblock's copies and then itself, so that a change is either seen in full or made again. The caller brings
/// the last of it to the disk.
pub fn write(file: &File, bytes: &[u8]) -> io::Result<()> {
    let size = le64(bytes, TOTAL_BYTES);
    // the kernel's rule for which copies there are
    for offset in COPIES.into_iter().filter(|offset| offset + 4096 < size) {
        let mut copy = bytes.to_vec();
        copy[OFFSET..OFFSET + 8].copy_from_slice(&offset.to_le_bytes());
        seal(&mut copy);
        file.write_all_at(&copy, offset)?;
    }
    sync("adopt.copies", file)?;
    file.write_all_at(bytes, PLACE.0)
}

fn seal(bytes: &mut [u8]) {
    let crc = !crc32c::register([&bytes[FSID..]]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// What is done to a superblock.
    type Spoil = fn(&mut [u8]);

    const OLD: [u8; 16] = [7; 16];

    fn superblock() -> Vec<u8> {
        let mut bytes = vec![0; LENGTH];
        bytes[FSID..FSID + 16].copy_from_slice(&OLD);
        bytes[OFFSET..OFFSET + 8].copy_from_slice(&PLACE.0.to_le_bytes());
        bytes[0x40..0x48].copy_from_slice(&MAGIC);
        bytes[TOTAL_BYTES..TOTAL_BYTES + 8].copy_from_slice(&(128_u64 << 20).to_le_bytes());
        bytes[DEVICES] = 1;
        bytes[INCOMPATIBLE..INCOMPATIBLE + 8].copy_from_slice(&0x341_u64.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    fn sound(uuid: [u8; 16], dirty: bool) -> Superblock {
        Superblock::Sound(Filesystem { fs: FsType::Btrfs, uuid: Uuid::from_bytes(uuid), size: 128 << 20, dirty })
    }

    #[test]
    fn only_a_sealed_superblock_at_its_place_is_sound() {
        assert_eq!(parse(&superblock()), sound(OLD, false));
        let cases: [(Spoil, bool, Superblock); 8] = [
            (|bytes| bytes[0x40] = b'!', true, Superblock::Absent),
            (|bytes| bytes[0x60] = 1, true, sound(OLD, true)),
            (|bytes| bytes[0x71] ^= 1, false, Superblock::Foreign("damaged btrfs")),
            (|bytes| bytes[OFFSET + 2] ^= 1, true, Superblock::Foreign("damaged btrfs")),
            (|bytes| bytes[0xc4] = 1, true, Superblock::Foreign("btrfs with xxhash64 checksums")),
            (|bytes| bytes[0xc4] = 2, true, Superblock::Foreign("btrfs with sha256 checksums")),
            (|bytes| bytes[0xc4] = 3, true, Superblock::Foreign("btrfs with blake2 checksums")),
            (|bytes| bytes[0xc4] = 4, true, Superblock::Foreign("btrfs with unknown checksums")),
        ];
        for (change, sealed, expected) in cases {
            let mut bytes = superblock();
            change(&mut bytes);
            if sealed {
                seal(&mut bytes);
            }
            assert_eq!(parse(&bytes), expected);
        }
        assert_eq!(parse(&superblock()[..4095]), Superblock::Absent);
    }

    #[test]
    fn a_new_uuid_leaves_the_blocks_theirs() {
        let once = renewed(&superblock(), &Uuid::from_bytes([8; 16])).unwrap();
        let twice = renewed(&once, &Uuid::from_bytes([9; 16])).unwrap();
        for (bytes, uuid) in [(once, [8; 16]), (twice, [9; 16])] {
            assert_eq!(parse(&bytes), sound(uuid, false));
            assert_eq!(bytes[METADATA_UUID..METADATA_UUID + 16], OLD);
            assert_eq!(le64(&bytes, INCOMPATIBLE), 0x741);
        }
    }

    #[test]
    fn what_is_not_ours_alone_is_refused() {
        for (offset, value) in [(DEVICES, 2), (FLAGS + 4, 0x8), (FLAGS + 4, 0x10)] {
            let mut bytes = superblock();
            bytes[offset] = value;
            assert!(renewed(&bytes, &Uuid::from_bytes([8; 16])).is_err(), "{offset:#x}");
        }
    }

    #[test]
    fn every_copy_that_fits_is_written() {
        for (size, copies) in [(64 << 20, 0), ((64 << 20) + 4096, 0), ((64 << 20) + 4097, 1), (300 << 30, 2)] {
            let mut bytes = superblock();
            bytes[TOTAL_BYTES..TOTAL_BYTES + 8].copy_from_slice(&u64::to_le_bytes(size));
            seal(&mut bytes);
            let file = File::from(rustix::fs::memfd_create("btrfs", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
            file.set_len(size).unwrap();
            write(&file, &bytes).unwrap();
            let mut found = vec![0; LENGTH];
            file.read_exact_at(&mut found, PLACE.0).unwrap();
            assert_eq!(found, bytes);
            for (index, offset) in COPIES.into_iter().enumerate().filter(|(_, offset)| offset + 4096 <= size) {
                file.read_exact_at(&mut found, offset).unwrap();
                let expected = if index < copies { offset } else { 0 };
                assert_eq!(le64(&found, OFFSET), expected, "{size}");
                assert_eq!(!crc32c::register([&found[FSID..]]) == le32(&found, 0), index < copies, "{size}");
            }
        }
    }
}
