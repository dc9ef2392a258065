//! Changes of directories that are there after a power cut, or not at all.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::FileError;
use crate::domain::Outcome;

const TEMPORARY_PREFIX: &str = ".";
const TEMPORARY_SUFFIX: &str = ".new";

/// The one name under which `name` is written before it gets its own. It is always the same, so that what a crash leaves
/// is written over by the next try.
pub(super) fn temporary_name(name: &str) -> String {
    format!("{TEMPORARY_PREFIX}{name}{TEMPORARY_SUFFIX}")
}

/// Whether a file of this name is an unfinished one, left by a crash, that nobody needs.
pub fn is_temporary(name: &OsStr) -> bool {
    let rest = name.to_str().and_then(|name| name.strip_prefix(TEMPORARY_PREFIX));
    rest.is_some_and(|rest| rest.ends_with(TEMPORARY_SUFFIX))
}

/// Makes or replaces the file `name` in `dir`, readable by its owner: readers and power cuts see the old bytes or the new.
/// Two at once for one name are not safe: the caller holds a lock.
///
/// # Errors
/// The old bytes are there; only if syncing the directory fails it may be the new ones.
pub fn write_atomically(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), FileError> {
    let temporary = dir.join(temporary_name(name));
    let written = write_synced(&temporary, bytes).and_then(|()| {
        rename(&temporary, &dir.join(name))?;
        sync_dir("write.directory", dir)
    });
    written.inspect_err(|_| {
        // gone already if it was the directory's sync that failed; a leftover is harmless
        let _ = fs::remove_file(&temporary);
    })
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let failed = |source| FileError::at("write", path, source);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    sync("write.file", &file).map_err(failed)
}

/// Brings what was written to a file or device to its disk (fsync(2)). All that is to outlive a power cut goes through
/// here, under a name: with the feature `steps` a test can leave it out, and see that it is missed.
pub fn sync(name: &'static str, file: &File) -> io::Result<()> {
    if is_left_out(name) { Ok(()) } else { file.sync_all() }
}

/// Whether a test asks for what has this name to be left out.
#[cfg(feature = "steps")]
pub(in crate::machine) use crate::domain::step::leaves_out as is_left_out;

/// Nothing ever is, in a release.
#[cfg(not(feature = "steps"))]
pub(in crate::machine) fn is_left_out(_name: &str) -> bool {
    false
}

/// Makes what was made, renamed and removed in the directory last. The name is as for [`sync`].
pub fn sync_dir(name: &'static str, dir: &Path) -> Result<(), FileError> {
    let synced = File::open(dir).and_then(|dir| sync(name, &dir));
    synced.map_err(|source| FileError::at("sync the directory", dir, source))
}

/// Removes the file for good. `Found` when there was none.
pub fn remove_durably(path: &Path) -> Result<Outcome<()>, FileError> {
    let outcome = match fs::remove_file(path) {
        Ok(()) => Outcome::Made(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Outcome::Found(()),
        Err(source) => return Err(FileError::at("remove", path, source)),
    };
    // also if it was gone: whoever removed it may have been cut off before this
    sync_dir("remove.directory", dir_of(path))?;
    Ok(outcome)
}

/// Renames for good, over what has the new name.
pub fn rename_durably(from: &Path, to: &Path) -> Result<(), FileError> {
    rename(from, to)?;
    let (old, new) = (dir_of(from), dir_of(to));
    sync_dir("rename.directory", new)?;
    if old == new { Ok(()) } else { sync_dir("rename.directory", old) }
}

fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).map_err(|source| FileError::at("rename", from, source))
}

/// The directory that holds the path.
fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::domain::FsType;
    use crate::domain::size::MIB;
    use crate::machine::testing::{TestDir, TestFs};

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries.filter(|name| name != "lost+found").collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_file_is_made_and_replaced_and_a_leftover_written_over() {
        let dir = TestDir::new();
        fs::write(dir.join(&temporary_name("record")), "longer than what is written now").unwrap();
        for bytes in ["one", "two", ""] {
            write_atomically(dir.path(), "record", bytes.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(dir.join("record")).unwrap(), bytes);
            assert_eq!(names(dir.path()), ["record"]);
        }
        assert_eq!(fs::metadata(dir.join("record")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_full_file_system_keeps_the_old_bytes_and_no_leftover() {
        let test = TestFs::new(FsType::Ext4, 4 * MIB);
        write_atomically(test.path(), "record", b"old").unwrap();
        let error = write_atomically(test.path(), "record", &vec![1; 8 << 20]).unwrap_err();
        assert!(matches!(error, FileError::NoSpace { .. }), "{error}");
        assert_eq!(fs::read(test.join("record")).unwrap(), b"old");
        assert_eq!(names(test.path()), ["record"]);
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        let dir = TestDir::new();
        let missing = dir.join("missing");
        assert!(write_atomically(&missing, "record", b"").is_err());
        assert!(remove_durably(&missing.join("record")).is_err());
        assert!(rename_durably(&missing.join("a"), &dir.join("b")).is_err());
        assert!(sync_dir("write.directory", &missing).is_err());
    }

    #[test]
    fn files_are_renamed_and_removed() {
        let dir = TestDir::new();
        let (old, new) = (dir.join("old"), dir.join("below/new"));
        fs::create_dir(dir.join("below")).unwrap();
        fs::write(&old, "bytes").unwrap();
        fs::write(&new, "replaced").unwrap();
        rename_durably(&old, &new).unwrap();
        assert_eq!(fs::read_to_string(&new).unwrap(), "bytes");
        assert_eq!(remove_durably(&new).unwrap(), Outcome::Made(()));
        assert_eq!(remove_durably(&new).unwrap(), Outcome::Found(()));
        assert_eq!(names(dir.path()), ["below"]);
    }

    #[test]
    fn unfinished_files_are_known_by_name() {
        for (name, is_unfinished) in
            [(".record.new", true), ("record.new", false), (".record", false), ("record", false), (".new", false)]
        {
            assert_eq!(is_temporary(OsStr::new(name)), is_unfinished, "{name}");
        }
        assert!(is_temporary(OsStr::new(&temporary_name("v-1"))));
    }
}
