//! The machine's own programs that cistern calls, where they are found and which version they are.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::{Command, CommandError};

/// The only places where tools are looked for; what `PATH` says does not matter.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// How long a tool may take to print its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// A program of the machine that cistern calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tool {
    /// Makes ext4.
    MkfsExt4,
    /// Changes an ext4's UUID.
    Tune2fs,
    /// Makes XFS.
    MkfsXfs,
    /// Changes an XFS's UUID.
    XfsDb,
    /// Makes btrfs.
    MkfsBtrfs,
}

impl Tool {
    /// Every tool there is, for `doctor`.
    pub const ALL: [Tool; 5] = [Tool::MkfsExt4, Tool::Tune2fs, Tool::MkfsXfs, Tool::XfsDb, Tool::MkfsBtrfs];

    /// The name of the program's file.
    pub fn name(self) -> &'static str {
        match self {
            Tool::MkfsExt4 => "mkfs.ext4",
            Tool::Tune2fs => "tune2fs",
            Tool::MkfsXfs => "mkfs.xfs",
            Tool::XfsDb => "xfs_db",
            Tool::MkfsBtrfs => "mkfs.btrfs",
        }
    }

    /// The Debian package that installs it.
    pub fn package(self) -> &'static str {
        match self {
            Tool::MkfsExt4 | Tool::Tune2fs => "e2fsprogs",
            Tool::MkfsXfs | Tool::XfsDb => "xfsprogs",
            Tool::MkfsBtrfs => "btrfs-progs",
        }
    }

    /// Where the tool is on this machine, as an absolute path; `None` if it is not installed.
    pub fn find(self) -> Option<PathBuf> {
        DIRECTORIES.iter().map(|directory| Path::new(directory).join(self.name())).find(|path| is_program(path))
    }

    /// Which version of a mkfs tool is installed (the others have no common way to be asked). Asked once per process,
    /// since it only decides which options the tool knows.
    ///
    /// # Errors
    /// The tool is missing, fails, or prints no version.
    pub fn version(self) -> Result<Version, CommandError> {
        static VERSIONS: [OnceLock<Version>; Tool::ALL.len()] = [const { OnceLock::new() }; Tool::ALL.len()];
        let cell = &VERSIONS[self as usize];
        if let Some(version) = cell.get() {
            return Ok(*version);
        }
        let command = Command::new(self).arg("-V");
        let output = command.read(VERSION_LIMIT)?;
        // mke2fs answers on stderr, the others on stdout
        let version = Version::parse(&output.stdout).or_else(|| Version::parse(&output.stderr));
        let version = version.ok_or_else(|| command.not_understood("a version", &output))?;
        Ok(*cell.get_or_init(|| version))
    }
}

/// Whether this is a file that may be executed.
fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The first two numbers of a tool's version, which is what its options follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// The version in what a tool prints for `-V`: the first word of two or more numbers, with or without a `v`, such as
    /// `mke2fs 1.47.0 (5-Feb-2023)`, `mkfs.xfs version 6.1.0` or `mkfs.btrfs, part of btrfs-progs v6.2`.
    fn parse(text: &str) -> Option<Version> {
        text.split_whitespace().find_map(|word| {
            let mut numbers = word.strip_prefix('v').unwrap_or(word).split('.');
            let major = numbers.next()?.parse().ok()?;
            let minor: String = numbers.next()?.chars().take_while(char::is_ascii_digit).collect();
            Some(Version(major, minor.parse().ok()?))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_each_tool_prints() {
        for (text, version) in [
            ("mke2fs 1.47.0 (5-Feb-2023)\n\tUsing EXT2FS Library version 1.47.0\n", Some(Version(1, 47))),
            ("mke2fs 1.46-WIP (20-Mar-2020)", Some(Version(1, 46))),
            ("mkfs.xfs version 6.1.0\n", Some(Version(6, 1))),
            ("mkfs.btrfs, part of btrfs-progs v6.2\n", Some(Version(6, 2))),
            ("mkfs.btrfs, part of btrfs-progs v6.6.3\n-EXPERIMENTAL", Some(Version(6, 6))),
            ("usage: mkfs.xfs [-b size]", None),
            ("version 6", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(text), version, "{text:?}");
        }
    }

    #[test]
    fn tools_are_found_by_absolute_path_and_tell_their_version() {
        for tool in Tool::ALL {
            let path = tool.find().unwrap();
            assert!(path.is_absolute() && path.ends_with(tool.name()), "{path:?}");
        }
        for tool in [Tool::MkfsExt4, Tool::MkfsXfs, Tool::MkfsBtrfs] {
            assert!(tool.version().unwrap() > Version(1, 40));
        }
    }
}
