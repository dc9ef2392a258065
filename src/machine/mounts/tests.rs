#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::*;
use crate::machine::testing::{TestDir, run};

/// A directory in which everything is unmounted at the end, whatever happened. Nothing that is mounted in it is seen by
/// other mount namespaces.
struct Mounted(TestDir);

impl Mounted {
    fn new() -> Mounted {
        let dir = TestDir::new();
        run(Command::new("mount").args(["--bind", "--make-private"]).args([dir.path(), dir.path()]));
        Mounted(dir)
    }

    /// An empty directory of this name.
    fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn tmpfs(&self, path: &Path) {
        mount(Path::new("tmpfs"), path, "tmpfs", MountFlags::empty(), "size=1m").unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let umount = Command::new("umount").args(["--recursive", "--lazy"]).arg(self.0.path()).output();
        if !umount.is_ok_and(|output| output.status.success()) {
            eprintln!("left behind: mounts below {}", self.0.path().display());
        }
    }
}

fn seen(path: &Path) -> Option<Mount> {
    MountTable::read().unwrap().at(&resolve(path).unwrap()).cloned()
}

#[test]
fn any_path_is_mounted_seen_and_unmounted() {
    let test = Mounted::new();
    for name in ["plain", "a b", "tab\there", "line\nend", "back\\040slash", "#", "\u{e9}", "\u{e9}\u{301},=:"] {
        let point = test.dir(name);
        test.tmpfs(&point);
        assert_eq!(seen(&point).unwrap().fs_type, "tmpfs", "{name:?}");
        assert_eq!(unmount(&point).unwrap(), Outcome::Made(()), "{name:?}");
        assert_eq!(seen(&point), None, "{name:?}");
        assert_eq!(unmount(&point).unwrap(), Outcome::Found(()), "{name:?}");
    }
    let point = test.dir(OsString::from_vec(b"not \xff utf8".to_vec()));
    test.tmpfs(&point);
    assert_eq!(unmount(&point).unwrap(), Outcome::Made(()));
    assert_eq!(unmount(&point.join("not/there")).unwrap(), Outcome::Found(()));
}

#[test]
fn stacked_mounts_all_go() {
    let test = Mounted::new();
    let point = test.dir("point");
    for _ in 0..3 {
        test.tmpfs(&point);
    }
    assert_eq!(unmount(&point).unwrap(), Outcome::Made(()));
    assert_eq!(seen(&point), None);
}

#[test]
fn a_busy_mount_stays() {
    let test = Mounted::new();
    let point = test.dir("point");
    test.tmpfs(&point);
    let file = File::create(point.join("open")).unwrap();
    assert!(matches!(unmount(&point), Err(MountError::Busy { .. })));
    assert!(seen(&point).is_some());
    drop(file);
    assert_eq!(unmount(&point).unwrap(), Outcome::Made(()));
}

#[test]
fn a_covered_mount_is_not_taken_for_gone() {
    let test = Mounted::new();
    let point = test.dir("outer/inner");
    test.tmpfs(&point);
    test.tmpfs(&test.dir("outer"));
    fs::create_dir(&point).unwrap();
    assert_eq!(seen(&point), None);
    assert!(matches!(unmount(&point), Err(MountError::Covered { .. })));
    assert_eq!(unmount(&test.0.join("outer")).unwrap(), Outcome::Made(()));
    assert_eq!(unmount(&point).unwrap(), Outcome::Made(()));
}

#[test]
fn links_above_the_path_are_followed_and_the_path_is_not() {
    let test = Mounted::new();
    let point = test.dir("real/point");
    symlink("real", test.0.join("link")).unwrap();
    symlink("point", test.0.join("real/to-point")).unwrap();
    test.tmpfs(&point);
    let alias = test.0.join("link/point");
    assert_eq!(resolve(&alias).unwrap(), point);
    assert_eq!(resolve(&test.0.join("link/to-point")).unwrap(), test.0.join("real/to-point"));
    assert_eq!(resolve(&test.0.join("real/../real/./point")).unwrap(), point);
    assert_eq!(unmount(&test.0.join("real/to-point")).unwrap(), Outcome::Found(()));
    assert_eq!(unmount(&alias).unwrap(), Outcome::Made(()));
    assert_eq!(seen(&point), None);
    assert_eq!(resolve(Path::new("/")).unwrap(), Path::new("/"));
    assert_eq!(resolve(Path::new("name")).unwrap(), std::env::current_dir().unwrap().join("name"));
    assert!(resolve(&test.0.join("..")).is_err());
    assert!(resolve(&test.0.join("not/there")).is_err());
}

#[test]
fn a_bind_forbids_what_was_asked_and_what_its_source_forbids() {
    let test = Mounted::new();
    let (source, target) = (test.dir("source"), test.dir("target"));
    let forbidding = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NOATIME;
    mount(Path::new("tmpfs"), &source, "tmpfs", forbidding, "").unwrap();
    for (flags, options) in [
        (BindFlags::default(), ["rw", "nosuid", "noexec", "noatime"].as_slice()),
        (BindFlags { read_only: true, ..BindFlags::default() }, &["ro", "nosuid", "noexec", "noatime"]),
        (
            BindFlags { nodev: true, nosuid: true, ..BindFlags::default() },
            &["rw", "nosuid", "nodev", "noexec", "noatime"],
        ),
    ] {
        bind(&source, &target, flags).unwrap();
        let mount = seen(&target).unwrap();
        let mut seen_options: Vec<&str> = mount.options.keys().map(String::as_str).collect();
        let mut expected = options.to_vec();
        seen_options.sort_unstable();
        expected.sort_unstable();
        assert_eq!(seen_options, expected, "{flags:?}");
        assert!(!mount.read_only_fs);
        assert_eq!(mount.read_only, flags.read_only);
        assert_eq!(File::create(target.join("file")).is_err(), flags.read_only);
        assert!(File::create(source.join("file")).is_ok());
        assert_eq!(unmount(&target).unwrap(), Outcome::Made(()));
    }
}

#[test]
fn a_file_is_bound_to_a_file() {
    let test = Mounted::new();
    let (source, target) = (test.0.join("source"), test.0.join("target"));
    fs::write(&source, "source").unwrap();
    fs::write(&target, "target").unwrap();
    bind(&source, &target, BindFlags::default()).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"source");
    assert!(seen(&target).unwrap().root.ends_with("source"));
    assert_eq!(unmount(&target).unwrap(), Outcome::Made(()));
    assert_eq!(fs::read(&target).unwrap(), b"target");
}

#[test]
fn failures_name_their_step_and_mount_nothing() {
    let test = Mounted::new();
    let (dir, missing) = (test.dir("dir"), test.0.join("missing"));
    let nothing = Path::new("nothing");
    let no_flags = MountFlags::empty();
    assert!(matches!(mount(nothing, &dir, "no-such-fs", no_flags, ""), Err(MountError::Mount { .. })));
    assert!(matches!(mount(nothing, &dir, "tmpfs", no_flags, "size=1m\0"), Err(MountError::Options { .. })));
    assert!(matches!(bind(&missing, &dir, BindFlags::default()), Err(MountError::Bind { .. })));
    assert!(matches!(make_private(&dir), Err(MountError::MakePrivate { .. })));
    symlink("dir", test.0.join("link")).unwrap();
    let link = test.0.join("link");
    assert!(matches!(bind(&dir, &link, BindFlags::default()), Err(MountError::TargetIsLink { .. })));
    assert!(matches!(mount(nothing, &link, "tmpfs", no_flags, ""), Err(MountError::TargetIsLink { .. })));
    assert_eq!(seen(&dir), None);
}

#[test]
fn a_private_mount_is_no_longer_shared() {
    let test = Mounted::new();
    let (shared, copy) = (test.dir("shared"), test.dir("copy"));
    test.tmpfs(&shared);
    run(Command::new("mount").arg("--make-shared").arg(&shared));
    bind(&shared, &copy, BindFlags::default()).unwrap();
    make_private(&copy).unwrap();
    let below = shared.join("below");
    fs::create_dir(&below).unwrap();
    test.tmpfs(&below);
    assert!(seen(&below).is_some());
    assert_eq!(seen(&copy.join("below")), None);
}
