//! What a clone's file system needs so that it can be mounted beside its source: its journal replayed, and a UUID of its
//! own.
//!
//! ext4 and XFS are opened by the kernel for the replay and then given the UUID by their own tools. btrfs must not be
//! opened before it has its own: the kernel takes two file systems of one UUID for one. Its superblock is changed here,
//! and its log is replayed by the first mount.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::superblock::{self, Filesystem, Superblock};
use super::xfs::Change;
use super::{btrfs, replay, xfs};
use crate::domain::{FsType, Uuid};
use crate::machine::command::{Command, CommandError, Tool};
use crate::machine::file::sync;

/// Why a clone has no identity of its own.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The clone cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The image file or block device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The clone does not hold the file system that it should.
    #[error("{} has no sound {fs}: {found:?}", path.display())]
    NotThere {
        /// What should be there.
        fs: FsType,
        /// The image file or block device.
        path: PathBuf,
        /// What is there.
        found: Superblock,
    },
    /// The journal was not replayed.
    #[error("cannot replay the journal of the {fs} in {}", path.display())]
    Replay {
        /// The file system.
        fs: FsType,
        /// The image file or block device.
        path: PathBuf,
        /// How the replay failed.
        source: CommandError,
    },
    /// The kernel opened and closed the file system, and its journal still is not empty.
    #[error("the journal of the {fs} in {} is not empty after its replay", path.display())]
    StillDirty {
        /// The file system.
        fs: FsType,
        /// The image file or block device.
        path: PathBuf,
    },
    /// The file system is of a kind whose UUID cannot be changed.
    #[error("the UUID of the btrfs in {} cannot be changed: {why}", path.display())]
    Refused {
        /// The image file or block device.
        path: PathBuf,
        /// What speaks against it.
        why: &'static str,
    },
    /// The tool did not change the UUID.
    #[error("cannot change the UUID of the {fs} in {}", path.display())]
    Tool {
        /// The file system.
        fs: FsType,
        /// The image file or block device.
        path: PathBuf,
        /// How the tool failed.
        source: CommandError,
    },
    /// The tool said that it did, and the file system still has another.
    #[error("the {fs} in {} has not got its new UUID", path.display())]
    Unchanged {
        /// The file system.
        fs: FsType,
        /// The image file or block device.
        path: PathBuf,
    },
    /// The change may not be on the disk.
    #[error("cannot write {}", path.display())]
    Write {
        /// The image file or block device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Gives the unmounted file system in a clone the UUID `new`, after its journal was replayed. When it returns, all is on
/// the disk. Done again with the same UUID, it finishes what an earlier call began, or finds that all is done.
///
/// `path` is the absolute path of an image file or block device that nothing else has open for writing; `sector` and `lock`
/// are as for [`super::make()`].
///
/// # Errors
/// The clone can be adopted again after any of them, once their cause is gone.
pub fn adopt(path: &Path, fs: FsType, sector: u32, new: &Uuid, lock: &File) -> Result<(), AdoptError> {
    let clone = Clone { path, fs, sector, new, lock };
    match fs {
        FsType::Ext4 => clone.adopt_ext4()?,
        FsType::Xfs => clone.adopt_xfs()?,
        FsType::Btrfs => clone.adopt_btrfs()?,
    }
    File::open(path).and_then(|file| sync("adopt.file", &file)).map_err(|source| clone.cannot_write(source))
}

/// The arguments of one call.
struct Clone<'a> {
    path: &'a Path,
    fs: FsType,
    sector: u32,
    new: &'a Uuid,
    lock: &'a File,
}

impl Clone<'_> {
    /// Replayed first and renamed last, so one that has the new UUID is done.
    fn adopt_ext4(&self) -> Result<(), AdoptError> {
        let (_, mut found) = self.read()?;
        if found.uuid == *self.new {
            return Ok(());
        }
        if found.dirty {
            self.replay()?;
            (_, found) = self.read()?;
        }
        if found.dirty {
            return Err(AdoptError::StillDirty { fs: self.fs, path: self.path.into() });
        }
        self.call(Command::new(Tool::Tune2fs).args(["-U", &self.new.to_string()]).arg(self.path))?;
        let (_, found) = self.read()?;
        if found.uuid == *self.new { Ok(()) } else { Err(self.unchanged()) }
    }

    fn adopt_xfs(&self) -> Result<(), AdoptError> {
        match self.xfs_change()? {
            Change::Done => return Ok(()),
            // the log is empty since, and has a UUID that the kernel may refuse
            Change::Begun => {}
            Change::NotBegun => self.replay()?,
        }
        let image = if self.path.is_file() { &["-f"][..] } else { &[] };
        let uuid = format!("uuid {}", self.new);
        self.call(Command::new(Tool::XfsDb).args(image).args(["-x", "-c", &uuid]).arg(self.path))?;
        if self.xfs_change()? == Change::Done { Ok(()) } else { Err(self.unchanged()) }
    }

    fn xfs_change(&self) -> Result<Change, AdoptError> {
        let (bytes, _) = self.read()?;
        let change = File::open(self.path).and_then(|file| xfs::change(&file, &bytes, self.new));
        change.map_err(|source| self.cannot_read(source))
    }

    /// The superblock that counts is written last, so one that has the new UUID is done.
    fn adopt_btrfs(&self) -> Result<(), AdoptError> {
        let (bytes, found) = self.read()?;
        if found.uuid == *self.new {
            return Ok(());
        }
        let renewed = btrfs::renewed(&bytes, self.new);
        let renewed = renewed.map_err(|why| AdoptError::Refused { path: self.path.into(), why })?;
        let file = File::options().read(true).write(true).open(self.path);
        file.and_then(|file| btrfs::write(&file, &renewed)).map_err(|source| self.cannot_write(source))
    }

    /// The superblock and what it says.
    fn read(&self) -> Result<(Vec<u8>, Filesystem), AdoptError> {
        let bytes = superblock::read(self.path, self.fs).map_err(|source| self.cannot_read(source))?;
        match superblock::parse(self.fs, &bytes) {
            Superblock::Sound(found) => Ok((bytes, found)),
            found => Err(AdoptError::NotThere { fs: self.fs, path: self.path.into(), found }),
        }
    }

    fn replay(&self) -> Result<(), AdoptError> {
        let replayed = replay::command(self.path, self.fs, self.sector).change(self.lock);
        replayed.map(drop).map_err(|source| AdoptError::Replay { fs: self.fs, path: self.path.into(), source })
    }

    fn call(&self, command: Command) -> Result<(), AdoptError> {
        let called = command.change(self.lock);
        called.map(drop).map_err(|source| AdoptError::Tool { fs: self.fs, path: self.path.into(), source })
    }

    fn unchanged(&self) -> AdoptError {
        AdoptError::Unchanged { fs: self.fs, path: self.path.into() }
    }

    fn cannot_read(&self, source: io::Error) -> AdoptError {
        AdoptError::Read { path: self.path.into(), source }
    }

    fn cannot_write(&self, source: io::Error) -> AdoptError {
        AdoptError::Write { path: self.path.into(), source }
    }
}
