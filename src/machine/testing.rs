//! Real directories and file systems for tests, which go when the test ends, however it ends.
#![allow(clippy::unwrap_used, clippy::new_without_default)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::domain::FsType;

/// A directory with a name of its own under the system's temporary one; goes with all that is in it.
pub struct TestDir(PathBuf);

impl TestDir {
    /// Makes it.
    pub fn new() -> TestDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cistern-test-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        TestDir(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("left behind: {}: {error}", self.0.display());
        }
    }
}

/// A file system of its own, mounted from an image through a loop device, made with the machine's tools and not with the
/// code under test. All of it goes with the value.
pub struct TestFs {
    mount_point: PathBuf,
    // dropped after the unmount
    _dir: TestDir,
}

impl TestFs {
    /// Makes and mounts one of this size in bytes on a device with sectors of 512 bytes.
    pub fn new(fs: FsType, size: u64) -> TestFs {
        TestFs::with_sector(fs, size, 512)
    }

    /// As [`TestFs::new`], on a device with sectors of this size in bytes.
    pub fn with_sector(fs: FsType, size: u64, sector: u32) -> TestFs {
        let dir = TestDir::new();
        let (image, mount_point) = (dir.join("image"), dir.join("mounted"));
        File::create(&image).unwrap().set_len(size).unwrap();
        fs::create_dir(&mount_point).unwrap();
        let device = attach(&image, sector);
        let detach = Detach(device.clone());
        // XFS and Btrfs ask for -f before they write over something, ext4 for -F
        let force = if fs == FsType::Ext4 { "-F" } else { "-f" };
        run_while_busy(Command::new(format!("mkfs.{}", fs.as_str())).args(["-q", force, &device]));
        run_while_busy(Command::new("mount").args(["-t", fs.as_str(), &device]).arg(&mount_point));
        let mounted = TestFs { mount_point, _dir: dir };
        // the mount holds it now: the kernel detaches it at the unmount
        drop(detach);
        mounted
    }

    /// The root of the file system.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// The path of something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.mount_point.join(name)
    }
}

impl Drop for TestFs {
    fn drop(&mut self) {
        let is_unmounted = |how: &str| {
            let umount = Command::new("umount").arg(how).arg(&self.mount_point).output();
            umount.is_ok_and(|output| output.status.success())
        };
        // what keeps it busy is a bug of the test, and must not be what is left of it
        if !is_unmounted("--recursive") && !is_unmounted("--lazy") {
            eprintln!("left behind: the mount at {}", self.mount_point.display());
        }
    }
}

/// Detaches a loop device with losetup.
struct Detach(String);

impl Drop for Detach {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// Attaches the image and gives the device. Tried again, because losetup gives up when the number that it was given is
/// taken away by another test.
fn attach(image: &Path, sector: u32) -> String {
    let attach = || {
        let options = ["--find", "--show", "--sector-size", &sector.to_string()];
        let output = Command::new("losetup").args(options).arg(image).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    (0..10).find_map(|_| attach()).unwrap()
}

/// Waits, for a second at most, until it is so. For what is free only when a child of another test, which has all of this
/// process's files open between its fork and its exec, has let go of them too.
pub fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        is_so()
    })
}

/// Runs a command that must succeed, again while its device is busy: another program that tries a number that was free a
/// moment ago claims it for that moment.
fn run_while_busy(command: &mut Command) {
    let is_done = eventually(|| {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("busy"), "{command:?}: {said}");
        output.status.success()
    });
    assert!(is_done, "{command:?}: busy for a second");
}

/// Runs a command that must succeed, and gives what it printed, trimmed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
