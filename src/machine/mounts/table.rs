//! The mount table of this process's mount namespace, read from mountinfo (proc(5)).

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use procfs::FromRead;
use procfs::process::{MountInfo, MountInfos};
use rustix::mount::MountFlags;

use super::MountError;

/// Options of a mount, those without a value with none.
type Options = HashMap<String, Option<String>>;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Unique among the mounts of now.
    pub id: i32,
    /// The mount that this one is mounted on; none for the root.
    pub parent: Option<i32>,
    /// Major and minor number: the device that is mounted, or one of the file system's own (also for Btrfs).
    pub device: (u32, u32),
    /// What of the file system is seen here: `/`, or the path inside it of a bind mount.
    pub root: PathBuf,
    /// Where it is seen.
    pub point: PathBuf,
    /// The file system's name, such as `ext4`.
    pub fs_type: String,
    /// The device, export or word that was mounted; none for `none`.
    pub source: Option<OsString>,
    /// This mount is read-only.
    pub read_only: bool,
    /// The whole file system is read-only, through every mount: it was mounted so, or has become so after an error.
    pub read_only_fs: bool,
    /// Options of this mount, such as `nosuid`.
    pub options: Options,
    /// Options of the file system.
    pub fs_options: Options,
}

impl Mount {
    /// The flags of this mount that a remount of a bind mount would otherwise drop.
    pub(super) fn flags(&self) -> MountFlags {
        let named = [
            ("ro", MountFlags::RDONLY),
            ("nosuid", MountFlags::NOSUID),
            ("nodev", MountFlags::NODEV),
            ("noexec", MountFlags::NOEXEC),
            ("nosymfollow", MountFlags::NOSYMFOLLOW),
        ];
        named.into_iter().filter(|(name, _)| self.options.contains_key(*name)).map(|(_, flag)| flag).collect()
    }

    fn parse(line: MountInfo) -> Result<Mount, MountError> {
        let point = PathBuf::from(unescape(&line.mount_point.to_string_lossy()));
        let device = match parse_device(&line.majmin) {
            Some(device) => device,
            None => return Err(MountError::ParseDevice { point, device: line.majmin }),
        };
        Ok(Mount {
            id: line.mnt_id,
            parent: Some(line.pid),
            device,
            root: unescape(&line.root).into(),
            point,
            fs_type: line.fs_type,
            source: line.mount_source.map(|source| unescape(&source)),
            read_only: line.mount_options.contains_key("ro"),
            read_only_fs: line.super_options.contains_key("ro"),
            options: line.mount_options,
            fs_options: unescape_options(line.super_options),
        })
    }
}

/// All mounts at one moment.
#[derive(Debug, Clone)]
pub struct MountTable {
    mounts: Vec<Mount>,
}

impl MountTable {
    /// The table of now. Kernels before 5.8 may leave out a mount while others come and go.
    pub fn read() -> Result<MountTable, MountError> {
        MountTable::parse(File::open("/proc/self/mountinfo").map_err(MountError::ReadTable)?)
    }

    /// Parses what `/proc/self/mountinfo` holds.
    pub fn parse(mut mountinfo: impl Read) -> Result<MountTable, MountError> {
        let mut bytes = Vec::new();
        mountinfo.read_to_end(&mut bytes).map_err(MountError::ReadTable)?;
        let lines = MountInfos::from_read(escape(&bytes).as_bytes()).map_err(MountError::ParseTable)?;
        let mut mounts = lines.into_iter().map(Mount::parse).collect::<Result<Vec<_>, _>>()?;
        // the root's parent is outside of what this process sees, or the root itself
        let ids: HashSet<i32> = mounts.iter().map(|mount| mount.id).collect();
        for mount in &mut mounts {
            mount.parent = mount.parent.filter(|parent| *parent != mount.id && ids.contains(parent));
        }
        Ok(MountTable { mounts })
    }

    /// The mount that one sees at exactly this path, [resolved](super::resolve): the topmost of several, none if a mount
    /// over a directory above hides it.
    pub fn at(&self, path: &Path) -> Option<&Mount> {
        let mut seen: Option<&Mount> = None;
        while let Some(next) = self.next_towards(seen, path) {
            seen = Some(next);
        }
        seen.filter(|mount| mount.point == path)
    }

    /// All mounts of one file system, by its device number, hidden ones too.
    pub fn of_device(&self, device: (u32, u32)) -> impl Iterator<Item = &Mount> {
        self.mounts.iter().filter(move |mount| mount.device == device)
    }

    /// All mounts below this path but not at it, hidden ones too.
    pub fn below(&self, path: &Path) -> impl Iterator<Item = &Mount> {
        self.mounts.iter().filter(move |mount| mount.point != path && mount.point.starts_with(path))
    }

    /// Whether anything is mounted at exactly this path, also where nobody sees it.
    pub(super) fn has_point(&self, path: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.point == path)
    }

    /// The mount that a walk along `path` enters next from `here`: of those mounted on `here`, the first on the way.
    fn next_towards(&self, here: Option<&Mount>, path: &Path) -> Option<&Mount> {
        let here = here.map(|mount| mount.id);
        let on_the_way = self.mounts.iter().filter(|mount| mount.parent == here && path.starts_with(&mount.point));
        on_the_way.min_by_key(|mount| mount.point.components().count())
    }
}

/// Parses `major:minor`.
fn parse_device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Writes bytes beyond ASCII as the kernel writes blanks, `\303`: paths are bytes, and the parser takes text.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii() {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("\\{byte:03o}"));
        }
    }
    text
}

/// Undoes `\040` and its like; a backslash before anything else is itself.
fn unescape(text: &str) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        rest = match rest {
            [] => break,
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                bytes.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                after
            }
            [plain, after @ ..] => {
                bytes.push(*plain);
                after
            }
        };
    }
    OsString::from_vec(bytes)
}

fn unescape_options(options: Options) -> Options {
    let plain = |text: String| unescape(&text).to_string_lossy().into_owned();
    options.into_iter().map(|(name, value)| (plain(name), value.map(plain))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn table(text: &str) -> MountTable {
        MountTable::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_line_is_taken_apart() {
        let line = "29 1 7:3 /in\\040side /mnt/a\\040b\\011c\\012d\\134040 ro,nosuid,relatime shared:5 master:1 - \
                    ext4 /dev/lo\\040op3 rw,errors=remount-ro,x=a\\040b\n";
        let mount = table(line).mounts.remove(0);
        assert_eq!((mount.id, mount.parent, mount.device), (29, None, (7, 3)));
        assert_eq!(mount.root, Path::new("/in side"));
        assert_eq!(mount.point, Path::new("/mnt/a b\tc\nd\\040"));
        assert_eq!((mount.read_only, mount.read_only_fs), (true, false));
        assert_eq!(mount.fs_type, "ext4");
        assert_eq!(mount.source, Some("/dev/lo op3".into()));
        assert!(mount.options.contains_key("nosuid"));
        assert_eq!(mount.fs_options["errors"], Some("remount-ro".into()));
        assert_eq!(mount.fs_options["x"], Some("a b".into()));
        assert_eq!(mount.flags(), MountFlags::RDONLY | MountFlags::NOSUID);
    }

    #[test]
    fn paths_are_bytes() {
        let line = b"29 1 0:50 / /mnt/\xc3\xa9\xff rw - tmpfs none ro\n";
        let mount = MountTable::parse(&line[..]).unwrap().mounts.remove(0);
        assert_eq!(mount.point.into_os_string().into_vec(), b"/mnt/\xc3\xa9\xff");
        assert_eq!(mount.source, None);
        assert_eq!((mount.read_only, mount.read_only_fs), (false, true));
    }

    #[test]
    fn what_is_not_mountinfo_is_an_error() {
        for text in [
            "29 1 7:3 /\n",
            "x 1 7:3 / /mnt rw - ext4 /dev/loop3 rw\n",
            "29 1 7-3 / /mnt rw - ext4 /dev/loop3 rw\n",
            "29 1 7:x / /mnt rw - ext4 /dev/loop3 rw\n",
            "29 1 7:3 / /mnt rw shared:5 ext4 /dev/loop3 rw\n",
        ] {
            assert!(MountTable::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(table("").mounts.is_empty());
    }

    #[test]
    fn escapes_are_undone_and_nothing_else() {
        for (text, plain) in [
            ("a\\040b", "a b"),
            ("\\134", "\\"),
            ("\\0", "\\0"),
            ("\\08", "\\08"),
            ("\\x41", "\\x41"),
            ("\\777", "\\777"),
        ] {
            assert_eq!(unescape(text), plain, "{text}");
        }
    }

    /// 20 is the root; /a is mounted twice, the second time over what is mounted below the first.
    const STACKED: &str = "\
        20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        21 20 0:30 / /a rw - tmpfs one rw\n\
        22 21 0:31 / /a/b rw - tmpfs two rw\n\
        23 21 0:32 / /a rw - tmpfs three rw\n\
        24 23 0:33 / /a/c rw - tmpfs four rw\n\
        25 20 0:34 / /ab rw - tmpfs five rw\n\
        26 25 0:31 /d /ab/x/y rw - tmpfs two rw\n\
        27 25 0:35 / /ab/x rw - tmpfs six rw\n";

    #[test]
    fn the_mount_at_a_path_is_the_one_that_is_seen() {
        let table = table(STACKED);
        for (path, id) in [
            ("/", Some(20)),
            ("/a", Some(23)),
            ("/a/b", None),
            ("/a/c", Some(24)),
            ("/a/c/d", None),
            ("/ab", Some(25)),
            ("/ab/x", Some(27)),
            ("/ab/x/y", None),
            ("/b", None),
        ] {
            assert_eq!(table.at(Path::new(path)).map(|mount| mount.id), id, "{path}");
        }
        assert!(table.has_point(Path::new("/a/b")));
        assert!(!table.has_point(Path::new("/b")));
    }

    #[test]
    fn a_process_in_a_chroot_sees_mounts_without_a_root() {
        let table = table("31 30 8:1 / /data rw - ext4 /dev/sda1 rw\n32 31 8:2 / /data/x rw - ext4 /dev/sda2 rw\n");
        assert_eq!(table.at(Path::new("/")), None);
        assert_eq!(table.at(Path::new("/data/x")).unwrap().id, 32);
    }

    #[test]
    fn mounts_are_listed_by_device_and_by_place() {
        let table = table(STACKED);
        let ids = |mounts: Vec<&Mount>| mounts.iter().map(|mount| mount.id).collect::<Vec<_>>();
        assert_eq!(ids(table.of_device((0, 31)).collect()), [22, 26]);
        assert_eq!(ids(table.of_device((9, 9)).collect()), Vec::<i32>::new());
        assert_eq!(ids(table.below(Path::new("/a")).collect()), [22, 24]);
        assert_eq!(ids(table.below(Path::new("/ab/x")).collect()), [26]);
    }
}
