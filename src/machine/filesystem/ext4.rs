//! ext4's superblock. Source: the kernel's `fs/ext4/ext4.h`, `struct ext4_super_block`; all numbers are little-endian.

use super::crc32c;
use super::superblock::{Filesystem, Superblock, field, le16, le32};
use crate::domain::{FsType, Uuid};

/// Offset and length in bytes.
pub const PLACE: (u64, usize) = (1024, 1024);

const MAGIC: u16 = 0xef53;
const HAS_JOURNAL: u32 = 0x4; // compatible features

const RECOVER: u32 = 0x4; // incompatible features
const JOURNAL_DEVICE: u32 = 0x8;
const SIXTY_FOUR_BIT: u32 = 0x80;
/// The incompatible features that ext3 has too: file types in directories, recovery, meta block groups.
const INCOMPATIBLE_OF_EXT3: u32 = 0x2 | RECOVER | 0x10;

const METADATA_CSUM: u32 = 0x400; // features that allow reading only
const ORPHAN_PRESENT: u32 = 0x1_0000;
/// Those that ext3 has too: sparse superblocks, large files, directory trees.
const READ_ONLY_OF_EXT3: u32 = 0x1 | 0x2 | 0x4;

/// What these 1024 bytes say.
pub fn parse(bytes: &[u8]) -> Superblock {
    if bytes.len() < PLACE.1 || le16(bytes, 0x38) != MAGIC {
        return Superblock::Absent;
    }
    let (compatible, incompatible, read_only) = (le32(bytes, 0x5c), le32(bytes, 0x60), le32(bytes, 0x64));
    if incompatible & JOURNAL_DEVICE != 0 {
        return Superblock::Foreign("journal of an ext file system");
    }
    if incompatible & !INCOMPATIBLE_OF_EXT3 == 0 && read_only & !READ_ONLY_OF_EXT3 == 0 {
        return Superblock::Foreign(if compatible & HAS_JOURNAL == 0 { "ext2" } else { "ext3" });
    }
    if compatible & HAS_JOURNAL == 0 {
        // also what mke2fs makes where a journal does not fit
        return Superblock::Foreign("ext4 without a journal");
    }
    if read_only & METADATA_CSUM != 0 && crc32c::register([&bytes[..0x3fc]]) != le32(bytes, 0x3fc) {
        return Superblock::Foreign("damaged ext4");
    }
    let Some(size) = size(bytes, incompatible & SIXTY_FOUR_BIT != 0) else {
        return Superblock::Foreign("damaged ext4");
    };
    let orphans = le32(bytes, 0xe8) != 0 || read_only & ORPHAN_PRESENT != 0;
    Superblock::Sound(Filesystem {
        fs: FsType::Ext4,
        uuid: Uuid::from_bytes(field(bytes, 0x68)),
        size,
        dirty: incompatible & RECOVER != 0 || orphans,
    })
}

/// Number of blocks times their size, in bytes.
fn size(bytes: &[u8], sixty_four_bit: bool) -> Option<u64> {
    let block = 1024_u64.checked_shl(le32(bytes, 0x18)).filter(|block| (1024..=65536).contains(block))?;
    let high = if sixty_four_bit { u64::from(le32(bytes, 0x150)) } else { 0 };
    (high << 32 | u64::from(le32(bytes, 0x4))).checked_mul(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A superblock with these features, 4 KiB blocks and a valid seal if it has one.
    fn superblock(compatible: u32, incompatible: u32, read_only: u32) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[0x4..0x8].copy_from_slice(&2560_u32.to_le_bytes());
        bytes[0x18] = 2;
        bytes[0x5c..0x60].copy_from_slice(&compatible.to_le_bytes());
        bytes[0x60..0x64].copy_from_slice(&incompatible.to_le_bytes());
        bytes[0x64..0x68].copy_from_slice(&read_only.to_le_bytes());
        bytes[0x68..0x78].fill(7);
        seal(&mut bytes);
        bytes
    }

    fn seal(bytes: &mut [u8]) {
        let crc = crc32c::register([&bytes[..0x3fc]]);
        bytes[0x3fc..].copy_from_slice(&crc.to_le_bytes());
    }

    /// What mkfs makes: extents, 64bit, checksums.
    const OURS: (u32, u32, u32) = (HAS_JOURNAL, 0x2c2, METADATA_CSUM);

    fn ours() -> Vec<u8> {
        superblock(OURS.0, OURS.1, OURS.2)
    }

    fn sound(size: u64, dirty: bool) -> Superblock {
        Superblock::Sound(Filesystem { fs: FsType::Ext4, uuid: Uuid::from_bytes([7; 16]), size, dirty })
    }

    #[test]
    fn features_tell_the_family_apart() {
        for (features, expected) in [
            ((0, 0x2, 0x3), Superblock::Foreign("ext2")),
            ((HAS_JOURNAL, 0x2, 0x3), Superblock::Foreign("ext3")),
            ((HAS_JOURNAL, 0x2 | RECOVER, 0x3), Superblock::Foreign("ext3")),
            ((0, JOURNAL_DEVICE, 0), Superblock::Foreign("journal of an ext file system")),
            ((0, OURS.1, OURS.2), Superblock::Foreign("ext4 without a journal")),
            ((HAS_JOURNAL, 0x42, 0x3), sound(10 << 20, false)),
            (OURS, sound(10 << 20, false)),
            ((OURS.0, OURS.1 | RECOVER, OURS.2), sound(10 << 20, true)),
            ((OURS.0, OURS.1, OURS.2 | ORPHAN_PRESENT), sound(10 << 20, true)),
        ] {
            assert_eq!(parse(&superblock(features.0, features.1, features.2)), expected, "{features:x?}");
        }
    }

    #[test]
    fn sizes_have_64_bits_and_orphans_are_work_left_over() {
        let mut bytes = ours();
        bytes[0x150] = 1;
        seal(&mut bytes);
        assert_eq!(parse(&bytes), sound((1 << 44) + (10 << 20), false));
        let mut bytes = ours();
        bytes[0xe8] = 12;
        seal(&mut bytes);
        assert_eq!(parse(&bytes), sound(10 << 20, true));
    }

    #[test]
    fn what_cannot_be_trusted_is_not_sound() {
        let mut broken = ours();
        broken[0x70] ^= 1;
        assert_eq!(parse(&broken), Superblock::Foreign("damaged ext4"));
        for shift in [7, 63, 64, 255] {
            let mut huge_blocks = ours();
            huge_blocks[0x18] = shift;
            seal(&mut huge_blocks);
            assert_eq!(parse(&huge_blocks), Superblock::Foreign("damaged ext4"), "{shift}");
        }
        assert_eq!(parse(&[0; 1024]), Superblock::Absent);
        assert_eq!(parse(&ours()[..1000]), Superblock::Absent);
    }
}
