//! The ioctls of XFS (`fs/xfs/libxfs/xfs_fs.h`) and btrfs (`linux/btrfs.h`), and their structures. Nothing is decided here.

use std::fs::File;
use std::io;

use rustix::ioctl::{Getter, Opcode, Setter, Updater, ioctl, opcode};

use crate::domain::Uuid;

const XFS_IOC_FSGROWFSDATA: Opcode = opcode::write::<XfsGrowth>(b'X', 110);
/// The form of Linux 5.2 and later.
const XFS_IOC_FSGEOMETRY: Opcode = opcode::read::<XfsGeometry>(b'X', 126);
const BTRFS_IOC_RESIZE: Opcode = opcode::write::<BtrfsResize>(0x94, 3);
const BTRFS_IOC_DEV_INFO: Opcode = opcode::read_write::<BtrfsDevice>(0x94, 30);
const BTRFS_IOC_FS_INFO: Opcode = opcode::read::<BtrfsFs>(0x94, 31);

/// The id of the one device that a btrfs is made on.
const BTRFS_DEVICE: u64 = 1;
const BTRFS_DEVICE_TO_ITS_END: &[u8] = b"1:max";

/// `struct xfs_fsop_geom`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct XfsGeometry {
    /// The size of a block in bytes.
    pub block_size: u32,
    real_time_extent: u32,
    group_blocks: u32,
    groups: u32,
    log_blocks: u32,
    sector: u32,
    inode: u32,
    /// How much of the space inodes may take, in percent.
    pub inode_percent: u32,
    /// The size of the file system in blocks.
    pub blocks: u64,
    rest: [u64; 27],
}
const _: () = assert!(size_of::<XfsGeometry>() == 256);

/// `struct xfs_growfs_data`
#[repr(C)]
struct XfsGrowth {
    blocks: u64,
    inode_percent: u32,
    padding: u32,
}
const _: () = assert!(size_of::<XfsGrowth>() == 16);

/// `struct btrfs_ioctl_vol_args`
#[repr(C)]
struct BtrfsResize {
    unused: i64,
    wanted: [u8; 4088],
}
const _: () = assert!(size_of::<BtrfsResize>() == 4096);

/// `struct btrfs_ioctl_dev_info_args`
#[repr(C)]
struct BtrfsDevice {
    id: u64,
    uuid: [u8; 16],
    used: u64,
    size: u64,
    rest: [u64; 507],
}
const _: () = assert!(size_of::<BtrfsDevice>() == 4096);

/// `struct btrfs_ioctl_fs_info_args`
#[repr(C)]
struct BtrfsFs {
    largest_id: u64,
    devices: u64,
    uuid: [u8; 16],
    rest: [u64; 124],
}
const _: () = assert!(size_of::<BtrfsFs>() == 1024);

/// What the XFS says of itself whose root this is.
#[allow(unsafe_code)]
pub fn xfs_geometry(root: &File) -> io::Result<XfsGeometry> {
    // SAFETY: XFS_IOC_FSGEOMETRY writes a `struct xfs_fsop_geom` of numbers.
    let request = unsafe { Getter::<XFS_IOC_FSGEOMETRY, XfsGeometry>::new() };
    // SAFETY: as above; another file system answers ENOTTY.
    Ok(unsafe { ioctl(root, request) }?)
}

/// Grows the XFS to so many blocks.
#[allow(unsafe_code)]
pub fn xfs_grow(root: &File, blocks: u64, inode_percent: u32) -> io::Result<()> {
    // SAFETY: XFS_IOC_FSGROWFSDATA reads a `struct xfs_growfs_data`.
    let request = unsafe { Setter::<XFS_IOC_FSGROWFSDATA, _>::new(XfsGrowth { blocks, inode_percent, padding: 0 }) };
    // SAFETY: as above; another file system answers ENOTTY.
    Ok(unsafe { ioctl(root, request) }?)
}

/// Grows the btrfs to the end of its device.
#[allow(unsafe_code)]
pub fn btrfs_grow(root: &File) -> io::Result<()> {
    let mut wanted = [0; 4088];
    wanted[..BTRFS_DEVICE_TO_ITS_END.len()].copy_from_slice(BTRFS_DEVICE_TO_ITS_END);
    // SAFETY: BTRFS_IOC_RESIZE reads a `struct btrfs_ioctl_vol_args`, whose text ends with a zero.
    let request = unsafe { Setter::<BTRFS_IOC_RESIZE, _>::new(BtrfsResize { unused: 0, wanted }) };
    // SAFETY: as above; another file system answers ENOTTY.
    Ok(unsafe { ioctl(root, request) }?)
}

/// How much of its device the btrfs uses, in bytes.
#[allow(unsafe_code)]
pub fn btrfs_device_size(root: &File) -> io::Result<u64> {
    let mut device = BtrfsDevice { id: BTRFS_DEVICE, uuid: [0; 16], used: 0, size: 0, rest: [0; 507] };
    // SAFETY: BTRFS_IOC_DEV_INFO reads and writes a `struct btrfs_ioctl_dev_info_args` of numbers and bytes.
    let request = unsafe { Updater::<BTRFS_IOC_DEV_INFO, BtrfsDevice>::new(&mut device) };
    // SAFETY: as above; another file system answers ENOTTY.
    unsafe { ioctl(root, request) }?;
    Ok(device.size)
}

/// The UUID of the btrfs.
#[allow(unsafe_code)]
pub fn btrfs_uuid(root: &File) -> io::Result<Uuid> {
    // the kernel reads which optional fields are wanted: none
    let mut fs = BtrfsFs { largest_id: 0, devices: 0, uuid: [0; 16], rest: [0; 124] };
    // SAFETY: BTRFS_IOC_FS_INFO reads and writes a `struct btrfs_ioctl_fs_info_args` of numbers and bytes.
    let request = unsafe { Updater::<BTRFS_IOC_FS_INFO, BtrfsFs>::new(&mut fs) };
    // SAFETY: as above; another file system answers ENOTTY.
    unsafe { ioctl(root, request) }?;
    Ok(Uuid::from_bytes(fs.uuid))
}
