//! Killed at every step: the list of steps comes from the code. A life with every kind of volume is lived through once for
//! each step; the server dies there (or the operation alone does), the calls are asked again, and at the end all data is
//! right and nothing is left over.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cistern::proto::csi::v1::volume_capability::access_mode::Mode;
use rustix::process::Signal;
use support::client::MIB;
use support::fleet::{self, Controller};
use support::machine::Machine;
use support::peers::Pki;
use support::server::STEP_FAILED;
use support::{Csi, Dice, Place, Server, Setting, Volume, eventually, seed_of_commit, steps};
use tonic::{Code, Status};

/// Steps that only a controller leads to; with these a name has to be made twice, as in
/// `a_name_made_twice_is_settled_by_hosts_that_die_at_every_step_of_it`.
const MADE_TWICE: [&str; 3] = ["create.passed-over", "settle.asked", "settle.yield"];
const CONTROLLERS: [&str; 1] = ["find.claim"];

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    /// The whole process dies at the step; in a fleet that of the host, which is the node's too.
    Die,
    /// The operation ends at the step without an answer, and the process lives on.
    Fail,
}

/// A life under the threat of one step.
struct Life {
    csi: Csi,
    // ends before its place is cleared
    server: Server,
    place: Place,
    act: Act,
    deaths: usize,
    threat: Option<Threat>,
}

/// What kills the controller at each call.
struct Threat {
    dice: Dice,
    killer: Option<JoinHandle<()>>,
}

impl Threat {
    /// Waits until it has killed; says whether there was anything to wait for.
    fn is_over(&mut self) -> bool {
        self.killer.take().map(|killer| killer.join().unwrap()).is_some()
    }
}

impl Life {
    fn begin(setting: Setting, fs: &str, step: &str, act: Act) -> Life {
        let place = Place::with(fs, "6G");
        let config = place.pool("");
        let word = if act == Act::Die { "die" } else { "fail" };
        let variables = [("CISTERN_STEP", &*format!("{step}={word}"))];
        let mut server = Server::start_with(setting, &place, Some(&config), &variables);
        let deaths = usize::from(server.has_ended());
        if server.has_ended() {
            server.start_again();
        }
        Life { csi: server.client(), server, place, act, deaths, threat: None }
    }

    /// One in which no step fails, and the controller is killed at each call, at a moment drawn from the seed.
    fn begin_without_controller(seed: u64) -> Life {
        let place = Place::with("xfs", "6G");
        let config = place.pool("");
        let server = Server::start_in(Setting::Fleet, &place, &config);
        let threat = Some(Threat { dice: Dice::new(seed), killer: None });
        Life { csi: server.client(), server, place, act: Act::Die, deaths: 0, threat }
    }

    /// Makes a call, and makes it again until it is answered with success: after a death with a new server.
    fn call<T>(&mut self, what: &str, mut call: impl FnMut(&Csi) -> Result<T, Status>) -> T {
        let end = Instant::now() + Duration::from_secs(60);
        self.kill_controller_soon();
        loop {
            let status = match call(&self.csi) {
                Ok(answer) => return answer,
                Err(status) => status,
            };
            assert!(Instant::now() < end, "{what}: {status:?}");
            if self.revive_controller() {
                continue;
            }
            if self.act == Act::Die && self.died(&status) {
                self.deaths += 1;
                assert!(self.deaths < 10, "{what}: it dies again and again");
                self.start_again();
            } else if self.act == Act::Fail && self.failures() > self.deaths {
                // the step is reached at every try, so the next server is a sound one
                self.deaths = self.failures();
                if self.deaths > 2 {
                    self.server.stop();
                    self.start_again();
                }
            } else {
                assert!(matches!(status.code(), Code::Aborted | Code::Unavailable), "{what}: {status:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn start_again(&mut self) {
        self.server.start_again();
        self.csi = self.server.client();
    }

    /// How often the step has failed.
    fn failures(&self) -> usize {
        self.server.log().matches(STEP_FAILED).count()
    }

    /// The controller is dead when the call is made, or dies while it is under way or soon after.
    fn kill_controller_soon(&mut self) {
        let Some(threat) = &mut self.threat else { return };
        let (is_dead, after) = (threat.is_over(), Duration::from_millis(threat.dice.below(30) as u64));
        let stays_dead = is_dead && threat.dice.below(2) == 0;
        if is_dead && !stays_dead {
            self.revive_controller();
        }
        let Some(threat) = self.threat.as_mut().filter(|_| !stays_dead) else { return };
        let process = self.server.controller().unwrap().process().pid();
        threat.killer = Some(std::thread::spawn(move || {
            std::thread::sleep(after);
            support::signal(process, Signal::KILL);
        }));
    }

    /// Starts the controller again, if it is one that dies.
    fn revive_controller(&mut self) -> bool {
        let Some(threat) = &mut self.threat else { return false };
        threat.is_over();
        let controller = self.server.controller().unwrap();
        controller.kill();
        controller.start();
        self.deaths += 1;
        self.csi = self.server.client();
        true
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
                self.deaths = self.failures();
                self.server.stop();
                self.start_again();
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

/// Lives a life to its end, after which nothing is left over.
fn live_through(life: &mut Life) {
    live(life);
    eventually("the place is empty", || {
        let left = life.place.inventory();
        (left.files.is_empty() && left.loops.is_empty()).then_some(())
    });
    life.place.inventory().assert_empty();
}

/// Lives one life for each of these steps, and fails if one that can be reached is not.
fn live_with(setting: Setting, act: Act, steps: impl IntoIterator<Item = String>) {
    let mut unreached = Vec::new();
    for step in steps {
        let begun = Instant::now();
        let mut life = Life::begin(setting, "xfs", &step, act);
        live_through(&mut life);
        println!("{setting:?}, {act:?} at {step}: reached {} times, {} ms", life.deaths, begun.elapsed().as_millis());
        if life.deaths == 0 {
            unreached.push(step);
        }
    }
    assert!(unreached.is_empty(), "no life reaches {unreached:?}");
}

/// The steps that a life can reach: all of them alone, and a quarter of them in a fleet, in turn by commit, or all where
/// CISTERN_ALL_STEPS is set. Of these half, so that two run at a time.
fn half(setting: Setting, of: usize) -> Vec<String> {
    let all = setting == Setting::Alone || std::env::var_os("CISTERN_ALL_STEPS").is_some();
    let (part, turn) = if all { (1, 0) } else { (4, usize::try_from(seed_of_commit() % 4).unwrap()) };
    let is_out_of_reach =
        |step: &str| MADE_TWICE.contains(&step) || setting == Setting::Alone && CONTROLLERS.contains(&step);
    let steps = steps().into_iter().filter(|step| !is_out_of_reach(step)).enumerate();
    let in_turn = steps.filter(|(at, _)| at % part == turn).map(|(_, step)| step).enumerate();
    in_turn.filter(|(at, _)| at % 2 == of).map(|(_, step)| step).collect()
}

fn the_server_dies_at_every_step_of_one_half(setting: Setting) {
    live_with(setting, Act::Die, half(setting, 0));
}

fn the_server_dies_at_every_step_of_the_other_half(setting: Setting) {
    live_with(setting, Act::Die, half(setting, 1));
}

fn the_operation_fails_at_every_step(setting: Setting) {
    live_with(setting, Act::Fail, [half(setting, 0), half(setting, 1)].concat());
}

in_each_setting!(
    the_server_dies_at_every_step_of_one_half,
    the_server_dies_at_every_step_of_the_other_half,
    the_operation_fails_at_every_step,
);

#[test]
fn the_controller_dies_at_every_call() {
    for seed in 0..3 {
        let begun = Instant::now();
        let mut life = Life::begin_without_controller(seed);
        live_through(&mut life);
        println!("seed {seed}: the controller died {} times, {} ms", life.deaths, begun.elapsed().as_millis());
        assert!(life.deaths > 20);
    }
}

/// Two hosts with a pool `p` each, which may die at a step, and a controller that waits for no host that is away.
struct Pair {
    controller: Controller,
    hosts: [Machine; 2],
    places: [Place; 2],
    _pki: Pki,
    deaths: usize,
}

impl Pair {
    fn begin(step: &str) -> Pair {
        let (pki, places) = (Pki::new(), [(); 2].map(|()| Place::with("xfs", "2G")));
        let mut controller = Controller::new(places[0].path("controller"), &pki).with(&["--patience", "0"]);
        let hosts = [("a", &places[0]), ("b", &places[1])].map(|(name, place)| {
            let mut host = fleet::host(name, place.path(""), Some(&place.pool("")), &pki);
            host.begin(&[("CISTERN_STEP", &format!("{step}=die"))]);
            controller.add(&host);
            host
        });
        controller.start();
        controller.wait_for("a");
        controller.wait_for("b");
        Pair { controller, hosts, places, _pki: pki, deaths: 0 }
    }

    /// Starts those that have died again.
    fn revive(&mut self) {
        for host in &mut self.hosts {
            if !host.has_died() {
                continue;
            }
            self.deaths += 1;
            host.start();
        }
    }

    /// Asks until it is so, whoever dies meanwhile.
    fn until<T>(&mut self, what: &str, mut ask: impl FnMut(&Controller) -> Option<T>) -> T {
        eventually(what, || {
            self.revive();
            ask(&self.controller)
        })
    }

    fn create(&mut self, name: &str, hosts: &[&str]) -> Volume {
        let csi = self.controller.client();
        self.until(&format!("create {name} on {hosts:?}"), |_| {
            let mut volume = Volume::block(name, 32 * MIB).on(hosts);
            match csi.create(&mut volume) {
                Ok(_) => Some(volume),
                Err(status) => {
                    assert!(matches!(status.code(), Code::Aborted | Code::Unavailable), "{status:?}");
                    None
                }
            }
        })
    }
}

#[test]
fn a_name_made_twice_is_settled_by_hosts_that_die_at_every_step_of_it() {
    for step in MADE_TWICE {
        let mut pair = Pair::begin(step);
        let first = pair.create("twice", &["a"]);
        let other = pair.create("once", &["b"]);
        pair.hosts[0].stop();
        pair.controller.wait_until_away("a");
        let second = pair.create("twice", &["a", "b"]);
        assert_ne!(first.id, second.id);
        assert_eq!(pair.create("once", &["a", "b"]).id, other.id);
        pair.hosts[0].begin(&[("CISTERN_STEP", &format!("{step}=die"))]);
        pair.until("both names are settled", |controller| {
            let volumes = controller.describe().volumes;
            let is_settled = volumes.len() == 2 && volumes.iter().all(|volume| volume.passed_over.is_empty());
            (is_settled && volumes.iter().all(|volume| [&second.id, &other.id].contains(&&volume.id))).then_some(())
        });
        pair.places[0].inventory().assert_empty();
        println!("die at {step}: reached {} times", pair.deaths);
        assert!(pair.deaths > 0, "no life reaches {step}");
    }
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
