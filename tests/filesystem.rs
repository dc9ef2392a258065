//! File systems with the real kernel: made, told apart, given an identity of their own, grown. Needs root and loop devices.
//!
//! Mounts and loop devices of the tests are made with the machine's tools, not with the code under test.
#![allow(clippy::unwrap_used)]

#[path = "support/rights.rs"]
mod rights;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cistern::domain::{FsType, Uuid};
use cistern::machine::filesystem::{AdoptError, GrowError, MakeError, adopt, grow, make, replay};
use cistern::machine::probe::{Signature, probe};
use cistern::machine::supervisor;

const CISTERN: &str = env!("CARGO_BIN_EXE_cistern");
const MIB: u64 = 1 << 20;
const SECTOR: u32 = 512;

/// A directory of its own with images, mounts and the lock; all of it goes at the end, also of a test that fails.
struct Place {
    directory: PathBuf,
    lock: File,
}

impl Place {
    fn new() -> Place {
        static ONCE: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ONCE.call_once(|| supervisor::set_program(CISTERN.into()));
        let name = format!("cistern-filesystem-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        let lock = File::create(directory.join("lock")).unwrap();
        lock.lock().unwrap();
        Place { directory, lock }
    }

    /// An image of zeros.
    fn image(&self, name: &str, size: u64) -> PathBuf {
        let path = self.directory.join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    /// An image with a file system.
    fn made(&self, name: &str, fs: FsType, size: u64, sector: u32) -> (PathBuf, Uuid) {
        let (path, uuid) = (self.image(name, size), random());
        make(&path, fs, sector, &uuid, &self.lock).unwrap();
        (path, uuid)
    }

    /// What a snapshot is: the image as it is at this moment. It shares no blocks, since on XFS direct I/O would then
    /// take 4096 bytes at the least, not a [`SECTOR`].
    fn copy(&self, image: &Path, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        run("cp", &["--reflink=never".as_ref(), "--sparse=always".as_ref(), image.as_ref(), path.as_ref()]);
        path
    }

    fn mount(&self, image: &Path) -> Mounted {
        Mounted::new(image, SECTOR)
    }

    fn adopt(&self, image: &Path, fs: FsType) -> Uuid {
        let uuid = random();
        adopt(image, fs, SECTOR, &uuid, &self.lock).unwrap();
        assert_eq!(uuid_of(image), uuid);
        uuid
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("left behind: {}: {error}", self.directory.display());
        }
    }
}

/// A loop device.
struct Attached(String);

impl Attached {
    fn new(image: &Path) -> Attached {
        Attached(run("losetup", &["--find".as_ref(), "--show".as_ref(), image.as_ref()]).trim().to_owned())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        run("losetup", &["-d".as_ref(), self.0.as_ref()]);
    }
}

/// A mounted image; the loop device goes with the mount.
struct Mounted {
    path: PathBuf,
    device: String,
}

impl Mounted {
    fn new(image: &Path, sector: u32) -> Mounted {
        let path = image.with_extension("mounted");
        fs::create_dir(&path).unwrap();
        let sector = format!("--sector-size={sector}");
        let device = run("losetup", &["--find".as_ref(), "--show".as_ref(), sector.as_ref(), image.as_ref()]);
        let device = device.trim().to_owned();
        let mounted = Command::new("mount").arg(&device).arg(&path).status().unwrap().success();
        // detached with the last user: the mount, or nobody
        run("losetup", &["-d".as_ref(), device.as_ref()]);
        assert!(mounted, "mount {}", image.display());
        Mounted { path, device }
    }

    fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file that lasts, by itself: in btrfs that goes to the log tree.
    fn write(&self, name: &str, content: &str) {
        let path = self.join(name);
        fs::write(&path, content).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.path).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "left behind: {}", self.path.display());
        let _ = fs::remove_dir(&self.path);
    }
}

fn run(tool: &str, args: &[&std::ffi::OsStr]) -> String {
    let output = Command::new(tool).args(args).output().unwrap();
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn random() -> Uuid {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    Uuid::from_random(bytes)
}

fn uuid_of(image: &Path) -> Uuid {
    match probe(&File::open(image).unwrap()).unwrap() {
        Signature::Filesystem(found) => found.uuid,
        other => panic!("{}: {other:?}", image.display()),
    }
}

/// How many bytes of the image are data, holes left out.
fn data(image: &Path) -> u64 {
    image.metadata().unwrap().blocks() * 512
}

/// The smallest that each can be made and grown.
fn smallest(fs: FsType) -> u64 {
    fs.smallest().max(8 * MIB)
}

/// Asks the file system's own checker, which changes nothing.
fn check(image: &Path, fs: FsType) {
    let image = image.as_ref();
    match fs {
        FsType::Ext4 => run("e2fsck", &["-f".as_ref(), "-n".as_ref(), image]),
        FsType::Xfs => run("xfs_repair", &["-n".as_ref(), "-f".as_ref(), image]),
        FsType::Btrfs => run("btrfs", &["check".as_ref(), "--readonly".as_ref(), image]),
    };
}

#[test]
fn each_is_made_told_apart_and_mounted() {
    let place = Place::new();
    for fs in FsType::ALL {
        for (size, sector) in [(smallest(fs), 512), (1024 * MIB, 512), (1024 * MIB, 4096), (1024 * 1024 * MIB, 512)] {
            let (image, uuid) = place.made(&format!("{fs}-{size}-{sector}"), fs, size, sector);
            // XFS takes a log that grows with it, the others next to nothing
            let most = if fs == FsType::Xfs { size / 1024 + 70 * MIB } else { size / 10_000 + 5 * MIB };
            assert!(data(&image) < most, "{fs} {size}: {} bytes written", data(&image));
            let Signature::Filesystem(found) = probe(&File::open(&image).unwrap()).unwrap() else { panic!("{fs}") };
            assert_eq!((found.fs, found.uuid, found.size, found.dirty), (fs, uuid, size, fs == FsType::Xfs));
            let mounted = Mounted::new(&image, sector);
            mounted.write("file", "content");
            drop(mounted);
            if size < 1 << 40 {
                check(&image, fs);
            }
            fs::remove_file(image).unwrap();
        }
    }
}

#[test]
fn ten_mib_are_enough_for_ext4() {
    let place = Place::new();
    let (image, _) = place.made("ten", FsType::Ext4, 10 * MIB, SECTOR);
    let mounted = place.mount(&image);
    fs::write(mounted.join("file"), vec![1; 4 << 20]).unwrap();
}

#[test]
fn ext4_without_room_for_a_journal_is_an_error() {
    let place = Place::new();
    let image = place.image("tiny", 4 * MIB);
    let made = make(&image, FsType::Ext4, SECTOR, &random(), &place.lock);
    assert!(matches!(made, Err(MakeError::Otherwise { .. })), "{made:?}");
}

#[test]
fn a_tool_that_says_no_is_quoted() {
    let place = Place::new();
    let image = place.image("small", 10 * MIB);
    let error = make(&image, FsType::Xfs, SECTOR, &random(), &place.lock).unwrap_err();
    let MakeError::Tool { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().starts_with("mkfs.xfs exited with 1: "), "{source}");
}

#[test]
fn source_clone_and_restore_are_mounted_together() {
    let place = Place::new();
    for fs in FsType::ALL {
        let (source, uuid) = place.made(&format!("{fs}-source"), fs, smallest(fs).max(64 * MIB), SECTOR);
        let mounted = place.mount(&source);
        mounted.write("first", "one");
        run("sync", &["-f".as_ref(), mounted.path.as_ref()]);
        mounted.write("second", "two");
        // deleted, but open: an orphan that the replay removes
        let orphan = File::create(mounted.join("orphan")).unwrap();
        orphan.sync_all().unwrap();
        fs::remove_file(mounted.join("orphan")).unwrap();
        mounted.write("third", "three");
        let (clone, restore) =
            (place.copy(&source, &format!("{fs}-clone")), place.copy(&source, &format!("{fs}-restore")));
        let Signature::Filesystem(found) = probe(&File::open(&clone).unwrap()).unwrap() else { panic!("{fs}") };
        assert!(found.dirty && found.uuid == uuid, "{found:?}");

        place.adopt(&clone, fs);
        place.adopt(&restore, fs);
        let others = [place.mount(&clone), place.mount(&restore)];
        for other in &others {
            for (name, content) in [("first", "one"), ("second", "two"), ("third", "three")] {
                assert_eq!(fs::read_to_string(other.join(name)).unwrap(), content, "{fs} {name}");
            }
            assert!(!other.join("orphan").exists());
            other.write("own", &other.device);
        }
        // each one's writes are its own
        assert!(!mounted.join("own").exists());
        for other in &others {
            assert_eq!(fs::read_to_string(other.join("own")).unwrap(), other.device);
        }

        // a clone of the clone, while all of them are mounted
        let second = place.copy(&clone, &format!("{fs}-second"));
        place.adopt(&second, fs);
        let third = place.mount(&second);
        assert_eq!(fs::read_to_string(third.join("own")).unwrap(), others[0].device);
        drop((orphan, mounted, others, third));
        for image in [&source, &clone, &restore, &second] {
            check(image, fs);
        }
        assert_eq!(uuid_of(&source), uuid);
    }
}

/// As a logical volume is.
#[test]
fn a_clone_may_be_a_block_device() {
    let place = Place::new();
    for fs in FsType::ALL {
        let (source, _) = place.made(&format!("{fs}-source"), fs, smallest(fs), SECTOR);
        let mounted = place.mount(&source);
        mounted.write("file", "content");
        let clone = place.copy(&source, &format!("{fs}-clone"));
        let device = Attached::new(&clone);
        let uuid = place.adopt(Path::new(&device.0), fs);
        drop(device);
        assert_eq!(uuid_of(&clone), uuid);
        check(&clone, fs);
        assert_eq!(fs::read_to_string(place.mount(&clone).join("file")).unwrap(), "content");
    }
}

#[test]
fn adopting_again_changes_nothing() {
    let place = Place::new();
    for fs in FsType::ALL {
        let (image, _) = place.made(fs.as_str(), fs, smallest(fs), SECTOR);
        let uuid = place.adopt(&image, fs);
        let before = run("sha256sum", &[image.as_ref()]);
        adopt(&image, fs, SECTOR, &uuid, &place.lock).unwrap();
        assert_eq!(run("sha256sum", &[image.as_ref()]), before, "{fs}");
    }
}

/// Copies a range of bytes from one image to another.
fn transplant(from: &Path, to: &Path, offset: u64, length: usize) {
    let mut bytes = vec![0; length];
    File::open(from).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    File::options().write(true).open(to).unwrap().write_all_at(&bytes, offset).unwrap();
}

/// A power cut can end the change of a UUID anywhere: whatever of the new is there, adopting again finishes it.
#[test]
fn a_change_that_was_cut_in_two_is_finished() {
    let place = Place::new();
    let cases: [(FsType, &[(u64, usize)]); 6] = [
        // the log, at block 6 of the third of four groups of 75 MiB: 64 MiB
        (FsType::Xfs, &[(2 * 75 * MIB + 6 * 4096, 64 << 20)]),
        // the log, and the superblock that counts
        (FsType::Xfs, &[(2 * 75 * MIB + 6 * 4096, 64 << 20), (0, 512)]),
        // that and a second superblock
        (FsType::Xfs, &[(2 * 75 * MIB + 6 * 4096, 64 << 20), (0, 512), (75 * MIB, 512)]),
        // a superblock came to the disk before the log
        (FsType::Xfs, &[(150 * MIB, 512)]),
        // a copy of btrfs's superblock is written first
        (FsType::Btrfs, &[(64 * MIB, 4096)]),
        (FsType::Ext4, &[]),
    ];
    for (number, (fs, parts)) in cases.into_iter().enumerate() {
        let (image, _) = place.made(&format!("{fs}-{number}"), fs, smallest(fs), SECTOR);
        place.mount(&image).write("file", "content");
        let new = random();
        let whole = place.copy(&image, &format!("{fs}-{number}-whole"));
        adopt(&whole, fs, SECTOR, &new, &place.lock).unwrap();
        for (offset, length) in parts {
            transplant(&whole, &image, *offset, *length);
        }
        adopt(&image, fs, SECTOR, &new, &place.lock).unwrap_or_else(|error| panic!("{fs} {parts:?}: {error:?}"));
        assert_eq!(uuid_of(&image), new);
        check(&image, fs);
        assert_eq!(fs::read_to_string(place.mount(&image).join("file")).unwrap(), "content");
    }
}

#[test]
fn what_is_not_the_file_system_is_not_touched() {
    let place = Place::new();
    let (image, uuid) = place.made("other", FsType::Ext4, 16 * MIB, SECTOR);
    for fs in [FsType::Xfs, FsType::Btrfs] {
        let adopted = adopt(&image, fs, SECTOR, &random(), &place.lock);
        assert!(matches!(adopted, Err(AdoptError::NotThere { .. })), "{adopted:?}");
    }
    assert_eq!(uuid_of(&image), uuid);
}

#[test]
fn a_replay_that_is_killed_leaves_nothing_that_the_next_one_minds() {
    let place = Place::new();
    let (source, _) = place.made("source", FsType::Xfs, smallest(FsType::Xfs), SECTOR);
    let mounted = place.mount(&source);
    mounted.write("file", "content");
    let clone = place.copy(&source, "clone");
    for milliseconds in 0..30 {
        let mut replay = Command::new(CISTERN);
        replay.arg(replay::WORD).arg(&clone).args(["xfs", "512"]).stderr(Stdio::null());
        let mut replay = replay.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        replay.kill().unwrap();
        replay.wait().unwrap();
    }
    place.adopt(&clone, FsType::Xfs);
    assert_eq!(run("losetup", &["-j".as_ref(), clone.as_ref()]), "");
    assert_eq!(fs::read_to_string(place.mount(&clone).join("file")).unwrap(), "content");
}

#[test]
fn a_mounted_file_system_grows_to_its_device() {
    let place = Place::new();
    for fs in FsType::ALL {
        // the kernel resizes no btrfs to less than 256 MiB
        let from = if fs == FsType::Btrfs { 256 * MIB } else { smallest(fs) };
        let (image, _) = place.made(fs.as_str(), fs, from, SECTOR);
        let mounted = place.mount(&image);
        mounted.write("file", "content");
        assert_eq!(grow(&mounted.path).unwrap(), from, "{fs}");
        if fs == FsType::Ext4 && !rights::may_grow_ext4() {
            // as in some containers; then this row shows the error, and a host with all rights the growth
            File::options().write(true).open(&image).unwrap().set_len(1024 * MIB).unwrap();
            run("losetup", &["-c".as_ref(), mounted.device.as_ref()]);
            assert!(matches!(grow(&mounted.path), Err(GrowError::Kernel { device, .. }) if device == 1024 * MIB));
            continue;
        }
        for size in [from + 4 * MIB, 1024 * MIB, 1024 * MIB + 512, 5000 * MIB] {
            File::options().write(true).open(&image).unwrap().set_len(size).unwrap();
            run("losetup", &["-c".as_ref(), mounted.device.as_ref()]);
            let grown = grow(&mounted.path).unwrap();
            // an ext4 takes no group of less than some blocks
            assert!(grown <= size && size - grown < 4 * MIB, "{fs}: {grown} of {size}");
            assert_eq!(grow(&mounted.path).unwrap(), grown, "{fs}");
            let Signature::Filesystem(found) = probe(&File::open(&mounted.device).unwrap()).unwrap() else { panic!() };
            if fs == FsType::Ext4 {
                assert_eq!(found.size, grown);
            }
        }
        fs::write(mounted.join("large"), vec![1; 32 << 20]).unwrap();
        assert_eq!(fs::read_to_string(mounted.join("file")).unwrap(), "content");
        drop(mounted);
        check(&image, fs);
        // much larger at once; the checkers take too long for that
        File::options().write(true).open(&image).unwrap().set_len(1024 * 1024 * MIB).unwrap();
        let mounted = place.mount(&image);
        assert_eq!(grow(&mounted.path).unwrap(), 1024 * 1024 * MIB, "{fs}");
        assert_eq!(fs::read_to_string(mounted.join("file")).unwrap(), "content");
    }
}

#[test]
fn only_a_mount_of_ours_grows() {
    let place = Place::new();
    let error = grow(&place.directory).unwrap_err();
    assert!(matches!(error, GrowError::NotMounted { .. }), "{error:?}");
    let error = grow(Path::new("/proc")).unwrap_err();
    assert!(matches!(error, GrowError::Foreign { .. }), "{error:?}");
    let error = grow(&place.directory.join("absent")).unwrap_err();
    assert!(matches!(error, GrowError::Open { .. }), "{error:?}");
}
