//! Killed at every step: the list of steps comes from the code. A life with every kind of volume is lived through once for
//! each step; the server dies there (or the operation alone does), the calls are asked again, and at the end all data is
//! right and nothing is left over.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cistern::proto::csi::v1::volume_capability::access_mode::Mode;
use rustix::process::Signal;
use support::client::MIB;
use support::{Csi, Place, Server, Volume, eventually, steps};
use tonic::{Code, Status};

/// Steps that a `dir` pool has no way to reach, with the reason.
const OUT_OF_REACH: [(&str, &str); 4] =
    [("create.passed-over", ALONE), ("find.claim", ALONE), ("settle.asked", ALONE), ("settle.yield", ALONE)];
const ALONE: &str = "a server that is all there is has no controller that asks it";

/// What happens at the step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    /// The whole process dies.
    Die,
    /// The operation ends without an answer, and the process lives on.
    Fail,
}

/// A life under the threat of one step.
struct Life {
    csi: Csi,
    // ends before its place is cleared
    server: Server,
    place: Place,
    config: PathBuf,
    act: Act,
    deaths: u32,
}

impl Life {
    fn begin(fs: &str, step: &str, act: Act) -> Life {
        let place = Place::with(fs, "6G");
        let config = place.pool("");
        let word = if act == Act::Die { "die" } else { "fail" };
        let server = Server::start_with(&place, Some(&config), &[("CISTERN_STEP", &format!("{step}={word}"))]);
        let csi = server.client();
        Life { csi, server, place, config, act, deaths: 0 }
    }

    /// Makes a call, and makes it again until it is answered with success: after a death with a new server.
    fn call<T>(&mut self, what: &str, mut call: impl FnMut(&Csi) -> Result<T, Status>) -> T {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let status = match call(&self.csi) {
                Ok(answer) => return answer,
                Err(status) => status,
            };
            assert!(Instant::now() < end, "{what}: {status:?}");
            if self.act == Act::Die && self.died(&status) {
                self.deaths += 1;
                assert!(self.deaths < 10, "{what}: it dies again and again");
                self.server = Server::start(&self.place, &self.config);
                self.csi = self.server.client();
            } else if self.act == Act::Fail && status.message().contains("without an answer") {
                // the step is reached at every try, so the next server is a sound one
                self.deaths += 1;
                if self.deaths > 2 {
                    self.server.stop();
                    self.server = Server::start(&self.place, &self.config);
                    self.csi = self.server.client();
                }
            } else {
                assert!(matches!(status.code(), Code::Aborted | Code::Unavailable), "{what}: {status:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Whether the server has died, or is just dying.
    fn died(&mut self, status: &Status) -> bool {
        if !matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal) {
            return self.server.has_ended();
        }
        let end = Instant::now() + Duration::from_secs(2);
        while !self.server.has_ended() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.server.has_ended()
    }

    fn create(&mut self, mut volume: Volume) -> Volume {
        let name = volume.name.clone();
        self.call(&format!("create {name}"), |csi| csi.create(&mut volume));
        volume
    }

    fn snapshot(&mut self, volume: &Volume, name: &str) -> String {
        let what = format!("snapshot {name}");
        for tries in 0..2000 {
            let cut = self.call(&what, |csi| csi.snapshot(volume, name));
            if cut.ready_to_use {
                return cut.snapshot_id;
            }
            if self.act == Act::Fail && tries == 20 {
                // its copy fails at every try, and nobody is told: a sound server goes on with it
                self.deaths += 1;
                self.server.stop();
                self.server = Server::start(&self.place, &self.config);
                self.csi = self.server.client();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{what} is never ready");
    }

    fn use_at(&mut self, volume: &mut Volume, read_only: bool) -> PathBuf {
        let at = self.place.path(&volume.name);
        let (staging, target) = (at.join("staging"), at.join("target"));
        self.call("attach", |csi| csi.attach(volume));
        self.call("stage", |csi| csi.stage(volume, &staging));
        self.call("publish", |csi| csi.publish(volume, &staging, &target, read_only));
        target
    }

    fn release_and_delete(&mut self, volume: &Volume) {
        let at = self.place.path(&volume.name);
        self.call("unpublish", |csi| csi.unpublish(volume, &at.join("target")));
        self.call("unstage", |csi| csi.unstage(volume, &at.join("staging")));
        self.call("detach", |csi| csi.detach(volume));
        self.call("delete", |csi| csi.delete(volume));
    }
}

const MARK: &[u8] = b"what a guest wrote";

fn write(device: &Path, at: i64) {
    let file = OpenOptions::new().write(true).open(device).unwrap();
    file.write_all_at(MARK, u64::try_from(at).unwrap()).unwrap();
    file.sync_all().unwrap();
}

fn check(device: &Path, at: i64) {
    let mut read = [0; MARK.len()];
    File::open(device).unwrap().read_exact_at(&mut read, u64::try_from(at).unwrap()).unwrap();
    assert_eq!(read, MARK, "{}", device.display());
}

/// Every operation on every kind of volume, with data checked on the way.
fn live(life: &mut Life) {
    let mut thin = life.create(Volume::block("thin", 32 * MIB).with("wipe", "zero"));
    let mut thick = life.create(Volume::block("thick", 32 * MIB).with("allocation", "thick").with("wipe", "discard"));
    let mut files = life.create(Volume::filesystem("files", "xfs", 320 * MIB));
    let thin_device = life.use_at(&mut thin, false);
    let thick_device = life.use_at(&mut thick, false);
    let root = life.use_at(&mut files, false);
    for device in [&thin_device, &thick_device] {
        write(device, 0);
        write(device, 20 * MIB);
    }
    fs::write(root.join("file"), MARK).unwrap();

    let thin_cut = life.snapshot(&thin, "thin-cut");
    let thick_cut = life.snapshot(&thick, "thick-cut");
    let files_cut = life.snapshot(&files, "files-cut");
    let mut restored = life.create(Volume::block("restored", 64 * MIB).restored_from(&thin_cut));
    let mut copied = life.create(Volume::block("copied", 48 * MIB).with("allocation", "thick").cloned_from(&thick));
    let mut cloned = life.create(Volume::filesystem("cloned", "xfs", 400 * MIB).restored_from(&files_cut));

    let restored_device = life.use_at(&mut restored, true);
    let copied_device = life.use_at(&mut copied, false);
    let cloned_root = life.use_at(&mut cloned, false);
    for device in [&restored_device, &copied_device] {
        check(device, 0);
        check(device, 20 * MIB);
    }
    assert!(OpenOptions::new().write(true).open(&restored_device).and_then(|file| file.write_all_at(MARK, 0)).is_err());
    assert_eq!(fs::read(cloned_root.join("file")).unwrap(), MARK);

    life.call("expand", |csi| csi.expand(&mut thick, 48 * MIB));
    life.call("node expand", |csi| csi.node_expand(&thick, &thick_device));
    write(&thick_device, 40 * MIB);
    life.call("expand", |csi| csi.expand(&mut files, 400 * MIB));
    life.call("node expand", |csi| csi.node_expand(&files, &root));
    life.call("modify", |csi| csi.modify(&thin, "readAheadKiB", "64"));

    for (device, at) in [(&thin_device, 0), (&thin_device, 20), (&thick_device, 0), (&thick_device, 40)] {
        check(device, at * MIB);
    }
    assert_eq!(fs::read(root.join("file")).unwrap(), MARK);
    for volume in [&thin, &thick, &files, &restored, &copied, &cloned] {
        life.release_and_delete(volume);
    }
    for snapshot in [&thin_cut, &thick_cut, &files_cut] {
        life.call("delete snapshot", |csi| csi.delete_snapshot(snapshot));
    }
}

/// Lives one life for each of these steps; answers those that were never reached.
fn live_with(act: Act, steps: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut unreached = Vec::new();
    for step in steps {
        let begun = Instant::now();
        let mut life = Life::begin("xfs", &step, act);
        live(&mut life);
        eventually("the place is empty", || {
            let left = life.place.inventory();
            (left.files.is_empty() && left.loops.is_empty()).then_some(())
        });
        life.place.inventory().assert_empty();
        println!("{act:?} at {step}: reached {} times, {} ms", life.deaths, begun.elapsed().as_millis());
        if life.deaths == 0 {
            unreached.push(step);
        }
    }
    unreached
}

/// Half of the steps each, so that two run at a time.
fn half(of: usize) -> Vec<String> {
    steps().into_iter().enumerate().filter(|(at, _)| at % 2 == of).map(|(_, step)| step).collect()
}

fn assert_reached(unreached: Vec<String>) {
    let known: Vec<&str> = OUT_OF_REACH.iter().map(|(step, _)| *step).collect();
    let missed: Vec<&String> = unreached.iter().filter(|step| !known.contains(&step.as_str())).collect();
    assert!(missed.is_empty(), "no life reaches {missed:?}");
}

#[test]
fn the_server_dies_at_every_step_of_one_half() {
    assert_reached(live_with(Act::Die, half(0)));
}

#[test]
fn the_server_dies_at_every_step_of_the_other_half() {
    assert_reached(live_with(Act::Die, half(1)));
}

#[test]
fn the_operation_fails_at_every_step() {
    assert_reached(live_with(Act::Fail, steps()));
}

#[test]
fn the_inventory_sees_what_is_planted() {
    let place = Place::with("xfs", "1G");
    let config = place.pool("");
    let server = Server::start(&place, &config);
    place.inventory().assert_empty();
    let images = place.pool_directory().join("images");
    let piece = images.join("v-00000000000000000000000000000000");
    File::create(&piece).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(place.inventory().files, std::slice::from_ref(&piece));
    let device = support::run(&["losetup", "--find", "--show", piece.to_str().unwrap()]);
    assert_eq!(place.inventory().loops, [device.trim()]);
    let target = place.path("target");
    fs::create_dir(&target).unwrap();
    support::run(&["mount", "--bind", images.to_str().unwrap(), target.to_str().unwrap()]);
    assert_eq!(place.inventory().mounts, [target]);
    fs::create_dir_all(place.path("data/stage")).unwrap();
    File::create(place.path("data/stage/note")).unwrap();
    assert_eq!(place.inventory().notes.len(), 1);
    let caught = std::panic::catch_unwind(|| place.inventory().assert_empty());
    assert!(caught.is_err());
    drop(server);
}

#[test]
fn read_only_modes_are_kept() {
    let place = Place::with("xfs", "2G");
    let config = place.pool("");
    let server = Server::start(&place, &config);
    let csi = server.client();
    let mut volume = Volume::block("reader", 32 * MIB).mode(Mode::SingleNodeReaderOnly);
    csi.create(&mut volume).unwrap();
    let device = csi.use_at(&mut volume, &place.path("v")).unwrap();
    assert!(OpenOptions::new().write(true).open(&device).and_then(|file| file.write_all_at(MARK, 0)).is_err());
    csi.release(&volume, &place.path("v")).unwrap();
    csi.delete(&volume).unwrap();
    place.inventory().assert_empty();
}

/// The process whose arguments name a tool and something below the place.
fn find_tool(place: &Place, tool: &str) -> Option<String> {
    let root = place.path("").to_str().unwrap().to_owned();
    for entry in fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let arguments = fs::read(path.join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let is_tool = arguments.split(' ').next().is_some_and(|program| program.ends_with(tool));
        if is_tool && arguments.contains(&root) {
            return Some(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    None
}

#[test]
fn a_tool_that_outlives_the_server_is_neither_cut_off_nor_raced() {
    // large, and sparse: making a file system in such a volume takes a moment
    let place = Place::with("ext4", "4T");
    let config = place.pool("");
    let mut server = Server::start(&place, &config);
    let mut volume = Volume::filesystem("large", "ext4", 1 << 41);
    let asking = std::thread::spawn({
        let (client, mut volume) = (server.client(), volume.clone());
        move || client.create(&mut volume)
    });
    let tool = eventually("mkfs runs", || find_tool(&place, "mkfs.ext4"));
    let tool_number = tool.parse().unwrap();
    support::signal(tool_number, Signal::STOP);
    server.kill();
    assert!(asking.join().unwrap().is_err());
    let server = Server::start(&place, &config);
    let csi = server.client();
    assert_eq!(csi.create(&mut volume).unwrap_err().code(), Code::Aborted);
    assert!(csi.create(&mut Volume::block("other", 32 * MIB)).is_ok(), "it costs only its own volume");
    assert!(Path::new("/proc").join(&tool).exists(), "the tool is still there");
    support::signal(tool_number, Signal::CONT);
    eventually("the volume is made", || csi.create(&mut volume).ok());
    let device = csi.use_at(&mut volume, &place.path("v")).unwrap();
    fs::write(device.join("file"), MARK).unwrap();
    csi.release(&volume, &place.path("v")).unwrap();
    csi.delete(&volume).unwrap();
    assert_eq!(place.inventory().notes, Vec::<PathBuf>::new());
}
