//! Some space set aside, so that what frees space never fails for want of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{FileError, reserve};

/// A file that takes space and holds nothing.
#[derive(Debug, Clone)]
pub struct Ballast {
    path: PathBuf,
    size: u64,
}

impl Ballast {
    /// A ballast of this many bytes in a directory. Nothing is taken yet.
    pub fn new(directory: &Path, size: u64) -> Ballast {
        Ballast { path: directory.join("ballast"), size }
    }

    /// Takes the space, if it is not taken.
    pub fn take(&self) -> Result<(), FileError> {
        let opened = File::options().create(true).truncate(false).write(true).open(&self.path);
        let file = opened.map_err(|source| FileError::at("make", &self.path, source))?;
        reserve(&file, 0..self.size)
    }

    /// Does something that needs a little space; where there is none, with the ballast's.
    pub fn lend<T>(&self, act: impl Fn() -> Result<T, FileError>) -> Result<T, FileError> {
        match act() {
            Err(FileError::NoSpace { .. }) if fs::remove_file(&self.path).is_ok() => act(),
            done => done,
        }
    }
}
