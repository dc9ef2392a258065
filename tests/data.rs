//! Data, not only answers: what was written is read back, whatever is done in between.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use cistern::proto::csi::v1::volume_capability::access_mode::Mode;
use support::client::{GIB, MIB};
use support::{Csi, Place, Server, Setting, Volume, may_grow_ext4, run};
use tonic::Code;

/// A pool on XFS with a server.
fn on_xfs(setting: Setting) -> (Place, Server) {
    on(setting, "xfs")
}

fn on(setting: Setting, fs: &str) -> (Place, Server) {
    let place = Place::with(fs, "8G");
    let config = place.pool("");
    let server = Server::start_in(setting, &place, &config);
    (place, server)
}

/// Writes 1 MiB that depends on the seed at each of these MiB of a device or file, and brings it to the disk.
fn write(path: &Path, seed: u8, at: &[u64]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    for mib in at {
        file.write_all_at(&pattern(seed, *mib), mib << 20).unwrap();
    }
    file.sync_all().unwrap();
}

/// Fails unless exactly this was written there.
fn check(path: &Path, seed: u8, at: &[u64]) {
    let file = File::open(path).unwrap();
    let mut read = vec![0; 1 << 20];
    for mib in at {
        file.read_exact_at(&mut read, mib << 20).unwrap();
        assert!(read == pattern(seed, *mib), "{} differs at {mib} MiB", path.display());
    }
}

fn pattern(seed: u8, mib: u64) -> Vec<u8> {
    let mut state = u64::from(seed) << 32 | mib | 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(1 << 20).collect()
}

/// Fails unless this MiB reads as zero.
fn check_zero(path: &Path, mib: u64) {
    let mut read = vec![1; 1 << 20];
    File::open(path).unwrap().read_exact_at(&mut read, mib << 20).unwrap();
    assert!(read.iter().all(|byte| *byte == 0), "{} is not zero at {mib} MiB", path.display());
}

fn size_of(device: &Path) -> i64 {
    run(&["blockdev", "--getsize64", device.to_str().unwrap()]).trim().parse().unwrap()
}

/// Whether it is a piece that was made for a copy to read.
fn is_temporary(file: &Path) -> bool {
    file.file_name().unwrap().to_str().unwrap().starts_with("t-")
}

/// The disk's image of the place, kept from one kind of pool to the next: a Block volume through its whole life.
fn life_of_a_block_volume(place: &Place, csi: &Csi, allocation: &str) {
    let mut volume = Volume::block("block", 64 * MIB).with("allocation", allocation);
    csi.create(&mut volume).unwrap();
    let device = csi.use_at(&mut volume, &place.path("v")).unwrap();
    check_zero(&device, 63);
    write(&device, 1, &[0, 5, 63]);
    let snapshot = csi.snapshot_when_ready(&volume, "snap").unwrap();
    write(&device, 2, &[5]);

    let mut restored =
        Volume::block("restored", 64 * MIB).with("allocation", allocation).restored_from(&snapshot.snapshot_id);
    csi.create(&mut restored).unwrap();
    let mut clone = Volume::block("clone", 128 * MIB).with("allocation", allocation).cloned_from(&volume);
    csi.create(&mut clone).unwrap();
    let left: Vec<_> = place.inventory().files.into_iter().filter(|file| is_temporary(file)).collect();
    assert!(left.is_empty(), "what was cut for a copy goes with it: {left:?}");
    let restored_device = csi.use_at(&mut restored, &place.path("r")).unwrap();
    let clone_device = csi.use_at(&mut clone, &place.path("c")).unwrap();
    check(&restored_device, 1, &[0, 5, 63]);
    check(&clone_device, 2, &[5]);
    check(&clone_device, 1, &[0, 63]);
    check_zero(&clone_device, 127);
    assert_eq!(size_of(&clone_device), 128 * MIB);

    csi.expand(&mut volume, 96 * MIB).unwrap();
    csi.node_expand(&volume, &device).unwrap();
    assert_eq!(size_of(&device), 96 * MIB);
    check_zero(&device, 95);
    write(&device, 3, &[95]);

    csi.release(&volume, &place.path("v")).unwrap();
    csi.delete(&volume).unwrap();
    check(&restored_device, 1, &[0, 5, 63]);
    csi.release(&restored, &place.path("r")).unwrap();
    csi.release(&clone, &place.path("c")).unwrap();
    let mut late = Volume::block("late", 64 * MIB).with("allocation", allocation).restored_from(&snapshot.snapshot_id);
    csi.create(&mut late).unwrap();
    let late_device = csi.use_at(&mut late, &place.path("l")).unwrap();
    check(&late_device, 1, &[0, 5, 63]);
    csi.release(&late, &place.path("l")).unwrap();
    for volume in [&restored, &clone, &late] {
        csi.delete(volume).unwrap();
    }
    csi.delete_snapshot(&snapshot.snapshot_id).unwrap();
    place.inventory().assert_empty();
}

fn a_thin_block_volume_on_xfs(setting: Setting) {
    let (place, server) = on_xfs(setting);
    life_of_a_block_volume(&place, &server.client(), "thin");
}

fn a_thick_block_volume_on_xfs(setting: Setting) {
    let (place, server) = on_xfs(setting);
    life_of_a_block_volume(&place, &server.client(), "thick");
}

fn a_block_volume_on_btrfs(setting: Setting) {
    let (place, server) = on(setting, "btrfs");
    life_of_a_block_volume(&place, &server.client(), "thin");
}

fn a_block_volume_in_a_pool_that_is_one_file(setting: Setting) {
    let place = Place::bare();
    fs::create_dir_all(place.path("disk")).unwrap();
    let config = place.path("pools.yaml");
    let path = place.path("disk/pool");
    fs::write(&config, format!("pools: [{{name: p, dir: {{path: {}, image: {{size: 2Gi}}}}}}]", path.display()))
        .unwrap();
    let mut server = Server::start_in(setting, &place, &config);
    life_of_a_block_volume(&place, &server.client(), "thin");
    assert!(server.stop().success());
    let left = place.inventory();
    assert!(left.all_mounts.is_empty() && left.all_loops.is_empty(), "a stopped server holds nothing: {left:?}");
}

/// A file system of each type, its clone and its restore, all mounted together.
fn life_of_a_filesystem(place: &Place, csi: &Csi, fs: &str) {
    let mut volume = Volume::filesystem("fs", fs, 320 * MIB);
    csi.create(&mut volume).unwrap();
    let root = csi.use_at(&mut volume, &place.path("v")).unwrap();
    fs::write(root.join("file"), "before the snapshot").unwrap();
    let snapshot = csi.snapshot_when_ready(&volume, "snap").unwrap();
    fs::write(root.join("file"), "after the snapshot").unwrap();
    let mut restored = Volume::filesystem("restored", fs, 320 * MIB).restored_from(&snapshot.snapshot_id);
    csi.create(&mut restored).unwrap();
    let mut clone = Volume::filesystem("clone", fs, 320 * MIB).cloned_from(&volume);
    csi.create(&mut clone).unwrap();
    let restored_root = csi.use_at(&mut restored, &place.path("r")).unwrap();
    let clone_root = csi.use_at(&mut clone, &place.path("c")).unwrap();
    assert_eq!(fs::read_to_string(restored_root.join("file")).unwrap(), "before the snapshot");
    assert_eq!(fs::read_to_string(clone_root.join("file")).unwrap(), "after the snapshot");
    for (volume, at) in [(&volume, "v"), (&restored, "r"), (&clone, "c")] {
        csi.release(volume, &place.path(at)).unwrap();
        csi.delete(volume).unwrap();
    }
    csi.delete_snapshot(&snapshot.snapshot_id).unwrap();
    place.inventory().assert_empty();
}

fn file_systems_of_each_type_mount_beside_their_clones(setting: Setting) {
    let (place, server) = on_xfs(setting);
    for fs in ["ext4", "xfs", "btrfs"] {
        life_of_a_filesystem(&place, &server.client(), fs);
    }
}

fn file_systems_grow_while_mounted_and_when_restored_larger(setting: Setting) {
    let (place, server) = on_xfs(setting);
    let csi = server.client();
    for fs in if may_grow_ext4() { &["ext4", "xfs", "btrfs"][..] } else { &["xfs", "btrfs"] } {
        let mut volume = Volume::filesystem("small", fs, 320 * MIB);
        csi.create(&mut volume).unwrap();
        let root = csi.use_at(&mut volume, &place.path("v")).unwrap();
        let before = csi.stats(&volume, &root).unwrap()[0].total;
        csi.expand(&mut volume, 640 * MIB).unwrap();
        assert_eq!(csi.node_expand(&volume, &root).unwrap(), 640 * MIB);
        assert!(csi.stats(&volume, &root).unwrap()[0].total > before + 300 * MIB, "{fs}");
        csi.release(&volume, &place.path("v")).unwrap();
        let mut larger = Volume::filesystem("larger", fs, GIB).cloned_from(&volume);
        csi.create(&mut larger).unwrap();
        let root = csi.use_at(&mut larger, &place.path("l")).unwrap();
        assert!(csi.stats(&larger, &root).unwrap()[0].total > 900 * MIB, "{fs}");
        csi.release(&larger, &place.path("l")).unwrap();
        csi.delete(&volume).unwrap();
        csi.delete(&larger).unwrap();
    }
    place.inventory().assert_empty();
}

/// In a container, mostly; a host with all rights has no such case, and nothing to see here.
fn an_ext4_that_may_not_grow_stays_usable(setting: Setting) {
    if may_grow_ext4() {
        println!("this process may grow an ext4, as file_systems_grow_while_mounted_and_when_restored_larger shows");
        return;
    }
    println!("this process lacks CAP_SYS_RESOURCE: the kernel refuses to grow a mounted ext4");
    let (place, server) = on_xfs(setting);
    let csi = server.client();
    let mut volume = Volume::filesystem("small", "ext4", 320 * MIB);
    csi.create(&mut volume).unwrap();
    let root = csi.use_at(&mut volume, &place.path("v")).unwrap();
    fs::write(root.join("file"), "before").unwrap();
    csi.expand(&mut volume, 640 * MIB).unwrap();
    let refused = csi.node_expand(&volume, &root).unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    assert!(refused.message().contains("Operation not permitted"), "{}", refused.message());
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "before");
    fs::write(root.join("file"), "after").unwrap();
    csi.release(&volume, &place.path("v")).unwrap();
    csi.delete(&volume).unwrap();
    place.inventory().assert_empty();
}

fn a_snapshot_cut_under_load_stages_read_only(setting: Setting) {
    let (place, server) = on_xfs(setting);
    let csi = server.client();
    for fs in ["ext4", "xfs", "btrfs"] {
        let mut volume = Volume::filesystem("busy", fs, 512 * MIB);
        csi.create(&mut volume).unwrap();
        let root = csi.use_at(&mut volume, &place.path("v")).unwrap();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let writer = std::thread::spawn({
            let (stop, root) = (stop.clone(), root.clone());
            move || {
                for number in 0.. {
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        return number;
                    }
                    let file = File::create(root.join(format!("f{}", number % 100))).unwrap();
                    file.write_all_at(&pattern(4, number), 0).unwrap();
                    file.sync_all().unwrap();
                }
                0
            }
        });
        fs::write(root.join("synced"), "before").unwrap();
        let snapshot = csi.snapshot_when_ready(&volume, "cut").unwrap();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0);
        let mut restored = Volume::filesystem("restored", fs, 512 * MIB)
            .restored_from(&snapshot.snapshot_id)
            .mode(Mode::SingleNodeReaderOnly);
        csi.create(&mut restored).unwrap();
        let read_only = csi.use_at(&mut restored, &place.path("r")).unwrap();
        assert_eq!(fs::read_to_string(read_only.join("synced")).unwrap(), "before");
        assert!(fs::write(read_only.join("new"), "").is_err(), "{fs}");
        for (volume, at) in [(&volume, "v"), (&restored, "r")] {
            csi.release(volume, &place.path(at)).unwrap();
            csi.delete(volume).unwrap();
        }
        csi.delete_snapshot(&snapshot.snapshot_id).unwrap();
    }
    place.inventory().assert_empty();
}

fn data_and_device_numbers_outlive_the_process(setting: Setting) {
    let (place, mut server) = on_xfs(setting);
    let mut volume = Volume::block("kept", 64 * MIB);
    server.client().create(&mut volume).unwrap();
    let at = place.path("v");
    let (staging, target) = (at.join("staging"), at.join("target"));
    let again = |server: &mut Server| {
        server.kill();
        server.start_again();
    };
    again(&mut server);
    server.client().attach(&mut volume).unwrap();
    again(&mut server);
    server.client().stage(&volume, &staging).unwrap();
    again(&mut server);
    server.client().publish(&volume, &staging, &target, false).unwrap();
    let number = run(&["stat", "-c", "%t:%T", target.to_str().unwrap()]);
    let guest = OpenOptions::new().read(true).write(true).open(&target).unwrap();
    guest.write_all_at(&pattern(7, 0), 0).unwrap();
    again(&mut server);
    guest.write_all_at(&pattern(7, 1), 1 << 20).unwrap();
    guest.sync_all().unwrap();
    assert_eq!(run(&["stat", "-c", "%t:%T", target.to_str().unwrap()]), number);
    let csi = server.client();
    csi.stage(&volume, &staging).unwrap();
    csi.publish(&volume, &staging, &target, false).unwrap();
    assert_eq!(run(&["stat", "-c", "%t:%T", target.to_str().unwrap()]), number);
    let snapshot = csi.snapshot_when_ready(&volume, "snap").unwrap();
    let open = csi.unstage(&volume, &staging).unwrap_err();
    assert_eq!(open.code(), Code::FailedPrecondition);
    drop(guest);
    check(&target, 7, &[0, 1]);
    again(&mut server);
    let csi = server.client();
    csi.unpublish(&volume, &target).unwrap();
    again(&mut server);
    server.client().unstage(&volume, &staging).unwrap();
    again(&mut server);
    server.client().detach(&volume).unwrap();
    again(&mut server);
    let csi = server.client();
    let mut restored = Volume::block("restored", 64 * MIB).restored_from(&snapshot.snapshot_id);
    csi.create(&mut restored).unwrap();
    let device = csi.use_at(&mut restored, &place.path("r")).unwrap();
    check(&device, 7, &[0, 1]);
    csi.release(&restored, &place.path("r")).unwrap();
    csi.delete_snapshot(&snapshot.snapshot_id).unwrap();
    csi.delete(&restored).unwrap();
    again(&mut server);
    server.client().delete(&volume).unwrap();
    place.inventory().assert_empty();
}

fn without_reflinks_copies_keep_holes_and_a_volume_in_use_is_not_cut(setting: Setting) {
    let (place, server) = on(setting, "ext4");
    let csi = server.client();
    let mut volume = Volume::block("block", GIB);
    csi.create(&mut volume).unwrap();
    let device = csi.use_at(&mut volume, &place.path("v")).unwrap();
    write(&device, 1, &[0, 500]);
    let refused = csi.snapshot(&volume, "snap").unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("detach the volume first"), "{}", refused.message());
    csi.release(&volume, &place.path("v")).unwrap();
    let snapshot = csi.snapshot_when_ready(&volume, "snap").unwrap();
    assert!(snapshot.ready_to_use);
    let mut restored = Volume::block("restored", GIB).restored_from(&snapshot.snapshot_id);
    csi.create(&mut restored).unwrap();
    let device = csi.use_at(&mut restored, &place.path("r")).unwrap();
    check(&device, 1, &[0, 500]);
    check_zero(&device, 1);
    csi.release(&restored, &place.path("r")).unwrap();
    for image in fs::read_dir(place.pool_directory().join("images")).unwrap() {
        let path = image.unwrap().path();
        let blocks: i64 = run(&["stat", "-c", "%b", path.to_str().unwrap()]).trim().parse().unwrap();
        assert!(blocks * 512 <= 3 * MIB, "{} takes {} bytes", path.display(), blocks * 512);
    }
    csi.delete(&volume).unwrap();
    csi.delete(&restored).unwrap();
    csi.delete_snapshot(&snapshot.snapshot_id).unwrap();
    place.inventory().assert_empty();
}

in_each_setting!(
    a_thin_block_volume_on_xfs,
    a_thick_block_volume_on_xfs,
    a_block_volume_on_btrfs,
    a_block_volume_in_a_pool_that_is_one_file,
    file_systems_of_each_type_mount_beside_their_clones,
    file_systems_grow_while_mounted_and_when_restored_larger,
    an_ext4_that_may_not_grow_stays_usable,
    a_snapshot_cut_under_load_stages_read_only,
    data_and_device_numbers_outlive_the_process,
    without_reflinks_copies_keep_holes_and_a_volume_in_use_is_not_cut,
);
