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
    /// Every mount below the place, the deepest last.
    pub all_mounts: Vec<PathBuf>,
}

impl Inventory {
    /// Looks at everything below `root`.
    pub fn take(root: &Path) -> Inventory {
        let all_mounts = mounts_below(root);
        let loops = loops_below(root);
        let is_own = |path: &Path| path.ends_with("disk.img") || path.ends_with("pool.xfs");
        Inventory {
            files: ["images", "records"].iter().flat_map(|part| files_in_pools(root, part)).collect(),
            notes: ["data/stage", "data/locks"].iter().flat_map(|part| files_in(&root.join(part))).collect(),
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

/// Mount points below, from mountinfo (proc_pid_mountinfo(5), the fifth field).
fn mounts_below(root: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| point.replace("\\040", " "));
    points.map(PathBuf::from).filter(|point| point.starts_with(root)).collect()
}

/// A loop device as losetup shows it.
struct Loop {
    device: String,
    file: PathBuf,
    goes_by_itself: bool,
}

/// Loop devices over files below, by losetup.
fn loops_below(root: &Path) -> Vec<Loop> {
    let listed = run(&["losetup", "--list", "--noheadings", "--raw", "--output", "NAME,AUTOCLEAR,BACK-FILE"]);
    let parse = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (device, auto_clear, file) = (words.next()?, words.next()?, words.next()?);
        let file = PathBuf::from(file.trim_end_matches("\\x20(deleted)").trim_end_matches(" (deleted)"));
        let found = Loop { device: device.to_owned(), file, goes_by_itself: auto_clear == "1" };
        found.file.starts_with(root).then_some(found)
    };
    listed.lines().filter_map(parse).collect()
}

/// Files in the folders of this name of every pool below.
fn files_in_pools(root: &Path, folder: &str) -> Vec<PathBuf> {
    let pools = [
        root.join("disk/pool"),
        root.join("disk/pool/pool"),
        root.join("data/default"),
        root.join("data/default/pool"),
    ];
    pools.iter().flat_map(|pool| files_in(&pool.join(folder))).collect()
}

fn files_in(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}
