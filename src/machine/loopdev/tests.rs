#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Mutex;

use super::*;
use crate::domain::FsType;
use crate::domain::size::MIB;
use crate::machine::file::{self, allocated_bytes, direct_io_sector};
use crate::machine::testing::{TestDir, TestFs, eventually, run};

const READ_WRITE: Attach = Attach { read_only: false, sector: 4096, discard: true };

/// Held by tests that forbid discard, because the next one to be given their number notices.
static FORBIDDING: Mutex<()> = Mutex::new(());

/// Detaches the device, whatever happened. Not with losetup: by then the number may be another test's.
struct Attached(LoopDevice);

impl Attached {
    fn new(backing: &Path, how: &Attach) -> Attached {
        Attached(LoopDevice::attach(backing, how).unwrap())
    }

    fn status(&self) -> Option<Status> {
        self.0.status().unwrap()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// A file of this size, of zeros.
fn file_of(path: &Path, size: u64) -> File {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    file.set_len(size).unwrap();
    file
}

fn numbers(devices: &[LoopDevice]) -> Vec<u32> {
    devices.iter().map(LoopDevice::number).collect()
}

fn is_busy(result: Result<(), LoopError>) -> bool {
    matches!(result, Err(LoopError::Busy { .. }))
}

#[test]
fn an_attached_file_is_what_was_asked_for() {
    for fs in FsType::ALL {
        let test = TestFs::new(fs, fs.smallest().max(64 * MIB));
        let path = test.join("piece");
        file_of(&path, 8 * MIB);
        for how in [
            Attach { read_only: false, sector: 512, discard: true },
            Attach { read_only: true, sector: 512, discard: true },
            Attach { read_only: false, sector: 4096, discard: true },
        ] {
            let device = Attached::new(&path, &how);
            let expected = Status {
                backing: FileId::at(&path).unwrap(),
                backing_path: path.clone(),
                read_only: how.read_only,
                direct_io: true,
                auto_clear: false,
                sector: how.sector,
                size: 8 * MIB,
            };
            assert_eq!(device.status(), Some(expected), "{fs:?} {how:?}");
            let node = OpenOptions::new().write(true).open(device.0.path()).unwrap();
            assert_eq!(node.write_at(&[1; 4096], 0).is_err(), how.read_only, "{fs:?} {how:?}");
            node.sync_all().unwrap();
            drop(node);
            device.0.detach().unwrap();
            assert_eq!(device.status(), None);
            device.0.detach().unwrap();
        }
    }
}

#[test]
fn direct_io_that_is_not_possible_is_an_error_and_leaves_nothing() {
    for fs in [FsType::Ext4, FsType::Xfs] {
        let test = TestFs::with_sector(fs, fs.smallest().max(64 * MIB), 4096);
        let path = test.join("piece");
        file_of(&path, MIB);
        let error = LoopDevice::attach(&path, &Attach { read_only: false, sector: 512, discard: true }).unwrap_err();
        assert!(matches!(error, LoopError::DirectIoOff { sector: 512, .. }), "{fs:?}: {error}");
        assert!(LoopDevice::find(FileId::at(&path).unwrap()).unwrap().is_empty());
    }
}

#[test]
fn a_cloned_file_is_attached_in_the_sector_that_the_file_system_says() {
    let test = TestFs::new(FsType::Xfs, FsType::Xfs.smallest());
    let path = test.join("piece");
    let piece = file_of(&path, MIB);
    piece.write_all_at(&[1; 8192], 0).unwrap();
    file::clone_into(&piece, &file_of(&test.join("clone"), 0)).unwrap();
    let least = direct_io_sector(&piece).unwrap().unwrap();
    for sector in [512, 4096] {
        let attached = LoopDevice::attach(&path, &Attach { read_only: false, sector, discard: true });
        assert_eq!(attached.is_ok(), sector >= least, "sector {sector}, least {least}");
        attached.map_or(Ok(()), |device| device.detach()).unwrap();
    }
}

#[test]
fn a_device_is_found_by_its_file_under_any_path() {
    for fs in FsType::ALL {
        let test = TestFs::new(fs, fs.smallest().max(64 * MIB));
        let (path, other) = (test.join("piece"), test.join("other"));
        file_of(&path, MIB);
        file_of(&other, MIB);
        let id = FileId::at(&path).unwrap();
        let _other = Attached::new(&other, &READ_WRITE);
        assert!(LoopDevice::find(id).unwrap().is_empty(), "{fs:?}");
        let devices = [Attached::new(&path, &READ_WRITE), Attached::new(&path, &READ_WRITE)];
        let mut expected: Vec<u32> = devices.iter().map(|device| device.0.number()).collect();
        expected.sort_unstable();
        fs::rename(&path, test.join("renamed")).unwrap();
        assert_eq!(numbers(&LoopDevice::find(id).unwrap()), expected, "{fs:?}");
        fs::remove_file(test.join("renamed")).unwrap();
        assert_eq!(numbers(&LoopDevice::find(id).unwrap()), expected, "{fs:?}");
        assert!(devices[0].status().unwrap().backing_path.to_str().unwrap().ends_with("renamed (deleted)"));
    }
}

#[test]
fn files_of_one_inode_number_in_two_subvolumes_are_not_confused() {
    let test = TestFs::new(FsType::Btrfs, FsType::Btrfs.smallest());
    let attached = ["one", "two"].map(|name| {
        run(Command::new("btrfs").args(["subvolume", "create"]).arg(test.join(name)));
        let path = test.join(name).join("piece");
        file_of(&path, MIB);
        (FileId::at(&path).unwrap(), Attached::new(&path, &READ_WRITE))
    });
    assert_eq!(attached[0].0.inode, attached[1].0.inode);
    for (id, device) in &attached {
        assert_eq!(numbers(&LoopDevice::find(*id).unwrap()), [device.0.number()]);
    }
}

#[test]
fn a_device_over_a_device_is_found() {
    let dir = TestDir::new();
    file_of(&dir.join("piece"), MIB);
    let below = Attached::new(&dir.join("piece"), &READ_WRITE);
    let above = Attached::new(&below.0.path(), &READ_WRITE);
    let id = FileId::at(&below.0.path()).unwrap();
    assert_eq!(numbers(&LoopDevice::find(id).unwrap()), [above.0.number()]);
    assert!(is_busy(below.0.detach()));
    above.0.detach().unwrap();
    below.0.detach().unwrap();
}

#[test]
fn a_device_that_is_open_stays_attached() {
    let dir = TestDir::new();
    file_of(&dir.join("piece"), MIB);
    let device = Attached::new(&dir.join("piece"), &READ_WRITE);
    let user = File::open(device.0.path()).unwrap();
    assert!(!device.0.in_use().unwrap());
    assert!(is_busy(device.0.detach()));
    assert!(!device.status().unwrap().auto_clear);
    drop(user);
    // its user's close does not take it away
    assert!(device.status().is_some());
    device.0.detach().unwrap();
    assert_eq!(device.status(), None);
}

#[test]
fn a_short_look_at_the_device_does_not_stop_a_detach() {
    let dir = TestDir::new();
    file_of(&dir.join("piece"), MIB);
    let device = Attached::new(&dir.join("piece"), &READ_WRITE);
    let user = File::open(device.0.path()).unwrap();
    let closer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(user);
    });
    device.0.detach().unwrap();
    assert_eq!(device.status(), None);
    closer.join().unwrap();
}

#[test]
fn a_mounted_device_stays_attached_until_its_unmount() {
    let dir = TestDir::new();
    let (image, point) = (dir.join("image"), dir.join("mounted"));
    file_of(&image, 16 * MIB);
    fs::create_dir(&point).unwrap();
    let device = Attached::new(&image, &READ_WRITE);
    run(Command::new("mkfs.ext4").arg("-q").arg(device.0.path()));
    run(Command::new("mount").args([&device.0.path(), &point]));
    let answers = (device.0.in_use(), device.0.detach());
    device.0.release_at_last_close().unwrap();
    let still = device.status();
    run(Command::new("umount").arg(&point));
    assert!(answers.0.unwrap());
    assert!(is_busy(answers.1));
    assert!(still.unwrap().auto_clear);
    assert_eq!(device.status(), None);
}

#[test]
fn a_claimed_device_is_in_use() {
    let dir = TestDir::new();
    file_of(&dir.join("piece"), MIB);
    let device = Attached::new(&dir.join("piece"), &READ_WRITE);
    assert!(!device.0.in_use().unwrap());
    let claim = device.0.open(OFlags::RDONLY | OFlags::EXCL).unwrap();
    assert!(device.0.in_use().unwrap());
    assert!(is_busy(device.0.detach()));
    drop(claim);
    assert!(eventually(|| !device.0.in_use().unwrap()));
}

#[test]
fn a_number_that_is_bound_to_another_file_meanwhile_is_not_touched() {
    let dir = TestDir::new();
    file_of(&dir.join("ours"), MIB);
    file_of(&dir.join("theirs"), MIB);
    let theirs = Attached::new(&dir.join("theirs"), &READ_WRITE);
    let ours = FileId::at(&dir.join("ours")).unwrap();
    let stale = LoopDevice { number: theirs.0.number(), backing: Some(ours) };
    assert_eq!(stale.status().unwrap(), None);
    stale.detach().unwrap();
    stale.release_at_last_close().unwrap();
    for change in [stale.forbid_discard(), stale.set_read_ahead_kib(4), stale.flush(), stale.refresh_size().map(|_| ())]
    {
        assert!(matches!(change, Err(LoopError::Gone { .. })), "{change:?}");
    }
    assert!(theirs.status().is_some());
}

#[test]
fn numbers_that_do_not_exist_are_unbound() {
    let device = LoopDevice::of_number(1_000_000);
    assert_eq!(device.status().unwrap(), None);
    assert!(!device.in_use().unwrap());
    device.detach().unwrap();
    device.release_at_last_close().unwrap();
    assert!(matches!(device.refresh_size(), Err(LoopError::Gone { .. })));
    assert!(matches!(device.dev(), Err(LoopError::Sysfs { .. })));
}

#[test]
fn somebody_who_sits_on_the_free_device_does_not_stop_an_attach() {
    let dir = TestDir::new();
    file_of(&dir.join("piece"), MIB);
    let control = File::open(CONTROL).unwrap();
    let free = LoopDevice::of_number(ioctls::free_number(&control).unwrap());
    let _claim = free.open(OFlags::RDONLY | OFlags::EXCL);
    let device = Attached::new(&dir.join("piece"), &READ_WRITE);
    assert!(device.status().is_some());
}

#[test]
fn many_attach_at_once_and_each_gets_its_own() {
    let dir = TestDir::new();
    let attach = |name: usize| {
        let path = dir.join(&name.to_string());
        file_of(&path, MIB);
        Attached::new(&path, &READ_WRITE)
    };
    let devices: Vec<Attached> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..24).map(|name| scope.spawn(move || attach(name))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (name, device) in devices.iter().enumerate() {
        assert_eq!(device.status().unwrap().backing_path, dir.join(&name.to_string()));
    }
    std::thread::scope(|scope| {
        for device in &devices {
            scope.spawn(move || device.0.detach().unwrap());
        }
    });
    assert!(devices.iter().all(|device| device.0.backing.is_some_and(|id| LoopDevice::find(id).unwrap().is_empty())));
}

#[test]
fn a_missing_node_is_made() {
    /// Moves a node away, and back over whatever is there then.
    struct Hidden(PathBuf, PathBuf);
    impl Drop for Hidden {
        fn drop(&mut self) {
            fs::rename(&self.1, &self.0).unwrap();
        }
    }
    let dir = TestDir::new();
    file_of(&dir.join("piece"), MIB);
    let device = Attached::new(&dir.join("piece"), &READ_WRITE);
    let hidden = Hidden(device.0.path(), device.0.path().with_extension("hidden"));
    fs::rename(&hidden.0, &hidden.1).unwrap();
    assert!(device.status().is_some());
    drop(hidden);
    device.0.detach().unwrap();
}

#[test]
fn a_grown_file_is_a_grown_device() {
    let dir = TestDir::new();
    let file = file_of(&dir.join("piece"), MIB);
    let device = Attached::new(&dir.join("piece"), &READ_WRITE);
    file.set_len(3 * MIB).unwrap();
    assert_eq!(device.status().unwrap().size, MIB);
    assert_eq!(device.0.refresh_size().unwrap(), 3 * MIB);
    assert_eq!(device.status().unwrap().size, 3 * MIB);
}

#[test]
fn flushed_bytes_are_in_the_file_and_fresh_ones_are_seen() {
    for fs in FsType::ALL {
        let test = TestFs::new(fs, fs.smallest().max(64 * MIB));
        let file = file_of(&test.join("piece"), MIB);
        let device = Attached::new(&test.join("piece"), &READ_WRITE);
        OpenOptions::new().write(true).open(device.0.path()).unwrap().write_all(&[7; 4096]).unwrap();
        device.0.flush().unwrap();
        let mut seen = [0; 4096];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, [7; 4096], "{fs:?}");
        file.write_all_at(&[8; 4096], 0).unwrap();
        device.0.flush().unwrap();
        File::open(device.0.path()).unwrap().read_exact(&mut seen).unwrap();
        assert_eq!(seen, [8; 4096], "{fs:?}");
    }
}

#[test]
fn without_discard_blocks_stay_and_zeroing_still_works() {
    let _alone = FORBIDDING.lock();
    let test = TestFs::new(FsType::Ext4, 64 * MIB);
    let file = file_of(&test.join("piece"), 8 * MIB);
    file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
    file::reserve(&file, 0..8 * MIB).unwrap();
    let device = Attached::new(&test.join("piece"), &Attach { discard: false, ..READ_WRITE });
    let full = allocated_bytes(&file).unwrap();
    let node = OpenOptions::new().write(true).open(device.0.path()).unwrap();
    assert!(file::punch(&node, 0..MIB).is_err());
    file::zero_range(&node, 0..MIB).unwrap();
    device.0.flush().unwrap();
    assert_eq!(allocated_bytes(&file).unwrap(), full);
    let mut seen = vec![1; 1 << 20];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen.iter().all(|byte| *byte == 0));
}

#[test]
fn with_discard_blocks_are_given_back_whoever_had_the_number_before() {
    let _alone = FORBIDDING.lock();
    let test = TestFs::new(FsType::Ext4, 64 * MIB);
    let path = test.join("piece");
    let file = file_of(&path, 8 * MIB);
    let punches = |device: &LoopDevice| {
        file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
        file.sync_all().unwrap();
        let full = allocated_bytes(&file).unwrap();
        let node = OpenOptions::new().write(true).open(device.path()).unwrap();
        file::punch(&node, 0..MIB).is_ok() && allocated_bytes(&file).unwrap() < full
    };
    let device = Attached::new(&path, &READ_WRITE);
    assert!(punches(&device.0));
    device.0.forbid_discard().unwrap();
    assert!(!punches(&device.0));
    assert!(device.0.is_worn().unwrap());
    // the kernel detaches it and keeps the limit; the next attach is most likely given the same number
    device.0.release_at_last_close().unwrap();
    let next = Attached::new(&path, &READ_WRITE);
    assert!(punches(&next.0), "{:?} after {:?}", next.0, device.0);
    // a detach of ours takes the limit away
    next.0.forbid_discard().unwrap();
    next.0.detach().unwrap();
    assert!(!next.0.is_worn().is_ok_and(|is_worn| is_worn));
}

#[test]
fn read_ahead_is_set() {
    let dir = TestDir::new();
    file_of(&dir.join("piece"), MIB);
    let device = Attached::new(&dir.join("piece"), &READ_WRITE);
    device.0.set_read_ahead_kib(256).unwrap();
    assert_eq!(fs::read_to_string(device.0.sysfs("queue/read_ahead_kb")).unwrap().trim(), "256");
}

#[test]
fn a_device_is_known_by_path_and_by_device_number() {
    for (path, number) in [
        ("/dev/loop0", Some(0)),
        ("/dev/loop17", Some(17)),
        ("/dev/loop", None),
        ("/dev/loop-control", None),
        ("/dev/loop+1", None),
        ("/dev/loop1p1", None),
        ("/dev/sda", None),
        ("/run/loop1", None),
        ("/dev/loop99999999999", None),
    ] {
        assert_eq!(LoopDevice::from_path(Path::new(path)).map(|device| device.number()), number, "{path}");
    }
    let dir = TestDir::new();
    file_of(&dir.join("piece"), MIB);
    let device = Attached::new(&dir.join("piece"), &READ_WRITE);
    let again = LoopDevice::of_device(device.0.dev().unwrap()).unwrap();
    assert_eq!(again.number(), device.0.number());
    // /dev/null's numbers are no block device's
    assert!(LoopDevice::of_device((1, 1_000_003)).is_none());
}
