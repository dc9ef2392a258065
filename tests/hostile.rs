//! What a hostile reader found once, and what must never come back: each is a story of one thing going wrong.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use support::client::MIB;
use support::{Place, Server, Setting, Volume, eventually, run};
use tonic::Code;

fn on(fs: &str) -> (Place, PathBuf, Server) {
    let place = Place::with(fs, "4G");
    let config = place.pool("");
    let server = Server::start(&place, &config);
    (place, config, server)
}

fn key_of(id: &str) -> &str {
    id.split('/').next_back().unwrap()
}

fn fill(device: &Path, byte: u8, mib: usize) {
    let mut file = OpenOptions::new().write(true).open(device).unwrap();
    file.write_all(&vec![byte; mib << 20]).unwrap();
    file.sync_all().unwrap();
}

fn first_byte(path: &Path) -> u8 {
    let mut read = [0];
    File::open(path).unwrap().read_exact_at(&mut read, 0).unwrap();
    read[0]
}

#[test]
fn a_piece_that_no_record_knows_is_never_taken_for_a_new_one() {
    let (place, config, mut server) = on("xfs");
    let mut volume = Volume::block("v", 64 * MIB);
    server.client().create(&mut volume).unwrap();
    server.stop();
    let piece = place.pool_directory().join("images").join(key_of(&volume.id));
    fill(&piece, 7, 64);
    fs::remove_file(place.pool_directory().join("records").join(format!("{}.ready", key_of(&volume.id)))).unwrap();
    let server = Server::start(&place, &config);
    let csi = server.client();
    for again in [Volume::block("v", 16 * MIB), Volume::filesystem("v", "ext4", 16 * MIB)] {
        assert_eq!(csi.create(&mut again.clone()).unwrap_err().code(), Code::FailedPrecondition);
    }
    assert_eq!((first_byte(&piece), fs::metadata(&piece).unwrap().len()), (7, 64 << 20));
    let doctor = std::process::Command::new(env!("CARGO_BIN_EXE_cistern"))
        .args(["doctor", "-o", "table", "--endpoint", server.socket().to_str().unwrap()])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&doctor.stdout).contains(key_of(&volume.id)));
    assert!(!doctor.status.success());
}

#[test]
fn a_source_that_is_copied_is_left_alone_until_the_copy_is_whole() {
    let place = Place::with("ext4", "4G");
    let config = place.pool("");
    let mut server = Server::start_with(Setting::Alone, &place, Some(&config), &[("CISTERN_STEP", "job.chunk=fail")]);
    let csi = server.client();
    let mut volume = Volume::block("v", 64 * MIB);
    csi.create(&mut volume).unwrap();
    let device = csi.use_at(&mut volume, &place.path("v")).unwrap();
    fill(&device, 1, 64);
    csi.release(&volume, &place.path("v")).unwrap();
    let cut = csi.snapshot(&volume, "s").unwrap();
    assert!(!cut.ready_to_use);
    // the copy has died with its guards; what it was to copy must not change all the same
    eventually("the copy dies", || server.log().contains("was asked to fail").then_some(()));
    assert_eq!(csi.attach(&mut volume.clone()).unwrap_err().code(), Code::Aborted);
    assert_eq!(csi.delete(&volume).unwrap_err().code(), Code::Aborted);
    assert_eq!(csi.expand(&mut volume.clone(), 128 * MIB).unwrap_err().code(), Code::Aborted);
    server.stop();
    let server = Server::start(&place, &config);
    let csi = server.client();
    assert!(csi.snapshot_when_ready(&volume, "s").unwrap().ready_to_use);
    eventually("the volume is free again", || csi.attach(&mut volume).ok());
}

#[test]
fn the_source_of_a_thick_copy_may_go_while_the_server_is_down() {
    let place = Place::with("xfs", "4G");
    let config = place.pool("");
    let mut server = Server::start_with(Setting::Alone, &place, Some(&config), &[("CISTERN_STEP", "job.chunk=die")]);
    let csi = server.client();
    let mut volume = Volume::block("v", 64 * MIB).with("allocation", "thick");
    csi.create(&mut volume).unwrap();
    let device = csi.use_at(&mut volume, &place.path("v")).unwrap();
    fill(&device, 3, 64);
    csi.release(&volume, &place.path("v")).unwrap();
    let mut clone = Volume::block("c", 64 * MIB).with("allocation", "thick").cloned_from(&volume);
    assert!(csi.create(&mut clone).is_err());
    eventually("the server dies", || server.has_ended().then_some(()));
    let server = Server::start(&place, &config);
    let csi = server.client();
    csi.delete(&volume).unwrap();
    eventually("the clone is made", || csi.create(&mut clone).ok());
    let device = csi.use_at(&mut clone, &place.path("c")).unwrap();
    assert_eq!(first_byte(&device), 3);
    csi.release(&clone, &place.path("c")).unwrap();
    csi.delete(&clone).unwrap();
    place.inventory().assert_empty();
}

#[test]
fn what_is_mounted_elsewhere_is_nobodys_to_unmount() {
    let (place, _, server) = on("xfs");
    let csi = server.client();
    let mut one = Volume::filesystem("one", "ext4", 32 * MIB);
    let mut two = Volume::filesystem("two", "ext4", 32 * MIB);
    for volume in [&mut one, &mut two] {
        csi.create(volume).unwrap();
        csi.attach(volume).unwrap();
    }
    let (staging, foreign) = (place.path("one/staging"), place.path("foreign"));
    csi.stage(&one, &staging).unwrap();
    fs::create_dir(&foreign).unwrap();
    run(&["mount", "-t", "tmpfs", "none", foreign.to_str().unwrap()]);
    fs::write(staging.join("file"), "one").unwrap();
    for path in [&staging, &foreign] {
        assert_eq!(csi.stage(&two, path).unwrap_err().code(), Code::FailedPrecondition, "{}", path.display());
        csi.unstage(&two, path).unwrap();
        csi.unpublish(&two, path).unwrap();
    }
    assert_eq!(fs::read_to_string(staging.join("file")).unwrap(), "one");
    assert!(place.inventory().mounts.contains(&foreign));
    let kept = place.path("kept");
    fs::write(&kept, "somebody's").unwrap();
    assert!(csi.unpublish(&two, &kept).is_err());
    assert_eq!(fs::read_to_string(&kept).unwrap(), "somebody's");
}

#[test]
fn a_reader_that_fails_takes_no_other_reader_with_it() {
    let place = Place::with("xfs", "2G");
    let config = place.pool("");
    let server = Server::start(&place, &config);
    let csi = server.client();
    let mut volume = Volume::block("v", 32 * MIB);
    csi.create(&mut volume).unwrap();
    csi.attach(&mut volume).unwrap();
    let staging = place.path("staging");
    csi.stage(&volume, &staging).unwrap();
    let (writer, one, two) = (place.path("w"), place.path("one"), place.path("two"));
    csi.publish(&volume, &staging, &writer, false).unwrap();
    fill(&writer, 5, 1);
    csi.publish(&volume, &staging, &one, true).unwrap();
    csi.publish(&volume, &staging, &two, true).unwrap();
    assert_eq!(place.inventory().loops.len(), 2, "one device for the writer and one for all readers");
    csi.unpublish(&volume, &two).unwrap();
    assert_eq!(first_byte(&one), 5);
    assert!(OpenOptions::new().write(true).open(&one).and_then(|file| file.write_all_at(&[6], 0)).is_err());
    csi.unpublish(&volume, &one).unwrap();
    assert_eq!(place.inventory().loops.len(), 1);
    csi.unpublish(&volume, &writer).unwrap();
    csi.unstage(&volume, &staging).unwrap();
    csi.detach(&volume).unwrap();
    csi.delete(&volume).unwrap();
    place.inventory().assert_empty();
}

#[test]
fn wiping_overwrites_what_was_written() {
    for fs in ["xfs", "ext4"] {
        let (place, _, server) = on(fs);
        let csi = server.client();
        let mut volume = Volume::block("secret", 256 * MIB).with("wipe", "zero");
        csi.create(&mut volume).unwrap();
        let device = csi.use_at(&mut volume, &place.path("v")).unwrap();
        let secret = b"this must not be found again on any disk ".repeat(100_000);
        OpenOptions::new().write(true).open(&device).unwrap().write_all_at(&secret, 0).unwrap();
        csi.release(&volume, &place.path("v")).unwrap();
        run(&["sync"]);
        let found = || {
            let disk = place.path("disk.img");
            let grep =
                std::process::Command::new("grep").args(["-c", "-a", "must not be found"]).arg(disk).output().unwrap();
            String::from_utf8_lossy(&grep.stdout).trim().parse::<u64>().unwrap()
        };
        assert!(found() > 0, "{fs}: the test sees it while it is there");
        csi.delete(&volume).unwrap();
        run(&["sync"]);
        assert_eq!(found(), 0, "{fs}");
        place.inventory().assert_empty();
    }
}

#[test]
fn a_full_pool_can_be_emptied_and_opened() {
    let (place, config, mut server) = on("xfs");
    let csi = server.client();
    let mut volume = Volume::block("v", 32 * MIB);
    csi.create(&mut volume).unwrap();
    csi.attach(&mut volume).unwrap();
    let mut file = File::create(place.path("disk/others")).unwrap();
    let chunk = vec![9; 1 << 16];
    while file.write_all(&chunk).is_ok() {}
    if let Ok(mut rest) = File::create(place.path("disk/rest")) {
        while rest.write_all(&[9; 512]).is_ok() {}
    }
    server.stop();
    let server = Server::start(&place, &config);
    let csi = server.client();
    csi.detach(&volume).unwrap();
    csi.delete(&volume).unwrap();
    assert!(place.inventory().files.is_empty());
}

#[test]
fn a_lost_piece_can_be_detached_and_deleted() {
    let (place, config, mut server) = on("xfs");
    let csi = server.client();
    let mut volume = Volume::block("v", 32 * MIB);
    csi.create(&mut volume).unwrap();
    csi.attach(&mut volume).unwrap();
    server.kill();
    fs::remove_file(place.pool_directory().join("images").join(key_of(&volume.id))).unwrap();
    let server = Server::start(&place, &config);
    let csi = server.client();
    csi.detach(&volume).unwrap();
    csi.delete(&volume).unwrap();
    place.inventory().assert_empty();
}

#[test]
fn a_store_that_its_owner_gave_up_is_gone() {
    let (place, config, mut server) = on("xfs");
    let mut volume = Volume::block("v", 32 * MIB);
    server.client().create(&mut volume).unwrap();
    server.stop();
    fs::rename(place.pool_directory(), place.path("disk/away")).unwrap();
    let store = volume.id.split('/').next().unwrap().to_owned();
    let server = Server::start(&place, &config);
    let csi = server.client();
    assert_eq!(csi.delete(&volume).unwrap_err().code(), Code::Unavailable);
    place.pool(&format!("  lost: [{store}]\n"));
    eventually("a new store is made", || csi.create(&mut Volume::block("w", 32 * MIB)).ok());
    csi.delete(&volume).unwrap();
    assert_eq!(csi.attach(&mut volume.clone()).unwrap_err().code(), Code::NotFound);
    drop(server);
    // one that comes back is held apart
    fs::rename(place.pool_directory(), place.path("disk/new")).unwrap();
    fs::rename(place.path("disk/away"), place.pool_directory()).unwrap();
    let server = Server::start(&place, &config);
    let refused = server.client().create(&mut Volume::block("x", 32 * MIB)).unwrap_err();
    assert!(refused.message().contains("given up"), "{}", refused.message());
}

#[test]
fn a_server_that_stops_leaves_the_next_ones_socket() {
    let (place, config, mut server) = on("xfs");
    support::signal(server.pid(), rustix::process::Signal::TERM);
    let served = server.log().matches(": serving").count();
    let mut next = loop {
        // until the first has let go of the data directory the second is refused
        let mut next = Server::begin(&place, &config);
        let has_ended = eventually("the next one serves or ends", || match next.has_ended() {
            true => Some(true),
            false => (next.log().matches(": serving").count() > served).then_some(false),
        });
        if !has_ended {
            break next;
        }
    };
    eventually("the first has ended", || server.has_ended().then_some(()));
    eventually("the next one serves", || support::Csi::try_connect(&next.socket()));
    assert!(next.stop().success());
}

#[test]
fn a_copy_that_finds_no_room_leaves_nothing_that_takes_some() {
    let (place, _, server) = on("xfs");
    let csi = server.client();
    let mut volume = Volume::block("v", 1536 * MIB).with("allocation", "thick");
    csi.create(&mut volume).unwrap();
    let before = csi.capacity();
    // room for a snapshot, and none for the temporary piece that it is copied from
    assert!(before > volume.size && before < 2 * volume.size);
    assert_eq!(csi.snapshot(&volume, "s").unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(csi.capacity(), before);
    let pieces =
        place.inventory().files.into_iter().filter(|file| file.starts_with(place.pool_directory().join("images")));
    assert_eq!(pieces.count(), 1);
}
