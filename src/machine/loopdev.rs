//! Loop devices: attach, find, describe, detach, by ioctl and sysfs.
//!
//! A device that is attached here outlives the process, keeps its number and is never scanned for partitions. What a file
//! or device holds, who may attach it and what its sector should be is decided elsewhere; so is the rule that one file is
//! attached once ([`LoopDevice::find`] first). Needs Linux 5.8 (LOOP_CONFIGURE).

mod ioctls;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::file::{self, FileId};
use super::mounts::while_busy;

const CONTROL: &str = "/dev/loop-control";
/// How many numbers an attach tries when others take them first.
const ATTACH_TRIES: usize = 64;
/// How often of these it takes the lowest free one, which is what everybody is given; each time somebody else was faster.
const LOWEST_TRIES: usize = 32;
/// How long a detach waits for others that have the device open, such as a probe by udev.
const DETACH_WAIT: Duration = Duration::from_secs(2);
const DETACH_POLL: Duration = Duration::from_millis(10);

/// What failed on a loop device.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// There is no loop driver, or no right to use it.
    #[error("cannot open /dev/loop-control")]
    OpenControl(#[source] io::Error),
    /// The driver gave no device.
    #[error("the loop driver gives no device")]
    NoDevice(#[source] io::Error),
    /// Every device that the driver gave was taken by somebody else before it could be used.
    #[error("{ATTACH_TRIES} loop devices in a row were taken by others")]
    Contended,
    /// The file or device to attach cannot be opened.
    #[error("cannot open {}", backing.display())]
    OpenBacking {
        /// What was to be attached.
        backing: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The device cannot be opened.
    #[error("cannot open {}", device.display())]
    OpenDevice {
        /// The loop device.
        device: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refuses to attach.
    #[error("cannot attach {} to {}", backing.display(), device.display())]
    Attach {
        /// What was to be attached.
        backing: PathBuf,
        /// The loop device.
        device: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system below cannot do direct I/O in units of this sector; the device was detached again.
    #[error("{} cannot be attached with direct I/O in sectors of {sector} bytes", backing.display())]
    DirectIoOff {
        /// What was to be attached.
        backing: PathBuf,
        /// The sector size asked for, in bytes.
        sector: u32,
    },
    /// The kernel attached it in another way than asked for; the device was detached again.
    #[error("{} was attached with sectors of {sector} bytes, read-only: {read_only}, which is not what was asked for", backing.display())]
    AttachedOtherwise {
        /// What was to be attached.
        backing: PathBuf,
        /// The sector size that it got, in bytes.
        sector: u32,
        /// Whether it became read-only.
        read_only: bool,
    },
    /// What the device is bound to cannot be read.
    #[error("cannot read the status of {}", device.display())]
    Status {
        /// The loop device.
        device: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The device's flags cannot be set.
    #[error("cannot set the flags of {}", device.display())]
    SetStatus {
        /// The loop device.
        device: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The device is no longer attached, or not to the file that it was attached to.
    #[error("{} is not attached any more", device.display())]
    Gone {
        /// The loop device.
        device: PathBuf,
    },
    /// Somebody has the device mounted, claimed or open; it is still attached.
    #[error("{} is in use", device.display())]
    Busy {
        /// The loop device.
        device: PathBuf,
    },
    /// The kernel refuses to detach.
    #[error("cannot detach {}", device.display())]
    Detach {
        /// The loop device.
        device: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The new size of the backing file cannot be taken over.
    #[error("cannot refresh the size of {}", device.display())]
    RefreshSize {
        /// The loop device.
        device: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was written to the device may not be in the backing file.
    #[error("cannot flush {}", device.display())]
    Flush {
        /// The loop device.
        device: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the device in sysfs cannot be read or written.
    #[error("cannot access {}", path.display())]
    Sysfs {
        /// The file under /sys.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How a file becomes a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attach {
    /// Nobody can write through the device.
    pub read_only: bool,
    /// The device's logical sector in bytes: 512 or 4096.
    pub sector: u32,
    /// What is discarded on the device becomes a hole of the file. If not, see [`LoopDevice::forbid_discard`].
    pub discard: bool,
}

/// What a bound device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The backing file.
    pub backing: FileId,
    /// The backing file's path as the kernel knows it now; ends in ` (deleted)` when it was removed.
    pub backing_path: PathBuf,
    /// Nobody can write through the device.
    pub read_only: bool,
    /// The backing file is read and written past its page cache.
    pub direct_io: bool,
    /// The kernel detaches it at the last close.
    pub auto_clear: bool,
    /// The logical sector in bytes.
    pub sector: u32,
    /// The size in bytes.
    pub size: u64,
}

/// One of the machine's loop devices. It stays as it is when this value goes. A device that was attached or found here is
/// the one over that file: when others have detached it and its number is bound to another file, it counts as detached,
/// and nothing is done to the other's.
#[derive(Debug, Clone)]
pub struct LoopDevice {
    number: u32,
    /// What it was attached to or found for; none if it is just a number.
    backing: Option<FileId>,
}

impl LoopDevice {
    /// Attaches `backing`, a file or block device, with direct I/O and without a partition scan, until it is detached. A
    /// file that is attached already gets a second device.
    ///
    /// # Errors
    /// Nothing is left attached, or only for as long as somebody else has the device open.
    pub fn attach(backing: &Path, how: &Attach) -> Result<LoopDevice, LoopError> {
        let file = OpenOptions::new().read(true).write(!how.read_only).open(backing);
        let file = file.map_err(|source| LoopError::OpenBacking { backing: backing.into(), source })?;
        let control = File::open(CONTROL).map_err(LoopError::OpenControl)?;
        for tried in 0..ATTACH_TRIES {
            let number = next_number(&control, tried)?;
            let Some(device) = LoopDevice::bind(number, backing, &file, how)? else { continue };
            match device.settle(backing, how) {
                Ok(true) => return Ok(device),
                Ok(false) => device.abandon(),
                Err(wrong) => {
                    device.abandon();
                    return Err(wrong);
                }
            }
        }
        Err(LoopError::Contended)
    }

    /// The device of this number, bound or not.
    pub fn of_number(number: u32) -> LoopDevice {
        LoopDevice { number, backing: None }
    }

    /// The device of this number as long as it is over this file: bound to another it counts as detached.
    pub fn of_number_over(number: u32, backing: FileId) -> LoopDevice {
        LoopDevice { number, backing: Some(backing) }
    }

    /// The device at `/dev/loopN`; none for any other path.
    pub fn from_path(path: &Path) -> Option<LoopDevice> {
        let name = path.strip_prefix("/dev").ok()?.to_str()?;
        number_of(name).map(LoopDevice::of_number)
    }

    /// The loop device with this major and minor number, as mountinfo or a device node's `st_rdev` has them; none for
    /// other devices.
    pub fn of_device((major, minor): (u32, u32)) -> Option<LoopDevice> {
        let target = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
        number_of(target.file_name()?.to_str()?).map(LoopDevice::of_number)
    }

    /// Every device of the machine that is bound, by number.
    pub fn bound() -> Result<Vec<LoopDevice>, LoopError> {
        Ok(numbers(Binding::Bound)?.into_iter().map(LoopDevice::of_number).collect())
    }

    /// Every device over this file, by number, under whatever path it was attached.
    ///
    /// # Errors
    /// Fails when one of the machine's loop devices cannot be asked: it might be the one.
    pub fn find(backing: FileId) -> Result<Vec<LoopDevice>, LoopError> {
        let mut found = Vec::new();
        for number in numbers(Binding::Bound)? {
            let device = LoopDevice { number, backing: Some(backing) };
            if device.open_bound()?.is_some() {
                found.push(device);
            }
        }
        Ok(found)
    }

    /// N of `/dev/loopN`.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// `/dev/loopN`
    pub fn path(&self) -> PathBuf {
        format!("/dev/loop{}", self.number).into()
    }

    /// Major and minor number.
    pub fn dev(&self) -> Result<(u32, u32), LoopError> {
        let path = self.sysfs("dev");
        self.read_dev().map_err(|source| LoopError::Sysfs { path, source })
    }

    /// What the device is; none when it is bound to nothing.
    pub fn status(&self) -> Result<Option<Status>, LoopError> {
        let Some((mut device, info)) = self.open_bound()? else { return Ok(None) };
        let sector = rustix::fs::ioctl_blksszget(&device).map_err(|errno| self.status_error(errno.into()))?;
        let size = device.seek(SeekFrom::End(0)).map_err(|source| self.status_error(source))?;
        let path = self.sysfs("loop/backing_file");
        let backing_path = match fs::read(&path) {
            Ok(mut line) => {
                line.pop_if(|byte| *byte == b'\n');
                PathBuf::from(std::ffi::OsString::from_vec(line))
            }
            // detached since it was opened
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LoopError::Sysfs { path, source }),
        };
        Ok(Some(Status {
            backing: FileId::from(&info),
            backing_path,
            read_only: info.flags & ioctls::READ_ONLY != 0,
            direct_io: info.flags & ioctls::DIRECT_IO != 0,
            auto_clear: info.flags & ioctls::AUTO_CLEAR != 0,
            sector,
            size,
        }))
    }

    /// Detaches it, and returns when the backing file is released. Already detached is fine.
    ///
    /// # Errors
    /// [`LoopError::Busy`] when it is mounted, claimed, or still open after two seconds: it stays attached.
    pub fn detach(&self) -> Result<(), LoopError> {
        // while it is open here, nobody can bind the number anew
        let Some((look, before)) = self.open_bound()? else { return Ok(()) };
        let bound = LoopDevice { number: self.number, backing: Some(FileId::from(&before)) };
        // Claiming it refuses what is mounted before anything is changed, and keeps others from mounting it meanwhile.
        let claimed = while_busy(|| self.open(OFlags::RDONLY | OFlags::EXCL)).map_err(|errno| match errno {
            Errno::BUSY => LoopError::Busy { device: self.path() },
            errno => LoopError::OpenDevice { device: self.path(), source: errno.into() },
        })?;
        let is_worn = self.is_worn()?;
        drop(look);
        match ioctls::clear(&claimed) {
            Err(error) if is_unbound_error(&error) => return Ok(()),
            cleared => cleared.map_err(|source| LoopError::Detach { device: self.path(), source })?,
        }
        drop(claimed);
        if !bound.wait_until_unbound()? {
            return bound.keep(before.flags);
        }
        if is_worn {
            self.renew();
        }
        Ok(())
    }

    /// From now on the kernel detaches it when the last one closes or unmounts it; at once when nobody uses it.
    pub fn release_at_last_close(&self) -> Result<(), LoopError> {
        let Some((device, mut info)) = self.open_bound()? else { return Ok(()) };
        info.flags |= ioctls::AUTO_CLEAR;
        ioctls::set_status(&device, info).map_err(|source| LoopError::SetStatus { device: self.path(), source })
    }

    /// Takes over the backing file's size of now, and returns it in bytes, whole sectors of 512.
    pub fn refresh_size(&self) -> Result<u64, LoopError> {
        let failed = |source| LoopError::RefreshSize { device: self.path(), source };
        let mut device = self.open_attached()?;
        ioctls::set_capacity(&device).map_err(failed)?;
        device.seek(SeekFrom::End(0)).map_err(failed)
    }

    /// Brings what was written through the device's page cache into the backing file and to its disk, and drops that
    /// cache, so that later reads see what is in the file.
    pub fn flush(&self) -> Result<(), LoopError> {
        let failed = |source| LoopError::Flush { device: self.path(), source };
        let device = self.open_attached()?;
        file::sync("loop.flush", &device).map_err(failed)?;
        ioctls::flush_buffers(&device).map_err(failed)
    }

    /// Sets how far the kernel reads ahead, in KiB. The number keeps the setting when it is attached anew, so a user who
    /// depends on it sets it after every attach.
    pub fn set_read_ahead_kib(&self, kib: u32) -> Result<(), LoopError> {
        self.set_queue("queue/read_ahead_kb", u64::from(kib))
    }

    /// Nothing reaches the backing file as a hole any more: the kernel refuses to discard, and writes zeros where it would
    /// have punched. Lasts until the device is detached.
    pub fn forbid_discard(&self) -> Result<(), LoopError> {
        self.set_queue("queue/discard_max_bytes", 0)
    }

    /// Whether a mount, device-mapper, swap or another exclusive opener claims it. A program that merely has it open does
    /// not count; [`LoopDevice::detach`] sees those too. For the moment of the question nobody else can claim it.
    pub fn in_use(&self) -> Result<bool, LoopError> {
        match self.open(OFlags::RDONLY | OFlags::EXCL) {
            Ok(_) => Ok(false),
            Err(Errno::BUSY) => Ok(true),
            Err(errno) if is_unbound(errno) => Ok(false),
            Err(errno) => Err(LoopError::OpenDevice { device: self.path(), source: errno.into() }),
        }
    }

    /// Binds this number; none if another process has taken it since it was said to be free.
    fn bind(number: u32, backing: &Path, file: &File, how: &Attach) -> Result<Option<LoopDevice>, LoopError> {
        let id = FileId::of(file).map_err(|source| LoopError::OpenBacking { backing: backing.into(), source })?;
        let device = LoopDevice { number, backing: Some(id) };
        let flags = ioctls::DIRECT_IO | if how.read_only { ioctls::READ_ONLY } else { 0 };
        // a device that is open for reading alone becomes read-only whatever the flags say
        let node = device.open(OFlags::RDWR).map_err(io::Error::from);
        match node.and_then(|node| ioctls::configure(&node, file, how.sector, flags)) {
            Ok(()) => Ok(Some(device)),
            Err(error) if was_taken(&error) => Ok(None),
            Err(source) => Err(LoopError::Attach { backing: backing.into(), device: device.path(), source }),
        }
    }

    /// Checks that the new binding is what was asked for; false when the number cannot become that.
    fn settle(&self, backing: &Path, how: &Attach) -> Result<bool, LoopError> {
        let Some(status) = self.status()? else { return Ok(false) };
        if !status.direct_io {
            return Err(LoopError::DirectIoOff { backing: backing.into(), sector: how.sector });
        }
        let Status { sector, read_only, .. } = status;
        if (sector, read_only) != (how.sector, how.read_only) {
            return Err(LoopError::AttachedOtherwise { backing: backing.into(), sector, read_only });
        }
        if how.discard {
            return Ok(!self.is_worn()?);
        }
        self.forbid_discard().map(|()| true)
    }

    /// Detaches it, if need be as soon as others let go of it. Why it is abandoned counts more than whether that succeeds.
    fn abandon(&self) {
        if self.detach().is_err() {
            let _ = self.release_at_last_close();
        }
    }

    /// Whether somebody has forbidden discard. The limit outlives the binding, and the kernel has no way back from it: no
    /// other value is accepted once it is zero (seen with 6.18).
    fn is_worn(&self) -> Result<bool, LoopError> {
        let is_zero = |below| {
            let path = self.sysfs(below);
            let limit = fs::read_to_string(&path).map_err(|source| LoopError::Sysfs { path, source })?;
            Ok(limit.trim() == "0")
        };
        // none can be set where the file below has no discard
        Ok(is_zero("queue/discard_max_bytes")? && !is_zero("queue/discard_max_hw_bytes")?)
    }

    /// Has the driver make the number anew, with its first limits, for whoever is given it next. If somebody has it already
    /// that fails, and does not matter: an attach that minds does it again.
    fn renew(&self) {
        if let Ok(control) = File::open(CONTROL) {
            let _ = ioctls::remove(&control, self.number).and_then(|_| ioctls::add(&control, self.number));
        }
    }

    /// Whether the device lets go of its file within the time. Others that had it open at the clear end the binding with
    /// their own close.
    fn wait_until_unbound(&self) -> Result<bool, LoopError> {
        let end = Instant::now() + DETACH_WAIT;
        while self.open_bound()?.is_some() {
            if Instant::now() >= end {
                return Ok(false);
            }
            std::thread::sleep(DETACH_POLL);
        }
        Ok(true)
    }

    /// Takes back a clear that did not come to pass, so that the user of the device can close it without losing it.
    fn keep(&self, flags: u32) -> Result<(), LoopError> {
        let Some((device, mut info)) = self.open_bound()? else { return Ok(()) };
        info.flags = flags;
        match ioctls::set_status(&device, info) {
            Ok(()) => Err(LoopError::Busy { device: self.path() }),
            Err(error) if is_unbound_error(&error) => Ok(()),
            Err(source) => Err(LoopError::SetStatus { device: self.path(), source }),
        }
    }

    /// The open device and what it is bound to; none when it is unbound, bound to a file that is not ours, or not there.
    fn open_bound(&self) -> Result<Option<(File, ioctls::Info)>, LoopError> {
        let device = match self.open(OFlags::RDONLY) {
            Ok(device) => device,
            Err(errno) if is_unbound(errno) => return Ok(None),
            Err(errno) => return Err(LoopError::OpenDevice { device: self.path(), source: errno.into() }),
        };
        match ioctls::status(&device) {
            Ok(info) => {
                let is_ours = self.backing.is_none_or(|backing| backing == FileId::from(&info));
                Ok(is_ours.then_some((device, info)))
            }
            Err(error) if is_unbound_error(&error) => Ok(None),
            Err(source) => Err(self.status_error(source)),
        }
    }

    /// The open device, which must be attached. While it is open nobody can bind the number anew.
    fn open_attached(&self) -> Result<File, LoopError> {
        let bound = self.open_bound()?;
        bound.map(|(device, _)| device).ok_or_else(|| LoopError::Gone { device: self.path() })
    }

    fn status_error(&self, source: io::Error) -> LoopError {
        LoopError::Status { device: self.path(), source }
    }

    /// Opens the node, and makes it first where /dev is no devtmpfs that does so.
    fn open(&self, flags: OFlags) -> Result<File, Errno> {
        let open = || rustix::fs::open(self.path(), flags | OFlags::CLOEXEC, Mode::empty()).map(File::from);
        match open() {
            Err(Errno::NOENT) => {
                let (major, minor) = self.read_dev().map_err(|_| Errno::NOENT)?;
                let device = rustix::fs::makedev(major, minor);
                let mode = Mode::RUSR | Mode::WUSR;
                match rustix::fs::mknodat(CWD, self.path(), FileType::BlockDevice, mode, device) {
                    Ok(()) | Err(Errno::EXIST) => open(),
                    Err(errno) => Err(errno),
                }
            }
            opened => opened,
        }
    }

    fn read_dev(&self) -> io::Result<(u32, u32)> {
        let line = fs::read_to_string(self.sysfs("dev"))?;
        let numbers =
            line.trim().split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        numbers.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, line))
    }

    fn sysfs(&self, below: &str) -> PathBuf {
        format!("/sys/block/loop{}/{below}", self.number).into()
    }

    fn set_queue(&self, below: &str, value: u64) -> Result<(), LoopError> {
        let _attached = self.open_attached()?;
        let path = self.sysfs(below);
        fs::write(&path, value.to_string()).map_err(|source| LoopError::Sysfs { path, source })
    }
}

impl From<&ioctls::Info> for FileId {
    // The kernel fills both from the file's own getattr, so they are what stat(2) says, also for a subvolume of Btrfs.
    fn from(info: &ioctls::Info) -> FileId {
        FileId { device: info.device, inode: info.inode }
    }
}

/// The number for this try of an attach. Somebody may sit on the lowest free one for good: then all others are gone
/// through, and at last one is added.
fn next_number(control: &File, tried: usize) -> Result<u32, LoopError> {
    let Some(beyond) = tried.checked_sub(LOWEST_TRIES) else {
        return ioctls::free_number(control).map_err(LoopError::NoDevice);
    };
    match numbers(Binding::Free)?.get(beyond) {
        Some(number) => Ok(*number),
        None => ioctls::new_number(control).map_err(LoopError::NoDevice),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Binding {
    Bound,
    Free,
}

/// The numbers that are bound or free as sysfs has it, ascending.
fn numbers(wanted: Binding) -> Result<Vec<u32>, LoopError> {
    let failed = |source| LoopError::Sysfs { path: "/sys/block".into(), source };
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/sys/block").map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(number) = entry.file_name().to_str().and_then(number_of) else { continue };
        let binding = if entry.path().join("loop/backing_file").exists() { Binding::Bound } else { Binding::Free };
        if binding == wanted {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// N of `loopN`.
fn number_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("loop")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// What open(2) and the ioctls answer for a device that is bound to nothing, is being unbound, or is not there.
fn is_unbound(errno: Errno) -> bool {
    matches!(errno, Errno::NXIO | Errno::NODEV | Errno::NOENT)
}

fn is_unbound_error(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(is_unbound)
}

/// Another process bound, claimed or removed the device first.
fn was_taken(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| errno == Errno::BUSY || is_unbound(errno))
}

#[cfg(test)]
mod tests;
