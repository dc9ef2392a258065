//! What `serve` does around the calls: its socket, its pools, its end, its capacity, and what it refuses.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use cistern::proto::csi::v1 as csi;
use cistern::proto::csi::v1::volume_capability::access_mode::Mode;
use support::client::{GIB, MIB};
use support::{Csi, Place, Server, Setting, Volume, eventually, run};
use tonic::{Code, Request};

fn on_xfs(more: &str) -> (Place, Server) {
    let place = Place::with("xfs", "4G");
    let config = place.pool(more);
    let server = Server::start(&place, &config);
    (place, server)
}

#[test]
fn the_socket_is_roots_alone_and_a_live_one_is_refused() {
    let (place, mut server) = on_xfs("");
    assert_eq!(fs::metadata(server.socket()).unwrap().permissions().mode() & 0o777, 0o600);
    let second = Command::new(env!("CARGO_BIN_EXE_cistern"))
        .args(["serve", "--endpoint", server.socket().to_str().unwrap(), "--data"])
        .arg(place.path("other-data"))
        .output()
        .unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another server listens"));
    server.kill();
    assert!(server.socket().exists(), "a killed server leaves its socket");
    let mut next = Server::start(&place, &place.path("pools.yaml"));
    assert!(next.stop().success());
    assert!(!next.socket().exists(), "a stopped server takes its socket with it");
}

#[test]
fn a_store_serves_one_daemon() {
    let (place, server) = on_xfs("");
    let other = Command::new(env!("CARGO_BIN_EXE_cistern"))
        .args(["serve", "--log-format", "json", "--endpoint", place.path("other.sock").to_str().unwrap()])
        .arg("--data")
        .arg(place.path("other-data"))
        .arg("--config")
        .arg(place.path("pools.yaml"))
        .stderr(Stdio::null())
        .spawn();
    let mut other = other.unwrap();
    let csi = eventually("the second server answers", || Csi::try_connect(&place.path("other.sock")));
    let refused = csi.create(&mut Volume::block("v", MIB)).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("another process serves"), "{}", refused.message());
    // when the first one goes, the second takes over by itself
    drop(server);
    eventually("the second server has the store", || csi.create(&mut Volume::block("v", MIB)).ok());
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn pools_are_read_again_when_the_file_changes() {
    let (place, server) = on_xfs("");
    let csi = server.client();
    let mut volume = Volume::block("v", 3 * GIB);
    csi.create(&mut volume).unwrap();
    let before = csi.capacity();
    place.pool("  overcommit: 4\n");
    eventually("there is more to promise", || (csi.capacity() > before).then_some(()));
    place.pool("  overcommit: many\n");
    eventually("the mistake is logged", || server.log().contains("the pools stay as they are").then_some(()));
    assert!(csi.capacity() > before);
    let mut other = Volume::block("w", MIB).with("pool", "q");
    assert_eq!(csi.create(&mut other).unwrap_err().code(), Code::InvalidArgument);
    let both = format!(
        "pools:\n- {{name: p, dir: {{path: {}}}}}\n- {{name: q, dir: {{path: {}}}}}\n",
        place.pool_directory().display(),
        place.path("disk/second").display()
    );
    fs::write(place.path("pools.yaml"), both).unwrap();
    eventually("the new pool is there", || csi.create(&mut other).ok());
    let mut twin = Volume::block("v", 3 * GIB).with("pool", "q");
    assert_eq!(csi.create(&mut twin).unwrap_err().code(), Code::AlreadyExists);
}

#[test]
fn a_pool_that_is_opened_anew_is_never_taken_for_none() {
    let place = Place::with("xfs", "4G");
    let directory = place.pool_directory();
    let with_size = |size: &str| {
        let text =
            format!("pools:\n- name: p\n  dir: {{ path: {}, image: {{ size: {size} }} }}\n", directory.display());
        fs::write(place.path("pools.yaml.new"), text).unwrap();
        fs::rename(place.path("pools.yaml.new"), place.path("pools.yaml")).unwrap();
        place.path("pools.yaml")
    };
    let server = Server::start(&place, &with_size("1Gi"));
    let csi = server.client();
    csi.create(&mut Volume::block("one", 32 * MIB)).unwrap();
    let before = csi.capacity();
    with_size("2Gi");
    eventually("the pool grows", || {
        match csi.try_volumes() {
            Ok(listed) => assert_eq!(listed.len(), 1, "a list without the pool"),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
        match csi.try_capacity() {
            Ok(now) => (now > before).then_some(()),
            Err(status) if status.code() == Code::Unavailable => None,
            Err(status) => panic!("{status:?}"),
        }
    });
}

#[test]
fn an_empty_directory_is_not_taken_for_a_store_that_was_there() {
    let place = Place::with("xfs", "1G");
    let config = place.pool("");
    let mut server = Server::start(&place, &config);
    let mut volume = Volume::block("v", 32 * MIB);
    server.client().create(&mut volume).unwrap();
    server.stop();
    run(&["umount", place.path("disk").to_str().unwrap()]);
    let mut server = Server::start(&place, &config);
    let csi = server.client();
    let refused = csi.create(&mut Volume::block("w", 32 * MIB)).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("is its file system mounted?"), "{}", refused.message());
    assert_eq!(csi.delete(&volume).unwrap_err().code(), Code::Unavailable);
    run(&["mount", "-o", "loop", place.path("disk.img").to_str().unwrap(), place.path("disk").to_str().unwrap()]);
    eventually("the store is found again", || csi.delete(&volume).ok());
    server.stop();
}

#[test]
fn the_default_pool_is_one_file_where_there_are_no_reflinks() {
    let place = Place::with("ext4", "12G");
    fs::create_dir(place.path("disk/data")).unwrap();
    std::os::unix::fs::symlink(place.path("disk/data"), place.path("data")).unwrap();
    let mut server = Server::start_with(Setting::Alone, &place, None, &[]);
    let csi = server.client();
    let image = place.path("disk/data/default/pool.xfs");
    let (size, blocks) = (fs::metadata(&image).unwrap().len(), fs::metadata(&image).unwrap().blocks());
    assert!(size >= 2 << 30 && blocks * 512 >= size, "{size} bytes, {blocks} blocks: fully reserved");
    let mut volume = Volume::filesystem("v", "ext4", 64 * MIB).with("pool", "default");
    csi.create(&mut volume).unwrap();
    let cut = csi.snapshot_when_ready(&volume, "s").unwrap();
    csi.delete_snapshot(&cut.snapshot_id).unwrap();
    csi.delete(&volume).unwrap();
    server.stop();
    Server::start_with(Setting::Alone, &place, None, &[]).stop();
    assert_eq!(fs::metadata(&image).unwrap().len(), size, "a second start changes nothing");
}

#[test]
fn capacity_counts_full_sizes_and_other_tenants() {
    let (place, server) = on_xfs("  reserve: 256Mi\n");
    let csi = server.client();
    let empty = csi.capacity();
    assert!(empty > 3 * GIB + 512 * MIB && empty % (4 * MIB) == 0, "{empty}");
    let mut volume = Volume::block("v", GIB);
    csi.create(&mut volume).unwrap();
    assert_eq!(csi.capacity(), empty - GIB);
    let cut = csi.snapshot_when_ready(&volume, "s").unwrap();
    assert_eq!(csi.capacity(), empty - 2 * GIB);
    let too_large = csi.create(&mut Volume::block("w", 2 * GIB)).unwrap_err();
    assert_eq!(too_large.code(), Code::ResourceExhausted);
    let cannot_grow = csi.expand(&mut volume.clone(), 4 * GIB).unwrap_err();
    assert_eq!(cannot_grow.code(), Code::OutOfRange);
    csi.delete_snapshot(&cut.snapshot_id).unwrap();
    csi.delete(&volume).unwrap();
    assert_eq!(csi.capacity(), empty);
    // what others wrote beside the pool is measured at the latest at the next start
    let file = File::create(place.path("disk/others")).unwrap();
    run(&["fallocate", "-l", "1G", place.path("disk/others").to_str().unwrap()]);
    drop((file, server));
    let server = Server::start(&place, &place.path("pools.yaml"));
    let left = server.client().capacity();
    assert!((empty - GIB - left).abs() <= 8 * MIB, "{empty} before, {left} now");
}

#[test]
fn a_full_pool_gives_enospc_and_goes_on_after_room_is_made() {
    let (place, server) = on_xfs("  overcommit: 10\n");
    let csi = server.client();
    let mut thick = Volume::block("thick", 256 * MIB).with("allocation", "thick");
    csi.create(&mut thick).unwrap();
    let thick_device = csi.use_at(&mut thick, &place.path("thick")).unwrap();
    let mut thin = Volume::block("thin", GIB);
    csi.create(&mut thin).unwrap();
    let thin_device = csi.use_at(&mut thin, &place.path("thin")).unwrap();
    let ballast = place.path("disk/ballast");
    let free: u64 = run(&["stat", "-f", "-c", "%a", place.path("disk").to_str().unwrap()]).trim().parse().unwrap();
    run(&["fallocate", "-l", &((free - 1024) * 4096).to_string(), ballast.to_str().unwrap()]);
    let fill = |device: &Path| direct_write(device, 256 * MIB);
    assert!(fill(&thin_device).contains("No space left on device"));
    assert_eq!(fill(&thick_device), "", "a thick volume never sees it");
    fs::remove_file(&ballast).unwrap();
    assert_eq!(fill(&thin_device), "");
    csi.release(&thin, &place.path("thin")).unwrap();
    csi.release(&thick, &place.path("thick")).unwrap();
}

/// Writes from the beginning with direct I/O; answers what dd says of a failure.
fn direct_write(device: &Path, bytes: i64) -> String {
    let count = (bytes / MIB).to_string();
    let done = Command::new("dd")
        .args(["if=/dev/urandom", "bs=1M", "oflag=direct", "conv=notrunc", &format!("count={count}")])
        .arg(format!("of={}", device.display()))
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    if done.status.success() { String::new() } else { String::from_utf8_lossy(&done.stderr).into_owned() }
}

#[test]
fn thick_files_keep_their_blocks() {
    let (place, server) = on_xfs("");
    let csi = server.client();
    for (allocation, kept) in [("thick", true), ("thin", false)] {
        let mut volume = Volume::block(allocation, 64 * MIB).with("allocation", allocation);
        csi.create(&mut volume).unwrap();
        let device = csi.use_at(&mut volume, &place.path(allocation)).unwrap();
        assert_eq!(direct_write(&device, 64 * MIB), "");
        let discarded = Command::new("blkdiscard").arg(&device).output().unwrap().status.success();
        assert_eq!(discarded, !kept, "{allocation}");
        let punched = Command::new("fallocate").args(["-p", "-l", "64M"]).arg(&device).output().unwrap();
        let key = volume.id.split('/').next_back().unwrap();
        let blocks = fs::metadata(place.pool_directory().join("images").join(key)).unwrap().blocks();
        assert_eq!(blocks * 512 >= 64 << 20, kept, "{allocation}: {blocks} blocks after {punched:?}");
        csi.release(&volume, &place.path(allocation)).unwrap();
        csi.delete(&volume).unwrap();
    }
}

#[test]
fn loop_devices_do_direct_io_and_scan_no_partitions() {
    let (place, server) = on_xfs("");
    let csi = server.client();
    let mut volume = Volume::block("v", 64 * MIB);
    csi.create(&mut volume).unwrap();
    let device = csi.use_at(&mut volume, &place.path("v")).unwrap();
    let number = fs::metadata(&device).unwrap().rdev() & 0xff;
    let shown = run(&["losetup", "-n", "-l", "-O", "DIO,PARTSCAN,AUTOCLEAR,RO", &format!("/dev/loop{number}")]);
    assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), ["1", "0", "0", "0"]);
    csi.release(&volume, &place.path("v")).unwrap();
    csi.delete(&volume).unwrap();
}

#[test]
fn a_volume_has_one_node_and_is_not_deleted_while_it_has() {
    let (place, server) = on_xfs("");
    let csi = server.client();
    let mut volume = Volume::block("v", 64 * MIB);
    csi.create(&mut volume).unwrap();
    csi.attach(&mut volume).unwrap();
    let other = csi.attach_to(&mut volume.clone(), "other,10.0.0.9", false).unwrap_err();
    assert_eq!(other.code(), Code::NotFound);
    let readonly = csi.attach_to(&mut volume.clone(), &csi.node_id().unwrap(), true).unwrap_err();
    assert_eq!(readonly.code(), Code::AlreadyExists);
    let used = csi.delete(&volume).unwrap_err();
    assert_eq!(used.code(), Code::FailedPrecondition);
    assert!(used.message().contains("testnode"), "{}", used.message());
    let listed = csi.volumes();
    assert_eq!(listed[0].status.as_ref().unwrap().published_node_ids, [csi.node_id().unwrap()]);
    csi.stage(&volume, &place.path("s")).unwrap();
    assert_eq!(csi.detach(&volume).unwrap_err().code(), Code::FailedPrecondition);
    csi.unstage(&volume, &place.path("s")).unwrap();
    csi.detach(&volume).unwrap();
    csi.delete(&volume).unwrap();
    csi.delete(&volume).unwrap();
    place.inventory().assert_empty();
}

#[test]
fn second_publishes_follow_the_table() {
    let (place, server) = on_xfs("");
    let csi = server.client();
    for (mode, second) in [
        (Mode::SingleNodeMultiWriter, None),
        (Mode::SingleNodeSingleWriter, Some(Code::FailedPrecondition)),
        (Mode::SingleNodeWriter, Some(Code::FailedPrecondition)),
    ] {
        let mut volume = Volume::filesystem("v", "ext4", 64 * MIB).mode(mode);
        csi.create(&mut volume).unwrap();
        let (staging, one, two) = (place.path("v/staging"), place.path("v/target"), place.path("v/two"));
        csi.use_at(&mut volume, &place.path("v")).unwrap();
        csi.publish(&volume, &staging, &one, false).unwrap();
        assert_eq!(csi.publish(&volume, &staging, &one, true).unwrap_err().code(), Code::AlreadyExists);
        assert_eq!(csi.publish(&volume, &staging, &two, false).err().map(|status| status.code()), second, "{mode:?}");
        csi.unpublish(&volume, &one).unwrap();
        if second.is_none() {
            fs::write(two.join("still"), "there").unwrap();
        }
        csi.unpublish(&volume, &two).unwrap();
        csi.release(&volume, &place.path("v")).unwrap();
        csi.delete(&volume).unwrap();
    }
    place.inventory().assert_empty();
}

#[test]
fn mount_flags_group_and_readonly_targets() {
    let (place, server) = on_xfs("");
    let csi = server.client();
    let mut volume = Volume::filesystem("v", "ext4", 64 * MIB);
    volume.mount_flags = vec!["noatime".to_owned(), "nodev,commit=30".to_owned()];
    volume.group = "107".to_owned();
    csi.create(&mut volume).unwrap();
    let root = csi.use_at(&mut volume, &place.path("v")).unwrap();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(place.path("v/staging").to_str().unwrap())).unwrap();
    assert!(line.contains("noatime") && line.contains("nodev") && line.contains("commit=30"), "{line}");
    let metadata = fs::metadata(&root).unwrap();
    assert_eq!((metadata.gid(), metadata.mode() & 0o2070), (107, 0o2070));
    let reader = place.path("v/reader");
    csi.publish(&volume, &place.path("v/staging"), &reader, true).unwrap();
    fs::write(root.join("file"), "x").unwrap();
    assert_eq!(fs::read_to_string(reader.join("file")).unwrap(), "x");
    assert!(fs::write(reader.join("file"), "y").is_err());
    csi.unpublish(&volume, &reader).unwrap();
    // the next pod of the node has a group of its own; kubelet does not stage for it, unless it was started anew
    let group = || fs::metadata(place.path("v/staging")).unwrap().gid();
    let (staging, next) = (place.path("v/staging"), place.path("v/next"));
    volume.group = "108".to_owned();
    csi.publish(&volume, &staging, &next, true).unwrap();
    assert_eq!(group(), 107, "one that may only read changes nothing");
    csi.unpublish(&volume, &next).unwrap();
    csi.publish(&volume, &staging, &next, false).unwrap();
    assert_eq!(group(), 108);
    volume.group = "109".to_owned();
    csi.stage(&volume, &staging).unwrap();
    assert_eq!(group(), 109);
    csi.unpublish(&volume, &next).unwrap();
    csi.release(&volume, &place.path("v")).unwrap();
    csi.delete(&volume).unwrap();
    let mut refused = Volume::filesystem("w", "xfs", 320 * MIB);
    refused.mount_flags = vec!["logdev=/dev/sda".to_owned()];
    assert_eq!(csi.create(&mut refused).unwrap_err().code(), Code::InvalidArgument);
}

/// Kubelet keeps what it was told when the volume was attached.
#[test]
fn what_is_modified_after_the_attachment_is_so_at_the_next_stage() {
    let (place, server) = on_xfs("");
    let csi = server.client();
    let mut volume = Volume::block("v", 4 * MIB);
    csi.create(&mut volume).unwrap();
    csi.use_at(&mut volume, &place.path("v")).unwrap();
    let read_ahead = || {
        let device = place.inventory().loops[0].clone();
        let file = format!("/sys/block/{}/queue/read_ahead_kb", device.trim_start_matches("/dev/"));
        fs::read_to_string(file).unwrap().trim().to_owned()
    };
    csi.modify(&volume, "readAheadKiB", "64").unwrap();
    assert_eq!(read_ahead(), "64");
    csi.unpublish(&volume, &place.path("v/target")).unwrap();
    csi.unstage(&volume, &place.path("v/staging")).unwrap();
    csi.stage(&volume, &place.path("v/staging")).unwrap();
    assert_eq!(read_ahead(), "64");
    csi.release(&volume, &place.path("v")).unwrap();
    csi.delete(&volume).unwrap();
}

#[test]
fn the_node_never_formats() {
    let (place, server) = on_xfs("");
    let csi = server.client();
    let mut volume = Volume::filesystem("v", "ext4", 64 * MIB);
    csi.create(&mut volume).unwrap();
    csi.attach(&mut volume).unwrap();
    let image = place.pool_directory().join("images").join(volume.id.split('/').next_back().unwrap());
    let zeros = vec![0; 1 << 20];
    let file = OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&zeros, 0).unwrap();
    let refused = csi.stage(&volume, &place.path("s")).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let mut read = vec![1; 1 << 20];
    File::open(&image).unwrap().read_exact_at(&mut read, 0).unwrap();
    assert!(read == zeros, "what was there is as it was");
    csi.unstage(&volume, &place.path("s")).unwrap();
    csi.detach(&volume).unwrap();
    csi.delete(&volume).unwrap();
    place.inventory().assert_empty();
}

#[test]
fn a_clone_is_what_is_asked_for_or_refused() {
    let (_place, server) = on_xfs("");
    let csi = server.client();
    let mut block = Volume::block("block", 64 * MIB);
    let mut files = Volume::filesystem("files", "ext4", 64 * MIB);
    csi.create(&mut block).unwrap();
    csi.create(&mut files).unwrap();
    let gone = Volume { id: files.id.replace("/v-", "/v-0").replace("/v-0", "/v-"), ..files.clone() };
    assert_eq!(gone.id, files.id);
    for (asked, code) in [
        (Volume::filesystem("a", "ext4", 64 * MIB).cloned_from(&block), Code::InvalidArgument),
        (Volume::filesystem("b", "xfs", 320 * MIB).cloned_from(&files), Code::InvalidArgument),
        (Volume::block("c", 32 * MIB).cloned_from(&block), Code::OutOfRange),
        (Volume::block("d", 64 * MIB).restored_from("nonsense"), Code::NotFound),
        (Volume::block("e", 64 * MIB).restored_from(&block.id.replace("/v-", "/s-")), Code::NotFound),
        (Volume::block("f", 64 * MIB).mode(Mode::MultiNodeMultiWriter), Code::InvalidArgument),
        (Volume::block("g", 64 * MIB).with("colour", "blue"), Code::InvalidArgument),
        (Volume::filesystem("h", "ext4", 1 << 50), Code::OutOfRange),
    ] {
        let mut asked = asked;
        assert_eq!(csi.create(&mut asked).unwrap_err().code(), code, "{}", asked.name);
    }
    assert_eq!(csi.volumes().len(), 2, "nothing was made");
    let limits = csi::CapacityRange { required_bytes: 10 * MIB + 1, limit_bytes: 10 * MIB + 2 };
    let request = csi::CreateVolumeRequest { capacity_range: Some(limits), ..Volume::block("i", 0).request() };
    let refused = csi.block_on(csi.controller().create_volume(Request::new(request))).unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
}

#[test]
fn names_and_paths_at_their_limits() {
    let (place, server) = on_xfs("");
    let csi = server.client();
    let mut volume = Volume::block(&"ü".repeat(64), 32 * MIB);
    csi.create(&mut volume).unwrap();
    let deep = place.path("deep/".to_owned() + &"d".repeat(100) + "/" + &"e".repeat(100));
    csi.use_at(&mut volume, &deep).unwrap();
    csi.release(&volume, &deep).unwrap();
    csi.delete(&volume).unwrap();
    for name in ["", "a\u{7}", &"x".repeat(129)] {
        assert_eq!(csi.create(&mut Volume::block(name, MIB)).unwrap_err().code(), Code::InvalidArgument, "{name:?}");
    }
    let large = Volume::block("v", MIB).with("csi.storage.k8s.io/pvc/name", &"x".repeat(4096));
    assert_eq!(csi.create(&mut large.clone()).unwrap_err().code(), Code::InvalidArgument);
    place.inventory().assert_empty();
}

#[test]
fn a_stop_lets_jobs_stop_and_a_start_goes_on() {
    let place = Place::with("ext4", "4G");
    let config = place.pool("");
    let mut server = Server::start(&place, &config);
    let csi = server.client();
    let mut volume = Volume::block("v", GIB);
    csi.create(&mut volume).unwrap();
    let device = csi.use_at(&mut volume, &place.path("v")).unwrap();
    assert_eq!(direct_write(&device, GIB), "");
    csi.release(&volume, &place.path("v")).unwrap();
    let cut = csi.snapshot(&volume, "s").unwrap();
    assert!(!cut.ready_to_use, "a gigabyte takes its time");
    assert_eq!(csi.attach(&mut volume.clone()).unwrap_err().code(), Code::Aborted, "nobody writes meanwhile");
    let begun = std::time::Instant::now();
    assert!(server.stop().success());
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
    let server = Server::start(&place, &config);
    let csi = server.client();
    assert!(csi.snapshot_when_ready(&volume, "s").unwrap().ready_to_use);
    let mut restored = Volume::block("r", GIB).restored_from(&cut.snapshot_id);
    eventually("the restore is made", || csi.create(&mut restored).ok());
    let images = place.pool_directory().join("images");
    let piece = |volume: &Volume| images.join(volume.id.split('/').next_back().unwrap());
    run(&["cmp", piece(&volume).to_str().unwrap(), piece(&restored).to_str().unwrap()]);
}

#[test]
fn people_see_what_is_there() {
    let (place, server) = on_xfs("");
    let csi = server.client();
    let mut volume = Volume::filesystem("pvc-1", "ext4", 64 * MIB);
    csi.create(&mut volume).unwrap();
    csi.snapshot_when_ready(&volume, "snap-1").unwrap();
    let cistern = |args: &[&str]| {
        let socket = server.socket();
        let socket = socket.to_str().unwrap();
        run(&[&[env!("CARGO_BIN_EXE_cistern")], args, &["--endpoint", socket]].concat())
    };
    let volumes: serde_json::Value = serde_json::from_str(&cistern(&["volume", "ls"])).unwrap();
    assert_eq!((&volumes[0]["name"], &volumes[0]["content"]), (&"pvc-1".into(), &"ext4".into()));
    for (args, word) in [
        (["pool", "ls", "-o", "table"], "ok"),
        (["volume", "ls", "-o", "table"], "pvc-1"),
        (["snapshot", "ls", "-o", "table"], "ready"),
    ] {
        let table = cistern(&args);
        assert!(table.starts_with("NAME") && table.contains(word), "{table}");
    }
    assert_eq!(cistern(&["doctor", "-o", "table"]), "all is well\n");
    // a device over a piece that nobody was given
    let piece = place.pool_directory().join("images").join(volume.id.split('/').next_back().unwrap());
    let device = run(&["losetup", "--find", "--show", piece.to_str().unwrap()]);
    let socket = server.socket();
    let socket = socket.to_str().unwrap();
    let doctor = Command::new(env!("CARGO_BIN_EXE_cistern")).args(["doctor", "--endpoint", socket]).output().unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(!doctor.status.success() && said.contains(&format!("losetup --detach {}", device.trim())), "{said}");
}
