//! The host's half of `local`.

use std::time::{Duration, Instant};

use crate::domain::{Bytes, Key, NodeName};
use crate::machine::device;
use crate::machine::file::FileId;
use crate::machine::loopdev::LoopDevice;
use crate::machine::mounts::MountTable;
use crate::share::ticket::Reach;
use crate::share::{Enforced, Target, TargetError, Terms, Withdrawn};

/// A device that is being let go of is gone within this time: whoever looks at it just then delays that.
const PATIENCE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(10);

/// A volume's user is on this machine, so whether it can still write is seen here: by the loop devices over the file.
pub struct LocalTarget;

impl Target for LocalTarget {
    fn offer(&self, _key: &Key, bytes: &Bytes, _terms: &Terms) -> Result<Reach, TargetError> {
        Ok(Reach::Local(bytes.clone()))
    }

    fn withdraw(&self, _key: &Key, bytes: &Bytes, _: &NodeName, _generation: u64) -> Result<Withdrawn, TargetError> {
        let users = self.users(bytes)?;
        Ok(users.into_iter().next().map_or(Withdrawn::Ended, Withdrawn::StillUsed))
    }

    fn admit(&self) -> Result<(), TargetError> {
        // there is no door: the only client is this machine
        Ok(())
    }

    fn users(&self, bytes: &Bytes) -> Result<Vec<String>, TargetError> {
        let end = Instant::now() + PATIENCE;
        loop {
            let devices = devices(bytes)?;
            if devices.is_empty() || Instant::now() >= end {
                return Ok(devices.iter().map(|device| format!("{} is attached", device.path().display())).collect());
            }
            std::thread::sleep(POLL);
        }
    }

    fn flush(&self, bytes: &Bytes) -> Result<(), TargetError> {
        let devices = devices(bytes)?;
        if devices.is_empty() {
            return Ok(());
        }
        let table = MountTable::read().map_err(failed("flushing", bytes))?;
        for loop_device in devices {
            let number = loop_device.dev().map_err(failed("flushing", bytes))?;
            // one mount of a file system is enough: the others are of the same one
            if let Some(mount) = table.of_device(number).next() {
                device::sync_filesystem(&mount.point).map_err(failed("flushing", bytes))?;
            }
            loop_device.flush().map_err(failed("flushing", bytes))?;
        }
        Ok(())
    }

    fn resized(&self, _key: &Key, bytes: &Bytes) -> Result<(), TargetError> {
        for device in devices(bytes)? {
            device.refresh_size().map_err(failed("showing the new size of", bytes))?;
        }
        Ok(())
    }

    fn read_ahead(&self, bytes: &Bytes, kib: u32) -> Result<(), TargetError> {
        for device in devices(bytes)? {
            device.set_read_ahead_kib(kib).map_err(failed("setting the read-ahead of", bytes))?;
        }
        Ok(())
    }

    fn grants(&self) -> Result<Vec<Enforced>, TargetError> {
        // the kernel enforces nothing for a local volume: its node is the only machine that has the bytes
        Ok(Vec::new())
    }
}

/// The loop devices over the bytes. A device of its own is claimed by whoever uses it, not by a loop.
fn devices(bytes: &Bytes) -> Result<Vec<LoopDevice>, TargetError> {
    let Bytes::File(path) = bytes else { return Ok(Vec::new()) };
    let id = FileId::at(path).map_err(failed("looking at", bytes))?;
    LoopDevice::find(id).map_err(failed("looking for users of", bytes))
}

fn failed<E>(step: &'static str, bytes: &Bytes) -> impl FnOnce(E) -> TargetError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| TargetError { step, path: bytes.path().to_owned(), source: source.into() }
}
