//! The node's half of `local`.

use std::path::Path;

use crate::domain::{Bytes, Content};
use crate::machine::file::FileId;
use crate::machine::loopdev::{Attach, LoopDevice, LoopError};
use crate::share::connect::{ConnectError, Made, Source};
use crate::share::ticket::Ticket;

/// How far the kernel reads ahead by itself, in KiB. A number keeps what its last user set, so it is always set anew.
const READ_AHEAD_KIB: u32 = 128;

pub(in crate::share) fn connect(ticket: &Ticket, bytes: &Bytes, made: &mut Made) -> Result<Source, ConnectError> {
    match bytes {
        Bytes::Device(path) => {
            *made = Made::NotNeeded;
            Ok(Source::Device(path.clone()))
        }
        Bytes::File(path) => {
            let device = attached(ticket, path, *made)?;
            *made = Made::Loop(device.number());
            let kib = ticket.read_ahead_kib.unwrap_or(READ_AHEAD_KIB);
            device.set_read_ahead_kib(kib).map_err(step("setting up", path))?;
            Ok(Source::Device(device.path()))
        }
    }
}

/// The loop device over the file: the one that was noted, or one that was made and not noted, or a new one.
fn attached(ticket: &Ticket, path: &Path, made: Made) -> Result<LoopDevice, ConnectError> {
    let id = FileId::at(path).map_err(|source| ConnectError::Missing { path: path.to_owned(), source })?;
    if let Made::Loop(number) = made
        && let Some(device) = noted(number, id, path)?
    {
        return Ok(device);
    }
    if made != Made::Nothing
        && let Some(device) = alike(ticket, id, path)?.into_iter().next()
    {
        return Ok(device);
    }
    let how = Attach { read_only: is_read_only(ticket), sector: ticket.sector, discard: !ticket.keeps_blocks };
    LoopDevice::attach(path, &how).map_err(step("attaching", path))
}

/// Whether the device itself is to refuse writes. A file system is mounted read-only instead: its journal must be replayed.
fn is_read_only(ticket: &Ticket) -> bool {
    ticket.read_only && ticket.content == Content::Block
}

pub(in crate::share) fn disconnect(ticket: &Ticket, bytes: &Bytes, made: Made) -> Result<(), ConnectError> {
    let Bytes::File(path) = bytes else { return Ok(()) };
    match (made, FileId::at(path)) {
        (Made::Nothing | Made::NotNeeded, _) => Ok(()),
        // the file is gone, and with it the way to find what is not noted
        (Made::Unknown, Err(_)) => Ok(()),
        (Made::Loop(number), Err(_)) => detach_if_deleted(number, path),
        (Made::Loop(number), Ok(id)) => noted(number, id, path)?.map_or(Ok(()), |device| detach(&device, path)),
        (Made::Unknown, Ok(id)) => alike(ticket, id, path)?.iter().try_for_each(|device| detach(device, path)),
    }
}

/// The loop device of this number, if it is still over this file.
fn noted(number: u32, id: FileId, path: &Path) -> Result<Option<LoopDevice>, ConnectError> {
    let device = LoopDevice::of_number_over(number, id);
    let status = device.status().map_err(step("looking at", path))?;
    Ok(status.map(|_| device))
}

/// The loop devices over the file that this ticket's user may have made.
fn alike(ticket: &Ticket, id: FileId, path: &Path) -> Result<Vec<LoopDevice>, ConnectError> {
    let mut alike = Vec::new();
    for device in LoopDevice::find(id).map_err(step("looking for", path))? {
        let status = device.status().map_err(step("looking at", path))?;
        if status.is_some_and(|status| status.read_only == is_read_only(ticket)) {
            alike.push(device);
        }
    }
    Ok(alike)
}

/// Detaches a device whose file is gone, if the number is still bound to it.
fn detach_if_deleted(number: u32, path: &Path) -> Result<(), ConnectError> {
    let device = LoopDevice::of_number(number);
    let status = device.status().map_err(step("looking at", path))?;
    match status {
        Some(status) if status.backing_path.starts_with(path.parent().unwrap_or(path)) => detach(&device, path),
        _ => Ok(()),
    }
}

fn detach(device: &LoopDevice, path: &Path) -> Result<(), ConnectError> {
    // what was written through the device's page cache is in the file before anyone else reads it
    device.flush().map_err(step("flushing", path))?;
    match device.detach() {
        Err(LoopError::Busy { device }) => Err(ConnectError::InUse { device }),
        other => other.map_err(step("detaching", path)),
    }
}

pub(in crate::share) fn standing(bytes: &Bytes, made: Made) -> Result<Option<Source>, ConnectError> {
    match (bytes, made) {
        (Bytes::Device(path), Made::NotNeeded) => Ok(Some(Source::Device(path.clone()))),
        (Bytes::File(path), Made::Loop(number)) => {
            let Ok(id) = FileId::at(path) else { return Ok(None) };
            Ok(noted(number, id, path)?.map(|device| Source::Device(device.path())))
        }
        _ => Ok(None),
    }
}

pub(in crate::share) fn refresh(bytes: &Bytes, made: Made) -> Result<Option<u64>, ConnectError> {
    let path = bytes.path();
    let Some(Source::Device(device)) = standing(bytes, made)? else { return Ok(None) };
    let size = match LoopDevice::from_path(&device) {
        Some(device) => device.refresh_size().map_err(step("growing", path))?,
        None => crate::machine::device::size(path).map_err(step("measuring", path))?,
    };
    Ok(Some(size))
}

fn step<E>(step: &'static str, path: &Path) -> impl FnOnce(E) -> ConnectError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| ConnectError::Step { step, path: path.to_owned(), source: source.into() }
}
