//! What is left over, seen by the tests' own eyes: files, loop devices, mounts. Never by asking the server.

use std::path::{Path, PathBuf};

use super::run;

/// What exists below a place.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Files of the pool: pieces and records, and what is between.
    pub files: Vec<PathBuf>,
    /// Stage records and locks of tools.
    pub notes: Vec<PathBuf>,
    /// Loop devices over pieces.
    pub loops: Vec<String>,
    /// Mounts of volumes: all but the place's own disk and the pool's own file.
    pub mounts: Vec<PathBuf>,
    /// Every loop device over anything below the place.
    pub all_loops: Vec<String>,
    /// Those of them that stay until somebody detaches them.
    pub lasting_loops: Vec<String>,
    /// Every mount below the place, the deepest last; not the place itself.
    pub all_mounts: Vec<PathBuf>,
}

/// Shows what there is: mountinfo (proc_pid_mountinfo(5)), losetup's list, the files of pools and data directories below
/// the place, with a line of dashes between. A shell, so that it is the same on this machine and in a host of a lab.
pub const LOOK: &str = r#"
cat /proc/self/mountinfo
echo ---
losetup --list --noheadings --raw --output NAME,AUTOCLEAR,BACK-FILE
echo ---
for pool in disk/pool disk/pool/pool data/default data/default/pool; do
    for part in images records; do
        ! cd "$1/$pool/$part" 2>/dev/null || find "$PWD" -mindepth 1 -maxdepth 1
    done
done
echo ---
for part in data/stage data/locks; do
    ! cd "$1/$part" 2>/dev/null || find "$PWD" -mindepth 1 -maxdepth 1
done
"#;

impl Inventory {
    /// Looks at everything below `root`.
    pub fn take(root: &Path) -> Inventory {
        Inventory::parse(root, &run(&["sh", "-c", LOOK, "look", root.to_str().unwrap()]))
    }

    /// Understands what [`LOOK`] shows of everything below `root`.
    pub fn parse(root: &Path, shown: &str) -> Inventory {
        let parts: Vec<&str> = shown.split("---\n").collect();
        let all_mounts = mounts_below(root, parts[0]);
        let loops = loops_below(root, parts[1]);
        let is_own = |path: &Path| path.ends_with("disk.img") || path.ends_with("pool.xfs");
        Inventory {
            files: files(parts[2]),
            notes: files(parts[3]),
            loops: loops.iter().filter(|found| !is_own(&found.file)).map(|found| found.device.clone()).collect(),
            mounts: all_mounts
                .iter()
                .filter(|mount| !mount.ends_with("disk") && !mount.ends_with("pool"))
                .cloned()
                .collect(),
            lasting_loops: loops
                .iter()
                .filter(|found| !found.goes_by_itself)
                .map(|found| found.device.clone())
                .collect(),
            all_loops: loops.into_iter().map(|found| found.device).collect(),
            all_mounts,
        }
    }

    /// Fails if a volume, a snapshot, a device, a mount or a note of any is there.
    pub fn assert_empty(&self) {
        let left = (&self.files, &self.notes, &self.loops, &self.mounts);
        assert!(
            left.0.is_empty() && left.1.is_empty() && left.2.is_empty() && left.3.is_empty(),
            "left over: {left:#?}"
        );
    }
}

/// Mount points below: mountinfo's fifth field.
fn mounts_below(root: &Path, table: &str) -> Vec<PathBuf> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| point.replace("\\040", " "));
    points.map(PathBuf::from).filter(|point| point.starts_with(root) && point != root).collect()
}

/// A loop device as losetup shows it.
struct Loop {
    device: String,
    file: PathBuf,
    goes_by_itself: bool,
}

/// Loop devices over files below.
fn loops_below(root: &Path, listed: &str) -> Vec<Loop> {
    let parse = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (device, auto_clear, file) = (words.next()?, words.next()?, words.next()?);
        let file = PathBuf::from(file.trim_end_matches("\\x20(deleted)").trim_end_matches(" (deleted)"));
        let found = Loop { device: device.to_owned(), file, goes_by_itself: auto_clear == "1" };
        found.file.starts_with(root).then_some(found)
    };
    listed.lines().filter_map(parse).collect()
}

fn files(listed: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = listed.lines().filter(|line| !line.is_empty()).map(PathBuf::from).collect();
    files.sort();
    files
}
