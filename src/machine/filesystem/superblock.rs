//! Superblocks: where each file system keeps its own, and what all of them tell.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{btrfs, ext4, xfs};
use crate::domain::{FsType, Uuid};

/// A file system with a sound superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filesystem {
    /// Which one it is.
    pub fs: FsType,
    /// What tells it from others, also for mount.
    pub uuid: Uuid,
    /// How much of its device it uses, in bytes.
    pub size: u64,
    /// Whether there may be a journal to replay, as after a crash or in a copy of a mounted file system. XFS keeps that in
    /// its log alone and always says yes.
    pub dirty: bool,
}

/// What is found where a file system has its superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Superblock {
    /// No sign of this file system.
    Absent,
    /// This file system, but damaged, unfinished or of a kind that cistern never makes.
    Foreign(&'static str),
    /// A sound one.
    Sound(Filesystem),
}

/// Where the superblock is that counts: offset and length in bytes. The length is the largest that there can be.
pub fn place(fs: FsType) -> (u64, usize) {
    match fs {
        FsType::Ext4 => ext4::PLACE,
        FsType::Xfs => xfs::PLACE,
        FsType::Btrfs => btrfs::PLACE,
    }
}

/// What the bytes of [`place`] say.
pub fn parse(fs: FsType, bytes: &[u8]) -> Superblock {
    match fs {
        FsType::Ext4 => ext4::parse(bytes),
        FsType::Xfs => xfs::parse(bytes),
        FsType::Btrfs => btrfs::parse(bytes),
    }
}

/// Reads the superblock's bytes from an image file or block device.
///
/// The path is opened anew each time: what a mount wrote since is not seen through pages that an earlier reader left.
pub fn read(path: &Path, fs: FsType) -> io::Result<Vec<u8>> {
    let (offset, length) = place(fs);
    let mut bytes = vec![0; length];
    File::open(path)?.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The bytes of one field.
pub fn field<const LENGTH: usize>(bytes: &[u8], offset: usize) -> [u8; LENGTH] {
    let mut field = [0; LENGTH];
    field.copy_from_slice(&bytes[offset..offset + LENGTH]);
    field
}

/// A little-endian number of 16 bits.
pub fn le16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(field(bytes, offset))
}

/// A little-endian number of 32 bits.
pub fn le32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(field(bytes, offset))
}

/// A little-endian number of 64 bits.
pub fn le64(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(field(bytes, offset))
}

/// A big-endian number of 16 bits.
pub fn be16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes(field(bytes, offset))
}

/// A big-endian number of 32 bits.
pub fn be32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(field(bytes, offset))
}

/// A big-endian number of 64 bits.
pub fn be64(bytes: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(field(bytes, offset))
}
