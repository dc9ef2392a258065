//! A directory of a test's own, on a file system of its own. All that is mounted or attached below it goes with it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Inventory;

static PLACES: AtomicU32 = AtomicU32::new(0);

/// A directory that is removed, with all that is mounted and attached below it, when the test ends.
pub struct Place {
    root: PathBuf,
}

impl Place {
    /// An empty directory on whatever file system temporary files are on.
    pub fn bare() -> Place {
        Place::below(&std::env::temp_dir())
    }

    /// An empty directory below this one.
    pub fn below(directory: &Path) -> Place {
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        let root = directory.join(format!("cistern-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let root = root.canonicalize().unwrap();
        // A mount of its own that others share, as kubelet's directories are: whoever copies the machine's mounts meanwhile (each
        // lab that is booted does) lets go of what is unmounted here, and keeps no device in use.
        let path = root.to_str().unwrap();
        run(&["mount", "--bind", path, path]);
        run(&["mount", "--make-private", path]);
        run(&["mount", "--make-shared", path]);
        Place { root }
    }

    /// A directory with a file system of this type and size mounted at `disk`.
    pub fn with(fs: &str, size: &str) -> Place {
        let place = Place::bare();
        let (image, disk) = (place.path("disk.img"), place.path("disk"));
        run(&["truncate", "-s", size, image.to_str().unwrap()]);
        run(&[&format!("mkfs.{fs}"), "-q", image.to_str().unwrap()]);
        std::fs::create_dir(&disk).unwrap();
        // another program that tries the same number of a loop device claims it for a moment
        super::eventually("the disk is mounted", || {
            let mounted = Command::new("mount").args(["-o", "loop"]).args([&image, &disk]).output().unwrap();
            mounted.status.success().then_some(())
        });
        place
    }

    /// A path below the place.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    /// The pool's directory that [`Place::pool`] names.
    pub fn pool_directory(&self) -> PathBuf {
        self.path("disk/pool")
    }

    /// Writes pools.yaml with one pool named `p` on the place's disk, and answers where. `more` is YAML of the entry.
    pub fn pool(&self, more: &str) -> PathBuf {
        let config = self.path("pools.yaml");
        let directory = self.pool_directory();
        std::fs::write(&config, format!("pools:\n- name: p\n  dir: {{ path: {} }}\n{more}", directory.display()))
            .unwrap();
        config
    }

    /// All that is below the place and can be left over.
    pub fn inventory(&self) -> Inventory {
        Inventory::take(&self.root)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // deepest first; a loop device may hold a mount and be held by one, and a killed server takes a moment to let go
        for _ in 0..100 {
            let left = self.inventory();
            if left.all_mounts.is_empty() && left.all_loops.is_empty() {
                break;
            }
            for mount in left.all_mounts.iter().rev() {
                let _ = Command::new("umount").arg(mount).output();
            }
            // one that goes by itself may be gone, and its number be somebody else's
            for device in &left.lasting_loops {
                let _ = Command::new("losetup").args(["-d", device]).output();
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let left = self.inventory();
        let _ = Command::new("umount").arg(&self.root).output();
        if left.all_mounts.is_empty() && left.all_loops.is_empty() {
            let _ = std::fs::remove_dir_all(&self.root);
        } else {
            eprintln!("left behind, to be removed by hand: {left:?}");
        }
    }
}

/// Runs a tool that must succeed, and answers what it printed.
pub fn run(argv: &[&str]) -> String {
    let done = Command::new(argv[0]).args(&argv[1..]).output().unwrap_or_else(|error| panic!("{argv:?}: {error}"));
    assert!(done.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}
