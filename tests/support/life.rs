//! A life of volumes and snapshots in a host whose power fails once. What was answered is written down here, and held
//! against the host after the cut: what is listed, and every byte that was synced.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tonic::{Code, Status};

use super::client::MIB;
use super::{Csi, Host, Volume, eventually};

const SOCKET: &str = "/run/cistern/csi.sock";
const PLACE: &str = "/place";
/// How much is written at a time.
const PIECE: usize = 64 << 10;

/// What a pool stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// A directory on XFS, which has reflinks.
    Xfs,
    /// A pool that is one file, on ext4.
    Image,
    /// A directory on ext4, which has none.
    Ext4,
}

impl Ground {
    pub const ALL: [Ground; 3] = [Ground::Xfs, Ground::Image, Ground::Ext4];

    pub fn has_reflinks(self) -> bool {
        self != Ground::Ext4
    }

    fn pools(self) -> &'static str {
        match self {
            Ground::Image => "pools:\n- name: p\n  dir: { path: /place/disk/pool, image: { size: 2560Mi } }\n",
            _ => "pools:\n- name: p\n  dir: { path: /place/disk/pool }\n",
        }
    }

    fn mkfs(self) -> &'static str {
        match self {
            Ground::Xfs => "mkfs.xfs -qf",
            _ => "mkfs.ext4 -qF",
        }
    }

    /// The kernel writes nothing by itself: what nobody has synced is lost.
    fn mount(self) -> &'static str {
        match self {
            Ground::Xfs => "mount",
            _ => "mount -o commit=3600",
        }
    }
}

/// When the power fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// It does not.
    Never,
    /// When this step of the code is reached.
    AtStep(String),
    /// So long after this deed has begun.
    After(usize, Duration),
    /// When this deed has been answered, before anything else is done.
    Answered(usize),
    /// This is never brought to the disk, and the power fails after the deed in which that was so for this many times.
    Unsynced(String, usize),
}

impl Cut {
    /// What the server is told.
    fn variables(&self, hang: &str, seen: &str) -> Vec<(&'static str, String)> {
        match self {
            Cut::AtStep(step) => vec![
                ("CISTERN_STEP", format!("{step}=hang")),
                ("CISTERN_STEP_HANG", hang.to_owned()),
                ("CISTERN_STEP_SEEN", seen.to_owned()),
            ],
            Cut::Unsynced(name, _) => {
                vec![("CISTERN_UNSYNCED", name.clone()), ("CISTERN_STEP_SEEN", seen.to_owned())]
            }
            _ => Vec::new(),
        }
    }
}

/// Where something is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Asked for.
    Making,
    /// Answered.
    Made,
    /// To be removed.
    Removing,
    /// Answered.
    Gone,
}

/// Places that were written and synced, and what was.
type Content = BTreeMap<(String, u64), u64>;

/// A volume as it was answered.
struct Kept {
    volume: Volume,
    state: State,
    /// `None` while that is being changed.
    attached: Option<bool>,
    staged: bool,
    published: bool,
    read_only: bool,
    /// It may have this size already.
    growing_to: i64,
    content: Content,
}

impl Kept {
    fn staging(&self) -> PathBuf {
        Path::new(PLACE).join(&self.volume.name).join("staging")
    }

    fn target(&self) -> PathBuf {
        Path::new(PLACE).join(&self.volume.name).join("target")
    }

    fn path(&self, file: &str) -> PathBuf {
        if file.is_empty() { self.target() } else { self.target().join(file) }
    }
}

/// A snapshot as it was answered.
struct KeptSnapshot {
    id: String,
    state: State,
    content: Content,
}

/// A life in a host.
pub struct Life<'a> {
    host: &'a Host,
    ground: Ground,
    csi: Option<Csi>,
    cut: Cut,
    deeds: usize,
    written: u64,
    /// How many deeds have left out what is not to be synced.
    left_out: usize,
    volumes: BTreeMap<String, Kept>,
    snapshots: BTreeMap<String, KeptSnapshot>,
    power_failed: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
    /// In which deed the power failed.
    pub cut_in: Option<usize>,
}

impl<'a> Life<'a> {
    /// Formats the host's disk, and starts a server there.
    pub fn begin(host: &'a Host, ground: Ground, cut: Cut) -> Life<'a> {
        let (mkfs, mount, pools) = (ground.mkfs(), ground.mount(), ground.pools());
        host.sh("systemctl stop cistern 2>/dev/null || true; ! mountpoint -q /place/disk || umount -R /place/disk");
        host.sh(&format!("rm -rf /place; mkdir -p /place/disk; {mkfs} /dev/ubdb; {mount} /dev/ubdb /place/disk"));
        host.write("/place/pools.yaml", 0, pools.as_bytes());
        keep_in_memory(host);
        host.run(&["sync"]);
        let mut life = Life {
            host,
            ground,
            csi: None,
            cut,
            deeds: 0,
            written: 0,
            left_out: 0,
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            power_failed: Arc::default(),
            is_over: Arc::default(),
            watcher: None,
            cut_in: None,
        };
        life.watch_for_step();
        life.deed("serve", |life| {
            if life.csi.is_none() {
                life.csi = Some(life.serve()?);
            }
            Ok(())
        });
        life
    }

    /// Starts the server.
    fn serve(&self) -> Result<Csi, Status> {
        let ((here, hang), (_, seen)) = (self.host.shared("hang"), self.host.shared("seen"));
        std::fs::write(here, "").unwrap();
        let variables = self.cut.variables(&hang, &seen);
        let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let arguments = ["serve", "--node-id", "a", "--config", "/place/pools.yaml", "--data", "/place/data"];
        self.host.try_start_cistern(&arguments, &variables).map_err(Status::unknown)?;
        self.host.try_client(SOCKET).map_err(Status::unknown)
    }

    // --- the power

    fn watch_for_step(&mut self) {
        let (seen, _) = self.host.shared("seen");
        let _ = std::fs::remove_file(&seen);
        if !matches!(self.cut, Cut::AtStep(_)) {
            return;
        }
        let (host, failed, is_over) = (self.host.clone(), self.power_failed.clone(), self.is_over.clone());
        self.watcher = Some(std::thread::spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                if seen.exists() {
                    return fail(&host, &failed);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }));
    }

    /// A deed begins: is it time?
    fn next_deed(&mut self) {
        let answered = self.deeds;
        self.deeds += 1;
        match self.cut.clone() {
            Cut::After(deed, after) if deed == self.deeds => {
                let (host, failed) = (self.host.clone(), self.power_failed.clone());
                self.watcher = Some(std::thread::spawn(move || {
                    std::thread::sleep(after);
                    fail(&host, &failed);
                }));
            }
            Cut::Answered(deed) if deed == answered => fail(self.host, &self.power_failed),
            Cut::Unsynced(..) if std::fs::remove_file(self.host.shared("seen").0).is_ok() => self.count_unsynced(),
            _ => {}
        }
        if self.power_has_failed() && self.cut_in.is_none() {
            self.revive();
        }
    }

    fn count_unsynced(&mut self) {
        self.left_out += 1;
        if matches!(self.cut, Cut::Unsynced(_, wanted) if wanted == self.left_out) {
            fail(self.host, &self.power_failed);
        }
    }

    fn power_has_failed(&self) -> bool {
        self.power_failed.load(Ordering::SeqCst)
    }

    /// Does it, and does it again until it is answered with success; after a power cut in the host that has booted again.
    fn deed<T>(&mut self, what: &str, mut act: impl FnMut(&mut Life<'a>) -> Result<T, Status>) -> T {
        self.next_deed();
        let mut end = Instant::now() + Duration::from_secs(60);
        loop {
            let status = match act(self) {
                Ok(answer) => return answer,
                Err(status) => status,
            };
            if self.power_has_failed() && self.cut_in.is_none() {
                println!("the power failed in deed {} ({what})", self.deeds);
                self.revive();
                end = Instant::now() + Duration::from_secs(60);
                continue;
            }
            assert!(matches!(status.code(), Code::Aborted | Code::Unavailable), "{what}: {status:?}");
            assert!(Instant::now() < end, "{what}: {status:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Boots the host again and starts the server, as its machine does, and uses its volumes again, as kubelet does. All
    /// that was answered holds.
    fn revive(&mut self) {
        self.cut_in = Some(self.deeds);
        self.join_watcher();
        self.host.up();
        keep_in_memory(self.host);
        self.host.sh(&format!("{} /dev/ubdb /place/disk", self.ground.mount()));
        self.cut = Cut::Never;
        self.csi = Some(self.serve().unwrap_or_else(|status| panic!("it does not start again: {status:?}")));
        self.check_lists();
        for name in self.names() {
            let kept = &self.volumes[&name];
            let again = |what: &str, act: &dyn Fn() -> Result<(), Status>| {
                eventually(what, || match act() {
                    Err(status) if matches!(status.code(), Code::Aborted | Code::Unavailable) => None,
                    done => Some(done.unwrap_or_else(|status| panic!("{what} {name} again: {status:?}"))),
                });
            };
            if kept.staged {
                again("stage", &|| self.csi().stage(&kept.volume, &kept.staging()));
            }
            if kept.published {
                again("publish", &|| self.csi().publish(&kept.volume, &kept.staging(), &kept.target(), kept.read_only));
                self.compare(&name).unwrap();
            }
        }
    }

    fn join_watcher(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.join().unwrap();
        }
    }

    /// What is listed is what was answered; what was being asked for may be there or not.
    fn check_lists(&self) {
        let listed: BTreeMap<String, _> = self
            .csi()
            .volumes()
            .into_iter()
            .map(|entry| {
                let volume = entry.volume.unwrap();
                let is_attached = entry.status.is_some_and(|status| !status.published_node_ids.is_empty());
                (volume.volume_id, (volume.capacity_bytes, is_attached))
            })
            .collect();
        for kept in self.volumes.values() {
            let (name, found) = (&kept.volume.name, listed.get(&kept.volume.id));
            match kept.state {
                State::Made => {
                    let (size, is_attached) = found.unwrap_or_else(|| panic!("{name} is lost"));
                    let sizes = [kept.volume.size, kept.growing_to];
                    assert!(sizes.contains(size), "{name} has {size} bytes, not {sizes:?}");
                    let answered = kept.attached.unwrap_or(*is_attached);
                    assert_eq!(*is_attached, answered, "{name} is attached, as it was answered");
                }
                State::Gone => assert!(found.is_none(), "{name} came back"),
                State::Making | State::Removing => {}
            }
        }
        let cuts: Vec<String> = self.csi().snapshots().unwrap().into_iter().map(|cut| cut.snapshot_id).collect();
        for (name, kept) in &self.snapshots {
            match kept.state {
                State::Made => assert!(cuts.contains(&kept.id), "{name} is lost"),
                State::Gone => assert!(!cuts.contains(&kept.id), "{name} came back"),
                State::Making | State::Removing => {}
            }
        }
        let ids = self.volumes.values().map(|kept| &kept.volume.id).chain(self.snapshots.values().map(|kept| &kept.id));
        let ids: Vec<&String> = ids.collect();
        let is_making = self.volumes.values().any(|kept| kept.state == State::Making)
            || self.snapshots.values().any(|kept| kept.state == State::Making);
        let strangers = listed.keys().chain(&cuts).filter(|id| !ids.contains(id)).count();
        assert!(strangers <= usize::from(is_making), "nobody asked for {strangers} of {listed:?} and {cuts:?}");
    }

    // --- deeds

    fn csi(&self) -> &Csi {
        self.csi.as_ref().expect("the server has been started")
    }

    fn names(&self) -> Vec<String> {
        self.volumes.keys().cloned().collect()
    }

    fn kept(&mut self, name: &str) -> &mut Kept {
        self.volumes.get_mut(name).unwrap_or_else(|| panic!("no volume {name}"))
    }

    /// How many deeds there were.
    pub fn deeds(&self) -> usize {
        self.deeds
    }

    /// Creates a volume with this content.
    pub fn create(&mut self, volume: Volume, content: Content) {
        let name = volume.name.clone();
        let kept = Kept {
            growing_to: volume.size,
            volume: volume.clone(),
            state: State::Making,
            attached: Some(false),
            staged: false,
            published: false,
            read_only: false,
            content,
        };
        self.volumes.insert(name.clone(), kept);
        let made = self.deed(&format!("create {name}"), |life| {
            let mut made = volume.clone();
            life.csi().create(&mut made).map(|_| made)
        });
        let kept = self.kept(&name);
        (kept.growing_to, kept.volume, kept.state) = (made.size, made, State::Made);
    }

    /// A volume as it was answered, to clone it.
    pub fn volume(&self, name: &str) -> Volume {
        self.volumes[name].volume.clone()
    }

    /// What is in a volume.
    pub fn content(&self, name: &str) -> Content {
        self.volumes[name].content.clone()
    }

    /// A snapshot's id and content, to restore it.
    pub fn snapshot(&self, name: &str) -> (String, Content) {
        let kept = &self.snapshots[name];
        (kept.id.clone(), kept.content.clone())
    }

    /// Attaches, stages and publishes it.
    pub fn use_volume(&mut self, name: &str, read_only: bool) {
        self.kept(name).read_only = read_only;
        self.kept(name).attached = None;
        let attached = self.deed(&format!("attach {name}"), |life| {
            let mut volume = life.volume(name);
            life.csi().attach(&mut volume).map(|()| volume)
        });
        self.kept(name).volume = attached;
        self.kept(name).attached = Some(true);
        self.deed(&format!("stage {name}"), |life| {
            life.csi().stage(&life.volumes[name].volume, &life.volumes[name].staging())
        });
        self.kept(name).staged = true;
        self.deed(&format!("publish {name}"), |life| {
            let kept = &life.volumes[name];
            life.csi().publish(&kept.volume, &kept.staging(), &kept.target(), read_only)
        });
        self.kept(name).published = true;
    }

    /// Undoes that.
    pub fn release(&mut self, name: &str) {
        self.kept(name).published = false;
        self.deed(&format!("unpublish {name}"), |life| {
            life.csi().unpublish(&life.volumes[name].volume, &life.volumes[name].target())
        });
        self.kept(name).staged = false;
        self.deed(&format!("unstage {name}"), |life| {
            life.csi().unstage(&life.volumes[name].volume, &life.volumes[name].staging())
        });
        self.kept(name).attached = None;
        self.deed(&format!("detach {name}"), |life| life.csi().detach(&life.volumes[name].volume));
        self.kept(name).attached = Some(false);
    }

    pub fn delete(&mut self, name: &str) {
        self.kept(name).state = State::Removing;
        self.deed(&format!("delete {name}"), |life| life.csi().delete(&life.volumes[name].volume));
        self.kept(name).state = State::Gone;
    }

    /// Writes into a file of a Filesystem volume or, without a name, into a Block volume, and syncs it.
    pub fn write(&mut self, name: &str, file: &str, at: i64) {
        self.written += 1;
        let (place, label) = ((file.to_owned(), u64::try_from(at).unwrap()), self.written);
        self.kept(name).content.remove(&place);
        self.deed(&format!("write {name}"), |life| {
            let path = life.volumes[name].path(file);
            life.host.try_write(path, place.1, &pattern(label)).map_err(Status::unknown)
        });
        self.kept(name).content.insert(place, label);
    }

    /// Reads all that was written.
    pub fn check(&mut self, name: &str) {
        self.deed(&format!("read {name}"), |life| life.compare(name));
    }

    fn compare(&self, name: &str) -> Result<(), Status> {
        let kept = &self.volumes[name];
        for ((file, at), label) in &kept.content {
            let read = self.host.try_read(kept.path(file), *at, PIECE).map_err(Status::unknown)?;
            assert!(read == pattern(*label), "{name} has lost what was written to it at {file}+{at}");
        }
        let last = u64::try_from(kept.volume.size).unwrap() - PIECE as u64;
        if kept.volume.fs.is_none() && !kept.content.contains_key(&(String::new(), last)) {
            let read = self.host.try_read(kept.target(), last, PIECE).map_err(Status::unknown)?;
            assert!(read == [0; PIECE], "{name} has bytes at its end that nobody wrote, or no end: {}", read.len());
        }
        Ok(())
    }

    /// Cuts a snapshot; it may not be ready.
    pub fn cut(&mut self, name: &str, cut: &str) {
        let making = KeptSnapshot { id: String::new(), state: State::Making, content: self.content(name) };
        self.snapshots.insert(cut.to_owned(), making);
        let id = self
            .deed(&format!("cut {cut}"), |life| Ok(life.csi().snapshot(&life.volumes[name].volume, cut)?.snapshot_id));
        let kept = self.snapshots.get_mut(cut).unwrap();
        (kept.id, kept.state) = (id, State::Made);
    }

    /// Waits until it can be restored from.
    pub fn ready(&mut self, name: &str, cut: &str) {
        self.deed(&format!("wait for {cut}"), |life| {
            let found = life.csi().snapshot(&life.volumes[name].volume, cut)?;
            found.ready_to_use.then_some(()).ok_or_else(|| Status::aborted("it is not ready"))
        });
    }

    pub fn delete_snapshot(&mut self, cut: &str) {
        self.snapshots.get_mut(cut).unwrap().state = State::Removing;
        self.deed(&format!("delete {cut}"), |life| life.csi().delete_snapshot(&life.snapshots[cut].id));
        self.snapshots.get_mut(cut).unwrap().state = State::Gone;
    }

    /// Grows a volume in use.
    pub fn grow(&mut self, name: &str, size: i64) {
        self.kept(name).growing_to = size;
        let grown = self.deed(&format!("expand {name}"), |life| {
            let mut volume = life.volume(name);
            life.csi().expand(&mut volume, size).map(|()| volume)
        });
        self.kept(name).growing_to = grown.size;
        self.kept(name).volume = grown;
        self.deed(&format!("node expand {name}"), |life| {
            life.csi().node_expand(&life.volumes[name].volume, &life.volumes[name].target()).map(drop)
        });
    }

    pub fn modify(&mut self, name: &str, key: &str, value: &str) {
        self.deed(&format!("modify {name}"), |life| life.csi().modify(&life.volumes[name].volume, key, value));
    }

    /// Everything has been deleted, and nothing is left over.
    pub fn end(&mut self) {
        self.next_deed();
        self.is_over.store(true, Ordering::SeqCst);
        self.join_watcher();
        if self.power_has_failed() && self.cut_in.is_none() {
            self.revive();
        }
        eventually("the place is empty", || {
            let left = self.host.inventory(PLACE);
            (left.files.is_empty() && left.loops.is_empty()).then_some(())
        });
        self.host.inventory(PLACE).assert_empty();
        self.host.stop_cistern();
    }
}

impl Drop for Life<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.join_watcher();
    }
}

fn fail(host: &Host, failed: &AtomicBool) {
    failed.store(true, Ordering::SeqCst);
    host.kill();
}

/// The host's kernel writes nothing before it is told to, and so a power cut loses all that was not synced.
fn keep_in_memory(host: &Host) {
    host.sh(
        "sysctl -qw vm.dirty_writeback_centisecs=0 vm.dirty_expire_centisecs=360000 fs.xfs.xfssyncd_centisecs=720000",
    );
    host.sh("mount -o remount,commit=3600 /");
}

/// Bytes that nobody else writes.
fn pattern(label: u64) -> Vec<u8> {
    let mut dice = Dice::new(label);
    (0..PIECE / 8).flat_map(|_| dice.next().to_le_bytes()).collect()
}

/// Numbers that look like chance and come from a seed (splitmix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of so many.
    pub fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % count as u64).unwrap()
    }
}

/// Every operation on every kind of volume, with data written on the way and held against what is there.
pub fn live(life: &mut Life, fs: &str) {
    let (small, large) = sizes(fs);
    life.create(Volume::block("thin", 32 * MIB).with("wipe", "zero"), Content::new());
    let thick = Volume::block("thick", 32 * MIB).with("allocation", "thick").with("wipe", "discard");
    life.create(thick, Content::new());
    life.create(Volume::filesystem("files", fs, small), Content::new());
    for (name, file) in WRITTEN {
        life.use_volume(name, false);
        life.write(name, file, 0);
        life.write(name, file, 20 * MIB);
    }
    for (name, file) in WRITTEN {
        cut(life, name, file);
    }
    restore(life, "", large);
    life.grow("thick", 48 * MIB);
    life.write("thick", "", 40 * MIB);
    life.grow("files", large);
    life.write("files", "other", 0);
    life.modify("thin", "readAheadKiB", "64");
    for (name, _) in WRITTEN {
        life.check(name);
    }
    remove_restored(life, "");
    if life.cut_in.is_some() {
        // what they are has not been seen since
        restore(life, "again-", large);
        remove_restored(life, "again-");
    }
    for (name, _) in WRITTEN {
        life.release(name);
        life.delete(name);
    }
    for (name, _) in WRITTEN {
        life.delete_snapshot(&format!("{name}-cut"));
    }
    life.end();
}

/// The volumes that are written to, and where.
const WRITTEN: [(&str, &str); 3] = [("thin", ""), ("thick", ""), ("files", "file")];

/// A volume with a file system, and what it grows to.
fn sizes(fs: &str) -> (i64, i64) {
    match fs {
        "ext4" => (64 * MIB, 96 * MIB),
        "btrfs" => (256 * MIB, 320 * MIB),
        _ => (320 * MIB, 400 * MIB),
    }
}

/// Cuts a snapshot, and goes on writing while it is being made if that can be.
fn cut(life: &mut Life, name: &str, file: &str) {
    let cut = format!("{name}-cut");
    if life.ground.has_reflinks() {
        life.cut(name, &cut);
        life.write(name, file, 0);
        life.ready(name, &cut);
    } else {
        life.release(name);
        life.cut(name, &cut);
        life.ready(name, &cut);
        life.use_volume(name, false);
        life.write(name, file, 0);
    }
}

/// A volume of each snapshot or, for one, of the volume itself.
fn restore(life: &mut Life, prefix: &str, large: i64) {
    let named = |name: &str| format!("{prefix}{name}");
    let (thin_cut, thin) = life.snapshot("thin-cut");
    life.create(Volume::block(&named("restored"), 64 * MIB).restored_from(&thin_cut), thin);
    let copied = Volume::block(&named("copied"), 48 * MIB).with("allocation", "thick");
    if life.ground.has_reflinks() && prefix.is_empty() {
        let (source, content) = (life.volume("thick"), life.content("thick"));
        life.create(copied.cloned_from(&source), content);
    } else {
        let (thick_cut, thick) = life.snapshot("thick-cut");
        life.create(copied.restored_from(&thick_cut), thick);
    }
    let (files_cut, files) = life.snapshot("files-cut");
    let fs = life.volume("files").fs.unwrap();
    life.create(Volume::filesystem(&named("cloned"), &fs, large).restored_from(&files_cut), files);
    for (name, read_only) in [("restored", true), ("copied", false), ("cloned", false)] {
        life.use_volume(&named(name), read_only);
        life.check(&named(name));
    }
}

fn remove_restored(life: &mut Life, prefix: &str) {
    for name in ["restored", "copied", "cloned"] {
        let name = format!("{prefix}{name}");
        life.release(&name);
        life.delete(&name);
    }
}
