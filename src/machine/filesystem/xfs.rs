//! XFS's superblocks and the head of its log. Source: the kernel's `fs/xfs/libxfs/xfs_format.h` (`struct xfs_dsb`) and
//! `xfs_log_format.h` (`struct xlog_rec_header`); all numbers are big-endian, but for the checksum.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::crc32c;
use super::superblock::{Filesystem, Superblock, be16, be32, be64, field, le32};
use crate::domain::{FsType, Uuid};

/// Offset and length in bytes. The seal covers one sector, of at most 32 KiB.
pub const PLACE: (u64, usize) = (0, 32 << 10);

const MAGIC: [u8; 4] = *b"XFSB";
const LOG_MAGIC: u32 = 0xfeed_babe;
const UUID: usize = 32;
const CRC: usize = 224;

/// What these bytes say.
pub fn parse(bytes: &[u8]) -> Superblock {
    if bytes.len() < 512 || field(bytes, 0) != MAGIC {
        return Superblock::Absent;
    }
    if be16(bytes, 100) & 0xf != 5 {
        return Superblock::Foreign("XFS older than version 5");
    }
    let sector = usize::from(be16(bytes, 102));
    if sector < 512 || sector > bytes.len() || !is_sealed(&bytes[..sector]) {
        return Superblock::Foreign("damaged XFS");
    }
    if bytes[126] != 0 {
        return Superblock::Foreign("unfinished XFS");
    }
    let Some(size) = be64(bytes, 8).checked_mul(u64::from(be32(bytes, 4))) else {
        return Superblock::Foreign("damaged XFS");
    };
    Superblock::Sound(Filesystem { fs: FsType::Xfs, uuid: Uuid::from_bytes(field(bytes, UUID)), size, dirty: true })
}

fn is_sealed(sector: &[u8]) -> bool {
    !crc32c::register([&sector[..CRC], &[0; 4], &sector[CRC + 4..]]) == le32(sector, CRC)
}

/// How far the change of a UUID has come. The tool writes the log first, then the superblock of each allocation group,
/// beginning with the one that counts; a power cut can leave any part of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing has the new UUID.
    NotBegun,
    /// Something has it. The log had been replayed before, and the kernel may refuse a log of the other UUID.
    Begun,
    /// All superblocks have it.
    Done,
}

/// How far the change to `new` has come in the file system whose (sound) superblock is `bytes`.
pub fn change(file: &File, bytes: &[u8], new: &Uuid) -> io::Result<Change> {
    let (block, group) = (u64::from(be32(bytes, 4)), u64::from(be32(bytes, 84)));
    let groups = u64::from(be32(bytes, 88));
    let mut changed = 0;
    for number in 0..groups {
        let mut uuid = [0; 16];
        file.read_exact_at(&mut uuid, number * group * block + UUID as u64)?;
        changed += u64::from(uuid == *new.as_bytes());
    }
    Ok(match changed {
        0 if log_uuid(file, bytes)? != Some(*new) => Change::NotBegun,
        count if count == groups => Change::Done,
        _ => Change::Begun,
    })
}

/// The UUID in the log's first record; `None` if there is no record at its start.
fn log_uuid(file: &File, bytes: &[u8]) -> io::Result<Option<Uuid>> {
    // a block's number is that of its group, above so many bits of the block within
    let (start, bits) = (be64(bytes, 48), u32::from(bytes[124]));
    let (group, within) = (start >> bits, start & ((1 << bits) - 1));
    let offset = (group * u64::from(be32(bytes, 84)) + within) * u64::from(be32(bytes, 4));
    let mut record = [0; 512];
    file.read_exact_at(&mut record, offset)?;
    Ok((be32(&record, 0) == LOG_MAGIC).then(|| Uuid::from_bytes(field(&record, 304))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// What is done to a superblock.
    type Spoil = fn(&mut [u8]);

    /// Four groups of 16 blocks of 4 KiB, the log at block 3 of group 2.
    fn superblock() -> Vec<u8> {
        let mut bytes = vec![0; PLACE.1];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        bytes[8..16].copy_from_slice(&60_u64.to_be_bytes());
        bytes[UUID..48].fill(7);
        bytes[48..56].copy_from_slice(&(2_u64 << 4 | 3).to_be_bytes());
        bytes[84..88].copy_from_slice(&16_u32.to_be_bytes());
        bytes[88..92].copy_from_slice(&4_u32.to_be_bytes());
        bytes[100..102].copy_from_slice(&0xb4a5_u16.to_be_bytes());
        bytes[102..104].copy_from_slice(&512_u16.to_be_bytes());
        bytes[124] = 4;
        seal(&mut bytes);
        bytes
    }

    fn seal(bytes: &mut [u8]) {
        bytes[CRC..CRC + 4].fill(0);
        let crc = !crc32c::register([&bytes[..512]]);
        bytes[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn only_a_sealed_and_finished_superblock_is_sound() {
        let uuid = Uuid::from_bytes([7; 16]);
        let sound = Superblock::Sound(Filesystem { fs: FsType::Xfs, uuid, size: 60 * 4096, dirty: true });
        assert_eq!(parse(&superblock()), sound);
        let cases: [(Spoil, bool, Superblock); 6] = [
            (|bytes| bytes[0] = b'x', true, Superblock::Absent),
            (|bytes| bytes[101] = 0xa4, true, Superblock::Foreign("XFS older than version 5")),
            (|bytes| bytes[126] = 1, true, Superblock::Foreign("unfinished XFS")),
            (|bytes| bytes[40] ^= 1, false, Superblock::Foreign("damaged XFS")),
            (|bytes| bytes[102] = 0, true, Superblock::Foreign("damaged XFS")),
            (|bytes| bytes[102] = 0xff, true, Superblock::Foreign("damaged XFS")),
        ];
        for (spoil, sealed, expected) in cases {
            let mut bytes = superblock();
            spoil(&mut bytes);
            if sealed {
                seal(&mut bytes);
            }
            assert_eq!(parse(&bytes), expected);
        }
        assert_eq!(parse(&superblock()[..511]), Superblock::Absent);
    }

    #[test]
    fn a_change_of_the_uuid_is_followed() {
        let old = superblock();
        let (block, log) = (4096, (2 * 16 + 3) * 4096);
        let new = Uuid::from_bytes([9; 16]);
        for (log_changed, groups_changed, expected) in [
            (false, 0..0, Change::NotBegun),
            (true, 0..0, Change::Begun),
            (true, 0..1, Change::Begun),
            (false, 2..3, Change::Begun),
            (true, 0..4, Change::Done),
        ] {
            let mut image = vec![0; 64 * block];
            image[log..log + 4].copy_from_slice(&LOG_MAGIC.to_be_bytes());
            image[log + 304..log + 320].fill(if log_changed { 9 } else { 7 });
            for group in 0..4 {
                let at = group * 16 * block;
                image[at..at + 512].copy_from_slice(&old[..512]);
                image[at + UUID..at + 48].fill(if groups_changed.contains(&group) { 9 } else { 7 });
            }
            let file = File::from(rustix::fs::memfd_create("xfs", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
            file.write_all_at(&image, 0).unwrap();
            assert_eq!(change(&file, &old, &new).unwrap(), expected, "{log_changed} {groups_changed:?}");
        }
    }
}
