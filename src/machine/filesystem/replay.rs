//! Replaying a journal: `cistern replay-journal PATH FSTYPE SECTOR`, a process of its own that cannot leave anything behind.
//!
//! The kernel replays when it opens a file system for writing. Here that is done without a mount point: the file system's
//! context is made and dropped, which opens and closes it. Whatever kills the process closes the context, with it the loop
//! device, and with that the image.

use std::ffi::OsString;
use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen};

use crate::domain::FsType;
use crate::machine::command::Command;
use crate::machine::file::FileId;
use crate::machine::loopdev::{Attach, LoopDevice, LoopError};

/// The hidden word that makes our binary replay a journal.
pub const WORD: &str = "replay-journal";

/// Why a journal was not replayed.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error("cannot open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Loop(#[from] LoopError),
    #[error("the kernel does not take the option {option}")]
    Option { option: &'static str, source: io::Error },
    #[error("the kernel cannot open the {fs} on {}{said}", device.display())]
    Kernel { fs: FsType, device: PathBuf, said: String, source: io::Error },
}

/// The command that replays the journal of the unmounted file system in `path`, an absolute path of an image file or block
/// device; `sector` as for [`super::make()`].
pub(super) fn command(path: &Path, fs: FsType, sector: u32) -> Command {
    Command::own(WORD).arg(path).arg(fs.as_str()).arg(sector.to_string())
}

/// What `main` does when the first argument is [`WORD`]; `args` are those that follow it.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    let parsed = match &args[..] {
        [path, fs, sector] => {
            let fs = fs.to_str().and_then(FsType::parse);
            let sector = sector.to_str().and_then(|sector| sector.parse().ok());
            fs.zip(sector).map(|(fs, sector)| (Path::new(path), fs, sector))
        }
        _ => None,
    };
    let Some((path, fs, sector)) = parsed else {
        eprintln!("usage: cistern {WORD} PATH FSTYPE SECTOR");
        return ExitCode::from(2);
    };
    match replay(path, fs, sector) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes in one line, for stderr, where the daemon finds it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // writing to a string cannot fail
        let _ = write!(line, ": {error}");
        cause = error.source();
    }
    line
}

fn replay(path: &Path, fs: FsType, sector: u32) -> Result<(), ReplayError> {
    let cannot_open = |source| ReplayError::Open { path: path.into(), source };
    if path.metadata().map_err(cannot_open)?.file_type().is_block_device() {
        return open_and_close(path, fs);
    }
    // the lock of the operation is ours, so one that is bound already was left by a replay that was killed
    for left in LoopDevice::find(FileId::at(path).map_err(cannot_open)?)? {
        left.detach()?;
    }
    let device = LoopDevice::attach(path, &Attach { read_only: false, sector, discard: true })?;
    // keeps the binding until the file system has it open, and ends it with the process
    let opened = File::open(device.path()).map_err(|source| ReplayError::Open { path: device.path(), source });
    device.release_at_last_close()?;
    let _held = opened?;
    open_and_close(&device.path(), fs)
}

/// Has the kernel open the file system for writing and close it again.
fn open_and_close(device: &Path, fs: FsType) -> Result<(), ReplayError> {
    let option = |option| move |errno: rustix::io::Errno| ReplayError::Option { option, source: errno.into() };
    let refused =
        |errno: rustix::io::Errno, said| ReplayError::Kernel { fs, device: device.into(), said, source: errno.into() };
    let context = fsopen(fs.as_str(), FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| refused(errno, String::new()))?;
    fsconfig_set_string(&context, "source", device).map_err(option("source"))?;
    if fs == FsType::Xfs {
        // the source of the clone may be mounted
        fsconfig_set_flag(&context, "nouuid").map_err(option("nouuid"))?;
    }
    fsconfig_create(&context).map_err(|errno| refused(errno, said(&context)))
}

/// What the kernel has to say about the context: messages such as `e xfs: …`, one for each read.
fn said(context: &OwnedFd) -> String {
    let mut said = String::new();
    let mut message = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut message) {
        let _ = write!(said, "; {}", String::from_utf8_lossy(&message[..length]).trim());
    }
    said
}
