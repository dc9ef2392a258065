//! The loop driver's ioctls and its structures (linux/loop.h), and BLKFLSBUF (linux/fs.h). Nothing is decided here.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use rustix::ioctl::{Getter, Ioctl, IoctlOutput, NoArg, Opcode, Setter, ioctl, opcode};

const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_SET_STATUS64: Opcode = 0x4C04;
const LOOP_GET_STATUS64: Opcode = 0x4C05;
const LOOP_SET_CAPACITY: Opcode = 0x4C07;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_ADD: Opcode = 0x4C80;
const LOOP_CTL_REMOVE: Opcode = 0x4C81;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;
const BLKFLSBUF: Opcode = opcode::none(0x12, 97);

/// `LO_FLAGS_READ_ONLY`
pub(super) const READ_ONLY: u32 = 1;
/// `LO_FLAGS_AUTOCLEAR`: detached by the kernel when the last one closes it.
pub(super) const AUTO_CLEAR: u32 = 4;
/// `LO_FLAGS_DIRECT_IO`
pub(super) const DIRECT_IO: u32 = 16;

/// `struct loop_info64`
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Info {
    /// `st_dev` of the backing file.
    pub(super) device: u64,
    /// `st_ino` of the backing file.
    pub(super) inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    /// A union of the constants above.
    pub(super) flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}
const _: () = assert!(size_of::<Info>() == 232);

/// `struct loop_config`
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<Config>() == 304);

/// An ioctl of `/dev/loop-control`: takes an integer, and returns a device's number.
struct Control {
    request: Opcode,
    argument: usize,
}

// SAFETY: requests of loop-control take their argument by value and touch no memory of this process; the answer is the
// return value alone.
#[allow(unsafe_code)]
unsafe impl Ioctl for Control {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.request
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::without_provenance_mut(self.argument)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

#[allow(unsafe_code)]
fn control(device: &File, request: Opcode, argument: usize) -> io::Result<u32> {
    // SAFETY: see `Control`; a file that is not loop-control answers ENOTTY.
    let number = unsafe { ioctl(device.as_fd(), Control { request, argument }) }?;
    u32::try_from(number).map_err(io::Error::other)
}

/// The lowest number that nobody uses right now; adds a device when all are used. Nothing is reserved by it.
pub(super) fn free_number(loop_control: &File) -> io::Result<u32> {
    control(loop_control, LOOP_CTL_GET_FREE, 0)
}

/// Adds a device of a new number and gives it.
pub(super) fn new_number(loop_control: &File) -> io::Result<u32> {
    // -1 as the C long that the kernel takes: any number that is not there yet
    control(loop_control, LOOP_CTL_ADD, usize::MAX)
}

/// Adds the device of this number.
pub(super) fn add(loop_control: &File, number: u32) -> io::Result<u32> {
    control(loop_control, LOOP_CTL_ADD, usize::try_from(number).map_err(io::Error::other)?)
}

/// Takes away an unbound device that nobody has open.
pub(super) fn remove(loop_control: &File, number: u32) -> io::Result<u32> {
    control(loop_control, LOOP_CTL_REMOVE, usize::try_from(number).map_err(io::Error::other)?)
}

/// Binds `device`, open for reading and writing, to all of `backing` in one step.
#[allow(unsafe_code)]
pub(super) fn configure(device: &File, backing: &File, sector: u32, flags: u32) -> io::Result<()> {
    let config = Config {
        fd: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
        block_size: sector,
        info: Info {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads a `struct loop_config` and writes nothing.
    let request = unsafe { Setter::<LOOP_CONFIGURE, Config>::new(config) };
    // SAFETY: as above; `backing` is open until the call returns.
    Ok(unsafe { ioctl(device.as_fd(), request) }?)
}

/// What `device` is bound to; ENXIO when it is unbound.
#[allow(unsafe_code)]
pub(super) fn status(device: &File) -> io::Result<Info> {
    // SAFETY: LOOP_GET_STATUS64 writes a whole `struct loop_info64` when it succeeds; any bits are a valid `Info`.
    let request = unsafe { Getter::<LOOP_GET_STATUS64, Info>::new() };
    // SAFETY: as above.
    Ok(unsafe { ioctl(device.as_fd(), request) }?)
}

/// Writes back what [`status`] gave, with other flags. The kernel takes only AUTO_CLEAR from them.
#[allow(unsafe_code)]
pub(super) fn set_status(device: &File, info: Info) -> io::Result<()> {
    // SAFETY: LOOP_SET_STATUS64 reads a `struct loop_info64` and writes nothing.
    let request = unsafe { Setter::<LOOP_SET_STATUS64, Info>::new(info) };
    // SAFETY: as above.
    Ok(unsafe { ioctl(device.as_fd(), request) }?)
}

/// Unbinds `device` when the last one who has it open closes it.
pub(super) fn clear(device: &File) -> io::Result<()> {
    plain::<LOOP_CLR_FD>(device)
}

/// Takes the backing file's size of now.
pub(super) fn set_capacity(device: &File) -> io::Result<()> {
    plain::<LOOP_SET_CAPACITY>(device)
}

/// Writes out and then drops the device's page cache.
pub(super) fn flush_buffers(device: &File) -> io::Result<()> {
    plain::<BLKFLSBUF>(device)
}

#[allow(unsafe_code)]
fn plain<const REQUEST: Opcode>(device: &File) -> io::Result<()> {
    // SAFETY: the three requests above take no argument.
    let request = unsafe { NoArg::<REQUEST>::new() };
    // SAFETY: as above.
    Ok(unsafe { ioctl(device.as_fd(), request) }?)
}
