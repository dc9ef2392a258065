//! The medium `dir`: disk-image files in a directory. Where the file system has reflinks, a cut is a clone of the file;
//! elsewhere it is a copy by a job. A thick file never shares a block, so that no write to it ever needs a new one.

mod image;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use self::image::Image;
use super::{Cut, Layout, Medium, MediumError, Piece, Space};
use crate::domain::{Allocation, Bytes, Clean, DirSpec, Key, Kind, Outcome};
use crate::machine::file::{self, Ballast, FileError, FsKind};

/// Every file system that has reflinks or is used for images can hold files of this size: 8 EiB less a block.
const LARGEST_FILE: u64 = (1 << 63) - 4096;
/// ext4 ends at 16 TiB with blocks of 4 KiB.
const LARGEST_FILE_EXT4: u64 = (1 << 44) - 4096;

/// The size in bytes of the file that the pool in this directory is, if it is one.
pub fn image_size(directory: &Path) -> Result<Option<u64>, MediumError> {
    let path = directory.join(image::FILE);
    match std::fs::metadata(&path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(MediumError::step("looking for", &path)(error)),
    }
}

/// Whether a store may be in this directory, as far as can be seen from outside: one that is not mounted is not.
pub fn may_be_in(spec: &DirSpec) -> bool {
    let there = |name: &str| spec.path.join(name).try_exists().unwrap_or(true);
    there("store.json") || there(image::FILE)
}

/// Disk images in a directory.
pub struct Dir {
    home: PathBuf,
    images: PathBuf,
    kind: FsKind,
    has_reflinks: bool,
    sector: u32,
    // dropped last: all of the above is in it
    _image: Option<Image>,
}

impl Dir {
    /// Opens the directory, made if it is not there. A pool that is to be one file is made one, and mounted.
    /// Where a store `is_expected`, no new one is made.
    pub fn open(spec: &DirSpec, is_expected: bool) -> Result<Dir, MediumError> {
        std::fs::create_dir_all(&spec.path).map_err(MediumError::step("making", &spec.path))?;
        let image = spec.image.map(|size| Image::open(&spec.path, size, is_expected)).transpose()?;
        let home = image.as_ref().map_or(spec.path.clone(), |image| image.mounted_at().to_owned());
        let images = home.join("images");
        std::fs::create_dir_all(&images).map_err(MediumError::step("making", &images))?;
        // the probes write a little, and a full store must open too
        let room = Ballast::new(&home, 0);
        let probed = |error| MediumError::step("probing", &images)(error);
        let sector = room.lend(|| file::direct_io_sector_in(&images)).map_err(probed)?;
        let sector = sector.ok_or_else(|| MediumError::Unfit {
            path: images.clone(),
            why: "its file system has no direct I/O; put the pool on XFS, ext4 or Btrfs".to_owned(),
        })?;
        let has_reflinks = room.lend(|| file::supports_clone(&images)).map_err(probed)?;
        let kind = file::kind(&images).map_err(probed)?;
        Ok(Dir { kind, has_reflinks, home, images, sector, _image: image })
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.images.join(key.to_string())
    }

    /// Opens the piece's file for writing, or makes it: empty, and on Btrfs without copy-on-write, which direct I/O needs.
    fn open_or_make(&self, key: &Key) -> Result<Outcome<File>, MediumError> {
        let path = self.path(key);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let opened = match made {
            Ok(file) => Outcome::Made(file),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let found = OpenOptions::new().write(true).open(&path);
                Outcome::Found(found.map_err(MediumError::step("opening", &path))?)
            }
            Err(error) => return Err(MediumError::step("making", &path)(error)),
        };
        let (Outcome::Made(file) | Outcome::Found(file)) = &opened;
        let is_empty = file.metadata().map_err(MediumError::step("measuring", &path))?.len() == 0;
        if self.kind == FsKind::Btrfs && is_empty {
            file::set_nocow(file).map_err(|error| failed(key, "making", &path, error))?;
        }
        Ok(opened)
    }

    /// Gives the file its size, and its space if that is to be its own, and brings both to the disk.
    fn lay_out(&self, file: &File, key: &Key, size: u64, layout: &Layout) -> Result<(), MediumError> {
        let path = self.path(key);
        let laid_out = match layout.allocation {
            Allocation::Thin => file::set_file_size(file, size),
            Allocation::Thick => file::reserve(file, 0..size),
        };
        laid_out.map_err(|error| failed(key, "laying out", &path, error))?;
        file::sync("piece.file", file).map_err(MediumError::step("bringing to the disk", &path))?;
        file::sync_dir("piece.directory", &self.images).map_err(MediumError::step("bringing to the disk", &self.images))
    }

    fn open_existing(&self, key: &Key) -> Result<File, MediumError> {
        let path = self.path(key);
        OpenOptions::new().read(true).write(true).open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => MediumError::Missing(*key),
            _ => MediumError::step("opening", &path)(error),
        })
    }

    fn clone_file(&self, from: &Key, to: &Key) -> Result<(), MediumError> {
        let source = self.open_existing(from)?;
        let target = self.open_or_make(to)?.get();
        let path = self.path(to);
        file::clone_into(&source, &target).map_err(|error| failed(to, "cloning", &path, error))?;
        file::sync("clone.file", &target).map_err(MediumError::step("bringing to the disk", &path))?;
        file::sync_dir("clone.directory", &self.images).map_err(MediumError::step("bringing to the disk", &self.images))
    }

    fn piece(&self, key: Key, path: &Path) -> Result<Piece, MediumError> {
        let file = File::open(path).map_err(MediumError::step("opening", path))?;
        let size = file.metadata().map_err(MediumError::step("measuring", path))?.len();
        let allocated = file::allocated_bytes(&file).map_err(MediumError::step("measuring", path))?;
        let shared = match self.has_reflinks && allocated > 0 {
            true => file::shared_bytes(&file).map_err(MediumError::step("measuring", path))?,
            false => 0,
        };
        Ok(Piece { key, size, allocated, shared })
    }
}

impl Medium for Dir {
    fn home(&self) -> &Path {
        &self.home
    }

    fn space(&self) -> Result<Space, MediumError> {
        let space = file::space(&self.images).map_err(MediumError::step("measuring", &self.images))?;
        Ok(Space {
            total: space.total,
            free: space.free,
            grain: u64::from(self.sector),
            largest: if self.kind == FsKind::Ext4 { LARGEST_FILE_EXT4 } else { LARGEST_FILE },
            sector: self.sector,
        })
    }

    fn pieces(&self) -> Result<Vec<Piece>, MediumError> {
        let failed = |error| MediumError::step("reading", &self.images)(error);
        let mut pieces = Vec::new();
        for entry in std::fs::read_dir(&self.images).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // what has no key for a name is not ours
            let Some(key) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match self.piece(key, &entry.path()) {
                Ok(piece) => pieces.push(piece),
                // removed meanwhile
                Err(_) if !entry.path().exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pieces)
    }

    fn make(&self, key: &Key, size: u64, layout: &Layout) -> Result<Outcome<Clean>, MediumError> {
        Ok(match self.open_or_make(key)? {
            Outcome::Made(file) => {
                self.lay_out(&file, key, size, layout)?;
                Outcome::Made(Clean::Zeroed)
            }
            Outcome::Found(file) => {
                self.lay_out(&file, key, size, layout)?;
                Outcome::Found(Clean::Zeroed)
            }
        })
    }

    fn cut(&self, from: (&Key, &Layout), to: (&Key, &Layout)) -> Result<Cut, MediumError> {
        let ((from, from_layout), (to, to_layout)) = (from, to);
        if !self.has_reflinks {
            return Ok(Cut::NeedsCopy { from: *from, quiesced: from.kind() == Kind::Volume });
        }
        // a snapshot is never written, so nothing that it shares is ever taken away from it
        let source_keeps_blocks = from_layout.allocation == Allocation::Thick && from.kind() == Kind::Volume;
        if to_layout.allocation == Allocation::Thin && !source_keeps_blocks {
            self.clone_file(from, to)?;
            return Ok(Cut::Done);
        }
        if from.kind() == Kind::Snapshot {
            return Ok(Cut::NeedsCopy { from: *from, quiesced: false });
        }
        let temporary = to.temporary();
        self.clone_file(from, &temporary)?;
        Ok(Cut::NeedsCopy { from: temporary, quiesced: false })
    }

    fn grow(&self, key: &Key, to: u64, layout: &Layout) -> Result<Outcome<Clean>, MediumError> {
        let file = self.open_existing(key)?;
        let path = self.path(key);
        let size = file.metadata().map_err(MediumError::step("measuring", &path))?.len();
        if size >= to {
            return Ok(Outcome::Found(Clean::Zeroed));
        }
        let grown = match layout.allocation {
            Allocation::Thin => file::set_file_size(&file, to),
            Allocation::Thick => file::reserve(&file, size..to),
        };
        if let Err(error) = grown {
            // on ext4 a reservation that fails leaves the file longer, and the next start would take that for its size
            file::set_file_size(&file, size).map_err(MediumError::step("growing", &path))?;
            return Err(failed(key, "growing", &path, error));
        }
        file::sync("grow.file", &file).map_err(MediumError::step("bringing to the disk", &path))?;
        Ok(Outcome::Made(Clean::Zeroed))
    }

    fn open(&self, key: &Key) -> Result<Bytes, MediumError> {
        let path = self.path(key);
        match path.try_exists() {
            Ok(true) => Ok(Bytes::File(path)),
            Ok(false) => Err(MediumError::Missing(*key)),
            Err(error) => Err(MediumError::step("opening", &path)(error)),
        }
    }

    fn close(&self, _key: &Key) -> Result<(), MediumError> {
        // a file needs no closing
        Ok(())
    }

    fn remove(&self, key: &Key) -> Result<Outcome<()>, MediumError> {
        let path = self.path(key);
        file::remove_durably(&path).map_err(MediumError::step("removing", &path))
    }
}

fn failed(key: &Key, step: &'static str, path: &Path, error: FileError) -> MediumError {
    match error {
        FileError::NoSpace { .. } => MediumError::NoSpace(*key),
        other => MediumError::step(step, path)(other),
    }
}
