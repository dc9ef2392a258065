#![allow(clippy::unwrap_used)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use super::space::FsKind;
use super::*;
use crate::domain::FsType;
use crate::domain::size::MIB;
use crate::machine::testing::{TestDir, TestFs, eventually};

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// A file whose blocks of 4 KiB each hold their own number, in each byte; 0 stays a hole.
fn blocks(path: &Path, numbers: &[u8]) -> File {
    let file = open(path);
    for (at, number) in (0..).zip(numbers).filter(|(_, number)| **number != 0) {
        file.write_all_at(&[*number; 4096], at * 4096).unwrap();
    }
    file.set_len(numbers.len() as u64 * 4096).unwrap();
    file.sync_all().unwrap();
    file
}

fn ranges(file: &File, from: u64) -> Vec<Range<u64>> {
    data_ranges(file, from).collect::<Result<_, _>>().unwrap()
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn test_fs(fs: FsType) -> TestFs {
    TestFs::new(fs, fs.smallest().max(64 * MIB))
}

#[test]
fn a_file_system_is_recognized_and_says_what_it_can() {
    for (fs, expected_kind, clones) in
        [(FsType::Ext4, FsKind::Ext4, false), (FsType::Xfs, FsKind::Xfs, true), (FsType::Btrfs, FsKind::Btrfs, true)]
    {
        let size = fs.smallest().max(64 * MIB);
        let test = test_fs(fs);
        assert_eq!(kind(test.path()).unwrap(), expected_kind);
        assert_eq!(supports_clone(test.path()).unwrap(), clones, "{fs:?}");
        let space = space(test.path()).unwrap();
        assert!(space.free > size / 4 && space.free <= space.total && space.total <= size, "{fs:?}: {space:?}");
        assert!([1024, 4096].contains(&space.block), "{fs:?}: {space:?}");
    }
    assert_eq!(kind(Path::new("/proc")).unwrap(), FsKind::Other(0x9fa0));
    assert!(matches!(space(Path::new("/not/there")), Err(FileError::Failed { .. })));
}

#[test]
fn the_sector_of_direct_io_is_that_of_the_device_or_the_file_system() {
    for (fs, device, file) in [
        (FsType::Ext4, 512, 512),
        (FsType::Ext4, 4096, 4096),
        (FsType::Xfs, 512, 512),
        (FsType::Xfs, 4096, 4096),
        (FsType::Btrfs, 512, 4096),
        (FsType::Btrfs, 4096, 4096),
    ] {
        let test = TestFs::with_sector(fs, fs.smallest().max(64 * MIB), device);
        let piece = blocks(&test.join("piece"), &[1, 2]);
        assert_eq!(direct_io_sector(&piece).unwrap(), Some(file), "{fs:?} {device}");
        let in_dir = direct_io_sector_in(test.path()).unwrap();
        let shared = supports_clone(test.path()).unwrap().then(|| {
            clone_into(&piece, &open(&test.join("clone"))).unwrap();
            direct_io_sector(&piece).unwrap()
        });
        // the directory's answer holds for clones too
        assert_eq!(in_dir, shared.unwrap_or(Some(file)), "{fs:?} {device}");
    }
    assert_eq!(direct_io_sector(&File::open("/proc/self/status").unwrap()).ok().flatten(), None);
}

#[test]
fn a_clone_has_the_data_and_goes_its_own_way() {
    // Btrfs counts a whole extent as shared as long as any of it is
    for (fs, left_in_clone) in [(FsType::Xfs, 2 * 4096), (FsType::Btrfs, 3 * 4096)] {
        let test = test_fs(fs);
        let origin = blocks(&test.join("origin"), &[1, 2, 0, 3]);
        let clone = open(&test.join("clone"));
        assert_eq!(shared_bytes(&origin).unwrap(), 0, "{fs:?}");
        clone_into(&origin, &clone).unwrap();
        assert_eq!(content(&clone), content(&origin), "{fs:?}");
        assert_eq!((shared_bytes(&origin).unwrap(), shared_bytes(&clone).unwrap()), (3 * 4096, 3 * 4096), "{fs:?}");
        origin.write_all_at(&[9; 4096], 4096).unwrap();
        origin.sync_all().unwrap();
        assert_eq!(content(&clone)[4096], 2, "{fs:?}");
        assert_eq!(
            (shared_bytes(&origin).unwrap(), shared_bytes(&clone).unwrap()),
            (2 * 4096, left_in_clone),
            "{fs:?}"
        );
    }
}

#[test]
fn files_that_cannot_be_cloned_are_told_so() {
    let (ext4, btrfs) = (test_fs(FsType::Ext4), test_fs(FsType::Btrfs));
    let origin = blocks(&ext4.join("origin"), &[1]);
    for copy in [ext4.join("copy"), btrfs.join("copy")] {
        let error = clone_into(&origin, &open(&copy)).unwrap_err();
        assert!(matches!(&error, FileError::Unsupported { path, .. } if *path == copy), "{error}");
    }
    assert_eq!(shared_bytes(&origin).unwrap(), 0);
}

#[test]
fn shared_bytes_are_counted_over_more_extents_than_one_call_gives() {
    let test = test_fs(FsType::Xfs);
    let origin = open(&test.join("origin"));
    let extents = 700;
    for at in 0..extents {
        origin.write_all_at(&[1; 4096], at * 8192).unwrap();
    }
    origin.sync_all().unwrap();
    clone_into(&origin, &open(&test.join("clone"))).unwrap();
    assert_eq!(shared_bytes(&origin).unwrap(), extents * 4096);
}

#[test]
fn nocow_files_of_btrfs_can_be_cloned() {
    let test = test_fs(FsType::Btrfs);
    let (origin, clone, plain) = (open(&test.join("origin")), open(&test.join("clone")), open(&test.join("plain")));
    set_nocow(&origin).unwrap();
    set_nocow(&clone).unwrap();
    blocks(&test.join("origin"), &[1, 2, 3]);
    clone_into(&origin, &clone).unwrap();
    assert_eq!(content(&clone), content(&origin));
    // with checksums and without do not go together
    assert!(clone_into(&origin, &plain).is_err());
    let error = set_nocow(&blocks(&test.join("full"), &[1])).unwrap_err();
    assert!(matches!(error, FileError::Failed { .. }), "{error}");
}

#[test]
fn nocow_is_for_btrfs_alone() {
    for fs in [FsType::Ext4, FsType::Xfs] {
        let test = test_fs(fs);
        let error = set_nocow(&open(&test.join("piece"))).unwrap_err();
        assert!(matches!(error, FileError::Unsupported { .. }), "{fs:?}: {error}");
    }
}

#[test]
fn blocks_are_reserved_punched_and_zeroed() {
    for fs in FsType::ALL {
        let test = test_fs(fs);
        let piece = blocks(&test.join("piece"), &[1; 16]);
        reserve(&piece, 0..4 * MIB).unwrap();
        assert_eq!(piece.metadata().unwrap().len(), 4 * MIB, "{fs:?}");
        assert_eq!(allocated_bytes(&piece).unwrap(), 4 * MIB, "{fs:?}");
        punch(&piece, 0..8192).unwrap();
        piece.sync_all().unwrap();
        assert_eq!(allocated_bytes(&piece).unwrap(), 4 * MIB - 8192, "{fs:?}");
        zero_range(&piece, 0..16384).unwrap();
        piece.sync_all().unwrap();
        assert_eq!(allocated_bytes(&piece).unwrap(), 4 * MIB, "{fs:?}");
        assert!(content(&piece)[..16384].iter().all(|byte| *byte == 0), "{fs:?}");
        assert_eq!(content(&piece)[16384], 1, "{fs:?}");
        punch(&piece, 0..0).unwrap();
        set_file_size(&piece, MIB).unwrap();
        assert_eq!(allocated_bytes(&piece).unwrap(), MIB, "{fs:?}");
        let error = reserve(&piece, 0..1 << 40).unwrap_err();
        assert!(matches!(error, FileError::NoSpace { .. }), "{fs:?}: {error}");
    }
}

#[test]
fn data_is_found_between_holes() {
    for fs in FsType::ALL {
        let test = test_fs(fs);
        let piece = blocks(&test.join("piece"), &[0, 1, 1, 0, 0, 1, 0, 0]);
        assert_eq!(ranges(&piece, 0), [4096..12288, 20480..24576], "{fs:?}");
        assert_eq!(ranges(&piece, 8192), [8192..12288, 20480..24576], "{fs:?}");
        assert_eq!(ranges(&piece, 24576), [], "{fs:?}");
        assert_eq!(ranges(&piece, 1 << 30), [], "{fs:?}");
    }
}

#[test]
fn a_copy_has_the_data_and_the_holes() {
    let test = test_fs(FsType::Xfs);
    let numbers = [0, 1, 2, 0, 0, 3, 0, 4];
    let src = blocks(&test.join("src"), &numbers);
    // a block of zeros that is no hole
    src.write_all_at(&[0; 4096], 4 * 4096).unwrap();
    for (buffer, range, expected) in [
        (4096, 0..8 * 4096, [0, 1, 2, 0, 0, 3, 0, 4].as_slice()),
        (12288, 0..8 * 4096, &[0, 1, 2, 0, 0, 3, 0, 4]),
        (1 << 20, 0..8 * 4096, &[0, 1, 2, 0, 0, 3, 0, 4]),
        (8192, 4096..6 * 4096, &[0, 1, 2, 0, 0, 3]),
        (1 << 20, 3 * 4096..5 * 4096, &[]),
        (1 << 20, 2 * 4096..2 * 4096 + 100, &[0, 0, 2]),
    ] {
        let dst = open(&test.join("dst"));
        dst.set_len(0).unwrap();
        let written = copy_range(&src, &dst, range.clone(), &mut vec![0; buffer]).unwrap();
        let data: u64 = (0..).zip(expected).filter(|(_, number)| **number != 0).map(|_| 4096).sum();
        let end = range.end.min(expected.len() as u64 * 4096);
        assert_eq!(written, data.min(range.end - range.start), "{buffer} {range:?}");
        assert_eq!(dst.metadata().unwrap().len(), end, "{buffer} {range:?}");
        dst.sync_all().unwrap();
        assert_eq!(allocated_bytes(&dst).unwrap(), data, "{buffer} {range:?}");
        for (at, number) in (0..).zip(expected).take_while(|(at, _)| (at + 1) * 4096 <= end) {
            let mut block = [0; 4096];
            dst.read_exact_at(&mut block, at * 4096).unwrap();
            assert_eq!(block, [*number; 4096], "{buffer} {range:?} {at}");
        }
    }
}

#[test]
fn a_copy_of_a_full_store_says_so() {
    let (from, to) = (test_fs(FsType::Btrfs), TestFs::new(FsType::Ext4, 4 * MIB));
    let src = blocks(&from.join("src"), &[7; 2048]);
    let dst = open(&to.join("dst"));
    let error = copy_range(&src, &dst, 0..8 * MIB, &mut vec![0; 1 << 20]).unwrap_err();
    assert!(matches!(error, FileError::NoSpace { .. }), "{error}");
}

#[test]
fn a_lock_is_had_once() {
    let dir = TestDir::new();
    let path = dir.join("lock");
    let lock = lock_exclusive_try(open(&path)).unwrap();
    assert!(lock.is_some());
    assert!(lock_exclusive_try(open(&path)).unwrap().is_none());
    drop(lock);
    assert!(eventually(|| lock_exclusive_try(open(&path)).unwrap().is_some()));
}

#[test]
fn an_id_is_the_files_and_not_the_paths() {
    let dir = TestDir::new();
    let (one, two) = (dir.join("one"), dir.join("two"));
    let file = open(&one);
    open(&two);
    let id = FileId::of(&file).unwrap();
    assert_ne!(id, FileId::at(&two).unwrap());
    fs::rename(&one, &two).unwrap();
    assert_eq!(id, FileId::at(&two).unwrap());
    assert!(FileId::at(&one).is_err());
}
